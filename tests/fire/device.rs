//! An ext4 of its own whose power can be cut.
//!
//! Two loop devices, one on the other: the *device* is a file that lies, written once to its end, in an ext4 (the *medium*); in
//! the device is the ext4 that the gateway works on. Its flushes are an fsync of that file. `FS_IOC_SHUTDOWN` takes
//! effect between two writes: nothing is copied while writes go on. `Loss` says which of the two is shut down.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// 48 MiB for the gateway, on 72 MiB: both ext4 have a journal of their own.
const DEVICE_BYTES: usize = 48 << 20;
const MEDIUM_BYTES: u64 = 72 << 20;
/// Written and not synced just before each cut.
const UNSYNCED: &[u8] = &[b'#'; 4096];

/// What a cut takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// What the system had not given to the device yet: the device keeps all that it got.
    System,
    /// Also what the device got after the last flush.
    Cache,
    /// As `Cache`, but pieces of what came after the last flush are kept, newest or not.
    Pieces,
}

/// Both file systems; taken away at the end, also when a test panics.
pub struct Device {
    /// Where the gateway's file system is mounted.
    at: PathBuf,
    dir: TempDir,
    cuts: u64,
}

fn run(program: &str, arguments: &[&str], path: &Path) -> Result<String, String> {
    let path = path.to_str().unwrap();
    let arguments: Vec<_> = arguments.iter().copied().chain([path]).collect();
    // Where Debian has mkfs and its kin, when the path of the tests does not.
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(&arguments).env("PATH", search).env("LC_ALL", "C").output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { Ok(said) } else { Err(format!("{program} {arguments:?}: {said}")) }
}

fn mount(what: &Path, at: &Path) {
    let mounted = run("mount", &["-o", "loop", what.to_str().unwrap()], at);
    mounted.unwrap_or_else(|said| {
        panic!(
            "no ext4 on a loop device: {said}\n  hint: this test needs root and /dev/loop*; \
             `sudo -E cargo test --test fire`, or a container with --privileged"
        )
    });
}

/// A loop device lets go of its file a moment after it is unmounted.
fn unmount(at: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(said) = run("umount", &[], at) {
        assert!(Instant::now() < deadline, "{said}");
        sleep(Duration::from_millis(5));
    }
}

impl Device {
    /// Needs root, as CI has it.
    pub fn mount(at: &Path) -> Device {
        let device = Device { at: at.to_owned(), dir: tempfile::tempdir().unwrap(), cuts: 0 };
        fs::create_dir_all(at).unwrap();
        fs::create_dir(device.medium()).unwrap();
        let medium = fs::File::create(device.image()).unwrap();
        medium.set_len(MEDIUM_BYTES).unwrap();
        // `-T default`: blocks of 4 KiB and the journal's own defaults, as on a disk of any size.
        run("mkfs.ext4", &["-q", "-F", "-T", "default"], &device.image()).unwrap();
        mount(&device.image(), &device.medium());
        fs::write(device.file(), vec![0; DEVICE_BYTES]).unwrap();
        run("mkfs.ext4", &["-q", "-F", "-T", "default"], &device.file()).unwrap();
        run("sync", &["-f"], &device.file()).unwrap();
        mount(&device.file(), at);
        device
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("medium.img")
    }

    fn medium(&self) -> PathBuf {
        self.dir.path().join("medium")
    }

    fn file(&self) -> PathBuf {
        self.medium().join("device")
    }

    fn unsynced(&self) -> PathBuf {
        self.at.join(format!("unsynced-{}", self.cuts))
    }

    /// From one moment on nothing more reaches the device, and what is said to be flushed fails.
    pub fn cut(&mut self, loss: Loss, seed: u64) {
        self.cuts += 1;
        fs::write(self.unsynced(), UNSYNCED).unwrap();
        let target = if loss == Loss::System { &self.at } else { &self.medium() };
        // POSIX_FADV_DONTNEED begins to write back what is dirty in its range. 2: without a last write of the journal.
        let pieces = if loss == Loss::Pieces { 32 } else { 0 };
        let script = format!(
            "import fcntl, os, random, struct, sys\n\
             random.seed({seed})\n\
             device, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDONLY)\n\
             for _ in range({pieces}):\n\
             \tat = random.randrange({DEVICE_BYTES} >> 12) << 12\n\
             \tos.posix_fadvise(device, at, random.randrange(1 << 20), os.POSIX_FADV_DONTNEED)\n\
             fcntl.ioctl(target, 0x8004587d, struct.pack('I', 2))\n" // FS_IOC_SHUTDOWN
        );
        run("python3", &["-c", &script, self.file().to_str().unwrap()], target).unwrap();
    }

    /// Power is back: ext4 replays its journal, and `e2fsck` finds nothing to say. With nothing running. Returns whether
    /// what was not synced is gone.
    pub fn restore(&self, loss: Loss) -> bool {
        unmount(&self.at);
        if loss != Loss::System {
            unmount(&self.medium());
            mount(&self.image(), &self.medium());
        }
        let before = run("dumpe2fs", &["-h"], &self.file()).unwrap();
        assert!(before.contains("needs_recovery"), "it was unmounted in order: that was no cut\n{before}");
        mount(&self.file(), &self.at);
        unmount(&self.at);
        run("e2fsck", &["-f", "-n"], &self.file()).unwrap();
        mount(&self.file(), &self.at);
        fs::read(self.unsynced()).map_or(true, |content| content != UNSYNCED)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // At once out of sight; the loop devices go when the last file is closed, and the gateway may outlive this by a moment.
        for at in [&self.at, &self.medium()] {
            let _ = Command::new("umount").arg("-l").arg(at).output();
        }
    }
}
