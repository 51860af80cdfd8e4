//! The one door to the `config` crate: a TOML text and the environment, merged into plain JSON values.
//!
//! Knows no key but the two lists that variables cannot reach into.

use std::collections::BTreeMap;

use config::{Config, ConfigError, Environment, File, FileFormat, Source, ValueKind};
use serde_json::{Map, Value};

use super::Fault;
use crate::profile::{SyntaxError, syntax_errors};

/// Of variables that override a key: `METER_GATEWAY__MQTT__URL`. `METER_GATEWAY_CONFIG` is not one of them.
const PREFIX: &str = "METER_GATEWAY";
/// Between prefix, section and key. Keys themselves hold single underscores.
const SEPARATOR: &str = "__";
/// Lists: which entry is meant cannot be said in a variable.
const LISTS: [&str; 2] = ["bus", "meter"];

/// In a quoted key of the file the crate takes these for a path: `"bus[4000000000]" = 1` would make a list that long.
const PATH_SIGNS: [char; 3] = ['.', '[', ']'];

/// What a text and the environment say together.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub root: Map<String, Value>,
    /// Key path → name of the variable that set it.
    pub overrides: BTreeMap<String, String>,
    /// Variables that are none of our keys' names.
    pub faults: Vec<Fault>,
}

/// Merges them; a text that is not TOML is a single fault with its line.
pub(super) fn merge(
    text: &str,
    file: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Merged, Vec<Fault>> {
    let mut merged = Merged::default();
    let mut variables = config::Map::new();
    for (name, value) in env {
        let Some(path) = key_path(&name) else { continue };
        if value.is_empty() {
            continue; // set to nothing counts as not set
        }
        if let Some((message, hint)) = unusable(&path) {
            let file = "environment".into();
            merged.faults.push(Fault { file, place: name, message, hint: Some(hint) });
        } else {
            merged.overrides.insert(path, name.clone());
            variables.insert(name, value);
        }
    }
    let environment = Environment::with_prefix(PREFIX)
        .prefix_separator(SEPARATOR)
        .separator(SEPARATOR)
        .source(Some(variables));
    let typed = File::from_str(text, FileFormat::Toml);
    let keys = typed.collect().map_err(|error| syntax(text, file, &error))?;
    if let Some(key) = keys.keys().find(|key| key.contains(PATH_SIGNS)) {
        return Err(vec![Fault {
            file: file.to_owned(),
            place: key.clone(),
            message: "this names no key".into(),
            hint: Some("sections are written as [section], their keys below".into()),
        }]);
    }
    let built = Config::builder()
        .add_source(typed)
        .add_source(environment)
        .build()
        .map_err(|error| syntax(text, file, &error))?;
    if let Value::Object(root) = plain(built.cache.kind) {
        merged.root = root;
    }
    Ok(merged)
}

/// `METER_GATEWAY__MQTT__URL` → `mqtt.url`; `None` for variables that are not ours.
fn key_path(name: &str) -> Option<String> {
    let lower = name.to_lowercase();
    let rest = lower.strip_prefix(&PREFIX.to_lowercase())?.strip_prefix(SEPARATOR)?;
    Some(rest.replace(SEPARATOR, "."))
}

fn unusable(path: &str) -> Option<(String, String)> {
    let first = path.split('.').next().unwrap_or_default();
    if LISTS.contains(&first) {
        return Some((
            format!("a variable cannot say which [[{first}]] it means"),
            "change it in the file".into(),
        ));
    }
    let legible = path.split('.').all(|key| {
        key.starts_with(|c: char| c.is_ascii_lowercase())
            && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    });
    (!legible).then(|| {
        (
            "this names no key".into(),
            format!("the form is {PREFIX}{SEPARATOR}SECTION{SEPARATOR}KEY, e.g. METER_GATEWAY__MQTT__URL"),
        )
    })
}

/// Every place that is not TOML, and that nothing else was checked.
fn syntax(text: &str, file: &str, error: &ConfigError) -> Vec<Fault> {
    const REST: &str = "nothing else was checked, because the rest depends on it";
    let mut faults: Vec<Fault> = syntax_errors(text)
        .into_iter()
        .map(|SyntaxError { place, message, hint }| Fault { file: file.to_owned(), place, message, hint })
        .collect();
    match faults.last_mut() {
        Some(last) => {
            last.hint = Some(last.hint.take().map_or(REST.into(), |hint| format!("{hint}; {REST}")));
        }
        None => faults.push(in_its_own_words(file, error, REST)),
    }
    faults
}

/// What the crate says, with the line as the place.
fn in_its_own_words(file: &str, error: &ConfigError, hint: &str) -> Fault {
    let cause = match error {
        ConfigError::FileParse { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    // "TOML parse error at line 3, column 5", an excerpt, then what is wrong.
    let place = cause
        .lines()
        .next()
        .and_then(|first| first.split_once(" at "))
        .map(|(_, place)| place.trim_end_matches(':').to_owned())
        .unwrap_or_default();
    let said = cause
        .lines()
        .skip(1)
        .filter(|line| !line.contains('|') && !line.trim().is_empty())
        .collect::<Vec<_>>()
        .join(", ");
    let message = if said.is_empty() { cause } else { said };
    Fault {
        file: file.to_owned(),
        place,
        message: format!("this is not TOML: {message}"),
        hint: Some(hint.to_owned()),
    }
}

fn plain(kind: ValueKind) -> Value {
    match kind {
        ValueKind::Nil => Value::Null,
        ValueKind::Boolean(value) => value.into(),
        ValueKind::I64(value) => value.into(),
        ValueKind::U64(value) => value.into(),
        // TOML has none beyond 64 bits; the text keeps the digits for the message.
        ValueKind::I128(value) => value.to_string().into(),
        ValueKind::U128(value) => value.to_string().into(),
        ValueKind::Float(value) => value.into(),
        ValueKind::String(value) => value.into(),
        ValueKind::Array(values) => values.into_iter().map(|value| plain(value.kind)).collect(),
        ValueKind::Table(table) => {
            Value::Object(table.into_iter().map(|(key, value)| (key, plain(value.kind))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    /// The crate would make a list of four thousand million entries for the first of these, and run out of memory.
    #[test]
    fn a_quoted_key_is_no_path() {
        for key in ["bus[4000000000]", "bus[-4000000000]", "mqtt.url"] {
            let fault = merge(&format!("[site]\nid = \"a\"\n[\"{key}\"]\nx = 1"), "f", env(&[]))
                .unwrap_err()
                .remove(0);
            assert_eq!((fault.place.as_str(), fault.message.as_str()), (key, "this names no key"));
        }
        assert!(merge("[site]\n\"a.b[4]\" = 1", "f", env(&[])).is_ok(), "below a section it is a plain name");
    }

    #[test]
    fn a_variable_overrides_one_key_in_any_case_and_others_are_left_alone() {
        let merged = merge(
            "[mqtt]\nurl = \"a\"\nclient_id = \"c\"",
            "f",
            env(&[
                ("METER_GATEWAY__mqtt__Client_Id", "007"),
                ("METER_GATEWAY_CONFIG", "/elsewhere"),
                ("METER_GATEWAY__MQTT__URL", ""),
                ("PATH", "/bin"),
            ]),
        )
        .unwrap();
        assert_eq!(Value::Object(merged.root), serde_json::json!({"mqtt": {"url": "a", "client_id": "007"}}));
        assert_eq!(merged.overrides["mqtt.client_id"], "METER_GATEWAY__mqtt__Client_Id");
        assert!(merged.faults.is_empty());
    }

    #[test]
    fn lists_cannot_be_reached_by_a_variable() {
        let merged =
            merge("", "f", env(&[("METER_GATEWAY__BUS__0__BAUD", "1"), ("METER_GATEWAY__", "1")])).unwrap();
        assert_eq!(merged.faults.len(), 2);
        assert!(merged.root.is_empty());
    }

    #[test]
    fn a_slip_of_syntax_names_its_line() {
        let fault = merge("[site]\nid = \n", "gateway.toml", []).unwrap_err().remove(0);
        assert!(fault.place.starts_with("line 2"), "{fault}");
        let fault = merge("[site]\nid = \"a\"\nid = \"b\"", "gateway.toml", []).unwrap_err().remove(0);
        assert!(fault.place.starts_with("line 3"), "{fault}");
        assert!(fault.message.contains("duplicate"), "{fault}");
    }
}
