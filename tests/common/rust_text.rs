//! Rust as text: what the compiler sees as names, without comments and literals. Knows no grammar beyond that.

/// Blanks comments, strings and characters; keeps every line break, so that line numbers stay true.
pub fn without_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let hidden = match rest {
            [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
            [b'/', b'*', ..] => block_comment(rest),
            [b'"', ..] => string(rest, 1),
            [b'\'', ..] => character(rest),
            [b'r', b'"' | b'#', ..] if at == 0 || !is_word(bytes[at - 1]) || bytes[at - 1] == b'b' => {
                raw_string(rest)
            }
            _ => 0,
        };
        if hidden == 0 {
            out.push(if rest[0].is_ascii() { char::from(rest[0]) } else { ' ' });
            at += 1;
        } else {
            out.extend(rest[..hidden].iter().map(|b| if *b == b'\n' { '\n' } else { ' ' }));
            at += hidden;
        }
    }
    out
}

fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[u8], start: usize) -> usize {
    let mut at = start;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A character is closed within a few bytes; a lifetime is not.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return rest.iter().skip(3).position(|b| *b == b'\'').map_or(1, |end| end + 4);
    }
    let text = String::from_utf8_lossy(&rest[1..rest.len().min(6)]).into_owned();
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(one), Some('\'')) => one.len_utf8() + 2,
        _ => 0,
    }
}

/// `r"…"` and `r#"…"#`; nothing for an identifier such as `r#type`.
fn raw_string(rest: &[u8]) -> usize {
    let fences = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + fences) != Some(&b'"') {
        return 0;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', fences)).collect();
    let body = 2 + fences;
    rest[body..].windows(end.len()).position(|w| w == end).map_or(rest.len(), |at| body + at + end.len())
}

/// Part of an identifier.
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Counts from 1.
pub fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Where `name` stands as whole words.
pub fn places(code: &str, name: &str) -> Vec<usize> {
    let bytes = code.as_bytes();
    code.match_indices(name)
        .map(|(at, _)| at)
        .filter(|at| {
            let before = at.checked_sub(1).and_then(|at| bytes.get(at));
            let after = bytes.get(at + name.len());
            !before.is_some_and(|b| is_word(*b))
                && !after.is_some_and(|b| is_word(*b) && !name.ends_with('!'))
        })
        .collect()
}

#[test]
fn is_not_fooled_by_literals() {
    let text = "let a = '\"'; let b = \"x // y\"; /* sled /* sled */ */ let c: &'static str = r#\"sled \" sled\"#;\nlet d = '\\''; let e = b\"\\\"sled\"; sled::open();\n";
    let code = without_comments_and_literals(text);
    assert_eq!(places(&code, "sled").len(), 1, "{code}");
    assert_eq!(line_of(&code, places(&code, "sled")[0]), 2);
    assert!(code.contains("&'static str"));
}
