//! A second copy of the ledger on another path or device: when it is brought up to date, and how it fares.
//!
//! It reads the ledger's files and nothing waits for it: on a device that is away, full or hangs, the ledger goes on and
//! the copy catches up later. Knows pauses and words for the operator; what is in the files is `copy.rs`.

mod copy;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    LedgerError, MirrorState, Refusal,
    disk::{Disk, RealDisk},
    files::io_error,
    store::{Shared, lock},
};
use crate::model::Seq;
use copy::Copier;

/// One round a second: at most one fdatasync of the copy's open segment in it.
const ROUND: Duration = Duration::from_secs(1);
/// The first pause after a fault: a card that was only pushed is back at once. It doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// A card that is back is used within a minute.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A device that does not come back from one step for so long hangs: a card that cleans up takes seconds.
const STALL: Duration = Duration::from_secs(90);
/// How long the end of the daemon waits for the round under way.
const LAST_ROUND: Duration = Duration::from_millis(500);

/// Where the copy goes, and what may differ in tests.
#[derive(Debug, Clone)]
pub struct Options {
    /// A directory that exists: it is not made, so that a card which is not there is not filled in.
    pub dir: PathBuf,
    /// What it is on.
    pub disk: Arc<dyn Disk>,
    /// How often the ledger is looked at.
    pub round: Duration,
    /// The first and the longest pause after a fault.
    pub pauses: (Duration, Duration),
    /// When a step counts as hanging.
    pub stall: Duration,
}

impl Options {
    /// As the daemon has it.
    pub fn at(dir: &Path) -> Options {
        let pauses = (FIRST_PAUSE, LONGEST_PAUSE);
        Options { dir: dir.to_owned(), disk: Arc::new(RealDisk), round: ROUND, pauses, stall: STALL }
    }
}

/// What the copy's thread says of itself. Locked for moments only, never while a disk is asked.
pub(super) struct Progress {
    stop: AtomicBool,
    told: Mutex<Told>,
    turned: Condvar,
}

struct Told {
    dir: PathBuf,
    stored: Option<Seq>,
    fault: Option<(Instant, String)>,
    /// Since when the step under way lasts; `None` between rounds.
    step: Option<Instant>,
    /// That it hangs was logged.
    hangs: bool,
    ended: bool,
}

impl Progress {
    /// A step is done; the error says that there is to be no other.
    fn step(&self) -> Result<(), LedgerError> {
        lock(&self.told).step = Some(Instant::now());
        if self.stop.load(Ordering::SeqCst) { Err(LedgerError::Closed) } else { Ok(()) }
    }

    /// Under the lock: who is about to rest must not miss it.
    fn ask_to_end(&self) -> MutexGuard<'_, Told> {
        let told = lock(&self.told);
        self.stop.store(true, Ordering::SeqCst);
        self.turned.notify_all();
        told
    }

    /// So much is durable in the copy.
    fn stored(&self, dir: &Path, seq: Option<Seq>) {
        let mut told = lock(&self.told);
        if told.dir != dir {
            dir.clone_into(&mut told.dir);
        }
        told.stored = seq;
    }

    /// Waits, or until the end is asked for; false then.
    fn rest(&self, pause: Duration) -> bool {
        let mut told = lock(&self.told);
        told.step = None;
        let asked = |_: &mut Told| !self.stop.load(Ordering::SeqCst);
        drop(self.turned.wait_timeout_while(told, pause, asked).unwrap_or_else(PoisonError::into_inner));
        !self.stop.load(Ordering::SeqCst)
    }

    /// Once in the log for each time that it goes away, and once when it is back.
    fn judge(&self, outcome: Result<(), LedgerError>) {
        let mut told = lock(&self.told);
        told.step = None;
        if std::mem::take(&mut told.hangs) {
            tracing::info!(dir = %told.dir.display(), "the second copy of the ledger answers again");
        }
        let dir = told.dir.display().to_string();
        match (outcome, told.fault.as_mut()) {
            (Ok(()), None) => {}
            (Ok(()), Some((since, _))) => {
                let after_secs = since.elapsed().as_secs();
                told.fault = None;
                tracing::info!(dir, after_secs, "the second copy of the ledger is up to date again");
            }
            (Err(error), Some((_, reason))) => *reason = error.to_string(),
            (Err(error), None) => {
                tracing::error!(dir, %error, "the second copy of the ledger is away: recording goes on without it");
                told.fault = Some((Instant::now(), error.to_string()));
            }
        }
    }
}

/// The thread that keeps the copy.
pub(super) struct Mirror {
    progress: Arc<Progress>,
    stall: Duration,
}

impl Mirror {
    /// Starts it. Nothing is asked of the copy's device here: it may hang.
    pub fn start(shared: Arc<Shared>, options: Options) -> Result<Mirror, LedgerError> {
        let told = Told {
            dir: options.dir.clone(),
            stored: None,
            fault: None,
            step: None,
            hangs: false,
            ended: false,
        };
        let (stop, turned) = (AtomicBool::new(false), Condvar::new());
        let progress = Arc::new(Progress { stop, told: Mutex::new(told), turned });
        let stall = options.stall;
        let (seen, data_dir) = (Arc::clone(&progress), shared.data_dir.clone());
        let run = move || {
            let ended = Ended(seen);
            keep(&shared, &options, &ended.0);
        };
        thread::Builder::new().name("ledger-mirror".into()).spawn(run).map_err(io_error(&data_dir))?;
        Ok(Mirror { progress, stall })
    }

    /// As it is now, beside a ledger that ends at `head`.
    pub fn state(&self, head: Seq) -> MirrorState {
        let mut told = lock(&self.progress.told);
        let hangs = told.step.map(|since| since.elapsed()).filter(|lasting| *lasting > self.stall);
        if hangs.is_some() && !std::mem::replace(&mut told.hangs, true) {
            tracing::error!(dir = %told.dir.display(), "the second copy of the ledger hangs: recording goes on without it");
        }
        let fault = match (&told.fault, hangs) {
            (Some((since, reason)), _) => Some(Refusal { reason: reason.clone(), lasting: since.elapsed() }),
            (None, Some(lasting)) => {
                Some(Refusal { reason: "its device does not answer".to_owned(), lasting })
            }
            (None, None) => None,
        };
        let lag = head.saturating_sub(told.stored.unwrap_or_default());
        MirrorState { dir: told.dir.clone(), stored: told.stored, lag, fault }
    }

    /// Asks it to end, and waits a moment. One that hangs is left: it writes nothing more once it comes back.
    pub fn stop(&self) {
        let told = self.progress.ask_to_end();
        let dir = told.dir.clone();
        let wait = self.progress.turned.wait_timeout_while(told, LAST_ROUND, |told| !told.ended);
        if !wait.unwrap_or_else(PoisonError::into_inner).0.ended {
            tracing::warn!(dir = %dir.display(), "the second copy of the ledger does not answer at the end, and is left as it is");
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        drop(self.progress.ask_to_end());
    }
}

/// Says that the thread has ended, however it did.
struct Ended(Arc<Progress>);

impl Drop for Ended {
    fn drop(&mut self) {
        let mut told = lock(&self.0.told);
        (told.ended, told.step) = (true, None);
        if !self.0.stop.load(Ordering::SeqCst) {
            told.fault = Some((Instant::now(), "its thread has panicked\n  hint: restart the daemon".into()));
        }
        self.0.turned.notify_all();
    }
}

fn keep(shared: &Shared, options: &Options, progress: &Progress) {
    let mut copier = Copier::new(shared, options, progress);
    let (first, longest) = options.pauses;
    let mut pause = first;
    loop {
        let outcome = copier.round();
        if matches!(outcome, Err(LedgerError::Closed)) {
            return;
        }
        let well = outcome.is_ok();
        progress.judge(outcome);
        if !progress.rest(if well { options.round } else { pause }) {
            // What was stored while the daemon ended goes along, if the device lets it.
            if well {
                copier.last_round();
            }
            return;
        }
        pause = if well { first } else { (pause * 2).min(longest) };
    }
}
