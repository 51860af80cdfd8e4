//! The other side of RTU framing: requests taken out of bytes, answers made into frames. Pure.

use crate::protocol::modbus::{self, REQUEST_CHARS};

/// Longest RTU frame (Modbus over Serial Line V1.02, 2.5.1).
pub(super) const MAX_FRAME: usize = 256;
/// Bytes of a read request.
const REQUEST: usize = REQUEST_CHARS as usize;

/// A request: unit and PDU.
pub(super) type Request = (u8, Vec<u8>);

/// Takes a read request off the front of what was received, if its eight bytes are there and sound.
pub(super) fn take_read(received: &mut Vec<u8>) -> Option<Request> {
    let request = open(received.get(..REQUEST)?)?;
    received.drain(..REQUEST);
    Some(request)
}

/// Everything that was received before the line went quiet, as one request of any length; else it is dropped.
pub(super) fn take_quiet(received: &mut Vec<u8>) -> Option<Request> {
    let frame = std::mem::take(received);
    open(&frame)
}

/// Unit and PDU of a frame with a sound CRC.
fn open(frame: &[u8]) -> Option<Request> {
    let (body, sum) = frame.split_last_chunk::<2>()?;
    let (unit, pdu) = body.split_first()?;
    (!pdu.is_empty() && modbus::crc(body).to_le_bytes() == *sum).then(|| (*unit, pdu.to_vec()))
}

/// A frame with its CRC.
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
    fn requests_are_taken_one_by_one() {
        let one = frame(1, &[4, 0, 0, 0, 2]);
        let two = frame(2, &[3, 0, 9, 0, 1]);
        let mut received = [one, two].concat();
        received.push(0x55);
        assert_eq!(take_read(&mut received), Some((1, vec![4, 0, 0, 0, 2])));
        assert_eq!(take_read(&mut received), Some((2, vec![3, 0, 9, 0, 1])));
        assert_eq!(take_read(&mut received), None);
        assert_eq!(take_quiet(&mut received), None);
        assert!(received.is_empty());
    }

    #[test]
    fn a_longer_request_ends_with_the_silence() {
        let mut received = frame(1, &[16, 0, 0, 0, 1, 2, 0, 7]);
        assert_eq!(take_read(&mut received), None);
        assert_eq!(take_quiet(&mut received), Some((1, vec![16, 0, 0, 0, 1, 2, 0, 7])));
    }
}
