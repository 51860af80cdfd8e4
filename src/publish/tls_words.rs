//! What is wrong with the TLS connection to the broker, in words that say what to do. Knows no sockets.

/// The handshake with `host` failed.
pub fn handshake(error: &std::io::Error, host: &str) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(_)) | None => format!("TLS with {host}: {error}"),
        Some(error) => format!("TLS with {host}: {error}"),
    }
}

/// The broker ended TLS.
pub fn alert(error: &rustls::Error) -> String {
    format!("TLS: {error}")
}
