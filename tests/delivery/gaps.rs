//! A broker that acknowledges what nobody gets, and billing behind it that takes only the next record.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use super::*;

/// Billing takes only the next record and says after each step how far it is. It says nothing else.
async fn confirm_to(last: u64, broker: &Broker, gateway: &mut Gateway) {
    let mut said = None;
    while said != Some(last) {
        let taken = broker.journal(broker::Journal::taken);
        if said != Some(taken) {
            let receipt = json!({"ledger": ledger_id(), "confirmed_seq": taken});
            broker.say("receipt", &receipt.to_string(), false);
            gateway.until("the receipt is heard", |s| s.confirmed == taken).await;
            said = Some(taken);
        }
        broker.until_more_granted().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_acknowledges_and_does_not_keep_comes_again_on_the_same_connection() {
    for version in BOTH {
        let script = with(|s| s.swallows = Some((2, 5)));
        let broker = Broker::start(version, vec![script]).await;
        let ledger = stored(COUNT).await;
        let settings = Mqtt { confirm: Confirm::Billing, ..settings(broker.port, version) };
        let mut gateway = Gateway::start(settings, &shared(&ledger));
        gateway.until("everything is acknowledged", |s| s.acknowledged == COUNT).await;
        assert!(broker.journal(broker::Journal::unbroken) < COUNT, "the broker kept not all of it");
        let confirmed =
            tokio::time::timeout(Duration::from_secs(60), confirm_to(COUNT, &broker, &mut gateway));
        confirmed.await.expect("the gap closes");
        gateway.stop().await;
        check_all_but_order(&broker, &*ledger, COUNT);
        assert_eq!((broker.journal(|j| j.connects.len()), ledger.cursor(Cursor::Confirmed)), (1, COUNT));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_asks_for_what_is_missing_and_gets_it_at_once_whatever_confirms() {
    for confirm in [Confirm::Broker, Confirm::Billing] {
        let broker = Broker::start(MqttVersion::V311, vec![with(|s| s.swallows = Some((2, 5)))]).await;
        let ledger = stored(COUNT).await;
        let mut gateway =
            Gateway::start(Mqtt { confirm, ..settings(broker.port, MqttVersion::V311) }, &shared(&ledger));
        gateway.until("everything is acknowledged", |s| s.acknowledged == COUNT).await;
        let taken = broker.journal(broker::Journal::taken);
        for (nth, wrong) in
            [json!(-1), json!("5"), json!(1.5), json!(COUNT + 2), json!(u64::MAX)].iter().enumerate()
        {
            let receipt = json!({"ledger": ledger_id(), "confirmed_seq": taken, "resend_from": wrong});
            broker.say("receipt", &receipt.to_string(), false);
            gateway.until("it is named", |s| s.ignored_receipts == nth as u64 + 1).await;
        }
        let begun = std::time::Instant::now();
        let receipt = json!({"ledger": ledger_id(), "confirmed_seq": taken, "resend_from": taken + 1});
        broker.say("receipt", &receipt.to_string(), false);
        while broker.journal(broker::Journal::taken) < COUNT {
            broker.until_more_granted().await;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "at once: {:?}", begun.elapsed());
        gateway.stop().await;
        check_all_but_order(&broker, &*ledger, COUNT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn that_nobody_confirms_and_that_receipts_stay_behind_is_shown_while_it_lasts() {
    let warned = |s: &meter_gateway::publish::PublisherState, code| s.warnings.iter().any(|w| w.code == code);
    for confirm in [Confirm::Broker, Confirm::Billing] {
        let broker = Broker::start(MqttVersion::V5, vec![Script::default()]).await;
        let ledger = stored(20).await;
        let mut gateway =
            Gateway::start(Mqtt { confirm, ..settings(broker.port, MqttVersion::V5) }, &shared(&ledger));
        if confirm == Confirm::Billing {
            gateway.until("nobody confirms", |s| warned(s, "nobody_confirms")).await;
        }
        gateway.until("acknowledged", |s| s.acknowledged == 20).await;
        let good = |seq: u64| json!({"ledger": ledger_id(), "confirmed_seq": seq}).to_string();
        broker.say("receipt", &good(7), false);
        gateway
            .until("they stay behind", |s| warned(s, "receipts_behind") && !warned(s, "nobody_confirms"))
            .await;
        broker.say("receipt", &good(20), false);
        gateway.until("all is well", |s| s.warnings.is_empty()).await;
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_has_removed_is_named_and_the_rest_is_sent() {
    let broker = Broker::start(MqttVersion::V5, vec![Script::default()]).await;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 20_000, ..Options::default() };
    let (files, _) = FileLedger::open(dir.path(), options).unwrap();
    for _ in 0..10 {
        files.append(gateway::drafts(100)).await.unwrap();
    }
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&files));
    gateway.until("acknowledged", |s| s.acknowledged == 1_000).await;
    files.prune(chrono::DateTime::<chrono::Utc>::MAX_UTC, chrono::TimeDelta::zero(), 700).unwrap();
    let first = files.first();
    assert!((2..=701).contains(&first));
    let receipt = json!({"ledger": files.id(), "confirmed_seq": 0, "resend_from": 1}).to_string();
    broker.say("receipt", &receipt, false);
    gateway
        .until("it is named", |s| {
            s.warnings
                .iter()
                .any(|w| w.code == "resend_not_kept" && w.text.contains(&format!("1 to {}", first - 1)))
        })
        .await;
    broker.until_granted(1_000 + usize::try_from(1_001 - first).unwrap()).await;
    gateway.stop().await;
    broker.journal(|j| assert_eq!(j.order[1_000..], (first..=1_000).collect::<Vec<_>>()));
    files.close();
}
