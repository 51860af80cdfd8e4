//! The rules for one cumulative register against its own history.

use super::{Fallen, History, Last, Leapt};
use crate::{
    model::{Dec, Utc, flag},
    profile::{Kind, Point},
};

/// Limits of one register of one meter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The first value that the register cannot show: it begins again at 0 there.
    pub capacity: Dec,
    /// The most that it can rise in an hour.
    pub max_per_hour: Dec,
    /// Its smallest difference.
    pub step: Dec,
    /// For a float: how it is scaled, and the bits of its fraction.
    pub float: Option<(Dec, u32)>,
}

/// What the rules say of a value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finding {
    /// The rule that fired.
    pub flag: Option<&'static str>,
    /// Whether the register is read again before that is believed.
    pub surprise: bool,
    /// The most that the register could have risen since; for a rounding, the most that counts as one.
    pub allowed: Option<Dec>,
    /// What is known of the register once the value is final.
    pub after: Option<History>,
}

/// Meters refresh their words up to once a minute (Itron CF), so a minute more than the clock says may have
/// passed between two values.
const REFRESH_SECS: i64 = 60;
/// Steps of the last digit, or of the float at that size, that a register may fall by rounding: two numbers that are each
/// rounded differ by one step more than the amounts behind them.
const ROUNDING_STEPS: u64 = 2;
/// Millionths of its value that a float may fall: a meter that adds up in single precision, and adds up anew, comes to
/// another sum (66 millionths have been reported).
const FLOAT_MILLIONTHS: u64 = 100;
/// Yet no more than the register counts in so many seconds at its rating: beyond that it is worth money.
const FLOAT_SECS: u64 = 10;
/// Rises after which a register that fell is believed, and one that leapt has not been wrong: two hours at a quarter of an
/// hour. A meter that has not loaded its register yet after power-up stands still, or is through within seconds.
const PROVING_RISES: u32 = 8;

impl Limits {
    /// Of a point, if it is a register; `own`: the rating of this very meter.
    pub fn of(point: &Point, own: Option<Dec>) -> Option<Limits> {
        let register = point.register?;
        let fraction = match point.cell.encoding.kind {
            Kind::F32 => Some(23),
            Kind::F64 => Some(52),
            _ => None,
        };
        Some(Limits {
            capacity: register.capacity,
            max_per_hour: own.unwrap_or(register.max_per_hour),
            step: register.step,
            float: fraction.map(|bits| (point.cell.scale, bits)),
        })
    }

    /// The most that the register can fall from `value` by its own arithmetic.
    pub fn rounding(self, value: Dec) -> Option<Dec> {
        let steps = self.step.times(Dec::from(ROUNDING_STEPS))?;
        let Some((scale, fraction)) = self.float else { return Some(steps) };
        let bits = float_step(value.ratio(scale)?, fraction)
            .and_then(|step| step.times(scale)?.times(Dec::from(ROUNDING_STEPS)));
        let share = value.times(Dec::from(FLOAT_MILLIONTHS))?.ratio(Dec::from(1_000_000))?;
        let counted = self.max_per_hour.times(Dec::from(FLOAT_SECS))?.ratio(Dec::from(3600))?;
        Some(steps.max(bits.unwrap_or_default()).max(share.min(counted)))
    }

    /// How far a register rose that went from `before` over its top to `value`; `None` where `before` is not near the top,
    /// or beyond it.
    pub fn over_the_top(self, before: Dec, value: Dec) -> Option<Dec> {
        let near =
            before > self.capacity.times(Dec::from(9))?.ratio(Dec::from(10))? && before < self.capacity;
        if near { self.capacity.minus(before)?.plus(value) } else { None }
    }

    /// The most that the register can rise between two moments: `max_per_hour` × time × 1.2. Meters may be overloaded by a
    /// fifth, and a rating is no exact limit.
    pub fn allowed(self, from: Utc, to: Utc) -> Option<Dec> {
        let secs = (to - from).num_seconds().max(0) + REFRESH_SECS;
        let secs = Dec::from(u64::try_from(secs).ok()?);
        self.max_per_hour.times(secs)?.times(Dec::from(12))?.ratio(Dec::from(36_000))
    }

    /// Whether `to` is `from` some time later: risen by no more than allowed, or the same but for rounding.
    pub fn goes_on(self, from: Last, to: Last) -> bool {
        let rise = || {
            let risen = to.value.minus(from.value)?;
            let allowed = self.allowed(from.at, to.at)?;
            Some(risen <= allowed && (!risen.is_negative() || risen.abs() <= self.rounding(from.value)?))
        };
        rise().unwrap_or(false)
    }
}

/// What the rules say of `value` at `at`.
pub fn check(history: Option<History>, value: Dec, at: Utc, limits: Limits) -> Finding {
    let finding = |flag, surprise, allowed, after| Finding { flag, surprise, allowed, after };
    if value.is_negative() || value >= limits.capacity {
        return finding(Some(flag::OVER_CAPACITY), true, None, history);
    }
    let now = History::of(value, at);
    let Some(before) = history else { return finding(None, false, None, Some(now)) };
    let last = before.believed;
    let allowed = limits.allowed(last.at, at);
    // Beyond what can be computed nothing is said: 28 digits hold every register there is.
    let Some(risen) = value.minus(last.value) else { return finding(None, false, None, Some(now)) };
    let jumped = || is_power_of_ten_apart(last.value, value);
    if !risen.is_negative() {
        if allowed.is_none_or(|allowed| risen <= allowed) {
            let leapt = before.leapt.and_then(|leapt| leapt.goes_on(!risen.is_zero()));
            return finding(None, false, allowed, Some(History { leapt, ..now }));
        }
        let flag = if jumped() { flag::UNIT_JUMP } else { flag::TOO_FAST };
        let leapt = before.leapt.map_or(last, |leapt| leapt.before);
        let leapt = Some(Leapt { before: leapt, rises: 0 });
        return finding(Some(flag), true, allowed, Some(History { leapt, ..now }));
    }
    if limits.over_the_top(last.value, value).zip(allowed).is_some_and(|(risen, allowed)| risen <= allowed) {
        return finding(Some(flag::ROLLOVER), true, allowed, Some(now));
    }
    let rounding = limits.rounding(last.value);
    if rounding.is_some_and(|rounding| risen.abs() <= rounding) {
        let after = History { leapt: before.leapt, ..History::of(last.value, at) };
        return finding(Some(flag::ROUNDING), false, rounding, Some(after));
    }
    let now_at = now.believed;
    if before.leapt.is_some_and(|leapt| limits.goes_on(leapt.before, now_at)) {
        return finding(None, false, allowed, Some(now));
    }
    let goes_on = before.fallen.and_then(|fallen| fallen.goes_on(now_at, limits));
    if goes_on.is_some_and(|fallen| fallen.rises >= PROVING_RISES) {
        return finding(None, false, None, Some(now));
    }
    let fallen = goes_on.unwrap_or(Fallen { highest: now_at, rises: 0, by_unit: jumped() });
    let flag = if fallen.by_unit { flag::UNIT_JUMP } else { flag::BACK_STEP };
    let after = History { fallen: Some(fallen), ..before };
    finding(Some(flag), goes_on.is_none(), allowed, Some(after))
}

impl Leapt {
    /// With one ordinary value more; `None` where it is proved.
    fn goes_on(self, higher: bool) -> Option<Leapt> {
        let rises = self.rises + u32::from(higher);
        (rises < PROVING_RISES).then_some(Leapt { rises, ..self })
    }
}

impl Fallen {
    /// With one value more; `None` where the register fell or jumped anew.
    fn goes_on(self, now: Last, limits: Limits) -> Option<Fallen> {
        let Fallen { highest, rises, by_unit } =
            Some(self).filter(|fallen| limits.goes_on(fallen.highest, now))?;
        let risen = now.value > highest.value;
        let highest = Last { value: highest.value.max(now.value), at: now.at };
        Some(Fallen { highest, rises: rises + u32::from(risen), by_unit })
    }
}

/// Whether two looks, moments apart, show the same register.
pub fn agrees(first: Last, second: Last, limits: Limits) -> bool {
    let apart = second.value.minus(first.value).map(Dec::abs);
    matches!((apart, limits.allowed(first.at, second.at)), (Some(apart), Some(allowed)) if apart <= allowed)
}

/// The distance of a float with so many bits of fraction to its neighbour, at the size of `value` (from 1 on). `None` where
/// it is too small for an exact decimal.
fn float_step(value: Dec, fraction: u32) -> Option<Dec> {
    let (mantissa, decimals) = value.abs().parts();
    let whole = mantissa.checked_div(10_i128.checked_pow(decimals)?)?;
    let exponent = whole.checked_ilog2().unwrap_or(0);
    match fraction.checked_sub(exponent) {
        Some(halvings) => Dec::from_parts(5_i128.checked_pow(halvings)?, halvings),
        None => Dec::from_parts(2_i128.checked_pow(exponent - fraction)?, 0),
    }
}

/// Within 5 % of a factor of 10, 100, … 10^6, either way: a decimal point that moved.
fn is_power_of_ten_apart(a: Dec, b: Dec) -> bool {
    let (small, large) = if a < b { (a, b) } else { (b, a) };
    if small.is_zero() {
        return false;
    }
    let Some(ratio) = large.ratio(small) else { return false };
    (1..=6).any(|n| {
        let Some(power) = Dec::power_of_ten(n) else { return false };
        let off = ratio.minus(power).map(Dec::abs).and_then(|off| off.times(Dec::from(20)));
        off.is_some_and(|off| off <= power)
    })
}

#[cfg(test)]
#[path = "register_tests.rs"]
mod tests;
