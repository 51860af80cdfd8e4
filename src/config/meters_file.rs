//! The meters file: a CSV with the columns of `[[meter]]`, for sites kept in a spreadsheet. Knows rows and
//! columns, not what stands in them.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{
    Fault,
    fault::{Findings, did_you_mean},
    meters::MAX_METERS,
};
use crate::model::first_lookalike;

/// The rows of a meters file; empty cells are absent keys.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    pub columns: BTreeSet<String>,
    /// Number (the header is row 1) and cells by column.
    pub rows: Vec<(usize, Map<String, Value>)>,
}

/// Reads the text of a meters file; what is wrong with its shape goes to `findings`.
pub(super) fn sheet(text: &str, file: &str, known: &[&str], needed: &[&str], findings: &Findings) -> Sheet {
    let (text, above) = without_preamble(text);
    let fault = |place: String, message: String, hint: Option<String>| {
        findings.add(Fault { file: file.to_owned(), place, message, hint });
    };
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .delimiter(delimiter(text, known))
        .from_reader(text.as_bytes());
    let header: Vec<String> = match reader.headers() {
        Ok(header) => header.iter().map(str::to_owned).collect(),
        Err(error) => {
            fault("row 1".into(), format!("cannot read the header: {error}"), None);
            return Sheet::default();
        }
    };
    let columns: BTreeSet<String> = header.iter().cloned().collect();
    let mut seen = BTreeSet::new();
    for column in header.iter().filter(|column| !column.is_empty()) {
        let place = format!("row {}, column {column}", 1 + above);
        if !known.contains(&column.as_str()) {
            let hint = first_lookalike(column)
                .or_else(|| did_you_mean(column, known.iter().copied()))
                .unwrap_or_else(|| format!("known columns: {}", known.join(", ")));
            fault(place, "unknown column".into(), Some(hint));
        } else if !seen.insert(column) {
            fault(place, "this column stands there twice".into(), Some("keep one of them".into()));
        }
    }
    for column in needed.iter().filter(|column| !columns.contains(**column)) {
        let hint = "the header holds the names of the columns, separated by commas".to_owned();
        fault(format!("row {}", 1 + above), format!("column {column} is missing"), Some(hint));
    }
    let mut rows = Vec::new();
    let mut nameless = BTreeSet::new();
    let mut number = 1 + above;
    for record in reader.records() {
        number += 1;
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                fault(format!("row {number}"), format!("cannot be read: {error}"), None);
                break; // what follows a torn record cannot be told apart
            }
        };
        number += blank_lines(text, record.position());
        if record.iter().all(str::is_empty) {
            continue;
        }
        if rows.len() == MAX_METERS {
            fault(format!("row {number}"), format!("more than {MAX_METERS} meters"), None);
            break;
        }
        if record.len() < header.len() || record.iter().skip(header.len()).any(|cell| !cell.is_empty()) {
            fault(
                format!("row {number}"),
                format!("{} cells, but the header has {}", record.len(), header.len()),
                Some("a cell that holds a comma must stand in double quotes".into()),
            );
            continue;
        }
        for (index, (_, cell)) in
            header.iter().zip(record.iter()).enumerate().filter(|(_, (name, _))| name.is_empty())
        {
            if !cell.is_empty() && nameless.insert(index) {
                fault(
                    format!("row {number}, column {}", letter(index)),
                    format!("{cell:?} stands in a column without a name"),
                    Some("name the column in the header, or empty it".into()),
                );
            }
        }
        let cells = header
            .iter()
            .zip(record.iter())
            .filter(|(column, cell)| known.contains(&column.as_str()) && !cell.is_empty())
            .map(|(column, cell)| (column.clone(), Value::from(cell)))
            .collect();
        rows.push((number, cells));
    }
    Sheet { columns, rows }
}

/// The text without the byte order mark of a spreadsheet and without Excel's `sep=;`, and how many lines that were.
fn without_preamble(text: &str) -> (&str, usize) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.split_once('\n') {
        Some((first, rest)) if first.trim_matches(['"', '\r']).to_lowercase().starts_with("sep=") => {
            (rest, 1)
        }
        _ => (text, 0),
    }
}

/// What separates cells: the sign that splits the header into the most names of columns. Spreadsheets take a semicolon
/// where the comma is the decimal sign, and a tab for what they call text.
fn delimiter(text: &str, known: &[&str]) -> u8 {
    let header = text.trim_start().lines().next().unwrap_or_default();
    let names = |delimiter: u8| {
        let cells = header.split(char::from(delimiter)).map(|cell| cell.trim().trim_matches('"').trim());
        cells.filter(|cell| known.contains(cell)).count()
    };
    // Of equals the last wins: the comma.
    [b'|', b'\t', b';', b','].into_iter().max_by_key(|delimiter| names(*delimiter)).unwrap_or(b',')
}

/// A column as a spreadsheet names it: A to Z, AA, …
fn letter(index: usize) -> String {
    let letter = char::from(b'A' + u8::try_from(index % 26).unwrap_or_default());
    match (index / 26).checked_sub(1) {
        Some(rest) => format!("{}{letter}", self::letter(rest)),
        None => letter.to_string(),
    }
}

/// Empty lines before a record: the reader passes over them, a spreadsheet counts them.
fn blank_lines(text: &str, position: Option<&csv::Position>) -> usize {
    let Some(start) = position.and_then(|position| usize::try_from(position.byte()).ok()) else { return 0 };
    let (read, rest) = text.as_bytes().split_at_checked(start).unwrap_or_default();
    // The reader stops between the two bytes of the record's own line end.
    let rest = if read.ends_with(b"\r") { rest.strip_prefix(b"\n").unwrap_or(rest) } else { rest };
    rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> (Sheet, Vec<Fault>) {
        let findings = Findings::default();
        let sheet = sheet(text, "m.csv", &["id", "bus", "room"], &["id", "bus"], &findings);
        (sheet, findings.into_parts().0)
    }

    #[test]
    fn rows_are_counted_as_a_spreadsheet_counts_them() {
        let (sheet, faults) = read("\u{feff}id,bus,room\r\nA,n,\r\n\r\n,,\r\nB,n,\"1,2\"\r\n");
        assert!(faults.is_empty(), "{faults:?}");
        let numbers: Vec<usize> = sheet.rows.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [2, 5]);
        assert_eq!(sheet.rows[0].1.get("room"), None);
        assert_eq!(sheet.rows[1].1["room"], "1,2");
    }

    #[test]
    fn a_bad_header_and_a_bad_row_are_named() {
        let (sheet, faults) = read("id,rom,room,room\nA,1,2,3\nB,1\n");
        let said: Vec<String> = faults.iter().map(Fault::to_string).collect();
        assert_eq!(said.len(), 4, "{said:#?}");
        assert!(said[0].contains("row 1, column rom") && said[0].contains("did you mean `room`"));
        assert!(said[1].contains("twice"));
        assert!(said[2].contains("column bus is missing"));
        assert!(said[3].contains("row 3: 2 cells, but the header has 4"));
        assert_eq!(sheet.rows.len(), 1);
    }

    #[test]
    fn what_a_spreadsheet_leaves_empty_is_passed_over_and_cells_without_a_name_are_named() {
        let (sheet, faults) = read("id,bus,room,,,\nA,n,1,,,\nB,n,,,,,,\n");
        assert!(faults.is_empty(), "{faults:?}");
        assert_eq!(sheet.rows.len(), 2);
        let (_, faults) = read("id,,bus,room,,\nA,,n,1,,x\nB,,n,2,,y\nC,z,n,3,,\nD,,n,4,,,,late\n");
        let said: Vec<String> = faults.iter().map(Fault::to_string).collect();
        assert_eq!(said.len(), 3, "{said:#?}");
        assert!(said[0].contains("row 2, column F: \"x\""), "{said:#?}");
        assert!(said[1].contains("row 4, column B: \"z\""), "{said:#?}");
        assert!(said[2].contains("row 5: 8 cells, but the header has 6"), "{said:#?}");
        assert_eq!(
            (letter(0), letter(25), letter(26), letter(701), letter(702)),
            ("A".into(), "Z".into(), "AA".into(), "ZZ".into(), "AAA".into())
        );
    }

    #[test]
    fn semicolons_and_tabs_separate_too() {
        for text in [
            "id;bus;room\nA;n;1,5\n",
            "id\tbus\troom\nA\tn\t1,5\n",
            "id|bus|room\nA|n|1,5\n",
            "\u{feff}\"id\";\"bus\";\"room\"\r\n\"A\";\"n\";\"1,5\"\r\n",
            "sep=;\r\nid;bus;room\r\nA;n;1,5\r\n",
        ] {
            let (sheet, faults) = read(text);
            assert!(faults.is_empty(), "{text:?}: {faults:?}");
            assert_eq!(sheet.rows[0].1["room"], "1,5", "{text:?}");
            assert_eq!(sheet.rows[0].0, if text.starts_with("sep") { 3 } else { 2 });
        }
        let (_, faults) = read("id，bus，room\nA，n，1\n");
        assert!(
            faults[0].hint.as_ref().unwrap().contains("character 3 is `，` (U+FF0C), expected `,`"),
            "{faults:?}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "[id,bus\"\r\n \u{feff}a表]{0,80}") {
            read(&text);
        }
    }
}
