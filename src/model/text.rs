//! Text from outside that is shown to people: nothing in it may command a terminal, or turn or hide what stands beside it.

use std::borrow::Cow;

/// Whether a character takes its place on a line and does nothing else. Not so: control characters (terminals obey them),
/// those that change the direction of what follows, and those that show nothing.
pub fn is_visible(c: char) -> bool {
    !(c.is_control()
        || matches!(c,
            '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}' | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{3164}' | '\u{FEFF}'
            | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}' | '\u{1BCA0}'..='\u{1BCA3}' | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E0FFF}'))
}

/// The text with every other character written as `\u{1b}`; line ends and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_visible(c) || matches!(c, '\n' | '\t'))
}

/// The same for what has to stay on its line: line ends and tabs are written out too.
pub fn printable_line(text: &str) -> Cow<'_, str> {
    escaped(text, is_visible)
}

/// A text of several lines in one: our own hint goes on behind a dash, any other line end is written out.
pub fn in_one_line(text: &str) -> String {
    printable_line(&text.replace("\n  hint: ", " - hint: ")).into_owned()
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(&stays) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if stays(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_unicode());
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_a_terminal_or_turns_a_line_is_written_out() {
        for (text, shown) in [
            ("a\u{1b}[31mred", "a\\u{1b}[31mred"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("E-1\u{202e}10-E", "E-1\\u{202e}10-E"),
            ("E\u{200b}1", "E\\u{200b}1"),
            ("\u{feff}id", "\\u{feff}id"),
            ("a\rb\u{7f}", "a\\u{d}b\\u{7f}"),
            ("\u{e0041}", "\\u{e0041}"),
        ] {
            assert_eq!(printable(text), shown);
        }
        for plain in ["滨江花园 “1”", "a\nb\tc", "é Ω ✓ 👍", ""] {
            assert!(matches!(printable(plain), Cow::Borrowed(_)), "{plain}");
        }
    }
    #[test]
    fn what_stands_on_one_line_stays_on_it() {
        assert_eq!(printable_line("a\nb\tc\u{1b}"), "a\\u{a}b\\u{9}c\\u{1b}");
        assert!(matches!(printable_line("滨江花园 “1”"), Cow::Borrowed(_)));
        assert_eq!(in_one_line("x\n  hint: do\ny"), "x - hint: do\\u{a}y");
    }
}
