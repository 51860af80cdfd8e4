//! A gateway with a few simulated meters on one TCP bus, read as fast as it goes.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{fmt::Write as _, net::TcpListener};

use meter_gateway::{
    config,
    sim::{SimClock, SimSite},
};

use crate::gateway::Gateway;

/// `meters` meters; `rest` comes behind them in the configuration.
pub fn plant(broker: u16, meters: u32, rest: &str) -> (Gateway, SimSite) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut text = format!(
        "[[bus]]\nid = \"plant\"\nkind = \"tcp\"\naddress = \"127.0.0.1:{port}\"\nframing = \"tcp\"\n{rest}"
    );
    for unit in 1..=meters {
        write!(
            text,
            "[[meter]]\nid = \"E-{unit}\"\nbus = \"plant\"\naddress = \"{unit}\"\nprofile = \"eastron-sdm120\"\n"
        )
        .unwrap();
    }
    let gateway = Gateway::configured(broker, 0, &text);
    let settings = config::load(&gateway.config(), []).unwrap_or_else(|faults| panic!("{faults:?}"));
    let site = SimSite::from_settings(&settings, 1, &SimClock::default()).unwrap();
    (gateway, site)
}
