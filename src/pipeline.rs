//! The corridor: sweep → decode → validate → append. One judge for each bus, one writer for the house.

mod history;
mod time;

pub use time::{TimeTeller, highest_slot};

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    bus::{AskKind, Class, Judge, Judgement, Skipped, Sweep, Ticket, readings},
    clock::Clock,
    config::Meter,
    ledger::{LedgerError, SharedLedger},
    model::{
        ClockState, Dec, Draft, Origin, PointName, PointValue, Reading, Utc, Verdict, change, flag, rfc3339,
    },
    profile::{Point, bytes_of, decode},
    protocol::{Outcome, Payload, Question},
    validate::{self, BELIEVED, Finding, Histories, History, Last, Limits, agrees, check},
};

/// Readings that go into one append: as many as the ledger takes in one.
const BATCH: usize = 1000;
/// Least time from one append of readings to the next while fewer than [`BATCH`] wait: an idle gateway stores a reading
/// at once, and a busy one does not sync its flash for each.
const APPEND_EVERY: Duration = Duration::from_millis(10);
/// Pause before an append that failed is tried again; nothing is dropped meanwhile.
const APPEND_AGAIN: Duration = Duration::from_secs(1);

/// The judge of one bus: knows each meter's history.
pub struct BusJudge {
    meters: Vec<Known>,
    clock: Arc<dyn Clock>,
}

struct Known {
    meter: Meter,
    histories: Histories,
    serial_seen: Option<String>,
    /// What surprised, while it is read again: the slot's, and those of demands by their tickets.
    first: BTreeMap<Option<Ticket>, PendingReading>,
}

/// A reading that is not final yet.
struct PendingReading {
    reading: Reading,
    /// Whether it is recorded.
    keep: bool,
    /// When each point's bytes arrived.
    times: BTreeMap<PointName, Utc>,
    /// What the rules say of each register that has a value.
    findings: BTreeMap<PointName, Finding>,
}

impl PendingReading {
    /// The registers that are to be read again.
    fn surprises(&self) -> Vec<PointName> {
        self.findings.iter().filter(|(_, finding)| finding.surprise).map(|(name, _)| name.clone()).collect()
    }
}

impl BusJudge {
    /// A judge for the meters of one bus, in the bus's order, with what the ledger last believed of them.
    pub fn new(meters: Vec<Meter>, ledger: &SharedLedger, clock: Arc<dyn Clock>) -> BusJudge {
        let meters = meters
            .into_iter()
            .map(|meter| {
                let histories = history::recall(&meter, ledger);
                Known { histories, meter, serial_seen: None, first: BTreeMap::new() }
            })
            .collect();
        BusJudge { meters, clock }
    }
}

impl Judge for BusJudge {
    fn judge(&mut self, sweep: Sweep) -> Judgement {
        let clock = self.clock.state();
        let Some(known) = self.meters.get_mut(sweep.meter) else {
            // The schedule and the judge are built from the same list.
            return Judgement::Again(sweep.surprise(Vec::new()));
        };
        let mut pending = known.look(&sweep, clock);
        self.note_twin(&sweep, &mut pending);
        let Some(known) = self.meters.get_mut(sweep.meter) else {
            return Judgement::Done(Box::new(pending.reading));
        };
        if sweep.class == Class::Confirmation
            && let Some(first) = known.first.remove(&sweep.ticket)
        {
            return Judgement::Done(Box::new(known.compare(first, &pending)));
        }
        let surprises = pending.surprises();
        if sweep.class != Class::Confirmation && !surprises.is_empty() {
            let points = known.points_of(surprises.iter());
            known.first.insert(sweep.ticket, pending);
            return Judgement::Again(sweep.surprise(points));
        }
        Judgement::Done(Box::new(known.conclude(pending)))
    }
}

impl BusJudge {
    /// Two meters of the bus with one serial number are likely one device that answers at two addresses.
    fn note_twin(&self, sweep: &Sweep, pending: &mut PendingReading) {
        let read = sweep.asked.iter().any(|asked| {
            asked.ask.kind == AskKind::Serial && matches!(asked.outcome, Outcome::Answered { .. })
        });
        let Some(known) = self.meters.get(sweep.meter).filter(|_| read) else { return };
        let Some(serial) = known.serial_seen.as_deref().filter(|serial| *serial != "0") else { return };
        let mut others = self.meters.iter().enumerate().filter(|(position, _)| *position != sweep.meter);
        let Some((_, twin)) = others.find(|(_, other)| other.serial_seen.as_deref() == Some(serial)) else {
            return;
        };
        let (meter, twin) = (known.meter.id.as_str(), twin.meter.id.as_str());
        tracing::warn!(
            meter,
            other = twin,
            serial,
            "two meters of the line tell one serial number: one device at two addresses would be billed twice"
        );
        pending.reading.evidence.insert("same_serial".to_owned(), json!({"serial": serial, "meter": twin}));
    }
}

impl Known {
    /// Decodes a sweep and applies the rules.
    fn look(&mut self, sweep: &Sweep, clock: ClockState) -> PendingReading {
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
            if let Outcome::Answered { payload, at, .. } = &asked.outcome {
                let question = &asked.ask.planned.question;
                last_reply = last_reply.max(Some(*at));
                if asked.ask.kind == AskKind::Serial {
                    self.note_serial(question, payload);
                    continue;
                }
                for point in asked.ask.planned.points.iter().filter_map(|index| profile.points.get(*index)) {
                    times.insert(point.name.clone(), *at);
                    let bytes = bytes_of(&point.cell, question, payload);
                    values.insert(point.name.clone(), self.value_of(point, &bytes));
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
        if let Some(taken_at) = taken_at
            && sweep.class == Class::Slot
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
        let findings = self.findings(&values, &times, &mut flags);
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
        PendingReading { reading, keep: sweep.keep, times, findings }
    }

    fn value_of(&self, point: &Point, bytes: &[u8]) -> PointValue {
        let decoded = decode(&point.cell, bytes);
        let (value, reason) = match decoded.value {
            Ok(value) => (Some(value), None),
            Err(reason) => (None, Some(reason.to_owned())),
        };
        let scaled = point.register.is_some() || carries_multiplier(point.name.as_str());
        let multiplier = Some(self.meter.multiplier).filter(|m| scaled && *m != Dec::ONE);
        PointValue { value, unit: point.unit, raw: Some(decoded.raw), multiplier, reason, set: decoded.set }
    }

    fn limits(&self, point: &Point) -> Option<Limits> {
        Limits::of(point, self.meter.max_per_hour)
    }

    /// The register points of the meter's profile.
    fn registers(&self) -> impl Iterator<Item = &Point> {
        self.meter.profile.points.iter().filter(|point| point.register.is_some())
    }

    /// What the rules say of each register; a register without a value is flagged here too.
    fn findings(
        &self,
        values: &BTreeMap<PointName, PointValue>,
        times: &BTreeMap<PointName, Utc>,
        flags: &mut BTreeSet<String>,
    ) -> BTreeMap<PointName, Finding> {
        let mut findings = BTreeMap::new();
        for point in self.registers() {
            let (Some(limits), Some(value), Some(at)) =
                (self.limits(point), values.get(&point.name), times.get(&point.name))
            else {
                continue;
            };
            match value.value {
                None => {
                    flags.insert(flag::NOT_AVAILABLE.to_owned());
                }
                // Another device's registers have nothing to do with this one's.
                Some(_) if flags.contains(flag::SERIAL_MISMATCH) => {}
                Some(value) => {
                    let finding = check(self.histories.of(&point.name), value, *at, limits);
                    findings.insert(point.name.clone(), finding);
                }
            }
        }
        findings
    }

    fn points_of<'a>(&self, names: impl Iterator<Item = &'a PointName>) -> Vec<usize> {
        names
            .filter_map(|name| self.meter.profile.points.iter().position(|point| point.name == *name))
            .collect()
    }

    fn note_serial(&mut self, question: &Question, payload: &Payload) {
        if let Some(serial) = &self.meter.profile.serial
            && let Ok(number) = decode(&serial.cell, &bytes_of(&serial.cell, question, payload)).value
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
    fn compare(&mut self, first: PendingReading, second: &PendingReading) -> Reading {
        let mut result = first;
        for name in result.surprises() {
            let Some(surprise) = result.findings.remove(&name) else { continue };
            let shown = |pending: &PendingReading| {
                let value = pending.reading.values.get(&name)?.value?;
                Some(Last::new(value, *pending.times.get(&name)?))
            };
            let (Some(point), Some(one)) =
                (self.registers().find(|point| point.name == name), shown(&result))
            else {
                continue;
            };
            let Some(limits) = self.limits(point) else { continue };
            let note = |pending: &PendingReading| {
                let value = pending.reading.values.get(&name)?;
                let at = pending.times.get(&name)?;
                Some(json!({"value": value.value, "raw": value.raw, "taken_at": rfc3339(*at)}))
            };
            let mut evidence = self.evidence(&name, &surprise);
            evidence.insert("first".into(), json!(note(&result)));
            evidence.insert("second".into(), json!(note(second)));
            let confirmed = match (shown(second), second.findings.get(&name)) {
                // The first look was wrong: the second is no surprise.
                (Some(_), Some(again)) if !again.surprise => Some(again),
                (Some(two), Some(again)) if agrees(one, two, limits) => Some(again),
                _ => None,
            };
            if let Some(again) = confirmed {
                adopt(&mut result, second, &name);
                result.reading.flags.extend(again.flag.map(str::to_owned));
                evidence.insert(BELIEVED.into(), json!(again.after.map(History::to_json)));
            } else {
                result.reading.flags.extend(surprise.flag.map(str::to_owned));
                result.reading.flags.insert(flag::UNCONFIRMED.to_owned());
                let before = self.histories.of(&name);
                evidence.insert(BELIEVED.into(), json!(before.map(History::to_json)));
            }
            result.reading.evidence.insert(name.to_string(), evidence.into());
        }
        self.conclude(result)
    }

    /// What a rule that fired rests on.
    fn evidence(&self, name: &PointName, finding: &Finding) -> Map<String, Value> {
        let before = self.histories.of(name).map(|history| history.believed);
        let before = before.map(|last| json!({"value": last.value, "taken_at": rfc3339(last.at)}));
        Map::from_iter([
            ("rule".to_owned(), json!(finding.flag)),
            ("previous".to_owned(), json!(before)),
            ("allowed".to_owned(), json!(finding.allowed.map(Dec::normalized))),
        ])
    }

    /// Makes a reading final. One that is not recorded leaves no trace in the history.
    fn conclude(&mut self, mut pending: PendingReading) -> Reading {
        let kept = pending.keep;
        for (name, finding) in &pending.findings {
            let plain = finding.after.is_none_or(History::is_plain);
            let mut evidence = Map::new();
            if let Some(flag) = finding.flag {
                pending.reading.flags.insert(flag.to_owned());
                evidence = self.evidence(name, finding);
            }
            if kept && (finding.flag.is_some() || !plain) {
                evidence.insert(BELIEVED.into(), json!(finding.after.map(History::to_json)));
            }
            if !evidence.is_empty() {
                pending.reading.evidence.insert(name.to_string(), evidence.into());
            }
        }
        if kept && pending.reading.origin != Origin::Missing {
            self.remember(&mut pending.reading);
        }
        let reading = &mut pending.reading;
        let no_register = self
            .registers()
            .all(|point| reading.values.get(&point.name).is_none_or(|value| value.value.is_none()));
        reading.verdict = match reading.origin {
            Origin::Missing => Verdict::Bad,
            _ if no_register => Verdict::Bad,
            _ => validate::verdict(&reading.flags),
        };
        pending.reading
    }

    /// Takes a stored reading into the history, from what it will say after a restart. It carries what is believed of the
    /// registers that it has no value of, so that no earlier one need be asked.
    fn remember(&mut self, reading: &mut Reading) {
        let foreign = validate::is_of_another_device(reading);
        let lacking = |name: &&PointName| {
            foreign || reading.values.get(*name).is_none_or(|value| value.value.is_none())
        };
        let profile = Arc::clone(&self.meter.profile);
        let registers =
            || profile.points.iter().filter(|point| point.register.is_some()).map(|point| &point.name);
        if registers().any(|name| lacking(&name)) {
            let carried = self.histories.carried(registers().filter(lacking));
            reading.evidence.insert(BELIEVED.into(), carried);
        }
        for name in registers() {
            self.histories.note(reading, name);
        }
    }
}

/// Takes one point over from the second look.
fn adopt(result: &mut PendingReading, second: &PendingReading, name: &PointName) {
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

/// The single writer: appends what the buses read, in batches, and never lets go of a reading that is not stored. What
/// comes while one batch is stored waits in the queue and is the next one.
pub async fn write(mut readings: readings::Receiver, ledger: SharedLedger, clock: Arc<dyn Clock>) {
    let mut due = Instant::now();
    while let Some(first) = readings.next().await {
        let mut batch = vec![first];
        readings.fill(&mut batch, BATCH);
        if batch.len() < BATCH {
            sleep_until(due).await;
            readings.fill(&mut batch, BATCH);
        }
        due = Instant::now() + APPEND_EVERY;
        let drafts: Vec<Draft> =
            batch.into_iter().map(|reading| Draft::reading(reading, clock.wall(), clock.state())).collect();
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
                    let meter = draft.fields.get("meter").and_then(Value::as_str);
                    tracing::error!(kind = ?draft.kind, meter, %why, "a record cannot be stored");
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
    if let Some(reading) = &draft.reading {
        fields.insert("meter".into(), reading.meter.as_str().into());
        fields.insert("scheduled_at".into(), rfc3339(reading.scheduled_at).into());
    }
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
