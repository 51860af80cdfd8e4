//! Reads from the ledger what a manifest needs: earlier manifests, counts, readings. Blocks; writes nothing.
//!
//! Manifests are found backwards: the newest by reading from the end, each earlier one through `previous`.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{NaiveDate, TimeDelta};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Day, boundary, local_date,
    manifest::{Cover, Downtime, Entry, Totals, entry, parts},
};
use crate::{
    clock::Clock,
    config::Settings,
    ledger::{Ledger, LedgerError, Line, ReadingQuery},
    model::{ClockState, GENESIS, MeterId, Reading, Seq, Utc, change},
};

/// Records read at once.
const PAGE: usize = 500;
/// Records read at once where one set is looked for: most have one part.
const SET_PAGE: usize = 8;
/// Bytes read at once.
const PAGE_BYTES: usize = 4 << 20;
/// Earlier manifests that are followed: more than the days that are ever made up for.
pub const MAX_LINKS: usize = 128;

/// A manifest's parts as they are stored, in order of their position.
#[derive(Debug, Clone, Default)]
pub struct Set {
    /// Position and fields.
    pub parts: Vec<(Seq, Map<String, Value>)>,
}

impl Set {
    fn first(&self) -> Option<&(Seq, Map<String, Value>)> {
        self.parts.first()
    }
    fn text(&self, name: &str) -> &str {
        self.first().and_then(|(_, fields)| fields.get(name)?.as_str()).unwrap_or_default()
    }
    fn number(&self, name: &str) -> Option<u64> {
        self.first().and_then(|(_, fields)| fields.get(name)?.as_u64())
    }
    /// Its day.
    pub fn date(&self) -> Option<NaiveDate> {
        self.text("date").parse().ok()
    }
    /// Where it begins.
    pub fn seq(&self) -> Seq {
        self.first().map_or(0, |(seq, _)| *seq)
    }
    /// The last record it covers.
    pub fn last_seq(&self) -> Seq {
        self.number("last_seq").unwrap_or_default()
    }
    /// Whether all of its parts are there.
    pub fn is_complete(&self) -> bool {
        self.number("parts") == Some(self.parts.len() as u64)
    }
    fn recorded_at(&self) -> Option<Utc> {
        self.text("recorded_at").parse().ok()
    }
    fn downtimes(&self) -> Vec<Downtime> {
        let listed =
            self.first().and_then(|(_, fields)| fields.get("downtimes")).cloned().unwrap_or_default();
        serde_json::from_value(listed).unwrap_or_default()
    }
    /// What a manifest made again for this set would cover.
    pub fn cover(&self) -> Option<Cover> {
        let (_, fields) = self.first()?;
        let previous = fields
            .get("previous")
            .and_then(|at| Some((at.get("date")?.as_str()?.to_owned(), at.get("seq")?.as_u64()?)));
        Some(Cover {
            ledger: self.text("ledger").to_owned(),
            first_seq: self.number("first_seq")?,
            last_seq: self.number("last_seq")?,
            head: self.text("head").to_owned(),
            previous,
        })
    }
}

/// The manifests at the end of the chain, newest first; at most 128.
pub struct History {
    /// Newest first.
    pub sets: Vec<Set>,
    /// The key that the newest manifest or rotation names as the one in force.
    pub key_id: Option<String>,
}

impl History {
    /// Reads it.
    pub fn load(ledger: &dyn Ledger) -> Result<History, LedgerError> {
        let mut history = History { sets: Vec::new(), key_id: None };
        let mut set = newest(ledger, &mut history.key_id)?;
        while !set.parts.is_empty() && history.sets.len() < MAX_LINKS {
            let before = set.cover().and_then(|cover| cover.previous);
            history.sets.push(set);
            let Some((_, seq)) = before else { break };
            set = set_at(ledger, seq)?;
        }
        Ok(history)
    }

    /// The set of a day, if it is among them.
    pub fn of(&self, date: NaiveDate) -> Option<&Set> {
        self.sets.iter().find(|set| set.date() == Some(date))
    }

    /// Downtimes that earlier manifests list and that may reach into `day`.
    fn downtimes(&self, day: Day) -> Vec<Downtime> {
        self.sets
            .iter()
            .take_while(|set| set.recorded_at().is_none_or(|at| at >= day.from))
            .flat_map(Set::downtimes)
            .collect()
    }
}

fn object(line: &Line) -> Map<String, Value> {
    serde_json::from_slice(&line.bytes).unwrap_or_default()
}

fn says(line: &Line, what: &str) -> bool {
    line.bytes.windows(what.len()).any(|window| window == what.as_bytes())
}

/// Shows each readable record of `from..=to`; returns how many are damaged. `each` says whether to go on.
fn scan(
    ledger: &dyn Ledger,
    (from, to): (Seq, Seq),
    page: usize,
    each: &mut dyn FnMut(&Line) -> bool,
) -> Result<u64, LedgerError> {
    let (mut next, mut damaged) = (from, 0);
    while next <= to {
        let lines = match ledger.read(next, page, PAGE_BYTES) {
            Err(LedgerError::Damaged { seq, .. }) => {
                damaged += 1;
                next = next.max(seq) + 1;
                continue;
            }
            other => other?,
        };
        let Some(last) = lines.last() else { break };
        next = last.seq + 1;
        for line in lines.iter().take_while(|line| line.seq <= to) {
            if !each(line) {
                return Ok(damaged);
            }
        }
    }
    Ok(damaged)
}

/// The newest set, by reading backwards until its first part; the key in force is learnt on the way.
fn newest(ledger: &dyn Ledger, key: &mut Option<String>) -> Result<Set, LedgerError> {
    let first = ledger.first();
    let mut to = ledger.head().borrow().seq;
    let mut set: Vec<(Seq, Map<String, Value>)> = Vec::new();
    while to >= first && to > 0 {
        let from = first.max((to + 1).saturating_sub(PAGE as u64));
        let mut found = Vec::new();
        scan(ledger, (from, to), PAGE, &mut |line| {
            if says(line, "\"type\":\"manifest\"") || says(line, "\"new_key_id\"") {
                found.push((line.seq, object(line)));
            }
            true
        })?;
        for (seq, fields) in found.into_iter().rev() {
            let text = |name: &str| fields.get(name).and_then(Value::as_str).map(str::to_owned);
            if let Some(id) = text("new_key_id").filter(|_| text("type").as_deref() == Some("change")) {
                key.get_or_insert(id);
                continue;
            }
            if text("type").as_deref() != Some("manifest") {
                continue;
            }
            if let (None, Some(id)) = (&key, text("key_id")) {
                *key = Some(id);
            }
            let same = set.first().is_none_or(|(_, known)| {
                ["date", "last_seq"].iter().all(|name| known.get(*name) == fields.get(*name))
            });
            if !same {
                return Ok(ordered(set));
            }
            let begins = fields.get("part").and_then(Value::as_u64) == Some(1);
            set.push((seq, fields));
            if begins {
                return Ok(ordered(set));
            }
        }
        to = from.saturating_sub(1);
    }
    Ok(ordered(set))
}

fn ordered(mut parts: Vec<(Seq, Map<String, Value>)>) -> Set {
    parts.reverse();
    Set { parts }
}

/// Records behind the first trusted one among which the `time_fix` of those before it is looked for: it follows within a second.
const FIX_WITHIN: u64 = 1000;

/// How long the `time_fix` is waited for once there is a trusted record.
const FIX_PATIENCE: TimeDelta = TimeDelta::minutes(1);

/// When the ledger began, by a time that somebody vouched for. A first record that was stamped by an untrusted clock is set
/// right by the `time_fix` that covers it; without one the first trusted record counts. `None`: there is neither yet.
pub fn begun(ledger: &dyn Ledger, now: Utc) -> Result<Option<Utc>, LedgerError> {
    let (first, head) = (ledger.first(), ledger.head().borrow().seq);
    let (mut stamped, mut trusted) = (None, None);
    let mut fixed = None;
    scan(ledger, (first, head), PAGE, &mut |line| {
        let record = object(line);
        let Some(at) =
            record.get("recorded_at").and_then(Value::as_str).and_then(|at| at.parse::<Utc>().ok())
        else {
            return true;
        };
        let begin = *stamped.get_or_insert(at);
        if record.get("clock").and_then(Value::as_str) != Some("unsynced") {
            let (_, seq) = *trusted.get_or_insert((at, line.seq));
            if seq == first || line.seq > seq + FIX_WITHIN {
                return false;
            }
        }
        let number = |name: &str| record.get(name).and_then(Value::as_i64);
        if record.get("change").and_then(Value::as_str) == Some(change::TIME_FIX)
            && number("from_seq").is_some_and(|from| from.unsigned_abs() <= first)
            && let Some(offset) = number("offset_ms").and_then(TimeDelta::try_milliseconds)
        {
            fixed = begin.checked_add_signed(offset);
        }
        fixed.is_none()
    })?;
    let by_itself = trusted.filter(|(at, seq)| *seq == first || now - *at >= FIX_PATIENCE);
    Ok(fixed.or(by_itself.map(|(at, _)| at)))
}

/// The set whose first part is at `seq`; empty when retention has taken it.
fn set_at(ledger: &dyn Ledger, seq: Seq) -> Result<Set, LedgerError> {
    let mut set: Vec<(Seq, Map<String, Value>)> = Vec::new();
    let head = ledger.head().borrow().seq;
    scan(ledger, (seq, head), SET_PAGE, &mut |line| {
        let begun = !set.is_empty();
        if line.seq != seq && !begun {
            return false;
        }
        if !says(line, "\"type\":\"manifest\"") {
            return begun; // the rest of a set that a crash had cut
        }
        let fields = object(line);
        let of_it = set.first().is_none_or(|(_, known)| {
            ["date", "last_seq"].iter().all(|name| known.get(*name) == fields.get(*name))
        });
        if of_it {
            set.push((line.seq, fields));
        }
        let wanted = set.first().and_then(|(_, fields)| fields.get("parts")?.as_u64()).unwrap_or(1);
        of_it && (set.len() as u64) < wanted
    })?;
    Ok(Set { parts: set })
}

/// The position of a manifest for `day` made now, behind `history`.
pub fn cover_now(ledger: &dyn Ledger, history: &History) -> Cover {
    let head = ledger.head().borrow().clone();
    let before = history.sets.first();
    Cover {
        ledger: ledger.id().to_owned(),
        first_seq: before.map_or(1, |set| set.last_seq() + 1).max(ledger.first()),
        last_seq: head.seq,
        head: if head.seq == 0 { GENESIS.to_owned() } else { head.hash },
        previous: before.and_then(|set| Some((set.date()?.to_string(), set.seq()))),
    }
}

/// The fields of each part of the manifest of `day` over what `cover` says, unsigned. `until`: now, if the day has
/// not ended.
pub fn compute(
    ledger: &dyn Ledger,
    settings: &Settings,
    (day, until): (Day, Utc),
    cover: &Cover,
    history: &History,
) -> Result<Vec<Map<String, Value>>, LedgerError> {
    let (totals, mut names) = totals(ledger, day, cover)?;
    let mut downtimes = history.downtimes(day);
    downtimes.extend(&totals.downtimes);
    let meters: BTreeMap<&str, _> = settings.meters.iter().map(|meter| (meter.id.as_str(), meter)).collect();
    names.extend(meters.keys().map(|name| (*name).to_owned()));
    let mut entries: Vec<Entry> = Vec::new();
    for name in &names {
        let Ok(id) = name.parse::<MeterId>() else { continue };
        let readings = readings(ledger, id, day, cover.last_seq)?;
        let meter = meters.get(name.as_str()).copied();
        entries.push(entry(name, meter, settings, (day, until.min(day.to)), readings, &downtimes));
    }
    Ok(parts(settings, day, cover, &totals, &entries))
}

#[derive(Deserialize)]
struct Short {
    #[serde(rename = "type")]
    kind: String,
    meter: Option<String>,
    scheduled_at: Option<Utc>,
    verdict: Option<String>,
    origin: Option<String>,
    change: Option<String>,
    // Other kinds may use these names for something else.
    from: Option<Value>,
    to: Option<Value>,
}

fn totals(ledger: &dyn Ledger, day: Day, cover: &Cover) -> Result<(Totals, BTreeSet<String>), LedgerError> {
    let (mut totals, mut names) = (Totals::default(), BTreeSet::new());
    let damaged = scan(ledger, (cover.first_seq, cover.last_seq), PAGE, &mut |line| {
        let Ok(short) = serde_json::from_slice::<Short>(&line.bytes) else { return true };
        *totals.types.entry(short.kind.clone()).or_default() += 1;
        if short.kind == "reading" {
            if let (Some(name), Some(at)) = (short.meter, short.scheduled_at)
                && day.contains(at)
            {
                names.insert(name);
            }
            *totals.verdicts.entry(short.verdict.unwrap_or_default()).or_default() += 1;
            *totals.origins.entry(short.origin.unwrap_or_default()).or_default() += 1;
        } else if short.change.as_deref() == Some(change::DOWNTIME) {
            let at = |value: Option<Value>| value?.as_str()?.parse::<Utc>().ok();
            if let (Some(from), Some(to)) = (at(short.from), at(short.to)) {
                totals.downtimes.push(Downtime { from, to, seq: line.seq });
            }
        }
        true
    })?;
    totals.damaged = damaged;
    Ok((totals, names))
}

fn readings(
    ledger: &dyn Ledger,
    meter: MeterId,
    day: Day,
    last_seq: Seq,
) -> Result<Vec<(Seq, Reading)>, LedgerError> {
    let mut found = Vec::new();
    let mut query =
        ReadingQuery { meter: Some(meter), from: Some(day.from), to: Some(day.to), after: 0, limit: PAGE };
    loop {
        let lines = match ledger.readings(&query) {
            Err(LedgerError::Damaged { seq, .. }) if seq > query.after => {
                query.after = seq;
                continue;
            }
            other => other?,
        };
        let Some(last) = lines.last() else { return Ok(found) };
        query.after = last.seq;
        for line in lines.iter().take_while(|line| line.seq <= last_seq) {
            if let Ok(reading) = serde_json::from_slice::<Reading>(&line.bytes) {
                found.push((line.seq, reading));
            }
        }
    }
}

/// What `ledger manifest` answers: the stored parts of the day, or what they would be now, marked as not recorded. By an
/// untrusted clock only what is stored: which day has ended is not known then, and neither is which one is yesterday.
pub fn answer(
    ledger: &dyn Ledger,
    settings: &Settings,
    date: Option<NaiveDate>,
    clock: &dyn Clock,
) -> Result<Value, LedgerError> {
    let zone = settings.site.timezone;
    let (now, trust) = boundary::seen(clock);
    let today = local_date(now, zone);
    let asked = date;
    let date = date.or_else(|| today.pred_opt()).unwrap_or(today);
    let history = History::load(ledger)?;
    if trust == ClockState::Unsynced && (asked.is_none() || !history.of(date).is_some_and(Set::is_complete)) {
        let what = asked.map_or("which day was yesterday is not known".to_owned(), |date| {
            format!("{date} is not on record, and whether it has ended is not known")
        });
        let latest = history.sets.iter().find(|set| set.is_complete()).and_then(Set::date);
        let hint =
            latest.map_or(String::new(), |date| format!("; on record is {date} and what came before it"));
        return Err(LedgerError::Refused(format!(
            "nobody vouches for the clock: {what}\n  hint: is a time server reachable? `timedatectl` tells. The manifest is made when the clock is trusted again{hint}"
        )));
    }
    if let Some(set) = history.of(date).filter(|set| set.is_complete()) {
        let parts: Vec<Value> = set.parts.iter().map(|(_, fields)| fields.clone().into()).collect();
        return Ok(json!({"recorded": true, "parts": parts}));
    }
    let Some(day) = Day::of(date, zone) else {
        return Err(LedgerError::Refused(format!("{date} is no day in {zone}")));
    };
    let cover = cover_now(ledger, &history);
    let parts = compute(ledger, settings, (day, now), &cover, &history)?;
    Ok(json!({"recorded": false, "ended": day.to <= now, "parts": parts}))
}
