//! A gateway with buses to scripted peers, and what it has recorded and says.

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::Value;

use super::{
    gateway::Gateway,
    lab::lab_u16,
    meters::{LAB, SINGLE_AT},
    peer::{Framing, Peer, PtyPeer},
};

/// Buses and meters before the start.
#[derive(Default)]
pub struct Site {
    rest: String,
    buses: usize,
}

impl Site {
    /// A bus to this peer; `more`: further keys of it.
    pub fn tcp(&mut self, id: &str, framing: Framing, peer: &Peer, more: &str) -> &mut Site {
        let address = &peer.address;
        let framing = framing.name();
        self.bus(id, &format!("kind = \"tcp\"\naddress = \"{address}\"\nframing = \"{framing}\"\n{more}"))
    }

    pub fn serial(&mut self, id: &str, peer: &PtyPeer, more: &str) -> &mut Site {
        self.bus(id, &format!("kind = \"serial\"\ndevice = \"{}\"\nbaud = 9600\n{more}", peer.path.display()))
    }

    pub fn bus(&mut self, id: &str, keys: &str) -> &mut Site {
        self.buses += 1;
        writeln!(self.rest, "[[bus]]\nid = \"{id}\"\n{keys}").unwrap();
        self
    }

    /// `profile` with further keys, if any, on lines behind it.
    pub fn meter(&mut self, id: &str, unit: u8, profile: &str) -> &mut Site {
        self.meter_with(id, unit, profile, "")
    }

    pub fn meter_with(&mut self, id: &str, unit: u8, profile: &str, more: &str) -> &mut Site {
        let bus = self.rest.rsplit("[[bus]]\nid = \"").next().unwrap().split('"').next().unwrap().to_owned();
        writeln!(
            self.rest,
            "[[meter]]\nid = \"{id}\"\nbus = \"{bus}\"\naddress = \"{unit}\"\nprofile = \"{profile}\"\n{more}"
        )
        .unwrap();
        self
    }

    /// Written to a directory, not yet running.
    pub fn configured(&self, broker: u16, interval_secs: u32) -> Gateway {
        let gateway = Gateway::configured(broker, interval_secs, &self.rest);
        fs::create_dir(gateway.path("profiles")).unwrap();
        fs::write(gateway.path("profiles/lab-u32.toml"), LAB).unwrap();
        fs::write(gateway.path("profiles/lab-u16.toml"), lab_u16(SINGLE_AT)).unwrap();
        let text = fs::read_to_string(gateway.config()).unwrap();
        fs::write(gateway.config(), format!("profiles_dir = \"profiles\"\n{text}")).unwrap();
        gateway
    }

    /// Running, without a broker.
    pub fn start(&self, interval_secs: u32) -> Gateway {
        let mut gateway = self.configured(1, interval_secs);
        gateway.start();
        gateway
    }
}

/// What is recorded of a meter, the oldest first.
pub fn readings(gateway: &Gateway, meter: &str) -> Vec<Value> {
    let text = gateway.text(&format!("/api/v1/readings?meter={meter}&limit=1000"));
    let mut readings: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    readings.sort_by_key(|reading| reading["seq"].as_u64());
    readings
}

/// Waits until each of these meters has so many readings: each slot makes one, whatever happens.
pub fn after_slots(gateway: &Gateway, meters: &[&str], slots: usize) -> Vec<Vec<Value>> {
    let what = format!("{slots} slots of each meter");
    gateway.until(&what, |_| meters.iter().all(|meter| readings(gateway, meter).len() >= slots));
    meters.iter().map(|meter| readings(gateway, meter)).collect()
}

pub fn value(reading: &Value) -> Option<&str> {
    reading["values"]["energy_import_total"]["value"].as_str()
}

/// The flags of the reading, but for the machine's clock, which is not the line's business.
pub fn flags(reading: &Value) -> Vec<&str> {
    let flags = reading["flags"].as_array().unwrap().iter().filter_map(Value::as_str);
    flags.filter(|flag| *flag != "clock_untrusted").collect()
}

pub fn is_good(reading: &Value, shown: &str) -> bool {
    reading["verdict"] == "good" && flags(reading).is_empty() && value(reading) == Some(shown)
}

/// Each reading is good and carries what the meter shows.
pub fn all_good(meter: &str, readings: &[Value], shown: &str) -> Result<(), String> {
    let bad: Vec<&Value> = readings.iter().filter(|reading| !is_good(reading, shown)).collect();
    let Some(first) = bad.first() else { return Ok(()) };
    Err(format!(
        "{meter}: {} of {} readings are not {shown} and good; the first: {} {} {:?} {}",
        bad.len(),
        readings.len(),
        first["verdict"],
        first["flags"],
        value(first),
        first["evidence"]
    ))
}

/// Fails with everything that is wrong, not only with the first.
pub fn hold(found: impl IntoIterator<Item = Result<(), String>>, gateway: &Gateway) {
    let wrong: Vec<String> = found.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}\n--- log ---\n{}", wrong.join("\n"), gateway.log());
}

pub fn bus<'a>(status: &'a Value, id: &str) -> &'a Value {
    status["buses"].as_array().unwrap().iter().find(|bus| bus["bus"] == id).unwrap()
}

pub fn meter<'a>(status: &'a Value, id: &str) -> &'a Value {
    let buses = status["buses"].as_array().unwrap();
    buses.iter().flat_map(|bus| bus["meters"].as_array().unwrap()).find(|meter| meter["meter"] == id).unwrap()
}

/// One POST; the body of the answer, `None` when there was none within the time.
pub fn read_now(gateway: &Gateway, meter: &str, within: Duration) -> Option<Value> {
    let mut stream = ask_to_read(gateway, meter);
    stream.set_read_timeout(Some(within)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// One POST whose answer nobody has awaited yet.
pub fn ask_to_read(gateway: &Gateway, meter: &str) -> UnixStream {
    let mut stream = UnixStream::connect(gateway.socket()).unwrap();
    let body = format!("{{\"meter\":\"{meter}\"}}");
    write!(
        stream,
        "POST /api/v1/read HTTP/1.1\r\nhost: daemon\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}
