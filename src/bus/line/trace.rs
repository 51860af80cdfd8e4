//! The last frames on a line, for whoever looks for a fault.

use std::collections::VecDeque;

use crate::{model::Utc, protocol::hex};

/// Frames kept: the last eight exchanges.
const TRACE_LEN: usize = 16;

/// Bytes that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// When.
    pub at: Utc,
    /// `>` sent, `<` the reply, `!` received and no reply.
    pub mark: char,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Traced {
    /// The bytes in hex.
    pub fn hex(&self) -> String {
        hex(&self.bytes)
    }
}

/// The last of them, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Trace(VecDeque<Traced>);

impl Trace {
    /// Adds what passed.
    pub fn extend(&mut self, frames: impl IntoIterator<Item = Traced>) {
        for frame in frames {
            if self.0.len() >= TRACE_LEN {
                self.0.pop_front();
            }
            self.0.push_back(frame);
        }
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Traced> {
        self.0.iter()
    }
}
