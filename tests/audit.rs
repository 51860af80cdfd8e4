//! What people do to the gateway is on record, with who did it: the real daemon, asked by every way there is.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/gateway.rs"]
mod gateway;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

use gateway::Gateway;
use rustix::process::Signal;
use serde_json::{Value, json};

/// A meter behind a port that nobody listens on: each slot is a `missing` record.
const METER: &str = "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:1\"\n\
    [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n";

fn changes(gateway: &Gateway, what: &str) -> Vec<Value> {
    let exported = gateway.cli(&["ledger", "export"]);
    assert!(exported.status.success(), "{exported:?}");
    String::from_utf8(exported.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|record| record["change"] == what)
        .collect()
}

#[test]
fn each_configuration_is_on_record_with_the_one_before_it() {
    let mut gateway = Gateway::configured(1, 1, METER);
    gateway.start();
    let first = gateway.get("/api/v1/status")["configuration"].clone();
    gateway.until("records", |status| status["store"]["last_seq"].as_u64() > Some(0));
    gateway.terminate();
    assert_eq!(changes(&gateway, "configuration"), Vec::<Value>::new(), "nothing has changed yet");

    gateway.configure(1, 1, &METER.replace("E-1", "E-2"));
    gateway.start();
    let second = gateway.get("/api/v1/status")["configuration"].clone();
    gateway.terminate();
    gateway.start(); // the same once more: nothing to tell

    gateway.configure(1, 1, &METER.replace("E-1", "E-3"));
    gateway.signal(Signal::HUP);
    gateway.until("reloaded", |status| status["configuration"] != second);
    let third = gateway.get("/api/v1/status")["configuration"].clone();
    gateway.configure(1, 1, "colour = \"blue\"");
    gateway.signal(Signal::HUP);
    while !gateway.log().contains("the new configuration is refused") {
        gateway.get("/api/v1/status");
    }
    assert!(gateway.log().contains("colour"), "{}", gateway.log());

    gateway.configure(1, 1, &METER.replace("E-1", "E-3"));
    gateway.terminate();
    gateway.start();
    let told: Vec<_> = changes(&gateway, "configuration")
        .iter()
        .map(|change| (change["before"].clone(), change["after"].clone()))
        .collect();
    assert_eq!(told, [(first, second.clone()), (second, third)]);
}

#[test]
fn who_asks_at_which_door_is_on_record() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // A line with a dead meter.
    let line = TcpListener::bind("127.0.0.1:0").unwrap();
    let meter = METER.replace("127.0.0.1:1", &line.local_addr().unwrap().to_string());
    std::thread::spawn(move || line.incoming().collect::<Vec<_>>());
    let mut gateway =
        Gateway::configured(1, 1, &format!("{meter}[console]\nlisten = \"127.0.0.1:{port}\"\n"));
    gateway.start();
    let at_port = |path: &str, body: &Value| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (body, local) = (body.to_string(), stream.local_addr().unwrap().to_string());
        let length = body.len();
        write!(stream, "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        (local, said)
    };
    let (address, said) = at_port("/api/v1/read", &json!({"meter": "E-1"}));
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let (_, said) = at_port("/api/v1/read", &json!({"meter": "E-1", "by": "x".repeat(65)}));
    assert!(said.starts_with("HTTP/1.1 422") && said.contains("65 bytes"), "{said}");
    let (_, said) = at_port("/api/v1/ledger/backup", &json!({"dir": "/tmp/x"}));
    assert!(said.starts_with("HTTP/1.1 404"), "all data is the owner's to ask for: {said}");
    gateway.cli(&["read", "E-1"]);
    let backup = gateway.path("backup");
    let made = gateway.cli(&["ledger", "backup", backup.to_str().unwrap(), "--by", "night shift"]);
    assert!(made.status.success(), "{made:?}");
    assert!(gateway.cli(&["identity", "rotate", "--by", "auditor"]).status.success());

    let uid = rustix::process::getuid().as_raw();
    let actions = changes(&gateway, "user_action");
    let told: Vec<_> =
        actions.iter().map(|a| (a["action"].as_str().unwrap(), a["via"].as_str().unwrap())).collect();
    assert_eq!(told, [("read_now", "http"), ("read_now", "socket"), ("backup", "socket")]);
    assert_eq!((&actions[0]["address"], &actions[0]["by"]), (&json!(address), &json!(address)));
    assert_eq!(actions[1]["uid"], uid);
    assert_eq!(
        (&actions[2]["by"], &actions[2]["dir"]),
        (&json!("night shift"), &json!(backup.to_str().unwrap()))
    );
    let rotated = changes(&gateway, "key_rotated");
    assert_eq!((&rotated[0]["by"], &rotated[0]["uid"]), (&json!("auditor"), &json!(uid)));
    let in_backup = fs::read_dir(backup.join("ledger")).unwrap().any(|file| {
        fs::read(file.unwrap().path())
            .is_ok_and(|text| String::from_utf8_lossy(&text).contains("night shift"))
    });
    assert!(in_backup, "the record of a backup is in it");

    // Put back elsewhere: the next start tells of it.
    gateway.terminate();
    fs::remove_dir_all(gateway.path("data")).unwrap();
    let restored = gateway.cli(&[
        "ledger",
        "restore",
        backup.to_str().unwrap(),
        "--billing-has",
        "1",
        "--by",
        "auditor",
    ]);
    assert!(restored.status.success(), "{restored:?}");
    gateway.start();
    gateway.terminate();
    gateway.start();
    let put_back: Vec<Value> =
        changes(&gateway, "user_action").into_iter().filter(|action| action["action"] == "restore").collect();
    assert_eq!(put_back.len(), 1, "{put_back:?}");
    let restore = &put_back[0];
    assert_eq!(
        (&restore["via"], &restore["by"], &restore["goes_on"]),
        (&json!("command_line"), &json!("auditor"), &json!(true))
    );
    let exported = gateway.cli(&["ledger", "export", "--from", &restore["last_seq"].to_string()]);
    let text = String::from_utf8(exported.stdout).unwrap();
    let last: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(restore["head"], last["hash"], "the record tells how far the backup went");
    assert!(restore["seq"].as_u64() > last["seq"].as_u64(), "and comes behind it");
}

#[test]
fn what_cannot_be_put_on_record_is_not_done() {
    let mut gateway = Gateway::configured(1, 1, METER);
    let text = fs::read_to_string(gateway.config()).unwrap();
    // A reserve of a terabyte: more than the machines of these tests have free.
    fs::write(gateway.config(), text.replacen("[gateway]\n", "[gateway]\nreserve_mb = 1000000\n", 1))
        .unwrap();
    gateway.start();
    gateway.until("nothing is stored", |status| status["store"]["refusing"].is_object());
    let refused = gateway.cli(&["read", "E-1"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(
        why.contains("not done, because it cannot be put on record") && why.contains("bytes are left"),
        "{why}"
    );

    let backup = gateway.path("backup");
    let made = gateway.cli(&["ledger", "backup", backup.to_str().unwrap()]);
    assert!(made.status.success(), "a disk that fails is when a backup is wanted: {made:?}");
    assert!(String::from_utf8(made.stderr).unwrap().contains("not on record"));
    assert!(gateway.log().contains("a backup is taken that is not on record"), "{}", gateway.log());
}
