//! Points into requests, by one planner for each protocol, and replies into the bytes of each point.
//!
//! Knows which planner is whose; knows nothing of values, units or who asks.

mod dlt645;
mod modbus;

use std::{borrow::Cow, time::Duration};

use super::{Cell, Profile, Protocol};
use crate::protocol::{Pace, Payload, Question};

/// One request and the points that its reply carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// What is asked.
    pub question: Question,
    /// Indices into the profile's points, in the order of the reply.
    pub points: Vec<usize>,
}

impl Planned {
    /// Predicted time of this exchange.
    pub fn time(&self, profile: &Profile, pace: &Pace) -> Duration {
        let (request, reply) = match &self.question {
            Question::Modbus(read) => modbus::chars(read),
            Question::Dlt645(read) => dlt645::chars(read),
        };
        pace.exchange_time(request, reply, profile.turnaround)
    }
}

/// The cheapest requests that bring `points` (indices into the profile; unknown ones and repetitions are
/// passed over).
pub fn plan(profile: &Profile, points: &[usize], pace: &Pace) -> Vec<Planned> {
    match &profile.protocol {
        Protocol::Modbus(limits) => modbus::plan(profile, limits, points, pace),
        Protocol::Dlt645 => dlt645::plan(profile, points, pace),
    }
}

/// What to ask instead of a request that the meter refused: smaller ones, as long as there are any; else it comes back
/// as it was.
pub fn split(planned: &Planned, profile: &Profile) -> Vec<Planned> {
    if planned.points.len() < 2 {
        return vec![planned.clone()];
    }
    match &profile.protocol {
        Protocol::Modbus(limits) => modbus::split(&planned.points, profile, limits),
        Protocol::Dlt645 => dlt645::split(planned, profile),
    }
}

/// The request that brings the device's own serial number.
pub fn serial_question(profile: &Profile) -> Option<Question> {
    let cell = &profile.serial.as_ref()?.cell;
    match &profile.protocol {
        Protocol::Modbus(limits) => modbus::read_of(cell, limits).map(Question::Modbus),
        Protocol::Dlt645 => dlt645::read_of(cell).map(Question::Dlt645),
    }
}

/// The bytes of a cell, in the order of the wire, within the reply to `question`; too few when the reply does not hold
/// them.
pub fn bytes_of<'a>(cell: &Cell, question: &Question, payload: &'a Payload) -> Cow<'a, [u8]> {
    match (question, payload) {
        (Question::Modbus(read), Payload::Words(words)) => {
            modbus::words_of(cell, read, words).iter().flat_map(|word| word.to_be_bytes()).collect()
        }
        (Question::Dlt645(read), Payload::Data { bytes, .. }) => dlt645::data_of(cell, read, bytes).into(),
        _ => Cow::Borrowed(&[]),
    }
}
