//! Bytes of any meter through every built-in profile: what is decoded can be said again with the same value.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use meter_gateway::profile::{Catalogue, decode, encode};

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(Catalogue::builtin);

fuzz_target!(|data: &[u8]| {
    for profile in CATALOGUE.iter() {
        let cells = profile.points.iter().map(|point| &point.cell);
        for cell in cells.chain(profile.serial.iter().map(|serial| &serial.cell)) {
            let decoded = decode(cell, data);
            assert!(decoded.raw.len() <= 2 + 2 * usize::from(cell.encoding.kind.bytes()));
            if let Ok(value) = decoded.value {
                let again = encode(cell, value).expect("what was decoded fits its cell");
                // The bytes of a sentinel have no value, whatever they are the bytes of.
                let said = decode(cell, &again).value;
                assert!(said == Ok(value) || said == Err("not_available"), "{value} is read as {said:?}");
            }
        }
    }
});
