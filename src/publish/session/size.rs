//! How large messages of records may be for this broker: learnt from the connections that end over one.
//!
//! A broker need not say its limit, and with MQTT 3.1.1 it cannot. What was learnt outlives the connection; the pace of
//! the line is another matter (`pace`).

use std::time::{Duration, Instant};

/// Connections that end over a message of records before smaller ones are tried: one loss is a loss, two over messages
/// larger than any that was taken look like their size.
const LOSSES_TO_SHRINK: u32 = 2;
/// Next size after one that ends connections: a quarter, unless a larger one was taken.
const SHRINK: usize = 4;
/// Bytes below which messages are not made smaller: nearly every record goes alone.
const LEAST: usize = 128;
/// First pause before larger messages are tried again: the network may have been the cause, or the broker was changed.
const GROW_FIRST: Duration = Duration::from_secs(600);
/// Longest pause before larger messages are tried again: each trial costs a connection.
const GROW_LONGEST: Duration = Duration::from_secs(86_400);

#[derive(Debug, Default)]
pub(super) struct MessageSize {
    /// Bytes of the largest message that was taken.
    taken: usize,
    /// Bytes beyond which messages end connections.
    ceiling: Option<usize>,
    /// Bytes of the message over which a connection ended.
    suspect: usize,
    losses: u32,
    /// Larger messages are being tried, or are not before this.
    trial: bool,
    grow_from: Option<Instant>,
    trials: u32,
}

impl MessageSize {
    /// Bytes of a message, where `limit` is what is known otherwise.
    pub(super) fn of(&self, limit: usize) -> usize {
        let trial = if self.trial { SHRINK } else { 1 };
        self.ceiling.map_or(limit, |ceiling| limit.min(ceiling.saturating_mul(trial)))
    }

    pub(super) fn limit(&self) -> Option<usize> {
        self.ceiling
    }

    /// Whether no message of so many bytes was taken so far.
    pub(super) fn is_beyond(&self, bytes: usize) -> bool {
        bytes > self.taken
    }

    /// The connection ended while a message of so many bytes had no acknowledgement. `alone`: it was the first and only one.
    pub(super) fn lost(&mut self, bytes: usize, alone: bool, now: Instant) {
        if self.trial {
            self.trial = false;
            self.wait_longer(now);
            return;
        }
        if !self.is_beyond(bytes) && !alone {
            return;
        }
        self.suspect = bytes;
        self.losses += 1;
        if self.losses < LOSSES_TO_SHRINK {
            return;
        }
        self.losses = 0;
        if !self.is_beyond(bytes) {
            self.taken = 0; // it takes less than it did
        }
        self.ceiling = Some((bytes / SHRINK).max(self.taken).max(LEAST));
        self.trials = 0;
        self.wait_longer(now);
    }

    fn wait_longer(&mut self, now: Instant) {
        self.grow_from = Some(now + GROW_LONGEST.min(GROW_FIRST * (1 << (2 * self.trials.min(4)))));
        self.trials += 1;
    }

    /// A message of so many bytes was taken.
    pub(super) fn accepted(&mut self, bytes: usize, now: Instant) {
        self.taken = self.taken.max(bytes);
        if bytes >= self.suspect {
            self.losses = 0;
        }
        let Some(ceiling) = self.ceiling else { return };
        if self.trial && bytes > ceiling {
            self.ceiling = Some(ceiling.saturating_mul(SHRINK));
        } else if !self.trial && self.grow_from.is_some_and(|from| now >= from) {
            self.trial = true;
        }
    }
}
