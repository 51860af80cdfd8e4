//! The publisher against a real Mosquitto: order, loss of the broker, nobody listening, credentials, TLS, receipts, will.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "common/memory_ledger.rs"]
mod memory_ledger;
#[path = "common/mosquitto.rs"]
mod mosquitto;

use std::{collections::BTreeSet, path::Path, process::Command as Program, sync::Arc, time::Duration};

use consumer::{BASE, Consumer, PATIENCE};
use memory_ledger::{LEDGER_ID, MemoryLedger};
use meter_gateway::{
    config::{Confirm, Mqtt, MqttVersion, Tls},
    ledger::{Cursor, Ledger},
    publish::{Context, Incoming, Inventory, Outgoing, PublisherState, RealBroker, Response, Topics, run},
};
use mosquitto::Mosquitto;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

fn settings(port: u16, version: MqttVersion) -> Mqtt {
    Mqtt {
        host: "127.0.0.1".into(),
        port,
        tls: None,
        version,
        topic_prefix: "metering/v1".into(),
        client_id: "gw-01".into(),
        username: None,
        password_file: None,
        confirm: Confirm::Broker,
    }
}

struct Gateway {
    task: JoinHandle<Vec<Outgoing>>,
    inbox: mpsc::Sender<Outgoing>,
    events: mpsc::Receiver<Incoming>,
    inventory: watch::Sender<Inventory>,
    _status: watch::Sender<Value>,
    state: watch::Receiver<PublisherState>,
    shutdown: watch::Sender<bool>,
}

impl Gateway {
    fn start(settings: Mqtt, ledger: &Arc<MemoryLedger>) -> Gateway {
        let (inbox, inbox_rx) = mpsc::channel(8);
        let (events_tx, events) = mpsc::channel(8);
        let meter = json!({"meter": "E-1", "medium": "electricity"});
        let (inventory, inventory_rx) = watch::channel(Inventory::from([("E-1".parse().unwrap(), meter)]));
        let (status, status_rx) = watch::channel(json!({"clock": "synced"}));
        let (state_tx, state) = watch::channel(PublisherState::default());
        let (shutdown, shutdown_rx) = watch::channel(false);
        let names =
            Topics { prefix: "metering/v1".into(), site: "riverside".into(), gateway: "gw-01".into() };
        let context = Context {
            settings,
            names,
            ledger: ledger.clone(),
            inbox: inbox_rx,
            events: events_tx,
            status: status_rx,
            inventory: inventory_rx,
            state: state_tx,
            shutdown: shutdown_rx,
            broker: Arc::new(RealBroker),
        };
        Gateway {
            task: tokio::spawn(run(context)),
            inbox,
            events,
            inventory,
            _status: status,
            state,
            shutdown,
        }
    }

    async fn until(&mut self, what: &str, good: impl FnMut(&PublisherState) -> bool) {
        let waited = timeout(PATIENCE, self.state.wait_for(good)).await.map(|r| r.unwrap().clone());
        assert!(waited.is_ok(), "{what}: {:?}", *self.state.borrow());
    }

    async fn stop(self) {
        self.shutdown.send_replace(true);
        timeout(Duration::from_secs(6), self.task)
            .await
            .expect("a shutdown takes five seconds at most")
            .unwrap();
    }
}

/// Reads `records` until `last` has come; the seqs in order of arrival.
async fn records_to(last: u64, consumer: &mut Consumer) -> Vec<u64> {
    let mut seqs = Vec::new();
    while seqs.last() != Some(&last) {
        let message = consumer.next("records").await;
        assert!(message.payload.len() <= 128 * 1024 && !message.retain);
        let message: Value = serde_json::from_slice(&message.payload).unwrap();
        assert_eq!((&message["v"], &message["ledger"]), (&json!(1), &json!(LEDGER_ID)));
        let records = message["records"].as_array().unwrap();
        assert!((1..=500).contains(&records.len()));
        seqs.extend(records.iter().map(|r| r["seq"].as_u64().unwrap()));
    }
    seqs
}

async fn delivers_in_order(version: MqttVersion) {
    let broker = Mosquitto::open();
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    let ledger = MemoryLedger::new();
    ledger.store(3_000);
    let mut gateway = Gateway::start(settings(broker.port, version), &ledger);
    let status = billing.next_json("status").await;
    assert_eq!(
        (&status["state"], &status["session"], &status["clock"]),
        (&json!("online"), &json!(1), &json!("synced"))
    );
    assert_eq!(billing.next_json("inventory/E-1").await["medium"], "electricity");
    let seqs = records_to(3_000, &mut billing).await;
    assert_eq!(seqs, (1..=3_000).collect::<Vec<_>>());
    let stored = std::time::Instant::now();
    ledger.store(1);
    assert_eq!(records_to(3_001, &mut billing).await, [3_001]);
    assert!(
        stored.elapsed() < Duration::from_secs(1),
        "a record goes out within a second: {:?}",
        stored.elapsed()
    );
    gateway.until("all acknowledged", |s| s.acknowledged == 3_001 && s.confirmed == 3_001).await;
    assert_eq!(ledger.cursor(Cursor::Acknowledged), 3_001);
    gateway.inventory.send_replace(Inventory::new());
    assert!(billing.next("inventory/E-1").await.payload.is_empty(), "removed with an empty payload");
    gateway.stop().await;
    assert_eq!(billing.next_json("status").await["state"], "offline");
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_5_delivers_everything_in_order() {
    delivers_in_order(MqttVersion::V5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_3_1_1_delivers_everything_in_order() {
    delivers_in_order(MqttVersion::V311).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtt_5_messages_say_what_they_are() {
    use rumqttc::v5::{AsyncClient, Event, Incoming as Packet, MqttOptions, mqttbytes::QoS};
    let broker = Mosquitto::open();
    let mut options = MqttOptions::new("reader", "127.0.0.1", broker.port);
    options.set_keep_alive(Duration::from_secs(20));
    let (client, mut event_loop) = AsyncClient::new(options, 8);
    client.subscribe(format!("{BASE}/#"), QoS::AtLeastOnce).await.unwrap();
    let ledger = MemoryLedger::new();
    ledger.store(3);
    let mut gateway = None;
    let mut schemas = BTreeSet::new();
    while schemas.len() < 3 {
        let event = timeout(PATIENCE, event_loop.poll()).await.expect("a message in time").unwrap();
        match event {
            Event::Incoming(Packet::SubAck(_)) => {
                gateway = Some(Gateway::start(settings(broker.port, MqttVersion::V5), &ledger));
            }
            Event::Incoming(Packet::Publish(message)) => {
                let properties = message.properties.expect("properties");
                assert_eq!(properties.content_type.as_deref(), Some("application/json"));
                let schema =
                    properties.user_properties.iter().find(|(name, _)| name == "schema").unwrap().1.clone();
                let topic = String::from_utf8(message.topic.to_vec()).unwrap();
                let leaf = topic.strip_prefix(BASE).unwrap().trim_start_matches('/');
                assert!(schema.contains(leaf.split('/').next().unwrap()), "{schema} on {leaf}");
                schemas.insert(schema);
            }
            _ => {}
        }
    }
    gateway.unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_dies_and_forgets_costs_nothing() {
    let mut broker = Mosquitto::open();
    let mut billing = Consumer::start(broker.port, &format!("{BASE}/records"), None).await;
    let ledger = MemoryLedger::new();
    ledger.store(60_000);
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &ledger);
    let mut seqs = billing.records_to_at_least(2_000).await;
    broker.kill();
    gateway.until("the loss is noticed", |s| !s.connected).await;
    assert!(ledger.cursor(Cursor::Acknowledged) < 60_000, "the broker died in the middle");
    ledger.store(100);
    broker.start();
    gateway.until("all acknowledged", |s| s.acknowledged == 60_100).await;
    seqs.extend(records_to(60_100, &mut billing).await);
    let mut highest = 0;
    for seq in &seqs {
        assert!(*seq <= highest + 1, "{seq} came before {}", highest + 1);
        highest = highest.max(*seq);
    }
    assert_eq!(seqs.iter().collect::<BTreeSet<_>>().len(), 60_100);
    gateway.stop().await;
}

/// After six attempts that failed, pauses that double have reached half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_was_away_for_six_attempts_is_found_within_seconds() {
    let mut broker = Mosquitto::open();
    let mut billing = Consumer::start(broker.port, &format!("{BASE}/records"), None).await;
    let ledger = MemoryLedger::new();
    ledger.store(1);
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &ledger);
    gateway.until("the first record", |s| s.acknowledged == 1).await;
    broker.kill();
    gateway.until("the loss is noticed", |s| !s.connected).await;
    ledger.store(1);
    let before = gateway.state.borrow().session;
    gateway.until("six attempts", |s| s.session >= before + 6).await;
    broker.start();
    let back = std::time::Instant::now();
    records_to(2, &mut billing).await;
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    gateway.stop().await;
}

impl Consumer {
    async fn records_to_at_least(&mut self, count: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.len() < count {
            let message = self.next_json("records").await;
            seqs.extend(message["records"].as_array().unwrap().iter().map(|r| r["seq"].as_u64().unwrap()));
        }
        seqs
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_heard_is_kept_for_who_comes_later() {
    let broker = Mosquitto::open();
    let ledger = MemoryLedger::new();
    ledger.store(700);
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &ledger);
    gateway.until("nobody listens", |s| s.nobody_listens && s.in_flight == 0).await;
    assert_eq!(ledger.cursor(Cursor::Acknowledged), 0);
    let mut billing = Consumer::start(broker.port, &format!("{BASE}/records"), None).await;
    assert_eq!(records_to(700, &mut billing).await, (1..=700).collect::<Vec<_>>());
    gateway.until("somebody listens", |s| !s.nobody_listens && s.acknowledged == 700).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_replays_and_commands() {
    let broker = Mosquitto::open();
    let mut billing = Consumer::start(broker.port, "metering/v1/#", None).await;
    let ledger = MemoryLedger::new();
    ledger.store(10);
    ledger.damage(4);
    let settings = Mqtt { confirm: Confirm::Billing, ..settings(broker.port, MqttVersion::V5) };
    let mut gateway = Gateway::start(settings, &ledger);
    assert_eq!(records_to(10, &mut billing).await, [1, 2, 3, 5, 6, 7, 8, 9, 10]);
    let damaged = timeout(PATIENCE, gateway.events.recv()).await.unwrap();
    assert!(matches!(damaged, Some(Incoming::Damaged { seq: 4, .. })), "{damaged:?}");
    gateway.until("acknowledged, not confirmed", |s| s.acknowledged == 10 && s.confirmed == 0).await;

    billing.say("receipt", &json!({"ledger": "another", "confirmed_seq": 9})).await;
    let rejected = json!([{"seq": 7, "reason": "unknown meter"}]);
    billing.say("receipt", &json!({"ledger": LEDGER_ID, "confirmed_seq": 8, "rejected": rejected})).await;
    gateway
        .until("confirmed", |s| s.confirmed == 8 && s.rejected.len() == 1 && s.ignored_receipts == 1)
        .await;
    assert_eq!(ledger.cursor(Cursor::Confirmed), 8);

    gateway.inbox.send(Outgoing::Replay { from: 5, to: 99 }).await.unwrap();
    assert_eq!(records_to(10, &mut billing).await, [5, 6, 7, 8, 9, 10]);
    ledger.prune(6..=8); // what stands before them is kept: a billing read, say
    gateway.inbox.send(Outgoing::Replay { from: 2, to: 10 }).await.unwrap();
    assert_eq!(records_to(10, &mut billing).await, [2, 3, 5, 9, 10]);

    billing.say("command", &json!({"id": "c-1"})).await;
    let refused = billing.next_json("response").await;
    assert_eq!((&refused["id"], &refused["ok"]), (&json!("c-1"), &json!(false)));
    billing.say("command", &json!({"id": "c-2", "name": "read_now", "args": {"meter": "E-1"}})).await;
    let (mut command, mut on_record) = (None, Vec::new());
    while command.is_none() {
        match timeout(PATIENCE, gateway.events.recv()).await.expect("a command is passed on").unwrap() {
            Incoming::Command(came) => command = Some(came),
            Incoming::OnRecord { change, .. } => on_record.push(change),
            Incoming::Damaged { seq, detail } => panic!("record {seq}: {detail}"),
        }
    }
    let command = command.unwrap();
    assert!(on_record.contains(&"rejected"), "what billing refuses is put on record: {on_record:?}");
    let response = Response { id: Some(command.id), outcome: Ok(json!({"done": true})) };
    gateway.inbox.send(Outgoing::Response(response)).await.unwrap();
    let answered = billing.next_json("response").await;
    assert_eq!((&answered["id"], &answered["result"]["done"]), (&json!("c-2"), &json!(true)));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_vanishes_leaves_its_will_and_stale_meters_are_removed() {
    let broker = Mosquitto::open();
    let mut watcher = Consumer::start(broker.port, "metering/v1/#", None).await;
    let old = format!("{BASE}/inventory/W-OLD");
    watcher.client.publish(&old, QoS::AtLeastOnce, true, r#"{"meter":"W-OLD"}"#).await.unwrap();
    assert!(!watcher.next("inventory/W-OLD").await.payload.is_empty());
    let ledger = MemoryLedger::new();
    let gateway = Gateway::start(settings(broker.port, MqttVersion::V311), &ledger);
    assert_eq!(watcher.next_json("status").await["state"], "online");
    assert!(watcher.next("inventory/W-OLD").await.payload.is_empty(), "no longer configured, so removed");
    gateway.task.abort();
    assert_eq!(watcher.next_json("status").await["state"], "offline");
    let mut later = Consumer::start(broker.port, &format!("{BASE}/status"), None).await;
    let kept = later.next("status").await;
    assert!(kept.retain, "whoever comes later sees it too");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_name_and_password() {
    let broker = Mosquitto::with(|dir| {
        let file = dir.join("passwords");
        let made =
            Program::new("mosquitto_passwd").args(["-c", "-b"]).arg(&file).args(["gw-01", "s3cret"]).status();
        assert!(made.unwrap().success());
        format!("allow_anonymous false\npassword_file {}\n", file.display())
    });
    let password_file = broker.dir.path().join("mqtt-password");
    std::fs::write(&password_file, "wrong\n").unwrap();
    let mut billing = Consumer::start(broker.port, "metering/v1/#", Some(("gw-01", "s3cret"))).await;
    let ledger = MemoryLedger::new();
    ledger.store(5);
    let settings = Mqtt {
        username: Some("gw-01".into()),
        password_file: Some(password_file.clone()),
        ..settings(broker.port, MqttVersion::V5)
    };
    let mut gateway = Gateway::start(settings, &ledger);
    gateway.until("refused", |s| s.last_error.as_deref().is_some_and(|e| e.contains("refused"))).await;
    std::fs::write(&password_file, "s3cret\n").unwrap();
    assert_eq!(
        records_to(5, &mut billing).await,
        [1, 2, 3, 4, 5],
        "a corrected password is used without a restart"
    );
    gateway.stop().await;
}

fn certificates(dir: &Path) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for (file, name) in [("server", "localhost"), ("client", "gw-01")] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let cert = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{file}.pem")), cert.pem()).unwrap();
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

async fn mutual_tls(version: MqttVersion) {
    let broker = Mosquitto::with(|dir| {
        certificates(dir);
        let d = dir.display();
        format!(
            "allow_anonymous true\nrequire_certificate true\ncafile {d}/ca.pem\ncertfile {d}/server.pem\nkeyfile {d}/server.key\n"
        )
    });
    let file = |name: &str| Some(broker.dir.path().join(name));
    let ledger = MemoryLedger::new();
    let strange = tempfile::tempdir().unwrap();
    certificates(strange.path());
    let other_ca = Tls { ca_file: Some(strange.path().join("ca.pem")), ..Tls::default() };
    let base = Mqtt { host: "localhost".into(), ..settings(broker.port, version) };
    let mut gateway = Gateway::start(Mqtt { tls: Some(other_ca), ..base.clone() }, &ledger);
    gateway.until("an unknown CA is refused", |s| s.last_error.is_some()).await;
    let error = gateway.state.borrow().last_error.clone().unwrap();
    assert!(error.contains("certificate"), "{error}");
    gateway.stop().await;

    let tls = Tls { ca_file: file("ca.pem"), cert_file: file("client.pem"), key_file: file("client.key") };
    let mut gateway = Gateway::start(Mqtt { tls: Some(tls), ..base }, &ledger);
    gateway.until("connected", |s| s.connected && s.in_flight == 0).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mqtts_with_a_private_ca_and_a_client_certificate() {
    mutual_tls(MqttVersion::V5).await;
    mutual_tls(MqttVersion::V311).await;
}

/// A consumer with a session that the broker keeps, and a queue in it that holds few messages.
struct Billing {
    last: u64,
    client: AsyncClient,
    event_loop: rumqttc::EventLoop,
}

impl Billing {
    fn new(port: u16) -> Billing {
        let mut options = MqttOptions::new("billing", "127.0.0.1", port);
        options.set_max_packet_size(1 << 20, 1 << 20).set_clean_session(false);
        let (client, event_loop) = AsyncClient::new(options, 64);
        Billing { last: 0, client, event_loop }
    }

    async fn subscribe(&mut self) {
        self.client.subscribe(format!("{BASE}/records"), QoS::AtLeastOnce).await.unwrap();
        while !matches!(self.next().await, Packet::SubAck(_)) {}
    }

    async fn next(&mut self) -> Packet {
        loop {
            if let Event::Incoming(packet) = timeout(PATIENCE, self.event_loop.poll()).await.unwrap().unwrap()
            {
                return packet;
            }
        }
    }

    /// Goes away; the broker keeps the session.
    async fn leave(&mut self) {
        self.client.disconnect().await.unwrap();
        while timeout(PATIENCE, self.event_loop.poll()).await.unwrap().is_ok() {}
    }

    /// Takes a record only if it is the next, and says after each message how far it is.
    async fn until(&mut self, last: u64) {
        while self.last < last {
            if let Packet::Publish(message) = self.next().await {
                let message: Value = serde_json::from_slice(&message.payload).unwrap();
                for record in message["records"].as_array().unwrap() {
                    self.last += u64::from(record["seq"] == self.last + 1);
                }
                let receipt = json!({"ledger": LEDGER_ID, "confirmed_seq": self.last}).to_string();
                self.client
                    .publish(format!("{BASE}/receipt"), QoS::AtLeastOnce, false, receipt)
                    .await
                    .unwrap();
            }
        }
    }
}

/// The broker drops what its queue does not hold, and has acknowledged it; nothing is lost all the same.
async fn a_queue_that_drops(version: MqttVersion) {
    let broker = Mosquitto::with(|_| "allow_anonymous true\nmax_queued_messages 3\n".to_owned());
    let mut billing = Billing::new(broker.port);
    billing.subscribe().await;
    let ledger = MemoryLedger::new();
    ledger.store(10);
    let settings = Mqtt { confirm: Confirm::Billing, ..settings(broker.port, version) };
    let mut gateway = Gateway::start(settings, &ledger);
    billing.until(10).await;
    billing.leave().await;
    ledger.store(20_000);
    gateway.until("all is acknowledged", |s| s.acknowledged == 20_010).await;
    assert_eq!(ledger.cursor(Cursor::Confirmed), 10);
    timeout(Duration::from_secs(120), billing.until(20_010)).await.expect("the gap closes");
    let said = tokio::spawn(async move {
        loop {
            billing.next().await; // its last receipt leaves only while it is polled
        }
    });
    gateway.until("all is confirmed", |s| s.confirmed == 20_010 && s.warnings.is_empty()).await;
    said.abort();
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_queue_of_the_broker_drops_comes_again_with_mqtt_5() {
    a_queue_that_drops(MqttVersion::V5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_full_queue_of_the_broker_drops_comes_again_with_mqtt_3_1_1() {
    a_queue_that_drops(MqttVersion::V311).await;
}
