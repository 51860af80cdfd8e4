//! Segment files: lines appended and synced, scanned, torn ends cut back.
//!
//! Blocking file I/O only. Which segments there are and who may read them is `store.rs`.

use std::{
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    LedgerError,
    chain::{MAX_LINE, Step, Walk, verify_line},
    disk::{Disk, DiskFile, Identity, Reader},
    files::{Lines, io_error, sync_dir},
    placing::set_aside,
    store::is_at,
    summary::Summary,
};
use crate::model::Seq;

/// Largest segment that may be asked for: offsets are kept in 32 bits, and one batch may overshoot it.
pub const MAX_SEGMENT: u64 = 1 << 30;
/// Bytes from the end in which the last record is looked for first: a dozen usual ones.
const TAIL: u64 = 16 * 1024;
/// How many damaged places of one segment are named; beyond, they are all the same fault.
const MAX_NAMED: usize = 100;

/// The file whose first record is `first`.
pub fn segment_path(dir: &Path, first: Seq) -> PathBuf {
    dir.join(format!("{first:020}.seg"))
}

/// First records and lengths of the segment files in `dir`, in order.
pub fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<(Seq, u64)>, LedgerError> {
    let mut found = Vec::new();
    for entry in disk.list(dir).map_err(io_error(dir))? {
        let first = entry.name.strip_suffix(".seg").filter(|name| name.len() == 20);
        if let Some(first) = first.and_then(|name| name.parse::<Seq>().ok()) {
            found.push((first, entry.bytes));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A reader of the first `length` bytes of a segment, from `offset`.
pub fn lines_from(
    disk: &dyn Disk,
    path: &Path,
    offset: u64,
    length: u64,
) -> Result<Lines<BufReader<Reader>>, LedgerError> {
    let file = disk.open(path).map_err(io_error(path))?;
    Ok(Lines::new(BufReader::with_capacity(MAX_LINE, Reader::new(file, offset, length)), offset))
}

/// What a scan of a whole segment found.
#[derive(Debug)]
pub struct Scan {
    /// The index of all whole records.
    pub summary: Summary,
    /// The end of the last whole record.
    pub good: u64,
    /// It has no line feed.
    pub unterminated: bool,
    /// Bytes behind `good` that are no record.
    pub tail: u64,
}

/// Reads a segment from end to end. `prev` is the hash before it when known, `last` a bound of its records.
pub fn scan(
    disk: &dyn Disk,
    path: &Path,
    first: Seq,
    last: Seq,
    length: u64,
    prev: Option<String>,
) -> Result<Scan, LedgerError> {
    let mut lines = lines_from(disk, path, 0, length)?;
    let mut walk = Walk { next: first, prev, last };
    let mut scan = Scan { summary: Summary::new(first), good: 0, unterminated: false, tail: 0 };
    let mut pending: Option<(u64, String)> = None;
    while let Some(chunk) = lines.next_chunk().map_err(io_error(path))? {
        match walk.step(lines.bytes()) {
            Step::Record { verified, fault } => {
                let (at, detail) = match (pending.take(), fault) {
                    (Some((at, detail)), fault) => {
                        (at, Some(fault.map_or(detail.clone(), |fault| format!("{detail}; {fault}"))))
                    }
                    (None, fault) => (chunk.offset, fault),
                };
                if let Some(detail) = detail {
                    note(&mut scan.summary, path, at, &detail);
                }
                let bytes = chunk.end - chunk.offset;
                scan.summary.add(
                    verified.seq,
                    chunk.offset,
                    bytes,
                    &verified.hash,
                    &verified.prev,
                    &verified.facts,
                );
                (scan.good, scan.unterminated) = (chunk.end, !chunk.terminated);
            }
            Step::Bad(detail) => {
                let detail = format!("expected seq {}: {detail}", walk.next);
                pending.get_or_insert((chunk.offset, detail));
            }
        }
    }
    scan.tail = length.saturating_sub(scan.good);
    scan.summary.header.bytes = scan.good;
    Ok(scan)
}

/// Scans a sealed segment: what is unreadable at its end is damage, not a torn write.
pub fn scan_sealed(
    disk: &dyn Disk,
    path: &Path,
    first: Seq,
    last: Seq,
    length: u64,
) -> Result<Summary, LedgerError> {
    let Scan { mut summary, good, tail, unterminated } = scan(disk, path, first, last, length, None)?;
    if summary.header.last < last || tail > 0 || unterminated {
        let found = summary.header.last;
        note(&mut summary, path, good, &format!("records end at seq {found}; expected seq {last}"));
    }
    summary.header.bytes = length;
    Ok(summary)
}

fn note(summary: &mut Summary, path: &Path, offset: u64, detail: &str) {
    if summary.header.damage.len() < MAX_NAMED {
        summary.header.damage.push(format!("ledger {}: damaged at byte {offset}: {detail}", path.display()));
    }
}

/// The hash and seq of a segment's last line, when that line proves itself.
pub fn last_hash(disk: &dyn Disk, path: &Path, length: u64) -> Result<Option<(Seq, String)>, LedgerError> {
    let offset = length.saturating_sub(2 * (MAX_LINE as u64 + 1));
    let mut lines = lines_from(disk, path, offset, length)?;
    let mut last = None;
    while lines.next_chunk().map_err(io_error(path))?.is_some() {
        last = verify_line(lines.bytes()).ok().map(|verified| (verified.seq, verified.hash));
    }
    Ok(last)
}

/// The last line of a file that proves itself.
pub struct End {
    pub seq: Seq,
    pub hash: String,
    /// Bytes behind it.
    pub rest: u64,
}

/// The last line of a segment that proves itself, wherever it stands. Reads from the end, in growing steps; what a writer
/// has added behind `length` counts.
pub fn last_readable(disk: &dyn Disk, path: &Path, length: u64) -> Result<Option<End>, LedgerError> {
    let mut span = TAIL;
    loop {
        let offset = length.saturating_sub(span);
        let mut lines = lines_from(disk, path, offset, u64::MAX)?;
        let (mut last, mut end) = (None, offset);
        while let Some(chunk) = lines.next_chunk().map_err(io_error(path))? {
            end = chunk.end;
            last = verify_line(lines.bytes()).ok().map(|line| (line, chunk.end)).or(last);
        }
        if last.is_some() || offset == 0 {
            return Ok(last.map(|(line, at)| End { seq: line.seq, hash: line.hash, rest: end - at }));
        }
        span = span.saturating_mul(8);
    }
}

/// Keeps a copy of the bytes from `offset` on, then cuts them off. Returns the copy's path.
pub fn cut_tail(disk: &dyn Disk, dir: &Path, first: Seq, offset: u64) -> Result<PathBuf, LedgerError> {
    let path = segment_path(dir, first);
    let copy = dir.join(format!("{first:020}.torn-{offset}"));
    let keep = || -> io::Result<()> {
        let mut from = Reader::new(disk.open(&path)?, offset, u64::MAX);
        let to = disk.open_append(&copy)?;
        let mut buffer = vec![0; MAX_LINE];
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            to.append(buffer.get(..count).unwrap_or_default())?;
        }
        to.sync()?;
        disk.sync_dir(dir)?;
        let file = disk.open_append(&path)?;
        file.truncate(offset)?;
        file.sync()
    };
    keep().map_err(io_error(&path))?;
    Ok(copy)
}

/// The open end of the ledger.
pub struct Appender {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// The first record of the open segment.
    pub first: Seq,
    /// Bytes that are on the disk for certain.
    pub durable: u64,
    dirty: bool,
}

impl Appender {
    /// Opens (or creates) the segment that begins with `first`, whose first `durable` bytes are good.
    pub fn open(disk: &Arc<dyn Disk>, dir: &Path, first: Seq, durable: u64) -> Result<Appender, LedgerError> {
        let path = segment_path(dir, first);
        let file = disk.open_append(&path).map_err(io_error(&path))?;
        sync_dir(&**disk, dir)?;
        Ok(Appender { disk: disk.clone(), dir: dir.to_owned(), path, file, first, durable, dirty: false })
    }

    /// Seals this segment and goes on in a new one. What somebody has laid there under its name is set aside; returned is
    /// as what.
    pub fn rotate(&mut self, first: Seq) -> Result<Option<PathBuf>, LedgerError> {
        self.repair()?;
        let there = list(&*self.disk, &self.dir)?.iter().any(|(name, bytes)| *name == first && *bytes > 0);
        let aside = there.then(|| set_aside(&*self.disk, &self.dir, first)).transpose()?;
        let next = Appender::open(&self.disk, &self.dir, first, 0)?;
        (self.path, self.file, self.first, self.durable) = (next.path, next.file, first, 0);
        Ok(aside)
    }

    /// Appends and syncs. After an error nothing of `bytes` counts: it is cut off before anything else is written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), LedgerError> {
        self.repair()?;
        self.dirty = true;
        let result = self.file.append(bytes).and_then(|()| self.file.sync()).and_then(|()| self.named());
        if let Err(error) = result {
            // The error that counts is the first one; a repair that fails now is tried again before the next write.
            let _ = self.repair();
            return Err(io_error(&self.path)(error));
        }
        self.dirty = false;
        self.durable += bytes.len() as u64;
        Ok(())
    }

    /// What is in a file without its name is gone with the process.
    fn named(&self) -> io::Result<()> {
        if is_at(&*self.disk, &self.path, Some(self.file.identity()?)) {
            return Ok(());
        }
        Err(io::Error::other("removed, moved or replaced while the gateway runs"))
    }

    /// Which file it is.
    pub fn identity(&self) -> Result<Identity, LedgerError> {
        self.file.identity().map_err(io_error(&self.path))
    }

    fn repair(&mut self) -> Result<(), LedgerError> {
        if self.dirty {
            let cut = self.file.truncate(self.durable).and_then(|()| self.file.sync());
            cut.map_err(io_error(&self.path))?;
            self.dirty = false;
        }
        Ok(())
    }
}
