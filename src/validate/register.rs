//! The rules for one cumulative register against its own history.

use crate::model::{Dec, Utc, flag};

/// The last value that was believed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Last {
    /// What the display showed.
    pub value: Dec,
    /// When.
    pub at: Utc,
}

/// Limits of one register of one meter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The first value that the display cannot show.
    pub capacity: Dec,
    /// The most that it can rise in an hour.
    pub max_per_hour: Dec,
}

/// Something that speaks against a value until a second look confirms it.
#[derive(Debug, Clone, PartialEq)]
pub struct Surprise {
    /// The rule.
    pub flag: &'static str,
    /// The most that the register could have risen since.
    pub allowed: Option<Dec>,
}

/// Meters refresh their words up to once a minute (Itron CF), so a minute more than the clock says may have
/// passed between two values.
const REFRESH_SECS: i64 = 60;

/// What the rules say of `value` at `at`. `None`: nothing speaks against it.
pub fn check(last: Option<Last>, value: Dec, at: Utc, limits: Limits) -> Option<Surprise> {
    if value.is_negative() || value >= limits.capacity {
        return Some(Surprise { flag: flag::OVER_CAPACITY, allowed: None });
    }
    let last = last?;
    let allowed = allowed(last.at, at, limits);
    let risen = value.minus(last.value)?;
    if risen.is_negative() {
        let over_the_top = limits.capacity.minus(last.value)?.plus(value)?;
        let rolled = last.value > ninety_percent(limits.capacity)? && over_the_top <= allowed?;
        let flag = match () {
            () if rolled => flag::ROLLOVER,
            () if is_power_of_ten_apart(last.value, value) => flag::UNIT_JUMP,
            () => flag::BACK_STEP,
        };
        return Some(Surprise { flag, allowed });
    }
    if risen > allowed? {
        let jumped = is_power_of_ten_apart(last.value, value);
        let flag = if jumped { flag::UNIT_JUMP } else { flag::TOO_FAST };
        return Some(Surprise { flag, allowed });
    }
    None
}

/// Whether two looks, moments apart, show the same register.
pub fn agrees(first: Last, second: Last, limits: Limits) -> bool {
    let apart = second.value.minus(first.value).map(Dec::abs);
    matches!((apart, allowed(first.at, second.at, limits)), (Some(apart), Some(allowed)) if apart <= allowed)
}

/// `max_per_hour` × time × 1.2: meters may be overloaded by a fifth, and a rating is no exact limit.
fn allowed(from: Utc, to: Utc, limits: Limits) -> Option<Dec> {
    let secs = (to - from).num_seconds().max(0) + REFRESH_SECS;
    let secs = Dec::from(u64::try_from(secs).ok()?);
    limits.max_per_hour.times(secs)?.times(Dec::from(12))?.ratio(Dec::from(36_000))
}

fn ninety_percent(capacity: Dec) -> Option<Dec> {
    capacity.times(Dec::from(9))?.ratio(Dec::from(10))
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dec(text: &str) -> Dec {
        text.parse().unwrap()
    }

    fn limits() -> Limits {
        Limits { capacity: dec("1000000"), max_per_hour: dec("60") }
    }

    fn at(secs: i64) -> Utc {
        Utc::from_timestamp(1_790_000_000 + secs, 0).unwrap()
    }

    fn says(last: &str, value: &str, secs: i64) -> Option<&'static str> {
        let last = Last { value: dec(last), at: at(0) };
        check(Some(last), dec(value), at(secs), limits()).map(|surprise| surprise.flag)
    }

    #[test]
    fn each_rule_fires_on_its_own_case_and_not_beside_it() {
        assert_eq!(says("100.00", "115.00", 900), None); // a quarter of an hour at the rating
        assert_eq!(says("100.00", "119.20", 900), None); // 60 kWh/h × 960 s × 1.2
        assert_eq!(says("100.00", "119.21", 900), Some(flag::TOO_FAST));
        assert_eq!(says("100.00", "99.99", 900), Some(flag::BACK_STEP));
        assert_eq!(says("999995.00", "3.00", 900), Some(flag::ROLLOVER));
        assert_eq!(says("500000.00", "3.00", 900), Some(flag::BACK_STEP));
        assert_eq!(says("1234.50", "12345.10", 900), Some(flag::UNIT_JUMP));
        assert_eq!(says("12345.10", "123.45", 900), Some(flag::UNIT_JUMP));
        assert_eq!(says("100", "1000000", 900), Some(flag::OVER_CAPACITY));
        assert_eq!(says("100", "-1", 900), Some(flag::OVER_CAPACITY));
    }

    #[test]
    fn the_first_value_is_believed() {
        assert_eq!(check(None, dec("4711.5"), at(0), limits()), None);
    }

    #[test]
    fn a_clock_that_was_set_back_allows_a_minute() {
        assert_eq!(says("100.00", "101.00", -3600), None);
    }

    proptest! {
        #[test]
        fn within_the_rating_nothing_is_said_and_beyond_it_something_is(
            last in 0_i128..99_000_000, risen in 0_i128..100_000, secs in 0_i64..100_000,
        ) {
            let before = Last { value: Dec::from_parts(last, 2).unwrap(), at: at(0) };
            let value = Dec::from_parts(last + risen, 2).unwrap();
            // 60 kWh/h × 1.2 = 2 Wh/s: in hundredths of a kWh, 2 per second.
            let possible = risen <= i128::from(secs + 60) * 2;
            prop_assert_eq!(check(Some(before), value, at(secs), limits()).is_none(), possible);
        }
    }
}
