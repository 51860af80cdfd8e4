//! Small durable files, and lines read one by one with a limit.
//!
//! Knows how a file comes to survive a power cut; knows nothing of records.

use std::{
    io::{self, BufRead},
    path::Path,
};

use super::{LedgerError, chain::MAX_LINE, disk::Disk};

/// The error of `path`.
pub fn io_error(path: &Path) -> impl Fn(io::Error) -> LedgerError {
    let path = path.display().to_string();
    move |error| LedgerError::Io { path: path.clone(), error }
}

/// Makes names that were created, renamed or removed in `dir` durable.
pub fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), LedgerError> {
    disk.sync_dir(dir).map_err(io_error(dir))
}

/// Replaces `dir/name` as a whole: after a power cut it is the old content or the new, never a mixture.
pub fn replace(disk: &dyn Disk, dir: &Path, name: &str, content: &[u8]) -> Result<(), LedgerError> {
    let (tmp, path) = (dir.join(format!("{name}.tmp")), dir.join(name));
    let write = || -> io::Result<()> {
        let file = disk.create(&tmp)?;
        file.append(content)?;
        file.sync()?;
        disk.rename(&tmp, &path)
    };
    write().map_err(io_error(&path))?;
    sync_dir(disk, dir)
}

/// The next piece of a segment file, up to and without its line feed.
#[derive(Debug)]
pub struct Chunk {
    /// Where it begins.
    pub offset: u64,
    /// Where the next one begins.
    pub end: u64,
    /// It ended with a line feed.
    pub terminated: bool,
}

/// Reads lines of at most `MAX_LINE` bytes; of a longer one only the beginning is kept.
pub struct Lines<R> {
    reader: R,
    offset: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    /// Lines of `reader`, which stands at byte `offset` of its file.
    pub fn new(reader: R, offset: u64) -> Lines<R> {
        Lines { reader, offset, line: Vec::new() }
    }

    /// The bytes of the chunk that `next_chunk` returned last.
    pub fn bytes(&self) -> &[u8] {
        &self.line
    }

    /// Reads on to the next line feed or the end; `None` at the end.
    pub fn next_chunk(&mut self) -> io::Result<Option<Chunk>> {
        self.line.clear();
        let offset = self.offset;
        let mut terminated = false;
        while !terminated {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            let found = available.iter().position(|byte| *byte == b'\n');
            let part = available.get(..found.unwrap_or(available.len())).unwrap_or_default();
            let room = (MAX_LINE + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
            let used = part.len() + usize::from(found.is_some());
            terminated = found.is_some();
            self.offset += used as u64;
            self.reader.consume(used);
        }
        Ok((self.offset > offset).then_some(Chunk { offset, end: self.offset, terminated }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::ledger::disk::RealDisk;

    #[test]
    fn lines_are_cut_at_line_feeds_and_bounded() {
        let long = vec![b'x'; 3 * MAX_LINE];
        let text = [b"ab\n\n".as_slice(), &long, b"\ntail"].concat();
        let mut lines = Lines::new(io::BufReader::with_capacity(7, text.as_slice()), 10);
        let mut seen = Vec::new();
        while let Some(chunk) = lines.next_chunk().unwrap() {
            seen.push((chunk.offset, lines.bytes().len(), chunk.terminated));
        }
        let after = 14 + long.len() as u64 + 1;
        assert_eq!(seen, [(10, 2, true), (13, 0, true), (14, MAX_LINE + 1, true), (after, 4, false)]);
    }

    #[test]
    fn a_replaced_file_has_the_new_content_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        replace(&RealDisk, dir.path(), "a.json", b"one").unwrap();
        replace(&RealDisk, dir.path(), "a.json", b"two").unwrap();
        assert_eq!(fs::read(dir.path().join("a.json")).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
