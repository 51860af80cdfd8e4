//! A Python for the programs in `examples/`, one that has what they import.

#![allow(missing_docs, clippy::unwrap_used)] // helpers of tests: a panic is their report

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The first that can import `module`: the one that is asked for, the one that `.ci/run` made, the system's.
pub fn with(module: &str) -> PathBuf {
    let given = std::env::var_os("METER_GATEWAY_TEST_PYTHON").map(PathBuf::from);
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/verify-venv/bin/python3");
    let known = given.into_iter().chain([venv, "python3".into(), "/usr/bin/python3".into()]);
    let import = format!("import {module}");
    let found = known.into_iter().find(|python| {
        Command::new(python).args(["-c", &import]).output().is_ok_and(|output| output.status.success())
    });
    found.unwrap_or_else(|| {
        let package = module.split('.').next().unwrap();
        panic!("the Python package `{package}` is needed: `.ci/run` installs it")
    })
}
