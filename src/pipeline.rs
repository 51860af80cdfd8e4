//! The corridor: sweep → decode → validate → append. One judge for each bus, one writer for the house.

mod time;

pub use time::{TimeTeller, highest_slot};

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    bus::{AskKind, Judge, Judgement, Purpose, Skipped, Sweep},
    clock::Clock,
    config::Meter,
    ledger::{LedgerError, SharedLedger},
    model::{
        ClockState, Dec, Draft, Origin, PointName, PointValue, Reading, Utc, Verdict, change, flag, rfc3339,
    },
    profile::{Point, decode},
    protocol::{Outcome, Payload},
    validate::{self, Last, Limits, Surprise, agrees, check},
};

/// Readings that may wait for the writer, all buses together: a slot of a thousand meters.
pub const READINGS_QUEUE: usize = 1024;
/// Readings that go into one append: what the ledger commits at once.
const BATCH: usize = 100;
/// Pause before an append that failed is tried again; nothing is dropped meanwhile.
const APPEND_AGAIN: Duration = Duration::from_secs(1);

/// The judge of one bus: knows each meter's history.
pub struct BusJudge {
    meters: Vec<Known>,
    clock: Arc<dyn Clock>,
}

struct Known {
    meter: Meter,
    believed: BTreeMap<PointName, Last>,
    serial_seen: Option<String>,
    /// The first look, while the second is taken.
    first: Option<Draught>,
}

/// A reading that is not final yet.
struct Draught {
    reading: Reading,
    /// When each point's words arrived.
    times: BTreeMap<PointName, Utc>,
    surprises: BTreeMap<PointName, Surprise>,
}

impl BusJudge {
    /// A judge for the meters of one bus, in the bus's order, with what the ledger last believed of them.
    pub fn new(meters: Vec<Meter>, ledger: &SharedLedger, clock: Arc<dyn Clock>) -> BusJudge {
        let meters = meters
            .into_iter()
            .map(|meter| Known { believed: believed(&meter, ledger), meter, serial_seen: None, first: None })
            .collect();
        BusJudge { meters, clock }
    }
}

impl Judge for BusJudge {
    fn judge(&mut self, sweep: Sweep) -> Judgement {
        let clock = self.clock.state();
        let Some(known) = self.meters.get_mut(sweep.meter) else {
            // The cycle and the judge are built from the same list.
            return Judgement::Again(Vec::new());
        };
        match (sweep.purpose, known.first.take()) {
            (Purpose::Again, Some(first)) => {
                let second = known.look(&sweep, clock);
                Judgement::Done(Box::new(known.compare(first, &second)))
            }
            (purpose, waiting) => {
                // Only the second look ends a first one; a demand in between leaves it waiting.
                known.first = waiting;
                let draught = known.look(&sweep, clock);
                if purpose == Purpose::Slot && !draught.surprises.is_empty() {
                    let points = known.points_of(draught.surprises.keys());
                    known.first = Some(draught);
                    return Judgement::Again(points);
                }
                Judgement::Done(Box::new(known.conclude(draught, purpose)))
            }
        }
    }
}

impl Known {
    /// Decodes a sweep and applies the rules.
    fn look(&mut self, sweep: &Sweep, clock: ClockState) -> Draught {
        let profile = Arc::clone(&self.meter.profile);
        let mut flags = BTreeSet::new();
        let mut evidence = Map::new();
        let mut values = BTreeMap::new();
        let mut times = BTreeMap::new();
        let mut last_reply = None;
        match sweep.skipped {
            Some(Skipped::BackedOff) => flags.insert(flag::BACKED_OFF.to_owned()),
            Some(Skipped::Overrun) => flags.insert(flag::BUS_OVERRUN.to_owned()),
            Some(Skipped::LineDown) => flags.insert(flag::BUS_DOWN.to_owned()),
            None => false,
        };
        for asked in &sweep.asked {
            if let Outcome::Answered { payload: Payload::Words(words), at, .. } = &asked.outcome {
                last_reply = last_reply.max(Some(*at));
                if asked.ask.kind == AskKind::Serial {
                    self.note_serial(words);
                    continue;
                }
                for point in asked.ask.planned.points.iter().filter_map(|index| profile.points.get(*index)) {
                    let offset = usize::from(point.cell.address - asked.ask.planned.question.address);
                    let cell = words.get(offset..).unwrap_or_default();
                    times.insert(point.name.clone(), *at);
                    values.insert(point.name.clone(), self.value_of(point, cell));
                }
            } else if asked.ask.kind == AskKind::Points {
                let (name, detail) = trouble(&asked.outcome);
                flags.insert(name.to_owned());
                if let Some(detail) = detail {
                    evidence.insert(name.to_owned(), detail.into());
                }
                for point in asked.ask.planned.points.iter().filter_map(|index| profile.points.get(*index)) {
                    let reason = Some(name.to_owned());
                    let none = PointValue {
                        value: None,
                        unit: point.unit,
                        raw: None,
                        multiplier: None,
                        reason,
                        set: None,
                    };
                    values.insert(point.name.clone(), none);
                }
            }
        }
        let missing = times.is_empty();
        if missing {
            values.clear();
        }
        let register_time = profile
            .points
            .iter()
            .filter(|point| point.register.is_some())
            .find_map(|point| times.get(&point.name).copied());
        let taken_at = register_time.or(last_reply);
        let tolerance = validate::tolerance_secs(self.meter.interval_secs, self.meter.off_schedule_secs);
        if let (Some(taken_at), Purpose::Slot) = (taken_at, sweep.purpose)
            && validate::is_off_schedule(sweep.scheduled_at, taken_at, tolerance)
        {
            flags.insert(flag::OFF_SCHEDULE.to_owned());
            evidence.insert(flag::OFF_SCHEDULE.to_owned(), json!({"allowed_secs": tolerance}));
        }
        if !missing {
            if clock == ClockState::Unsynced {
                flags.insert(flag::CLOCK_UNTRUSTED.to_owned());
            }
            self.check_serial(&mut flags, &mut evidence);
        }
        let surprises = self.surprises(&values, &times, &mut flags);
        let reading = Reading {
            meter: self.meter.id.clone(),
            medium: profile.medium,
            scheduled_at: sweep.scheduled_at,
            taken_at,
            origin: if missing { Origin::Missing } else { Origin::Measured },
            verdict: Verdict::Good,
            flags,
            values,
            evidence,
        };
        Draught { reading, times, surprises }
    }

    fn value_of(&self, point: &Point, words: &[u16]) -> PointValue {
        let size = usize::from(point.cell.encoding.kind.words());
        let decoded = decode(&point.cell, words.get(..size).unwrap_or(words));
        let (value, reason) = match decoded.value {
            Ok(value) => (Some(value), None),
            Err(reason) => (None, Some(reason.to_owned())),
        };
        let scaled = point.register.is_some() || carries_multiplier(point.name.as_str());
        let multiplier = Some(self.meter.multiplier).filter(|m| scaled && *m != Dec::ONE);
        PointValue { value, unit: point.unit, raw: Some(decoded.raw), multiplier, reason, set: decoded.set }
    }

    fn limits(&self, point: &Point) -> Option<Limits> {
        let register = point.register?;
        let max_per_hour = self.meter.max_per_hour.unwrap_or(register.max_per_hour);
        Some(Limits { capacity: register.capacity, max_per_hour })
    }

    /// What the rules say of each register; a register without a value is flagged here too.
    fn surprises(
        &self,
        values: &BTreeMap<PointName, PointValue>,
        times: &BTreeMap<PointName, Utc>,
        flags: &mut BTreeSet<String>,
    ) -> BTreeMap<PointName, Surprise> {
        let mut surprises = BTreeMap::new();
        for point in &self.meter.profile.points {
            let (Some(limits), Some(value), Some(at)) =
                (self.limits(point), values.get(&point.name), times.get(&point.name))
            else {
                continue;
            };
            match value.value {
                None => {
                    flags.insert(flag::NOT_AVAILABLE.to_owned());
                }
                Some(value) => {
                    if let Some(surprise) = check(self.believed.get(&point.name).copied(), value, *at, limits)
                    {
                        surprises.insert(point.name.clone(), surprise);
                    }
                }
            }
        }
        surprises
    }

    fn points_of<'a>(&self, names: impl Iterator<Item = &'a PointName>) -> Vec<usize> {
        names
            .filter_map(|name| self.meter.profile.points.iter().position(|point| point.name == *name))
            .collect()
    }

    fn note_serial(&mut self, words: &[u16]) {
        if let Some(serial) = &self.meter.profile.serial
            && let Ok(number) = decode(&serial.cell, words).value
        {
            self.serial_seen = Some(number.to_string());
        }
    }

    fn check_serial(&self, flags: &mut BTreeSet<String>, evidence: &mut Map<String, Value>) {
        let (Some(expected), Some(seen)) = (&self.meter.serial, &self.serial_seen) else { return };
        if expected.trim_start_matches('0') != seen.trim_start_matches('0') {
            flags.insert(flag::SERIAL_MISMATCH.to_owned());
            evidence.insert("serial".into(), json!({"configured": expected, "seen": seen}));
        }
    }

    /// Two looks at registers that surprised: what both show is believed, what one shows is not.
    fn compare(&mut self, first: Draught, second: &Draught) -> Reading {
        let mut result = first;
        for (name, surprise) in std::mem::take(&mut result.surprises) {
            let shown = |draught: &Draught| {
                let value = draught.reading.values.get(&name)?.value?;
                Some(Last { value, at: *draught.times.get(&name)? })
            };
            let point = self.meter.profile.points.iter().find(|point| point.name == name);
            let (Some(point), Some(one)) = (point, shown(&result)) else { continue };
            let Some(limits) = self.limits(point) else { continue };
            let two = shown(second);
            let note = |draught: &Draught| {
                let value = draught.reading.values.get(&name)?;
                let at = draught.times.get(&name)?;
                Some(json!({"value": value.value, "raw": value.raw, "taken_at": rfc3339(*at)}))
            };
            let before = self
                .believed
                .get(&name)
                .map(|last| json!({"value": last.value, "taken_at": rfc3339(last.at)}));
            let evidence = json!({
                "rule": surprise.flag, "previous": before, "allowed": surprise.allowed.map(Dec::normalized),
                "first": note(&result), "second": note(second),
            });
            result.reading.evidence.insert(name.to_string(), evidence);
            match two {
                Some(two) if !second.surprises.contains_key(&name) => {
                    // The first look was wrong: the second is an ordinary value.
                    adopt(&mut result, second, &name);
                    self.believed.insert(name, two);
                }
                Some(two) if agrees(one, two, limits) => {
                    adopt(&mut result, second, &name);
                    let flag = second.surprises.get(&name).map_or(surprise.flag, |again| again.flag);
                    result.reading.flags.insert(flag.to_owned());
                    self.believed.insert(name, two);
                }
                _ => {
                    result.reading.flags.insert(surprise.flag.to_owned());
                    result.reading.flags.insert(flag::UNCONFIRMED.to_owned());
                    result.times.remove(&name);
                }
            }
        }
        self.conclude(result, Purpose::Again)
    }

    /// Makes a reading final. A demanded one leaves no trace in the history.
    fn conclude(&mut self, mut draught: Draught, purpose: Purpose) -> Reading {
        for surprise in draught.surprises.values() {
            draught.reading.flags.insert(surprise.flag.to_owned());
        }
        if matches!(purpose, Purpose::Slot | Purpose::Again) {
            for point in self.meter.profile.points.iter().filter(|point| point.register.is_some()) {
                let value = draught.reading.values.get(&point.name).and_then(|value| value.value);
                if let (Some(value), Some(at)) = (value, draught.times.get(&point.name)) {
                    self.believed.insert(point.name.clone(), Last { value, at: *at });
                }
            }
        }
        let reading = &mut draught.reading;
        let no_register = self
            .meter
            .profile
            .points
            .iter()
            .filter(|point| point.register.is_some())
            .all(|point| reading.values.get(&point.name).is_none_or(|value| value.value.is_none()));
        reading.verdict = match reading.origin {
            Origin::Missing => Verdict::Bad,
            _ if no_register => Verdict::Bad,
            _ => validate::verdict(&reading.flags),
        };
        draught.reading
    }
}

/// Takes one point over from the second look.
fn adopt(result: &mut Draught, second: &Draught, name: &PointName) {
    let (Some(value), Some(at)) = (second.reading.values.get(name), second.times.get(name)) else { return };
    result.reading.values.insert(name.clone(), value.clone());
    result.times.insert(name.clone(), *at);
    result.reading.taken_at = result.reading.taken_at.max(Some(*at));
}

/// CT × PT multiplies energy, power and current; it says nothing about voltage ratios the meter already knows.
fn carries_multiplier(name: &str) -> bool {
    name.starts_with("energy_") || name.starts_with("power_active") || name.starts_with("demand_")
}

fn trouble(outcome: &Outcome) -> (&'static str, Option<String>) {
    match outcome {
        Outcome::Silent { late } => (
            flag::NO_ANSWER,
            late.map(|late| format!("an answer came {} ms after the question, too late", late.as_millis())),
        ),
        Outcome::Garbled { detail } => (flag::GARBLED, Some(detail.clone())),
        Outcome::Refused(refusal) => {
            (flag::REFUSED, Some(format!("{} ({:02X})", refusal.text, refusal.code)))
        }
        Outcome::LineDown { detail } => (flag::BUS_DOWN, Some(detail.clone())),
        Outcome::Answered { .. } => (flag::NO_ANSWER, None),
    }
}

/// What the ledger last believed of each register of a meter.
fn believed(meter: &Meter, ledger: &SharedLedger) -> BTreeMap<PointName, Last> {
    let line = match ledger.latest(&meter.id) {
        Ok(Some(line)) => line,
        Ok(None) => return BTreeMap::new(),
        Err(error) => {
            tracing::warn!(meter = %meter.id, %error, "the last reading cannot be read; the next one has nothing to be compared with");
            return BTreeMap::new();
        }
    };
    let Ok(reading) = serde_json::from_slice::<Reading>(&line.bytes) else { return BTreeMap::new() };
    let Some(at) = reading.taken_at else { return BTreeMap::new() };
    reading
        .values
        .iter()
        .filter_map(|(name, value)| {
            let value = value.value?;
            match reading.evidence.get(name.as_str()) {
                // Two looks that disagreed: what was believed before them still is.
                Some(looks) if shown(looks, "second").is_none_or(|second| second.value != value) => {
                    Some((name.clone(), shown(looks, "previous")?))
                }
                _ => Some((name.clone(), Last { value, at })),
            }
        })
        .collect()
}

/// One of the values in a register's evidence.
fn shown(looks: &Value, which: &str) -> Option<Last> {
    let look = looks.get(which)?;
    let value = look.get("value")?.as_str()?.parse().ok()?;
    let at = look.get("taken_at")?.as_str()?.parse().ok()?;
    Some(Last { value, at })
}

/// The single writer: appends what the buses read, in batches, and never lets go of a reading that is not stored.
pub async fn write(mut readings: mpsc::Receiver<Reading>, ledger: SharedLedger, clock: Arc<dyn Clock>) {
    let mut batch = Vec::with_capacity(BATCH);
    while readings.recv_many(&mut batch, BATCH).await > 0 {
        let drafts: Vec<Draft> =
            batch.drain(..).map(|reading| Draft::reading(&reading, clock.wall(), clock.state())).collect();
        append(&ledger, drafts).await;
    }
}

/// Appends until it is stored. A draft that the ledger can never take is put on record by what is wrong with it; the
/// others are stored.
pub async fn append(ledger: &SharedLedger, mut drafts: Vec<Draft>) {
    loop {
        match ledger.append(drafts.clone()).await {
            Ok(_) | Err(LedgerError::Closed) => return,
            Err(LedgerError::Refused(why)) => match <[Draft; 1]>::try_from(std::mem::take(&mut drafts)) {
                Ok([draft]) => {
                    tracing::error!(kind = ?draft.kind, %why, "a record cannot be stored");
                    if draft.fields.get("change").and_then(Value::as_str) == Some(change::RECORD_REFUSED) {
                        return; // even that: the log has it
                    }
                    drafts = vec![refused(&draft, &why)];
                }
                Err(several) => {
                    for draft in several {
                        Box::pin(append(ledger, vec![draft])).await;
                    }
                    return;
                }
            },
            Err(error) => {
                tracing::debug!(%error, records = drafts.len(), "not stored yet; tried again"); // the ledger tells the operator
                sleep(APPEND_AGAIN).await;
            }
        }
    }
}

fn refused(draft: &Draft, why: &str) -> Draft {
    let mut fields = Map::new();
    fields.insert("kind".into(), serde_json::to_value(draft.kind).unwrap_or_default());
    fields.insert("reason".into(), why.into());
    for name in ["meter", "scheduled_at", "change"] {
        if let Some(Value::String(text)) = draft.fields.get(name) {
            let name = if name == "change" { "of" } else { name };
            fields.insert(name.to_owned(), text.chars().take(64).collect::<String>().into());
        }
    }
    Draft::change(change::RECORD_REFUSED, fields, draft.recorded_at, draft.clock)
}

#[cfg(test)]
mod tests;
