//! Whether the files of an open ledger are still where they were: somebody may move or remove them while it runs.
//!
//! What is written to a file without a name is gone with the process. Looks at names, lengths and identities, never at
//! contents; who refuses because of it is the writer.

use std::{io, path::Path, sync::atomic::Ordering, thread, time::Duration};

use super::{
    super::{
        LedgerError,
        disk::{Disk, Identity},
        files::io_error,
        meta::{CURSORS, META},
        segments::segment_path,
    },
    shared::{Shared, lock},
};

/// How often the files are looked for: whoever removed them by mistake is to learn it while the hand is still there.
const LOOK: Duration = Duration::from_secs(1);

/// The directories and the lock as they were when the ledger was opened.
pub struct Places {
    data_dir: Option<Identity>,
    dir: Option<Identity>,
    lock: Option<Identity>,
}

impl Places {
    pub fn new(disk: &dyn Disk, data_dir: &Path, dir: &Path, lock: Option<Identity>) -> Places {
        Places { data_dir: disk.identity(data_dir).ok(), dir: disk.identity(dir).ok(), lock }
    }
}

impl Shared {
    /// Refuses while files are missing.
    pub fn present(&self) -> Result<(), LedgerError> {
        match &*lock(&self.missing) {
            None => Ok(()),
            Some(what) => Err(gone(&self.dir, what)),
        }
    }

    /// Looks for all of them, again and again, until the ledger is closed. Runs on its own thread.
    pub fn watch(&self, places: &Places) {
        while !self.stopping.load(Ordering::SeqCst) {
            self.look(places);
            thread::park_timeout(LOOK);
        }
    }

    fn look(&self, places: &Places) {
        let found = self.find_missing(places);
        let before = std::mem::replace(&mut *lock(&self.missing), found.clone());
        match (before, found) {
            (before, Some(what)) if before.as_ref() != Some(&what) => self.refused(&gone(&self.dir, &what)),
            (Some(_), None) => {
                tracing::info!(dir = %self.dir.display(), "the files of the ledger are in their places again");
            }
            _ => {}
        }
    }

    /// What is not where it was, for the operator. A disk that gives no answer is another fault, and shows elsewhere.
    fn find_missing(&self, places: &Places) -> Option<String> {
        let disk = &*self.disk;
        let lock_file = self.data_dir.join("lock");
        for (path, known) in
            [(&self.data_dir, places.data_dir), (&self.dir, places.dir), (&lock_file, places.lock)]
        {
            if known.is_some() && !is_at(disk, path, known) {
                return Some(path.display().to_string());
            }
        }
        // In this order: what is sealed or removed meanwhile is known by its name, or not missed.
        let sealed: Vec<_> = self.state().sealed.values().cloned().collect();
        let (open_path, open) = {
            let open = lock(&self.open_file);
            (open.0.clone(), open.1)
        };
        let entries = disk.list(&self.dir).ok()?;
        let has = |path: &Path, bytes: Option<u64>| {
            let name = path.file_name().and_then(|name| name.to_str());
            entries.iter().any(|entry| {
                Some(entry.name.as_str()) == name && bytes.is_none_or(|bytes| bytes == entry.bytes)
            })
        };
        let small = [META, CURSORS].map(|name| self.dir.join(name));
        let small = small.into_iter().find(|path| !has(path, None));
        let segment = || {
            let gone = sealed.iter().find(|sealed| !has(&sealed.path, Some(sealed.bytes)))?;
            self.state().sealed.contains_key(&gone.first).then(|| gone.path.clone())
        };
        let end = || {
            (!is_at(disk, &open_path, Some(open)) && lock(&self.open_file).0 == open_path)
                .then_some(open_path)
        };
        small.or_else(segment).or_else(end).map(|path| path.display().to_string())
    }

    /// Which file is appended to from now on.
    pub fn note_open_file(&self, first: crate::model::Seq, identity: Identity) {
        *lock(&self.open_file) = (segment_path(&self.dir, first), identity);
    }
}

/// Whether the name still means what it meant; true when the disk does not say.
pub fn is_at(disk: &dyn Disk, path: &Path, known: Option<Identity>) -> bool {
    match disk.identity(path) {
        Ok(now) => Some(now) == known,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

fn gone(dir: &Path, what: &str) -> LedgerError {
    let detail = format!(
        "{what} was removed, moved or replaced while the gateway runs; nothing is stored until it is back\n  hint: move back what was there (a copy is not enough), or restart the gateway"
    );
    io_error(dir)(io::Error::other(detail))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf, time::Instant};

    use serde_json::Map;

    use super::super::{super::Ledger, FileLedger, Options};
    use super::*;
    use crate::model::{ClockState, Draft, Seq, Utc};

    fn open(dir: &Path) -> (std::sync::Arc<FileLedger>, Vec<String>) {
        let options = Options { segment_bytes: 2500, ..Options::default() };
        FileLedger::open(dir, options).unwrap()
    }

    fn append(ledger: &FileLedger) -> Result<std::ops::Range<Seq>, LedgerError> {
        let draft = Draft::change("test", Map::new(), Utc::UNIX_EPOCH, ClockState::Synced);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(ledger.append(vec![draft]))
    }

    fn wait_for(what: &str, done: impl Fn() -> bool) {
        let since = Instant::now();
        while !done() {
            assert!(since.elapsed() < Duration::from_secs(20), "{what}");
            thread::sleep(Duration::from_millis(20)); // another thread's clock decides
        }
    }

    /// Below the directory of the site; the data directory is `data` in it.
    const TAKEN: [&str; 7] = [
        "data",
        "data/lock",
        "data/ledger",
        "data/ledger/ledger.json",
        "data/ledger/cursors.json",
        "data/ledger/00000000000000000001.seg",
        "open", // the segment that is appended to
    ];

    fn filled(data: &Path) -> (std::sync::Arc<FileLedger>, PathBuf) {
        let (ledger, _) = open(data);
        for _ in 0..30 {
            append(&ledger).unwrap();
        }
        let path = lock(&ledger.shared.open_file).0.clone();
        (ledger, path)
    }

    #[test]
    fn what_is_taken_away_stops_the_ledger_until_it_is_back() {
        let one = |taken: &'static str| {
            let temp = tempfile::tempdir().unwrap();
            let data = temp.path().join("data");
            let (ledger, open_path) = filled(&data);
            let path = if taken == "open" { open_path } else { temp.path().join(taken) };
            let aside = temp.path().join("aside");
            fs::rename(&path, &aside).unwrap();
            wait_for(taken, || ledger.condition().missing.is_some());
            let condition = ledger.condition();
            assert!(condition.missing.unwrap().contains(&*path.display().to_string()), "{taken}");
            assert!(condition.refusing.is_some() && !condition.incidents.is_empty(), "{taken}");
            let error = append(&ledger).unwrap_err().to_string();
            assert!(error.contains("while the gateway runs"), "{taken}: {error}");
            assert_eq!(ledger.head().borrow().seq, 30, "{taken}");
            fs::rename(&aside, &path).unwrap();
            wait_for(taken, || ledger.condition().missing.is_none());
            assert_eq!(append(&ledger).unwrap(), 31..32, "{taken}");
            assert!(ledger.condition().refusing.is_none(), "{taken}");
            ledger.close();
            drop(ledger);
            let (ledger, mut reports) = open(&data);
            reports.retain(|report| !report.starts_with("index"));
            assert!(reports.is_empty() && ledger.head().borrow().seq == 31, "{taken}: {reports:?}");
        };
        thread::scope(|scope| {
            TAKEN.map(|taken| scope.spawn(move || one(taken))).map(|one| one.join().unwrap())
        });
    }

    /// The name is there, with the same bytes: what is appended would go to a file without one.
    #[test]
    fn a_copy_in_its_place_is_not_taken_for_it_until_the_next_start() {
        let temp = tempfile::tempdir().unwrap();
        let (ledger, path) = filled(temp.path());
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        assert!(append(&ledger).is_err(), "before anybody has looked");
        wait_for("seen", || ledger.condition().missing.is_some());
        assert_eq!(ledger.head().borrow().seq, 30);
        ledger.close();
        let (ledger, _) = open(temp.path());
        assert_eq!(append(&ledger).unwrap(), 31..32);
    }
}
