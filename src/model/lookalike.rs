//! Characters that look like a plain one and are another: what a Chinese keyboard or an office program types where a
//! program expects ASCII. Knows nothing of where a text stands.

/// The plain character that was probably meant.
pub fn plain_character(c: char) -> Option<char> {
    Some(match c {
        // Full-width forms of ASCII, in the same order.
        '\u{FF01}'..='\u{FF5E}' => char::from_u32(u32::from(c) - 0xFEE0)?,
        '\u{A0}' | '\u{2000}'..='\u{200A}' | '\u{202F}' | '\u{205F}' | '\u{3000}' => ' ',
        '“' | '”' | '„' | '‟' | '″' | '「' | '」' | '『' | '』' | '«' | '»' => '"',
        '‘' | '’' | '‚' | '‛' | '′' | '´' => '\'',
        '‐'..='―' | '−' | '﹣' => '-',
        '。' | '｡' => '.',
        '、' | '､' | '﹐' => ',',
        '【' | '〔' => '[',
        '】' | '〕' => ']',
        '《' | '〈' => '<',
        '》' | '〉' => '>',
        '∶' | '﹕' => ':',
        '⁄' | '∕' => '/',
        _ => return None,
    })
}

/// The text with plain characters instead.
pub fn plainly(text: &str) -> String {
    text.chars().map(|c| plain_character(c).unwrap_or(c)).collect()
}

/// The first such character in words: where it stands (counted from 1), what it is and what was meant.
pub fn first_lookalike(text: &str) -> Option<String> {
    let (index, (seen, meant)) = text
        .chars()
        .enumerate()
        .find_map(|(index, c)| plain_character(c).map(|meant| (index, (c, meant))))?;
    let name = if meant == ' ' { "a space".into() } else { format!("`{meant}`") };
    let shown = if meant == ' ' { String::new() } else { format!("`{seen}` ") };
    Some(format!("character {} is {shown}(U+{:04X}), expected {name}", index + 1, u32::from(seen)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_named_with_its_place_and_what_was_meant() {
        for (text, meant, says) in [
            ("１２３", "123", "character 1 is `１` (U+FF11), expected `1`"),
            ("mqtt：//a", "mqtt://a", "character 5 is `：` (U+FF1A), expected `:`"),
            ("“a”", "\"a\"", "character 1 is `“` (U+201C), expected `\"`"),
            ("10。0", "10.0", "character 3 is `。` (U+3002), expected `.`"),
            ("a\u{a0}b", "a b", "character 2 is (U+00A0), expected a space"),
            ("a\u{3000}", "a ", "character 2 is (U+3000), expected a space"),
            ("ＧＷ－１", "GW-1", "character 1 is `Ｇ` (U+FF27), expected `G`"),
            ("１０、５", "10,5", "character 1 is `１` (U+FF11), expected `1`"),
        ] {
            assert_eq!((plainly(text).as_str(), first_lookalike(text).as_deref()), (meant, Some(says)));
        }
        assert_eq!(first_lookalike("滨江花园 12-3 (北)"), None);
    }
}
