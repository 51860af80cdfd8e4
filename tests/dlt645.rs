//! Every DL/T 645-2007 frame of `tests/fixtures/vectors-dlt645.json` (captured, printed or constructed; each names its
//! source): framed, checked, taken apart, or refused.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use std::{fs, path::PathBuf};

use meter_gateway::{
    profile::{Block, ByteOrder, Cell, Encoding, Item as Place645, Kind, Place, bytes_of, decode},
    protocol::{
        Found, Payload, Question, Reply, Transaction as _,
        dlt645::{Address, Identifier, Read, ReadTransaction, encode, fault, find, first_frame, frame},
    },
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vector {
    name: String,
    request_hex: String,
    response_hex: String,
    expect: Expect,
}

#[derive(Deserialize)]
struct Expect {
    address: String,
    kind: String,
    #[serde(default)]
    control: String,
    #[serde(default)]
    seq: Option<String>,
    #[serde(default)]
    more_follows: bool,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    id: String,
    value: Option<String>,
}

fn vectors() -> Vec<Vector> {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests", "fixtures", "vectors-dlt645.json"].iter().collect();
    let vectors: Vec<Vector> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(vectors.len(), 88);
    vectors
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// An address as a vector has it, which may be the broadcast address.
fn address(text: &str) -> Address {
    let mut wire: [u8; 6] = bytes(text).try_into().unwrap();
    wire.reverse();
    Address::from_wire(wire)
}

/// The identifier that stands in a frame.
fn identifier(fields: &[u8]) -> Identifier {
    let mut wire: [u8; 4] = fields[..4].try_into().unwrap();
    wire.reverse();
    Identifier(wire)
}

/// What was asked: the request's own bytes say it, or where there are none the reply that it must have had.
fn asked(vector: &Vector) -> Option<(Address, Read)> {
    let source = if vector.request_hex.is_empty() { &vector.response_hex } else { &vector.request_hex };
    let (frame, _) = first_frame(&bytes(source))?;
    let follow_up = vector.expect.seq.as_ref().map(|seq| seq.parse().unwrap());
    let read = match frame.control & 0x1F {
        0x13 => Read::Address,
        0x11 | 0x12 if frame.control & 0x40 == 0 && frame.fields.len() >= 4 => {
            let follow_up =
                follow_up.or_else(|| frame.fields.get(4).copied().filter(|_| frame.control == 0x12));
            Read::Data { identifier: identifier(&frame.fields), follow_up, length: 4 }
        }
        0x11 => Read::data("00010000".parse().unwrap(), 4),
        _ => return None,
    };
    Some((frame.address, read))
}

#[test]
fn every_request_is_written_as_it_was_captured() {
    let mut reads = 0;
    for vector in vectors().iter().filter(|vector| !vector.request_hex.is_empty()) {
        let request = bytes(&vector.request_hex);
        let start = request.iter().position(|byte| *byte != 0xFE).unwrap();
        let (seen, _) = first_frame(&request).unwrap();
        assert_eq!(frame(seen.address, seen.control, &seen.fields), request[start..], "{}", vector.name);
        // A broadcast sets clocks: that cannot be asked for at all.
        let Some((address, read)) = asked(vector) else {
            assert_eq!(vector.expect.control, "08", "{}", vector.name);
            continue;
        };
        assert_eq!(encode(address, &read)[4..], request[start..], "{}", vector.name);
        reads += 1;
    }
    assert!(reads > 40, "{reads}");
}

#[test]
fn every_reply_is_found_and_taken_apart() {
    let mut found = 0;
    for vector in vectors() {
        let (name, expect) = (&vector.name, &vector.expect);
        let response = bytes(&vector.response_hex);
        if !["data", "error", "ack"].contains(&expect.kind.as_str()) {
            continue;
        }
        let (seen, end) = first_frame(&response).unwrap_or_else(|| panic!("{name}: no frame"));
        assert_eq!((seen.address.to_string(), end), (expect.address.clone(), response.len()), "{name}");
        assert_eq!(format!("{:02X}", seen.control), expect.control, "{name}");
        let Some((target, read)) = asked(&vector) else {
            // What acknowledges a write or a switch answers nothing that can be asked.
            assert_eq!(expect.kind, "ack", "{name}");
            let request = encode(seen.address, &Read::data("00010000".parse().unwrap(), 4));
            assert_eq!(find(&request, &response), Found::Incomplete, "{name}");
            assert!(fault(&request, &response).is_some());
            continue;
        };
        let asked = ReadTransaction::new(target, read);
        let Found::Frame(range) = asked.find(&response) else { panic!("{name}: not found") };
        assert_eq!(range.end, response.len(), "{name}");
        for cut in 0..response.len() {
            assert_eq!(asked.find(&response[..cut]), Found::Incomplete, "{name}: cut to {cut}");
        }
        let echoed = [asked.request(), &response].concat();
        assert!(matches!(asked.find(&echoed), Found::Frame(_)), "{name}: behind its echo");
        let reply = &response[range];
        if let Some(next) = asked.follow_up(reply) {
            assert!(expect.more_follows, "{name}");
            let number = expect.seq.as_ref().map_or(0, |seq| seq.parse().unwrap());
            let next = first_frame(next.request()).unwrap().0;
            assert_eq!((next.control, next.fields.last()), (0x12, Some(&(number + 1))), "{name}");
            found += 1;
            continue;
        }
        assert!(!expect.more_follows, "{name}");
        match asked.decode(reply) {
            Reply::Refused(refusal) => {
                assert_eq!(Some(refusal.code.to_string()), expect.items[0].value, "{name}");
                assert!(!refusal.transient && refusal.text.contains("no such data"), "{name}");
            }
            Reply::Data(Payload::Data { from, bytes }) => {
                assert_eq!(from, address(&expect.address), "{name}");
                if read == Read::Address {
                    assert_eq!((expect.items[0].value.clone(), bytes.len()), (Some(from.to_string()), 6));
                } else {
                    assert_values(&vector, read, &Payload::Data { from, bytes });
                }
            }
            other => panic!("{name}: {other:?}"),
        }
        found += 1;
    }
    assert!(found > 60, "{found}");
}

/// How the standard writes what an identifier brings; `None` for dates, times and texts, which are no quantities.
fn format_of(id: &str) -> Option<(Kind, &'static str, bool)> {
    Some(match id {
        _ if id.contains(".time") || id.contains(".weekday") => return None,
        "04000101" | "04000102" | "04000405" | "04000407" | "05060001" => return None,
        "04000402" => (Kind::Bcd48, "1", false),
        "02800002" => (Kind::Bcd16, "0.01", false),
        "02800007" => (Kind::Bcd16, "0.1", true),
        _ if id.starts_with("0000") || id.starts_with("0003") => (Kind::Bcd32, "0.01", true),
        _ if id.starts_with("00") || id.starts_with("0506") => (Kind::Bcd32, "0.01", false),
        _ if id.starts_with("0101") => (Kind::Bcd24, "0.0001", false),
        _ if id.starts_with("0201") => (Kind::Bcd16, "0.1", false),
        _ if id.starts_with("0202") => (Kind::Bcd24, "0.001", true),
        _ if id.starts_with("0203") => (Kind::Bcd24, "0.0001", true),
        _ if id.starts_with("0206") => (Kind::Bcd16, "0.001", true),
        _ if id.starts_with("0330") => (Kind::Bcd24, "1", false),
        _ if id.starts_with("040005") => (Kind::Bits16, "1", false),
        _ => panic!("{id}: no format"),
    })
}

fn cell(id: &str, identifier: Identifier, block: Option<Block>) -> Option<Cell> {
    let (kind, scale, signed) = format_of(id)?;
    Some(Cell {
        place: Place::Dlt645(Place645 { identifier, length: kind.bytes(), block }),
        encoding: Encoding { kind, order: ByteOrder::low_first(kind.bytes()), signed, bits: Vec::new() },
        scale: scale.parse().unwrap(),
        sentinels: vec![vec![0xFF; kind.bytes().into()]],
    })
}

/// The values stand one behind the other.
fn assert_values(vector: &Vector, read: Read, payload: &Payload) {
    let Read::Data { identifier, .. } = read else { panic!() };
    let mut offset = 0;
    for item in &vector.expect.items {
        let block = Some(Block { identifier, offset });
        let Some(cell) = cell(&item.id, Identifier([0; 4]), block) else { continue };
        let decoded = decode(&cell, &bytes_of(&cell, &Question::Dlt645(read), payload));
        offset += cell.encoding.kind.bytes();
        let expected = item.value.as_ref().map(|value| match item.id.as_str() {
            "04000402" => value.trim_start_matches('0').to_owned(),
            _ => value.clone(),
        });
        let value = decoded.value.map(|value| value.to_string());
        assert_eq!(value.as_ref().ok(), expected.as_ref(), "{}: {}: {value:?}", vector.name, item.id);
        if let Err(reason) = value {
            assert!(["not_available", "bad_bcd"].contains(&reason), "{}: {reason}", vector.name);
        }
    }
}

#[test]
fn what_must_be_refused_is_no_value() {
    for vector in vectors().iter().filter(|vector| vector.expect.kind == "reject") {
        let name = vector.name.as_str();
        let response = bytes(&vector.response_hex);
        let target = response.get(1..7).and_then(|wire| Some(Address::from_wire(wire.try_into().ok()?)));
        let total = Read::data("00010000".parse().unwrap(), 4);
        let (target, read) = match asked(vector) {
            Some(known) if !vector.request_hex.is_empty() => known,
            _ => (target.unwrap_or(Address::ANYBODY), total),
        };
        let asked = ReadTransaction::new(target, read);
        let nothing = ["no frame", "second start byte", "incomplete", "another DI"];
        match asked.find(&response) {
            Found::Damaged => assert!(!nothing.iter().any(|part| name.contains(part)), "{name}"),
            Found::Incomplete => assert!(
                nothing.iter().any(|part| name.contains(part)) || name.contains("bad checksum"),
                "{name}"
            ),
            // Its checksum fits, and it answers; but there is no value in it.
            Found::Frame(range) => match asked.decode(&response[range]) {
                Reply::Unfit(_) => assert!(name.contains("L=0"), "{name}"),
                Reply::Data(payload) => {
                    let cell = cell("00010000", "00010000".parse().unwrap(), None).unwrap();
                    let bytes = bytes_of(&cell, &Question::Dlt645(read), &payload);
                    assert_eq!(decode(&cell, &bytes).value, Err("short"), "{name}");
                }
                other => panic!("{name}: {other:?}"),
            },
        }
    }
}

/// Of what a request is only its own words: nothing that is broadcast or written can be expressed.
#[test]
fn an_item_of_a_request_is_what_it_asks() {
    for vector in vectors().iter().filter(|vector| vector.expect.kind == "request") {
        if let Some((target, Read::Data { identifier, .. })) = asked(vector) {
            let item = &vector.expect.items[0];
            assert_eq!((item.id.as_str(), &item.value), ("di", &Some(identifier.to_string())));
            assert_eq!(target.to_string(), vector.expect.address);
        }
    }
}
