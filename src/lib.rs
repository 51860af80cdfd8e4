//! meter-gateway: polls meters, proves every reading, publishes it.

pub mod bus;
pub mod clock;
pub mod config;
pub mod identity;
pub mod ledger;
pub mod model;
pub mod pipeline;
pub mod profile;
pub mod protocol;
pub mod publish;
pub mod systemd;
pub mod validate;
