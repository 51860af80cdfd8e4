//! What a configuration asks of each line: requests, predicted time, load. A prediction from wire times and the
//! meters' usual turnaround; nothing is measured here. Integers only: load is in millionths (100 % = 1 000 000).
//!
//! Of a network peer nothing is predicted: its characters take no time, and how long it thinks is measured while it is polled
//! (`app/pace.rs`).

use std::time::Duration;

use serde::Serialize;

use super::{Bus, Fault, Link, Meter, Settings, fault::Findings};
use crate::{
    model::{BusId, MeterId},
    profile,
    protocol::{Pace, RETUNE_GUARD},
};

/// A line that is busy all the time.
const FULL_PPM: u64 = 1_000_000;

/// What every line has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PollPlan {
    /// In the order of the configuration.
    pub buses: Vec<BusPlan>,
}

/// What one line has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BusPlan {
    /// The line.
    pub bus: BusId,
    /// Its meters, in the order of the configuration.
    pub meters: Vec<MeterPlan>,
    /// Whether times are predicted: not where a network peer answers.
    pub predicted: bool,
    /// Microseconds in which every meter has been asked once; 0 where that is not predicted.
    pub cycle_us: u64,
    /// Share of time in which the line is busy, in millionths. Meters with interval 0 take what is left, and
    /// do not count. 0 where it is not predicted.
    pub load_ppm: u64,
}

/// What one meter costs its line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MeterPlan {
    /// The meter.
    pub meter: MeterId,
    /// Requests in one sweep.
    pub requests: usize,
    /// Microseconds of one sweep, without repetitions; 0 where that is not predicted.
    pub sweep_us: u64,
    /// Seconds between sweeps; 0 = as fast as the bus allows.
    pub interval_secs: u32,
}

impl BusPlan {
    /// Requests that keep every interval, in a thousand seconds. Meters with interval 0 do not count.
    pub fn requests_per_1000_secs(&self) -> u64 {
        let timed = self.meters.iter().filter(|meter| meter.interval_secs > 0);
        timed.map(|meter| meter.requests as u64 * 1000 / u64::from(meter.interval_secs)).sum()
    }

    /// Predicted time in which every meter has been asked once.
    pub fn cycle(&self) -> Duration {
        Duration::from_micros(self.cycle_us)
    }

    /// The load as people read it, rounded up: `37.5`.
    pub fn load_percent(&self) -> String {
        let tenths = self.load_ppm.div_ceil(1000);
        format!("{}.{}", tenths / 10, tenths % 10)
    }

    /// Whether the line has more to do than there is time.
    pub fn is_overloaded(&self) -> bool {
        self.load_ppm > FULL_PPM
    }
}

impl MeterPlan {
    /// Predicted time of one sweep.
    pub fn sweep(&self) -> Duration {
        Duration::from_micros(self.sweep_us)
    }
}

/// The plan of a whole configuration: every point of every meter.
pub fn predict(settings: &Settings) -> PollPlan {
    predict_lines(&settings.buses, &settings.meters)
}

/// The plan of these lines; meters on other lines are passed over.
pub(super) fn predict_lines(buses: &[Bus], meters: &[Meter]) -> PollPlan {
    PollPlan { buses: buses.iter().map(|bus| predict_bus(bus, meters)).collect() }
}

fn predict_bus(bus: &Bus, meters: &[Meter]) -> BusPlan {
    let meters: Vec<MeterPlan> = meters
        .iter()
        .filter(|meter| meter.bus == bus.id)
        .map(|meter| predict_meter(meter, &bus.link))
        .collect();
    let cycle_us = meters.iter().map(|meter| meter.sweep_us).sum();
    // Microseconds per second are millionths.
    let load_ppm = meters
        .iter()
        .filter(|meter| meter.interval_secs > 0)
        .map(|meter| meter.sweep_us.div_ceil(u64::from(meter.interval_secs)))
        .sum();
    let predicted = bus.link.pace() != Pace::Network;
    BusPlan { bus: bus.id.clone(), meters, predicted, cycle_us, load_ppm }
}

fn predict_meter(meter: &Meter, link: &Link) -> MeterPlan {
    let pace = meter.pace(link);
    let points: Vec<usize> = (0..meter.profile.points.len()).collect();
    let planned = profile::plan(&meter.profile, &points, &pace);
    // The line is set up for this meter, and for another one afterwards: silence before and after each time.
    let retuned = if meter.wire.is_some() { RETUNE_GUARD * 4 } else { Duration::ZERO };
    let requests = planned.iter().map(|request| request.time(&meter.profile, &pace));
    let sweep: Duration = match pace {
        Pace::Serial(_) => requests.sum::<Duration>() + retuned,
        Pace::Network => Duration::ZERO,
    };
    MeterPlan {
        meter: meter.id.clone(),
        requests: planned.len(),
        sweep_us: u64::try_from(sweep.as_micros()).unwrap_or(u64::MAX),
        interval_secs: meter.interval_secs,
    }
}

/// A fault for every line that cannot keep its intervals. `place_of` tells where a bus stands.
pub(super) fn overloads(plan: &PollPlan, place_of: &dyn Fn(&BusId) -> (String, String), findings: &Findings) {
    for bus in plan.buses.iter().filter(|bus| bus.is_overloaded()) {
        let (file, place) = place_of(&bus.bus);
        let timed: Vec<&MeterPlan> = bus.meters.iter().filter(|meter| meter.interval_secs > 0).collect();
        let busy_us: u64 = timed.iter().map(|meter| meter.sweep_us).sum();
        let message = format!(
            "the bus cannot keep its intervals: load {} %, {} meters take {} ms to be asked once",
            bus.load_percent(),
            timed.len(),
            busy_us.div_ceil(1000),
        );
        // No interval below a whole cycle can be kept by all of them.
        let enough = busy_us.div_ceil(FULL_PPM);
        let hint = format!("raise interval_secs ({enough} s for all would do), raise baud, or split the bus");
        findings.add(Fault { file, place, message, hint: Some(hint) });
    }
}
