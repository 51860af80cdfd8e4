//! What was typed by mistake is told with what was meant, and where.

use super::*;

#[test]
fn the_only_time_of_china_is_suggested_before_anything_spelled_like_it() {
    for zone in ["Asia/Beijing", "UTC+8", "GMT+8", "CST", "China", "北京时间", "UTC+08:00", "+8"] {
        let fault = slip("Asia/Shanghai", zone);
        assert_eq!(fault.hint.as_deref(), Some("did you mean `Asia/Shanghai`?"), "{zone}: {fault}");
    }
    assert!(load(&VALID.replace("Asia/Shanghai", "PRC")).is_ok(), "an old name of the database");
    let settings = load(&VALID.replace("Asia/Shanghai", "Etc/GMT+8")).unwrap();
    assert!(settings.warnings[0].message.contains("8 hours behind"), "{:?}", settings.warnings);
}

#[test]
fn chinese_punctuation_is_named_with_its_place() {
    for (old, new, place, hint) in [
        (
            "id = \"riverside\"",
            "id = “riverside”",
            "line 3, column 6",
            "character 6 is `“` (U+201C), expected `\"`",
        ),
        (
            "id = \"riverside\"",
            "id ＝ \"riverside\"",
            "line 3, column 4",
            "character 4 is `＝` (U+FF1D), expected `=`",
        ),
        ("[site]", "［site］", "line 2, column 1", "write `[site]`"),
        ("[site]", "【site】", "line 2, column 1", "write `[site]`"),
        ("id = \"riverside\"", "id\u{a0}= \"riverside\"", "line 3, column 3", "(U+00A0), expected a space"),
        (
            "id = \"riverside\"",
            "\u{3000}id = \"riverside\"",
            "line 3, column 1",
            "(U+3000), expected a space",
        ),
        ("id = \"riverside\"", "id = \"riverside\"；", "line 3, column 17", "`；` (U+FF1B)"),
        ("mqtt://127.0.0.1", "mqtt：//127.0.0.1", "mqtt.url", "character 5 is `：` (U+FF1A), expected `:`"),
        ("10.0.0.5:502", "10。0。0。5:502", "bus[2] (plant).address", "`10.0.0.5:502`"),
        ("10.0.0.5:502", "10.0.0.5：502", "bus[2] (plant).address", "`10.0.0.5:502`"),
        ("/dev/ttyUSB0", "／dev／ttyUSB0", "bus[1] (north).device", "`/dev/ttyUSB0`"),
        ("id = \"gw-01\"", "id = \"gw－01\"", "gateway.id", "`gw-01`"),
        (
            "profile = \"eastron-sdm120\"",
            "profile = \"eastron–sdm120\"",
            "meter[1] (E-1).profile",
            "(U+2013), expected `-`",
        ),
        ("kind = \"tcp\"", "kind = \"ｔｃｐ\"", "bus[2] (plant).kind", "(U+FF54), expected `t`"),
    ] {
        let fault = slip(old, new);
        assert_eq!(fault.place, place, "{fault}");
        let hint = hint.replace('`', "");
        assert!(
            fault
                .hint
                .as_ref()
                .is_some_and(|given| given.replace(['`', '"'], "").contains(&hint.replace('"', ""))),
            "{fault}"
        );
    }
    let name = "滨江花园（北）“一期”，３号楼";
    let settings = load(&VALID.replace("[site]", &format!("[site]\nname = \"{name}\" # 备注：，"))).unwrap();
    assert_eq!((settings.site.name.as_str(), settings.warnings.len()), (name, 0));
}

#[test]
fn every_line_that_is_not_toml_is_shown_in_one_pass() {
    let text = VALID
        .replace("id = \"riverside\"", "id = riverside")
        .replace("url = \"mqtt://127.0.0.1\"", "url = mqtt://127.0.0.1")
        .replace("device = \"/dev/ttyUSB0\"", "device = /dev/ttyUSB0");
    let found = faults(&text);
    assert_eq!(found.len(), 3, "{}", said(&found));
    assert!(found[0].message.contains("`id = riverside`"), "{}", found[0]);
    assert!(found[0].hint.as_ref().unwrap().contains("`id = \"riverside\"`"), "{}", found[0]);
    assert!(found[2].hint.as_ref().unwrap().contains("nothing else was checked"), "{}", found[2]);
}

#[test]
fn devices_of_other_systems_and_patterns_are_refused() {
    for (device, hint) in [
        ("COM3", "/dev/ttyUSB0"),
        ("com12:", "by-id"),
        ("\\\\\\\\.\\\\COM3", "by-id"),
        ("/dev/ttyUSB*", "by-id"),
        ("/dev/ttyUSB?", "by-id"),
        ("ttyUSB0", "`/dev/ttyUSB0`"),
        ("/dev", "by-id"),
    ] {
        let fault = slip("/dev/ttyUSB0", device);
        assert_eq!(fault.place, "bus[1] (north).device");
        assert!(fault.hint.as_ref().unwrap().contains(hint), "{fault}");
    }
}

#[test]
fn a_meters_file_in_another_encoding_or_with_empty_columns() {
    let dir = TempDir::new().unwrap();
    let text = format!("meters_file = \"m.csv\"\n{VALID}");
    let with = |bytes: &[u8]| {
        fs::write(dir.path().join("m.csv"), bytes).unwrap();
        load_in(&dir, &text, &[])
    };
    let settings =
        with("\u{feff}id,bus,address,profile,,,\r\nE-2,north,2,eastron-sdm630,,,\r\n".as_bytes()).unwrap();
    assert_eq!(settings.meters.len(), 2);
    let found = with(b"id,bus,address,profile,,,\nE-2,north,2,eastron-sdm630,,x,\n").unwrap_err();
    assert_eq!((found.len(), found[0].place.as_str()), (1, "row 2, column F"), "{}", said(&found));
    let settings = with(b"id;bus;address;profile\nE-2;north;2;eastron-sdm630\n").unwrap();
    assert_eq!(settings.meters[1].id.as_str(), "E-2");
    // 北 in GBK.
    let found = with(b"id,bus,address,profile,room\nE-2,north,2,eastron-sdm630,\xB1\xB1\n").unwrap_err();
    let [fault] = found.as_slice() else { panic!("{}", said(&found)) };
    assert!(
        fault.file.ends_with("m.csv") && fault.place == "line 2" && fault.message.contains("GBK"),
        "{fault}"
    );
    assert!(fault.hint.as_ref().unwrap().contains("CSV UTF-8"), "{fault}");
}

#[test]
fn an_ipv6_broker_stands_in_brackets() {
    for (url, host, port) in
        [("mqtts://[::1]", "::1", 8883), ("mqtts://[2001:db8::1]:8884", "2001:db8::1", 8884)]
    {
        let settings = load(&VALID.replace("mqtt://127.0.0.1", url)).unwrap();
        assert_eq!((settings.mqtt.host.as_str(), settings.mqtt.port), (host, port));
        assert!(settings.mqtt.tls.is_some());
    }
    for url in ["mqtts://::1", "mqtts://2001:db8::1:8883", "mqtts://[::1"] {
        let fault = slip("mqtt://127.0.0.1", url);
        assert!(fault.place == "mqtt.url" && fault.hint.is_some(), "{fault}");
    }
}

#[test]
fn a_part_of_a_name_another_spelling_and_a_unit_too_many_are_understood() {
    for (old, new, hint) in [
        ("kind = \"serial\"", "kind = \"serial\"\nbaudrate = 9600", "`baud`"),
        ("kind = \"serial\"", "kind = \"serial\"\ntimeout = 300", "`timeout_ms`"),
        ("kind = \"serial\"", "kind = \"serial\"\nparity = \"N\"", "`none`"),
        ("[mqtt]", "[mqtt]\nuser = \"gw\"", "`username`"),
        ("[gateway]", "[reading]\ninterval = 900\n[gateway]", "`interval_secs`"),
        ("[gateway]", "[reading]\ninterval_secs = 900.0\n[gateway]", "`900`"),
        ("[gateway]", "[reading]\ninterval_secs = 15min\n[gateway]", "without a unit"),
        ("eastron-sdm120", "SDM120", "`eastron-sdm120`"),
        ("address = \"1\"", "address = 1.0", "address = \"1\""),
        ("10.0.0.5:502", "tcp://10.0.0.5:502", "\"10.0.0.5:502\""),
        ("10.0.0.5:502", "10.0.0.5,502", "\"10.0.0.5:502\""),
        ("10.0.0.5:502", "10.0.0.5", "\"10.0.0.5:502\""),
        ("[[bus]]\nid = \"north\"", "[bus]\nid = \"north\"", "[[bus]]"),
    ] {
        let fault = slip(old, new);
        assert!(fault.hint.as_ref().is_some_and(|given| given.contains(hint)), "{new}: {fault}");
    }
    let settings = load(&VALID.replace("id = \"gw-01\"", "id = \"gw-01\"\ndata_dir = \"~/data\"")).unwrap();
    assert_eq!(settings.warnings[0].place, "gateway.data_dir");
}
