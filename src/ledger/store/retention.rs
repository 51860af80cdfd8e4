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
    /// Retention: removes whole sealed segments whose records are all older than `before` and not beyond `keep_after`
    /// (the least cursor that still needs them). One that holds a billing read, a handover or damage stays. Blocks.
    pub fn prune(&self, before: Utc, keep_after: Seq) -> Result<Vec<Pruned>, LedgerError> {
        let mut meta = lock(&self.shared.meta);
        let mut removed = Vec::new();
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
            self.shared.disk.remove(&sealed.path).map_err(io_error(&sealed.path))?;
            sync_dir(&*self.shared.disk, &self.shared.dir)?;
            self.shared.with_index(|index| index.forget(sealed.first));
            removed.push(range);
        }
        Ok(removed)
    }
}
