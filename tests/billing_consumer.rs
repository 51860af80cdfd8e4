//! `examples/billing.py` against a real Mosquitto with the access list of `docs/mqtt.md`: it has each record once, whatever dies,
//! asks for what it lacks, and stops at what is not true.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[allow(dead_code)] // of its brokers, only the one with an access list
#[path = "common/mosquitto.rs"]
mod mosquitto;
#[path = "common/python.rs"]
mod python;

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use consumer::Consumer;
use meter_gateway::{
    ledger::chain::seal,
    model::{ClockState, Draft, GENESIS, RecordType},
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
            key: None,
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
