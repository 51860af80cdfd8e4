//! The ledger on disk: one writer, many readers, the index beside it.
//!
//! The segment files are the truth. What the index knows is only ever a quicker way to the same line, and each line
//! is verified again when it is read.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, oneshot, watch};

use super::{
    Cursor, Head, Ledger, LedgerError, Line, ReadingQuery,
    chain::verify_line,
    files::{io_error, sync_dir},
    index::{self, Index, IndexError},
    meta::{Cursors, Meta, Pruned},
    segments::{self, Appender, lines_from, segment_path},
    summary::{Header, Place, Summary},
    writer::{Job, Message, Writer},
};
use crate::model::{Draft, GENESIS, MeterId, Seq, Utc};

/// Appends that may wait for the writer; the next one waits outside.
const QUEUE: usize = 1024;
/// Drafts of one append: one batch stays far below a segment.
const MAX_DRAFTS: usize = 1000;
/// Summaries of sealed segments kept in memory (each a few MiB): a page of readings and the next one use the same.
const KEPT_SUMMARIES: usize = 2;
/// Incidents remembered for the console.
const MAX_INCIDENTS: usize = 200;

/// What may differ in tests.
#[derive(Debug, Clone)]
pub struct Options {
    /// A segment is sealed when it has grown to so many bytes.
    pub segment_bytes: u64,
    /// How long the first append of a batch waits for company.
    pub group_wait: Duration,
    /// Records at which a batch waits no longer.
    pub group_records: usize,
    /// Cursors are written at most this often.
    pub cursor_interval: Duration,
    /// The time written as `created` into a new ledger.
    pub now: Utc,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 32 * 1024 * 1024, // a day of 700 meters at 15 minutes; scanned in about a second
            group_wait: Duration::from_millis(50), // one sync per batch: flash wears by syncs, not by bytes
            group_records: 100,
            cursor_interval: Duration::from_millis(200),
            now: chrono::DateTime::UNIX_EPOCH,
        }
    }
}

/// A segment that is no longer written to.
pub(super) struct Sealed {
    pub first: Seq,
    pub last: Seq,
    pub path: PathBuf,
    pub bytes: u64,
    pub known: OnceLock<Known>,
}

/// What is kept in memory of a sealed segment.
pub(super) struct Known {
    pub header: Header,
    /// Numbers of the meters with readings in it, sorted.
    pub meters: Vec<u32>,
}

/// The latest readings of a meter.
#[derive(Debug, Clone, Copy)]
struct Latest {
    slot_ms: i64,
    good: Good,
}

/// The latest reading that is not missing: segment and place.
#[derive(Debug, Clone, Copy)]
enum Good {
    Unknown,
    None,
    At(Seq, Place),
}

/// What readers and the writer share.
pub(super) struct State {
    pub sealed: BTreeMap<Seq, Arc<Sealed>>,
    pub open: Summary,
    pub open_path: PathBuf,
    pub head: Head,
    latest: HashMap<String, Latest>,
    names: HashMap<String, u32>,
}

impl State {
    fn number(&mut self, meter: &str) -> u32 {
        let next = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        *self.names.entry(meter.to_owned()).or_insert(next)
    }

    pub fn known(&mut self, header: Header, meters: impl Iterator<Item = impl AsRef<str>>) -> Known {
        let mut meters: Vec<u32> = meters.map(|meter| self.number(meter.as_ref())).collect();
        meters.sort_unstable();
        Known { header, meters }
    }

    /// Notes that `place`, in the segment `first`, is now the latest reading of `meter`.
    pub fn note_latest(&mut self, meter: &str, first: Seq, place: Place) {
        let good = if place.missing { None } else { Some(Good::At(first, place)) };
        if let Some(latest) = self.latest.get_mut(meter) {
            latest.slot_ms = place.at_ms;
            latest.good = good.unwrap_or(latest.good);
        } else {
            let latest = Latest { slot_ms: place.at_ms, good: good.unwrap_or(Good::Unknown) };
            self.latest.insert(meter.to_owned(), latest);
        }
    }
}

pub(super) struct Marks {
    pub cursors: Cursors,
    pub dirty: bool,
}

/// The parts that outlive a borrow of the ledger: the threads hold them too.
pub(super) struct Shared {
    pub data_dir: PathBuf,
    pub dir: PathBuf,
    pub id: String,
    pub state: RwLock<State>,
    pub marks: Mutex<Marks>,
    marks_file: Mutex<()>,
    meta: Mutex<Meta>,
    index: Mutex<Option<Index>>,
    cache: Mutex<VecDeque<Arc<Summary>>>,
    incidents: Mutex<Vec<String>>,
    stopping: AtomicBool,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn report(&self, incident: String) {
        tracing::warn!(error = %incident, "ledger");
        let mut incidents = lock(&self.incidents);
        if incidents.len() < MAX_INCIDENTS && !incidents.contains(&incident) {
            incidents.push(incident);
        }
    }

    /// Writes the cursors when they have moved.
    pub fn flush_cursors(&self) -> Result<(), LedgerError> {
        let _one_at_a_time = lock(&self.marks_file);
        let cursors = {
            let mut marks = lock(&self.marks);
            if !marks.dirty {
                return Ok(());
            }
            marks.dirty = false;
            marks.cursors
        };
        cursors.store(&self.dir, &self.id).inspect_err(|_| lock(&self.marks).dirty = true)
    }

    /// Asks the index; a failing one is closed and set aside, which is never fatal.
    fn with_index<T>(&self, act: impl FnOnce(&Index) -> Result<T, IndexError>) -> Option<T> {
        let mut index = lock(&self.index);
        match act(index.as_ref()?) {
            Ok(value) => Some(value),
            Err(error) => {
                *index = None;
                let aside = match index::set_aside(&self.data_dir) {
                    Ok(to) => format!("set aside as {}", to.display()),
                    Err(error) => format!("could not be set aside: {error}"),
                };
                drop(index);
                self.report(format!("{error}; {aside}; queries read the segments until the next start"));
                None
            }
        }
    }

    pub fn keep(&self, summary: Arc<Summary>) {
        let mut cache = lock(&self.cache);
        cache.push_front(summary);
        cache.truncate(KEPT_SUMMARIES);
    }

    fn kept(&self, first: Seq) -> Option<Arc<Summary>> {
        lock(&self.cache).iter().find(|summary| summary.header.first == first).cloned()
    }

    /// The whole summary of a sealed segment: from memory, or by reading the file (and then it is in the index).
    fn summary(&self, sealed: &Sealed) -> Result<Arc<Summary>, LedgerError> {
        if let Some(summary) = self.kept(sealed.first) {
            return Ok(summary);
        }
        let summary = segments::scan_sealed(&sealed.path, sealed.first, sealed.last, sealed.bytes)?;
        for damage in &summary.header.damage {
            self.report(damage.clone());
        }
        let summary = Arc::new(summary);
        self.keep(summary.clone());
        self.with_index(|index| index.store(&summary));
        self.learn(sealed, &summary);
        Ok(summary)
    }

    /// Keeps the small part of a summary in memory.
    fn learn(&self, sealed: &Sealed, summary: &Summary) {
        if sealed.known.get().is_none() {
            let known = self.state_mut().known(summary.header.clone(), summary.meters.keys());
            let _ = sealed.known.set(known); // another thread may have been quicker, with the same
        }
    }

    /// Makes sure that the small part is known.
    fn header<'a>(&self, sealed: &'a Sealed) -> Result<Option<&'a Known>, LedgerError> {
        if sealed.known.get().is_none() {
            let summary = self.summary(sealed)?;
            self.learn(sealed, &summary);
        }
        Ok(sealed.known.get())
    }

    /// The readings of one meter in one sealed segment.
    fn places(&self, sealed: &Sealed, meter: &str) -> Result<Vec<Place>, LedgerError> {
        let number = self.state().names.get(meter).copied();
        if let Some(known) = self.header(sealed)? {
            // A number given since then is not in `meters`, and neither is the meter.
            if number.is_none_or(|number| known.meters.binary_search(&number).is_err())
                && (number.is_some() || !self.state().names.contains_key(meter))
            {
                return Ok(Vec::new());
            }
        }
        if let Some(summary) = self.kept(sealed.first) {
            return Ok(summary.meters.get(meter).cloned().unwrap_or_default());
        }
        if let Some(places) = self.with_index(|index| index.places(sealed.first, meter)).flatten() {
            return Ok(places);
        }
        Ok(self.summary(sealed)?.meters.get(meter).cloned().unwrap_or_default())
    }

    fn sparse_offset(&self, sealed: &Sealed, seq: Seq) -> Result<u64, LedgerError> {
        if let Some(summary) = self.kept(sealed.first) {
            return Ok(Summary::offset_before(&summary.sparse, seq));
        }
        if let Some(sparse) = self.with_index(|index| index.sparse(sealed.first)).flatten() {
            return Ok(Summary::offset_before(&sparse, seq));
        }
        Ok(Summary::offset_before(&self.summary(sealed)?.sparse, seq))
    }

    /// Brings the index up to date with the segments, newest first. Runs on its own thread.
    fn index_missing(&self, sealed: &[Arc<Sealed>], handed: &mpsc::Receiver<Arc<Summary>>) {
        let store_handed = |summary: &Summary| {
            self.with_index(|index| index.store(summary));
        };
        for sealed in sealed.iter().rev().filter(|sealed| sealed.known.get().is_none()) {
            while let Ok(summary) = handed.try_recv() {
                store_handed(&summary);
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let present = self.state().sealed.contains_key(&sealed.first);
            if present && let Err(error) = self.header(sealed) {
                self.report(format!("indexing: {error}"));
            }
        }
        while let Ok(summary) = handed.recv() {
            store_handed(&summary);
        }
    }
}

/// Where a page is read from.
struct Source {
    first: Seq,
    last: Seq,
    path: PathBuf,
    bytes: u64,
    sealed: Option<Arc<Sealed>>,
}

/// The ledger in a data directory.
pub struct FileLedger {
    shared: Arc<Shared>,
    head: watch::Receiver<Head>,
    queue: Arc<Semaphore>,
    sender: Mutex<Option<mpsc::Sender<Message>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock_file: File,
    #[cfg(test)]
    fail_writes: Arc<AtomicBool>,
}

impl FileLedger {
    /// Opens (or creates) the ledger of `data_dir`: verifies the open segment, cuts back a torn end, starts the writer.
    /// Blocks. The reports are for the operator: what was cut, what is damaged, what is being built again.
    pub fn open(data_dir: &Path, options: Options) -> Result<(Arc<FileLedger>, Vec<String>), LedgerError> {
        let dir = data_dir.join("ledger");
        fs::create_dir_all(&dir).map_err(io_error(&dir))?;
        let lock_file = take_lock(data_dir)?;
        let mut reports = Vec::new();
        let meta = load_meta(&dir, options.now)?;
        let files = finish_pruning(&dir, &meta)?;
        let (mut state, appender) = open_segments(&dir, &meta, &files, &mut reports)?;
        let marks = load_cursors(&dir, &meta.id, &state.head, &mut reports);

        let (index, index_reports) = Index::open(data_dir, &meta.id);
        reports.extend(index_reports);
        if let Some(index) = &index {
            recall(index, &mut state, &mut reports);
        }
        let sealed: Vec<Arc<Sealed>> = state.sealed.values().cloned().collect();
        let (head_sender, head) = watch::channel(state.head.clone());
        let shared = Arc::new(Shared {
            data_dir: data_dir.to_owned(),
            dir,
            id: meta.id.clone(),
            state: RwLock::new(state),
            marks: Mutex::new(marks),
            marks_file: Mutex::new(()),
            meta: Mutex::new(meta),
            index: Mutex::new(index),
            cache: Mutex::default(),
            incidents: Mutex::new(reports.iter().take(MAX_INCIDENTS).cloned().collect()),
            stopping: AtomicBool::new(false),
        });

        #[cfg(test)]
        let fail_writes = appender.fail.clone();
        let (sender, receiver) = mpsc::channel();
        let (hand, handed) = mpsc::channel();
        let writer = Writer::new(shared.clone(), appender, head_sender, hand, options);
        let indexer = shared.clone();
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(run).map_err(io_error(data_dir))
        };
        let threads = vec![
            start("ledger-writer", Box::new(move || writer.run(&receiver)))?,
            start("ledger-index", Box::new(move || indexer.index_missing(&sealed, &handed)))?,
        ];
        let ledger = FileLedger {
            shared,
            head,
            queue: Arc::new(Semaphore::new(QUEUE)),
            sender: Mutex::new(Some(sender)),
            threads: Mutex::new(threads),
            lock_file,
            #[cfg(test)]
            fail_writes,
        };
        Ok((Arc::new(ledger), reports))
    }

    /// Finishes what was queued, writes the cursors and lets go of the directory. Blocks; a second call does nothing.
    pub fn close(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        drop(lock(&self.sender).take());
        let threads = std::mem::take(&mut *lock(&self.threads));
        if threads.is_empty() {
            return;
        }
        for thread in threads {
            if thread.join().is_err() {
                self.shared.report("a ledger thread panicked".into());
            }
        }
        if let Err(error) = self.shared.flush_cursors() {
            self.shared.report(format!("cursors were not written: {error}"));
        }
        drop(lock(&self.shared.index).take());
        // Closing the file would let go as well; an error here means that it already has.
        let _ = self.lock_file.unlock();
    }

    /// What went wrong since the start, for the console: damage, lost index, cursors that begin again.
    pub fn incidents(&self) -> Vec<String> {
        lock(&self.shared.incidents).clone()
    }

    /// Bytes of all segment files.
    pub fn bytes(&self) -> u64 {
        let state = self.shared.state();
        state.sealed.values().map(|sealed| sealed.bytes).sum::<u64>() + state.open.header.bytes
    }

    /// Retention: removes whole sealed segments whose records are all older than `before` and not beyond `keep_after`
    /// (the least cursor that still needs them). One that holds a billing read, a handover or damage stays. Blocks.
    pub fn prune(&self, before: Utc, keep_after: Seq) -> Result<Vec<Pruned>, LedgerError> {
        let mut meta = lock(&self.shared.meta);
        let mut removed = Vec::new();
        let candidates: Vec<Arc<Sealed>> = self.shared.state().sealed.values().cloned().collect();
        for sealed in candidates.iter().take_while(|sealed| sealed.last <= keep_after) {
            let Some(known) = self.shared.header(sealed)? else { continue };
            let header = &known.header;
            if header.is_protected() || header.count == 0 || header.recorded_ms >= before.timestamp_millis() {
                continue;
            }
            let range = Pruned {
                first: sealed.first,
                last: sealed.last,
                prev_hash: header.prev_hash.clone(),
                last_hash: header.last_hash.clone(),
            };
            // Noted first: after a crash in between, the file is removed at the next start.
            let mut next = meta.clone();
            next.note(range.clone());
            next.store(&self.shared.dir)?;
            *meta = next;
            {
                let mut state = self.shared.state_mut();
                state.sealed.remove(&sealed.first);
                for latest in state.latest.values_mut() {
                    if matches!(latest.good, Good::At(first, _) if first == sealed.first) {
                        latest.good = Good::Unknown; // an older segment may have been kept
                    }
                }
            }
            fs::remove_file(&sealed.path).map_err(io_error(&sealed.path))?;
            sync_dir(&self.shared.dir)?;
            self.shared.with_index(|index| index.forget(sealed.first));
            removed.push(range);
        }
        Ok(removed)
    }

    /// The segment that holds `seq` or, when that was pruned, the next one that is kept.
    fn source(&self, seq: Seq) -> Option<Source> {
        let state = self.shared.state();
        let before = state.sealed.range(..=seq).next_back().filter(|(_, sealed)| sealed.last >= seq);
        if let Some((_, sealed)) = before.or_else(|| state.sealed.range(seq..).next()) {
            return Some(Source {
                first: sealed.first,
                last: sealed.last,
                path: sealed.path.clone(),
                bytes: sealed.bytes,
                sealed: Some(sealed.clone()),
            });
        }
        let header = &state.open.header;
        (seq <= header.last).then(|| Source {
            first: header.first,
            last: header.last,
            path: state.open_path.clone(),
            bytes: header.bytes,
            sealed: None,
        })
    }

    fn offset(&self, source: &Source, seq: Seq) -> Result<u64, LedgerError> {
        if let Some(sealed) = &source.sealed {
            return self.shared.sparse_offset(sealed, seq);
        }
        let state = self.shared.state();
        // It may have been sealed since: then from its beginning, once.
        let same = state.open.header.first == source.first;
        Ok(if same { Summary::offset_before(&state.open.sparse, seq) } else { 0 })
    }

    fn places(&self, source: &Source, meter: &str) -> Result<Vec<Place>, LedgerError> {
        if source.sealed.is_none() {
            let state = self.shared.state();
            if state.open.header.first == source.first {
                return Ok(state.open.meters.get(meter).cloned().unwrap_or_default());
            }
        }
        let sealed = self.shared.state().sealed.get(&source.first).cloned();
        sealed.map_or_else(|| Ok(Vec::new()), |sealed| self.shared.places(&sealed, meter))
    }

    /// One page of the readings of one segment.
    fn readings_of(
        &self,
        source: &Source,
        query: &ReadingQuery,
        page: &mut Vec<Line>,
    ) -> Result<(), LedgerError> {
        let (from, to) = (query.from.map(ceil_ms), query.to.map(ceil_ms));
        let wanted = |at_ms: i64| from.is_none_or(|from| at_ms >= from) && to.is_none_or(|to| at_ms < to);
        if let Some(known) = source.sealed.as_ref().and_then(|sealed| sealed.known.get()) {
            let (min, max) = (known.header.min_ms, known.header.max_ms);
            if max < min || from.is_some_and(|from| max < from) || to.is_some_and(|to| min >= to) {
                return Ok(());
            }
        }
        if let Some(meter) = &query.meter {
            let places = self.places(source, meter.as_str())?;
            let begin = places.partition_point(|place| place.seq <= query.after);
            for place in places.iter().skip(begin).filter(|place| wanted(place.at_ms)) {
                if page.len() >= query.limit {
                    return Ok(());
                }
                match read_place(&source.path, *place) {
                    Ok(line) => page.push(line),
                    Err(LedgerError::Damaged { detail, .. }) => {
                        self.shared.report(format!(
                            "ledger {}: seq {}: {detail}",
                            source.path.display(),
                            place.seq
                        ));
                    }
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        }
        let offset = self.offset(source, query.after + 1)?;
        let mut lines = lines_from(&source.path, offset, source.bytes)?;
        while page.len() < query.limit && lines.next_chunk().map_err(io_error(&source.path))?.is_some() {
            let Ok(verified) = verify_line(lines.bytes()) else { continue }; // reported when it was indexed
            let in_place = verified.seq > query.after && (source.first..=source.last).contains(&verified.seq);
            let in_order = page.last().is_none_or(|line| line.seq < verified.seq);
            if in_place && in_order && verified.facts.reading.is_some_and(|reading| wanted(reading.at_ms)) {
                page.push(Line { seq: verified.seq, bytes: Bytes::copy_from_slice(lines.bytes()) });
            }
        }
        Ok(())
    }

    /// Walks the segments from the newest for what memory does not know of a meter.
    fn find_latest(&self, meter: &str) -> Result<Option<Latest>, LedgerError> {
        let (known, open_first, sealed) = {
            let state = self.shared.state();
            let known = state.latest.get(meter).copied();
            let sealed: Vec<Arc<Sealed>> = state.sealed.values().rev().cloned().collect();
            (known, state.open.header.first, sealed)
        };
        if let Some(Latest { good: Good::None | Good::At(..), .. }) = known {
            return Ok(known);
        }
        let mut found = known;
        for sealed in sealed.iter().filter(|sealed| sealed.first < open_first) {
            let places = self.shared.places(sealed, meter)?;
            let Some(newest) = places.last() else { continue };
            let latest = found.get_or_insert(Latest { slot_ms: newest.at_ms, good: Good::Unknown });
            if let Some(place) = places.iter().rev().find(|place| !place.missing) {
                latest.good = Good::At(sealed.first, *place);
                break;
            }
        }
        if let Some(latest) = &mut found {
            if matches!(latest.good, Good::Unknown) {
                latest.good = Good::None;
            }
            let mut state = self.shared.state_mut();
            // What was appended meanwhile is newer than what was found, and pruning removes what it has taken.
            let kept = match latest.good {
                Good::At(first, _) => state.sealed.contains_key(&first),
                _ => true,
            };
            match state.latest.get_mut(meter) {
                Some(now) if matches!(now.good, Good::Unknown) && kept => now.good = latest.good,
                None if kept => drop(state.latest.insert(meter.to_owned(), *latest)),
                _ => {}
            }
        }
        Ok(found)
    }

    #[cfg(test)]
    pub(super) fn fail_writes(&self, fail: bool) {
        self.fail_writes.store(fail, Ordering::SeqCst);
    }
}

impl Drop for FileLedger {
    fn drop(&mut self) {
        self.close();
    }
}

impl Ledger for FileLedger {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn append(&self, drafts: Vec<Draft>) -> BoxFuture<'_, Result<Range<Seq>, LedgerError>> {
        Box::pin(async move {
            if drafts.len() > MAX_DRAFTS {
                let detail = format!("{} drafts at once; expected at most {MAX_DRAFTS}", drafts.len());
                return Err(LedgerError::Refused(detail));
            }
            let permit = self.queue.clone().acquire_owned().await.map_err(|_| LedgerError::Closed)?;
            let (reply, answer) = oneshot::channel();
            let job = Job { drafts, reply, permit };
            match lock(&self.sender).as_ref() {
                Some(sender) => sender.send(Message::Append(job)).map_err(|_| LedgerError::Closed)?,
                None => return Err(LedgerError::Closed),
            }
            answer.await.map_err(|_| LedgerError::Closed)?
        })
    }

    fn head(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }

    fn first(&self) -> Seq {
        let state = self.shared.state();
        state.sealed.keys().next().copied().unwrap_or(state.open.header.first)
    }

    fn read(&self, from: Seq, max_records: usize, max_bytes: usize) -> Result<Vec<Line>, LedgerError> {
        let (mut page, mut bytes, mut next) = (Vec::new(), 0, from.max(1));
        while page.len() < max_records {
            let Some(source) = self.source(next) else { break };
            if source.first > next {
                if !page.is_empty() {
                    break; // what lies between was pruned
                }
                next = source.first;
            }
            let offset = self.offset(&source, next)?;
            let mut lines = lines_from(&source.path, offset, source.bytes)?;
            let mut bad: Option<(u64, String)> = None;
            while let Some(chunk) = lines.next_chunk().map_err(io_error(&source.path))? {
                let verified = match verify_line(lines.bytes()) {
                    Ok(verified) if verified.seq < next => continue,
                    Ok(verified) if verified.seq == next => verified,
                    Ok(verified) => {
                        bad.get_or_insert((
                            chunk.offset,
                            format!("seq {} stands in its place", verified.seq),
                        ));
                        break;
                    }
                    Err(detail) => {
                        bad.get_or_insert((chunk.offset, detail));
                        continue;
                    }
                };
                bytes += lines.bytes().len();
                if page.len() >= max_records || (bytes > max_bytes && !page.is_empty()) {
                    return Ok(page);
                }
                page.push(Line { seq: verified.seq, bytes: Bytes::copy_from_slice(lines.bytes()) });
                next += 1;
                bad = None;
            }
            if next <= source.last {
                if page.is_empty() {
                    let (offset, detail) =
                        bad.unwrap_or((source.bytes, "the record is not in its segment".into()));
                    return Err(LedgerError::Damaged {
                        path: source.path.display().to_string(),
                        offset,
                        seq: next,
                        detail,
                    });
                }
                break;
            }
        }
        Ok(page)
    }

    fn latest(&self, meter: &MeterId) -> Result<Option<Line>, LedgerError> {
        let Some(Latest { good: Good::At(first, place), .. }) = self.find_latest(meter.as_str())? else {
            return Ok(None);
        };
        match read_place(&segment_path(&self.shared.dir, first), place) {
            Ok(line) => Ok(Some(line)),
            // Pruned between finding and reading: then there is none any more, older ones went before it.
            Err(_) if !self.shared.state().sealed.contains_key(&first) && self.first() > place.seq => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn latest_slot(&self, meter: &MeterId) -> Option<Utc> {
        let known = self.shared.state().latest.get(meter.as_str()).copied();
        let latest = match known {
            Some(latest) => Some(latest),
            None => self.find_latest(meter.as_str()).unwrap_or_else(|error| {
                self.shared.report(format!("latest slot of {meter}: {error}"));
                None
            }),
        };
        latest.and_then(|latest| Utc::from_timestamp_millis(latest.slot_ms))
    }

    fn readings(&self, query: &ReadingQuery) -> Result<Vec<Line>, LedgerError> {
        let mut page = Vec::new();
        let mut next = query.after.saturating_add(1);
        while page.len() < query.limit {
            let Some(source) = self.source(next) else { break };
            self.readings_of(&source, query, &mut page)?;
            next = source.last.saturating_add(1);
        }
        Ok(page)
    }

    fn cursor(&self, cursor: Cursor) -> Seq {
        let marks = lock(&self.shared.marks);
        match cursor {
            Cursor::Acknowledged => marks.cursors.acknowledged,
            Cursor::Confirmed => marks.cursors.confirmed,
        }
    }

    fn advance(&self, cursor: Cursor, to: Seq) {
        let to = to.min(self.head.borrow().seq);
        let was_clean = {
            let mut marks = lock(&self.shared.marks);
            let mark = match cursor {
                Cursor::Acknowledged => &mut marks.cursors.acknowledged,
                Cursor::Confirmed => &mut marks.cursors.confirmed,
            };
            if to <= *mark {
                return;
            }
            *mark = to;
            !std::mem::replace(&mut marks.dirty, true)
        };
        if was_clean && let Some(sender) = lock(&self.sender).as_ref() {
            let _ = sender.send(Message::CursorsMoved); // a stopped writer: `close` writes them
        }
    }

    fn next_session(&self) -> u64 {
        let session = {
            let mut marks = lock(&self.shared.marks);
            marks.cursors.session += 1;
            marks.dirty = true;
            marks.cursors.session
        };
        // At once: a session number that was used must not be used again.
        if let Err(error) = self.shared.flush_cursors() {
            self.shared.report(format!("session {session} was not written: {error}"));
        }
        session
    }
}

/// Reads and verifies the line at a place that the index named.
fn read_place(path: &Path, place: Place) -> Result<Line, LedgerError> {
    let damaged = |detail: String| LedgerError::Damaged {
        path: path.display().to_string(),
        offset: place.offset,
        seq: place.seq,
        detail,
    };
    let mut lines = lines_from(path, place.offset, u64::MAX)?;
    if lines.next_chunk().map_err(io_error(path))?.is_none() {
        return Err(damaged("the file ends before it".into()));
    }
    let verified = verify_line(lines.bytes()).map_err(damaged)?;
    if verified.seq != place.seq {
        return Err(damaged(format!("seq {} stands in its place", verified.seq)));
    }
    Ok(Line { seq: place.seq, bytes: Bytes::copy_from_slice(lines.bytes()) })
}

/// Slots are kept in ms: of two moments in one ms the later one begins with the next.
fn ceil_ms(at: Utc) -> i64 {
    at.timestamp_millis() + i64::from(!at.timestamp_subsec_nanos().is_multiple_of(1_000_000))
}

fn take_lock(data_dir: &Path) -> Result<File, LedgerError> {
    let path = data_dir.join("lock");
    let file =
        File::options().create(true).truncate(false).write(true).open(&path).map_err(io_error(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(LedgerError::Busy { path: data_dir.display().to_string() }),
        Err(fs::TryLockError::Error(error)) => Err(io_error(&path)(error)),
    }
}

fn load_meta(dir: &Path, now: Utc) -> Result<Meta, LedgerError> {
    if let Some(meta) = Meta::load(dir)? {
        return Ok(meta);
    }
    if !segments::list(dir)?.is_empty() {
        let detail = "it is missing, but there are segments\n  hint: restore it from a backup";
        return Err(io_error(&dir.join("ledger.json"))(io::Error::other(detail)));
    }
    let meta = Meta::create(now)?;
    // First the cursors: a ledger without them is one that has lost them.
    Cursors::default().store(dir, &meta.id)?;
    meta.store(dir)?;
    Ok(meta)
}

/// Removes the files of ranges that were noted as pruned before a crash; returns the files that are left.
fn finish_pruning(dir: &Path, meta: &Meta) -> Result<Vec<(Seq, u64)>, LedgerError> {
    let mut files = segments::list(dir)?;
    for (first, _) in files.extract_if(.., |(first, _)| meta.pruned_at(*first).is_some()) {
        let path = segment_path(dir, first);
        fs::remove_file(&path).map_err(io_error(&path))?;
    }
    Ok(files)
}

/// Builds the list of sealed segments and scans the open one.
fn open_segments(
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
    let prev = hash_before(meta, &sealed, first, reports)?;
    let path = segment_path(dir, first);
    let (open, good) = if files.is_empty() {
        (Summary::new(first), 0)
    } else {
        scan_open(dir, first, bytes, prev.clone(), reports)?
    };
    let appender = Appender::open(dir, first, good)?;
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
    match segments::last_hash(&segment.path, segment.bytes)? {
        Some((seq, hash)) if seq == before => Ok(Some(hash)),
        _ => {
            reports.push(format!(
                "ledger {}: its last record, seq {before}, is damaged",
                segment.path.display()
            ));
            let summary = segments::scan_sealed(&segment.path, segment.first, segment.last, segment.bytes)?;
            Ok(Some(summary.header.last_hash).filter(|hash| !hash.is_empty()))
        }
    }
}

/// Scans the open segment and cuts back what a power cut left behind its last whole record.
fn scan_open(
    dir: &Path,
    first: Seq,
    bytes: u64,
    prev: Option<String>,
    reports: &mut Vec<String>,
) -> Result<(Summary, u64), LedgerError> {
    let path = segment_path(dir, first);
    let scan = segments::scan(&path, first, Seq::MAX, bytes, prev)?;
    let segments::Scan { mut summary, mut good, unterminated, tail } = scan;
    reports.extend(summary.header.damage.iter().cloned());
    if tail > 0 {
        let copy = segments::cut_tail(dir, first, good)?;
        reports.push(format!(
            "ledger {}: torn end: {tail} bytes behind seq {} were no record and were cut off at byte {good} (kept as {})",
            path.display(),
            summary.header.last,
            copy.display()
        ));
    }
    if unterminated {
        // The record is whole, only its line feed did not reach the disk.
        Appender::open(dir, first, good)?.append(b"\n")?;
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

fn load_cursors(dir: &Path, id: &str, head: &Head, reports: &mut Vec<String>) -> Marks {
    let mut cursors = match Cursors::load(dir, id) {
        Ok(cursors) => cursors,
        Err(reason) => {
            reports.push(format!("{reason}; everything that is kept will be sent again"));
            Cursors::default()
        }
    };
    for (name, cursor) in [("acknowledged", &mut cursors.acknowledged), ("confirmed", &mut cursors.confirmed)]
    {
        if *cursor > head.seq {
            reports.push(format!(
                "cursors: {name} up to seq {cursor}, but the ledger ends at seq {}: records that were sent are lost\n  \
                 hint: restore the ledger from a backup, or begin a new one: these seq would be given twice",
                head.seq
            ));
            *cursor = head.seq;
        }
    }
    Marks { cursors, dirty: false }
}

/// Takes from the index what it knows of the segments that are here.
fn recall(index: &Index, state: &mut State, reports: &mut Vec<String>) {
    let mut missing = 0;
    for sealed in state.sealed.values().cloned().collect::<Vec<_>>() {
        let entry = index.entry(sealed.first).ok().flatten();
        match entry.filter(|entry| {
            let header = &entry.header;
            (header.first, header.bytes) == (sealed.first, sealed.bytes)
                && (header.last == sealed.last || !header.damage.is_empty())
        }) {
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
