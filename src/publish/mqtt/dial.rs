//! The way to the broker: TCP, and TLS where the offer asks for it. Knows no MQTT.

use rumqttc::tokio_rustls::TlsConnector;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::super::{
    link::{Cause, Failure, Offer},
    tls_words,
};

/// A stream of bytes in both directions.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(super) async fn open(offer: &Offer) -> Result<Box<dyn Stream>, Failure> {
    let said = |text: String| Failure { cause: Cause::Said, text };
    let host = offer.host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((host, offer.port)).await.map_err(|error| Failure {
        cause: Cause::Unreachable,
        text: format!("{host} port {} cannot be reached: {error}", offer.port),
    })?;
    tcp.set_nodelay(true).map_err(|error| said(format!("TCP: {error}")))?;
    let Some(config) = &offer.tls else { return Ok(Box::new(tcp)) };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| said(format!("mqtt.url: TLS needs a DNS name or an IP address, `{host}` is neither")))?;
    match TlsConnector::from(config.clone()).connect(name, tcp).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(said(tls_words::handshake(&error, host))),
    }
}
