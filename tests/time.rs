//! The calendar and the clock against the production schedule, clock and ledger, with time that moves only when told:
//! no slot is lost, none has two records, polling never stops, and what was wrong can be set right afterwards.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chrono::TimeDelta;
use meter_gateway::{
    bus::{Action, MeterPlan, Now, Schedule},
    clock::{Clock, PATIENCE, SimulatedClock},
    ledger::{MemoryLedger, SharedLedger},
    model::{ClockState, Draft, Medium, MeterId, Origin, Reading, Slots, Utc, Verdict},
    pipeline::{TimeTeller, highest_slot},
    profile::{Catalogue, plan},
    protocol::{Address, Outcome, Pace, Payload},
};
use serde_json::Value;
use tokio::time::{Instant, advance};

const METERS: usize = 2;
const QUARTER: i64 = 900;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn utc(text: &str) -> Utc {
    text.parse().unwrap()
}

fn meter(number: usize) -> MeterId {
    format!("M{number}").parse().unwrap()
}

/// A gateway with one bus of meters that answer, without its tasks: clock, schedule, ledger, and who tells of the clock.
struct World {
    clock: Arc<SimulatedClock>,
    ledger: SharedLedger,
    schedule: Schedule,
    teller: TimeTeller,
    zone: chrono_tz::Tz,
    /// Monotonic moments of the stored readings of the first meter.
    stored: Vec<Instant>,
}

impl World {
    fn new(zone: &str, at: &str, state: ClockState) -> World {
        let ledger: SharedLedger = Arc::new(MemoryLedger::new("0123456789abcdef0123456789abcdef"));
        World::over(ledger, zone, at, state)
    }

    /// A start of the gateway over what an earlier one stored.
    fn over(ledger: SharedLedger, zone: &str, at: &str, state: ClockState) -> World {
        let clock = Arc::new(SimulatedClock::starting_at(utc(at), state));
        let zone = zone.parse().unwrap();
        let teller = TimeTeller::new(Arc::clone(&clock) as _, Arc::clone(&ledger));
        let schedule = schedule(&ledger, zone, Now { instant: Instant::now(), wall: clock.wall() });
        World { clock, ledger, schedule, teller, zone, stored: Vec::new() }
    }

    async fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let now = Now { instant: Instant::now(), wall: self.clock.wall() };
            match self.schedule.poll_action(now) {
                Action::Exchange(exchange) => {
                    advance(Duration::from_millis(50)).await;
                    let read = exchange.query.question.modbus().unwrap();
                    let payload = Payload::Words(vec![0; usize::from(read.count)]);
                    let outcome =
                        Outcome::Answered { payload, at: self.clock.wall(), elapsed: Duration::ZERO };
                    let now = Now { instant: Instant::now(), wall: self.clock.wall() };
                    self.schedule.handle_outcome(&outcome, now);
                }
                Action::Wait(time) => advance(time.max(Duration::from_millis(1))).await,
            }
            while let Some(sweep) = self.schedule.poll_sweep() {
                let answered = !sweep.asked.is_empty();
                let reading = Reading {
                    meter: meter(sweep.meter),
                    medium: Medium::Electricity,
                    scheduled_at: sweep.scheduled_at,
                    taken_at: answered.then(|| self.clock.wall()),
                    origin: if answered { Origin::Measured } else { Origin::Missing },
                    verdict: Verdict::Good,
                    flags: BTreeSet::new(),
                    values: BTreeMap::new(),
                    evidence: serde_json::Map::new(),
                };
                if sweep.meter == 0 {
                    self.stored.push(Instant::now());
                }
                let draft = Draft::reading(reading.clone(), self.clock.wall(), self.clock.state());
                self.ledger.append(vec![draft]).await.unwrap();
            }
            self.teller.tell().await;
        }
    }

    fn records(&self) -> Vec<Value> {
        let lines = self.ledger.read(1, usize::MAX, usize::MAX).unwrap();
        lines.iter().map(|line| serde_json::from_slice(&line.bytes).unwrap()).collect()
    }

    fn changes(&self, what: &str) -> Vec<Value> {
        self.records().into_iter().filter(|record| record["change"] == what).collect()
    }

    fn slots(&self, number: usize) -> Vec<Utc> {
        let id = meter(number);
        let mine = |record: &Value| record["meter"] == id.as_str();
        self.records()
            .iter()
            .filter(|record| mine(record))
            .map(|record| time(record, "scheduled_at"))
            .collect()
    }

    /// No meter has two records for one slot, and the time between two readings never exceeded one and a half
    /// intervals, the place beside the slot and what an exchange takes.
    fn check(&self) {
        for number in 0..METERS {
            let slots = self.slots(number);
            let distinct: BTreeSet<Utc> = slots.iter().copied().collect();
            assert_eq!(distinct.len(), slots.len(), "a slot of meter {number} has two records");
        }
        let most = Duration::from_secs(900 * 3 / 2 + 15);
        for pair in self.stored.windows(2) {
            assert!(pair[1] - pair[0] <= most, "nothing was read for {:?}", pair[1] - pair[0]);
        }
    }

    /// Every slot between the two moments that no step leapt over has its record.
    fn check_complete(&self, from: Utc, to: Utc) {
        let slots = Slots::new(self.zone, 900).unwrap();
        let steps: Vec<(Utc, Utc)> = self
            .changes("clock_stepped")
            .iter()
            .filter(|step| step["followed"] == true)
            .map(|step| (time(step, "from"), time(step, "to")))
            .collect();
        for number in 0..METERS {
            let have: BTreeSet<Utc> = self.slots(number).into_iter().collect();
            let mut slot = slots.next_after(from);
            while slot < to {
                let leapt = steps.iter().any(|(from, to)| slot > *from && slot <= *to);
                assert!(have.contains(&slot) || leapt, "meter {number} has no record for {slot}");
                slot = slots.next_after(slot);
            }
        }
    }
}

fn time(record: &Value, field: &str) -> Utc {
    record[field].as_str().unwrap().parse().unwrap()
}

fn schedule(ledger: &SharedLedger, zone: chrono_tz::Tz, now: Now) -> Schedule {
    let profile = Catalogue::builtin().get("eastron-sdm120").unwrap();
    let points: Vec<usize> = (0..profile.points.len()).collect();
    let plans = (0..METERS).map(|number| MeterPlan {
        id: meter(number),
        address: Address::Modbus(1),
        wire: None,
        requests: plan(&profile, &points, &Pace::Network),
        profile: Arc::clone(&profile),
        slots: Slots::new(zone, 900).ok(),
        timeout: Duration::from_millis(300),
        retries: 1,
        first_slot: None,
    });
    let latest: Vec<Option<Utc>> = (0..METERS).map(|number| highest_slot(ledger, &meter(number))).collect();
    Schedule::new(plans.collect(), now).recalling(&latest, ledger.head().borrow().seq)
}

#[tokio::test(start_paused = true)]
async fn the_calendar_costs_no_slot() {
    for (zone, from, days) in [
        ("Europe/Berlin", "2026-03-28T20:00:00Z", 2),       // forward
        ("Europe/Berlin", "2026-10-24T20:00:00Z", 2),       // back
        ("Australia/Lord_Howe", "2026-10-03T12:00:00Z", 1), // forward by half an hour
        ("Australia/Lord_Howe", "2026-04-04T12:00:00Z", 1), // back by half an hour
        ("Asia/Kolkata", "2028-02-28T12:00:00Z", 3),        // leap day, +05:30
        ("Asia/Shanghai", "2026-12-31T12:00:00Z", 1),
    ] {
        let mut world = World::new(zone, from, ClockState::Synced);
        world.run(DAY * days).await;
        world.check();
        let slots = world.slots(0);
        assert_eq!(slots.len(), usize::try_from(days * 96 - 1).unwrap(), "{zone} from {from}");
        // Every offset here is a multiple of the quarter hour: the slots are those of UTC.
        assert!(
            slots.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::seconds(QUARTER)),
            "{zone} {from}"
        );
        assert!(world.changes("clock_stepped").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_trusted_clock_steps_while_meters_are_read() {
    let steps = [TimeDelta::hours(1), TimeDelta::hours(-1), TimeDelta::days(1), TimeDelta::days(-1)];
    for by in steps {
        let mut world = World::new("Europe/Berlin", "2026-11-01T00:07:00Z", ClockState::Synced);
        world.run(HOUR * 5).await;
        let before = world.clock.wall();
        world.clock.step_and_synchronise(by);
        assert_eq!(world.clock.wall() - before, by, "followed at once");
        world.run(DAY * 2).await;
        world.check();
        world.check_complete(utc("2026-11-01T00:07:00Z"), world.clock.wall() - TimeDelta::minutes(1));
        let told = world.changes("clock_stepped");
        assert_eq!(told.len(), 1, "once for each step");
        assert_eq!(told[0]["by_ms"], by.num_milliseconds());
        assert_eq!((&told[0]["before"], &told[0]["followed"]), (&"synced".into(), &true.into()));
        let expected = 53 * 4;
        let read = world.slots(0).len();
        assert!(
            (expected - 3..=expected + 1).contains(&read),
            "{read} readings in 53 hours, after a step by {by}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_to_and_fro_gives_no_slot_two_records() {
    let mut world = World::new("Asia/Shanghai", "2026-11-01T00:07:00Z", ClockState::Synced);
    for hours in [-1, -1, 1, -3, 5, -24, 24, -24, 24, -1] {
        world.run(HOUR * 3).await;
        world.clock.step_and_synchronise(TimeDelta::hours(hours));
    }
    world.run(DAY * 2).await;
    world.check();
    world.check_complete(utc("2026-11-01T00:07:00Z"), world.clock.wall() - TimeDelta::minutes(1));
    assert_eq!(world.changes("clock_stepped").len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_box_without_a_battery_keeps_its_slots_and_says_later_when_they_were() {
    for (begin, truth) in [
        ("1970-01-01T00:00:20Z", "2026-11-01T12:34:56.789Z"),
        ("2026-03-01T08:00:00Z", "2026-11-01T12:34:56.789Z"),
        ("2027-11-01T12:34:00Z", "2026-11-01T12:34:56.789Z"), // ran ahead
    ] {
        let began = Instant::now();
        let mut world = World::new("Asia/Shanghai", begin, ClockState::Unsynced);
        world.run(HOUR * 3).await;
        let truly = utc(truth);
        let offset = truly - world.clock.wall();
        world.clock.step(offset);
        assert_eq!(world.clock.wall() + offset, truly, "not followed before somebody vouches for it");
        world.run(Duration::from_secs(5)).await;
        world.clock.synchronise(true);
        let trusted = Instant::now();
        world.run(HOUR * 3).await;
        world.check();

        let fixes = world.changes("time_fix");
        let [fix] = fixes.as_slice() else { panic!("{fixes:?}") };
        assert_eq!(fix["offset_ms"], offset.num_milliseconds());
        assert_eq!(fix["boot_id"], world.clock.boot_id());
        let steps = world.changes("clock_stepped");
        assert_eq!((steps.len(), &steps[0]["followed"]), (1, &false.into()));
        let covered = fix["from_seq"].as_u64().unwrap()..=fix["to_seq"].as_u64().unwrap();
        assert_eq!(*covered.start(), 1);
        // With the offset, every reading of the first three hours lies at its true moment.
        let (mut early, mut spacing) = (0, Vec::new());
        for record in world.records().iter().filter(|record| record["meter"] == "M0") {
            let seq = record["seq"].as_u64().unwrap();
            assert_eq!(record["clock"] == "unsynced", covered.contains(&seq), "{record}");
            if covered.contains(&seq) {
                early += 1;
                let set_right = time(record, "taken_at") + offset;
                let true_begin = truly - TimeDelta::from_std(trusted - began).unwrap();
                assert!(set_right >= true_begin && set_right <= truly + TimeDelta::seconds(6));
                spacing.push(time(record, "scheduled_at"));
            }
        }
        assert_eq!(early, 12, "the slots of three hours");
        assert!(spacing.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::seconds(QUARTER)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_by_hand_is_followed_after_a_while() {
    let mut world = World::new("Asia/Shanghai", "1970-01-01T00:00:20Z", ClockState::Unsynced);
    world.run(HOUR).await;
    world.clock.step(TimeDelta::days(20_000));
    world.run(PATIENCE / 2).await;
    assert!(world.clock.wall() < utc("1971-01-01T00:00:00Z"));
    world.run(PATIENCE).await;
    assert!(world.clock.wall() > utc("2024-01-01T00:00:00Z"));
    world.run(HOUR).await;
    world.check();
    assert_eq!(world.changes("clock_stepped").len(), 2, "when it was set and when it was followed");
    assert!(world.records().iter().all(|record| record["clock"] == "unsynced"));
    world.clock.synchronise(true);
    world.run(HOUR).await;
    let offsets: Vec<Value> = world.changes("time_fix").iter().map(|fix| fix["offset_ms"].clone()).collect();
    assert_eq!(offsets, [Value::from(TimeDelta::days(20_000).num_milliseconds()), 0.into()]);
}

#[tokio::test(start_paused = true)]
async fn a_start_behind_the_ledger_reads_on_beside_the_slots_it_has() {
    for behind in [TimeDelta::hours(3), TimeDelta::days(1), TimeDelta::days(20_000)] {
        let mut world = World::new("Asia/Shanghai", "2026-11-01T00:07:00Z", ClockState::Synced);
        world.run(DAY).await;
        let stopped = world.clock.wall();
        let ledger = Arc::clone(&world.ledger);
        drop(world);
        let mut starts = stopped - behind;
        for start in 1..=3_usize {
            let mut world =
                World::over(Arc::clone(&ledger), "Asia/Shanghai", &starts.to_rfc3339(), ClockState::Unsynced);
            world.run(HOUR * 2).await;
            world.check();
            assert!(world.stored.len() >= 6, "start {start}, {behind} behind: {}", world.stored.len());
            assert_eq!(world.changes("clock_behind_ledger").len(), start);
            if start == 3 {
                // The time comes back: the slots that come are read as ever.
                world.clock.step_and_synchronise(stopped + TimeDelta::hours(1) - world.clock.wall());
                world.run(HOUR * 2).await;
                world.check();
                let last = *world.slots(0).last().unwrap();
                assert_eq!(last.timestamp_subsec_millis(), 0);
                assert!(last > stopped);
            }
            starts = world.clock.wall() - TimeDelta::hours(2) - TimeDelta::minutes(2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_in_a_repeated_hour_begins_beside_its_slots() {
    let mut world = World::new("Asia/Shanghai", "2026-11-01T00:07:00Z", ClockState::Synced);
    world.run(HOUR * 12).await;
    world.clock.step_and_synchronise(TimeDelta::hours(-6));
    world.run(HOUR * 2).await;
    let (ledger, now) = (Arc::clone(&world.ledger), world.clock.wall());
    // The last reading stored is not the latest slot: that one lies four hours ahead.
    assert!(ledger.latest_slot(&meter(0)).unwrap() < highest_slot(&ledger, &meter(0)).unwrap());
    let mut world = World::over(ledger, "Asia/Shanghai", &now.to_rfc3339(), ClockState::Synced);
    world.run(HOUR * 6).await;
    world.check();
    assert_eq!(world.stored.len(), 24, "six hours of quarter hours");
}
