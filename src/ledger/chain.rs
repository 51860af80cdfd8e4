//! The chain: how a draft becomes a line, and how a line proves itself and its place.
//!
//! Pure: bytes in, bytes out. Where lines are kept is `segments.rs`.

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::{LedgerError, canonical, reading_line};
use crate::model::{Draft, Origin, Reading, Seq, rfc3339};

/// Longest record in bytes. A reading of 30 points is about 4 KiB; a message of records must fit a broker's limit.
pub const MAX_LINE: usize = 64 * 1024;

/// Fields that are the ledger's own.
const RESERVED: [&str; 6] = ["seq", "type", "recorded_at", "clock", "prev", "hash"];

/// What the index wants to know of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its `type`.
    pub kind: String,
    /// Its `recorded_at` in ms since 1970.
    pub recorded_ms: i64,
    /// For readings only.
    pub reading: Option<ReadingFacts>,
}

/// What the index wants to know of a reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadingFacts {
    /// The metered place.
    pub meter: String,
    /// Its slot in ms since 1970.
    pub at_ms: i64,
    /// Its `origin` is `missing`.
    pub missing: bool,
}

/// A draft that got its place.
#[derive(Debug, Clone)]
pub struct Sealed {
    /// The line without its line feed.
    pub bytes: Bytes,
    /// Its hash.
    pub hash: String,
    /// For the index.
    pub facts: Facts,
}

/// A line that proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Its position.
    pub seq: Seq,
    /// The hash it says its predecessor has.
    pub prev: String,
    /// Its own.
    pub hash: String,
    /// For the index.
    pub facts: Facts,
}

/// Gives `draft` the position `seq` behind the record whose hash is `prev`.
pub fn seal(draft: &Draft, seq: Seq, prev: &str) -> Result<Sealed, LedgerError> {
    let mut bytes = Vec::with_capacity(1536);
    let refused = |error: canonical::CanonicalError| LedgerError::Refused(error.to_string());
    let (place, facts) = match &draft.reading {
        Some(reading) => {
            let place = reading_line::write(&mut bytes, draft, reading, seq, prev).map_err(refused)?;
            (place, facts_of(draft, reading))
        }
        None => write_fields(&mut bytes, draft, seq, prev)?,
    };
    let hash = sha256_hex(&bytes);
    let field = HASH_FIELD.len() + hash.len() + 2;
    if bytes.len() + field > MAX_LINE {
        return Err(LedgerError::Refused(format!(
            "it is {} bytes long; expected at most {MAX_LINE}",
            bytes.len() + field
        )));
    }
    let (before, behind) = bytes.split_at(place);
    let line = [before, HASH_FIELD, hash.as_bytes(), b"\",", behind].concat();
    Ok(Sealed { bytes: line.into(), hash, facts })
}

/// Any record's line without its hash, by way of its fields. Returns where the hash belongs.
fn write_fields(
    bytes: &mut Vec<u8>,
    draft: &Draft,
    seq: Seq,
    prev: &str,
) -> Result<(usize, Facts), LedgerError> {
    if let Some(name) = RESERVED.iter().find(|name| draft.fields.contains_key(**name)) {
        return Err(LedgerError::Refused(format!("its field `{name}` is the ledger's own")));
    }
    let own = [
        ("seq", Value::from(seq)),
        ("type", serde_json::to_value(draft.kind).unwrap_or_default()),
        ("recorded_at", rfc3339(draft.recorded_at).into()),
        ("clock", serde_json::to_value(draft.clock).unwrap_or_default()),
        ("prev", prev.into()),
    ];
    let given = draft.fields.iter().map(|(name, value)| (name.as_str(), value));
    let fields = given.chain(own.iter().map(|(name, value)| (*name, value)));
    let place = canonical::write_fields_around(bytes, fields.clone(), "hash")
        .map_err(|error| LedgerError::Refused(error.to_string()))?;
    Ok((place, facts(|wanted| fields.clone().find(|(name, _)| *name == wanted)?.1.as_str())))
}

/// What stands before a hash in its line; behind it come a quote and a comma, because `prev` follows.
const HASH_FIELD: &[u8] = b"\"hash\":\"";

/// Checks that a line (without its line feed) is canonical and has the hash it says it has.
pub fn verify_line(bytes: &[u8]) -> Result<Verified, String> {
    if bytes.len() > MAX_LINE {
        return Err(format!("longer than {MAX_LINE} bytes"));
    }
    let mut record = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(record)) => record,
        Ok(_) => return Err("not a JSON object".into()),
        Err(error) => return Err(format!("not JSON: {error}")),
    };
    let mut again = Vec::with_capacity(bytes.len());
    canonical::write_object(&mut again, &record).map_err(|error| error.to_string())?;
    if again != bytes {
        return Err("not canonical JSON".into());
    }
    let Some(Value::String(hash)) = record.remove("hash") else {
        return Err("no hash".into());
    };
    again.clear();
    canonical::write_object(&mut again, &record).map_err(|error| error.to_string())?;
    let computed = sha256_hex(&again);
    if computed != hash {
        return Err(format!("hash is {hash}, its content has {computed}"));
    }
    let seq = record.get("seq").and_then(Value::as_u64).filter(|seq| *seq > 0).ok_or("no seq")?;
    let prev = record.get("prev").and_then(Value::as_str).ok_or("no prev")?.to_owned();
    let facts = facts(|name| record.get(name)?.as_str());
    Ok(Verified { seq, prev, hash, facts })
}

/// Lower-case hex SHA-256.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
    let mut text = String::with_capacity(bytes.len() * 2);
    text.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
    text
}

fn facts_of(draft: &Draft, reading: &Reading) -> Facts {
    let facts = ReadingFacts {
        meter: reading.meter.as_str().to_owned(),
        at_ms: reading.scheduled_at.timestamp_millis(),
        missing: reading.origin == Origin::Missing,
    };
    Facts {
        kind: "reading".to_owned(),
        recorded_ms: draft.recorded_at.timestamp_millis(),
        reading: Some(facts),
    }
}

fn facts<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Facts {
    let text = |name: &str| text(name).unwrap_or_default();
    let kind = text("type").to_owned();
    let reading = match millis(text("scheduled_at")) {
        Some(at_ms) if kind == "reading" => Some(ReadingFacts {
            meter: text("meter").to_owned(),
            at_ms,
            missing: text("origin") == "missing",
        }),
        _ => None,
    };
    Facts { kind, recorded_ms: millis(text("recorded_at")).unwrap_or_default(), reading }
}

fn millis(text: &str) -> Option<i64> {
    chrono::DateTime::parse_from_rfc3339(text).ok().map(|at| at.timestamp_millis())
}

/// What the next line of a segment turned out to be.
#[derive(Debug)]
pub enum Step {
    /// A record that proves itself; `fault` when it does not follow what came before.
    Record {
        /// What it proved.
        verified: Verified,
        /// The chain is broken before it.
        fault: Option<String>,
    },
    /// Not a record, or one that is out of order.
    Bad(String),
}

/// Follows the chain line by line.
#[derive(Debug, Clone)]
pub struct Walk {
    /// The position the next line should have.
    pub next: Seq,
    /// The hash it should name as its predecessor; `None` when that is not known (after damage).
    pub prev: Option<String>,
    /// No line of this segment can lie beyond.
    pub last: Seq,
}

impl Walk {
    /// Judges the next line.
    pub fn step(&mut self, line: &[u8]) -> Step {
        let verified = match verify_line(line) {
            Ok(verified) => verified,
            Err(detail) => {
                self.prev = None;
                return Step::Bad(detail);
            }
        };
        let seq = verified.seq;
        if seq < self.next || seq > self.last {
            self.prev = None;
            return Step::Bad(format!("seq {seq} is out of order; expected {}", self.next));
        }
        let fault = if seq > self.next {
            Some(format!("seq {} to {} are missing before seq {seq}", self.next, seq - 1))
        } else {
            self.prev.as_ref().filter(|prev| **prev != verified.prev).map(|prev| {
                format!(
                    "seq {seq} names {} as its predecessor; the record before it has {prev}",
                    verified.prev
                )
            })
        };
        self.next = seq + 1;
        self.prev = Some(verified.hash.clone());
        Step::Record { verified, fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ClockState, GENESIS};
    use serde_json::json;

    fn draft() -> Draft {
        let Value::Object(fields) = json!({"note": "表", "n": 7}) else { unreachable!() };
        Draft::change("test", fields, "2026-11-01T00:00:00.5Z".parse().unwrap(), ClockState::Synced)
    }

    /// If this fails, do not change the test: every stored record would lose its proof.
    #[test]
    fn golden_record() {
        let sealed = seal(&draft(), 1, GENESIS).unwrap();
        let body = format!(
            "{{\"change\":\"test\",\"clock\":\"synced\",\"n\":7,\"note\":\"表\",\"prev\":\"{GENESIS}\",\"recorded_at\":\"2026-11-01T00:00:00.500Z\",\"seq\":1,\"type\":\"change\"}}"
        );
        assert_eq!(sealed.hash, sha256_hex(body.as_bytes()));
        assert_eq!(sealed.hash, "99f6378540e1a9ad42cb3a6afd18531c653a2b9c49ac7183b7a6ef00e4d8c28f");
        let line = body.replace("\"n\":7", &format!("\"hash\":\"{}\",\"n\":7", sealed.hash));
        assert_eq!(sealed.bytes, line.as_bytes());
        let verified = verify_line(&sealed.bytes).unwrap();
        assert_eq!((verified.seq, verified.prev.as_str(), &verified.hash), (1, GENESIS, &sealed.hash));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let line = seal(&draft(), 1, GENESIS).unwrap().bytes;
        for i in 0..line.len() {
            for flip in [1_u8, 0x10, 0x80] {
                let mut bad = line.to_vec();
                bad[i] ^= flip;
                assert!(verify_line(&bad).is_err(), "byte {i} ^ {flip}");
            }
        }
        assert!(verify_line(&[&line[..], b" "].concat()).is_err());
    }

    #[test]
    fn what_cannot_be_written_exactly_is_refused() {
        let mut float = draft();
        float.fields.insert("x".into(), json!(0.5));
        assert!(matches!(seal(&float, 1, GENESIS), Err(LedgerError::Refused(_))));
        let mut long = draft();
        long.fields.insert("x".into(), json!("x".repeat(MAX_LINE)));
        assert!(matches!(seal(&long, 1, GENESIS), Err(LedgerError::Refused(_))));
        let mut own = draft();
        own.fields.insert("seq".into(), json!(4));
        assert!(matches!(seal(&own, 1, GENESIS), Err(LedgerError::Refused(_))));
    }

    #[test]
    fn removed_and_reordered_lines_break_the_walk() {
        let mut prev = GENESIS.to_owned();
        let lines: Vec<Bytes> = (1..=4)
            .map(|seq| {
                let sealed = seal(&draft(), seq, &prev).unwrap();
                prev.clone_from(&sealed.hash);
                sealed.bytes
            })
            .collect();
        let faults = |order: &[usize]| -> usize {
            let mut walk = Walk { next: 1, prev: Some(GENESIS.into()), last: Seq::MAX };
            order
                .iter()
                .filter(|i| !matches!(walk.step(&lines[**i]), Step::Record { fault: None, .. }))
                .count()
        };
        assert_eq!(faults(&[0, 1, 2, 3]), 0);
        assert_eq!(faults(&[0, 2, 3]), 1);
        assert!(faults(&[0, 2, 1, 3]) >= 1);
        assert!(faults(&[1, 0, 2, 3]) >= 1);
    }
}
