//! What the ledger knows of the registers of a meter: the start of a validator's history. Blocks; writes nothing.
//!
//! Each reading of this version says what is believed of every register of its profile, so that its last one is enough.
//! Earlier readings are asked only for a register that the last one does not name: after an update of the gateway, or where
//! the profile has got a register (again).

use crate::{
    config::Meter,
    ledger::SharedLedger,
    model::{PointName, Reading, Seq},
    validate::Histories,
};

/// Readings of a meter that are asked for its registers: more than ten days at a quarter of an hour.
const RECALLED: usize = 1000;
/// Readings that are read at once.
const RECALLED_PAGE: usize = 50;

/// What was last believed of each register of a meter.
pub(super) fn recall(meter: &Meter, ledger: &SharedLedger) -> Histories {
    let mut histories = Histories::default();
    let registers = meter.profile.points.iter().filter(|point| point.register.is_some());
    let mut unknown: Vec<&PointName> = registers.map(|point| &point.name).collect();
    let mut before = Seq::MAX;
    let mut asked = 0;
    while !unknown.is_empty() && asked < RECALLED {
        let page = if asked == 0 { 1 } else { RECALLED_PAGE };
        let lines = match ledger.latest(&meter.id, before, page) {
            Ok(lines) => lines,
            Err(error) => {
                tracing::warn!(meter = %meter.id, %error, registers = ?unknown, "earlier readings cannot be read; the next value of these registers has nothing to be compared with");
                break;
            }
        };
        let Some(last) = lines.last() else { break };
        before = last.seq;
        asked += lines.len();
        for line in &lines {
            let Ok(reading) = serde_json::from_slice::<Reading>(&line.bytes) else { continue };
            unknown.retain(|name| !histories.note(&reading, name));
        }
    }
    histories
}
