//! What one meter said (or did not say) at one scheduled moment.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Dec, MeterId, PointName, Unit, Utc, time::millis};

/// What is metered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// 电
    Electricity,
    /// 水
    Water,
    /// 热
    Heat,
    /// 气
    Gas,
}

/// Where a reading's values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Read now.
    Measured,
    /// The meter latched it (冻结).
    Frozen,
    /// Read later from the meter's memory (补抄).
    Backfilled,
    /// Read by a person.
    Manual,
    /// Computed; never mixed with what was read.
    Estimated,
    /// The slot passed without an answer.
    Missing,
}

/// The judgement on a whole reading: the worst of its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing speaks against it.
    Good,
    /// Believable enough to send, surprising enough to look at.
    Suspect,
    /// Not to be billed from.
    Bad,
}

/// One point of a reading.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointValue {
    /// What the meter's own display shows; `None` with a `reason` when there is no value.
    pub value: Option<Dec>,
    /// The unit of `value`.
    pub unit: Unit,
    /// The bytes of the words in wire order, `0x…`; `None` when nothing came.
    pub raw: Option<String>,
    /// CT × PT, present when it is not 1. It has *not* been applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<Dec>,
    /// Why there is no value: `not_available`, `nan`, `refused`, `garbled`, `no_answer`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Names of the bits that are set, for bit fields whose profile names them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<Vec<String>>,
}

/// One meter at one scheduled moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The metered place.
    pub meter: MeterId,
    /// What it meters.
    pub medium: Medium,
    /// The slot.
    #[serde(with = "millis")]
    pub scheduled_at: Utc,
    /// When the reply that carried the cumulative register arrived, else the last reply.
    #[serde(with = "millis::option")]
    pub taken_at: Option<Utc>,
    /// Where the values come from.
    pub origin: Origin,
    /// The worst of the flags.
    pub verdict: Verdict,
    /// Names of the rules that fired, sorted.
    pub flags: BTreeSet<String>,
    /// By point name.
    pub values: BTreeMap<PointName, PointValue>,
    /// What the flags rest on: earlier value, first and second read, limits. Absent when empty.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub evidence: Map<String, Value>,
}

/// Memory of an entry of a map beside its key and value, and of an allocation: about.
const ENTRY_BYTES: usize = 48;
/// Memory of what the flags of one point rest on: about.
const EVIDENCE_BYTES: usize = 2000;

impl Reading {
    /// Bytes of memory that it takes, about.
    pub fn memory(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, |text| text.len() + ENTRY_BYTES);
        let point = |(name, value): (&PointName, &PointValue)| {
            let set: usize = value.set.iter().flatten().map(|name| name.len() + ENTRY_BYTES).sum();
            size_of::<PointValue>()
                + name.as_str().len()
                + ENTRY_BYTES
                + text(&value.raw)
                + text(&value.reason)
                + set
        };
        size_of::<Reading>()
            + self.flags.iter().map(|flag| flag.len() + ENTRY_BYTES).sum::<usize>()
            + self.values.iter().map(point).sum::<usize>()
            + self.evidence.len() * EVIDENCE_BYTES
    }
}

/// Names of the validation rules, as they stand in `flags` (documented in `docs/validation.md`).
pub mod flag {
    /// The meter did not answer.
    pub const NO_ANSWER: &str = "no_answer";
    /// The meter refused a request.
    pub const REFUSED: &str = "refused";
    /// Bytes came that are not an answer.
    pub const GARBLED: &str = "garbled";
    /// The line itself was away: adapter unplugged, peer gone.
    pub const BUS_DOWN: &str = "bus_down";
    /// A silent meter was not asked because it is probed more seldom.
    pub const BACKED_OFF: &str = "backed_off";
    /// The bus had no time left for this slot.
    pub const BUS_OVERRUN: &str = "bus_overrun";
    /// More than the register can hold, or negative.
    pub const OVER_CAPACITY: &str = "over_capacity";
    /// The register fell (示度下降).
    pub const BACK_STEP: &str = "back_step";
    /// The register fell by no more than its own arithmetic can explain: noted, and speaks against nothing.
    pub const ROUNDING: &str = "rounding";
    /// The register passed its last digit and began again.
    pub const ROLLOVER: &str = "rollover";
    /// More consumption than the meter's rating allows (飞走).
    pub const TOO_FAST: &str = "too_fast";
    /// The register jumped by a power of ten.
    pub const UNIT_JUMP: &str = "unit_jump";
    /// Two reads at once disagreed, so neither is believed.
    pub const UNCONFIRMED: &str = "unconfirmed";
    /// The device's serial number is not the configured one.
    pub const SERIAL_MISMATCH: &str = "serial_mismatch";
    /// Read too far from its slot.
    pub const OFF_SCHEDULE: &str = "off_schedule";
    /// The wall clock was not trusted.
    pub const CLOCK_UNTRUSTED: &str = "clock_untrusted";
    /// The meter says that it has no value (sentinel, NaN) for its cumulative register.
    pub const NOT_AVAILABLE: &str = "not_available";
}
