//! `check`: every fault and warning of a configuration, and the poll plan of each bus.

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::output::{Table, print_json};
use crate::config::{
    self, Settings,
    poll_plan::{PollPlan, predict},
};

pub fn run(path: &Path, as_json: bool) -> ExitCode {
    let checked = config::check(path, config::environment());
    let warnings = checked.warnings;
    match checked.settings {
        Ok(settings) => {
            let plan = predict(&settings);
            if as_json {
                print_json(
                    &json!({"ok": true, "faults": [], "warnings": warnings, "plan": plan}).to_string(),
                );
            } else {
                show(path, &settings, &plan);
                super::print_warnings(&warnings);
            }
            ExitCode::SUCCESS
        }
        Err(faults) => {
            if as_json {
                print_json(&json!({"ok": false, "faults": faults, "warnings": warnings}).to_string());
            } else {
                super::print_warnings(&warnings);
                super::print_faults(&faults);
            }
            ExitCode::from(super::CONFIGURATION)
        }
    }
}

fn show(path: &Path, settings: &Settings, plan: &PollPlan) {
    say!(
        "{}: no fault; site {}, gateway {}, {} meters on {} buses",
        path.display(),
        settings.site.id,
        settings.gateway.id,
        settings.meters.len(),
        settings.buses.len()
    );
    for bus in &plan.buses {
        say!("");
        if bus.predicted {
            say!(
                "bus {}: {} meters, {}.{:03} s per cycle, {} % load",
                bus.bus,
                bus.meters.len(),
                bus.cycle().as_secs(),
                bus.cycle().subsec_millis(),
                bus.load_percent()
            );
        } else {
            let requests = bus.requests_per_1000_secs();
            say!(
                "bus {}: {} meters, {}.{:03} requests per second; what a network takes is measured, not predicted",
                bus.bus,
                bus.meters.len(),
                requests / 1000,
                requests % 1000
            );
        }
        let mut table = Table::new(["meter", "requests", "ms", "interval s"]);
        for meter in &bus.meters {
            let time = if bus.predicted { meter.sweep().as_millis().to_string() } else { "-".to_owned() };
            table.add_row([
                meter.meter.to_string(),
                meter.requests.to_string(),
                time,
                meter.interval_secs.to_string(),
            ]);
        }
        table.print();
    }
}
