//! Composition: builds the parts, one task for each bus, supervises them, and takes them down in order.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context;
use chrono::TimeDelta;
use serde_json::{Map, Value};
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, interval, timeout},
};

use crate::{
    billing,
    bus::{BusHealth, BusTask, Cycle, DemandRequest, MeterPlan, Now, RealPorts},
    clock::{Clock, SystemClock},
    commands,
    config::{self, Bus, Meter, Settings},
    console::{self, Console},
    identity::Identity,
    ledger::{self, Cursor, FileLedger, Ledger, Pruned, SharedLedger},
    model::{BusId, Draft, Reading, Slots, Utc, rfc3339},
    pipeline::{self, BusJudge, READINGS_QUEUE, TimeTeller},
    profile,
    publish::{self, Incoming, Inventory, Outgoing, PublisherState, Topics},
    systemd,
    telemetry::{Telemetry, lock},
};

/// Name of the Unix socket in the data directory.
pub const SOCKET: &str = "meter-gateway.sock";

/// Requests that may wait for the publisher: replays, inventory, responses.
const PUBLISHER_INBOX: usize = 64;
/// Reads that may wait for one bus.
const DEMAND_QUEUE: usize = 64;
/// A bus that makes no turn for so long hangs: its longest exchange is 10 s of waiting and 40 s of draining.
const BUS_STALL: Duration = Duration::from_secs(90);
/// A publisher that makes no turn for so long hangs: it turns every 10 s when there is nothing to do.
const PUBLISHER_STALL: Duration = Duration::from_secs(60);
/// How often progress is looked at.
const SUPERVISION: Duration = Duration::from_secs(2);
/// Pause before a bus task that panicked is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long the end may take, part by part; together they stay below 5 s.
const LAST_SWEEPS: Duration = Duration::from_millis(1500);
const LAST_RECORDS: Duration = Duration::from_millis(500);
const LAST_MESSAGES: Duration = Duration::from_secs(2);

/// What differs between the daemon proper and the one inside the demo.
#[derive(Default)]
pub struct Options {
    /// Ends the daemon as SIGTERM does; the sender is the owner's.
    pub stop: Option<watch::Receiver<bool>>,
}

/// Runs the daemon until SIGTERM, SIGINT or `options.stop`.
pub async fn run(config: PathBuf, settings: Settings, options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reload = signal(SignalKind::hangup())?;
    let mut stop = options.stop.unwrap_or_else(|| watch::channel(false).1);
    systemd::status("opening the ledger");
    // Opening can take minutes (a damaged index, a full disk): whoever asks for the end meanwhile gets it.
    let started = tokio::select! {
        started = Daemon::start(settings) => Some(started?),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        () = asked_to_stop(&mut stop) => None,
    };
    let Some(mut daemon) = started else {
        systemd::stopping();
        return Ok(());
    };
    systemd::ready(&daemon.status_line());
    let mut supervision = interval(SUPERVISION);
    let mut fed = Instant::now();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = asked_to_stop(&mut stop) => break,
            _ = reload.recv() => {
                systemd::reloading();
                daemon.refused = daemon.reload(&config).await.is_err();
                systemd::ready(&daemon.status_line());
            }
            _ = supervision.tick() => {
                let well = daemon.supervise();
                if well && systemd::watchdog_interval().is_some_and(|every| fed.elapsed() + SUPERVISION >= every) {
                    systemd::watchdog();
                    systemd::status(&daemon.status_line());
                    fed = Instant::now();
                }
            }
        }
    }
    systemd::stopping();
    daemon.stop().await;
    Ok(())
}

/// Never, when the owner has gone without a word.
async fn asked_to_stop(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Makes the data directory, readable by its owner only.
pub fn make_data_dir(dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| {
        format!(
            "{}: the data directory cannot be made\n  hint: [gateway] data_dir must be writable by this user",
            dir.display()
        )
    })
}

struct Daemon {
    clock: Arc<SystemClock>,
    files: Arc<FileLedger>,
    telemetry: Arc<Telemetry>,
    console: Arc<Console>,
    ill: watch::Sender<Option<String>>,
    readings: mpsc::Sender<Reading>,
    writer: JoinHandle<()>,
    buses: Buses,
    publisher: Publisher,
    servers: JoinSet<io::Result<()>>,
    servers_stop: watch::Sender<bool>,
    progress: HashMap<BusId, (u64, Instant)>,
    /// The last reload found a faulty configuration: the one on disk is not the one in force.
    refused: bool,
    timekeeping: JoinHandle<()>,
    pruned: Instant,
}

/// The new configuration was refused; the journal has the reasons.
struct Refused;

struct Buses {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

struct Publisher {
    task: JoinHandle<()>,
    status: watch::Sender<Value>,
    inventory: watch::Sender<Inventory>,
    stop: watch::Sender<bool>,
}

impl Daemon {
    async fn start(settings: Settings) -> anyhow::Result<Daemon> {
        let settings = Arc::new(settings);
        let dir = settings.gateway.data_dir.clone();
        make_data_dir(&dir)?;
        let clock = Arc::new(SystemClock::new());
        clock.refresh().await;
        let dyn_clock: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let now = clock.wall();
        let (files, incidents) = tokio::task::spawn_blocking(move || {
            FileLedger::open(&dir, ledger::Options { now, ..ledger::Options::default() })
        })
        .await??;
        let ledger: SharedLedger = Arc::clone(&files) as _;
        let identity = Arc::new(Identity::load_or_create(&settings.gateway.data_dir)?);
        billing::settle(&identity, &ledger, &settings.gateway.data_dir)?;
        let time = TimeTeller::new(Arc::clone(&dyn_clock), Arc::clone(&ledger));
        tell_of_the_past(&ledger, &settings, &dyn_clock, incidents).await;
        let timekeeping = tokio::spawn(time.run());

        let (publisher_state, publisher_seen) = watch::channel(PublisherState::default());
        let telemetry = Arc::new(Telemetry {
            started_at: clock.wall(),
            clock: Arc::clone(&dyn_clock),
            ledger: Arc::clone(&ledger),
            identity,
            settings: Mutex::new(Arc::clone(&settings)),
            buses: Mutex::new(Vec::new()),
            publisher: publisher_seen,
        });

        let (readings, queue) = mpsc::channel(READINGS_QUEUE);
        let writer = tokio::spawn(pipeline::write(queue, Arc::clone(&ledger), Arc::clone(&dyn_clock)));
        let (inbox, requests) = mpsc::channel(PUBLISHER_INBOX);
        let (ill, health) = watch::channel(None);
        let console = Arc::new(Console {
            telemetry: Arc::clone(&telemetry),
            demands: Mutex::new(HashMap::new()),
            publisher: inbox,
            ill: health,
        });
        let (servers_stop, servers_down) = watch::channel(false);
        let servers = listen(&settings, &console, &servers_down).await?;
        let buses = start_buses(&settings, &telemetry, &console, &readings);
        start_manifests(&telemetry, servers_down);
        let publisher = start_publisher(&settings, &telemetry, &console, requests, publisher_state);
        tracing::info!(
            site = settings.site.id,
            gateway = settings.gateway.id,
            ledger = ledger.id(),
            meters = settings.meters.len(),
            buses = settings.buses.len(),
            seq = ledger.head().borrow().seq,
            "meter-gateway {} is up",
            env!("CARGO_PKG_VERSION")
        );
        Ok(Daemon {
            clock,
            files,
            telemetry,
            console,
            ill,
            readings,
            writer,
            buses,
            publisher,
            servers,
            servers_stop,
            progress: HashMap::new(),
            refused: false,
            timekeeping,
            pruned: Instant::now(),
        })
    }

    fn status_line(&self) -> String {
        let settings = self.telemetry.settings();
        let connected = self.telemetry.publisher.borrow().connected;
        let head = self.telemetry.ledger.head().borrow().seq;
        let broker = if connected { "broker connected" } else { "broker away" };
        let refused = if self.refused { ", new configuration refused (see the journal)" } else { "" };
        format!(
            "{} meters on {} buses, {head} records, {broker}{refused}",
            settings.meters.len(),
            settings.buses.len()
        )
    }

    /// Looks whether everything moves; tells the console, the broker and the watchdog.
    fn supervise(&mut self) -> bool {
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
        if self.writer.is_finished() {
            reasons.push("the writer has stopped".into());
        }
        let ill = (!reasons.is_empty()).then(|| reasons.join("; "));
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
        let extras = self.telemetry.published_status();
        self.publisher.status.send_if_modified(|now| {
            let changed = *now != extras;
            *now = extras;
            changed
        });
        if self.pruned.elapsed() > Duration::from_secs(3600) {
            self.pruned = Instant::now();
            let before =
                self.clock.wall() - TimeDelta::days(self.telemetry.settings().reading.retention_days.into());
            let files = Arc::clone(&self.files);
            let ledger = &self.telemetry.ledger;
            let free = ledger.cursor(Cursor::Acknowledged).min(ledger.cursor(Cursor::Confirmed));
            let (ledger, clock): (_, Arc<dyn Clock>) = (Arc::clone(ledger), self.clock.clone());
            tokio::spawn(async move {
                match tokio::task::spawn_blocking(move || files.prune(before, free)).await {
                    Ok(Ok(removed)) => tell_of_retention(&ledger, &clock, &removed).await,
                    Ok(Err(error)) => tracing::warn!(%error, "old segments could not be removed"),
                    Err(error) => tracing::error!(%error, "retention has failed"),
                }
            });
        }
        ill.is_none()
    }

    /// Takes over a new configuration; a faulty one is refused and the old one kept.
    async fn reload(&mut self, path: &Path) -> Result<(), Refused> {
        let settings = match config::load(path, config::environment()) {
            Ok(settings) => Arc::new(settings),
            Err(faults) => {
                for fault in &faults {
                    tracing::error!(%fault, "configuration fault");
                }
                tracing::error!(
                    faults = faults.len(),
                    "the new configuration is refused, the old one stays in force"
                );
                return Err(Refused);
            }
        };
        let old = self.telemetry.settings();
        if old.gateway.data_dir != settings.gateway.data_dir || old.gateway.id != settings.gateway.id {
            tracing::error!(
                "[gateway] cannot be changed by a reload: restart the daemon; the old configuration stays in force"
            );
            return Err(Refused);
        }
        self.stop_buses().await;
        *lock(&self.telemetry.settings) = Arc::clone(&settings);
        self.progress.clear();
        self.buses = start_buses(&settings, &self.telemetry, &self.console, &self.readings);
        let _ = self.publisher.inventory.send(inventories(&settings));
        let mut fields = Map::new();
        fields.insert("before".into(), old.hash.clone().into());
        fields.insert("after".into(), settings.hash.clone().into());
        let draft = Draft::change("configuration", fields, self.clock.wall(), self.clock.state());
        record(&self.telemetry.ledger, vec![draft]).await;
        tracing::info!(
            meters = settings.meters.len(),
            buses = settings.buses.len(),
            "the new configuration is in force"
        );
        Ok(())
    }

    async fn stop_buses(&mut self) {
        let _ = self.buses.stop.send(true);
        let _ = timeout(LAST_SWEEPS, async { while self.buses.tasks.join_next().await.is_some() {} }).await;
        self.buses.tasks.abort_all();
    }

    /// Buses first, then what they read is stored, then it is sent, then the ledger is closed.
    async fn stop(mut self) {
        tracing::info!("stopping");
        self.stop_buses().await;
        lock(&self.console.demands).clear();
        drop(self.readings);
        self.timekeeping.abort();
        if timeout(LAST_RECORDS, &mut self.writer).await.is_err() {
            tracing::error!("records could not be stored before the end");
        }
        let _ = self.publisher.stop.send(true);
        let _ = timeout(LAST_MESSAGES, &mut self.publisher.task).await;
        self.publisher.task.abort();
        let _ = self.servers_stop.send(true);
        self.servers.abort_all();
        let settings = self.telemetry.settings();
        let _ = std::fs::remove_file(settings.gateway.data_dir.join(SOCKET));
        self.files.close();
        tracing::info!(seq = self.files.head().borrow().seq, "stopped");
    }
}

/// One `change` record for each run of records that retention has removed.
async fn tell_of_retention(ledger: &SharedLedger, clock: &Arc<dyn Clock>, removed: &[Pruned]) {
    let drafts: Vec<Draft> = Pruned::runs(removed)
        .into_iter()
        .map(|(segments, run)| {
            tracing::info!(segments, seq = run.first, to = run.last, "old segments removed");
            let mut fields = Map::new();
            fields.insert("segments".into(), segments.into());
            fields.insert("first_seq".into(), run.first.into());
            fields.insert("last_seq".into(), run.last.into());
            fields.insert("last_hash".into(), run.last_hash.into());
            Draft::change("retention", fields, clock.wall(), clock.state())
        })
        .collect();
    if !drafts.is_empty() {
        pipeline::append(ledger, drafts).await;
    }
}

/// One `change` record covers the slots that passed while the gateway was down; damage found is told too.
async fn tell_of_the_past(
    ledger: &SharedLedger,
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    incidents: Vec<String>,
) {
    let mut drafts = Vec::new();
    for incident in incidents {
        tracing::error!(%incident, "the ledger was found damaged");
        let fields = Map::from_iter([("detail".to_owned(), Value::from(incident))]);
        drafts.push(Draft::change("ledger_incident", fields, clock.wall(), clock.state()));
    }
    let now = clock.wall();
    let missed = settings.meters.iter().filter_map(|meter| {
        let slots = Slots::new(settings.site.timezone, meter.interval_secs).ok()?;
        let next = slots.next_after(ledger.latest_slot(&meter.id)?);
        (next < first_slot(slots, Some(next), now)).then_some(next)
    });
    if let Some(from) = missed.min() {
        let mut fields = Map::new();
        fields.insert("from".into(), rfc3339(from).into());
        fields.insert("to".into(), rfc3339(now).into());
        drafts.push(Draft::change("downtime", fields, now, clock.state()));
    }
    if !drafts.is_empty() {
        record(ledger, drafts).await;
    }
}

/// Appends what the house itself has to say. On a full disk it goes on trying by itself: start, supervision and
/// signals must not wait for it.
async fn record(ledger: &SharedLedger, drafts: Vec<Draft>) {
    let ledger = Arc::clone(ledger);
    let stored = tokio::spawn(async move { pipeline::append(&ledger, drafts).await });
    let _ = timeout(LAST_RECORDS, stored).await;
}

/// The first slot to be read: the current one when it has not been read and is still fresh, else the next. Fresh is a
/// slot of which seven eighths are left, so that a busy line can still read it whole, and no older than a minute.
fn first_slot(slots: Slots, unread_since: Option<Utc>, now: Utc) -> Utc {
    let current = slots.at_or_before(now);
    let fresh = now - current <= TimeDelta::seconds(i64::from(slots.interval_secs() / 8).min(60));
    if fresh && unread_since.is_none_or(|unread| unread <= current) { current } else { slots.next_after(now) }
}

async fn listen(
    settings: &Settings,
    console: &Arc<Console>,
    down: &watch::Receiver<bool>,
) -> anyhow::Result<JoinSet<io::Result<()>>> {
    let mut servers = JoinSet::new();
    let router = console::router(Arc::clone(console));
    let path = settings.gateway.data_dir.join(SOCKET);
    // The lock on the ledger says that no other daemon lives here: a socket found is a dead one's.
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("{}: the old socket cannot be removed", path.display()));
    }
    let socket = UnixListener::bind(&path)
        .with_context(|| format!("{}: the socket cannot be made", path.display()))?;
    let owner = router.clone().merge(console::owner_router(Arc::clone(console)));
    servers.spawn(console::serve_unix(socket, owner, down.clone()));
    if let Some(address) = settings.console {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("[console] listen = \"{address}\": cannot be listened on"))?;
        servers.spawn(console::serve_tcp(listener, router, down.clone()));
    }
    Ok(servers)
}

fn start_publisher(
    settings: &Arc<Settings>,
    telemetry: &Arc<Telemetry>,
    console: &Arc<Console>,
    requests: mpsc::Receiver<Outgoing>,
    state: watch::Sender<PublisherState>,
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
        broker: Arc::new(publish::RealBroker),
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
            let mut fields = Map::new();
            fields.insert("seq".into(), seq.into());
            fields.insert("detail".into(), detail.into());
            let draft =
                Draft::change("record_damaged", fields, telemetry.clock.wall(), telemetry.clock.state());
            pipeline::append(&telemetry.ledger, vec![draft]).await;
        }
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

fn start_buses(
    settings: &Arc<Settings>,
    telemetry: &Arc<Telemetry>,
    console: &Arc<Console>,
    readings: &mpsc::Sender<Reading>,
) -> Buses {
    let (stop, down) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut healths = Vec::new();
    lock(&console.demands).clear();
    for bus in &settings.buses {
        let health = Arc::new(Mutex::new(BusHealth::default()));
        healths.push((bus.id.clone(), Arc::clone(&health)));
        let keeper = Keeper {
            bus: bus.clone(),
            settings: Arc::clone(settings),
            telemetry: Arc::clone(telemetry),
            console: Arc::clone(console),
            readings: readings.clone(),
            health,
            down: down.clone(),
        };
        tasks.spawn(keeper.keep());
    }
    *lock(&telemetry.buses) = healths;
    Buses { tasks, stop }
}

/// Keeps one bus at work: a panic in its task restarts that bus and no other.
struct Keeper {
    bus: Bus,
    settings: Arc<Settings>,
    telemetry: Arc<Telemetry>,
    console: Arc<Console>,
    readings: mpsc::Sender<Reading>,
    health: Arc<Mutex<BusHealth>>,
    down: watch::Receiver<bool>,
}

impl Keeper {
    async fn keep(self) {
        loop {
            let task = self.task();
            let ended = tokio::spawn(task.run()).await;
            if *self.down.borrow() {
                return;
            }
            match ended {
                Ok(()) => return, // nobody takes the readings any more
                Err(error) => {
                    tracing::error!(bus = %self.bus.id, %error, "the bus task failed and is started again");
                }
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    fn task(&self) -> BusTask {
        let meters: Vec<Meter> =
            self.settings.meters.iter().filter(|meter| meter.bus == self.bus.id).cloned().collect();
        let (sender, demands) = mpsc::channel::<DemandRequest>(DEMAND_QUEUE);
        let mut known = lock(&self.console.demands);
        for meter in &meters {
            known.insert(meter.id.clone(), sender.clone());
        }
        drop(known);
        let clock = Arc::clone(&self.telemetry.clock);
        let ledger = Arc::clone(&self.telemetry.ledger);
        let now = Now { instant: Instant::now(), wall: clock.wall() };
        let plans =
            meters.iter().map(|meter| plan_of(meter, &self.bus, &self.settings, &ledger, now.wall)).collect();
        let latest: Vec<Option<Utc>> =
            meters.iter().map(|meter| pipeline::highest_slot(&ledger, &meter.id)).collect();
        let repetition = ledger.head().borrow().seq;
        BusTask {
            bus: self.bus.clone(),
            cycle: Cycle::new(plans, now).recalling(&latest, repetition),
            judge: Box::new(BusJudge::new(meters, &ledger, Arc::clone(&clock))),
            clock,
            ports: Arc::new(RealPorts),
            demands,
            readings: self.readings.clone(),
            health: Arc::clone(&self.health),
            shutdown: self.down.clone(),
        }
    }
}

/// What the bus needs to know of a meter.
fn plan_of(meter: &Meter, bus: &Bus, settings: &Settings, ledger: &SharedLedger, now: Utc) -> MeterPlan {
    let slots = Slots::new(settings.site.timezone, meter.interval_secs).ok();
    let mut plan = meter_plan(meter, bus, slots);
    plan.first_slot = slots.map(|slots| {
        let unread_since = ledger.latest_slot(&meter.id).map(|last| slots.next_after(last));
        first_slot(slots, unread_since, now)
    });
    plan
}

/// A meter's requests and patience on its bus, without a schedule of its own.
pub fn meter_plan(meter: &Meter, bus: &Bus, slots: Option<Slots>) -> MeterPlan {
    let points: Vec<usize> = (0..meter.profile.points.len()).collect();
    MeterPlan {
        id: meter.id.clone(),
        unit: meter.unit,
        requests: profile::plan(&meter.profile, &points, &bus.link.pace()),
        profile: Arc::clone(&meter.profile),
        slots,
        timeout: meter.timeout.unwrap_or(bus.timeout),
        retries: meter.retries.unwrap_or(bus.retries),
        serial: meter.serial.is_some(),
        first_slot: None,
    }
}
