//! What a type of meter offers: its points as data (TOML), the request plan, exact decoding.
//!
//! Pure: files are read by whoever calls. `load` turns TOML text into a [`Profile`] and reports every mistake
//! at once; `plan` packs points into requests, by one planner for each protocol; `decode` turns bytes into quantities,
//! `encode` is its inverse (for simulated meters).

mod catalogue;
mod decode;
mod load;
mod order;
mod plan;
mod section;
mod size;
mod syntax;
mod twice;

pub use catalogue::Catalogue;
pub use decode::{Decoded, decode, encode};
pub use load::{ProfileFault, load};
pub use plan::{Planned, bytes_of, plan, serial_question, split};
pub use size::{MAX_RECORD_BYTES, largest_record};
pub use syntax::{SyntaxError, syntax_errors};

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    model::{Dec, Medium, PointName, Unit},
    protocol::{
        Wire,
        dlt645::{Identifier, LONGEST_REPLY_TIME},
        modbus::Table,
    },
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
    /// How it is spoken to, and what it accepts.
    pub protocol: Protocol,
    /// The settings of its line as it leaves the factory, where they are known.
    pub line: Option<Wire>,
    /// Where the table comes from: manual, edition, or repository and commit.
    pub source: String,
    /// How far the table has been verified, in one sentence for an installer.
    pub verification: String,
    /// The meter's usual time to think before it answers.
    pub turnaround: Duration,
    /// Points in the order of the file. Names are unique.
    pub points: Vec<Point>,
    /// Where the device tells its own serial number, if it does.
    pub serial: Option<SerialPoint>,
}

/// The language of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Modbus, in the framing of its bus.
    Modbus(RequestLimits),
    /// DL/T 645-2007.
    Dlt645,
}

/// What a Modbus meter accepts in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequestLimits {
    /// Most words one request may ask for.
    pub max_words: u16,
    /// Widest run of unused words that a request may read over; 0 when the meter refuses holes.
    pub max_hole: u16,
    /// Whether only even word counts are answered.
    pub even_words: bool,
}

impl Protocol {
    /// Every name that [`Protocol::name`] may give.
    pub const NAMES: [&str; 2] = ["modbus", "dlt645-2007"];

    /// The longest that its standard allows a meter to take to answer, where it says so.
    pub fn reply_time(self) -> Duration {
        match self {
            Protocol::Modbus(_) => Duration::ZERO,
            Protocol::Dlt645 => LONGEST_REPLY_TIME,
        }
    }

    /// As configurations and profiles name it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Modbus(_) => "modbus",
            Protocol::Dlt645 => "dlt645-2007",
        }
    }
}

/// One row of a profile.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// What it is.
    pub name: PointName,
    /// Unit of the scaled value.
    pub unit: Unit,
    /// Where its bytes are and what they mean.
    pub cell: Cell,
    /// For a register (the meter's own cumulative total): its limits. `None` for what goes up and down.
    pub register: Option<Register>,
    /// The manual's row.
    pub source: String,
}

/// Where bytes are and how they become a number.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Where, in the protocol's own terms.
    pub place: Place,
    /// How the bytes become a number.
    pub encoding: Encoding,
    /// Exact factor, applied to integers and BCD; for floats it must be 1 or a power of ten.
    pub scale: Dec,
    /// Raw values (in wire order, `0x…`, as long as the cell) that mean "not available".
    pub sentinels: Vec<Vec<u8>>,
}

/// Where a meter keeps a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Words of a Modbus table.
    Modbus {
        /// Table.
        table: Table,
        /// First word, from 0.
        address: u16,
    },
    /// The data of a DL/T 645 identifier.
    Dlt645(Item),
}

/// Where a DL/T 645 meter keeps a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item {
    /// The identifier that brings it alone. The value comes first.
    pub identifier: Identifier,
    /// Bytes of data behind that identifier: a reply of any other length is not understood.
    pub length: u8,
    /// The block that holds it among others.
    pub block: Option<Block>,
}

/// A place in a block of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// The identifier of the block.
    pub identifier: Identifier,
    /// Bytes of the block before the value.
    pub offset: u8,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Modbus { table: Table::Holding, address } => write!(f, "holding 0x{address:04X}"),
            Place::Modbus { table: Table::Input, address } => write!(f, "input 0x{address:04X}"),
            Place::Dlt645(Item { identifier, block: None, .. }) => write!(f, "{identifier}"),
            Place::Dlt645(Item { identifier, block: Some(block), .. }) => {
                write!(f, "{identifier}, or {} from byte {}", block.identifier, block.offset)
            }
        }
    }
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
    /// Whether the highest bit of a BCD number is its sign.
    pub signed: bool,
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
    /// Packed decimal digits, two in a byte: 4, 6, 8, 12 or 16.
    Bcd16,
    Bcd24,
    Bcd32,
    Bcd48,
    Bcd64,
    /// A status word: 16 or 32 bits with names.
    Bits16,
    Bits32,
}

impl Kind {
    /// Bytes that it takes.
    pub fn bytes(self) -> u8 {
        match self {
            Kind::U16 | Kind::I16 | Kind::Bcd16 | Kind::Bits16 => 2,
            Kind::Bcd24 => 3,
            Kind::U32 | Kind::I32 | Kind::F32 | Kind::Bcd32 | Kind::Bits32 => 4,
            Kind::Bcd48 => 6,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::Bcd64 => 8,
        }
    }

    /// Modbus words that it takes.
    pub fn words(self) -> u16 {
        u16::from(self.bytes()).div_ceil(2)
    }

    /// Whether it has decimal digits.
    pub fn is_bcd(self) -> bool {
        matches!(self, Kind::Bcd16 | Kind::Bcd24 | Kind::Bcd32 | Kind::Bcd48 | Kind::Bcd64)
    }

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
            Kind::Bcd24 => Some(1_000_000),
            Kind::Bcd32 => Some(100_000_000),
            Kind::Bcd48 => Some(1_000_000_000_000),
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
    /// Where its bytes are; integers and BCD only.
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
            Kind::Bcd24 => 999_999,
            Kind::Bcd32 => 99_999_999,
            Kind::Bcd48 => 999_999_999_999,
            Kind::Bcd64 => 9_999_999_999_999_999,
        }
    }
}

/// Shared by every meter of that type.
pub type SharedProfile = Arc<Profile>;
