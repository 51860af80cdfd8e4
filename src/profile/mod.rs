//! What a type of meter offers: its points as data (TOML), the request plan, exact decoding.
//!
//! Pure: files are read by whoever calls. `load` turns TOML text into a [`Profile`] and reports every mistake
//! at once; `plan` packs points into requests; `decode` turns words into quantities, `encode` is its inverse
//! (for simulated meters).

mod catalogue;
mod decode;
mod load;
mod order;
mod plan;
mod section;
mod size;
mod syntax;

pub use catalogue::Catalogue;
pub use decode::{Decoded, decode, encode};
pub use load::{ProfileFault, load};
pub use plan::{Planned, plan, serial_read, split, words_of};
pub use size::{MAX_RECORD_BYTES, largest_record};
pub use syntax::{SyntaxError, syntax_errors};

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    model::{Dec, Medium, PointName, Unit},
    protocol::modbus::Table,
};

/// A type of meter.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// `[a-z0-9-]`, e.g. `eastron-sdm630`; also the file's name.
    pub id: String,
    /// Maker.
    pub manufacturer: String,
    /// Model as printed on the device.
    pub model: String,
    /// What it meters.
    pub medium: Medium,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Where the table comes from: manual, edition, or repository and commit.
    pub source: String,
    /// How far the table has been verified, in one sentence for an installer.
    pub verification: String,
    /// Most words one request may ask for.
    pub max_words: u16,
    /// Widest run of unused words that a request may read over; 0 when the meter refuses holes.
    pub max_hole: u16,
    /// Whether only even word counts are answered.
    pub even_words: bool,
    /// The meter's usual time to think before it answers.
    pub turnaround: Duration,
    /// Points in the order of the file. Names are unique.
    pub points: Vec<Point>,
    /// Where the device tells its own serial number, if it does.
    pub serial: Option<SerialPoint>,
}

/// The language of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// Modbus, in the framing of its bus.
    #[serde(rename = "modbus")]
    Modbus,
}

/// One row of a profile.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// What it is.
    pub name: PointName,
    /// Unit of the scaled value.
    pub unit: Unit,
    /// Where its words are and what they mean.
    pub cell: Cell,
    /// For a register (the meter's own cumulative total): its limits. `None` for what goes up and down.
    pub register: Option<Register>,
    /// The manual's row.
    pub source: String,
}

/// Where words are and how they become a number.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Table.
    pub table: Table,
    /// First word, from 0.
    pub address: u16,
    /// How the words become a number.
    pub encoding: Encoding,
    /// Exact factor, applied to integers and BCD; for floats it must be 1 or a power of ten.
    pub scale: Dec,
    /// Raw values (in wire order, `0x…`, as long as the cell) that mean "not available".
    pub sentinels: Vec<Vec<u8>>,
}

/// Limits of a cumulative register.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Register {
    /// The first value that the register cannot show: it begins again at 0 there. What the profile says, else the display's
    /// 10^n or the number format's own limit, whichever is less.
    pub capacity: Dec,
    /// Its smallest difference: the scale of an integer, the display's last digit of a float.
    pub step: Dec,
    /// The most it can rise in an hour by the meter's rating, in the point's unit, before CT × PT.
    pub max_per_hour: Dec,
}

/// Encoding of a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Number format.
    pub kind: Kind,
    /// Order of the bytes on the wire; `A` is the most significant: `AB`, `CDAB`, … As long as the cell.
    pub order: ByteOrder,
    /// For [`Kind::Bits16`] and [`Kind::Bits32`]: names of the bits, by position.
    pub bits: Vec<(u8, String)>,
}

/// Number format of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the names say it all
pub enum Kind {
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    /// One, two, four or eight bytes of packed decimal digits: 4, 8 or 16 digits.
    Bcd16,
    Bcd32,
    Bcd64,
    /// A status word: 16 or 32 bits with names.
    Bits16,
    Bits32,
}

impl Kind {
    /// Words that it takes.
    pub fn words(self) -> u16 {
        match self {
            Kind::U16 | Kind::I16 | Kind::Bcd16 | Kind::Bits16 => 1,
            Kind::U32 | Kind::I32 | Kind::F32 | Kind::Bcd32 | Kind::Bits32 => 2,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::Bcd64 => 4,
        }
    }
}

impl Kind {
    /// The first number beyond what it can count to from 0; `None` for floats and for what does not count.
    pub fn limit(self) -> Option<i128> {
        match self {
            Kind::I16 => Some(1 << 15),
            Kind::U16 => Some(1 << 16),
            Kind::I32 => Some(1 << 31),
            Kind::U32 => Some(1 << 32),
            Kind::I64 => Some(1 << 63),
            Kind::U64 => Some(1 << 64),
            Kind::Bcd16 => Some(10_000),
            Kind::Bcd32 => Some(100_000_000),
            Kind::Bcd64 => Some(10_000_000_000_000_000),
            Kind::F32 | Kind::F64 | Kind::Bits16 | Kind::Bits32 => None,
        }
    }
}

/// A permutation of the bytes of a cell: `positions[i]` is the significance (0 = most) of wire byte `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteOrder {
    positions: Vec<u8>,
}

/// Where a device tells its serial number: compared as text with the configured one.
#[derive(Debug, Clone, PartialEq)]
pub struct SerialPoint {
    /// Where its words are; integers and BCD only.
    pub cell: Cell,
    /// The manual's row.
    pub source: String,
}

impl SerialPoint {
    /// Whether the device may tell this number. Zeros in front do not count: neither cell nor comparison keeps them.
    pub fn can_tell(&self, serial: &str) -> bool {
        let digits = !serial.is_empty() && serial.bytes().all(|byte| byte.is_ascii_digit());
        let number = serial.trim_start_matches('0');
        digits && (number.is_empty() || number.parse().is_ok_and(|number: u64| number <= self.largest()))
    }

    /// What it may tell, in words.
    pub fn range(&self) -> String {
        format!("digits alone, at most {}", self.largest())
    }

    fn largest(&self) -> u64 {
        match self.cell.encoding.kind {
            Kind::U16 | Kind::Bits16 => u16::MAX.into(),
            Kind::I16 => i16::MAX.unsigned_abs().into(),
            Kind::U32 | Kind::Bits32 | Kind::F32 => u32::MAX.into(),
            Kind::I32 => i32::MAX.unsigned_abs().into(),
            Kind::U64 | Kind::F64 => u64::MAX,
            Kind::I64 => i64::MAX.unsigned_abs(),
            Kind::Bcd16 => 9999,
            Kind::Bcd32 => 99_999_999,
            Kind::Bcd64 => 9_999_999_999_999_999,
        }
    }
}

/// Shared by every meter of that type.
pub type SharedProfile = Arc<Profile>;
