//! `ledger.json` (identity and what was pruned) and `cursors.json` (positions that outlive the process).
//!
//! Both are replaced as a whole. Without a sound one of either a ledger that has records does not go on.

use std::{io, path::Path};

use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use super::{
    LedgerError,
    canonical::MAX_INTEGER,
    chain::{hex, sha256_hex},
    disk::Disk,
    files::{io_error, replace},
};
use crate::model::{Seq, Utc};

/// Name of the file with the identity.
pub const META: &str = "ledger.json";
/// Name of the file with the positions.
pub const CURSORS: &str = "cursors.json";

/// Consecutive records that retention has removed, and what is needed to prove the chain across them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// The first removed record.
    pub first: Seq,
    /// The last removed record.
    pub last: Seq,
    /// The hash of the record before `first`.
    pub prev_hash: String,
    /// The hash of `last`.
    pub last_hash: String,
}

impl Pruned {
    /// Ranges in sequence order, neighbours merged; with each, how many it was made of.
    pub fn runs(ranges: &[Pruned]) -> Vec<(u64, Pruned)> {
        let mut runs: Vec<(u64, Pruned)> = Vec::new();
        for range in ranges {
            match runs.last_mut() {
                Some((count, before)) if before.last + 1 == range.first => {
                    *count += 1;
                    before.last = range.last;
                    before.last_hash.clone_from(&range.last_hash);
                }
                _ => runs.push((1, range.clone())),
            }
        }
        runs
    }
}

/// What the ledger knows of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// 32 lower-case hex digits.
    pub id: String,
    /// When the ledger was made.
    pub created: Utc,
    /// In sequence order, neighbours merged.
    #[serde(default)]
    pub pruned: Vec<Pruned>,
}

#[derive(Serialize, Deserialize)]
struct CheckedMeta {
    #[serde(flatten)]
    meta: Meta,
    check: String,
}

impl Meta {
    /// A new ledger.
    pub fn create(now: Utc) -> Result<Meta, LedgerError> {
        let mut id = [0_u8; 16];
        SystemRandom::new().fill(&mut id).map_err(|_| LedgerError::Io {
            path: META.into(),
            error: io::Error::other("no randomness for the ledger id"),
        })?;
        Ok(Meta { id: hex(&id), created: now, pruned: Vec::new() })
    }

    /// A flipped digit must not look like another ledger, nor like a range that may be removed.
    fn check(&self) -> String {
        sha256_hex(&serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads it; `None` when there is none yet. Damaged content is an error of the kind `InvalidData`.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Meta>, LedgerError> {
        let path = dir.join(META);
        let text = match disk.read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path)(error)),
        };
        let damaged = |detail: String| io_error(&path)(io::Error::new(io::ErrorKind::InvalidData, detail));
        Meta::parse(&text).map(Some).map_err(damaged)
    }

    /// From the bytes of its file: they prove themselves, and each removed range is one.
    pub fn parse(bytes: &[u8]) -> Result<Meta, String> {
        let checked: CheckedMeta = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let same = serde_json::to_vec_pretty(&checked).is_ok_and(|again| again == bytes);
        if !same || checked.check != checked.meta.check() {
            return Err("damaged, the check does not match".into());
        }
        let meta = checked.meta;
        let faulty =
            |range: &&Pruned| range.first == 0 || range.first > range.last || range.last > MAX_INTEGER;
        match meta.pruned.iter().find(faulty) {
            Some(Pruned { first, last, .. }) => {
                Err(format!("seq {first} to {last} is no range of records; expected 1 to {MAX_INTEGER}"))
            }
            None => Ok(meta),
        }
    }

    /// Writes it durably.
    pub fn store(&self, disk: &dyn Disk, dir: &Path) -> Result<(), LedgerError> {
        let checked = CheckedMeta { meta: self.clone(), check: self.check() };
        replace(disk, dir, META, &serde_json::to_vec_pretty(&checked).unwrap_or_default())
    }

    /// Notes a removed range, merged with its neighbours.
    pub fn note(&mut self, range: Pruned) {
        self.pruned.push(range);
        self.pruned.sort_by_key(|range| range.first);
        self.pruned = Pruned::runs(&self.pruned).into_iter().map(|(_, range)| range).collect();
    }

    /// The removed range that `seq` lies in.
    pub fn pruned_at(&self, seq: Seq) -> Option<&Pruned> {
        self.pruned.iter().find(|range| (range.first..=range.last).contains(&seq))
    }
}

/// Where the readers of the ledger stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursors {
    /// The broker has acknowledged everything up to here.
    pub acknowledged: Seq,
    /// Billing has committed everything up to here.
    pub confirmed: Seq,
    /// The publisher's last session number.
    pub session: u64,
    /// The last stored record when this was written: a ledger that ends before it has lost records.
    #[serde(default)]
    pub stored: Seq,
}

#[derive(Serialize, Deserialize)]
struct Checked {
    ledger: String,
    #[serde(flatten)]
    cursors: Cursors,
    check: String,
}

/// A flipped digit must not look like a cursor further on: that would lose records.
fn check(ledger: &str, cursors: &Cursors) -> String {
    sha256_hex(
        format!(
            "{ledger} {} {} {} {}",
            cursors.acknowledged, cursors.confirmed, cursors.session, cursors.stored
        )
        .as_bytes(),
    )
}

impl Cursors {
    /// Reads them. `Err` says why they begin again at 0.
    pub fn load(disk: &dyn Disk, dir: &Path, ledger: &str) -> Result<Cursors, String> {
        let path = dir.join(CURSORS);
        let name = path.display();
        let text = disk.read(&path).map_err(|error| format!("cursors {name}: {error}"))?;
        Cursors::parse(&text, ledger).map_err(|detail| format!("cursors {name}: {detail}"))
    }

    /// So many records the ledger is known to have had.
    pub fn known(&self) -> Seq {
        self.stored.max(self.acknowledged).max(self.confirmed)
    }

    /// From the bytes of their file.
    pub fn parse(bytes: &[u8], ledger: &str) -> Result<Cursors, String> {
        let checked: Checked = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if checked.ledger != ledger {
            return Err(format!("of ledger {}; expected {ledger}", checked.ledger));
        }
        if checked.check != check(ledger, &checked.cursors) {
            return Err("damaged, the check does not match".into());
        }
        Ok(checked.cursors)
    }

    /// The ledger that they are of, when they prove themselves.
    pub fn ledger(disk: &dyn Disk, dir: &Path) -> Option<String> {
        let checked: Checked = serde_json::from_slice(&disk.read(&dir.join(CURSORS)).ok()?).ok()?;
        (checked.check == check(&checked.ledger, &checked.cursors)).then_some(checked.ledger)
    }

    /// The bytes of their file.
    pub fn to_bytes(&self, ledger: &str) -> Vec<u8> {
        let checked = Checked { ledger: ledger.to_owned(), cursors: *self, check: check(ledger, self) };
        serde_json::to_vec_pretty(&checked).unwrap_or_default()
    }

    /// Writes them durably.
    pub fn store(&self, disk: &dyn Disk, dir: &Path, ledger: &str) -> Result<(), LedgerError> {
        replace(disk, dir, CURSORS, &self.to_bytes(ledger))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ledger::disk::RealDisk;

    #[test]
    fn a_flipped_digit_in_the_cursors_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let cursors = Cursors { acknowledged: 12, confirmed: 3, session: 4, stored: 15 };
        cursors.store(&RealDisk, dir.path(), "abc").unwrap();
        assert_eq!(Cursors::load(&RealDisk, dir.path(), "abc"), Ok(cursors));
        assert!(Cursors::load(&RealDisk, dir.path(), "abd").is_err());
        let path = dir.path().join(CURSORS);
        let text = fs::read_to_string(&path).unwrap().replace("12", "92");
        fs::write(&path, text).unwrap();
        assert!(Cursors::load(&RealDisk, dir.path(), "abc").unwrap_err().contains("damaged"));
    }

    /// Its next neighbour could not be counted: this was an overflow.
    #[test]
    fn a_range_that_no_ledger_can_have_is_refused() {
        let meta = |first: Seq, last: Seq| {
            let range = Pruned { first, last, prev_hash: String::new(), last_hash: String::new() };
            let meta = Meta { id: "a".into(), created: Utc::default(), pruned: vec![range] };
            let checked = CheckedMeta { check: meta.check(), meta };
            Meta::parse(&serde_json::to_vec_pretty(&checked).unwrap())
        };
        assert!(meta(1, 9).is_ok());
        for (first, last) in [(0, 1), (9, 8), (1, Seq::MAX)] {
            assert!(meta(first, last).unwrap_err().contains("no range of records"));
        }
    }

    #[test]
    fn pruned_neighbours_are_merged() {
        let mut meta = Meta::create(Utc::default()).unwrap();
        assert_eq!(meta.id.len(), 32);
        let range = |first: Seq, last: Seq| Pruned {
            first,
            last,
            prev_hash: format!("h{}", first - 1),
            last_hash: format!("h{last}"),
        };
        assert_eq!(
            Pruned::runs(&[range(1, 5), range(6, 10), range(12, 13)]),
            [(2, range(1, 10)), (1, range(12, 13))]
        );
        for part in [range(1, 5), range(11, 20), range(6, 10)] {
            meta.note(part);
        }
        assert_eq!(meta.pruned, [range(1, 20)]);
        assert!(meta.pruned_at(20).is_some() && meta.pruned_at(21).is_none());
    }
}
