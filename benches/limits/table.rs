//! Figures as text: aligned columns, quotients without floats.

use std::time::Duration;

/// Prints rows under a title; the columns' names carry the units.
pub fn print(title: &str, columns: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([columns[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
    };
    println!("\n{title}\n");
    line(columns);
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    line(&rule.iter().map(String::as_str).collect::<Vec<_>>());
    for row in rows {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

/// `a / b` with two decimals, rounded.
pub fn quotient(a: u128, b: u128) -> String {
    let hundredths = (a * 100 + b / 2).checked_div(b).unwrap_or_default();
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// `a / b` with two decimals, of times.
pub fn ratio(a: Duration, b: Duration) -> String {
    quotient(a.as_nanos(), b.as_nanos())
}

/// Milliseconds with two decimals.
pub fn millis(time: Duration) -> String {
    quotient(time.as_nanos(), 1_000_000)
}

/// So many in such a time, per second.
pub fn rate(count: u64, time: Duration) -> u128 {
    u128::from(count) * 1_000_000_000 / time.as_nanos().max(1)
}
