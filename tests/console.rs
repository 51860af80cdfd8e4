//! The API at its port, asked by those who should not: a foreign page in a browser on this machine.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/gateway.rs"]
mod gateway;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use gateway::Gateway;
use rustix::process::Signal;
use serde_json::Value;

/// The configuration of a console at this port, and of a line with a dead meter.
fn configuration(port: u16, line: SocketAddr, more: &str) -> String {
    format!(
        "[console]\nlisten = \"127.0.0.1:{port}\"\n{more}\
         [[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"{line}\"\n\
         [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n"
    )
}

/// Accepts and says nothing.
fn dead_line() -> SocketAddr {
    let line = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = line.local_addr().unwrap();
    std::thread::spawn(move || line.incoming().collect::<Vec<_>>());
    address
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status and body of a request with these headers.
fn send(stream: &mut (impl Read + Write), request: &str, headers: &[&str], body: &str) -> (u16, String) {
    let headers = headers.iter().fold(String::new(), |all, header| all + header + "\r\n");
    let (json, length) = ("content-type: application/json", body.len());
    let head = format!(
        "{request} HTTP/1.1\r\n{headers}{json}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    let status = said.split(' ').nth(1).unwrap().parse().unwrap();
    (status, said.split_once("\r\n\r\n").unwrap().1.to_owned())
}

fn at_port(port: u16, request: &str, headers: &[&str], body: &str) -> (u16, String) {
    send(&mut TcpStream::connect(("127.0.0.1", port)).unwrap(), request, headers, body)
}

fn actions(gateway: &Gateway) -> Vec<Value> {
    let exported = gateway.cli(&["ledger", "export"]);
    String::from_utf8(exported.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record["change"] == "user_action")
        .collect()
}

#[test]
fn a_foreign_page_neither_acts_nor_reads_and_leaves_no_record() {
    let (port, line) = (free_port(), dead_line());
    let mut gateway = Gateway::configured(1, 1, &configuration(port, line, ""));
    gateway.start();
    let own = format!("host: localhost:{port}");
    let read = r#"{"meter": "E-1", "by": "the owner"}"#;
    let evil = [
        ("POST /api/v1/read", vec!["host: evil.example:8420"]),
        ("POST /api/v1/ledger/replay", vec!["host: evil.example:8420"]),
        ("POST /api/v1/read", vec![&own, "origin: http://evil.example"]),
        ("POST /api/v1/read", vec![&own, "origin: http://localhost:3000", "sec-fetch-site: same-site"]),
        ("POST /api/v1/read", vec![&own, "sec-fetch-site: cross-site"]),
        ("POST /api/v1/read", vec![&own, "origin: null"]),
        ("GET /api/v1/status", vec!["host: evil.example:8420"]),
        ("GET /api/v1/readings", vec!["host: evil.example"]),
        ("GET /metrics", vec!["host: evil.example"]),
        ("GET /nowhere", vec!["host: evil.example"]),
    ];
    for (request, headers) in evil {
        let (status, said) = at_port(port, request, &headers, read);
        assert_eq!(status, 403, "{request} {headers:?}: {said}");
        assert!(serde_json::from_str::<Value>(&said).unwrap()["error"].is_string());
    }
    for (request, host) in [
        ("GET /api/v1/status", own.clone()),
        ("GET /api/v1/status", format!("host: 127.0.0.1:{port}")),
        ("GET /api/v1/status", "host: [::1]:9000".to_owned()), // through an SSH tunnel with another port
        ("GET /metrics", "host: 192.168.7.7:8420".to_owned()),
        ("GET /healthz", "host: 192.168.7.7:8420".to_owned()),
    ] {
        assert_eq!(at_port(port, request, &[&host], "").0, 200, "{request} {host}");
    }
    assert_eq!(actions(&gateway), Vec::<Value>::new());

    // Our own page, and a script.
    let origin = format!("origin: http://localhost:{port}");
    assert_eq!(
        at_port(port, "POST /api/v1/read", &[&own, &origin, "sec-fetch-site: same-origin"], read).0,
        200
    );
    assert_eq!(at_port(port, "POST /api/v1/read", &[&own], r#"{"meter": "E-1"}"#).0, 200);
    let told = actions(&gateway);
    assert_eq!(
        (&told[0]["by"], &told[0]["claimed"], &told[0]["via"]),
        (&"the owner".into(), &true.into(), &"http".into())
    );
    assert!(told[0]["address"].as_str().unwrap().starts_with("127.0.0.1:"), "what vouches stands beside it");
    assert_eq!((&told[1]["by"], &told[1]["claimed"]), (&told[1]["address"], &Value::Null));
}

#[test]
fn what_acts_can_be_confined_to_the_socket_and_a_proxy_has_its_name() {
    let (port, line) = (free_port(), dead_line());
    let mut gateway = Gateway::configured(1, 1, &configuration(port, line, ""));
    gateway.start();
    let (read, name) = (r#"{"meter": "E-1"}"#, ["host: meters.example"]);
    assert_eq!(at_port(port, "GET /api/v1/status", &name, "").0, 403);

    gateway.configure(
        1,
        1,
        &configuration(port, line, "hosts = [\"meters.example\"]\nactions = \"socket\"\n"),
    );
    let before = gateway.get("/api/v1/status")["configuration"].clone();
    gateway.signal(Signal::HUP);
    gateway.until("reloaded", |status| status["configuration"] != before);
    assert_eq!(at_port(port, "GET /api/v1/status", &name, "").0, 200);
    let (status, said) = at_port(port, "POST /api/v1/read", &name, read);
    assert!(status == 403 && said.contains("console.actions"), "{status} {said}");
    assert_eq!(actions(&gateway), Vec::<Value>::new());

    let socket = || std::os::unix::net::UnixStream::connect(gateway.socket()).unwrap();
    assert_eq!(send(&mut socket(), "POST /api/v1/read", &["host: daemon"], read).0, 200);
    let (status, _) =
        send(&mut socket(), "POST /api/v1/read", &["host: daemon", "origin: http://evil.example"], read);
    assert_eq!(status, 403, "through a proxy to the socket");

    // A refusal waits for the whole request: over unread bytes the connection would be reset, and the answer lost.
    let mut early = socket();
    let head = "POST /api/v1/read HTTP/1.1\r\nhost: daemon\r\norigin: http://evil.example\r\n\
                content-length: 1\r\nconnection: close\r\n\r\n";
    early.write_all(head.as_bytes()).unwrap();
    early.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(early.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "answered too early");
    early.write_all(b"0").unwrap();
    early.set_read_timeout(None).unwrap();
    let mut said = String::new();
    early.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    assert_eq!(actions(&gateway).len(), 1);
}
