//! `readings`: what is stored.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use serde_json::Value;

use super::{
    moment, no,
    output::{self, Table},
    target::Target,
};

use crate::{
    ledger::{ReadingQuery, audit::scan},
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
pub async fn readings(target: &Target, asked: ReadingsArguments) -> anyhow::Result<ExitCode> {
    let running = target.running().await?;
    let zone = target.zone(running.as_ref());
    let moment = |text: String| moment(&text, zone);
    let mut query = ReadingQuery {
        meter: asked.meter,
        from: asked.from.map(moment).transpose()?,
        to: asked.to.map(moment).transpose()?,
        after: 0,
        limit: PAGE,
    };
    let mut out = Writer::new(asked.format, zone);
    match running {
        Some(mut running) => loop {
            let body = running.daemon.get(&page_of(&query)).await?;
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
        None => from_files(target.dir(), &query, &mut out)?,
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
        note!("warning: {fault}");
    }
    Ok(())
}

/// Milliseconds at or after the moment: what the records know.
fn ms(at: Utc) -> i64 {
    at.timestamp_millis() + i64::from(!at.timestamp_subsec_nanos().is_multiple_of(1_000_000))
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
    lines: Box<dyn Write>,
    csv: csv::Writer<Box<dyn Write>>,
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
            lines: output::records(io::stdout()),
            csv: csv::Writer::from_writer(output::records(io::stdout())),
            table: fresh_table(zone),
            rows: 0,
        }
    }

    fn line(&mut self, line: &[u8]) -> anyhow::Result<()> {
        if self.format == Format::Jsonl {
            self.lines.write_all(line)?;
            self.lines.write_all(b"\n")?;
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
            self.table.print();
            self.table = fresh_table(self.zone);
            self.rows = 0;
        }
    }

    fn end(&mut self) -> anyhow::Result<()> {
        self.flush_table();
        self.csv.flush()?;
        self.lines.flush()?;
        Ok(())
    }
}

fn fresh_table(zone: chrono_tz::Tz) -> Table {
    Table::new(["seq", &format!("slot ({zone})"), "meter", "register", "verdict", "flags"])
}
