//! The command line: arguments as typed, then one file per subcommand.
//!
//! Data goes to standard output, logs and progress to standard error. The only folder that prints.
#![allow(clippy::print_stdout)]

#[macro_use]
mod output;

mod backup;
mod check;
mod client;
#[cfg(feature = "demo")]
mod demo;
mod identity;
mod ledger;
mod manifest;
mod profile;
mod query;
mod read;
mod simulate;
mod status;
mod target;
mod text;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};

use self::target::Target;
use crate::{
    config::{Fault, Settings},
    ledger::LedgerError,
    model::{Asker, MeterId, PointName, Seq, User, Utc, Via},
    telemetry::{LogFormat, start_logs},
};

/// How long threads may take that nobody waits for any more (a disk that hangs); with the parts of the daemon's own
/// end it stays below the promised 5 s.
const LAST_THREADS: std::time::Duration = std::time::Duration::from_millis(400);

/// The answer is no: a fault was found, a meter did not answer, a proof failed.
const NO: u8 = 1;
/// What was typed makes no sense (clap's code for the same).
const WRONG_USAGE: u8 = 2;
/// Our own fault (sysexits.h, EX_SOFTWARE).
const OWN_FAULT: u8 = 70;
/// The configuration is faulty (sysexits.h, EX_CONFIG).
const CONFIGURATION: u8 = 78;

/// Reads water, electricity and heat meters, keeps every reading in a ledger that proves itself, and
/// publishes it over MQTT.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Arguments {
    /// The configuration
    #[arg(
        long,
        short,
        global = true,
        env = "METER_GATEWAY_CONFIG",
        default_value = "/etc/meter-gateway/gateway.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// The data directory of the gateway to be asked, when the configuration cannot say it
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// More logs: -v for exchanges, -vv for every frame in hex
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// How logs are written when they do not go to the journal
    #[arg(long, global = true, value_enum, default_value = "human", value_name = "FORMAT")]
    log_format: LogChoice,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  meter-gateway demo --for 60s                a whole site on this machine, to look at
  meter-gateway check --config gateway.toml   every fault of a configuration, and its poll plan
  meter-gateway run --config gateway.toml     the daemon
  meter-gateway read E-0101                   one meter, now
  meter-gateway ledger verify                 recompute every hash

Exit codes: 0 done, 1 the answer is no, 2 wrong usage, 70 our own fault, 78 configuration.";

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LogChoice {
    /// For people
    Human,
    /// One JSON object per line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon: poll, validate, store, publish, until SIGTERM or SIGINT; SIGHUP reloads the configuration
    Run,
    /// Read the whole configuration without touching hardware, report every fault and warning, print the poll plan
    Check {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// A whole site on this machine, nothing to install: simulated meters, broker, daemon, billing consumer
    #[cfg(feature = "demo")]
    Demo(demo::DemoArguments),
    /// Answer as the meters of the configuration, for commissioning without hardware
    Simulate(simulate::SimulateArguments),
    /// Read one meter now: raw words, value, unit, quality
    Read {
        /// Meter id
        meter: MeterId,
        /// Only this point
        #[arg(long)]
        point: Option<PointName>,
        /// Who asks, for the record
        #[arg(long, value_name = "NAME")]
        by: Option<String>,
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// List stored readings
    Readings(query::ReadingsArguments),
    /// Prove, copy and re-send what was recorded
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// Meter types
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    /// Buses, meters, publisher, store and clock at a glance: what is not well, then a summary
    Status(status::StatusArguments),
    /// Gateway id, ledger id and public key
    #[command(args_conflicts_with_subcommands = true)]
    Identity {
        /// The public key alone, as PEM
        #[arg(long)]
        public_key: bool,
        #[command(subcommand)]
        command: Option<identity::IdentityCommand>,
    },
    /// Print a completion script, e.g. `meter-gateway completions bash`
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// Another data directory than the configuration's would not be what it works with.
    fn takes_the_configuration_only(&self) -> bool {
        matches!(
            self,
            Command::Run
                | Command::Check { .. }
                | Command::Simulate(_)
                | Command::Profile(_)
                | Command::Completions { .. }
        )
    }
}

/// Parses and runs; the one place where an error chain is printed.
pub fn main() -> ExitCode {
    end_with_the_reader();
    let arguments = Arguments::parse();
    let format = match arguments.log_format {
        LogChoice::Human => LogFormat::Human,
        LogChoice::Json => LogFormat::Json,
    };
    #[cfg(feature = "demo")]
    let own_log = matches!(arguments.command, Command::Demo(_));
    #[cfg(not(feature = "demo"))]
    let own_log = false;
    if !own_log {
        start_logs(format, arguments.verbose);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            note!("error: {error}");
            return ExitCode::from(OWN_FAULT);
        }
    };
    let ended = runtime.block_on(dispatch(arguments, format));
    runtime.shutdown_timeout(LAST_THREADS);
    match ended {
        Ok(code) => code,
        Err(error) => {
            if is_closed_pipe(&error) {
                return ExitCode::SUCCESS;
            }
            if let Some(Faulty(faults)) = error.downcast_ref() {
                print_faults(faults);
                return ExitCode::from(CONFIGURATION);
            }
            note!("error: {error:#}");
            ExitCode::from(match () {
                () if error.is::<No>() || is_of_the_place(&error) => NO,
                () if error.is::<WrongUsage>() => WRONG_USAGE,
                () => OWN_FAULT,
            })
        }
    }
}

/// Whether a person can mend it where the program was started: a path that is not there or not ours, a full disk. Not a
/// fault of the program.
fn is_of_the_place(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind as Kind;
    let io = |error: &std::io::Error| {
        matches!(
            error.kind(),
            Kind::NotFound
                | Kind::PermissionDenied
                | Kind::AlreadyExists
                | Kind::NotADirectory
                | Kind::IsADirectory
                | Kind::DirectoryNotEmpty
                | Kind::ReadOnlyFilesystem
                | Kind::StorageFull
                | Kind::QuotaExceeded
                | Kind::FileTooLarge
                | Kind::InvalidFilename
                | Kind::InvalidInput
                | Kind::AddrInUse
                | Kind::AddrNotAvailable
        )
    };
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(io)
            || match cause.downcast_ref() {
                Some(LedgerError::Io { error, .. }) => io(error),
                Some(LedgerError::Busy { .. } | LedgerError::Full { .. }) => true,
                _ => false,
            }
    })
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(closed)
            || matches!(cause.downcast_ref(), Some(LedgerError::Io { error, .. }) if closed(error))
    })
}

/// `meter-gateway readings | head`: when whoever reads our output has seen enough, we end without a word. `println!`
/// knows no other way to tell it than a panic.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(0);
        }
        usual(panic);
    }));
}

#[cfg_attr(not(feature = "demo"), expect(unused_variables, reason = "the demo alone keeps a log of its own"))]
async fn dispatch(arguments: Arguments, format: LogFormat) -> anyhow::Result<ExitCode> {
    let config = arguments.config;
    if arguments.data_dir.is_some() && arguments.command.takes_the_configuration_only() {
        return wrong_usage(
            "--data-dir is for commands that ask a gateway; this one takes [gateway] data_dir\n  hint: METER_GATEWAY__GATEWAY__DATA_DIR overrides it",
        );
    }
    let target = || Target::of(&config, arguments.data_dir);
    match arguments.command {
        Command::Run => {
            let settings = settings(&config)?;
            crate::app::run(config, settings, crate::app::Options::default()).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { json } => Ok(check::run(&config, json)),
        #[cfg(feature = "demo")]
        Command::Demo(asked) => demo::run(asked, format, arguments.verbose).await,
        Command::Simulate(asked) => simulate::run(&settings(&config)?, asked).await,
        Command::Read { meter, point, by, json } => {
            read::run(&target()?, &meter, point.as_ref(), by, json).await
        }
        Command::Readings(asked) => query::readings(&target()?, asked).await,
        Command::Ledger(command) => ledger::run(target, command).await,
        Command::Profile(command) => profile::run(command, &config),
        Command::Status(asked) => status::run(&target()?, asked).await,
        Command::Identity { public_key, command } => identity::run(&target()?, public_key, command).await,
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Arguments::command(),
                "meter-gateway",
                &mut std::io::stdout(),
            );
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The configuration, or every fault of it.
fn settings(config: &std::path::Path) -> anyhow::Result<Settings> {
    Ok(crate::config::load(config, crate::config::environment()).map_err(Faulty)?)
}

/// The configuration is faulty: exit code 78.
#[derive(Debug, thiserror::Error)]
#[error("the configuration is faulty")]
struct Faulty(Vec<Fault>);

fn print_faults(faults: &[Fault]) {
    for fault in faults {
        note!("{fault}");
    }
    note!("{} fault(s) found", faults.len());
}

fn print_warnings(warnings: &[Fault]) {
    for warning in warnings {
        note!("warning: {warning}");
    }
}

/// An error that is an answer: exit code 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct No(String);

/// What was typed makes no sense: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUsage(String);

fn wrong_usage<T>(reason: impl std::fmt::Display) -> anyhow::Result<T> {
    Err(WrongUsage(reason.to_string()).into())
}

fn no<T>(reason: impl std::fmt::Display) -> anyhow::Result<T> {
    Err(No(reason.to_string()).into())
}

/// Whose the directory is, when it is not ours: what we would leave in it its owner could not open.
fn foreign_owner(dir: &std::path::Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(dir).ok()?.uid();
    (owner != rustix::process::geteuid().as_raw()).then_some(owner)
}

/// Who works at this command line, for what goes on record without a daemon.
fn own_user(by: Option<&str>) -> anyhow::Result<Asker> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let user = User::of(rustix::process::getuid().as_raw(), &passwd);
    Asker::new(Via::CommandLine(user), by).or_else(no)
}

/// A moment as people type it: RFC 3339, or a local date or date and time of the site.
fn moment(text: &str, zone: chrono_tz::Tz) -> anyhow::Result<Utc> {
    use chrono::{NaiveDate, NaiveDateTime, NaiveTime, TimeZone};
    if let Ok(at) = text.parse::<Utc>() {
        return Ok(at);
    }
    let local = ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().map(|day| day.and_time(NaiveTime::MIN)));
    let Some(local) = local else {
        return wrong_usage(format!(
            "{text:?} is not a time: expected 2026-11-01, 2026-11-01T08:00 (local to the site) or RFC 3339"
        ));
    };
    match zone.from_local_datetime(&local).earliest() {
        Some(at) => Ok(at.to_utc()),
        None => wrong_usage(format!("{text:?} does not exist in {zone}: the clocks go forward over it")),
    }
}

/// A length of time as people type it: `90s`, `5m`, `2h`; at most a week.
#[cfg(feature = "demo")]
fn duration(text: &str) -> Result<std::time::Duration, String> {
    const WEEK_SECS: u64 = 7 * 24 * 3600;
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.strip_prefix(digits) {
        Some("s" | "") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        _ => return Err("expected a number and s, m or h, e.g. 60s".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number and s, m or h, e.g. 60s".to_owned())?;
    match number.checked_mul(unit) {
        Some(secs @ 1..=WEEK_SECS) => Ok(std::time::Duration::from_secs(secs)),
        _ => Err("expected 1s to 168h".into()),
    }
}

/// Whether a `Seq` range was typed the right way round.
fn check_range(from: Seq, to: Seq) -> anyhow::Result<()> {
    if from == 0 || from > to {
        return wrong_usage(format!(
            "seq {from} to {to} is no range: records are counted from 1, the smaller first"
        ));
    }
    Ok(())
}
