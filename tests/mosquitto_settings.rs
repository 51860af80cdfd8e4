//! The publisher against a real Mosquitto whose settings forbid or limit something: records flow on where they can, and
//! the words say what is wrong. What each setting does is in `docs/brokers.md`.
//!
//! Mosquitto 2.0 grants every subscription and only withholds the messages, so a refused subscription is the scripted
//! broker's alone (`tests/delivery.rs`).

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

#[path = "common/consumer.rs"]
mod consumer;
#[path = "delivery/gateway.rs"]
mod gateway;
#[path = "delivery/line.rs"]
mod line;
#[path = "common/mosquitto.rs"]
mod mosquitto;

use std::{path::Path, sync::Arc, time::Duration};

use consumer::{Accounts, BASE, Consumer};
use gateway::{Gateway, drafts, settings, stored};
use meter_gateway::{
    config::MqttVersion::{self, V5, V311},
    ledger::{Ledger, MemoryLedger, SharedLedger},
    publish::PublisherState,
};
use mosquitto::Mosquitto;
use tokio::time::{sleep, timeout};

/// Five messages at least, and more than 200 where they may have 4000 bytes.
const COUNT: u64 = 2_100;

/// Connections until a limit of 4000 bytes that the broker does not state is found: two losses for each quarter of 128 KiB,
/// a few in which a message of our own was under way as well and may have been the cause, and the one that stays.
const FOUND: u64 = 6 + 3 + 1;
/// For what the broker's log shows.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

fn shown(state: &PublisherState) -> String {
    format!("{:?} {:?}", state.last_error, state.warnings)
}

/// All records of a ledger reach a consumer of `records`, on at most so many `connections`; then what the gateway shows
/// contains each of these `words`.
async fn carries(lines: &str, version: MqttVersion, connections: u64, words: &[&str]) {
    let broker = Mosquitto::with(|dir| prepared(dir, lines));
    let mut billing = Consumer::start(broker.port, &format!("{BASE}/records"), None).await;
    let ledger: SharedLedger = stored(COUNT).await;
    let mut gateway = Gateway::start(settings(broker.port, version), &ledger);
    Accounts::default().until(COUNT, &mut billing).await;
    gateway.until("all is acknowledged", |s| s.connected && s.acknowledged >= COUNT).await;
    gateway.until(&format!("{lines}: {words:?}"), |s| words.iter().all(|w| shown(s).contains(w))).await;
    let state = gateway.state.borrow().clone();
    assert!(
        state.session <= connections,
        "{lines}, {version:?}: {} connections, {}",
        state.session,
        shown(&state)
    );
    if words.is_empty() {
        // What is always said of 3.1.1 where the broker's word counts.
        let expected: &[&str] = if version == V311 { &["delivery_unproven"] } else { &[] };
        let warnings: Vec<_> = state.warnings.iter().map(|w| w.code).collect();
        assert_eq!((state.last_error, &warnings[..]), (None, expected), "{lines}, {version:?}");
    }
    gateway.stop().await;
}

/// The gateway says these words and nothing counts as sent.
async fn says(lines: &str, version: MqttVersion, words: &[&str]) {
    let broker = Mosquitto::with(|dir| prepared(dir, lines));
    let ledger: SharedLedger = stored(5).await;
    let mut gateway = Gateway::start(settings(broker.port, version), &ledger);
    gateway.until(&format!("{lines}: {words:?}"), |s| words.iter().all(|w| shown(s).contains(w))).await;
    assert_eq!(gateway.state.borrow().acknowledged, 0);
    gateway.stop().await;
}

/// Writes the access list that stands in `lines` as `deny TOPIC`, which is below the gateway's own.
fn prepared(dir: &Path, lines: &str) -> String {
    let (denied, lines): (Vec<&str>, Vec<&str>) = lines.lines().partition(|line| line.starts_with("deny "));
    let list = dir.join("access-list");
    let rules: Vec<String> = std::iter::once("topic readwrite #\n".to_owned())
        .chain(denied.iter().map(|line| format!("topic deny {BASE}/{}\n", &line[5..])))
        .collect();
    std::fs::write(&list, rules.concat()).unwrap();
    format!("allow_anonymous true\nacl_file {}\n{}\n", list.display(), lines.join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_status_is_shown_with_its_topic_in_version_5() {
    carries("deny status", V5, 1, &["gw-01/status", "not authorized"]).await;
}

/// MQTT 3.1.1 has no words for it: Mosquitto acknowledges what it throws away.
#[tokio::test(flavor = "multi_thread")]
async fn a_denied_status_holds_no_record_up_in_version_3_1_1() {
    carries("deny status", V311, 1, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_inventory_is_shown_with_its_topic_in_version_5() {
    carries("deny inventory/+", V5, 1, &["gw-01/inventory/E-1", "not authorized"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_inventory_holds_no_record_up_in_version_3_1_1() {
    carries("deny inventory/+", V311, 1, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_records_are_kept_and_the_reason_is_shown_in_version_5() {
    says("deny records", V5, &["not authorized"]).await;
}

/// Why 3.1.1 with `confirm = "broker"` is warned about.
#[tokio::test(flavor = "multi_thread")]
async fn denied_records_are_acknowledged_in_version_3_1_1() {
    let broker = Mosquitto::with(|dir| prepared(dir, "deny records"));
    let ledger: SharedLedger = stored(5).await;
    let mut gateway = Gateway::start(settings(broker.port, V311), &ledger);
    gateway.until("acknowledged", |s| s.acknowledged >= 5).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_maximum_qos_of_1_is_enough() {
    tokio::join!(carries("max_qos 1", V5, 1, &[]), carries("max_qos 1", V311, 1, &[]));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_in_flight_is_enough() {
    tokio::join!(
        carries("max_inflight_messages 1", V5, 1, &[]),
        carries("max_inflight_messages 1", V311, 1, &[])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_needs_no_client_id_of_the_broker() {
    tokio::join!(
        carries("allow_zero_length_clientid false", V5, 1, &[]),
        carries("allow_zero_length_clientid false", V311, 1, &[])
    );
}

/// The first connection has a retained will, and is refused for it.
#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_that_are_forbidden_go_unretained_and_that_is_shown() {
    carries("retain_available false", V5, 2, &["broker_no_retain"]).await;
}

/// Mosquitto hangs up before its CONNACK, and cannot say why.
#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_that_are_forbidden_hold_no_record_up_in_version_3_1_1() {
    carries("retain_available false", V311, 5, &["broker_no_retain"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stated_packet_limit_is_kept() {
    carries("max_packet_size 4000", V5, 1, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unstated_packet_limit_holds_no_record_up_in_version_3_1_1() {
    carries("max_packet_size 4000", V311, FOUND, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unstated_message_limit_holds_no_record_up_in_version_5() {
    carries("message_size_limit 4000", V5, FOUND, &[]).await;
}

/// It acknowledges them and throws them away, as an access list does: nothing of it can be seen here.
#[tokio::test(flavor = "multi_thread")]
async fn messages_beyond_a_message_limit_are_acknowledged_in_version_3_1_1() {
    let broker = Mosquitto::with(|dir| prepared(dir, "message_size_limit 4000"));
    let mut other = Consumer::start(broker.port, &format!("{BASE}/+"), None).await;
    let ledger: SharedLedger = stored(COUNT).await;
    let mut gateway = Gateway::start(settings(broker.port, V311), &ledger);
    gateway.until("acknowledged", |s| s.acknowledged >= COUNT).await;
    gateway.stop().await;
    let mut came = Vec::new();
    while !came
        .iter()
        .any(|(topic, text): &(String, String)| topic.ends_with("/status") && text.contains("\"offline\""))
    {
        let message = timeout(PATIENCE, other.messages.recv()).await.expect("the last status").unwrap();
        came.push((message.topic, String::from_utf8(message.payload.to_vec()).unwrap()));
    }
    assert!(!came.iter().any(|(topic, _)| topic.ends_with("/records")), "they came");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_qos_1_nothing_counts_as_sent_in_version_3_1_1() {
    says("max_qos 0", V311, &["before its CONNACK", "look at the broker's log"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_qos_1_records_are_kept_and_the_reason_is_shown() {
    says("max_qos 0", V5, &["QoS not supported (0x9B)", "hint: it must allow QoS 1"]).await;
}

/// Mosquitto hangs up 15 s after the last packet; the second ping of 20 s would come too late.
#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_keep_alive_of_the_broker_is_obeyed() {
    let broker = Mosquitto::with(|dir| {
        prepared(
            dir,
            &format!("max_keepalive 10\nlog_type debug\nlog_dest file {}", dir.join("log").display()),
        )
    });
    let ledger: SharedLedger = stored(5).await;
    let mut gateway = Gateway::start(settings(broker.port, V5), &ledger);
    gateway.until("connected", |s| s.connected && s.in_flight == 0).await;
    let pings = || std::fs::read_to_string(broker.dir.path().join("log")).unwrap().matches("PINGREQ").count();
    timeout(PATIENCE, async {
        while pings() < 2 {
            sleep(POLL).await;
        }
    })
    .await
    .expect("two pings");
    assert_eq!(gateway.state.borrow().session, 1, "{}", shown(&gateway.state.borrow()));
    gateway.stop().await;
}

/// Mosquitto 2.0.11 takes our 20 s all the same. A later one may refuse them with code 2 (`tests/delivery/choosy.rs`).
#[tokio::test(flavor = "multi_thread")]
async fn a_maximum_keep_alive_does_not_concern_version_3_1_1() {
    carries("max_keepalive 10", V311, 1, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_allowed_in_is_told_which_keys_to_look_at() {
    for version in [V5, V311] {
        says("allow_anonymous false", version, &["not authorized", "mqtt.username", "mqtt.password_file"])
            .await;
    }
}

async fn is_named_as_the_other_client(version: MqttVersion) {
    let broker = Mosquitto::open();
    let other = Arc::new(MemoryLedger::new("ffeeddccbbaa99887766554433221100"));
    other.append(drafts(5)).await.unwrap();
    let (one, other): (SharedLedger, SharedLedger) = (stored(5).await, other);
    let mut first = Gateway::start(settings(broker.port, version), &one);
    let second = Gateway::start(settings(broker.port, version), &other);
    first
        .until("named", |s| {
            s.warnings.iter().any(|w| w.code == "broker_client_id" && w.text.contains("`gw-01`"))
        })
        .await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_client_with_our_client_id_is_named_in_version_5() {
    is_named_as_the_other_client(V5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_client_with_our_client_id_is_named_in_version_3_1_1() {
    is_named_as_the_other_client(V311).await;
}

/// The figures of a modem, and a backlog of 2 MB: it goes at nearly the rate of the line, on one connection, and hardly
/// anything twice.
async fn drains_at_its_rate(version: MqttVersion) {
    let rate = 600 * 125;
    let broker = Mosquitto::open();
    let line = line::Line::start(broker.port, rate);
    let mut billing = Consumer::start(broker.port, &format!("{BASE}/records"), None).await;
    let count = 2_000_000 / 350;
    let ledger: SharedLedger = stored(count).await;
    let mut gateway = Gateway::start(settings(line.port, version), &ledger);
    gateway.until("everything is acknowledged", |s| s.acknowledged >= count).await;
    line.assert_well_used("600 kbit/s");
    let mut accounts = Accounts::default();
    accounts.until(count, &mut billing).await;
    gateway.stop().await;
    assert!(accounts.duplicates * 100 <= count * 2, "{} of {count} went twice", accounts.duplicates);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_uplink_drains_a_backlog_at_its_rate() {
    tokio::join!(drains_at_its_rate(V5), drains_at_its_rate(V311));
}
