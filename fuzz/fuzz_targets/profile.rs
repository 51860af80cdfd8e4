//! A profile as a site may write one. What is accepted can be planned, and its bytes decoded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::{
    profile::{Protocol, decode, load, plan},
    protocol::{Pace, modbus::MAX_WORDS},
};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match load(text, "site.profile") {
        Ok(profile) => {
            let points: Vec<usize> = (0..profile.points.len()).collect();
            for planned in plan(&profile, &points, &Pace::Network) {
                let text = format!("{planned:?}");
                assert!(!text.is_empty());
            }
            if let Protocol::Modbus(limits) = profile.protocol {
                assert!((1..=MAX_WORDS).contains(&limits.max_words));
            }
            for point in &profile.points {
                for byte in [0, 0x80, 0xFF] {
                    let _ = decode(&point.cell, &[byte; 8]);
                }
            }
        }
        Err(faults) => assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.to_string().is_empty())),
    }
});
