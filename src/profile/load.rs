//! TOML text into a [`Profile`], with every mistake at once. The format is documented in `docs/profiles.md`.
//!
//! Knows what a profile may say; knows nothing of files (the caller reads them) nor of other profiles.

use std::{fmt, time::Duration};

use toml::{Table as Toml, Value};

use super::{
    MAX_RECORD_BYTES, Point, Profile, Protocol, RequestLimits, SerialPoint, largest_record,
    section::{Faults, Section, is_bits, is_float},
    syntax::{SyntaxError, syntax_errors},
    twice::twice,
};
use crate::{
    model::{Medium, PointName, Unit},
    protocol::modbus::MAX_WORDS,
};

/// Longest time a meter may be given to think, in ms: beyond it a bus would stand still for one meter.
const MAX_TURNAROUND_MS: i64 = 10_000;

/// Points of one profile: each is compared with each, and a record holds fewer.
const MAX_POINTS: usize = 1000;

/// Keys of every profile, and those of one protocol.
const TOP_KEYS: &[&str] = &[
    "id",
    "manufacturer",
    "model",
    "medium",
    "protocol",
    "source",
    "verification",
    "turnaround_ms",
    "line",
    "point",
    "serial",
];
const MODBUS_TOP_KEYS: &[&str] = &["max_words", "max_hole", "even_words"];
const POINT_KEYS: &[&str] = &[
    "name",
    "kind",
    "scale",
    "unit",
    "digits",
    "decimals",
    "max_per_hour",
    "rolls_over_at",
    "sentinels",
    "bits",
    "source",
];
const MODBUS_POINT_KEYS: &[&str] = &["table", "address", "order"];
const DLT645_POINT_KEYS: &[&str] = &["di", "length", "block", "offset", "signed"];
const SERIAL_KEYS: &[&str] = &["kind", "sentinels", "source"];
const MODBUS_SERIAL_KEYS: &[&str] = &["table", "address", "order"];
const DLT645_SERIAL_KEYS: &[&str] = &["di", "length"];
const LINE_KEYS: &[&str] = &["baud", "parity", "stop_bits"];
const MEDIA: &str = "electricity, water, heat or gas";
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
            let errors = syntax_errors(text);
            if !errors.is_empty() {
                let faults = errors.into_iter();
                return Err(faults
                    .map(|SyntaxError { place, message, hint }| ProfileFault {
                        file: file.to_owned(),
                        place,
                        message,
                        hint,
                    })
                    .collect());
            }
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
    let known = match toml.get("protocol").and_then(Value::as_str) {
        Some(name) if name == Protocol::Dlt645.name() => TOP_KEYS.to_vec(),
        _ => [TOP_KEYS, MODBUS_TOP_KEYS].concat(),
    };
    let mut top = Section::new(toml, String::new(), &known, faults);
    let id = top.text("id");
    if let Some(id) = &id {
        top.check_id(id);
    }
    let manufacturer = top.text("manufacturer");
    let model = top.text("model");
    let medium = top.one_of::<Medium>("medium", MEDIA);
    let protocol = protocol(&mut top);
    let source = top.text("source");
    let verification = top.text("verification");
    let turnaround = top.whole("turnaround_ms", 0, MAX_TURNAROUND_MS, None);
    let points = points(toml, protocol, faults);
    if let Some(points) = &points {
        let bytes = largest_record(points);
        if bytes > MAX_RECORD_BYTES {
            let message = format!(
                "a record of these {} points may have {bytes} bytes, the ledger takes {MAX_RECORD_BYTES}: it would be refused",
                points.len()
            );
            faults.add(
                "point",
                &message,
                Some("leave out points that nobody uses, or split the profile in two"),
            );
        }
    }
    let line = table(toml, "line", faults)
        .map(|line| Section::new(line, "line.".to_owned(), LINE_KEYS, faults).wire());
    let serial = table(toml, "serial", faults).map(|table| serial(table, protocol, faults));
    Some(Profile {
        id: id?,
        manufacturer: manufacturer?,
        model: model?,
        medium: medium?,
        protocol: protocol?,
        line: match line {
            Some(wire) => Some(wire?),
            None => None,
        },
        source: source?,
        verification: verification?,
        turnaround: Duration::from_millis(u64::try_from(turnaround?).ok()?),
        points: points?,
        serial: match serial {
            Some(serial) => Some(serial?),
            None => None,
        },
    })
}

/// A limit that is faulty itself is 0: whatever depends on it is no second fault.
fn protocol(top: &mut Section) -> Option<Protocol> {
    let expected = Protocol::NAMES.join(" or ");
    let name = top.text("protocol")?;
    let modbus = Protocol::Modbus(RequestLimits::default());
    match [modbus, Protocol::Dlt645].into_iter().find(|known| known.name() == name) {
        Some(Protocol::Modbus(_)) => {
            let max_words = top.whole("max_words", 1, i64::from(MAX_WORDS), None);
            let max_hole = top.whole("max_hole", 0, i64::from(MAX_WORDS) - 1, Some(0));
            let limit = |words: Option<i64>| words.and_then(|words| u16::try_from(words).ok()).unwrap_or(0);
            Some(Protocol::Modbus(RequestLimits {
                max_words: limit(max_words),
                max_hole: limit(max_hole),
                even_words: top.flag("even_words").unwrap_or(false),
            }))
        }
        None => {
            top.fault("protocol", &format!("{name:?} is not known: expected {expected}"), None);
            None
        }
        found => found,
    }
}

/// A table that may be left out.
fn table<'a>(toml: &'a Toml, key: &str, faults: &mut Faults) -> Option<&'a Toml> {
    match toml.get(key)? {
        Value::Table(table) => Some(table),
        other => {
            faults.add(key, &format!("expected a table [{key}], not {}", other.type_str()), None);
            None
        }
    }
}

fn points(toml: &Toml, protocol: Option<Protocol>, faults: &mut Faults) -> Option<Vec<Point>> {
    let Some(Value::Array(rows)) = toml.get("point") else {
        faults.add("point", "a profile needs at least one point", Some("write [[point]] tables"));
        return None;
    };
    if rows.is_empty() {
        faults.add("point", "a profile needs at least one point", Some("write [[point]] tables"));
    }
    if rows.len() > MAX_POINTS {
        faults.add("point", &format!("{} points, expected at most {MAX_POINTS}", rows.len()), None);
        return None;
    }
    let mut points: Vec<Point> = Vec::new();
    for (row, number) in rows.iter().zip(1..) {
        let place = format!("point[{number}]");
        match row {
            Value::Table(table) => {
                points.extend(point(table, &place, protocol, faults));
            }
            other => faults.add(&place, &format!("expected a table, not {}", other.type_str()), None),
        }
    }
    twice(rows, faults);
    Some(points)
}

/// `None`: the protocol is faulty itself, and every key may be right.
fn keys(
    protocol: Option<Protocol>,
    common: &[&'static str],
    modbus: &[&'static str],
    dlt645: &[&'static str],
) -> Vec<&'static str> {
    match protocol {
        Some(Protocol::Modbus(_)) => [common, modbus].concat(),
        Some(Protocol::Dlt645) => [common, dlt645].concat(),
        None => [common, modbus, dlt645].concat(),
    }
}

fn point(toml: &Toml, place: &str, protocol: Option<Protocol>, faults: &mut Faults) -> Option<Point> {
    let known = keys(protocol, POINT_KEYS, MODBUS_POINT_KEYS, DLT645_POINT_KEYS);
    let mut row = Section::new(toml, format!("{place}."), &known, faults);
    let name = row.text("name").and_then(|text| row.parsed::<PointName>("name", &text));
    let unit = row.one_of::<Unit>("unit", UNITS);
    let source = row.text("source");
    let cell = row.cell(protocol);
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
        (Some(name), Some(unit)) if is_cumulative(name.as_str(), unit) => {
            row.register(name, cell.as_ref()).map(Some)
        }
        (Some(name), Some(_)) => {
            for key in ["digits", "decimals", "max_per_hour", "rolls_over_at"] {
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

fn serial(toml: &Toml, protocol: Option<Protocol>, faults: &mut Faults) -> Option<SerialPoint> {
    let known = keys(protocol, SERIAL_KEYS, MODBUS_SERIAL_KEYS, DLT645_SERIAL_KEYS);
    let mut row = Section::new(toml, "serial.".to_owned(), &known, faults);
    let source = row.text("source");
    let cell = row.cell(protocol);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Place;

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
        let limits = RequestLimits { max_words: 20, max_hole: 4, even_words: false };
        assert_eq!(profile.protocol, Protocol::Modbus(limits));
        assert_eq!(profile.line, None);
        assert_eq!(profile.turnaround, Duration::from_millis(50));
        let total = &profile.points[0];
        assert_eq!((total.cell.place.to_string().as_str(), total.unit), ("holding 0x0007", Unit::CubicMetre));
        assert_eq!(total.cell.encoding.order.to_string(), "CDAB");
        assert_eq!(total.cell.sentinels, vec![vec![0xFF; 4]]);
        assert_eq!(total.register.unwrap().capacity.to_string(), "100000");
        let status = &profile.points[1].cell.encoding;
        assert_eq!(status.bits, vec![(0, "empty_pipe".to_owned()), (3, "leak".to_owned())]);
        assert_eq!(profile.points[1].register, None);
        assert_eq!(profile.serial.unwrap().cell.place.to_string(), "holding 0x0021");
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
            (
                "digits = 8",
                "rolls_over_at = \"200000\"\ndigits = 8",
                "point[1].rolls_over_at",
                "beyond 100000",
            ),
            ("digits = 8", "rolls_over_at = 4294967\ndigits = 8", "point[1].rolls_over_at", "in quotes"),
            ("digits = 8", "rolls_over_at = \"0\"\ndigits = 8", "point[1].rolls_over_at", "above 0"),
            ("digits = 8", "rolls_over_at = \"2^65\"\ndigits = 8", "point[1].rolls_over_at", "2^1 to 2^64"),
            (
                "digits = 8",
                "rolls_over_at = \"2^32 steps\"\ndigits = 8",
                "point[1].rolls_over_at",
                "2^1 to 2^64",
            ),
            ("digits = 8", "rolls_over_at = \"2^32\"\ndigits = 8", "point[1].rolls_over_at", "beyond 100000"),
            (
                "digits = 8",
                "rolls_over_at = \"50\"\ndigits = 8",
                "point[1].max_per_hour",
                "whole register, 50",
            ),
            ("bits = {", "rolls_over_at = \"9\"\nbits = {", "point[2].rolls_over_at", "not a cumulative"),
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

    const DLT645: &str = r#"
id = "acme-two"
manufacturer = "Acme"
model = "Two"
medium = "electricity"
protocol = "dlt645-2007"
source = "manual 1.0"
verification = "one live reading"
turnaround_ms = 100

[line]
baud = 2400
parity = "even"

[[point]]
name = "energy_import_total"
di = "00010000"
block = "0001FF00"
offset = 0
kind = "bcd32"
scale = "0.01"
unit = "kWh"
digits = 8
decimals = 2
max_per_hour = "69"
source = "row 1"

[[point]]
name = "demand_max"
di = "01010000"
length = 8
kind = "bcd24"
signed = true
scale = "0.1"
unit = "W"
source = "row 2"

[serial]
di = "04000402"
kind = "bcd48"
source = "row 3"
"#;

    #[test]
    fn a_profile_of_dlt645_is_read_as_written() {
        let profile = load(DLT645, "acme-two.toml").unwrap();
        assert_eq!(profile.protocol, Protocol::Dlt645);
        assert_eq!(profile.line.unwrap().to_string(), "2400 8E1");
        let places: Vec<String> = profile.points.iter().map(|point| point.cell.place.to_string()).collect();
        assert_eq!(places, ["00010000, or 0001FF00 from byte 0", "01010000"]);
        let Place::Dlt645(demand) = profile.points[1].cell.place else { panic!() };
        assert_eq!((demand.length, profile.points[1].cell.encoding.signed), (8, true));
        assert_eq!(profile.points[0].cell.sentinels, vec![vec![0xFF; 4]], "FF is what the meter has not");
    }

    #[test]
    fn each_mistake_in_a_profile_of_dlt645_is_named_where_it_is() {
        for (from, to, place, says) in [
            ("turnaround_ms", "max_words = 20\nturnaround_ms", "max_words", "unknown key"),
            ("\"dlt645-2007\"", "\"dlt645\"", "protocol", "expected modbus or dlt645-2007"),
            ("baud = 2400", "baud = 24", "line.baud", "300 to 921600"),
            ("parity = \"even\"", "", "line.parity", "missing"),
            ("[line]\nbaud = 2400\nparity = \"even\"", "line = 2400", "line", "expected a table"),
            ("di = \"00010000\"", "", "point[1].di", "missing"),
            ("di = \"00010000\"", "di = \"0001\"", "point[1].di", "8 hexadecimal digits"),
            ("di = \"00010000\"", "di = \"0001000G\"", "point[1].di", "8 hexadecimal digits"),
            ("di = \"00010000\"", "di = \"0001FF00\"", "point[1].block", "value alone"),
            ("di = \"01010000\"", "di = \"00010000\"", "point[2].di", "share bytes"),
            ("offset = 0", "", "point[1].offset", "missing"),
            ("offset = 0", "offset = 193", "point[1].offset", "0 to 192"),
            ("block = \"0001FF00\"", "", "point[1].offset", "belongs to a block"),
            ("length = 8", "length = 2", "point[2].length", "3 to 196"),
            ("kind = \"bcd32\"", "kind = \"u32\"", "point[1].kind", "expected bcd16"),
            ("kind = \"bcd32\"", "kind = \"bits16\"", "point[1].unit", "unit 1"),
            ("kind = \"bcd32\"", "kind = \"bcd32\"\norder = \"DCBA\"", "point[1].order", "unknown key"),
            ("signed = true", "signed = \"yes\"", "point[2].signed", "true or false"),
            ("length = 8", "block = \"0001FF00\"\noffset = 2", "point[2].offset", "share bytes of 0001FF00"),
        ] {
            assert!(DLT645.contains(from), "{from}");
            let seen = load(&DLT645.replacen(from, to, 1), "acme-two.toml").unwrap_err();
            assert!(
                seen.iter().any(|fault| fault.place == place && fault.message.contains(says)),
                "{from} -> {to}: expected {says:?} at {place}, saw {seen:?}"
            );
        }
    }

    /// Display, number format or what the profile says: where a register begins again.
    #[test]
    fn a_register_begins_again_where_its_format_its_display_or_its_profile_says() {
        for (kind, order, scale, digits, decimals, says, expected) in [
            ("u16", "AB", "0.01", 5, 2, "", "655.36"),
            ("u16", "AB", "1", 4, 0, "", "10000"),
            ("i16", "AB", "0.1", 8, 1, "", "3276.8"),
            ("u32", "CDAB", "0.001", 10, 3, "", "4294967.296"),
            ("u32", "CDAB", "0.001", 9, 3, "", "1000000"),
            ("i32", "CDAB", "0.01", 10, 2, "", "21474836.48"),
            ("u64", "ABCDEFGH", "0.01", 18, 0, "", "184467440737095516.16"),
            ("i64", "ABCDEFGH", "0.1", 18, 0, "", "922337203685477580.8"),
            ("bcd16", "AB", "0.1", 8, 1, "", "1000"),
            ("bcd32", "ABCD", "0.001", 8, 2, "", "100000"),
            ("bcd64", "ABCDEFGH", "0.01", 18, 2, "", "100000000000000"),
            ("f32", "ABCD", "1", 8, 2, "", "1000000"),
            ("f64", "ABCDEFGH", "0.001", 10, 3, "", "10000000"),
            // A wider number that is counted in fewer bits, or in decimal words, inside.
            ("u64", "ABCDEFGH", "0.001", 10, 3, "2^32", "4294967.296"),
            ("f32", "ABCD", "0.001", 10, 3, "4294967.296", "4294967.296"),
            ("u32", "CDAB", "1", 10, 0, "100000000", "100000000"),
            ("u16", "AB", "1", 5, 0, "60000", "60000"),
            ("u32", "CDAB", "0.5", 8, 1, "2^16", "32768"),
        ] {
            let says = if says.is_empty() { String::new() } else { format!("rolls_over_at = \"{says}\"") };
            let row = format!(
                "kind = \"{kind}\"\norder = \"{order}\"\nscale = \"{scale}\"\nunit = \"m3\"\ndigits = {digits}\ndecimals = {decimals}\n{says}"
            );
            let from = "kind = \"u32\"\norder = \"CDAB\"\nscale = \"0.001\"\nunit = \"m3\"\ndigits = 8\ndecimals = 3\n";
            assert!(GOOD.contains(from));
            let text = GOOD.replacen(from, &(row.clone() + "\n"), 1).replacen(
                "sentinels = [\"0xFFFFFFFF\"]\n",
                "",
                1,
            );
            let profile = load(&text, "acme-one.toml").unwrap_or_else(|faults| panic!("{row}: {faults:?}"));
            assert_eq!(profile.points[0].register.unwrap().capacity.to_string(), expected, "{row}");
        }
    }

    #[test]
    fn rows_that_are_faulty_otherwise_are_still_compared() {
        let broken = GOOD.replacen("order = \"CDAB\"", "order = \"CDA\"", 1).replacen(
            "name = \"meter_status\"\ntable = \"holding\"\naddress = 20",
            "name = \"volume_total\"\ntable = \"holding\"\naddress = 8",
            1,
        );
        let faults = load(&broken, "acme-one.toml").unwrap_err();
        let places: Vec<_> = faults.iter().map(|f| f.place.as_str()).collect();
        for place in ["point[1].order", "point[2].name", "point[2].address"] {
            assert!(places.contains(&place), "{places:?}");
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
        assert_eq!(faults[0].place, "line 2, column 9");
    }
}
