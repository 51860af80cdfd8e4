//! What the outside may know about a bus and its meters: counts, the state of the line, and why a meter has no value.

use std::{collections::BTreeSet, time::Duration};

use super::{line::Trace, schedule::Patience};
use crate::{
    model::{MeterId, Origin, Reading, Utc, Verdict, flag},
    profile::Profile,
};

/// One bus.
#[derive(Debug, Clone, Default)]
pub struct BusHealth {
    /// The line is open.
    pub up: bool,
    /// Why it is not.
    pub fault: Option<String>,
    /// What it looks like while nobody answers.
    pub looks_like: Option<&'static str>,
    /// Since when `up` or `fault` holds.
    pub since: Option<Utc>,
    /// Exchanges by outcome.
    pub answered: u64,
    /// See `answered`.
    pub silent: u64,
    /// See `answered`.
    pub garbled: u64,
    /// See `answered`.
    pub refused: u64,
    /// Time spent in exchanges.
    pub busy: Duration,
    /// Counts every turn of the loop: whoever supervises sees that it moves.
    pub progress: u64,
    /// The last frames.
    pub trace: Trace,
    /// By position on the bus.
    pub meters: Vec<MeterHealth>,
}

/// One meter.
#[derive(Debug, Clone)]
pub struct MeterHealth {
    /// Which.
    pub id: MeterId,
    /// Last exchange that brought what was asked for. A refusal is none, nor is a request that is held back.
    pub last_answer: Option<Utc>,
    /// Sweeps without an answer since.
    pub failures: u64,
    /// Probed more seldom.
    pub backed_off: bool,
    /// Time of its slowest answer, for choosing a timeout.
    pub slowest: Duration,
    /// An answer came too late: its delay. The timeout is too short.
    pub late: Option<Duration>,
    /// How long it is waited for, and its usual time.
    pub patience: Patience,
    /// What its replies look like, where something is wrong with them.
    pub suspicion: Option<&'static str>,
    /// How its last slot ended.
    pub slot: Option<EndedSlot>,
    /// When its register was last read in a slot.
    pub last_value: Option<Utc>,
    /// The slot that comes next; in the past while it is being read.
    pub next_slot: Option<Utc>,
    /// When it, or a request that it refused, is asked again.
    pub held_until: Option<Utc>,
}

impl MeterHealth {
    /// Nothing is known yet.
    pub fn new(id: MeterId, timeout: Duration, next_slot: Option<Utc>) -> MeterHealth {
        MeterHealth {
            id,
            last_answer: None,
            failures: 0,
            backed_off: false,
            slowest: Duration::ZERO,
            late: None,
            suspicion: None,
            patience: Patience::new(timeout),
            slot: None,
            last_value: None,
            next_slot,
            held_until: None,
        }
    }
}

/// How a slot ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedSlot {
    /// The slot.
    pub scheduled_at: Utc,
    /// As in the reading.
    pub taken_at: Option<Utc>,
    /// As in the reading.
    pub verdict: Verdict,
    /// As in the reading.
    pub flags: BTreeSet<String>,
    /// Why none of its registers has a value.
    pub no_value: Option<NoValue>,
}

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoValue {
    /// The name of a flag, or what the profile says of such words.
    pub reason: String,
    /// What was seen.
    pub detail: Option<String>,
}

/// What may keep a whole reading from coming, the most telling first.
const CAUSES: [&str; 6] =
    [flag::BUS_DOWN, flag::BACKED_OFF, flag::BUS_OVERRUN, flag::REFUSED, flag::GARBLED, flag::NO_ANSWER];

impl EndedSlot {
    /// What this reading comes to after the slot before it.
    pub fn of(reading: &Reading, profile: &Profile, before: Option<&EndedSlot>) -> EndedSlot {
        let mut no_value = no_value(reading, profile);
        // A slot that was not asked has no reason of its own: what was wrong at the last question still is.
        let before = before.and_then(|slot| slot.no_value.clone());
        if let (Some(now), Some(before)) = (&mut no_value, before)
            && now.reason == flag::BACKED_OFF
            && [flag::NO_ANSWER, flag::GARBLED].contains(&before.reason.as_str())
        {
            *now = before;
        }
        EndedSlot {
            scheduled_at: reading.scheduled_at,
            taken_at: reading.taken_at,
            verdict: reading.verdict,
            flags: reading.flags.clone(),
            no_value,
        }
    }
}

fn no_value(reading: &Reading, profile: &Profile) -> Option<NoValue> {
    let registers = profile.points.iter().filter(|point| point.register.is_some());
    let mut values = registers.filter_map(|point| reading.values.get(&point.name)).peekable();
    let of_register = values.peek().and_then(|value| value.reason.clone());
    if reading.origin != Origin::Missing && values.any(|value| value.value.is_some()) {
        return None;
    }
    let cause = CAUSES.into_iter().find(|cause| reading.flags.contains(*cause)).map(str::to_owned);
    let reason = of_register.or(cause).unwrap_or_else(|| flag::NOT_AVAILABLE.to_owned());
    let detail = reading.evidence.get(&reason).and_then(|seen| seen.as_str()).map(str::to_owned);
    Some(NoValue { reason, detail })
}
