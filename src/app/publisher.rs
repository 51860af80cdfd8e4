//! The publisher at work: its task, what it is told, and what comes down from the broker.
//!
//! Knows no broker and no client: `publish` does. A new `[mqtt]` is a new task; the ledger's cursors are all it needs.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    commands,
    config::Settings,
    console::Console,
    model::{Draft, Seq, change},
    pipeline,
    publish::{self, Broker, Incoming, Inventory, Outgoing, PublisherState, Topics},
    telemetry::{Telemetry, lock},
};

/// Requests that may wait for the publisher: replays, inventory, responses.
pub(super) const PUBLISHER_INBOX: usize = 64;
/// How long the publisher's end may take.
const LAST_MESSAGES: Duration = Duration::from_secs(2);

/// The publisher at work.
pub(super) struct Publisher {
    console: Arc<Console>,
    ends: Ends,
    running: Running,
}

/// What one task after another is connected to.
struct Ends {
    telemetry: Arc<Telemetry>,
    broker: Arc<dyn Broker>,
    state: watch::Sender<PublisherState>,
    events: mpsc::Sender<Incoming>,
    status: watch::Sender<Value>,
    inventory: watch::Sender<Inventory>,
}

/// The task; it returns what was asked of it and was not done.
struct Running {
    task: JoinHandle<Vec<Outgoing>>,
    stop: watch::Sender<bool>,
}

impl Publisher {
    /// Puts it to work with the configuration in force. It shows itself in `state`, and takes `requests`.
    pub(super) fn start(
        telemetry: &Arc<Telemetry>,
        console: &Arc<Console>,
        broker: Arc<dyn Broker>,
        state: watch::Sender<PublisherState>,
        requests: mpsc::Receiver<Outgoing>,
    ) -> Publisher {
        let (events, mut incoming) = mpsc::channel(PUBLISHER_INBOX);
        let (asked, known) = (Arc::clone(console), Arc::clone(telemetry));
        tokio::spawn(async move {
            let memory = Arc::new(commands::Memory::default());
            while let Some(event) = incoming.recv().await {
                answer(event, &asked, &known, &memory).await;
            }
        });
        let ends = Ends {
            broker,
            state,
            events,
            status: watch::channel(telemetry.published_status()).0,
            inventory: watch::channel(inventories(&telemetry.settings())).0,
            telemetry: Arc::clone(telemetry),
        };
        let running = ends.run(requests);
        Publisher { console: Arc::clone(console), ends, running }
    }

    /// What the daemon adds to the retained status.
    pub(super) fn tell(&self, status: Value) {
        self.ends.status.send_if_modified(|now| {
            let changed = *now != status;
            *now = status;
            changed
        });
    }

    /// The meters of the configuration in force.
    pub(super) fn announce(&self) {
        let _ = self.ends.inventory.send(inventories(&self.ends.telemetry.settings()));
    }

    /// It does so only when it was stopped, or by a fault of its own.
    pub(super) fn has_ended(&self) -> bool {
        self.running.task.is_finished()
    }

    /// Another broker, login or topic: says goodbye to the old one and begins with the configuration in force. What was
    /// asked of it meanwhile is done there.
    pub(super) async fn start_again(&mut self) {
        let (inbox, requests) = mpsc::channel(PUBLISHER_INBOX);
        *lock(&self.console.publisher) = inbox.clone();
        let left = self.stop().await;
        self.running = self.ends.run(requests);
        for request in left {
            let _ = inbox.send(request).await;
        }
    }

    /// Waits for the last acknowledgements and says goodbye.
    pub(super) async fn stop(&mut self) -> Vec<Outgoing> {
        let _ = self.running.stop.send(true);
        let left = timeout(LAST_MESSAGES, &mut self.running.task).await;
        self.running.task.abort();
        left.ok().and_then(Result::ok).unwrap_or_default()
    }
}

impl Ends {
    fn run(&self, requests: mpsc::Receiver<Outgoing>) -> Running {
        let settings = self.telemetry.settings();
        let (stop, shutdown) = watch::channel(false);
        let task = tokio::spawn(publish::run(publish::Context {
            settings: settings.mqtt.clone(),
            names: Topics {
                prefix: settings.mqtt.topic_prefix.clone(),
                site: settings.site.id.clone(),
                gateway: settings.gateway.id.clone(),
            },
            ledger: Arc::clone(&self.telemetry.ledger),
            inbox: requests,
            events: self.events.clone(),
            status: self.status.subscribe(),
            inventory: self.inventory.subscribe(),
            state: self.state.clone(),
            shutdown,
            broker: Arc::clone(&self.broker),
        }));
        Running { task, stop }
    }
}

fn inventories(settings: &Settings) -> Inventory {
    settings.meters.iter().map(|meter| (meter.id.clone(), publish::describe(meter))).collect()
}

/// What comes down from the broker: commands, and what the publisher found on its way.
async fn answer(
    event: Incoming,
    console: &Arc<Console>,
    telemetry: &Arc<Telemetry>,
    memory: &Arc<commands::Memory>,
) {
    match event {
        Incoming::Damaged { seq, detail } => {
            put_on_record(change::RECORD_DAMAGED, damage(seq, detail), telemetry).await;
        }
        Incoming::OnRecord { change, fields } => put_on_record(change, fields, telemetry).await,
        Incoming::Command(command) => {
            let (console, memory) = (Arc::clone(console), Arc::clone(memory));
            // A read takes seconds: other commands must not wait behind it.
            tokio::spawn(async move {
                if let Some(response) = commands::answer(&command, &console, &memory).await {
                    let _ = console.publisher().send(Outgoing::Response(response)).await;
                }
            });
        }
    }
}

async fn put_on_record(name: &str, fields: Map<String, Value>, telemetry: &Telemetry) {
    let draft = Draft::change(name, fields, telemetry.clock.wall(), telemetry.clock.state());
    pipeline::append(&telemetry.ledger, vec![draft]).await;
}

/// Not `seq`: that name is the record's own, and the ledger refuses a draft that uses it.
fn damage(seq: Seq, detail: String) -> Map<String, Value> {
    Map::from_iter([("record".into(), seq.into()), ("detail".into(), detail.into())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ledger::{Ledger, MemoryLedger},
        model::{ClockState, Utc},
    };

    #[tokio::test]
    async fn a_damaged_record_can_be_put_on_record() {
        let ledger = MemoryLedger::new("0123456789abcdef0123456789abcdef");
        let fields = damage(7, "the hash does not match".into());
        let draft = Draft::change(change::RECORD_DAMAGED, fields, Utc::UNIX_EPOCH, ClockState::Synced);
        ledger.append(vec![draft]).await.unwrap();
        let line = ledger.read(1, 1, 1000).unwrap().remove(0);
        assert_eq!(serde_json::from_slice::<Value>(&line.bytes).unwrap()["record"], 7);
    }
}
