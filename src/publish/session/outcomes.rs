//! What acknowledgements, refusals, receipts and a lost connection do to the cursors.
//!
//! Knows which packet id carries which records; when to connect, send or give up is decided in `session`.

use std::time::{Duration, Instant};

use super::{
    super::payload::Receipt, MAX_REJECTED, OVERLAP, PAUSE_MAX_MS, PAUSE_MIN_MS, Phase, Session, Tag, Verdict,
    resumed,
};
use crate::config::Confirm;

/// A connection that lasted so long was a good one, even if nothing was to be sent.
const GOOD_CONNECTION: Duration = Duration::from_secs(60);

impl Session {
    pub(super) fn sent(&mut self, pkid: u16) {
        if self.outstanding.iter().any(|o| o.pkid == Some(pkid) && o.verdict.is_none()) {
            self.desync = Some(format!("packet id {pkid} given out twice"));
            return;
        }
        match self.outstanding.iter_mut().find(|o| o.pkid.is_none()) {
            Some(message) => message.pkid = Some(pkid),
            None => self.desync = Some(format!("packet id {pkid} for a message that was never handed over")),
        }
    }

    pub(super) fn acknowledged(&mut self, pkid: u16, verdict: Verdict, now: Instant) {
        let found = self.outstanding.iter_mut().find(|o| o.pkid == Some(pkid) && o.verdict.is_none());
        let Some(message) = found else {
            self.desync = Some(format!("acknowledgement for packet id {pkid}, which is not in flight"));
            return;
        };
        message.verdict = Some(verdict.clone());
        let tag = message.tag.clone();
        if tag == Tag::Own {
            self.settle();
            return;
        }
        if let Tag::Replay(range) = tag
            && verdict != Verdict::Accepted
        {
            self.replays.push_front(range);
        }
        match verdict {
            Verdict::Accepted if !self.rewind => {
                self.careful = false;
                self.refusals = 0;
                self.attempts = 0;
                self.nobody_listens = false;
                self.last_refusal = None;
            }
            Verdict::Accepted => {}
            Verdict::NoSubscribers => {
                self.nobody_listens = true;
                self.refused(now);
            }
            Verdict::Failed(code) => {
                self.last_refusal = Some(code);
                self.refused(now);
            }
        }
        self.settle();
    }

    fn refused(&mut self, now: Instant) {
        self.careful = true;
        if !self.rewind {
            self.rewind = true;
            let pause = (PAUSE_MIN_MS << self.refusals.min(6)).min(PAUSE_MAX_MS);
            self.refusals += 1;
            self.paused_until = Some(now + Duration::from_millis(pause));
        }
    }

    /// Moves the cursor over the unbroken run of accepted records, forgets what is resolved, rewinds when due.
    pub(super) fn settle(&mut self) {
        for message in &self.outstanding {
            if let Tag::Records(range) = &message.tag {
                match message.verdict {
                    Some(Verdict::Accepted) if *range.start() <= self.reached + 1 => {
                        self.reached = self.reached.max(*range.end());
                    }
                    _ => break,
                }
                if self.reached > self.acknowledged {
                    if self.recent.len() >= OVERLAP {
                        self.recent.pop_front();
                    }
                    self.recent.push_back(self.acknowledged);
                    self.acknowledged = self.reached;
                }
            }
        }
        if self.confirm == Confirm::Broker {
            self.confirmed = self.confirmed.max(self.acknowledged);
        }
        // Accepted records behind a gap must stay known until the gap closes; a resolved run at the front need not.
        while self.outstanding.front().is_some_and(|o| o.verdict.is_some()) {
            self.outstanding.pop_front();
        }
        let pending = self.outstanding.iter().any(|o| o.verdict.is_none() && o.tag != Tag::Own);
        if self.rewind && !pending {
            self.rewind = false;
            for resolved in self.outstanding.iter_mut().filter(|o| o.verdict.is_some()) {
                resolved.tag = Tag::Own; // it still occupies its packet id, but says nothing about records any more
            }
            self.next = self.reached + 1;
        }
    }

    pub(super) fn down(&mut self, random: u64, now: Instant) {
        if let Phase::Online { since } = self.phase
            && now.saturating_duration_since(since) >= GOOD_CONNECTION
        {
            self.attempts = 0;
        }
        for message in self.outstanding.drain(..).rev() {
            if let Tag::Replay(range) = message.tag
                && message.verdict.is_none()
            {
                self.replays.push_front(range);
            }
        }
        // A connection that was lost within the overlap goes on where it was, so that short ones make progress too.
        if self.reached >= self.acknowledged {
            self.reached = self.recent.front().copied().unwrap_or(self.acknowledged);
        }
        if self.confirm == Confirm::Billing {
            self.reached = resumed(self.confirm, self.acknowledged, self.confirmed);
        }
        self.recent.clear();
        self.next = self.reached + 1;
        self.careful = true;
        self.rewind = false;
        self.desync = None;
        self.attempts = self.attempts.saturating_add(1);
        let ceiling = (PAUSE_MIN_MS << self.attempts.min(6)).min(PAUSE_MAX_MS);
        let pause = PAUSE_MIN_MS + random % (ceiling - PAUSE_MIN_MS + 1);
        self.phase = Phase::Waiting { until: now + Duration::from_millis(pause) };
    }

    pub(super) fn receipt(&mut self, receipt: Receipt) {
        if receipt.ledger != self.ledger || receipt.confirmed_seq > self.highest_sent {
            self.ignored_receipts += 1;
            return;
        }
        for rejected in receipt.rejected {
            if rejected.seq <= self.highest_sent && !self.rejected.contains(&rejected) {
                if self.rejected.len() >= MAX_REJECTED {
                    self.rejected.remove(0);
                }
                self.rejected.push(rejected);
            }
        }
        if self.confirm == Confirm::Billing {
            // Who has committed a record has received it, whatever became of the broker's own word.
            self.confirmed = self.confirmed.max(receipt.confirmed_seq);
            self.acknowledged = self.acknowledged.max(self.confirmed);
            self.reached = self.reached.max(self.confirmed);
            self.next = self.next.max(self.confirmed + 1);
            self.settle();
        }
    }
}
