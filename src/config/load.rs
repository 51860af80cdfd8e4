//! From a path to settings: reads every file, lets each section be understood, then looks at the whole.
//!
//! The only order that matters: profiles and buses before the meters that name them, the plan last.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs, io,
    path::{Path, PathBuf},
};

use ring::digest;

use super::{
    Bus, Fault, Settings, buses, console, encoding,
    endpoint::Hosts,
    fault::Findings,
    file::read_file,
    meters,
    meters_file::{self, Sheet},
    poll_plan,
    section::{Place, Section},
    site, source,
};
use crate::{
    model::BusId,
    profile::{Catalogue, ProfileFault, SharedProfile},
};

const ROOT_KEYS: [&str; 10] = [
    "meters_file",
    "profiles_dir",
    "site",
    "gateway",
    "reading",
    "mqtt",
    "billing",
    "console",
    "bus",
    "meter",
];
/// Of the files in `profiles_dir` that are profiles.
const PROFILE_EXTENSION: &str = "toml";
/// Of all files of a configuration together: it is kept in memory a few times over while it is understood.
const MAX_TOTAL_BYTES: usize = 16 * 1024 * 1024;
/// Entries of `profiles_dir` that are looked at: there are not so many types of meters.
const MAX_ENTRIES: usize = 1000;
/// Names of addresses that are known without asking the network (hosts(5)).
const HOSTS: &str = "/etc/hosts";
/// Where systemd puts the credentials of a service (systemd.exec(5), "CREDENTIALS").
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// The environment of this process, as far as it is text.
pub fn environment() -> Vec<(String, String)> {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Where the texts of a configuration stand.
pub trait Shelf {
    /// A whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// What is in a directory, in any order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
}

/// The machine's own files.
struct FileSystem;

impl Shelf for FileSystem {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        read_file(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.take(MAX_ENTRIES + 1).map(|entry| Ok(entry?.path())).collect()
    }
}

/// What a configuration comes to.
#[derive(Debug)]
pub struct Checked {
    /// The settings where it is faultless, poll plan included; else every fault.
    pub settings: Result<Settings, Vec<Fault>>,
    /// What is allowed and worth a look, whether it is faultless or not.
    pub warnings: Vec<Fault>,
}

impl Checked {
    fn faulty(faults: Vec<Fault>) -> Checked {
        let faults = faults.into_iter().map(Fault::shown).collect();
        Checked { settings: Err(faults), warnings: Vec::new() }
    }
}

/// Reads a whole configuration without touching hardware or network. Either it is faultless, poll plan
/// included, or every fault is returned.
pub fn load(path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Result<Settings, Vec<Fault>> {
    check(path, env).settings
}

/// The same, with the warnings of a faulty configuration too.
pub fn check(path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Checked {
    check_from(&FileSystem, path, env)
}

/// [`load`] with the texts from elsewhere. What holds a secret (`password_file`, `ca_file`, …) is still looked at where
/// it lies.
pub fn load_from(
    shelf: &dyn Shelf,
    path: &Path,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Settings, Vec<Fault>> {
    check_from(shelf, path, env).settings
}

fn check_from(shelf: &dyn Shelf, path: &Path, env: impl IntoIterator<Item = (String, String)>) -> Checked {
    let mut files = Files { shelf, paths: Vec::new(), contents: Vec::new() };
    let file = path.display().to_string();
    let text = match files.read(path) {
        Ok(Ok(text)) => text,
        Ok(Err(fault)) => return Checked::faulty(vec![fault]),
        Err(error) => return Checked::faulty(vec![unreadable(&file, &error)]),
    };
    let env: Vec<(String, String)> = env.into_iter().collect();
    let credentials =
        env.iter().find(|(name, _)| name == CREDENTIALS_DIRECTORY).map(|(_, dir)| PathBuf::from(dir));
    let merged = match source::merge(&text, &file, env) {
        Ok(merged) => merged,
        Err(faults) => return Checked::faulty(faults),
    };
    let findings = Findings::new(merged.overrides, merged.faults);

    let base = path.parent().unwrap_or(Path::new(""));
    let root = Section::new(&file, Place::Root, &merged.root, &ROOT_KEYS, &findings);
    let site = site::site(&root);
    let gateway = site::gateway(&root, base);
    let reading = site::reading(&root);
    let mqtt = site::mqtt(&root, base, &gateway.id, credentials.as_deref());
    let billing = site::billing(&root);
    let console = console::console(&root);
    let (profiles, broken_profiles) = profiles(&root, base, &mut files, &findings);
    let hosts = shelf.read(Path::new(HOSTS)).unwrap_or_default();
    let found_buses = buses::buses(&root, base, &Hosts::parse(&String::from_utf8_lossy(&hosts)));

    let mut sections = root.list("meter", &meters::KEYS, meters::MAX_METERS);
    let (sheet_file, sheet) = sheet(&root, base, &mut files, &findings);
    sections.extend(sheet.rows.iter().map(|(number, cells)| {
        Section::new(&sheet_file, Place::Row(*number, &sheet.columns), cells, &meters::KEYS, &findings)
    }));
    let context = meters::Context {
        buses: &found_buses,
        profiles: &profiles,
        broken_profiles: &broken_profiles,
        interval_secs: reading.interval_secs,
    };
    let meters = meters::meters(sections, &context);

    let buses: Vec<Bus> = found_buses.iter().filter_map(|found| found.bus.clone()).collect();
    let place_of = |id: &BusId| {
        let found = found_buses.iter().find(|found| found.id.as_ref() == Some(id));
        (file.clone(), found.map(|found| found.section.whereabouts()).unwrap_or_default())
    };
    let plan = poll_plan::predict_lines(&buses, &meters);
    poll_plan::overloads(&plan, &place_of, &findings);
    drop(found_buses);

    let (faults, warnings) = findings.into_parts();
    if !faults.is_empty() {
        return Checked { settings: Err(faults), warnings };
    }
    let (hash, files) = files.finish();
    let settings = Settings {
        site,
        gateway,
        reading,
        mqtt,
        console,
        billing,
        buses,
        meters,
        warnings: warnings.clone(),
        hash,
        files,
    };
    Checked { settings: Ok(settings), warnings }
}

/// Every file that was read, and the hash over them.
struct Files<'a> {
    shelf: &'a dyn Shelf,
    paths: Vec<PathBuf>,
    contents: Vec<Vec<u8>>,
}

impl Files<'_> {
    /// Its text, or what is there instead of text.
    fn read(&mut self, path: &Path) -> io::Result<Result<String, Fault>> {
        let bytes = self.shelf.read(path)?;
        let so_far = self.contents.iter().map(Vec::len).sum::<usize>();
        if so_far + bytes.len() > MAX_TOTAL_BYTES {
            let message =
                format!("all files together are larger than {} MiB", MAX_TOTAL_BYTES / (1024 * 1024));
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
        }
        let text = encoding::text(&bytes, &path.display().to_string());
        self.paths.push(path.to_owned());
        self.contents.push(bytes);
        Ok(text)
    }

    /// Lower-case hex of SHA-256 over each file's length (8 bytes, big-endian) and bytes.
    fn finish(self) -> (String, Vec<PathBuf>) {
        use std::fmt::Write as _;
        let mut context = digest::Context::new(&digest::SHA256);
        for content in &self.contents {
            context.update(&(content.len() as u64).to_be_bytes());
            context.update(content);
        }
        let hash = context.finish().as_ref().iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
            text
        });
        (hash, self.paths)
    }
}

fn unreadable(file: &str, error: &io::Error) -> Fault {
    Fault {
        file: file.to_owned(),
        place: String::new(),
        message: format!("cannot read the configuration: {error}"),
        hint: Some("name it with --config FILE or METER_GATEWAY_CONFIG, and check who may read it".into()),
    }
}

/// The built-in profiles and the site's own, and the names of those whose files are at fault.
fn profiles(
    root: &Section,
    base: &Path,
    files: &mut Files<'_>,
    findings: &Findings,
) -> (BTreeMap<String, SharedProfile>, BTreeSet<String>) {
    let mut texts = Vec::new();
    let mut broken = BTreeSet::new();
    if let Some(dir) = root.path("profiles_dir").map(|dir| base.join(dir)) {
        let paths = profile_files(files.shelf, &dir).unwrap_or_else(|error| {
            let message = format!("cannot read {}: {error}", dir.display());
            root.fault("profiles_dir", message, Some("a directory, relative to this file".into()));
            Vec::new()
        });
        for path in paths {
            let file = path.display().to_string();
            match files.read(&path) {
                Ok(Ok(text)) => texts.push((file, text)),
                Ok(Err(fault)) => {
                    broken.extend(meters::stem(&file));
                    findings.add(fault);
                }
                Err(error) => {
                    broken.extend(meters::stem(&file));
                    root.fault("profiles_dir", format!("cannot read {file}: {error}"), None);
                }
            }
        }
    }
    let (catalogue, faults) = Catalogue::with_dir(texts);
    broken.extend(faults.iter().filter_map(|fault| meters::stem(&fault.file)));
    findings.extend(faults.into_iter().map(|ProfileFault { file, place, message, hint }| Fault {
        file,
        place,
        message,
        hint,
    }));
    (catalogue.iter().map(|profile| (profile.id.clone(), profile.clone())).collect(), broken)
}

/// Sorted, so that the hash and the order of faults do not depend on the file system.
fn profile_files(shelf: &dyn Shelf, dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = shelf.list(dir)?;
    if paths.len() > MAX_ENTRIES {
        let message = format!("more than {MAX_ENTRIES} files, expected a directory of profiles alone");
        return Err(io::Error::other(message));
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == PROFILE_EXTENSION));
    paths.sort();
    Ok(paths)
}

fn sheet(root: &Section, base: &Path, files: &mut Files<'_>, findings: &Findings) -> (String, Sheet) {
    let Some(path) = root.path("meters_file").map(|name| base.join(name)) else {
        return (String::new(), Sheet::default());
    };
    let file = path.display().to_string();
    let sheet = match files.read(&path) {
        Ok(Ok(text)) => meters_file::sheet(&text, &file, &meters::KEYS, &meters::NEEDED, findings),
        Ok(Err(fault)) => {
            findings.add(fault);
            Sheet::default()
        }
        Err(error) => {
            let message = format!("cannot read {file}: {error}");
            root.fault("meters_file", message, Some("a CSV file, relative to this file".into()));
            Sheet::default()
        }
    };
    (file, sheet)
}
