//! `ledger backup DIR` and `ledger restore DIR`: asks the daemon how far the disk is, shows progress, says what follows.
//!
//! The copying itself is the ledger's.

use std::{path::Path, process::ExitCode};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::{no, own_user, target::Target};
use crate::{
    clock::{Clock, SystemClock},
    identity::{Identity, PUBLIC_KEY},
    ledger::backup::{self, Copied},
    model::Seq,
};

fn bar() -> anyhow::Result<ProgressBar> {
    let style = "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
    Ok(ProgressBar::new(0).with_style(ProgressStyle::with_template(style)?))
}

pub async fn backup(target: &Target, to: &Path, by: Option<String>) -> anyhow::Result<ExitCode> {
    // What a running daemon says is stored is on its disk; what lies behind that may not be.
    let durable = match target.running().await? {
        Some(mut running) => {
            let asked = json!({"dir": std::path::absolute(to)?.to_string_lossy(), "by": by});
            let said = match running.daemon.post_json("/api/v1/ledger/backup", &asked).await {
                Ok(said) => said,
                Err(error) => return no(error),
            };
            if let Some(why) = said.get("unrecorded").and_then(Value::as_str) {
                note!("warning: this backup is not on record: {why}");
            }
            said.get("last_seq").and_then(Value::as_u64)
        }
        None => None,
    };
    let dir = target.recorded()?;
    let bar = bar()?;
    let mut progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let copied = backup::backup(dir, to, durable, &mut progress)?;
    bar.finish_and_clear();
    // Beside the copy: with them its signatures can be checked anywhere.
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if text.strip_suffix(".pem").is_some_and(|name| name.starts_with("public-key")) {
            std::fs::copy(dir.join(&name), to.join(&name))?;
        }
    }
    std::fs::write(to.join(PUBLIC_KEY), Identity::load_or_create(dir)?.public_key_pem())?;
    tell(&copied);
    faults(&copied)
}

pub async fn restore(
    target: &Target,
    from: &Path,
    billing_has: Option<Seq>,
    by: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let who = own_user(by)?;
    let dir = target.dir();
    crate::app::make_data_dir(dir)?;
    let clock = SystemClock::new();
    clock.refresh().await;
    let bar = bar()?;
    let mut progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let restored = backup::restore(from, dir, billing_has, (clock.wall(), clock.state()), &mut progress)?;
    bar.finish_and_clear();
    let asked = Map::from_iter([
        ("dir".to_owned(), from.to_string_lossy().into()),
        ("of".to_owned(), restored.copied.ledger.clone().into()),
        ("last_seq".to_owned(), restored.copied.head.seq.into()),
        ("head".to_owned(), restored.copied.head.hash.clone().into()),
        ("goes_on".to_owned(), (restored.ledger == restored.copied.ledger).into()),
    ]);
    crate::app::leave_note(dir, &who.action("restore", asked))?;
    tell(&restored.copied);
    if restored.ledger == restored.copied.ledger {
        say!("the ledger goes on; its next record is seq {}", restored.next);
    } else {
        say!(
            "ledger {} begins behind it (next record: seq {}): numbers after seq {} may have been used already",
            restored.ledger,
            restored.next,
            restored.copied.head.seq
        );
        say!("the old records are in {}/ledger as replaced-1.*, readable and proved", dir.display());
        say!("the signing key is not in a backup: a new one is made at the next start unless it is put back");
    }
    faults(&restored.copied)
}

fn tell(copied: &Copied) {
    say!("ledger   {}", copied.ledger);
    say!("records  to seq {}", copied.head.seq);
    say!("head     {}", copied.head.hash);
    say!("files    {} copied ({} bytes), {} there already", copied.files.0, copied.bytes, copied.files.1);
}

fn faults(copied: &Copied) -> anyhow::Result<ExitCode> {
    if copied.faults.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for fault in &copied.faults {
        note!("fault: {fault}");
    }
    no(format!("{} fault(s) in the original, copied as they are", copied.faults.len()))
}
