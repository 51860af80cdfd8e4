//! The files of the second copy: whose they are, how far they go, and how they get what they lack.
//!
//! Believes nothing that is found there but the hash chain. Appends to what is a sound beginning of the ledger, copies
//! again what is damaged, and touches nothing that the ledger itself does not have.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    super::{
        Head, LedgerError,
        backup::{copy_file, pour},
        disk::Disk,
        files::{io_error, replace, sync_dir},
        meta::{Cursors, Meta},
        placing::placed,
        segments::{self, segment_path},
        store::{Shared, lock, replaced_ids},
    },
    Options, Progress,
};
use crate::model::Seq;

/// How often the cursors are copied when no session began: after a restore they only decide what is sent twice.
const CURSORS_EVERY: Duration = Duration::from_secs(60);

/// The key in force, as the data directory has it; the earlier ones lie beside it as `public-key.` and an id.
const PUBLIC_KEY: &str = "public-key.pem";

/// A segment of the ledger, as it was when the round began.
struct Segment {
    first: Seq,
    /// The last durable record in it, and where that ends.
    last: Seq,
    bytes: u64,
    path: PathBuf,
    /// The end of the open one: it is known without asking a disk.
    open: Option<Head>,
}

/// What a file of the copy turned out to be.
enum Found {
    /// The first so many bytes of the segment.
    Beginning(u64),
    /// Damaged: the ledger has more of it.
    Damaged,
    /// Damaged as the ledger is, or better: nothing to gain.
    Enough,
}

pub(super) struct Copier<'a> {
    shared: &'a Shared,
    disk: &'a dyn Disk,
    options: &'a Options,
    progress: &'a Progress,
    /// Files of the copy that were proved since the start, with their length.
    proved: BTreeMap<Seq, u64>,
    /// Files whose last sync did not succeed, and how far they were good before: what lies behind may read well and still
    /// not be there.
    doubtful: BTreeMap<Seq, u64>,
    /// The file that is appended to; `None`: all have to be looked at.
    at: Option<Seq>,
    meta: Option<Meta>,
    cursors: Option<(Cursors, Instant)>,
    /// The public key that is in the copy.
    public_key: Option<Vec<u8>>,
    /// The copy was there once: a directory that is empty now is what lies under it.
    seen: bool,
    /// As the daemon ends: until when a round is carried on.
    last: Option<Instant>,
}

fn refused(path: &Path, detail: &str) -> LedgerError {
    io_error(path)(io::Error::other(detail.to_owned()))
}

impl<'a> Copier<'a> {
    pub fn new(shared: &'a Shared, options: &'a Options, progress: &'a Progress) -> Copier<'a> {
        let (disk, proved) = (&*options.disk, BTreeMap::new());
        Copier {
            shared,
            disk,
            options,
            progress,
            proved,
            doubtful: BTreeMap::new(),
            at: None,
            meta: None,
            cursors: None,
            public_key: None,
            seen: false,
            last: None,
        }
    }

    /// Brings the copy up to what the ledger had when the round began.
    pub fn round(&mut self) -> Result<(), LedgerError> {
        let outcome = self.try_round();
        if outcome.is_err() {
            (self.at, self.meta, self.cursors, self.public_key) = (None, None, None, None);
        }
        outcome
    }

    /// As the daemon ends: one more round, for a moment, and the cursors.
    pub fn last_round(&mut self) {
        self.last = Some(Instant::now() + super::LAST_ROUND);
        self.cursors = None;
        let _ = self.round(); // what is missing is copied after the next start
    }

    fn try_round(&mut self) -> Result<(), LedgerError> {
        self.step()?;
        let root = &self.options.dir;
        // Looked at before the lock, whose name would be made in whatever is there.
        self.there(root)?;
        let base = self.base(root)?;
        let into = base.join("ledger");
        if self.seen && self.owner(&into)?.is_none() {
            let detail = "it held the copy, and does not now: is it the directory below a device that is away?\n  hint: for a new device, restart the daemon";
            return Err(refused(&base, detail));
        }
        let lock_path = root.join("lock");
        let Some(_held) = self.disk.lock(&lock_path).map_err(io_error(&lock_path))? else {
            return Err(refused(root, "in use by another gateway, or the data directory itself"));
        };
        let (meta, cursors) = (lock(&self.shared.meta).clone(), lock(&self.shared.marks).cursors);
        if self.meta.is_none() {
            self.begin(&base, &into, &meta)?;
        }
        self.prune(&into, &meta)?; // first: it makes room
        self.copy_public_keys(&base)?;
        let segments = self.segments();
        let have = if self.at.is_none() { self.look(&into, &meta, &segments)? } else { BTreeMap::new() };
        let mut stored = None;
        let from = self.at.unwrap_or_default();
        for segment in segments.iter().filter(|segment| segment.first >= from) {
            self.step()?;
            let began = Instant::now();
            let length = have.get(&segment.first).copied();
            let length = length.or_else(|| self.at.and_then(|_| self.proved.get(&segment.first).copied()));
            match self.bring_up(&into, segment, length) {
                // Retention took it meanwhile; then the next round knows.
                Err(LedgerError::Io { error, .. })
                    if error.kind() == io::ErrorKind::NotFound && !self.is_kept(segment) =>
                {
                    continue;
                }
                outcome => outcome?,
            }
            stored = Some(segment.last);
            self.progress.stored(&base, stored);
            // Years of segments are proved at a start: half of one core at most.
            let proving = length.is_some() && self.at.is_none() && segment.open.is_none();
            if proving && self.last.is_none() && !self.progress.rest(began.elapsed().min(super::ROUND)) {
                return Err(LedgerError::Closed);
            }
        }
        self.at = segments.last().map(|segment| segment.first);
        self.note_cursors(&into, cursors, stored.unwrap_or_default())
    }

    fn step(&self) -> Result<(), LedgerError> {
        let stop = self.progress.step();
        if self.last.is_some_and(|until| Instant::now() < until) { Ok(()) } else { stop }
    }

    fn there(&self, root: &Path) -> Result<(), LedgerError> {
        let listed = self.disk.list(root).map_err(|error| {
            let hint = if error.kind() == io::ErrorKind::NotFound {
                "\n  hint: is it mounted? It is not made here: make it on the device, writable by the daemon's user"
            } else {
                ""
            };
            io_error(root)(io::Error::new(error.kind(), format!("{error}{hint}")))
        });
        listed.map(|_| ())
    }

    /// The directory of this ledger's copy: the configured one, or one below it beside a ledger that it has replaced.
    fn base(&self, root: &Path) -> Result<PathBuf, LedgerError> {
        let ours = &self.shared.id;
        let Some(other) = self.owner(&root.join("ledger"))?.filter(|other| other != ours) else {
            return Ok(root.to_owned());
        };
        if !replaced_ids(&*self.shared.disk, &self.shared.dir)?.contains(&other) {
            let detail = format!(
                "holds a copy of ledger {other}; expected none, or one of {ours}. It is not touched\n  hint: give an empty directory"
            );
            return Err(refused(root, &detail));
        }
        let below = root.join(ours);
        match self.owner(&below.join("ledger"))? {
            Some(other) if other != *ours => {
                Err(refused(&below, &format!("holds a copy of ledger {other}; expected one of {ours}")))
            }
            _ => Ok(below),
        }
    }

    /// Whose copy is there.
    fn owner(&self, dir: &Path) -> Result<Option<String>, LedgerError> {
        let problem = match Meta::load(self.disk, dir) {
            Ok(Some(meta)) => return Ok(Some(meta.id)),
            Ok(None) => match segments::list(self.disk, dir) {
                Err(LedgerError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(None);
                }
                Ok(files) if files.is_empty() => return Ok(None),
                Ok(_) => refused(dir, "holds segments and no ledger.json: whose they are is not known"),
                Err(error) => return Err(error),
            },
            Err(LedgerError::Io { path, error }) if error.kind() == io::ErrorKind::InvalidData => {
                LedgerError::Io { path, error }
            }
            Err(error) => return Err(error),
        };
        Cursors::ledger(self.disk, dir).map(Some).ok_or(problem)
    }

    /// Makes sure that the copy can be restored from, whatever it holds.
    fn begin(&mut self, base: &Path, into: &Path, meta: &Meta) -> Result<(), LedgerError> {
        if self.disk.list(into).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            self.disk.create_dirs(into).map_err(io_error(into))?;
        }
        let theirs = Meta::load(self.disk, into).ok().flatten();
        if theirs.is_none() {
            // What is not pruned yet must not look as if it were: that comes when the files go.
            meta.store(self.disk, into)?;
        }
        if Cursors::load(self.disk, into, &meta.id).is_err() {
            Cursors::default().store(self.disk, into, &meta.id)?;
        }
        self.progress.stored(base, None);
        self.meta = Some(theirs.unwrap_or_else(|| meta.clone()));
        self.seen = true;
        Ok(())
    }

    /// Segments with what is durable of them. The open one's end and head belong together.
    fn segments(&self) -> Vec<Segment> {
        let state = self.shared.state();
        let sealed = state.sealed.values().map(|sealed| Segment {
            first: sealed.first,
            last: sealed.last,
            bytes: sealed.bytes,
            path: sealed.path.clone(),
            open: None,
        });
        let open = Segment {
            first: state.open.header.first,
            last: state.head.seq,
            bytes: state.open.header.bytes,
            path: state.open_path.clone(),
            open: Some(state.head.clone()),
        };
        sealed.chain([open]).collect()
    }

    fn is_kept(&self, segment: &Segment) -> bool {
        segment.open.is_some() || self.shared.state().sealed.contains_key(&segment.first)
    }

    /// What is there, without what an interrupted copy left and what is no segment of this ledger.
    fn look(
        &mut self,
        into: &Path,
        meta: &Meta,
        segments: &[Segment],
    ) -> Result<BTreeMap<Seq, u64>, LedgerError> {
        for entry in self.disk.list(into).map_err(io_error(into))? {
            if entry.name.strip_suffix(".part").is_some_and(|name| name.len() == 20) {
                let part = into.join(entry.name);
                self.disk.remove(&part).map_err(io_error(&part))?;
            }
        }
        let placed = placed(self.disk, into, meta)?;
        for report in placed.set_aside(self.disk, into)? {
            self.shared.report(report);
        }
        let have: BTreeMap<Seq, u64> = placed.files.into_iter().collect();
        // Names whose own sync failed, or whose maker died before it.
        sync_dir(self.disk, into)?;
        let end = segments.last().map(|segment| segment.first).unwrap_or_default();
        if let Some((beyond, _)) = have.range(end + 1..).next() {
            return Err(ahead(&segment_path(into, *beyond), end));
        }
        self.proved.retain(|first, bytes| have.get(first) == Some(bytes));
        Ok(have)
    }

    /// Gives the copy what it lacks of one segment; `length` is what it has.
    fn bring_up(&mut self, into: &Path, segment: &Segment, length: Option<u64>) -> Result<(), LedgerError> {
        let path = segment_path(into, segment.first);
        let known = length.filter(|length| self.proved.get(&segment.first) == Some(length));
        let good = match (length, known) {
            (_, Some(length)) if length == segment.bytes => return Ok(()),
            (_, Some(length)) => length,
            (None, None) if segment.open.is_some() => 0,
            (None, None) => return self.copy_again(into, segment),
            (Some(length), None) => match self.examine(&path, segment, length)? {
                Found::Beginning(good) => good,
                Found::Damaged => return self.copy_again(into, segment),
                Found::Enough => {
                    self.proved.insert(segment.first, length);
                    return Ok(());
                }
            },
        };
        let good = self.doubtful.get(&segment.first).map_or(good, |known| good.min(*known));
        self.proved.remove(&segment.first);
        self.doubtful.insert(segment.first, good);
        let file = self.disk.open_append(&path).map_err(io_error(&path))?;
        if length.is_none() {
            sync_dir(self.disk, into)?;
        } else if known.is_none() {
            file.truncate(good).map_err(io_error(&path))?;
        }
        pour((&*self.shared.disk, &segment.path), (&*file, &path), good..segment.bytes)?;
        // Also when nothing was missing: who wrote it may have died before its sync.
        file.sync().map_err(io_error(&path))?;
        drop(file);
        self.doubtful.remove(&segment.first);
        self.step()?;
        let expected = match &segment.open {
            Some(head) if segment.bytes > 0 => Some((head.seq, head.hash.clone())),
            Some(_) => None,
            None => segments::last_hash(&*self.shared.disk, &segment.path, segment.bytes)?,
        };
        // One more byte than there should be: what does not belong there is seen too.
        if segments::last_hash(self.disk, &path, segment.bytes + 1)? != expected {
            return Err(refused(
                &path,
                "what was copied reads back differently\n  hint: is the disk of the copy sound?",
            ));
        }
        self.proved.insert(segment.first, segment.bytes);
        Ok(())
    }

    fn copy_again(&mut self, into: &Path, segment: &Segment) -> Result<(), LedgerError> {
        self.proved.remove(&segment.first);
        let (disk, bytes) = (&*self.shared.disk, segment.bytes);
        let found = segments::scan(disk, &segment.path, segment.first, segment.last, bytes, None)?;
        self.step()?;
        let range = (segment.first, segment.last);
        copy_file((disk, &segment.path), (self.disk, into), range, bytes, &found)?;
        self.doubtful.remove(&segment.first);
        self.proved.insert(segment.first, bytes);
        Ok(())
    }

    /// Proves a file of the copy from end to end, and where it ends against the ledger. A hash stands for all before it.
    fn examine(&self, path: &Path, segment: &Segment, length: u64) -> Result<Found, LedgerError> {
        let copy = segments::scan(self.disk, path, segment.first, Seq::MAX, length, None)?;
        let (ours, header) = (&*self.shared.disk, &copy.summary.header);
        if !header.damage.is_empty() {
            let bytes = segment.bytes;
            let found = segments::scan(ours, &segment.path, segment.first, segment.last, bytes, None)?;
            let enough = found.summary.header.count <= header.count && length == bytes;
            return Ok(if enough { Found::Enough } else { Found::Damaged });
        }
        if copy.good == 0 {
            return Ok(Found::Beginning(0));
        }
        if copy.good > segment.bytes {
            return Err(ahead(path, segment.last));
        }
        match segments::last_hash(ours, &segment.path, copy.good)? {
            Some((seq, hash)) if (seq, &hash) != (header.last, &header.last_hash) => Err(ahead(path, seq)),
            // The ledger itself is damaged there: the copy is the better one.
            None if copy.good == segment.bytes && copy.tail == 0 => Ok(Found::Enough),
            _ => Ok(Found::Beginning(copy.good)),
        }
    }

    /// What retention has removed from the ledger goes from the copy; first it is noted, as there.
    fn prune(&mut self, into: &Path, meta: &Meta) -> Result<(), LedgerError> {
        if self.meta.as_ref() == Some(meta) {
            return Ok(());
        }
        let noted = meta.store(self.disk, into);
        match &noted {
            // A device that is full to the last byte: then the files first.
            Err(LedgerError::Io { error, .. }) if error.kind() == io::ErrorKind::StorageFull => {}
            Err(_) => return noted,
            Ok(()) => {}
        }
        let mut removed = false;
        for (first, _) in placed(self.disk, into, meta)?.files {
            if meta.pruned_at(first).is_some() {
                self.step()?;
                let path = segment_path(into, first);
                self.disk.remove(&path).map_err(io_error(&path))?;
                self.proved.remove(&first);
                removed = true;
            }
        }
        if removed {
            sync_dir(self.disk, into)?;
        }
        if noted.is_err() {
            meta.store(self.disk, into)?;
        }
        self.meta = Some(meta.clone());
        Ok(())
    }

    /// What the signatures in the copy are checked with, so that it proves itself alone.
    fn copy_public_keys(&mut self, base: &Path) -> Result<(), LedgerError> {
        let (ours, from) = (&*self.shared.disk, &self.shared.data_dir);
        // Not there, or not to be read now: the records are what matters.
        let Ok(current) = ours.read(&from.join(PUBLIC_KEY)) else { return Ok(()) };
        if self.public_key.as_ref() == Some(&current) {
            return Ok(());
        }
        for entry in ours.list(from).unwrap_or_default() {
            if entry.name.strip_suffix(".pem").is_some_and(|name| name.starts_with("public-key"))
                && let Ok(key) = ours.read(&from.join(&entry.name))
                && self.disk.read(&base.join(&entry.name)).ok().as_ref() != Some(&key)
            {
                replace(self.disk, base, &entry.name, &key)?;
            }
        }
        self.public_key = Some(current);
        Ok(())
    }

    /// As a backup has them: never beyond what is in the copy.
    fn note_cursors(&mut self, into: &Path, cursors: Cursors, stored: Seq) -> Result<(), LedgerError> {
        let due = self.cursors.as_ref().is_none_or(|(noted, at)| {
            noted.session != cursors.session || (*noted != cursors && at.elapsed() >= CURSORS_EVERY)
        });
        if !due {
            return Ok(());
        }
        let noted = Cursors {
            acknowledged: cursors.acknowledged.min(stored),
            confirmed: cursors.confirmed.min(stored),
            stored,
            ..cursors
        };
        noted.store(self.disk, into, &self.shared.id)?;
        self.cursors = Some((cursors, Instant::now()));
        Ok(())
    }
}

/// A copy that has what the ledger has not is worth more than any copy of it.
fn ahead(path: &Path, seq: Seq) -> LedgerError {
    let detail = format!(
        "holds other records than the ledger, at or behind seq {seq}. It is not touched\n  hint: move the copy away and keep it: it may be all that is left of those records; then give an empty directory"
    );
    refused(path, &detail)
}
