//! What is known of one register: the last value that was believed, and whether it stands below it since.
//!
//! Read from one record alone, by the same function while the gateway runs and after a restart, so that both see the
//! same. Knows nothing of where records are kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Dec, PointName, Reading, Utc, flag, rfc3339};

/// The key of a reading's evidence under which stands what is believed of registers that the reading has no value of, or
/// another device's;
/// also the key of it in the evidence of one register.
pub const BELIEVED: &str = "believed";

/// A value and its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Last {
    /// What the display showed.
    pub value: Dec,
    /// When.
    pub at: Utc,
}

/// What the next value of a register is held against.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct History {
    /// The highest value that is believed, and when the register was last seen there (or a rounding below it).
    pub believed: Last,
    /// It fell since, and nobody knows yet why.
    pub fallen: Option<Fallen>,
    /// It leapt to it, and nobody knows yet whether it stays.
    pub leapt: Option<Leapt>,
}

/// A register that fell: not believed until it has counted upwards for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fallen {
    /// The highest value since the fall, and when the register was last seen there.
    pub highest: Last,
    /// How often it has risen above its highest since.
    pub rises: u32,
    /// It fell to a tenth, a hundredth, …: the point has moved.
    pub by_unit: bool,
}

/// A register that rose more than its rating allows: should it be back, that was the wrong value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Leapt {
    /// What was believed before.
    pub before: Last,
    /// How often it has risen since.
    pub rises: u32,
}

/// As it stands in evidence.
#[derive(Serialize, Deserialize)]
struct Written {
    value: Dec,
    taken_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallen: Option<WrittenFall>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leapt: Option<WrittenLeap>,
}

#[derive(Serialize, Deserialize)]
struct WrittenFall {
    value: Dec,
    taken_at: String,
    rises: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    by_unit: bool,
}

#[derive(Serialize, Deserialize)]
struct WrittenLeap {
    value: Dec,
    taken_at: String,
    rises: u32,
}

impl Last {
    /// To the millisecond, as a record has it.
    pub fn new(value: Dec, at: Utc) -> Last {
        Last { value, at: Utc::from_timestamp_millis(at.timestamp_millis()).unwrap_or(at) }
    }
}

impl History {
    /// Of a register whose value is believed.
    pub fn of(value: Dec, at: Utc) -> History {
        History { believed: Last::new(value, at), fallen: None, leapt: None }
    }

    /// Whether a record's value and time say all of it.
    pub fn is_plain(self) -> bool {
        self.fallen.is_none() && self.leapt.is_none()
    }

    /// As it stands in evidence.
    pub fn to_json(self) -> Value {
        let fallen = self.fallen.map(|fallen| WrittenFall {
            value: fallen.highest.value,
            taken_at: rfc3339(fallen.highest.at),
            rises: fallen.rises,
            by_unit: fallen.by_unit,
        });
        let leapt = self.leapt.map(|leapt| WrittenLeap {
            value: leapt.before.value,
            taken_at: rfc3339(leapt.before.at),
            rises: leapt.rises,
        });
        let Last { value, at } = self.believed;
        serde_json::to_value(Written { value, taken_at: rfc3339(at), fallen, leapt }).unwrap_or_default()
    }

    fn from_json(value: &Value) -> Option<History> {
        let written = Written::deserialize(value).ok()?;
        let last = |value, at: &str| Some(Last { value, at: at.parse().ok()? });
        let fallen = match written.fallen {
            Some(WrittenFall { value, taken_at, rises, by_unit }) => {
                Some(Fallen { highest: last(value, &taken_at)?, rises, by_unit })
            }
            None => None,
        };
        let leapt = match written.leapt {
            Some(WrittenLeap { value, taken_at, rises }) => {
                Some(Leapt { before: last(value, &taken_at)?, rises })
            }
            None => None,
        };
        Some(History { believed: last(written.value, &written.taken_at)?, fallen, leapt })
    }
}

/// What one record says of a register.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Said {
    /// What is known of it after this record.
    Known(History),
    /// That nothing was ever believed of it.
    Never,
    /// Nothing: an earlier record may.
    Nothing,
}

/// Whether what a reading shows is not the configured device's: nothing of it is believed.
pub fn is_of_another_device(reading: &Reading) -> bool {
    reading.flags.contains(flag::SERIAL_MISMATCH)
}

/// What `reading` says of the register `name`.
pub fn said(reading: &Reading, name: &PointName) -> Said {
    let value =
        reading.values.get(name).and_then(|point| point.value).filter(|_| !is_of_another_device(reading));
    let known = |written: Option<&Value>| match written.and_then(History::from_json) {
        Some(history) => Said::Known(history),
        None => Said::Never,
    };
    match (value, reading.taken_at, reading.evidence.get(name.as_str())) {
        (Some(_), Some(_), Some(looks)) if looks.get(BELIEVED).is_some() => known(looks.get(BELIEVED)),
        (Some(value), Some(at), Some(looks)) => of_an_earlier_version(value, at, looks),
        (Some(value), Some(at), None) => Said::Known(History::of(value, at)),
        _ => match reading.evidence.get(BELIEVED) {
            Some(carried) if reading.values.contains_key(name) => known(carried.get(name.as_str())),
            _ => Said::Nothing,
        },
    }
}

/// Records of earlier versions have both looks and what was believed before them: a second look that agreed, or that was
/// ordinary, was believed.
fn of_an_earlier_version(value: Dec, at: Utc, looks: &Value) -> Said {
    let look = |which: &str| looks.get(which).and_then(History::from_json);
    match look("second") {
        Some(second) if second.believed.value == value => Said::Known(History::of(value, at)),
        _ => look("previous").map_or(Said::Nothing, Said::Known),
    }
}

/// What is known of each register of a meter.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histories(BTreeMap<PointName, History>);

impl Histories {
    /// Of one register.
    pub fn of(&self, name: &PointName) -> Option<History> {
        self.0.get(name).copied()
    }

    /// Notes what a record says of a register. Whether earlier records need not be asked.
    pub fn note(&mut self, reading: &Reading, name: &PointName) -> bool {
        match said(reading, name) {
            Said::Known(history) => {
                self.0.insert(name.clone(), history);
                true
            }
            Said::Never => true,
            Said::Nothing => false,
        }
    }

    /// What a reading has to carry for registers that it has no value of.
    pub fn carried<'a>(&self, lacking: impl Iterator<Item = &'a PointName>) -> Value {
        lacking.filter_map(|name| Some((name.to_string(), self.of(name)?.to_json()))).collect()
    }
}
