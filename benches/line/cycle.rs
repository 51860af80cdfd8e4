//! How long a cycle takes: well, with garbled replies, and with dead meters, each against the healthy one of this run.

use std::time::{Duration, Instant};

use meter_gateway::sim::{Fault, Meters, PtyLine};
use serde_json::Value;

use crate::{
    Lengths,
    gateway::Gateway,
    site::{METERS, WIRE, bench_profile, least, line, meters, started, wait},
    verdict::{Limit, Row, thousandths},
};

/// Dead in the third part.
const DEAD: [usize; 3] = [4, 14, 24];

/// A healthy line.
pub struct Clean {
    /// What one meter took.
    each: Duration,
    share: u128,
    collisions: u64,
    shortest_silence: Duration,
}

struct Bench {
    meters: Meters,
    line: PtyLine,
    gateway: Gateway,
}

impl Bench {
    /// The gateway sweeps without pause.
    fn start(prepare: impl FnOnce(&Meters)) -> Bench {
        let meters = meters(&bench_profile(), METERS);
        prepare(&meters);
        let line = line(&meters);
        let gateway = started(&line, METERS);
        wait("the first request", || line.requests() > 0);
        Bench { meters, line, gateway }
    }

    /// Answers that all meters have given.
    fn answers(&self) -> u64 {
        let meters = self.meters.lock().unwrap();
        meters.iter().map(|meter| meter.shown().count() as u64).sum()
    }

    /// Waits until the next answer is given, so that windows begin and end with one.
    fn edge(&self) -> (Instant, u64) {
        let before = self.answers();
        wait("an answer", || self.answers() > before);
        (Instant::now(), self.answers())
    }

    /// Readings without a value, and all.
    fn readings(&self) -> (usize, usize) {
        let exported = self.gateway.cli(&["ledger", "export"]).stdout;
        let records = exported.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let records = records.map(|line| serde_json::from_slice::<Value>(line).unwrap());
        let readings: Vec<Value> = records.filter(|record| record["type"] == "reading").collect();
        let lost =
            readings.iter().filter(|reading| reading["values"]["energy_import_total"]["value"].is_null());
        (lost.count(), readings.len())
    }
}

pub fn clean(length: Duration) -> Clean {
    let bench = Bench::start(|_| ());
    let (begun, before) = bench.edge();
    std::thread::sleep(length);
    let (ended, after) = bench.edge();
    let each = (ended - begun) / u32::try_from(after - before).unwrap();
    Clean {
        each,
        share: thousandths(least().as_nanos(), each.as_nanos()),
        collisions: bench.line.collisions(),
        shortest_silence: bench.line.shortest_silence().unwrap(),
    }
}

impl Clean {
    pub fn rows(&self) -> Vec<Row> {
        let silence = WIRE.char_time() * 7 / 2;
        let note = format!("{} us a meter, {} us at least", self.each.as_micros(), least().as_micros());
        let cut = u128::from(self.collisions) + u128::from(self.shortest_silence < silence);
        let shortest = format!(
            "shortest {} us, 3.5 characters are {} us",
            self.shortest_silence.as_micros(),
            silence.as_micros()
        );
        vec![
            Row::new("share of the cheapest plan's wire time", self.share, Limit::AtLeast(985), "")
                .noted(note),
            Row::new("silences cut short", cut * 1000, Limit::AtMost(0), "").noted(shortest),
        ]
    }
}

/// Exactly one of so many replies is garbled: its request is the n-th that the line has seen.
pub fn garbled(clean: &Clean, lengths: Lengths) -> Vec<Row> {
    let bench = Bench::start(|_| ());
    let spoil = |spoilt: bool| {
        for meter in bench.meters.lock().unwrap().iter_mut() {
            meter.faults().clear();
            if spoilt {
                meter.faults().add(Fault::Noisy { percent: 100 });
            }
        }
    };
    let (begun, before) = bench.edge();
    let mut count = 0;
    while begun.elapsed() < lengths.cycle {
        let next = bench.line.requests() / lengths.garbled * lengths.garbled + lengths.garbled;
        wait("requests", || bench.line.requests() + 1 >= next);
        spoil(true);
        wait("the garbled one", || bench.line.requests() >= next);
        spoil(false);
        count += 1;
    }
    // The last garbled reply has to be lived with too.
    let requests = bench.line.requests();
    wait("its end", || bench.line.requests() > requests + lengths.garbled / 2);
    let (ended, after) = bench.edge();
    let taken = ended - begun;
    let answered = u32::try_from(after - before).unwrap();
    let extra = taken.saturating_sub(clean.each * (answered - count)) / count;
    let one_percent = clean.each * 100 + extra;
    // Of a hundred replies one is garbled, and 99 meters are read.
    let ratio = thousandths(one_percent.saturating_sub(clean.each).as_nanos(), clean.each.as_nanos() * 99);
    let (lost, readings) = bench.readings();
    let note = format!("{count} of {answered} replies; {} ms for each", extra.as_millis());
    vec![
        Row::new("1 % of replies garbled: cycle / healthy cycle", ratio, Limit::AtMost(1020), "").noted(note),
        Row::new("1 % of replies garbled: readings lost", lost as u128 * 1000, Limit::AtMost(0), "")
            .noted(format!("of {readings}")),
    ]
}

/// Three of thirty never answer.
pub fn dead(clean: &Clean, lengths: Lengths) -> Vec<Row> {
    let bench = Bench::start(|meters| {
        let mut meters = meters.lock().unwrap();
        for dead in DEAD {
            meters[dead].faults().add(Fault::Dead);
        }
    });
    let begun = Instant::now();
    let living = u32::from(METERS) - u32::try_from(DEAD.len()).unwrap();
    let cycle = |from: (Instant, u64), to: (Instant, u64)| {
        let cycle = (to.0 - from.0) * living / u32::try_from(to.1 - from.1).unwrap();
        thousandths(cycle.as_nanos(), (clean.each * u32::from(METERS)).as_nanos())
    };
    let first = (begun, bench.answers());
    std::thread::sleep(lengths.first);
    let name = format!("3 of 30 meters dead, first {} s: cycle / healthy cycle", lengths.first.as_secs());
    let mut rows = vec![Row::new(name, cycle(first, bench.edge()), Limit::AtMost(1050), "")];
    if let Some((after, length)) = lengths.after {
        std::thread::sleep(after.saturating_sub(begun.elapsed()));
        let from = bench.edge();
        std::thread::sleep(length);
        let name = format!("3 of 30 meters dead, after {} s", after.as_secs());
        rows.push(Row::new(name, cycle(from, bench.edge()), Limit::AtMost(960), ""));
    }
    rows
}
