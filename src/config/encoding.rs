//! Bytes that are not text in UTF-8: which program saved them so, and what to do there.

use super::Fault;

/// The text, or what it is instead.
pub(super) fn text(bytes: &[u8], file: &str) -> Result<String, Fault> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        Ok(text) => Err(refused(bytes, file, text.find('\0').unwrap_or_default())),
        Err(error) => Err(refused(bytes, file, error.valid_up_to())),
    }
}

fn refused(bytes: &[u8], file: &str, at: usize) -> Fault {
    let line = bytes.iter().take(at).filter(|byte| **byte == b'\n').count() + 1;
    let save = if file.to_lowercase().ends_with(".csv") {
        "save it as \"CSV UTF-8\" (in Excel: Save as, CSV UTF-8 (comma delimited); 另存为 CSV UTF-8（逗号分隔）)"
    } else {
        "save it as UTF-8 (in Notepad: Save as, encoding UTF-8; 另存为，编码 UTF-8)"
    };
    let (place, message) = if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(&[0xD0, 0xCF, 0x11, 0xE0])
    {
        (String::new(), "this is a workbook of a spreadsheet, expected CSV".to_owned())
    } else if bytes.starts_with(&[0xFF, 0xFE]) || bytes.starts_with(&[0xFE, 0xFF]) || bytes.contains(&0) {
        (String::new(), "this is UTF-16 or no text at all, expected UTF-8".to_owned())
    } else if is_gbk(bytes) {
        (
            format!("line {line}"),
            "this is not UTF-8: it looks like GBK, as a Chinese Windows saves it".to_owned(),
        )
    } else {
        (format!("line {line}"), "this is not text in UTF-8".to_owned())
    };
    Fault { file: file.to_owned(), place, message, hint: Some(save.to_owned()) }
}

/// Whether every byte beyond ASCII is one of a pair as GBK makes them (lead 81 to FE, trail 40 to FE without 7F).
fn is_gbk(bytes: &[u8]) -> bool {
    let mut rest = bytes.iter();
    while let Some(byte) = rest.next() {
        let pair = match byte {
            0..=0x7F => continue,
            0x81..=0xFE => rest.next().is_some_and(|trail| (0x40..=0xFE).contains(trail) && *trail != 0x7F),
            _ => false,
        };
        if !pair {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_encoding_is_named_with_what_to_do() {
        // 北 in GBK is B1 B1.
        for (bytes, file, place, says) in [
            (&b"id\nA\xB1\xB1\n"[..], "m.csv", "line 2", "GBK"),
            (b"\xFF\xFEi\0d\0", "m.csv", "", "UTF-16"),
            (b"i\0d\0\n\0", "m.csv", "", "UTF-16"),
            (b"PK\x03\x04\x14\0\xFF", "m.csv", "", "workbook"),
            (b"# caf\xE9\n", "gateway.toml", "line 1", "not text in UTF-8"),
        ] {
            let fault = text(bytes, file).unwrap_err();
            assert_eq!(fault.place, place);
            assert!(fault.message.contains(says) && fault.hint.unwrap().contains("UTF-8"), "{says}");
        }
        assert_eq!(text("北".as_bytes(), "m.csv").unwrap(), "北");
    }
}
