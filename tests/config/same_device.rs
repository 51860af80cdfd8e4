//! One device under two names would be read and billed twice.

use std::{fs, os::unix::fs::symlink, path::Path};

use meter_gateway::config::Shelf;

use super::*;

/// A configuration with two buses and a meter on each.
fn two(first: &str, second: &str, addresses: [&str; 2]) -> String {
    let head = VALID.split("[[bus]]").next().unwrap();
    let both = [("a", first, addresses[0]), ("b", second, addresses[1])].map(|(id, line, address)| {
        format!(
            "[[bus]]\nid = \"{id}\"\n{line}\n[[meter]]\nid = \"E-{id}\"\nbus = \"{id}\"\naddress = {address}\nprofile = \"eastron-sdm120\"\n"
        )
    });
    format!("{head}{}", both.concat())
}

fn tcp(address: &str) -> String {
    format!("kind = \"tcp\"\naddress = \"{address}\"")
}

fn serial(device: &Path) -> String {
    format!("kind = \"serial\"\ndevice = \"{}\"", device.display())
}

/// A configuration and the machine's hosts file.
struct Texts(String);

impl Shelf for Texts {
    fn read(&self, path: &Path) -> std::io::Result<Vec<u8>> {
        if path == Path::new("/etc/hosts") {
            return Ok(b"10.0.0.5  Plant-Server.site plant-server\n10.0.0.6 other\n".into());
        }
        Ok(self.0.clone().into())
    }

    fn list(&self, _: &Path) -> std::io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

fn with_hosts(text: String) -> Result<Settings, Vec<Fault>> {
    config::load_from(&Texts(text), Path::new("gateway.toml"), None)
}

#[test]
fn one_tcp_endpoint_on_two_buses_is_one_device_however_it_is_spelled() {
    for (first, second) in [
        ("127.0.0.1:5020", "127.0.0.1:5020"),
        ("localhost:5020", "127.0.0.1:5020"),
        ("LOCALHOST.:5020", "[::1]:5020"),
        ("[0:0:0:0:0:0:0:1]:5020", "[::1]:5020"),
        ("127.0.0.1:05020", "127.0.0.1:5020"),
        ("[::ffff:10.0.0.9]:502", "10.0.0.9:502"),
        ("Converter.site:502", "converter.SITE.:502"),
        ("plant-server:502", "10.0.0.5:502"),
        ("PLANT-SERVER.site:502", "plant-server:502"),
    ] {
        for unit in ["\"1\"", "\"01\"", "1", "0x1"] {
            let found = with_hosts(two(&tcp(first), &tcp(second), ["\"1\"", unit])).unwrap_err();
            let [fault] = found.as_slice() else { panic!("{first} {second}: {}", said(&found)) };
            assert_eq!(fault.place, "meter[2] (E-b).address", "{fault}");
            assert!(
                fault.message.contains("meter[1] (E-a)") && fault.message.contains("billed twice"),
                "{fault}"
            );
        }
        let settings = with_hosts(two(&tcp(first), &tcp(second), ["\"1\"", "\"2\""])).unwrap();
        let [warning] = settings.warnings.as_slice() else { panic!("{:?}", settings.warnings) };
        assert_eq!(warning.place, "bus[2] (b).address");
        assert!(warning.message.contains("bus[1] (a)"), "{warning}");
    }
    for (first, second) in [
        ("10.0.0.5:502", "10.0.0.6:502"),
        ("10.0.0.5:502", "10.0.0.5:503"),
        ("plant-server:502", "other:502"),
        ("a.example:502", "b.example:502"),
    ] {
        let settings = with_hosts(two(&tcp(first), &tcp(second), ["\"1\"", "\"1\""])).unwrap();
        assert!(settings.warnings.is_empty(), "{first} {second}: {:?}", settings.warnings);
    }
}

#[test]
fn a_serial_server_by_two_names_has_two_masters() {
    let server = |address: &str| format!("{}\nframing = \"serial\"", tcp(address));
    let found = with_hosts(two(&server("plant-server:4001"), &tcp("10.0.0.5:4001"), ["1", "2"])).unwrap_err();
    let [fault] = found.as_slice() else { panic!("{}", said(&found)) };
    assert_eq!(fault.place, "bus[2] (b).address");
    assert!(fault.message.contains("bus[1] (a)") && fault.message.contains("plant-server:4001"), "{fault}");
}

#[test]
fn one_serial_device_under_two_names_is_one_line() {
    let dir = TempDir::new().unwrap();
    let by_id = dir.path().join("by-id");
    fs::create_dir(&by_id).unwrap();
    let unplugged = dir.path().join("ttyUSB0");
    symlink("../ttyUSB0", by_id.join("unplugged")).unwrap();
    symlink("/dev/null", dir.path().join("ttyUSB1")).unwrap();
    symlink("../ttyUSB1", by_id.join("plugged")).unwrap();
    for (first, second) in [
        (unplugged.clone(), by_id.join("unplugged")),
        (by_id.join("unplugged"), by_id.join("../by-id/./../ttyUSB0")),
        (by_id.join("plugged"), "/dev/null".into()),
        ("/dev/null".into(), "/dev/../dev/null".into()),
    ] {
        let found = load(&two(&serial(&first), &serial(&second), ["1", "2"])).unwrap_err();
        let [fault] = found.as_slice() else { panic!("{first:?} {second:?}: {}", said(&found)) };
        assert_eq!(fault.place, "bus[2] (b).device");
        assert!(fault.message.contains(&first.display().to_string()), "{fault}");
        let found = load(&two(&serial(&first), &serial(&second), ["1", "1"])).unwrap_err();
        assert_eq!(found.len(), 2, "the bus, and the meter that stands there twice: {}", said(&found));
    }
    let other = load(&two(&serial(&unplugged), &serial(&dir.path().join("ttyUSB2")), ["1", "1"]));
    assert!(other.is_ok(), "{other:?}");
}

#[test]
fn the_cases_of_the_field() {
    for case in ["127.0.0.1:5020", "localhost:5020"] {
        let line = |address: &str| format!("{}\nframing = \"tcp\"\ntimeout_ms = 300", tcp(address));
        let found = load(&two(&line(case), &line("127.0.0.1:5020"), ["\"1\"", "\"1\""])).unwrap_err();
        assert!(said(&found).contains("already that of meter[1] (E-a) on bus a"), "{}", said(&found));
    }
}

#[test]
fn one_serial_number_twice_is_worth_a_look() {
    let text =
        two(&tcp("10.0.0.5:502"), &tcp("10.0.0.6:502"), ["1\nserial = \"0071\"", "1\nserial = \"0071\""]);
    let settings = load(&text).unwrap();
    let [warning] = settings.warnings.as_slice() else { panic!("{:?}", settings.warnings) };
    assert_eq!(warning.place, "meter[2] (E-b).serial");
    assert!(warning.message.contains("meter[1] (E-a)"), "{warning}");
    assert!(load(&text.replacen("0071", "0072", 1)).unwrap().warnings.is_empty());
}
