//! Reads on demand beside the slots: many of one dead meter, and some whose asker has gone.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    consumer::Consumer,
    gateway::Gateway,
    meters::lab,
    mosquitto::Mosquitto,
    peer::{Framing, Peer},
    site::{Site, after_slots, all_good, ask_to_read, hold, read_now, readings},
};

const DEAD: u8 = 9;
/// As many as one bus takes.
const MANY: usize = 64;
/// Not due while a test runs.
const SELDOM: &str = "interval_secs = 86400";

/// Everybody answers but `DEAD`.
fn one_dead() -> Peer {
    Peer::start(Framing::Tcp, |mut connection| {
        while let Some(question) = connection.question() {
            if question.unit != DEAD {
                thread::sleep(Duration::from_millis(5));
                connection.send(&question.answer());
            }
        }
    })
}

fn site_of(peer: &Peer) -> Site {
    let mut site = Site::default();
    site.tcp("a", Framing::Tcp, peer, "timeout_ms = 300\nretries = 1").meter("E-1", 1, "lab-u32");
    site.meter_with("E-9", DEAD, "lab-u32", SELDOM);
    site
}

/// 64 people ask for one dead meter at once: the slots of the other one are all read, equal questions are one, and
/// everybody gets an answer.
#[test]
fn many_reads_of_a_dead_meter_cost_the_others_no_slot() {
    let peer = one_dead();
    let gateway = site_of(&peer).start(1);
    after_slots(&gateway, &["E-1"], 2);
    let begun = Instant::now();
    let answered = thread::scope(|scope| {
        let asked: Vec<_> =
            (0..MANY).map(|_| scope.spawn(|| read_now(&gateway, "E-9", Duration::from_secs(12)))).collect();
        asked.into_iter().filter_map(|asked| asked.join().unwrap()).count()
    });
    let took = begun.elapsed();
    let slots = readings(&gateway, "E-1").len();
    let read = after_slots(&gateway, &["E-1"], slots + 2).remove(0);
    let asked = peer.asked(DEAD);
    let merged = if asked <= 2 * 8 {
        Ok(())
    } else {
        Err(format!("E-9 was asked {asked} times for {MANY} equal demands"))
    };
    let all = if answered == MANY {
        Ok(())
    } else {
        Err(format!("{answered} of {MANY} askers had an answer in {took:?}"))
    };
    hold([all_good("E-1", &read, &lab(1)), merged, all], &gateway);
}

/// The same over MQTT, as billing asks.
#[tokio::test(flavor = "multi_thread")]
async fn many_read_now_of_a_dead_meter_cost_the_others_no_slot() {
    let broker = Mosquitto::open();
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    let peer = one_dead();
    let mut gateway = site_of(&peer).configured(broker.port, 1);
    gateway.start();
    billing.next("records").await;
    for id in 0..MANY {
        billing
            .say("command", &json!({"id": format!("r-{id}"), "name": "read_now", "args": {"meter": "E-9"}}))
            .await;
    }
    for _ in 0..MANY {
        billing.next("response").await; // a reading, or that too many wait
    }
    let slots = readings(&gateway, "E-1").len();
    let read = after_slots(&gateway, &["E-1"], slots + 2).remove(0);
    hold([all_good("E-1", &read, &lab(1))], &gateway);
    assert!(peer.asked(DEAD) <= 2 * MANY / 4, "E-9 was asked {} times", peer.asked(DEAD));
}

/// Different living meters at once: each is read, and the slots all the same.
#[test]
fn reads_of_many_meters_leave_the_slots_their_turn() {
    let peer = Peer::start(Framing::Tcp, |mut connection| {
        while let Some(question) = connection.question() {
            thread::sleep(Duration::from_millis(120));
            connection.send(&question.answer());
        }
    });
    let mut site = Site::default();
    site.tcp("a", Framing::Tcp, &peer, "timeout_ms = 1000").meter("E-1", 1, "lab-u32");
    for unit in 10..50 {
        site.meter_with(&format!("E-{unit}"), unit, "lab-u32", SELDOM);
    }
    let gateway = site.start(1);
    after_slots(&gateway, &["E-1"], 2);
    let wrong: Vec<u8> = thread::scope(|scope| {
        let gateway = &gateway;
        let asked: Vec<_> = (10..50_u8)
            .map(|unit| {
                (unit, scope.spawn(move || read_now(gateway, &format!("E-{unit}"), Duration::from_secs(28))))
            })
            .collect();
        asked
            .into_iter()
            .filter_map(|(unit, asked)| {
                let reading = asked.join().unwrap().unwrap_or_default();
                let shown = reading["values"]["energy_import_total"]["value"] == lab(unit);
                (!shown).then_some(unit)
            })
            .collect()
    });
    let read = readings(&gateway, "E-1");
    let all = if wrong.is_empty() { Ok(()) } else { Err(format!("not read: units {wrong:?}")) };
    hold([all_good("E-1", &read, &lab(1)), all], &gateway);
}

/// Waits until somebody's wish to have this meter read is recorded: then the bus has it.
fn on_record(gateway: &Gateway, meter: &str) {
    let wish = |line: &str| line.contains("read_now") && line.contains(meter);
    gateway.until("on record", |_| {
        String::from_utf8(gateway.cli(&["ledger", "export"]).stdout).unwrap().lines().any(wish)
    });
}

/// Who asked has hung up before its turn came: nobody is asked.
#[test]
fn a_read_whose_asker_has_gone_is_not_carried_out() {
    let peer = one_dead();
    let mut site = Site::default();
    site.tcp("a", Framing::Tcp, &peer, "timeout_ms = 6000\nretries = 0")
        .meter_with("E-9", DEAD, "lab-u32", SELDOM);
    site.meter_with("E-2", 2, "lab-u32", SELDOM).meter_with("E-3", 3, "lab-u32", SELDOM);
    let gateway = site.start(1);
    let busy = ask_to_read(&gateway, "E-9");
    gateway.until("the line is busy", |_| peer.asked(DEAD) == 1);
    let gone = ask_to_read(&gateway, "E-2");
    on_record(&gateway, "E-2");
    // One that stays, and comes after: when it is answered, the turn of the one that has gone has passed.
    let stayed = thread::scope(|scope| {
        let stayed = scope.spawn(|| read_now(&gateway, "E-3", Duration::from_secs(20)).expect("an answer"));
        on_record(&gateway, "E-3");
        drop(gone);
        stayed.join().unwrap()
    });
    assert_eq!(stayed["values"]["energy_import_total"]["value"], lab(3), "{stayed}");
    assert_eq!(peer.asked(2), 0, "E-2 was asked for nobody");
    drop(busy);
}
