//! The gateway's key pair: made at first start, kept in the data directory, readable by nobody else.
//!
//! Knows how keys are kept, shown and exchanged. What is signed with them is the business of who signs.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// Name of the key file.
const KEY_FILE: &str = "identity.key";
/// The public half of the key in force, in the data directory and in each copy of the ledger. An earlier key's is called
/// `public-key.` and its id, `.pem`.
pub const PUBLIC_KEY: &str = "public-key.pem";
/// The next key, from when it is made until the ledger has the record that announces it.
const NEXT_FILE: &str = "identity.key.next";
/// Names of the systemd credential that wins over the file; the second is the one of version 0.1.
const CREDENTIALS: [&str; 2] = ["signing-key", KEY_FILE];
/// Width of a line of PEM (RFC 7468).
const PEM_WIDTH: usize = 64;
/// `SubjectPublicKeyInfo` of an Ed25519 key up to the key itself (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2A, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The public half of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// From PEM (`BEGIN PUBLIC KEY`, RFC 8410).
    pub fn from_pem(text: &str) -> Result<PublicKey, String> {
        if !text.contains("-----BEGIN PUBLIC KEY-----") {
            return Err("is not a public key in PEM: expected BEGIN PUBLIC KEY".into());
        }
        let body: String = text.lines().map(str::trim).filter(|line| !line.starts_with("-----")).collect();
        PublicKey::from_base64(&body)
    }

    /// From the base64 body of the PEM alone.
    pub fn from_base64(body: &str) -> Result<PublicKey, String> {
        let der = STANDARD.decode(body).map_err(|_| "is not base64".to_owned())?;
        der.strip_prefix(&SPKI_PREFIX)
            .and_then(|key| key.try_into().ok())
            .map(PublicKey)
            .ok_or_else(|| "is not an Ed25519 public key (SubjectPublicKeyInfo)".into())
    }

    /// The base64 body of the PEM.
    pub fn to_base64(self) -> String {
        STANDARD.encode([&SPKI_PREFIX[..], &self.0].concat())
    }

    /// PEM.
    pub fn to_pem(self) -> String {
        pem("PUBLIC KEY", &[&SPKI_PREFIX[..], &self.0].concat())
    }

    /// First 16 hex digits of the SHA-256 of the key's 32 bytes: short enough to be compared by eye.
    pub fn id(self) -> String {
        let sum = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let start = sum.as_ref().first_chunk::<8>().copied().map_or(0, u64::from_be_bytes);
        format!("{start:016x}")
    }

    /// Whether `signature` (base64) is this key's over `bytes`.
    pub fn verifies(self, bytes: &[u8], signature: &str) -> bool {
        STANDARD
            .decode(signature)
            .is_ok_and(|raw| UnparsedPublicKey::new(&ED25519, self.0).verify(bytes, &raw).is_ok())
    }
}

/// One key pair: what it signs and what it is called belong together.
#[derive(Clone)]
pub struct Signer(Arc<Ed25519KeyPair>);

impl Signer {
    /// From a PKCS #8 private key, PEM or DER.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Signer, String> {
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN"));
        let der = match text {
            Some(text) => {
                let body: String =
                    text.lines().map(str::trim).filter(|line| !line.starts_with("-----")).collect();
                STANDARD.decode(body).map_err(|_| "is not a PEM file".to_owned())?
            }
            None => bytes.to_vec(),
        };
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
            .map(|pair| Signer(Arc::new(pair)))
            .map_err(|_| "is not an Ed25519 private key (PKCS #8, PEM or DER)".into())
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        let mut key = [0; 32];
        for (to, from) in key.iter_mut().zip(self.0.public_key().as_ref()) {
            *to = *from;
        }
        PublicKey(key)
    }

    /// Signature over `bytes`, base64.
    pub fn sign(&self, bytes: &[u8]) -> String {
        STANDARD.encode(self.0.sign(bytes))
    }
}

/// The key in force.
pub struct Identity {
    signer: RwLock<Signer>,
    /// Where the credential lies that the key came from; such a key is exchanged there, not here.
    credential: Option<PathBuf>,
    /// Held from taking the signer until the signed record is stored, so that nothing is signed by a key that the
    /// chain has already retired.
    pub signing: tokio::sync::Mutex<()>,
}

impl Identity {
    /// Whether the data directory has a key already.
    pub fn is_made(data_dir: &Path) -> bool {
        data_dir.join(KEY_FILE).exists()
    }

    /// Loads the key, or makes one (mode 0600) when there is none yet.
    pub fn load_or_create(data_dir: &Path) -> io::Result<Identity> {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Identity::load_from(data_dir, credentials.as_deref())
    }

    /// The same with the directory of systemd's credentials given.
    pub fn load_from(data_dir: &Path, credentials: Option<&Path>) -> io::Result<Identity> {
        for name in CREDENTIALS {
            if let Some(path) = credentials.map(|dir| dir.join(name)).filter(|path| path.exists()) {
                return Ok(Identity { credential: Some(path.clone()), ..Identity::of(load(&path)?) });
            }
        }
        let path = data_dir.join(KEY_FILE);
        match load(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path).map(Identity::of),
            other => other.map(Identity::of),
        }
    }

    /// An identity that has this key.
    pub fn of(signer: Signer) -> Identity {
        Identity { signer: RwLock::new(signer), credential: None, signing: tokio::sync::Mutex::default() }
    }

    /// The key in force, now.
    pub fn signer(&self) -> Signer {
        self.signer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The public key as PEM.
    pub fn public_key_pem(&self) -> String {
        self.signer().public_key().to_pem()
    }

    /// The id of the public key.
    pub fn key_id(&self) -> String {
        self.signer().public_key().id()
    }

    /// The credential the key came from, if it did.
    pub fn credential(&self) -> Option<&Path> {
        self.credential.as_deref()
    }

    /// Makes the next key and keeps it durably beside the one in force.
    pub fn make_next(&self, data_dir: &Path) -> io::Result<Signer> {
        discard_next(data_dir)?;
        let next = create(&data_dir.join(NEXT_FILE))?;
        sync_dir(data_dir)?;
        Ok(next)
    }

    /// Puts the next key in force; the old one stays aside as `identity.key.` and its id.
    pub fn adopt_next(&self, data_dir: &Path) -> io::Result<()> {
        let next = load(&data_dir.join(NEXT_FILE))?;
        let current = data_dir.join(KEY_FILE);
        let aside = data_dir.join(format!("{KEY_FILE}.{}", load(&current)?.public_key().id()));
        // In memory first: the chain already says so, and the file follows at the next start at the latest.
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = next;
        match std::fs::hard_link(&current, aside) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        std::fs::rename(data_dir.join(NEXT_FILE), current)?;
        sync_dir(data_dir)?;
        self.publish(data_dir)
    }

    /// Lays the public halves of this key and of the earlier ones into the data directory, where the second copy of the
    /// ledger finds them: with all of them everything that was ever signed here can be checked.
    pub fn publish(&self, data_dir: &Path) -> io::Result<()> {
        for entry in std::fs::read_dir(data_dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let earlier = name.strip_prefix(KEY_FILE).and_then(|rest| rest.strip_prefix('.'));
            if let Some(id) = earlier.filter(|id| id.len() == 16)
                && let Ok(signer) = load(&data_dir.join(&name))
            {
                lay(data_dir, &format!("public-key.{id}.pem"), &signer.public_key().to_pem())?;
            }
        }
        // A credential that was exchanged leaves nothing else of the key before it.
        if let Ok(text) = std::fs::read_to_string(data_dir.join(PUBLIC_KEY))
            && let Ok(before) = PublicKey::from_pem(&text)
            && before != self.signer().public_key()
        {
            lay(data_dir, &format!("public-key.{}.pem", before.id()), &text)?;
        }
        // Last: who sees a new one here finds the earlier ones.
        lay(data_dir, PUBLIC_KEY, &self.public_key_pem())
    }
}

/// A next key that was made and not yet put in force, after a crash.
pub fn pending(data_dir: &Path) -> io::Result<Option<Signer>> {
    match load(&data_dir.join(NEXT_FILE)) {
        Ok(next) => Ok(Some(next)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets go of a next key that no record announces.
pub fn discard_next(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(data_dir.join(NEXT_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn load(path: &Path) -> io::Result<Signer> {
    Signer::from_pkcs8(&std::fs::read(path)?)
        .map_err(|what| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display())))
}

fn create(path: &Path) -> io::Result<Signer> {
    let made = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new())
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(pem("PRIVATE KEY", made.as_ref()).as_bytes())?;
    file.sync_all()?;
    load(path)
}

fn lay(dir: &Path, name: &str, pem: &str) -> io::Result<()> {
    if std::fs::read_to_string(dir.join(name)).is_ok_and(|there| there == pem) {
        return Ok(());
    }
    let part = dir.join(format!("{name}.part"));
    let mut file = std::fs::File::create(&part)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(part, dir.join(name))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir)?.sync_all()
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
        let first = Identity::load_from(dir.path(), None).unwrap();
        let loaded = Identity::load_from(dir.path(), None).unwrap();
        assert_eq!(first.public_key_pem(), loaded.public_key_pem());
        assert_eq!(first.key_id().len(), 16);
        let mode = std::fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_an_error_and_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(KEY_FILE), "-----BEGIN PRIVATE KEY-----\nAAAA\n").unwrap();
        assert!(Identity::load_from(dir.path(), None).is_err());
    }

    #[test]
    fn a_credential_wins_as_pem_and_as_der() {
        let (dir, other, credentials) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = Identity::load_from(dir.path(), None).unwrap();
        let given = Identity::load_from(other.path(), None).unwrap();
        let text = std::fs::read_to_string(other.path().join(KEY_FILE)).unwrap();
        let der = STANDARD.decode(text.lines().filter(|l| !l.starts_with('-')).collect::<String>()).unwrap();
        let path = credentials.path().join("signing-key");
        for bytes in [text.as_bytes(), &der] {
            std::fs::write(&path, bytes).unwrap();
            let used = Identity::load_from(dir.path(), Some(credentials.path())).unwrap();
            assert_eq!(used.key_id(), given.key_id());
            assert_ne!(used.key_id(), own.key_id());
            assert_eq!(used.credential(), Some(path.as_path()));
        }
    }

    #[test]
    fn a_new_key_takes_over_and_the_old_one_stays_aside() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_from(dir.path(), None).unwrap();
        let old = identity.signer();
        let next = identity.make_next(dir.path()).unwrap();
        assert_eq!(identity.key_id(), old.public_key().id());
        identity.adopt_next(dir.path()).unwrap();
        assert_eq!(identity.key_id(), next.public_key().id());
        assert_eq!(Identity::load_from(dir.path(), None).unwrap().key_id(), next.public_key().id());
        let aside = load(&dir.path().join(format!("{KEY_FILE}.{}", old.public_key().id()))).unwrap();
        assert_eq!(aside.public_key(), old.public_key());
        assert!(pending(dir.path()).unwrap().is_none());
    }

    #[test]
    fn a_signature_is_checked_with_the_public_half_alone() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Identity::load_from(dir.path(), None).unwrap().signer();
        let key = PublicKey::from_pem(&signer.public_key().to_pem()).unwrap();
        let signature = signer.sign(b"manifest");
        assert!(key.verifies(b"manifest", &signature));
        assert!(!key.verifies(b"manifesT", &signature));
        assert!(!key.verifies(b"manifest", "?"));
    }
}
