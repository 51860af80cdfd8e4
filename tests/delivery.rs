//! Delivery under fire: the publisher, with its real client, against a broker that follows a script.
//!
//! In each scenario every stored record arrives, in its order, with its own bytes; the cursor never stands beyond what was
//! granted; and the connections keep their pauses. What takes minutes is told to `src/publish/session_tests.rs` in
//! simulated time.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "delivery/broker.rs"]
mod broker;
#[path = "delivery/choosy.rs"]
mod choosy;
#[path = "delivery/gaps.rs"]
mod gaps;
#[path = "delivery/gateway.rs"]
mod gateway;
#[path = "delivery/line.rs"]
mod line;

use std::time::Duration;

use broker::{Ack, Broker, Oversize, Script};
use gateway::{Gateway, drafts, ledger_id, settings, stored};
use meter_gateway::{
    config::{Confirm, Mqtt, MqttVersion},
    ledger::{Cursor, FileLedger, Ledger, Options, SharedLedger},
    publish::Outgoing,
};
use serde_json::json;

fn shared<L: Ledger + 'static>(ledger: &std::sync::Arc<L>) -> SharedLedger {
    ledger.clone()
}

const BOTH: [MqttVersion; 2] = [MqttVersion::V5, MqttVersion::V311];
/// Records in most scenarios: five messages at least.
const COUNT: u64 = 2_100;
/// No pause is shorter (`PAUSE_MIN_MS`), less what two clocks may differ.
const SHORTEST_PAUSE: Duration = Duration::from_millis(980);

/// Plays the scripts until every record is acknowledged, and checks what must hold in any of them.
async fn deliver(version: MqttVersion, scripts: Vec<Script>) -> Broker {
    let broker = Broker::start(version, scripts).await;
    let ledger = stored(COUNT).await;
    let mut gateway = Gateway::start(settings(broker.port, version), &shared(&ledger));
    gateway.until("everything is acknowledged", |s| s.acknowledged == COUNT).await;
    gateway.stop().await;
    check(&broker, &*ledger, COUNT);
    broker
}

fn check(broker: &Broker, ledger: &dyn Ledger, count: u64) {
    broker.journal(|journal| {
        let mut highest = 0;
        for seq in &journal.order {
            assert!(*seq <= highest + 1, "{seq} came before {}", highest + 1);
            highest = highest.max(*seq);
        }
    });
    check_all_but_order(broker, ledger, count);
}

fn check_all_but_order(broker: &Broker, ledger: &dyn Ledger, count: u64) {
    broker.journal(|journal| {
        assert_eq!(journal.unbroken(), count, "every record was granted");
        assert_eq!(journal.granted.len() as u64, count, "nothing is invented");
        for (seq, line) in &journal.lines {
            let kept = ledger.read(*seq, 1, usize::MAX).unwrap();
            assert_eq!(line.as_bytes(), &kept[0].bytes[..], "record {seq} goes out with its own bytes");
        }
        for pair in journal.connects.windows(2) {
            let pause = pair[1] - pair[0];
            assert!(pause >= SHORTEST_PAUSE, "a connection after {pause:?}: the loop spins");
        }
        assert!(ledger.cursor(Cursor::Acknowledged) <= journal.unbroken());
    });
}

fn with(change: impl FnOnce(&mut Script)) -> Script {
    let mut script = Script::default();
    change(&mut script);
    script
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_broker_gets_everything_once_and_the_will_is_retained() {
    for version in BOTH {
        let broker = deliver(version, vec![Script::default()]).await;
        broker.journal(|journal| {
            assert_eq!(journal.order, (1..=COUNT).collect::<Vec<_>>());
            assert_eq!(journal.connects.len(), 1);
            let (topic, will, retained) = journal.will.clone().unwrap();
            assert!(topic.ends_with("/gw-01/status") && retained);
            let will: serde_json::Value = serde_json::from_slice(&will).unwrap();
            assert_eq!(will["state"], "offline");
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_twice_or_for_nothing_or_torn_cost_a_connection_and_no_record() {
    for version in BOTH {
        for ack in [Ack::Twice, Ack::Unknown, Ack::Torn] {
            let bad = with(|s| s.ack = ack);
            let broker = deliver(version, vec![bad.clone(), bad, Script::default()]).await;
            assert!(broker.journal(|j| j.connects.len()) >= 3, "{ack:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_backwards_are_understood() {
    for version in BOTH {
        let broker = deliver(version, vec![with(|s| s.ack = Ack::Backwards(4))]).await;
        assert_eq!(broker.journal(|j| j.connects.len()), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receive_maximum_of_one_is_kept() {
    let script = with(|s| {
        s.receive_max = Some(1);
        s.ack = Ack::Backwards(2);
    });
    let broker = deliver(MqttVersion::V5, vec![script]).await;
    assert_eq!(broker.journal(|j| (j.connects.len(), j.most_unacknowledged)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_in_the_middle_of_a_message_loses_nothing_session_present_or_not() {
    for version in BOTH {
        for session_present in [false, true] {
            let torn = with(|s| {
                s.ends_within = Some(2);
                s.session_present = session_present;
            });
            deliver(version, vec![torn, with(|s| s.session_present = session_present)]).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_limit_that_is_told_is_kept() {
    let limit = 20_000;
    let script = with(|s| {
        s.max_packet = Some(limit);
        s.takes = limit as usize;
    });
    let broker = deliver(MqttVersion::V5, vec![script]).await;
    broker.journal(|j| assert!(j.connects.len() == 1 && j.largest > 10_000, "{}", j.largest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_limit_that_is_not_told_is_found() {
    for (version, oversize) in [
        (MqttVersion::V311, Oversize::HangUp),
        (MqttVersion::V5, Oversize::Disconnect95),
        (MqttVersion::V5, Oversize::Puback95),
    ] {
        let script = with(|s| {
            s.takes = 40_000;
            s.oversize = oversize;
        });
        let broker = deliver(version, vec![script]).await;
        broker.journal(|j| {
            let connections = j.connects.len();
            assert!(connections == 3 && j.largest > 20_000, "{oversize:?}: {connections}, {}", j.largest);
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_messages_come_again_after_a_pause_on_the_same_connection() {
    for code in [0x80, 0x83, 0x87, 0x97, 0x10] {
        let broker = deliver(MqttVersion::V5, vec![with(|s| s.ack = Ack::Refuse(2, code))]).await;
        assert_eq!(broker.journal(|j| j.connects.len()), 1, "{code:#04x}");
    }
}

/// What was accepted behind the refused message came early: without being asked the gateway sends it again, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_between_accepted_messages_leaves_no_hole() {
    for code in [0x97, 0x10] {
        let broker = Broker::start(MqttVersion::V5, vec![with(|s| s.ack = Ack::RefuseOne(3, code))]).await;
        let ledger = stored(COUNT).await;
        let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
        gateway.until("everything is acknowledged", |s| s.acknowledged == COUNT).await;
        gateway.stop().await;
        check_all_but_order(&broker, &*ledger, COUNT);
        assert_eq!(
            broker.journal(broker::Journal::taken),
            COUNT,
            "{code:#04x}: a consumer that takes only the next has all"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_told_and_tried_again_with_pauses() {
    for (version, codes) in [(MqttVersion::V5, [0x86, 0x87, 0x89]), (MqttVersion::V311, [4, 5, 3])] {
        for code in codes {
            let broker = Broker::start(version, vec![with(|s| s.connack = code), Script::default()]).await;
            let ledger = stored(10).await;
            let mut gateway = Gateway::start(settings(broker.port, version), &shared(&ledger));
            gateway
                .until("the refusal is told", |s| {
                    s.last_error.as_deref().is_some_and(|e| e.contains("refused"))
                })
                .await;
            gateway.until("then it is let in", |s| s.connected && s.acknowledged == 10).await;
            gateway.stop().await;
            check(&broker, &*ledger, 10);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_subscriptions_and_refused_status_are_shown_and_hold_no_record_back() {
    for suback in [vec![0x87, 1, 1], vec![1, 0x80, 1], vec![1]] {
        let broker = Broker::start(MqttVersion::V5, vec![with(|s| s.suback = suback)]).await;
        let ledger = stored(10).await;
        let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
        gateway
            .until("shown", |s| {
                s.acknowledged == 10 && s.last_error.as_deref().is_some_and(|e| e.contains("subscription"))
            })
            .await;
        gateway.stop().await;
    }
    let broker = Broker::start(MqttVersion::V5, vec![with(|s| s.own_ack = 0x87)]).await;
    let ledger = stored(10).await;
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
    gateway
        .until("shown", |s| {
            s.acknowledged == 10
                && s.last_error
                    .as_deref()
                    .is_some_and(|e| e.contains("refuses") && e.contains("gw-01/status"))
        })
        .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_wants_no_pings_gets_no_flood_of_them() {
    let broker = Broker::start(MqttVersion::V5, vec![with(|s| s.keep_alive = Some(0))]).await;
    let ledger = stored(10).await;
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
    gateway.until("sent", |s| s.acknowledged == 10).await;
    ledger.append(gateway::drafts(10)).await.unwrap();
    gateway.until("sent", |s| s.acknowledged == 20).await;
    gateway.stop().await;
    broker.journal(|j| assert!(j.connects.len() == 1 && j.pings <= 1, "{} pings", j.pings));
}

/// Takes the half minute after which a connection counts as stalled.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_stops_reading_is_left_and_memory_stays_bounded() {
    // Tens of megabytes are waiting: more than all buffers between us and the broker.
    let count = 100_000;
    let broker =
        Broker::start(MqttVersion::V5, vec![with(|s| s.deaf_after = Some(3)), Script::default()]).await;
    let ledger = stored(count).await;
    let before = resident_kib();
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
    gateway.until("the window is full", |s| s.in_flight > 3).await;
    assert!(gateway.state.borrow().in_flight <= 32);
    gateway.until("it is given up", |s| !s.connected && s.last_error.is_some()).await;
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB more while the broker did not read");
    gateway.until("the next one takes everything", |s| s.acknowledged == count).await;
    gateway.stop().await;
    check(&broker, &*ledger, count);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn billing(port: u16) -> Mqtt {
    Mqtt { confirm: Confirm::Billing, ..settings(port, MqttVersion::V5) }
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_cumulative_and_idempotent_and_what_is_wrong_moves_nothing() {
    let broker = Broker::start(MqttVersion::V5, vec![Script::default()]).await;
    let ledger = stored(20).await;
    let mut gateway = Gateway::start(billing(broker.port), &shared(&ledger));
    gateway.until("acknowledged", |s| s.acknowledged == 20).await;
    let good = |seq: u64| json!({"ledger": ledger_id(), "confirmed_seq": seq}).to_string();
    for (nth, wrong) in [
        json!({"ledger": "old", "confirmed_seq": 9}).to_string(),
        "{".into(),
        json!({"ledger": ledger_id(), "confirmed_seq": -1}).to_string(),
        String::new(),
    ]
    .iter()
    .enumerate()
    {
        broker.say("receipt", wrong, false);
        gateway.until("ignored", |s| s.ignored_receipts == nth as u64 + 1).await;
        assert_eq!(ledger.cursor(Cursor::Confirmed), 0, "{wrong}");
    }
    for (said, confirmed) in [(8, 8), (8, 8), (5, 8), (20, 20)] {
        broker.say("receipt", &good(said), false);
        gateway.until("confirmed", |s| s.confirmed == confirmed).await;
    }
    assert_eq!(ledger.cursor(Cursor::Confirmed), 20);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_record_is_parked_over_a_restart_and_released_by_a_replay() {
    let broker = Broker::start(MqttVersion::V5, vec![Script::default()]).await;
    let ledger = stored(20).await;
    let mut gateway = Gateway::start(billing(broker.port), &shared(&ledger));
    gateway.until("acknowledged", |s| s.acknowledged == 20).await;
    let reason = "no contract ".repeat(100);
    let rejected =
        json!([{"seq": 7, "reason": reason}, {"seq": 9, "reason": "unknown meter"}, {"seq": 0}, {"seq": 99}]);
    let receipt = json!({"ledger": ledger_id(), "confirmed_seq": 20, "rejected": rejected}).to_string();
    broker.say("receipt", &receipt, false);
    broker.say("receipt", &receipt, false);
    gateway.until("parked, recorded and confirmed", |s| s.rejected.len() == 2 && s.acknowledged == 22).await;
    assert_eq!(ledger.head().borrow().seq, 22, "one note for each, however often it is said");
    assert_eq!(ledger.cursor(Cursor::Confirmed), 20, "nothing else waits for it");
    gateway.stop().await;

    let mut gateway = Gateway::start(billing(broker.port), &shared(&ledger));
    gateway.until("it is still parked", |s| s.rejected.len() == 2 && s.connected).await;
    assert!(gateway.state.borrow().rejected[0].reason.len() <= 200);
    gateway.inbox.send(Outgoing::Replay { from: 7, to: 7 }).await.unwrap();
    gateway.until("sent again", |s| s.rejected.len() == 1 && s.acknowledged == 23).await;
    broker.journal(|j| assert_eq!(j.order.iter().filter(|seq| **seq == 7).count(), 2));
    gateway.stop().await;
    let mut gateway = Gateway::start(billing(broker.port), &shared(&ledger));
    gateway.until("the other one is left", |s| s.rejected.len() == 1 && s.rejected[0].seq == 9).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_beside_the_live_records_with_its_own_bytes() {
    let broker = Broker::start(MqttVersion::V311, vec![Script::default()]).await;
    let ledger = stored(3_000).await;
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V311), &shared(&ledger));
    gateway.until("sent", |s| s.acknowledged == 3_000).await;
    let before = broker.journal(|j| j.order.len());
    gateway.inbox.send(Outgoing::Replay { from: 100, to: 1_900 }).await.unwrap();
    ledger.append(gateway::drafts(1_000)).await.unwrap();
    gateway.until("the live ones are sent", |s| s.acknowledged == 4_000).await;
    broker.until_granted(before + 1_000 + 1_801).await;
    gateway.stop().await;
    check(&broker, &*ledger, 4_000);
    let after = broker.journal(|j| j.order[before..].to_vec());
    let (old, live): (Vec<u64>, Vec<u64>) = after.into_iter().partition(|seq| *seq <= 3_000);
    assert_eq!(old, (100..=1_900).collect::<Vec<_>>());
    assert_eq!(live, (3_001..=4_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_billing_has_not_confirmed_comes_again_after_a_restart() {
    let broker = Broker::start(MqttVersion::V5, vec![Script::default()]).await;
    let ledger = stored(1_000).await;
    let mut gateway = Gateway::start(billing(broker.port), &shared(&ledger));
    gateway.until("acknowledged", |s| s.acknowledged == 1_000).await;
    let receipt = json!({"ledger": ledger_id(), "confirmed_seq": 600}).to_string();
    broker.say("receipt", &receipt, false);
    gateway.until("confirmed", |s| s.confirmed == 600).await;
    gateway.stop().await;
    let before = broker.journal(|j| j.order.len());
    let mut gateway = Gateway::start(billing(broker.port), &shared(&ledger));
    ledger.append(gateway::drafts(1)).await.unwrap();
    gateway.until("the new one is acknowledged", |s| s.acknowledged == 1_001).await;
    gateway.stop().await;
    // 600 first: billing, which has it, is asked how far it is.
    assert_eq!(broker.journal(|j| j.order[before..].to_vec()), (600..=1_001).collect::<Vec<_>>());
    assert_eq!(ledger.cursor(Cursor::Confirmed), 600);
}

/// What the hourly retention of `src/app.rs` does, with a retention of no time at all.
#[tokio::test(flavor = "multi_thread")]
async fn retention_takes_nothing_that_billing_has_not_confirmed() {
    let broker = Broker::start(MqttVersion::V5, vec![Script::default()]).await;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 20_000, ..Options::default() };
    let (files, _) = FileLedger::open(dir.path(), options).unwrap();
    for _ in 0..10 {
        files.append(gateway::drafts(100)).await.unwrap(); // a batch is never split over segments
    }
    let mut gateway = Gateway::start(
        Mqtt { confirm: Confirm::Billing, ..settings(broker.port, MqttVersion::V5) },
        &shared(&files),
    );
    gateway.until("acknowledged", |s| s.acknowledged == 1_000).await;
    let prune = || {
        let free = files.cursor(Cursor::Acknowledged).min(files.cursor(Cursor::Confirmed));
        files.prune(chrono::DateTime::<chrono::Utc>::MAX_UTC, chrono::TimeDelta::zero(), free).unwrap()
    };
    assert!(prune().is_empty(), "acknowledged is not confirmed");
    let receipt = json!({"ledger": files.id(), "confirmed_seq": 700}).to_string();
    broker.say("receipt", &receipt, false);
    gateway.until("confirmed", |s| s.confirmed == 700).await;
    let last = prune().last().unwrap().last;
    assert!((1..=700).contains(&last), "{last}");
    assert_eq!(files.first(), last + 1);
    gateway.inbox.send(Outgoing::Replay { from: 1, to: 800 }).await.unwrap();
    broker.until_granted(1_000 + usize::try_from(800 - last).unwrap()).await;
    gateway.stop().await;
    broker.journal(|j| assert_eq!(j.order[1_000..], (last + 1..=800).collect::<Vec<_>>()));
    files.close();
}

/// A machine's snapshot brings the running process back as well: it finds its connection gone, and comes again.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_holds_is_compared_at_each_connection_before_anything_is_sent() {
    let status = |session: u64, last_seq: u64| {
        let said =
            json!({"ledger": ledger_id(), "session": session, "last_seq": last_seq, "state": "offline"});
        Some(said.to_string())
    };
    for (session, last_seq) in [(2, 0), (1, 21), (7, 21)] {
        let scripts = vec![
            Script { status: status(0, 0), ends_within: Some(1), ..Script::default() },
            Script { status: status(session, last_seq), ..Script::default() },
        ];
        let broker = Broker::start(MqttVersion::V5, scripts).await;
        let ledger = stored(20).await;
        let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
        gateway
            .until("it is noticed", |s| s.last_error.as_ref().is_some_and(|e| e.contains("others have seen")))
            .await;
        assert_eq!(
            broker.journal(|j| j.order.len()),
            0,
            "session {session}, seq {last_seq}: nothing was sent"
        );
        let connects = broker.journal(|j| j.connects.len());
        ledger.append(drafts(5)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await; // it stays away: nothing tells of that
        assert_eq!((connects, broker.journal(|j| j.connects.len())), (2, 2));
        gateway.stop().await;
    }
}

/// Of another ledger, from before a restart, not readable: nothing speaks against going on.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_holds_of_before_holds_nothing_up() {
    for status in [
        json!({"ledger": "another", "session": 99, "last_seq": 9999}).to_string(),
        json!({"ledger": ledger_id(), "session": 0, "last_seq": 20}).to_string(),
        "{".to_owned(),
        String::new(),
    ] {
        let broker =
            Broker::start(MqttVersion::V5, vec![Script { status: Some(status), ..Script::default() }]).await;
        let ledger = stored(20).await;
        let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
        gateway.until("delivered", |s| s.acknowledged == 20 && s.warnings.is_empty()).await;
        gateway.stop().await;
    }
}

/// A policy that hangs up on the subscription to `status`: records go all the same, and the status says what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_up_on_the_comparison_gets_its_records_all_the_same() {
    let no = Script { suback: vec![0x87, 1, 1], ..Script::default() };
    let broker = Broker::start(MqttVersion::V5, vec![no]).await;
    let ledger = stored(20).await;
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
    gateway
        .until("refused", |s| s.acknowledged == 20 && s.warnings.iter().any(|w| w.code == "end_not_compared"))
        .await;
    gateway.stop().await;

    let hangs_up = Script { hangs_up_on: Some("/status"), ..Script::default() };
    let broker = Broker::start(MqttVersion::V5, vec![hangs_up]).await;
    let ledger = stored(20).await;
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
    gateway
        .until("delivered", |s| {
            s.acknowledged == 20 && s.warnings.iter().any(|w| w.code == "end_not_compared")
        })
        .await;
    assert_eq!(broker.journal(|j| j.connects.len()), 3);
    gateway.stop().await;
}
