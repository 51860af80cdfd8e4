//! `ledger.json` and `cursors.json`, as they may stand on a damaged disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::ledger::{
    Pruned,
    meta::{Cursors, Meta},
};

const LEDGER: &str = "0123456789abcdef0123456789abcdef";

fuzz_target!(|data: &[u8]| {
    if let Ok(mut meta) = Meta::parse(data) {
        let written = serde_json::to_vec_pretty(&meta).expect("it came from JSON");
        assert_eq!(Meta::parse(&written), Ok(meta.clone()));
        let runs = Pruned::runs(&meta.pruned);
        assert!(runs.len() <= meta.pruned.len());
        for range in meta.pruned.clone() {
            assert!(meta.pruned_at(range.first).is_some() && meta.pruned_at(range.last).is_some());
            meta.note(range);
        }
    }
    if let Ok(cursors) = Cursors::parse(data, LEDGER) {
        assert_eq!(Cursors::parse(&cursors.to_bytes(LEDGER), LEDGER), Ok(cursors));
    }
    if let Some((numbers, _)) = data.split_first_chunk::<32>() {
        let number = |at: usize| numbers[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        let cursors = Cursors { acknowledged: number(0), confirmed: number(8), session: number(16), stored: number(24) };
        assert_eq!(Cursors::parse(&cursors.to_bytes(LEDGER), LEDGER), Ok(cursors));
        assert!(Cursors::parse(&cursors.to_bytes(LEDGER), "another").is_err());
    }
});
