//! What differs between the configuration in force and a new one, and what each difference takes.
//!
//! Pure. Every key has its class here: a field of the settings without one does not compile.

use std::{fmt::Display, path::PathBuf};

use crate::config::{Billing, Console, Gateway, Mqtt, ReadingRules, Settings, Site, Tls};

/// What a changed key takes until it is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// The daemon has to be started again: what is on disk and in records is named by it, or was opened by it.
    Restart,
    /// A new connection to the broker.
    Publisher,
    /// A new listener.
    Listener,
    /// Nothing that the buses do not do at each reload: they start again, and everybody else looks it up when it is needed.
    Nothing,
}

/// One key whose value differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// Its path.
    pub key: &'static str,
    /// What it takes.
    pub takes: Takes,
    /// `old → new` of what takes a restart. None of these is a secret.
    pub values: String,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Changes(Vec<Change>);

impl Changes {
    /// Compares key by key.
    pub(super) fn between(old: &Settings, new: &Settings) -> Changes {
        use Takes::Nothing;
        let Settings {
            site,
            gateway,
            reading,
            mqtt,
            console,
            billing,
            buses,
            meters,
            warnings: _,
            hash: _,
            files: _,
        } = old;
        let mut changes = Changes::default();

        let Site { id, name, timezone } = site;
        changes.restart("site.id", id, &new.site.id);
        changes.compare("site.name", Nothing, name, &new.site.name);
        changes.restart("site.timezone", timezone, new.site.timezone);

        let Gateway { id, data_dir, reserve_bytes, mirror_dir } = gateway;
        changes.restart("gateway.id", id, &new.gateway.id);
        changes.restart("gateway.data_dir", data_dir.display(), new.gateway.data_dir.display());
        let megabytes = |bytes: u64| bytes / 1_000_000;
        changes.restart(
            "gateway.reserve_mb",
            megabytes(*reserve_bytes),
            megabytes(new.gateway.reserve_bytes),
        );
        let dir =
            |dir: &Option<PathBuf>| dir.as_ref().map_or("not set".into(), |dir| dir.display().to_string());
        changes.restart("gateway.mirror_dir", dir(mirror_dir), dir(&new.gateway.mirror_dir));

        let ReadingRules { interval_secs, retention_days } = reading;
        changes.compare("reading.interval_secs", Nothing, interval_secs, &new.reading.interval_secs);
        changes.compare("reading.retention_days", Nothing, retention_days, &new.reading.retention_days);

        changes.mqtt(mqtt, &new.mqtt);
        changes.console(console.as_ref(), new.console.as_ref());

        let Billing { day, time, window_hours } = billing;
        changes.compare("billing.day", Nothing, day, &new.billing.day);
        changes.compare("billing.time", Nothing, time, &new.billing.time);
        changes.compare("billing.window_hours", Nothing, window_hours, &new.billing.window_hours);

        // Lists, the meters file and profiles: whole tables are compared.
        changes.compare("bus", Nothing, buses, &new.buses);
        changes.compare("meter", Nothing, meters, &new.meters);
        changes
    }

    fn mqtt(&mut self, old: &Mqtt, new: &Mqtt) {
        use Takes::Publisher;
        let Mqtt { host, port, tls, version, topic_prefix, client_id, username, password_file, confirm } =
            old;
        let url = (host, port, tls.is_some());
        self.compare("mqtt.url", Publisher, &url, &(&new.host, &new.port, new.tls.is_some()));
        self.compare("mqtt.version", Publisher, version, &new.version);
        self.compare("mqtt.topic_prefix", Publisher, topic_prefix, &new.topic_prefix);
        self.compare("mqtt.client_id", Publisher, client_id, &new.client_id);
        self.compare("mqtt.username", Publisher, username, &new.username);
        self.compare("mqtt.password_file", Publisher, password_file, &new.password_file);
        let none = Tls::default();
        let Tls { ca_file, cert_file, key_file } = tls.as_ref().unwrap_or(&none);
        let new_tls = new.tls.as_ref().unwrap_or(&none);
        self.compare("mqtt.ca_file", Publisher, ca_file, &new_tls.ca_file);
        self.compare("mqtt.cert_file", Publisher, cert_file, &new_tls.cert_file);
        self.compare("mqtt.key_file", Publisher, key_file, &new_tls.key_file);
        self.compare("mqtt.confirm", Publisher, confirm, &new.confirm);
    }

    /// Names and rights are looked up at each request.
    fn console(&mut self, old: Option<&Console>, new: Option<&Console>) {
        use Takes::{Listener, Nothing};
        self.compare("console.listen", Listener, &old.map(|old| old.listen), &new.map(|new| new.listen));
        let (Some(Console { listen: _, hosts, actions }), Some(new)) = (old, new) else { return };
        self.compare("console.hosts", Nothing, hosts, &new.hosts);
        self.compare("console.actions", Nothing, actions, &new.actions);
    }

    fn compare<T: PartialEq + ?Sized>(&mut self, key: &'static str, takes: Takes, old: &T, new: &T) {
        if old != new {
            self.0.push(Change { key, takes, values: String::new() });
        }
    }

    fn restart(&mut self, key: &'static str, old: impl Display, new: impl Display) {
        let (old, new) = (old.to_string(), new.to_string());
        if old != new {
            self.0.push(Change { key, takes: Takes::Restart, values: format!("{old} → {new}") });
        }
    }

    /// Whether anything takes this.
    pub(super) fn any(&self, takes: Takes) -> bool {
        self.0.iter().any(|change| change.takes == takes)
    }

    /// Those that take a restart, with their values; `None` when a reload can take over everything.
    pub(super) fn refusal(&self) -> Option<String> {
        let named: Vec<String> = self
            .0
            .iter()
            .filter(|change| change.takes == Takes::Restart)
            .map(|Change { key, values, .. }| format!("{key}: {values}"))
            .collect();
        (!named.is_empty()).then(|| named.join("; "))
    }

    /// The paths of all.
    pub(super) fn keys(&self) -> String {
        self.0.iter().map(|change| change.key).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;
    use crate::config;

    const BEFORE: &str = r#"
[site]
id = "riverside"
name = "Riverside"
timezone = "Asia/Shanghai"
[gateway]
id = "gw-01"
data_dir = "data"
reserve_mb = 64
mirror_dir = "mirror"
[reading]
interval_secs = 900
retention_days = 1100
[mqtt]
url = "mqtts://broker.example"
version = "5"
topic_prefix = "metering/v1"
client_id = "gw-01"
username = "gw-01"
password_file = "one"
ca_file = "one.crt"
cert_file = "one.crt"
key_file = "one.key"
confirm = "broker"
[billing]
day = 1
time = "00:00"
window_hours = 72
[console]
listen = "127.0.0.1:8420"
hosts = ["meters.example"]
actions = "all"
[[bus]]
id = "plant"
kind = "tcp"
address = "10.0.0.5:502"
[[meter]]
id = "E-1"
bus = "plant"
address = "1"
profile = "eastron-sdm120"
interval_secs = 60
"#;

    /// Key, what stands there, what is written instead, and what that takes.
    const KEYS: [(&str, &str, &str, Takes); 26] = [
        ("site.id", "id = \"riverside\"", "id = \"lakeside\"", Takes::Restart),
        ("site.name", "\"Riverside\"", "\"Lakeside\"", Takes::Nothing),
        ("site.timezone", "Asia/Shanghai", "Europe/Zurich", Takes::Restart),
        ("gateway.id", "[gateway]\nid = \"gw-01\"", "[gateway]\nid = \"gw-02\"", Takes::Restart),
        ("gateway.data_dir", "data_dir = \"data\"", "data_dir = \"elsewhere\"", Takes::Restart),
        ("gateway.reserve_mb", "reserve_mb = 64", "reserve_mb = 65", Takes::Restart),
        ("gateway.mirror_dir", "mirror_dir = \"mirror\"", "", Takes::Restart),
        ("reading.interval_secs", "interval_secs = 900", "interval_secs = 300", Takes::Nothing),
        ("reading.retention_days", "retention_days = 1100", "retention_days = 1000", Takes::Nothing),
        ("mqtt.url", "mqtts://broker.example", "mqtts://broker.example:8884", Takes::Publisher),
        ("mqtt.version", "version = \"5\"", "version = \"3.1.1\"", Takes::Publisher),
        ("mqtt.topic_prefix", "metering/v1", "metering/v2", Takes::Publisher),
        ("mqtt.client_id", "client_id = \"gw-01\"", "client_id = \"gw-02\"", Takes::Publisher),
        ("mqtt.username", "username = \"gw-01\"", "username = \"gw-02\"", Takes::Publisher),
        ("mqtt.password_file", "password_file = \"one\"", "password_file = \"two\"", Takes::Publisher),
        ("mqtt.ca_file", "ca_file = \"one.crt\"", "ca_file = \"two.crt\"", Takes::Publisher),
        ("mqtt.cert_file", "cert_file = \"one.crt\"", "cert_file = \"two.crt\"", Takes::Publisher),
        ("mqtt.key_file", "key_file = \"one.key\"", "key_file = \"two.key\"", Takes::Publisher),
        ("mqtt.confirm", "confirm = \"broker\"", "confirm = \"billing\"", Takes::Publisher),
        ("billing.day", "day = 1", "day = 2", Takes::Nothing),
        ("billing.time", "00:00", "06:00", Takes::Nothing),
        ("billing.window_hours", "window_hours = 72", "window_hours = 71", Takes::Nothing),
        ("console.listen", "127.0.0.1:8420", "127.0.0.1:8421", Takes::Listener),
        ("console.hosts", "[\"meters.example\"]", "[]", Takes::Nothing),
        ("console.actions", "actions = \"all\"", "actions = \"socket\"", Takes::Nothing),
        ("bus", "10.0.0.5:502", "10.0.0.6:502", Takes::Nothing),
    ];

    fn settings(dir: &Path, text: &str) -> Settings {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        for name in ["one", "two"] {
            fs::write(dir.join(name), "secret").unwrap();
            fs::write(dir.join(format!("{name}.crt")), made.cert.pem()).unwrap();
            fs::write(dir.join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
        }
        fs::write(dir.join("gateway.toml"), text).unwrap();
        config::load(&dir.join("gateway.toml"), []).unwrap()
    }

    #[test]
    fn every_key_of_the_configuration_has_its_class() {
        let dir = tempfile::tempdir().unwrap();
        let before = settings(dir.path(), BEFORE);
        for (key, old, new, takes) in KEYS {
            assert_eq!(BEFORE.matches(old).count(), 1, "{old} is not once in the text");
            let after = settings(dir.path(), &BEFORE.replace(old, new));
            let Changes(changes) = Changes::between(&before, &after);
            let found: Vec<_> = changes.iter().map(|change| (change.key, change.takes)).collect();
            assert_eq!(found, [(key, takes)], "{changes:?}");
            assert_ne!(before.hash, after.hash);
        }
        // Lists, the meters file and profiles end in `bus` and `meter`.
        let tested: BTreeSet<String> =
            KEYS.iter().map(|(key, ..)| (*key).to_owned()).filter(|key| key != "bus").collect();
        assert_eq!(tested, config::section_keys(), "each key of a section is in the table above");
    }

    #[test]
    fn what_takes_a_restart_is_named_with_old_and_new_values() {
        let dir = tempfile::tempdir().unwrap();
        let before = settings(dir.path(), BEFORE);
        let text = BEFORE
            .replace("riverside", "lakeside")
            .replace("mirror_dir = \"mirror\"", "")
            .replace("E-1", "E-2");
        let changes = Changes::between(&before, &settings(dir.path(), &text));
        let mirror = dir.path().join("mirror");
        assert_eq!(
            changes.refusal().unwrap(),
            format!("site.id: riverside → lakeside; gateway.mirror_dir: {} → not set", mirror.display())
        );
        assert_eq!(changes.keys(), "site.id, gateway.mirror_dir, meter");
        assert!(Changes::between(&before, &before).refusal().is_none());
    }
}
