//! What comes back from the broker: receipts, commands, and descriptions of meters that are no longer ours.
//!
//! Bytes from outside: what is not understood is logged or answered, never trusted. Carries nothing out itself.

use bytes::Bytes;
use tracing::{debug, info, warn};

use super::{
    super::{
        payload::{Command, PayloadError, Receipt, Response},
        topics::Down,
    },
    Driver, Incoming,
};
use crate::model::MeterId;

/// Messages of our own that may wait while descriptions are being removed: a broker that holds more of them tells the
/// rest again at the next connection.
const MAX_WAITING: usize = 4096;

impl Driver {
    pub(super) fn message(&mut self, topic: &str, bytes: &Bytes, retained: bool) {
        match self.names.classify(topic) {
            Some(Down::Receipt) => match Receipt::parse(bytes) {
                Ok(receipt) if self.is_disproved_by(&receipt) => {}
                Ok(receipt) => {
                    let ours = receipt.ledger == self.ledger.id();
                    self.receipt(receipt);
                    if ours {
                        self.billing_answered();
                    }
                }
                Err(error) => {
                    warn!(topic, %error, "a receipt is ignored: it cannot be read");
                    self.session.malformed_receipt();
                }
            },
            Some(Down::Command) => self.command(bytes, retained),
            Some(Down::Inventory(meter)) if retained && !bytes.is_empty() => {
                let known =
                    meter.parse::<MeterId>().is_ok_and(|id| self.inventory.borrow().contains_key(&id));
                if !known && self.own.len() < MAX_WAITING {
                    info!(meter, "removing the description of a meter that is no longer configured");
                    self.describe(self.inventory_message(meter, Bytes::new()));
                }
            }
            Some(Down::Inventory(_)) => {}
            Some(Down::Status) => self.hear_status(bytes, retained),
            None => debug!(topic, "a message on a topic that is not ours"),
        }
    }

    fn command(&mut self, bytes: &Bytes, retained: bool) {
        let command = match Command::parse(bytes) {
            Ok(command) => command,
            Err(PayloadError::Malformed { what, detail, id }) => {
                warn!(id, error = detail, "a command is refused: it is no valid {what}");
                return self.answer(&Response { id, outcome: Err(format!("not a valid {what}: {detail}")) });
            }
        };
        let id = Some(command.id.clone());
        if retained {
            // It would be carried out again at each connection.
            warn!(
                id,
                hint = "remove the retained message, or it comes back with each connection",
                "a command is refused: it is retained"
            );
            let outcome = Err("a command must not be retained".to_owned());
            return self.answer(&Response { id, outcome });
        }
        if self.events.try_send(Incoming::Command(command)).is_err() {
            warn!(id, "a command is refused: too many are waiting");
            self.answer(&Response { id, outcome: Err("busy: try again later".to_owned()) });
        }
    }
}
