//! Billing's receipts: how far it is, what it lacks, and what a person has to know about it.
//!
//! Names what is wrong with a receipt, and shows where receipts stay behind. What is sent again, and when, is the session's.

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    super::{
        payload::Receipt,
        session::{Event, Resend},
    },
    Driver,
};
use crate::{
    config::{Confirm, MqttVersion},
    model::{Seq, Warning},
};

impl Driver {
    pub(super) fn receipt(&mut self, mut receipt: Receipt) {
        let (ignored, rejected) = (self.session.ignored_receipts(), receipt.rejected.len());
        let (ledger, seq) = (receipt.ledger.clone(), receipt.confirmed_seq);
        let asked = receipt.resend_from.clone();
        if ledger == self.ledger.id() {
            self.note_not_kept(&mut receipt);
        }
        self.session.handle(Event::Receipt(receipt), Instant::now().into_std());
        if self.session.ignored_receipts() > ignored {
            warn!(
                ledger,
                confirmed_seq = seq,
                "a receipt, or a part of it, is ignored: it is about another ledger, or about a record that was never sent"
            );
        } else if rejected > 0 {
            warn!(confirmed_seq = seq, rejected, "billing has rejected records");
        }
        match (asked, self.session.take_resend()) {
            (Some(Err(error)), _) => {
                warn!(error, "a part of a receipt is ignored: its resend_from cannot be used");
                self.session.malformed_receipt();
            }
            (Some(Ok(from)), Some(Resend::NeverSent(sent))) => {
                warn!(
                    resend_from = from,
                    "a part of a receipt is ignored: it asks for records again, but only those up to {sent} were sent"
                );
                self.session.malformed_receipt();
            }
            (_, Some(Resend::Queued(range))) => {
                info!(from = range.start(), to = range.end(), "billing lacks records: they are sent again");
            }
            (_, Some(resend)) => debug!(?resend, "billing asks again for what is sent again already"),
            (_, None) => {}
        }
    }

    /// What retention has removed cannot be sent again: the rest is, from the first that is kept.
    fn note_not_kept(&mut self, receipt: &mut Receipt) {
        let kept = self.ledger.first();
        self.not_kept.take_if(|gone| receipt.confirmed_seq >= *gone.end());
        if let Some(Ok(from)) = &mut receipt.resend_from
            && *from < kept
            && kept > 1
        {
            self.not_kept = Some((*from).max(1)..=kept - 1);
            *from = kept;
        }
    }

    /// Brings the list of what is not well with billing up to date, and logs both ends of each.
    pub(super) fn note_billing(&mut self, now: std::time::Instant) -> &[Warning] {
        let list = self.list_billing(now);
        let known = |list: &[Warning], code| list.iter().any(|warning| warning.code == code);
        for Warning { code, text } in list.iter().filter(|new| !known(&self.billing, new.code)) {
            warn!(code, "{text}");
        }
        for Warning { text, .. } in self.billing.iter().filter(|old| !known(&list, old.code)) {
            info!("no longer so: {text}");
        }
        self.billing = list;
        &self.billing
    }

    pub(super) fn list_billing(&self, now: std::time::Instant) -> Vec<Warning> {
        let by_broker = self.settings.confirm == Confirm::Broker;
        let mut list = Vec::new();
        let mut add = |code, text| list.push(Warning { code, text });
        if by_broker && self.settings.version == MqttVersion::V311 && !self.session.receipts_keep_up() {
            add("delivery_unproven", UNPROVEN.to_owned());
        }
        if self.settings.confirm == Confirm::Billing && self.session.nobody_confirms(now) {
            add(
                "nobody_confirms",
                "records are acknowledged by the broker, and no receipt has come: nothing is confirmed, nothing is sent again \
                 by itself, and retention removes nothing\n  hint: does billing run, and does it send receipts?"
                    .to_owned(),
            );
        }
        if let Some(seq) = self.session.receipts_behind() {
            add("receipts_behind", behind(seq, by_broker));
        }
        if let Some(gone) = &self.not_kept {
            let (from, to) = (gone.start(), gone.end());
            add(
                "resend_not_kept",
                format!(
                    "billing lacks records {from} to {to} and asked for them again; retention has removed them here\n  hint: \
                     take them from a backup (`ledger export`), then confirm beyond {to}"
                ),
            );
        }
        list
    }
}

/// MQTT 3.1.1 where the broker's word frees a record.
const UNPROVEN: &str = "mqtt.version = \"3.1.1\" with mqtt.confirm = \"broker\": this version of the protocol has no way to \
    refuse a message, so a broker acknowledges also what it denies, drops or has nobody for, and it counts as confirmed here\n  \
    hint: set mqtt.confirm = \"billing\"";

fn behind(seq: Seq, by_broker: bool) -> String {
    let next = seq + 1;
    if by_broker {
        format!(
            "billing's receipts stand still at {seq}, and later records count as confirmed: it lacks {next}, or it is slow; \
             retention may remove what it lacks\n  hint: set mqtt.confirm = \"billing\"; `meter-gateway ledger replay --from {next}` \
             sends them again"
        )
    } else {
        format!(
            "billing's receipts stand still at {seq}, and later records are acknowledged: it lacks {next}, or it is slow; they \
             are sent again from {next}\n  hint: does billing run, and does its queue at the broker hold what is sent?"
        )
    }
}
