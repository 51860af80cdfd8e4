//! Every built-in profile against its data file in `tests/profiles/`: words in, readings out. A profile without
//! its file, or a point that no case expects, fails. And the published Modbus frames in `tests/fixtures/`.

// Helpers of tests may fail like tests, and take what they are given.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::trivially_copy_pass_by_ref)]

use std::{collections::BTreeMap, fs, path::PathBuf};

use meter_gateway::{
    profile::{
        Catalogue, Cell, Decoded, Encoding, Place, Profile, bytes_of, decode, encode, plan, serial_question,
        split,
    },
    protocol::{
        Found, Pace, Parity, Payload, Question, Wire, dlt645,
        modbus::{Read, Table, crc, refusal, rtu_reply},
    },
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    case: Vec<Case>,
}

/// What a meter has: words by address, those that are not given are 0; data by identifier, as it comes over the wire. In
/// `expect`, `!reason` is a point without a value, `serial` the meter's own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[serde(default)]
    input: BTreeMap<String, Vec<u16>>,
    #[serde(default)]
    holding: BTreeMap<String, Vec<u16>>,
    #[serde(default)]
    data: BTreeMap<String, String>,
    expect: BTreeMap<String, String>,
    #[serde(default)]
    set: BTreeMap<String, Vec<String>>,
}

impl Case {
    /// `None`: the meter refuses.
    fn answer(&self, question: &Question) -> Option<Payload> {
        match question {
            Question::Modbus(read) => Some(Payload::Words(self.words(read))),
            Question::Dlt645(dlt645::Read::Data { identifier, .. }) => {
                let data = self.data.get(&identifier.to_string())?;
                let from = dlt645::Address::ANYBODY;
                Some(Payload::Data { from, bytes: bytes(&data.replace(' ', "")) })
            }
            Question::Dlt645(dlt645::Read::Address) => None,
        }
    }

    fn words(&self, read: &Read) -> Vec<u16> {
        let rows = match read.table {
            Table::Input => &self.input,
            Table::Holding => &self.holding,
        };
        let mut memory = BTreeMap::new();
        for (address, words) in rows {
            let first = u16::from_str_radix(address.trim_start_matches("0x"), 16).unwrap();
            memory
                .extend(words.iter().enumerate().map(|(i, word)| (first + u16::try_from(i).unwrap(), *word)));
        }
        (0..read.count).map(|i| memory.get(&(read.address + i)).copied().unwrap_or_default()).collect()
    }
}

fn at(folder: &str, name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", folder, name].iter().collect()
}

fn said(decoded: &Decoded) -> String {
    decoded.value.map_or_else(|reason| format!("!{reason}"), |value| value.to_string())
}

/// Everything a profile reads when the meter holds these words.
fn read_all(profile: &Profile, case: &Case) -> BTreeMap<String, Decoded> {
    let pace = Pace::Serial(Wire { baud: 9600, parity: Parity::None, stop_bits: 1 });
    let points: Vec<usize> = (0..profile.points.len()).collect();
    let mut seen = BTreeMap::new();
    let mut requests = plan(profile, &points, &pace);
    while let Some(planned) = requests.pop() {
        let Some(reply) = case.answer(&planned.question) else {
            let parts = split(&planned, profile);
            assert!(parts.len() > 1, "{}, {}: {:?} is not given", profile.id, case.name, planned.question);
            requests.extend(parts);
            continue;
        };
        for point in planned.points.iter().map(|index| &profile.points[*index]) {
            let decoded = decode(&point.cell, &bytes_of(&point.cell, &planned.question, &reply));
            seen.insert(point.name.to_string(), decoded);
        }
    }
    if let (Some(serial), Some(question)) = (&profile.serial, serial_question(profile))
        && let Some(reply) = case.answer(&question)
    {
        seen.insert("serial".into(), decode(&serial.cell, &bytes_of(&serial.cell, &question, &reply)));
    }
    seen
}

#[test]
fn every_profile_reads_what_its_data_file_says() {
    for profile in Catalogue::builtin().iter() {
        let path = at("profiles", &format!("{}.toml", profile.id));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let cases: Cases = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let mut unexpected: Vec<String> = profile.points.iter().map(|p| p.name.to_string()).collect();
        unexpected.extend(profile.serial.iter().map(|_| "serial".to_owned()));
        for case in &cases.case {
            let seen = read_all(profile, case);
            for (point, expected) in &case.expect {
                let decoded = seen.get(point).unwrap_or_else(|| panic!("{}: no point {point}", profile.id));
                assert_eq!(
                    &said(decoded),
                    expected,
                    "{}, {}: {point} ({})",
                    profile.id,
                    case.name,
                    decoded.raw
                );
                unexpected.retain(|name| name != point);
            }
            for (point, bits) in &case.set {
                assert_eq!(seen[point].set.as_ref(), Some(bits), "{}, {}: {point}", profile.id, case.name);
            }
        }
        assert!(unexpected.is_empty(), "{}: no case expects {unexpected:?}", profile.id);
        for point in profile.points.iter().filter(|point| !point.cell.sentinels.is_empty()) {
            let expected = cases
                .case
                .iter()
                .any(|case| case.expect.get(point.name.as_str()).is_some_and(|e| e == "!not_available"));
            assert!(expected, "{}: no case shows {} not available", profile.id, point.name);
        }
    }
}

#[test]
fn no_data_file_is_left_without_its_profile() {
    let catalogue = Catalogue::builtin();
    for entry in fs::read_dir(at("profiles", "")).unwrap() {
        let path = entry.unwrap().path();
        let id = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(catalogue.get(&id).is_some(), "{}", path.display());
    }
    for entry in
        fs::read_dir([env!("CARGO_MANIFEST_DIR"), "configs", "profiles"].iter().collect::<PathBuf>()).unwrap()
    {
        let path = entry.unwrap().path();
        let id = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(catalogue.get(&id).is_some(), "{} is not built in", path.display());
    }
}

/// A simulated meter says what a real one said: the words of every case come back from their values.
#[test]
fn every_ordinary_value_is_encoded_to_the_words_it_came_from() {
    for profile in Catalogue::builtin().iter() {
        let text = fs::read_to_string(at("profiles", &format!("{}.toml", profile.id))).unwrap();
        let cases: Cases = toml::from_str(&text).unwrap();
        for case in &cases.case {
            let points: Vec<usize> = (0..profile.points.len()).collect();
            let own = points.iter().flat_map(|point| plan(profile, &[*point], &Pace::Network));
            for planned in own {
                let point = &profile.points[planned.points[0]];
                let Some(reply) = case.answer(&planned.question) else { continue };
                let bytes = bytes_of(&point.cell, &planned.question, &reply);
                if let Ok(value) = decode(&point.cell, &bytes).value {
                    let length = usize::from(point.cell.encoding.kind.bytes());
                    assert_eq!(
                        encode(&point.cell, value).as_deref(),
                        Some(&bytes[..length]),
                        "{}: {}",
                        profile.id,
                        point.name
                    );
                }
            }
        }
    }
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    request_hex: String,
    response_hex: String,
    expect: Expect,
}

#[derive(Deserialize)]
struct Expect {
    kind: String,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    id: String,
    value: Option<String>,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    word_order: String,
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn crc_fits(frame: &[u8]) -> bool {
    let (body, sum) = frame.split_at(frame.len() - 2);
    crc(body).to_le_bytes() == sum
}

fn assert_item(vector: &Vector, item: &Item, read: &Read, reply: &[u16]) {
    let kind = serde_json::from_value(item.kind.clone().into()).unwrap();
    let address = u16::from_str_radix(item.id.trim_start_matches("0x"), 16).unwrap();
    let cell = Cell {
        place: Place::Modbus { table: read.table, address },
        encoding: Encoding { kind, order: item.word_order.parse().unwrap(), signed: false, bits: Vec::new() },
        scale: "1".parse().unwrap(),
        // The one vector without a value is ABB's largest signed number.
        sentinels: if item.value.is_none() { vec![bytes("7FFFFFFF")] } else { Vec::new() },
    };
    let reply = Payload::Words(reply.to_vec());
    let seen = said(&decode(&cell, &bytes_of(&cell, &Question::Modbus(*read), &reply)));
    match &item.value {
        None => assert_eq!(seen, "!not_available", "{}", vector.name),
        // Published decimals of a float are rounded: they name the float itself or its neighbour.
        Some(value) if item.kind == "f32" => {
            let bits = |text: &str| text.parse::<f32>().unwrap().to_bits();
            assert!(bits(&seen).abs_diff(bits(value)) <= 1, "{}: {seen}, expected {value}", vector.name);
        }
        Some(value) => assert_eq!(&seen, value, "{}", vector.name),
    }
}

#[test]
fn published_frames_are_framed_checked_and_decoded() {
    let text = fs::read_to_string(at("fixtures", "vectors-modbus.json")).unwrap();
    let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap();
    assert_eq!(vectors.len(), 15);
    for vector in &vectors {
        let (request, response) = (bytes(&vector.request_hex), bytes(&vector.response_hex));
        assert!(crc_fits(&request), "{}: request", vector.name);
        let framing = rtu_reply(&request, &response);
        match vector.expect.kind.as_str() {
            "request" => assert_eq!(framing, Found::Incomplete, "{}", vector.name),
            "reject" => assert!(!matches!(framing, Found::Frame(_)), "{}: {framing:?}", vector.name),
            "error" => {
                assert_eq!(framing, Found::Frame(0..5), "{}", vector.name);
                assert!(crc_fits(&response), "{}", vector.name);
                assert_eq!(Some(response[2].to_string()), vector.expect.items[0].value, "{}", vector.name);
                assert_ne!(refusal(response[2]).text, "unknown exception");
            }
            "data" => {
                assert_eq!(framing, Found::Frame(0..response.len()), "{}", vector.name);
                assert!(crc_fits(&response), "{}", vector.name);
                let table = if request[1] == 3 { Table::Holding } else { Table::Input };
                let word = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
                let read = Read { table, address: word(2), count: word(4) };
                let reply: Vec<u16> = response[3..response.len() - 2]
                    .chunks(2)
                    .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                    .collect();
                for item in &vector.expect.items {
                    assert_item(vector, item, &read, &reply);
                }
            }
            other => panic!("{}: {other}", vector.name),
        }
    }
}

/// A profile with so many registers and other points, whose names are as long as they may be.
fn profile_of(registers: usize, others: usize) -> String {
    let head = "id = \"wide\"\nmanufacturer = \"a\"\nmodel = \"b\"\nmedium = \"electricity\"\nprotocol = \"modbus\"\n\
                source = \"c\"\nverification = \"d\"\nmax_words = 100\nturnaround_ms = 50\n";
    let point = |n: usize, name: String, more: &str| {
        format!(
            "[[point]]\nname = \"{name}\"\ntable = \"holding\"\naddress = {}\nkind = \"u64\"\norder = \"ABCDEFGH\"\nsource = \"e\"\n{more}",
            n * 4
        )
    };
    let counts = "unit = \"kvarh\"\ndigits = 18\ndecimals = 2\nmax_per_hour = \"100000\"\n";
    let rows = (0..registers + others).map(|n| match n {
        n if n < registers => point(n, format!("energy_reactive_{n:0>26}_total"), counts),
        n => point(n, format!("voltage_{n:0>40}"), "unit = \"V\"\n"),
    });
    format!("{head}{}", rows.collect::<Vec<_>>().concat())
}

/// The largest record that the pipeline makes of a profile fits the ledger, and what may not fit is a fault.
#[tokio::test]
async fn the_record_of_a_profile_fits_the_ledger_or_the_profile_is_refused() {
    use meter_gateway::{
        ledger::{Ledger as _, MemoryLedger, chain::MAX_LINE},
        model::{ClockState, Dec, Draft, Origin, PointValue, Reading, Utc, Verdict},
        profile::{MAX_RECORD_BYTES, load},
    };
    use serde_json::json;

    assert_eq!(MAX_RECORD_BYTES, MAX_LINE);
    for (registers, others) in [(48, 0), (0, 280), (20, 150)] {
        let profile =
            load(&profile_of(registers, others), "wide.toml").unwrap_or_else(|faults| panic!("{faults:?}"));
        let digits: Dec = "1844674407370955161.5".parse().unwrap();
        let look =
            json!({"value": digits, "raw": "0xFFFFFFFFFFFFFFFF", "taken_at": "2026-11-01T00:00:00.000Z"});
        let evidence = json!({
            "rule": "counts_down_and_up_again", "previous": look, "allowed": "1844674407370955161.5", "first": look,
            "second": look, "believed": {"value": digits, "since": "2026-11-01T00:00:00.000Z", "held": look, "least": digits},
        });
        let values = profile.points.iter().map(|point| {
            let value = PointValue {
                value: Some(digits),
                unit: point.unit,
                raw: Some("0xFFFFFFFFFFFFFFFF".into()),
                multiplier: Some("123456789012345678901234.5678".parse().unwrap()),
                reason: None,
                set: None,
            };
            (point.name.clone(), value)
        });
        let surprising = profile.points.iter().filter(|point| point.register.is_some());
        let reading = Reading {
            meter: "M".repeat(64).parse().unwrap(),
            medium: profile.medium,
            scheduled_at: Utc::UNIX_EPOCH,
            taken_at: Some(Utc::UNIX_EPOCH),
            origin: Origin::Measured,
            verdict: Verdict::Suspect,
            flags: (0..20).map(|n| format!("a_flag_of_some_rule_{n}")).collect(),
            values: values.collect(),
            evidence: surprising.map(|point| (point.name.to_string(), evidence.clone())).collect(),
        };
        let ledger = MemoryLedger::new("0123456789abcdef0123456789abcdef");
        let draft = Draft::reading(reading.clone(), Utc::UNIX_EPOCH, ClockState::Unsynced);
        ledger.append(vec![draft]).await.unwrap();
        let bytes = ledger.read(1, 1, 1_000_000).unwrap().remove(0).bytes.len();
        assert!(bytes <= meter_gateway::profile::largest_record(&profile.points), "{bytes}");
    }
    for (registers, others) in [(60, 0), (0, 400), (1001, 0)] {
        let faults = load(&profile_of(registers, others), "wide.toml").unwrap_err();
        assert_eq!((faults.len(), faults[0].place.as_str()), (1, "point"), "{faults:?}");
    }
}
