//! Types of meters for scripted peers.

/// `lab-u16`: one register at this address, in one request, which cannot be split.
pub fn lab_u16(address: u16) -> String {
    format!(
        r#"
id = "lab-u16"
manufacturer = "Lab"
model = "16 bit counter"
medium = "electricity"
protocol = "modbus"
source = "lab"
verification = "lab"
max_words = 10
turnaround_ms = 10
[[point]]
name = "energy_import_total"
table = "input"
address = {address:#06X}
kind = "u16"
scale = "0.01"
unit = "kWh"
digits = 5
decimals = 2
max_per_hour = "69"
source = "x"
"#
    )
}
