//! The daily manifest and its proof: several days in a real ledger, then every way to falsify an export. The checker in
//! Python and ours must name the same first fault.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/days.rs"]
mod days;
#[path = "common/python.rs"]
mod python;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use days::{Hands, Sample, all_due, downtime, fixed, good, manifests, reading, settings, utc};
use meter_gateway::{
    billing::{Keeper, rotate, settle},
    clock::Clock,
    identity::{Identity, PublicKey},
    ledger::{Cursor, FileLedger, MemoryLedger, Options, SharedLedger, audit::export, chain::seal},
    model::{Asker, ClockState, Draft, RecordType, Utc, Via, rfc3339},
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const GATEWAY: &str = env!("CARGO_BIN_EXE_meter-gateway");
/// The gateway on a machine whose clock somebody vouches for.
fn vouched(dir: &Path) -> Command {
    let bin = dir.join("bin");
    if !bin.exists() {
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("timedatectl"), "#!/bin/sh\necho yes\n").unwrap();
        fs::set_permissions(bin.join("timedatectl"), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(GATEWAY);
    let others = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{others}", bin.display()));
    command
}

fn somebody() -> Asker {
    Asker::new(Via::Mqtt("c-1".into()), None).unwrap()
}

/// If this fails, do not change the test: manifests that were signed would no longer verify for those who check them.
#[tokio::test]
async fn golden_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), "UTC", 1);
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("00112233445566778899aabbccddeeff"));
    ledger.append(vec![reading(&good("E-0000", "2026-11-01T18:00:00Z", "12.50"))]).await.unwrap();
    let clock = Hands::at("2026-11-02T00:05:00Z");
    let mut keeper = Keeper::new(Arc::clone(&ledger), fixed(), clock);
    assert_eq!(all_due(&mut keeper, &settings).await, ["2026-11-01"]);
    let line = ledger.read(2, 1, usize::MAX).unwrap().remove(0);
    let golden = fs::read("tests/fixtures/manifest.json").unwrap();
    assert_eq!(String::from_utf8_lossy(&line.bytes), String::from_utf8_lossy(golden.trim_ascii_end()));
}

#[tokio::test]
async fn a_manifest_counts_slots_registers_and_what_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), "Asia/Shanghai", 5);
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("ab"));
    // The day in Shanghai is 16:00 to 16:00 UTC; slots every six hours: 16, 22, 04, 10.
    let rollover =
        Sample { meter: "E-0001", at: "2026-11-01T10:00:00Z", value: Some("3.25"), flags: &["rollover"] };
    let missing = Sample { meter: "E-0002", at: "2026-11-01T04:00:00Z", value: None, flags: &["no_answer"] };
    let drafts = vec![
        reading(&good("E-0000", "2026-10-31T10:00:00Z", "1.00")), // the day before
        reading(&good("E-0000", "2026-10-31T16:00:00Z", "100.00")),
        reading(&good("E-0001", "2026-10-31T16:00:00Z", "9999990.50")),
        reading(&good("E-0002", "2026-10-31T16:00:00Z", "7.00")),
        reading(&good("E-0003", "2026-10-31T16:00:00Z", "50.00")),
        reading(&good("E-0099", "2026-10-31T16:00:00Z", "1.00")), // no longer configured
        downtime("2026-10-31T22:00:00Z", "2026-10-31T22:10:00Z"),
        reading(&missing),
        reading(&good("E-0000", "2026-11-01T10:00:00Z", "112.75")),
        reading(&good("E-0000", "2026-11-01T04:00:00Z", "106.00")), // late
        reading(&rollover),
        reading(&good("E-0003", "2026-11-01T10:00:00Z", "49.00")),
        reading(&good("E-0000", "2026-11-01T16:00:00Z", "120.00")), // the next day
    ];
    ledger.append(drafts).await.unwrap();
    let clock = Hands::at("2026-11-01T16:00:10Z");
    let mut keeper = Keeper::new(Arc::clone(&ledger), fixed(), Arc::clone(&clock) as _);
    // The first record is of the day before: its manifest is due too, and its grace is over.
    assert_eq!(all_due(&mut keeper, &settings).await, ["2026-10-31"]);
    clock.set("2026-11-01T16:05:00Z"); // E-0002 has nothing for its last slot: it is waited for
    assert_eq!(all_due(&mut keeper, &settings).await, ["2026-11-01"]);
    let all = manifests(&*ledger);
    let (before, day) = (&all[0], &all[1]);
    assert_eq!(before["first_seq"], 1);
    assert_eq!(before["last_seq"], 13);
    assert_eq!(
        (&day["from"], &day["to"]),
        (&json!("2026-10-31T16:00:00.000Z"), &json!("2026-11-01T16:00:00.000Z"))
    );
    assert_eq!(
        (&day["first_seq"], &day["last_seq"], &day["head"]),
        (&json!(14), &json!(14), &before["hash"])
    );
    assert_eq!(day["previous"], json!({"date": "2026-10-31", "seq": 14}));
    let meter = |name: &str| {
        day["meters"].as_array().unwrap().iter().find(|entry| entry["meter"] == name).unwrap().clone()
    };
    let first = meter("E-0000");
    assert_eq!(
        (&first["expected"], &first["recorded"], &first["downtime"], &first["absent"]),
        (&json!(4), &json!(3), &json!(1), &json!(0))
    );
    let register = |name: &str| meter(name)["registers"][0].clone();
    assert_eq!(register("E-0000")["consumption"], "12.75");
    assert_eq!(register("E-0000")["multiplier"], "40");
    assert_eq!(register("E-0000")["first"]["seq"], 2);
    assert_eq!(register("E-0000")["last"]["value"], "112.75");
    assert_eq!(register("E-0001")["rollovers"], 1);
    assert_eq!(register("E-0002")["reason"], "one_value");
    assert_eq!(meter("E-0002")["missing"], 1);
    assert_eq!(
        (&register("E-0003")["consumption"], &register("E-0003")["reason"]),
        (&Value::Null, &json!("back_step"))
    );
    assert_eq!((&meter("E-0004")["absent"], &meter("E-0004")["downtime"]), (&json!(3), &json!(1)));
    let capacity = settings.meters[0].profile.points.iter().find_map(|p| p.register).unwrap().capacity;
    let expected =
        capacity.minus("9999990.50".parse().unwrap()).unwrap().plus("3.25".parse().unwrap()).unwrap();
    assert_eq!(register("E-0001")["consumption"], expected.to_string());
}

#[tokio::test]
async fn days_that_ended_while_nobody_ran_are_made_up_for_once_with_23_and_25_hours() {
    for (zone, first, date, slots) in [
        ("Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29", 4),
        ("Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25", 4),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path(), zone, 1);
        let ledger: SharedLedger = Arc::new(MemoryLedger::new("ab"));
        ledger.append(vec![reading(&good("E-0000", first, "1.0"))]).await.unwrap();
        let now = utc(first) + chrono::TimeDelta::days(4);
        ledger
            .append(vec![downtime(&rfc3339(utc(first) + chrono::TimeDelta::hours(4)), &rfc3339(now))])
            .await
            .unwrap();
        let clock = Hands::at(&rfc3339(now));
        let mut keeper = Keeper::new(Arc::clone(&ledger), fixed(), Arc::clone(&clock) as _);
        assert_eq!(all_due(&mut keeper, &settings).await.len(), 4);
        let all = manifests(&*ledger);
        let day = all.iter().find(|m| m["date"] == date).unwrap();
        let entry = &day["meters"][0];
        assert_eq!(
            (&entry["expected"], &entry["downtime"], &entry["absent"]),
            (&json!(slots), &json!(slots), &json!(0))
        );
        let hours = (utc(day["to"].as_str().unwrap()) - utc(day["from"].as_str().unwrap())).num_hours();
        assert_eq!(hours, if date.contains("-03-") { 23 } else { 25 });
        // A keeper that knows nothing, as after a restart, finds nothing due.
        let mut again = Keeper::new(Arc::clone(&ledger), fixed(), clock);
        assert!(all_due(&mut again, &settings).await.is_empty());
    }
}

#[tokio::test]
async fn a_thousand_meters_are_split_and_a_crash_between_the_parts_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let many = settings(dir.path(), "UTC", 1000);
    let day = || {
        let mut drafts = Vec::new();
        for meter in &many.meters {
            drafts.push(reading(&good(meter.id.as_str(), "2026-11-01T00:00:00Z", "100.00")));
            drafts.push(reading(&good(meter.id.as_str(), "2026-11-01T18:00:00Z", "123.45")));
        }
        drafts
    };
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("ab"));
    ledger.append(day()).await.unwrap();
    let clock = Hands::at("2026-11-02T00:00:05Z");
    let mut keeper = Keeper::new(Arc::clone(&ledger), fixed(), Arc::clone(&clock) as _);
    assert_eq!(all_due(&mut keeper, &many).await, ["2026-11-01"]);
    let whole = manifests(&*ledger);
    assert!(whole.len() > 3, "{}", whole.len());
    assert!(whole.iter().enumerate().all(|(n, part)| part["part"] == n + 1 && part["parts"] == whole.len()));
    let meters: Vec<&Value> = whole
        .iter()
        .flat_map(|part| part["meters"].as_array().unwrap())
        .map(|entry| &entry["meter"])
        .collect();
    assert_eq!(meters.len(), 1000);

    // The same, cut after two parts; the rest comes after the restart, and after other records.
    let cut: SharedLedger = Arc::new(MemoryLedger::new("ab"));
    cut.append(day()).await.unwrap();
    let parts = |range: &[Map<String, Value>]| -> Vec<Draft> {
        let stored = ["seq", "type", "recorded_at", "clock", "prev", "hash"];
        range
            .iter()
            .map(|part| Draft {
                kind: RecordType::Manifest,
                recorded_at: clock.wall(),
                clock: ClockState::Synced,
                fields: part
                    .clone()
                    .into_iter()
                    .filter(|(name, _)| !stored.contains(&name.as_str()))
                    .collect(),
                reading: None,
            })
            .collect()
    };
    cut.append(parts(&whole[..2])).await.unwrap();
    cut.append(vec![downtime("2026-11-02T00:00:00Z", "2026-11-02T01:00:00Z")]).await.unwrap();
    clock.set("2026-11-02T01:00:00Z");
    let mut keeper = Keeper::new(Arc::clone(&cut), fixed(), Arc::clone(&clock) as _);
    assert_eq!(all_due(&mut keeper, &many).await, ["2026-11-01"]);
    let resumed = manifests(&*cut);
    assert_eq!(resumed.len(), whole.len());
    for (a, b) in whole.iter().zip(&resumed) {
        assert_eq!((&a["signature"], &a["meters"]), (&b["signature"], &b["meters"]));
    }
    assert!(all_due(&mut keeper, &many).await.is_empty());

    // With another configuration the parts would not fit together: a new whole set says what it takes the place of.
    let fewer = settings(dir.path(), "UTC", 400);
    let cut: SharedLedger = Arc::new(MemoryLedger::new("ab"));
    cut.append(day()).await.unwrap();
    cut.append(parts(&whole[..2])).await.unwrap();
    let mut keeper = Keeper::new(Arc::clone(&cut), fixed(), clock);
    assert_eq!(all_due(&mut keeper, &fewer).await, ["2026-11-01"]);
    let all = manifests(&*cut);
    assert!(all[2..].iter().all(|part| part["supersedes"] == 2001 && part["parts"] == all.len() - 2));
    assert!(all_due(&mut keeper, &fewer).await.is_empty());
}

/// Three days, with a new key in the second.
struct Site {
    dir: TempDir,
    keys: [PathBuf; 2],
    export: PathBuf,
    rotation: usize,
}

async fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(dir.path(), "UTC", 2);
    let data = settings.gateway.data_dir.clone();
    let (files, _) = FileLedger::open(&data, Options::default()).unwrap();
    let ledger: SharedLedger = Arc::clone(&files) as _;
    let identity = Arc::new(Identity::load_from(&data, None).unwrap());
    let old = identity.signer().public_key();
    let clock = Hands::at("2026-11-01T00:00:00Z");
    let mut keeper = Keeper::new(Arc::clone(&ledger), Arc::clone(&identity), Arc::clone(&clock) as _);
    let mut rotation = 0;
    for day in 1..=3 {
        for hour in [0, 6, 12, 18] {
            let at = format!("2026-11-0{day}T{hour:02}:00:00Z");
            let value = format!("{}.{hour:02}", day * 100);
            for meter in ["E-0000", "E-0001"] {
                ledger.append(vec![reading(&good(meter, &at, &value))]).await.unwrap();
            }
            if (day, hour) == (2, 12) {
                rotate(&identity, &ledger, &data, &somebody(), (utc(&at), ClockState::Synced)).await.unwrap();
                rotation = usize::try_from(ledger.head().borrow().seq).unwrap();
            }
        }
        clock.set(&format!("2026-11-0{}T00:00:01Z", day + 1));
        assert_eq!(all_due(&mut keeper, &settings).await, [format!("2026-11-0{day}")]);
    }
    ledger.append(vec![reading(&good("E-0000", "2026-11-04T00:00:00Z", "400.00"))]).await.unwrap();
    assert_eq!(ledger.cursor(Cursor::Confirmed), 0);
    files.close();
    let keys = [dir.path().join("old.pem"), dir.path().join("new.pem")];
    fs::write(&keys[0], old.to_pem()).unwrap();
    fs::write(&keys[1], identity.public_key_pem()).unwrap();
    let path = dir.path().join("export.jsonl");
    export(&data, 1, None, &mut fs::File::create(&path).unwrap()).unwrap();
    Site { dir, keys, export: path, rotation }
}

fn ask_python(keys: &[&Path], export: &Path) -> Output {
    let mut command = Command::new(python::with("cryptography"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/verify.py"));
    for key in keys {
        command.arg("--public-key").arg(key);
    }
    let output = command.arg(export).output().expect("python3 is needed for this test");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("Traceback"), "{said}");
    output
}

fn ask_rust(site: &Site, keys: &[&Path], rest: &[&str]) -> Output {
    let mut command = Command::new(GATEWAY);
    command.arg("--config").arg(site.dir.path().join("gateway.toml")).args(["ledger", "verify"]);
    for key in keys {
        command.arg("--public-key").arg(key);
    }
    command.args(rest).output().unwrap()
}

/// `line N, seq S: kind`, or nothing when everything checks.
fn place(output: &Output, export: &Path) -> Option<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => None,
        Some(1) => {
            let begin = format!("{}: ", export.display());
            let line =
                said.lines().find_map(|line| line.split_once(&begin)).unwrap_or_else(|| panic!("{said}")).1;
            Some(line.splitn(3, ": ").take(2).collect::<Vec<_>>().join(": "))
        }
        code => panic!("exit {code:?}: {said}"),
    }
}

fn lines_of(path: &Path) -> Vec<Vec<u8>> {
    let text = fs::read(path).unwrap();
    text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

/// What both say of these lines.
fn both(site: &Site, keys: &[&Path], lines: &[Vec<u8>]) -> Option<String> {
    let path = site.dir.path().join("changed.jsonl");
    fs::write(&path, lines.iter().flat_map(|line| [&line[..], b"\n"].concat()).collect::<Vec<u8>>()).unwrap();
    let ours = place(&ask_rust(site, keys, &["--export", path.to_str().unwrap()]), &path);
    let theirs = place(&ask_python(keys, &path), &path);
    assert_eq!(ours, theirs, "Rust (left) and Python (right) must name the same first fault");
    ours
}

/// The record with `edit` done to it and a hash that is right again, as somebody without the key would do it.
fn reseal(line: &[u8], edit: impl FnOnce(&mut Map<String, Value>)) -> (Vec<u8>, String) {
    let mut record: Map<String, Value> = serde_json::from_slice(line).unwrap();
    edit(&mut record);
    let mut take = |name: &str| record.remove(name).unwrap();
    let (seq, prev) = (take("seq").as_u64().unwrap(), take("prev"));
    let kind = serde_json::from_value(take("type")).unwrap();
    let clock = serde_json::from_value(take("clock")).unwrap();
    let recorded_at = utc(take("recorded_at").as_str().unwrap());
    take("hash");
    let sealed =
        seal(&Draft { kind, recorded_at, clock, fields: record, reading: None }, seq, prev.as_str().unwrap())
            .unwrap();
    (sealed.bytes.to_vec(), sealed.hash)
}

/// Seals everything from `begin` on again, so that hashes and links are all right.
fn rechain(lines: &mut [Vec<u8>], begin: usize) {
    let mut prev: Option<String> = None;
    for line in &mut lines[begin..] {
        let (bytes, hash) = reseal(line, |record| {
            if let Some(prev) = &prev {
                record.insert("prev".into(), prev.clone().into());
            }
        });
        *line = bytes;
        prev = Some(hash);
    }
}

#[tokio::test]
async fn rust_and_python_name_the_same_first_fault() {
    let site = site().await;
    let old = site.keys[0].as_path();
    let lines = lines_of(&site.export);
    assert_eq!((lines.len(), site.rotation), (29, 16));
    assert_eq!(both(&site, &[old], &lines), None);
    let said = |expected: &str, keys: &[&Path], lines: &[Vec<u8>]| {
        assert_eq!(both(&site, keys, lines).as_deref(), Some(expected));
    };
    let changed = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut copy = lines.clone();
        change(&mut copy);
        copy
    };

    // Somebody who knows nothing of hashes.
    said(
        "line 5, seq 5: record",
        &[old],
        &changed(&|l| l[4] = String::from_utf8(l[4].clone()).unwrap().replace("100.12", "100.13").into()),
    );
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4].insert(1, b' ')));
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4].push(b'\r')));
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4] = vec![0xFF, 0xFE]));
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4] = b"{\"a\":-0}".to_vec()));
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4] = b"{\"a\":1.5}".to_vec()));
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4] = b"{\"a\":\"\\ud800\"}".to_vec()));
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4] = "[".repeat(60_000).into_bytes()));
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4] = vec![b'x'; 70_000]));
    said("line 5, seq 5: record", &[old], &changed(&|l| l[4].clear()));
    said("line 1, seq 0: record", &[old], &changed(&|l| l[0].truncate(40)));
    // Removed, reordered, swapped, repeated.
    said("line 5, seq 5: order", &[old], &changed(&|l| drop(l.remove(4))));
    said("line 5, seq 5: order", &[old], &changed(&|l| l.swap(4, 6)));
    said("line 6, seq 6: order", &[old], &changed(&|l| l.insert(5, l[4].clone())));
    // Somebody who makes the hash right again, and somebody who makes the whole chain right again.
    let forged = |l: &mut Vec<Vec<u8>>| {
        l[4] = reseal(&l[4], |r| r["values"]["energy_import_total"]["value"] = "1.00".into()).0;
    };
    said("line 6, seq 6: link", &[old], &changed(&|l| forged(l)));
    said(
        "line 9, seq 9: head",
        &[old],
        &changed(&|l| {
            forged(l);
            rechain(l, 4);
        }),
    );
    // A manifest that was made better, a signature that was taken from another, a head that was moved.
    said(
        "line 9, seq 9: signature",
        &[old],
        &changed(&|l| {
            l[8] = reseal(&l[8], |r| r["totals"]["slots"]["missing"] = 7.into()).0;
            rechain(l, 8);
        }),
    );
    said(
        "line 19, seq 19: signature",
        &[old],
        &changed(&|l| {
            let other: Map<String, Value> = serde_json::from_slice(&l[8]).unwrap();
            l[18] = reseal(&l[18], |r| r["signature"] = other["signature"].clone()).0;
            rechain(l, 18);
        }),
    );
    said(
        "line 9, seq 9: key",
        &[old],
        &changed(&|l| {
            l[8] = reseal(&l[8], |r| r["key_id"] = "0000000000000000".into()).0;
            rechain(l, 8);
        }),
    );
    // The rotation: another key in it, and no rotation at all.
    said(
        "line 16, seq 16: signature",
        &[old],
        &changed(&|l| {
            let mine = PublicKey::from_pem(&fixed().public_key_pem()).unwrap();
            l[15] = reseal(&l[15], |r| {
                r["new_public_key"] = mine.to_base64().into();
                r["new_key_id"] = mine.id().into();
            })
            .0;
            rechain(l, 15);
        }),
    );
}

#[tokio::test]
async fn keys_and_exports_from_the_middle_are_judged_alike() {
    let site = site().await;
    let (old, new) = (site.keys[0].as_path(), site.keys[1].as_path());
    let lines = lines_of(&site.export);
    let said = |expected: &str, keys: &[&Path], lines: &[Vec<u8>]| {
        assert_eq!(both(&site, keys, lines).as_deref(), Some(expected));
    };
    let changed = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut copy = lines.clone();
        change(&mut copy);
        copy
    };
    // The wrong key, and the new key where the old one signed.
    let wrong = site.dir.path().join("wrong.pem");
    fs::write(&wrong, fixed().public_key_pem()).unwrap();
    said("line 9, seq 9: key", &[&wrong], &lines);
    said("line 9, seq 9: key", &[new], &lines);

    // From the middle: before the rotation with the old key, behind it with the new one.
    assert_eq!(both(&site, &[old], &lines[4..]), None);
    assert_eq!(both(&site, &[new], &lines[16..]), None);
    said("line 3, seq 19: key", &[old], &lines[16..]);
    // It begins right behind what the manifest covers, or right at it.
    assert_eq!(both(&site, &[old], &lines[8..]), None);
    said(
        "line 2, seq 10: order",
        &[old],
        &changed(&|l| {
            l.drain(..8);
            l.remove(1);
        }),
    );
    let said = ask_python(&[new], &{
        let path = site.dir.path().join("middle.jsonl");
        fs::write(&path, lines[16..].join(&b'\n')).unwrap();
        path
    });
    assert!(
        String::from_utf8_lossy(&said.stdout)
            .contains("proved   seq 17 to 27, by the manifest of 2026-11-03 at seq 28")
    );
}

#[tokio::test]
async fn the_store_itself_is_proved_and_its_first_fault_named() {
    let site = site().await;
    let old = site.keys[0].as_path();
    let output = ask_rust(&site, &[old], &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.contains("proved   seq 1 to 27, by the manifest of 2026-11-03 at seq 28"), "{said}");
    assert_eq!(ask_rust(&site, &[], &[]).status.code(), Some(0));
    let output = ask_rust(&site, &[&site.keys[1]], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.lines().next().unwrap().contains("seq 9: key"), "{said}");
    // A chain that was made right again from the fifth record on: only the signature knows.
    let segment = site.dir.path().join("data/ledger").join(format!("{:020}.seg", 1));
    let mut lines = lines_of(&segment);
    lines[4] = reseal(&lines[4], |r| r["values"]["energy_import_total"]["value"] = "1.00".into()).0;
    rechain(&mut lines, 4);
    fs::write(&segment, lines.iter().flat_map(|line| [&line[..], b"\n"].concat()).collect::<Vec<u8>>())
        .unwrap();
    assert_eq!(ask_rust(&site, &[], &[]).status.code(), Some(0));
    let output = ask_rust(&site, &[old], &[]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.lines().next().unwrap().contains("seq 9: head"), "{said}");
}

#[tokio::test]
async fn a_rotation_cut_off_by_a_crash_follows_what_the_chain_says() {
    let dir = tempfile::tempdir().unwrap();
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("ab"));
    let load = || Identity::load_from(dir.path(), None).unwrap();
    let first = load();
    let old = first.key_id();
    // The key is made, the record is not stored.
    first.make_next(dir.path()).unwrap();
    let again = load();
    settle(&again, &ledger, dir.path()).unwrap();
    assert_eq!((again.key_id(), load().key_id()), (old.clone(), old.clone()));
    assert!(!dir.path().join("identity.key.next").exists());
    // Power failed while the key was being written.
    fs::write(dir.path().join("identity.key.next"), "-----BEGIN PRIV").unwrap();
    settle(&again, &ledger, dir.path()).unwrap();
    assert!(!dir.path().join("identity.key.next").exists());
    // The record is stored, the files are not exchanged.
    let next = first.make_next(dir.path()).unwrap().public_key().id();
    let fields = Map::from_iter([("new_key_id".into(), next.clone().into())]);
    ledger
        .append(vec![Draft::change("key_rotated", fields, Utc::default(), ClockState::Synced)])
        .await
        .unwrap();
    let again = load();
    assert_eq!(again.key_id(), old);
    settle(&again, &ledger, dir.path()).unwrap();
    assert_eq!((again.key_id(), load().key_id()), (next.clone(), next));
    assert!(dir.path().join(format!("identity.key.{old}")).exists());
}

#[tokio::test]
async fn the_command_line_shows_what_is_recorded_computes_the_rest_and_rotates() {
    let site = site().await;
    let run = |arguments: &[&str]| {
        let config = site.dir.path().join("gateway.toml");
        let output = vouched(site.dir.path()).arg("--config").arg(config).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let table = run(&["ledger", "manifest", "2026-11-02"]);
    assert!(table.contains("recorded and signed") && table.contains("0.18 kWh"), "{table}");
    let stored: Value = serde_json::from_str(&run(&["ledger", "manifest", "2026-11-02", "--json"])).unwrap();
    assert_eq!((&stored["recorded"], &stored["parts"][0]["date"]), (&json!(true), &json!("2026-11-02")));
    assert!(run(&["ledger", "manifest", "2026-10-30"]).contains("NOT RECORDED"));
    let computed: Value =
        serde_json::from_str(&run(&["ledger", "manifest", "2026-10-30", "--json"])).unwrap();
    assert_eq!(computed["recorded"], false);
    assert!(computed["parts"][0].get("signature").is_none());
    let before = run(&["identity", "--public-key"]);
    let said = run(&["identity", "rotate"]);
    let after = run(&["identity", "--public-key"]);
    assert!(before != after && said.contains(&after), "{said}");
    assert!(ask_rust(&site, &[&site.keys[0]], &[]).status.success());
}

#[test]
fn a_running_daemon_rotates_and_answers_on_its_socket_only() {
    let dir = tempfile::tempdir().unwrap();
    let _ = settings(dir.path(), "UTC", 1);
    let config = dir.path().join("gateway.toml");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n[console]\nlisten = \"127.0.0.1:{port}\"\n")).unwrap();
    let gateway = |arguments: &[&str]| {
        vouched(dir.path()).arg("--config").arg(&config).args(arguments).output().unwrap()
    };
    let log = fs::File::create(dir.path().join("log")).unwrap();
    let mut child = vouched(dir.path()).arg("--config").arg(&config).arg("run").stderr(log).spawn().unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let socket = dir.path().join("data/meter-gateway.sock");
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(std::time::Instant::now() < deadline, "the daemon does not come up");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before = gateway(&["identity", "--public-key"]).stdout;
    let rotated = gateway(&["identity", "rotate"]);
    let after = gateway(&["identity", "--public-key"]).stdout;
    let refused = {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let ask = "POST /api/v1/identity/rotate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        stream.write_all(ask.as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    };
    let shown = gateway(&["ledger", "manifest", "--json"]);
    fs::write(dir.path().join("old.pem"), &before).unwrap();
    let old = dir.path().join("old.pem");
    let verified = gateway(&["ledger", "verify", "--public-key", old.to_str().unwrap()]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(rotated.status.success(), "{rotated:?}");
    assert_ne!(before, after);
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
    assert!(shown.status.success(), "{shown:?}");
    assert!(String::from_utf8_lossy(&verified.stdout).contains("1 key rotation(s)"), "{verified:?}");
}
