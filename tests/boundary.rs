//! When a day ends for billing: the production keeper, under a clock that is set, held over and trusted again.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/days.rs"]
mod days;

use std::{sync::Arc, time::Duration};

use chrono::TimeDelta;
use days::{Hands, all_due, fixed, good, manifests, reading, settings, utc};
use meter_gateway::{
    billing::{Keeper, answer},
    clock::{Clock, SimulatedClock},
    ledger::{MemoryLedger, SharedLedger},
    model::{ClockState, Draft},
};
use serde_json::{Map, json};

#[tokio::test(start_paused = true)]
async fn no_day_ends_by_a_clock_that_nobody_vouches_for() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), "UTC", 1);
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("ab"));
    ledger.append(vec![reading(&good("E-0000", "2026-11-01T18:00:00Z", "1.00"))]).await.unwrap();
    let clock = Arc::new(SimulatedClock::starting_at(utc("2026-11-01T18:00:10Z"), ClockState::Unsynced));
    let mut keeper = Keeper::new(Arc::clone(&ledger), fixed(), Arc::clone(&clock) as _);
    let none: [&str; 0] = [];
    let hours = |hours: u64| tokio::time::advance(Duration::from_secs(3600 * hours));

    hours(8).await;
    assert_eq!(all_due(&mut keeper, &settings).await, none, "midnight has passed, or so it seems");
    clock.step(TimeDelta::days(3));
    assert_eq!(all_due(&mut keeper, &settings).await, none);
    hours(1).await;
    assert!(clock.wall() > utc("2026-11-05T00:00:00Z"), "set by hand, and followed in the end");
    assert_eq!(all_due(&mut keeper, &settings).await, none);
    for asked in [None, Some("2026-11-01")] {
        let refused =
            answer(&*ledger, &settings, asked.map(|date| date.parse().unwrap()), &*clock).unwrap_err();
        let why = refused.to_string();
        assert!(why.contains("nobody vouches for the clock") && why.contains("hint:"), "{why}");
    }

    clock.synchronise(true);
    assert_eq!(
        all_due(&mut keeper, &settings).await,
        ["2026-11-01", "2026-11-02", "2026-11-03", "2026-11-04"],
        "in order"
    );
    assert_eq!(all_due(&mut keeper, &settings).await, none, "and once");

    // A clock that held over is trusted; one that was set is not, whatever it shows.
    clock.synchronise(false);
    hours(22).await;
    assert_eq!(
        (clock.state(), all_due(&mut keeper, &settings).await),
        (ClockState::Holdover, vec!["2026-11-05".into()])
    );
    clock.step(TimeDelta::days(40));
    hours(1).await;
    assert_eq!(all_due(&mut keeper, &settings).await, none);
    let shown = answer(&*ledger, &settings, Some("2026-11-01".parse().unwrap()), &*clock).unwrap();
    assert_eq!(shown["recorded"], true, "what is on record may be shown by any clock");
    clock.step_and_synchronise(-TimeDelta::days(40));
    assert_eq!(all_due(&mut keeper, &settings).await, none, "the day has not ended");
    let dates: Vec<_> = manifests(&*ledger).iter().map(|m| (m["date"].clone(), m["clock"].clone())).collect();
    let made = [("01", "synced"), ("02", "synced"), ("03", "synced"), ("04", "synced"), ("05", "holdover")];
    assert_eq!(dates, made.map(|(day, state)| (json!(format!("2026-11-{day}")), json!(state))));
}

#[tokio::test]
async fn a_ledger_that_began_by_a_wrong_clock_owes_no_manifests_of_days_before_it() {
    let at = |text: &str, state| Draft::change("clock_untrusted", Map::new(), utc(text), state);
    let fix = |from: u64, offset: TimeDelta| {
        let fields = Map::from_iter([
            ("from_seq".into(), from.into()),
            ("to_seq".into(), 1.into()),
            ("offset_ms".into(), offset.num_milliseconds().into()),
        ]);
        Draft::change("time_fix", fields, utc("2026-11-03T10:00:00Z"), ClockState::Synced)
    };
    let off = utc("2026-11-02T10:00:00Z") - utc("1970-01-01T00:00:00Z");
    for (first, fixed_by, due) in [
        ("1970-01-01T00:00:00Z", Some(off), vec!["2026-11-02", "2026-11-03"]),
        ("1970-01-01T00:00:00Z", None, vec!["2026-11-03"]),
        ("2099-01-01T00:00:00Z", None, vec!["2026-11-03"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), "UTC", 1);
        let ledger: SharedLedger = Arc::new(MemoryLedger::new("ab"));
        let mut drafts = vec![at(first, ClockState::Unsynced)];
        drafts.push(fixed_by.map_or(at("2026-11-03T10:00:00Z", ClockState::Synced), |offset| fix(1, offset)));
        ledger.append(drafts).await.unwrap();
        let mut keeper = Keeper::new(Arc::clone(&ledger), fixed(), Hands::at("2026-11-04T00:10:00Z"));
        assert_eq!(all_due(&mut keeper, &settings).await, due, "{first} {fixed_by:?}");
    }

    // A keeper that looks between the first trusted record and the `time_fix` waits for it.
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), "UTC", 1);
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("ab"));
    let trusted = at("2026-11-04T00:00:10Z", ClockState::Synced);
    ledger.append(vec![at("1970-01-01T00:00:00Z", ClockState::Unsynced), trusted]).await.unwrap();
    let clock = Hands::at("2026-11-04T00:00:11Z");
    let mut keeper = Keeper::new(Arc::clone(&ledger), fixed(), Arc::clone(&clock) as _);
    assert!(all_due(&mut keeper, &settings).await.is_empty());
    ledger.append(vec![fix(1, off)]).await.unwrap();
    clock.set("2026-11-04T00:10:00Z");
    assert_eq!(all_due(&mut keeper, &settings).await, ["2026-11-02", "2026-11-03"]);
}
