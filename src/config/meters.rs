//! `[[meter]]` and the rows of the meters file: each by itself, then against the buses and each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use super::{Link, Meter, buses, fault::did_you_mean, section::Section, site::MAX_INTERVAL_SECS};
use crate::{
    model::{BusId, Dec, MeterId},
    profile::{Protocol, SharedProfile},
    protocol::{Address, Wire},
};

pub(super) const KEYS: [&str; 20] = [
    "id",
    "bus",
    "protocol",
    "address",
    "profile",
    "serial",
    "ct_ratio",
    "pt_ratio",
    "parent",
    "building",
    "unit",
    "room",
    "interval_secs",
    "timeout_ms",
    "retries",
    "max_per_hour",
    "off_schedule_secs",
    "baud",
    "parity",
    "stop_bits",
];
/// Keys that every meter has.
pub(super) const NEEDED: [&str; 4] = ["id", "bus", "address", "profile"];

/// Farther than an hour from its slot a reading says nothing of a boundary.
const OFF_SCHEDULE_SECS: std::ops::RangeInclusive<i64> = 1..=3600;

/// Meters of one gateway: ten times what it was measured with (`docs/performance.md`).
pub(super) const MAX_METERS: usize = 10_000;

/// What meters refer to.
pub(super) struct Context<'a> {
    pub buses: &'a [buses::Found<'a>],
    pub profiles: &'a BTreeMap<String, SharedProfile>,
    /// Profiles whose own file is at fault: naming them is no second mistake.
    pub broken_profiles: &'a BTreeSet<String>,
    /// `[reading] interval_secs`
    pub interval_secs: u32,
}

/// A meter as far as it could be understood.
struct Found<'a> {
    section: Section<'a>,
    id: Option<MeterId>,
    bus: Option<&'a buses::Found<'a>>,
    address: Option<Address>,
    parent: Option<MeterId>,
    meter: Option<Meter>,
}

/// The meters that are whole; every fault of theirs is noted.
pub(super) fn meters<'a>(sections: Vec<Section<'a>>, context: &Context<'a>) -> Vec<Meter> {
    let found: Vec<Found> = sections.into_iter().map(|section| understand(section, context)).collect();
    unique_ids(&found);
    unique_addresses(&found);
    start_bytes(&found);
    same_serials(&found);
    parents(&found);
    found.into_iter().filter_map(|found| found.meter).collect()
}

fn understand<'a>(section: Section<'a>, context: &Context<'a>) -> Found<'a> {
    for (key, hint) in NEEDED.into_iter().zip([
        "a name that stays when the device is exchanged, e.g. E-0101",
        "the id of the [[bus]] that it is on",
        "its Modbus unit id, e.g. 1, or the 12 digits of a DL/T 645 meter",
        "its type; `meter-gateway profile list` shows them",
    ]) {
        section.require(key, hint);
    }
    let id: Option<MeterId> = section.parsed("id").filter(|id: &MeterId| section.is_name("id", id.as_str()));
    if let Some(id) = &id {
        section.doubt("id", id.as_str());
    }
    let bus = bus(&section, context.buses);
    let link = bus.and_then(|bus| bus.link.as_ref());
    let profile = profile(&section, context);
    let protocol = protocol(&section, profile.as_ref());
    let address = address(&section, protocol, link);
    let wire = wire(&section, link, profile.as_ref());
    let ct_ratio = section.decimal("ct_ratio").unwrap_or(Dec::ONE);
    let pt_ratio = section.decimal("pt_ratio").unwrap_or(Dec::ONE);
    let multiplier = ct_ratio.times(pt_ratio);
    if multiplier.is_none() {
        section.fault("ct_ratio", format!("{ct_ratio} × {pt_ratio} has more than 28 digits"), None);
    }
    let parent: Option<MeterId> = section.parsed("parent");
    let serial = serial(&section, profile.as_ref());
    let label = |key| section.label(key).map(str::to_owned);
    let (building, unit_name, room) = (label("building"), label("unit"), label("room"));
    let interval_secs =
        section.integer("interval_secs", 0..=MAX_INTERVAL_SECS, " seconds").unwrap_or(context.interval_secs);
    let timeout = section
        .integer::<u32>("timeout_ms", buses::TIMEOUT_MS, " ms")
        .map(|ms| Duration::from_millis(u64::from(ms)));
    let retries = section.integer("retries", buses::RETRIES, "");
    let max_per_hour = section.decimal("max_per_hour");
    let off_schedule_secs = section.integer("off_schedule_secs", OFF_SCHEDULE_SECS, " seconds");
    let whole = (id.clone(), bus.and_then(|bus| bus.id.clone()), address, profile, multiplier);
    let meter = match whole {
        (Some(id), Some(bus), Some(address), Some(profile), Some(multiplier)) => Some(Meter {
            id,
            bus,
            address,
            wire,
            profile,
            serial,
            multiplier,
            ct_ratio,
            pt_ratio,
            parent: parent.clone(),
            building,
            unit_name,
            room,
            interval_secs,
            timeout,
            retries,
            max_per_hour,
            off_schedule_secs,
        }),
        _ => None,
    };
    Found { section, id, bus, address, parent, meter }
}

/// The language of a meter: what it says, else what its profile says. `None` where neither is known.
fn protocol(section: &Section, profile: Option<&SharedProfile>) -> Option<&'static str> {
    const LATER: [&str; 3] = ["dlt645-1997", "cjt188", "mbus"];
    let of_profile = profile.map(|profile| profile.protocol.name());
    let expected = || {
        let names = of_profile.map_or(Protocol::NAMES.to_vec(), |name| vec![name]);
        format!("expected {}", names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(" or "))
    };
    let Some(text) = section.text("protocol") else { return of_profile };
    let known = Protocol::NAMES.into_iter().find(|name| *name == text);
    match (known, of_profile) {
        (Some(known), None) => return Some(known),
        (Some(known), Some(own)) if known == own => {}
        (Some(known), Some(own)) => section.fault(
            "protocol",
            format!("{known}, but the profile is of a meter that speaks {own}"),
            Some("leave it out, or choose a profile of that protocol".into()),
        ),
        (None, _) if LATER.contains(&text) => section.fault(
            "protocol",
            format!("{text} is not in this version, {}", expected()),
            Some("leave this meter out until it is, or read it through a Modbus converter".into()),
        ),
        (None, _) => section.fault(
            "protocol",
            format!("{text:?}, {}", expected()),
            did_you_mean(text, Protocol::NAMES)
                .or_else(|| Some("leave it out: the profile's is used".into())),
        ),
    }
    of_profile
}

/// Where the meter answers. Without a protocol the text itself tells: no unit id has twelve characters.
fn address(section: &Section, protocol: Option<&str>, link: Option<&Link>) -> Option<Address> {
    let twelve = || section.text_or_number("address").is_some_and(|text| text.chars().count() == 12);
    match protocol {
        Some(name) if name == Protocol::Dlt645.name() => dlt645_address(section, link),
        None if twelve() => dlt645_address(section, link),
        _ => unit(section, link).map(Address::Modbus),
    }
}

fn dlt645_address(section: &Section, link: Option<&Link>) -> Option<Address> {
    if let Some(Link::Tcp { .. }) = link {
        let hint = "a transparent serial server is framing = \"serial\" of its [[bus]]";
        section.fault("bus", "DL/T 645 is not spoken over Modbus TCP", Some(hint.into()));
    }
    let found = section.parsed_number(
        "address",
        |text| text.parse().ok(),
        "is not a DL/T 645 address: expected 12 digits, AA in place of a pair that may be any, not 999999999999",
        "as printed on the meter, in quotes, with zeros in front: e.g. \"000010604867\"",
    );
    found.map(Address::Dlt645)
}

/// The meter's own line settings, where they differ from those of its line.
fn wire(section: &Section, link: Option<&Link>, profile: Option<&SharedProfile>) -> Option<Wire> {
    const KEYS: [&str; 3] = ["baud", "parity", "stop_bits"];
    let given = KEYS.into_iter().filter(|key| section.has(key));
    let Some(Link::Serial { wire: of_line, .. }) = link else {
        for key in given.filter(|_| link.is_some()) {
            let message = "only a serial device of this machine can be set up anew for one meter";
            section.fault(key, message, Some("leave it out; a serial server is set up at the server".into()));
        }
        return None;
    };
    if given.count() > 0 {
        return Some(buses::wire(section, *of_line)).filter(|wire| wire != of_line);
    }
    if let Some(factory) = profile.and_then(|profile| profile.line).filter(|factory| factory != of_line) {
        let parity = format!("{:?}", factory.parity).to_lowercase();
        let hint = format!("if this one still does: baud = {}, parity = {parity:?}", factory.baud);
        section.warn(
            "profile",
            format!("meters of this type leave the factory with {factory}, the bus has {of_line}"),
            Some(hint),
        );
    }
    None
}

/// 68H begins each frame of DL/T 645: to a meter with that unit id such a frame is its own, but for the CRC.
fn start_bytes(found: &[Found]) {
    let lines: BTreeSet<usize> = found
        .iter()
        .filter(|meter| matches!(meter.address, Some(Address::Dlt645(_))))
        .filter_map(|meter| Some(meter.bus?.line))
        .collect();
    for meter in found.iter().filter(|meter| meter.address == Some(Address::Modbus(0x68))) {
        if meter.bus.is_some_and(|bus| lines.contains(&bus.line)) {
            let message =
                "unit 104 (68H) is the byte with which the frames of the DL/T 645 meters on this line begin";
            let hint = "give the meter another unit id: one may take the other's frame for its own";
            meter.section.warn("address", message, Some(hint.into()));
        }
    }
}

fn bus<'a>(section: &Section, buses: &'a [buses::Found<'a>]) -> Option<&'a buses::Found<'a>> {
    let name = section.text("bus")?;
    let ids = || buses.iter().filter_map(|bus| bus.id.as_ref()).map(BusId::as_str);
    let found = buses.iter().find(|bus| bus.id.as_ref().is_some_and(|id| id.as_str() == name));
    if found.is_none() {
        let hint = did_you_mean(name, ids()).unwrap_or_else(|| match ids().collect::<Vec<_>>() {
            ids if ids.is_empty() => "there is no [[bus]] with a valid id yet: add one".into(),
            ids => format!("the buses are: {}", ids.join(", ")),
        });
        section.fault("bus", format!("there is no bus {name:?}"), Some(hint));
    }
    found
}

/// Unit ids: 1 to 247 on a serial line (Modbus over Serial Line V1.02, 2.2); a TCP peer may want 0 or 255.
fn unit(section: &Section, link: Option<&Link>) -> Option<u8> {
    let serial = matches!(link, Some(Link::Serial { .. } | Link::SerialOverTcp { .. }));
    let range = if serial { 1..=247 } else { 0..=255 };
    let (low, high) = (range.start(), range.end());
    let kind = if serial { "a serial line" } else { "a Modbus TCP bus" };
    section.parsed_number(
        "address",
        |text| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|unit| digits && range.contains(unit))
        },
        &format!("is not a Modbus unit id: expected {low} to {high} on {kind}"),
        "the unit id is set at the meter, often in its menu",
    )
}

/// A serial number that the meter can never tell would make every reading bad.
fn serial(section: &Section, profile: Option<&SharedProfile>) -> Option<String> {
    let text = section.text("serial")?;
    match profile.and_then(|profile| profile.serial.as_ref()) {
        Some(point) if !point.can_tell(text) => {
            let digits: String =
                text.split(".0").next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
            let hint = if digits != text && point.can_tell(&digits) {
                format!("did you mean `{digits}`?")
            } else {
                "as the meter tells it, or leave it out".into()
            };
            let message = format!("{text:?} can never be what the meter tells, expected {}", point.range());
            section.fault("serial", message, Some(hint));
            None
        }
        Some(_) => Some(text.to_owned()),
        None => {
            section.doubt("serial", text);
            Some(text.to_owned())
        }
    }
}

fn profile(section: &Section, context: &Context) -> Option<SharedProfile> {
    let name = section.text("profile")?;
    let found = context.profiles.get(name).cloned();
    if found.is_none() && !context.broken_profiles.contains(name) {
        let hint = did_you_mean(name, context.profiles.keys().map(String::as_str))
            .unwrap_or_else(|| "`meter-gateway profile list` shows them".into());
        section.fault("profile", format!("there is no profile {name:?}"), Some(hint));
    }
    found
}

fn unique_ids(found: &[Found]) {
    let mut seen: BTreeMap<&MeterId, String> = BTreeMap::new();
    for meter in found {
        let Some(id) = &meter.id else { continue };
        if let Some(first) = seen.get(id) {
            let message = format!("the meter id {id} is already that of {first}");
            meter.section.fault("id", message, Some("give each meter an id of its own".into()));
        } else {
            seen.insert(id, meter.section.whereabouts());
        }
    }
}

/// One address on one line is one device, by however many buses the line is named.
fn unique_addresses(found: &[Found]) {
    // A wildcard may be somebody else as well, so each is compared with each; others are looked up.
    let mut seen: BTreeMap<(usize, Address), &Found> = BTreeMap::new();
    let mut wild: Vec<(usize, Address, &Found)> = Vec::new();
    for meter in found {
        let (Some(bus), Some(address)) = (meter.bus, meter.address) else { continue };
        let is_wild = matches!(address, Address::Dlt645(address) if address.is_wildcard());
        let same = seen.get(&(bus.line, address)).copied();
        let first = same.or_else(|| {
            let known =
                seen.iter().filter(|_| is_wild).map(|((line, address), meter)| (*line, *address, *meter));
            let mut all = known.chain(wild.iter().copied());
            all.find(|(line, other, _)| *line == bus.line && address.overlaps(*other))
                .map(|(_, _, meter)| meter)
        });
        if is_wild {
            wild.push((bus.line, address, meter));
        }
        let Some(first) = first else {
            seen.insert((bus.line, address), meter);
            continue;
        };
        let unit = address.plain();
        let there = first.section.whereabouts();
        let name = |bus: &buses::Found| bus.id.as_ref().map(ToString::to_string).unwrap_or_default();
        let (here, first_bus) = (name(bus), first.bus.map(name).unwrap_or_default());
        let (message, hint) = if here == first_bus {
            (
                format!("address {unit} on bus {here} is already that of {there}"),
                "two meters with one address answer at once: change one at the meter and here",
            )
        } else {
            (
                format!(
                    "address {unit} on bus {here} is already that of {there} on bus {first_bus}, which is the same line: one meter would be read and billed twice"
                ),
                "remove one of the two, and put the meters of one line on one bus",
            )
        };
        meter.section.fault("address", message, Some(hint.into()));
    }
}

/// Two makers may count alike; within one type a number that stands there twice is a slip, or one device in two rows.
fn same_serials(found: &[Found]) {
    let mut seen: BTreeMap<(&str, &str), &Found> = BTreeMap::new();
    for here in found {
        let Some((serial, profile)) =
            here.meter.as_ref().and_then(|meter| Some((meter.serial.as_deref()?, meter.profile.id.as_str())))
        else {
            continue;
        };
        if let Some(first) = seen.get(&(serial, profile)) {
            let message = format!("serial number {serial} is that of {} too", first.section.whereabouts());
            here.section.warn("serial", message, Some("is one device there twice?".into()));
        } else {
            seen.insert((serial, profile), here);
        }
    }
}

/// Every parent exists, and no meter is behind itself.
fn parents(found: &[Found]) {
    let known: BTreeSet<&MeterId> = found.iter().filter_map(|other| other.id.as_ref()).collect();
    let mut parent_of: BTreeMap<&MeterId, &MeterId> = BTreeMap::new();
    for meter in found {
        let Some(parent) = &meter.parent else { continue };
        if !known.contains(parent) {
            let hint = did_you_mean(parent.as_str(), known.iter().map(|id| id.as_str()))
                .unwrap_or_else(|| "name the id of the main meter, or leave parent out".into());
            meter.section.fault("parent", format!("there is no meter {parent}"), Some(hint));
        } else if let Some(id) = &meter.id {
            parent_of.entry(id).or_insert(parent);
        }
    }
    // Each meter is passed once: a chain ends where one begins that was followed already.
    let mut followed: BTreeSet<&MeterId> = BTreeSet::new();
    for meter in found {
        let Some(start) = &meter.id else { continue };
        let mut chain = Vec::new();
        let mut at = Some(start);
        while let Some(id) = at.filter(|id| followed.insert(id)) {
            chain.push(id);
            at = parent_of.get(id).copied();
        }
        let Some(begin) = at.and_then(|met| chain.iter().position(|id| *id == met)) else { continue };
        let mut around: Vec<&str> = chain.iter().skip(begin).map(|id| id.as_str()).collect();
        around.extend(at.map(MeterId::as_str));
        let there = found.iter().find(|meter| meter.id.as_ref() == at).unwrap_or(meter);
        there.section.fault(
            "parent",
            format!("these meters are behind each other: {}", around.join(" → ")),
            Some("the main meter of a building has no parent".into()),
        );
    }
}

/// `E-0101.toml` → `E-0101`: a profile is named as its file.
pub(super) fn stem(file: &str) -> Option<String> {
    Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned())
}
