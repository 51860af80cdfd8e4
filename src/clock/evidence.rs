//! Who vouches for the kernel's wall clock. Asks; changes nothing.
//!
//! The kernel's own word is `adjtimex` (`STA_UNSYNC`, `maxerror`). It cannot be asked directly: the unit's
//! `ProtectClock=` forbids that call even for reading, and no kept crate offers it without `unsafe`. systemd-timedated
//! asks it for us: its `NTPSynchronized` is "maxerror below 16 s", whoever disciplines the clock (it leaves
//! `STA_UNSYNC` aside on purpose: chronyd without `rtcsync` never clears it). The kernel adds 500 ppm to maxerror, so
//! that word holds for up to 8.9 hours after the last synchronisation. Where there is no timedated, chronyd and then
//! timesyncd's stamp are asked. Whatever cannot be asked has said nothing.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::model::Utc;

/// Touched by systemd-timesyncd at each synchronisation.
const TIMESYNC_STAMP: &str = "/run/systemd/timesync/synchronized";
/// Two of timesyncd's longest polls (`PollIntervalMaxSec=` 2048 s): an older stamp says that it has lost its server.
const STAMP_SECS: i64 = 2 * 2048;
/// Longest wait for an answer: timedated is started by D-Bus when it is first asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest error of a clock that chronyd may be trusted with, in ns: what a reading may be off without a flag
/// is seconds, so a second is ample and still far from a lost server.
const MAX_ERROR_NANOS: i64 = 1_000_000_000;

/// Whether anybody vouches for the kernel's clock. The first who can be asked decides.
pub async fn synced(now: Utc) -> bool {
    if let Some(answer) = ask("timedatectl", &["show", "--property=NTPSynchronized", "--value"]).await
        && let Some(synced) = timedated_says(&answer)
    {
        return synced;
    }
    if let Some(answer) = ask("chronyc", &["-c", "tracking"]).await
        && let Some(synced) = chronyd_says(&answer)
    {
        return synced;
    }
    timesyncd_synced(now)
}

/// Whether timesyncd's stamp is fresh. A stamp from the future was made by another time than this one.
pub fn timesyncd_synced(now: Utc) -> bool {
    let touched = std::fs::metadata(Path::new(TIMESYNC_STAMP)).and_then(|stamp| stamp.modified());
    touched.is_ok_and(|at| stamp_is_fresh(Utc::from(at), now))
}

fn stamp_is_fresh(touched: Utc, now: Utc) -> bool {
    (-1..=STAMP_SECS).contains(&(now - touched).num_seconds())
}

async fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let asked = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let answer = timeout(PATIENCE, asked).await.ok()?.ok()?;
    answer.status.success().then(|| String::from_utf8_lossy(&answer.stdout).into_owned())
}

fn timedated_says(answer: &str) -> Option<bool> {
    match answer.trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// `chronyc -c tracking` (chrony 3 and 4): reference, address, stratum, reference time, offsets (3), frequency (2),
/// skew, root delay, root dispersion, update interval, leap status. Its bound is dispersion plus half the delay.
fn chronyd_says(answer: &str) -> Option<bool> {
    let fields: Vec<&str> = answer.trim().split(',').collect();
    let [_, _, _, _, _, _, _, _, _, _, delay, dispersion, _, leap] = fields.as_slice() else { return None };
    if *leap == "Not synchronised" {
        return Some(false);
    }
    let error = nanos(dispersion)?.saturating_add(nanos(delay)?.saturating_abs() / 2);
    Some(error <= MAX_ERROR_NANOS)
}

/// Seconds with decimals, as nanoseconds.
fn nanos(text: &str) -> Option<i64> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = part.chars().chain("000000000".chars()).take(9).collect();
    let (whole, part) = (whole.parse::<u32>().ok()?, digits.parse::<u32>().ok()?);
    Some(sign * (i64::from(whole) * 1_000_000_000 + i64::from(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chronyd_is_believed_when_it_is_sure_to_a_second() {
        let tracking = |delay, dispersion, leap| {
            format!(
                "C0A80101,192.168.1.1,3,1793491200.123456789,-0.000012,0.000003,0.00002,-12.3,0.001,0.1,{delay},{dispersion},1024.5,{leap}\n"
            )
        };
        let says = |delay, dispersion, leap| chronyd_says(&tracking(delay, dispersion, leap));
        assert_eq!(says("0.020", "0.001", "Normal"), Some(true));
        assert_eq!(says("0.020", "0.001", "Insert second"), Some(true));
        assert_eq!(says("0.020", "0.991", "Normal"), Some(false), "1.001 s");
        assert_eq!(says("0.000000000", "0.000000000", "Not synchronised"), Some(false));
        for strange in ["", "506 Cannot talk to daemon", "a,b,c", &tracking("x", "0.1", "Normal")] {
            assert_eq!(chronyd_says(strange), None, "{strange}");
        }
    }

    #[test]
    fn a_stamp_of_timesyncd_grows_old() {
        let now: Utc = "2026-11-01T00:00:00Z".parse().unwrap();
        let fresh = |secs| stamp_is_fresh(now - chrono::TimeDelta::seconds(secs), now);
        assert!(fresh(0) && fresh(STAMP_SECS));
        assert!(!fresh(STAMP_SECS + 1) && !fresh(-3600));
    }

    #[test]
    fn timedated_says_yes_or_no_or_nothing() {
        assert_eq!(timedated_says("yes\n"), Some(true));
        assert_eq!(timedated_says("no\n"), Some(false));
        assert_eq!(timedated_says(""), None);
    }
}
