//! Records that are sent once more beside the new ones: what billing lacks, and what somebody asked for.
//!
//! Moves no cursor. Says what is due and how much of it the connection may carry; when billing lacks something is for
//! `progress` to say.

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::one_message;
use crate::model::Seq;

/// Replays that may wait, ranges that touch counted as one: each is a person's or a program's request, more is a mistake.
pub const MAX_REPLAYS: usize = 64;
/// One message in so many of the window is sent once more; the rest of the window is for new records.
const WINDOW_SHARE: usize = 4;
/// Bytes in a second that are sent once more, on average: a day of 700 meters in two minutes, and a broker's queue for a
/// slow consumer is not filled within seconds.
const RESEND_RATE: u64 = 1024 * 1024;
/// How far ahead of that rate it may be: what a few meters lack arrives at once.
const RESEND_BURST: Duration = Duration::from_secs(4);

/// What became of a request to send records once more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resend {
    /// This range is going to be sent.
    Queued(RangeInclusive<Seq>),
    /// It waits or is on its way already.
    Merged,
    /// The same was asked for a moment ago, and sent.
    TooSoon,
    /// Nothing of it was ever sent: only so many records were.
    NeverSent(Seq),
    /// Too many requests wait.
    Full,
}

/// Which of the two lists a message is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Billing lacks these.
    Gap,
    /// Somebody asked.
    Replay,
}

/// What billing lacks: one range, of which everything before `next` was sent.
#[derive(Debug)]
struct Gap {
    from: Seq,
    next: Seq,
    to: Seq,
}

/// What is due once more.
#[derive(Debug)]
pub(super) struct Resends {
    gap: Option<Gap>,
    /// Ranges that neither overlap nor touch.
    replays: VecDeque<RangeInclusive<Seq>>,
    gap_is_next: bool,
    /// When what was sent so far is within the rate.
    paid_at: Instant,
}

impl Resends {
    pub(super) fn new(now: Instant) -> Resends {
        Resends { gap: None, replays: VecDeque::new(), gap_is_next: true, paid_at: now }
    }

    /// Asks for what billing lacks, in order. A later request goes on where an earlier one is.
    pub(super) fn fill(&mut self, range: &RangeInclusive<Seq>) -> Resend {
        let (from, to) = (*range.start(), *range.end());
        match &mut self.gap {
            Some(gap) if gap.from <= from && from <= gap.to + 1 => {
                gap.to = gap.to.max(to);
                Resend::Merged
            }
            gap => {
                *gap = Some(Gap { from, next: from, to });
                Resend::Queued(from..=to)
            }
        }
    }

    /// The connection itself begins with these: what billing lacks of them need not be sent beside it.
    pub(super) fn filled_from(&mut self, first: Seq) {
        self.gap.take_if(|gap| gap.from >= first);
    }

    pub(super) fn fills(&self) -> bool {
        self.gap.is_some()
    }

    /// Asks for a replay; what touches one that waits becomes a part of it.
    pub(super) fn ask(&mut self, range: RangeInclusive<Seq>) -> Resend {
        let (mut from, mut to) = range.clone().into_inner();
        let touches =
            |r: &RangeInclusive<Seq>| *r.start() <= to.saturating_add(1) && from <= r.end().saturating_add(1);
        let known: Vec<usize> =
            (0..self.replays.len()).filter(|nth| self.replays.get(*nth).is_some_and(touches)).collect();
        let Some(place) = known.first().copied() else {
            if self.replays.len() >= MAX_REPLAYS {
                return Resend::Full;
            }
            self.replays.push_back(range.clone());
            return Resend::Queued(range);
        };
        if self.replays.get(place).is_some_and(|r| *r.start() <= from && to <= *r.end()) {
            return Resend::Merged;
        }
        for nth in known.into_iter().rev() {
            if let Some(part) = self.replays.remove(nth) {
                (from, to) = (from.min(*part.start()), to.max(*part.end()));
            }
        }
        self.replays.insert(place, from..=to);
        Resend::Queued(range)
    }

    pub(super) fn into_ranges(self) -> impl Iterator<Item = RangeInclusive<Seq>> {
        self.gap.into_iter().map(|gap| gap.next..=gap.to).chain(self.replays)
    }

    pub(super) fn replays(&self) -> &VecDeque<RangeInclusive<Seq>> {
        &self.replays
    }

    /// What is due next, of both in turn.
    pub(super) fn next(&self) -> Option<(Reason, RangeInclusive<Seq>)> {
        let gap = self.gap.as_ref().map(|gap| (Reason::Gap, gap.next..=one_message(gap.next, gap.to)));
        let replay = self.replays.front();
        let replay = replay.map(|r| (Reason::Replay, *r.start()..=one_message(*r.start(), *r.end())));
        if self.gap_is_next { gap.or(replay) } else { replay.or(gap) }
    }

    /// When the next one may go; `in_flight` of them are without an acknowledgement.
    pub(super) fn ready_at(&self, in_flight: usize, window: u16) -> Option<Instant> {
        let room = in_flight < (usize::from(window) / WINDOW_SHARE).max(1);
        room.then(|| self.paid_at.checked_sub(RESEND_BURST).unwrap_or(self.paid_at))
    }

    /// A message with everything up to `to` was handed over, or passed over (no bytes).
    pub(super) fn sent(&mut self, reason: Reason, to: Seq, bytes: usize, now: Instant) {
        match reason {
            Reason::Gap => {
                if let Some(gap) = &mut self.gap {
                    gap.next = to + 1;
                }
                self.gap.take_if(|gap| gap.next > gap.to);
            }
            Reason::Replay => {
                if let Some(range) = self.replays.pop_front()
                    && *range.end() > to
                {
                    self.replays.push_front(to + 1..=*range.end());
                }
            }
        }
        self.gap_is_next = reason == Reason::Replay;
        let micros = (bytes as u64).saturating_mul(1_000_000) / RESEND_RATE;
        self.paid_at = self.paid_at.max(now) + Duration::from_micros(micros);
    }

    /// The broker did not take these: they go again, in their order.
    pub(super) fn give_back(&mut self, reason: Reason, range: RangeInclusive<Seq>) {
        match (reason, &mut self.gap) {
            (Reason::Gap, Some(gap)) if range.end() + 1 >= gap.from => {
                gap.from = gap.from.min(*range.start());
                gap.next = gap.next.min(*range.start());
                gap.to = gap.to.max(*range.end());
            }
            (Reason::Gap, Some(_)) => {} // a later request took its place
            (Reason::Gap, gap) => {
                let (from, to) = range.into_inner();
                *gap = Some(Gap { from, next: from, to });
            }
            (Reason::Replay, _) => {
                // The place is its own again, even where the list is full.
                if self.ask(range.clone()) == Resend::Full {
                    self.replays.push_front(range);
                }
            }
        }
    }
}
