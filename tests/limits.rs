//! Every limit is in `docs/limits.md`, with the value that the code has; and the ones that matter most do what the page
//! says.
//!
//! The first half reads sources and page as text; the second half fills queues and doors.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "limits/behaviour.rs"]
mod behaviour;
#[path = "common/rust_text.rs"]
mod rust_text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use rust_text::{is_word, without_comments_and_literals};

const PAGE: &str = "docs/limits.md";
/// What no production build reaches.
const APART: [&str; 2] = ["src/sim/", "src/cli/demo/"];
/// Numbers that bound nothing, and what they are instead.
const NO_LIMITS: &[(&str, &str, &str)] = &[
    ("src/billing/day.rs", "LONGEST_GAP_QUARTERS", "a fact of calendars"),
    ("src/billing/manifest.rs", "LEDGER_BYTES", "reserved inside MAX_LINE"),
    ("src/billing/manifest.rs", "VERSION", "a version"),
    ("src/cli/mod.rs", "CONFIGURATION", "an exit code"),
    ("src/cli/mod.rs", "NO", "an exit code"),
    ("src/cli/mod.rs", "OWN_FAULT", "an exit code"),
    ("src/cli/mod.rs", "WRONG_USAGE", "an exit code"),
    ("src/cli/status.rs", "LABEL", "a layout"),
    ("src/cli/status.rs", "REASON_WIDTH", "a layout"),
    ("src/cli/text.rs", "USUAL_WIDTH", "a layout"),
    ("src/config/cell.rs", "KEPT_DIGITS", "a fact of spreadsheets"),
    ("src/config/fault.rs", "PART_CHARS", "taste"),
    ("src/config/fault.rs", "FAR", "a sentinel of an algorithm"),
    ("src/config/poll_plan.rs", "FULL_PPM", "a unit"),
    ("src/config/site.rs", "INTERVAL_SECS", "a default"),
    ("src/identity.rs", "PEM_WIDTH", "a format"),
    ("src/ledger/disk/real.rs", "DIR_MODE", "rights"),
    ("src/ledger/disk/real.rs", "FILE_MODE", "rights"),
    ("src/ledger/index.rs", "CHECK_BYTES", "a format"),
    ("src/ledger/summary.rs", "PLACE_BYTES", "a format"),
    ("src/ledger/summary.rs", "SPARSE", "a format"),
    ("src/model/slots.rs", "DAY_SECS", "a unit"),
    ("src/model/slots.rs", "MOST_BESIDE_MS", "a spread, not a bound of anything that grows"),
    ("src/model/time.rs", "SLEW", "what counts as a step"),
    ("src/model/time.rs", "STEP", "what counts as a step"),
    ("src/model/reading.rs", "ENTRY_BYTES", "an estimate"),
    ("src/model/reading.rs", "EVIDENCE_BYTES", "an estimate"),
    ("src/profile/size.rs", "EVIDENCE_BYTES", "an estimate"),
    ("src/profile/size.rs", "FRAME_BYTES", "an estimate"),
    ("src/profile/size.rs", "VALUE_BYTES", "an estimate"),
    ("src/profile/section.rs", "TYPO_LETTERS", "taste"),
    ("src/protocol/dlt645.rs", "FRAME_CHARS", "a fact of DL/T 645"),
    ("src/protocol/modbus.rs", "REPLY_OVERHEAD_CHARS", "a fact of Modbus"),
    ("src/protocol/modbus.rs", "REQUEST_CHARS", "a fact of Modbus"),
    ("src/protocol/modbus/frames.rs", "MBAP_PREFIX", "a fact of Modbus TCP"),
    ("src/protocol/modbus/frames.rs", "QUOTED", "taste"),
    ("src/protocol/modbus/frames.rs", "RTU_EXCEPTION", "a fact of Modbus"),
    ("src/protocol/modbus/transaction.rs", "FIRST_NUMBER", "a fact of tokio-modbus"),
    ("src/protocol/wire.rs", "NETWORK_ROUND_TRIP", "an assumption of the poll plan"),
    ("src/publish/mqtt.rs", "PACKET_OVERHEAD", "reserved inside a packet"),
    ("src/publish/mqtt/packets.rs", "NO_LIMIT", "what a broker says that has no limit"),
    ("src/publish/mqtt/packets.rs", "RECEIVE_MAX", "what a broker says that names no number"),
    ("src/publish/payload.rs", "VERSION", "a version"),
];
/// Channels without a capacity, and what bounds them instead.
const UNBOUNDED: &[(&str, usize, &str)] = &[
    ("src/bus/readings.rs", 1, "a reading needs its share of READINGS_BYTES permits"),
    ("src/ledger/index.rs", 2, "one message each, ever"),
    ("src/ledger/store.rs", 2, "an append needs one of QUEUE permits; sealed segments come one by one"),
];

/// By file and name.
type Known<T> = BTreeMap<(String, String), T>;

#[derive(Debug)]
struct Row {
    value: String,
    unit: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn rows() -> Known<Row> {
    let mut known = Known::new();
    for line in read(PAGE).lines().filter(|line| line.starts_with("| src/")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [file, name, value, unit, reason, end] = cells[..] else { panic!("not six cells: {line}") };
        assert!(!reason.is_empty() && !end.is_empty(), "without a reason, or silent about the limit: {line}");
        let row = Row { value: value.to_owned(), unit: unit.to_owned() };
        let place = (file.to_owned(), name.trim_matches('`').to_owned());
        assert!(known.insert(place, row).is_none(), "twice: {line}");
    }
    known
}

/// Product code of every source file, without comments, literals and tests.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeMap::new();
    let mut folders = vec![root.join("src")];
    while let Some(dir) = folders.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let test = name.ends_with("/tests.rs") || name.ends_with("_tests.rs") || name.contains("/tests/");
            if test
                || path.extension().is_none_or(|end| end != "rs")
                || APART.iter().any(|apart| name.starts_with(apart))
            {
                continue;
            }
            let code = without_comments_and_literals(&fs::read_to_string(&path).unwrap());
            let end = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
            found.insert(name, code[..end].to_owned());
        }
    }
    found
}

/// Constants that can bound something by their type: numbers, ranges and pairs of numbers, spans of time. What is
/// written in hexadecimal is a code or a mask.
fn constants(sources: &BTreeMap<String, String>) -> Known<String> {
    const NUMBERS: [&str; 10] =
        ["usize", "u8", "u16", "u32", "u64", "i16", "i32", "i64", "Duration", "TimeDelta"];
    let mut found = Known::new();
    for (file, code) in sources {
        for (at, _) in
            code.match_indices("const ").filter(|(at, _)| *at == 0 || !is_word(code.as_bytes()[at - 1]))
        {
            let Some((declared, _)) = code[at + 6..].split_once(';') else { continue };
            let Some((name, rest)) = declared.split_once(':') else { continue };
            let Some((kind, value)) = rest.split_once('=') else { continue };
            let mut words = kind
                .split(|c: char| !c.is_ascii_alphanumeric())
                .filter(|word| !matches!(*word, "" | "std" | "time" | "chrono" | "ops" | "RangeInclusive"));
            if words.all(|word| NUMBERS.contains(&word)) && !kind.contains('[') && !value.contains(" 0x") {
                found.insert((file.clone(), name.trim().to_owned()), value.trim().to_owned());
            }
        }
    }
    found
}

/// A constant's own text as numbers: times in ms. Two for a range or a pair.
fn numbers(text: &str) -> Option<Vec<u128>> {
    if let Some((from, to)) = text.split_once("..=") {
        return Some([numbers(from)?, numbers(to)?].concat());
    }
    let text = text.trim();
    if let Some(pair) = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        return pair.split(',').map(|one| Some(numbers(one)?[0])).collect();
    }
    for (maker, ms) in [
        ("::from_secs(", 1000),
        ("::from_millis(", 1),
        ("::seconds(", 1000),
        ("::milliseconds(", 1),
        ("::minutes(", 60_000),
        ("::hours(", 3_600_000),
        ("::days(", 86_400_000),
    ] {
        if let Some((_, inner)) = text.split_once(maker) {
            return Some(vec![numbers(inner.trim_end_matches(')'))?[0] * ms]);
        }
    }
    let fold = |sign: &str, of: fn(u128, u128) -> u128| {
        let (left, right) = text.split_once(sign)?;
        Some(vec![of(numbers(left)?[0], numbers(right)?[0])])
    };
    if text.contains('+') {
        return fold("+", |a, b| a + b);
    }
    if text.contains('*') {
        return fold("*", |a, b| a * b);
    }
    if text.contains("<<") {
        return fold("<<", |a, b| a << b);
    }
    let word = text.split_whitespace().next()?.replace('_', "");
    word.parse().ok().map(|number| vec![number])
}

/// The cell as the code would count it: bytes, ms, or whatever it is.
fn said(row: &Row) -> Option<Vec<u128>> {
    let factor = match row.unit.as_str() {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => 1,
    };
    row.value.split(" to ").map(|one| Some(one.parse::<u128>().ok()? * factor)).collect()
}

/// A span of time knows its unit; a number that counts seconds or milliseconds does not.
fn in_ms(row: &Row) -> u128 {
    match row.unit.as_str() {
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 1,
    }
}

/// The text of a field of `Default for Options`.
fn option(code: &str, field: &str) -> Option<String> {
    let body = code.split_once("impl Default for Options")?.1;
    let (_, rest) = body.split_once(&format!("{field}: "))?;
    Some(rest.split(",\n").next()?.split("  ").next()?.trim_end_matches(',').to_owned())
}

#[test]
fn every_limit_is_on_the_page_with_the_value_that_the_code_has() {
    let (sources, mut rows) = (sources(), rows());
    let windows = |file: &str| file == "src/publish/mqtt.rs";
    let mut wrong = Vec::new();
    let mut exempt: BTreeSet<(&str, &str)> = NO_LIMITS.iter().map(|(file, name, _)| (*file, *name)).collect();
    let mut all = constants(&sources);
    for (file, name) in rows.keys().filter(|(_, name)| name.contains("::")) {
        let field = name.rsplit("::").next().unwrap();
        if let Some(value) = option(&sources[file], field) {
            all.insert((file.clone(), name.clone()), value);
        }
    }
    for ((file, name), value) in &all {
        let spared = exempt.remove(&(file.as_str(), name.as_str()));
        let Some(row) = rows.remove(&(file.clone(), name.clone())) else {
            if !spared {
                wrong.push(format!(
                    "{file}: {name} = {value}: not in {PAGE}; what bounds it, and what happens there?"
                ));
            }
            continue;
        };
        let value = if windows(file) { value.replace("WINDOW", "32") } else { value.clone() };
        let (code, page) = (numbers(&value), said(&row));
        let span = value.contains("::");
        let page =
            page.map(|page| page.iter().map(|n| if span { n * in_ms(&row) } else { *n }).collect::<Vec<_>>());
        if code.is_none() || code != page {
            wrong.push(format!(
                "{file}: {name} is {value} ({code:?}), {PAGE} says {} {}",
                row.value, row.unit
            ));
        }
        if spared {
            wrong.push(format!("{file}: {name} is in {PAGE} and in NO_LIMITS"));
        }
    }
    wrong.extend(rows.keys().map(|(file, name)| format!("{PAGE} has {name} of {file}, the code has not")));
    wrong.extend(
        exempt.iter().map(|(file, name)| format!("NO_LIMITS has {name} of {file}, the code has not")),
    );
    assert!(wrong.is_empty(), "{} places:\n  {}", wrong.len(), wrong.join("\n  "));
}

#[test]
fn every_channel_has_a_capacity_from_the_page() {
    let rows = rows();
    let names: BTreeSet<&str> = rows.keys().map(|(_, name)| name.as_str()).collect();
    let mut wrong = Vec::new();
    let mut unbounded: BTreeMap<&str, usize> = BTreeMap::new();
    let sources = sources();
    for (file, code) in &sources {
        for (at, _) in code.match_indices("mpsc::channel").chain(code.match_indices("unbounded_channel")) {
            let call = code[at..].split_once('(').unwrap().1;
            let capacity = call.split(')').next().unwrap().trim();
            if capacity.is_empty() {
                *unbounded.entry(file).or_default() += 1;
            } else if !names.contains(capacity) {
                wrong.push(format!("{file}: a channel of {capacity}, which is not in {PAGE}"));
            }
        }
    }
    let expected: BTreeMap<&str, usize> = UNBOUNDED.iter().map(|(file, count, _)| (*file, *count)).collect();
    assert_eq!(unbounded, expected, "channels without a capacity: what bounds them?");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_changed_number_and_a_new_constant_are_noticed() {
    let row = |value: &str, unit: &str| Row { value: value.into(), unit: unit.into() };
    assert_eq!(numbers("64 * 1024"), said(&row("64", "KiB")));
    assert_ne!(numbers("65 * 1024"), said(&row("64", "KiB")));
    assert_eq!(numbers("Duration::from_secs(15 * 60)"), Some(vec![900_000]));
    assert_eq!(numbers("10..=10_000"), said(&row("10 to 10000", "ms")));
    assert_eq!(numbers("SOMETHING"), None);
    let code = "const NEW: usize = 5;\npub const WAIT: std::time::Duration = Duration::from_secs(1);\nconst TEXT: &str = 1;";
    let found = constants(&BTreeMap::from([("src/a.rs".to_owned(), code.to_owned())]));
    assert_eq!(found.len(), 2, "{found:?}");
}
