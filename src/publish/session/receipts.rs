//! What billing says: how far it has committed, what it could not use, and how long it has said nothing.
//!
//! A rejected record is parked: it is listed until it is sent again on demand, and holds nothing back. What is parked and
//! released is told to whoever keeps the ledger, so that it outlives the process; nothing is written here.

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::{
    super::payload::{Receipt, Rejected},
    Resend, Session,
};
use crate::{config::Confirm, model::Seq};

/// Rejected records that are parked at a time: what a clerk can work through. Beyond it they are counted only; a billing
/// system that rejects more has a fault of its own, and knows all of them.
pub const MAX_PARKED: usize = 200;
/// Bytes of a reason: a sentence. It goes into a record, and 200 of them into a status.
const MAX_REASON_BYTES: usize = 200;
/// News that wait to be put on record; where nobody takes them, nothing more is parked.
const MAX_NEWS: usize = 400;
/// How long acknowledged records may stay unconfirmed, the time without a broker not counted, before it is shown: a
/// billing run that commits once an hour is not late.
pub const RECEIPT_PATIENCE: Duration = Duration::from_secs(3600);

/// What has to be put on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Billing could not use this one.
    Rejected(Rejected),
    /// A rejected record was sent again, and the broker has it.
    Resent(Seq),
}

/// Rejected records.
#[derive(Debug, Default)]
pub(super) struct Parked {
    open: Vec<Rejected>,
    unlisted: u64,
    news: VecDeque<Note>,
}

impl Parked {
    fn take(&mut self, mut rejected: Rejected) {
        if self.open.iter().any(|known| known.seq == rejected.seq) {
            return;
        }
        if self.open.len() >= MAX_PARKED || self.news.len() >= MAX_NEWS {
            self.unlisted += 1;
            return;
        }
        if rejected.reason.len() > MAX_REASON_BYTES {
            let end = rejected.reason.char_indices().take_while(|(at, _)| *at <= MAX_REASON_BYTES).last();
            rejected.reason.truncate(end.map_or(0, |(at, _)| at));
        }
        self.news.push_back(Note::Rejected(rejected.clone()));
        self.open.push(rejected);
    }

    pub(super) fn resent(&mut self, range: &RangeInclusive<Seq>) {
        for gone in self.open.extract_if(.., |known| range.contains(&known.seq)) {
            self.news.push_back(Note::Resent(gone.seq));
        }
    }
}

/// Since when billing owes a receipt. Time without a broker is not billing's.
#[derive(Debug)]
pub(super) struct Owed {
    since: Option<Instant>,
    away: Duration,
    offline_from: Option<Instant>,
}

impl Owed {
    pub(super) fn new(now: Instant) -> Owed {
        Owed { since: None, away: Duration::ZERO, offline_from: Some(now) }
    }

    pub(super) fn online(&mut self, now: Instant) {
        if let (Some(from), Some(since)) = (self.offline_from.take(), self.since) {
            self.away += now.saturating_duration_since(from.max(since));
        }
    }

    pub(super) fn offline(&mut self, now: Instant) {
        self.offline_from.get_or_insert(now);
    }

    fn paid(&mut self) {
        self.since = None;
        self.away = Duration::ZERO;
    }

    pub(super) fn waited_for(&self, time: Duration, now: Instant) -> bool {
        self.waited(now).is_some_and(|(_, waited)| waited >= time)
    }

    fn waited(&self, now: Instant) -> Option<(Instant, Duration)> {
        let since = self.since?;
        let until = self.offline_from.unwrap_or(now);
        Some((since, until.saturating_duration_since(since).saturating_sub(self.away)))
    }
}

impl Session {
    /// Parks what was parked before the process began. It is on record already.
    pub fn park(&mut self, rejected: Vec<Rejected>) {
        self.parked.open = rejected;
        self.parked.open.truncate(MAX_PARKED);
    }

    /// The next thing that has to be put on record; it stays until [`noted`](Session::noted).
    pub fn note(&self) -> Option<&Note> {
        self.parked.news.front()
    }

    /// That was done.
    pub fn noted(&mut self) {
        self.parked.news.pop_front();
    }

    /// All that is parked has to be put on record again.
    pub fn note_again(&mut self) {
        let notes = self.parked.open.iter().cloned().map(Note::Rejected);
        self.parked.news =
            self.parked.news.drain(..).filter(|n| matches!(n, Note::Resent(_))).chain(notes).collect();
    }

    /// Records that billing has refused and that were not sent again since, the latest at the end; at most two hundred.
    pub fn rejected(&self) -> &[Rejected] {
        &self.parked.open
    }

    /// Rejections that were not parked, because too many were already; a repeated one counts again.
    pub fn rejected_unlisted(&self) -> u64 {
        self.parked.unlisted
    }

    /// Since when acknowledged records wait for a receipt, once that is longer than billing may take.
    pub fn awaiting_receipt_since(&self, now: Instant) -> Option<Instant> {
        let (since, waited) = self.owed.waited(now)?;
        (waited >= RECEIPT_PATIENCE).then_some(since)
    }

    pub(super) fn receipt(&mut self, receipt: Receipt, now: Instant) {
        if receipt.ledger != self.ledger || receipt.confirmed_seq > self.highest_sent {
            self.ignored_receipts += 1;
            return;
        }
        let sent = 1..=self.highest_sent;
        let named = receipt.rejected.len();
        let known: Vec<Rejected> = receipt.rejected.into_iter().filter(|r| sent.contains(&r.seq)).collect();
        if known.len() < named {
            self.ignored_receipts += 1; // the rest of it counts
        }
        for rejected in known {
            self.parked.take(rejected);
        }
        if self.confirm == Confirm::Billing {
            if receipt.confirmed_seq > self.confirmed {
                self.owed.paid();
            }
            // Who has committed a record has received it, whatever became of the broker's own word.
            self.confirmed = self.confirmed.max(receipt.confirmed_seq);
            self.acknowledged = self.acknowledged.max(self.confirmed);
            self.reached = self.reached.max(self.confirmed);
            self.next = self.next.max(self.confirmed + 1);
            self.settle();
        }
        self.heard_receipt(receipt.confirmed_seq, now);
        self.resend = receipt.resend_from.and_then(Result::ok).map(|from| self.resend_from(from, now));
    }

    /// What became of the last receipt's request to send records again.
    pub fn take_resend(&mut self) -> Option<Resend> {
        self.resend.take()
    }

    /// A receipt that could not even be read.
    pub fn malformed_receipt(&mut self) {
        self.ignored_receipts += 1;
    }

    pub(super) fn watch_receipts(&mut self, now: Instant) {
        if self.confirm == Confirm::Broker || self.confirmed >= self.acknowledged {
            self.owed.paid();
        } else {
            self.owed.since.get_or_insert(now);
        }
    }
}
