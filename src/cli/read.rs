//! `read METER`: one read, now. Through the daemon's queue when one runs; else the bus is opened here.

use std::{process::ExitCode, sync::Arc};

use serde_json::json;

use super::{
    no,
    output::{Table, print_json},
    target::Target,
};
use crate::{
    app::meter_plan,
    bus::{self, Action, Class, Diagnosis, Heard, Judge, Judgement, Line, Now, RealPorts, Request, Schedule},
    clock::{Clock, SystemClock},
    config::Settings,
    ledger::{MemoryLedger, SharedLedger},
    model::{MeterId, Origin, PointName, Reading, rfc3339},
    pipeline::BusJudge,
    protocol::Outcome,
};

pub async fn run(
    target: &Target,
    meter: &MeterId,
    point: Option<&PointName>,
    by: Option<String>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut reading = match target.running().await? {
        Some(mut running) => {
            match running.daemon.post_json("/api/v1/read", &json!({"meter": meter, "by": by})).await {
                Ok(answer) => serde_json::from_value(answer)?,
                Err(error) => return no(error),
            }
        }
        None => read_here(target.settings()?, meter).await?,
    };
    if let Some(point) = point
        && reading.origin != Origin::Missing
    {
        if !reading.values.contains_key(point) {
            let offered: Vec<&str> = reading.values.keys().map(PointName::as_str).collect();
            return no(format!(
                "meter `{meter}` offers no point `{point}`\n  hint: it has {}",
                offered.join(", ")
            ));
        }
        reading.values.retain(|name, _| name == point);
    }
    if as_json {
        print_json(&serde_json::to_string_pretty(&reading)?);
    } else {
        show(&reading);
    }
    if reading.origin == Origin::Missing {
        let why = reading.flags.iter().cloned().collect::<Vec<_>>().join(", ");
        let detail: Vec<String> = reading.evidence.values().map(ToString::to_string).collect();
        return no(format!("meter `{meter}` was not read: {why} {}", detail.join("; ")));
    }
    Ok(ExitCode::SUCCESS)
}

async fn read_here(settings: &Settings, meter: &MeterId) -> anyhow::Result<Reading> {
    let found = settings.meters.iter().find(|known| known.id == *meter);
    let Some(meter) = found.cloned() else { return no(format!("no meter `{meter}` is configured")) };
    let Some(bus) = settings.buses.iter().find(|bus| bus.id == meter.bus) else { return no("no such bus") };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let mut line = Line::new(bus.link.clone(), Arc::new(RealPorts), Arc::clone(&clock));
    if let Err(error) = line.open().await {
        return no(format!("bus `{}`: {error}", bus.id));
    }
    let now = || Now { instant: tokio::time::Instant::now(), wall: clock.wall() };
    let mut schedule = Schedule::new(vec![meter_plan(&meter, bus, None)], now());
    let nothing: SharedLedger = Arc::new(MemoryLedger::new(""));
    let mut judge = BusJudge::new(vec![meter], &nothing, Arc::clone(&clock));
    let mut diagnosis = Diagnosis::default();
    let target = bus::Target::Meter(0);
    schedule.handle_request(Request { target, class: Class::Demand, deadline: None, keep: false });
    loop {
        if let Some(sweep) = schedule.poll_sweep() {
            match judge.judge(sweep) {
                Judgement::Done(mut reading) => {
                    let likely = diagnosis.likely(1, !bus.link.is_network());
                    if let Some(text) = likely.filter(|_| reading.origin == Origin::Missing) {
                        reading.evidence.insert("line".to_owned(), text.into());
                    }
                    return Ok(*reading);
                }
                Judgement::Again(surprise) => schedule.read_again(&surprise, now()),
            }
        }
        let Action::Exchange(exchange) = schedule.poll_action(now()) else { continue };
        let outcome = line.exchange(&exchange.query).await;
        diagnosis.note(&outcome, line.take_report().heard.unwrap_or(Heard::Nothing));
        if let Outcome::LineDown { detail } = &outcome {
            return no(format!("bus `{}`: {detail}", bus.id));
        }
        schedule.handle_outcome(&outcome, now());
    }
}

fn show(reading: &Reading) {
    say!(
        "{}  taken {}  verdict {}  {}",
        reading.meter,
        reading.taken_at.map_or_else(|| "-".into(), rfc3339),
        format!("{:?}", reading.verdict).to_lowercase(),
        reading.flags.iter().cloned().collect::<Vec<_>>().join(" ")
    );
    let mut table = Table::new(["point", "value", "unit", "raw", "multiplier", "note"]);
    for (name, value) in &reading.values {
        let note =
            value.reason.clone().or_else(|| value.set.as_ref().map(|set| set.join(" "))).unwrap_or_default();
        table.add_row([
            name.to_string(),
            value.value.map_or_else(|| "-".into(), |v| v.to_string()),
            value.unit.to_string(),
            value.raw.clone().unwrap_or_default(),
            value.multiplier.map(|m| m.to_string()).unwrap_or_default(),
            note,
        ]);
    }
    table.print();
}
