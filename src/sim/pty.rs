//! A pseudo-terminal: the master for the simulated line, the slave as the gateway's serial device.

use std::{
    ffi::OsStr,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
};

use rustix::{
    fs::{self, Mode, OFlags},
    pty::{self, OpenptFlags},
    termios::{self, OptionalActions},
};

/// Both ends.
pub(super) struct Pty {
    /// Non-blocking: what the other side does not take in time is lost, as on a UART.
    pub(super) master: OwnedFd,
    /// Kept open, so that the terminal survives that the gateway closes and opens it again.
    pub(super) slave: OwnedFd,
    /// The slave's device.
    pub(super) path: PathBuf,
}

/// Opens a pair in raw mode.
pub(super) fn open() -> io::Result<Pty> {
    let master = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    pty::grantpt(&master)?;
    pty::unlockpt(&master)?;
    let name = pty::ptsname(&master, Vec::new())?;
    let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
    let slave = fs::open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let mut settings = termios::tcgetattr(&slave)?;
    settings.make_raw();
    termios::tcsetattr(&slave, OptionalActions::Now, &settings)?;
    fs::fcntl_setfl(&master, fs::fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
    Ok(Pty { master, slave, path })
}
