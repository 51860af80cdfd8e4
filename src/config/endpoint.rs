//! `host:port` as people spell it, and which spellings mean one place. Asks no name server: what the hosts file says is
//! handed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A host by one of its names, or by its address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Host {
    Address(IpAddr),
    /// Lower case, without a dot at the end.
    Name(String),
}

/// Splits at the colon before a port, not at those within `[::1]`.
pub(super) fn split_port(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once(':').filter(|(_, port)| !port.contains(']'))
}

/// Host and port; the error says what is expected, and what was probably meant.
pub(super) fn host_and_port(text: &str) -> Result<(Host, u16), (String, String)> {
    parse(text).map_err(|better| {
        // A scheme before it, a path behind it, another sign between.
        let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
        let bare = bare.trim_end_matches('/').replace([',', ' '], ":");
        let better = better.or_else(|| parse(&bare).is_ok().then_some(bare));
        let hint = match better {
            Some(better) => format!("did you mean \"{better}\"?"),
            None if host(text).is_ok() => format!("add the port, e.g. \"{text}:502\""),
            None => "e.g. address = \"10.0.0.5:502\"".to_owned(),
        };
        (format!("{text:?} is not host:port"), hint)
    })
}

/// The error is a better spelling, where there is one.
fn parse(text: &str) -> Result<(Host, u16), Option<String>> {
    let (host, port) = split_port(text).ok_or(None)?;
    let number = port_number(port).ok_or(None)?;
    match host_in_brackets(host) {
        Ok(host) => Ok((host, number)),
        Err(better) => Err(better.map(|better| format!("{better}:{port}"))),
    }
}

/// 1 to 65535.
pub(super) fn port_number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}

pub(super) fn host_in_brackets(text: &str) -> Result<Host, Option<String>> {
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().map(|v6| Host::Address(v6.into())).map_err(|_| None),
        None => host(text),
    }
}

/// A name or an IPv4 address; the error is a better spelling, where there is one.
fn host(text: &str) -> Result<Host, Option<String>> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    if let Ok(address) = bare.parse::<Ipv4Addr>() {
        return Ok(Host::Address(address.into()));
    }
    // The system's resolver reads `010.0.0.5` in octal, and `10.5` as 10.0.0.5.
    if bare.rsplit('.').next().is_some_and(is_number) {
        let numbers: Option<Vec<u8>> = bare.split('.').map(|part| part.parse().ok()).collect();
        let plain = numbers.and_then(|numbers| <[u8; 4]>::try_from(numbers).ok()).map(Ipv4Addr::from);
        return Err(plain.map(|address| address.to_string()));
    }
    let fits = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    if bare.split('.').all(fits) { Ok(Host::Name(bare.to_ascii_lowercase())) } else { Err(None) }
}

/// What a resolver takes for a number: no top-level domain is one.
fn is_number(label: &str) -> bool {
    let hex = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
    match hex {
        Some(hex) => hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

/// Which addresses this machine knows names of.
#[derive(Debug, Default)]
pub(super) struct Hosts(BTreeMap<String, BTreeSet<IpAddr>>);

impl Hosts {
    /// Reads a text in the format of hosts(5).
    pub(super) fn parse(text: &str) -> Hosts {
        let mut hosts = BTreeMap::<String, BTreeSet<IpAddr>>::new();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
            for name in words {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                hosts.entry(name).or_default().insert(same_for_all(address));
            }
        }
        Hosts(hosts)
    }

    /// Every way of naming a host that is known to be the same: two hosts with one in common are one.
    pub(super) fn known_as(&self, host: Host) -> Vec<Host> {
        match host {
            Host::Address(address) => vec![Host::Address(same_for_all(address))],
            Host::Name(name) => {
                let loopback = name == "localhost" || name.ends_with(".localhost"); // RFC 6761, 6.3
                let listed = self.0.get(&name).into_iter().flatten().copied();
                let addresses = listed.chain(loopback.then_some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
                let mut all: Vec<Host> = addresses.map(Host::Address).collect();
                all.push(Host::Name(name));
                all
            }
        }
    }
}

/// One address for what reaches one place: IPv4 in IPv6, and this machine by its several loopback addresses.
fn same_for_all(address: IpAddr) -> IpAddr {
    let address = address.to_canonical();
    if address.is_unspecified() || address == IpAddr::V6(Ipv6Addr::LOCALHOST) {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_ports() {
        for good in ["10.0.0.5:502", "plc-7.local:5020", "[::1]:502", "plc.:502", "a_b:05020", "4a:1"] {
            assert!(host_and_port(good).is_ok(), "{good}");
        }
        for bad in [
            "10.0.0.5",
            ":502",
            "a:0",
            "a:70000",
            "a:+5",
            "::1:502",
            "tcp://a:502",
            "a b:502",
            "a..b:1",
            ".:1",
            "1.2.3:1",
            "0x7f000001:1",
            "10.0.0.256:1",
            "１０.0.0.5:502",
            "10.0.0.5:５０２",
            "10.0.0.5：502",
            "表:502",
            "[1.2.3.4]:1",
            "[::1:5",
        ] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_near_miss_gets_what_was_meant() {
        for (seen, hint) in [
            ("192.168.001.010:502", "\"192.168.1.10:502\""),
            ("10.0.0.5", "\"10.0.0.5:502\""),
            ("plc", "\"plc:502\""),
            ("10.0.5:502", "e.g."),
            ("tcp://10.0.0.5:502", "\"10.0.0.5:502\""),
            ("10.0.0.5:502/", "\"10.0.0.5:502\""),
            ("10.0.0.5,502", "\"10.0.0.5:502\""),
        ] {
            let (_, given) = host_and_port(seen).unwrap_err();
            assert!(given.contains(hint), "{seen}: {given}");
        }
    }

    #[test]
    fn spellings_of_one_place_meet_and_others_do_not() {
        let hosts = Hosts::parse(
            "# a comment\n127.0.0.1 localhost\n::1 ip6-localhost\n10.0.0.5\tPLC-7.site plc # the one\nnonsense x\n10.0.0.6 other\n",
        );
        let one = |a: &str, b: &str| {
            let known = |text| hosts.known_as(host_and_port(&format!("{text}:1")).unwrap().0);
            known(a).iter().any(|way| known(b).contains(way))
        };
        for (a, b) in [
            ("127.0.0.1", "localhost"),
            ("127.0.0.1", "LocalHost."),
            ("[::1]", "[0:0:0:0:0:0:0:1]"),
            ("[::1]", "localhost"),
            ("[::1]", "ip6-localhost"),
            ("[::ffff:10.0.0.5]", "10.0.0.5"),
            ("[::ffff:a00:5]", "plc"),
            ("0.0.0.0", "[::]"),
            ("plc", "plc-7.SITE."),
            ("plc", "10.0.0.5"),
            ("meter.example", "METER.example"),
            ("[FE80::1]", "[fe80:0::1]"),
            ("x.localhost", "127.0.0.1"),
        ] {
            assert!(one(a, b), "{a} and {b}");
        }
        for (a, b) in [
            ("plc", "other"),
            ("127.0.0.1", "127.0.0.2"),
            ("a.example", "b.example"),
            ("10.0.0.5", "10.0.0.6"),
        ] {
            assert!(!one(a, b), "{a} and {b}");
        }
    }
}
