//! The vocabulary: ids, exact quantities, readings, records, slots, who asks.
//!
//! Knows no other module, does no I/O, never asks the time.

mod asker;
mod ids;
mod lookalike;
mod quantity;
mod reading;
mod record;
mod slots;
mod text;
mod time;
mod warning;

pub use asker::{Asker, User, Via, path_word};
pub use ids::{BusId, IdError, MeterId, PointName};
pub use lookalike::{first_lookalike, plain_character, plainly};
pub use quantity::{Dec, DecError, Unit};
pub use reading::{Medium, Origin, PointValue, Reading, Verdict, flag};
pub use record::{ClockState, Draft, GENESIS, RecordType, Seq, change};
pub use slots::{SlotError, Slots};
pub use text::{in_one_line, is_visible, printable, printable_line};
pub use time::{Utc, rfc3339, stepped};
pub use warning::Warning;
