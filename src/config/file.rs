//! Reads a file that somebody named: only an ordinary one, only so much of it, and never waiting for it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::Path,
};

/// Largest text of a configuration: 20,000 meters in a meters file have less.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The bytes of an ordinary file of at most `MAX_FILE_BYTES`. A pipe would be waited for without end, `/dev/zero` read
/// without end: both are refused before they are opened.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    ordinary(&fs::metadata(path)?)?;
    // It may be exchanged between the two looks: then the opening does not wait, and the second look refuses it.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    read(file)
}

fn read(file: File) -> io::Result<Vec<u8>> {
    ordinary(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?; // a file of /proc says that it is empty
    too_large(bytes.len() as u64)?;
    Ok(bytes)
}

fn ordinary(about: &fs::Metadata) -> io::Result<()> {
    let kind = about.file_type();
    let name = if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if !kind.is_file() {
        "a device"
    } else {
        return too_large(about.len());
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {name}, expected an ordinary file")))
}

fn too_large(bytes: u64) -> io::Result<()> {
    if bytes <= MAX_FILE_BYTES {
        return Ok(());
    }
    let message = format!("it is larger than {} MiB", MAX_FILE_BYTES / (1024 * 1024));
    Err(io::Error::new(io::ErrorKind::FileTooLarge, message))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_an_ordinary_file_of_bounded_size_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let refused = |path: &Path| read_file(path).unwrap_err().to_string();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::RUSR).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink(at("pipe"), at("link")).unwrap();
        for (path, says) in [
            (at("pipe"), "a pipe"),
            (at("link"), "a pipe"),
            (at("socket"), "a socket"),
            (dir.path().to_owned(), "a directory"),
            ("/dev/zero".into(), "a device"),
            ("/dev/null".into(), "a device"),
        ] {
            assert!(refused(&path).contains(says), "{}: {}", path.display(), refused(&path));
        }
        File::create(at("large")).unwrap().set_len(MAX_FILE_BYTES + 1).unwrap();
        assert!(refused(&at("large")).contains("larger than 4 MiB"));
        File::create(at("whole")).unwrap().set_len(MAX_FILE_BYTES).unwrap();
        assert_eq!(read_file(&at("whole")).unwrap().len() as u64, MAX_FILE_BYTES);
        assert!(!read_file(Path::new("/proc/self/status")).unwrap().is_empty(), "says that it has no bytes");
    }
}
