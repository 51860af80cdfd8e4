//! The demo site: a residential building with electricity, water and heat meters on two serial lines and a
//! Modbus TCP gateway. One meter is dead and one is noisy, so that there is something to see.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{Fault, SimClock, SimMeter, SimSite, SiteError, site::seed_of};
use crate::{
    config::{Bus, Link},
    model::{BusId, Medium, MeterId},
    profile::{Catalogue, SharedProfile},
    protocol::{Parity, Wire},
};

/// Both lines: the most usual setting of meters in buildings.
const WIRE: Wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };
/// How long a meter may take on any of the buses.
const TIMEOUT: Duration = Duration::from_millis(300);
/// Fewest meters: each bus has one that works beside the dead and the noisy one.
const FEWEST: usize = 6;
/// Most meters: unit ids 1 to 247 on three buses.
const MOST: usize = 3 * 247;
/// So many of a hundred answers of the noisy meter are garbled: enough to be seen within a minute. It has one question
/// and is asked once, so that what its noise costs the line is bounded: the others lose nothing.
const NOISE_PERCENT: u8 = 25;
/// Position and unit of the meter that never answers, and of the noisy one.
const DEAD: (usize, u8) = (0, 2);
const NOISY: (usize, u8) = (1, 2);

/// The buses, and the types of their meters in turn.
const BUSES: [(&str, &[&str]); 3] = [
    ("north", &["eastron-sdm630", "eastron-sdm120", "chint-dtsu666", "bove-ultrasonic-water"]),
    ("south", &["chint-ddsu666", "itron-cf", "acrel-dtsd1352", "xintai-water"]),
    ("plant", &["diehl-sharky-775", "abb-b23", "eastron-sdm72d-m", "siemens-pac2200"]),
];

/// A running demo site.
#[derive(Debug)]
pub struct Demo {
    /// Its buses and meters.
    pub site: SimSite,
    /// `[[bus]]` and `[[meter]]` of its configuration, with the devices and ports as they are.
    pub toml: String,
    /// The meter that never answers.
    pub dead: MeterId,
    /// The meter whose answers are often garbled.
    pub noisy: MeterId,
}

impl Demo {
    /// Opens the site with `meters` meters (6 to 741). To be called within a tokio runtime.
    pub fn start(meters: usize, seed: u64, clock: &SimClock) -> Result<Demo, SiteError> {
        if !(FEWEST..=MOST).contains(&meters) {
            let detail = format!("{meters} meters were asked for, expected {FEWEST} to {MOST}");
            return Err(SiteError::Demo(detail));
        }
        let catalogue = Catalogue::builtin();
        let mut demo = Demo {
            site: SimSite::default(),
            toml: String::new(),
            dead: id("E-0101")?, // replaced below: the first meters of both lines
            noisy: id("E-0101")?,
        };
        let mut rows = String::new();
        for (index, (name, types)) in BUSES.into_iter().enumerate() {
            let count = meters / BUSES.len() + usize::from(index < meters % BUSES.len());
            let bus = bus(name)?;
            let mut on_bus = Vec::with_capacity(count);
            for (unit, profile_id) in (1_u8..).zip(types.iter().cycle()).take(count) {
                let profile = catalogue
                    .get(profile_id)
                    .ok_or_else(|| SiteError::Demo(format!("type `{profile_id}` is not built in")))?;
                let meter = id(&meter_name(&profile, index, unit))?;
                row(&mut rows, &meter, name, unit, &profile, index);
                if (index, unit) == NOISY {
                    rows.push_str("retries = 0\n");
                }
                rows.push('\n');
                let mut twin = SimMeter::new(unit, profile, seed_of(meter.as_str(), seed));
                match (index, unit) {
                    DEAD => {
                        twin.faults().add(Fault::Dead);
                        demo.dead = meter.clone();
                    }
                    NOISY => {
                        twin.faults().add(Fault::Noisy { percent: NOISE_PERCENT });
                        demo.noisy = meter.clone();
                    }
                    _ => {}
                }
                on_bus.push((meter, twin));
            }
            demo.site.add_bus(&bus, on_bus, clock)?;
            let at = demo.site.endpoints().last().map(|endpoint| endpoint.actual.as_str());
            describe(&mut demo.toml, &bus, at.unwrap_or_default());
        }
        demo.toml.push_str(&rows);
        Ok(demo)
    }
}

fn id(text: &str) -> Result<MeterId, SiteError> {
    text.parse().map_err(|error| SiteError::Demo(format!("{error}")))
}

fn bus(name: &str) -> Result<Bus, SiteError> {
    let id: BusId = name.parse().map_err(|error| SiteError::Demo(format!("{error}")))?;
    let link = if name == "plant" {
        Link::Tcp { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).to_string() }
    } else {
        Link::Serial { device: PathBuf::new(), wire: WIRE } // wherever the pseudo-terminal is
    };
    Ok(Bus { id, link, timeout: TIMEOUT, retries: 1 })
}

/// `E-0103`: medium, bus, unit.
fn meter_name(profile: &SharedProfile, bus: usize, unit: u8) -> String {
    let letter = match profile.medium {
        Medium::Electricity => 'E',
        Medium::Water => 'W',
        Medium::Heat => 'H',
        Medium::Gas => 'G',
    };
    format!("{letter}-{:02}{unit:02}", bus + 1)
}

fn describe(toml: &mut String, bus: &Bus, at: &str) {
    let _ = match &bus.link {
        Link::Serial { wire, .. } => writeln!(
            toml,
            "[[bus]]\nid = \"{}\"\nkind = \"serial\"\ndevice = \"{at}\"\nbaud = {}\nparity = \"none\"\nstop_bits = {}",
            bus.id, wire.baud, wire.stop_bits
        ),
        Link::Tcp { .. } | Link::SerialOverTcp { .. } => {
            writeln!(
                toml,
                "[[bus]]\nid = \"{}\"\nkind = \"tcp\"\naddress = \"{at}\"\nframing = \"tcp\"",
                bus.id
            )
        }
    };
    let _ = writeln!(toml, "timeout_ms = {}\n", bus.timeout.as_millis()); // a String takes everything
}

fn row(toml: &mut String, meter: &MeterId, bus: &str, unit: u8, profile: &SharedProfile, building: usize) {
    let _ = writeln!(
        toml,
        "[[meter]]\nid = \"{meter}\"\nbus = \"{bus}\"\naddress = \"{unit}\"\nprofile = \"{}\"\nbuilding = \"{}\"\nroom = \"{}{:02}\"",
        profile.id,
        building + 1,
        1 + (unit - 1) / 4,
        1 + (unit - 1) % 4,
    ); // a String takes everything
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn it_has_three_media_two_lines_and_a_peer() {
        let demo = Demo::start(24, 1, &SimClock::default()).unwrap();
        let table: toml::Table = demo.toml.parse().unwrap();
        let (buses, meters) = (table["bus"].as_array().unwrap(), table["meter"].as_array().unwrap());
        assert_eq!((buses.len(), meters.len()), (3, 24));
        for bus in &buses[..2] {
            assert!(std::path::Path::new(bus["device"].as_str().unwrap()).exists());
        }
        let ids: BTreeSet<_> = meters.iter().map(|meter| meter["id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), 24);
        for letter in ["E-", "W-", "H-"] {
            assert!(ids.iter().any(|id| id.starts_with(letter)), "{letter}");
        }
        assert!(ids.contains(demo.dead.as_str()) && ids.contains(demo.noisy.as_str()));
        assert_ne!(demo.dead, demo.noisy);
        assert_eq!(demo.site.places().count(), 24);
    }

    #[tokio::test]
    async fn the_daemon_can_load_it() {
        let demo = Demo::start(24, 1, &SimClock::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gateway.toml");
        let head = "[site]\nid = \"demo\"\nname = \"Demo\"\ntimezone = \"Asia/Shanghai\"\n\
                    [gateway]\nid = \"demo\"\ndata_dir = \"data\"\n\
                    [mqtt]\nurl = \"mqtt://127.0.0.1:1883\"\n\
                    [reading]\ninterval_secs = 60\n";
        std::fs::write(&file, format!("{head}{}", demo.toml)).unwrap();
        let settings = crate::config::load(&file, []).unwrap();
        assert_eq!((settings.buses.len(), settings.meters.len()), (3, 24));
        let told: Vec<_> = settings.meters.iter().map(|m| (&m.id, &m.bus, m.address)).collect();
        assert!(demo.site.places().all(|place| told.contains(&place)));
    }

    #[tokio::test]
    async fn a_number_of_meters_that_does_not_fit_is_refused() {
        for meters in [0, 5, 742] {
            assert!(Demo::start(meters, 1, &SimClock::default()).is_err(), "{meters}");
        }
        assert_eq!(Demo::start(741, 1, &SimClock::default()).unwrap().site.places().count(), 741);
    }
}
