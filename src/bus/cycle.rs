//! Who is asked what, and when: the bus as a state machine. Waits for nothing, opens nothing, asks no time.
//!
//! One active sweep at a time. Demands come first, then slots, then meters that are read without pause. Meters
//! that failed last time come after all others, and a question that met silence is repeated only when nobody else is
//! waiting, so that the silence of one costs the others nothing.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::{
    model::{MeterId, Slots, Utc},
    profile::{Planned, SharedProfile, split},
    protocol::{Outcome, Question, modbus::Read},
};

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
/// The serial number is read at start and once a day.
const SERIAL_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Slots of one meter that are told as missing one by one after a forward step of the clock.
const MOST_MISSED_SLOTS: usize = 200;
/// A slot farther away than its interval and this means that the wall clock was set back.
const SET_BACK: chrono::TimeDelta = chrono::TimeDelta::hours(2);

/// One meter as the bus sees it.
#[derive(Debug, Clone)]
pub struct MeterPlan {
    /// The metered place.
    pub id: MeterId,
    /// Modbus unit id.
    pub unit: u8,
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
    /// Modbus unit id.
    pub unit: u8,
    /// What to ask.
    pub question: Question,
    /// How long to wait for the answer to begin.
    pub timeout: Duration,
}

/// What the bus should do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make this exchange and report its outcome.
    Exchange(Exchange),
    /// Nothing is due for so long (at most).
    Wait(Duration),
}

struct Meter {
    plan: MeterPlan,
    requests: Vec<Held>,
    next_slot: Option<Utc>,
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
        }
    }

    /// What to do now.
    pub fn poll_action(&mut self, now: Now) -> Action {
        self.note_slots(now);
        if self.active.is_none() && self.line_up {
            self.active = self.again.take().or_else(|| self.next_demand(now)).or_else(|| self.next_turn(now));
        }
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
            return Action::Exchange(Exchange {
                meter: active.sweep.meter,
                unit: meter.plan.unit,
                question: Question::Modbus(ask.planned.question),
                timeout: meter.plan.timeout,
            });
        }
        Action::Wait(self.wait(now))
    }

    /// How the exchange that was asked for last ended.
    pub fn handle_outcome(&mut self, outcome: &Outcome, now: Now) {
        let others_wait = self.meters.iter().any(|meter| meter.due.is_some() && meter.failures == 0);
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

    /// The line came or went. While it is away no slot is asked, and each is told as missed.
    pub fn set_line_up(&mut self, up: bool) {
        self.line_up = up;
        // A second look that cannot be taken must not hold up the reading that waits for it.
        if !up && let Some(again) = self.again.take() {
            let outcome = Outcome::LineDown { detail: "the line is away".into() };
            self.finished.push_back(again.cut_short(&outcome).sweep);
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

    fn note_slots(&mut self, now: Now) {
        self.give_up_aside(now);
        for (position, meter) in self.meters.iter_mut().enumerate() {
            let (Some(slots), Some(mut next)) = (meter.plan.slots, meter.next_slot) else { continue };
            let interval = chrono::TimeDelta::seconds(i64::from(slots.interval_secs()));
            if next - now.wall > interval + SET_BACK {
                next = slots.next_after(now.wall);
            }
            let mut told = 0;
            while next <= now.wall {
                if let Some(passed) = meter.due.replace(next)
                    && told < MOST_MISSED_SLOTS
                {
                    told += 1;
                    let why = if self.line_up { Skipped::Overrun } else { Skipped::LineDown };
                    self.finished.push_back(skipped(position, passed, why));
                }
                next = slots.next_after(next);
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
            if let Some(serial) = &meter.plan.profile.serial
                && meter.plan.serial
                && meter.serial_after.is_none_or(|after| after <= now.instant)
            {
                let question = Read {
                    table: serial.cell.table,
                    address: serial.cell.address,
                    count: serial.cell.encoding.kind.words(),
                };
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
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        profile::{Catalogue, plan},
        protocol::{Pace, Payload, modbus},
    };

    fn silent() -> Outcome {
        Outcome::Silent { late: None }
    }

    fn plan_of(name: &str, slots: Option<Slots>) -> MeterPlan {
        let profile = Catalogue::builtin().get("eastron-sdm120").unwrap();
        let points: Vec<usize> = (0..profile.points.len()).collect();
        MeterPlan {
            id: name.parse().unwrap(),
            unit: 1,
            requests: plan(&profile, &points, &Pace::Network),
            profile: Arc::clone(&profile),
            slots,
            timeout: Duration::from_millis(300),
            retries: 1,
            serial: false,
            first_slot: None,
        }
    }

    /// A cycle and a time that moves only when it is told to.
    struct Bench {
        cycle: Cycle,
        now: Now,
    }

    impl Bench {
        fn new(meters: usize, interval_secs: u32) -> Bench {
            let now = Now { instant: Instant::now(), wall: "2026-11-01T00:00:00Z".parse().unwrap() };
            let slots = Slots::new(chrono_tz::Asia::Shanghai, interval_secs).ok();
            let plans = (0..meters).map(|n| plan_of(&format!("M{n}"), slots)).collect();
            Bench { cycle: Cycle::new(plans, now), now }
        }

        fn pass(&mut self, time: Duration) {
            self.now.instant += time;
            self.now.wall += time;
        }

        /// Runs until `until`, with `answer` for the meters; returns the finished sweeps.
        fn run(&mut self, secs: u64, mut answer: impl FnMut(&Exchange) -> (Outcome, Duration)) -> Vec<Sweep> {
            let end = self.now.wall + Duration::from_secs(secs);
            let mut sweeps = Vec::new();
            while self.now.wall < end {
                match self.cycle.poll_action(self.now) {
                    Action::Exchange(exchange) => {
                        let (outcome, took) = answer(&exchange);
                        self.pass(took);
                        self.cycle.handle_outcome(&outcome, self.now);
                    }
                    Action::Wait(time) => self.pass(time.max(Duration::from_millis(1))),
                }
                while let Some(sweep) = self.cycle.poll_sweep() {
                    sweeps.push(sweep);
                }
            }
            sweeps
        }
    }

    fn answered(exchange: &Exchange) -> (Outcome, Duration) {
        let Question::Modbus(read) = &exchange.question;
        let payload = Payload::Words(vec![0; usize::from(read.count)]);
        let at = "2026-11-01T00:00:00Z".parse().unwrap();
        (Outcome::Answered { payload, at, elapsed: Duration::ZERO }, Duration::from_millis(50))
    }

    #[test]
    fn each_meter_has_one_sweep_for_each_slot() {
        let mut bench = Bench::new(3, 10);
        let sweeps = bench.run(100, answered);
        for meter in 0..3 {
            let slots: Vec<Utc> =
                sweeps.iter().filter(|s| s.meter == meter).map(|s| s.scheduled_at).collect();
            assert_eq!(slots.len(), 9, "slots at 10, 20, … 90 s");
            assert!(slots.windows(2).all(|pair| pair[1] - pair[0] == chrono::TimeDelta::seconds(10)));
        }
    }

    #[test]
    fn dead_meters_come_last_are_probed_seldom_and_still_have_a_record_for_each_slot() {
        let mut bench = Bench::new(30, 10);
        let dead = |exchange: &Exchange| exchange.meter < 3;
        let mut asked_dead = 0;
        let sweeps = bench.run(600, |exchange| {
            if dead(exchange) {
                asked_dead += 1;
                (silent(), Duration::from_millis(600))
            } else {
                answered(exchange)
            }
        });
        for meter in 0..30 {
            let mine: Vec<&Sweep> = sweeps.iter().filter(|sweep| sweep.meter == meter).collect();
            assert_eq!(mine.len(), 59, "meter {meter}");
            let overrun = mine.iter().filter(|sweep| sweep.skipped == Some(Skipped::Overrun)).count();
            // The dead wait for the living, never the other way round.
            assert!(overrun == 0 || meter < 3, "meter {meter} lost {overrun} slots");
        }
        assert!(asked_dead < 3 * 20, "{asked_dead} probes of three dead meters in ten minutes");
    }

    #[test]
    fn silence_is_repeated_only_when_nobody_waits() {
        let mut bench = Bench::new(10, 10);
        let mut order = Vec::new();
        let sweeps = bench.run(19, |exchange| {
            if order.last() != Some(&exchange.meter) {
                order.push(exchange.meter);
            }
            if exchange.meter == 0 { (silent(), Duration::from_millis(300)) } else { answered(exchange) }
        });
        assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
        assert_eq!(
            sweeps.iter().map(|sweep| sweep.meter).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
        );
    }

    #[test]
    fn what_was_put_aside_ends_with_its_slot() {
        let mut bench = Bench::new(2, 10);
        // The second meter needs the whole slot, so that there is no time for a repetition.
        let sweeps = bench.run(39, |exchange| {
            if exchange.meter == 0 {
                (silent(), Duration::from_millis(300))
            } else {
                (answered(exchange).0, Duration::from_secs(5))
            }
        });
        let mine: Vec<&Sweep> = sweeps.iter().filter(|sweep| sweep.meter == 0).collect();
        assert_eq!(
            mine.first().map(|sweep| (sweep.skipped, sweep.asked.is_empty())),
            Some((None, false)),
            "{mine:?}"
        );
        let slots: Vec<Utc> = mine.iter().map(|sweep| sweep.scheduled_at).collect();
        assert!(
            slots.windows(2).all(|pair| pair[1] - pair[0] == chrono::TimeDelta::seconds(10)),
            "{slots:?}"
        );
    }

    #[test]
    fn pauses_grow_and_are_capped() {
        let mut bench = Bench::new(1, 0);
        let mut asked = 0;
        bench.run(4000, |_| {
            asked += 1;
            (silent(), Duration::from_millis(600))
        });
        // 3 sweeps of 2 tries, then one try after each pause of 1, 2, 4, … 256, 300, 300, … s.
        assert!((15..=30).contains(&asked), "{asked} exchanges");
    }

    #[test]
    fn a_refused_block_is_split_and_the_split_is_remembered() {
        let mut bench = Bench::new(1, 10);
        let bad = modbus::Read { table: modbus::Table::Input, address: 0x0156, count: 2 };
        let mut refused = 0;
        let sweeps = bench.run(65, |exchange| {
            let Question::Modbus(read) = &exchange.question;
            let end = read.address + read.count;
            if read.table == bad.table && read.address < bad.address + bad.count && bad.address < end {
                refused += 1;
                (Outcome::Refused(modbus::refusal(2)), Duration::from_millis(50))
            } else {
                answered(exchange)
            }
        });
        let first = refused;
        let asked = |sweep: &Sweep| {
            sweep.asked.iter().filter(|a| matches!(a.outcome, Outcome::Answered { .. })).count()
        };
        assert!(sweeps.len() >= 5);
        assert!(asked(&sweeps[0]) >= 1, "the meter's other points are still read");
        assert_eq!(asked(&sweeps[0]), asked(&sweeps[4]));
        let refusals =
            |sweep: &Sweep| sweep.asked.iter().filter(|a| matches!(a.outcome, Outcome::Refused(_))).count();
        assert!(refusals(&sweeps[4]) <= 1);
        assert!(first <= 6, "a refusal for good is not asked again in every cycle: {first}");
    }

    #[test]
    fn while_the_line_is_away_slots_are_told_and_nobody_is_asked() {
        let mut bench = Bench::new(2, 10);
        bench.cycle.set_line_up(false);
        let sweeps = bench.run(35, |_| panic!("nobody may be asked"));
        assert_eq!(sweeps.len(), 6);
        assert!(sweeps.iter().all(|sweep| sweep.skipped == Some(Skipped::LineDown)));
    }

    #[test]
    fn while_the_line_is_away_the_end_of_a_pause_wakes_nobody() {
        let mut bench = Bench::new(1, 0);
        bench.run(5, |_| (silent(), Duration::from_millis(600)));
        assert!(bench.cycle.is_backed_off(0));
        bench.cycle.set_line_up(false);
        bench.pass(Duration::from_secs(600));
        assert_eq!(bench.cycle.poll_action(bench.now), Action::Wait(LONGEST_WAIT));
    }

    #[test]
    fn a_demand_goes_before_the_slots() {
        let mut bench = Bench::new(5, 10);
        bench.pass(Duration::from_secs(10));
        assert!(bench.cycle.handle_demand(Demand { meter: 4, number: 7 }));
        let sweeps = bench.run(3, answered);
        assert_eq!((sweeps[0].meter, sweeps[0].purpose), (4, Purpose::Demand(7)));
        assert_eq!(sweeps.len(), 6);
    }
}
