//! What goes wrong: when it begins and ends, and what then happens to lines, meters, broker, disk, clock and configuration.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use chrono::TimeDelta;
use fastrand::Rng;
use meter_gateway::{
    app::{House, retain},
    billing::rotate,
    clock::SimulatedClock,
    identity::Identity,
    ledger::{FileLedger, disk::sim::Fault as DiskFault},
    model::{Asker, Dec, Seq, Via},
    sim::{Fault, Habit, LineState},
};
use serde_json::json;

use super::{
    super::{
        broker::{Acks, Mode, Reach},
        site::FULL_LINE,
    },
    World,
};

/// Something that happens.
#[derive(Debug, Clone)]
pub enum Event {
    Line(usize, LineState),
    Habit(usize, Option<Habit>),
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

impl World {
    /// What happens while nobody is at work: the configuration is edited, a bit of what was written flips.
    pub(super) fn between_lives(&mut self) {
        if !self.recipe.clock_faults && self.more.u8(0..4) == 0 {
            self.reconfigure();
            self.edited = true;
        }
        if self.recipe.seed % 3 == 1 && self.more.bool() {
            self.flip_in_the_ledger();
            self.flip_in_the_index();
        }
    }

    pub(super) fn reconfigure(&mut self) {
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

    pub(super) fn heal(&mut self) {
        self.quiet.heal();
        self.broker.set(Mode::WELL);
        self.disk.heal();
        self.disk.limit(u64::MAX);
        for line in self.lines.0.values() {
            line.set(LineState::default());
            line.take_up(None);
            for meter in line.meters().lock().unwrap().iter_mut() {
                meter.faults().clear();
            }
        }
    }

    /// What will go wrong in a life: moments after its begin, and what happens then.
    pub(super) fn plan(&mut self) -> Vec<(Duration, Event)> {
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
        self.plan_habits(&mut plan, lines.len());
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

    /// What converters do: at most one habit at a time on a bus, some of them for hours.
    fn plan_habits(&mut self, plan: &mut Vec<(Duration, Event)>, buses: usize) {
        const BEFORE: [&[u8]; 6] = [
            &[0x00],
            &[0xFF],
            &[0x00, 0x00],
            b"www.usr.cn",
            &[0xD8, 0xB0, 0x4C, 0x01, 0x04, 0x18],
            &[0x01, 0x83, 0x02],
        ];
        let rng = &mut self.habits;
        let millis = |rng: &mut Rng, range: std::ops::Range<u64>| Duration::from_millis(rng.u64(range));
        for bus in 0..buses {
            if rng.u8(0..3) == 0 {
                continue;
            }
            let leads = |rng: &mut Rng| Habit::Leads(BEFORE[rng.usize(0..BEFORE.len())]);
            let trails = |rng: &mut Rng| Habit::Trails(millis(rng, 4..80));
            let refuses = |rng: &mut Rng| Habit::RefusesOnce([0x01, 0x02, 0x03, 0x0C, 0x7F][rng.usize(0..5)]);
            let closes =
                |rng: &mut Rng| Habit::ClosesWhenIdle { after: millis(rng, 1500..40_000), reset: rng.bool() };
            let habit = match (bus, rng.u8(0..6)) {
                (0, 0..2) | (2, 0) => leads(rng),
                (0, 2..4) | (2, 1) => trails(rng),
                (_, 4) => refuses(rng),
                (0, _) | (_, 5) => Habit::Floods, // a transmitter that is stuck
                (_, 3) => Habit::DropsOut,
                (1, 2) => Habit::Renumbers,
                _ => closes(rng),
            };
            let secs = self.recipe.life.as_secs();
            let at = if habit.costs_nothing() { rng.u64(0..60) } else { rng.u64(0..secs / 4) };
            let at = Duration::from_secs(at);
            let length = match habit {
                Habit::Floods => rng.u64(60..900), // until somebody asks, at least
                _ if habit.costs_nothing() => secs,
                _ => rng.u64(60..1800),
            };
            plan.push((at, Event::Habit(bus, Some(habit))));
            plan.push((at + Duration::from_secs(length), Event::Habit(bus, None)));
        }
    }

    pub(super) async fn happen_in_the_house(
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

    #[allow(clippy::too_many_lines)] // one arm for each event
    pub(super) fn happen(&mut self, event: &Event, clock: &SimulatedClock) {
        self.tell(format!("{event:?}"));
        self.quiet.note(event, self.truth.now());
        let line = |bus: usize| self.lines.0.values().nth(bus).cloned();
        let name = match event {
            Event::Line(bus, state) => {
                if let Some(line) = line(*bus) {
                    line.set(*state);
                }
                if state.unplugged { "line unplugged" } else { "line echo" }
            }
            Event::Habit(bus, habit) => {
                if let Some(line) = line(*bus) {
                    line.take_up(*habit);
                }
                return; // counted by the line, when it occurs
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
