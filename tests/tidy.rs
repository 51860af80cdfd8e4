//! Keeps the shape of the house: who may name whom, which crate has which door, where time comes from, what stays
//! free of I/O, how long a file may get, and that the two pages that describe it say the same.
//!
//! Reads the sources as text. Knows nothing of types: a name that is built by a macro escapes it, a comment, a
//! string or a lifetime does not fool it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/rust_text.rs"]
mod rust_text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use rust_text::{is_word, line_of, places, without_comments_and_literals};

/// Folders and files directly below `src/`, in reading order, and what each may name. A room names only rooms that
/// stand above it, so that there is no way round in a circle; a test below holds the table itself to that.
const IMPORTS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("protocol", &["model"]),
    ("profile", &["model", "protocol"]),
    ("config", &["model", "protocol", "profile"]),
    ("clock", &["model"]),
    ("identity", &[]),
    ("systemd", &[]),
    ("bus", &["model", "protocol", "profile", "config", "clock"]),
    ("validate", &["model", "profile"]),
    ("ledger", &["model"]),
    ("pipeline", &["model", "protocol", "profile", "config", "clock", "bus", "validate", "ledger"]),
    ("billing", &["model", "profile", "config", "clock", "identity", "validate", "ledger", "pipeline"]),
    ("publish", &["model", "config", "ledger"]),
    ("telemetry", &["model", "config", "clock", "identity", "bus", "ledger", "publish"]),
    ("console", &["model", "config", "bus", "ledger", "billing", "publish", "telemetry"]),
    ("commands", &["model", "publish", "console"]),
    ("sim", &["model", "protocol", "profile", "config", "bus"]),
    (
        "app",
        &[
            "model",
            "profile",
            "config",
            "clock",
            "identity",
            "systemd",
            "bus",
            "ledger",
            "pipeline",
            "billing",
            "publish",
            "telemetry",
            "console",
            "commands",
        ],
    ),
    (
        "cli",
        &[
            "model",
            "protocol",
            "profile",
            "config",
            "clock",
            "identity",
            "bus",
            "ledger",
            "pipeline",
            "billing",
            "telemetry",
            "sim",
            "app",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// What only some files may name, and why.
struct Door {
    what: &'static str,
    /// Whole words or paths, as they stand in code.
    names: &'static [&'static str],
    /// Beginnings of paths.
    doors: &'static [&'static str],
    why: &'static str,
}

const DOORS: &[Door] = &[
    Door {
        what: "sled",
        names: &["sled"],
        doors: &["src/ledger/index.rs"],
        why: "sled is only ever a quicker way to what the segment files say",
    },
    Door {
        what: "rumqttc",
        names: &["rumqttc"],
        doors: &["src/publish/mqtt"],
        why: "its event loop is used once per connection and never trusted with a record",
    },
    Door {
        what: "tokio-modbus",
        names: &["tokio_modbus"],
        doors: &["src/protocol/modbus/transaction.rs"],
        why: "it encodes and decodes over memory; timeout, length check and late replies are the line's",
    },
    Door {
        what: "the config crate",
        names: &[
            "use config",
            "::config::Config",
            "config::Config",
            "ConfigBuilder",
            "ConfigError",
            "FileFormat",
        ],
        doors: &["src/config/"],
        why: "what was typed becomes settings in one place",
    },
    Door {
        what: "rust_decimal",
        names: &["rust_decimal"],
        doors: &["src/model/quantity.rs"],
        why: "Dec decides how many digits a value keeps",
    },
    Door { what: "axum", names: &["axum"], doors: &["src/console/"], why: "HTTP is spoken in one folder" },
    Door {
        what: "rumqttd",
        names: &["rumqttd"],
        doors: &["src/cli/demo/broker.rs"],
        why: "the embedded broker is for the demo and is left out of a production build",
    },
    Door {
        what: "the wall clock",
        names: &["Utc::now", "Local::now", "SystemTime::now"],
        // A simulated meter has a clock of its own; the machine's is its default, in one line that says so.
        doors: &["src/clock/mod.rs", "src/sim/mod.rs"],
        why: "time is an argument, so that a stepping clock can be tested",
    },
    Door {
        what: "a Modbus write",
        names: &[
            "write_single_coil",
            "write_single_register",
            "write_multiple_coils",
            "write_multiple_registers",
            "masked_write_register",
            "read_write_multiple_registers",
        ],
        doors: &[],
        why: "the gateway only reads",
    },
];

/// The core: bytes, times and randomness are arguments here. Beginnings of paths.
const CORE: &[&str] = &[
    "src/model/",
    "src/protocol/",
    "src/profile/",
    "src/validate/",
    "src/bus/schedule",
    "src/billing/consumption.rs",
    "src/billing/day.rs",
    "src/billing/manifest.rs",
    "src/billing/proof.rs",
    "src/billing/signing.rs",
    "src/ledger/canonical.rs",
    "src/ledger/chain.rs",
    "src/ledger/summary.rs",
    "src/publish/payload.rs",
    "src/publish/session",
    "src/publish/standing.rs",
    "src/publish/topics.rs",
    "src/sim/fault.rs",
    "src/sim/request.rs",
    "src/sim/values.rs",
];
/// What waits, opens, asks the time or rolls dice.
const SHELL: &[&str] = &[
    "await",
    "async",
    "std::fs",
    "std::net",
    "std::thread",
    "File::open",
    "thread::sleep",
    "Instant::now",
    "tokio::spawn",
    "tokio::time::sleep",
    // Dice without a seed; a generator that is handed over with its seed is an argument like any other.
    "fastrand::bool",
    "fastrand::u32",
    "fastrand::u64",
    "fastrand::usize",
    "Rng::new",
];

/// Lines; beyond 400 a file wants a second look, beyond this it is two files.
const MAX_LINES: usize = 700;

/// Spelled in halves, so that this file does not find itself.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX:")];
const UNFINISHED_MACROS: &[&str] = &[concat!("to", "do!"), concat!("unimpl", "emented!")];

/// A file, as it is and as the compiler sees its names.
struct Source {
    /// From the root of the repository, with `/`.
    path: String,
    text: String,
    /// The text with comments and literals blanked out; lines stay where they are.
    code: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned(), code: without_comments_and_literals(text) }
    }

    /// `bus` for `src/bus/line.rs`, `clock` for `src/clock.rs`.
    fn room(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        below.split('/').next().map(|name| name.trim_end_matches(".rs"))
    }

    /// The code without its tests: those may use the neighbours they please.
    fn product(&self) -> &str {
        let file = self.path.rsplit('/').next().unwrap_or_default();
        if file == "tests.rs" || file.ends_with("_tests.rs") || self.path.contains("/tests/") {
            return "";
        }
        let end = self.code.find("#[cfg(test)]\nmod tests {").unwrap_or(self.code.len());
        &self.code[..end]
    }

    fn is_below(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path.starts_with(place))
    }
}

/// Every `.rs` file below the folder, sorted.
fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(dir) = folders.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                found.push(Source::new(&name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The rooms named after `crate::`, with the place of each: `crate::a::B`, `crate::{a::B, c::{D}}`.
fn imports(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for start in places(code, "crate").into_iter().filter(|at| code[at + 5..].starts_with("::")) {
        let body = start + 7;
        if !code[body..].starts_with('{') {
            found.push((body, word(&code[body..])));
            continue;
        }
        let mut depth = 0_usize;
        let mut first_of_path = false;
        for (offset, c) in code[body..].char_indices() {
            match c {
                '{' => (depth, first_of_path) = (depth + 1, depth == 0),
                '}' => depth -= 1,
                ',' if depth == 1 => first_of_path = true,
                c if depth == 1 && first_of_path && !c.is_whitespace() => {
                    found.push((body + offset, word(&code[body + offset..])));
                    first_of_path = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.retain(|(_, room)| room != "self" && !room.is_empty());
    found
}

fn word(code: &str) -> String {
    code.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
}

fn foreign_rooms(sources: &[Source]) -> Vec<String> {
    let table: BTreeMap<_, _> = IMPORTS.iter().copied().collect();
    let mut said = Vec::new();
    for source in sources {
        let Some(room) = source.room() else { continue };
        let Some(allowed) = table.get(room) else {
            said.push(format!("{}: {room} is in no row of IMPORTS in tests/tidy.rs", source.path));
            continue;
        };
        for (at, named) in imports(source.product()) {
            if named != room && !allowed.contains(&named.as_str()) {
                let allowed = if allowed.is_empty() { "no other room".into() } else { allowed.join(", ") };
                let line = line_of(&source.code, at);
                said.push(format!("{}:{line}: {room} names {named}; allowed: {allowed}", source.path));
            }
        }
    }
    said
}

fn back_doors(sources: &[Source]) -> Vec<String> {
    let mut said = Vec::new();
    for door in DOORS {
        for source in sources.iter().filter(|source| !source.is_below(door.doors)) {
            for name in door.names {
                for at in places(&source.code, name) {
                    let allowed =
                        if door.doors.is_empty() { "nowhere".into() } else { door.doors.join(", ") };
                    let line = line_of(&source.code, at);
                    let Door { what, why, .. } = door;
                    said.push(format!(
                        "{}:{line}: {what} (`{name}`); allowed: {allowed}: {why}",
                        source.path
                    ));
                }
            }
        }
    }
    said
}

fn impure_core(sources: &[Source]) -> Vec<String> {
    let mut said = Vec::new();
    for source in sources.iter().filter(|source| source.is_below(CORE)) {
        for name in SHELL {
            for at in places(source.product(), name) {
                let line = line_of(&source.code, at);
                said.push(format!("{}:{line}: `{name}` in the core; pass it in as an argument", source.path));
            }
        }
    }
    said
}

fn without_opening(sources: &[Source]) -> Vec<String> {
    let silent = sources.iter().filter(|source| !source.text.starts_with("//! "));
    silent.map(|source| format!("{}:1: does not open with `//!`: what does it know?", source.path)).collect()
}

fn too_long(sources: &[Source]) -> Vec<String> {
    let mut said = Vec::new();
    for source in sources {
        let lines = source.text.lines().count();
        if lines > MAX_LINES {
            said.push(format!("{}: {lines} lines, at most {MAX_LINES}: split it", source.path));
        }
    }
    said
}

fn unfinished(sources: &[Source]) -> Vec<String> {
    let mut said = Vec::new();
    for source in sources {
        let words = UNFINISHED.iter().map(|name| (name, &source.text));
        let macros = UNFINISHED_MACROS.iter().map(|name| (name, &source.code));
        for (name, text) in words.chain(macros) {
            for at in places(text, name) {
                said.push(format!("{}:{}: `{name}`: finish it", source.path, line_of(text, at)));
            }
        }
    }
    said
}

/// Nothing was said; otherwise all of it at once.
#[track_caller]
fn tidy(said: &[String]) {
    assert!(said.is_empty(), "{} places:\n  {}", said.len(), said.join("\n  "));
}

#[test]
fn each_room_names_only_those_it_may() {
    tidy(&foreign_rooms(&sources("src")));
}

/// Types with a method whose file belongs to another room than theirs: what they can do would reach where they may not.
fn foreign_methods(sources: &[Source]) -> Vec<String> {
    let mut defined: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        for keyword in ["struct ", "enum "] {
            for at in places(&source.code, keyword.trim_end()) {
                let name = word(source.code[at..].trim_start_matches(keyword));
                defined.entry(name).or_default().extend(source.room());
            }
        }
    }
    let mut said = Vec::new();
    for source in sources {
        let product = source.product();
        for at in places(product, "impl").into_iter().filter(|at| *at == 0 || product[..*at].ends_with('\n'))
        {
            let head = product[at + 4..].split('{').next().unwrap_or_default();
            if head.contains(" for ") {
                continue;
            }
            let head = head.trim_start();
            let after_generics =
                head.strip_prefix('<').and_then(|rest| rest.split_once("> ")).map_or(head, |(_, rest)| rest);
            let name = word(after_generics);
            if let Some(rooms) = defined.get(&name)
                && let Some(room) = source.room()
                && !rooms.contains(room)
            {
                let line = line_of(&source.code, at);
                said.push(format!("{}:{line}: methods of {name}, which belongs to {rooms:?}", source.path));
            }
        }
    }
    said
}

#[test]
fn methods_of_a_type_live_in_its_room() {
    tidy(&foreign_methods(&sources("src")));
    let planted = [
        Source::new("src/model/a.rs", "pub struct Upward;\n"),
        Source::new("src/bus/b.rs", "impl Upward {\n    fn reach(&self) {}\n}\n"),
    ];
    assert_eq!(foreign_methods(&planted).len(), 1);
}

#[test]
fn the_import_table_runs_one_way_and_names_what_is_there() {
    let mut above = BTreeSet::new();
    for (room, allowed) in IMPORTS {
        for named in *allowed {
            assert!(above.contains(named), "{room} may name {named}, which does not stand above it");
        }
        assert!(above.insert(room), "{room} stands twice");
    }
    let sources = sources("src");
    let there: BTreeSet<_> = sources.iter().filter_map(Source::room).collect();
    let gone: Vec<_> = above.into_iter().filter(|room| !there.contains(*room)).collect();
    assert!(gone.is_empty(), "in IMPORTS, but not below src/: {gone:?}");
}

#[test]
fn each_foreign_crate_and_the_time_have_one_door() {
    tidy(&back_doors(&sources("src")));
}

#[test]
fn every_door_exists_and_is_used() {
    let sources = sources("src");
    for door in DOORS.iter().filter(|door| !door.doors.is_empty()) {
        let used = sources
            .iter()
            .filter(|source| source.is_below(door.doors))
            .any(|source| door.names.iter().any(|name| !places(&source.code, name).is_empty()));
        assert!(used, "nobody at {:?} names {}: the door has moved", door.doors, door.what);
    }
}

#[test]
fn the_core_waits_for_nothing_and_opens_nothing() {
    let sources = sources("src");
    tidy(&impure_core(&sources));
    for place in CORE {
        let there = sources.iter().any(|source| source.path.starts_with(place));
        assert!(there, "{place} is in CORE, but not there");
    }
}

#[test]
fn every_file_opens_with_what_it_knows() {
    for folder in ["src", "tests", "examples"] {
        tidy(&without_opening(&sources(folder)));
    }
}

#[test]
fn no_file_outgrows_its_reader() {
    tidy(&too_long(&sources("src")));
    tidy(&too_long(&sources("tests")));
}

#[test]
fn nothing_is_left_unfinished() {
    for folder in ["src", "tests", "examples"] {
        tidy(&unfinished(&sources(folder)));
    }
}

#[test]
fn the_map_names_every_module() {
    let map = page("src/lib.rs");
    for (room, _) in IMPORTS.iter().filter(|(room, _)| !["main", "lib"].contains(room)) {
        assert!(map.contains(&format!("//! - [`{room}`]")), "src/lib.rs: the map has no line for {room}");
        assert!(map.contains(&format!("pub mod {room};")), "src/lib.rs: {room} is not a module");
    }
}

#[test]
fn the_architecture_page_shows_this_import_table() {
    let page = page("docs/architecture.md");
    for (room, allowed) in IMPORTS.iter().filter(|(room, _)| *room != "lib") {
        let allowed = if allowed.is_empty() { "nobody".into() } else { allowed.join(", ") };
        let row = format!("| `{room}` | {allowed} |");
        assert!(page.contains(&row), "docs/architecture.md: expected the row\n{row}");
    }
}

#[test]
fn the_validation_page_has_a_row_for_every_flag_and_no_other() {
    let source = page("src/model/reading.rs");
    let flags: BTreeSet<&str> = source
        .split_once("pub mod flag {")
        .unwrap()
        .1
        .lines()
        .filter(|line| line.trim_start().starts_with("pub const "))
        .map(|line| line.split('"').nth(1).unwrap())
        .collect();
    let page = page("docs/validation.md");
    let rows: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(rows, flags, "docs/validation.md (left) and mod flag in src/model/reading.rs (right)");
}

/// What a page says in backticks: files and functions must be there, so that no page outlives what it speaks of.
fn strangers(page: &str, sources: &[Source], is_there: impl Fn(&str) -> bool) -> Vec<String> {
    let mut said = Vec::new();
    for (line, number) in page.lines().zip(1..) {
        for name in line.split('`').skip(1).step_by(2) {
            let is_path =
                ["src/", "tests/", "docs/", "configs/"].iter().any(|folder| name.starts_with(folder));
            let is_test = name.matches('_').count() > 2 && name.bytes().all(is_word);
            let missing = match () {
                () if name.contains('*') => false,
                () if is_path => !is_there(name),
                () if is_test => !sources.iter().any(|source| source.code.contains(&format!("fn {name}("))),
                () => false,
            };
            if missing {
                said.push(format!("{number}: `{name}` is not there"));
            }
        }
    }
    said
}

#[test]
fn the_architecture_page_names_only_what_is_there() {
    let mut all = sources("src");
    all.extend(sources("tests"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    tidy(&strangers(&page("docs/architecture.md"), &all, |path| root.join(path).exists()));
}

mod the_checker {
    use super::*;

    fn one(path: &str, text: &str) -> Vec<Source> {
        vec![Source::new(path, text)]
    }

    #[test]
    fn sees_a_foreign_room_and_says_where_and_what_is_allowed() {
        let text = "//! Planted.\n\nuse crate::model::Utc;\nuse crate::{\n    model::{Dec, Unit},\n    ledger::Line,\n};\n";
        let said = foreign_rooms(&one("src/protocol/planted.rs", text));
        assert_eq!(said, ["src/protocol/planted.rs:6: protocol names ledger; allowed: model"]);
        let said = foreign_rooms(&one("src/model/planted.rs", "fn f() { crate::app::run() }"));
        assert_eq!(said, ["src/model/planted.rs:1: model names app; allowed: no other room"]);
        let said = foreign_rooms(&one("src/attic/mod.rs", ""));
        assert_eq!(said, ["src/attic/mod.rs: attic is in no row of IMPORTS in tests/tidy.rs"]);
    }

    #[test]
    fn lets_tests_and_comments_name_whom_they_please() {
        let text = "// crate::app\n/// [`crate::app`]\nconst A: &str = \"crate::app\";\n#[cfg(test)]\nmod tests {\n    use crate::app;\n}\n";
        assert!(foreign_rooms(&one("src/model/planted.rs", text)).is_empty());
        assert!(foreign_rooms(&one("src/ledger/tests.rs", "use crate::app;")).is_empty());
    }

    #[test]
    fn sees_a_back_door() {
        for (text, what) in [
            ("let db = sled::open(path);", "sled"),
            ("use rumqttc::Client;", "rumqttc"),
            ("use tokio_modbus::client::rtu;", "tokio-modbus"),
            ("use config::Config;", "the config crate"),
            ("let c = ::config::Config::builder();", "the config crate"),
            ("use rust_decimal::Decimal;", "rust_decimal"),
            ("let r = axum::Router::new();", "axum"),
            ("use rumqttd::Broker;", "rumqttd"),
            ("let now = chrono::Utc::now();", "the wall clock"),
            ("let now = std::time::SystemTime::now();", "the wall clock"),
            ("client.write_single_register(0, 1).await", "a Modbus write"),
        ] {
            let said = back_doors(&one("src/validate/planted.rs", text));
            let begin = format!("src/validate/planted.rs:1: {what} (");
            assert!(said.iter().any(|line| line.starts_with(&begin)), "{text}: {said:?}");
        }
        assert!(
            back_doors(&one("src/validate/planted.rs", "// sled\nlet a = \"axum\"; let unsledded = 1;"))
                .is_empty()
        );
        assert!(
            back_doors(&one("src/app.rs", "use crate::{config::{self, Bus}};\nconfig::load(a);")).is_empty()
        );
    }

    #[test]
    fn sees_a_core_that_waits() {
        let said =
            impure_core(&one("src/validate/planted.rs", "//! P\nfn f() {\n    let n = Instant::now();\n}\n"));
        assert_eq!(said.len(), 1);
        assert!(said[0].starts_with("src/validate/planted.rs:3: `Instant::now`"), "{said:?}");
    }

    #[test]
    fn sees_a_silent_a_long_and_an_unfinished_file() {
        assert_eq!(without_opening(&one("src/a.rs", "use std::io;\n")).len(), 1);
        assert!(without_opening(&one("src/a.rs", "//! A.\n")).is_empty());
        assert_eq!(too_long(&one("src/a.rs", &"\n".repeat(MAX_LINES + 1))).len(), 1);
        assert!(too_long(&one("src/a.rs", &"\n".repeat(MAX_LINES))).is_empty());
        let text = format!("//! A.\n// {}: later\nfn f() {{ {}() }}\n", UNFINISHED[0], UNFINISHED_MACROS[0]);
        assert_eq!(unfinished(&one("src/a.rs", &text)).len(), 2);
    }

    #[test]
    fn sees_a_page_that_speaks_of_what_is_gone() {
        let page =
            "`src/a.rs` and `src/gone.rs`, proved by\n`it_does_what_it_says` and `it_does_something_else`\n";
        let said =
            strangers(page, &one("src/a.rs", "fn it_does_what_it_says() {}"), |path| path == "src/a.rs");
        assert_eq!(said, ["1: `src/gone.rs` is not there", "2: `it_does_something_else` is not there"]);
    }
}
