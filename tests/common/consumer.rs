//! A consumer of everything that a gateway says, which subscribes again after each reconnection.

#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{collections::BTreeMap, time::Duration};

use meter_gateway::{ledger::chain::verify_line, model::GENESIS};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, Publish, QoS};
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

/// Long enough for a slow machine, short enough to notice.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// What every gateway under test calls itself.
pub const BASE: &str = "metering/v1/riverside/gw-01";

pub struct Consumer {
    pub client: AsyncClient,
    pub messages: mpsc::UnboundedReceiver<Publish>,
    task: JoinHandle<()>,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Consumer {
    /// Returns when it is subscribed.
    pub async fn start(port: u16, filter: &str, login: Option<(&str, &str)>) -> Consumer {
        let mut options = MqttOptions::new(format!("consumer-{}", fastrand::u64(..)), "127.0.0.1", port);
        options.set_max_packet_size(1 << 20, 1 << 20).set_keep_alive(Duration::from_secs(20));
        if let Some((name, password)) = login {
            options.set_credentials(name, password);
        }
        let (client, mut event_loop) = AsyncClient::new(options, 64);
        let (tx, messages) = mpsc::unbounded_channel();
        let (ready_tx, mut ready) = watch::channel(false);
        let (subscriber, filter) = (client.clone(), filter.to_owned());
        let task = tokio::spawn(async move {
            loop {
                match event_loop.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        subscriber.try_subscribe(&filter, QoS::AtLeastOnce).unwrap();
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => _ = ready_tx.send_replace(true),
                    Ok(Event::Incoming(Packet::Publish(publish))) => _ = tx.send(publish),
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await, // the broker is away
                }
            }
        });
        timeout(PATIENCE, ready.wait_for(|r| *r)).await.expect("subscribed").unwrap();
        Consumer { client, messages, task }
    }

    pub async fn next(&mut self, leaf: &str) -> Publish {
        loop {
            let message = timeout(PATIENCE, self.messages.recv()).await;
            let message = message.unwrap_or_else(|_| panic!("no {leaf} within {PATIENCE:?}")).unwrap();
            if message.topic == format!("{BASE}/{leaf}") {
                return message;
            }
        }
    }

    pub async fn next_json(&mut self, leaf: &str) -> Value {
        serde_json::from_slice(&self.next(leaf).await.payload).unwrap()
    }

    pub async fn say(&self, leaf: &str, payload: &Value) {
        self.client
            .publish(format!("{BASE}/{leaf}"), QoS::AtLeastOnce, false, payload.to_string())
            .await
            .unwrap();
    }
}

/// What billing has: each record once, as it came, in order, proved.
#[derive(Default)]
pub struct Accounts {
    /// The bytes of each record.
    pub records: BTreeMap<u64, Vec<u8>>,
    pub duplicates: u64,
    last: u64,
    head: Option<String>,
}

#[derive(Deserialize)]
struct Records<'a> {
    #[serde(borrow)]
    records: Vec<&'a RawValue>,
}

impl Accounts {
    /// Takes a `records` message, in order. Panics on a broken chain, or on a record that came before with other bytes.
    pub fn take(&mut self, message: &Publish) {
        assert!(message.payload.len() <= 128 * 1024 && !message.retain);
        let message: Records = serde_json::from_slice(&message.payload).unwrap();
        assert!((1..=500).contains(&message.records.len()));
        for raw in message.records {
            let line = raw.get().as_bytes();
            let record = verify_line(line).unwrap();
            if record.seq <= self.last {
                assert_eq!(self.records[&record.seq], line, "record {} came twice, and differs", record.seq);
                self.duplicates += 1;
                continue;
            }
            if record.seq != self.last + 1 {
                continue; // it comes again, or the test asks for it: a real consumer asks by itself (docs/mqtt.md)
            }
            assert_eq!(record.prev, *self.head.get_or_insert_with(|| GENESIS.into()), "the chain is broken");
            self.records.insert(record.seq, line.to_vec());
            (self.last, self.head) = (record.seq, Some(record.hash));
        }
    }

    /// Takes what comes until everything up to `seq` is there.
    pub async fn until(&mut self, seq: u64, consumer: &mut Consumer) {
        while self.last < seq {
            let message = consumer.next("records").await;
            self.take(&message);
        }
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    pub fn values(&self) -> impl Iterator<Item = Value> {
        self.records.values().map(|line| serde_json::from_slice(line).unwrap())
    }
}
