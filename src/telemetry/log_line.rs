//! One log event as one line that is complete by itself: nothing of it stands in fields beside the line.

use std::fmt::{self, Debug};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use crate::model::in_one_line;

/// Who reads the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLine {
    /// A person: time and level first.
    Human,
    /// The journal, which has a time of its own and takes the level as `<4>` (sd-daemon(3)).
    Journal,
}

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        match self {
            LogLine::Journal => write!(writer, "<{}>", priority(*metadata.level()))?,
            LogLine::Human => begin(&mut writer, *metadata.level())?,
        }
        let mut parts = Parts::default();
        event.record(&mut parts);
        let origin = parts.origin.as_deref().unwrap_or(metadata.target());
        if !origin.starts_with(env!("CARGO_CRATE_NAME")) {
            write!(writer, "{origin}: ")?;
        }
        writer.write_str(&parts.message)?;
        for (nth, (name, value)) in parts.fields.iter().enumerate() {
            let before = match nth {
                0 if parts.message.is_empty() => "",
                0 => ": ",
                _ => ", ",
            };
            write!(writer, "{before}{name} {value}")?;
        }
        if let Some(hint) = &parts.hint {
            write!(writer, " - hint: {hint}")?;
        }
        writeln!(writer)
    }
}

/// What `journalctl -p` knows the level as (syslog(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn begin(writer: &mut Writer<'_>, level: Level) -> fmt::Result {
    if !writer.has_ansi_escapes() {
        SystemTime.format_time(writer)?;
        return write!(writer, " {level:>5} ");
    }
    let colour = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        _ => 35,
    };
    writer.write_str("\u{1b}[2m")?;
    SystemTime.format_time(writer)?;
    write!(writer, "\u{1b}[0m \u{1b}[{colour}m{level:>5}\u{1b}[0m ")
}

/// The parts of an event, safe to show.
#[derive(Default)]
struct Parts {
    message: String,
    fields: Vec<(&'static str, String)>,
    /// What can be done; behind everything else.
    hint: Option<String>,
    /// The module of an event that came through the `log` crate.
    origin: Option<String>,
}

impl Visit for Parts {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let shown = if value.is_empty() { "\"\"".to_owned() } else { in_one_line(value) };
        match field.name() {
            "message" => self.message = shown,
            "hint" => self.hint = Some(shown),
            "log.target" => self.origin = Some(shown),
            name if name.starts_with("log.") => {}
            name => self.fields.push((name, shown)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(line: LogLine, colour: bool, log: impl FnOnce()) -> String {
        let out = Written::default();
        let writer = out.clone();
        let layer = super::super::layer(line, move || writer.clone(), colour);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        String::from_utf8(out.0.lock().unwrap().clone()).unwrap()
    }

    fn journal(log: impl FnOnce()) -> String {
        written(LogLine::Journal, false, log)
    }

    #[test]
    fn the_fields_are_in_the_line_and_the_level_before_it() {
        let error = io::Error::other("no such device");
        let line = journal(|| tracing::warn!(bus = "north", late_ms = 300, %error, "the line is away"));
        assert_eq!(line, "<4>the line is away: bus north, late_ms 300, error no such device\n");
        assert_eq!(journal(|| tracing::info!("stopped")), "<6>stopped\n");
        assert_eq!(journal(|| tracing::error!(why = "", "{} of {}", 1, 2)), "<3>1 of 2: why \"\"\n");
        assert_eq!(journal(|| tracing::debug!(seq = Some(7), lost = None::<u64>)), "<7>seq 7\n");
        let foreign = journal(|| tracing::warn!(target: "rumqttc::state", "odd packet"));
        assert_eq!(foreign, "<4>rumqttc::state: odd packet\n");
    }

    #[test]
    fn each_event_is_one_line_and_commands_no_terminal() {
        let error = "refused\n  hint: allow it";
        let line = journal(|| tracing::error!(error, topic = ?"a\nb", "not sent"));
        assert_eq!(line, "<3>not sent: error refused - hint: allow it, topic \"a\\nb\"\n");
        let line = journal(|| tracing::warn!(hint = "is it running?", topic = "t", "nobody listens"));
        assert_eq!(line, "<4>nobody listens: topic t - hint: is it running?\n");
        let hostile = "x\u{1b}]0;owned\u{7}\u{202e}y\n<0>forged\u{9b}2J";
        let shown = "x\\u{1b}]0;owned\\u{7}\\u{202e}y\\u{a}<0>forged\\u{9b}2J";
        assert_eq!(journal(|| tracing::info!(id = hostile, "seen")), format!("<6>seen: id {shown}\n"));
        assert_eq!(journal(|| tracing::info!("{hostile}")), format!("<6>{shown}\n"));
        let human = written(LogLine::Human, false, || tracing::warn!(id = hostile, "seen"));
        assert!(human.ends_with(&format!("Z  WARN seen: id {shown}\n")), "{human}");
    }

    #[test]
    fn colours_are_for_a_terminal_alone() {
        let line = written(LogLine::Human, true, || tracing::error!(bus = "north", "away"));
        assert!(line.ends_with("\u{1b}[31mERROR\u{1b}[0m away: bus north\n"), "{line:?}");
        assert!(!written(LogLine::Human, false, || tracing::error!("away")).contains('\u{1b}'));
    }
}
