//! A slow line: a TCP proxy that carries so many bytes in a second, each way, with buffers of a modem's size.

#![allow(missing_docs, clippy::unwrap_used)] // helpers of tests: a panic is their report

use std::{
    sync::{
        Arc,
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

pub struct Line {
    pub port: u16,
    /// Bytes that went to the broker.
    pub up: Arc<AtomicU64>,
    pub connections: Arc<AtomicU64>,
}

impl Line {
    pub fn start(broker: u16, bytes_per_sec: u64) -> Line {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(BUFFER).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener: TcpListener = socket.listen(8).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (up, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let line = Line { port, up: up.clone(), connections: connections.clone() };
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_recv_buffer_size(BUFFER).unwrap();
                let Ok(far) = socket.connect(([127, 0, 0, 1], broker).into()).await else { continue };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::spawn(carry(near_in, far_out, bytes_per_sec, up.clone()));
                tokio::spawn(carry(far_in, near_out, bytes_per_sec, Arc::default()));
            }
        });
        line
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, bytes_per_sec: u64, count: Arc<AtomicU64>) {
    let mut bytes = [0; CHUNK];
    let mut free = Instant::now();
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        free = free.max(Instant::now()) + Duration::from_nanos(read as u64 * 1_000_000_000 / bytes_per_sec);
        sleep_until(free).await;
        count.fetch_add(read as u64, Ordering::Relaxed);
        if to.write_all(bytes.get(..read).unwrap()).await.is_err() {
            return;
        }
    }
}
