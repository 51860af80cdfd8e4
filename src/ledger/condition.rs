//! How the store itself fares: what it refuses and why, how much room is left, what went wrong. For status and metrics.
//!
//! Values only. Knows nothing of records.

use std::{path::PathBuf, time::Duration};

use crate::model::Seq;

/// A snapshot, taken when it is asked for.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// Nothing is being stored: why, and for how long. What was read waits.
    pub refusing: Option<Refusal>,
    /// Files of the ledger are not where they were: which, for the operator.
    pub missing: Option<String>,
    /// Others have seen more of this ledger than it has: why another one has to begin in its place.
    pub ended: Option<String>,
    /// How long the writer has been at the batch under way. One that does not come back hangs in the disk.
    pub busy_for: Option<Duration>,
    /// Bytes that may still be written; `None` when the disk does not say.
    pub free_bytes: Option<u64>,
    /// Below so many free bytes nothing is appended.
    pub reserve_bytes: u64,
    /// Bytes of all segment files.
    pub bytes: u64,
    /// What went wrong since the start, each once, at most 200.
    pub incidents: Vec<String>,
    /// The second copy; `None` when none is wanted.
    pub mirror: Option<MirrorState>,
}

/// How the second copy of the ledger fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorState {
    /// Where it is: the configured directory, or one below it where that holds a ledger that was replaced.
    pub dir: PathBuf,
    /// The last record that is durable there; `None` until that has been proved.
    pub stored: Option<Seq>,
    /// Records that it is behind.
    pub lag: u64,
    /// Why nothing is being copied, and for how long.
    pub fault: Option<Refusal>,
}

/// Why nothing is being stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For the operator.
    pub reason: String,
    /// Since the first append that failed.
    pub lasting: Duration,
}
