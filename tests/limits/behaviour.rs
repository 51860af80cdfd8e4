//! What happens at the limits that matter most: queues are filled and doors besieged. Capacities are the page's, spelled
//! out here once more, so that a change is noticed.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::BoxFuture;
use meter_gateway::{
    app::{House, Outside},
    bus::{Class, Now, RealPorts, Request, Schedule, Target, readings},
    clock::SimulatedClock,
    config::{self, Settings},
    console::{self, Console, Door, MAX_CONNECTIONS},
    identity::Identity,
    ledger::{Ledger, MemoryLedger, SharedLedger},
    model::{Asker, ClockState, Reading, Utc, Via},
    pipeline,
    publish::{Broker, Command, Link, LinkEvent, Message, Offer, Outgoing, PayloadError, Receipt},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, timeout},
};

/// So long a test waits for what must happen.
const SOON: Duration = Duration::from_secs(10);

const SITE: &str = r#"
[site]
id = "riverside"
timezone = "Asia/Shanghai"
[gateway]
id = "gw-01"
[mqtt]
url = "mqtt://127.0.0.1"
[[bus]]
id = "north"
kind = "serial"
device = "/dev/no-such-line"
[[meter]]
id = "E-1"
bus = "north"
address = "1"
profile = "eastron-sdm120"
"#;

struct Text;

impl config::Shelf for Text {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(SITE.into())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

fn settings() -> Settings {
    config::load_from(&Text, Path::new("gateway.toml"), None).unwrap()
}

/// A broker that never answers.
struct Deaf;

impl Broker for Deaf {
    fn connect(&self, _: Offer) -> Box<dyn Link> {
        Box::new(Deaf)
    }
}

impl Link for Deaf {
    fn event(&mut self) -> BoxFuture<'_, LinkEvent> {
        Box::pin(std::future::pending())
    }

    fn max_payload(&self, _: &str) -> usize {
        0
    }

    fn publish(&self, _: Message) -> bool {
        false
    }

    fn subscribe(&self, _: Vec<String>) -> bool {
        false
    }

    fn disconnect(&self) {}
}

/// A whole gateway whose line and broker are away. Its tasks run only where the test awaits.
async fn house() -> (House, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(SimulatedClock::starting_at(Utc::default(), ClockState::Synced));
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("00000000000000000000000000000001"));
    let identity = Arc::new(Identity::load_from(dir.path(), None).unwrap());
    let outside = Outside { clock, ports: Arc::new(RealPorts), broker: Arc::new(Deaf) };
    let house = House::start(Arc::new(settings()), ledger, identity, outside, &["a test".to_owned()]).await;
    (house, dir)
}

fn poll<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Poll<T> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_full_inbox_of_the_publisher_refuses_a_replay_at_once() {
    let (house, _dir) = house().await;
    let console = Arc::clone(house.console());
    let asked = |_| console.publisher().try_send(Outgoing::Replay { from: 1, to: 1 });
    let answers: Vec<_> = (0..65).map(asked).collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 64);
    assert!(answers[64].is_err(), "the asker is told at once");
}

#[tokio::test]
async fn a_full_queue_of_a_bus_refuses_a_read_at_once() {
    let (house, _dir) = house().await;
    let console = Arc::clone(house.console());
    let meter = "E-1".parse().unwrap();
    let known = async {
        while !console.demands.lock().unwrap().contains_key(&meter) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, known).await.expect("a bus");
    let who = Asker::new(Via::Mqtt("c".into()), None).unwrap();
    let mut asked: Vec<_> = (0..65).map(|_| Box::pin(console.read_now(&who, &meter))).collect();
    let answers: Vec<_> = asked.iter_mut().map(poll).collect();
    assert!(answers[..64].iter().all(Poll::is_pending));
    match &answers[64] {
        Poll::Ready(Err(reason)) => {
            assert!(reason.to_string().contains("too many requests waiting"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bus_takes_no_more_demands_than_it_serves_in_seconds() {
    let settings = settings();
    let plan = meter_gateway::app::meter_plan(&settings.meters[0], &settings.buses[0], None);
    let now = Now { instant: Instant::now(), wall: Utc::default() };
    let mut schedule = Schedule::new(vec![plan; 100], now);
    let demand =
        |meter| Request { target: Target::Meter(meter), class: Class::Demand, deadline: None, keep: false };
    let taken: Vec<_> = (0..100).filter_map(|meter| schedule.handle_request(demand(meter))).collect();
    assert_eq!(taken.len(), 64);
    assert_eq!(schedule.handle_request(demand(63)), taken.last().copied(), "equal requests are one");
}

fn reading() -> Reading {
    serde_json::from_value(json!({
        "meter": "E-1", "medium": "electricity", "origin": "missing", "verdict": "bad", "flags": ["bus_down"],
        "scheduled_at": "2026-11-01T00:00:00Z", "taken_at": null, "values": {},
    }))
    .unwrap()
}

#[tokio::test]
async fn a_full_queue_of_readings_makes_the_bus_wait_and_loses_none() {
    const BYTES: usize = 32 * 1024 * 1024;
    let (readings, queue) = readings::readings();
    let fit = BYTES / reading().memory();
    assert!(
        (12_000..200_000).contains(&fit),
        "ten seconds of a thousand meters, and memory has an end: {fit}"
    );
    for _ in 0..fit {
        let room = timeout(SOON, readings.room(&reading(), true)).await.expect("there is room").unwrap();
        readings.send(reading(), room);
    }
    let last = reading();
    let mut next = Box::pin(readings.room(&last, true));
    assert!(poll(&mut next).is_pending(), "it waits, and is not refused");
    let ledger = Arc::new(MemoryLedger::new("00000000000000000000000000000001"));
    let clock = Arc::new(SimulatedClock::starting_at(Utc::default(), ClockState::Synced));
    let writer = tokio::spawn(pipeline::write(queue, Arc::clone(&ledger) as _, clock));
    let room = timeout(SOON, next).await.unwrap().unwrap();
    readings.send(last.clone(), room);
    drop(readings);
    timeout(SOON * 6, writer).await.unwrap().unwrap();
    assert_eq!(ledger.head().borrow().seq, fit as u64 + 1);
}

/// A meter without slots waits early: what it could say later is not lost.
#[tokio::test]
async fn readings_without_a_slot_wait_at_an_eighth_of_the_queue_and_keep_nobody_else_from_it() {
    const BYTES: usize = 4 * 1024 * 1024;
    let (readings, _queue) = readings::readings();
    let one = reading();
    for _ in 0..BYTES / one.memory() {
        let room = timeout(SOON, readings.room(&one, false)).await.expect("there is room").unwrap();
        readings.send(one.clone(), room);
    }
    assert!(poll(&mut Box::pin(readings.room(&one, false))).is_pending());
    let room = timeout(SOON, readings.room(&one, true)).await.expect("a slot does not wait for it").unwrap();
    readings.send(one.clone(), room);
}

#[test]
fn an_oversize_payload_from_the_broker_is_refused_by_its_length() {
    let long = |before: &str, behind: &str| {
        let mut text = before.to_owned();
        text.push_str(&" ".repeat(256 * 1024 + 1 - before.len() - behind.len()));
        text.push_str(behind);
        text.into_bytes()
    };
    let command = long(r#"{"id":"a","name":"replay","args":{}"#, "}");
    let PayloadError::Malformed { detail, .. } = Command::parse(&command).unwrap_err();
    assert_eq!(detail, "262145 bytes came, expected at most 262144");
    assert!(Receipt::parse(&long(r#"{"ledger":"a","confirmed_seq":1"#, "}")).is_err());
    let shorter: Vec<u8> = command.iter().copied().rev().skip_while(|byte| *byte != b' ').skip(1).collect();
    let shorter = [shorter.into_iter().rev().collect(), b"}".to_vec()].concat();
    assert_eq!(shorter.len(), 256 * 1024);
    assert_eq!(Command::parse(&shorter).unwrap().id, "a");
}

/// The console at a TCP port, as `[console] listen` opens it.
struct Port {
    address: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

async fn port(console: &Arc<Console>) -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, down) = watch::channel(false);
    let task = tokio::spawn(console::serve(listener, Door::Port, console::router(Arc::clone(console)), down));
    Port { address, stop, task }
}

impl Port {
    async fn open(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends this, and the first line of what comes back.
    async fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.open().await;
        let _ = stream.write_all(request).await; // the answer may come before the request is whole
        first_line(&mut stream).await
    }
}

async fn first_line(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    while !seen.contains(&b'\n') {
        let byte = timeout(SOON, stream.read_u8()).await.expect("an answer");
        match byte {
            Ok(byte) => seen.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(seen).unwrap().trim_end().to_owned()
}

const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";

#[tokio::test]
async fn the_console_refuses_a_long_body_and_long_headers() {
    let (house, _dir) = house().await;
    let port = port(house.console()).await;
    assert_eq!(port.ask(HEALTH).await, "HTTP/1.1 200 OK");
    let body = |length: usize| {
        let head = format!(
            "POST /api/v1/read HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        [head.into_bytes(), vec![b' '; length]].concat()
    };
    assert_eq!(port.ask(&body(16 * 1024 + 1)).await, "HTTP/1.1 413 Payload Too Large");
    assert_eq!(port.ask(&body(16 * 1024)).await, "HTTP/1.1 400 Bad Request", "it is read, and is no JSON");
    let long = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(20 * 1024));
    assert_eq!(port.ask(long.as_bytes()).await, "HTTP/1.1 431 Request Header Fields Too Large");
    port.stop.send(true).unwrap();
    timeout(SOON, port.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn one_connection_too_many_waits_until_another_ends() {
    let (house, _dir) = house().await;
    let port = port(house.console()).await;
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut stream = port.open().await;
        stream.write_all(HEALTH).await.unwrap();
        assert_eq!(first_line(&mut stream).await, "HTTP/1.1 200 OK");
        open.push(stream);
    }
    assert_eq!(MAX_CONNECTIONS, 64);
    let mut waiting = port.open().await;
    waiting.write_all(HEALTH).await.unwrap();
    // Those inside are served meanwhile, so the server had every chance to take one more.
    for stream in &mut open {
        let mut rest = [0; 4096];
        while stream.try_read(&mut rest).is_ok() {}
        stream.write_all(HEALTH).await.unwrap();
        assert!(timeout(SOON, stream.read(&mut rest)).await.unwrap().unwrap() > 0);
    }
    assert_eq!(waiting.try_read(&mut [0; 16]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    open.pop();
    assert_eq!(first_line(&mut waiting).await, "HTTP/1.1 200 OK");
}

#[tokio::test]
async fn half_a_header_is_waited_for_half_a_minute() {
    let (house, _dir) = house().await;
    let port = port(house.console()).await;
    let mut stream = port.open().await;
    stream.write_all(&HEALTH[..20]).await.unwrap();
    // Served once, so that the server has surely begun to wait for the first.
    assert_eq!(port.ask(HEALTH).await, "HTTP/1.1 200 OK");
    tokio::time::pause();
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await; // an end, or a reset: closed
    let waited = began.elapsed();
    assert!((Duration::from_secs(25)..Duration::from_secs(40)).contains(&waited), "{waited:?}");
}
