//! What was probably meant by a number that is none: a ratio, a decimal comma, a unit behind it. Offered as a hint, never
//! taken for what was typed.

use crate::model::{Dec, plainly};

/// For a decimal: `200/5` → `40`, `40,5` → `40.5`, `40倍` → `40`.
pub(super) fn decimal_meant(text: &str) -> Option<String> {
    let text = plainly(text).replace(' ', "");
    let (above, below) = text.split_once(['/', ':', '÷']).unwrap_or((&text, ""));
    if !below.is_empty() {
        let (above, below) = quantities(above, below)?;
        let quotient = above.ratio(below)?;
        let exact = quotient.times(below).is_some_and(|back| back.normalized() == above.normalized());
        return exact.then(|| quotient.normalized().to_string());
    }
    let bare = text.trim_start_matches(['×', 'x', 'X', '*', '+']).trim_end_matches(['×', 'x', 'X', '倍']);
    let number: Dec = bare.replacen(',', ".", 1).parse().ok()?;
    (!number.is_negative() && !number.is_zero()).then(|| number.to_string())
}

/// `10kV` and `100V`: both in one unit. A number without a unit is in the other's.
fn quantities(above: &str, below: &str) -> Option<(Dec, Dec)> {
    let split = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(end)?;
        Some((number.parse::<Dec>().ok()?, unit.to_lowercase()))
    };
    let ((above, above_unit), (below, below_unit)) = (split(above)?, split(below)?);
    let thousand = Dec::power_of_ten(3)?;
    match (above_unit.as_str(), below_unit.as_str()) {
        ("" | "a" | "v" | "kv" | "ka", "") | ("", "a" | "v" | "kv" | "ka") => Some((above, below)),
        (one, other) if one == other && ["a", "v", "kv", "ka"].contains(&one) => Some((above, below)),
        ("kv", "v") | ("ka", "a") => Some((above.times(thousand)?, below)),
        _ => None,
    }
}

/// For a whole number: `900s` → `900`, `0x0A` → `10`, `1号` → `1`.
pub(super) fn integer_meant(text: &str) -> Option<String> {
    let text = plainly(text);
    let text = text.trim();
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u32::from_str_radix(hex, 16).ok().map(|number| number.to_string());
    }
    let digits = text.trim_matches(|c: char| !c.is_ascii_digit());
    // `-5` and `15min` mean something else than their digits.
    let around = text.replacen(digits, "", 1);
    let harmless = ["", "s", "秒", "ms", "毫秒", "号", "#", "bps", "bit/s", "%"].contains(&around.trim());
    (harmless && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_and_a_comma_are_understood() {
        for (text, meant) in [
            ("200/5", Some("40")),
            ("200:5", Some("40")),
            ("200／5", Some("40")),
            ("200 / 5", Some("40")),
            ("200A/5A", Some("40")),
            ("200/5A", Some("40")),
            ("10kV/100V", Some("100")),
            ("10/0.1kV", Some("100")),
            ("75/5", Some("15")),
            ("5/2", Some("2.5")),
            ("200/3", None),
            ("200A/5V", None),
            ("200/0", None),
            ("1/5", Some("0.2")),
            ("１００／５", Some("20")),
            ("40,5", Some("40.5")),
            ("40倍", Some("40")),
            ("x40", Some("40")),
            ("×40", Some("40")),
            ("forty", None),
            ("40/", None),
            ("-40", None),
            ("1,000,000", None),
        ] {
            assert_eq!(decimal_meant(text).as_deref(), meant, "{text}");
        }
    }

    #[test]
    fn a_whole_number_with_something_around_it_is_understood() {
        for (text, meant) in [
            ("900s", Some("900")),
            ("900 秒", Some("900")),
            ("0x0A", Some("10")),
            ("1号", Some("1")),
            ("１２", Some("12")),
            ("15min", None),
            ("-5", None),
            ("1.5", None),
            ("one", None),
        ] {
            assert_eq!(integer_meant(text).as_deref(), meant, "{text}");
        }
    }
}
