//! Whether others have seen more of this ledger than this data directory has.
//!
//! A snapshot of a machine, or an older copy of the data directory, may be brought back: then records with new contents
//! would get numbers that were given before. What tells is what the broker still holds of the ledger (its retained
//! status: how far it was, in which session), and billing's receipts. Values only: no I/O, no clock.

use serde::Deserialize;

use super::payload::{MAX_PACKET_BYTES, Receipt};
use crate::{ledger::PROVED_SESSIONS, model::Seq};

/// What of a `status` payload says how far a ledger was.
#[derive(Deserialize)]
struct Status {
    ledger: String,
    session: u64,
    last_seq: Seq,
}

/// What this data directory knows of its own past.
#[derive(Debug)]
pub struct Standing {
    ledger: String,
    /// The head when the publisher began: who ran before it cannot have said more.
    opened_at: Seq,
    /// The furthest head that was said since.
    said: Seq,
    /// The highest session number that was ever used.
    used: u64,
    /// This connection's, and that nobody can have used it before.
    session: u64,
    is_new: bool,
    /// No connection was ever made for this ledger before: it has begun here.
    begun_here: bool,
}

impl Standing {
    /// `session` is the last number that was given out before.
    pub fn new(ledger: &str, opened_at: Seq, session: u64) -> Standing {
        Standing {
            ledger: ledger.to_owned(),
            opened_at,
            said: 0,
            used: session,
            session,
            is_new: false,
            begun_here: session == 0,
        }
    }

    /// A connection is offered under this number, with a will that says `head`.
    pub fn offered(&mut self, session: u64, head: Seq) {
        self.is_new = session > self.used;
        self.used = self.used.max(session);
        self.session = session;
        self.said(head);
    }

    /// A status says that the ledger is so far.
    pub fn said(&mut self, head: Seq) {
        self.said = self.said.max(head);
    }

    /// Why the ledger must not go on, by the status that the broker held when the connection began. That of another ledger
    /// says nothing of this one. After a kill it is the last will, whose `last_seq` is that of its connection's beginning:
    /// then the session number tells.
    pub fn by_status(&self, payload: &[u8]) -> Option<String> {
        let payload = (payload.len() <= MAX_PACKET_BYTES).then_some(payload)?;
        let status: Status = serde_json::from_slice(payload).ok()?;
        // A proved restore goes on far behind every session that was before it: what those said was proved not to be needed.
        if status.ledger != self.ledger || status.session.saturating_add(PROVED_SESSIONS) <= self.used {
            return None;
        }
        let known = self.opened_at.max(self.said);
        let sessions = if self.is_new { self.session.saturating_sub(1) } else { self.used };
        (status.last_seq > known || status.session > sessions).then(|| {
            format!(
                "the status that the broker holds is of session {} and says seq {}; here are {sessions} sessions and seq {known}: others have seen more of it (was a snapshot, or an older copy of the data directory, brought back?)",
                status.session, status.last_seq
            )
        })
    }

    /// The same by a receipt; up to `sent` records were sent since the publisher began. Of a ledger that has begun here nobody
    /// else has had a record: that is a fault of who confirms, and would end one ledger after another.
    pub fn by_receipt(&self, receipt: &Receipt, sent: Seq) -> Option<String> {
        let known = self.opened_at.max(sent);
        (!self.begun_here && receipt.ledger == self.ledger && receipt.confirmed_seq > known).then(|| {
            format!(
                "billing has confirmed seq {}; here it was at seq {known}: others have seen more of it (was a snapshot, or an older copy of the data directory, brought back?)",
                receipt.confirmed_seq
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LEDGER: &str = "0123456789abcdef0123456789abcdef";

    fn status(session: u64, last_seq: Seq) -> Vec<u8> {
        json!({"v": 1, "state": "offline", "ledger": LEDGER, "session": session, "last_seq": last_seq, "more": [1]})
            .to_string()
            .into_bytes()
    }

    /// Opened at seq 150, 5 sessions so far, and a sixth begins.
    fn standing() -> Standing {
        let mut standing = Standing::new(LEDGER, 150, 5);
        standing.offered(6, 152);
        standing
    }

    #[test]
    fn a_proved_restore_goes_on_though_the_broker_has_heard_of_more() {
        let mut restored = Standing::new(LEDGER, 46, 1 + PROVED_SESSIONS);
        restored.offered(2 + PROVED_SESSIONS, 49);
        assert_eq!(restored.by_status(&status(1, 55)), None, "of before the restore");
        assert!(restored.by_status(&status(2 + PROVED_SESSIONS, 60)).is_some(), "of behind it");
    }

    #[test]
    fn a_restart_in_any_way_is_no_snapshot() {
        let standing = standing();
        for (session, last_seq) in [
            (5, 100), // a kill: the will, as of the connection's beginning
            (5, 150), // an orderly end
            (3, 10),  // a broker that kept an older one
            (5, 152), // said by this process
        ] {
            assert_eq!(standing.by_status(&status(session, last_seq)), None, "{session} {last_seq}");
        }
    }

    #[test]
    fn others_that_were_further_or_connected_since_are_noticed() {
        let standing = standing();
        for (session, last_seq) in [
            (5, 200), // the same session went on, and ended in order
            (6, 100), // the number that is ours was used before
            (6, 150),
            (7, 151),
            (9, 200),
        ] {
            let why = standing.by_status(&status(session, last_seq)).unwrap();
            assert!(why.contains(&format!("session {session} and says seq {last_seq}")), "{why}");
        }
    }

    #[test]
    fn later_connections_know_what_this_process_has_said() {
        let mut standing = standing();
        standing.said(300);
        standing.offered(7, 310);
        assert_eq!(standing.by_status(&status(6, 310)), None);
        assert!(standing.by_status(&status(6, 311)).is_some());
        assert!(standing.by_status(&status(7, 310)).is_some());
        // Its number could not be written: the last one is used again, and is ours.
        standing.offered(7, 320);
        assert_eq!(standing.by_status(&status(7, 320)), None);
        assert!(standing.by_status(&status(8, 320)).is_some());
    }

    #[test]
    fn what_is_not_of_this_ledger_says_nothing() {
        let standing = standing();
        for other in [
            json!({"ledger": "fedcba9876543210fedcba9876543210", "session": 99, "last_seq": 999}),
            json!({"ledger": LEDGER, "session": -1, "last_seq": 999}),
            json!({"ledger": LEDGER, "last_seq": 999}),
            json!([]),
        ] {
            assert_eq!(standing.by_status(other.to_string().as_bytes()), None, "{other}");
        }
        assert_eq!(standing.by_status(b""), None);
        assert_eq!(standing.by_status(&vec![b' '; MAX_PACKET_BYTES + 1]), None);
    }

    #[test]
    fn a_receipt_for_what_was_never_here_is_noticed() {
        let standing = standing();
        let receipt = |ledger: &str, confirmed_seq| {
            let text = json!({"ledger": ledger, "confirmed_seq": confirmed_seq}).to_string();
            Receipt::parse(text.as_bytes()).unwrap()
        };
        // Sent before a crash, and not known as sent: the cursor may stand a little earlier.
        assert_eq!(standing.by_receipt(&receipt(LEDGER, 150), 100), None);
        assert!(standing.by_receipt(&receipt(LEDGER, 151), 100).unwrap().contains("confirmed seq 151"));
        assert_eq!(standing.by_receipt(&receipt(LEDGER, 151), 151), None);
        assert_eq!(standing.by_receipt(&receipt("another", 999), 100), None);
        // A consumer that confirms one too many must not end one ledger after another.
        let mut begun = Standing::new(LEDGER, 3, 0);
        begun.offered(1, 3);
        assert_eq!(begun.by_receipt(&receipt(LEDGER, 4), 3), None);
        begun.offered(2, 3);
        assert_eq!(begun.by_receipt(&receipt(LEDGER, 4), 3), None);
    }
}
