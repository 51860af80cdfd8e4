//! The loop around the schedule: opens the line, makes the exchanges, hands sweeps to the judge.
//!
//! One task owns one bus; whoever wants something from a meter asks it here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

use super::{
    diagnosis::{Diagnosis, Heard, Suspicion},
    handed::Handed,
    health::{BusHealth, EndedSlot, MeterHealth},
    line::Line,
    port::Ports,
    readings,
    schedule::{Action, Class, Now, Request, Schedule, Surprise, Sweep, Target, Ticket},
};
use crate::{
    clock::Clock,
    config::Bus,
    model::{MeterId, Origin, Reading},
    protocol::Outcome,
};

/// What a judge makes of a sweep.
#[derive(Debug)]
pub enum Judgement {
    /// Read this again, at once, before anything is believed.
    Again(Surprise),
    /// The reading is final.
    Done(Box<Reading>),
}

/// Turns sweeps into readings. Pure: it neither waits nor opens.
pub trait Judge: Send {
    /// Looks at a sweep of a meter on this bus.
    fn judge(&mut self, sweep: Sweep) -> Judgement;
}

/// Somebody wants a meter of this bus read now.
pub struct DemandRequest {
    /// Which.
    pub meter: MeterId,
    /// Whether the reading is recorded too.
    pub keep: bool,
    /// Gets the reading; dropped when the bus cannot serve it.
    pub reply: oneshot::Sender<Reading>,
}

/// What the line and its meters look like.
struct Watch {
    line: Diagnosis,
    meters: Vec<Suspicion>,
}

impl Watch {
    fn of(meters: usize) -> Watch {
        Watch { line: Diagnosis::default(), meters: vec![Suspicion::default(); meters] }
    }
}

/// Who waits for which request.
type Waiting = HashMap<Ticket, Vec<oneshot::Sender<Reading>>>;

/// First pause before a lost line is opened again; it doubles up to [`LONGEST_REOPEN`].
const FIRST_REOPEN: Duration = Duration::from_secs(1);
/// Longest pause: an adapter that is plugged in again is used within half a minute.
const LONGEST_REOPEN: Duration = Duration::from_secs(30);

/// How often a line that waits for room in the queue says that it is there; well below the supervision's patience.
const STILL_HERE: Duration = Duration::from_secs(10);

/// One bus at work.
pub struct BusTask {
    /// Its settings.
    pub bus: Bus,
    /// Who is next.
    pub schedule: Schedule,
    /// What a sweep is worth.
    pub judge: Box<dyn Judge>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where its line comes from.
    pub ports: Arc<dyn Ports>,
    /// Reads that somebody wants now.
    pub demands: mpsc::Receiver<DemandRequest>,
    /// Final readings, in order.
    pub readings: readings::Sender,
    /// What was handed over, for the task after this one.
    pub handed: Arc<Handed>,
    /// For status and metrics.
    pub health: Arc<Mutex<BusHealth>>,
    /// Ends the task after the exchange under way.
    pub shutdown: watch::Receiver<bool>,
}

impl BusTask {
    /// Runs until shutdown, or until nobody takes its readings any more.
    pub async fn run(mut self) {
        let mut line = Line::new(self.bus.link.clone(), Arc::clone(&self.ports), Arc::clone(&self.clock));
        let mut up = false;
        let mut reopen_at = Instant::now();
        let mut pause = FIRST_REOPEN;
        let mut waiting = Waiting::new();
        let mut watch = Watch::of(self.schedule.plans().count());
        {
            let now = self.now();
            let next = |meter| self.schedule.outlook(meter, now).next_slot;
            let plans = self.schedule.plans().enumerate();
            let meters = plans
                .map(|(meter, plan)| MeterHealth::new(plan.id.clone(), plan.timeout, next(meter)))
                .collect();
            self.tell(|health| health.meters = meters);
        }
        while !*self.shutdown.borrow() {
            self.tell(|health| health.progress += 1);
            if !up && Instant::now() >= reopen_at {
                match line.open().await {
                    Ok(()) => {
                        up = true;
                        self.note_up();
                    }
                    Err(error) => {
                        self.note_down(&error.to_string());
                        reopen_at = Instant::now() + pause;
                        pause = (pause * 2).min(LONGEST_REOPEN);
                    }
                }
            }
            let now = self.now();
            self.schedule.set_line_up(up, now);
            self.drop_unwanted(&mut waiting);
            match self.schedule.poll_action(self.now()) {
                Action::Exchange(exchange) => {
                    let began = Instant::now();
                    let outcome = line.exchange(&exchange.query).await;
                    self.note_exchange(exchange.meter, &outcome, began.elapsed());
                    let heard = self.take_report(&mut line, exchange.meter, &mut watch);
                    self.diagnose(&mut watch, exchange.meter, &outcome, heard);
                    pause = FIRST_REOPEN;
                    if let Outcome::LineDown { detail } = &outcome {
                        self.note_down(detail);
                        up = false;
                        reopen_at = Instant::now() + pause;
                    }
                    let now = self.now();
                    self.schedule.handle_outcome(&outcome, now);
                    while let Ok(request) = self.demands.try_recv() {
                        self.take_demand(request, &mut waiting);
                    }
                }
                Action::Wait(time) => {
                    let time =
                        if up { time } else { time.min(reopen_at.saturating_duration_since(Instant::now())) };
                    tokio::select! {
                        biased;
                        changed = self.shutdown.changed() => if changed.is_err() {
                            return; // whoever could end this is gone
                        },
                        Some(request) = self.demands.recv() => self.take_demand(request, &mut waiting),
                        ended = line.idle(), if up => if let Err(error) = ended {
                            self.note_down(&error.to_string());
                            up = false;
                            reopen_at = Instant::now() + FIRST_REOPEN;
                        },
                        () = sleep(time) => {}
                    }
                    self.take_report(&mut line, None, &mut watch);
                }
            }
            while let Some(sweep) = self.schedule.poll_sweep() {
                if !self.hand_over(sweep, &mut waiting).await {
                    return;
                }
            }
        }
    }

    /// What happened on the line beside the outcomes, into log and health.
    fn take_report(&mut self, line: &mut Line, asked: Option<usize>, watch: &mut Watch) -> Heard {
        let report = line.take_report();
        let meter = asked.and_then(|meter| self.schedule.plans().nth(meter)).map(|plan| plan.id.as_str());
        for frame in &report.frames {
            tracing::trace!(bus = %self.bus.id, meter, mark = %frame.mark, bytes = %frame.hex(), "frame");
        }
        if report.renewed {
            tracing::info!(bus = %self.bus.id, "several requests in a row had no answer: the line is closed and opened again");
            self.schedule.forgive();
        }
        let at = |address| self.schedule.plans().position(|plan| plan.address == address);
        let late: Vec<(usize, Duration)> =
            report.late.iter().filter_map(|(address, late)| Some((at(*address)?, *late))).collect();
        let heard = report.heard.unwrap_or(Heard::Nothing);
        if let Some(suspicion) = report.doubled.and_then(at).and_then(|meter| watch.meters.get_mut(meter)) {
            suspicion.note_doubled();
        }
        if report.frames.is_empty() && late.is_empty() {
            return heard;
        }
        for (meter, took) in &late {
            self.schedule.note_late(*meter, *took);
        }
        self.tell(|health| {
            health.trace.extend(report.frames);
            for (meter, late) in late {
                if let Some(known) = health.meters.get_mut(meter) {
                    known.late = Some(late);
                }
            }
        });
        heard
    }

    /// What line and meter look like now, said once when it begins.
    fn diagnose(&self, watch: &mut Watch, meter: Option<usize>, outcome: &Outcome, heard: Heard) {
        watch.line.note(outcome, heard);
        let looks_like = watch.line.text(!self.bus.link.is_network());
        self.tell(|health| {
            if let Some(text) = looks_like.filter(|_| health.looks_like != looks_like) {
                tracing::warn!(bus = %self.bus.id, "nobody answers on the line: {text}");
            }
            health.looks_like = looks_like;
            let Some(meter) = meter else { return };
            let others = health.meters.iter().enumerate();
            let others_answer = others
                .filter(|(other, _)| *other != meter)
                .any(|(_, other)| other.failures == 0 && other.last_answer.is_some());
            let (Some(suspicion), Some(known)) = (watch.meters.get_mut(meter), health.meters.get_mut(meter))
            else {
                return;
            };
            suspicion.note(outcome);
            let text = suspicion.text(others_answer);
            if let Some(text) = text.filter(|_| known.suspicion != text) {
                tracing::warn!(bus = %self.bus.id, meter = %known.id, "{text}");
            }
            known.suspicion = text;
        });
    }

    /// What is said to whoever asked for a reading without a value.
    fn likely_cause(&self, meter: usize) -> Option<&'static str> {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.looks_like.or_else(|| health.meters.get(meter).and_then(|meter| meter.suspicion))
    }

    /// Gives a sweep to the judge, and what it comes to where it belongs: to whoever asked, to the writer, or both.
    async fn hand_over(&mut self, sweep: Sweep, waiting: &mut Waiting) -> bool {
        let Sweep { meter, ticket, keep, .. } = sweep;
        self.note_sweep(&sweep);
        let now = self.now();
        let reading = match self.judge.judge(sweep) {
            Judgement::Again(surprise) => {
                self.schedule.read_again(&surprise, now);
                return true;
            }
            Judgement::Done(reading) => reading,
        };
        if let Some(ticket) = ticket {
            let mut reading = Reading::clone(&reading);
            if reading.origin == Origin::Missing
                && let Some(text) = self.likely_cause(meter)
            {
                reading.evidence.insert("line".to_owned(), text.into());
            }
            for reply in waiting.remove(&ticket).into_iter().flatten() {
                let _ = reply.send(reading.clone()); // whoever asked may have left
            }
        } else {
            self.note_slot(meter, &reading, now);
        }
        !keep || self.wait_for_room(*reading, ticket.is_none()).await
    }

    /// What nobody waits for any more is not read.
    fn drop_unwanted(&mut self, waiting: &mut Waiting) {
        while let Some((ticket, _)) = self.schedule.poll_answer() {
            waiting.remove(&ticket);
        }
        waiting.retain(|ticket, replies| {
            replies.retain(|reply| !reply.is_closed());
            if replies.is_empty() {
                self.schedule.cancel(*ticket);
            }
            !replies.is_empty()
        });
    }

    /// Hands a reading to the writer. While its queue is full (a full disk) the reading waits here and this line asks
    /// nobody: that is waiting, not hanging, and is told so. Whether the writer hangs is not judged here.
    async fn wait_for_room(&mut self, reading: Reading, of_slot: bool) -> bool {
        let slots = self.schedule.plans().find(|plan| plan.id == reading.meter).and_then(|plan| plan.slots);
        loop {
            match timeout(STILL_HERE, self.readings.room(&reading, slots.is_some())).await {
                Ok(Ok(room)) => {
                    if let Some(slots) = slots.filter(|_| of_slot) {
                        self.handed.note(&reading.meter, slots, reading.scheduled_at, self.now());
                    }
                    self.readings.send(reading, room);
                    return true;
                }
                Ok(Err(_)) => return false,
                Err(_) => self.tell(|health| health.progress += 1),
            }
        }
    }

    fn take_demand(&mut self, demand: DemandRequest, waiting: &mut Waiting) {
        let Some(meter) = self.schedule.plans().position(|plan| plan.id == demand.meter) else { return };
        let (target, class) = (Target::Meter(meter), Class::Demand);
        let request = Request { target, class, deadline: None, keep: demand.keep };
        if let Some(ticket) = self.schedule.handle_request(request) {
            waiting.entry(ticket).or_default().push(demand.reply);
        }
    }

    fn now(&self) -> Now {
        Now { instant: Instant::now(), wall: self.clock.wall() }
    }

    fn tell(&self, change: impl FnOnce(&mut BusHealth)) {
        change(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn note_up(&self) {
        let at = self.clock.wall();
        self.tell(|health| {
            if !health.up {
                tracing::info!(bus = %self.bus.id, "the line is open");
                health.up = true;
                health.fault = None;
                health.since = Some(at);
            }
        });
    }

    fn note_down(&self, detail: &str) {
        let at = self.clock.wall();
        self.tell(|health| {
            if health.up || health.fault.is_none() {
                tracing::warn!(
                    bus = %self.bus.id,
                    error = detail,
                    "the line cannot be used; opening it is tried again, its meters are not at fault"
                );
                health.since = Some(at);
            }
            health.up = false;
            health.fault = Some(detail.to_owned());
        });
    }

    fn note_exchange(&self, meter: Option<usize>, outcome: &Outcome, took: Duration) {
        let id = meter.and_then(|meter| self.schedule.plans().nth(meter)).map(|plan| plan.id.as_str());
        let patience = meter.and_then(|meter| self.schedule.patience(meter));
        tracing::debug!(bus = %self.bus.id, meter = id, ?outcome, elapsed_ms = took.as_millis(), "exchange");
        let at = self.clock.wall();
        self.tell(|health| {
            health.busy += took;
            let mut known = meter.and_then(|meter| health.meters.get_mut(meter));
            if let (Some(known), Some(patience)) = (&mut known, patience) {
                if patience.is_near_limit() && !known.patience.is_near_limit() {
                    let (usual, limit) = (patience.usual().unwrap_or_default(), patience.limit());
                    tracing::warn!(
                        bus = %self.bus.id, meter = %known.id, usual_ms = usual.as_millis(), timeout_ms = limit.as_millis(),
                        "replies take nearly as long as `timeout_ms` allows: raise it before they are lost"
                    );
                }
                known.patience = patience;
            }
            match outcome {
                Outcome::Answered { elapsed, .. } => {
                    health.answered += 1;
                    if let Some(known) = &mut known {
                        known.last_answer = Some(at);
                        known.slowest = known.slowest.max(*elapsed);
                    }
                }
                Outcome::Silent { .. } => health.silent += 1,
                Outcome::Garbled { .. } => health.garbled += 1,
                Outcome::Refused(_) => health.refused += 1,
                Outcome::LineDown { .. } => {}
            }
        });
    }

    fn note_sweep(&self, sweep: &Sweep) {
        let backed_off = self.schedule.is_backed_off(sweep.meter);
        let asked = !sweep.asked.is_empty();
        let heard = sweep
            .asked
            .iter()
            .any(|asked| matches!(asked.outcome, Outcome::Answered { .. } | Outcome::Refused(_)));
        let down = sweep.asked.iter().any(|asked| matches!(asked.outcome, Outcome::LineDown { .. }));
        self.tell(|health| {
            let Some(known) = health.meters.get_mut(sweep.meter) else { return };
            if known.backed_off != backed_off {
                let late_ms = known.late.map(|late| late.as_millis());
                if backed_off {
                    tracing::warn!(bus = %self.bus.id, meter = %known.id, late_ms, "the meter does not answer: it is asked less often until it does");
                } else {
                    tracing::info!(bus = %self.bus.id, meter = %known.id, "the meter answers again");
                }
            }
            known.backed_off = backed_off;
            if heard {
                known.failures = 0;
            } else if asked && !down {
                known.failures += 1;
            }
        });
    }

    /// A slot of this meter has ended with this reading.
    fn note_slot(&self, meter: usize, reading: &Reading, now: Now) {
        let Some(plan) = self.schedule.plans().nth(meter) else { return };
        let outlook = self.schedule.outlook(meter, now);
        self.tell(|health| {
            let Some(known) = health.meters.get_mut(meter) else { return };
            let slot = EndedSlot::of(reading, &plan.profile, known.slot.as_ref());
            if slot.no_value.is_none() {
                known.last_value = slot.taken_at;
            }
            known.slot = Some(slot);
            known.next_slot = outlook.next_slot;
            known.held_until = outlook.asked_again;
        });
    }
}
