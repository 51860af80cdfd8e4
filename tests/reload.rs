//! A new configuration while the daemon runs: what is said to be in force is in force, and is what the chain says.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/mosquitto.rs"]
mod mosquitto;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use consumer::Consumer;
use gateway::Gateway;
use mosquitto::Mosquitto;
use rustix::process::Signal;
use serde_json::Value;

/// A meter behind a port that nobody listens on: each slot is a `missing` record.
const METER: &str = "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:1\"\n\
    [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n";

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn console(port: u16) -> String {
    format!("[console]\nlisten = \"127.0.0.1:{port}\"\n{METER}")
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).is_ok_and(|_| said.starts_with("HTTP/1.1 200"))
}

fn warnings(status: &Value, code: &str) -> Vec<String> {
    let warnings = status["warnings"].as_array().unwrap().iter();
    warnings.filter(|w| w["code"] == code).map(|w| w["text"].as_str().unwrap().to_owned()).collect()
}

/// `before` and `after` of each configuration on record.
fn on_record(gateway: &Gateway) -> Vec<(Value, Value)> {
    let exported = gateway.cli(&["ledger", "export"]);
    String::from_utf8(exported.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record["change"] == "configuration")
        .map(|record| (record["before"].clone(), record["after"].clone()))
        .collect()
}

/// Sends SIGHUP and waits for the line that says what came of it.
fn reload(gateway: &Gateway, line: &str) -> String {
    let before = gateway.log().len();
    gateway.signal(Signal::HUP);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let log = gateway.log().split_off(before);
        if let Some(said) = log.lines().find(|said| said.contains(line)) {
            return said.to_owned();
        }
        assert!(Instant::now() < deadline, "no {line:?}\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const TAKEN_OVER: &str = "the new configuration is in force";
const REFUSED: &str = "the new configuration is refused, the old one stays in force";

#[tokio::test(flavor = "multi_thread")]
async fn a_new_broker_and_new_topics_are_used_from_the_reload_on() {
    let (old, new) = (Mosquitto::open(), Mosquitto::open());
    let mut at_old = Consumer::start(old.port, "metering/v1/#", None).await;
    let mut gateway = Gateway::configured(old.port, 1, METER);
    gateway.start();
    gateway.until("the old broker", |status| status["store"]["acknowledged_seq"].as_u64() > Some(2));
    let first = gateway.get("/api/v1/status")["configuration"].clone();
    let mut at_new = Consumer::start(new.port, "#", None).await;

    gateway.configure(new.port, 1, &format!("topic_prefix = \"elsewhere\"\n{METER}"));
    reload(&gateway, TAKEN_OVER);
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 3 {
        let message =
            tokio::time::timeout(consumer::PATIENCE, at_new.messages.recv()).await.unwrap().unwrap();
        let topic = message.topic.strip_prefix("elsewhere/riverside/gw-01/").expect("the new topics");
        seen.insert(topic.split('/').next().unwrap().to_owned());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["inventory", "records", "status"]);
    while at_old.next_json("status").await["state"] != "offline" {}

    let status = gateway.until("acknowledged by the new one", |status| {
        status["publisher"]["connected"] == true && status["store"]["acknowledged_seq"].as_u64() > Some(5)
    });
    assert_ne!(status["configuration"], first);
    assert_eq!(on_record(&gateway), [(first, status["configuration"].clone())]);
}

#[test]
fn a_reload_that_takes_a_restart_is_refused_as_a_whole_and_says_which_keys() {
    let (port, other) = (free_port(), free_port());
    let mut gateway = Gateway::configured(1, 1, &console(port));
    gateway.start();
    let first = gateway.get("/api/v1/status")["configuration"].clone();

    gateway.configure(1, 1, &console(other).replace("E-1", "E-2"));
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    let text =
        text.replace("\"riverside\"", "\"lakeside\"").replace("data_dir = \"data\"", "data_dir = \"other\"");
    std::fs::write(gateway.config(), text).unwrap();
    let line = reload(&gateway, REFUSED);
    let dir = gateway.dir.path().display().to_string();
    for named in ["site.id: riverside → lakeside", &format!("gateway.data_dir: {dir}/data → {dir}/other")]
    {
        assert!(line.contains(named), "{line}");
    }
    let status = gateway.get("/api/v1/status");
    assert_eq!((&status["site"], &status["configuration"]), (&"riverside".into(), &first));
    let warned = warnings(&status, "configuration_refused");
    assert!(warned.len() == 1 && warned[0].contains("site.id: riverside → lakeside"), "{warned:?}");
    assert_eq!(gateway.get("/api/v1/meters")[0]["id"], "E-1", "nothing of it was taken over");
    assert!(answers(port) && !answers(other));

    // The old text again: what is on disk is in force.
    gateway.configure(1, 1, &console(port));
    reload(&gateway, "the configuration has not changed");
    let status = gateway.get("/api/v1/status");
    assert_eq!(warnings(&status, "configuration_refused"), Vec::<String>::new());
    assert_eq!(on_record(&gateway), [], "nothing was taken over");
}

#[test]
fn a_faulty_reload_is_one_line_in_the_log_and_a_warning_until_a_good_one() {
    let mut gateway = Gateway::configured(1, 1, METER);
    gateway.start();
    gateway.configure(1, 1, &format!("colour = \"blue\"\nversion = \"6\"\n{METER}"));
    let line = reload(&gateway, REFUSED);
    assert!(line.contains("mqtt.colour") && line.contains("mqtt.version"), "{line}");
    let naming = gateway.log().lines().filter(|line| line.contains("mqtt.colour")).count();
    assert_eq!(naming, 1, "{}", gateway.log());
    let warned = warnings(&gateway.get("/api/v1/status"), "configuration_refused");
    assert!(warned[0].contains("mqtt.colour"), "{warned:?}");

    gateway.configure(1, 1, &METER.replace("E-1", "E-2"));
    reload(&gateway, TAKEN_OVER);
    assert_eq!(gateway.get("/api/v1/status")["warnings"].as_array().unwrap().len(), 0);
}

#[test]
fn reloads_over_and_over_change_nothing_and_leave_no_record() {
    let mut gateway = Gateway::configured(1, 1, METER);
    gateway.start();
    for _ in 0..200 {
        gateway.signal(Signal::HUP);
    }
    reload(&gateway, "the configuration has not changed");
    let stored = gateway.stored();
    gateway.until("readings go on", |status| status["store"]["last_seq"].as_u64() > Some(stored + 2));
    assert_eq!(on_record(&gateway), []);

    // Changed each time while the broker is away (a port that nobody listens on).
    let begun = Instant::now();
    for interval in [2, 3, 4, 1] {
        gateway.configure(free_port(), interval, METER);
        reload(&gateway, TAKEN_OVER);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "a broker that is away holds up no reload");
    let status = gateway.get("/api/v1/status");
    let told = on_record(&gateway);
    assert_eq!((told.len(), &told[3].1), (4, &status["configuration"]));
    assert!(told.windows(2).all(|pair| pair[0].1 == pair[1].0), "{told:?}");
}

#[test]
fn a_port_that_is_taken_is_a_warning_and_is_used_when_it_is_free() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut gateway = Gateway::configured(1, 1, &console(port));
    gateway.start();
    let status = gateway.until("readings", |status| status["store"]["last_seq"].as_u64() > Some(2));
    let warned = warnings(&status, "console_unavailable");
    assert!(warned.len() == 1 && warned[0].contains(&format!("127.0.0.1:{port}")), "{warned:?}");
    drop(taken);
    gateway.until("the port", |status| warnings(status, "console_unavailable").is_empty());
    assert!(answers(port));
    let said = gateway.log().lines().filter(|line| line.contains("another program listens")).count();
    assert_eq!(said, 1, "once, not at each attempt\n{}", gateway.log());

    // Another one by a reload, which is taken as well; then none at all.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    gateway.configure(1, 1, &console(taken.local_addr().unwrap().port()));
    reload(&gateway, TAKEN_OVER);
    assert!(!answers(port), "the old port is left");
    assert_eq!(warnings(&gateway.get("/api/v1/status"), "console_unavailable").len(), 1);
    gateway.configure(1, 1, METER);
    reload(&gateway, TAKEN_OVER);
    assert!(warnings(&gateway.get("/api/v1/status"), "console_unavailable").is_empty());
}

#[test]
fn a_socket_that_cannot_be_made_stops_no_reading() {
    let mut gateway = Gateway::configured(1, 1, METER);
    std::fs::create_dir_all(gateway.socket()).unwrap(); // a directory where the socket should be
    gateway.spawn();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !gateway.log().contains("meter-gateway.sock: ") {
        assert!(Instant::now() < deadline, "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::remove_dir(gateway.socket()).unwrap();
    while gateway.try_get("/api/v1/status").is_none() {
        assert!(Instant::now() < deadline, "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.until("the socket", |status| warnings(status, "socket_unavailable").is_empty());
}
