//! What is on the simulated medium for certain, and what is only on its way there.
//!
//! Files are numbered; a directory maps names to numbers. Each of both keeps its durable state and the changes since, so
//! that a power cut can choose among them. Knows no faults and no processes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use fastrand::Rng;

/// A change of a file that no sync has made durable.
#[derive(Debug, Clone)]
enum Write {
    /// `lost`: a sync of it failed, so no later one brings these bytes to the medium.
    Append {
        bytes: Vec<u8>,
        lost: bool,
    },
    Truncate(usize),
}

#[derive(Debug, Default)]
pub struct File {
    /// What a reader sees.
    pub live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Write>,
}

impl File {
    pub fn append(&mut self, bytes: &[u8]) {
        self.live.extend_from_slice(bytes);
        self.pending.push(Write::Append { bytes: bytes.to_vec(), lost: false });
    }

    pub fn truncate(&mut self, length: usize) {
        self.live.resize(length, 0);
        self.pending.push(Write::Truncate(length));
    }

    pub fn sync(&mut self) {
        for write in self.pending.drain(..) {
            apply(&mut self.durable, &write);
        }
    }

    /// A sync that fails: the kernel forgets that the bytes were to be written, though readers still see them.
    pub fn fail_sync(&mut self) {
        for write in &mut self.pending {
            if let Write::Append { lost, .. } = write {
                *lost = true;
            }
        }
    }

    pub fn flip(&mut self, bit: u64) -> bool {
        let (Ok(byte), mask) = (usize::try_from(bit / 8), 1_u8 << (bit % 8)) else { return false };
        for content in [&mut self.live, &mut self.durable] {
            let Some(byte) = content.get_mut(byte) else { return false };
            *byte ^= mask;
        }
        true
    }

    /// Of what is pending a beginning survives; the write where it ends may be torn.
    fn crash(&mut self, rng: &mut Rng) {
        let keep = rng.usize(..=self.pending.len());
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        for write in pending.by_ref().take(keep) {
            apply(&mut self.durable, &write);
        }
        if let Some(Write::Append { bytes, .. }) = pending.next() {
            let part = rng.usize(..=bytes.len());
            self.durable.extend_from_slice(bytes.get(..part).unwrap_or_default());
            if rng.u8(..4) == 0 {
                // The length got there, the rest of the bytes did not.
                self.durable.resize(self.durable.len() + bytes.len() - part, 0);
            }
        }
        self.live.clone_from(&self.durable);
    }
}

fn apply(content: &mut Vec<u8>, write: &Write) {
    match write {
        Write::Append { bytes, lost: false } => content.extend_from_slice(bytes),
        Write::Append { bytes, lost: true } => content.resize(content.len() + bytes.len(), 0),
        Write::Truncate(length) => content.resize(*length, 0),
    }
}

/// A change of names that no sync has made durable.
#[derive(Debug, Clone)]
enum Naming {
    Link(String, u64),
    Unlink(String),
    Rename(String, String, u64),
}

#[derive(Debug, Default)]
pub struct Dir {
    /// What a reader sees.
    pub live: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
    pending: Vec<Naming>,
}

impl Dir {
    fn change(&mut self, naming: Naming) {
        name(&mut self.live, &naming);
        self.pending.push(naming);
    }

    pub fn link(&mut self, name: &str, file: u64) {
        self.change(Naming::Link(name.to_owned(), file));
    }

    pub fn unlink(&mut self, name: &str) {
        self.change(Naming::Unlink(name.to_owned()));
    }

    pub fn rename(&mut self, from: &str, to: &str, file: u64) {
        self.change(Naming::Rename(from.to_owned(), to.to_owned(), file));
    }

    pub fn sync(&mut self) {
        for naming in self.pending.drain(..) {
            name(&mut self.durable, &naming);
        }
    }

    /// A beginning of the changes survives, as a journal would have it, or any of them, as nobody forbids.
    fn crash(&mut self, rng: &mut Rng) {
        let journal = rng.bool();
        let keep = rng.usize(..=self.pending.len());
        for (i, naming) in std::mem::take(&mut self.pending).iter().enumerate() {
            if if journal { i < keep } else { rng.bool() } {
                name(&mut self.durable, naming);
            }
        }
        self.live.clone_from(&self.durable);
    }
}

fn name(names: &mut BTreeMap<String, u64>, naming: &Naming) {
    match naming {
        Naming::Link(name, file) => drop(names.insert(name.clone(), *file)),
        Naming::Unlink(name) => drop(names.remove(name)),
        Naming::Rename(from, to, file) => {
            names.remove(from);
            names.insert(to.clone(), *file);
        }
    }
}

/// All files and directories. Directories are durable at once: [`super::super::Disk::create_dirs`] promises it.
#[derive(Debug, Default)]
pub struct Medium {
    pub dirs: BTreeMap<PathBuf, Dir>,
    pub files: BTreeMap<u64, File>,
    next: u64,
}

impl Medium {
    /// The number of an existing file.
    pub fn find(&self, path: &Path) -> Option<u64> {
        let (dir, name) = split(path)?;
        self.dirs.get(dir)?.live.get(name).copied()
    }

    /// Makes a file; `None` without its directory.
    pub fn make(&mut self, path: &Path) -> Option<u64> {
        let (dir, name) = split(path)?;
        let dir = self.dirs.get_mut(dir)?;
        self.next += 1;
        dir.link(name, self.next);
        self.files.insert(self.next, File::default());
        Some(self.next)
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.files.values().map(|file| file.live.len() as u64).sum()
    }

    /// The power goes, and comes back.
    pub fn crash(&mut self, rng: &mut Rng) {
        self.files.values_mut().for_each(|file| file.crash(rng));
        self.dirs.values_mut().for_each(|dir| dir.crash(rng));
        self.forget_nameless();
    }

    /// The file system takes back what has no name, and no process any more that has it open.
    pub fn forget_nameless(&mut self) {
        let dirs = &self.dirs;
        let named = |file: &u64| {
            dirs.values().any(|dir| dir.live.values().chain(dir.durable.values()).any(|named| named == file))
                || dirs
                    .values()
                    .flat_map(|dir| &dir.pending)
                    .any(|naming| matches!(naming, Naming::Link(_, f) | Naming::Rename(_, _, f) if f == file))
        };
        self.files.retain(|file, _| named(file));
    }
}

/// Directory and name.
pub fn split(path: &Path) -> Option<(&Path, &str)> {
    Some((path.parent()?, path.file_name()?.to_str()?))
}
