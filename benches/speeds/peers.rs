//! A Modbus TCP peer that answers at once: what it costs must not hide what the gateway costs.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

/// Listens for as long as the process lives; the port.
pub fn spawn() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || answer(stream.unwrap()));
        }
    });
    port
}

/// Every register pair is 100.0 as a float.
fn answer(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut request = [0; 12];
    let mut reply = Vec::new();
    while stream.read_exact(&mut request).is_ok() {
        let words = u16::from_be_bytes([request[10], request[11]]);
        let bytes = words * 2;
        reply.clear();
        reply.extend_from_slice(&request[..4]);
        reply.extend_from_slice(&(bytes + 3).to_be_bytes());
        reply.extend_from_slice(&request[6..8]);
        reply.push(u8::try_from(bytes).unwrap());
        reply.extend([0x42, 0xc8, 0, 0].iter().cycle().take(bytes.into()));
        if stream.write_all(&reply).is_err() {
            return;
        }
    }
}
