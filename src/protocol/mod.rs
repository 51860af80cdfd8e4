//! What is said on a line: questions, outcomes, timing, and the codecs. Bytes and times in, frames and
//! verdicts out; nothing here waits or opens.
//!
//! Modbus is the first protocol of four: a new one adds a variant to [`Question`] and [`Payload`] and a codec.

pub mod dlt645;
pub mod modbus;
mod wire;

use std::time::Duration;

use crate::model::Utc;

pub use wire::{Pace, Parity, Wire};

/// What is asked of one meter in one exchange.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Question {
    /// Read words over Modbus.
    Modbus(modbus::Read),
}

/// What an answered question brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// As many words as were asked for.
    Words(Vec<u16>),
}

/// How one exchange ended. A silent meter is an outcome, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The answer to this question.
    Answered {
        /// What it carried.
        payload: Payload,
        /// When its last byte arrived, by the wall clock.
        at: Utc,
        /// From the end of the request to the last byte of the reply.
        elapsed: Duration,
    },
    /// Nothing came in time. `late` says how long after the request something came after all.
    Silent {
        /// Time from request to a reply that came too late to count.
        late: Option<Duration>,
    },
    /// Bytes came that are not an answer to this question: `detail` says what is wrong with them.
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
}
