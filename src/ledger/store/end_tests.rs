//! A ledger whose end is not proved does not go on; a session number that is not proved is not used.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Map, Value, json};

use super::{
    super::{
        Ledger,
        disk::sim::{Fault, SimDisk},
    },
    FileLedger, Options,
};
use crate::model::{ClockState, Draft, Utc};

fn small(segment_bytes: u64) -> Options {
    Options { segment_bytes, ..Options::default() }
}

fn open(dir: &Path, segment_bytes: u64) -> (Arc<FileLedger>, Vec<String>) {
    FileLedger::open(dir, small(segment_bytes)).unwrap()
}

fn fill(ledger: &FileLedger, count: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..count {
        let draft = Draft::change("test", Map::new(), Utc::UNIX_EPOCH, ClockState::Synced);
        runtime.block_on(ledger.append(vec![draft])).unwrap();
    }
}

/// Without them nothing says how far it had come: its last records may be gone, and their numbers known elsewhere.
#[test]
fn a_ledger_without_its_cursors_does_not_go_on() {
    for (damage, empty) in [(Some(&b"{}"[..]), false), (None, false), (None, true)] {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = open(dir.path(), 1 << 20);
        fill(&ledger, if empty { 0 } else { 10 });
        let id = ledger.id().to_owned();
        ledger.close();
        let path = dir.path().join("ledger/cursors.json");
        match damage {
            Some(text) => fs::write(path, text).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let (ledger, reports) = open(dir.path(), 1 << 20);
        assert_eq!(ledger.id() == id, empty, "{reports:?}");
        if !empty {
            let first: Value = serde_json::from_slice(&ledger.read(1, 1, 1000).unwrap()[0].bytes).unwrap();
            assert_eq!((&first["change"], &first["old_ledger"]), (&json!("ledger_replaced"), &json!(id)));
            assert!(first["reason"].as_str().unwrap().contains("cursors.json"), "{first}");
        }
        let again = ledger.id().to_owned();
        ledger.close();
        assert_eq!(open(dir.path(), 1 << 20).0.id(), again, "that is proved again");
    }
}

/// Others have seen more: noted, and true after a crash.
#[test]
fn an_end_that_was_disproved_ends_the_ledger_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1);
    let options = || Options { disk: disk.mount(), ..small(1500) };
    let (ledger, _) = FileLedger::open(dir.path(), options()).unwrap();
    fill(&ledger, 10);
    let id = ledger.id().to_owned();
    ledger.disprove_end("billing has seq 200").unwrap();
    assert_eq!(ledger.condition().ended.as_deref(), Some("billing has seq 200"));
    fill(&ledger, 3); // what is read meanwhile is not let go
    disk.crash(1);
    drop(ledger);
    let (ledger, _) = FileLedger::open(dir.path(), options()).unwrap();
    let first: Value = serde_json::from_slice(&ledger.read(1, 1, 1000).unwrap()[0].bytes).unwrap();
    assert_eq!((&first["old_ledger"], &first["last_seq"]), (&json!(id), &json!(13)));
    assert_eq!((&first["reason"], ledger.id() == id), (&json!("billing has seq 200"), false));
    let again = ledger.id().to_owned();
    ledger.close();
    drop(ledger);
    assert_eq!(FileLedger::open(dir.path(), options()).unwrap().0.id(), again, "it is done once");
}

/// A number that is not on the disk would look like somebody else's after a restart.
#[test]
fn a_session_number_that_cannot_be_written_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let sim = SimDisk::new(1);
    let options = || Options { disk: sim.mount(), ..small(1500) };
    let (ledger, _) = FileLedger::open(dir.path(), options()).unwrap();
    assert_eq!((ledger.next_session(), ledger.session()), (1, 1));
    for fault in [Fault::NoSpace, Fault::Write, Fault::Sync, Fault::ReadOnly] {
        sim.inject(fault, 1);
        assert_eq!(ledger.next_session(), 1, "{fault:?}");
        sim.heal();
    }
    assert_eq!((ledger.next_session(), ledger.session()), (2, 2));
    sim.kill();
    drop(ledger);
    let (ledger, _) = FileLedger::open(dir.path(), options()).unwrap();
    assert_eq!((ledger.session(), ledger.next_session()), (2, 3));
}
