//! The main file and one variable, as text. Faults are told; a faultless one is the same when it is read again.
#![no_main]

use std::{
    io,
    path::{Path, PathBuf},
};

use libfuzzer_sys::fuzz_target;
use meter_gateway::config::{Shelf, load_from};

struct One<'a>(&'a [u8]);

impl Shelf for One<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path == Path::new("gateway.toml") { Ok(self.0.to_vec()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

fuzz_target!(|data: &[u8]| {
    // A first line `#NAME=VALUE` is a variable of the environment.
    let variable = data
        .split(|byte| *byte == b'\n')
        .next()
        .and_then(|line| std::str::from_utf8(line).ok()?.strip_prefix('#')?.split_once('='))
        .map(|(name, value)| (format!("METER_GATEWAY__{name}"), value.to_owned()));
    let load = || load_from(&One(data), Path::new("gateway.toml"), variable.clone());
    match load() {
        Ok(settings) => {
            let again = load().expect("it was faultless just now");
            assert_eq!((settings.hash, settings.meters), (again.hash, again.meters));
        }
        Err(faults) => assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.to_string().is_empty())),
    }
});
