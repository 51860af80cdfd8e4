//! Frames in, replies out: what is passed over, what is refused, and what is put together.

use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn total() -> Read {
    Read::data("00010000".parse().unwrap())
}

/// The total of meter 000000000161, and 0.26 kWh as its answer.
const METER: &str = "000000000161";
const REQUEST: &str = "FEFEFEFE68610100000000681104333334331416";
const ANSWER: &str = "6861010000000068910833333433593333338A16";

fn found(received: &str) -> Framing {
    find(&bytes(REQUEST), &bytes(received))
}

fn unfit(received: &str) -> String {
    match found(received) {
        Framing::Unfit(detail) => detail,
        other => panic!("{received}: {other:?}"),
    }
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
    let next = Read::Data { identifier: "0001FF00".parse().unwrap(), follow_up: Some(2) };
    let request = encode(address("000000123456"), &next);
    assert_eq!(request, bytes("FEFEFEFE6856341200000068120533323433358416"));
    for read in [total(), Read::Address, next] {
        assert_eq!(encode(Address::ANYBODY, &read).len(), read.request_chars());
    }
    // 4 FE, 12, and five values behind the identifier.
    assert_eq!(total().reply_chars(20), 40);
}

/// No function that writes can be expressed: whatever can be asked is a read.
#[test]
fn only_reads_are_ever_sent() {
    for follow_up in [None, Some(1), Some(255)] {
        let read = Read::Data { identifier: Identifier([0x04, 0, 0x01, 0x01]), follow_up };
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
        assert_eq!(find(&request, &received), Framing::Frame(before.len()..end), "behind {before:02X?}");
        for cut in 0..end {
            assert_eq!(find(&request, &received[..cut]), Framing::Incomplete, "{before:02X?}, {cut}");
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
        assert_eq!(find(&request, &received), Framing::Frame(before.len()..received.len()), "{before:02X?}");
        // Once the reply has begun it is waited for.
        for cut in before.len() + 1..received.len() {
            assert_eq!(find(&request, &received[..cut]), Framing::Incomplete, "{before:02X?}, {cut}");
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
            assert!(matches!(find(&request, &spoilt), Framing::Unfit(_)), "bit {bit} of byte {at}");
            for cut in 0..spoilt.len() {
                assert_eq!(find(&request, &spoilt[..cut]), Framing::Incomplete, "bit {bit} of byte {at}");
            }
            // And the repetition behind it is found.
            let repeated = [spoilt, reply.clone()].concat();
            assert!(matches!(find(&request, &repeated), Framing::Frame(_)), "bit {bit} of byte {at}");
        }
    }
    // Shorter than the second start byte needs to be ruled out as a first one.
    assert!(unfit("6861010000000068D101355C16").contains("checksum 5C came, 39 was expected"));
}

#[test]
fn what_is_not_the_reply_is_named() {
    let address = address(METER);
    let hex = |frame: Vec<u8>| digits(frame.iter());
    let voltage = [0x00, 0x01, 0x01, 0x02, 0x01, 0x10];
    for (reply, says) in [
        (
            frame("000000000162".parse().unwrap(), 0x91, &[0, 0, 1, 0, 1, 2, 3, 4]),
            "meter 000000000162 answered",
        ),
        (frame(Address::ANYBODY, 0x91, &[0, 0, 1, 0, 1, 2, 3, 4]), "meter AAAAAAAAAAAA answered"),
        (frame(address, 0x91, &voltage), "identifier 02010100 came, 00010000 was asked"),
        (frame(address, 0x91, &[]), "0 data bytes came, without an identifier"),
        (frame(address, 0x91, &[0, 0, 1]), "3 data bytes came, without an identifier"),
        (frame(address, 0x93, &[1, 2, 3, 4, 5, 6]), "control code 93 came, function 11 was asked"),
        (frame(address, 0xD1, &[]), "without its error word"),
    ] {
        let detail = unfit(&hex(reply));
        assert!(detail.contains(says), "{detail}");
    }
    assert!(unfit("6861010000000068910833333433593333338A17").contains("end byte 17"));
    // More data than a reply can have, no second start, an echo alone: still nothing of the reply.
    for nothing in
        ["68610100000000689109", REQUEST, "6861010000000069910833333433593333338A16", "D7353535355A64"]
    {
        assert_eq!(found(nothing), Framing::Incomplete, "{nothing}");
    }
    assert_eq!(found(&format!("686101000000006891C9{}", "33".repeat(250))), Framing::Incomplete);
    match find(&[1, 2, 3], &[]) {
        Framing::Unfit(detail) => assert!(detail.contains("not a DL/T 645 read")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_answers_a_wildcard_is_reported() {
    let request = encode(address("AAAAAAAA0161"), &total());
    let Framing::Frame(range) = find(&request, &bytes(ANSWER)) else { panic!("not found") };
    let Some(Reply::Data { from, data, more }) = decode(&total(), &bytes(ANSWER)[range]) else {
        panic!("no data")
    };
    assert_eq!((from, data, more), (address(METER), vec![0x26, 0, 0, 0], false));
    let request = encode(Address::ANYBODY, &Read::Address);
    // Some speak as AA…AA: the data says who they are.
    let reply = frame(Address::ANYBODY, 0x93, &address(METER).to_wire());
    assert_eq!(find(&request, &reply), Framing::Frame(0..reply.len()));
    assert_eq!(decode(&Read::Address, &reply), Some(Reply::Address(address(METER))));
}

#[test]
fn frames_that_follow_are_put_together() {
    let block: Identifier = "0001FF00".parse().unwrap();
    let wire = block.to_wire();
    let meter = address(METER);
    let part = |control: u8, data: &[u8]| frame(meter, control, &[&wire[..], data].concat());
    let mut gather = Gather::new(Read::data(block));
    let mut asked = Vec::new();
    let replies = [part(0xB1, &[1, 2]), part(0xB2, &[3, 4, 1]), part(0x92, &[5, 2])];
    let mut steps = Vec::new();
    for reply in replies {
        let read = *gather.read();
        asked.push(read);
        let request = encode(meter, &read);
        assert_eq!(find(&request, &reply), Framing::Frame(0..reply.len()));
        steps.push(gather.take(decode(&read, &reply).unwrap()));
    }
    let follow_up = |n| Read::Data { identifier: block, follow_up: Some(n) };
    assert_eq!(asked, [Read::data(block), follow_up(1), follow_up(2)]);
    let whole = Reply::Data { from: meter, data: vec![1, 2, 3, 4, 5], more: false };
    assert_eq!(steps, [Step::Next, Step::Next, Step::Done(whole)]);

    // Another frame's number is not the one that was asked for.
    let request = encode(meter, &follow_up(1));
    assert!(
        matches!(find(&request, &part(0xB2, &[3, 4, 2])), Framing::Unfit(detail) if detail.contains("frame 2 came"))
    );

    // A meter that never comes to an end is given up; one that refuses in the middle has refused.
    let mut gather = Gather::new(Read::data(block));
    let endless = |_| Reply::Data { from: meter, data: vec![0; 8], more: true };
    let last = (0..20).map(endless).map(|reply| gather.take(reply)).find(|step| *step != Step::Next);
    assert!(matches!(last, Some(Step::Unfit(detail)) if detail.contains("15 follow-up frames")));
    let mut gather = Gather::new(Read::data(block));
    gather.take(Reply::Data { from: meter, data: vec![0; 8], more: true });
    let refused = Reply::Refused(refusal(2));
    assert_eq!(gather.take(refused.clone()), Step::Done(refused));
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
        let reply = frame(address(METER), 0xD1, &[word]);
        let Framing::Frame(range) = find(&bytes(REQUEST), &reply) else { panic!("not found") };
        let Some(Reply::Refused(refusal)) = decode(&total(), &reply[range]) else { panic!("not refused") };
        assert!(refusal.text.contains(says), "{word:02X}: {}", refusal.text);
        assert_eq!((refusal.code, refusal.transient), (word, transient));
    }
    // Meters with a security module say it in two bytes.
    let reply = frame(address(METER), 0xD1, &[0x02, 0x00]);
    assert_eq!(decode(&total(), &reply), Some(Reply::Refused(refusal(2))));
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_a_panic(request in prop::collection::vec(any::<u8>(), 0..30),
                                            received in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = find(&request, &received);
        let _ = find(&bytes(REQUEST), &received);
        let _ = decode(&total(), &received);
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
            prop_assert_eq!(find(&request, &received[..cut]), Framing::Incomplete);
        }
        prop_assert_eq!(find(&request, &received), Framing::Frame(before.len()..received.len()));
        let said = Reply::Data { from: address(METER), data, more: false };
        prop_assert_eq!(decode(&total(), &reply), Some(said));
    }
}
