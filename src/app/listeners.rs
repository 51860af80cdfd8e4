//! The listeners of the API: the Unix socket in the data directory, and `[console] listen`.
//!
//! Meters are read without them: one that cannot be made is a warning, and is tried again with pauses. Knows no route.

use std::{
    fs::Permissions,
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use crate::{
    config::Settings,
    console::{self, Console, Door},
    telemetry::Telemetry,
};

pub use crate::config::SOCKET;

/// Code of the warning while the port cannot be listened on.
const PORT_UNAVAILABLE: &str = "console_unavailable";

/// Pause before a listener that could not be made is tried again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest of these pauses: whoever has freed the port waits no longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Both, at work or being tried again.
pub(super) struct Listeners {
    console: Arc<Console>,
    socket_path: PathBuf,
    socket: Running,
    port: Option<Running>,
}

/// One of them; the task ends soon after `stop`.
struct Running {
    task: JoinHandle<()>,
    stop: watch::Sender<bool>,
}

impl Running {
    async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.task.await;
    }
}

impl Listeners {
    /// Each has been tried once when this returns.
    pub(super) async fn start(console: &Arc<Console>, settings: &Settings) -> Listeners {
        let socket_path = settings.gateway.data_dir.join(SOCKET);
        let port = settings.console.as_ref().map(|console| console.listen);
        let mut listeners = Listeners {
            socket: start(console, Place::Socket(socket_path.clone())).await,
            socket_path,
            console: Arc::clone(console),
            port: None,
        };
        listeners.listen(port).await;
        listeners
    }

    /// Another port from now on, or none.
    pub(super) async fn listen(&mut self, port: Option<SocketAddr>) {
        if let Some(running) = self.port.take() {
            running.stop().await;
            self.console.telemetry.warn(PORT_UNAVAILABLE, None);
        }
        if let Some(address) = port {
            self.port = Some(start(&self.console, Place::Port(address)).await);
        }
    }

    /// Answers under way are finished, soon: `console::server`.
    pub(super) async fn stop(self) {
        if let Some(port) = self.port {
            port.stop().await;
        }
        self.socket.stop().await;
        let _ = std::fs::remove_file(self.socket_path);
    }
}

/// Where is listened.
enum Place {
    Socket(PathBuf),
    Port(SocketAddr),
}

/// A listener that stands.
enum Bound {
    Socket(UnixListener),
    Port(TcpListener),
}

impl Place {
    /// Code of the warning while it cannot be listened there.
    fn code(&self) -> &'static str {
        match self {
            Place::Socket(_) => "socket_unavailable",
            Place::Port(_) => PORT_UNAVAILABLE,
        }
    }

    fn name(&self) -> String {
        match self {
            Place::Socket(path) => path.display().to_string(),
            Place::Port(address) => format!("console.listen {address}"),
        }
    }

    async fn bind(&self) -> Result<Bound, String> {
        match self {
            Place::Socket(path) => bind_socket(path).map(Bound::Socket).map_err(|error| error.to_string()),
            Place::Port(address) => {
                TcpListener::bind(address).await.map(Bound::Port).map_err(|error| why_no_port(&error))
            }
        }
        .map_err(|why| format!("{}: {why}", self.name()))
    }
}

/// The lock on the ledger says that no other daemon lives here: a socket found is a dead one's.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn why_no_port(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens on this port; `ss -ltnp` names it".into(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have this address, or not yet".into(),
        io::ErrorKind::PermissionDenied => {
            "this user may not listen on this port; those from 1024 on are free to everybody".into()
        }
        _ => error.to_string(),
    }
}

/// Tries once, and goes on by itself.
async fn start(console: &Arc<Console>, place: Place) -> Running {
    let (stop, mut down) = watch::channel(false);
    let first = place.bind().await;
    let console = Arc::clone(console);
    let task = tokio::spawn(async move {
        let bound = tokio::select! {
            bound = insist(&place, first, &console.telemetry) => bound,
            _ = down.wait_for(|down| *down) => return,
        };
        serve(bound, console, down).await;
    });
    Running { task, stop }
}

/// Until it can be made.
async fn insist(place: &Place, first: Result<Bound, String>, telemetry: &Telemetry) -> Bound {
    let (mut outcome, mut pause, mut said) = (first, FIRST_PAUSE, None);
    loop {
        match outcome {
            Ok(bound) => {
                if said.is_some() {
                    telemetry.warn(place.code(), None);
                    tracing::info!("{} is listened on now", place.name());
                }
                return bound;
            }
            Err(why) => {
                if said.as_ref() != Some(&why) {
                    tracing::warn!("{why}; meters are read all the same, and it is tried again");
                    telemetry.warn(place.code(), Some(why.clone()));
                    said = Some(why);
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        outcome = place.bind().await;
    }
}

async fn serve(bound: Bound, console: Arc<Console>, down: watch::Receiver<bool>) {
    let router = console::router(Arc::clone(&console));
    match bound {
        Bound::Socket(listener) => {
            let owner = router.merge(console::owner_router(console));
            console::serve(listener, Door::Owner, owner, down).await;
        }
        Bound::Port(listener) => console::serve(listener, Door::Port, router, down).await,
    }
}
