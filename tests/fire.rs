//! The store under fire: the real binary killed, cut from power, starved of disk and given damaged files, and an oracle that knows what
//! it had promised before.
//!
//! `FIRE_ROUNDS=1000 cargo test --test fire -- --ignored --nocapture` is the long run of `docs/reliability.md`;
//! `FIRE_SEED` repeats one. A seed repeats the moments that were drawn, not the machine's timing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "fire/device.rs"]
mod device;
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
#[path = "fire/rounds.rs"]
mod rounds;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use consumer::Consumer;
use fastrand::Rng;
use full::SmallDisk;
use gateway::Gateway;
use meter_gateway::{
    ledger::{FileLedger, Ledger, Options, chain::verify_line},
    model::{ClockState, Draft, Utc},
};
use mosquitto::Mosquitto;
use oracle::Oracle;
use rounds::{End, ROUNDS_PER_LEDGER};
use serde_json::Value;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_it_keeps_what_it_said_it_had() {
    rounds::run(ROUNDS_PER_LEDGER, End::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: FIRE_ROUNDS=1000 takes about ten minutes"]
async fn killed_a_thousand_times_it_keeps_what_it_said_it_had() {
    rounds::run(from_environment("FIRE_ROUNDS").unwrap_or(1000), End::Kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_power_at_any_moment_it_keeps_what_it_said_it_had() {
    rounds::run(12, End::PowerCut).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: FIRE_ROUNDS=300 takes about ten minutes"]
async fn without_power_hundreds_of_times_it_keeps_what_it_said_it_had() {
    rounds::run(from_environment("FIRE_ROUNDS").unwrap_or(300), End::PowerCut).await;
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
    let status = gateway.get("/api/v1/status"); // after the first refusal nothing more gets in
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

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The records of an export by their seq.
fn exported(gateway: &Gateway) -> BTreeMap<u64, Vec<u8>> {
    let output = gateway.cli(&["ledger", "export"]);
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| (verify_line(line).unwrap().seq, line.to_vec())).collect()
}

fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.metadata().is_ok_and(|about| about.is_file() && about.len() > 0))
        .collect();
    files.sort();
    files
}

/// It worked, or it said no (1), or it could not (70) and named the file. A panic is 101, a signal has no code.
fn assert_calm(output: &Output, place: &str, damaged: &Path) {
    let name = damaged.file_name().unwrap().to_str().unwrap();
    let good = match output.status.code() {
        Some(0 | 1) => true,
        Some(70) => said(output).contains(name) || said(output).contains("begins a new ledger"),
        _ => false,
    };
    assert!(good, "{place}: {:?} {}", output.status, said(output));
}

/// Damages files of a real data directory, with sealed segments and an index, and asks the real binary.
#[tokio::test(flavor = "multi_thread")]
async fn flipped_bytes_are_named_and_never_served() {
    const ROUNDS: usize = 12;
    let seed = from_environment("FIRE_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("FIRE_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let broker = Mosquitto::open();
    let (mut gateway, _site) = plant::plant(broker.port, 4, "");
    gateway.start();
    gateway.until("records", |status| status["store"]["last_seq"].as_u64().unwrap() > 60);
    gateway.terminate();
    // Again into small segments, so that there are sealed ones, and an index of them.
    let truth = exported(&gateway);
    fs::remove_dir_all(gateway.path("data/ledger")).unwrap();
    let options = Options { segment_bytes: 10_000, ..Options::default() };
    let (ledger, _) = FileLedger::open(&gateway.path("data"), options).unwrap();
    for line in truth.values() {
        let Value::Object(mut fields) = serde_json::from_slice(line).unwrap() else { unreachable!() };
        for own in ["seq", "type", "recorded_at", "clock", "prev", "hash"] {
            fields.remove(own);
        }
        let draft = Draft::change("copy", fields, Utc::default(), ClockState::Synced);
        ledger.append(vec![draft]).await.unwrap();
    }
    ledger.close();
    let truth = exported(&gateway);
    let whole = gateway.path("whole");
    let copied = Command::new("cp").arg("-a").arg(gateway.path("data")).arg(&whole).status().unwrap();
    assert!(copied.success() && files_below(&whole.join("ledger")).len() > 5);
    for round in 0..ROUNDS {
        fs::remove_dir_all(gateway.path("data")).unwrap();
        let copied = Command::new("cp").arg("-a").arg(&whole).arg(gateway.path("data")).status().unwrap();
        assert!(copied.success());
        let room = if round % 3 == 2 { "data/index" } else { "data/ledger" };
        let path = rng.choice(files_below(&gateway.path(room))).unwrap();
        let mut content = fs::read(&path).unwrap();
        let at = rng.usize(..content.len());
        content[at] ^= 1 << rng.u8(..8);
        fs::write(&path, &content).unwrap();
        let place = format!("round {round}: {} byte {at}", path.display());
        let proof = gateway.cli(&["ledger", "verify"]);
        let is_segment = path.extension().is_some_and(|extension| extension == "seg");
        assert_calm(&proof, &place, &path);
        if is_segment {
            assert_eq!(proof.status.code(), Some(1), "{place}: {}", said(&proof));
            assert!(said(&proof).contains(path.file_name().unwrap().to_str().unwrap()), "{place}");
        }
        let listed = gateway.cli(&["readings", "--format", "jsonl"]);
        assert_calm(&listed, &place, &path);

        gateway.start(); // whatever was damaged: it starts, and reads meters
        let status = gateway.get("/api/v1/status");
        let begun = status["store"]["last_seq"].as_u64().unwrap();
        gateway.until("goes on", |status| status["store"]["last_seq"].as_u64().unwrap() > begun + 5);
        gateway.kill();
        let now = exported(&gateway);
        let replaced =
            now.get(&1).is_some_and(|line| String::from_utf8_lossy(line).contains("ledger_replaced"));
        if !replaced {
            for (seq, line) in &truth {
                let served = now.get(seq);
                assert!(
                    served.is_none_or(|served| served == line),
                    "{place}: seq {seq} is served, and false"
                );
                assert!(is_segment || served.is_some(), "{place}: seq {seq} is gone");
            }
        }
        if is_segment {
            let name = path.file_name().unwrap().to_str().unwrap();
            // In its place or aside, whole or with its end beside it.
            let files = files_below(&gateway.path("data/ledger"));
            let stem = name.strip_suffix(".seg").unwrap();
            let torn = files.iter().find(|file| file.to_str().unwrap().contains(&format!("{stem}.torn-")));
            let torn = torn.map(|file| fs::read(file).unwrap()).unwrap_or_default();
            let kept = files.iter().filter(|file| file.to_str().unwrap().ends_with(name)).any(|file| {
                let found = fs::read(file).unwrap();
                let rest = &content[..content.len().saturating_sub(torn.len())];
                found.starts_with(&content) || (found.starts_with(rest) && content.ends_with(&torn))
            });
            let kept = kept || torn == content; // nothing of it could be read
            assert!(kept, "{place}: the damaged bytes are no longer there");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_hangs_does_not_keep_the_meters_waiting() {
    let broker = Mosquitto::open();
    let (mut gateway, _site) = plant::plant(broker.port, 4, "");
    let index = gateway.path("data/index");
    fs::create_dir_all(&index).unwrap();
    // sled reads this file first; a pipe that nobody writes to makes it wait for ever.
    assert!(Command::new("mkfifo").arg(index.join("conf")).status().unwrap().success());
    let begun = Instant::now();
    gateway.start();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    gateway.until("records meanwhile", |status| status["store"]["last_seq"].as_u64().unwrap() > 20);
    assert!(!gateway.path("data/index.damaged-1").exists(), "it still hangs");
    gateway.until("set aside and built again", |status| {
        let incidents = status["store"]["incidents"].to_string();
        incidents.contains("not open within") && incidents.contains("index.damaged-1")
    });
    assert!(gateway.path("data/index/db").exists());
    gateway.terminate();
    let records: Vec<Value> =
        exported(&gateway).into_values().filter_map(|line| serde_json::from_slice(&line).ok()).collect();
    let told = records.iter().filter(|record| record["change"] == "ledger_incident");
    let told: Vec<&str> = told.filter_map(|record| record["detail"].as_str()).collect();
    assert!(
        told.iter().filter(|detail| detail.contains("index")).count() >= 2,
        "both are on record: {told:?}"
    );
    let raised = records.iter().filter(|record| record["type"] == "anomaly" && record["state"] == "raised");
    let raised: Vec<&Value> = raised.filter(|record| record["rule"] == "store_incident").collect();
    let evidence: Vec<&str> = raised.iter().filter_map(|one| one["evidence"]["detail"].as_str()).collect();
    assert_eq!(evidence, told, "each is an anomaly as well");
    assert!(raised.iter().all(|one| one["severity"] == "warning" && one["since"] == one["recorded_at"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_identity_begins_a_new_ledger_and_billing_hears_it() {
    let broker = Mosquitto::open();
    let (mut gateway, _site) = plant::plant(broker.port, 4, "");
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    gateway.start();
    let old = gateway.until("records", |status| status["store"]["last_seq"].as_u64().unwrap() > 20)["ledger"]
        .clone();
    gateway.terminate();
    fs::remove_file(gateway.path("data/ledger/ledger.json")).unwrap();
    gateway.start();
    let status = gateway.get("/api/v1/status");
    assert_ne!(status["ledger"], old);
    gateway.until("goes on", |status| status["store"]["last_seq"].as_u64().unwrap() > 20);
    while billing.next_json("status").await["ledger"] != status["ledger"] {}
    gateway.terminate();
    let first: Value = serde_json::from_slice(&exported(&gateway)[&1]).unwrap();
    assert_eq!(first["change"], "ledger_replaced", "{first}");
    assert_eq!(first["old_ledger"], old, "{first}");
    assert!(first["last_seq"].as_u64().unwrap() >= 20, "{first}");
    let kept = fs::read_to_string(gateway.path("data/ledger/replaced-1.00000000000000000001.seg")).unwrap();
    assert_eq!(kept.lines().count() as u64, first["last_seq"].as_u64().unwrap());
    assert!(kept.lines().all(|line| verify_line(line.as_bytes()).is_ok()), "readable, and proved");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_gateway_is_backed_up_and_restored() {
    let broker = Mosquitto::open();
    let (mut gateway, _site) = plant::plant(broker.port, 4, "");
    gateway.start();
    gateway.until("records", |status| status["store"]["last_seq"].as_u64().unwrap() > 20);
    let old = gateway.get("/api/v1/status")["ledger"].as_str().unwrap().to_owned();
    let to = gateway.path("backup");
    let (to, other) = (to.to_str().unwrap(), gateway.path("other"));
    let first = gateway.cli(&["ledger", "backup", to]);
    assert!(first.status.success(), "{}", said(&first));
    let stored = gateway.stored();
    gateway.until("more", |status| status["store"]["last_seq"].as_u64().unwrap() > stored + 20);
    let second = gateway.cli(&["ledger", "backup", to]); // on top of the older one
    assert!(second.status.success(), "{}", said(&second));
    fs::create_dir(&other).unwrap();
    fs::write(other.join("something"), "of somebody else").unwrap();
    let refused = gateway.cli(&["ledger", "backup", other.to_str().unwrap()]);
    assert!(!refused.status.success() && said(&refused).contains("not empty"), "{}", said(&refused));
    let refused = gateway.cli(&["ledger", "restore", to]);
    assert!(!refused.status.success() && said(&refused).contains("not empty"), "{}", said(&refused));
    assert!(gateway.path("backup/public-key.pem").exists() && !gateway.path("backup/identity.key").exists());
    gateway.terminate();
    let truth = exported(&gateway);

    // The disk is gone. Nobody knows what was sent: a new ledger, with the old records beside it.
    fs::rename(gateway.path("data"), gateway.path("lost")).unwrap();
    let restored = gateway.cli(&["ledger", "restore", to]);
    assert!(restored.status.success(), "{}", said(&restored));
    let first: Value = serde_json::from_slice(&exported(&gateway)[&1]).unwrap();
    assert_eq!(
        (first["change"].as_str(), first["old_ledger"].as_str()),
        (Some("ledger_replaced"), Some(&*old))
    );
    let end = first["last_seq"].as_u64().unwrap();
    assert!(end > stored + 20 && end <= *truth.keys().next_back().unwrap());
    let kept = fs::read_to_string(gateway.path("data/ledger/replaced-1.00000000000000000001.seg")).unwrap();
    assert!(
        kept.lines().map(str::as_bytes).eq(truth.range(..=end).map(|(_, line)| line.as_slice())),
        "byte for byte"
    );

    // Billing says that it has no more than the backup: the ledger goes on.
    fs::remove_dir_all(gateway.path("data")).unwrap();
    let restored = gateway.cli(&["ledger", "restore", to, "--billing-has", &end.to_string()]);
    assert!(restored.status.success(), "{}", said(&restored));
    assert!(said(&restored).contains(&format!("its next record is seq {}", end + 1)), "{}", said(&restored));
    gateway.start();
    assert_eq!(gateway.get("/api/v1/status")["ledger"], old.as_str());
    gateway.until("goes on", |status| status["store"]["last_seq"].as_u64().unwrap() > end + 10);
    gateway.terminate();
    let now = exported(&gateway);
    assert!(truth.range(..=end).all(|(seq, line)| now[seq] == *line));
    assert!(gateway.cli(&["ledger", "verify"]).status.success());

    // Billing has more: these numbers are used.
    fs::remove_dir_all(gateway.path("data")).unwrap();
    let restored = gateway.cli(&["ledger", "restore", to, "--billing-has", &(end + 1).to_string()]);
    assert!(said(&restored).contains("begins behind it"), "{}", said(&restored));
}
