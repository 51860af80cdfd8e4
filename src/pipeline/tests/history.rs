//! What is believed, how long, and that a restart changes nothing of it.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use futures_util::future::BoxFuture;
use proptest::test_runner::Config;
use tokio::sync::watch;

use super::*;
use crate::ledger::{Cursor, Head, Ledger, Line, ReadingQuery};

/// What the ledger holds after these readings, for a judge that begins with it.
async fn stored(readings: &[Reading]) -> SharedLedger {
    let ledger = ledger();
    let drafts = readings.iter().map(|reading| Draft::reading(reading.clone(), start(), ClockState::Synced));
    append(&ledger, drafts.collect()).await;
    ledger
}

#[tokio::test]
async fn after_a_restart_the_history_goes_on() {
    let ledger = stored(&[Bench::new().slot()]).await;
    let id: MeterId = place().id;
    assert!(!ledger.latest(&id, Seq::MAX, 1).unwrap().is_empty());
    let mut bench = Bench::of(place(), &ledger, ClockState::Synced);
    bench.next_slot();
    let reading = bench.twice("999.00", "999.00");
    assert_eq!(flags(&reading), [flag::BACK_STEP]);
    assert_eq!(reading.evidence[ENERGY]["previous"]["value"], "1000.00");
}

#[tokio::test]
async fn after_a_restart_an_unconfirmed_value_is_still_not_believed_and_the_one_before_is() {
    let mut bench = Bench::begun();
    let unconfirmed = bench.twice("5000.00", "7000.00");
    let ledger = stored(&[unconfirmed]).await;
    let mut bench = Bench::of(place(), &ledger, ClockState::Synced);
    bench.next_slot();
    bench.next_slot();
    bench.show("1003.00");
    assert!(bench.slot().flags.is_empty(), "1000.00 was believed last");
    let mut bench = Bench::of(place(), &ledger, ClockState::Synced);
    bench.next_slot();
    bench.next_slot();
    assert!(bench.twin.set(EXPORT, dec("19.00")));
    let reading = bench.twice("5001.00", "5001.00");
    assert_eq!(flags(&reading), [flag::BACK_STEP, flag::TOO_FAST], "the other register has a history too");
}

/// A reading of another device: it may lie below, within what is allowed, or far above.
#[tokio::test]
async fn what_another_device_shows_is_never_believed_of_the_configured_one() {
    let meter = || Meter { serial: Some("12345678".into()), ..place() };
    for (shown, then) in [("12.00", "1000.50"), ("1003.00", "1000.50"), ("90000.00", "1000.50")] {
        let mut bench = Bench::of(meter(), &ledger(), ClockState::Synced);
        bench.twin.set_serial(dec("12345678"));
        let mut all = vec![bench.slot()];
        bench.twin.set_serial(dec("87654321"));
        bench.show(shown);
        all.push(bench.slot());
        assert_eq!((flags(&all[1]), all[1].verdict), (vec![flag::SERIAL_MISMATCH], Verdict::Bad), "{shown}");
        assert_eq!(value(&all[1], ENERGY).unwrap(), shown, "flagged, not dropped");

        let mut again = Bench::of(meter(), &stored(&all).await, ClockState::Synced);
        for (bench, restarted) in [(&mut bench, false), (&mut again, true)] {
            bench.next_slot();
            bench.next_slot();
            bench.twin.set_serial(dec("12345678"));
            bench.show(then);
            let reading = bench.slot();
            assert!(reading.flags.is_empty(), "{shown}, restarted: {restarted}: {reading:?}");
            let fallen = bench.twice("999.00", "999.00");
            assert_eq!(fallen.evidence[ENERGY]["previous"]["value"], then, "{shown}");
        }
    }
}

/// A reading in which the first request, the register's, brought nothing.
fn refused_block(bench: &mut Bench) -> Reading {
    let mut sweep = bench.full(Class::Slot);
    sweep.asked[0].outcome = Outcome::Refused(refusal(2));
    let reading = done(bench.judge(sweep));
    bench.next_slot();
    reading
}

/// A ledger that counts the records that are read from it.
struct Counting(MemoryLedger, AtomicUsize);

impl Ledger for Counting {
    fn id(&self) -> &str {
        self.0.id()
    }
    fn append(&self, drafts: Vec<Draft>) -> BoxFuture<'_, Result<Range<Seq>, LedgerError>> {
        self.0.append(drafts)
    }
    fn head(&self) -> watch::Receiver<Head> {
        self.0.head()
    }
    fn first(&self) -> Seq {
        self.0.first()
    }
    fn read(&self, from: Seq, records: usize, bytes: usize) -> Result<Vec<Line>, LedgerError> {
        self.0.read(from, records, bytes)
    }
    fn latest(&self, meter: &MeterId, before: Seq, limit: usize) -> Result<Vec<Line>, LedgerError> {
        let lines = self.0.latest(meter, before, limit)?;
        self.1.fetch_add(lines.len(), Ordering::SeqCst);
        Ok(lines)
    }
    fn latest_slot(&self, meter: &MeterId) -> Option<Utc> {
        self.0.latest_slot(meter)
    }
    fn readings(&self, query: &ReadingQuery) -> Result<Vec<Line>, LedgerError> {
        self.0.readings(query)
    }
    fn cursor(&self, cursor: Cursor) -> Seq {
        self.0.cursor(cursor)
    }
    fn advance(&self, cursor: Cursor, to: Seq) {
        self.0.advance(cursor, to);
    }
    fn next_session(&self) -> u64 {
        self.0.next_session()
    }
}

/// A bench whose judge begins with these readings, at the slot after them; and how many of them it read.
async fn restarted(readings: &[Reading], profile: &str) -> (Bench, usize) {
    let ledger =
        Arc::new(Counting(MemoryLedger::new("00000000000000000000000000000001"), AtomicUsize::new(0)));
    let shared: SharedLedger = Arc::clone(&ledger) as _;
    let drafts = readings.iter().map(|reading| Draft::reading(reading.clone(), start(), ClockState::Synced));
    append(&shared, drafts.collect()).await;
    let meter = Meter { profile: Arc::new(profile::load(profile, "bench.toml").unwrap()), ..place() };
    let mut bench = Bench::of(meter, &shared, ClockState::Synced);
    for _ in readings {
        bench.next_slot();
    }
    (bench, ledger.1.load(Ordering::SeqCst))
}

#[tokio::test]
async fn the_history_of_a_register_is_found_however_long_its_block_was_refused() {
    for refusals in [1, 3, 2000] {
        let mut bench = Bench::new();
        bench.show("1600.00");
        let mut readings = vec![bench.slot()];
        readings.extend(std::iter::repeat_with(|| refused_block(&mut bench)).take(refusals));
        let (mut bench, read) = restarted(&readings, TYPE).await;
        assert_eq!(read, 1, "{refusals} readings without the register");
        let reading = bench.twice("1000.00", "1000.00");
        assert_eq!(flags(&reading), [flag::BACK_STEP], "{refusals}");
        assert_eq!(reading.evidence[ENERGY]["previous"]["value"], "1600.00");
    }
}

#[tokio::test]
async fn a_register_that_never_answered_and_a_meter_that_is_silent_cost_one_record() {
    let mut bench = Bench::new();
    let mut readings: Vec<Reading> = std::iter::repeat_with(|| refused_block(&mut bench)).take(500).collect();
    assert_eq!(readings[499].evidence[BELIEVED], json!({}));
    for _ in 0..3000 {
        let slot = bench.slot;
        readings.push(done(bench.judge(skipped(slot, Skipped::BackedOff))));
        bench.next_slot();
    }
    let (mut bench, read) = restarted(&readings, TYPE).await;
    assert_eq!(read, 1);
    assert!(bench.slot().flags.is_empty(), "the first value of a register is believed");
}

/// Readings of earlier versions carry nothing; a profile may get a register (again).
#[tokio::test]
async fn a_register_that_the_last_reading_does_not_name_is_looked_for_and_the_search_ends() {
    let without = |reading: &Reading, names: &[&str]| {
        let mut old = reading.clone();
        old.evidence.clear();
        for point in names {
            old.values.remove(&name(point));
        }
        old
    };
    let mut bench = Bench::new();
    bench.show("1600.00");
    let whole = bench.slot();
    let refused = without(&refused_block(&mut bench), &[]);
    let lost = without(&whole, &[ENERGY]);
    for (lacking, since) in [(refused, 90), (lost.clone(), 90), (lost.clone(), 5000)] {
        let mut readings = vec![whole.clone()];
        readings.extend(std::iter::repeat_n(lacking, since));
        let (mut bench, read) = restarted(&readings, TYPE).await;
        assert!(read <= 300, "{read}");
        assert_eq!(flags(&bench.twice("1000.00", "1000.00")), [flag::BACK_STEP], "{since}");
    }
    // Lost in the middle of a long time.
    let mut readings = vec![whole.clone(); 2000];
    readings.extend(vec![lost.clone(); 3000]);
    let (mut bench, read) = restarted(&readings, TYPE).await;
    assert!(read <= 300, "{read}");
    assert_eq!(flags(&bench.twice("1000.00", "1000.00")), [flag::BACK_STEP]);
    for size in [50, 500, 20_000] {
        let (mut bench, read) = restarted(&vec![lost.clone(); size], TYPE).await;
        assert!(read <= 350, "{read} of {size}");
        assert!(bench.slot().flags.is_empty(), "there never was one: the first is believed");
    }
}

#[tokio::test]
async fn zeros_after_power_up_are_not_good_however_often_they_are_seen() {
    let mut bench = Bench::new();
    bench.show("40482.80");
    let mut readings = vec![bench.slot(), bench.twice("0", "0")];
    bench.show("0");
    readings.push(bench.slot());
    for reading in &readings[1..] {
        assert_eq!((flags(reading), reading.verdict), (vec![flag::BACK_STEP], Verdict::Suspect));
        assert_eq!(reading.evidence[ENERGY]["previous"]["value"], "40482.80");
    }
    let (mut restarted, _) = restarted(&readings, TYPE).await;
    for bench in [&mut bench, &mut restarted] {
        bench.show("40482.80");
        let reading = bench.slot();
        assert_eq!(
            (reading.verdict, reading.evidence.len()),
            (Verdict::Good, 0),
            "where it was: {reading:#?}"
        );
        bench.show("40482.90");
        assert_eq!(bench.slot().verdict, Verdict::Good);
    }
}

#[test]
fn a_rounding_is_noted_read_once_and_costs_nothing() {
    let mut bench = Bench::begun();
    bench.show("999.99");
    let reading = bench.slot();
    assert_eq!((flags(&reading), reading.verdict), (vec![flag::ROUNDING], Verdict::Good));
    assert_eq!(value(&reading, ENERGY).unwrap(), "999.99", "what the display shows");
    assert_eq!(reading.evidence[ENERGY]["allowed"], "0.02");
    bench.show("999.97");
    assert_eq!(flags(&bench.twice("999.97", "999.97")), [flag::BACK_STEP], "below the highest, not the last");
}

/// What happens to the register in one slot of a random sequence.
fn event(bench: &mut Bench, (what, by): (u8, i64), energy: &mut i64) -> Reading {
    match what {
        0..=3 => *energy += by % 1500,
        4 => *energy -= by % 4,
        5 => *energy -= by % 3000,
        6 => *energy = 0,
        7 => *energy += by * 100,
        8 => return refused_block(bench),
        9 => {
            let slot = bench.slot;
            let reading = done(bench.judge(skipped(slot, Skipped::Overrun)));
            bench.next_slot();
            return reading;
        }
        10 => {
            bench.twin.set_words(Table::Input, 0, &[0x7FFF, 0xFFFF]);
            let reading = bench.slot();
            bench.twin.release_words();
            return reading;
        }
        _ => {}
    }
    *energy = (*energy).clamp(-100, 100_000_100);
    let shown = Dec::from_parts((*energy).into(), 2).unwrap();
    assert!(bench.twin.set(ENERGY, shown));
    let sweep = bench.full(Class::Slot);
    let reading = match bench.judge(sweep) {
        Judgement::Done(reading) => *reading,
        Judgement::Again(surprise) => {
            if what == 11 {
                assert!(bench.twin.set(ENERGY, dec("777777.77"))); // the second look shows something else
            }
            let sweep = bench.sweep(Class::Confirmation, &surprise.points);
            done(bench.judge(sweep))
        }
    };
    bench.next_slot();
    reading
}

proptest::proptest! {
    #![proptest_config(Config::with_cases(64))]
    /// Two judges see the same meter: one lives on, the other is built anew from the ledger before each slot.
    #[test]
    fn a_restart_at_any_point_changes_no_verdict(
        events in proptest::collection::vec((0_u8..12, 0_i64..100_000), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let ledger = ledger();
        let (mut living, mut reborn) = (Bench::new(), Bench::new());
        let mut energy = [100_000, 100_000];
        for what in events {
            let clock = Arc::new(SimulatedClock::starting_at(start(), ClockState::Synced));
            reborn.judge = BusJudge::new(vec![place()], &ledger, clock);
            let one = event(&mut living, what, &mut energy[0]);
            let other = event(&mut reborn, what, &mut energy[1]);
            proptest::prop_assert_eq!(&one, &other);
            let draft = Draft::reading(one.clone(), start(), ClockState::Synced);
            runtime.block_on(append(&ledger, vec![draft]));
        }
    }
}
