//! The cycle under a time that moves only when it is told to.

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    profile::{Catalogue, plan},
    protocol::{Pace, Payload, modbus},
};

fn silent() -> Outcome {
    Outcome::Silent { late: None }
}

fn plan_of(name: &str, slots: Option<Slots>) -> MeterPlan {
    let profile = Catalogue::builtin().get("eastron-sdm120").unwrap();
    let points: Vec<usize> = (0..profile.points.len()).collect();
    MeterPlan {
        id: name.parse().unwrap(),
        address: Address::Modbus(1),
        wire: None,
        requests: plan(&profile, &points, &Pace::Network),
        profile: Arc::clone(&profile),
        slots,
        timeout: Duration::from_millis(300),
        retries: 1,
        serial: false,
        first_slot: None,
    }
}

/// A cycle and a time that moves only when it is told to.
struct Bench {
    cycle: Cycle,
    now: Now,
}

impl Bench {
    fn new(meters: usize, interval_secs: u32) -> Bench {
        let now = Now { instant: Instant::now(), wall: "2026-11-01T00:00:00Z".parse().unwrap() };
        let slots = Slots::new(chrono_tz::Asia::Shanghai, interval_secs).ok();
        let plans = (0..meters).map(|n| plan_of(&format!("M{n}"), slots)).collect();
        Bench { cycle: Cycle::new(plans, now), now }
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.now.wall += time;
    }

    /// Runs until `until`, with `answer` for the meters; returns the finished sweeps.
    fn run(&mut self, secs: u64, mut answer: impl FnMut(&Exchange) -> (Outcome, Duration)) -> Vec<Sweep> {
        let end = self.now.wall + Duration::from_secs(secs);
        let mut sweeps = Vec::new();
        while self.now.wall < end {
            match self.cycle.poll_action(self.now) {
                Action::Exchange(exchange) => {
                    let (outcome, took) = answer(&exchange);
                    self.pass(took);
                    self.cycle.handle_outcome(&outcome, self.now);
                }
                Action::Wait(time) => self.pass(time.max(Duration::from_millis(1))),
            }
            while let Some(sweep) = self.cycle.poll_sweep() {
                sweeps.push(sweep);
            }
        }
        sweeps
    }
}

fn answered(exchange: &Exchange) -> (Outcome, Duration) {
    let read = exchange.query.question.modbus().unwrap();
    let payload = Payload::Words(vec![0; usize::from(read.count)]);
    let at = "2026-11-01T00:00:00Z".parse().unwrap();
    (Outcome::Answered { payload, at, elapsed: Duration::ZERO }, Duration::from_millis(50))
}

#[test]
fn each_meter_has_one_sweep_for_each_slot() {
    let mut bench = Bench::new(3, 10);
    let sweeps = bench.run(100, answered);
    for meter in 0..3 {
        let slots: Vec<Utc> = sweeps.iter().filter(|s| s.meter == meter).map(|s| s.scheduled_at).collect();
        assert_eq!(slots.len(), 9, "slots at 10, 20, … 90 s");
        assert!(slots.windows(2).all(|pair| pair[1] - pair[0] == chrono::TimeDelta::seconds(10)));
    }
}

#[test]
fn dead_meters_come_last_are_probed_seldom_and_still_have_a_record_for_each_slot() {
    let mut bench = Bench::new(30, 10);
    let dead = |exchange: &Exchange| exchange.meter < 3;
    let mut asked_dead = 0;
    let sweeps = bench.run(600, |exchange| {
        if dead(exchange) {
            asked_dead += 1;
            (silent(), Duration::from_millis(600))
        } else {
            answered(exchange)
        }
    });
    for meter in 0..30 {
        let mine: Vec<&Sweep> = sweeps.iter().filter(|sweep| sweep.meter == meter).collect();
        assert_eq!(mine.len(), 59, "meter {meter}");
        let overrun = mine.iter().filter(|sweep| sweep.skipped == Some(Skipped::Overrun)).count();
        // The dead wait for the living, never the other way round.
        assert!(overrun == 0 || meter < 3, "meter {meter} lost {overrun} slots");
    }
    assert!(asked_dead < 3 * 20, "{asked_dead} probes of three dead meters in ten minutes");
}

#[test]
fn silence_is_repeated_only_when_nobody_waits() {
    let mut bench = Bench::new(10, 10);
    let mut order = Vec::new();
    let sweeps = bench.run(19, |exchange| {
        if order.last() != Some(&exchange.meter) {
            order.push(exchange.meter);
        }
        if exchange.meter == 0 { (silent(), Duration::from_millis(300)) } else { answered(exchange) }
    });
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
    assert_eq!(sweeps.iter().map(|sweep| sweep.meter).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
}

#[test]
fn what_was_put_aside_ends_with_its_slot() {
    let mut bench = Bench::new(2, 10);
    // The second meter needs the whole slot, so that there is no time for a repetition.
    let sweeps = bench.run(39, |exchange| {
        if exchange.meter == 0 {
            (silent(), Duration::from_millis(300))
        } else {
            (answered(exchange).0, Duration::from_secs(5))
        }
    });
    let mine: Vec<&Sweep> = sweeps.iter().filter(|sweep| sweep.meter == 0).collect();
    assert_eq!(
        mine.first().map(|sweep| (sweep.skipped, sweep.asked.is_empty())),
        Some((None, false)),
        "{mine:?}"
    );
    let slots: Vec<Utc> = mine.iter().map(|sweep| sweep.scheduled_at).collect();
    assert!(slots.windows(2).all(|pair| pair[1] - pair[0] == chrono::TimeDelta::seconds(10)), "{slots:?}");
}

#[test]
fn pauses_grow_and_are_capped() {
    let mut bench = Bench::new(1, 0);
    let mut asked = 0;
    bench.run(4000, |_| {
        asked += 1;
        (silent(), Duration::from_millis(600))
    });
    // 3 sweeps of 2 tries, then one try after each pause of 1, 2, 4, … 256, 300, 300, … s.
    assert!((15..=30).contains(&asked), "{asked} exchanges");
}

#[test]
fn a_refused_block_is_split_and_the_split_is_remembered() {
    let mut bench = Bench::new(1, 10);
    let bad = modbus::Read { table: modbus::Table::Input, address: 0x0156, count: 2 };
    let mut refused = 0;
    let sweeps = bench.run(65, |exchange| {
        let read = exchange.query.question.modbus().unwrap();
        let end = read.address + read.count;
        if read.table == bad.table && read.address < bad.address + bad.count && bad.address < end {
            refused += 1;
            (Outcome::Refused(modbus::refusal(2)), Duration::from_millis(50))
        } else {
            answered(exchange)
        }
    });
    let first = refused;
    let asked =
        |sweep: &Sweep| sweep.asked.iter().filter(|a| matches!(a.outcome, Outcome::Answered { .. })).count();
    assert!(sweeps.len() >= 5);
    assert!(asked(&sweeps[0]) >= 1, "the meter's other points are still read");
    assert_eq!(asked(&sweeps[0]), asked(&sweeps[4]));
    let refusals =
        |sweep: &Sweep| sweep.asked.iter().filter(|a| matches!(a.outcome, Outcome::Refused(_))).count();
    assert!(refusals(&sweeps[4]) <= 1);
    assert!(first <= 6, "a refusal for good is not asked again in every cycle: {first}");
}

#[test]
fn while_the_line_is_away_slots_are_told_and_nobody_is_asked() {
    let mut bench = Bench::new(2, 10);
    bench.cycle.set_line_up(false);
    let sweeps = bench.run(35, |_| panic!("nobody may be asked"));
    assert_eq!(sweeps.len(), 6);
    assert!(sweeps.iter().all(|sweep| sweep.skipped == Some(Skipped::LineDown)));
}

#[test]
fn while_the_line_is_away_the_end_of_a_pause_wakes_nobody() {
    let mut bench = Bench::new(1, 0);
    bench.run(5, |_| (silent(), Duration::from_millis(600)));
    assert!(bench.cycle.is_backed_off(0));
    bench.cycle.set_line_up(false);
    bench.pass(Duration::from_secs(600));
    assert_eq!(bench.cycle.poll_action(bench.now), Action::Wait(LONGEST_WAIT));
}

#[test]
fn a_demand_goes_before_the_slots() {
    let mut bench = Bench::new(5, 10);
    bench.pass(Duration::from_secs(10));
    assert!(bench.cycle.handle_demand(Demand { meter: 4, number: 7 }));
    let sweeps = bench.run(3, answered);
    assert_eq!((sweeps[0].meter, sweeps[0].purpose), (4, Purpose::Demand(7)));
    assert_eq!(sweeps.len(), 6);
}
