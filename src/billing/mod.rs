//! What a local day came to: the manifest 对账清单, its signature, and the proof a third party can repeat.
//!
//! `boundary.rs`, `day.rs`, `consumption.rs`, `manifest.rs`, `signing.rs` and `proof.rs` compute; `history.rs` reads the ledger, `keeper.rs` writes to it.
//! Reads what the ledger holds and what is configured; asks no meter, and corrects nothing.

mod boundary;
mod consumption;
mod day;
mod history;
mod keeper;
pub mod manifest;
pub mod proof;
mod rotation;
pub mod signing;

pub use boundary::{Boundary, boundary, seen};
pub use day::{Day, local_date};
pub use history::{answer, compute};
pub use keeper::{Keeper, keep};
pub use rotation::{RotateError, rotate, settle};
