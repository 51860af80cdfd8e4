//! One simulated meter: a profile's points as bytes, and answers to reads of them.
//!
//! Knows what it shows, not frames or lines; `modbus` and `dlt645` know what it answers in either language. It remembers
//! what it showed, so that a test can ask whether every stored value was really on the display.

mod dlt645;
mod modbus;

use std::collections::{BTreeMap, VecDeque};

use super::{
    fault::{Delivery, Fault, Faults},
    values::Behaviour,
};
use crate::{
    model::{Dec, PointName, Utc},
    profile::{Cell, Kind, Point, Protocol, SharedProfile, encode},
    protocol::{Address, Payload, Question, Wire, dlt645::Frame, modbus::Table},
};

/// Answers remembered per meter: days of a test's polling in some tens of megabytes at most.
const SHOWN_KEPT: usize = 100_000;

/// One answer that a meter gave, before any fault spoiled it on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Where the meter answers.
    pub address: Address,
    /// When.
    pub at: Utc,
    /// What it was asked.
    pub question: Question,
    /// What it answered.
    pub payload: Payload,
}

/// One simulated meter.
#[derive(Debug)]
pub struct SimMeter {
    address: Address,
    wire: Option<Wire>,
    display: Display,
    language: Language,
    faults: Faults,
    shown: VecDeque<Shown>,
}

#[derive(Debug)]
enum Language {
    Modbus(modbus::Memory),
    Dlt645(dlt645::Station),
}

/// What it shows.
#[derive(Debug)]
struct Display {
    profile: SharedProfile,
    behaviours: BTreeMap<PointName, Behaviour>,
    held: BTreeMap<PointName, Dec>,
    serial: Option<Dec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Point(usize),
    Serial,
}

impl SimMeter {
    /// A meter of that type; the seed decides its registers, its rate and its faults' dice.
    pub fn new(address: impl Into<Address>, profile: SharedProfile, seed: u64) -> SimMeter {
        let mut rng = fastrand::Rng::with_seed(seed);
        let behaviours = profile
            .points
            .iter()
            .map(|point| (point.name.clone(), Behaviour::of(point, rng.u64(..))))
            .collect();
        // Fits every kind: at most four digits in two bytes.
        let serial = profile.serial.as_ref().map(|point| match point.cell.encoding.kind.bytes() {
            2 => Dec::from(rng.u64(1_000..9_000)),
            _ => Dec::from(rng.u64(10_000_000..90_000_000)),
        });
        let language = match profile.protocol {
            Protocol::Modbus(limits) => Language::Modbus(modbus::Memory::new(&profile, limits)),
            Protocol::Dlt645 => Language::Dlt645(dlt645::Station::default()),
        };
        SimMeter {
            address: address.into(),
            wire: None,
            display: Display { profile, behaviours, held: BTreeMap::new(), serial },
            language,
            faults: Faults::none(rng.u64(..)),
            shown: VecDeque::new(),
        }
    }

    /// Where it answers.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Its type.
    pub fn profile(&self) -> &SharedProfile {
        &self.display.profile
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

    /// Its own line settings; `None`: those of its line.
    pub fn wire(&self) -> Option<Wire> {
        self.wire
    }

    /// Lets it speak and listen with these line settings.
    pub fn set_wire(&mut self, wire: Wire) {
        self.wire = Some(wire);
    }

    /// Shows this value from now on; `false` when the meter has no such point.
    pub fn set(&mut self, point: &str, value: Dec) -> bool {
        let Some(point) = self.display.profile.points.iter().find(|p| p.name.as_str() == point) else {
            return false;
        };
        self.display.held.insert(point.name.clone(), value);
        true
    }

    /// Lets a value that was set move by itself again (from where it would be, not from where it was set).
    pub fn release(&mut self, point: &str) {
        self.display.held.retain(|name, _| name.as_str() != point);
    }

    /// Shows these words from now on, whatever the profile says (sentinels, nonsense). Of a Modbus meter.
    pub fn set_words(&mut self, table: Table, address: u16, words: &[u16]) {
        if let Language::Modbus(memory) = &mut self.language {
            memory.set(table, address, words);
        }
    }

    /// Forgets the words that were set.
    pub fn release_words(&mut self) {
        if let Language::Modbus(memory) = &mut self.language {
            memory.release();
        }
    }

    /// Its serial number, where the profile has a place for it.
    pub fn set_serial(&mut self, serial: Dec) {
        self.display.serial = Some(serial);
    }

    /// The widest run of unmapped words that may be read over; the profile's unless changed.
    pub fn set_max_hole(&mut self, words: u16) {
        if let Language::Modbus(memory) = &mut self.language {
            memory.set_max_hole(words);
        }
    }

    /// How a DL/T 645 meter differs from others of its kind.
    pub fn station(&mut self) -> Option<&mut dlt645::Station> {
        match &mut self.language {
            Language::Dlt645(station) => Some(station),
            Language::Modbus(_) => None,
        }
    }

    /// What the display shows at a point.
    pub fn value(&self, point: &str, now: Utc) -> Option<Dec> {
        let point = self.display.profile.points.iter().find(|p| p.name.as_str() == point)?;
        self.display.value_of(point, now)
    }

    /// The last answers, oldest first.
    pub fn shown(&self) -> impl Iterator<Item = &Shown> {
        self.shown.iter()
    }

    /// What it answers to a Modbus PDU and how that is delivered; `None` when it stays silent.
    pub fn exchange(&mut self, pdu: &[u8], now: Utc) -> Option<(Vec<u8>, Delivery)> {
        let delivery = self.faults.deliver(now)?;
        Some((self.answer(pdu, now)?, delivery))
    }

    /// What it answers to a Modbus PDU; `None` for an empty one, and when it speaks another language.
    pub fn answer(&mut self, pdu: &[u8], now: Utc) -> Option<Vec<u8>> {
        let Language::Modbus(memory) = &self.language else { return None };
        let (answer, shown) = memory.answer(&self.display, pdu, now)?;
        self.remember(shown, now);
        Some(answer)
    }

    /// What it answers to a DL/T 645 frame (with the FE before it) and how that is delivered; `None` when it stays
    /// silent.
    pub fn exchange_frame(&mut self, frame: &Frame, now: Utc) -> Option<(Vec<u8>, Delivery)> {
        let delivery = self.faults.deliver(now)?;
        let (Language::Dlt645(station), Address::Dlt645(address)) = (&mut self.language, self.address) else {
            return None;
        };
        let (answer, shown) = station.answer(&self.display, address, frame, now, delivery.wrong_unit)?;
        self.remember(shown, now);
        Some((answer, delivery))
    }

    fn remember(&mut self, shown: Option<(Question, Payload)>, at: Utc) {
        let Some((question, payload)) = shown else { return };
        if self.shown.len() >= SHOWN_KEPT {
            self.shown.pop_front();
        }
        self.shown.push_back(Shown { address: self.address, at, question, payload });
    }
}

impl Display {
    fn cell(&self, source: Source) -> Option<&Cell> {
        match source {
            Source::Point(index) => self.profile.points.get(index).map(|point| &point.cell),
            Source::Serial => self.profile.serial.as_ref().map(|point| &point.cell),
        }
    }

    /// Every place of the profile.
    fn sources(&self) -> impl Iterator<Item = (Source, &Cell)> {
        let points = (0..self.profile.points.len()).map(Source::Point);
        points.chain([Source::Serial]).filter_map(|source| Some((source, self.cell(source)?)))
    }

    /// The bytes of a cell, in the order of the wire; none when its value does not fit it.
    fn encoded(&self, source: Source, now: Utc) -> Vec<u8> {
        let value = match source {
            Source::Point(index) => {
                self.profile.points.get(index).and_then(|point| self.value_of(point, now))
            }
            Source::Serial => self.serial,
        };
        self.cell(source).zip(value).and_then(|(cell, value)| encode(cell, value)).unwrap_or_default()
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
    use crate::profile::{Catalogue, bytes_of, decode, plan};
    use crate::protocol::{
        Found, Pace, Reply, Transaction,
        dlt645::{Address as Digits, ReadTransaction, first_frame},
        modbus::Read,
    };

    use chrono::TimeDelta;

    const ANYBODY: Digits = Digits::ANYBODY;

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

    /// What a meter answers to a question.
    fn reply(meter: &mut SimMeter, question: &Question, now: Utc) -> Payload {
        match question {
            Question::Modbus(read) => {
                let answer = meter.answer(&pdu(*read), now).unwrap();
                assert!(answer[0] < 0x80, "{read:?} was refused: {answer:?}");
                Payload::Words(words(&answer))
            }
            Question::Dlt645(read) => {
                let mut asked: Box<dyn Transaction> = Box::new(ReadTransaction::new(ANYBODY, *read));
                loop {
                    let (frame, _) = first_frame(asked.request()).unwrap();
                    let (reply, _) = meter.exchange_frame(&frame, now).unwrap();
                    assert!(matches!(asked.find(&reply), Found::Frame(_)), "{read:?}: {reply:02X?}");
                    match asked.follow_up(&reply) {
                        Some(next) => asked = next,
                        None => match asked.decode(&reply) {
                            Reply::Data(payload) => return payload,
                            other => panic!("{read:?}: {other:?}"),
                        },
                    }
                }
            }
        }
    }

    /// Reads a whole meter as the gateway plans it: by point name, as text.
    fn display(meter: &mut SimMeter, now: Utc) -> BTreeMap<String, Dec> {
        let profile = meter.profile().clone();
        let all: Vec<usize> = (0..profile.points.len()).collect();
        let mut seen = BTreeMap::new();
        for planned in plan(&profile, &all, &Pace::Network) {
            let payload = reply(meter, &planned.question, now);
            for index in planned.points {
                let point = &profile.points[index];
                let decoded = decode(&point.cell, &bytes_of(&point.cell, &planned.question, &payload));
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
            let address = match profile.protocol {
                Protocol::Modbus(_) => Address::Modbus(1),
                Protocol::Dlt645 => Address::Dlt645("202107300049".parse().unwrap()),
            };
            let mut meter = SimMeter::new(address, profile.clone(), 7);
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
        let (question, payload) = (Question::Modbus(read), Payload::Words(words(&answer)));
        assert_eq!(shown, [Shown { address: Address::Modbus(1), at: noon(), question, payload }]);
    }

    proptest::proptest! {
        #[test]
        fn any_request_is_answered_without_a_panic(pdu in proptest::collection::vec(0_u8.., 0..12)) {
            let _ = sdm630().answer(&pdu, noon());
        }
    }
}
