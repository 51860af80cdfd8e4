//! The ledger as a whole: against a model, across reopening, crashes and damage.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::TimeDelta;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    Cursor, FileLedger, Ledger, LedgerError, Line, MemoryLedger, Options, Pruned, ReadingQuery,
    audit::{Report, audit, audit_with, export},
    disk::sim::{Fault, SimDisk},
};
use crate::model::{ClockState, Draft, RecordType, Seq, Utc};

const SLOT_MS: i64 = 900_000;

fn at(slot: i64) -> Utc {
    Utc::from_timestamp_millis(1_790_000_000_000 + slot * SLOT_MS).unwrap()
}

fn reading(meter: &str, slot: i64, missing: bool) -> Draft {
    let Value::Object(fields) = json!({
        "meter": meter, "scheduled_at": crate::model::rfc3339(at(slot)), "origin": if missing { "missing" } else { "measured" },
        "values": {"energy_import_total": {"value": format!("{slot}.00"), "unit": "kWh"}},
    }) else {
        unreachable!()
    };
    Draft {
        kind: RecordType::Reading,
        recorded_at: at(slot),
        clock: ClockState::Synced,
        fields,
        reading: None,
    }
}

fn change(slot: i64) -> Draft {
    Draft::change("configuration", Map::new(), at(slot), ClockState::Synced)
}

fn small(segment_bytes: u64) -> Options {
    Options { segment_bytes, ..Options::default() }
}

fn open(dir: &Path, segment_bytes: u64) -> (Arc<FileLedger>, Vec<String>) {
    FileLedger::open(dir, small(segment_bytes)).unwrap()
}

fn append(ledger: &dyn Ledger, drafts: Vec<Draft>) -> Result<std::ops::Range<Seq>, LedgerError> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(ledger.append(drafts))
}

/// `count` records in appends of one: two meters in turn, now and then a change, `B` missing at times.
fn fill(ledger: &dyn Ledger, count: i64) {
    for i in 0..count {
        let draft = match i % 5 {
            4 => change(i),
            n if n % 2 == 0 => reading("A", i, false),
            _ => reading("B", i, i % 10 > 5),
        };
        append(ledger, vec![draft]).unwrap();
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir.join("ledger")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

fn all(ledger: &dyn Ledger) -> Vec<Line> {
    let mut lines = Vec::new();
    loop {
        let from = lines.last().map_or(ledger.first(), |line: &Line| line.seq + 1);
        let page = ledger.read(from, 7, 3000).unwrap();
        if page.is_empty() {
            return lines;
        }
        lines.extend(page);
    }
}

fn pages(ledger: &dyn Ledger, query: &ReadingQuery) -> Vec<Line> {
    let mut query = query.clone();
    let mut lines = Vec::new();
    loop {
        let page = ledger.readings(&query).unwrap();
        assert!(page.len() <= query.limit);
        let Some(last) = page.last() else { return lines };
        query.after = last.seq;
        lines.extend(page);
    }
}

fn queries() -> Vec<ReadingQuery> {
    let mut queries = Vec::new();
    for meter in [None, Some("A"), Some("B"), Some("C"), Some("nobody")] {
        for (from, to) in [(None, None), (Some(3), Some(17)), (Some(12), None), (None, Some(9))] {
            let meter = meter.map(|meter| meter.parse().unwrap());
            queries.push(ReadingQuery { meter, from: from.map(at), to: to.map(at), after: 0, limit: 3 });
        }
    }
    queries
}

fn assert_same(ledger: &dyn Ledger, model: &dyn Ledger) {
    assert_eq!(*ledger.head().borrow(), *model.head().borrow());
    assert_eq!(all(ledger), all(model));
    for query in queries() {
        assert_eq!(pages(ledger, &query), pages(model, &query), "{query:?}");
    }
    for meter in ["A", "B", "C", "nobody"] {
        let meter = meter.parse().unwrap();
        for (before, limit) in [(Seq::MAX, 1), (Seq::MAX, usize::MAX), (9, 4)] {
            let of = |ledger: &dyn Ledger| ledger.latest(&meter, before, limit).unwrap();
            assert_eq!(of(ledger), of(model), "{meter}");
        }
        assert_eq!(ledger.latest_slot(&meter), model.latest_slot(&meter), "{meter}");
    }
}

/// What a start reads to find the last reading of a meter that has been silent ever since.
#[test]
fn the_last_reading_of_a_silent_meter_costs_the_same_however_long_the_ledger_is() {
    let cost = |slots: i64| {
        let dir = tempfile::tempdir().unwrap();
        let disk = SimDisk::new(1);
        let options = || Options { disk: disk.mount(), ..small(20_000) };
        let (ledger, _) = FileLedger::open(dir.path(), options()).unwrap();
        append(&*ledger, vec![reading("B", 0, false), reading("never", 0, true)]).unwrap();
        for slot in 1..slots {
            let silent = ["B", "never"].map(|meter| reading(meter, slot, true));
            let others = (0..20).map(|n| reading(&format!("A-{n}"), slot, false));
            append(&*ledger, silent.into_iter().chain(others).collect()).unwrap();
        }
        ledger.close();
        drop(ledger);
        let (ledger, _) = FileLedger::open(dir.path(), options()).unwrap();
        let before = disk.bytes_read();
        let of = |meter: &str| ledger.latest(&meter.parse().unwrap(), Seq::MAX, 10).unwrap();
        let (b, never) = (of("B"), of("never"));
        assert_eq!(b.iter().map(|line| line.seq).collect::<Vec<_>>(), [1]);
        assert!(never.is_empty());
        let read = disk.bytes_read() - before;
        ledger.close();
        read
    };
    let (short, long) = (cost(30), cost(300));
    assert!(short > 0 && long <= short, "{long} bytes, and {short} in a tenth of it");
}

fn check(dir: &Path) -> Report {
    audit(dir, 1, None, &mut |done, total| assert!(done <= total)).unwrap()
}

#[test]
fn what_was_appended_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let model = MemoryLedger::new("m");
    let (ledger, reports) = open(dir.path(), 2000);
    assert!(reports.is_empty(), "{reports:?}");
    let id = ledger.id().to_owned();
    assert_eq!(*ledger.head().borrow(), *model.head().borrow());
    fill(&*ledger, 40);
    fill(&model, 40);
    assert_same(&*ledger, &model);
    assert!(segments(dir.path()).len() > 4);
    assert_eq!(append(&*ledger, vec![]).unwrap(), 41..41);
    assert_eq!(append(&*ledger, vec![change(1), change(2)]).unwrap(), 41..43);
    append(&model, vec![change(1), change(2)]).unwrap();
    ledger.close();
    assert!(matches!(append(&*ledger, vec![change(1)]), Err(LedgerError::Closed)));
    let (again, reports) = open(dir.path(), 2000);
    assert!(reports.is_empty(), "{reports:?}");
    assert_eq!(again.id(), id);
    assert_same(&*again, &model);
    let report = check(dir.path());
    assert_eq!((report.records, report.faults.len()), (42, 0));
    assert_eq!(report.head, *model.head().borrow());
    let mut exported = Vec::new();
    export(dir.path(), 5, Some(9), &mut exported).unwrap();
    let lines: Vec<&[u8]> = exported.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let expected = model.read(5, 5, usize::MAX).unwrap();
    assert_eq!(lines, expected.iter().map(|line| &line.bytes[..]).collect::<Vec<_>>());
}

#[test]
fn a_second_process_is_told_that_the_ledger_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = open(dir.path(), 2000);
    assert!(matches!(FileLedger::open(dir.path(), small(2000)), Err(LedgerError::Busy { .. })));
    ledger.close();
    assert!(FileLedger::open(dir.path(), small(2000)).is_ok());
}

#[test]
fn a_torn_end_is_cut_back_to_the_last_whole_record_wherever_it_tore() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = open(dir.path(), 1 << 20);
    // As the power cut finds it: an end in good order would have noted that four records were stored.
    let cursors = dir.path().join("ledger/cursors.json");
    let at_the_cut = fs::read(&cursors).unwrap();
    fill(&*ledger, 4);
    let lines = all(&*ledger);
    ledger.close();
    let path = segments(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let keep = whole.len() - lines[3].bytes.len() - 1;
    for cut in (keep..whole.len()).step_by(7).chain([whole.len() - 2, whole.len() - 1]) {
        fs::write(&path, &whole[..cut]).unwrap();
        fs::write(&cursors, &at_the_cut).unwrap();
        let (ledger, reports) = open(dir.path(), 1 << 20);
        let kept = if cut == whole.len() - 1 { 4 } else { 3 };
        assert_eq!(all(&*ledger), lines[..kept], "cut at {cut}");
        assert_eq!(reports.len(), usize::from(cut > keep), "{reports:?}");
        // It goes on where it ended.
        append(&*ledger, vec![change(9)]).unwrap();
        ledger.close();
        let report = check(dir.path());
        assert_eq!((report.records, report.faults), (kept as u64 + 1, vec![]));
        if cut > keep && kept == 3 {
            let torn = path.with_extension(format!("torn-{keep}"));
            assert!(fs::read(torn).unwrap().ends_with(&whole[keep..cut]), "what was cut is kept aside");
        }
    }
}

#[test]
fn a_damaged_line_in_the_middle_is_named_kept_and_not_served() {
    for segment_bytes in [1 << 20, 1500] {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = open(dir.path(), segment_bytes);
        fill(&*ledger, 12);
        let lines = all(&*ledger);
        ledger.close();
        let path = segments(dir.path()).remove(0);
        let mut bytes = fs::read(&path).unwrap();
        let offset = lines[0].bytes.len() + 1; // seq 2 is a reading of B
        bytes[offset + 20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        fs::remove_dir_all(dir.path().join("index")).unwrap();
        let (ledger, _) = open(dir.path(), segment_bytes);
        assert_eq!(ledger.read(1, 10, usize::MAX).unwrap(), lines[..1]);
        match ledger.read(2, 10, usize::MAX) {
            Err(LedgerError::Damaged { seq: 2, offset: at, .. }) => assert_eq!(at, offset as u64),
            other => panic!("{other:?}"),
        }
        assert_eq!(ledger.read(3, 100, usize::MAX).unwrap(), lines[2..]);
        for meter in [None, Some("B".parse().unwrap())] {
            let query = ReadingQuery { meter, limit: 100, ..ReadingQuery::default() };
            assert!(pages(&*ledger, &query).iter().all(|line| line.seq != 2));
        }
        assert!(ledger.incidents().iter().any(|i| i.contains("seq 2")), "{:?}", ledger.incidents());
        append(&*ledger, vec![change(1)]).unwrap();
        ledger.close();
        assert_eq!(fs::read(&path).unwrap()[..bytes.len()], bytes, "evidence stays as it is");
        let report = check(dir.path());
        assert_eq!((report.records, report.faults.len()), (12, 1), "{:?}", report.faults);
        assert!(report.faults[0].contains("seq 2"));
    }
}

#[test]
fn an_audit_notices_edited_removed_and_reordered_lines() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = open(dir.path(), 1500);
    fill(&*ledger, 14);
    ledger.close();
    assert_eq!(check(dir.path()).faults, Vec::<String>::new());
    let path = segments(dir.path()).remove(1);
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    assert!(lines.len() > 2);
    let edited = whole.replacen(".00", ".01", 1);
    let removed = lines[1..].join("\n") + "\n";
    let last_removed = lines[..lines.len() - 1].join("\n") + "\n";
    let reordered = [&[lines[1], lines[0]], &lines[2..]].concat().join("\n") + "\n";
    for bad in [edited, removed, last_removed, reordered] {
        fs::write(&path, bad).unwrap();
        assert!(!check(dir.path()).faults.is_empty());
    }
    // Edited and given a fitting hash: its successor still names the old one.
    let mut record: Map<String, Value> = serde_json::from_str(lines[0]).unwrap();
    record.remove("hash");
    record.insert("note".into(), "forged".into());
    let mut bytes = Vec::new();
    super::canonical::write_object(&mut bytes, &record).unwrap();
    record.insert("hash".into(), super::chain::sha256_hex(&bytes).into());
    bytes.clear();
    super::canonical::write_object(&mut bytes, &record).unwrap();
    fs::write(&path, whole.replacen(lines[0], std::str::from_utf8(&bytes).unwrap(), 1)).unwrap();
    assert!(check(dir.path()).faults.iter().any(|fault| fault.contains("as its predecessor")));
    // A whole file gone.
    fs::remove_file(&path).unwrap();
    assert!(!check(dir.path()).faults.is_empty());
}

#[test]
fn a_half_written_line_of_a_running_daemon_is_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = open(dir.path(), 1 << 20);
    fill(&*ledger, 3);
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(b"{\"change\":\"half");
    fs::write(&path, bytes).unwrap();
    let report = check(dir.path());
    assert_eq!((report.records, report.faults), (3, vec![]));
}

#[test]
fn cursors_and_sessions_survive_and_move_only_forward() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = open(dir.path(), 1 << 20);
    fill(&*ledger, 10);
    ledger.advance(Cursor::Acknowledged, 7);
    ledger.advance(Cursor::Acknowledged, 3);
    ledger.advance(Cursor::Confirmed, 99);
    assert_eq!((ledger.next_session(), ledger.next_session()), (1, 2));
    ledger.close();
    let (ledger, reports) = open(dir.path(), 1 << 20);
    assert!(reports.is_empty());
    assert_eq!((ledger.cursor(Cursor::Acknowledged), ledger.cursor(Cursor::Confirmed)), (7, 10));
    assert_eq!(ledger.next_session(), 3);
}

#[test]
fn cursors_reach_the_disk_without_closing() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = open(dir.path(), 1 << 20);
    fill(&*ledger, 5);
    ledger.advance(Cursor::Acknowledged, 4);
    let path = dir.path().join("ledger/cursors.json");
    let begun = std::time::Instant::now();
    while !fs::read_to_string(&path).is_ok_and(|text| text.contains("\"acknowledged\": 4")) {
        assert!(begun.elapsed() < Duration::from_secs(10), "never written");
        std::thread::yield_now();
    }
}

#[test]
fn a_lost_or_ruined_index_changes_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let model = MemoryLedger::new("m");
    let (ledger, _) = open(dir.path(), 1500);
    fill(&*ledger, 60);
    fill(&model, 60);
    append(&*ledger, vec![reading("C", 3, true)]).unwrap();
    append(&model, vec![reading("C", 3, true)]).unwrap();
    ledger.close();
    let index = dir.path().join("index");
    fs::remove_dir_all(&index).unwrap();
    let (ledger, reports) = open(dir.path(), 1500);
    assert!(reports.iter().any(|report| report.contains("indexed again")), "{reports:?}");
    assert_same(&*ledger, &model);
    ledger.close();
    for (name, content) in [("db", vec![0x5a; 9000]), ("conf", vec![0x5a; 64])] {
        fs::write(index.join(name), content).unwrap();
        let (ledger, reports) = open(dir.path(), 1500);
        assert!(name == "conf" || !reports.is_empty(), "a ruined database is not passed over");
        assert_same(&*ledger, &model);
        ledger.close();
    }
    // Flipped bytes in the middle: sled may open, panic or answer nonsense.
    let db = index.join("db");
    for round in 0..8_usize {
        let mut bytes = fs::read(&db).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        for i in 0..16 {
            bytes[(round * 7919 + i * 104_729) % (used + 1)] ^= 0x41;
        }
        fs::write(&db, bytes).unwrap();
        let (ledger, _) = open(dir.path(), 1500);
        assert_same(&*ledger, &model);
        ledger.close();
    }
}

#[test]
fn retention_removes_whole_old_segments_and_nothing_that_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = open(dir.path(), 1500);
    fill(&*ledger, 60);
    let lines = all(&*ledger);
    let before = segments(dir.path());
    assert!(ledger.prune(at(1000), TimeDelta::zero(), 0).unwrap().is_empty(), "nothing is acknowledged");
    assert!(ledger.prune(at(0), TimeDelta::zero(), 60).unwrap().is_empty(), "nothing is old enough");
    let pruned = ledger.prune(at(1000), TimeDelta::zero(), 30).unwrap();
    let last = pruned.last().unwrap().last;
    assert!(!pruned.is_empty() && last <= 30);
    assert_eq!(ledger.first(), last + 1);
    let left = usize::try_from(last).unwrap();
    assert_eq!(all(&*ledger), lines[left..]);
    assert_eq!(
        ledger.read(1, 1, 1).unwrap(),
        lines[left..=left],
        "a pruned position reads on with the next kept one"
    );
    assert_eq!(segments(dir.path()).len(), before.len() - pruned.len());
    assert_eq!(check(dir.path()).faults, Vec::<String>::new());
    ledger.close();
    // A crash between the note and the removal.
    let again = before[0].clone();
    fs::write(&again, format!("{}\n", std::str::from_utf8(&lines[0].bytes).unwrap())).unwrap();
    let (ledger, reports) = open(dir.path(), 1500);
    assert!(!again.exists() && reports.is_empty(), "{reports:?}");
    assert_eq!(all(&*ledger), lines[left..]);
    assert_eq!(append(&*ledger, vec![change(3)]).unwrap(), 61..62);
    // All that is sealed, while the latest readings stay known where they are still kept.
    ledger.prune(at(1000), TimeDelta::zero(), Seq::MAX).unwrap();
    assert_eq!(check(dir.path()).faults, Vec::<String>::new());
    let kept = all(&*ledger);
    let a = ledger.latest(&"A".parse().unwrap(), Seq::MAX, usize::MAX).unwrap();
    assert!(a.iter().all(|line| kept.contains(line)));
}

#[test]
fn after_a_power_cut_no_cursor_stands_before_what_retention_has_removed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(1);
    let options =
        || Options { disk: disk.mount(), cursor_interval: Duration::from_secs(3600), ..small(1500) };
    let (ledger, _) = FileLedger::open(dir.path(), options()).unwrap();
    fill(&*ledger, 60);
    ledger.advance(Cursor::Acknowledged, 40);
    let gone = ledger.prune(at(1000), TimeDelta::zero(), 40).unwrap().last().unwrap().last;
    disk.crash(1);
    drop(ledger);
    let (ledger, _) = FileLedger::open(dir.path(), options()).unwrap();
    assert!(ledger.cursor(Cursor::Acknowledged) >= gone, "{} of {gone}", ledger.cursor(Cursor::Acknowledged));
}

#[test]
fn retention_that_fails_half_way_says_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let sim = SimDisk::new(1);
    let disk = sim.mount();
    let (ledger, _) = FileLedger::open(dir.path(), Options { disk: disk.clone(), ..small(1500) }).unwrap();
    fill(&*ledger, 60);
    let lines = all(&*ledger);
    sim.inject(Fault::ReadOnly, 1);
    assert!(ledger.prune(at(1000), TimeDelta::zero(), 60).is_err(), "nothing was removed");
    assert_eq!(all(&*ledger), lines);
    let before = sim.changes();
    let mut removed = ledger.prune(at(1000), TimeDelta::zero(), 20).unwrap();
    let each = (sim.changes() - before) / removed.len() as u64;
    assert!(each > 3);
    sim.stop_after(each + each - 1);
    let more = ledger.prune(at(1000), TimeDelta::zero(), 40).unwrap();
    assert_eq!(more.len(), 2, "the second was noted, its file not removed for certain");
    assert!(ledger.incidents().iter().any(|incident| incident.contains("half way")));
    removed.extend(more);
    let (runs, last) = (Pruned::runs(&removed), removed.last().unwrap().last);
    assert_eq!(runs.len(), 1);
    let hash = format!("\"prev\":\"{}\"", runs[0].1.last_hash);
    let next = &lines[usize::try_from(last).unwrap()];
    assert!(
        std::str::from_utf8(&next.bytes).unwrap().contains(&hash),
        "the next record names the last removed one"
    );
    sim.crash(7);
    ledger.close();
    let disk = sim.mount();
    let (again, _) = FileLedger::open(dir.path(), Options { disk: disk.clone(), ..small(1500) }).unwrap();
    assert_eq!(again.first(), last + 1);
    assert_eq!(all(&*again), lines[usize::try_from(last).unwrap()..]);
    assert_eq!(
        audit_with(&*disk, dir.path(), 1, None, &mut |_, _| (), &mut |_, _| Ok(None)).unwrap().faults,
        Vec::<String>::new()
    );
}

#[test]
fn damage_and_billing_reads_keep_a_segment_from_retention() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = open(dir.path(), 1500);
    fill(&*ledger, 30);
    let lines = all(&*ledger);
    ledger.close();
    // A later version's billing read, in the second segment, chained as it should be.
    let paths = segments(dir.path());
    let text = fs::read_to_string(&paths[1]).unwrap();
    let mut prev: Option<String> = None;
    let mut out = Vec::new();
    for (path, only) in paths[1..].iter().map(|path| (path, *path == paths[1])) {
        out.clear();
        let text = if only { text.clone() } else { fs::read_to_string(path).unwrap() };
        for line in text.lines() {
            let mut record: Map<String, Value> = serde_json::from_str(line).unwrap();
            if let Some(prev) = &prev {
                record.insert("prev".into(), prev.clone().into());
            } else {
                record.insert("type".into(), "billing_read".into());
            }
            record.remove("hash");
            let mut bytes = Vec::new();
            super::canonical::write_object(&mut bytes, &record).unwrap();
            let hash = super::chain::sha256_hex(&bytes);
            record.insert("hash".into(), hash.clone().into());
            super::canonical::write_object(&mut out, &record).unwrap();
            out.push(b'\n');
            prev = Some(hash);
        }
        fs::write(path, &out).unwrap();
    }
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    assert_eq!(check(dir.path()).faults, Vec::<String>::new());
    let (ledger, _) = open(dir.path(), 1500);
    let pruned = ledger.prune(at(1000), TimeDelta::zero(), Seq::MAX).unwrap();
    assert!(paths[1].exists() && !paths[0].exists() && !paths[2].exists());
    assert!(pruned.len() >= 2);
    assert_eq!(check(dir.path()).faults, Vec::<String>::new(), "the chain is proved across both gaps");
    ledger.close();
    let (ledger, reports) = open(dir.path(), 1500);
    assert_eq!(reports, Vec::<String>::new());
    assert_eq!(ledger.head().borrow().seq, lines.len() as u64);
    assert_eq!(check(dir.path()).records, all_around_gaps(&*ledger));
}

/// Records counted by reading across pruned gaps.
fn all_around_gaps(ledger: &dyn Ledger) -> u64 {
    all(ledger).len() as u64
}

#[test]
fn a_failed_write_is_an_error_and_leaves_no_trace() {
    for fault in [Fault::NoSpace, Fault::Write, Fault::Sync, Fault::ReadOnly] {
        let dir = tempfile::tempdir().unwrap();
        let sim = SimDisk::new(1);
        let disk = sim.mount();
        let options = Options { disk: disk.clone(), ..small(1 << 20) };
        let (ledger, _) = FileLedger::open(dir.path(), options).unwrap();
        fill(&*ledger, 3);
        let lines = all(&*ledger);
        for times in [1, u32::MAX] {
            sim.inject(fault, times);
            assert!(matches!(append(&*ledger, vec![change(1)]), Err(LedgerError::Io { .. })), "{fault:?}");
            assert_eq!(all(&*ledger), lines);
        }
        sim.heal();
        assert_eq!(append(&*ledger, vec![change(2)]).unwrap(), 4..5);
        ledger.close();
        let report = audit_with(&*disk, dir.path(), 1, None, &mut |_, _| (), &mut |_, _| Ok(None)).unwrap();
        assert_eq!((report.records, report.faults), (4, vec![]), "{fault:?}");
    }
}

#[test]
fn one_refused_append_does_not_hurt_its_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = FileLedger::open(dir.path(), Options::default()).unwrap();
    let mut bad = change(2);
    bad.fields.insert("x".into(), json!(0.1));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (one, two, three) = runtime.block_on(async {
        tokio::join!(
            ledger.append(vec![change(1)]),
            ledger.append(vec![change(2), bad]),
            ledger.append(vec![change(3)])
        )
    });
    assert_eq!((one.unwrap(), three.unwrap()), (1..2, 2..3));
    assert!(matches!(two, Err(LedgerError::Refused(_))));
    assert_eq!(check(dir.path()).faults, Vec::<String>::new());
}

#[test]
fn an_answer_means_that_the_line_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = FileLedger::open(dir.path(), Options::default()).unwrap();
    let path = segments(dir.path()).remove(0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..150)
            .map(|i| {
                let (ledger, path) = (ledger.clone(), path.clone());
                tokio::spawn(async move {
                    let range = ledger.append(vec![reading("A", i, false)]).await.unwrap();
                    let text = fs::read_to_string(&path).unwrap();
                    assert!(text.contains(&format!("\"seq\":{},", range.start)));
                    assert!(ledger.head().borrow().seq >= range.start);
                    range.start
                })
            })
            .collect();
        let mut seen = Vec::new();
        for task in tasks {
            seen.push(task.await.unwrap());
        }
        seen.sort_unstable();
        assert_eq!(seen, (1..=150).collect::<Vec<_>>());
    });
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<(u8, i64, bool)>),
    Reopen,
    LoseIndex,
    TearEnd(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let record = (0_u8..4, 0_i64..25, any::<bool>());
    let step = prop_oneof![
        6 => prop::collection::vec(record, 1..6).prop_map(Step::Append),
        1 => Just(Step::Reopen),
        1 => Just(Step::LoseIndex),
        1 => (1_usize..300).prop_map(Step::TearEnd),
    ];
    prop::collection::vec(step, 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn it_answers_like_the_model_whatever_happens(steps in steps(), segment_bytes in prop::sample::select(vec![700_u64, 2500, 1 << 20])) {
        let dir = tempfile::tempdir().unwrap();
        let model = MemoryLedger::new("m");
        let mut ledger = open(dir.path(), segment_bytes).0;
        for step in steps {
            match step {
                Step::Append(records) => {
                    let drafts: Vec<Draft> = records.iter().map(|(meter, slot, missing)| match meter {
                        0 => change(*slot),
                        1 => reading("A", *slot, *missing),
                        2 => reading("B", *slot, *missing),
                        _ => reading("C", *slot, true),
                    }).collect();
                    prop_assert_eq!(append(&*ledger, drafts.clone()).unwrap(), append(&model, drafts).unwrap());
                }
                Step::Reopen => {
                    ledger.close();
                    ledger = open(dir.path(), segment_bytes).0;
                }
                Step::LoseIndex => {
                    ledger.close();
                    fs::remove_dir_all(dir.path().join("index")).unwrap();
                    ledger = open(dir.path(), segment_bytes).0;
                }
                Step::TearEnd(bytes) => {
                    // A batch that never got its answer, torn anywhere before its first line feed.
                    ledger.close();
                    let path = segments(dir.path()).pop().unwrap();
                    let mut text = fs::read(&path).unwrap();
                    text.extend(std::iter::repeat_n(b'{', bytes));
                    fs::write(&path, text).unwrap();
                    let (again, reports) = open(dir.path(), segment_bytes);
                    prop_assert!(reports.iter().any(|report| report.contains("torn end")));
                    ledger = again;
                }
            }
        }
        assert_same(&*ledger, &model);
        let report = check(dir.path());
        prop_assert_eq!((report.records, report.faults), (model.head().borrow().seq, vec![]));
    }
}
