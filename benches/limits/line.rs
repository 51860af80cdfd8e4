//! The line: what an exchange of the production bus task takes, against what the wire needs at least.
//!
//! The least an exchange can take: the characters of both frames, one silence of 3.5 characters before the request,
//! and the meter's time to think, which holds the silence after the request. A bare loop on the same simulated
//! line shows how much of the rest is the operating system's and the simulator's.

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use meter_gateway::{
    app::meter_plan,
    bus::{BusHealth, BusTask, DemandRequest, Now, Schedule, readings},
    clock::{Clock, SystemClock},
    config::{Bus, Link, Meter},
    ledger::{MemoryLedger, SharedLedger},
    pipeline::BusJudge,
    profile::{Planned, SharedProfile},
    protocol::{
        Pace, Wire,
        modbus::{REPLY_OVERHEAD_CHARS, REQUEST_CHARS, crc},
    },
    sim::{LineOptions, PtyLine, SimMeter, share},
};
use tokio::sync::{mpsc, watch};

use crate::{
    samples,
    table::{self, millis, ratio},
};

/// Meters on the line.
const METERS: u8 = 4;
/// Sweeps before the measurement: the first of each meter.
const WARM_UP: usize = METERS as usize;
/// The usual electronic meter, and one that answers as soon as the standard lets it (3.65 ms at 9600 baud).
const THINKING: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(4)];

/// What some exchanges took.
struct Took {
    exchanges: u32,
    wall: Duration,
    busy: Duration,
}

pub async fn run(quick: bool) {
    let budget = Duration::from_millis(if quick { 300 } else { 4000 });
    let mut rows = Vec::new();
    for baud in [9600, 19_200, 115_200] {
        for kind in samples::KINDS {
            for think in THINKING {
                rows.push(row(samples::wire(baud), kind, think, budget).await);
            }
        }
    }
    let columns = [
        "baud, meter, thinking",
        "exchanges",
        "exchange ms",
        "wire ms",
        "ratio",
        "busy %",
        "beyond the wire us",
        "bare loop ratio",
    ];
    table::print("Line: one exchange of the bus task / what the wire needs", &columns, &rows);
}

async fn row(wire: Wire, kind: &str, think: Duration, budget: Duration) -> Vec<String> {
    let profile = samples::profile(kind);
    let twin = |unit| {
        let mut twin = SimMeter::new(unit, Arc::clone(&profile), u64::from(unit));
        twin.faults().think(think, think);
        twin
    };
    let line = PtyLine::spawn(wire, share((1..=METERS).map(twin).collect()), LineOptions::default()).unwrap();
    let (took, requests) = through_the_task(&line, wire, &profile, budget).await;
    assert_eq!(line.collisions(), 0, "the silence was broken");
    let path = line.path().to_owned();
    let asked = requests.clone();
    let bare = tokio::task::spawn_blocking(move || bare_loop(&path, wire, &asked, budget / 2)).await.unwrap();
    let least = least(wire, &requests, think);
    let each = took.wall / took.exchanges;
    vec![
        format!("{}, {kind}, {} ms", wire.baud, think.as_millis()),
        took.exchanges.to_string(),
        millis(each),
        millis(least),
        ratio(each, least),
        (took.busy.as_nanos() * 100 / took.wall.as_nanos().max(1)).to_string(),
        each.saturating_sub(least).as_micros().to_string(),
        ratio(bare.wall / bare.exchanges, least),
    ]
}

/// The mean of the requests' least times.
fn least(wire: Wire, requests: &[Planned], think: Duration) -> Duration {
    let pace = Pace::Serial(wire);
    let one = |planned: &Planned| {
        let reply = REPLY_OVERHEAD_CHARS + 2 * u32::from(planned.question.modbus().unwrap().count);
        // `exchange_time` counts the silence after the request on its own; a meter thinks during it.
        pace.exchange_time(REQUEST_CHARS, reply, think.saturating_sub(wire.silence()))
    };
    requests.iter().map(one).sum::<Duration>() / u32::try_from(requests.len()).unwrap()
}

/// Sweeps without pause for about `budget`.
async fn through_the_task(
    line: &PtyLine,
    wire: Wire,
    profile: &SharedProfile,
    budget: Duration,
) -> (Took, Vec<Planned>) {
    let over = Link::Serial { device: line.path().to_owned(), wire };
    let bus = Bus { id: "bench".parse().unwrap(), link: over, timeout: Duration::from_secs(1), retries: 1 };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let ledger: SharedLedger = Arc::new(MemoryLedger::new("00000000000000000000000000000001"));
    let (sender, mut readings) = readings::readings();
    let (_demands, asked) = mpsc::channel::<DemandRequest>(1);
    let (stop, shutdown) = watch::channel(false);
    let health = Arc::new(Mutex::new(BusHealth::default()));
    let now = Now { instant: tokio::time::Instant::now(), wall: clock.wall() };
    let meters: Vec<Meter> = (1..=METERS).map(|unit| samples::meter(unit, profile)).collect();
    let plans: Vec<_> = meters.iter().map(|meter| meter_plan(meter, &bus, None)).collect();
    let requests = plans[0].requests.clone();
    let task = BusTask {
        schedule: Schedule::new(plans, now),
        judge: Box::new(BusJudge::new(meters, &ledger, Arc::clone(&clock))),
        bus,
        clock,
        ports: std::sync::Arc::new(meter_gateway::bus::RealPorts),
        demands: asked,
        readings: sender,
        handed: Arc::default(),
        health: Arc::clone(&health),
        shutdown,
    };
    let task = tokio::spawn(task.run());
    for _ in 0..WARM_UP {
        readings.next().await.unwrap();
    }
    let (began, before) = (Instant::now(), health.lock().unwrap().clone());
    let mut sweeps = 0;
    while began.elapsed() < budget || sweeps < METERS.into() {
        readings.next().await.unwrap();
        sweeps += 1;
    }
    let (wall, after) = (began.elapsed(), health.lock().unwrap().clone());
    stop.send_replace(true);
    task.await.unwrap();
    assert_eq!((after.silent, after.garbled, after.refused), (0, 0, 0), "{:#?}", after.trace);
    let exchanges = u32::try_from(sweeps * requests.len()).unwrap();
    // The task goes on while the reading is handed over; more than that would be registers that were read again.
    let answered = after.answered - before.answered;
    assert!(answered.abs_diff(exchanges.into()) <= 1, "{answered} answers in {sweeps} sweeps");
    (Took { exchanges, wall, busy: after.busy.saturating_sub(before.busy) }, requests)
}

/// The same questions from a thread that does nothing but ask, wait and keep the silence.
fn bare_loop(path: &Path, wire: Wire, requests: &[Planned], budget: Duration) -> Took {
    let mut port = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut exchanges = 0;
    let mut answer = Vec::new();
    let began = Instant::now();
    while began.elapsed() < budget {
        for read in requests.iter().filter_map(|planned| planned.question.modbus()) {
            let ([a, b], [c, d]) = (read.address.to_be_bytes(), read.count.to_be_bytes());
            let mut frame = vec![1, read.table.function(), a, b, c, d];
            frame.extend(crc(&frame).to_le_bytes());
            answer.resize(REPLY_OVERHEAD_CHARS as usize + 2 * usize::from(read.count), 0);
            std::thread::sleep(wire.silence());
            port.write_all(&frame).unwrap();
            port.read_exact(&mut answer).unwrap();
            exchanges += 1;
        }
    }
    Took { exchanges, wall: began.elapsed(), busy: began.elapsed() }
}
