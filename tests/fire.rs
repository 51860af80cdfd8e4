//! The store under fire: the real binary killed, starved of disk and given damaged files, and an oracle that knows what
//! it had promised before.
//!
//! `FIRE_ROUNDS=1000 cargo test --test fire -- --ignored --nocapture` is the long run of `docs/reliability.md`;
//! `FIRE_SEED` repeats one. A seed repeats the moments that were drawn, not the machine's timing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
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
use mosquitto::Mosquitto;
use oracle::Oracle;

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
