//! Asks the running daemon over its Unix socket. Tells "no daemon runs" apart from every other failure.

use std::{io, path::Path};

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::no;

/// A connection to the daemon.
pub struct Daemon {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

impl Daemon {
    /// `None` when no daemon listens on the socket of this data directory.
    pub async fn connect(data_dir: &Path) -> anyhow::Result<Option<Daemon>> {
        let path = data_dir.join(crate::app::SOCKET);
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return no(format!(
                    "{}: {e}\n  hint: the gateway answers its own user and root: sudo -u meter-gateway meter-gateway …, or sudo",
                    path.display()
                ));
            }
            Err(e) => {
                return Err(e).with_context(|| format!("{}: the daemon cannot be asked", path.display()));
            }
        };
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Some(Daemon { sender }))
    }

    /// GET, the body as it is.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Bytes> {
        self.send(Request::get(path).header("host", "daemon").body(Full::default())?).await
    }

    /// GET, the body as JSON.
    pub async fn get_json(&mut self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.get(path).await?)?)
    }

    /// POST JSON, JSON back.
    pub async fn post_json(&mut self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = Request::post(path)
            .header("host", "daemon")
            .header("content-type", "application/json")
            .body(Full::from(serde_json::to_vec(body)?))?;
        Ok(serde_json::from_slice(&self.send(request).await?)?)
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> anyhow::Result<Bytes> {
        self.sender.ready().await.context("the daemon closed the connection")?;
        let response = self.sender.send_request(request).await.context("the daemon does not answer")?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let said = serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|value| value.get("error")?.as_str().map(str::to_owned))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        Err(anyhow!("{said}"))
    }
}
