//! Lives of the real binary, each ended by a kill or by a power cut, and what they came to.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::{
    consumer::Consumer,
    device::{Device, Loss},
    from_environment,
    mosquitto::Mosquitto,
    oracle::Oracle,
    plant,
};

/// Rounds on one data directory; the next ones begin with an empty one, so that a round costs the same at the end.
pub const ROUNDS_PER_LEDGER: u64 = 50;
/// Between two looks of the oracle.
const LOOK: Duration = Duration::from_millis(15);

/// What ends a life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SIGKILL: what the process had written, the system keeps.
    Kill,
    /// The data directory is an ext4 on a device without power.
    PowerCut,
}

impl End {
    /// A process lives at most so long: opening takes a good part of the shorter lives, so that some die before they
    /// are up. It takes longer where each flush passes two file systems.
    fn longest_life_us(self) -> u64 {
        match self {
            End::Kill => 600_000,
            End::PowerCut => 1_200_000,
        }
    }
}

/// What the rounds came to.
#[derive(Debug, Default)]
struct Figures {
    rounds: u64,
    ended_before_up: u64,
    ledgers: u64,
    records: u64,
    /// Records a subscriber had when the process was ended, and heads that were shown: all were found again.
    compared: u64,
    heads: u64,
    came_again: u64,
    torn_ends: usize,
    /// Cuts after which the bytes written just before, and never synced, were gone.
    unsynced_gone: u64,
    index_begun_again: usize,
}

/// Ends and restarts until `rounds` are over.
async fn lives(rounds: u64, seed: u64, end: End) -> Figures {
    let mut rng = Rng::with_seed(seed);
    let mut figures = Figures::default();
    while figures.rounds < rounds {
        let broker = Mosquitto::open();
        let (mut gateway, _site) = plant::plant(broker.port, 20, "reserve_mb = 1");
        let mut device = (end == End::PowerCut).then(|| Device::mount(&gateway.path("data")));
        let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
        let mut oracle = Oracle::default();
        let here = ROUNDS_PER_LEDGER.min(rounds - figures.rounds);
        for round in 1..=here {
            let life = Duration::from_micros(rng.u64(..end.longest_life_us()));
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
            if let Some(device) = &mut device {
                let loss = rng.choice([Loss::System, Loss::Cache, Loss::Pieces]).unwrap();
                device.cut(loss, rng.u64(..));
                // It lives on for a moment without a disk. What it says now, too, it must have had before.
                gateway.kill();
                figures.unsynced_gone += u64::from(device.restore(loss));
            }
            gateway.kill();
            oracle.hear(&mut billing);
            figures.ended_before_up += u64::from(!answered);
            figures.rounds += 1;
            figures.compared += oracle.prove(&gateway, round == here);
        }
        // What was known before the last end is still there when it is up again, and all of it arrives.
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
        figures.index_begun_again += gateway.log().matches("built again from the ledger").count();
    }
    figures
}

pub async fn run(rounds: u64, end: End) {
    let seed = from_environment("FIRE_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("FIRE_SEED={seed} FIRE_ROUNDS={rounds} {end:?}");
    let begun = Instant::now();
    let figures = lives(rounds, seed, end).await;
    eprintln!("{figures:#?} in {:.0?}, lost 0", begun.elapsed());
    assert!(figures.ended_before_up < figures.rounds, "no round got as far as a record: {figures:?}");
    assert!(figures.records > figures.rounds, "too little was at stake: {figures:?}");
    // Now and then another program's `sync` saves it.
    let cut = if end == End::PowerCut { figures.rounds } else { 0 };
    assert!(figures.unsynced_gone >= cut / 2, "the cuts cost nothing: {figures:?}");
}
