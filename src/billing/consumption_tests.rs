//! Days by tables: what the display showed, a quarter of an hour apart, through the rules, and what it came to.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Map;

use super::*;
use crate::{
    model::{Medium, PointValue, Unit},
    validate::{History, check, verdict},
};

fn dec(text: &str) -> Dec {
    text.parse().unwrap()
}

fn name() -> PointName {
    "energy_import_total".parse().unwrap()
}

fn limits(capacity: &str, step: &str, fraction: Option<u32>) -> Limits {
    let float = fraction.map(|bits| (Dec::ONE, bits));
    Limits { capacity: dec(capacity), step: dec(step), max_per_hour: dec("69"), float }
}

/// A display of tenths, as a single precision float.
fn float() -> Limits {
    limits("10000000", "0.1", Some(23))
}

fn hundredths() -> Limits {
    limits("1000000", "0.01", None)
}

/// The readings of these values, flagged as they would be; the first belongs to the day before where `before` is set.
fn readings(values: &str, limits: Limits) -> Vec<(Seq, Reading)> {
    let begin: Utc = "2026-11-01T00:00:00Z".parse().unwrap();
    let mut history: Option<History> = None;
    let reading = |(n, text): (i32, &str)| {
        let at = begin + chrono::TimeDelta::minutes(15) * n;
        let value = dec(text);
        let finding = check(history, value, at, limits);
        history = finding.after;
        let flags: BTreeSet<String> = finding.flag.iter().map(ToString::to_string).collect();
        let mut evidence = Map::new();
        if finding.flag.is_some() {
            let believed = history.map(History::to_json);
            evidence.insert(name().to_string(), json!({"rule": finding.flag, "believed": believed}));
        }
        let unit = Unit::KilowattHour;
        let point =
            PointValue { value: Some(value), unit, raw: None, multiplier: None, reason: None, set: None };
        let reading = Reading {
            meter: "E-1".parse().unwrap(),
            medium: Medium::Electricity,
            scheduled_at: at,
            taken_at: Some(at),
            origin: Origin::Measured,
            verdict: verdict(&flags),
            flags,
            values: BTreeMap::from([(name(), point)]),
            evidence,
        };
        (u64::try_from(n).unwrap() + 1, reading)
    };
    (0..).zip(values.split_whitespace()).map(reading).collect()
}

fn says(readings: &[(Seq, Reading)], limits: Limits) -> String {
    let seen: Vec<Seen> =
        readings.iter().filter_map(|(seq, reading)| Seen::of(&name(), *seq, reading)).collect();
    match consumption(&seen, limits) {
        Ok(Consumption { sum, rollovers: 0, .. }) => sum.to_string(),
        Ok(Consumption { sum, rollovers, .. }) => format!("{sum} over the top {rollovers}"),
        Err(reason) => reason.to_owned(),
    }
}

/// A day, and what it came to.
fn day(values: &str, limits: Limits) -> String {
    says(&readings(values, limits), limits)
}

#[test]
fn a_rounding_costs_nothing_and_a_larger_fall_the_day() {
    for (values, limits, expected) in [
        ("20292.8 20292.7 20292.8 20292.9 20292.8 20292.9", float(), "0.1"),
        ("1000.0258 999.9598 1000.0418 1000.0499", float(), "0.0241"),
        ("20292.8 20292.9 20292.8", float(), "0.1"), // the next day counts from 20292.9
        ("20292.8 20292.7", float(), "0.0"),
        ("20292.8 20293.4 20293.3 20293.2 20293.9", float(), "1.1"),
        ("20292.8 20292.7 20292.6 20292.5 20292.4", float(), "back_step"),
        ("20292.8 20290.0 20290.1", float(), "back_step"),
        ("20292.8 20290.0 20292.9", float(), "back_step"),
        ("100.00 99.99 100.01", hundredths(), "0.01"),
        ("100.00 99.97 100.01", hundredths(), "back_step"),
    ] {
        assert_eq!(day(values, limits), expected, "{values}");
    }
}

/// Wherever midnight falls between two readings that both days have, what the days come to is what all came to.
#[test]
fn days_add_up_to_the_whole_wherever_midnight_falls() {
    let shown = "20292.8 20292.7 20292.8 20292.9 20292.8 20293.0 20292.9 20292.9 20293.1 20293.0";
    let all = readings(shown, float());
    let sum = |part: &[(Seq, Reading)]| -> Dec { dec(&says(part, float())) };
    assert_eq!(sum(&all), dec("0.3"));
    for midnight in 1..all.len() - 1 {
        let (before, after) = (sum(&all[..=midnight]), sum(&all[midnight..]));
        assert_eq!(before.plus(after), Some(dec("0.3")), "{before} and {after} at {midnight}");
        assert!(!before.is_negative() && !after.is_negative());
    }
}

#[test]
fn a_day_goes_on_over_the_top_wherever_that_is() {
    for (values, limits, expected) in [
        ("655.29 655.33 0.01 0.05", limits("655.36", "0.01", None), "0.12 over the top 1"),
        ("4294967.291 4294967.295 0.003 0.007", limits("4294967.296", "0.001", None), "0.012 over the top 1"),
        // Around the top, and a rounding on each side of it.
        ("655.33 655.32 655.35 0.02 0.01 0.05", limits("655.36", "0.01", None), "0.08 over the top 1"),
        ("999999.90 0.30 0.20 0.40", limits("1000000", "0.1", Some(23)), "0.50 over the top 1"),
    ] {
        assert_eq!(day(values, limits), expected, "{values}");
    }
}

#[test]
fn zeros_after_power_up_are_passed_over_where_the_register_is_back() {
    for (values, expected) in [
        ("40482.80 0 0 40482.80", "0.00"),
        ("40482.80 0 0 40482.80 40482.95", "0.15"),
        ("40482.80 0 0 0", "back_step"),
        // It counted from 0: another register, or the same; nobody knows.
        ("40482.80 0 1 2 3 4 5 6 7 8 9 10", "back_step"),
        ("3 0 1 2 4 5", "back_step"),
        ("40482.80 0 0 40400.00 40400.00", "back_step"),
        ("40482.80 0 0 50000 50001", "too_fast"),
    ] {
        assert_eq!(day(values, hundredths()), expected, "{values}");
    }
}

/// A day that begins while the register is still down: the readings of the day before are not its own.
#[test]
fn a_day_that_begins_in_a_fall_counts_from_where_the_register_is_back() {
    for (values, skip, expected) in [
        ("40482.80 0 0 40482.80 40483.00", 1, "0.20"),
        ("40482.80 0 0 40482.80 40483.00", 2, "0.20"),
        ("40482.80 0 0 0 0", 2, "back_step"),
        ("40482.80 0 1 2 3 4 5 6 7 8 9 10", 3, "back_step"),
        ("40482.80 0 1 2 3 4 5 6 7 8 9 10", 9, "2"), // believed again from 8 on
        ("20292.80 20292.79 20292.90", 1, "0.10"),   // the day before came to 20292.80
    ] {
        let all = readings(values, hundredths());
        assert_eq!(says(&all[skip..], hundredths()), expected, "{values} from {skip}");
    }
}

#[test]
fn first_and_last_are_those_that_were_counted_from() {
    let all = readings("40482.80 0 40482.80 40482.95", hundredths());
    let seen: Vec<Seen> =
        all[1..].iter().filter_map(|(seq, reading)| Seen::of(&name(), *seq, reading)).collect();
    let counted = consumption(&seen, hundredths()).unwrap();
    assert_eq!((counted.first.seq, counted.last.seq, counted.sum), (3, 4, dec("0.15")));
}

/// Flags speak of a whole reading: another register's rollover is none of this one's.
#[test]
fn a_rollover_of_another_register_is_none_of_this_one() {
    let mut all = readings("100.00 99.99 100.20", hundredths());
    all[1].1.flags.insert(flag::ROLLOVER.to_owned());
    assert_eq!(says(&all, hundredths()), "0.20");
}
