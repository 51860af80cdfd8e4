//! The same promise in RAM, for tests and simulations: nothing outlives the process.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{
    Cursor, Head, Ledger, LedgerError, Line, ReadingQuery,
    chain::{Facts, seal},
    meta::Cursors,
};
use crate::model::{Draft, GENESIS, MeterId, Seq, Utc};

/// A ledger in memory.
pub struct MemoryLedger {
    id: String,
    head: watch::Sender<Head>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    lines: Vec<(Line, Facts)>,
    cursors: Cursors,
}

impl MemoryLedger {
    /// An empty one; `id` should be 32 lower-case hex digits.
    pub fn new(id: &str) -> MemoryLedger {
        let head = watch::Sender::new(Head { seq: 0, hash: GENESIS.into() });
        MemoryLedger { id: id.to_owned(), head, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self, drafts: &[Draft]) -> Result<Range<Seq>, LedgerError> {
        let mut inner = self.inner();
        let begin = self.head.borrow().clone();
        let (mut head, mut sealed) = (begin.clone(), Vec::new());
        for draft in drafts {
            let line = seal(draft, head.seq + 1, &head.hash)?;
            head = Head { seq: head.seq + 1, hash: line.hash };
            sealed.push((Line { seq: head.seq, bytes: line.bytes }, line.facts));
        }
        inner.lines.append(&mut sealed);
        let range = begin.seq + 1..head.seq + 1;
        self.head.send_replace(head);
        drop(inner); // only now: two appends must not begin from the same head
        Ok(range)
    }
}

impl Ledger for MemoryLedger {
    fn id(&self) -> &str {
        &self.id
    }

    fn append(&self, drafts: Vec<Draft>) -> BoxFuture<'_, Result<Range<Seq>, LedgerError>> {
        Box::pin(std::future::ready(self.store(&drafts)))
    }

    fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    fn first(&self) -> Seq {
        1
    }

    fn read(&self, from: Seq, max_records: usize, max_bytes: usize) -> Result<Vec<Line>, LedgerError> {
        let skip = usize::try_from(from.saturating_sub(1)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let inner = self.inner();
        let fits =
            inner.lines.iter().skip(skip).take(max_records).enumerate().take_while(|(i, (line, _))| {
                bytes += line.bytes.len();
                *i == 0 || bytes <= max_bytes
            });
        Ok(fits.map(|(_, (line, _))| line.clone()).collect())
    }

    fn latest(&self, meter: &MeterId, before: Seq, limit: usize) -> Result<Vec<Line>, LedgerError> {
        let wanted =
            |facts: &Facts| facts.reading.as_ref().is_some_and(|r| r.meter == meter.as_str() && !r.missing);
        let inner = self.inner();
        let found = inner.lines.iter().rev().filter(|(line, facts)| line.seq < before && wanted(facts));
        Ok(found.take(limit).map(|(line, _)| line.clone()).collect())
    }

    fn latest_slot(&self, meter: &MeterId) -> Option<Utc> {
        let inner = self.inner();
        let mut newest = inner.lines.iter().rev().filter_map(|(_, facts)| facts.reading.as_ref());
        newest.find(|r| r.meter == meter.as_str()).and_then(|r| Utc::from_timestamp_millis(r.at_ms))
    }

    fn readings(&self, query: &ReadingQuery) -> Result<Vec<Line>, LedgerError> {
        let wanted = |line: &Line, facts: &Facts| {
            let Some(reading) = &facts.reading else { return false };
            let Some(at) = Utc::from_timestamp_millis(reading.at_ms) else { return false };
            line.seq > query.after
                && query.meter.as_ref().is_none_or(|meter| meter.as_str() == reading.meter)
                && query.from.is_none_or(|from| at >= from)
                && query.to.is_none_or(|to| at < to)
        };
        let inner = self.inner();
        let found = inner.lines.iter().filter(|(line, facts)| wanted(line, facts)).take(query.limit);
        Ok(found.map(|(line, _)| line.clone()).collect())
    }

    fn cursor(&self, cursor: Cursor) -> Seq {
        let cursors = self.inner().cursors;
        match cursor {
            Cursor::Acknowledged => cursors.acknowledged,
            Cursor::Confirmed => cursors.confirmed,
        }
    }

    fn advance(&self, cursor: Cursor, to: Seq) {
        let to = to.min(self.head.borrow().seq);
        let cursors = &mut self.inner().cursors;
        let mark = match cursor {
            Cursor::Acknowledged => &mut cursors.acknowledged,
            Cursor::Confirmed => &mut cursors.confirmed,
        };
        *mark = to.max(*mark);
    }

    fn next_session(&self) -> u64 {
        let cursors = &mut self.inner().cursors;
        cursors.session += 1;
        cursors.session
    }
}
