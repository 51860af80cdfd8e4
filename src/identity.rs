//! The gateway's key pair: made at first start, kept in the data directory, readable by nobody else.
//!
//! Knows how the key is kept and shown. What is signed with it is the business of who signs.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{Ed25519KeyPair, KeyPair};

/// Name of the key file, and of the systemd credential that wins over it.
const KEY_FILE: &str = "identity.key";
/// Width of a line of PEM (RFC 7468).
const PEM_WIDTH: usize = 64;
/// SubjectPublicKeyInfo of an Ed25519 key up to the key itself (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2A, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00];

/// An Ed25519 key pair.
pub struct Identity {
    pair: Ed25519KeyPair,
}

impl Identity {
    /// Loads the key, or makes one (mode 0600) when there is none yet.
    pub fn load_or_create(data_dir: &Path) -> io::Result<Identity> {
        if let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") {
            let credential = Path::new(&dir).join(KEY_FILE);
            if credential.exists() {
                return Identity::load(&credential);
            }
        }
        let path = data_dir.join(KEY_FILE);
        match Identity::load(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Identity::create(&path),
            other => other,
        }
    }

    fn load(path: &Path) -> io::Result<Identity> {
        let text = std::fs::read_to_string(path)?;
        let bad =
            |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let body: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(body.trim()).map_err(|_| bad("is not a PEM file"))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map_err(|_| bad("is not an Ed25519 private key (PKCS #8)"))?;
        Ok(Identity { pair })
    }

    fn create(path: &Path) -> io::Result<Identity> {
        let made = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new())
            .map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(pem("PRIVATE KEY", made.as_ref()).as_bytes())?;
        file.sync_all()?;
        Identity::load(path)
    }

    /// The public key as PEM.
    pub fn public_key_pem(&self) -> String {
        let der = [&SPKI_PREFIX, self.pair.public_key().as_ref()].concat();
        pem("PUBLIC KEY", &der)
    }

    /// First 16 hex digits of the SHA-256 of the public key: short enough to be compared by eye.
    pub fn key_id(&self) -> String {
        let sum = ring::digest::digest(&ring::digest::SHA256, self.pair.public_key().as_ref());
        let start = sum.as_ref().first_chunk::<8>().copied().map_or(0, u64::from_be_bytes);
        format!("{start:016x}")
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(PEM_WIDTH).filter_map(|l| std::str::from_utf8(l).ok()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_readable_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(dir.path()).unwrap();
        let loaded = Identity::load_or_create(dir.path()).unwrap();
        assert_eq!(first.public_key_pem(), loaded.public_key_pem());
        assert_eq!(first.key_id().len(), 16);
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KEY_FILE), "-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap();
        assert!(Identity::load_or_create(dir.path()).is_err());
    }
}
