//! The tokio-modbus door: one exchange, its timeout, its checks, and a fresh client after every fault.
//!
//! tokio-modbus 0.17 has no timeout, checks the word count with a debug assertion only and clears nothing but
//! its own buffer, so all of that is done here and in the line below it.

use std::{io, time::Duration};

use tokio::time::{Instant, timeout_at};
use tokio_modbus::{
    Slave,
    client::{Context, Reader, rtu, tcp},
    slave::SlaveContext,
};

use super::line::{Exchanged, Frames, Line};
use crate::protocol::{
    Outcome, Pace, Payload,
    modbus::{REPLY_OVERHEAD_CHARS, REQUEST_CHARS, Read, Table, refusal},
};

/// A Modbus client on a line.
pub struct ModbusClient {
    line: Line,
    frames: Frames,
    pace: Pace,
    context: Context,
    owed: Vec<Owed>,
}

/// A question whose answer has not been seen: it may still come, and RTU answers do not say what they answer.
#[derive(Debug, Clone, Copy)]
struct Owed {
    unit: u8,
    read: Read,
    asked: Instant,
}

/// For so long an answer may still come. Slow converters and busy meters take a second or two; longer would only
/// slow down the first answer of a meter that comes back.
const OWED_FOR: Duration = Duration::from_secs(5);
/// Least time to wait for an answer that comes too late, however short the timeout is.
const LEAST_LATE_PATIENCE: Duration = Duration::from_millis(200);
/// Silence on an RTU line before its first question: what whoever had it before has asked (this gateway before a reload or a
/// crash) may still be answered, and nobody remembers what it was.
const QUIET_AT_OPENING: Duration = Duration::from_secs(1);

impl ModbusClient {
    /// A client on a line.
    pub fn new(line: Line, frames: Frames, pace: Pace) -> ModbusClient {
        let context = attach(&line, frames);
        ModbusClient { line, frames, pace, context, owed: Vec::new() }
    }

    /// Lets pass what is still said on a line that was just opened. A line that is never quiet is used all the same.
    pub async fn wait_for_quiet(&mut self) -> io::Result<()> {
        let opened = Instant::now();
        while self.frames == Frames::Rtu
            && opened.elapsed() < OWED_FOR
            && self.line.listen_for_late(QUIET_AT_OPENING).await?.is_some()
        {}
        Ok(())
    }

    /// The line below.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Asks one question and says how it ended. On return the line is fit for the next question, unless the
    /// outcome is [`Outcome::LineDown`].
    pub async fn exchange(&mut self, unit: u8, read: Read, wait: Duration) -> Outcome {
        let asked = Instant::now();
        let outcome = match self.try_exchange(unit, read, wait).await {
            Ok(outcome) if self.frames == Frames::Rtu => {
                self.settle(Owed { unit, read, asked }, outcome).await
            }
            other => other,
        };
        match outcome {
            Ok(outcome) => outcome,
            Err(e) => Outcome::LineDown { detail: e.to_string() },
        }
    }

    async fn try_exchange(&mut self, unit: u8, read: Read, wait: Duration) -> io::Result<Outcome> {
        self.line.make_ready().await?;
        let (request_time, reply_time) = self.wire_times(read);
        let sent_by = Instant::now() + request_time;
        self.context.set_slave(Slave(unit));
        let asked = async {
            match read.table {
                Table::Holding => self.context.read_holding_registers(read.address, read.count).await,
                Table::Input => self.context.read_input_registers(read.address, read.count).await,
            }
        };
        let answer = timeout_at(sent_by + wait + reply_time, asked).await;
        let left = self.line.exchanged();
        let outcome = match answer {
            Ok(Ok(Ok(words))) if words.len() == usize::from(read.count) => match left.answered_at {
                Some((instant, at)) => Outcome::Answered {
                    payload: Payload::Words(words),
                    at,
                    elapsed: instant.saturating_duration_since(sent_by),
                },
                None => Outcome::Garbled { detail: "an answer without a frame".into() },
            },
            Ok(Ok(Ok(words))) => {
                Outcome::Garbled { detail: format!("{} words came, {} were asked", words.len(), read.count) }
            }
            Ok(Ok(Err(exception))) => {
                let code: u8 = exception.into();
                match code {
                    // A gateway speaks for a meter behind it that did not answer.
                    0x0A | 0x0B => Outcome::Silent { late: None },
                    code => Outcome::Refused(refusal(code)),
                }
            }
            Ok(Err(tokio_modbus::Error::Transport(e))) if e.kind() != io::ErrorKind::InvalidData => {
                return Err(e);
            }
            Ok(Err(error)) => Outcome::Garbled { detail: error.to_string() },
            Err(_elapsed) => too_late(&self.line, self.frames, left, sent_by, wait).await?,
        };
        if matches!(outcome, Outcome::Garbled { .. } | Outcome::Silent { .. }) && self.frames == Frames::Rtu {
            self.context = attach(&self.line, self.frames);
        }
        Ok(outcome)
    }

    /// An answer that follows a silence of the same unit may belong to an earlier question: whether another one
    /// comes after it tells. Whatever is uncertain is no answer.
    async fn settle(&mut self, this: Owed, outcome: Outcome) -> io::Result<Outcome> {
        self.owed.retain(|owed| owed.asked.elapsed() < OWED_FOR);
        let first = self.owed.iter().find(|owed| owed.unit == this.unit).map(|owed| owed.asked);
        match (&outcome, first) {
            // What was garbled may have been another's frame, or the answer to an earlier question: ours may still come.
            (Outcome::Silent { late: None } | Outcome::Garbled { .. }, _)
            | (Outcome::Silent { .. }, Some(_)) => {
                self.owed.push(this);
                Ok(outcome)
            }
            (Outcome::Answered { .. } | Outcome::Refused(_), Some(first)) => {
                // A meter that is late by the same time each time answers this one no later than that.
                let span = this.asked.saturating_duration_since(first);
                let heard = self.line.listen_for_late((span * 5 / 4).max(LEAST_LATE_PATIENCE)).await?;
                if heard.is_some() {
                    self.owed.push(this);
                    return Ok(Outcome::Silent { late: Some(this.asked.elapsed()) });
                }
                let mine = |owed: &Owed| owed.unit == this.unit;
                let certain = self.owed.iter().filter(|owed| mine(owed)).all(|owed| owed.read == this.read);
                self.owed.retain(|owed| !mine(owed));
                if certain {
                    return Ok(outcome);
                }
                let detail = "the answer may belong to an earlier question that was given up".into();
                Ok(Outcome::Garbled { detail })
            }
            _ => Ok(outcome),
        }
    }

    fn wire_times(&self, read: Read) -> (Duration, Duration) {
        match self.pace {
            Pace::Network => (Duration::ZERO, Duration::ZERO),
            Pace::Serial(wire) => {
                let char_time = wire.char_time();
                (char_time * REQUEST_CHARS, char_time * (REPLY_OVERHEAD_CHARS + 2 * u32::from(read.count)))
            }
        }
    }
}

/// The time is up: RTU has no transaction number, so the line is listened to until a late answer has passed. Over
/// Modbus TCP the line tells late answers apart by their number.
async fn too_late(
    line: &Line,
    frames: Frames,
    left: Exchanged,
    sent_by: Instant,
    wait: Duration,
) -> io::Result<Outcome> {
    let since_request = sent_by.elapsed();
    let late = match frames {
        Frames::Tcp => None,
        Frames::Rtu => line.listen_for_late(wait.max(LEAST_LATE_PATIENCE)).await?,
    };
    Ok(match left.unfit {
        Some(detail) => Outcome::Garbled { detail },
        None if left.received > 0 => {
            Outcome::Garbled { detail: format!("the answer stopped after {} bytes", left.received) }
        }
        None => Outcome::Silent { late: late.map(|after| since_request + after) },
    })
}

fn attach(line: &Line, frames: Frames) -> Context {
    match frames {
        Frames::Rtu => rtu::attach(line.clone()),
        Frames::Tcp => tcp::attach(line.clone()),
    }
}
