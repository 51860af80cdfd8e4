//! What the scripted meters show: registers by address, the same for each unit but for the laboratory's.

use meter_gateway::protocol::modbus::crc;

/// `lab-u32`: one register and a power beside it, in one request; a serial number apart.
pub const LAB: &str = r#"
id = "lab-u32"
manufacturer = "Lab"
model = "32 bit counter"
medium = "electricity"
protocol = "modbus"
source = "lab"
verification = "lab"
max_words = 10
turnaround_ms = 10
[[point]]
name = "energy_import_total"
table = "input"
address = 0x0100
kind = "u32"
order = "ABCD"
scale = "0.01"
unit = "kWh"
digits = 8
decimals = 2
max_per_hour = "69"
source = "x"
[[point]]
name = "power_active_total"
table = "input"
address = 0x0102
kind = "u32"
order = "ABCD"
scale = "0.1"
unit = "W"
source = "x"
[serial]
table = "input"
address = 0x0120
kind = "u32"
order = "ABCD"
source = "x"
"#;

/// Where the register of the `lab-u16` of case 05 is, and what it shows.
pub const SINGLE_AT: u16 = 0x0110;

/// `energy_import_total` of a `lab-u16`.
pub const SINGLE_SHOWS: &str = "1.00";

/// `energy_import_total` of an `eastron-sdm630`, as the answers of the cases carry it.
pub const SDM630: &str = "1000.5";
/// From this unit on all have one serial number.
pub const TWINS: u8 = 200;

/// `energy_import_total` of a `lab-u32`.
pub fn lab(unit: u8) -> String {
    format!("1234.{unit:02}")
}

/// The two answers of an `eastron-sdm630` of the cases: what lies at 0x0000 and at 0x0034.
const AT_0000: [u16; 12] =
    [0x4366, 0x8000, 0x4367, 0x4000, 0x4365, 0xC000, 0x4090, 0x0000, 0x4088, 0x0000, 0x4080, 0x0000];
const AT_0034: [u16; 26] = [
    0x4529, 0x0800, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x4248, 0x0000, 0x447A, 0x2000, 0, 0, 0,
    0,
];

fn word(unit: u8, address: u16) -> u16 {
    let register = u32::from(unit) + 123_400;
    let serial = if unit >= TWINS { 99_887_766 } else { 10_000_000 + u32::from(unit) };
    let half = |value: u32, low: bool| u16::try_from(if low { value & 0xFFFF } else { value >> 16 }).unwrap();
    match address {
        0x0000..0x000C => AT_0000[usize::from(address)],
        0x0034..0x004E => AT_0034[usize::from(address - 0x34)],
        0x0100 | 0x0101 => half(register, address == 0x0101),
        SINGLE_AT => 100,
        0x0120 | 0x0121 => half(serial, address == 0x0121),
        _ => 0,
    }
}

/// The answer to a read of these words: function, length, words.
pub fn answer(unit: u8, function: u8, address: u16, count: u16) -> Vec<u8> {
    let words = (address..address + count).flat_map(|address| word(unit, address).to_be_bytes());
    [function, u8::try_from(2 * count).unwrap()].into_iter().chain(words).collect()
}

/// An RTU frame.
pub fn rtu(unit: u8, pdu: &[u8]) -> Vec<u8> {
    let mut frame = [&[unit], pdu].concat();
    let sum = crc(&frame).to_le_bytes();
    frame.extend(sum);
    frame
}

/// A Modbus TCP frame.
pub fn mbap(transaction: u16, unit: u8, pdu: &[u8]) -> Vec<u8> {
    let length = u16::try_from(pdu.len() + 1).unwrap();
    [&transaction.to_be_bytes()[..], &[0, 0], &length.to_be_bytes(), &[unit], pdu].concat()
}
