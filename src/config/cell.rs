//! What a spreadsheet makes of a number, a ratio or a name that it takes for something else. Knows how such cells look, and
//! nothing of what they are for.

use crate::model::{first_lookalike, plainly};

/// A cell that is not what was typed.
#[derive(Debug, PartialEq)]
pub(super) struct Spoiled {
    pub message: String,
    pub hint: String,
    /// Whether nothing else can be meant.
    pub certain: bool,
}

/// Digits that a spreadsheet keeps of a number (a double has 15 to 17).
const KEPT_DIGITS: usize = 15;
/// What exports write where there is nothing.
const NOTHING: [&str; 14] =
    ["nan", "none", "null", "n/a", "<na>", "nat", "\\n", "-", "--", "—", "——", "/", "无", "undefined"];
const AS_TEXT: &str = "format the column as text before you type or paste";
const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// What became of the cell, if something did.
pub(super) fn spoiled(text: &str) -> Option<Spoiled> {
    let certain = |message: String, hint: String| Some(Spoiled { message, hint, certain: true });
    if let Some(rest) = text.strip_prefix(['\'', '’', '‘', '´', '`', '＇']) {
        return certain(
            format!("{text:?} begins with the mark by which a spreadsheet keeps text"),
            meant(rest),
        );
    }
    if let Some(rest) = text.strip_prefix('=') {
        let inner = rest.trim_matches(['"', '“', '”']);
        let plain = !inner.contains(['(', '"', '&', '!']);
        let hint = if plain { meant(inner) } else { "write what the formula comes to".into() };
        return certain(format!("{text:?} is a formula of a spreadsheet"), hint);
    }
    if text.len() > 1 && text.starts_with(['"', '“']) && text.ends_with(['"', '”']) {
        return certain(format!("{text:?} has quotes around it"), meant(text.trim_matches(['"', '“', '”'])));
    }
    if text.starts_with('#')
        && (text.ends_with(['!', '?'])
            || text.eq_ignore_ascii_case("#n/a")
            || text.trim_matches('#').is_empty())
    {
        return certain(
            format!("{text:?} is an error of a spreadsheet"),
            "write what belongs there, or leave it empty".into(),
        );
    }
    if NOTHING.contains(&text.to_lowercase().as_str()) {
        return certain(
            format!("{text:?} stands for nothing"),
            "leave it empty where there is nothing to say".into(),
        );
    }
    if let Some(hint) = exponent(text) {
        return certain(format!("{text:?} is how a spreadsheet shows a long number"), hint);
    }
    if is_date(text) {
        return certain(
            format!("{text:?} is a date, as a spreadsheet makes one of e.g. 1-2 or 1/2"),
            format!("type it again; {AS_TEXT}"),
        );
    }
    if let Some(digits) = grouped(text) {
        let message = format!("{text:?} has separators between its digits");
        return Some(Spoiled { message, hint: meant(&digits), certain: false });
    }
    if let Some((whole, zeros)) = text.split_once('.')
        && is_digits(whole)
        && is_digits(zeros)
        && zeros.bytes().all(|byte| byte == b'0')
    {
        let message = format!("{text:?} looks like the number that a program made of {whole:?}");
        return Some(Spoiled { message, hint: meant(whole), certain: false });
    }
    if is_digits(text) && text.len() > KEPT_DIGITS && text.bytes().skip(KEPT_DIGITS).all(|byte| byte == b'0')
    {
        let message = format!(
            "{text:?} ends in zeros from its 16th digit on: a spreadsheet keeps {KEPT_DIGITS} digits"
        );
        return Some(Spoiled {
            message,
            hint: format!("compare it with the source; {AS_TEXT}"),
            certain: false,
        });
    }
    let odd = first_lookalike(text)?;
    Some(Spoiled { message: format!("{text:?}: {odd}"), hint: meant(&plainly(text)), certain: false })
}

fn meant(text: &str) -> String {
    format!("did you mean `{}`?", plainly(text).trim())
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `1.23457E+07`: the hint, with the number in full where all its digits are there. `12E3` is a name: a spreadsheet would show it with
/// a sign.
fn exponent(text: &str) -> Option<String> {
    let (mantissa, exponent) = text.split_once(['E', 'e'])?;
    let (whole, fraction) = mantissa.split_once(['.', ',']).unwrap_or((mantissa, ""));
    let whole = whole.strip_prefix(['-', '+']).unwrap_or(whole);
    let signed = exponent.starts_with(['+', '-']);
    let power = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let shown_so = match (fraction.is_empty(), signed) {
        (true, true) => whole.len() == 1 && power.len() > 1,
        (true, false) => false,
        (false, _) => whole.len() <= 3,
    };
    if !(shown_so && is_digits(whole) && is_digits(power) && (fraction.is_empty() || is_digits(fraction))) {
        return None;
    }
    let places: usize = power.parse().ok()?;
    let all_there = fraction.len() == places && !exponent.starts_with('-');
    // A spreadsheet shows six digits; all of a longer number's digits are there only in what another program wrote.
    Some(if all_there && places > 6 {
        meant(&format!("{whole}{fraction}"))
    } else {
        format!("digits are lost: type it again from the source; {AS_TEXT}")
    })
}

/// `2-Jan`, `Jan-02`, `2-Jan-26`, `1月2日`, `2026/1/2`, `2026-01-02 00:00:00`, `2026年1月`.
fn is_date(text: &str) -> bool {
    let text = text.to_lowercase();
    if text.ends_with(['月', '日']) {
        let parts: Vec<&str> = text.split_terminator(['年', '月', '日']).collect();
        return parts.iter().all(|part| is_digits(part.trim()));
    }
    let day = text.split([' ', 't']).next().unwrap_or_default();
    let parts: Vec<&str> = day.split(['-', '/']).collect();
    let number = |part: &str| is_digits(part) && part.len() <= 2;
    let year = |part: &str| is_digits(part) && (part.len() == 4 || part.len() == 2);
    let month = |part: &str| MONTHS.contains(&part);
    match parts.as_slice() {
        [a, b] => (month(b) && number(a)) || (month(a) && year(b)),
        [a, b, c] => {
            let four = |part: &str| part.len() == 4 && year(part);
            (number(a) && month(b) && year(c))
                || (four(a) && number(b) && number(c))
                || (number(a) && number(b) && four(c))
        }
        _ => false,
    }
}

/// `12,345,678`, `12 345 678`, `12'345'678`: the digits alone.
fn grouped(text: &str) -> Option<String> {
    let separator = text.chars().find(|c| !c.is_ascii_digit())?;
    if ![',', '\'', ' ', '\u{a0}', '\u{202f}', '，', '’'].contains(&separator) {
        return None;
    }
    let mut groups = text.split(separator);
    let first = groups.next().filter(|group| is_digits(group) && group.len() <= 3)?;
    let rest: Vec<&str> = groups.collect();
    let whole = rest.iter().all(|group| is_digits(group) && group.len() == 3);
    whole.then(|| format!("{first}{}", rest.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_spreadsheet_makes_of_a_cell_is_recognised_with_what_was_meant() {
        for (text, hint) in [
            ("1.23457E+07", "digits are lost"),
            ("1.2E+11", "digits are lost"),
            ("1E+11", "digits are lost"),
            ("1,23457E+07", "digits are lost"),
            ("-1.20E-02", "digits are lost"),
            ("1.23e7", "digits are lost"),
            ("1.2345678E7", "`12345678`"),
            ("'12345678", "`12345678`"),
            ("’00123", "`00123`"),
            ("=\"12345678\"", "`12345678`"),
            ("=12345678", "`12345678`"),
            ("=A1&B2", "comes to"),
            ("=VLOOKUP(A1,B:C,2)", "comes to"),
            ("\"12345678\"", "`12345678`"),
            ("“12345678”", "`12345678`"),
            ("#N/A", "leave it empty"),
            ("#REF!", "leave it empty"),
            ("#NAME?", "leave it empty"),
            ("########", "leave it empty"),
            ("NaN", "leave it empty"),
            ("-", "leave it empty"),
            ("无", "leave it empty"),
            ("2-Jan", "type it again"),
            ("Jan-02", "type it again"),
            ("2-Jan-26", "type it again"),
            ("1月2日", "type it again"),
            ("2026年1月2日", "type it again"),
            ("2026/1/2", "type it again"),
            ("2026-01-02 00:00:00", "type it again"),
            ("01/02/2026", "type it again"),
        ] {
            let found = spoiled(text).unwrap_or_else(|| panic!("{text}"));
            assert!(found.certain && found.hint.contains(hint), "{text}: {found:?}");
        }
        for (text, hint) in [
            ("12,345,678", "`12345678`"),
            ("12 345 678", "`12345678`"),
            ("12'345", "`12345`"),
            ("12345678.0", "`12345678`"),
            ("101.00", "`101`"),
            ("123456789012345000", "keeps"),
            ("１２３４５", "`12345`"),
            ("12345\u{a0}", "`12345`"),
        ] {
            let found = spoiled(text).unwrap_or_else(|| panic!("{text}"));
            let said = format!("{} {}", found.message, found.hint);
            assert!(!found.certain && said.contains(hint), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_may_be_meant_is_left_alone() {
        for text in [
            "12345678",
            "00123",
            "HX-2041A",
            "12E3",
            "1E5",
            "12E-3",
            "E-0101",
            "1-2",
            "1/2",
            "3-2-101",
            "12-03",
            "101",
            "1.5",
            "1.2.3",
            "北楼",
            "A座",
            "200/5",
            "0.5",
            "Mar",
            "may-queen",
            "1234 5678",
            "12,34",
            "5(60)",
            "月",
            "2-1-jan",
            "123456789012345678",
            "e",
            "E+",
            "n1",
        ] {
            assert_eq!(spoiled(text), None, "{text}");
        }
    }
}
