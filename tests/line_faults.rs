//! What real lines and converters do, one test for each fault, against the real binary: peers that close, stay open and
//! dead, add bytes, refuse once, flood, answer under other numbers, in another framing, or two at a time.
//!
//! A peer does what its script says. What counts is what the gateway has recorded, and what it says of it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "line_faults/addresses.rs"]
mod addresses;
#[path = "line_faults/bytes.rs"]
mod bytes;
#[path = "line_faults/connections.rs"]
mod connections;
#[path = "common/consumer.rs"]
mod consumer;
#[path = "line_faults/demands.rs"]
mod demands;
#[path = "line_faults/flood.rs"]
mod flood;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/lab.rs"]
mod lab;
#[path = "line_faults/meters.rs"]
mod meters;
#[path = "common/mosquitto.rs"]
mod mosquitto;
#[path = "line_faults/peer.rs"]
mod peer;
#[path = "line_faults/refusals.rs"]
mod refusals;
#[path = "line_faults/site.rs"]
mod site;
#[path = "line_faults/transactions.rs"]
mod transactions;
#[path = "line_faults/wiring.rs"]
mod wiring;
