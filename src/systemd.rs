//! What systemd is told: READY, RELOADING, STATUS, STOPPING, and WATCHDOG when there was progress.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon is up.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The daemon is going down in order.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
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
        tracing::debug!(%error, "systemd was not told");
    }
}
