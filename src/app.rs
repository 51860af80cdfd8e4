//! Composition: builds the parts, one task for each bus, supervises them, and takes them down in order.

mod buses;
mod house;
mod past;

use std::{
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use chrono::TimeDelta;
use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{Instant, interval},
};

use crate::{
    billing,
    bus::RealPorts,
    clock::{Clock, SystemClock},
    config::{self, Settings},
    console::{self, Console, Door},
    identity::Identity,
    ledger::{self, FileLedger, Ledger, SharedLedger},
    publish::RealBroker,
    systemd,
};

pub use buses::meter_plan;
pub use house::{House, Outside};
pub use past::{leave_note, retain};

/// Name of the Unix socket in the data directory.
pub const SOCKET: &str = "meter-gateway.sock";

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
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reload = signal(SignalKind::hangup())?;
    let mut stop = options.stop.unwrap_or_else(|| watch::channel(false).1);
    log_warnings(&settings);
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

/// Once for each configuration that is read.
fn log_warnings(settings: &Settings) {
    for warning in &settings.warnings {
        tracing::warn!("configuration: {}", warning.to_string().replace("\n  ", "; "));
    }
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
    clock: Arc<dyn Clock>,
    files: Arc<FileLedger>,
    house: House,
    servers: JoinSet<()>,
    servers_stop: watch::Sender<bool>,
    /// The last reload found a faulty configuration: the one on disk is not the one in force.
    refused: bool,
    pruned: Instant,
}

/// The new configuration was refused; the journal has the reasons.
struct Refused;

impl Daemon {
    async fn start(settings: Settings) -> anyhow::Result<Daemon> {
        let settings = Arc::new(settings);
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
        let (servers_stop, servers_down) = watch::channel(false);
        let servers = listen(&settings, house.console(), &servers_down).await?;
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
        Ok(Daemon { clock, files, house, servers, servers_stop, refused: false, pruned: Instant::now() })
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
            let (files, ledger) = (Arc::clone(&self.files), Arc::clone(&telemetry.ledger));
            tokio::spawn(retain(files, ledger, Arc::clone(&self.clock), before));
        }
        self.house.supervise()
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
        log_warnings(&settings);
        let old = self.house.telemetry().settings();
        let fixed = |settings: &Settings| {
            let gateway = &settings.gateway;
            (gateway.data_dir.clone(), gateway.id.clone(), gateway.mirror_dir.clone())
        };
        if fixed(&old) != fixed(&settings) {
            tracing::error!(
                "[gateway] cannot be changed by a reload: restart the daemon; the old configuration stays in force"
            );
            return Err(Refused);
        }
        if self.house.take_over(Arc::clone(&settings)).await {
            past::note_configuration(&settings.gateway.data_dir, &settings.hash);
        }
        tracing::info!(
            meters = settings.meters.len(),
            buses = settings.buses.len(),
            "the new configuration is in force"
        );
        Ok(())
    }

    /// The house in its own order, then the doors, then the ledger.
    async fn stop(mut self) {
        tracing::info!("stopping");
        let dir = self.house.telemetry().settings().gateway.data_dir.clone();
        self.house.stop().await;
        let _ = self.servers_stop.send(true);
        while self.servers.join_next().await.is_some() {} // they end by themselves, soon: `console::server`
        let _ = std::fs::remove_file(dir.join(SOCKET));
        self.files.close();
        tracing::info!(seq = self.files.head().borrow().seq, "stopped");
    }
}

async fn listen(
    settings: &Settings,
    console: &Arc<Console>,
    down: &watch::Receiver<bool>,
) -> anyhow::Result<JoinSet<()>> {
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
    servers.spawn(console::serve(socket, Door::Owner, owner, down.clone()));
    if let Some(address) = settings.console {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("[console] listen = \"{address}\": cannot be listened on"))?;
        servers.spawn(console::serve(listener, Door::Port, router, down.clone()));
    }
    Ok(servers)
}
