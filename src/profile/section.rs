//! One table of a profile's file, read key by key: what is wrong is noted with its place, and reading goes on.
//!
//! Knows keys, ranges and formats of single values; what the tables mean together is `load`'s affair.

use std::{collections::BTreeMap, fmt};

use serde::de::DeserializeOwned;
use toml::{Table as Toml, Value};

use super::{
    Block, ByteOrder, Cell, Encoding, Item, Kind, Place, ProfileFault, Protocol, Register, decode::exponent,
};
use crate::{
    model::{Dec, PointName, Unit},
    protocol::{
        Parity, Wire,
        dlt645::{Identifier, MAX_DATA},
        modbus::Table,
    },
};

/// Most digits of a display: 18 keep the capacity and its differences exact, and no meter has more.
const MAX_DIGITS: i64 = 18;
/// Most letters that two keys may differ in for one to be suggested for the other.
const TYPO_LETTERS: usize = 2;
const ROLLS_OVER_AT: &str = "rolls_over_at";
const TABLES: &str = "input (function 04) or holding (function 03)";
const KINDS: &str = "u16, i16, u32, i32, u64, i64, f32, f64, bcd16, bcd32, bcd64, bits16 or bits32";
const DLT645_KINDS: &str = "bcd16, bcd24, bcd32, bcd48 or bits16";
/// Bits per second: what UARTs and meters in use can do.
const BAUD: std::ops::RangeInclusive<i64> = 300..=921_600;

pub(super) struct Faults<'a> {
    pub(super) file: &'a str,
    pub(super) list: Vec<ProfileFault>,
}

impl Faults<'_> {
    pub(super) fn add(&mut self, place: &str, message: &str, hint: Option<&str>) {
        self.list.push(ProfileFault {
            file: self.file.to_owned(),
            place: place.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        });
    }
}

/// One table of the file, read key by key; what is wrong is noted and reading goes on.
pub(super) struct Section<'a, 'f> {
    toml: &'a Toml,
    prefix: String,
    faults: &'a mut Faults<'f>,
}

impl<'a, 'f> Section<'a, 'f> {
    pub(super) fn new(toml: &'a Toml, prefix: String, known: &[&str], faults: &'a mut Faults<'f>) -> Self {
        for key in toml.keys().filter(|key| !known.contains(&key.as_str())) {
            let near = known.iter().map(|known| (distance(key, known), *known)).min();
            let hint = match near {
                Some((letters, known)) if letters <= TYPO_LETTERS => format!("did you mean {known}?"),
                _ => format!("known keys: {}", known.join(", ")),
            };
            faults.add(&format!("{prefix}{key}"), "unknown key", Some(&hint));
        }
        Section { toml, prefix, faults }
    }

    pub(super) fn fault(&mut self, key: &str, message: &str, hint: Option<&str>) {
        self.faults.add(&format!("{}{key}", self.prefix), message, hint);
    }

    fn missing(&mut self, key: &str, expected: &str) {
        self.fault(key, &format!("missing: expected {expected}"), None);
    }

    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.toml.get(key) {
            Some(Value::String(text)) if !text.trim().is_empty() => Some(text.clone()),
            Some(Value::String(_)) => {
                self.fault(key, "is empty", None);
                None
            }
            Some(other) => {
                self.fault(key, &format!("expected a text, not {}", other.type_str()), None);
                None
            }
            None => {
                self.missing(key, "a text");
                None
            }
        }
    }

    pub(super) fn parsed<T: std::str::FromStr<Err: fmt::Display>>(
        &mut self,
        key: &str,
        text: &str,
    ) -> Option<T> {
        text.parse().map_err(|error: T::Err| self.fault(key, &error.to_string(), None)).ok()
    }

    pub(super) fn one_of<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Option<T> {
        let Some(value) = self.toml.get(key) else {
            self.missing(key, expected);
            return None;
        };
        let found = value.clone().try_into().ok();
        if found.is_none() {
            self.fault(key, &format!("{value} is not known: expected {expected}"), None);
        }
        found
    }

    pub(super) fn whole(&mut self, key: &str, least: i64, most: i64, default: Option<i64>) -> Option<i64> {
        let expected = format!("a whole number from {least} to {most}");
        match self.toml.get(key) {
            Some(Value::Integer(n)) if (least..=most).contains(n) => Some(*n),
            Some(other) => {
                self.fault(key, &format!("{other} is out of place: expected {expected}"), None);
                None
            }
            None if default.is_some() => default,
            None => {
                self.missing(key, &expected);
                None
            }
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Option<bool> {
        match self.toml.get(key) {
            None => Some(false),
            Some(Value::Boolean(flag)) => Some(*flag),
            Some(other) => {
                self.fault(key, &format!("expected true or false, not {}", other.type_str()), None);
                None
            }
        }
    }

    /// A decimal above zero; it is text in the file, so that no float comes between.
    fn decimal(&mut self, key: &str, default: Option<Dec>) -> Option<Dec> {
        let value = match self.toml.get(key) {
            None if default.is_some() => return default,
            None => {
                self.missing(key, "a decimal in quotes, such as \"0.01\"");
                return None;
            }
            Some(Value::String(text)) => self.parsed::<Dec>(key, text)?,
            Some(other) => {
                let hint = format!("write {key} = \"{other}\"");
                let message = format!("expected a decimal in quotes, not {}", other.type_str());
                self.fault(key, &message, Some(&hint));
                return None;
            }
        };
        if value.is_zero() || value.is_negative() {
            self.fault(key, &format!("{value} must be above 0"), None);
            return None;
        }
        Some(value)
    }

    pub(super) fn check_id(&mut self, id: &str) {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !id.chars().all(plain) || id.starts_with('-') {
            self.fault("id", &format!("{id:?} is not a profile id: expected a-z 0-9 -, no - in front"), None);
        }
        let name = self.faults.file.rsplit(['/', '\\']).next().unwrap_or_default();
        if let Some(stem) = name.strip_suffix(".toml")
            && stem != id
        {
            let hint = format!("name the file {id}.toml");
            self.fault("id", &format!("{id:?} is not the name of its file, {name}"), Some(&hint));
        }
    }

    pub(super) fn check_unit(&mut self, name: &PointName, unit: Unit) {
        if let Some(expected) = contract_unit(name.as_str())
            && expected != unit
        {
            let hint = "let scale bring the value to that unit, or choose another name";
            self.fault("unit", &format!("{name} is given in {expected}, not in {unit}"), Some(hint));
        }
    }

    /// `protocol`: `None` where it is faulty itself.
    pub(super) fn cell(&mut self, protocol: Option<Protocol>) -> Option<Cell> {
        let scale = self.decimal("scale", Some(Dec::ONE));
        // Everything below depends on the kind.
        let (place, kind) = match protocol? {
            Protocol::Modbus(limits) => {
                let kind = self.kind(KINDS, |kind| !matches!(kind, Kind::Bcd24 | Kind::Bcd48));
                (self.words(kind, limits.max_words, limits.even_words), kind?)
            }
            Protocol::Dlt645 => {
                let known = |kind: Kind| kind == Kind::Bits16 || kind.is_bcd() && kind != Kind::Bcd64;
                let kind = self.kind(DLT645_KINDS, known);
                (self.item(kind).map(Place::Dlt645), kind?)
            }
        };
        if let Some(scale) = scale {
            if is_float(kind) && exponent(scale).is_none() {
                let hint = "a float keeps its digits only when the point is moved";
                self.fault(
                    "scale",
                    &format!("{scale} is not a power of ten, and the cell is a float"),
                    Some(hint),
                );
            }
            if is_bits(kind) && scale != Dec::ONE {
                self.fault("scale", "a status word is not scaled", None);
            }
        }
        let mut sentinels = self.sentinels(kind.bytes());
        let (order, signed) = match protocol? {
            Protocol::Modbus(_) => (self.order(kind.bytes()), false),
            Protocol::Dlt645 => {
                // What the meter does not have it fills.
                if let Some(sentinels) = sentinels.as_mut().filter(|_| kind.is_bcd()) {
                    sentinels.push(vec![0xFF; usize::from(kind.bytes())]);
                }
                let signed = self.flag("signed")?;
                if signed && !kind.is_bcd() {
                    self.fault("signed", "only a BCD number has a sign", None);
                }
                (Some(ByteOrder::low_first(kind.bytes())), signed)
            }
        };
        let bits = self.bits(kind);
        Some(Cell {
            place: place?,
            encoding: Encoding { kind, order: order?, signed, bits: bits? },
            scale: scale?,
            sentinels: sentinels?,
        })
    }

    fn kind(&mut self, expected: &str, known: impl Fn(Kind) -> bool) -> Option<Kind> {
        let kind = self.one_of::<Kind>("kind", expected)?;
        if !known(kind) {
            let name = self.toml.get("kind").map(ToString::to_string).unwrap_or_default();
            self.fault("kind", &format!("{name} is not known: expected {expected}"), None);
            return None;
        }
        Some(kind)
    }

    /// A place in a Modbus table.
    fn words(&mut self, kind: Option<Kind>, limit: u16, even: bool) -> Option<Place> {
        let table = self.one_of::<Table>("table", TABLES);
        let address = self.whole("address", 0, 0xFFFF, None).and_then(|n| u16::try_from(n).ok());
        let words = kind?.words();
        if let Some(address) = address
            && u32::from(address) + u32::from(words) > 0x1_0000
        {
            self.fault(
                "address",
                &format!("{words} words from {address:#06X} pass the end of the table, 0xFFFF"),
                None,
            );
        }
        let asked = if even { words.next_multiple_of(2) } else { words };
        // A limit that is faulty itself is 0.
        if limit > 0 && limit < asked {
            self.fault("kind", &format!("needs a request of {asked} words, but max_words is {limit}"), None);
        }
        Some(Place::Modbus { table: table?, address: address? })
    }

    /// A place in the data of DL/T 645.
    fn item(&mut self, kind: Option<Kind>) -> Option<Item> {
        // The identifier takes four bytes of the reply's data.
        let most = i64::try_from(MAX_DATA - 4).ok()?;
        let identifier = self.text("di").and_then(|text| self.parsed::<Identifier>("di", &text));
        let bytes = kind.map(|kind| i64::from(kind.bytes()));
        let length = self.whole("length", bytes.unwrap_or(1), most, bytes);
        let block = match (self.toml.contains_key("block"), self.toml.contains_key("offset")) {
            (false, false) => Some(None),
            (false, true) => {
                self.fault(
                    "offset",
                    "belongs to a block, and the point has none",
                    Some("write block = \"…\""),
                );
                None
            }
            (true, _) => {
                let block = self.text("block").and_then(|text| self.parsed::<Identifier>("block", &text));
                let offset = self.whole("offset", 0, most - bytes.unwrap_or(1), None);
                block.zip(offset.and_then(|offset| u8::try_from(offset).ok())).map(Some)
            }
        };
        let (identifier, block) = (identifier?, block?);
        if block.is_some_and(|(block, _)| block == identifier) {
            self.fault("block", &format!("{identifier} is the identifier of the value alone"), None);
        }
        let block = block.map(|(identifier, offset)| Block { identifier, offset });
        Some(Item { identifier, length: u8::try_from(length?).ok()?, block })
    }

    /// The settings of a line.
    pub(super) fn wire(&mut self) -> Option<Wire> {
        let baud = self.whole("baud", *BAUD.start(), *BAUD.end(), None);
        let parity = self.one_of::<Parity>("parity", "none, even or odd");
        let stop_bits = self.whole("stop_bits", 1, 2, Some(1));
        Some(Wire {
            baud: u32::try_from(baud?).ok()?,
            parity: parity?,
            stop_bits: u8::try_from(stop_bits?).ok()?,
        })
    }

    fn order(&mut self, bytes: u8) -> Option<ByteOrder> {
        let text = if bytes == 2 && !self.toml.contains_key("order") {
            "AB".to_owned()
        } else {
            self.text("order")?
        };
        let order: ByteOrder = self.parsed("order", &text)?;
        let bytes = usize::from(bytes);
        if order.bytes() != bytes {
            self.fault(
                "order",
                &format!("{text} orders {} bytes, the cell has {bytes}", order.bytes()),
                None,
            );
            return None;
        }
        Some(order)
    }

    fn sentinels(&mut self, bytes: u8) -> Option<Vec<Vec<u8>>> {
        let Some(value) = self.toml.get("sentinels") else { return Some(Vec::new()) };
        let Value::Array(list) = value else {
            self.fault("sentinels", "expected a list of texts such as [\"0xFFFFFFFF\"]", None);
            return None;
        };
        let bytes = usize::from(bytes);
        let mut sentinels = Vec::new();
        for (item, number) in list.iter().zip(1..) {
            match item.as_str().and_then(from_hex) {
                Some(sentinel) if sentinel.len() == bytes => sentinels.push(sentinel),
                _ => {
                    let message = format!(
                        "{item} is not 0x and {} hexadecimal digits, the cell's {bytes} bytes in wire order",
                        bytes * 2
                    );
                    self.fault(&format!("sentinels[{number}]"), &message, None);
                }
            }
        }
        Some(sentinels)
    }

    fn bits(&mut self, kind: Kind) -> Option<Vec<(u8, String)>> {
        let Some(value) = self.toml.get("bits") else { return Some(Vec::new()) };
        let Value::Table(table) = value else {
            self.fault("bits", "expected a table such as { \"0\" = \"empty_pipe\" }", None);
            return None;
        };
        if !is_bits(kind) {
            self.fault("bits", "only bits16 and bits32 have named bits", None);
            return None;
        }
        let last = kind.bytes() * 8 - 1;
        let mut bits = BTreeMap::new();
        let mut names: Vec<String> = Vec::new();
        for (key, name) in table {
            let place = format!("bits.{key}");
            let Some(bit) = key.parse::<u8>().ok().filter(|bit| *bit <= last) else {
                self.fault(
                    &place,
                    &format!("{key} is not a bit: expected 0 (least significant) to {last}"),
                    None,
                );
                continue;
            };
            match name.as_str().map(str::parse::<PointName>) {
                Some(Ok(name)) if !names.contains(&name.to_string()) => {
                    names.push(name.to_string());
                    if bits.insert(bit, name.to_string()).is_some() {
                        self.fault(&place, &format!("bit {bit} is named twice"), None);
                    }
                }
                Some(Ok(name)) => self.fault(&place, &format!("{name} already names another bit"), None),
                _ => {
                    self.fault(&place, &format!("{name} is not a name: expected 1 to 48 of a-z 0-9 _"), None);
                }
            }
        }
        Some(bits.into_iter().collect())
    }

    /// `cell`: `None` where it is faulty itself.
    pub(super) fn register(&mut self, name: &PointName, cell: Option<&Cell>) -> Option<Register> {
        let digits = self.whole("digits", 1, MAX_DIGITS, None);
        let decimals = self.whole("decimals", 0, MAX_DIGITS - 1, None);
        let max_per_hour = self.decimal("max_per_hour", None);
        let (digits, decimals) = (digits?, decimals?);
        if decimals >= digits {
            self.fault(
                "decimals",
                &format!("{decimals} of {digits} digits leave none before the point of {name}"),
                None,
            );
            return None;
        }
        let display = i32::try_from(digits - decimals).ok().and_then(Dec::power_of_ten)?;
        let last_digit = i32::try_from(decimals).ok().and_then(|n| Dec::power_of_ten(-n))?;
        let (max_per_hour, cell) = (max_per_hour?, cell?);
        // The sign takes the highest bit of the highest digit, and leaves it 0 to 7.
        let limit = |n: i128| if cell.encoding.signed { n / 10 * 8 } else { n };
        let held =
            cell.encoding.kind.limit().map(limit).and_then(|n| Dec::from_parts(n, 0)?.times(cell.scale));
        let most = held.map_or(display, |held| held.min(display)).normalized();
        let capacity =
            if self.toml.contains_key(ROLLS_OVER_AT) { self.rolls_over_at(most, cell.scale)? } else { most };
        if max_per_hour >= capacity {
            let message = format!("{max_per_hour} in an hour would pass the whole register, {capacity}");
            self.fault("max_per_hour", &message, Some("check digits, decimals and the rating"));
        }
        let step = if is_float(cell.encoding.kind) { last_digit } else { cell.scale };
        Some(Register { capacity, step, max_per_hour })
    }

    /// The value at which the register begins again: in its unit, or as `2^n` of its own steps.
    fn rolls_over_at(&mut self, most: Dec, scale: Dec) -> Option<Dec> {
        let power =
            self.toml.get(ROLLS_OVER_AT).and_then(Value::as_str).and_then(|text| text.strip_prefix("2^"));
        let value = match power.map(|n| n.parse::<u32>().ok().filter(|n| (1..=64).contains(n))) {
            Some(Some(n)) => Dec::from_parts(1 << n, 0)?.times(scale)?.normalized(),
            Some(None) => {
                self.fault(ROLLS_OVER_AT, "expected 2^1 to 2^64 steps of the register", None);
                return None;
            }
            None => self.decimal(ROLLS_OVER_AT, None)?.normalized(),
        };
        if value > most {
            let message = format!("{value} is beyond {most}, what digits, decimals, kind and scale can show");
            self.fault(ROLLS_OVER_AT, &message, Some("it is the first value that is not shown any more"));
            return None;
        }
        Some(value)
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x")?;
    if digits.len() % 2 != 0 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

/// Letters to change, add or drop to turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, from) in a.chars().enumerate() {
        let mut next = vec![line + 1];
        for (to, (above_left, above)) in b.iter().zip(row.iter().zip(row.iter().skip(1))) {
            let left = next.last().copied().unwrap_or_default();
            next.push((above_left + usize::from(from != *to)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

/// The unit that a name of the contract (or one of its family) carries.
fn contract_unit(name: &str) -> Option<Unit> {
    let families = [
        ("energy_reactive_", Unit::KilovarHour),
        ("energy_", Unit::KilowattHour),
        ("heat_energy_", Unit::KilowattHour),
        ("cold_energy_", Unit::KilowattHour),
        ("power_factor_", Unit::One),
        ("power_active_", Unit::Watt),
        ("demand_max", Unit::Watt),
        ("heat_power", Unit::Watt),
        ("voltage_", Unit::Volt),
        ("battery_voltage", Unit::Volt),
        ("current_", Unit::Ampere),
        ("frequency", Unit::Hertz),
        ("volume_flow", Unit::CubicMetrePerHour),
        ("volume_", Unit::CubicMetre),
        ("temperature_", Unit::Celsius),
        ("meter_status", Unit::One),
    ];
    families.iter().find(|(family, _)| name.starts_with(family)).map(|(_, unit)| *unit)
}

pub(super) fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::F32 | Kind::F64)
}

pub(super) fn is_bits(kind: Kind) -> bool {
    matches!(kind, Kind::Bits16 | Kind::Bits32)
}
