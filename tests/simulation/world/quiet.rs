//! When nothing was wrong on a bus, whatever harmless habits its converter has: then no reading may be lost to the line.

use std::collections::{BTreeMap, BTreeSet};

use chrono::TimeDelta;
use meter_gateway::model::Utc;

use super::happenings::Event;

/// After trouble: meters that were probed more seldom are asked again within five minutes.
const AFTER_TROUBLE: TimeDelta = TimeDelta::minutes(10);
/// At the start the line is opened and listened to.
const AFTER_START: TimeDelta = TimeDelta::seconds(10);
/// Slots near the end, of a life or of the quiet, may be read when it is over.
const BEFORE_END: TimeDelta = TimeDelta::seconds(60);

/// What is wrong on each bus, and when nothing was.
#[derive(Default)]
pub struct Quiet {
    trouble: BTreeMap<usize, BTreeSet<Trouble>>,
    since: BTreeMap<usize, Utc>,
    /// Bus, from, until.
    pub windows: Vec<(usize, Utc, Utc)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Line,
    Meter(usize),
    Habit,
}

impl Quiet {
    /// A life begins; what was wrong still is.
    pub fn begin(&mut self, buses: usize, now: Utc) {
        let well = (0..buses).filter(|bus| self.trouble.get(bus).is_none_or(BTreeSet::is_empty));
        self.since = well.map(|bus| (bus, now + AFTER_START)).collect();
    }

    pub fn heal(&mut self) {
        self.trouble.clear();
    }

    pub fn end(&mut self, now: Utc) {
        for (bus, since) in std::mem::take(&mut self.since) {
            self.windows.push((bus, since, now - BEFORE_END));
        }
    }

    pub fn note(&mut self, event: &Event, now: Utc) {
        let (bus, trouble, begins) = match event {
            Event::Line(bus, state) => (*bus, Trouble::Line, state.unplugged || state.echo),
            Event::Meter(bus, meter, fault) => (*bus, Trouble::Meter(*meter), fault.is_some()),
            Event::Habit(bus, habit) => {
                (*bus, Trouble::Habit, habit.is_some_and(|habit| !habit.costs_nothing()))
            }
            _ => return,
        };
        let known = self.trouble.entry(bus).or_default();
        if begins {
            known.insert(trouble);
            if let Some(since) = self.since.remove(&bus) {
                self.windows.push((bus, since, now - BEFORE_END));
            }
        } else if known.remove(&trouble) && known.is_empty() {
            self.since.insert(bus, now + AFTER_TROUBLE);
        }
    }
}
