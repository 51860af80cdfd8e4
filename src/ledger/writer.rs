//! The single writer: takes what has gathered during the last commit, seals, writes, syncs once, and only then answers.
//!
//! Runs on its own thread and waits for nothing but its queue and the disk. Also the one that writes the cursors, because
//! it is awake anyway.

use std::{
    io,
    ops::Range,
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::Instant,
};

use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::{
    Head, LedgerError, Line,
    chain::{self, Sealed as SealedLine},
    segments::{Appender, segment_path},
    store::{Options, Sealed, Shared, lock},
    summary::{Place, Summary},
};
use crate::model::{Draft, Seq};

/// One append and who waits for it.
pub(super) struct Job {
    pub drafts: Vec<Draft>,
    pub reply: oneshot::Sender<Result<Range<Seq>, LedgerError>>,
    /// Its place in the bounded queue, given back with the answer.
    pub permit: OwnedSemaphorePermit,
}

/// What the writer is told.
pub(super) enum Message {
    Append(Job),
    /// The cursors are no longer what is on the disk.
    CursorsMoved,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    appender: Appender,
    head: watch::Sender<Head>,
    /// To the thread that keeps the index.
    hand: Sender<Arc<Summary>>,
    options: Options,
    /// When the cursors are to be written.
    cursors_due: Option<Instant>,
    /// Records since the end of the ledger was last noted beside the cursors.
    unnoted: usize,
}

/// Records at which a commit takes no further append along: they are all in memory until it is done.
const COMMIT_RECORDS: usize = 2000;

/// Records after which the end of the ledger is noted although no cursor moves: a broker may be away for weeks.
const NOTE_EVERY: usize = 500;

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        appender: Appender,
        head: watch::Sender<Head>,
        hand: Sender<Arc<Summary>>,
        options: Options,
    ) -> Writer {
        Writer { shared, appender, head, hand, options, cursors_due: None, unnoted: 0 }
    }

    /// Until all senders are gone.
    pub fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let message = match self.cursors_due {
                Some(due) => messages.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Append(job)) => self.batch(job, messages),
                Ok(Message::CursorsMoved) => self.cursors_moved(),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return, // `close` writes the cursors
            }
            if self.cursors_due.is_some_and(|due| due <= Instant::now()) {
                self.cursors_due = None;
                if let Err(error) = self.shared.flush_cursors() {
                    self.shared.report(format!("cursors were not written: {error}"));
                    self.cursors_moved();
                }
            }
        }
    }

    fn cursors_moved(&mut self) {
        let interval = self.options.cursor_interval;
        self.cursors_due.get_or_insert_with(|| Instant::now() + interval);
    }

    /// Commits this append and all that wait behind it with one sync.
    fn batch(&mut self, first: Job, messages: &Receiver<Message>) {
        let mut records = first.drafts.len();
        let mut jobs = vec![first];
        while records < COMMIT_RECORDS
            && let Ok(message) = messages.try_recv()
        {
            match message {
                Message::Append(job) => {
                    records += job.drafts.len();
                    jobs.push(job);
                }
                Message::CursorsMoved => self.cursors_moved(),
            }
        }
        *lock(&self.shared.busy) = Some(Instant::now());
        self.commit(jobs);
        *lock(&self.shared.busy) = None;
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        if let Err(error) =
            self.shared.present().and_then(|()| self.shared.room()).and_then(|()| self.rotate_when_due())
        {
            self.shared.refused(&error);
            for job in jobs {
                answer(job.reply, job.permit, Err(again(&error)));
            }
            return;
        }
        let mut head = self.head.borrow().clone();
        let (mut bytes, mut lines, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for Job { drafts, reply, permit } in jobs {
            // One refused draft refuses its whole append, and only that.
            let (begin, kept_bytes, kept_lines) = (head.clone(), bytes.len(), lines.len());
            let sealed = drafts.iter().try_for_each(|draft| {
                let line = chain::seal(draft, head.seq + 1, &head.hash)?;
                head.seq += 1;
                let prev = std::mem::replace(&mut head.hash, line.hash.clone());
                let offset = self.appender.durable + bytes.len() as u64;
                bytes.extend_from_slice(&line.bytes);
                bytes.push(b'\n');
                lines.push((head.seq, offset, prev, line));
                Ok(())
            });
            match sealed {
                Ok(()) => waiting.push((begin.seq + 1..head.seq + 1, reply, permit)),
                Err(error) => {
                    head = begin;
                    bytes.truncate(kept_bytes);
                    lines.truncate(kept_lines);
                    answer(reply, permit, Err(error));
                }
            }
        }
        let written = if bytes.is_empty() { Ok(()) } else { self.appender.append(&bytes) };
        if let Err(error) = written {
            self.shared.refused(&error);
            for (_, reply, permit) in waiting {
                answer(reply, permit, Err(again(&error)));
            }
            return;
        }
        if !lines.is_empty() {
            self.shared.stored();
            self.publish(head, &lines);
        }
        for (range, reply, permit) in waiting {
            answer(reply, permit, Ok(range));
        }
    }

    /// Lets the readers see what is on the disk now.
    fn publish(&mut self, head: Head, lines: &[(Seq, u64, String, SealedLine)]) {
        let mut state = self.shared.state_mut();
        let first = state.open.header.first;
        for (seq, offset, prev, line) in lines {
            state.open.add(*seq, *offset, line.bytes.len() as u64 + 1, &line.hash, prev, &line.facts);
            if let Some(reading) = &line.facts.reading {
                let place =
                    Place { seq: *seq, offset: *offset, at_ms: reading.at_ms, missing: reading.missing };
                state.note_latest(&reading.meter, first, place);
            }
        }
        state.head = head.clone();
        drop(state);
        let stored = lines.iter().map(|(seq, _, _, line)| Line { seq: *seq, bytes: line.bytes.clone() });
        lock(&self.shared.recent).extend(stored);
        self.unnoted += lines.len();
        if self.unnoted >= NOTE_EVERY {
            self.unnoted = 0;
            self.shared.note_stored();
            self.cursors_moved();
        }
        self.head.send_replace(head);
    }

    /// Seals the open segment when it has grown enough, and begins the next.
    fn rotate_when_due(&mut self) -> Result<(), LedgerError> {
        if self.appender.durable < self.options.segment_bytes.min(super::segments::MAX_SEGMENT) {
            return Ok(());
        }
        let next = self.head.borrow().seq + 1;
        if let Some(aside) = self.appender.rotate(next)? {
            self.shared.report(format!(
                "ledger {}: it was there before its first record; set aside as {}",
                segment_path(&self.shared.dir, next).display(),
                aside.display()
            ));
        }
        self.shared.note_open_file(next, self.appender.identity()?);
        let mut state = self.shared.state_mut();
        let summary = Arc::new(std::mem::replace(&mut state.open, Summary::new(next)));
        let known = state.known(summary.header.clone(), summary.meters.keys());
        let sealed = Sealed {
            first: summary.header.first,
            last: summary.header.last,
            path: std::mem::replace(&mut state.open_path, segment_path(&self.shared.dir, next)),
            bytes: summary.header.bytes,
            known: OnceLock::from(known),
        };
        state.sealed.insert(sealed.first, Arc::new(sealed));
        drop(state);
        self.shared.keep(summary.clone());
        let _ = self.hand.send(summary); // without the indexer the segment is indexed at the next start
        Ok(())
    }
}

/// Answers, and gives the place in the queue back. Nobody may be waiting any more.
fn answer(
    reply: oneshot::Sender<Result<Range<Seq>, LedgerError>>,
    permit: OwnedSemaphorePermit,
    result: Result<Range<Seq>, LedgerError>,
) {
    drop(permit);
    let _ = reply.send(result);
}

/// The same error for each append of a failed batch.
fn again(error: &LedgerError) -> LedgerError {
    match error {
        LedgerError::Io { path, error } => {
            LedgerError::Io { path: path.clone(), error: io::Error::new(error.kind(), error.to_string()) }
        }
        LedgerError::Full { path, free, reserve } => {
            LedgerError::Full { path: path.clone(), free: *free, reserve: *reserve }
        }
        other => LedgerError::Io { path: String::new(), error: io::Error::other(other.to_string()) },
    }
}
