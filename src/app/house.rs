//! The house without its doors: buses, pipeline, publisher, manifests and timekeeping around one ledger.
//!
//! What comes from the outside is given to it: time, lines, the broker, and a ledger that is open already. The daemon
//! gives it the machine's; a simulation gives it its own, and runs the same code. No sockets and no signals here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    buses::{Buses, start_buses},
    past::{LAST_RECORDS, configuration, incident_drafts, record, tell_of_the_past},
};
use crate::{
    billing,
    bus::{Handed, Ports},
    clock::Clock,
    commands,
    config::Settings,
    console::Console,
    identity::Identity,
    ledger::SharedLedger,
    model::{BusId, Draft, Reading, Seq, change},
    pipeline::{self, READINGS_QUEUE, TimeTeller},
    publish::{self, Broker, Incoming, Inventory, Outgoing, PublisherState, Topics},
    telemetry::{Telemetry, lock},
};

/// Requests that may wait for the publisher: replays, inventory, responses.
const PUBLISHER_INBOX: usize = 64;
/// A bus that makes no turn for so long hangs: its longest exchange is 10 s of waiting and 40 s of draining.
const BUS_STALL: Duration = Duration::from_secs(90);
/// A publisher that makes no turn for so long hangs: it turns every 10 s when there is nothing to do.
const PUBLISHER_STALL: Duration = Duration::from_secs(60);
/// A batch that is being written for so long hangs in the disk. A disk that refuses (full) answers, and is waited for.
const DISK_STALL: Duration = Duration::from_secs(90);
/// How long the publisher's end may take.
const LAST_MESSAGES: Duration = Duration::from_secs(2);

/// Where the house gets from what it does not make itself.
#[derive(Clone)]
pub struct Outside {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Lines.
    pub ports: Arc<dyn Ports>,
    /// Connections to the broker.
    pub broker: Arc<dyn Broker>,
}

/// The parts at work.
pub struct House {
    outside: Outside,
    telemetry: Arc<Telemetry>,
    console: Arc<Console>,
    ill: watch::Sender<Option<String>>,
    readings: mpsc::Sender<Reading>,
    /// Outlives the buses, which a reload starts again.
    handed: Arc<Handed>,
    writer: JoinHandle<()>,
    buses: Buses,
    publisher: Publisher,
    timekeeping: JoinHandle<()>,
    down: watch::Sender<bool>,
    progress: HashMap<BusId, (u64, Instant)>,
    /// Incidents of the ledger that are on record.
    told: usize,
}

struct Publisher {
    task: JoinHandle<()>,
    status: watch::Sender<Value>,
    inventory: watch::Sender<Inventory>,
    stop: watch::Sender<bool>,
}

impl House {
    /// Puts the parts to work. `incidents` is what was found damaged when the ledger was opened.
    pub async fn start(
        settings: Arc<Settings>,
        ledger: SharedLedger,
        identity: Arc<Identity>,
        outside: Outside,
        incidents: &[String],
    ) -> House {
        let clock = Arc::clone(&outside.clock);
        let told = ledger.condition().incidents.len().min(incidents.len());
        let time = TimeTeller::new(Arc::clone(&clock), Arc::clone(&ledger));
        tell_of_the_past(&ledger, &settings, &clock, incidents).await;
        let timekeeping = tokio::spawn(time.run());
        let (publisher_state, publisher_seen) = watch::channel(PublisherState::default());
        let telemetry = Arc::new(Telemetry {
            started_at: clock.wall(),
            clock: Arc::clone(&clock),
            ledger: Arc::clone(&ledger),
            identity,
            settings: Mutex::new(Arc::clone(&settings)),
            buses: Mutex::new(Vec::new()),
            publisher: publisher_seen,
            warnings: Mutex::new(Vec::new()),
        });
        let (readings, queue) = mpsc::channel(READINGS_QUEUE);
        let writer = tokio::spawn(pipeline::write(queue, ledger, clock));
        let (inbox, requests) = mpsc::channel(PUBLISHER_INBOX);
        let (ill, health) = watch::channel(None);
        let console = Arc::new(Console {
            telemetry: Arc::clone(&telemetry),
            demands: Mutex::new(HashMap::new()),
            publisher: inbox,
            ill: health,
        });
        let handed = Arc::default();
        let buses = start_buses(&settings, &telemetry, &console, &outside.ports, &readings, &handed);
        let (down, ends) = watch::channel(false);
        start_manifests(&telemetry, ends);
        let broker = Arc::clone(&outside.broker);
        let publisher = start_publisher(&settings, &telemetry, &console, requests, publisher_state, broker);
        House {
            outside,
            telemetry,
            console,
            ill,
            readings,
            handed,
            writer,
            buses,
            publisher,
            timekeeping,
            down,
            progress: HashMap::new(),
            told,
        }
    }

    /// What can be asked of it.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// What its servers work on.
    pub fn console(&self) -> &Arc<Console> {
        &self.console
    }

    /// Looks whether everything moves, and tells the console and the broker. To be called every few seconds.
    pub fn supervise(&mut self) -> bool {
        let ill = self.illness();
        self.ill.send_if_modified(|now| {
            let changed = *now != ill;
            // Once per edge, by whether there is a reason: the reason itself counts seconds.
            match (&*now, &ill) {
                (None, Some(reason)) => {
                    tracing::error!(%reason, "no progress: the watchdog is not fed any more");
                }
                (Some(_), None) => tracing::info!("everything moves again"),
                _ => {}
            }
            now.clone_from(&ill);
            changed
        });
        self.tell_incidents();
        let extras = self.telemetry.published_status();
        self.publisher.status.send_if_modified(|now| {
            let changed = *now != extras;
            *now = extras;
            changed
        });
        ill.is_none()
    }

    /// What went wrong in the ledger since the last look goes on record.
    fn tell_incidents(&mut self) {
        let drafts = self.untold_incidents();
        if !drafts.is_empty() {
            let ledger = Arc::clone(&self.telemetry.ledger);
            tokio::spawn(async move { pipeline::append(&ledger, drafts).await });
        }
    }

    fn untold_incidents(&mut self) -> Vec<Draft> {
        let incidents = self.telemetry.ledger.condition().incidents;
        let new = incidents.get(self.told..).unwrap_or_default();
        self.told = incidents.len();
        new.iter().flat_map(|incident| incident_drafts(incident, &self.outside.clock)).collect()
    }

    fn illness(&mut self) -> Option<String> {
        let mut reasons = Vec::new();
        for (id, health) in self.telemetry.bus_health() {
            let seen = self.progress.entry(id.clone()).or_insert((health.progress, Instant::now()));
            if seen.0 != health.progress {
                *seen = (health.progress, Instant::now());
            } else if seen.1.elapsed() > BUS_STALL {
                reasons.push(format!("bus `{id}` has made no progress for {} s", seen.1.elapsed().as_secs()));
            }
        }
        let turned = self.telemetry.publisher.borrow().last_turn;
        if self.publisher.task.is_finished() {
            reasons.push("the publisher has stopped".into());
        } else if let Some(pause) = turned.map(|at| at.elapsed()).filter(|pause| *pause > PUBLISHER_STALL) {
            reasons.push(format!("the publisher has made no progress for {} s", pause.as_secs()));
        }
        if let Some(pause) = self.telemetry.ledger.condition().busy_for.filter(|pause| *pause > DISK_STALL) {
            reasons.push(format!("the ledger has been writing one batch for {} s", pause.as_secs()));
        }
        if self.writer.is_finished() {
            reasons.push("the writer has stopped".into());
        }
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Other meters, buses and profiles from now on. Whether that is on record already.
    pub async fn take_over(&mut self, settings: Arc<Settings>) -> bool {
        let old = self.telemetry.settings();
        self.buses.stop().await;
        *lock(&self.telemetry.settings) = Arc::clone(&settings);
        self.progress.clear();
        let (telemetry, console, ports) = (&self.telemetry, &self.console, &self.outside.ports);
        self.buses = start_buses(&settings, telemetry, console, ports, &self.readings, &self.handed);
        let _ = self.publisher.inventory.send(inventories(&settings));
        let fields = configuration(Some(&old.hash), &settings.hash);
        let clock = &self.outside.clock;
        let draft = Draft::change(change::CONFIGURATION, fields, clock.wall(), clock.state());
        record(&self.telemetry.ledger, vec![draft]).await
    }

    /// Buses first, then what they read is stored, then it is sent. The ledger is its owner's to close.
    pub async fn stop(mut self) {
        self.buses.stop().await;
        lock(&self.console.demands).clear();
        let incidents = self.untold_incidents();
        if !incidents.is_empty() {
            record(&self.telemetry.ledger, incidents).await;
        }
        drop(self.readings);
        self.timekeeping.abort();
        if timeout(LAST_RECORDS, &mut self.writer).await.is_err() {
            tracing::error!("records could not be stored before the end");
        }
        let _ = self.publisher.stop.send(true);
        let _ = timeout(LAST_MESSAGES, &mut self.publisher.task).await;
        self.publisher.task.abort();
        let _ = self.down.send(true);
    }
}

fn start_publisher(
    settings: &Arc<Settings>,
    telemetry: &Arc<Telemetry>,
    console: &Arc<Console>,
    requests: mpsc::Receiver<Outgoing>,
    state: watch::Sender<PublisherState>,
    broker: Arc<dyn Broker>,
) -> Publisher {
    let (status, status_seen) = watch::channel(telemetry.published_status());
    let (inventory, inventory_seen) = watch::channel(inventories(settings));
    let (stop, down) = watch::channel(false);
    let (events, mut incoming) = mpsc::channel(PUBLISHER_INBOX);
    let names = Topics {
        prefix: settings.mqtt.topic_prefix.clone(),
        site: settings.site.id.clone(),
        gateway: settings.gateway.id.clone(),
    };
    let task = tokio::spawn(publish::run(publish::Context {
        settings: settings.mqtt.clone(),
        names,
        ledger: Arc::clone(&telemetry.ledger),
        inbox: requests,
        events,
        status: status_seen,
        inventory: inventory_seen,
        state,
        shutdown: down,
        broker,
    }));
    let (console, telemetry) = (Arc::clone(console), Arc::clone(telemetry));
    tokio::spawn(async move {
        let memory = Arc::new(commands::Memory::default());
        while let Some(event) = incoming.recv().await {
            answer(event, &console, &telemetry, &memory).await;
        }
    });
    Publisher { task, status, inventory, stop }
}

/// Ends with the servers.
fn start_manifests(telemetry: &Arc<Telemetry>, down: watch::Receiver<bool>) {
    let (ledger, clock) = (Arc::clone(&telemetry.ledger), Arc::clone(&telemetry.clock));
    let keeper = billing::Keeper::new(ledger, Arc::clone(&telemetry.identity), clock);
    let telemetry = Arc::clone(telemetry);
    tokio::spawn(billing::keep(keeper, move || telemetry.settings(), down));
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
                    let _ = console.publisher.send(Outgoing::Response(response)).await;
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
