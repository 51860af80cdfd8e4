//! An export as an auditor gets it, with its manifests and key rotations.
//!
//! Each line of the input is a record to be: it is given its place, and where it names the key it is signed with it,
//! so that the fuzzer works behind the hashes and signatures. A second pass takes the bytes as they are.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use meter_gateway::{
    billing::{proof::Lines, signing::signed_bytes},
    identity::Signer,
    ledger::{canonical, chain::sha256_hex},
    model::GENESIS,
};
use serde_json::{Map, Value};

/// A key for this target alone (RFC 8410, PKCS #8 v1: the seed is 32 times 0x2A).
static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let mut der = vec![0x30, 0x2E, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    der.extend_from_slice(&[0x2A; 32]);
    Signer::from_pkcs8(&der).expect("a seed of 32 bytes is a key")
});

fn canonical(record: &Map<String, Value>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    canonical::write_object(&mut bytes, record).ok().map(|()| bytes)
}

fuzz_target!(|data: &[u8]| {
    let key = SIGNER.public_key();
    let mut raw = Lines::new(vec![key]);
    for line in data.split(|byte| *byte == b'\n') {
        if let Err(fault) = raw.line(line) {
            assert!(!fault.to_string().is_empty());
            break;
        }
    }
    let (mut lines, mut seq, mut prev) = (Lines::new(vec![key]), 1_u64, GENESIS.to_owned());
    for text in data.split(|byte| *byte == b'\n') {
        let Ok(mut record) = serde_json::from_slice::<Map<String, Value>>(text) else { continue };
        for name in ["key_id", "old_key_id"] {
            if record.get(name) == Some(&"*".into()) {
                record.insert(name.into(), key.id().into());
            }
        }
        if record.get("head") == Some(&"*".into()) {
            record.insert("head".into(), prev.clone().into());
            record.insert("last_seq".into(), (seq - 1).into());
        }
        if record.contains_key("signature")
            && let Some(bytes) = signed_bytes(&record)
        {
            record.insert("signature".into(), SIGNER.sign(&bytes).into());
        }
        record.insert("seq".into(), seq.into());
        record.insert("prev".into(), prev.clone().into());
        record.remove("hash");
        let Some(body) = canonical(&record) else { continue };
        let hash = sha256_hex(&body);
        record.insert("hash".into(), hash.clone().into());
        let Some(line) = canonical(&record) else { continue };
        if lines.line(&line).is_err() {
            break;
        }
        assert_eq!(lines.last(), Some(&(seq, hash.clone())));
        assert_eq!(lines.records, seq);
        assert!(lines.proof.manifests + lines.proof.rotations <= lines.records);
        (seq, prev) = (seq + 1, hash);
    }
});
