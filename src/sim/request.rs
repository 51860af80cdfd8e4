//! The other side of framing: requests taken out of bytes, replies made into frames. Pure.
//!
//! On a serial line frames of Modbus RTU and DL/T 645 may follow each other.

use std::io;

use super::{Meters, fault::Delivery, hold, meter::SimMeter};
use crate::{
    model::Utc,
    protocol::{
        Address, Wire,
        dlt645::{self, Frame},
        modbus::{self, REQUEST_CHARS},
    },
};

/// Longest RTU frame (Modbus over Serial Line V1.02, 2.5.1).
pub(super) const MAX_FRAME: usize = 256;
/// Bytes of a Modbus read request.
const READ: usize = REQUEST_CHARS as usize;
/// A Modbus TCP frame's header before the unit (MODBUS Messaging on TCP/IP V1.0b, 3.1.3).
const MBAP: usize = 6;
/// Exception of a gateway whose target failed to respond (V1.1b3, 7).
const TARGET_FAILED: u8 = 0x0B;

/// What somebody asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Modbus in RTU framing: unit and PDU.
    Rtu(u8, Vec<u8>),
    /// Modbus TCP: what its answer has in front, unit and PDU.
    Tcp([u8; 4], u8, Vec<u8>),
    /// DL/T 645, and its characters with the FE before it.
    Dlt645(Frame, usize),
}

impl Request {
    /// Takes a request off the front of what a line has received, if it is all there and sound.
    pub(super) fn take(received: &mut Vec<u8>) -> Option<Request> {
        if let Some((unit, pdu)) = received.get(..READ).and_then(open) {
            received.drain(..READ);
            return Some(Request::Rtu(unit, pdu));
        }
        let (frame, end) = dlt645::first_frame(received)?;
        received.drain(..end);
        Some(Request::Dlt645(frame, end))
    }

    /// Everything that was received before the line went quiet, as one request of any length; else it is dropped.
    pub(super) fn take_quiet(received: &mut Vec<u8>) -> Option<Request> {
        let (unit, pdu) = open(&std::mem::take(received))?;
        Some(Request::Rtu(unit, pdu))
    }

    /// Takes one Modbus TCP request off the front; an error when what is there is none.
    pub(super) fn take_mbap(received: &mut Vec<u8>) -> io::Result<Option<Request>> {
        let Some(&[a, b, c, d, high, low]) = received.first_chunk::<MBAP>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        // 3: unit, function, one byte. 254: unit and the longest PDU (V1.1b3, 4.1).
        if (c, d) != (0, 0) || !(3..=254).contains(&length) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a Modbus TCP frame"));
        }
        let Some((&unit, pdu)) = received.get(MBAP..MBAP + length).and_then(<[u8]>::split_first) else {
            return Ok(None);
        };
        let asked = Request::Tcp([a, b, c, d], unit, pdu.to_vec());
        received.drain(..MBAP + length);
        Ok(Some(asked))
    }

    /// Characters that it takes on a serial line.
    pub(super) fn chars(&self) -> u32 {
        let chars = match self {
            Request::Rtu(_, pdu) | Request::Tcp(_, _, pdu) => pdu.len() + 3,
            Request::Dlt645(_, chars) => *chars,
        };
        u32::try_from(chars).unwrap_or(u32::MAX)
    }

    /// What the meters answer, how that is delivered, and the line settings of who answers; `None` when nobody does.
    /// Heard is who is set up as the line was when the request was sent.
    pub(super) fn answer(
        &self,
        meters: &Meters,
        now: Utc,
        heard: impl Fn(&SimMeter) -> bool,
    ) -> Option<Reply> {
        let mut meters = hold(meters);
        let mut asked = meters.iter_mut().filter(|meter| self.is_for(meter.address()) && heard(meter));
        let mut reply = asked.next().and_then(|meter| self.reply_of(meter, now));
        // Whoever else is meant by a wildcard speaks too: on the wire a 0 wins.
        for other in asked.filter_map(|meter| self.reply_of(meter, now)) {
            match &mut reply {
                Some(reply) => {
                    reply.bytes.iter_mut().zip(other.bytes).for_each(|(byte, other)| *byte &= other);
                }
                None => reply = Some(other),
            }
        }
        reply
    }

    /// A Modbus exception in answer to it.
    pub(super) fn refusal(&self, code: u8) -> Option<Vec<u8>> {
        let pdu = |asked: &[u8]| [asked.first().copied().unwrap_or_default() | 0x80, code];
        match self {
            Request::Rtu(unit, asked) => Some(frame(*unit, &pdu(asked))),
            Request::Tcp(header, unit, asked) => {
                Some([header.as_slice(), &[0, 3, *unit], &pdu(asked)].concat())
            }
            Request::Dlt645(..) => None,
        }
    }

    fn is_for(&self, address: Address) -> bool {
        match (self, address) {
            // Unit 0 of a line is a broadcast, which nobody answers (V1.02, 2.1).
            (Request::Rtu(unit, _), Address::Modbus(own)) => *unit == own && own != 0,
            (Request::Tcp(_, unit, _), Address::Modbus(own)) => *unit == own,
            (Request::Dlt645(frame, _), Address::Dlt645(own)) => frame.address.matches(own),
            _ => false,
        }
    }

    fn reply_of(&self, meter: &mut SimMeter, now: Utc) -> Option<Reply> {
        let wire = meter.wire();
        let (bytes, delivery) = match self {
            Request::Rtu(unit, pdu) => {
                let (pdu, delivery) = meter.exchange(pdu, now)?;
                (spoilt(frame(delivery.unit(*unit), &pdu), &delivery), delivery)
            }
            Request::Tcp(header, unit, pdu) => {
                let (answer, delivery) = meter.exchange(pdu, now)?;
                (tcp_frame(*header, *unit, pdu, answer, &delivery), delivery)
            }
            Request::Dlt645(frame, _) => {
                let (bytes, delivery) = meter.exchange_frame(frame, now)?;
                (spoilt(bytes, &delivery), delivery)
            }
        };
        Some(Reply { bytes, delivery, wire })
    }
}

/// A reply on its way.
#[derive(Debug)]
pub(super) struct Reply {
    /// The frame, faults of the meter included.
    pub(super) bytes: Vec<u8>,
    pub(super) delivery: Delivery,
    /// The speaker's own line settings.
    pub(super) wire: Option<Wire>,
}

fn spoilt(mut frame: Vec<u8>, delivery: &Delivery) -> Vec<u8> {
    delivery.spoil(&mut frame);
    frame
}

fn tcp_frame(header: [u8; 4], unit: u8, asked: &[u8], mut pdu: Vec<u8>, delivery: &Delivery) -> Vec<u8> {
    // The gateway dropped a frame with a wrong CRC; TCP itself has no noise.
    if !delivery.flips.is_empty() {
        pdu = vec![asked.first().copied().unwrap_or_default() | 0x80, TARGET_FAILED];
    }
    let length = u16::try_from(pdu.len() + 1).unwrap_or(u16::MAX).to_be_bytes();
    let mut frame = [header.as_slice(), length.as_slice(), &[delivery.unit(unit)], &pdu].concat();
    delivery.cut(&mut frame);
    frame
}

/// Unit and PDU of a frame with a sound CRC.
fn open(frame: &[u8]) -> Option<(u8, Vec<u8>)> {
    let (body, sum) = frame.split_last_chunk::<2>()?;
    let (unit, pdu) = body.split_first()?;
    (!pdu.is_empty() && modbus::crc(body).to_le_bytes() == *sum).then(|| (*unit, pdu.to_vec()))
}

/// An RTU frame with its CRC.
pub(super) fn frame(unit: u8, pdu: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(pdu.len() + 3);
    frame.push(unit);
    frame.extend(pdu);
    let sum = modbus::crc(&frame).to_le_bytes();
    frame.extend(sum);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_both_languages_are_taken_one_by_one() {
        let one = frame(1, &[4, 0, 0, 0, 2]);
        let read = dlt645::Read::data("00010000".parse().unwrap(), 4);
        let address = "202107300049".parse().unwrap();
        let two = dlt645::encode(address, &read);
        let three = frame(2, &[3, 0, 9, 0, 1]);
        let mut received = [one, two, three].concat();
        received.push(0x55);
        assert_eq!(Request::take(&mut received), Some(Request::Rtu(1, vec![4, 0, 0, 0, 2])));
        let asked = Frame { address, control: 0x11, fields: vec![0, 0, 1, 0] };
        assert_eq!(Request::take(&mut received), Some(Request::Dlt645(asked, 20)));
        assert_eq!(Request::take(&mut received), Some(Request::Rtu(2, vec![3, 0, 9, 0, 1])));
        assert_eq!(Request::take(&mut received), None);
        assert_eq!(Request::take_quiet(&mut received), None);
        assert!(received.is_empty());
    }

    #[test]
    fn a_longer_request_ends_with_the_silence() {
        let mut received = frame(1, &[16, 0, 0, 0, 1, 2, 0, 7]);
        assert_eq!(Request::take(&mut received), None);
        let asked = Request::Rtu(1, vec![16, 0, 0, 0, 1, 2, 0, 7]);
        assert_eq!(Request::take_quiet(&mut received), Some(asked));
    }
}
