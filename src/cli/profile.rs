//! `profile list | show | check`: meter types.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{no, output::Table};
use crate::{
    config::read_file,
    profile::{Catalogue, Profile, Protocol, load},
};

#[derive(Debug, clap::Subcommand)]
pub enum ProfileCommand {
    /// Every type of meter that is known, the configuration's own included
    List,
    /// One type: its points, units, limits and sources
    Show {
        /// Profile id
        profile: String,
    },
    /// Find every mistake of a profile file
    Check {
        /// A TOML file
        file: PathBuf,
    },
}

pub fn run(command: ProfileCommand, config: &Path) -> anyhow::Result<ExitCode> {
    match command {
        ProfileCommand::Check { file } => {
            let text = match read_file(&file).map(String::from_utf8) {
                Ok(Ok(text)) => text,
                Ok(Err(_)) => return no(format!("{}: this is not text in UTF-8", file.display())),
                Err(error) => return no(format!("{}: {error}", file.display())),
            };
            match load(&text, &file.display().to_string()) {
                Ok(profile) => {
                    say!("{}: {} points, no fault", profile.id, profile.points.len());
                    Ok(ExitCode::SUCCESS)
                }
                Err(faults) => {
                    for fault in &faults {
                        note!("{fault}");
                    }
                    no(format!("{} fault(s) found", faults.len()))
                }
            }
        }
        ProfileCommand::List => {
            let mut table = Table::new(["profile", "maker", "model", "medium", "points"]);
            for profile in known(config).iter() {
                let medium = format!("{:?}", profile.medium).to_lowercase();
                table.add_row([
                    &profile.id,
                    &profile.manufacturer,
                    &profile.model,
                    &medium,
                    &profile.points.len().to_string(),
                ]);
            }
            table.print();
            Ok(ExitCode::SUCCESS)
        }
        ProfileCommand::Show { profile } => match known(config).get(&profile) {
            Some(profile) => {
                show(&profile);
                Ok(ExitCode::SUCCESS)
            }
            None => no(format!("no profile `{profile}`\n  hint: meter-gateway profile list")),
        },
    }
}

/// The built-in profiles, and those of the configuration when it is faultless.
fn known(config: &Path) -> Catalogue {
    let Ok(settings) = crate::config::load(config, crate::config::environment()) else {
        if config.exists() {
            let path = config.display();
            note!(
                "{path} is faulty: only the built-in types are known here\n  hint: meter-gateway --config {path} check"
            );
        }
        return Catalogue::builtin();
    };
    let own = settings.files.iter().skip(1).filter(|file| file.extension().is_some_and(|e| e == "toml"));
    let texts =
        own.filter_map(|file| Some((file.display().to_string(), std::fs::read_to_string(file).ok()?)));
    Catalogue::with_dir(texts.collect()).0
}

fn show(profile: &Profile) {
    say!("{} {} ({})", profile.manufacturer, profile.model, profile.id);
    say!("source        {}", profile.source);
    say!("verification  {}", profile.verification);
    match profile.protocol {
        Protocol::Modbus(limits) => {
            say!("protocol      modbus");
            say!(
                "limits        {} words per request, holes up to {} words",
                limits.max_words,
                limits.max_hole
            );
        }
        Protocol::Dlt645 => say!("protocol      {}", profile.protocol.name()),
    }
    if let Some(line) = profile.line {
        say!("line          {line} from the factory");
    }
    let mut table =
        Table::new(["point", "place", "kind", "scale", "unit", "capacity", "max per hour", "source"]);
    for point in &profile.points {
        table.add_row([
            point.name.to_string(),
            point.cell.place.to_string(),
            format!("{:?}", point.cell.encoding.kind).to_lowercase(),
            point.cell.scale.to_string(),
            point.unit.to_string(),
            point.register.map(|r| r.capacity.to_string()).unwrap_or_default(),
            point.register.map(|r| r.max_per_hour.to_string()).unwrap_or_default(),
            point.source.clone(),
        ]);
    }
    table.print();
}
