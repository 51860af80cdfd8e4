//! SIGHUP: a new configuration is taken over as far as a reload can, or refused as a whole.
//!
//! Says once what came of it; what is refused is a warning until a good one follows.

use std::{future::pending, path::PathBuf, sync::Arc};

use tokio::sync::oneshot;

use super::{
    Daemon,
    changes::{Changes, Takes},
    log_warnings, past,
};
use crate::{
    config::{self, Fault, Settings},
    model,
};

/// Faults that the line in the log and the warning name; `check` has them all.
const NAMED_FAULTS: usize = 20;
/// Code of the warning.
const REFUSED: &str = "configuration_refused";

/// A configuration that is being read. On a thread of its own: the file system may be slow, and neither the watchdog nor the
/// end of the daemon waits for it.
pub(super) struct Reading(oneshot::Receiver<Result<Settings, Vec<Fault>>>);

/// Begins to read the configuration at `path`.
pub(super) fn read(path: PathBuf) -> Reading {
    let (done, result) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = done.send(config::load(&path, config::environment()));
    });
    Reading(result)
}

/// What was read, once; never while nothing is being read.
pub(super) async fn finished(reading: &mut Option<Reading>) -> Result<Settings, String> {
    let Some(Reading(result)) = reading else { return pending().await };
    let result = result.await;
    *reading = None;
    match result {
        Ok(Ok(settings)) => Ok(settings),
        Ok(Err(faults)) => Err(named(&faults)),
        Err(_) => Err("it could not be read: an error of the program".into()),
    }
}

impl Daemon {
    /// Takes over what was read. What is faulty or takes a restart is refused as a whole: the old configuration stays.
    pub(super) async fn reload(&mut self, read: Result<Settings, String>) {
        let settings = match read {
            Ok(settings) => Arc::new(settings),
            Err(faults) => return self.refuse(&faults),
        };
        let old = self.house.telemetry().settings();
        let changes = Changes::between(&old, &settings);
        if let Some(keys) = changes.refusal() {
            return self.refuse(&format!("these keys cannot be changed without a restart: {keys}"));
        }
        if settings.hash == old.hash {
            tracing::info!("the configuration has not changed");
        } else {
            self.take_over(settings, &changes).await;
        }
        self.house.telemetry().warn(REFUSED, None);
        self.refused = false;
    }

    async fn take_over(&mut self, settings: Arc<Settings>, changes: &Changes) {
        log_warnings(&settings);
        if self.house.take_over(Arc::clone(&settings)).await {
            past::note_configuration(&settings.gateway.data_dir, &settings.hash);
        }
        if changes.any(Takes::Listener) {
            self.listeners.listen(settings.console.as_ref().map(|console| console.listen)).await;
        }
        tracing::info!(
            meters = settings.meters.len(),
            buses = settings.buses.len(),
            changed = changes.keys(),
            "the new configuration is in force"
        );
    }

    fn refuse(&mut self, why: &str) {
        tracing::error!("the new configuration is refused, the old one stays in force: {why}");
        let text =
            format!("the configuration on disk is not the one in force, the last reload refused it: {why}");
        self.house.telemetry().warn(REFUSED, Some(text));
        self.refused = true;
    }
}

/// The first faults, in one line.
fn named(faults: &[Fault]) -> String {
    let mut texts: Vec<String> =
        faults.iter().take(NAMED_FAULTS).map(|fault| model::in_one_line(&fault.to_string())).collect();
    if let Some(more) = faults.len().checked_sub(NAMED_FAULTS).filter(|more| *more > 0) {
        texts.push(format!("{more} more, `meter-gateway check` names them"));
    }
    texts.join("; ")
}
