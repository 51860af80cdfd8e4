//! Who may read and reach what the gateway makes: its owner, whatever the umask of whoever starts it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

#[path = "common/gateway.rs"]
mod gateway;

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use gateway::Gateway;

const METER: &str = "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:1\"\n\
    [[meter]]\nid = \"E-1\"\nbus = \"plant\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n";

/// Everything in a directory that somebody else may read, write or enter.
fn open_to_others(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut look = vec![dir.to_owned()];
    while let Some(path) = look.pop() {
        let about = fs::symlink_metadata(&path).unwrap();
        if about.mode() & 0o077 != 0 {
            found.push((path.clone(), format!("{:o}", about.mode() & 0o7777)));
        }
        if about.is_dir() {
            look.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

#[test]
fn nothing_that_is_kept_is_open_to_others_whatever_the_umask() {
    let mut gateway = Gateway::configured(1, 1, METER);
    let text = fs::read_to_string(gateway.config()).unwrap();
    let mirror = gateway.path("mirror");
    fs::write(gateway.config(), text.replace("[reading]", "mirror_dir = \"mirror\"\n[reading]")).unwrap();
    fs::create_dir(&mirror).unwrap();
    fs::set_permissions(&mirror, Permissions::from_mode(0o700)).unwrap();
    // A lock that an earlier version left to the umask.
    fs::create_dir(gateway.path("data")).unwrap();
    fs::set_permissions(gateway.path("data"), Permissions::from_mode(0o700)).unwrap();
    fs::write(gateway.path("data/lock"), "").unwrap();
    fs::set_permissions(gateway.path("data/lock"), Permissions::from_mode(0o666)).unwrap();

    // Every child of this process has it; no other test shares the process.
    rustix::process::umask(rustix::fs::Mode::empty());
    gateway.start();
    gateway.until("a second copy", |status| status["mirror"]["stored_seq"].as_u64() > Some(0));
    assert_eq!(fs::metadata(gateway.socket()).unwrap().mode() & 0o7777, 0o600);
    let backup = gateway.path("backup");
    let made = gateway.cli(&["ledger", "backup", backup.to_str().unwrap()]);
    assert!(made.status.success(), "{made:?}");
    assert!(gateway.cli(&["identity", "rotate"]).status.success());
    assert!(gateway.terminate().0.success(), "{}", gateway.log());
    for dir in [gateway.path("data"), mirror, backup.clone()] {
        assert!(fs::read_dir(&dir).unwrap().count() > 0);
        assert_eq!(open_to_others(&dir), [], "{}", dir.display());
    }

    fs::remove_dir_all(gateway.path("data")).unwrap();
    assert!(gateway.cli(&["ledger", "restore", backup.to_str().unwrap()]).status.success());
    assert_eq!(open_to_others(&gateway.path("data")), []);
}
