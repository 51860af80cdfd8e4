//! Composition: builds the parts, one task for each bus, supervises them, and takes them down in order.

mod buses;
mod changes;
mod descriptors;
mod house;
mod listeners;
mod pace;
mod past;
mod publisher;
mod reload;

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::TimeDelta;
use rustix::fs::Mode;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{Instant, interval, sleep},
};

use crate::{
    billing,
    bus::RealPorts,
    clock::{Clock, SystemClock},
    config::Settings,
    identity::Identity,
    ledger::{self, FileLedger, Ledger, SharedLedger},
    publish::RealBroker,
    systemd,
};

use listeners::Listeners;

pub use buses::meter_plan;
pub use house::{House, Outside};
pub use listeners::SOCKET;
pub use past::{leave_note, retain};

/// How often old segments are looked for.
const RETENTION: Duration = Duration::from_secs(3600);
/// How often progress is looked at.
const SUPERVISION: Duration = Duration::from_secs(2);

/// What differs between the daemon proper and the one inside the demo.
#[derive(Default)]
pub struct Options {
    /// Ends the daemon as SIGTERM does; the sender is the owner's.
    pub stop: Option<watch::Receiver<bool>>,
}

/// Runs the daemon until SIGTERM, SIGINT or `options.stop`.
pub async fn run(config: PathBuf, settings: Settings, options: Options) -> anyhow::Result<()> {
    let mut end = End {
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        stop: options.stop.unwrap_or_else(|| watch::channel(false).1),
    };
    let mut reload = signal(SignalKind::hangup())?;
    // Whatever is made from here on, the socket and the index too, is its owner's alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    descriptors::raise();
    log_warnings(&settings);
    systemd::status("opening the ledger");
    let Some(mut daemon) = begin(settings.into(), &mut end).await? else { return Ok(()) };
    systemd::ready(&daemon.status_line());
    let mut supervision = interval(SUPERVISION);
    let mut fed = Instant::now();
    let mut reading: Option<reload::Reading> = None;
    loop {
        tokio::select! {
            () = end.asked() => break,
            // One at a time: a signal that comes meanwhile is heard after it, and the files are read once more.
            _ = reload.recv(), if reading.is_none() => {
                systemd::reloading();
                reading = Some(reload::read(config.clone()));
            }
            read = reload::finished(&mut reading) => {
                daemon.reload(read).await;
                systemd::ready(&daemon.status_line());
            }
            _ = supervision.tick() => {
                let well = daemon.supervise();
                if daemon.files.condition().ended.is_some() {
                    // Others have seen more of the ledger than it has: all parts end in order, and begin as at a start, where a
                    // new ledger takes its place. Nobody has to be there for it, and no supervisor.
                    systemd::status("beginning a new ledger");
                    let settings = daemon.house.telemetry().settings();
                    alive(daemon.stop()).await;
                    let Some(begun) = begin(settings, &mut end).await? else { return Ok(()) };
                    daemon = begun;
                    systemd::status(&daemon.status_line());
                    continue;
                }
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

/// Once for each configuration that is read.
fn log_warnings(settings: &Settings) {
    for warning in &settings.warnings {
        tracing::warn!("configuration: {warning}");
    }
}

/// What ends the daemon. What comes while nobody waits for it is heard later.
struct End {
    terminate: Signal,
    interrupt: Signal,
    stop: watch::Receiver<bool>,
}

impl End {
    async fn asked(&mut self) {
        let stop = async {
            if self.stop.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await; // the owner has gone without a word
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = stop => {}
        }
    }
}

/// A start. It can take minutes (a damaged index, a full disk): whoever asks for the end meanwhile gets it, and then there is
/// no daemon.
async fn begin(settings: Arc<Settings>, end: &mut End) -> anyhow::Result<Option<Daemon>> {
    tokio::select! {
        started = alive(Daemon::start(settings)) => started.map(Some),
        () = end.asked() => {
            systemd::stopping();
            Ok(None)
        }
    }
}

/// Tells the supervisor that the process lives while something takes its time.
async fn alive<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = sleep(SUPERVISION) => systemd::watchdog(),
        }
    }
}

/// Makes the data directory, readable by its owner only.
pub fn make_data_dir(dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        let text = format!(
            "{}: the data directory cannot be made: {error}\n  hint: [gateway] data_dir must be writable by this user",
            dir.display()
        );
        std::io::Error::new(error.kind(), text).into()
    })
}

struct Daemon {
    clock: Arc<dyn Clock>,
    files: Arc<FileLedger>,
    house: House,
    listeners: Listeners,
    /// The last reload found a faulty configuration: the one on disk is not the one in force.
    refused: bool,
    pruned: Instant,
}

impl Daemon {
    async fn start(settings: Arc<Settings>) -> anyhow::Result<Daemon> {
        let (dir, reserve_bytes) = (settings.gateway.data_dir.clone(), settings.gateway.reserve_bytes);
        let mirror = settings.gateway.mirror_dir.as_deref().map(ledger::MirrorOptions::at);
        make_data_dir(&dir)?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        clock.refresh().await;
        let (now, trust) = (clock.wall(), clock.state());
        let (files, incidents) = tokio::task::spawn_blocking(move || {
            FileLedger::open(
                &dir,
                ledger::Options { now, clock: trust, reserve_bytes, mirror, ..ledger::Options::default() },
            )
        })
        .await??;
        let ledger: SharedLedger = Arc::clone(&files) as _;
        let identity = Arc::new(Identity::load_or_create(&settings.gateway.data_dir)?);
        billing::settle(&identity, &ledger, &settings.gateway.data_dir)?;
        if let Err(error) = identity.publish(&settings.gateway.data_dir) {
            tracing::warn!(%error, "the public key could not be laid beside the ledger; `identity --public-key` prints it");
        }
        let outside =
            Outside { clock: Arc::clone(&clock), ports: Arc::new(RealPorts), broker: Arc::new(RealBroker) };
        let empty = ledger.head().borrow().seq == 0;
        let house =
            House::start(Arc::clone(&settings), Arc::clone(&ledger), identity, outside, &incidents).await;
        past::tell_of_hands(&ledger, &settings, &clock, empty).await;
        let listeners = Listeners::start(house.console(), &settings).await;
        tracing::info!(
            site = settings.site.id,
            gateway = settings.gateway.id,
            ledger = files.id(),
            meters = settings.meters.len(),
            buses = settings.buses.len(),
            seq = files.head().borrow().seq,
            "meter-gateway {} is up",
            env!("CARGO_PKG_VERSION")
        );
        Ok(Daemon { clock, files, house, listeners, refused: false, pruned: Instant::now() })
    }

    fn status_line(&self) -> String {
        let telemetry = self.house.telemetry();
        let settings = telemetry.settings();
        let connected = telemetry.publisher.borrow().connected;
        let head = telemetry.ledger.head().borrow().seq;
        let broker = if connected { "broker connected" } else { "broker away" };
        let refused = if self.refused { ", new configuration refused (see the journal)" } else { "" };
        format!(
            "{} meters on {} buses, {head} records, {broker}{refused}",
            settings.meters.len(),
            settings.buses.len()
        )
    }

    /// Looks whether everything moves, and has old segments removed once an hour.
    fn supervise(&mut self) -> bool {
        if self.pruned.elapsed() > RETENTION {
            self.pruned = Instant::now();
            let telemetry = self.house.telemetry();
            let before =
                self.clock.wall() - TimeDelta::days(telemetry.settings().reading.retention_days.into());
            tokio::spawn(past::look_for_old(Arc::clone(&self.files), Arc::clone(telemetry), before));
        }
        self.house.supervise()
    }

    /// The house in its own order, then the doors, then the ledger.
    async fn stop(self) {
        tracing::info!("stopping");
        self.house.stop().await;
        self.listeners.stop().await;
        self.files.close();
        tracing::info!(seq = self.files.head().borrow().seq, "stopped");
    }
}
