//! A file that became faulty on disk hides nothing: the daemon reads on with the configuration that it has, and whoever
//! asks it gets an answer, and is told of the file.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/gateway.rs"]
mod gateway;

use std::{fs, net::TcpListener, process::Output};

use gateway::Gateway;
use meter_gateway::{
    config,
    sim::{SimClock, SimSite},
};

const METERS: &str = "id,bus,address,profile\nE-1,plant,1,eastron-sdm120\nE-2,plant,2,eastron-sdm120\n";

/// A configuration of several files, and its meters.
fn site() -> (Gateway, SimSite) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let gateway = Gateway::configured(port, 1, "");
    fs::create_dir(gateway.path("profiles")).unwrap();
    fs::write(gateway.path("meters.csv"), METERS).unwrap();
    let rest = format!("[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:{port}\"\n");
    gateway.configure(1, 1, &rest);
    let head = "meters_file = \"meters.csv\"\nprofiles_dir = \"profiles\"\n";
    let text = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), format!("{head}{text}")).unwrap();
    let settings = config::load(&gateway.config(), []).unwrap_or_else(|faults| panic!("{faults:?}"));
    let meters = SimSite::from_settings(&settings, 1, &SimClock::default()).unwrap();
    (gateway, meters)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is done to which file, and the words by which the operator is told of it.
fn ruins(gateway: &Gateway) -> Vec<(&'static str, String, &'static str)> {
    let main = fs::read_to_string(gateway.config()).unwrap();
    vec![
        ("meters.csv", METERS.replace("sdm120", "sdm12O"), "meters.csv"),
        ("meters.csv", METERS.replace("id,", "name,"), "meters.csv"),
        ("profiles/own.toml", "id = ".into(), "own.toml"),
        ("gateway.toml", main.replace("[site]", "[site"), "gateway.toml"),
        ("gateway.toml", main.replace("\"滨江花园\"", "“滨江花园”"), "gateway.toml"),
        ("gateway.toml", main.replace("\"profiles\"", "\"elsewhere\""), "elsewhere"),
        ("gateway.toml", main.replace("\"meters.csv\"", "\"profiles\""), "meters_file"),
        ("gateway.toml", main.replace("data_dir = \"data\"", "data_dir = data"), "gateway.toml"),
        ("gateway.toml", main.replace("data_dir", "colour = 1\ndata_dir"), "gateway.colour"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slip_in_any_file_blinds_nobody() {
    let (mut gateway, _meters) = site();
    gateway.start();
    gateway.until("both meters are read", |status| status["store"]["last_seq"].as_u64() > Some(6));
    for (file, text, named) in ruins(&gateway) {
        let good = fs::read(gateway.path(file)).ok();
        fs::write(gateway.path(file), &text).unwrap();
        let backup = tempfile::tempdir().unwrap();
        let backup = backup.path().to_str().unwrap();
        for (command, words) in [
            ("status", "meters     2 on 1 bus: "),
            ("status --json", "\"timezone\": \"Asia/Shanghai\""),
            ("readings --to 2099-01-01", "Asia/Shanghai"),
            ("readings --format csv --meter E-2", "energy_import_total"),
            ("read E-1", "energy_import_total"),
            ("read E-1 --point voltage_l1", "voltage_l1"),
            ("identity", "gw-01"),
            ("identity --public-key", "BEGIN PUBLIC KEY"),
            ("ledger verify", "every hash and every link checks"),
            ("ledger export --to 3", "\"seq\":3"),
            (&format!("ledger backup {backup}"), "files"),
            ("--data-dir DATA status --all", "E-1"),
        ] {
            let data = gateway.path("data").display().to_string();
            let arguments: Vec<&str> =
                command.split(' ').map(|word| if word == "DATA" { &data } else { word }).collect();
            let ended = gateway.cli(&arguments);
            let said = stderr(&ended);
            assert!(ended.status.success(), "{command} with {text}\n{ended:?}");
            assert!(
                String::from_utf8_lossy(&ended.stdout).contains(words),
                "{command} with {text}\n{ended:?}"
            );
            assert_eq!(
                said.matches("the file on disk is faulty").count(),
                1,
                "{command} with {text}\n{said}"
            );
            assert!(said.contains(named) && said.contains("check"), "{command} with {text}\n{said}");
        }
        // No broker has anything yet: the daemon answers that it is not the time for a replay.
        let ended = gateway.cli(&["ledger", "replay", "--from", "1", "--to", "2"]);
        assert!(stderr(&ended).contains("still on its way"), "{ended:?}");
        let ended = gateway.cli(&["ledger", "manifest"]);
        assert!(matches!(ended.status.code(), Some(0 | 1)), "1: nobody vouches for the clock; {ended:?}");
        let ended = gateway.cli(&["profile", "list"]);
        assert!(
            ended.status.success() && stderr(&ended).contains("is faulty: only the built-in"),
            "{ended:?}"
        );
        for command in ["check", "run"] {
            assert_eq!(gateway.cli(&[command]).status.code(), Some(78), "{command} with {text}");
        }
        match good {
            Some(good) => fs::write(gateway.path(file), good).unwrap(),
            None => fs::remove_file(gateway.path(file)).unwrap(),
        }
        let ended = gateway.cli(&["status"]);
        assert!(ended.status.success() && !stderr(&ended).contains("warning"), "{ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_file_the_directory_is_enough() {
    let (mut gateway, _meters) = site();
    gateway.start();
    gateway.until("both meters are read", |status| status["store"]["last_seq"].as_u64() > Some(6));
    fs::remove_file(gateway.config()).unwrap();
    let data = gateway.path("data").display().to_string();
    let ended = gateway.cli(&["status", "--data-dir", &data]);
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    let ended = gateway.cli(&["status"]);
    assert_eq!(ended.status.code(), Some(78), "nothing says where it is: {ended:?}");
    let ended = gateway.cli(&["--data-dir", &data, "run"]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");

    assert!(gateway.terminate().0.success());
    let ended = gateway.cli(&["readings", "--data-dir", &data, "--from", "2026-01-01"]);
    let (table, said) = (String::from_utf8_lossy(&ended.stdout).into_owned(), stderr(&ended));
    assert!(ended.status.success() && table.contains("slot (UTC)") && said.contains("UTC"), "{ended:?}");
    let (export, key) = (gateway.path("all.jsonl"), gateway.path("data/public-key.pem"));
    let ended = gateway.cli(&["ledger", "export", "--data-dir", &data, "-o", export.to_str().unwrap()]);
    assert!(ended.status.success(), "{ended:?}");
    let (export, key) = (export.to_str().unwrap(), key.to_str().unwrap());
    let ended = gateway.cli(&["ledger", "verify", "--export", export, "--public-key", key]);
    assert!(ended.status.success() && ended.stderr.is_empty(), "an export is proved anywhere: {ended:?}");
    let ended = gateway.cli(&["read", "E-1", "--data-dir", &data]);
    assert_eq!(ended.status.code(), Some(78), "the bus cannot be opened without a configuration: {ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_works_with_another_file_is_told_apart() {
    let (mut gateway, _meters) = site();
    gateway.start();
    let ended = gateway.cli(&["status"]);
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    fs::write(gateway.path("meters.csv"), METERS.replace("E-2", "E-3")).unwrap();
    let ended = gateway.cli(&["status"]);
    assert!(ended.status.success(), "{ended:?}");
    assert!(stderr(&ended).contains("not what the running gateway works with"), "{ended:?}");
    let ended = gateway.cli(&["read", "E-3"]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(stderr(&ended).contains("reload") && stderr(&ended).contains("no meter `E-3`"), "{ended:?}");
}
