//! Records on their way out: read from the ledger, cut to what the broker takes, handed to the client.
//!
//! Knows what a record that cannot be read means for the others; which records are due is the session's word.

use tokio::{
    task::{JoinError, spawn_blocking},
    time::Instant,
};
use tracing::{error, warn};

use super::{
    super::{
        link::{Cause, Message},
        payload::{self, MAX_RECORDS, MAX_RECORDS_BYTES},
        session::Tag,
    },
    Driver, Incoming,
};
use crate::{
    ledger::{LedgerError, Line, SharedLedger},
    model::Seq,
};

pub(super) const RECORDS_SCHEMA: &str = "meter-gateway/records/1";

impl Driver {
    /// Reads one message's worth of records and hands it to the client.
    pub(super) async fn send(&mut self, tag: Tag) {
        let (Tag::Records(range) | Tag::Again(_, range)) = &tag else { return };
        let (from, to) = (*range.start(), *range.end());
        let rebuilt = |to: Seq| match tag {
            Tag::Again(reason, _) => Tag::Again(reason, from..=to),
            _ => Tag::Records(from..=to),
        };
        let now = Instant::now().into_std();
        let topic = self.names.records();
        let Some(link) = &self.link else { return };
        let limit = MAX_RECORDS_BYTES.min(link.max_payload(&topic));
        let wanted = self.session.message_bytes(limit);
        let count = usize::try_from(to - from + 1).unwrap_or(MAX_RECORDS).min(MAX_RECORDS);
        let room = payload::room_for_lines(&self.names, self.ledger.id(), wanted, count);
        let mut lines = match read(self.ledger.clone(), from, count, room).await {
            Ok(Ok(lines)) => lines,
            Ok(Err(LedgerError::Damaged { seq, detail, path, offset })) if seq == from => {
                let detail = format!("{path}: byte {offset}: {detail}");
                self.damaged(seq, detail);
                self.session.skip(rebuilt(from), now);
                return;
            }
            Ok(Err(error)) => return self.lose(&error.to_string(), Cause::Said),
            Err(error) => return self.lose(&format!("reading the ledger: {error}"), Cause::Said),
        };
        if let Some(kept) = lines.first().map(|line| line.seq).filter(|kept| *kept > from) {
            let gone = to.min(kept - 1);
            warn!(
                from,
                to = gone,
                "retention has removed records before they were sent; they are passed over"
            );
            self.session.skip(rebuilt(gone), now);
            return;
        }
        let in_sequence = (from..=to).zip(&lines).take_while(|(seq, line)| *seq == line.seq).count();
        lines.truncate(in_sequence);
        let Some(last) = lines.last().map(|line| line.seq) else {
            let head = self.head.borrow().seq;
            return self
                .lose(&format!("the ledger does not give record {from}, its head is {head}"), Cause::Said);
        };
        let payload = payload::records(&self.names, self.ledger.id(), &lines);
        if payload.len() > limit {
            let bytes = payload.len();
            let error = format!(
                "record {from} needs a message of {bytes} bytes, the broker takes {limit}\n  hint: raise the broker's packet limit"
            );
            return self.lose(&error, Cause::Said);
        }
        self.offer_to_link(Message { topic, payload, retain: false, schema: RECORDS_SCHEMA }, rebuilt(last));
    }

    pub(super) fn offer_to_link(&mut self, message: Message, tag: Tag) {
        let bytes = message.payload.len();
        if self.link.as_ref().is_some_and(|link| link.publish(message)) {
            self.session.offered(tag, bytes, Instant::now().into_std());
        } else {
            self.lose("the client does not take a message, although the window is open", Cause::Said);
        }
    }

    fn damaged(&mut self, seq: Seq, detail: String) {
        error!(seq, detail, "a damaged record is passed over and will not be delivered");
        if seq > self.damage_told {
            self.damage_told = seq;
            if self.events.try_send(Incoming::Damaged { seq, detail }).is_err() {
                error!(seq, "no change record about the damaged record: too many events are waiting");
            }
        }
    }
}

/// From memory where that has them; else from the disk, on a thread that may wait for it.
async fn read(
    ledger: SharedLedger,
    from: Seq,
    count: usize,
    room: usize,
) -> Result<Result<Vec<Line>, LedgerError>, JoinError> {
    let recent = ledger.recent(from, count, room);
    if !recent.is_empty() {
        return Ok(Ok(recent));
    }
    spawn_blocking(move || ledger.read(from, count, room)).await
}
