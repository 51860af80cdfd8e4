//! DL/T 645-2007 reads: addresses, request and reply frames, follow-up frames, the meter's "no".
//!
//! Knows functions 11H (read data), 12H (read what follows) and 13H (read the address) only: no function that writes,
//! switches or sets a clock can be expressed here. Knows nothing of what a value means.
//!
//! 645-1997 has the same frame, functions 01H to 03H and identifiers of two bytes: how wide an identifier is follows
//! from the function (`identifier_bytes`), nothing else here counts on four.

mod transaction;

use std::{fmt, ops::Range, str::FromStr, time::Duration};

use super::{Found, Refusal};

pub use transaction::ReadTransaction;

/// Most data bytes of a reply to a read: a greater length is noise.
pub const MAX_DATA: usize = 200;
/// Sent before each request, so that a meter's receiver is awake.
pub const WAKE_UP: [u8; 4] = [0xFE; 4];
/// The longest that a meter takes to answer: the standard's 500 ms, and what adapters add.
pub const LONGEST_REPLY_TIME: Duration = Duration::from_millis(600);
/// Follow-up frames of one reading: with the longest frames these are 3 kB, ten times the longest block known.
pub const MAX_FOLLOW_UPS: u8 = 15;

/// The characters of a frame besides its data: two starts, six of the address, control, length, checksum, end.
const FRAME_CHARS: usize = 12;
const START: u8 = 0x68;
const END: u8 = 0x16;
/// Added to each data byte on the wire.
const OFFSET: u8 = 0x33;
/// A byte of an address that stands for any.
const ANY: u8 = 0xAA;
/// Control code.
const FROM_METER: u8 = 0x80;
const ABNORMAL: u8 = 0x40;
const MORE_FOLLOWS: u8 = 0x20;
const FUNCTION: u8 = 0x1F;
const READ_DATA: u8 = 0x11;
const READ_FOLLOWING: u8 = 0x12;
const READ_ADDRESS: u8 = 0x13;

/// Where a meter answers: twelve digits, `AA` in place of a pair that may be any.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address([u8; 6]);

impl Address {
    /// Whoever is on the line: with more than one meter their replies collide.
    pub const ANYBODY: Address = Address([ANY; 6]);

    /// From the six bytes as they come over the wire, the lowest pair first.
    pub fn from_wire(bytes: [u8; 6]) -> Address {
        Address(bytes)
    }

    /// The six bytes as they go over the wire.
    pub fn to_wire(self) -> [u8; 6] {
        self.0
    }

    /// Whether it may stand for more than one meter.
    pub fn is_wildcard(self) -> bool {
        self.0.contains(&ANY)
    }

    /// Whether there may be a meter that is meant by both.
    pub fn overlaps(self, other: Address) -> bool {
        self.0.iter().zip(other.0).all(|(one, other)| one == &other || *one == ANY || other == ANY)
    }

    /// Whether a meter at `other` is meant.
    pub fn matches(self, other: Address) -> bool {
        self.0.iter().zip(other.0).all(|(asked, seen)| *asked == ANY || *asked == seen)
    }
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither digits nor `AA`, or not twelve.
    #[error("{0:?} is not a DL/T 645 address: expected 12 digits, AA in place of a pair that may be any")]
    Form(String),
    /// 99…99: everybody listens, nobody answers.
    #[error("999999999999 is the broadcast address, which no meter answers")]
    Broadcast,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let refuse = || AddressError::Form(text.to_owned());
        let pairs = hex_bytes::<6>(text).ok_or_else(refuse)?;
        if pairs.iter().any(|pair| *pair != ANY && !is_bcd(*pair)) {
            return Err(refuse());
        }
        if pairs == [0x99; 6] {
            return Err(AddressError::Broadcast);
        }
        let mut wire = pairs;
        wire.reverse();
        Ok(Address(wire))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&digits(self.0.iter().rev()))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What can be asked for: DI3 to DI0, as the standard's tables have them (`00010000`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identifier(pub [u8; 4]);

impl Identifier {
    /// As it goes over the wire, DI0 first.
    fn to_wire(self) -> [u8; 4] {
        let mut wire = self.0;
        wire.reverse();
        wire
    }
}

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a data identifier: expected 8 hexadecimal digits, DI3 first, such as 00010000")]
pub struct IdentifierError(String);

impl FromStr for Identifier {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Identifier, IdentifierError> {
        hex_bytes(text).map(Identifier).ok_or_else(|| IdentifierError(text.to_owned()))
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&digits(self.0.iter()))
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What one request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Read {
    /// Data (11H), or with a number from 1 on the frame that follows (12H).
    Data {
        /// Which.
        identifier: Identifier,
        /// The number of the follow-up frame.
        follow_up: Option<u8>,
        /// Bytes of data that are expected: they tell how long the reply takes, not whether it is one.
        length: u8,
    },
    /// The meter's own address (13H).
    Address,
}

impl Read {
    /// The first request for that identifier.
    pub fn data(identifier: Identifier, length: u8) -> Read {
        Read::Data { identifier, follow_up: None, length }
    }

    /// Characters of the request, with the bytes that wake the meter.
    pub fn request_chars(&self) -> u32 {
        let (_, fields) = self.fields();
        u32::try_from(WAKE_UP.len() + FRAME_CHARS + fields.len()).unwrap_or(u32::MAX)
    }

    /// Characters of the reply that is expected, with as many leading FE as is usual.
    pub fn reply_chars(&self) -> u32 {
        match self {
            Read::Address => self.request_chars() + 6,
            Read::Data { length, .. } => self.request_chars() + u32::from(*length),
        }
    }

    /// Function code, and the data field without the offset.
    fn fields(&self) -> (u8, Vec<u8>) {
        match self {
            Read::Address => (READ_ADDRESS, Vec::new()),
            Read::Data { identifier, follow_up: None, .. } => (READ_DATA, identifier.to_wire().to_vec()),
            Read::Data { identifier, follow_up: Some(number), .. } => {
                (READ_FOLLOWING, [&identifier.to_wire()[..], &[*number]].concat())
            }
        }
    }
}

/// The request as it goes over the wire.
pub fn encode(address: Address, read: &Read) -> Vec<u8> {
    let (function, fields) = read.fields();
    [&WAKE_UP[..], &frame(address, function, &fields)].concat()
}

/// A frame without leading FE. `fields` has at most 255 bytes; the offset is added here.
pub fn frame(address: Address, control: u8, fields: &[u8]) -> Vec<u8> {
    let mut frame = vec![START];
    frame.extend(address.0);
    frame.extend([START, control, u8::try_from(fields.len()).unwrap_or(u8::MAX)]);
    frame.extend(fields.iter().map(|byte| byte.wrapping_add(OFFSET)));
    frame.extend([checksum(&frame), END]);
    frame
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Bytes of an identifier in requests of this function and in their replies.
fn identifier_bytes(function: u8) -> usize {
    match function {
        READ_DATA | READ_FOLLOWING => 4,
        _ => 0,
    }
}

/// A frame whose checksum and end are right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Who speaks, or is spoken to.
    pub address: Address,
    /// Control code.
    pub control: u8,
    /// Data without the offset.
    pub fields: Vec<u8>,
}

/// What begins at one place of the bytes received.
enum Begins {
    /// No frame.
    Nothing,
    /// Perhaps a frame: `certain` once both starts are there.
    Begun { certain: bool },
    /// As long as its length says, and spoilt.
    Spoilt { length: usize, detail: String },
    /// A frame of so many bytes.
    Whole { length: usize, frame: Frame },
}

fn begins_at(bytes: &[u8]) -> Begins {
    if bytes.first() != Some(&START) {
        return Begins::Nothing;
    }
    match bytes.get(7) {
        None => return Begins::Begun { certain: false },
        Some(&START) => {}
        Some(_) => return Begins::Nothing,
    }
    let data = match bytes.get(9) {
        None => return Begins::Begun { certain: true },
        Some(&data) if usize::from(data) > MAX_DATA => return Begins::Nothing,
        Some(&data) => usize::from(data),
    };
    let length = FRAME_CHARS + data;
    let (Some(whole), Some(address)) = (bytes.get(..length), bytes.get(1..).and_then(|b| b.first_chunk()))
    else {
        return Begins::Begun { certain: true };
    };
    let Some((body, &[sum, end])) = whole.split_last_chunk() else { return Begins::Nothing };
    let expected = checksum(body);
    if sum != expected {
        let detail = format!("checksum {sum:02X} came, {expected:02X} was expected");
        return Begins::Spoilt { length, detail };
    }
    if end != END {
        return Begins::Spoilt { length, detail: format!("end byte {end:02X} came, {END:02X} was expected") };
    }
    let control = body.get(8).copied().unwrap_or_default();
    let fields = body.get(10..).unwrap_or_default().iter().map(|byte| byte.wrapping_sub(OFFSET)).collect();
    Begins::Whole { length, frame: Frame { address: Address(*address), control, fields } }
}

/// The first frame in these bytes, and where it ends; for the meter's side too.
pub fn first_frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    (0..bytes.len()).find_map(|at| match begins_at(bytes.get(at..)?) {
        Begins::Whole { length, frame } => Some((frame, at + length)),
        _ => None,
    })
}

/// Finds the reply to `request` in what was `received` since it was sent. Passed over are leading FE and noise, an echo
/// of the request, one start byte too many, the rest of an earlier frame, and sound frames that answer something else.
///
/// A frame ends where its length says, never at a 16H. A spoilt frame is known to be damaged at its last byte.
pub fn find(request: &[u8], received: &[u8]) -> Found {
    let Some((asked, _)) = first_frame(request) else { return Found::Damaged };
    let seen = Seen::of(&asked, received);
    match seen.reply {
        Some(range) => Found::Frame(range),
        None if seen.damage.is_some() && !seen.begun => Found::Damaged,
        None => Found::Incomplete,
    }
}

/// What is wrong with bytes that hold no reply to `request`. `None`: an echo, or nothing that looks like a frame.
pub fn fault(request: &[u8], received: &[u8]) -> Option<String> {
    let (asked, _) = first_frame(request)?;
    let seen = Seen::of(&asked, received);
    let stopped = || format!("the reply stopped after {} bytes", received.len());
    seen.damage.or(seen.other).or_else(|| seen.certain.then(stopped))
}

/// What the bytes received hold.
#[derive(Default)]
struct Seen {
    /// Where the reply is.
    reply: Option<Range<usize>>,
    /// What is wrong with the last spoilt frame.
    damage: Option<String>,
    /// What the last sound frame is that answers something else.
    other: Option<String>,
    /// Whether a frame may have begun, and whether it has for certain.
    begun: bool,
    certain: bool,
}

impl Seen {
    fn of(asked: &Frame, received: &[u8]) -> Seen {
        let mut seen = Seen::default();
        // The last byte of the last spoilt frame: what only perhaps begins before it does not make it worth waiting.
        // With bytes missing, that one is the start of the next frame.
        let mut spoilt_to = 0;
        let mut at = 0;
        while at < received.len() {
            match begins_at(received.get(at..).unwrap_or_default()) {
                Begins::Nothing => {}
                Begins::Begun { certain } => {
                    seen.begun |= certain || at >= spoilt_to;
                    seen.certain |= certain;
                }
                Begins::Spoilt { length, detail } => {
                    seen.damage = Some(detail);
                    spoilt_to = spoilt_to.max(at + length - 1);
                }
                Begins::Whole { length, frame } => {
                    match other_than(asked, &frame) {
                        None => {
                            seen.reply = Some(at..at + length);
                            return seen;
                        }
                        // An echo says nothing of the reply.
                        Some(other) if frame.control & FROM_METER != 0 => seen.other = Some(other),
                        Some(_) => {}
                    }
                    // A sound frame is one: nothing begins inside it.
                    at += length;
                    continue;
                }
            }
            at += 1;
        }
        seen
    }
}

/// Why a sound frame does not answer what was `asked`; `None` when it does, be it without what was asked for.
fn other_than(asked: &Frame, seen: &Frame) -> Option<String> {
    if seen.control & FROM_METER == 0 {
        return Some("a request came, a reply was expected".into());
    }
    if !asked.address.matches(seen.address) {
        return Some(format!("meter {} answered, {} was asked", seen.address, asked.address));
    }
    let function = asked.control & FUNCTION;
    if seen.control & FUNCTION != function {
        return Some(format!("control code {:02X} came, function {function:02X} was asked", seen.control));
    }
    let width = identifier_bytes(function);
    let (Some(identifier), Some(expected)) = (seen.fields.get(..width), asked.fields.get(..width)) else {
        return None; // an error word, or nothing
    };
    if identifier != expected {
        let (identifier, expected) = (digits(identifier.iter().rev()), digits(expected.iter().rev()));
        return Some(format!("identifier {identifier} came, {expected} was asked"));
    }
    let number = seen.fields.get(width..).and_then(<[u8]>::last);
    if function == READ_FOLLOWING && number != asked.fields.get(width) {
        let number = number.map_or("without a number".to_owned(), ToString::to_string);
        let expected = asked.fields.get(width).map_or(0, |number| *number);
        return Some(format!("follow-up frame {number} came, {expected} was asked"));
    }
    None
}

/// The error word as a refusal. What a read cannot be refused for passes by itself.
pub fn refusal(word: u8) -> Refusal {
    const NO_DATA: u8 = 0x02;
    const NOT_ALLOWED: u8 = 0x04;
    let text = match word {
        0 => "no reason given",
        0x01 => "other error",
        0x02 => "no such data",
        0x04 => "wrong password or not allowed",
        0x06 => "no such data, wrong password or not allowed",
        0x08 => "the baud rate cannot be changed",
        0x10 => "too many year zones",
        0x20 => "too many day periods",
        0x40 => "too many rates",
        _ if word & NO_DATA != 0 => "no such data, and more",
        _ if word & NOT_ALLOWED != 0 => "wrong password or not allowed, and more",
        _ => "several errors",
    };
    let transient = word & (NO_DATA | NOT_ALLOWED) == 0;
    Refusal { code: word, text, transient, parts_may_pass: word & NO_DATA != 0 }
}

fn is_bcd(byte: u8) -> bool {
    byte >> 4 < 10 && byte & 0x0F < 10
}

fn digits<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    use fmt::Write as _;
    bytes.fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02X}"); // writing to a String cannot fail
        text
    })
}

fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
