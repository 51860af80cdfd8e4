//! What a register came to between its first and its last value of a day: exact, over the top where it began again. Pure.
//!
//! Rather nothing than a wrong number: where it cannot be told, it says why. Knows nothing of manifests.

use serde_json::{Value, json};

use crate::{
    model::{Dec, Origin, PointName, Reading, Seq, Utc, Verdict, flag, rfc3339},
    validate::{Last, Limits, Said, said},
};

/// A value that may be counted from.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its record.
    pub seq: Seq,
    /// Its reading.
    pub reading: &'a Reading,
    /// What the display showed.
    pub value: Dec,
    /// Up to where the register is believed to have counted: for a rounding, the value before it. It never falls by one, so that
    /// days add up to the whole.
    counted: Dec,
    /// CT × PT, not applied.
    pub multiplier: Option<Dec>,
    /// The register had fallen and was not believed yet.
    fallen: bool,
}

impl<'a> Seen<'a> {
    /// The value of a register in a reading, if it was read and is not bad.
    pub fn of(name: &PointName, seq: Seq, reading: &'a Reading) -> Option<Seen<'a>> {
        if reading.verdict == Verdict::Bad || matches!(reading.origin, Origin::Missing | Origin::Estimated) {
            return None;
        }
        let point = reading.values.get(name)?;
        let value = point.value?;
        let history = match said(reading, name) {
            Said::Known(history) => Some(history),
            Said::Never | Said::Nothing => None,
        };
        let fallen = history.is_some_and(|history| history.fallen.is_some());
        let counted = history.filter(|_| !fallen).map_or(value, |history| history.believed.value);
        Some(Seen { seq, reading, value, counted, multiplier: point.multiplier, fallen })
    }

    /// As a manifest shows it.
    pub fn json(&self) -> Value {
        json!({
            "value": self.value, "seq": self.seq, "scheduled_at": rfc3339(self.reading.scheduled_at),
            "taken_at": self.reading.taken_at.map(rfc3339),
        })
    }

    fn at(&self) -> Utc {
        self.reading.taken_at.unwrap_or(self.reading.scheduled_at)
    }

    fn last(&self) -> Last {
        Last { value: self.counted, at: self.at() }
    }

    fn has(&self, name: &str) -> bool {
        self.reading.flags.contains(name)
    }
}

/// What it came to.
#[derive(Debug, Clone, Copy)]
pub struct Consumption<'a> {
    /// From here.
    pub first: Seen<'a>,
    /// To here.
    pub last: Seen<'a>,
    /// The difference, never below 0.
    pub sum: Dec,
    /// How often the register began again in between.
    pub rollovers: u64,
}

/// Flags that say that the rise up to the flagged value is not to be trusted.
const BROKEN_RISE: [&str; 2] = [flag::UNIT_JUMP, flag::TOO_FAST];
/// Flags that say that the value itself is not to be trusted, or not this meter's.
const BROKEN_VALUE: [&str; 3] = [flag::OVER_CAPACITY, flag::UNCONFIRMED, flag::SERIAL_MISMATCH];

/// The values of a day in the order of their slots, walked through.
struct Walk<'a> {
    limits: Limits,
    /// From the first value that counts.
    counted: Option<Consumption<'a>>,
    /// The highest value since the register began (again).
    highest: Dec,
    /// The last value of a fall that is not over.
    low: Option<Seen<'a>>,
}

/// The consumption between the first and the last value that are believed, or why it cannot be told.
pub fn consumption<'a>(seen: &[Seen<'a>], limits: Limits) -> Result<Consumption<'a>, &'static str> {
    let Some((first, rest)) = seen.split_first() else { return Err("no_value") };
    let flagged = |seen: &Seen, names: &[&'static str]| names.iter().find(|name| seen.has(name)).copied();
    if let Some(name) = seen.iter().find_map(|seen| flagged(seen, &BROKEN_VALUE)) {
        return Err(name);
    }
    if let Some(name) = rest.iter().find_map(|seen| flagged(seen, &BROKEN_RISE)) {
        return Err(name);
    }
    if rest.iter().any(|seen| seen.multiplier != first.multiplier) {
        return Err("multiplier_changed");
    }
    let mut walk = Walk { limits, counted: None, highest: first.counted, low: None };
    for seen in seen {
        walk.take(*seen)?;
    }
    if walk.low.is_some() {
        return Err(flag::BACK_STEP);
    }
    match walk.counted {
        Some(counted) if counted.first.seq != counted.last.seq => Ok(counted),
        _ => Err("one_value"),
    }
}

impl<'a> Walk<'a> {
    fn take(&mut self, seen: Seen<'a>) -> Result<(), &'static str> {
        let Some(counted) = self.counted else { return self.begin(seen) };
        let too_large = || "too_large";
        let risen = seen.counted.minus(counted.last.counted).ok_or_else(too_large)?;
        let below = self.highest.minus(seen.counted).ok_or_else(too_large)?;
        if below <= Dec::ZERO {
            self.end_fall(seen)?;
            self.highest = seen.counted;
            return self.count(risen, seen);
        }
        if let (true, Some(risen)) =
            (seen.has(flag::ROLLOVER), self.limits.over_the_top(counted.last.counted, seen.counted))
        {
            self.highest = seen.counted;
            self.count(risen, seen)?;
            self.counted = self.counted.map(|now| Consumption { rollovers: now.rollovers + 1, ..now });
            return Ok(());
        }
        self.low = Some(seen);
        Ok(())
    }

    /// The first values of a day may still be those of a register that fell the day before.
    fn begin(&mut self, seen: Seen<'a>) -> Result<(), &'static str> {
        if seen.fallen {
            self.low = Some(seen);
            return Ok(());
        }
        self.end_fall(seen)?;
        self.highest = seen.counted;
        self.counted = Some(Consumption { first: seen, last: seen, sum: Dec::ZERO, rollovers: 0 });
        Ok(())
    }

    /// A register that is where it was before it fell, by more than it can have counted meanwhile, has lost nothing. One
    /// that may have counted its way up may be another one.
    fn end_fall(&mut self, seen: Seen<'a>) -> Result<(), &'static str> {
        match self.low.take() {
            Some(low) if self.limits.goes_on(low.last(), seen.last()) => Err(flag::BACK_STEP),
            _ => Ok(()),
        }
    }

    fn count(&mut self, risen: Dec, seen: Seen<'a>) -> Result<(), &'static str> {
        let Some(counted) = &mut self.counted else { return Ok(()) };
        // Not from a zero: the digits behind the point are the display's.
        let one = counted.first.seq == counted.last.seq;
        let sum = if one { Some(risen) } else { counted.sum.plus(risen) };
        counted.sum = sum.ok_or("too_large")?;
        counted.last = seen;
        Ok(())
    }
}

#[cfg(test)]
#[path = "consumption_tests.rs"]
mod tests;
