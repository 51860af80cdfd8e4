//! The site of a seed: buses, meters, where it lies, and how its configuration changes.
//!
//! The meters themselves stay on their lines, whether they are configured or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    sync::Arc,
};

use fastrand::Rng;
use meter_gateway::{
    config::{self, Settings},
    model::Utc,
};

const TYPES: [&str; 6] = [
    "eastron-sdm120",
    "chint-ddsu666",
    "xintai-water",
    "itron-cf",
    "eastron-sdm630",
    "bove-ultrasonic-water",
];
/// A type that speaks another protocol, and on a serial device at settings of its own.
const DLT645: &str = "dlt645-2007-three-phase";
/// Where a site may lie, and days around which its clocks change or its year does.
const PLACES: [(&str, &[&str]); 4] = [
    ("Asia/Shanghai", &["2027-12-25T00:00:00Z"]),
    ("Asia/Shanghai", &["2027-12-25T00:00:00Z"]),
    ("Europe/Berlin", &["2028-03-25T20:00:00Z", "2028-10-28T20:00:00Z"]),
    ("Australia/Lord_Howe", &["2028-04-01T10:00:00Z", "2028-09-30T10:00:00Z"]), // by half an hour
];

/// Meters on a line that is well used.
pub const FULL_LINE: usize = 24;

/// A meter by its bus and unit.
type Place = (usize, usize);

/// What the configuration says.
pub struct Site {
    zone: &'static str,
    pub begin: Utc,
    pub interval: u32,
    pub receipts: bool,
    /// Profiles by unit, for each bus.
    buses: Vec<Vec<&'static str>>,
    intervals: BTreeMap<Place, u32>,
    removed: BTreeSet<Place>,
}

impl Site {
    /// `rng` decides what the site is, `more` where it lies.
    pub fn draw(rng: &mut Rng, more: &mut Rng) -> Site {
        let receipts = rng.bool();
        let buses = rng.usize(1..=3);
        let interval = [0, 60, 60, 60, 300, 300, 900, 900][rng.usize(0..8)];
        let mut buses: Vec<Vec<&str>> = (0..buses)
            .map(|_| (1..=rng.usize(1..=5)).map(|_| TYPES[rng.usize(0..TYPES.len())]).collect())
            .collect();
        if interval > 0 && more.u8(0..5) == 0 {
            // A line on which it takes a while until everybody was asked.
            buses[0].resize_with(FULL_LINE, || TYPES[more.usize(0..TYPES.len())]);
        }
        let (zone, days) = PLACES[more.usize(0..PLACES.len())];
        let begin = days[more.usize(0..days.len())].parse().unwrap();
        Site { zone, begin, interval, receipts, buses, intervals: BTreeMap::new(), removed: BTreeSet::new() }
    }

    /// On every third site lines of Modbus RTU have meters of DL/T 645 too.
    pub fn mix(&mut self, rng: &mut Rng) {
        if rng.u8(0..3) == 0 {
            for bus in self.buses.iter_mut().step_by(2) {
                bus.extend(std::iter::repeat_n(DLT645, rng.usize(1..=2)));
            }
        }
    }

    /// Days after `begin` in which a run may start: a season where clocks stay, a day where they change.
    pub fn season(&self) -> i64 {
        if self.zone == "Asia/Shanghai" { 90 } else { 1 }
    }

    /// Another interval, or a meter that goes or comes back. What was changed.
    pub fn change(&mut self, rng: &mut Rng) -> String {
        let bus = rng.usize(0..self.buses.len());
        let unit = rng.usize(1..=self.buses[bus].len());
        let place = (bus, unit);
        if self.removed.remove(&place) {
            return format!("M-{bus}-{unit} is configured again");
        }
        if rng.bool() && self.removed.len() + 1 < self.buses.iter().map(Vec::len).sum() {
            self.removed.insert(place);
            return format!("M-{bus}-{unit} is configured no more");
        }
        let interval = [60, 300, 900][rng.usize(0..3)];
        self.intervals.insert(place, interval);
        format!("M-{bus}-{unit} is read every {interval} s")
    }

    /// As the daemon reads it.
    pub fn load(&self, dir: &Path) -> Arc<Settings> {
        let mut text = format!(
            "[site]\nid = \"riverside\"\nname = \"x\"\ntimezone = \"{}\"\n[gateway]\nid = \"gw-01\"\ndata_dir = \"data\"\n\
             [reading]\ninterval_secs = {}\n[mqtt]\nurl = \"mqtt://broker\"\nconfirm = \"{}\"\n",
            self.zone,
            self.interval,
            if self.receipts { "billing" } else { "broker" }
        );
        for (bus, profiles) in self.buses.iter().enumerate() {
            let place = match bus {
                0 => "kind = \"serial\"\ndevice = \"line-0\"\nbaud = 9600".to_owned(),
                1 => "kind = \"tcp\"\naddress = \"line-1:502\"\nframing = \"tcp\"".to_owned(),
                _ => "kind = \"tcp\"\naddress = \"line-2:502\"\nframing = \"serial\"\nbaud = 9600".to_owned(),
            };
            write!(text, "[[bus]]\nid = \"b{bus}\"\n{place}\n").unwrap();
            for (unit, profile) in (1..).zip(profiles) {
                if self.removed.contains(&(bus, unit)) {
                    continue;
                }
                let (address, own) = match (*profile == DLT645, bus) {
                    (false, _) => (unit.to_string(), ""),
                    (true, 0) => (format!("{unit:012}"), "baud = 2400\nparity = \"even\"\n"),
                    (true, _) => (format!("{unit:012}"), ""),
                };
                write!(
                    text,
                    "[[meter]]\nid = \"M-{bus}-{unit}\"\nbus = \"b{bus}\"\naddress = \"{address}\"\nprofile = \"{profile}\"\n{own}"
                )
                .unwrap();
                if let Some(interval) = self.intervals.get(&(bus, unit)) {
                    writeln!(text, "interval_secs = {interval}").unwrap();
                }
            }
        }
        let file = dir.join("gateway.toml");
        fs::write(&file, text).unwrap();
        Arc::new(config::load(&file, []).unwrap_or_else(|faults| panic!("{faults:?}")))
    }
}
