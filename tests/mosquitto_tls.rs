//! The publisher against a Mosquitto with TLS: what is wrong with which certificate, on which date, and the key to set.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

#[path = "delivery/gateway.rs"]
mod gateway;
#[path = "common/mosquitto.rs"]
mod mosquitto;

use std::path::Path;

use gateway::{Gateway, settings, stored};
use meter_gateway::{
    config::{
        Mqtt,
        MqttVersion::{V5, V311},
        Tls,
    },
    ledger::SharedLedger,
};
use mosquitto::Mosquitto;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// A certificate for `localhost`, or what `change` makes of it, signed by an authority whose certificate is `ca.pem`.
fn certificate(dir: &Path, change: impl FnOnce(&mut CertificateParams)) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "authority of the site");
    std::fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "broker of the site");
    change(&mut params);
    std::fs::write(dir.join("server.pem"), params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    std::fs::write(dir.join("server.key"), key.serialize_pem()).unwrap();
}

fn secured(lines: &str, change: impl FnOnce(&mut CertificateParams)) -> Mosquitto {
    Mosquitto::with(|dir| {
        certificate(dir, change);
        let d = dir.display();
        format!(
            "allow_anonymous true\ncafile {d}/ca.pem\ncertfile {d}/server.pem\nkeyfile {d}/server.key\n{lines}\n"
        )
    })
}

/// What a gateway that trusts the authority in `ca` says of this broker; plain TCP without one.
async fn says(broker: &Mosquitto, ca: Option<&Path>, words: &[&str]) {
    for version in [V5, V311] {
        let tls = ca.map(|dir| Tls { ca_file: Some(dir.join("ca.pem")), ..Tls::default() });
        let ledger: SharedLedger = stored(5).await;
        let settings = Mqtt { host: "localhost".into(), tls, ..settings(broker.port, version) };
        let mut gateway = Gateway::start(settings, &ledger);
        gateway
            .until(&format!("{words:?}"), |s| {
                s.last_error.as_deref().is_some_and(|error| words.iter().all(|word| error.contains(word)))
            })
            .await;
        assert_eq!(gateway.state.borrow().acknowledged, 0);
        gateway.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate() {
    let broker = secured("", |params| params.not_after = rcgen::date_time_ymd(2020, 3, 1));
    says(
        &broker,
        Some(broker.dir.path()),
        &["broker of the site", "expired on 2020-03-01", "our clock shows", "renew it at the broker"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_the_future() {
    let broker = secured("", |params| params.not_before = rcgen::date_time_ymd(2090, 3, 1));
    says(
        &broker,
        Some(broker.dir.path()),
        &[
            "broker of the site",
            "not valid before 2090-03-01",
            "our clock shows",
            "is the gateway's clock right?",
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_name() {
    let broker = secured("", |params| {
        params.subject_alt_names =
            CertificateParams::new(vec!["broker.example".to_owned()]).unwrap().subject_alt_names;
    });
    says(
        &broker,
        Some(broker.dir.path()),
        &["broker of the site", "is for broker.example, not for `localhost`", "mqtt.url"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_an_unknown_authority() {
    let broker = secured("", |_| {});
    let stranger = tempfile::tempdir().unwrap();
    certificate(stranger.path(), |_| {});
    says(&broker, Some(stranger.path()), &["broker of the site", "mqtt.ca_file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_of_an_authority_in_place_of_a_servers() {
    let broker = secured("", |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    says(&broker, Some(broker.dir.path()), &["broker of the site", "CA:TRUE", "make a server certificate"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_ours_that_is_wanted_and_not_set() {
    let broker = secured("require_certificate true", |_| {});
    says(&broker, Some(broker.dir.path()), &["mqtt.cert_file and mqtt.key_file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_plain_port() {
    let authority = tempfile::tempdir().unwrap();
    certificate(authority.path(), |_| {});
    says(&Mosquitto::open(), Some(authority.path()), &["TLS", "8883"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_tcp_to_a_tls_port() {
    says(&secured("", |_| {}), None, &["mqtts://"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_certificate_connects() {
    let broker = secured("", |_| {});
    let tls = Tls { ca_file: Some(broker.dir.path().join("ca.pem")), ..Tls::default() };
    let ledger: SharedLedger = stored(5).await;
    let settings = Mqtt { host: "localhost".into(), tls: Some(tls), ..settings(broker.port, V5) };
    let mut gateway = Gateway::start(settings, &ledger);
    gateway.until("connected", |s| s.connected).await;
    gateway.stop().await;
}
