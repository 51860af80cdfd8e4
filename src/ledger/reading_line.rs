//! The line of a reading, written straight from its fields: nearly every record is one, and a tree of JSON values for each
//! costs more than all else that is done for it.
//!
//! The bytes are those of `canonical.rs`, which a test holds them to. Pure.

use std::io::Write;

use serde::Serialize;

use super::canonical::{CanonicalError, write_object, write_string};
use crate::model::{Dec, Draft, PointValue, Reading, Seq, Utc, rfc3339};

/// Appends the line without its hash. Returns where the hash belongs.
pub fn write(
    out: &mut Vec<u8>,
    draft: &Draft,
    reading: &Reading,
    seq: Seq,
    prev: &str,
) -> Result<usize, CanonicalError> {
    // Without `..`: a new field does not compile until it has its place here, in the order of the names.
    let Reading { meter, medium, scheduled_at, taken_at, origin, verdict, flags, values, evidence } = reading;
    out.extend_from_slice(b"{\"clock\":");
    word(out, &draft.clock);
    if !evidence.is_empty() {
        out.extend_from_slice(b",\"evidence\":");
        write_object(out, evidence)?;
    }
    out.extend_from_slice(b",\"flags\":");
    texts(out, flags.iter());
    out.push(b',');
    let place = out.len();
    out.extend_from_slice(b"\"medium\":");
    word(out, medium);
    out.extend_from_slice(b",\"meter\":");
    write_string(out, meter.as_str());
    out.extend_from_slice(b",\"origin\":");
    word(out, origin);
    out.extend_from_slice(b",\"prev\":");
    write_string(out, prev);
    out.extend_from_slice(b",\"recorded_at\":");
    time(out, Some(draft.recorded_at));
    out.extend_from_slice(b",\"scheduled_at\":");
    time(out, Some(*scheduled_at));
    out.extend_from_slice(b",\"seq\":");
    let _ = write!(out, "{seq}"); // a vector takes all that is written
    out.extend_from_slice(b",\"taken_at\":");
    time(out, *taken_at);
    out.extend_from_slice(b",\"type\":\"reading\",\"values\":{");
    for (nth, (name, value)) in values.iter().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        write_string(out, name.as_str());
        out.push(b':');
        point(out, value);
    }
    out.extend_from_slice(b"},\"verdict\":");
    word(out, verdict);
    out.push(b'}');
    Ok(place)
}

fn point(out: &mut Vec<u8>, point: &PointValue) {
    let PointValue { value, unit, raw, multiplier, reason, set } = point;
    out.push(b'{');
    if let Some(multiplier) = multiplier {
        out.extend_from_slice(b"\"multiplier\":");
        number(out, Some(*multiplier));
        out.push(b',');
    }
    out.extend_from_slice(b"\"raw\":");
    match raw {
        Some(raw) => write_string(out, raw),
        None => out.extend_from_slice(b"null"),
    }
    if let Some(reason) = reason {
        out.extend_from_slice(b",\"reason\":");
        write_string(out, reason);
    }
    if let Some(set) = set {
        out.extend_from_slice(b",\"set\":");
        texts(out, set.iter());
    }
    out.extend_from_slice(b",\"unit\":");
    word(out, unit);
    out.extend_from_slice(b",\"value\":");
    number(out, *value);
    out.push(b'}');
}

/// A word of a fixed set: it needs no escapes.
fn word(out: &mut Vec<u8>, word: &impl Serialize) {
    let _ = serde_json::to_writer(out, word); // a vector takes all that is written
}

fn number(out: &mut Vec<u8>, number: Option<Dec>) {
    let _ = match number {
        Some(number) => write!(out, "\"{number}\""),
        None => write!(out, "null"),
    };
}

fn time(out: &mut Vec<u8>, at: Option<Utc>) {
    match at {
        Some(at) => write_string(out, &rfc3339(at)),
        None => out.extend_from_slice(b"null"),
    }
}

fn texts<'a>(out: &mut Vec<u8>, texts: impl Iterator<Item = &'a String>) {
    out.push(b'[');
    for (nth, text) in texts.enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        write_string(out, text);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        ledger::chain::{seal, verify_line},
        model::{ClockState, Medium, Origin, Unit, Verdict},
    };

    fn text() -> impl Strategy<Value = String> {
        // What needs an escape, what is longer than a byte, what is beyond the basic plane.
        proptest::collection::vec(
            proptest::sample::select(vec!['a', '"', '\\', '\n', '\u{1}', '表', '😀']),
            0..6,
        )
        .prop_map(|chars| chars.into_iter().collect())
    }

    fn value() -> impl Strategy<Value = PointValue> {
        let number = proptest::option::of((any::<i64>(), 0..6_u32));
        let texts = || proptest::option::of(text());
        let set = proptest::option::of(proptest::collection::vec(text(), 0..3));
        (number.clone(), proptest::bool::ANY, texts(), number, texts(), set).prop_map(
            |(value, energy, raw, multiplier, reason, set)| {
                let dec = |parts: Option<(i64, u32)>| parts.and_then(|(n, e)| Dec::from_parts(n.into(), e));
                PointValue {
                    value: dec(value),
                    unit: if energy {
                        Unit::KilowattHour
                    } else {
                        "\"m3\"".parse::<Value>().map(|unit| serde_json::from_value(unit).unwrap()).unwrap()
                    },
                    raw,
                    multiplier: dec(multiplier),
                    reason,
                    set,
                }
            },
        )
    }

    fn reading() -> impl Strategy<Value = Reading> {
        let at = || (0..4_000_000_000_000_i64).prop_map(|ms| Utc::from_timestamp_millis(ms).unwrap());
        let values = proptest::collection::btree_map(
            proptest::sample::select(vec![
                "energy_import_total",
                "energy_import_t1",
                "voltage_l1",
                "frequency",
            ]),
            value(),
            0..4,
        );
        let flags = proptest::collection::btree_set(text(), 0..3);
        let evidence = proptest::collection::btree_map(text(), text(), 0..3);
        (at(), proptest::option::of(at()), values, flags, evidence, 0..3_u8).prop_map(
            |(scheduled_at, taken_at, values, flags, evidence, nth)| Reading {
                meter: "E-0101".parse().unwrap(),
                medium: [Medium::Electricity, Medium::Water, Medium::Heat][usize::from(nth)],
                scheduled_at,
                taken_at,
                origin: [Origin::Measured, Origin::Missing, Origin::Backfilled][usize::from(nth)],
                verdict: [Verdict::Good, Verdict::Suspect, Verdict::Bad][usize::from(nth)],
                flags: flags.into_iter().collect::<BTreeSet<_>>(),
                values: values
                    .into_iter()
                    .map(|(name, value)| (name.parse().unwrap(), value))
                    .collect::<BTreeMap<_, _>>(),
                evidence: evidence.into_iter().map(|(name, text)| (name, json!({"said": text}))).collect(),
            },
        )
    }

    /// The same record by way of the tree.
    fn by_fields(draft: &Draft, reading: &Reading) -> Draft {
        let Value::Object(fields) = serde_json::to_value(reading).unwrap() else { unreachable!() };
        Draft { fields, reading: None, ..draft.clone() }
    }

    proptest! {
        #[test]
        fn a_reading_has_the_same_line_by_either_way(reading in reading(), seq in 1..1_000_000_u64, now in 0..4_000_000_000_000_i64) {
            let at = Utc::from_timestamp_millis(now).unwrap();
            let draft = Draft::reading(reading.clone(), at, ClockState::Holdover);
            let prev = "0123456789abcdef".repeat(4);
            let direct = seal(&draft, seq, &prev).unwrap();
            let tree = seal(&by_fields(&draft, &reading), seq, &prev).unwrap();
            prop_assert_eq!(String::from_utf8_lossy(&direct.bytes), String::from_utf8_lossy(&tree.bytes));
            prop_assert_eq!(&direct.hash, &tree.hash);
            prop_assert_eq!(&direct.facts, &tree.facts);
            let verified = verify_line(&direct.bytes).unwrap();
            prop_assert_eq!((verified.seq, verified.prev, verified.hash), (seq, prev, direct.hash));
            prop_assert_eq!(verified.facts, direct.facts);
        }
    }

    /// If this fails, do not change the test: every stored record would lose its proof.
    #[test]
    fn golden_reading() {
        let reading: Reading = serde_json::from_value(json!({
            "meter": "E-0101", "medium": "electricity", "scheduled_at": "2026-11-01T00:00:00Z",
            "taken_at": "2026-11-01T00:00:00.123Z", "origin": "measured", "verdict": "suspect", "flags": ["back_step"],
            "values": {
                "energy_import_total": {"value": "12345.60", "unit": "kWh", "raw": "0x00BC614E", "multiplier": "40"},
                "voltage_l1": {"value": null, "unit": "V", "raw": null, "reason": "nan"},
            },
            "evidence": {"energy_import_total": {"rule": "back_step"}},
        }))
        .unwrap();
        let draft = Draft::reading(reading, "2026-11-01T00:00:00.5Z".parse().unwrap(), ClockState::Synced);
        let sealed = seal(&draft, 7, &"0".repeat(64)).unwrap();
        let line = String::from_utf8(sealed.bytes.to_vec()).unwrap();
        let expected = format!(
            "{{\"clock\":\"synced\",\"evidence\":{{\"energy_import_total\":{{\"rule\":\"back_step\"}}}},\"flags\":[\"back_step\"],\
             \"hash\":\"{}\",\"medium\":\"electricity\",\"meter\":\"E-0101\",\"origin\":\"measured\",\"prev\":\"{}\",\
             \"recorded_at\":\"2026-11-01T00:00:00.500Z\",\"scheduled_at\":\"2026-11-01T00:00:00.000Z\",\"seq\":7,\
             \"taken_at\":\"2026-11-01T00:00:00.123Z\",\"type\":\"reading\",\"values\":{{\
             \"energy_import_total\":{{\"multiplier\":\"40\",\"raw\":\"0x00BC614E\",\"unit\":\"kWh\",\"value\":\"12345.60\"}},\
             \"voltage_l1\":{{\"raw\":null,\"reason\":\"nan\",\"unit\":\"V\",\"value\":null}}}},\"verdict\":\"suspect\"}}",
            sealed.hash,
            "0".repeat(64)
        );
        assert_eq!(line, expected);
    }
}
