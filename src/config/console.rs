//! `[console]`: where the API listens, how it may be addressed, and from where it acts.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Actions, Console, section::Section};

pub(super) const KEYS: [&str; 3] = ["listen", "hosts", "actions"];
/// Names in `hosts`: those of a reverse proxy and of the machine, in each domain.
const MAX_HOSTS: usize = 32;
/// Bytes of a host name (RFC 1035, 2.3.4).
const MAX_HOST_BYTES: usize = 253;

pub(super) fn console(root: &Section) -> Option<Console> {
    let section = root.table("console", &KEYS, None)?;
    section.require("listen", "e.g. listen = \"127.0.0.1:8420\", or leave [console] out");
    let words = [("all", Actions::All), ("socket", Actions::Socket)];
    let actions = section.one_of("actions", &words).unwrap_or(Actions::All);
    let hosts = hosts(&section);
    Some(Console { listen: listen(&section)?, hosts, actions })
}

fn listen(section: &Section) -> Option<SocketAddr> {
    let text = section.text("listen")?;
    let named = text.strip_prefix("localhost:").map(|port| format!("{}:{port}", Ipv4Addr::LOCALHOST));
    let Ok(address) = named.as_deref().unwrap_or(text).parse::<SocketAddr>() else {
        section.fault(
            "listen",
            format!("{text:?} is not an address and a port"),
            Some("e.g. listen = \"127.0.0.1:8420\"".into()),
        );
        return None;
    };
    if !address.ip().is_loopback() {
        section.fault(
            "listen",
            format!("{address} can be reached from outside, which needs users and TLS: not in this version"),
            Some(format!(
                "listen = \"127.0.0.1:{}\", behind a reverse proxy or an SSH tunnel",
                address.port()
            )),
        );
        return None;
    }
    Some(address)
}

/// Lower-case names without a port.
fn hosts(section: &Section) -> Vec<String> {
    let mut names = section.texts("hosts");
    if names.len() > MAX_HOSTS {
        section.fault("hosts", format!("{} names, expected at most {MAX_HOSTS}", names.len()), None);
    }
    for name in &mut names {
        if !is_host(name) {
            let hint =
                "names or addresses alone, e.g. hosts = [\"meters.example\"]: no scheme, port or wildcard";
            section.fault("hosts", format!("{name:?} is not the name of a host"), Some(hint.into()));
        }
        *name = name.trim_end_matches('.').to_ascii_lowercase();
    }
    names
}

fn is_host(name: &str) -> bool {
    let fits = |label: &str| {
        !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    name.parse::<IpAddr>().is_ok()
        || name.len() <= MAX_HOST_BYTES && name.strip_suffix('.').unwrap_or(name).split('.').all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_hosts() {
        for good in ["meters.example", "Meters.Example.", "nas", "gw_1.local", "10.0.0.5", "fe80::1"] {
            assert!(is_host(good), "{good}");
        }
        for bad in ["", ".", "*", "*.example", "http://a", "a:80", "a/b", "a b", "[::1]", "名"] {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
