//! Decoding: values per second on one core, in meters that are read once a second.
//!
//! The limit beside it is the wire: readings that the fastest line can bring, the meter's usual thinking included.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use meter_gateway::{
    model::Utc,
    profile::{bytes_of, decode},
    protocol::Pace,
};

use crate::{
    samples,
    table::{self, rate},
};

/// The best of so many: other work on the machine only ever makes it slower.
const ROUNDS: usize = 5;
/// Readings decoded between two looks at the clock.
const TURN: u64 = 20;

pub fn run(quick: bool) {
    let budget = Duration::from_millis(if quick { 20 } else { 500 });
    let rows: Vec<Vec<String>> = samples::KINDS.into_iter().map(|kind| row(kind, budget)).collect();
    let columns = [
        "a whole reading of",
        "points",
        "values/s",
        "ns/value",
        "meters at 1 Hz on one core",
        "readings/s that a 115200 baud line brings",
    ];
    table::print("Decode: values on one core", &columns, &rows);
}

fn row(kind: &str, budget: Duration) -> Vec<String> {
    let profile = samples::profile(kind);
    let replies = samples::replies(&profile, Utc::from_timestamp(1_750_000_000, 0).unwrap());
    let points = profile.points.len() as u64;
    let one_reading = || {
        for (planned, payload) in &replies {
            for point in planned.points.iter().map(|index| &profile.points[*index]) {
                let bytes = bytes_of(&point.cell, &planned.question, black_box(payload));
                black_box(decode(&point.cell, &bytes));
            }
        }
    };
    let round = || {
        let (began, mut readings) = (Instant::now(), 0);
        while began.elapsed() < budget {
            (0..TURN).for_each(|_| one_reading());
            readings += TURN;
        }
        rate(readings * points, began.elapsed())
    };
    let values = (0..ROUNDS).map(|_| round()).max().unwrap();
    let pace = Pace::Serial(samples::wire(115_200));
    let sweep: Duration = replies.iter().map(|(planned, _)| planned.time(&profile, &pace)).sum();
    vec![
        kind.to_owned(),
        points.to_string(),
        values.to_string(),
        (1_000_000_000 / values.max(1)).to_string(),
        (values / u128::from(points)).to_string(),
        rate(1, sweep).to_string(),
    ]
}
