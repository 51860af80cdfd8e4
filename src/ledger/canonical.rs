//! Canonical JSON (RFC 8785) of the values a record may hold: no floats, integers a double keeps exactly.
//!
//! Knows nothing of records: which fields there are and what is hashed is `chain.rs`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

/// 2^53 - 1: beyond it a reader that keeps numbers as doubles would see another number (RFC 8785, 3.2.2.3).
pub const MAX_INTEGER: u64 = 9_007_199_254_740_991;

/// Why a value has no canonical form here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CanonicalError {
    /// Floats are not exact, so they are never written.
    #[error("{0} is a float; expected a string or an integer")]
    Float(String),
    /// Not exact as a double.
    #[error("{0} is beyond 2^53 - 1; expected a string")]
    TooLarge(String),
}

/// Appends the canonical form of `value` to `out`.
pub fn write(out: &mut Vec<u8>, value: &Value) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => {
            let Some(size) = number.as_i64().map(i64::unsigned_abs).or_else(|| number.as_u64()) else {
                return Err(CanonicalError::Float(number.to_string()));
            };
            if size > MAX_INTEGER {
                return Err(CanonicalError::TooLarge(number.to_string()));
            }
            out.extend_from_slice(number.to_string().as_bytes());
        }
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(out, item)?;
            }
            out.push(b']');
        }
        Value::Object(fields) => write_object(out, fields)?,
    }
    Ok(())
}

/// Appends the canonical form of an object.
pub fn write_object(out: &mut Vec<u8>, fields: &Map<String, Value>) -> Result<(), CanonicalError> {
    write_fields(out, fields.iter().map(|(name, value)| (name.as_str(), value)))
}

/// Appends the canonical form of an object of these fields, whose names are distinct.
pub fn write_fields<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a str, &'a Value)>,
) -> Result<(), CanonicalError> {
    write_fields_around(out, fields, "").map(drop)
}

/// The same; returns where the first field behind the name `left_out` begins: that one would stand before it.
pub fn write_fields_around<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a str, &'a Value)>,
    left_out: &str,
) -> Result<usize, CanonicalError> {
    let mut sorted: Vec<(&str, &Value)> = fields.collect();
    sorted.sort_by(|(a, _), (b, _)| by_code_unit(a, b));
    out.push(b'{');
    let mut place = None;
    for (i, (name, value)) in sorted.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        if by_code_unit(name, left_out) != Ordering::Less {
            place.get_or_insert(out.len());
        }
        write_string(out, name);
        out.push(b':');
        write(out, value)?;
    }
    let place = place.unwrap_or(out.len());
    out.push(b'}');
    Ok(place)
}

/// UTF-16 code units, not bytes: they differ for what lies beyond the basic plane, and only there.
fn by_code_unit(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() { a.cmp(b) } else { a.encode_utf16().cmp(b.encode_utf16()) }
}

/// Appends a string with its quotes and escapes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    for run in text.as_bytes().split_inclusive(is_escaped) {
        let Some((last, plain)) = run.split_last().filter(|(last, _)| is_escaped(last)) else {
            out.extend_from_slice(run);
            continue;
        };
        out.extend_from_slice(plain);
        match last {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            byte => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
    }
    out.push(b'"');
}

fn is_escaped(byte: &u8) -> bool {
    *byte < 0x20 || matches!(byte, b'"' | b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(value: &Value) -> Result<String, CanonicalError> {
        let mut out = Vec::new();
        write(&mut out, value)?;
        Ok(String::from_utf8(out).unwrap())
    }

    /// The keys of RFC 8785, 3.2.3. If this fails, do not change the test: kept hashes would no longer match.
    #[test]
    fn golden_order_and_escapes() {
        let value = json!({"\u{20ac}": "Euro Sign", "\r": "Carriage Return", "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
            "1": "One", "\u{1f600}": "Emoji: Grinning Face", "\u{80}": "Control", "\u{f6}": "Latin Small Letter O With Diaeresis"});
        assert_eq!(
            text(&value).unwrap(),
            "{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u{80}\":\"Control\",\"\u{f6}\":\"Latin Small Letter O With Diaeresis\",\
             \"\u{20ac}\":\"Euro Sign\",\"\u{1f600}\":\"Emoji: Grinning Face\",\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}"
        );
        let value =
            json!({"b": [1, -2, null, true, false, {}], "a": "\u{0}\u{8}\t\n\u{c}\r\u{1f}\"\\/é\u{7f}"});
        assert_eq!(
            text(&value).unwrap(),
            "{\"a\":\"\\u0000\\b\\t\\n\\f\\r\\u001f\\\"\\\\/é\u{7f}\",\"b\":[1,-2,null,true,false,{}]}"
        );
    }

    #[test]
    fn numbers_that_are_not_exact_are_refused() {
        assert_eq!(text(&json!(9_007_199_254_740_991_u64)).unwrap(), "9007199254740991");
        assert_eq!(text(&json!(-9_007_199_254_740_991_i64)).unwrap(), "-9007199254740991");
        assert!(matches!(text(&json!(9_007_199_254_740_992_u64)), Err(CanonicalError::TooLarge(_))));
        assert!(matches!(text(&json!(i64::MIN)), Err(CanonicalError::TooLarge(_))));
        assert!(matches!(text(&json!({"a": [1.5]})), Err(CanonicalError::Float(_))));
        assert!(matches!(text(&serde_json::from_str("-0").unwrap()), Err(CanonicalError::Float(_))));
    }
}
