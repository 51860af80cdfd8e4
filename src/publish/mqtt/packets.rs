//! MQTT packets of both versions as bytes. Written by the client crate's codec; read by it too, except what it loses:
//! a short DISCONNECT, an old broker's CONNACK, unknown reason codes, and messages that are too large.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::{
    mqttbytes::{QoS, v4},
    v5::mqttbytes::{QoS as QoS5, v5},
};

use super::{
    super::{
        link::{Cause, Failure, LinkEvent, Message, Offer},
        payload::MAX_PACKET_BYTES,
        session::Verdict,
    },
    words,
};
use crate::config::MqttVersion;

/// Of every payload.
const CONTENT_TYPE: &str = "application/json";
/// Unacknowledged messages of a broker that says no number: more than our window.
const RECEIVE_MAX: u16 = u16::MAX;
/// MQTT 3.1.1 brokers do not say their packet limit, and MQTT 5 ones need not.
const NO_LIMIT: u32 = u32::MAX;

/// What a CONNACK says.
pub(super) struct Accepted {
    pub(super) receive_max: u16,
    pub(super) max_packet: u32,
    pub(super) retain: bool,
    /// The broker's, where it has an idea of its own.
    pub(super) keep_alive: Option<Duration>,
}

/// What came.
pub(super) enum Came {
    Connected(Accepted),
    Event(LinkEvent),
    Message {
        topic: String,
        payload: Bytes,
        retained: bool,
        acknowledge: Option<u16>,
    },
    /// The rest of it has still to be passed over: so many bytes.
    TooLarge {
        topic: String,
        bytes: usize,
        acknowledge: Option<u16>,
    },
}

pub(super) struct Codec {
    version: MqttVersion,
    pkid: u16,
}

fn not_mqtt(what: &str) -> Failure {
    Failure { cause: Cause::Incoming, text: format!("what the broker sends is not MQTT: {what}") }
}

fn not_sent(error: impl std::fmt::Display) -> Failure {
    Failure { cause: Cause::Said, text: format!("a packet cannot be written: {error}") }
}

impl Codec {
    pub(super) fn new(version: MqttVersion) -> Codec {
        Codec { version, pkid: 0 }
    }

    fn write(
        &self,
        old: &v4::Packet,
        new: impl FnOnce() -> v5::Packet,
        out: &mut BytesMut,
    ) -> Result<(), Failure> {
        match self.version {
            MqttVersion::V311 => old.write(out, usize::MAX).map(drop).map_err(not_sent),
            MqttVersion::V5 => new().write(out, None).map(drop).map_err(not_sent),
        }
    }

    fn next_pkid(&mut self) -> u16 {
        self.pkid = self.pkid.checked_add(1).unwrap_or(1);
        self.pkid
    }

    pub(super) fn connect(
        &self,
        offer: Offer,
        keep_alive: Duration,
        out: &mut BytesMut,
    ) -> Result<(), Failure> {
        let Offer { client_id, login, will, .. } = offer;
        let keep_alive = u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX);
        match self.version {
            MqttVersion::V311 => {
                let mut connect = v4::Connect::new(client_id);
                connect.keep_alive = keep_alive;
                connect.last_will =
                    Some(v4::LastWill::new(will.topic, will.payload.to_vec(), QoS::AtLeastOnce, will.retain));
                connect.login = login.map(|(name, password)| v4::Login::new(name, password));
                v4::Packet::Connect(connect).write(out, usize::MAX).map(drop).map_err(not_sent)
            }
            MqttVersion::V5 => {
                let mut properties = v5::ConnectProperties::new();
                properties.max_packet_size = u32::try_from(MAX_PACKET_BYTES).ok();
                properties.session_expiry_interval = Some(0);
                let connect =
                    v5::Connect { keep_alive, client_id, clean_start: true, properties: Some(properties) };
                let about = v5::LastWillProperties {
                    delay_interval: None,
                    payload_format_indicator: None,
                    message_expiry_interval: None,
                    content_type: Some(CONTENT_TYPE.into()),
                    response_topic: None,
                    correlation_data: None,
                    user_properties: vec![("schema".into(), will.schema.into())],
                };
                let will = v5::LastWill::new(
                    will.topic,
                    will.payload.to_vec(),
                    QoS5::AtLeastOnce,
                    will.retain,
                    Some(about),
                );
                let login = login.map(|(name, password)| v5::Login::new(name, password));
                v5::Packet::Connect(connect, Some(will), login).write(out, None).map(drop).map_err(not_sent)
            }
        }
    }

    /// The packet id that it got.
    pub(super) fn publish(&mut self, message: Message, out: &mut BytesMut) -> Result<u16, Failure> {
        let Message { topic, payload, retain, schema } = message;
        let pkid = self.next_pkid();
        match self.version {
            MqttVersion::V311 => {
                let mut publish = v4::Publish::new(topic, QoS::AtLeastOnce, Vec::new());
                (publish.pkid, publish.retain, publish.payload) = (pkid, retain, payload);
                v4::Packet::Publish(publish).write(out, usize::MAX).map_err(not_sent)?;
            }
            MqttVersion::V5 => {
                let properties = v5::PublishProperties {
                    content_type: Some(CONTENT_TYPE.into()),
                    user_properties: vec![("schema".into(), schema.into())],
                    ..v5::PublishProperties::default()
                };
                let mut publish = v5::Publish::new(topic, QoS5::AtLeastOnce, payload, Some(properties));
                (publish.pkid, publish.retain) = (pkid, retain);
                v5::Packet::Publish(publish).write(out, None).map_err(not_sent)?;
            }
        }
        Ok(pkid)
    }

    pub(super) fn subscribe(&mut self, filters: Vec<String>, out: &mut BytesMut) -> Result<(), Failure> {
        let pkid = self.next_pkid();
        match self.version {
            MqttVersion::V311 => {
                let filters = filters.into_iter().map(|f| v4::SubscribeFilter::new(f, QoS::AtLeastOnce));
                let mut subscribe = v4::Subscribe::new_many(filters);
                subscribe.pkid = pkid;
                v4::Packet::Subscribe(subscribe).write(out, usize::MAX).map(drop).map_err(not_sent)
            }
            MqttVersion::V5 => {
                let filters = filters.into_iter().map(|f| v5::Filter::new(f, QoS5::AtLeastOnce));
                let mut subscribe = v5::Subscribe::new_many(filters, None);
                subscribe.pkid = pkid;
                v5::Packet::Subscribe(subscribe).write(out, None).map(drop).map_err(not_sent)
            }
        }
    }

    pub(super) fn unsubscribe(&mut self, filter: String, out: &mut BytesMut) -> Result<(), Failure> {
        let pkid = self.next_pkid();
        match self.version {
            MqttVersion::V311 => {
                let mut unsubscribe = v4::Unsubscribe::new(filter);
                unsubscribe.pkid = pkid;
                v4::Packet::Unsubscribe(unsubscribe).write(out, usize::MAX).map(drop).map_err(not_sent)
            }
            MqttVersion::V5 => {
                let mut unsubscribe = v5::Unsubscribe::new(filter, None);
                unsubscribe.pkid = pkid;
                v5::Packet::Unsubscribe(unsubscribe).write(out, None).map(drop).map_err(not_sent)
            }
        }
    }

    pub(super) fn ping(&self, out: &mut BytesMut) {
        let _two_bytes = self.write(&v4::Packet::PingReq, || v5::Packet::PingReq(v5::PingReq), out);
    }

    pub(super) fn puback(&self, pkid: u16, out: &mut BytesMut) {
        let old = v4::Packet::PubAck(v4::PubAck::new(pkid));
        let _four_bytes = self.write(&old, || v5::Packet::PubAck(v5::PubAck::new(pkid, None)), out);
    }

    pub(super) fn disconnect(&self, out: &mut BytesMut) {
        let new =
            || v5::Packet::Disconnect(v5::Disconnect::new(v5::DisconnectReasonCode::NormalDisconnection));
        let _few_bytes = self.write(&v4::Packet::Disconnect, new, out);
    }

    /// Takes the next packet out of `inbox`, once it is there.
    pub(super) fn next(&self, inbox: &mut BytesMut, most: usize) -> Result<Option<Came>, Failure> {
        let Some((head, length)) = fixed_header(inbox)? else { return Ok(None) };
        let kind = inbox.first().copied().unwrap_or_default();
        if length > most {
            if kind >> 4 != 3 {
                return Err(not_mqtt("a packet other than a message is too large"));
            }
            return Ok(too_large(inbox, kind, head, length));
        }
        if inbox.len() < head + length {
            return Ok(None);
        }
        let packet = inbox.split_to(head + length);
        let body = packet.get(head..).unwrap_or_default();
        let event = match kind >> 4 {
            2 => return self.connack(body, &packet).map(|accepted| Some(Came::Connected(accepted))),
            3 => return self.message(packet).map(Some),
            4 => acknowledged(body)?,
            9 => LinkEvent::Subscribed(self.granted(body)?),
            14 if self.version == MqttVersion::V5 => {
                let code = body.first().copied().unwrap_or_default();
                return Err(words::disconnected(
                    code,
                    reason_string(body.get(1..).unwrap_or_default()).as_deref(),
                ));
            }
            _ => LinkEvent::Heard,
        };
        Ok(Some(Came::Event(event)))
    }

    fn connack(&self, body: &[u8], packet: &BytesMut) -> Result<Accepted, Failure> {
        let &[_, code, ref rest @ ..] = body else { return Err(not_mqtt("a CONNACK without a code")) };
        let plain =
            Accepted { receive_max: RECEIVE_MAX, max_packet: NO_LIMIT, retain: true, keep_alive: None };
        match self.version {
            MqttVersion::V311 if code == 0 => return Ok(plain),
            MqttVersion::V311 => return Err(words::refused_v311(code, self.version)),
            // Two bytes, or a code that MQTT 5 does not have: an old broker.
            MqttVersion::V5 if (1..0x80).contains(&code) => {
                return Err(words::refused_v311(code, self.version));
            }
            MqttVersion::V5 if code != 0 => return Err(words::refused(code, reason_string(rest).as_deref())),
            MqttVersion::V5 => {}
        }
        if rest.is_empty() {
            return Ok(plain);
        }
        let Ok(v5::Packet::ConnAck(ack)) = v5::Packet::read(&mut packet.clone(), None) else {
            return Err(not_mqtt("a CONNACK that cannot be read"));
        };
        let Some(properties) = ack.properties else { return Ok(plain) };
        if properties.max_qos == Some(0) {
            return Err(words::no_acknowledgements());
        }
        Ok(Accepted {
            receive_max: properties.receive_max.unwrap_or(RECEIVE_MAX),
            max_packet: properties.max_packet_size.unwrap_or(NO_LIMIT),
            retain: properties.retain_available != Some(0),
            // 0 means that the broker wants no pings; ours do no harm.
            keep_alive: properties
                .server_keep_alive
                .filter(|secs| *secs > 0)
                .map(|secs| Duration::from_secs(secs.into())),
        })
    }

    fn message(&self, mut packet: BytesMut) -> Result<Came, Failure> {
        let unreadable = || not_mqtt("a message that cannot be read");
        match self.version {
            MqttVersion::V311 => match v4::Packet::read(&mut packet, usize::MAX) {
                Ok(v4::Packet::Publish(p)) => Ok(Came::Message {
                    topic: p.topic,
                    payload: p.payload,
                    retained: p.retain,
                    acknowledge: (p.qos == QoS::AtLeastOnce).then_some(p.pkid),
                }),
                _ => Err(unreadable()),
            },
            MqttVersion::V5 => match v5::Packet::read(&mut packet, None) {
                Ok(v5::Packet::Publish(p)) => Ok(Came::Message {
                    topic: String::from_utf8_lossy(&p.topic).into_owned(),
                    payload: p.payload,
                    retained: p.retain,
                    acknowledge: (p.qos == QoS5::AtLeastOnce).then_some(p.pkid),
                }),
                _ => Err(unreadable()),
            },
        }
    }

    fn granted(&self, body: &[u8]) -> Result<Vec<bool>, Failure> {
        let mut codes = body.get(2..).ok_or_else(|| not_mqtt("a SUBACK without a packet id"))?;
        if self.version == MqttVersion::V5 {
            let (head, length) = variable(codes).ok_or_else(|| not_mqtt("a SUBACK without properties"))?;
            codes = codes.get(head + length..).unwrap_or_default();
        }
        Ok(codes.iter().map(|code| *code <= 2).collect())
    }
}

/// Bytes of the fixed header and of what follows; none while it has not come in whole.
fn fixed_header(inbox: &[u8]) -> Result<Option<(usize, usize)>, Failure> {
    let Some(rest) = inbox.get(1..) else { return Ok(None) };
    match variable(rest) {
        Some((head, length)) => Ok(Some((1 + head, length))),
        None if rest.len() >= 4 => Err(not_mqtt("a length of more than four bytes")),
        None => Ok(None),
    }
}

/// A variable byte integer: its own bytes, and its value.
fn variable(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (nth, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * nth);
        if byte & 0x80 == 0 {
            return Some((nth + 1, value));
        }
    }
    None
}

fn two(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}

/// A message that is not taken: its topic and packet id are read, and the rest is left to be passed over.
fn too_large(inbox: &mut BytesMut, kind: u8, head: usize, length: usize) -> Option<Came> {
    let name = usize::from(two(inbox.get(head..)?)?);
    let topic = inbox.get(head + 2..head + 2 + name)?;
    let topic = String::from_utf8_lossy(topic).into_owned();
    let id_at = head + 2 + name;
    let acknowledge = match kind >> 1 & 3 {
        1 => Some(two(inbox.get(id_at..)?)?),
        _ => None,
    };
    inbox.advance(head);
    Some(Came::TooLarge { topic, bytes: length, acknowledge })
}

fn acknowledged(body: &[u8]) -> Result<LinkEvent, Failure> {
    let pkid = two(body).ok_or_else(|| not_mqtt("a PUBACK without a packet id"))?;
    let verdict = match body.get(2).copied().unwrap_or_default() {
        0 => Verdict::Accepted,
        0x10 => Verdict::NoSubscribers,
        0x95 => {
            let text = format!("the broker refused a message: {}", words::reason(0x95, None));
            return Err(Failure { cause: Cause::TooLarge, text });
        }
        code => {
            Verdict::Failed(words::reason(code, reason_string(body.get(3..).unwrap_or_default()).as_deref()))
        }
    };
    Ok(LinkEvent::Acknowledged(pkid, verdict))
}

/// The reason string among properties (type 0x1F), where it can be reached past other strings and numbers.
fn reason_string(bytes: &[u8]) -> Option<String> {
    let (head, length) = variable(bytes)?;
    let mut rest = bytes.get(head..head + length)?;
    while let Some((kind, after)) = rest.split_first() {
        let text = |bytes: &[u8]| -> Option<usize> { Some(2 + usize::from(two(bytes)?)) };
        let skip = match kind {
            0x1F => return after.get(2..text(after)?).map(|told| String::from_utf8_lossy(told).into_owned()),
            0x24 | 0x25 | 0x28..=0x2A => 1,
            0x13 | 0x21 | 0x22 => 2,
            0x11 | 0x27 => 4,
            0x12 | 0x15 | 0x16 | 0x1A | 0x1C => text(after)?,
            0x26 => {
                let name = text(after)?;
                name + text(after.get(name..)?)?
            }
            _ => return None,
        };
        rest = after.get(skip..)?;
    }
    None
}
