//! A new signing key: announced by a record that the old key signs, then put in force.
//!
//! Order: the next key is on the disk, then the record, then the exchange of the files. A crash between any two is
//! settled at the next start by what the chain says.

use std::{io::ErrorKind, path::Path, time::Duration};

use tokio::time::timeout;

use super::{history::History, signing::sign};
use crate::{
    identity::{Identity, PublicKey, discard_next, pending},
    ledger::{LedgerError, SharedLedger},
    model::{Asker, ClockState, Draft, Utc, change},
};

/// How long a manifest that is being recorded is waited for. On a full disk it takes until there is room.
const SIGNING_PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no new key.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// It is not ours to exchange.
    #[error(
        "the key comes from the systemd credential {0}\n  hint: put a new key there and restart the daemon"
    )]
    Credential(String),
    /// The key files.
    #[error("key files in the data directory: {0}")]
    Files(#[from] std::io::Error),
    /// A manifest is being signed, and cannot be stored.
    #[error(
        "a manifest is waiting to be recorded, and is signed by the key in force\n  hint: `meter-gateway status` says why the store does not take it"
    )]
    Busy,
    /// The record.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// Makes a new key, says so in the chain, puts it in force. Returns it and the id of the old one.
pub async fn rotate(
    identity: &Identity,
    ledger: &SharedLedger,
    data_dir: &Path,
    who: &Asker,
    (now, clock): (Utc, ClockState),
) -> Result<(PublicKey, String), RotateError> {
    if let Some(path) = identity.credential() {
        return Err(RotateError::Credential(path.display().to_string()));
    }
    let _signing = timeout(SIGNING_PATIENCE, identity.signing.lock()).await.map_err(|_| RotateError::Busy)?;
    settle(identity, ledger, data_dir)?;
    let old = identity.signer();
    let new = identity.make_next(data_dir)?.public_key();
    let head = ledger.head().borrow().clone();
    let mut fields = who.fields();
    fields.insert("ledger".into(), ledger.id().into());
    fields.insert("old_key_id".into(), old.public_key().id().into());
    fields.insert("new_key_id".into(), new.id().into());
    fields.insert("new_public_key".into(), new.to_base64().into());
    fields.insert("last_seq".into(), head.seq.into());
    fields.insert("head".into(), head.hash.into());
    let mut draft = Draft::change(change::KEY_ROTATED, fields, now, clock);
    sign(&mut draft, &old);
    // After an error nobody knows whether the record is stored: the next key stays, and `settle` looks.
    ledger.append(vec![draft]).await?;
    identity.adopt_next(data_dir)?;
    tracing::info!(old = old.public_key().id(), new = new.id(), "the signing key was rotated");
    Ok((new, old.public_key().id()))
}

/// Ends a rotation that a crash cut off: the key that the chain announces is put in force, any other let go.
pub fn settle(identity: &Identity, ledger: &SharedLedger, data_dir: &Path) -> Result<(), RotateError> {
    let next = match pending(data_dir) {
        Ok(Some(next)) => next,
        Ok(None) => return Ok(()),
        // Torn while it was written. It was synced before its record was made, so no record announces it.
        Err(error) if error.kind() == ErrorKind::InvalidData => return Ok(discard_next(data_dir)?),
        Err(error) => return Err(error.into()),
    };
    let announced = History::load(&**ledger)?.key_id;
    if announced.as_ref() == Some(&next.public_key().id()) {
        identity.adopt_next(data_dir)?;
    } else {
        discard_next(data_dir)?;
    }
    Ok(())
}
