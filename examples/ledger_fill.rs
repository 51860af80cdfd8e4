//! Fills a ledger quickly, then opens it again: rate, time to open, memory.
//!
//! `cargo run --example ledger_fill -- DIR [RECORDS]`. Batches of 100 readings of 1000 meters, one sync each.

use std::{
    error::Error,
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use meter_gateway::{
    ledger::{FileLedger, Ledger, Options, ReadingQuery, audit::audit},
    model::{ClockState, Draft, RecordType, Utc, rfc3339},
};
use serde_json::{Value, json};

const BATCH: u64 = 100;
const METERS: u64 = 1000;
const SLOT_SECS: u64 = 900;

fn draft(n: u64) -> Result<Draft, Box<dyn Error>> {
    let secs = i64::try_from(1_790_000_000 + n / METERS * SLOT_SECS)?;
    let at = Utc::from_timestamp(secs, 0).ok_or("time out of range")?;
    let meter = format!("E-{:04}", n % METERS);
    let value = |unit: &str| json!({"value": format!("{n}.00"), "unit": unit, "raw": format!("0x{n:08x}")});
    let record = json!({
        "meter": meter, "medium": "electricity", "scheduled_at": rfc3339(at), "taken_at": rfc3339(at),
        "origin": "measured", "verdict": "good", "flags": [],
        "values": {"energy_import_total": value("kWh"), "power_active_total": value("W"), "voltage_l1": value("V")},
    });
    let Value::Object(fields) = record else { return Err("not an object".into()) };
    Ok(Draft { kind: RecordType::Reading, recorded_at: at, clock: ClockState::Synced, fields, reading: None })
}

fn rss() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    line.unwrap_or("VmRSS: unknown").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn rate(count: u64, elapsed: Duration) -> u128 {
    u128::from(count) * 1_000_000 / elapsed.as_micros().max(1)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("usage: ledger_fill DIR [RECORDS]")?;
    let records: u64 = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let dir = Path::new(&dir);
    let mut out = std::io::stdout().lock();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;

    let (ledger, _) = FileLedger::open(dir, Options::default())?;
    let begun = Instant::now();
    for batch in 0..records.div_ceil(BATCH) {
        let drafts = (batch * BATCH..(batch + 1) * BATCH).map(draft).collect::<Result<Vec<_>, _>>()?;
        runtime.block_on(ledger.append(drafts))?;
    }
    let elapsed = begun.elapsed();
    writeln!(
        out,
        "append: {} records/s, {} bytes in all, {}",
        rate(records, elapsed),
        ledger.bytes(),
        rss()
    )?;
    ledger.close();
    drop(ledger);

    let begun = Instant::now();
    let (ledger, reports) = FileLedger::open(dir, Options::default())?;
    writeln!(out, "open: {} ms, {}, {} reports", begun.elapsed().as_millis(), rss(), reports.len())?;
    for report in reports {
        writeln!(out, "  {report}")?;
    }
    let meter = "E-0007".parse()?;
    let begun = Instant::now();
    let latest = ledger.latest(&meter, u64::MAX, 1)?.first().map(|line| line.seq);
    writeln!(out, "latest of one meter: seq {latest:?} in {} us", begun.elapsed().as_micros())?;
    let begun = Instant::now();
    let query = ReadingQuery { meter: Some(meter), limit: 10_000, ..ReadingQuery::default() };
    let found = ledger.readings(&query)?.len();
    writeln!(out, "readings of one meter: {found} in {} ms, {}", begun.elapsed().as_millis(), rss())?;
    ledger.close();

    let begun = Instant::now();
    let report = audit(dir, 1, None, &mut |_, _| ())?;
    let (rate, faults) = (rate(report.records, begun.elapsed()), report.faults.len());
    writeln!(out, "audit: {} records, {rate} records/s, {faults} faults, {}", report.records, rss())?;
    Ok(())
}
