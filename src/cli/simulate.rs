//! `simulate`: answers as the meters of a configuration, until Ctrl-C.

use std::{process::ExitCode, str::FromStr, time::Duration};

use super::no;
use crate::{
    config::Settings,
    sim::{Fault, SimClock, SimSite},
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Serial buses become pseudo-terminals (at the configured device path where nothing is there yet), \
TCP buses listen at their address.\nA fault is METER=KIND: dead, late:MS, noisy:PERCENT, truncated, wrong-unit. \
Example: --fault E-0101=dead --fault W-0102=late:350"
)]
pub struct SimulateArguments {
    /// Something that is wrong with one meter (METER=KIND); may be given again
    #[arg(long = "fault", value_name = "METER=KIND")]
    faults: Vec<MeterFault>,
    /// The same seed gives the same meters
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Clone)]
struct MeterFault {
    meter: String,
    fault: Fault,
}

impl FromStr for MeterFault {
    type Err = String;

    fn from_str(text: &str) -> Result<MeterFault, String> {
        let (meter, kind) = text.split_once('=').ok_or("expected METER=KIND, e.g. E-0101=dead")?;
        let (kind, amount) = kind.split_once(':').map_or((kind, None), |(kind, amount)| (kind, Some(amount)));
        let number = |what: &str, most: u64| -> Result<u64, String> {
            let text = amount.ok_or_else(|| format!("{kind} wants {what}, e.g. {kind}:50"))?;
            let number = text.parse::<u64>().ok().filter(|number| *number <= most);
            number.ok_or_else(|| format!("{text:?} is not {what} (0 to {most})"))
        };
        let fault = match kind {
            "dead" => Fault::Dead,
            "late" => Fault::LateBy(Duration::from_millis(number("milliseconds", 60_000)?)),
            "noisy" => Fault::Noisy { percent: u8::try_from(number("percent", 100)?).unwrap_or(100) },
            "truncated" => Fault::Truncated,
            "wrong-unit" => Fault::WrongUnit,
            other => {
                return Err(format!(
                    "{other:?} is no fault: expected dead, late:MS, noisy:PERCENT, truncated or wrong-unit"
                ));
            }
        };
        Ok(MeterFault { meter: meter.to_owned(), fault })
    }
}

pub async fn run(settings: &Settings, arguments: SimulateArguments) -> anyhow::Result<ExitCode> {
    let site = SimSite::from_settings(settings, arguments.seed, &SimClock::default())?;
    for wanted in arguments.faults {
        if !site.break_meter(&wanted.meter, wanted.fault) {
            return no(format!("--fault: no meter `{}` is configured", wanted.meter));
        }
    }
    for endpoint in site.endpoints() {
        say!("bus {}: {} meters at {}", endpoint.bus, endpoint.meters, endpoint.actual);
        if endpoint.actual != endpoint.configured {
            say!("  the configuration says {}: point it there", endpoint.configured);
        }
    }
    note!("answering until Ctrl-C");
    tokio::signal::ctrl_c().await?;
    Ok(ExitCode::SUCCESS)
}
