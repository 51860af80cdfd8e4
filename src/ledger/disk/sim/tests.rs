//! The ledger on a disk that loses power: what was acknowledged is there, whatever else is gone.

use std::{path::Path, sync::Arc, time::Duration};

use chrono::TimeDelta;
use fastrand::Rng;
use serde_json::{Map, json};

use super::*;
use crate::{
    ledger::{Cursor, FileLedger, Ledger, Line, Options, audit::audit_with},
    model::{ClockState, Draft, RecordType, Seq, Utc},
};

/// Ledgers, each from its own seed, and how often each loses its process or its power.
const SEEDS: u64 = 60;
const ROUNDS: usize = 6;

#[test]
fn what_is_synced_survives_and_what_is_not_may_be_lost_or_torn() {
    let (dir, path) = (Path::new("/d"), Path::new("/d/f"));
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..200 {
        let sim = SimDisk::new(seed);
        let disk = sim.mount();
        disk.create_dirs(dir).unwrap();
        let file = disk.create(path).unwrap();
        file.append(b"sure").unwrap();
        file.sync().unwrap();
        disk.sync_dir(dir).unwrap();
        file.append(b"ab").unwrap();
        file.append(b"cd").unwrap();
        disk.rename(path, Path::new("/d/g")).unwrap();
        sim.crash(seed);
        assert_eq!(file.append(b"x").unwrap_err().to_string(), "the disk is gone");
        let disk = sim.mount();
        let names = disk.list(dir).unwrap();
        assert_eq!(names.len(), 1, "a rename is the one or the other");
        let text = String::from_utf8(disk.read(&dir.join(&names[0].name)).unwrap()).unwrap();
        assert!(text.starts_with("sure"));
        seen.insert((names[0].name.clone(), text));
    }
    for text in ["sure", "surea", "sureab", "sureabc", "sureabcd", "surea\0", "sureab\0\0"] {
        for name in ["f", "g"] {
            assert!(seen.contains(&(name.to_owned(), text.to_owned())), "{name} {text:?}: {seen:?}");
        }
    }
    assert_eq!(seen.len(), 18, "nine contents under either name: {seen:?}");
}

#[test]
fn what_a_failed_sync_left_behind_is_not_made_good_by_the_next() {
    let sim = SimDisk::new(1);
    let disk = sim.mount();
    disk.create_dirs(Path::new("/d")).unwrap();
    let path = Path::new("/d/f");
    let file = disk.create(path).unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file.append(b"ab").unwrap();
    sim.inject(Fault::Sync, 1);
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    file.append(b"cd").unwrap();
    file.sync().unwrap();
    assert_eq!(disk.read(path).unwrap(), b"abcd", "until the page is read again");
    sim.crash(1);
    let disk = sim.mount();
    assert_eq!(disk.read(path).unwrap(), b"\0\0cd");
    assert!(sim.flip(path, 17) && !sim.flip(path, 32));
    assert_eq!(disk.read(path).unwrap(), b"\0\0ad");
    sim.limit(6);
    assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), 2);
    let file = disk.open_append(path).unwrap();
    assert_eq!(file.append(b"efg").unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.read(path).unwrap(), b"\0\0adef");
    sim.inject(Fault::ReadOnly, 1);
    assert_eq!(disk.remove(path).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    sim.inject(Fault::Read, 1);
    assert!(disk.read(path).is_err() && disk.read(path).is_ok());
}

fn at(slot: i64) -> Utc {
    Utc::from_timestamp_millis(1_790_000_000_000 + slot * 900_000).unwrap()
}

fn draft(rng: &mut Rng, slot: i64) -> Draft {
    let mut fields = Map::new();
    fields.insert("note".into(), json!("x".repeat(rng.usize(..120))));
    if rng.u8(..3) == 0 {
        return Draft::change("configuration", fields, at(slot), ClockState::Synced);
    }
    let meter = if rng.bool() { "A" } else { "B" };
    fields.insert("meter".into(), meter.into());
    fields.insert("scheduled_at".into(), crate::model::rfc3339(at(slot)).into());
    fields.insert("origin".into(), if rng.u8(..4) == 0 { "missing" } else { "measured" }.into());
    Draft {
        kind: RecordType::Reading,
        recorded_at: at(slot),
        clock: ClockState::Synced,
        fields,
        reading: None,
    }
}

/// What the world outside has been told, which no power cut may make untrue.
#[derive(Default)]
struct Told {
    id: Option<String>,
    /// Acknowledged, and those that were served by `read`.
    lines: Vec<Line>,
    /// The last acknowledged record, read or not.
    last: Seq,
    /// The furthest that `cursor` ever said.
    cursors: (Seq, Seq),
    session: u64,
}

struct Life {
    sim: SimDisk,
    rng: Rng,
    told: Told,
    slot: i64,
}

impl Life {
    fn options(disk: Arc<dyn Disk>, segment_bytes: u64) -> Options {
        Options {
            segment_bytes,
            // Only when asked for: the number of the change at which the power goes must not depend on the time.
            cursor_interval: Duration::from_secs(3600),
            disk,
            ..Options::default()
        }
    }

    /// Opens, checks, works, and loses its process or its power.
    fn live(&mut self, dir: &Path, segment_bytes: u64, runtime: &tokio::runtime::Runtime) {
        let disk = self.sim.mount();
        if self.rng.u8(..4) == 0 {
            self.sim.stop_after(self.rng.u64(..12)); // while it opens
        }
        match FileLedger::open(dir, Life::options(disk.clone(), segment_bytes)) {
            Ok((ledger, reports)) => {
                self.check(&ledger, &*disk, dir, &reports);
                if self.rng.bool() {
                    self.sim.stop_after(self.rng.u64(..60));
                }
                for _ in 0..self.rng.u8(1..25) {
                    self.work(&ledger, runtime);
                }
                self.end();
                ledger.close();
            }
            Err(error) => {
                assert!(error.to_string().contains("the disk is gone"), "{error}");
                self.end();
            }
        }
    }

    fn end(&mut self) {
        self.sim.heal();
        if self.rng.u8(..4) == 0 {
            self.sim.kill();
        } else {
            self.sim.crash(self.rng.u64(..));
        }
    }

    fn check(&mut self, ledger: &FileLedger, disk: &dyn Disk, dir: &Path, reports: &[String]) {
        let Told { id, lines, last, cursors, session } = &mut self.told;
        if self.sim.has_stopped() {
            return; // it has just gone
        }
        assert_eq!(id.get_or_insert_with(|| ledger.id().to_owned()), ledger.id());
        let head = ledger.head().borrow().seq;
        for line in lines.iter().filter(|line| line.seq >= ledger.first()) {
            let found = ledger.read(line.seq, 1, usize::MAX).unwrap();
            assert_eq!(found.as_slice(), std::slice::from_ref(line), "{reports:?}");
        }
        assert!(head >= *last, "{head} {last}: {reports:?}");
        let reached = (ledger.cursor(Cursor::Acknowledged), ledger.cursor(Cursor::Confirmed));
        assert!(reached.0 <= head && reached.1 <= head, "{reached:?} {head}");
        assert!(reached.0 <= cursors.0 && reached.1 <= cursors.1, "nobody has said so");
        // The index is on a real disk, and in this process: sled may still hold its lock. That costs it nothing but time.
        let mut of_ledger = reports.iter().filter(|report| !report.starts_with("index:"));
        assert!(
            !of_ledger.any(|report| report.contains("lost") || report.contains("damaged")),
            "{reports:?}"
        );
        let report = audit_with(disk, dir, 1, None, &mut |_, _| (), &mut |_, _| Ok(None)).unwrap();
        assert_eq!(report.faults, Vec::<String>::new());
        assert!(report.records == 0 || report.head.seq == head, "{} {head}", report.head.seq);
        // What was not acknowledged and is there all the same counts from now on: it is served.
        let next = lines.last().map_or(1, |line| line.seq + 1);
        let more = ledger.read(next, 10_000, usize::MAX).unwrap();
        lines.extend(more);
        assert_eq!(lines.last().map_or(0, |line| line.seq), head);
        let again = ledger.next_session();
        if !self.sim.has_stopped() {
            assert!(again > *session, "session {again} was used before");
            *session = again;
        }
    }

    fn work(&mut self, ledger: &FileLedger, runtime: &tokio::runtime::Runtime) {
        match self.rng.u8(..20) {
            0 => self.sim.inject(
                *self.rng.choice(&[Fault::Write, Fault::Sync, Fault::NoSpace, Fault::ReadOnly]).unwrap(),
                self.rng.u32(1..4),
            ),
            1 => {
                let free = ledger.cursor(Cursor::Acknowledged).min(ledger.cursor(Cursor::Confirmed));
                let before = at(self.slot - self.rng.i64(0..20));
                let _ = ledger.prune(before, TimeDelta::zero(), free); // a fault may hit it
            }
            2 | 3 => {
                let head = ledger.head().borrow().seq;
                ledger.advance(Cursor::Acknowledged, self.rng.u64(..=head));
                ledger.advance(Cursor::Confirmed, self.rng.u64(..=head));
                let told = &mut self.told.cursors; // the furthest: after a crash it may begin earlier
                told.0 = told.0.max(ledger.cursor(Cursor::Acknowledged));
                told.1 = told.1.max(ledger.cursor(Cursor::Confirmed));
                let before = ledger.incidents().len();
                let session = ledger.next_session();
                if ledger.incidents().len() == before {
                    self.told.session = session;
                }
            }
            _ => {
                let drafts: Vec<Draft> = (0..self.rng.u8(1..5))
                    .map(|_| {
                        self.slot += 1;
                        draft(&mut self.rng, self.slot)
                    })
                    .collect();
                let count = drafts.len();
                if let Ok(range) = runtime.block_on(ledger.append(drafts)) {
                    assert_eq!(range.end - range.start, count as u64);
                    self.told.last = range.end - 1;
                    // The power may be gone before it can be read; then its bytes are seen at the next start.
                    if let Ok(lines) = ledger.read(range.start, count, usize::MAX) {
                        assert_eq!(lines.len(), count);
                        self.told.lines.extend(lines);
                    }
                }
            }
        }
    }
}

#[test]
fn what_a_dead_process_left_unsynced_is_made_durable_before_it_is_served() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for seed in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let (sim, mut rng) = (SimDisk::new(seed), Rng::with_seed(seed));
        let (ledger, _) = FileLedger::open(dir.path(), Life::options(sim.mount(), 1 << 20)).unwrap();
        runtime.block_on(ledger.append(vec![draft(&mut rng, 1)])).unwrap();
        sim.stop_after(1); // written, not synced
        assert!(runtime.block_on(ledger.append(vec![draft(&mut rng, 2)])).is_err());
        sim.kill();
        ledger.close();
        let (ledger, _) = FileLedger::open(dir.path(), Life::options(sim.mount(), 1 << 20)).unwrap();
        let served = ledger.read(1, 9, usize::MAX).unwrap();
        assert_eq!(served.len(), 2);
        sim.crash(seed);
        ledger.close();
        let (ledger, _) = FileLedger::open(dir.path(), Life::options(sim.mount(), 1 << 20)).unwrap();
        assert_eq!(ledger.read(1, 9, usize::MAX).unwrap(), served);
    }
}

#[test]
fn what_was_acknowledged_survives_whatever_happens_to_process_and_power() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut kept = 0;
    for seed in 0..SEEDS {
        let dir = tempfile::tempdir().unwrap();
        let (sim, rng) = (SimDisk::new(seed), Rng::with_seed(seed));
        let mut life = Life { sim, rng, told: Told::default(), slot: 0 };
        let segment_bytes = *life.rng.choice(&[700, 2500, 1 << 20]).unwrap();
        for round in 0..ROUNDS {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                life.live(dir.path(), segment_bytes, &runtime);
            }));
            assert!(outcome.is_ok(), "seed {seed}, round {round}");
        }
        kept += life.told.lines.len();
    }
    assert!(kept > 3000, "{kept}");
}
