//! TOML text into a [`Profile`], with every mistake at once. The format is documented in `docs/profiles.md`.
//!
//! Knows what a profile may say; knows nothing of files (the caller reads them) nor of other profiles.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::de::DeserializeOwned;
use toml::{Table as Toml, Value};

use super::{
    ByteOrder, Cell, Encoding, Kind, Point, Profile, Protocol, Register, SerialPoint, decode::exponent,
};
use crate::{
    model::{Dec, Medium, PointName, Unit},
    protocol::modbus::{MAX_WORDS, Table},
};

/// Longest time a meter may be given to think, in ms: beyond it a bus would stand still for one meter.
const MAX_TURNAROUND_MS: i64 = 10_000;
/// Most digits of a display: 18 keep the capacity and its differences exact, and no meter has more.
const MAX_DIGITS: i64 = 18;
/// Most letters that two keys may differ in for one to be suggested for the other.
const TYPO_LETTERS: usize = 2;

const TOP_KEYS: &[&str] = &[
    "id",
    "manufacturer",
    "model",
    "medium",
    "protocol",
    "source",
    "verification",
    "max_words",
    "max_hole",
    "even_words",
    "turnaround_ms",
    "point",
    "serial",
];
const POINT_KEYS: &[&str] = &[
    "name",
    "table",
    "address",
    "kind",
    "order",
    "scale",
    "unit",
    "digits",
    "decimals",
    "max_per_hour",
    "sentinels",
    "bits",
    "source",
];
const SERIAL_KEYS: &[&str] = &["table", "address", "kind", "order", "sentinels", "source"];
const MEDIA: &str = "electricity, water, heat or gas";
const TABLES: &str = "input (function 04) or holding (function 03)";
const KINDS: &str = "u16, i16, u32, i32, u64, i64, f32, f64, bcd16, bcd32, bcd64, bits16 or bits32";
const UNITS: &str = "kWh, kvarh, W, V, A, Hz, m3, m3/h, Cel or 1";

/// One mistake in a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileFault {
    /// The file, as the caller names it.
    pub file: String,
    /// Key path such as `point[3].scale` (points count from 1, as a reader does), or a line.
    pub place: String,
    /// What was seen and what was expected.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for ProfileFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.file, self.place, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " (hint: {hint})"),
            None => Ok(()),
        }
    }
}

/// Reads a profile. `file` names it in faults; where it ends in `.toml` its stem must be the profile's id.
pub fn load(text: &str, file: &str) -> Result<Profile, Vec<ProfileFault>> {
    let mut faults = Faults { file, list: Vec::new() };
    let toml = match text.parse::<Toml>() {
        Ok(toml) => toml,
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let place = format!("line {}", before.matches('\n').count() + 1);
            faults.add(&place, error.message(), None);
            return Err(faults.list);
        }
    };
    match profile(&toml, &mut faults) {
        Some(profile) if faults.list.is_empty() => Ok(profile),
        _ => Err(faults.list),
    }
}

fn profile(toml: &Toml, faults: &mut Faults) -> Option<Profile> {
    let mut top = Section::new(toml, String::new(), TOP_KEYS, faults);
    let id = top.text("id");
    if let Some(id) = &id {
        top.check_id(id);
    }
    let manufacturer = top.text("manufacturer");
    let model = top.text("model");
    let medium = top.one_of::<Medium>("medium", MEDIA);
    let protocol = top.one_of::<Protocol>("protocol", "modbus");
    let source = top.text("source");
    let verification = top.text("verification");
    let max_words = top.whole("max_words", 1, i64::from(MAX_WORDS), None);
    let max_hole = top.whole("max_hole", 0, i64::from(MAX_WORDS) - 1, Some(0));
    let turnaround = top.whole("turnaround_ms", 0, MAX_TURNAROUND_MS, None);
    let even_words = top.flag("even_words");
    let limit = max_words.and_then(|n| u16::try_from(n).ok());
    let points = points(toml, limit, even_words.unwrap_or(false), faults);
    let serial = match toml.get("serial") {
        None => Some(None),
        Some(Value::Table(table)) => serial(table, limit, faults).map(Some),
        Some(other) => {
            faults.add("serial", &format!("expected a table [serial], not {}", other.type_str()), None);
            None
        }
    };
    Some(Profile {
        id: id?,
        manufacturer: manufacturer?,
        model: model?,
        medium: medium?,
        protocol: protocol?,
        source: source?,
        verification: verification?,
        max_words: limit?,
        max_hole: u16::try_from(max_hole?).ok()?,
        even_words: even_words?,
        turnaround: Duration::from_millis(u64::try_from(turnaround?).ok()?),
        points: points?,
        serial: serial?,
    })
}

fn points(toml: &Toml, limit: Option<u16>, even: bool, faults: &mut Faults) -> Option<Vec<Point>> {
    let Some(Value::Array(rows)) = toml.get("point") else {
        faults.add("point", "a profile needs at least one point", Some("write [[point]] tables"));
        return None;
    };
    if rows.is_empty() {
        faults.add("point", "a profile needs at least one point", Some("write [[point]] tables"));
    }
    let mut points: Vec<(usize, Point)> = Vec::new();
    for (row, number) in rows.iter().zip(1..) {
        let place = format!("point[{number}]");
        match row {
            Value::Table(table) => {
                points.extend(point(table, &place, limit, even, faults).map(|p| (number, p)));
            }
            other => faults.add(&place, &format!("expected a table, not {}", other.type_str()), None),
        }
    }
    for (at, (number, point)) in points.iter().enumerate() {
        for (earlier, other) in points.iter().take(at) {
            if point.name == other.name {
                let message = format!("{} is already point[{earlier}]", point.name);
                faults.add(&format!("point[{number}].name"), &message, None);
            }
            if overlap(&point.cell, &other.cell) {
                let message = format!(
                    "{} and {} (point[{earlier}]) share words of one table: {} words from {:#06X}, {} from {:#06X}",
                    point.name,
                    other.name,
                    point.cell.encoding.kind.words(),
                    point.cell.address,
                    other.cell.encoding.kind.words(),
                    other.cell.address,
                );
                faults.add(
                    &format!("point[{number}].address"),
                    &message,
                    Some("one of the two rows is mistyped"),
                );
            }
        }
    }
    Some(points.into_iter().map(|(_, point)| point).collect())
}

fn point(toml: &Toml, place: &str, limit: Option<u16>, even: bool, faults: &mut Faults) -> Option<Point> {
    let mut row = Section::new(toml, format!("{place}."), POINT_KEYS, faults);
    let name = row.text("name").and_then(|text| row.parsed::<PointName>("name", &text));
    let unit = row.one_of::<Unit>("unit", UNITS);
    let source = row.text("source");
    let cell = row.cell(limit, even);
    if let (Some(name), Some(unit)) = (&name, unit) {
        row.check_unit(name, unit);
    }
    if let (Some(cell), Some(unit)) = (&cell, unit)
        && is_bits(cell.encoding.kind)
        && unit != Unit::One
    {
        row.fault("unit", &format!("a status word has the unit 1, not {unit}"), None);
    }
    let register = match (&name, unit) {
        (Some(name), Some(unit)) if is_cumulative(name.as_str(), unit) => row.register(name).map(Some),
        (Some(name), Some(_)) => {
            for key in ["digits", "decimals", "max_per_hour"] {
                if toml.contains_key(key) {
                    row.fault(key, &format!("{name} is not a cumulative register, so it has no {key}"), None);
                }
            }
            Some(None)
        }
        _ => None,
    };
    Some(Point { name: name?, unit: unit?, cell: cell?, register: register?, source: source? })
}

fn serial(toml: &Toml, limit: Option<u16>, faults: &mut Faults) -> Option<SerialPoint> {
    let mut row = Section::new(toml, "serial.".to_owned(), SERIAL_KEYS, faults);
    let source = row.text("source");
    let cell = row.cell(limit, false);
    if let Some(kind) = cell.as_ref().map(|cell| cell.encoding.kind)
        && (is_float(kind) || is_bits(kind))
    {
        row.fault("kind", "a serial number is an integer or BCD: a float loses its digits", None);
    }
    Some(SerialPoint { cell: cell?, source: source? })
}

/// Counts for ever upwards: an amount whose name says total, or a rate of the imported energy.
fn is_cumulative(name: &str, unit: Unit) -> bool {
    let amount = matches!(unit, Unit::KilowattHour | Unit::KilovarHour | Unit::CubicMetre);
    let rate =
        matches!(name, "energy_import_t1" | "energy_import_t2" | "energy_import_t3" | "energy_import_t4");
    amount && (name.ends_with("_total") || rate)
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

fn is_float(kind: Kind) -> bool {
    matches!(kind, Kind::F32 | Kind::F64)
}

fn is_bits(kind: Kind) -> bool {
    matches!(kind, Kind::Bits16 | Kind::Bits32)
}

fn overlap(a: &Cell, b: &Cell) -> bool {
    let end = |cell: &Cell| u32::from(cell.address) + u32::from(cell.encoding.kind.words());
    a.table == b.table && u32::from(a.address) < end(b) && u32::from(b.address) < end(a)
}

struct Faults<'a> {
    file: &'a str,
    list: Vec<ProfileFault>,
}

impl Faults<'_> {
    fn add(&mut self, place: &str, message: &str, hint: Option<&str>) {
        self.list.push(ProfileFault {
            file: self.file.to_owned(),
            place: place.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        });
    }
}

/// One table of the file, read key by key; what is wrong is noted and reading goes on.
struct Section<'a, 'f> {
    toml: &'a Toml,
    prefix: String,
    faults: &'a mut Faults<'f>,
}

impl<'a, 'f> Section<'a, 'f> {
    fn new(toml: &'a Toml, prefix: String, known: &[&str], faults: &'a mut Faults<'f>) -> Self {
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

    fn fault(&mut self, key: &str, message: &str, hint: Option<&str>) {
        self.faults.add(&format!("{}{key}", self.prefix), message, hint);
    }

    fn missing(&mut self, key: &str, expected: &str) {
        self.fault(key, &format!("missing: expected {expected}"), None);
    }

    fn text(&mut self, key: &str) -> Option<String> {
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

    fn parsed<T: std::str::FromStr<Err: fmt::Display>>(&mut self, key: &str, text: &str) -> Option<T> {
        text.parse().map_err(|error: T::Err| self.fault(key, &error.to_string(), None)).ok()
    }

    fn one_of<T: DeserializeOwned>(&mut self, key: &str, expected: &str) -> Option<T> {
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

    fn whole(&mut self, key: &str, least: i64, most: i64, default: Option<i64>) -> Option<i64> {
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

    fn flag(&mut self, key: &str) -> Option<bool> {
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

    fn check_id(&mut self, id: &str) {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !id.chars().all(plain) {
            self.fault("id", &format!("{id:?} is not a profile id: expected a-z 0-9 -"), None);
        }
        let name = self.faults.file.rsplit(['/', '\\']).next().unwrap_or_default();
        if let Some(stem) = name.strip_suffix(".toml")
            && stem != id
        {
            let hint = format!("name the file {id}.toml");
            self.fault("id", &format!("{id:?} is not the name of its file, {name}"), Some(&hint));
        }
    }

    fn check_unit(&mut self, name: &PointName, unit: Unit) {
        if let Some(expected) = contract_unit(name.as_str())
            && expected != unit
        {
            let hint = "let scale bring the value to that unit, or choose another name";
            self.fault("unit", &format!("{name} is given in {expected}, not in {unit}"), Some(hint));
        }
    }

    fn cell(&mut self, limit: Option<u16>, even: bool) -> Option<Cell> {
        let table = self.one_of::<Table>("table", TABLES);
        let address = self.whole("address", 0, 0xFFFF, None).and_then(|n| u16::try_from(n).ok());
        let kind = self.one_of::<Kind>("kind", KINDS);
        let scale = self.decimal("scale", Some(Dec::ONE));
        // Everything below depends on the kind.
        let kind = kind?;
        let words = kind.words();
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
        if let Some(limit) = limit.filter(|limit| *limit < asked) {
            self.fault("kind", &format!("needs a request of {asked} words, but max_words is {limit}"), None);
        }
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
        let order = self.order(words);
        let sentinels = self.sentinels(words);
        let bits = self.bits(kind);
        Some(Cell {
            table: table?,
            address: address?,
            encoding: Encoding { kind, order: order?, bits: bits? },
            scale: scale?,
            sentinels: sentinels?,
        })
    }

    fn order(&mut self, words: u16) -> Option<ByteOrder> {
        let text = if words == 1 && !self.toml.contains_key("order") {
            "AB".to_owned()
        } else {
            self.text("order")?
        };
        let order: ByteOrder = self.parsed("order", &text)?;
        let bytes = usize::from(words) * 2;
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

    fn sentinels(&mut self, words: u16) -> Option<Vec<Vec<u8>>> {
        let Some(value) = self.toml.get("sentinels") else { return Some(Vec::new()) };
        let Value::Array(list) = value else {
            self.fault("sentinels", "expected a list of texts such as [\"0xFFFFFFFF\"]", None);
            return None;
        };
        let bytes = usize::from(words) * 2;
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
        let last = kind.words() * 16 - 1;
        let mut bits = BTreeMap::new();
        let mut names: Vec<String> = Vec::new();
        for (key, name) in table {
            let place = format!("bits.{key}");
            let Some(bit) = key.parse::<u8>().ok().filter(|bit| u16::from(*bit) <= last) else {
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

    fn register(&mut self, name: &PointName) -> Option<Register> {
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
        let capacity = i32::try_from(digits - decimals).ok().and_then(Dec::power_of_ten)?;
        let max_per_hour = max_per_hour?;
        if max_per_hour >= capacity {
            let message = format!("{max_per_hour} in an hour would pass the whole register, {capacity}");
            self.fault("max_per_hour", &message, Some("check digits, decimals and the rating"));
        }
        Some(Register { capacity, max_per_hour })
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
id = "acme-one"
manufacturer = "Acme"
model = "One"
medium = "water"
protocol = "modbus"
source = "manual 1.0"
verification = "one live reading"
max_words = 20
max_hole = 4
turnaround_ms = 50

[[point]]
name = "volume_total"
table = "holding"
address = 0x0007
kind = "u32"
order = "CDAB"
scale = "0.001"
unit = "m3"
digits = 8
decimals = 3
max_per_hour = "50"
sentinels = ["0xFFFFFFFF"]
source = "row 7"

[[point]]
name = "meter_status"
table = "holding"
address = 20
kind = "bits16"
unit = "1"
bits = { "0" = "empty_pipe", "3" = "leak" }
source = "row 20"

[serial]
table = "holding"
address = 0x21
kind = "u32"
order = "CDAB"
source = "row 33"
"#;

    /// The places and messages of the faults after replacing one piece of the good profile.
    fn faults(from: &str, to: &str) -> Vec<(String, String)> {
        assert!(GOOD.contains(from), "{from}");
        match load(&GOOD.replacen(from, to, 1), "acme-one.toml") {
            Ok(_) => Vec::new(),
            Err(faults) => faults.into_iter().map(|f| (f.place, f.message)).collect(),
        }
    }

    #[test]
    fn a_profile_is_read_as_written() {
        let profile = load(GOOD, "dir/acme-one.toml").unwrap();
        assert_eq!((profile.max_words, profile.max_hole, profile.even_words), (20, 4, false));
        assert_eq!(profile.turnaround, Duration::from_millis(50));
        let total = &profile.points[0];
        assert_eq!((total.cell.address, total.unit), (7, Unit::CubicMetre));
        assert_eq!(total.cell.encoding.order.to_string(), "CDAB");
        assert_eq!(total.cell.sentinels, vec![vec![0xFF; 4]]);
        assert_eq!(total.register.unwrap().capacity.to_string(), "100000");
        let status = &profile.points[1].cell.encoding;
        assert_eq!(status.bits, vec![(0, "empty_pipe".to_owned()), (3, "leak".to_owned())]);
        assert_eq!(profile.points[1].register, None);
        assert_eq!(profile.serial.unwrap().cell.address, 0x21);
    }

    #[test]
    fn each_mistake_is_named_where_it_is() {
        for (from, to, place, says) in [
            ("max_words = 20", "max_word = 20", "max_word", "unknown key"),
            ("max_words = 20", "max_words = 126", "max_words", "1 to 125"),
            ("max_words = 20", "max_words = 1", "point[1].kind", "max_words is 1"),
            ("id = \"acme-one\"", "id = \"Acme One\"", "id", "a-z 0-9 -"),
            ("id = \"acme-one\"", "id = \"acme-two\"", "id", "not the name of its file"),
            ("medium = \"water\"", "medium = \"milk\"", "medium", "electricity, water, heat or gas"),
            ("protocol = \"modbus\"", "protocol = \"smoke\"", "protocol", "expected modbus"),
            ("source = \"manual 1.0\"", "", "source", "missing"),
            ("turnaround_ms = 50", "turnaround_ms = -1", "turnaround_ms", "0 to 10000"),
            ("name = \"volume_total\"", "name = \"Volume\"", "point[1].name", "point name"),
            ("table = \"holding\"", "table = \"coil\"", "point[1].table", "input (function 04)"),
            ("address = 0x0007", "address = 0x10000", "point[1].address", "0 to 65535"),
            ("address = 0x0007", "address = 0xFFFF", "point[1].address", "pass the end"),
            ("address = 20", "address = 8", "point[2].address", "share words"),
            ("name = \"meter_status\"", "name = \"volume_total\"", "point[2].name", "already point[1]"),
            ("kind = \"u32\"", "kind = \"u24\"", "point[1].kind", "expected u16"),
            ("order = \"CDAB\"", "order = \"CDA\"", "point[1].order", "not a byte order"),
            ("order = \"CDAB\"", "order = \"CCAB\"", "point[1].order", "not a byte order"),
            ("order = \"CDAB\"", "order = \"AB\"", "point[1].order", "the cell has 4"),
            ("scale = \"0.001\"", "scale = 0.001", "point[1].scale", "in quotes"),
            ("scale = \"0.001\"", "scale = \"0\"", "point[1].scale", "above 0"),
            (
                "kind = \"u32\"\norder = \"CDAB\"\nscale = \"0.001\"",
                "kind = \"f32\"\norder = \"CDAB\"\nscale = \"0.002\"",
                "point[1].scale",
                "power of ten",
            ),
            ("unit = \"m3\"", "unit = \"litre\"", "point[1].unit", "kWh, kvarh"),
            ("unit = \"m3\"", "unit = \"kWh\"", "point[1].unit", "given in m3"),
            ("digits = 8\n", "", "point[1].digits", "missing"),
            ("decimals = 3", "decimals = 8", "point[1].decimals", "leave none"),
            ("max_per_hour = \"50\"", "", "point[1].max_per_hour", "missing"),
            ("max_per_hour = \"50\"", "max_per_hour = \"100000\"", "point[1].max_per_hour", "whole register"),
            ("\"0xFFFFFFFF\"", "\"0xFFFF\"", "point[1].sentinels[1]", "8 hexadecimal digits"),
            ("source = \"row 7\"", "", "point[1].source", "missing"),
            ("bits = {", "digits = 3\nbits = {", "point[2].digits", "not a cumulative register"),
            ("\"3\" = \"leak\"", "\"16\" = \"leak\"", "point[2].bits.16", "to 15"),
            ("\"3\" = \"leak\"", "\"3\" = \"empty_pipe\"", "point[2].bits.3", "another bit"),
            (
                "\nkind = \"u32\"\norder = \"CDAB\"\nsource = \"row 33\"",
                "\nkind = \"f32\"\norder = \"CDAB\"\nsource = \"x\"",
                "serial.kind",
                "loses its digits",
            ),
        ] {
            let seen = faults(from, to);
            assert!(
                seen.iter().any(|(at, message)| at == place && message.contains(says)),
                "{from} -> {to}: expected {says:?} at {place}, saw {seen:?}"
            );
        }
    }

    #[test]
    fn all_mistakes_are_told_together_and_a_near_key_is_suggested() {
        let broken = GOOD.replacen("max_words", "max_wrds", 1).replacen("\"m3\"", "\"V\"", 1).replacen(
            "address = 20",
            "address = \"x\"",
            1,
        );
        let faults = load(&broken, "acme-one.toml").unwrap_err();
        let places: Vec<_> = faults.iter().map(|f| f.place.as_str()).collect();
        for place in ["max_wrds", "max_words", "point[1].unit", "point[2].address"] {
            assert!(places.contains(&place), "{place} not in {places:?}");
        }
        assert_eq!(faults[0].hint.as_deref(), Some("did you mean max_words?"));
        assert!(faults[0].to_string().starts_with("acme-one.toml: max_wrds: unknown key"));
    }

    #[test]
    fn what_is_not_toml_is_named_by_its_line() {
        let faults = load("id = \"a\"\nmodel = \n", "a.toml").unwrap_err();
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].place, "line 2");
    }
}
