//! The words between the session and its driver: events in, actions out.
//!
//! Values only; what follows from which is the session's.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::{
    super::{link::Cause, payload::Receipt},
    ACKNOWLEDGE_LIMIT, CONNECT_LIMIT, Part, Reason,
};
use crate::{ledger::Cursor, model::Seq};

/// What a message holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tag {
    /// These records, for the first time or again from the cursor.
    Records(RangeInclusive<Seq>),
    /// These records once more. Moves no cursor.
    Again(Reason, RangeInclusive<Seq>),
    /// Status, inventory, response.
    Own(Part),
}

/// What the broker said of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has it.
    Accepted,
    /// 0x10: nobody is subscribed, nobody has it.
    NoSubscribers,
    /// A failure code.
    Failed(String),
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The ledger's head is here now.
    Stored(Seq),
    /// CONNACK: how much the broker takes at once, and the keep-alive that holds.
    Connected {
        /// Its receive maximum.
        receive_max: u16,
        /// In force for this connection.
        keep_alive: Duration,
    },
    /// The subscriptions that were asked for stand.
    Up,
    /// The connection is gone.
    Down {
        /// Spreads the attempts of many gateways.
        random: u64,
        /// Why.
        cause: Cause,
    },
    /// Anything at all came from the broker.
    Heard,
    /// The oldest message that had no packet id got this one.
    Sent(u16),
    /// PUBACK.
    Acknowledged(u16, Verdict),
    /// Billing's word.
    Receipt(Receipt),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a new connection, with nothing left of the one before.
    Connect,
    /// Subscribe to these.
    Subscribe(Vec<Part>),
    /// Give the connection up, then say `Down`.
    Drop(Fault),
    /// Send as many of these as fit into one message, from the first, and say which with [`Session::offered`](super::Session::offered).
    Send(Tag),
    /// Tell the ledger.
    Advance(Cursor, Seq),
    /// Nothing until then, or until the next event.
    WaitUntil(Option<Instant>),
}

/// Why a connection is given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Nobody answered.
    #[error("no CONNACK within {} s", CONNECT_LIMIT.as_secs())]
    NotConnected,
    /// It let us in and then said nothing.
    #[error("no SUBACK within {} s", CONNECT_LIMIT.as_secs())]
    NotSubscribed,
    /// It takes messages and acknowledges none.
    #[error("the oldest message is unacknowledged for {} s", ACKNOWLEDGE_LIMIT.as_secs())]
    Unacknowledged,
    /// Not even a ping came back.
    #[error("nothing heard from the broker for {0} s")]
    Silent(u64),
    /// An acknowledgement that answers nothing.
    #[error("out of step with the broker: {0}")]
    Desync(String),
}

impl Fault {
    /// What may be concluded from it.
    pub fn cause(&self) -> Cause {
        match self {
            Fault::Desync(_) | Fault::NotConnected => Cause::Said,
            Fault::NotSubscribed | Fault::Unacknowledged | Fault::Silent(_) => Cause::Closed,
        }
    }
}
