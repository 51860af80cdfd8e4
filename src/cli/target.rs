//! Which gateway a command is about. Its data directory is enough to ask it: a configuration file that became faulty
//! while the gateway reads on with the one it has must not keep anybody from looking at it.

use std::{
    cell::Cell,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono_tz::Tz;
use serde_json::Value;

use super::{Faulty, client::Daemon, foreign_owner, no};
use crate::{
    clock::{Clock, SystemClock},
    config::{self, Essentials, Fault, Settings},
    ledger::{FileLedger, Options},
};

/// A gateway of this machine.
pub struct Target {
    dir: PathBuf,
    config: PathBuf,
    settings: Result<Settings, Vec<Fault>>,
    essentials: Essentials,
    /// Nothing needs to be said about the file: it is not there, and the directory was named instead.
    no_file: bool,
    warned: Cell<bool>,
}

/// A gateway that answers.
pub struct Running {
    pub daemon: Daemon,
    /// What it said of itself when it was asked first.
    pub status: Value,
}

/// Whom to ask what only one of them can answer.
pub enum Source {
    Gateway(Running),
    Store(Arc<FileLedger>),
}

impl Target {
    /// The gateway of this configuration, or of the directory where one was named.
    pub fn of(config: &Path, data_dir: Option<PathBuf>) -> anyhow::Result<Target> {
        let settings = config::load(config, config::environment());
        let essentials = config::essentials(config, config::environment());
        let no_file =
            data_dir.is_some() && config.metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound);
        let known = settings.as_ref().ok().map(|settings| settings.gateway.data_dir.clone());
        let Some(dir) = data_dir.or(known).or_else(|| essentials.data_dir.clone()) else {
            return Err(Faulty(settings.err().unwrap_or_default()).into());
        };
        Ok(Target { dir, config: config.to_owned(), settings, essentials, no_file, warned: Cell::new(false) })
    }

    /// For what cannot be done without a faultless configuration.
    pub fn settings(&self) -> anyhow::Result<&Settings> {
        self.settings.as_ref().map_err(|faults| Faulty(faults.clone()).into())
    }

    /// For what needs the stored data alone.
    pub fn dir(&self) -> &Path {
        self.warn(None);
        &self.dir
    }

    /// The same, for what makes no sense before anything was recorded.
    pub fn recorded(&self) -> anyhow::Result<&Path> {
        let dir = self.dir();
        match std::fs::metadata(dir.join("ledger")) {
            Ok(_) => Ok(dir),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                no(format!("{}: nothing has been recorded here yet", dir.display()))
            }
            Err(error) => no(format!("{}: {error}", dir.join("ledger").display())),
        }
    }

    /// The running gateway; `None` when none runs here. Says on standard error where it and the file differ.
    pub async fn running(&self) -> anyhow::Result<Option<Running>> {
        let Some(mut daemon) = Daemon::connect(&self.dir).await? else { return Ok(None) };
        let status = daemon.get_json("/api/v1/status").await?;
        self.warn(Some(&status));
        Ok(Some(Running { daemon, status }))
    }

    /// The running gateway, or its store when none runs.
    pub async fn source(&self) -> anyhow::Result<Source> {
        if let Some(running) = self.running().await? {
            return Ok(Source::Gateway(running));
        }
        let dir = self.recorded()?;
        if let Some(owner) = foreign_owner(dir) {
            return no(format!(
                "{}: no daemon runs, and the store belongs to user {owner}\n  hint: start the daemon, or run this as that user",
                dir.display()
            ));
        }
        let options = Options { now: SystemClock::new().wall(), may_replace: false, ..Options::default() };
        let (ledger, incidents) = FileLedger::open(dir, options)?;
        for incident in incidents {
            note!("warning: {incident}");
        }
        Ok(Source::Store(ledger))
    }

    /// Says once what is wrong with the file.
    fn warn(&self, status: Option<&Value>) {
        if self.warned.replace(true) {
            return;
        }
        for note in self.notes(status) {
            note!("warning: {note}");
        }
    }

    /// What is wrong with the file, for who asks a gateway with this status or looks at stored data.
    pub fn notes(&self, status: Option<&Value>) -> Vec<String> {
        let in_force = status.and_then(|status| status.get("configuration")?.as_str());
        let note = match &self.settings {
            Ok(settings) if in_force.is_some_and(|in_force| in_force != settings.hash) => Some(format!(
                "{} is not what the running gateway works with: it was changed and not reloaded, or another file was given\n  \
                 hint: systemctl reload meter-gateway",
                self.config.display()
            )),
            Err(faults) if !self.no_file => faulty(faults, &self.config, status.is_some()),
            Ok(_) | Err(_) => None,
        };
        note.into_iter().collect()
    }

    /// The site's time zone; UTC where nothing says it.
    pub fn zone(&self, running: Option<&Running>) -> Tz {
        let told = running.and_then(|running| running.status.get("timezone")?.as_str()?.parse().ok());
        let typed = || Some(self.settings.as_ref().ok()?.site.timezone);
        told.or_else(typed).or(self.essentials.timezone).unwrap_or_else(|| {
            note!("warning: the time zone of the site is not known here: times are in UTC");
            Tz::UTC
        })
    }

    /// The gateway's id, as far as it is known.
    pub fn gateway(&self, running: Option<&Running>) -> Option<String> {
        let told = running.and_then(|running| Some(running.status.get("gateway")?.as_str()?.to_owned()));
        told.or_else(|| Some(self.settings.as_ref().ok()?.gateway.id.clone()))
            .or_else(|| self.essentials.gateway.clone())
    }
}

/// The first fault, how many there are, and what that means for a gateway that runs.
fn faulty(faults: &[Fault], config: &Path, runs: bool) -> Option<String> {
    let first = faults.first()?;
    let others = match faults.len() {
        1 => String::new(),
        2 => ", and 1 more fault".into(),
        all => format!(", and {} more faults", all - 1),
    };
    let place = if first.place.is_empty() { String::new() } else { format!("{}: ", first.place) };
    let goes_on = if runs { "; the running gateway goes on with the configuration that it has" } else { "" };
    Some(format!(
        "the file on disk is faulty: {}: {place}{}{others}{goes_on}\n  hint: meter-gateway --config {} check",
        first.file,
        first.message,
        config.display()
    ))
}
