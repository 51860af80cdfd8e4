//! What the schedule remembers of one meter: its requests and refusals, its silences, its pauses.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::{
    patience::Patience,
    request::{Ask, AskKind, MeterPlan, Now, Outlook},
};
use crate::{
    model::Utc,
    profile::{Planned, serial_question, split},
    protocol::{Outcome, Refusal},
};

/// Sweeps without any answer after which a meter with slots is probed more seldom.
pub(super) const BACK_OFF_AFTER: u32 = 3;
/// First pause of a silent meter; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a meter that comes back is noticed within five minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The same refusal in a row, from which on it is one for good. Converters and meters refuse at times what they answer at
/// others.
const REFUSED_FOR_GOOD: u32 = 3;
/// A refusal for good (wrong address, wrong function) is a fault of profile or meter: asked again hourly.
const REFUSED_PAUSE: Duration = Duration::from_secs(3600);
/// The serial number is read at start and once a day.
const SERIAL_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// A serial number that did not come is asked for again after so long.
const SERIAL_AGAIN: Duration = Duration::from_secs(60);

pub(super) struct MeterState {
    pub(super) plan: MeterPlan,
    requests: Vec<Held>,
    pub(super) next_slot: Option<Utc>,
    /// The latest slot that has or will have a record: no slot up to it is ever scheduled again.
    pub(super) highest: Option<Utc>,
    pub(super) due: Option<Utc>,
    pub(super) failures: u32,
    pub(super) paused_until: Option<Instant>,
    serial_after: Option<Instant>,
    pub(super) last_turn: u64,
    /// Passes over the meters without slots in which it had its turn.
    pub(super) round: u64,
    pub(super) patience: Patience,
}

/// A planned request, and the refusals that keep it from being asked.
struct Held {
    planned: Planned,
    answered: bool,
    refusals: u32,
    refused: Option<(Outcome, Instant)>,
}

impl Held {
    fn new(planned: Planned) -> Held {
        Held { planned, answered: false, refusals: 0, refused: None }
    }
}

impl MeterState {
    pub(super) fn new(plan: MeterPlan, now: Now) -> MeterState {
        MeterState {
            requests: plan.requests.iter().cloned().map(Held::new).collect(),
            next_slot: plan.slots.map(|slots| plan.first_slot.unwrap_or_else(|| slots.next_after(now.wall))),
            highest: None,
            due: None,
            failures: 0,
            paused_until: None,
            serial_after: None,
            last_turn: 0,
            round: 0,
            patience: Patience::new(plan.timeout),
            plan,
        }
    }

    /// Everything that a whole sweep asks.
    pub(super) fn asks(&self, now: Now) -> VecDeque<Ask> {
        let points = |held: &Held| Ask { planned: held.planned.clone(), kind: AskKind::Points };
        let serial = self.serial_after.is_none_or(|after| after <= now.instant);
        let serial = serial.then(|| serial_question(&self.plan.profile)).flatten();
        let serial = serial
            .map(|question| Ask { planned: Planned { question, points: Vec::new() }, kind: AskKind::Serial });
        self.requests.iter().map(points).chain(serial).collect()
    }

    /// What brings these points.
    pub(super) fn asks_for(&self, points: &[usize]) -> VecDeque<Ask> {
        let brings = |held: &&Held| held.planned.points.iter().any(|point| points.contains(point));
        let asks = self.requests.iter().filter(brings);
        asks.map(|held| Ask { planned: held.planned.clone(), kind: AskKind::Points }).collect()
    }

    /// The refusal that keeps a request from being asked now.
    pub(super) fn held_back(&self, planned: &Planned, now: Now) -> Option<&Outcome> {
        let held = self.requests.iter().find(|held| held.planned == *planned)?;
        held.refused.as_ref().filter(|(_, until)| now.instant < *until).map(|(outcome, _)| outcome)
    }

    /// Takes note of how a request ended; what is to be asked instead of one that was refused for good.
    pub(super) fn note(&mut self, ask: &Ask, outcome: &Outcome, now: Now) -> Vec<Planned> {
        if let Outcome::Answered { elapsed, .. } = outcome {
            self.patience.note(*elapsed);
        }
        match (ask.kind, outcome) {
            (AskKind::Points, Outcome::Answered { .. }) => {
                if let Some(held) = self.requests.iter_mut().find(|held| held.planned == ask.planned) {
                    (held.answered, held.refusals, held.refused) = (true, 0, None);
                }
            }
            (AskKind::Points, Outcome::Refused(refusal)) if !refusal.transient => {
                return self.note_refusal(&ask.planned, outcome, refusal, now);
            }
            (AskKind::Serial, Outcome::Answered { .. } | Outcome::Refused(_)) => {
                self.serial_after = Some(now.instant + SERIAL_PAUSE);
            }
            // A number that is not compared with a configured one is not worth a timeout in each sweep.
            (AskKind::Serial, Outcome::Silent { .. } | Outcome::Garbled { .. }) => {
                self.serial_after = Some(now.instant + SERIAL_AGAIN);
            }
            _ => {}
        }
        Vec::new()
    }

    /// A block that was never answered is asked in parts. What was answered before, and what has no parts, is asked again in
    /// the next sweeps, and more seldom only after several refusals in a row.
    fn note_refusal(
        &mut self,
        planned: &Planned,
        outcome: &Outcome,
        refusal: &Refusal,
        now: Now,
    ) -> Vec<Planned> {
        let Some(at) = self.requests.iter().position(|held| held.planned == *planned) else {
            return Vec::new();
        };
        let Some(held) = self.requests.get_mut(at) else { return Vec::new() };
        held.refusals = held.refusals.saturating_add(1);
        let for_good = held.refusals >= REFUSED_FOR_GOOD;
        if held.answered && !for_good {
            return Vec::new();
        }
        let parts = split(planned, &self.plan.profile);
        if parts.len() > 1 && refusal.parts_may_pass {
            self.requests.splice(at..=at, parts.iter().cloned().map(Held::new));
            return parts;
        }
        if for_good {
            held.refused = Some((outcome.clone(), now.instant + REFUSED_PAUSE));
        }
        Vec::new()
    }

    /// A sweep has brought an answer, or none.
    pub(super) fn note_sweep(&mut self, heard: bool, round: Duration, now: Now) {
        if heard {
            (self.failures, self.paused_until) = (0, None);
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if let Some(doublings) = self.failures.checked_sub(self.pauses_after()) {
            // Without slots the first is longer than a pass over all meters.
            let first = if self.plan.slots.is_some() { FIRST_PAUSE } else { FIRST_PAUSE.max(round * 2) };
            let pause = first.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE);
            self.paused_until = Some(now.instant + pause);
        }
    }

    /// Sweeps without an answer after which it pauses. A meter without slots has none to lose by a pause.
    fn pauses_after(&self) -> u32 {
        if self.plan.slots.is_some() { BACK_OFF_AFTER } else { 1 }
    }

    /// Whether it is only looked for: one request, once.
    pub(super) fn is_probed(&self) -> bool {
        self.failures >= self.pauses_after()
    }

    pub(super) fn is_paused(&self, now: Now) -> bool {
        self.paused_until.is_some_and(|until| now.instant < until)
    }

    pub(super) fn outlook(&self, now: Now) -> Outlook {
        let refused =
            || self.requests.iter().filter_map(|held| held.refused.as_ref()).map(|(_, until)| *until);
        let until = self.paused_until.or_else(|| refused().min()).filter(|until| now.instant < *until);
        let over = until
            .and_then(|until| chrono::TimeDelta::from_std(until - now.instant).ok())
            .map(|time| now.wall + time);
        // Between slots nobody is asked.
        let asked_again = match self.plan.slots {
            Some(slots) => over.map(|over| slots.next_after(over - chrono::TimeDelta::milliseconds(1))),
            None => over,
        };
        Outlook { next_slot: self.next_slot, asked_again }
    }
}
