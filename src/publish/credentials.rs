//! What a connection needs from disk, read at each connection, so that what was rotated is used. How the files are read
//! is `config`'s, where `check` reads them too. Knows no MQTT.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::ClientConfig;

use super::tls_words::Explaining;
use crate::config::{
    Tls,
    credentials::{self, CredentialError},
};

/// Why a connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The password's file.
    #[error(transparent)]
    Password(#[from] CredentialError),
    /// Files of TLS.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Files(Vec<CredentialError>),
    /// rustls refused what was read.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// No root that can be used.
    #[error("TLS: {0}")]
    Roots(#[from] rustls::client::VerifierBuilderError),
}

/// The password: the systemd credential with the file's name if there is one, else the file.
pub fn password(file: &Path, credentials_dir: Option<&Path>) -> Result<String, OfferError> {
    let credential = credentials_dir.zip(file.file_name()).map(|(dir, name)| dir.join(name));
    let path: PathBuf = credential.filter(|path| path.exists()).unwrap_or_else(|| file.to_path_buf());
    Ok(credentials::password(&path)?)
}

/// A rustls configuration from the files as they are now. `clock_trusted` is for the words of what fails.
pub fn client_config(tls: &Tls, clock_trusted: bool) -> Result<Arc<ClientConfig>, OfferError> {
    let files = credentials::tls_files(tls).map_err(OfferError::Files)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        Explaining::new(files.roots, Arc::clone(&provider), tls.ca_file.as_deref(), clock_trusted)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match files.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
    };
    Ok(Arc::new(config))
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
        let error = password(Path::new("/nonexistent/pw"), None).unwrap_err().to_string();
        assert!(error.contains("mqtt.password_file /nonexistent/pw"), "{error}");
    }
}
