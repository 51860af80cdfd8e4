//! What was typed → what is meant. Every fault is found in one pass, each with its place and a hint.
//!
//! Reads files and nothing else: no device is opened, no host is looked up. What a profile says is the
//! business of `profile`; whether the site answers is the business of `bus` and `publish`.

mod buses;
mod cell;
mod console;
pub mod credentials;
mod encoding;
mod endpoint;
mod essentials;
mod fault;
mod file;
mod load;
mod meters;
mod meters_file;
mod number;
pub mod poll_plan;
mod rights;
mod section;
mod site;
mod source;
mod timezone;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use chrono::NaiveTime;
use chrono_tz::Tz;

use crate::{
    model::{BusId, Dec, MeterId},
    profile::SharedProfile,
    protocol::{Address, Pace, Wire},
};

pub use essentials::{Essentials, essentials};
pub use fault::Fault;
pub use file::{MAX_FILE_BYTES, read_file};
pub use load::{Checked, Shelf, check, environment, load, load_from};
pub use site::SOCKET;
#[cfg(test)]
pub(crate) use site::section_keys;

/// A whole, faultless configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The site.
    pub site: Site,
    /// This box.
    pub gateway: Gateway,
    /// How readings are kept.
    pub reading: ReadingRules,
    /// The broker.
    pub mqtt: Mqtt,
    /// `None`: the API is on the Unix socket alone.
    pub console: Option<Console>,
    /// When the monthly reads are taken.
    pub billing: Billing,
    /// Lines, in the order of the file.
    pub buses: Vec<Bus>,
    /// Meters, in the order of the file and then of the meters file.
    pub meters: Vec<Meter>,
    /// What is allowed and worth a look.
    pub warnings: Vec<Fault>,
    /// SHA-256 over the files that were read, lower-case hex.
    pub hash: String,
    /// Every file that was read, the main one first.
    pub files: Vec<PathBuf>,
}

/// `[site]`
#[derive(Debug, Clone)]
pub struct Site {
    /// `[a-z0-9-]{1,32}`
    pub id: String,
    /// For people.
    pub name: String,
    /// Slots and days are local to it.
    pub timezone: Tz,
}

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct Gateway {
    /// `[a-z0-9-]{1,32}`
    pub id: String,
    /// Ledger, index, keys, socket.
    pub data_dir: PathBuf,
    /// Free bytes on its disk below which nothing is recorded, so that what was recorded can still be looked after.
    pub reserve_bytes: u64,
    /// Where a second copy of the ledger is kept; it must exist.
    pub mirror_dir: Option<PathBuf>,
}

/// `[reading]`
#[derive(Debug, Clone)]
pub struct ReadingRules {
    /// Seconds between slots; 0 = as fast as the bus allows.
    pub interval_secs: u32,
    /// Segments older than this may go, once confirmed.
    pub retention_days: u32,
}

/// Which MQTT is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttVersion {
    /// MQTT 3.1.1
    V311,
    /// MQTT 5
    V5,
}

/// What frees a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    /// The broker's PUBACK.
    Broker,
    /// Billing's receipt.
    Billing,
}

/// `[mqtt]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mqtt {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `mqtts://`: CA (system roots when `None`), client certificate and key.
    pub tls: Option<Tls>,
    /// Protocol version.
    pub version: MqttVersion,
    /// Without a slash at the end.
    pub topic_prefix: String,
    /// Default: gateway id.
    pub client_id: String,
    /// User name.
    pub username: Option<String>,
    /// Read at each connection, so that a rotated one is used; a systemd credential of that name wins.
    pub password_file: Option<PathBuf>,
    /// What frees a record.
    pub confirm: Confirm,
}

/// Files for `mqtts://`, read at each connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM.
    pub ca_file: Option<PathBuf>,
    /// PEM; with `key_file`.
    pub cert_file: Option<PathBuf>,
    /// PEM; with `cert_file`.
    pub key_file: Option<PathBuf>,
}

/// `[billing]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Billing {
    /// The boundary's day of the month, 1 to 28, in local time.
    pub day: u8,
    /// The boundary's time of that day, in local time.
    pub time: NaiveTime,
    /// How long a read is tried for after the boundary, 1 to 720 hours.
    pub window_hours: u16,
}

/// `[console]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// Where the API listens besides the Unix socket.
    pub listen: SocketAddr,
    /// Further names by which it may be addressed, in lower case; loopback names and its own addresses always.
    pub hosts: Vec<String>,
    /// From where it acts.
    pub actions: Actions,
}

/// Where something may be asked to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actions {
    /// On the port and on the Unix socket.
    All,
    /// On the Unix socket alone.
    Socket,
}

/// `[[bus]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Bus {
    /// Unique.
    pub id: BusId,
    /// How it is reached.
    pub link: Link,
    /// How long a meter may take to answer, unless it has its own.
    pub timeout: Duration,
    /// How often a silent or garbled question is asked again in one sweep (0 to 5).
    pub retries: u8,
}

/// How a line is reached.
#[derive(Debug, Clone, PartialEq)]
pub enum Link {
    /// A serial device.
    Serial {
        /// e.g. `/dev/serial/by-id/…`
        device: PathBuf,
        /// Its settings.
        wire: Wire,
    },
    /// Modbus TCP.
    Tcp {
        /// `host:port`
        address: String,
    },
    /// RTU framing through a transparent serial server.
    SerialOverTcp {
        /// `host:port`
        address: String,
        /// The line behind it, if given.
        wire: Option<Wire>,
    },
}

impl Link {
    /// What is assumed of its speed.
    pub fn pace(&self) -> Pace {
        match self {
            Link::Serial { wire, .. } | Link::SerialOverTcp { wire: Some(wire), .. } => Pace::Serial(*wire),
            Link::Tcp { .. } | Link::SerialOverTcp { wire: None, .. } => Pace::Network,
        }
    }

    /// The same for a meter with settings of its own.
    pub fn pace_with(&self, wire: Option<Wire>) -> Pace {
        wire.map_or_else(|| self.pace(), Pace::Serial)
    }

    /// Whether a network lies between here and the meters.
    pub fn is_network(&self) -> bool {
        !matches!(self, Link::Serial { .. })
    }
}

/// `[[meter]]`
#[derive(Debug, Clone, PartialEq)]
pub struct Meter {
    /// Unique; stays when the device is exchanged.
    pub id: MeterId,
    /// The line it is on.
    pub bus: BusId,
    /// Where it answers.
    pub address: Address,
    /// Its line settings where they differ from the bus's.
    pub wire: Option<Wire>,
    /// Its type.
    pub profile: SharedProfile,
    /// Of the device, checked where the meter tells it.
    pub serial: Option<String>,
    /// CT × PT.
    pub multiplier: Dec,
    /// Current transformer ratio.
    pub ct_ratio: Dec,
    /// Potential transformer ratio.
    pub pt_ratio: Dec,
    /// The main meter it is metered behind.
    pub parent: Option<MeterId>,
    /// Place.
    pub building: Option<String>,
    /// Place.
    pub unit_name: Option<String>,
    /// Place.
    pub room: Option<String>,
    /// Seconds between slots; 0 = as fast as the bus allows.
    pub interval_secs: u32,
    /// Overrides the bus's timeout.
    pub timeout: Option<Duration>,
    /// Overrides the bus's retries.
    pub retries: Option<u8>,
    /// Overrides the profile's rating of its registers, in the register's unit per hour.
    pub max_per_hour: Option<Dec>,
    /// Seconds by which a reading may miss its slot, where that is not what the interval allows.
    pub off_schedule_secs: Option<u32>,
}

impl Meter {
    /// What is assumed of its speed on a line of that kind.
    pub fn pace(&self, link: &Link) -> Pace {
        link.pace_with(self.wire)
    }
}
