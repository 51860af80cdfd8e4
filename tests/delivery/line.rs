//! A slow line: a TCP proxy that carries so many bytes in a second, each way, with buffers of a modem's size.
//!
//! Counts the time in which it had nothing to carry. That this machine is busy, and the line late, is not counted: what
//! waits in its buffer meanwhile is carried at once.

#![allow(missing_docs, clippy::unwrap_used)] // helpers of tests: a panic is their report

use std::{
    io::ErrorKind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep_until},
};

/// What a modem keeps on its way, each way.
const BUFFER: u32 = 32 * 1024;
const CHUNK: usize = 1460;

/// What one direction has done, over all connections.
#[derive(Debug, Clone, Copy)]
struct Load {
    bytes: u64,
    idle: Duration,
    /// When what was taken so far has been carried.
    free: Instant,
}

#[derive(Clone)]
struct Direction {
    bytes_per_sec: u64,
    load: Arc<Mutex<Load>>,
}

pub struct Line {
    pub port: u16,
    up: Direction,
    connections: Arc<AtomicU64>,
}

impl Direction {
    fn new(bytes_per_sec: u64) -> Direction {
        let load = Load { bytes: 0, idle: Duration::ZERO, free: Instant::now() };
        Direction { bytes_per_sec, load: Arc::new(Mutex::new(load)) }
    }

    /// So many bytes came; the line had to wait for them, or they were in its buffer already. When they are carried.
    fn take(&self, bytes: u64, waited: bool) -> Instant {
        let mut guard = self.load.lock().unwrap();
        let load = &mut *guard;
        if waited {
            let now = Instant::now();
            load.idle += now.saturating_duration_since(load.free);
            load.free = load.free.max(now);
        }
        load.bytes += bytes;
        load.free += Duration::from_nanos(bytes * 1_000_000_000 / self.bytes_per_sec);
        load.free
    }

    async fn carry(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut bytes = [0; CHUNK];
        loop {
            let (read, waited) = match from.try_read(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => (from.read(&mut bytes).await, true),
                read => (read, false),
            };
            let Ok(read @ 1..) = read else { return };
            sleep_until(self.take(read as u64, waited)).await;
            if to.write_all(bytes.get(..read).unwrap()).await.is_err() {
                return;
            }
        }
    }
}

impl Line {
    pub fn start(broker: u16, bytes_per_sec: u64) -> Line {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(BUFFER).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener: TcpListener = socket.listen(8).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (up, connections) = (Direction::new(bytes_per_sec), Arc::new(AtomicU64::new(0)));
        let line = Line { port, up: up.clone(), connections: connections.clone() };
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_recv_buffer_size(BUFFER).unwrap();
                let Ok(far) = socket.connect(([127, 0, 0, 1], broker).into()).await else { continue };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::spawn(up.clone().carry(near_in, far_out));
                tokio::spawn(Direction::new(bytes_per_sec).carry(far_in, near_out));
            }
        });
        line
    }

    /// What was sent until now used the line well: within 1.2 times what its bytes need, on one connection.
    pub fn assert_well_used(&self, what: &str) {
        let load = *self.up.load.lock().unwrap();
        let ideal = Duration::from_millis(load.bytes * 1000 / self.up.bytes_per_sec);
        let idle = load.idle + Instant::now().saturating_duration_since(load.free);
        assert!(idle * 10 < ideal * 2, "{what}: the line had nothing to carry for {idle:?} beside {ideal:?}");
        assert_eq!(self.connections.load(Ordering::Relaxed), 1, "{what}");
    }
}
