//! A whole simulated site: one line or peer per bus, one meter per configured meter.
//!
//! Made from faultless settings. It takes the place of a serial device only where nothing is, and says where each
//! bus really is.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
};

use super::{
    Fault, LineOptions, Meters, PeerOptions, PtyLine, SimClock, SimMeter, TcpFraming, TcpPeer, hold, share,
};
use crate::{
    config::{Bus, Link, Meter, Settings},
    model::{BusId, Dec, MeterId},
    protocol::{Address, Wire},
};

/// Why a site cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// A bus cannot be opened.
    #[error("bus `{bus}`: cannot be simulated at {at}: {source}")]
    Bus {
        /// The bus.
        bus: BusId,
        /// Where it was to be.
        at: String,
        /// The operating system's words.
        source: io::Error,
    },
    /// The demo site does not find what it is made of.
    #[error("demo site: {0}")]
    Demo(String),
}

/// Where a simulated bus is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The bus.
    pub bus: BusId,
    /// The device or `host:port` of the configuration.
    pub configured: String,
    /// Where it really is.
    pub actual: String,
    /// Meters on it.
    pub meters: usize,
}

/// Simulated buses with their meters. Dropped, all are unplugged.
#[derive(Debug, Default)]
pub struct SimSite {
    lines: BTreeMap<BusId, PtyLine>,
    peers: BTreeMap<BusId, TcpPeer>,
    meters: BTreeMap<BusId, Meters>,
    places: BTreeMap<MeterId, (BusId, Address)>,
    endpoints: Vec<Endpoint>,
}

impl SimSite {
    /// Every bus and meter of a configuration. To be called within a tokio runtime.
    pub fn from_settings(settings: &Settings, seed: u64, clock: &SimClock) -> Result<SimSite, SiteError> {
        SimSite::of(&settings.buses, &settings.meters, seed, clock)
    }

    /// These buses and meters. To be called within a tokio runtime.
    pub fn of(buses: &[Bus], meters: &[Meter], seed: u64, clock: &SimClock) -> Result<SimSite, SiteError> {
        let mut site = SimSite::default();
        for bus in buses {
            let of_bus = meters.iter().filter(|meter| meter.bus == bus.id);
            let meters: Vec<_> = of_bus.map(|meter| (meter.id.clone(), simulated(meter, seed))).collect();
            site.add_bus(bus, meters, clock)?;
        }
        Ok(site)
    }

    /// Opens one more bus with these meters on it.
    pub fn add_bus(
        &mut self,
        bus: &Bus,
        meters: Vec<(MeterId, SimMeter)>,
        clock: &SimClock,
    ) -> Result<(), SiteError> {
        let count = meters.len();
        let (ids, meters): (Vec<_>, Vec<_>) = meters.into_iter().unzip();
        let places: Vec<_> =
            ids.into_iter().zip(&meters).map(|(id, meter)| (id, (bus.id.clone(), meter.address()))).collect();
        let meters = share(meters);
        let (configured, opened) = match &bus.link {
            Link::Serial { device, wire } => {
                let line = open_line(*wire, &meters, device, clock);
                (device.display().to_string(), line.map(|line| self.keep_line(bus, line)))
            }
            Link::Tcp { address } => {
                let peer = open_peer(address, TcpFraming::Tcp, None, &meters, clock);
                (address.clone(), peer.map(|peer| self.keep_peer(bus, peer)))
            }
            Link::SerialOverTcp { address, wire } => {
                let peer = open_peer(address, TcpFraming::Rtu, *wire, &meters, clock);
                (address.clone(), peer.map(|peer| self.keep_peer(bus, peer)))
            }
        };
        let actual = opened.map_err(|source| SiteError::Bus {
            bus: bus.id.clone(),
            at: configured.clone(),
            source,
        })?;
        self.places.extend(places);
        self.meters.insert(bus.id.clone(), meters);
        self.endpoints.push(Endpoint { bus: bus.id.clone(), configured, actual, meters: count });
        Ok(())
    }

    /// Where each bus is, in the order of the configuration.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The line of a serial bus.
    pub fn line(&mut self, bus: &str) -> Option<&mut PtyLine> {
        self.lines.iter_mut().find(|(id, _)| id.as_str() == bus).map(|(_, line)| line)
    }

    /// The peer of a TCP bus.
    pub fn peer(&mut self, bus: &str) -> Option<&mut TcpPeer> {
        self.peers.iter_mut().find(|(id, _)| id.as_str() == bus).map(|(_, peer)| peer)
    }

    /// The meters of a bus.
    pub fn meters(&self, bus: &str) -> Option<&Meters> {
        self.meters.iter().find(|(id, _)| id.as_str() == bus).map(|(_, meters)| meters)
    }

    /// Ids of all meters, with their bus and address.
    pub fn places(&self) -> impl Iterator<Item = (&MeterId, &BusId, Address)> {
        self.places.iter().map(|(id, (bus, address))| (id, bus, *address))
    }

    /// Does something with one meter; `None` when there is no such meter.
    pub fn with_meter<R>(&self, id: &str, act: impl FnOnce(&mut SimMeter) -> R) -> Option<R> {
        let (_, (bus, address)) = self.places.iter().find(|(place, _)| place.as_str() == id)?;
        let mut meters = hold(self.meters.get(bus)?);
        meters.iter_mut().find(|meter| meter.address() == *address).map(act)
    }

    /// Adds a fault to one meter; `false` when there is no such meter.
    pub fn break_meter(&self, id: &str, fault: Fault) -> bool {
        self.with_meter(id, |meter| meter.faults().add(fault)).is_some()
    }

    fn keep_line(&mut self, bus: &Bus, line: PtyLine) -> String {
        let path = line.path().display().to_string();
        self.lines.insert(bus.id.clone(), line);
        path
    }

    fn keep_peer(&mut self, bus: &Bus, peer: TcpPeer) -> String {
        let address = peer.address().to_string();
        self.peers.insert(bus.id.clone(), peer);
        address
    }
}

/// The simulated twin of a configured meter: the same seed and id give the same registers.
fn simulated(meter: &Meter, seed: u64) -> SimMeter {
    let mut twin = SimMeter::new(meter.address, meter.profile.clone(), seed_of(meter.id.as_str(), seed));
    if let Some(serial) = meter.serial.as_ref().and_then(|serial| serial.parse::<Dec>().ok()) {
        twin.set_serial(serial);
    }
    if let Some(wire) = meter.wire {
        twin.set_wire(wire);
    }
    twin
}

/// FNV-1a over the id: stable from version to version, which the standard hasher does not promise.
pub(super) fn seed_of(id: &str, seed: u64) -> u64 {
    id.bytes().fold(0xCBF2_9CE4_8422_2325 ^ seed, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

fn open_line(wire: Wire, meters: &Meters, device: &Path, clock: &SimClock) -> io::Result<PtyLine> {
    let spawn = |symlink: Option<PathBuf>| {
        PtyLine::spawn(
            wire,
            meters.clone(),
            LineOptions { symlink, clock: clock.clone(), ..LineOptions::default() },
        )
    };
    if is_free(device)
        && let Ok(line) = spawn(Some(device.to_owned()))
    {
        return Ok(line);
    }
    spawn(None) // no permission, or something is there: the caller reports where the line is instead
}

/// Nothing is there, or what an earlier simulation left behind when it was killed.
fn is_free(device: &Path) -> bool {
    if device.as_os_str().is_empty() {
        return false;
    }
    let left_behind =
        std::fs::read_link(device).is_ok_and(|to| to.starts_with("/dev/pts")) && !device.exists();
    if left_behind {
        return std::fs::remove_file(device).is_ok();
    }
    device.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Listens where the configuration says, or, when that is another machine's address, on any local port.
fn open_peer(
    address: &str,
    framing: TcpFraming,
    wire: Option<Wire>,
    meters: &Meters,
    clock: &SimClock,
) -> io::Result<TcpPeer> {
    let options = PeerOptions { wire, clock: clock.clone() };
    let spawn = |bind| TcpPeer::spawn(bind, framing, meters.clone(), options.clone());
    let wanted = address.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
    match wanted.map(spawn) {
        Some(Ok(peer)) => Ok(peer),
        // A local port that is taken or forbidden is the operator's to solve.
        Some(Err(error)) if error.kind() != io::ErrorKind::AddrNotAvailable => Err(error),
        Some(Err(_)) | None => spawn(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{profile::Catalogue, protocol::Parity};
    use std::time::Duration;

    const WIRE: Wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };

    fn bus(link: Link) -> Bus {
        Bus { id: "north".parse().unwrap(), link, timeout: Duration::from_millis(300), retries: 1 }
    }

    fn one_meter() -> Vec<(MeterId, SimMeter)> {
        let profile = Catalogue::builtin().get("eastron-sdm630").unwrap();
        vec![("E-1".parse().unwrap(), SimMeter::new(1, profile, 1))]
    }

    #[test]
    fn a_device_that_is_free_is_linked_and_freed_again() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("ttyUSB0");
        let mut site = SimSite::default();
        site.add_bus(
            &bus(Link::Serial { device: device.clone(), wire: WIRE }),
            one_meter(),
            &SimClock::default(),
        )
        .unwrap();
        assert_eq!(site.endpoints()[0].actual, device.display().to_string());
        assert!(device.exists());
        drop(site);
        assert!(device.symlink_metadata().is_err());
    }

    #[test]
    fn a_device_that_exists_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("ttyUSB0");
        std::fs::write(&device, "real").unwrap();
        let mut site = SimSite::default();
        site.add_bus(
            &bus(Link::Serial { device: device.clone(), wire: WIRE }),
            one_meter(),
            &SimClock::default(),
        )
        .unwrap();
        assert!(site.endpoints()[0].actual.starts_with("/dev/pts/"));
        drop(site);
        assert_eq!(std::fs::read_to_string(&device).unwrap(), "real");
    }

    #[test]
    fn what_a_killed_simulation_left_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("ttyUSB0");
        std::os::unix::fs::symlink("/dev/pts/999999", &device).unwrap();
        let mut site = SimSite::default();
        let link = Link::Serial { device: device.clone(), wire: WIRE };
        site.add_bus(&bus(link), one_meter(), &SimClock::default()).unwrap();
        assert_eq!(site.endpoints()[0].actual, device.display().to_string());
    }

    #[tokio::test]
    async fn a_configuration_becomes_its_site() {
        let meter = |id: &str, bus: &str, unit: u8| Meter {
            id: id.parse().unwrap(),
            bus: bus.parse().unwrap(),
            address: unit.into(),
            wire: None,
            profile: Catalogue::builtin().get("eastron-sdm630").unwrap(),
            serial: None,
            multiplier: Dec::ONE,
            ct_ratio: Dec::ONE,
            pt_ratio: Dec::ONE,
            parent: None,
            building: None,
            unit_name: None,
            room: None,
            interval_secs: 900,
            timeout: None,
            retries: None,
            max_per_hour: None,
            off_schedule_secs: None,
        };
        let south = Bus {
            id: "south".parse().unwrap(),
            ..bus(Link::SerialOverTcp { address: "127.0.0.1:0".into(), wire: None })
        };
        let buses = [bus(Link::Serial { device: PathBuf::new(), wire: WIRE }), south];
        let meters = [meter("E-1", "north", 1), meter("E-2", "south", 1), meter("E-3", "south", 2)];
        let mut site = SimSite::of(&buses, &meters, 1, &SimClock::default()).unwrap();
        let counts: Vec<_> = site.endpoints().iter().map(|e| (e.bus.as_str(), e.meters)).collect();
        assert_eq!(counts, [("north", 1), ("south", 2)]);
        let now = "2026-11-02T12:00:00Z".parse().unwrap();
        let total = |id: &str| site.with_meter(id, |meter| meter.value("energy_import_total", now)).unwrap();
        assert_ne!(total("E-1"), total("E-2"), "each has its own register");
        assert!(site.line("north").is_some() && site.peer("south").is_some());
    }

    #[tokio::test]
    async fn another_machines_address_becomes_a_local_port() {
        let mut site = SimSite::default();
        // TEST-NET-1 (RFC 5737): never one of ours.
        let link = Link::Tcp { address: "192.0.2.1:502".into() };
        site.add_bus(&bus(link), one_meter(), &SimClock::default()).unwrap();
        assert!(site.endpoints()[0].actual.starts_with("127.0.0.1:"));
        assert!(site.break_meter("E-1", Fault::Dead));
        assert!(!site.break_meter("E-2", Fault::Dead));
    }
}
