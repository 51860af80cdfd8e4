//! A simulated meter that speaks DL/T 645-2007: frames in, frames out.
//!
//! It answers what its profile has, its address and its number; what it sends at once may be less than a block.

use std::collections::BTreeMap;

use super::{Display, Source};
use crate::{
    model::Utc,
    profile::Place,
    protocol::{
        Payload, Question,
        dlt645::{Address, Frame, Identifier, Read, frame},
    },
};

/// Control codes: a request's function, and what a reply adds to it.
const READ_DATA: u8 = 0x11;
const READ_FOLLOWING: u8 = 0x12;
const READ_ADDRESS: u8 = 0x13;
const REPLY: u8 = 0x80;
const MORE: u8 = 0xA0;
const REFUSED: u8 = 0xC0;
/// Bits of the error word.
const NO_DATA: u8 = 0x02;
const NOT_ALLOWED: u8 = 0x04;
/// Two identifiers that every meter has: its address, and its number where the profile does not say otherwise.
const OWN_ADDRESS: Identifier = Identifier([0x04, 0x00, 0x04, 0x01]);
/// What every meter sends before its frame unless it is set otherwise.
const USUAL_WAKE_UP: usize = 4;
/// Bytes of data that go into one frame behind identifier and number.
const USUAL_DATA: usize = 195;

/// An answer, and what it showed unless it was a refusal.
type Answer = (Vec<u8>, Option<(Question, Payload)>);

/// How it answers.
#[derive(Debug)]
pub struct Station {
    wake_up: usize,
    most: usize,
    /// Data that was set by hand; nothing: refused.
    raw: BTreeMap<Identifier, Option<Vec<u8>>>,
    /// What follows the frame that was sent last.
    rest: Option<(Identifier, Vec<u8>)>,
}

impl Default for Station {
    fn default() -> Station {
        Station { wake_up: USUAL_WAKE_UP, most: USUAL_DATA, raw: BTreeMap::new(), rest: None }
    }
}

impl Station {
    /// Sends so many FE before each frame.
    pub fn set_wake_up(&mut self, count: usize) {
        self.wake_up = count;
    }

    /// Sends so many bytes of data at once, at least one, and lets the rest be asked for.
    pub fn set_most(&mut self, bytes: usize) {
        self.most = bytes.clamp(1, USUAL_DATA);
    }

    /// Answers this data from now on, whatever the profile says, or refuses.
    pub fn set_data(&mut self, identifier: Identifier, data: Option<&[u8]>) {
        self.raw.insert(identifier, data.map(<[u8]>::to_vec));
    }

    pub(super) fn answer(
        &mut self,
        display: &Display,
        address: Address,
        asked: &Frame,
        now: Utc,
        wrong_address: bool,
    ) -> Option<Answer> {
        if !asked.address.matches(address) || asked.control & REPLY != 0 {
            return None;
        }
        let (control, fields, shown) = match (asked.control, asked.fields.as_slice()) {
            (READ_ADDRESS, []) => (REPLY, address.to_wire().to_vec(), None),
            (READ_DATA, &[a, b, c, d, ..]) => {
                let identifier = Identifier([d, c, b, a]);
                self.rest = None;
                match self.data(display, address, identifier, now) {
                    Some(data) => {
                        let length = u8::try_from(data.len()).ok()?;
                        // What follows is of this moment too.
                        let shown = (Read::data(identifier, length), data.clone());
                        let (more, data) = self.part(identifier, data);
                        (more, [&[a, b, c, d], &data[..]].concat(), Some(shown))
                    }
                    None => (REFUSED, vec![NO_DATA], None),
                }
            }
            (READ_FOLLOWING, &[a, b, c, d, number]) => {
                let identifier = Identifier([d, c, b, a]);
                match self.rest.take().filter(|(known, _)| *known == identifier) {
                    Some((_, rest)) => {
                        let (more, data) = self.part(identifier, rest);
                        (more, [&[a, b, c, d], &data[..], &[number]].concat(), None)
                    }
                    None => (REFUSED, vec![NO_DATA], None),
                }
            }
            _ => (REFUSED, vec![NOT_ALLOWED], None),
        };
        let mut wire = address.to_wire();
        if wrong_address && let Some(lowest) = wire.first_mut() {
            *lowest = lowest.wrapping_add(1);
        }
        let reply = frame(Address::from_wire(wire), asked.control | control, &fields);
        let shown =
            shown.map(|(read, bytes)| (Question::Dlt645(read), Payload::Data { from: address, bytes }));
        Some(([vec![0xFE; self.wake_up], reply].concat(), shown))
    }

    /// What goes into the next frame; the rest is kept.
    fn part(&mut self, identifier: Identifier, mut data: Vec<u8>) -> (u8, Vec<u8>) {
        if data.len() <= self.most {
            return (REPLY, data);
        }
        let rest = data.split_off(self.most);
        self.rest = Some((identifier, rest));
        (MORE, data)
    }

    /// The data of an identifier: of a value, or of a block of them.
    fn data(&self, display: &Display, address: Address, identifier: Identifier, now: Utc) -> Option<Vec<u8>> {
        if let Some(raw) = self.raw.get(&identifier) {
            return raw.clone();
        }
        let mut data: Vec<u8> = Vec::new();
        let mut put = |source: Source, offset: usize, length: usize| {
            data.resize(data.len().max(offset + length), 0);
            for (place, byte) in data.iter_mut().skip(offset).zip(display.encoded(source, now)) {
                *place = byte;
            }
        };
        for (source, cell) in display.sources() {
            let Place::Dlt645(item) = cell.place else { continue };
            if item.identifier == identifier {
                put(source, 0, item.length.into());
            }
            if let Some(block) = item.block.filter(|block| block.identifier == identifier) {
                put(source, block.offset.into(), cell.encoding.kind.bytes().into());
            }
        }
        match data.is_empty() {
            true if identifier == OWN_ADDRESS => Some(address.to_wire().to_vec()),
            true => None,
            false => Some(data),
        }
    }
}
