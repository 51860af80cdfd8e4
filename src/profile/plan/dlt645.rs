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
    if item.identifier == *identifier {
        return if data.len() == usize::from(item.length) { data } else { &[] };
    }
    let block = item.block.filter(|block| block.identifier == *identifier);
    block.and_then(|block| data.get(usize::from(block.offset)..)).unwrap_or_default()
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
