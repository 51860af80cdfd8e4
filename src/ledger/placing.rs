//! Which segment files are in their place. A name is believed only as far as the records in the file bear it out.
//!
//! A file under another name, another ledger's, or one that covers records which its neighbour has already would make the
//! ledger jump or repeat a number. Reads the first and the last record of each file, not what lies between; damage
//! inside a file that is in its place is not its business.

use std::path::{Path, PathBuf};

use super::{
    LedgerError,
    chain::verify_line,
    disk::Disk,
    files::{io_error, sync_dir},
    meta::{Cursors, Meta},
    segments::{End, last_readable, lines_from, list, segment_path},
};
use crate::model::Seq;

/// No record is shorter: two hashes of 64 digits. So much damage may stand for one record at most.
const SHORTEST_LINE: u64 = 128;

/// The segment files of a directory.
#[derive(Debug, Default)]
pub struct Placed {
    /// First records and lengths of those that are in their place, in order.
    pub files: Vec<(Seq, u64)>,
    /// First records by the name of the others, and what is wrong.
    pub misplaced: Vec<(Seq, String)>,
}

impl Placed {
    /// For the operator: what is wrong with each file that is not believed.
    pub fn faults(&self, dir: &Path) -> impl Iterator<Item = String> {
        let fault = |(first, why): &(Seq, String)| {
            format!("ledger {}: not in its place: {why}; it is left out", segment_path(dir, *first).display())
        };
        self.misplaced.iter().map(fault)
    }

    /// Gives the misplaced files other names, so that nobody takes them for segments. Returns what was done.
    pub fn set_aside(&self, disk: &dyn Disk, dir: &Path) -> Result<Vec<String>, LedgerError> {
        let mut reports = Vec::new();
        for (first, why) in &self.misplaced {
            let aside = set_aside(disk, dir, *first)?;
            let name = segment_path(dir, *first);
            reports.push(format!(
                "ledger {}: not in its place: {why}; set aside as {}",
                name.display(),
                aside.display()
            ));
        }
        Ok(reports)
    }
}

/// Gives the file with the name of the segment `first` another name, which it returns.
pub fn set_aside(disk: &dyn Disk, dir: &Path, first: Seq) -> Result<PathBuf, LedgerError> {
    let taken = disk.list(dir).map_err(io_error(dir))?;
    let name = |n: u64| format!("{first:020}.misplaced-{n}");
    let free = (1..u64::MAX).find(|n| !taken.iter().any(|entry| entry.name == name(*n))).unwrap_or(u64::MAX);
    let (from, to) = (segment_path(dir, first), dir.join(name(free)));
    disk.rename(&from, &to).map_err(io_error(&from))?;
    sync_dir(disk, dir)?;
    Ok(to)
}

/// Looks at each segment file in `dir`. One that cannot be read is believed: who reads it says what is wrong.
pub fn placed(disk: &dyn Disk, dir: &Path, meta: &Meta) -> Result<Placed, LedgerError> {
    let files = list(disk, dir)?;
    let mut placed = Placed::default();
    for (at, file) in files.iter().enumerate() {
        match fault(disk, dir, meta, placed.files.last(), *file, files.get(at + 1)) {
            Ok(Some(why)) => placed.misplaced.push((file.0, why)),
            Ok(None) | Err(_) => placed.files.push(*file),
        }
    }
    Ok(placed)
}

/// What is wrong with a file, between the last one that is in its place and the next one there is.
fn fault(
    disk: &dyn Disk,
    dir: &Path,
    meta: &Meta,
    before: Option<&(Seq, u64)>,
    (first, bytes): (Seq, u64),
    after: Option<&(Seq, u64)>,
) -> Result<Option<String>, LedgerError> {
    let path = segment_path(dir, first);
    let begin = first_readable(disk, &path)?;
    if let Some(begin) = begin.as_ref().filter(|begin| !fits(first, begin.seq, begin.offset)) {
        return Ok(Some(format!("its first record is seq {}", begin.seq)));
    }
    let pruned = first.checked_sub(1).is_some_and(|seq| meta.pruned_at(seq).is_some());
    let Some((before, length)) = before.filter(|_| !pruned) else {
        let start = pruned || first == 1;
        return Ok((begin.is_none() && !start).then(|| "it holds no record, and no file is before it".into()));
    };
    let before = segment_path(dir, *before);
    let Some(mut end) = last_readable(disk, &before, *length)? else { return Ok(None) };
    let follows = |begin: &Begin| begin.seq == first && begin.prev == end.hash;
    if end.seq >= first || !begin.as_ref().is_none_or(follows) {
        // A record at its end that does not follow the one before it says nothing of what comes behind it.
        let Some(linked) = last_linked(disk, &before)? else { return Ok(None) };
        end = linked;
    }
    if end.seq >= first {
        return Ok(Some(format!("the file before it goes on to seq {}", end.seq)));
    }
    let Some(begin) = begin else {
        return Ok((!fits(end.seq + 1, first, end.rest))
            .then(|| format!("it holds no record, and the file before it ends at seq {}", end.seq)));
    };
    if begin.seq != first || end.seq + 1 != first || begin.prev == end.hash {
        return Ok(None);
    }
    // Where the next file follows this one, it is the one before that does not belong here, or was changed.
    if let Some((next, _)) = after
        && let Some(next) = first_readable(disk, &segment_path(dir, *next))?
        && last_readable(disk, &path, bytes)?.is_some_and(|own| own.hash == next.prev)
    {
        return Ok(None);
    }
    // Where the ledger is known to have had records behind that one, and this file has them, it is the same.
    let known = Cursors::load(disk, dir, &meta.id).map_or(0, |cursors| cursors.known());
    if known > end.seq && last_readable(disk, &path, bytes)?.is_some_and(|own| own.seq >= known) {
        return Ok(None);
    }
    Ok(Some(format!(
        "its first record names {} as its predecessor; the record before it has {}",
        begin.prev, end.hash
    )))
}

/// Whether `seq` may be the first readable record where `expected` should stand, behind so many bytes that are none.
fn fits(expected: Seq, seq: Seq, damaged: u64) -> bool {
    seq.checked_sub(expected).is_some_and(|missing| missing <= damaged / SHORTEST_LINE)
}

struct Begin {
    seq: Seq,
    prev: String,
    offset: u64,
}

/// The first line of a file that proves itself, wherever it stands.
fn first_readable(disk: &dyn Disk, path: &Path) -> Result<Option<Begin>, LedgerError> {
    let mut lines = lines_from(disk, path, 0, u64::MAX)?;
    while let Some(chunk) = lines.next_chunk().map_err(io_error(path))? {
        if let Ok(line) = verify_line(lines.bytes()) {
            return Ok(Some(Begin { seq: line.seq, prev: line.prev, offset: chunk.offset }));
        }
    }
    Ok(None)
}

/// The last line of a file that follows the readable one before it, by number and by hash; the first readable one follows
/// nothing. Reads all of it.
fn last_linked(disk: &dyn Disk, path: &Path) -> Result<Option<End>, LedgerError> {
    let mut lines = lines_from(disk, path, 0, u64::MAX)?;
    let (mut before, mut linked, mut bytes) = (None::<(Seq, String)>, None, 0);
    while let Some(chunk) = lines.next_chunk().map_err(io_error(path))? {
        bytes = chunk.end;
        let Ok(line) = verify_line(lines.bytes()) else { continue };
        if before.is_none_or(|(seq, hash)| line.seq == seq + 1 && line.prev == hash) {
            linked = Some(End { seq: line.seq, hash: line.hash.clone(), rest: chunk.end });
        }
        before = Some((line.seq, line.hash));
    }
    Ok(linked.map(|end| End { rest: bytes - end.rest, ..end }))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Duration};

    use serde_json::Map;

    use super::super::{
        FileLedger, Ledger, MirrorOptions, Options,
        audit::{audit, export},
        backup::{backup, restore},
        chain::{seal, verify_line},
        disk::RealDisk,
        meta::Cursors,
    };
    use crate::model::{ClockState, Draft, Seq, Utc};

    fn open(dir: &Path) -> (std::sync::Arc<FileLedger>, Vec<String>) {
        let options = Options { segment_bytes: 2500, ..Options::default() };
        FileLedger::open(dir, options).unwrap()
    }

    fn append(ledger: &FileLedger, count: usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for _ in 0..count {
            let draft = Draft::change("test", Map::new(), Utc::UNIX_EPOCH, ClockState::Synced);
            runtime.block_on(ledger.append(vec![draft])).unwrap();
        }
    }

    fn filled(dir: &Path, count: usize) -> Vec<Seq> {
        let (ledger, _) = open(dir);
        append(&ledger, count);
        ledger.close();
        segments(dir)
    }

    fn segments(dir: &Path) -> Vec<Seq> {
        let list = super::list(&super::super::disk::RealDisk, &dir.join("ledger")).unwrap();
        list.into_iter().map(|(first, _)| first).collect()
    }

    fn path(dir: &Path, first: Seq) -> std::path::PathBuf {
        super::segment_path(&dir.join("ledger"), first)
    }

    /// Lays a file whose name is wrong, beside segments that begin with these records; returns the name.
    type Lay = fn(&Path, &[Seq]) -> Seq;

    /// Each way in which a name may lie. Every reader of the files leaves the file out and says so, and the chain goes on at
    /// 41 behind a start; one that was laid where a segment is to begin is no part of it.
    #[test]
    fn a_file_under_another_name_is_set_aside_and_the_chain_goes_on() {
        let lay: [(&str, Lay); 6] = [
            ("a copy of the first segment", |dir, firsts| {
                fs::copy(path(dir, firsts[0]), path(dir, 100)).unwrap();
                100
            }),
            ("a copy between two others", |dir, firsts| {
                fs::copy(path(dir, firsts[0]), path(dir, firsts[1] + 2)).unwrap();
                firsts[1] + 2
            }),
            ("an empty file", |dir, _| {
                fs::write(path(dir, 100), b"").unwrap();
                100
            }),
            ("an empty file within a segment", |dir, firsts| {
                fs::write(path(dir, firsts[1] + 2), b"").unwrap();
                firsts[1] + 2
            }),
            ("no records", |dir, _| {
                fs::write(path(dir, 100), b"nothing\n").unwrap();
                100
            }),
            ("a part of a segment", |dir, firsts| {
                let text = fs::read_to_string(path(dir, firsts[1])).unwrap();
                let (_, rest) = text.split_once('\n').unwrap();
                fs::write(path(dir, firsts[1] + 1), rest).unwrap();
                firsts[1] + 1
            }),
        ];
        for (what, lay) in lay {
            let dir = tempfile::tempdir().unwrap();
            let firsts = filled(dir.path(), 40);
            let wrong = lay(dir.path(), &firsts);
            let name = path(dir.path(), wrong).display().to_string();
            let named = |faults: &[String]| faults.len() == 1 && faults[0].contains(&name);

            let report = audit(dir.path(), 1, None, &mut |_, _| ()).unwrap();
            assert!(
                named(&report.faults) && (report.records, report.head.seq) == (40, 40),
                "{what}: {report:?}"
            );
            let mut out = Vec::new();
            let report = export(dir.path(), 1, None, &mut out).unwrap();
            assert!(named(&report.faults), "{what}: {report:?}");
            assert_eq!(out.split(|byte| *byte == b'\n').count(), 41, "{what}");

            let copy = tempfile::tempdir().unwrap();
            let copied = backup(dir.path(), copy.path(), None, &mut |_, _| ()).unwrap();
            assert!(named(&copied.faults) && copied.head.seq == 40, "{what}: {copied:?}");
            assert_eq!(segments(copy.path()), firsts, "{what}");
            fs::copy(path(dir.path(), wrong), path(copy.path(), wrong)).unwrap();
            let restored = tempfile::tempdir().unwrap();
            let now = (Utc::UNIX_EPOCH, ClockState::Synced);
            let done = restore(copy.path(), restored.path(), Some(40), now, &mut |_, _| ()).unwrap();
            assert_eq!((done.next, done.copied.faults.len()), (41, 1), "{what}: {done:?}");

            let (ledger, reports) = open(dir.path());
            assert!(named(&reports), "{what}: {reports:?}");
            append(&ledger, 1);
            assert_eq!(ledger.head().borrow().seq, 41, "{what}");
            ledger.close();
            let report = audit(dir.path(), 1, None, &mut |_, _| ()).unwrap();
            assert!(report.faults.is_empty() && report.records == 41, "{what}: {report:?}");
            assert!(Path::new(&name.replace(".seg", ".misplaced-1")).exists(), "{what}: it is kept");
        }
    }

    /// The same numbers, and another chain: behind the ledger's end, and between two of its segments.
    #[test]
    fn another_ledgers_segment_is_set_aside() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let firsts = filled(dir.path(), 40);
        let foreign = {
            let (ledger, _) = open(other.path());
            let draft = Draft::change("other", Map::new(), Utc::UNIX_EPOCH, ClockState::Synced);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(ledger.append(vec![draft])).unwrap();
            append(&ledger, 60);
            ledger.close();
            segments(other.path())
        };
        assert_eq!(&foreign[..firsts.len()], firsts, "records of equal length");
        fs::copy(path(other.path(), firsts[1]), path(dir.path(), firsts[1])).unwrap();
        let report = audit(dir.path(), 1, None, &mut |_, _| ()).unwrap();
        assert!(report.faults[0].contains("as its predecessor"), "{report:?}");
        assert_eq!(report.records, 40 - (firsts[2] - firsts[1]));
        let (ledger, reports) = open(dir.path());
        assert!(reports[0].contains("set aside"), "{reports:?}");
        assert_eq!(ledger.head().borrow().seq, 40);
        assert!(ledger.read(firsts[1], 1, 1000).is_err(), "what is not there is not served");
        append(&ledger, 1);
        ledger.close();
    }

    /// The segment before the open one ends with a record that was made up, and proves itself. The open one stays, nothing
    /// new begins, and the record made up is named.
    #[test]
    fn a_forged_record_at_the_end_of_a_segment_does_not_cost_the_next_one() {
        for (what, forged_seq, linked, after_a_kill) in [
            ("a number far ahead", 999, true, true),
            ("the number of the next record", 0, true, true),
            ("a number far back", 2, true, true),
            ("the right number, and no link", 1, false, true),
            ("the right number, and linked", 1, true, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let firsts = filled(dir.path(), 40);
            let [before, open] = firsts[firsts.len() - 2..] else { unreachable!() };
            let text = fs::read_to_string(path(dir.path(), before)).unwrap();
            let mut lines: Vec<&str> = text.lines().collect();
            lines.pop();
            let prev = verify_line(lines.last().unwrap().as_bytes()).unwrap().hash;
            let prev = if linked { prev } else { "0".repeat(64) };
            let seq = match forged_seq {
                0 => open,
                1 => open - 1,
                other => other,
            };
            let draft = Draft::change("forged", Map::new(), Utc::UNIX_EPOCH, ClockState::Synced);
            let forged = String::from_utf8(seal(&draft, seq, &prev).unwrap().bytes.to_vec()).unwrap();
            lines.push(&forged);
            fs::write(path(dir.path(), before), lines.join("\n") + "\n").unwrap();
            if after_a_kill {
                let id = Cursors::ledger(&RealDisk, &dir.path().join("ledger")).unwrap();
                Cursors::default().store(&RealDisk, &dir.path().join("ledger"), &id).unwrap();
            }

            let (ledger, reports) = super::tests::open(dir.path());
            assert_eq!(ledger.head().borrow().seq, 40, "{what}: {reports:?}");
            assert!(!reports.iter().any(|report| report.contains("set aside")), "{what}: {reports:?}");
            append(&ledger, 1);
            assert_eq!(ledger.head().borrow().seq, 41, "{what}");
            ledger.close();
            let report = audit(dir.path(), 1, None, &mut |_, _| ()).unwrap();
            // One that is linked is told from the true one by the next record alone.
            let of = if linked && forged_seq == 1 { open } else { before };
            let name = format!("{of:020}.seg");
            assert!(report.faults.iter().any(|fault| fault.contains(&name)), "{what}: {report:?}");
            assert_eq!(segments(dir.path()), firsts, "{what}");
        }
    }

    #[test]
    fn what_lies_where_a_segment_is_to_begin_is_set_aside_while_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = open(dir.path());
        append(&ledger, 1);
        let begun = segments(dir.path()).len();
        for next in 3..60 {
            fs::copy(path(dir.path(), 1), path(dir.path(), next)).unwrap();
        }
        append(&ledger, 60);
        assert!(segments(dir.path()).len() > begun);
        assert!(ledger.incidents().iter().all(|incident| incident.contains("set aside")));
        assert!(!ledger.incidents().is_empty());
        ledger.close();
        let (ledger, reports) = open(dir.path());
        assert!(reports.iter().all(|report| report.contains("its first record is seq 1")), "{reports:?}");
        append(&ledger, 1);
        assert_eq!(ledger.head().borrow().seq, 62);
        ledger.close();
        assert!(audit(dir.path(), 1, None, &mut |_, _| ()).unwrap().faults.is_empty());
    }

    #[test]
    fn a_misplaced_file_in_the_second_copy_does_not_stop_it() {
        let (dir, mirror) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let with_mirror = || {
            let mirror =
                Some(MirrorOptions { round: Duration::from_millis(5), ..MirrorOptions::at(mirror.path()) });
            let options = Options { segment_bytes: 2500, mirror, ..Options::default() };
            FileLedger::open(dir.path(), options).unwrap().0
        };
        let copied = |ledger: &FileLedger, seq: Seq| {
            while ledger.condition().mirror.unwrap().stored != Some(seq) {
                assert!(ledger.condition().mirror.unwrap().fault.is_none());
                std::thread::yield_now();
            }
        };
        let ledger = with_mirror();
        append(&ledger, 40);
        copied(&ledger, 40);
        ledger.close();
        drop(ledger);
        fs::copy(path(mirror.path(), 1), path(mirror.path(), 100)).unwrap();
        let ledger = with_mirror();
        append(&ledger, 1);
        copied(&ledger, 41);
        assert!(ledger.incidents().iter().any(|incident| incident.contains("set aside")));
        ledger.close();
        assert!(audit(mirror.path(), 1, None, &mut |_, _| ()).unwrap().faults.is_empty());
    }
}
