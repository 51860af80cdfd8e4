//! Reading from segments that may be sealed, or pruned, while they are read.
//!
//! Each line is verified again before it is given out. Knows nothing of appending, nor of how the index is kept.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    super::{
        Ledger, LedgerError, Line, ReadingQuery,
        chain::verify_line,
        disk::Disk,
        files::io_error,
        segments::lines_from,
        summary::{Place, Summary},
    },
    FileLedger,
    shared::{Good, Latest, Sealed, State},
};
use crate::model::{MeterId, Seq, Utc};

/// Where a page is read from.
struct Source {
    first: Seq,
    last: Seq,
    path: PathBuf,
    bytes: u64,
    sealed: Option<Arc<Sealed>>,
}

impl Source {
    fn sealed(sealed: &Arc<Sealed>) -> Source {
        Source {
            first: sealed.first,
            last: sealed.last,
            path: sealed.path.clone(),
            bytes: sealed.bytes,
            sealed: Some(sealed.clone()),
        }
    }

    fn open(state: &State) -> Source {
        let header = &state.open.header;
        Source {
            first: header.first,
            last: header.last,
            path: state.open_path.clone(),
            bytes: header.bytes,
            sealed: None,
        }
    }
}

impl FileLedger {
    /// See [`super::super::Ledger::read`].
    pub(super) fn read_lines(
        &self,
        from: Seq,
        max_records: usize,
        max_bytes: usize,
    ) -> Result<Vec<Line>, LedgerError> {
        let (mut page, mut bytes, mut next) = (Vec::new(), 0, from.max(1));
        while page.len() < max_records {
            let Some(source) = self.source(next) else { break };
            if source.first > next {
                if !page.is_empty() {
                    break; // what lies between was pruned
                }
                next = source.first;
            }
            let offset = self.offset(&source, next)?;
            let mut lines = lines_from(&*self.shared.disk, &source.path, offset, source.bytes)?;
            let mut bad: Option<(u64, String)> = None;
            while let Some(chunk) = lines.next_chunk().map_err(io_error(&source.path))? {
                let verified = match verify_line(lines.bytes()) {
                    Ok(verified) if verified.seq < next => continue,
                    Ok(verified) if verified.seq == next => verified,
                    Ok(verified) => {
                        bad.get_or_insert((
                            chunk.offset,
                            format!("seq {} stands in its place", verified.seq),
                        ));
                        break;
                    }
                    Err(detail) => {
                        bad.get_or_insert((chunk.offset, detail));
                        continue;
                    }
                };
                bytes += lines.bytes().len();
                if page.len() >= max_records || (bytes > max_bytes && !page.is_empty()) {
                    return Ok(page);
                }
                page.push(Line { seq: verified.seq, bytes: Bytes::copy_from_slice(lines.bytes()) });
                next += 1;
                bad = None;
            }
            if next <= source.last {
                if page.is_empty() {
                    let (offset, detail) =
                        bad.unwrap_or((source.bytes, "the record is not in its segment".into()));
                    return Err(LedgerError::Damaged {
                        path: source.path.display().to_string(),
                        offset,
                        seq: next,
                        detail,
                    });
                }
                break;
            }
        }
        Ok(page)
    }

    /// See [`super::super::Ledger::latest`].
    pub(super) fn latest_readings(
        &self,
        meter: &MeterId,
        before: Seq,
        limit: usize,
    ) -> Result<Vec<Line>, LedgerError> {
        let mut page = Vec::new();
        let Some(Latest { good: Good::At(newest), .. }) = self.find_latest(meter.as_str())? else {
            return Ok(page);
        };
        let mut next = newest;
        while page.len() < limit
            && let Some(source) = self.source_at_or_before(next)
        {
            let places =
                if source.first < before { self.places(&source, meter.as_str())? } else { Vec::new() };
            for place in places.iter().rev().filter(|place| !place.missing && place.seq < before) {
                if page.len() >= limit {
                    break;
                }
                match read_place(&*self.shared.disk, &source.path, *place) {
                    Ok(line) => page.push(line),
                    // Pruned between finding and reading: older ones went before it.
                    Err(_) if self.first() > place.seq => return Ok(page),
                    Err(LedgerError::Damaged { detail, .. }) => self.report_damage(&source, *place, &detail),
                    Err(error) => return Err(error),
                }
            }
            let Some(earlier) = source.first.checked_sub(1) else { break };
            next = earlier;
        }
        Ok(page)
    }

    fn report_damage(&self, source: &Source, place: Place, detail: &str) {
        let path = source.path.display();
        self.shared.report(format!("ledger {path}: seq {}: {detail}", place.seq));
    }

    /// See [`super::super::Ledger::latest_slot`].
    pub(super) fn latest_moment(&self, meter: &MeterId) -> Option<Utc> {
        let known = self.shared.state().latest.get(meter.as_str()).copied();
        let latest = match known {
            Some(latest) => Some(latest),
            None => self.find_latest(meter.as_str()).unwrap_or_else(|error| {
                self.shared.report(format!("latest slot of {meter}: {error}"));
                None
            }),
        };
        latest.and_then(|latest| Utc::from_timestamp_millis(latest.slot_ms))
    }

    /// See [`super::super::Ledger::readings`].
    pub(super) fn page_of_readings(&self, query: &ReadingQuery) -> Result<Vec<Line>, LedgerError> {
        let mut page = Vec::new();
        let mut next = query.after.saturating_add(1);
        while page.len() < query.limit {
            let Some(source) = self.source(next) else { break };
            self.readings_of(&source, query, &mut page)?;
            next = source.last.saturating_add(1);
        }
        Ok(page)
    }

    /// The segment that holds `seq` or, when that was pruned, the next one that is kept.
    fn source(&self, seq: Seq) -> Option<Source> {
        let state = self.shared.state();
        let before = state.sealed.range(..=seq).next_back().filter(|(_, sealed)| sealed.last >= seq);
        if let Some((_, sealed)) = before.or_else(|| state.sealed.range(seq..).next()) {
            return Some(Source::sealed(sealed));
        }
        (seq <= state.open.header.last).then(|| Source::open(&state))
    }

    /// The last segment that begins at or before `seq`.
    fn source_at_or_before(&self, seq: Seq) -> Option<Source> {
        let state = self.shared.state();
        if state.open.header.first <= seq {
            return Some(Source::open(&state));
        }
        state.sealed.range(..=seq).next_back().map(|(_, sealed)| Source::sealed(sealed))
    }

    fn offset(&self, source: &Source, seq: Seq) -> Result<u64, LedgerError> {
        if let Some(sealed) = &source.sealed {
            return self.shared.sparse_offset(sealed, seq);
        }
        let state = self.shared.state();
        // It may have been sealed since: then from its beginning, once.
        let same = state.open.header.first == source.first;
        Ok(if same { Summary::offset_before(&state.open.sparse, seq) } else { 0 })
    }

    fn places(&self, source: &Source, meter: &str) -> Result<Vec<Place>, LedgerError> {
        if source.sealed.is_none() {
            let state = self.shared.state();
            if state.open.header.first == source.first {
                return Ok(state.open.meters.get(meter).cloned().unwrap_or_default());
            }
        }
        let sealed = self.shared.state().sealed.get(&source.first).cloned();
        sealed.map_or_else(|| Ok(Vec::new()), |sealed| self.shared.places(&sealed, meter))
    }

    /// One page of the readings of one segment.
    fn readings_of(
        &self,
        source: &Source,
        query: &ReadingQuery,
        page: &mut Vec<Line>,
    ) -> Result<(), LedgerError> {
        let (from, to) = (query.from.map(ceil_ms), query.to.map(ceil_ms));
        let wanted = |at_ms: i64| from.is_none_or(|from| at_ms >= from) && to.is_none_or(|to| at_ms < to);
        if let Some(known) = source.sealed.as_ref().and_then(|sealed| sealed.known.get()) {
            let (min, max) = (known.header.min_ms, known.header.max_ms);
            if max < min || from.is_some_and(|from| max < from) || to.is_some_and(|to| min >= to) {
                return Ok(());
            }
        }
        if let Some(meter) = &query.meter {
            let places = self.places(source, meter.as_str())?;
            let begin = places.partition_point(|place| place.seq <= query.after);
            for place in places.iter().skip(begin).filter(|place| wanted(place.at_ms)) {
                if page.len() >= query.limit {
                    return Ok(());
                }
                match read_place(&*self.shared.disk, &source.path, *place) {
                    Ok(line) => page.push(line),
                    Err(LedgerError::Damaged { detail, .. }) => self.report_damage(source, *place, &detail),
                    Err(error) => return Err(error),
                }
            }
            return Ok(());
        }
        let offset = self.offset(source, query.after + 1)?;
        let mut lines = lines_from(&*self.shared.disk, &source.path, offset, source.bytes)?;
        while page.len() < query.limit && lines.next_chunk().map_err(io_error(&source.path))?.is_some() {
            let Ok(verified) = verify_line(lines.bytes()) else { continue }; // reported when it was indexed
            let in_place = verified.seq > query.after && (source.first..=source.last).contains(&verified.seq);
            let in_order = page.last().is_none_or(|line| line.seq < verified.seq);
            if in_place && in_order && verified.facts.reading.is_some_and(|reading| wanted(reading.at_ms)) {
                page.push(Line { seq: verified.seq, bytes: Bytes::copy_from_slice(lines.bytes()) });
            }
        }
        Ok(())
    }

    /// Walks the segments from the newest for what memory does not know of a meter.
    fn find_latest(&self, meter: &str) -> Result<Option<Latest>, LedgerError> {
        let (known, open_first, sealed) = {
            let state = self.shared.state();
            let known = state.latest.get(meter).copied();
            let sealed: Vec<Arc<Sealed>> = state.sealed.values().rev().cloned().collect();
            (known, state.open.header.first, sealed)
        };
        if let Some(Latest { good: Good::None | Good::At(..), .. }) = known {
            return Ok(known);
        }
        let mut found = known;
        for sealed in sealed.iter().filter(|sealed| sealed.first < open_first) {
            let places = self.shared.places(sealed, meter)?;
            let Some(newest) = places.last() else { continue };
            let latest = found.get_or_insert(Latest { slot_ms: newest.at_ms, good: Good::Unknown });
            if places.iter().any(|place| !place.missing) {
                latest.good = Good::At(sealed.first);
                break;
            }
        }
        if let Some(latest) = &mut found {
            if matches!(latest.good, Good::Unknown) {
                latest.good = Good::None;
            }
            let mut state = self.shared.state_mut();
            // What was appended meanwhile is newer than what was found, and pruning removes what it has taken.
            let kept = match latest.good {
                Good::At(first) => state.sealed.contains_key(&first),
                _ => true,
            };
            match state.latest.get_mut(meter) {
                Some(now) if matches!(now.good, Good::Unknown) && kept => now.good = latest.good,
                None if kept => drop(state.latest.insert(meter.to_owned(), *latest)),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// Reads and verifies the line at a place that the index named.
fn read_place(disk: &dyn Disk, path: &Path, place: Place) -> Result<Line, LedgerError> {
    let damaged = |detail: String| LedgerError::Damaged {
        path: path.display().to_string(),
        offset: place.offset,
        seq: place.seq,
        detail,
    };
    let mut lines = lines_from(disk, path, place.offset, u64::MAX)?;
    if lines.next_chunk().map_err(io_error(path))?.is_none() {
        return Err(damaged("the file ends before it".into()));
    }
    let verified = verify_line(lines.bytes()).map_err(damaged)?;
    if verified.seq != place.seq {
        return Err(damaged(format!("seq {} stands in its place", verified.seq)));
    }
    Ok(Line { seq: place.seq, bytes: Bytes::copy_from_slice(lines.bytes()) })
}

/// Slots are kept in ms: of two moments in one ms the later one begins with the next.
fn ceil_ms(at: Utc) -> i64 {
    at.timestamp_millis() + i64::from(!at.timestamp_subsec_nanos().is_multiple_of(1_000_000))
}
