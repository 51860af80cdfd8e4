//! How large a record of a meter can become: one that does not fit the ledger would be refused at each slot.

use super::Point;

/// Bytes of a record: the ledger takes no longer line (`ledger::chain::MAX_LINE`).
pub const MAX_RECORD_BYTES: usize = 64 * 1024;
/// Of what each record has: hashes, times, ids, flags, and what an exchange went wrong by.
const FRAME_BYTES: usize = 4096;
/// Of a value in words: 20 digits, unit, raw bytes, multiplier and their names.
const VALUE_BYTES: usize = 170;
/// Of what a surprising register rests on: two looks, what was before and what is believed.
const EVIDENCE_BYTES: usize = 1000;

/// Bytes that a record of all these points has at most, every register having surprised.
pub fn largest_record(points: &[Point]) -> usize {
    points.iter().map(bytes).fold(FRAME_BYTES, usize::saturating_add)
}

fn bytes(point: &Point) -> usize {
    let name = point.name.as_str().len();
    let bits: usize = point.cell.encoding.bits.iter().map(|(_, name)| name.len() + 3).sum();
    let evidence = if point.register.is_some() { name + EVIDENCE_BYTES } else { 0 };
    name + VALUE_BYTES + bits + evidence
}
