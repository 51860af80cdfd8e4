//! What can be wrong with a meter, and how that spoils one answer. Deterministic by seed.
//!
//! Knows nothing of lines: it says how an answer is to be delivered, the line delivers it. An echo is the
//! line's own fault and is configured there.

use std::{ops::RangeInclusive, time::Duration};

use fastrand::Rng;

use crate::model::Utc;

/// A meter's usual time to think before it answers, in microseconds (what electronic meters take at 9600 baud).
const THINK_US: RangeInclusive<u64> = 20_000..=40_000;

/// Something that is wrong with one meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never answers.
    Dead,
    /// It answers this much later than it would.
    LateBy(Duration),
    /// So many of a hundred answers have one to three bits flipped, which a CRC-16 always notices. Behind Modbus
    /// TCP, which has no CRC, the peer reports exception 0B instead.
    Noisy {
        /// 0 to 100.
        percent: u8,
    },
    /// The second half of each answer is missing.
    Truncated,
    /// It answers under the next unit's number.
    WrongUnit,
    /// It does not answer from `from` on, until `until` if that is given.
    Silent {
        /// First silent moment.
        from: Utc,
        /// First moment at which it answers again.
        until: Option<Utc>,
    },
}

/// The faults of one meter and its time to think.
#[derive(Debug)]
pub struct Faults {
    active: Vec<Fault>,
    think_us: RangeInclusive<u64>,
    rng: Rng,
}

/// How one answer is to be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// From the end of the request to the first character of the answer, lateness included.
    pub think: Duration,
    /// It comes later than the meter usually answers, so that whoever asked may have given up.
    pub late: bool,
    /// Answer under the next unit's number.
    pub wrong_unit: bool,
    /// Leave out the second half.
    pub truncated: bool,
    /// Bits to flip: numbers to be taken modulo the frame's bits.
    pub flips: Vec<usize>,
}

impl Faults {
    /// None, with the usual time to think.
    pub fn none(seed: u64) -> Faults {
        Faults { active: Vec::new(), think_us: THINK_US, rng: Rng::with_seed(seed) }
    }

    /// Adds one.
    pub fn add(&mut self, fault: Fault) {
        self.active.push(fault);
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.active.clear();
    }

    /// Those that are active.
    pub fn active(&self) -> &[Fault] {
        &self.active
    }

    /// Time to think: from `least` to `most` (not less than `least`).
    pub fn think(&mut self, least: Duration, most: Duration) {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.think_us = us(least)..=us(most.max(least));
    }

    /// How the answer to a request at `now` is delivered; `None` when there is none.
    pub fn deliver(&mut self, now: Utc) -> Option<Delivery> {
        let mut delivery = Delivery {
            think: Duration::from_micros(self.rng.u64(self.think_us.clone())),
            late: false,
            wrong_unit: false,
            truncated: false,
            flips: Vec::new(),
        };
        for fault in &self.active {
            match *fault {
                Fault::Dead => return None,
                Fault::Silent { from, until } => {
                    if now >= from && until.is_none_or(|until| now < until) {
                        return None;
                    }
                }
                Fault::LateBy(time) => {
                    delivery.think += time;
                    delivery.late = true;
                }
                Fault::Noisy { percent } => {
                    if self.rng.u8(0..100) < percent {
                        let first = self.rng.usize(0..4096);
                        // Neighbours, so that modulo the frame they stay distinct.
                        delivery.flips = (first..=first + self.rng.usize(0..3)).collect();
                    }
                }
                Fault::Truncated => delivery.truncated = true,
                Fault::WrongUnit => delivery.wrong_unit = true,
            }
        }
        Some(delivery)
    }
}

impl Delivery {
    /// The number under which `unit` answers.
    pub fn unit(&self, unit: u8) -> u8 {
        if self.wrong_unit { unit.wrapping_add(1) } else { unit }
    }

    /// Cuts and flips the whole frame, checksum included.
    pub fn spoil(&self, frame: &mut Vec<u8>) {
        self.cut(frame);
        let bits = frame.len().saturating_mul(8).max(1);
        for flip in &self.flips {
            let bit = flip % bits;
            if let Some(byte) = frame.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
        }
    }

    /// Only cuts it.
    pub fn cut(&self, frame: &mut Vec<u8>) {
        if self.truncated {
            frame.truncate(frame.len() / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64) -> Utc {
        Utc::from_timestamp(secs, 0).unwrap()
    }

    #[test]
    fn one_seed_gives_one_history() {
        let history = |seed| {
            let mut faults = Faults::none(seed);
            faults.add(Fault::Noisy { percent: 30 });
            (0..200).map(|i| faults.deliver(at(i)).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(history(7), history(7));
        assert_ne!(history(7), history(8));
        let noisy = history(7).iter().filter(|d| !d.flips.is_empty()).count();
        assert!((30..=90).contains(&noisy), "{noisy} of 200 at 30 %");
    }

    #[test]
    fn a_silent_spell_has_a_begin_and_an_end() {
        let mut faults = Faults::none(1);
        faults.add(Fault::Silent { from: at(10), until: Some(at(20)) });
        let answers: Vec<bool> =
            [9, 10, 19, 20].into_iter().map(|s| faults.deliver(at(s)).is_some()).collect();
        assert_eq!(answers, [true, false, false, true]);
        faults.add(Fault::Dead);
        assert!(faults.deliver(at(0)).is_none());
        faults.clear();
        assert!(faults.deliver(at(15)).is_some());
    }

    #[test]
    fn every_flip_is_seen_by_the_crc() {
        let mut faults = Faults::none(3);
        faults.add(Fault::Noisy { percent: 100 });
        for _ in 0..500 {
            let mut frame = vec![1, 4, 4, 0x43, 0x66, 0x33, 0x34, 0x1B, 0x38];
            faults.deliver(at(0)).unwrap().spoil(&mut frame);
            let (body, sum) = frame.split_at(7);
            assert_ne!(crate::protocol::modbus::crc(body).to_le_bytes(), sum);
        }
    }

    #[test]
    fn lateness_adds_to_the_time_to_think() {
        let mut faults = Faults::none(1);
        faults.think(Duration::from_millis(5), Duration::from_millis(5));
        faults.add(Fault::LateBy(Duration::from_millis(400)));
        let delivery = faults.deliver(at(0)).unwrap();
        assert_eq!((delivery.think, delivery.late), (Duration::from_millis(405), true));
    }
}
