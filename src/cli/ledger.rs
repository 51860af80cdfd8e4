//! `ledger verify | export | backup | restore | replay | manifest`: prove, copy, re-send and sum up what was recorded.
//!
//! Verifying and exporting read the segment files and nothing else, so they work while the daemon runs and need
//! no index.

use std::{io::Write, path::PathBuf, process::ExitCode};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{
    backup, check_range, manifest, no,
    output::{self, print_json},
    target::Target,
};
use crate::{
    billing::proof::Proof,
    ledger::{
        audit::{audit_with, export},
        disk::RealDisk,
    },
    model::Seq,
};

#[derive(Debug, clap::Subcommand)]
pub enum LedgerCommand {
    /// Recompute every hash and the chain
    Verify {
        /// First record
        #[arg(long, default_value_t = 1, value_name = "SEQ")]
        from: Seq,
        /// Last record
        #[arg(long, value_name = "SEQ")]
        to: Option<Seq>,
        /// Check the signatures too, with this public key (PEM); may be given more than once
        #[arg(long, value_name = "FILE")]
        public_key: Vec<PathBuf>,
        /// Check an export (JSON lines) instead of the store
        #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to"], requires = "public_key")]
        export: Option<PathBuf>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// What a local day came to: the recorded manifest, or what it would be
    Manifest {
        /// The day, local to the site, e.g. 2026-11-01; yesterday when not given
        date: Option<chrono::NaiveDate>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Write records as JSON lines: exactly the bytes that were hashed
    Export {
        /// First record
        #[arg(long, default_value_t = 1, value_name = "SEQ")]
        from: Seq,
        /// Last record
        #[arg(long, value_name = "SEQ")]
        to: Option<Seq>,
        /// Where to; standard output when not given
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Copy the ledger of a running (or stopped) gateway, proved while it is copied; only what is new the next time
    Backup {
        /// An empty directory, or an older backup of this ledger
        dir: PathBuf,
        /// Who asks, for the record
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
    },
    /// Put a backup into an empty data directory
    Restore {
        /// What `ledger backup` made
        dir: PathBuf,
        /// The highest seq of this ledger that billing has: when the backup reaches that far its ledger goes on,
        /// otherwise a new one begins
        #[arg(long, value_name = "SEQ")]
        billing_has: Option<Seq>,
        /// Who asks, for the record
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
    },
    /// Publish a range again with its original bytes, through the running daemon
    Replay {
        /// First record
        #[arg(long, value_name = "SEQ")]
        from: Seq,
        /// Last record
        #[arg(long, value_name = "SEQ")]
        to: Seq,
        /// Who asks, for the record
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
    },
}

/// An export is proved anywhere: for that no gateway is looked for.
pub async fn run(
    target: impl FnOnce() -> anyhow::Result<Target>,
    command: LedgerCommand,
) -> anyhow::Result<ExitCode> {
    if let LedgerCommand::Verify { public_key, export: Some(path), json, .. } = command {
        return manifest::verify_export(&path, manifest::keys(&public_key)?, json);
    }
    let target = &target()?;
    match command {
        LedgerCommand::Manifest { date, json } => manifest::show(target, date, json).await,
        LedgerCommand::Verify { from, to, public_key, json, .. } => {
            check_range(from, to.unwrap_or(Seq::MAX))?;
            verify(target, (from, to), &public_key, json)
        }
        LedgerCommand::Export { from, to, output } => {
            check_range(from, to.unwrap_or(Seq::MAX))?;
            let report = match output {
                Some(path) => {
                    let file = match std::fs::File::create(&path) {
                        Ok(file) => file,
                        Err(error) => return no(format!("{}: {error}", path.display())),
                    };
                    let mut file = std::io::BufWriter::new(output::records(file));
                    let report = export(target.recorded()?, from, to, &mut file)?;
                    file.flush()?;
                    report
                }
                None => export(
                    target.recorded()?,
                    from,
                    to,
                    &mut std::io::BufWriter::new(output::records(std::io::stdout())),
                )?,
            };
            note!("{} records exported", report.records);
            if !report.faults.is_empty() {
                report.faults.iter().for_each(|fault| note!("fault: {fault}"));
                return no(format!("{} fault(s): this ledger does not prove itself", report.faults.len()));
            }
            Ok(ExitCode::SUCCESS)
        }
        LedgerCommand::Backup { dir: to, by } => backup::backup(target, &to, by).await,
        LedgerCommand::Restore { dir: from, billing_has, by } => {
            backup::restore(target, &from, billing_has, by.as_deref()).await
        }
        LedgerCommand::Replay { from, to, by } => {
            check_range(from, to)?;
            let Some(mut running) = target.running().await? else {
                return no(format!(
                    "no daemon runs on {}, and only the daemon publishes\n  hint: systemctl start meter-gateway",
                    target.dir().display()
                ));
            };
            let asked = json!({"from": from, "to": to, "by": by});
            match running.daemon.post_json("/api/v1/ledger/replay", &asked).await {
                Ok(said) => {
                    let merged = said.get("merged").is_some_and(|merged| *merged == true);
                    let what =
                        if merged { "is being published again already" } else { "will be published again" };
                    say!("seq {from} to {to} {what}");
                    Ok(ExitCode::SUCCESS)
                }
                Err(error) => no(error),
            }
        }
    }
}

/// `ledger verify` of the store.
fn verify(
    target: &Target,
    (from, to): (Seq, Option<Seq>),
    public_key: &[PathBuf],
    json: bool,
) -> anyhow::Result<ExitCode> {
    let signatures = !public_key.is_empty();
    let mut proof = Proof::new(manifest::keys(public_key)?);
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
    )?);
    let mut progress = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    let report =
        audit_with(&RealDisk, target.recorded()?, from, to, &mut progress, &mut |verified, line| {
            Ok(signatures.then(|| proof.record(verified, line).err()).flatten().map(|f| f.to_string()))
        })?;
    bar.finish_and_clear();
    if json {
        print_json(
            &json!({
                "ledger": report.ledger, "records": report.records, "first_seq": report.first,
                "last_seq": report.head.seq, "head": report.head.hash, "faults": report.faults,
                "more_faults": report.more_faults,
                "signatures": signatures.then(|| manifest::proof_json(&proof)),
            })
            .to_string(),
        );
    } else {
        say!("ledger   {}", report.ledger);
        say!("records  {} (seq {} to {})", report.records, report.first, report.head.seq);
        say!("head     {}", report.head.hash);
        if signatures {
            manifest::print_proof(&proof);
        }
    }
    if report.faults.is_empty() {
        if !json {
            say!("every hash and every link checks");
        }
        return Ok(ExitCode::SUCCESS);
    }
    for fault in &report.faults {
        note!("fault: {fault}");
    }
    no(format!(
        "{} fault(s): this ledger does not prove itself",
        report.faults.len() as u64 + report.more_faults
    ))
}
