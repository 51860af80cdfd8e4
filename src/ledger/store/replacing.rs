//! A ledger that cannot go on: it is set aside whole, and a new one with a new id begins in its place.
//!
//! Every file stays, as `replaced-N.NAME` in the same directory: segments are JSON lines, each with its own proof. The
//! first record of the new ledger says which one it follows and what of that can still be read. What is done is noted
//! first, so that a power cut in the middle is gone on from.

use std::{collections::BTreeSet, io, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::{
    LedgerError, chain,
    disk::Disk,
    files::{io_error, replace as replace_file, sync_dir},
    meta::{CURSORS, Cursors, META, Meta},
    segments::{self, segment_path},
};
use crate::model::{ClockState, Draft, GENESIS, Utc, change};

/// What is to be done; there only while it is being done.
const NOTE: &str = "replacing.json";
/// Says that others have seen more of the ledger than it has: at the next start another one begins.
const ENDED: &str = "ended.json";

#[derive(Serialize, Deserialize)]
struct Ended {
    ledger: String,
    reason: String,
}

/// Notes durably why the ledger `id` must not go on.
pub fn note_end(disk: &dyn Disk, dir: &Path, id: &str, reason: &str) -> Result<(), LedgerError> {
    let note = Ended { ledger: id.to_owned(), reason: reason.to_owned() };
    replace_file(disk, dir, ENDED, &serde_json::to_vec_pretty(&note).unwrap_or_default())
}

/// Why the ledger `id` must not go on, if that was noted.
pub fn noted_end(disk: &dyn Disk, dir: &Path, id: &str) -> Result<Option<String>, LedgerError> {
    let path = dir.join(ENDED);
    let text = match disk.read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path)(error)),
    };
    Ok(match serde_json::from_slice::<Ended>(&text) {
        Ok(note) => (note.ledger == id).then_some(note.reason),
        Err(error) => Some(format!("{ENDED} says that others have seen more of it, and is damaged: {error}")),
    })
}

#[derive(Serialize, Deserialize)]
struct Note {
    prefix: String,
    /// Names of the files that go aside.
    files: Vec<String>,
    meta: Meta,
    draft: Fields,
    clock: ClockState,
}

/// The fields of the record that begins the new ledger.
type Fields = Map<String, Value>;

/// Sets the ledger in `dir` aside and begins a new one. Returns its identity. `when` is missing where that is not to be
/// done: then the reason is the error.
pub fn replace(
    disk: &dyn Disk,
    dir: &Path,
    why: &str,
    when: Option<(Utc, ClockState)>,
    reports: &mut Vec<String>,
) -> Result<Meta, LedgerError> {
    let Some((now, clock)) = when else {
        let detail =
            format!("{why}\n  hint: the daemon sets it aside, whole, and begins a new ledger when it starts");
        return Err(io_error(dir)(io::Error::other(detail)));
    };
    let entries = disk.list(dir).map_err(io_error(dir))?;
    let number = (1..u64::MAX)
        .find(|n| !entries.iter().any(|entry| entry.name.starts_with(&format!("replaced-{n}."))))
        .unwrap_or(u64::MAX);
    let files = entries
        .into_iter()
        .map(|entry| entry.name)
        .filter(|name| !name.starts_with("replaced-") && name != NOTE)
        .collect();
    let note = Note {
        prefix: format!("replaced-{number}."),
        files,
        meta: Meta::create(now)?,
        draft: account(disk, dir, why, number)?,
        clock,
    };
    let text = serde_json::to_vec_pretty(&note).unwrap_or_default();
    replace_file(disk, dir, NOTE, &text)?;
    carry_out(disk, dir, &note, reports)?;
    Ok(note.meta)
}

/// Ids of the ledgers that were set aside in `dir`, as far as what is left of them tells.
pub fn replaced_ids(disk: &dyn Disk, dir: &Path) -> Result<BTreeSet<String>, LedgerError> {
    let mut ids = BTreeSet::new();
    for entry in disk.list(dir).map_err(io_error(dir))? {
        let Some((_, name)) = entry.name.strip_prefix("replaced-").and_then(|rest| rest.split_once('.'))
        else {
            continue;
        };
        let key = match name {
            META => "id",
            CURSORS => "ledger",
            _ => continue,
        };
        let path = dir.join(&entry.name);
        let text = disk.read(&path).map_err(io_error(&path))?;
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        ids.extend(value.get(key).and_then(Value::as_str).map(str::to_owned));
    }
    Ok(ids)
}

/// Goes on with what a power cut interrupted, if it did.
pub fn resume(disk: &dyn Disk, dir: &Path, reports: &mut Vec<String>) -> Result<(), LedgerError> {
    let path = dir.join(NOTE);
    let text = match disk.read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(&path)(error)),
    };
    let note: Note =
        serde_json::from_slice(&text).map_err(|error| io_error(&path)(io::Error::other(error)))?;
    carry_out(disk, dir, &note, reports)
}

fn carry_out(disk: &dyn Disk, dir: &Path, note: &Note, reports: &mut Vec<String>) -> Result<(), LedgerError> {
    let there: Vec<String> =
        disk.list(dir).map_err(io_error(dir))?.into_iter().map(|entry| entry.name).collect();
    for name in note.files.iter().filter(|name| there.contains(name)) {
        let aside = format!("{}{name}", note.prefix);
        if there.contains(&aside) {
            continue; // it is aside already: this is the new ledger's file of that name
        }
        disk.rename(&dir.join(name), &dir.join(aside)).map_err(io_error(&dir.join(name)))?;
    }
    sync_dir(disk, dir)?;
    let draft = Draft::change(change::LEDGER_REPLACED, note.draft.clone(), note.meta.created, note.clock);
    let line = chain::seal(&draft, 1, GENESIS)?;
    let path = segment_path(dir, 1);
    let begin = || -> io::Result<()> {
        let file = disk.create(&path)?;
        file.append(&[&line.bytes[..], b"\n"].concat())?;
        file.sync()
    };
    begin().map_err(io_error(&path))?;
    sync_dir(disk, dir)?;
    Cursors::default().store(disk, dir, &note.meta.id)?;
    note.meta.store(disk, dir)?;
    disk.remove(&dir.join(NOTE)).map_err(io_error(&dir.join(NOTE)))?;
    sync_dir(disk, dir)?;
    let text = |name: &str| note.draft.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    reports.push(format!(
        "ledger {}: could not go on ({}): set aside as {}*, and ledger {} has begun in its place",
        text("old_ledger"),
        text("reason"),
        dir.join(&note.prefix).display(),
        note.meta.id
    ));
    Ok(())
}

/// What of the old ledger can still be read, by its ends: a full proof of years must not keep meters waiting.
fn account(disk: &dyn Disk, dir: &Path, why: &str, number: u64) -> Result<Fields, LedgerError> {
    let files = segments::list(disk, dir)?;
    let mut last = None;
    for (first, bytes) in files.iter().rev() {
        last = segments::last_readable(disk, &segment_path(dir, *first), *bytes).ok().flatten();
        if last.is_some() {
            break;
        }
    }
    let id = Cursors::ledger(disk, dir).or_else(|| {
        let text: Value = serde_json::from_slice(&disk.read(&dir.join(META)).ok()?).ok()?;
        Some(text.get("id")?.as_str()?.to_owned())
    });
    let mut fields = Fields::new();
    fields.insert("old_ledger".into(), id.unwrap_or_else(|| "unknown".into()).into());
    fields.insert("reason".into(), why.into());
    fields.insert("kept_as".into(), format!("replaced-{number}").into());
    fields.insert("segments".into(), files.len().into());
    fields.insert("bytes".into(), files.iter().map(|(_, bytes)| bytes).sum::<u64>().into());
    if let (Some((first, _)), Some(end)) = (files.first(), last) {
        fields.insert("first_seq".into(), (*first).into());
        fields.insert("last_seq".into(), end.seq.into());
        fields.insert("last_hash".into(), end.hash.into());
    }
    Ok(fields)
}
