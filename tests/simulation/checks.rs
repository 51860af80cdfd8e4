//! What must hold at the end of a run, whatever went wrong in it.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::PoisonError};

use chrono::TimeDelta;
use meter_gateway::{
    billing::proof::Lines,
    ledger::{audit::audit_with, meta::Meta},
    model::{Dec, MeterId, Reading, Seq, Utc, flag},
    profile::{Protocol, bytes_of, decode},
    protocol::hex,
    sim::Shown,
};
use serde_json::Value;

use super::{slots::check_slots, world::World};

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
    /// Of these, those that came over DL/T 645.
    pub dlt645: u64,
    pub slots: u64,
    pub duplicates: u64,
    pub early: u64,
}

/// Everything; violations are added to the world's.
pub fn check(world: &mut World) -> Tally {
    let mut found = Vec::new();
    let data = world.dir.path().join("data");
    let disk = world.disk.mount();
    let mut lines: BTreeMap<Seq, Vec<u8>> = BTreeMap::new();
    let mut last = 0;
    // Retention's `change` record is lost when the power goes between the two; what it removed is noted in any case.
    let meta = Meta::load(&*disk, &data.join("ledger")).ok().flatten();
    let pruned = meta.into_iter().flat_map(|meta| meta.pruned).map(|range| range.first..=range.last);
    let gone: Vec<RangeInclusive<Seq>> = pruned.chain(world.damaged.iter().cloned()).collect();
    match audit_with(&*disk, &data, 1, None, &mut |_, _| (), &mut |verified, line| {
        lines.insert(verified.seq, line.to_vec());
        Ok(None)
    }) {
        Ok(report) => {
            last = report.head.seq;
            // What was damaged is named, and nothing else.
            let faults = if world.damaged.is_empty() { report.faults.as_slice() } else { &[] };
            found.extend(faults.iter().map(|fault| format!("the chain: {fault}")));
        }
        Err(error) => found.push(format!("the ledger cannot be read: {error}")),
    }
    let (tally, records, proof) = world.broker.billing(|billing| {
        found.extend(billing.violations.iter().cloned());
        // What is stored while the house is taken down goes out at the next start.
        if world.owed.is_none_or(|owed| billing.last < owed) || billing.last > last {
            let next = lines.get(&(billing.last + 1)).map(|line| String::from_utf8_lossy(line));
            found.push(format!("{last} records are stored, billing has {}: {next:?}", billing.last));
        }
        let records: Vec<Value> =
            billing.records.values().filter_map(|line| serde_json::from_slice(line).ok()).collect();
        for (seq, taken) in &billing.records {
            match lines.get(seq) {
                Some(line) if line != taken => {
                    found.push(format!("record {seq}: billing has other bytes than the ledger"));
                }
                None if !gone.iter().any(|gone| gone.contains(seq)) => {
                    found.push(format!("record {seq}: the ledger has it no more"));
                }
                Some(_) | None => {}
            }
        }
        let tally = Tally {
            records: billing.records.len() as u64,
            duplicates: billing.duplicates,
            early: billing.early,
            ..Tally::default()
        };
        let mut proof = Lines::new(world.first_key.into_iter().collect());
        let proved = billing.records.values().try_for_each(|line| proof.line(line));
        (tally, records, proved)
    });
    if let Err(fault) = proof {
        found.push(format!("what billing has does not prove itself: {fault}"));
    }
    for record in &records {
        if let Some(never @ ("key_replaced" | "record_refused" | "ledger_replaced")) =
            record["change"].as_str()
        {
            found.push(format!("record {}: {never}, for no reason", record["seq"]));
        }
    }
    let (values_proved, dlt645) = check_values(world, &records, &mut found);
    let slots = check_slots(world, &records, &mut found);
    check_quiet(world, &records, &mut found);
    for (name, line) in &world.lines.0 {
        if line.most_open() > 1 {
            found.push(format!("{name}: open {} times at once", line.most_open()));
        }
        if line.collisions() > 0 {
            found.push(format!("{name}: {} requests talked into an answer", line.collisions()));
        }
    }
    world.violations.extend(found);
    Tally { values_proved, dlt645, slots, ..tally }
}

pub fn reading(record: &Value) -> Option<Reading> {
    (record.get("type")? == "reading").then(|| serde_json::from_value(record.clone()).ok())?
}

/// Every value was shown by this very meter, at this very address, at that time. How many were, and how many of them over
/// DL/T 645.
fn check_values(world: &World, records: &[Value], found: &mut Vec<String>) -> (u64, u64) {
    let times = world.house_times.lock().unwrap_or_else(PoisonError::into_inner);
    // The house's time just before and just after.
    let around = |step: &Utc| [times.range(..=*step).next_back(), times.range(*step..).next()];
    let mut steps: Vec<Utc> =
        world.steps.iter().flat_map(around).flatten().map(|(_, house)| *house).collect();
    // A step that nobody vouches for is followed a while after it was made.
    let followed = records.iter().filter(|record| record["followed"] == true);
    steps.extend(
        followed
            .flat_map(|record| ["from", "to"].map(|name| record[name].as_str()))
            .flatten()
            .filter_map(|at| at.parse::<Utc>().ok()),
    );
    let mut shown: BTreeMap<MeterId, BTreeMap<Utc, Vec<Shown>>> = BTreeMap::new();
    for (bus, line) in world.all.buses.iter().zip(by_bus(world)) {
        for meter in line.meters().lock().unwrap().iter() {
            let configured =
                world.all.meters.iter().find(|m| m.bus == bus.id && m.address == meter.address());
            let Some(configured) = configured else { continue };
            let of_meter = shown.entry(configured.id.clone()).or_default();
            for answer in meter.shown() {
                let Some(house) = times.get(&answer.at) else { continue };
                of_meter.entry(*house).or_default().push(answer.clone());
            }
        }
    }
    let (mut proved, mut dlt645) = (0, 0);
    for record in records {
        let Some(reading) = reading(record) else { continue };
        let Some(taken_at) = reading.taken_at else { continue };
        if steps.iter().any(|step| (*step - taken_at).abs() < AROUND_A_STEP) {
            continue;
        }
        let Some(meter) = world.all.meters.iter().find(|meter| meter.id == reading.meter) else {
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
            let bytes =
                |answer: &Shown| bytes_of(&point.cell, &answer.question, &answer.payload).into_owned();
            let mut near = near.flat_map(|(_, answers)| answers).map(bytes);
            let Some(bytes) = near.find(|bytes| !bytes.is_empty() && hex(bytes) == *raw) else {
                found.push(format!(
                    "record {}: {} {name} = {raw} at {taken_at} was never shown there",
                    record["seq"], reading.meter
                ));
                continue;
            };
            let decoded = decode(&point.cell, &bytes);
            let same = decoded.value.ok().map(Dec::normalized) == value.value.map(Dec::normalized);
            if !same {
                found.push(format!("record {}: {name}: {raw} is not {:?}", record["seq"], value.value));
            }
            proved += 1;
            dlt645 += u64::from(meter.profile.protocol == Protocol::Dlt645);
        }
    }
    (proved, dlt645)
}

/// No reading is lost to a line on which nothing is wrong but a habit that costs nothing.
fn check_quiet(world: &World, records: &[Value], found: &mut Vec<String>) {
    if world.recipe.clock_faults {
        return; // the windows are in true time
    }
    let lost = [flag::GARBLED, flag::NO_ANSWER, flag::REFUSED, flag::BUS_DOWN, flag::BACKED_OFF];
    for record in records {
        let Some(reading) = reading(record) else { continue };
        let Some(flag) = lost.into_iter().find(|flag| reading.flags.contains(*flag)) else { continue };
        let Some(meter) = world.all.meters.iter().find(|meter| meter.id == reading.meter) else { continue };
        let Some(bus) = world.all.buses.iter().position(|bus| bus.id == meter.bus) else { continue };
        let at = reading.scheduled_at;
        let quiet = world.quiet.windows.iter().find(|(of, from, to)| *of == bus && *from <= at && at <= *to);
        if let Some((_, from, to)) = quiet {
            let why = serde_json::Value::Object(reading.evidence);
            found.push(format!(
                "record {}: {} at {at}: {flag} {why}, and nothing was wrong on its bus from {from} to {to}",
                record["seq"], reading.meter
            ));
        }
    }
}

fn by_bus(world: &World) -> Vec<&meter_gateway::sim::VirtualLine> {
    world.lines.0.values().collect()
}
