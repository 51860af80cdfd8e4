//! One table of keys (a `[section]`, a `[[bus]]`, a row of the meters file): takes values out of it and notes
//! what is wrong with them and where. Knows types and ranges, but no key's meaning.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr};

use serde_json::{Map, Value};

use super::{
    Fault,
    fault::{Findings, did_you_mean},
};
use crate::model::Dec;

/// Where a table stands.
#[derive(Debug, Clone)]
pub(super) enum Place<'a> {
    /// The top of the file.
    Root,
    /// `[site]`
    Table(&'static str),
    /// `[[meter]]`, counted from 1.
    Entry(&'static str, usize),
    /// A row of a spreadsheet with these columns; the header is row 1.
    Row(usize, &'a BTreeSet<String>),
}

/// A table whose keys are known.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    file: &'a str,
    place: Place<'a>,
    map: &'a Map<String, Value>,
    findings: &'a Findings,
}

impl<'a> Section<'a> {
    /// Takes the table and notes every key that is not one of `known`.
    pub(super) fn new(
        file: &'a str,
        place: Place<'a>,
        map: &'a Map<String, Value>,
        known: &[&str],
        findings: &'a Findings,
    ) -> Section<'a> {
        let section = Section { file, place, map, findings };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let hint = if key == "password" && known.contains(&"password_file") {
                "put it into a file of its own and name that in password_file".into()
            } else {
                did_you_mean(key, known.iter().copied())
                    .unwrap_or_else(|| format!("known here: {}", known.join(", ")))
            };
            section.fault(key, "unknown key", Some(hint));
        }
        section
    }

    /// A table below this one. A missing one is a fault with this hint, if there is one.
    pub(super) fn table(
        &self,
        name: &'static str,
        known: &[&str],
        needed: Option<&str>,
    ) -> Option<Section<'a>> {
        match (self.map.get(name), needed) {
            (Some(Value::Object(map)), _) => {
                Some(Section::new(self.file, Place::Table(name), map, known, self.findings))
            }
            (Some(other), _) => {
                let message = format!("{} stands where a table was expected", seen(other));
                self.fault(name, message, Some(format!("begin it with [{name}]")));
                None
            }
            (None, Some(hint)) => {
                self.fault(name, "missing", Some(hint.to_owned()));
                None
            }
            (None, None) => None,
        }
    }

    /// The tables of a list below this one.
    pub(super) fn list(&self, name: &'static str, known: &[&str]) -> Vec<Section<'a>> {
        let entries = match self.map.get(name) {
            None => return Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(other) => {
                let message = format!("{} stands where a list of tables was expected", seen(other));
                self.fault(name, message, Some(format!("begin each with [[{name}]], in double brackets")));
                return Vec::new();
            }
        };
        let mut sections = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            if let Value::Object(map) = entry {
                let place = Place::Entry(name, index + 1);
                sections.push(Section::new(self.file, place, map, known, self.findings));
            } else {
                let message = format!("entry {} is {}, expected a table", index + 1, seen(entry));
                self.fault(name, message, Some(format!("begin each with [[{name}]]")));
            }
        }
        sections
    }

    /// Notes a fault at a key.
    pub(super) fn fault(&self, key: &str, message: impl Into<String>, hint: Option<String>) {
        let (file, place) = self.place(key);
        self.findings.add(Fault { file, place, message: message.into(), hint });
    }

    /// Notes at a key what may be meant so and is worth a look.
    pub(super) fn warn(&self, key: &str, message: impl Into<String>, hint: Option<String>) {
        let (file, place) = self.place(key);
        self.findings.warn(Fault { file, place, message: message.into(), hint });
    }

    /// File and place of a key, as they stand in a fault.
    pub(super) fn place(&self, key: &str) -> (String, String) {
        if let Some(variable) = self.variable(key) {
            return ("environment".into(), variable.clone());
        }
        let id = match self.map.get("id").and_then(Value::as_str) {
            Some(id) => format!(" ({id})"),
            None => String::new(),
        };
        let place = match &self.place {
            Place::Root => key.to_owned(),
            Place::Table(name) => format!("{name}.{key}"),
            Place::Entry(name, number) => format!("{name}[{number}]{id}.{key}"),
            Place::Row(number, _) => format!("row {number}{id}, column {key}"),
        };
        (self.file.to_owned(), place)
    }

    /// The table's own place, without a key.
    pub(super) fn whereabouts(&self) -> String {
        let (_, place) = self.place("id");
        let place = place.strip_suffix(".id").or_else(|| place.strip_suffix(", column id")).unwrap_or(&place);
        match &self.place {
            Place::Row(..) => format!("{} {place}", self.file_name()),
            _ => place.to_owned(),
        }
    }

    fn file_name(&self) -> &str {
        self.file.rsplit(['/', '\\']).next().unwrap_or(self.file)
    }

    fn variable(&self, key: &str) -> Option<&String> {
        match &self.place {
            Place::Root => self.findings.variable(key),
            Place::Table(name) => self.findings.variable(&format!("{name}.{key}")),
            Place::Entry(..) | Place::Row(..) => None,
        }
    }

    /// Whether every value here is text for want of types: a cell, a variable.
    fn untyped(&self, key: &str) -> bool {
        matches!(self.place, Place::Row(..)) || self.variable(key).is_some()
    }

    /// Whether the key is there at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Notes a fault when the key is missing. A column that is missing as a whole has been noted already.
    pub(super) fn require(&self, key: &str, hint: &str) {
        let noted = matches!(&self.place, Place::Row(_, columns) if !columns.contains(key));
        if !noted && !self.has(key) {
            self.fault(key, "missing", Some(hint.to_owned()));
        }
    }

    /// Text that is not empty and prints on one line.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.map.get(key)? {
            Value::String(text) if text.trim().is_empty() => {
                self.fault(key, "empty", Some("leave the key out if there is nothing to say".into()));
                None
            }
            Value::String(text) if text.chars().any(char::is_control) => {
                self.fault(key, "holds a control character, expected plain text on one line", None);
                None
            }
            Value::String(text) => Some(text),
            other => {
                let hint = matches!(other, Value::Number(_) | Value::Bool(_))
                    .then(|| format!("put it in quotes: {key} = \"{other}\""));
                self.fault(key, format!("{} stands where text was expected", seen(other)), hint);
                None
            }
        }
    }

    /// Text or a whole number, as text.
    pub(super) fn text_or_number(&self, key: &str) -> Option<String> {
        match self.map.get(key)? {
            Value::Number(number) if number.is_i64() => Some(number.to_string()),
            _ => self.text(key).map(str::to_owned),
        }
    }

    /// Text that parses; the parser's error is the message.
    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&self, key: &str) -> Option<T> {
        match self.text(key)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault(key, T::Err::to_string(&error), None);
                None
            }
        }
    }

    /// A whole number within limits.
    pub(super) fn integer<T: TryFrom<i64>>(
        &self,
        key: &str,
        range: RangeInclusive<i64>,
        unit: &str,
    ) -> Option<T> {
        let expected = format!("expected a whole number from {} to {}{unit}", range.start(), range.end());
        let value = self.map.get(key)?;
        let number = match value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) if self.untyped(key) => text.trim().parse().ok(),
            _ => None,
        };
        let found = number.filter(|n| range.contains(n)).and_then(|n| T::try_from(n).ok());
        if found.is_none() {
            let quoted = value.as_str().filter(|text| !self.untyped(key) && text.parse::<i64>().is_ok());
            let hint = quoted.map(|text| format!("without quotes: {key} = {text}"));
            let nearest = number.map(|n| {
                format!("the nearest that is allowed: {key} = {}", n.clamp(*range.start(), *range.end()))
            });
            self.fault(key, format!("{}, {expected}", seen(value)), hint.or(nearest));
        }
        found
    }

    /// An exact decimal above zero.
    pub(super) fn decimal(&self, key: &str) -> Option<Dec> {
        let value = self.map.get(key)?;
        let text = match value {
            Value::Number(number) if number.is_i64() => number.to_string(),
            Value::Number(number) => {
                let message = format!("the number {number} is not exact, expected a decimal in quotes");
                self.fault(key, message, Some(format!("put it in quotes: {key} = \"{number}\"")));
                return None;
            }
            _ => self.text(key)?.to_owned(),
        };
        match text.parse::<Dec>() {
            Ok(number) if !number.is_negative() && !number.is_zero() => Some(number),
            Ok(number) => {
                self.fault(key, format!("{number}, expected a decimal above zero"), None);
                None
            }
            Err(error) => {
                self.fault(key, error.to_string(), None);
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let expected: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.fault(
                key,
                format!("{text:?}, expected {}", expected.join(" or ")),
                did_you_mean(text, words.iter().map(|(word, _)| *word)),
            );
        }
        found
    }
}

/// A value as a message names it.
fn seen(value: &Value) -> String {
    match value {
        Value::Null => "a number that is none".into(),
        Value::Bool(value) => format!("the truth value {value}"),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a table".into(),
    }
}
