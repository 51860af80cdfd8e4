//! The blobs of the index: places, sparse places, headers. What is unpacked packs to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::ledger::summary::{
    Header, Summary, pack_places, pack_sparse, unpack_places, unpack_sparse,
};

fuzz_target!(|data: &[u8]| {
    let Some((first, blob)) = data.split_first_chunk::<8>() else { return };
    let first = u64::from_le_bytes(*first);
    if let Some(places) = unpack_places(first, blob) {
        let packed = pack_places(first, &places);
        // The flag is a byte of which only 1 is said.
        let same = |(n, (a, b)): (usize, (&u8, &u8))| if n % 17 == 16 { (*a == 1) == (*b == 1) } else { a == b };
        assert!(packed.len() == blob.len() && packed.iter().zip(blob).enumerate().all(same));
        assert_eq!(unpack_places(first, &packed), Some(places));
    }
    if let Some(sparse) = unpack_sparse(first, blob) {
        assert_eq!(pack_sparse(first, &sparse), blob);
        let _ = Summary::offset_before(&sparse, first);
    }
    if let Ok(header) = serde_json::from_slice::<Header>(blob) {
        let written = serde_json::to_vec(&header).expect("it came from JSON");
        let again: Header = serde_json::from_slice(&written).expect("it was written just now");
        assert_eq!((again.is_protected(), &again), (header.is_protected(), &header));
    }
});
