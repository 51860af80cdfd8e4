//! What the person at the command line did, or where it was started, ends with 1, 2 or 78, and names the path: 70 is for
//! faults of the program.
#![allow(clippy::unwrap_used)] // a panic is a test's report

use std::{
    fs,
    process::{Command, Stdio},
};

use meter_gateway::{
    ledger::{FileLedger, Ledger, Options},
    model::{ClockState, Draft, Utc},
};
use serde_json::Map;
use tempfile::TempDir;

const SITE: &str = r#"
[site]
id = "riverside"
timezone = "Asia/Shanghai"
[gateway]
id = "gw-01"
data_dir = "DATA"
[mqtt]
url = "mqtt://127.0.0.1:1"
"#;

#[test]
fn what_a_person_did_is_no_fault_of_the_program() {
    let dir = TempDir::new().unwrap();
    for (file, data) in [("good.toml", "data"), ("in-file.toml", "good.toml"), ("in-proc.toml", "/proc/nope")]
    {
        fs::write(dir.path().join(file), SITE.replace("DATA", data)).unwrap();
    }
    fs::create_dir(dir.path().join("dir")).unwrap();
    let cases = [
        ("check -c nope.toml", 78, "nope.toml"),
        ("check -c dir", 78, "dir: "),
        ("run -c nope.toml", 78, "nope.toml"),
        ("run -c in-file.toml", 1, "good.toml: the data directory"),
        ("run -c in-proc.toml", 1, "/proc/nope"),
        ("simulate -c nope.toml", 78, "nope.toml"),
        ("read", 2, "METER"),
        ("read a/b -c good.toml", 2, "a/b"),
        ("read X -c in-file.toml", 1, "good.toml/"),
        ("readings -c good.toml", 1, "data: nothing has been recorded"),
        ("readings -c good.toml --from yesterday", 2, "yesterday"),
        ("readings -c in-file.toml", 1, "good.toml/"),
        ("status -c good.toml", 1, "data"),
        ("status -c in-file.toml", 1, "good.toml/"),
        ("identity -c in-file.toml", 1, "good.toml/"),
        ("ledger verify -c good.toml", 1, "data: nothing has been recorded"),
        ("ledger verify -c in-file.toml", 1, "good.toml/"),
        ("ledger export -c good.toml", 1, "data: nothing has been recorded"),
        ("ledger export --from 9 --to 3 -c good.toml", 2, "9 to 3"),
        ("ledger backup out -c good.toml", 1, "data: nothing has been recorded"),
        ("ledger backup /proc/x -c in-file.toml", 1, "good.toml/"),
        ("ledger restore nope -c good.toml", 1, "nope"),
        ("ledger restore good.toml -c good.toml", 1, "good.toml"),
        ("ledger manifest 2026-99-99 -c good.toml", 2, "2026-99-99"),
        ("profile show nope", 1, "nope"),
        ("profile check nope", 1, "nope"),
        ("profile check dir", 1, "dir: it is a directory"),
        ("profile check /dev/zero", 1, "/dev/zero: it is a device"),
        ("completions tcsh", 2, "tcsh"),
        ("nosuch", 2, "nosuch"),
    ];
    for (arguments, code, says) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_meter-gateway"))
            .args(arguments.split(' '))
            .current_dir(dir.path())
            .env_remove("METER_GATEWAY_CONFIG")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {said}");
        assert!(said.contains(says), "{arguments}: {said}");
    }
}

/// `| head -1`: whoever reads has seen enough.
#[test]
fn a_reader_that_has_gone_ends_a_command_without_a_word() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("gateway.toml"), SITE.replace("DATA", "data")).unwrap();
    let (ledger, _) = FileLedger::open(&dir.path().join("data"), Options::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let draft = Draft::change("test", Map::new(), Utc::UNIX_EPOCH, ClockState::Synced);
    runtime.block_on(ledger.append(vec![draft; 1000])).unwrap();
    ledger.close();
    drop(ledger);
    for arguments in ["ledger export", "ledger verify", "readings", "readings --format csv", "profile list"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_meter-gateway"))
            .args(arguments.split(' '))
            .args(["-c", "gateway.toml"])
            .current_dir(dir.path())
            .env_remove("METER_GATEWAY_CONFIG")
            .stdout(writer)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.contains("error")), (Some(0), false), "{arguments}: {said}");
    }
}
