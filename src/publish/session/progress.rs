//! How far billing's receipts go, and what follows when they stand still: records that it lacks are sent again.
//!
//! A broker may acknowledge what it does not keep. Then a consumer that takes only the next record stands at its gap, and
//! so do its receipts. Whether they stand because of a gap or because billing is slow cannot be seen from here; so what is
//! sent again begins small, grows while it helps, and comes with growing pauses while it does not.

use std::time::{Duration, Instant};

use super::{Resend, Session};
use crate::{config::Confirm, model::Seq};

/// How long receipts stand still before billing is taken to lack something: a consumer that commits each message answers
/// within the second.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause before the next attempt: a consumer that comes back after a weekend is served within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(1800);
/// Records that are sent again at first, and wherever that did not help: less than 50 KB of readings.
const LEAST_PIECE: u64 = 50;
/// Records that are sent again at once when smaller pieces arrived: some twenty messages.
const LARGEST_PIECE: u64 = 6_400;
/// Attempts without effect after which it is shown: one is often enough.
const SHOWN_AFTER: u32 = 2;
/// How long acknowledged records wait for a first receipt before it is shown that nobody confirms.
const FIRST_RECEIPT: Duration = Duration::from_secs(10);

/// What was sent again last.
#[derive(Debug, Clone, Copy)]
struct Piece {
    from: Seq,
    to: Seq,
    /// There was more that billing may lack.
    cut: bool,
}

/// How far receipts go.
#[derive(Debug)]
pub(super) struct Progress {
    /// Everything up to here is committed, as receipts say; `None` before the first one.
    committed: Option<Seq>,
    /// A receipt came since the start.
    heard_at: Option<Instant>,
    /// Since when they stand still below what is acknowledged, while the connection lives.
    still_since: Option<Instant>,
    due: Option<Instant>,
    /// Attempts since the last progress.
    attempts: u32,
    /// How long they stood still before their last progress: so long billing may take again, and twice that.
    took: Duration,
    piece: Option<Piece>,
    size: Seq,
    /// A piece did not arrive: they grow no further until the gap is closed.
    capped: bool,
    /// What a receipt asked for itself: from where, when, how often without progress.
    asked: Option<(Seq, Instant, u32)>,
}

impl Progress {
    /// `committed` is what the ledger remembers of earlier receipts; 0: none is known.
    pub(super) fn new(committed: Seq) -> Progress {
        Progress {
            committed: (committed > 0).then_some(committed),
            heard_at: None,
            still_since: None,
            due: None,
            attempts: 0,
            took: Duration::ZERO,
            piece: None,
            size: LEAST_PIECE,
            capped: false,
            asked: None,
        }
    }

    fn pause(&self) -> Duration {
        let first = (self.took * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        first.saturating_mul(1_u32.checked_shl(self.attempts).unwrap_or(u32::MAX)).min(LONGEST_PAUSE)
    }

    /// A receipt says how far billing is.
    fn receipt(&mut self, seq: Seq, now: Instant) {
        if self.committed.is_none_or(|known| seq > known) {
            self.committed = Some(seq);
            self.took = self.still_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            (self.still_since, self.due, self.attempts) = (None, None, 0);
        } else if self.heard_at.is_none_or(|before| now.saturating_duration_since(before) >= self.pause()) {
            // It was away, and is back where it was.
            self.due = self.due.map(|due| due.min(now + FIRST_PAUSE));
        }
        self.heard_at = Some(now);
    }

    /// Without a connection nobody stands still.
    pub(super) fn offline(&mut self) {
        (self.still_since, self.due, self.piece) = (None, None, None);
    }

    fn watch(&mut self, acknowledged: Seq, now: Instant) {
        if self.committed.is_none_or(|seq| seq >= acknowledged) {
            (self.still_since, self.due, self.piece, self.attempts) = (None, None, None, 0);
            (self.size, self.capped) = (LEAST_PIECE, false);
        } else if self.still_since.is_none() {
            self.still_since = Some(now);
            self.due = Some(now + self.pause());
        }
    }

    /// The whole piece arrived, and it was not the whole gap.
    fn piece_arrived(&mut self) -> bool {
        let arrived = self.piece.take_if(|piece| self.committed == Some(piece.to));
        if arrived.is_some() && !self.capped {
            self.size = (self.size * 2).min(LARGEST_PIECE);
        }
        arrived.is_some_and(|piece| piece.cut)
    }

    /// Nothing came of the last piece, or not all of it: then a queue on the way holds no more.
    fn piece_lost(&mut self) {
        if let Some(piece) = self.piece.take() {
            self.capped = self.committed.is_some_and(|seq| seq >= piece.from);
            self.size = if self.capped { (self.size / 2).max(LEAST_PIECE) } else { LEAST_PIECE };
        }
    }
}

impl Session {
    /// Billing said how far it is. Where a piece of what it lacks arrived, the next one follows.
    pub(super) fn heard_receipt(&mut self, seq: Seq, now: Instant) {
        self.progress.receipt(seq, now);
        if self.progress.piece_arrived() {
            self.send_piece();
        }
    }

    pub(super) fn watch_progress(&mut self, now: Instant) {
        if self.is_online() {
            self.progress.watch(self.acknowledged, now);
        }
    }

    /// When receipts have stood still for long enough; at that moment what billing lacks is made due, where its word counts.
    pub(super) fn still_until(&mut self, now: Instant) -> Option<Instant> {
        if self.progress.due.is_some_and(|due| now >= due) {
            self.progress.attempts = self.progress.attempts.saturating_add(1);
            self.progress.due = Some(now + self.progress.pause());
            let sends_again_by_itself = self.next <= self.acknowledged || self.resends.fills();
            if self.confirm == Confirm::Billing && !sends_again_by_itself {
                self.progress.piece_lost();
                self.send_piece();
            }
        }
        self.progress.due
    }

    fn send_piece(&mut self) {
        let (Some(committed), sent) = (self.progress.committed, self.sent_seq()) else { return };
        let (from, to) = (committed + 1, sent.min(committed + self.progress.size));
        if from <= to {
            self.progress.piece = Some(Piece { from, to, cut: to < sent });
            self.resends.fill(&(from..=to));
        }
    }

    /// Billing has seen a gap and asks for everything from there on.
    pub(super) fn resend_from(&mut self, from: Seq, now: Instant) -> Resend {
        let (from, sent) = (from.max(1), self.sent_seq());
        if from > sent {
            return if from == sent + 1 { Resend::Merged } else { Resend::NeverSent(sent) };
        }
        let times = match self.progress.asked {
            Some((same, at, times)) if same == from && !self.resends.fills() => {
                let pause = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX));
                if now < at + pause.min(LONGEST_PAUSE) {
                    return Resend::TooSoon;
                }
                times.saturating_add(1)
            }
            _ => 0,
        };
        let done = self.resends.fill(&(from..=sent));
        if done != Resend::Merged {
            self.progress.asked = Some((from, now, times));
            self.progress.due = self.progress.due.map(|due| due.max(now + self.progress.pause()));
        }
        done
    }

    /// Everything up to here is committed, as receipts say that keep standing below what is acknowledged.
    pub fn receipts_behind(&self) -> Option<Seq> {
        self.progress.committed.filter(|_| self.progress.attempts >= SHOWN_AFTER)
    }

    /// Since the start no receipt came, none is known of earlier, and records wait for one.
    pub fn nobody_confirms(&self, now: Instant) -> bool {
        self.progress.committed.is_none() && self.owed.waited_for(FIRST_RECEIPT, now)
    }

    /// Receipts prove that billing has what the broker has acknowledged.
    pub fn receipts_keep_up(&self) -> bool {
        self.progress.committed.is_some() && self.progress.attempts < SHOWN_AFTER
    }
}
