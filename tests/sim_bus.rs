//! The production bus task and its judge, held against simulated meters on lines as slow as copper, and TCP peers.
//!
//! Whatever goes wrong on the line: no value may be stored that this very meter did not show at this very address
//! during this very sweep.

#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // a panic is a test's report

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use meter_gateway::{
    app::meter_plan,
    bus::{BusHealth, BusTask, DemandRequest, Now, RealPorts, Schedule, SerialPort, readings},
    clock::{Clock, SystemClock},
    config::{Bus, Link, Meter},
    ledger::{MemoryLedger, SharedLedger},
    model::{Dec, Origin, Reading, Slots, Verdict, flag},
    pipeline::BusJudge,
    profile::{self, SharedProfile, bytes_of, decode},
    protocol::{Address, Parity, Wire},
    sim::{Fault, LineOptions, Meters, PeerOptions, PtyLine, SimMeter, TcpFraming, TcpPeer, share},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

/// Fast enough for many sweeps, slow enough that pauses between frames can be measured.
const FAST: Wire = Wire { baud: 19_200, parity: Parity::None, stop_bits: 1 };
const SLOW: Wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };
/// Well above the meters' 20 to 40 ms.
const TIMEOUT: Duration = Duration::from_millis(120);
/// Sweeps of a meter that never says anything sound: each costs the line two seconds.
const SICK_SWEEPS: usize = 2;
/// No step of a test may take longer.
const PATIENCE: Duration = Duration::from_secs(25);

/// A type of meter with 32-bit points at these addresses; names with `energy` are registers. Holes are refused.
fn kind_of_meter(points: &[(&str, u16)]) -> SharedProfile {
    let head = "id = \"bench\"\nmanufacturer = \"bench\"\nmodel = \"bench\"\nmedium = \"electricity\"\n\
                protocol = \"modbus\"\nsource = \"bench\"\nverification = \"bench\"\nmax_words = 60\n\
                max_hole = 0\nturnaround_ms = 40\n";
    let rows = points.iter().map(|(name, address)| {
        let more = if name.contains("energy") {
            "unit = \"kWh\"\ndigits = 8\ndecimals = 2\nmax_per_hour = \"500000\"\n"
        } else {
            "unit = \"W\"\n"
        };
        format!(
            "[[point]]\nname = \"{name}\"\ntable = \"input\"\naddress = {address}\nkind = \"u32\"\n\
             order = \"ABCD\"\nscale = \"0.01\"\nsource = \"bench\"\n{more}"
        )
    });
    Arc::new(profile::load(&(head.to_owned() + &rows.collect::<String>()), "bench.toml").unwrap())
}

/// Three requests of the same shape: nothing but the time tells their RTU answers apart.
fn alike() -> SharedProfile {
    kind_of_meter(&[("energy_import_total", 0), ("power_active_total", 0x100), ("power_active_l1", 0x200)])
}

fn of_meter(meter: &SimMeter) -> String {
    let Address::Modbus(unit) = meter.address() else { panic!("{}", meter.address()) };
    name_of(unit)
}

fn name_of(unit: u8) -> String {
    format!("M{unit}")
}

fn meter(unit: u8, profile: &SharedProfile, interval_secs: u32) -> Meter {
    Meter {
        id: name_of(unit).parse().unwrap(),
        bus: "bench".parse().unwrap(),
        address: unit.into(),
        wire: None,
        profile: Arc::clone(profile),
        serial: None,
        multiplier: Dec::ONE,
        ct_ratio: Dec::ONE,
        pt_ratio: Dec::ONE,
        parent: None,
        building: None,
        unit_name: None,
        room: None,
        interval_secs,
        timeout: None,
        retries: None,
        max_per_hour: None,
        off_schedule_secs: None,
    }
}

fn twin(unit: u8, profile: &SharedProfile) -> SimMeter {
    SimMeter::new(unit, Arc::clone(profile), u64::from(unit))
}

fn serial(device: &Path, wire: Wire) -> Link {
    Link::Serial { device: device.to_owned(), wire }
}

fn line(wire: Wire, meters: &Meters) -> PtyLine {
    PtyLine::spawn(wire, Arc::clone(meters), LineOptions::default()).unwrap()
}

fn peer(framing: TcpFraming, meters: &Meters, options: PeerOptions) -> TcpPeer {
    TcpPeer::spawn((Ipv4Addr::LOCALHOST, 0).into(), framing, Arc::clone(meters), options).unwrap()
}

/// A bus at work.
struct Bench {
    readings: readings::Receiver,
    demands: mpsc::Sender<DemandRequest>,
    health: Arc<Mutex<BusHealth>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Bench {
    fn start(link: Link, meters: Vec<Meter>) -> Bench {
        Bench::with(link, TIMEOUT, meters)
    }

    fn with(link: Link, timeout: Duration, meters: Vec<Meter>) -> Bench {
        let bus = Bus { id: "bench".parse().unwrap(), link, timeout, retries: 1 };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let ledger: SharedLedger = Arc::new(MemoryLedger::new("00000000000000000000000000000001"));
        let (sender, readings) = readings::readings();
        let (demands, asked) = mpsc::channel(8);
        let (stop, shutdown) = watch::channel(false);
        let health = Arc::new(Mutex::new(BusHealth::default()));
        let now = Now { instant: Instant::now(), wall: clock.wall() };
        let plans = meters.iter().map(|meter| {
            let slots = Slots::new(chrono_tz::Asia::Shanghai, meter.interval_secs).ok();
            meter_plan(meter, &bus, slots)
        });
        let task = BusTask {
            schedule: Schedule::new(plans.collect(), now),
            judge: Box::new(BusJudge::new(meters, &ledger, Arc::clone(&clock))),
            bus,
            clock,
            ports: Arc::new(RealPorts),
            demands: asked,
            readings: sender,
            handed: Arc::default(),
            health: Arc::clone(&health),
            shutdown,
        };
        Bench { readings, demands, health, stop, task: tokio::spawn(task.run()) }
    }

    /// Takes readings until `enough` says so of all that came.
    async fn until(&mut self, mut enough: impl FnMut(&[Reading]) -> bool) -> Vec<Reading> {
        let mut taken = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while !enough(&taken) {
            match tokio::time::timeout_at(deadline, self.readings.next()).await {
                Ok(Some(reading)) => taken.push(reading),
                other => panic!("{other:?} after {taken:#?} {:#?}", self.health()),
            }
        }
        taken
    }

    /// So many readings of one meter, and all others that came meanwhile.
    async fn readings_of(&mut self, unit: u8, count: usize) -> Vec<Reading> {
        self.until(|taken| of(taken, unit).len() >= count).await
    }

    async fn healthy(&self, what: &str, wanted: impl Fn(&BusHealth) -> bool) -> BusHealth {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let health = self.health();
            if wanted(&health) {
                return health;
            }
            assert!(Instant::now() < deadline, "never {what}: {health:#?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn health(&self) -> BusHealth {
        self.health.lock().unwrap().clone()
    }

    async fn stop(self) -> BusHealth {
        self.stop.send_replace(true);
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
        self.health.lock().unwrap().clone()
    }
}

fn of(readings: &[Reading], unit: u8) -> Vec<&Reading> {
    readings.iter().filter(|reading| reading.meter.as_str() == name_of(unit)).collect()
}

fn has(reading: &Reading, flag: &str) -> bool {
    reading.flags.contains(flag)
}

/// Values of a reading that were read.
fn told(reading: &Reading) -> usize {
    reading.values.values().filter(|value| value.value.is_some()).count()
}

/// How many values were proved: each was shown by this unit at this address during the sweep.
fn prove(readings: &[Reading], meters: &Meters, profile: &SharedProfile) -> usize {
    let meters = meters.lock().unwrap();
    let mut proved = 0;
    for reading in readings {
        let meter = meters.iter().find(|m| of_meter(m) == reading.meter.as_str()).unwrap();
        let from = reading.scheduled_at - chrono::TimeDelta::milliseconds(1);
        let to = reading.taken_at.unwrap_or(reading.scheduled_at) + chrono::TimeDelta::seconds(5);
        for (name, value) in &reading.values {
            if value.value.is_none() {
                assert!(value.reason.is_some(), "no value and no reason: {reading:#?}");
                continue;
            }
            let cell = &profile.points.iter().find(|point| point.name == *name).unwrap().cell;
            let shown = meter.shown().filter(|shown| shown.at >= from && shown.at <= to).any(|shown| {
                let bytes = bytes_of(cell, &shown.question, &shown.payload);
                !bytes.is_empty() && decode(cell, &bytes).value.ok() == value.value
            });
            assert!(shown, "{} never showed {name} = {:?}: {reading:#?}", reading.meter, value.value);
            proved += 1;
        }
    }
    proved
}

/// A healthy meter beside a sick one on a serial line: the healthy one has `sweeps` readings, all of them good.
async fn beside(fault: Fault, sweeps: usize) -> (Vec<Reading>, BusHealth) {
    let profile = alike();
    let meters = share(vec![twin(1, &profile), twin(2, &profile).with(fault)]);
    let line = line(FAST, &meters);
    let mut bench =
        Bench::start(serial(line.path(), FAST), vec![meter(1, &profile, 0), meter(2, &profile, 0)]);
    let readings = bench.until(|all| of(all, 1).len() >= sweeps && of(all, 2).len() >= SICK_SWEEPS).await;
    let health = bench.stop().await;
    let good = of(&readings, 1);
    assert!(good.iter().all(|r| r.verdict == Verdict::Good && told(r) == 3), "{good:#?}");
    let proved = prove(&readings, &meters, &profile);
    assert!(proved >= 3 * sweeps);
    assert_eq!(line.collisions(), 0);
    let silence = line.shortest_silence().unwrap();
    assert!(silence >= FAST.char_time() * 7 / 2, "{silence:?} between two frames");
    (readings, health)
}

fn nothing_but(readings: &[Reading], flags: &[&str]) {
    let sick = of(readings, 2);
    assert!(sick.len() >= SICK_SWEEPS);
    for reading in sick {
        assert_eq!((reading.origin, told(reading)), (Origin::Missing, 0), "{reading:#?}");
        assert_eq!((reading.verdict, reading.taken_at), (Verdict::Bad, None));
        assert!(flags.iter().any(|flag| has(reading, flag)), "{:?}, expected {flags:?}", reading.flags);
    }
}

#[tokio::test]
async fn a_dead_meter_is_missing_and_harms_nobody() {
    let (readings, health) = beside(Fault::Dead, 20).await;
    nothing_but(&readings, &[flag::NO_ANSWER]);
    assert!(health.meters[1].failures >= 2);
    assert_eq!(health.meters[1].last_answer, None);
    assert_eq!(health.meters[0].failures, 0);
    assert!(health.up && health.answered >= 60 && health.silent >= 3);
}

#[tokio::test]
async fn an_answer_that_is_always_too_late_is_never_taken_for_another() {
    let (readings, health) = beside(Fault::LateBy(TIMEOUT + Duration::from_millis(50)), 60).await;
    nothing_but(&readings, &[flag::NO_ANSWER]);
    let late = health.meters[1].late.unwrap();
    assert!(late >= TIMEOUT && late <= TIMEOUT + Duration::from_millis(250), "{late:?}");
    let evidence = of(&readings, 2)[0].evidence[flag::NO_ANSWER].as_str().unwrap();
    assert!(evidence.contains("too late"), "{evidence}");
}

/// Delays beyond the time for which a line is listened to after a timeout.
const VERY_LATE_MS: [u64; 5] = [150, 330, 390, 450, 700];

/// Its answers come while the gateway already asks something of the same shape.
#[tokio::test]
async fn answers_that_come_in_the_middle_of_the_next_question_are_never_taken_for_its_answer() {
    let always = |late| async move {
        let profile = alike();
        let meters = share(vec![twin(1, &profile).with(Fault::LateBy(Duration::from_millis(late)))]);
        let line = line(FAST, &meters);
        let mut bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &profile, 0)]);
        let readings = bench.readings_of(1, 3).await; // with growing pauses between them
        bench.stop().await;
        prove(&readings, &meters, &profile);
    };
    join_all(VERY_LATE_MS.map(always)).await;
}

#[tokio::test]
async fn a_meter_that_was_late_once_is_not_misunderstood_afterwards() {
    let once = |late| async move {
        let profile = alike();
        let meters = share(vec![twin(1, &profile)]);
        let line = line(FAST, &meters);
        let mut bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &profile, 0)]);
        let mut readings = bench.readings_of(1, 2).await;
        meters.lock().unwrap()[0].faults().add(Fault::LateBy(Duration::from_millis(late)));
        readings.extend(bench.readings_of(1, 1).await);
        meters.lock().unwrap()[0].faults().clear();
        let well = |taken: &[Reading]| taken.iter().filter(|r| r.verdict == Verdict::Good).count() >= 2;
        readings.extend(bench.until(well).await);
        bench.stop().await;
        assert!(prove(&readings, &meters, &profile) >= 12);
    };
    join_all(VERY_LATE_MS.map(once)).await;
}

/// A reload, a crash: the next one asks something of the same shape while an answer to the last one is still to come.
#[tokio::test]
async fn whoever_opens_a_line_takes_no_answer_to_who_had_it_before() {
    let one = kind_of_meter(&[("energy_import_total", 0)]);
    let other = kind_of_meter(&[("energy_import_total", 0x100)]);
    let meters = share(vec![twin(1, &alike()).with(Fault::LateBy(Duration::from_millis(400)))]);
    let line = line(FAST, &meters);
    let bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &one, 0)]);
    bench.healthy("silent", |health| health.silent > 0).await;
    bench.task.abort();
    assert!(bench.task.await.unwrap_err().is_cancelled());
    let mut bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &other, 0)]);
    let late = bench.readings_of(1, 1).await;
    meters.lock().unwrap()[0].faults().clear();
    let well = |taken: &[Reading]| taken.iter().any(|reading| reading.verdict == Verdict::Good);
    let readings = bench.until(well).await;
    bench.stop().await;
    prove(&late, &meters, &other);
    assert!(prove(&readings, &meters, &other) > 0);
}

#[tokio::test]
async fn noise_costs_answers_and_never_forges_one() {
    let (readings, health) = beside(Fault::Noisy { percent: 25 }, 12).await;
    let noisy = of(&readings, 2);
    assert!(health.garbled > 0, "{health:#?}");
    assert!(noisy.iter().any(|reading| reading.verdict == Verdict::Good), "a second try brings most of them");
    for reading in noisy.iter().filter(|reading| told(reading) < 3) {
        assert!(has(reading, flag::GARBLED) || has(reading, flag::NO_ANSWER), "{reading:#?}");
    }
}

#[tokio::test]
async fn a_truncated_answer_is_garbled() {
    let (readings, _) = beside(Fault::Truncated, 10).await;
    nothing_but(&readings, &[flag::GARBLED]);
    assert!(of(&readings, 2)[0].evidence[flag::GARBLED].as_str().unwrap().contains("bytes"));
}

#[tokio::test]
async fn an_answer_under_another_number_is_garbled() {
    let (readings, _) = beside(Fault::WrongUnit, 10).await;
    nothing_but(&readings, &[flag::GARBLED]);
    let evidence = of(&readings, 2)[0].evidence[flag::GARBLED].as_str().unwrap();
    assert!(evidence.contains("unit 3 spoke, unit 2 was asked"), "{evidence}");
}

#[tokio::test]
async fn a_meter_that_restarts_is_missing_meanwhile_and_comes_back() {
    let profile = alike();
    let meters = share(vec![twin(1, &profile)]);
    let line = line(FAST, &meters);
    let mut bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &profile, 0)]);
    assert_eq!(bench.readings_of(1, 1).await[0].verdict, Verdict::Good);
    let from = chrono::Utc::now();
    let until = Some(from + chrono::TimeDelta::milliseconds(2500));
    meters.lock().unwrap()[0].faults().add(Fault::Silent { from, until });
    let mut away = false;
    let readings = bench
        .until(|taken| {
            away |= taken.last().is_some_and(|r| r.origin == Origin::Missing);
            away && taken.last().is_some_and(|r| r.verdict == Verdict::Good)
        })
        .await;
    assert!(prove(&readings, &meters, &profile) > 0);
    let health = bench.healthy("well again", |health| health.meters[0].failures == 0).await;
    assert!(!health.meters[0].backed_off);
    assert_eq!(line.collisions(), 0);
}

#[tokio::test]
async fn while_a_silent_meter_is_spared_each_of_its_slots_says_so() {
    let profile = alike();
    let meters = share(vec![twin(1, &profile).with(Fault::Dead)]);
    let line = line(FAST, &meters);
    let mut bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &profile, 1)]);
    let readings = bench.until(|taken| taken.iter().any(|r| has(r, flag::BACKED_OFF))).await;
    let asked = readings.iter().filter(|r| has(r, flag::NO_ANSWER)).count();
    assert!(asked >= 3, "spared after {asked} attempts");
    let slots: Vec<i64> = readings.iter().map(|r| r.scheduled_at.timestamp()).collect();
    assert!(slots.windows(2).all(|pair| pair[1] - pair[0] == 1), "{slots:?}");
}

#[tokio::test]
async fn an_adapter_that_hears_itself_is_no_hindrance() {
    let profile = alike();
    let meters = share(vec![twin(1, &profile), twin(2, &profile).with(Fault::Dead)]);
    let options = LineOptions { echo: true, ..LineOptions::default() };
    let line = PtyLine::spawn(SLOW, Arc::clone(&meters), options).unwrap();
    let both = vec![meter(1, &profile, 0), meter(2, &profile, 0)];
    let mut bench = Bench::start(serial(line.path(), SLOW), both);
    let readings = bench.until(|all| of(all, 1).len() >= 5 && of(all, 2).len() >= SICK_SWEEPS).await;
    bench.stop().await;
    assert!(of(&readings, 1).iter().all(|r| r.verdict == Verdict::Good && told(r) == 3));
    nothing_but(&readings, &[flag::NO_ANSWER]);
    prove(&readings, &meters, &profile);
    assert_eq!(line.collisions(), 0);
}

/// The gateway's profile has a point that the meter has not.
#[tokio::test]
async fn a_refused_block_is_split_and_the_split_is_remembered() {
    let names = ["energy_import_total", "power_active_total", "power_active_l1", "power_active_l2"];
    let wanted: Vec<(&str, u16)> = names.into_iter().zip((0..).step_by(2)).collect();
    let profile = kind_of_meter(&wanted);
    let mut without = wanted;
    without.remove(2);
    let meters = share(vec![twin(1, &kind_of_meter(&without))]);
    let line = line(FAST, &meters);
    let mut bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &profile, 0)]);
    let readings = bench.readings_of(1, 4).await;
    for reading in &readings {
        let values = &reading.values;
        assert_eq!((told(reading), values.len()), (3, 4), "{reading:#?}");
        let missing = &values[&"power_active_l1".parse().unwrap()];
        assert_eq!(missing.reason.as_deref(), Some(flag::REFUSED));
        assert!(has(reading, flag::REFUSED));
        assert_eq!((reading.origin, reading.verdict), (Origin::Measured, Verdict::Suspect));
    }
    prove(&readings, &meters, &profile);
    // Four at once, two and two, one and one; a point refused in three sweeps is not asked again before an hour has passed.
    let health = bench.stop().await;
    assert_eq!(health.refused, 5, "{:#?}", health.trace);
}

#[tokio::test]
async fn one_failed_request_takes_nothing_from_the_others() {
    let profile = alike();
    let meters = share(vec![
        twin(1, &kind_of_meter(&[("energy_import_total", 0), ("power_active_total", 0x100)])),
        twin(2, &kind_of_meter(&[("power_active_total", 0x100), ("power_active_l1", 0x200)])),
    ]);
    let line = line(FAST, &meters);
    let both = vec![meter(1, &profile, 0), meter(2, &profile, 0)];
    let mut bench = Bench::start(serial(line.path(), FAST), both);
    let readings = bench.until(|all| of(all, 1).len() >= 2 && of(all, 2).len() >= 2).await;
    for reading in of(&readings, 1) {
        assert_eq!((told(reading), reading.values.len()), (2, 3));
        assert_eq!((reading.origin, reading.verdict), (Origin::Measured, Verdict::Suspect));
    }
    for reading in of(&readings, 2) {
        assert_eq!((told(reading), reading.values.len()), (2, 3));
        assert_eq!((reading.origin, reading.verdict), (Origin::Measured, Verdict::Bad), "without a register");
    }
    prove(&readings, &meters, &profile);
}

#[tokio::test]
async fn the_wire_s_silence_is_kept_and_its_time_is_used() {
    let profile = alike();
    let mut quick = twin(1, &profile);
    quick.faults().think(Duration::from_millis(1), Duration::from_millis(3));
    let meters = share(vec![quick]);
    let line = line(SLOW, &meters);
    let mut bench = Bench::start(serial(line.path(), SLOW), vec![meter(1, &profile, 0)]);
    let readings = bench.readings_of(1, 30).await;
    bench.stop().await;
    assert!(readings.iter().all(|reading| reading.verdict == Verdict::Good));
    assert_eq!(prove(&readings, &meters, &profile), 90);
    assert_eq!(line.collisions(), 0);
    assert!(line.shortest_silence().unwrap() >= SLOW.silence(), "{:?}", line.shortest_silence());
}

async fn through_a_peer(framing: TcpFraming) {
    let profile = alike();
    let meters = share(vec![
        twin(1, &profile),
        twin(2, &profile).with(Fault::Dead),
        twin(3, &profile).with(Fault::LateBy(TIMEOUT + Duration::from_millis(50))),
        twin(4, &profile).with(Fault::Noisy { percent: 40 }),
        twin(5, &profile).with(Fault::WrongUnit),
        twin(6, &profile).with(Fault::Truncated),
    ]);
    let wire = (framing == TcpFraming::Rtu).then_some(FAST);
    let peer = peer(framing, &meters, PeerOptions { wire, ..PeerOptions::default() });
    let address = peer.address().to_string();
    let link = match framing {
        TcpFraming::Tcp => Link::Tcp { address },
        TcpFraming::Rtu => Link::SerialOverTcp { address, wire },
    };
    let all = (1..=6).map(|unit| meter(unit, &profile, 0)).collect();
    let mut bench = Bench::start(link, all);
    let readings = bench.until(|taken| (1..=6).all(|unit| of(taken, unit).len() >= SICK_SWEEPS)).await;
    let health = bench.stop().await;
    assert!(of(&readings, 1).iter().all(|r| r.verdict == Verdict::Good && told(r) == 3), "{readings:#?}");
    for unit in [2, 3, 5, 6] {
        assert!(
            of(&readings, unit).iter().all(|r| r.origin == Origin::Missing),
            "unit {unit}: {readings:#?}"
        );
    }
    assert!(prove(&readings, &meters, &profile) >= 6);
    assert!(health.up && health.fault.is_none(), "{health:#?}");
    assert_eq!(peer.collisions(), 0);
}

#[tokio::test]
async fn modbus_tcp_brings_the_same_meters() {
    through_a_peer(TcpFraming::Tcp).await;
}

#[tokio::test]
async fn a_transparent_serial_server_brings_the_same_meters() {
    through_a_peer(TcpFraming::Rtu).await;
}

/// What a fault of the line looks like from outside: once, as a fault of the bus; each slot is told as missing.
fn is_told_as_bus_down(readings: &[Reading]) {
    assert!(!readings.is_empty());
    for reading in readings {
        assert_eq!((reading.origin, told(reading)), (Origin::Missing, 0));
        assert_eq!(reading.flags, BTreeSet::from([flag::BUS_DOWN.to_owned()]), "{reading:#?}");
    }
}

#[tokio::test]
async fn an_adapter_that_is_pulled_and_plugged_in_again_is_one_fault_of_the_bus() {
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("adapter");
    let plug = |meters: &Meters| {
        let options = LineOptions { symlink: Some(device.clone()), ..LineOptions::default() };
        PtyLine::spawn(FAST, Arc::clone(meters), options).unwrap()
    };
    let profile = alike();
    let meters = share(vec![twin(1, &profile), twin(2, &profile)]);
    let mut line = plug(&meters);
    let both = vec![meter(1, &profile, 1), meter(2, &profile, 1)];
    let mut bench = Bench::start(serial(&device, FAST), both);
    let mut readings = bench.readings_of(2, 1).await;
    line.unplug();
    let down = bench.healthy("down", |health| !health.up).await;
    let down_since = down.since;
    let away = bench.until(|all| of(all, 1).len() >= 2 && of(all, 2).len() >= 2).await;
    let down = bench.health();
    assert_eq!(down.since, down_since, "one fault, however often the line is tried");
    assert!(down.fault.as_deref().unwrap().contains("adapter"), "{down:#?}");
    assert!(down.meters.iter().all(|meter| meter.failures == 0 && !meter.backed_off), "{down:#?}");
    is_told_as_bus_down(&away[1..]); // the first may have been under way
    readings.extend(away);
    let line = plug(&meters);
    let back = bench.until(|all| all.iter().filter(|r| r.verdict == Verdict::Good).count() >= 2).await;
    let health = bench.stop().await;
    assert!(health.up && health.fault.is_none());
    readings.extend(back);
    assert!(prove(&readings, &meters, &profile) >= 9);
    assert_eq!(line.collisions(), 0);
}

#[tokio::test]
async fn a_peer_that_goes_away_and_comes_back_is_one_fault_of_the_bus() {
    let profile = alike();
    let meters = share(vec![twin(1, &profile)]);
    let mut peer = peer(TcpFraming::Tcp, &meters, PeerOptions::default());
    let address = peer.address().to_string();
    let mut bench = Bench::start(Link::Tcp { address: address.clone() }, vec![meter(1, &profile, 1)]);
    let mut readings = bench.readings_of(1, 1).await;
    peer.stop().await;
    let since = bench.healthy("down", |health| !health.up).await.since;
    let away = bench.readings_of(1, 3).await;
    let down = bench.health();
    assert_eq!(down.since, since);
    assert!(down.fault.as_deref().unwrap().contains(&address), "{down:#?}");
    is_told_as_bus_down(&away);
    assert_eq!(down.meters[0].failures, 0);
    peer.start().unwrap();
    readings.extend(away);
    readings.extend(bench.until(|all| all.iter().any(|r| r.verdict == Verdict::Good)).await);
    assert!(bench.health().up);
    prove(&readings, &meters, &profile);
}

#[tokio::test]
async fn a_device_in_use_is_named_together_with_its_user() {
    let profile = alike();
    let line = line(FAST, &share(vec![twin(1, &profile)]));
    let held = SerialPort::open(line.path(), FAST).unwrap();
    let bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &profile, 0)]);
    let fault = bench.healthy("refused", |health| health.fault.is_some()).await.fault.unwrap();
    assert!(fault.contains(line.path().to_str().unwrap()), "{fault}");
    assert!(fault.contains("in use by"), "{fault}");
    assert!(fault.contains(&format!("process {}", std::process::id())), "{fault}");
    drop(held);
    bench.healthy("up", |health| health.up && health.answered > 0).await;
}

#[tokio::test]
async fn a_device_that_is_not_there_is_named() {
    let bench =
        Bench::start(serial(&PathBuf::from("/dev/no-such-adapter"), FAST), vec![meter(1, &alike(), 1)]);
    let health = bench.healthy("down", |health| health.fault.is_some()).await;
    assert!(health.fault.unwrap().contains("/dev/no-such-adapter: cannot be opened"));
}

#[tokio::test]
async fn a_bus_that_hangs_delays_no_other() {
    let profile = alike();
    let meters = share(vec![twin(1, &profile)]);
    let line = line(FAST, &meters);
    // It accepts by its backlog and never says a word.
    let mute = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = mute.local_addr().unwrap().to_string();
    let hanging = Bench::with(Link::Tcp { address }, PATIENCE, vec![meter(1, &profile, 0)]);
    hanging.healthy("open", |health| health.up).await;
    let mut bench = Bench::start(serial(line.path(), FAST), vec![meter(1, &profile, 0)]);
    let began = Instant::now();
    let readings = bench.readings_of(1, 10).await;
    // Three exchanges of at most 40 ms to think and 19 characters: far below a timeout of the other bus.
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(readings.iter().all(|reading| reading.verdict == Verdict::Good));
    let stuck = hanging.health();
    assert_eq!((stuck.answered, stuck.silent), (0, 0));
    prove(&readings, &meters, &profile);
}

#[tokio::test]
async fn a_demand_is_served_between_sweeps_and_leaves_no_record() {
    let profile = alike();
    let meters = share(vec![twin(1, &profile), twin(2, &profile)]);
    let line = line(FAST, &meters);
    let both = vec![meter(1, &profile, 0), meter(2, &profile, 86_400)];
    let mut bench = Bench::start(serial(line.path(), FAST), both);
    bench.readings_of(1, 1).await;
    let (reply, answer) = oneshot::channel();
    let request = DemandRequest { meter: name_of(2).parse().unwrap(), keep: false, reply };
    bench.demands.send(request).await.unwrap();
    let reading = timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert_eq!((reading.meter.as_str(), told(&reading)), ("M2", 3));
    let others = bench.readings_of(1, 2).await;
    assert!(of(&others, 2).is_empty());
    prove(&[reading], &meters, &profile);
}
