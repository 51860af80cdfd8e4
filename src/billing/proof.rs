//! Checks what is signed: manifests and key rotations, against the keys that are trusted. Pure.
//!
//! `examples/verify.py` does the same from `docs/verify.md` alone; both name the same first fault.

use std::{collections::VecDeque, fmt};

use serde_json::{Map, Value};

use super::signing::signed_bytes;
use crate::{
    identity::PublicKey,
    ledger::chain::{Verified, verify_line},
    model::{Seq, change},
};

/// Hashes that are remembered so that a signed `head` can be compared: a manifest stands behind the last record
/// that it covers by seconds, in which a thousand meters write at most some ten thousand records.
pub const WINDOW: usize = 65_536;

/// What is wrong, in a word that both verifiers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The line is not a record that proves itself: not JSON, not canonical, its hash is another.
    Record,
    /// Not the next `seq`.
    Order,
    /// `prev` is not the hash of the record before.
    Link,
    /// Signed by a key that is not trusted here.
    Key,
    /// The signature does not verify.
    Signature,
    /// The signed chain head is not the one that is there.
    Head,
    /// Of another ledger.
    Ledger,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Record => "record",
            Kind::Order => "order",
            Kind::Link => "link",
            Kind::Key => "key",
            Kind::Signature => "signature",
            Kind::Head => "head",
            Kind::Ledger => "ledger",
        })
    }
}

/// A fault and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Line of an export, from 1; 0 for a record of a ledger.
    pub line: u64,
    /// The record that should be there; 0 when that is not known.
    pub seq: Seq,
    /// What.
    pub kind: Kind,
    /// For people.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, ", self.line)?;
        }
        write!(f, "seq {}: {}: {}", self.seq, self.kind, self.detail)
    }
}

/// The last manifest that verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    /// Its position.
    pub seq: Seq,
    /// Its day.
    pub date: String,
    /// Everything from the first record seen to here is proved by it.
    pub last_seq: Seq,
}

/// Follows the records in order and checks what is signed.
pub struct Proof {
    trusted: Vec<PublicKey>,
    ledger: Option<String>,
    hashes: VecDeque<(Seq, String)>,
    /// The first record without a gap before it.
    first: Seq,
    last: Seq,
    /// Manifest records that verified.
    pub manifests: u64,
    /// Key rotations that verified.
    pub rotations: u64,
    /// What the last of them proves.
    pub proved: Option<Proved>,
}

impl Proof {
    /// Trusts these keys, and whichever key one of them hands over to.
    pub fn new(trusted: Vec<PublicKey>) -> Proof {
        Proof {
            trusted,
            ledger: None,
            hashes: VecDeque::new(),
            first: 0,
            last: 0,
            manifests: 0,
            rotations: 0,
            proved: None,
        }
    }

    /// The first record that is linked without a gap to the last one, 0 before any.
    pub fn first(&self) -> Seq {
        self.first
    }

    /// Looks at the next record, which has proved itself.
    pub fn record(&mut self, verified: &Verified, bytes: &[u8]) -> Result<(), Fault> {
        let seq = verified.seq;
        if self.first == 0 || seq != self.last + 1 {
            self.hashes.clear();
            self.first = seq;
            self.note(seq.saturating_sub(1), &verified.prev);
        }
        self.last = seq;
        let checked = self.signed(verified, bytes);
        self.note(seq, &verified.hash);
        checked.map_err(|(kind, detail)| Fault { line: 0, seq, kind, detail })
    }

    fn note(&mut self, seq: Seq, hash: &str) {
        if self.hashes.len() == WINDOW {
            self.hashes.pop_front();
        }
        self.hashes.push_back((seq, hash.to_owned()));
    }

    fn signed(&mut self, verified: &Verified, bytes: &[u8]) -> Result<(), (Kind, String)> {
        if !matches!(verified.facts.kind.as_str(), "manifest" | "change") {
            return Ok(());
        }
        let Ok(record) = serde_json::from_slice::<Map<String, Value>>(bytes) else { return Ok(()) };
        let text = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default();
        let rotation = verified.facts.kind == "change";
        if rotation && text("change") != change::KEY_ROTATED {
            return Ok(());
        }
        let id = text(if rotation { "old_key_id" } else { "key_id" });
        let Some(place) = self.trusted.iter().position(|key| key.id() == id) else {
            return Err((Kind::Key, format!("signed by key {id:?}, which is not trusted here")));
        };
        let signature = text("signature");
        let valid = self
            .trusted
            .get(place)
            .zip(signed_bytes(&record))
            .is_some_and(|(key, bytes)| key.verifies(&bytes, signature));
        if !valid {
            return Err((Kind::Signature, format!("the signature of key {id} does not verify")));
        }
        let ledger = text("ledger").to_owned();
        let known = self.ledger.get_or_insert_with(|| ledger.clone());
        if *known != ledger {
            return Err((Kind::Ledger, format!("of ledger {ledger:?}; those before are of {known:?}")));
        }
        let last_seq = record.get("last_seq").and_then(Value::as_u64).unwrap_or(Seq::MAX);
        self.head_is(verified.seq, last_seq, text("head"))?;
        if rotation {
            let key = PublicKey::from_base64(text("new_public_key"))
                .map_err(|what| (Kind::Key, format!("new_public_key {what}")))?;
            if key.id() != text("new_key_id") {
                return Err((Kind::Key, "new_key_id is not the id of new_public_key".into()));
            }
            self.trusted.remove(place);
            if !self.trusted.contains(&key) {
                self.trusted.push(key);
            }
            self.rotations += 1;
        } else {
            self.manifests += 1;
            if last_seq >= self.first {
                self.proved = Some(Proved { seq: verified.seq, date: text("date").to_owned(), last_seq });
            }
        }
        Ok(())
    }

    /// Compares a signed head with the chain; what lies before the first record seen cannot be compared.
    fn head_is(&self, seq: Seq, last_seq: Seq, head: &str) -> Result<(), (Kind, String)> {
        if last_seq >= seq {
            return Err((Kind::Head, format!("last_seq {last_seq} is not before the record itself")));
        }
        if last_seq + 1 < self.first {
            return Ok(());
        }
        let begin = self.hashes.front().map_or(0, |(first, _)| *first);
        let found = last_seq
            .checked_sub(begin)
            .and_then(|n| self.hashes.get(usize::try_from(n).ok()?))
            .map(|(_, hash)| hash.as_str());
        match found {
            Some(hash) if hash == head => Ok(()),
            Some(hash) => Err((
                Kind::Head,
                format!("it was signed over {head} at seq {last_seq}; the chain has {hash}"),
            )),
            None => Err((Kind::Head, format!("seq {last_seq} lies more than {WINDOW} records back"))),
        }
    }
}

/// Follows the lines of an export: each proves itself, follows the one before, and what is signed verifies.
pub struct Lines {
    /// What was checked so far.
    pub proof: Proof,
    /// Records that were found good.
    pub records: u64,
    line: u64,
    before: Option<(Seq, String)>,
}

impl Lines {
    /// An export may begin anywhere in the chain.
    pub fn new(trusted: Vec<PublicKey>) -> Lines {
        Lines { proof: Proof::new(trusted), records: 0, line: 0, before: None }
    }

    /// The last record found good and its hash.
    pub fn last(&self) -> Option<&(Seq, String)> {
        self.before.as_ref()
    }

    /// The next line without its line feed. Behind a fault there is nothing to be said of the rest.
    pub fn line(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.line += 1;
        let line = self.line;
        let expected = self.before.as_ref().map_or(0, |(seq, _)| seq + 1);
        let fault = |kind, detail| Fault { line, seq: expected, kind, detail };
        let verified = verify_line(bytes).map_err(|detail| fault(Kind::Record, detail))?;
        if let Some((_, hash)) = &self.before {
            if verified.seq != expected {
                return Err(fault(
                    Kind::Order,
                    format!("found seq {}, expected seq {expected}", verified.seq),
                ));
            }
            if verified.prev != *hash {
                let seen = &verified.prev;
                return Err(fault(
                    Kind::Link,
                    format!("names {seen} before it; the record before has {hash}"),
                ));
            }
        }
        self.proof.record(&verified, bytes).map_err(|fault| Fault { line, ..fault })?;
        self.records += 1;
        self.before = Some((verified.seq, verified.hash));
        Ok(())
    }
}
