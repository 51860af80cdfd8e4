//! Whether a boundary of billing (the end of a day, of a month) may be drawn now. Never on a time that nobody vouches for.

use crate::{
    clock::Clock,
    model::{ClockState, Utc},
};

/// What is known of a boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// It lies behind us: what it bounds may be drawn up.
    Past,
    /// It is still to come.
    Ahead,
    /// The clock is not trusted, so nobody knows. Wait until it is: nothing is lost meanwhile.
    Unknown,
}

/// Judges the boundary at `at` by what [`seen`] saw.
pub fn boundary(at: Utc, (now, clock): (Utc, ClockState)) -> Boundary {
    match clock {
        ClockState::Unsynced => Boundary::Unknown,
        ClockState::Synced | ClockState::Holdover if at <= now => Boundary::Past,
        ClockState::Synced | ClockState::Holdover => Boundary::Ahead,
    }
}

/// The time, and how far that very time can be trusted: a clock that is set between two looks must not lend an old time its
/// new trust, or a new time its old.
pub fn seen(clock: &dyn Clock) -> (Utc, ClockState) {
    let before = clock.state();
    let now = clock.wall();
    let after = clock.state();
    (now, if before == ClockState::Unsynced { before } else { after })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SimulatedClock;
    use chrono::TimeDelta;

    #[tokio::test(start_paused = true)]
    async fn a_boundary_is_past_only_by_a_time_that_somebody_vouches_for() {
        let midnight: Utc = "2026-11-02T00:00:00Z".parse().unwrap();
        let second = TimeDelta::seconds(1);
        for (state, before, after) in [
            (ClockState::Synced, Boundary::Ahead, Boundary::Past),
            (ClockState::Holdover, Boundary::Ahead, Boundary::Past),
            (ClockState::Unsynced, Boundary::Unknown, Boundary::Unknown),
        ] {
            let at = |now| boundary(midnight, (now, state));
            assert_eq!([at(midnight - second), at(midnight), at(midnight + second)], [before, after, after]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_is_seen_by_this_look_takes_the_trust_of_this_look() {
        let begin: Utc = "2026-11-01T12:00:00Z".parse().unwrap();
        let clock = SimulatedClock::starting_at(begin, ClockState::Synced);
        assert_eq!(seen(&clock), (begin, ClockState::Synced));
        clock.step(TimeDelta::days(40));
        assert_eq!(
            seen(&clock),
            (begin + TimeDelta::days(40), ClockState::Unsynced),
            "followed, not believed"
        );
        clock.synchronise(true);
        assert_eq!(seen(&clock).1, ClockState::Synced);
    }
}
