//! Before anything is sent on a connection: what the broker holds of this ledger's status is compared with what this data
//! directory knows. Stands between CONNACK and the session, which hears of the connection only afterwards.
//!
//! Which of both has seen more is `standing`'s to say; that a new ledger begins is the daemon's to do.

use std::time::Duration;

use tokio::{
    select,
    time::{Instant, sleep},
};
use tracing::{error, warn};

use super::{
    super::{link::Cause, payload::Receipt},
    Driver, TURN, changed,
};
use crate::{model::Warning, publish::session::Event};

/// How long a retained status is waited for behind the SUBACK. Most brokers send it at once; where there is none, the
/// first records of a connection wait so long.
const RETAINED_PATIENCE: Duration = Duration::from_secs(1);
/// From CONNACK to the SUBACK; the session's own limit for a connection is twice as long.
const SUBACK_LIMIT: Duration = Duration::from_secs(5);
/// Connections in a row that end within the comparison before one goes without it: a broker or a policy that hangs up on
/// this subscription must not hold the records back.
const LOSSES_TO_SKIP: u32 = 2;

/// How the comparison stands.
#[derive(Default)]
pub(super) struct Comparison {
    /// What the session hears when it is over; `None` when none is under way.
    connected: Option<Event>,
    /// When it ends without an answer.
    pub(super) until: Option<Instant>,
    answered: bool,
    losses: u32,
    /// Why there was none on this connection.
    skipped: Option<String>,
    /// Why nothing is sent any more, and whether that is noted in the ledger.
    pub(super) ended: Option<(String, bool)>,
}

impl Comparison {
    pub(super) fn is_under_way(&self) -> bool {
        self.connected.is_some()
    }

    /// The connection is gone.
    pub(super) fn lost(&mut self) {
        if self.connected.take().is_some() {
            self.losses += 1;
        }
        self.until = None;
    }

    pub(super) fn warning(&self) -> Option<Warning> {
        let text = self.skipped.as_ref()?.clone();
        Some(Warning { code: "end_not_compared", text })
    }
}

impl Driver {
    /// CONNACK: asks for the retained status first, where the broker keeps one.
    pub(super) fn compare(&mut self, connected: Event, retain: bool) {
        if !retain {
            self.skip_comparison("the broker keeps no status of this gateway");
            return self.session.handle(connected, Instant::now().into_std());
        }
        if self.comparison.losses >= LOSSES_TO_SKIP {
            self.comparison.losses = 0;
            self.skip_comparison("connections end over the subscription to the gateway's own status");
            return self.session.handle(connected, Instant::now().into_std());
        }
        (self.comparison.connected, self.comparison.answered) = (Some(connected), false);
        self.comparison.until = Some(Instant::now() + SUBACK_LIMIT);
        let status = self.names.status();
        if !self.link.as_ref().is_some_and(|link| link.subscribe(vec![status])) {
            self.lose("the client does not take a subscription", Cause::Said);
        }
    }

    /// The SUBACK of that.
    pub(super) fn compare_answered(&mut self, granted: bool) {
        if granted {
            self.comparison.answered = true;
            self.comparison.until = Some(Instant::now() + RETAINED_PATIENCE);
        } else {
            self.skip_comparison("the broker refuses the subscription to the gateway's own status");
            self.compared();
        }
    }

    /// A message on `status`: ours from an earlier connection, unless others were there.
    pub(super) fn hear_status(&mut self, payload: &[u8], retained: bool) {
        if !self.comparison.is_under_way() || !retained {
            return; // what we have just said ourselves
        }
        self.comparison.skipped = None;
        match self.standing.by_status(payload) {
            Some(why) => self.end_ledger(why),
            None => self.compared(),
        }
    }

    /// True when the receipt proves that others have seen more.
    pub(super) fn is_disproved_by(&mut self, receipt: &Receipt) -> bool {
        let why = self.standing.by_receipt(receipt, self.session.highest_sent());
        let disproved = why.is_some();
        if let Some(why) = why {
            self.end_ledger(why);
        }
        disproved
    }

    /// Ends the wait for what does not come.
    pub(super) fn notice_comparison(&mut self) {
        if self.comparison.is_under_way()
            && self.comparison.until.is_some_and(|until| Instant::now() >= until)
        {
            if self.comparison.answered {
                self.nothing_held();
                self.compared();
            } else {
                self.lose(&format!("no SUBACK within {} s", SUBACK_LIMIT.as_secs()), Cause::Closed);
            }
        }
    }

    /// As at the very first connection. Later ones should find what was said before.
    fn nothing_held(&mut self) {
        self.comparison.skipped = None;
        if self.session.acknowledged_seq() > 0 {
            self.skip_comparison("the broker holds no status of this gateway");
        }
    }

    fn compared(&mut self) {
        let Some(connected) = self.comparison.connected.take() else { return };
        (self.comparison.until, self.comparison.losses) = (None, 0);
        if let Some(link) = &self.link {
            link.unsubscribe(self.names.status()); // else all that we say comes back
        }
        self.session.handle(connected, Instant::now().into_std());
    }

    fn skip_comparison(&mut self, why: &str) {
        let topic = self.names.status();
        let text = format!(
            "{why} ({topic}): that a snapshot or an older copy of the data directory was brought back would go unnoticed\n  hint: allow the gateway to read it, and the broker to keep it"
        );
        if self.comparison.skipped.as_ref() != Some(&text) {
            warn!("{text}");
        }
        self.comparison.skipped = Some(text);
    }

    fn end_ledger(&mut self, why: String) {
        error!(why, "nothing more is sent of this ledger");
        // Before the connection ends: then the broker holds our will, which says less.
        let noted = self.note_end(&why);
        self.lose(&why, Cause::Said);
        self.comparison.ended = Some((why, noted));
    }

    fn note_end(&self, why: &str) -> bool {
        let noted = self.ledger.disprove_end(why);
        if let Err(error) = &noted {
            error!(%error, "that could not be noted, and is tried again");
        }
        noted.is_ok()
    }

    /// Nothing leaves any more. Notes in the ledger that it has to end, until that has succeeded, and waits to be taken
    /// down by whoever begins the next one.
    pub(super) async fn rest(&mut self) {
        while !*self.shutdown.borrow_and_update() {
            if let Some((why, false)) = self.comparison.ended.clone() {
                let noted = self.note_end(&why);
                self.comparison.ended = Some((why, noted));
            }
            self.show();
            select! {
                () = changed(&mut self.shutdown) => {}
                Some(_) = self.inbox.recv(), if self.inbox_open => {} // whoever asked waits in vain, but not for ever
                () = sleep(TURN) => {}
            }
        }
    }
}
