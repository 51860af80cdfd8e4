//! Prometheus text, made from the telemetry at each scrape. Names are `meter_gateway_*` in base units.

use prometheus::{CounterVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::{ledger::Cursor, model::ClockState, telemetry::Telemetry};

/// The whole page.
pub fn text(telemetry: &Telemetry) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
        let gauge = IntGauge::new(format!("meter_gateway_{name}"), help)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    };
    let labelled = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
        let gauge = IntGaugeVec::new(Opts::new(format!("meter_gateway_{name}"), help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    };

    let ledger = &telemetry.ledger;
    gauge("ledger_last_seq", "Last stored record.")?.set(signed(ledger.head().borrow().seq));
    let cursors = labelled("ledger_cursor_seq", "Where a cursor stands.", &["cursor"])?;
    cursors.with_label_values(&["acknowledged"]).set(signed(ledger.cursor(Cursor::Acknowledged)));
    cursors.with_label_values(&["confirmed"]).set(signed(ledger.cursor(Cursor::Confirmed)));

    let condition = ledger.condition();
    gauge("ledger_refusing", "1 while nothing can be stored and readings wait.")?
        .set(condition.refusing.is_some().into());
    gauge("ledger_bytes", "Bytes of all segment files.")?.set(signed(condition.bytes));
    gauge("ledger_reserve_bytes", "Free bytes below which nothing is recorded.")?
        .set(signed(condition.reserve_bytes));
    if let Some(free) = condition.free_bytes {
        gauge("ledger_free_bytes", "Bytes that may still be written where the ledger is.")?.set(signed(free));
    }
    gauge("ledger_incidents", "What went wrong in the ledger since the start.")?
        .set(i64::try_from(condition.incidents.len()).unwrap_or(i64::MAX));

    if let Some(mirror) = condition.mirror {
        gauge("mirror_lag_records", "Records that the second copy of the ledger does not have yet.")?
            .set(signed(mirror.lag));
        gauge("mirror_away", "1 while nothing can be copied to the second copy of the ledger.")?
            .set(mirror.fault.is_some().into());
    }

    let publisher = telemetry.publisher.borrow().clone();
    gauge("broker_connected", "1 while the broker is connected.")?.set(publisher.connected.into());
    gauge("broker_nobody_listens", "1 while the broker says that nobody subscribes to the records.")?
        .set(publisher.nobody_listens.into());
    gauge("broker_in_flight_messages", "Messages sent and not yet acknowledged.")?
        .set(i64::try_from(publisher.in_flight).unwrap_or(i64::MAX));
    gauge("rejected_records", "Records that billing has refused and that were not sent again since.")?
        .set(i64::try_from(publisher.rejected.len()).unwrap_or(i64::MAX));
    gauge("rejected_unlisted", "Rejections since the start that were too many to be listed.")?
        .set(signed(publisher.rejected_unlisted));
    gauge("ignored_receipts", "Receipts since the start that were malformed or not of this ledger.")?
        .set(signed(publisher.ignored_receipts));
    gauge("awaiting_receipt", "1 while billing has confirmed nothing for longer than an hour.")?
        .set(publisher.awaiting_receipt_since.is_some().into());
    gauge("clock_trusted", "1 while the wall clock is synchronised or holding over.")?
        .set((telemetry.clock.state() != ClockState::Unsynced).into());

    let up = labelled("bus_up", "1 while the line is open.", &["bus"])?;
    let exchanges = IntCounterVec::new(
        Opts::new("meter_gateway_bus_exchanges_total", "Exchanges by outcome."),
        &["bus", "outcome"],
    )?;
    registry.register(Box::new(exchanges.clone()))?;
    let busy = CounterVec::new(
        Opts::new("meter_gateway_bus_busy_seconds_total", "Time spent in exchanges."),
        &["bus"],
    )?;
    registry.register(Box::new(busy.clone()))?;
    let failures =
        labelled("meter_failed_sweeps", "Sweeps without an answer since the last one.", &["bus", "meter"])?;
    let answered =
        labelled("meter_last_answer_timestamp_seconds", "When the meter last answered.", &["bus", "meter"])?;
    for (id, health) in telemetry.bus_health() {
        let bus = id.as_str();
        up.with_label_values(&[bus]).set(health.up.into());
        for (outcome, count) in [
            ("answered", health.answered),
            ("silent", health.silent),
            ("garbled", health.garbled),
            ("refused", health.refused),
        ] {
            exchanges.with_label_values(&[bus, outcome]).inc_by(count);
        }
        busy.with_label_values(&[bus]).inc_by(health.busy.as_secs_f64());
        for meter in &health.meters {
            let labels = [bus, meter.id.as_str()];
            failures.with_label_values(&labels).set(signed(meter.failures));
            if let Some(at) = meter.last_answer {
                answered.with_label_values(&labels).set(at.timestamp());
            }
        }
    }
    TextEncoder::new().encode_to_string(&registry.gather())
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
