//! What the outside was told: each record that a subscriber has, each head that the daemon showed. After a restart all
//! of it must be in the ledger, byte for byte.
//!
//! Knows nothing that the gateway did not say: a record that was never shown to anyone may be lost by a crash.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::collections::BTreeMap;

use meter_gateway::ledger::chain::verify_line;
use serde_json::Value;

use crate::{
    consumer::{Accounts, Consumer},
    gateway::Gateway,
};

/// One ledger's life, as it is known outside.
#[derive(Default)]
pub struct Oracle {
    pub accounts: Accounts,
    /// Heads that the daemon showed: seq and hash.
    heads: BTreeMap<u64, String>,
    ledger: Option<String>,
    /// The highest session number that was seen.
    session: u64,
    acknowledged: u64,
    /// Everything up to here was compared with the ledger after a crash.
    proved: u64,
    /// The record at `proved`.
    prev: String,
}

impl Oracle {
    /// The last record that anyone outside knows of.
    pub fn known(&self) -> u64 {
        self.heads.keys().next_back().copied().unwrap_or_default().max(self.accounts.last())
    }

    /// Takes what the subscriber has got so far.
    pub fn hear(&mut self, consumer: &mut Consumer) {
        while let Ok(message) = consumer.messages.try_recv() {
            if message.topic.ends_with("/records") {
                self.accounts.take(&message);
            }
        }
    }

    /// Takes what `GET /api/v1/status` said. Within one process everything only grows; a restart may forget an
    /// acknowledgement, never a record and never a session number.
    pub fn look(&mut self, status: &Value) {
        let ledger = status["ledger"].as_str().unwrap();
        assert_eq!(self.ledger.get_or_insert_with(|| ledger.to_owned()), ledger, "another ledger");
        let seq = status["store"]["last_seq"].as_u64().unwrap();
        let hash = status["store"]["head"].as_str().unwrap();
        assert!(seq >= self.known_head(), "the head went back from {} to {seq}", self.known_head());
        let shown = self.heads.entry(seq).or_insert_with(|| hash.to_owned());
        assert_eq!(shown, hash, "seq {seq} was given twice");
        let session = status["publisher"]["session"].as_u64().unwrap_or_default();
        assert!(session == 0 || session >= self.session, "session {session} after {}", self.session);
        self.session = session.max(self.session);
        self.acknowledged = self.acknowledged.max(status["store"]["acknowledged_seq"].as_u64().unwrap());
        assert!(self.acknowledged <= seq, "acknowledged beyond the head: {status:#}");
    }

    fn known_head(&self) -> u64 {
        self.heads.keys().next_back().copied().unwrap_or_default()
    }

    /// After a crash, with nothing running or with the daemon up again: what is in the ledger proves itself and holds
    /// everything that was known. Returns how many known records were compared.
    pub fn prove(&mut self, gateway: &Gateway, whole: bool) -> u64 {
        let known = self.known();
        if known == 0 {
            return 0;
        }
        let from = if whole { 1 } else { self.proved.max(1) };
        let exported = gateway.cli(&["ledger", "export", "--from", &from.to_string()]);
        let said = String::from_utf8_lossy(&exported.stderr);
        assert!(exported.status.success(), "export: {said}\n{}", gateway.log());
        let (mut next, mut prev) = (from, None::<String>);
        let mut heads_seen = 0;
        for line in exported.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let record = verify_line(line).unwrap();
            assert_eq!(record.seq, next, "a gap in the ledger");
            assert!(prev.is_none_or(|prev| prev == record.prev), "the chain is broken at {next}");
            if let Some(heard) = self.accounts.records.get(&next) {
                assert_eq!(heard, line, "seq {next} is not what the subscriber got");
            }
            if let Some(hash) = self.heads.get(&next) {
                assert_eq!(*hash, record.hash, "seq {next} is not what the status showed");
                heads_seen += 1;
            }
            if next == self.proved && !self.prev.is_empty() {
                assert_eq!(self.prev, record.hash, "seq {next} changed after it was proved");
            }
            if next == known {
                self.prev.clone_from(&record.hash);
            }
            (next, prev) = (next + 1, Some(record.hash));
        }
        assert!(next > known, "seq {next} to {known} were known and are gone\n{}", gateway.log());
        assert_eq!(heads_seen, self.heads.range(from.max(1)..).count(), "each shown head was found");
        self.proved = known;
        known + 1 - from
    }

    pub fn heads(&self) -> usize {
        self.heads.len()
    }
}
