//! Which of the received bytes are the reply to a read.
//!
//! Lengths, addresses, functions, CRC and transaction numbers are judged here; what the words mean is not.

use std::ops::Range;

use super::{crc, word};
use crate::protocol::{Found, hex};

/// Bytes of an exception in RTU framing.
const RTU_EXCEPTION: usize = 5;
/// Bytes before the PDU's end that the length of a Modbus TCP header does not count.
const MBAP_PREFIX: usize = 6;
/// Most bytes quoted of what is no frame.
const QUOTED: usize = 16;

/// Finds the reply to `request` (an RTU frame) in what was `received` since it was sent.
///
/// The reply may stand behind an echo of the request, noise, or frames of others: it is where address, function, length
/// and CRC are right.
pub fn rtu_reply(request: &[u8], received: &[u8]) -> Found {
    let Some(asked) = Asked::of_rtu(request) else { return Found::Damaged };
    for (start, rest) in tails(received) {
        if let Some(length) = asked.length_of_reply(rest) {
            return Found::Frame(start..start + length);
        }
    }
    let rest = without_echo(request, received);
    let foreign: usize = foreign_frames(rest).iter().map(|frame| frame.len()).sum();
    if rest.len() - foreign >= asked.least_damaged(rest) { Found::Damaged } else { Found::Incomplete }
}

/// What is wrong with bytes that hold no reply to `request` (an RTU frame). `None`: an echo, or bytes that are no frame, no
/// beginning of the reply, and too few to be the reply.
pub fn rtu_fault(request: &[u8], received: &[u8]) -> Option<String> {
    let asked = Asked::of_rtu(request)?;
    let rest = without_echo(request, received);
    if let Some(frame) = foreign_frames(rest).last() {
        return Some(asked.stranger(frame));
    }
    if rest.starts_with(&[asked.unit, asked.function]) && rest.len() < 5 + asked.bytes {
        return Some(format!("the answer stopped after {} bytes", rest.len()));
    }
    (rest.len() >= asked.least_damaged(rest)).then(|| asked.damage(rest))
}

/// How many bytes are lacking at least of the reply to `request` (an RTU frame): of one whose beginning is there, the rest.
pub fn rtu_lacking(request: &[u8], received: &[u8]) -> usize {
    let Some(asked) = Asked::of_rtu(request) else { return 1 };
    let begun = |rest: &[u8]| match rest {
        [unit, function, bytes, ..] => {
            *unit == asked.unit && *function == asked.function && usize::from(*bytes) == asked.bytes
        }
        _ => false,
    };
    let begun = tails(received).find(|(_, rest)| begun(rest));
    begun.map_or(1, |(_, rest)| (5 + asked.bytes).saturating_sub(rest.len())).max(1)
}

/// An adapter's echo of the request left out; nothing, while only a part of one has come.
fn without_echo<'a>(request: &[u8], received: &'a [u8]) -> &'a [u8] {
    if request.starts_with(received) { &[] } else { received.strip_prefix(request).unwrap_or(received) }
}

/// Every end of these bytes, from the whole to the last byte.
fn tails(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    (0..bytes.len()).filter_map(|start| Some((start, bytes.get(start..)?)))
}

/// Whole replies to reads among these bytes, whoever sent them.
fn foreign_frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        match own_length(bytes).and_then(|length| bytes.split_at_checked(length)) {
            Some((frame, rest)) if has_crc(frame) => {
                frames.push(frame);
                bytes = rest;
            }
            _ => bytes = bytes.get(1..).unwrap_or_default(),
        }
    }
    frames
}

/// Whether a whole reply to a read in RTU framing is among these bytes.
pub(super) fn has_rtu_frame(bytes: &[u8]) -> bool {
    !foreign_frames(bytes).is_empty()
}

/// Whether a whole reply to a read in Modbus TCP framing is among these bytes.
pub(super) fn has_tcp_frame(bytes: &[u8]) -> bool {
    tails(bytes).any(|(_, rest)| {
        let (Some([0, 0, 0, length]), Some(function)) = (rest.get(2..6), rest.get(7)) else { return false };
        let carried = usize::from(*length);
        let fits = match function {
            0x03 | 0x04 => rest.get(8).is_some_and(|bytes| usize::from(*bytes) + 3 == carried),
            0x83 | 0x84 => carried == 3,
            _ => false,
        };
        fits && rest.len() >= MBAP_PREFIX + carried
    })
}

/// Length of a reply to a read, by what it says itself.
fn own_length(bytes: &[u8]) -> Option<usize> {
    match bytes.get(1)? {
        0x83 | 0x84 => Some(RTU_EXCEPTION),
        0x03 | 0x04 => bytes.get(2).filter(|bytes| **bytes > 0).map(|bytes| 5 + usize::from(*bytes)),
        _ => None,
    }
}

fn has_crc(frame: &[u8]) -> bool {
    frame.split_last_chunk().is_some_and(|(body, sum)| crc(body).to_le_bytes() == *sum)
}

struct Asked {
    unit: u8,
    function: u8,
    /// Bytes of words.
    bytes: usize,
}

impl Asked {
    fn of_rtu(request: &[u8]) -> Option<Asked> {
        let count = request.get(4..6).and_then(word)?;
        Some(Asked { unit: *request.first()?, function: *request.get(1)?, bytes: 2 * usize::from(count) })
    }

    fn of_tcp(request: &[u8]) -> Option<Asked> {
        let count = request.get(10..12).and_then(word)?;
        Some(Asked { unit: *request.get(6)?, function: *request.get(7)?, bytes: 2 * usize::from(count) })
    }

    /// Length of the reply at the beginning of these bytes, if it is there and whole.
    fn length_of_reply(&self, bytes: &[u8]) -> Option<usize> {
        let length = if *bytes.first()? != self.unit {
            return None;
        } else if *bytes.get(1)? == self.function | 0x80 {
            RTU_EXCEPTION
        } else if *bytes.get(1)? == self.function && usize::from(*bytes.get(2)?) == self.bytes {
            5 + self.bytes
        } else {
            return None;
        };
        has_crc(bytes.get(..length)?).then_some(length)
    }

    /// From how many bytes on what came is the reply, damaged.
    fn least_damaged(&self, bytes: &[u8]) -> usize {
        let exception = bytes.first() == Some(&self.unit) && bytes.get(1) == Some(&(self.function | 0x80));
        if exception { RTU_EXCEPTION } else { 5 + self.bytes }
    }

    /// What is wrong with bytes in which there is no frame.
    fn damage(&self, bytes: &[u8]) -> String {
        let length = self.least_damaged(bytes);
        let named = bytes.first() == Some(&self.unit)
            && match bytes.get(1) {
                Some(function) if *function == self.function | 0x80 => true,
                Some(function) => {
                    *function == self.function
                        && bytes.get(2).is_some_and(|bytes| usize::from(*bytes) == self.bytes)
                }
                None => false,
            };
        if named
            && let Some((body, sum)) = bytes.get(..length).and_then(|frame| frame.split_last_chunk::<2>())
        {
            return format!("CRC {} came, {} was expected", hex(sum), hex(&crc(body).to_le_bytes()));
        }
        no_frame(bytes)
    }

    /// Whose frame came instead.
    fn stranger(&self, frame: &[u8]) -> String {
        let (unit, function) = (frame.first().copied(), frame.get(1).copied());
        let bytes = frame.get(2).copied();
        self.difference(unit.unwrap_or_default(), function.unwrap_or_default(), bytes.unwrap_or_default())
    }

    fn difference(&self, unit: u8, function: u8, bytes: u8) -> String {
        if unit != self.unit {
            format!("unit {unit} spoke, unit {} was asked", self.unit)
        } else if function & 0x7F != self.function {
            format!("function {} came, function {} was asked", function & 0x7F, self.function)
        } else {
            format!("{bytes} bytes came, {} were asked", self.bytes)
        }
    }
}

/// Bytes in which there is no frame.
fn no_frame(bytes: &[u8]) -> String {
    let more = if bytes.len() > QUOTED { "…" } else { "" };
    format!(
        "{} bytes came that are no frame: {}{more}",
        bytes.len(),
        hex(bytes.get(..QUOTED).unwrap_or(bytes))
    )
}

/// Finds the reply to `request` (a Modbus TCP frame) in what was `received`. Replies to other transactions are passed
/// over: the number tells them apart.
pub fn tcp_reply(request: &[u8], received: &[u8]) -> Found {
    match look(request, received) {
        Look::Reply(range) => Found::Frame(range),
        Look::Unfit(_) => Found::Damaged,
        Look::Part(_) | Look::Other(_) => Found::Incomplete,
    }
}

/// What is wrong with bytes that hold no reply to `request` (a Modbus TCP frame). `None`: nothing came.
pub fn tcp_fault(request: &[u8], received: &[u8]) -> Option<String> {
    match look(request, received) {
        Look::Reply(_) | Look::Part(0) => None,
        Look::Part(bytes) => Some(format!("the answer stopped after {bytes} bytes")),
        Look::Other(number) => {
            let asked = request.get(..2).and_then(word)?;
            Some(format!("a reply to transaction {number} came, {asked} was asked"))
        }
        Look::Unfit(detail) => Some(detail),
    }
}

enum Look {
    /// So many bytes of a frame that is not whole.
    Part(usize),
    /// Whole frames, the last one with this transaction number.
    Other(u16),
    Reply(Range<usize>),
    Unfit(String),
}

fn look(request: &[u8], received: &[u8]) -> Look {
    let (Some(asked), Some(number)) = (Asked::of_tcp(request), request.get(..2).and_then(word)) else {
        return Look::Unfit("the request is not a Modbus read".into());
    };
    let mut start = 0;
    let mut other = None;
    loop {
        let rest = received.get(start..).unwrap_or_default();
        let part = || other.map_or(Look::Part(rest.len()), Look::Other);
        let (Some(seen), Some(protocol), Some(length)) =
            (rest.get(0..2).and_then(word), rest.get(2..4).and_then(word), rest.get(4..6).and_then(word))
        else {
            return part();
        };
        // 3: unit, function, one byte. 254: unit and the longest PDU (V1.1b3, 4.1).
        if protocol != 0 || !(3..=254).contains(&length) {
            return Look::Unfit(format!("{}: no header of Modbus TCP", no_frame(rest)));
        }
        let end = start + MBAP_PREFIX + usize::from(length);
        let Some(frame) = received.get(start..end) else { return part() };
        if seen == number {
            return asked.unfit_tcp(frame).map_or(Look::Reply(start..end), Look::Unfit);
        }
        other = Some(seen);
        start = end;
    }
}

impl Asked {
    /// Why a frame with the right transaction number is no reply.
    fn unfit_tcp(&self, frame: &[u8]) -> Option<String> {
        let (unit, function) = (*frame.get(6)?, *frame.get(7)?);
        let bytes = frame.get(8).copied().unwrap_or_default();
        if unit != self.unit || function & 0x7F != self.function {
            return Some(self.difference(unit, function, bytes));
        }
        if function == self.function | 0x80 {
            return (frame.len() != 9)
                .then(|| format!("an exception of {} bytes came, 9 were expected", frame.len()));
        }
        (usize::from(bytes) != self.bytes || frame.len() != 9 + self.bytes)
            .then(|| format!("{bytes} bytes in a frame of {} came, {} were asked", frame.len(), self.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    fn request() -> Vec<u8> {
        bytes("01040000000271CB")
    }

    fn reply() -> Vec<u8> {
        bytes("010404436633341B38")
    }

    fn with_crc(hex: &str) -> Vec<u8> {
        let mut frame = bytes(hex);
        frame.extend(crc(&frame).to_le_bytes());
        frame
    }

    #[test]
    fn a_reply_is_found_alone_and_behind_its_echo() {
        assert_eq!(rtu_reply(&request(), &reply()), Found::Frame(0..9));
        let echoed = [request(), reply()].concat();
        assert_eq!(rtu_reply(&request(), &echoed), Found::Frame(8..17));
        for cut in 0..echoed.len() {
            assert_eq!(rtu_reply(&request(), &echoed[..cut]), Found::Incomplete, "{cut} bytes");
        }
    }

    #[test]
    fn so_many_bytes_are_lacking_at_least() {
        let long = with_crc("010400000010");
        for (came, lacking) in
            [("", 1), ("01", 1), ("0184", 1), ("010420", 34), ("FF0104200000", 32), ("010404", 1)]
        {
            assert_eq!(rtu_lacking(&long, &bytes(came)), lacking, "{came}");
        }
    }

    #[test]
    fn a_reply_is_found_behind_bytes_that_are_no_frame() {
        for before in [
            vec![0x00],
            vec![0xFF],
            vec![0, 0],
            vec![0xFE; 4],
            b"\x00\x1A\x2B\x3C\x4D\x5E".to_vec(),
            b"+REG:861234567890123\r\n".to_vec(),
            vec![0x01],
            vec![0x01, 0x04],
            vec![0x01, 0x04, 0x04, 0x43],
            with_crc("02040411223344"),
            with_crc("01040211AA"),
            [request(), vec![0]].concat(),
        ] {
            let came = [before.clone(), reply()].concat();
            let length = before.len();
            assert_eq!(rtu_reply(&request(), &came), Found::Frame(length..length + 9), "{before:02X?}");
            let refused = [before, with_crc("018402")].concat();
            assert_eq!(rtu_reply(&request(), &refused), Found::Frame(length..length + 5));
        }
    }

    #[test]
    fn what_comes_behind_a_reply_changes_nothing() {
        let came = [reply(), vec![0, 0, 0]].concat();
        assert_eq!(rtu_reply(&request(), &came), Found::Frame(0..9));
    }

    #[test]
    fn what_is_not_the_reply_is_named_and_the_reply_may_still_come() {
        for (came, says) in [
            (with_crc("02040443663334"), "unit 2 spoke, unit 1 was asked"),
            (with_crc("01030443663334"), "function 3 came, function 4 was asked"),
            (with_crc("0104024366"), "2 bytes came, 4 were asked"),
            (with_crc("028402"), "unit 2 spoke, unit 1 was asked"),
            (bytes("010404436633"), "the answer stopped after 6 bytes"),
            ([request(), bytes("0104")].concat(), "the answer stopped after 2 bytes"),
        ] {
            assert_eq!(rtu_reply(&request(), &came), Found::Incomplete, "{came:02X?}");
            assert_eq!(rtu_fault(&request(), &came).as_deref(), Some(says), "{came:02X?}");
        }
    }

    #[test]
    fn an_echo_and_stray_bytes_are_nothing() {
        let echo = request();
        for came in [&[][..], &echo[..5], &echo, &[0], &[0, 0, 0], &[0xFF; 4], &[0; 8]] {
            assert_eq!(rtu_reply(&request(), came), Found::Incomplete, "{came:02X?}");
            assert_eq!(rtu_fault(&request(), came), None, "{came:02X?}");
        }
        assert_eq!(tcp_fault(&bytes("000700000006010400000002"), &[]), None);
    }

    #[test]
    fn a_damaged_reply_is_known_at_its_last_byte() {
        for (came, says) in [
            ("010404436633341B39", "CRC 0x1B39 came, 0x1B38 was expected"),
            ("020404436633341B38", "9 bytes came that are no frame: 0x020404436633341B38"),
            ("010405436633341B38", "9 bytes came that are no frame"),
            (
                "000000000000000000000000000000000000",
                "18 bytes came that are no frame: 0x00000000000000000000000000000000…",
            ),
        ] {
            let came = bytes(came);
            assert_eq!(rtu_reply(&request(), &came), Found::Damaged, "{came:02X?}");
            let said = rtu_fault(&request(), &came).unwrap();
            assert!(said.contains(says), "{said}");
            assert_eq!(rtu_reply(&request(), &came[..8]), Found::Incomplete, "{came:02X?}");
        }
        assert_eq!(rtu_reply(&request(), &bytes("0184020000")), Found::Damaged, "an exception");
    }

    /// Twice the count is more than 16 bits hold: this was an overflow.
    #[test]
    fn a_request_that_no_meter_could_answer_is_not_answered() {
        let request = bytes("0103000090000000");
        assert_eq!(rtu_reply(&request, &bytes("01030400000000")), Found::Incomplete);
    }

    #[test]
    fn a_refusal_is_a_reply() {
        assert_eq!(rtu_reply(&request(), &with_crc("018402")), Found::Frame(0..5));
    }

    #[test]
    fn a_reply_to_another_transaction_is_passed_over_and_named() {
        let request = bytes("000700000006010400000002");
        let stale = bytes("00060000000701040411223344");
        let reply = bytes("00070000000701040443663334");
        let both = [stale.clone(), reply].concat();
        assert_eq!(tcp_reply(&request, &both), Found::Frame(13..26));
        for came in [&both[..13], &both[..18]] {
            assert_eq!(tcp_reply(&request, came), Found::Incomplete);
            let said = tcp_fault(&request, came);
            assert_eq!(said.as_deref(), Some("a reply to transaction 6 came, 7 was asked"));
        }
        assert_eq!(tcp_fault(&request, &both[13..20]).as_deref(), Some("the answer stopped after 7 bytes"));
    }

    #[test]
    fn frames_are_recognised_whoever_sent_them() {
        assert!(has_rtu_frame(&reply()) && !has_tcp_frame(&reply()));
        let tcp = bytes("00070000000701040443663334");
        assert!(has_tcp_frame(&tcp) && !has_rtu_frame(&tcp));
        assert!(has_rtu_frame(&with_crc("018402")) && has_tcp_frame(&bytes("000700000003018402")));
        assert!(!has_tcp_frame(&bytes("00E06680FE78F8")) && !has_rtu_frame(&request()));
    }

    #[test]
    fn frames_of_the_other_framing_are_damaged() {
        let request = bytes("000700000006010400000002");
        assert_eq!(tcp_reply(&request, &reply()), Found::Damaged);
        let tcp = bytes("00070000000701040443663334");
        assert_eq!(rtu_reply(&self::request(), &tcp), Found::Damaged);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(request in prop::collection::vec(any::<u8>(), 0..20),
                                                received in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = (rtu_reply(&request, &received), rtu_fault(&request, &received));
            let _ = (tcp_reply(&request, &received), tcp_fault(&request, &received));
        }
    }
}
