//! The files that a connection to the broker needs: password, authorities, certificate and key. `check` and `run` read
//! them here, in the same way. Never shows what it reads.

use std::path::Path;

use rustls::{RootCertStore, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{Tls, read_file};

const PASSWORD_HINT: &str = "write the password alone into it, readable for the service's user only";
/// What Windows editors put before UTF-8.
const BOM: &[u8] = b"\xEF\xBB\xBF";
/// Where distributions keep the system's roots, tried in this order when no `ca_file` is given.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("mqtt.{key} {path}: {detail}\n  hint: {hint}")]
pub struct CredentialError {
    /// `password_file`, `ca_file`, `cert_file` or `key_file`.
    pub key: &'static str,
    /// Where.
    pub path: String,
    /// What is wrong.
    pub detail: String,
    /// What to do.
    pub hint: &'static str,
}

/// What TLS needs.
#[derive(Debug)]
pub struct TlsFiles {
    /// The authorities that are trusted.
    pub roots: RootCertStore,
    /// Certificate and key of mutual TLS.
    pub client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

struct File<'a> {
    key: &'static str,
    path: &'a Path,
}

impl File<'_> {
    fn fault(&self, detail: impl Into<String>, hint: &'static str) -> CredentialError {
        CredentialError { key: self.key, path: self.path.display().to_string(), detail: detail.into(), hint }
    }

    fn read(&self) -> Result<Vec<u8>, CredentialError> {
        let bytes = read_file(self.path).map_err(|error| {
            let hint = match self.key {
                "password_file" => PASSWORD_HINT,
                _ => {
                    "paths are relative to the configuration file; it must be readable for the service's user"
                }
            };
            self.fault(error.to_string(), hint)
        })?;
        if bytes.starts_with(b"\xFF\xFE") || bytes.starts_with(b"\xFE\xFF") {
            return Err(self.fault("is UTF-16, expected UTF-8", "save it as UTF-8"));
        }
        Ok(bytes.strip_prefix(BOM).map(<[u8]>::to_vec).unwrap_or(bytes))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
        let bytes = self.read()?;
        let hint = "expected PEM: -----BEGIN CERTIFICATE-----";
        let found = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| self.fault(format!("is no PEM that can be read: {error}"), hint))?;
        match found.is_empty() {
            true if has(&bytes, "PRIVATE KEY") => Err(self.fault("holds a key and no certificate", hint)),
            true => Err(self.fault("holds no certificate", hint)),
            false => Ok(found),
        }
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, CredentialError> {
        let bytes = self.read()?;
        if has(&bytes, "ENCRYPTED") {
            let hint = "store the key without one, readable for the service's user only: openssl pkey -in OLD -out NEW";
            return Err(self.fault("is protected by a passphrase, which nobody could type in", hint));
        }
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
            let hint = "expected PEM: -----BEGIN PRIVATE KEY-----";
            self.fault(format!("holds no key that can be read: {error}"), hint)
        })
    }
}

fn has(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

/// The password: the file's one line, without its end.
pub fn password(path: &Path) -> Result<String, CredentialError> {
    let file = File { key: "password_file", path };
    let hint = PASSWORD_HINT;
    let text = String::from_utf8(file.read()?).map_err(|_| file.fault("is not UTF-8", hint))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.contains(['\r', '\n']) {
        let detail = if text.starts_with(['\r', '\n']) {
            "begins with a blank line"
        } else {
            "has more than one line"
        };
        return Err(file.fault(detail, hint));
    }
    if text.is_empty() {
        return Err(file.fault("is empty", hint));
    }
    Ok(text.to_owned())
}

/// Everything that TLS needs, from the files as they are now, or every fault of them. Half a pair is the caller's to refuse.
pub fn tls_files(tls: &Tls) -> Result<TlsFiles, Vec<CredentialError>> {
    let mut faults = Vec::new();
    let mut keep = |error: CredentialError| faults.push(error);
    let roots = roots(tls.ca_file.as_deref()).map_err(&mut keep);
    let cert = tls.cert_file.as_deref().map(|path| File { key: "cert_file", path });
    let chain = cert.as_ref().map(|file| file.certificates().map_err(&mut keep));
    let key = tls.key_file.as_deref().map(|path| File { key: "key_file", path });
    let der = key.as_ref().map(|file| file.private_key().map_err(&mut keep));
    let mut client = None;
    if let (Some(cert), Some(Ok(chain)), Some(key), Some(Ok(der))) = (cert, chain, key, der) {
        match belong_together(&cert, &chain, &key, &der) {
            Ok(()) => client = Some((chain, der)),
            Err(error) => faults.push(error),
        }
    }
    match roots {
        Ok(roots) if faults.is_empty() => Ok(TlsFiles { roots, client }),
        _ => Err(faults),
    }
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, CredentialError> {
    let system = SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists());
    let Some(path) = ca_file.or(system) else {
        let hint = "set mqtt.ca_file, or install the package ca-certificates";
        let file = File { key: "ca_file", path: Path::new("/etc/ssl/certs") };
        return Err(file.fault("no certificate authority to trust", hint));
    };
    let ca = File { key: "ca_file", path };
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(ca.certificates()?);
    if added == 0 {
        return Err(
            ca.fault("holds no certificate that can be trusted", "is it the authority's certificate?")
        );
    }
    Ok(roots)
}

fn belong_together(
    cert: &File<'_>,
    chain: &[CertificateDer<'static>],
    key: &File<'_>,
    der: &PrivateKeyDer<'static>,
) -> Result<(), CredentialError> {
    let signing = rustls::crypto::ring::default_provider()
        .key_provider
        .load_private_key(der.clone_key())
        .map_err(|error| key.fault(format!("is no key that can be used: {error}"), "use RSA or ECDSA"))?;
    CertifiedKey::new(chain.to_vec(), signing)
        .keys_match()
        .map_err(|_| cert.fault("does not belong to the key in key_file", "make a certificate for this key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(bytes: &[u8], look: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        look(&path);
    }

    #[test]
    fn a_password_is_the_one_line_of_its_file() {
        for (bytes, expected) in [
            (&b"s3cret\n"[..], "s3cret"),
            (b"s3cret", "s3cret"),
            (b"\xEF\xBB\xBFs3cret\r\n", "s3cret"),
            (b" with spaces \n\n", " with spaces "),
        ] {
            with(bytes, |path| assert_eq!(password(path).unwrap(), expected));
        }
        for (bytes, expected) in [
            (&b""[..], "is empty"),
            (b"\n", "is empty"),
            (b"\ns3cret\n", "begins with a blank line"),
            (b"s3cret\nsecond\n", "more than one line"),
            (b"\xFF\xFEs\x003\x00", "is UTF-16"),
            (b"\xE9\n", "is not UTF-8"),
        ] {
            with(bytes, |path| {
                let error = password(path).unwrap_err().to_string();
                assert!(error.contains(expected) && !error.contains("s3cret"), "{error}");
            });
        }
    }

    #[test]
    fn certificates_and_keys_are_read_past_a_bom_and_what_they_are_not_is_named() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let good = Tls {
            ca_file: file("ca", format!("\u{feff}\r\n{cert}").as_bytes()),
            cert_file: file("cert", format!("\u{feff}{cert}").as_bytes()),
            key_file: file("key", format!("\u{feff}\n{key}\n\n").as_bytes()),
        };
        assert!(tls_files(&good).unwrap().client.is_some());
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        for (key_text, at, expected) in [
            (other.as_str(), "cert_file", "does not belong to the key"),
            (locked, "key_file", "passphrase"),
            (&cert, "key_file", "holds no key"),
            ("", "key_file", "holds no key"),
        ] {
            let bad = Tls { key_file: file("other", key_text.as_bytes()), ..good.clone() };
            let faults = tls_files(&bad).unwrap_err();
            assert!(faults[0].key == at && faults[0].detail.contains(expected), "{faults:?}");
        }
        let bad =
            Tls { cert_file: file("swapped", key.as_bytes()), ca_file: Some("/no/ca.pem".into()), ..good };
        let faults = tls_files(&bad).unwrap_err();
        assert_eq!(faults.len(), 2, "all at once: {faults:?}");
        assert!(faults[0].to_string().contains("mqtt.ca_file /no/ca.pem"), "{}", faults[0]);
        assert!(faults[1].detail.contains("holds a key and no certificate"));
    }
}
