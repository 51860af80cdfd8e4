//! What can be asked of a bus, and what comes of it: values only.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    bus::line::Query,
    model::{MeterId, Slots, Utc},
    profile::{Planned, SharedProfile},
    protocol::{Address, Outcome, Question, Wire},
};

/// The time, twice: durations run on one, slots on the other.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub instant: Instant,
    /// Wall clock.
    pub wall: Utc,
}

/// One meter as the bus sees it.
#[derive(Debug, Clone)]
pub struct MeterPlan {
    /// The metered place.
    pub id: MeterId,
    /// Where it answers.
    pub address: Address,
    /// Line settings where they differ from the bus's.
    pub wire: Option<Wire>,
    /// Its type.
    pub profile: SharedProfile,
    /// The planned requests.
    pub requests: Vec<Planned>,
    /// `None`: as fast as the bus allows.
    pub slots: Option<Slots>,
    /// How long it may take to answer, at most.
    pub timeout: Duration,
    /// How often a silent or garbled question is asked again.
    pub retries: u8,
    /// The first slot: nothing before it is asked.
    pub first_slot: Option<Utc>,
}

/// Why something is asked. Earlier ones go first; the quotas between them are in [`super::Schedule`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A read for the end of a billing period.
    Boundary,
    /// The second look at a register that surprised.
    Confirmation,
    /// A scheduled reading.
    Slot,
    /// Somebody waits for it.
    Demand,
    /// A search for meters.
    Scan,
    /// What can wait.
    Housekeeping,
}

/// Who is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// A meter, by its position on this bus.
    Meter(usize),
    /// Whoever answers there.
    Bare {
        /// Where.
        address: Address,
        /// Line settings where they differ from the bus's.
        wire: Option<Wire>,
        /// How long it may take to answer.
        timeout: Duration,
        /// What is asked.
        question: Question,
    },
}

/// Something to be asked beside the slots.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Who.
    pub target: Target,
    /// Why.
    pub class: Class,
    /// Not to be begun any more after this.
    pub deadline: Option<Instant>,
    /// Recorded like a scheduled reading, or only told to who asked.
    pub keep: bool,
}

/// Tells one request from another, on one bus.
pub type Ticket = u64;

/// Why one exchange of a sweep is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskKind {
    /// For points.
    Points,
    /// For the device's serial number.
    Serial,
}

/// One request of a sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// The question and the points it carries (indexes into the profile).
    pub planned: Planned,
    /// Why.
    pub kind: AskKind,
}

/// One request and how it ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The request.
    pub ask: Ask,
    /// How its last attempt ended.
    pub outcome: Outcome,
}

/// Why a slot was not asked at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// The meter is silent and probed more seldom.
    BackedOff,
    /// The bus had no time before the next slot came.
    Overrun,
    /// The line was away.
    LineDown,
}

/// All exchanges with one meter in one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// Position of the meter on this bus.
    pub meter: usize,
    /// The slot (for a request: when it began).
    pub scheduled_at: Utc,
    /// What it was for.
    pub class: Class,
    /// Whose request it was; `None` for the bus's own slots.
    pub ticket: Option<Ticket>,
    /// Whether the reading is recorded.
    pub keep: bool,
    /// The exchanges in order; empty when it was skipped.
    pub asked: Vec<Asked>,
    /// Why nothing was asked.
    pub skipped: Option<Skipped>,
}

impl Sweep {
    /// A scheduled reading of which nothing was asked yet.
    pub fn of_slot(meter: usize, slot: Utc) -> Sweep {
        Sweep {
            meter,
            scheduled_at: slot,
            class: Class::Slot,
            ticket: None,
            keep: true,
            asked: Vec::new(),
            skipped: None,
        }
    }

    /// That these points of it are to be read again.
    pub fn surprise(&self, points: Vec<usize>) -> Surprise {
        Surprise { meter: self.meter, ticket: self.ticket, keep: self.keep, points }
    }
}

/// What a sweep has brought that is to be read again before it is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surprise {
    /// As in the sweep.
    pub meter: usize,
    /// As in the sweep.
    pub ticket: Option<Ticket>,
    /// As in the sweep.
    pub keep: bool,
    /// Indexes into the profile.
    pub points: Vec<usize>,
}

/// One exchange to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Position of the meter on this bus; `None` for a bare address.
    pub meter: Option<usize>,
    /// What to ask, of whom, and for how long.
    pub query: Query,
}

/// What the bus should do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make this exchange and report its outcome.
    Exchange(Exchange),
    /// Nothing is due for so long (at most).
    Wait(Duration),
}

/// What comes next for a meter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Its next slot; in the past while it waits for its turn.
    pub next_slot: Option<Utc>,
    /// When it is asked again, where it, or a request that it refused, is held back.
    pub asked_again: Option<Utc>,
}
