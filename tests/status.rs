//! What the running gateway says of meters that have no value, in `/api/v1/status` and in `status`: each for its own reason.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/gateway.rs"]
mod gateway;
#[path = "common/lab.rs"]
mod lab;

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use gateway::Gateway;
use meter_gateway::model::Utc;
use serde_json::Value;

/// What each unit answers to any question of one register, without transaction and length.
const WELL: u8 = 1;
const SILENT: u8 = 2;
const REFUSING: u8 = 3;
const SHORT: u8 = 4;

fn answer(unit: u8) -> Option<Vec<u8>> {
    match unit {
        WELL => Some(vec![unit, 0x04, 0x02, 0x00, 0x64]),
        REFUSING => Some(vec![unit, 0x84, 0x02]),
        SHORT => Some(vec![unit, 0x04, 0x01, 0x00]),
        _ => None,
    }
}

/// A Modbus TCP peer with these units.
fn peer() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    port
}

fn serve(mut stream: TcpStream) {
    let mut question = [0; 12];
    while stream.read_exact(&mut question).is_ok() {
        let Some(pdu) = answer(question[6]) else { continue };
        let mut frame = question[..4].to_vec();
        frame.extend_from_slice(&u16::try_from(pdu.len()).unwrap().to_be_bytes());
        frame.extend(pdu);
        if stream.write_all(&frame).is_err() {
            return;
        }
    }
}

fn meters(status: &Value) -> impl Iterator<Item = &Value> {
    status["buses"].as_array().unwrap().iter().flat_map(|bus| bus["meters"].as_array().unwrap())
}

fn meter<'a>(status: &'a Value, id: &str) -> &'a Value {
    meters(status).find(|meter| meter["meter"] == id).unwrap()
}

fn at(value: &Value) -> Utc {
    value.as_str().unwrap().parse().unwrap()
}

#[test]
fn each_meter_says_why_it_has_no_value() {
    let port = peer();
    let mut gateway = Gateway::configured(1, 1, "");
    fs::create_dir(gateway.path("profiles")).unwrap();
    fs::write(gateway.path("profiles/lab-u16.toml"), lab::lab_u16(0x0048)).unwrap();
    let mut rest = String::new();
    writeln!(rest, "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:{port}\"\ntimeout_ms = 100\nretries = 0").unwrap();
    writeln!(
        rest,
        "[[bus]]\nid = \"gone\"\nkind = \"serial\"\ndevice = \"{}\"",
        gateway.path("no-such-tty").display()
    )
    .unwrap();
    for (id, bus, unit, more) in [
        ("WELL", "plant", WELL, ""),
        ("SILENT", "plant", SILENT, ""),
        ("REFUSING", "plant", REFUSING, ""),
        ("SHORT", "plant", SHORT, ""),
        ("SELDOM", "plant", 5, "interval_secs = 86400\n"),
        ("GONE", "gone", 1, ""),
    ] {
        write!(
            rest,
            "[[meter]]\nid = \"{id}\"\nbus = \"{bus}\"\naddress = \"{unit}\"\nprofile = \"lab-u16\"\n{more}"
        )
        .unwrap();
    }
    gateway.configure(1, 1, &rest);
    let text = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), format!("profiles_dir = \"profiles\"\n{text}")).unwrap();
    gateway.start();

    let reason = |status: &Value, id: &str| meter(status, id)["no_value"]["reason"].clone();
    let status = gateway.until("each has had slots", |status| {
        meter(status, "SILENT")["slot"]["flags"][0] == "backed_off"
            && meter(status, "SHORT")["slot"]["flags"][0] == "backed_off"
            && meter(status, "REFUSING")["no_value"]["until"].is_string()
    });
    let well = meter(&status, "WELL");
    assert!(well["no_value"].is_null() && well["last_value"].is_string(), "{well}");
    assert_eq!(well["slot"]["verdict"], "good", "{well}");
    assert!(at(&well["next_slot"]) > at(&well["slot"]["scheduled_at"]), "{well}");
    let refusing = meter(&status, "REFUSING");
    assert_eq!(refusing["no_value"]["reason"], "refused");
    assert!(refusing["no_value"]["detail"].as_str().unwrap().contains("(02)"), "{refusing}");
    assert!(
        at(&refusing["no_value"]["until"]) > at(&status["now"]) + chrono::TimeDelta::minutes(30),
        "{refusing}"
    );
    assert!(refusing["last_value"].is_null(), "{refusing}");
    // Not asked in their last slot: the reason is that of the last question.
    assert_eq!(reason(&status, "SILENT"), "no_answer", "{}", meter(&status, "SILENT"));
    assert!(meter(&status, "SILENT")["no_value"]["until"].is_string());
    assert_eq!(reason(&status, "SHORT"), "garbled", "{}", meter(&status, "SHORT"));
    assert_eq!(reason(&status, "SELDOM"), "not_due");
    assert!(at(&meter(&status, "SELDOM")["next_slot"]) > at(&status["now"]));
    let gone = meter(&status, "GONE");
    assert_eq!(gone["no_value"]["reason"], "bus_down");

    // While a request is held back nothing is asked, and nothing is a newer answer.
    let (slot, answered) = (at(&refusing["slot"]["scheduled_at"]), refusing["last_answer"].clone());
    let later = gateway.until("three slots more", |status| {
        at(&meter(status, "REFUSING")["slot"]["scheduled_at"]) >= slot + chrono::TimeDelta::seconds(3)
    });
    assert_eq!(meter(&later, "REFUSING")["last_answer"], answered);
    assert!(at(&meter(&later, "WELL")["last_answer"]) > at(&meter(&status, "WELL")["last_answer"]));

    let shown = gateway.cli(&["status"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    for words in ["silent, ", "refused: ", "garbled: ", "gone is down since", "no-such-tty", "asked again at"]
    {
        assert!(text.contains(words), "{words}\n{text}");
    }
    assert!(!text.contains("WELL") && !text.contains("SELDOM") && !text.contains('\u{1b}'), "{text}");
    let last = "meters     6 on 2 buses, 1 down: 1 well, 3 without a value, 1 on a bus that is";
    assert!(text.contains(last), "{text}");
    let all = String::from_utf8(gateway.cli(&["status", "--all"]).stdout).unwrap();
    assert!(all.contains("WELL") && all.contains("not due yet since the start"), "{all}");
    assert_eq!(gateway.cli(&["status", "--all", "--json"]).status.code(), Some(2));
}

/// `status --watch | head`: whoever has seen enough ends it.
#[test]
fn a_watch_ends_with_its_reader() {
    let mut gateway = Gateway::configured(1, 1, "");
    let rest = "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:1\"\n\
                [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"itron-cf\"\n";
    gateway.configure(1, 1, rest);
    gateway.start();
    let mut watch = std::process::Command::new(env!("CARGO_BIN_EXE_meter-gateway"))
        .arg("--config")
        .arg(gateway.config())
        .args(["status", "--watch", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = std::io::BufReader::new(watch.stdout.take().unwrap());
    for _ in 0..2 {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["gateway"], "gw-01");
    }
    drop(out);
    let ended = (0..600).find_map(|_| {
        thread::sleep(Duration::from_millis(20));
        watch.try_wait().unwrap()
    });
    assert_eq!(ended.expect("it goes on for nobody").code(), Some(0));
}
