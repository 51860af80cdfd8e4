//! Reads what a connection needs from disk, at each connection, so that what was rotated is used: the password, the
//! certificates. Knows no MQTT client. Never logs what it reads.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::config::{Tls, read_file};

/// Where distributions keep the system's roots, tried in this order when no `ca_file` is given.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Why a connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The password file.
    #[error("mqtt.password_file {path}: {error}\n  hint: it must be readable by the service's user")]
    Password {
        /// Where it was looked for.
        path: String,
        /// What the operating system said.
        error: std::io::Error,
    },
    /// A PEM file.
    #[error("mqtt.{key} {path}: {detail}")]
    Pem {
        /// `ca_file`, `cert_file` or `key_file`.
        key: &'static str,
        /// Where.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// No roots at all.
    #[error(
        "no certificate authority to trust\n  hint: set mqtt.ca_file, or install the package ca-certificates"
    )]
    NoRoots,
    /// One half of a pair.
    #[error("mqtt.cert_file and mqtt.key_file belong together, only one is given")]
    HalfAPair,
    /// rustls refused what was read.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
}

/// The password: the systemd credential with the file's name if there is one, else the file; without the line end.
pub fn password(file: &Path, credentials_dir: Option<&Path>) -> Result<String, CredentialError> {
    let credential = credentials_dir.zip(file.file_name()).map(|(dir, name)| dir.join(name));
    let path: PathBuf = credential.filter(|path| path.exists()).unwrap_or_else(|| file.to_path_buf());
    let text = read_file(&path).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is not text in UTF-8"))
    });
    match text {
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(CredentialError::Password { path: path.display().to_string(), error }),
    }
}

/// A rustls configuration from the files as they are now.
pub fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, CredentialError> {
    let roots = match &tls.ca_file {
        Some(path) => roots_from("ca_file", path)?,
        None => match SYSTEM_ROOTS.iter().map(Path::new).find(|path| path.exists()) {
            Some(path) => roots_from("ca_file", path)?,
            None => return Err(CredentialError::NoRoots),
        },
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match (&tls.cert_file, &tls.key_file) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = certificates("cert_file", cert)?;
            let key_der = bytes("key_file", key).and_then(|bytes| {
                PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| pem("key_file", key, &e.to_string()))
            })?;
            builder.with_client_auth_cert(chain, key_der)?
        }
        _ => return Err(CredentialError::HalfAPair),
    };
    Ok(Arc::new(config))
}

fn roots_from(key: &'static str, path: &Path) -> Result<RootCertStore, CredentialError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(key, path)?);
    if added == 0 {
        return Err(pem(key, path, "holds no certificate that can be trusted"));
    }
    Ok(roots)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let found = CertificateDer::pem_slice_iter(&bytes(key, path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| pem(key, path, &e.to_string()))?;
    if found.is_empty() {
        return Err(pem(key, path, "holds no certificate, expected PEM"));
    }
    Ok(found)
}

fn bytes(key: &'static str, path: &Path) -> Result<Vec<u8>, CredentialError> {
    read_file(path).map_err(|e| pem(key, path, &e.to_string()))
}

fn pem(key: &'static str, path: &Path, detail: &str) -> CredentialError {
    CredentialError::Pem { key, path: path.display().to_string(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_systemd_credential_of_the_same_name_wins() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mqtt-password");
        std::fs::write(&file, "from-file\n").unwrap();
        assert_eq!(password(&file, None).unwrap(), "from-file");
        let credentials = dir.path().join("credentials");
        std::fs::create_dir(&credentials).unwrap();
        assert_eq!(password(&file, Some(&credentials)).unwrap(), "from-file");
        std::fs::write(credentials.join("mqtt-password"), " from credential \r\n").unwrap();
        assert_eq!(password(&file, Some(&credentials)).unwrap(), " from credential ");
    }

    #[test]
    fn what_is_missing_is_named_with_its_key() {
        let tls = Tls { ca_file: Some("/nonexistent/ca.pem".into()), ..Tls::default() };
        let error = client_config(&tls).unwrap_err().to_string();
        assert!(error.contains("mqtt.ca_file /nonexistent/ca.pem"), "{error}");
        let error = password(Path::new("/nonexistent/pw"), None).unwrap_err().to_string();
        assert!(error.contains("mqtt.password_file /nonexistent/pw"), "{error}");
    }

    #[test]
    fn half_a_client_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(&ca, made.cert.pem()).unwrap();
        let tls = Tls { ca_file: Some(ca.clone()), cert_file: Some(ca), key_file: None };
        assert!(matches!(client_config(&tls), Err(CredentialError::HalfAPair)));
    }
}
