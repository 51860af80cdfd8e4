//! Who is asked what, and when: the bus as a state machine. Waits for nothing, opens nothing, asks no time.
//!
//! Three lanes take turns, one exchange at a time. The bus's own lane has the boundary reads, the confirmation reads and the
//! slots. The lane of demands is what people wait for: between two exchanges of the one there is at most one of the
//! other. The idle lane (scans, housekeeping) is used when both are empty, and when its exchange ends before the next
//! slot comes: it costs them nothing.
//!
//! Meters that failed last time come after all others, and a question that met silence is repeated only when nobody else is
//! waiting, so that the silence of one costs the others nothing.

mod meter;
mod patience;
mod request;

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::line::Query;
use crate::{
    model::{Utc, stepped},
    protocol::{Outcome, Wire},
};
use meter::{BACK_OFF_AFTER, MeterState};

pub use patience::Patience;
pub use request::{
    Action, Ask, AskKind, Asked, Class, Exchange, MeterPlan, Now, Outlook, Request, Skipped, Surprise, Sweep,
    Target, Ticket,
};

/// Requests that may wait on one bus, of each lane: more than a person asks for, few enough to be served in seconds.
const MAX_WAITING: usize = 64;
/// The same for the idle lane: more than the addresses of any search.
const MAX_IDLE: usize = 4096;
/// Longest sleep without looking at the wall clock again, so that a step is noticed within a second.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// What an exchange of the idle lane takes beside its timeout, at most: the frames on a slow line.
const IDLE_MARGIN: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Own,
    Demands,
    Idle,
}

impl Lane {
    fn of(class: Class, ticket: Option<Ticket>) -> Lane {
        match class {
            Class::Confirmation if ticket.is_some() => Lane::Demands,
            Class::Boundary | Class::Confirmation | Class::Slot => Lane::Own,
            Class::Demand => Lane::Demands,
            Class::Scan | Class::Housekeeping => Lane::Idle,
        }
    }

    fn of_request(request: &Request) -> Lane {
        Lane::of(request.class, None)
    }
}

/// A sweep under way.
struct Turn {
    sweep: Sweep,
    todo: VecDeque<Ask>,
    attempts: u8,
    probe: bool,
}

impl Turn {
    /// What was not asked any more ended like this.
    fn cut_short(mut self, outcome: &Outcome) -> Sweep {
        let rest = self.todo.drain(..).map(|ask| Asked { ask, outcome: outcome.clone() });
        self.sweep.asked.extend(rest);
        self.sweep
    }
}

/// What a lane is at.
enum Job {
    Turn(Turn),
    /// One question to a bare address.
    Bare(Ticket, Query),
}

/// What each lane is at.
#[derive(Default)]
struct Jobs {
    own: Option<Job>,
    demanded: Option<Job>,
    idle: Option<Job>,
}

impl Jobs {
    fn of(&mut self, lane: Lane) -> &mut Option<Job> {
        match lane {
            Lane::Own => &mut self.own,
            Lane::Demands => &mut self.demanded,
            Lane::Idle => &mut self.idle,
        }
    }
}

/// The schedule of one bus.
pub struct Schedule {
    meters: Vec<MeterState>,
    jobs: Jobs,
    /// The lane of the exchange under way, else of the last one.
    lane: Lane,
    confirmations: VecDeque<Turn>,
    /// Slots of meters that have said nothing yet, with how they were silent: repeated when nobody else is due.
    aside: VecDeque<(Turn, Outcome)>,
    waiting: VecDeque<(Ticket, Request)>,
    tickets: Ticket,
    finished: VecDeque<Sweep>,
    answers: VecDeque<(Ticket, Option<Outcome>)>,
    line_up: bool,
    turns: u64,
    looked: Now,
    /// Tells one repetition of the same hours from another.
    repetition: u64,
    /// Passes over the meters without slots: their number, when this one began, how long the last one took.
    round: (u64, Instant, Duration),
}

impl Schedule {
    /// A schedule for these meters. Nothing is due before the first slot after now.
    pub fn new(plans: Vec<MeterPlan>, now: Now) -> Schedule {
        Schedule {
            meters: plans.into_iter().map(|plan| MeterState::new(plan, now)).collect(),
            jobs: Jobs::default(),
            lane: Lane::Idle,
            confirmations: VecDeque::new(),
            aside: VecDeque::new(),
            waiting: VecDeque::new(),
            tickets: 0,
            finished: VecDeque::new(),
            answers: VecDeque::new(),
            line_up: true,
            turns: 0,
            looked: now,
            repetition: 0,
            round: (0, now.instant, Duration::ZERO),
        }
    }

    /// What the ledger knows: the latest slot it holds of each meter, which may lie ahead of a clock that was set
    /// back, and a number that grows with the ledger.
    #[must_use]
    pub fn recalling(mut self, latest: &[Option<Utc>], repetition: u64) -> Schedule {
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
        self.drop_expired(now);
        while self.line_up
            && let Some(lane) = self.choose(now)
        {
            self.lane = lane;
            if let Some(exchange) = self.exchange_of(lane, now) {
                return Action::Exchange(exchange);
            }
        }
        Action::Wait(self.wait(now))
    }

    /// The lane that has the next exchange.
    fn choose(&mut self, now: Now) -> Option<Lane> {
        if self.jobs.own.is_none() {
            self.jobs.own = self.begin_own(now);
        }
        if self.jobs.demanded.is_none() {
            self.jobs.demanded =
                self.confirmation(Lane::Demands).or_else(|| self.begin_waiting(Lane::Demands, now));
        }
        match (&self.jobs.own, &self.jobs.demanded) {
            (Some(_), Some(_)) if self.lane == Lane::Own => Some(Lane::Demands),
            (Some(_), _) => Some(Lane::Own),
            (None, Some(_)) => Some(Lane::Demands),
            (None, None) => {
                if self.jobs.idle.is_none() {
                    self.jobs.idle = self.begin_waiting(Lane::Idle, now);
                }
                let timeout = match self.jobs.idle.as_ref()? {
                    Job::Bare(_, query) => query.timeout,
                    Job::Turn(turn) => {
                        self.meters.get(turn.sweep.meter).map_or(Duration::ZERO, |m| m.plan.timeout)
                    }
                };
                self.has_room(timeout + IDLE_MARGIN, now).then_some(Lane::Idle)
            }
        }
    }

    fn begin_own(&mut self, now: Now) -> Option<Job> {
        self.confirmation(Lane::Own)
            .or_else(|| self.begin_waiting(Lane::Own, now))
            .or_else(|| self.next_turn(now).map(Job::Turn))
    }

    fn confirmation(&mut self, lane: Lane) -> Option<Job> {
        let mine = |turn: &Turn| Lane::of(Class::Confirmation, turn.sweep.ticket) == lane;
        let at = self.confirmations.iter().position(mine)?;
        self.confirmations.remove(at).map(Job::Turn)
    }

    /// Begins the first of the most urgent requests of a lane.
    fn begin_waiting(&mut self, lane: Lane, now: Now) -> Option<Job> {
        let mine =
            self.waiting.iter().enumerate().filter(|(_, (_, request))| Lane::of_request(request) == lane);
        let (at, _) = mine.min_by_key(|(_, (_, request))| request.class)?;
        let (ticket, request) = self.waiting.remove(at)?;
        let meter = match request.target {
            Target::Meter(meter) => meter,
            Target::Bare { address, wire, timeout, question } => {
                return Some(Job::Bare(ticket, Query { address, question, wire, timeout, linger: false }));
            }
        };
        let sweep = Sweep {
            class: request.class,
            ticket: Some(ticket),
            keep: request.keep,
            ..Sweep::of_slot(meter, now.wall)
        };
        Some(Job::Turn(self.begin(sweep, now)))
    }

    /// Nothing of the bus's own comes within this time.
    fn has_room(&self, time: Duration, now: Now) -> bool {
        let next = self.meters.iter().filter_map(|meter| meter.next_slot).min();
        next.is_none_or(|next| (next - now.wall).to_std().is_ok_and(|left| left > time))
    }

    /// The next exchange of a lane. `None` when what it was at has ended without one.
    fn exchange_of(&mut self, lane: Lane, now: Now) -> Option<Exchange> {
        let others_wait = self.others_wait(now);
        let job = self.jobs.of(lane);
        let turn = match job.as_mut()? {
            Job::Turn(turn) => turn,
            Job::Bare(_, query) => return Some(Exchange { meter: None, query: query.clone() }),
        };
        let position = turn.sweep.meter;
        if let Some(meter) = self.meters.get(position) {
            while let Some(ask) = turn.todo.front() {
                // A request that is held back answers for itself.
                if turn.sweep.class == Class::Slot
                    && let Some(outcome) = meter.held_back(&ask.planned, now)
                {
                    let outcome = outcome.clone();
                    turn.sweep.asked.extend(turn.todo.pop_front().map(|ask| Asked { ask, outcome }));
                    continue;
                }
                // The last attempt waits as long as the configuration allows: what is learnt costs no reading.
                let learnt = turn.attempts == 0 && meter.plan.retries > 0 && !turn.probe;
                let timeout = if learnt { meter.patience.timeout() } else { meter.patience.limit() };
                let query = Query {
                    address: meter.plan.address,
                    question: ask.planned.question.clone(),
                    wire: meter.plan.wire,
                    timeout,
                    linger: !others_wait,
                };
                return Some(Exchange { meter: Some(position), query });
            }
        }
        if let Some(Job::Turn(turn)) = job.take() {
            self.finish(turn.sweep, now);
        }
        None
    }

    /// How the exchange that was asked for last ended.
    pub fn handle_outcome(&mut self, outcome: &Outcome, now: Now) {
        let others_wait = self.others_wait(now);
        let job = self.jobs.of(self.lane);
        let mut turn = match job.take() {
            Some(Job::Turn(turn)) => turn,
            Some(Job::Bare(ticket, _)) => return self.answers.push_back((ticket, Some(outcome.clone()))),
            None => return,
        };
        let (Some(meter), Some(ask)) = (self.meters.get_mut(turn.sweep.meter), turn.todo.front().cloned())
        else {
            return;
        };
        let again = match outcome {
            Outcome::Silent { .. } | Outcome::Garbled { .. } => true,
            Outcome::Refused(refusal) => refusal.transient,
            Outcome::Answered { .. } | Outcome::LineDown { .. } => false,
        };
        if again && !turn.probe && turn.attempts < meter.plan.retries {
            turn.attempts += 1;
            let unheard = !turn.sweep.asked.iter().any(|asked| heard(&asked.outcome));
            let silent = matches!(outcome, Outcome::Silent { .. });
            if silent && unheard && others_wait && turn.sweep.class == Class::Slot {
                self.aside.push_back((turn, outcome.clone()));
            } else {
                *job = Some(Job::Turn(turn));
            }
            return;
        }
        turn.attempts = 0;
        turn.todo.pop_front();
        let instead = meter.note(&ask, outcome, now);
        if instead.is_empty() {
            turn.sweep.asked.push(Asked { ask, outcome: outcome.clone() });
        }
        for planned in instead.into_iter().rev() {
            turn.todo.push_front(Ask { planned, kind: AskKind::Points });
        }
        // A meter that has said nothing in this sweep is not asked for the rest of it.
        let silent = matches!(outcome, Outcome::Silent { .. });
        let dead = silent && turn.sweep.asked.iter().all(|asked| !heard(&asked.outcome));
        if dead || matches!(outcome, Outcome::LineDown { .. }) || turn.todo.is_empty() {
            let sweep = turn.cut_short(outcome);
            self.finish(sweep, now);
        } else {
            *job = Some(Job::Turn(turn));
        }
    }

    /// A reply of this meter came too late to count: what is learnt must not keep such replies from counting.
    pub fn note_late(&mut self, meter: usize, took: Duration) {
        if let Some(meter) = self.meters.get_mut(meter) {
            meter.patience.note(took);
        }
    }

    /// Whether anybody waits for the line whose exchange would be held up.
    fn others_wait(&self, now: Now) -> bool {
        let current = match (self.lane, &self.jobs.own) {
            (Lane::Own, Some(Job::Turn(turn))) => Some(turn.sweep.meter),
            _ => None,
        };
        let lanes = [Lane::Own, Lane::Demands];
        self.lane != Lane::Demands && self.jobs.demanded.is_some()
            || self.lane != Lane::Own && self.jobs.own.is_some()
            || self.waiting.iter().any(|(_, request)| lanes.contains(&Lane::of_request(request)))
            || self.meters.iter().enumerate().any(|(position, meter)| {
                let free = meter.plan.slots.is_none() && !meter.is_paused(now);
                meter.failures == 0 && Some(position) != current && (meter.due.is_some() || free)
            })
    }

    /// The line came or went. While it is away no slot is asked, and each is reported as missed; what people wait for ends
    /// at once, and so does what was under way: nothing is held up, and no slot is read behind a later one.
    pub fn set_line_up(&mut self, up: bool, now: Now) {
        self.line_up = up;
        if up {
            return;
        }
        let outcome = Outcome::LineDown { detail: "the line is away".into() };
        let confirmations = std::mem::take(&mut self.confirmations).into_iter().map(Job::Turn);
        let mut jobs: Vec<Job> = confirmations.collect();
        jobs.extend(
            [self.jobs.own.take(), self.jobs.demanded.take(), self.jobs.idle.take()].into_iter().flatten(),
        );
        while let Some(job) = self.begin_waiting(Lane::Demands, now) {
            jobs.push(job);
        }
        for job in jobs {
            match job {
                Job::Turn(turn) => self.finish(turn.cut_short(&outcome), now),
                Job::Bare(ticket, _) => self.answers.push_back((ticket, Some(outcome.clone()))),
            }
        }
    }

    /// The connection is a new one: whoever was silent on the old one is asked as ever.
    pub fn forgive(&mut self) {
        for meter in &mut self.meters {
            (meter.failures, meter.paused_until) = (0, None);
        }
    }

    /// Something is to be asked. `None` when too many are waiting, or there is no such meter. Of equal requests that wait
    /// one is made, and all have its ticket.
    pub fn handle_request(&mut self, request: Request) -> Option<Ticket> {
        if matches!(request.target, Target::Meter(meter) if meter >= self.meters.len()) {
            return None;
        }
        let equal = |(_, waiting): &&mut (Ticket, Request)| {
            (&waiting.target, waiting.class, waiting.keep) == (&request.target, request.class, request.keep)
        };
        if let Some((ticket, waiting)) = self.waiting.iter_mut().find(equal) {
            waiting.deadline = waiting.deadline.zip(request.deadline).map(|(one, other)| one.max(other));
            return Some(*ticket);
        }
        let lane = Lane::of_request(&request);
        let limit = if lane == Lane::Idle { MAX_IDLE } else { MAX_WAITING };
        if self.waiting.iter().filter(|(_, waiting)| Lane::of_request(waiting) == lane).count() >= limit {
            return None;
        }
        self.tickets += 1;
        self.waiting.push_back((self.tickets, request));
        Some(self.tickets)
    }

    /// Nobody waits for this request any more: it is not begun, unless it has been.
    pub fn cancel(&mut self, ticket: Ticket) {
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
    }

    fn drop_expired(&mut self, now: Now) {
        let over =
            |(_, request): &mut (Ticket, Request)| request.deadline.is_some_and(|end| end <= now.instant);
        let mut at = 0;
        while at < self.waiting.len() {
            if self.waiting.get_mut(at).is_some_and(over) {
                self.answers.extend(self.waiting.remove(at).map(|(ticket, _)| (ticket, None)));
            } else {
                at += 1;
            }
        }
    }

    /// Reads these points of a meter again, at once, for a sweep of its that surprised.
    pub fn read_again(&mut self, surprising: &Surprise, now: Now) {
        let Surprise { meter, ticket, keep, ref points } = *surprising;
        let Some(state) = self.meters.get(meter) else { return };
        let sweep = Sweep { class: Class::Confirmation, ticket, keep, ..Sweep::of_slot(meter, now.wall) };
        self.confirmations.push_back(Turn { sweep, todo: state.asks_for(points), attempts: 0, probe: false });
    }

    /// A sweep that is complete, in the order in which they ended.
    pub fn poll_sweep(&mut self) -> Option<Sweep> {
        self.finished.pop_front()
    }

    /// How the question to a bare address ended; `None` for a request of any kind whose deadline has passed.
    pub fn poll_answer(&mut self) -> Option<(Ticket, Option<Outcome>)> {
        self.answers.pop_front()
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
        self.meters.get(meter).map(|meter| meter.outlook(now)).unwrap_or_default()
    }

    /// How long a meter is waited for.
    pub fn patience(&self, meter: usize) -> Option<Patience> {
        self.meters.get(meter).map(|meter| meter.patience)
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
                // Each slot that truly passed is reported: time has passed for each, so their number is bounded by it.
                if let Some(passed) = meter.due.replace(next) {
                    let why = if self.line_up { Skipped::Overrun } else { Skipped::LineDown };
                    self.finished.push_back(skipped(position, passed, why));
                }
                meter.highest = meter.highest.max(Some(next));
                next = slots.next_unused(next, meter.highest, repetition);
            }
            meter.next_slot = Some(next);
            let why = if self.line_up { Skipped::BackedOff } else { Skipped::LineDown };
            if (meter.is_paused(now) || !self.line_up)
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
        let over = |(turn, _): &(Turn, Outcome)| {
            let next = meters.get(turn.sweep.meter).and_then(|meter| meter.next_slot);
            !line_up || next.is_some_and(|next| next <= now.wall)
        };
        let (over, waiting): (VecDeque<_>, _) = std::mem::take(&mut self.aside).into_iter().partition(over);
        self.aside = waiting;
        for (turn, outcome) in over {
            self.finish(turn.cut_short(&outcome), now);
        }
    }

    /// The next sweep of the bus's own: due slots of meters that answer, then what was put aside, then due slots of those that
    /// failed, then the meters without slots, pass by pass. Among equals the line is re-tuned least.
    fn next_turn(&mut self, now: Now) -> Option<Turn> {
        let wire = self.last_wire();
        let due = |(position, meter): (usize, &MeterState)| {
            let foreign = meter.plan.wire != wire;
            Some((meter.failures > 0, meter.due?, foreign, meter.last_turn, position))
        };
        let slotted = self.meters.iter().enumerate().filter_map(due).min();
        let free = self.next_free(now);
        let living = slotted.is_some_and(|(failed, ..)| !failed);
        if !living && let Some((turn, _)) = self.aside.front() {
            let turned = |position: usize| self.meters.get(position).map_or(0, |meter| meter.round);
            // A meter without slots is asked again behind all others of its pass.
            if free.is_none_or(|(round, _)| round >= turned(turn.sweep.meter)) {
                return self.aside.pop_front().map(|(turn, _)| turn);
            }
        }
        if let Some((.., due, _, _, position)) = slotted {
            if let Some(meter) = self.meters.get_mut(position) {
                meter.due = None;
            }
            return Some(self.begin(Sweep::of_slot(position, due), now));
        }
        let (round, position) = free?;
        self.note_round(round, now);
        if let Some(meter) = self.meters.get_mut(position) {
            meter.round = round + 1;
        }
        Some(self.begin(Sweep::of_slot(position, now.wall), now))
    }

    /// The meter without slots that comes next, and the pass it belongs to.
    fn next_free(&self, now: Now) -> Option<(u64, usize)> {
        let (current, wire) = (self.round.0, self.last_wire());
        let put_aside = |position| self.aside.iter().any(|(turn, _)| turn.sweep.meter == position);
        let free = self.meters.iter().enumerate().filter(|(position, meter)| {
            meter.plan.slots.is_none() && !meter.is_paused(now) && !put_aside(*position)
        });
        let turn = |(position, meter): (usize, &MeterState)| {
            (meter.round.max(current), meter.plan.wire != wire, meter.last_turn, position)
        };
        free.map(turn).min().map(|(round, .., position)| (round, position))
    }

    fn note_round(&mut self, round: u64, now: Now) {
        if round > self.round.0 {
            let took = now.instant.saturating_duration_since(self.round.1);
            self.round = (round, now.instant, took);
        }
    }

    /// Line settings of the last sweep.
    fn last_wire(&self) -> Option<Wire> {
        self.meters.iter().max_by_key(|meter| meter.last_turn).and_then(|meter| meter.plan.wire)
    }

    fn begin(&mut self, sweep: Sweep, now: Now) -> Turn {
        self.turns += 1;
        let Some(meter) = self.meters.get_mut(sweep.meter) else {
            return Turn { sweep, todo: VecDeque::new(), attempts: 0, probe: false };
        };
        meter.last_turn = self.turns;
        Turn { todo: meter.asks(now), probe: meter.is_probed(), sweep, attempts: 0 }
    }

    fn finish(&mut self, sweep: Sweep, now: Now) {
        let down = sweep.asked.iter().any(|asked| matches!(asked.outcome, Outcome::LineDown { .. }));
        let heard = sweep.asked.iter().any(|asked| heard(&asked.outcome));
        if let Some(meter) = self.meters.get_mut(sweep.meter)
            && (heard || sweep.class == Class::Slot && !down)
        {
            meter.note_sweep(heard, self.round.2, now);
        }
        self.finished.push_back(sweep);
    }

    fn wait(&self, now: Now) -> Duration {
        if !self.finished.is_empty() || !self.answers.is_empty() {
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

fn skipped(meter: usize, slot: Utc, why: Skipped) -> Sweep {
    Sweep { skipped: Some(why), ..Sweep::of_slot(meter, slot) }
}

/// The meter itself said something.
fn heard(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered { .. } | Outcome::Refused(_))
}

#[cfg(test)]
mod tests;
