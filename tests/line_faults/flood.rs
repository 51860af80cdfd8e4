//! Peers that send faster than anybody drains: the daemon answers, the line is dropped, others do not notice.

use std::time::{Duration, Instant};

use super::{
    meters::lab,
    peer::{Framing, Peer},
    site::{Site, after_slots, all_good, hold},
};

/// Floods from the first question on, or from the connection on, until the gateway leaves.
fn floods(framing: Framing, bytes: u8, at_once: bool) -> Peer {
    Peer::start(framing, move |mut connection| {
        let block = vec![bytes; 64 * 1024];
        if !at_once && connection.question().is_none() {
            return;
        }
        while connection.send(&block) {}
    })
}

#[test]
fn a_flood_costs_nobody_else_anything_and_ends_with_its_line() {
    let mut site = Site::default();
    let mut peers = Vec::new();
    for (id, framing, bytes, at_once) in [
        ("tcp", Framing::Tcp, 0x55, false),
        ("tcp-nul", Framing::Tcp, 0x00, true),
        ("serial", Framing::Serial, 0x55, false),
        ("serial-unit", Framing::Serial, 0x01, true),
    ] {
        let peer = floods(framing, bytes, at_once);
        site.tcp(id, framing, &peer, "timeout_ms = 300").meter(&format!("{id}-1"), 1, "lab-u32");
        peers.push((id, peer));
    }
    let well = Peer::start(Framing::Tcp, |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&question.answer());
        }
    });
    site.tcp("well", Framing::Tcp, &well, "").meter("well-1", 1, "lab-u32");
    let gateway = site.start(1);
    let mut slowest = Duration::ZERO;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(8) {
        let asked = Instant::now();
        gateway.get("/api/v1/status");
        slowest = slowest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(50)); // how often a person looks, at most
    }
    let read = after_slots(&gateway, &["well-1"], 5).remove(0);
    let answers =
        if slowest < Duration::from_secs(2) { Ok(()) } else { Err(format!("status took {slowest:?}")) };
    let left = peers.iter().map(|(id, peer)| {
        let (connections, left) = peer.seen(|seen| (seen.connections, seen.left));
        match (connections, left) {
            (1..=60, 1..) => Ok(()),
            other => Err(format!("{id}: connections, and how many of them were dropped: {other:?}")),
        }
    });
    let left: Vec<_> = left.collect();
    hold([all_good("well-1", &read, &lab(1)), answers].into_iter().chain(left), &gateway);
}
