//! The daemon under a service manager: the test takes the place of systemd, and systemd's own tools judge the unit.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;
use tempfile::TempDir;

const GATEWAY: &str = env!("CARGO_BIN_EXE_meter-gateway");
/// Long enough for a slow machine, short enough to notice.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at what can only be polled.
const GLANCE: Duration = Duration::from_millis(20);
/// What is promised of SIGTERM.
const END: Duration = Duration::from_secs(5);
/// What systemd-analyze may find at most; the unit says why each point is left open.
const EXPOSURE_TENTHS: u32 = 20;

/// A daemon with a service manager's socket on the other side.
struct Service {
    dir: TempDir,
    socket: UnixDatagram,
    child: Child,
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that nobody listens on: bound once, then left.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn configure(dir: &Path, meters: &[&str], extra: &str) {
    let (bus, broker) = (closed_port(), closed_port());
    let data = dir.join("data");
    let data = data.display();
    let mut text = format!(
        r#"{extra}
[site]
id = "riverside"
timezone = "Asia/Shanghai"
[gateway]
id = "gw-01"
data_dir = "{data}"
[mqtt]
url = "mqtt://127.0.0.1:{broker}"
[[bus]]
id = "plant"
kind = "tcp"
address = "127.0.0.1:{bus}"
"#
    );
    for (position, meter) in meters.iter().enumerate() {
        let address = position + 1;
        text.extend([
            format!("[[meter]]\nid = \"{meter}\"\naddress = \"{address}\"\n"),
            "bus = \"plant\"\nprofile = \"eastron-sdm630\"\n".to_owned(),
        ]);
    }
    fs::write(dir.join("gateway.toml"), text).unwrap();
}

impl Service {
    /// Starts the real binary as systemd would, with a watchdog that bites after 4 s.
    fn start(meters: &[&str]) -> Service {
        let dir = tempfile::tempdir().unwrap();
        configure(dir.path(), meters, "");
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        // SIGXFSZ ignored: what does not fit into a file is an error, as on a full disk, and not a death by signal.
        let child = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" --config \"$1\" run", GATEWAY])
            .arg(dir.path().join("gateway.toml"))
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .env("WATCHDOG_USEC", "4000000")
            .env_remove("WATCHDOG_PID")
            .env_remove("JOURNAL_STREAM")
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Service { dir, socket, child }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The next message, as lines.
    fn hear(&self, deadline: Instant) -> Option<Vec<String>> {
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        self.socket.set_read_timeout(Some(left)).unwrap();
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(std::str::from_utf8(&bytes[..length]).unwrap().lines().map(str::to_owned).collect())
    }

    /// Waits for the message with this line; whatever came before it is passed over.
    fn hear_of(&self, line: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        while let Some(message) = self.hear(deadline) {
            if message.iter().any(|said| said == line) {
                return message;
            }
            heard.push(message);
        }
        panic!("{line} did not come within {PATIENCE:?}, only {heard:?}\n{}", self.log())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, and how it ended.
    fn terminate(&mut self) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        self.signal(Signal::TERM);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, asked.elapsed());
            }
            assert!(asked.elapsed() < PATIENCE, "still there\n{}", self.log());
            sleep(GLANCE);
        }
    }

    /// The meters in force, asked over the Unix socket as any client would.
    fn meters(&self) -> Vec<String> {
        let mut stream = UnixStream::connect(self.dir.path().join("data/meter-gateway.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"GET /api/v1/meters HTTP/1.1\r\nhost: daemon\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        let body: Value = serde_json::from_str(body).unwrap();
        body.as_array().unwrap().iter().map(|meter| meter["id"].as_str().unwrap().to_owned()).collect()
    }

    /// The records that tell of a new configuration.
    fn configuration_changes(&self) -> Vec<Value> {
        let run = Command::new(GATEWAY)
            .arg("--config")
            .arg(self.dir.path().join("gateway.toml"))
            .args(["ledger", "export"])
            .output()
            .unwrap();
        assert!(run.status.success(), "{run:?}");
        String::from_utf8(run.stdout)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|record| record["type"] == "change" && record["change"] == "configuration")
            .collect()
    }
}

fn status_of(message: &[String]) -> &str {
    message.iter().find_map(|line| line.strip_prefix("STATUS=")).unwrap_or_else(|| panic!("{message:?}"))
}

#[test]
fn the_daemon_says_when_it_is_up_feeds_the_watchdog_and_ends_in_time() {
    let mut service = Service::start(&["E-0101", "E-0102"]);
    let ready = service.hear_of("READY=1");
    let said = status_of(&ready);
    assert!(said.starts_with("2 meters on 1 buses, "), "{said}");
    assert!(said.ends_with("broker away"), "{said}");

    // The broker and the meters are away: that is no reason to be taken for hung.
    let mut fed = Instant::now();
    for _ in 0..3 {
        service.hear_of("WATCHDOG=1");
        assert!(fed.elapsed() < Duration::from_secs(4), "the watchdog would have bitten\n{}", service.log());
        fed = Instant::now();
    }

    let (status, took) = service.terminate();
    assert!(service.hear_of("STOPPING=1").contains(&"STATUS=stopping".to_owned()));
    assert_eq!(status.code(), Some(0), "{}", service.log());
    assert!(took < END, "took {took:?}\n{}", service.log());
}

#[test]
fn a_reload_takes_over_new_meters_and_refuses_what_is_faulty() {
    let mut service = Service::start(&["E-0101"]);
    service.hear_of("READY=1");
    assert_eq!(service.meters(), ["E-0101"]);

    configure(service.dir.path(), &["E-0101", "E-0102"], "");
    service.signal(Signal::HUP);
    let reloading = service.hear_of("RELOADING=1");
    assert!(reloading.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{reloading:?}");
    assert!(status_of(&service.hear_of("READY=1")).starts_with("2 meters"));
    assert_eq!(service.meters(), ["E-0101", "E-0102"]);
    let changes = service.configuration_changes();
    assert_eq!(changes.len(), 1, "{changes:?}");
    assert_ne!(changes[0]["before"], changes[0]["after"]);

    configure(service.dir.path(), &["E-0101"], "colour = \"blue\"");
    service.signal(Signal::HUP);
    service.hear_of("RELOADING=1");
    let ready = service.hear_of("READY=1");
    let said = status_of(&ready);
    assert!(said.starts_with("2 meters"), "{said}");
    assert!(said.ends_with("new configuration refused (see the journal)"), "{said}");
    assert_eq!(service.meters(), ["E-0101", "E-0102"]);
    assert!(service.log().contains("colour"), "the log names the fault\n{}", service.log());

    // Mended, and nothing is said of the refusal any more.
    configure(service.dir.path(), &["E-0102"], "");
    service.signal(Signal::HUP);
    service.hear_of("RELOADING=1");
    let ready = service.hear_of("READY=1");
    assert!(status_of(&ready).ends_with("broker away"), "{ready:?}");
    assert_eq!(service.meters(), ["E-0102"]);
    let changes = service.configuration_changes();
    assert_eq!(changes.len(), 2, "a refused configuration changed nothing: {changes:?}");
    assert_eq!(changes[0]["after"], changes[1]["before"]);

    let (status, took) = service.terminate();
    assert_eq!(status.code(), Some(0), "{}", service.log());
    assert!(took < END, "took {took:?}");
}

#[test]
fn whoever_ends_the_daemon_while_it_opens_the_ledger_is_obeyed() {
    let mut service = Service::start(&["E-0101"]);
    service.hear_of("STATUS=opening the ledger");
    let (status, took) = service.terminate();
    service.hear_of("STOPPING=1");
    assert_eq!(status.code(), Some(0), "{}", service.log());
    assert!(took < END, "took {took:?}");
}

/// No file of the daemon may grow any more, or may again: to the daemon, a disk that is full.
fn fill_disk(service: &Service, full: bool) {
    let current = full.then_some(0);
    let limit = Rlimit { current, maximum: None };
    prlimit(Some(Pid::from_child(&service.child)), Resource::Fsize, limit).unwrap();
}

#[test]
fn on_a_full_disk_a_reload_still_answers_and_its_record_follows() {
    let mut service = Service::start(&["E-0101"]);
    service.hear_of("READY=1");
    fill_disk(&service, true);
    configure(service.dir.path(), &["E-0102"], "");
    service.signal(Signal::HUP);
    service.hear_of("RELOADING=1");
    service.hear_of("READY=1");
    assert_eq!(service.meters(), ["E-0102"]);
    assert!(service.configuration_changes().is_empty(), "there was no room for it");
    service.hear_of("WATCHDOG=1");

    fill_disk(&service, false);
    let deadline = Instant::now() + PATIENCE;
    while service.configuration_changes().is_empty() {
        assert!(Instant::now() < deadline, "the record did not follow\n{}", service.log());
        sleep(GLANCE);
    }
    let (status, took) = service.terminate();
    assert_eq!(status.code(), Some(0), "{}", service.log());
    assert!(took < END, "took {took:?}");
}

#[test]
fn a_faulty_configuration_at_the_start_ends_with_the_code_that_stops_restarts() {
    let mut service = Service::start(&["E-0101"]);
    service.hear_of("READY=1");
    service.terminate();
    configure(service.dir.path(), &["E-0101"], "colour = \"blue\"");
    let run = Command::new(GATEWAY)
        .arg("--config")
        .arg(service.dir.path().join("gateway.toml"))
        .arg("run")
        .output();
    let code = run.unwrap().status.code().unwrap();
    assert_eq!(code, 78);
    let prevents = format!("\nRestartPreventExitStatus={code}\n");
    assert!(fs::read_to_string(repository("systemd/meter-gateway.service")).unwrap().contains(&prevents));
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The unit as it would be installed, but with the binary that was built.
fn unit(dir: &Path) -> PathBuf {
    let text = fs::read_to_string(repository("systemd/meter-gateway.service")).unwrap();
    let installed = "/usr/local/bin/meter-gateway";
    assert!(text.contains(&format!("ExecStart={installed} run\n")));
    let path = dir.join("meter-gateway.service");
    fs::write(&path, text.replace(installed, GATEWAY)).unwrap();
    let drop_ins = dir.join("meter-gateway.service.d");
    fs::create_dir(&drop_ins).unwrap();
    let password = "mqtt-password.conf";
    fs::copy(repository("systemd/meter-gateway.service.d").join(password), drop_ins.join(password)).unwrap();
    path
}

fn systemd_analyze(arguments: &[&str], unit: &Path) -> Output {
    match Command::new("systemd-analyze").args(arguments).arg(unit).env("SYSTEMD_COLORS", "0").output() {
        Ok(output) => output,
        Err(error) => panic!("systemd-analyze: {error}\n  hint: apt-get install systemd"),
    }
}

#[test]
fn systemd_finds_no_fault_in_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let run = systemd_analyze(&["verify", "--man=no"], &unit(dir.path()));
    let said = [run.stdout, run.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // Other units of the machine are none of ours; whatever names ours, or the place it is in, is.
    let of_ours: Vec<&str> = said.lines().filter(|line| line.contains("meter-gateway")).collect();
    assert!(of_ours.is_empty(), "{of_ours:#?}");
    assert!(run.status.success(), "{said}");
}

#[test]
fn the_sandbox_stays_tight() {
    let dir = tempfile::tempdir().unwrap();
    let run = systemd_analyze(&["security", "--offline=true", "--no-pager"], &unit(dir.path()));
    let text = String::from_utf8(run.stdout).unwrap();
    // "→ Overall exposure level for meter-gateway.service: 1.8 OK"
    let level = text
        .lines()
        .find_map(|line| line.split_once("Overall exposure level for meter-gateway.service: "))
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&run.stderr)));
    let (whole, tenths) = level.split_once('.').unwrap();
    let level: u32 = whole.parse::<u32>().unwrap() * 10 + tenths.parse::<u32>().unwrap();
    assert!(level <= EXPOSURE_TENTHS, "{text}");
}

#[test]
fn the_sandbox_lets_serial_lines_through() {
    // Exposure alone would be best with no devices at all.
    let text = fs::read_to_string(repository("systemd/meter-gateway.service")).unwrap();
    let directives: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for needed in [
        "SupplementaryGroups=dialout",
        "DevicePolicy=closed",
        "DeviceAllow=char-ttyUSB rw",
        "DeviceAllow=char-ttyACM rw",
        "DeviceAllow=char-ttyS rw",
        "PrivateDevices=no",
        "ProcSubset=all", // /proc/locks: who has the port
        "StateDirectoryMode=0700",
    ] {
        assert!(directives.contains(&needed), "{needed}");
    }
}
