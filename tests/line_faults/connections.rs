//! Connections that the converter closes, and connections that stay open and carry nothing any more.

use std::time::Duration;

use super::{
    meters::{SDM630, lab},
    peer::{Connection, Framing, Next, Peer},
    site::{Site, after_slots, all_good, bus, hold, is_good, meter, readings},
};

/// After so long without a question the converter hangs up: well within an interval, so that each slot finds it so.
const IDLE: Duration = Duration::from_millis(600);
const INTERVAL_SECS: u32 = 2;
/// Enough for three closed connections.
const SLOTS: usize = 4;

/// Answers everything, and hangs up when nothing is asked for a while.
fn closes_when_idle(reset: bool) -> impl Fn(Connection) + Send + Sync {
    move |mut connection| {
        let mut asked = false;
        loop {
            match connection.next(Some(IDLE)) {
                Next::Asked(question) => asked = connection.send(&question.answer()),
                Next::Idle if asked => return connection.close(reset),
                Next::Idle => {}
                Next::Left => return,
            }
        }
    }
}

/// Case 01: framing tcp and serial, FIN and RST, one meter and eight.
#[test]
fn a_converter_that_closes_idle_connections_costs_no_slot() {
    let mut site = Site::default();
    let mut peers = Vec::new();
    let mut meters: Vec<(String, String)> = Vec::new();
    for framing in Framing::BOTH {
        for reset in [false, true] {
            for count in [1, 8] {
                let peer = Peer::start(framing, closes_when_idle(reset));
                let id = format!("{}-{}-{count}", framing.name(), if reset { "rst" } else { "fin" });
                site.tcp(&id, framing, &peer, "timeout_ms = 300");
                for unit in 1..=count {
                    let name = format!("{id}-{unit}");
                    if count == 1 {
                        site.meter(&name, unit, "eastron-sdm630");
                        meters.push((name, SDM630.into()));
                    } else {
                        site.meter(&name, unit, "lab-u32");
                        meters.push((name, lab(unit)));
                    }
                }
                peers.push((id, peer));
            }
        }
    }
    let gateway = site.start(INTERVAL_SECS);
    let names: Vec<&str> = meters.iter().map(|(name, _)| name.as_str()).collect();
    let read = after_slots(&gateway, &names, SLOTS);
    let found = meters.iter().zip(&read).map(|((name, shown), readings)| all_good(name, readings, shown));
    hold(found, &gateway);
    for (id, peer) in &peers {
        let closed = peer.seen(|seen| seen.closed);
        assert!(closed >= SLOTS - 1, "{id}: only {closed} connections were closed: the fault did not occur");
    }
    let log = gateway.log();
    assert!(
        !log.contains("the line is away"),
        "nothing that costs no reading is a line that is away:\n{log}"
    );
}

/// The converter's own timer runs out while the question is under way.
#[test]
fn a_connection_that_closes_on_the_question_costs_no_slot() {
    let mut site = Site::default();
    let mut names = Vec::new();
    let mut peers = Vec::new();
    for framing in Framing::BOTH {
        for reset in [false, true] {
            let peer = Peer::start(framing, move |mut connection| {
                let (mut answered, mut idle) = (false, false);
                loop {
                    match connection.next(Some(IDLE)) {
                        Next::Asked(_) if idle && answered => return connection.close(reset),
                        Next::Asked(question) => {
                            (answered, idle) = (connection.send(&question.answer()), false);
                        }
                        Next::Idle => idle = true,
                        Next::Left => return,
                    }
                }
            });
            let id = format!("{}-{}", framing.name(), if reset { "rst" } else { "fin" });
            site.tcp(&id, framing, &peer, "timeout_ms = 300").meter(&format!("{id}-1"), 1, "lab-u32");
            names.push(format!("{id}-1"));
            peers.push(peer);
        }
    }
    let gateway = site.start(INTERVAL_SECS);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let read = after_slots(&gateway, &names, SLOTS);
    let found = names.iter().zip(&read).map(|(name, readings)| all_good(name, readings, &lab(1)));
    hold(found, &gateway);
    for peer in &peers {
        assert!(peer.seen(|seen| seen.closed) >= SLOTS - 1, "too few connections were closed");
    }
}

/// Opening again at once must not become a loop where nobody ever answers.
#[test]
fn a_peer_that_always_hangs_up_is_not_called_without_pause() {
    let peer = Peer::start(Framing::Tcp, |mut connection| {
        if connection.question().is_some() {
            connection.close(true);
        }
    });
    let gateway = Site::default().tcp("a", Framing::Tcp, &peer, "").meter("E-1", 1, "lab-u32").start(1);
    let read = after_slots(&gateway, &["E-1"], 5).remove(0);
    assert!(read.iter().all(|reading| reading["origin"] == "missing"), "{read:?}");
    let connections = peer.connections();
    assert!(connections <= 3 * read.len(), "{connections} connections in {} slots", read.len());
    let status = gateway.until("the bus is down", |status| bus(status, "a")["fault"].is_string());
    assert_eq!(meter(&status, "E-1")["no_value"]["reason"], "bus_down", "{status:#}");
}

/// After two slots nothing is answered on the first connection any more; a new one would be served.
#[test]
fn a_connection_that_is_open_and_dead_is_opened_anew() {
    let mut site = Site::default();
    let mut peers = Vec::new();
    let mut names = Vec::new();
    for framing in Framing::BOTH {
        for count in [1_u8, 3] {
            let well = 2 * usize::from(count) + usize::from(count); // a serial number each
            let peer = Peer::start(framing, move |mut connection| {
                let mut answered = 0;
                while let Some(question) = connection.question() {
                    if connection.number > 0 || answered < well {
                        connection.send(&question.answer());
                        answered += 1;
                    }
                }
            });
            let id = format!("{}-{count}", framing.name());
            site.tcp(&id, framing, &peer, "timeout_ms = 100");
            for unit in 1..=count {
                site.meter(&format!("{id}-{unit}"), unit, "lab-u32");
                names.push((format!("{id}-{unit}"), unit, peers.len()));
            }
            peers.push(peer);
        }
    }
    // A bus whose meter is dead behind a converter that is well: there a new connection mends nothing.
    let dead = Peer::start(Framing::Tcp, |mut connection| while connection.question().is_some() {});
    site.tcp("dead", Framing::Tcp, &dead, "timeout_ms = 100").meter("dead-1", 1, "lab-u32");
    let gateway = site.start(1);
    let all: Vec<&str> = names.iter().map(|(name, ..)| name.as_str()).collect();
    after_slots(&gateway, &all, 15);
    let found = names.iter().map(|(name, unit, peer)| {
        let read = readings(&gateway, name);
        let silent = read.iter().position(|reading| reading["origin"] == "missing");
        let Some(silent) = silent else {
            // Found dead within the sweep, and asked again on a new connection.
            let renewed = peers[*peer].connections() > 1;
            return renewed.then_some(()).ok_or(format!("{name} was never silent, on one connection"));
        };
        match read[silent..].iter().position(|reading| is_good(reading, &lab(*unit))) {
            Some(_) => Ok(()),
            None => Err(format!("{name}: silent from slot {silent} to slot {} on", read.len())),
        }
    });
    hold(found.collect::<Vec<_>>(), &gateway);
    let connections = dead.connections();
    assert!(connections <= 8, "{connections} connections to a converter that is well, in 15 s");
}
