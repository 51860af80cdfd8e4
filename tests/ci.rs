//! `.ci/run` says what was checked and what was not, and is never green after a step that failed.
//!
//! Its commands are stand-ins here: what matters is what the script makes of how they end.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

fn run_with(stand_in: &str) -> Output {
    run(stand_in, |script| script)
}

/// Runs a changed copy of the script where every command it could call is the same shell script.
fn run(stand_in: &str, change: impl FnOnce(String) -> String) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let (ci, bin) = (dir.path().join(".ci"), dir.path().join("bin"));
    for path in [&ci, &bin] {
        fs::create_dir(path).unwrap();
    }
    let script = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/run")).unwrap();
    let names =
        ["cargo", "cargo-deny", "apt-get", "sudo", "python3", "mosquitto", "systemd-analyze", "mkfs.ext4"];
    let stand_ins = names.map(|name| (bin.join(name), format!("#!/bin/sh\n{stand_in}\n")));
    for (file, text) in stand_ins.into_iter().chain([(ci.join("run"), change(script))]) {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    Command::new(ci.join("run")).env("PATH", path).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The part of the summary below this heading.
fn listed(output: &Output, heading: &str) -> Vec<String> {
    let text = text(output);
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    lines.take_while(|line| line.starts_with("  ")).map(|line| line.trim().to_owned()).collect()
}

#[test]
fn what_was_checked_and_what_was_not_is_listed() {
    let output = run_with("exit 0");
    assert!(output.status.success(), "{}", text(&output));
    let checked = listed(&output, "Checked");
    for step in ["tests", "lints", "formatting", "documentation", "known vulnerabilities of the crates"] {
        assert!(checked.iter().any(|line| line.ends_with(&format!(" s  {step}"))), "{step}: {checked:?}");
    }
    let not = listed(&output, "Not checked");
    assert!(not.iter().any(|line| line.starts_with("fuzzing")), "{not:?}");
    assert!(!text(&output).contains('\u{1b}'), "no colours into a pipe");
}

#[test]
fn a_step_that_fails_is_named_and_what_follows_is_not_reached() {
    let output = run_with("[ \"$1\" != doc ]");
    assert_eq!(output.status.code(), Some(1));
    let failed = listed(&output, "FAILED");
    assert!(failed[0].ends_with("s  documentation (exit code 1)"), "{failed:?}");
    assert!(listed(&output, "Not checked").contains(&"tests: not reached".to_owned()));
    assert!(listed(&output, "Checked").iter().any(|line| line.ends_with("formatting")));
}

/// `set -e` means nothing within a condition: the first of two commands of a step must count as well.
#[test]
fn the_first_command_of_a_step_counts_as_much_as_its_last() {
    let step = "step \"tools\" tools\n";
    let output = run("exit 0", |script| {
        assert!(script.contains(step));
        script.replace(step, "both() { false; true; }\nstep \"both\" both\n")
    });
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(listed(&output, "FAILED")[0].ends_with("both (exit code 1)"));
}

#[test]
fn what_cannot_be_checked_here_is_said_and_fails_nothing() {
    let output = run_with("case \"$*\" in *fetch\\ db*) exit 1;; esac");
    assert!(output.status.success(), "{}", text(&output));
    let not = listed(&output, "Not checked");
    let expected = "known vulnerabilities of the crates: the RustSec database cannot be fetched";
    assert!(not.contains(&expected.to_owned()), "{not:?}");
}
