//! What systemd is told: READY, RELOADING, STATUS, STOPPING, and WATCHDOG when there was progress.
//!
//! Knows neither what progress is nor when to tell: that is the daemon's business. Without systemd (no
//! `NOTIFY_SOCKET`) every function does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon is up, or it is so again after a reload.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A new configuration is being read; [`ready`] must follow, whatever comes of it.
///
/// The time goes with it because `Type=notify-reload` (systemd 253) tells this reload from an earlier one by it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reading the configuration")]),
        Err(error) => {
            tracing::warn!(%error, "systemd cannot be told of a reload: the monotonic clock cannot be read");
        }
    }
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The daemon is going down in order.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

/// Progress was seen.
pub fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// How often the watchdog wants to be fed, at most: half its limit.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        // Unheard, systemd takes a start for hung and a daemon for stalled: whoever looks for the reason finds it here.
        tracing::warn!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixDatagram, process::Command};

    use super::*;

    /// Not a test: what the other test runs in a process of its own, as a process cannot change its environment safely.
    #[test]
    #[ignore = "run by `every_message_arrives`"]
    fn says_everything() {
        ready("5 meters");
        reloading();
        status("6 meters");
        watchdog();
        stopping();
        let limit = watchdog_interval().unwrap();
        status(&format!("feeds every {} ms", limit.as_millis()));
    }

    #[test]
    fn every_message_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let before = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "systemd::tests::says_everything", "--include-ignored"])
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .env("WATCHDOG_USEC", "30000000")
            .env_remove("WATCHDOG_PID")
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
        let hear = || {
            let mut bytes = [0; 512];
            let length = socket.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..length].to_vec()).unwrap()
        };
        assert_eq!(hear(), "READY=1\nSTATUS=5 meters\n");
        let reload = hear();
        let lines: Vec<&str> = reload.lines().collect();
        assert_eq!((lines[0], lines[2]), ("RELOADING=1", "STATUS=reading the configuration"));
        let micros: i64 = lines[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..before + 60).contains(&(micros / 1_000_000)), "{micros} µs, began at {before} s");
        assert_eq!(hear(), "STATUS=6 meters\n");
        assert_eq!(hear(), "WATCHDOG=1\n");
        assert_eq!(hear(), "STOPPING=1\nSTATUS=stopping\n");
        assert_eq!(hear(), "STATUS=feeds every 15000 ms\n");
    }
}
