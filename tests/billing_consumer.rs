//! `examples/billing.py` against a real Mosquitto with the access list of `docs/mqtt.md`: it has each record once, whatever dies,
//! asks for what it lacks, and stops at what is not true.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "common/gateway.rs"]
mod gateway;
#[allow(dead_code)] // of its brokers, only the one with an access list
#[path = "common/mosquitto.rs"]
mod mosquitto;
#[path = "common/python.rs"]
mod python;

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use consumer::{Consumer, PATIENCE};
use gateway::Gateway;
use meter_gateway::{
    config,
    ledger::chain::seal,
    model::{ClockState, Draft, GENESIS, RecordType},
    sim::{SimClock, SimSite},
};
use mosquitto::Mosquitto;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const USERS: [&str; 3] = ["gw-01", "billing", "dashboard"];
/// How often a state that cannot be awaited is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// The access list of the page, and a password for each of its users.
fn broker() -> Mosquitto {
    Mosquitto::with(|dir| {
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/mqtt.md")).unwrap();
        let list =
            page.split_once("Mosquitto (`acl_file`):\n\n```text\n").unwrap().1.split("```").next().unwrap();
        fs::write(dir.join("acl"), list).unwrap();
        for (user, create) in USERS.iter().zip(["-c", "-b", "-b"]) {
            let mut passwd = Command::new("mosquitto_passwd");
            passwd.args([create, "-b"]).arg(dir.join("passwords")).args([user, "s3cret"]);
            assert!(passwd.status().unwrap().success());
        }
        fs::write(dir.join("password"), "s3cret\n").unwrap();
        let path = |name: &str| dir.join(name).display().to_string();
        format!("allow_anonymous false\npassword_file {}\nacl_file {}\n", path("passwords"), path("acl"))
    })
}

/// The program, with its database.
struct Billing {
    python: PathBuf,
    child: Option<Child>,
    dir: TempDir,
    broker: (u16, PathBuf),
}

impl Billing {
    fn new(broker: &Mosquitto) -> Billing {
        let python = python::with("paho.mqtt.client");
        let dir = tempfile::tempdir().unwrap();
        Billing { python, child: None, dir, broker: (broker.port, broker.dir.path().join("password")) }
    }

    /// With contracts for these meters; none given: for all.
    fn start(&mut self, version: &str, meters: &[&str], lost: Option<&str>) {
        let log = OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let mut command = Command::new(&self.python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/billing.py"));
        command.args(["--port", &self.broker.0.to_string(), "--mqtt", version, "--user", "billing"]);
        command.arg("--password-file").arg(&self.broker.1);
        if !meters.is_empty() {
            fs::write(self.dir.path().join("meters"), meters.join("\n")).unwrap();
            command.arg("--meters").arg(self.dir.path().join("meters"));
        }
        command.args(lost.map(|lost| format!("--lost={lost}")));
        command.arg(self.dir.path().join("billing.db")).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// What is committed.
    fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        let program = "import json, sqlite3, sys\n\
            print(json.dumps(sqlite3.connect(sys.argv[1]).execute(sys.argv[2]).fetchall()))";
        let mut command = Command::new(&self.python);
        let output =
            command.args(["-c", program]).arg(self.dir.path().join("billing.db")).arg(sql).output().unwrap();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The last record of a ledger that is committed.
    fn last(&self, ledger: &str) -> u64 {
        let rows = self.rows(&format!("select last from ledger where id = '{ledger}'"));
        rows.first().and_then(|row| row[0].as_u64()).unwrap_or(0)
    }

    fn until(&mut self, ledger: &str, seq: u64, gateway: &Gateway) {
        let deadline = Instant::now() + PATIENCE;
        // The tables are made when it starts.
        while !self.log().contains("connected") || self.last(ledger) < seq {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "waiting for record {seq}, has {}: {ended:?}\n{}\n{}",
                self.last(ledger),
                self.log(),
                gateway.log()
            );
            sleep(LOOK);
        }
    }

    /// The lines of a ledger, as they were hashed.
    fn lines(&self, ledger: &str) -> Vec<u8> {
        let rows = self.rows(&format!("select line from record where ledger = '{ledger}' order by seq"));
        rows.iter().flat_map(|row| format!("{}\n", row[0].as_str().unwrap()).into_bytes()).collect()
    }
}

impl Drop for Billing {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Records of a ledger that only this test has; one in three is a reading of `W-9`.
fn chain(from: u64, to: u64) -> Vec<Value> {
    let at = "2026-11-23T00:00:00Z".parse().unwrap();
    let mut prev = GENESIS.to_owned();
    let mut records = Vec::new();
    for seq in 1..=to {
        let meter = if seq % 3 == 0 { "W-9" } else { "E-1" };
        let fields = json!({
            "meter": meter, "medium": "water", "scheduled_at": "2026-11-23T00:00:00.000Z", "taken_at": null,
            "origin": "measured", "verdict": "good", "flags": [],
            "values": {"volume_total": {"value": format!("{seq}.50"), "unit": "m3", "raw": "0x00"}},
        });
        let Value::Object(fields) = fields else { unreachable!() };
        let draft = Draft {
            kind: RecordType::Reading,
            recorded_at: at,
            clock: ClockState::Synced,
            fields,
            reading: None,
        };
        let sealed = seal(&draft, seq, &prev).unwrap();
        prev = sealed.hash;
        records.push(serde_json::from_slice(&sealed.bytes).unwrap());
    }
    records.split_off(usize::try_from(from).unwrap() - 1)
}

fn message(ledger: &str, records: &[Value]) -> Value {
    json!({"v": 1, "site": "riverside", "gateway": "gw-01", "ledger": ledger, "records": records})
}

/// The next receipt that says something else than `before`.
async fn receipt(gateway: &mut Consumer, ledger: &str, expected: &Value) {
    loop {
        let receipt = gateway.next_json("receipt").await;
        let said: Map<String, Value> =
            receipt.as_object().unwrap().clone().into_iter().filter(|(name, _)| name != "ledger").collect();
        if receipt["ledger"] == ledger && Value::from(said.clone()) == *expected {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_takes_what_is_next_asks_for_what_is_missing_and_stops_at_what_is_altered() {
    let broker = broker();
    let mut gateway =
        Consumer::start(broker.port, "metering/v1/riverside/gw-01/receipt", Some(("gw-01", "s3cret"))).await;
    let mut billing = Billing::new(&broker);
    billing.start("5", &["E-1"], None);

    // Retention has removed what was before 300: a new consumer begins there.
    let status = json!({"v": 1, "state": "online", "ledger": "l1", "last_seq": 305, "acknowledged_seq": 305, "store": {"first_seq": 300}});
    while !billing.log().contains("connected") {
        sleep(LOOK);
    }
    gateway.say("status", &status).await;
    receipt(&mut gateway, "l1", &json!({"confirmed_seq": 299, "rejected": []})).await;

    // What comes early is not taken; the next receipt says from where records are missing.
    gateway.say("records", &message("l1", &chain(303, 304))).await;
    receipt(&mut gateway, "l1", &json!({"confirmed_seq": 299, "rejected": [], "resend_from": 300})).await;
    gateway.say("records", &message("l1", &chain(300, 305))).await;
    let no_contract = |seq: u64| json!({"seq": seq, "reason": "meter W-9 has no contract"});
    let rejected = [no_contract(300), no_contract(303)];
    receipt(&mut gateway, "l1", &json!({"confirmed_seq": 305, "rejected": rejected})).await;

    // Killed and started again, now with a contract for the other meter; the rejected ones come again.
    billing.kill();
    billing.start("5", &["E-1", "W-9"], None);
    gateway.say("records", &message("l1", &chain(303, 306))).await;
    receipt(&mut gateway, "l1", &json!({"confirmed_seq": 306, "rejected": [no_contract(300)]})).await;
    assert_eq!(billing.rows("select count(*), count(distinct seq) from record"), [[json!(7), json!(7)]]);
    assert_eq!(billing.rows("select seq from rejected"), [[json!(300)]]);
    assert_eq!(
        billing.rows("select seq, value from value where meter = 'W-9'").last(),
        Some(&vec![json!(306), json!("306.50")])
    );

    // Another ledger begins at 1, beside the old one. A message that is no such thing costs nothing.
    gateway.say("records", &json!({"ledger": "l2"})).await;
    gateway.say("records", &message("l2", &chain(1, 2))).await;
    receipt(&mut gateway, "l2", &json!({"confirmed_seq": 2, "rejected": []})).await;
    assert_eq!(
        billing.rows("select id, last from ledger order by id"),
        [[json!("l1"), json!(306)], [json!("l2"), json!(2)]]
    );

    // Record 3 is lost, and a person says so: only then it goes on behind it.
    gateway.say("records", &message("l2", &chain(4, 4))).await;
    receipt(&mut gateway, "l2", &json!({"confirmed_seq": 2, "rejected": [], "resend_from": 3})).await;
    billing.kill();
    billing.start("5", &[], Some("l2:3-3"));
    gateway.say("records", &message("l2", &chain(4, 4))).await;
    receipt(&mut gateway, "l2", &json!({"confirmed_seq": 4, "rejected": []})).await;

    let mut altered = chain(5, 5);
    altered[0]["values"]["volume_total"]["value"] = json!("5.51");
    gateway.say("records", &message("l2", &altered)).await;
    let ended = billing.child.take().unwrap().wait().unwrap();
    assert_eq!(ended.code(), Some(1), "{}", billing.log());
    assert!(billing.log().contains("record 5: its content does not have the hash"), "{}", billing.log());
    assert_eq!(billing.last("l2"), 4);
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A gateway with meters that are read as fast as they answer.
fn site(broker: &Mosquitto, confirm: &str) -> (Gateway, SimSite) {
    let mut rest = format!(
        "confirm = \"{confirm}\"\nusername = \"gw-01\"\npassword_file = \"{}\"\n",
        broker.dir.path().join("password").display()
    );
    // Each line does some ten readings a second.
    for line in 1..=8 {
        let port = free_port();
        write!(rest, "[[bus]]\nid = \"line-{line}\"\nkind = \"tcp\"\naddress = \"127.0.0.1:{port}\"\n")
            .unwrap();
        let meter = format!("id = \"E-{line}\"\nbus = \"line-{line}\"\naddress = \"1\"");
        write!(rest, "[[meter]]\n{meter}\nprofile = \"eastron-sdm120\"\n").unwrap();
    }
    let gateway = Gateway::configured(broker.port, 0, &rest);
    let settings = config::load(&gateway.config(), []).unwrap_or_else(|faults| panic!("{faults:?}"));
    let site = SimSite::from_settings(&settings, 1, &SimClock::default()).unwrap();
    (gateway, site)
}

/// Kills consumer, broker and gateway, and makes a gap that no acknowledgement tells of: while the consumer is away, the
/// broker forgets its session, and another subscriber makes the records count as delivered.
async fn whatever_dies(confirm: &str, version: &str) {
    let mut broker = broker();
    let (mut gateway, _site) = site(&broker, confirm);
    let mut other =
        Consumer::start(broker.port, "metering/v1/riverside/gw-01/records", Some(("dashboard", "s3cret")))
            .await;
    let mut billing = Billing::new(&broker);
    billing.start(version, &[], None);
    gateway.start();
    let ledger = gateway.get("/api/v1/status")["ledger"].as_str().unwrap().to_owned();
    billing.until(&ledger, 100, &gateway);

    billing.kill();
    let seq = gateway.stored() + 100;
    gateway.until("reads on without a consumer", |status| status["store"]["last_seq"].as_u64() > Some(seq));
    billing.start(version, &[], None);
    billing.until(&ledger, seq, &gateway);

    broker.kill();
    let seq = gateway.stored() + 100;
    gateway.until("reads on without a broker", |status| status["store"]["last_seq"].as_u64() > Some(seq));
    broker.start();
    billing.until(&ledger, seq, &gateway);

    billing.kill();
    broker.kill();
    broker.start();
    while other.messages.try_recv().is_ok() {}
    let mut messages = 0;
    while messages < 100 {
        other.next("records").await; // more than a new connection sends again by itself
        messages += 1;
    }
    let before = billing.last(&ledger);
    let seq = gateway.stored();
    gateway.until("the broker has them", |status| status["store"]["acknowledged_seq"].as_u64() >= Some(seq));
    gateway.kill();
    gateway.start();
    billing.start(version, &[], None);
    billing.until(&ledger, seq + 50, &gateway);
    assert!(seq > before + 100, "there was no gap");

    ends_complete(&mut gateway, &mut billing, &ledger);

    // The end of the ledger is lost: another one begins.
    gateway.terminate();
    fs::remove_file(gateway.path("data/ledger/ledger.json")).unwrap();
    gateway.start();
    let next = gateway.get("/api/v1/status")["ledger"].as_str().unwrap().to_owned();
    assert_ne!(next, ledger);
    billing.until(&next, 50, &gateway);
    ends_complete(&mut gateway, &mut billing, &next);
    assert_eq!(billing.rows("select count(*) from ledger"), [[json!(2)]]);
}

/// What the gateway stores at its very end goes out at its next start.
fn ends_complete(gateway: &mut Gateway, billing: &mut Billing, ledger: &str) {
    let (status, took) = gateway.terminate();
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    let exported = gateway.cli(&["ledger", "export"]).stdout;
    let count = exported.split(|byte| *byte == b'\n').count() as u64 - 1;
    gateway.start();
    billing.until(ledger, count, gateway);
    assert!(billing.lines(ledger).starts_with(&exported), "billing has the ledger, byte for byte");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_billing_has_every_record_where_the_brokers_word_is_enough() {
    whatever_dies("broker", "5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_billing_has_every_record_where_it_confirms_itself() {
    whatever_dies("billing", "3.1.1").await;
}
