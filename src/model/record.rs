//! What goes into the ledger, before the ledger has given it a place in the chain.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{MeterId, Reading, Utc, rfc3339};

/// Position in the ledger: from 1, without gaps, for the life of the ledger id.
pub type Seq = u64;

/// `prev` of the first record.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The kinds of record that this version writes. Readers must pass over kinds they do not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordType {
    /// One meter at one scheduled moment.
    Reading,
    /// Something about the site or the gateway changed.
    Change,
    /// A condition that somebody has to look into.
    Anomaly,
    /// What a local day came to, signed.
    Manifest,
}

/// How far the wall clock can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClockState {
    /// The kernel says that it is synchronised.
    Synced,
    /// It was synchronised within the last day.
    Holdover,
    /// Neither.
    Unsynced,
}

/// The key under which the index finds a reading.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadingKey {
    /// The metered place.
    pub meter: MeterId,
    /// The slot.
    pub scheduled_at: Utc,
}

/// A record on its way to the ledger, which adds `seq`, `prev` and `hash`.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// Its `type` field.
    pub kind: RecordType,
    /// When the gateway made it.
    pub recorded_at: Utc,
    /// The clock's state at that moment.
    pub clock: ClockState,
    /// Every other field. Strings, integers, booleans, null, arrays and objects only: no floats.
    pub fields: Map<String, Value>,
    /// Where the index files it; `None` for what is not a reading.
    pub key: Option<ReadingKey>,
}

impl Draft {
    /// A reading, ready to be appended.
    pub fn reading(reading: &Reading, recorded_at: Utc, clock: ClockState) -> Draft {
        let fields = match serde_json::to_value(reading) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(), // a struct of maps and strings always becomes an object
        };
        let key = ReadingKey { meter: reading.meter.clone(), scheduled_at: reading.scheduled_at };
        Draft { kind: RecordType::Reading, recorded_at, clock, fields, key: Some(key) }
    }

    /// A `change` record: `what` names it (`downtime`, `configuration`, `retention`, …).
    pub fn change(what: &str, mut fields: Map<String, Value>, recorded_at: Utc, clock: ClockState) -> Draft {
        fields.insert("change".into(), what.into());
        Draft { kind: RecordType::Change, recorded_at, clock, fields, key: None }
    }

    /// An `anomaly` record that raises one. The same condition has the same `id` each time; without a meter or a bus in
    /// `fields` it is the gateway's own.
    pub fn raised(
        (id, rule, severity): (String, &str, &str),
        mut fields: Map<String, Value>,
        recorded_at: Utc,
        clock: ClockState,
    ) -> Draft {
        fields.insert("anomaly".into(), id.into());
        fields.insert("rule".into(), rule.into());
        fields.insert("severity".into(), severity.into());
        fields.insert("state".into(), "raised".into());
        fields.insert("since".into(), rfc3339(recorded_at).into());
        Draft { kind: RecordType::Anomaly, recorded_at, clock, fields, key: None }
    }
}
