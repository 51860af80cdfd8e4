//! Damage anywhere: named, kept, never served; and the ledger goes on, or another one begins and says so.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use fastrand::Rng;
use serde_json::{Map, Value, json};

use super::{
    super::{
        Cursor, Ledger, LedgerError, Line,
        disk::{Disk, sim::SimDisk},
        index::IndexError,
    },
    FileLedger, Options,
    shared::lock,
};
use crate::model::{ClockState, Draft, Seq, Utc};

const ROUNDS: u64 = 3000;
const RECORDS: u64 = 40;

fn change(number: u64) -> Draft {
    let at = Utc::from_timestamp_millis(1_790_000_000_000 + number.cast_signed() * 1000).unwrap();
    let fields = Map::from_iter([("note".to_owned(), json!(format!("record {number}")))]);
    Draft::change("test", fields, at, ClockState::Synced)
}

fn options(disk: Arc<dyn Disk>) -> Options {
    Options {
        segment_bytes: 2500,
        cursor_interval: Duration::ZERO,
        index_retry: Duration::from_millis(20),
        disk,
        ..Options::default()
    }
}

fn append(ledger: &FileLedger, count: u64) {
    for number in 0..count {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(ledger.append(vec![change(number)])).unwrap();
    }
}

fn contents(disk: &dyn Disk, dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = disk.list(dir).unwrap();
    entries
        .into_iter()
        .map(|entry| (entry.name.clone(), disk.read(&dir.join(&entry.name)).unwrap()))
        .collect()
}

/// Every record that can be had, one by one.
fn served(ledger: &FileLedger, to: Seq) -> BTreeMap<Seq, Result<Line, String>> {
    let read = |seq| match ledger.read(seq, 1, usize::MAX) {
        Ok(lines) => lines.into_iter().next().ok_or_else(|| "nothing".to_owned()),
        Err(LedgerError::Damaged { detail, .. }) => Err(detail),
        Err(other) => panic!("seq {seq}: {other}"),
    };
    (1..=to).map(|seq| (seq, read(seq))).collect()
}

#[test]
fn whatever_bit_flips_nothing_false_is_served_nothing_is_deleted_and_no_number_is_given_twice() {
    let (mut damaged, mut replaced) = (0, 0);
    for seed in 0..ROUNDS {
        let data_dir = Path::new("/dev/null/nowhere"); // no index can be made there: rounds are cheap
        let dir = data_dir.join("ledger");
        let (sim, mut rng) = (SimDisk::new(seed), Rng::with_seed(seed));
        let (ledger, _) = FileLedger::open(data_dir, options(sim.mount())).unwrap();
        append(&ledger, RECORDS);
        ledger.advance(Cursor::Acknowledged, RECORDS / 2);
        let (id, truth) = (ledger.id().to_owned(), served(&ledger, RECORDS));
        ledger.close();
        let disk = sim.mount();
        let before = contents(&*disk, &dir);
        let name = rng.choice(before.keys()).unwrap();
        for _ in 0..rng.u8(1..4) {
            sim.flip(&dir.join(name), rng.u64(..before[name].len() as u64 * 8));
        }
        let flipped = contents(&*disk, &dir);
        let (ledger, mut told) = FileLedger::open(data_dir, options(sim.mount())).unwrap();
        let now = served(&ledger, RECORDS);
        told.extend(ledger.incidents());
        told.retain(|told| !told.starts_with("index"));
        told.extend(now.values().filter_map(|line| line.as_ref().err().cloned()));
        if ledger.id() == id {
            for (seq, line) in &now {
                assert!(line.is_err() || *line == truth[seq], "seed {seed}: seq {seq} is served, and false");
            }
            assert_eq!(
                ledger.head().borrow().seq,
                RECORDS,
                "seed {seed} {name}: numbers would be given twice"
            );
        } else {
            replaced += 1;
            let first: Value = serde_json::from_slice(&now[&1].as_ref().unwrap().bytes).unwrap();
            assert_eq!(first["change"], "ledger_replaced", "seed {seed}");
            if name != "ledger.json" || flipped[name].windows(32).any(|part| part == id.as_bytes()) {
                assert_eq!(first["old_ledger"], id.as_str(), "seed {seed}: {first}");
            }
        }
        if flipped != before {
            damaged += 1;
            assert!(!told.is_empty(), "seed {seed}: {name} is damaged and nobody was told");
        }
        append(&ledger, 1);
        ledger.close();
        // Whatever was there, the damaged bytes too, is still there: in its place, set aside, or as a torn end.
        let after = contents(&*sim.mount(), &dir);
        for (name, content) in flipped.iter().filter(|(name, _)| name.strip_suffix(".seg").is_some()) {
            let aside = after.iter().any(|(other, bytes)| {
                let torn = after
                    .iter()
                    .find(|(torn, _)| torn.starts_with(&other.replace(".seg", ".torn-")))
                    .map_or(&[][..], |(_, bytes)| bytes);
                other.ends_with(name.as_str())
                    && (bytes.starts_with(content)
                        || [&bytes[..bytes.len().min(content.len() - torn.len())], torn].concat() == *content)
            });
            assert!(aside, "seed {seed}: {name} is no longer there; {:?}", after.keys());
        }
    }
    assert!(damaged > ROUNDS / 2 && replaced > 100, "{damaged} damaged, {replaced} replaced");
}

#[test]
fn an_index_that_fails_at_work_is_built_again_meanwhile() {
    let temp = tempfile::tempdir().unwrap();
    let sim = SimDisk::new(1);
    let (ledger, _) = FileLedger::open(temp.path(), options(sim.mount())).unwrap();
    append(&ledger, RECORDS);
    let failed: Option<()> = ledger.shared.with_index(|_| Err(IndexError("no".into())));
    assert!(failed.is_none() && lock(&ledger.shared.index).is_none());
    append(&ledger, RECORDS); // goes on without
    let deadline = Instant::now() + Duration::from_secs(20);
    let sealed: Vec<_> = ledger.shared.state().sealed.values().cloned().collect();
    assert!(sealed.len() > 5);
    let whole = || {
        sealed
            .iter()
            .all(|sealed| ledger.shared.with_index(|index| index.entry(sealed.first)).flatten().is_some())
    };
    while !whole() {
        assert!(Instant::now() < deadline, "{:?}", ledger.incidents());
        std::thread::yield_now();
    }
    assert!(ledger.incidents().iter().any(|told| told.contains("set aside as")), "{:?}", ledger.incidents());
}
