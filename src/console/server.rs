//! Connections: how many there may be, how long a request may take to arrive, how long one may last.
//!
//! Each door counts its own, so that whoever fills the port does not lock out the owner at the Unix socket. Knows no
//! route.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use axum::{Extension, Router, serve::Listener};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustix::process::Resource;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at one door at once, at most: people, a scraper and a script need a dozen. One more waits in the kernel's
/// queue until another ends. Fewer, where this process may open few files.
pub const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's first line and headers together; 431 beyond.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// From the first wait for a request to the end of its headers; also how long a connection may idle.
const HEADER_LIMIT: Duration = Duration::from_secs(30);
/// Longest life of a connection at a port, whatever it does: a peer that reads slowly, or sends its body byte by byte,
/// does not keep its place for ever. Then the answer under way is finished, and the connection closed.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);
/// How long that last answer may take: as long as somebody waits for a meter, and a little.
const LAST_ANSWER: Duration = Duration::from_secs(40);
/// How long answers under way may take at the end: most are in a pipe already, and the daemon's whole end is 5 s.
const LAST_ANSWERS: Duration = Duration::from_millis(100);

use super::Arrival;
use crate::model::{User, Via};

/// The machine's own list of users.
const PASSWD: &str = "/etc/passwd";

/// A connection that can say who is at its other end; `None` when the system does not know any more.
pub trait Peer {
    /// Asks the kernel.
    fn peer(&self) -> Option<Via>;

    /// Where it came in.
    fn arrival(&self) -> Arrival;
}

impl Peer for UnixStream {
    fn peer(&self) -> Option<Via> {
        let uid = self.peer_cred().ok()?.uid();
        Some(Via::Socket(User::of(uid, &std::fs::read_to_string(PASSWD).unwrap_or_default())))
    }

    fn arrival(&self) -> Arrival {
        Arrival(None)
    }
}

impl Peer for TcpStream {
    fn peer(&self) -> Option<Via> {
        self.peer_addr().ok().map(|address| Via::Http(address.to_string()))
    }

    /// An address that the kernel does not know any more is nobody's.
    fn arrival(&self) -> Arrival {
        Arrival(Some(self.local_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |address| address.ip())))
    }
}

/// Who comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Whoever may enter the data directory: an export takes as long as it takes.
    Owner,
    /// Anybody who reaches the port.
    Port,
}

/// Serves until shutdown. A system that refuses connections (no file descriptors left) is asked again in a second.
pub async fn serve<L: Listener<Io: Peer>>(
    mut listener: L,
    door: Door,
    router: Router,
    shutdown: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(places()));
    let mut connections = JoinSet::new();
    let mut down = shutdown.clone();
    let down = async move {
        let _ = down.wait_for(|down| *down).await;
    };
    tokio::pin!(down);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await.0)
        };
        let (place, stream) = tokio::select! {
            next = next => next,
            () = &mut down => break,
        };
        while connections.try_join_next().is_some() {}
        let (router, shutdown) = (router.clone(), shutdown.clone());
        connections.spawn(async move {
            // Else it is gone already, and nobody waits for an answer.
            if let Some(peer) = stream.peer() {
                let router = router.layer(Extension(peer)).layer(Extension(stream.arrival()));
                connection(stream, door, router, shutdown).await;
            }
            drop(place);
        });
    }
    let _ = timeout(LAST_ANSWERS, async { while connections.join_next().await.is_some() {} }).await;
}

/// Connections of one listener at once. Half of the files that this process may open are for both listeners, the other half stays
/// with lines, publisher and ledger; a request takes two, the connection and a segment.
fn places() -> usize {
    let may_open = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(may_open / 8).unwrap_or(MAX_CONNECTIONS).clamp(1, MAX_CONNECTIONS)
}

/// One connection, until its peer has enough, its time is over, or the daemon ends.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    door: Door,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(served);
    let over = async {
        match door {
            Door::Owner => std::future::pending().await,
            Door::Port => sleep(CONNECTION_LIMIT).await,
        }
    };
    tokio::select! {
        end = served.as_mut() => return note(end),
        _ = shutdown.wait_for(|down| *down) => {}
        () = over => {}
    }
    served.as_mut().graceful_shutdown();
    if let Ok(end) = timeout(LAST_ANSWER, served).await {
        note(end);
    } else {
        tracing::debug!("a connection to the console has had its time");
    }
}

fn note(end: hyper::Result<()>) {
    if let Err(error) = end {
        tracing::debug!(%error, "a connection to the console ended early");
    }
}
