//! meter-gateway: polls meters, proves every reading, publishes it.

pub mod app;
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
