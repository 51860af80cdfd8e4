//! What the status looks like for sites of every size and kind of trouble.

use serde_json::json;

use super::*;

const NOW: &str = "2026-11-28T06:03:05.000Z";

fn view(all: bool) -> View {
    View { zone: chrono_tz::Asia::Shanghai, columns: 80, all }
}

/// A meter whose last slot was good.
fn well(id: &str) -> Value {
    json!({
        "meter": id, "last_answer": "2026-11-28T06:00:01.000Z", "last_value": "2026-11-28T06:00:01.000Z",
        "failures": 0, "backed_off": false, "slowest_ms": 38, "late_ms": null,
        "slot": {"scheduled_at": "2026-11-28T06:00:00.000Z", "taken_at": "2026-11-28T06:00:01.000Z",
                 "verdict": "good", "flags": ["clock_untrusted"]},
        "next_slot": "2026-11-28T06:15:00.000Z", "no_value": null,
    })
}

fn ill(id: &str, reason: &str, detail: Option<&str>, until: Option<&str>) -> Value {
    let mut meter = well(id);
    meter["no_value"] = json!({"reason": reason, "detail": detail, "until": until});
    meter["last_value"] = Value::Null;
    meter["failures"] = 4.into();
    meter
}

fn bus(id: &str, fault: Option<&str>, meters: &[Value]) -> Value {
    json!({"bus": id, "up": fault.is_none(), "fault": fault, "since": "2026-11-27T06:00:00.000Z", "meters": meters})
}

fn status(buses: &[Value]) -> Value {
    json!({
        "version": "0.1.0", "site": "riverside", "site_name": "滨江花园", "gateway": "gw-01", "timezone": "Asia/Shanghai",
        "started_at": "2026-11-20T06:00:00.000Z", "now": NOW, "clock": "synced",
        "store": {"last_seq": 700, "acknowledged_seq": 700, "confirmed_seq": 650, "refusing": null},
        "mirror": null, "warnings": [],
        "publisher": {"connected": true, "in_flight": 0, "nobody_listens": false, "rejected": [], "rejected_unlisted": 0,
                      "awaiting_receipt_since": null, "last_error": null},
        "buses": buses,
    })
}

fn lines(all: bool, status: &Value) -> Vec<String> {
    let text = view(all).text(status, &[], None);
    assert!(text.lines().all(|line| width(line) <= 80), "{text}");
    text.lines().map(str::to_owned).collect()
}

fn line<'a>(lines: &'a [String], begin: &str) -> &'a str {
    lines
        .iter()
        .find(|line| line.starts_with(begin))
        .unwrap_or_else(|| panic!("{begin}: {}", lines.join("\n")))
}

#[test]
fn six_hundred_meters_that_are_well_fit_a_screen() {
    let buses: Vec<Value> = (0..12)
        .map(|line| {
            let meters: Vec<Value> = (0..50).map(|meter| well(&format!("E-{line:02}{meter:02}"))).collect();
            bus(&format!("line{line}"), None, &meters)
        })
        .collect();
    let status = status(&buses);
    let short = lines(false, &status);
    assert!(short.len() <= 24 && !short.iter().any(|line| line.contains("E-0000")), "{}", short.join("\n"));
    assert_eq!(short.last().unwrap(), "meters     600 on 12 buses: 600 well");
    assert_eq!(
        line(&short, "time"),
        "time       2026-11-28 14:03:05 Asia/Shanghai, synchronised",
        "the site's time"
    );
    assert_eq!(line(&short, "next slot"), "next slot  14:15:00, in 11 min");
    let all = lines(true, &status);
    assert!(line(&all, "E-0000").contains("14:00:01    14:15:00   good, answers within 38 ms"));
    assert_eq!(all.len(), 1 + 600 + 1 + short.len(), "a line for each meter and no rules");
    assert_eq!(all.last(), short.last(), "the summary is the last");
}

#[test]
fn each_meter_without_a_value_has_its_reason() {
    let at = Some("2026-11-28T07:00:00.000Z");
    for (meter, words) in [
        (ill("E-1", "no_answer", None, None), "silent, 4 times in a row"),
        (ill("E-1", "no_answer", None, at), "silent, 4 times in a row; asked again at 15:00:00"),
        (
            ill("E-1", "refused", Some("illegal data address (02)"), at),
            "refused: illegal data address (02); asked again at 15:00:00",
        ),
        (ill("E-1", "garbled", Some("the CRC does not match"), None), "garbled: the CRC does not match"),
        (ill("E-1", "bus_overrun", None, None), "the bus had no time left for it"),
        (ill("E-1", "not_available", None, None), "not available"),
        (ill("E-1", "refused", Some("\u{1b}[2J"), None), "refused: \\u{1b}[2J"),
    ] {
        let shown = lines(false, &status(&[bus("north", None, &[meter, well("E-2")])])).join(" ");
        let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(shown.contains(words), "{words}: {shown}");
        assert!(shown.ends_with("meters 2 on 1 bus: 1 well, 1 without a value"), "{shown}");
    }
    let mut late = ill("E-1", "no_answer", None, None);
    late["late_ms"] = 350.into();
    let shown = lines(false, &status(&[bus("north", None, &[late])])).join(" ");
    assert!(shown.contains("350 ms: raise"), "{shown}");

    let mut doubtful = well("E-1");
    doubtful["slot"]["verdict"] = "suspect".into();
    doubtful["slot"]["flags"] = json!(["back_step", "clock_untrusted"]);
    let shown = lines(false, &status(&[bus("north", None, &[doubtful])]));
    assert!(line(&shown, "E-1").ends_with("suspect: back_step"), "{shown:?}");

    let due = ill("E-1", "not_due", None, at);
    let shown = lines(false, &status(&[bus("north", None, &[due])]));
    assert_eq!(shown.last().unwrap(), "meters     1 on 1 bus: 1 not due yet", "nothing is wrong with it");
}

#[test]
fn a_bus_that_is_down_is_said_once_with_its_reason() {
    let fault = "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A10KZP45-if00-port0: cannot be opened: No such file or directory (os error 2)";
    let meters: Vec<Value> =
        (1..=30).map(|unit| ill(&format!("W-{unit}"), "bus_down", Some(fault), None)).collect();
    let status = status(&[bus("地下室", Some(fault), &meters), bus("north", None, &[well("E-1")])]);
    let shown = lines(false, &status);
    assert!(!shown.iter().any(|line| line.starts_with("W-")), "{}", shown.join("\n"));
    assert!(line(&shown, "bus").starts_with("bus        地下室 is down since 11-27 14:00 (30 meters):"));
    assert_eq!(shown.last().unwrap(), "meters     31 on 2 buses, 1 down: 1 well, 30 on a bus that is down");
    assert!(lines(true, &status).iter().any(|line| line.starts_with("W-30")));
}

#[test]
fn columns_line_up_whatever_the_script() {
    let meters = [
        ill("一号楼-电表", "no_answer", None, None),
        ill(
            "E-2",
            "garbled",
            Some("表计回复的校验和不对，请检查终端电阻和屏蔽层接地，再看波特率是否一致"),
            None,
        ),
    ];
    let shown = lines(false, &status(&[bus("总线", None, &meters)]));
    let column = |line: &str, words: &str| width(line.split(words).next().unwrap());
    let header = column(line(&shown, "meter "), "why");
    assert_eq!(column(line(&shown, "一号楼"), "silent"), header, "{}", shown.join("\n"));
    assert_eq!(column(line(&shown, "E-2"), "garbled"), header);
}

#[test]
fn a_long_id_does_not_push_the_reason_off_the_screen() {
    let id = "building-17-basement-switchboard-east-feeder-0042";
    let shown = lines(false, &status(&[bus("north", None, &[ill(id, "no_answer", None, None)])]));
    assert!(shown.iter().any(|line| line.trim() == "silent, 4 times in a row"), "{}", shown.join("\n"));
}

#[test]
fn what_is_not_well_stands_near_the_summary() {
    let mut status = status(&[bus("north", None, &[ill("E-1", "no_answer", None, None)])]);
    status["warnings"] = json!([{"code": "x", "text": "nobody confirms the records: set confirm = \"billing\" or let billing send receipts, see docs/mqtt.md"}]);
    status["publisher"]["connected"] = false.into();
    status["publisher"]["last_error"] = "I/O: Connection refused".into();
    status["store"]["refusing"] = json!({"reason": "the disk is full", "seconds": 12});
    let shown = lines(false, &status);
    let place = |begin: &str| shown.iter().position(|line| line.starts_with(begin)).unwrap();
    assert!(place("E-1") < place("warning") && place("warning") < place("site"), "{}", shown.join("\n"));
    assert!(line(&shown, "broker").contains("away: I/O: Connection refused"));
    assert!(line(&shown, "records").contains("REFUSED for 12 s: the disk is full"));
    status["publisher"]["rejected"] = (1..=9).map(|seq| json!({"seq": seq, "reason": "unit"})).collect();
    let shown = lines(false, &status);
    assert_eq!(shown.iter().filter(|line| line.starts_with("rejected")).count(), 4, "{}", shown.join("\n"));
}

#[test]
fn a_watched_terminal_is_never_longer_than_it_is_high() {
    let meters: Vec<Value> =
        (1..=300).map(|unit| ill(&format!("W-{unit}"), "no_answer", None, None)).collect();
    let status = status(&[bus("north", None, &meters)]);
    for rows in [10, 24, 50] {
        let text = view(false).text(&status, &["a file".to_owned()], Some(rows));
        assert!(text.lines().count() < rows, "{rows}: {text}");
        assert!(text.contains(" more") && text.trim_end().ends_with("300 without a value"), "{text}");
    }
}

#[test]
fn an_older_gateway_is_shown_as_far_as_it_says() {
    let meter = json!({"meter": "E-1", "last_answer": null, "failures": 0, "backed_off": false});
    let shown = lines(true, &status(&[bus("north", None, &[meter])]));
    assert!(line(&shown, "E-1").ends_with("not said by this version of the gateway"), "{}", shown.join("\n"));
    let text = view(false).text(&json!({}), &[], None);
    assert!(text.contains("site"), "{text}");
}
