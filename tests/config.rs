//! What an operator meets when a configuration is read: all faults at once, each with its place and a hint.

#![allow(clippy::unwrap_used)] // the helpers of a test are a test too

#[path = "config/files.rs"]
mod files;
#[path = "config/hints.rs"]
mod hints;
#[path = "config/protocols.rs"]
mod protocols;
#[path = "config/same_device.rs"]
mod same_device;
#[path = "config/spreadsheet.rs"]
mod spreadsheet;

use std::{fs, path::Path, path::PathBuf, time::Duration};

use meter_gateway::{
    config::{self, Confirm, Fault, Link, MqttVersion, Settings, poll_plan},
    model::Dec,
    protocol::Parity,
};
use tempfile::TempDir;

const VALID: &str = r#"
[site]
id = "riverside"
timezone = "Asia/Shanghai"
[gateway]
id = "gw-01"
[mqtt]
url = "mqtt://127.0.0.1"
[[bus]]
id = "north"
kind = "serial"
device = "/dev/ttyUSB0"
[[bus]]
id = "plant"
kind = "tcp"
address = "10.0.0.5:502"
[[meter]]
id = "E-1"
bus = "north"
address = "1"
profile = "eastron-sdm120"
"#;

const MISTAKES: &str = r#"
profile_dir = "profiles"
[site]
id = "River Side"
timezone = "Asia/Shangai"
[gateway]
data_dir = "data"
[reading]
interval_secs = "900"
[mqtt]
url = "mqtt://gw:s3cret@broker"
version = 5
username = "gw"
password_file = "absent"
cert_file = "absent.pem"
password = "s3cret"
[billing]
day = 31
time = "midnight"
[console]
listen = "0.0.0.0:8420"
[[bus]]
id = "north"
kind = "serial"
device = "/dev/ttyUSB0"
buad = 9600
parity = "evn"
[[bus]]
id = "north"
kind = "tcp"
device = "/dev/ttyUSB1"
address = "10.0.0.5"
[[bus]]
id = "south"
kind = "serial"
device = "/dev/ttyUSB0"
[[meter]]
id = "E-1"
bus = "nort"
address = "1"
profile = "eastron-sdm360"
[[meter]]
id = "E-2"
bus = "south"
address = 248
profile = "eastron-sdm120"
ct_ratio = 0.1
parent = "E-3"
[[meter]]
id = "E-3"
bus = "south"
address = "3"
profile = "eastron-sdm120"
parent = "E-2"
[[meter]]
id = "E-3"
bus = "south"
address = 3
profile = "eastron-sdm120"
protocol = "mbus"
retries = 9
parent = "E-9"
"#;

fn load_in(dir: &TempDir, text: &str, env: &[(&str, &str)]) -> Result<Settings, Vec<Fault>> {
    let path = dir.path().join("gateway.toml");
    fs::write(&path, text).unwrap();
    config::load(&path, env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

fn load(text: &str) -> Result<Settings, Vec<Fault>> {
    load_in(&TempDir::new().unwrap(), text, &[])
}

fn said(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}

fn faults(text: &str) -> Vec<Fault> {
    load(text).err().unwrap_or_default()
}

/// The one fault that replacing `old` with `new` in the valid configuration brings.
fn slip(old: &str, new: &str) -> Fault {
    assert!(VALID.contains(old), "{old}");
    let found = faults(&VALID.replacen(old, new, 1));
    assert_eq!(found.len(), 1, "{new}: {}", said(&found));
    found.into_iter().next().unwrap()
}

fn find<'a>(faults: &'a [Fault], place: &str) -> &'a Fault {
    faults.iter().find(|fault| fault.place == place).unwrap_or_else(|| panic!("{place}: {}", said(faults)))
}

#[test]
fn the_installed_example_is_faultless() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/gateway.toml");
    let settings = config::load(&path, []).unwrap_or_else(|faults| panic!("{}", said(&faults)));
    assert_eq!(settings.meters.len(), 9);
    assert_eq!(settings.files.len(), 2);
    assert_eq!(settings.site.name, "滨江花园");
    let plan = poll_plan::predict(&settings);
    assert!(
        plan.buses.iter().all(|bus| bus.predicted == (bus.load_ppm > 0) && !bus.is_overloaded()),
        "{plan:?}"
    );
    let main = settings.meters.iter().find(|meter| meter.id.as_str() == "E-MAIN-1").unwrap();
    assert_eq!((main.multiplier.to_string().as_str(), main.interval_secs), ("40", 300));
    assert_eq!(main.address, 100.into());
}

#[test]
fn what_is_left_out_has_its_default() {
    let settings = load(VALID).unwrap_or_else(|faults| panic!("{}", said(&faults)));
    assert_eq!(settings.gateway.data_dir, PathBuf::from("/var/lib/meter-gateway"));
    assert_eq!((settings.mqtt.host.as_str(), settings.mqtt.port), ("127.0.0.1", 1883));
    assert_eq!((settings.mqtt.version, settings.mqtt.confirm), (MqttVersion::V5, Confirm::Broker));
    assert_eq!(
        (settings.mqtt.client_id.as_str(), settings.mqtt.topic_prefix.as_str()),
        ("gw-01", "metering/v1")
    );
    assert!(settings.mqtt.tls.is_none() && settings.console.is_none());
    assert_eq!((settings.billing.day, settings.billing.window_hours), (1, 72));
    assert_eq!((settings.reading.interval_secs, settings.reading.retention_days), (900, 1100));
    let [north, plant] = settings.buses.as_slice() else { panic!("two buses") };
    assert_eq!((north.timeout, north.retries), (Duration::from_millis(300), 1));
    assert_eq!(plant.timeout, Duration::from_secs(1));
    assert!(
        matches!(north.link, Link::Serial { wire, .. } if wire.baud == 9600 && wire.parity == Parity::None)
    );
    assert_eq!(settings.meters[0].multiplier, Dec::ONE);
    assert_eq!(settings.meters[0].interval_secs, 900);
    assert_eq!(settings.hash.len(), 64);
    assert_ne!(settings.hash, load(&format!("{VALID}\n# a comment")).unwrap().hash);
}

#[test]
fn many_mistakes_are_found_in_one_pass_each_with_place_and_hint() {
    let found = faults(MISTAKES);
    let expected = [
        ("profile_dir", "profiles_dir"),
        ("site.id", "river-side"),
        ("site.timezone", "Asia/Shanghai"),
        ("gateway.id", "gw-01"),
        ("reading.interval_secs", "without quotes"),
        ("mqtt.url", "password_file"),
        ("mqtt.version", "in quotes"),
        ("mqtt.password_file", "the password alone"),
        ("mqtt.cert_file", "relative"),
        ("mqtt.password", "password_file"),
        ("billing.time", "00:00"),
        ("console.listen", "127.0.0.1:8420"),
        ("bus[1] (north).buad", "`baud`"),
        ("bus[1] (north).parity", "`even`"),
        ("bus[2] (north).id", "of its own"),
        ("bus[2] (north).device", "leave it out"),
        ("bus[2] (north).address", ":502"),
        ("bus[3] (south).device", "one bus"),
        ("meter[1] (E-1).bus", "`north`"),
        ("meter[1] (E-1).profile", "`eastron-sdm"),
        ("meter[2] (E-2).address", "set at the meter"),
        ("meter[2] (E-2).ct_ratio", "\"0.1\""),
        ("meter[4] (E-3).id", "of its own"),
        ("meter[4] (E-3).address", "change one"),
        ("meter[4] (E-3).protocol", "converter"),
    ];
    for (place, hint) in expected {
        let matching = found.iter().any(|fault| {
            fault.place == place && fault.hint.as_ref().is_some_and(|given| given.contains(hint))
        });
        assert!(matching, "{place} with {hint}: {}", said(&found));
    }
    find(&found, "billing.day");
    find(&found, "meter[4] (E-3).retries");
    find(&found, "meter[4] (E-3).parent");
    assert!(find(&found, "meter[2] (E-2).parent").message.contains("E-2 → E-3 → E-2"));
    // 25 with their hints, 4 more, and cert_file without key_file at a place that is named above.
    assert_eq!(found.len(), expected.len() + 5, "{}", said(&found));
    assert!(!said(&found).contains("s3cret"), "a password was repeated: {}", said(&found));
}

#[test]
fn a_single_slip_is_a_single_fault() {
    let cases = [
        ("url = \"mqtt://127.0.0.1\"", "url = \"tcp://127.0.0.1\"", "mqtt.url", "expected mqtt://"),
        ("[site]", "[site]\nname = 3", "site.name", "text was expected"),
        ("[mqtt]", "[mqtt]\ntopic_prefix = \"a/#\"", "mqtt.topic_prefix", "wildcard"),
        ("[mqtt]", "[mqtt]\nconfirm = \"bill\"", "mqtt.confirm", "\"broker\" or \"billing\""),
        ("[mqtt]\nurl = \"mqtt://127.0.0.1\"\n", "", "mqtt", "missing"),
        ("[gateway]", "[reading]\ninterval_secs = 86401\n[gateway]", "reading.interval_secs", "0 to 86400"),
        ("kind = \"serial\"", "kind = \"serial\"\nbaud = 299", "bus[1] (north).baud", "300 to 921600"),
        ("kind = \"serial\"", "kind = \"serial\"\nstop_bits = 3", "bus[1] (north).stop_bits", "1 to 2"),
        (
            "kind = \"serial\"",
            "kind = \"serial\"\ntimeout_ms = 9",
            "bus[1] (north).timeout_ms",
            "10 to 10000",
        ),
        (
            "kind = \"serial\"",
            "kind = \"serial\"\nframing = \"tcp\"",
            "bus[1] (north).framing",
            "means nothing",
        ),
        ("device = \"/dev/ttyUSB0\"\n", "", "bus[1] (north).device", "missing"),
        ("kind = \"tcp\"", "kind = \"tcp\"\nbaud = 9600", "bus[2] (plant).baud", "means nothing"),
        ("address = \"10.0.0.5:502\"\n", "", "bus[2] (plant).address", "missing"),
        ("address = \"1\"", "address = \"0\"", "meter[1] (E-1).address", "1 to 247"),
        ("address = \"1\"", "address = \"1\"\nparent = \"E-1\"", "meter[1] (E-1).parent", "E-1 → E-1"),
        ("address = \"1\"", "address = \"1\"\npt_ratio = \"-1\"", "meter[1] (E-1).pt_ratio", "above zero"),
        (
            "address = \"1\"",
            "address = \"1\"\nct_ratio = \"40x\"",
            "meter[1] (E-1).ct_ratio",
            "not a decimal",
        ),
        (
            "address = \"1\"",
            "address = \"1\"\noff_schedule_secs = 3601",
            "meter[1] (E-1).off_schedule_secs",
            "1 to 3600",
        ),
        ("id = \"E-1\"", "id = \"E/1\"", "meter[1] (E/1).id", "not a valid meter id"),
        ("[gateway]", "[[site.x]]\n[gateway]", "site.x", "unknown key"),
    ];
    for (old, new, place, message) in cases {
        let fault = slip(old, new);
        assert_eq!(fault.place, place, "{fault}");
        assert!(fault.message.contains(message), "{fault}");
    }
}

#[test]
fn unit_0_and_255_exist_on_tcp_only() {
    for (unit, bus, good) in
        [("0", "plant", true), ("255", "plant", true), ("256", "plant", false), ("248", "north", false)]
    {
        let text = VALID
            .replace("bus = \"north\"", &format!("bus = \"{bus}\""))
            .replace("address = \"1\"", &format!("address = \"{unit}\""));
        assert_eq!(load(&text).is_ok(), good, "{unit} on {bus}");
    }
}

#[test]
fn a_file_that_is_not_toml_is_one_fault_with_its_line() {
    let found = faults("[site]\nid = riverside\n");
    assert_eq!(found.len(), 1);
    assert!(found[0].place.contains("line 2"), "{}", found[0]);
}

#[test]
fn a_file_that_is_not_there_is_one_fault() {
    let found = config::load(Path::new("/nowhere/gateway.toml"), []).unwrap_err();
    assert_eq!(found.len(), 1);
    assert!(found[0].to_string().contains("--config"), "{}", found[0]);
}

#[test]
fn the_second_copy_lies_beside_the_data_directory_never_in_it() {
    let slot = |dir: &str| format!("id = \"gw-01\"\ndata_dir = \"data\"\nmirror_dir = \"{dir}\"");
    let dir = TempDir::new().unwrap();
    let text = VALID.replacen("id = \"gw-01\"", &slot("card"), 1);
    let settings = load_in(&dir, &text, &[]).unwrap_or_else(|faults| panic!("{}", said(&faults)));
    assert_eq!(settings.gateway.mirror_dir, Some(dir.path().join("card")), "it need not be there");
    for wrong in ["data", "data/copy", "", "."] {
        let fault = slip("id = \"gw-01\"", &slot(wrong));
        assert!(fault.place.contains("mirror_dir"), "{wrong:?}: {fault}");
    }
}

#[test]
fn the_environment_overrides_and_is_named_in_faults() {
    let dir = TempDir::new().unwrap();
    let settings = load_in(
        &dir,
        VALID,
        &[
            ("METER_GATEWAY__MQTT__URL", "mqtts://broker.example"),
            ("METER_GATEWAY__MQTT__VERSION", "5"),
            ("meter_gateway__reading__interval_secs", "60"),
            ("METER_GATEWAY_CONFIG", "/somewhere/else.toml"),
            ("METER_GATEWAY__MQTT__USERNAME", "007"),
        ],
    )
    .unwrap_or_else(|faults| panic!("{}", said(&faults)));
    assert_eq!((settings.mqtt.host.as_str(), settings.mqtt.port), ("broker.example", 8883));
    assert!(settings.mqtt.tls.is_some());
    assert_eq!(settings.meters[0].interval_secs, 60);
    assert_eq!(settings.mqtt.username.as_deref(), Some("007"));

    let found = load_in(
        &dir,
        VALID,
        &[
            ("METER_GATEWAY__READING__INTERVAL_SECS", "soon"),
            ("METER_GATEWAY__MQTT__ULR", "x"),
            ("METER_GATEWAY__BUS__1__BAUD", "1"),
        ],
    )
    .unwrap_err();
    assert_eq!(found.len(), 3, "{}", said(&found));
    assert!(found.iter().all(|fault| fault.file == "environment"), "{}", said(&found));
    assert!(find(&found, "METER_GATEWAY__MQTT__ULR").hint.as_ref().unwrap().contains("`url`"));
}

#[test]
fn a_meters_file_is_read_with_the_main_one_and_its_cells_are_named() {
    let dir = TempDir::new().unwrap();
    let sheet = dir.path().join("sheet.csv");
    let text = format!("meters_file = \"sheet.csv\"\n{VALID}");
    fs::write(
        &sheet,
        "\u{feff}id,bus,address,profile,ct_ratio,room,interval_secs\nE-2,north,2,eastron-sdm120,40,\"a, b\",60\nE-3,plant,1,eastron-sdm120,,,\n",
    )
    .unwrap();
    let settings = load_in(&dir, &text, &[]).unwrap_or_else(|faults| panic!("{}", said(&faults)));
    let ids: Vec<&str> = settings.meters.iter().map(|meter| meter.id.as_str()).collect();
    assert_eq!(ids, ["E-1", "E-2", "E-3"]);
    assert_eq!(settings.meters[1].room.as_deref(), Some("a, b"));
    assert_eq!(
        (settings.meters[1].ct_ratio.to_string().as_str(), settings.meters[1].interval_secs),
        ("40", 60)
    );
    assert_eq!(settings.meters[2].room, None);

    fs::write(
        &sheet,
        "id,bus,address,profile,retries\nE-1,north,2,eastron-sdm120,\nE-3,north,1,eastron-sdm121,x\n,plant,1,eastron-sdm120,\n",
    )
    .unwrap();
    let found = load_in(&dir, &text, &[]).unwrap_err();
    assert_eq!(found.len(), 5, "{}", said(&found));
    assert!(found.iter().all(|fault| fault.file.ends_with("sheet.csv")));
    assert!(find(&found, "row 2 (E-1), column id").message.contains("meter[1] (E-1)"));
    assert!(find(&found, "row 3 (E-3), column profile").hint.as_ref().unwrap().contains("eastron-sdm120"));
    assert!(find(&found, "row 3 (E-3), column retries").message.contains("0 to 5"));
    assert!(find(&found, "row 3 (E-3), column address").message.contains("address 1 on bus north"));
    find(&found, "row 4, column id");

    fs::write(&sheet, "id,bus,profil\nE-2,north,eastron-sdm120\nE-3,north,eastron-sdm120\n").unwrap();
    let found = load_in(&dir, &text, &[]).unwrap_err();
    assert_eq!(found.len(), 3, "a missing column is one fault, not one for each row: {}", said(&found));

    fs::remove_file(&sheet).unwrap();
    let found = load_in(&dir, &text, &[]).unwrap_err();
    assert_eq!((found.len(), found[0].place.as_str()), (1, "meters_file"));
}

#[test]
fn profiles_of_the_site_are_added_and_their_faults_reported() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("profiles")).unwrap();
    let own = dir.path().join("profiles/own-meter.toml");
    let text = format!("profiles_dir = \"profiles\"\n{VALID}").replace("eastron-sdm120", "own-meter");
    let builtin = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/profiles/eastron-sdm120.toml");
    let profile = fs::read_to_string(builtin).unwrap().replace("\"eastron-sdm120\"", "\"own-meter\"");
    fs::write(&own, &profile).unwrap();
    let settings = load_in(&dir, &text, &[]).unwrap_or_else(|faults| panic!("{}", said(&faults)));
    assert_eq!(settings.meters[0].profile.id, "own-meter");
    assert_eq!(settings.files.len(), 2);

    fs::write(&own, profile.replacen("medium", "medum", 1)).unwrap();
    let found = load_in(&dir, &text, &[]).unwrap_err();
    assert!(found.iter().all(|fault| fault.file.ends_with("own-meter.toml")), "{}", said(&found));
}

#[test]
fn a_line_that_cannot_keep_its_interval_is_a_fault() {
    let mut text = VALID.replace("kind = \"serial\"", "kind = \"serial\"\nbaud = 1200");
    for unit in 2..=40 {
        let meter = format!(
            "[[meter]]\nid = \"E-{unit}\"\nbus = \"north\"\naddress = \"{unit}\"\nprofile = \"eastron-sdm630\"\ninterval_secs = 5\n"
        );
        text.push_str(&meter);
    }
    let found = faults(&text);
    assert_eq!(found.len(), 1, "{}", said(&found));
    assert_eq!(found[0].place, "bus[1] (north)");
    let hint = found[0].hint.as_deref().unwrap();
    assert!(hint.contains("interval_secs") && hint.contains("baud") && hint.contains("split"), "{hint}");
    // As fast as it goes is no promise that could be broken.
    let relaxed = text.replace("interval_secs = 5", "interval_secs = 0");
    let settings = load(&relaxed).unwrap_or_else(|faults| panic!("{}", said(&faults)));
    let plan = poll_plan::predict(&settings);
    let north = &plan.buses[0];
    assert_eq!(north.meters.len(), 40);
    assert!(north.cycle() > Duration::from_secs(5) && north.load_ppm < 10_000, "{north:?}");
    assert_eq!(north.cycle_us, north.meters.iter().map(|meter| meter.sweep_us).sum::<u64>());
}

/// What a network takes for an exchange is not known before it is polled.
#[test]
fn a_thousand_network_meters_at_a_second_are_accepted() {
    let mut text = VALID.to_owned();
    for bus in 0..5 {
        let line = format!("[[bus]]\nid = \"tcp-{bus}\"\nkind = \"tcp\"\naddress = \"127.0.0.1:150{bus}\"\n");
        text.push_str(&line);
        for unit in 1..=200 {
            let meter = format!(
                "[[meter]]\nid = \"T-{bus}-{unit}\"\nbus = \"tcp-{bus}\"\naddress = \"{unit}\"\nprofile = \"eastron-sdm120\"\ninterval_secs = 1\n"
            );
            text.push_str(&meter);
        }
    }
    let settings = load(&text).unwrap_or_else(|faults| panic!("{}", said(&faults)));
    let plan = poll_plan::predict(&settings);
    let network = plan.buses.last().unwrap();
    assert!(!network.predicted && network.meters[0].requests > 0, "{:?}", network.meters[0]);
    assert_eq!((network.cycle_us, network.load_ppm), (0, 0));
    assert_eq!(network.requests_per_1000_secs(), 200 * 1000 * network.meters[0].requests as u64);
    assert!(plan.buses[0].predicted && plan.buses[0].load_ppm > 0);
}

#[test]
fn a_systemd_credential_stands_in_for_the_password_file() {
    let dir = TempDir::new().unwrap();
    let credentials = TempDir::new().unwrap();
    fs::write(credentials.path().join("mqtt-password"), "x").unwrap();
    let text = VALID.replace("[mqtt]", "[mqtt]\nusername = \"gw\"\npassword_file = \"mqtt-password\"");
    let found = load_in(&dir, &text, &[]).unwrap_err();
    assert_eq!((found.len(), found[0].place.as_str()), (1, "mqtt.password_file"));
    let env = [("CREDENTIALS_DIRECTORY", credentials.path().to_str().unwrap())];
    let settings = load_in(&dir, &text, &env).unwrap_or_else(|faults| panic!("{}", said(&faults)));
    assert_eq!(settings.mqtt.password_file.unwrap(), credentials.path().join("mqtt-password"));
}

#[test]
fn a_version_that_cannot_refuse_is_warned_of_where_the_brokers_word_counts() {
    let warnings = |mqtt: &str| {
        let text = VALID.replace("[mqtt]\n", &format!("[mqtt]\n{mqtt}\n"));
        let settings = load(&text).unwrap();
        settings.warnings.iter().map(|w| format!("{w}")).collect::<Vec<_>>()
    };
    for mqtt in ["version = \"3.1.1\"", "version = \"3.1.1\"\nconfirm = \"broker\""] {
        let found = warnings(mqtt);
        assert!(
            found.len() == 1
                && found[0].contains("mqtt.version")
                && found[0].contains("confirm = \"billing\""),
            "{found:?}"
        );
    }
    for mqtt in ["", "version = \"5\"", "confirm = \"broker\"", "version = \"3.1.1\"\nconfirm = \"billing\""]
    {
        assert!(warnings(mqtt).is_empty(), "{mqtt}");
    }
}

#[test]
fn a_serial_server_has_one_master_and_a_known_speed_only_when_told() {
    let bus = |id: &str, more: &str| {
        format!("[[bus]]\nid = \"{id}\"\nkind = \"tcp\"\naddress = \"10.0.0.5:502\"\n{more}\n")
    };
    let shared = load(&format!("{VALID}{}", bus("second", ""))).unwrap();
    assert_eq!(shared.buses.len(), 3, "a Modbus TCP peer may take several connections");
    let [warning] = shared.warnings.as_slice() else { panic!("{:?}", shared.warnings) };
    assert_eq!(warning.place, "bus[3] (second).address");
    assert!(warning.message.contains("bus[2] (plant)"), "{warning}");
    let found = faults(&format!("{VALID}{}", bus("second", "framing = \"serial\"")));
    assert_eq!((found.len(), found[0].place.as_str()), (1, "bus[3] (second).address"));
    let other = |more| bus("other", more).replace("10.0.0.5:502", "10.0.0.6:4001");
    let settings = load(&format!("{VALID}{}", other("framing = \"serial\"\nbaud = 2400"))).unwrap();
    assert!(
        matches!(&settings.buses[2].link, Link::SerialOverTcp { wire: Some(wire), .. } if wire.baud == 2400)
    );
    let settings = load(&format!("{VALID}{}", other("framing = \"serial\""))).unwrap();
    assert!(matches!(&settings.buses[2].link, Link::SerialOverTcp { wire: None, .. }));
}
