//! The judge against words of a simulated meter: what is believed, what is flagged, and what stands in evidence.

mod history;

use chrono::TimeDelta;

use super::*;
use crate::{
    bus::{Ask, Asked, Surprise},
    clock::SimulatedClock,
    ledger::MemoryLedger,
    model::{MeterId, Seq},
    profile::{self, Planned, SharedProfile},
    protocol::{
        Pace, Question,
        modbus::{Table, refusal},
    },
    sim::SimMeter,
};

const ENERGY: &str = "energy_import_total";
const EXPORT: &str = "energy_export_total";
const POWER: &str = "power_active_total";
const INTERVAL_SECS: u32 = 900;

/// Six digits before the point; 60 kWh an hour allow 19.2 kWh in a quarter of an hour and a minute.
const TYPE: &str = r#"
id = "bench"
manufacturer = "bench"
model = "bench"
medium = "electricity"
protocol = "modbus"
source = "bench"
verification = "bench"
max_words = 60
max_hole = 0
turnaround_ms = 40

[[point]]
name = "energy_import_total"
table = "input"
address = 0
kind = "i32"
order = "ABCD"
scale = "0.01"
unit = "kWh"
digits = 8
decimals = 2
max_per_hour = "60"
sentinels = ["0x7FFFFFFF"]
source = "bench"

[[point]]
name = "energy_export_total"
table = "input"
address = 0x100
kind = "i32"
order = "ABCD"
scale = "0.01"
unit = "kWh"
digits = 8
decimals = 2
max_per_hour = "60"
source = "bench"

[[point]]
name = "power_active_total"
table = "input"
address = 0x200
kind = "f32"
order = "ABCD"
unit = "W"
source = "bench"

[serial]
table = "input"
address = 0x300
kind = "u32"
order = "ABCD"
source = "bench"
"#;

fn dec(text: &str) -> Dec {
    text.parse().unwrap()
}

fn start() -> Utc {
    "2026-11-01T00:00:00Z".parse().unwrap()
}

fn place() -> Meter {
    Meter {
        id: "E-1".parse().unwrap(),
        bus: "bench".parse().unwrap(),
        address: 1.into(),
        wire: None,
        profile: Arc::new(profile::load(TYPE, "bench.toml").unwrap()),
        serial: None,
        multiplier: Dec::ONE,
        ct_ratio: Dec::ONE,
        pt_ratio: Dec::ONE,
        parent: None,
        building: None,
        unit_name: None,
        room: None,
        interval_secs: INTERVAL_SECS,
        timeout: None,
        retries: None,
        max_per_hour: None,
        off_schedule_secs: None,
    }
}

/// One meter, its judge, and a time that moves from slot to slot.
struct Bench {
    twin: SimMeter,
    profile: SharedProfile,
    judge: BusJudge,
    slot: Utc,
    now: Utc,
}

impl Bench {
    fn new() -> Bench {
        Bench::of(place(), &ledger(), ClockState::Synced)
    }

    fn of(meter: Meter, ledger: &SharedLedger, clock: ClockState) -> Bench {
        let profile = Arc::clone(&meter.profile);
        let mut twin = SimMeter::new(1, Arc::clone(&profile), 1);
        for (point, value) in [(ENERGY, "1000.00"), (EXPORT, "20.00"), (POWER, "1500")] {
            assert!(twin.set(point, dec(value)));
        }
        let clock = Arc::new(SimulatedClock::starting_at(start(), clock));
        let judge = BusJudge::new(vec![meter], ledger, clock);
        Bench { twin, profile, judge, slot: start(), now: start() }
    }

    /// A bench that has believed 1000.00 kWh in its first slot and stands at its second.
    fn begun() -> Bench {
        let mut bench = Bench::new();
        let first = bench.slot();
        assert_eq!((first.verdict, first.flags.len()), (Verdict::Good, 0), "the first value is believed");
        bench
    }

    fn show(&mut self, value: &str) {
        assert!(self.twin.set(ENERGY, dec(value)));
    }

    /// Asks for these points; the last exchange is the serial number's.
    fn sweep(&mut self, class: Class, points: &[usize]) -> Sweep {
        let asks = profile::plan(&self.profile, points, &Pace::Network);
        let mut asked: Vec<Asked> = asks
            .into_iter()
            .map(|planned| {
                self.now += TimeDelta::milliseconds(50);
                let outcome = self.ask(&planned.question);
                Asked { ask: Ask { planned, kind: AskKind::Points }, outcome }
            })
            .collect();
        if let (Class::Slot, Some(question)) = (class, profile::serial_question(&self.profile)) {
            let outcome = self.ask(&question);
            let planned = Planned { question, points: Vec::new() };
            asked.push(Asked { ask: Ask { planned, kind: AskKind::Serial }, outcome });
        }
        Sweep { class, asked, ..Sweep::of_slot(0, self.slot) }
    }

    fn ask(&mut self, question: &Question) -> Outcome {
        let read = question.modbus().unwrap();
        let (address, count) = (read.address.to_be_bytes(), read.count.to_be_bytes());
        let pdu = [read.table.function(), address[0], address[1], count[0], count[1]];
        let answer = self.twin.answer(&pdu, self.now).unwrap();
        if answer[0] & 0x80 != 0 {
            return Outcome::Refused(refusal(answer[1]));
        }
        let words = answer[2..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
        Outcome::Answered { payload: Payload::Words(words), at: self.now, elapsed: Duration::ZERO }
    }

    fn full(&mut self, class: Class) -> Sweep {
        let all: Vec<usize> = (0..self.profile.points.len()).collect();
        self.sweep(class, &all)
    }

    fn judge(&mut self, sweep: Sweep) -> Judgement {
        self.judge.judge(sweep)
    }

    /// One slot whose reading is final at the first look.
    fn slot(&mut self) -> Reading {
        let sweep = self.full(Class::Slot);
        let reading = done(self.judge(sweep));
        self.next_slot();
        reading
    }

    fn next_slot(&mut self) {
        self.slot += TimeDelta::seconds(i64::from(INTERVAL_SECS));
        self.now = self.slot;
    }

    /// One slot that needs a second look, which shows `second`.
    fn twice(&mut self, first: &str, second: &str) -> Reading {
        self.show(first);
        let sweep = self.full(Class::Slot);
        let points = again(self.judge(sweep));
        self.show(second);
        let sweep = self.sweep(Class::Confirmation, &points);
        let reading = done(self.judge(sweep));
        self.next_slot();
        reading
    }
}

fn ledger() -> SharedLedger {
    Arc::new(MemoryLedger::new("00000000000000000000000000000001"))
}

fn done(judgement: Judgement) -> Reading {
    match judgement {
        Judgement::Done(reading) => *reading,
        Judgement::Again(again) => panic!("a second look at {again:?} was wanted"),
    }
}

fn again(judgement: Judgement) -> Vec<usize> {
    match judgement {
        Judgement::Again(surprise) => surprise.points,
        Judgement::Done(reading) => panic!("believed at once: {reading:#?}"),
    }
}

fn name(text: &str) -> PointName {
    text.parse().unwrap()
}

fn value(reading: &Reading, point: &str) -> Option<String> {
    reading.values[&name(point)].value.map(|value| value.to_string())
}

fn flags(reading: &Reading) -> Vec<&str> {
    reading.flags.iter().map(String::as_str).collect()
}

fn skipped(slot: Utc, why: Skipped) -> Sweep {
    Sweep { skipped: Some(why), ..Sweep::of_slot(0, slot) }
}

#[test]
fn what_the_rating_allows_is_believed_at_once() {
    let mut bench = Bench::begun();
    bench.show("1019.00");
    let reading = bench.slot();
    assert_eq!((reading.verdict, flags(&reading)), (Verdict::Good, vec![]));
    assert_eq!(value(&reading, ENERGY).unwrap(), "1019.00");
    assert!(reading.evidence.is_empty());
    assert_eq!(
        reading.taken_at,
        Some(reading.scheduled_at + TimeDelta::milliseconds(50)),
        "the register's reply"
    );
}

/// Each rule with the value that breaks it, and what it means when the second look shows the same.
#[test]
fn what_two_looks_show_is_believed_and_flagged_with_both_in_evidence() {
    for (before, shown, rule, verdict) in [
        ("1000.00", "999.97", flag::BACK_STEP, Verdict::Suspect),
        ("1000.00", "1019.27", flag::TOO_FAST, Verdict::Suspect),
        ("1000.00", "10001.00", flag::UNIT_JUMP, Verdict::Suspect),
        ("1000.00", "1.00", flag::UNIT_JUMP, Verdict::Suspect),
        ("1000.00", "1000000.00", flag::OVER_CAPACITY, Verdict::Bad),
        ("1000.00", "-0.01", flag::OVER_CAPACITY, Verdict::Bad),
        ("999999.00", "3.00", flag::ROLLOVER, Verdict::Good),
    ] {
        let mut bench = Bench::new();
        bench.show(before);
        bench.slot();
        let reading = bench.twice(shown, shown);
        assert_eq!((flags(&reading), reading.verdict), (vec![rule], verdict), "{before} to {shown}");
        assert_eq!(value(&reading, ENERGY).unwrap(), shown);
        let evidence = &reading.evidence[ENERGY];
        assert_eq!(evidence["rule"], rule);
        assert_eq!(evidence["previous"]["value"], before);
        assert_eq!(evidence["first"]["value"], shown);
        assert_eq!(evidence["second"]["value"], shown);
        assert!(evidence["second"]["taken_at"].as_str() > evidence["first"]["taken_at"].as_str());
        assert!(evidence["first"]["raw"].as_str().unwrap().starts_with("0x"));
        assert_eq!(value(&reading, EXPORT).unwrap(), "20.00", "the others are untouched");
        if [flag::TOO_FAST, flag::ROLLOVER].contains(&rule) || shown == "10001.00" {
            let next = bench.slot();
            assert_eq!(
                (next.verdict, flags(&next)),
                (Verdict::Good, vec![]),
                "{shown} is believed from now on"
            );
        }
    }
}

#[test]
fn a_confirmed_value_may_have_moved_on_between_the_looks() {
    let mut bench = Bench::begun();
    let reading = bench.twice("2000.00", "2000.01");
    assert_eq!(flags(&reading), [flag::TOO_FAST]);
    assert_eq!(value(&reading, ENERGY).unwrap(), "2000.01");
    assert_eq!(reading.evidence[ENERGY]["first"]["value"], "2000.00");
    assert_eq!(reading.evidence[ENERGY]["allowed"], "19.2");
}

#[test]
fn a_second_look_that_is_ordinary_wins_and_nothing_is_flagged() {
    let mut bench = Bench::begun();
    let reading = bench.twice("5000.00", "1001.00");
    assert_eq!((reading.verdict, flags(&reading)), (Verdict::Good, vec![]));
    assert_eq!(value(&reading, ENERGY).unwrap(), "1001.00");
    assert_eq!(reading.evidence[ENERGY]["first"]["value"], "5000.00");
    let next = bench.slot();
    assert!(next.evidence.is_empty(), "1001.00 is believed: {next:#?}");
}

#[test]
fn two_looks_that_disagree_are_unconfirmed_and_the_history_stays_as_it_was() {
    let mut bench = Bench::begun();
    let reading = bench.twice("5000.00", "7000.00");
    assert_eq!(flags(&reading), [flag::TOO_FAST, flag::UNCONFIRMED]);
    assert_eq!(reading.verdict, Verdict::Suspect);
    let evidence = &reading.evidence[ENERGY];
    assert_eq!(
        (&evidence["first"]["value"], &evidence["second"]["value"]),
        (&json!("5000.00"), &json!("7000.00"))
    );
    bench.show("1002.00");
    let next = bench.slot();
    assert_eq!((next.verdict, flags(&next)), (Verdict::Good, vec![]), "compared with 1000.00");
}

#[test]
fn a_second_look_that_brings_nothing_confirms_nothing() {
    let mut bench = Bench::begun();
    bench.show("5000.00");
    let sweep = bench.full(Class::Slot);
    let points = again(bench.judge(sweep));
    let mut sweep = bench.sweep(Class::Confirmation, &points);
    for asked in &mut sweep.asked {
        asked.outcome = Outcome::Silent { late: None };
    }
    let reading = done(bench.judge(sweep));
    assert_eq!(flags(&reading), [flag::TOO_FAST, flag::UNCONFIRMED]);
    assert_eq!(reading.evidence[ENERGY]["second"], Value::Null);
}

#[test]
fn only_the_register_that_surprised_is_looked_at_again() {
    let mut bench = Bench::begun();
    assert!(bench.twin.set(EXPORT, dec("700")));
    let sweep = bench.full(Class::Slot);
    let points = again(bench.judge(sweep));
    let names: Vec<_> = points.iter().map(|point| bench.profile.points[*point].name.to_string()).collect();
    assert_eq!(names, [EXPORT]);
}

#[test]
fn both_registers_can_surprise_at_once() {
    let mut bench = Bench::begun();
    assert!(bench.twin.set(EXPORT, dec("19.00")));
    let reading = bench.twice("5000.00", "5000.00");
    assert_eq!(flags(&reading), [flag::BACK_STEP, flag::TOO_FAST]);
    assert_eq!(reading.evidence[EXPORT]["rule"], flag::BACK_STEP);
    assert_eq!(flags(&bench.slot()), [flag::BACK_STEP], "what fell is not good because it was seen twice");
}

#[test]
fn a_demand_while_a_confirmation_read_is_due_is_confirmed_for_itself_and_disturbs_neither() {
    let mut bench = Bench::begun();
    bench.show("5000.00");
    let sweep = bench.full(Class::Slot);
    let points = again(bench.judge(sweep));
    let of_demand = |class, sweep| Sweep { class, ticket: Some(1), keep: false, ..sweep };
    let sweep = bench.full(Class::Slot);
    let demanded = bench.judge(of_demand(Class::Demand, sweep));
    let Judgement::Again(Surprise { ticket: Some(1), keep: false, points: demanded, .. }) = demanded else {
        panic!("{demanded:?}")
    };
    assert_eq!(demanded, points, "a demanded reading is confirmed like any other");
    let sweep = bench.sweep(Class::Confirmation, &points);
    let demanded = done(bench.judge(of_demand(Class::Confirmation, sweep)));
    assert_eq!(flags(&demanded), [flag::TOO_FAST], "reported, not believed");
    let sweep = bench.sweep(Class::Confirmation, &points);
    let reading = done(bench.judge(sweep));
    assert_eq!(flags(&reading), [flag::TOO_FAST]);
    assert_eq!(reading.evidence[ENERGY]["previous"]["value"], "1000.00");
}

#[test]
fn a_serial_number_that_is_not_the_configured_one_is_bad_and_shown() {
    let meter = Meter { serial: Some("00012345678".into()), ..place() };
    let mut bench = Bench::of(meter, &ledger(), ClockState::Synced);
    bench.twin.set_serial(dec("12345678"));
    assert_eq!(bench.slot().verdict, Verdict::Good, "leading zeros are none of the number");
    bench.twin.set_serial(dec("87654321"));
    let reading = bench.slot();
    assert_eq!((flags(&reading), reading.verdict), (vec![flag::SERIAL_MISMATCH], Verdict::Bad));
    assert_eq!(reading.evidence["serial"], json!({"configured": "00012345678", "seen": "87654321"}));
    assert_eq!(value(&reading, ENERGY).unwrap(), "1000.00", "flagged, not dropped");
}

#[test]
fn a_reading_far_from_its_slot_says_so() {
    let mut bench = Bench::begun();
    bench.now += TimeDelta::seconds(61);
    let reading = bench.slot();
    assert_eq!((flags(&reading), reading.verdict), (vec![flag::OFF_SCHEDULE], Verdict::Suspect));
}

#[test]
fn a_clock_that_is_not_trusted_is_told_and_condemns_nothing() {
    let mut bench = Bench::of(place(), &ledger(), ClockState::Unsynced);
    let reading = bench.slot();
    assert_eq!((flags(&reading), reading.verdict), (vec![flag::CLOCK_UNTRUSTED], Verdict::Good));
    let mut bench = Bench::of(place(), &ledger(), ClockState::Holdover);
    assert!(bench.slot().flags.is_empty());
}

#[test]
fn a_slot_that_was_not_asked_is_missing_and_says_why() {
    for (why, flag) in [
        (Skipped::BackedOff, flag::BACKED_OFF),
        (Skipped::Overrun, flag::BUS_OVERRUN),
        (Skipped::LineDown, flag::BUS_DOWN),
    ] {
        let mut bench = Bench::of(place(), &ledger(), ClockState::Unsynced);
        let slot = bench.slot;
        let reading = done(bench.judge(skipped(slot, why)));
        assert_eq!((reading.origin, reading.verdict), (Origin::Missing, Verdict::Bad));
        assert_eq!((flags(&reading), reading.taken_at), (vec![flag], None));
        assert!(reading.values.is_empty());
    }
}

#[test]
fn a_missing_slot_in_between_is_no_end_of_the_history() {
    let mut bench = Bench::begun();
    let slot = bench.slot;
    done(bench.judge(skipped(slot, Skipped::Overrun)));
    bench.next_slot();
    bench.show("1030.00");
    assert_eq!(bench.slot().verdict, Verdict::Good, "half an hour and a minute allow 37.2 kWh");
    let reading = bench.twice("900.00", "900.00");
    assert_eq!(flags(&reading), [flag::BACK_STEP]);
}

#[test]
fn a_register_without_a_value_has_a_reason_and_is_no_history() {
    let mut bench = Bench::begun();
    bench.twin.set_words(Table::Input, 0, &[0x7FFF, 0xFFFF]);
    let reading = bench.slot();
    let energy = &reading.values[&name(ENERGY)];
    assert_eq!((energy.value, energy.reason.as_deref()), (None, Some("not_available")));
    assert_eq!(energy.raw.as_deref(), Some("0x7FFFFFFF"));
    assert_eq!((flags(&reading), reading.verdict), (vec![flag::NOT_AVAILABLE], Verdict::Bad));
    assert_eq!(value(&reading, EXPORT).unwrap(), "20.00");
    bench.twin.release_words();
    let reading = bench.twice("990.00", "990.00");
    assert_eq!(flags(&reading), [flag::BACK_STEP], "compared with the last value that there was");
}

#[test]
fn what_is_no_number_has_a_reason_and_condemns_no_register() {
    let mut bench = Bench::begun();
    for (words, reason) in [([0x7FC0, 0], "nan"), ([0x7F80, 0], "infinite")] {
        bench.twin.set_words(Table::Input, 0x200, &words);
        let reading = bench.slot();
        let power = &reading.values[&name(POWER)];
        assert_eq!((power.value, power.reason.as_deref()), (None, Some(reason)));
        assert_eq!((reading.verdict, flags(&reading)), (Verdict::Good, vec![]));
    }
}

#[test]
fn one_failed_request_leaves_the_rest_of_the_reading() {
    for (outcome, flag, detail) in [
        (Outcome::Silent { late: Some(Duration::from_millis(350)) }, flag::NO_ANSWER, Some("350 ms")),
        (Outcome::Silent { late: None }, flag::NO_ANSWER, None),
        (Outcome::Garbled { detail: "CRC".into() }, flag::GARBLED, Some("CRC")),
        (Outcome::Refused(refusal(2)), flag::REFUSED, Some("illegal data address (02)")),
        (Outcome::LineDown { detail: "unplugged".into() }, flag::BUS_DOWN, Some("unplugged")),
    ] {
        let mut bench = Bench::begun();
        let mut sweep = bench.full(Class::Slot);
        sweep.asked[1].outcome = outcome;
        let reading = done(bench.judge(sweep));
        assert_eq!((reading.origin, reading.verdict), (Origin::Measured, Verdict::Suspect));
        assert_eq!(flags(&reading), [flag]);
        assert_eq!(reading.values[&name(EXPORT)].reason.as_deref(), Some(flag));
        assert_eq!(value(&reading, ENERGY).unwrap(), "1000.00");
        let told = reading.evidence.get(flag).and_then(Value::as_str);
        assert!(detail.is_none_or(|detail| told.unwrap().contains(detail)), "{told:?}");
    }
}

#[test]
fn the_multiplier_is_told_and_not_applied() {
    let meter = Meter { multiplier: dec("80"), ..place() };
    let mut bench = Bench::of(meter, &ledger(), ClockState::Synced);
    let reading = bench.slot();
    assert_eq!(value(&reading, ENERGY).unwrap(), "1000.00");
    assert_eq!(reading.values[&name(ENERGY)].multiplier, Some(dec("80")));
}

#[test]
fn the_meter_s_own_rating_goes_before_its_type_s() {
    let meter = Meter { max_per_hour: Some(dec("600")), ..place() };
    let mut bench = Bench::of(meter, &ledger(), ClockState::Synced);
    bench.slot();
    bench.show("1100.00");
    assert_eq!(bench.slot().verdict, Verdict::Good);
}

#[tokio::test]
async fn a_record_that_cannot_be_stored_is_put_on_record_and_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (files, _) = crate::ledger::FileLedger::open(dir.path(), crate::ledger::Options::default()).unwrap();
    let ledger: crate::ledger::SharedLedger = files;
    let now = "2026-11-23T00:00:00Z".parse().unwrap();
    let change = |what: &str, text: String| {
        let fields = serde_json::Map::from_iter([("text".to_owned(), serde_json::Value::from(text))]);
        crate::model::Draft::change(what, fields, now, crate::model::ClockState::Synced)
    };
    let drafts = vec![change("a", "x".into()), change("b", "x".repeat(70_000)), change("c", "x".into())];
    super::append(&ledger, drafts).await;
    let lines = ledger.read(1, 10, usize::MAX).unwrap();
    let what: Vec<serde_json::Value> =
        lines.iter().map(|line| serde_json::from_slice(&line.bytes).unwrap()).collect();
    let names: Vec<&str> = what.iter().filter_map(|record| record["change"].as_str()).collect();
    assert_eq!(names, ["a", "record_refused", "c"]);
    assert_eq!(what[1]["of"], "b");
    assert!(what[1]["reason"].as_str().unwrap().contains("bytes long"));
}
