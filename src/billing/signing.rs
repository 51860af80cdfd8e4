//! Which bytes of a record are signed. Pure; `docs/verify.md` says the same to third parties.

use serde_json::{Map, Value};

use crate::{identity::Signer, ledger::canonical, model::Draft};

/// What a signature does not cover: itself, and what the ledger adds when the record gets its place. The place is
/// bound by `last_seq` and `head`, which are covered.
pub const UNSIGNED: [&str; 5] = ["signature", "seq", "prev", "hash", "recorded_at"];

/// The canonical JSON (RFC 8785) of the record without the fields above; `None` if it has no canonical form.
pub fn signed_bytes(record: &Map<String, Value>) -> Option<Vec<u8>> {
    let mut signed = record.clone();
    for name in UNSIGNED {
        signed.remove(name);
    }
    let mut bytes = Vec::with_capacity(1024);
    canonical::write_object(&mut bytes, &signed).ok().map(|()| bytes)
}

/// Adds `signature` to a draft.
pub fn sign(draft: &mut Draft, signer: &Signer) {
    let mut record = draft.fields.clone();
    record.insert("type".into(), serde_json::to_value(draft.kind).unwrap_or_default());
    record.insert("clock".into(), serde_json::to_value(draft.clock).unwrap_or_default());
    // Without a canonical form there is no signature either, and the ledger refuses the record by name.
    if let Some(bytes) = signed_bytes(&record) {
        draft.fields.insert("signature".into(), signer.sign(&bytes).into());
    }
}
