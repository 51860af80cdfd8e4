//! Modbus reads (MODBUS Application Protocol V1.1b3) and their RTU and TCP framing.
//!
//! Knows functions 03 and 04 only: no function that writes can be expressed here.

mod frames;
mod transaction;

use serde::{Deserialize, Serialize};

use super::Refusal;

pub use frames::{rtu_fault, rtu_lacking, rtu_reply, tcp_fault, tcp_reply};
pub use transaction::ReadTransaction;

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

/// A Modbus exception in words (V1.1b3, 7). 05 and 06 pass by themselves, and so may a code that the standard does not
/// know. 0A and 0B speak for a gateway whose target did not answer, so the caller treats them as silence.
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
        _ => ("unknown exception", true),
    };
    Refusal { code, text, transient, parts_may_pass: code != 0x01 }
}

/// CRC-16/MODBUS, sent low byte first (Modbus over Serial Line V1.02, 6.2.2).
pub fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8)
            .fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 })
    })
}

fn word(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}
