//! What somebody asks to be done: how much of it one asker may ask for, that it goes on record, and replays.
//!
//! All ways lead through here (port, socket, MQTT), so that one limit holds for all. Knows no route and no topic.

use std::{collections::HashMap, fmt, sync::Mutex, time::Duration};

use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

use super::{Console, RECORD_PATIENCE};
use crate::{
    model::{Asker, Draft, Seq, change},
    publish::{MAX_REPLAYS, Outgoing},
    telemetry::lock,
};

/// Recorded actions that one asker may ask for at once: a script that reads a hundred meters. Each costs a record for ever.
const ACTIONS_AT_ONCE: u32 = 120;
/// Beyond those, one in this time: sixty a minute.
const ACTION_EVERY: Duration = Duration::from_secs(1);
/// A replay that is asked for so soon after the same was sent is the same request: several programs saw one gap.
const REPLAY_AGAIN: Duration = Duration::from_secs(5);
/// Askers that are counted apart; more share one count.
const MAX_ASKERS: usize = 64;

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Too much was asked for: come back after so many seconds.
    Later(u64),
    /// As it is, it cannot be done.
    No(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Later(seconds) => write!(
                out,
                "too many requests: {ACTIONS_AT_ONCE} at once and then one every {} s are done for one asker; come back in {seconds} s",
                ACTION_EVERY.as_secs()
            ),
            Refusal::No(reason) => out.write_str(reason),
        }
    }
}

impl From<String> for Refusal {
    fn from(reason: String) -> Refusal {
        Refusal::No(reason)
    }
}

impl From<&str> for Refusal {
    fn from(reason: &str) -> Refusal {
        Refusal::No(reason.to_owned())
    }
}

/// One asker's count.
struct Account {
    /// When all that was asked for is within the rate.
    paid_at: Instant,
    over: bool,
}

/// Who has asked for how much.
#[derive(Default)]
pub struct Actions {
    accounts: Mutex<HashMap<String, Account>>,
    /// One replay is asked for at a time, so that the next one finds it among those that wait.
    replay: tokio::sync::Mutex<()>,
}

impl Actions {
    fn admit(&self, actor: &str, now: Instant) -> Result<(), Refusal> {
        let mut accounts = lock(&self.accounts);
        if !accounts.contains_key(actor) && accounts.len() >= MAX_ASKERS {
            accounts.retain(|_, account| account.paid_at > now);
        }
        let full = !accounts.contains_key(actor) && accounts.len() >= MAX_ASKERS;
        let key = if full { "others" } else { actor };
        let account = accounts.entry(key.to_owned()).or_insert(Account { paid_at: now, over: false });
        let paid_at = account.paid_at.max(now) + ACTION_EVERY;
        let ahead = ACTION_EVERY * ACTIONS_AT_ONCE;
        if let Some(wait) = paid_at.checked_duration_since(now + ahead).filter(|wait| !wait.is_zero()) {
            if !std::mem::replace(&mut account.over, true) {
                tracing::warn!(asker = key, "one asker asks for actions too often: some are refused");
            }
            return Err(Refusal::Later(wait.as_millis().div_ceil(1_000).try_into().unwrap_or(u64::MAX)));
        }
        account.over &= account.paid_at > now;
        account.paid_at = paid_at;
        Ok(())
    }
}

impl Console {
    /// Whether this asker may have one more thing done; counts it.
    pub fn admit(&self, who: &Asker) -> Result<(), Refusal> {
        self.actions.admit(&who.actor(), Instant::now())
    }

    /// Puts on record who asked for what. What is not on record is not done: an error says so.
    pub async fn put_on_record(
        &self,
        who: &Asker,
        action: &str,
        asked: Map<String, Value>,
    ) -> Result<(), Refusal> {
        let telemetry = &self.telemetry;
        let why = |error: &dyn fmt::Display| {
            Refusal::No(format!("not done, because it cannot be put on record: {error}"))
        };
        if let Some(refusal) = telemetry.ledger.condition().refusing {
            return Err(why(&refusal.reason));
        }
        self.admit(who)?;
        let fields = who.action(action, asked);
        let told = Value::from(fields.clone()).to_string();
        tracing::info!("an action is asked for and goes on record: {told}");
        let draft =
            Draft::change(change::USER_ACTION, fields, telemetry.clock.wall(), telemetry.clock.state());
        match timeout(RECORD_PATIENCE, telemetry.ledger.append(vec![draft])).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(why(&error)),
            Err(_) => Err(why(&format!("the ledger did not answer within {} s", RECORD_PATIENCE.as_secs()))),
        }
    }

    /// Queues a range of records to be sent again with their original bytes, once it is on record who asked for it. What waits
    /// already, is on its way or was sent a moment ago is not queued and not recorded again.
    pub async fn replay(&self, who: &Asker, from: Seq, to: Seq) -> Result<Value, Refusal> {
        let ledger = &self.telemetry.ledger;
        let (first, last) = (ledger.first(), ledger.head().borrow().seq);
        if from < first || to > last || from > to {
            return Err(format!("seq {from} to {to} was asked, {first} to {last} is kept").into());
        }
        let Ok(_one) = timeout(RECORD_PATIENCE, self.actions.replay.lock()).await else {
            return Err("another replay is being recorded: try again later".into());
        };
        let mut state = self.telemetry.publisher.clone();
        let publisher = state.borrow().clone();
        if from > publisher.acknowledged {
            let last = publisher.acknowledged;
            let said =
                format!("seq {from} is still on its way: up to {last} was sent, the rest goes by itself");
            return Err(said.into());
        }
        let sent = publisher.replayed.filter(|replayed| replayed.at.elapsed() < REPLAY_AGAIN);
        let known = || publisher.replays.iter().chain(sent.as_ref().map(|replayed| &replayed.range));
        if known().any(|range| range.contains(&from) && range.contains(&to)) {
            return Ok(json!({"from": from, "to": to, "merged": true}));
        }
        if publisher.replays.len() >= MAX_REPLAYS {
            return Err(format!("{MAX_REPLAYS} replays are waiting: try again later").into());
        }
        let place = self
            .publisher()
            .try_reserve_owned()
            .map_err(|_| "the publisher has too many requests waiting".to_owned())?;
        let asked = Map::from_iter([("from_seq".to_owned(), from.into()), ("to_seq".to_owned(), to.into())]);
        self.put_on_record(who, "replay", asked).await?;
        place.send(Outgoing::Replay { from, to });
        let taken = state.wait_for(|state| state.replays_taken != publisher.replays_taken);
        let _ = timeout(RECORD_PATIENCE, taken).await; // if it is not, the next one may be recorded for nothing
        Ok(json!({"from": from, "to": to}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_asker_is_refused_beyond_the_limit_told_when_to_come_back_and_costs_nobody_else() {
        let (actions, now) = (Actions::default(), Instant::now());
        let mut done = 0;
        for ms in 0..10_000 {
            match actions.admit("uid 7", now + Duration::from_millis(ms)) {
                Ok(()) => done += 1,
                Err(refusal) => assert_eq!(refusal, Refusal::Later(1)),
            }
        }
        assert_eq!(done, 129, "120 at once, then one a second");
        let end = now + Duration::from_secs(10);
        let said = actions.admit("uid 7", end - Duration::from_millis(1)).unwrap_err().to_string();
        assert!(
            said.contains("120 at once") && said.contains("every 1 s") && said.contains("in 1 s"),
            "{said}"
        );
        assert_eq!(actions.admit("mqtt", end), Ok(()));
        let later = end + Duration::from_secs(3_600);
        assert_eq!((0..200).filter(|_| actions.admit("uid 7", later).is_ok()).count(), 120);
    }

    #[test]
    fn many_askers_share_one_count() {
        let (actions, now) = (Actions::default(), Instant::now());
        let done = (0..10_000).filter(|n| actions.admit(&format!("10.0.0.{n}"), now).is_ok()).count();
        assert_eq!(done, 64 + 120 - 1 + 1);
        assert!(lock(&actions.accounts).len() <= MAX_ASKERS + 1);
        assert_eq!(
            actions.admit("uid 7", now + Duration::from_secs(200)),
            Ok(()),
            "who is quiet is forgotten"
        );
    }
}
