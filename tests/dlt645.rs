//! Every DL/T 645-2007 frame of `tests/fixtures/vectors-dlt645.json` (captured, printed or constructed; each names its
//! source): framed, checked, taken apart, or refused.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use std::{fs, path::PathBuf};

use meter_gateway::protocol::dlt645::{
    Address, Framing, Identifier, Read, Reply, decode, encode, find, first_frame, frame,
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
            Read::Data { identifier: identifier(&frame.fields), follow_up }
        }
        0x11 => Read::data("00010000".parse().unwrap()),
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
            let request = encode(seen.address, &Read::data("00010000".parse().unwrap()));
            assert!(matches!(find(&request, &response), Framing::Unfit(_)), "{name}");
            continue;
        };
        let request = encode(target, &read);
        let Framing::Frame(range) = find(&request, &response) else { panic!("{name}: not found") };
        assert_eq!(range.end, response.len(), "{name}");
        for cut in 0..response.len() {
            assert_eq!(find(&request, &response[..cut]), Framing::Incomplete, "{name}: cut to {cut}");
        }
        let echoed = [&request[..], &response].concat();
        assert!(matches!(find(&request, &echoed), Framing::Frame(_)), "{name}: behind its echo");
        match decode(&read, &response[range]).unwrap_or_else(|| panic!("{name}: no reply")) {
            Reply::Refused(refusal) => {
                assert_eq!(Some(refusal.code.to_string()), expect.items[0].value, "{name}");
                assert!(!refusal.transient && refusal.text.contains("no such data"), "{name}");
            }
            Reply::Address(address) => {
                assert_eq!(Some(address.to_string()), expect.items[0].value, "{name}");
            }
            Reply::Data { from, more, .. } => {
                assert_eq!((from, more), (address(&expect.address), expect.more_follows), "{name}");
            }
        }
        found += 1;
    }
    assert!(found > 60, "{found}");
}

#[test]
fn what_must_be_refused_is_no_reply() {
    for vector in vectors().iter().filter(|vector| vector.expect.kind == "reject") {
        let response = bytes(&vector.response_hex);
        let target = response.get(1..7).and_then(|wire| Some(Address::from_wire(wire.try_into().ok()?)));
        let request = match vector.request_hex.as_str() {
            "" => encode(target.unwrap_or(Address::ANYBODY), &Read::data("00010000".parse().unwrap())),
            hex => bytes(hex),
        };
        let framing = find(&request, &response);
        let fits = match vector.name.as_str() {
            // Its checksum fits: that a value of four bytes has three is for the profile to see.
            name if name.contains("one byte too few") => matches!(framing, Framing::Frame(_)),
            name if ["no frame", "second start byte", "incomplete"]
                .iter()
                .any(|part| name.contains(part)) =>
            {
                framing == Framing::Incomplete
            }
            _ => matches!(framing, Framing::Unfit(_)),
        };
        assert!(fits, "{}: {framing:?}", vector.name);
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
