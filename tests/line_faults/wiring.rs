//! Wrong settings and wrong wires: what a line looks like is said in `read`, in the status and in the log.

use std::time::Duration;

use super::{
    gateway::Gateway,
    meters,
    peer::{Framing, Peer, PtyPeer, Question},
    site::{Site, after_slots, bus, hold},
};

const THINK: Duration = Duration::from_millis(10);

/// What is said of a bus: in the status, in the log, and by `read` of its meter.
fn said(gateway: &Gateway, id: &str, meter: &str) -> [(&'static str, String); 3] {
    let status = gateway.get("/api/v1/status");
    let mut of_bus = bus(&status, id).clone();
    of_bus["trace"] = serde_json::Value::Null;
    let of_bus = format!("{of_bus} {}", status["warnings"]);
    let read = gateway.cli(&["read", meter]);
    let read = String::from_utf8_lossy(&[read.stdout, read.stderr].concat()).into_owned();
    let log = gateway.log();
    let of_log: String = log.lines().filter(|line| line.contains(id)).collect::<Vec<_>>().join("\n");
    [("status", of_bus), ("read", read), ("log", of_log)]
}

/// Each place names one of these.
fn named(gateway: &Gateway, id: &str, words: &[&str]) -> Vec<Result<(), String>> {
    let places = said(gateway, id, &format!("{id}-1"));
    let check = |(place, text): &(&str, String)| {
        let text = text.to_lowercase();
        if words.iter().any(|word| text.contains(word)) {
            return Ok(());
        }
        Err(format!("{id}: {place} names none of {words:?}: {}", text.chars().take(700).collect::<String>()))
    };
    places.iter().map(check).collect()
}

/// What a receiver at another speed makes of an answer: few bytes of runs of equal bits, different each time.
fn at_another_speed(question: &Question, nth: usize) -> Vec<u8> {
    const RUNS: [u8; 8] = [0x00, 0x80, 0xF8, 0xE0, 0xFE, 0x1E, 0x66, 0x78];
    (0..6 + nth % 3).map(|at| RUNS[(at * 3 + nth + usize::from(question.unit)) % RUNS.len()]).collect()
}

/// A serial line as it looks with a wrong speed, with only its own echo, and with nothing on it.
#[test]
fn a_line_that_brings_only_garbage_or_echo_or_nothing_says_what_that_looks_like() {
    let mut nth = 0;
    let garbage = PtyPeer::start(move |question| {
        nth += 1;
        vec![(THINK, at_another_speed(question, nth))]
    });
    let echo = PtyPeer::start(|question| {
        let [a, b] = question.address.to_be_bytes();
        let [c, d] = question.count.to_be_bytes();
        vec![(Duration::ZERO, meters::rtu(question.unit, &[question.function, a, b, c, d]))]
    });
    let nothing = PtyPeer::start(|_| Vec::new());
    let mut site = Site::default();
    for (id, peer) in [("noise", &garbage), ("mirror", &echo), ("void", &nothing)] {
        site.serial(id, peer, "timeout_ms = 100\nretries = 0");
        site.meter(&format!("{id}-1"), 1, "lab-u32").meter(&format!("{id}-2"), 2, "lab-u32");
    }
    let gateway = site.start(2);
    after_slots(&gateway, &["noise-1", "noise-2", "mirror-1", "mirror-2", "void-1", "void-2"], 4);
    let found = [
        named(&gateway, "noise", &["baud"]),
        named(&gateway, "noise", &["parity"]),
        named(&gateway, "mirror", &["echo"]),
        named(&gateway, "void", &["wire", "wiring", "swapped"]),
    ];
    hold(found.concat(), &gateway);
}

/// A bus of which one meter answers is not wired wrongly.
#[test]
fn a_line_on_which_somebody_answers_is_not_said_to_be_wired_wrongly() {
    let line = PtyPeer::start(|question| match question.unit {
        1 => vec![(THINK, question.answer())],
        _ => Vec::new(),
    });
    let mut site = Site::default();
    site.serial("half", &line, "timeout_ms = 100\nretries = 0");
    site.meter("half-1", 1, "lab-u32").meter("half-2", 2, "lab-u32");
    let gateway = site.start(1);
    after_slots(&gateway, &["half-1", "half-2"], 4);
    for (place, text) in said(&gateway, "half", "half-2") {
        for word in ["swapped", "baud", "parity"] {
            assert!(!text.to_lowercase().contains(word), "{place}: {word} in {text}");
        }
    }
}

/// Frames of the other framing are recognised as such.
#[test]
fn the_other_framing_is_named() {
    let tcp_behind_serial = Peer::start(Framing::Serial, |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&meters::mbap(1, question.unit, &question.pdu()));
        }
    });
    let rtu_behind_tcp = Peer::start(Framing::Tcp, |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&meters::rtu(question.unit, &question.pdu()));
        }
    });
    // Refusals are short: five bytes, and nine.
    let refusing = Peer::start(Framing::Tcp, |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&meters::rtu(question.unit, &[question.function | 0x80, 2]));
        }
    });
    let mut site = Site::default();
    site.tcp("mbap", Framing::Serial, &tcp_behind_serial, "timeout_ms = 100\nretries = 0")
        .meter("mbap-1", 1, "lab-u32");
    site.tcp("rtu", Framing::Tcp, &rtu_behind_tcp, "timeout_ms = 100\nretries = 0")
        .meter("rtu-1", 1, "lab-u32");
    site.tcp("short", Framing::Tcp, &refusing, "timeout_ms = 100\nretries = 0")
        .meter("short-1", 1, "lab-u32");
    let gateway = site.start(2);
    after_slots(&gateway, &["mbap-1", "rtu-1", "short-1"], 3);
    let found = ["mbap", "rtu", "short"].map(|id| named(&gateway, id, &["framing"]));
    hold(found.concat(), &gateway);
}

/// `-vv`: each byte that came, with bus and meter, whatever it is.
#[test]
fn every_received_byte_is_in_the_trace_with_bus_and_meter() {
    const BEFORE: &str = "DEADBEEF";
    const BEHIND: &str = "CAFEF00D";
    const TWO: &str = "0BADC0DE11";
    let bytes = |hex: &str| -> Vec<u8> {
        (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
    };
    let (before, behind, two) = (bytes(BEFORE), bytes(BEHIND), bytes(TWO));
    let peer = Peer::start(Framing::Serial, move |mut connection| {
        while let Some(question) = connection.question() {
            let sent = if question.unit == 1 {
                [&*before, &question.answer(), &behind].concat()
            } else {
                two.clone()
            };
            connection.send(&sent);
        }
    });
    let mut site = Site::default();
    site.tcp("a", Framing::Serial, &peer, "timeout_ms = 100\nretries = 0");
    site.meter("E-1", 1, "lab-u32").meter("E-2", 2, "lab-u32");
    let mut gateway = site.configured(1, 1);
    gateway.flags = vec!["-vv"];
    gateway.start();
    after_slots(&gateway, &["E-1", "E-2"], 3);
    let log = gateway.log();
    let found = [(BEFORE, "E-1"), (BEHIND, "E-1"), (TWO, "E-2")].map(|(hex, meter)| {
        let with = |line: &str| line.to_uppercase().replace(' ', "").contains(hex);
        let lines: Vec<&str> = log.lines().filter(|line| with(line)).collect();
        let placed = |line: &&str| line.contains(meter) && line.contains("bus a");
        match lines.iter().find(|line| placed(line)) {
            Some(_) => Ok(()),
            None => Err(format!(
                "{hex} of {meter} in {} lines, none with bus and meter: {:?}",
                lines.len(),
                lines.first()
            )),
        }
    });
    let wrong: Vec<String> = found.into_iter().filter_map(Result::err).collect();
    let some: Vec<&str> = log.lines().filter(|line| line.contains("frame")).take(5).collect();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), some.join("\n"));
}
