//! What a connection does besides sending records: its subscriptions, and messages of the gateway's own.
//!
//! Nothing of it may hold records back. Where connections end over it, records go first and the rest follows one part at
//! a time, so that it is known which part ended a connection; that part is left out, and tried again after growing
//! pauses. Knows no topics and no packets.

use std::time::{Duration, Instant};

use super::super::link::Cause;

/// Connections that end over something other than records before the parts are tried one at a time, and trials of one
/// part that end the connection before it is left out: one may be the network.
const LOSSES_TO_DOUBT: u32 = 2;
/// How long a subscription must have been quiet to count as harmless: retained messages follow the SUBACK at once, and
/// the size of one stands in its first bytes. No longer than the shortest pause of another client with our id.
const SETTLE: Duration = Duration::from_secs(1);
/// First pause before a part that was left out is tried again: each trial may cost a connection.
const OUT_FIRST: Duration = Duration::from_secs(600);
/// Longest pause before a part that was left out is tried again.
const OUT_LONGEST: Duration = Duration::from_secs(86_400);
/// After so long without a message that could not be taken, earlier ones are forgotten.
const INCOMING_MEMORY: Duration = Duration::from_secs(3600);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The subscription to receipts.
    Receipts,
    /// The subscription to commands.
    Commands,
    /// The subscription to the retained descriptions of meters.
    Descriptions,
    /// The messages on `status`.
    Status,
    /// The messages below `inventory/`.
    Inventory,
    /// The answers to commands.
    Responses,
}

/// In the order in which they are asked for.
const SUBSCRIPTIONS: [Part; 3] = [Part::Receipts, Part::Commands, Part::Descriptions];
/// Whose messages are the likely ones, where it is not known whose it was; receipts last, billing needs them.
const SUSPECTS: [Part; 3] = [Part::Commands, Part::Descriptions, Part::Receipts];

impl Part {
    fn is_subscription(self) -> bool {
        SUBSCRIPTIONS.contains(&self)
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct State {
    /// Connections that ended over it.
    strikes: u32,
    /// How often it was left out; 0 once it went well again.
    times: u32,
    out_until: Option<Instant>,
    /// SUBSCRIBE or messages without an acknowledgement.
    pending: u32,
    /// It is subscribed to, and counts as harmless from then on.
    quiet_from: Option<Instant>,
    /// It was asked for on this connection.
    asked: bool,
    /// It went well on this connection.
    proven: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Parts {
    states: [State; ALL.len()],
    /// Connections in a row that ended while something other than records waited for an answer.
    losses: u32,
    /// Connections that ended because something came that could not be taken.
    incoming: u32,
    incoming_at: Option<Instant>,
    /// On this connection they are tried one at a time.
    doubtful: bool,
    last_pending: Option<Part>,
}

impl Parts {
    fn state(&self, part: Part) -> State {
        self.states.get(part as usize).copied().unwrap_or_default()
    }

    fn change(&mut self, part: Part, change: impl FnOnce(&mut State)) {
        self.states.get_mut(part as usize).map(change);
    }

    fn is_out(&self, part: Part, now: Instant) -> bool {
        self.state(part).out_until.is_some_and(|until| now < until)
    }

    fn on_trial(&self, part: Part) -> bool {
        let state = self.state(part);
        !state.proven && (self.doubtful || state.times > 0)
    }

    fn under_way(&self, part: Part) -> bool {
        let state = self.state(part);
        state.pending > 0 || (state.quiet_from.is_some() && !state.proven)
    }

    /// The one that is being tried alone.
    fn trial(&self) -> Option<Part> {
        ALL.into_iter().find(|part| self.on_trial(*part) && self.under_way(*part))
    }

    /// A connection begins; whether records go first, and the rest one after another.
    pub(super) fn connected(&mut self) -> bool {
        self.doubtful = self.losses >= LOSSES_TO_DOUBT || self.incoming >= LOSSES_TO_DOUBT;
        for state in &mut self.states {
            *state = State {
                strikes: state.strikes,
                times: state.times,
                out_until: state.out_until,
                ..State::default()
            };
        }
        self.doubtful
    }

    /// Whether parts are tried one at a time.
    pub(super) fn doubtful(&self) -> bool {
        self.doubtful
    }

    /// The subscriptions that are due: all at once, or the next one to be tried alone once records have gone.
    pub(super) fn take_subscriptions(&mut self, records_gone: bool, now: Instant) -> Vec<Part> {
        let due = |parts: &Parts, part: Part| !parts.state(part).asked && !parts.is_out(part, now);
        let mut asked: Vec<Part> =
            SUBSCRIPTIONS.into_iter().filter(|p| due(self, *p) && !self.on_trial(*p)).collect();
        if asked.is_empty() && records_gone && self.trial().is_none() {
            asked.extend(SUBSCRIPTIONS.into_iter().find(|p| due(self, *p)));
        }
        for part in &asked {
            self.change(*part, |state| (state.asked, state.pending) = (true, 1));
        }
        asked
    }

    /// SUBACK.
    pub(super) fn subscribed(&mut self, now: Instant) {
        for part in SUBSCRIPTIONS {
            self.change(part, |state| {
                if state.pending > 0 {
                    (state.pending, state.quiet_from) = (0, Some(now + SETTLE));
                }
            });
        }
    }

    /// Takes note of subscriptions that have been quiet for long enough.
    pub(super) fn settle(&mut self, now: Instant) {
        for part in SUBSCRIPTIONS {
            if self.state(part).quiet_from.is_some_and(|from| now >= from) {
                self.went_well(part);
            }
        }
    }

    fn went_well(&mut self, part: Part) {
        self.change(part, |state| {
            *state = State { asked: state.asked, proven: true, pending: state.pending, ..State::default() };
        });
    }

    /// Whether a message of this part may be sent now.
    pub(super) fn may_say(&self, part: Part, records_gone: bool, now: Instant) -> bool {
        !self.is_out(part, now) && (!self.on_trial(part) || (records_gone && self.trial().is_none()))
    }

    /// One was sent.
    pub(super) fn said(&mut self, part: Part) {
        self.change(part, |state| state.pending += 1);
    }

    /// One was acknowledged.
    pub(super) fn answered(&mut self, part: Part) {
        self.change(part, |state| state.pending = state.pending.saturating_sub(1));
        self.went_well(part);
    }

    /// Whether anything waits for an answer: then a lost connection says nothing about records.
    pub(super) fn pending(&self) -> bool {
        self.states.iter().any(|state| state.pending > 0)
    }

    /// Whether anything was asked for so lately that it may end the connection.
    pub(super) fn unsettled(&self) -> bool {
        ALL.into_iter().any(|part| self.under_way(part))
    }

    /// The connection is gone. `good`: it had lasted.
    pub(super) fn lost(&mut self, cause: Cause, good: bool, now: Instant) {
        if good {
            self.losses = 0;
            self.last_pending = None;
            self.states.iter_mut().for_each(|state| state.strikes = 0);
        }
        match cause {
            Cause::Incoming => {
                if self.incoming_at.is_none_or(|at| now.saturating_duration_since(at) > INCOMING_MEMORY) {
                    self.incoming = 0;
                }
                self.incoming += 1;
                self.incoming_at = Some(now);
                let suspect = match self.trial() {
                    Some(part) if part.is_subscription() => Some(part),
                    _ if self.doubtful => SUSPECTS.into_iter().find(|p| self.state(*p).asked),
                    _ => None,
                };
                if let Some(part) = suspect {
                    self.leave_out(part, now);
                }
            }
            Cause::Closed | Cause::TooLarge => {
                if let Some(part) = self.trial() {
                    self.change(part, |state| state.strikes += 1);
                    let state = self.state(part);
                    if state.strikes >= LOSSES_TO_DOUBT || state.times > 0 {
                        self.leave_out(part, now);
                    }
                } else if let Some(part) = ALL.into_iter().find(|p| self.state(*p).pending > 0) {
                    self.losses += 1;
                    if self.last_pending.replace(part) == Some(part) && !part.is_subscription() {
                        self.change(part, |state| state.strikes = LOSSES_TO_DOUBT - 1);
                    }
                } else if self.unsettled() {
                    self.losses += 1;
                    self.last_pending = None;
                }
            }
            Cause::Unreachable | Cause::TakenOver | Cause::NoRetain | Cause::NoConnack | Cause::Said => {}
        }
        for state in &mut self.states {
            (state.pending, state.quiet_from, state.asked) = (0, None, false);
        }
    }

    fn leave_out(&mut self, part: Part, now: Instant) {
        self.change(part, |state| {
            state.out_until = Some(now + OUT_LONGEST.min(OUT_FIRST * (1 << state.times.min(8))));
            state.times += 1;
            state.strikes = 0;
        });
    }

    /// Those that are left out, until they went well again.
    pub(super) fn left_out(&self) -> Vec<Part> {
        ALL.into_iter().filter(|part| self.state(*part).times > 0).collect()
    }

    /// When there is something to be done next.
    pub(super) fn wake(&self, now: Instant) -> Option<Instant> {
        let times = self.states.iter().flat_map(|s| [s.out_until, s.quiet_from]);
        times.flatten().filter(|at| *at > now).min()
    }
}

/// In the order of suspicion where one of several waits for an answer: status is sent first.
const ALL: [Part; 6] =
    [Part::Receipts, Part::Commands, Part::Descriptions, Part::Status, Part::Inventory, Part::Responses];
