//! What is shown to people: text from files, records and the broker does not command their terminal, does not turn what
//! stands beside it, and begins no line of its own. Programs get the same values as ever.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/rust_text.rs"]
mod rust_text;

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    thread,
};

use gateway::Gateway;
use meter_gateway::{
    ledger::{FileLedger, Ledger, Options},
    model::{ClockState, Draft, Reading},
};
use rust_text::{line_of, places, without_comments_and_literals};
use serde_json::{Value, json};

const HOSTILE: &str = "x\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}y\nforged: all is well";
/// The same in a TOML text.
const IN_TOML: &str = "x\\u001b]0;owned\\u0007\\u009b2J\\u202ey\\nforged: all is well";
/// The same where people see it.
const SHOWN: &str = "x\\u{1b}]0;owned\\u{7}\\u{9b}2J\\u{202e}y\\u{a}forged: all is well";
/// The same as JSON for people.
const IN_JSON: &str = "x\\u001b]0;owned\\u0007\\u009b2J\\u202ey\\nforged: all is well";

/// Both outputs, after a look that nothing in them is more than text.
fn harmless(output: &Output) -> String {
    let text =
        String::from_utf8(output.stdout.clone()).unwrap() + std::str::from_utf8(&output.stderr).unwrap();
    let bad = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}');
    assert!(!text.contains(bad), "{text:?}");
    assert!(!text.lines().any(|line| line.starts_with("forged")), "{text}");
    text
}

/// Refuses each client for a reason of its own.
fn rude_broker() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]); // its CONNECT
            let length = u8::try_from(HOSTILE.len()).unwrap();
            let mut packet = vec![0x20, length + 6, 0, 0x87, length + 3, 0x1f, 0, length];
            packet.extend_from_slice(HOSTILE.as_bytes());
            let _ = stream.write_all(&packet); // CONNACK, not authorised, reason string
        }
    });
    port
}

#[test]
fn a_file_and_a_broker_command_no_terminal() {
    let mut gateway = Gateway::configured(rude_broker(), 60, "");
    gateway.start();
    let status = gateway
        .until("the broker has answered", |status| status["publisher"]["last_error"].as_str().is_some());
    let error = status["publisher"]["last_error"].as_str().unwrap().to_owned();
    assert!(error.contains('y') && error.contains('\u{202e}') && error.contains("forged"), "{error:?}");
    let shown = harmless(&gateway.cli(&["status"]));
    assert!(shown.contains("2J\\u{202e}y"), "{shown}");
    let output = gateway.cli(&["status", "--json"]);
    assert!(harmless(&output).contains("2J\\u202ey"));
    let same: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(same["publisher"]["last_error"], error.as_str());
    let log = gateway.log();
    assert!(log.contains("2J\\u{202e}y") && !log.contains("\nforged") && !log.contains('\u{9b}'), "{log:?}");

    gateway.configure(1, 60, &format!("\"{IN_TOML}\" = 1\n"));
    for command in [&["check"][..], &["check", "--json"], &["status"], &["readings"]] {
        let shown = harmless(&gateway.cli(command));
        assert!(shown.contains("forged"), "{command:?}: {shown}");
    }
    assert!(gateway.terminate().0.success());
}

#[test]
fn a_profile_commands_no_terminal() {
    let gateway = Gateway::configured(1, 60, "");
    let profile = include_str!("../configs/profiles/eastron-sdm120.toml");
    let line = profile.lines().find(|line| line.starts_with("manufacturer")).unwrap().to_owned();
    let own = profile
        .replace(&line, &format!("manufacturer = \"{IN_TOML}\""))
        .replace("id = \"eastron-sdm120\"", "id = \"own\"");
    fs::create_dir(gateway.path("profiles")).unwrap();
    fs::write(gateway.path("profiles/own.toml"), &own).unwrap();
    let text = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), format!("profiles_dir = \"profiles\"\n{text}")).unwrap();
    for command in [&["profile", "list"][..], &["profile", "show", "own"]] {
        let shown = harmless(&gateway.cli(command));
        assert!(shown.contains(SHOWN), "{command:?}: {shown}");
    }
    let file = gateway.path("other.toml");
    for broken in [
        own.replace("unit = \"kWh\"", &format!("unit = \"{IN_TOML}\"")),
        own.replace("[[point]]", &format!("[[point]]\n\"{IN_TOML}\" = 1")),
    ] {
        fs::write(&file, broken).unwrap();
        let shown = harmless(&gateway.cli(&["profile", "check", file.to_str().unwrap()]));
        assert!(shown.contains("forged"), "{shown}");
    }
    let missing = gateway.path(HOSTILE);
    let shown = harmless(&gateway.cli(&["profile", "check", missing.to_str().unwrap()]));
    assert!(shown.contains(SHOWN), "{shown}");
}

/// Of another origin than this gateway's: each record is what its hash says, and says what it likes.
#[tokio::test(flavor = "multi_thread")]
async fn records_command_no_terminal_and_keep_their_bytes() {
    let gateway = Gateway::configured(1, 60, "");
    let now = "2026-11-28T08:00:00Z".parse().unwrap();
    let reading: Reading = serde_json::from_value(json!({
        "meter": "E-1", "medium": "electricity", "scheduled_at": "2026-11-28T08:00:00.000Z",
        "taken_at": null, "origin": "missing", "verdict": "bad", "flags": [HOSTILE], "values": {},
        "evidence": {"detail": HOSTILE},
    }))
    .unwrap();
    fs::create_dir(gateway.path("data")).unwrap();
    let (ledger, _) = FileLedger::open(&gateway.path("data"), Options::default()).unwrap();
    ledger.append(vec![Draft::reading(reading, now, ClockState::Synced)]).await.unwrap();
    ledger.close();
    drop(ledger);

    let shown = harmless(&gateway.cli(&["readings"]));
    assert!(shown.contains("x\\u{1b}]0;owned"), "{shown}");
    // To a pipe or a file: the bytes that were hashed.
    let exported = gateway.cli(&["ledger", "export"]).stdout;
    let raw = String::from_utf8(exported.clone()).unwrap();
    assert!(raw.contains('\u{202e}') && raw.contains('\u{9b}'), "{raw:?}");
    assert_eq!(gateway.cli(&["readings", "--format", "jsonl"]).stdout, exported);
    // To a terminal: the same values.
    for command in ["ledger export", "readings --format jsonl"] {
        let program = format!(
            "{} --config {} {command}",
            env!("CARGO_BIN_EXE_meter-gateway"),
            gateway.config().display()
        );
        let output = Command::new("script").args(["-qec", &program, "/dev/null"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap().replace('\r', "");
        let line = text.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{text}"));
        assert!(
            line.contains(IN_JSON) && !line.contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{line:?}"
        );
        let same = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(same(line), same(raw.trim_end()));
    }
}

#[test]
fn everything_is_printed_by_one_file() {
    fn look(folder: &Path, faults: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, faults);
                continue;
            }
            if path.ends_with("output.rs") {
                continue;
            }
            let text = without_comments_and_literals(&fs::read_to_string(&path).unwrap());
            for name in ["print!", "println!", "eprint!", "eprintln!"] {
                let found = places(&text, name);
                faults.extend(
                    found.iter().map(|at| format!("{}:{}: {name}", path.display(), line_of(&text, *at))),
                );
            }
        }
    }
    let mut faults = Vec::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli"), &mut faults);
    assert!(faults.is_empty(), "`say!` and `note!` are for that: {faults:#?}");
}
