//! What is wrong with a configuration, where, and what to do about it. Knows no key and no rule.

use std::{cell::RefCell, collections::BTreeMap, fmt};

use serde::Serialize;

use crate::model::printable_line;

/// Faults (and warnings) that are named one by one: nobody reads more, and a file may have a million.
const MAX_NAMED: usize = 200;
/// Characters of a place or of a message that are shown: both may hold what was typed, of any length.
const MAX_SHOWN_CHARS: usize = 400;

/// One mistake, or (as a warning) one thing that may be meant so and is worth a look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file it is in, or `environment`.
    pub file: String,
    /// Where in it: `meter[3] (E-0101).bus`, `row 7 (E-0107), column profile`, `line 4, column 9`, or the name
    /// of the variable. Entries count from 1, and so do rows, the header being the first.
    pub place: String,
    /// What was seen and what was expected.
    pub message: String,
    /// What can be done.
    pub hint: Option<String>,
}

impl Fault {
    /// The same, safe to show: nothing in it commands a terminal, and no part is endless.
    pub(super) fn shown(self) -> Fault {
        Fault {
            file: shown(&self.file),
            place: shown(&self.place),
            message: shown(&self.message),
            hint: self.hint.as_deref().map(shown),
        }
    }
}

fn shown(text: &str) -> String {
    let text = printable_line(text);
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into_owned(),
    }
}

/// The first of many, and how many more there are.
#[derive(Debug, Default)]
struct Named {
    list: Vec<Fault>,
    more: usize,
}

impl Named {
    fn add(&mut self, fault: Fault) {
        if self.list.len() < MAX_NAMED {
            self.list.push(fault.shown());
        } else {
            self.more += 1;
        }
    }

    fn finish(mut self) -> Vec<Fault> {
        if let (more @ 1.., Some(last)) = (self.more, self.list.last()) {
            let message = format!("and {more} more like these");
            self.list.push(Fault { file: last.file.clone(), place: String::new(), message, hint: None });
        }
        self.list
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// The faults and warnings found so far, and which keys the environment has replaced.
#[derive(Debug, Default)]
pub(super) struct Findings {
    faults: RefCell<Named>,
    warnings: RefCell<Named>,
    overrides: BTreeMap<String, String>,
}

impl Findings {
    /// Begins with these overrides (key path → name of the variable that set it) and faults.
    pub(super) fn new(overrides: BTreeMap<String, String>, faults: Vec<Fault>) -> Findings {
        let findings = Findings { overrides, ..Findings::default() };
        findings.extend(faults);
        findings
    }

    /// The variable that set this key, if one did.
    pub(super) fn variable(&self, key_path: &str) -> Option<&String> {
        self.overrides.get(key_path)
    }

    pub(super) fn add(&self, fault: Fault) {
        self.faults.borrow_mut().add(fault);
    }

    pub(super) fn extend(&self, faults: impl IntoIterator<Item = Fault>) {
        faults.into_iter().for_each(|fault| self.add(fault));
    }

    /// Whether a further fault would only be counted: what its hint would be need not be found out.
    pub(super) fn is_full(&self) -> bool {
        self.faults.borrow().list.len() >= MAX_NAMED
    }

    pub(super) fn warn(&self, warning: Fault) {
        self.warnings.borrow_mut().add(warning);
    }

    /// Faults and warnings.
    pub(super) fn into_parts(self) -> (Vec<Fault>, Vec<Fault>) {
        (self.faults.into_inner().finish(), self.warnings.into_inner().finish())
    }
}

/// Longest word that is compared with what may have been meant: no key and no name is longer.
const MAX_WORD_CHARS: usize = 64;

/// From this length on a part of a name says which name was meant.
const PART_CHARS: usize = 4;

/// The candidate that was probably meant, if one is near enough to be worth a question.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    if length > MAX_WORD_CHARS {
        return None;
    }
    let word = word.to_lowercase();
    // Two slips in a short word, more in a long one; one in the shortest.
    let limit = if length <= 3 { 1 } else { (length / 3).max(2) };
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let spelled = candidates
        .iter()
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate);
    // `interval` for interval_secs, `baudrate` for baud, `sdm630` for eastron-sdm630, `n` for none: if it is only one.
    let part = |candidate: &&str| {
        let candidate = candidate.to_lowercase();
        candidate.starts_with(&word)
            || (length >= PART_CHARS && candidate.contains(&word))
            || (candidate.len() >= PART_CHARS && word.starts_with(&candidate))
    };
    let mut parts = candidates.iter().copied().filter(part);
    spelled.or_else(|| parts.next().filter(|_| parts.next().is_none()))
}

/// "did you mean", as a hint.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, candidates).map(|meant| format!("did you mean `{meant}`?"))
}

/// Insertions, deletions, replacements and swaps of neighbours that turn `a` into `b` (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    /// Of a cell outside the table: never the least.
    const FAR: usize = usize::MAX / 2;
    let at = |row: &[usize], index: Option<usize>| index.and_then(|i| row.get(i)).copied().unwrap_or(FAR);
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    let mut last_from = None;
    for (i, from) in a.chars().enumerate() {
        let mut left = i + 1;
        let mut next = vec![left];
        let mut last_to = None;
        for (j, &to) in b.iter().enumerate() {
            let replaced = at(&row, Some(j)) + usize::from(from != to);
            let swapped = if last_from == Some(to) && last_to == Some(from) {
                at(&before, j.checked_sub(1)) + 1
            } else {
                FAR
            };
            left = (left + 1).min(at(&row, Some(j + 1)) + 1).min(replaced).min(swapped);
            next.push(left);
            last_to = Some(to);
        }
        before = std::mem::replace(&mut row, next);
        last_from = Some(from);
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let keys = ["baud", "bus", "parity", "stop_bits"];
        assert_eq!(nearest("buad", keys), Some("baud"));
        assert_eq!(nearest("Parity", keys), Some("parity"));
        assert_eq!(nearest("stopbits", keys), Some("stop_bits"));
        assert_eq!(nearest("colour", keys), None);
        assert_eq!(nearest("baudrate", keys), Some("baud"));
        assert_eq!(nearest("interval", ["id", "interval_secs"]), Some("interval_secs"));
        assert_eq!(nearest("SDM630", ["eastron-sdm120", "eastron-sdm630"]), Some("eastron-sdm630"));
        assert_eq!(nearest("eastron", ["eastron-sdm120", "eastron-sdm630"]), None, "it may be either");
        assert_eq!(nearest("N", ["none", "even", "odd"]), Some("none"));
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("ulr", "url"), 1);
    }

    #[test]
    fn a_fault_reads_from_file_to_hint() {
        let fault = Fault {
            file: "gateway.toml".into(),
            place: "bus[1] (north).baud".into(),
            message: "50 is out of range".into(),
            hint: Some("try 9600".into()),
        };
        assert_eq!(
            fault.to_string(),
            "gateway.toml: bus[1] (north).baud: 50 is out of range\n  hint: try 9600"
        );
    }
}
