//! A ledger line, as it may stand on a damaged disk. What verifies is its own canonical form, and has one place.
//!
//! The fuzzer cannot guess a hash: a line with an empty one gets the right one, so that what lies behind it is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::{
    ledger::{
        canonical,
        chain::{MAX_LINE, Step, Verified, Walk, sha256_hex, verify_line},
    },
    model::GENESIS,
};
use serde_json::{Map, Value};

fn again(record: &Map<String, Value>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    canonical::write_object(&mut bytes, record).ok().map(|()| bytes)
}

fn check(line: &[u8], verified: &Verified) {
    let record: Map<String, Value> = serde_json::from_slice(line).expect("it verified");
    assert_eq!(again(&record).expect("it verified"), line, "it is not its own canonical form");
    assert!(line.len() <= MAX_LINE && verified.seq > 0);
    let mut flipped = line.to_vec();
    if let Some(byte) = flipped.get_mut(line.len() / 2) {
        *byte ^= 1;
    }
    assert!(verify_line(&flipped).is_err(), "a flipped bit went unseen");
    let mut walk = Walk { next: verified.seq, prev: None, last: u64::MAX };
    assert!(matches!(walk.step(line), Step::Record { fault: None, .. }));
    assert!(matches!(walk.step(line), Step::Bad(_)), "one record was taken twice");
}

fuzz_target!(|data: &[u8]| {
    if let Ok(verified) = verify_line(data) {
        check(data, &verified);
    }
    let mut walk = Walk { next: 1, prev: Some(GENESIS.into()), last: 1000 };
    for line in data.split(|byte| *byte == b'\n') {
        let _ = walk.step(line);
    }
    let Ok(mut record) = serde_json::from_slice::<Map<String, Value>>(data) else { return };
    record.remove("hash");
    let Some(body) = again(&record) else { return };
    record.insert("hash".into(), sha256_hex(&body).into());
    let Some(line) = again(&record) else { return };
    match verify_line(&line) {
        Ok(verified) => check(&line, &verified),
        Err(detail) => assert!(
            line.len() > MAX_LINE || detail == "no seq" || detail == "no prev",
            "a record whose hash is right: {detail}"
        ),
    }
});
