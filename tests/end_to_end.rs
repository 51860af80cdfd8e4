//! The binary between real lines and a real broker: what the meters showed is what billing has, whatever dies meanwhile.
//!
//! Meters are simulated in this process, on pseudo-terminals as slow as 9600 baud and on TCP ports.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/mosquitto.rs"]
mod mosquitto;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::TcpListener,
    time::Duration,
};

use chrono::TimeDelta;
use consumer::{Accounts, Consumer};
use gateway::Gateway;
use meter_gateway::{
    config,
    model::{Dec, Medium, Origin, Reading, Utc, Verdict},
    profile::bytes_of,
    protocol::hex,
    sim::{Fault, Shown, SimClock, SimMeter, SimSite},
};
use mosquitto::Mosquitto;
use serde_json::{Value, json};

/// One type of each kind: one and three phases, water, heat; integers, BCD and floats.
const TYPES: [&str; 10] = [
    "eastron-sdm630",
    "eastron-sdm120",
    "chint-dtsu666",
    "chint-ddsu666",
    "acrel-dtsd1352",
    "bove-ultrasonic-water",
    "xintai-water",
    "itron-cf",
    "diehl-sharky-775",
    "abb-b23",
];

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A serial bus at 9600 baud; the simulation puts its pseudo-terminal there.
fn serial(text: &mut String, id: &str, gateway: &Gateway) {
    let device = gateway.path(id);
    writeln!(
        text,
        "[[bus]]\nid = \"{id}\"\nkind = \"serial\"\ndevice = \"{}\"\nbaud = 9600",
        device.display()
    )
    .unwrap();
}

fn tcp(text: &mut String, id: &str, framing: &str) {
    let port = free_port();
    writeln!(
        text,
        "[[bus]]\nid = \"{id}\"\nkind = \"tcp\"\naddress = \"127.0.0.1:{port}\"\nframing = \"{framing}\""
    )
    .unwrap();
}

fn meter(text: &mut String, id: &str, bus: &str, unit: usize, profile: &str) {
    writeln!(
        text,
        "[[meter]]\nid = \"{id}\"\nbus = \"{bus}\"\naddress = \"{unit}\"\nprofile = \"{profile}\""
    )
    .unwrap();
}

/// The meters of the gateway's configuration, ready to answer.
fn site(gateway: &Gateway) -> SimSite {
    let settings = config::load(&gateway.config(), []).unwrap_or_else(|faults| panic!("{faults:?}"));
    SimSite::from_settings(&settings, 1, &SimClock::default()).unwrap()
}

fn reading(record: &Value) -> Option<Reading> {
    (record["type"] == "reading").then(|| serde_json::from_value(record.clone()).unwrap())
}

/// Panics unless each value of a reading is what this meter showed at that time, word for word and digit for digit.
fn assert_shown(meter: &SimMeter, reading: &Reading) {
    let taken_at = reading.taken_at.unwrap();
    let profile = meter.profile().clone();
    for (name, value) in &reading.values {
        let point = profile.points.iter().find(|point| point.name == *name).unwrap();
        let Some(raw) = &value.raw else { continue };
        // What carries the register dates the reading; the meter's other answers came in the same sweep.
        let main = name.as_str()
            == match reading.medium {
                Medium::Electricity => "energy_import_total",
                Medium::Water | Medium::Gas => "volume_total",
                Medium::Heat => "heat_energy_total",
            };
        let before = if main { TimeDelta::milliseconds(1500) } else { TimeDelta::seconds(5) };
        let after = if main { TimeDelta::zero() } else { TimeDelta::seconds(5) };
        let raw_of = |shown: &Shown| {
            let bytes = bytes_of(&point.cell, &shown.question, &shown.payload);
            (!bytes.is_empty()).then(|| hex(&bytes))
        };
        let near: Vec<_> = meter
            .shown()
            .filter(|shown| (taken_at - before..=taken_at + after).contains(&shown.at))
            .filter_map(|shown| Some((shown.at, raw_of(shown)?, meter.value(name.as_str(), shown.at))))
            .collect();
        let shown = near.iter().find(|(_, hex, display)| {
            hex == raw && value.value.map(Dec::normalized) == display.map(Dec::normalized)
        });
        assert!(shown.is_some(), "{} {name}: {value:?} at {taken_at} is not among {near:?}", reading.meter);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn billing_has_what_the_meters_showed() {
    /// Twice what the line needs, begun an eighth late at most: every reading is near enough to its slot.
    const INTERVAL: u32 = 15;
    let broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, INTERVAL, "");
    let mut rest = String::new();
    serial(&mut rest, "north", &gateway);
    tcp(&mut rest, "plant", "tcp");
    tcp(&mut rest, "shed", "serial");
    for (unit, profile) in (1..).zip(TYPES) {
        meter(&mut rest, &format!("N-{unit}"), "north", unit, profile);
    }
    for (unit, profile) in (1..).zip(&TYPES[..3]) {
        meter(&mut rest, &format!("P-{unit}"), "plant", unit, profile);
        meter(&mut rest, &format!("S-{unit}"), "shed", unit, profile);
    }
    gateway.configure(broker.port, INTERVAL, &rest);
    let mut site = site(&gateway);
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    gateway.start();

    let mut accounts = Accounts::default();
    let wanted = 3 * 16;
    accounts.until(wanted, &mut billing).await;
    let (status, took) = gateway.terminate();
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    let exported = gateway.cli(&["ledger", "export"]);
    let lines: Vec<&[u8]> =
        exported.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    accounts.until(lines.len() as u64, &mut billing).await;
    assert!(
        accounts.records.values().map(Vec::as_slice).eq(lines),
        "what is exported is what was sent, byte for byte"
    );
    let listed = gateway.cli(&["readings", "--format", "jsonl", "--meter", "N-3"]);
    let of_meter = accounts.values().filter(|record| record["meter"] == "N-3").count();
    assert!(of_meter >= 3 && String::from_utf8(listed.stdout).unwrap().lines().count() == of_meter);
    let proof = gateway.cli(&["ledger", "verify"]);
    assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stderr));

    let mut slots: BTreeMap<Utc, BTreeSet<String>> = BTreeMap::new();
    for record in accounts.values() {
        let Some(reading) = reading(&record) else { continue };
        assert_eq!((reading.origin, reading.verdict), (Origin::Measured, Verdict::Good), "{record}");
        assert_eq!(
            reading.scheduled_at.timestamp_millis() % (1000 * i64::from(INTERVAL)),
            0,
            "slots are aligned"
        );
        let late = reading.taken_at.unwrap() - reading.scheduled_at;
        assert!((0..1000 * i64::from(INTERVAL)).contains(&late.num_milliseconds()), "{record}");
        let points = site.with_meter(reading.meter.as_str(), |meter| {
            assert_shown(meter, &reading);
            meter.profile().points.len()
        });
        assert_eq!(Some(reading.values.len()), points, "every point of the profile");
        assert!(
            slots.entry(reading.scheduled_at).or_default().insert(reading.meter.to_string()),
            "one each: {record}"
        );
    }
    assert!(slots.values().rev().skip(1).all(|meters| meters.len() == 16), "{slots:?}");
    let line = site.line("north").unwrap();
    assert_eq!(line.collisions(), 0);
    // 3.5 characters of 10 bits at 9600 baud (MODBUS over serial line V1.02, 2.5.1.1).
    assert!(line.shortest_silence().unwrap() >= Duration::from_micros(3645), "{:?}", line.shortest_silence());
}

/// Modbus RTU at 9600 8N1 and DL/T 645-2007 at 2400 8E1 on one pair of wires: the line is set up anew between them.
#[tokio::test(flavor = "multi_thread")]
async fn one_pair_of_wires_carries_two_protocols_at_two_speeds() {
    const INTERVAL: u32 = 20;
    const TYPE: &str = "dlt645-2007-three-phase";
    let broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, INTERVAL, "");
    let mut rest = String::new();
    serial(&mut rest, "north", &gateway);
    // Both have 1 as their address, each in its own protocol.
    for (id, address, profile) in [
        ("M-1", "1", "eastron-sdm120"),
        ("D-1", "000000000001", TYPE),
        ("M-2", "2", "acrel-dtsd1352"),
        ("D-2", "202107300049", TYPE),
        ("D-3", "181226034194", TYPE),
    ] {
        writeln!(
            rest,
            "[[meter]]\nid = \"{id}\"\nbus = \"north\"\naddress = \"{address}\"\nprofile = \"{profile}\""
        )
        .unwrap();
        if profile == TYPE {
            rest.push_str("baud = 2400\nparity = \"even\"\nserial = \"002241020208\"\n");
        }
    }
    gateway.configure(broker.port, INTERVAL, &rest);
    let mut site = site(&gateway);
    site.with_meter("D-2", |meter| {
        let station = meter.station().unwrap();
        station.set_wake_up(0);
        station.set_most(8); // a block takes two frames more
    });
    site.with_meter("D-3", |meter| {
        let station = meter.station().unwrap();
        station.set_wake_up(13);
        for block in ["0201FF00", "0202FF00"] {
            station.set_data(block.parse().unwrap(), None);
        }
    });
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    gateway.start();

    let mut accounts = Accounts::default();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    while seen.len() < 5 || seen.values().any(|slots| *slots < 2) {
        let known = accounts.last();
        accounts.until(known + 1, &mut billing).await;
        let new: Vec<Value> =
            accounts.values().filter(|record| record["seq"].as_u64().unwrap() > known).collect();
        for record in new {
            let Some(reading) = reading(&record) else { continue };
            assert_eq!((reading.origin, reading.verdict), (Origin::Measured, Verdict::Good), "{record}");
            let points = site.with_meter(reading.meter.as_str(), |meter| {
                assert_shown(meter, &reading);
                meter.profile().points.len()
            });
            assert_eq!(Some(reading.values.len()), points, "every point of the profile");
            assert!(reading.values.values().all(|value| value.value.is_some()), "{record}");
            *seen.entry(reading.meter.to_string()).or_default() += 1;
        }
    }
    let (status, _) = gateway.terminate();
    assert!(status.success());
    assert_eq!(site.line("north").unwrap().collisions(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_every_record_arrives_in_order() {
    let mut broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, 0, "");
    let mut rest = String::new();
    tcp(&mut rest, "plant", "tcp");
    for unit in 1..=4 {
        meter(&mut rest, &format!("E-{unit}"), "plant", unit, "eastron-sdm120");
    }
    gateway.configure(broker.port, 0, &rest);
    let site = site(&gateway);
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    let mut accounts = Accounts::default();
    gateway.start();
    accounts.until(100, &mut billing).await;

    // The broker, while the gateway reads on.
    broker.kill();
    let before = gateway.stored();
    gateway.until("reads on without a broker", |status| {
        status["store"]["last_seq"].as_u64().unwrap() > before + 100
    });
    broker.start();
    accounts.until(before + 100, &mut billing).await;

    // The gateway.
    let before = gateway.stored();
    gateway.kill();
    gateway.start();
    accounts.until(before + 100, &mut billing).await;

    // Both at once.
    let before = gateway.stored();
    gateway.kill();
    broker.kill();
    broker.start();
    gateway.start();
    accounts.until(before + 100, &mut billing).await;

    let (status, took) = gateway.terminate();
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    let exported = gateway.cli(&["ledger", "export"]);
    let lines: Vec<&[u8]> =
        exported.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    accounts.until(lines.len() as u64, &mut billing).await;
    assert!(accounts.records.values().map(Vec::as_slice).eq(lines), "billing has the ledger, byte for byte");
    for reading in accounts.values().filter_map(|record| reading(&record)).filter(|r| r.taken_at.is_some()) {
        site.with_meter(reading.meter.as_str(), |meter| assert_shown(meter, &reading)).unwrap();
    }
    let downtimes = accounts.values().filter(|record| record["change"] == "downtime").count();
    assert_eq!(downtimes, 0, "a moment without interval passes nothing over");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_gets_everything() {
    let broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, 0, "");
    let mut rest = String::new();
    tcp(&mut rest, "plant", "tcp");
    meter(&mut rest, "E-1", "plant", 1, "eastron-sdm120");
    gateway.configure(broker.port, 0, &rest);
    let _site = site(&gateway);
    gateway.start();
    gateway.until("nobody listens", |status| {
        status["publisher"]["nobody_listens"] == true && status["store"]["last_seq"].as_u64().unwrap() > 200
    });
    let status = gateway.get("/api/v1/status");
    assert_eq!(status["store"]["acknowledged_seq"], 0, "nobody has a record yet: {status:#}");

    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    let mut accounts = Accounts::default();
    accounts.until(200, &mut billing).await;
    assert_eq!(*accounts.records.keys().next().unwrap(), 1);
    gateway.until("somebody listens", |status| status["publisher"]["nobody_listens"] == false);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_dead_meters_cost_the_others_nothing() {
    /// 80 % of it go by with one look at each meter, the dead ones included.
    const INTERVAL: u32 = 6;
    let broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, INTERVAL, "");
    let mut rest = String::new();
    serial(&mut rest, "north", &gateway);
    for unit in 1..=30 {
        meter(&mut rest, &format!("W-{unit}"), "north", unit, "itron-cf");
    }
    gateway.configure(broker.port, INTERVAL, &rest);
    let dead = ["W-5", "W-15", "W-25"];
    let site = site(&gateway);
    for id in dead {
        assert!(site.break_meter(id, Fault::Dead));
    }
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    gateway.start();
    let mut accounts = Accounts::default();
    accounts.until(6 * 30, &mut billing).await;

    let mut slots: BTreeMap<Utc, Vec<Reading>> = BTreeMap::new();
    for reading in accounts.values().filter_map(|record| reading(&record)) {
        slots.entry(reading.scheduled_at).or_default().push(reading);
    }
    slots.pop_last(); // still being read
    assert!(slots.len() >= 5);
    let moments: Vec<_> = slots.keys().collect();
    assert!(
        moments.windows(2).all(|pair| *pair[1] - *pair[0] == TimeDelta::seconds(INTERVAL.into())),
        "{moments:?}"
    );
    for (at, readings) in &slots {
        assert_eq!(readings.len(), 30, "{at}");
        for reading in readings {
            if dead.contains(&reading.meter.as_str()) {
                assert_eq!(reading.origin, Origin::Missing, "{reading:?}");
            } else {
                assert_eq!(reading.verdict, Verdict::Good, "{reading:?}");
                let late = reading.taken_at.unwrap() - *at;
                assert!(late < TimeDelta::seconds(INTERVAL.into()), "{reading:?}");
            }
        }
    }
}

#[test]
fn twelve_mistakes_are_told_at_once() {
    let gateway = Gateway::configured(1883, 60, "");
    let text = r#"
[site]
id = "River Side"
name = "x"
timezone = "Asia/Schanghai"
[gateway]
id = "gw-01"
data_dir = "data"
colour = "red"
[reading]
interval_secs = 60
[mqtt]
url = "http://127.0.0.1"
version = "4"
[[bus]]
id = "north"
kind = "serial"
device = "/dev/ttyUSB0"
baud = 12
parity = "some"
[[meter]]
id = "E-1"
bus = "north"
address = "1"
profile = "eastron-sdm63"
[[meter]]
id = "E-1"
bus = "north"
address = "2"
profile = "eastron-sdm630"
[[meter]]
id = "E-2"
bus = "south"
address = "3"
profile = "eastron-sdm630"
[[meter]]
id = "E-3"
bus = "north"
address = "300"
profile = "eastron-sdm630"
[[meter]]
id = "E-4"
bus = "north"
address = "2"
profile = "eastron-sdm630"
"#;
    std::fs::write(gateway.config(), text).unwrap();
    let places = [
        "site.id",
        "site.timezone",
        "gateway.colour",
        "mqtt.url",
        "mqtt.version",
        "baud",
        "parity",
        "meter[1] (E-1).profile",
        "meter[2] (E-1).id",
        "meter[3] (E-2).bus",
        "meter[4] (E-3).address",
        "meter[5] (E-4).address",
    ];
    for command in ["check", "run"] {
        let ended = gateway.cli(&[command]);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(78), "{command}: {said}");
        for place in places {
            assert!(said.contains(place), "{command}: {place} is not named in\n{said}");
        }
        assert!(said.contains(&format!("{} fault(s) found", places.len())), "{said}");
        assert_eq!(said.matches("gateway.toml").count(), places.len(), "each has its file: {said}");
        assert!(said.matches("hint:").count() >= places.len(), "each has a hint: {said}");
    }
    let ended = gateway.cli(&["check", "--json"]);
    let told: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(told["faults"].as_array().unwrap().len(), places.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_answered_once_and_mistakes_change_nothing() {
    let broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, 1, "");
    let mut rest = "confirm = \"billing\"\n".to_owned();
    tcp(&mut rest, "plant", "tcp");
    meter(&mut rest, "E-1", "plant", 1, "eastron-sdm120");
    meter(&mut rest, "E-2", "plant", 2, "eastron-sdm120");
    gateway.configure(broker.port, 1, &rest);
    let site = site(&gateway);
    site.break_meter("E-2", Fault::Dead);
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    gateway.start();
    let mut accounts = Accounts::default();
    accounts.until(4, &mut billing).await;

    billing.say("command", &json!({"id": "a", "name": "read_now", "args": {"meter": "E-1"}})).await;
    let answer = billing.next_json("response").await;
    assert_eq!((&answer["id"], &answer["ok"]), (&json!("a"), &json!(true)), "{answer}");
    let read: Reading = serde_json::from_value(answer["result"].clone()).unwrap();
    site.with_meter("E-1", |meter| assert_shown(meter, &read)).unwrap();

    // The same command again, as a broker may deliver it: the same answer, and nothing is done twice.
    billing.say("command", &json!({"id": "a", "name": "read_now", "args": {"meter": "E-1"}})).await;
    assert_eq!(billing.next_json("response").await, answer);

    for (command, words) in [
        (json!({"id": "b", "name": "open_valve", "args": {}}), "unknown command"),
        (json!({"id": "c", "name": "read_now", "args": {"meter": "E-9"}}), "no meter `E-9`"),
        (
            json!({"id": "d", "name": "read_now", "args": {"meter": "E-1"}, "expires_at": "2026-01-01T00:00:00Z"}),
            "expired",
        ),
        (json!({"id": "e", "name": "replay", "args": {"from": 5, "to": 1_000_000}}), "is kept"),
        (json!({"id": "f"}), "not a valid command"),
    ] {
        billing.say("command", &command).await;
        let answer = billing.next_json("response").await;
        assert_eq!((&answer["id"], &answer["ok"]), (&command["id"], &json!(false)), "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(words), "{answer}");
    }

    billing.say("command", &json!({"id": "g", "name": "replay", "args": {"from": 1, "to": 2}})).await;
    let again = loop {
        let message = billing.next("records").await;
        let before = accounts.duplicates;
        accounts.take(&message);
        if accounts.duplicates > before {
            break accounts.duplicates - before;
        }
    };
    assert_eq!(again, 2, "the range, with its original bytes");
    let asked = json!({"id": "h", "name": "replay", "args": {"from": 1, "to": 2, "by": "a\nb"}});
    billing.say("command", &asked).await;
    while billing.next_json("response").await["id"] != "h" {}
    assert!(gateway.cli(&["ledger", "replay", "--from", "1", "--to", "3", "--by", "王工"]).status.success());
    let before = accounts.duplicates;
    while accounts.duplicates < before + 3 {
        accounts.take(&billing.next("records").await);
    }
    let refused = gateway.cli(&["ledger", "replay", "--from", "1", "--to", "999999"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");

    // Who asked for what was done is on record, once each; what was refused is not.
    let exported = gateway.cli(&["ledger", "export"]);
    let actions: Vec<Value> = String::from_utf8(exported.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record["change"] == "user_action")
        .collect();
    let told: Vec<_> = actions.iter().map(|a| (&a["action"], &a["via"], &a["by"])).collect();
    let text = ["read_now", "replay", "mqtt", "socket", "a", "g", "王工"].map(Value::from);
    let [read_now, replay, mqtt, socket, a, g, name] = &text;
    assert_eq!(told, [(read_now, mqtt, a), (replay, mqtt, g), (replay, socket, name)]);
    assert_eq!((&actions[0]["meter"], &actions[0]["command"]), (&json!("E-1"), a));
    assert_eq!((&actions[1]["from_seq"], &actions[1]["to_seq"]), (&json!(1), &json!(2)));
    assert_eq!(
        (&actions[2]["uid"], &actions[2]["to_seq"]),
        (&json!(rustix::process::getuid().as_raw()), &json!(3))
    );

    // Receipts: cumulative, idempotent; nonsense moves nothing.
    let ledger = gateway.get("/api/v1/status")["ledger"].clone();
    for confirmed in [3, 3, 2] {
        billing.say("receipt", &json!({"ledger": ledger, "confirmed_seq": confirmed, "rejected": []})).await;
    }
    gateway.until("confirmed", |status| status["store"]["confirmed_seq"] == 3);
    billing.say("receipt", &json!({"ledger": "another", "confirmed_seq": 4})).await;
    billing.say("receipt", &json!({"ledger": ledger, "confirmed_seq": 4})).await;
    gateway.until("confirmed", |status| status["store"]["confirmed_seq"] == 4);
    let (status, _) = gateway.terminate();
    assert!(status.success());
    gateway.start();
    assert_eq!(gateway.get("/api/v1/status")["store"]["confirmed_seq"], 4, "a cursor outlives the process");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_has_one_master_and_an_adapter_may_be_pulled() {
    let broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, 1, "");
    let mut rest = String::new();
    serial(&mut rest, "north", &gateway);
    for unit in 1..=3 {
        meter(&mut rest, &format!("W-{unit}"), "north", unit, "itron-cf");
    }
    gateway.configure(broker.port, 1, &rest);
    let mut plugged = site(&gateway);
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    let mut accounts = Accounts::default();
    gateway.start();
    let up = |status: &Value| {
        status["buses"][0]["up"] == true && status["buses"][0]["answered"].as_u64() > Some(3)
    };
    gateway.until("the line is up", up);

    // A second process with the same port, and a ledger of its own.
    let mut second =
        Gateway::configured(broker.port, 1, &rest.replace("[[bus]]", "client_id = \"gw-02\"\n[[bus]]"));
    second.start();
    let status = second.until("the port is refused", |status| status["buses"][0]["fault"].is_string());
    let fault = status["buses"][0]["fault"].as_str().unwrap();
    assert!(fault.contains("in use") && fault.contains("meter-gateway"), "{fault}");
    drop(second);

    plugged.line("north").unwrap().unplug();
    drop(plugged);
    let status = gateway.until("the line is down", |status| status["buses"][0]["up"] == false);
    assert!(status["buses"][0]["fault"].is_string(), "{status:#}");
    let before = gateway.stored();
    accounts.until(before + 6, &mut billing).await;
    let down: Vec<Reading> = accounts.values().filter_map(|record| reading(&record)).collect();
    let down = &down[down.len() - 3..];
    assert!(down.iter().all(|reading| reading.flags.contains("bus_down")), "{down:?}");
    assert!(
        down.iter().all(|reading| !reading.flags.contains("no_answer")),
        "it is not the meters: {down:?}"
    );
    assert_eq!(gateway.log().matches("the line cannot be used").count(), 1, "told once:\n{}", gateway.log());

    let _plugged = site(&gateway);
    gateway.until("the line is up again", up);
    let before = gateway.stored();
    accounts.until(before + 3, &mut billing).await;
    let last = accounts.values().filter_map(|record| reading(&record)).last().unwrap();
    assert_eq!(last.verdict, Verdict::Good, "{last:?}");
    let (status, took) = gateway.terminate();
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
}
