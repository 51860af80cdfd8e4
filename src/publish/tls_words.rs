//! What is wrong with TLS to the broker, in words: which certificate, which date, and what to do. Verifies as rustls does,
//! and only says more when that fails. Knows no sockets.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// rustls's own verification, with an explanation where it fails.
#[derive(Debug)]
pub struct Explaining {
    inner: Arc<WebPkiServerVerifier>,
    ca_file: Option<PathBuf>,
    clock_trusted: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Explained(String);

impl Explaining {
    /// `ca_file` is where the roots come from; the system's, if it is none.
    pub fn new(
        roots: RootCertStore,
        provider: Arc<CryptoProvider>,
        ca_file: Option<&Path>,
        clock_trusted: bool,
    ) -> Result<Explaining, VerifierBuilderError> {
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        Ok(Explaining { inner, ca_file: ca_file.map(Path::to_path_buf), clock_trusted })
    }

    fn explain(
        &self,
        error: &CertificateError,
        chain: &[&CertificateDer<'_>],
        host: &ServerName<'_>,
        now: UnixTime,
    ) -> Option<String> {
        let certificates: Vec<X509Certificate<'_>> = chain
            .iter()
            .filter_map(|der| X509Certificate::from_der(der).ok().map(|(_, cert)| cert))
            .collect();
        let own = certificates.first()?;
        let now_secs = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let clock = format!(
            "our clock shows {}{}",
            moment(now_secs),
            if self.clock_trusted { "" } else { " and is not synchronised" }
        );
        let clock_hint =
            if self.clock_trusted { "" } else { " Set the gateway's clock first: it may be wrong." };
        let debug = format!("{error:?}");
        let titled = |cert: &X509Certificate<'_>| format!("certificate `{}` of the broker", name(cert));
        Some(match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                let old = certificates.iter().find(|c| c.validity().not_after.timestamp() < now_secs);
                let old = old.unwrap_or(own);
                let until = moment(old.validity().not_after.timestamp());
                format!(
                    "{} expired on {until}; {clock}\n  hint: renew it at the broker.{clock_hint}",
                    titled(old)
                )
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                let new = certificates.iter().find(|c| c.validity().not_before.timestamp() > now_secs);
                let new = new.unwrap_or(own);
                let from = moment(new.validity().not_before.timestamp());
                format!(
                    "{} is not valid before {from}; {clock}\n  hint: is the gateway's clock right?{clock_hint}",
                    titled(new)
                )
            }
            CertificateError::UnknownIssuer => {
                let last = certificates.last().unwrap_or(own);
                let issuer = last.issuer().to_string();
                let trusted = self.ca_file.as_ref().map_or_else(
                    || "among the authorities of this system".to_owned(),
                    |file| format!("in mqtt.ca_file {}", file.display()),
                );
                format!(
                    "{} is issued by `{issuer}`, which is not {trusted}\n  hint: set mqtt.ca_file to the certificate of the authority that signed the broker's",
                    titled(own)
                )
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let names = names(own);
                let names = if names.is_empty() {
                    "no name at all (subjectAltName)".into()
                } else {
                    names.join(", ")
                };
                format!(
                    "{} is for {names}, not for `{}`\n  hint: mqtt.url must name the broker as its certificate does",
                    titled(own),
                    host.to_str()
                )
            }
            _ if debug.contains("CaUsedAsEndEntity") => format!(
                "{} is one of an authority (CA:TRUE) and cannot be a server's\n  hint: make a server certificate, signed by that authority, for the broker",
                titled(own)
            ),
            _ if debug.contains("UnsupportedCertVersion") => format!(
                "{} is of X.509 version {}, expected 3\n  hint: make one of version 3, with its names in subjectAltName",
                titled(own),
                own.version().0.saturating_add(1)
            ),
            CertificateError::BadSignature => format!(
                "{} was not signed by the authority that it names\n  hint: does mqtt.ca_file hold an older certificate of the same authority?",
                titled(own)
            ),
            _ => format!("{} is refused: {error}", titled(own)),
        })
    }
}

fn moment(secs: i64) -> String {
    DateTime::<Utc>::from_timestamp(secs, 0)
        .map_or_else(|| "an unknown date".to_owned(), |at| at.format("%Y-%m-%d %H:%M UTC").to_string())
}

fn name(cert: &X509Certificate<'_>) -> String {
    let subject = cert.subject().to_string();
    if subject.is_empty() { names(cert).join(", ") } else { subject }
}

/// Names and addresses of a certificate, at most eight.
fn names(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(alternatives)) = cert.subject_alternative_name() else { return Vec::new() };
    let shown = alternatives.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|ip| std::net::Ipv6Addr::from(ip).to_string()),
        },
        _ => None,
    });
    shown.take(8).collect()
}

impl ServerCertVerifier for Explaining {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner.verify_server_cert(end_entity, intermediates, host, ocsp, now).map_err(|error| {
            let Error::InvalidCertificate(why) = &error else { return error };
            let chain: Vec<&CertificateDer<'_>> = std::iter::once(end_entity).chain(intermediates).collect();
            match self.explain(why, &chain, host, now) {
                Some(text) => CertificateError::Other(OtherError(Arc::new(Explained(text)))).into(),
                None => error,
            }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

const PORT: &str = "mqtts:// in mqtt.url needs the broker's TLS port (often 8883)";

/// The handshake with `host` failed.
pub fn handshake(error: &std::io::Error, host: &str) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(why)))) => format!("TLS: {why}"),
        Some(Error::InvalidMessage(_)) => {
            format!("{host} does not speak TLS on this port: {error}\n  hint: {PORT}")
        }
        Some(error) => alert(error),
        None => format!("{host} hung up on TLS: {error}\n  hint: {PORT}"),
    }
}

/// TLS ended, perhaps because the broker said so.
pub fn alert(error: &Error) -> String {
    let Error::AlertReceived(alert) = error else { return format!("TLS: {error}") };
    let alert = format!("{alert:?}");
    let hint = match alert.as_str() {
        "CertificateRequired" | "HandshakeFailure" => {
            "\n  hint: it may want a certificate of ours: set mqtt.cert_file and mqtt.key_file"
        }
        "UnknownCA"
        | "BadCertificate"
        | "CertificateUnknown"
        | "UnsupportedCertificate"
        | "CertificateExpired"
        | "CertificateRevoked"
        | "DecryptError" => "\n  hint: it does not accept the certificate in mqtt.cert_file",
        _ => "",
    };
    format!("the broker refused TLS: {alert}{hint}")
}

#[cfg(test)]
#[path = "tls_words_tests.rs"]
mod tests;
