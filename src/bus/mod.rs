//! One bus: the line, who is asked next, and the task that does it.
//!
//! Knows profiles and protocols; does not know what a reading is worth (that is `validate`) nor where it goes.

mod diagnosis;
mod handed;
mod health;
mod line;
mod port;
pub mod readings;
mod schedule;
mod task;

pub use diagnosis::{Diagnosis, Heard};
pub use handed::Handed;
pub use health::{BusHealth, EndedSlot, MeterHealth, NoValue};
pub use line::{Line, Query, Report, Trace, Traced};
pub use port::{Port, Ports, RealPorts, SerialPort};
pub use schedule::{
    Action, Ask, AskKind, Asked, Class, Exchange, MeterPlan, Now, Outlook, Patience, Request, Schedule,
    Skipped, Surprise, Sweep, Target, Ticket,
};
pub use task::{BusTask, DemandRequest, Judge, Judgement};
