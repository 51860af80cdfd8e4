//! `[[bus]]`: lines, and what two of them may not share. Does not look whether a device exists.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Bus, Link,
    endpoint::{Host, Hosts, host_and_port},
    section::Section,
};
use crate::{
    model::BusId,
    protocol::{Parity, Wire},
};

const KEYS: [&str; 10] =
    ["id", "kind", "device", "baud", "parity", "stop_bits", "timeout_ms", "retries", "address", "framing"];
/// How long an answer may take, in ms: shorter is less than a frame at 9600 baud, longer starves the line.
pub(super) const TIMEOUT_MS: std::ops::RangeInclusive<i64> = 10..=10_000;
/// Repetitions in one sweep: each costs a whole timeout.
pub(super) const RETRIES: std::ops::RangeInclusive<i64> = 0..=5;
/// Of a serial line: meters answer within 200 ms, plus USB latency.
const SERIAL_TIMEOUT_MS: u32 = 300;
/// Of a network peer: a converter may keep the question waiting behind another.
const TCP_TIMEOUT_MS: u32 = 1000;
/// One repetition covers a single disturbed frame.
const DEFAULT_RETRIES: u8 = 1;
/// Bits per second: what UARTs and meters in use can do.
const BAUD: std::ops::RangeInclusive<i64> = 300..=921_600;
/// What most meters leave the factory with.
const DEFAULT_WIRE: Wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };

/// Each is a task, a descriptor and a line of the status; a machine has no more adapters.
const MAX_BUSES: usize = 1000;
/// Symbolic links from a name under `/dev` to its device: udev makes one, the kernel follows 40.
const MAX_LINKS: usize = 40;

/// A bus as far as it could be understood.
pub(super) struct Found<'a> {
    pub section: Section<'a>,
    pub id: Option<BusId>,
    pub link: Option<Link>,
    pub bus: Option<Bus>,
    /// Position of the first bus on the same line, its own if there is none before it.
    pub line: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Serial,
    Tcp,
}

#[derive(Clone, Copy, PartialEq)]
enum Framing {
    Tcp,
    Serial,
}

/// Every `[[bus]]`, faulty ones included, so that what refers to them can be checked.
pub(super) fn buses<'a>(root: &Section<'a>, base: &Path, hosts: &Hosts) -> Vec<Found<'a>> {
    let mut found: Vec<Found> =
        root.list("bus", &KEYS, MAX_BUSES).into_iter().map(|section| understand(section, base)).collect();
    unique_ids(&found);
    same_lines(&mut found, hosts);
    found
}

fn understand<'a>(section: Section<'a>, base: &Path) -> Found<'a> {
    section.require("id", "e.g. id = \"north\"");
    section.require("kind", "kind = \"serial\" with a device, or kind = \"tcp\" with an address");
    let id: Option<BusId> = section.parsed("id").filter(|id: &BusId| section.is_name("id", id.as_str()));
    let kind = section.one_of("kind", &[("serial", Kind::Serial), ("tcp", Kind::Tcp)]);
    let framing = section.one_of("framing", &[("tcp", Framing::Tcp), ("serial", Framing::Serial)]);
    let wire = wire(&section, DEFAULT_WIRE);
    let timeout = section.integer("timeout_ms", TIMEOUT_MS, " ms").map(u64_ms);
    let retries = section.integer("retries", RETRIES, "").unwrap_or(DEFAULT_RETRIES);
    let (link, default_timeout) = match kind {
        Some(Kind::Serial) => (serial(&section, base, wire), SERIAL_TIMEOUT_MS),
        Some(Kind::Tcp) => (tcp(&section, framing.unwrap_or(Framing::Tcp), wire), TCP_TIMEOUT_MS),
        None => (None, SERIAL_TIMEOUT_MS),
    };
    let timeout = timeout.unwrap_or_else(|| u64_ms(default_timeout));
    let bus = id.clone().zip(link.clone()).map(|(id, link)| Bus { id, link, timeout, retries });
    Found { section, id, link, bus, line: 0 }
}

fn u64_ms(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms))
}

/// Line settings; what is not given is as in `usual`.
pub(super) fn wire(section: &Section, usual: Wire) -> Wire {
    let parities = [("none", Parity::None), ("even", Parity::Even), ("odd", Parity::Odd)];
    Wire {
        baud: section.integer("baud", BAUD, " bits per second").unwrap_or(usual.baud),
        parity: section.one_of("parity", &parities).unwrap_or(usual.parity),
        stop_bits: section.integer("stop_bits", 1..=2, "").unwrap_or(usual.stop_bits),
    }
}

fn serial(section: &Section, base: &Path, wire: Wire) -> Option<Link> {
    for key in ["address", "framing"] {
        foreign(section, key, "kind = \"serial\"", "leave it out, or set kind = \"tcp\"");
    }
    section.require("device", "e.g. device = \"/dev/serial/by-id/…\", which stays the same after a restart");
    let device = section.text("device")?;
    if let Some((message, hint)) = no_device(device) {
        section.fault("device", message, Some(hint));
        return None;
    }
    Some(Link::Serial { device: base.join(device), wire })
}

/// Names that no serial device of this system has.
fn no_device(name: &str) -> Option<(String, String)> {
    const LIST: &str = "`ls -l /dev/serial/by-id/` shows the adapters that are plugged in";
    let port = name.to_lowercase();
    let port = port.trim_start_matches(['\\', '.', '/']).trim_end_matches(':');
    if port
        .strip_prefix("com")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    {
        return Some((format!("{name:?} is a name of Windows"), format!("e.g. /dev/ttyUSB0; {LIST}")));
    }
    if name.contains(['*', '?', '[']) {
        return Some((format!("{name:?} is a pattern, expected the path of one device"), LIST.into()));
    }
    if !name.contains('/') && ["tty", "cu.", "rfcomm", "usb-"].iter().any(|start| name.starts_with(start)) {
        let dir = if name.starts_with("usb-") { "/dev/serial/by-id" } else { "/dev" };
        return Some((format!("{name:?} is not a path"), format!("did you mean `{dir}/{name}`?")));
    }
    Path::new(name).is_dir().then(|| (format!("{name:?} is a directory"), LIST.into()))
}

fn tcp(section: &Section, framing: Framing, wire: Wire) -> Option<Link> {
    foreign(section, "device", "kind = \"tcp\"", "leave it out, or set kind = \"serial\"");
    section.require("address", "e.g. address = \"10.0.0.5:502\"");
    if framing == Framing::Tcp {
        for key in ["baud", "parity", "stop_bits"] {
            foreign(
                section,
                key,
                "framing = \"tcp\"",
                "leave it out; a transparent serial server is framing = \"serial\"",
            );
        }
    } else if !section.has("baud") {
        for key in ["parity", "stop_bits"] {
            foreign(
                section,
                key,
                "framing = \"serial\" without baud",
                "add the line's baud, or leave it out",
            );
        }
    }
    let address = section.text("address")?;
    if let Err((message, hint)) = host_and_port(address) {
        section.fault("address", message, Some(hint));
        return None;
    }
    let address = address.to_owned();
    Some(match framing {
        Framing::Tcp => Link::Tcp { address },
        Framing::Serial => Link::SerialOverTcp { address, wire: section.has("baud").then_some(wire) },
    })
}

fn foreign(section: &Section, key: &str, with: &str, hint: &str) {
    if section.has(key) {
        section.fault(key, format!("means nothing with {with}"), Some(hint.to_owned()));
    }
}

fn unique_ids(found: &[Found]) {
    let mut seen: BTreeMap<&BusId, String> = BTreeMap::new();
    for bus in found {
        let Some(id) = &bus.id else { continue };
        if let Some(first) = seen.get(id) {
            let message = format!("the bus id {id} is already that of {first}");
            bus.section.fault("id", message, Some("give each bus an id of its own".into()));
        } else {
            seen.insert(id, bus.section.whereabouts());
        }
    }
}

/// What two spellings of one line have in common.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum LineKey {
    /// The number of a device that is there.
    Device(u64),
    /// The path of one that is not.
    Path(PathBuf),
    Peer(Host, u16),
}

/// Finds lines that stand there twice. A serial line has one master, and so has a transparent serial server; a Modbus
/// TCP peer may take several, which is worth a warning.
fn same_lines(found: &mut [Found], hosts: &Hosts) {
    let mut first_with: BTreeMap<LineKey, usize> = BTreeMap::new();
    for at in 0..found.len() {
        let Some(bus) = found.get(at) else { break };
        let keys = bus.link.as_ref().map(|link| line_keys(link, hosts)).unwrap_or_default();
        let line = keys.iter().find_map(|key| first_with.get(key)).copied().unwrap_or(at);
        for key in keys {
            first_with.entry(key).or_insert(line);
        }
        if let Some(first) = found.get(line).filter(|_| line < at) {
            shared(bus, first);
        }
        if let Some(bus) = found.get_mut(at) {
            bus.line = line;
        }
    }
}

fn line_keys(link: &Link, hosts: &Hosts) -> Vec<LineKey> {
    match link {
        // Two names of one adapter (by-id and ttyUSB0) have one number, if it is plugged in.
        Link::Serial { device, .. } => match fs::metadata(device) {
            Ok(about) if about.file_type().is_char_device() => vec![LineKey::Device(about.rdev())],
            _ => vec![LineKey::Path(followed(device))],
        },
        Link::Tcp { address } | Link::SerialOverTcp { address, .. } => match host_and_port(address) {
            Ok((host, port)) => {
                hosts.known_as(host).into_iter().map(|host| LineKey::Peer(host, port)).collect()
            }
            Err(_) => Vec::new(),
        },
    }
}

/// Where a path leads, as far as it does: what it names in the end need not be there.
fn followed(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let parent = path.parent().unwrap_or(Path::new("/"));
        match fs::read_link(&path) {
            Ok(target) => path = parent.join(target),
            Err(_) => break,
        }
    }
    let there = path.parent().zip(path.file_name());
    there.and_then(|(parent, name)| Some(parent.canonicalize().ok()?.join(name))).unwrap_or(path)
}

fn shared(bus: &Found, first: &Found) {
    let name_of = |bus: &Found| match &bus.link {
        Some(Link::Serial { device, .. }) => ("device", device.display().to_string()),
        Some(Link::Tcp { address } | Link::SerialOverTcp { address, .. }) => ("address", address.clone()),
        None => ("id", String::new()),
    };
    let (key, name) = name_of(bus);
    let (_, before) = name_of(first);
    let place = first.section.whereabouts();
    let same = if name == before {
        format!("{name} is the {key} of {place} too")
    } else {
        format!("{name} is the {key} {before} of {place} by another name")
    };
    let several = |bus: &Found| matches!(bus.link, Some(Link::Tcp { .. }));
    if several(bus) && several(first) {
        bus.section.warn(
            key,
            format!("{same}: many converters take one connection"),
            Some("put the meters behind one address on one bus".into()),
        );
    } else {
        bus.section.fault(
            key,
            format!("{same}: two masters would disturb each other"),
            Some("put the meters of one line on one bus".into()),
        );
    }
}
