//! The program under test, with a data directory of its own; what it used is asked of the kernel and of itself.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub struct Daemon {
    child: Child,
    console: u16,
    dir: TempDir,
}

pub struct Usage {
    /// Of all its threads, in user and kernel.
    pub cpu: Duration,
    pub requests: u64,
    pub records: u64,
    pub resident_kb: u64,
    pub at: Instant,
}

impl Daemon {
    pub fn start(buses: &str, interval_secs: u32, broker: u16) -> Daemon {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(); // a disk, not a file system in memory
        let console = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = dir.path().join("data");
        let text = format!(
            "[site]\nid = \"bench\"\ntimezone = \"Asia/Shanghai\"\n[gateway]\nid = \"gw-01\"\ndata_dir = \"{}\"\n\
             [reading]\ninterval_secs = {interval_secs}\n[mqtt]\nurl = \"mqtt://127.0.0.1:{broker}\"\n\
             [console]\nlisten = \"127.0.0.1:{console}\"\n{buses}",
            data.display()
        );
        let config = dir.path().join("gateway.toml");
        std::fs::write(&config, text).unwrap();
        let program = std::env::var("GATEWAY").unwrap_or(env!("CARGO_BIN_EXE_meter-gateway").to_owned());
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg("--config")
            .arg(config)
            .arg("run")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon { child, console, dir }
    }

    pub fn wait_until_polling(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self
            .metrics()
            .is_none_or(|text| sum(&text, "meter_gateway_bus_exchanges_total", "answered") == 0)
        {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "it does not poll:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn usage(&self) -> Usage {
        let text = self.metrics().unwrap();
        let process =
            |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap();
        let stat = process("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        let status = process("status");
        let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        Usage {
            cpu: Duration::from_millis(ticks * 10), // USER_HZ is 100 on every Linux in use
            requests: sum(&text, "meter_gateway_bus_exchanges_total", ""),
            records: sum(&text, "meter_gateway_ledger_cursor_seq", "acknowledged"),
            resident_kb: resident.split_whitespace().nth(1).unwrap().parse().unwrap(),
            at: Instant::now(),
        }
    }

    /// Stored slots that say that the bus had no time.
    pub fn lost(&self) -> usize {
        let dir = self.dir.path().join("data/ledger");
        let segments = std::fs::read_dir(dir).unwrap().filter_map(Result::ok);
        let segments = segments.filter(|file| file.path().extension().is_some_and(|ext| ext == "seg"));
        segments
            .map(|file| std::fs::read_to_string(file.path()).unwrap().matches("\"bus_overrun\"").count())
            .sum()
    }

    fn metrics(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.console)).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of a metric over all its labels that say `label`.
fn sum(text: &str, name: &str, label: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}
