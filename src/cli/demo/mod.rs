//! `demo`: a whole site on this machine. Simulated meters on real pseudo-terminals and a TCP port, the daemon as it
//! is in production, an embedded broker, and a billing consumer that proves what it takes.

mod billing;
mod broker;
mod display;

use std::{
    io::IsTerminal,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};

use self::{billing::Book, broker::Link, display::Display};
use super::{client::Daemon, no};
use crate::{
    app,
    clock::{Clock, SystemClock},
    config::{self, Settings, poll_plan::predict},
    ledger::{self, FileLedger, Ledger},
    sim::{Demo, SimClock},
    telemetry::{LogFormat, start_logs_in},
};

/// Where the console is in the configuration's example; another port is taken when this one is in use.
const CONSOLE_PORT: u16 = 8420;
/// Seconds between reads that are tried, until the lines can keep them. They divide a minute or an hour evenly.
const INTERVALS: [u32; 8] = [5, 10, 15, 20, 30, 60, 300, 900];
/// Load that leaves room for the dead and the noisy meter, which no prediction knows, in millionths.
const ROOMY_PPM: u64 = 700_000;
/// How often the daemon is asked how it stands.
const REFRESH: Duration = Duration::from_millis(500);
/// How long the consumer may take for what was stored last.
const LAST_MESSAGES: Duration = Duration::from_secs(3);
/// What the demo calls itself below the topic prefix.
const BASE: &str = "metering/v1/demo/demo";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Needs no root, no hardware and no network. Ends with a summary; exit code 1 when a proof failed.
Look at it from a second terminal with the commands that it prints."
)]
pub struct DemoArguments {
    /// How long, e.g. 60s, 5m, 2h; without it until Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = super::duration)]
    time: Option<Duration>,
    /// Keep the data here, and go on with what is there; without it a new directory that is removed at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Simulated meters, on two serial lines and one TCP bus
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(6..=741), value_name = "N")]
    meters: u16,
    /// The same seed gives the same meters
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the demo; 1 when something was lost, came twice or did not prove itself.
pub async fn run(arguments: DemoArguments, format: LogFormat, verbose: u8) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let (dir, _removed_at_the_end) = data_dir(arguments.data_dir.as_deref())?;
    let log = dir.join("gateway.log");
    start_logs_in(&log, format, verbose)?;
    let demo = Demo::start(arguments.meters.into(), arguments.seed, &SimClock::default())?;
    let (port, link) = broker::start(&format!("{BASE}/#"))?;
    let (file, settings) = configure(&dir, port, &demo)?;
    introduce(&settings, &file, &log, port, &demo);

    let buses: Vec<_> = demo.site.endpoints().iter().map(|end| (end.bus.clone(), end.meters)).collect();
    let display = Display::new(&buses, settings.site.timezone);
    let book = Book::open(&dir.join("billing.jsonl"))?;
    let (stop, stopped) = watch::channel(false);
    let (stored, head) = watch::channel(None);
    let billing = tokio::spawn(Billing { link, book, display, begun, first: None, head }.work(dir.clone()));
    let daemon = tokio::spawn(app::run(file, settings.clone(), app::Options { stop: Some(stopped) }));

    let ended = end_of(daemon, arguments.time, begun, &stop).await;
    // The daemon has closed its ledger: what it stored is final.
    let last = stored_records(&dir)?;
    stored.send_replace(Some(last));
    let billing = billing.await?;
    ended?;
    Ok(summary(&billing?, &settings, last, begun.elapsed()))
}

/// The directory, and its guard when it is not to stay.
fn data_dir(wanted: Option<&Path>) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(dir) = wanted {
        app::make_data_dir(dir)?;
        return Ok((dir.canonicalize()?, None));
    }
    let dir = tempfile::Builder::new().prefix("meter-gateway-demo-").tempdir()?;
    Ok((dir.path().to_owned(), Some(dir)))
}

/// Writes the configuration that a person would write, and loads it: the shortest interval that the lines keep.
fn configure(dir: &Path, port: u16, demo: &Demo) -> anyhow::Result<(PathBuf, Settings)> {
    let file = dir.join("gateway.toml");
    let console = free_port(CONSOLE_PORT)?;
    for (nth, interval) in INTERVALS.into_iter().enumerate() {
        let text = format!(
            "# Made by `meter-gateway demo`.\n\
             [site]\nid = \"demo\"\nname = \"滨江花园 Riverside Gardens\"\ntimezone = \"Asia/Shanghai\"\n\n\
             [gateway]\nid = \"demo\"\ndata_dir = \".\"\n\n\
             [reading]\ninterval_secs = {interval}\n\n\
             [mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nconfirm = \"billing\"\n\n\
             [console]\nlisten = \"127.0.0.1:{console}\"\n\n{}",
            demo.toml
        );
        std::fs::write(&file, text).with_context(|| format!("{}: cannot be written", file.display()))?;
        let last = nth + 1 == INTERVALS.len();
        match config::load(&file, []) {
            Ok(settings) => {
                let roomy = predict(&settings).buses.iter().all(|bus| bus.load_ppm <= ROOMY_PPM);
                if roomy || last {
                    return Ok((file, settings));
                }
            }
            Err(faults) if last => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                return no(format!("the demo's configuration is faulty:\n{}", faults.join("\n")));
            }
            Err(_) => {} // too fast for the lines
        }
    }
    no("no interval is slow enough for so many meters")
}

fn free_port(wanted: u16) -> std::io::Result<u16> {
    let bind = |port| std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    Ok(bind(wanted).or_else(|_| bind(0))?.local_addr()?.port())
}

fn introduce(settings: &Settings, file: &Path, log: &Path, port: u16, demo: &Demo) {
    println!(
        "{}: {} meters, read every {} s",
        settings.site.name,
        settings.meters.len(),
        settings.reading.interval_secs
    );
    for end in demo.site.endpoints() {
        println!("  bus {:<6} {:>3} meters at {}", end.bus.as_str(), end.meters, end.actual);
    }
    println!("  broker     mqtt://127.0.0.1:{port}  topics {BASE}/#");
    if let Some(address) = settings.console.as_ref().map(|console| console.listen) {
        println!("  API        http://{address}/api/v1/status  /metrics  /healthz");
    }
    println!("  log        {}", log.display());
    println!("  look       meter-gateway --config {} status", file.display());
    println!("  {} is dead, {} is noisy: see what becomes of them", demo.dead, demo.noisy);
    if !std::io::stdout().is_terminal() {
        println!("  (on a terminal the state of the buses and cursors moves below)");
    }
    println!();
}

/// Waits until the time is up or the daemon ends by itself (Ctrl-C, SIGTERM, a fault), and for its orderly end.
async fn end_of(
    mut daemon: JoinHandle<anyhow::Result<()>>,
    time: Option<Duration>,
    begun: Instant,
    stop: &watch::Sender<bool>,
) -> anyhow::Result<()> {
    if let Some(time) = time {
        tokio::select! {
            ended = &mut daemon => return ended?,
            () = sleep_until((begun + time).into()) => {}
        }
        stop.send_replace(true);
    }
    daemon.await?
}

fn stored_records(dir: &Path) -> anyhow::Result<u64> {
    let now = SystemClock::new().wall();
    let (ledger, _) = FileLedger::open(dir, ledger::Options { now, ..ledger::Options::default() })?;
    let last = ledger.head().borrow().seq;
    ledger.close();
    Ok(last)
}

/// The consumer at work.
struct Billing {
    link: Link,
    book: Book,
    display: Display,
    begun: Instant,
    first: Option<Duration>,
    /// The last record of the ledger, once the daemon has ended.
    head: watch::Receiver<Option<u64>>,
}

impl Billing {
    /// Takes records until everything that was stored is taken; an error is a failed proof.
    async fn work(mut self, dir: PathBuf) -> anyhow::Result<Billing> {
        let mut refresh = interval(REFRESH);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut asked: Option<Daemon> = None;
        let done = loop {
            tokio::select! {
                message = self.link.next() => match message {
                    Some(message) => if let Err(error) = self.take(&message) { break Err(error) },
                    None => break Err(anyhow::anyhow!("the embedded broker is gone")),
                },
                _ = refresh.tick() => {
                    if asked.is_none() {
                        asked = Daemon::connect(&dir).await.ok().flatten();
                    }
                    if let Some(daemon) = &mut asked {
                        match daemon.get_json("/api/v1/status").await {
                            Ok(status) => self.display.status(&status),
                            Err(_) => asked = None, // it is going down
                        }
                    }
                }
                Ok(()) = self.head.changed() => break Ok(()),
            }
        };
        if done.is_ok() {
            let head = self.head.borrow().unwrap_or_default();
            let _ = timeout(LAST_MESSAGES, async {
                while self.book.last() < head {
                    match self.link.next().await {
                        Some(message) => self.take(&message)?,
                        None => break,
                    }
                }
                anyhow::Ok(())
            })
            .await; // what has not come is told in the summary
        }
        self.display.end();
        done.map(|()| self)
    }

    fn take(&mut self, message: &broker::Message) -> anyhow::Result<()> {
        if message.topic != format!("{BASE}/records") {
            return Ok(());
        }
        for record in self.book.ingest(&message.payload)? {
            if self.first.is_none()
                && billing::reading_of(&record).is_some_and(|reading| reading.taken_at.is_some())
            {
                self.first = Some(self.begun.elapsed());
            }
            self.display.record(&record);
        }
        if let Some(receipt) = self.book.receipt() {
            self.link.publish(&format!("{BASE}/receipt"), receipt)?;
        }
        Ok(())
    }
}

fn summary(billing: &Billing, settings: &Settings, stored: u64, ran: Duration) -> ExitCode {
    let (book, tally) = (&billing.book, &billing.book.tally);
    let meters = settings.meters.len();
    // When the demo ended, one line was in the last slot and another may still have been in the one before.
    let finished = tally.slots.len().saturating_sub(2);
    let complete = tally.slots.values().take(finished).filter(|slot| slot.len() == meters).count();
    println!("\nDemo of {} s", ran.as_secs());
    match billing.first {
        Some(first) => println!(
            "  first reading   {}.{} s after the start",
            first.as_secs(),
            first.subsec_millis() / 100
        ),
        None => println!("  first reading   none: the demo was too short"),
    }
    println!(
        "  readings        {}: {} good, {} suspect, {} bad, {} missing",
        tally.readings, tally.good, tally.suspect, tally.bad, tally.missing
    );
    for (flag, count) in &tally.flags {
        println!("    {flag:<18}{count:>6}");
    }
    println!(
        "  completeness    {complete} of {finished} finished slots have exactly one record for each of {meters} meters"
    );
    println!("  ledger          {stored} records, every hash recomputed by the consumer");
    println!("  billing         took {}, {} came again and were recognised", book.last(), book.duplicates);
    let proved = book.last() == stored && tally.twice == 0;
    if proved {
        println!("  nothing lost, nothing twice");
        return ExitCode::SUCCESS;
    }
    println!(
        "  FAILED: {} records did not reach billing, {} came for a moment that had one",
        stored - book.last(),
        tally.twice
    );
    ExitCode::from(super::NO)
}
