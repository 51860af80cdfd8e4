//! Makes the manifest of each day that has ended: once, signed, also after a crash in the middle.
//!
//! Decides when, and never by a clock that nobody vouches for: then it waits, and makes up for the days when somebody does.
//! What a manifest says is `manifest.rs`.

use std::{sync::Arc, time::Duration};

use chrono::{NaiveDate, TimeDelta};
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::{
    Boundary, Day, boundary,
    history::{History, Set, begun, compute, cover_now},
    local_date, seen,
    signing::sign,
};
use crate::{
    clock::Clock,
    config::Settings,
    identity::{Identity, Signer},
    ledger::{LedgerError, SharedLedger},
    model::{ClockState, Draft, RecordType, Seq, Slots, Utc, change},
    pipeline,
};

/// How often it is asked whether a day has ended.
const ROUND: Duration = Duration::from_secs(5);
/// How long the last slots of a day are waited for: the longest sweep of a full bus takes less.
const GRACE: TimeDelta = TimeDelta::minutes(5);
/// Days that are made up for, at most; `ledger manifest DATE` computes older ones.
const CATCH_UP_DAYS: u64 = 62;

/// Makes what is due.
pub struct Keeper {
    ledger: SharedLedger,
    identity: Arc<Identity>,
    clock: Arc<dyn Clock>,
    history: Option<History>,
    /// When the ledger began, once a trusted clock could tell; asked for while there is no manifest.
    begun: Option<Utc>,
    /// It was said that manifests wait for the clock.
    waits: bool,
}

impl Keeper {
    /// Knows nothing yet; the first round reads the ledger.
    pub fn new(ledger: SharedLedger, identity: Arc<Identity>, clock: Arc<dyn Clock>) -> Keeper {
        Keeper { ledger, identity, clock, history: None, begun: None, waits: false }
    }

    /// Makes the oldest manifest that is due; `None` when none is.
    pub async fn round(&mut self, settings: &Arc<Settings>) -> Result<Option<NaiveDate>, LedgerError> {
        let identity = Arc::clone(&self.identity);
        let _signing = identity.signing.lock().await;
        let history = match self.history.take() {
            Some(history) => history,
            None => self.begin().await?,
        };
        let now = seen(&*self.clock);
        if !self.may_draw(now.1) {
            self.history = Some(history);
            return Ok(None);
        }
        let unfinished = history.sets.first().filter(|set| !set.is_complete()).cloned();
        let due = match &unfinished {
            Some(set) => set.date(),
            None => self.due(settings, &history, now).await?,
        };
        let Some(day) = due.and_then(|date| Day::of(date, settings.site.timezone)) else {
            self.history = Some(history);
            return Ok(None);
        };
        let signer = self.identity.signer();
        let unsigned = self.compute(settings, day, history, unfinished.clone()).await?;
        let drafts = unsigned.into_iter().map(|fields| self.signed(fields, &signer)).collect();
        let drafts = match unfinished {
            Some(set) => self.rest(settings, day, &set, drafts, &signer).await?,
            None => drafts,
        };
        let parts = drafts.len();
        pipeline::append(&self.ledger, drafts).await;
        tracing::info!(date = %day.date, parts, "manifest recorded");
        Ok(Some(day.date)) // the history is read again: what the disk says counts
    }

    /// Whether days may be judged by the clock at all; told once when not.
    fn may_draw(&mut self, clock: ClockState) -> bool {
        let trusted = clock != ClockState::Unsynced;
        if !trusted && !self.waits {
            tracing::warn!(
                hint = "is a time server reachable? `timedatectl` tells",
                "the clock is not synchronised: manifests wait until it is, and are made up for then"
            );
        }
        self.waits = !trusted;
        trusted
    }

    async fn begin(&self) -> Result<History, LedgerError> {
        let ledger = Arc::clone(&self.ledger);
        let history = blocking(move || History::load(&*ledger)).await?;
        let id = self.identity.key_id();
        if let Some(old) = history.key_id.as_ref().filter(|old| **old != id) {
            tracing::warn!(%old, new = %id, "the signing key is another one, and no record signed by the old key says so");
            let fields = [
                ("old_key_id", old.clone()),
                ("new_key_id", id),
                ("new_public_key", self.identity.signer().public_key().to_base64()),
            ];
            let fields = fields.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
            let draft = Draft::change(change::KEY_REPLACED, fields, self.clock.wall(), self.clock.state());
            pipeline::append(&self.ledger, vec![draft]).await;
        }
        Ok(history)
    }

    /// The oldest day that has ended, has no manifest and whose last slots are recorded (or waited for long enough).
    async fn due(
        &mut self,
        settings: &Settings,
        history: &History,
        now: (Utc, ClockState),
    ) -> Result<Option<NaiveDate>, LedgerError> {
        let zone = settings.site.timezone;
        let Some(yesterday) = local_date(now.0, zone).pred_opt() else { return Ok(None) };
        let oldest = match history.sets.iter().filter_map(Set::date).min() {
            Some(date) => date,
            None => match self.first_record(now.0).await? {
                Some(at) => local_date(at, zone),
                None => return Ok(None),
            },
        };
        let begin = yesterday.checked_sub_days(chrono::Days::new(CATCH_UP_DAYS - 1)).unwrap_or(yesterday);
        let date = begin
            .max(oldest)
            .iter_days()
            .take_while(|date| *date <= yesterday)
            .find(|date| history.of(*date).is_none() && Day::of(*date, zone).is_some());
        let ready = |date: &NaiveDate| {
            Day::of(*date, zone).is_some_and(|day| {
                boundary(day.to + GRACE, now) == Boundary::Past
                    || (boundary(day.to, now) == Boundary::Past && self.is_whole(settings, day))
            })
        };
        Ok(date.filter(ready))
    }

    async fn first_record(&mut self, now: Utc) -> Result<Option<Utc>, LedgerError> {
        if self.begun.is_none() {
            let ledger = Arc::clone(&self.ledger);
            self.begun = blocking(move || begun(&*ledger, now)).await?;
        }
        Ok(self.begun)
    }

    /// Every meter's last slot of the day is recorded.
    fn is_whole(&self, settings: &Settings, day: Day) -> bool {
        settings.meters.iter().all(|meter| {
            let last = Slots::new(settings.site.timezone, meter.interval_secs)
                .map_or(day.to, |slots| slots.at_or_before(day.to - TimeDelta::milliseconds(1)));
            self.ledger.latest_slot(&meter.id).is_some_and(|slot| slot >= last)
        })
    }

    /// A set that a crash cut off is computed again over the records that it covered then.
    async fn compute(
        &self,
        settings: &Arc<Settings>,
        day: Day,
        mut history: History,
        unfinished: Option<Set>,
    ) -> Result<Vec<Map<String, Value>>, LedgerError> {
        let (ledger, settings) = (Arc::clone(&self.ledger), Arc::clone(settings));
        blocking(move || {
            let cover = match unfinished.as_ref().and_then(Set::cover) {
                Some(cover) => {
                    history.sets.remove(0);
                    cover
                }
                None => cover_now(&*ledger, &history),
            };
            compute(&*ledger, &settings, (day, day.to), &cover, &history)
        })
        .await
    }

    fn signed(&self, fields: Map<String, Value>, signer: &Signer) -> Draft {
        let mut draft = Draft {
            kind: RecordType::Manifest,
            recorded_at: self.clock.wall(),
            clock: self.clock.state(),
            fields,
            reading: None,
        };
        draft.fields.insert("key_id".into(), signer.public_key().id().into());
        sign(&mut draft, signer);
        draft
    }

    /// The parts that are not stored yet; or all parts of a new set that says what it takes the place of, when the
    /// configuration or the key is another one since.
    async fn rest(
        &self,
        settings: &Arc<Settings>,
        day: Day,
        set: &Set,
        drafts: Vec<Draft>,
        signer: &Signer,
    ) -> Result<Vec<Draft>, LedgerError> {
        let same = |(stored, draft): (&(Seq, Map<String, Value>), &Draft)| {
            draft
                .fields
                .iter()
                .filter(|(name, _)| *name != "signature")
                .all(|(name, value)| stored.1.get(name) == Some(value))
        };
        if set.parts.len() <= drafts.len() && set.parts.iter().zip(&drafts).all(same) {
            return Ok(drafts.into_iter().skip(set.parts.len()).collect());
        }
        let ledger = Arc::clone(&self.ledger);
        let mut history = blocking(move || History::load(&*ledger)).await?;
        if !history.sets.is_empty() {
            history.sets.remove(0);
        }
        let unsigned = self.compute(settings, day, history, None).await?;
        let again = |mut fields: Map<String, Value>| {
            fields.insert("supersedes".into(), set.seq().into());
            self.signed(fields, signer)
        };
        Ok(unsigned.into_iter().map(again).collect())
    }
}

/// Makes manifests until `down`; `settings` is asked for the configuration in force.
pub async fn keep(
    mut keeper: Keeper,
    settings: impl Fn() -> Arc<Settings> + Send,
    mut down: watch::Receiver<bool>,
) {
    let mut failed = false;
    loop {
        match keeper.round(&settings()).await {
            Ok(Some(_)) if !*down.borrow() => continue,
            Ok(_) => failed = false,
            Err(LedgerError::Closed) => return,
            Err(error) => {
                if !failed {
                    tracing::error!(%error, "the manifest cannot be made; trying again every 5 s");
                }
                failed = true;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            _ = down.wait_for(|down| *down) => return,
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(LedgerError::Closed), // the runtime ends, or the work panicked and its message is in the log
    }
}
