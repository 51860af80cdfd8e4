//! Many connections at once: they cost little memory, and never a reading or a record that leaves.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/mosquitto.rs"]
mod mosquitto;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use consumer::Consumer;
use gateway::Gateway;
use meter_gateway::{
    ledger::{FileLedger, Ledger, Options},
    model::{ClockState, Draft, RecordType, Utc, rfc3339},
};
use mosquitto::Mosquitto;
use serde_json::{Map, Value, json};

/// Readers; there may be 64 at each listener.
const READERS: usize = 16;
const METER: &str = "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:1\"\n\
    [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n";

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A ledger with this many readings of forty points each, 4 kB.
fn fill(gateway: &Gateway, readings: i64) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (ledger, _) = FileLedger::open(&gateway.path("data"), Options::default()).unwrap();
    let draft = |n: i64| {
        let at = Utc::from_timestamp(1_790_000_000 + n * 900, 0).unwrap();
        let point = |nth| {
            (
                format!("point_{nth}"),
                json!({"value": format!("{n}.{nth}"), "unit": "kWh", "raw": "0x00BC614E"}),
            )
        };
        let values: Map<String, Value> = (0..40).map(point).collect();
        let fields = json!({
            "meter": "E-1", "medium": "electricity", "scheduled_at": rfc3339(at), "taken_at": rfc3339(at),
            "origin": "measured", "verdict": "good", "flags": [], "values": values,
        });
        let Value::Object(fields) = fields else { unreachable!() };
        Draft { kind: RecordType::Reading, recorded_at: at, clock: ClockState::Synced, fields, reading: None }
    };
    for batch in 0..readings / 100 {
        runtime.block_on(ledger.append((batch * 100..(batch + 1) * 100).map(draft).collect())).unwrap();
    }
    ledger.close();
}

/// Resident memory of the daemon, in kilobytes.
fn rss(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn readers_that_read_nothing_cost_little_memory() {
    let port = free_port();
    let mut gateway =
        Gateway::configured(1, 3600, &format!("[console]\nlisten = \"127.0.0.1:{port}\"\n{METER}"));
    fill(&gateway, 1000);
    gateway.start();
    let whole = gateway.text("/api/v1/readings?limit=1000");
    let seqs: Vec<_> =
        whole.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].clone()).collect();
    assert_eq!(seqs, (1..=1000).map(Value::from).collect::<Vec<_>>(), "a page is whole and in order");
    assert!(whole.len() > 2_000_000, "{}", whole.len());

    let before = rss(&gateway);
    let stalled: Vec<TcpStream> = (0..READERS)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /api/v1/readings?limit=1000 HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for stream in &stalled {
        stream.peek(&mut [0]).unwrap(); // the answer has begun
    }
    let grown = rss(&gateway).saturating_sub(before);
    println!("{READERS} stalled readers: {before} kB, {grown} kB more");
    assert!(grown < 20 * 1024, "{READERS} stalled readers cost {grown} kB");

    // Whoever reads on after all gets everything.
    let mut stream = stalled.into_iter().next().unwrap();
    let mut body = Vec::new();
    while body.len() < whole.len() || !body.ends_with(whole.as_bytes()) {
        let mut piece = [0; 8192];
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{} bytes came", body.len());
        body.extend_from_slice(&piece[..length]);
    }
}

/// The last record of the next message.
async fn newest(consumer: &mut Consumer) -> Value {
    consumer.next_json("records").await["records"].as_array().unwrap().last().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_takes_no_file_from_lines_and_publisher() {
    let mut broker = Mosquitto::open();
    let mut consumer = Consumer::start(broker.port, "metering/v1/#", None).await;
    let line = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free_port();
    let meter = METER.replace("127.0.0.1:1", &line.local_addr().unwrap().to_string());
    let mut gateway =
        Gateway::configured(broker.port, 1, &format!("[console]\nlisten = \"127.0.0.1:{port}\"\n{meter}"));
    gateway.files = Some(96);
    gateway.start();
    let status = gateway.get("/api/v1/status");
    assert_eq!(status["warnings"], json!([]), "96 are enough for one bus");
    let (first, _) = line.accept().unwrap();
    newest(&mut consumer).await;

    // More at both listeners than the process may open files; each has begun a request and says no more.
    let mut flood: Vec<Box<dyn Write>> = Vec::new();
    for nth in 0..100 {
        flood.push(Box::new(TcpStream::connect(("127.0.0.1", port)).unwrap()));
        if nth < 60 {
            flood.push(Box::new(UnixStream::connect(gateway.socket()).unwrap())); // connecting blocks when its queue is full
        }
    }
    for stream in &mut flood {
        let begun = stream.write_all(b"GET /api/v1/status HTTP/1.1\r\n");
        assert!(begun.is_ok(), "{begun:?}\n{}", gateway.log());
    }

    // Both have to be opened again in the middle of it.
    broker.kill();
    drop(first);
    let accepted = tokio::task::spawn_blocking(move || line.accept().unwrap());
    let second = tokio::time::timeout(Duration::from_secs(60), accepted)
        .await
        .expect("the line is opened again")
        .unwrap();
    let exported = gateway.cli(&["ledger", "export"]).stdout;
    let stored = u64::try_from(String::from_utf8(exported).unwrap().lines().count()).unwrap();
    broker.start();
    while newest(&mut consumer).await["seq"].as_u64().unwrap() <= stored {}
    let served = fs::read_dir(format!("/proc/{}/fd", gateway.pid().as_raw_nonzero())).unwrap().count();
    assert!((30..96).contains(&served), "{served} files are open");
    assert!(!gateway.log().contains("Too many open files"), "{}", gateway.log());
    drop((second, flood));
}
