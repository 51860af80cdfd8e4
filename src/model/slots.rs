//! Slots: the moments at which a meter is due, aligned to the site's wall clock.
//!
//! A slot is a moment whose local time of day is a multiple of the interval. On the day the clocks go
//! back the repeated hour has its slots twice, on the day they go forward the skipped hour has none: every
//! slot is a distinct UTC instant. Intervals that do not divide a day begin again at local midnight.

use chrono::{Offset, TimeDelta, TimeZone, Timelike};
use chrono_tz::Tz;

use super::Utc;

/// The slots of one interval in one zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    zone: Tz,
    interval_secs: u32,
}

/// An interval that has no slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an interval of {0} s has no slots: expected 1 to 86400")]
pub struct SlotError(u32);

const DAY_SECS: u32 = 86_400;

/// Farthest that a repeated slot lies beside its first: below 10 s, so that a boundary read stays within its minute.
/// A prime, so that repetitions a round number apart differ.
const MOST_BESIDE_MS: u64 = 9973;

impl Slots {
    /// Slots every `interval_secs` (1 to 86 400) of local time in `zone`.
    pub fn new(zone: Tz, interval_secs: u32) -> Result<Slots, SlotError> {
        if (1..=DAY_SECS).contains(&interval_secs) {
            Ok(Slots { zone, interval_secs })
        } else {
            Err(SlotError(interval_secs))
        }
    }

    /// The interval in seconds.
    pub fn interval_secs(self) -> u32 {
        self.interval_secs
    }

    /// The first slot after `at`.
    pub fn next_after(self, at: Utc) -> Utc {
        // Whole seconds: every zone offset in use since 1972 is one, and so is every interval.
        let mut from = at + TimeDelta::seconds(1) - TimeDelta::nanoseconds(i64::from(at.nanosecond()));
        loop {
            let candidate = self.align_up(from);
            let (before, after) = (self.offset_secs(from), self.offset_secs(candidate));
            if before == after {
                return candidate;
            }
            let change = self.offset_change(from, candidate);
            if candidate < change {
                return candidate;
            }
            from = change;
        }
    }

    /// The next moment after `at` for a reading, when every slot up to `highest` may have its record already.
    ///
    /// Where the next unused slot is at most one and a half intervals away, that one. After the wall clock was set back it may be hours or years away:
    /// polling goes on, beside the slots, a little after each one, so that none gets a second record. `repetition`
    /// keeps two repetitions of the same hours apart.
    pub fn next_unused(self, at: Utc, highest: Option<Utc>, repetition: u64) -> Utc {
        let unused = self.next_after(highest.map_or(at, |highest| highest.max(at)));
        let interval = TimeDelta::seconds(i64::from(self.interval_secs));
        if highest.is_none_or(|highest| highest <= at) || unused - at <= interval + interval / 2 {
            return unused;
        }
        let room = (u64::from(self.interval_secs) * 1000 - 1).min(MOST_BESIDE_MS);
        let beside = i64::try_from(1 + repetition % room).map_or(TimeDelta::zero(), TimeDelta::milliseconds);
        self.next_after(at - beside) + beside
    }

    /// The last slot at or before `at`.
    pub fn at_or_before(self, at: Utc) -> Utc {
        // Long enough to span any interval and a change of offset.
        let mut back = TimeDelta::seconds(i64::from(self.interval_secs) + 1);
        loop {
            let mut slot = self.next_after(at - back);
            if slot > at {
                back = back + back;
                continue;
            }
            loop {
                let next = self.next_after(slot);
                if next > at {
                    return slot;
                }
                slot = next;
            }
        }
    }

    /// First aligned moment at or after `from`, under the offset in force at `from`.
    fn align_up(self, from: Utc) -> Utc {
        let second = from.with_timezone(&self.zone).num_seconds_from_midnight();
        let wait = match second % self.interval_secs {
            0 => 0,
            over => (self.interval_secs - over).min(DAY_SECS - second),
        };
        from + TimeDelta::seconds(i64::from(wait))
    }

    fn offset_secs(self, at: Utc) -> i32 {
        self.zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc()
    }

    /// The first second in `(from, to]` at which the offset differs from the one at `from`.
    fn offset_change(self, from: Utc, to: Utc) -> Utc {
        let start = self.offset_secs(from);
        let (mut same, mut differs) = (0, (to - from).num_seconds());
        while differs - same > 1 {
            let middle = i64::midpoint(same, differs);
            if self.offset_secs(from + TimeDelta::seconds(middle)) == start {
                same = middle;
            } else {
                differs = middle;
            }
        }
        from + TimeDelta::seconds(differs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn utc(text: &str) -> Utc {
        text.parse().unwrap()
    }

    fn slots(zone: &str, secs: u32) -> Slots {
        Slots::new(zone.parse().unwrap(), secs).unwrap()
    }

    #[test]
    fn quarter_hours_in_shanghai() {
        let s = slots("Asia/Shanghai", 900);
        assert_eq!(s.next_after(utc("2026-11-01T00:00:00Z")), utc("2026-11-01T00:15:00Z"));
        assert_eq!(s.next_after(utc("2026-11-01T00:14:59.999Z")), utc("2026-11-01T00:15:00Z"));
        assert_eq!(s.at_or_before(utc("2026-11-01T00:14:59.999Z")), utc("2026-11-01T00:00:00Z"));
        assert_eq!(s.at_or_before(utc("2026-11-01T00:15:00Z")), utc("2026-11-01T00:15:00Z"));
    }

    #[test]
    fn hours_follow_an_offset_of_three_quarters() {
        let s = slots("Asia/Kathmandu", 3600); // +05:45
        assert_eq!(s.next_after(utc("2026-11-01T00:00:00Z")), utc("2026-11-01T00:15:00Z"));
    }

    #[test]
    fn a_day_begins_at_local_midnight_on_both_changes() {
        let s = slots("Europe/Berlin", 86_400);
        assert_eq!(s.next_after(utc("2026-03-28T12:00:00Z")), utc("2026-03-28T23:00:00Z"));
        assert_eq!(s.next_after(utc("2026-03-28T23:00:00Z")), utc("2026-03-29T22:00:00Z"));
        assert_eq!(s.next_after(utc("2026-10-24T22:00:00Z")), utc("2026-10-25T23:00:00Z"));
    }

    #[test]
    fn four_hour_slots_stay_on_the_wall_clock_over_a_change() {
        let s = slots("Europe/Berlin", 4 * 3600);
        assert_eq!(s.next_after(utc("2026-03-28T23:00:00Z")), utc("2026-03-29T02:00:00Z")); // 04:00 CEST
    }

    #[test]
    fn the_repeated_hour_has_its_slots_twice() {
        let s = slots("Europe/Berlin", 1800);
        let mut at = utc("2026-10-24T22:00:00Z");
        let mut count = 0;
        while at < utc("2026-10-25T23:00:00Z") {
            at = s.next_after(at);
            count += 1;
        }
        assert_eq!(count, 50); // 25 hours
    }

    #[test]
    fn an_interval_that_does_not_divide_a_day_begins_again_at_midnight() {
        let s = slots("UTC", 7 * 3600);
        assert_eq!(s.next_after(utc("2026-11-01T21:00:00Z")), utc("2026-11-02T00:00:00Z"));
    }

    #[test]
    fn a_small_step_back_waits_for_the_next_slot_and_a_great_one_reads_beside_those_that_were() {
        let s = slots("Asia/Shanghai", 900);
        let at = utc("2026-11-01T00:14:59.300Z");
        let highest = |text| Some(utc(text));
        assert_eq!(s.next_unused(at, None, 7), utc("2026-11-01T00:15:00Z"));
        assert_eq!(s.next_unused(at, highest("2026-11-01T00:15:00Z"), 7), utc("2026-11-01T00:30:00Z"));
        let beside = s.next_unused(at, highest("2026-11-01T01:15:00Z"), 7);
        assert_eq!(beside, utc("2026-11-01T00:15:00.008Z"));
        assert_eq!(
            s.next_unused(beside, highest("2026-11-01T01:15:00Z"), 7),
            utc("2026-11-01T00:30:00.008Z")
        );
        assert_ne!(s.next_unused(at, highest("2027-11-01T01:15:00Z"), 8), beside);
    }

    proptest! {
        #[test]
        fn a_reading_beside_a_slot_comes_within_an_interval_and_is_on_none(
            secs in 0_i64..4_000_000_000,
            ahead in 0_i64..1_000_000,
            repetition in any::<u64>(),
            interval in prop::sample::select(vec![1_u32, 60, 900, 3600, 86_400]),
            zone in prop::sample::select(vec!["Asia/Shanghai", "Europe/Berlin", "Australia/Lord_Howe"]),
        ) {
            let s = slots(zone, interval);
            let at = Utc::from_timestamp(secs, 0).unwrap();
            let highest = s.at_or_before(at + TimeDelta::seconds(ahead));
            let next = s.next_unused(at, Some(highest), repetition);
            prop_assert!(next > at);
            prop_assert!(next > highest || s.at_or_before(next) != next, "{next} has its record");
            prop_assert!(next - at <= TimeDelta::seconds(i64::from(interval) * 3 / 2 + 1) + TimeDelta::hours(1));
        }

        #[test]
        fn a_slot_is_aligned_and_none_is_skipped(
            secs in 0_i64..4_000_000_000,
            interval in prop::sample::select(vec![1_u32, 7, 60, 900, 3600, 14_400, 86_400]),
            zone in prop::sample::select(vec!["Asia/Shanghai", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"]),
        ) {
            let s = slots(zone, interval);
            let at = Utc::from_timestamp(secs, 0).unwrap();
            let next = s.next_after(at);
            prop_assert!(next > at);
            prop_assert_eq!(s.at_or_before(next), next);
            let local = next.with_timezone(&s.zone).num_seconds_from_midnight();
            // Aligned, or the first moment after a change of offset swallowed the aligned one (midnight gaps).
            prop_assert!(local.is_multiple_of(interval), "{} is at {} s", next, local);
            prop_assert!(next - at <= TimeDelta::seconds(i64::from(interval) + 3 * 3600));
        }
    }
}
