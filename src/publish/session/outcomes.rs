//! What acknowledgements, refusals and a lost connection do to the cursors, and to the size of messages.
//!
//! Knows which packet id carries which records; when to connect, send or give up is decided in `session`.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::{OVERLAP, PAUSE_MAX_MS, PAUSE_MIN_MS, Phase, Session, Tag, Verdict, resumed};
use crate::{config::Confirm, model::Seq};

/// A connection that lasted so long was a good one, even if nothing was to be sent.
const GOOD_CONNECTION: Duration = Duration::from_secs(60);
/// Connections that end over the one message in flight before smaller ones are tried: a broker need not tell its limit, and
/// with MQTT 3.1.1 it cannot. One loss is a loss; two over the same message look like its size.
const LOSSES_TO_SHRINK: u32 = 2;
/// Steps down, each to a quarter: at the last one nearly every record goes alone.
const SHRINK_STEPS: u32 = 5;
/// Accepted messages after which a size larger by one step is tried again.
const ACCEPTED_TO_GROW: u32 = 200;

/// How large messages of records may be, learnt from the connections that ended over one.
#[derive(Debug, Default)]
pub(super) struct MessageSize {
    steps: u32,
    losses: u32,
    accepted: u32,
}

impl MessageSize {
    pub(super) fn of(&self, limit: usize) -> usize {
        limit >> (2 * self.steps)
    }

    fn lost(&mut self) {
        self.losses += 1;
        if self.losses >= LOSSES_TO_SHRINK {
            self.steps = (self.steps + 1).min(SHRINK_STEPS);
            (self.losses, self.accepted) = (0, 0);
        }
    }

    pub(super) fn accepted(&mut self) {
        self.losses = 0;
        self.accepted += 1;
        if self.accepted >= ACCEPTED_TO_GROW {
            self.steps = self.steps.saturating_sub(1);
            self.accepted = 0;
        }
    }
}

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
            self.own_refusal = match verdict {
                Verdict::Failed(code) => Some(code),
                _ => None,
            };
            self.settle();
            return;
        }
        if verdict == Verdict::Accepted {
            self.size.accepted();
        }
        if let Tag::Replay(range) = tag {
            if verdict == Verdict::Accepted {
                self.parked.resent(&range);
            } else {
                self.give_back(range);
            }
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

    /// A replay that was refused goes again, in its order, and joined: how it was cut must not fill the list. Requests may
    /// change places.
    fn give_back(&mut self, range: RangeInclusive<Seq>) {
        let (from, mut to) = range.into_inner();
        let at = self.replays.iter().position(|r| *r.start() > from).unwrap_or(self.replays.len());
        if self.replays.get(at).is_some_and(|next| *next.start() == to + 1)
            && let Some(next) = self.replays.remove(at)
        {
            to = *next.end();
        }
        match at.checked_sub(1).and_then(|before| self.replays.get_mut(before)) {
            Some(before) if *before.end() + 1 == from => *before = *before.start()..=to,
            _ => self.replays.insert(at, from..=to),
        }
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
        self.owed.offline(now);
        let mut open = self.outstanding.iter().filter(|o| o.verdict.is_none() && o.tag != Tag::Own);
        if self.careful && open.next().is_some_and(|o| o.pkid.is_some()) {
            self.size.lost();
        }
        for message in std::mem::take(&mut self.outstanding).into_iter().rev() {
            if let Tag::Replay(range) = message.tag
                && message.verdict.is_none()
            {
                self.give_back(range);
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
}
