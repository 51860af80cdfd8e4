//! Modbus TCP answers under other transaction numbers, late or never asked: what came is said, and nothing is taken.

use std::{thread, time::Duration};

use serde_json::Value;

use super::{
    peer::{Framing, Peer, Question},
    site::{Site, after_slots, flags, hold, readings, value},
};

const LATE: Duration = Duration::from_millis(390);

fn answers(script: impl Fn(&Question) -> Vec<u8> + Send + Sync + 'static) -> Peer {
    Peer::start(Framing::Tcp, move |mut connection| {
        while let Some(question) = connection.question() {
            connection.send(&script(&question));
        }
    })
}

/// Each number in a text, decimal or hexadecimal.
fn says(text: &str, number: u16) -> bool {
    let text = text.to_lowercase();
    let words: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    [number.to_string(), format!("0x{number:04x}"), format!("0x{number:x}"), format!("{number:04x}")]
        .iter()
        .any(|form| words.contains(&form.as_str()))
}

/// Every reading is missing, for that reason, and its evidence holds.
fn missing(id: &str, read: &[Value], flag: &str, holds: impl Fn(&str) -> bool) -> Result<(), String> {
    for reading in read {
        let evidence = reading["evidence"].to_string();
        if let Some(value) = value(reading) {
            return Err(format!("{id}: {value} was taken"));
        }
        if evidence.contains("stopped after") {
            return Err(format!("{id}: whole answers came, and it says {evidence}"));
        }
        let flagged = flags(reading).contains(&flag);
        if !flagged || !holds(&evidence) {
            return Err(format!("{id}: {} {evidence}", reading["flags"]));
        }
    }
    Ok(())
}

/// Says how late it was, to the eye: 390 ms after each question, and some time for the machine.
fn says_how_late(evidence: &str) -> bool {
    let words: Vec<&str> = evidence.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let times =
        words.windows(2).filter(|pair| pair[1] == "ms").filter_map(|pair| pair[0].parse::<u64>().ok());
    evidence.contains("late") && times.into_iter().any(|ms| (330..=1500).contains(&ms))
}

/// Case 14 A: whole answers after the time-out, under their own number; and one question late in the strict sense.
#[test]
fn an_answer_that_comes_too_late_is_no_answer_and_says_how_late() {
    let late = || {
        Peer::start(Framing::Tcp, |mut connection| {
            while let Some(question) = connection.question() {
                let mut stream = connection.stream.try_clone().unwrap();
                thread::spawn(move || {
                    thread::sleep(LATE);
                    let _ = std::io::Write::write_all(&mut stream, &question.answer()); // the gateway may have left
                });
            }
        })
    };
    // The answer to each question is sent when the next one comes.
    let behind = Peer::start(Framing::Tcp, |mut connection| {
        let mut before: Option<Question> = None;
        while let Some(question) = connection.question() {
            if let Some(before) = before.replace(question) {
                connection.send(&before.answer());
            }
        }
    });
    let (big, small) = (late(), late());
    let mut site = Site::default();
    site.tcp("big", Framing::Tcp, &big, "timeout_ms = 300").meter("big-1", 1, "eastron-sdm630");
    site.tcp("small", Framing::Tcp, &small, "timeout_ms = 300\nretries = 0").meter("small-1", 1, "lab-u32");
    site.tcp("behind", Framing::Tcp, &behind, "timeout_ms = 300\nretries = 3").meter(
        "behind-1",
        1,
        "eastron-sdm630",
    );
    let gateway = site.start(3);
    let read = after_slots(&gateway, &["big-1", "small-1", "behind-1"], 3);
    hold(
        [
            missing("big-1", &read[0], "no_answer", says_how_late),
            // Asked once in a slot: its answer comes when the reading is made already.
            missing("small-1", &read[1], "no_answer", |evidence| !evidence.contains("garbled")),
            missing("behind-1", &read[2], "no_answer", |evidence| evidence.contains("late")),
        ],
        &gateway,
    );
}

/// Case 14 B and C: numbers that were never asked.
#[test]
fn an_answer_under_a_number_that_was_never_asked_is_named_with_both() {
    const ALWAYS: u16 = 0x4711;
    let more = answers(|question| question.under(question.transaction.unwrap() + 1));
    let always = answers(|question| question.under(ALWAYS));
    // One more in the high byte: a converter that swaps them.
    let swapped = answers(|question| question.under(question.transaction.unwrap().swap_bytes() ^ 0x0100));
    let mut site = Site::default();
    let peers = [("more", more), ("always", always), ("swapped", swapped)];
    for (id, peer) in &peers {
        site.tcp(id, Framing::Tcp, peer, "timeout_ms = 300\nretries = 0").meter(
            &format!("{id}-1"),
            1,
            "eastron-sdm630",
        );
    }
    let gateway = site.start(2);
    let ids: Vec<String> = peers.iter().map(|(id, _)| format!("{id}-1")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    after_slots(&gateway, &ids, 2);
    let found = peers.iter().zip(&ids).map(|((id, peer), meter)| {
        let asked: Vec<u16> =
            peer.seen(|seen| seen.questions.iter().filter_map(|question| question.transaction).collect());
        let came = |asked: u16| match *id {
            "more" => asked + 1,
            "always" => ALWAYS,
            _ => asked.swap_bytes() ^ 0x0100,
        };
        missing(meter, &readings(&gateway, meter), "garbled", |evidence| {
            asked.iter().any(|asked| says(evidence, *asked) && says(evidence, came(*asked)))
        })
    });
    hold(found.collect::<Vec<_>>(), &gateway);
}

/// What was given up does not come back as the value of another question: two meters of one type, each late.
#[test]
fn late_answers_are_never_the_value_of_another_question() {
    let peer = Peer::start(Framing::Tcp, |mut connection| {
        let mut before: Option<Question> = None;
        while let Some(question) = connection.question() {
            if let Some(before) = before.replace(question) {
                connection.send(&before.answer());
            }
        }
    });
    let mut site = Site::default();
    site.tcp("a", Framing::Tcp, &peer, "timeout_ms = 100\nretries = 1");
    site.meter("E-1", 1, "lab-u32").meter("E-2", 2, "lab-u32");
    let gateway = site.start(1);
    for (id, read) in ["E-1", "E-2"].iter().zip(after_slots(&gateway, &["E-1", "E-2"], 4)) {
        assert!(read.iter().all(|reading| value(reading).is_none()), "{id}: {read:?}");
    }
}
