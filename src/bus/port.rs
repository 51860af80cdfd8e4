//! What a line runs over: a serial device or a TCP connection. Opens, reads, writes, sets up; knows nothing of
//! frames.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use rustix::termios::{self, ControlModes, OptionalActions, QueueSelector, SpecialCodeIndex};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    net::TcpStream,
};

use crate::{
    clock::register,
    config::Link,
    protocol::{Parity, Wire},
};

/// A byte stream whose stale input can be taken at once, the kernel's part included.
pub trait Port: AsyncRead + AsyncWrite + Send + Unpin {
    /// Takes what has been received and not read, about `most` bytes of it. An error when the other side has ended.
    fn take_input(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<()>;

    /// Sets up the serial line anew. Whatever else carries bytes has no such settings.
    fn tune(&mut self, wire: Wire) -> io::Result<()>;
}

/// How long a TCP peer may take to accept a connection: a serial server on a slow site network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where lines come from.
pub trait Ports: Send + Sync {
    /// Opens whatever the link says. Errors name the place and the remedy.
    fn open<'a>(&'a self, link: &'a Link) -> BoxFuture<'a, io::Result<Box<dyn Port>>>;
}

/// The serial devices and the network of this machine.
pub struct RealPorts;

impl Ports for RealPorts {
    fn open<'a>(&'a self, link: &'a Link) -> BoxFuture<'a, io::Result<Box<dyn Port>>> {
        Box::pin(async move {
            match link {
                Link::Serial { device, wire } => {
                    Ok(Box::new(SerialPort::open(device, *wire)?) as Box<dyn Port>)
                }
                Link::Tcp { address } | Link::SerialOverTcp { address, .. } => {
                    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address.as_str()))
                        .await
                        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection within 5 s"))
                        .flatten()
                        .map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))?;
                    stream.set_nodelay(true)?;
                    Ok(Box::new(stream) as Box<dyn Port>)
                }
            }
        })
    }
}

impl Port for TcpStream {
    fn take_input(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection");
        take(&*self, into, most, gone)
    }

    fn tune(&mut self, _: Wire) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a serial server's line is set up at the server"))
    }
}

/// Reads what is there without waiting.
fn take(fd: impl AsFd, into: &mut Vec<u8>, most: usize, gone: impl Fn() -> io::Error) -> io::Result<()> {
    let mut bytes = [0; 512];
    while into.len() < most {
        match rustix::io::read(&fd, &mut bytes) {
            Ok(0) => return Err(gone()),
            Ok(read) => into.extend_from_slice(bytes.get(..read).unwrap_or_default()),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A serial device, ours alone while it is open.
pub struct SerialPort {
    fd: AsyncFd<OwnedFd>,
}

impl SerialPort {
    /// Opens and locks the device, and sets the line up: raw, eight data bits.
    pub fn open(device: &Path, wire: Wire) -> io::Result<SerialPort> {
        let at =
            |what: &str, e: io::Error| io::Error::new(e.kind(), format!("{}: {what}: {e}", device.display()));
        let flags = rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(device)
            .map_err(|e| match remedy(device, e.kind()) {
                Some(remedy) => io::Error::new(
                    e.kind(),
                    format!("{}: cannot be opened: {e}\n  hint: {remedy}", device.display()),
                ),
                None => at("cannot be opened", e),
            })?;
        // flock for everyone, TIOCEXCL for programs that know nothing of flock (root passes it).
        if file.try_lock().is_err() {
            let holder = holder(&file).unwrap_or_else(|| "another process".into());
            let text = format!(
                "{}: in use by {holder}\n  hint: one program owns a line; stop the other",
                device.display()
            );
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        termios::ioctl_tiocexcl(&file).map_err(|e| at("cannot be taken exclusively", e.into()))?;
        set_up(&file, wire).map_err(|e| at("cannot be set up as a serial line", e))?;
        termios::tcflush(&file, QueueSelector::IOFlush)?;
        if let Err(why) = ask_for_low_latency(device) {
            tracing::warn!(device = %device.display(), error = why, "received bytes may be held back by the adapter");
        }
        // Nobody waits for room to write: a request is a dozen bytes, the driver's buffer holds thousands.
        Ok(SerialPort { fd: register(file.into(), Interest::READABLE)? })
    }
}

/// What a person can do about a device that cannot be opened.
fn remedy(device: &Path, why: io::ErrorKind) -> Option<String> {
    match why {
        io::ErrorKind::NotFound => {
            Some("is the adapter plugged in? `ls -l /dev/serial/by-id/` shows those that are".into())
        }
        io::ErrorKind::PermissionDenied => {
            let gid = device.metadata().ok()?.gid();
            let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
            let group = group_name(&groups, gid).unwrap_or_else(|| gid.to_string());
            Some(format!(
                "it belongs to the group {group}: let the service's user join it (usermod -aG {group} USER; the unit's \
                 SupplementaryGroups=), and restart"
            ))
        }
        _ => None,
    }
}

/// From a text in the format of group(5).
fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

fn set_up(fd: impl AsFd, wire: Wire) -> io::Result<()> {
    let mut settings = termios::tcgetattr(&fd)?;
    settings.make_raw();
    settings.control_modes |= ControlModes::CREAD | ControlModes::CLOCAL;
    settings.control_modes &=
        !(ControlModes::CRTSCTS | ControlModes::PARENB | ControlModes::PARODD | ControlModes::CSTOPB);
    match wire.parity {
        Parity::None => {}
        Parity::Even => settings.control_modes |= ControlModes::PARENB,
        Parity::Odd => settings.control_modes |= ControlModes::PARENB | ControlModes::PARODD,
    }
    if wire.stop_bits == 2 {
        settings.control_modes |= ControlModes::CSTOPB;
    }
    settings.special_codes[SpecialCodeIndex::VMIN] = 1;
    settings.special_codes[SpecialCodeIndex::VTIME] = 0;
    settings.set_speed(wire.baud)?;
    Ok(termios::tcsetattr(&fd, OptionalActions::Now, &settings)?)
}

/// FTDI adapters hold received bytes back for 16 ms by default; their driver takes 1 ms from sysfs.
fn ask_for_low_latency(device: &Path) -> Result<(), String> {
    let Ok(real) = device.canonicalize() else { return Ok(()) };
    let Some(name) = real.file_name() else { return Ok(()) };
    let timer = Path::new("/sys/bus/usb-serial/devices").join(name).join("latency_timer");
    match std::fs::read_to_string(&timer) {
        Ok(text) if text.trim() != "1" => std::fs::write(&timer, "1").map_err(|e| {
            format!(
                "{} is {} ms and could not be set to 1: {e}; a udev rule can",
                timer.display(),
                text.trim()
            )
        }),
        _ => Ok(()), // no such timer: the driver holds nothing back
    }
}

/// Name and number of the process that holds the lock on this file, from /proc/locks.
fn holder(file: &File) -> Option<String> {
    let inode = file.metadata().ok()?.ino();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let line = locks.lines().find(|line| {
        line.split_whitespace().nth(5).is_some_and(|place| place.ends_with(&format!(":{inode}")))
    })?;
    let pid = line.split_whitespace().nth(4)?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("`{}` (process {pid})", name.trim()))
}

impl Port for SerialPort {
    fn take_input(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<()> {
        take(self.fd.get_ref(), into, most, gone)
    }

    fn tune(&mut self, wire: Wire) -> io::Result<()> {
        set_up(self.fd.get_ref(), wire)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the device is gone (adapter unplugged?)")
}

impl AsyncRead for SerialPort {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 512];
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            let room = buf.remaining().min(bytes.len());
            let Some(space) = bytes.get_mut(..room) else { return Poll::Ready(Ok(())) };
            match guard.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *space)?)) {
                Ok(Ok(0)) => return Poll::Ready(Err(gone())),
                Ok(Ok(n)) => {
                    buf.put_slice(space.get(..n).unwrap_or_default());
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_not_ready) => {}
            }
        }
    }
}

impl AsyncWrite for SerialPort {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(match rustix::io::write(self.fd.get_ref(), bytes) {
            Ok(written) => Ok(written),
            Err(rustix::io::Errno::AGAIN) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the device takes no bytes: what was sent before has not left it",
            )),
            Err(error) => Err(error.into()),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // waiting for the wire would block the thread; the line counts characters instead
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_be_opened_comes_with_a_remedy() {
        let missing = Path::new("/dev/serial/by-id/no-such-adapter");
        let error =
            SerialPort::open(missing, Wire { baud: 9600, parity: Parity::None, stop_bits: 1 }).err().unwrap();
        assert!(error.to_string().starts_with("/dev/serial/by-id/no-such-adapter: "), "{error}");
        assert!(error.to_string().contains("plugged in"), "{error}");
        let groups = "root:x:0:\ntty:x:5:\ndialout:x:20:admin,gw\n";
        assert_eq!(group_name(groups, 20).as_deref(), Some("dialout"));
        assert_eq!(group_name(groups, 2), None);
        let said = remedy(Path::new("/dev/null"), io::ErrorKind::PermissionDenied).unwrap();
        assert!(said.contains("usermod -aG root USER"), "{said}");
    }
}
