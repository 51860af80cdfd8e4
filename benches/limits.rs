//! Speed as a ratio against a limit that is measured in the same run: the wire, the disk's flush, a bare MQTT client.
//!
//! `cargo bench --bench limits [-- --quick] [line|ledger|publisher|decode]`; `docs/performance.md` says what the
//! figures mean. Each part prints its own table; a part that cannot run (no Mosquitto) panics and says why.

// A panic is a benchmark's report, and a table is what it is for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "limits/decoding.rs"]
mod decoding;
#[path = "limits/ledger.rs"]
mod ledger;
#[path = "limits/line.rs"]
mod line;
#[path = "../tests/common/mosquitto.rs"]
#[allow(dead_code)] // the tests also kill it and start it again
mod mosquitto;
#[path = "limits/publisher.rs"]
mod publisher;
#[path = "limits/samples.rs"]
mod samples;
#[path = "limits/table.rs"]
mod table;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    // `cargo test --all-targets` runs benches too, without `--bench`: there it only has to work.
    let quick = given("--quick") || !given("--bench");
    let parts = ["line", "ledger", "publisher", "decode"];
    let all = !parts.iter().any(|part| given(part));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("unknown");
    let build =
        if cfg!(debug_assertions) { "unoptimised build: figures mean nothing" } else { "release build" };
    println!("{cores} cores, load {load} before the start, {build}{}", if quick { ", quick" } else { "" });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for part in parts.into_iter().filter(|part| all || given(part)) {
        match part {
            "line" => runtime.block_on(line::run(quick)),
            "ledger" => runtime.block_on(ledger::run(quick)),
            "publisher" => runtime.block_on(publisher::run(quick)),
            _ => decoding::run(quick),
        }
    }
}
