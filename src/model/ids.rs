//! Identifiers. Each is checked once, where it enters, and is cheap to clone afterwards.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{seen:?} is not a valid {what}: expected {expected}")]
pub struct IdError {
    what: &'static str,
    seen: String,
    expected: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $allowed:expr, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The text as it was configured.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let allowed: fn(char) -> bool = $allowed;
                if text.is_empty() || text.len() > $max || !text.chars().all(allowed) {
                    return Err(IdError { what: $what, seen: text.to_owned(), expected: $expected });
                }
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

id!(
    /// A metered place. It stays when the device is exchanged, and it is one level of an MQTT topic.
    MeterId, "meter id", 64,
    |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'),
    "1 to 64 of A-Z a-z 0-9 - _ ."
);
id!(
    /// A physical line: a serial device or a TCP peer.
    BusId, "bus id", 32,
    |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'),
    "1 to 32 of A-Z a-z 0-9 - _ ."
);
id!(
    /// One thing that can be asked of a meter, e.g. `energy_import_total`.
    PointName, "point name", 48,
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_',
    "1 to 48 of a-z 0-9 _"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_would_break_a_topic_is_refused() {
        for bad in ["", "a/b", "a+b", "a#", "a b", "表"] {
            assert!(bad.parse::<MeterId>().is_err(), "{bad:?}");
        }
        assert_eq!("E-0101".parse::<MeterId>().unwrap().as_str(), "E-0101");
        assert!("x".repeat(65).parse::<MeterId>().is_err());
    }
}
