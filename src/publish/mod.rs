//! From the ledger to the broker, and the receipts and commands that come back.
//!
//! `topics` and `payload` say what is on the wire, `session` decides, `driver` performs over a `link`; `mqtt` makes real
//! ones and is the one door to the client crate; `standing` knows whether others have seen more of the ledger; `credentials` reads the files that a connection needs. The ledger's cursors are the only memory of
//! what is still to be sent.

mod credentials;
mod driver;
mod link;
mod mqtt;
mod payload;
mod session;
mod standing;
mod tls_words;
mod topics;

pub use driver::{Context, Incoming, Inventory, Outgoing, PublisherState, run};
pub use link::{Broker, Cause, Failure, Link, LinkEvent, Message, Offer};
pub use mqtt::RealBroker;
pub use payload::{Command, PayloadError, Receipt, Rejected, Response, describe};
pub use session::{MAX_REPLAYS, RESUME_MAX, Verdict};
pub use topics::Topics;
