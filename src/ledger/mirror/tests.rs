//! The second copy against a device that goes away, fills up, hangs, lies and is somebody else's.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::TimeDelta;
use serde_json::Map;

use super::Options as MirrorOptions;
use crate::{
    ledger::{
        Cursor, FileLedger, Ledger, MirrorState, Options,
        audit::{audit, audit_with},
        backup::{backup, restore},
        disk::{
            Disk, RealDisk,
            sim::{Fault, SimDisk},
        },
        segments::segment_path,
    },
    model::{ClockState, Draft, Seq, Utc},
};

fn at(slot: i64) -> Utc {
    Utc::from_timestamp_millis(1_790_000_000_000 + slot * 900_000).unwrap()
}

fn mirror(dir: &Path, disk: Arc<dyn Disk>) -> MirrorOptions {
    let (round, pauses) = (Duration::from_millis(5), (Duration::from_millis(5), Duration::from_millis(20)));
    MirrorOptions { dir: dir.to_owned(), disk, round, pauses, stall: Duration::from_millis(50) }
}

/// A ledger of small segments with a copy in `dir`.
fn open_on(data: &Path, dir: &Path, disk: Arc<dyn Disk>) -> Arc<FileLedger> {
    let mirror = Some(mirror(dir, disk));
    let options = Options { segment_bytes: 2000, mirror, ..Options::default() };
    FileLedger::open(data, options).unwrap().0
}

fn open(data: &Path, dir: &Path) -> Arc<FileLedger> {
    open_on(data, dir, Arc::new(RealDisk))
}

fn fill(ledger: &dyn Ledger, count: i64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for slot in 0..count {
        let draft = Draft::change("configuration", Map::new(), at(slot), ClockState::Synced);
        runtime.block_on(ledger.append(vec![draft])).unwrap();
    }
}

fn state(ledger: &FileLedger) -> MirrorState {
    ledger.condition().mirror.unwrap()
}

/// Polls until the copy is as wanted.
fn until(ledger: &FileLedger, what: &str, wanted: impl Fn(&MirrorState) -> bool) -> MirrorState {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let state = state(ledger);
        if wanted(&state) {
            return state;
        }
        assert!(Instant::now() < deadline, "not {what}: {state:?}");
        std::thread::yield_now();
    }
}

fn up_to_date(ledger: &FileLedger) -> MirrorState {
    until(ledger, "up to date", |state| state.fault.is_none() && state.lag == 0)
}

/// Opens the ledger, adds so many records, waits until the copy has everything, and closes it.
fn grow(place: &Place, records: i64) {
    let ledger = open(&place.data, &place.copy);
    fill(&*ledger, records);
    up_to_date(&ledger);
    ledger.close();
}

fn away(ledger: &FileLedger, said: &str) {
    until(ledger, said, |state| state.fault.as_ref().is_some_and(|fault| fault.reason.contains(said)));
}

/// Names and contents of the files that a restore needs, the cursors aside: they say when they were written.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = fs::read_dir(dir.join("ledger"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, bytes)| name != "cursors.json" && !bytes.is_empty())
        .collect();
    found.sort();
    found
}

fn segment(dir: &Path, number: usize) -> PathBuf {
    let segments: Vec<String> = files(dir)
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.strip_suffix(".seg").is_some())
        .collect();
    dir.join("ledger").join(&segments[number])
}

struct Place {
    _temp: tempfile::TempDir,
    data: PathBuf,
    copy: PathBuf,
}

fn place() -> Place {
    let temp = tempfile::tempdir().unwrap();
    let (data, copy) = (temp.path().join("data"), temp.path().join("copy"));
    fs::create_dir(&copy).unwrap();
    fs::create_dir(&data).unwrap();
    Place { _temp: temp, data, copy }
}

#[test]
fn the_copy_has_the_bytes_of_a_backup_and_keeps_them_across_a_restart() {
    let place = place();
    for round in 1..=2 {
        let ledger = open(&place.data, &place.copy);
        fill(&*ledger, 40);
        ledger.advance(Cursor::Acknowledged, round * 20);
        let state = up_to_date(&ledger);
        assert_eq!((state.stored, state.dir), (Some(round * 40), place.copy.clone()));
        ledger.close();
        let backed_up = place.data.join(format!("backup-{round}"));
        backup(&place.data, &backed_up, None, &mut |_, _| ()).unwrap();
        assert_eq!(files(&place.copy), files(&backed_up));
        assert!(files(&place.copy).len() > 5, "several segments");
    }
}

#[test]
fn a_directory_that_is_not_there_is_away_and_never_made() {
    let place = place();
    let dir = place.copy.join("card");
    let ledger = open(&place.data, &dir);
    fill(&*ledger, 30);
    away(&ledger, "is it mounted");
    assert!(!dir.exists());
    assert_eq!(state(&ledger).lag, 30);
    fs::create_dir(&dir).unwrap();
    up_to_date(&ledger);
    // Away in the middle, and back.
    let elsewhere = place.copy.join("elsewhere");
    fs::rename(&dir, &elsewhere).unwrap();
    fill(&*ledger, 30);
    away(&ledger, "is it mounted");
    // The directory below the mount point: there, and empty.
    fs::create_dir(&dir).unwrap();
    away(&ledger, "it held the copy");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "not filled in");
    fs::remove_dir(&dir).unwrap();
    fs::rename(&elsewhere, &dir).unwrap();
    assert_eq!(up_to_date(&ledger).stored, Some(60));
    assert_eq!(audit(&dir, 1, None, &mut |_, _| ()).unwrap().faults, [""; 0]);
}

#[test]
fn faults_of_the_device_cost_nothing_but_time() {
    for (fault, said) in [
        (Fault::NoSpace, "space"),
        (Fault::Write, "error"),
        (Fault::Sync, "error"),
        (Fault::Read, "error"),
        (Fault::ReadOnly, "ead-only"),
    ] {
        let place = place();
        let sim = SimDisk::new(7);
        let disk = sim.mount();
        disk.create_dirs(&place.copy).unwrap();
        let ledger = open_on(&place.data, &place.copy, disk.clone());
        fill(&*ledger, 25);
        up_to_date(&ledger);
        sim.inject(fault, u32::MAX);
        fill(&*ledger, 25);
        away(&ledger, said);
        assert_eq!(ledger.head().borrow().seq, 50, "the ledger went on");
        sim.heal();
        up_to_date(&ledger);
        ledger.close();
        // What a failed sync left in the cache only would be gone now.
        sim.crash(3);
        let disk = sim.mount();
        let report = audit_with(&*disk, &place.copy, 1, None, &mut |_, _| (), &mut |_, _| Ok(None)).unwrap();
        assert_eq!((report.records, report.faults), (50, vec![]), "{fault:?}");
    }
}

#[test]
fn a_full_device_has_room_again_once_retention_has_pruned() {
    let place = place();
    let sim = SimDisk::new(7);
    let disk = sim.mount();
    disk.create_dirs(&place.copy).unwrap();
    let ledger = open_on(&place.data, &place.copy, disk.clone());
    fill(&*ledger, 40);
    up_to_date(&ledger);
    sim.limit(sim.used());
    fill(&*ledger, 20);
    away(&ledger, "space");
    ledger.advance(Cursor::Confirmed, 60);
    let pruned = ledger.prune(at(1000), TimeDelta::zero(), 30).unwrap();
    assert!(!pruned.is_empty());
    // Full to the last byte: the files go although not a line about it can be written. The simulated disk does not give
    // room back while the process lives, hence the new limit.
    let gone = segment_path(&place.copy.join("ledger"), 1);
    let deadline = Instant::now() + Duration::from_secs(20);
    while disk.open(&gone).is_ok() {
        assert!(Instant::now() < deadline, "not pruned");
        std::thread::yield_now();
    }
    sim.limit(sim.used() + 20_000);
    up_to_date(&ledger);
    ledger.close();
    let report = audit_with(&*disk, &place.copy, 1, None, &mut |_, _| (), &mut |_, _| Ok(None)).unwrap();
    assert_eq!((report.first, report.head.seq, report.faults), (pruned.last().unwrap().last + 1, 60, vec![]));
}

#[test]
fn power_that_goes_in_the_middle_of_a_copy_leaves_one_that_is_gone_on_with() {
    let place = place();
    let ledger = open(&place.data, &place.data.join("away"));
    fill(&*ledger, 60);
    ledger.close();
    drop(ledger);
    for changes in (1..80).step_by(3) {
        let sim = SimDisk::new(changes);
        let disk = sim.mount();
        disk.create_dirs(&place.copy).unwrap();
        sim.stop_after(changes);
        let ledger = open_on(&place.data, &place.copy, disk);
        until(&ledger, "stopped or done", |state| state.fault.is_some() || state.lag == 0);
        ledger.close();
        drop(ledger);
        sim.crash(changes);
        let disk = sim.mount();
        disk.create_dirs(&place.copy).unwrap();
        let ledger = open_on(&place.data, &place.copy, disk.clone());
        up_to_date(&ledger);
        ledger.close();
        let report = audit_with(&*disk, &place.copy, 1, None, &mut |_, _| (), &mut |_, _| Ok(None)).unwrap();
        assert_eq!((report.records, report.faults), (60, vec![]), "after {changes} changes");
    }
}

#[test]
fn a_copy_that_rots_is_found_at_the_next_start_and_mended() {
    let place = place();
    grow(&place, 40);
    let whole = files(&place.copy);
    let (rotten, torn) = (segment(&place.copy, 1), segment(&place.copy, 3));
    let mut bytes = fs::read(&rotten).unwrap();
    bytes[100] ^= 1;
    fs::write(&rotten, bytes).unwrap();
    let bytes = fs::read(&torn).unwrap();
    fs::write(&torn, &bytes[..bytes.len() / 2]).unwrap();
    fs::remove_file(segment(&place.copy, 2)).unwrap();
    fs::write(place.copy.join("ledger/00000000000000000001.part"), "half").unwrap();
    grow(&place, 0);
    assert_eq!(files(&place.copy), whole);
}

#[test]
fn what_is_damaged_in_the_ledger_alone_stays_whole_in_the_copy() {
    let place = place();
    grow(&place, 40);
    let whole = files(&place.copy);
    let rotten = segment(&place.data, 1);
    let mut bytes = fs::read(&rotten).unwrap();
    bytes[100] ^= 1;
    let end = bytes.len() - 20;
    bytes[end] ^= 1;
    fs::write(&rotten, bytes).unwrap();
    grow(&place, 0);
    assert_eq!(files(&place.copy), whole);
}

#[test]
fn the_copy_of_another_ledger_is_refused_and_not_touched() {
    let (place, other) = (place(), place());
    let ledger = open(&other.data, &place.copy);
    fill(&*ledger, 10);
    up_to_date(&ledger);
    let id = ledger.id().to_owned();
    ledger.close();
    let before = files(&place.copy);
    let ledger = open(&place.data, &place.copy);
    fill(&*ledger, 10);
    away(&ledger, &format!("holds a copy of ledger {id}; expected none, or one of {}", ledger.id()));
    ledger.close();
    assert_eq!(files(&place.copy), before);
}

#[test]
fn records_that_only_the_copy_has_are_not_touched() {
    let place = place();
    let ledger = open(&place.data, &place.data.join("away"));
    fill(&*ledger, 10);
    ledger.close();
    drop(ledger);
    let older = place.data.join("older");
    backup(&place.data, &older, None, &mut |_, _| ()).unwrap();
    grow(&place, 10);
    let before = files(&place.copy);
    let back = place.copy.join("back");
    restore(&older, &back, Some(10), (at(0), ClockState::Synced), &mut |_, _| ()).unwrap();
    let ledger = open(&back, &place.copy);
    fill(&*ledger, 3);
    away(&ledger, "holds other records than the ledger");
    ledger.close();
    assert_eq!(files(&place.copy), before);
}

#[test]
fn a_ledger_that_was_replaced_keeps_its_copy_and_the_new_one_gets_its_own() {
    let place = place();
    grow(&place, 20);
    let before = files(&place.copy);
    fs::remove_file(place.data.join("ledger/ledger.json")).unwrap();
    for records in [11, 21] {
        let ledger = open(&place.data, &place.copy);
        fill(&*ledger, 10);
        let state = up_to_date(&ledger);
        assert_eq!((state.dir, state.stored), (place.copy.join(ledger.id()), Some(records)));
        ledger.close();
        assert_eq!(files(&place.copy), before);
        assert_eq!(audit(&place.copy.join(ledger.id()), 1, None, &mut |_, _| ()).unwrap().faults, [""; 0]);
    }
}

#[test]
fn the_ledger_goes_on_from_the_copy_when_its_own_directory_is_lost() {
    let place = place();
    let ledger = open(&place.data, &place.copy);
    fill(&*ledger, 30);
    ledger.advance(Cursor::Acknowledged, 25);
    up_to_date(&ledger);
    let (id, head) = (ledger.id().to_owned(), ledger.head().borrow().clone());
    ledger.close();
    drop(ledger);
    fs::remove_dir_all(&place.data).unwrap();
    let restored =
        restore(&place.copy, &place.data, Some(30), (at(99), ClockState::Synced), &mut |_, _| ()).unwrap();
    assert_eq!((restored.ledger, restored.next, restored.copied.head), (id, 31, head));
    let ledger = open(&place.data, &place.copy);
    fill(&*ledger, 5);
    assert_eq!(up_to_date(&ledger).stored, Some(35));
    assert_eq!(ledger.cursor(Cursor::Acknowledged), 25, "the cursors came along as the ledger ended");
}

#[test]
fn retention_prunes_the_copy_after_the_ledger() {
    let place = place();
    let ledger = open(&place.data, &place.copy);
    fill(&*ledger, 40);
    up_to_date(&ledger);
    let pruned = ledger.prune(at(1000), TimeDelta::zero(), 20).unwrap();
    let (last, first) = (pruned.last().unwrap().first, pruned.last().unwrap().last + 1);
    let gone = segment_path(&place.copy.join("ledger"), last);
    let deadline = Instant::now() + Duration::from_secs(20);
    while gone.exists() {
        assert!(Instant::now() < deadline, "not pruned");
        std::thread::yield_now();
    }
    assert_eq!(files(&place.copy), files(&place.data));
    let report = audit(&place.copy, first, None, &mut |_, _| ()).unwrap();
    assert_eq!((report.first, report.faults), (first, vec![]));
}

/// A named pipe where a file should be: opening it waits for a writer that never comes.
#[test]
fn a_device_that_hangs_stops_neither_appends_nor_the_end() {
    let place = place();
    fs::create_dir(place.copy.join("ledger")).unwrap();
    let pipe = place.copy.join("ledger/ledger.json");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let ledger = open(&place.data, &place.copy);
    let began = Instant::now();
    fill(&*ledger, 200);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!((state(&ledger).lag, ledger.head().borrow().seq), (200, 200));
    away(&ledger, "does not answer");
    let began = Instant::now();
    ledger.close();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // Lets the thread go.
    drop(fs::File::options().read(true).write(true).open(&pipe).unwrap());
}

#[test]
fn the_data_directory_itself_is_no_place_for_the_copy() {
    let place = place();
    let link = place.copy.join("link");
    std::os::unix::fs::symlink(&place.data, &link).unwrap();
    let ledger = open(&place.data, &link);
    fill(&*ledger, 10);
    away(&ledger, "the data directory itself");
    ledger.close();
    let report = audit(&place.data, 1, None, &mut |_, _| ()).unwrap();
    let records: Seq = 10;
    assert_eq!((report.records, report.faults), (records, vec![]));
}
