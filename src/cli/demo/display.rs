//! What a person sees of the demo: a line for each event, and below it how the site stands right now.
//!
//! On a terminal the lower part moves; elsewhere it is left out and each event is a plain line.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use console::{Style, style};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::sync::watch;

use super::{super::text, billing::reading_of};
use crate::model::{BusId, Medium, Origin, Reading, Verdict, flag, in_one_line, printable_line};

/// Columns of a value with its unit.
const VALUE_WIDTH: usize = 18;
/// Columns of a line, and those before its flags.
const WIDTH: usize = 80;
const BEFORE_FLAGS: usize = 60;

pub struct Display {
    live: Option<Live>,
    clock_told: bool,
    zone: chrono_tz::Tz,
    stop: watch::Sender<bool>,
}

struct Live {
    all: MultiProgress,
    buses: Vec<(BusId, ProgressBar)>,
    cursors: ProgressBar,
}

impl Display {
    /// `stop` ends the demo when nobody reads it any more.
    pub fn new(buses: &[(BusId, usize)], zone: chrono_tz::Tz, stop: watch::Sender<bool>) -> Display {
        let live = (std::io::stdout().is_terminal() && std::io::stderr().is_terminal()).then(|| {
            let all = MultiProgress::new();
            let line = |template: &str| {
                let bar = all.add(ProgressBar::new_spinner());
                // The templates are literals: one that is wrong shows a plain line.
                bar.set_style(
                    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
                bar
            };
            let rule = line("{msg}");
            rule.set_message(style("─".repeat(78)).dim().to_string());
            let buses = buses
                .iter()
                .map(|(id, _)| (id.clone(), line(&format!("{{spinner:.green}} {:<7}{{msg}}", id.as_str()))))
                .collect();
            let cursors = line("{spinner:.green} ledger {msg}");
            cursors.enable_steady_tick(Duration::from_millis(120));
            Live { all, buses, cursors }
        });
        Display { live, clock_told: false, zone, stop }
    }

    /// One line on standard output, above the moving part.
    pub fn say(&self, text: &str) {
        let print = || writeln!(std::io::stdout(), "{text}");
        let printed = match &self.live {
            Some(live) => live.all.suspend(print),
            None => print(),
        };
        // `demo | head`: whoever read this has seen enough. The daemon ends in order, and nothing is left behind.
        if printed.is_err() {
            self.stop.send_replace(true);
        }
    }

    /// A record that billing took.
    pub fn record(&mut self, record: &Value) {
        let seq = record.get("seq").and_then(Value::as_u64).unwrap_or_default();
        let Some(reading) = reading_of(record) else {
            let what =
                record.get("change").or(record.get("type")).and_then(Value::as_str).unwrap_or("record");
            self.say(&format!("{}  {}", style(format!("#{seq:<5}")).dim(), printable_line(what)));
            return;
        };
        if !self.clock_told && reading.flags.contains(flag::CLOCK_UNTRUSTED) {
            self.clock_told = true;
            self.say("(no time server: the flag clock_untrusted is in each reading, and not shown)");
        }
        self.say(&self.reading(&reading, seq));
    }

    fn reading(&self, reading: &Reading, seq: u64) -> String {
        let at =
            reading.taken_at.unwrap_or(reading.scheduled_at).with_timezone(&self.zone).format("%H:%M:%S");
        let (sign, look) = match (reading.origin, reading.verdict) {
            (Origin::Missing, _) => ("✗ missing", Style::new().red()),
            (_, Verdict::Good) => ("✓ good", Style::new().green()),
            (_, Verdict::Suspect) => ("? suspect", Style::new().yellow()),
            (_, Verdict::Bad) => ("! bad", Style::new().red().bold()),
        };
        // Said once for all, when it is so: a line of its own for each reading would hide the others.
        let flags = reading.flags.iter().map(String::as_str).filter(|name| *name != flag::CLOCK_UNTRUSTED);
        let flags: Vec<&str> = flags.collect();
        format!(
            "{}  {at}  {:<7}  {} {:>VALUE_WIDTH$}  {} {}",
            style(format!("#{seq:<5}")).dim(),
            reading.meter.as_str(),
            medium(reading),
            register(reading),
            look.apply_to(format!("{sign:<9}")),
            style(text::wrap(&printable_line(&flags.join(" ")), BEFORE_FLAGS, BEFORE_FLAGS, WIDTH)).yellow()
        )
    }

    /// The daemon's own view: buses and cursors.
    pub fn status(&self, status: &Value) {
        let Some(live) = &self.live else { return };
        let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or_default();
        let empty = Vec::new();
        let buses = status.get("buses").and_then(Value::as_array).unwrap_or(&empty);
        for (id, bar) in &live.buses {
            let Some(bus) =
                buses.iter().find(|bus| bus.get("bus").and_then(Value::as_str) == Some(id.as_str()))
            else {
                continue;
            };
            let up = bus.get("up").and_then(Value::as_bool) == Some(true);
            let fault = bus.get("fault").and_then(Value::as_str).map_or("opening".into(), in_one_line);
            let state = if up { style("up".into()).green() } else { style(fault).red() };
            bar.set_message(format!(
                "{state}  answered {}  silent {}  garbled {}  refused {}",
                number(bus, "answered"),
                number(bus, "silent"),
                number(bus, "garbled"),
                number(bus, "refused")
            ));
            bar.tick();
        }
        let store = status.get("store").unwrap_or(&Value::Null);
        live.cursors.set_message(format!(
            "stored {}  broker has {}  billing confirmed {}",
            style(number(store, "last_seq")).bold(),
            number(store, "acknowledged_seq"),
            style(number(store, "confirmed_seq")).green()
        ));
    }

    /// Takes the moving part away.
    pub fn end(&mut self) {
        if let Some(live) = self.live.take() {
            let _ = live.all.clear(); // a terminal that is gone needs no clearing
        }
    }
}

fn medium(reading: &Reading) -> &'static str {
    match reading.medium {
        Medium::Electricity => "电",
        Medium::Water => "水",
        Medium::Heat => "热",
        Medium::Gas => "气",
    }
}

/// The register that is billed.
fn register(reading: &Reading) -> String {
    let name = match reading.medium {
        Medium::Electricity => "energy_import_total",
        Medium::Water | Medium::Gas => "volume_total",
        Medium::Heat => "heat_energy_total",
    };
    let point = reading.values.iter().find(|(point, _)| point.as_str() == name).map(|(_, point)| point);
    match point.and_then(|point| Some((point.value?, serde_json::to_value(point.unit).ok()?))) {
        Some((value, unit)) => format!("{value} {}", unit.as_str().unwrap_or_default()),
        None => "—".into(),
    }
}
