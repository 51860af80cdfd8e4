//! The demo as a newcomer starts it: a reading within ten seconds, a summary, exit 0; it goes on where it ended, its dead
//! and its noisy meter cost the others nothing, and whatever ends it leaves nothing behind.
#![cfg(feature = "demo")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use meter_gateway::model::{Reading, Utc, Verdict};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The promise of the issue that the demo came with.
const FIRST_READING: Duration = Duration::from_secs(10);
const BIN: &str = env!("CARGO_BIN_EXE_meter-gateway");

struct Run {
    lines: Vec<String>,
    first_reading: Duration,
}

/// A demo whose temporary directories are made in `tmp`.
fn start(tmp: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(BIN);
    command.arg("demo").args(arguments).env("TMPDIR", tmp).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn demo(dir: &Path, time: &str) -> Run {
    let begun = Instant::now();
    let mut child = start(dir, &["--for", time, "--data-dir", dir.to_str().unwrap()]);
    let mut first_reading = None;
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line.contains("✓ good") {
            first_reading.get_or_insert(begun.elapsed());
        }
        lines.push(line);
    }
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}\n{}", lines.join("\n"));
    Run { lines, first_reading: first_reading.expect("a good reading") }
}

fn said(run: &Run, words: &str) -> String {
    run.lines
        .iter()
        .find(|line| line.contains(words))
        .unwrap_or_else(|| panic!("{words}\n{}", run.lines.join("\n")))
        .clone()
}

/// The commands that it prints for a second terminal.
fn commands(lines: &[String]) -> Vec<String> {
    let from = lines.iter().skip_while(|line| !line.starts_with("From a second terminal")).skip(1);
    from.take_while(|line| line.starts_with("  ")).map(|line| line.trim().to_owned()).collect()
}

fn paste(commands: &[String]) -> Output {
    Command::new("sh")
        .arg("-ec")
        .arg(commands.join("\n"))
        .env_remove("METER_GATEWAY_CONFIG")
        .output()
        .unwrap()
}

#[test]
fn a_newcomer_sees_a_site_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = demo(dir.path(), "45s");
    assert!(run.first_reading < FIRST_READING, "{:?}", run.first_reading);
    said(&run, "nothing lost, nothing twice");
    assert!(said(&run, "24 meters, read every").contains("滨江花园"));
    assert!(said(&run, "E-0102").contains("is dead"));
    let dead =
        |line: &String| line.contains("E-0102") && line.contains("✗ missing") && line.contains("no_answer");
    assert!(run.lines.iter().any(dead), "{}", run.lines.join("\n"));
    for medium in ["电", "水", "热"] {
        assert!(run.lines.iter().any(|line| line.contains(medium) && line.contains("✓ good")), "{medium}");
    }
    let summary: Vec<&String> = run.lines.iter().skip_while(|line| !line.starts_with("Demo of")).collect();
    assert!(!summary.iter().any(|line| line.contains("clock_untrusted")), "{summary:?}");
    let wide = |line: &&String| console::measure_text_width(line) > 80 && !line.contains(BIN);
    assert_eq!(run.lines.iter().find(wide), None);

    the_others_lost_nothing(dir.path());
    said(&run, "other meters    22: all readings good");

    let records = |run: &Run| -> u64 {
        said(run, "every hash recomputed").split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = records(&run);
    let again = demo(dir.path(), "8s");
    said(&again, "nothing lost, nothing twice");
    assert!(records(&again) > before, "the ledger goes on");
}

/// What the ledger has: each healthy meter one good reading for each slot, whatever the dead and the noisy one did.
fn the_others_lost_nothing(dir: &Path) {
    let exported = Command::new(BIN).args(["ledger", "export", "--data-dir"]).arg(dir).output().unwrap();
    let mut slots: BTreeMap<Utc, Vec<Reading>> = BTreeMap::new();
    for line in String::from_utf8(exported.stdout).unwrap().lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        if record["type"] == "reading" {
            let reading: Reading = serde_json::from_value(record).unwrap();
            slots.entry(reading.scheduled_at).or_default().push(reading);
        }
    }
    // The last slot was under way when the demo ended.
    slots.pop_last();
    assert!(slots.len() >= 5, "{:?}", slots.keys());
    let moments: Vec<_> = slots.keys().copied().collect();
    assert!(moments.windows(2).all(|pair| pair[1] - pair[0] == TimeDelta::seconds(6)), "{moments:?}");
    let mut garbled = 0;
    for (at, readings) in &slots {
        let meters: BTreeSet<_> = readings.iter().map(|reading| reading.meter.as_str()).collect();
        assert_eq!((readings.len(), meters.len()), (24, 24), "{at}");
        for reading in readings {
            assert!(!reading.flags.contains("bus_overrun"), "{reading:?}");
            match reading.meter.as_str() {
                "E-0102" => assert_eq!(reading.verdict, Verdict::Bad, "{reading:?}"),
                "H-0202" => garbled += u32::from(reading.flags.contains("garbled")),
                _ => assert_eq!(reading.verdict, Verdict::Good, "{reading:?}"),
            }
        }
    }
    assert!(garbled > 0, "there is noise to be seen");
}

#[test]
fn what_it_prints_for_a_second_terminal_can_be_pasted() {
    let tmp = tempfile::tempdir().unwrap();
    let mut child = start(tmp.path(), &["--keep"]);
    let mut lines = Vec::new();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    while lines.last().is_none_or(|line: &String| !line.contains("✓ good")) {
        lines.push(out.next().unwrap());
    }
    let commands = commands(&lines);
    assert!(commands.len() >= 5 && commands.iter().all(|line| !line.contains('…')), "{commands:?}");
    // The noisy meter may be silent for this one read, and that is an answer.
    let pasted = paste(&commands.iter().filter(|line| !line.contains(" read ")).cloned().collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&pasted.stdout).into_owned();
    assert!(pasted.status.success() && pasted.stderr.is_empty(), "{pasted:?}");
    for words in ["gateway demo", "E-0101", "every hash and every link checks"] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    let read: Vec<String> = commands.iter().filter(|line| !line.contains(" ledger ")).cloned().collect();
    assert!(matches!(paste(&read).status.code(), Some(0 | 1)));

    let kept = fs::read_dir(tmp.path()).unwrap().next().unwrap().unwrap().path();
    let before = fs::read(kept.join("gateway.toml")).unwrap();
    let second = Command::new(BIN).args(["demo", "--data-dir"]).arg(&kept).output().unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    assert!(fs::read(kept.join("gateway.toml")).unwrap() == before, "the first one's configuration stays");

    // Ctrl-C: a summary, exit 0, and with --keep everything stays where it says.
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    lines.extend(out);
    assert!(child.wait().unwrap().success());
    let run = Run { lines, first_reading: Duration::ZERO };
    said(&run, "nothing lost, nothing twice");
    assert!(said(&run, kept.to_str().unwrap()).contains("meter-gateway-demo-"));
    assert_eq!(run.lines.last().unwrap().trim(), kept.to_str().unwrap());
    for name in ["gateway.log", "gateway.toml", "billing.jsonl", "ledger"] {
        assert!(kept.join(name).exists(), "{name}");
    }
    let without_status: Vec<String> = commands
        .iter()
        .filter(|line| !line.ends_with(" status") && !line.contains(" read "))
        .cloned()
        .collect();
    assert!(paste(&without_status).status.success(), "what is kept can be looked at");
}

/// Ends within seconds and in order; in the directory for temporary files nothing is left.
fn leaves_nothing_behind(mut child: Child, tmp: &Path, how: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("{how}: it goes on");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert_eq!(status.code(), Some(0), "{how}");
    let left: Vec<_> = fs::read_dir(tmp).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{how}: {left:?}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it() {
    for lines in [0, 5, 20] {
        let tmp = tempfile::tempdir().unwrap();
        let mut child = start(tmp.path(), &[]);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        for _ in 0..lines {
            out.read_line(&mut String::new()).unwrap();
        }
        drop(out);
        leaves_nothing_behind(child, tmp.path(), &format!("after {lines} lines"));
    }
}

#[test]
fn a_signal_ends_it_in_order_from_its_first_moment_on() {
    for (signal, lines) in
        [(Signal::INT, 1), (Signal::TERM, 1), (Signal::HUP, 1), (Signal::INT, 20), (Signal::HUP, 20)]
    {
        let tmp = tempfile::tempdir().unwrap();
        let mut child = start(tmp.path(), &[]);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        for _ in 0..lines {
            out.read_line(&mut String::new()).unwrap();
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("Demo of"), "{signal:?}: {rest}");
        leaves_nothing_behind(child, tmp.path(), &format!("{signal:?} after {lines} lines"));
    }
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("gateway.toml"), "[site]\n").unwrap();
    let own = dir.path().to_str().unwrap();
    for (arguments, words) in [
        (["--meters", "3"], "6..=741"),
        (["--for", "soon"], "e.g. 60s"),
        (["--data-dir", own], "not made by a demo"),
    ] {
        let ended = Command::new(BIN).arg("demo").args(arguments).output().unwrap();
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(fs::read_to_string(dir.path().join("gateway.toml")).unwrap(), "[site]\n");
}
