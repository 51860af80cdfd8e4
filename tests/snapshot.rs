//! An older copy of the data directory is brought back, as a snapshot of a machine does it: the binary, a real Mosquitto,
//! and a consumer that keeps every content that came under a number.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/mosquitto.rs"]
mod mosquitto;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use consumer::Consumer;
use gateway::Gateway;
use mosquitto::Mosquitto;
use serde_json::{Value, json};

/// Meters behind a port that nobody listens on: each slot is a `missing` record.
fn meters() -> String {
    let bus = "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:1\"\n".to_owned();
    (1..=4).fold(bus, |text, n| {
        text + &format!(
            "[[meter]]\nid = \"E-{n}\"\nbus = \"plant\"\naddress = \"{n}\"\nprofile = \"eastron-sdm120\"\n"
        )
    })
}

/// What came under each (ledger, seq).
#[derive(Default)]
struct Seen(BTreeMap<(String, u64), BTreeSet<String>>);

impl Seen {
    fn take(&mut self, consumer: &mut Consumer) {
        while let Ok(message) = consumer.messages.try_recv() {
            if !message.topic.ends_with("/records") {
                continue;
            }
            let message: Value = serde_json::from_slice(&message.payload).unwrap();
            for record in message["records"].as_array().unwrap() {
                let key = (message["ledger"].as_str().unwrap().to_owned(), record["seq"].as_u64().unwrap());
                self.0.entry(key).or_default().insert(record.to_string());
            }
        }
    }

    async fn until(&mut self, what: &str, consumer: &mut Consumer, good: impl Fn(&Seen) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !good(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.0.keys());
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.take(consumer);
        }
    }

    fn last(&self, ledger: &str) -> u64 {
        self.0.keys().filter(|(of, _)| of == ledger).map(|(_, seq)| *seq).max().unwrap_or_default()
    }

    fn of_two_contents(&self) -> Vec<&(String, u64)> {
        self.0.iter().filter(|(_, contents)| contents.len() > 1).map(|(key, _)| key).collect()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy(&entry.path(), &target),
            kind if kind.is_file() => drop(fs::copy(entry.path(), target).unwrap()),
            _ => {} // the socket
        }
    }
}

fn end(gateway: &mut Gateway, kill: bool) {
    if kill {
        gateway.kill();
    } else {
        assert!(gateway.terminate().0.success());
    }
}

/// Waits until another ledger is in the place of `old`; the daemon is the same process all the time.
fn another_ledger(gateway: &Gateway, old: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = gateway.try_get("/api/v1/status"); // away for a moment while its parts begin again
        if let Some(status) = status.filter(|status| status["ledger"] != old) {
            return status;
        }
        assert!(Instant::now() < deadline, "{}", gateway.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn first_record(gateway: &Gateway) -> Value {
    let exported = gateway.cli(&["ledger", "export", "--from", "1", "--to", "1"]).stdout;
    serde_json::from_slice(&exported).unwrap()
}

/// It runs, is copied, runs on, and the copy is brought back. Returns the ledger and how far it was in the copy.
async fn brought_back(
    gateway: &mut Gateway,
    seen: &mut Seen,
    consumer: &mut Consumer,
    kill: bool,
) -> (String, u64) {
    gateway.start();
    let ledger = gateway.get("/api/v1/status")["ledger"].as_str().unwrap().to_owned();
    seen.until("records", consumer, |seen| seen.last(&ledger) >= 8).await;
    end(gateway, kill);
    copy(&gateway.path("data"), &gateway.path("copy"));
    let copied = fs::read_dir(gateway.path("copy/ledger")).unwrap().count();
    assert!(copied > 2);
    seen.take(consumer);
    let at = seen.last(&ledger);
    gateway.start();
    seen.until("more records", consumer, |seen| seen.last(&ledger) > at + 40).await;
    end(gateway, kill);
    seen.take(consumer);
    fs::rename(gateway.path("data"), gateway.path("later")).unwrap();
    fs::rename(gateway.path("copy"), gateway.path("data")).unwrap();
    (ledger, at)
}

async fn by_the_retained_status(kill: bool) {
    let broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, 1, &meters());
    let mut consumer = Consumer::start(broker.port, "metering/v1/#", None).await;
    let mut seen = Seen::default();
    let (old, _) = brought_back(&mut gateway, &mut seen, &mut consumer, kill).await;
    gateway.spawn();
    let status = another_ledger(&gateway, &old);
    let new = status["ledger"].as_str().unwrap().to_owned();
    let first = first_record(&gateway);
    assert_eq!((&first["change"], &first["old_ledger"]), (&json!("ledger_replaced"), &json!(old)), "{first}");
    assert!(first["reason"].as_str().unwrap().contains("others have seen more"), "{first}");
    seen.until("records of the new ledger", &mut consumer, |seen| seen.last(&new) > 8).await;
    assert_eq!(seen.of_two_contents(), Vec::<&(String, u64)>::new(), "{}", gateway.log());
    assert!(
        fs::read_dir(gateway.path("data/ledger"))
            .unwrap()
            .any(|entry| { entry.unwrap().file_name().to_str().unwrap().starts_with("replaced-1.") })
    );
    // The new one goes on, however it is restarted: what the broker holds is of itself.
    for kill in [true, false, true] {
        end(&mut gateway, kill);
        gateway.start();
        let at = seen.last(&new);
        seen.until("it goes on", &mut consumer, |seen| seen.last(&new) > at).await;
    }
    assert_eq!(gateway.get("/api/v1/status")["ledger"], new.as_str());
    assert_eq!(seen.of_two_contents(), Vec::<&(String, u64)>::new(), "{}", gateway.log());
    assert!(gateway.cli(&["ledger", "verify"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_brought_back_begins_a_new_ledger() {
    by_the_retained_status(false).await;
}

/// The broker holds the last will then, which says no more than how far the ledger was when the connection began.
#[tokio::test(flavor = "multi_thread")]
async fn so_does_one_after_kills() {
    by_the_retained_status(true).await;
}

/// A broker that forgets: billing's word is what is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_for_what_was_never_here_begins_a_new_ledger() {
    let mut broker = Mosquitto::open();
    let rest = format!("confirm = \"billing\"\n{}", meters());
    let mut gateway = Gateway::configured(broker.port, 1, &rest);
    let mut consumer = Consumer::start(broker.port, "metering/v1/#", None).await;
    let mut seen = Seen::default();
    let (old, _) = brought_back(&mut gateway, &mut seen, &mut consumer, true).await;
    broker.kill();
    broker.start();
    drop(consumer);
    let mut consumer = Consumer::start(broker.port, "metering/v1/#", None).await;
    let confirmed = seen.last(&old);
    gateway.spawn();
    let mut again = Seen::default();
    again.until("it sends again", &mut consumer, |again| again.last(&old) > 0).await;
    consumer.say("receipt", &json!({"ledger": old, "confirmed_seq": confirmed})).await;
    let status = another_ledger(&gateway, &old);
    let first = first_record(&gateway);
    let reason = first["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("billing has confirmed seq {confirmed}")), "{first}");
    let new = status["ledger"].as_str().unwrap().to_owned();
    again.until("records of the new ledger", &mut consumer, |again| again.last(&new) > 8).await;
    assert!(again.last(&old) < confirmed, "nothing was sent under numbers that billing could not tell apart");
}

/// Copied while it runs, and killed within the same connection: the will says less than what was sent. Billing is asked
/// before anything new is sent, and its receipt tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_the_running_directory_is_noticed_before_anything_new_is_sent() {
    let broker = Mosquitto::open();
    let rest = format!("confirm = \"billing\"\n{}", meters());
    let mut gateway = Gateway::configured(broker.port, 1, &rest);
    let mut consumer = Consumer::start(broker.port, "metering/v1/#", None).await;
    let mut seen = Seen::default();
    gateway.start();
    let old = gateway.get("/api/v1/status")["ledger"].as_str().unwrap().to_owned();
    seen.until("records", &mut consumer, |seen| seen.last(&old) >= 8).await;
    consumer.say("receipt", &json!({"ledger": old, "confirmed_seq": 8})).await;
    let cursors = gateway.path("data/ledger/cursors.json");
    gateway.until("confirmed, durably", |_| {
        let cursors: Value = serde_json::from_slice(&fs::read(&cursors).unwrap()).unwrap();
        cursors["confirmed"] == 8
    });
    copy(&gateway.path("data"), &gateway.path("copy"));
    let at = seen.last(&old);
    seen.until("more records", &mut consumer, |seen| seen.last(&old) > at + 60).await;
    gateway.kill();
    seen.take(&mut consumer);
    fs::rename(gateway.path("data"), gateway.path("later")).unwrap();
    fs::rename(gateway.path("copy"), gateway.path("data")).unwrap();
    let confirmed = seen.last(&old);
    gateway.spawn();
    let asked = consumer.next_json("records").await; // whatever it is, billing answers with what it has
    let asked = asked["records"].as_array().unwrap().clone();
    assert!(
        asked.len() == 1 && asked[0]["seq"].as_u64() >= Some(8) && asked[0]["seq"].as_u64() <= Some(at),
        "{asked:?}"
    );
    consumer.say("receipt", &json!({"ledger": old, "confirmed_seq": confirmed})).await;
    another_ledger(&gateway, &old);
    let first = first_record(&gateway);
    assert!(first["reason"].as_str().unwrap().contains("billing has confirmed"), "{first}");
    assert_eq!(first["old_ledger"], old.as_str());
    seen.until("records of the new ledger", &mut consumer, |seen| {
        seen.0.keys().any(|(ledger, seq)| *ledger != old && *seq > 4)
    })
    .await;
    assert_eq!(seen.of_two_contents(), Vec::<&(String, u64)>::new(), "{}", gateway.log());
}

/// Opening the new ledger hangs (a disk that does not answer): a supervisor sees that the process lives, and its end is heard.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_new_ledger_begins_the_watchdog_is_fed_and_the_end_is_heard() {
    let broker = Mosquitto::open();
    let mut gateway = Gateway::configured(broker.port, 1, &format!("confirm = \"billing\"\n{}", meters()));
    let systemd = UnixDatagram::bind(gateway.path("notify")).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    let consumer = Consumer::start(broker.port, "metering/v1/#", None).await;
    gateway.start();
    end(&mut gateway, false); // a ledger that has begun in this process ends by no receipt
    gateway.environment =
        vec![("NOTIFY_SOCKET", gateway.path("notify")), ("WATCHDOG_USEC", "4000000".into())];
    gateway.start();
    let status = gateway.until("connected", |status| status["publisher"]["connected"] == true);
    let identity = gateway.path("data/ledger/ledger.json");
    fs::remove_file(&identity).unwrap();
    assert!(Command::new("mkfifo").arg(&identity).status().unwrap().success());
    consumer.say("receipt", &json!({"ledger": status["ledger"], "confirmed_seq": 100_000})).await;

    let hear = |line: &str| {
        let (mut bytes, begun) = ([0; 4096], Instant::now());
        loop {
            assert!(begun.elapsed() < Duration::from_secs(30), "{line}");
            let length = systemd.recv(&mut bytes).unwrap_or_else(|error| panic!("{line}: {error}"));
            if std::str::from_utf8(&bytes[..length]).unwrap().lines().any(|said| said == line) {
                return;
            }
        }
    };
    hear("STATUS=beginning a new ledger");
    for _ in 0..3 {
        let begun = Instant::now();
        hear("WATCHDOG=1");
        assert!(begun.elapsed() < Duration::from_secs(4), "the watchdog would have bitten");
    }
    assert!(gateway.try_get("/api/v1/status").is_none(), "it is still opening");
    let (status, took) = gateway.terminate();
    hear("STOPPING=1");
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}\n{}", gateway.log());
}
