//! How long a meter is waited for: its own reply time, measured, within the configured limit.
//!
//! The estimate is that of RFC 6298: a mean and a mean deviation, each moved by a fraction of every new measurement.

use std::time::Duration;

/// Measured replies before they count: until then the configured time is waited.
const LEAST_SAMPLES: u32 = 4;
/// Least time to wait, however fast the meter is: an adapter holds bytes back for 16 ms, a busy machine for a tenth of a second.
const LEAST_TIMEOUT: Duration = Duration::from_millis(200);
/// Least distance from the mean reply time.
const LEAST_MARGIN: Duration = Duration::from_millis(50);
/// Part of a limit from which on replies are near to it: a drift is seen before replies are lost.
const NEAR_PERCENT: u32 = 80;

/// What is known of one meter's replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    limit: Duration,
    mean: Duration,
    deviation: Duration,
    samples: u32,
}

impl Patience {
    /// Nothing is measured yet. `limit` is the configured timeout.
    pub fn new(limit: Duration) -> Patience {
        Patience { limit, mean: Duration::ZERO, deviation: Duration::ZERO, samples: 0 }
    }

    /// A reply came after so long, be it too late.
    pub fn note(&mut self, took: Duration) {
        let took = took.min(self.limit * 2); // what is far beyond the limit says no more than that
        if self.samples == 0 {
            (self.mean, self.deviation) = (took, took / 2);
        } else {
            self.deviation = (self.deviation * 3 + took.abs_diff(self.mean)) / 4;
            self.mean = (self.mean * 7 + took) / 8;
        }
        self.samples = self.samples.saturating_add(1);
    }

    /// How long the reply is waited for.
    pub fn timeout(&self) -> Duration {
        if self.samples < LEAST_SAMPLES {
            return self.limit;
        }
        (self.mean + (self.deviation * 4).max(LEAST_MARGIN)).max(LEAST_TIMEOUT).min(self.limit)
    }

    /// The configured timeout.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// The usual time of a reply; `None` until one came.
    pub fn usual(&self) -> Option<Duration> {
        (self.samples > 0).then_some(self.mean)
    }

    /// Whether usual replies take nearly as long as they may.
    pub fn is_near_limit(&self) -> bool {
        self.samples >= LEAST_SAMPLES && self.mean * 100 > self.limit * NEAR_PERCENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn after(limit: u64, replies: &[u64]) -> Patience {
        let mut patience = Patience::new(ms(limit));
        for took in replies {
            patience.note(ms(*took));
        }
        patience
    }

    #[test]
    fn the_configured_time_is_waited_until_enough_is_known() {
        assert_eq!(after(300, &[]).timeout(), ms(300));
        assert_eq!(after(300, &[20, 20, 20]).timeout(), ms(300));
        assert!(after(300, &[20; 10]).timeout() < ms(220));
    }

    #[test]
    fn it_follows_the_meter_within_its_limits() {
        assert_eq!(after(300, &[5; 50]).timeout(), LEAST_TIMEOUT);
        assert_eq!(after(80, &[5; 50]).timeout(), ms(80), "the configured time is the ceiling");
        let steady = after(1000, &[200; 50]).timeout();
        assert!((ms(250)..ms(260)).contains(&steady), "{steady:?}");
        let uneven: Vec<u64> = (0..50).map(|n| if n % 2 == 0 { 50 } else { 250 }).collect();
        assert!(after(1000, &uneven).timeout() > ms(400), "{:?}", after(1000, &uneven));
        let mut slower = after(1000, &[20; 50]);
        for _ in 0..5 {
            slower.note(ms(400));
        }
        assert!(slower.timeout() > ms(400), "{slower:?}");
    }

    #[test]
    fn a_drift_towards_the_limit_is_seen() {
        assert!(!after(300, &[200; 50]).is_near_limit());
        assert!(after(300, &[250; 50]).is_near_limit());
        assert!(after(300, &[5000; 50]).mean <= ms(600), "one that hung for long is no measure");
    }
}
