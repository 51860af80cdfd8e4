//! Days of readings for tests: a configuration, a clock set by hand, drafts, and what a ledger then holds.

#![allow(dead_code)] // each test takes what it needs

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use meter_gateway::{
    billing::Keeper,
    clock::{Clock, ClockEvent},
    config::{self, Settings},
    identity::{Identity, Signer},
    ledger::Ledger,
    model::{ClockState, Draft, Utc, rfc3339},
};
use serde_json::{Map, Value, json};

/// The key of RFC 8032, 7.1, test 1.
pub const FIXED_KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

/// A clock that is set by hand.
pub struct Hands(Mutex<Utc>);

impl Hands {
    pub fn at(text: &str) -> Arc<Hands> {
        Arc::new(Hands(Mutex::new(utc(text))))
    }
    pub fn set(&self, text: &str) {
        *self.0.lock().unwrap() = utc(text);
    }
}

impl Clock for Hands {
    fn wall(&self) -> Utc {
        *self.0.lock().unwrap()
    }
    fn state(&self) -> ClockState {
        ClockState::Synced
    }
    fn poll_event(&self) -> Option<ClockEvent> {
        None
    }
    fn wants_evidence(&self) -> bool {
        false
    }
    fn refresh(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
    fn since_boot(&self) -> Duration {
        Duration::ZERO
    }
    fn boot_id(&self) -> &'static str {
        "00000000-0000-4000-8000-000000000000"
    }
    fn pause(&self, time: Duration) -> BoxFuture<'_, ()> {
        Box::pin(tokio::time::sleep(time))
    }
}

pub fn utc(text: &str) -> Utc {
    text.parse().unwrap()
}

pub fn settings(dir: &Path, zone: &str, meters: usize) -> Arc<Settings> {
    let data = dir.join("data");
    let mut text = format!(
        "[site]\nid = \"riverside\"\ntimezone = \"{zone}\"\n[gateway]\nid = \"gw-01\"\ndata_dir = \"{}\"\n[reading]\ninterval_secs = 21600\n\
         [mqtt]\nurl = \"mqtt://127.0.0.1:1883\"\n",
        data.display()
    );
    for bus in 0..meters.div_ceil(200) {
        text.extend([format!(
            "[[bus]]\nid = \"b{bus}\"\nkind = \"tcp\"\naddress = \"127.0.0.1:{}\"\n",
            7000 + bus
        )]);
    }
    for n in 0..meters {
        text.extend([format!(
            "[[meter]]\nid = \"E-{n:04}\"\nbus = \"b{}\"\naddress = \"{}\"\nprofile = \"eastron-sdm630\"\nct_ratio = \"40\"\n",
            n / 200,
            n % 200 + 1
        )]);
    }
    let path = dir.join("gateway.toml");
    fs::write(&path, text).unwrap();
    fs::create_dir_all(data).unwrap();
    Arc::new(config::load(&path, []).unwrap())
}

pub struct Sample<'a> {
    pub meter: &'a str,
    pub at: &'a str,
    pub value: Option<&'a str>,
    pub flags: &'a [&'a str],
}

pub fn reading(sample: &Sample) -> Draft {
    let values = sample.value.map_or(json!({}), |value| {
        json!({"energy_import_total": {"value": value, "unit": "kWh", "raw": "0x00", "multiplier": "40"}})
    });
    let at = utc(sample.at);
    let reading = json!({
        "meter": sample.meter, "medium": "electricity", "scheduled_at": rfc3339(at),
        "taken_at": sample.value.map(|_| rfc3339(at)), "origin": if sample.value.is_some() { "measured" } else { "missing" },
        "verdict": match (sample.value, sample.flags) { (None, _) => "bad", (_, []) => "good", _ => "suspect" },
        "flags": sample.flags, "values": values,
    });
    Draft::reading(serde_json::from_value(reading).unwrap(), at, ClockState::Synced)
}

pub fn good<'a>(meter: &'a str, at: &'a str, value: &'a str) -> Sample<'a> {
    Sample { meter, at, value: Some(value), flags: &[] }
}

pub fn downtime(from: &str, to: &str) -> Draft {
    let fields =
        Map::from_iter([("from".into(), rfc3339(utc(from)).into()), ("to".into(), rfc3339(utc(to)).into())]);
    Draft::change("downtime", fields, utc(to), ClockState::Synced)
}

pub fn records(ledger: &dyn Ledger) -> Vec<Map<String, Value>> {
    let mut found: Vec<Map<String, Value>> = Vec::new();
    loop {
        let lines = ledger.read(found.len() as u64 + 1, 1000, usize::MAX).unwrap();
        if lines.is_empty() {
            return found;
        }
        found.extend(
            lines.iter().map(|line| serde_json::from_slice::<Map<String, Value>>(&line.bytes).unwrap()),
        );
    }
}

pub fn manifests(ledger: &dyn Ledger) -> Vec<Map<String, Value>> {
    records(ledger).into_iter().filter(|record| record["type"] == "manifest").collect()
}

pub async fn all_due(keeper: &mut Keeper, settings: &Arc<Settings>) -> Vec<String> {
    let mut made = Vec::new();
    while let Some(date) = keeper.round(settings).await.unwrap() {
        made.push(date.to_string());
    }
    made
}

pub fn fixed() -> Arc<Identity> {
    Arc::new(Identity::of(Signer::from_pkcs8(FIXED_KEY.as_bytes()).unwrap()))
}
