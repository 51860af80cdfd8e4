//! Brokers that do not take everything, that say why, or that are behind a slow line.

use meter_gateway::config::MqttVersion;

use super::{
    BOTH, COUNT,
    broker::{Broker, Script},
    check,
    gateway::{Gateway, settings, stored},
    line, shared, with,
};

/// A policy of some brokers: a message on a topic that they do not like ends the connection without a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_up_on_status_or_inventory_gets_the_records_and_the_topic_is_named() {
    for version in BOTH {
        for (part, named) in [("/status", "gw-01/status"), ("/inventory/", "gw-01/inventory/E-1")] {
            let broker = Broker::start(version, vec![with(|s| s.ends_over = Some(part))]).await;
            let ledger = stored(COUNT).await;
            let mut gateway = Gateway::start(settings(broker.port, version), &shared(&ledger));
            gateway.until("every record is taken", |s| s.acknowledged == COUNT).await;
            gateway
                .until("the topic is named", |s| {
                    s.connected
                        && s.warnings
                            .iter()
                            .any(|w| w.code == "broker_topic_left_out" && w.text.contains(named))
                })
                .await;
            gateway.stop().await;
            check(&broker, &*ledger, COUNT);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retained_message_that_is_too_large_stops_no_record_and_its_topic_is_named() {
    for version in BOTH {
        // What is passed over in no time, and what would keep a slow line busy.
        for (leaf, bytes, named) in [
            ("command", 300_000, "gw-01/command"),
            ("inventory/+", 300_000, "gw-01/inventory/W-1"),
            ("receipt", 2_000_000, "gw-01/receipt"),
            ("inventory/+", 2_000_000, "gw-01/inventory/+"),
        ] {
            let broker = Broker::start(version, vec![with(|s| s.retained = Some((leaf, bytes)))]).await;
            let ledger = stored(COUNT).await;
            let mut gateway = Gateway::start(settings(broker.port, version), &shared(&ledger));
            gateway.until("every record is taken", |s| s.acknowledged == COUNT).await;
            gateway
                .until("the topic is named", |s| {
                    s.connected && s.warnings.iter().any(|w| w.text.contains(named))
                })
                .await;
            gateway.stop().await;
            check(&broker, &*ledger, COUNT);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_says_why_in_words_in_its_short_form_too() {
    for (bytes, words) in [
        (&[0xE0, 1, 0x8E][..], "session taken over (0x8E)"),
        (&[0xE0, 2, 0x97, 0], "quota exceeded (0x97)"),
        (&[0xE0, 1, 0x88], "server unavailable (0x88)"),
        (&[0xE0, 8, 0x98, 6, 0x1F, 0, 3, b'b', b'y', b'e'], "administrative action (0x98): bye"),
        (&[0xE0, 1, 0xEE], "unknown reason (0xEE)"),
    ] {
        let broker = Broker::start(MqttVersion::V5, vec![with(|s| s.disconnect = Some(bytes))]).await;
        let ledger = stored(10).await;
        let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
        gateway.until(words, |s| s.last_error.as_deref().is_some_and(|e| e.contains(words))).await;
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_client_with_our_id_is_named_and_the_pauses_grow() {
    let broker = Broker::start(MqttVersion::V5, vec![with(|s| s.disconnect = Some(&[0xE0, 1, 0x8E]))]).await;
    let ledger = stored(10).await;
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
    gateway
        .until("it is named", |s| {
            s.warnings.iter().any(|w| w.text.contains("another client uses this client id"))
        })
        .await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_says_what_to_do() {
    for (version, bytes, words) in [
        (MqttVersion::V5, &[0x20, 2, 0, 1][..], "mqtt.version = \"3.1.1\""),
        (MqttVersion::V5, &[], "mqtt.version = \"3.1.1\""),
        (MqttVersion::V5, &[0x20, 3, 0, 0x84, 0], "mqtt.version = \"3.1.1\""),
        (MqttVersion::V5, &[0x20, 3, 0, 0x87, 0], "mqtt.password_file"),
        (MqttVersion::V311, &[0x20, 2, 0, 1], "mqtt.version = \"5\""),
        (MqttVersion::V311, &[0x20, 2, 0, 2], "keep-alive of 20 s"),
        (MqttVersion::V311, &[0x20, 2, 0, 5], "mqtt.password_file"),
    ] {
        let broker = Broker::start(version, vec![with(|s| s.connack_bytes = Some(bytes))]).await;
        let ledger = stored(10).await;
        let mut gateway = Gateway::start(settings(broker.port, version), &shared(&ledger));
        gateway.until(words, |s| s.last_error.as_deref().is_some_and(|e| e.contains(words))).await;
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_keeps_nothing_gets_everything_unretained_and_that_is_shown() {
    let broker = Broker::start(MqttVersion::V5, vec![with(|s| s.no_retain = true)]).await;
    let ledger = stored(COUNT).await;
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
    gateway
        .until("sent and shown", |s| {
            s.acknowledged == COUNT && s.warnings.iter().any(|w| w.code == "broker_no_retain")
        })
        .await;
    gateway.stop().await;
    check(&broker, &*ledger, COUNT);
    broker.journal(|j| {
        assert_eq!(j.connects.len(), 2, "the first one had a retained will");
        assert!(j.own.iter().any(|(topic, _)| topic.ends_with("/status")));
        assert!(j.will.as_ref().is_some_and(|(_, _, retained)| !retained));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_qos_1_is_told_apart_and_nothing_counts_as_sent() {
    let broker = Broker::start(MqttVersion::V5, vec![with(|s| s.max_qos = Some(0))]).await;
    let ledger = stored(10).await;
    let mut gateway = Gateway::start(settings(broker.port, MqttVersion::V5), &shared(&ledger));
    gateway.until("it is said", |s| s.last_error.as_deref().is_some_and(|e| e.contains("QoS 0 only"))).await;
    assert_eq!(gateway.state.borrow().acknowledged, 0);
    gateway.stop().await;
}

/// The figures of a modem: a backlog goes at nearly the rate of the line, on one connection, and hardly anything twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_uplink_drains_a_backlog_at_its_rate() {
    for (version, kbit) in [(MqttVersion::V5, 800), (MqttVersion::V311, 500)] {
        let rate = kbit * 125;
        let broker = Broker::start(version, vec![Script::default()]).await;
        let line = line::Line::start(broker.port, rate);
        let count = rate * 20 / 350; // twenty seconds and more
        let ledger = stored(count).await;
        let mut gateway = Gateway::start(settings(line.port, version), &shared(&ledger));
        gateway.until("everything is acknowledged", |s| s.acknowledged == count).await;
        line.assert_well_used(&format!("{kbit} kbit/s"));
        gateway.stop().await;
        check(&broker, &*ledger, count);
        let twice = broker.journal(|j| j.order.len() as u64 - count);
        assert!(twice * 100 <= count * 2, "{kbit} kbit/s: {twice} of {count} went twice");
    }
}
