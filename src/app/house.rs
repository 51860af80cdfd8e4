//! The house without its doors: buses, pipeline, publisher, manifests and timekeeping around one ledger.
//!
//! What comes from the outside is given to it: time, lines, the broker, and a ledger that is open already. The daemon
//! gives it the machine's; a simulation gives it its own, and runs the same code. No sockets and no signals here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    buses::{Buses, start_buses},
    changes::{Changes, Takes},
    descriptors,
    pace::MeasuredPace,
    past::{LAST_RECORDS, configuration, incident_drafts, record, tell_of_the_past},
    publisher::{PUBLISHER_INBOX, Publisher},
};
use crate::{
    billing,
    bus::{Handed, Ports, readings},
    clock::Clock,
    config::Settings,
    console::{Actions, Console},
    identity::Identity,
    ledger::SharedLedger,
    model::{BusId, Draft, change},
    pipeline::{self, TimeTeller},
    publish::{Broker, PublisherState},
    telemetry::{Telemetry, lock},
};

/// A bus that makes no turn for so long hangs: its longest exchange is 10 s of waiting and 40 s of draining.
const BUS_STALL: Duration = Duration::from_secs(90);
/// A publisher that makes no turn for so long hangs: it turns every 10 s when there is nothing to do.
const PUBLISHER_STALL: Duration = Duration::from_secs(60);
/// A batch that is being written for so long hangs in the disk. A disk that refuses (full) answers, and is waited for.
const DISK_STALL: Duration = Duration::from_secs(90);

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
    readings: readings::Sender,
    /// Outlives the buses, which a reload starts again.
    handed: Arc<Handed>,
    writer: JoinHandle<()>,
    buses: Buses,
    publisher: Publisher,
    timekeeping: JoinHandle<()>,
    down: watch::Sender<bool>,
    progress: HashMap<BusId, (u64, Instant)>,
    pace: MeasuredPace,
    /// Incidents of the ledger that are on record.
    told: usize,
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
        let (readings, queue) = readings::readings();
        let writer = tokio::spawn(pipeline::write(queue, ledger, clock));
        let (inbox, requests) = mpsc::channel(PUBLISHER_INBOX);
        let (ill, health) = watch::channel(None);
        let console = Arc::new(Console {
            telemetry: Arc::clone(&telemetry),
            demands: Mutex::new(HashMap::new()),
            actions: Actions::default(),
            publisher: Mutex::new(inbox),
            ill: health,
        });
        descriptors::check(&telemetry, &settings);
        let handed = Arc::default();
        let pace = MeasuredPace::new(&settings);
        let buses = start_buses(&settings, &telemetry, &console, &outside.ports, &readings, &handed);
        let (down, ends) = watch::channel(false);
        start_manifests(&telemetry, ends);
        let broker = Arc::clone(&outside.broker);
        let publisher = Publisher::start(&telemetry, &console, broker, publisher_state, requests);
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
            pace,
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

    /// Looks whether everything moves, and tells the console and the broker. To be called every few seconds. False when
    /// something hangs, and a restart may help.
    pub fn supervise(&mut self) -> bool {
        let stalled = self.illness();
        let moves = stalled.is_none();
        // A restart would not bring files back, and lets go of what is still open: that is for a person to decide.
        let missing = self.telemetry.ledger.condition().missing;
        self.telemetry.warn("ledger_files_missing", missing.clone());
        let ill = stalled.or(missing);
        self.ill.send_if_modified(|now| {
            let changed = *now != ill;
            // Once per edge, by whether there is a reason: the reason itself counts seconds.
            match (&*now, &ill) {
                (None, Some(reason)) if moves => tracing::error!(%reason, "the gateway is unhealthy: files of the ledger are missing"),
                (None, Some(reason)) => {
                    tracing::error!(%reason, "the gateway is unhealthy: something hangs, the watchdog is not fed any more");
                }
                (Some(_), None) => tracing::info!("the gateway is healthy again"),
                _ => {}
            }
            now.clone_from(&ill);
            changed
        });
        self.tell_incidents();
        self.publisher.tell(self.telemetry.published_status());
        moves
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
        let buses = self.telemetry.bus_health();
        self.telemetry.warn("bus_too_slow", self.pace.look(&buses, Instant::now()));
        for (id, health) in buses {
            let seen = self.progress.entry(id.clone()).or_insert((health.progress, Instant::now()));
            if seen.0 != health.progress {
                *seen = (health.progress, Instant::now());
            } else if seen.1.elapsed() > BUS_STALL {
                reasons.push(format!("bus `{id}` has made no progress for {} s", seen.1.elapsed().as_secs()));
            }
        }
        let turned = self.telemetry.publisher.borrow().last_turn;
        if self.publisher.has_ended() {
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

    /// Another configuration from now on, in all that a reload can change: the buses start again, and the publisher where
    /// it has to. Whether that is on record already.
    pub async fn take_over(&mut self, settings: Arc<Settings>) -> bool {
        let old = self.telemetry.settings();
        let changes = Changes::between(&old, &settings);
        self.buses.stop().await;
        *lock(&self.telemetry.settings) = Arc::clone(&settings);
        self.progress.clear();
        self.pace = MeasuredPace::new(&settings);
        let (telemetry, console, ports) = (&self.telemetry, &self.console, &self.outside.ports);
        descriptors::check(telemetry, &settings);
        self.buses = start_buses(&settings, telemetry, console, ports, &self.readings, &self.handed);
        self.publisher.announce();
        if changes.any(Takes::Publisher) {
            self.publisher.start_again().await;
        }
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
            tracing::error!(
                waited_secs = LAST_RECORDS.as_secs(),
                "the last records were not stored before the end: the ledger did not take them in time"
            );
        }
        self.publisher.stop().await;
        let _ = self.down.send(true);
    }
}

/// Ends with the servers.
fn start_manifests(telemetry: &Arc<Telemetry>, down: watch::Receiver<bool>) {
    let (ledger, clock) = (Arc::clone(&telemetry.ledger), Arc::clone(&telemetry.clock));
    let keeper = billing::Keeper::new(ledger, Arc::clone(&telemetry.identity), clock);
    let telemetry = Arc::clone(telemetry);
    tokio::spawn(billing::keep(keeper, move || telemetry.settings(), down));
}
