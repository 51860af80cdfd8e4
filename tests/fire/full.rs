//! A small file system of its own that can be filled and emptied.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

/// A tmpfs; taken away again at the end.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Needs root, as CI has it.
    pub fn mount(at: &Path, megabytes: u32) -> SmallDisk {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={megabytes}m,mode=0700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output().unwrap();
        assert!(
            mounted.status.success(),
            "a tmpfs cannot be mounted: {}\n  hint: this test needs root; `sudo -E cargo test --test fire`, or a container",
            String::from_utf8_lossy(&mounted.stderr)
        );
        SmallDisk(at.to_owned())
    }

    /// Takes all room but `left` bytes.
    pub fn fill(&self, left: u64) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let mut filler = File::options().create(true).append(true).open(self.0.join("filler")).unwrap();
        let page = vec![b'#'; 4096];
        for _ in 0..free.saturating_sub(left) / 4096 {
            if filler.write_all(&page).is_err() {
                return; // the daemon was quicker
            }
        }
    }

    pub fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status(); // the directory goes with its owner
    }
}
