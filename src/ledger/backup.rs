//! A copy of a ledger that may be written to meanwhile, and the way back into an empty data directory.
//!
//! Every copied byte is read back and proved before its file gets its name. Whether numbers may go on after a restore is
//! not guessed: without proof that nothing later was sent, a new ledger begins behind the restored one.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Head, LedgerError,
    audit::audit,
    disk::{Disk, DiskFile, Reader, RealDisk},
    files::{io_error, sync_dir},
    meta::{Cursors, Meta},
    placing::placed,
    segments::{Scan, list, scan, segment_path},
    store::begin_again,
};
use crate::model::{ClockState, GENESIS, Seq, Utc};

/// Session numbers that a proved restore passes over: more connections than the time since any backup can have had.
pub const PROVED_SESSIONS: u64 = 1_000_000;
/// Bytes copied at once.
const BLOCK: usize = 256 * 1024;

/// What a copy came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Which ledger.
    pub ledger: String,
    /// The last record in the copy.
    pub head: Head,
    /// Files that were copied, and that were there already.
    pub files: (u64, u64),
    /// Bytes that were copied.
    pub bytes: u64,
    /// Damage in the original; it is in the copy as it is.
    pub faults: Vec<String>,
}

/// What a restored data directory will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What was put back.
    pub copied: Copied,
    /// The ledger that will be written to.
    pub ledger: String,
    /// Its next record.
    pub next: Seq,
}

fn refused(path: &Path, detail: &str) -> LedgerError {
    io_error(path)(io::Error::new(io::ErrorKind::InvalidInput, detail.to_owned()))
}

/// Copies the ledger of `data_dir` up to `to` (the last record that is known to be durable; all whole ones when
/// nothing runs) into `target`: an empty directory or an older backup of the same ledger.
pub fn backup(
    data_dir: &Path,
    target: &Path,
    to: Option<Seq>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Copied, LedgerError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (from, into) = (data_dir.join("ledger"), target.join("ledger"));
    let meta = Meta::load(&*disk, &from)?.ok_or_else(|| refused(&from, "there is no ledger"))?;
    let there = match disk.list(target) {
        Ok(entries) => !entries.is_empty(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(io_error(target)(error)),
    };
    if there && Meta::load(&*disk, &into)?.is_none_or(|older| older.id != meta.id) {
        let detail =
            format!("not empty, and no backup of ledger {}\n  hint: give an empty directory", meta.id);
        return Err(refused(target, &detail));
    }
    disk.create_dirs(&into).map_err(io_error(&into))?;
    // Before the first file of a new backup: a backup that was broken off is gone on with.
    meta.store(&*disk, &into)?;
    let mut copied = copy(&*disk, &from, &into, &meta, to, progress)?;
    // Once more, for what retention removed meanwhile; the cursors as far as the copy reaches.
    let meta = Meta::load(&*disk, &from)?.unwrap_or(meta);
    meta.store(&*disk, &into)?;
    let mut cursors = Cursors::load(&*disk, &from, &meta.id).unwrap_or_default();
    let end = copied.head.seq;
    cursors.acknowledged = cursors.acknowledged.min(end);
    cursors.confirmed = cursors.confirmed.min(end);
    cursors.stored = end;
    cursors.store(&*disk, &into, &meta.id)?;
    copied.ledger = meta.id;
    Ok(copied)
}

/// Puts a backup into an empty data directory. Its ledger goes on only when `billing_has` proves that the backup has
/// everything that was ever sent; otherwise its records are kept beside a new ledger, whose first record says so.
pub fn restore(
    backup: &Path,
    data_dir: &Path,
    billing_has: Option<Seq>,
    now: (Utc, ClockState),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, LedgerError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    match disk.list(data_dir) {
        Ok(entries) if !entries.is_empty() => {
            let detail = "not empty\n  hint: a backup goes into an empty data directory; move the old one away, do not delete it";
            return Err(refused(data_dir, detail));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(data_dir)(error)),
        _ => {}
    }
    let (from, into) = (backup.join("ledger"), data_dir.join("ledger"));
    let meta = Meta::load(&*disk, &from)?.ok_or_else(|| refused(&from, "there is no backup"))?;
    let cursors = Cursors::load(&*disk, &from, &meta.id).map_err(|reason| {
        refused(&from, &format!("the backup was not finished ({reason})\n  hint: run `ledger backup` again"))
    })?;
    disk.create_dirs(&into).map_err(io_error(&into))?;
    let mut copied = copy(&*disk, &from, &into, &meta, None, progress)?;
    copied.ledger.clone_from(&meta.id);
    cursors.store(&*disk, &into, &meta.id)?;
    meta.store(&*disk, &into)?;
    let report = audit(data_dir, 1, None, &mut |_, _| ())?;
    let left_out = placed(&*disk, &from, &meta)?;
    copied.faults = left_out.faults(&from).chain(report.faults).collect();
    let end = report.head.seq;
    if billing_has.is_some_and(|seq| seq <= end) && end >= cursors.stored {
        // What the broker still says of a later connection is no news to whoever has proved this.
        let session = cursors.session.saturating_add(PROVED_SESSIONS);
        Cursors { session, ..cursors }.store(&*disk, &into, &meta.id)?;
        return Ok(Restored { ledger: meta.id, next: end + 1, copied });
    }
    let why = format!("restored from a backup that ends at seq {end}; what was sent after it is not known");
    let meta = begin_again(&*disk, &into, &why, Some(now), &mut Vec::new())?;
    Ok(Restored { ledger: meta.id, next: 2, copied })
}

fn copy(
    disk: &dyn Disk,
    from: &Path,
    into: &Path,
    meta: &Meta,
    to: Option<Seq>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Copied, LedgerError> {
    let placed = placed(disk, from, meta)?;
    let files = &placed.files;
    let have = list(disk, into)?;
    let total = files.iter().map(|(_, bytes)| bytes).sum();
    let head = Head { seq: 0, hash: GENESIS.into() };
    let mut copied = Copied {
        ledger: String::new(),
        head,
        files: (0, 0),
        bytes: 0,
        faults: placed.faults(from).collect(),
    };
    let mut done = 0;
    for (at, (first, bytes)) in files.iter().enumerate() {
        if to.is_some_and(|to| *first > to) {
            break; // begun after the head was asked for
        }
        let source = segment_path(from, *first);
        let sealed_before = files.get(at + 1).map(|(next, _)| next - 1);
        let last = sealed_before.unwrap_or(Seq::MAX).min(to.unwrap_or(Seq::MAX));
        let found = match scan(disk, &source, *first, last, *bytes, None) {
            Ok(found) => found,
            Err(LedgerError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => continue, // pruned
            Err(error) => return Err(error),
        };
        // A sealed file whole, as it is; the open one up to the last durable record.
        let length = if sealed_before.is_some_and(|end| end <= last) { *bytes } else { found.good };
        copied.faults.extend(found.summary.header.damage.iter().cloned());
        if have.contains(&(*first, length))
            && same_end(disk, &segment_path(into, *first), *first, last, length, &found)?
        {
            copied.files.1 += 1;
        } else {
            copy_file((disk, &source), (disk, into), (*first, last), length, &found)?;
            copied.files.0 += 1;
            copied.bytes += length;
        }
        let header = &found.summary.header;
        if header.count > 0 {
            copied.head = Head { seq: header.last, hash: header.last_hash.clone() };
        }
        done += bytes;
        progress(done, total);
    }
    Ok(copied)
}

/// What a copy of a segment is called until it has proved itself.
fn part_path(into: &Path, first: Seq) -> PathBuf {
    into.join(format!("{first:020}.part"))
}

/// Copies the first `length` bytes of one segment (records `first..=last`, as `found`), proves the copy, and gives it its
/// name. What had the name before is there until then.
pub(super) fn copy_file(
    (disk, source): (&dyn Disk, &Path),
    (target, into): (&dyn Disk, &Path),
    (first, last): (Seq, Seq),
    length: u64,
    found: &Scan,
) -> Result<(), LedgerError> {
    let part = part_path(into, first);
    write((disk, source), (target, &part), length)?;
    if !same_end(target, &part, first, last, length, found)? {
        let detail = "what was copied reads back differently\n  hint: is the disk of the copy sound?";
        return Err(refused(&part, detail));
    }
    let name = segment_path(into, first);
    target.rename(&part, &name).map_err(io_error(&name))?;
    sync_dir(target, into)
}

/// Whether a copy proves the same records as its original did.
fn same_end(
    disk: &dyn Disk,
    path: &Path,
    first: Seq,
    last: Seq,
    length: u64,
    original: &Scan,
) -> Result<bool, LedgerError> {
    let copy = scan(disk, path, first, last, length, None)?;
    let (ours, theirs) = (&copy.summary.header, &original.summary.header);
    Ok((ours.count, &ours.last_hash, copy.good) == (theirs.count, &theirs.last_hash, original.good))
}

fn write(
    (disk, source): (&dyn Disk, &Path),
    (target, part): (&dyn Disk, &Path),
    length: u64,
) -> Result<(), LedgerError> {
    let file = target.create(part).map_err(io_error(part))?;
    pour((disk, source), (&*file, part), 0..length)?;
    file.sync().map_err(io_error(part))
}

/// Appends a range of one file's bytes to another file.
pub(super) fn pour(
    (disk, source): (&dyn Disk, &Path),
    (file, target): (&dyn DiskFile, &Path),
    range: Range<u64>,
) -> Result<(), LedgerError> {
    let mut reader = Reader::new(disk.open(source).map_err(io_error(source))?, range.start, range.end);
    let mut block = vec![0; BLOCK];
    loop {
        let count = io::Read::read(&mut reader, &mut block).map_err(io_error(source))?;
        if count == 0 {
            return Ok(());
        }
        file.append(block.get(..count).unwrap_or_default()).map_err(io_error(target))?;
    }
}
