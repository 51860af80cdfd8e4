//! Instants as they are written down. Asking for the time is the clock's business, not ours.

use chrono::SecondsFormat;

/// A moment in UTC.
pub type Utc = chrono::DateTime<chrono::Utc>;

/// RFC 3339 in UTC with milliseconds: the one form in which a time leaves the process.
pub fn rfc3339(at: Utc) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
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
