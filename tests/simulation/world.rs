//! One simulated year-in-seconds: a site, its gateway through several lives, and all that goes wrong, from one seed.
//!
//! The gateway is the production code (`app::House` on `FileLedger`); time, lines, broker and disk are simulated. Each
//! life has a tokio runtime of its own with paused time, so that dropping it is a SIGKILL.

use std::{
    collections::BTreeMap,
    fs,
    ops::{Range, RangeInclusive},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use chrono::TimeDelta;
use fastrand::Rng;
use futures_util::{
    future::{BoxFuture, FutureExt},
    task::noop_waker,
};
use meter_gateway::{
    app::{House, Outside, retain},
    billing::{rotate, settle},
    clock::{Clock, SimulatedClock},
    config::{self, Settings},
    identity::{Identity, PublicKey},
    ledger::{
        Cursor, FileLedger, Head, Ledger, LedgerError, Line, Options, ReadingQuery, SharedLedger,
        disk::sim::{Fault as DiskFault, SimDisk},
    },
    model::{Asker, ClockState, Dec, Draft, MeterId, Seq, Utc, Via},
    protocol::{Parity, Wire},
    sim::{Fault, LineState, SimClock, SimMeter, TcpFraming, VirtualLine, VirtualLines, share},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    broker::{Acks, Mode, Reach, SimBroker},
    site::{FULL_LINE, Site},
};

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
    /// The configuration was edited while nobody was at work.
    edited: bool,
    /// What was configured from when on, in the house's time.
    pub configured: Vec<(Utc, Arc<Settings>)>,
    /// Decides what is not drawn from `rng`, so that older seeds keep their histories.
    more: Rng,
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

/// Something that happens.
#[derive(Debug, Clone)]
enum Event {
    Line(usize, LineState),
    Meter(usize, usize, Option<Fault>),
    Exchanged(usize, usize),
    Broker(Mode),
    BrokerCrash,
    HangUp,
    Disk(DiskFault, u32),
    DiskLimit(u64),
    DiskHeal,
    Step(TimeDelta),
    Synchronise,
    TrustLost,
    ReadNow(usize, usize),
    Replay,
    StopAfter(u64),
    Reload,
    Retention,
    Rotation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Orderly,
    Kill,
    PowerCut,
}

/// The ledger on its own thread, waited for in real time: a commit takes no simulated time, and nothing else happens
/// meanwhile, so that one seed has one history.
struct Inline(Arc<FileLedger>);

impl Ledger for Inline {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn append(&self, drafts: Vec<Draft>) -> BoxFuture<'_, Result<Range<Seq>, LedgerError>> {
        let mut append = self.0.append(drafts);
        let waker = noop_waker();
        let mut context = std::task::Context::from_waker(&waker);
        let done = loop {
            match append.poll_unpin(&mut context) {
                std::task::Poll::Ready(done) => break done,
                std::task::Poll::Pending => thread::yield_now(),
            }
        };
        Box::pin(async { done })
    }

    fn head(&self) -> watch::Receiver<Head> {
        self.0.head()
    }

    fn first(&self) -> Seq {
        self.0.first()
    }

    fn read(&self, from: Seq, max_records: usize, max_bytes: usize) -> Result<Vec<Line>, LedgerError> {
        self.0.read(from, max_records, max_bytes)
    }

    fn latest(&self, meter: &MeterId) -> Result<Option<Line>, LedgerError> {
        self.0.latest(meter)
    }

    fn latest_slot(&self, meter: &MeterId) -> Option<Utc> {
        self.0.latest_slot(meter)
    }

    fn readings(&self, query: &ReadingQuery) -> Result<Vec<Line>, LedgerError> {
        self.0.readings(query)
    }

    fn cursor(&self, cursor: Cursor) -> Seq {
        self.0.cursor(cursor)
    }

    fn advance(&self, cursor: Cursor, to: Seq) {
        self.0.advance(cursor, to);
    }

    fn next_session(&self) -> u64 {
        self.0.next_session()
    }
}

impl World {
    pub fn new(recipe: Recipe) -> World {
        let mut rng = Rng::with_seed(recipe.seed);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let mut more = Rng::with_seed(recipe.seed ^ 0x6d6f_7265);
        let site = Site::draw(&mut rng, &mut more);
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
            let meters =
                meters.map(|meter| SimMeter::new(meter.unit, meter.profile.clone(), rng.u64(..))).collect();
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
            edited: false,
            site,
            all: Arc::clone(&settings),
            configured: Vec::new(),
            settings,
            more,
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
        self.tell("the last life, in peace");
        self.live(&[], RECOVERY, None);
        self.broker.pass_on();
    }

    /// What happens while nobody is at work: the configuration is edited, a bit of what was written flips.
    fn between_lives(&mut self) {
        if !self.recipe.clock_faults && self.more.u8(0..4) == 0 {
            self.reconfigure();
            self.edited = true;
        }
        if self.recipe.seed % 3 == 1 && self.more.bool() {
            self.flip_in_the_ledger();
            self.flip_in_the_index();
        }
    }

    fn reconfigure(&mut self) {
        let what = self.site.change(&mut self.more);
        self.settings = self.site.load(self.dir.path());
        self.tell(what);
    }

    /// In a sealed segment of which billing has everything: what it had not would be lost.
    fn flip_in_the_ledger(&mut self) {
        let dir = self.dir.path().join("data/ledger");
        let Ok(entries) = self.disk.mount().list(&dir) else { return };
        let number = |name: &str| name.strip_suffix(".seg")?.parse::<Seq>().ok();
        let mut segments: Vec<(Seq, String, u64)> = entries
            .into_iter()
            .filter_map(|entry| Some((number(&entry.name)?, entry.name, entry.bytes)))
            .collect();
        segments.sort();
        let has = self.broker.billing(|billing| billing.last);
        let sealed = segments.windows(2).filter(|pair| pair[1].0 - 1 <= has).count();
        if sealed == 0 {
            return;
        }
        let chosen = self.more.usize(0..sealed);
        let (first, name, bytes) = &segments[chosen];
        if self.disk.flip(&dir.join(name), self.more.u64(0..bytes * 8)) {
            self.tell(format!("a bit of {name} flips"));
            self.damaged.push(*first..=segments[chosen + 1].0 - 1);
            self.count("bit flipped in the ledger");
        }
    }

    fn flip_in_the_index(&mut self) {
        let mut files = Vec::new();
        let mut dirs: Vec<PathBuf> = vec![self.dir.path().join("data/index")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    dirs.push(entry.path());
                } else {
                    files.push(entry.path());
                }
            }
        }
        files.sort();
        let Some(path) = files.get(self.more.usize(0..files.len().max(1))) else { return };
        let mut bytes = fs::read(path).unwrap();
        if bytes.is_empty() {
            return;
        }
        let place = self.more.usize(0..bytes.len());
        bytes[place] ^= 1 << self.more.u8(0..8);
        fs::write(path, bytes).unwrap();
        self.count("bit flipped in the index");
    }

    fn heal(&mut self) {
        self.broker.set(Mode::WELL);
        self.disk.heal();
        self.disk.limit(u64::MAX);
        for line in self.lines.0.values() {
            line.set(LineState::default());
            for meter in line.meters().lock().unwrap().iter_mut() {
                meter.faults().clear();
            }
        }
    }

    /// What will go wrong in a life: moments after its begin, and what happens then.
    fn plan(&mut self) -> Vec<(Duration, Event)> {
        let mut plan = Vec::new();
        let secs = self.recipe.life.as_secs();
        let lines: Vec<usize> =
            self.lines.0.values().map(|line| line.meters().lock().unwrap().len()).collect();
        for _ in 0..self.rng.usize(0..12) {
            let at =
                Duration::from_secs(self.rng.u64(0..secs)) + Duration::from_millis(self.rng.u64(0..1000));
            let until = at
                + Duration::from_secs(if self.rng.bool() {
                    self.rng.u64(1..60)
                } else {
                    self.rng.u64(60..4000)
                });
            let bus = self.rng.usize(0..lines.len());
            let meter = self.rng.usize(0..lines[bus]);
            let rng = &mut self.rng;
            let (begin, end) = match rng.u8(0..17) {
                0 => (
                    Event::Line(bus, LineState { unplugged: true, echo: false }),
                    Event::Line(bus, LineState::default()),
                ),
                1 => (
                    Event::Line(bus, LineState { unplugged: false, echo: true }),
                    Event::Line(bus, LineState::default()),
                ),
                2 => (Event::Meter(bus, meter, Some(Fault::Dead)), Event::Meter(bus, meter, None)),
                3 => {
                    let late = Fault::LateBy(Duration::from_millis(rng.u64(250..900)));
                    (Event::Meter(bus, meter, Some(late)), Event::Meter(bus, meter, None))
                }
                4 => {
                    let noisy = Fault::Noisy { percent: rng.u8(5..90) };
                    (Event::Meter(bus, meter, Some(noisy)), Event::Meter(bus, meter, None))
                }
                5 => (Event::Meter(bus, meter, Some(Fault::Truncated)), Event::Meter(bus, meter, None)),
                6 => (Event::Meter(bus, meter, Some(Fault::WrongUnit)), Event::Meter(bus, meter, None)),
                7 => (Event::Exchanged(bus, meter), Event::ReadNow(bus, meter)),
                8 => (Event::Broker(Mode::out_of(Reach::Refuses)), Event::Broker(Mode::WELL)),
                9 => (Event::Broker(Mode::out_of(Reach::HalfOpen)), Event::Broker(Mode::WELL)),
                10 => {
                    let acks =
                        [Acks::Never, Acks::Late, Acks::Twice, Acks::Unknown, Acks::Shuffled, Acks::Refusing];
                    (
                        Event::Broker(Mode { acks: acks[rng.usize(0..6)], ..Mode::WELL }),
                        Event::Broker(Mode::WELL),
                    )
                }
                11 => (Event::Broker(Mode { consumer: false, ..Mode::WELL }), Event::Broker(Mode::WELL)),
                12 => (Event::BrokerCrash, Event::HangUp),
                13 => (Event::Broker(Mode::out_of(Reach::Mute)), Event::Replay),
                14 => {
                    let faults = [DiskFault::Write, DiskFault::Sync, DiskFault::NoSpace, DiskFault::ReadOnly];
                    (Event::Disk(faults[rng.usize(0..4)], rng.u32(1..40)), Event::DiskHeal)
                }
                15 => (Event::DiskLimit(rng.u64(0..4096)), Event::DiskHeal),
                _ => (Event::StopAfter(rng.u64(1..200)), Event::DiskHeal),
            };
            plan.push((at, begin));
            plan.push((until, end));
        }
        if self.recipe.clock_faults {
            for _ in 0..self.rng.usize(0..4) {
                let at = Duration::from_secs(self.rng.u64(0..secs));
                let by =
                    [TimeDelta::hours(1), TimeDelta::days(1), TimeDelta::minutes(7), TimeDelta::seconds(2)];
                let by = by[self.rng.usize(0..4)] * if self.rng.bool() { 1 } else { -1 };
                let event = match self.rng.u8(0..3) {
                    0 => Event::Step(by),
                    1 => Event::TrustLost,
                    _ => Event::Synchronise,
                };
                plan.push((at, event));
            }
        }
        self.plan_more(&mut plan, &lines);
        plan.sort_by_key(|(at, _)| *at);
        plan
    }

    fn plan_more(&mut self, plan: &mut Vec<(Duration, Event)>, lines: &[usize]) {
        let secs = self.recipe.life.as_secs();
        let into_minute = u64::try_from(self.truth.now().timestamp_millis()).unwrap_or_default() % 60_000;
        let rng = &mut self.more;
        let mut some = |most: usize, event: &Event| {
            for _ in 0..rng.usize(0..=most) {
                let mut at = rng.u64(0..secs * 1000);
                if rng.bool() {
                    at = at / 60_000 * 60_000 + 60_000 - into_minute + rng.u64(0..25_000); // while slots are read
                }
                plan.push((Duration::from_millis(at), event.clone()));
            }
        };
        some(1, &Event::Retention);
        some(1, &Event::Rotation);
        if !self.recipe.clock_faults {
            some(2, &Event::Reload);
        }
        // A full line of meters that think long: it takes a good part of a minute.
        if lines[0] >= FULL_LINE {
            for meter in 0..lines[0] {
                let slow = Fault::LateBy(Duration::from_millis(self.more.u64(150..290)));
                plan.push((Duration::ZERO, Event::Meter(0, meter, Some(slow))));
            }
        }
        // A line on which everybody is too slow.
        if self.more.u8(0..4) == 0 {
            let bus = self.more.usize(0..lines.len());
            for meter in 0..lines[bus] {
                let late = Fault::LateBy(Duration::from_millis(self.more.u64(250..900)));
                plan.push((Duration::ZERO, Event::Meter(bus, meter, Some(late))));
            }
        }
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
            self.life(plan, length, end).await;
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
            group_wait: Duration::ZERO,
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
        let mut target = None;
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
                let target = *target.get_or_insert_with(|| files.head().borrow().seq);
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

    async fn happen_in_the_house(
        &mut self,
        event: &Event,
        house: &mut House,
        files: &Arc<FileLedger>,
        identity: &Identity,
    ) {
        let (clock, ledger) = (Arc::clone(&house.telemetry().clock), Arc::clone(&house.telemetry().ledger));
        match event {
            Event::Reload => {
                self.reconfigure();
                self.note_configured(clock.wall());
                house.take_over(Arc::clone(&self.settings)).await;
            }
            Event::Retention => {
                let before = clock.wall() - TimeDelta::minutes(self.more.i64(0..120));
                tokio::spawn(retain(Arc::clone(files), ledger, clock, before)); // on a full disk its record waits
            }
            Event::Rotation => {
                if self.more.u8(0..3) == 0 {
                    self.disk.stop_after(self.more.u64(0..6)); // somewhere between the key, its record and its exchange
                }
                let stamp = (clock.wall(), clock.state());
                let who = Asker::new(Via::Mqtt("simulation".into()), None).unwrap();
                let done = rotate(identity, &ledger, &self.dir.path().join("data"), &who, stamp).await;
                self.tell(done.map_or_else(|error| error.to_string(), |_| "a new key".into()));
            }
            _ => {}
        }
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

    fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    #[allow(clippy::too_many_lines)] // one arm for each event
    fn happen(&mut self, event: &Event, clock: &SimulatedClock) {
        self.tell(format!("{event:?}"));
        let line = |bus: usize| self.lines.0.values().nth(bus).cloned();
        let name = match event {
            Event::Line(bus, state) => {
                if let Some(line) = line(*bus) {
                    line.set(*state);
                }
                if state.unplugged { "line unplugged" } else { "line echo" }
            }
            Event::Meter(bus, meter, fault) => {
                if let Some(line) = line(*bus)
                    && let Some(meter) = line.meters().lock().unwrap().get_mut(*meter)
                {
                    meter.faults().clear();
                    if let Some(fault) = fault {
                        meter.faults().add(*fault);
                    }
                }
                match fault {
                    Some(Fault::Dead) => "meter dead",
                    Some(Fault::LateBy(_)) => "meter late",
                    Some(Fault::Noisy { .. }) => "meter garbled",
                    Some(Fault::Truncated) => "meter truncated",
                    Some(Fault::WrongUnit) => "meter wrong unit",
                    Some(Fault::Silent { .. }) | None => return,
                }
            }
            Event::Exchanged(bus, meter) => {
                let small = "3.5".parse::<Dec>().unwrap();
                if let Some(line) = line(*bus)
                    && let Some(meter) = line.meters().lock().unwrap().get_mut(*meter)
                {
                    for point in ["energy_import_total", "volume_total", "heat_energy_total"] {
                        meter.set(point, small);
                    }
                }
                "meter exchanged"
            }
            Event::Broker(mode) => {
                self.broker.set(*mode);
                match mode {
                    Mode { reach: Reach::Refuses, .. } => "broker refuses",
                    Mode { reach: Reach::HalfOpen, .. } => "broker half-open",
                    Mode { reach: Reach::Mute, .. } => "broker mute",
                    Mode { consumer: false, .. } => "nobody subscribed",
                    Mode { acks: Acks::Prompt, .. } => return,
                    Mode { .. } => "broker acknowledges wrongly",
                }
            }
            Event::BrokerCrash => {
                self.broker.crash();
                "broker crash"
            }
            Event::HangUp => {
                self.broker.hang_up();
                "broker hangs up"
            }
            Event::Disk(fault, times) => {
                self.disk.inject(*fault, *times);
                "disk fault"
            }
            Event::DiskLimit(more) => {
                self.disk.limit(self.disk.used() + more);
                "disk full"
            }
            Event::DiskHeal => {
                self.disk.heal();
                self.disk.limit(u64::MAX);
                return;
            }
            Event::Step(by) => {
                self.steps.push(self.truth.now());
                clock.step(*by);
                self.synced = false;
                "clock stepped"
            }
            Event::Synchronise => {
                self.steps.push(self.truth.now());
                let by = self.truth.now() - clock.kernel();
                clock.step_and_synchronise(by);
                self.synced = true;
                "clock synchronised"
            }
            Event::TrustLost => {
                self.steps.push(self.truth.now());
                clock.synchronise(false);
                self.synced = false;
                "clock trust lost"
            }
            Event::ReadNow(bus, unit) => {
                let id = format!("M-{bus}-{}", unit + 1);
                let id_of_command = self.rng.u64(..).to_string();
                self.broker
                    .say("command", &json!({"id": id_of_command, "name": "read_now", "args": {"meter": id}}));
                "read_now"
            }
            Event::Replay => {
                let last = self.broker.billing(|billing| billing.last);
                self.broker.set(Mode::WELL);
                if last > 0 {
                    let from = self.rng.u64(1..=last);
                    let args = json!({"from": from, "to": self.rng.u64(from..=last)});
                    let id = self.rng.u64(..).to_string();
                    self.broker.say("command", &json!({"id": id, "name": "replay", "args": args}));
                }
                "replay"
            }
            Event::StopAfter(changes) => {
                self.disk.stop_after(*changes);
                return;
            }
            Event::Reload => "configuration reloaded",
            Event::Retention => "retention",
            Event::Rotation => "key rotated",
        };
        self.count(name);
    }
}
