//! The rules by tables: values in, flags out.

use proptest::prelude::*;

use super::*;

const ENERGY: u64 = 60;

fn dec(text: &str) -> Dec {
    text.parse().unwrap()
}

/// An integer register of hundredths, six digits before the point.
fn limits() -> Limits {
    Limits { capacity: dec("1000000"), max_per_hour: Dec::from(ENERGY), step: dec("0.01"), float: None }
}

/// A single precision float with one decimal on its display.
fn float() -> Limits {
    let float = Some((Dec::ONE, 23));
    Limits { capacity: dec("10000000"), max_per_hour: dec("69"), step: dec("0.1"), float }
}

fn at(secs: i64) -> Utc {
    Utc::from_timestamp(1_790_000_000 + secs, 0).unwrap()
}

fn says(last: &str, value: &str, secs: i64) -> Option<&'static str> {
    check(Some(History::of(dec(last), at(0))), dec(value), at(secs), limits()).flag
}

/// The flags of values a quarter of an hour apart, each held against what is known after the one before.
fn flags(values: &str, limits: Limits) -> Vec<&'static str> {
    let mut history = None;
    let values = values.split_whitespace().enumerate();
    values
        .map(|(n, value)| {
            let secs = i64::try_from(n).unwrap() * 900;
            let finding = check(history, dec(value), at(secs), limits);
            history = finding.after;
            finding.flag.unwrap_or("-")
        })
        .collect()
}

#[test]
fn each_rule_fires_on_its_own_case_and_not_beside_it() {
    assert_eq!(says("100.00", "115.00", 900), None); // a quarter of an hour at the rating
    assert_eq!(says("100.00", "119.20", 900), None); // 60 kWh/h × 960 s × 1.2
    assert_eq!(says("100.00", "119.21", 900), Some(flag::TOO_FAST));
    assert_eq!(says("100.00", "99.98", 900), Some(flag::ROUNDING));
    assert_eq!(says("100.00", "99.97", 900), Some(flag::BACK_STEP));
    assert_eq!(says("999995.00", "3.00", 900), Some(flag::ROLLOVER));
    assert_eq!(says("500000.00", "3.00", 900), Some(flag::BACK_STEP));
    assert_eq!(says("1234.50", "12345.10", 900), Some(flag::UNIT_JUMP));
    assert_eq!(says("12345.10", "123.45", 900), Some(flag::UNIT_JUMP));
    assert_eq!(says("100", "1000000", 900), Some(flag::OVER_CAPACITY));
    assert_eq!(says("100", "-1", 900), Some(flag::OVER_CAPACITY));
}

#[test]
fn the_first_value_is_believed() {
    let finding = check(None, dec("4711.5"), at(0), limits());
    assert_eq!((finding.flag, finding.after), (None, Some(History::of(dec("4711.5"), at(0)))));
}

#[test]
fn a_clock_that_was_set_back_allows_a_minute() {
    assert_eq!(says("100.00", "101.00", -3600), None);
}

/// As reported from the field (cases 11 and 13), and the same of other sizes.
#[test]
fn a_fall_within_the_resolution_is_a_rounding_and_no_more() {
    for (values, limits, expected) in [
        ("20292.8 20292.7 20292.8 20292.9 20292.8 20292.9", float(), "- rounding - - rounding -"),
        ("1000.0258 999.9598 1000.0418 1000.0499", float(), "- rounding - -"),
        // Held against the highest: 0.2 is the most, however small the falls.
        ("20292.8 20292.7 20292.6 20292.5 20292.4", float(), "- rounding rounding back_step back_step"),
        ("20292.8 20292.6", float(), "- rounding"),
        ("20292.8 20291.8", float(), "- back_step"),
        ("5.0 4.7", float(), "- back_step"),
        // 2^-23 of 2^19 is 0.0625: twice that is within a display of hundredths too.
        (
            "600000.125 600000.000",
            Limits { step: dec("0.01"), max_per_hour: dec("1"), ..float() },
            "- rounding",
        ),
        ("9999999 9999997 9999999", Limits { step: dec("0.01"), ..float() }, "- rounding -"),
        // An integer has no arithmetic of that kind.
        ("1000.03 999.97 1000.04", limits(), "- back_step -"),
        ("5000 4998 4997", Limits { step: dec("1"), ..limits() }, "- rounding back_step"),
        // Doubles are as exact as their display.
        (
            "1000.03 1000.01",
            Limits { step: dec("0.01"), float: Some((Dec::ONE, 52)), ..limits() },
            "- rounding",
        ),
    ] {
        assert_eq!(flags(values, limits).join(" "), expected, "{values}");
    }
}

#[test]
fn what_begins_again_at_its_capacity_is_a_rollover() {
    let at = |capacity: &str, step: &str| Limits { capacity: dec(capacity), step: dec(step), ..limits() };
    for (values, limits) in [
        ("655.29 655.33 0.01 0.05", at("655.36", "0.01")),
        ("4294967.291 4294967.295 0.003 0.007", at("4294967.296", "0.001")),
        ("999999.8 0.3", at("1000000", "0.1")),
        ("59999 1", at("60000", "1")),
    ] {
        let seen = flags(values, limits);
        assert!(seen.iter().all(|flag| ["-", flag::ROLLOVER].contains(flag)), "{values}: {seen:?}");
        assert_eq!(seen.iter().filter(|flag| **flag == flag::ROLLOVER).count(), 1, "{values}: {seen:?}");
    }
}

#[test]
fn a_register_that_fell_is_not_believed_until_it_has_counted_upwards_for_a_while() {
    for (values, expected) in [
        ("40482.8 0 0 40482.8 40482.9", "- back_step back_step - -"),
        (
            "40482.8 0 0 0 0 0 0 0 0 0 0 0",
            "- back_step back_step back_step back_step back_step back_step back_step back_step back_step back_step back_step",
        ),
        // Eight rises, with pauses and a rounding in between.
        (
            "40482.8 0 1 2 2 3 4 5 4.99 5 6 7 8 9",
            "- back_step back_step back_step back_step back_step back_step back_step back_step back_step back_step back_step - -",
        ),
        // Zero again: from the beginning.
        (
            "40482.8 0 1 2 3 4 5 6 7 0 1 2",
            "- back_step back_step back_step back_step back_step back_step back_step back_step back_step back_step back_step",
        ),
        // Jumping back is no counting, unless to where it was.
        ("40482.8 0 500 501 40482.8", "- back_step back_step back_step -"),
        ("40482.8 0 0 90000", "- back_step back_step too_fast"),
        ("40482.8 4048.28 4048.29 40483", "- unit_jump unit_jump -"),
    ] {
        assert_eq!(flags(values, limits()).join(" "), expected, "{values}");
    }
}

/// Both looks showed it, and still it was wrong: what was believed before is not forgotten at once.
#[test]
fn a_register_that_leapt_and_is_back_is_good() {
    for (values, expected) in [
        ("1000 5000 1001 1002", "- too_fast - -"),
        ("1234.5 12345.1 12345.2 1234.6 1234.5", "- unit_jump - - back_step"),
        ("1000 5000 9000 9001 1003", "- too_fast too_fast - -"),
        ("1000 5000 0 0 1003", "- too_fast back_step back_step -"),
        ("1000 5000 999", "- too_fast back_step"),
        // After eight rises it has not been wrong.
        ("1000 5000 5001 5002 5003 5004 5005 5006 5007 1020", "- too_fast - - - - - - - -"),
        ("1000 5000 5001 5002 5003 5004 5005 5006 5007 5008 1020", "- too_fast - - - - - - - - back_step"),
    ] {
        assert_eq!(flags(values, limits()).join(" "), expected, "{values}");
    }
}

#[test]
fn only_what_is_new_is_read_again() {
    let surprises = |values: &str| {
        let mut history = None;
        let look = |value: &str| {
            let finding = check(history, dec(value), at(0), limits());
            history = finding.after;
            finding.surprise
        };
        values.split_whitespace().map(look).collect::<Vec<_>>()
    };
    assert_eq!(surprises("100.00 99.99 50 50.1 50.2 0 0"), [false, false, true, false, false, true, false]);
}

#[test]
fn what_no_register_can_show_changes_nothing() {
    assert_eq!(
        flags("100 1000000 -1 100.1 50", limits()),
        ["-", "over_capacity", "over_capacity", "-", "back_step"]
    );
    assert_eq!(flags("-5 100", limits()), ["over_capacity", "-"]);
}

proptest! {
    #[test]
    fn within_the_rating_nothing_is_said_and_beyond_it_something_is(
        last in 0_i128..99_000_000, risen in 0_i128..100_000, secs in 0_i64..100_000,
    ) {
        let before = History::of(Dec::from_parts(last, 2).unwrap(), at(0));
        let value = Dec::from_parts(last + risen, 2).unwrap();
        // 60 kWh/h × 1.2 = 2 Wh/s: in hundredths of a kWh, 2 per second.
        let possible = risen <= i128::from(secs + 60) * 2;
        prop_assert_eq!(check(Some(before), value, at(secs), limits()).flag.is_none(), possible);
    }

    /// However it goes down, what is believed never does, but over the top or after rises enough.
    #[test]
    fn what_is_believed_never_falls_by_small_steps(steps in prop::collection::vec(-3_i128..2, 1..60)) {
        let mut value = 10_000_000;
        let mut history = None;
        let mut highest = Dec::ZERO;
        for (n, step) in (0..).zip(steps) {
            value += step;
            let seen = Dec::from_parts(value, 2).unwrap();
            let finding = check(history, seen, at(n * 900), limits());
            history = finding.after;
            highest = highest.max(seen);
            let below = highest.minus(seen).unwrap();
            if below > dec("0.02") {
                prop_assert!(finding.flag == Some(flag::BACK_STEP) || finding.flag.is_none());
            } else if below > Dec::ZERO {
                prop_assert!(finding.flag == Some(flag::ROUNDING) || finding.flag.is_none(), "{:?}", finding);
            }
            if finding.flag.is_none() && below > Dec::ZERO {
                break; // it has proved itself
            }
        }
    }
}
