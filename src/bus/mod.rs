//! One bus: the line, who is asked next, and the task that does it.
//!
//! Knows profiles and protocols; does not know what a reading is worth (that is `validate`) nor where it goes.

mod cycle;
mod handed;
mod health;
mod line;
mod port;
pub mod readings;
mod task;

pub use cycle::{
    Action, Ask, AskKind, Asked, Cycle, Demand, Exchange, MeterPlan, Now, Outlook, Purpose, Skipped, Sweep,
};
pub use handed::Handed;
pub use health::{BusHealth, EndedSlot, MeterHealth, NoValue};
pub use line::{Line, Query, Report, Trace, Traced};
pub use port::{Port, Ports, RealPorts, SerialPort};
pub use task::{BusTask, DemandRequest, Judge, Judgement};
