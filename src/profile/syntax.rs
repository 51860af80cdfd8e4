//! Text that is not TOML: every place at once, with the line as it stands and what was probably meant.
//!
//! Knows the grammar (through the `toml` crate), no key and no value.

use toml::de::DeTable;

use crate::model::{first_lookalike, plain_character, plainly};

/// Errors that are named: one slip can bring many after it.
const MAX_ERRORS: usize = 20;
/// Characters of a line that are shown.
const MAX_LINE_CHARS: usize = 80;

/// One place that is not TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntaxError {
    /// `line 3, column 6`, counted from 1, in characters.
    pub place: String,
    /// What is wrong, and the line.
    pub message: String,
    /// What to write instead, where that can be said.
    pub hint: Option<String>,
}

/// At most one for each line; empty when the text is TOML.
pub fn syntax_errors(text: &str) -> Vec<SyntaxError> {
    let (_, errors) = DeTable::parse_recoverable(text);
    let mut found: Vec<(usize, SyntaxError)> = Vec::new();
    for error in errors {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let before = text.get(..at).unwrap_or_default();
        let number = before.matches('\n').count() + 1;
        if found.iter().any(|(line, _)| *line == number) {
            continue;
        }
        let line = text.lines().nth(number - 1).unwrap_or_default();
        let odd = outside_quotes(line).chars().position(|c| plain_character(c).is_some());
        let column =
            odd.unwrap_or_else(|| before.rsplit('\n').next().unwrap_or_default().chars().count()) + 1;
        let mut message = format!("this is not TOML: {}", error.message());
        let secret = may_be_secret(line);
        if !secret {
            let shown: String = line.trim().chars().take(MAX_LINE_CHARS).collect();
            message = format!("{message}: `{shown}`");
        }
        let place = format!("line {number}, column {column}");
        let hint = match error.message() {
            _ if secret => None,
            "duplicate key" => Some(duplicate(line)),
            _ => hint(line),
        };
        found.push((number, SyntaxError { place, message, hint }));
        if found.len() == MAX_ERRORS {
            break;
        }
    }
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, error)| error).collect()
}

/// What to do about a name that stands there twice.
fn duplicate(line: &str) -> String {
    match line.trim().strip_prefix('[') {
        Some(name) => {
            let name = name.split(']').next().unwrap_or_default().trim_start_matches('[');
            format!("a section stands there once; of several, each begins with [[{name}]]")
        }
        None => "keep one of the two".into(),
    }
}

/// Whether a line may hold a password, which is never repeated.
fn may_be_secret(line: &str) -> bool {
    let line = line.to_lowercase();
    line.contains('@') || ["password", "secret", "token", "密码"].iter().any(|word| line.contains(word))
}

/// Chinese punctuation in place of plain, a value without its quotes, a key without a value.
fn hint(line: &str) -> Option<String> {
    if let Some(odd) = first_lookalike(&outside_quotes(line)) {
        return Some(format!("{odd}; write `{}`", plainly(line).trim()));
    }
    let code = line.split('#').next().unwrap_or_default().trim();
    if let Some((key, value)) = code.split_once('=').or_else(|| code.split_once(':')) {
        let (key, value) = (key.trim(), value.trim());
        let value = value.trim_matches(['"', '\'', ',', ';']).trim();
        let is_key = !key.is_empty() && !key.contains([' ', '"', '[']);
        if value.is_empty() {
            return Some(format!("write {key} = \"…\", or leave the line out"));
        }
        if value.starts_with(|c: char| c.is_ascii_digit()) && (key.ends_with("_secs") || key.ends_with("_ms"))
        {
            return Some(format!("a number alone, without a unit, e.g. {key} = 900"));
        }
        let quoted = if value.contains('\\') { format!("'{value}'") } else { format!("\"{value}\"") };
        return (is_key && !value.contains(['"', '[', '{'])).then(|| format!("write `{key} = {quoted}`"));
    }
    if let Some(name) = code.strip_prefix('[') {
        return Some(format!("a section is written [{}]", name.trim_matches(['[', ']', ' '])));
    }
    (!code.is_empty()).then(|| "each line is key = value, a [section], or begins with #".into())
}

/// The line with spaces in place of what stands in plain quotes or in a comment: there such characters may be meant.
fn outside_quotes(line: &str) -> String {
    let mut quote = None;
    let mut comment = false;
    let keep = |c: char| {
        comment |= quote.is_none() && c == '#';
        match quote {
            _ if comment => ' ',
            Some(end) => {
                if c == end {
                    quote = None;
                }
                ' '
            }
            None => {
                if matches!(c, '"' | '\'') {
                    quote = Some(c);
                }
                c
            }
        }
    };
    line.chars().map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> (String, String, String) {
        let found = syntax_errors(text);
        let [error] = found.as_slice() else { panic!("{text}: {found:?}") };
        (error.place.clone(), error.message.clone(), error.hint.clone().unwrap_or_default())
    }

    #[test]
    fn each_slip_is_named_with_its_line_and_what_was_meant() {
        for (line, hint) in [
            ("id = riverside", "`id = \"riverside\"`"),
            ("id = gw-01 # the gateway", "`id = \"gw-01\"`"),
            ("url = mqtt://10.0.0.5", "`url = \"mqtt://10.0.0.5\"`"),
            ("id = “riverside”", "character 6 is `“` (U+201C), expected `\"`; write `id = \"riverside\"`"),
            ("id ＝ \"a\"", "character 4 is `＝` (U+FF1D)"),
            ("id = \"a\"；", "`；`"),
            ("［site2］", "write `[site2]`"),
            ("id\u{3000}= \"a\"", "(U+3000), expected a space"),
            ("id\u{a0}= \"a\"", "(U+00A0), expected a space"),
            ("name = \"滨江（北）\" x", "write"),
            ("id: \"a\"", "`id = \"a\"`"),
            ("id = ", "leave the line out"),
            ("id = \"a", "`id = \"a\"`"),
            ("[site2", "[site2]"),
            ("hello", "key = value"),
            ("interval_secs = 15min", "without a unit"),
            ("[site]", "each begins with [[site]]"),
            ("key = C:\\dir", "`key = 'C:\\dir'`"),
        ] {
            let (place, message, given) = only(&format!("[site]\n{line}\n"));
            assert!(place.starts_with("line 2"), "{line}: {place}");
            assert!(message.contains(line.split('#').next().unwrap().trim()), "{line}: {message}");
            if !line.starts_with("name") {
                assert!(given.contains(hint), "{line}: {given} ({message})");
            }
        }
    }

    #[test]
    fn what_may_be_a_password_is_not_repeated() {
        for line in ["url = mqtt://gw:s3cret@b", "password = s3cret", "Secret： s3cret"] {
            let (_, message, hint) = only(&format!("{line}\n"));
            assert!(!message.contains("s3cret") && !hint.contains("s3cret"), "{message} {hint}");
        }
    }

    #[test]
    fn every_line_is_found_in_one_pass() {
        let found = syntax_errors(
            "[site]\nid = riverside\nname = \"a\"\ntimezone = Asia/Shanghai\n[mqtt]\nurl ＝ \"x\"\n",
        );
        let places: Vec<&str> = found.iter().map(|error| error.place.split(',').next().unwrap()).collect();
        assert_eq!(places, ["line 2", "line 4", "line 6"], "{found:?}");
        assert!(syntax_errors("a = 1\n[b]\nc = \"。\" # ，\n").is_empty());
        assert!(syntax_errors(&"x\n".repeat(1000)).len() <= MAX_ERRORS);
    }
}
