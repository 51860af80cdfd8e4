//! Whatever stands in place of a file, or in it: refused at once and in few words.

use std::{os::unix::fs::symlink, time::Instant};

use super::*;

/// An unoptimised build on a busy machine needs seconds for what takes milliseconds; a pipe would take for ever.
const AT_ONCE: Duration = Duration::from_secs(20);

fn pipe(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
}

fn refused(path: &Path) -> Vec<Fault> {
    let began = Instant::now();
    let found = config::load(path, []).unwrap_err();
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    found
}

#[test]
fn what_is_no_ordinary_file_is_refused_wherever_a_file_is_named() {
    let dir = TempDir::new().unwrap();
    pipe(&dir.path().join("pipe"));
    symlink("/dev/zero", dir.path().join("zero")).unwrap();
    for (name, says) in [("pipe", "a pipe"), ("zero", "a device"), (".", "a directory")] {
        let found = refused(&dir.path().join(name));
        assert!(
            said(&found).contains(says) && found[0].file.contains(&*dir.path().to_string_lossy()),
            "{}",
            said(&found)
        );
        for (key, at) in [
            ("meters_file", format!("meters_file = \"{name}\"\n{VALID}")),
            (
                "mqtt.password_file",
                VALID.replace("[mqtt]", &format!("[mqtt]\nusername = \"u\"\npassword_file = \"{name}\"")),
            ),
            (
                "mqtt.ca_file",
                VALID.replace("mqtt://127.0.0.1\"", &format!("mqtts://b\"\nca_file = \"{name}\"")),
            ),
        ] {
            fs::write(dir.path().join("gateway.toml"), at).unwrap();
            let found = refused(&dir.path().join("gateway.toml"));
            assert_eq!(found.len(), 1, "{}", said(&found));
            assert!(found[0].place == key && found[0].message.contains(says), "{}", found[0]);
        }
    }
    fs::create_dir(dir.path().join("profiles")).unwrap();
    pipe(&dir.path().join("profiles/own.toml"));
    fs::write(dir.path().join("gateway.toml"), format!("profiles_dir = \"profiles\"\n{VALID}")).unwrap();
    let found = refused(&dir.path().join("gateway.toml"));
    assert!(found[0].message.contains("profiles/own.toml: it is a pipe"), "{}", said(&found));
}

#[test]
fn a_million_keys_and_fifty_megabytes_are_refused_in_few_words() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("gateway.toml");
    let keys = |count: usize| (0..count).map(|n| format!("k{n} = 1\n")).collect::<Vec<_>>().concat();
    let deep = |count: usize| format!("{}{}", "a.".repeat(count), "b = 1\n");
    let meters = "[[meter]]\n".repeat(380_000);
    let strings = format!("x = \"{}\"\n", "y".repeat(4_000_000));
    let nested = format!("x = {}{}\n", "[".repeat(2_000_000), "]".repeat(2_000_000));
    for text in
        [keys(2_000_000), keys(300_000), deep(2_000_000), meters, strings, nested, "x".repeat(50_000_000)]
    {
        fs::write(&path, &text).unwrap();
        let found = refused(&path);
        assert!((1..=201).contains(&found.len()), "{}", found.len());
        assert!(said(&found).len() < 100_000, "{}", said(&found).len());
    }
    fs::write(&path, format!("meters_file = \"m.csv\"\n{VALID}")).unwrap();
    let rows = |count: usize| (0..count).map(|n| format!("A{n},north,1,p\n")).collect::<Vec<_>>().concat();
    for csv in [rows(200_000), rows(2_000_000), "\"".repeat(4_000_000)] {
        fs::write(dir.path().join("m.csv"), format!("id,bus,address,profile\n{csv}")).unwrap();
        let found = refused(&path);
        assert!((1..=202).contains(&found.len()), "{}", found.len());
        assert!(said(&found).len() < 200_000, "{}", said(&found).len());
    }
}

#[test]
fn a_data_directory_whose_socket_would_have_too_long_a_path_is_a_fault() {
    let with =
        |dir: &str| load(&VALID.replace("id = \"gw-01\"", &format!("id = \"gw-01\"\ndata_dir = \"{dir}\"")));
    // 107 bytes are left by the kernel; the name of the socket and a slash are 19.
    assert!(with(&format!("/{}", "d".repeat(87))).is_ok());
    let found = with(&format!("/{}", "d".repeat(88))).unwrap_err();
    assert_eq!((found.len(), found[0].place.as_str()), (1, "gateway.data_dir"));
    assert!(found[0].message.contains("108 bytes"), "{}", found[0]);
    assert!(with(&format!("/{}", "表".repeat(30))).is_err(), "bytes count, not characters");
}

#[test]
fn nothing_that_was_typed_commands_the_terminal() {
    let evil = "\\u001b[31m\\u202eE\\u200b";
    let text = VALID
        .replace("id = \"E-1\"", &format!("id = \"{evil}\"\n\"{evil}\" = 1"))
        .replace("id = \"north\"", &format!("id = \"{evil}\""))
        .replace("address = \"1\"", &format!("address = \"{evil}\""))
        .replace("kind = \"tcp\"", &format!("kind = \"{evil}\""))
        .replace("[site]", &format!("[site]\nname = \"{evil}\""));
    let dir = TempDir::new().unwrap();
    fs::write(
        dir.path().join("m.csv"),
        "id,bus,address,profile,\u{1b}[2J\u{202e}\n\u{1b}[2J,\u{202e},1,x,\n",
    )
    .unwrap();
    let found = load_in(&dir, &format!("meters_file = \"m.csv\"\n{text}"), &[]).unwrap_err();
    assert!(found.len() > 8, "{}", said(&found));
    for shown in [said(&found), serde_json::to_string(&found).unwrap()] {
        let raw = shown.chars().find(|c| matches!(c, '\u{1b}' | '\u{202e}' | '\u{200b}'));
        assert_eq!(raw, None, "{shown:?}");
    }
    assert!(said(&found).contains("\\u{202e}"));
}

#[test]
fn an_option_and_the_names_of_directories_are_no_ids() {
    for id in ["-x", ".", "..", ".E-1", "--help"] {
        let meter = slip("id = \"E-1\"", &format!("id = \"{id}\""));
        assert!(meter.place.starts_with("meter[1]") && meter.message.contains("begins with"), "{meter}");
        let bus = faults(&VALID.replace("id = \"plant\"", &format!("id = \"{id}\"")));
        assert!(bus[0].place.starts_with("bus[2]"), "{}", said(&bus));
    }
    for id in ["-x", "-"] {
        assert_eq!(slip("id = \"riverside\"", &format!("id = \"{id}\"")).place, "site.id");
        assert_eq!(slip("id = \"gw-01\"", &format!("id = \"{id}\"")).place, "gateway.id");
    }
    for id in ["E-1", "_1", "1", "a..b"] {
        assert!(load(&VALID.replace("id = \"E-1\"", &format!("id = \"{id}\""))).is_ok(), "{id}");
    }
}
