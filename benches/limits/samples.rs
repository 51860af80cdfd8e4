//! What is measured with: meters of built-in types, their replies and their readings.

use std::{collections::BTreeMap, sync::Arc};

use meter_gateway::{
    config::Meter,
    model::{ClockState, Dec, Draft, Origin, PointValue, Reading, Utc, Verdict},
    profile::{Catalogue, Planned, SharedProfile, bytes_of, decode, plan},
    protocol::{Pace, Parity, Payload, Wire},
    sim::SimMeter,
};

/// A big meter, three-phase, and a small one.
pub const KINDS: [&str; 2] = ["eastron-sdm630", "xintai-water"];
/// Meters among which readings are spread.
const METERS: u64 = 200;

pub fn wire(baud: u32) -> Wire {
    Wire { baud, parity: Parity::None, stop_bits: 1 }
}

pub fn profile(kind: &str) -> SharedProfile {
    Catalogue::builtin().get(kind).unwrap()
}

pub fn meter(unit: u8, profile: &SharedProfile) -> Meter {
    Meter {
        id: format!("M{unit}").parse().unwrap(),
        bus: "bench".parse().unwrap(),
        address: unit.into(),
        wire: None,
        profile: Arc::clone(profile),
        serial: None,
        multiplier: Dec::ONE,
        ct_ratio: Dec::ONE,
        pt_ratio: Dec::ONE,
        parent: None,
        building: None,
        unit_name: None,
        room: None,
        interval_secs: 0,
        timeout: None,
        retries: None,
        max_per_hour: None,
        off_schedule_secs: None,
    }
}

/// One sweep of one meter: what was asked and what came.
pub fn replies(profile: &SharedProfile, at: Utc) -> Vec<(Planned, Payload)> {
    let mut meter = SimMeter::new(1, Arc::clone(profile), 1);
    let points: Vec<usize> = (0..profile.points.len()).collect();
    let planned = plan(profile, &points, &Pace::Serial(wire(9600)));
    let answer = |planned: Planned| {
        let read = *planned.question.modbus().unwrap();
        let [a, b] = read.address.to_be_bytes();
        let [c, d] = read.count.to_be_bytes();
        let pdu = meter.answer(&[read.table.function(), a, b, c, d], at).unwrap();
        let words = pdu[2..].chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        (planned, Payload::Words(words))
    };
    planned.into_iter().map(answer).collect()
}

fn values(profile: &SharedProfile, at: Utc) -> BTreeMap<meter_gateway::model::PointName, PointValue> {
    let mut values = BTreeMap::new();
    for (planned, payload) in replies(profile, at) {
        for point in planned.points.iter().map(|index| &profile.points[*index]) {
            let decoded = decode(&point.cell, &bytes_of(&point.cell, &planned.question, &payload));
            let value = PointValue {
                value: decoded.value.ok(),
                unit: point.unit,
                raw: Some(decoded.raw),
                multiplier: None,
                reason: None,
                set: decoded.set,
            };
            values.insert(point.name.clone(), value);
        }
    }
    values
}

/// `count` readings of meters of one type, a second apart.
pub fn readings(kind: &str, count: usize) -> Vec<Reading> {
    let profile = profile(kind);
    let begin = Utc::from_timestamp(1_750_000_000, 0).unwrap();
    let values = values(&profile, begin);
    let reading = |(nth, at): (u64, Utc)| Reading {
        meter: format!("M{}", nth % METERS).parse().unwrap(),
        medium: profile.medium,
        scheduled_at: at,
        taken_at: Some(at),
        origin: Origin::Measured,
        verdict: Verdict::Good,
        flags: std::iter::empty().collect(),
        values: values.clone(),
        evidence: serde_json::Map::new(),
    };
    let moments = (0..).map(|nth: u64| (nth, begin + chrono::TimeDelta::seconds(nth.cast_signed())));
    moments.take(count).map(reading).collect()
}

/// The same as drafts.
pub fn drafts(kind: &str, count: usize) -> Vec<Draft> {
    let draft = |reading: Reading| {
        let at = reading.scheduled_at;
        Draft::reading(reading, at, ClockState::Synced)
    };
    readings(kind, count).into_iter().map(draft).collect()
}
