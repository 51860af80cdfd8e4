//! One task for each bus: what it is built from, and what becomes of it when it fails.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::TimeDelta;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    bus::{BusHealth, BusTask, DemandRequest, Handed, MeterPlan, Now, Ports, Schedule, readings},
    config::{Bus, Meter, Settings},
    console::Console,
    ledger::SharedLedger,
    model::{Slots, Utc},
    pipeline::{self, BusJudge},
    profile,
    telemetry::{Telemetry, lock},
};

/// Reads that may wait for one bus.
const DEMAND_QUEUE: usize = 64;
/// Pause before a bus task that panicked is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// How long the last sweeps may take at the end.
const LAST_SWEEPS: Duration = Duration::from_millis(1500);

/// The tasks, and how they are told to end.
pub(super) struct Buses {
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Buses {
    /// Lets each finish the exchange under way.
    pub async fn stop(&mut self) {
        let _ = self.stop.send(true);
        let _ = timeout(LAST_SWEEPS, async { while self.tasks.join_next().await.is_some() {} }).await;
        self.tasks.shutdown().await;
    }
}

/// One task for each bus.
pub(super) fn start_buses(
    settings: &Arc<Settings>,
    telemetry: &Arc<Telemetry>,
    console: &Arc<Console>,
    ports: &Arc<dyn Ports>,
    readings: &readings::Sender,
    handed: &Arc<Handed>,
) -> Buses {
    let (stop, down) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let mut healths = Vec::new();
    lock(&console.demands).clear();
    handed.keep(|meter| settings.meters.iter().any(|configured| configured.id == *meter));
    for bus in &settings.buses {
        let health = Arc::new(Mutex::new(BusHealth::default()));
        healths.push((bus.id.clone(), Arc::clone(&health)));
        let keeper = Keeper {
            bus: bus.clone(),
            settings: Arc::clone(settings),
            telemetry: Arc::clone(telemetry),
            console: Arc::clone(console),
            ports: Arc::clone(ports),
            readings: readings.clone(),
            handed: Arc::clone(handed),
            health,
            down: down.clone(),
        };
        tasks.spawn(keeper.keep());
    }
    *lock(&telemetry.buses) = healths;
    Buses { tasks, stop }
}

/// Keeps one bus at work: a panic in its task restarts that bus and no other.
struct Keeper {
    bus: Bus,
    settings: Arc<Settings>,
    telemetry: Arc<Telemetry>,
    console: Arc<Console>,
    ports: Arc<dyn Ports>,
    readings: readings::Sender,
    handed: Arc<Handed>,
    health: Arc<Mutex<BusHealth>>,
    down: watch::Receiver<bool>,
}

impl Keeper {
    async fn keep(self) {
        loop {
            // Ends with the keeper, wherever it stands: nobody else may open its line while it lives.
            let mut task = JoinSet::new();
            task.spawn(self.task().run());
            let ended = task.join_next().await;
            if *self.down.borrow() {
                return;
            }
            match ended {
                None | Some(Ok(())) => return, // nobody takes the readings any more
                Some(Err(error)) => {
                    tracing::error!(bus = %self.bus.id, %error, "the bus task failed and is started again");
                }
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    fn task(&self) -> BusTask {
        let meters: Vec<Meter> =
            self.settings.meters.iter().filter(|meter| meter.bus == self.bus.id).cloned().collect();
        let (sender, demands) = mpsc::channel::<DemandRequest>(DEMAND_QUEUE);
        let mut known = lock(&self.console.demands);
        for meter in &meters {
            known.insert(meter.id.clone(), sender.clone());
        }
        drop(known);
        let clock = Arc::clone(&self.telemetry.clock);
        let ledger = Arc::clone(&self.telemetry.ledger);
        let now = Now { instant: Instant::now(), wall: clock.wall() };
        let plans = meters.iter().map(|meter| self.plan_of(meter, &ledger, now)).collect();
        let latest: Vec<Option<Utc>> = meters
            .iter()
            .map(|meter| pipeline::highest_slot(&ledger, &meter.id).max(self.handed.latest(&meter.id)))
            .collect();
        let repetition = ledger.head().borrow().seq;
        BusTask {
            bus: self.bus.clone(),
            schedule: Schedule::new(plans, now).recalling(&latest, repetition),
            judge: Box::new(BusJudge::new(meters, &ledger, Arc::clone(&clock))),
            clock,
            ports: Arc::clone(&self.ports),
            demands,
            readings: self.readings.clone(),
            handed: Arc::clone(&self.handed),
            health: Arc::clone(&self.health),
            shutdown: self.down.clone(),
        }
    }

    /// What the bus needs to know of a meter. A slot that is owed from before is the first, also when it has passed: it
    /// is read late, or told as missed.
    fn plan_of(&self, meter: &Meter, ledger: &SharedLedger, now: Now) -> MeterPlan {
        let slots = Slots::new(self.settings.site.timezone, meter.interval_secs).ok();
        let mut plan = meter_plan(meter, &self.bus, slots);
        plan.first_slot = slots.map(|slots| {
            self.handed.next(&meter.id, slots, now).unwrap_or_else(|| {
                let unread_since = ledger.latest_slot(&meter.id).map(|last| slots.next_after(last));
                let first = first_slot(slots, unread_since, now.wall);
                let before = slots.at_or_before(first - TimeDelta::milliseconds(1));
                self.handed.note(&meter.id, slots, before, now);
                first
            })
        });
        plan
    }
}

/// A meter's requests and patience on its bus, without a schedule of its own.
pub fn meter_plan(meter: &Meter, bus: &Bus, slots: Option<Slots>) -> MeterPlan {
    let points: Vec<usize> = (0..meter.profile.points.len()).collect();
    MeterPlan {
        id: meter.id.clone(),
        address: meter.address,
        wire: meter.wire,
        requests: profile::plan(&meter.profile, &points, &meter.pace(&bus.link)),
        profile: Arc::clone(&meter.profile),
        slots,
        timeout: meter.timeout.unwrap_or_else(|| bus.timeout.max(meter.profile.protocol.reply_time())),
        retries: meter.retries.unwrap_or(bus.retries),
        first_slot: None,
    }
}

/// The first slot to be read: the current one when it has not been read and is still fresh, else the next. Fresh is a
/// slot of which seven eighths are left, so that a busy line can still read it whole, and no older than a minute.
pub(super) fn first_slot(slots: Slots, unread_since: Option<Utc>, now: Utc) -> Utc {
    let current = slots.at_or_before(now);
    let fresh = now - current <= TimeDelta::seconds(i64::from(slots.interval_secs() / 8).min(60));
    if fresh && unread_since.is_none_or(|unread| unread <= current) { current } else { slots.next_after(now) }
}
