//! Whether a network bus keeps its intervals, by what its exchanges take. A serial line's time is known before it is polled, and
//! a faulty plan is refused (`config/poll_plan.rs`); a network's is only known from the answers.
//!
//! Pure: the counters and the time are arguments.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{
    bus::BusHealth,
    config::{
        Settings,
        poll_plan::{PollPlan, predict},
    },
    model::BusId,
};

/// How long exchanges are counted before they are judged: a burst says nothing.
const MEASURED_FOR: Duration = Duration::from_secs(60);

/// What has been counted on each bus.
pub(super) struct MeasuredPace {
    plan: PollPlan,
    seen: HashMap<BusId, Seen>,
}

struct Seen {
    since: Instant,
    exchanges: u64,
    busy: Duration,
    /// What the last span came to.
    warning: Option<String>,
}

impl MeasuredPace {
    pub fn new(settings: &Settings) -> MeasuredPace {
        MeasuredPace { plan: predict(settings), seen: HashMap::new() }
    }

    /// Looks at all buses. What there is to warn of: buses whose exchanges take longer than their intervals leave.
    pub fn look(&mut self, buses: &[(BusId, BusHealth)], now: Instant) -> Option<String> {
        let mut warnings = Vec::new();
        for (plan, (id, health)) in self
            .plan
            .buses
            .iter()
            .filter(|plan| !plan.predicted)
            .filter_map(|plan| Some((plan, buses.iter().find(|(id, _)| *id == plan.bus)?)))
        {
            let exchanges = health.answered + health.silent + health.garbled + health.refused;
            let begin = || Seen { since: now, exchanges, busy: health.busy, warning: None };
            let seen = self.seen.entry(id.clone()).or_insert_with(begin);
            if now - seen.since >= MEASURED_FOR {
                let count = exchanges.saturating_sub(seen.exchanges);
                let busy = health.busy.saturating_sub(seen.busy);
                let warning = too_slow(id, plan.requests_per_1000_secs(), count, busy);
                *seen = Seen { warning, ..begin() };
            }
            warnings.extend(seen.warning.clone());
        }
        (!warnings.is_empty()).then(|| warnings.join("; "))
    }
}

fn too_slow(bus: &BusId, wanted_per_1000_secs: u64, exchanges: u64, busy: Duration) -> Option<String> {
    let mean = busy / u32::try_from(exchanges).ok().filter(|count| *count > 0)?;
    let busy_in_1000_secs = mean * u32::try_from(wanted_per_1000_secs).unwrap_or(u32::MAX);
    (busy_in_1000_secs > Duration::from_secs(1000)).then(|| {
        format!(
            "bus `{bus}` does not keep its intervals: an exchange takes {}.{:03} ms, as measured, and {} a second are wanted; raise interval_secs, or split the bus",
            mean.as_millis(),
            mean.subsec_micros() % 1000,
            wanted_per_1000_secs.div_ceil(1000)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_bus_is_too_slow_by_what_its_exchanges_take() {
        let bus: BusId = "plant".parse().unwrap();
        // 600 requests a second leave 1.667 ms for each.
        let says = |exchanges, millis| too_slow(&bus, 600_000, exchanges, Duration::from_millis(millis));
        assert_eq!(says(36_000, 59_000), None, "1.639 ms");
        let slow = says(30_000, 60_000).unwrap();
        assert!(slow.contains("takes 2.000 ms") && slow.contains("600 a second"), "{slow}");
        assert_eq!(says(0, 0), None, "nothing was asked, nothing is known");
    }
}
