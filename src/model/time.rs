//! Instants as they are written down. Asking for the time is the clock's business, not ours.

use std::time::Duration;

use chrono::{SecondsFormat, TimeDelta};

/// A moment in UTC.
pub type Utc = chrono::DateTime<chrono::Utc>;

/// RFC 3339 in UTC with milliseconds: the one form in which a time leaves the process.
pub fn rfc3339(at: Utc) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A wall clock that moved by this much more or less than the monotonic one was set, not slewed.
const STEP: TimeDelta = TimeDelta::milliseconds(500);
/// The fastest slewing on Linux is chronyd's, 83 ms in a second: a tenth of what passed is no step.
const SLEW: u32 = 10;

/// By how much a wall clock was set between two looks with so much monotonic time between them.
pub fn stepped(before: Utc, after: Utc, passed: Duration) -> Option<TimeDelta> {
    let by = after - before - TimeDelta::from_std(passed).unwrap_or(TimeDelta::MAX);
    let slewed = TimeDelta::from_std(passed / SLEW).unwrap_or(TimeDelta::MAX);
    (by.abs() > STEP + slewed.min(TimeDelta::days(1))).then_some(by)
}

/// (De)serialises a moment in that form.
pub(super) mod millis {
    use super::{Utc, rfc3339};
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(at: &Utc, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&rfc3339(*at))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Utc, D::Error> {
        let text = String::deserialize(d)?;
        chrono::DateTime::parse_from_rfc3339(&text).map(|t| t.to_utc()).map_err(de::Error::custom)
    }

    pub mod option {
        use super::{Deserializer, Serializer, Utc, de, rfc3339};
        use serde::Deserialize;

        #[allow(clippy::ref_option)] // the signature serde asks for
        pub fn serialize<S: Serializer>(at: &Option<Utc>, s: S) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => s.serialize_some(&rfc3339(*at)),
                None => s.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Utc>, D::Error> {
            Option::<String>::deserialize(d)?
                .map(|text| chrono::DateTime::parse_from_rfc3339(&text).map(|t| t.to_utc()))
                .transpose()
                .map_err(de::Error::custom)
        }
    }
}
