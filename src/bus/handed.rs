//! Up to which slot each meter's readings were handed over to the writer, for as long as the house stands.
//!
//! It outlives the tasks of the buses. The ledger knows the same a little later, or, on a full disk, much later: a bus
//! that is started again meanwhile (a reload, a panic) must neither read a slot twice nor leave one out.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::schedule::Now;
use crate::model::{MeterId, Slots, Utc, stepped};

/// By meter; one entry for each that is configured with an interval.
#[derive(Default)]
pub struct Handed(Mutex<HashMap<MeterId, Last>>);

#[derive(Clone, Copy)]
struct Last {
    interval_secs: u32,
    /// The last slot, where the clock was set back not the latest.
    slot: Utc,
    latest: Utc,
    at: Now,
}

impl Handed {
    /// The reading for this slot is on its way to the ledger, or the slot was over before the meter's turn began.
    pub fn note(&self, meter: &MeterId, slots: Slots, slot: Utc, at: Now) {
        let mut known = self.known();
        let latest = known.get(meter).map_or(slot, |last| last.latest.max(slot));
        known.insert(meter.clone(), Last { interval_secs: slots.interval_secs(), slot, latest, at });
    }

    /// The slot that comes next. `None` where that is not known: for a new meter or interval, and after the wall
    /// clock was set.
    pub fn next(&self, meter: &MeterId, slots: Slots, now: Now) -> Option<Utc> {
        let last = *self.known().get(meter)?;
        let passed = now.instant.saturating_duration_since(last.at.instant);
        let same =
            last.interval_secs == slots.interval_secs() && stepped(last.at.wall, now.wall, passed).is_none();
        same.then(|| slots.next_after(last.slot))
    }

    /// The latest slot of a meter.
    pub fn latest(&self, meter: &MeterId) -> Option<Utc> {
        self.known().get(meter).map(|last| last.latest)
    }

    /// Forgets the meters that are no more.
    pub fn keep(&self, configured: impl Fn(&MeterId) -> bool) {
        self.known().retain(|meter, _| configured(meter));
    }

    fn known(&self) -> MutexGuard<'_, HashMap<MeterId, Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chrono::TimeDelta;
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn a_bus_that_starts_again_owes_the_slot_that_was_under_way() {
        let (handed, meter) = (Handed::default(), "E-1".parse().unwrap());
        let every = |secs| Slots::new(chrono_tz::Asia::Shanghai, secs).unwrap();
        let noon: Utc = "2026-11-01T12:00:00Z".parse().unwrap();
        let begin = Now { instant: Instant::now(), wall: noon + TimeDelta::seconds(5) };
        let later = |secs: u64| Now {
            instant: begin.instant + Duration::from_secs(secs),
            wall: begin.wall + TimeDelta::seconds(i64::try_from(secs).unwrap()),
        };
        assert_eq!(handed.next(&meter, every(60), begin), None, "nobody knows it");
        handed.note(&meter, every(60), noon, begin);
        let minute = TimeDelta::seconds(60);
        assert_eq!(handed.next(&meter, every(60), later(1)), Some(noon + minute));
        assert_eq!(handed.next(&meter, every(60), later(200)), Some(noon + minute), "however long ago");
        assert_eq!(handed.next(&meter, every(900), later(1)), None, "another interval begins anew");
        let set = Now { wall: begin.wall + TimeDelta::hours(1), ..later(1) };
        assert_eq!(handed.next(&meter, every(60), set), None, "the clock was set: no slot is owed by it");
        handed.note(&meter, every(60), noon - minute, later(2));
        assert_eq!(handed.latest(&meter), Some(noon), "what has a record keeps it");
        handed.keep(|_| false);
        assert_eq!(handed.latest(&meter), None);
    }
}
