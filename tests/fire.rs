//! The store under fire: the real binary killed, starved of disk and given damaged files, and an oracle that knows what
//! it had promised before.
//!
//! `FIRE_ROUNDS=1000 cargo test --test fire -- --ignored --nocapture` is the long run of `docs/reliability.md`;
//! `FIRE_SEED` repeats one. A seed repeats the moments that were drawn, not the machine's timing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "fire/full.rs"]
mod full;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/mosquitto.rs"]
mod mosquitto;
#[path = "fire/oracle.rs"]
mod oracle;
#[path = "fire/plant.rs"]
mod plant;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use consumer::Consumer;
use fastrand::Rng;
use full::SmallDisk;
use gateway::Gateway;
use mosquitto::Mosquitto;
use oracle::Oracle;
use serde_json::Value;

/// Rounds on one data directory; the next ones begin with an empty one, so that a round costs the same at the end.
const ROUNDS_PER_LEDGER: u64 = 50;
/// A process lives at most so long: opening takes a good part of the shorter lives, so that some die before they are up.
const LONGEST_LIFE: Duration = Duration::from_millis(600);
/// Between two looks of the oracle.
const LOOK: Duration = Duration::from_millis(15);

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// What the rounds came to.
#[derive(Debug, Default)]
struct Figures {
    rounds: u64,
    killed_before_up: u64,
    ledgers: u64,
    records: u64,
    /// Records a subscriber had when the process was killed, and heads that were shown: all were found again.
    compared: u64,
    heads: u64,
    came_again: u64,
    torn_ends: usize,
}

/// Kills and restarts until `rounds` are over.
async fn kills(rounds: u64, seed: u64) -> Figures {
    let mut rng = Rng::with_seed(seed);
    let mut figures = Figures::default();
    while figures.rounds < rounds {
        let broker = Mosquitto::open();
        let (mut gateway, _site) = plant::plant(broker.port, 20, "");
        let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
        let mut oracle = Oracle::default();
        let here = ROUNDS_PER_LEDGER.min(rounds - figures.rounds);
        for round in 1..=here {
            let life = Duration::from_micros(rng.u64(..LONGEST_LIFE.as_micros() as u64));
            let begun = Instant::now();
            gateway.spawn();
            let mut answered = false;
            while begun.elapsed() < life {
                if let Some(status) = gateway.try_get("/api/v1/status") {
                    answered = true;
                    oracle.look(&status);
                }
                oracle.hear(&mut billing);
                sleep(LOOK.min(life.saturating_sub(begun.elapsed())));
            }
            gateway.kill();
            oracle.hear(&mut billing);
            figures.killed_before_up += u64::from(!answered);
            figures.rounds += 1;
            figures.compared += oracle.prove(&gateway, round == here);
        }
        // What was known before the last kill is still there when it is up again, and all of it arrives.
        gateway.start();
        oracle.look(&gateway.get("/api/v1/status"));
        let stored = gateway.stored();
        oracle.accounts.until(stored, &mut billing).await;
        gateway.kill();
        figures.compared += oracle.prove(&gateway, true);
        let proof = gateway.cli(&["ledger", "verify"]);
        assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stderr));
        figures.ledgers += 1;
        figures.records += stored;
        figures.heads += oracle.heads() as u64;
        figures.came_again += oracle.accounts.duplicates;
        figures.torn_ends += gateway.log().matches("torn end").count();
    }
    figures
}

async fn kill_rounds(rounds: u64) {
    let seed = from_environment("FIRE_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("FIRE_SEED={seed} FIRE_ROUNDS={rounds}");
    let begun = Instant::now();
    let figures = kills(rounds, seed).await;
    println!("{figures:#?} in {:.0?}, lost 0", begun.elapsed());
    assert!(figures.killed_before_up < figures.rounds, "no round got as far as a record: {figures:?}");
    assert!(figures.records > figures.rounds, "too little was at stake: {figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_keeps_what_it_said_it_had() {
    kill_rounds(ROUNDS_PER_LEDGER).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: FIRE_ROUNDS=1000 takes about ten minutes"]
async fn killed_a_thousand_times_it_keeps_what_it_said_it_had() {
    kill_rounds(from_environment("FIRE_ROUNDS").unwrap_or(1000)).await;
}

fn answered(gateway: &Gateway) -> u64 {
    let status = gateway.get("/api/v1/status");
    status["buses"].as_array().unwrap().iter().map(|bus| bus["answered"].as_u64().unwrap()).sum()
}

fn refusing(status: &Value) -> bool {
    !status["store"]["refusing"].is_null()
}

/// Full down to `left` bytes, killed and started while it is full, then room again.
async fn full_disk(reserve_mb: u32, left: u64) {
    let broker = Mosquitto::open();
    let (mut gateway, _site) = plant::plant(broker.port, 10, &format!("reserve_mb = {reserve_mb}"));
    let disk = SmallDisk::mount(&gateway.path("data"), 16);
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    let mut oracle = Oracle::default();
    gateway.start();
    oracle.accounts.until(50, &mut billing).await;

    disk.fill(left);
    let status = gateway.until("it notices", refusing);
    oracle.look(&status);
    // Polling goes on: some hundred answers more, and none of them is on disk.
    let before = answered(&gateway);
    gateway.until("it reads on", |_| answered(&gateway) > before + 300);
    let later = gateway.get("/api/v1/status");
    oracle.look(&later);
    assert_eq!(later["store"]["last_seq"], status["store"]["last_seq"], "nothing is said to be stored");
    oracle.accounts.until(gateway.stored(), &mut billing).await; // what was stored is sent meanwhile

    // Told once: in the log, in the status (above) and in the metrics.
    assert_eq!(gateway.log().matches("nothing can be stored").count(), 1, "{}", gateway.log());
    let metrics = gateway.text("/metrics");
    assert!(metrics.contains("\nmeter_gateway_ledger_refusing 1\n"), "{metrics}");

    // It starts on a full disk too, and what it had promised is there.
    gateway.kill();
    oracle.hear(&mut billing);
    oracle.prove(&gateway, true);
    gateway.start();
    oracle.look(&gateway.until("it notices again", refusing));
    let before = answered(&gateway);
    gateway.until("it reads", |_| answered(&gateway) > before + 50);

    disk.empty();
    oracle.look(&gateway.until("it stores again by itself", |status| !refusing(status)));
    let stored = gateway.stored();
    gateway.until("it goes on", |status| status["store"]["last_seq"].as_u64().unwrap() > stored + 100);
    assert!(gateway.log().contains("records are stored again"), "{}", gateway.log());
    let metrics = gateway.text("/metrics");
    assert!(metrics.contains("\nmeter_gateway_ledger_refusing 0\n"), "{metrics}");
    let (status, _) = gateway.terminate();
    assert!(status.success(), "{}", gateway.log());
    oracle.hear(&mut billing);
    oracle.prove(&gateway, true);
    let proof = gateway.cli(&["ledger", "verify"]);
    assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stderr));
    let export = gateway.cli(&["ledger", "export"]);
    let told = String::from_utf8(export.stdout).unwrap();
    assert!(told.contains("nothing could be stored"), "the pause is on record");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_to_the_last_byte_is_waited_for() {
    full_disk(0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reserve_stops_records_while_there_is_still_room_for_repair() {
    full_disk(3, 2_900_000).await;
}
