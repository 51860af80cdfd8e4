//! The ledger's thread without its timing.

use std::{ops::Range, sync::Arc, thread};

use futures_util::{
    future::{BoxFuture, FutureExt},
    task::noop_waker,
};
use meter_gateway::{
    ledger::{Cursor, FileLedger, Head, Ledger, LedgerError, Line, ReadingQuery},
    model::{Draft, MeterId, Seq, Utc},
};
use tokio::sync::watch;

/// The ledger on its own thread, waited for in real time: a commit takes no simulated time, and nothing else happens
/// meanwhile, so that one seed has one history.
pub struct Inline(pub Arc<FileLedger>);

impl Ledger for Inline {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn append(&self, drafts: Vec<Draft>) -> BoxFuture<'_, Result<Range<Seq>, LedgerError>> {
        let mut append = self.0.append(drafts);
        let waker = noop_waker();
        let mut context = std::task::Context::from_waker(&waker);
        let done = loop {
            match append.poll_unpin(&mut context) {
                std::task::Poll::Ready(done) => break done,
                std::task::Poll::Pending => thread::yield_now(),
            }
        };
        Box::pin(async { done })
    }

    fn head(&self) -> watch::Receiver<Head> {
        self.0.head()
    }

    fn first(&self) -> Seq {
        self.0.first()
    }

    fn read(&self, from: Seq, max_records: usize, max_bytes: usize) -> Result<Vec<Line>, LedgerError> {
        self.0.read(from, max_records, max_bytes)
    }

    fn recent(&self, from: Seq, max_records: usize, max_bytes: usize) -> Vec<Line> {
        self.0.recent(from, max_records, max_bytes)
    }

    fn latest(&self, meter: &MeterId, before: Seq, limit: usize) -> Result<Vec<Line>, LedgerError> {
        self.0.latest(meter, before, limit)
    }

    fn latest_slot(&self, meter: &MeterId) -> Option<Utc> {
        self.0.latest_slot(meter)
    }

    fn readings(&self, query: &ReadingQuery) -> Result<Vec<Line>, LedgerError> {
        self.0.readings(query)
    }

    fn cursor(&self, cursor: Cursor) -> Seq {
        self.0.cursor(cursor)
    }

    fn advance(&self, cursor: Cursor, to: Seq) {
        self.0.advance(cursor, to);
    }

    fn session(&self) -> u64 {
        self.0.session()
    }

    fn next_session(&self) -> u64 {
        self.0.next_session()
    }

    fn disprove_end(&self, why: &str) -> Result<(), LedgerError> {
        panic!("nobody brought a snapshot back, and yet: {why}");
    }
}
