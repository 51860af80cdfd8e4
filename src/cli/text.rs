//! Text for a terminal: columns that line up whatever the script is, and lines that fit.

use console::measure_text_width;

/// Columns of a line where nobody says otherwise, in a file or a pipe too.
const USUAL_WIDTH: usize = 80;

/// Columns and lines of the terminal on standard output; `None` for the lines where there is none.
pub fn size() -> (usize, Option<usize>) {
    match console::Term::stdout().size_checked() {
        Some((rows, columns)) if columns > 0 => (columns.into(), Some(rows.into())),
        _ => (USUAL_WIDTH, None),
    }
}

/// Filled up with blanks to this width.
pub fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(measure_text_width(text));
    format!("{text}{}", " ".repeat(missing))
}

/// Columns that the text takes.
pub fn width(text: &str) -> usize {
    measure_text_width(text)
}

/// Lines of at most `width` columns, broken at blanks where that is possible, the later ones indented. `used` columns of
/// the first are taken already.
pub fn wrap(text: &str, used: usize, indent: usize, width: usize) -> String {
    let mut out = String::new();
    let mut column = used;
    let begin_line = |out: &mut String| {
        out.push('\n');
        out.push_str(&" ".repeat(indent));
        indent
    };
    for (nth, word) in text.split_whitespace().enumerate() {
        if nth > 0 {
            if column + 1 + measure_text_width(word) > width {
                column = begin_line(&mut out);
            } else {
                out.push(' ');
                column += 1;
            }
        }
        for letter in word.chars() {
            let columns = measure_text_width(letter.encode_utf8(&mut [0; 4]));
            if column + columns > width && column > indent {
                column = begin_line(&mut out);
            }
            out.push(letter);
            column += columns;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chinese_takes_two_columns() {
        assert_eq!(pad("水表", 6), "水表  ");
        assert_eq!(wrap("一二三 四五", 0, 2, 8), "一二三\n  四五");
    }

    #[test]
    fn nothing_is_wider_than_the_line_and_nothing_is_lost() {
        let texts = [
            "cannot be opened: No such file or directory (os error 2)",
            "/a/very/long/path/that/has/no/blank/anywhere/and/goes/on/for/ever",
            "滨江花园三期地下二层配电房东侧的表箱",
            "x",
            "",
        ];
        for text in texts {
            for (used, indent, width) in [(0, 0, 10), (7, 4, 20), (20, 20, 40), (0, 0, 80), (9, 9, 10)] {
                let wrapped = wrap(text, used, indent, width);
                for (nth, line) in wrapped.lines().enumerate() {
                    let taken = measure_text_width(line) + if nth == 0 { used } else { 0 };
                    assert!(taken <= width.max(indent + 2), "{taken} of {width}: {line:?} of {wrapped:?}");
                }
                let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
                assert_eq!(letters(&wrapped), letters(text));
            }
        }
    }
}
