//! What must hold at the end of a run, whatever went wrong in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
};

use chrono::TimeDelta;
use meter_gateway::{
    ledger::audit::audit_with,
    model::{Dec, MeterId, Origin, Reading, Slots, Utc},
    profile::{Cell, decode},
};
use serde_json::Value;

use super::world::World;

/// A reply is dated when it arrives: the meter showed it up to the slowest exchange earlier. The answer to an earlier
/// try of the same question may be taken, as docs/architecture.md says.
const LONGEST_REPLY: TimeDelta = TimeDelta::seconds(7);
/// The other points of a sweep are read before or after the register that dates it, with retries and a second look.
const LONGEST_SWEEP: TimeDelta = TimeDelta::seconds(45);
/// Around a step of the clock the house's time of an answer is not to be told.
const AROUND_A_STEP: TimeDelta = TimeDelta::seconds(60);

/// What the run came to, for the figures.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub records: u64,
    pub values_proved: u64,
    pub slots: u64,
    pub duplicates: u64,
    pub early: u64,
}

/// Everything; violations are added to the world's.
pub fn check(world: &mut World) -> Tally {
    let mut found = Vec::new();
    let data = world.dir.path().join("data");
    let disk = world.disk.mount();
    let mut lines = Vec::new();
    match audit_with(&*disk, &data, 1, None, &mut |_, _| (), &mut |_, line| {
        lines.push(line.to_vec());
        Ok(None)
    }) {
        Ok(report) => found.extend(report.faults.into_iter().map(|fault| format!("the chain: {fault}"))),
        Err(error) => found.push(format!("the ledger cannot be read: {error}")),
    }
    let tally = world.broker.billing(|billing| {
        found.extend(billing.violations.iter().cloned());
        if billing.last != lines.len() as u64 {
            found.push(format!("{} records are stored, billing has {}", lines.len(), billing.last));
        }
        for (line, (seq, taken)) in lines.iter().zip(&billing.records) {
            if line != taken {
                found.push(format!("record {seq}: billing has other bytes than the ledger"));
            }
        }
        Tally {
            records: lines.len() as u64,
            duplicates: billing.duplicates,
            early: billing.early,
            ..Tally::default()
        }
    });
    let records: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let values_proved = check_values(world, &records, &mut found);
    let slots = check_slots(world, &records, &mut found);
    for (name, line) in &world.lines.0 {
        if line.most_open() > 1 {
            found.push(format!("{name}: open {} times at once", line.most_open()));
        }
        if line.collisions() > 0 {
            found.push(format!("{name}: {} requests talked into an answer", line.collisions()));
        }
    }
    world.violations.extend(found);
    Tally { values_proved, slots, ..tally }
}

fn reading(record: &Value) -> Option<Reading> {
    (record.get("type")? == "reading").then(|| serde_json::from_value(record.clone()).ok())?
}

/// One answer of a meter, by the house's time at which it was given.
struct Shown {
    address: u16,
    table: meter_gateway::protocol::modbus::Table,
    words: Vec<u16>,
}

/// Every value was shown by this very meter, at this very address, at that time.
fn check_values(world: &World, records: &[Value], found: &mut Vec<String>) -> u64 {
    let times = world.house_times.lock().unwrap_or_else(PoisonError::into_inner);
    // The house's time just before and just after.
    let around = |step: &Utc| [times.range(..=*step).next_back(), times.range(*step..).next()];
    let steps: Vec<Utc> = world.steps.iter().flat_map(around).flatten().map(|(_, house)| *house).collect();
    let mut shown: BTreeMap<MeterId, BTreeMap<Utc, Vec<Shown>>> = BTreeMap::new();
    for (bus, line) in world.settings.buses.iter().zip(by_bus(world)) {
        for meter in line.meters().lock().unwrap().iter() {
            let configured = world.settings.meters.iter().find(|m| m.bus == bus.id && m.unit == meter.unit());
            let Some(configured) = configured else { continue };
            let of_meter = shown.entry(configured.id.clone()).or_default();
            for answer in meter.shown() {
                let Some(house) = times.get(&answer.at) else { continue };
                of_meter.entry(*house).or_default().push(Shown {
                    address: answer.read.address,
                    table: answer.read.table,
                    words: answer.words.clone(),
                });
            }
        }
    }
    let mut proved = 0;
    for record in records {
        let Some(reading) = reading(record) else { continue };
        let Some(taken_at) = reading.taken_at else { continue };
        if steps.iter().any(|step| (*step - taken_at).abs() < AROUND_A_STEP) {
            continue;
        }
        let Some(meter) = world.settings.meters.iter().find(|meter| meter.id == reading.meter) else {
            found.push(format!("a reading of {}, which is not configured", reading.meter));
            continue;
        };
        let Some(shown) = shown.get(&reading.meter) else {
            found.push(format!("{} never answered, and has a reading", reading.meter));
            continue;
        };
        for (name, value) in &reading.values {
            let Some(raw) = &value.raw else { continue };
            let Some(point) = meter.profile.points.iter().find(|point| point.name == *name) else {
                found.push(format!("{} has no point {name}", reading.meter));
                continue;
            };
            let (before, after) = match point.register {
                Some(_) => (LONGEST_SWEEP.max(LONGEST_REPLY), LONGEST_SWEEP),
                None => (LONGEST_SWEEP, LONGEST_SWEEP),
            };
            let near = shown.range(taken_at - before..=taken_at + after);
            let words =
                near.flat_map(|(_, answers)| answers).filter_map(|answer| words_at(answer, &point.cell));
            let mut words = words.filter(|words| hex(words) == *raw);
            let Some(words) = words.next() else {
                found.push(format!(
                    "record {}: {} {name} = {raw} at {taken_at} was never shown there",
                    record["seq"], reading.meter
                ));
                continue;
            };
            let decoded = decode(&point.cell, words);
            let same = decoded.value.ok().map(Dec::normalized) == value.value.map(Dec::normalized);
            if !same {
                found.push(format!("record {}: {name}: {raw} is not {:?}", record["seq"], value.value));
            }
            proved += 1;
        }
    }
    proved
}

fn by_bus(world: &World) -> Vec<&meter_gateway::sim::VirtualLine> {
    world.lines.0.values().collect()
}

fn words_at<'a>(answer: &'a Shown, cell: &Cell) -> Option<&'a [u16]> {
    if answer.table != cell.table {
        return None;
    }
    let offset = usize::from(cell.address.checked_sub(answer.address)?);
    answer.words.get(offset..offset + usize::from(cell.encoding.kind.words()))
}

fn hex(words: &[u16]) -> String {
    words.iter().fold("0x".to_owned(), |hex, word| format!("{hex}{word:04X}"))
}

/// Each meter has one record for each scheduled moment, never two; what is left out is covered by a `change` record.
fn check_slots(world: &World, records: &[Value], found: &mut Vec<String>) -> u64 {
    let mut moments: BTreeMap<MeterId, BTreeSet<Utc>> = BTreeMap::new();
    let mut covered: Vec<(Utc, Utc)> = Vec::new();
    for record in records {
        if let Some(reading) = reading(record) {
            if reading.origin == Origin::Missing && reading.values.values().any(|value| value.value.is_some())
            {
                found.push(format!("record {}: missing, and has a value", record["seq"]));
            }
            let meter = world.settings.meters.iter().find(|meter| meter.id == reading.meter);
            let free = meter.is_some_and(|meter| meter.interval_secs == 0);
            if !moments.entry(reading.meter.clone()).or_default().insert(reading.scheduled_at) && !free {
                found.push(format!(
                    "record {}: a second one of {} for {}",
                    record["seq"], reading.meter, reading.scheduled_at
                ));
            }
        } else if let (Some(from), Some(to)) = (moment(record, "from"), moment(record, "to")) {
            covered.push((from, to));
        }
    }
    let mut slots = 0;
    for meter in &world.settings.meters {
        let Ok(schedule) = Slots::new(world.settings.site.timezone, meter.interval_secs) else { continue };
        if meter.interval_secs == 0 {
            continue;
        }
        let Some(of_meter) = moments.get(&meter.id) else {
            found.push(format!("{} has no record at all", meter.id));
            continue;
        };
        slots += of_meter.len() as u64;
        if world.recipe.clock_faults {
            continue; // which slots a stepping clock passes is tested where its steps are known: tests/time.rs
        }
        let (Some(first), Some(last)) = (of_meter.first(), of_meter.last()) else { continue };
        let mut slot = *first;
        while slot < *last {
            slot = schedule.next_after(slot);
            let is_covered = covered.iter().any(|(from, to)| *from <= slot && slot <= *to);
            if !of_meter.contains(&slot) && !is_covered {
                found.push(format!("{}: nothing says what became of {slot}", meter.id));
            }
        }
    }
    slots
}

fn moment(record: &Value, name: &str) -> Option<Utc> {
    (record["change"] == "downtime").then(|| record[name].as_str()?.parse().ok())?
}
