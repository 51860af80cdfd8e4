//! The publisher's loop: asks the session what to do, does it, tells it what came of it.
//!
//! Holds what is waiting to be said (status, inventory, answers); records wait in the ledger alone. Knows no client
//! crate and takes no decision about acknowledgements. `ports` is what the daemon sees, `records` sends them, `own` says
//! everything else, `heard` takes what comes back, `receipts` shows how far billing is, `compare` looks first
//! whether others have seen more of the ledger.

mod compare;
mod heard;
mod own;
mod parked;
mod ports;
mod receipts;
mod records;
mod retained;

pub use ports::{Context, Incoming, Inventory, Outgoing, PublisherState};

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::pending,
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, error, info, warn};

use super::{
    credentials::{self, OfferError},
    link::{Broker, Cause, Failure, Link, LinkEvent, Message, Offer},
    session::{Action, Event, Part, Session, Tag},
    standing::Standing,
    topics::Topics,
};
use crate::{
    config::Mqtt,
    ledger::{Cursor, Head, SharedLedger},
    model::{MeterId, Seq, Warning},
};

use compare::Comparison;
use own::RESPONSE_SCHEMA;
use retained::Retained;

/// At least so long between two of them: several things change at once when something happens.
const STATUS_DEBOUNCE: Duration = Duration::from_secs(1);
/// How long the last acknowledgements are waited for at shutdown.
const LAST_ACKS: Duration = Duration::from_millis(1500);
/// How long the offline message and the goodbye may take after that.
const FAREWELL: Duration = Duration::from_millis(400);
/// The loop turns at least so often: `last_turn` is what health is judged by.
const TURN: Duration = Duration::from_secs(10);
/// systemd's directory of credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// Publishes until `shutdown`, then says goodbye; that takes two seconds at most: the daemon promises five for its whole end.
/// Returns the replays that were not sent.
pub async fn run(context: Context) -> Vec<Outgoing> {
    Driver::new(context).run().await
}

/// Who waits for a SUBACK.
enum Asked {
    Comparison(Part),
    Session(Vec<Part>),
}

#[allow(clippy::struct_excessive_bools)] // each is an edge of its own that was told or not
struct Driver {
    settings: Mqtt,
    names: Topics,
    ledger: SharedLedger,
    head: watch::Receiver<Head>,
    inbox: mpsc::Receiver<Outgoing>,
    inbox_open: bool,
    events: mpsc::Sender<Incoming>,
    status: watch::Receiver<Value>,
    inventory: watch::Receiver<Inventory>,
    state: watch::Sender<PublisherState>,
    shutdown: watch::Receiver<bool>,
    session: Session,
    standing: Standing,
    comparison: Comparison,
    broker: Arc<dyn Broker>,
    link: Option<Box<dyn Link>>,
    number: Option<u64>,
    own: VecDeque<Message>,
    announced: BTreeMap<MeterId, Bytes>,
    status_due: Instant,
    status_said: Instant,
    last_error: Option<String>,
    since: Instant,
    connected: bool,
    /// Topics that the broker does not let us subscribe to.
    unheard: Vec<String>,
    /// Subscriptions without a SUBACK, one packet each.
    asked: VecDeque<Asked>,
    /// Topic of the last description that was sent.
    last_described: Option<String>,
    /// What is left out because connections end over it, as it was last logged.
    left_out: Vec<Part>,
    /// What the broker refuses besides records, as it was last logged.
    own_refused: Vec<String>,
    records_first: bool,
    taken_over: bool,
    /// The broker keeps retained messages.
    retain: bool,
    retained: Retained,
    /// Topics of messages that were too large for us.
    too_large: BTreeSet<String>,
    nobody_listens: bool,
    refused: bool,
    receipt_late: bool,
    replays_taken: u64,
    /// What is not well with billing, as it was shown last.
    billing: Vec<Warning>,
    /// Records that billing asked for again and that retention has removed.
    not_kept: Option<RangeInclusive<Seq>>,
    /// Where the oldest note of a parked record stands.
    parked_from: Seq,
    damage_told: Seq,
    stop_by: Option<Instant>,
}

impl Driver {
    fn new(context: Context) -> Driver {
        let Context { settings, names, ledger, inbox, events, status, inventory, state, shutdown, broker } =
            context;
        let now = Instant::now();
        let mut head = ledger.head();
        let last = head.borrow_and_update().seq;
        let (acknowledged, confirmed) =
            (ledger.cursor(Cursor::Acknowledged), ledger.cursor(Cursor::Confirmed));
        let session =
            Session::new(ledger.id(), settings.confirm, last, acknowledged, confirmed, now.into_std());
        Driver {
            standing: Standing::new(ledger.id(), last, ledger.session()),
            comparison: Comparison::default(),
            settings,
            names,
            ledger,
            head,
            inbox,
            inbox_open: true,
            events,
            status,
            inventory,
            state,
            shutdown,
            session,
            broker,
            link: None,
            number: None,
            own: VecDeque::new(),
            announced: BTreeMap::new(),
            status_due: now,
            status_said: now,
            last_error: None,
            since: now,
            connected: false,
            unheard: Vec::new(),
            asked: VecDeque::new(),
            last_described: None,
            left_out: Vec::new(),
            own_refused: Vec::new(),
            records_first: false,
            taken_over: false,
            retain: true,
            retained: Retained::default(),
            too_large: BTreeSet::new(),
            nobody_listens: false,
            refused: false,
            receipt_late: false,
            replays_taken: 0,
            billing: Vec::new(),
            not_kept: None,
            parked_from: last,
            damage_told: 0,
            stop_by: None,
        }
    }

    async fn run(mut self) -> Vec<Outgoing> {
        // What follows from the settings alone was said with the configuration.
        self.billing = self.list_billing(Instant::now().into_std());
        self.recall_parked().await;
        loop {
            self.notice_comparison();
            if self.comparison.ended.is_some() {
                self.rest().await;
                return Vec::new();
            }
            self.notice_shutdown();
            self.put_on_record();
            self.notice_online();
            self.say_own();
            match self.session.poll(Instant::now().into_std()) {
                Action::Advance(cursor, to) => self.ledger.advance(cursor, to),
                Action::Connect => self.connect(),
                Action::Subscribe(parts) => self.subscribe(parts),
                Action::Drop(fault) => self.lose(&fault.to_string(), fault.cause()),
                Action::Send(tag) => self.send(tag).await,
                Action::WaitUntil(until) => {
                    self.show(); // here, because what is shown as acknowledged must be in the ledger already
                    if self.stop_by.is_some_and(|by| {
                        !self.session.is_online() || self.session.is_idle() || Instant::now() >= by
                    }) {
                        self.farewell().await;
                        self.show();
                        return self
                            .session
                            .into_replays()
                            .map(|(from, to)| Outgoing::Replay { from, to })
                            .collect();
                    }
                    self.wait(until.map(Instant::from_std)).await;
                }
            }
        }
    }

    async fn wait(&mut self, until: Option<Instant>) {
        let now = Instant::now();
        let mut wake = until.unwrap_or(now + TURN).min(now + TURN);
        if self.session.is_online() && self.session.may_offer() {
            wake = wake.min(self.status_due);
        }
        for by in [self.stop_by, self.comparison.until].into_iter().flatten() {
            wake = wake.min(by);
        }
        let link = async {
            match &mut self.link {
                Some(link) => link.event().await,
                None => pending().await,
            }
        };
        // In this order, so that the same events always lead to the same decisions.
        tokio::select! {
            biased;
            event = link => self.hear(event),
            () = changed(&mut self.head) => {
                let head = self.head.borrow_and_update().seq;
                self.session.handle(Event::Stored(head), Instant::now().into_std());
            }
            message = self.inbox.recv(), if self.inbox_open => match message {
                Some(message) => self.take(message),
                None => self.inbox_open = false,
            },
            () = changed(&mut self.status) => {
                self.status.mark_unchanged();
                self.status_due = self.status_due.min(Instant::now().max(self.status_said + STATUS_DEBOUNCE));
            }
            () = changed(&mut self.inventory) => self.announce(false),
            () = changed(&mut self.shutdown), if self.stop_by.is_none() => {}
            () = sleep_until(wake) => {}
        }
    }

    fn notice_shutdown(&mut self) {
        if self.stop_by.is_none() && *self.shutdown.borrow_and_update() {
            let head = self.head.borrow_and_update().seq;
            self.session.handle(Event::Stored(head), Instant::now().into_std()); // all that the end has stored
            self.stop_by = Some(Instant::now() + LAST_ACKS);
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
        }
    }

    fn connect(&mut self) {
        match self.offer() {
            Ok(offer) => self.link = Some(self.broker.connect(offer)),
            Err(error) => self.lose(&error.to_string(), Cause::Said),
        }
    }

    fn offer(&mut self) -> Result<Offer, OfferError> {
        let clock_trusted = self.status.borrow().get("clock").is_none_or(|clock| clock != "unsynced");
        let tls = self.settings.tls.as_ref();
        let tls = tls.map(|tls| credentials::client_config(tls, clock_trusted)).transpose()?;
        let password = match &self.settings.password_file {
            Some(file) => {
                let dir = std::env::var_os(CREDENTIALS_DIRECTORY).map(PathBuf::from);
                credentials::password(file, dir.as_deref())?
            }
            None => String::new(),
        };
        // One for each attempt: the broker may have heard of one that seemed to fail.
        let number = self.ledger.next_session();
        self.number = Some(number);
        self.standing.offered(number, self.head.borrow().seq);
        Ok(Offer {
            host: self.settings.host.clone(),
            port: self.settings.port,
            version: self.settings.version,
            client_id: self.settings.client_id.clone(),
            login: self.settings.username.clone().map(|name| (name, password)),
            tls,
            will: Message { retain: self.retained.offer(), ..self.status_message(false) },
        })
    }

    fn hear(&mut self, event: LinkEvent) {
        let now = Instant::now().into_std();
        match event {
            LinkEvent::Connected { receive_max, keep_alive, retain, .. } => {
                let retain = self.retained.connected(retain);
                self.keeps_retained(retain);
                self.compare(Event::Connected { receive_max, keep_alive }, retain);
            }
            LinkEvent::Subscribed(granted) => self.subscribed(&granted),
            LinkEvent::Sent(pkid) if self.comparison.is_question(pkid) => {}
            LinkEvent::Sent(pkid) => self.session.handle(Event::Sent(pkid), now),
            LinkEvent::Acknowledged(pkid, verdict) if self.question_acknowledged(pkid, &verdict) => {}
            LinkEvent::Acknowledged(pkid, verdict) => {
                self.session.handle(Event::Acknowledged(pkid, verdict), now);
            }
            LinkEvent::Message { topic, payload, retained } => {
                self.session.handle(Event::Heard, now);
                self.message(&topic, &payload, retained);
            }
            LinkEvent::PassedOver { topic, bytes } => {
                self.session.handle(Event::Heard, now);
                self.passed_over(topic, bytes);
            }
            LinkEvent::Heard => self.session.handle(Event::Heard, now),
            LinkEvent::Failed(Failure { cause, text }) => self.lose(&text, cause),
        }
    }

    fn subscribe(&mut self, parts: Vec<Part>) {
        let filters = parts.iter().map(|part| self.topic(*part)).collect();
        self.asked.push_back(Asked::Session(parts));
        if !self.link.as_ref().is_some_and(|link| link.subscribe(filters)) {
            self.lose("the client does not take the subscriptions", Cause::Said);
        }
    }

    fn subscribed(&mut self, granted: &[bool]) {
        let parts = match self.asked.pop_front() {
            Some(Asked::Comparison(part)) => {
                return self.compare_answered(part, granted.first() == Some(&true));
            }
            Some(Asked::Session(parts)) => parts,
            None => Vec::new(),
        };
        for (nth, part) in parts.into_iter().enumerate() {
            if granted.get(nth) != Some(&true) && part != Part::Descriptions {
                let topic = self.topic(part);
                error!(
                    topic,
                    hint = "allow it in the broker's access list",
                    "the broker refuses the subscription"
                );
                self.unheard.push(topic);
            }
        }
        self.session.handle(Event::Up, Instant::now().into_std());
    }

    /// What this part is about: the filter of a subscription, or the topic of the last message.
    pub(super) fn topic(&self, part: Part) -> String {
        match part {
            Part::Receipts => self.names.receipt(),
            Part::Commands => self.names.command(),
            Part::Descriptions => self.names.inventories(),
            Part::Status => self.names.status(),
            Part::Inventory => self.last_described.clone().unwrap_or_else(|| self.names.inventories()),
            Part::Responses => self.names.response(),
        }
    }

    fn notice_online(&mut self) {
        if self.connected || !self.session.is_online() {
            return;
        }
        self.connected = true;
        self.since = Instant::now();
        self.last_error = None;
        info!(
            session = self.number,
            host = self.settings.host,
            port = self.settings.port,
            "connected to the broker"
        );
        self.status_due = Instant::now();
        self.say_status();
        self.announce(true);
    }

    fn lose(&mut self, why: &str, cause: Cause) {
        self.link = None;
        match cause {
            Cause::NoRetain => {
                self.retained.refused();
                self.keeps_retained(false);
            }
            Cause::NoConnack => self.retained.no_connack(),
            _ => {}
        }
        self.asked.clear();
        self.unheard.clear();
        self.comparison.lost();
        if self.connected {
            self.connected = false;
            self.number = None;
            self.since = Instant::now();
            warn!(error = why, "connection to the broker lost; records are kept");
        } else if self.last_error.as_deref().is_some_and(|said| same_but_numbers(said, why)) {
            debug!(error = why, "still no connection to the broker");
        } else {
            warn!(error = why, "no connection to the broker; records are kept");
        }
        self.last_error = Some(why.to_owned());
        self.own.retain(|message| message.schema == RESPONSE_SCHEMA);
        let size = self.session.size_limit();
        let down = Event::Down { random: fastrand::u64(..), cause };
        self.session.handle(down, Instant::now().into_std());
        if let Some(bytes) =
            self.session.size_limit().filter(|bytes| size.is_none_or(|before| *bytes < before))
        {
            warn!(
                bytes,
                "connections to the broker end over messages of records; none larger than this is sent for now"
            );
        }
    }

    async fn farewell(&mut self) {
        self.session.stop();
        if !self.session.is_online() {
            self.link = None;
            return;
        }
        let deadline = Instant::now() + FAREWELL;
        if !self.session.left_out().contains(&Part::Status) {
            self.offer_to_link(self.status_message(false), Tag::Own(Part::Status));
        }
        while self.session.in_flight() > 0
            && let Some(link) = &mut self.link
            && let Ok(event) = timeout_at(deadline, link.event()).await
        {
            self.hear(event);
        }
        while let Action::Advance(cursor, to) = self.session.poll(Instant::now().into_std()) {
            self.ledger.advance(cursor, to);
        }
        if let Some(link) = &mut self.link {
            link.disconnect();
            while let Ok(event) = timeout_at(deadline, link.event()).await {
                if matches!(event, LinkEvent::Failed(_)) {
                    break;
                }
            }
            info!("the connection to the broker is closed in order");
        }
        self.link = None;
        self.connected = false;
        self.since = Instant::now();
    }
}

/// Whether two texts differ in numbers alone: ports, dates, seconds. Such a change is no news.
fn same_but_numbers(one: &str, other: &str) -> bool {
    let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    words(one) == words(other)
}

/// Waits for a change; for ever, when nobody is left who could make one.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}
