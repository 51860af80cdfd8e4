//! How many files this process may open, and whether that is enough for what must never wait: lines, publisher, ledger.
//!
//! What serves people gets the rest: `console::server`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{config::Settings, telemetry::Telemetry};

/// Open files that are asked for at most: sixty-four connections at each listener and a thousand buses.
const MOST_FILES: u64 = 4096;
/// Without buses and connections: sixteen are open at rest; the publisher, a segment of each reader, the index and the second copy.
const OWN_FILES: u64 = 40;
/// A bus: its line and its timer.
const FILES_PER_BUS: u64 = 2;

/// Takes as many as the system lets us have without asking anybody.
pub(super) fn raise() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(MOST_FILES).min(MOST_FILES);
    if current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::debug!(%error, "the limit of open files stays as it is"); // a sandbox; what there is may be enough
    }
}

/// Warns while there are fewer than this configuration needs. Half is left to connections.
pub(super) fn check(telemetry: &Telemetry, settings: &Settings) {
    let needed = 2 * (OWN_FILES + FILES_PER_BUS * settings.buses.len() as u64);
    let few = getrlimit(Resource::Nofile).current.filter(|current| *current < needed);
    let text = few.map(|current| {
        format!(
            "this process may open {current} files and wants {needed} for {} buses: set LimitNOFILE={needed} in the unit, or `ulimit -n`",
            settings.buses.len()
        )
    });
    if let Some(text) = &text {
        tracing::warn!("{text}");
    }
    telemetry.warn("few_files", text);
}
