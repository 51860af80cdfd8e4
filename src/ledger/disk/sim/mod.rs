//! A disk in memory that fails when it is told to: for tests and simulations.
//!
//! What survives a power cut is drawn from a seed, among what the promises of [`Disk`] leave open; nothing else is random.
//! A process has the disk through [`SimDisk::mount`]; when it dies, or the power goes, that mount is dead and all that it
//! still tries fails.

mod medium;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use fastrand::Rng;

use super::{Disk, DiskFile, Entry, Identity, Lock};
use medium::{Medium, split};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Reading a file: EIO.
    Read,
    /// Appending: EIO after a part of the bytes.
    Write,
    /// Making file or directory durable: EIO, and what was written since the last success never gets there.
    Sync,
    /// Appending and making files: ENOSPC after a part of the bytes.
    NoSpace,
    /// Each change: EROFS.
    ReadOnly,
}

impl Fault {
    fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Fault::Read | Fault::Write | Fault::Sync => rustix::io::Errno::IO.raw_os_error(),
            Fault::NoSpace => rustix::io::Errno::NOSPC.raw_os_error(),
            Fault::ReadOnly => rustix::io::Errno::ROFS.raw_os_error(),
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Append,
    Sync,
    Make,
    Change,
}

impl Kind {
    fn suffers(self, fault: Fault) -> bool {
        match fault {
            Fault::Read => self == Kind::Read,
            Fault::Write => self == Kind::Append,
            Fault::Sync => self == Kind::Sync,
            Fault::NoSpace => matches!(self, Kind::Append | Kind::Make),
            Fault::ReadOnly => self != Kind::Read,
        }
    }
}

struct State {
    medium: Medium,
    rng: Rng,
    /// The mount that is alive.
    mount: u64,
    locks: BTreeSet<PathBuf>,
    faults: Vec<(Fault, u32)>,
    /// Changes until nothing works any more.
    left: Option<u64>,
    changes: u64,
    bytes_read: u64,
    capacity: u64,
}

impl State {
    /// Whether an operation takes place: the mount lives, it was not stopped, no fault was asked for.
    fn admit(&mut self, mount: u64, kind: Kind) -> Result<(), Refusal> {
        if mount != self.mount {
            return Err(Refusal::Dead);
        }
        if kind == Kind::Read && self.left == Some(0) {
            return Err(Refusal::Dead);
        }
        if kind != Kind::Read {
            match &mut self.left {
                Some(0) => return Err(Refusal::Dead),
                Some(left) => *left -= 1,
                None => {}
            }
            self.changes += 1;
        }
        if let Some((fault, times)) =
            self.faults.iter_mut().find(|(fault, times)| *times > 0 && kind.suffers(*fault))
        {
            *times -= 1;
            return Err(Refusal::Fault(*fault));
        }
        Ok(())
    }
}

enum Refusal {
    Dead,
    Fault(Fault),
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        match refusal {
            Refusal::Dead => io::Error::other("the disk is gone"),
            Refusal::Fault(fault) => fault.error(),
        }
    }
}

/// The disk, as the one who plays fate has it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// An empty one without a limit; `seed` decides how much of a failing write gets through.
    pub fn new(seed: u64) -> SimDisk {
        let (medium, rng) = (Medium::default(), Rng::with_seed(seed));
        let (locks, faults) = (BTreeSet::new(), Vec::new());
        SimDisk(Arc::new(Mutex::new(State {
            medium,
            rng,
            mount: 0,
            locks,
            faults,
            left: None,
            changes: 0,
            bytes_read: 0,
            capacity: u64::MAX,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a process that starts now. Mounts of processes before it go dead, as with [`SimDisk::kill`].
    pub fn mount(&self) -> Arc<dyn Disk> {
        self.kill();
        Arc::new(Mount { disk: self.clone(), mount: self.state().mount })
    }

    /// The process ends without a word; the machine goes on, and nothing that it wrote is lost.
    pub fn kill(&self) {
        let mut state = self.state();
        state.mount += 1;
        state.locks.clear();
        state.left = None;
        state.medium.forget_nameless();
    }

    /// The power goes and comes back: of what was not synced, `seed` decides what is there. Faults end with it.
    pub fn crash(&self, seed: u64) {
        let mut state = self.state();
        state.mount += 1;
        state.locks.clear();
        state.faults.clear();
        state.left = None;
        state.medium.crash(&mut Rng::with_seed(seed));
    }

    /// After so many more changes nothing works any more, in the middle of whatever is under way. What it was is said by
    /// what is called then: `crash`, or `kill` when only the process has died.
    pub fn stop_after(&self, changes: u64) {
        self.state().left = Some(changes);
    }

    /// Whether it has come to that.
    pub fn has_stopped(&self) -> bool {
        self.state().left == Some(0)
    }

    /// The next `times` operations that `fault` concerns fail.
    pub fn inject(&self, fault: Fault, times: u32) {
        self.state().faults.push((fault, times));
    }

    /// No fault any more.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// All files together may have so many bytes.
    pub fn limit(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// Bytes that were read from its files so far.
    pub fn bytes_read(&self) -> u64 {
        self.state().bytes_read
    }

    /// Bytes that all files together have.
    pub fn used(&self) -> u64 {
        self.state().medium.used()
    }

    /// Flips a bit of a file, as a failing medium does; false when it has no such bit that is durable.
    pub fn flip(&self, path: &Path, bit: u64) -> bool {
        let medium = &mut self.state().medium;
        let file = medium.find(path).and_then(|file| medium.files.get_mut(&file));
        file.is_some_and(|file| file.flip(bit))
    }

    /// Changes that were asked for so far: writes, syncs, new names.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }
}

#[derive(Debug)]
struct Mount {
    disk: SimDisk,
    mount: u64,
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Mount {
    fn admit(&self, kind: Kind) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.disk.state();
        state.admit(self.mount, kind)?;
        Ok(state)
    }

    fn file(&self, file: u64) -> Box<dyn DiskFile> {
        Box::new(SimFile { disk: self.disk.clone(), mount: self.mount, file })
    }
}

impl Disk for Mount {
    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.admit(Kind::Make)?;
        for dir in dir.ancestors() {
            state.medium.dirs.entry(dir.to_owned()).or_default();
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let state = self.admit(Kind::Read)?;
        let names = &state.medium.dirs.get(dir).ok_or_else(missing)?.live;
        let bytes = |file| state.medium.files.get(file).map_or(0, |file| file.live.len() as u64);
        Ok(names.iter().map(|(name, file)| Entry { name: name.clone(), bytes: bytes(file) }).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.admit(Kind::Read)?.medium.find(path).ok_or_else(missing)?;
        Ok(self.file(file))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let found = self.admit(Kind::Read)?.medium.find(path);
        if let Some(file) = found {
            self.admit_writing()?;
            return Ok(self.file(file));
        }
        let file = self.admit(Kind::Make)?.medium.make(path).ok_or_else(missing)?;
        Ok(self.file(file))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.open_append(path)?;
        file.truncate(0)?;
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.admit(Kind::Change)?;
        let file = state.medium.find(from).ok_or_else(missing)?;
        let (Some((dir, from)), Some((to_dir, to))) = (split(from), split(to)) else { return Err(missing()) };
        if dir != to_dir {
            return Err(io::Error::other("renamed into another directory; expected the same"));
        }
        state.medium.dirs.get_mut(dir).ok_or_else(missing)?.rename(from, to, file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.admit(Kind::Change)?;
        state.medium.find(path).ok_or_else(missing)?;
        let (dir, name) = split(path).ok_or_else(missing)?;
        state.medium.dirs.get_mut(dir).ok_or_else(missing)?.unlink(name);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.admit(Kind::Sync)?;
        state.medium.dirs.get_mut(dir).ok_or_else(missing)?.sync();
        Ok(())
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        let state = self.admit(Kind::Read)?;
        Ok(state.capacity.saturating_sub(state.medium.used()))
    }

    /// Asked for by the minute: no fault is spent on it.
    fn identity(&self, path: &Path) -> io::Result<Identity> {
        let state = self.disk.state();
        if state.mount != self.mount || state.left == Some(0) {
            return Err(Refusal::Dead.into());
        }
        if state.medium.dirs.contains_key(path) {
            return Ok((0, 0));
        }
        state.medium.find(path).map(|file| (1, file)).ok_or_else(missing)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let free = self.admit(Kind::Read)?.locks.insert(path.to_owned());
        let held = || SimLock { disk: self.disk.clone(), mount: self.mount, path: path.to_owned() };
        Ok(free.then(|| Box::new(held()) as Box<dyn Lock>))
    }
}

impl Mount {
    /// Opening an existing file to write changes nothing, but a read-only disk refuses it.
    fn admit_writing(&self) -> io::Result<()> {
        let state = self.disk.state();
        match state.faults.iter().find(|(fault, times)| *fault == Fault::ReadOnly && *times > 0) {
            Some((fault, _)) => Err(fault.error()),
            None => Ok(()),
        }
    }
}

struct SimLock {
    disk: SimDisk,
    mount: u64,
    path: PathBuf,
}

impl Lock for SimLock {
    fn identity(&self) -> Option<Identity> {
        None
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.mount == self.mount {
            state.locks.remove(&self.path);
        }
    }
}

struct SimFile {
    disk: SimDisk,
    mount: u64,
    file: u64,
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.admit(self.mount, Kind::Read)?;
        let file = state.medium.files.get(&self.file).ok_or_else(missing)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(file.live.len());
        let found = file.live.get(from..).unwrap_or_default();
        let count = found.len().min(buffer.len());
        if let (Some(to), Some(found)) = (buffer.get_mut(..count), found.get(..count)) {
            to.copy_from_slice(found);
        }
        state.bytes_read += count as u64;
        Ok(count)
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let state = &mut *self.disk.state();
        let room = state.capacity.saturating_sub(state.medium.used());
        let (count, result) = match state.admit(self.mount, Kind::Append) {
            Ok(()) if bytes.len() as u64 > room => {
                (usize::try_from(room).unwrap_or(usize::MAX), Err(Fault::NoSpace.error()))
            }
            Ok(()) => (bytes.len(), Ok(())),
            Err(Refusal::Fault(fault)) if fault != Fault::ReadOnly => {
                (state.rng.usize(..=bytes.len()), Err(fault.error()))
            }
            Err(refusal) => (0, Err(refusal.into())),
        };
        let file = state.medium.files.get_mut(&self.file).ok_or_else(missing)?;
        if count > 0 {
            file.append(bytes.get(..count).unwrap_or_default());
        }
        result
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.admit(self.mount, Kind::Change)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        state.medium.files.get_mut(&self.file).ok_or_else(missing)?.truncate(length);
        Ok(())
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok((1, self.file))
    }

    fn sync(&self) -> io::Result<()> {
        let state = &mut *self.disk.state();
        let admitted = state.admit(self.mount, Kind::Sync);
        let file = state.medium.files.get_mut(&self.file).ok_or_else(missing)?;
        match admitted {
            Ok(()) => file.sync(),
            Err(Refusal::Fault(Fault::Sync)) => {
                file.fail_sync();
                return Err(Fault::Sync.error());
            }
            Err(refusal) => return Err(refusal.into()),
        }
        Ok(())
    }
}
