//! What a segment holds, in short: the content of the index, however it is kept.
//!
//! Built while appending (the open segment) or while scanning a file; packed for the index. No I/O.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::chain::Facts;
use crate::model::Seq;

/// Every so many records the place of one is noted: at most 64 lines are read over to reach any record.
const SPARSE: u64 = 64;
/// Bytes of a packed place.
const PLACE_BYTES: usize = 17;
/// Longest time between two records that counts as time that has passed: a slot of a day, and a night without power.
/// Beyond it the gateway was off, or the clock leapt; which of both nobody knows.
const WITNESS_GAP_MS: i64 = 36 * 3600 * 1000;
/// Types that retention never removes.
const PROTECTED: [&str; 2] = ["billing_read", "handover"];

/// Where one reading stands in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its position in the ledger.
    pub seq: Seq,
    /// Where its line begins.
    pub offset: u64,
    /// Its slot in ms since 1970.
    pub at_ms: i64,
    /// It says that there is no value.
    pub missing: bool,
}

/// The part of a summary that is small enough to stay in memory for every segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The first record by the file's name.
    pub first: Seq,
    /// The last whole record.
    pub last: Seq,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whole records.
    pub count: u64,
    /// What the first record names as its predecessor.
    pub prev_hash: String,
    /// The hash of the last record.
    pub last_hash: String,
    /// Earliest slot in ms.
    pub min_ms: i64,
    /// Latest slot in ms; below `min_ms` when there is no reading.
    pub max_ms: i64,
    /// Latest `recorded_at` in ms.
    pub recorded_ms: i64,
    /// How much time passed from the first record to the last, in ms: the sum of the pauses between them, without what may
    /// have been a leap of the clock. `None` in an index that an earlier version wrote.
    #[serde(default)]
    pub witnessed_ms: Option<i64>,
    /// Records by type.
    pub types: BTreeMap<String, u64>,
    /// What is damaged, for the operator.
    pub damage: Vec<String>,
}

impl Header {
    /// Retention must leave the segment alone: it holds what is kept for good, or damage that might be that.
    pub fn is_protected(&self) -> bool {
        !self.damage.is_empty() || PROTECTED.iter().any(|kind| self.types.contains_key(*kind))
    }
}

/// Everything the index knows of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The small part.
    pub header: Header,
    /// Every 64th record and where it begins.
    pub sparse: Vec<(Seq, u64)>,
    /// The readings of each meter, in sequence order.
    pub meters: BTreeMap<String, Vec<Place>>,
    /// `recorded_at` of the last record in ms.
    last_recorded_ms: Option<i64>,
}

impl Summary {
    /// Of an empty segment whose first record will be `first`.
    pub fn new(first: Seq) -> Summary {
        let header = Header {
            first,
            last: first.saturating_sub(1),
            bytes: 0,
            count: 0,
            prev_hash: String::new(),
            last_hash: String::new(),
            min_ms: i64::MAX,
            max_ms: i64::MIN,
            recorded_ms: i64::MIN,
            witnessed_ms: Some(0),
            types: BTreeMap::new(),
            damage: Vec::new(),
        };
        Summary { header, sparse: Vec::new(), meters: BTreeMap::new(), last_recorded_ms: None }
    }

    /// Adds the record `seq`, whose line of `bytes` (with its line feed) begins at `offset`.
    pub fn add(&mut self, seq: Seq, offset: u64, bytes: u64, hash: &str, prev: &str, facts: &Facts) {
        let header = &mut self.header;
        if header.count == 0 {
            prev.clone_into(&mut header.prev_hash);
        }
        if header.count.is_multiple_of(SPARSE) {
            self.sparse.push((seq, offset));
        }
        header.count += 1;
        header.last = seq;
        hash.clone_into(&mut header.last_hash);
        header.bytes = offset + bytes;
        header.recorded_ms = header.recorded_ms.max(facts.recorded_ms);
        let before = self.last_recorded_ms.replace(facts.recorded_ms).unwrap_or(facts.recorded_ms);
        let pause = facts.recorded_ms.saturating_sub(before);
        if (-WITNESS_GAP_MS..=WITNESS_GAP_MS).contains(&pause) {
            header.witnessed_ms = header.witnessed_ms.map(|passed| passed.saturating_add(pause));
        }
        match header.types.get_mut(&facts.kind) {
            Some(count) => *count += 1,
            None => drop(header.types.insert(facts.kind.clone(), 1)),
        }
        if let Some(reading) = &facts.reading {
            header.min_ms = header.min_ms.min(reading.at_ms);
            header.max_ms = header.max_ms.max(reading.at_ms);
            let place = Place { seq, offset, at_ms: reading.at_ms, missing: reading.missing };
            match self.meters.get_mut(&reading.meter) {
                Some(places) => places.push(place),
                None => drop(self.meters.insert(reading.meter.clone(), vec![place])),
            }
        }
    }

    /// Where to begin reading for the record `seq`.
    pub fn offset_before(sparse: &[(Seq, u64)], seq: Seq) -> u64 {
        let behind = sparse.partition_point(|(noted, _)| *noted <= seq);
        behind.checked_sub(1).and_then(|i| sparse.get(i)).map_or(0, |(_, offset)| *offset)
    }
}

/// Packs places: distance from `first`, offset, slot, missing; little endian.
pub fn pack_places(first: Seq, places: &[Place]) -> Vec<u8> {
    let mut out = Vec::with_capacity(places.len() * PLACE_BYTES);
    for place in places {
        out.extend_from_slice(&short(place.seq.saturating_sub(first)).to_le_bytes());
        out.extend_from_slice(&short(place.offset).to_le_bytes());
        out.extend_from_slice(&place.at_ms.to_le_bytes());
        out.push(u8::from(place.missing));
    }
    out
}

/// The reverse; `None` when the length is not a multiple of a place, or a place beyond any ledger's.
pub fn unpack_places(first: Seq, bytes: &[u8]) -> Option<Vec<Place>> {
    let (places, rest) = bytes.as_chunks::<PLACE_BYTES>();
    let unpacked = places.iter().map(|place| {
        let (distance, place) = place.split_first_chunk::<4>()?;
        let (offset, place) = place.split_first_chunk::<4>()?;
        let (at_ms, missing) = place.split_first_chunk::<8>()?;
        Some(Place {
            seq: first.checked_add(u32::from_le_bytes(*distance).into())?,
            offset: u32::from_le_bytes(*offset).into(),
            at_ms: i64::from_le_bytes(*at_ms),
            missing: missing.first() == Some(&1),
        })
    });
    if rest.is_empty() { unpacked.collect() } else { None }
}

/// Packs the sparse places.
pub fn pack_sparse(first: Seq, sparse: &[(Seq, u64)]) -> Vec<u8> {
    let pair = |(seq, offset): &(Seq, u64)| {
        [short(seq.saturating_sub(first)).to_le_bytes(), short(*offset).to_le_bytes()].concat()
    };
    sparse.iter().flat_map(pair).collect()
}

/// The reverse.
pub fn unpack_sparse(first: Seq, bytes: &[u8]) -> Option<Vec<(Seq, u64)>> {
    let (pairs, rest) = bytes.as_chunks::<8>();
    let unpacked = pairs.iter().map(|pair| {
        let (distance, offset) = pair.split_first_chunk::<4>()?;
        let offset = offset.first_chunk::<4>()?;
        let seq = first.checked_add(u32::from_le_bytes(*distance).into())?;
        Some((seq, u64::from(u32::from_le_bytes(*offset))))
    });
    if rest.is_empty() { unpacked.collect() } else { None }
}

/// Segments are limited to far less than 4 GiB (`segments::MAX_SEGMENT`).
fn short(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_places_come_back_the_same() {
        let places: Vec<Place> = (0..5)
            .map(|i| Place { seq: 1000 + i, offset: i * 400, at_ms: -5 + 900_000, missing: i == 3 })
            .collect();
        assert_eq!(unpack_places(1000, &pack_places(1000, &places)), Some(places));
        assert_eq!(unpack_places(1, &[0; 16]), None);
        assert_eq!(unpack_places(Seq::MAX, &[1; 17]), None, "this was an overflow");
        assert_eq!(unpack_sparse(Seq::MAX, &[1; 8]), None);
        let sparse = vec![(1000, 0), (1064, 30_000)];
        assert_eq!(unpack_sparse(1000, &pack_sparse(1000, &sparse)).as_ref(), Some(&sparse));
        assert_eq!(Summary::offset_before(&sparse, 1063), 0);
        assert_eq!(Summary::offset_before(&sparse, 1064), 30_000);
        assert_eq!(Summary::offset_before(&[], 7), 0);
    }
}
