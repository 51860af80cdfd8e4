//! meter-gateway: polls meters, proves every reading, publishes it.
//!
//! ```text
//!  bus ──► decode ──► validate ──► ledger ──► publish ──► broker ──► billing
//!   ▲         ▲           ▲           │          ▲                      │
//!  cycle   profiles    history        │          └── acknowledgement, receipt ◄──┘
//!                                     └──► console, command line (they read; what they want from a meter
//!                                          they ask of the bus queue)
//! ```
//!
//! Each arrow is a value: a [`bus::Sweep`] becomes a [`model::Reading`], a judged one, a [`model::Draft`], a
//! [`ledger::Line`]. [`pipeline`] is the whole way in one file. Nothing flows upstream but acknowledgements and
//! requests for a read.
//!
//! # Invariants
//!
//! 1. The core computes, the shell waits: `model`, `protocol`, `profile`, `validate`, the bus cycle and the
//!    publisher's session get time, bytes and randomness as arguments.
//! 2. A record exists once its line is on the disk (fdatasync of our own file). sled is a cache of those files.
//! 3. Never drop, never overwrite, never invent: validation flags, and a silent meter is a record.
//! 4. A value is the one on the meter's display: exact decimals from wire to payload. Its time is when the reply
//!    arrived.
//! 5. A reply can only answer the question it was asked: lengths are checked, a line is drained after a fault, and
//!    a register that surprises is read a second time before it is believed.
//! 6. One exchange at a time on a bus, for everyone.
//! 7. One dead meter costs no other meter its reading; one failed request costs no other value of that meter.
//! 8. Nothing counts as sent without an acknowledgement; acknowledged is not confirmed.
//! 9. Every queue, retry and wait has a limit with a name, a unit and a reason beside it.
//! 10. Each foreign crate that shapes the house has one door.
//! 11. Bytes that leave the process carry a version and have a golden test.
//! 12. No Modbus write can be reached: the gateway only reads.
//!
//! `docs/architecture.md` names the test or the file that keeps each one.
//!
//! # Modules, in reading order
//!
//! A module names only those above it (`tests/tidy.rs` holds the table).
//!
//! - [`model`]: the vocabulary: ids, exact quantities, readings, records, slots
//! - [`protocol`]: questions, outcomes, timing, codecs; bytes in, verdicts out
//! - [`profile`]: what a type of meter offers: points as data, the request plan, decoding
//! - [`config`]: what was typed becomes what is meant; all faults at once
//! - [`clock`]: the only place that asks the system for the time, and a simulated twin
//! - [`identity`]: the gateway's key pair
//! - [`systemd`]: readiness, status, and a watchdog that is fed by progress
//! - [`bus`]: one line, who is asked next, and the task that does it
//! - [`validate`]: the rules: what speaks against a reading
//! - [`ledger`]: the chain of records on disk; store and outbox in one
//! - [`pipeline`]: the corridor: sweep, decode, validate, append
//! - [`billing`]: what a day came to, signed, and how anyone checks it
//! - [`publish`]: from the ledger to the broker, and what comes back
//! - [`telemetry`]: logs, and one snapshot of the daemon's state
//! - [`console`]: HTTP and the Unix socket: what query commands and monitoring need
//! - [`commands`]: what the billing system asks for over MQTT
//! - [`sim`]: simulated meters, lines and sites; nothing in production reaches it
//! - [`app`]: composition: builds the parts, supervises them, takes them down in order
//! - [`cli`]: one file per subcommand

pub mod app;
pub mod billing;
pub mod bus;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod console;
pub mod identity;
pub mod ledger;
pub mod model;
pub mod pipeline;
pub mod profile;
pub mod protocol;
pub mod publish;
pub mod sim;
pub mod systemd;
pub mod telemetry;
pub mod validate;
