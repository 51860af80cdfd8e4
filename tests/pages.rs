//! `docs/mqtt.md` and `docs/http.md` are the contract: they name what the code knows and nothing else, and their examples
//! are true.
//!
//! The names are taken from the sources as text. What the pages say in prose is not judged.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/rust_text.rs"]
mod rust_text;

use std::{collections::BTreeSet, fs, path::Path};

use meter_gateway::{
    ledger::chain::verify_line,
    model::Reading,
    publish::{Command, Receipt},
};
use serde_json::Value;

const MQTT: &str = "docs/mqtt.md";
const HTTP: &str = "docs/http.md";

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every source below `dir` without its tests: path and text.
fn sources(dir: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).unwrap() {
        let path = format!("{dir}/{}", entry.unwrap().file_name().into_string().unwrap());
        if Path::new(&path).extension().is_none() {
            found.extend(sources(&path));
        } else if !path.ends_with("tests.rs") {
            let text = read(&path);
            found.push((path, text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned()));
        }
    }
    found
}

/// From behind `begin` to the first line that closes it: `end` at the beginning of a line.
fn block<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let rest = text.split_once(begin).unwrap_or_else(|| panic!("`{begin}` is not in the source any more")).1;
    rest.split_once(&format!("\n{end}")).unwrap().0
}

/// What stands in quotes behind each `before` and in front of an `after`.
fn quoted<'a>(text: &'a str, before: &'a str, after: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(before).skip(1).filter_map(move |rest| {
        let (name, behind) = rest.trim_start().strip_prefix('"')?.split_once('"')?;
        behind.starts_with(after).then_some(name)
    })
}

/// The keys of the objects that are made with `json!`.
fn keys(text: &str) -> BTreeSet<String> {
    text.split('"')
        .zip(text.split('"').skip(1))
        .filter(|(_, behind)| behind.starts_with(": "))
        .map(|(name, _)| name.to_owned())
        .filter(|name| name.bytes().all(rust_text::is_word))
        .collect()
}

/// Those of one function.
fn keys_of(path: &str, function: &str, end: &str) -> BTreeSet<String> {
    keys(block(&read(path), &format!("fn {function}("), end))
}

fn set<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// The rows of the table whose first heading is `heading`, each as its cells.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let rows: Vec<&str> = page
        .lines()
        .skip_while(|line| !line.starts_with(&format!("| {heading} |")))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    assert!(!rows.is_empty(), "no table with the heading {heading}");
    rows.iter()
        .map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// What stands in backticks, without the parts of a path: `store.bytes` is `store` and `bytes`.
fn spans(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn first_spans(page: &str, heading: &str) -> BTreeSet<String> {
    table(page, heading).iter().flat_map(|row| spans(&row[0])).collect()
}

fn words_in_spans(text: &str) -> BTreeSet<String> {
    spans(text).iter().flat_map(|span| span.split(['.', '/', '{', '}'])).map(str::to_owned).collect()
}

/// The text between this heading and the next of its rank.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let rank = heading.split(' ').next().unwrap();
    let rest = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}")).1;
    rest.split(&format!("\n{rank} ")).next().unwrap()
}

fn examples(page: &str) -> Vec<&str> {
    page.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// Each object within `value` that is a record.
fn records<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) if fields.contains_key("hash") && fields.contains_key("prev") => {
            found.push(value);
        }
        Value::Object(fields) => fields.values().for_each(|value| records(value, found)),
        Value::Array(items) => items.iter().for_each(|value| records(value, found)),
        _ => {}
    }
}

fn changes() -> BTreeSet<String> {
    let text = read("src/model/record.rs");
    set(quoted(block(&text, "pub mod change {", "}"), "&str =", ";"))
}

/// The record types that this version writes.
fn types() -> BTreeSet<String> {
    let text = read("src/model/record.rs");
    let body = block(&text, "pub enum RecordType {", "}");
    body.lines()
        .map(str::trim)
        .filter_map(|line| line.strip_suffix(','))
        .map(str::to_lowercase) // one word each: a second one needs an underscore here
        .collect()
}

#[test]
fn every_change_has_its_row_and_its_example() {
    let page = read(MQTT);
    assert_eq!(
        first_spans(&page, "`change`"),
        changes(),
        "{MQTT} (left), `mod change` in src/model/record.rs (right)"
    );
    for (path, text) in sources("src") {
        let named = quoted(&text, "Draft::change(", "").next();
        assert_eq!(named, None, "{path}: names of changes are constants in `mod change`");
    }
    let mut seen = (BTreeSet::new(), BTreeSet::new());
    for example in examples(&page) {
        let value: Value = serde_json::from_str(example).unwrap();
        let mut found = Vec::new();
        records(&value, &mut found);
        for record in found {
            seen.0.insert(record["type"].as_str().unwrap().to_owned());
            seen.1.extend(record["change"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(seen, (types(), changes()), "examples (left), what the code writes (right)");
    for kind in types() {
        assert!(page.contains(&format!("\n### `{kind}`\n")), "{MQTT}: no heading for records of type {kind}");
    }
}

#[test]
fn examples_are_true() {
    for path in [MQTT, HTTP] {
        let page = read(path);
        let mut proved = 0;
        for example in examples(&page) {
            let value: Value =
                serde_json::from_str(example).unwrap_or_else(|error| panic!("{path}: {error}\n{example}"));
            let mut found = Vec::new();
            records(&value, &mut found);
            for record in found {
                // The page breaks lines; what was sent is the canonical form.
                verify_line(record.to_string().as_bytes())
                    .unwrap_or_else(|fault| panic!("{path}: {fault}\n{example}"));
                if record["type"] == "reading" {
                    serde_json::from_value::<Reading>(record.clone()).unwrap();
                }
                proved += 1;
            }
        }
        assert!(proved > 20 || path != MQTT, "{proved}");
    }
    let page = read(MQTT);
    for example in examples(section(&page, "## `receipt`")) {
        Receipt::parse(example.as_bytes()).unwrap();
    }
    let command = examples(section(&page, "## `command` and `response`"))[0];
    let command = Command::parse(command.as_bytes()).unwrap();
    assert!(first_spans(&page, "command").contains(&command.name));
}

#[test]
fn commands_actions_flags_and_errors_are_those_of_the_code() {
    let page = read(MQTT);
    let text = read("src/commands.rs");
    let execute = block(&text, "async fn execute(", "}");
    let commands: BTreeSet<String> = execute
        .lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" =>"))
        .map(|(name, _)| name.to_owned())
        .collect();
    assert!(commands.contains("replay"), "{commands:?}");
    assert_eq!(first_spans(&page, "command"), commands, "{MQTT} (left), src/commands.rs (right)");

    let sources = sources("src");
    let actions: BTreeSet<String> = sources
        .iter()
        .flat_map(|(_, text)| {
            quoted(text, "put_on_record(who,", ",")
                .chain(quoted(text, "put_on_record(&who,", ","))
                .chain(quoted(text, ".action(", ","))
        })
        .map(str::to_owned)
        .collect();
    assert_eq!(first_spans(&page, "`action`"), actions, "{MQTT} (left), src (right)");

    let flags = read("src/model/reading.rs");
    let flags = set(quoted(block(&flags, "pub mod flag {", "}"), "&str =", ";"));
    let listed = section(&page, "### `reading`").split_once("\nFlags: ").unwrap().1;
    assert_eq!(
        spans(listed.split_once(". ").unwrap().0),
        flags,
        "{MQTT} (left), src/model/reading.rs (right)"
    );

    for row in table(&page, "`error`") {
        for part in row[0].trim_matches('`').split('…').map(str::trim).filter(|part| part.len() > 3) {
            // `the bus of meter … has`: in the source the name stands in backticks, which a code span cannot show.
            let there = sources.iter().any(|(_, text)| text.contains(part));
            assert!(there, "{MQTT}: no error of the code has {part:?}");
        }
    }
}

#[test]
fn payloads_have_the_fields_of_the_page() {
    let page = read(MQTT);
    let mut status = keys_of("src/publish/payload.rs", "status", "}");
    status.extend(keys_of("src/telemetry.rs", "published_status", "    }"));
    status.remove("v");
    let said = words_in_spans(section(&page, "## `status`"));
    let missing: Vec<_> = status.difference(&said).collect();
    assert!(missing.is_empty(), "{MQTT}: `status` lacks {missing:?}");
    let known = first_spans(&page, "field").len(); // the first such table is that of every record
    assert_eq!(known, 6, "the fields that every record has");
    for field in first_spans(section(&page, "## `status`"), "field") {
        assert!(status.contains(&field), "{MQTT}: `status` has no {field}");
    }

    let mut inventory = keys_of("src/publish/payload.rs", "describe", "}");
    inventory.remove("v");
    let said = words_in_spans(section(&page, "## `inventory/{meter}`"));
    let missing: Vec<_> = inventory.difference(&said).collect();
    assert!(missing.is_empty(), "{MQTT}: the inventory lacks {missing:?}");

    let schemas: BTreeSet<String> = sources("src/publish")
        .iter()
        .flat_map(|(_, text)| {
            quoted(text, "&str =", ";")
                .filter(|name| name.starts_with("meter-gateway/"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    let said: BTreeSet<String> =
        spans(&page).into_iter().filter(|span| span.starts_with("meter-gateway/")).collect();
    assert_eq!(said, schemas, "{MQTT} (left), src/publish (right)");
}

#[test]
fn the_http_page_has_every_route_parameter_field_and_metric() {
    let page = read(HTTP);
    let sources = sources("src/console");
    let mut routes = BTreeSet::new();
    let mut parameters = BTreeSet::new();
    for (_, text) in &sources {
        for route in text.split(".route(\"").skip(1) {
            let (path, rest) = route.split_once("\", ").unwrap();
            routes.insert(format!("{} {path}", rest.split('(').next().unwrap().to_uppercase()));
        }
        for asked in text.split("#[serde(deny_unknown_fields)]\n").skip(1) {
            let body = asked.split_once("{\n").unwrap().1.split_once("\n}").unwrap().0;
            let fields = body.lines().filter_map(|line| line.trim().split_once(": "));
            parameters.extend(fields.map(|(name, _)| name.to_owned()));
        }
    }
    let said: BTreeSet<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### `")?.strip_suffix('`'))
        .map(str::to_owned)
        .collect();
    assert_eq!(said, routes, "{HTTP} (left), src/console (right)");
    assert!(parameters.contains("after"), "{parameters:?}");
    let words = words_in_spans(&page);
    let missing: Vec<_> = parameters.difference(&words).collect();
    assert!(missing.is_empty(), "{HTTP}: no word of the parameters {missing:?}");

    let telemetry = read("src/telemetry.rs");
    let fields = keys(telemetry.split("#[cfg(test)]\nmod ").next().unwrap());
    assert!(fields.len() > 40, "{fields:?}");
    let all = words_in_spans(&(page.clone() + &read(MQTT)));
    let missing: Vec<_> = fields.difference(&all).collect();
    assert!(missing.is_empty(), "{HTTP}: the status lacks {missing:?}");
    for (function, heading) in
        [("status", "### `GET /api/v1/status`"), ("buses_json", "### `GET /api/v1/buses`")]
    {
        let section = section(&page, heading);
        let own = keys_of("src/telemetry.rs", function, "    }");
        let missing: Vec<_> = own.difference(&words_in_spans(section)).cloned().collect();
        assert!(missing.is_empty(), "{HTTP}: {heading} lacks {missing:?}");
        let named: BTreeSet<String> =
            table(section, "field").iter().flat_map(|row| words_in_spans(&row[0])).collect();
        let unknown: Vec<_> = named.difference(&fields).collect();
        assert!(unknown.is_empty(), "{HTTP}: {heading} names {unknown:?}");
    }

    let metrics = read("src/console/metrics.rs");
    let names: BTreeSet<String> = quoted(&metrics, "gauge(", ",")
        .chain(quoted(&metrics, "labelled(", ","))
        .chain(quoted(&metrics, "counter(", ","))
        .map(|name| format!("meter_gateway_{name}"))
        .chain(quoted(&metrics, "Opts::new(", ",").map(str::to_owned))
        .filter(|name| !name.contains("{name}"))
        .collect();
    assert!(names.len() > 20, "{names:?}");
    assert_eq!(first_spans(&page, "metric"), names, "{HTTP} (left), src/console/metrics.rs (right)");
}

#[test]
fn the_http_page_has_every_warning() {
    let page = read(HTTP);
    let sources = sources("src");
    let mut codes = BTreeSet::new();
    for (_, text) in sources.iter().filter(|(path, text)| !path.contains("/config/") && text.contains("arn"))
    {
        codes.extend(quoted(text, "elemetry.warn(", ",").map(str::to_owned));
        codes.extend(quoted(text, "elemetry().warn(", ",").map(str::to_owned));
        if text.contains("Warning {") {
            codes.extend(quoted(text, "code:", ",").map(str::to_owned));
            codes.extend(quoted(text, " add(", ",").map(str::to_owned));
        }
    }
    assert!(codes.len() > 2, "{codes:?}");
    let rows = first_spans(&page, "code");
    let missing: Vec<_> = codes.difference(&rows).collect();
    assert!(missing.is_empty(), "{HTTP}: no row for the warnings {missing:?}");
    for code in rows {
        let known = sources.iter().any(|(_, text)| text.contains(&format!("\"{code}\"")));
        assert!(known, "{HTTP}: no warning of the code is called {code}");
    }
}

/// `500 records (`MAX_RECORDS`)`: value and unit are those of `docs/limits.md`, which a test of its own holds to the code.
#[test]
fn limits_on_the_pages_are_those_of_the_list() {
    let list = read("docs/limits.md");
    let rows: Vec<Vec<&str>> = list
        .lines()
        .filter(|line| line.starts_with("| src/"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let mut held = 0;
    for path in [MQTT, HTTP] {
        let page = read(path);
        for (at, _) in page.match_indices(" (`") {
            let name = page[at + 3..].split('`').next().unwrap();
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
                continue;
            }
            let known: Vec<String> = rows
                .iter()
                .filter(|row| row[1] == format!("`{name}`"))
                .map(|row| format!("{} {}", row[2], row[3]))
                .collect();
            assert!(!known.is_empty(), "{path}: {name} is not in docs/limits.md");
            let said = known.iter().any(|limit| page[..at].ends_with(limit.trim()));
            assert!(said, "{path}: {name} is {known:?}, the page says: {}", &page[at.saturating_sub(40)..at]);
            held += 1;
        }
    }
    assert!(held > 15, "{held}");
}

/// The commands of a page, without their comments.
fn commands(page: &str) -> Vec<String> {
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks
        .flat_map(str::lines)
        .map(|line| line.split(" # ").next().unwrap().trim_end().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

/// Whoever installs it by the Chinese page does the same things; the text between is for people to compare.
#[test]
fn both_install_pages_have_the_same_commands() {
    let [english, chinese] = ["docs/install.md", "docs/install.zh.md"].map(read);
    assert_eq!(commands(&chinese), commands(&english));
    assert!(commands(&english).len() > 30);
    let names = |page: &str| spans(&page.replace("```", ""));
    assert_eq!(names(&chinese), names(&english), "what stands in backticks: Chinese (left), English (right)");
}

#[test]
fn every_page_is_linked_from_the_readme_and_no_link_is_dead() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap();
    let mut pages: Vec<String> =
        docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().into_string().unwrap())).collect();
    let readme = read("README.md");
    for page in &pages {
        assert!(readme.contains(&format!("]({page})")), "README.md does not link {page}");
    }
    pages.push("README.md".into());
    for page in pages {
        for link in read(&page).split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
            let there =
                link.is_empty() || link.contains("://") || root.join(&page).with_file_name(link).exists();
            assert!(there, "{page}: {link} is not there");
        }
    }
}
