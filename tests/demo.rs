//! The demo as a newcomer starts it: a reading within ten seconds, a summary, exit 0; and it goes on where it ended.
#![cfg(feature = "demo")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// The promise.
const FIRST_READING: Duration = Duration::from_secs(10);

struct Run {
    lines: Vec<String>,
    first_reading: Duration,
}

fn demo(dir: &Path) -> Run {
    let begun = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_meter-gateway"))
        .args(["demo", "--for", "12s", "--data-dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
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
    Run { first_reading: first_reading.expect("a good reading"), lines }
}

fn said(run: &Run, words: &str) -> String {
    run.lines
        .iter()
        .find(|line| line.contains(words))
        .unwrap_or_else(|| panic!("{}", run.lines.join("\n")))
        .clone()
}

#[test]
fn a_newcomer_sees_a_site_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = demo(dir.path());
    assert!(run.first_reading < FIRST_READING, "{:?}", run.first_reading);
    said(&run, "nothing lost, nothing twice");
    assert!(said(&run, "24 meters, read every").contains("滨江花园"));
    assert!(said(&run, "E-0102").contains("is dead"));
    assert!(
        run.lines
            .iter()
            .any(|line| line.contains("E-0102") && line.contains("✗ missing") && line.contains("no_answer"))
    );
    for medium in ["电", "水", "热"] {
        assert!(run.lines.iter().any(|line| line.contains(medium) && line.contains("✓ good")), "{medium}");
    }
    let records = |run: &Run| -> u64 {
        said(run, "every hash recomputed").split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = records(&run);

    let again = demo(dir.path());
    said(&again, "nothing lost, nothing twice");
    assert!(records(&again) > before, "the ledger goes on");
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    for (arguments, words) in [(["--meters", "3"], "6..=741"), (["--for", "soon"], "e.g. 60s")] {
        let ended =
            Command::new(env!("CARGO_BIN_EXE_meter-gateway")).arg("demo").args(arguments).output().unwrap();
        assert_eq!(ended.status.code(), Some(2));
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.contains(words), "{said}");
    }
}
