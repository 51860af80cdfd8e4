//! Time zones by the names that people use for them. The names that count are those of the IANA database.

use chrono_tz::{TZ_VARIANTS, Tz};

use super::{fault::did_you_mean, section::Section};

/// What the only time of China is called; the IANA name is that of Shanghai.
const CHINA: [&str; 36] = [
    "beijing",
    "peking",
    "china",
    "cn",
    "prc",
    "cst",
    "cst8",
    "bjt",
    "shanghai",
    "shenzhen",
    "guangzhou",
    "hangzhou",
    "nanjing",
    "suzhou",
    "tianjin",
    "chengdu",
    "wuhan",
    "xian",
    "qingdao",
    "dalian",
    "xiamen",
    "jinan",
    "zhengzhou",
    "changsha",
    "kunming",
    "shenyang",
    "chinastandardtime",
    "chinatime",
    "8",
    "08",
    "0800",
    "800",
    "北京",
    "上海",
    "中国",
    "中国标准时间",
];

/// `[site] timezone`, with a warning for a name that means the opposite of what it says.
pub(super) fn timezone(section: &Section) -> Option<Tz> {
    let text = section.text("timezone")?;
    let Ok(zone) = text.parse::<Tz>() else {
        let hint = meant(text)
            .map(|name| format!("did you mean `{name}`?"))
            .or_else(|| did_you_mean(text, TZ_VARIANTS.iter().map(|zone| zone.name())))
            .unwrap_or_else(|| "names are those of the IANA database, e.g. Asia/Shanghai".into());
        section.fault("timezone", format!("{text:?} is not the name of a time zone"), Some(hint));
        return None;
    };
    // POSIX counts westwards: `Etc/GMT+8` is 8 hours behind UTC.
    if let Some(hours) = text.strip_prefix("Etc/GMT+").filter(|hours| *hours != "0") {
        let hint = if hours == "8" { "did you mean `Asia/Shanghai`?" } else { "name a place instead" };
        section.warn("timezone", format!("{text} is {hours} hours behind UTC"), Some(hint.into()));
    }
    Some(zone)
}

/// The zone that is known by this name, before anything that is only spelled like it.
fn meant(text: &str) -> Option<&'static str> {
    let bare: String = text.to_lowercase().chars().filter(|c| c.is_alphanumeric() || *c == '-').collect();
    let place = bare.strip_prefix("asia").or_else(|| bare.strip_prefix("china")).unwrap_or(&bare);
    let place = place.strip_suffix("时间").unwrap_or(place);
    let offset = ["utc", "gmt", "etcgmt", "etcutc", "z"].iter().find_map(|name| place.strip_prefix(name));
    let named = |name: &str| CHINA.contains(&name);
    let china = named(&bare) || named(place) || offset.is_some_and(named);
    // `CST-8` and `UTC-8` in the manner of POSIX, `<+08>-8`.
    let posix = ["cst-8", "utc-8", "gmt-8", "08-8", "china-8"].contains(&place);
    (china || posix).then_some("Asia/Shanghai")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_china_is_known_by_many_names() {
        for text in [
            "Asia/Beijing",
            "Beijing",
            "asia/beijing",
            "Asia/Peking",
            "UTC+8",
            "UTC+08:00",
            "UTC+0800",
            "GMT+8",
            "GMT+08:00",
            "utc +8",
            "+08:00",
            "+8",
            "UTC8",
            "CST",
            "CST-8",
            "<+08>-8",
            "CN",
            "China",
            "China Standard Time",
            "Asia/China",
            "China/Beijing",
            "China/Shanghai",
            "Asia/Shenzhen",
            "Asia/Guangzhou",
            "Shanghai",
            "北京时间",
            "北京",
            "中国标准时间",
            "BJT",
        ] {
            assert!(text.parse::<Tz>().is_err(), "{text}");
            assert_eq!(meant(text), Some("Asia/Shanghai"), "{text}");
        }
        for text in
            ["Asia/Beirut", "UTC+9", "GMT+1", "Europe/Berlin", "EST", "Asia/Hongkong", "", "-08:00", "+18:00"]
        {
            assert_eq!(meant(text), None, "{text}");
        }
        assert!("PRC".parse::<Tz>().is_ok(), "an old name of the database");
    }
}
