//! What the ledger knows of the registers of a meter: the start of a validator's history. Blocks; writes nothing.
//!
//! Each reading of this version says what is believed of every register of its profile, so that the last one is enough.
//! Earlier readings are asked only for a register that it does not name: after an update of the gateway, or where the
//! profile has got a register (again). They are asked ever more sparsely, so that the cost grows with the logarithm of the
//! ledger's size; what is found may then be an older value than the last one there was.

use crate::{
    config::Meter,
    ledger::SharedLedger,
    model::{PointName, Reading, Seq},
    validate::Histories,
};

/// Readings of a meter that are asked one after the other: a day at a quarter of an hour. Beyond, each look goes twice as far
/// back as the one before.
const RECALLED: usize = 100;
/// Readings that are read at one look.
const RECALLED_PAGE: usize = 10;

/// What was last believed of each register of a meter.
pub(super) fn recall(meter: &Meter, ledger: &SharedLedger) -> Histories {
    let mut histories = Histories::default();
    let registers = meter.profile.points.iter().filter(|point| point.register.is_some());
    let mut unknown: Vec<&PointName> = registers.map(|point| &point.name).collect();
    let (mut before, mut newest, mut asked) = (Seq::MAX, None, 0);
    while !unknown.is_empty() {
        let page = if asked == 0 { 1 } else { RECALLED_PAGE };
        let lines = match ledger.latest(&meter.id, before, page) {
            Ok(lines) => lines,
            Err(error) => {
                tracing::warn!(meter = %meter.id, %error, registers = ?unknown, "earlier readings cannot be read; the next value of these registers has nothing to be compared with");
                break;
            }
        };
        let Some(oldest) = lines.last().map(|line| line.seq) else { break };
        for line in &lines {
            let Ok(reading) = serde_json::from_slice::<Reading>(&line.bytes) else { continue };
            unknown.retain(|name| !histories.note(&reading, name));
        }
        asked += lines.len();
        let passed = *newest.get_or_insert(oldest) - oldest;
        before = if asked < RECALLED { oldest } else { farther(oldest, passed, ledger.first()) };
    }
    histories
}

/// Twice as far from the newest, and near the beginning half of what is left, so that that is looked at too.
fn farther(oldest: Seq, passed: Seq, first: Seq) -> Seq {
    let left = oldest.saturating_sub(first);
    if passed < left { oldest - passed } else { first + left / 2 }
}
