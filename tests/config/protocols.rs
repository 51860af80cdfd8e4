//! What a meter says of its protocol, its address and its own line settings.

use meter_gateway::protocol::{Address, Wire};

use super::*;

const TYPE: &str = "dlt645-2007-three-phase";

/// A serial bus at 9600 8N1, a serial server, a Modbus TCP converter, and these meters.
fn with(meters: &[(&str, &str)]) -> Result<Settings, Vec<Fault>> {
    let head = VALID.split("[[meter]]").next().unwrap();
    let server =
        "[[bus]]\nid = \"shed\"\nkind = \"tcp\"\naddress = \"10.0.0.6:4001\"\nframing = \"serial\"\n";
    let meters = meters
        .iter()
        .enumerate()
        .map(|(number, (bus, keys))| format!("[[meter]]\nid = \"D-{number}\"\nbus = \"{bus}\"\n{keys}\n"));
    load(&format!("{head}{server}{}", meters.collect::<String>()))
}

fn dlt645(address: &str, more: &str) -> String {
    format!("address = \"{address}\"\nprofile = \"{TYPE}\"\n{more}")
}

const OWN: &str = "baud = 2400\nparity = \"even\"";

#[test]
fn each_protocol_has_its_own_addresses_and_a_meter_its_own_line_settings() {
    let settings = with(&[
        ("north", &dlt645("202107300049", OWN)),
        ("north", "address = 1\nprofile = \"eastron-sdm120\""),
        // The same number, in the other protocol; and settings that are the bus's own.
        ("north", &dlt645("000000000001", "protocol = \"dlt645-2007\"\nbaud = 9600\nparity = \"none\"")),
        ("shed", &dlt645("AA0800963457", "")),
        (
            "north",
            &format!(
                "address = 202107300050\nprofile = \"{TYPE}\"\nbaud = 2400\nparity = \"even\"\nstop_bits = 2"
            ),
        ),
    ])
    .unwrap_or_else(|faults| panic!("{}", said(&faults)));
    let addresses: Vec<String> = settings.meters.iter().map(|meter| meter.address.plain()).collect();
    assert_eq!(addresses, ["202107300049", "1", "000000000001", "AA0800963457", "202107300050"]);
    assert_eq!(settings.meters[1].address, Address::Modbus(1));
    let even = |stop_bits| Some(Wire { baud: 2400, parity: Parity::Even, stop_bits });
    let wires: Vec<_> = settings.meters.iter().map(|meter| meter.wire).collect();
    assert_eq!(wires, [even(1), None, None, None, even(2)]);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn what_a_protocol_cannot_mean_is_a_fault() {
    for (bus, keys, key, says, hint) in [
        ("north", dlt645("1", OWN), "address", "expected 12 digits", "zeros in front"),
        ("north", dlt645("99 99", OWN), "address", "expected 12 digits", ""),
        ("north", dlt645("999999999999", OWN), "address", "not 999999999999", ""),
        ("north", dlt645("2.02107E+11", OWN), "address", "expected 12 digits", ""),
        ("north", dlt645("20210730004B", OWN), "address", "expected 12 digits", ""),
        (
            "north",
            "address = \"202107300049\"\nprofile = \"eastron-sdm120\"".into(),
            "address",
            "not a Modbus unit id",
            "",
        ),
        (
            "north",
            dlt645("202107300049", "protocol = \"modbus\""),
            "protocol",
            "speaks dlt645-2007",
            "leave it out",
        ),
        (
            "north",
            "address = \"1\"\nprotocol = \"dlt645-2007\"\nprofile = \"eastron-sdm120\"".into(),
            "protocol",
            "speaks modbus",
            "leave it out",
        ),
        (
            "north",
            dlt645("202107300049", "protocol = \"dlt645-1997\""),
            "protocol",
            "not in this version",
            "",
        ),
        (
            "north",
            dlt645("202107300049", "protocol = \"dlt645\""),
            "protocol",
            "expected \"dlt645-2007\"",
            "",
        ),
        ("plant", dlt645("202107300049", ""), "bus", "not spoken over Modbus TCP", "framing = \"serial\""),
        ("shed", dlt645("202107300049", OWN), "baud", "only a serial device", "at the server"),
        ("north", dlt645("202107300049", "baud = 1"), "baud", "from 300 to 921600", ""),
        ("north", dlt645("202107300049", "parity = \"evn\""), "parity", "\"even\"", ""),
    ] {
        let faults = with(&[(bus, &keys)]).unwrap_err();
        let found = faults.iter().find(|fault| fault.place.ends_with(&format!(".{key}")));
        let Some(found) = found else { panic!("{keys}: {}", said(&faults)) };
        assert!(found.message.contains(says), "{keys}: {}", said(&faults));
        assert!(found.hint.as_deref().unwrap_or_default().contains(hint), "{keys}: {}", said(&faults));
    }
}

#[test]
fn two_meters_that_one_request_may_reach_are_a_fault() {
    let twice =
        |first: &str, second: &str| with(&[("north", &dlt645(first, OWN)), ("north", &dlt645(second, OWN))]);
    for (first, second) in [
        ("202107300049", "202107300049"),
        ("202107300049", "AAAAAAAAAAAA"),
        ("AAAA07300049", "202107300049"),
        ("20AAAAAAAAAA", "AAAAAAAAAA49"),
    ] {
        let faults = twice(first, second).unwrap_err();
        assert!(said(&faults).contains("is already that of"), "{first} {second}: {}", said(&faults));
    }
    assert!(twice("202107300049", "AAAAAAAAAA50").is_ok());
}

#[test]
fn what_two_protocols_may_do_to_each_other_is_a_warning() {
    let beside = |unit: &str| format!("address = \"{unit}\"\nprofile = \"eastron-sdm120\"");
    let warnings = |meters: &[(&str, &str)]| {
        let settings = with(meters).unwrap_or_else(|faults| panic!("{}", said(&faults)));
        settings.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let own = dlt645("202107300049", OWN);
    let found = warnings(&[("north", &own), ("north", &beside("104"))]);
    assert!(found.len() == 1 && found[0].contains("unit 104 (68H)"), "{found:?}");
    assert!(warnings(&[("north", &own), ("shed", &beside("104")), ("north", &beside("103"))]).is_empty());
    // The bus is not set up as the type leaves the factory.
    let found = warnings(&[("north", &dlt645("202107300049", ""))]);
    assert!(
        found.len() == 1 && found[0].contains("leave the factory with 2400 8E1, the bus has 9600 8N1"),
        "{found:?}"
    );
    assert!(found[0].contains("baud = 2400, parity = \"even\""), "{found:?}");
}

#[test]
fn the_plan_counts_the_speed_of_a_meter_and_setting_the_line_up_anew() {
    let sweep = |keys: &str| {
        let settings = with(&[("north", keys)]).unwrap_or_else(|faults| panic!("{}", said(&faults)));
        poll_plan::predict(&settings).buses[0].meters[0].clone()
    };
    let (slow, fast) = (sweep(&dlt645("202107300049", OWN)), sweep(&dlt645("202107300049", "")));
    assert_eq!((slow.requests, fast.requests), (8, 8));
    // 8 requests of 20 characters; replies of 4 FE, 16 and 20 + 4 + 4 + 6 + 9 + 12 + 2 + 2 bytes; 7 of silence each.
    let chars = 8 * (20 + 20 + 7) + 59;
    let at = |bits: u64, baud: u64| chars * bits * 1_000_000 / baud + 8 * 100_000;
    assert!(slow.sweep_us.abs_diff(at(11, 2400) + 4 * 50_000) < 100, "{slow:?}");
    assert!(fast.sweep_us.abs_diff(at(10, 9600)) < 100, "{fast:?}");
}
