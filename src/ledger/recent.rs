//! The newest lines, kept in memory until the broker has them: who sends them at once need not read them back.
//!
//! Only lines that are on the disk. Pure: no file is opened here.

use std::collections::VecDeque;

use super::Line;
use crate::model::Seq;

/// Bytes of lines that are kept: what a busy site stores in a tenth of a second. Beyond it the oldest is forgotten, and read
/// from its file.
pub const RECENT_BYTES: usize = 2 * 1024 * 1024;

/// Consecutive lines, up to the last one stored.
#[derive(Debug, Default)]
pub struct Recent {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Recent {
    /// Takes lines that were just stored, in order.
    pub fn extend(&mut self, stored: impl Iterator<Item = Line>) {
        for line in stored {
            self.bytes += line.bytes.len();
            self.lines.push_back(line);
        }
        while self.bytes > RECENT_BYTES {
            self.drop_oldest();
        }
    }

    /// Forgets what nobody will ask for any more.
    pub fn forget(&mut self, up_to: Seq) {
        while self.lines.front().is_some_and(|line| line.seq <= up_to) {
            self.drop_oldest();
        }
    }

    /// Consecutive lines from `from`, at most so many and so large, but at least one if it is here.
    pub fn page(&self, from: Seq, max_records: usize, max_bytes: usize) -> Vec<Line> {
        let skip = self.lines.front().and_then(|first| from.checked_sub(first.seq));
        let Some(skip) = skip.and_then(|skip| usize::try_from(skip).ok()) else { return Vec::new() };
        let mut bytes = 0;
        let fits = self.lines.iter().skip(skip).take(max_records).enumerate().take_while(|(nth, line)| {
            bytes += line.bytes.len();
            *nth == 0 || bytes <= max_bytes
        });
        fits.map(|(_, line)| line.clone()).collect()
    }

    fn drop_oldest(&mut self) {
        if let Some(line) = self.lines.pop_front() {
            self.bytes -= line.bytes.len();
        }
        if self.lines.is_empty() {
            self.lines.shrink_to(64); // after a burst
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(range: std::ops::RangeInclusive<Seq>, bytes: usize) -> impl Iterator<Item = Line> {
        range.map(move |seq| Line { seq, bytes: vec![b'x'; bytes].into() })
    }

    fn seqs(page: &[Line]) -> Vec<Seq> {
        page.iter().map(|line| line.seq).collect()
    }

    #[test]
    fn a_page_is_consecutive_and_within_its_bounds() {
        let mut recent = Recent::default();
        assert_eq!(recent.page(1, 10, 1000), []);
        recent.extend(lines(5..=9, 100));
        assert_eq!(recent.page(4, 10, 1000), [], "not here: from the file");
        assert_eq!(seqs(&recent.page(5, 10, 1000)), [5, 6, 7, 8, 9]);
        assert_eq!(seqs(&recent.page(6, 2, 1000)), [6, 7]);
        assert_eq!(seqs(&recent.page(6, 10, 250)), [6, 7]);
        assert_eq!(seqs(&recent.page(6, 10, 50)), [6], "at least one");
        assert_eq!(recent.page(10, 10, 1000), []);
        recent.forget(7);
        assert_eq!(recent.page(7, 10, 1000), []);
        assert_eq!(seqs(&recent.page(8, 10, 1000)), [8, 9]);
        recent.forget(99);
        recent.extend(lines(10..=10, 100));
        assert_eq!(seqs(&recent.page(10, 10, 1000)), [10]);
    }

    #[test]
    fn it_never_grows_beyond_its_limit() {
        let mut recent = Recent::default();
        recent.extend(lines(1..=3000, 1024));
        assert!(recent.bytes <= RECENT_BYTES && recent.bytes == recent.lines.len() * 1024);
        assert_eq!(recent.lines.len(), 2048);
        assert_eq!(seqs(&recent.page(3000, 1, 0)), [3000], "the newest stays");
        recent.forget(3000);
        assert_eq!(recent.bytes, 0);
    }
}
