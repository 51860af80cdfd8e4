//! The meters file of a site that is otherwise faultless.
#![no_main]

use std::{
    io,
    path::{Path, PathBuf},
};

use libfuzzer_sys::fuzz_target;
use meter_gateway::config::{Shelf, load_from};

const SITE: &str = r#"
meters_file = "meters.csv"
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
"#;

struct Site<'a>(&'a [u8]);

impl Shelf for Site<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        match path.to_str() {
            Some("gateway.toml") => Ok(SITE.into()),
            Some("meters.csv") => Ok(self.0.to_vec()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

fuzz_target!(|data: &[u8]| {
    match load_from(&Site(data), Path::new("gateway.toml"), None) {
        // A quoted cell may hold line ends, so a row is a line at least.
        Ok(settings) => assert!(settings.meters.len() <= data.split(|b| matches!(b, b'\n' | b'\r')).count()),
        Err(faults) => assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.to_string().is_empty())),
    }
});
