//! Simulated meters, lines and sites: what `demo`, `simulate` and the tests talk to instead of hardware.
//!
//! Meters are deterministic: a seed and a moment give the same words. The lines are real (pseudo-terminals,
//! TCP sockets) and as slow as real ones. Nothing here is reachable from a production poll.

mod demo;
mod fault;
mod habit;
mod line;
mod meter;
mod pty;
mod request;
mod site;
mod tcp;
mod values;
mod virtual_line;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::model::Utc;

pub use demo::Demo;
pub use fault::{Delivery, Fault, Faults};
pub use habit::{Habit, Occurred};
pub use line::{LineOptions, PtyLine};
pub use meter::{Shown, SimMeter};
pub use site::{Endpoint, SimSite, SiteError};
pub use tcp::{PeerOptions, TcpFraming, TcpPeer};
pub use virtual_line::{LineState, VirtualLine, VirtualLines};

/// The meters of one bus, shared by the line that speaks for them and the test that plays with them.
pub type Meters = Arc<Mutex<Vec<SimMeter>>>;

/// Where simulated meters get the wall time from.
#[derive(Clone)]
pub struct SimClock(Arc<dyn Fn() -> Utc + Send + Sync>);

impl SimClock {
    /// A clock that asks `now` each time.
    pub fn new(now: impl Fn() -> Utc + Send + Sync + 'static) -> SimClock {
        SimClock(Arc::new(now))
    }

    fn now(&self) -> Utc {
        (self.0)()
    }
}

impl Default for SimClock {
    /// The machine's own clock.
    fn default() -> SimClock {
        SimClock::new(chrono::Utc::now)
    }
}

impl fmt::Debug for SimClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimClock")
    }
}

/// Meters ready to be put on a line.
pub fn share(meters: Vec<SimMeter>) -> Meters {
    Arc::new(Mutex::new(meters))
}

/// A lock that a panicking test has not made useless for the thread of the line.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
