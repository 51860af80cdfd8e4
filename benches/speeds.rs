//! The daemon as a whole: from a reply on the wire to a message at a subscriber, and what it costs.
//!
//! `cargo bench --bench speeds [-- --quick] [rtu|tcp|idle]` starts the built program against simulated meters and a real
//! Mosquitto; `GATEWAY=FILE` measures another build of it by the same scenario. `docs/performance.md` has the figures.

// A panic is a benchmark's report, and a table is what it is for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "speeds/daemon.rs"]
mod daemon;
#[path = "../tests/common/mosquitto.rs"]
#[allow(dead_code)] // the tests also kill it and start it again
mod mosquitto;
#[path = "speeds/peers.rs"]
mod peers;
#[path = "speeds/subscriber.rs"]
mod subscriber;
#[path = "limits/table.rs"]
#[allow(dead_code)] // the other benchmark uses all of it
mod table;

use std::{fmt::Write, time::Duration};

use meter_gateway::{
    profile::Catalogue,
    protocol::{Parity, Wire},
    sim::{LineOptions, PtyLine, SimMeter, share},
};

use daemon::{Daemon, Usage};
use mosquitto::Mosquitto;
use subscriber::Subscriber;

/// Eight values in two requests.
const PROFILE: &str = "eastron-sdm120";

/// What a site is polled with.
struct Scenario {
    name: &'static str,
    part: &'static str,
    buses: usize,
    meters: usize,
    interval_secs: u32,
    network: bool,
}

const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "RTU 9600, 1 bus of 30",
        part: "rtu",
        buses: 1,
        meters: 30,
        interval_secs: 0,
        network: false,
    },
    Scenario {
        name: "RTU 9600, 8 buses of 30",
        part: "rtu",
        buses: 8,
        meters: 30,
        interval_secs: 0,
        network: false,
    },
    Scenario {
        name: "TCP, 5 of 200, unpaced",
        part: "tcp",
        buses: 5,
        meters: 200,
        interval_secs: 0,
        network: true,
    },
    Scenario {
        name: "TCP, 20 of 50, unpaced",
        part: "tcp",
        buses: 20,
        meters: 50,
        interval_secs: 0,
        network: true,
    },
    Scenario {
        name: "TCP, 1 of 30, 1 s",
        part: "idle",
        buses: 1,
        meters: 30,
        interval_secs: 1,
        network: true,
    },
    Scenario {
        name: "TCP, 20 of 50, 1 s",
        part: "idle",
        buses: 20,
        meters: 50,
        interval_secs: 1,
        network: true,
    },
];

/// What keeps the simulated meters alive, and the configuration that finds them.
fn site(scenario: &Scenario) -> (Vec<PtyLine>, String) {
    let (mut lines, mut text) = (Vec::new(), String::new());
    let profile = Catalogue::builtin().get(PROFILE).unwrap();
    for bus in 0..scenario.buses {
        if scenario.network {
            let port = peers::spawn();
            writeln!(text, "[[bus]]\nid = \"b{bus}\"\nkind = \"tcp\"\naddress = \"127.0.0.1:{port}\"")
                .unwrap();
        } else {
            let wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };
            let twin = |nth: usize| SimMeter::new(u8::try_from(nth).unwrap(), profile.clone(), nth as u64);
            let meters = share((1..=scenario.meters).map(twin).collect());
            let line = PtyLine::spawn(wire, meters, LineOptions::default()).unwrap();
            let device = line.path().display();
            writeln!(text, "[[bus]]\nid = \"b{bus}\"\nkind = \"serial\"\ndevice = \"{device}\"\nbaud = 9600")
                .unwrap();
            lines.push(line);
        }
        for meter in 1..=scenario.meters {
            writeln!(text, "[[meter]]\nid = \"M{bus}-{meter}\"\nbus = \"b{bus}\"\naddress = \"{meter}\"\nprofile = \"{PROFILE}\"").unwrap();
        }
    }
    (lines, text)
}

fn measure(scenario: &Scenario, span: Duration) -> Vec<String> {
    let broker = Mosquitto::with(|_| "allow_anonymous true\nmax_queued_messages 0\n".to_owned());
    let (_lines, buses) = site(scenario);
    let subscriber = Subscriber::start(broker.port);
    let daemon = Daemon::start(&buses, scenario.interval_secs, broker.port);
    daemon.wait_until_polling();
    std::thread::sleep(span / 4);
    subscriber.forget();
    let before = daemon.usage();
    std::thread::sleep(span);
    let after = daemon.usage();
    let heard = subscriber.heard();
    let Usage { cpu, requests, records, at, resident_kb } = after;
    let (requests, records, took, cpu) = (
        requests - before.requests,
        records - before.records,
        at - before.at,
        cpu.saturating_sub(before.cpu),
    );
    let per_thousand = Duration::from_nanos(
        u64::try_from(cpu.as_nanos() * 1000 / u128::from(requests.max(1))).unwrap_or(u64::MAX),
    );
    vec![
        scenario.name.to_owned(),
        table::rate(requests, took).to_string(),
        table::rate(records, took).to_string(),
        heard.at(50).to_string(),
        heard.at(99).to_string(),
        table::quotient(per_thousand.as_nanos(), 1_000_000_000),
        table::quotient(cpu.as_nanos(), took.as_nanos()),
        (resident_kb / 1024).to_string(),
        daemon.lost().to_string(),
    ]
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str| arguments.iter().any(|argument| argument == name);
    // `cargo test --all-targets` runs benches too, without `--bench`: there it only has to work.
    let quick = given("--quick") || !given("--bench");
    let span = Duration::from_secs(if quick { 2 } else { 20 });
    let all = !SCENARIOS.iter().any(|scenario| given(scenario.part));
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load {}", load().trim());
    let scenarios = SCENARIOS.iter().filter(|scenario| all || given(scenario.part));
    let rows: Vec<_> = scenarios.map(|scenario| measure(scenario, span)).collect();
    let columns = [
        "meters",
        "requests/s",
        "records/s",
        "median ms",
        "p99 ms",
        "CPU s per 1000 requests",
        "cores",
        "resident MB",
        "overrun",
    ];
    table::print("From the reply to the subscriber", &columns, &rows);
    println!("load {}", load().trim());
}
