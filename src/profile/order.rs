//! Byte orders as text (`AB`, `CDAB`, …) and as a permutation of wire bytes.
//!
//! Knows nothing of number formats: it moves bytes between the order of the wire and most significant first.

use std::{fmt, str::FromStr};

use super::ByteOrder;

/// Letters of the significances: `A` is the most significant byte.
const LETTERS: [char; 8] = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];

/// Why a text is not a byte order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a byte order: expected each of the first 2, 4 or 8 letters from A once, such as CDAB")]
pub struct OrderError(String);

impl ByteOrder {
    /// Bytes of a cell in this order.
    pub fn bytes(&self) -> usize {
        self.positions.len()
    }

    /// The least significant byte first, as DL/T 645 sends each value.
    pub fn low_first(bytes: u8) -> ByteOrder {
        ByteOrder { positions: (0..bytes).rev().collect() }
    }

    /// Wire bytes, most significant first; `None` when their number is not [`ByteOrder::bytes`].
    pub(super) fn most_significant_first(&self, wire: &[u8]) -> Option<Vec<u8>> {
        if wire.len() != self.bytes() {
            return None;
        }
        let mut sorted: Vec<(u8, u8)> = self.positions.iter().copied().zip(wire.iter().copied()).collect();
        sorted.sort_unstable_by_key(|(position, _)| *position);
        Some(sorted.into_iter().map(|(_, byte)| byte).collect())
    }

    /// Bytes that are most significant first, as they go over the wire.
    pub(super) fn to_wire(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        if bytes.len() != self.bytes() {
            return None;
        }
        self.positions.iter().map(|position| bytes.get(usize::from(*position)).copied()).collect()
    }
}

impl FromStr for ByteOrder {
    type Err = OrderError;

    fn from_str(text: &str) -> Result<ByteOrder, OrderError> {
        let refuse = || OrderError(text.to_owned());
        let letters =
            LETTERS.get(..text.len()).filter(|l| matches!(l.len(), 2 | 4 | 8)).ok_or_else(refuse)?;
        let positions: Vec<u8> = text
            .chars()
            .map(|c| letters.iter().position(|l| *l == c).and_then(|at| u8::try_from(at).ok()))
            .collect::<Option<_>>()
            .ok_or_else(refuse)?;
        let mut seen = positions.clone();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() == letters.len() { Ok(ByteOrder { positions }) } else { Err(refuse()) }
    }
}

impl fmt::Display for ByteOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String =
            self.positions.iter().filter_map(|position| LETTERS.get(usize::from(*position))).collect();
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reads_back_as_it_was_written() {
        for text in ["AB", "BA", "ABCD", "CDAB", "DCBA", "BADC", "GHEFCDAB"] {
            assert_eq!(text.parse::<ByteOrder>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_permutation_is_refused() {
        for text in ["", "A", "ABC", "AA", "ABCE", "abcd", "ABCDEF", "ABCDEFGHI", "ÄB"] {
            assert!(text.parse::<ByteOrder>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn bytes_move_there_and_back() {
        let order: ByteOrder = "CDAB".parse().unwrap();
        assert_eq!(order.most_significant_first(&[3, 4, 1, 2]), Some(vec![1, 2, 3, 4]));
        assert_eq!(order.to_wire(&[1, 2, 3, 4]), Some(vec![3, 4, 1, 2]));
        assert_eq!(ByteOrder::low_first(3).to_wire(&[1, 2, 3]), Some(vec![3, 2, 1]));
        assert_eq!(order.most_significant_first(&[1, 2]), None);
    }
}
