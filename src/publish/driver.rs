//! The publisher's loop: asks the session what to do, does it, tells it what came of it.
//!
//! Holds what is waiting to be said (status, inventory, answers); records wait in the ledger alone. Knows no client
//! crate and takes no decision about acknowledgements.

use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    path::PathBuf,
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
    credentials::{self, CredentialError},
    mqtt::{Link, LinkEvent, Message, Offer},
    payload::{
        self, Command, MAX_RECORDS, MAX_RECORDS_BYTES, PayloadError, Receipt, Rejected, Response, StatusFacts,
    },
    session::{Action, Event, Session, Tag},
    topics::{Down, Topics},
};
use crate::{
    config::Mqtt,
    ledger::{Cursor, Head, LedgerError, SharedLedger},
    model::{MeterId, Seq},
};

/// How often `status` is repeated (the contract).
const STATUS_EVERY: Duration = Duration::from_secs(60);
/// At least so long between two of them: several things change at once when something happens.
const STATUS_DEBOUNCE: Duration = Duration::from_secs(1);
/// How long the last acknowledgements are waited for at shutdown.
const LAST_ACKS: Duration = Duration::from_secs(3);
/// How long the offline message and the goodbye may take after that.
const FAREWELL: Duration = Duration::from_secs(1);
/// Answers that wait for a connection; an asker who waits longer has given up.
const MAX_ANSWERS: usize = 256;
/// The loop turns at least so often: `last_turn` is what health is judged by.
const TURN: Duration = Duration::from_secs(10);
/// systemd's directory of credentials.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

const RECORDS_SCHEMA: &str = "meter-gateway/records/1";
const STATUS_SCHEMA: &str = "meter-gateway/status/1";
const INVENTORY_SCHEMA: &str = "meter-gateway/inventory/1";
const RESPONSE_SCHEMA: &str = "meter-gateway/response/1";

/// What is said of each configured meter. A meter that is not in it is removed at the broker, so the first value must be
/// the configuration, not an empty map.
pub type Inventory = BTreeMap<MeterId, Value>;

/// What the daemon wants published.
#[derive(Debug, Clone, PartialEq)]
pub enum Outgoing {
    /// The answer to a command.
    Response(Response),
    /// These records once more; the range is cut to what was sent before.
    Replay {
        /// First.
        from: Seq,
        /// Last.
        to: Seq,
    },
}

/// What the daemon has to know.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// Well formed; not checked for expiry, name or arguments, and perhaps a repetition.
    Command(Command),
    /// This record cannot be read and was passed over: it will never be delivered.
    Damaged {
        /// Which.
        seq: Seq,
        /// What the ledger said.
        detail: String,
    },
}

/// The publisher at a glance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublisherState {
    /// Connected and subscribed.
    pub connected: bool,
    /// Since when `connected` is what it is.
    pub since: Option<std::time::Instant>,
    /// Session number of this connection or of the next one.
    pub session: u64,
    /// Why the last connection ended or could not be made, or why the broker refuses records.
    pub last_error: Option<String>,
    /// The broker has no subscriber for the records.
    pub nobody_listens: bool,
    /// Messages without an acknowledgement.
    pub in_flight: usize,
    /// The broker has everything up to here.
    pub acknowledged: Seq,
    /// Everything up to here is confirmed.
    pub confirmed: Seq,
    /// Records that billing has refused, the latest last; at most a hundred.
    pub rejected: Vec<Rejected>,
    /// Receipts for another ledger or for records that were never sent.
    pub ignored_receipts: u64,
    /// When the loop last turned; it does so every ten seconds at least. A change of this alone wakes nobody.
    pub last_turn: Option<std::time::Instant>,
}

/// What [`run`] needs.
pub struct Context {
    /// The broker.
    pub settings: Mqtt,
    /// Where to say what.
    pub names: Topics,
    /// What is to be sent.
    pub ledger: SharedLedger,
    /// From the daemon.
    pub inbox: mpsc::Receiver<Outgoing>,
    /// To the daemon. Never waited for: a command that does not fit is answered with an error.
    pub events: mpsc::Sender<Incoming>,
    /// What `status` says besides what the publisher knows itself: an object.
    pub status: watch::Receiver<Value>,
    /// The configured meters.
    pub inventory: watch::Receiver<Inventory>,
    /// Where the state is shown.
    pub state: watch::Sender<PublisherState>,
    /// Turns true once.
    pub shutdown: watch::Receiver<bool>,
}

/// Publishes until `shutdown`, then says goodbye; that takes five seconds at most.
pub async fn run(context: Context) {
    Driver::new(context).run().await;
}

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
    link: Option<Link>,
    number: Option<u64>,
    own: VecDeque<Message>,
    announced: BTreeMap<MeterId, Bytes>,
    status_due: Instant,
    status_said: Instant,
    last_error: Option<String>,
    since: Instant,
    connected: bool,
    nobody_listens: bool,
    damage_told: Seq,
    stop_by: Option<Instant>,
}

impl Driver {
    fn new(context: Context) -> Driver {
        let Context { settings, names, ledger, inbox, events, status, inventory, state, shutdown } = context;
        let now = Instant::now();
        let mut head = ledger.head();
        let last = head.borrow_and_update().seq;
        let (acknowledged, confirmed) =
            (ledger.cursor(Cursor::Acknowledged), ledger.cursor(Cursor::Confirmed));
        let session =
            Session::new(ledger.id(), settings.confirm, last, acknowledged, confirmed, now.into_std());
        Driver {
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
            link: None,
            number: None,
            own: VecDeque::new(),
            announced: BTreeMap::new(),
            status_due: now,
            status_said: now,
            last_error: None,
            since: now,
            connected: false,
            nobody_listens: false,
            damage_told: 0,
            stop_by: None,
        }
    }

    async fn run(mut self) {
        loop {
            self.notice_shutdown();
            self.say_own();
            match self.session.poll(Instant::now().into_std()) {
                Action::Advance(cursor, to) => self.ledger.advance(cursor, to),
                Action::Connect => self.connect(),
                Action::Drop(fault) => self.lose(&fault.to_string()),
                Action::Send(tag) => self.send(tag).await,
                Action::WaitUntil(until) => {
                    self.show(); // here, because what is shown as acknowledged must be in the ledger already
                    if self.stop_by.is_some_and(|by| {
                        !self.session.is_online() || self.session.in_flight() == 0 || Instant::now() >= by
                    }) {
                        self.farewell().await;
                        self.show();
                        return;
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
        if let Some(by) = self.stop_by {
            wake = wake.min(by);
        }
        let link = async {
            match &mut self.link {
                Some(link) => link.event().await,
                None => pending().await,
            }
        };
        tokio::select! {
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
            self.session.stop();
            self.stop_by = Some(Instant::now() + LAST_ACKS);
            while let Ok(message) = self.inbox.try_recv() {
                self.take(message);
            }
        }
    }

    fn connect(&mut self) {
        match self.offer() {
            Ok(offer) => self.link = Some(Link::open(offer)),
            Err(error) => self.lose(&error.to_string()),
        }
    }

    fn offer(&mut self) -> Result<Offer, CredentialError> {
        let tls = self.settings.tls.as_ref().map(credentials::client_config).transpose()?;
        let password = match &self.settings.password_file {
            Some(file) => {
                let dir = std::env::var_os(CREDENTIALS_DIRECTORY).map(PathBuf::from);
                credentials::password(file, dir.as_deref())?
            }
            None => String::new(),
        };
        // A number belongs to a connection that came about; an attempt that failed leaves it to the next one.
        if self.number.is_none() {
            self.number = Some(self.ledger.next_session());
        }
        Ok(Offer {
            host: self.settings.host.clone(),
            port: self.settings.port,
            version: self.settings.version,
            client_id: self.settings.client_id.clone(),
            login: self.settings.username.clone().map(|name| (name, password)),
            tls,
            will: self.status_message(false),
        })
    }

    fn hear(&mut self, event: LinkEvent) {
        let now = Instant::now().into_std();
        match event {
            LinkEvent::Connected { receive_max, keep_alive, .. } => {
                self.session.handle(Event::Connected { receive_max, keep_alive }, now);
                let filters = vec![self.names.receipt(), self.names.command(), self.names.inventories()];
                if !self.link.as_ref().is_some_and(|link| link.subscribe(filters)) {
                    self.lose("the client does not take the subscriptions");
                }
            }
            LinkEvent::Subscribed(granted) => self.subscribed(&granted),
            LinkEvent::Sent(0) => {}
            LinkEvent::Sent(pkid) => self.session.handle(Event::Sent(pkid), now),
            LinkEvent::Collision(pkid) => self.lose(&format!("packet id {pkid} is still in use")),
            LinkEvent::Acknowledged(pkid, verdict) => {
                self.session.handle(Event::Acknowledged(pkid, verdict), now);
            }
            LinkEvent::Message { topic, payload, retained } => {
                self.session.handle(Event::Heard, now);
                self.message(&topic, &payload, retained);
            }
            LinkEvent::Heard => self.session.handle(Event::Heard, now),
            LinkEvent::Failed(why) => self.lose(&why),
        }
    }

    fn subscribed(&mut self, granted: &[bool]) {
        if self.session.is_online() {
            return;
        }
        for (granted, topic) in granted.iter().zip([self.names.receipt(), self.names.command()]) {
            if !granted {
                error!(
                    topic,
                    "the broker refuses the subscription\n  hint: allow it in the broker's access list"
                );
            }
        }
        self.session.handle(Event::Up, Instant::now().into_std());
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

    fn lose(&mut self, why: &str) {
        self.link = None;
        if self.connected {
            self.connected = false;
            self.number = None;
            self.since = Instant::now();
            warn!(error = why, "connection to the broker lost; records are kept");
        } else if self.last_error.as_deref() == Some(why) {
            debug!(error = why, "still no connection to the broker");
        } else {
            warn!(error = why, "no connection to the broker; records are kept");
        }
        self.last_error = Some(why.to_owned());
        self.own.retain(|message| message.schema == RESPONSE_SCHEMA);
        self.session.handle(Event::Down { random: fastrand::u64(..) }, Instant::now().into_std());
    }

    /// Reads one message's worth of records and hands it to the client.
    async fn send(&mut self, tag: Tag) {
        let (Tag::Records(range) | Tag::Replay(range)) = &tag else { return };
        let (from, to) = (*range.start(), *range.end());
        let rebuilt = |to: Seq| match tag {
            Tag::Replay(_) => Tag::Replay(from..=to),
            _ => Tag::Records(from..=to),
        };
        let now = Instant::now().into_std();
        let kept = self.ledger.first();
        if from < kept {
            let gone = to.min(kept - 1);
            warn!(seq = from, to = gone, "records are no longer kept and are not sent");
            self.session.skip(rebuilt(gone), now);
            return;
        }
        let topic = self.names.records();
        let Some(link) = &self.link else { return };
        let limit = MAX_RECORDS_BYTES.min(link.max_payload(&topic));
        let count = usize::try_from(to - from + 1).unwrap_or(MAX_RECORDS).min(MAX_RECORDS);
        let room = payload::room_for_lines(&self.names, self.ledger.id(), limit, count);
        let ledger = self.ledger.clone();
        let read = tokio::task::spawn_blocking(move || ledger.read(from, count, room)).await;
        let mut lines = match read {
            Ok(Ok(lines)) => lines,
            Ok(Err(LedgerError::Damaged { seq, detail, path, offset })) if seq == from => {
                let detail = format!("{path}: byte {offset}: {detail}");
                self.damaged(seq, detail);
                self.session.skip(rebuilt(from), now);
                return;
            }
            Ok(Err(error)) => return self.lose(&error.to_string()),
            Err(error) => return self.lose(&format!("reading the ledger: {error}")),
        };
        let in_sequence = (from..=to).zip(&lines).take_while(|(seq, line)| *seq == line.seq).count();
        lines.truncate(in_sequence);
        let Some(last) = lines.last().map(|line| line.seq) else {
            return self.lose(&format!(
                "the ledger does not give record {from}, its head is {}",
                self.head.borrow().seq
            ));
        };
        let payload = payload::records(&self.names, self.ledger.id(), &lines);
        if payload.len() > limit {
            let bytes = payload.len();
            return self.lose(&format!(
                "record {from} needs a message of {bytes} bytes, the broker takes {limit}\n  hint: raise the broker's packet limit"
            ));
        }
        self.offer_to_link(Message { topic, payload, retain: false, schema: RECORDS_SCHEMA }, rebuilt(last));
    }

    fn offer_to_link(&mut self, message: Message, tag: Tag) {
        if self.link.as_ref().is_some_and(|link| link.publish(message)) {
            self.session.offered(tag, Instant::now().into_std());
        } else {
            self.lose("the client does not take a message, although the window is open");
        }
    }

    fn damaged(&mut self, seq: Seq, detail: String) {
        error!(seq, detail, "a damaged record is passed over and will not be delivered");
        if seq > self.damage_told {
            self.damage_told = seq;
            if self.events.try_send(Incoming::Damaged { seq, detail }).is_err() {
                error!(seq, "nobody takes note of the damaged record");
            }
        }
    }

    fn message(&mut self, topic: &str, bytes: &Bytes, retained: bool) {
        match self.names.classify(topic) {
            Some(Down::Receipt) => match Receipt::parse(bytes) {
                Ok(receipt) => self.receipt(receipt),
                Err(error) => warn!(%error, "a receipt is ignored"),
            },
            Some(Down::Command) => self.command(bytes, retained),
            Some(Down::Inventory(meter)) if retained && !bytes.is_empty() => {
                let known =
                    meter.parse::<MeterId>().is_ok_and(|id| self.inventory.borrow().contains_key(&id));
                if !known {
                    info!(meter, "removing the description of a meter that is no longer configured");
                    let message = self.inventory_message(meter, Bytes::new());
                    self.own.push_back(message);
                }
            }
            Some(Down::Inventory(_)) => {}
            None => debug!(topic, "a message on a topic that is not ours"),
        }
    }

    fn receipt(&mut self, receipt: Receipt) {
        let (ignored, rejected) = (self.session.ignored_receipts(), receipt.rejected.len());
        let (ledger, seq) = (receipt.ledger.clone(), receipt.confirmed_seq);
        self.session.handle(Event::Receipt(receipt), Instant::now().into_std());
        if self.session.ignored_receipts() > ignored {
            warn!(ledger, seq, "a receipt is ignored: another ledger, or a record that was never sent");
        } else if rejected > 0 {
            warn!(seq, rejected, "billing has rejected records");
        }
    }

    fn command(&mut self, bytes: &Bytes, retained: bool) {
        let command = match Command::parse(bytes) {
            Ok(command) => command,
            Err(PayloadError::Malformed { what, detail, id }) => {
                warn!(what, detail, "a command is refused");
                return self.answer(&Response { id, outcome: Err(format!("not a valid {what}: {detail}")) });
            }
        };
        let id = Some(command.id.clone());
        if retained {
            // It would be carried out again at each connection.
            warn!(id, "a retained command is refused");
            let outcome = Err("a command must not be retained".to_owned());
            return self.answer(&Response { id, outcome });
        }
        if self.events.try_send(Incoming::Command(command)).is_err() {
            warn!(id, "a command is refused: too many are waiting");
            self.answer(&Response { id, outcome: Err("busy: try again later".to_owned()) });
        }
    }

    fn take(&mut self, message: Outgoing) {
        match message {
            Outgoing::Response(response) => self.answer(&response),
            Outgoing::Replay { from, to } => {
                if !self.session.replay(from, to) {
                    warn!(seq = from, to, "nothing to replay, or too many replays are waiting");
                }
            }
        }
    }

    fn answer(&mut self, response: &Response) {
        if self.own.iter().filter(|m| m.schema == RESPONSE_SCHEMA).count() >= MAX_ANSWERS {
            error!(id = response.id, "an answer is dropped: {MAX_ANSWERS} are waiting for a connection");
            return;
        }
        let topic = self.names.response();
        let message = Message { topic, payload: response.to_bytes(), retain: false, schema: RESPONSE_SCHEMA };
        self.own.push_back(message);
    }

    /// Queues what changed in the inventory; everything, when `afresh`.
    fn announce(&mut self, afresh: bool) {
        let current: BTreeMap<MeterId, Bytes> = self
            .inventory
            .borrow_and_update()
            .iter()
            .map(|(id, said)| (id.clone(), payload::inventory(said)))
            .collect();
        if !self.session.is_online() {
            return;
        }
        for removed in self.announced.keys().filter(|id| !current.contains_key(*id)) {
            self.own.push_back(self.inventory_message(removed.as_str(), Bytes::new()));
        }
        for (id, said) in &current {
            if afresh || self.announced.get(id) != Some(said) {
                self.own.push_back(self.inventory_message(id.as_str(), said.clone()));
            }
        }
        self.announced = current;
    }

    fn inventory_message(&self, meter: &str, payload: Bytes) -> Message {
        Message { topic: self.names.inventory(meter), payload, retain: true, schema: INVENTORY_SCHEMA }
    }

    fn say_status(&mut self) {
        let now = Instant::now();
        if now >= self.status_due {
            self.own.push_front(self.status_message(true));
            self.status_said = now;
            self.status_due = now + STATUS_EVERY;
        }
    }

    fn status_message(&self, online: bool) -> Message {
        let facts = StatusFacts {
            online,
            session: self.number.unwrap_or_default(),
            ledger: self.ledger.id(),
            last_seq: self.head.borrow().seq,
            acknowledged_seq: self.session.acknowledged_seq(),
            confirmed_seq: self.session.confirmed_seq(),
        };
        let payload = if online {
            payload::status(&facts, &self.status.borrow())
        } else {
            payload::status(&facts, &Value::Null) // what was true of buses and clock is not known to be any more
        };
        Message { topic: self.names.status(), payload, retain: true, schema: STATUS_SCHEMA }
    }

    /// Hands over what is waiting to be said, as far as the window allows.
    fn say_own(&mut self) {
        if !self.session.is_online() || self.stop_by.is_some_and(|by| Instant::now() >= by) {
            return;
        }
        self.say_status();
        while self.session.may_offer()
            && let Some(message) = self.own.pop_front()
        {
            let room = self.link.as_ref().map_or(0, |link| link.max_payload(&message.topic));
            if message.payload.len() > room {
                let bytes = message.payload.len();
                error!(topic = message.topic, bytes, "a message is dropped: the broker takes {room} bytes");
                continue;
            }
            self.offer_to_link(message, Tag::Own);
        }
    }

    async fn farewell(&mut self) {
        if !self.session.is_online() {
            self.link = None;
            return;
        }
        let deadline = Instant::now() + FAREWELL;
        self.offer_to_link(self.status_message(false), Tag::Own);
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
            info!("said goodbye to the broker");
        }
        self.link = None;
        self.connected = false;
        self.since = Instant::now();
    }

    /// Shows the state, and logs when somebody starts or stops listening.
    fn show(&mut self) {
        let nobody = self.session.nobody_listens();
        if nobody != self.nobody_listens {
            self.nobody_listens = nobody;
            let topic = self.names.records();
            if nobody {
                warn!(
                    topic,
                    "nobody is subscribed to the records; they are kept\n  hint: is billing's consumer running?"
                );
            } else {
                info!(topic, "somebody listens to the records again");
            }
        }
        let refusal = self.session.last_refusal().map(|code| format!("the broker refuses records: {code}"));
        let shown = PublisherState {
            connected: self.connected,
            since: Some(self.since.into_std()),
            session: self.number.unwrap_or_default(),
            last_error: refusal.or_else(|| self.last_error.clone()),
            nobody_listens: nobody,
            in_flight: self.session.in_flight(),
            acknowledged: self.session.acknowledged_seq(),
            confirmed: self.session.confirmed_seq(),
            rejected: self.session.rejected().to_vec(),
            ignored_receipts: self.session.ignored_receipts(),
            last_turn: Some(Instant::now().into_std()),
        };
        self.state.send_if_modified(|state| {
            let comparable = PublisherState { last_turn: state.last_turn, ..shown.clone() };
            let differs = *state != comparable;
            *state = shown;
            differs
        });
    }
}

/// Waits for a change; for ever, when nobody is left who could make one.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}
