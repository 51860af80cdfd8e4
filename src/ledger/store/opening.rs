//! From the files of a data directory to a state: the lock, what a crash left behind, the open segment, the cursors.
//!
//! Runs once, before any thread is started. Whatever is odd is told in a report; only what would lose or repeat a
//! number is an error.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::Path,
    sync::{Arc, OnceLock},
};

use super::replacing;
use super::{
    super::{
        Head, LedgerError,
        disk::{Disk, Lock},
        files::io_error,
        index::Index,
        meta::{CURSORS, Cursors, Meta},
        placing::placed,
        segments::{self, Appender, segment_path},
        summary::Summary,
    },
    shared::{Sealed, State},
};
use crate::model::{ClockState, GENESIS, Seq, Utc};

pub fn take_lock(disk: &dyn Disk, data_dir: &Path) -> Result<Box<dyn Lock>, LedgerError> {
    let path = data_dir.join("lock");
    let lock = disk.lock(&path).map_err(io_error(&path))?;
    lock.ok_or_else(|| LedgerError::Busy { path: data_dir.display().to_string() })
}

/// The identity; where it is gone or damaged a new ledger begins. Anything else that fails may pass, and is an error.
pub fn load_meta(
    disk: &dyn Disk,
    dir: &Path,
    now: Utc,
    when: Option<(Utc, ClockState)>,
    reports: &mut Vec<String>,
) -> Result<Meta, LedgerError> {
    replacing::resume(disk, dir, reports)?;
    let why = match Meta::load(disk, dir) {
        Ok(Some(meta)) => return Ok(meta),
        Ok(None) if segments::list(disk, dir)?.is_empty() => return create(disk, dir, now),
        Ok(None) => "ledger.json is missing, but there are segments".to_owned(),
        Err(LedgerError::Io { error, .. }) if error.kind() == io::ErrorKind::InvalidData => {
            format!("ledger.json: {error}")
        }
        Err(error) => return Err(error),
    };
    replacing::replace(disk, dir, &why, when, reports)
}

fn create(disk: &dyn Disk, dir: &Path, now: Utc) -> Result<Meta, LedgerError> {
    let meta = Meta::create(now)?;
    // First the cursors: a ledger without them is one that has lost them.
    Cursors::default().store(disk, dir, &meta.id)?;
    meta.store(disk, dir)?;
    Ok(meta)
}

/// Sets aside what is no segment of this ledger, and removes the files of ranges that were noted as pruned before a crash;
/// returns the files that are left. Who only reads (`may_change` is false) leaves the misplaced ones where they are.
pub fn settle_files(
    disk: &dyn Disk,
    dir: &Path,
    meta: &Meta,
    may_change: bool,
    reports: &mut Vec<String>,
) -> Result<Vec<(Seq, u64)>, LedgerError> {
    let placed = placed(disk, dir, meta)?;
    if may_change {
        reports.extend(placed.set_aside(disk, dir)?);
    } else {
        reports.extend(placed.faults(dir));
    }
    let mut files = placed.files;
    for (first, _) in files.extract_if(.., |(first, _)| meta.pruned_at(*first).is_some()) {
        let path = segment_path(dir, first);
        disk.remove(&path).map_err(io_error(&path))?;
    }
    Ok(files)
}

/// Builds the list of sealed segments and scans the open one.
pub fn open_segments(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    meta: &Meta,
    files: &[(Seq, u64)],
    reports: &mut Vec<String>,
) -> Result<(State, Appender), LedgerError> {
    let mut sealed = BTreeMap::new();
    for pair in files.windows(2) {
        let [(first, bytes), (next, _)] = pair else { continue };
        // Where the records between two files were pruned, the first file ends before them.
        let last = match meta.pruned_at(next - 1) {
            Some(range) => range.first - 1,
            None => next - 1,
        };
        let segment = Sealed {
            first: *first,
            last,
            path: segment_path(dir, *first),
            bytes: *bytes,
            known: OnceLock::new(),
        };
        sealed.insert(*first, Arc::new(segment));
    }
    let kept_from = meta.pruned.first().filter(|range| range.first == 1).map_or(1, |range| range.last + 1);
    let (first, bytes) =
        files.last().copied().unwrap_or((meta.pruned.last().map_or(1, |range| range.last + 1), 0));
    if files.first().is_some_and(|(first, _)| *first > kept_from) {
        reports.push(format!(
            "ledger {}: seq {kept_from} to {} are missing: no segment file",
            dir.display(),
            first - 1
        ));
    }
    let prev = hash_before(&**disk, meta, &sealed, first, reports)?;
    let path = segment_path(dir, first);
    let (open, good) = if files.is_empty() {
        (Summary::new(first), 0)
    } else {
        scan_open(disk, dir, first, bytes, prev.clone(), reports)?
    };
    let appender = Appender::open(disk, dir, first, good)?;
    let hash = if open.header.count == 0 {
        prev.unwrap_or_else(|| GENESIS.into())
    } else {
        open.header.last_hash.clone()
    };
    let head = Head { seq: open.header.last, hash };
    let mut state = State {
        sealed,
        open: Summary::new(first),
        open_path: path,
        head,
        latest: HashMap::new(),
        names: HashMap::new(),
    };
    for (meter, places) in &open.meters {
        state.number(meter);
        for place in places {
            state.note_latest(meter, first, *place);
        }
    }
    state.open = open;
    Ok((state, appender))
}

/// The hash of the record before `first`.
fn hash_before(
    disk: &dyn Disk,
    meta: &Meta,
    sealed: &BTreeMap<Seq, Arc<Sealed>>,
    first: Seq,
    reports: &mut Vec<String>,
) -> Result<Option<String>, LedgerError> {
    let Some(before) = first.checked_sub(1).filter(|before| *before > 0) else {
        return Ok(Some(GENESIS.into()));
    };
    if let Some(range) = meta.pruned_at(before) {
        return Ok(Some(range.last_hash.clone()));
    }
    let Some(segment) = sealed.values().next_back() else { return Ok(None) };
    match segments::last_hash(disk, &segment.path, segment.bytes)? {
        Some((seq, hash)) if seq == before => Ok(Some(hash)),
        _ => {
            reports.push(format!(
                "ledger {}: its last record, seq {before}, is damaged",
                segment.path.display()
            ));
            let summary =
                segments::scan_sealed(disk, &segment.path, segment.first, segment.last, segment.bytes)?;
            Ok(Some(summary.header.last_hash).filter(|hash| !hash.is_empty()))
        }
    }
}

/// Scans the open segment and cuts back what a power cut left behind its last whole record.
fn scan_open(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    first: Seq,
    bytes: u64,
    prev: Option<String>,
    reports: &mut Vec<String>,
) -> Result<(Summary, u64), LedgerError> {
    let path = segment_path(dir, first);
    // Who wrote it may have died before its sync: what is read here is served, and must not go with the next power cut.
    disk.open_append(&path).and_then(|file| file.sync()).map_err(io_error(&path))?;
    let scan = segments::scan(&**disk, &path, first, Seq::MAX, bytes, prev)?;
    let segments::Scan { mut summary, mut good, unterminated, tail } = scan;
    reports.extend(summary.header.damage.iter().cloned());
    if tail > 0 {
        let copy = segments::cut_tail(&**disk, dir, first, good)?;
        reports.push(format!(
            "ledger {}: torn end: {tail} bytes behind seq {} were no record and were cut off at byte {good} (kept as {})",
            path.display(),
            summary.header.last,
            copy.display()
        ));
    }
    if unterminated {
        // The record is whole, only its line feed did not reach the disk.
        Appender::open(disk, dir, first, good)?.append(b"\n")?;
        good += 1;
        summary.header.bytes = good;
        reports.push(format!(
            "ledger {}: the line feed behind seq {} was missing and was added",
            path.display(),
            summary.header.last
        ));
    }
    Ok((summary, good))
}

/// The cursors; or why going on might give numbers twice: others have seen more, records that the ledger is known to have
/// had are gone, or nothing says how many it has had. A disk that does not answer is an error: that may pass.
pub fn load_cursors(
    disk: &dyn Disk,
    dir: &Path,
    id: &str,
    head: &Head,
) -> Result<Result<Cursors, String>, LedgerError> {
    if let Some(why) = replacing::noted_end(disk, dir, id)? {
        return Ok(Err(why));
    }
    let path = dir.join(CURSORS);
    let parsed = match disk.read(&path) {
        Ok(text) => Cursors::parse(&text, id),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("missing".to_owned()),
        Err(error) => return Err(io_error(&path)(error)),
    };
    let end = head.seq;
    let cursors = match parsed {
        Ok(cursors) => cursors,
        Err(_) if end == 0 => {
            Cursors::default().store(disk, dir, id)?;
            Cursors::default()
        }
        Err(detail) => {
            return Ok(Err(format!(
                "{CURSORS}: {detail}: nothing proves that it ended at seq {end}: to go on could give numbers twice"
            )));
        }
    };
    let known = cursors.known();
    if known > end {
        let why = format!("it had {known} records and ends at seq {end}: to go on would give numbers twice");
        return Ok(Err(why));
    }
    Ok(Ok(cursors))
}

/// Takes from the index what it knows of the segments that are here.
pub fn recall(index: &Index, state: &mut State, reports: &mut Vec<String>) {
    let mut missing = 0;
    for sealed in state.sealed.values().cloned().collect::<Vec<_>>() {
        let entry = index.entry(sealed.first).ok().flatten();
        // What an earlier version wrote is made again, without a word: nothing is wrong with it.
        let older = entry.as_ref().is_some_and(|entry| entry.header.witnessed_ms.is_none());
        match entry.filter(|entry| sealed.is_of(&entry.header)) {
            None if older => {}
            Some(entry) => {
                reports.extend(entry.header.damage.iter().cloned());
                let known = state.known(entry.header, entry.meters.iter());
                let _ = sealed.known.set(known); // nobody else has it yet
            }
            None => missing += 1,
        }
    }
    if missing > 0 {
        reports.push(format!(
            "index: {missing} of {} sealed segments are being indexed again",
            state.sealed.len()
        ));
    }
}
