//! One simulated year-in-seconds: a site, its gateway through several lives, and all that goes wrong, from one seed.
//!
//! The gateway is the production code (`app::House` on `FileLedger`); time, lines, broker and disk are simulated. Each
//! life has a tokio runtime of its own with paused time, so that dropping it is a SIGKILL.

mod happenings;
mod quiet;

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::TimeDelta;
use fastrand::Rng;
use meter_gateway::{
    app::{House, Outside},
    billing::settle,
    clock::{Clock, SimulatedClock},
    config::{self, Settings},
    identity::{Identity, PublicKey},
    ledger::{FileLedger, Ledger, Options, SharedLedger, disk::sim::SimDisk},
    model::{ClockState, Seq, Utc},
    protocol::{Parity, Wire},
    sim::{SimClock, SimMeter, TcpFraming, VirtualLine, VirtualLines, share},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, sleep_until};

use super::{broker::SimBroker, inline::Inline, site::Site};
use happenings::Event;
use quiet::Quiet;

pub const BASE: &str = "metering/v1/riverside/gw-01";
const WIRE: Wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };
/// How often the house is supervised, and whether the disk has stopped is seen.
const LOOK: Duration = Duration::from_secs(10);
/// Longest life of a site that is read without pause.
const BUSY_LIFE: Duration = Duration::from_secs(120);
/// How long the last life goes on at least after everything was delivered once.
const LAST_LIFE: Duration = Duration::from_secs(60);
/// The longest that delivery may take once everything is well: the longest back-off (60 s) several times.
const RECOVERY: Duration = Duration::from_secs(3600);

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub struct Recipe {
    pub seed: u64,
    pub lives: u32,
    /// Longest life.
    pub life: Duration,
    /// The wall clock is wrong, steps, and is found again.
    pub clock_faults: bool,
}

/// Real time, as no clock of the site has it.
#[derive(Clone)]
pub struct Truth(Arc<Mutex<(Utc, Option<Instant>)>>);

impl Truth {
    pub fn now(&self) -> Utc {
        let (base, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = since.map_or(Duration::ZERO, |since| since.elapsed());
        base + TimeDelta::from_std(passed).unwrap_or(TimeDelta::MAX)
    }

    fn begin(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(Instant::now());
    }

    fn end(&self, pause: Duration) {
        let now = self.now();
        let pause = TimeDelta::from_std(pause).unwrap_or(TimeDelta::MAX);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (now + pause, None);
    }
}

/// What the house's clock showed when a meter answered.
pub type HouseTimes = Arc<Mutex<BTreeMap<Utc, Utc>>>;

pub struct World {
    pub recipe: Recipe,
    rng: Rng,
    pub truth: Truth,
    pub story: Vec<String>,
    pub lines: VirtualLines,
    site: Site,
    /// What is configured now.
    settings: Arc<Settings>,
    /// Every meter that is on a line.
    pub all: Arc<Settings>,
    /// What was stored after a while of peace: all of it must reach billing in this life.
    pub owed: Option<Seq>,
    /// The configuration was edited while nobody was at work.
    edited: bool,
    /// What was configured from when on, in the house's time.
    pub configured: Vec<(Utc, Arc<Settings>)>,
    /// Decides what is not drawn from `rng`, so that older seeds keep their histories.
    more: Rng,
    /// Decides what converters do, so that older seeds keep the rest of their histories.
    habits: Rng,
    /// The key that the site began with.
    pub first_key: Option<PublicKey>,
    /// Records among which a bit was flipped after billing had them.
    pub damaged: Vec<RangeInclusive<Seq>>,
    pub broker: SimBroker,
    pub disk: SimDisk,
    pub dir: TempDir,
    pub house_times: HouseTimes,
    clock: Arc<Mutex<Option<Arc<SimulatedClock>>>>,
    /// What the kernel's clock is ahead of the truth.
    offset: TimeDelta,
    synced: bool,
    pub faults: BTreeMap<&'static str, u64>,
    /// When nothing was wrong on a bus.
    pub quiet: Quiet,
    pub violations: Vec<String>,
    /// What the ledger said was stored: never less again.
    stored: (Seq, String),
    /// Moments, true and the house's, around which a time of the house is not to be told.
    pub steps: Vec<Utc>,
}

/// When the last record was made.
fn time_of_the_last(files: &FileLedger) -> Option<Utc> {
    let last = files.head().borrow().seq;
    let line = files.read(last, 1, usize::MAX).ok()?.into_iter().next()?;
    let record: Value = serde_json::from_slice(&line.bytes).ok()?;
    record["recorded_at"].as_str()?.parse().ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    Kill,
    PowerCut,
}

impl World {
    pub fn new(recipe: Recipe) -> World {
        let mut rng = Rng::with_seed(recipe.seed);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let mut more = Rng::with_seed(recipe.seed ^ 0x6d6f_7265);
        let mut site = Site::draw(&mut rng, &mut more);
        site.mix(&mut Rng::with_seed(recipe.seed ^ 0x6d69_7865));
        let mut recipe = recipe;
        if site.interval == 0 {
            recipe.life = BUSY_LIFE; // some ten thousand records an hour
        }
        let settings = site.load(dir.path());
        let start = site.begin + TimeDelta::seconds(rng.i64(0..site.season() * 86_400));
        let truth = Truth(Arc::new(Mutex::new((start, None))));
        let house_times = HouseTimes::default();
        let clock: Arc<Mutex<Option<Arc<SimulatedClock>>>> = Arc::default();
        let sim_clock = {
            let (truth, clock, times) = (truth.clone(), Arc::clone(&clock), Arc::clone(&house_times));
            SimClock::new(move || {
                let now = truth.now();
                if let Some(clock) = &*clock.lock().unwrap_or_else(PoisonError::into_inner) {
                    times.lock().unwrap_or_else(PoisonError::into_inner).insert(now, clock.wall());
                }
                now
            })
        };
        let mut lines = VirtualLines::default();
        for bus in &settings.buses {
            let meters = settings.meters.iter().filter(|meter| meter.bus == bus.id);
            let meters = meters
                .map(|meter| {
                    let mut twin = SimMeter::new(meter.address, meter.profile.clone(), rng.u64(..));
                    if let Some(wire) = meter.wire {
                        twin.set_wire(wire);
                    }
                    twin
                })
                .collect();
            let (name, framing) = match &bus.link {
                config::Link::Serial { device, .. } => (device.display().to_string(), TcpFraming::Rtu),
                config::Link::Tcp { address } => (address.clone(), TcpFraming::Tcp),
                config::Link::SerialOverTcp { address, .. } => (address.clone(), TcpFraming::Rtu),
            };
            lines.0.insert(name, VirtualLine::new(framing, WIRE, share(meters), sim_clock.clone()));
        }
        let (broker, disk) = (SimBroker::new(rng.u64(..), BASE, site.receipts), SimDisk::new(rng.u64(..)));
        let (offset, synced) = match (recipe.clock_faults, rng.u8(0..4)) {
            (false, _) | (true, 0) => (TimeDelta::zero(), true),
            (true, 1) => (-TimeDelta::days(21_000), false), // no battery: 1970
            (true, 2) => (-TimeDelta::days(rng.i64(200..400)), false), // last March
            (true, _) => (TimeDelta::seconds(rng.i64(-90..90)), false),
        };
        World {
            recipe,
            rng,
            truth,
            story: Vec::new(),
            lines,
            owed: None,
            edited: false,
            site,
            all: Arc::clone(&settings),
            configured: Vec::new(),
            settings,
            more,
            habits: Rng::with_seed(recipe.seed ^ 0x68_6162_6974),
            first_key: None,
            damaged: Vec::new(),
            broker,
            disk,
            dir,
            house_times,
            clock,
            offset,
            synced,
            faults: BTreeMap::new(),
            quiet: Quiet::default(),
            violations: Vec::new(),
            stored: (0, String::new()),
            steps: Vec::new(),
        }
    }

    pub fn tell(&mut self, what: impl Into<String>) {
        let at = self.truth.now().format("%m-%d %H:%M:%S%.3f");
        let line = format!("{at}  {}", what.into());
        if std::env::var_os("STORY").is_some() {
            eprintln!("{line}"); // while it happens: for a seed that does not come to its end
        }
        self.story.push(line);
    }

    /// All its lives, the last of them in peace.
    pub fn run(&mut self) {
        for number in 1..=self.recipe.lives {
            let plan = self.plan();
            let length = Duration::from_secs(self.rng.u64(30..=self.recipe.life.as_secs()));
            let end =
                [End::Orderly, End::Kill, End::Kill, End::PowerCut, End::PowerCut][self.rng.usize(0..5)];
            self.tell(format!("life {number}: {} s, ends {end:?}", length.as_secs()));
            self.live(&plan, length, Some(end));
            if !self.violations.is_empty() {
                return; // what follows from it is no news, and may take long
            }
            let pause = Duration::from_secs(if self.rng.bool() {
                self.rng.u64(1..30)
            } else {
                self.rng.u64(30..20_000)
            });
            self.truth.end(pause);
            self.between_lives();
        }
        self.heal();
        self.count_habits();
        self.tell("the last life, in peace");
        self.live(&[], RECOVERY, None);
        self.broker.pass_on();
    }

    fn live(&mut self, plan: &[(Duration, Event)], length: Duration, end: Option<End>) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        fastrand::seed(self.rng.u64(..));
        for line in self.lines.0.values() {
            line.restart();
        }
        self.broker.forget_link();
        runtime.block_on(async {
            self.truth.begin();
            self.quiet.begin(self.lines.0.len(), self.truth.now());
            self.life(plan, length, end).await;
            self.quiet.end(self.truth.now());
            self.truth.end(Duration::ZERO); // while this runtime's time can still be told
        });
        drop(runtime);
        *self.clock.lock().unwrap() = None;
    }

    async fn life(&mut self, plan: &[(Duration, Event)], length: Duration, end: Option<End>) {
        let state = if self.synced { ClockState::Synced } else { ClockState::Unsynced };
        let clock = Arc::new(SimulatedClock::starting_at(self.truth.now() + self.offset, state));
        *self.clock.lock().unwrap() = Some(Arc::clone(&clock));
        let data = self.dir.path().join("data");
        let options = Options {
            segment_bytes: 64 * 1024,
            cursor_interval: Duration::from_secs(3600),
            now: clock.wall(),
            disk: self.disk.mount(),
            ..Options::default()
        };
        let (files, incidents) = match FileLedger::open(&data, options) {
            Ok(opened) => opened,
            Err(error) => {
                self.tell(format!("the ledger does not open: {error}"));
                if end.is_none() {
                    self.violations.push(format!("the ledger does not open on a healthy disk: {error}"));
                }
                self.disk.heal();
                self.disk.limit(u64::MAX);
                return;
            }
        };
        // Where the directory happens to be is no part of the history.
        let place = data.display().to_string();
        let incidents: Vec<String> = incidents.iter().map(|i| i.replace(&place, "data")).collect();
        for incident in &incidents {
            self.tell(format!("incident: {incident}"));
        }
        self.check_nothing_taken_back(&files);
        let of_the_ledger =
            |incident: &&String| incident.starts_with("ledger ") && incident.contains("damaged at");
        if self.damaged.is_empty()
            && let Some(incident) = incidents.iter().find(of_the_ledger)
        {
            self.violations.push(format!("nobody damaged it, and yet: {incident}"));
        }
        let ledger: SharedLedger = Arc::new(Inline(Arc::clone(&files)));
        let identity = Arc::new(Identity::load_or_create(&data).unwrap());
        if let Err(error) = settle(&identity, &ledger, &data) {
            self.tell(format!("the keys are not settled: {error}"));
            return;
        }
        let key = identity.signer().public_key();
        self.first_key.get_or_insert(key);
        let outside = Outside {
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            ports: Arc::new(self.lines.clone()),
            broker: Arc::new(self.broker.clone()),
        };
        if self.configured.is_empty() {
            self.note_configured(clock.wall());
        } else if std::mem::take(&mut self.edited) {
            // The old one was in force as far as the ledger goes.
            self.note_configured(time_of_the_last(&files).unwrap_or_else(|| clock.wall()));
        }
        let (settings, keys) = (Arc::clone(&self.settings), Arc::clone(&identity));
        let mut house = House::start(settings, ledger, keys, outside, &incidents).await;
        let begun = Instant::now();
        let mut plan = plan.iter().peekable();
        let over = begun + length;
        loop {
            let now = Instant::now();
            let next = plan.peek().map_or(over, |(at, _)| begun + *at).min(over);
            if now >= next && now < over {
                if let Some((_, event)) = plan.next() {
                    self.happen(event, &clock);
                    self.happen_in_the_house(event, &mut house, &files, &identity).await;
                }
                continue;
            }
            if self.disk.has_stopped() || now >= over {
                break;
            }
            if end.is_none() && now > begun + LAST_LIFE {
                self.broker.pass_on();
                let target = *self.owed.get_or_insert_with(|| files.head().borrow().seq);
                if self.broker.billing(|billing| billing.last) >= target {
                    break;
                }
            }
            sleep_until(next.min(now + LOOK)).await;
            if !house.supervise() {
                let ill = "the house says that it is ill";
                self.tell(ill);
                self.violations.push(ill.into());
                break;
            }
        }
        self.end_of(house, &files, end).await;
        self.offset = clock.kernel() - self.truth.now();
        // A moment for tasks that were told to end: they must find their disk dead, not come back to life.
        sleep(Duration::from_millis(1)).await;
    }

    async fn end_of(&mut self, house: House, files: &FileLedger, end: Option<End>) {
        self.remember_stored(files);
        match end {
            _ if self.disk.has_stopped() => {
                let power = self.rng.bool();
                self.tell(format!("stopped in the middle of a change, power cut: {power}"));
                if power {
                    self.disk.crash(self.rng.u64(..));
                } else {
                    self.disk.kill();
                }
                self.count(if power { "power cut within a step" } else { "kill within a step" });
            }
            None | Some(End::Orderly) => {
                let before = Instant::now();
                house.stop().await;
                if before.elapsed() > Duration::from_secs(5) {
                    self.violations.push(format!("the end took {:?}", before.elapsed()));
                }
                self.remember_stored(files);
                files.close();
                self.count("orderly end");
            }
            Some(End::Kill) => {
                self.disk.kill();
                self.count("kill");
            }
            Some(End::PowerCut) => {
                self.disk.crash(self.rng.u64(..));
                self.count("power cut");
            }
        }
    }

    fn note_configured(&mut self, at: Utc) {
        let at = self.configured.last().map_or(at, |(before, _)| at.max(*before));
        self.configured.push((at, Arc::clone(&self.settings)));
    }

    fn remember_stored(&mut self, files: &FileLedger) {
        let head = files.head().borrow().clone();
        self.stored = (head.seq, head.hash);
    }

    /// What was said to be stored is there, with the same hash.
    fn check_nothing_taken_back(&mut self, files: &FileLedger) {
        let (seq, hash) = self.stored.clone();
        if seq == 0 {
            return;
        }
        let kept = files.read(seq, 1, usize::MAX).ok().and_then(|lines| lines.into_iter().next());
        let same = kept.is_some_and(|line| {
            line.seq == seq && String::from_utf8_lossy(&line.bytes).contains(&format!("\"hash\":\"{hash}\""))
        });
        if !same {
            self.violations.push(format!("record {seq} was stored, and is not there any more"));
        }
    }

    fn count_habits(&mut self) {
        for line in self.lines.0.values() {
            for (habit, times) in line.occurred() {
                *self.faults.entry(habit).or_default() += times;
            }
        }
    }

    fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }
}
