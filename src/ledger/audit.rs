//! Proof and copy of a ledger from its files alone: no lock, no index, constant memory. A daemon may be writing.
//!
//! Reads everything again and believes nothing but the hashes.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{
    Head, LedgerError,
    chain::{Step, Verified, Walk},
    disk::{Disk, RealDisk},
    files::io_error,
    meta::Meta,
    placing::placed,
    segments::{lines_from, segment_path},
};
use crate::model::{GENESIS, Seq};

/// Faults that are named; the others are counted.
const MAX_FAULTS: usize = 1000;

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The ledger's id.
    pub ledger: String,
    /// Records that proved themselves.
    pub records: u64,
    /// The first of them, 0 when there is none.
    pub first: Seq,
    /// The last of them and its hash.
    pub head: Head,
    /// What is wrong, at most 1000 of them, in the order of the files.
    pub faults: Vec<String>,
    /// Faults beyond those.
    pub more_faults: u64,
}

impl Report {
    fn fault(&mut self, fault: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        } else {
            self.more_faults += 1;
        }
    }
}

/// Recomputes every hash and the chain of the records `from..=to`; `progress` hears bytes done and in all.
pub fn audit(
    data_dir: &Path,
    from: Seq,
    to: Option<Seq>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, LedgerError> {
    audit_with(&RealDisk, data_dir, from, to, progress, &mut |_, _| Ok(None))
}

/// What a reader of the proved records has to say of each: a fault, or a failure of its own.
pub type Look<'a> = dyn FnMut(&Verified, &[u8]) -> io::Result<Option<String>> + 'a;

/// The same on any disk, and each proved record is shown to `each`; a fault it names stands in the report in its place.
pub fn audit_with(
    disk: &dyn Disk,
    data_dir: &Path,
    from: Seq,
    to: Option<Seq>,
    progress: &mut dyn FnMut(u64, u64),
    each: &mut Look<'_>,
) -> Result<Report, LedgerError> {
    walk(disk, data_dir, from, to, progress, each)
}

/// Writes the records `from..=to` as JSON lines, each verified first; what is damaged is left out and reported.
pub fn export(
    data_dir: &Path,
    from: Seq,
    to: Option<Seq>,
    out: &mut dyn Write,
) -> Result<Report, LedgerError> {
    let report = walk(&RealDisk, data_dir, from, to, &mut |_, _| (), &mut |_, line| {
        out.write_all(line)?;
        out.write_all(b"\n").map(|()| None)
    })?;
    out.flush().map_err(io_error(Path::new("(output)")))?;
    Ok(report)
}

/// Hands out every record that proves itself, in order; what is damaged is left out and reported.
pub fn scan(
    data_dir: &Path,
    each: &mut dyn FnMut(&Verified, &[u8]) -> io::Result<()>,
) -> Result<Report, LedgerError> {
    walk(&RealDisk, data_dir, 1, None, &mut |_, _| (), &mut |record, line| each(record, line).map(|()| None))
}

fn load(disk: &dyn Disk, dir: &Path) -> Result<Meta, LedgerError> {
    let missing = || io_error(&dir.join("ledger.json"))(io::ErrorKind::NotFound.into());
    Meta::load(disk, dir)?.ok_or_else(missing)
}

fn walk(
    disk: &dyn Disk,
    data_dir: &Path,
    from: Seq,
    to: Option<Seq>,
    progress: &mut dyn FnMut(u64, u64),
    each: &mut Look<'_>,
) -> Result<Report, LedgerError> {
    let dir = data_dir.join("ledger");
    let mut meta = load(disk, &dir)?;
    let to = to.unwrap_or(Seq::MAX);
    let placed = placed(disk, &dir, &meta)?;
    let files = &placed.files;
    let chosen: Vec<(Seq, Option<Seq>, u64)> = files
        .iter()
        .enumerate()
        .map(|(i, (first, bytes))| (*first, files.get(i + 1).map(|(next, _)| *next), *bytes))
        .filter(|(first, next, _)| *first <= to && next.is_none_or(|next| next > from))
        .collect();
    let total = chosen.iter().map(|(_, _, bytes)| bytes).sum();
    let head = Head { seq: 0, hash: GENESIS.into() };
    let mut report =
        Report { ledger: meta.id.clone(), records: 0, first: 0, head, faults: Vec::new(), more_faults: 0 };
    placed.faults(&dir).for_each(|fault| report.fault(fault));
    let mut done = 0;
    // The record before the next file: known at the very beginning, behind a pruned range, behind a whole file.
    let mut before: Option<(Seq, Option<String>)> = None;
    for (first, next, bytes) in chosen {
        let path = segment_path(&dir, first);
        let mut lines = match lines_from(disk, &path, 0, bytes) {
            Ok(lines) => lines,
            Err(LedgerError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                meta = load(disk, &dir)?; // retention may have taken it meanwhile
                if meta.pruned_at(first).is_none() {
                    report.fault(format!("ledger {}: the file is gone", path.display()));
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        let prev = arrive(&meta, first, before.take(), from, &dir, &mut report);
        // A file ends before the next one, or before the records between them that were pruned.
        let last =
            next.map_or(Seq::MAX, |next| meta.pruned_at(next - 1).map_or(next - 1, |range| range.first - 1));
        let mut walk = Walk { next: first, prev, last };
        let mut damaged = 0;
        while let Some(chunk) = lines.next_chunk().map_err(io_error(&path))? {
            progress(done + chunk.end, total);
            let expected = walk.next;
            if expected > to {
                break;
            }
            match walk.step(lines.bytes()) {
                Step::Record { verified, fault } => {
                    // The lines that were named as damaged are the missing ones.
                    let named = verified.seq - expected <= std::mem::take(&mut damaged);
                    let gap = verified.seq > expected;
                    if let Some(fault) = fault.filter(|_| verified.seq >= from && !(gap && named)) {
                        report.fault(format!("ledger {}: byte {}: {fault}", path.display(), chunk.offset));
                    }
                    if (chunk.terminated || next.is_some()) && (from..=to).contains(&verified.seq) {
                        report.records += 1;
                        report.first = if report.first == 0 { verified.seq } else { report.first };
                        let said = each(&verified, lines.bytes());
                        if let Some(fault) = said.map_err(io_error(Path::new("(output)")))? {
                            report.fault(format!(
                                "ledger {}: byte {}: {fault}",
                                path.display(),
                                chunk.offset
                            ));
                        }
                        report.head = Head { seq: verified.seq, hash: verified.hash };
                    }
                }
                // Behind the last line feed of the last file the daemon may just be writing.
                Step::Bad(_) if next.is_none() && !chunk.terminated => {}
                Step::Bad(detail) => {
                    damaged += 1;
                    if expected >= from {
                        let (path, offset) = (path.display(), chunk.offset);
                        report.fault(format!("ledger {path}: byte {offset}: seq {expected}: {detail}"));
                    }
                }
            }
        }
        if next.is_some() && walk.next <= last && walk.next <= to {
            report.fault(format!(
                "ledger {}: records end at seq {}; expected seq {last}",
                path.display(),
                walk.next - 1
            ));
        }
        before = Some((walk.next - 1, walk.prev));
        done += bytes;
        progress(done, total);
    }
    Ok(report)
}

/// The hash that the first record of the file `first` must name, if it can be known.
fn arrive(
    meta: &Meta,
    first: Seq,
    before: Option<(Seq, Option<String>)>,
    from: Seq,
    dir: &Path,
    report: &mut Report,
) -> Option<String> {
    let gap = first.checked_sub(1).and_then(|seq| meta.pruned_at(seq));
    match (gap, before) {
        (Some(range), before) => {
            if let Some((seq, Some(hash))) = before
                && seq + 1 == range.first
                && hash != range.prev_hash
            {
                report.fault(format!(
                    "ledger {}: seq {seq} has {hash}; the records removed behind it name {}",
                    dir.display(),
                    range.prev_hash
                ));
            }
            Some(range.last_hash.clone())
        }
        (None, None) if first == 1 => Some(GENESIS.into()),
        (None, None) => {
            if first > from {
                report.fault(format!("ledger {}: seq {from} to {} are missing", dir.display(), first - 1));
            }
            None
        }
        (None, Some((seq, hash))) => hash.filter(|_| seq + 1 == first),
    }
}
