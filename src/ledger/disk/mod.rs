//! The few things that the ledger asks of a file system, and what it may rely on after each.
//!
//! Knows nothing of records. `real` is the operating system, `sim` a disk in memory that loses power on request. The
//! index has a door of its own: it can be built again.
//!
//! A power cut may take everything that no `sync` has promised: bytes of a file until [`DiskFile::sync`], names in a
//! directory until [`Disk::sync_dir`]. The two promises are independent of one another.

mod real;
pub mod sim;

use std::{
    fmt,
    io::{self, Read},
    path::Path,
};

pub use real::RealDisk;

/// Which file or directory it is, whatever its name: device and number.
pub type Identity = (u64, u64);

/// Holds a lock until it is dropped, or until its process ends.
pub trait Lock: Send + Sync {
    /// The file that is locked; `None` where it is no file.
    fn identity(&self) -> Option<Identity>;
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Without the directory. Names that are not UTF-8 are not listed: none of the ledger's is.
    pub name: String,
    /// Length of the file now; of a directory nothing of use.
    pub bytes: u64,
}

/// A file system.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes the directory and those above it. What was made, and the last name in any case, is durable on return.
    fn create_dirs(&self, dir: &Path) -> io::Result<()>;

    /// What is in the directory now, durable or not, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;

    /// Opens what exists, to read. What is read need not be durable.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens to append, and makes it when it is missing. A new name is durable after `sync_dir`.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an empty file to append; what had the name before is emptied. Durable as with `open_append`.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name in the same directory, in place of what had it. At any moment the name means the one
    /// or the other; which of them after a power cut is certain after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Takes a name away. After a power cut it may be back, until `sync_dir`.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// All names that were made, changed or taken away in `dir` are durable on return. Says nothing of what the files
    /// contain.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes that may still be written below `dir`.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// What has this name now.
    fn identity(&self, path: &Path) -> io::Result<Identity>;

    /// Locks a file, which is made when it is missing; `None` when another process has it. Promises nothing after a
    /// power cut: a lock does not outlive its process.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>>;

    /// The whole content of a small file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        Reader::new(self.open(path)?, 0, u64::MAX).read_to_end(&mut content)?;
        Ok(content)
    }
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads at most `buffer.len()` bytes from `offset`; 0 at the end.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes all of it behind the end. Durable after `sync`; before, and after an error, any part of it may be there.
    fn append(&self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts off what lies behind `length`. Durable after `sync`.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Which file it is, whether it still has its name or not.
    fn identity(&self) -> io::Result<Identity>;

    /// fdatasync: content and length are durable on return. After an error nothing is known of what was written since
    /// the last success, and a later success does not make it good: cut it off, and write it again.
    fn sync(&self) -> io::Result<()>;
}

/// Reads part of a file from front to back.
pub struct Reader {
    file: Box<dyn DiskFile>,
    next: u64,
    end: u64,
}

impl Reader {
    /// The bytes from `offset` up to `end`, or to the end of the file.
    pub fn new(file: Box<dyn DiskFile>, offset: u64, end: u64) -> Reader {
        Reader { file, next: offset, end }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.next)).unwrap_or(usize::MAX);
        let room = left.min(buffer.len());
        let count = self.file.read_at(self.next, buffer.get_mut(..room).unwrap_or_default())?;
        self.next += count as u64;
        Ok(count)
    }
}
