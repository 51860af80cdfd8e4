//! What is sealed verifies, with the place and the hash that the seal gave it; what cannot be exact is refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::{
    ledger::chain::{MAX_LINE, seal, sha256_hex, verify_line},
    model::{ClockState, Draft, RecordType, Utc},
};
use serde_json::{Map, Value};

fuzz_target!(|data: &[u8]| {
    let Some((place, text)) = data.split_first_chunk::<8>() else { return };
    let Ok(fields) = serde_json::from_slice::<Map<String, Value>>(text) else { return };
    let place = u64::from_le_bytes(*place);
    let seq = (place >> 11).max(1);
    let draft = Draft {
        kind: if place & 1 == 0 { RecordType::Reading } else { RecordType::Change },
        recorded_at: Utc::from_timestamp_millis((place >> 22).cast_signed()).unwrap_or_default(),
        clock: if place & 2 == 0 { ClockState::Synced } else { ClockState::Unsynced },
        fields,
        reading: None,
    };
    let prev = sha256_hex(text);
    let Ok(sealed) = seal(&draft, seq, &prev) else { return };
    assert!(sealed.bytes.len() <= MAX_LINE && !sealed.bytes.contains(&b'\n'));
    let verified = verify_line(&sealed.bytes).expect("what is sealed verifies");
    assert_eq!((verified.seq, verified.prev, verified.hash), (seq, prev, sealed.hash));
    assert_eq!(verified.facts, sealed.facts, "the index is told something else at the next start");
});
