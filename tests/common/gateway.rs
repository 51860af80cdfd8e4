//! The real binary with a configuration of its own: started, asked, killed, ended in order.

#![allow(missing_docs, dead_code, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::{Read, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// How often a state that cannot be awaited is looked at.
const LOOK: Duration = Duration::from_millis(20);

pub struct Gateway {
    /// How many files the daemon may open at once, when not as many as this process.
    pub files: Option<u32>,
    /// What it is given beside `run`.
    pub flags: Vec<&'static str>,
    /// What the environment of the daemon has besides.
    pub environment: Vec<(&'static str, PathBuf)>,
    child: Option<Child>,
    pub dir: TempDir,
}

impl Gateway {
    /// A configuration in a directory of its own; nothing runs yet. `rest` is what follows `[mqtt] url`.
    pub fn configured(broker: u16, interval_secs: u32, rest: &str) -> Gateway {
        let gateway = Gateway {
            files: None,
            flags: Vec::new(),
            environment: Vec::new(),
            child: None,
            dir: tempfile::tempdir().unwrap(),
        };
        gateway.configure(broker, interval_secs, rest);
        gateway
    }

    pub fn configure(&self, broker: u16, interval_secs: u32, rest: &str) {
        let mut text = String::new();
        write!(
            text,
            "[site]\nid = \"riverside\"\nname = \"滨江花园\"\ntimezone = \"Asia/Shanghai\"\n\
             [gateway]\nid = \"gw-01\"\ndata_dir = \"data\"\n\
             [reading]\ninterval_secs = {interval_secs}\n\
             [mqtt]\nurl = \"mqtt://127.0.0.1:{broker}\"\n{rest}"
        )
        .unwrap();
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("gateway.toml")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the daemon and waits for nothing.
    pub fn spawn(&mut self) {
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut program = self.program(&["run"]);
        program.args(&self.flags);
        if let Some(files) = self.files {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!("ulimit -n {files}; exec \"$0\" \"$@\""));
            shell.arg(program.get_program()).args(program.get_args()).env_remove("METER_GATEWAY_CONFIG");
            program = shell;
        }
        let environment = self.environment.iter().map(|(name, value)| (name, value));
        let child = program.envs(environment).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(&mut self) {
        self.spawn();
        let deadline = Instant::now() + PATIENCE;
        while ask(&self.socket(), "/api/v1/status").is_none() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}\n{}", self.log());
            sleep(LOOK);
        }
    }

    /// Another call of the binary with the same configuration.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.program(arguments).output().unwrap()
    }

    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meter-gateway"));
        command.arg("--config").arg(self.config()).args(arguments).env_remove("METER_GATEWAY_CONFIG");
        command
    }

    pub fn socket(&self) -> PathBuf {
        self.path("data/meter-gateway.sock")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// What it says now; `None` when it does not answer, or not to the end.
    pub fn try_get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&ask(&self.socket(), path)?).ok()
    }

    pub fn get(&self, path: &str) -> Value {
        let body = ask(&self.socket(), path).unwrap_or_else(|| panic!("no answer\n{}", self.log()));
        serde_json::from_str(&body).unwrap()
    }

    pub fn text(&self, path: &str) -> String {
        ask(&self.socket(), path).unwrap_or_else(|| panic!("no answer\n{}", self.log()))
    }

    pub fn stored(&self) -> u64 {
        self.get("/api/v1/status")["store"]["last_seq"].as_u64().unwrap()
    }

    /// Waits for a state of the daemon.
    pub fn until(&self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.get("/api/v1/status");
            if good(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "{what}: {status:#}\n{}", self.log());
            sleep(LOOK);
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// SIGTERM; how it ended and how long that took.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        let status = self.child.take().unwrap().wait().unwrap();
        (status, begun.elapsed())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One GET on a socket; `None` when nobody listens.
fn ask(socket: &Path, path: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: daemon\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}
