//! How much somebody may have done, over the real binary: each action is a record for ever, and each replay traffic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/mosquitto.rs"]
mod mosquitto;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use consumer::{Consumer, PATIENCE};
use gateway::Gateway;
use meter_gateway::{
    ledger::{FileLedger, Ledger, Options},
    model::{ClockState, Draft, Seq, Utc},
};
use mosquitto::Mosquitto;
use serde_json::{Map, Value, json};

/// Beyond what one asker may have done at once.
const ASKED: usize = 300;
const AT_ONCE: usize = 120;

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A meter that refuses whatever is asked; its address.
fn refusing_meter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut asked = [0; 12];
            while stream.read_exact(&mut asked).is_ok() {
                let [one, two, ..] = asked;
                let refusal = [one, two, 0, 0, 0, 3, asked[6], asked[7] | 0x80, 2];
                if stream.write_all(&refusal).is_err() {
                    break;
                }
            }
        }
    });
    address
}

/// The status, what `Retry-After` says, and the body.
fn post(mut stream: impl Read + Write, path: &str, body: &Value) -> (u16, Option<u64>, Value) {
    let body = body.to_string();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let again = head.to_lowercase().lines().find_map(|line| line.strip_prefix("retry-after: ")?.parse().ok());
    (status, again, serde_json::from_str(body).unwrap())
}

/// Every stored record, by `ledger export`.
fn records(gateway: &Gateway) -> Vec<Value> {
    let exported = gateway.cli(&["ledger", "export"]);
    assert!(exported.status.success());
    String::from_utf8(exported.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn actions(gateway: &Gateway, via: &str) -> usize {
    let one = |record: &&Value| record["change"] == "user_action" && record["via"] == via;
    records(gateway).iter().filter(one).count()
}

/// Asks far more than is allowed, under a new name each time, and waits as it is told to.
fn ask_too_much(gateway: &Gateway, via: &str, one: impl Fn(usize) -> (u16, Option<u64>, Value)) {
    let begun = Instant::now();
    let mut done = 0;
    for nth in 0..ASKED {
        let (status, again, body) = one(nth);
        match status {
            200 => done += 1,
            429 => {
                assert!((1..=2).contains(&again.unwrap()), "{again:?}");
                let error = body["error"].as_str().unwrap();
                assert!(error.contains("120 at once"), "{error}");
            }
            other => panic!("{via}: {other} {body}"),
        }
    }
    let allowed = AT_ONCE + usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!((AT_ONCE..=allowed).contains(&done), "{via}: {done} of {ASKED} were done, {allowed} are allowed");
    assert_eq!(actions(gateway, via), done, "{via}: what was done is on record, and nothing else");

    // Who comes back when told to is served.
    let (status, again, _) = one(ASKED);
    if status == 429 {
        thread::sleep(Duration::from_secs(again.unwrap()));
        assert_eq!(one(ASKED + 1).0, 200, "{via}");
    }
}

#[test]
fn one_asker_is_limited_on_the_port_and_on_the_socket_and_neither_costs_the_other() {
    let (port, meter) = (free_port(), refusing_meter());
    let mut gateway = Gateway::configured(
        1,
        3600,
        &format!(
            "[console]\nlisten = \"127.0.0.1:{port}\"\n[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"{meter}\"\n\
             [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n"
        ),
    );
    gateway.start();
    let by = |nth: usize| json!({"meter": "E-1", "by": format!("clerk {nth}")});
    ask_too_much(&gateway, "http", |nth| {
        post(TcpStream::connect(("127.0.0.1", port)).unwrap(), "/api/v1/read", &by(nth))
    });
    let socket = gateway.socket();
    ask_too_much(&gateway, "socket", |nth| {
        let asked = json!({"dir": format!("/nowhere/{nth}"), "by": format!("clerk {nth}")});
        post(UnixStream::connect(&socket).unwrap(), "/api/v1/ledger/backup", &asked)
    });
    let rotated = gateway.cli(&["identity", "rotate"]);
    let said = String::from_utf8(rotated.stderr).unwrap();
    assert!(!rotated.status.success() && said.contains("too many requests"), "{said}");
}

#[test]
fn a_loop_on_the_command_line_without_a_daemon_records_no_more_than_one_a_second() {
    let mut gateway = Gateway::configured(1, 3600, "");
    gateway.start();
    assert!(gateway.terminate().0.success());
    let before = records(&gateway).len();
    for nth in 0..5 {
        assert!(!gateway.cli(&["ledger", "replay", "--from", "1", "--to", "1"]).status.success());
        let to = gateway.path(&format!("backup-{nth}"));
        assert!(gateway.cli(&["ledger", "backup", to.to_str().unwrap()]).status.success());
        assert!(!gateway.cli(&["ledger", "restore", to.to_str().unwrap()]).status.success(), "not empty");
    }
    assert_eq!(records(&gateway).len(), before, "none of these records anything");

    let begun = Instant::now();
    let rotate = || {
        thread::spawn({
            let mut program = gateway.program(&["identity", "rotate"]);
            move || program.output().unwrap().status.success()
        })
    };
    let mut done = 0;
    for _ in 0..3 {
        let pair = [rotate(), rotate()];
        done += pair.into_iter().map(|one| usize::from(one.join().unwrap())).sum::<usize>();
    }
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    let recorded = records(&gateway).len() - before;
    assert_eq!(recorded, done, "what was done is on record");
    assert!((1..=seconds).contains(&done), "{done} in {seconds} s");
}

/// Bytes of one record of [`fill`].
const RECORD: usize = 4000;
/// So many of them take many seconds at the rate of replays.
const FILLED: Seq = 4000;

/// A ledger of large records.
async fn fill(gateway: &Gateway) {
    let (ledger, _) = FileLedger::open(&gateway.path("data"), Options::default()).unwrap();
    for _ in 0..FILLED / 100 {
        let draft = || {
            let fields = Map::from_iter([("text".to_owned(), "x".repeat(RECORD).into())]);
            Draft::change("test", fields, Utc::UNIX_EPOCH, ClockState::Synced)
        };
        ledger.append((0..100).map(|_| draft()).collect()).await.unwrap();
    }
    ledger.close();
}

/// The records of a message.
async fn next(consumer: &mut Consumer) -> Vec<u64> {
    let message = consumer.next_json("records").await;
    message["records"].as_array().unwrap().iter().map(|record| record["seq"].as_u64().unwrap()).collect()
}

fn replays(gateway: &Gateway) -> usize {
    records(gateway).iter().filter(|record| record["action"] == "replay").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_range_asked_many_times_at_once_is_sent_once_and_holds_up_no_record() {
    let broker = Mosquitto::open();
    let mut consumer = Consumer::start(broker.port, "metering/v1/#", None).await;
    let (port, meter) = (free_port(), refusing_meter());
    let mut gateway = Gateway::configured(
        broker.port,
        1,
        &format!(
            "[console]\nlisten = \"127.0.0.1:{port}\"\n[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"{meter}\"\n\
             [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n"
        ),
    );
    fill(&gateway).await;
    gateway.start();
    while next(&mut consumer).await.last() < Some(&FILLED) {}
    gateway
        .until("all is acknowledged", |status| status["store"]["acknowledged_seq"].as_u64() >= Some(FILLED));

    // Over all ways, all the time until the end is there.
    let range = json!({"from": 1, "to": FILLED});
    let socket = gateway.socket();
    let asked = range.clone();
    let askers = tokio::task::spawn_blocking(move || {
        for _ in 0..30 {
            for (status, _, body) in [
                post(TcpStream::connect(("127.0.0.1", port)).unwrap(), "/api/v1/ledger/replay", &asked),
                post(UnixStream::connect(&socket).unwrap(), "/api/v1/ledger/replay", &asked),
            ] {
                assert_eq!(status, 200, "{body}");
            }
        }
    });
    for nth in 0..30 {
        consumer.say("command", &json!({"id": format!("r-{nth}"), "name": "replay", "args": range})).await;
    }
    let mut times: BTreeMap<u64, u32> = BTreeMap::new();
    let (mut new, mut held_up) = (Instant::now(), Duration::ZERO);
    while !times.contains_key(&FILLED) {
        for seq in next(&mut consumer).await {
            if seq <= FILLED {
                *times.entry(seq).or_default() += 1;
            } else {
                held_up = held_up.max(new.elapsed());
                new = Instant::now();
            }
        }
    }
    askers.await.unwrap();
    assert_eq!(u64::try_from(times.len()).unwrap(), FILLED);
    let twice = times.values().filter(|times| **times != 1).count();
    assert_eq!(twice, 0, "records came more than once");
    println!("longest without a new record: {held_up:?}");
    assert!(held_up < Duration::from_secs(5), "new records came {held_up:?} apart");
    assert_eq!(replays(&gateway), 1, "the others asked for what was on its way");

    // What fits into one message is sent before the second request is there.
    let range = json!({"from": FILLED, "to": FILLED + 2});
    for nth in 0..10 {
        let command = json!({"id": format!("s-{nth}"), "name": "replay", "args": range});
        consumer.say("command", &command).await;
        let port = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let socket = UnixStream::connect(gateway.socket()).unwrap();
        assert_eq!(post(port, "/api/v1/ledger/replay", &range).0, 200);
        assert_eq!(post(socket, "/api/v1/ledger/replay", &range).0, 200);
    }
    let (mut answered, mut times, mut last, mut end) = (0, 0, 0, Seq::MAX);
    while last < end {
        let message = tokio::time::timeout(PATIENCE, consumer.messages.recv()).await.unwrap().unwrap();
        let text: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        if message.topic.ends_with("/response") && text["id"].as_str().unwrap().starts_with("s-") {
            assert_eq!(text["ok"], true, "{text}");
            answered += 1;
            if answered == 10 {
                end = gateway.stored(); // whatever was asked for goes out before this
            }
        } else if message.topic.ends_with("/records") {
            for record in text["records"].as_array().unwrap() {
                let seq = record["seq"].as_u64().unwrap();
                times += u32::from(seq == FILLED);
                last = last.max(seq);
            }
        }
    }
    assert_eq!((times, replays(&gateway)), (1, 2));
}
