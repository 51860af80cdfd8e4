//! What the publisher says besides records: status, inventory, answers, and to the daemon its own state.
//!
//! Holds back what the window does not allow; knows nothing of records and cursors but their numbers.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{
    super::{
        link::Message,
        payload::{self, Response, StatusFacts},
        session::{Part, Resend, Tag},
    },
    Driver, Outgoing, PublisherState,
};
use crate::model::{MeterId, Warning};

fn part_of(message: &Message) -> Part {
    match message.schema {
        STATUS_SCHEMA => Part::Status,
        INVENTORY_SCHEMA => Part::Inventory,
        _ => Part::Responses,
    }
}

/// How often `status` is repeated (the contract).
const STATUS_EVERY: Duration = Duration::from_secs(60);
/// Answers that wait for a connection; an asker who waits longer has given up.
const MAX_ANSWERS: usize = 256;

/// Topics that are named because a message on them was too large.
const MAX_TOO_LARGE: usize = 8;

const STATUS_SCHEMA: &str = "meter-gateway/status/1";
const INVENTORY_SCHEMA: &str = "meter-gateway/inventory/1";
pub(super) const RESPONSE_SCHEMA: &str = "meter-gateway/response/1";

impl Driver {
    pub(super) fn take(&mut self, message: Outgoing) {
        match message {
            Outgoing::Response(response) => self.answer(&response),
            Outgoing::Replay { from, to } => {
                match self.session.replay(from, to) {
                    Resend::Full => warn!(from, to, "a replay is refused: too many are waiting"),
                    Resend::NeverSent(_) => {
                        warn!(from, to, "a replay is refused: none of these records were sent yet");
                    }
                    _ => {}
                }
                self.replays_taken += 1;
            }
        }
    }

    pub(super) fn answer(&mut self, response: &Response) {
        if self.own.iter().filter(|m| m.schema == RESPONSE_SCHEMA).count() >= MAX_ANSWERS {
            error!(id = response.id, "an answer is dropped: {MAX_ANSWERS} are waiting for a connection");
            return;
        }
        let topic = self.names.response();
        let message = Message { topic, payload: response.to_bytes(), retain: false, schema: RESPONSE_SCHEMA };
        self.own.push_back(message);
    }

    /// Queues what changed in the inventory; everything, when `afresh`.
    pub(super) fn announce(&mut self, afresh: bool) {
        let current: BTreeMap<MeterId, Bytes> = self
            .inventory
            .borrow_and_update()
            .iter()
            .map(|(id, said)| (id.clone(), payload::inventory(said)))
            .collect();
        if !self.session.is_online() {
            return;
        }
        let announced = std::mem::replace(&mut self.announced, current.clone());
        for removed in announced.keys().filter(|id| !current.contains_key(*id)) {
            self.describe(self.inventory_message(removed.as_str(), Bytes::new()));
        }
        for (id, said) in current {
            if afresh || announced.get(&id) != Some(&said) {
                self.describe(self.inventory_message(id.as_str(), said));
            }
        }
    }

    /// Queues a description; one of the same meter that waits is out of date.
    pub(super) fn describe(&mut self, message: Message) {
        self.own.retain(|waiting| waiting.topic != message.topic);
        self.own.push_back(message);
    }

    pub(super) fn inventory_message(&self, meter: &str, payload: Bytes) -> Message {
        Message { topic: self.names.inventory(meter), payload, retain: self.retain, schema: INVENTORY_SCHEMA }
    }

    pub(super) fn say_status(&mut self) {
        let now = Instant::now();
        if now >= self.status_due {
            self.own.retain(|message| message.schema != STATUS_SCHEMA); // one that waits is out of date
            self.standing.said(self.head.borrow().seq);
            self.own.push_front(self.status_message(true));
            self.status_said = now;
            self.status_due = now + STATUS_EVERY;
        }
    }

    pub(super) fn status_message(&self, online: bool) -> Message {
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
        Message { topic: self.names.status(), payload, retain: self.retain, schema: STATUS_SCHEMA }
    }

    /// Hands over what is waiting to be said, as far as the window allows.
    pub(super) fn say_own(&mut self) {
        if !self.session.is_online() || self.stop_by.is_some_and(|by| Instant::now() >= by) {
            return;
        }
        self.say_status();
        while let Some(message) = self.next_own() {
            let room = self.link.as_ref().map_or(0, |link| link.max_payload(&message.topic));
            if message.payload.len() > room {
                let bytes = message.payload.len();
                error!(
                    topic = message.topic,
                    bytes, "a message is dropped: it is larger than the {room} bytes that the broker takes"
                );
                continue;
            }
            let part = part_of(&message);
            if part == Part::Inventory {
                self.last_described = Some(message.topic.clone());
            }
            self.offer_to_link(message, Tag::Own(part));
        }
    }

    fn next_own(&mut self) -> Option<Message> {
        let now = Instant::now().into_std();
        let at = self.own.iter().position(|message| self.session.may_say(part_of(message), now))?;
        self.own.remove(at)
    }

    /// Shows the state, and logs when somebody starts or stops listening.
    pub(super) fn show(&mut self) {
        let nobody = self.session.nobody_listens();
        if nobody != self.nobody_listens {
            self.nobody_listens = nobody;
            let topic = self.names.records();
            if nobody {
                warn!(
                    topic,
                    hint = "is billing's consumer running?",
                    "nobody is subscribed to the records; they are kept"
                );
            } else {
                info!(topic, "somebody listens to the records again");
            }
        }
        let now = Instant::now().into_std();
        let late = self.session.awaiting_receipt_since(now);
        if late.is_some() != self.receipt_late {
            self.receipt_late = late.is_some();
            if self.receipt_late {
                let (acknowledged, confirmed) =
                    (self.session.acknowledged_seq(), self.session.confirmed_seq());
                warn!(
                    acknowledged,
                    confirmed,
                    hint = "does it send receipts? else set mqtt.confirm = \"broker\"",
                    "billing has confirmed nothing for an hour; records are kept"
                );
            } else {
                info!(confirmed = self.session.confirmed_seq(), "billing confirms records again");
            }
        }
        let refusal = self.session.last_refusal().map(|code| format!("the broker refuses records: {code}"));
        if refusal.is_some() != self.refused {
            self.refused = refusal.is_some();
            if let Some(error) = &refusal {
                let topic = self.names.records();
                warn!(topic, hint = "may this user publish there?", "{error}; they are kept");
            } else {
                info!("the broker takes records again");
            }
        }
        let own = self.own_refusals().into_iter().next();
        let unheard = (self.connected && !self.unheard.is_empty())
            .then(|| format!("the broker refuses the subscription to {}", self.unheard.join(" and ")));
        let mut warnings = self.warnings();
        warnings.extend_from_slice(self.note_billing(now));
        let shown = PublisherState {
            connected: self.connected,
            since: Some(self.since.into_std()),
            session: self.number.unwrap_or_default(),
            last_error: refusal.or_else(|| self.last_error.clone()).or(own).or(unheard),
            nobody_listens: nobody,
            in_flight: self.session.in_flight(),
            acknowledged: self.session.acknowledged_seq(),
            confirmed: self.session.confirmed_seq(),
            rejected: self.session.rejected().to_vec(),
            rejected_unlisted: self.session.rejected_unlisted(),
            awaiting_receipt_since: late,
            replays: self.session.replays_waiting().collect(),
            replayed: self.session.replayed().cloned(),
            replays_taken: self.replays_taken,
            ignored_receipts: self.session.ignored_receipts(),
            warnings,
            last_turn: Some(now),
        };
        self.state.send_if_modified(|state| {
            let comparable = PublisherState { last_turn: state.last_turn, ..shown.clone() };
            let differs = *state != comparable;
            *state = shown;
            differs
        });
    }

    /// What the broker refuses besides records, with the topic.
    fn own_refusals(&self) -> Vec<String> {
        let refusals = self.session.own_refusals();
        refusals
            .map(|(part, code)| format!("the broker refuses messages on {}: {code}", self.topic(part)))
            .collect()
    }

    pub(super) fn keeps_retained(&mut self, retain: bool) {
        if self.retain && !retain {
            warn!("the broker keeps no retained messages: status and inventory are published without");
        }
        self.retain = retain;
    }

    pub(super) fn passed_over(&mut self, topic: String, bytes: usize) {
        if !self.too_large.contains(&topic) && self.too_large.len() < MAX_TOO_LARGE {
            let most = payload::MAX_PACKET_BYTES;
            warn!(
                topic,
                bytes,
                most,
                hint = "remove the retained message there, or ask whoever sends it",
                "a message from the broker is too large and is passed over"
            );
            self.too_large.insert(topic);
        }
    }

    /// What is not well with the broker, in a fixed order. Logs the edges.
    fn warnings(&mut self) -> Vec<Warning> {
        let mut warnings = Vec::from_iter(self.comparison.warning());
        let left_out = self.session.left_out();
        for part in &left_out {
            let topic = self.topic(*part);
            if !self.left_out.contains(part) {
                warn!(
                    topic,
                    hint =
                        "look for a too large retained message there, or for a rule of the broker against it",
                    "connections to the broker end over a topic; records go on without it, it is tried again later"
                );
            }
            warnings.push(Warning {
                code: "broker_topic_left_out",
                text: format!("connections end over {topic}: going on without it"),
            });
        }
        for part in self.left_out.iter().filter(|part| !left_out.contains(part)) {
            info!(topic = self.topic(*part), "the topic that was left out is used again");
        }
        self.left_out = left_out;
        let refused = self.own_refusals();
        for error in refused.iter().filter(|error| !self.own_refused.contains(error)) {
            warn!(error, hint = "allow it in the broker's access list", "the broker does not take a message");
        }
        warnings.extend(refused.iter().map(|text| Warning { code: "broker_refuses", text: text.clone() }));
        self.own_refused = refused;
        let records_first = self.connected && self.session.records_first();
        if records_first && !self.records_first {
            warn!("connections to the broker end over something other than records; records go first");
        }
        self.records_first |= records_first;
        let taken_over = self.session.is_taken_over();
        if taken_over != self.taken_over {
            self.taken_over = taken_over;
            let client_id = &self.settings.client_id;
            if taken_over {
                warn!(
                    client_id,
                    hint = "give each gateway its own mqtt.client_id",
                    "another client uses this client id"
                );
            } else {
                info!(client_id, "no other client uses this client id any more");
            }
        }
        if !self.retain {
            warnings.push(Warning {
                code: "broker_no_retain",
                text: "the broker keeps no retained messages: who subscribes later learns no status and no inventory".into(),
            });
        }
        for topic in &self.too_large {
            warnings.push(Warning {
                code: "broker_message_too_large",
                text: format!("a message on {topic} is too large and was passed over"),
            });
        }
        if taken_over {
            let client_id = &self.settings.client_id;
            warnings.push(Warning {
                code: "broker_client_id",
                text: format!("another client uses this client id, `{client_id}`"),
            });
        }
        warnings
    }
}
