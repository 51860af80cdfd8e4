//! A broker that drops, delays, repeats and reorders, and the billing consumer behind it that proves all it gets.
//!
//! No sockets: it takes the place of the real one behind `publish::Broker`.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::BoxFuture;
use meter_gateway::{
    ledger::chain::verify_line,
    model::GENESIS,
    publish::{Broker, Link, LinkEvent, Message, Offer, Verdict},
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Messages that the broker holds for its consumer, at most.
const PASSING: usize = 20;

/// How it acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    Prompt,
    Never,
    /// Longer than the gateway waits.
    Late,
    Twice,
    /// Of messages that were never sent.
    Unknown,
    /// Within three seconds, in any order.
    Shuffled,
    /// Failure codes now and then.
    Refusing,
}

/// Whether it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Well,
    Refuses,
    /// Takes the connection and says nothing.
    Mute,
    /// Nothing gets through, in neither direction, and nobody is told.
    HalfOpen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub reach: Reach,
    pub acks: Acks,
    pub consumer: bool,
}

impl Mode {
    pub const WELL: Mode = Mode { reach: Reach::Well, acks: Acks::Prompt, consumer: true };

    pub fn out_of(reach: Reach) -> Mode {
        Mode { reach, ..Mode::WELL }
    }
}

#[derive(Clone)]
pub struct SimBroker(Arc<Mutex<State>>);

struct State {
    rng: Rng,
    mode: Mode,
    base: String,
    /// Accepted and not yet passed on.
    passing: VecDeque<Bytes>,
    link: Option<Arc<Wire>>,
    /// What it publishes when that link ends without a goodbye.
    will: Option<Bytes>,
    /// The retained status.
    retained: Option<Bytes>,
    billing: Billing,
    receipts: bool,
}

/// What billing has taken.
#[derive(Default)]
pub struct Billing {
    pub records: BTreeMap<u64, Vec<u8>>,
    pub last: u64,
    head: Option<String>,
    pub duplicates: u64,
    pub early: u64,
    pub violations: Vec<String>,
    ledger: String,
}

#[derive(Deserialize)]
struct Records<'a> {
    ledger: String,
    #[serde(borrow)]
    records: Vec<&'a RawValue>,
}

impl Billing {
    fn take(&mut self, payload: &[u8]) {
        let message: Records = match serde_json::from_slice(payload) {
            Ok(message) => message,
            Err(error) => return self.violations.push(format!("a message cannot be read: {error}")),
        };
        if payload.len() > 128 * 1024 || !(1..=500).contains(&message.records.len()) {
            self.violations.push(format!(
                "a message of {} records, {} bytes",
                message.records.len(),
                payload.len()
            ));
        }
        self.ledger = message.ledger;
        for raw in message.records {
            let line = raw.get().as_bytes();
            let record = match verify_line(line) {
                Ok(record) => record,
                Err(fault) => {
                    self.violations.push(format!("a record: {fault}"));
                    continue;
                }
            };
            if record.seq <= self.last {
                self.duplicates += 1;
                if self.records.get(&record.seq).map(Vec::as_slice) != Some(line) {
                    self.violations.push(format!("record {} came again with other bytes", record.seq));
                }
                continue;
            }
            if record.seq != self.last + 1 {
                // This broker loses nothing that it acknowledges while it lives, so both come again. A real consumer
                // asks for what is missing (docs/mqtt.md).
                self.early += 1;
                continue;
            }
            let head = self.head.get_or_insert_with(|| GENESIS.into());
            if record.prev != *head {
                self.violations.push(format!("record {} breaks the chain", record.seq));
            }
            self.records.insert(record.seq, line.to_vec());
            (self.last, self.head) = (record.seq, Some(record.hash));
        }
    }
}

impl SimBroker {
    pub fn new(seed: u64, base: &str, receipts: bool) -> SimBroker {
        SimBroker(Arc::new(Mutex::new(State {
            rng: Rng::with_seed(seed),
            mode: Mode::WELL,
            base: base.to_owned(),
            passing: VecDeque::new(),
            link: None,
            will: None,
            retained: None,
            billing: Billing::default(),
            receipts,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, mode: Mode) {
        self.state().mode = mode;
    }

    /// Loses its connections. What it had acknowledged and not passed on goes with it only where billing's word is what
    /// frees a record: where the broker's word does, it must keep it (docs/reliability.md).
    pub fn crash(&self) {
        let mut state = self.state();
        state.end_link("connection reset by peer");
        if state.receipts {
            state.passing.clear();
            state.retained = None;
        }
    }

    /// Loses the connection alone.
    pub fn hang_up(&self) {
        self.state().end_link("connection closed");
    }

    /// The gateway's process is dead, and tokio's time may have begun anew.
    pub fn forget_link(&self) {
        let mut state = self.state();
        state.retained = state.will.take().or(state.retained.take());
        state.link = None;
    }

    /// Everything that was accepted reaches billing.
    pub fn pass_on(&self) {
        let mut state = self.state();
        while let Some(payload) = state.passing.pop_front() {
            state.billing.take(&payload);
        }
    }

    pub fn billing<T>(&self, look: impl FnOnce(&Billing) -> T) -> T {
        look(&self.state().billing)
    }

    /// Billing or an operator says something.
    pub fn say(&self, leaf: &str, payload: &serde_json::Value) {
        let state = self.state();
        if let Some(link) = &state.link {
            link.tell(
                Duration::from_millis(1),
                LinkEvent::Message {
                    topic: format!("{}/{leaf}", state.base),
                    payload: payload.to_string().into(),
                    retained: false,
                },
            );
        }
    }
}

impl State {
    fn end_link(&mut self, why: &str) {
        self.retained = self.will.take().or(self.retained.take());
        if let Some(link) = self.link.take() {
            link.tell(Duration::ZERO, LinkEvent::Failed(why.into()));
        }
    }

    fn accept(&mut self, link: &Arc<Wire>, message: &Message, pkid: u16) {
        let is_records = message.topic == format!("{}/records", self.base);
        if is_records && !self.mode.consumer {
            link.tell(Duration::from_millis(3), LinkEvent::Acknowledged(pkid, Verdict::NoSubscribers));
            return;
        }
        if self.mode.acks == Acks::Refusing && self.rng.u8(0..4) == 0 {
            let refusal = Verdict::Failed("QuotaExceeded".into());
            link.tell(Duration::from_millis(3), LinkEvent::Acknowledged(pkid, refusal));
            return;
        }
        if message.topic == format!("{}/status", self.base) {
            self.retained = Some(message.payload.clone());
        }
        if is_records {
            self.passing.push_back(message.payload.clone());
            while self.passing.len() > self.rng.usize(0..=PASSING) {
                if let Some(payload) = self.passing.pop_front() {
                    self.billing.take(&payload);
                    self.send_receipt(link);
                }
            }
        }
        let accepted = LinkEvent::Acknowledged(pkid, Verdict::Accepted);
        let ms = Duration::from_millis;
        match self.mode.acks {
            Acks::Prompt | Acks::Refusing => link.tell(ms(self.rng.u64(1..20)), accepted),
            Acks::Never => {}
            Acks::Late => link.tell(ms(self.rng.u64(25_000..45_000)), accepted),
            Acks::Twice => {
                link.tell(ms(2), LinkEvent::Acknowledged(pkid, Verdict::Accepted));
                link.tell(ms(self.rng.u64(2..2000)), accepted);
            }
            Acks::Unknown => {
                link.tell(ms(1), LinkEvent::Acknowledged(pkid.wrapping_add(7777), Verdict::Accepted));
                link.tell(ms(2), accepted);
            }
            Acks::Shuffled => link.tell(ms(self.rng.u64(1..3000)), accepted),
        }
    }

    fn send_receipt(&mut self, link: &Arc<Wire>) {
        if !self.receipts || self.rng.u8(0..3) > 0 {
            return;
        }
        let seq = match self.rng.u8(0..10) {
            0 => self.billing.last / 2, // an old one
            _ => self.billing.last,
        };
        let ledger = if self.rng.u8(0..20) == 0 { "another" } else { self.billing.ledger.as_str() };
        let payload = json!({"ledger": ledger, "confirmed_seq": seq, "rejected": []}).to_string();
        link.tell(
            Duration::from_millis(self.rng.u64(1..500)),
            LinkEvent::Message {
                topic: format!("{}/receipt", self.base),
                payload: payload.into(),
                retained: false,
            },
        );
    }
}

/// The way back to the gateway.
#[derive(Default)]
struct Wire {
    events: Mutex<Events>,
    news: Notify,
}

#[derive(Default)]
struct Events {
    due: BTreeMap<(Instant, u64), LinkEvent>,
    number: u64,
    pkid: u16,
}

impl Wire {
    fn tell(&self, after: Duration, event: LinkEvent) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.number += 1;
        let key = (Instant::now() + after, events.number);
        events.due.insert(key, event);
        self.news.notify_one();
    }
}

struct SimLink {
    broker: SimBroker,
    wire: Arc<Wire>,
}

impl SimLink {
    /// Whether the broker still has this connection.
    fn is_alive(&self, state: &State) -> bool {
        state.mode.reach != Reach::HalfOpen
            && state.link.as_ref().is_some_and(|link| Arc::ptr_eq(link, &self.wire))
    }
}

impl Broker for SimBroker {
    fn connect(&self, offer: Offer) -> Box<dyn Link> {
        let wire = Arc::new(Wire::default());
        let mut state = self.state();
        if state.mode.reach == Reach::Refuses {
            wire.tell(Duration::from_millis(5), LinkEvent::Failed("connection refused".into()));
        } else if state.mode.reach == Reach::Well {
            let receive_max = if state.rng.u8(0..4) == 0 { state.rng.u16(1..10) } else { 100 };
            wire.tell(
                Duration::from_millis(10),
                LinkEvent::Connected {
                    receive_max,
                    max_packet: 256 * 1024,
                    keep_alive: Duration::from_secs(20),
                    retain: true,
                },
            );
            // One client id, one connection: whoever had it before is gone.
            state.retained = state.will.take().or(state.retained.take());
            state.link = Some(Arc::clone(&wire));
            state.will = Some(offer.will.payload);
        }
        Box::new(SimLink { broker: self.clone(), wire })
    }
}

impl Link for SimLink {
    fn event(&mut self) -> BoxFuture<'_, LinkEvent> {
        Box::pin(async {
            loop {
                let next = {
                    let mut events = self.wire.events.lock().unwrap_or_else(PoisonError::into_inner);
                    match events.due.first_key_value().map(|(key, _)| *key) {
                        Some(key) if key.0 <= Instant::now() => {
                            if let Some(event) = events.due.remove(&key) {
                                return event;
                            }
                            continue;
                        }
                        next => next,
                    }
                };
                let due = async {
                    match next {
                        Some((due, _)) => sleep_until(due).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = self.wire.news.notified() => {}
                    () = due => {}
                }
            }
        })
    }

    fn max_payload(&self, topic: &str) -> usize {
        256 * 1024 - 256 - topic.len()
    }

    fn publish(&self, message: Message) -> bool {
        let pkid = {
            let mut events = self.wire.events.lock().unwrap_or_else(PoisonError::into_inner);
            events.pkid = events.pkid % 60_000 + 1;
            events.pkid
        };
        self.wire.tell(Duration::ZERO, LinkEvent::Sent(pkid));
        let mut state = self.broker.state();
        if self.is_alive(&state) {
            state.accept(&self.wire, &message, pkid);
        }
        true
    }

    fn subscribe(&self, filters: Vec<String>) -> bool {
        let state = self.broker.state();
        if self.is_alive(&state) {
            self.wire.tell(Duration::from_millis(5), LinkEvent::Subscribed(vec![true; filters.len()]));
            let topic = format!("{}/status", state.base);
            if let Some(payload) = state.retained.clone().filter(|_| filters.contains(&topic)) {
                let message = LinkEvent::Message { topic, payload, retained: true };
                self.wire.tell(Duration::from_millis(6), message);
            }
        }
        true
    }

    fn disconnect(&self) {
        let mut state = self.broker.state();
        if self.is_alive(&state) {
            state.will = None;
        }
        drop(state);
        self.wire.tell(Duration::from_millis(1), LinkEvent::Failed("disconnected".into()));
    }
}
