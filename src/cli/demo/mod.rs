//! `demo`: a whole site on this machine. Simulated meters on real pseudo-terminals and a TCP port, the daemon as it
//! is in production, an embedded broker, and a billing consumer that proves what it takes.

mod billing;
mod broker;
mod display;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};

use self::{billing::Book, broker::Link, display::Display};
use super::{client::Daemon, no, wrong_usage};
use crate::{
    app,
    clock::{Clock, SystemClock},
    config::{self, Settings, poll_plan::predict},
    ledger::{self, FileLedger, Ledger},
    model::{flag, printable_line},
    sim::{Demo, SimClock},
    telemetry::{LogFormat, start_logs_in},
};

/// Where the console is in the configuration's example; another port is taken when this one is in use.
const CONSOLE_PORT: u16 = 8420;
/// Seconds between reads that are tried, until the lines can keep them. They divide a minute or an hour evenly. Below 6 s
/// the answer to a question of the slot before might still come (`PENDING_FOR` of the bus), and the line would wait for it.
const INTERVALS: [u32; 8] = [6, 10, 15, 20, 30, 60, 300, 900];
/// What the dead or the noisy meter costs its line in each slot, which no prediction knows: two questions without an
/// answer, each with 300 ms for the answer and as much for one that is late.
const TROUBLE: Duration = Duration::from_millis(1400);
/// Share of the interval that a line may need with its trouble, in percent: a busy machine answers late.
const ROOMY_PERCENT: u32 = 80;
/// How often the daemon is asked how it stands.
const REFRESH: Duration = Duration::from_millis(500);
/// How long the consumer may take for what was stored last.
const LAST_MESSAGES: Duration = Duration::from_secs(3);
/// How the configuration begins that the demo writes: another one is not written over.
const MADE_BY: &str = "# Made by `meter-gateway demo`.";
/// What the demo calls itself below the topic prefix.
const BASE: &str = "metering/v1/demo/demo";

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Needs no root, no hardware and no network. Ends with a summary, also on Ctrl-C; exit code 1 when a proof failed.
Look at it from a second terminal with the commands that it prints."
)]
pub struct DemoArguments {
    /// How long, e.g. 60s, 5m, 2h; without it until Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = super::duration)]
    time: Option<Duration>,
    /// Keep the data here, and go on with what is there; without it a new directory that is removed at the end
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Keep log, ledger and configuration, and say where they are
    #[arg(long)]
    keep: bool,
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
    let ends = Ends::new()?; // before there is anything to be left behind
    let (dir, removed_at_the_end) = data_dir(&arguments)?;
    if Daemon::connect(&dir).await?.is_some() {
        return no(format!("{}: a gateway runs here already\n  hint: another --data-dir", dir.display()));
    }
    let log = dir.join("gateway.log");
    start_logs_in(&log, format, verbose)?;
    let demo = Demo::start(arguments.meters.into(), arguments.seed, &SimClock::default())?;
    let (port, link) = broker::start(&format!("{BASE}/#"))?;
    let (file, settings) = configure(&dir, port, &demo)?;

    let buses: Vec<_> = demo.site.endpoints().iter().map(|end| (end.bus.clone(), end.meters)).collect();
    let (stop, stopped) = watch::channel(false);
    let display = Display::new(&buses, settings.site.timezone, stop.clone());
    introduce(&display, &settings, &file, &log, port, &demo);
    let book = Book::open(&dir.join("billing.jsonl"))?;
    let (stored, head) = watch::channel(None);
    let billing = tokio::spawn(Billing { link, book, display, begun, first: None, head }.work(dir.clone()));
    let daemon = tokio::spawn(app::run(file, settings.clone(), app::Options { stop: Some(stopped) }));

    let ended = ends.wait(daemon, arguments.time.map(|time| begun + time), &stop).await;
    // The daemon has closed its ledger: what it stored is final.
    let last = stored_records(&dir)?;
    stored.send_replace(Some(last));
    let billing = billing.await?;
    ended?;
    let billing = billing?;
    let code = summary(&billing, &settings, &demo, last, begun.elapsed());
    if removed_at_the_end.is_none() {
        let kept = "gateway.log, gateway.toml, billing.jsonl and the ledger are kept";
        billing.display.say(&format!("  {kept} in\n  {}", shown(&dir)));
    }
    Ok(code)
}

/// The directory, and its guard when it is not to stay.
fn data_dir(arguments: &DemoArguments) -> anyhow::Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(dir) = &arguments.data_dir {
        app::make_data_dir(dir)?;
        let dir = dir.canonicalize()?;
        let file = dir.join("gateway.toml");
        if std::fs::read_to_string(&file).is_ok_and(|text| !text.starts_with(MADE_BY)) {
            return wrong_usage(format!(
                "{}: not made by a demo, and not written over\n  hint: an empty directory, or one of an earlier demo",
                file.display()
            ));
        }
        return Ok((dir, None));
    }
    let dir = tempfile::Builder::new().prefix("meter-gateway-demo-").tempdir()?;
    if arguments.keep {
        return Ok((dir.keep(), None));
    }
    Ok((dir.path().to_owned(), Some(dir)))
}

/// Writes the configuration that a person would write, and loads it: the shortest interval that the lines keep.
fn configure(dir: &Path, port: u16, demo: &Demo) -> anyhow::Result<(PathBuf, Settings)> {
    let file = dir.join("gateway.toml");
    let console = free_port(CONSOLE_PORT)?;
    for (nth, interval) in INTERVALS.into_iter().enumerate() {
        let text = format!(
            "{MADE_BY}\n\
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
                let room = Duration::from_secs(interval.into()) * ROOMY_PERCENT / 100;
                let roomy = predict(&settings).buses.iter().all(|bus| bus.cycle() + TROUBLE <= room);
                if roomy || last {
                    return Ok((file, settings));
                }
            }
            Err(faults) if last => {
                super::print_faults(&faults);
                return no("the demo's configuration is faulty");
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

fn shown(path: &Path) -> String {
    printable_line(&path.display().to_string()).into_owned()
}

fn introduce(display: &Display, settings: &Settings, file: &Path, log: &Path, port: u16, demo: &Demo) {
    display.say(&format!(
        "{}: {} meters, read every {} s",
        printable_line(&settings.site.name),
        settings.meters.len(),
        settings.reading.interval_secs
    ));
    for end in demo.site.endpoints() {
        display.say(&format!("  bus {:<6} {:>3} meters at {}", end.bus.as_str(), end.meters, end.actual));
    }
    display.say("  meters     E electricity 电, W water 水, H heat 热");
    display.say(&format!("  broker     mqtt://127.0.0.1:{port}  topics {BASE}/#"));
    if let Some(address) = settings.console.as_ref().map(|console| console.listen) {
        display.say(&format!("  API        http://{address}/api/v1/status  /metrics  /healthz"));
    }
    display.say(&format!("  log        {}", shown(log)));
    display.say(&format!("  {} is dead, {} is noisy: see what becomes of them", demo.dead, demo.noisy));
    let program = program();
    display.say("\nFrom a second terminal, while it runs:");
    display.say(&format!("  export METER_GATEWAY_CONFIG={}", quoted(&file.display().to_string())));
    for command in ["status", &format!("read {}", demo.noisy), "readings --meter E-0101", "ledger verify"] {
        display.say(&format!("  {program} {command}"));
    }
    display.say("");
}

/// How this program is called from anywhere: by its name where the shell finds it.
fn program() -> String {
    let Ok(own) = std::env::current_exe() else { return env!("CARGO_PKG_NAME").to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|dir| dir.join(env!("CARGO_PKG_NAME"))).find(|file| file.is_file());
    match found.and_then(|file| file.canonicalize().ok()) {
        Some(found) if found == own => env!("CARGO_PKG_NAME").to_owned(),
        _ => quoted(&own.display().to_string()),
    }
}

/// For a shell.
fn quoted(text: &str) -> String {
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c)) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// What ends a demo before its time: Ctrl-C, a terminal that is closed, SIGTERM.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    fn new() -> std::io::Result<Ends> {
        Ok(Ends {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until it is time, or until the daemon ends by itself, and for its orderly end.
    async fn wait(
        mut self,
        mut daemon: JoinHandle<anyhow::Result<()>>,
        at: Option<Instant>,
        stop: &watch::Sender<bool>,
    ) -> anyhow::Result<()> {
        let time_is_up = async {
            match at {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = &mut daemon => return ended?,
            () = time_is_up => {}
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
        stop.send_replace(true);
        daemon.await?
    }
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

fn summary(billing: &Billing, settings: &Settings, demo: &Demo, stored: u64, ran: Duration) -> ExitCode {
    let (book, tally) = (&billing.book, &billing.book.tally);
    let say = |text: String| billing.display.say(&text);
    let meters = settings.meters.len();
    // When the demo ended, one line was in the last slot and another may still have been in the one before.
    let finished = tally.slots.len().saturating_sub(2);
    let complete = tally.slots.values().take(finished).filter(|slot| slot.len() == meters).count();
    say(format!("\nDemo of {} s", ran.as_secs()));
    say(match billing.first {
        Some(first) => {
            format!("  first reading   {}.{} s after the start", first.as_secs(), first.subsec_millis() / 100)
        }
        None => "  first reading   none: the demo was too short".into(),
    });
    say(format!(
        "  readings        {}: {} good, {} suspect, {} bad, {} missing",
        tally.readings, tally.good, tally.suspect, tally.bad, tally.missing
    ));
    // Without a time server each reading has it; that is said where the first one comes.
    for (flag, count) in tally.flags.iter().filter(|(flag, _)| *flag != flag::CLOCK_UNTRUSTED) {
        say(format!("    {flag:<18}{count:>6}"));
    }
    let others = tally.not_good.iter().filter(|(meter, _)| **meter != demo.dead && **meter != demo.noisy);
    let others = match others.map(|(_, count)| count).sum::<u64>() {
        0 => "all readings good".to_owned(),
        some => format!("{some} readings not good"),
    };
    say(format!("  other meters    {}: {others}", meters - 2));
    say(format!(
        "  completeness    {complete} of {finished} slots have one record for each of {meters} meters"
    ));
    say(format!("  ledger          {stored} records, every hash recomputed by the consumer"));
    say(format!(
        "  billing         took {}, {} came again and were recognised",
        book.last(),
        book.duplicates
    ));
    let proved = book.last() == stored && tally.twice == 0;
    if proved {
        say("  nothing lost, nothing twice".into());
        return ExitCode::SUCCESS;
    }
    say(format!(
        "  FAILED: {} records did not reach billing, {} came for a moment that had one",
        stored - book.last(),
        tally.twice
    ));
    ExitCode::from(super::NO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_for_a_shell_can_be_pasted() {
        assert_eq!(quoted("/usr/bin/meter-gateway"), "/usr/bin/meter-gateway");
        assert_eq!(quoted("/home/a b/it's"), r"'/home/a b/it'\''s'");
    }
}
