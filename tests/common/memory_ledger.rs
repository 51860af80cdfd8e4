//! A ledger in memory with just enough of the promise for the publisher: lines, a head, cursors, sessions.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{
    ops::{Range, RangeInclusive},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::future::BoxFuture;
use meter_gateway::{
    ledger::{Cursor, Head, Ledger, LedgerError, Line, ReadingQuery},
    model::{Draft, GENESIS, MeterId, Seq, Utc},
};
use tokio::sync::watch;

pub const LEDGER_ID: &str = "00112233445566778899aabbccddeeff";

pub struct MemoryLedger {
    lines: Mutex<Vec<Line>>,
    head: watch::Sender<Head>,
    cursors: Mutex<(Seq, Seq)>,
    sessions: AtomicU64,
    damaged: Mutex<Vec<Seq>>,
    pruned: Mutex<Vec<RangeInclusive<Seq>>>,
}

impl MemoryLedger {
    pub fn new() -> Arc<MemoryLedger> {
        Arc::new(MemoryLedger {
            lines: Mutex::default(),
            head: watch::Sender::new(Head { seq: 0, hash: GENESIS.into() }),
            cursors: Mutex::default(),
            sessions: AtomicU64::new(0),
            damaged: Mutex::default(),
            pruned: Mutex::default(),
        })
    }

    /// Stores `count` small records.
    pub fn store(&self, count: u64) {
        let mut lines = self.lines.lock().unwrap();
        for _ in 0..count {
            let seq = lines.len() as Seq + 1;
            let text = format!(r#"{{"pad":"{}","seq":{seq},"type":"reading"}}"#, "x".repeat(150));
            lines.push(Line { seq, bytes: text.into() });
        }
        let seq = lines.len() as Seq;
        drop(lines);
        self.head.send_replace(Head { seq, hash: GENESIS.into() });
    }

    pub fn damage(&self, seq: Seq) {
        self.damaged.lock().unwrap().push(seq);
    }

    /// Removes records; what stands before them may be kept.
    pub fn prune(&self, records: RangeInclusive<Seq>) {
        self.pruned.lock().unwrap().push(records);
    }
}

impl Ledger for MemoryLedger {
    fn id(&self) -> &str {
        LEDGER_ID
    }

    fn append(&self, _: Vec<Draft>) -> BoxFuture<'_, Result<Range<Seq>, LedgerError>> {
        Box::pin(async { Err(LedgerError::Refused("this ledger stores through `store` only".into())) })
    }

    fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    fn first(&self) -> Seq {
        1
    }

    fn read(&self, from: Seq, max_records: usize, max_bytes: usize) -> Result<Vec<Line>, LedgerError> {
        let (damaged, pruned) = (self.damaged.lock().unwrap(), self.pruned.lock().unwrap());
        let mut out: Vec<Line> = Vec::new();
        let mut bytes = 0;
        for line in self.lines.lock().unwrap().iter().skip(usize::try_from(from - 1).unwrap()) {
            if out.len() == max_records {
                break;
            }
            if pruned.iter().any(|pruned| pruned.contains(&line.seq)) {
                if out.is_empty() {
                    continue;
                }
                break;
            }
            if damaged.contains(&line.seq) {
                if out.is_empty() {
                    let detail = "the hash does not match".into();
                    return Err(LedgerError::Damaged {
                        path: "memory".into(),
                        offset: 0,
                        seq: line.seq,
                        detail,
                    });
                }
                break;
            }
            bytes += line.bytes.len();
            if bytes > max_bytes && !out.is_empty() {
                break;
            }
            out.push(line.clone());
        }
        Ok(out)
    }

    fn latest(&self, _: &MeterId, _: Seq, _: usize) -> Result<Vec<Line>, LedgerError> {
        Ok(Vec::new())
    }

    fn latest_slot(&self, _: &MeterId) -> Option<Utc> {
        None
    }

    fn readings(&self, _: &ReadingQuery) -> Result<Vec<Line>, LedgerError> {
        Ok(Vec::new())
    }

    fn cursor(&self, cursor: Cursor) -> Seq {
        let cursors = self.cursors.lock().unwrap();
        if cursor == Cursor::Acknowledged { cursors.0 } else { cursors.1 }
    }

    fn advance(&self, cursor: Cursor, to: Seq) {
        let mut cursors = self.cursors.lock().unwrap();
        let place = if cursor == Cursor::Acknowledged { &mut cursors.0 } else { &mut cursors.1 };
        assert!(to >= *place && to <= self.head.borrow().seq, "cursor {cursor:?} from {place} to {to}");
        *place = to;
    }

    fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::SeqCst) + 1
    }
}
