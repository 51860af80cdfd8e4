//! The house's time, kept from two clocks: the kernel's wall clock and the monotonic one. Pure: both are arguments.
//!
//! The house follows the wall clock as long as it is trusted. A step that comes while it is not (somebody set it, a
//! box without a battery woke up, the first synchronisation) is told at once and *not* followed: house time goes on by
//! the monotonic clock, so that slots keep their spacing. When trust comes the house takes over the wall clock's
//! time and says by how much everything before was wrong. A wall clock that nobody ever vouches for is followed after
//! [`PATIENCE`]. Knows nothing of ledgers; who vouches for the kernel's clock is `evidence.rs`.

use std::{collections::VecDeque, time::Duration};

use chrono::TimeDelta;
use tokio::time::Instant;

use crate::model::{ClockState, Utc, stepped};

/// How long a wall clock that was set, but that nobody vouches for, is not followed. ntpd needs about five minutes from
/// its step to its word that it is synchronised; a site without any time server is set by hand, and means it.
pub const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// How long a clock that was synchronised counts as holding over: a cheap quartz drifts by 2 to 5 s a day.
pub const HOLDOVER: Duration = Duration::from_secs(24 * 3600);

/// Stretches that one trusted time may explain: the house follows an unproven clock once in [`PATIENCE`], so this is
/// most of a day of somebody setting it again and again. Later ones are part of the last.
const MAX_STRETCHES: usize = 64;

/// Steps that may wait to be written down while the ledger does not take them (a full disk): 100 kB of them.
const MAX_STEPS: usize = 1000;

/// What happened to the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClockEvent {
    /// The kernel's wall clock was set.
    Stepped {
        /// What it would have shown.
        from: Utc,
        /// What it showed.
        to: Utc,
        /// Trust before.
        before: ClockState,
        /// Trust after.
        after: ClockState,
        /// The house's time follows; else it goes on by the monotonic clock.
        followed: bool,
    },
    /// From here on times are not trusted.
    Untrusted,
    /// The wall clock is trusted, and the house shows it. What was stamped before was wrong by this much, stretch by
    /// stretch, one for each [`ClockEvent::Untrusted`].
    Trusted(Vec<Stretch>),
}

/// A time of the house that was not trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Its first moment, as the house stamped it.
    pub from: Utc,
    /// Its last moment.
    pub to: Utc,
    /// True time minus stamped time.
    pub offset: TimeDelta,
}

/// One look at both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Sight {
    /// Monotonic.
    pub instant: Instant,
    /// The kernel's wall clock.
    pub kernel: Utc,
}

/// Keeps the house's time.
pub struct Timekeeper {
    seen: Sight,
    state: ClockState,
    synced: Option<Instant>,
    /// House time minus the kernel's.
    lag: TimeDelta,
    held_since: Option<Instant>,
    /// By how much the house's time has jumped since it began.
    jumped: TimeDelta,
    stretches: Vec<Open>,
    events: VecDeque<ClockEvent>,
    ask: bool,
}

/// A stretch of distrust, and how far the house had jumped when it began.
struct Open {
    from: Utc,
    to: Utc,
    jumped: TimeDelta,
}

impl Timekeeper {
    /// Begins with the wall clock as it is.
    pub fn new(at: Sight, state: ClockState) -> Timekeeper {
        let mut keeper = Timekeeper {
            seen: at,
            state,
            synced: (state != ClockState::Unsynced).then_some(at.instant),
            lag: TimeDelta::zero(),
            held_since: None,
            jumped: TimeDelta::zero(),
            stretches: Vec::new(),
            events: VecDeque::new(),
            ask: false,
        };
        if state == ClockState::Unsynced {
            keeper.distrust(at.kernel);
        }
        keeper
    }

    /// How far the house's time can be trusted.
    pub fn state(&self) -> ClockState {
        self.state
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<ClockEvent> {
        self.events.pop_front()
    }

    /// Whether somebody should be asked at once who vouches for the wall clock. Forgotten by asking.
    pub fn wants_evidence(&mut self) -> bool {
        std::mem::take(&mut self.ask)
    }

    /// The house's time.
    pub fn look(&mut self, at: Sight) -> Utc {
        let passed = at.instant.saturating_duration_since(self.seen.instant);
        let step = stepped(self.seen.kernel, at.kernel, passed);
        self.seen = at;
        if let Some(by) = step {
            self.note_step(by, at);
        }
        if self.held_since.is_some_and(|since| at.instant.saturating_duration_since(since) >= PATIENCE) {
            let from = at.kernel + self.lag;
            self.end_stretch(from);
            self.take_over();
            let (before, after) = (self.state, self.state);
            self.tell_step(ClockEvent::Stepped { from, to: at.kernel, before, after, followed: true });
            self.distrust(at.kernel);
        }
        at.kernel + self.lag
    }

    /// What the evidence says now. A clock that was synchronised holds over for a day.
    pub fn note(&mut self, at: Sight, synced: bool) {
        let house = self.look(at);
        if synced {
            self.synced = Some(at.instant);
        }
        let state = match self.synced {
            _ if synced => ClockState::Synced,
            Some(since) if at.instant.saturating_duration_since(since) < HOLDOVER => ClockState::Holdover,
            _ => ClockState::Unsynced,
        };
        let before = std::mem::replace(&mut self.state, state);
        match (before == ClockState::Unsynced, state == ClockState::Unsynced) {
            (true, false) => {
                self.end_stretch(house);
                self.take_over();
                let jumped = self.jumped;
                let stretch =
                    |open: Open| Stretch { from: open.from, to: open.to, offset: jumped - open.jumped };
                let stretches = self.stretches.drain(..).map(stretch).collect();
                self.events.push_back(ClockEvent::Trusted(stretches));
            }
            (false, true) => self.distrust(house),
            _ => {}
        }
    }

    fn note_step(&mut self, by: TimeDelta, at: Sight) {
        self.ask = true;
        let before = self.state;
        let followed = before != ClockState::Unsynced;
        let (from, after) = (at.kernel - by, ClockState::Unsynced);
        self.tell_step(ClockEvent::Stepped { from, to: at.kernel, before, after, followed });
        if followed {
            // Nobody has said yet that the new time is the better one.
            self.state = after;
            self.synced = None;
            self.jumped += by;
            self.distrust(at.kernel);
        } else {
            self.lag -= by;
            self.held_since = Some(at.instant);
        }
    }

    /// The house shows the wall clock's time from now on.
    fn take_over(&mut self) {
        self.jumped -= self.lag;
        self.lag = TimeDelta::zero();
        self.held_since = None;
    }

    fn distrust(&mut self, house: Utc) {
        if self.stretches.len() < MAX_STRETCHES {
            self.stretches.push(Open { from: house, to: house, jumped: self.jumped });
            self.events.push_back(ClockEvent::Untrusted);
        }
    }

    fn end_stretch(&mut self, house: Utc) {
        if let Some(open) = self.stretches.last_mut() {
            open.to = house;
        }
    }

    fn tell_step(&mut self, step: ClockEvent) {
        if self.events.len() < MAX_STEPS {
            self.events.push_back(step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        keeper: Timekeeper,
        at: Sight,
    }

    impl Bench {
        fn new(state: ClockState) -> Bench {
            let at = Sight { instant: Instant::now(), kernel: utc("2026-11-01T00:00:00Z") };
            Bench { keeper: Timekeeper::new(at, state), at }
        }

        fn pass(&mut self, secs: u64) -> Utc {
            self.at.instant += Duration::from_secs(secs);
            self.at.kernel += Duration::from_secs(secs);
            self.keeper.look(self.at)
        }

        fn set(&mut self, by: TimeDelta) -> Utc {
            self.at.kernel += by;
            self.keeper.look(self.at)
        }

        fn events(&mut self) -> Vec<ClockEvent> {
            std::iter::from_fn(|| self.keeper.poll_event()).collect()
        }
    }

    fn utc(text: &str) -> Utc {
        text.parse().unwrap()
    }

    const DAY: TimeDelta = TimeDelta::days(1);

    #[test]
    fn a_step_of_a_trusted_clock_is_followed_and_believed_only_when_somebody_vouches_for_it() {
        let mut bench = Bench::new(ClockState::Synced);
        bench.pass(10);
        let house = bench.set(DAY);
        assert_eq!(house, bench.at.kernel);
        assert_eq!(bench.keeper.state(), ClockState::Unsynced);
        assert!(bench.keeper.wants_evidence() && !bench.keeper.wants_evidence());
        let (before, after) = (ClockState::Synced, ClockState::Unsynced);
        let step = ClockEvent::Stepped { from: house - DAY, to: house, before, after, followed: true };
        assert_eq!(bench.events(), [step, ClockEvent::Untrusted]);
        bench.keeper.note(bench.at, true);
        let none = Stretch { from: house, to: house, offset: TimeDelta::zero() };
        assert_eq!(bench.events(), [ClockEvent::Trusted(vec![none])]);
    }

    #[test]
    fn a_step_of_an_untrusted_clock_is_not_followed_until_trust_comes() {
        let mut bench = Bench::new(ClockState::Unsynced);
        let begin = bench.at.kernel;
        assert_eq!(bench.events(), [ClockEvent::Untrusted]);
        assert_eq!(bench.pass(60), begin + Duration::from_secs(60));
        assert_eq!(bench.set(DAY * 200), begin + Duration::from_secs(60));
        assert_eq!(bench.pass(5), begin + Duration::from_secs(65), "the spacing is the monotonic clock's");
        bench.keeper.note(bench.at, true);
        assert_eq!(bench.keeper.look(bench.at), bench.at.kernel);
        let to = begin + Duration::from_secs(65);
        let events = bench.events();
        assert!(matches!(events[0], ClockEvent::Stepped { followed: false, .. }), "{events:?}");
        assert_eq!(events[1], ClockEvent::Trusted(vec![Stretch { from: begin, to, offset: DAY * 200 }]));
    }

    #[test]
    fn a_clock_set_by_hand_is_followed_in_the_end_and_each_stretch_gets_its_own_offset() {
        let mut bench = Bench::new(ClockState::Unsynced);
        let begin = bench.at.kernel;
        bench.pass(60);
        bench.set(DAY);
        bench.pass(PATIENCE.as_secs() - 1);
        assert_ne!(bench.keeper.look(bench.at), bench.at.kernel);
        bench.pass(1);
        assert_eq!(bench.keeper.look(bench.at), bench.at.kernel);
        bench.pass(100);
        bench.set(-TimeDelta::hours(1));
        bench.keeper.note(bench.at, true);
        let Some(ClockEvent::Trusted(stretches)) = bench.events().pop() else { panic!() };
        let offsets: Vec<TimeDelta> = stretches.iter().map(|stretch| stretch.offset).collect();
        assert_eq!(offsets, [DAY - TimeDelta::hours(1), -TimeDelta::hours(1)]);
        assert_eq!(stretches[0].from, begin);
        assert!(stretches[0].to < stretches[1].from);
    }

    #[test]
    fn holdover_lasts_a_day_and_a_slewing_clock_does_not_step() {
        let mut bench = Bench::new(ClockState::Synced);
        for _ in 0..60 {
            bench.at.kernel += TimeDelta::milliseconds(83); // the fastest that chronyd slews
            bench.pass(1);
        }
        bench.keeper.note(bench.at, true);
        assert!(bench.events().is_empty());
        bench.pass(3600);
        bench.keeper.note(bench.at, false);
        assert_eq!(bench.keeper.state(), ClockState::Holdover);
        bench.pass(24 * 3600);
        bench.keeper.note(bench.at, false);
        assert_eq!(bench.keeper.state(), ClockState::Unsynced);
        assert_eq!(bench.events(), [ClockEvent::Untrusted]);
    }
}
