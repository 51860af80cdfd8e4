//! The ledger: durable appends against a bare loop of write and fdatasync; bytes per record; opening again.
//!
//! The bare loop writes the same bytes, in the same groups, to a file in the same directory, in turns with the
//! ledger, so that both see the same disk.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use meter_gateway::{
    bus::readings,
    clock::SystemClock,
    ledger::{FileLedger, Ledger, Options, SharedLedger},
    model::{Draft, Seq},
    pipeline,
};
use tempfile::TempDir;

use crate::{
    samples,
    table::{self, millis, quotient, rate, ratio},
};

/// Groups that the ledger, then the bare loop, writes before the other has its turn.
const TURN: usize = 10;
/// The most drafts that the ledger takes at once.
const MOST_DRAFTS: usize = 1000;
/// Records of one commit by the pipeline.
const BATCH: usize = 100;

pub async fn run(quick: bool) {
    let budget = Duration::from_millis(if quick { 100 } else { 2000 });
    let mut rows = Vec::new();
    for kind in samples::KINDS {
        for size in [1, 10, 100] {
            rows.push(appends(kind, size, budget).await);
        }
        rows.push(whole_way(kind, budget).await);
    }
    let columns = [
        "records, in groups of",
        "records/s",
        "bare records/s",
        "ratio",
        "bytes/record",
        "bare flush ms",
        "beyond it us/record",
    ];
    table::print("Ledger: durable records / write + fdatasync of the same bytes", &columns, &rows);

    let mut rows = Vec::new();
    // Two ages of the same ledger: whether opening takes longer with the years.
    for (kind, count) in [("eastron-sdm630", 20_000), ("xintai-water", 100_000), ("xintai-water", 400_000)] {
        rows.push(reopened(kind, if quick { count / 20 } else { count }).await);
    }
    let columns = [
        "records",
        "count",
        "MB on disk",
        "open ms",
        "open ms per 100k",
        "without index ms",
        "one append ms",
    ];
    table::print(
        "Ledger: opening again (the open segment is verified), and the wait of a single append",
        &columns,
        &rows,
    );
}

/// On the disk of the build, not in a /tmp that may be memory.
fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Without the wait for company: what is measured is the work and the flush, not a pause that is meant.
fn at_once() -> Options {
    Options { ..Options::default() }
}

fn open(dir: &Path, options: Options) -> Arc<FileLedger> {
    let (ledger, incidents) = FileLedger::open(dir, options).unwrap();
    assert!(incidents.is_empty(), "{incidents:?}");
    ledger
}

/// The stored bytes of these records, line feeds included, in groups.
fn stored(ledger: &FileLedger, from: Seq, to: Seq, group: usize) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    let mut next = from;
    while next <= to {
        let page = ledger.read(next, usize::try_from(to - next + 1).unwrap(), 1 << 20).unwrap();
        next = page.last().unwrap().seq + 1;
        lines.extend(page);
    }
    let bytes = |lines: &[meter_gateway::ledger::Line]| {
        lines.iter().flat_map(|line| line.bytes.iter().copied().chain([b'\n'])).collect()
    };
    lines.chunks(group).map(bytes).collect()
}

/// What writing and flushing each group takes.
fn bare(file: &mut File, groups: &[Vec<u8>]) -> Duration {
    let began = Instant::now();
    for group in groups {
        file.write_all(group).unwrap();
        file.sync_data().unwrap();
    }
    began.elapsed()
}

/// Turns of the ledger and of the bare loop, each over the same groups.
#[derive(Default)]
struct Turns {
    ours: Vec<Duration>,
    bare: Vec<Duration>,
    records: u64,
    bytes: u64,
    groups: u32,
}

impl Turns {
    /// Lets the bare loop write what the ledger has just stored in `took`.
    fn note(&mut self, took: Duration, ledger: &FileLedger, first: Seq, group: usize, file: &mut File) {
        let last = ledger.head().borrow().seq;
        let same = stored(ledger, first, last, group);
        self.ours.push(took);
        self.bare.push(bare(file, &same));
        self.records += last - first + 1;
        self.bytes += same.iter().map(|group| group.len() as u64).sum::<u64>();
        self.groups += u32::try_from(same.len()).unwrap();
    }

    fn spent(&self) -> Duration {
        self.ours.iter().chain(&self.bare).sum()
    }

    /// By the median turn: a disk that others use as well has turns that say nothing.
    fn row(mut self, name: String) -> Vec<String> {
        let median = |turns: &mut Vec<Duration>| {
            turns.sort_unstable();
            turns[turns.len() / 2]
        };
        let (ours, bare) = (median(&mut self.ours), median(&mut self.bare));
        let turns = u64::try_from(self.ours.len()).unwrap();
        let records = self.records / turns;
        let groups = self.groups / u32::try_from(turns).unwrap();
        let beyond = ours.saturating_sub(bare) / u32::try_from(records).unwrap();
        vec![
            name,
            rate(records, ours).to_string(),
            rate(records, bare).to_string(),
            ratio(bare, ours),
            (self.bytes / self.records).to_string(),
            millis(bare / groups),
            beyond.as_micros().to_string(),
        ]
    }
}

async fn appends(kind: &str, size: usize, budget: Duration) -> Vec<String> {
    let dir = directory();
    let ledger = open(dir.path(), at_once());
    let mut file = File::create(dir.path().join("bare")).unwrap();
    let template = samples::drafts(kind, size);
    let mut turns = Turns::default();
    while turns.spent() < budget {
        let turn: Vec<Vec<Draft>> = (0..TURN).map(|_| template.clone()).collect();
        let first = ledger.head().borrow().seq + 1;
        let began = Instant::now();
        for drafts in turn {
            ledger.append(drafts).await.unwrap();
        }
        turns.note(began.elapsed(), &ledger, first, size, &mut file);
    }
    ledger.close();
    turns.row(format!("{kind}, {size}"))
}

/// A backlog of readings through the corridor as the daemon runs it, its options included.
async fn whole_way(kind: &str, budget: Duration) -> Vec<String> {
    let dir = directory();
    let ledger = open(dir.path(), Options::default());
    let mut file = File::create(dir.path().join("bare")).unwrap();
    let template = samples::readings(kind, TURN * BATCH);
    let mut turns = Turns::default();
    while turns.spent() < budget {
        let (sender, queue) = readings::readings();
        for reading in template.iter().cloned() {
            let room = sender.room(&reading, true).await.unwrap();
            sender.send(reading, room);
        }
        drop(sender);
        let first = ledger.head().borrow().seq + 1;
        let shared: SharedLedger = Arc::clone(&ledger) as _;
        let began = Instant::now();
        pipeline::write(queue, shared, Arc::new(SystemClock::new())).await;
        turns.note(began.elapsed(), &ledger, first, BATCH, &mut file);
    }
    ledger.close();
    turns.row(format!("{kind}, queued readings"))
}

async fn reopened(kind: &str, count: usize) -> Vec<String> {
    let dir = directory();
    let ledger = open(dir.path(), at_once());
    let template = samples::drafts(kind, MOST_DRAFTS);
    for _ in 0..count / MOST_DRAFTS {
        ledger.append(template.clone()).await.unwrap();
    }
    ledger.close();
    drop(ledger);
    let bytes: u64 = fs::read_dir(dir.path().join("ledger"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();

    let began = Instant::now();
    let ledger = open(dir.path(), Options::default());
    let with_index = began.elapsed();
    let began = Instant::now();
    ledger.append(template[..1].to_vec()).await.unwrap();
    let one = began.elapsed();
    ledger.close();
    drop(ledger);

    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let began = Instant::now();
    let (ledger, _tells_of_the_lost_index) = FileLedger::open(dir.path(), Options::default()).unwrap();
    let without_index = began.elapsed();
    ledger.close();
    vec![
        kind.to_owned(),
        count.to_string(),
        quotient(bytes.into(), 1_000_000),
        millis(with_index),
        millis(with_index * 100_000 / u32::try_from(count).unwrap()),
        millis(without_index),
        millis(one),
    ]
}
