//! From the words of a meter to the signed day: what a register that begins again, is rounded down, or is zero after
//! power-up comes to, with a restart of the gateway at every slot.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/days.rs"]
mod days;

use std::{fs, sync::Arc, time::Duration};

use days::{Hands, all_due, fixed, manifests, utc};
use meter_gateway::{
    billing::Keeper,
    bus::{Ask, AskKind, Asked, Class, Judge, Judgement, Sweep},
    config::{self, Settings},
    ledger::{MemoryLedger, SharedLedger},
    model::{Draft, Reading},
    pipeline::BusJudge,
    profile,
    protocol::{Outcome, Pace, Payload},
};
use serde_json::Value;

/// A site with one meter of a type with one register; a slot every quarter of an hour.
fn site(kind: &str, rest: &str) -> (tempfile::TempDir, Arc<Settings>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.toml");
    fs::create_dir_all(dir.path().join("profiles")).unwrap();
    fs::create_dir_all(dir.path().join("data")).unwrap();
    let text = format!(
        "profiles_dir = \"profiles\"\n[site]\nid = \"lab\"\ntimezone = \"UTC\"\n[gateway]\nid = \"gw\"\ndata_dir = \"{}\"\n\
         [reading]\ninterval_secs = 900\n[mqtt]\nurl = \"mqtt://127.0.0.1:1883\"\n\
         [[bus]]\nid = \"b\"\nkind = \"tcp\"\naddress = \"127.0.0.1:7000\"\n\
         [[meter]]\nid = \"E-1\"\nbus = \"b\"\naddress = \"1\"\nprofile = \"lab\"\n",
        dir.path().join("data").display()
    );
    fs::write(&path, text).unwrap();
    let order = if kind == "u16" { "AB" } else { "ABCD" };
    let row = format!(
        "id = \"lab\"\nmanufacturer = \"Lab\"\nmodel = \"Lab\"\nmedium = \"electricity\"\nprotocol = \"modbus\"\nsource = \"lab\"\n\
         verification = \"lab\"\nmax_words = 10\nturnaround_ms = 10\n[[point]]\nname = \"energy_import_total\"\ntable = \"input\"\n\
         address = 0x0048\nkind = \"{kind}\"\norder = \"{order}\"\nunit = \"kWh\"\nmax_per_hour = \"69\"\nsource = \"x\"\n{rest}\n"
    );
    fs::write(dir.path().join("profiles/lab.toml"), row).unwrap();
    let settings = Arc::new(config::load(&path, []).unwrap());
    (dir, settings)
}

/// What the meter answers: a number as it is typed, in its format.
fn words(kind: &str, text: &str) -> Vec<u16> {
    let bytes: Vec<u8> = match kind {
        "f32" => text.parse::<f32>().unwrap().to_be_bytes().to_vec(),
        "u16" => text.parse::<u16>().unwrap().to_be_bytes().to_vec(),
        _ => text.parse::<u32>().unwrap().to_be_bytes().to_vec(),
    };
    bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
}

/// One slot of a gateway that has just been started.
fn slot(settings: &Settings, ledger: &SharedLedger, clock: &Arc<Hands>, answer: &[u16]) -> Reading {
    let mut judge = BusJudge::new(settings.meters.clone(), ledger, Arc::clone(clock) as _);
    let now = meter_gateway::clock::Clock::wall(&**clock);
    let planned = profile::plan(&settings.meters[0].profile, &[0], &Pace::Network).remove(0);
    let sweep = |class| {
        let payload = Payload::Words(answer.to_vec());
        let outcome = Outcome::Answered { payload, at: now, elapsed: Duration::ZERO };
        let asked = Asked { ask: Ask { planned: planned.clone(), kind: AskKind::Points }, outcome };
        Sweep { class, asked: vec![asked], ..Sweep::of_slot(0, now) }
    };
    let reading = match judge.judge(sweep(Class::Slot)) {
        Judgement::Done(reading) => reading,
        Judgement::Again(_) => match judge.judge(sweep(Class::Confirmation)) {
            Judgement::Done(reading) => reading,
            Judgement::Again(_) => panic!("a third read"),
        },
    };
    *reading
}

/// The verdict and flags of each slot, and the day's register.
async fn day(kind: &str, rest: &str, values: &str) -> (Vec<String>, Value) {
    let (_dir, settings) = site(kind, rest);
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("00112233445566778899aabbccddeeff"));
    let clock = Hands::at("2026-11-01T00:00:00Z");
    let mut said = Vec::new();
    for (quarter, value) in values.split_whitespace().enumerate() {
        let at = format!("2026-11-01T{:02}:{:02}:00Z", quarter / 4, quarter % 4 * 15);
        clock.set(&at);
        let reading = slot(&settings, &ledger, &clock, &words(kind, value));
        let verdict = serde_json::to_value(reading.verdict).unwrap();
        let flags: Vec<&str> = reading.flags.iter().map(String::as_str).collect();
        said.push([&[verdict.as_str().unwrap()], &flags[..]].concat().join(" "));
        let draft = Draft::reading(reading.clone(), utc(&at), meter_gateway::model::ClockState::Synced);
        ledger.append(vec![draft]).await.unwrap();
    }
    clock.set("2026-11-02T00:06:00Z");
    let mut keeper = Keeper::new(Arc::clone(&ledger), fixed(), clock);
    assert_eq!(all_due(&mut keeper, &settings).await, ["2026-11-01"]);
    (said, manifests(&*ledger)[0]["meters"][0]["registers"][0].clone())
}

#[tokio::test]
async fn what_meters_in_the_field_show_comes_to_what_was_consumed() {
    let two = "digits = 8\ndecimals = 2\n";
    let one = "digits = 8\ndecimals = 1\n";
    let (hundredths, thousandths) =
        ("scale = \"0.01\"\ndigits = 5\ndecimals = 2\n", "scale = \"0.001\"\ndigits = 10\ndecimals = 3\n");
    let named = "scale = \"0.01\"\ndigits = 8\ndecimals = 2\nrolls_over_at = \"60000\"\n";
    for (kind, rest, values, said, consumption) in [
        ("u16", hundredths, "65529 65533 1 5", "good good good+rollover good", "0.12"),
        ("u32", thousandths, "4294967291 4294967295 3 7", "good good good+rollover good", "0.012"),
        ("u32", named, "5999999 2", "good good+rollover", "0.03"),
        (
            "f32",
            one,
            "20292.8 20292.7 20292.8 20292.9 20292.8 20292.9",
            "good good+rounding good good good+rounding good",
            "0.1",
        ),
        ("f32", two, "1000.0258 999.9598 1000.0418 1000.0499", "good good+rounding good good", "0.0241"),
        (
            "f32",
            one,
            "40482.8 0 0 40482.8 40482.9",
            "good suspect+back_step suspect+back_step good good",
            "0.1",
        ),
        (
            "f32",
            one,
            "40482.8 0 0 0",
            "good suspect+back_step suspect+back_step suspect+back_step",
            "back_step",
        ),
        ("f32", one, "20292.8 20282.8 20282.9", "good suspect+back_step suspect+back_step", "back_step"),
    ] {
        let (seen, register) = day(kind, rest, values).await;
        assert_eq!(seen.join(",").replace(' ', "+").replace(',', " "), said, "{values}");
        let came_to = register["consumption"].as_str().or(register["reason"].as_str());
        assert_eq!(came_to, Some(consumption), "{values}: {register}");
    }
}
