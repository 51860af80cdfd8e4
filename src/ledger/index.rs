//! The index on disk: the only file that names sled.
//!
//! A cache of what the segment files say. It may be lost, stale or damaged at any time: each value carries its own
//! check, whatever does not match is treated as absent, and the caller reads the segment file instead.

use std::{
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::summary::{Header, Place, Summary, pack_places, pack_sparse, unpack_places, unpack_sparse};
use crate::model::Seq;

/// Longest time sled may take to open: damage has been seen to make it hang.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// Memory for sled's pages, in bytes.
const CACHE_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes; 40 % less disk than with the default of 512 KiB.
const SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// Keys per batch: a thousand blew sled's memory up to gigabytes.
const BATCH_KEYS: usize = 500;
/// Bytes of the check behind each value.
const CHECK_BYTES: usize = 8;
/// How many set-aside directories are kept for a look; older ones are removed (they are only a cache).
const KEEP_DAMAGED: usize = 2;
/// Layout of keys and values; another one is set aside and rebuilt.
const LAYOUT: &str = "1";

/// The index is gone: the caller goes on without it.
#[derive(Debug, thiserror::Error)]
#[error("index: {0}")]
pub struct IndexError(pub(super) String);

/// A header and the meters that have readings in its segment.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// What stays in memory.
    pub header: Header,
    /// Sorted.
    pub meters: Vec<String>,
}

/// An index that is being opened, and what there is to report of it.
pub type Opening = mpsc::Receiver<(Option<Index>, Vec<String>)>;

/// An open index.
pub struct Index {
    db: sled::Db,
    file: PathBuf,
}

impl Index {
    /// Opens `<data_dir>/index`; what cannot be opened, or belongs to another ledger, is set aside and begun again.
    /// `None` when even a fresh one cannot be opened (disk full): everything works without, slower.
    pub fn open(data_dir: &Path, ledger: &str) -> (Option<Index>, Vec<String>) {
        let dir = data_dir.join("index");
        let mut reports = Vec::new();
        for _ in 0..2 {
            let reason = match open_limited(&dir).and_then(|index| index.claim(ledger).map(|()| index)) {
                Ok(index) => return (Some(index), reports),
                Err(reason) => reason,
            };
            match set_aside(data_dir) {
                Ok(to) => reports
                    .push(format!("{reason}; set aside as {} and built again from the ledger", to.display())),
                Err(error) => {
                    reports.push(format!("{reason}; going on without an index: {error}"));
                    return (None, reports);
                }
            }
        }
        (None, reports)
    }

    /// The same on a thread of its own: sled has been seen to hang. Who stops listening wastes nothing but the thread.
    pub fn begin(data_dir: &Path, ledger: &str) -> Opening {
        let (send, receive) = mpsc::channel();
        let (dir, id) = (data_dir.to_owned(), ledger.to_owned());
        let open = move || {
            let _ = send.send(Index::open(&dir, &id));
        };
        if let Err(error) = thread::Builder::new().name("index-begin".into()).spawn(open) {
            tracing::warn!(%error, "the index of the ledger cannot be opened: no thread for it; queries read the segments"); // then the sender is gone, and so is the hope
        }
        receive
    }

    fn claim(&self, ledger: &str) -> Result<(), IndexError> {
        let mine = format!("{LAYOUT} {ledger}");
        match self.get(b"id")? {
            Some(id) if id == mine.as_bytes() => Ok(()),
            Some(_) => Err(IndexError("belongs to another ledger or layout".into())),
            None if guarded(|| Ok(self.db.is_empty()))? => {
                self.put(vec![(b"id".to_vec(), mine.into_bytes())])
            }
            None => Err(IndexError("has lost its id".into())),
        }
    }

    /// What is kept of the segment `first`.
    pub fn entry(&self, first: Seq) -> Result<Option<Entry>, IndexError> {
        Ok(self.get(&key(b's', first, ""))?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// The sparse places of the segment `first`.
    pub fn sparse(&self, first: Seq) -> Result<Option<Vec<(Seq, u64)>>, IndexError> {
        Ok(self.get(&key(b'o', first, ""))?.and_then(|bytes| unpack_sparse(first, &bytes)))
    }

    /// The readings of one meter in the segment `first`.
    pub fn places(&self, first: Seq, meter: &str) -> Result<Option<Vec<Place>>, IndexError> {
        Ok(self.get(&key(b'm', first, meter))?.and_then(|bytes| unpack_places(first, &bytes)))
    }

    /// Keeps a sealed segment's summary. Its entry goes last: where it is, the rest is.
    pub fn store(&self, summary: &Summary) -> Result<(), IndexError> {
        let first = summary.header.first;
        let mut pairs: Vec<_> = summary
            .meters
            .iter()
            .map(|(meter, places)| (key(b'm', first, meter), pack_places(first, places)))
            .collect();
        pairs.push((key(b'o', first, ""), pack_sparse(first, &summary.sparse)));
        self.put(pairs)?;
        let entry =
            Entry { header: summary.header.clone(), meters: summary.meters.keys().cloned().collect() };
        let entry = serde_json::to_vec(&entry).map_err(|error| IndexError(error.to_string()))?;
        self.put(vec![(key(b's', first, ""), entry)])
    }

    /// Forgets a removed segment.
    pub fn forget(&self, first: Seq) -> Result<(), IndexError> {
        guarded(|| {
            for prefix in [b's', b'o', b'm'] {
                let keys: Vec<_> =
                    self.db.scan_prefix(key(prefix, first, "")).keys().collect::<Result<_, _>>()?;
                for part in keys.chunks(BATCH_KEYS) {
                    let mut batch = sled::Batch::default();
                    for key in part {
                        batch.remove(key);
                    }
                    self.db.apply_batch(batch)?;
                }
            }
            self.db.flush().map(drop)
        })
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let Some(bytes) = guarded(|| self.db.get(key))? else { return Ok(None) };
        Ok(bytes
            .split_last_chunk::<CHECK_BYTES>()
            .filter(|(value, sum)| check(key, value) == **sum)
            .map(|(value, _)| value.to_vec()))
    }

    fn put(&self, pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), IndexError> {
        let mut pairs = pairs.into_iter().peekable();
        while pairs.peek().is_some() {
            let mut batch = sled::Batch::default();
            for (key, mut value) in pairs.by_ref().take(BATCH_KEYS) {
                let sum = check(&key, &value);
                value.extend_from_slice(&sum);
                batch.insert(key, value);
            }
            guarded(|| {
                self.db.apply_batch(batch.clone())?;
                self.db.flush()?;
                // sled's own flush does not reach the disk.
                Ok(File::open(&self.file)?.sync_data()?)
            })?;
        }
        Ok(())
    }
}

/// sled panics on some damage; that is an error like any other here.
fn guarded<T>(act: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(result) => result.map_err(|error| IndexError(error.to_string())),
        Err(_) => Err(IndexError("sled panicked".into())),
    }
}

fn open_limited(dir: &Path) -> Result<Index, IndexError> {
    let (send, receive) = mpsc::channel();
    let path = dir.to_owned();
    let open = move || {
        let config = sled::Config::new()
            .path(&path)
            .cache_capacity(CACHE_BYTES)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None);
        // Nobody waits any more when the limit has passed.
        let _ = send.send(guarded(|| config.open()).map(|db| Index { db, file: path.join("db") }));
    };
    thread::Builder::new()
        .name("index-open".into())
        .spawn(open)
        .map_err(|error| IndexError(format!("cannot start a thread: {error}")))?;
    receive
        .recv_timeout(OPEN_LIMIT)
        .unwrap_or_else(|_| Err(IndexError(format!("did not open within {} s", OPEN_LIMIT.as_secs()))))
}

/// Moves the index directory out of the way.
pub fn set_aside(data_dir: &Path) -> std::io::Result<PathBuf> {
    let mut old: Vec<u64> = Vec::new();
    for entry in fs::read_dir(data_dir)? {
        let name = entry?.file_name();
        old.extend(
            name.to_str()
                .and_then(|name| name.strip_prefix("index.damaged-"))
                .and_then(|n| n.parse::<u64>().ok()),
        );
    }
    old.sort_unstable();
    let to = data_dir.join(format!("index.damaged-{}", old.last().map_or(1, |n| n + 1)));
    fs::rename(data_dir.join("index"), &to)?;
    for n in old.iter().rev().skip(KEEP_DAMAGED - 1) {
        fs::remove_dir_all(data_dir.join(format!("index.damaged-{n}")))?;
    }
    Ok(to)
}

fn key(kind: u8, first: Seq, meter: &str) -> Vec<u8> {
    [&[kind], first.to_be_bytes().as_slice(), meter.as_bytes()].concat()
}

fn check(key: &[u8], value: &[u8]) -> [u8; CHECK_BYTES] {
    let sum = digest(&SHA256, &[key, value].concat());
    sum.as_ref().first_chunk::<CHECK_BYTES>().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::chain::{Facts, ReadingFacts};

    fn summary() -> Summary {
        let mut summary = Summary::new(7);
        for seq in 7..700 {
            let meter = format!("E-{}", seq % 600);
            let reading = ReadingFacts { meter, at_ms: 900_000, missing: false };
            let facts = Facts { kind: "reading".into(), recorded_ms: 5, reading: Some(reading) };
            summary.add(seq, seq * 10, 10, "h", "p", &facts);
        }
        summary
    }

    #[test]
    fn what_was_stored_comes_back_after_reopening_and_can_be_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let summary = summary();
        let (index, reports) = Index::open(dir.path(), "a");
        assert!(reports.is_empty());
        index.unwrap().store(&summary).unwrap();
        let index = Index::open(dir.path(), "a").0.unwrap();
        assert_eq!(index.entry(7).unwrap().unwrap().header, summary.header);
        assert_eq!(index.places(7, "E-8").unwrap().unwrap(), summary.meters["E-8"]);
        assert_eq!(index.sparse(7).unwrap().unwrap(), summary.sparse);
        assert!(index.entry(8).unwrap().is_none());
        index.forget(7).unwrap();
        assert!(index.entry(7).unwrap().is_none() && index.places(7, "E-8").unwrap().is_none());
    }

    #[test]
    fn an_index_of_another_ledger_is_set_aside_and_old_ones_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        for ledger in ["a", "b", "c", "d", "e"] {
            let (index, reports) = Index::open(dir.path(), ledger);
            assert!(index.is_some());
            assert_eq!(reports.len(), usize::from(ledger != "a"), "{reports:?}");
        }
        let names = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 1 + KEEP_DAMAGED);
    }
}
