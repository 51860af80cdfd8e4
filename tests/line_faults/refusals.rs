//! One refusal is no fault of the profile: a request that was answered before is asked again at the next slot.

use std::collections::BTreeMap;

use meter_gateway::model::Utc;
use serde_json::Value;

use super::{
    meters::{SINGLE_SHOWS, lab},
    peer::{Framing, Peer},
    site::{Site, after_slots, hold, is_good, meter, readings},
};

/// Case 05, and further codes: those of the standard that stand for "never", and some that it does not know.
const CODES: [u8; 7] = [0x01, 0x02, 0x03, 0x07, 0x0C, 0x7F, 0xF4];
/// Where a `lab-u32` has its serial number.
const SERIAL: u16 = 0x0120;
/// Answered before the refusal.
const WELL: usize = 3;

/// Refuses the registers once after they were answered `WELL` times.
fn refuses_once(code: u8) -> Peer {
    Peer::start(Framing::Tcp, move |mut connection| {
        let mut asked = BTreeMap::<u8, usize>::new();
        while let Some(question) = connection.question() {
            let asked = asked.entry(question.unit).or_default();
            *asked += usize::from(question.address != SERIAL);
            let once = *asked == WELL + 1 && question.address != SERIAL;
            let answer = if once { question.refusal(code) } else { question.answer() };
            connection.send(&answer);
        }
    })
}

#[test]
fn a_request_that_was_answered_before_is_asked_again_at_the_next_slot() {
    let mut site = Site::default();
    let mut peers = Vec::new();
    let mut meters = Vec::new();
    for code in CODES {
        let peer = refuses_once(code);
        let id = format!("x{code:02x}");
        site.tcp(&id, Framing::Tcp, &peer, "timeout_ms = 300\nretries = 0");
        let (single, block) = (format!("{id}-single"), format!("{id}-block"));
        site.meter(&single, 1, "lab-u16").meter(&block, 2, "lab-u32");
        meters.extend([(single, SINGLE_SHOWS.to_owned()), (block, lab(2))]);
        peers.push((id, peer));
    }
    let gateway = site.start(1);
    let ids: Vec<&str> = meters.iter().map(|(id, _)| id.as_str()).collect();
    let read = after_slots(&gateway, &ids, WELL + 4);
    let found = meters.iter().zip(&read).map(|((id, shown), readings)| {
        let without = readings.iter().filter(|reading| !is_good(reading, shown)).count();
        // The slot of the refusal itself may be saved by asking again at once.
        if without <= 1 {
            return Ok(());
        }
        Err(format!("{id}: {without} of {} slots without a value, after one refusal", readings.len()))
    });
    // What was one request is one request again: a block that is cut for ever costs the line its time for ever.
    let cut = peers.iter().map(|(id, peer)| {
        let count = peer.seen(|seen| {
            let mut blocks = seen.questions.iter().rev().filter(|q| (0x0100..0x0104).contains(&q.address));
            blocks.next().unwrap().count
        });
        if count == 4 { Ok(()) } else { Err(format!("{id}: the block of two points was cut by one refusal")) }
    });
    hold(found.chain(cut).collect::<Vec<_>>(), &gateway);
}

/// Codes that no standard knows say nothing about the profile, also when nothing was answered before.
#[test]
fn a_refusal_with_an_unknown_code_is_asked_again_at_each_slot() {
    let mut site = Site::default();
    let mut peers = Vec::new();
    for code in [0x0C, 0x7F, 0xF4] {
        let peer = Peer::start(Framing::Tcp, move |mut connection| {
            while let Some(question) = connection.question() {
                connection.send(&question.refusal(code));
            }
        });
        let id = format!("x{code:02x}");
        site.tcp(&id, Framing::Tcp, &peer, "retries = 0").meter(&format!("{id}-1"), 1, "lab-u32");
        peers.push((id, peer));
    }
    let gateway = site.start(1);
    let ids: Vec<String> = peers.iter().map(|(id, _)| format!("{id}-1")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    after_slots(&gateway, &ids, 5);
    let found = peers.iter().map(|(id, peer)| {
        let slots = readings(&gateway, &format!("{id}-1")).len();
        let asked =
            peer.seen(|seen| seen.questions.iter().filter(|question| question.address == 0x0100).count());
        if asked + 1 >= slots { Ok(()) } else { Err(format!("{id}: asked {asked} times in {slots} slots")) }
    });
    hold(found.collect::<Vec<_>>(), &gateway);
}

/// `last_answer` says when values came; a refusal, or a request that is held back, is none.
#[test]
fn a_refusal_is_no_answer() {
    let peer = Peer::start(Framing::Tcp, move |mut connection| {
        let mut asked = 0;
        while let Some(question) = connection.question() {
            asked += 1;
            let refused = question.unit == 2 || asked > 8;
            let answer = if refused { question.refusal(2) } else { question.answer() };
            connection.send(&answer);
        }
    });
    let gateway = Site::default()
        .tcp("a", Framing::Tcp, &peer, "retries = 0")
        .meter("WELL", 1, "lab-u32")
        .meter("NEVER", 2, "lab-u32")
        .start(1);
    after_slots(&gateway, &["WELL", "NEVER"], 3);
    let refused = |status: &Value, id: &str| meter(status, id)["no_value"]["reason"] == "refused";
    let status = gateway.until("both refuse", |status| refused(status, "WELL") && refused(status, "NEVER"));
    let read = readings(&gateway, "WELL");
    let answered = read.iter().rev().find(|reading| is_good(reading, &lab(1))).expect("it was well at first");
    let (last_answer, never) =
        (&meter(&status, "WELL")["last_answer"], &meter(&status, "NEVER")["last_answer"]);
    assert!(never.is_null(), "NEVER has only refused, and its last answer is {never}");
    // The serial number is asked after the register.
    let at = |value: &Value| value.as_str().and_then(|at| at.parse::<Utc>().ok());
    assert!(
        at(last_answer).is_some_and(|last| Some(last) >= at(&answered["taken_at"])),
        "{last_answer} {answered}"
    );
    let slots = readings(&gateway, "WELL").len();
    let later = gateway.until("two slots more", |status| {
        refused(status, "WELL") && readings(&gateway, "WELL").len() >= slots + 2
    });
    assert_eq!(&meter(&later, "WELL")["last_answer"], last_answer, "nothing was answered meanwhile");
    let told = meter(&later, "WELL")["no_value"]["detail"].as_str().unwrap_or_default();
    assert!(told.contains("02"), "why there is no value: {told}");
}
