//! A request whose reply has not been seen, and may still come.

use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::{Address, Found, Transaction};

/// For so long a reply may still come. Slow converters and busy meters take a second or two; longer would only slow down
/// the first answer of a meter that comes back.
const PENDING_FOR: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Pending {
    /// Who was asked.
    pub(super) address: Address,
    pub(super) asked: Box<dyn Transaction>,
    /// When the last byte of the request had left.
    pub(super) sent: Instant,
    over: Instant,
    /// A damaged reply has come: in all likelihood it was this one.
    damaged: bool,
}

impl Pending {
    pub(super) fn new(address: Address, asked: Box<dyn Transaction>, sent: Instant) -> Pending {
        Pending { address, asked, sent, over: sent + PENDING_FOR, damaged: false }
    }

    /// A reply came, damaged. Should it have been something else, this one comes within its time.
    pub(super) fn damaged(mut self, timeout: Duration) -> Pending {
        self.damaged = true;
        self.over = self.sent + timeout;
        self
    }

    pub(super) fn age(&self) -> Duration {
        self.sent.elapsed()
    }

    pub(super) fn is_over(&self) -> bool {
        self.over <= Instant::now()
    }

    /// Whether this frame, which answers `asked`, may be the pending reply instead. What was damaged is asked again at
    /// once: to the same question either reply is an answer.
    pub(super) fn could_be(&self, frame: &[u8], asked: &dyn Transaction) -> bool {
        let same = self.damaged && self.asked.request() == asked.request();
        !same && matches!(self.asked.find(frame), Found::Frame(_))
    }
}
