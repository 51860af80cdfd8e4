//! DL/T 645-2007 reads: addresses, request and reply frames, follow-up frames, the meter's "no".
//!
//! Knows functions 11H (read data), 12H (read what follows) and 13H (read the address) only: no function that writes,
//! switches or sets a clock can be expressed here. Knows nothing of what a value means. Clauses are those of
//! DL/T 645-2007.
//!
//! 645-1997 has the same frame, functions 01H to 03H and identifiers of two bytes: how wide an identifier is follows
//! from the function (`identifier_bytes`), nothing else here counts on four.

use std::{fmt, str::FromStr, time::Duration};

use super::Refusal;

/// Most data bytes of a reply to a read (5.2.5): a greater length is noise.
pub const MAX_DATA: usize = 200;
/// Sent before each request, so that a meter's receiver is awake (5.2.1).
pub const WAKE_UP: [u8; 4] = [0xFE; 4];
/// The longest pause between two bytes of a frame, and for so long a meter that heard the beginning of one waits for its
/// rest (5.4.3). Also the longest that a meter may take to answer (5.4.2).
pub const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Follow-up frames of one reading: with the longest frames these are 3 kB, ten times the longest block known.
pub const MAX_FOLLOW_UPS: u8 = 15;

/// The characters of a frame besides its data: two starts, six of the address, control, length, checksum, end.
const FRAME_CHARS: usize = 12;
const START: u8 = 0x68;
const END: u8 = 0x16;
/// Added to each data byte on the wire (5.2.6).
const OFFSET: u8 = 0x33;
/// A byte of an address that stands for any (5.2.3).
const ANY: u8 = 0xAA;
/// Control code (5.2.4).
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
    },
    /// The meter's own address (13H).
    Address,
}

impl Read {
    /// The first request for that identifier.
    pub fn data(identifier: Identifier) -> Read {
        Read::Data { identifier, follow_up: None }
    }

    /// Characters of the request, with the bytes that wake the meter.
    pub fn request_chars(&self) -> usize {
        WAKE_UP.len() + FRAME_CHARS + self.fields().1.len()
    }

    /// Characters of a reply with so many bytes of data behind the identifier, with as many leading FE as is usual.
    pub fn reply_chars(&self, data: usize) -> usize {
        let (function, fields) = self.fields();
        let own = if function == READ_ADDRESS { 6 } else { fields.len() + data };
        WAKE_UP.len() + FRAME_CHARS + own
    }

    /// Function code, and the data field without the offset.
    fn fields(&self) -> (u8, Vec<u8>) {
        match self {
            Read::Address => (READ_ADDRESS, Vec::new()),
            Read::Data { identifier, follow_up: None } => (READ_DATA, identifier.to_wire().to_vec()),
            Read::Data { identifier, follow_up: Some(number) } => {
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
enum Found {
    /// No frame.
    Nothing,
    /// Perhaps a frame: `certain` once both starts are there.
    Begun { certain: bool },
    /// As long as its length says, and spoilt.
    Spoilt { length: usize, detail: String },
    /// A frame of so many bytes.
    Whole { length: usize, frame: Frame },
}

fn found_at(bytes: &[u8]) -> Found {
    if bytes.first() != Some(&START) {
        return Found::Nothing;
    }
    match bytes.get(7) {
        None => return Found::Begun { certain: false },
        Some(&START) => {}
        Some(_) => return Found::Nothing,
    }
    let data = match bytes.get(9) {
        None => return Found::Begun { certain: true },
        Some(&data) if usize::from(data) > MAX_DATA => return Found::Nothing,
        Some(&data) => usize::from(data),
    };
    let length = FRAME_CHARS + data;
    let (Some(whole), Some(address)) = (bytes.get(..length), bytes.get(1..).and_then(|b| b.first_chunk()))
    else {
        return Found::Begun { certain: true };
    };
    let Some((body, &[sum, end])) = whole.split_last_chunk() else { return Found::Nothing };
    let expected = checksum(body);
    if sum != expected {
        let detail = format!("checksum {sum:02X} came, {expected:02X} was expected");
        return Found::Spoilt { length, detail };
    }
    if end != END {
        return Found::Spoilt { length, detail: format!("end byte {end:02X} came, {END:02X} was expected") };
    }
    let control = body.get(8).copied().unwrap_or_default();
    let fields = body.get(10..).unwrap_or_default().iter().map(|byte| byte.wrapping_sub(OFFSET)).collect();
    Found::Whole { length, frame: Frame { address: Address(*address), control, fields } }
}

/// The first frame in these bytes, and where it ends; for the meter's side too.
pub fn first_frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    (0..bytes.len()).find_map(|at| match found_at(bytes.get(at..)?) {
        Found::Whole { length, frame } => Some((frame, at + length)),
        _ => None,
    })
}

/// What the bytes that followed a request amount to so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Framing {
    /// Not yet a whole reply.
    Incomplete,
    /// The reply is these bytes.
    Frame(std::ops::Range<usize>),
    /// As much as a reply has, or more, and it is none: what is wrong with it.
    Unfit(String),
}

/// Finds the reply to `request` in what was `received` since it was sent. Passed over are leading FE and noise, an echo
/// of the request, one start byte too many, the rest of an earlier frame, and sound frames that answer something else.
///
/// A frame ends where its length says, never at a 16H. A frame of full length that is spoilt is unfit at its last byte.
pub fn find(request: &[u8], received: &[u8]) -> Framing {
    let Some((asked, _)) = first_frame(request) else {
        return Framing::Unfit("the request is not a DL/T 645 read".into());
    };
    let mut unfit = None;
    let mut begun = false;
    // The last byte of the last spoilt frame: what only perhaps begins before it does not make it worth waiting. With bytes
    // missing, that one is the start of the next frame.
    let mut spoilt_to = 0;
    let mut at = 0;
    while at < received.len() {
        match found_at(received.get(at..).unwrap_or_default()) {
            Found::Nothing => {}
            Found::Begun { certain } => begun |= certain || at >= spoilt_to,
            Found::Spoilt { length, detail } => {
                unfit = Some(detail);
                spoilt_to = spoilt_to.max(at + length - 1);
            }
            Found::Whole { length, frame } => {
                match other_than(&asked, &frame) {
                    None => return Framing::Frame(at..at + length),
                    // An echo says nothing of the reply.
                    Some(detail) if frame.control & FROM_METER != 0 => unfit = Some(detail),
                    Some(_) => {}
                }
                // A sound frame is one: nothing begins inside it.
                at += length;
                continue;
            }
        }
        at += 1;
    }
    match unfit {
        Some(detail) if !begun => Framing::Unfit(detail),
        _ => Framing::Incomplete,
    }
}

/// Why a sound frame does not answer what was `asked`; `None` when it does.
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
    if seen.control & ABNORMAL != 0 {
        return seen.fields.is_empty().then(|| "a refusal without its error word".into());
    }
    if function == READ_ADDRESS {
        let length = seen.fields.len();
        return (length != 6).then(|| format!("an address of {length} bytes came, 6 were expected"));
    }
    let width = identifier_bytes(function);
    let Some(identifier) = seen.fields.get(..width) else {
        return Some(format!("a reply of {} data bytes came, without an identifier", seen.fields.len()));
    };
    let expected = asked.fields.get(..width).unwrap_or_default();
    if identifier != expected {
        let (identifier, expected) = (digits(identifier.iter().rev()), digits(expected.iter().rev()));
        return Some(format!("identifier {identifier} came, {expected} was asked"));
    }
    if function == READ_FOLLOWING {
        let expected = asked.fields.get(width);
        let number = seen.fields.get(width..).and_then(<[u8]>::last);
        if number != expected {
            let text = |number: Option<&u8>| number.map_or("none".to_owned(), ToString::to_string);
            let (number, expected) = (text(number), text(expected));
            return Some(format!("follow-up frame {number} came, {expected} was asked"));
        }
    }
    None
}

/// What a reply says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Data.
    Data {
        /// Who answered: after a wildcard this is news.
        from: Address,
        /// Without identifier, number and offset, as they came: the lowest byte of each value first.
        data: Vec<u8>,
        /// Whether the meter has more of it, to be asked for with 12H.
        more: bool,
    },
    /// A meter's own address. Some say it in the data alone and speak as `AA…AA`.
    Address(Address),
    /// The meter will not.
    Refused(Refusal),
}

/// Takes a frame apart that [`find`] found to be the reply to `read`; `None` when it is none.
pub fn decode(read: &Read, bytes: &[u8]) -> Option<Reply> {
    let (Frame { address, control, fields }, _) = first_frame(bytes)?;
    let (function, _) = read.fields();
    if control & FROM_METER == 0 || control & FUNCTION != function {
        return None;
    }
    if control & ABNORMAL != 0 {
        return Some(Reply::Refused(refusal(*fields.first()?)));
    }
    if *read == Read::Address {
        return Some(Reply::Address(Address(fields.try_into().ok()?)));
    }
    let data = fields.get(identifier_bytes(function)..)?;
    let data = match function {
        READ_FOLLOWING => data.split_last()?.1,
        _ => data,
    };
    Some(Reply::Data { from: address, data: data.to_vec(), more: control & MORE_FOLLOWS != 0 })
}

/// The frames of one answer, put together: ask for [`Gather::read`], hand each reply over, until there is an answer.
#[derive(Debug, Clone)]
pub struct Gather {
    read: Read,
    data: Vec<u8>,
}

/// What a reply leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Something is missing: ask for [`Gather::read`] next.
    Next,
    /// The whole answer.
    Done(Reply),
    /// The answer cannot be put together: what is wrong with it.
    Unfit(String),
}

impl Gather {
    /// Begins with this request.
    pub fn new(read: Read) -> Gather {
        Gather { read, data: Vec::new() }
    }

    /// What is to be asked now.
    pub fn read(&self) -> &Read {
        &self.read
    }

    /// Takes the reply to [`Gather::read`]. A follow-up frame that is refused spoils the whole: half a block is no answer.
    pub fn take(&mut self, reply: Reply) -> Step {
        let (Reply::Data { from, data, more }, Read::Data { identifier, follow_up }) =
            (reply.clone(), self.read)
        else {
            return Step::Done(reply);
        };
        self.data.extend(data);
        if !more {
            return Step::Done(Reply::Data { from, data: std::mem::take(&mut self.data), more });
        }
        let next = follow_up.unwrap_or(0) + 1;
        if next > MAX_FOLLOW_UPS {
            return Step::Unfit(format!("more than {MAX_FOLLOW_UPS} follow-up frames of {identifier}"));
        }
        self.read = Read::Data { identifier, follow_up: Some(next) };
        Step::Next
    }
}

/// The error word (annex C) as a refusal. What a read cannot be refused for passes by itself.
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
    Refusal { code: word, text, transient: word & (NO_DATA | NOT_ALLOWED) == 0 }
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
