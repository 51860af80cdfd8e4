//! What the daemon and the publisher say to one another.
//!
//! Values and channels only; nothing here waits, decides or knows the broker.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};

use serde_json::{Map, Value};
use tokio::sync::{mpsc, watch};

use super::super::{
    link::Broker,
    payload::{Command, Rejected, Response},
    session::Replayed,
    topics::Topics,
};
use crate::{
    config::Mqtt,
    ledger::SharedLedger,
    model::{MeterId, Seq, Warning},
};

/// What is said of each configured meter. A meter that is not in it is removed at the broker, so the first value must be
/// the configuration, not an empty map.
pub type Inventory = BTreeMap<MeterId, Value>;

/// What the daemon wants published.
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    /// The answer to a command.
    Response(Response),
    /// These records once more; the range is cut to what was sent before.
    Replay {
        /// First.
        from: Seq,
        /// Last.
        to: Seq,
    },
}

/// What the daemon has to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// Well formed; not checked for expiry, name or arguments, and perhaps a repetition.
    Command(Command),
    /// This record cannot be read and was passed over: it will never be delivered.
    Damaged {
        /// Which.
        seq: Seq,
        /// What the ledger said.
        detail: String,
    },
    /// Something that has to be put on record as a `change`.
    OnRecord {
        /// Its name.
        change: &'static str,
        /// What it says.
        fields: Map<String, Value>,
    },
}

/// The publisher at a glance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublisherState {
    /// Connected and subscribed.
    pub connected: bool,
    /// Since when `connected` is what it is.
    pub since: Option<std::time::Instant>,
    /// Session number of this connection or of the next one.
    pub session: u64,
    /// Why the last connection ended or could not be made, or why the broker refuses records.
    pub last_error: Option<String>,
    /// The broker has no subscriber for the records.
    pub nobody_listens: bool,
    /// Messages without an acknowledgement.
    pub in_flight: usize,
    /// The broker has everything up to here.
    pub acknowledged: Seq,
    /// Everything up to here is confirmed.
    pub confirmed: Seq,
    /// Records that billing has refused and that were not sent again since, the latest last; at most two hundred.
    pub rejected: Vec<Rejected>,
    /// Rejections beyond those, since the start.
    pub rejected_unlisted: u64,
    /// Acknowledged records wait for a receipt since then, and that is longer than billing may take.
    pub awaiting_receipt_since: Option<std::time::Instant>,
    /// Replays that wait for their turn or are on their way, as they were asked for.
    pub replays: Vec<RangeInclusive<Seq>>,
    /// The last replay that was sent to its end.
    pub replayed: Option<Replayed>,
    /// Requests for replays that were taken out of the inbox since the start.
    pub replays_taken: u64,
    /// Receipts that cannot be read, for another ledger or for records that were never sent.
    pub ignored_receipts: u64,
    /// What else is not well with the broker, its users or billing; in a fixed order.
    pub warnings: Vec<Warning>,
    /// When the loop last turned; it does so every ten seconds at least. A change of this alone wakes nobody.
    pub last_turn: Option<std::time::Instant>,
}

/// What [`run`](super::run) needs.
pub struct Context {
    /// The broker.
    pub settings: Mqtt,
    /// Where to say what.
    pub names: Topics,
    /// What is to be sent.
    pub ledger: SharedLedger,
    /// From the daemon.
    pub inbox: mpsc::Receiver<Outgoing>,
    /// To the daemon. Never waited for: a command that does not fit is answered with an error.
    pub events: mpsc::Sender<Incoming>,
    /// What `status` says besides what the publisher knows itself: an object.
    pub status: watch::Receiver<Value>,
    /// The configured meters.
    pub inventory: watch::Receiver<Inventory>,
    /// Where the state is shown.
    pub state: watch::Sender<PublisherState>,
    /// Turns true once.
    pub shutdown: watch::Receiver<bool>,
    /// Where connections come from.
    pub broker: Arc<dyn Broker>,
}
