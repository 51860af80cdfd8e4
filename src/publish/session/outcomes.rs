//! What acknowledgements, refusals and a lost connection do to the cursors, and to the pause before the next one.
//!
//! Knows which packet id carries which records; when to connect, send or give up is decided in `session`.

use std::time::{Duration, Instant};

use super::{
    super::link::Cause, OVERLAP, PAUSE_MAX_MS, PAUSE_MIN_MS, PAUSE_SHORT_MS, Part, Phase, SHORT_OUTAGE,
    Session, TAKEN_OVER_SHOWN, Tag, Verdict, resumed,
};
use crate::config::Confirm;

/// A connection that lasted so long was a good one, even if nothing was to be sent.
const GOOD_CONNECTION: Duration = Duration::from_secs(60);
/// Connections in a row that end for no reason within [`GOOD_CONNECTION`], with nothing on its way, before another client
/// is supposed to use our client id: without MQTT 5 the broker cannot say so.
const IDLE_ENDS: u32 = 3;

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
        let oldest = self.outstanding.iter().position(|o| o.verdict.is_none());
        let found = self.outstanding.iter().position(|o| o.pkid == Some(pkid) && o.verdict.is_none());
        let Some(message) = found.and_then(|at| self.outstanding.get_mut(at)) else {
            self.desync = Some(format!("acknowledgement for packet id {pkid}, which is not in flight"));
            return;
        };
        message.verdict = Some(verdict.clone());
        if found == oldest {
            self.moved = now;
        }
        let (tag, bytes) = (message.tag.clone(), message.bytes);
        if let Some(departure) = message.departure.take() {
            self.pace.acknowledged(departure, now.saturating_duration_since(message.since));
        }
        if let Tag::Own(part) = tag {
            self.parts.answered(part);
            match verdict {
                Verdict::Failed(code) => self.own_refusals.insert(part, code),
                _ => self.own_refusals.remove(&part),
            };
            self.settle();
            return;
        }
        self.records_answered = true;
        if verdict == Verdict::Accepted {
            self.size.accepted(bytes, now);
        }
        if let Tag::Again(reason, range) = tag {
            if verdict == Verdict::Accepted {
                self.parked.resent(&range);
            } else {
                self.resends.give_back(reason, range);
            }
        }
        match verdict {
            Verdict::Accepted if !self.rewind => {
                self.careful = false;
                self.refusals = 0;
                self.end_outage();
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
        if self.rewind && self.records_in_flight().next().is_none() {
            self.rewind = false;
            for resolved in self.outstanding.iter_mut().filter(|o| o.verdict.is_some()) {
                // It still occupies its packet id, but says nothing about records any more.
                resolved.tag = Tag::Own(Part::Status);
            }
            self.next = self.reached + 1;
        }
    }

    pub(super) fn down(&mut self, random: u64, cause: Cause, now: Instant) {
        let lasted = self.online_since.take().map(|since| now.saturating_duration_since(since));
        let good = lasted.is_some_and(|lasted| lasted >= GOOD_CONNECTION);
        if good {
            self.end_outage();
            self.taken_over = 0;
        }
        self.owed.offline(now);
        self.progress.offline();
        let unexplained = matches!(cause, Cause::Closed | Cause::TooLarge);
        // Most brokers take messages in their order; but acknowledgements may be lost with the connection.
        let beyond = self.records_in_flight().find(|o| self.size.is_beyond(o.bytes));
        let oldest = beyond.or_else(|| self.records_in_flight().next());
        let in_flight = oldest.filter(|o| o.pkid.is_some()).map(|o| o.bytes);
        match in_flight {
            Some(bytes) if unexplained && !self.parts.pending() => self.size.lost(bytes, self.careful, now),
            None if cause == Cause::Closed && !good && lasted.is_some() && !self.parts.unsettled() => {
                self.idle_ends += 1;
            }
            _ => {}
        }
        // Who takes an id over leaves the broker where it is: one that cannot be reached was away.
        let away = cause == Cause::Unreachable
            || lasted.is_none() && cause == Cause::Closed && matches!(self.phase, Phase::Connecting { .. });
        if good || in_flight.is_some() || away {
            self.idle_ends = 0;
        }
        if away {
            self.taken_over = 0;
        }
        if cause == Cause::TakenOver {
            self.taken_over += 1;
        } else if self.idle_ends >= IDLE_ENDS {
            self.taken_over = self.taken_over.max(TAKEN_OVER_SHOWN - 1) + 1;
        }
        self.parts.lost(cause, good, now);
        self.pace.lost();
        for message in std::mem::take(&mut self.outstanding).into_iter().rev() {
            if let Tag::Again(reason, range) = message.tag
                && message.verdict.is_none()
            {
                self.resends.give_back(reason, range);
            }
        }
        // A connection that was lost within the overlap goes on where it was, so that short ones make progress too.
        if self.reached >= self.acknowledged {
            self.reached = self.recent.front().copied().unwrap_or(self.acknowledged);
        }
        if self.confirm == Confirm::Billing {
            self.reached = resumed(self.confirm, self.acknowledged, self.confirmed);
            self.resends.filled_from(self.reached + 1);
        }
        self.recent.clear();
        self.next = self.reached + 1;
        self.careful = true;
        self.rewind = false;
        self.desync = None;
        self.phase = Phase::Waiting { until: now + self.pause(random, now) };
    }

    /// How long to wait before the next attempt. An outage of minutes is no reason to stay away for half a minute after it;
    /// another client with our id is a reason at once.
    fn pause(&mut self, random: u64, now: Instant) -> Duration {
        let since = *self.outage_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= SHORT_OUTAGE {
            self.attempts = self.attempts.saturating_add(1);
        }
        let outage = PAUSE_SHORT_MS << self.attempts.min(5);
        let taken_over = PAUSE_MIN_MS << self.taken_over.min(6);
        let ceiling = outage.max(taken_over).min(PAUSE_MAX_MS);
        Duration::from_millis(PAUSE_MIN_MS + random % (ceiling - PAUSE_MIN_MS + 1))
    }

    fn end_outage(&mut self) {
        self.outage_since = None;
        self.attempts = 0;
    }
}
