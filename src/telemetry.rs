//! What the daemon shows of itself: logs, one snapshot of its state, and metrics made from that snapshot.

mod log_line;

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use self::log_line::LogLine;
use crate::{
    bus::{BusHealth, MeterHealth},
    clock::Clock,
    config::Settings,
    identity::Identity,
    ledger::{Cursor, SharedLedger},
    model::{BusId, Utc, Warning, flag, rfc3339},
    publish::PublisherState,
};

/// How logs are written when the journal is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// For collectors.
    Json,
}

/// Starts logging to standard error, as the journal takes it when standard error is the journal.
pub fn start_logs(format: LogFormat, verbose: u8) {
    let registry = tracing_subscriber::registry().with(filter(verbose));
    // A second call keeps the first.
    let _ = if std::env::var("JOURNAL_STREAM").is_ok_and(|stream| is_stream(&stream, std::io::stderr())) {
        registry.with(layer(LogLine::Journal, std::io::stderr, false)).try_init()
    } else {
        let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
        match format {
            LogFormat::Human => registry.with(layer(LogLine::Human, std::io::stderr, colour)).try_init(),
            LogFormat::Json => registry.with(json_layer(std::io::stderr)).try_init(),
        }
    };
}

/// Starts logging into a file: for a program that needs its terminal for itself.
#[cfg(feature = "demo")]
pub fn start_logs_in(path: &std::path::Path, format: LogFormat, verbose: u8) -> std::io::Result<()> {
    let file = Arc::new(std::fs::OpenOptions::new().create(true).append(true).open(path)?);
    let registry = tracing_subscriber::registry().with(filter(verbose));
    let _ = match format {
        LogFormat::Human => registry.with(layer(LogLine::Human, file, false)).try_init(),
        LogFormat::Json => registry.with(json_layer(file)).try_init(),
    };
    Ok(())
}

/// A log that cannot be written (a full disk, a closed pipe) stops nothing: complaining about it on standard error
/// would panic there.
fn layer<S, W>(line: LogLine, writer: W, colour: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    fmt::layer().event_format(line).with_ansi(colour).with_writer(writer).log_internal_errors(false)
}

fn json_layer<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    fmt::layer().with_target(false).json().flatten_event(true).with_writer(writer).log_internal_errors(false)
}

fn filter(verbose: u8) -> EnvFilter {
    let default = match verbose {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    // Foreign crates say at debug and trace what only their authors read.
    EnvFilter::try_from_env("METER_GATEWAY_LOG")
        .unwrap_or_else(|_| EnvFilter::new(format!("warn,meter_gateway={default},sled=error")))
}

/// Whether `JOURNAL_STREAM` (device and inode) is this descriptor. The variable alone says nothing: a shell inside a
/// service inherits it, and whoever starts the daemon by hand there would see no logs.
fn is_stream(journal_stream: &str, fd: impl std::os::fd::AsFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| journal_stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Everything that can be asked of the running daemon.
pub struct Telemetry {
    /// Since when the daemon runs.
    pub started_at: Utc,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The ledger.
    pub ledger: SharedLedger,
    /// The key.
    pub identity: Arc<Identity>,
    /// The configuration in force.
    pub settings: Mutex<Arc<Settings>>,
    /// Health of each bus.
    pub buses: Mutex<Vec<(BusId, Arc<Mutex<BusHealth>>)>>,
    /// What the publisher says of itself.
    pub publisher: watch::Receiver<PublisherState>,
    /// What the daemon itself found not to be well.
    pub warnings: Mutex<Vec<Warning>>,
}

impl Telemetry {
    /// The configuration in force.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&lock(&self.settings))
    }

    /// Health of each bus, as it is now.
    pub fn bus_health(&self) -> Vec<(BusId, BusHealth)> {
        lock(&self.buses).iter().map(|(id, health)| (id.clone(), lock(health).clone())).collect()
    }

    /// Begins or changes (`Some`), or ends (`None`) the warning of this code.
    pub fn warn(&self, code: &'static str, text: Option<String>) {
        let mut warnings = lock(&self.warnings);
        warnings.retain(|warning| warning.code != code);
        warnings.extend(text.map(|text| Warning { code, text }));
    }

    /// Everything that is not well: the daemon's own, then the publisher's.
    pub fn warnings(&self) -> Vec<Warning> {
        let mut warnings = lock(&self.warnings).clone();
        warnings.extend_from_slice(&self.publisher.borrow().warnings);
        warnings
    }

    /// At a glance: buses, meters, publisher, store, clock.
    pub fn status(&self) -> Value {
        let settings = self.settings();
        let publisher = self.publisher.borrow().clone();
        // The cursors first: the head moves meanwhile, and they never stand beyond it.
        let acknowledged = self.ledger.cursor(Cursor::Acknowledged);
        let confirmed = self.ledger.cursor(Cursor::Confirmed);
        let head = self.ledger.head().borrow().clone();
        let condition = self.ledger.condition();
        let awaiting = publisher
            .awaiting_receipt_since
            .and_then(|since| chrono::TimeDelta::from_std(since.elapsed()).ok())
            .map(|waited| rfc3339(self.clock.wall() - waited));
        let mirror = condition.mirror.map(|mirror| {
            let since =
                mirror.fault.as_ref().and_then(|fault| chrono::TimeDelta::from_std(fault.lasting).ok());
            json!({
                "dir": mirror.dir.display().to_string(),
                "stored_seq": mirror.stored,
                "lag": mirror.lag,
                "fault": mirror.fault.map(|fault| fault.reason),
                "since": since.map(|lasting| rfc3339(self.clock.wall() - lasting)),
            })
        });
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "site": settings.site.id,
            "site_name": settings.site.name,
            "timezone": settings.site.timezone.name(),
            "gateway": settings.gateway.id,
            "ledger": self.ledger.id(),
            "public_key_id": self.identity.key_id(),
            "configuration": settings.hash,
            "started_at": rfc3339(self.started_at),
            "now": rfc3339(self.clock.wall()),
            "clock": self.clock.state(),
            "store": {
                "first_seq": self.ledger.first(),
                "last_seq": head.seq,
                "head": head.hash,
                "acknowledged_seq": acknowledged,
                "confirmed_seq": confirmed,
                "bytes": condition.bytes,
                "free_bytes": condition.free_bytes,
                "reserve_bytes": condition.reserve_bytes,
                "refusing": condition.refusing.map(|refusal| json!({
                    "reason": refusal.reason, "seconds": refusal.lasting.as_secs(),
                })),
                "incidents": condition.incidents,
            },
            "mirror": mirror,
            "warnings": self.warnings(),
            "publisher": {
                "connected": publisher.connected,
                "session": publisher.session,
                "nobody_listens": publisher.nobody_listens,
                "in_flight": publisher.in_flight,
                "rejected": publisher.rejected,
                "rejected_unlisted": publisher.rejected_unlisted,
                "ignored_receipts": publisher.ignored_receipts,
                "replays_waiting": publisher.replays.len(),
                "awaiting_receipt_since": awaiting,
                "last_error": publisher.last_error,
            },
            "buses": self.buses_json(),
        })
    }

    /// Per bus: line, exchanges, meters.
    pub fn buses_json(&self) -> Value {
        let buses = self.bus_health().into_iter().map(|(id, health)| {
            let meters: Vec<Value> = health.meters.iter().map(|meter| meter_json(meter, &health)).collect();
            let trace: Vec<Value> = health
                .trace
                .iter()
                .map(|frame| json!({"at": rfc3339(frame.at), "mark": frame.mark.to_string(), "bytes": frame.hex()}))
                .collect();
            json!({
                "bus": id,
                "up": health.up,
                "fault": health.fault,
                "looks_like": health.looks_like,
                "since": health.since.map(rfc3339),
                "answered": health.answered,
                "silent": health.silent,
                "garbled": health.garbled,
                "refused": health.refused,
                "busy_ms": millis(health.busy),
                "meters": meters,
                "trace": trace,
            })
        });
        Value::Array(buses.collect())
    }

    /// What the publisher adds to the retained status message.
    pub fn published_status(&self) -> Value {
        let buses: serde_json::Map<String, Value> = self
            .bus_health()
            .into_iter()
            .map(|(id, health)| {
                let silent = health.meters.iter().filter(|meter| meter.failures > 0).count();
                let state = json!({"up": health.up, "fault": health.fault, "meters": health.meters.len(), "silent_meters": silent});
                (id.to_string(), state)
            })
            .collect();
        let refusing = self.ledger.condition().refusing.is_some();
        let store = json!({"refusing": refusing, "first_seq": self.ledger.first()});
        json!({"clock": self.clock.state(), "buses": buses, "store": store})
    }
}

/// One meter, and why it has no value.
fn meter_json(meter: &MeterHealth, bus: &BusHealth) -> Value {
    let slot = meter.slot.as_ref();
    let because = |reason: &str, detail: Option<&str>, until: Option<Utc>| json!({"reason": reason, "detail": detail, "until": until.map(rfc3339)});
    let no_value = match slot.map(|slot| &slot.no_value) {
        Some(None) => Value::Null,
        Some(Some(none)) => because(&none.reason, none.detail.as_deref(), meter.held_until),
        None if bus.fault.is_some() => because(flag::BUS_DOWN, bus.fault.as_deref(), None),
        None => because(NOT_DUE, None, meter.next_slot),
    };
    json!({
        "meter": meter.id,
        "last_answer": meter.last_answer.map(rfc3339),
        "last_value": meter.last_value.map(rfc3339),
        "failures": meter.failures,
        "backed_off": meter.backed_off,
        "slowest_ms": millis(meter.slowest),
        "late_ms": meter.late.map(millis),
        "reply_ms": meter.patience.usual().map(millis),
        "timeout_ms": millis(meter.patience.timeout()),
        "timeout_limit_ms": millis(meter.patience.limit()),
        "near_timeout": meter.patience.is_near_limit(),
        "suspicion": meter.suspicion,
        "slot": slot.map(|slot| json!({
            "scheduled_at": rfc3339(slot.scheduled_at),
            "taken_at": slot.taken_at.map(rfc3339),
            "verdict": slot.verdict,
            "flags": slot.flags,
        })),
        "next_slot": meter.next_slot.map(rfc3339),
        "no_value": no_value,
    })
}

/// Why a meter has no value that has had no slot since the start.
const NOT_DUE: &str = "not_due";

/// A poisoned lock means that a task panicked while it wrote a number; the numbers are still the best there are.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn logs_go_to_the_journal_only_if_standard_error_does() {
        let file = tempfile::tempfile().unwrap();
        let about = file.metadata().unwrap();
        let (device, inode) = (about.dev(), about.ino());
        assert!(is_stream(&format!("{device}:{inode}"), &file));
        assert!(!is_stream(&format!("{device}:{}", inode + 1), &file));
        assert!(!is_stream(&format!("{}:{inode}", device + 1), &file));
        assert!(!is_stream("", &file));
    }
}
