//! The real daemon with a second copy of its ledger: what the operator sees of it, and the way back from it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/metric_rules.rs"]
mod metric_rules;

use std::fs;

use gateway::Gateway;

/// A meter behind a port that nobody listens on: each slot is a `missing` record.
const METER: &str = "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:1\"\n\
    [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n";

fn with_copy_in(dir: &str) -> Gateway {
    let gateway = Gateway::configured(1, 1, METER);
    let text = fs::read_to_string(gateway.config()).unwrap();
    let key = format!("[gateway]\nmirror_dir = \"{dir}\"\n");
    fs::write(gateway.config(), text.replacen("[gateway]\n", &key, 1)).unwrap();
    gateway
}

#[test]
fn the_operator_sees_the_copy_go_and_come_and_gets_the_ledger_back_from_it() {
    let mut gateway = with_copy_in("card");
    gateway.start();
    let status = gateway.until("away", |status| status["mirror"]["fault"].is_string());
    assert!(status["mirror"]["since"].is_string() && status["mirror"]["stored_seq"].is_null(), "{status:#}");
    gateway.until("records", |status| status["store"]["last_seq"].as_u64() > Some(2));
    let metrics = gateway.text("/metrics");
    assert_eq!(metric_rules::faults(&metrics), [""; 0]);
    assert!(metrics.contains("meter_gateway_mirror_away 1\n"), "{metrics}");
    assert!(!metrics.contains("meter_gateway_mirror_lag_records 0\n"), "{metrics}");
    let said = String::from_utf8(gateway.cli(&["status"]).stdout).unwrap();
    assert!(said.contains("nothing is copied since") && said.contains("is it mounted?"), "{said}");
    assert_eq!(gateway.text("/healthz"), "ok\n", "the gateway itself is well");
    assert!(!gateway.path("card").exists(), "it is not made");

    fs::create_dir(gateway.path("card")).unwrap();
    // What is stored grows within a round, and the fault ends with it.
    let status = gateway.until("back", |status| {
        status["mirror"]["stored_seq"].as_u64() > Some(2) && status["mirror"]["fault"].is_null()
    });
    assert!(status["mirror"]["since"].is_null(), "{status:#}");
    let ledger = status["ledger"].clone();

    // What signatures are checked with lies there too, also the key before a rotation.
    let key = || String::from_utf8(gateway.cli(&["identity", "--public-key"]).stdout).unwrap();
    let there = |name: &str| fs::read_to_string(gateway.path("card").join(name)).unwrap_or_default();
    let before = key();
    assert_eq!(there("public-key.pem"), before);
    assert!(gateway.cli(&["identity", "rotate"]).status.success());
    gateway.until("the new key", |_| there("public-key.pem") == key());
    gateway.until("all of it", |status| status["mirror"]["lag"] == 0);
    let earlier =
        fs::read_dir(gateway.path("card")).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
            path.file_name().is_some_and(|name| name != "public-key.pem")
                && fs::read_to_string(path).is_ok_and(|text| text == before)
        });
    let earlier = earlier.expect("the key before");
    assert!(earlier.to_str().unwrap().contains("/public-key."), "{earlier:?}");
    let (ended, _) = gateway.terminate();
    assert!(ended.success());
    let text = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), text.replace("\"data\"", "\"card\"").replace("mirror_dir", "#")).unwrap();
    let verified = gateway.cli(&["ledger", "verify", "--public-key", earlier.to_str().unwrap()]);
    assert!(verified.status.success(), "{verified:?}");
    assert!(String::from_utf8_lossy(&verified.stdout).contains("1 key rotation(s)"), "{verified:?}");
    fs::write(gateway.config(), text).unwrap();
    let told = |text: &str| gateway.log().matches(text).count();
    assert_eq!(
        (told("is away: recording goes on"), told("is up to date again")),
        (1, 1),
        "{}",
        gateway.log()
    );

    fs::remove_dir_all(gateway.path("data")).unwrap();
    let restored =
        gateway.cli(&["ledger", "restore", gateway.path("card").to_str().unwrap(), "--billing-has", "1"]);
    assert!(restored.status.success(), "{restored:?}");
    gateway.start();
    let status = gateway.until("copied again", |status| status["mirror"]["lag"] == 0);
    assert_eq!(status["ledger"], ledger, "the same ledger goes on");
}

#[test]
fn without_the_option_there_is_nothing_to_see() {
    let mut gateway = Gateway::configured(1, 1, METER);
    gateway.start();
    assert!(gateway.get("/api/v1/status")["mirror"].is_null());
    assert!(!gateway.text("/metrics").contains("mirror"));
}
