//! The rules: what speaks against a reading. Pure; flags and never drops.
//!
//! Knows the history of each register and the limits of the profile. Does not know why a register may rightly
//! begin again (an exchange of the meter is a record of its own).

mod history;
mod register;

pub use history::{BELIEVED, Fallen, Histories, History, Last, Leapt, Said, is_of_another_device, said};
pub use register::{Finding, Limits, agrees, check};

use std::collections::BTreeSet;

use crate::model::{Utc, Verdict, flag};

/// How far from its slot a reading may be taken before it is flagged, unless the meter says otherwise
/// (`off_schedule_secs`): half the interval, within these bounds.
/// A minute is what a boundary read may be off; five seconds is what one busy sweep takes.
const TOLERANCE_SECS: (i64, i64) = (5, 60);

/// Seconds by which a reading may miss its slot: the meter's own limit, else what its interval allows.
/// `interval_secs` 0 has its slot when its turn came.
pub fn tolerance_secs(interval_secs: u32, own: Option<u32>) -> i64 {
    let (least, most) = TOLERANCE_SECS;
    match (own, interval_secs) {
        (Some(own), _) => i64::from(own),
        (None, 0) => most,
        (None, secs) => (i64::from(secs) / 2).clamp(least, most),
    }
}

/// Whether a reading was taken farther from its slot than `tolerance_secs`.
pub fn is_off_schedule(scheduled_at: Utc, taken_at: Utc, tolerance_secs: i64) -> bool {
    (taken_at - scheduled_at).num_milliseconds().abs() > tolerance_secs.saturating_mul(1000)
}

/// The worst that a set of flags means. What is not named here informs and speaks against nothing.
pub fn verdict(flags: &BTreeSet<String>) -> Verdict {
    flags.iter().map(|name| weight(name)).max().unwrap_or(Verdict::Good)
}

fn weight(name: &str) -> Verdict {
    match name {
        flag::OVER_CAPACITY | flag::SERIAL_MISMATCH | flag::NOT_AVAILABLE => Verdict::Bad,
        flag::NO_ANSWER
        | flag::REFUSED
        | flag::GARBLED
        | flag::BUS_DOWN
        | flag::BACK_STEP
        | flag::TOO_FAST
        | flag::UNIT_JUMP
        | flag::UNCONFIRMED
        | flag::OFF_SCHEDULE => Verdict::Suspect,
        _ => Verdict::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_the_worst_of_the_flags() {
        let flags = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        assert_eq!(verdict(&flags(&[])), Verdict::Good);
        assert_eq!(verdict(&flags(&[flag::ROLLOVER, flag::CLOCK_UNTRUSTED])), Verdict::Good);
        assert_eq!(verdict(&flags(&[flag::ROLLOVER, flag::TOO_FAST])), Verdict::Suspect);
        assert_eq!(verdict(&flags(&[flag::TOO_FAST, flag::SERIAL_MISMATCH])), Verdict::Bad);
    }

    #[test]
    fn a_reading_far_from_its_slot_is_off_schedule() {
        let slot: Utc = "2026-11-01T00:00:00Z".parse().unwrap();
        let after = |secs| slot + chrono::TimeDelta::seconds(secs);
        for (interval, own, allowed) in [
            (900, None, 60),
            (2, None, 5),
            (60, None, 30),
            (0, None, 60),
            (900, Some(600), 600),
            (900, Some(1), 1),
        ] {
            let tolerance = tolerance_secs(interval, own);
            assert!(!is_off_schedule(slot, after(allowed), tolerance), "{interval} {own:?}");
            assert!(is_off_schedule(slot, after(allowed + 1), tolerance), "{interval} {own:?}");
            assert!(is_off_schedule(slot, after(-allowed - 1), tolerance), "{interval} {own:?}");
        }
    }
}
