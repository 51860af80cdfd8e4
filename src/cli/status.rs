//! `status`: how things stand.

use std::process::ExitCode;

use serde_json::Value;

use super::{no, target::Target};

/// The daemon's state.
pub async fn run(target: &Target, json: bool) -> anyhow::Result<ExitCode> {
    let Some(running) = target.running().await? else {
        return no(format!(
            "no daemon runs on {}\n  hint: systemctl start meter-gateway, or meter-gateway run",
            target.dir().display()
        ));
    };
    let status = running.status;
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
