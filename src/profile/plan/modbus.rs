//! Points of a Modbus meter into requests: the fewest milliseconds on the wire, within what the meter accepts.
//!
//! Knows words, limits and wire times; knows nothing of values, units or who asks.

use std::time::Duration;

use super::Planned;
use crate::{
    profile::{Cell, Place, Profile, RequestLimits},
    protocol::{
        Pace, Question,
        modbus::{MAX_WORDS, REPLY_OVERHEAD_CHARS, REQUEST_CHARS, Read, Table},
    },
};

/// First address behind the table's end: addresses are 16 bits.
const END_OF_TABLE: u32 = 0x1_0000;

/// Characters of the request and of its reply.
pub(super) fn chars(read: &Read) -> (u32, u32) {
    (REQUEST_CHARS, REPLY_OVERHEAD_CHARS + 2 * u32::from(read.count))
}

/// The cheapest requests that bring `points`. Between plans of the same time, the one with fewer words wins.
pub(super) fn plan(profile: &Profile, limits: &RequestLimits, points: &[usize], pace: &Pace) -> Vec<Planned> {
    let spans = sorted_spans(profile, points);
    // best[i]: cheapest way to read the first i spans, as (cost, where its last request begins).
    let mut best: Vec<(Cost, usize)> = vec![(Cost::default(), 0)];
    for end in 1..=spans.len() {
        let mut cheapest: Option<(Cost, usize)> = None;
        for start in (0..end).rev() {
            let Some(run) = spans.get(start..end) else { continue };
            let Some(read) = request(limits, run) else { break };
            let Some((before, _)) = best.get(start) else { continue };
            let cost = Cost {
                time: before.time.saturating_add(exchange_time(&read, profile, *pace)),
                words: before.words.saturating_add(read.count.into()),
            };
            if cheapest.is_none_or(|(least, _)| cost < least) {
                cheapest = Some((cost, start));
            }
        }
        // A single span always has a request, so the alternative is never taken.
        best.push(cheapest.unwrap_or((Cost::default(), end.saturating_sub(1))));
    }
    let mut planned = Vec::new();
    let mut end = spans.len();
    while end > 0 {
        let start = best.get(end).map_or(0, |(_, start)| *start).min(end - 1);
        planned.extend(spans.get(start..end).and_then(|run| exchange(limits, run)));
        end = start;
    }
    planned.reverse();
    planned
}

/// Without the holes that were read over; if there were none, each half of the points; a single point is not split.
pub(super) fn split(points: &[usize], profile: &Profile, limits: &RequestLimits) -> Vec<Planned> {
    let spans = sorted_spans(profile, points);
    let mut runs: Vec<&[Span]> = spans.chunk_by(|a, b| b.start <= a.end).collect();
    if let [run] = runs.as_slice()
        && run.len() > 1
    {
        let (low, high) = run.split_at(run.len() / 2);
        runs = vec![low, high];
    }
    runs.into_iter().filter_map(|run| exchange(limits, run)).collect()
}

/// The request that brings one cell.
pub(super) fn read_of(cell: &Cell, limits: &RequestLimits) -> Option<Read> {
    request(limits, &[Span::new(usize::MAX, cell)?])
}

/// The words of a cell within the reply to `read`; empty when the reply does not hold them.
pub(super) fn words_of<'a>(cell: &Cell, read: &Read, reply: &'a [u16]) -> &'a [u16] {
    let Place::Modbus { table, address } = cell.place else { return &[] };
    let offset = address.checked_sub(read.address).filter(|_| table == read.table);
    offset
        .map(usize::from)
        .and_then(|from| reply.get(from..from + usize::from(cell.encoding.kind.words())))
        .unwrap_or_default()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Cost {
    time: Duration,
    words: u32,
}

/// The words of one point: `start..end` in `table`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    table: Table,
    start: u32,
    end: u32,
    index: usize,
}

impl Span {
    /// `None` for a place of another protocol.
    fn new(index: usize, cell: &Cell) -> Option<Span> {
        let Place::Modbus { table, address } = cell.place else { return None };
        let start = u32::from(address);
        Some(Span { table, start, end: start + u32::from(cell.encoding.kind.words()), index })
    }
}

fn sorted_spans(profile: &Profile, points: &[usize]) -> Vec<Span> {
    let mut spans: Vec<Span> =
        points.iter().filter_map(|index| Span::new(*index, &profile.points.get(*index)?.cell)).collect();
    spans.sort_unstable();
    spans.dedup();
    spans
}

/// The one request that covers a run of spans; `None` when the meter's limits forbid it. A single span is
/// always asked for: its profile was checked when it was loaded.
fn request(limits: &RequestLimits, run: &[Span]) -> Option<Read> {
    let first = run.first()?;
    let mut end = first.end;
    for span in run {
        let hole = span.start.saturating_sub(end);
        if span.table != first.table || hole > u32::from(limits.max_hole) {
            return None;
        }
        end = end.max(span.end);
    }
    let mut start = first.start;
    if limits.even_words && (end - start) % 2 == 1 {
        // The word too many lies behind the points, or before them at the very end of the table.
        if end < END_OF_TABLE {
            end += 1;
        } else {
            start = start.saturating_sub(1);
        }
    }
    let limit = u32::from(limits.max_words.min(MAX_WORDS));
    if run.len() > 1 && end - start > limit {
        return None;
    }
    Some(Read {
        table: first.table,
        address: u16::try_from(start).ok()?,
        count: u16::try_from(end - start).ok()?,
    })
}

fn exchange(limits: &RequestLimits, run: &[Span]) -> Option<Planned> {
    let read = request(limits, run)?;
    Some(Planned { question: Question::Modbus(read), points: run.iter().map(|span| span.index).collect() })
}

fn exchange_time(read: &Read, profile: &Profile, pace: Pace) -> Duration {
    let (request, reply) = chars(read);
    pace.exchange_time(request, reply, profile.turnaround)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Dec, Medium, Unit},
        profile::{Encoding, Kind, Point, Protocol, plan, split},
        protocol::{Parity, Wire},
    };
    use proptest::prelude::*;

    const SLOW: Pace = Pace::Serial(Wire { baud: 9600, parity: Parity::None, stop_bits: 1 });

    fn point(index: usize, table: Table, address: u16, kind: Kind) -> Point {
        let order = match kind.words() {
            1 => "AB",
            2 => "ABCD",
            _ => "ABCDEFGH",
        };
        Point {
            name: format!("p{index}").parse().unwrap(),
            unit: Unit::One,
            cell: Cell {
                place: Place::Modbus { table, address },
                encoding: Encoding { kind, order: order.parse().unwrap(), signed: false, bits: Vec::new() },
                scale: Dec::ONE,
                sentinels: Vec::new(),
            },
            register: None,
            source: "test".into(),
        }
    }

    fn profile(max_words: u16, max_hole: u16, even_words: bool, cells: &[(Table, u16, Kind)]) -> Profile {
        Profile {
            id: "test".into(),
            manufacturer: "test".into(),
            model: "test".into(),
            medium: Medium::Electricity,
            protocol: Protocol::Modbus(RequestLimits { max_words, max_hole, even_words }),
            line: None,
            source: "test".into(),
            verification: "test".into(),
            turnaround: Duration::from_millis(40),
            points: cells
                .iter()
                .enumerate()
                .map(|(index, (table, address, kind))| point(index, *table, *address, *kind))
                .collect(),
            serial: None,
        }
    }

    fn limits(profile: &Profile) -> &RequestLimits {
        let Protocol::Modbus(limits) = &profile.protocol else { panic!() };
        limits
    }

    fn read(planned: &Planned) -> Read {
        let Question::Modbus(read) = planned.question else { panic!() };
        read
    }

    fn asked(planned: &[Planned]) -> Vec<(u16, u16)> {
        planned.iter().map(read).map(|read| (read.address, read.count)).collect()
    }

    fn all(profile: &Profile) -> Vec<usize> {
        (0..profile.points.len()).collect()
    }

    #[test]
    fn a_hole_is_read_over_while_that_is_cheaper_than_a_second_exchange() {
        // 13 characters, 7 of silence and 40 ms are worth 29.2 words at 9600 8N1.
        for (hole, expected) in [(0, 1), (28, 1), (29, 1), (30, 2)] {
            let profile = profile(
                125,
                125,
                false,
                &[(Table::Input, 0, Kind::F32), (Table::Input, 2 + hole, Kind::F32)],
            );
            assert_eq!(plan(&profile, &all(&profile), &SLOW).len(), expected, "hole of {hole}");
        }
    }

    #[test]
    fn limits_of_the_meter_cut_requests() {
        let cells: Vec<_> = (0..5).map(|i| (Table::Input, i * 2, Kind::F32)).collect();
        let narrow = profile(4, 0, false, &cells);
        assert_eq!(plan(&narrow, &all(&narrow), &SLOW).len(), 3);
        let holes = profile(125, 0, false, &[(Table::Input, 0, Kind::U16), (Table::Input, 2, Kind::U16)]);
        assert_eq!(asked(&plan(&holes, &all(&holes), &SLOW)), [(0, 1), (2, 1)]);
        let tables = profile(125, 9, false, &[(Table::Input, 0, Kind::U16), (Table::Holding, 1, Kind::U16)]);
        assert_eq!(plan(&tables, &all(&tables), &SLOW).len(), 2);
        let even = profile(60, 0, true, &[(Table::Input, 7, Kind::U16), (Table::Input, 65535, Kind::U16)]);
        assert_eq!(asked(&plan(&even, &all(&even), &SLOW)), [(7, 2), (65534, 2)]);
    }

    #[test]
    fn a_refused_request_loses_its_holes_first_and_then_its_halves() {
        let profile = profile(
            125,
            20,
            false,
            &[(Table::Input, 0, Kind::F32), (Table::Input, 2, Kind::F32), (Table::Input, 10, Kind::F32)],
        );
        let whole = plan(&profile, &[0, 1, 2], &SLOW);
        assert_eq!(asked(&whole), [(0, 12)]);
        let groups = split(&whole[0], &profile);
        assert_eq!(asked(&groups), [(0, 4), (10, 2)]);
        let halves = split(&groups[0], &profile);
        assert_eq!(asked(&halves), [(0, 2), (2, 2)]);
        assert_eq!(split(&halves[0], &profile), vec![halves[0].clone()]);
    }

    #[test]
    fn a_reply_is_cut_into_the_words_of_its_cells() {
        let profile = profile(125, 20, false, &[(Table::Input, 10, Kind::F32)]);
        let read = Read { table: Table::Input, address: 8, count: 4 };
        let cell = &profile.points[0].cell;
        assert_eq!(words_of(cell, &read, &[1, 2, 3, 4]), [3, 4]);
        assert!(words_of(cell, &read, &[1, 2, 3]).is_empty());
        assert!(words_of(cell, &Read { table: Table::Holding, ..read }, &[1, 2, 3, 4]).is_empty());
    }

    fn cells() -> impl Strategy<Value = Vec<(Table, u16, Kind)>> {
        let kind = prop::sample::select(vec![Kind::U16, Kind::F32, Kind::U64]);
        let table = prop::sample::select(vec![Table::Input, Table::Holding]);
        let address = prop_oneof![0..120_u16, 65_480..65_532_u16];
        prop::collection::vec((table, address, kind), 1..24)
    }

    fn pace() -> impl Strategy<Value = Pace> {
        let baud = prop::sample::select(vec![1200, 2400, 9600, 115_200]);
        prop_oneof![
            Just(Pace::Network),
            baud.prop_map(|baud| Pace::Serial(Wire { baud, parity: Parity::Even, stop_bits: 1 })),
        ]
    }

    fn time(planned: &[Planned], profile: &Profile, pace: Pace) -> Duration {
        planned.iter().map(|p| p.time(profile, &pace)).sum()
    }

    /// Every point once, inside its request, and no request beyond what the meter accepts.
    fn assert_sound(planned: &[Planned], profile: &Profile, points: &[usize]) {
        let mut seen: Vec<usize> = planned.iter().flat_map(|p| p.points.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, points);
        for p in planned {
            let read = read(p);
            let (start, end) = (u32::from(read.address), u32::from(read.address) + u32::from(read.count));
            assert!(end <= END_OF_TABLE && (1..=limits(profile).max_words).contains(&read.count), "{read:?}");
            assert!(!limits(profile).even_words || read.count.is_multiple_of(2), "{read:?}");
            let mut used = vec![false; usize::from(read.count)];
            for index in &p.points {
                let span = Span::new(*index, &profile.points[*index].cell).unwrap();
                assert!(
                    span.table == read.table && span.start >= start && span.end <= end,
                    "{read:?} {span:?}"
                );
                (span.start..span.end).for_each(|word| used[(word - start) as usize] = true);
            }
            let widest = used.split(|used| *used).map(<[bool]>::len).max().unwrap_or(0);
            let allowed = usize::from(limits(profile).max_hole).max(usize::from(limits(profile).even_words));
            assert!(widest <= allowed, "{read:?} reads over {widest} words");
        }
    }

    proptest! {
        #[test]
        fn a_plan_is_sound_and_never_dearer_than_asking_point_by_point(
            cells in cells(), max_words in 4..=125_u16, max_hole in 0..40_u16, even in any::<bool>(), pace in pace(),
        ) {
            let profile = profile(max_words, max_hole, even, &cells);
            let points = all(&profile);
            let planned = plan(&profile, &points, &pace);
            assert_sound(&planned, &profile, &points);
            let singly: Vec<Planned> = points.iter().flat_map(|p| plan(&profile, &[*p], &pace)).collect();
            prop_assert!(time(&planned, &profile, pace) <= time(&singly, &profile, pace));
        }

        #[test]
        fn no_other_cutting_is_cheaper(
            cells in prop::collection::vec((Just(Table::Input), 0..60_u16, Just(Kind::F32)), 1..9), pace in pace(),
        ) {
            let profile = profile(40, 12, false, &cells);
            let points = all(&profile);
            let best = time(&plan(&profile, &points, &pace), &profile, pace);
            let spans = sorted_spans(&profile, &points);
            for cuts in 0..1_u32 << (spans.len() - 1) {
                let mut runs = vec![vec![spans[0]]];
                for (i, span) in spans.iter().enumerate().skip(1) {
                    if cuts >> (i - 1) & 1 == 1 {
                        runs.push(Vec::new());
                    }
                    runs.last_mut().unwrap().push(*span);
                }
                let other: Option<Vec<Planned>> = runs.iter().map(|run| exchange(limits(&profile), run)).collect();
                prop_assert!(other.is_none_or(|other| best <= time(&other, &profile, pace)));
            }
        }

        #[test]
        fn splitting_loses_no_point_and_ends_at_single_points(
            cells in cells(), max_words in 4..=125_u16, even in any::<bool>(),
        ) {
            let profile = profile(max_words, 30, even, &cells);
            let points = all(&profile);
            let mut planned = plan(&profile, &points, &Pace::Network);
            for _ in 0..12 {
                planned = planned.iter().flat_map(|p| split(p, &profile)).collect();
                assert_sound(&planned, &profile, &points);
            }
            prop_assert!(planned.iter().all(|p| p.points.len() == 1));
        }
    }
}
