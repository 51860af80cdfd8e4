//! The publisher: a backlog through a real Mosquitto, against a bare MQTT client that sends the very same payloads.
//!
//! Both use MQTT 5, QoS 1 and the publisher's window, and both are heard by one subscriber. They take turns.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use meter_gateway::{
    config::{Confirm, Mqtt, MqttVersion},
    ledger::{Ledger, MemoryLedger},
    publish::{Context, Inventory, PublisherState, Topics, run as publish},
};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, v5};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use crate::{
    mosquitto::Mosquitto,
    samples,
    table::{self, quotient, rate, ratio},
};

/// Messages without an acknowledgement: the publisher's own limit.
const WINDOW: u16 = 32;
/// Where records go.
const TOPIC: &str = "metering/v1/riverside/gw-01/records";
/// No step may take longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Drafts of one append.
const GROUP: usize = 1000;

/// What the subscriber heard, and how long it took until the last acknowledgement.
struct Run {
    payloads: Vec<Bytes>,
    took: Duration,
}

pub async fn run(quick: bool) {
    let broker = Mosquitto::with(|_| "allow_anonymous true\nmax_queued_messages 0\n".to_owned());
    let mut heard = subscriber(broker.port).await;
    let rounds = if quick { 1 } else { 5 };
    let mut rows = Vec::new();
    for (kind, count) in samples::KINDS.into_iter().zip([10_000, 100_000]) {
        let count = if quick { count / 10 } else { count };
        let template = samples::drafts(kind, GROUP);
        let (mut gateway, mut bare) = (Duration::ZERO, Duration::ZERO);
        let (mut messages, mut bytes) = (0, 0);
        for _ in 0..rounds {
            let ledger = Arc::new(MemoryLedger::new("00000000000000000000000000000001"));
            for _ in 0..count / GROUP {
                ledger.append(template.clone()).await.unwrap();
            }
            let run = gateway_run(broker.port, &ledger, &mut heard).await;
            gateway += run.took;
            messages += run.payloads.len();
            bytes += run.payloads.iter().map(Bytes::len).sum::<usize>();
            bare += bare_run(broker.port, run.payloads, &mut heard).await;
        }
        let records = u64::try_from(count * rounds).unwrap();
        rows.push(vec![
            kind.to_owned(),
            records.to_string(),
            messages.to_string(),
            rate(records, gateway).to_string(),
            rate(records, bare).to_string(),
            ratio(bare, gateway),
            quotient(bytes as u128 * 1000, gateway.as_nanos().max(1)),
        ]);
    }
    let columns =
        ["records of", "records", "messages", "records/s", "bare client records/s", "ratio", "gateway MB/s"];
    table::print("Publisher: records acknowledged / the same payloads from a bare client", &columns, &rows);
}

/// Hears all records, as billing does.
async fn subscriber(port: u16) -> mpsc::UnboundedReceiver<Bytes> {
    let mut options = MqttOptions::new("billing", "127.0.0.1", port);
    options.set_max_packet_size(1 << 20, 1 << 20).set_keep_alive(Duration::from_secs(60));
    let (client, mut events) = AsyncClient::new(options, 8);
    client.subscribe(TOPIC, QoS::AtLeastOnce).await.unwrap();
    let (sender, heard) = mpsc::unbounded_channel();
    let (up, mut is_up) = watch::channel(false);
    tokio::spawn(async move {
        let _kept = client;
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::SubAck(_))) => _ = up.send_replace(true),
                Ok(Event::Incoming(Packet::Publish(message))) => _ = sender.send(message.payload),
                Ok(_) => {}
                Err(_) => return, // the broker is gone: whoever waits for a message says so
            }
        }
    });
    timeout(PATIENCE, is_up.wait_for(|up| *up)).await.unwrap().unwrap();
    heard
}

/// From the connection to the acknowledgement of the last record.
async fn gateway_run(
    port: u16,
    ledger: &Arc<MemoryLedger>,
    heard: &mut mpsc::UnboundedReceiver<Bytes>,
) -> Run {
    let (_inbox, inbox) = mpsc::channel(8);
    let (events, _events) = mpsc::channel(8);
    let (_inventory, inventory) = watch::channel(Inventory::new());
    let (_status, status) = watch::channel(json!({}));
    let (state, mut seen) = watch::channel(PublisherState::default());
    let (stop, shutdown) = watch::channel(false);
    let settings = Mqtt {
        host: "127.0.0.1".into(),
        port,
        tls: None,
        version: MqttVersion::V5,
        topic_prefix: "metering/v1".into(),
        client_id: "gw-01".into(),
        username: None,
        password_file: None,
        confirm: Confirm::Broker,
    };
    let names = Topics { prefix: "metering/v1".into(), site: "riverside".into(), gateway: "gw-01".into() };
    let ledger: Arc<dyn Ledger> = Arc::clone(ledger) as _;
    let last = ledger.head().borrow().seq;
    let task = tokio::spawn(publish(Context {
        broker: std::sync::Arc::new(meter_gateway::publish::RealBroker),
        settings,
        names,
        ledger,
        inbox,
        events,
        status,
        inventory,
        state,
        shutdown,
    }));
    timeout(PATIENCE, seen.wait_for(|state| state.connected)).await.unwrap().unwrap();
    let began = Instant::now();
    timeout(PATIENCE, seen.wait_for(|state| state.acknowledged == last)).await.unwrap().unwrap();
    let took = began.elapsed();
    stop.send_replace(true);
    task.await.unwrap();
    let mut payloads = Vec::new();
    let end = format!("\"seq\":{last},");
    while !payloads.last().is_some_and(|payload: &Bytes| String::from_utf8_lossy(payload).contains(&end)) {
        payloads.push(timeout(PATIENCE, heard.recv()).await.unwrap().unwrap());
    }
    Run { payloads, took }
}

/// From the CONNACK to the last PUBACK.
async fn bare_run(port: u16, payloads: Vec<Bytes>, heard: &mut mpsc::UnboundedReceiver<Bytes>) -> Duration {
    let mut options = v5::MqttOptions::new("bare", "127.0.0.1", port);
    let mut network = rumqttc::NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options
        .set_keep_alive(Duration::from_secs(20))
        .set_network_options(network)
        .set_outgoing_inflight_upper_limit(WINDOW);
    let (client, mut events) = v5::AsyncClient::new(options, WINDOW.into());
    let connected = async {
        loop {
            if let v5::Event::Incoming(v5::mqttbytes::v5::Packet::ConnAck(_)) = events.poll().await.unwrap() {
                return;
            }
        }
    };
    timeout(PATIENCE, connected).await.unwrap();
    let expected = payloads.len();
    let began = Instant::now();
    let sender = client.clone();
    let sending = tokio::spawn(async move {
        for payload in payloads {
            sender.publish(TOPIC, v5::mqttbytes::QoS::AtLeastOnce, false, payload).await.unwrap();
        }
    });
    let acknowledged = async {
        let mut count = 0;
        while count < expected {
            if let v5::Event::Incoming(v5::mqttbytes::v5::Packet::PubAck(_)) = events.poll().await.unwrap() {
                count += 1;
            }
        }
    };
    timeout(PATIENCE, acknowledged).await.unwrap();
    let took = began.elapsed();
    sending.await.unwrap();
    // What is still on its way to the subscriber would slow the next one down.
    for _ in 0..expected {
        timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
    }
    took
}
