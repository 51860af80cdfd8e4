//! Bytes on a DL/T 645 line. A reply that is accepted lies within what came, is of the meter, function and identifier
//! that were asked for, and its checksum is right; and a true reply is found, alone and behind its echo.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::protocol::{
    Found, Transaction,
    dlt645::{Address, Identifier, MAX_DATA, Read, ReadTransaction, find, first_frame, frame, refusal},
};

fuzz_target!(|data: &[u8]| {
    let Some((&[what, number, a, b, c, d], received)) = data.split_first_chunk::<6>() else { return };
    let _ = refusal(number);
    let target = if what & 0x40 == 0 { Address::from_wire([a, b, c, d, a, b]) } else { Address::ANYBODY };
    let follow_up = (what & 2 != 0).then_some(number);
    let read = match what & 1 {
        0 => Read::Data { identifier: Identifier([a, b, c, d]), follow_up, length: number },
        _ => Read::Address,
    };
    let asked = ReadTransaction::new(target, read);
    let request = asked.request();
    assert_eq!(request.len(), read.request_chars() as usize);
    let _ = asked.fault(received);
    if let Found::Frame(range) = asked.find(received) {
        let (seen, length) = first_frame(&received[range.clone()]).expect("a frame");
        assert_eq!(length, range.len());
        assert!(target.matches(seen.address) && seen.control & 0x80 != 0);
        let reply = &received[range];
        let _ = (asked.decode(reply), asked.follow_up(reply));
    }
    // What a meter truly answers is found, alone and behind its echo.
    let control = match read {
        Read::Address => 0x93,
        Read::Data { follow_up: None, .. } => 0x91,
        Read::Data { .. } => 0x92,
    };
    let fields = match read {
        Read::Address => vec![a, b, c, d, a, b],
        Read::Data { .. } => {
            let own = &received[..received.len().min(MAX_DATA - 5)];
            [&[d, c, b, a][..], own, follow_up.as_slice()].concat()
        }
    };
    let reply = frame(target, control, &fields);
    assert_eq!(asked.find(&reply), Found::Frame(0..reply.len()));
    let echoed = [request, &reply].concat();
    assert_eq!(asked.find(&echoed), Found::Frame(request.len()..echoed.len()));
    let _ = find(received, data);
});
