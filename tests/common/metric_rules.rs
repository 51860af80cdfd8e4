//! What `promtool check metrics` asks of a page of metrics.

#![allow(missing_docs, clippy::unwrap_used)] // helpers of tests: a panic is their report

use std::collections::BTreeMap;

/// Abbreviations and units that are no base units.
const NO_BASE_UNITS: [&str; 9] =
    ["_ms", "_millis", "_milliseconds", "_minutes", "_hours", "_kib", "_kilobytes", "_megabytes", "_percent"];

/// Every fault of the page.
pub fn faults(page: &str) -> Vec<String> {
    let (mut help, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    let mut faults = Vec::new();
    let mut samples = std::collections::BTreeSet::new();
    for line in page.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "HELP", name, text] if !text.is_empty() => {
                if help.insert(*name, *text).is_some() {
                    faults.push(format!("{name}: HELP twice"));
                }
            }
            ["#", "TYPE", name, kind] => {
                if kinds.insert(*name, *kind).is_some() {
                    faults.push(format!("{name}: TYPE twice"));
                }
            }
            [] | [""] => {}
            _ => {
                let (sample, _value) = line.rsplit_once(' ').unwrap();
                if !samples.insert(sample) {
                    faults.push(format!("{sample}: twice"));
                }
                let name = sample.split('{').next().unwrap();
                let kind = kinds.get(name).copied().unwrap_or("none");
                if !help.contains_key(name) || kind == "none" {
                    faults.push(format!("{name}: no HELP or no TYPE"));
                }
                if (kind == "counter") != name.ends_with("_total") {
                    faults.push(format!("{name}: a {kind}; counters, and only they, end in _total"));
                }
                if ["_count", "_sum", "_bucket", "_info"].iter().any(|end| name.ends_with(end)) {
                    faults.push(format!("{name}: an ending of histograms and summaries"));
                }
                let bare = name.trim_end_matches("_total");
                if NO_BASE_UNITS.iter().any(|unit| bare.ends_with(unit))
                    || name.chars().any(char::is_uppercase)
                {
                    faults.push(format!("{name}: no base unit, or no snake case"));
                }
            }
        }
    }
    faults
}

#[test]
fn what_promtool_finds_is_found() {
    for bad in [
        "# TYPE a gauge\na 1\n",
        "# HELP a b\n# TYPE a counter\na 1\n",
        "# HELP a_total b\n# TYPE a_total gauge\na_total 1\n",
        "# HELP a_ms b\n# TYPE a_ms gauge\na_ms 1\n",
        "# HELP a b\n# TYPE a gauge\na 1\na 1\n",
    ] {
        assert_eq!(faults(bad).len(), 1, "{bad}: {:?}", faults(bad));
    }
    assert!(faults("# HELP a_total b\n# TYPE a_total counter\na_total{x=\"y z\"} 1\n").is_empty());
}
