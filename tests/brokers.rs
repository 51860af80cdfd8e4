//! Foreign brokers, from nothing to a restart: a few hundred records go through each, and every one reaches the consumer.
//!
//! They are large and slow to start, so this runs on demand: `cargo test --test brokers -- --ignored`. What is missing is
//! named with the line that installs it. Mosquitto has `tests/publish_mosquitto.rs`, the scripted one `tests/delivery.rs`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "delivery/gateway.rs"]
mod gateway;

use std::{
    collections::BTreeSet,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use consumer::{BASE, Consumer};
use gateway::{Gateway, drafts, settings, stored};
use meter_gateway::{
    config::MqttVersion,
    ledger::{Ledger, SharedLedger},
};
use tempfile::TempDir;

/// An Erlang machine needs its time.
const START: Duration = Duration::from_secs(60);
const COUNT: u64 = 400;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Makes the command for a directory and a port.
type Program = dyn Fn(&Path, u16) -> Command;

/// A broker in a process group of its own.
struct Foreign {
    program: Box<Program>,
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Foreign {
    fn start(dir: TempDir, program: impl Fn(&Path, u16) -> Command + 'static) -> Foreign {
        let port = free_port();
        let child = launch(&program, dir.path(), port);
        Foreign { program: Box::new(program), child, port, dir }
    }

    fn kill(&mut self) {
        let group = rustix::process::Pid::from_child(&self.child);
        let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.kill();
        self.child = launch(&self.program, self.dir.path(), self.port);
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(program: &dyn Fn(&Path, u16) -> Command, dir: &Path, port: u16) -> Child {
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let mut command = program(dir, port);
    command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + START;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(child.try_wait().unwrap().is_none(), "it ended: {}", log());
        assert!(Instant::now() < deadline, "it does not listen: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}

fn installed(path: &str, how: &str) {
    assert!(Path::new(path).exists(), "{path} is missing; install it with: {how}");
}

/// Records, a restart in between, records again: all of them arrive.
async fn carries(mut broker: Foreign, version: MqttVersion, login: Option<(&str, &str)>) {
    let began = Instant::now();
    let mut billing = Consumer::start(broker.port, &format!("{BASE}/records"), login).await;
    let ledger = stored(COUNT).await;
    let shared: SharedLedger = ledger.clone();
    let mut settings = settings(broker.port, version);
    if let Some((name, password)) = login {
        let file = broker.dir.path().join("mqtt-password");
        std::fs::write(&file, password).unwrap();
        (settings.username, settings.password_file) = (Some(name.to_owned()), Some(file));
    }
    let mut gateway = Gateway::start(settings, &shared);
    gateway.until("acknowledged", |s| s.acknowledged == COUNT).await;
    let mut seen = BTreeSet::new();
    take_to(&mut billing, COUNT, &mut seen).await;
    drop(billing);
    broker.restart();
    let mut billing = Consumer::start(broker.port, &format!("{BASE}/records"), login).await;
    ledger.append(drafts(COUNT)).await.unwrap();
    gateway.until("acknowledged after the restart", |s| s.acknowledged == 2 * COUNT).await;
    take_to(&mut billing, 2 * COUNT, &mut seen).await;
    let warnings = gateway.state.borrow().warnings.clone();
    gateway.stop().await;
    assert_eq!(seen.len() as u64, 2 * COUNT, "every record arrived");
    eprintln!("{version:?}: {} records and a restart in {:?}; {warnings:?}", 2 * COUNT, began.elapsed());
}

async fn take_to(billing: &mut Consumer, last: u64, seen: &mut BTreeSet<u64>) {
    while !seen.contains(&last) {
        let message = billing.next_json("records").await;
        seen.extend(message["records"].as_array().unwrap().iter().map(|r| r["seq"].as_u64().unwrap()));
    }
}

/// Needs the package `aedes` of npm in the directory that `AEDES` names.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Node and aedes"]
async fn aedes() {
    let how = "npm install --prefix DIR aedes, and AEDES=DIR";
    let modules =
        std::env::var("AEDES").unwrap_or_else(|_| panic!("AEDES is not set; install it with: {how}"));
    installed(&format!("{modules}/node_modules/aedes"), how);
    let broker = Foreign::start(tempfile::tempdir().unwrap(), move |_, port| {
        let script = format!(
            "const a = await import('{modules}/node_modules/aedes/aedes.js');\
             const broker = await a.Aedes.createBroker();\
             const net = await import('node:net');\
             net.createServer(broker.handle).listen({port}, '127.0.0.1');"
        );
        let mut command = Command::new("node");
        command.args(["--input-type=module", "-e", &script]);
        command
    });
    carries(broker, MqttVersion::V311, None).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs rabbitmq-server"]
async fn rabbitmq() {
    installed("/usr/sbin/rabbitmq-server", "apt-get install -y rabbitmq-server");
    let (amqp, node) = (free_port(), free_port());
    let broker = Foreign::start(tempfile::tempdir().unwrap(), move |dir, port| {
        let config = format!(
            "listeners.tcp.1 = 127.0.0.1:{amqp}\nmqtt.listeners.tcp.1 = 127.0.0.1:{port}\nmqtt.allow_anonymous = true\n"
        );
        std::fs::write(dir.join("rabbitmq.conf"), config).unwrap();
        std::fs::write(dir.join("plugins"), "[rabbitmq_mqtt].").unwrap();
        let launcher = std::fs::read_dir("/usr/lib/rabbitmq/lib").unwrap().next().unwrap().unwrap().path();
        let mut command = Command::new(launcher.join("sbin/rabbitmq-server"));
        command
            .env("HOME", dir)
            .env("RABBITMQ_NODENAME", format!("gw{node}@localhost"))
            .env("RABBITMQ_DIST_PORT", node.to_string())
            .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("plugins"))
            .env("RABBITMQ_MNESIA_BASE", dir.join("data"))
            .env("RABBITMQ_LOG_BASE", dir.join("logs"));
        command
    });
    carries(broker, MqttVersion::V311, None).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs ejabberd"]
async fn ejabberd() {
    installed("/usr/sbin/ejabberdctl", "apt-get install -y ejabberd");
    let ebin =
        std::fs::read_dir("/usr/lib/x86_64-linux-gnu").unwrap().filter_map(Result::ok).map(|e| e.path());
    let ebin = ebin
        .filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ejabberd-")))
        .map(|path| path.join("ebin"))
        .find(|path| path.join("ejabberd.app").exists());
    let ebin = ebin.unwrap();
    let broker = Foreign::start(tempfile::tempdir().unwrap(), move |dir, port| {
        let config = format!(
            "hosts: [localhost]\nloglevel: info\nauth_method: [anonymous]\nallow_multiple_connections: true\n\
             anonymous_protocol: login_anon\nlisten:\n  - port: {port}\n    ip: \"127.0.0.1\"\n    module: mod_mqtt\n    \
             backlog: 100\nmodules:\n  mod_mqtt:\n    access_publish:\n      \"#\": [allow: all]\n    \
             access_subscribe:\n      \"#\": [allow: all]\n"
        );
        std::fs::write(dir.join("ejabberd.yml"), config).unwrap();
        let mut command = Command::new("erl");
        command
            .args(["-noinput", "-boot", "start_sasl", "-sasl", "sasl_error_logger", "false"])
            .args(["-mnesia", "dir", &format!("\"{}\"", dir.join("data").display())])
            .arg("-pa")
            .arg(&ebin)
            .args(["-s", "ejabberd"])
            .env("HOME", dir)
            .env("EJABBERD_CONFIG_PATH", dir.join("ejabberd.yml"))
            .env("EJABBERD_LOG_PATH", dir.join("ejabberd.log"));
        command
    });
    carries(broker, MqttVersion::V5, Some(("gw@localhost", "x"))).await;
}
