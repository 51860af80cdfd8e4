//! The ledger on disk: one writer, many readers, the index beside it.
//!
//! The segment files are the truth. What the index knows is only ever a quicker way to the same line, and each line
//! is verified again when it is read. Here it is opened, appended to and closed; `opening` makes the state out of
//! files, `shared` is what the threads share, `query` reads, `retention` removes.

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod end_tests;
mod opening;
mod presence;
mod query;
mod replacing;
mod retention;
mod shared;

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, oneshot, watch};

use super::{
    Condition, Cursor, Head, Ledger, LedgerError, Line, ReadingQuery,
    disk::{Disk, Lock, RealDisk},
    files::io_error,
    index::Index,
    meta::Cursors,
    mirror::{self, Mirror},
    segments::segment_path,
    writer::{Job, Message, Writer},
};
use crate::model::{ClockState, Draft, MeterId, Seq, Utc};

use opening::{load_cursors, load_meta, open_segments, recall, settle_files, take_lock};
use presence::Places;
pub(super) use presence::is_at;
pub(super) use replacing::{replace as begin_again, replaced_ids};
use shared::{MAX_INCIDENTS, Marks};
pub(super) use shared::{Sealed, Shared, lock};

/// Appends that may wait for the writer; the next one waits outside.
const QUEUE: usize = 1024;
/// Drafts of one append: one batch stays far below a segment.
const MAX_DRAFTS: usize = 1000;

/// How long a start waits for the index: with it the last readings are found at once, without it by reading a segment.
const INDEX_PATIENCE: Duration = Duration::from_secs(5);

/// What may differ in tests.
#[derive(Debug, Clone)]
pub struct Options {
    /// A segment is sealed when it has grown to so many bytes.
    pub segment_bytes: u64,
    /// Cursors are written at most this often.
    pub cursor_interval: Duration,
    /// Free bytes that are left to cursors, index and repair: below, nothing is appended.
    pub reserve_bytes: u64,
    /// Whether a ledger that cannot go on is set aside for a new one. Who only wants to read gets the reason instead.
    pub may_replace: bool,
    /// How long after it was lost the index is built again.
    pub index_retry: Duration,
    /// The time written as `created` into a new ledger.
    pub now: Utc,
    /// Whether `now` can be trusted.
    pub clock: ClockState,
    /// Where the segments and what belongs to them are; the index is always on the real disk.
    pub disk: Arc<dyn Disk>,
    /// A second copy elsewhere, if one is wanted.
    pub mirror: Option<mirror::Options>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 32 * 1024 * 1024, // a day of 700 meters at 15 minutes; scanned in about a second
            cursor_interval: Duration::from_millis(800), // within the second that is promised; each is a file and two syncs
            may_replace: true,
            index_retry: Duration::from_secs(30), // what broke it once (a full disk) may take a moment to pass
            reserve_bytes: 0,                     // the daemon's is configured
            now: chrono::DateTime::UNIX_EPOCH,
            clock: ClockState::Unsynced,
            disk: Arc::new(RealDisk),
            mirror: None,
        }
    }
}

/// The ledger in a data directory.
pub struct FileLedger {
    shared: Arc<Shared>,
    head: watch::Receiver<Head>,
    queue: Arc<Semaphore>,
    sender: Mutex<Option<mpsc::Sender<Message>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn Lock>>>,
    mirror: Option<Mirror>,
}

impl FileLedger {
    /// Opens (or creates) the ledger of `data_dir`: verifies the open segment, cuts back a torn end, starts the writer.
    /// Blocks. The reports are for the operator: what was cut, what is damaged, what is being built again.
    pub fn open(
        data_dir: &Path,
        mut options: Options,
    ) -> Result<(Arc<FileLedger>, Vec<String>), LedgerError> {
        let dir = data_dir.join("ledger");
        let disk = options.disk.clone();
        disk.create_dirs(&dir).map_err(io_error(&dir))?;
        let lock_file = take_lock(&*disk, data_dir)?;
        let mut reports = Vec::new();
        let when = options.may_replace.then_some((options.now, options.clock));
        let mut meta = load_meta(&*disk, &dir, options.now, when, &mut reports)?;
        let files = settle_files(&*disk, &dir, &meta, when.is_some(), &mut reports)?;
        let (mut state, mut appender) = open_segments(&disk, &dir, &meta, &files, &mut reports)?;
        let cursors = match load_cursors(&*disk, &dir, &meta.id, &state.head)? {
            Ok(cursors) => cursors,
            Err(why) => {
                drop(appender);
                meta = replacing::replace(&*disk, &dir, &why, when, &mut reports)?;
                let files = settle_files(&*disk, &dir, &meta, true, &mut reports)?;
                (state, appender) = open_segments(&disk, &dir, &meta, &files, &mut reports)?;
                Cursors::default()
            }
        };
        let marks = Marks { cursors, dirty: false };

        let opening = Index::begin(data_dir, &meta.id);
        let (index, late) = if let Ok((index, told)) = opening.recv_timeout(INDEX_PATIENCE) {
            reports.extend(told);
            (index, None)
        } else {
            reports.push(format!(
                "index: not open within {} s; queries read the segments until it is",
                INDEX_PATIENCE.as_secs()
            ));
            (None, Some(opening))
        };
        if let Some(index) = &index {
            recall(index, &mut state, &mut reports);
        }
        let (head_sender, head) = watch::channel(state.head.clone());
        let shared = Arc::new(Shared {
            disk,
            data_dir: data_dir.to_owned(),
            id: meta.id.clone(),
            state: RwLock::new(state),
            marks: Mutex::new(marks),
            marks_file: Mutex::new(()),
            meta: Mutex::new(meta),
            index: Mutex::new(index),
            cache: Mutex::default(),
            recent: Mutex::default(),
            incidents: Mutex::new(reports.iter().take(MAX_INCIDENTS).cloned().collect()),
            stopping: AtomicBool::new(false),
            reserve_bytes: options.reserve_bytes,
            trouble: Mutex::default(),
            busy: Mutex::default(),
            open_file: Mutex::new((segment_path(&dir, appender.first), appender.identity()?)),
            missing: Mutex::default(),
            ended: Mutex::default(),
            dir,
        });
        let places = Places::new(&*shared.disk, data_dir, &shared.dir, lock_file.identity());

        let mirror =
            options.mirror.take().map(|options| Mirror::start(shared.clone(), options)).transpose()?;
        let index_retry = options.index_retry;
        let (sender, receiver) = mpsc::channel();
        let (hand, handed) = mpsc::channel();
        let writer = Writer::new(shared.clone(), appender, head_sender, hand, options);
        let indexer = shared.clone();
        let watcher = shared.clone();
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).spawn(run).map_err(io_error(data_dir))
        };
        let threads = vec![
            start("ledger-writer", Box::new(move || writer.run(&receiver)))?,
            start("ledger-index", Box::new(move || indexer.keep_index(late, &handed, index_retry)))?,
            start("ledger-watch", Box::new(move || watcher.watch(&places)))?,
        ];
        let ledger = FileLedger {
            shared,
            head,
            queue: Arc::new(Semaphore::new(QUEUE)),
            sender: Mutex::new(Some(sender)),
            threads: Mutex::new(threads),
            lock: Mutex::new(Some(lock_file)),
            mirror,
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
            thread.thread().unpark(); // the watch may be at rest
            if thread.join().is_err() {
                self.shared.report("a ledger thread panicked".into());
            }
        }
        self.shared.note_stored();
        if let Err(error) = self.shared.flush_cursors() {
            self.shared.report(format!("cursors were not written: {error}"));
        }
        drop(lock(&self.shared.index).take());
        if let Some(mirror) = &self.mirror {
            mirror.stop();
        }
        drop(lock(&self.lock).take());
    }

    /// What went wrong since the start, for the console: damage, lost index, cursors that begin again.
    pub fn incidents(&self) -> Vec<String> {
        lock(&self.shared.incidents).clone()
    }

    /// Bytes that may still be written where the ledger is.
    pub fn free_bytes(&self) -> Result<u64, LedgerError> {
        self.shared.disk.free_bytes(&self.shared.dir).map_err(io_error(&self.shared.dir))
    }

    /// Bytes of all segment files.
    pub fn bytes(&self) -> u64 {
        self.shared.condition().bytes
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
        self.read_lines(from, max_records, max_bytes)
    }

    fn latest(&self, meter: &MeterId, before: Seq, limit: usize) -> Result<Vec<Line>, LedgerError> {
        self.latest_readings(meter, before, limit)
    }

    fn latest_slot(&self, meter: &MeterId) -> Option<Utc> {
        self.latest_moment(meter)
    }

    fn readings(&self, query: &ReadingQuery) -> Result<Vec<Line>, LedgerError> {
        self.page_of_readings(query)
    }

    fn cursor(&self, cursor: Cursor) -> Seq {
        let marks = lock(&self.shared.marks);
        match cursor {
            Cursor::Acknowledged => marks.cursors.acknowledged,
            Cursor::Confirmed => marks.cursors.confirmed,
        }
    }

    fn recent(&self, from: Seq, max_records: usize, max_bytes: usize) -> Vec<Line> {
        lock(&self.shared.recent).page(from, max_records, max_bytes)
    }

    fn advance(&self, cursor: Cursor, to: Seq) {
        let to = to.min(self.head.borrow().seq);
        if cursor == Cursor::Acknowledged {
            lock(&self.shared.recent).forget(to);
        }
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

    fn condition(&self) -> Condition {
        let mut condition = self.shared.condition();
        condition.mirror = self.mirror.as_ref().map(|mirror| mirror.state(self.head.borrow().seq));
        condition
    }

    fn session(&self) -> u64 {
        lock(&self.shared.marks).cursors.session
    }

    fn next_session(&self) -> u64 {
        let session = {
            let mut marks = lock(&self.shared.marks);
            marks.cursors.session += 1;
            marks.dirty = true;
            marks.cursors.session
        };
        // At once: a session number that was used must not be used again.
        let Err(error) = self.shared.flush_cursors() else { return session };
        self.shared.report(format!("a session number was not written: {error}"));
        // What is not on the disk is not used: after a restart it would look like somebody else's.
        let mut marks = lock(&self.shared.marks);
        marks.cursors.session = marks.cursors.session.min(session - 1);
        marks.cursors.session
    }

    fn disprove_end(&self, why: &str) -> Result<(), LedgerError> {
        replacing::note_end(&*self.shared.disk, &self.shared.dir, &self.shared.id, why)?;
        tracing::error!(
            ledger = self.shared.id,
            "this ledger must not go on, a new one begins in its place: {why}"
        );
        *lock(&self.shared.ended) = Some(why.to_owned());
        Ok(())
    }
}
