//! The schedule under a time that moves only when it is told to.

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    model::Slots,
    profile::{Catalogue, plan},
    protocol::{Address, Pace, Parity, Payload, Question, modbus},
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
        first_slot: None,
    }
}

/// A schedule and a time that moves only when it is told to.
struct Bench {
    schedule: Schedule,
    now: Now,
}

impl Bench {
    fn new(meters: usize, interval_secs: u32) -> Bench {
        let now = Now { instant: Instant::now(), wall: "2026-11-01T00:00:00Z".parse().unwrap() };
        let slots = Slots::new(chrono_tz::Asia::Shanghai, interval_secs).ok();
        let plans = (0..meters).map(|n| plan_of(&format!("M{n}"), slots)).collect();
        Bench { schedule: Schedule::new(plans, now), now }
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
            match self.schedule.poll_action(self.now) {
                Action::Exchange(exchange) => {
                    let (outcome, took) = answer(&exchange);
                    self.pass(took);
                    self.schedule.handle_outcome(&outcome, self.now);
                }
                Action::Wait(time) => self.pass(time.max(Duration::from_millis(1))),
            }
            while let Some(sweep) = self.schedule.poll_sweep() {
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
    let dead = |exchange: &Exchange| exchange.meter < Some(3);
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
        if order.last() != exchange.meter.as_ref() {
            order.extend(exchange.meter);
        }
        if exchange.meter == Some(0) { (silent(), Duration::from_millis(300)) } else { answered(exchange) }
    });
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
    assert_eq!(sweeps.iter().map(|sweep| sweep.meter).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]);
}

#[test]
fn what_was_put_aside_ends_with_its_slot() {
    let mut bench = Bench::new(2, 10);
    // The second meter needs the whole slot, so that there is no time for a repetition.
    let sweeps = bench.run(39, |exchange| {
        if exchange.meter == Some(0) {
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
    // One sweep of 2 tries, then one try after each pause of 1, 2, 4, … 256, 300, 300, … s.
    assert!((15..=25).contains(&asked), "{asked} exchanges");
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
    bench.schedule.set_line_up(false, bench.now);
    let sweeps = bench.run(35, |_| panic!("nobody may be asked"));
    assert_eq!(sweeps.len(), 6);
    assert!(sweeps.iter().all(|sweep| sweep.skipped == Some(Skipped::LineDown)));
}

#[test]
fn when_the_line_goes_everything_under_way_ends_and_nobody_waits_for_it() {
    let mut bench = Bench::new(2, 10);
    bench.pass(Duration::from_secs(10));
    let Action::Exchange(_) = bench.schedule.poll_action(bench.now) else { panic!() };
    let under_way = bench.schedule.handle_request(demand(0));
    bench.schedule.set_line_up(false, bench.now);
    let ended: Vec<Sweep> = std::iter::from_fn(|| bench.schedule.poll_sweep()).collect();
    let down = |sweep: &Sweep| {
        !sweep.asked.is_empty()
            && sweep.asked.iter().all(|asked| matches!(asked.outcome, Outcome::LineDown { .. }))
    };
    assert_eq!(ended.iter().map(|sweep| sweep.ticket).collect::<Vec<_>>(), [None, under_way]);
    assert!(ended.iter().all(down), "{ended:?}");
    // Whoever asks now is told at once.
    let late = bench.schedule.handle_request(demand(1));
    bench.schedule.set_line_up(false, bench.now);
    assert!(bench.schedule.poll_sweep().is_some_and(|sweep| sweep.ticket == late && down(&sweep)));
    bench.schedule.set_line_up(true, bench.now);
    let read = bench.run(30, answered);
    let slots: Vec<Utc> =
        read.iter().filter(|sweep| sweep.meter == 0).map(|sweep| sweep.scheduled_at).collect();
    assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "{slots:?}");
}

#[test]
fn while_the_line_is_away_the_end_of_a_pause_wakes_nobody() {
    let mut bench = Bench::new(1, 0);
    bench.run(30, |_| (silent(), Duration::from_millis(600)));
    assert!(bench.schedule.is_backed_off(0));
    bench.schedule.set_line_up(false, bench.now);
    bench.pass(Duration::from_secs(600));
    assert_eq!(bench.schedule.poll_action(bench.now), Action::Wait(LONGEST_WAIT));
}

fn demand(meter: usize) -> Request {
    Request { target: Target::Meter(meter), class: Class::Demand, deadline: None, keep: false }
}

#[test]
fn a_demand_waits_for_one_exchange_at_most_and_costs_a_slot_no_more() {
    let mut bench = Bench::new(5, 10);
    bench.pass(Duration::from_secs(10));
    let Action::Exchange(under_way) = bench.schedule.poll_action(bench.now) else { panic!() };
    let ticket = bench.schedule.handle_request(demand(4));
    bench.schedule.handle_outcome(&answered(&under_way).0, bench.now);
    let mut order = Vec::new();
    let sweeps = bench.run(3, |exchange| {
        order.extend(exchange.meter);
        answered(exchange)
    });
    let each = bench.schedule.meters[0].plan.requests.len();
    assert_eq!(order[0], 4, "{order:?}");
    let alternating: Vec<usize> = order.iter().copied().take(2 * each - 1).step_by(2).collect();
    assert_eq!(alternating, vec![4; each], "{order:?}");
    let demanded = sweeps.iter().find(|sweep| sweep.class == Class::Demand).unwrap();
    assert_eq!((demanded.meter, demanded.ticket, demanded.keep), (4, ticket, false));
    assert_eq!(sweeps.len(), 6);
}

#[test]
fn many_demands_of_dead_meters_cost_no_slot() {
    let mut bench = Bench::new(40, 2);
    let dead = |exchange: &Exchange| exchange.meter > Some(0);
    bench
        .schedule
        .meters
        .iter_mut()
        .skip(1)
        .for_each(|meter| (meter.plan.slots, meter.next_slot) = (None, None));
    bench
        .schedule
        .meters
        .iter_mut()
        .skip(1)
        .for_each(|meter| meter.paused_until = Some(bench.now.instant + LONGEST_WAIT * 3600));
    bench.schedule.meters.iter_mut().skip(1).for_each(|meter| meter.failures = 9);
    let asked = (0..3).map(|_| {
        (1..40).filter_map(|meter| bench.schedule.handle_request(demand(meter))).collect::<Vec<_>>()
    });
    let tickets: Vec<Vec<Ticket>> = asked.collect();
    assert!(tickets.iter().all(|same| *same == tickets[0] && same.len() == 39), "equal requests are one");
    let mut probes = 0;
    let sweeps = bench.run(61, |exchange| {
        probes += usize::from(dead(exchange));
        if dead(exchange) { (silent(), Duration::from_millis(300)) } else { answered(exchange) }
    });
    let slots = sweeps.iter().filter(|sweep| sweep.class == Class::Slot);
    assert_eq!(slots.clone().filter(|sweep| sweep.skipped.is_none()).count(), 30, "{sweeps:?}");
    assert_eq!(probes, 39, "a silent meter is asked once");
}

#[test]
fn what_nobody_waits_for_any_more_is_not_asked() {
    let mut bench = Bench::new(2, 3600);
    let gone = bench.schedule.handle_request(demand(0)).unwrap();
    let deadline = Some(bench.now.instant + Duration::from_secs(1));
    let late = bench.schedule.handle_request(Request { deadline, ..demand(1) }).unwrap();
    bench.schedule.cancel(gone);
    bench.pass(Duration::from_secs(1));
    bench.run(5, |exchange| panic!("{exchange:?}"));
    assert_eq!(bench.schedule.poll_answer(), Some((late, None)));
}

#[test]
fn a_scan_of_a_thousand_addresses_costs_the_slots_nothing() {
    let scan = |unit: u16| Request {
        target: Target::Bare {
            address: Address::Modbus(u8::try_from(unit % 247).unwrap()),
            wire: None,
            timeout: Duration::from_millis(300),
            question: Question::Modbus(modbus::Read {
                table: modbus::Table::Holding,
                address: unit,
                count: 1,
            }),
        },
        class: Class::Scan,
        deadline: None,
        keep: false,
    };
    let taken = |scanned: u16| {
        let mut bench = Bench::new(20, 5);
        let asked = (0..scanned).filter_map(|unit| bench.schedule.handle_request(scan(unit))).count();
        assert_eq!(asked, usize::from(scanned));
        let (mut ends, mut answers) = (Vec::new(), 0);
        let begin = bench.now.wall;
        while bench.now.wall < begin + Duration::from_secs(200) {
            for sweep in bench.run(1, |exchange| match exchange.meter {
                None => (silent(), Duration::from_millis(320)),
                Some(_) => answered(exchange),
            }) {
                ends.push((sweep.meter, sweep.scheduled_at, sweep.skipped));
            }
            while bench.schedule.poll_answer().is_some() {
                answers += 1;
            }
        }
        (ends, answers, bench)
    };
    let (alone, _, _) = taken(0);
    let (beside, answers, mut bench) = taken(1000);
    let until = Bench::new(1, 5).now.wall + Duration::from_secs(190);
    let whole = |ends: Vec<(usize, Utc, Option<Skipped>)>| -> Vec<_> {
        ends.into_iter().filter(|(_, slot, _)| *slot < until).collect()
    };
    assert!(whole(alone) == whole(beside), "a slot was skipped, or read out of its turn");
    assert!(answers > 100, "{answers} of a thousand");
    // A demand does not wait for the rest of the scan.
    bench.schedule.handle_request(demand(3)).unwrap();
    let mut first = None;
    bench.run(1, |exchange| {
        first = first.or(exchange.meter);
        answered(exchange)
    });
    assert!(first.is_some());
}

/// Turns that the meters which answer had in each of two stretches, with the first three of thirty meters dead or not.
fn turns_of_the_living(dead: usize) -> (usize, usize) {
    let mut bench = Bench::new(30, 0);
    let mut turns = |secs| {
        let sweeps = bench.run(secs, |exchange| {
            if exchange.meter < Some(dead) {
                (silent(), exchange.query.timeout * if exchange.query.linger { 2 } else { 1 })
            } else {
                (answered(exchange).0, Duration::from_millis(75))
            }
        });
        sweeps.iter().filter(|sweep| sweep.meter >= 3).count()
    };
    (turns(60), turns(240))
}

#[test]
fn three_dead_meters_of_thirty_cost_the_others_hardly_anything_from_the_start_on() {
    let (healthy, dead) = (turns_of_the_living(0), turns_of_the_living(3));
    assert!(dead.0 * 105 >= healthy.0 * 100, "first minute: {} of {} turns", dead.0, healthy.0);
    assert!(dead.1 * 96 >= healthy.1 * 100, "later: {} of {} turns", dead.1, healthy.1);
}

#[test]
fn a_meter_is_waited_for_as_long_as_it_takes_and_a_repetition_as_long_as_it_may() {
    let mut bench = Bench::new(1, 10);
    bench.run(61, answered);
    let mut waited = Vec::new();
    bench.run(10, |exchange| {
        waited.push(exchange.query.timeout);
        (silent(), exchange.query.timeout)
    });
    assert!(waited[0] <= Duration::from_millis(200), "{waited:?}");
    assert_eq!(waited[1], Duration::from_millis(300), "{waited:?}");
    // Replies that came too late are learnt from.
    (0..20).for_each(|_| bench.schedule.note_late(0, Duration::from_millis(250)));
    assert!(bench.schedule.patience(0).unwrap().timeout() > Duration::from_millis(250));
}

#[test]
fn one_refusal_of_what_was_answered_before_is_asked_again_at_the_next_slot() {
    for code in [0x02, 0x03, 0x01, 0x0C, 0x7F] {
        let mut bench = Bench::new(1, 10);
        let planned = bench.schedule.meters[0].plan.requests.len();
        bench.run(21, answered);
        let refused = Outcome::Refused(modbus::refusal(code));
        let once = bench.run(10, |_| (refused.clone(), Duration::from_millis(50)));
        assert!(once[0].asked.iter().all(|asked| asked.outcome == refused), "{code:02X}");
        let next = bench.run(10, answered);
        let brought = next[0].asked.iter().filter(|asked| matches!(asked.outcome, Outcome::Answered { .. }));
        assert_eq!(brought.count(), planned, "{code:02X}: {next:?}");
    }
}

#[test]
fn the_line_is_re_tuned_least() {
    for interval in [0, 10] {
        let mut bench = Bench::new(10, interval);
        let wire = Wire { baud: 2400, parity: Parity::Even, stop_bits: 1 };
        bench.schedule.meters.iter_mut().step_by(2).for_each(|meter| meter.plan.wire = Some(wire));
        let mut wires = Vec::new();
        bench.run(45, |exchange| {
            wires.push(exchange.query.wire);
            answered(exchange)
        });
        let sweeps = wires.len() / bench.schedule.meters[0].plan.requests.len() / 10;
        let changes = wires.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes <= sweeps + 1, "{changes} in {sweeps} passes over ten meters");
    }
}
