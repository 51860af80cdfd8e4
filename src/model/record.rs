//! What goes into the ledger, before the ledger has given it a place in the chain.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Reading, Utc, rfc3339};

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

/// Names of the changes, as they stand in `change` (documented in `docs/mqtt.md`).
pub mod change {
    /// The wall clock is far behind the ledger's last record.
    pub const CLOCK_BEHIND_LEDGER: &str = "clock_behind_ledger";
    /// The wall clock was set.
    pub const CLOCK_STEPPED: &str = "clock_stepped";
    /// From here on the wall clock is not synchronised.
    pub const CLOCK_UNTRUSTED: &str = "clock_untrusted";
    /// Another configuration is in force.
    pub const CONFIGURATION: &str = "configuration";
    /// Slots that passed while the gateway was down.
    pub const DOWNTIME: &str = "downtime";
    /// There is another signing key, and the old one does not say so.
    pub const KEY_REPLACED: &str = "key_replaced";
    /// There is another signing key, announced by the old one.
    pub const KEY_ROTATED: &str = "key_rotated";
    /// Something went wrong in the store.
    pub const LEDGER_INCIDENT: &str = "ledger_incident";
    /// A new ledger begins in the place of an old one.
    pub const LEDGER_REPLACED: &str = "ledger_replaced";
    /// A record is damaged and is never delivered.
    pub const RECORD_DAMAGED: &str = "record_damaged";
    /// Stands in the place of a record that the ledger cannot take.
    pub const RECORD_REFUSED: &str = "record_refused";
    /// Billing could not use a record.
    pub const REJECTED: &str = "rejected";
    /// A rejected record was sent again.
    pub const REJECTED_RESENT: &str = "rejected_resent";
    /// Old records were removed.
    pub const RETENTION: &str = "retention";
    /// By how much the times of a range of records are wrong.
    pub const TIME_FIX: &str = "time_fix";
    /// Somebody asked for something to be done.
    pub const USER_ACTION: &str = "user_action";
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
    /// Every other field. Strings, integers, booleans, null, arrays and objects only: no floats. Empty where there is a
    /// `reading`.
    pub fields: Map<String, Value>,
    /// In place of `fields`: nearly every record is one.
    pub reading: Option<Arc<Reading>>,
}

impl Draft {
    /// A reading, ready to be appended.
    pub fn reading(reading: Reading, recorded_at: Utc, clock: ClockState) -> Draft {
        let reading = Some(Arc::new(reading));
        Draft { kind: RecordType::Reading, recorded_at, clock, fields: Map::new(), reading }
    }

    /// A `change` record: `what` is one of the names in [`change`].
    pub fn change(what: &str, mut fields: Map<String, Value>, recorded_at: Utc, clock: ClockState) -> Draft {
        fields.insert("change".into(), what.into());
        Draft { kind: RecordType::Change, recorded_at, clock, fields, reading: None }
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
        Draft { kind: RecordType::Anomaly, recorded_at, clock, fields, reading: None }
    }
}
