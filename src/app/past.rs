//! What the house itself has to put on record: how long it was away, what it found damaged, what retention removed, what was
//! done by hand meanwhile.
//!
//! Decides nothing about readings; each is one `change` record.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::time::timeout;

use super::buses::first_slot;
use crate::{
    clock::Clock,
    config::Settings,
    ledger::{
        Cursor, FileLedger, LedgerError, Pruned, SharedLedger, chain::sha256_hex, disk::RealDisk, replace,
    },
    model::{ClockState, Draft, Slots, Utc, change, rfc3339},
    pipeline,
    telemetry::Telemetry,
};

/// How long the house waits for its own records to be stored.
pub(super) const LAST_RECORDS: Duration = Duration::from_millis(500);

/// One `change` record covers the slots that passed while the gateway was down; damage found is told too.
pub(super) async fn tell_of_the_past(
    ledger: &SharedLedger,
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    incidents: &[String],
) {
    let mut drafts = Vec::new();
    for incident in incidents {
        tracing::error!("the ledger was found damaged at the start: {incident}");
        drafts.extend(incident_drafts(incident, clock));
    }
    let now = clock.wall();
    let missed = settings.meters.iter().filter_map(|meter| {
        let slots = Slots::new(settings.site.timezone, meter.interval_secs).ok()?;
        let next = slots.next_after(ledger.latest_slot(&meter.id)?);
        (next < first_slot(slots, Some(next), now)).then_some(next)
    });
    if let Some(from) = missed.min() {
        let mut fields = Map::new();
        fields.insert("from".into(), rfc3339(from).into());
        fields.insert("to".into(), rfc3339(now).into());
        drafts.push(Draft::change(change::DOWNTIME, fields, now, clock.state()));
    }
    if !drafts.is_empty() {
        record(ledger, drafts).await;
    }
}

/// Something that went wrong in the ledger: what happened, and that somebody has to look into it.
pub(super) fn incident_drafts(incident: &str, clock: &Arc<dyn Clock>) -> [Draft; 2] {
    let (now, state) = (clock.wall(), clock.state());
    let detail = Map::from_iter([("detail".to_owned(), Value::from(incident))]);
    // The index is a cache, and was built again; still, a disk that ruined it may ruin more.
    let severity = if incident.starts_with("index:") { "warning" } else { "critical" };
    let id: String = "store-".chars().chain(sha256_hex(incident.as_bytes()).chars().take(16)).collect();
    let evidence = Map::from_iter([("evidence".to_owned(), Value::Object(detail.clone()))]);
    [
        Draft::change(change::LEDGER_INCIDENT, detail, now, state),
        Draft::raised((id, "store_incident", severity), evidence, now, state),
    ]
}

/// Code of the warning that nothing is removed although, by a clock that is not trusted, something is old.
const RETENTION_WAITS: &str = "retention_waits";

/// The hourly look for old segments. While the clock is not trusted nothing is removed, and the disk fills: the operator is
/// warned then, and as soon as something is old by that clock.
pub(super) async fn look_for_old(files: Arc<FileLedger>, telemetry: Arc<Telemetry>, before: Utc) {
    let clock = Arc::clone(&telemetry.clock);
    let waits = clock.state() == ClockState::Unsynced && {
        let files = Arc::clone(&files);
        matches!(tokio::task::spawn_blocking(move || files.has_older(before)).await, Ok(Ok(true)))
    };
    if waits && !telemetry.warnings().iter().any(|warning| warning.code == RETENTION_WAITS) {
        tracing::warn!("old records are kept, because the clock is not synchronised: the disk will fill");
    }
    let text = "records older than retention_days are kept, because the clock is not synchronised; the disk will fill: \
                make a time server reachable, or enlarge the disk";
    telemetry.warn(RETENTION_WAITS, waits.then(|| text.to_owned()));
    retain(files, Arc::clone(&telemetry.ledger), clock, before).await;
}

/// Removes whole segments that are older than `before` and that nobody needs any more, and says so. Nothing while the clock
/// is not trusted: how old anything is, is not known then.
pub async fn retain(files: Arc<FileLedger>, ledger: SharedLedger, clock: Arc<dyn Clock>, before: Utc) {
    let age = clock.wall() - before;
    if clock.state() == ClockState::Unsynced {
        return;
    }
    let free = ledger.cursor(Cursor::Acknowledged).min(ledger.cursor(Cursor::Confirmed));
    match tokio::task::spawn_blocking(move || files.prune(before, age, free)).await {
        Ok(Ok(removed)) => tell_of_retention(&ledger, &clock, &removed).await,
        Ok(Err(error)) => tracing::warn!(%error, "old segments could not be removed"),
        Err(error) => tracing::error!(%error, "old segments could not be removed: the task failed"),
    }
}

/// One `change` record for each run of records that retention has removed.
async fn tell_of_retention(ledger: &SharedLedger, clock: &Arc<dyn Clock>, removed: &[Pruned]) {
    let drafts: Vec<Draft> = Pruned::runs(removed)
        .into_iter()
        .map(|(segments, run)| {
            tracing::info!(segments, seq = run.first, to = run.last, "old segments removed");
            let mut fields = Map::new();
            fields.insert("segments".into(), segments.into());
            fields.insert("first_seq".into(), run.first.into());
            fields.insert("last_seq".into(), run.last.into());
            fields.insert("last_hash".into(), run.last_hash.into());
            Draft::change(change::RETENTION, fields, clock.wall(), clock.state())
        })
        .collect();
    if !drafts.is_empty() {
        pipeline::append(ledger, drafts).await;
    }
}

/// Appends what the house itself has to say. On a full disk it goes on trying by itself: start, supervision and
/// signals must not wait for it. True when it is known to be stored.
pub(super) async fn record(ledger: &SharedLedger, drafts: Vec<Draft>) -> bool {
    let ledger = Arc::clone(ledger);
    let stored = tokio::spawn(async move {
        if ledger.append(drafts.clone()).await.is_ok() {
            return true;
        }
        pipeline::append(&ledger, drafts).await;
        false
    });
    matches!(timeout(LAST_RECORDS, stored).await, Ok(Ok(true)))
}

/// What the command line did while no daemon ran, until it is on record.
const NOTE: &str = "to-be-recorded.json";
/// The hash of the configuration that was last in force.
const CONFIGURATION: &str = "configuration.hash";

/// Leaves the fields of a `user_action` for the next start to put on record.
pub fn leave_note(dir: &Path, fields: &Map<String, Value>) -> Result<(), LedgerError> {
    replace(&RealDisk, dir, NOTE, Value::from(fields.clone()).to_string().as_bytes())
}

/// Puts on record what happened to the configuration and to the data while no daemon ran.
pub(super) async fn tell_of_hands(
    ledger: &SharedLedger,
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    empty: bool,
) {
    let dir = &settings.gateway.data_dir;
    let mut drafts = Vec::new();
    let note = std::fs::read(dir.join(NOTE)).ok();
    if let Some(Ok(fields)) = note.as_deref().map(serde_json::from_slice::<Map<String, Value>>) {
        drafts.push(Draft::change(change::USER_ACTION, fields, clock.wall(), clock.state()));
    }
    let before = std::fs::read_to_string(dir.join(CONFIGURATION)).ok();
    if before.as_deref() != Some(&settings.hash) && !(before.is_none() && empty) {
        let fields = configuration(before.as_deref(), &settings.hash);
        drafts.push(Draft::change(change::CONFIGURATION, fields, clock.wall(), clock.state()));
    }
    // What may not be stored is told once more at the next start: twice is better than not at all.
    if drafts.is_empty() || record(ledger, drafts).await {
        note_configuration(dir, &settings.hash);
        if note.is_some()
            && let Err(error) = std::fs::remove_file(dir.join(NOTE))
        {
            tracing::warn!(%error, "what was done while the daemon was down is on record but could not be crossed off, and is recorded again at the next start");
        }
    }
}

/// The fields of a `configuration` record.
pub(super) fn configuration(before: Option<&str>, after: &str) -> Map<String, Value> {
    Map::from_iter([("before".to_owned(), before.into()), ("after".to_owned(), after.into())])
}

/// Notes which configuration is on record. Where that fails, the next start tells of it once more.
pub(super) fn note_configuration(dir: &Path, hash: &str) {
    if let Err(error) = replace(&RealDisk, dir, CONFIGURATION, hash.as_bytes()) {
        tracing::warn!(%error, "the configuration in force could not be noted");
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::{
        clock::SimulatedClock,
        ledger::{Ledger, MirrorOptions, Options},
    };

    const FOUR_YEARS: TimeDelta = TimeDelta::days(4 * 365);

    struct Site {
        dir: tempfile::TempDir,
        mirror: tempfile::TempDir,
        files: Arc<FileLedger>,
        clock: Arc<SimulatedClock>,
    }

    impl Site {
        fn new(state: ClockState) -> Site {
            let (dir, mirror) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let start = "2026-11-28T12:00:00Z".parse().unwrap();
            let files = open(&dir, &mirror);
            Site { dir, mirror, files, clock: Arc::new(SimulatedClock::starting_at(start, state)) }
        }

        fn clock(&self) -> Arc<dyn Clock> {
            Arc::clone(&self.clock) as _
        }

        /// So many records, one each `pause`; all of them are acknowledged and confirmed.
        async fn record(&self, count: usize, pause: Duration) {
            for _ in 0..count {
                let draft = Draft::change("test", Map::new(), self.clock.wall(), self.clock.state());
                self.files.append(vec![draft]).await.unwrap();
                tokio::time::advance(pause).await;
            }
            let head = self.files.head().borrow().seq;
            self.files.advance(Cursor::Acknowledged, head);
            self.files.advance(Cursor::Confirmed, head);
        }

        /// The hourly look, with two days of retention. The first record that is left, here and in the second copy.
        async fn look(&self) -> (u64, u64) {
            let before = self.clock.wall() - TimeDelta::days(2);
            retain(Arc::clone(&self.files), Arc::clone(&self.files) as _, self.clock(), before).await;
            let head = self.files.head().borrow().seq;
            while self.files.condition().mirror.unwrap().stored != Some(head) {
                std::thread::yield_now();
            }
            // The round after that one has seen what was removed, too.
            let first = self.files.first();
            let copied = || {
                let names = std::fs::read_dir(self.mirror.path().join("ledger")).unwrap();
                let first = |name: String| name.strip_suffix(".seg").and_then(|name| name.parse().ok());
                names.filter_map(|entry| first(entry.unwrap().file_name().into_string().unwrap())).min()
            };
            while copied() < Some(first) {
                std::thread::yield_now();
            }
            (first, copied().unwrap())
        }

        fn restart(&mut self) {
            self.files.close();
            self.files = open(&self.dir, &self.mirror);
        }
    }

    fn open(dir: &tempfile::TempDir, mirror: &tempfile::TempDir) -> Arc<FileLedger> {
        let mirror = MirrorOptions { round: Duration::from_millis(5), ..MirrorOptions::at(mirror.path()) };
        let options = Options { segment_bytes: 2500, mirror: Some(mirror), ..Options::default() };
        FileLedger::open(dir.path(), options).unwrap().0
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn nothing_is_removed_by_a_clock_that_nobody_vouches_for() {
        let mut site = Site::new(ClockState::Synced);
        site.record(40, MINUTE).await;
        // The next start is four years ahead, and no time server is to be had.
        site.restart();
        let ahead = site.clock.wall() + FOUR_YEARS;
        site.clock = Arc::new(SimulatedClock::starting_at(ahead, ClockState::Unsynced));
        assert_eq!(site.look().await, (1, 1));
        let two_days = |site: &Site| site.clock.wall() - TimeDelta::days(2);
        assert!(
            site.files.has_older(two_days(&site)).unwrap(),
            "something waits, and the operator is warned"
        );
        assert!(!site.files.has_older(two_days(&site) - FOUR_YEARS).unwrap());
        site.record(40, MINUTE).await;
        assert_eq!(site.look().await, (1, 1));
        // Vouched for it is no better: the records are minutes old.
        site.clock.synchronise(true);
        assert_eq!(site.look().await, (1, 1));
        site.record(40, MINUTE).await;
        site.restart();
        assert_eq!(site.look().await, (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leap_of_a_trusted_clock_makes_nothing_old() {
        let mut site = Site::new(ClockState::Synced);
        site.record(40, MINUTE).await;
        site.clock.step_and_synchronise(FOUR_YEARS);
        assert_eq!(site.look().await, (1, 1));
        site.record(40, MINUTE).await;
        assert_eq!(site.look().await, (1, 1));
        site.restart();
        assert_eq!(site.look().await, (1, 1));
        // And back: the records of the future do not count either.
        site.clock.step_and_synchronise(-FOUR_YEARS);
        site.record(40, MINUTE).await;
        assert_eq!(site.look().await, (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_old_by_the_ledgers_own_times_goes() {
        let mut site = Site::new(ClockState::Synced);
        site.record(40, MINUTE).await;
        site.clock.step_and_synchronise(FOUR_YEARS);
        site.record(60, Duration::from_secs(3600)).await;
        let (first, copied) = site.look().await;
        assert!(first > 20 && first <= 41 + 12, "first {first}");
        assert_eq!(copied, first);
        site.restart();
        assert_eq!(site.look().await, (first, first));
    }
}
