//! What the readers, the writer and the indexer of a ledger share: the segments, the index, the marks, the incidents.
//!
//! Knows how a summary is found again (memory, index, file, in this order); does not know who asks, nor how a ledger is
//! opened or written.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::super::{
    Condition, Head, LedgerError, Refusal,
    disk::{Disk, Identity},
    index::{self, Index, IndexError, Opening},
    meta::{Cursors, Meta},
    recent::Recent,
    segments,
    summary::{Header, Place, Summary},
};
use crate::model::Seq;

/// Summaries of sealed segments kept in memory (each a few MiB): a page of readings and the next one use the same.
const KEPT_SUMMARIES: usize = 2;
/// How often whoever waits for the index looks whether the ledger is being closed.
const LOOK_UP: Duration = Duration::from_millis(100);
/// Free bytes below which a full disk is not tried again: two of the usual pages.
const TRY_AGAIN: u64 = 8192;
/// Incidents remembered for the console.
pub const MAX_INCIDENTS: usize = 200;

/// A segment that is no longer written to.
pub struct Sealed {
    pub first: Seq,
    pub last: Seq,
    pub path: PathBuf,
    pub bytes: u64,
    pub known: OnceLock<Known>,
}

impl Sealed {
    /// Whether an entry of the index is of this file as it is now.
    pub fn is_of(&self, header: &Header) -> bool {
        (header.first, header.bytes) == (self.first, self.bytes)
            && (header.last == self.last || !header.damage.is_empty())
            && header.witnessed_ms.is_some()
    }
}

/// What is kept in memory of a sealed segment.
pub struct Known {
    pub header: Header,
    /// Numbers of the meters with readings in it, sorted.
    pub meters: Vec<u32>,
}

/// The latest readings of a meter.
#[derive(Debug, Clone, Copy)]
pub struct Latest {
    pub slot_ms: i64,
    pub good: Good,
}

/// The latest reading that is not missing: its segment.
#[derive(Debug, Clone, Copy)]
pub enum Good {
    Unknown,
    None,
    At(Seq),
}

/// What readers and the writer share.
pub struct State {
    pub sealed: BTreeMap<Seq, Arc<Sealed>>,
    pub open: Summary,
    pub open_path: PathBuf,
    pub head: Head,
    pub latest: HashMap<String, Latest>,
    pub names: HashMap<String, u32>,
}

impl State {
    pub fn number(&mut self, meter: &str) -> u32 {
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
        let good = if place.missing { None } else { Some(Good::At(first)) };
        if let Some(latest) = self.latest.get_mut(meter) {
            latest.slot_ms = place.at_ms;
            latest.good = good.unwrap_or(latest.good);
        } else {
            let latest = Latest { slot_ms: place.at_ms, good: good.unwrap_or(Good::Unknown) };
            self.latest.insert(meter.to_owned(), latest);
        }
    }
}

pub struct Marks {
    pub cursors: Cursors,
    pub dirty: bool,
}

/// The parts that outlive a borrow of the ledger: the threads hold them too.
pub struct Shared {
    pub disk: Arc<dyn Disk>,
    pub data_dir: PathBuf,
    pub dir: PathBuf,
    pub id: String,
    pub state: RwLock<State>,
    pub marks: Mutex<Marks>,
    pub marks_file: Mutex<()>,
    pub meta: Mutex<Meta>,
    pub index: Mutex<Option<Index>>,
    pub cache: Mutex<VecDeque<Arc<Summary>>>,
    pub recent: Mutex<Recent>,
    pub incidents: Mutex<Vec<String>>,
    pub stopping: AtomicBool,
    pub reserve_bytes: u64,
    /// Since when nothing is stored, and why.
    pub trouble: Mutex<Option<(Instant, String)>>,
    /// Since when the writer is at a batch.
    pub busy: Mutex<Option<Instant>>,
    /// The file that is appended to, and which it is.
    pub open_file: Mutex<(PathBuf, Identity)>,
    /// What was taken away from under the ledger.
    pub missing: Mutex<Option<String>>,
    /// Why another ledger has to begin in its place.
    pub ended: Mutex<Option<String>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the operator, once.
    pub fn report(&self, incident: String) {
        let mut incidents = lock(&self.incidents);
        if incidents.contains(&incident) {
            return;
        }
        tracing::warn!(dir = %self.dir.display(), "the ledger: {incident}");
        if incidents.len() < MAX_INCIDENTS {
            incidents.push(incident);
        }
    }

    /// Refuses while the disk has no more than its reserve. Once refused, an eighth more is wanted: not on and off with
    /// each record that just fits.
    pub fn room(&self) -> Result<(), LedgerError> {
        let reserve = self.reserve_bytes;
        let refused = lock(&self.trouble).is_some();
        let wanted = if refused { reserve.saturating_add((reserve / 8).max(TRY_AGAIN)) } else { reserve };
        match self.disk.free_bytes(&self.dir) {
            Ok(free) if free < wanted => {
                Err(LedgerError::Full { path: self.dir.display().to_string(), free, reserve })
            }
            _ => Ok(()), // a disk that does not say is asked by writing
        }
    }

    /// An append failed. The operator is told at the first one.
    pub fn refused(&self, error: &LedgerError) {
        let mut trouble = lock(&self.trouble);
        let reason = error.to_string();
        if let Some((_, now)) = trouble.as_mut() {
            *now = reason;
            return;
        }
        *trouble = Some((Instant::now(), reason));
        drop(trouble);
        tracing::error!(%error, "nothing can be stored in the ledger: what is read waits, first in the queue, then on its bus");
        let mut incidents = lock(&self.incidents);
        let incident = format!("nothing could be stored: {error}");
        if incidents.len() < MAX_INCIDENTS && !incidents.contains(&incident) {
            incidents.push(incident);
        }
    }

    /// An append succeeded.
    pub fn stored(&self) {
        if let Some((since, _)) = lock(&self.trouble).take() {
            tracing::info!(after_secs = since.elapsed().as_secs(), "records are stored again");
        }
    }

    pub fn condition(&self) -> Condition {
        let refusing = lock(&self.trouble)
            .as_ref()
            .map(|(since, reason)| Refusal { reason: reason.clone(), lasting: since.elapsed() });
        let state = self.state();
        let bytes = state.sealed.values().map(|sealed| sealed.bytes).sum::<u64>() + state.open.header.bytes;
        drop(state);
        Condition {
            refusing,
            missing: self.present().err().map(|error| error.to_string()),
            ended: lock(&self.ended).clone(),
            busy_for: lock(&self.busy).map(|since| since.elapsed()),
            free_bytes: self.disk.free_bytes(&self.dir).ok(),
            reserve_bytes: self.reserve_bytes,
            bytes,
            incidents: lock(&self.incidents).clone(),
            mirror: None, // it is not its own
        }
    }

    /// Has the end of the ledger written beside the cursors when it has moved on. How far it stood behind.
    pub fn note_stored(&self) -> u64 {
        let mut marks = lock(&self.marks);
        let behind = self.state().head.seq.saturating_sub(marks.cursors.stored);
        marks.dirty |= behind > 0;
        behind
    }

    /// Writes the cursors when they have moved.
    pub fn flush_cursors(&self) -> Result<(), LedgerError> {
        let _one_at_a_time = lock(&self.marks_file);
        self.present()?; // beside a ledger that is away they would look like a whole one
        let cursors = {
            let mut marks = lock(&self.marks);
            if !marks.dirty {
                return Ok(());
            }
            marks.dirty = false;
            // Under the same lock as the cursors: they never stand beyond it.
            marks.cursors.stored = self.state().head.seq;
            marks.cursors
        };
        cursors.store(&*self.disk, &self.dir, &self.id).inspect_err(|_| lock(&self.marks).dirty = true)
    }

    /// Asks the index; a failing one is closed and set aside, which is never fatal.
    pub fn with_index<T>(&self, act: impl FnOnce(&Index) -> Result<T, IndexError>) -> Option<T> {
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
                self.report(format!("{error}; {aside}; queries read the segments until it is built again"));
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
        let summary =
            segments::scan_sealed(&*self.disk, &sealed.path, sealed.first, sealed.last, sealed.bytes)?;
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
    pub fn header<'a>(&self, sealed: &'a Sealed) -> Result<Option<&'a Known>, LedgerError> {
        if sealed.known.get().is_none() {
            let summary = self.summary(sealed)?;
            self.learn(sealed, &summary);
        }
        Ok(sealed.known.get())
    }

    /// The readings of one meter in one sealed segment.
    pub fn places(&self, sealed: &Sealed, meter: &str) -> Result<Vec<Place>, LedgerError> {
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

    pub fn sparse_offset(&self, sealed: &Sealed, seq: Seq) -> Result<u64, LedgerError> {
        if let Some(summary) = self.kept(sealed.first) {
            return Ok(Summary::offset_before(&summary.sparse, seq));
        }
        if let Some(sparse) = self.with_index(|index| index.sparse(sealed.first)).flatten() {
            return Ok(Summary::offset_before(&sparse, seq));
        }
        Ok(Summary::offset_before(&self.summary(sealed)?.sparse, seq))
    }

    /// Keeps the index: waits for one that opens late, builds again what is missing or lost, newest first, and stores what
    /// is sealed from now on. Runs on its own thread, until all senders are gone.
    pub fn keep_index(&self, late: Option<Opening>, handed: &mpsc::Receiver<Arc<Summary>>, retry: Duration) {
        if let Some(opening) = late {
            self.install(&opening);
        }
        self.index_missing(handed);
        loop {
            match handed.recv_timeout(retry) {
                Ok(summary) => drop(self.with_index(|index| index.store(&summary))),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if lock(&self.index).is_none() {
                        self.install(&Index::begin(&self.data_dir, &self.id));
                        self.index_missing(handed);
                    }
                }
            }
        }
    }

    fn install(&self, opening: &Opening) {
        while !self.stopping.load(Ordering::SeqCst) {
            match opening.recv_timeout(LOOK_UP) {
                Ok((index, told)) => {
                    if index.is_some() {
                        tracing::info!("the index is open");
                    }
                    *lock(&self.index) = index;
                    for incident in told {
                        self.report(incident);
                    }
                    return;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Brings the index up to date with the segments, newest first.
    fn index_missing(&self, handed: &mpsc::Receiver<Arc<Summary>>) {
        let sealed: Vec<Arc<Sealed>> = self.state().sealed.values().cloned().collect();
        for sealed in sealed.iter().rev() {
            while let Ok(summary) = handed.try_recv() {
                self.with_index(|index| index.store(&summary));
            }
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            if !self.state().sealed.contains_key(&sealed.first) {
                continue; // pruned meanwhile
            }
            let entry = self.with_index(|index| index.entry(sealed.first)).flatten();
            let indexed = entry.is_some_and(|entry| sealed.is_of(&entry.header));
            if !indexed && let Err(error) = self.index_again(sealed) {
                self.report(format!("indexing: {error}"));
            }
        }
    }

    fn index_again(&self, sealed: &Sealed) -> Result<(), LedgerError> {
        match self.kept(sealed.first) {
            Some(summary) => drop(self.with_index(|index| index.store(&summary))),
            None if sealed.known.get().is_some() && lock(&self.index).is_none() => {} // nothing to gain
            None => drop(self.summary(sealed)?),
        }
        Ok(())
    }
}
