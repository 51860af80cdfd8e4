//! A real Mosquitto on a free port, with a configuration of its own: started, killed, started again.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub struct Mosquitto {
    child: Option<Child>,
    pub port: u16,
    pub dir: TempDir,
}

/// Where Debian puts it, when the path of the tests does not have /usr/sbin.
fn program() -> PathBuf {
    let sbin = Path::new("/usr/sbin/mosquitto");
    if sbin.exists() { sbin.to_owned() } else { "mosquitto".into() }
}

impl Mosquitto {
    /// Anyone may do anything; nothing is persisted.
    pub fn open() -> Mosquitto {
        Mosquitto::with(|_| "allow_anonymous true\n".to_owned())
    }

    /// `configure` is given the directory for its files and returns the lines of the listener.
    pub fn with(configure: impl FnOnce(&Path) -> String) -> Mosquitto {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let lines = configure(dir.path());
        let user = "user root\n"; // it would otherwise change to a user who may not read this directory
        let text = format!("{user}persistence false\nlog_type none\nlistener {port} 127.0.0.1\n{lines}");
        std::fs::write(dir.path().join("mosquitto.conf"), text).unwrap();
        let mut broker = Mosquitto { child: None, port, dir };
        broker.start();
        broker
    }

    pub fn start(&mut self) {
        let mut child = Command::new(program())
            .arg("-c")
            .arg(self.dir.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is installed");
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "mosquitto refused its configuration");
            assert!(Instant::now() < deadline, "mosquitto does not listen");
            std::thread::yield_now();
        }
        self.child = Some(child);
    }

    /// SIGKILL: no goodbyes.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}
