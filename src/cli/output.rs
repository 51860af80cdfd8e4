//! What this program prints: nothing that came from outside commands the terminal, turns what stands beside it, or
//! begins a line of its own.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use comfy_table::{ContentArrangement, LineStyle, TableStyle};

use super::text;
use crate::model::{is_visible, printable, printable_line};

/// One line on standard output, as `println!`; a line end within it is written out.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::output::print_line(&format!($($text)*)) };
}

/// One line on standard error, and a second where it has a hint.
macro_rules! note {
    ($($text:tt)*) => { $crate::cli::output::print_note(&format!($($text)*)) };
}

/// See `say!`.
pub fn print_line(text: &str) {
    println!("{}", printable_line(text));
}

/// See `note!`.
pub fn print_note(text: &str) {
    eprintln!("{}", with_hint(text));
}

/// Text of several lines of our own.
pub fn print_lines(text: &str) {
    print!("{}", printable(text));
}

/// Lines with colours of ours, in which whatever came from outside is printable already.
pub fn print_styled(text: &str) {
    print!("{text}");
}

/// For programs, and for people who look at what programs get.
pub fn print_json(text: &str) {
    println!("{}", printable_json(text));
}

fn with_hint(text: &str) -> String {
    const HINT: &str = "\n  hint: ";
    text.split(HINT).map(printable_line).collect::<Vec<_>>().join(HINT)
}

/// JSON of the same value: what may not be shown to a terminal is written as `\u202e`. It stands in strings only, where
/// the characters below U+0020 are escaped already.
pub fn printable_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_visible(c) || c == '\n' {
            shown.push(c);
        } else {
            let mut units = [0; 2];
            shown.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    shown
}

/// Where records go: their bytes as they are, but to a terminal as [`printable_json`].
pub fn records(to: impl Write + IsTerminal + 'static) -> Box<dyn Write> {
    if to.is_terminal() { Box::new(ShownLines { to, line: Vec::new() }) } else { Box::new(to) }
}

struct ShownLines<W> {
    to: W,
    /// Not ended yet.
    line: Vec<u8>,
}

impl<W: Write> Write for ShownLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.to.write_all(printable_json(&String::from_utf8_lossy(&line)).as_bytes())?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A table as this program prints them: a rule below its header, and on a terminal no wider than it.
pub struct Table(comfy_table::Table);

impl Table {
    pub fn new<const N: usize>(header: [&str; N]) -> Table {
        let mut table = comfy_table::Table::new();
        table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
        if let (columns, Some(_)) = text::size() {
            let columns = u16::try_from(columns).unwrap_or(u16::MAX);
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(columns);
        }
        table.set_header(header);
        Table(table)
    }

    pub fn add_row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.0.add_row(cells.into_iter().map(|cell| printable_line(cell.as_ref()).into_owned()));
    }

    pub fn print(&self) {
        println!("{self}");
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "x\u{1b}]0;owned\u{7}\u{202e}y\nz";
    const SHOWN: &str = "x\\u{1b}]0;owned\\u{7}\\u{202e}y\\u{a}z";

    #[test]
    fn a_cell_stays_in_its_row() {
        let mut table = Table::new(["a", "b"]);
        table.add_row([HOSTILE, "1"]);
        let text = table.to_string();
        assert!(text.contains(SHOWN) && text.lines().count() == 3, "{text}");
    }

    #[test]
    fn only_a_hint_begins_a_line() {
        assert_eq!(with_hint(&format!("{HOSTILE}\n  hint: do")), format!("{SHOWN}\n  hint: do"));
    }

    #[test]
    fn json_for_a_terminal_is_the_same_value() {
        let value = serde_json::json!({"a": "\u{7f}\u{9b}\u{202e}\u{200f}\u{61c}\u{e0041}\u{1b}\n滨江\"\\", "b": [1, "é 👍"]});
        let escapes = ["\\u007f\\u009b\\u202e\\u200f\\u061c\\udb40\\udc41\\u001b\\n滨江\\\"\\\\", "é 👍"];
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let shown = printable_json(&text);
            assert!(escapes.iter().all(|escaped| shown.contains(escaped)), "{shown}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
        }
    }

    #[test]
    fn records_are_escaped_in_whole_lines_wherever_they_are_cut() {
        let text = "{\"a\":\"滨\u{202e}\"}\n{}\n";
        for cut in 0..text.len() {
            let mut out = ShownLines { to: Vec::new(), line: Vec::new() };
            let (before, after) = text.as_bytes().split_at(cut);
            out.write_all(before).unwrap();
            out.write_all(after).unwrap();
            assert_eq!(String::from_utf8(out.to).unwrap(), "{\"a\":\"滨\\u202e\"}\n{}\n");
        }
    }
}
