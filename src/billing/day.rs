//! A local day in UTC: 23, 24 or 25 hours. Knows nothing of records.

use chrono::{NaiveDate, NaiveTime, TimeDelta, TimeZone};
use chrono_tz::Tz;

use crate::model::Utc;

/// Clocks go forward by two hours at most; where that swallows midnight the day begins behind it.
const LONGEST_GAP_QUARTERS: i32 = 12;

/// One local day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day {
    /// Its name on the site's calendar.
    pub date: NaiveDate,
    /// Its first moment.
    pub from: Utc,
    /// The first moment of the next day.
    pub to: Utc,
}

impl Day {
    /// `None` at the ends of the calendar, and for a day that a zone left out.
    pub fn of(date: NaiveDate, zone: Tz) -> Option<Day> {
        let (from, to) = (first_moment(date, zone)?, first_moment(date.succ_opt()?, zone)?);
        (from < to).then_some(Day { date, from, to })
    }

    /// Whether `at` lies in it.
    pub fn contains(&self, at: Utc) -> bool {
        self.from <= at && at < self.to
    }
}

/// The date on the site's calendar at `at`.
pub fn local_date(at: Utc, zone: Tz) -> NaiveDate {
    at.with_timezone(&zone).date_naive()
}

fn first_moment(date: NaiveDate, zone: Tz) -> Option<Utc> {
    let midnight = date.and_time(NaiveTime::MIN);
    (0..=LONGEST_GAP_QUARTERS)
        .find_map(|n| zone.from_local_datetime(&(midnight + TimeDelta::minutes(15) * n)).earliest())
        .map(|at| at.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(date: &str, zone: &str) -> Day {
        Day::of(date.parse().unwrap(), zone.parse().unwrap()).unwrap()
    }

    #[test]
    fn days_have_23_24_and_25_hours_and_leave_no_moment_out() {
        let hours = |d: Day| (d.to - d.from).num_hours();
        assert_eq!(hours(day("2026-03-29", "Europe/Berlin")), 23);
        assert_eq!(hours(day("2026-10-25", "Europe/Berlin")), 25);
        assert_eq!(hours(day("2028-02-29", "Asia/Shanghai")), 24);
        let beirut = "2026-03-29"; // midnight itself is skipped
        assert_eq!(hours(day(beirut, "Asia/Beirut")), 23);
        assert_eq!(day("2026-03-28", "Asia/Beirut").to, day(beirut, "Asia/Beirut").from);
        assert!(day(beirut, "Asia/Beirut").contains(day(beirut, "Asia/Beirut").from));
    }
}
