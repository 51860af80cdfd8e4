//! How much may be on its way at once: so much as the line carries in a few seconds.
//!
//! What is sent beyond that waits in buffers that nobody sees, pings behind it, and the connection is taken for dead. Learns
//! from acknowledgements alone: from their age whether too much is on its way, from their bytes what the line carries.

use std::time::Duration;

use super::super::payload::MAX_RECORDS_BYTES;

/// Age of an acknowledgement beyond which too much is on its way: a tenth of what stalls a connection, and above the
/// round trip of any line.
const TARGET: Duration = Duration::from_secs(3);
/// Bytes on their way at first: four of the largest messages. The first one goes alone, and tells whether that was too much;
/// a line of 64 kbit/s carries it in time.
const FLIGHT_FIRST: usize = 512 * 1024;
/// Bytes on their way at least: a line of 9600 bit/s carries them before a connection counts as stalled.
const FLIGHT_LEAST: usize = 16 * 1024;
/// Bytes on their way at most: a full window of the largest messages.
const FLIGHT_MOST: usize = 4096 * 1024;
/// Messages that share what may be on its way, so that one is acknowledged while the next ones follow.
const SHARES: usize = 4;

/// What was known when a message was sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure {
    bytes: usize,
    delivered: u64,
}

#[derive(Debug)]
pub(super) struct Pace {
    limit: usize,
    in_flight: usize,
    delivered: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { limit: FLIGHT_FIRST, in_flight: 0, delivered: 0 }
    }
}

impl Pace {
    /// Bytes that the next message should have at most.
    pub(super) fn message(&self) -> usize {
        (self.limit / SHARES).min(MAX_RECORDS_BYTES)
    }

    /// Whether one more of them may go.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight == 0 || self.in_flight + self.message() <= self.limit
    }

    pub(super) fn sent(&mut self, bytes: usize) -> Departure {
        self.in_flight += bytes;
        Departure { bytes, delivered: self.delivered }
    }

    pub(super) fn acknowledged(&mut self, departure: Departure, age: Duration) {
        let bytes = departure.bytes;
        let was_full = !self.has_room();
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.delivered += bytes as u64;
        if age > TARGET {
            let within_age = u128::from(self.delivered - departure.delivered);
            let carried = within_age * TARGET.as_millis() / age.as_millis().max(1);
            let carried = usize::try_from(carried).unwrap_or(usize::MAX);
            self.limit = self.limit.min(carried.max(FLIGHT_LEAST));
        } else if was_full {
            self.limit = (self.limit + bytes).min(FLIGHT_MOST); // twice as much after each round trip
        }
    }

    /// A connection is gone, and with it what was on its way.
    pub(super) fn lost(&mut self) {
        self.in_flight = 0;
        self.limit = self.limit.min(FLIGHT_FIRST);
    }
}
