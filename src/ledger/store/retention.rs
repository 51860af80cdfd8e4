//! Retention: whole old segments go, and the chain can still be proved across them.
//!
//! Knows what must stay (what a cursor needs, what is kept for good, what is damaged); does not know the calendar, and
//! appends nothing.

use std::sync::Arc;

use chrono::TimeDelta;

use super::{
    super::{
        LedgerError, Pruned,
        files::{io_error, sync_dir},
        summary::Header,
    },
    FileLedger,
    shared::{Good, Sealed, lock},
};
use crate::model::{Seq, Utc};

impl FileLedger {
    /// Removes whole sealed segments whose records are all older than `before`, which is `age` ago, and not beyond
    /// `keep_after` (the least cursor that still needs them). One that holds a billing read, a handover or damage stays, and
    /// so does one behind which the ledger itself has not seen so much time pass: a clock that leaps makes nothing old.
    /// Blocks.
    ///
    /// Returns one range per removed segment, in order ([`Pruned::runs`] merges them): what a record of it has to say.
    /// Where it fails half way, what was removed is still returned, and the failure is an incident.
    pub fn prune(&self, before: Utc, age: TimeDelta, keep_after: Seq) -> Result<Vec<Pruned>, LedgerError> {
        // What frees a segment is a cursor: after a crash it must still stand beyond what is gone.
        self.shared.flush_cursors()?;
        let mut removed = Vec::new();
        match self.prune_into(before, age, keep_after, &mut removed) {
            Err(error) if removed.is_empty() => Err(error),
            Err(error) => {
                self.shared.report(format!("retention stopped half way: {error}"));
                Ok(removed)
            }
            Ok(()) => Ok(removed),
        }
    }

    /// Whether the oldest records that could be removed are older than `before`, by their own times. Blocks.
    pub fn has_older(&self, before: Utc) -> Result<bool, LedgerError> {
        let oldest = self.shared.state().sealed.values().next().cloned();
        let Some(oldest) = oldest else { return Ok(false) };
        let known = self.shared.header(&oldest)?;
        Ok(known.is_some_and(|known| known.header.recorded_ms < before.timestamp_millis()))
    }

    fn prune_into(
        &self,
        before: Utc,
        age: TimeDelta,
        keep_after: Seq,
        removed: &mut Vec<Pruned>,
    ) -> Result<(), LedgerError> {
        let mut meta = lock(&self.shared.meta);
        let mut candidates: Vec<Arc<Sealed>> = self.shared.state().sealed.values().cloned().collect();
        let is_due = |header: &Header| header.recorded_ms < before.timestamp_millis();
        let mut due = false;
        for sealed in candidates.iter().take_while(|sealed| sealed.last <= keep_after) {
            due |= self.shared.header(sealed)?.is_some_and(|known| is_due(&known.header));
        }
        if due {
            candidates.truncate(self.witnessed_old(&candidates, age)?);
        } else {
            candidates.clear();
        }
        for sealed in candidates.iter().take_while(|sealed| sealed.last <= keep_after) {
            let Some(known) = self.shared.header(sealed)? else { continue };
            let header = &known.header;
            if header.is_protected() || header.count == 0 || !is_due(header) {
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
            next.store(&*self.shared.disk, &self.shared.dir)?;
            *meta = next;
            {
                let mut state = self.shared.state_mut();
                state.sealed.remove(&sealed.first);
                for latest in state.latest.values_mut() {
                    if matches!(latest.good, Good::At(first) if first == sealed.first) {
                        latest.good = Good::Unknown; // an older segment may have been kept
                    }
                }
            }
            removed.push(range); // from here on it is gone, whatever becomes of its file
            self.shared.disk.remove(&sealed.path).map_err(io_error(&sealed.path))?;
            sync_dir(&*self.shared.disk, &self.shared.dir)?;
            self.shared.with_index(|index| index.forget(sealed.first));
        }
        Ok(())
    }

    /// How many of these segments, from the first, end at least `age` ago by the times of the records behind them.
    fn witnessed_old(&self, sealed: &[Arc<Sealed>], age: TimeDelta) -> Result<usize, LedgerError> {
        let mut passed = self.shared.state().open.header.witnessed_ms.unwrap_or_default();
        let mut old = sealed.len();
        while passed < age.num_milliseconds() && old > 0 {
            old -= 1;
            let Some(segment) = sealed.get(old) else { break };
            let known = self.shared.header(segment)?;
            passed =
                passed.saturating_add(known.and_then(|known| known.header.witnessed_ms).unwrap_or_default());
        }
        Ok(old)
    }
}
