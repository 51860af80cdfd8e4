//! Who is asked what, and when: the bus as a state machine. Waits for nothing, opens nothing, asks no time.
//!
//! One active sweep at a time. Demands come first, then slots, then meters that are read without pause. Meters
//! that failed last time come after all others, and a question that met silence is repeated only when nobody else is
//! waiting, so that the silence of one costs the others nothing.

use std::{collections::VecDeque, time::Duration};

use chrono::TimeDelta;
use tokio::time::Instant;

use crate::{
    model::{MeterId, Slots, Utc, stepped},
    profile::{Planned, SharedProfile, serial_question, split},
    protocol::{Address, Outcome, Wire},
};

use super::line::Query;

/// The time, twice: durations run on one, slots on the other.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic.
    pub instant: Instant,
    /// Wall clock.
    pub wall: Utc,
}

/// Sweeps without any answer after which a meter is probed more seldom.
const BACK_OFF_AFTER: u32 = 3;
/// First pause of a silent meter; it doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause: a meter that comes back is noticed within five minutes.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A refusal for good (wrong address, wrong function) is a fault of profile or meter: asked again hourly.
const REFUSED_PAUSE: Duration = Duration::from_secs(3600);
/// A reply that is too late is listened for at least so long, where nobody else waits.
const LEAST_LINGER: Duration = Duration::from_millis(200);
/// The serial number is read at start and once a day.
const SERIAL_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// One meter as the bus sees it.
#[derive(Debug, Clone)]
pub struct MeterPlan {
    /// The metered place.
    pub id: MeterId,
    /// Where it answers.
    pub address: Address,
    /// Its line settings where they differ from the bus's.
    pub wire: Option<Wire>,
    /// Its type.
    pub profile: SharedProfile,
    /// The planned requests.
    pub requests: Vec<Planned>,
    /// `None`: as fast as the bus allows.
    pub slots: Option<Slots>,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// How often a silent or garbled question is asked again.
    pub retries: u8,
    /// Whether the device's serial number is read.
    pub serial: bool,
    /// The first slot: nothing before it is asked.
    pub first_slot: Option<Utc>,
}

/// Why a request is made.
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

/// What a sweep was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A scheduled reading.
    Slot,
    /// The second look at a register that surprised.
    Again,
    /// Somebody asked; the number is theirs.
    Demand(u64),
}

/// All exchanges with one meter in one pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// Position of the meter on this bus.
    pub meter: usize,
    /// The slot (for a demand: when it began).
    pub scheduled_at: Utc,
    /// What it was for.
    pub purpose: Purpose,
    /// The exchanges in order; empty when it was skipped.
    pub asked: Vec<Asked>,
    /// Why nothing was asked.
    pub skipped: Option<Skipped>,
}

/// Somebody wants a meter read now.
#[derive(Debug, Clone)]
pub struct Demand {
    /// Position of the meter on this bus.
    pub meter: usize,
    /// Theirs; comes back in [`Purpose::Demand`].
    pub number: u64,
}

/// One exchange to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// Position of the meter on this bus.
    pub meter: usize,
    /// What to ask of it, and for how long.
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

struct Meter {
    plan: MeterPlan,
    requests: Vec<Held>,
    next_slot: Option<Utc>,
    /// The latest slot that has or will have a record: no slot up to it is ever scheduled again.
    highest: Option<Utc>,
    due: Option<Utc>,
    failures: u32,
    paused_until: Option<Instant>,
    serial_after: Option<Instant>,
    last_turn: u64,
}

/// A planned request, and the refusal that keeps it from being asked.
struct Held {
    planned: Planned,
    refused: Option<(Outcome, Instant)>,
}

struct Active {
    sweep: Sweep,
    todo: VecDeque<Ask>,
    attempts: u8,
    probe: bool,
}

impl Active {
    /// What was not asked any more ended like this.
    fn cut_short(mut self, outcome: &Outcome) -> Active {
        let rest = self.todo.drain(..).map(|ask| Asked { ask, outcome: outcome.clone() });
        self.sweep.asked.extend(rest);
        self
    }
}

/// The schedule of one bus.
pub struct Cycle {
    meters: Vec<Meter>,
    active: Option<Active>,
    again: Option<Active>,
    /// Slots of meters that have said nothing yet, with how they were silent: repeated when nobody else is due.
    aside: VecDeque<(Active, Outcome)>,
    demands: VecDeque<Demand>,
    finished: VecDeque<Sweep>,
    line_up: bool,
    turns: u64,
    looked: Now,
    /// Tells one repetition of the same hours from another.
    repetition: u64,
}

/// Demands that may wait on one bus: more than a person asks for, few enough to be served in seconds.
const MAX_DEMANDS: usize = 64;

/// Longest sleep without looking at the wall clock again, so that a step is noticed within a second.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

impl Cycle {
    /// A schedule for these meters. Nothing is due before the first slot after now.
    pub fn new(plans: Vec<MeterPlan>, now: Now) -> Cycle {
        let meters = plans
            .into_iter()
            .map(|plan| Meter {
                requests: plan
                    .requests
                    .iter()
                    .map(|planned| Held { planned: planned.clone(), refused: None })
                    .collect(),
                next_slot: plan
                    .slots
                    .map(|slots| plan.first_slot.unwrap_or_else(|| slots.next_after(now.wall))),
                highest: None,
                due: None,
                failures: 0,
                paused_until: None,
                serial_after: None,
                last_turn: 0,
                plan,
            })
            .collect();
        Cycle {
            meters,
            active: None,
            again: None,
            aside: VecDeque::new(),
            demands: VecDeque::new(),
            finished: VecDeque::new(),
            line_up: true,
            turns: 0,
            looked: now,
            repetition: 0,
        }
    }

    /// What the ledger knows: the latest slot it holds of each meter, which may lie ahead of a clock that was set
    /// back, and a number that grows with the ledger.
    #[must_use]
    pub fn recalling(mut self, latest: &[Option<Utc>], repetition: u64) -> Cycle {
        self.repetition = repetition;
        let now = self.looked.wall;
        for (meter, latest) in self.meters.iter_mut().zip(latest) {
            meter.highest = *latest;
            if let (Some(slots), Some(latest), Some(next)) = (meter.plan.slots, latest, meter.next_slot)
                && next <= *latest
            {
                meter.next_slot = Some(slots.next_unused(now, Some(*latest), repetition));
            }
        }
        self
    }

    /// What to do now.
    pub fn poll_action(&mut self, now: Now) -> Action {
        self.note_slots(now);
        if self.active.is_none() && self.line_up {
            self.active = self.again.take().or_else(|| self.next_demand(now)).or_else(|| self.next_turn(now));
        }
        let others_wait = self.others_wait();
        // Requests that are held back answer for themselves.
        while let Some(active) = &mut self.active {
            let Some(ask) = active.todo.front() else {
                if let Some(active) = self.active.take() {
                    self.finish(active, now);
                }
                continue;
            };
            let Some(meter) = self.meters.get(active.sweep.meter) else {
                self.active = None;
                break;
            };
            let held =
                meter.requests.iter().find(|h| h.planned == ask.planned).and_then(|h| h.refused.as_ref());
            if let Some((outcome, until)) = held
                && now.instant < *until
                && active.sweep.purpose == Purpose::Slot
            {
                let outcome = outcome.clone();
                if let Some(ask) = active.todo.pop_front() {
                    active.sweep.asked.push(Asked { ask, outcome });
                }
                continue;
            }
            let query = Query {
                address: meter.plan.address,
                question: ask.planned.question.clone(),
                wire: meter.plan.wire,
                timeout: meter.plan.timeout,
                linger: if others_wait { Duration::ZERO } else { meter.plan.timeout.max(LEAST_LINGER) },
            };
            return Action::Exchange(Exchange { meter: active.sweep.meter, query });
        }
        Action::Wait(self.wait(now))
    }

    /// How the exchange that was asked for last ended.
    pub fn handle_outcome(&mut self, outcome: &Outcome, now: Now) {
        let others_wait = self.others_wait();
        let Some(active) = &mut self.active else { return };
        let Some(meter) = self.meters.get_mut(active.sweep.meter) else { return };
        let Some(ask) = active.todo.front().cloned() else { return };
        let again = match outcome {
            Outcome::Silent { .. } | Outcome::Garbled { .. } => true,
            Outcome::Refused(refusal) => refusal.transient,
            Outcome::Answered { .. } | Outcome::LineDown { .. } => false,
        };
        if again && !active.probe && active.attempts < meter.plan.retries {
            active.attempts += 1;
            let unheard = !active.sweep.asked.iter().any(|asked| heard(&asked.outcome));
            let silent = matches!(outcome, Outcome::Silent { .. });
            if silent && unheard && others_wait && active.sweep.purpose == Purpose::Slot {
                self.aside.extend(self.active.take().map(|active| (active, outcome.clone())));
            }
            return;
        }
        active.attempts = 0;
        active.todo.pop_front();
        match (outcome, ask.kind) {
            (Outcome::Refused(refusal), AskKind::Points) if !refusal.transient => {
                let parts = split(&ask.planned, &meter.plan.profile);
                let illegal_function = refusal.code == 0x01;
                if parts.len() > 1 && !illegal_function {
                    learn_split(&mut meter.requests, &ask.planned, &parts);
                    for planned in parts.into_iter().rev() {
                        active.todo.push_front(Ask { planned, kind: AskKind::Points });
                    }
                    return;
                }
                if let Some(held) = meter.requests.iter_mut().find(|h| h.planned == ask.planned) {
                    held.refused = Some((outcome.clone(), now.instant + REFUSED_PAUSE));
                }
            }
            (Outcome::Answered { .. }, AskKind::Points) => {
                if let Some(held) = meter.requests.iter_mut().find(|h| h.planned == ask.planned) {
                    held.refused = None;
                }
            }
            (Outcome::Answered { .. } | Outcome::Refused(_), AskKind::Serial) => {
                meter.serial_after = Some(now.instant + SERIAL_PAUSE);
            }
            _ => {}
        }
        let silent = matches!(outcome, Outcome::Silent { .. });
        let down = matches!(outcome, Outcome::LineDown { .. });
        active.sweep.asked.push(Asked { ask, outcome: outcome.clone() });
        // A meter that has said nothing in this sweep is not asked for the rest of it.
        let dead = silent && active.sweep.asked.iter().all(|asked| !heard(&asked.outcome));
        if dead || down {
            while let Some(ask) = active.todo.pop_front() {
                active.sweep.asked.push(Asked { ask, outcome: outcome.clone() });
            }
        }
        if active.todo.is_empty()
            && let Some(active) = self.active.take()
        {
            self.finish(active, now);
        }
    }

    /// Whether a meter that answers waits for its turn.
    fn others_wait(&self) -> bool {
        self.meters.iter().any(|meter| meter.due.is_some() && meter.failures == 0)
    }

    /// The line came or went. While it is away no slot is asked, and each is told as missed.
    pub fn set_line_up(&mut self, up: bool) {
        self.line_up = up;
        // A second look that cannot be taken must not hold up the reading that waits for it.
        if !up && let Some(again) = self.again.take() {
            let outcome = Outcome::LineDown { detail: "the line is away".into() };
            self.finished.push_back(again.cut_short(&outcome).sweep);
        }
    }

    /// The connection is a new one: whoever was silent on the old one is asked as ever.
    pub fn forgive(&mut self) {
        for meter in &mut self.meters {
            (meter.failures, meter.paused_until) = (0, None);
        }
    }

    /// Somebody wants a meter read. `false` when too many are waiting.
    pub fn handle_demand(&mut self, demand: Demand) -> bool {
        if self.demands.len() >= MAX_DEMANDS || demand.meter >= self.meters.len() {
            return false;
        }
        self.demands.push_back(demand);
        true
    }

    /// Reads these points of a meter again, at once.
    pub fn read_again(&mut self, meter: usize, points: &[usize], now: Now) {
        let Some(known) = self.meters.get(meter) else { return };
        let todo: VecDeque<Ask> = known
            .requests
            .iter()
            .filter(|held| held.planned.points.iter().any(|point| points.contains(point)))
            .map(|held| Ask { planned: held.planned.clone(), kind: AskKind::Points })
            .collect();
        let sweep = Sweep {
            meter,
            scheduled_at: now.wall,
            purpose: Purpose::Again,
            asked: Vec::new(),
            skipped: None,
        };
        self.again = Some(Active { sweep, todo, attempts: 0, probe: false });
    }

    /// A sweep that is complete, in the order in which they ended.
    pub fn poll_sweep(&mut self) -> Option<Sweep> {
        self.finished.pop_front()
    }

    /// Meters on this bus.
    pub fn plans(&self) -> impl Iterator<Item = &MeterPlan> {
        self.meters.iter().map(|meter| &meter.plan)
    }

    /// Whether a meter is being probed more seldom.
    pub fn is_backed_off(&self, meter: usize) -> bool {
        self.meters.get(meter).is_some_and(|meter| meter.failures >= BACK_OFF_AFTER)
    }

    /// What comes next for a meter.
    pub fn outlook(&self, meter: usize, now: Now) -> Outlook {
        let Some(meter) = self.meters.get(meter) else { return Outlook::default() };
        let refused =
            || meter.requests.iter().filter_map(|held| held.refused.as_ref()).map(|(_, until)| *until);
        let until = meter.paused_until.or_else(|| refused().min()).filter(|until| now.instant < *until);
        let over =
            until.and_then(|until| TimeDelta::from_std(until - now.instant).ok()).map(|time| now.wall + time);
        // Between slots nobody is asked.
        let asked_again = match meter.plan.slots {
            Some(slots) => over.map(|over| slots.next_after(over - TimeDelta::milliseconds(1))),
            None => over,
        };
        Outlook { next_slot: meter.next_slot, asked_again }
    }

    fn note_slots(&mut self, now: Now) {
        let before = std::mem::replace(&mut self.looked, now);
        let passed = now.instant.saturating_duration_since(before.instant);
        if let Some(by) = stepped(before.wall, now.wall, passed) {
            // Slots until the step came are due as ever; those that a forward step leapt over never were (one change
            // record says so), and those that a backward step brings again have their records.
            self.note_due(Now { wall: before.wall + passed, ..now });
            self.reschedule(before.wall + by);
        }
        self.note_due(now);
    }

    /// After a step: nothing up to `floor` is due, nothing that has a record is due again.
    fn reschedule(&mut self, floor: Utc) {
        self.repetition += 1;
        for meter in &mut self.meters {
            if let (Some(slots), Some(_)) = (meter.plan.slots, meter.next_slot) {
                meter.next_slot = Some(slots.next_unused(floor, meter.highest, self.repetition));
            }
        }
    }

    fn note_due(&mut self, now: Now) {
        self.give_up_aside(now);
        let repetition = self.repetition;
        for (position, meter) in self.meters.iter_mut().enumerate() {
            let (Some(slots), Some(mut next)) = (meter.plan.slots, meter.next_slot) else { continue };
            while next <= now.wall {
                // Each slot that truly passed is told: time has passed for each, so their number is bounded by it.
                if let Some(passed) = meter.due.replace(next) {
                    let why = if self.line_up { Skipped::Overrun } else { Skipped::LineDown };
                    self.finished.push_back(skipped(position, passed, why));
                }
                meter.highest = meter.highest.max(Some(next));
                next = slots.next_unused(next, meter.highest, repetition);
            }
            meter.next_slot = Some(next);
            let paused = meter.paused_until.is_some_and(|until| now.instant < until);
            let why = if self.line_up { Skipped::BackedOff } else { Skipped::LineDown };
            if (paused || !self.line_up)
                && let Some(due) = meter.due.take()
            {
                self.finished.push_back(skipped(position, due, why));
            }
        }
    }

    /// What was put aside ends as it stands when its meter's next slot has come, or the line has gone.
    fn give_up_aside(&mut self, now: Now) {
        let line_up = self.line_up;
        let meters = &self.meters;
        let over = |(active, _): &(Active, Outcome)| {
            let next = meters.get(active.sweep.meter).and_then(|meter| meter.next_slot);
            !line_up || next.is_some_and(|next| next <= now.wall)
        };
        let (over, waiting) = std::mem::take(&mut self.aside).into_iter().partition(over);
        self.aside = waiting;
        let over: VecDeque<(Active, Outcome)> = over;
        for (active, outcome) in over {
            self.finish(active.cut_short(&outcome), now);
        }
    }

    fn next_demand(&mut self, now: Now) -> Option<Active> {
        let demand = self.demands.pop_front()?;
        Some(self.begin(demand.meter, now.wall, Purpose::Demand(demand.number), now))
    }

    fn next_turn(&mut self, now: Now) -> Option<Active> {
        let slotted = self
            .meters
            .iter()
            .enumerate()
            .filter_map(|(position, meter)| Some((meter.failures > 0, meter.due?, meter.last_turn, position)))
            .min();
        let living = slotted.is_some_and(|(failed, ..)| !failed);
        if !living && let Some((active, _)) = self.aside.pop_front() {
            return Some(active);
        }
        if let Some((_, due, _, position)) = slotted {
            if let Some(meter) = self.meters.get_mut(position) {
                meter.due = None;
            }
            return Some(self.begin(position, due, Purpose::Slot, now));
        }
        let (_, position) = self
            .meters
            .iter()
            .enumerate()
            .filter(|(_, meter)| meter.plan.slots.is_none())
            .filter(|(_, meter)| meter.paused_until.is_none_or(|until| until <= now.instant))
            .map(|(position, meter)| (meter.last_turn, position))
            .min()?;
        Some(self.begin(position, now.wall, Purpose::Slot, now))
    }

    fn begin(&mut self, position: usize, scheduled_at: Utc, purpose: Purpose, now: Now) -> Active {
        self.turns += 1;
        let mut todo = VecDeque::new();
        let mut probe = false;
        if let Some(meter) = self.meters.get_mut(position) {
            meter.last_turn = self.turns;
            probe = purpose == Purpose::Slot && meter.failures >= BACK_OFF_AFTER;
            todo.extend(
                meter.requests.iter().map(|h| Ask { planned: h.planned.clone(), kind: AskKind::Points }),
            );
            if meter.plan.serial
                && meter.serial_after.is_none_or(|after| after <= now.instant)
                && let Some(question) = serial_question(&meter.plan.profile)
            {
                todo.push_back(Ask {
                    planned: Planned { question, points: Vec::new() },
                    kind: AskKind::Serial,
                });
            }
        }
        let sweep = Sweep { meter: position, scheduled_at, purpose, asked: Vec::new(), skipped: None };
        Active { sweep, todo, attempts: 0, probe }
    }

    fn finish(&mut self, active: Active, now: Now) {
        let down = active.sweep.asked.iter().any(|asked| matches!(asked.outcome, Outcome::LineDown { .. }));
        if let Some(meter) = self.meters.get_mut(active.sweep.meter) {
            if active.sweep.asked.iter().any(|asked| heard(&asked.outcome)) {
                meter.failures = 0;
                meter.paused_until = None;
            } else if active.sweep.purpose == Purpose::Slot && !down {
                meter.failures = meter.failures.saturating_add(1);
                if let Some(doublings) = meter.failures.checked_sub(BACK_OFF_AFTER) {
                    let pause = FIRST_PAUSE.saturating_mul(1 << doublings.min(16)).min(LONGEST_PAUSE);
                    meter.paused_until = Some(now.instant + pause);
                }
            }
        }
        self.finished.push_back(active.sweep);
    }

    fn wait(&self, now: Now) -> Duration {
        if !self.finished.is_empty() {
            return Duration::ZERO;
        }
        self.meters
            .iter()
            .filter_map(|meter| match meter.next_slot {
                Some(slot) => (slot - now.wall).to_std().ok(),
                // While the line is away the end of a pause changes nothing.
                None => meter
                    .paused_until
                    .filter(|_| self.line_up)
                    .map(|until| until.saturating_duration_since(now.instant)),
            })
            .min()
            .unwrap_or(LONGEST_WAIT)
            .min(LONGEST_WAIT)
    }
}

fn skipped(meter: usize, scheduled_at: Utc, why: Skipped) -> Sweep {
    Sweep { meter, scheduled_at, purpose: Purpose::Slot, asked: Vec::new(), skipped: Some(why) }
}

/// The meter itself said something.
fn heard(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered { .. } | Outcome::Refused(_))
}

fn learn_split(requests: &mut Vec<Held>, refused: &Planned, parts: &[Planned]) {
    if let Some(at) = requests.iter().position(|held| held.planned == *refused) {
        let learnt = parts.iter().map(|planned| Held { planned: planned.clone(), refused: None });
        requests.splice(at..=at, learnt);
    }
}

#[cfg(test)]
mod tests;
