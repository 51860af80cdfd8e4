//! What a line looks like on which nobody answers, or a meter whose replies are always damaged: the likely cause, in words.
//!
//! Pure: it is told how each exchange ended and what came beside it.

use crate::protocol::Outcome;

/// Exchanges in a row from which on something is said.
const LEAST: u32 = 3;

/// What came instead of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Not a byte.
    Nothing,
    /// The request itself.
    Echo,
    /// Bytes without a frame.
    Noise,
    /// Frames of another form than the bus is set up for: which, and what to set.
    OtherForm(&'static str),
    /// Whole frames of others.
    Others,
}

/// How the exchanges of one bus ended since somebody answered.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    /// What was heard how often.
    heard: Vec<(Heard, u32)>,
}

impl Diagnosis {
    /// Takes note of an exchange. `heard`: what came, when there was no reply.
    pub fn note(&mut self, outcome: &Outcome, heard: Heard) {
        match outcome {
            Outcome::Answered { .. } | Outcome::Refused(_) => self.heard.clear(),
            Outcome::LineDown { .. } => {}
            Outcome::Silent { .. } | Outcome::Garbled { .. } => {
                match self.heard.iter_mut().find(|(known, _)| *known == heard) {
                    Some((_, times)) => *times = times.saturating_add(1),
                    None => self.heard.push((heard, 1)),
                }
            }
        }
    }

    /// The likely cause, once a few exchanges looked alike.
    pub fn text(&self, serial: bool) -> Option<&'static str> {
        self.likely(LEAST, serial)
    }

    /// The likely cause of what was heard most often, at least so often.
    pub fn likely(&self, least: u32, serial: bool) -> Option<&'static str> {
        let (heard, _) =
            self.heard.iter().filter(|(_, times)| *times >= least).max_by_key(|(_, times)| *times)?;
        match heard {
            Heard::Nothing if serial => Some(
                "nobody answers and nothing comes: are the wires A and B swapped or loose, are the meters powered, are baud \
                 rate, parity and addresses theirs?",
            ),
            Heard::Nothing => Some(
                "the connection is open and nothing comes through it: look at the serial side of the converter (wires A and B \
                 swapped? baud rate, parity) and at the addresses",
            ),
            Heard::Echo => Some(
                "nothing but the echo of the requests comes back: the adapter hears itself, the meters do not answer (wires A \
                 and B swapped or loose? addresses?)",
            ),
            Heard::Noise => Some(
                "bytes come that are no frames: the meters' baud rate or parity is likely another than the line's (or two \
                 meters answer at once)",
            ),
            Heard::OtherForm(text) => Some(text),
            Heard::Others => None,
        }
    }
}

/// How the last exchanges with one meter ended, beside meters that answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspicion {
    damaged: u32,
    doubled: u32,
}

impl Suspicion {
    /// Takes note of an exchange.
    pub fn note(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Garbled { .. } => self.damaged = self.damaged.saturating_add(1),
            Outcome::Answered { .. } | Outcome::Refused(_) => {
                self.damaged = 0;
                self.doubled = self.doubled.saturating_sub(1);
            }
            Outcome::Silent { .. } | Outcome::LineDown { .. } => {}
        }
    }

    /// A second, different reply to the same request came behind the first.
    pub fn note_doubled(&mut self) {
        self.doubled = (self.doubled + 2).min(2 * LEAST);
    }

    /// The likely cause; `others_answer`: other meters on the line do.
    pub fn text(&self, others_answer: bool) -> Option<&'static str> {
        if self.doubled >= LEAST {
            Some(
                "two meters answer at this address, one after the other: which value is whose cannot be told",
            )
        } else if self.damaged >= LEAST && others_answer {
            Some(
                "its replies are always damaged while others on the line are well: two meters at this address?",
            )
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Outcome {
        Outcome::Silent { late: None }
    }

    fn garbled() -> Outcome {
        Outcome::Garbled { detail: String::new() }
    }

    fn answered() -> Outcome {
        let payload = crate::protocol::Payload::Words(Vec::new());
        Outcome::Answered { payload, at: crate::model::Utc::default(), elapsed: std::time::Duration::ZERO }
    }

    #[test]
    fn what_looks_alike_three_times_is_named_until_somebody_answers() {
        for (outcome, heard, says) in [
            (silent(), Heard::Nothing, "swapped"),
            (silent(), Heard::Echo, "echo"),
            (garbled(), Heard::Noise, "baud"),
            (garbled(), Heard::OtherForm("set framing"), "framing"),
        ] {
            let mut line = Diagnosis::default();
            for _ in 0..2 {
                line.note(&outcome, heard);
                assert_eq!(line.text(true), None);
            }
            line.note(&outcome, heard);
            assert!(line.text(true).unwrap().contains(says), "{heard:?}");
            line.note(&answered(), Heard::Nothing);
            assert_eq!(line.text(true), None);
        }
    }

    #[test]
    fn a_meter_is_suspected_only_beside_meters_that_are_well() {
        let mut meter = Suspicion::default();
        for _ in 0..LEAST {
            meter.note(&garbled());
        }
        assert!(meter.text(true).is_some() && meter.text(false).is_none());
        meter.note(&answered());
        assert_eq!(meter.text(true), None);
        meter.note_doubled();
        assert_eq!(meter.text(true), None, "once may be chance");
        for _ in 0..LEAST {
            meter.note(&answered());
            meter.note_doubled();
        }
        assert!(meter.text(false).unwrap().contains("two meters"));
    }
}
