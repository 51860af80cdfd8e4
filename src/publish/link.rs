//! One connection to a broker as the driver sees it: what it is offered, what it takes, what it tells.
//!
//! `mqtt` makes real ones; a simulated broker takes its place in tests. Knows no client crate and decides nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::session::Verdict;
use crate::config::MqttVersion;

/// What a connection needs, read afresh for each attempt.
pub struct Offer {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Protocol.
    pub version: MqttVersion,
    /// At the broker.
    pub client_id: String,
    /// User name and password.
    pub login: Option<(String, String)>,
    /// For `mqtts://`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// What the broker says, retained, when we vanish.
    pub will: Message,
}

/// One message to be published with QoS 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Whole topic.
    pub topic: String,
    /// JSON, or empty to remove a retained message.
    pub payload: Bytes,
    /// Kept by the broker.
    pub retain: bool,
    /// User property `schema`.
    pub schema: &'static str,
}

/// What came of it.
#[derive(Debug)]
pub enum LinkEvent {
    /// CONNACK.
    Connected {
        /// How many unacknowledged messages the broker takes.
        receive_max: u16,
        /// Bytes of the largest packet that it takes.
        max_packet: u32,
        /// Ours, unless the broker has its own idea.
        keep_alive: Duration,
        /// The broker keeps retained messages.
        retain: bool,
    },
    /// A message was too large for us and was passed over.
    PassedOver {
        /// Whole topic.
        topic: String,
        /// How large it was.
        bytes: usize,
    },
    /// SUBACK: for each filter, in order, whether it was granted.
    Subscribed(Vec<bool>),
    /// A message left with this packet id.
    Sent(u16),
    /// PUBACK.
    Acknowledged(u16, Verdict),
    /// Somebody published to us.
    Message {
        /// Whole topic.
        topic: String,
        /// Whatever it is.
        payload: Bytes,
        /// It was kept by the broker.
        retained: bool,
    },
    /// Any other sign of life.
    Heard,
    /// The end of this link.
    Failed(Failure),
}

/// Why a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What may be concluded from it.
    pub cause: Cause,
    /// For people.
    pub text: String,
}

/// What may be concluded from the end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Something came that cannot be taken: too large, or not MQTT.
    Incoming,
    /// The broker says that what it got is too large.
    TooLarge,
    /// Nobody was there to connect to.
    Unreachable,
    /// It ended without a word.
    Closed,
    /// Another client came with our client id.
    TakenOver,
    /// It keeps no retained messages, and does not take any.
    NoRetain,
    /// It was closed before the CONNACK.
    NoConnack,
    /// A reason was given, and it is none of these.
    Said,
}

impl From<&str> for Failure {
    /// An end without a word.
    fn from(text: &str) -> Failure {
        Failure { cause: Cause::Closed, text: text.to_owned() }
    }
}

/// One connection attempt and, if it succeeds, the connection. Dropped, it is gone.
pub trait Link: Send {
    /// The next event. Cancelling loses nothing.
    fn event(&mut self) -> BoxFuture<'_, LinkEvent>;

    /// Bytes of the largest payload that the broker and the client take on `topic`.
    fn max_payload(&self, topic: &str) -> usize;

    /// Hands a message to the client; false when it does not take it.
    fn publish(&self, message: Message) -> bool;

    /// Subscribes to all of these with one packet; false when the client does not take it.
    fn subscribe(&self, filters: Vec<String>) -> bool;

    /// Wants no more of this; false when the client does not take it. Nothing tells when it is done.
    fn unsubscribe(&self, filter: String) -> bool {
        drop(filter);
        true
    }

    /// Says goodbye, so that the will is not published. The end comes as an event.
    fn disconnect(&self);
}

/// Where connections come from.
pub trait Broker: Send + Sync {
    /// Starts an attempt; how it goes comes as events.
    fn connect(&self, offer: Offer) -> Box<dyn Link>;
}
