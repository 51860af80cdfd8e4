//! `ledger verify | export | replay`: prove, copy and re-send what was recorded.
//!
//! Verifying and exporting read the segment files and nothing else, so they work while the daemon runs and need
//! no index.

use std::{io::Write, path::PathBuf, process::ExitCode};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{check_range, client::Daemon, no};
use crate::{
    config::Settings,
    ledger::audit::{audit, export},
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
    /// Publish a range again with its original bytes, through the running daemon
    Replay {
        /// First record
        #[arg(long, value_name = "SEQ")]
        from: Seq,
        /// Last record
        #[arg(long, value_name = "SEQ")]
        to: Seq,
    },
}

pub async fn run(settings: &Settings, command: LedgerCommand) -> anyhow::Result<ExitCode> {
    let dir = &settings.gateway.data_dir;
    match command {
        LedgerCommand::Verify { from, to, json } => {
            check_range(from, to.unwrap_or(Seq::MAX))?;
            let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
                "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
            )?);
            let report = audit(dir, from, to, &mut |done, total| {
                bar.set_length(total);
                bar.set_position(done);
            })?;
            bar.finish_and_clear();
            if json {
                println!(
                    "{}",
                    json!({
                        "ledger": report.ledger, "records": report.records, "first_seq": report.first,
                        "last_seq": report.head.seq, "head": report.head.hash, "faults": report.faults,
                        "more_faults": report.more_faults,
                    })
                );
            } else {
                println!("ledger   {}", report.ledger);
                println!("records  {} (seq {} to {})", report.records, report.first, report.head.seq);
                println!("head     {}", report.head.hash);
            }
            if report.faults.is_empty() {
                if !json {
                    println!("every hash and every link checks");
                }
                return Ok(ExitCode::SUCCESS);
            }
            for fault in &report.faults {
                eprintln!("fault: {fault}");
            }
            no(format!(
                "{} fault(s): this ledger does not prove itself",
                report.faults.len() as u64 + report.more_faults
            ))
        }
        LedgerCommand::Export { from, to, output } => {
            check_range(from, to.unwrap_or(Seq::MAX))?;
            let report = match output {
                Some(path) => {
                    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
                    let report = export(dir, from, to, &mut file)?;
                    file.flush()?;
                    report
                }
                None => export(dir, from, to, &mut std::io::BufWriter::new(std::io::stdout().lock()))?,
            };
            eprintln!("{} records exported", report.records);
            if !report.faults.is_empty() {
                return no(report.faults.join("\n"));
            }
            Ok(ExitCode::SUCCESS)
        }
        LedgerCommand::Replay { from, to } => {
            check_range(from, to)?;
            let Some(mut daemon) = Daemon::connect(dir).await? else {
                return no(
                    "no daemon runs on this data directory, and only the daemon publishes\n  hint: systemctl start meter-gateway",
                );
            };
            match daemon.post_json("/api/v1/ledger/replay", &json!({"from": from, "to": to})).await {
                Ok(_) => {
                    println!("seq {from} to {to} will be published again");
                    Ok(ExitCode::SUCCESS)
                }
                Err(error) => no(error),
            }
        }
    }
}
