//! Retention: whole old segments go, and the chain can still be proved across them.
//!
//! Knows what must stay (what a cursor needs, what is kept for good, what is damaged); does not know the calendar, and
//! appends nothing.

use std::sync::Arc;

use super::{
    super::{
        LedgerError, Pruned,
        files::{io_error, sync_dir},
    },
    FileLedger,
    shared::{Good, Sealed, lock},
};
use crate::model::{Seq, Utc};

impl FileLedger {
    /// Removes whole sealed segments whose records are all older than `before` and not beyond `keep_after` (the least
    /// cursor that still needs them). One that holds a billing read, a handover or damage stays. Blocks.
    ///
    /// Returns one range per removed segment, in order ([`Pruned::runs`] merges them): what a record of it has to say.
    /// Where it fails half way, what was removed is still returned, and the failure is an incident.
    pub fn prune(&self, before: Utc, keep_after: Seq) -> Result<Vec<Pruned>, LedgerError> {
        // What frees a segment is a cursor: after a crash it must still stand beyond what is gone.
        self.shared.flush_cursors()?;
        let mut removed = Vec::new();
        match self.prune_into(before, keep_after, &mut removed) {
            Err(error) if removed.is_empty() => Err(error),
            Err(error) => {
                self.shared.report(format!("retention stopped half way: {error}"));
                Ok(removed)
            }
            Ok(()) => Ok(removed),
        }
    }

    fn prune_into(&self, before: Utc, keep_after: Seq, removed: &mut Vec<Pruned>) -> Result<(), LedgerError> {
        let mut meta = lock(&self.shared.meta);
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
            next.store(&*self.shared.disk, &self.shared.dir)?;
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
            removed.push(range); // from here on it is gone, whatever becomes of its file
            self.shared.disk.remove(&sealed.path).map_err(io_error(&sealed.path))?;
            sync_dir(&*self.shared.disk, &self.shared.dir)?;
            self.shared.with_index(|index| index.forget(sealed.first));
        }
        Ok(())
    }
}
