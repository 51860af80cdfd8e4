//! Before anything is sent on a connection: what the broker holds of this ledger's status is compared with what this data
//! directory knows. Stands between CONNACK and the session, which hears of the connection only afterwards.
//!
//! Where billing's word frees a record, billing is asked as well: the last record that it has confirmed is sent again, and
//! its receipt says how far it is. Which of both has seen more is `standing`'s to say; that a new ledger begins is the
//! daemon's to do.

use std::time::Duration;

use tokio::{
    select,
    time::{Instant, sleep},
};
use tracing::{error, warn};

use super::{
    super::{
        link::{Cause, Message},
        payload::{self, MAX_RECORDS_BYTES, Receipt},
        session::{Event, Part, Verdict},
    },
    Asked, Driver, TURN, changed,
    records::RECORDS_SCHEMA,
};
use crate::{config::Confirm, ledger::Cursor, model::Warning};

/// How long a retained status is waited for behind the SUBACK. Most brokers send it at once; where there is none, the
/// first records of a connection wait so long.
const RETAINED_PATIENCE: Duration = Duration::from_secs(1);
/// From CONNACK to the SUBACK; the session's own limit for a connection is twice as long.
const SUBACK_LIMIT: Duration = Duration::from_secs(5);
/// Connections in a row that end within the comparison before one goes without it: a broker or a policy that hangs up on
/// this subscription must not hold the records back.
const LOSSES_TO_SKIP: u32 = 2;

/// How long billing's receipt is waited for: it answers a message at once, or it is not there.
const RECEIPT_WAIT: Duration = Duration::from_secs(2);

/// The record that is sent again to hear from billing. The session knows nothing of it, nor of its acknowledgement.
#[derive(Default)]
enum Question {
    #[default]
    None,
    /// Handed to the client.
    Handed,
    /// Left with this packet id.
    Sent(u16),
}

/// How the comparison stands.
#[derive(Default)]
pub(super) struct Comparison {
    /// What the session hears when it is over; `None` when none is under way.
    connected: Option<Event>,
    /// When it ends without an answer.
    pub(super) until: Option<Instant>,
    answered: bool,
    /// The status is compared, billing is being asked.
    asks_billing: bool,
    question: Question,
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
        (self.until, self.asks_billing, self.question) = (None, false, Question::None);
    }

    /// Whether a message that left is the question.
    pub(super) fn is_question(&mut self, pkid: u16) -> bool {
        let handed = matches!(self.question, Question::Handed);
        if handed {
            self.question = Question::Sent(pkid);
        }
        handed
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
            self.skip_comparison(
                "connections end over the comparison with the gateway's own status and billing's receipts",
            );
            return self.session.handle(connected, Instant::now().into_std());
        }
        (self.comparison.connected, self.comparison.answered) = (Some(connected), false);
        self.comparison.until = Some(Instant::now() + SUBACK_LIMIT);
        self.compare_by(Part::Status);
    }

    /// A subscription with one packet; its SUBACK is known by its place among the others. What the broker holds may come
    /// before it.
    fn compare_by(&mut self, part: Part) {
        let topic = self.topic(part);
        self.asked.push_back(Asked::Comparison(part));
        if !self.link.as_ref().is_some_and(|link| link.subscribe(vec![topic])) {
            self.lose("the client does not take a subscription", Cause::Said);
        }
    }

    /// The SUBACK of the subscription to the status, or to billing's answer.
    pub(super) fn compare_answered(&mut self, part: Part, granted: bool) {
        if !self.comparison.is_under_way() || self.comparison.asks_billing != (part == Part::Receipts) {
            return; // what was waited for has come already
        }
        if self.comparison.asks_billing {
            if !(granted && self.ask_billing()) {
                self.enter();
            }
        } else if granted {
            self.comparison.answered = true;
            self.comparison.until = Some(Instant::now() + RETAINED_PATIENCE);
        } else {
            self.skip_comparison("the broker refuses the subscription to the gateway's own status");
            self.compared();
        }
    }

    /// A message on `status`: ours from an earlier connection, unless others were there.
    pub(super) fn hear_status(&mut self, payload: &[u8], retained: bool) {
        if !self.comparison.is_under_way() || self.comparison.asks_billing || !retained {
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
            if self.comparison.asks_billing {
                self.enter();
            } else if self.comparison.answered {
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

    /// Nothing speaks against this ledger by the status; billing is asked where it has ever confirmed anything.
    fn compared(&mut self) {
        if let Some(link) = &self.link {
            link.unsubscribe(self.names.status()); // else all that we say comes back
        }
        if self.settings.confirm == Confirm::Broker || self.ledger.cursor(Cursor::Confirmed) == 0 {
            return self.enter();
        }
        self.comparison.asks_billing = true;
        self.comparison.until = Some(Instant::now() + RECEIPT_WAIT);
        self.compare_by(Part::Receipts);
    }

    /// Sends the last confirmed record again; false where it is not kept.
    fn ask_billing(&mut self) -> bool {
        let last = self.ledger.cursor(Cursor::Confirmed);
        let lines = self.ledger.read(last, 1, MAX_RECORDS_BYTES).unwrap_or_default();
        if lines.first().is_none_or(|line| line.seq != last) {
            return false;
        }
        let payload = payload::records(&self.names, self.ledger.id(), &lines);
        let message = Message { topic: self.names.records(), payload, retain: false, schema: RECORDS_SCHEMA };
        let handed = self.link.as_ref().is_some_and(|link| link.publish(message));
        if handed {
            self.comparison.question = Question::Handed;
        }
        handed
    }

    /// Whether it is the question that was acknowledged. Where nobody has it, nobody answers.
    pub(super) fn question_acknowledged(&mut self, pkid: u16, verdict: &Verdict) -> bool {
        if !matches!(self.comparison.question, Question::Sent(sent) if sent == pkid) {
            return false;
        }
        self.comparison.question = Question::None;
        if *verdict != Verdict::Accepted {
            self.billing_answered();
        }
        true
    }

    /// A receipt for this ledger came, and does not speak against it; or none will.
    pub(super) fn billing_answered(&mut self) {
        if self.comparison.asks_billing {
            self.enter();
        }
    }

    fn enter(&mut self) {
        (self.comparison.until, self.comparison.asks_billing, self.comparison.losses) = (None, false, 0);
        if let Some(connected) = self.comparison.connected.take() {
            self.session.handle(connected, Instant::now().into_std());
        }
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
        error!(ledger = self.ledger.id(), "nothing more is sent of this ledger: {why}");
        // Before the connection ends: then the broker holds our will, which says less.
        let noted = self.note_end(&why);
        self.lose(&why, Cause::Said);
        self.comparison.ended = Some((why, noted));
    }

    fn note_end(&self, why: &str) -> bool {
        let noted = self.ledger.disprove_end(why);
        if let Err(error) = &noted {
            error!(%error, "that this ledger must end could not be noted beside it, and is tried again");
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

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use serde_json::{Map, Value, json};
    use tokio::{
        sync::{mpsc, watch},
        time::timeout,
    };

    use super::super::{
        super::{
            link::{Broker, Link, LinkEvent, Message, Offer},
            topics::Topics,
        },
        Context, PublisherState, run,
    };
    use crate::{
        config::{Confirm, Mqtt, MqttVersion},
        ledger::{Cursor, Ledger, MemoryLedger},
        model::{ClockState, Draft, Utc},
    };

    const LEDGER: &str = "0123456789abcdef0123456789abcdef";

    /// A broker that sends what it holds before its SUBACK, as MQTT allows.
    struct Early {
        /// It ends a connection that subscribes to receipts alone.
        hangs_up: bool,
    }

    struct EarlyLink {
        hangs_up: bool,
        say: mpsc::UnboundedSender<LinkEvent>,
        said: mpsc::UnboundedReceiver<LinkEvent>,
    }

    impl Broker for Early {
        fn connect(&self, _: Offer) -> Box<dyn Link> {
            let (say, said) = mpsc::unbounded_channel();
            let keep_alive = Duration::from_secs(20);
            let connected =
                LinkEvent::Connected { receive_max: 10, max_packet: 100_000, keep_alive, retain: true };
            say.send(connected).unwrap();
            Box::new(EarlyLink { hangs_up: self.hangs_up, say, said })
        }
    }

    impl Link for EarlyLink {
        fn event(&mut self) -> BoxFuture<'_, LinkEvent> {
            Box::pin(async { self.said.recv().await.unwrap() })
        }

        fn max_payload(&self, _: &str) -> usize {
            100_000
        }

        fn publish(&self, _: Message) -> bool {
            true
        }

        fn subscribe(&self, filters: Vec<String>) -> bool {
            for topic in filters.iter().filter(|topic| topic.ends_with("/status")) {
                let payload = json!({"ledger": LEDGER, "session": 0, "last_seq": 0}).to_string();
                let payload = Bytes::from(payload);
                self.say.send(LinkEvent::Message { topic: topic.clone(), payload, retained: true }).unwrap();
            }
            let receipts_alone = matches!(&*filters, [topic] if topic.ends_with("/receipt"));
            let answer = if self.hangs_up && receipts_alone {
                LinkEvent::Failed("no such thing here".into())
            } else {
                LinkEvent::Subscribed(vec![true; filters.len()])
            };
            self.say.send(answer).is_ok()
        }

        fn disconnect(&self) {}
    }

    /// The publisher's state once it is online.
    async fn online(broker: Early, confirm: Confirm) -> PublisherState {
        let ledger = MemoryLedger::new(LEDGER);
        let draft = Draft::change("test", Map::new(), Utc::UNIX_EPOCH, ClockState::Synced);
        ledger.append(vec![draft]).await.unwrap();
        ledger.advance(Cursor::Acknowledged, 1);
        ledger.advance(Cursor::Confirmed, 1);
        let (state, mut shown) = watch::channel(PublisherState::default());
        let (_inbox, requests) = mpsc::channel(1);
        let (events, _heard) = mpsc::channel(1);
        let (_status, status) = watch::channel(Value::Null);
        let (_inventory, inventory) = watch::channel(BTreeMap::new());
        let (_stop, shutdown) = watch::channel(false);
        let text = |text: &str| text.to_owned();
        let publisher = tokio::spawn(run(Context {
            settings: Mqtt {
                host: text("broker"),
                port: 1883,
                tls: None,
                version: MqttVersion::V5,
                topic_prefix: text("metering/v1"),
                client_id: text("gw-01"),
                username: None,
                password_file: None,
                confirm,
            },
            names: Topics { prefix: text("metering/v1"), site: text("s"), gateway: text("gw-01") },
            ledger: Arc::new(ledger),
            inbox: requests,
            events,
            status,
            inventory,
            state,
            shutdown,
            broker: Arc::new(broker),
        }));
        let online = timeout(Duration::from_secs(600), shown.wait_for(|state| state.connected)).await;
        let online = online.expect("it comes online").unwrap().clone();
        publisher.abort();
        online
    }

    #[tokio::test(start_paused = true)]
    async fn a_status_that_comes_before_its_suback_is_no_refused_subscription() {
        for confirm in [Confirm::Broker, Confirm::Billing] {
            let online = online(Early { hangs_up: false }, confirm).await;
            assert_eq!((online.last_error, online.warnings), (None, vec![]), "{confirm:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_hangs_up_on_the_question_holds_nothing_back() {
        let online = online(Early { hangs_up: true }, Confirm::Billing).await;
        assert_eq!(online.warnings[0].code, "end_not_compared");
    }
}
