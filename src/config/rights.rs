//! Who else on this machine may read or write what is the gateway's alone. Looks at the modes of files, and opens none.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use super::section::Section;

/// Who may write there may put records, keys or a socket of their own in the place of ours; who may read learns what people consume.
pub(super) fn private_dir(section: &Section, dir: &Path) {
    let Ok(about) = fs::metadata(dir) else { return }; // it is made when it is needed, and then it is private
    let mode = about.mode() & 0o7777;
    let hint = Some(format!("chmod 700 {}", dir.display()));
    let seen = format!("the directory {} has the mode {mode:04o}:", dir.display());
    if mode & 0o022 != 0 {
        section.fault(
            "data_dir",
            format!("{seen} others than its owner may write there, expected 0700"),
            hint,
        );
    } else if mode & 0o055 != 0 {
        section.warn("data_dir", format!("{seen} others than its owner may read there, expected 0700"), hint);
    }
}

/// A file that others may read is no secret.
pub(super) fn secret(section: &Section, key: &str, file: &Path) {
    let Ok(about) = fs::metadata(file) else { return }; // said already
    if about.mode() & 0o006 != 0 {
        let mode = about.mode() & 0o7777;
        let message = format!(
            "{} is a secret, and everybody on this machine may read it (mode {mode:04o})",
            file.display()
        );
        section.warn(key, message, Some(format!("chmod o-rwx {}", file.display())));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use crate::config::{Checked, check};

    #[test]
    fn what_others_may_write_is_refused_and_what_they_may_read_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("data")).unwrap();
        std::fs::write(at("password"), "secret").unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        std::fs::write(at("client.crt"), made.cert.pem()).unwrap();
        std::fs::write(at("client.key"), made.signing_key.serialize_pem()).unwrap();
        let text = "[site]\nid = \"a\"\ntimezone = \"UTC\"\n[gateway]\nid = \"b\"\ndata_dir = \"data\"\n\
            [mqtt]\nurl = \"mqtts://localhost\"\nusername = \"b\"\npassword_file = \"password\"\n\
            cert_file = \"client.crt\"\nkey_file = \"client.key\"\n";
        std::fs::write(at("gateway.toml"), text).unwrap();
        let found = |data: u32, password: u32, key: u32| {
            for (name, mode) in
                [("data", data), ("password", password), ("client.key", key), ("client.crt", 0o644)]
            {
                std::fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
            }
            let Checked { settings, warnings } = check(&at("gateway.toml"), []);
            let named = |faults: Vec<super::super::Fault>| {
                faults.into_iter().map(|fault| (fault.place, fault.hint.unwrap())).collect::<Vec<_>>()
            };
            (named(settings.err().unwrap_or_default()), named(warnings))
        };
        let line = |mode: &str, name: &str| format!("{mode} {}", at(name).display());
        let closed = ("gateway.data_dir".to_owned(), line("chmod 700", "data"));
        let password = ("mqtt.password_file".to_owned(), line("chmod o-rwx", "password"));
        let key = ("mqtt.key_file".to_owned(), line("chmod o-rwx", "client.key"));
        assert_eq!(found(0o700, 0o640, 0o600), (vec![], vec![]));
        for readable in [0o750, 0o755, 0o701] {
            assert_eq!(found(readable, 0o600, 0o600), (vec![], vec![closed.clone()]), "{readable:o}");
        }
        for writable in [0o770, 0o777, 0o722, 0o1777] {
            assert_eq!(found(writable, 0o600, 0o600), (vec![closed.clone()], vec![]), "{writable:o}");
        }
        assert_eq!(found(0o700, 0o644, 0o604), (vec![], vec![password, key]));
    }
}
