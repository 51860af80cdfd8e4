//! One table of keys (a `[section]`, a `[[bus]]`, a row of the meters file): takes values out of it and notes
//! what is wrong with them and where. Knows types and ranges, but no key's meaning.

use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr};

use serde_json::{Map, Value};

use super::{
    Fault, cell,
    fault::{Findings, did_you_mean},
    number,
};
use crate::model::{Dec, first_lookalike, is_visible, plainly};

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
            let hint = if findings.is_full() {
                String::new()
            } else if key == "password" && known.contains(&"password_file") {
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
    pub(super) fn list(&self, name: &'static str, known: &[&str], most: usize) -> Vec<Section<'a>> {
        let entries = match self.map.get(name) {
            None => return Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(other) => {
                let message = format!("{} stands where a list of tables was expected", seen(other));
                self.fault(name, message, Some(format!("begin each with [[{name}]], in double brackets")));
                return Vec::new();
            }
        };
        if entries.len() > most {
            self.fault(name, format!("{} entries, expected at most {most}", entries.len()), None);
            return Vec::new();
        }
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

    /// Notes a fault at a key. Where a character of the value only looks like the right one, the hint says so.
    pub(super) fn fault(&self, key: &str, message: impl Into<String>, hint: Option<String>) {
        let (file, place) = self.place(key);
        let odd = self.map.get(key).and_then(Value::as_str).and_then(first_lookalike);
        let hints: Vec<String> = odd.into_iter().chain(hint).collect();
        let hint = (!hints.is_empty()).then(|| hints.join("; "));
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
    fn line(&self, key: &str) -> Option<&'a str> {
        match self.map.get(key)? {
            Value::String(text) if text.trim().is_empty() => {
                self.fault(key, "empty", Some("leave the key out if there is nothing to say".into()));
                None
            }
            Value::String(text) => match text.chars().find(|c| !is_visible(*c)) {
                Some(hidden) => {
                    let name = u32::from(hidden);
                    let message = format!(
                        "holds the control or invisible character U+{name:04X}, expected plain text on one line"
                    );
                    self.fault(key, message, Some("type it again instead of pasting it".into()));
                    None
                }
                None => Some(text),
            },
            other => {
                let hint = match other {
                    Value::Number(number) if number.to_string().ends_with(".0") => Some(format!(
                        "did you mean {key} = \"{}\"?",
                        number.to_string().trim_end_matches(".0")
                    )),
                    Value::Number(number) if number.is_f64() => {
                        Some(format!("put it in quotes, digit by digit as it stands: {key} = \"…\""))
                    }
                    Value::Number(_) | Value::Bool(_) => {
                        Some(format!("put it in quotes: {key} = \"{other}\""))
                    }
                    _ => None,
                };
                self.fault(key, format!("{} stands where text was expected", seen(other)), hint);
                None
            }
        }
    }

    /// A list of texts; a single text is a list with commas.
    pub(super) fn texts(&self, key: &str) -> Vec<String> {
        let list = match self.map.get(key) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(_) => {
                let text = self.text(key).unwrap_or_default();
                return text
                    .split(',')
                    .map(|part| part.trim().to_owned())
                    .filter(|part| !part.is_empty())
                    .collect();
            }
        };
        if let Some(other) = list.iter().find(|value| !value.is_string()) {
            self.fault(key, format!("{} stands where texts were expected", seen(other)), None);
        }
        list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// What people read: a name, a place. What a spreadsheet may have made of it is worth a look.
    pub(super) fn label(&self, key: &str) -> Option<&'a str> {
        let text = self.line(key)?;
        if let Some(spoiled) = self.spoiled(text) {
            self.warn(key, spoiled.message, Some(spoiled.hint));
        }
        Some(text)
    }

    /// A path: any characters.
    pub(super) fn path(&self, key: &str) -> Option<&'a str> {
        let text = self.line(key)?;
        if text.starts_with('~') || text.contains('$') {
            let message = format!("{text:?} is taken as it stands: `~` and `$` are signs of the shell");
            self.warn(key, message, Some("write the whole path".into()));
        }
        Some(text)
    }

    /// What programs compare: plain characters, and no cell that a spreadsheet has spoiled.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        let text = self.line(key)?;
        if let Some(spoiled) = self.spoiled(text).filter(|spoiled| spoiled.certain) {
            self.fault(key, spoiled.message, Some(spoiled.hint));
            return None;
        }
        if first_lookalike(text).is_some() {
            self.fault(key, format!("{text:?}"), Some(format!("write {:?}", plainly(text).trim())));
            return None;
        }
        Some(text)
    }

    /// Notes what a spreadsheet may have made of this text, where nothing else will tell.
    pub(super) fn doubt(&self, key: &str, text: &str) {
        if let Some(spoiled) = self.spoiled(text) {
            self.warn(key, spoiled.message, Some(spoiled.hint));
        }
    }

    /// Meters and buses are what people keep in spreadsheets, and copy from there.
    fn spoiled(&self, text: &str) -> Option<cell::Spoiled> {
        matches!(self.place, Place::Entry(..) | Place::Row(..)).then(|| cell::spoiled(text))?
    }

    /// What may be meant by a number that is none.
    fn number_hint(&self, text: &str, meant: Option<String>) -> Option<String> {
        let meant = meant.filter(|meant| meant != text).map(|meant| format!("did you mean `{meant}`?"));
        self.spoiled(&plainly(text)).map(|spoiled| spoiled.hint).or(meant)
    }

    /// Text that `parse` understands, or a whole number as text; else a fault that says what was expected.
    pub(super) fn parsed_number<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        expected: &str,
        hint: &str,
    ) -> Option<T> {
        let text = match self.map.get(key)? {
            Value::Number(number) if number.is_i64() => number.to_string(),
            _ => self.line(key)?.to_owned(),
        };
        let found = parse(&text);
        if found.is_none() {
            let meant = self.number_hint(&text, number::integer_meant(&text));
            self.fault(key, format!("{text:?} {expected}"), meant.or_else(|| Some(hint.to_owned())));
        }
        found
    }

    /// A text, or a whole number as text; nothing is noted where it is neither.
    pub(super) fn text_or_number(&self, key: &str) -> Option<String> {
        match self.map.get(key)? {
            Value::Number(number) if number.is_i64() => Some(number.to_string()),
            Value::String(text) => Some(text.clone()),
            _ => None,
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

    /// Whether a new name can be typed as an argument and stand alone: `-x` would be an option, `.` and `..` directories.
    pub(super) fn is_name(&self, key: &str, name: &str) -> bool {
        let good = !name.starts_with(['-', '.']);
        if !good {
            let hint = name.trim_start_matches(['-', '.']);
            let hint = (!hint.is_empty()).then(|| format!("e.g. {key} = {hint:?}"));
            self.fault(key, format!("{name:?} begins with - or ."), hint);
        }
        good
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
        let text = value.as_str().unwrap_or_default();
        let found = number.filter(|n| range.contains(n)).and_then(|n| T::try_from(n).ok());
        if found.is_none() {
            let quoted = value.as_str().filter(|text| !self.untyped(key) && text.parse::<i64>().is_ok());
            let hint = quoted.map(|text| format!("without quotes: {key} = {text}"));
            let nearest = number.map(|n| {
                format!("the nearest that is allowed: {key} = {}", n.clamp(*range.start(), *range.end()))
            });
            let text = if value.is_f64() { &value.to_string() } else { text };
            let meant = || self.number_hint(text, number::integer_meant(text.trim_end_matches(".0")));
            self.fault(key, format!("{}, {expected}", seen(value)), hint.or(nearest).or_else(meant));
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
            _ => self.line(key)?.to_owned(),
        };
        match text.parse::<Dec>() {
            Ok(number) if !number.is_negative() && !number.is_zero() => Some(number),
            Ok(number) => {
                self.fault(key, format!("{number}, expected a decimal above zero"), None);
                None
            }
            Err(error) => {
                let hint = self.number_hint(&text, number::decimal_meant(&text));
                self.fault(key, error.to_string(), hint);
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.line(key)?;
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
