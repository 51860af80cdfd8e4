//! Time: the only file that asks the operating system for it, and its simulated twin.
//!
//! Durations are measured on tokio's monotonic clock, never as the difference of two wall times.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, sleep},
};

use crate::model::{ClockState, Utc};

/// Where the house gets its time from.
pub trait Clock: Send + Sync {
    /// The wall clock, to the millisecond (records carry no more).
    fn wall(&self) -> Utc;
    /// How far the wall clock can be trusted.
    fn state(&self) -> ClockState;
    /// Waits finer than tokio's whole milliseconds: the silence of a line is counted in hundreds of
    /// microseconds.
    fn pause(&self, time: Duration) -> BoxFuture<'_, ()>;
}

/// The machine's clocks.
pub struct SystemClock {
    state: AtomicU8,
    last_synced: Mutex<Option<Instant>>,
}

/// Written by systemd-timesyncd at each synchronisation.
const TIMESYNC_STAMP: &str = "/run/systemd/timesync/synchronized";

/// How long a clock that was synchronised counts as holding over: a cheap quartz drifts by 2 to 5 s a day.
const HOLDOVER: Duration = Duration::from_secs(24 * 3600);

impl SystemClock {
    /// Starts with what the system says now.
    pub fn new() -> SystemClock {
        let clock = SystemClock { state: AtomicU8::new(2), last_synced: Mutex::new(None) };
        clock.note(Path::new(TIMESYNC_STAMP).exists());
        clock
    }

    /// Asks again whether the kernel's clock is synchronised; the daemon calls it once a minute.
    pub async fn refresh(&self) {
        let synced = Path::new(TIMESYNC_STAMP).exists() || kernel_says_synchronised().await;
        self.note(synced);
    }

    fn note(&self, synced: bool) {
        let Ok(mut last) = self.last_synced.lock() else { return };
        if synced {
            *last = Some(Instant::now());
        }
        let state = match *last {
            _ if synced => 0,
            Some(at) if at.elapsed() < HOLDOVER => 1,
            _ => 2,
        };
        self.state.store(state, Ordering::Relaxed);
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Utc {
        whole_millis(chrono::Utc::now())
    }

    fn state(&self) -> ClockState {
        match self.state.load(Ordering::Relaxed) {
            0 => ClockState::Synced,
            1 => ClockState::Holdover,
            _ => ClockState::Unsynced,
        }
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if !time.is_zero() && fine_sleep(time).await.is_err() {
                sleep(time).await; // no timerfd to be had: a millisecond late is better than early
            }
        })
    }
}

/// `timedatectl` reports the kernel's own flag (adjtimex), whoever disciplines the clock.
async fn kernel_says_synchronised() -> bool {
    let ask = tokio::process::Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(Duration::from_secs(5), ask).await {
        Ok(Ok(answer)) => answer.stdout.starts_with(b"yes"),
        _ => false,
    }
}

async fn fine_sleep(time: Duration) -> io::Result<()> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let value = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    rustix::time::timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: zero, it_value: value },
    )?;
    register(timer, Interest::READABLE)?.readable().await?.retain_ready();
    Ok(())
}

/// Watches a descriptor that is owned, so that it stays open as long as it is watched.
///
/// tokio 1.54 deprecated its safe constructor because a caller could close a *borrowed* descriptor behind
/// its back; the bound on `OwnedFd` rules that out, and unsafe code is forbidden here.
#[expect(deprecated)]
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

fn whole_millis(at: Utc) -> Utc {
    at - TimeDelta::nanoseconds(i64::from(at.timestamp_subsec_nanos() % 1_000_000))
}

/// A wall clock that follows tokio's (pausable) time from a given moment.
pub struct SimulatedClock {
    origin: Utc,
    start: Instant,
    state: ClockState,
}

impl SimulatedClock {
    /// Shows `origin` now.
    pub fn starting_at(origin: Utc, state: ClockState) -> SimulatedClock {
        SimulatedClock { origin, start: Instant::now(), state }
    }
}

impl Clock for SimulatedClock {
    fn wall(&self) -> Utc {
        whole_millis(self.origin + TimeDelta::from_std(self.start.elapsed()).unwrap_or(TimeDelta::MAX))
    }

    fn state(&self) -> ClockState {
        self.state
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(sleep(time))
    }
}
