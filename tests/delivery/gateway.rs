//! The publisher with a ledger in memory, and a stand-in for the daemon that stores what has to be put on record.

#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{sync::Arc, time::Duration};

use chrono::DateTime;
use meter_gateway::{
    config::{Confirm, Mqtt, MqttVersion},
    ledger::{Ledger, MemoryLedger, SharedLedger},
    model::{ClockState, Draft},
    publish::{Context, Incoming, Inventory, Outgoing, PublisherState, RealBroker, Topics, run},
};
use serde_json::{Map, Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(90);

pub fn ledger_id() -> &'static str {
    "00112233445566778899aabbccddeeff"
}

pub fn settings(port: u16, version: MqttVersion) -> Mqtt {
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

/// Records of a common size.
pub fn drafts(count: u64) -> Vec<Draft> {
    let fields = Map::from_iter([("pad".to_owned(), Value::from("x".repeat(100)))]);
    (0..count)
        .map(|_| Draft::change("test", fields.clone(), DateTime::UNIX_EPOCH, ClockState::Synced))
        .collect()
}

pub async fn stored(count: u64) -> Arc<MemoryLedger> {
    let ledger = Arc::new(MemoryLedger::new(ledger_id()));
    ledger.append(drafts(count)).await.unwrap();
    ledger
}

pub struct Gateway {
    task: JoinHandle<Vec<Outgoing>>,
    house: JoinHandle<()>,
    pub inbox: mpsc::Sender<Outgoing>,
    pub state: watch::Receiver<PublisherState>,
    shutdown: watch::Sender<bool>,
    _said: (watch::Sender<Value>, watch::Sender<Inventory>),
}

impl Gateway {
    pub fn start(settings: Mqtt, ledger: &SharedLedger) -> Gateway {
        let (inbox, inbox_rx) = mpsc::channel(8);
        let (events, mut heard) = mpsc::channel(8);
        let (inventory, inventory_rx) =
            watch::channel(Inventory::from([("E-1".parse().unwrap(), json!({"id": "E-1"}))]));
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
            events,
            status: status_rx,
            inventory: inventory_rx,
            state: state_tx,
            shutdown: shutdown_rx,
            broker: Arc::new(RealBroker),
        };
        let keeper = ledger.clone();
        let house = tokio::spawn(async move {
            while let Some(event) = heard.recv().await {
                if let Incoming::OnRecord { change, fields } = event {
                    let draft = Draft::change(change, fields, DateTime::UNIX_EPOCH, ClockState::Synced);
                    keeper.append(vec![draft]).await.unwrap();
                }
            }
        });
        let task = tokio::spawn(run(context));
        Gateway { task, house, inbox, state, shutdown, _said: (status, inventory) }
    }

    pub async fn until(&mut self, what: &str, good: impl FnMut(&PublisherState) -> bool) {
        let waited = timeout(PATIENCE, self.state.wait_for(good)).await.map(|r| r.unwrap().clone());
        assert!(waited.is_ok(), "{what}: {:?}", *self.state.borrow());
    }

    pub async fn stop(self) {
        self.shutdown.send_replace(true);
        timeout(Duration::from_secs(6), self.task).await.unwrap().unwrap();
        self.house.await.unwrap();
    }
}
