//! Each meter has one record for each scheduled moment, never two; what has none is covered by a `change` record.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use meter_gateway::{
    config::Meter,
    model::{MeterId, Origin, Slots, Utc},
};
use serde_json::Value;

use super::{checks::reading, world::World};

/// After `.0` and up to `.1` there need be no record.
type Cover = (Utc, Utc);

/// Slots that have a record; what is wrong goes to `found`.
pub fn check_slots(world: &World, records: &[Value], found: &mut Vec<String>) -> u64 {
    let mut moments: BTreeMap<MeterId, BTreeSet<Utc>> = BTreeMap::new();
    let mut covers: Vec<Cover> = Vec::new();
    for record in records {
        covers.extend(cover(record));
        let Some(reading) = reading(record) else { continue };
        if reading.origin == Origin::Missing && reading.values.values().any(|value| value.value.is_some()) {
            found.push(format!("record {}: missing, and has a value", record["seq"]));
        }
        let free = world.all.meters.iter().any(|meter| meter.interval_secs == 0);
        if !moments.entry(reading.meter.clone()).or_default().insert(reading.scheduled_at) && !free {
            found.push(format!(
                "record {}: a second one of {} for {}",
                record["seq"], reading.meter, reading.scheduled_at
            ));
        }
    }
    let end = records.last().and_then(|record| record["recorded_at"].as_str()?.parse().ok());
    let mut slots = 0;
    for meter in &world.all.meters {
        let of_meter = moments.remove(&meter.id).unwrap_or_default();
        slots += of_meter.len() as u64;
        let told = |slot: Utc| found.push(format!("{}: nothing says what became of {slot}", meter.id));
        if world.recipe.clock_faults {
            under_a_wrong_clock(world, meter, &of_meter, &covers, told);
        } else {
            under_a_right_clock(world, meter, &of_meter, &covers, end, told);
        }
    }
    slots
}

fn schedule(world: &World, meter: &Meter) -> Option<Slots> {
    Slots::new(world.all.site.timezone, meter.interval_secs).ok()
}

/// Between any two slots that have a record each other one is covered: by a time without a gateway, or by a leap.
fn under_a_wrong_clock(
    world: &World,
    meter: &Meter,
    moments: &BTreeSet<Utc>,
    covers: &[Cover],
    mut untold: impl FnMut(Utc),
) {
    let Some(slots) = schedule(world, meter) else { return };
    let kept: Vec<Utc> = moments.iter().copied().filter(|at| slots.at_or_before(*at) == *at).collect();
    for pair in kept.windows(2) {
        let mut slot = slots.next_after(pair[0]);
        while slot < pair[1] {
            let until =
                covers.iter().filter(|(after, to)| *after < slot && slot <= *to).map(|(_, to)| *to).max();
            let Some(until) = until else {
                untold(slot);
                break;
            };
            slot = slots.next_after(until);
        }
    }
}

/// Each slot of each configuration, from when it was in force until the next was. The slot under way when a meter's
/// own interval is changed, or the meter taken out, goes with the old configuration.
fn under_a_right_clock(
    world: &World,
    meter: &Meter,
    moments: &BTreeSet<Utc>,
    covers: &[Cover],
    end: Option<Utc>,
    mut untold: impl FnMut(Utc),
) {
    let Some(first) = moments.first() else { return };
    let of = |period: usize| {
        world.configured.get(period).and_then(|(_, now)| now.meters.iter().find(|m| m.id == meter.id))
    };
    for (period, (from, _)) in world.configured.iter().enumerate() {
        let Some(configured) = of(period) else { continue };
        let Some(slots) = schedule(world, configured) else { continue };
        let interval = TimeDelta::seconds(i64::from(configured.interval_secs));
        let until = match world.configured.get(period + 1) {
            Some((until, _)) if of(period + 1).map(|m| m.interval_secs) == Some(configured.interval_secs) => {
                *until
            }
            Some((until, _)) => *until - interval,
            None => end.map_or(*first, |end| end - interval * 2),
        };
        let mut slot = slots.next_after((*from).max(*first));
        while slot <= until {
            if !moments.contains(&slot) && !covers.iter().any(|(after, to)| *after < slot && slot <= *to) {
                untold(slot);
            }
            slot = slots.next_after(slot);
        }
    }
}

fn cover(record: &Value) -> Option<Cover> {
    let moment = |name: &str| -> Option<Utc> { record[name].as_str()?.parse().ok() };
    match record["change"].as_str()? {
        "downtime" => Some((moment("from")? - TimeDelta::milliseconds(1), moment("to")?)),
        "clock_stepped" if record["followed"] == true => Some((moment("from")?, moment("to")?)),
        "time_fix" => Some((moment("to")?, moment("wall")?)),
        _ => None,
    }
}
