//! Every known type of meter: those built in, and those that a site adds.
//!
//! Knows nothing of directories: the caller hands over names and texts.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use super::{ProfileFault, SharedProfile, load};

/// The built-in profiles: file name and text.
const BUILTIN: &[(&str, &str)] = &[
    ("abb-b23.toml", include_str!("../../configs/profiles/abb-b23.toml")),
    ("acrel-dtsd1352.toml", include_str!("../../configs/profiles/acrel-dtsd1352.toml")),
    ("bg-drt428m.toml", include_str!("../../configs/profiles/bg-drt428m.toml")),
    ("bove-ultrasonic-water.toml", include_str!("../../configs/profiles/bove-ultrasonic-water.toml")),
    ("carlo-gavazzi-em340.toml", include_str!("../../configs/profiles/carlo-gavazzi-em340.toml")),
    ("chint-ddsu666.toml", include_str!("../../configs/profiles/chint-ddsu666.toml")),
    ("chint-dtsu666.toml", include_str!("../../configs/profiles/chint-dtsu666.toml")),
    ("diehl-sharky-775.toml", include_str!("../../configs/profiles/diehl-sharky-775.toml")),
    ("dlt645-2007-three-phase.toml", include_str!("../../configs/profiles/dlt645-2007-three-phase.toml")),
    ("eastron-sdm120.toml", include_str!("../../configs/profiles/eastron-sdm120.toml")),
    ("eastron-sdm630.toml", include_str!("../../configs/profiles/eastron-sdm630.toml")),
    ("eastron-sdm72d-m.toml", include_str!("../../configs/profiles/eastron-sdm72d-m.toml")),
    ("itron-cf.toml", include_str!("../../configs/profiles/itron-cf.toml")),
    ("siemens-pac2200.toml", include_str!("../../configs/profiles/siemens-pac2200.toml")),
    ("xintai-water.toml", include_str!("../../configs/profiles/xintai-water.toml")),
];

/// Profiles by id.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    profiles: BTreeMap<String, SharedProfile>,
}

impl Catalogue {
    /// The built-in profiles. A test keeps them free of faults.
    pub fn builtin() -> Catalogue {
        static READ_ONCE: LazyLock<Catalogue> = LazyLock::new(|| {
            let mut catalogue = Catalogue::default();
            for (file, text) in BUILTIN {
                catalogue.extend(load(text, file));
            }
            catalogue
        });
        READ_ONCE.clone()
    }

    /// The built-in profiles and a site's own (file name, text); a site's profile replaces a built-in one of the
    /// same id. A faulty file leaves the catalogue as it was; all faults of all files are returned.
    pub fn with_dir(files: Vec<(String, String)>) -> (Catalogue, Vec<ProfileFault>) {
        let mut catalogue = Catalogue::builtin();
        let mut faults = Vec::new();
        let mut origin: BTreeMap<String, String> = BTreeMap::new();
        for (file, text) in files {
            let profile = match load(&text, &file) {
                Ok(profile) => profile,
                Err(found) => {
                    faults.extend(found);
                    continue;
                }
            };
            if let Some(earlier) = origin.get(&profile.id) {
                faults.push(ProfileFault {
                    file,
                    place: "id".into(),
                    message: format!("{} is already the profile of {earlier}", profile.id),
                    hint: Some("give one of the two another id".into()),
                });
                continue;
            }
            origin.insert(profile.id.clone(), file);
            catalogue.extend(Ok(profile));
        }
        (catalogue, faults)
    }

    /// The profile of that id.
    pub fn get(&self, id: &str) -> Option<SharedProfile> {
        self.profiles.get(id).cloned()
    }

    /// All profiles, by id.
    pub fn iter(&self) -> impl Iterator<Item = &SharedProfile> {
        self.profiles.values()
    }

    fn extend(&mut self, loaded: Result<super::Profile, Vec<ProfileFault>>) {
        if let Ok(profile) = loaded {
            self.profiles.insert(profile.id.clone(), Arc::new(profile));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Protocol, RequestLimits};

    #[test]
    fn every_built_in_profile_is_free_of_faults() {
        for (file, text) in BUILTIN {
            if let Err(faults) = load(text, file) {
                panic!("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
            }
        }
        assert_eq!(Catalogue::builtin().iter().count(), BUILTIN.len());
    }

    #[test]
    fn a_sites_own_profile_comes_before_the_built_in_one() {
        let (_, text) = BUILTIN.iter().find(|(file, _)| *file == "eastron-sdm630.toml").unwrap();
        let own = text.replacen("max_words = 60", "max_words = 20", 1);
        let (catalogue, faults) = Catalogue::with_dir(vec![
            ("eastron-sdm630.toml".into(), own.clone()),
            ("other/eastron-sdm630.toml".into(), own),
            ("broken.toml".into(), "id = 1".into()),
        ]);
        assert!(matches!(
            catalogue.get("eastron-sdm630").unwrap().protocol,
            Protocol::Modbus(RequestLimits { max_words: 20, .. })
        ));
        assert!(
            faults.iter().any(|f| f.file == "other/eastron-sdm630.toml" && f.message.contains("already"))
        );
        assert!(faults.iter().any(|f| f.file == "broken.toml"));
        assert!(catalogue.get("no-such-meter").is_none());
    }
}
