//! What is still known of a configuration that is faulty: where the gateway keeps its data, its name, its time zone.
//!
//! Reports no faults (that is `load`) and is never used to run anything: only to find a gateway that can be asked.

use std::path::{Path, PathBuf};

use chrono_tz::Tz;
use serde_json::Value;

use super::{file::read_file, site::DATA_DIR, source};

/// Each is `None` where nothing legible says it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Essentials {
    /// `[gateway] data_dir`; its default where the file is legible and names none.
    pub data_dir: Option<PathBuf>,
    /// `[gateway] id`
    pub gateway: Option<String>,
    /// `[site] timezone`
    pub timezone: Option<Tz>,
}

/// Reads them as well as can be: from a file that is not valid TOML too, and from the environment without any file.
pub fn essentials(path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Essentials {
    let env: Vec<(String, String)> = env.into_iter().collect();
    let text = read_file(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let file = path.display().to_string();
    let legible = text.as_deref().and_then(|text| source::merge(text, &file, env.clone()).ok());
    let alone = || source::merge("", &file, env).ok();
    let root = legible.or_else(alone).map(|merged| Value::Object(merged.root)).unwrap_or_default();
    let lines = text.as_deref().map(scan).unwrap_or_default();
    let key = |section: &str, key: &str| {
        let typed = root.pointer(&format!("/{section}/{key}")).and_then(Value::as_str).map(str::to_owned);
        typed.or_else(|| {
            lines.iter().rfind(|line| line.0 == section && line.1 == key).map(|line| line.2.clone())
        })
    };
    let base = path.parent().unwrap_or(Path::new(""));
    let default = text.is_some().then(|| PathBuf::from(DATA_DIR));
    Essentials {
        data_dir: key("gateway", "data_dir").map(|dir| base.join(dir)).or(default),
        gateway: key("gateway", "id"),
        timezone: key("site", "timezone").and_then(|name| name.parse().ok()),
    }
}

/// Section, key and value of each line that looks like `key = value`, quoted or not.
fn scan(text: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            header.trim_matches(['[', ']', ' ']).clone_into(&mut section);
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let (table, key) = key.trim().rsplit_once('.').unwrap_or((&section, key.trim()));
        found.push((table.trim().to_owned(), key.trim().to_owned(), bare(value)));
    }
    found
}

/// A value without its quotes and without a comment behind it; a missing quote is forgiven, and so are those that an
/// input method makes.
fn bare(value: &str) -> String {
    const QUOTES: [char; 6] = ['"', '\'', '“', '”', '‘', '’'];
    let value = value.trim();
    let inner = value.trim_start_matches(QUOTES);
    let end = if inner.len() == value.len() { inner.find([' ', '\t', '#']) } else { inner.find(QUOTES) };
    inner.get(..end.unwrap_or(inner.len())).unwrap_or(inner).trim_end_matches(QUOTES).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8], env: &[(&str, &str)]) -> Essentials {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        std::fs::write(&path, bytes).unwrap();
        let mut found = essentials(&path, env.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        found.data_dir = found.data_dir.map(|dir_| dir_.strip_prefix(dir.path()).unwrap_or(&dir_).to_owned());
        found
    }

    fn data_dir(text: &str) -> Option<String> {
        of(text.as_bytes(), &[]).data_dir.map(|dir| dir.display().to_string())
    }

    #[test]
    fn a_slip_of_syntax_anywhere_does_not_hide_the_data_directory() {
        let good = "[site]\nid = \"a\"\ntimezone = \"Asia/Shanghai\"\n[gateway]\nid = \"gw-01\"\ndata_dir = \"data\"\n";
        let expected = Essentials {
            data_dir: Some("data".into()),
            gateway: Some("gw-01".into()),
            timezone: Some(chrono_tz::Asia::Shanghai),
        };
        for broken in [
            good.to_owned(),
            format!("= \n{good}"),
            format!("{good}[mqtt\nurl = "),
            format!("{good}[mqtt]\nurl = “mqtt://x”\n"),
            format!("{good}[[bus]]\nid = \"north\ndata_dir = 7\n"),
            good.replace("[gateway]\n", "[gateway]\nid = \"gw-00\"\n"),
            good.replace('\n', "\r\n") + "x",
        ] {
            assert_eq!(of(broken.as_bytes(), &[]), expected, "{broken}");
        }
        let mut gbk = good.as_bytes().to_vec();
        gbk.extend_from_slice(b"# \xb1\xf5\xbd\xad");
        assert_eq!(of(&gbk, &[]), expected, "not UTF-8");
    }

    #[test]
    fn the_value_itself_may_be_what_is_wrong() {
        for (typed, meant) in [
            ("/var/lib/gw", "/var/lib/gw"),
            ("/var/lib/gw # here", "/var/lib/gw"),
            ("\"/var/lib/gw", "/var/lib/gw"),
            ("“/var/lib/gw”", "/var/lib/gw"),
            ("'/srv/my gw'  # here", "/srv/my gw"),
            ("\"/srv/my gw\"", "/srv/my gw"),
        ] {
            assert_eq!(
                data_dir(&format!("[gateway]\ndata_dir = {typed}\n[mqtt\n")).unwrap(),
                meant,
                "{typed}"
            );
        }
        assert_eq!(data_dir("gateway.data_dir = \"/a\"\n[x\n").unwrap(), "/a");
        assert_eq!(data_dir("gateway = {id = \"a\", data_dir = \"/b\"}\n").unwrap(), "/b", "valid TOML");
    }

    #[test]
    fn the_environment_wins_and_needs_no_file() {
        let env = [("METER_GATEWAY__GATEWAY__DATA_DIR", "/elsewhere")];
        assert_eq!(of(b"[gateway]\ndata_dir = \"data\"\n[x\n", &env).data_dir, Some("/elsewhere".into()));
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let found = essentials(Path::new("/nowhere/gateway.toml"), env);
        assert_eq!(found.data_dir, Some("/elsewhere".into()));
    }

    #[test]
    fn without_a_key_the_default_holds_and_without_a_file_nothing_is_known() {
        assert_eq!(data_dir("[site]\nid = \"a\"\n[x\n").unwrap(), DATA_DIR);
        assert_eq!(essentials(Path::new("/nowhere/gateway.toml"), []), Essentials::default());
        assert_eq!(essentials(Path::new("/dev/zero"), []), Essentials::default());
    }
}
