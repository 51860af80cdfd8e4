//! Two meters at one address, and one meter at two addresses.

use std::time::Duration;

use serde_json::Value;

use super::{
    gateway::Gateway,
    meters::{TWINS, answer, rtu},
    peer::{Framing, Peer, PtyPeer},
    site::{Site, after_slots, bus, hold},
};

const THINK: Duration = Duration::from_millis(10);
/// The other meter at address 1, which shows something else.
const OTHER: u8 = 7;

/// What is said anywhere but in the frames: status with warnings, log, and the records' evidence.
fn said(gateway: &Gateway, id: &str, read: &[Vec<Value>]) -> String {
    let status = gateway.get("/api/v1/status");
    let mut of_bus = bus(&status, id).clone();
    of_bus["trace"] = Value::Null;
    let evidence: String = read.iter().flatten().map(|reading| reading["evidence"].to_string()).collect();
    let log = gateway.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(id)).collect();
    format!("{of_bus} {} {evidence} {}", status["warnings"], lines.join("\n")).to_lowercase()
}

fn names(id: &str, text: &str, words: &[&str]) -> Result<(), String> {
    if words.iter().any(|word| text.contains(word)) {
        return Ok(());
    }
    Err(format!("{id}: none of {words:?} in {}", text.chars().take(900).collect::<String>()))
}

const TWO_METERS: [&str; 5] =
    ["two meters", "two devices", "more than one meter", "another meter", "second meter"];

/// Two meters answer at once: the line carries the dominant bits of both, the second some characters later.
#[test]
fn two_meters_at_one_address_that_talk_into_each_other_are_named() {
    let overlaid = |behind: usize| {
        PtyPeer::start(move |question| {
            let one = question.answer();
            if question.unit != 1 {
                return vec![(THINK, one)]; // the line itself is well
            }
            let other = rtu(1, &answer(OTHER, question.function, question.address, question.count));
            let mut line = vec![0xFF; one.len() + behind];
            line.iter_mut().zip(&one).for_each(|(line, byte)| *line &= byte);
            line.iter_mut().skip(behind).zip(&other).for_each(|(line, byte)| *line &= byte);
            vec![(THINK, line)]
        })
    };
    let lines = [("both-0", overlaid(0)), ("both-2", overlaid(2)), ("both-5", overlaid(5))];
    let mut site = Site::default();
    for (id, line) in &lines {
        site.serial(id, line, "timeout_ms = 150\nretries = 0").meter(&format!("{id}-1"), 1, "lab-u32");
        site.meter(&format!("{id}-2"), 2, "lab-u32");
    }
    let gateway = site.start(2);
    let found = lines.iter().map(|(id, _)| {
        let read = after_slots(&gateway, &[&format!("{id}-1")], 4);
        names(id, &said(&gateway, id, &read), &TWO_METERS)
    });
    hold(found.collect::<Vec<_>>(), &gateway);
}

/// The second meter waits until the first has spoken: two whole answers to one question, with different values.
#[test]
fn two_meters_at_one_address_that_answer_one_after_the_other_are_named() {
    let line = PtyPeer::start(|question| {
        let other = rtu(question.unit, &answer(OTHER, question.function, question.address, question.count));
        match question.unit {
            1 => vec![(THINK, question.answer()), (THINK, other)],
            _ => vec![(THINK, question.answer())],
        }
    });
    let peer = Peer::start(Framing::Serial, |mut connection| {
        while let Some(question) = connection.question() {
            let other =
                rtu(question.unit, &answer(OTHER, question.function, question.address, question.count));
            connection.send(&question.answer());
            if question.unit == 1 {
                std::thread::sleep(THINK);
                connection.send(&other);
            }
        }
    });
    let mut site = Site::default();
    site.serial("copper", &line, "timeout_ms = 200")
        .meter("copper-1", 1, "lab-u32")
        .meter("copper-2", 2, "lab-u32");
    site.tcp("net", Framing::Serial, &peer, "timeout_ms = 200")
        .meter("net-1", 1, "lab-u32")
        .meter("net-2", 2, "lab-u32");
    let gateway = site.start(2);
    let found = ["copper", "net"].map(|id| {
        let read = after_slots(&gateway, &[&format!("{id}-1"), &format!("{id}-2")], 4);
        names(id, &said(&gateway, id, &read), &TWO_METERS)
    });
    hold(found, &gateway);
}

/// One meter that answers at two addresses, by its serial number: one place would be billed twice.
#[test]
fn one_meter_at_two_addresses_is_named() {
    let peer = Peer::start(Framing::Tcp, |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&question.answer());
        }
    });
    let mut site = Site::default();
    site.tcp("a", Framing::Tcp, &peer, "").meter("E-1", 1, "lab-u32");
    site.meter("E-200", TWINS, "lab-u32").meter("E-201", TWINS + 1, "lab-u32");
    let gateway = site.start(1);
    let read = after_slots(&gateway, &["E-1", "E-200", "E-201"], 3);
    let status = gateway.get("/api/v1/status");
    let warnings = status["warnings"].to_string();
    let evidence: String = read.iter().flatten().map(|reading| reading["evidence"].to_string()).collect();
    let text = format!("{warnings} {evidence} {}", gateway.log());
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("99887766")).collect();
    let both = |line: &&str| line.contains("E-200") && line.contains("E-201") && !line.contains("E-1 ");
    assert!(
        lines.iter().any(both) || (warnings.contains("E-200") && warnings.contains("E-201")),
        "nothing names serial number 99887766 of E-200 and E-201: {warnings}\n{}",
        gateway.log()
    );
}
