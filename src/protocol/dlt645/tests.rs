//! Frames in, replies out: what is passed over, what is refused, and what is put together.

use proptest::prelude::*;

use super::*;
use crate::protocol::{Payload, Reply, Transaction as _};

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn total() -> Read {
    Read::data("00010000".parse().unwrap(), 4)
}

/// The total of meter 000000000161, and 0.26 kWh as its answer.
const METER: &str = "000000000161";
const REQUEST: &str = "FEFEFEFE68610100000000681104333334331416";
const ANSWER: &str = "6861010000000068910833333433593333338A16";

fn found(received: &str) -> Found {
    find(&bytes(REQUEST), &bytes(received))
}

/// What a frame says that answers this read of the meter.
fn said(read: Read, frame: &[u8]) -> Reply {
    let asked = ReadTransaction::new(address(METER), read);
    assert_eq!(asked.find(frame), Found::Frame(0..frame.len()));
    assert!(asked.follow_up(frame).is_none());
    asked.decode(frame)
}

#[test]
fn an_address_reads_back_as_it_was_written() {
    for text in [METER, "202107300049", "AAAAAAAAAAAA", "AA0800963457"] {
        assert_eq!(address(text).to_string(), text);
    }
    assert_eq!(address("202107300049").to_wire(), [0x49, 0x00, 0x30, 0x07, 0x21, 0x20]);
    assert!(address("AA0800963457").is_wildcard() && !address(METER).is_wildcard());
    assert!(address("AA0800963457").matches(address("120800963457")));
    assert!(!address("AA0800963457").matches(address("120800963458")));
    for (text, says) in [
        ("", "12 digits"),
        ("161", "12 digits"),
        ("0000000001611", "12 digits"),
        ("00000000016A", "12 digits"),
        ("0x0000000161", "12 digits"),
        ("+00000000161", "12 digits"),
        ("00000000016１", "12 digits"),
        ("999999999999", "broadcast"),
    ] {
        let error = text.parse::<Address>().unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn requests_are_those_of_the_standard() {
    assert_eq!(encode(address(METER), &total()), bytes(REQUEST));
    assert_eq!(encode(Address::ANYBODY, &Read::Address), bytes("FEFEFEFE68AAAAAAAAAAAA681300DF16"));
    let next = Read::Data { identifier: "0001FF00".parse().unwrap(), follow_up: Some(2), length: 20 };
    let request = encode(address("000000123456"), &next);
    assert_eq!(request, bytes("FEFEFEFE6856341200000068120533323433358416"));
    for read in [total(), Read::Address, next] {
        assert_eq!(encode(Address::ANYBODY, &read).len(), read.request_chars() as usize);
    }
    // 4 FE, 12, and five values behind the identifier.
    assert_eq!(Read::data("0001FF00".parse().unwrap(), 20).reply_chars(), 40);
    assert_eq!(Read::Address.reply_chars(), 22);
}

/// No function that writes can be expressed: whatever can be asked is a read.
#[test]
fn only_reads_are_ever_sent() {
    for follow_up in [None, Some(1), Some(255)] {
        let read = Read::Data { identifier: Identifier([0x04, 0, 0x01, 0x01]), follow_up, length: 4 };
        let request = encode(Address::ANYBODY, &read);
        assert!([0x11, 0x12].contains(&request[12]), "{request:02X?}");
    }
    assert_eq!(encode(Address::ANYBODY, &Read::Address)[12], 0x13);
}

#[test]
fn what_stands_before_a_reply_is_passed_over() {
    let (request, answer) = (bytes(REQUEST), bytes(ANSWER));
    let noise = [
        "",
        "FE",
        "FEFEFEFE",
        "FEFEFEFEFEFEFEFEFEFEFEFEFE",
        "FE00",
        "0000C04000",
        // One start byte too many.
        "68",
        // The text of a radio module, "CTRL:12".
        "4354524C3A3132",
        // The end of another frame, whose checksum is a start byte.
        "3A8954336816",
        "68FE16",
    ];
    let echo = [request.clone(), [&[0], &request[..]].concat(), request[3..].to_vec(), request.repeat(2)];
    for before in noise.into_iter().map(bytes).chain(echo) {
        let received = [&before[..], &answer, &bytes("E0C401")].concat();
        let end = before.len() + answer.len();
        assert_eq!(find(&request, &received), Found::Frame(before.len()..end), "behind {before:02X?}");
        for cut in 0..end {
            assert_eq!(find(&request, &received[..cut]), Found::Incomplete, "{before:02X?}, {cut}");
        }
    }
}

/// Copies of other answers on a mixed line, and a frame that lost a byte.
#[test]
fn other_frames_before_the_reply_are_passed_over() {
    let (request, answer) = (bytes(REQUEST), bytes(ANSWER));
    let others = [
        frame(address("000000000162"), 0x91, &[0, 0, 1, 0, 1, 2, 3, 4]),
        frame(address(METER), 0x91, &[0, 1, 1, 2, 1, 0x10]),
        frame(address(METER), 0x93, &[1, 2, 3, 4, 5, 6]),
        answer[..answer.len() - 1].to_vec(),
    ];
    for before in others {
        let received = [&before[..], &answer].concat();
        assert_eq!(find(&request, &received), Found::Frame(before.len()..received.len()), "{before:02X?}");
        // Once the reply has begun it is waited for.
        for cut in before.len() + 1..received.len() {
            assert_eq!(find(&request, &received[..cut]), Found::Incomplete, "{before:02X?}, {cut}");
        }
    }
}

#[test]
fn a_spoilt_frame_is_known_to_be_spoilt_at_its_last_byte() {
    let reply = bytes(ANSWER);
    let request = bytes(REQUEST);
    for at in 10..reply.len() {
        for bit in 0..8 {
            let mut spoilt = reply.clone();
            spoilt[at] ^= 1 << bit;
            assert_eq!(find(&request, &spoilt), Found::Damaged, "bit {bit} of byte {at}");
            assert!(fault(&request, &spoilt).is_some());
            for cut in 0..spoilt.len() {
                assert_eq!(find(&request, &spoilt[..cut]), Found::Incomplete, "bit {bit} of byte {at}");
            }
            // And the repetition behind it is found.
            let repeated = [spoilt, reply.clone()].concat();
            assert!(matches!(find(&request, &repeated), Found::Frame(_)), "bit {bit} of byte {at}");
        }
    }
    // Shorter than the second start byte needs to be ruled out as a first one.
    let refusal = bytes("6861010000000068D101355C16");
    assert_eq!(find(&request, &refusal), Found::Damaged);
    assert_eq!(fault(&request, &refusal).unwrap(), "checksum 5C came, 39 was expected");
}

/// It is passed over, since the reply may still come, and named where it does not.
#[test]
fn what_is_not_the_reply_is_named() {
    let request = bytes(REQUEST);
    let address = address(METER);
    let energy = [0, 0, 1, 0, 1, 2, 3, 4];
    for (reply, says) in [
        (frame("000000000162".parse().unwrap(), 0x91, &energy), "meter 000000000162 answered"),
        (frame(Address::ANYBODY, 0x91, &energy), "meter AAAAAAAAAAAA answered"),
        (frame(address, 0x91, &[0, 1, 1, 2, 1, 0x10]), "identifier 02010100 came, 00010000 was asked"),
        (frame(address, 0x93, &[1, 2, 3, 4, 5, 6]), "control code 93 came, function 11 was asked"),
        (frame(address, 0x9C, &[]), "control code 9C came, function 11 was asked"),
    ] {
        assert_eq!(find(&request, &reply), Found::Incomplete, "{says}");
        assert!(fault(&request, &reply).unwrap().contains(says), "{says}");
    }
    let end = bytes("6861010000000068910833333433593333338A17");
    assert_eq!(find(&request, &end), Found::Damaged);
    assert!(fault(&request, &end).unwrap().contains("end byte 17"));
    let stopped = bytes("68610100000000689109");
    assert_eq!(find(&request, &stopped), Found::Incomplete);
    assert_eq!(fault(&request, &stopped).unwrap(), "the reply stopped after 10 bytes");
    // An echo alone, no second start, more data than a reply can have: nothing of the reply.
    let long = format!("686101000000006891C9{}", "33".repeat(250));
    for nothing in [REQUEST, "6861010000000069910833333433593333338A16", "D7535353535A64", "0068", &long] {
        assert_eq!(found(nothing), Found::Incomplete, "{nothing}");
        assert_eq!(fault(&request, &bytes(nothing)), None, "{nothing}");
    }
}

#[test]
fn a_reply_without_what_was_asked_for_is_no_value() {
    let meter = address(METER);
    for (read, control, fields, says) in [
        (total(), 0x91, &[][..], "0 data bytes came, without an identifier"),
        (total(), 0x91, &[0, 0, 1], "3 data bytes came, without an identifier"),
        (total(), 0xD1, &[], "without its error word"),
        (Read::Address, 0x93, &[1, 2, 3], "an address of 3 bytes"),
    ] {
        match said(read, &frame(meter, control, fields)) {
            Reply::Unfit(detail) => assert!(detail.contains(says), "{detail}"),
            other => panic!("{says}: {other:?}"),
        }
    }
}

#[test]
fn who_answers_a_wildcard_is_reported() {
    let answered = Reply::Data(Payload::Data { from: address(METER), bytes: vec![0x26, 0, 0, 0] });
    for target in ["AAAAAAAA0161", "AAAAAAAAAAAA"] {
        let asked = ReadTransaction::new(address(target), total());
        assert_eq!(asked.find(&bytes(ANSWER)), Found::Frame(0..20));
        assert_eq!(asked.decode(&bytes(ANSWER)), answered);
    }
    let asked = ReadTransaction::new(Address::ANYBODY, Read::Address);
    // Some speak as AA…AA: the data says who they are.
    for speaker in [Address::ANYBODY, address(METER)] {
        let reply = frame(speaker, 0x93, &address(METER).to_wire());
        assert_eq!(asked.find(&reply), Found::Frame(0..reply.len()));
        let bytes = address(METER).to_wire().to_vec();
        assert_eq!(asked.decode(&reply), Reply::Data(Payload::Data { from: address(METER), bytes }));
    }
}

#[test]
fn frames_that_follow_are_put_together() {
    let block: Identifier = "0001FF00".parse().unwrap();
    let meter = address(METER);
    let part = |control: u8, data: &[u8]| frame(meter, control, &[&block.to_wire()[..], data].concat());
    let follow_up = |n| encode(meter, &Read::Data { identifier: block, follow_up: Some(n), length: 5 });

    // Whoever answers the wildcard is asked for the rest.
    let first = ReadTransaction::new(Address::ANYBODY, Read::data(block, 5));
    let second = first.follow_up(&part(0xB1, &[1, 2])).unwrap();
    assert_eq!(second.request(), follow_up(1));
    assert_eq!(second.find(&part(0x92, &[3, 4, 2])), Found::Incomplete, "another frame's number");
    assert!(second.fault(&part(0x92, &[3, 4, 2])).unwrap().contains("frame 2 came, 1 was asked"));
    assert_eq!(second.find(&part(0x91, &[3, 4, 1])), Found::Incomplete, "the first frame once more");
    let third = second.follow_up(&part(0xB2, &[3, 4, 1])).unwrap();
    assert_eq!(third.request(), follow_up(2));
    let last = part(0x92, &[5, 2]);
    assert!(third.find(&last) == Found::Frame(0..last.len()) && third.follow_up(&last).is_none());
    let whole = Reply::Data(Payload::Data { from: meter, bytes: vec![1, 2, 3, 4, 5] });
    assert_eq!(third.decode(&last), whole);

    // One that refuses in the middle has refused: half a block is no answer.
    assert_eq!(second.decode(&frame(meter, 0xD2, &[2])), Reply::Refused(refusal(2)));
    assert!(second.follow_up(&frame(meter, 0xD2, &[2])).is_none());

    // One that never comes to an end is given up.
    let mut asked: Box<dyn crate::protocol::Transaction> = Box::new(first);
    let mut frames = 0_u8;
    loop {
        let reply = if frames == 0 { part(0xB1, &[9]) } else { part(0xB2, &[9, frames]) };
        match asked.follow_up(&reply) {
            Some(next) => asked = next,
            None => {
                break assert!(matches!(asked.decode(&reply), Reply::Unfit(d) if d.contains("more than 15")));
            }
        }
        frames += 1;
    }
    assert_eq!(frames, MAX_FOLLOW_UPS);
}

#[test]
fn an_error_word_is_said_in_words() {
    for (word, says, transient) in [
        (0x00, "no reason", true),
        (0x01, "other error", true),
        (0x02, "no such data", false),
        (0x04, "not allowed", false),
        (0x06, "no such data, wrong password", false),
        (0x03, "no such data", false),
        (0x48, "several", true),
        (0x80, "several", true),
    ] {
        let Reply::Refused(refusal) = said(total(), &frame(address(METER), 0xD1, &[word])) else {
            panic!("not refused")
        };
        assert!(refusal.text.contains(says), "{word:02X}: {}", refusal.text);
        assert_eq!((refusal.code, refusal.transient), (word, transient));
    }
    // Meters with a security module say it in two bytes.
    let reply = frame(address(METER), 0xD1, &[0x02, 0x00]);
    assert_eq!(said(total(), &reply), Reply::Refused(refusal(2)));
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(request in prop::collection::vec(any::<u8>(), 0..30),
                                            received in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = find(&request, &received);
        let _ = find(&bytes(REQUEST), &received);
        let _ = (fault(&request, &received), fault(&bytes(REQUEST), &received));
        let asked = ReadTransaction::new(Address::ANYBODY, total());
        let _ = (asked.decode(&received), asked.follow_up(&received));
        let _ = first_frame(&received);
    }

    /// What a meter truly answers is found, wherever noise without a start byte stands around it.
    #[test]
    fn a_true_answer_is_found_in_noise(noise in prop::collection::vec(any::<u8>(), 0..40),
                                       data in prop::collection::vec(any::<u8>(), 0..=196), echoed in any::<bool>()) {
        let noise: Vec<u8> = noise.into_iter().filter(|byte| *byte != START).collect();
        let request = bytes(REQUEST);
        let reply = frame(address(METER), 0x91, &[&[0, 0, 1, 0], &data[..]].concat());
        let before = if echoed { [&noise[..], &request[..]].concat() } else { noise };
        let received = [&before[..], &reply[..]].concat();
        for cut in 0..received.len() {
            prop_assert_eq!(find(&request, &received[..cut]), Found::Incomplete);
        }
        prop_assert_eq!(find(&request, &received), Found::Frame(before.len()..received.len()));
        let answered = Reply::Data(Payload::Data { from: address(METER), bytes: data });
        prop_assert_eq!(said(total(), &reply), answered);
    }
}
