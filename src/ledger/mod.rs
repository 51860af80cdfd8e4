//! The ledger: one append-only, gap-free, hash-chained sequence of records. It is the store and the outbox.
//!
//! The segment files are the truth: a record exists once its line is synced. The index beside them may be lost; the
//! cursors say how far the broker and billing are. Knows what a record looks like, not what a reading means, nor
//! who reads it.

pub mod audit;
pub mod backup;
pub mod canonical;
pub mod chain;
mod condition;
pub mod disk;
mod files;
mod index;
mod memory;
#[doc(hidden)] // for the fuzz targets: what is read back from disk is foreign
pub mod meta;
mod mirror;
mod placing;
mod reading_line;
mod recent;
mod segments;
mod store;
#[doc(hidden)] // as above
pub mod summary;
#[cfg(test)]
mod tests;
mod writer;

pub use backup::PROVED_SESSIONS;
pub use condition::{Condition, MirrorState, Refusal};
pub use files::replace;
pub use memory::MemoryLedger;
pub use meta::Pruned;
pub use mirror::Options as MirrorOptions;
pub use store::{FileLedger, Options};

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::sync::watch;

use crate::model::{Draft, MeterId, Seq, Utc};

/// One stored record: exactly the bytes that were hashed, without the line feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its position.
    pub seq: Seq,
    /// Canonical JSON (RFC 8785).
    pub bytes: Bytes,
}

/// The end of the chain. `seq` 0 with 64 zeros before the first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The last stored record.
    pub seq: Seq,
    /// Its hash.
    pub hash: String,
}

/// A position in the ledger that outlives the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cursor {
    /// The broker has acknowledged everything up to here.
    Acknowledged,
    /// Billing has committed everything up to here.
    Confirmed,
}

/// What the ledger can fail at.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The operating system refused.
    #[error("ledger {path}: {error}")]
    Io {
        /// File or directory.
        path: String,
        /// What it said.
        error: std::io::Error,
    },
    /// A line that does not prove itself. It is never served.
    #[error("ledger {path}: damaged at byte {offset} (seq {seq}): {detail}")]
    Damaged {
        /// Segment file.
        path: String,
        /// Where the line begins.
        offset: u64,
        /// Which record it should be.
        seq: Seq,
        /// What is wrong with it.
        detail: String,
    },
    /// Another process has the ledger open.
    #[error(
        "ledger {path} is in use by another process\n  hint: is the daemon running? `meter-gateway status` tells"
    )]
    Busy {
        /// Data directory.
        path: String,
    },
    /// Too little room is left: the reserve is not for records.
    #[error(
        "ledger {path}: {free} bytes are left on its disk; expected {reserve}, the reserve for cursors, index and repair\n  hint: make room, or lower [gateway] reserve_mb; nothing read is let go meanwhile"
    )]
    Full {
        /// Directory of the ledger.
        path: String,
        /// Bytes that are left.
        free: u64,
        /// Bytes that are kept free.
        reserve: u64,
    },
    /// The writer has stopped.
    #[error("the ledger is closed")]
    Closed,
    /// A record that cannot be written: a float in it, longer than the limit.
    #[error("record refused: {0}")]
    Refused(String),
}

/// Which readings to list.
#[derive(Debug, Clone, Default)]
pub struct ReadingQuery {
    /// Only this meter.
    pub meter: Option<MeterId>,
    /// `scheduled_at` at or after.
    pub from: Option<Utc>,
    /// `scheduled_at` before.
    pub to: Option<Utc>,
    /// Only records after this one (the last of the page before).
    pub after: Seq,
    /// At most so many.
    pub limit: usize,
}

/// What the rest of the house sees of the ledger. Reads block (page by page); appends are awaited.
pub trait Ledger: Send + Sync {
    /// The ledger's id: 32 lower-case hex digits, made once.
    fn id(&self) -> &str;

    /// Appends in order; resolves when the lines are on the disk (fdatasync), never before.
    fn append(
        &self,
        drafts: Vec<Draft>,
    ) -> futures_util::future::BoxFuture<'_, Result<Range<Seq>, LedgerError>>;

    /// The end of the chain; changes after each commit.
    fn head(&self) -> watch::Receiver<Head>;

    /// The first record that is still kept (1 until retention removes a segment).
    fn first(&self) -> Seq;

    /// Consecutive lines from `from`, at most `max_records` and `max_bytes` (but at least one if there is one).
    /// Where `from` was pruned, the page begins with the next record that is kept.
    /// Stops before a damaged line; asked for a damaged line itself, it is the error.
    fn read(&self, from: Seq, max_records: usize, max_bytes: usize) -> Result<Vec<Line>, LedgerError>;

    /// The same from memory alone, without waiting: the newest lines that the broker has not acknowledged. Empty where
    /// `from` is not among them.
    fn recent(&self, from: Seq, max_records: usize, max_bytes: usize) -> Vec<Line> {
        let _ = (from, max_records, max_bytes);
        Vec::new()
    }

    /// The latest readings of a meter before `before` whose `origin` is not `missing`, newest first, at most `limit`.
    /// Damaged ones are passed over.
    fn latest(&self, meter: &MeterId, before: Seq, limit: usize) -> Result<Vec<Line>, LedgerError>;

    /// The scheduled moment of the latest stored reading of a meter, missing ones included.
    fn latest_slot(&self, meter: &MeterId) -> Option<Utc>;

    /// One page of readings, in sequence order.
    fn readings(&self, query: &ReadingQuery) -> Result<Vec<Line>, LedgerError>;

    /// Where a cursor stands.
    fn cursor(&self, cursor: Cursor) -> Seq;

    /// Moves a cursor forward (never back, never past the head). On disk within a second: after a crash it
    /// may stand a little earlier, which costs a repeat, never a loss.
    fn advance(&self, cursor: Cursor, to: Seq);

    /// How the store itself fares.
    fn condition(&self) -> Condition {
        Condition::default()
    }

    /// The last session number that was given out, also before the process began.
    fn session(&self) -> u64 {
        0
    }

    /// Next session number of the publisher: 1 at first, one more at each call, for the ledger's life; the last one again
    /// when it cannot be made durable.
    fn next_session(&self) -> u64;

    /// Others have seen more of this ledger than it has. Noted durably: whoever opens it next begins another one.
    fn disprove_end(&self, why: &str) -> Result<(), LedgerError> {
        let _ = why;
        Ok(())
    }
}

/// The id of the ledger in a data directory, without opening it; `None` when there is none yet.
pub fn stored_id(data_dir: &std::path::Path) -> Result<Option<String>, LedgerError> {
    Ok(meta::Meta::load(&disk::RealDisk, &data_dir.join("ledger"))?.map(|meta| meta.id))
}

/// The ledger as it is handed around.
pub type SharedLedger = Arc<dyn Ledger>;
