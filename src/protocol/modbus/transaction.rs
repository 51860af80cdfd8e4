//! One Modbus read in bytes. tokio-modbus encodes the request and decodes the reply, over memory.
//!
//! tokio-modbus 0.17 has no timeout, checks the number of words with a debug assertion only, and takes whatever frame comes
//! first: it never sees the line, but one frame that was already found to be the reply.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_modbus::{
    Slave,
    client::{Reader, rtu, tcp},
};

use super::{
    REPLY_OVERHEAD_CHARS, Read, Table,
    frames::{has_rtu_frame, has_tcp_frame},
    refusal, rtu_fault, rtu_lacking, rtu_reply, tcp_fault, tcp_reply,
};
use crate::protocol::{Envelope, Found, Pace, Payload, Reply, Transaction};

/// A read of one meter.
#[derive(Debug)]
pub struct ReadTransaction {
    unit: u8,
    read: Read,
    envelope: Envelope,
    request: Vec<u8>,
}

impl ReadTransaction {
    /// `number` is the transaction number of a Modbus TCP header; RTU frames have none.
    pub fn new(unit: u8, read: Read, envelope: Envelope, number: u16) -> ReadTransaction {
        let (mut request, _) = converse(unit, read, envelope, &[]);
        if envelope == Envelope::Tcp {
            put_number(&mut request, number);
        }
        ReadTransaction { unit, read, envelope, request }
    }
}

impl Transaction for ReadTransaction {
    fn request(&self) -> &[u8] {
        &self.request
    }

    fn find(&self, received: &[u8]) -> Found {
        match self.envelope {
            Envelope::Rtu => rtu_reply(&self.request, received),
            Envelope::Tcp => tcp_reply(&self.request, received),
        }
    }

    fn lacking(&self, received: &[u8]) -> usize {
        match self.envelope {
            Envelope::Rtu => rtu_lacking(&self.request, received),
            Envelope::Tcp => 1,
        }
    }

    fn fault(&self, received: &[u8]) -> Option<String> {
        match self.envelope {
            Envelope::Rtu => rtu_fault(&self.request, received),
            Envelope::Tcp => tcp_fault(&self.request, received),
        }
    }

    fn other_form(&self, received: &[u8]) -> Option<&'static str> {
        let (found, text) = match self.envelope {
            Envelope::Rtu => (
                has_tcp_frame(received),
                "frames of Modbus TCP come on a line with RTU framing: set framing = \"tcp\", or the converter to transparent",
            ),
            Envelope::Tcp => (
                has_rtu_frame(received),
                "RTU frames come on a connection with Modbus TCP framing: set framing = \"serial\", or the converter to Modbus TCP",
            ),
        };
        found.then_some(text)
    }

    fn holds_frames(&self, received: &[u8]) -> bool {
        match self.envelope {
            Envelope::Rtu => has_rtu_frame(received),
            Envelope::Tcp => has_tcp_frame(received),
        }
    }

    fn decode(&self, frame: &[u8]) -> Reply {
        let mut frame = frame.to_vec();
        if self.envelope == Envelope::Tcp {
            put_number(&mut frame, FIRST_NUMBER);
        }
        match converse(self.unit, self.read, self.envelope, &frame).1 {
            Some(Ok(Ok(words))) if words.len() == usize::from(self.read.count) => {
                Reply::Data(Payload::Words(words))
            }
            Some(Ok(Ok(words))) => {
                Reply::Unfit(format!("{} words came, {} were asked", words.len(), self.read.count))
            }
            Some(Ok(Err(exception))) => match u8::from(exception) {
                0x0A | 0x0B => Reply::Nobody,
                code => Reply::Refused(refusal(code)),
            },
            Some(Err(error)) => Reply::Unfit(error.to_string()),
            None => Reply::Unfit("the reply is not whole".into()),
        }
    }

    fn reply_chars(&self) -> u32 {
        REPLY_OVERHEAD_CHARS + 2 * u32::from(self.read.count)
    }

    fn silence(&self, pace: &Pace) -> Duration {
        pace.silence()
    }
}

/// The transaction number of the first request of a tokio-modbus client.
const FIRST_NUMBER: u16 = 0;

fn put_number(frame: &mut [u8], number: u16) {
    if let Some(place) = frame.first_chunk_mut() {
        *place = number.to_be_bytes();
    }
}

type Words = tokio_modbus::Result<Vec<u16>>;

/// What a client sends for this read, and what it makes of `reply`; `None` where that is no whole frame.
fn converse(unit: u8, read: Read, envelope: Envelope, reply: &[u8]) -> (Vec<u8>, Option<Words>) {
    let memory = Memory(Arc::new(Mutex::new(Bytes { sent: Vec::new(), reply: reply.to_vec() })));
    let transport = memory.clone();
    let mut client = match envelope {
        Envelope::Rtu => rtu::attach_slave(transport, Slave(unit)),
        Envelope::Tcp => tcp::attach_slave(transport, Slave(unit)),
    };
    let words = match read.table {
        Table::Holding => client.read_holding_registers(read.address, read.count).now_or_never(),
        Table::Input => client.read_input_registers(read.address, read.count).now_or_never(),
    };
    let sent = std::mem::take(&mut memory.bytes().sent);
    (sent, words)
}

struct Bytes {
    sent: Vec<u8>,
    reply: Vec<u8>,
}

/// A transport that keeps what is sent and gives one reply.
#[derive(Clone)]
struct Memory(Arc<Mutex<Bytes>>);

impl Memory {
    fn bytes(&self) -> std::sync::MutexGuard<'_, Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl AsyncRead for Memory {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = self.bytes();
        if bytes.reply.is_empty() {
            return Poll::Pending; // asked once only: nobody waits to be woken
        }
        let room = bytes.reply.len().min(buf.remaining());
        buf.put_slice(bytes.reply.get(..room).unwrap_or_default());
        bytes.reply.drain(..room);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Memory {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.bytes().sent.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Read = Read { table: Table::Input, address: 0, count: 2 };

    #[test]
    fn requests_and_replies_in_rtu_framing() {
        let asked = ReadTransaction::new(1, READ, Envelope::Rtu, 9);
        assert_eq!(asked.request(), [1, 4, 0, 0, 0, 2, 0x71, 0xCB]);
        let reply = [1, 4, 4, 0x43, 0x66, 0x33, 0x34, 0x1B, 0x38];
        assert_eq!(asked.find(&reply), Found::Frame(0..9));
        assert_eq!(asked.decode(&reply), Reply::Data(Payload::Words(vec![0x4366, 0x3334])));
        assert_eq!(asked.decode(&[1, 0x84, 2, 0xC2, 0xC1]), Reply::Refused(refusal(2)));
        assert_eq!(asked.reply_chars(), 9);
        let holding = Read { table: Table::Holding, address: 0x156, count: 125 };
        let asked = ReadTransaction::new(247, holding, Envelope::Rtu, 0);
        assert_eq!(asked.request().get(..6), Some([247, 3, 1, 0x56, 0, 125].as_slice()));
    }

    #[test]
    fn requests_and_replies_in_tcp_framing() {
        for number in [0, 7, u16::MAX] {
            let asked = ReadTransaction::new(255, READ, Envelope::Tcp, number);
            let [high, low] = number.to_be_bytes();
            assert_eq!(asked.request(), [high, low, 0, 0, 0, 6, 255, 4, 0, 0, 0, 2]);
            let reply = [high, low, 0, 0, 0, 7, 255, 4, 4, 0x43, 0x66, 0x33, 0x34];
            assert_eq!(asked.find(&reply), Found::Frame(0..13));
            assert_eq!(asked.decode(&reply), Reply::Data(Payload::Words(vec![0x4366, 0x3334])));
            assert_eq!(asked.decode(&[high, low, 0, 0, 0, 3, 255, 0x84, 0x0B]), Reply::Nobody);
            let unknown = [high, low, 0, 0, 0, 3, 255, 0x84, 0x7F];
            assert_eq!(asked.find(&unknown), Found::Frame(0..9));
            assert_eq!(asked.decode(&unknown), Reply::Refused(refusal(0x7F)), "a code of no standard");
        }
    }
}
