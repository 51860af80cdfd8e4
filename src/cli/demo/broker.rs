//! The embedded broker: the only file that names rumqttd. It listens on a free port of this machine and lets one
//! consumer in the same process take part without a socket.
//!
//! It keeps nothing: a production site has a broker of its own.

use std::{collections::HashMap, net::Ipv4Addr, thread};

use anyhow::Context;
use rumqttd::{
    Broker, Config, ConnectionSettings, Notification, RouterConfig, ServerSettings,
    local::{LinkRx, LinkTx},
};

/// Connections that the demo may have: the gateway, the consumer, and a few people who look on.
const MAX_CONNECTIONS: usize = 16;
/// Bytes of a message: what the gateway sends at most (128 KiB) and its MQTT header.
const MAX_PAYLOAD: usize = 256 * 1024;
/// Messages that may be under way to one client.
const MAX_IN_FLIGHT: usize = 100;
/// Bytes and number of the segments that each topic is kept in until its subscribers have read it.
const SEGMENT_BYTES: usize = 1024 * 1024;
const SEGMENTS: usize = 16;
/// How long a client may take to introduce itself.
const CONNECT_MS: u16 = 5000;

/// One message as the consumer gets it.
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
}

/// The consumer's end.
pub struct Link {
    sender: LinkTx,
    receiver: LinkRx,
}

/// Starts the broker on a thread of its own; `filter` is what the consumer subscribes to. Returns its port.
pub fn start(filter: &str) -> anyhow::Result<(u16, Link)> {
    // rumqttd wants a number: the port is free now, and nobody but us asks for one in between.
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let server = ServerSettings {
        name: "demo-broker".into(),
        listen: (Ipv4Addr::LOCALHOST, port).into(),
        tls: None,
        next_connection_delay_ms: 1,
        connections: ConnectionSettings {
            connection_timeout_ms: CONNECT_MS,
            max_payload_size: MAX_PAYLOAD,
            max_inflight_count: MAX_IN_FLIGHT,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    let config = Config {
        router: RouterConfig {
            max_connections: MAX_CONNECTIONS,
            max_outgoing_packet_count: 200,
            max_segment_size: SEGMENT_BYTES,
            max_segment_count: SEGMENTS,
            ..RouterConfig::default()
        },
        v5: Some(HashMap::from([("v5".to_owned(), server)])),
        ..Config::default()
    };
    let mut broker = Broker::new(config);
    let (mut sender, receiver) =
        broker.link("billing").context("the embedded broker refused its consumer")?;
    sender.subscribe(filter).context("the embedded broker refused a subscription")?;
    thread::Builder::new().name("demo-broker".into()).spawn(move || {
        if let Err(error) = broker.start() {
            tracing::error!(%error, "the embedded broker ended");
        }
    })?;
    Ok((port, Link { sender, receiver }))
}

impl Link {
    /// The next message; `None` when the broker is gone.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            match self.receiver.next().await.ok()? {
                Some(Notification::Forward(forward)) => {
                    let topic = String::from_utf8_lossy(&forward.publish.topic).into_owned();
                    return Some(Message { topic, payload: forward.publish.payload.to_vec() });
                }
                // The broker paused because we were slow.
                Some(Notification::Unschedule) => self.receiver.wake().await.ok()?,
                Some(_) | None => {}
            }
        }
    }

    /// Publishes for the consumer.
    pub fn publish(&mut self, topic: &str, payload: Vec<u8>) -> anyhow::Result<()> {
        self.sender.publish(topic.to_owned(), payload).context("the embedded broker takes no message")?;
        Ok(())
    }
}
