//! A small billing consumer, as a real one would begin: it takes each record once, proves it before it believes it,
//! writes it down, and only then says so with a receipt.
//!
//! Knows payloads and a file; no broker, no time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use crate::{
    ledger::chain::verify_line,
    model::{GENESIS, MeterId, Reading, Seq, Utc},
};

/// What has been taken so far.
pub struct Book {
    file: File,
    ledger: Option<String>,
    last: Seq,
    head: String,
    /// Something came before what it follows.
    gap: bool,
    /// Records that came again: normal after a broken connection, taken once.
    pub duplicates: u64,
    pub tally: Tally,
}

/// What the summary tells.
#[derive(Default)]
pub struct Tally {
    pub readings: u64,
    pub good: u64,
    pub suspect: u64,
    pub bad: u64,
    pub missing: u64,
    pub flags: BTreeMap<String, u64>,
    /// Readings that are not, by meter.
    pub not_good: BTreeMap<MeterId, u64>,
    /// Meters heard of at each scheduled moment.
    pub slots: BTreeMap<Utc, BTreeSet<MeterId>>,
    /// Two records for one meter and moment: never.
    pub twice: u64,
}

#[derive(Deserialize)]
struct Message<'a> {
    ledger: String,
    #[serde(borrow)]
    records: Vec<&'a RawValue>,
}

impl Book {
    /// Opens the book, and goes on where it ended.
    pub fn open(path: &Path) -> anyhow::Result<Book> {
        let (mut last, mut head) = (0, GENESIS.to_owned());
        if let Ok(old) = File::open(path) {
            for line in BufReader::new(old).lines() {
                // A line torn by a power cut is not ours yet: the gateway has no receipt for it.
                let Ok(record) = verify_line(line?.as_bytes()) else { break };
                (last, head) = (record.seq, record.hash);
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("{}: the consumer's book cannot be opened", path.display()))?;
        Ok(Book { file, ledger: None, last, head, gap: false, duplicates: 0, tally: Tally::default() })
    }

    /// The last record that was taken.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Takes a `records` message: returns what was new, durably written. What comes early is left, and the receipt asks for what
    /// is missing. An error is a broken proof.
    pub fn ingest(&mut self, payload: &[u8]) -> anyhow::Result<Vec<Value>> {
        let message: Message = serde_json::from_slice(payload).context("a records message is not JSON")?;
        let mut new = Vec::new();
        for raw in message.records {
            let line = raw.get().as_bytes();
            let record = verify_line(line).map_err(|fault| anyhow::anyhow!("a record: {fault}"))?;
            if record.seq <= self.last {
                self.duplicates += 1;
                continue;
            }
            if record.seq != self.last + 1 {
                self.gap = true;
                break;
            }
            if record.prev != self.head {
                bail!("record {} does not follow the hash of {}", record.seq, self.last);
            }
            self.file.write_all(line)?;
            self.file.write_all(b"\n")?;
            (self.last, self.head) = (record.seq, record.hash);
            self.gap = false;
            let record: Value = serde_json::from_slice(line)?;
            self.count(&record);
            new.push(record);
        }
        self.ledger = Some(message.ledger);
        if !new.is_empty() {
            self.file.sync_data()?;
        }
        Ok(new)
    }

    /// The receipt for everything taken so far. Across a gap it asks for everything from there on: the broker may have
    /// acknowledged what it never passed on.
    pub fn receipt(&self) -> Option<Vec<u8>> {
        let ledger = self.ledger.as_ref()?;
        let mut receipt = json!({"ledger": ledger, "confirmed_seq": self.last, "rejected": []});
        if self.gap
            && let Some(fields) = receipt.as_object_mut()
        {
            fields.insert("resend_from".into(), (self.last + 1).into());
        }
        Some(receipt.to_string().into_bytes())
    }

    fn count(&mut self, record: &Value) {
        let Some(reading) = reading_of(record) else { return };
        let tally = &mut self.tally;
        tally.readings += 1;
        match reading {
            Reading { origin: crate::model::Origin::Missing, .. } => tally.missing += 1,
            Reading { verdict: crate::model::Verdict::Good, .. } => tally.good += 1,
            Reading { verdict: crate::model::Verdict::Suspect, .. } => tally.suspect += 1,
            Reading { verdict: crate::model::Verdict::Bad, .. } => tally.bad += 1,
        }
        if reading.verdict != crate::model::Verdict::Good {
            *tally.not_good.entry(reading.meter.clone()).or_default() += 1;
        }
        for flag in reading.flags {
            *tally.flags.entry(flag).or_default() += 1;
        }
        if !tally.slots.entry(reading.scheduled_at).or_default().insert(reading.meter) {
            tally.twice += 1;
        }
    }
}

/// A record that is a reading.
pub fn reading_of(record: &Value) -> Option<Reading> {
    if record.get("type")?.as_str()? != "reading" {
        return None;
    }
    serde_json::from_value(record.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::chain::seal;
    use crate::model::{ClockState, Draft};
    use serde_json::Map;

    fn records(lines: &[&[u8]]) -> Vec<u8> {
        let lines: Vec<_> = lines.iter().map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!(r#"{{"v":1,"ledger":"l","records":[{}]}}"#, lines.join(",")).into_bytes()
    }

    fn chain(count: u64) -> Vec<Vec<u8>> {
        let now = "2026-11-23T00:00:00Z".parse().unwrap();
        let mut prev = GENESIS.to_owned();
        let mut lines = Vec::new();
        for seq in 1..=count {
            let fields = Map::from_iter([("n".to_owned(), Value::from(seq))]);
            let sealed = seal(&Draft::change("test", fields, now, ClockState::Synced), seq, &prev).unwrap();
            prev = sealed.hash;
            lines.push(sealed.bytes.to_vec());
        }
        lines
    }

    #[test]
    fn each_record_is_taken_once_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("book.jsonl");
        let lines = chain(4);
        let mut book = Book::open(&path).unwrap();
        assert_eq!(book.ingest(&records(&[&lines[0], &lines[1]])).unwrap().len(), 2);
        assert_eq!(book.ingest(&records(&[&lines[1], &lines[2]])).unwrap().len(), 1);
        assert_eq!((book.duplicates, book.last()), (1, 3));
        let mut again = Book::open(&path).unwrap();
        assert!(again.receipt().is_none(), "the ledger's id is not known yet");
        assert_eq!(again.ingest(&records(&[&lines[3]])).unwrap().len(), 1);
        let receipt: Value = serde_json::from_slice(&again.receipt().unwrap()).unwrap();
        assert_eq!((receipt["ledger"].as_str(), receipt["confirmed_seq"].as_u64()), (Some("l"), Some(4)));
    }

    #[test]
    fn what_does_not_prove_itself_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let lines = chain(3);
        let mut book = Book::open(&dir.path().join("book.jsonl")).unwrap();
        assert!(book.ingest(&records(&[&lines[1]])).unwrap().is_empty(), "not the next one");
        let asked = |book: &Book| {
            serde_json::from_slice::<Value>(&book.receipt().unwrap()).unwrap()["resend_from"].as_u64()
        };
        assert_eq!(asked(&book), Some(1));
        let altered = String::from_utf8(lines[0].clone()).unwrap().replace("\"n\":1", "\"n\":7");
        assert!(book.ingest(&records(&[altered.as_bytes()])).unwrap_err().to_string().contains("hash"));
        assert_eq!(book.last(), 0);
        assert_eq!(book.ingest(&records(&[&lines[0]])).unwrap().len(), 1);
        assert_eq!(asked(&book), None, "the gap is closed");
    }
}
