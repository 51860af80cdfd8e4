//! Log lines: each one is complete, stays on its line, and lets nothing from outside command a terminal.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/rust_text.rs"]
mod rust_text;

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use gateway::Gateway;
use rust_text::{line_of, places, without_comments_and_literals};
use rustix::process::Signal;

/// Each call of a log macro outside tests: its macro, its place, its text, and the words of its literals.
fn calls(folder: &Path, found: &mut Vec<(&'static str, String, String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            calls(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = without_comments_and_literals(text);
        for name in ["error!", "warn!", "info!", "debug!", "trace!"] {
            for at in places(&code, name) {
                let (mut depth, mut end) = (0, at);
                for (nth, byte) in code.bytes().enumerate().skip(at + name.len()) {
                    depth += match byte {
                        b'(' => 1,
                        b')' => -1,
                        _ => 0,
                    };
                    if depth == 0 {
                        end = nth;
                        break;
                    }
                }
                let literals: Vec<u8> = (at..end)
                    .map(|nth| if code.as_bytes()[nth] == b' ' { text.as_bytes()[nth] } else { b' ' })
                    .collect();
                let place = format!("{}:{}", path.display(), line_of(&code, at));
                let literals = String::from_utf8(literals).unwrap();
                found.push((name, place, text[at..end].to_owned(), literals));
            }
        }
    }
}

#[test]
fn a_message_is_one_line_and_says_something() {
    let mut found = Vec::new();
    calls(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 90, "the calls were not found: {}", found.len());
    let mut faults = Vec::new();
    for (name, place, call, literals) in &found {
        if call.contains("\\n") {
            faults.push(format!(
                "{place}: a message holds a line end: what can be done goes into `hint = ...`"
            ));
        }
        let words = literals.split_whitespace().count();
        if matches!(*name, "error!" | "warn!") && words < 3 && !literals.contains('{') {
            faults.push(format!("{place}: {literals:?} does not say what happened"));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The configuration's own warning says it; the publisher says no more than what changes.
#[test]
fn a_setting_that_proves_no_delivery_is_warned_about_once() {
    let mut gateway = Gateway::configured(1, 60, "version = \"3.1.1\"\nconfirm = \"broker\"\n");
    gateway.start();
    gateway.until("shown", |status| {
        status["warnings"].as_array().unwrap().iter().any(|w| w["code"] == "delivery_unproven")
    });
    let deadline = Instant::now() + Duration::from_secs(30);
    while !gateway.log().contains("no connection to the broker") {
        assert!(Instant::now() < deadline, "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = gateway.log();
    let said = log.lines().filter(|line| line.contains("3.1.1") && line.contains("acknowledge")).count();
    assert_eq!(said, 1, "{log}");
}

/// As under systemd: the level before each line, all that is to be said in it, and what a file holds does not begin
/// another line or command the terminal of who reads the journal.
#[test]
fn the_journal_gets_whole_lines() {
    let mut gateway = Gateway::configured(1, 60, "");
    let log = fs::File::create(gateway.path("log")).unwrap().metadata().unwrap();
    gateway.environment = vec![("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()).into())];
    gateway.start();
    gateway.configure(1, 60, "\"x\\u001b]0;owned\\u0007\\u202e\\n<0>forged: all is well\" = 1\n");
    gateway.signal(Signal::HUP);
    let deadline = Instant::now() + Duration::from_secs(30);
    let text = loop {
        let text = gateway.log();
        if text.ends_with('\n') && text.contains("is refused") && text.contains("no connection to the broker")
        {
            break text;
        }
        assert!(Instant::now() < deadline, "{text}");
        std::thread::sleep(Duration::from_millis(20));
    };
    let line = |part: &str| text.lines().find(|line| line.contains(part)).unwrap().to_owned();
    for line in text.lines() {
        assert!(["<3>", "<4>", "<6>"].iter().any(|level| line.starts_with(level)), "{line}");
        assert!(!line.contains(char::is_control) && !line.contains('\u{202e}'), "{line:?}");
    }
    let refused = line("is refused");
    assert!(refused.starts_with("<3>the new configuration is refused"), "{refused}");
    assert!(refused.contains("x\\u{1b}]0;owned\\u{7}\\u{202e}\\u{a}<0>forged"), "{refused}");
    let away = line("no connection to the broker");
    assert!(away.starts_with("<4>no connection to the broker; records are kept: error "), "{away}");
    let started = line("meters 0");
    assert!(
        started.starts_with("<6>") && started.contains("site riverside, gateway gw-01, ledger "),
        "{started}"
    );
    assert!(gateway.terminate().0.success());
}
