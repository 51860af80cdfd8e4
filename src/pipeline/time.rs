//! What happened to the clock becomes `change` records: `clock_stepped`, `clock_untrusted`, `time_fix`,
//! `clock_behind_ledger`. Nothing that is stored is ever stamped again: a `time_fix` says by how much the times in
//! a range of the ledger are wrong. Which time the house shows is the clock's business; `docs/time.md` is the manual.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::append;
use crate::{
    clock::{Clock, ClockEvent, Stretch},
    ledger::{ReadingQuery, SharedLedger},
    model::{ClockState, Draft, MeterId, Seq, Utc, change, rfc3339},
};

/// How often both clocks are looked at when nobody else does.
const LOOK: Duration = Duration::from_secs(1);
/// How often a trusted clock is asked about: holdover is counted in hours.
const ASK_TRUSTED: Duration = Duration::from_secs(60);
/// How often an untrusted one is: each second of it is a second of records that have to be set right.
const ASK_UNTRUSTED: Duration = Duration::from_secs(10);
/// So many times in a row; then it is asked about as seldom as a trusted one: each question starts a program, and a time
/// server that has not come within ten minutes is not awaited by the second.
const SOON_TRUSTED: u32 = 60;
/// A clock so far behind the last record has lost its time; less is what a step of a synchronisation may be.
const FAR_BEHIND: chrono::TimeDelta = chrono::TimeDelta::seconds(60);
/// Slots looked at in one go while the latest is sought.
const SLOTS_PAGE: usize = 500;
/// Pages: 300 days of quarter hours ahead of the clock. Beyond that what was found last stands.
const SLOTS_PAGES: usize = 60;

/// Tells the ledger what the clock says.
pub struct TimeTeller {
    clock: Arc<dyn Clock>,
    ledger: SharedLedger,
    /// Where each open stretch of distrust began.
    begun: Vec<Seq>,
    /// Where the ledger ended at the last look: what happened to the clock since came after it.
    seen: Seq,
    drafts: Vec<Draft>,
    /// Looks since the clock lost its trust, until that is logged: at a start it is often back before the next one.
    unsaid: Option<u32>,
}

impl TimeTeller {
    /// Made before anything else is stored, so that a distrust from the start covers all of it.
    pub fn new(clock: Arc<dyn Clock>, ledger: SharedLedger) -> TimeTeller {
        let seen = ledger.head().borrow().seq + 1;
        let mut teller =
            TimeTeller { clock, ledger, begun: Vec::new(), seen, drafts: Vec::new(), unsaid: None };
        teller.note_events();
        teller.compare_with_ledger();
        teller
    }

    /// Looks, asks and tells until it is dropped.
    pub async fn run(mut self) {
        let clock = Arc::clone(&self.clock);
        let tell = async {
            let mut ticks = interval(LOOK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                self.tell().await;
            }
        };
        // Apart: a full disk must not keep the clock from being asked.
        tokio::join!(tell, ask(clock));
    }

    /// Writes down what is known now.
    pub async fn tell(&mut self) {
        self.clock.wall();
        self.note_events();
        self.warn_of_distrust();
        self.seen = self.next_seq();
        if !self.drafts.is_empty() {
            append(&self.ledger, std::mem::take(&mut self.drafts)).await;
        }
    }

    fn note_events(&mut self) {
        while let Some(event) = self.clock.poll_event() {
            match event {
                ClockEvent::Stepped { from, to, before, after, followed } => {
                    let by_ms = (to - from).num_milliseconds();
                    tracing::warn!(
                        from = rfc3339(from),
                        to = rfc3339(to),
                        by_ms,
                        ?before,
                        followed,
                        "the wall clock was set"
                    );
                    let mut fields = self.reference();
                    fields.insert("from".into(), rfc3339(from).into());
                    fields.insert("to".into(), rfc3339(to).into());
                    fields.insert("by_ms".into(), by_ms.into());
                    fields.insert("before".into(), name(before));
                    fields.insert("after".into(), name(after));
                    fields.insert("followed".into(), followed.into());
                    self.note(change::CLOCK_STEPPED, fields);
                }
                ClockEvent::Untrusted => {
                    self.unsaid = Some(0);
                    self.begun.push(self.seen);
                    let mut fields = self.reference();
                    fields.insert("wall".into(), rfc3339(self.clock.wall()).into());
                    self.note(change::CLOCK_UNTRUSTED, fields);
                }
                ClockEvent::Trusted(stretches) => self.note_fix(&stretches),
            }
        }
    }

    fn warn_of_distrust(&mut self) {
        self.unsaid = match self.unsaid {
            Some(looks) if looks > 0 => {
                tracing::warn!(
                    hint = "is a time server reachable? `timedatectl` tells",
                    "the wall clock is not synchronised: readings are flagged clock_untrusted until it is"
                );
                None
            }
            Some(looks) => Some(looks + 1),
            None => None,
        };
    }

    /// One record for each stretch that left records.
    fn note_fix(&mut self, stretches: &[Stretch]) {
        if self.unsaid.take().is_none() {
            tracing::info!("the wall clock is trusted");
        }
        let begun = std::mem::take(&mut self.begun);
        let next = self.next_seq();
        let ends = begun.iter().skip(1).copied().chain([next]);
        for ((stretch, from_seq), end) in stretches.iter().zip(begun.iter().copied()).zip(ends) {
            if from_seq >= end {
                continue;
            }
            let offset_ms = stretch.offset.num_milliseconds();
            tracing::info!(
                from_seq,
                to_seq = end - 1,
                offset_ms,
                "the times of these records were wrong: the clock has been synchronised since"
            );
            let mut fields = self.reference();
            fields.insert("wall".into(), rfc3339(self.clock.wall()).into());
            fields.insert("from_seq".into(), from_seq.into());
            fields.insert("to_seq".into(), (end - 1).into());
            fields.insert("from".into(), rfc3339(stretch.from).into());
            fields.insert("to".into(), rfc3339(stretch.to).into());
            fields.insert("offset_ms".into(), offset_ms.into());
            self.note(change::TIME_FIX, fields);
        }
        if begun.first() == Some(&next) {
            // Trusted before anything was stored: that it was not at first concerns nobody.
            self.drafts.retain(|draft| draft.fields.get("change") != Some(&change::CLOCK_UNTRUSTED.into()));
        }
    }

    /// A clock far behind what is stored already: it lost its time, or the ledger was written by one that ran ahead.
    fn compare_with_ledger(&mut self) {
        let seq = self.ledger.head().borrow().seq;
        let Ok(lines) = self.ledger.read(seq, 1, usize::MAX) else { return }; // damage is told by whoever reads it
        let Some(last) = lines.first().and_then(|line| time_of(&line.bytes, "recorded_at")) else { return };
        let now = self.clock.wall();
        if last - now <= FAR_BEHIND {
            return;
        }
        tracing::warn!(
            seq,
            last_recorded_at = rfc3339(last),
            now = rfc3339(now),
            hint = "is the battery of the clock empty?",
            "the clock is behind the time of the ledger's last record"
        );
        let mut fields = self.reference();
        fields.insert("wall".into(), rfc3339(now).into());
        fields.insert("last_recorded_at".into(), rfc3339(last).into());
        fields.insert("last_seq".into(), seq.into());
        fields.insert("by_ms".into(), (now - last).num_milliseconds().into());
        self.note(change::CLOCK_BEHIND_LEDGER, fields);
    }

    fn note(&mut self, what: &str, fields: Map<String, Value>) {
        self.drafts.push(Draft::change(what, fields, self.clock.wall(), self.clock.state()));
    }

    /// This start of the machine, and the time since.
    fn reference(&self) -> Map<String, Value> {
        let since_boot = u64::try_from(self.clock.since_boot().as_millis()).unwrap_or(u64::MAX);
        Map::from_iter([
            ("boot_id".to_owned(), self.clock.boot_id().into()),
            ("monotonic_ms".to_owned(), since_boot.into()),
        ])
    }

    fn next_seq(&self) -> Seq {
        self.ledger.head().borrow().seq + 1
    }
}

async fn ask(clock: Arc<dyn Clock>) {
    let mut next = Instant::now();
    let mut untrusted = 0;
    loop {
        let stepped = clock.wants_evidence();
        if stepped || Instant::now() >= next {
            clock.refresh().await;
            let trusted = clock.state() == ClockState::Synced;
            untrusted = if trusted || stepped { 0 } else { SOON_TRUSTED.min(untrusted + 1) };
            let seldom = trusted || untrusted == SOON_TRUSTED;
            next = Instant::now() + if seldom { ASK_TRUSTED } else { ASK_UNTRUSTED };
        }
        sleep_until(next.min(Instant::now() + LOOK)).await;
    }
}

/// The latest slot of a meter that has a record, which is not the last that was stored where the clock was set back.
pub fn highest_slot(ledger: &SharedLedger, meter: &MeterId) -> Option<Utc> {
    let mut highest = ledger.latest_slot(meter)?;
    for _ in 0..SLOTS_PAGES {
        let from = Some(highest + chrono::TimeDelta::milliseconds(1));
        let query = ReadingQuery { meter: Some(meter.clone()), from, to: None, after: 0, limit: SLOTS_PAGE };
        let page = match ledger.readings(&query) {
            Ok(page) => page,
            Err(error) => {
                tracing::warn!(%meter, %error, "stored slots cannot be looked up; the last one stored is taken for the latest");
                break;
            }
        };
        match page.iter().filter_map(|line| time_of(&line.bytes, "scheduled_at")).max() {
            Some(later) if later > highest => highest = later,
            _ => break,
        }
    }
    Some(highest)
}

fn time_of(record: &[u8], field: &str) -> Option<Utc> {
    let record: Map<String, Value> = serde_json::from_slice(record).ok()?;
    record.get(field)?.as_str()?.parse().ok()
}

fn name(state: ClockState) -> Value {
    serde_json::to_value(state).unwrap_or_default()
}
