//! One simulated meter: a profile's points as words, and answers to reads of them.
//!
//! Knows PDUs (MODBUS Application Protocol V1.1b3), not frames or lines. It remembers what it showed, so that a
//! test can ask whether every stored value was really on the display.

use std::collections::{BTreeMap, VecDeque};

use super::{
    fault::{Delivery, Fault, Faults},
    values::Behaviour,
};
use crate::{
    model::{Dec, PointName, Utc},
    profile::{Cell, Kind, Point, SharedProfile, encode},
    protocol::modbus::{MAX_WORDS, Read, Table},
};

/// Answers remembered per meter: days of a test's polling in some tens of megabytes at most.
const SHOWN_KEPT: usize = 100_000;

/// Exception codes (V1.1b3, 7).
const ILLEGAL_FUNCTION: u8 = 0x01;
const ILLEGAL_ADDRESS: u8 = 0x02;
const ILLEGAL_VALUE: u8 = 0x03;

/// One answer that a meter gave, before any fault spoiled it on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The meter's unit id.
    pub unit: u8,
    /// When.
    pub at: Utc,
    /// What it was asked.
    pub read: Read,
    /// What it answered.
    pub words: Vec<u16>,
}

/// One simulated meter.
#[derive(Debug)]
pub struct SimMeter {
    unit: u8,
    profile: SharedProfile,
    behaviours: BTreeMap<PointName, Behaviour>,
    held: BTreeMap<PointName, Dec>,
    serial: Option<Dec>,
    /// Which cell a word belongs to, and its position in it.
    map: BTreeMap<(Table, u16), (Source, usize)>,
    /// Words that were set by hand.
    raw: BTreeMap<(Table, u16), u16>,
    max_hole: u16,
    faults: Faults,
    shown: VecDeque<Shown>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Point(usize),
    Serial,
}

impl SimMeter {
    /// A meter of that type; the seed decides its registers, its rate and its faults' dice.
    pub fn new(unit: u8, profile: SharedProfile, seed: u64) -> SimMeter {
        let mut behaviours = BTreeMap::new();
        let mut map = BTreeMap::new();
        let mut place = |cell: &Cell, source: Source| {
            for offset in 0..cell.encoding.kind.words() {
                map.insert((cell.table, cell.address.wrapping_add(offset)), (source, usize::from(offset)));
            }
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        for (index, point) in profile.points.iter().enumerate() {
            place(&point.cell, Source::Point(index));
            behaviours.insert(point.name.clone(), Behaviour::of(point, rng.u64(..)));
        }
        let mut serial = None;
        if let Some(point) = &profile.serial {
            place(&point.cell, Source::Serial);
            // Fits every kind: at most four digits in one word.
            let digits =
                if point.cell.encoding.kind.words() == 1 { 1_000..9_000 } else { 10_000_000..90_000_000 };
            serial = Some(Dec::from(rng.u64(digits)));
        }
        let max_hole = profile.max_hole;
        let faults = Faults::none(rng.u64(..));
        let (held, raw, shown) = (BTreeMap::new(), BTreeMap::new(), VecDeque::new());
        SimMeter { unit, profile, behaviours, held, serial, map, raw, max_hole, faults, shown }
    }

    /// Its unit id.
    pub fn unit(&self) -> u8 {
        self.unit
    }

    /// Its type.
    pub fn profile(&self) -> &SharedProfile {
        &self.profile
    }

    /// What is wrong with it.
    pub fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    /// The same meter with one more fault.
    #[must_use]
    pub fn with(mut self, fault: Fault) -> SimMeter {
        self.faults.add(fault);
        self
    }

    /// Shows this value from now on; `false` when the meter has no such point.
    pub fn set(&mut self, point: &str, value: Dec) -> bool {
        let Some(point) = self.profile.points.iter().find(|p| p.name.as_str() == point) else {
            return false;
        };
        self.held.insert(point.name.clone(), value);
        true
    }

    /// Lets a value that was set move by itself again (from where it would be, not from where it was set).
    pub fn release(&mut self, point: &str) {
        self.held.retain(|name, _| name.as_str() != point);
    }

    /// Shows these words from now on, whatever the profile says (sentinels, nonsense).
    pub fn set_words(&mut self, table: Table, address: u16, words: &[u16]) {
        for (address, word) in (address..=u16::MAX).zip(words) {
            self.raw.insert((table, address), *word);
        }
    }

    /// Forgets the words that were set.
    pub fn release_words(&mut self) {
        self.raw.clear();
    }

    /// Its serial number, where the profile has a place for it.
    pub fn set_serial(&mut self, serial: Dec) {
        self.serial = Some(serial);
    }

    /// The widest run of unmapped words that may be read over; the profile's unless changed.
    pub fn set_max_hole(&mut self, words: u16) {
        self.max_hole = words;
    }

    /// What the display shows at a point.
    pub fn value(&self, point: &str, now: Utc) -> Option<Dec> {
        let point = self.profile.points.iter().find(|p| p.name.as_str() == point)?;
        self.value_of(point, now)
    }

    /// The last answers, oldest first.
    pub fn shown(&self) -> impl Iterator<Item = &Shown> {
        self.shown.iter()
    }

    /// What it answers and how it is delivered; `None` when it stays silent.
    pub fn exchange(&mut self, pdu: &[u8], now: Utc) -> Option<(Vec<u8>, Delivery)> {
        let delivery = self.faults.deliver(now)?;
        Some((self.answer(pdu, now)?, delivery))
    }

    /// What it answers to a request PDU; `None` for an empty one.
    pub fn answer(&mut self, pdu: &[u8], now: Utc) -> Option<Vec<u8>> {
        let (&function, arguments) = pdu.split_first()?;
        match self.words_for(function, arguments, now) {
            Err(code) => Some(vec![function | 0x80, code]),
            Ok((read, words)) => {
                let mut answer = vec![function, u8::try_from(2 * words.len()).ok()?];
                answer.extend(words.iter().flat_map(|word| word.to_be_bytes()));
                if self.shown.len() >= SHOWN_KEPT {
                    self.shown.pop_front();
                }
                self.shown.push_back(Shown { unit: self.unit, at: now, read, words });
                Some(answer)
            }
        }
    }

    fn words_for(&self, function: u8, arguments: &[u8], now: Utc) -> Result<(Read, Vec<u16>), u8> {
        let table = [Table::Holding, Table::Input]
            .into_iter()
            .find(|table| table.function() == function)
            .ok_or(ILLEGAL_FUNCTION)?;
        let &[a, b, c, d] = arguments else { return Err(ILLEGAL_VALUE) };
        let (address, count) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let odd = self.profile.even_words && !count.is_multiple_of(2);
        if count == 0 || count > self.profile.max_words.min(MAX_WORDS) || odd {
            return Err(ILLEGAL_VALUE);
        }
        let last = address.checked_add(count - 1).ok_or(ILLEGAL_ADDRESS)?;
        let mut cells: BTreeMap<Source, Vec<u16>> = BTreeMap::new();
        let mut words = Vec::with_capacity(usize::from(count));
        let mut hole = 0;
        for address in address..=last {
            let key = (table, address);
            let mapped = self.map.get(&key);
            let word = match (self.raw.get(&key), mapped) {
                (Some(word), _) => Some(*word),
                (None, Some((source, offset))) => {
                    let cell = cells.entry(*source).or_insert_with(|| self.encoded(*source, now));
                    Some(cell.get(*offset).copied().unwrap_or_default())
                }
                (None, None) => None,
            };
            hole = if word.is_some() { 0 } else { hole + 1 };
            if hole > self.max_hole {
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

    /// The words of a cell; empty (read as zeros) when its value does not fit it.
    fn encoded(&self, source: Source, now: Utc) -> Vec<u16> {
        let (cell, value) = match source {
            Source::Point(index) => {
                let point = self.profile.points.get(index);
                (point.map(|point| &point.cell), point.and_then(|point| self.value_of(point, now)))
            }
            Source::Serial => (self.profile.serial.as_ref().map(|point| &point.cell), self.serial),
        };
        cell.zip(value).and_then(|(cell, value)| encode(cell, value)).unwrap_or_default()
    }

    fn value_of(&self, point: &Point, now: Utc) -> Option<Dec> {
        if let Some(held) = self.held.get(&point.name) {
            return Some(*held);
        }
        if matches!(point.cell.encoding.kind, Kind::Bits16 | Kind::Bits32) {
            return Some(Dec::ZERO); // no alarm
        }
        self.behaviours.get(&point.name)?.at(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Catalogue, decode, plan, words_of};
    use crate::protocol::Pace;
    use chrono::TimeDelta;

    fn at(text: &str) -> Utc {
        text.parse().unwrap()
    }

    fn noon() -> Utc {
        at("2026-11-02T12:00:00Z")
    }

    fn sdm630() -> SimMeter {
        SimMeter::new(1, Catalogue::builtin().get("eastron-sdm630").unwrap(), 42)
    }

    fn pdu(read: Read) -> Vec<u8> {
        let mut pdu = vec![read.table.function()];
        pdu.extend(read.address.to_be_bytes());
        pdu.extend(read.count.to_be_bytes());
        pdu
    }

    fn words(answer: &[u8]) -> Vec<u16> {
        answer[2..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    }

    /// Reads a whole meter as the gateway plans it: by point name, as text.
    fn display(meter: &mut SimMeter, now: Utc) -> BTreeMap<String, Dec> {
        let profile = meter.profile().clone();
        let all: Vec<usize> = (0..profile.points.len()).collect();
        let mut seen = BTreeMap::new();
        for planned in plan(&profile, &all, &Pace::Network) {
            let read = planned.question;
            let answer = meter.answer(&pdu(read), now).unwrap();
            assert!(answer[0] < 0x80, "{}: {read:?} was refused: {answer:?}", profile.id);
            let reply = words(&answer);
            for index in planned.points {
                let point = &profile.points[index];
                let decoded = decode(&point.cell, words_of(&point.cell, &read, &reply));
                let value =
                    decoded.value.unwrap_or_else(|why| panic!("{} {}: {why:?}", profile.id, point.name));
                seen.insert(point.name.to_string(), value);
            }
        }
        seen
    }

    #[test]
    fn every_built_in_type_answers_its_own_plan_with_what_it_shows() {
        for profile in Catalogue::builtin().iter() {
            let mut meter = SimMeter::new(1, profile.clone(), 7);
            let later = noon() + TimeDelta::days(30);
            let (first, second) = (display(&mut meter, noon()), display(&mut meter, later));
            for point in &profile.points {
                let name = point.name.as_str();
                let shown = meter.value(name, noon()).unwrap();
                assert_eq!(first[name], shown, "{} {name}", profile.id);
                if let Some(register) = point.register {
                    let rise = second[name].minus(first[name]).unwrap();
                    assert!(!rise.is_negative() && !rise.is_zero(), "{} {name}: {rise}", profile.id);
                    let most = register.max_per_hour.times(Dec::from(30 * 24)).unwrap();
                    assert!(rise <= most, "{} {name} rose by {rise}", profile.id);
                    assert!(second[name] < register.capacity);
                }
            }
        }
    }

    #[test]
    fn a_meter_that_is_simulated_again_goes_on_where_it_was() {
        assert_eq!(display(&mut sdm630(), noon()), display(&mut sdm630(), noon()));
    }

    #[test]
    fn voltages_are_plausible() {
        let volts = sdm630().value("voltage_l1", noon()).unwrap();
        assert!(("220".parse().unwrap().."240".parse().unwrap()).contains(&volts), "{volts}");
    }

    #[test]
    fn what_cannot_be_answered_is_refused_with_the_right_code() {
        let mut meter = sdm630();
        let ask = |meter: &mut SimMeter, pdu: &[u8]| meter.answer(pdu, noon()).unwrap();
        assert_eq!(ask(&mut meter, &[6, 0, 0, 0, 1]), [0x86, 1], "a write");
        assert_eq!(ask(&mut meter, &[4, 0, 0, 0, 0]), [0x84, 3], "nothing");
        assert_eq!(ask(&mut meter, &[4, 0, 0, 0, 62]), [0x84, 3], "more than the meter gives");
        assert_eq!(ask(&mut meter, &[4, 0, 0, 0, 3]), [0x84, 3], "an odd count");
        assert_eq!(ask(&mut meter, &[4, 0, 0]), [0x84, 3], "half a request");
        assert_eq!(ask(&mut meter, &[4, 0x70, 0, 0, 2]), [0x84, 2], "an address that is not there");
        assert_eq!(ask(&mut meter, &[3, 0, 0, 0, 2]), [0x83, 2], "the other table");
        assert_eq!(ask(&mut meter, &[4, 0xFF, 0xFF, 0, 2]), [0x84, 2], "beyond the last address");
        assert_eq!(meter.answer(&[], noon()), None);
        assert_eq!(meter.shown().count(), 0);
    }

    #[test]
    fn a_hole_is_read_over_only_where_it_is_tolerated() {
        let mut meter = sdm630();
        meter.set_words(Table::Input, 0x2000, &[0xAAAA]);
        meter.set_words(Table::Input, 0x2003, &[0xBBBB]);
        let request = [4, 0x20, 0, 0, 4];
        meter.set_max_hole(1);
        assert_eq!(meter.answer(&request, noon()).unwrap(), [0x84, 2]);
        meter.set_max_hole(2);
        assert_eq!(words(&meter.answer(&request, noon()).unwrap()), [0xAAAA, 0, 0, 0xBBBB]);
    }

    #[test]
    fn a_value_that_is_set_is_shown_until_it_is_released() {
        let mut meter = sdm630();
        let free = meter.value("energy_import_total", noon());
        assert!(meter.set("energy_import_total", "12345.67".parse().unwrap()));
        assert!(!meter.set("no_such_point", Dec::ONE));
        assert_eq!(display(&mut meter, noon())["energy_import_total"].to_string(), "12345.67");
        meter.release("energy_import_total");
        assert_eq!(meter.value("energy_import_total", noon()), free);
    }

    #[test]
    fn what_was_shown_is_remembered() {
        let mut meter = sdm630();
        let read = Read { table: Table::Input, address: 0, count: 2 };
        let answer = meter.answer(&pdu(read), noon()).unwrap();
        let shown: Vec<_> = meter.shown().cloned().collect();
        assert_eq!(shown, [Shown { unit: 1, at: noon(), read, words: words(&answer) }]);
    }

    proptest::proptest! {
        #[test]
        fn any_request_is_answered_without_a_panic(pdu in proptest::collection::vec(0_u8.., 0..12)) {
            let _ = sdm630().answer(&pdu, noon());
        }
    }
}
