//! Bytes before and behind RTU frames: what is no frame is neither an answer nor a late one.

use std::{thread, time::Duration};

use serde_json::Value;

use super::{
    meters::{SDM630, lab},
    peer::{Framing, Peer, PtyPeer, Question},
    site::{Site, after_slots, all_good, flags, hold, meter},
};

const SLOTS: usize = 4;
/// A meter's time to think: zeros behind one answer come before, or behind, the next.
const THINK: Duration = Duration::from_millis(30);

/// Case 03, and further prefixes of the kind.
const PREFIXES: [(&str, &[u8]); 9] = [
    ("nul", &[0x00]),
    ("ff", &[0xFF]),
    ("nuls", &[0x00, 0x00]),
    ("mac", &[0xD8, 0xB0, 0x4C, 0x11, 0x22, 0x33]),
    // As if an answer began within it: unit, function, and another length.
    ("mac-like-a-frame", &[0x00, 0x01, 0x04, 0x02, 0x01, 0x04]),
    // As if the answer began within it: unit, function, and the right length.
    ("like-the-answer", &[0x02, 0x04, 0x08]),
    ("text", b"www.usr.cn"),
    ("long-text", b"REG;imei=861234567890123;iccid=89860012345678901234;fw=V1.0.32\r\n"),
    ("like-a-refusal", &[0x02, 0x84, 0x02]),
];

/// Sends a prefix and the answer in one segment.
fn prefixed(prefix: &'static [u8]) -> Peer {
    Peer::start(Framing::Serial, move |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&[prefix, &question.answer()].concat());
        }
    })
}

#[test]
fn bytes_before_a_frame_cost_no_value() {
    let mut site = Site::default();
    let mut names = Vec::new();
    for (name, prefix) in PREFIXES {
        let peer = prefixed(prefix);
        let (big, small) = (format!("{name}-big"), format!("{name}-small"));
        site.tcp(name, Framing::Serial, &peer, "timeout_ms = 300");
        site.meter(&big, 1, "eastron-sdm630").meter(&small, 2, "lab-u32");
        names.extend([(big, SDM630.to_owned()), (small, lab(2))]);
    }
    // The first byte 4 ms earlier, as a line without bias makes it.
    let earlier = Peer::start(Framing::Serial, |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&[0x00]);
            thread::sleep(Duration::from_millis(4));
            connection.send(&question.answer());
        }
    });
    site.tcp("earlier", Framing::Serial, &earlier, "timeout_ms = 300\nbaud = 9600").meter(
        "earlier-1",
        1,
        "lab-u32",
    );
    names.push(("earlier-1".into(), lab(1)));
    // A registration text once per connection, and one whenever the converter likes.
    let once = Peer::start(Framing::Serial, |mut connection| {
        connection.send(b"REGISTER gw=0001;");
        while let Some(question) = connection.question() {
            connection.send(&question.answer());
        }
    });
    site.tcp("once", Framing::Serial, &once, "timeout_ms = 300").meter("once-1", 1, "lab-u32");
    names.push(("once-1".into(), lab(1)));
    let heartbeat = Peer::start(Framing::Serial, |mut connection| {
        let mut beat = connection.stream.try_clone().unwrap();
        thread::spawn(move || {
            while std::io::Write::write_all(&mut beat, b"www.usr.cn").is_ok() {
                thread::sleep(Duration::from_millis(170));
            }
        });
        while let Some(question) = connection.question() {
            thread::sleep(Duration::from_millis(40));
            connection.send(&question.answer());
        }
    });
    site.tcp("heartbeat", Framing::Serial, &heartbeat, "timeout_ms = 300").meter("heartbeat-1", 1, "lab-u32");
    names.push(("heartbeat-1".into(), lab(1)));
    let copper = PtyPeer::start(|question| vec![(THINK, [&[0xFF, 0x00], &*question.answer()].concat())]);
    site.serial("copper", &copper, "").meter("copper-1", 1, "lab-u32");
    names.push(("copper-1".into(), lab(1)));

    let gateway = site.start(2);
    let ids: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
    let read = after_slots(&gateway, &ids, SLOTS);
    let found = names.iter().zip(&read).map(|((name, shown), readings)| {
        // Before its first question a line is listened to until it is quiet, which this one seldom is.
        let opening = if name == "heartbeat-1" { readings.len().min(2) } else { 0 };
        all_good(name, &readings[opening..], shown)
    });
    hold(found, &gateway);
}

/// A refusal is an answer too, whatever stands before it.
#[test]
fn a_refusal_behind_other_bytes_is_a_refusal() {
    let peer = Peer::start(Framing::Serial, |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&[&[0x00], &*question.refusal(2)].concat());
        }
    });
    let gateway = Site::default()
        .tcp("a", Framing::Serial, &peer, "timeout_ms = 100\nretries = 0")
        .meter("E-1", 1, "lab-u32")
        .start(2);
    let read = after_slots(&gateway, &["E-1"], 2).remove(0);
    for reading in read {
        assert_eq!(flags(&reading), ["refused"], "{reading}");
    }
}

/// The answer, and three zeros so much later.
fn trailed(after: Duration) -> impl Fn(&Question) -> Vec<(Duration, Vec<u8>)> {
    move |question| vec![(THINK, question.answer()), (after, vec![0; 3])]
}

/// Zeros behind each frame, sent beside the next question like those of a real converter.
fn trailing(after: Duration, dead: u8) -> Peer {
    Peer::start(Framing::Serial, move |mut connection| {
        while let Some(question) = connection.question() {
            if question.unit == dead {
                continue;
            }
            thread::sleep(THINK);
            if after.is_zero() {
                connection.send(&[&*question.answer(), &[0; 3]].concat());
                continue;
            }
            connection.send(&question.answer());
            let mut zeros = connection.stream.try_clone().unwrap();
            thread::spawn(move || {
                thread::sleep(after);
                let _ = std::io::Write::write_all(&mut zeros, &[0; 3]); // the gateway may have left
            });
        }
    })
}

/// Case 04.
#[test]
fn bytes_behind_a_frame_change_nothing() {
    let mut site = Site::default();
    let mut names = Vec::new();
    for (id, after_ms, more) in
        [("same", 0, ""), ("5", 5, ""), ("20", 20, ""), ("60", 60, ""), ("paced", 8, "baud = 9600")]
    {
        let peer = trailing(Duration::from_millis(after_ms), 9);
        site.tcp(id, Framing::Serial, &peer, &format!("timeout_ms = 300\nretries = 0\n{more}"));
        for unit in 1..=3 {
            site.meter(&format!("{id}-{unit}"), unit, "lab-u32");
            names.push((format!("{id}-{unit}"), lab(unit)));
        }
        site.meter(&format!("{id}-4"), 4, "eastron-sdm630");
        names.push((format!("{id}-4"), SDM630.into()));
    }
    let copper = PtyPeer::start(trailed(Duration::from_millis(6)));
    site.serial("copper", &copper, "").meter("copper-1", 1, "eastron-sdm630");
    names.push(("copper-1".into(), SDM630.into()));
    let gateway = site.start(2);
    let ids: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
    let read = after_slots(&gateway, &ids, SLOTS);
    let status = gateway.get("/api/v1/status");
    let found = names.iter().zip(&read).flat_map(|((name, shown), readings)| {
        let late = &meter(&status, name)["late_ms"];
        let late =
            if late.is_null() { Ok(()) } else { Err(format!("{name}: late_ms {late}, and nothing was")) };
        [all_good(name, readings, shown), late]
    });
    hold(found.collect::<Vec<_>>(), &gateway);
}

/// Zeros of one meter's answer that fall into the silence of the next meter are no late answer of that one.
#[test]
fn bytes_that_are_no_frame_are_no_late_answer_of_a_silent_meter() {
    let mut site = Site::default();
    let mut dead = Vec::new();
    for (id, after_ms) in [("20", 20), ("60", 60), ("160", 160)] {
        let peer = trailing(Duration::from_millis(after_ms), 9);
        site.tcp(id, Framing::Serial, &peer, "timeout_ms = 100\nretries = 0");
        site.meter(&format!("{id}-1"), 1, "lab-u32").meter(&format!("{id}-9"), 9, "lab-u32");
        dead.push(format!("{id}-9"));
    }
    let gateway = site.start(2);
    let ids: Vec<&str> = dead.iter().map(String::as_str).collect();
    let read = after_slots(&gateway, &ids, 2);
    let status = gateway.get("/api/v1/status");
    let found = dead.iter().zip(&read).map(|(name, readings)| {
        let wrong = |reading: &&Value| {
            flags(reading) != ["no_answer"] || reading["evidence"].to_string().contains("late")
        };
        if let Some(reading) = readings.iter().find(wrong) {
            return Err(format!("{name}: {} {}", reading["flags"], reading["evidence"]));
        }
        match &meter(&status, name)["late_ms"] {
            Value::Null => Ok(()),
            late => Err(format!("{name}: late_ms {late}")),
        }
    });
    hold(found.collect::<Vec<_>>(), &gateway);
}
