//! What converters do beside passing frames on: they close, prefix, trail, refuse, renumber and flood.
//!
//! Knows bytes and times, not connections: the line acts on it and counts what has occurred.

use std::{collections::BTreeMap, time::Duration};

/// One habit of a converter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Closes a connection on which nothing was asked for so long.
    ClosesWhenIdle {
        /// After the last request, or after it was opened.
        after: Duration,
        /// With RST instead of FIN.
        reset: bool,
    },
    /// Connections that are open when it begins carry nothing any more; new ones do.
    DropsOut,
    /// Sends these bytes before each RTU frame.
    Leads(&'static [u8]),
    /// Sends three zeros so long after each RTU frame.
    Trails(Duration),
    /// Refuses the next request with this exception code, once.
    RefusesOnce(u8),
    /// Answers each request under the next transaction number.
    Renumbers,
    /// Sends without end, once it was asked.
    Floods,
}

impl Habit {
    /// Under which its occurrences are counted.
    pub fn name(&self) -> &'static str {
        match self {
            Habit::ClosesWhenIdle { reset: false, .. } => "idle connection closed",
            Habit::ClosesWhenIdle { reset: true, .. } => "idle connection reset",
            Habit::DropsOut => "request on a dead connection",
            Habit::Leads(_) => "bytes before a frame",
            Habit::Trails(_) => "bytes behind a frame",
            Habit::RefusesOnce(_) => "refused once",
            Habit::Renumbers => "other transaction number",
            Habit::Floods => "flood",
        }
    }

    /// Whether every reading can be had all the same.
    pub fn costs_nothing(&self) -> bool {
        match self {
            Habit::ClosesWhenIdle { .. } | Habit::Leads(_) | Habit::Trails(_) => true,
            Habit::DropsOut | Habit::RefusesOnce(_) | Habit::Renumbers | Habit::Floods => false,
        }
    }
}

/// How often each has occurred.
pub type Occurred = BTreeMap<&'static str, u64>;
