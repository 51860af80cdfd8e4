//! What a day's manifest says: slots expected and obtained, registers, consumption, totals. Pure.
//!
//! Counts and subtracts what was recorded; applies no multiplier, fills no gap, corrects nothing. Where a
//! consumption cannot be told it says why. Signing is `signing.rs`, reading the ledger `history.rs`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    Day,
    consumption::{Seen, consumption},
};
use crate::{
    config::{Meter, Settings},
    ledger::{canonical, chain::MAX_LINE},
    model::{Dec, Origin, Reading, Seq, Slots, Utc, Verdict, rfc3339},
    profile::Point,
    validate::Limits,
};

/// Version of the layout.
const VERSION: u64 = 1;
/// Bytes of a record that are not its own fields: what the ledger adds, the signature, `part` and `parts`.
const LEDGER_BYTES: usize = 1024;
/// Downtimes that are listed, the latest: a gateway that starts more often than that in a day has other worries.
pub const MAX_DOWNTIMES: usize = 100;

/// A time in which the gateway was down, from a `downtime` record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Downtime {
    /// The first slot that was missed.
    pub from: Utc,
    /// When the gateway was up again.
    pub to: Utc,
    /// The record that says so.
    pub seq: Seq,
}

/// What a manifest covers and follows.
#[derive(Debug, Clone)]
pub struct Cover {
    /// The ledger's id.
    pub ledger: String,
    /// The first record covered: the one after what the manifest before covers.
    pub first_seq: Seq,
    /// The last record covered.
    pub last_seq: Seq,
    /// Its hash.
    pub head: String,
    /// Date and position of the manifest before.
    pub previous: Option<(String, Seq)>,
}

/// Counts over the records covered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Records by type.
    pub types: BTreeMap<String, u64>,
    /// Readings by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Readings by origin.
    pub origins: BTreeMap<String, u64>,
    /// Downtimes that ended in the records covered.
    pub downtimes: Vec<Downtime>,
    /// Records that are damaged and could not be counted.
    pub damaged: u64,
}

/// What one meter's day came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // docs/verify.md has the table
pub struct Counts {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
    pub recorded: u64,
    pub downtime: u64,
    pub absent: u64,
    pub repeated: u64,
    pub off_slot: u64,
    pub good: u64,
    pub suspect: u64,
    pub bad: u64,
    pub missing: u64,
    pub backfilled: u64,
    pub estimated: u64,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        if let Some(expected) = other.expected {
            *self.expected.get_or_insert(0) += expected;
        }
        for (to, from) in [
            (&mut self.recorded, other.recorded),
            (&mut self.downtime, other.downtime),
            (&mut self.absent, other.absent),
            (&mut self.repeated, other.repeated),
            (&mut self.off_slot, other.off_slot),
            (&mut self.good, other.good),
            (&mut self.suspect, other.suspect),
            (&mut self.bad, other.bad),
            (&mut self.missing, other.missing),
            (&mut self.backfilled, other.backfilled),
            (&mut self.estimated, other.estimated),
        ] {
            *to += from;
        }
    }
}

/// One meter's line of the manifest.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Counts of the day.
    pub counts: Counts,
    fields: Map<String, Value>,
}

/// The entry of `meter` (`None`: no longer configured) from all its readings of the day; `until` is the end of the
/// day, or now when it has not ended.
pub fn entry(
    id: &str,
    meter: Option<&Meter>,
    settings: &Settings,
    (day, until): (Day, Utc),
    mut readings: Vec<(Seq, Reading)>,
    downtimes: &[Downtime],
) -> Entry {
    readings.sort_by_key(|(seq, reading)| (reading.scheduled_at, *seq));
    let mut counts = Counts::default();
    for (_, reading) in &readings {
        match reading.origin {
            Origin::Missing => {
                counts.missing += 1;
                continue;
            }
            Origin::Backfilled => counts.backfilled += 1,
            Origin::Estimated => counts.estimated += 1,
            Origin::Measured | Origin::Frozen | Origin::Manual => {}
        }
        match reading.verdict {
            Verdict::Good => counts.good += 1,
            Verdict::Suspect => counts.suspect += 1,
            Verdict::Bad => counts.bad += 1,
        }
    }
    let seen: BTreeSet<Utc> = readings.iter().map(|(_, reading)| reading.scheduled_at).collect();
    counts.repeated = (readings.len() - seen.len()) as u64;
    counts.recorded = seen.len() as u64;
    let slots = meter.and_then(|meter| Slots::new(settings.site.timezone, meter.interval_secs).ok());
    if let Some(slots) = slots {
        let (mut expected, mut recorded) = (0, 0);
        let mut slot = slots.next_after(day.from - chrono::TimeDelta::milliseconds(1));
        while slot < until {
            expected += 1;
            if seen.contains(&slot) {
                recorded += 1;
            } else if downtimes.iter().any(|down| down.from <= slot && slot <= down.to) {
                counts.downtime += 1;
            } else {
                counts.absent += 1;
            }
            slot = slots.next_after(slot);
        }
        counts.off_slot = counts.recorded - recorded;
        counts.recorded = recorded;
        counts.expected = Some(expected);
    }
    let registers: Vec<Value> = meter
        .iter()
        .flat_map(|meter| meter.profile.points.iter().map(move |point| (point, meter)))
        .filter_map(|(point, meter)| register(point, meter, &readings))
        .collect();
    let mut fields = match serde_json::to_value(&counts) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(), // a struct of numbers always becomes an object
    };
    fields.insert("meter".into(), id.into());
    fields.insert("interval_secs".into(), meter.map(|meter| meter.interval_secs).into());
    fields.insert("expected".into(), counts.expected.into());
    fields.insert("configured".into(), meter.is_some().into());
    fields.insert("registers".into(), registers.into());
    Entry { counts, fields }
}

fn register(point: &Point, meter: &Meter, readings: &[(Seq, Reading)]) -> Option<Value> {
    let limits = Limits::of(point, meter.max_per_hour)?;
    let seen: Vec<Seen> =
        readings.iter().filter_map(|(seq, reading)| Seen::of(&point.name, *seq, reading)).collect();
    let consumption = consumption(&seen, limits);
    let ends = consumption.as_ref().ok().map(|counted| (counted.first, counted.last));
    let ends = ends.or_else(|| Some((*seen.first()?, *seen.last()?)));
    let multiplier = seen.last().and_then(|last| last.multiplier).unwrap_or(Dec::ONE);
    let mut said = json!({
        "point": point.name, "unit": point.unit, "multiplier": multiplier,
        "first": ends.map(|(first, _)| first.json()), "last": ends.map(|(_, last)| last.json()),
        "consumption": consumption.as_ref().ok().map(|counted| counted.sum),
        "rollovers": consumption.as_ref().map_or(0, |counted| counted.rollovers),
    });
    if let (Err(reason), Some(fields)) = (consumption, said.as_object_mut()) {
        fields.insert("reason".into(), reason.into());
    }
    Some(said)
}

/// The fields of each part, unsigned: every part repeats what is said of the whole day and has its share of meters.
pub fn parts(
    settings: &Settings,
    day: Day,
    cover: &Cover,
    totals: &Totals,
    entries: &[Entry],
) -> Vec<Map<String, Value>> {
    let mut sum = Counts::default();
    for entry in entries {
        sum.add(&entry.counts);
    }
    let skip = totals.downtimes.len().saturating_sub(MAX_DOWNTIMES);
    let downtimes: Vec<Value> = totals
        .downtimes
        .iter()
        .skip(skip)
        .map(|down| json!({"from": rfc3339(down.from), "to": rfc3339(down.to), "seq": down.seq}))
        .collect();
    let head = json!({
        "v": VERSION, "ledger": cover.ledger, "site": settings.site.id, "gateway": settings.gateway.id,
        "date": day.date.to_string(), "timezone": settings.site.timezone.name(),
        "from": rfc3339(day.from), "to": rfc3339(day.to),
        "first_seq": cover.first_seq, "last_seq": cover.last_seq, "head": cover.head,
        "previous": cover.previous.as_ref().map(|(date, seq)| json!({"date": date, "seq": seq})),
        "totals": {
            "types": totals.types, "verdicts": totals.verdicts, "origins": totals.origins,
            "damaged": totals.damaged, "meters": entries.len(), "slots": sum,
        },
        "downtimes": downtimes,
    });
    let Value::Object(head) = head else { return Vec::new() };
    let room = MAX_LINE.saturating_sub(size(&head) + LEDGER_BYTES);
    let mut shares: Vec<Vec<Value>> = vec![Vec::new()];
    let mut used = 0;
    for entry in entries {
        let bytes = size(&entry.fields) + 1;
        if used + bytes > room && used > 0 {
            shares.push(Vec::new());
            used = 0;
        }
        used += bytes;
        if let Some(share) = shares.last_mut() {
            share.push(entry.fields.clone().into());
        }
    }
    let count = shares.len();
    let part = |(n, share): (usize, Vec<Value>)| {
        let mut fields = head.clone();
        fields.insert("part".into(), (n + 1).into());
        fields.insert("parts".into(), count.into());
        fields.insert("meters".into(), share.into());
        fields
    };
    shares.into_iter().enumerate().map(part).collect()
}

fn size(fields: &Map<String, Value>) -> usize {
    let mut bytes = Vec::new();
    // What has no canonical form is refused by the ledger, by name.
    canonical::write_object(&mut bytes, fields).map_or(0, |()| bytes.len())
}
