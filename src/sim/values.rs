//! What a simulated meter shows at a moment, as exact decimals. Pure: seed and time in, value out.
//!
//! Registers rise by whole steps at a constant rate from a fixed epoch, so that a meter that is simulated again
//! goes on where it was. What goes up and down moves around a plausible middle.

use chrono::{DateTime, TimeDelta};
use fastrand::Rng;

use crate::{
    model::{Dec, Unit, Utc},
    profile::{Cell, Kind, Point},
};

/// The moment at which every register showed its start value: 2026-01-01T00:00:00Z in Unix seconds.
const EPOCH_SECS: i64 = 1_767_225_600;
/// Milliseconds of an hour.
const HOUR_MS: i128 = 3_600_000;
/// Registers in floating point stay below this many steps, so that their digits survive the 24 bits of a single.
const FLOAT_STEPS: i128 = 9_999_999;
/// A register rises at most by this part of what its rating allows.
const RATING_PART: i128 = 20;

/// How one point behaves. Everything is counted in steps of the point's smallest difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behaviour {
    step: Dec,
    start: i128,
    motion: Motion,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Motion {
    /// Cumulative: steps per hour, beginning again at `capacity`.
    Rising { per_hour: i128, capacity: i128 },
    /// Up to `swing` steps to either side, another every second.
    Around { swing: i128, seed: u64 },
}

impl Behaviour {
    /// The usual behaviour of a point.
    pub(super) fn of(point: &Point, seed: u64) -> Behaviour {
        let mut rng = Rng::with_seed(seed);
        let step = step(&point.cell, point.unit);
        let most = most_steps(point.cell.encoding.kind);
        if let Some(register) = point.register {
            let capacity = steps(register.capacity, step).unwrap_or(most).clamp(1, most);
            let limit = (steps(register.max_per_hour, step).unwrap_or(1) / RATING_PART).max(1);
            // Not all the same, and none that stands still for long.
            let per_hour = (limit / 2 + rng.i128(0..=limit / 2)).max(1);
            let start = rng.i128(capacity / 100..=capacity / 10);
            return Behaviour { step, start, motion: Motion::Rising { per_hour, capacity } };
        }
        let (middle, swing) = nominal(point);
        let in_steps = |value: (i64, u32)| {
            Dec::from_parts(i128::from(value.0), value.1).and_then(|value| steps(value, step)).unwrap_or(0)
        };
        let swing = in_steps(swing).min(most / 2);
        let start = in_steps(middle).min(most - swing).max(0);
        Behaviour { step, start, motion: Motion::Around { swing, seed: rng.u64(..) } }
    }

    /// What is shown at `now`.
    pub(super) fn at(&self, now: Utc) -> Option<Dec> {
        let steps = match self.motion {
            Motion::Rising { per_hour, capacity } => {
                let elapsed = i128::from(since_epoch(now).num_milliseconds().max(0));
                (self.start + elapsed * per_hour / HOUR_MS).rem_euclid(capacity)
            }
            Motion::Around { swing: 0, .. } => self.start,
            Motion::Around { swing, seed } => {
                let second = since_epoch(now).num_seconds().cast_unsigned();
                let mut rng = Rng::with_seed(seed ^ second.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                self.start + rng.i128(-swing..=swing)
            }
        };
        // The start is never negative, but a swing may be: only kinds with a sign show it.
        Dec::from_parts(steps.max(0), 0)?.times(self.step)
    }
}

fn since_epoch(now: Utc) -> TimeDelta {
    now - DateTime::from_timestamp(EPOCH_SECS, 0).unwrap_or_default()
}

/// The smallest difference that the cell shows: its scale, or a usual resolution for floats.
fn step(cell: &Cell, unit: Unit) -> Dec {
    let decimals = match (cell.encoding.kind, unit) {
        (Kind::F32 | Kind::F64, Unit::Watt | Unit::Volt | Unit::Celsius) => 1,
        (Kind::F32 | Kind::F64, Unit::One | Unit::CubicMetrePerHour) => 3,
        (Kind::F32 | Kind::F64, _) => 2,
        _ => return cell.scale,
    };
    Dec::from_parts(1, decimals).unwrap_or(Dec::ONE)
}

/// The most steps that a kind can hold, halved for the signs and kept far from the sentinels.
fn most_steps(kind: Kind) -> i128 {
    match kind {
        Kind::Bcd16 => 9_990,
        Kind::Bcd24 => 999_990,
        Kind::U16 | Kind::I16 | Kind::Bits16 => 32_000,
        Kind::F32 | Kind::F64 => FLOAT_STEPS,
        Kind::Bcd32 => 99_999_990,
        Kind::U32 | Kind::I32 | Kind::Bits32 => 2_000_000_000,
        Kind::Bcd48 => 999_999_999_990,
        Kind::U64 | Kind::I64 | Kind::Bcd64 => 9_000_000_000_000_000,
    }
}

/// How many whole steps a value has.
fn steps(value: Dec, step: Dec) -> Option<i128> {
    let ((value, value_decimals), (step, step_decimals)) = (value.parts(), step.parts());
    let above = value.checked_mul(10_i128.checked_pow(step_decimals)?)?;
    let below = step.checked_mul(10_i128.checked_pow(value_decimals)?)?;
    above.checked_div(below)
}

type Parts = (i64, u32);

/// Middle and swing of a point that goes up and down, as mantissa and decimals.
fn nominal(point: &Point) -> (Parts, Parts) {
    let name = point.name.as_str();
    let has = |part: &str| name.split('_').any(|word| word == part);
    match point.unit {
        Unit::Volt
            if has("ll")
                || ["l1_l2", "l2_l3", "l3_l1", "ab", "bc", "ca"].iter().any(|p| name.ends_with(p)) =>
        {
            ((3980, 1), (50, 1))
        }
        Unit::Volt => ((2300, 1), (40, 1)),
        Unit::Ampere if has("n") || has("neutral") => ((35, 2), (20, 2)),
        Unit::Ampere => ((520, 2), (180, 2)),
        Unit::Watt if has("total") => ((3300, 0), (900, 0)),
        Unit::Watt => ((1100, 0), (300, 0)),
        Unit::Hertz => ((5000, 2), (3, 2)),
        Unit::CubicMetrePerHour => ((350, 3), (150, 3)),
        Unit::Celsius if has("return") => ((421, 1), (15, 1)),
        Unit::Celsius if has("difference") || has("delta") => ((206, 1), (10, 1)),
        Unit::Celsius => ((627, 1), (20, 1)),
        Unit::One if has("factor") => ((950, 3), (40, 3)),
        Unit::One => ((0, 0), (0, 0)),
        Unit::KilowattHour | Unit::KilovarHour | Unit::CubicMetre => ((1200, 2), (0, 0)),
    }
}
