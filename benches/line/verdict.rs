//! Figures beside their limits.

use crate::table;

/// One figure: whole thousandths, so that no float is needed.
pub struct Row {
    pub what: String,
    pub measured: u128,
    pub limit: Limit,
    pub unit: &'static str,
    /// What else was seen.
    pub note: String,
}

#[derive(Debug, Clone, Copy)]
pub enum Limit {
    AtMost(u128),
    AtLeast(u128),
}

impl Row {
    pub fn new(what: impl Into<String>, measured: u128, limit: Limit, unit: &'static str) -> Row {
        Row { what: what.into(), measured, limit, unit, note: String::new() }
    }

    pub fn noted(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }

    fn cells(&self) -> Vec<String> {
        let (word, limit, kept) = match self.limit {
            Limit::AtMost(limit) => ("at most", limit, self.measured <= limit),
            Limit::AtLeast(limit) => ("at least", limit, self.measured >= limit),
        };
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        vec![
            self.what.clone(),
            format!("{}{unit}", decimal(self.measured)),
            format!("{word} {}{unit}", decimal(limit)),
            table::quotient(self.measured, limit),
            if kept { "pass".into() } else { "FAIL".into() },
            self.note.clone(),
        ]
    }
}

/// `a / b` in whole thousandths, rounded.
pub fn thousandths(a: u128, b: u128) -> u128 {
    (a * 1000 + b / 2).checked_div(b).unwrap_or_default()
}

fn decimal(thousandths: u128) -> String {
    match thousandths % 1000 {
        0 => (thousandths / 1000).to_string(),
        rest => format!("{}.{rest:03}", thousandths / 1000),
    }
}

pub fn print(rows: &[Row]) {
    let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
    table::print("Line", &["what", "measured", "limit", "measured / limit", "verdict", "seen"], &cells);
}
