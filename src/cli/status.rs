//! `status`: how things stand. What is not well first, the summary last, where the eye is when a command has ended.
//!
//! Renders what the running gateway says of itself (`/api/v1/status`) and judges nothing.

use std::{collections::BTreeMap, fmt::Write as _, io::Write as _, process::ExitCode, time::Duration};

use chrono::TimeDelta;
use chrono_tz::Tz;
use console::{Style, style};
use serde_json::Value;

use super::{
    no,
    output::{print_json, print_styled, printable_json},
    target::{Running, Target},
    text::{pad, size, width, wrap},
};
use crate::model::{Utc, flag, in_one_line, printable_line};

/// Seconds between two looks of `--watch`.
const WATCH_SECS: u64 = 2;
/// Columns of the words that begin a line of the summary.
const LABEL: usize = 11;
/// Fewest columns in which a reason is legible beside the columns before it; else it has a line of its own.
const REASON_WIDTH: usize = 26;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A meter is shown when its last slot has no value or a doubtful one, and why. Times are the site's. Colours are for \
terminals and off with NO_COLOR."
)]
pub struct StatusArguments {
    /// Every meter, also those that are well
    #[arg(long)]
    all: bool,
    /// Again every two seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// For programs: /api/v1/status as it is; with --watch one line each time
    #[arg(long, conflicts_with = "all")]
    json: bool,
}

pub async fn run(target: &Target, asked: StatusArguments) -> anyhow::Result<ExitCode> {
    if asked.watch {
        return watch(target, &asked).await;
    }
    let Some(running) = target.running().await? else { return nobody(target) };
    if asked.json {
        print_json(&serde_json::to_string_pretty(&running.status)?);
    } else {
        print_styled(&look(target, &running, &asked, size().0, None));
    }
    Ok(ExitCode::SUCCESS)
}

fn nobody<T>(target: &Target) -> anyhow::Result<T> {
    no(format!(
        "no daemon runs on {}\n  hint: systemctl start meter-gateway, or meter-gateway run",
        target.dir().display()
    ))
}

/// Looks again and again; on a terminal in place, and never longer than it.
async fn watch(target: &Target, asked: &StatusArguments) -> anyhow::Result<ExitCode> {
    let mut every = tokio::time::interval(Duration::from_secs(WATCH_SECS));
    let mut running = target.running().await?;
    if running.is_none() {
        return nobody(target);
    }
    loop {
        every.tick().await;
        if let Some(known) = &mut running {
            match known.daemon.get_json("/api/v1/status").await {
                Ok(status) => known.status = status,
                Err(_) => running = None, // it ended or starts again
            }
        } else {
            running = target.running().await?;
        }
        let mut out = std::io::stdout().lock();
        let (columns, rows) = size();
        if asked.json {
            if let Some(running) = &running {
                writeln!(out, "{}", printable_json(&running.status.to_string()))?;
            }
            continue;
        }
        let text = if let Some(running) = &running {
            look(target, running, asked, columns, rows)
        } else {
            let dir = target.dir().display().to_string();
            format!("no daemon runs on {}; it is looked for again\n", printable_line(&dir))
        };
        match rows {
            Some(_) => write!(out, "\u{1b}[H\u{1b}[J{text}")?,
            None => writeln!(out, "{text}")?,
        }
        out.flush()?;
    }
}

fn look(
    target: &Target,
    running: &Running,
    asked: &StatusArguments,
    columns: usize,
    rows: Option<usize>,
) -> String {
    let view = View { zone: target.zone(Some(running)), columns, all: asked.all };
    let notes = if asked.watch && rows.is_some() { target.notes(Some(&running.status)) } else { Vec::new() };
    view.text(&running.status, &notes, rows)
}

/// How the status is shown.
struct View {
    zone: Tz,
    columns: usize,
    all: bool,
}

/// A meter and how it stands.
struct Row {
    bus: String,
    meter: String,
    last_value: String,
    next: String,
    state: State,
    why: String,
}

impl Row {
    fn cells(&self) -> [&str; 4] {
        [&self.meter, &self.bus, &self.last_value, &self.next]
    }

    fn look(&self) -> Style {
        match self.state {
            State::Well | State::NotDue => Style::new(),
            State::Doubtful => Style::new().yellow(),
            State::NoValue | State::BusDown => Style::new().red(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Well,
    NotDue,
    Doubtful,
    NoValue,
    /// Its whole bus is down, which is said once.
    BusDown,
}

impl View {
    /// `rows`: lines that there are; what does not fit is counted.
    fn text(&self, status: &Value, notes: &[String], rows: Option<usize>) -> String {
        let now = time(status, "/now").unwrap_or_default();
        let meters: Vec<Row> = list(status, "/buses").flat_map(|bus| self.meters(bus, now)).collect();
        let shown: Vec<&Row> = meters
            .iter()
            .filter(|row| self.all || matches!(row.state, State::Doubtful | State::NoValue))
            .collect();
        let table = self.table(&shown);
        let mut below = String::new();
        for bus in list(status, "/buses").filter(|bus| bus.get("up") != Some(&Value::Bool(true))) {
            self.bus_down(&mut below, bus, &meters, now);
        }
        for bus in list(status, "/buses") {
            if let Some(text) = bus.get("looks_like").and_then(Value::as_str) {
                let text = format!("{}: {}", said(bus, "/bus"), in_one_line(text));
                self.line(&mut below, "bus", &text, &Style::new().red());
            }
        }
        for note in notes {
            self.line(&mut below, "file", &in_one_line(note), &Style::new().yellow());
        }
        for warning in list(status, "/warnings") {
            self.line(&mut below, "warning", &said(warning, "/text"), &Style::new().yellow());
        }
        self.summary(&mut below, status, &meters, now);

        let mut out = String::new();
        let room = rows.map_or(usize::MAX, |rows| rows.saturating_sub(below.lines().count() + 2));
        let lines = table.iter().map(|row| row.lines().count()).scan(0, |sum, lines| {
            *sum += lines;
            Some(*sum)
        });
        let fitting = lines.take_while(|lines| *lines <= room).count();
        for row in table.iter().take(fitting) {
            let _ = writeln!(out, "{row}"); // a String takes everything
        }
        if fitting < table.len() {
            let _ = writeln!(out, "… and {} more", table.len() - fitting);
        } else if !table.is_empty() {
            out.push('\n');
        }
        out + &below
    }

    /// A header and an entry for each row; an entry may have several lines.
    fn table(&self, rows: &[&Row]) -> Vec<String> {
        const HEADER: [&str; 4] = ["meter", "bus", "last value", "next slot"];
        let mut widths = HEADER.map(width);
        for row in rows {
            for (cell, widest) in row.cells().iter().zip(&mut widths) {
                *widest = width(cell).max(*widest);
            }
        }
        let used: usize = widths.iter().map(|widest| widest + 2).sum();
        if rows.is_empty() || used + REASON_WIDTH > self.columns {
            return rows.iter().map(|row| self.paragraph(row)).collect();
        }
        let join = |cells: [&str; 4]| -> String {
            cells.iter().zip(widths).map(|(cell, widest)| pad(cell, widest + 2)).collect()
        };
        let header = style(format!("{}why", join(HEADER))).dim().to_string();
        let rows = rows.iter().map(|row| {
            let why = row.look().apply_to(wrap(&row.why, used, used, self.columns));
            format!("{}{why}", join(row.cells())).trim_end().to_owned()
        });
        std::iter::once(header).chain(rows).collect()
    }

    /// A row whose columns are too wide for this terminal.
    fn paragraph(&self, row: &Row) -> String {
        let [meter, bus, last_value, next] = row.cells();
        let text = format!("{meter} on {bus}: last value {last_value}, next slot {next}");
        let why = row.look().apply_to(wrap(&row.why, 4, 4, self.columns));
        format!("{}\n    {why}", wrap(&text, 0, 4, self.columns)).trim_end().to_owned()
    }

    fn meters<'a>(&'a self, bus: &'a Value, now: Utc) -> impl Iterator<Item = Row> + 'a {
        list(bus, "/meters").map(move |meter| {
            let (state, why) = self.why(meter, now);
            let at = |pointer| time(meter, pointer).map_or_else(|| "-".into(), |at| self.clock(at, now));
            let due = time(meter, "/next_slot").is_some_and(|next| next <= now);
            Row {
                bus: said(bus, "/bus"),
                meter: said(meter, "/meter"),
                last_value: at("/last_value"),
                next: if due { "now".into() } else { at("/next_slot") },
                state,
                why,
            }
        })
    }

    /// How a meter stands, and in words why it has no value or a doubtful one.
    fn why(&self, meter: &Value, now: Utc) -> (State, String) {
        let late = meter.get("late_ms").and_then(Value::as_u64);
        let late =
            late.map(|ms| format!("; an answer came after {ms} ms: raise timeout_ms")).unwrap_or_default();
        let slowest = meter.get("slowest_ms").and_then(Value::as_u64).filter(|ms| *ms > 0);
        let Some(none) = meter.get("no_value").filter(|none| none.is_object()) else {
            if meter.get("slot").is_none() {
                return (State::NotDue, "not said by this version of the gateway".into());
            }
            let verdict = said(meter, "/slot/verdict");
            if let Some(text) = meter.get("suspicion").and_then(Value::as_str) {
                return (State::Doubtful, text.to_owned());
            }
            if verdict == "good" {
                return (
                    State::Well,
                    slowest.map(|ms| format!("good, answers within {ms} ms")).unwrap_or_default(),
                );
            }
            let flags = list(meter, "/slot/flags").filter_map(Value::as_str);
            let flags: Vec<&str> = flags.filter(|name| *name != flag::CLOCK_UNTRUSTED).collect();
            return (State::Doubtful, format!("{verdict}: {}{late}", flags.join(", ")));
        };
        let detail = none.get("detail").and_then(Value::as_str).map(in_one_line);
        let with = |what: &str| detail.as_ref().map_or(what.to_owned(), |detail| format!("{what}: {detail}"));
        let failures = match meter.get("failures").and_then(Value::as_u64) {
            Some(times) if times > 1 => format!("silent, {times} times in a row"),
            _ => "silent".into(),
        };
        let reason = said(none, "/reason");
        let suspicion = meter.get("suspicion").and_then(Value::as_str);
        let (state, why) = match reason.as_str() {
            flag::GARBLED if suspicion.is_some() => {
                (State::NoValue, format!("{}; {}", with("garbled"), suspicion.unwrap_or_default()))
            }
            "not_due" => return (State::NotDue, "not due yet since the start".into()),
            flag::BUS_DOWN => (State::BusDown, with("the bus is down")),
            flag::NO_ANSWER => (State::NoValue, failures + &late),
            flag::BACKED_OFF => (State::NoValue, "not asked: it is probed more seldom".into()),
            flag::BUS_OVERRUN => (State::NoValue, "the bus had no time left for it".into()),
            other => (State::NoValue, with(&other.replace('_', " "))),
        };
        match time(none, "/until").filter(|until| *until > now) {
            Some(until) => (state, format!("{why}; asked again at {}", self.clock(until, now))),
            None => (state, why),
        }
    }

    fn bus_down(&self, out: &mut String, bus: &Value, meters: &[Row], now: Utc) {
        let id = said(bus, "/bus");
        let on_it = meters.iter().filter(|row| row.bus == id).count();
        let since =
            time(bus, "/since").map(|at| format!(" since {}", self.clock(at, now))).unwrap_or_default();
        let fault = bus.get("fault").and_then(Value::as_str).map(in_one_line);
        let what = match fault {
            Some(fault) => format!("{id} is down{since} ({}): {fault}", count(on_it, "meter")),
            None => format!("{id} is being opened"),
        };
        self.line(out, "bus", &what, &Style::new().red());
    }

    fn summary(&self, out: &mut String, status: &Value, meters: &[Row], now: Utc) {
        let at = |pointer: &str| said(status, pointer);
        let mut line = |label: &str, text: &str, well: bool| {
            self.line(out, label, text, &if well { Style::new() } else { Style::new().red() });
        };
        let up = time(status, "/started_at")
            .map(|at| format!(", up since {}", self.clock(at, now)))
            .unwrap_or_default();
        let name = format!(
            "{} ({}), gateway {}, version {}{up}",
            at("/site_name"),
            at("/site"),
            at("/gateway"),
            at("/version")
        );
        line("site", &name, true);
        let clock = match at("/clock").as_str() {
            "synced" => "synchronised".to_owned(),
            "holdover" => "holdover: synchronised earlier".to_owned(),
            _ => "not synchronised: nothing says that it is right".to_owned(),
        };
        let local = now.with_timezone(&self.zone).format("%Y-%m-%d %H:%M:%S");
        line("time", &format!("{local} {}, {clock}", self.zone), at("/clock") != "unsynced");
        if let Some(refusing) = status.pointer("/store/refusing").filter(|refusing| refusing.is_object()) {
            let text = format!("REFUSED for {} s: {}", said(refusing, "/seconds"), said(refusing, "/reason"));
            line("records", &text, false);
        }
        let stored = format!(
            "{} stored, {} acknowledged by the broker, {} confirmed",
            at("/store/last_seq"),
            at("/store/acknowledged_seq"),
            at("/store/confirmed_seq")
        );
        line("records", &stored, true);
        if status.get("mirror").is_some_and(Value::is_object) {
            let text = format!(
                "{} up to seq {}, {} behind",
                at("/mirror/dir"),
                at("/mirror/stored_seq"),
                at("/mirror/lag")
            );
            line("mirror", &text, true);
            if status.pointer("/mirror/fault").is_some_and(Value::is_string) {
                let since =
                    time(status, "/mirror/since").map_or_else(|| "-".into(), |at| self.clock(at, now));
                line("", &format!("nothing is copied since {since}: {}", at("/mirror/fault")), false);
            }
        }
        self.publisher(status, now, &mut line);
        let (text, well) = slots(status, self, now);
        line("next slot", &text, well);
        let (text, well) = totals(status, meters);
        line("meters", &text, well);
    }

    fn publisher(&self, status: &Value, now: Utc, line: &mut impl FnMut(&str, &str, bool)) {
        let publisher = status.get("publisher").unwrap_or(&Value::Null);
        let error = publisher.get("last_error").and_then(Value::as_str).map(in_one_line);
        if publisher.get("connected") == Some(&Value::Bool(true)) {
            let in_flight = publisher.get("in_flight").and_then(Value::as_u64).unwrap_or_default();
            let nobody = publisher.get("nobody_listens") == Some(&Value::Bool(true));
            let nobody = if nobody { "; nobody subscribes to the records" } else { "" };
            line(
                "broker",
                &format!("connected, {} under way{nobody}", count(in_flight, "message")),
                nobody.is_empty(),
            );
        } else {
            line("broker", &format!("away: {}", error.unwrap_or_else(|| "not connected yet".into())), false);
        }
        let rejected: Vec<&Value> = list(publisher, "/rejected").collect();
        for record in rejected.iter().take(3) {
            let text = format!("seq {} by billing: {}", said(record, "/seq"), said(record, "/reason"));
            line("rejected", &text, false);
        }
        let unlisted = publisher.get("rejected_unlisted").and_then(Value::as_u64).unwrap_or_default();
        let more = (rejected.len().saturating_sub(3) as u64) + unlisted;
        if more > 0 {
            line("rejected", &format!("{more} more: status --json"), false);
        }
        if let Some(since) = time(publisher, "/awaiting_receipt_since") {
            line("billing", &format!("has sent no receipt since {}", self.clock(since, now)), false);
        }
    }

    fn line(&self, out: &mut String, label: &str, text: &str, look: &Style) {
        let wrapped = wrap(text, LABEL, LABEL, self.columns);
        let _ = writeln!(out, "{}{}", pad(label, LABEL), look.apply_to(wrapped)); // a String takes everything
    }

    /// A moment in the site's time: today without its date.
    fn clock(&self, at: Utc, now: Utc) -> String {
        let (at, now) = (at.with_timezone(&self.zone), now.with_timezone(&self.zone));
        let format = match (at.date_naive() == now.date_naive(), (at - now).abs() < TimeDelta::days(180)) {
            (true, _) => "%H:%M:%S",
            (false, true) => "%m-%d %H:%M",
            (false, false) => "%Y-%m-%d",
        };
        at.format(format).to_string()
    }
}

/// The slot that comes next, and what is still to come of the one under way.
fn slots(status: &Value, view: &View, now: Utc) -> (String, bool) {
    let meters = || list(status, "/buses").flat_map(|bus| list(bus, "/meters"));
    let due = meters().filter_map(|meter| time(meter, "/next_slot")).filter(|next| *next <= now).count();
    let under_way = if due > 0 { format!("; {} being read now", count(due, "meter")) } else { String::new() };
    match meters().filter_map(|meter| time(meter, "/next_slot")).filter(|next| *next > now).min() {
        Some(next) => {
            let text =
                format!("{}, in {}{under_way}", view.clock(next, now), length((next - now).num_seconds()));
            (text, true)
        }
        None if due > 0 => (format!("{} being read now", count(due, "meter")), true),
        None => ("none: meters are read without pause".into(), true),
    }
}

/// How many meters stand how.
fn totals(status: &Value, meters: &[Row]) -> (String, bool) {
    let mut by_state: BTreeMap<State, usize> = BTreeMap::new();
    for row in meters {
        *by_state.entry(row.state).or_default() += 1;
    }
    let words = [
        (State::Well, "well"),
        (State::NoValue, "without a value"),
        (State::BusDown, "on a bus that is down"),
        (State::Doubtful, "doubtful"),
        (State::NotDue, "not due yet"),
    ];
    let parts: Vec<String> = words
        .into_iter()
        .filter_map(|(state, words)| Some(format!("{} {words}", by_state.get(&state)?)))
        .collect();
    let buses: Vec<&Value> = list(status, "/buses").collect();
    let down = buses.iter().filter(|bus| bus.get("fault").is_some_and(Value::is_string)).count();
    let down_text = if down > 0 { format!(", {down} down") } else { String::new() };
    let text = format!(
        "{} on {}{down_text}: {}",
        meters.len(),
        match buses.len() {
            1 => "1 bus".to_owned(),
            many => format!("{many} buses"),
        },
        parts.join(", ")
    );
    let well = meters.iter().all(|row| matches!(row.state, State::Well | State::NotDue));
    (text, well && down == 0)
}

fn count(number: impl TryInto<u64>, what: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {what}"),
        many => format!("{many} {what}s"),
    }
}

fn length(secs: i64) -> String {
    match secs {
        ..120 => format!("{secs} s"),
        120..7200 => format!("{} min", secs / 60),
        _ => format!("{} h", secs / 3600),
    }
}

fn list<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + 'a + use<'a> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

fn said(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => in_one_line(text),
        None | Some(Value::Null) => "-".into(),
        Some(other) => other.to_string(),
    }
}

fn time(value: &Value, pointer: &str) -> Option<Utc> {
    value.pointer(pointer)?.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests;
