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

/// A range that was asked for, of which everything before `next` was sent.
#[derive(Debug)]
struct Asked {
    from: Seq,
    next: Seq,
    to: Seq,
}

impl Asked {
    fn new(from: Seq, to: Seq) -> Asked {
        Asked { from, next: from, to }
    }

    fn holds(&self, range: &RangeInclusive<Seq>) -> bool {
        self.from <= *range.start() && *range.end() <= self.to
    }

    fn touches(&self, from: Seq, to: Seq) -> bool {
        self.from <= to.saturating_add(1) && from <= self.to.saturating_add(1)
    }
}

/// A replay of which everything was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replayed {
    /// What was asked for.
    pub range: RangeInclusive<Seq>,
    /// When its last message was handed over.
    pub at: Instant,
}

/// What is due once more.
#[derive(Debug)]
pub(super) struct Resends {
    /// What billing lacks.
    gap: Option<Asked>,
    /// Ranges that neither overlap nor touch.
    replays: VecDeque<Asked>,
    replayed: Option<Replayed>,
    gap_is_next: bool,
    /// When what was sent so far is within the rate.
    paid_at: Instant,
}

impl Resends {
    pub(super) fn new(now: Instant) -> Resends {
        Resends { gap: None, replays: VecDeque::new(), replayed: None, gap_is_next: true, paid_at: now }
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
                *gap = Some(Asked::new(from, to));
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

    /// Asks for a replay; what touches one that is not sent to its end becomes a part of it, and goes on where that is.
    pub(super) fn ask(&mut self, range: RangeInclusive<Seq>) -> Resend {
        if self.replays.iter().any(|asked| asked.holds(&range)) {
            return Resend::Merged;
        }
        let (from, to) = range.clone().into_inner();
        let mut all = Asked::new(from, to);
        let touches = |asked: &Asked| asked.touches(from, to);
        let Some(place) = self.replays.iter().position(touches) else {
            if self.replays.len() >= MAX_REPLAYS {
                return Resend::Full;
            }
            self.replays.push_back(all);
            return Resend::Queued(range);
        };
        let (parts, others) = std::mem::take(&mut self.replays).into_iter().partition(touches);
        self.replays = others;
        for part in parts {
            if part.from <= all.from {
                all.next = part.next; // only the first one that waits is begun
            }
            (all.from, all.to) = (all.from.min(part.from), all.to.max(part.to));
        }
        self.replays.insert(place, all);
        Resend::Queued(range)
    }

    pub(super) fn into_ranges(self) -> impl Iterator<Item = RangeInclusive<Seq>> {
        self.gap.into_iter().chain(self.replays).map(|asked| asked.next..=asked.to)
    }

    /// As they were asked for.
    pub(super) fn replays(&self) -> impl ExactSizeIterator<Item = RangeInclusive<Seq>> {
        self.replays.iter().map(|asked| asked.from..=asked.to)
    }

    /// The last replay that was sent to its end.
    pub(super) fn replayed(&self) -> Option<&Replayed> {
        self.replayed.as_ref()
    }

    /// What is due next, of both in turn.
    pub(super) fn next(&self) -> Option<(Reason, RangeInclusive<Seq>)> {
        let message = |asked: &Asked| asked.next..=one_message(asked.next, asked.to);
        let gap = self.gap.as_ref().map(|gap| (Reason::Gap, message(gap)));
        let replay = self.replays.front().map(|replay| (Reason::Replay, message(replay)));
        if self.gap_is_next { gap.or(replay) } else { replay.or(gap) }
    }

    /// When the next one may go; `in_flight` of them are without an acknowledgement.
    pub(super) fn ready_at(&self, in_flight: usize, window: u16) -> Option<Instant> {
        let room = in_flight < (usize::from(window) / WINDOW_SHARE).max(1);
        room.then(|| self.paid_at.checked_sub(RESEND_BURST).unwrap_or(self.paid_at))
    }

    /// A message with everything up to `to` was handed over, or passed over (no bytes).
    pub(super) fn sent(&mut self, reason: Reason, to: Seq, bytes: usize, now: Instant) {
        let asked = match reason {
            Reason::Gap => self.gap.as_mut(),
            Reason::Replay => self.replays.front_mut(),
        };
        if let Some(asked) = asked {
            asked.next = to + 1;
        }
        self.gap.take_if(|gap| gap.next > gap.to);
        if let Some(Asked { from, to, .. }) = self.replays.front().filter(|replay| replay.next > replay.to) {
            self.replayed = Some(Replayed { range: *from..=*to, at: now });
            self.replays.pop_front();
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
            (Reason::Gap, gap) => *gap = Some(Asked::new(*range.start(), *range.end())),
            (Reason::Replay, _) => {
                if let Some(replay) = self.replays.iter_mut().find(|replay| replay.holds(&range)) {
                    replay.next = replay.next.min(*range.start());
                } else if self.ask(range.clone()) == Resend::Full {
                    // The place is its own again, even where the list is full.
                    self.replays.push_front(Asked::new(*range.start(), *range.end()));
                }
            }
        }
    }
}
