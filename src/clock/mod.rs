//! Time: the only file that asks the operating system for it, and its simulated twin.
//!
//! `keeper.rs` decides which time the house shows, `evidence.rs` asks who vouches for the kernel's clock.
//! Durations are measured on tokio's monotonic clock, never as the difference of two wall times.

mod evidence;
mod keeper;

pub use keeper::{ClockEvent, HOLDOVER, PATIENCE, Sight, Stretch, Timekeeper};

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
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
    /// The house's time, to the millisecond (records carry no more): the wall clock as far as it is trusted, see
    /// [`Timekeeper`].
    fn wall(&self) -> Utc;
    /// How far it can be trusted.
    fn state(&self) -> ClockState;
    /// What happened to the wall clock, in order.
    fn poll_event(&self) -> Option<ClockEvent>;
    /// Whether evidence should be asked for at once, because the wall clock was set. Forgotten by asking.
    fn wants_evidence(&self) -> bool;
    /// Asks who vouches for the wall clock.
    fn refresh(&self) -> BoxFuture<'_, ()>;
    /// Time since the machine started, asleep or awake.
    fn since_boot(&self) -> Duration;
    /// This start of the machine.
    fn boot_id(&self) -> &str;
    /// Waits finer than tokio's whole milliseconds: the silence of a line is counted in hundreds of
    /// microseconds.
    fn pause(&self, time: Duration) -> BoxFuture<'_, ()>;
}

/// The machine's clocks.
pub struct SystemClock {
    keeper: Mutex<Timekeeper>,
    boot_id: String,
}

/// New at each start of the machine; in a container it is the host's.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The two clocks are read one after the other; when more than this passes meanwhile, they are read again.
const READ_TOGETHER: Duration = Duration::from_millis(20);
/// How often: a machine too busy for this is looked at in the next second.
const READ_TRIES: usize = 5;

impl SystemClock {
    /// Starts untrusted unless timesyncd has vouched for the clock lately; [`Clock::refresh`] asks the others.
    pub fn new() -> SystemClock {
        let boot_id = std::fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        let sight = Sight { instant: Instant::now(), kernel: kernel_time() };
        let synced = evidence::timesyncd_synced(sight.kernel);
        let state = if synced { ClockState::Synced } else { ClockState::Unsynced };
        SystemClock { keeper: Mutex::new(Timekeeper::new(sight, state)), boot_id }
    }

    fn keeper(&self) -> MutexGuard<'_, Timekeeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn wall(&self) -> Utc {
        let mut keeper = self.keeper(); // taken first: whoever waits for it must not have looked yet
        whole_millis(keeper.look(sight()))
    }

    fn state(&self) -> ClockState {
        self.keeper().state()
    }

    fn poll_event(&self) -> Option<ClockEvent> {
        self.keeper().poll_event()
    }

    fn wants_evidence(&self) -> bool {
        self.keeper().wants_evidence()
    }

    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let synced = evidence::synced(kernel_time()).await;
            let mut keeper = self.keeper();
            keeper.note(sight(), synced);
        })
    }

    fn since_boot(&self) -> Duration {
        let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(u64::try_from(at.tv_sec).unwrap_or(0), u32::try_from(at.tv_nsec).unwrap_or(0))
    }

    fn boot_id(&self) -> &str {
        &self.boot_id
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if !time.is_zero() && fine_sleep(time).await.is_err() {
                sleep(time).await; // no timerfd to be had: a millisecond late is better than early
            }
        })
    }
}

fn kernel_time() -> Utc {
    chrono::Utc::now()
}

/// Both clocks at one moment: being put off between the two must not look like a step.
fn sight() -> Sight {
    let mut sight = Sight { instant: Instant::now(), kernel: kernel_time() };
    for _ in 0..READ_TRIES {
        if sight.instant.elapsed() <= READ_TOGETHER {
            break;
        }
        sight = Sight { instant: Instant::now(), kernel: kernel_time() };
    }
    sight
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

/// The kernel's clock as a test sets it, over tokio's (pausable) time; house time is kept as in production.
pub struct SimulatedClock {
    start: Instant,
    simulated: Mutex<Simulated>,
}

struct Simulated {
    /// What the kernel's clock showed at the start, with all that it was set since.
    origin: Utc,
    synced: bool,
    keeper: Timekeeper,
}

impl SimulatedClock {
    /// Shows `origin` now.
    pub fn starting_at(origin: Utc, state: ClockState) -> SimulatedClock {
        let start = Instant::now();
        let keeper = Timekeeper::new(Sight { instant: start, kernel: origin }, state);
        let synced = state == ClockState::Synced;
        SimulatedClock { start, simulated: Mutex::new(Simulated { origin, synced, keeper }) }
    }

    /// Somebody sets the kernel's clock. As with the kernel itself, nobody vouches for it until
    /// [`SimulatedClock::synchronise`].
    pub fn step(&self, by: TimeDelta) {
        self.at(|simulated, sight| simulated.keeper.look(sight));
        self.at(|simulated, _| {
            simulated.origin += by;
            simulated.synced = false;
        });
        self.at(|simulated, sight| simulated.keeper.look(sight));
    }

    /// What the kernel's clock shows, whatever the house makes of it.
    pub fn kernel(&self) -> Utc {
        self.at(|_, sight| sight.kernel)
    }

    /// Whether a time server vouches for the kernel's clock from now on; told at once.
    pub fn synchronise(&self, synced: bool) {
        self.at(|simulated, sight| {
            simulated.synced = synced;
            simulated.keeper.note(sight, synced);
        });
    }

    /// A time server sets the kernel's clock and vouches for it in one go.
    pub fn step_and_synchronise(&self, by: TimeDelta) {
        self.step(by);
        self.synchronise(true);
    }

    fn at<T>(&self, use_it: impl FnOnce(&mut Simulated, Sight) -> T) -> T {
        let mut simulated = self.simulated.lock().unwrap_or_else(PoisonError::into_inner);
        let instant = Instant::now();
        let passed = instant.saturating_duration_since(self.start);
        let kernel = simulated.origin + TimeDelta::from_std(passed).unwrap_or(TimeDelta::MAX);
        use_it(&mut simulated, Sight { instant, kernel })
    }
}

impl Clock for SimulatedClock {
    fn wall(&self) -> Utc {
        self.at(|simulated, sight| whole_millis(simulated.keeper.look(sight)))
    }

    fn state(&self) -> ClockState {
        self.at(|simulated, _| simulated.keeper.state())
    }

    fn poll_event(&self) -> Option<ClockEvent> {
        self.at(|simulated, _| simulated.keeper.poll_event())
    }

    fn wants_evidence(&self) -> bool {
        self.at(|simulated, _| simulated.keeper.wants_evidence())
    }

    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.at(|simulated, sight| simulated.keeper.note(sight, simulated.synced)) })
    }

    fn since_boot(&self) -> Duration {
        self.start.elapsed()
    }

    fn boot_id(&self) -> &'static str {
        "00000000-0000-4000-8000-000000000000"
    }

    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(sleep(time))
    }
}
