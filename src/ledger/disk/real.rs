//! The operating system's file system: the one file of the ledger that names `std::fs`, the index aside.
//!
//! Each operation is one or two calls; what they promise is written at the trait.

use std::{
    fs::{self, File, Permissions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use super::{Disk, DiskFile, Entry, Identity, Lock};

/// Rights of what is made here, whatever the umask: what people consume is their own business.
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// The disk of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent
            && !parent.is_dir()
        {
            self.create_dirs(parent)?;
        }
        match fs::DirBuilder::new().mode(DIR_MODE).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !dir.is_dir() => return Err(error),
            _ => {}
        }
        // Also when it was there already: who made it may have died before this.
        self.sync_dir(parent.unwrap_or(Path::new(".")))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue }; // as the trait says
            match entry.metadata() {
                Ok(metadata) => found.push(Entry { name, bytes: metadata.len() }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // removed meanwhile
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(File::open(path)?)))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut options = File::options();
        options.read(true).append(true).create(true).mode(FILE_MODE);
        Ok(Box::new(RealFile(options.open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = self.open_append(path)?;
        file.truncate(0)?;
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn identity(&self, path: &Path) -> io::Result<Identity> {
        fs::metadata(path).map(|about| identity(&about))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        let file = File::options().create(true).truncate(false).write(true).mode(FILE_MODE).open(path)?;
        if file.metadata()?.mode() & 0o077 != 0 {
            // Of an earlier version, which left it to the umask. Whoever may open it could hold the lock.
            let _ = file.set_permissions(Permissions::from_mode(FILE_MODE)); // another user's stays as it is
        }
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(RealLock(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

struct RealLock(File);

fn identity(about: &fs::Metadata) -> Identity {
    (about.dev(), about.ino())
}

impl Lock for RealLock {
    fn identity(&self) -> Option<Identity> {
        self.0.metadata().ok().map(|about| identity(&about))
    }
}

impl Drop for RealLock {
    fn drop(&mut self) {
        // Not left to the closing of the file: a child that was just being started may hold a copy of it.
        let _ = self.0.unlock(); // an error means that it is let go of already
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn append(&self, bytes: &[u8]) -> io::Result<()> {
        (&self.0).write_all(bytes)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn identity(&self) -> io::Result<Identity> {
        self.0.metadata().map(|about| identity(&about))
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data() // the length belongs to it: without it the data could not be read back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_the_trait_says() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        let disk = RealDisk;
        disk.create_dirs(&dir).unwrap();
        disk.create_dirs(&dir).unwrap();
        let file = disk.open_append(&dir.join("x")).unwrap();
        file.append(b"one two").unwrap();
        file.truncate(3).unwrap();
        file.append(b"!").unwrap();
        file.sync().unwrap();
        assert_eq!(disk.read(&dir.join("x")).unwrap(), b"one!");
        disk.rename(&dir.join("x"), &dir.join("y")).unwrap();
        disk.sync_dir(&dir).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), [Entry { name: "y".into(), bytes: 4 }]);
        disk.create(&dir.join("y")).unwrap();
        assert_eq!(disk.read(&dir.join("y")).unwrap(), b"");
        disk.remove(&dir.join("y")).unwrap();
        assert_eq!(disk.open(&dir.join("y")).err().unwrap().kind(), io::ErrorKind::NotFound);
        assert!(disk.free_bytes(&dir).unwrap() > 0);
        let held = disk.lock(&dir.join("lock")).unwrap();
        assert!(held.is_some() && disk.lock(&dir.join("lock")).unwrap().is_none());
        drop(held);
        assert!(disk.lock(&dir.join("lock")).unwrap().is_some());
    }
}
