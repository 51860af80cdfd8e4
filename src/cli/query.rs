//! `readings`, `status`: what is stored and how things stand.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::Value;

use super::{client::Daemon, foreign_owner, moment, no};
use comfy_table::Table;

use crate::{
    clock::{Clock, SystemClock},
    config::Settings,
    ledger::{FileLedger, ReadingQuery, audit::scan},
    model::{MeterId, Reading, Utc, rfc3339},
};

/// Readings asked for at once.
const PAGE: usize = 500;

#[derive(Debug, clap::Args)]
pub struct ReadingsArguments {
    /// Only this meter
    #[arg(long)]
    meter: Option<MeterId>,
    /// Scheduled at or after: 2026-11-01, 2026-11-01T08:00 (local to the site) or RFC 3339
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Scheduled before
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How they are written
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One row per point
    Csv,
    /// The records as they are stored
    Jsonl,
}

/// Pages through the readings, from the daemon, or from the files when none runs.
pub async fn readings(settings: &Settings, asked: ReadingsArguments) -> anyhow::Result<ExitCode> {
    let zone = settings.site.timezone;
    let mut query = ReadingQuery {
        meter: asked.meter,
        from: asked.from.map(|text| moment(&text, zone)).transpose()?,
        to: asked.to.map(|text| moment(&text, zone)).transpose()?,
        after: 0,
        limit: PAGE,
    };
    let mut out = Writer::new(asked.format, zone);
    let dir = &settings.gateway.data_dir;
    match Daemon::connect(dir).await? {
        Some(mut daemon) => loop {
            let body = daemon.get(&page_of(&query)).await?;
            let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let before = query.after;
            for line in lines {
                out.line(line)?;
                query.after = seq_of(line)?;
            }
            if query.after == before {
                break;
            }
        },
        None => from_files(dir, &query, &mut out)?,
    }
    out.end()?;
    Ok(ExitCode::SUCCESS)
}

/// Reads the files alone, each record verified: nothing is opened for writing, so that a query made by root leaves
/// nothing behind that the daemon's own user could not use.
fn from_files(dir: &Path, query: &ReadingQuery, out: &mut Writer) -> anyhow::Result<()> {
    if !dir.join("ledger").exists() {
        return no(format!("{}: nothing has been recorded here yet", dir.display()));
    }
    let (from, to) = (query.from.map(ms), query.to.map(ms));
    let mut failure = None;
    let report = scan(dir, &mut |record, line| {
        let Some(reading) = &record.facts.reading else { return Ok(()) };
        let wanted = query.meter.as_ref().is_none_or(|meter| meter.as_str() == reading.meter)
            && from.is_none_or(|from| reading.at_ms >= from)
            && to.is_none_or(|to| reading.at_ms < to);
        if wanted && let Err(error) = out.line(line) {
            failure = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        Ok(())
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let report = report?;
    for fault in &report.faults {
        eprintln!("warning: {fault}");
    }
    Ok(())
}

/// Milliseconds at or after the moment: what the records know.
fn ms(at: Utc) -> i64 {
    at.timestamp_millis() + i64::from(!at.timestamp_subsec_nanos().is_multiple_of(1_000_000))
}

pub enum Source {
    Daemon(Daemon),
    Store(std::sync::Arc<FileLedger>),
}

impl Source {
    /// The daemon's, or the store itself when no daemon runs.
    pub async fn open(settings: &Settings) -> anyhow::Result<Source> {
        let dir = &settings.gateway.data_dir;
        if let Some(daemon) = Daemon::connect(dir).await? {
            return Ok(Source::Daemon(daemon));
        }
        if !dir.join("ledger").exists() {
            return no(format!("{}: nothing has been recorded here yet", dir.display()));
        }
        if let Some(owner) = foreign_owner(dir) {
            return no(format!(
                "{}: no daemon runs, and the store belongs to user {owner}\n  hint: start the daemon, or run this as that user",
                dir.display()
            ));
        }
        let (ledger, incidents) = FileLedger::open(
            dir,
            crate::ledger::Options {
                now: SystemClock::new().wall(),
                may_replace: false,
                ..Default::default()
            },
        )?;
        for incident in incidents {
            eprintln!("warning: {incident}");
        }
        Ok(Source::Store(ledger))
    }
}

fn page_of(query: &ReadingQuery) -> String {
    let mut path = format!("/api/v1/readings?after={}&limit={}", query.after, query.limit);
    for (name, at) in [("from", query.from), ("to", query.to)] {
        if let Some(at) = at {
            path = format!("{path}&{name}={}", rfc3339(at));
        }
    }
    match &query.meter {
        Some(meter) => format!("{path}&meter={meter}"),
        None => path,
    }
}

fn seq_of(line: &[u8]) -> anyhow::Result<u64> {
    let value: Value = serde_json::from_slice(line)?;
    Ok(value.get("seq").and_then(Value::as_u64).unwrap_or_default())
}

struct Writer {
    format: Format,
    zone: chrono_tz::Tz,
    header: bool,
    csv: csv::Writer<std::io::Stdout>,
    table: Table,
    rows: usize,
}

/// Rows after which a table is printed and begun anew, so that millions of readings need no memory.
const TABLE_ROWS: usize = 500;

impl Writer {
    fn new(format: Format, zone: chrono_tz::Tz) -> Writer {
        Writer {
            format,
            zone,
            header: false,
            csv: csv::Writer::from_writer(std::io::stdout()),
            table: fresh_table(),
            rows: 0,
        }
    }

    fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        if self.format == Format::Jsonl {
            let mut out = std::io::stdout().lock();
            out.write_all(line)?;
            out.write_all(b"\n")?;
            return Ok(());
        }
        let seq =
            serde_json::from_slice::<Value>(line)?.get("seq").and_then(Value::as_u64).unwrap_or_default();
        let reading: Reading = serde_json::from_slice(line)?;
        let flags = reading.flags.iter().cloned().collect::<Vec<_>>().join(" ");
        let word = |value: Value| value.as_str().unwrap_or_default().to_owned();
        let (origin, verdict) =
            (word(serde_json::to_value(reading.origin)?), word(serde_json::to_value(reading.verdict)?));
        if self.format == Format::Csv {
            if !self.header {
                self.header = true;
                self.csv.write_record([
                    "seq",
                    "meter",
                    "scheduled_at",
                    "taken_at",
                    "origin",
                    "verdict",
                    "flags",
                    "point",
                    "value",
                    "unit",
                    "multiplier",
                    "raw",
                ])?;
            }
            let taken_at = reading.taken_at.map(rfc3339).unwrap_or_default();
            let head = [
                seq.to_string(),
                reading.meter.to_string(),
                rfc3339(reading.scheduled_at),
                taken_at,
                origin,
                verdict,
                flags,
            ];
            let rest = |cells: [String; 5]| head.iter().cloned().chain(cells).collect::<Vec<_>>();
            if reading.values.is_empty() {
                self.csv.write_record(rest(Default::default()))?;
            }
            for (name, value) in &reading.values {
                self.csv.write_record(rest([
                    name.to_string(),
                    value.value.map(|v| v.to_string()).unwrap_or_default(),
                    value.unit.to_string(),
                    value.multiplier.map(|m| m.to_string()).unwrap_or_default(),
                    value.raw.clone().unwrap_or_default(),
                ]))?;
            }
            return Ok(());
        }
        let main = reading
            .values
            .iter()
            .find(|(name, _)| name.as_str().contains("total"))
            .or(reading.values.first_key_value());
        let value = main.map_or(String::from("-"), |(_, value)| {
            value.value.map_or(String::from("-"), |v| format!("{v} {}", value.unit))
        });
        let local = reading.scheduled_at.with_timezone(&self.zone).format("%Y-%m-%d %H:%M:%S").to_string();
        self.table.add_row([seq.to_string(), local, reading.meter.to_string(), value, verdict, flags]);
        self.rows += 1;
        if self.rows >= TABLE_ROWS {
            self.flush_table();
        }
        Ok(())
    }

    fn flush_table(&mut self) {
        if self.rows > 0 {
            println!("{}", self.table);
            self.table = fresh_table();
            self.rows = 0;
        }
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.flush_table();
        self.csv.flush()?;
        Ok(())
    }
}

fn fresh_table() -> Table {
    super::table(["seq", "slot (site time)", "meter", "register", "verdict", "flags"])
}

/// The daemon's state.
pub async fn status(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let Some(mut daemon) = Daemon::connect(&settings.gateway.data_dir).await? else {
        return no(
            "no daemon runs on this data directory\n  hint: systemctl start meter-gateway, or meter-gateway run",
        );
    };
    let status = daemon.get_json("/api/v1/status").await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(ExitCode::SUCCESS);
    }
    let at = |pointer: &str| match status.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => "-".into(),
        Some(other) => other.to_string(),
    };
    println!("site       {} ({}), gateway {}", at("/site"), at("/site_name"), at("/gateway"));
    println!("clock      {} ({})", at("/now"), at("/clock"));
    println!(
        "store      {} records stored, {} acknowledged, {} confirmed",
        at("/store/last_seq"),
        at("/store/acknowledged_seq"),
        at("/store/confirmed_seq")
    );
    if status.get("mirror").is_some_and(Value::is_object) {
        println!(
            "mirror     {} up to seq {}, {} behind",
            at("/mirror/dir"),
            at("/mirror/stored_seq"),
            at("/mirror/lag")
        );
        if let Some(fault) = status.pointer("/mirror/fault").and_then(Value::as_str) {
            println!("           nothing is copied since {}: {fault}", at("/mirror/since"));
        }
    }
    println!(
        "publisher  connected: {}, in flight: {}, nobody listens: {}, last error: {}",
        at("/publisher/connected"),
        at("/publisher/in_flight"),
        at("/publisher/nobody_listens"),
        at("/publisher/last_error")
    );
    let rejected = status.pointer("/publisher/rejected").and_then(Value::as_array);
    for record in rejected.into_iter().flatten() {
        let said = |key: &str| record.get(key).map(ToString::to_string).unwrap_or_default();
        println!("rejected   seq {} by billing: {}", said("seq"), said("reason"));
    }
    if let Some(since) = status.pointer("/publisher/awaiting_receipt_since").and_then(Value::as_str) {
        println!("billing    has sent no receipt since {since}");
    }
    let mut table = super::table(["bus", "line", "meter", "last answer", "failures", "slowest ms", "note"]);
    for bus in status.get("buses").and_then(Value::as_array).into_iter().flatten() {
        let text = |value: &Value, key: &str| match value.get(key) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => "-".into(),
            Some(other) => other.to_string(),
        };
        let line = if bus.get("up") == Some(&Value::Bool(true)) { "up".into() } else { text(bus, "fault") };
        for meter in bus.get("meters").and_then(Value::as_array).into_iter().flatten() {
            let note = match (text(meter, "late_ms").as_str(), meter.get("backed_off")) {
                ("-", Some(Value::Bool(true))) => "silent, probed more seldom".into(),
                ("-", _) => String::new(),
                (late, _) => format!("answers after {late} ms: raise timeout_ms"),
            };
            table.add_row([
                text(bus, "bus"),
                line.clone(),
                text(meter, "meter"),
                text(meter, "last_answer"),
                text(meter, "failures"),
                text(meter, "slowest_ms"),
                note,
            ]);
        }
    }
    println!("{table}");
    for warning in status.get("warnings").and_then(Value::as_array).into_iter().flatten() {
        println!("warning    {}", warning.get("text").and_then(Value::as_str).unwrap_or_default());
    }
    Ok(ExitCode::SUCCESS)
}
