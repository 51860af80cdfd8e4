//! Which requests are served: what a foreign page in somebody's browser sends is refused, what people and scripts send is not.
//!
//! A page of another site can make a browser on this machine send requests to a loopback port. With a form or `fetch` the browser
//! says so (`Origin`, `Sec-Fetch-Site`). With a name of the page's own that it lets point to 127.0.0.1 (DNS rebinding) the
//! browser takes both for one site, and `Host` is that name. Knows no route but those of monitoring.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Extension, Request, State},
    http::{HeaderMap, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::Response,
};

use super::{Console, refuse};
use crate::config::Actions;

/// Asked by scrapers and health checks, by whatever address they have, or without a `Host` (HTTP/1.0).
const FOR_MONITORING: [&str; 2] = ["/metrics", "/healthz"];
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// The address of this machine at which a connection came in; `None` on the Unix socket, which no browser reaches.
#[derive(Debug, Clone, Copy)]
pub struct Arrival(pub Option<IpAddr>);

/// Serves a request, or says why not.
pub(super) async fn guard(
    State(console): State<Arc<Console>>,
    Extension(Arrival(local)): Extension<Arrival>,
    request: Request,
    next: Next,
) -> Response {
    let settings = console.telemetry.settings();
    let (hosts, actions) = match &settings.console {
        Some(console) => (console.hosts.as_slice(), console.actions),
        None => (&[][..], Actions::All),
    };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let judged = match local {
        Some(local) => addressed(&request, local, hosts),
        None => Ok(()),
    };
    let judged = judged.and_then(|()| if reads { Ok(()) } else { asked_by_us(request.headers(), hosts) });
    match judged {
        Err(why) => {
            tracing::debug!(why, "a request to the console is refused");
            refuse(StatusCode::FORBIDDEN, why)
        }
        Ok(()) if !reads && local.is_some() && actions == Actions::Socket => refuse(
            StatusCode::FORBIDDEN,
            "console.actions = \"socket\": this is done on the Unix socket alone",
        ),
        Ok(()) => next.run(request).await,
    }
}

/// Whether it was sent to one of our names: loopback's, the address at which it came in, or one of `hosts`.
fn addressed(request: &Request, local: IpAddr, hosts: &[String]) -> Result<(), String> {
    let monitoring = FOR_MONITORING.contains(&request.uri().path());
    let target = request.uri().authority().map(Authority::as_str);
    let host = one(request.headers(), header::HOST.as_str())?;
    if target.or(host).is_none() && !monitoring {
        return Err("the request has no header `Host`".into());
    }
    for name in target.into_iter().chain(host) {
        let ours = split(name).is_some_and(|(name, _)| {
            let own = address(name).map_or_else(
                || is_name(name, "localhost"),
                |address| monitoring || address.is_loopback() || address == local.to_canonical(),
            );
            own || hosts.iter().any(|host| is_name(name, host))
        });
        if !ours {
            return Err(format!(
                "{name:?} is not a name of this gateway; one by which it is to be reached belongs into `hosts` of [console]"
            ));
        }
    }
    Ok(())
}

/// Whether what changes something was asked by a page of ours, or by no page at all.
fn asked_by_us(headers: &HeaderMap, hosts: &[String]) -> Result<(), String> {
    if let Some(site) = one(headers, SEC_FETCH_SITE)?
        && !["same-origin", "none"].contains(&site)
    {
        return Err(format!("a page of another site asks (Sec-Fetch-Site: {site:?})"));
    }
    let host = one(headers, header::HOST.as_str())?;
    match one(headers, header::ORIGIN.as_str())? {
        Some(origin) if !is_ours(origin, host, hosts) => {
            Err(format!("a page of another site asks (Origin: {origin:?})"))
        }
        _ => Ok(()),
    }
}

/// The site that the request was sent to, or a site at one of `hosts`: there a proxy may have changed `Host`.
fn is_ours(origin: &str, host: Option<&str>, hosts: &[String]) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let usual = match scheme {
        "http" => "80",
        "https" => "443",
        _ => return false,
    };
    let Some((name, port)) = split(authority) else { return false };
    let port = port.unwrap_or(usual);
    let sent_to = host
        .and_then(split)
        .is_some_and(|(host, host_port)| is_name(name, host) && port == host_port.unwrap_or(usual));
    sent_to || port == usual && hosts.iter().any(|host| is_name(name, host))
}

/// A header that must not come twice: who sends two wants one of them to be overlooked.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(|value| value.to_str()), values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value)),
        _ => Err(format!("the header `{name}` came twice, or is not text")),
    }
}

/// Name and port; an address of version 6 keeps its brackets. `None` for what is neither.
fn split(authority: &str) -> Option<(&str, Option<&str>)> {
    let end = authority.find(']').map_or(0, |bracket| bracket + 1);
    let (name, port) = match authority.get(end..)?.find(':') {
        Some(colon) => (authority.get(..end + colon)?, Some(authority.get(end + colon + 1..)?)),
        None => (authority, None),
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    (!name.is_empty() && port.is_none_or(is_port)).then_some((name, port))
}

fn address(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let address: IpAddr = bare.unwrap_or(name).parse().ok()?;
    (address.is_ipv6() == bare.is_some()).then(|| address.to_canonical())
}

/// Whether two names are the same host.
fn is_name(name: &str, other: &str) -> bool {
    match (address(name), address(other).or_else(|| other.parse().ok())) {
        (Some(one), Some(other)) => one == other,
        (None, None) => name
            .strip_suffix('.')
            .unwrap_or(name)
            .eq_ignore_ascii_case(other.strip_suffix('.').unwrap_or(other)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn only_our_names_are_answered() {
        let local = "127.0.0.1".parse().unwrap();
        let hosts = ["meters.example".to_owned(), "10.0.0.5".to_owned()];
        let to = |uri: &str, host: &str| addressed(&request(uri, &[("host", host)]), local, &hosts).is_ok();
        for good in [
            "localhost",
            "localhost:8420",
            "LocalHost.:1",
            "127.0.0.1",
            "127.0.0.1:8420",
            "127.9.9.9:1",
            "[::1]:8420",
            "[::1]",
            "[0:0:0:0:0:0:0:1]:80",
            "[::ffff:127.0.0.1]:80",
            "meters.example",
            "METERS.example.:443",
            "10.0.0.5:80",
        ] {
            assert!(to("/api/v1/status", good), "{good}");
        }
        for bad in [
            "evil.example:8420",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "x.localhost",
            "127.1",
            "0x7f000001",
            "2130706433",
            "0.0.0.0",
            "[::]",
            "10.0.0.6",
            "::1",
            "",
            "localhost:",
            "localhost:80:80",
            "localhost:a",
            "meters.example.evil",
            "[::1",
            "[::1]x:80",
            "local\u{a0}host",
        ] {
            assert!(!to("/api/v1/status", bad), "{bad}");
        }
        // A scraper's address may be that of a forwarding machine; a name could be rebound.
        assert!(to("/metrics", "192.168.7.7:8420") && to("/healthz", "[2001:db8::1]"));
        assert!(!to("/metrics", "evil.example:8420"));
        assert!(addressed(&request("/healthz", &[]), local, &[]).is_ok(), "HTTP/1.0");
        assert!(addressed(&request("/api/v1/status", &[]), local, &[]).is_err());
        let twice = request("/healthz", &[("host", "localhost"), ("host", "evil.example")]);
        assert!(addressed(&twice, local, &[]).is_err());
        assert!(!to("http://evil.example/api/v1/status", "localhost"), "the target counts before the header");
        // Its own address, when it listens elsewhere than on loopback.
        let lan = "192.168.7.7".parse().unwrap();
        assert!(addressed(&request("/api/v1/status", &[("host", "192.168.7.7:8420")]), lan, &[]).is_ok());
    }

    #[test]
    fn what_acts_is_asked_by_our_own_pages_or_by_none() {
        let hosts = ["meters.example".to_owned()];
        let asks = |headers: &[(&str, &str)]| {
            let all: Vec<_> =
                [("host", "localhost:8420")].into_iter().chain(headers.iter().copied()).collect();
            asked_by_us(request("/", &all).headers(), &hosts).is_ok()
        };
        assert!(asks(&[]));
        for site in ["same-origin", "none"] {
            assert!(asks(&[("sec-fetch-site", site)]));
        }
        for site in ["cross-site", "same-site", "", "Same-Origin "] {
            assert!(!asks(&[("sec-fetch-site", site)]), "{site}");
        }
        assert!(!asks(&[("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")]));
        for origin in ["http://localhost:8420", "https://meters.example", "http://meters.example:80"] {
            assert!(asks(&[("origin", origin)]), "{origin}");
        }
        for origin in [
            "null",
            "http://evil.example",
            "http://localhost",
            "http://localhost:3000",
            "http://127.0.0.1:8420",
            "localhost:8420",
            "https://meters.example:8443",
            "ftp://localhost:8420",
            "http://localhost:8420.evil.example",
            "file://",
            "",
        ] {
            assert!(!asks(&[("origin", origin)]), "{origin}");
        }
        assert!(!asks(&[("origin", "http://localhost:8420"), ("sec-fetch-site", "same-site")]));
    }
}
