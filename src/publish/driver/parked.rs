//! Rejected records outlive the process: each is a `change` record, and the list is made again from these.
//!
//! The ledger has no index of changes, so the notes of what is still parked are repeated before they are out of reach.
//! Which records are parked is the session's; that a note is stored is the daemon's.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};
use tracing::{error, info};

use super::{
    super::{
        payload::Rejected,
        session::{MAX_PARKED, Note},
    },
    Driver, Incoming,
};
use crate::{
    ledger::{Ledger, LedgerError},
    model::{Seq, change},
};

/// Records after which the notes of parked ones are repeated: a start reads so many, in a second or two.
const REPEAT_AFTER: Seq = 50_000;
/// Records that a start reads: what may be stored while the repeated notes are on their way comes on top.
const REACH: Seq = REPEAT_AFTER + 10_000;
/// Records read at once.
const PAGE: usize = 1_000;
/// Bytes read at once.
const PAGE_BYTES: usize = 1 << 20;

/// What a note says.
#[derive(Deserialize)]
struct Noted {
    change: String,
    #[serde(rename = "record")]
    seq: Seq,
    #[serde(default)]
    reason: String,
}

impl Driver {
    /// Reads from the ledger what was parked when the process ended.
    pub(super) async fn recall_parked(&mut self) {
        let ledger = self.ledger.clone();
        let Ok(parked) = tokio::task::spawn_blocking(move || recall(&*ledger)).await else {
            return error!(
                "which records billing has rejected could not be read from the ledger: the task failed"
            );
        };
        let Some(oldest) = parked.values().map(|(at, _)| *at).min() else { return };
        info!(records = parked.len(), "records that billing has rejected wait for a person");
        self.parked_from = oldest;
        self.session.park(parked.into_iter().map(|(seq, (_, reason))| Rejected { seq, reason }).collect());
    }

    /// Hands over what has to be put on record; what does not fit waits for the next turn.
    pub(super) fn put_on_record(&mut self) {
        let head = self.head.borrow().seq;
        if self.session.rejected().is_empty() {
            self.parked_from = head;
        } else if head >= self.parked_from + REPEAT_AFTER {
            self.parked_from = head;
            self.session.note_again();
        }
        while let Some(note) = self.session.note() {
            let (name, fields) = match note {
                Note::Rejected(Rejected { seq, reason }) => {
                    let reason = Value::from(reason.as_str());
                    (
                        change::REJECTED,
                        Map::from_iter([("record".into(), (*seq).into()), ("reason".into(), reason)]),
                    )
                }
                Note::Resent(seq) => {
                    (change::REJECTED_RESENT, Map::from_iter([("record".into(), (*seq).into())]))
                }
            };
            if self.events.try_send(Incoming::OnRecord { change: name, fields }).is_err() {
                return;
            }
            self.session.noted();
        }
    }
}

/// By seq: where its latest note stands, and the reason.
fn recall(ledger: &dyn Ledger) -> BTreeMap<Seq, (Seq, String)> {
    let (first, head) = (ledger.first(), ledger.head().borrow().seq);
    let mut parked = BTreeMap::new();
    let mut from = first.max(head.saturating_sub(REACH)).max(1);
    while from <= head {
        let lines = match ledger.read(from, PAGE, PAGE_BYTES) {
            Ok(lines) if !lines.is_empty() => lines,
            Err(LedgerError::Damaged { .. }) => {
                from += 1; // it is told when it is its turn to be sent
                continue;
            }
            Ok(_) => break,
            Err(error) => {
                error!(from, %error, "which records billing has rejected could not all be read from the ledger");
                break;
            }
        };
        for line in lines {
            from = line.seq + 1;
            // Most records are readings: not worth a parser.
            if !line.bytes.windows(change::REJECTED.len()).any(|bytes| bytes == change::REJECTED.as_bytes()) {
                continue;
            }
            match serde_json::from_slice::<Noted>(&line.bytes) {
                Ok(noted)
                    if noted.change == change::REJECTED
                        && (parked.len() < MAX_PARKED || parked.contains_key(&noted.seq)) =>
                {
                    parked.insert(noted.seq, (line.seq, noted.reason));
                }
                Ok(noted) if noted.change == change::REJECTED_RESENT => {
                    parked.remove(&noted.seq);
                }
                _ => {}
            }
        }
    }
    parked.retain(|seq, _| *seq >= first);
    parked
}
