//! The line of a site as it is in the field, through the whole gateway: thirty meters with eight values each on a
//! wire-paced pseudo-terminal at 9600 8N1, well, with garbled replies, and with dead meters.
//!
//! `cargo bench --bench line [-- --quick] [clean|garbled|dead]`; `docs/performance.md` says what the figures mean. Each
//! row has its limit and whether it was kept.

// A panic is a benchmark's report, and a table is what it is for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "line/cycle.rs"]
mod cycle;
#[path = "../tests/common/gateway.rs"]
mod gateway;
#[path = "line/site.rs"]
mod site;
#[path = "limits/table.rs"]
#[allow(dead_code)] // another benchmark takes the rest
mod table;
#[path = "line/verdict.rs"]
mod verdict;

use std::time::Duration;

/// How long each part is measured.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    /// A healthy line, and one with garbled replies.
    pub cycle: Duration,
    /// One of so many replies is garbled.
    pub garbled: u64,
    /// From the start on, with dead meters.
    pub first: Duration,
    /// When the dead meters are known to be dead, and for how long that is measured.
    pub after: Option<(Duration, Duration)>,
}

const FULL: Lengths = Lengths {
    cycle: Duration::from_secs(60),
    garbled: 100,
    first: Duration::from_secs(60),
    after: Some((Duration::from_secs(130), Duration::from_secs(30))),
};
const QUICK: Lengths =
    Lengths { cycle: Duration::from_secs(15), garbled: 20, first: Duration::from_secs(20), after: None };
/// Whether it works at all, as a part of the tests.
const TRIAL: Lengths = Lengths { cycle: Duration::from_secs(2), first: Duration::from_secs(2), ..QUICK };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    // `cargo test --all-targets` runs benches too, without `--bench`.
    let lengths = match (given("--bench"), given("--quick")) {
        (true, false) => FULL,
        (true, true) => QUICK,
        (false, _) => TRIAL,
    };
    let parts = ["clean", "garbled", "dead"];
    let all = !parts.iter().any(|part| given(part));
    let build =
        if cfg!(debug_assertions) { "unoptimised build: figures mean nothing" } else { "release build" };
    let load = || {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        load.split_whitespace().next().unwrap_or("unknown").to_owned()
    };
    println!("load {} before the start, {build}, {lengths:?}", load());
    let clean = cycle::clean(lengths.cycle);
    let mut rows = if all || given("clean") { clean.rows() } else { Vec::new() };
    // Lines of their own, and a gateway each: the two do not meet.
    std::thread::scope(|scope| {
        let garbled = (all || given("garbled")).then(|| scope.spawn(|| cycle::garbled(&clean, lengths)));
        let dead = (all || given("dead")).then(|| scope.spawn(|| cycle::dead(&clean, lengths)));
        for part in [garbled, dead].into_iter().flatten() {
            rows.extend(part.join().unwrap());
        }
    });
    verdict::print(&rows);
    println!("load {} at the end", load());
}
