//! The single sections: `[site]`, `[gateway]`, `[reading]`, `[mqtt]`, `[billing]`.
//!
//! Each function notes what is wrong and returns what can stand in for it, so that the rest is still checked.

use std::{
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

use chrono::NaiveTime;
use chrono_tz::Tz;

use super::{
    Billing, Confirm, Gateway, Mqtt, MqttVersion, ReadingRules, Site, Tls,
    credentials::CredentialError,
    endpoint::{host_in_brackets, port_number, split_port},
    rights,
    section::Section,
    timezone::timezone,
};

/// Seconds between slots when nothing is said: a quarter of an hour, the usual settlement period.
const INTERVAL_SECS: u32 = 900;
/// Longest interval: a day, because slots begin again at midnight.
pub(super) const MAX_INTERVAL_SECS: i64 = 86_400;
/// Days kept when nothing is said: three years, so that a bill can be disputed.
const RETENTION_DAYS: u32 = 1100;
/// Fewest and most days that can be asked for: a month for a broker that is away, a century to stop typing slips.
const RETENTION_RANGE: std::ops::RangeInclusive<i64> = 1..=36_500;
const MEGABYTE: u64 = 1_000_000;
/// Megabytes of the disk that records may not take when nothing is said: the index of two segments of 32 MiB, a copy of
/// a torn end, cursors, and the logs of those who come to help.
const RESERVE_MB: u64 = 64;
/// 0 turns the guard off; a terabyte is a typing slip.
const RESERVE_RANGE: std::ops::RangeInclusive<i64> = 0..=1_000_000;
/// Name of the Unix socket in the data directory.
pub const SOCKET: &str = "meter-gateway.sock";
/// Longest path of a Unix socket: `sun_path` has 108 bytes with the zero at its end (unix(7)).
const MAX_SOCKET_BYTES: usize = 107;
/// Longest site and gateway id: they are levels of every topic.
const MAX_ID_CHARS: usize = 32;
/// Longest prefix, so that a topic stays far below MQTT's 65 535 bytes and readable.
const MAX_PREFIX_BYTES: usize = 128;
/// Longest client id, in bytes: what the common brokers accept.
const MAX_CLIENT_ID_BYTES: usize = 128;

const SITE_KEYS: [&str; 3] = ["id", "name", "timezone"];
/// Where the packages and the unit file put it.
pub(super) const DATA_DIR: &str = "/var/lib/meter-gateway";
const GATEWAY_KEYS: [&str; 4] = ["id", "data_dir", "reserve_mb", "mirror_dir"];
const READING_KEYS: [&str; 2] = ["interval_secs", "retention_days"];
const MQTT_KEYS: [&str; 10] = [
    "url",
    "version",
    "topic_prefix",
    "client_id",
    "username",
    "password_file",
    "ca_file",
    "cert_file",
    "key_file",
    "confirm",
];
const BILLING_KEYS: [&str; 3] = ["day", "time", "window_hours"];

/// The paths of all keys of sections.
#[cfg(test)]
pub(crate) fn section_keys() -> std::collections::BTreeSet<String> {
    let sections: [(&str, &[&str]); 6] = [
        ("site", &SITE_KEYS),
        ("gateway", &GATEWAY_KEYS),
        ("reading", &READING_KEYS),
        ("mqtt", &MQTT_KEYS),
        ("billing", &BILLING_KEYS),
        ("console", &super::console::KEYS),
    ];
    sections
        .iter()
        .flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")))
        .collect()
}

pub(super) fn site(root: &Section) -> Site {
    let mut site = Site { id: String::new(), name: String::new(), timezone: Tz::UTC };
    let needed = "add [site] with id and timezone";
    let Some(section) = root.table("site", &SITE_KEYS, Some(needed)) else { return site };
    section.require("id", "a short name for topics, e.g. id = \"riverside\"");
    section.require("timezone", "days and slots are local: e.g. timezone = \"Asia/Shanghai\"");
    site.id = topic_id(&section).unwrap_or_default();
    site.name = section.label("name").map_or_else(|| site.id.clone(), str::to_owned);
    if let Some(zone) = timezone(&section) {
        site.timezone = zone;
    }
    site
}

pub(super) fn gateway(root: &Section, base: &Path) -> Gateway {
    let mut gateway = Gateway {
        id: String::new(),
        data_dir: PathBuf::from(DATA_DIR),
        reserve_bytes: RESERVE_MB * MEGABYTE,
        mirror_dir: None,
    };
    let needed = "add [gateway] with id";
    let Some(section) = root.table("gateway", &GATEWAY_KEYS, Some(needed)) else { return gateway };
    section.require("id", "a short name for topics, e.g. id = \"gw-01\"");
    gateway.id = topic_id(&section).unwrap_or_default();
    if let Some(dir) = section.path("data_dir") {
        gateway.data_dir = base.join(dir);
        let bytes = gateway.data_dir.join(SOCKET).as_os_str().len();
        if bytes > MAX_SOCKET_BYTES {
            let message = format!(
                "too long for the socket in it: {} has {bytes} bytes, the kernel takes {MAX_SOCKET_BYTES}",
                gateway.data_dir.join(SOCKET).display()
            );
            let hint = "a shorter path, e.g. data_dir = \"/var/lib/meter-gateway\"";
            section.fault("data_dir", message, Some(hint.into()));
        }
    }
    rights::private_dir(&section, &gateway.data_dir);
    if let Some(reserve_mb) = section.integer::<u64>("reserve_mb", RESERVE_RANGE, " MB") {
        gateway.reserve_bytes = reserve_mb * MEGABYTE;
    }
    // Whether it is there is not asked here: a card that is not in its slot must not keep meters from being read.
    if let Some(dir) = section.path("mirror_dir").map(|dir| base.join(dir)) {
        let data = &gateway.data_dir;
        if dir.starts_with(data) || data.starts_with(&dir) {
            section.fault(
                "mirror_dir",
                format!("{} and the data directory {} lie in one another", dir.display(), data.display()),
                Some("a directory on another device, e.g. mirror_dir = \"/mnt/sd/meter-gateway\"".into()),
            );
        } else {
            gateway.mirror_dir = Some(dir);
        }
    }
    gateway
}

fn topic_id(section: &Section) -> Option<String> {
    let id = section.text("id")?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if id.len() <= MAX_ID_CHARS && id.chars().all(allowed) {
        return section.is_name("id", id).then(|| id.to_owned());
    }
    let tamed: String =
        id.to_lowercase().chars().map(|c| if allowed(c) { c } else { '-' }).take(MAX_ID_CHARS).collect();
    let hint = tamed.contains(|c| c != '-').then(|| format!("e.g. id = \"{tamed}\""));
    let message = format!("{id:?} is not a valid id: expected 1 to {MAX_ID_CHARS} of a-z 0-9 -");
    section.fault("id", message, hint);
    None
}

pub(super) fn reading(root: &Section) -> ReadingRules {
    let section = root.table("reading", &READING_KEYS, None);
    let section = section.as_ref();
    ReadingRules {
        interval_secs: section
            .and_then(|s| s.integer("interval_secs", 0..=MAX_INTERVAL_SECS, " seconds"))
            .unwrap_or(INTERVAL_SECS),
        retention_days: section
            .and_then(|s| s.integer("retention_days", RETENTION_RANGE, " days"))
            .unwrap_or(RETENTION_DAYS),
    }
}

pub(super) fn billing(root: &Section) -> Billing {
    let mut billing = Billing { day: 1, time: NaiveTime::MIN, window_hours: 72 };
    let Some(section) = root.table("billing", &BILLING_KEYS, None) else { return billing };
    billing.day = section.integer("day", 1..=28, ", a day that every month has").unwrap_or(billing.day);
    billing.window_hours = section.integer("window_hours", 1..=720, " hours").unwrap_or(billing.window_hours);
    if let Some(text) = section.text("time") {
        match NaiveTime::parse_from_str(text, "%H:%M") {
            Ok(time) if text.len() == "00:00".len() => billing.time = time,
            _ => section.fault(
                "time",
                format!("{text:?} is not a time of day"),
                Some("two digits each, e.g. time = \"00:00\"".into()),
            ),
        }
    }
    billing
}

/// `credentials` is systemd's directory of credentials, if it gave us one.
pub(super) fn mqtt(root: &Section, base: &Path, gateway_id: &str, credentials: Option<&Path>) -> Mqtt {
    let mut mqtt = Mqtt {
        host: String::new(),
        port: 0,
        tls: None,
        version: MqttVersion::V5,
        topic_prefix: "metering/v1".into(),
        client_id: gateway_id.to_owned(),
        username: None,
        password_file: None,
        confirm: Confirm::Broker,
    };
    let needed = "add [mqtt] with url, e.g. url = \"mqtt://127.0.0.1:1883\"";
    let Some(section) = root.table("mqtt", &MQTT_KEYS, Some(needed)) else { return mqtt };
    section.require("url", "e.g. url = \"mqtt://127.0.0.1:1883\", or mqtts:// for TLS");
    let mut secure = None;
    if let Some(url) = section.text("url") {
        match broker(url) {
            Ok((tls, host, port)) => {
                (secure, mqtt.host, mqtt.port) = (Some(tls), host, port);
            }
            Err((message, hint)) => section.fault("url", message, Some(hint.to_owned())),
        }
    }
    let versions = [("5", MqttVersion::V5), ("3.1.1", MqttVersion::V311)];
    mqtt.version = section.one_of("version", &versions).unwrap_or(mqtt.version);
    let confirms = [("broker", Confirm::Broker), ("billing", Confirm::Billing)];
    mqtt.confirm = section.one_of("confirm", &confirms).unwrap_or(mqtt.confirm);
    if mqtt.version == MqttVersion::V311 && mqtt.confirm == Confirm::Broker {
        section.warn(
            "version",
            "\"3.1.1\" with confirm = \"broker\": a broker cannot say in this version that it refuses a message, so it may drop \
             records and acknowledge them all the same, and they count as confirmed",
            Some("set confirm = \"billing\" and let billing send receipts, or use version = \"5\"".into()),
        );
    }
    if let Some(prefix) = topic_prefix(&section) {
        mqtt.topic_prefix = prefix;
    }
    if let Some(id) = section.text("client_id") {
        if id.len() > MAX_CLIENT_ID_BYTES {
            let message = format!("{} bytes long, expected at most {MAX_CLIENT_ID_BYTES}", id.len());
            section.fault("client_id", message, None);
        }
        id.clone_into(&mut mqtt.client_id);
    }
    mqtt.username = section.text("username").map(str::to_owned);
    mqtt.password_file =
        section.path("password_file").map(|name| password(&section, base, name, credentials));
    if mqtt.password_file.is_some() && !section.has("username") {
        section.fault("username", "missing: a password_file is given", Some("add username".into()));
    }
    mqtt.tls = tls(&section, base, secure);
    mqtt
}

fn topic_prefix(section: &Section) -> Option<String> {
    let prefix = section.text("topic_prefix")?;
    let (message, hint) = if prefix.contains(['#', '+']) {
        ("holds a wildcard (# or +)", None)
    } else if prefix.starts_with('/') || prefix.ends_with('/') || prefix.contains("//") {
        (
            "has an empty level",
            Some(prefix.split('/').filter(|l| !l.is_empty()).collect::<Vec<_>>().join("/")),
        )
    } else if prefix.starts_with('$') {
        ("begins with $, which brokers keep for themselves", None)
    } else if prefix.len() > MAX_PREFIX_BYTES {
        ("is longer than 128 bytes", None)
    } else {
        return Some(prefix.to_owned());
    };
    let hint = hint.map(|better| format!("e.g. topic_prefix = \"{better}\""));
    section.fault("topic_prefix", format!("{prefix:?} {message}"), hint);
    None
}

/// TLS or not, host, port. Errors never repeat what may be a password.
fn broker(url: &str) -> Result<(bool, String, u16), (String, &'static str)> {
    const EXAMPLE: &str = "e.g. mqtt://127.0.0.1:1883, or mqtts://broker.example for TLS on port 8883";
    if url.contains('@') {
        return Err((
            "a user name or password stands in the url".into(),
            "use username, and put the password into a file named in password_file",
        ));
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err((format!("{url:?} has no scheme, expected mqtt:// or mqtts://"), EXAMPLE));
    };
    let (tls, default) = match scheme.to_ascii_lowercase().as_str() {
        "mqtt" => (false, 1883),
        "mqtts" => (true, 8883),
        _ => return Err((format!("scheme {scheme:?}, expected mqtt:// or mqtts://"), EXAMPLE)),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.parse::<Ipv6Addr>().is_ok() || rest.matches(':').count() > 1 && !rest.starts_with('[') {
        return Err((
            format!("{url:?} has colons that may be an address or a port"),
            "an IPv6 address stands in brackets, e.g. mqtts://[2001:db8::1]:8883",
        ));
    }
    let (host, port) = match split_port(rest) {
        Some((host, port)) => (host, Some(port)),
        None => (rest, None),
    };
    if host_in_brackets(host).is_err() {
        return Err((format!("{url:?} names no host, or more than a host and a port"), EXAMPLE));
    }
    let host = host.trim_matches(['[', ']']);
    match port.map_or(Some(default), port_number) {
        Some(port) => Ok((tls, host.to_owned(), port)),
        _ => Err((format!("{url:?} has no port from 1 to 65535"), EXAMPLE)),
    }
}

/// The password's file: a systemd credential of that name wins over the file itself.
fn password(section: &Section, base: &Path, name: &str, credentials: Option<&Path>) -> PathBuf {
    let file = base.join(name);
    let credential = credentials.zip(file.file_name()).map(|(dir, name)| dir.join(name));
    let credential = credential.filter(|path| path.is_file());
    if credential.is_none() {
        rights::secret(section, "password_file", &file);
    }
    let file = credential.unwrap_or(file);
    if let Err(error) = super::credentials::password(&file) {
        unusable(section, &error);
    }
    file
}

fn unusable(section: &Section, error: &CredentialError) {
    let message = format!("cannot use {}: {}", error.path, error.detail);
    section.fault(error.key, message, Some(error.hint.to_owned()));
}

fn tls(section: &Section, base: &Path, secure: Option<bool>) -> Option<Tls> {
    const KEYS: [&str; 3] = ["ca_file", "cert_file", "key_file"];
    let [ca, cert, key] = KEYS;
    let file = |key: &str| Some(base.join(section.path(key)?));
    let tls = Tls { ca_file: file(ca), cert_file: file(cert), key_file: file(key) };
    if let Some(file) = &tls.key_file {
        rights::secret(section, key, file);
    }
    let faults = super::credentials::tls_files(&tls).err().unwrap_or_default();
    for error in faults.iter().filter(|error| secure == Some(true) || section.has(error.key)) {
        unusable(section, error);
    }
    for (given, other) in [(cert, key), (key, cert)] {
        if section.has(given) && !section.has(other) {
            let hint = format!("mutual TLS needs both: add {other}, or leave {given} out");
            section.fault(given, format!("given without {other}"), Some(hint));
        }
    }
    if secure == Some(false) {
        for key in KEYS.into_iter().filter(|key| section.has(key)) {
            section.fault(
                key,
                "given, but the url is mqtt://, which is not encrypted",
                Some("change the url to mqtts://, or leave the key out".into()),
            );
        }
        return None;
    }
    Some(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_brokers() {
        for (url, expected) in [
            ("mqtt://10.0.0.5", (false, "10.0.0.5", 1883)),
            ("mqtts://broker.example/", (true, "broker.example", 8883)),
            ("MQTT://b:1884", (false, "b", 1884)),
            ("mqtt://[::1]:1885", (false, "::1", 1885)),
            ("mqtts://[fe80::1]", (true, "fe80::1", 8883)),
            ("mqtts://[2001:db8::1]:8884/", (true, "2001:db8::1", 8884)),
            ("mqtts://[::ffff:10.0.0.5]", (true, "::ffff:10.0.0.5", 8883)),
        ] {
            let (tls, host, port) = broker(url).unwrap();
            assert_eq!((tls, host.as_str(), port), expected, "{url}");
        }
        for url in [
            "mqtts://::1",
            "mqtts://2001:db8::1:8883",
            "mqtts://[::1",
            "mqtts://[::1]x",
            "mqtts://[]",
            "mqtt://b:+1883",
        ] {
            assert!(broker(url).is_err(), "{url}");
        }
        for url in ["b:1883", "tcp://b", "mqtt://", "mqtt://b:0", "mqtt://b:x", "mqtt://b/path", "mqtt://a b"]
        {
            assert!(broker(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        for url in ["mqtt://gw:s3cret@b", "gw:s3cret@b", "ftp://gw:s3cret@b:99999"] {
            let (message, hint) = broker(url).unwrap_err();
            assert!(!message.contains("s3cret"), "{message}");
            assert!(hint.contains("password_file"));
        }
    }
}
