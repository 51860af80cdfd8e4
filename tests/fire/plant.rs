//! A gateway with simulated meters, each on a TCP bus of its own and read as fast as it answers: about ten a second each.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{fmt::Write as _, net::TcpListener};

use meter_gateway::{
    config,
    sim::{SimClock, SimSite},
};

use crate::gateway::Gateway;

/// `meters` meters; `gateway` are more lines of `[gateway]`.
pub fn plant(broker: u16, meters: u32, gateway: &str) -> (Gateway, SimSite) {
    let mut text = String::new();
    // All at once: a port that was let go of might be given again.
    let ports: Vec<_> = (0..meters).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    for (unit, port) in (1..).zip(&ports) {
        let port = port.local_addr().unwrap().port();
        write!(
            text,
            "[[bus]]\nid = \"line-{unit}\"\nkind = \"tcp\"\naddress = \"127.0.0.1:{port}\"\nframing = \"tcp\"\n\
             [[meter]]\nid = \"E-{unit}\"\nbus = \"line-{unit}\"\naddress = \"1\"\nprofile = \"eastron-sdm120\"\n"
        )
        .unwrap();
    }
    drop(ports);
    let plant = Gateway::configured(broker, 0, &text);
    let config = std::fs::read_to_string(plant.config()).unwrap();
    std::fs::write(plant.config(), config.replacen("[gateway]\n", &format!("[gateway]\n{gateway}\n"), 1))
        .unwrap();
    let settings = config::load(&plant.config(), []).unwrap_or_else(|faults| panic!("{faults:?}"));
    let site = SimSite::from_settings(&settings, 1, &SimClock::default()).unwrap();
    (plant, site)
}
