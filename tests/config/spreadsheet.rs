//! What a spreadsheet makes of serial numbers, addresses, ratios and rooms is named with its row and cell.

use super::*;

/// The findings of a meters file with these columns and one row.
fn sheet(columns: &str, row: &str) -> (Vec<Fault>, Vec<Fault>) {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("m.csv"), format!("{columns}\n{row}\n")).unwrap();
    let path = dir.path().join("gateway.toml");
    fs::write(&path, format!("meters_file = \"m.csv\"\n{VALID}")).unwrap();
    let checked = config::check(&path, []);
    (checked.settings.err().unwrap_or_default(), checked.warnings)
}

fn cell(column: &str, cell: &str, profile: &str) -> (Vec<Fault>, Vec<Fault>) {
    sheet(&format!("id,bus,address,profile,{column}"), &format!("E-2,north,2,{profile},{cell}"))
}

#[test]
fn a_spoiled_serial_number_is_a_fault_with_its_row() {
    // The first type tells its serial number, the second does not.
    for profile in ["diehl-sharky-775", "eastron-sdm120"] {
        for (seen, hint) in [
            ("1.23457E+07", "digits are lost"),
            ("\"1,23457E+07\"", "digits are lost"),
            ("1.2346E+11", "digits are lost"),
            ("'12345678", "`12345678`"),
            ("\"=\"\"12345678\"\"\"", "`12345678`"),
            ("=12345678", "`12345678`"),
            ("１２３４５６７８", "12345678"),
            ("\"\"\"12345678\"\"\"", "`12345678`"),
            ("#N/A", "empty"),
            ("NaN", "empty"),
            ("-", "empty"),
            ("2-Jan", "type it again"),
            ("12345678\u{a0}x", "(U+00A0), expected a space"),
            ("123\u{200b}45", "pasting"),
        ] {
            let (faults, _) = cell("serial", seen, profile);
            let [fault] = faults.as_slice() else { panic!("{seen} {profile}: {}", said(&faults)) };
            assert_eq!(fault.place, "row 2 (E-2), column serial");
            assert!(fault.file.ends_with("m.csv"));
            assert!(fault.hint.as_ref().is_some_and(|given| given.contains(hint)), "{seen}: {fault}");
        }
        for (seen, hint) in
            [("12345678.0", "`12345678`"), ("\"12,345,678\"", "`12345678`"), ("12 345 678", "`12345678`")]
        {
            let (faults, warnings) = cell("serial", seen, profile);
            let found = [faults, warnings].concat();
            let [one] = found.as_slice() else { panic!("{seen} {profile}: {}", said(&found)) };
            assert!(one.hint.as_ref().is_some_and(|given| given.contains(hint)), "{seen}: {one}");
        }
    }
}

#[test]
fn a_serial_number_that_the_meter_can_never_tell_is_a_fault() {
    for (seen, good) in [
        ("12345678", true),
        ("0012345678", true),
        ("4294967295", true),
        ("4294967296", false),
        ("HX-12345678", false),
        ("12 345", false),
    ] {
        let (faults, _) = cell("serial", seen, "diehl-sharky-775");
        assert_eq!(faults.is_empty(), good, "{seen}: {}", said(&faults));
    }
    let (faults, _) = cell("serial", "HX-12345678", "diehl-sharky-775");
    assert!(faults[0].hint.as_ref().unwrap().contains("`12345678`"), "{}", faults[0]);
    let (faults, warnings) = cell("serial", "HX-12345678", "eastron-sdm120");
    assert!(faults.is_empty() && warnings.is_empty(), "nobody compares it: {}", said(&faults));
    let (_, warnings) = cell("serial", "123456789012345000", "eastron-sdm120");
    assert!(warnings[0].message.contains("16th digit"), "{warnings:?}");
}

#[test]
fn other_cells_are_looked_at_too() {
    for (column, seen, hint) in [
        ("ct_ratio", "200/5", "`40`"),
        ("ct_ratio", "200:5", "`40`"),
        ("ct_ratio", "２００／５", "`40`"),
        ("ct_ratio", "200A/5A", "`40`"),
        ("pt_ratio", "10kV/100V", "`100`"),
        ("ct_ratio", "20-May", "type it again"),
        ("ct_ratio", "5月20日", "type it again"),
        ("ct_ratio", "\"1,000\"", "`1000`"),
        ("ct_ratio", "\"40,5\"", "`40.5`"),
        ("ct_ratio", "1.00E+03", "digits are lost"),
        ("ct_ratio", "４０", "expected `4`"),
        ("interval_secs", "900.0", "`900`"),
        ("interval_secs", "\"3,600\"", "`3600`"),
        ("interval_secs", "９００", "expected `9`"),
        ("interval_secs", "900s", "`900`"),
        ("timeout_ms", "'500", "`500`"),
        ("parent", "'E-1", "`E-1`"),
        ("parent", "#REF!", "empty"),
    ] {
        let (faults, _) = cell(column, seen, "eastron-sdm120");
        let [fault] = faults.as_slice() else { panic!("{column} {seen}: {}", said(&faults)) };
        assert_eq!(fault.place, format!("row 2 (E-2), column {column}"));
        assert!(fault.hint.as_ref().is_some_and(|given| given.contains(hint)), "{seen}: {fault}");
    }
    for (address, hint) in
        [("2.0", "`2`"), ("'2", "`2`"), ("=\"2\"", "`2`"), ("２", "expected `2`"), ("0x02", "`2`")]
    {
        let address = format!("\"{}\"", address.replace('"', "\"\""));
        let (faults, _) = sheet("id,bus,address,profile", &format!("E-2,north,{address},eastron-sdm120"));
        let [fault] = faults.as_slice() else { panic!("{address}: {}", said(&faults)) };
        assert!(fault.hint.as_ref().is_some_and(|given| given.contains(hint)), "{address}: {fault}");
    }
    for (id, hint) in [("'E-2", "`E-2`"), ("Ｅ-2", "expected `E`"), ("1.5E+02", "digits are lost")] {
        let (faults, _) = sheet("id,bus,address,profile", &format!("{id},north,2,eastron-sdm120"));
        let [fault] = faults.as_slice() else { panic!("{id}: {}", said(&faults)) };
        assert!(fault.hint.as_ref().is_some_and(|given| given.contains(hint)), "{id}: {fault}");
    }
}

#[test]
fn a_room_that_became_a_date_is_a_warning() {
    for room in ["2-Jan", "1月2日", "2026/1/2", "'101", "101.0", "１０１", "#N/A"] {
        let (faults, warnings) = cell("room", room, "eastron-sdm120");
        let [warning] = warnings.as_slice() else { panic!("{room}: {}", said(&warnings)) };
        assert!(faults.is_empty(), "{room}: a place costs no reading: {}", said(&faults));
        assert_eq!(warning.place, "row 2 (E-2), column room");
    }
    for room in ["101", "1-2", "1/2", "A座", "12E3", "北楼 3"] {
        assert!(cell("room", room, "eastron-sdm120").1.is_empty(), "{room}");
    }
    let (_, warnings) = sheet("id,bus,address,profile", "101.0,north,2,eastron-sdm120");
    assert_eq!(warnings.len(), 1, "an id may be meant so: {warnings:?}");
}
