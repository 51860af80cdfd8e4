//! What is said on a line: requests, replies, timing, and the codecs. Bytes and times in, frames and outcomes out;
//! nothing here waits or opens.
//!
//! One file per protocol. A new one adds a variant to [`Address`], [`Question`] and [`Payload`], and its
//! [`Transaction`]; the line knows nothing else of it.

pub mod dlt645;
pub mod modbus;
mod wire;

use std::{fmt, ops::Range, time::Duration};

use crate::model::Utc;

pub use wire::{Pace, Parity, RETUNE_GUARD, Wire};

/// Where a meter answers, in its protocol's own terms. Never its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// Unit id, 0 to 255.
    Modbus(u8),
    /// Twelve digits.
    Dlt645(dlt645::Address),
}

impl From<u8> for Address {
    fn from(unit: u8) -> Address {
        Address::Modbus(unit)
    }
}

impl From<dlt645::Address> for Address {
    fn from(address: dlt645::Address) -> Address {
        Address::Dlt645(address)
    }
}

impl Address {
    /// As configurations have it.
    pub fn plain(self) -> String {
        match self {
            Address::Modbus(unit) => unit.to_string(),
            Address::Dlt645(address) => address.to_string(),
        }
    }

    /// Whether a request to one of them may be answered by the other.
    pub fn overlaps(self, other: Address) -> bool {
        match (self, other) {
            (Address::Dlt645(one), Address::Dlt645(other)) => one.overlaps(other),
            (one, other) => one == other,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Modbus(unit) => write!(f, "unit {unit}"),
            Address::Dlt645(address) => write!(f, "meter {address}"),
        }
    }
}

/// What is asked of one meter in one exchange.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Question {
    /// Read words over Modbus.
    Modbus(modbus::Read),
    /// Read data over DL/T 645-2007.
    Dlt645(dlt645::Read),
}

impl Question {
    /// The read, of a Modbus question.
    pub fn modbus(&self) -> Option<&modbus::Read> {
        match self {
            Question::Modbus(read) => Some(read),
            Question::Dlt645(_) => None,
        }
    }
}

/// What an answered question brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// As many words as were asked for.
    Words(Vec<u16>),
    /// Data of DL/T 645.
    Data {
        /// Who answered: after a wildcard this is news.
        from: dlt645::Address,
        /// The bytes behind the identifier, as they came: the lowest of each value first.
        bytes: Vec<u8>,
    },
}

/// What carries Modbus frames; other protocols have one form of frame and pass it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// RTU: address and CRC; replies do not say what they answer.
    Rtu,
    /// Modbus TCP: a header with a transaction number.
    Tcp,
}

/// One request as bytes, and how its reply is told from everything else that comes.
pub trait Transaction: fmt::Debug + Send + Sync {
    /// The bytes to send.
    fn request(&self) -> &[u8];

    /// What the bytes that came since it was sent amount to so far.
    fn find(&self, received: &[u8]) -> Found;

    /// How many bytes are lacking at least, while the reply is incomplete.
    fn lacking(&self, _received: &[u8]) -> usize {
        1
    }

    /// What is wrong with what came, when there is no reply. `None` where nothing worth a word came: an echo, a stray byte.
    fn fault(&self, received: &[u8]) -> Option<String>;

    /// What is to be set up otherwise, when what came are frames of another form than this one's.
    fn other_form(&self, _received: &[u8]) -> Option<&'static str> {
        None
    }

    /// Whether whole frames of this form are among what came, whoever sent them.
    fn holds_frames(&self, _received: &[u8]) -> bool {
        false
    }

    /// What a frame says that [`Transaction::find`] has found.
    fn decode(&self, frame: &[u8]) -> Reply;

    /// The request for the rest, where such a frame brings only a part of what was asked for.
    fn follow_up(&self, _frame: &[u8]) -> Option<Box<dyn Transaction>> {
        None
    }

    /// Characters of its reply, at most.
    fn reply_chars(&self) -> u32;

    /// The silence that precedes the request on a line of this pace.
    fn silence(&self, pace: &Pace) -> Duration;
}

/// What received bytes amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The reply may still come.
    Incomplete,
    /// The reply is these bytes; what stands before them is an echo, noise, or another's frame.
    Frame(Range<usize>),
    /// As many bytes as the reply has came, and they are no frame: it is damaged.
    Damaged,
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// What was asked for.
    Data(Payload),
    /// The meter will not.
    Refused(Refusal),
    /// A converter speaks for a meter behind it that did not answer.
    Nobody,
    /// It answers the request and cannot be used: what is wrong with it.
    Unfit(String),
}

/// The bytes of one request. `number` is the line's own count of requests, for protocols whose frames carry one. `None`
/// where address and question are of two protocols.
pub fn transaction(
    address: Address,
    question: &Question,
    envelope: Envelope,
    number: u16,
) -> Option<Box<dyn Transaction>> {
    match (address, question) {
        (Address::Modbus(unit), Question::Modbus(read)) => {
            Some(Box::new(modbus::ReadTransaction::new(unit, *read, envelope, number)))
        }
        (Address::Dlt645(address), Question::Dlt645(read)) => {
            Some(Box::new(dlt645::ReadTransaction::new(address, *read)))
        }
        (Address::Modbus(_), Question::Dlt645(_)) | (Address::Dlt645(_), Question::Modbus(_)) => None,
    }
}

/// How one exchange ended. A silent meter is an outcome, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The reply to this request.
    Answered {
        /// What it carried.
        payload: Payload,
        /// When its last byte arrived, by the wall clock.
        at: Utc,
        /// The meter's own time: from the end of the request to the last byte of the reply, less the time of the
        /// reply's characters on a serial line.
        elapsed: Duration,
    },
    /// Nothing came in time. `late` says how long after its request a reply of this meter came after all.
    Silent {
        /// Time from request to a reply that came too late to count.
        late: Option<Duration>,
    },
    /// Bytes came that are not the reply to this request: `detail` says what is wrong with them.
    Garbled {
        /// What was seen and what was expected.
        detail: String,
    },
    /// The meter answered that it will not.
    Refused(Refusal),
    /// The line itself is away (adapter unplugged, peer gone): no fault of the meter's.
    LineDown {
        /// The operating system's words.
        detail: String,
    },
}

/// A meter's "no".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The protocol's own code.
    pub code: u8,
    /// In words.
    pub text: &'static str,
    /// Worth asking again soon (busy), rather than a fault of profile or configuration.
    pub transient: bool,
    /// The cause may lie in a part of what was asked: the other parts may be answered.
    pub parts_may_pass: bool,
}

/// Bytes as they are written in manuals: `0x0103…`.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 });
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    text.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
    text
}
