//! A simulated meter that speaks Modbus: PDUs in, PDUs out (MODBUS Application Protocol V1.1b3).

use std::collections::BTreeMap;

use super::{Display, Source};
use crate::{
    model::Utc,
    profile::{Place, Profile, RequestLimits},
    protocol::{
        Payload, Question,
        modbus::{MAX_WORDS, Read, Table},
    },
};

/// Exception codes (V1.1b3, 7).
const ILLEGAL_FUNCTION: u8 = 0x01;
const ILLEGAL_ADDRESS: u8 = 0x02;
const ILLEGAL_VALUE: u8 = 0x03;

/// An answer, and what it showed unless it was a refusal.
type Answer = (Vec<u8>, Option<(Question, Payload)>);

/// Its tables.
#[derive(Debug)]
pub(super) struct Memory {
    limits: RequestLimits,
    /// Which cell a word belongs to, and its position in it.
    map: BTreeMap<(Table, u16), (Source, usize)>,
    /// Words that were set by hand.
    raw: BTreeMap<(Table, u16), u16>,
}

impl Memory {
    pub(super) fn new(profile: &Profile, limits: RequestLimits) -> Memory {
        let mut map = BTreeMap::new();
        let points = profile.points.iter().enumerate().map(|(index, p)| (Source::Point(index), &p.cell));
        let serial = profile.serial.iter().map(|serial| (Source::Serial, &serial.cell));
        for (source, cell) in points.chain(serial) {
            let Place::Modbus { table, address } = cell.place else { continue };
            for offset in 0..cell.encoding.kind.words() {
                map.insert((table, address.wrapping_add(offset)), (source, usize::from(offset)));
            }
        }
        Memory { limits, map, raw: BTreeMap::new() }
    }

    pub(super) fn set(&mut self, table: Table, address: u16, words: &[u16]) {
        for (address, word) in (address..=u16::MAX).zip(words) {
            self.raw.insert((table, address), *word);
        }
    }

    pub(super) fn release(&mut self) {
        self.raw.clear();
    }

    pub(super) fn set_max_hole(&mut self, words: u16) {
        self.limits.max_hole = words;
    }

    pub(super) fn answer(&self, display: &Display, pdu: &[u8], now: Utc) -> Option<Answer> {
        let (&function, arguments) = pdu.split_first()?;
        match self.words_for(display, function, arguments, now) {
            Err(code) => Some((vec![function | 0x80, code], None)),
            Ok((read, words)) => {
                let mut answer = vec![function, u8::try_from(2 * words.len()).ok()?];
                answer.extend(words.iter().flat_map(|word| word.to_be_bytes()));
                Some((answer, Some((Question::Modbus(read), Payload::Words(words)))))
            }
        }
    }

    fn words_for(
        &self,
        display: &Display,
        function: u8,
        arguments: &[u8],
        now: Utc,
    ) -> Result<(Read, Vec<u16>), u8> {
        let table = [Table::Holding, Table::Input]
            .into_iter()
            .find(|table| table.function() == function)
            .ok_or(ILLEGAL_FUNCTION)?;
        let &[a, b, c, d] = arguments else { return Err(ILLEGAL_VALUE) };
        let (address, count) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let odd = self.limits.even_words && !count.is_multiple_of(2);
        if count == 0 || count > self.limits.max_words.min(MAX_WORDS) || odd {
            return Err(ILLEGAL_VALUE);
        }
        let last = address.checked_add(count - 1).ok_or(ILLEGAL_ADDRESS)?;
        let mut cells: BTreeMap<Source, Vec<u8>> = BTreeMap::new();
        let mut words = Vec::with_capacity(usize::from(count));
        let mut hole = 0;
        for address in address..=last {
            let key = (table, address);
            let mapped = self.map.get(&key);
            let word = match (self.raw.get(&key), mapped) {
                (Some(word), _) => Some(*word),
                (None, Some((source, offset))) => {
                    let cell = cells.entry(*source).or_insert_with(|| display.encoded(*source, now));
                    let pair = cell.get(2 * offset..).and_then(|rest| rest.first_chunk());
                    Some(pair.map_or(0, |pair| u16::from_be_bytes(*pair)))
                }
                (None, None) => None,
            };
            hole = if word.is_some() { 0 } else { hole + 1 };
            if hole > self.limits.max_hole {
                return Err(ILLEGAL_ADDRESS);
            }
            words.push(word.unwrap_or_default());
        }
        // Nothing but hole: there is nothing at that address.
        if hole == count {
            return Err(ILLEGAL_ADDRESS);
        }
        Ok((Read { table, address, count }, words))
    }
}
