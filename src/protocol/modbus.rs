//! Modbus reads (MODBUS Application Protocol V1.1b3) and their RTU and TCP framing.
//!
//! Knows functions 03 and 04 only: no function that writes can be expressed here.

use serde::{Deserialize, Serialize};

use super::Refusal;

/// Most words one read may ask for (V1.1b3, 6.3 and 6.4).
pub const MAX_WORDS: u16 = 125;
/// Characters of a read request in RTU framing.
pub const REQUEST_CHARS: u32 = 8;
/// Characters of a reply in RTU framing besides the words themselves.
pub const REPLY_OVERHEAD_CHARS: u32 = 5;

/// The table that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Function 03.
    Holding,
    /// Function 04.
    Input,
}

impl Table {
    /// The function code that reads it.
    pub fn function(self) -> u8 {
        match self {
            Table::Holding => 0x03,
            Table::Input => 0x04,
        }
    }
}

/// One read of consecutive words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Read {
    /// Function 03 or 04.
    pub table: Table,
    /// First word, counted from 0.
    pub address: u16,
    /// Number of words, 1 to 125.
    pub count: u16,
}

/// A Modbus exception in words (V1.1b3, 7). 05 and 06 pass by themselves; 0A and 0B speak for a gateway
/// whose target did not answer, so the caller treats them as silence.
pub fn refusal(code: u8) -> Refusal {
    let (text, transient) = match code {
        0x01 => ("illegal function", false),
        0x02 => ("illegal data address", false),
        0x03 => ("illegal data value", false),
        0x04 => ("server device failure", true),
        0x05 => ("acknowledge", true),
        0x06 => ("server device busy", true),
        0x08 => ("memory parity error", true),
        0x0A => ("gateway path unavailable", true),
        0x0B => ("gateway target failed to respond", true),
        _ => ("unknown exception", false),
    };
    Refusal { code, text, transient }
}

/// CRC-16/MODBUS, sent low byte first (Modbus over Serial Line V1.02, 6.2.2).
pub fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8)
            .fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 })
    })
}

/// What the bytes that followed a request amount to so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    /// Not yet a whole answer.
    Incomplete,
    /// The answer is these bytes of what was received (anything before was an echo or stale).
    Frame(std::ops::Range<usize>),
    /// As much as an answer has, or more, and it is none: what is wrong with it.
    Unfit(String),
}

/// Finds the answer to `request` (an RTU frame) in what was `received` since it was sent.
///
/// A local echo of the request is passed over. A frame of another unit, function or length, or with a wrong
/// CRC, is not an answer.
pub fn rtu_answer(request: &[u8], received: &[u8]) -> Framing {
    let plain = rtu_answer_at(request, received, 0);
    if matches!(plain, Framing::Frame(_)) || !received.starts_with(request) {
        // An echo that is not yet whole must not be judged as a garbled answer.
        if request.starts_with(received) {
            return Framing::Incomplete;
        }
        return plain;
    }
    rtu_answer_at(request, received, request.len())
}

fn rtu_answer_at(request: &[u8], received: &[u8], start: usize) -> Framing {
    let (Some(&unit), Some(&function), Some(count)) =
        (request.first(), request.get(1), request.get(4..6).and_then(word))
    else {
        return Framing::Unfit("the request is not a Modbus read".into());
    };
    let answer = received.get(start..).unwrap_or_default();
    let (Some(&seen_unit), Some(&seen_function)) = (answer.first(), answer.get(1)) else {
        return Framing::Incomplete;
    };
    let refused = seen_function == function | 0x80;
    let length = if refused { 5 } else { 5 + 2 * usize::from(count) };
    if seen_unit != unit {
        return Framing::Unfit(format!("unit {seen_unit} spoke, unit {unit} was asked"));
    }
    if seen_function != function && !refused {
        return Framing::Unfit(format!("function {seen_function} came, function {function} was asked"));
    }
    if !refused {
        match answer.get(2) {
            None => return Framing::Incomplete,
            Some(&bytes) if usize::from(bytes) != 2 * usize::from(count) => {
                return Framing::Unfit(format!("{bytes} bytes came, {} were asked", 2 * usize::from(count)));
            }
            Some(_) => {}
        }
    }
    let Some(frame) = answer.get(..length) else {
        return Framing::Incomplete;
    };
    let (body, sum) = frame.split_at(length - 2);
    let expected = crc(body).to_le_bytes();
    if sum != expected {
        return Framing::Unfit(format!("CRC {} came, {} was expected", hex(sum), hex(&expected)));
    }
    Framing::Frame(start..start + length)
}

/// Finds the answer to `request` (a Modbus TCP frame) in what was `received`: answers to earlier
/// transactions are passed over, because the transaction number tells them apart.
pub fn tcp_answer(request: &[u8], received: &[u8]) -> Framing {
    let mut start = 0;
    loop {
        let rest = received.get(start..).unwrap_or_default();
        let (Some(transaction), Some(protocol), Some(length)) =
            (rest.get(0..2), rest.get(2..4).and_then(word), rest.get(4..6).and_then(word))
        else {
            return Framing::Incomplete;
        };
        // 3: unit, function, one byte. 254: unit and the longest PDU (V1.1b3, 4.1).
        if protocol != 0 || !(3..=254).contains(&length) {
            return Framing::Unfit(format!("protocol {protocol}, length {length} is not Modbus TCP"));
        }
        let end = start + 6 + usize::from(length);
        let Some(frame) = received.get(start..end) else {
            return Framing::Incomplete;
        };
        if request.get(0..2) != Some(transaction) {
            start = end;
            continue;
        }
        return match unfit_tcp(request, frame) {
            None => Framing::Frame(start..end),
            Some(detail) => Framing::Unfit(detail),
        };
    }
}

fn unfit_tcp(request: &[u8], frame: &[u8]) -> Option<String> {
    let (unit, function) = (*request.get(6)?, *request.get(7)?);
    let count = request.get(10..12).and_then(word)?;
    let (seen_unit, seen_function) = (*frame.get(6)?, *frame.get(7)?);
    if seen_unit != unit {
        return Some(format!("unit {seen_unit} spoke, unit {unit} was asked"));
    }
    if seen_function == function | 0x80 {
        return (frame.len() != 9)
            .then(|| format!("an exception of {} bytes came, 9 were expected", frame.len()));
    }
    if seen_function != function {
        return Some(format!("function {seen_function} came, function {function} was asked"));
    }
    let expected = 2 * usize::from(count);
    let seen = frame.get(8).map_or(0, |bytes| usize::from(*bytes));
    (seen != expected || frame.len() != 9 + expected)
        .then(|| format!("{seen} bytes in a frame of {} came, {expected} were asked", frame.len()))
}

fn word(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Bytes as they are written in manuals: `0x0103…`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02X}"); // writing to a String cannot fail
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
    }

    #[test]
    fn an_answer_is_found_alone_and_behind_its_echo() {
        let request = bytes("01040000000271CB");
        let answer = bytes("010404436633341B38");
        assert_eq!(rtu_answer(&request, &answer), Framing::Frame(0..9));
        let echoed = [request.clone(), answer].concat();
        assert_eq!(rtu_answer(&request, &echoed), Framing::Frame(8..17));
        for cut in 0..echoed.len() {
            assert_eq!(rtu_answer(&request, &echoed[..cut]), Framing::Incomplete, "{cut} bytes");
        }
    }

    #[test]
    fn what_is_not_the_answer_is_named() {
        let request = bytes("01040000000271CB");
        for (answer, says) in [
            ("020404436633341B38", "unit 2"),
            ("010304436633341B38", "function 3"),
            ("0104024366", "2 bytes came, 4 were asked"),
            ("010404436633341B39", "CRC"),
        ] {
            match rtu_answer(&request, &bytes(answer)) {
                Framing::Unfit(detail) => assert!(detail.contains(says), "{detail}"),
                other => panic!("{answer}: {other:?}"),
            }
        }
    }

    /// Twice the count is more than 16 bits hold: this was an overflow.
    #[test]
    fn a_request_that_no_meter_could_answer_is_not_answered() {
        let request = bytes("0103000090000000");
        match rtu_answer(&request, &bytes("01030400000000")) {
            Framing::Unfit(detail) => assert!(detail.contains("73728 were asked"), "{detail}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_is_an_answer() {
        let request = bytes("01040000000271CB");
        let mut refused = bytes("018402");
        refused.extend(crc(&refused).to_le_bytes());
        assert_eq!(rtu_answer(&request, &refused), Framing::Frame(0..5));
    }

    #[test]
    fn an_answer_to_an_earlier_transaction_is_passed_over() {
        let request = bytes("000700000006010400000002");
        let stale = bytes("00060000000701040411223344");
        let answer = bytes("00070000000701040443663334");
        assert_eq!(tcp_answer(&request, &stale), Framing::Incomplete);
        assert_eq!(tcp_answer(&request, &[stale, answer].concat()), Framing::Frame(13..26));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(request in prop::collection::vec(any::<u8>(), 0..20),
                                                received in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = rtu_answer(&request, &received);
            let _ = tcp_answer(&request, &received);
        }
    }
}
