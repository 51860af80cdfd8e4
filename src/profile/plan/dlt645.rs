//! Points of a DL/T 645 meter into requests: a block where that is quicker than its values one by one.
//!
//! Knows identifiers, blocks and wire times; knows nothing of values, units or who asks.

use std::time::Duration;

use super::Planned;
use crate::{
    profile::{Cell, Item, Place, Profile},
    protocol::{
        Pace, Question,
        dlt645::{Identifier, Read},
    },
};

/// Characters of the request and of its reply.
pub(super) fn chars(read: &Read) -> (u32, u32) {
    (read.request_chars(), read.reply_chars())
}

/// The quickest requests that bring `points`, in the order of the profile.
pub(super) fn plan(profile: &Profile, points: &[usize], pace: &Pace) -> Vec<Planned> {
    let mut points = points.to_vec();
    points.sort_unstable();
    points.dedup();
    let time = |planned: &[Planned]| -> Duration { planned.iter().map(|p| p.time(profile, pace)).sum() };
    grouped(profile, &points, |item| item.block.map_or(item.identifier, |block| block.identifier))
        .into_iter()
        .flat_map(|(identifier, members)| {
            let alone = singly(profile, &members);
            match block(profile, identifier, members) {
                Some(block) if alone.len() > 1 && time(std::slice::from_ref(&block)) <= time(&alone) => {
                    vec![block]
                }
                _ => alone,
            }
        })
        .collect()
}

/// The values of a refused block one by one.
pub(super) fn split(planned: &Planned, profile: &Profile) -> Vec<Planned> {
    singly(profile, &planned.points)
}

/// The request that brings one cell.
pub(super) fn read_of(cell: &Cell) -> Option<Read> {
    let item = item(cell)?;
    Some(Read::Data { identifier: item.identifier, follow_up: None, length: item.length })
}

/// The bytes of a cell within the data that answers `read`; too few when the data does not hold them, none when it has
/// not the length that the profile knows.
pub(super) fn data_of<'a>(cell: &Cell, read: &Read, data: &'a [u8]) -> &'a [u8] {
    let (Some(item), Read::Data { identifier, .. }) = (item(cell), read) else { return &[] };
    let from = if item.identifier == *identifier {
        (data.len() == usize::from(item.length)).then_some(0)
    } else {
        item.block.filter(|block| block.identifier == *identifier).map(|block| block.offset.into())
    };
    let rest = from.and_then(|from: usize| data.get(from..)).unwrap_or_default();
    rest.get(..usize::from(cell.encoding.kind.bytes())).unwrap_or(rest)
}

fn item(cell: &Cell) -> Option<Item> {
    match cell.place {
        Place::Dlt645(item) => Some(item),
        Place::Modbus { .. } => None,
    }
}

/// Points by an identifier, in the order in which each identifier comes first.
fn grouped(
    profile: &Profile,
    points: &[usize],
    by: impl Fn(Item) -> Identifier,
) -> Vec<(Identifier, Vec<usize>)> {
    let mut groups: Vec<(Identifier, Vec<usize>)> = Vec::new();
    for index in points {
        let Some(item) = profile.points.get(*index).and_then(|point| item(&point.cell)) else { continue };
        let identifier = by(item);
        match groups.iter_mut().find(|(known, _)| *known == identifier) {
            Some((_, members)) => members.push(*index),
            None => groups.push((identifier, vec![*index])),
        }
    }
    groups
}

fn singly(profile: &Profile, points: &[usize]) -> Vec<Planned> {
    let request = |(_, points): (Identifier, Vec<usize>)| {
        let read = read_of(&profile.points.get(*points.first()?)?.cell)?;
        Some(Planned { question: Question::Dlt645(read), points })
    };
    grouped(profile, points, |item| item.identifier).into_iter().filter_map(request).collect()
}

/// All these points, which are of one block, in one request.
fn block(profile: &Profile, identifier: Identifier, points: Vec<usize>) -> Option<Planned> {
    let end = |index: &usize| {
        let cell = &profile.points.get(*index)?.cell;
        item(cell)?.block?.offset.checked_add(cell.encoding.kind.bytes())
    };
    let length = points.iter().map(end).max()??;
    let read = Read::Data { identifier, follow_up: None, length };
    Some(Planned { question: Question::Dlt645(read), points })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        profile::{Catalogue, SharedProfile, plan, split},
        protocol::{Parity, Wire},
    };

    const SLOW: Pace = Pace::Serial(Wire { baud: 2400, parity: Parity::Even, stop_bits: 1 });

    fn three_phase() -> SharedProfile {
        Catalogue::builtin().get("dlt645-2007-three-phase").unwrap()
    }

    fn asked(planned: &[Planned]) -> Vec<String> {
        let name = |planned: &Planned| match &planned.question {
            Question::Dlt645(Read::Data { identifier, length, .. }) => format!("{identifier} {length}"),
            other => panic!("{other:?}"),
        };
        planned.iter().map(name).collect()
    }

    fn points(profile: &Profile, names: &[&str]) -> Vec<usize> {
        let index = |name: &&str| profile.points.iter().position(|point| point.name.as_str() == *name);
        names.iter().map(|name| index(name).unwrap()).collect()
    }

    #[test]
    fn blocks_are_read_where_that_is_quicker() {
        let profile = three_phase();
        let all: Vec<usize> = (0..profile.points.len()).collect();
        let whole = plan(&profile, &all, &SLOW);
        assert_eq!(
            asked(&whole),
            [
                "0001FF00 20",
                "00020000 4",
                "00030000 4",
                "0201FF00 6",
                "0202FF00 9",
                "0203FF00 12",
                "02060000 2",
                "02800002 2",
            ]
        );
        let mut seen: Vec<usize> = whole.iter().flat_map(|planned| planned.points.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, all, "each point once");
        // 24 + 44 characters of 11 bits at 2400 baud, 3.5 more twice, and 100 ms.
        let time = whole[0].time(&profile, &SLOW);
        assert_eq!(time.as_millis(), (20 + 40 + 7) * 11_000 / 2400 + 100);
        // One value of a block comes alone, two come in the block up to the last of them.
        let two = points(&profile, &["energy_import_t1", "energy_import_total"]);
        assert_eq!(asked(&plan(&profile, &two, &SLOW)), ["0001FF00 8"]);
        assert_eq!(asked(&plan(&profile, &two[..1], &SLOW)), ["00010100 4"]);
        assert_eq!(plan(&profile, &[two[0], two[0], 999], &SLOW).len(), 1, "unknown ones are passed over");
    }

    #[test]
    fn a_refused_block_is_asked_for_value_by_value() {
        let profile = three_phase();
        let volts = points(&profile, &["voltage_l1", "voltage_l2", "voltage_l3"]);
        let block = plan(&profile, &volts, &SLOW).remove(0);
        let parts = split(&block, &profile);
        assert_eq!(asked(&parts), ["02010100 2", "02010200 2", "02010300 2"]);
        assert_eq!(split(&parts[0], &profile), vec![parts[0].clone()]);
    }

    #[test]
    fn a_reply_is_cut_into_the_bytes_of_its_cells() {
        let profile = three_phase();
        let cell = &profile.points[points(&profile, &["voltage_l2"])[0]].cell;
        let read = |identifier: &str| Read::data(identifier.parse().unwrap(), 6);
        let block = [1, 2, 3, 4, 5, 6];
        assert_eq!(data_of(cell, &read("0201FF00"), &block), [3, 4]);
        assert_eq!(data_of(cell, &read("0201FF00"), &block[..3]), [3], "a phase that the meter has not");
        assert_eq!(data_of(cell, &read("02010200"), &block[..2]), [1, 2]);
        for length in [0, 1, 3] {
            assert!(data_of(cell, &read("02010200"), &block[..length]).is_empty(), "another format");
        }
        assert!(data_of(cell, &read("02010300"), &block).is_empty());
        assert!(data_of(cell, &Read::Address, &block).is_empty());
    }
}
