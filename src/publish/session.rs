//! Decides what the publisher does next: events in, actions out.
//!
//! No I/O, no clock, no randomness of its own: all three are arguments. What was sent is remembered only while a
//! connection lasts; what was acknowledged is a pair of cursors, and after any surprise sending resumes from there, a
//! few messages earlier when the connection was lost. `words` is what is said to it and by it, `outcomes` moves the
//! cursors, `receipts` hears billing, `progress` sees that billing lacks something, `resend` has what is sent once more, `parts`
//! keeps everything else from holding records back, `pace` and `size` say how much goes at once.

mod outcomes;
mod pace;
mod parts;
mod progress;
mod receipts;
mod resend;
mod size;
mod words;

pub use parts::Part;
pub use receipts::{MAX_PARKED, Note};
pub use resend::{MAX_REPLAYS, Reason, Replayed, Resend};
pub use words::{Action, Event, Fault, Tag, Verdict};

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::payload::MAX_RECORDS;
use crate::{config::Confirm, ledger::Cursor, model::Seq};

use pace::{Departure, Pace};
use parts::Parts;
use progress::Progress;
use receipts::{Owed, Parked};
use resend::Resends;
use size::MessageSize;

/// Messages from the oldest unacknowledged one to the newest: enough to fill a slow link, few enough to repeat. The
/// client's packet ids wrap at the broker's receive maximum, so a narrower one is the window, and no id is used twice.
pub const WINDOW: u16 = 32;
/// From starting a connection to its CONNACK, and from there to the SUBACK.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the oldest unacknowledged message may be the oldest before a connection counts as stalled.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_secs(30);
/// Added to twice the keep-alive: how long a broker may say nothing at all.
const SILENCE_GRACE: Duration = Duration::from_secs(10);
/// Shortest pause before the next attempt, in milliseconds.
const PAUSE_MIN_MS: u64 = 1_000;
/// Longest pause before the next attempt while an outage is short, in milliseconds: the first message is out within seconds
/// of the broker's return, and the attempts of many gateways are still spread.
const PAUSE_SHORT_MS: u64 = 2_000;
/// How long an outage is short: a broker that restarts, a switch, a line.
const SHORT_OUTAGE: Duration = Duration::from_secs(600);
/// Longest pause of all, in milliseconds: a site is heard of within a minute of its broker.
const PAUSE_MAX_MS: u64 = 60_000;
/// Messages, acknowledged before a connection was lost, that are sent again after it: a broker that dies without
/// persistence takes with it what it had acknowledged and not yet passed on. Duplicates are harmless, gaps are not.
const OVERLAP: usize = 64;
/// Acknowledged records that a new connection sends again at most, where billing confirms and has not: some minutes on a
/// slow link. Without it, a billing system that has stopped to confirm would get a year of records at each connection.
pub const RESUME_MAX: u64 = 50_000;
/// Connections in a row that another client may have ended before it is said: one may have been ourselves, before a restart.
const TAKEN_OVER_SHOWN: u32 = 2;

#[derive(Debug, Clone, Copy)]
enum Phase {
    Waiting { until: Instant },
    Connecting { since: Instant },
    Subscribing { since: Instant, asked: bool },
    Online,
    Dropping,
}

#[derive(Debug)]
struct Outstanding {
    tag: Tag,
    part: Option<Part>,
    bytes: usize,
    departure: Option<Departure>,
    since: Instant,
    pkid: Option<u16>,
    verdict: Option<Verdict>,
}

/// The publisher's mind.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a fact of its own; together they are no state of anything
pub struct Session {
    ledger: String,
    confirm: Confirm,
    phase: Phase,
    online_since: Option<Instant>,
    head: Seq,
    next: Seq,
    highest_sent: Seq,
    acknowledged: Seq,
    /// Accepted without a gap, counting from where this connection resumed; behind `acknowledged` within the overlap.
    reached: Seq,
    /// Where `acknowledged` stood before each of this connection's latest messages.
    recent: VecDeque<Seq>,
    confirmed: Seq,
    told: (Seq, Seq),
    outstanding: VecDeque<Outstanding>,
    /// When the message that is the oldest one became it, unless it was sent later.
    moved: Instant,
    window: u16,
    keep_alive: Duration,
    heard: Instant,
    desync: Option<String>,
    /// One message at a time until an acknowledgement succeeds.
    careful: bool,
    /// A message was refused: let the others resolve, then go back to the cursor.
    rewind: bool,
    refusals: u32,
    paused_until: Option<Instant>,
    /// Since when no record was acknowledged and no connection lasted.
    outage_since: Option<Instant>,
    /// Attempts of this outage that failed after it was no longer short.
    attempts: u32,
    /// Connections in a row that another client with our id may have ended.
    taken_over: u32,
    /// Connections in a row that ended early and for no reason.
    idle_ends: u32,
    /// The broker has answered a message of records on this connection.
    records_answered: bool,
    nobody_listens: bool,
    last_refusal: Option<String>,
    stopping: bool,
    resends: Resends,
    resend_is_next: bool,
    resend: Option<Resend>,
    progress: Progress,
    parked: Parked,
    ignored_receipts: u64,
    owed: Owed,
    /// What the broker refuses that is not of records, and why.
    own_refusals: BTreeMap<Part, String>,
    size: MessageSize,
    pace: Pace,
    parts: Parts,
}

/// Where a connection resumes. Where only billing's word frees a record, what it has not confirmed is sent again: nobody
/// knows what the broker kept of what it acknowledged. Up to a limit, for a billing system that confirms nothing at all.
fn resumed(confirm: Confirm, acknowledged: Seq, confirmed: Seq) -> Seq {
    match confirm {
        Confirm::Broker => acknowledged,
        Confirm::Billing => confirmed.max(acknowledged.saturating_sub(RESUME_MAX)),
    }
}

impl Session {
    /// Starts offline, with the first attempt due at once. `acknowledged` and `confirmed` are the ledger's cursors.
    pub fn new(
        ledger: &str,
        confirm: Confirm,
        head: Seq,
        acknowledged: Seq,
        confirmed: Seq,
        now: Instant,
    ) -> Session {
        let told = (acknowledged, confirmed);
        // Confirmed implies acknowledged; and what the broker acknowledged is confirmed where its word is enough.
        let acknowledged = acknowledged.max(confirmed);
        let confirmed = if confirm == Confirm::Broker { acknowledged } else { confirmed };
        let reached = resumed(confirm, acknowledged, confirmed);
        Session {
            ledger: ledger.to_owned(),
            confirm,
            phase: Phase::Waiting { until: now },
            online_since: None,
            head,
            next: reached + 1,
            highest_sent: acknowledged,
            acknowledged,
            reached,
            recent: VecDeque::new(),
            confirmed,
            told,
            outstanding: VecDeque::new(),
            moved: now,
            window: WINDOW,
            keep_alive: Duration::ZERO,
            heard: now,
            desync: None,
            careful: true,
            rewind: false,
            refusals: 0,
            paused_until: None,
            outage_since: None,
            attempts: 0,
            taken_over: 0,
            idle_ends: 0,
            records_answered: false,
            nobody_listens: false,
            last_refusal: None,
            stopping: false,
            resends: Resends::new(now),
            resend_is_next: false,
            resend: None,
            progress: Progress::new(if confirm == Confirm::Billing { confirmed } else { 0 }),
            parked: Parked::default(),
            ignored_receipts: 0,
            owed: Owed::new(now),
            own_refusals: BTreeMap::new(),
            size: MessageSize::default(),
            pace: Pace::default(),
            parts: Parts::default(),
        }
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::Stored(head) => self.head = self.head.max(head),
            Event::Connected { receive_max, keep_alive } => {
                self.heard = now;
                self.desync = None; // whatever a dead connection still said
                self.window = WINDOW.min(receive_max.max(1));
                self.keep_alive = keep_alive;
                self.records_answered = false;
                if self.parts.connected() {
                    self.go_online(now); // records first
                } else {
                    self.phase = Phase::Subscribing { since: now, asked: false };
                }
            }
            Event::Up => {
                self.heard = now;
                if let Phase::Subscribing { asked, .. } = self.phase {
                    if !asked {
                        self.parts.take_subscriptions(false, now);
                    }
                    self.go_online(now);
                }
                self.parts.subscribed(now);
            }
            Event::Heard => self.heard = now,
            Event::Down { random, cause } => self.down(random, cause, now),
            Event::Sent(pkid) => self.sent(pkid),
            Event::Acknowledged(pkid, verdict) => {
                self.heard = now;
                self.acknowledged(pkid, verdict, now);
            }
            Event::Receipt(receipt) => {
                self.heard = now;
                self.receipt(receipt, now);
            }
        }
        self.parts.settle(now);
        self.watch_receipts(now);
        self.watch_progress(now);
    }

    fn go_online(&mut self, now: Instant) {
        self.phase = Phase::Online;
        self.online_since = Some(now);
        // Who was not there before may be now: each connection tries at once.
        (self.refusals, self.paused_until) = (0, None);
        self.moved = now;
        self.owed.online(now);
    }

    /// What to do now. Call again after each action that is done, until it says `WaitUntil`.
    pub fn poll(&mut self, now: Instant) -> Action {
        if self.told.0 < self.acknowledged {
            self.told.0 = self.acknowledged;
            return Action::Advance(Cursor::Acknowledged, self.acknowledged);
        }
        if self.told.1 < self.confirmed {
            self.told.1 = self.confirmed;
            return Action::Advance(Cursor::Confirmed, self.confirmed);
        }
        match self.phase {
            Phase::Dropping => Action::WaitUntil(None),
            Phase::Waiting { .. } if self.stopping => Action::WaitUntil(None),
            Phase::Waiting { until } if now < until => Action::WaitUntil(Some(until)),
            Phase::Waiting { .. } => {
                self.phase = Phase::Connecting { since: now };
                Action::Connect
            }
            Phase::Connecting { since } => self.expect(since + CONNECT_LIMIT, Fault::NotConnected, now),
            Phase::Subscribing { since, asked: false } => {
                self.phase = Phase::Subscribing { since, asked: true };
                let parts = self.parts.take_subscriptions(false, now);
                if parts.is_empty() {
                    self.go_online(now);
                    return self.online(now);
                }
                Action::Subscribe(parts)
            }
            Phase::Subscribing { since, .. } => self.expect(since + CONNECT_LIMIT, Fault::NotSubscribed, now),
            Phase::Online => self.online(now),
        }
    }

    /// A message of so many bytes was handed to the client. Messages must be handed over in the order of these calls.
    pub fn offered(&mut self, tag: Tag, bytes: usize, now: Instant) {
        let mut part = None;
        match &tag {
            Tag::Records(range) => {
                self.next = range.end() + 1;
                self.highest_sent = self.highest_sent.max(*range.end());
                self.resend_is_next = true;
            }
            Tag::Again(reason, range) => {
                self.resends.sent(*reason, *range.end(), bytes, now);
                self.resend_is_next = false;
            }
            Tag::Own(own) => {
                part = Some(*own);
                self.parts.said(*own);
            }
        }
        let departure = part.is_none().then(|| self.pace.sent(bytes));
        self.outstanding.push_back(Outstanding {
            tag,
            part,
            bytes,
            departure,
            since: now,
            pkid: None,
            verdict: None,
        });
    }

    /// These records can never be sent (damaged, or pruned by retention): the cursor passes over them in their turn.
    pub fn skip(&mut self, tag: Tag, now: Instant) {
        match tag {
            Tag::Records(range) => {
                self.next = range.end() + 1;
                self.highest_sent = self.highest_sent.max(*range.end());
                let tag = Tag::Records(range);
                let verdict = Some(Verdict::Accepted);
                self.outstanding.push_back(Outstanding {
                    tag,
                    part: None,
                    bytes: 0,
                    departure: None,
                    since: now,
                    pkid: Some(0),
                    verdict,
                });
                self.settle();
            }
            Tag::Again(reason, range) => self.resends.sent(reason, *range.end(), 0, now),
            Tag::Own(_) => {}
        }
    }

    /// Whether a message of the publisher's own may be handed to the client now.
    pub fn may_offer(&self) -> bool {
        matches!(self.phase, Phase::Online)
            && self.desync.is_none()
            && self.outstanding.len() < usize::from(self.window)
    }

    /// Whether that is the time for a message of this part. One that is left out, or has to go alone, waits.
    pub fn may_say(&self, part: Part, now: Instant) -> bool {
        self.may_offer() && self.parts.may_say(part, self.records_gone(), now)
    }

    /// What is left out because connections ended over it, until it went well again.
    pub fn left_out(&self) -> Vec<Part> {
        self.parts.left_out()
    }

    /// Connections ended over something other than records: on this one they go first.
    pub fn records_first(&self) -> bool {
        self.parts.doubtful()
    }

    /// Another client seems to use our client id.
    pub fn is_taken_over(&self) -> bool {
        self.taken_over >= TAKEN_OVER_SHOWN
    }

    /// Asks for records to be sent once more. Clamped to what was sent before.
    pub fn replay(&mut self, from: Seq, to: Seq) -> Resend {
        let sent = self.sent_seq();
        let (from, to) = (from.max(1), to.min(sent));
        if from > to { Resend::NeverSent(sent) } else { self.resends.ask(from..=to) }
    }

    /// Last seq that was sent: to be sent again, it need not be acknowledged.
    fn sent_seq(&self) -> Seq {
        self.acknowledged.max(self.next.saturating_sub(1))
    }

    /// No new records, no new connections: the process is going down.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Nothing is on its way, and nothing can be sent now: an end need not wait.
    pub fn is_idle(&self) -> bool {
        self.in_flight() == 0 && (self.next > self.head || self.paused_until.is_some())
    }

    /// What waits to be sent once more, at the end of this session.
    pub fn into_replays(self) -> impl Iterator<Item = (Seq, Seq)> {
        self.resends.into_ranges().map(RangeInclusive::into_inner)
    }

    /// Messages without an acknowledgement.
    pub fn in_flight(&self) -> usize {
        self.outstanding.iter().filter(|o| o.verdict.is_none()).count()
    }

    /// Whether subscriptions stand and messages may flow.
    pub fn is_online(&self) -> bool {
        matches!(self.phase, Phase::Online)
    }

    /// The furthest record that was handed over, or acknowledged before the process began.
    pub fn highest_sent(&self) -> Seq {
        self.highest_sent
    }

    /// Last seq of the unbroken run that the broker has acknowledged.
    pub fn acknowledged_seq(&self) -> Seq {
        self.acknowledged
    }

    /// Last seq that is confirmed.
    pub fn confirmed_seq(&self) -> Seq {
        self.confirmed
    }

    /// The broker said that nobody is subscribed, and nothing has been accepted since.
    pub fn nobody_listens(&self) -> bool {
        self.nobody_listens
    }

    /// The failure code that holds records back, until something is accepted again.
    pub fn last_refusal(&self) -> Option<&str> {
        self.last_refusal.as_deref()
    }

    /// The failure code of the last message of each part, unless the broker took it.
    pub fn own_refusals(&self) -> impl Iterator<Item = (Part, &str)> {
        self.own_refusals.iter().map(|(part, code)| (*part, code.as_str()))
    }

    /// How many bytes of `limit` a message of records should have: fewer, where larger ones end the connection or the line is
    /// slow.
    pub fn message_bytes(&self, limit: usize) -> usize {
        self.size.of(limit).min(self.pace.message())
    }

    /// Bytes beyond which messages of records end connections, where that was found.
    pub fn size_limit(&self) -> Option<usize> {
        self.size.limit()
    }

    /// Replays that wait for their turn or are on their way, as they were asked for.
    pub fn replays_waiting(&self) -> impl ExactSizeIterator<Item = RangeInclusive<Seq>> {
        self.resends.replays()
    }

    /// The last replay that was sent to its end.
    pub fn replayed(&self) -> Option<&Replayed> {
        self.resends.replayed()
    }

    /// Receipts that cannot be read, for another ledger, or for what was never sent.
    pub fn ignored_receipts(&self) -> u64 {
        self.ignored_receipts
    }

    fn expect(&mut self, deadline: Instant, fault: Fault, now: Instant) -> Action {
        if now >= deadline { self.give_up(fault) } else { Action::WaitUntil(Some(deadline)) }
    }

    fn give_up(&mut self, fault: Fault) -> Action {
        self.phase = Phase::Dropping;
        Action::Drop(fault)
    }

    fn online(&mut self, now: Instant) -> Action {
        if let Some(detail) = self.desync.take() {
            return self.give_up(Fault::Desync(detail));
        }
        let patience = self.keep_alive * 2 + SILENCE_GRACE;
        let mut wake = self.heard + patience;
        if now >= wake {
            return self.give_up(Fault::Silent(patience.as_secs()));
        }
        if let Some(oldest) = self.outstanding.iter().find(|o| o.verdict.is_none()) {
            let deadline = oldest.since.max(self.moved) + ACKNOWLEDGE_LIMIT;
            if now >= deadline {
                return self.give_up(Fault::Unacknowledged);
            }
            wake = wake.min(deadline);
        }
        self.parts.settle(now);
        let parts = self.parts.take_subscriptions(self.records_gone(), now);
        if !parts.is_empty() && !self.stopping {
            return Action::Subscribe(parts);
        }
        if let Some(at) = self.parts.wake(now) {
            wake = wake.min(at);
        }
        if let Some(due) = self.still_until(now) {
            wake = wake.min(due);
        }
        match self.paused_until {
            Some(until) if now < until => return Action::WaitUntil(Some(wake.min(until))),
            _ => self.paused_until = None,
        }
        self.next_send(wake, now)
    }

    fn next_send(&self, wake: Instant, now: Instant) -> Action {
        let alone = self.careful && self.records_in_flight().next().is_some();
        if self.stopping || self.rewind || alone || !self.may_offer() || !self.pace.has_room() {
            return Action::WaitUntil(Some(wake));
        }
        let records =
            (self.next <= self.head).then(|| Tag::Records(self.next..=one_message(self.next, self.head)));
        let again = self.resends.next().map(|(reason, range)| Tag::Again(reason, range));
        let in_flight = self.records_in_flight().filter(|o| matches!(o.tag, Tag::Again(..))).count();
        let ready_at = self.resends.ready_at(in_flight, self.window);
        let ready = again.clone().filter(|_| ready_at.is_some_and(|at| now >= at));
        let due = if self.resend_is_next { ready.or(records) } else { records.or(ready) };
        match (due, again.and(ready_at)) {
            (Some(tag), _) => Action::Send(tag),
            (None, Some(at)) => Action::WaitUntil(Some(wake.min(at))),
            (None, None) => Action::WaitUntil(Some(wake)),
        }
    }

    fn records_in_flight(&self) -> impl Iterator<Item = &Outstanding> {
        self.outstanding.iter().filter(|o| o.verdict.is_none() && o.part.is_none())
    }

    /// Records do not wait for anything else to be tried: the broker has answered some, or there are none.
    fn records_gone(&self) -> bool {
        self.records_answered || self.next > self.head
    }
}

fn one_message(from: Seq, to: Seq) -> Seq {
    to.min(from + MAX_RECORDS as Seq - 1)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

#[cfg(test)]
mod fire_tests;

#[cfg(test)]
mod gap_tests;

#[cfg(test)]
mod line_tests;

#[cfg(test)]
mod parts_tests;
