//! `identity [rotate]`: gateway id, ledger id, public key; and a new key when the old one should go.

use std::{process::ExitCode, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    foreign_owner, no,
    output::print_lines,
    own_user,
    target::{Source, Target},
};
use crate::{
    billing,
    clock::{Clock, SystemClock},
    identity::Identity,
    ledger::SharedLedger,
};

/// How long a rotation without a daemon holds the ledger: a daemon counts who asks for what, and here nobody does. A loop
/// records as many as one asker may have recorded by a daemon.
const ROTATION_TAKES: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Subcommand)]
pub enum IdentityCommand {
    /// Make a new signing key; a record signed by the old one says so, and the old one is kept aside
    Rotate {
        /// Who asks, for the record
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
    },
}

pub async fn run(
    target: &Target,
    public_key: bool,
    command: Option<IdentityCommand>,
) -> anyhow::Result<ExitCode> {
    match command {
        Some(IdentityCommand::Rotate { by }) => rotate(target, by).await,
        None => show(target, public_key).await,
    }
}

async fn show(target: &Target, public_key: bool) -> anyhow::Result<ExitCode> {
    let running = target.running().await?;
    let dir = target.dir();
    if let Some(owner) = foreign_owner(dir)
        && !Identity::is_made(dir)
    {
        return no(format!(
            "{}: no key yet, and the directory belongs to user {owner}\n  hint: the daemon makes it at its first start",
            dir.display()
        ));
    }
    if !Identity::is_made(dir) {
        target.settings()?; // a key is not made in a directory that is only guessed
        crate::app::make_data_dir(dir)?;
    }
    let identity = Identity::load_or_create(dir)?;
    if public_key {
        print_lines(&identity.public_key_pem());
        return Ok(ExitCode::SUCCESS);
    }
    say!("gateway     {}", target.gateway(running.as_ref()).unwrap_or_else(|| "not known here".into()));
    say!(
        "ledger      {}",
        crate::ledger::stored_id(dir)?.unwrap_or_else(|| "none yet: it is made at the first run".into())
    );
    say!("public key  {}", identity.key_id());
    print_lines(&identity.public_key_pem());
    Ok(ExitCode::SUCCESS)
}

async fn rotate(target: &Target, by: Option<String>) -> anyhow::Result<ExitCode> {
    let source = target.source().await?;
    let dir = target.dir();
    let said = match source {
        Source::Gateway(mut running) => {
            running.daemon.post_json("/api/v1/identity/rotate", &json!({"by": by})).await
        }
        Source::Store(files) => {
            let who = own_user(by.as_deref())?;
            let identity = Identity::load_or_create(dir)?;
            let ledger: SharedLedger = Arc::clone(&files) as _;
            let clock = SystemClock::new();
            clock.refresh().await;
            let rotated = billing::rotate(&identity, &ledger, dir, &who, (clock.wall(), clock.state())).await;
            tokio::time::sleep(ROTATION_TAKES).await;
            files.close();
            rotated
                .map(|(key, old)| {
                    json!({"old_key_id": old, "new_key_id": key.id(), "new_public_key": key.to_pem()})
                })
                .map_err(anyhow::Error::from)
        }
    };
    let said = match said {
        Ok(said) => said,
        Err(error) => return no(error),
    };
    let text = |name: &str| said.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let old = text("old_key_id");
    say!("old key     {old} (kept as {})", dir.join(format!("identity.key.{old}")).display());
    say!("public key  {}", text("new_key_id"));
    print_lines(&text("new_public_key"));
    Ok(ExitCode::SUCCESS)
}
