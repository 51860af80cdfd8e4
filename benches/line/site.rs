//! The scenario: meters with eight values in one block, simulated lines, and a gateway that sweeps them.

use std::{
    fmt::Write as _,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use meter_gateway::{
    profile::{self, SharedProfile},
    protocol::{
        Pace, Parity, Wire,
        modbus::{REPLY_OVERHEAD_CHARS, REQUEST_CHARS},
    },
    sim::{LineOptions, Meters, PtyLine, SimMeter, share},
};

use crate::gateway::Gateway;

pub const WIRE: Wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };
pub const METERS: u8 = 30;
/// What an electronic meter takes to answer.
const THINKING: Duration = Duration::from_millis(20);
/// Words of eight values of 32 bits.
const WORDS: u32 = 16;
const POINTS: [(&str, &str); 8] = [
    ("energy_import_total", "kWh"),
    ("power_active_total", "W"),
    ("power_active_l1", "W"),
    ("power_active_l2", "W"),
    ("power_active_l3", "W"),
    ("voltage_l1", "V"),
    ("voltage_l2", "V"),
    ("voltage_l3", "V"),
];

/// A type of meter with eight values of 32 bits, one behind the other.
pub fn profile_text() -> String {
    let mut text = "id = \"bench\"\nmanufacturer = \"bench\"\nmodel = \"bench\"\nmedium = \"electricity\"\n\
                    protocol = \"modbus\"\nsource = \"bench\"\nverification = \"bench\"\nmax_words = 60\nturnaround_ms = 20\n"
        .to_owned();
    for (at, (name, unit)) in POINTS.into_iter().enumerate() {
        let register = if at == 0 { "digits = 8\ndecimals = 2\nmax_per_hour = \"500000\"\n" } else { "" };
        write!(
            text,
            "[[point]]\nname = \"{name}\"\ntable = \"input\"\naddress = {}\nkind = \"u32\"\norder = \"ABCD\"\n\
             scale = \"0.01\"\nunit = \"{unit}\"\nsource = \"bench\"\n{register}",
            2 * at
        )
        .unwrap();
    }
    text
}

pub fn bench_profile() -> SharedProfile {
    Arc::new(profile::load(&profile_text(), "bench.toml").unwrap())
}

/// So many meters, all well.
pub fn meters(profile: &SharedProfile, count: u8) -> Meters {
    let one = |unit| {
        let mut meter = SimMeter::new(unit, Arc::clone(profile), u64::from(unit));
        meter.faults().think(THINKING, THINKING);
        meter
    };
    share((1..=count).map(one).collect())
}

/// A line as slow as copper.
pub fn line(meters: &Meters) -> PtyLine {
    PtyLine::spawn(WIRE, Arc::clone(meters), LineOptions::default()).unwrap()
}

/// What one meter takes at least: both frames, one silence of 3.5 characters before the request, and the time to think,
/// in which the silence after the request lies.
pub fn least() -> Duration {
    let reply = REPLY_OVERHEAD_CHARS + 2 * WORDS;
    Pace::Serial(WIRE).exchange_time(REQUEST_CHARS, reply, THINKING.saturating_sub(WIRE.silence()))
}

/// A gateway that sweeps the meters of this line without pause; there is no broker.
pub fn started(line: &PtyLine, meters: u8) -> Gateway {
    let device = line.path().display();
    let mut bus = format!("[[bus]]\nid = \"north\"\nkind = \"serial\"\ndevice = \"{device}\"\nbaud = 9600\n");
    for unit in 1..=meters {
        writeln!(
            bus,
            "[[meter]]\nid = \"M-{unit}\"\nbus = \"north\"\naddress = \"{unit}\"\nprofile = \"bench\""
        )
        .unwrap();
    }
    let mut gateway = Gateway::configured(1, 0, &bus);
    fs::create_dir(gateway.path("profiles")).unwrap();
    fs::write(gateway.path("profiles/bench.toml"), profile_text()).unwrap();
    let text = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), format!("profiles_dir = \"profiles\"\n{text}")).unwrap();
    gateway.start();
    gateway
}

/// Waits for something that is seen soon.
pub fn wait(what: &str, seen: impl Fn() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
