//! Rows of a profile that have one name or one place.
//!
//! Looks at the rows as they are typed: those that are faulty otherwise are compared too.

use std::ops::RangeInclusive;

use toml::Value;

use super::{Kind, section::Faults};

/// Names and places that stand there twice.
pub(super) fn twice(rows: &[Value], faults: &mut Faults) {
    let rows: Vec<(usize, &str, Vec<Span>)> = (1..)
        .zip(rows)
        .map(|(number, row)| {
            (number, row.get("name").and_then(Value::as_str).unwrap_or_default(), spans(row))
        })
        .collect();
    for (at, (number, name, spans)) in rows.iter().enumerate() {
        for (earlier, other_name, other_spans) in rows.iter().take(at) {
            if name == other_name && !name.is_empty() {
                let message = format!("{name} is already point[{earlier}]");
                faults.add(&format!("point[{number}].name"), &message, None);
            }
            let shared = |here: &Span| other_spans.iter().find(|there| here.overlaps(there)).cloned();
            let Some((here, there)) = spans.iter().find_map(|here| Some((here, shared(here)?))) else {
                continue;
            };
            let message = format!(
                "{name} and {other_name} (point[{earlier}]) share {} of {}: {}, {}",
                here.unit,
                here.whole,
                here.range(),
                there.range(),
            );
            faults.add(
                &format!("point[{number}].{}", here.key),
                &message,
                Some("one of the two rows is mistyped"),
            );
        }
    }
}

/// What a row takes of a table, of an identifier's data, or of a block.
#[derive(Clone)]
struct Span {
    key: &'static str,
    unit: &'static str,
    whole: String,
    first: i64,
    count: i64,
}

impl Span {
    fn overlaps(&self, other: &Span) -> bool {
        self.whole == other.whole
            && self.first < other.first + other.count
            && other.first < self.first + self.count
    }

    fn range(&self) -> String {
        match self.unit {
            "words" => format!("{} words from {:#06X}", self.count, self.first),
            _ => format!("{} bytes from {}", self.count, self.first),
        }
    }
}

fn spans(row: &Value) -> Vec<Span> {
    let text = |key: &str| row.get(key).and_then(Value::as_str);
    let whole = |key: &str, range: RangeInclusive<i64>| {
        row.get(key).and_then(Value::as_integer).filter(|n| range.contains(n))
    };
    let Some(kind) = row.get("kind").and_then(|kind| kind.clone().try_into::<Kind>().ok()) else {
        return Vec::new();
    };
    let words = text("table").zip(whole("address", 0..=0xFFFF)).map(|(table, first)| Span {
        key: "address",
        unit: "words",
        whole: format!("one table, {table}"),
        first,
        count: kind.words().into(),
    });
    let bytes = |key, identifier: &str, first| Span {
        key,
        unit: "bytes",
        whole: identifier.to_uppercase(),
        first,
        count: kind.bytes().into(),
    };
    let alone = text("di").map(|identifier| bytes("di", identifier, 0));
    let block = text("block")
        .zip(whole("offset", 0..=0xFF))
        .map(|(identifier, offset)| bytes("offset", identifier, offset));
    words.into_iter().chain(alone).chain(block).collect()
}
