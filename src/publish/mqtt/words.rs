//! What a broker's codes mean, in words, with what may be done about them.

use super::super::link::{Cause, Failure, Offer};
use crate::config::MqttVersion;

fn said(text: impl Into<String>) -> Failure {
    Failure { cause: Cause::Said, text: text.into() }
}

fn no_connack(text: String) -> Failure {
    Failure { cause: Cause::NoConnack, text }
}

/// TCP or TLS took too long.
pub(super) fn no_connection(offer: &Offer) -> Failure {
    said(format!("{} port {} does not answer", offer.host, offer.port))
}

/// No CONNACK came in time.
pub(super) fn no_answer(version: MqttVersion) -> Failure {
    said(format!("no CONNACK from the broker{}", old_broker(version)))
}

/// The broker closed the connection.
pub(super) fn closed(version: MqttVersion, connected: bool, leaving: bool) -> Failure {
    match (connected, leaving) {
        (_, true) => said("disconnected"),
        (true, false) => Failure::from("the broker closed the connection without a word"),
        (false, false) => {
            no_connack(format!("the broker closed the connection before its CONNACK{}", old_broker(version)))
        }
    }
}

/// The connection broke.
pub(super) fn broken(error: &std::io::Error, version: MqttVersion, connected: bool) -> Failure {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return said(super::super::tls_words::alert(tls));
    }
    if connected {
        return Failure::from(format!("the connection to the broker broke: {error}").as_str());
    }
    no_connack(format!(
        "the connection to the broker broke before its CONNACK: {error}{}",
        old_broker(version)
    ))
}

fn old_broker(version: MqttVersion) -> &'static str {
    match version {
        MqttVersion::V5 => {
            "\n  hint: a broker without MQTT 5 may do so (try mqtt.version = \"3.1.1\"), and a TLS port (mqtts:// in mqtt.url); look at the broker's log"
        }
        MqttVersion::V311 => {
            "\n  hint: is it a TLS port? Then mqtts:// in mqtt.url; else look at the broker's log"
        }
    }
}

/// CONNACK with a return code of MQTT 3.1.1.
pub(super) fn refused_v311(code: u8, asked: MqttVersion) -> Failure {
    let (what, hint) = match code {
        1 if asked == MqttVersion::V5 => ("it does not speak MQTT 5", "set mqtt.version = \"3.1.1\""),
        1 => ("it does not speak MQTT 3.1.1", "set mqtt.version = \"5\""),
        2 => (
            "client id not accepted",
            "is mqtt.client_id allowed there? Brokers with a limit below our keep-alive of 20 s say the same (max_keepalive of Mosquitto)",
        ),
        3 => ("service not available", "look at the broker's log"),
        4 => ("bad user name or password", "see mqtt.username and mqtt.password_file"),
        5 => ("not authorized", "see mqtt.username and mqtt.password_file, and the broker's access list"),
        _ => ("", "look at the broker's log"),
    };
    let what = if what.is_empty() { format!("code {code}") } else { format!("{what} (code {code})") };
    said(format!("the broker refused the connection: {what}\n  hint: {hint}"))
}

/// CONNACK with a reason code of MQTT 5.
pub(super) fn refused(code: u8, told: Option<&str>) -> Failure {
    let hint = match code {
        0x84 => "\n  hint: it does not speak MQTT 5; set mqtt.version = \"3.1.1\"",
        0x85 => "\n  hint: is mqtt.client_id allowed there?",
        0x86 => "\n  hint: see mqtt.username and mqtt.password_file",
        0x87 => "\n  hint: see mqtt.username and mqtt.password_file, and the broker's access list",
        0x9B => "\n  hint: it must allow QoS 1, or it cannot acknowledge records",
        _ => "",
    };
    let cause = if code == 0x9A { Cause::NoRetain } else { Cause::Said };
    Failure { cause, text: format!("the broker refused the connection: {}{hint}", reason(code, told)) }
}

/// DISCONNECT of MQTT 5.
pub(super) fn disconnected(code: u8, told: Option<&str>) -> Failure {
    let cause = match code {
        0x8E => Cause::TakenOver,
        0x95 => Cause::TooLarge,
        0x9A => Cause::NoRetain,
        _ => Cause::Said,
    };
    let hint = match code {
        0x8E => "\n  hint: another client uses this client id; give each gateway its own mqtt.client_id",
        0x87 => "\n  hint: see the broker's access list",
        0x9B => "\n  hint: it must allow QoS 1, or it cannot acknowledge records",
        _ => "",
    };
    Failure { cause, text: format!("the broker ended the connection: {}{hint}", reason(code, told)) }
}

/// A broker that cannot acknowledge.
pub(super) fn no_acknowledgements() -> Failure {
    said(
        "the broker takes messages with QoS 0 only and cannot acknowledge records; they are kept\n  hint: it must allow QoS 1",
    )
}

/// A reason code of MQTT 5 (OASIS MQTT 5.0, table 2-6), with the broker's own words.
pub(super) fn reason(code: u8, told: Option<&str>) -> String {
    let name = match code {
        0x00 => "normal disconnection",
        0x04 => "disconnection with will",
        0x10 => "no matching subscribers",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x84 => "unsupported protocol version",
        0x85 => "client id not valid",
        0x86 => "bad user name or password",
        0x87 => "not authorized",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8A => "banned",
        0x8B => "server shutting down",
        0x8C => "bad authentication method",
        0x8D => "keep alive timeout",
        0x8E => "session taken over",
        0x8F => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet id in use",
        0x92 => "packet id not found",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9A => "retain not supported",
        0x9B => "QoS not supported",
        0x9C => "use another server",
        0x9D => "server moved",
        0x9E => "shared subscriptions not supported",
        0x9F => "connection rate exceeded",
        0xA0 => "maximum connect time",
        0xA1 => "subscription identifiers not supported",
        0xA2 => "wildcard subscriptions not supported",
        _ => "unknown reason",
    };
    match told {
        Some(told) if !told.is_empty() => {
            let told: String = told.chars().filter(|c| !c.is_control()).take(200).collect();
            format!("{name} (0x{code:02X}): {told}")
        }
        _ => format!("{name} (0x{code:02X})"),
    }
}
