//! The door to rumqttc, and the only file that names it: one connection attempt, of either protocol version.
//!
//! A [`Connection`] is a client *and* an event loop of its own, used once: the loop of a second attempt would remember packets
//! and events of the first. One task does nothing but poll the loop and forward; dropping it ends it. Decides
//! nothing: what the events mean is the session's business.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use rumqttc::{
    AsyncClient, ConnectionError, Event as V4Event, EventLoop, LastWill, MqttOptions, NetworkOptions,
    Outgoing, Packet as V4Packet, QoS, StateError, SubscribeFilter, SubscribeReasonCode, TlsConfiguration,
    Transport, v5,
    v5::mqttbytes::v5::{
        ConnectProperties, Filter, LastWill as V5Will, LastWillProperties, Packet as V5Packet, PubAckReason,
        PublishProperties, SubscribeReasonCode as V5SubscribeReason,
    },
};
use rustls::ClientConfig;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    link::{Broker, Cause, Failure, Link, LinkEvent, Message, Offer},
    payload::MAX_PACKET_BYTES,
    session::{Verdict, WINDOW},
};
use crate::config::MqttVersion;

/// Time between pings.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// The client's table of packet ids: well above our window, so that its own limit never takes part.
const CLIENT_INFLIGHT: u16 = 1000;
/// Requests on their way to the client: the window, the subscriptions, the farewell.
const REQUESTS: usize = WINDOW as usize + 8;
/// Events on their way to us; beyond it the polling task waits, and the broker with it.
const EVENTS: usize = 256;
/// Seconds for TCP, TLS and CONNACK together, and for one write: the session gives up after as many.
const NETWORK_LIMIT_SECS: u64 = 10;
/// Bytes of packet header, topic length, packet id and our properties, generously.
const PACKET_OVERHEAD: usize = 256;
/// Of every payload.
const CONTENT_TYPE: &str = "application/json";
/// MQTT 3.1.1 brokers do not tell their packet limit, and MQTT 5 ones need not.
const UNLIMITED: u32 = u32::MAX;

enum Client {
    V311(AsyncClient),
    V5(v5::AsyncClient),
}

/// Real connections to the broker of the offer.
pub struct RealBroker;

impl Broker for RealBroker {
    fn connect(&self, offer: Offer) -> Box<dyn Link> {
        let (tx, events) = mpsc::channel(EVENTS);
        let (client, pump) = match offer.version {
            MqttVersion::V311 => open_v311(offer, tx),
            MqttVersion::V5 => open_v5(offer, tx),
        };
        Box::new(Connection { client, pump, events, max_packet: MAX_PACKET_BYTES })
    }
}

struct Connection {
    client: Client,
    pump: JoinHandle<()>,
    events: mpsc::Receiver<LinkEvent>,
    max_packet: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Link for Connection {
    fn event(&mut self) -> BoxFuture<'_, LinkEvent> {
        Box::pin(async {
            let event = self.events.recv().await;
            let event =
                event.unwrap_or_else(|| LinkEvent::Failed(Failure::from("the connection's task has ended")));
            if let LinkEvent::Connected { max_packet, .. } = event {
                self.max_packet = usize::try_from(max_packet).unwrap_or(usize::MAX).min(MAX_PACKET_BYTES);
            }
            event
        })
    }

    fn max_payload(&self, topic: &str) -> usize {
        self.max_packet.saturating_sub(PACKET_OVERHEAD + topic.len())
    }

    fn publish(&self, message: Message) -> bool {
        let Message { topic, payload, retain, schema } = message;
        let taken = match &self.client {
            Client::V311(client) => client.try_publish(topic, QoS::AtLeastOnce, retain, payload).is_ok(),
            Client::V5(client) => {
                let properties = PublishProperties {
                    content_type: Some(CONTENT_TYPE.into()),
                    user_properties: vec![("schema".into(), schema.into())],
                    ..PublishProperties::default()
                };
                let qos = v5::mqttbytes::QoS::AtLeastOnce;
                client.try_publish_with_properties(topic, qos, retain, payload, properties).is_ok()
            }
        };
        taken || self.pump.is_finished() // then the reason is on its way as an event
    }

    fn subscribe(&self, filters: Vec<String>) -> bool {
        let taken = match &self.client {
            Client::V311(client) => {
                let filters = filters.into_iter().map(|f| SubscribeFilter::new(f, QoS::AtLeastOnce));
                client.try_subscribe_many(filters).is_ok()
            }
            Client::V5(client) => {
                let filters = filters.into_iter().map(|f| Filter::new(f, v5::mqttbytes::QoS::AtLeastOnce));
                client.try_subscribe_many(filters).is_ok()
            }
        };
        taken || self.pump.is_finished() // then the reason is on its way as an event
    }

    fn disconnect(&self) {
        let _ended_already = match &self.client {
            Client::V311(client) => client.try_disconnect().is_err(),
            Client::V5(client) => client.try_disconnect().is_err(),
        };
    }
}

/// The client puts host and port together with a colon.
fn dialled(host: &str, tls: bool) -> String {
    if host.contains(':') && !host.starts_with('[') && !tls { format!("[{host}]") } else { host.to_owned() }
}

fn transport(tls: Option<Arc<ClientConfig>>) -> Transport {
    match tls {
        Some(config) => Transport::tls_with_config(TlsConfiguration::Rustls(config)),
        None => Transport::tcp(),
    }
}

fn network() -> NetworkOptions {
    let mut options = NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options.set_connection_timeout(NETWORK_LIMIT_SECS);
    options
}

fn open_v311(offer: Offer, events: mpsc::Sender<LinkEvent>) -> (Client, JoinHandle<()>) {
    let host = dialled(&offer.host, offer.tls.is_some());
    let mut options = MqttOptions::new(offer.client_id, host, offer.port);
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_session(true)
        .set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES)
        .set_inflight(CLIENT_INFLIGHT)
        .set_transport(transport(offer.tls))
        .set_last_will(LastWill::new(
            offer.will.topic,
            offer.will.payload.to_vec(),
            QoS::AtLeastOnce,
            offer.will.retain,
        ));
    if let Some((name, password)) = offer.login {
        options.set_credentials(name, password);
    }
    let (client, mut event_loop) = AsyncClient::new(options, REQUESTS);
    event_loop.set_network_options(network());
    (Client::V311(client), tokio::spawn(pump_v311(event_loop, events)))
}

async fn pump_v311(mut event_loop: EventLoop, events: mpsc::Sender<LinkEvent>) {
    let (mut left, mut failure) = (VecDeque::new(), None);
    loop {
        let polled = match left.pop_front() {
            Some(event) => Ok(event),
            None if failure.is_some() => break,
            None => event_loop.poll().await,
        };
        let event = match polled {
            Ok(V4Event::Incoming(V4Packet::ConnAck(_))) => LinkEvent::Connected {
                receive_max: CLIENT_INFLIGHT,
                max_packet: UNLIMITED,
                keep_alive: KEEP_ALIVE,
            },
            Ok(V4Event::Incoming(V4Packet::SubAck(ack))) => LinkEvent::Subscribed(
                ack.return_codes.iter().map(|code| matches!(code, SubscribeReasonCode::Success(_))).collect(),
            ),
            Ok(V4Event::Incoming(V4Packet::PubAck(ack))) => {
                LinkEvent::Acknowledged(ack.pkid, Verdict::Accepted)
            }
            Ok(V4Event::Incoming(V4Packet::Publish(publish))) => LinkEvent::Message {
                topic: publish.topic,
                payload: publish.payload,
                retained: publish.retain,
            },
            Ok(V4Event::Incoming(_)) => LinkEvent::Heard,
            Ok(V4Event::Outgoing(outgoing)) => match outgoing_event(&outgoing) {
                Some(event) => event,
                None => continue,
            },
            Err(error) => {
                let cause = match &error {
                    ConnectionError::MqttState(StateError::Deserialization(
                        rumqttc::mqttbytes::Error::PayloadSizeLimitExceeded(_),
                    )) => Cause::Incoming,
                    ConnectionError::ConnectionRefused(_) => Cause::Said,
                    _ => Cause::Closed,
                };
                failure = Some(Failure { cause, text: error.to_string() });
                // What came before the end still counts.
                left = std::mem::take(&mut event_loop.state.events);
                continue;
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
    if let Some(failure) = failure {
        let _nobody_waits = events.send(LinkEvent::Failed(failure)).await;
    }
}

fn open_v5(offer: Offer, events: mpsc::Sender<LinkEvent>) -> (Client, JoinHandle<()>) {
    let host = dialled(&offer.host, offer.tls.is_some());
    let mut options = v5::MqttOptions::new(offer.client_id, host, offer.port);
    let mut connect = ConnectProperties::new();
    connect.max_packet_size = u32::try_from(MAX_PACKET_BYTES).ok();
    connect.session_expiry_interval = Some(0);
    let properties = LastWillProperties {
        delay_interval: None,
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: Some(CONTENT_TYPE.into()),
        response_topic: None,
        correlation_data: None,
        user_properties: vec![("schema".into(), offer.will.schema.into())],
    };
    options
        .set_keep_alive(KEEP_ALIVE)
        .set_clean_start(true)
        .set_connect_properties(connect)
        .set_connection_timeout(NETWORK_LIMIT_SECS)
        .set_network_options(network())
        .set_outgoing_inflight_upper_limit(CLIENT_INFLIGHT)
        .set_transport(transport(offer.tls))
        .set_last_will(V5Will::new(
            offer.will.topic,
            offer.will.payload.to_vec(),
            v5::mqttbytes::QoS::AtLeastOnce,
            offer.will.retain,
            Some(properties),
        ));
    if let Some((name, password)) = offer.login {
        options.set_credentials(name, password);
    }
    let (client, event_loop) = v5::AsyncClient::new(options, REQUESTS);
    (Client::V5(client), tokio::spawn(pump_v5(event_loop, events)))
}

async fn pump_v5(mut event_loop: v5::EventLoop, events: mpsc::Sender<LinkEvent>) {
    let (mut left, mut failure) = (VecDeque::new(), None);
    loop {
        let polled = match left.pop_front() {
            Some(event) => Ok(event),
            None if failure.is_some() => break,
            None => event_loop.poll().await,
        };
        let event = match polled {
            Ok(v5::Event::Incoming(V5Packet::ConnAck(ack))) => {
                let told = ack.properties.as_ref();
                let server_keep_alive = told.and_then(|p| p.server_keep_alive).filter(|secs| *secs > 0);
                if server_keep_alive.is_none() {
                    // 0 means that the broker wants no pings; the client would send them without a pause.
                    event_loop.options.set_keep_alive(KEEP_ALIVE);
                }
                LinkEvent::Connected {
                    receive_max: told.and_then(|p| p.receive_max).unwrap_or(CLIENT_INFLIGHT),
                    max_packet: told.and_then(|p| p.max_packet_size).unwrap_or(UNLIMITED),
                    keep_alive: server_keep_alive.map_or(KEEP_ALIVE, |secs| Duration::from_secs(secs.into())),
                }
            }
            Ok(v5::Event::Incoming(V5Packet::SubAck(ack))) => LinkEvent::Subscribed(
                ack.return_codes.iter().map(|code| matches!(code, V5SubscribeReason::Success(_))).collect(),
            ),
            Ok(v5::Event::Incoming(V5Packet::PubAck(ack))) => {
                LinkEvent::Acknowledged(ack.pkid, verdict(ack.reason))
            }
            Ok(v5::Event::Incoming(V5Packet::Publish(publish))) => LinkEvent::Message {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload,
                retained: publish.retain,
            },
            Ok(v5::Event::Incoming(_)) => LinkEvent::Heard,
            Ok(v5::Event::Outgoing(outgoing)) => match outgoing_event(&outgoing) {
                Some(event) => event,
                None => continue,
            },
            Err(error) => {
                let cause = match &error {
                    v5::ConnectionError::MqttState(v5::StateError::Deserialization(
                        v5::mqttbytes::Error::PayloadSizeLimitExceeded { .. },
                    )) => Cause::Incoming,
                    _ => Cause::Closed,
                };
                failure = Some(Failure { cause, text: error.to_string() });
                // What came before the end still counts.
                left = std::mem::take(&mut event_loop.state.events);
                continue;
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
    if let Some(failure) = failure {
        let _nobody_waits = events.send(LinkEvent::Failed(failure)).await;
    }
}

fn outgoing_event(outgoing: &Outgoing) -> Option<LinkEvent> {
    match outgoing {
        Outgoing::Publish(pkid) => Some(LinkEvent::Sent(*pkid)),
        Outgoing::AwaitAck(pkid) => Some(LinkEvent::Collision(*pkid)),
        _ => None,
    }
}

fn verdict(reason: PubAckReason) -> Verdict {
    match reason {
        PubAckReason::Success => Verdict::Accepted,
        PubAckReason::NoMatchingSubscribers => Verdict::NoSubscribers,
        code => Verdict::Failed(format!("{code:?}")),
    }
}
