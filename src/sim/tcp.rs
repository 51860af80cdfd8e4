//! A TCP peer with meters behind it: a Modbus TCP gateway, or a transparent serial server (raw RTU frames).
//!
//! Behind it is one line: exchanges of several clients wait for each other. Behind a serial server there may be meters of
//! both languages.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::{Mutex, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};

use super::{
    Meters, SimClock,
    request::{MAX_FRAME, Request},
};
use crate::protocol::Wire;

/// A raw RTU request of unusual length ends when nothing has come for so long (a serial server's packing time).
const RTU_QUIET: Duration = Duration::from_millis(50);
/// Clients at once; further ones are closed at once, as small converters do.
const MAX_CLIENTS: usize = 16;
/// What the peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpFraming {
    /// Modbus TCP.
    Tcp,
    /// RTU frames as they are on the line behind.
    Rtu,
}

/// How a peer differs from the plain one.
#[derive(Debug, Clone, Default)]
pub struct PeerOptions {
    /// The line behind it, whose time every exchange takes; `None`: only the meter's time to think.
    pub wire: Option<Wire>,
    /// The meters' wall clock.
    pub clock: SimClock,
}

/// A TCP peer with meters behind it. Dropped, it and its connections are gone.
#[derive(Debug)]
pub struct TcpPeer {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    framing: TcpFraming,
    meters: Meters,
    options: PeerOptions,
    requests: AtomicU64,
    collisions: AtomicU64,
    line: Mutex<()>,
    /// Its value is the generation of connections that may live.
    hang_up: watch::Sender<u64>,
}

impl TcpPeer {
    /// Listens at `bind` (port 0: any). To be called within a tokio runtime.
    pub fn spawn(
        bind: SocketAddr,
        framing: TcpFraming,
        meters: Meters,
        options: PeerOptions,
    ) -> io::Result<TcpPeer> {
        let shared = Arc::new(Shared {
            framing,
            meters,
            options,
            requests: AtomicU64::new(0),
            collisions: AtomicU64::new(0),
            line: Mutex::new(()),
            hang_up: watch::Sender::new(0),
        });
        let mut peer = TcpPeer { address: bind, shared, accepting: None };
        peer.start()?;
        Ok(peer)
    }

    /// Where it listens, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests that came, to whomever.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Requests that came while another exchange was open.
    pub fn collisions(&self) -> u64 {
        self.shared.collisions.load(Ordering::Relaxed)
    }

    /// Listens again at the same address after `stop`; does nothing while it listens.
    pub fn start(&mut self) -> io::Result<()> {
        if self.accepting.is_some() {
            return Ok(());
        }
        let listener = std::net::TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        self.address = listener.local_addr()?;
        self.accepting = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
        Ok(())
    }

    /// Closes everything: clients lose their connection, new ones are refused. Returns when the port is free.
    pub async fn stop(&mut self) {
        self.hang_up();
        if let Some(task) = self.accepting.take() {
            task.abort();
            let _ = task.await; // it was cancelled
        }
    }

    /// Closes the connections that are open, and goes on listening.
    pub fn hang_up(&self) {
        self.shared.hang_up.send_modify(|generation| *generation += 1);
    }
}

impl Drop for TcpPeer {
    fn drop(&mut self) {
        if let Some(task) = &self.accepting {
            task.abort();
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut clients = JoinSet::new();
    loop {
        let client = listener.accept().await;
        while clients.try_join_next().is_some() {}
        match client {
            Ok((client, _)) if clients.len() < MAX_CLIENTS => {
                let shared = Arc::clone(&shared);
                let mut hang_up = shared.hang_up.subscribe();
                clients.spawn(async move {
                    tokio::select! {
                        _ = serve(client, &shared) => {}
                        _ = hang_up.changed() => {}
                    }
                });
            }
            Ok(_) => {}
            // The process is out of descriptors or the client was gone: neither is this peer's end.
            Err(_) => tokio::time::sleep(RTU_QUIET).await,
        }
    }
}

async fn serve(client: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    client.set_nodelay(true)?;
    let (mut from, to) = client.into_split();
    let to = Arc::new(Mutex::new(to));
    let mut late = JoinSet::new();
    let mut received = Vec::new();
    loop {
        let mut buffer = [0; 2 * MAX_FRAME];
        let count = if shared.framing == TcpFraming::Rtu && !received.is_empty() {
            timeout(RTU_QUIET, from.read(&mut buffer)).await.unwrap_or(Ok(usize::MAX))?
        } else {
            from.read(&mut buffer).await?
        };
        let mut asked = Vec::new();
        match (buffer.get(..count), shared.framing) {
            (None, _) => asked.extend(Request::take_quiet(&mut received)), // quiet
            (Some([]), _) => return Ok(()),
            (Some(bytes), TcpFraming::Rtu) => {
                received.extend(bytes);
                asked.extend(std::iter::from_fn(|| Request::take(&mut received)));
            }
            (Some(bytes), TcpFraming::Tcp) => {
                received.extend(bytes);
                while let Some(request) = Request::take_mbap(&mut received)? {
                    asked.push(request);
                }
            }
        }
        if asked.len() > 1 {
            shared.collisions.fetch_add(asked.len() as u64 - 1, Ordering::Relaxed);
        }
        for request in asked {
            exchange(request, shared, &to, &mut late).await?;
        }
    }
}

async fn exchange(
    asked: Request,
    shared: &Shared,
    to: &Arc<Mutex<OwnedWriteHalf>>,
    late: &mut JoinSet<()>,
) -> io::Result<()> {
    let came = Instant::now();
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let line = if let Ok(line) = shared.line.try_lock() {
        line
    } else {
        shared.collisions.fetch_add(1, Ordering::Relaxed);
        shared.line.lock().await
    };
    // A serial server has one setting of its line, whatever its meters have.
    let Some(reply) = asked.answer(&shared.meters, shared.options.clock.now(), |_| true) else {
        return Ok(());
    };
    let frame = reply.bytes;
    let chars = asked.chars().saturating_add(u32::try_from(frame.len()).unwrap_or(u32::MAX));
    let on_wire = shared.options.wire.map_or(Duration::ZERO, |wire| wire.char_time() * chars);
    let due = came + on_wire + reply.delivery.think;
    if reply.delivery.late {
        drop(line);
        let to = Arc::clone(to);
        while late.try_join_next().is_some() {}
        late.spawn(async move {
            sleep_until(due).await;
            let _ = to.lock().await.write_all(&frame).await; // who asked may be gone
        });
        return Ok(());
    }
    sleep_until(due).await;
    to.lock().await.write_all(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        profile::Catalogue,
        protocol::{
            Found, Parity,
            modbus::{rtu_reply, tcp_reply},
        },
        sim::{Fault, SimMeter, request::frame, share},
    };
    use std::net::Ipv4Addr;

    const READ: [u8; 5] = [4, 0, 0, 0, 2];

    fn meter(unit: u8) -> SimMeter {
        let mut meter =
            SimMeter::new(unit, Catalogue::builtin().get("eastron-sdm630").unwrap(), u64::from(unit));
        meter.set("voltage_l1", "230.2".parse().unwrap());
        meter
    }

    fn peer(framing: TcpFraming, meters: Vec<SimMeter>, options: PeerOptions) -> TcpPeer {
        TcpPeer::spawn((Ipv4Addr::LOCALHOST, 0).into(), framing, share(meters), options).unwrap()
    }

    fn mbap(transaction: u8, unit: u8) -> Vec<u8> {
        [&[0, transaction, 0, 0, 0, 6, unit], READ.as_slice()].concat()
    }

    async fn answer(client: &mut TcpStream, request: &[u8], chars: usize) -> Vec<u8> {
        client.write_all(request).await.unwrap();
        let mut received = vec![0; chars];
        client.read_exact(&mut received).await.unwrap();
        received
    }

    #[tokio::test]
    async fn modbus_tcp_is_answered_to_several_clients() {
        let peer = peer(TcpFraming::Tcp, vec![meter(1)], PeerOptions::default());
        let mut one = TcpStream::connect(peer.address()).await.unwrap();
        let mut two = TcpStream::connect(peer.address()).await.unwrap();
        for transaction in 1..=3 {
            let client = if transaction == 2 { &mut two } else { &mut one };
            let request = mbap(transaction, 1);
            let received = answer(client, &request, 13).await;
            assert_eq!(tcp_reply(&request, &received), Found::Frame(0..13));
            assert_eq!(received[9..], [0x43, 0x66, 0x33, 0x33]);
        }
        assert_eq!((peer.requests(), peer.collisions()), (3, 0));
    }

    #[tokio::test]
    async fn noise_behind_modbus_tcp_is_a_target_that_failed() {
        let noisy = meter(1).with(Fault::Noisy { percent: 100 });
        let peer =
            peer(TcpFraming::Tcp, vec![noisy, meter(2).with(Fault::WrongUnit)], PeerOptions::default());
        let mut client = TcpStream::connect(peer.address()).await.unwrap();
        assert_eq!(answer(&mut client, &mbap(1, 1), 9).await, [0, 1, 0, 0, 0, 3, 1, 0x84, 0x0B]);
        assert_eq!(answer(&mut client, &mbap(2, 2), 13).await[6], 3);
    }

    #[tokio::test]
    async fn a_late_answer_comes_after_the_next_one_with_its_own_number() {
        let late = meter(1).with(Fault::LateBy(Duration::from_millis(300)));
        let peer = peer(TcpFraming::Tcp, vec![late, meter(2)], PeerOptions::default());
        let mut client = TcpStream::connect(peer.address()).await.unwrap();
        client.write_all(&mbap(1, 1)).await.unwrap();
        let both = answer(&mut client, &mbap(2, 2), 26).await;
        assert_eq!((both[1], both[14]), (2, 1));
        assert_eq!(tcp_reply(&mbap(1, 1), &both), Found::Frame(13..26));
    }

    #[tokio::test]
    async fn a_serial_server_takes_the_time_of_its_line() {
        let wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };
        let options = PeerOptions { wire: Some(wire), ..PeerOptions::default() };
        let peer = peer(TcpFraming::Rtu, vec![meter(1)], options);
        let mut client = TcpStream::connect(peer.address()).await.unwrap();
        client.write_all(&[0x55]).await.unwrap();
        // The noise is passed on alone: the request comes after the server has sent it off.
        tokio::time::sleep(RTU_QUIET * 3).await;
        let request = frame(1, &READ);
        let began = Instant::now();
        let received = answer(&mut client, &request, 9).await;
        assert_eq!(rtu_reply(&request, &received), Found::Frame(0..9));
        let least = wire.char_time() * 17 + Duration::from_millis(20);
        assert!(began.elapsed() >= least, "{:?}, at least {least:?}", began.elapsed());
    }

    #[tokio::test]
    async fn two_requests_at_once_are_counted() {
        let peer = peer(TcpFraming::Tcp, vec![meter(1)], PeerOptions::default());
        let mut client = TcpStream::connect(peer.address()).await.unwrap();
        answer(&mut client, &[mbap(1, 1), mbap(2, 1)].concat(), 26).await;
        let mut other = TcpStream::connect(peer.address()).await.unwrap();
        let (three, four) = (mbap(3, 1), mbap(4, 1));
        tokio::join!(answer(&mut client, &three, 13), answer(&mut other, &four, 13));
        assert_eq!((peer.requests(), peer.collisions()), (4, 2));
    }

    #[tokio::test]
    async fn it_can_be_stopped_and_started_on_the_same_port() {
        let mut peer = peer(TcpFraming::Tcp, vec![meter(1)], PeerOptions::default());
        let address = peer.address();
        let mut client = TcpStream::connect(address).await.unwrap();
        answer(&mut client, &mbap(1, 1), 13).await;
        peer.stop().await;
        assert!(matches!(client.read(&mut [0; 8]).await, Ok(0) | Err(_)));
        assert!(TcpStream::connect(address).await.is_err());
        peer.start().unwrap();
        assert_eq!(peer.address(), address);
        let mut client = TcpStream::connect(address).await.unwrap();
        answer(&mut client, &mbap(2, 1), 13).await;
        peer.hang_up();
        assert!(matches!(client.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn what_is_not_modbus_tcp_is_hung_up_on() {
        let peer = peer(TcpFraming::Tcp, vec![meter(1)], PeerOptions::default());
        let mut client = TcpStream::connect(peer.address()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(matches!(client.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    }
}
