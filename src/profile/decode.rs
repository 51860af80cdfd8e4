//! Bytes into exact quantities, and back (for simulated meters).
//!
//! No float is ever computed with: a float's shortest decimal text that reads back as the same float *is* the
//! value, and its scale moves the decimal point. Knows nothing of requests, limits or what a value means.

use super::{Cell, Encoding, Kind};
use crate::{model::Dec, protocol::hex};

/// The highest bit of the most significant byte.
const SIGN: u8 = 0x80;

/// What the bytes of a cell amount to.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The scaled value, or why there is none: `nan`, `infinite`, `not_available` (a sentinel), `bad_bcd`
    /// (a digit above 9), `too_long` (more digits than can be kept exactly), `short` (too few bytes).
    pub value: Result<Dec, &'static str>,
    /// `0x…`: the bytes as they came over the wire.
    pub raw: String,
    /// For status words: the names of the bits that are set; a bit without a name is `bit7`.
    pub set: Option<Vec<String>>,
}

/// Decodes the bytes of one cell, in the order of the wire. Bytes beyond the cell's own are ignored.
pub fn decode(cell: &Cell, wire: &[u8]) -> Decoded {
    let wire = wire.get(..usize::from(cell.encoding.kind.bytes())).unwrap_or(wire);
    let raw = hex(wire);
    let Some(bytes) = cell.encoding.order.most_significant_first(wire) else {
        return Decoded { value: Err("short"), raw, set: None };
    };
    if cell.sentinels.iter().any(|sentinel| sentinel == wire) {
        return Decoded { value: Err("not_available"), raw, set: None };
    }
    let set = matches!(cell.encoding.kind, Kind::Bits16 | Kind::Bits32).then(|| names(cell, &bytes));
    Decoded { value: number(cell, &bytes), raw, set }
}

/// The bytes, in the order of the wire, with which a meter would show `value`: what is finer than the cell's own step
/// is cut off, as a display does. `None` when the value does not fit the cell.
pub fn encode(cell: &Cell, value: Dec) -> Option<Vec<u8>> {
    let bytes = match cell.encoding.kind {
        Kind::F32 => unscaled_text(value, cell.scale)?
            .parse::<f32>()
            .ok()
            .filter(|f| f.is_finite())?
            .to_be_bytes()
            .to_vec(),
        Kind::F64 => unscaled_text(value, cell.scale)?
            .parse::<f64>()
            .ok()
            .filter(|f| f.is_finite())?
            .to_be_bytes()
            .to_vec(),
        kind if kind.is_bcd() => packed(unscaled(value, cell.scale)?, &cell.encoding)?,
        Kind::I16 => i16::try_from(unscaled(value, cell.scale)?).ok()?.to_be_bytes().to_vec(),
        Kind::I32 => i32::try_from(unscaled(value, cell.scale)?).ok()?.to_be_bytes().to_vec(),
        Kind::I64 => i64::try_from(unscaled(value, cell.scale)?).ok()?.to_be_bytes().to_vec(),
        Kind::U16 | Kind::Bits16 => u16::try_from(unscaled(value, cell.scale)?).ok()?.to_be_bytes().to_vec(),
        Kind::U32 | Kind::Bits32 => u32::try_from(unscaled(value, cell.scale)?).ok()?.to_be_bytes().to_vec(),
        _ => u64::try_from(unscaled(value, cell.scale)?).ok()?.to_be_bytes().to_vec(),
    };
    cell.encoding.order.to_wire(&bytes)
}

fn number(cell: &Cell, bytes: &[u8]) -> Result<Dec, &'static str> {
    match cell.encoding.kind {
        Kind::F32 => {
            let float = f32::from_be_bytes(bytes.try_into().map_err(|_| "short")?);
            judged(float.is_nan(), float.is_infinite(), &float.to_string(), cell.scale)
        }
        Kind::F64 => {
            let float = f64::from_be_bytes(bytes.try_into().map_err(|_| "short")?);
            judged(float.is_nan(), float.is_infinite(), &float.to_string(), cell.scale)
        }
        Kind::I16 | Kind::I32 | Kind::I64 => {
            let ones = bytes.first().is_some_and(|byte| byte & SIGN != 0);
            let start = if ones { -1_i128 } else { 0 };
            scaled(bytes.iter().fold(start, |sum, byte| sum << 8 | i128::from(*byte)), cell.scale)
        }
        Kind::U16 | Kind::U32 | Kind::U64 | Kind::Bits16 | Kind::Bits32 => {
            scaled(unsigned(bytes), cell.scale)
        }
        Kind::Bcd16 | Kind::Bcd24 | Kind::Bcd32 | Kind::Bcd48 | Kind::Bcd64 => {
            let sign = if cell.encoding.signed { bytes.first().map_or(0, |byte| byte & SIGN) } else { 0 };
            let unsigned =
                bytes.iter().enumerate().map(|(at, byte)| if at == 0 { byte ^ sign } else { *byte });
            let digits = unsigned.into_iter().try_fold(0_i128, |sum, byte| {
                let (high, low) = (byte >> 4, byte & 0x0F);
                (high < 10 && low < 10).then(|| sum * 100 + i128::from(high) * 10 + i128::from(low))
            });
            let digits = digits.ok_or("bad_bcd")?;
            scaled(if sign == 0 { digits } else { -digits }, cell.scale)
        }
    }
}

fn unsigned(bytes: &[u8]) -> i128 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | i128::from(*byte))
}

fn scaled(integer: i128, scale: Dec) -> Result<Dec, &'static str> {
    Dec::from_parts(integer, 0).and_then(|value| value.times(scale)).ok_or("too_long")
}

/// A float by its shortest decimal text, with the point moved by a scale that is a power of ten.
fn judged(nan: bool, infinite: bool, text: &str, scale: Dec) -> Result<Dec, &'static str> {
    if nan {
        return Err("nan");
    }
    if infinite {
        return Err("infinite");
    }
    let exponent = exponent(scale).ok_or("too_long")?;
    let value: Dec = text.parse().map_err(|_| "too_long")?;
    // A negative zero has no sign on any display.
    let value = if value.is_zero() { value.abs() } else { value };
    moved(value, exponent).ok_or("too_long")
}

/// `n` when the number is exactly `10^n`.
pub(super) fn exponent(scale: Dec) -> Option<i32> {
    let (mut mantissa, decimals) = scale.parts();
    let mut exponent = -i32::try_from(decimals).ok()?;
    while mantissa != 0 && mantissa % 10 == 0 {
        mantissa /= 10;
        exponent += 1;
    }
    (mantissa == 1).then_some(exponent)
}

/// `value × 10^exponent` without inventing digits: 1.5 × 10 is 15, 1.5 × 1000 is 1500.
fn moved(value: Dec, exponent: i32) -> Option<Dec> {
    let (mantissa, decimals) = value.parts();
    let decimals = i32::try_from(decimals).ok()?.checked_sub(exponent)?;
    match u32::try_from(decimals) {
        Ok(decimals) => Dec::from_parts(mantissa, decimals),
        Err(_) => Dec::from_parts(mantissa.checked_mul(10_i128.checked_pow(decimals.unsigned_abs())?)?, 0),
    }
}

fn unscaled_text(value: Dec, scale: Dec) -> Option<String> {
    Some(moved(value, -exponent(scale)?)?.to_string())
}

/// `value ÷ scale`, cut off towards zero, in integers.
fn unscaled(value: Dec, scale: Dec) -> Option<i128> {
    let (value, value_decimals) = value.parts();
    let (scale, scale_decimals) = scale.parts();
    let dividend = value.checked_mul(10_i128.checked_pow(scale_decimals)?)?;
    let divisor = scale.checked_mul(10_i128.checked_pow(value_decimals)?)?;
    dividend.checked_div(divisor)
}

/// An integer as packed digits, most significant first.
fn packed(integer: i128, encoding: &Encoding) -> Option<Vec<u8>> {
    if integer < 0 && !encoding.signed {
        return None;
    }
    let mut rest = integer.unsigned_abs();
    let mut bytes = Vec::new();
    for _ in 0..encoding.kind.bytes() {
        let pair = u8::try_from(rest % 100).ok()?;
        bytes.push(((pair / 10) << 4) | (pair % 10));
        rest /= 100;
    }
    // The sign takes the place of the highest digit's own bit.
    let highest = bytes.last_mut().filter(|highest| !encoding.signed || **highest & SIGN == 0)?;
    if integer < 0 {
        *highest |= SIGN;
    }
    bytes.reverse();
    (rest == 0).then_some(bytes)
}

fn names(cell: &Cell, bytes: &[u8]) -> Vec<String> {
    let word = unsigned(bytes);
    (0..32_u8)
        .filter(|bit| word >> bit & 1 == 1)
        .map(|bit| {
            let named = cell.encoding.bits.iter().find(|(at, _)| *at == bit);
            named.map_or_else(|| format!("bit{bit}"), |(_, name)| name.clone())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        profile::{ByteOrder, Place},
        protocol::modbus::Table,
    };
    use proptest::prelude::*;

    const KINDS: [Kind; 15] = [
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::U64,
        Kind::I64,
        Kind::F32,
        Kind::F64,
        Kind::Bcd16,
        Kind::Bcd24,
        Kind::Bcd32,
        Kind::Bcd48,
        Kind::Bcd64,
        Kind::Bits16,
        Kind::Bits32,
    ];

    fn cell(kind: Kind, order: &str, scale: &str) -> Cell {
        cell_in(kind, order.parse().unwrap(), scale, false)
    }

    fn cell_in(kind: Kind, order: ByteOrder, scale: &str, signed: bool) -> Cell {
        Cell {
            place: Place::Modbus { table: Table::Holding, address: 0 },
            encoding: Encoding { kind, order, signed, bits: vec![(1, "leak".into())] },
            scale: scale.parse().unwrap(),
            sentinels: Vec::new(),
        }
    }

    fn bytes(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn shown(cell: &Cell, wire: &[u8]) -> String {
        match decode(cell, wire).value {
            Ok(value) => value.to_string(),
            Err(reason) => reason.to_owned(),
        }
    }

    #[test]
    fn values_keep_the_digits_of_the_display() {
        for (kind, order, scale, words, expected) in [
            (Kind::U32, "ABCD", "0.01", &[0x0012, 0xD644][..], "12345.00"),
            (Kind::U32, "CDAB", "0.01", &[0xD644, 0x0012], "12345.00"),
            (Kind::I32, "CDAB", "0.1", &[0xFFC8, 0xFFFF], "-5.6"),
            (Kind::I16, "AB", "0.001", &[0xFFFF], "-0.001"),
            (Kind::U64, "ABCDEFGH", "1", &[0xFFFF; 4], "18446744073709551615"),
            (Kind::I64, "ABCDEFGH", "1", &[0x8000, 0, 0, 0], "-9223372036854775808"),
            (Kind::F32, "ABCD", "1", &[0x4366, 0x3334], "230.20001"),
            (Kind::F32, "DCBA", "1", &[0x1F85, 0x0B3F], "0.545"),
            (Kind::F32, "ABCD", "1000", &[0x3FC0, 0x0000], "1500"),
            (Kind::F32, "ABCD", "0.1", &[0x4509, 0x8000], "220.0"),
            (Kind::F64, "ABCDEFGH", "0.001", &[0x4132, 0xD687, 0x8000, 0x0000], "1234.5675"),
            (Kind::F32, "ABCD", "1", &[0x8000, 0x0000], "0"),
            (Kind::F32, "ABCD", "1", &[0x7FC0, 0x0000], "nan"),
            (Kind::F32, "ABCD", "1", &[0xFF80, 0x0000], "infinite"),
            (Kind::F32, "ABCD", "1", &[0x7F7F, 0xFFFF], "too_long"),
            (Kind::Bcd32, "ABCD", "0.01", &[0x1234, 0x5678], "123456.78"),
            (Kind::Bcd16, "BA", "1", &[0x3412], "1234"),
            (Kind::Bcd16, "AB", "1", &[0x12A4], "bad_bcd"),
            (Kind::U32, "ABCD", "1", &[0x0012], "short"),
        ] {
            assert_eq!(
                shown(&cell(kind, order, scale), &bytes(words)),
                expected,
                "{kind:?} {order} {scale} {words:04X?}"
            );
        }
    }

    /// Values of DL/T 645: the lowest byte first, and where there is a sign it is the highest bit.
    #[test]
    fn decimal_digits_come_lowest_first_and_may_have_a_sign() {
        for (kind, scale, signed, wire, expected) in [
            (Kind::Bcd32, "0.01", false, &[0x99, 0x99, 0x99, 0x99][..], "999999.99"),
            (Kind::Bcd32, "0.01", true, &[0x23, 0x01, 0x00, 0x80], "-1.23"),
            (Kind::Bcd24, "0.001", true, &[0x00, 0x15, 0x80], "-1.500"),
            (Kind::Bcd24, "0.001", true, &[0x00, 0x15, 0x00], "1.500"),
            (Kind::Bcd24, "0.001", true, &[0x01, 0x00, 0x80], "-0.001"),
            (Kind::Bcd24, "0.001", false, &[0x00, 0x15, 0x80], "801.500"),
            (Kind::Bcd24, "0.1", true, &[0x12, 0x25, 0x00], "251.2"),
            (Kind::Bcd16, "0.001", true, &[0x00, 0x90], "-1.000"),
            (Kind::Bcd16, "0.001", true, &[0x00, 0x80], "0.000"),
            (Kind::Bcd16, "0.1", false, &[0x56, 0x22], "225.6"),
            (Kind::Bcd48, "1", false, &[0x08, 0x02, 0x02, 0x41, 0x22, 0x00], "2241020208"),
            (Kind::Bcd32, "0.01", false, &[0x00, 0x00, 0x00, 0x0E], "bad_bcd"),
            (Kind::Bcd32, "0.01", true, &[0x00, 0x00, 0x00, 0xE0], "-600000.00"),
            (Kind::Bcd32, "0.01", true, &[0x00, 0x00, 0x00, 0xA0], "-200000.00"),
            (Kind::Bcd32, "0.01", true, &[0x00, 0x00, 0x00, 0x2A], "bad_bcd"),
            (Kind::Bcd32, "0.01", false, &[0x01, 0x02, 0x03], "short"),
        ] {
            let cell = cell_in(kind, ByteOrder::low_first(kind.bytes()), scale, signed);
            assert_eq!(shown(&cell, wire), expected, "{kind:?} {scale} {signed} {wire:02X?}");
            if let Ok(value) = decode(&cell, wire).value
                && !value.is_zero()
            {
                assert_eq!(encode(&cell, value).as_deref(), Some(wire));
            }
        }
        let cell = cell_in(Kind::Bcd16, ByteOrder::low_first(2), "1", true);
        assert_eq!(encode(&cell, "7999".parse().unwrap()), Some(vec![0x99, 0x79]));
        assert_eq!(encode(&cell, "8000".parse().unwrap()), None, "its highest bit is the sign");
        assert_eq!(
            encode(&cell_in(Kind::Bcd16, ByteOrder::low_first(2), "1", false), "-1".parse().unwrap()),
            None
        );
    }

    #[test]
    fn a_sentinel_is_no_number_and_its_bytes_are_kept() {
        let mut cell = cell(Kind::I32, "CDAB", "0.01");
        cell.sentinels = vec![vec![0xFF, 0xFF, 0x7F, 0xFF]];
        let decoded = decode(&cell, &bytes(&[0xFFFF, 0x7FFF]));
        assert_eq!(decoded.value, Err("not_available"));
        assert_eq!(decoded.raw, "0xFFFF7FFF");
    }

    #[test]
    fn set_bits_are_named() {
        let decoded = decode(&cell(Kind::Bits16, "AB", "1"), &bytes(&[0b1000_0000_0000_0010]));
        assert_eq!(decoded.set, Some(vec!["leak".to_owned(), "bit15".to_owned()]));
        assert_eq!(decoded.value.unwrap().to_string(), "32770");
    }

    #[test]
    fn a_simulated_meter_cuts_off_what_it_cannot_show() {
        let cell = cell(Kind::U32, "CDAB", "0.01");
        assert_eq!(encode(&cell, "12345.009".parse().unwrap()), Some(vec![0xD6, 0x44, 0x00, 0x12]));
        assert_eq!(encode(&cell, "-1".parse().unwrap()), None);
        assert_eq!(encode(&cell, "42949672.96".parse().unwrap()), None);
    }

    fn any_cell() -> impl Strategy<Value = Cell> {
        (prop::sample::select(KINDS.to_vec()), any::<bool>()).prop_map(|(kind, signed)| {
            let scale = if matches!(kind, Kind::Bits16 | Kind::Bits32) { "1" } else { "0.01" };
            cell_in(kind, ByteOrder::low_first(kind.bytes()), scale, signed && kind.is_bcd())
        })
    }

    proptest! {
        /// Whatever was decoded can be said again with the same value; canonical bytes come back as they were.
        #[test]
        fn what_is_decoded_encodes_to_the_same_value(cell in any_cell(), wire in prop::collection::vec(any::<u8>(), 8)) {
            if let Ok(value) = decode(&cell, &wire).value {
                let again = encode(&cell, value).unwrap();
                prop_assert_eq!(decode(&cell, &again).value, Ok(value));
                if !value.is_zero() {
                    prop_assert_eq!(&again[..], &wire[..again.len()]);
                }
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_a_panic(cell in any_cell(), wire in prop::collection::vec(any::<u8>(), 0..12)) {
            let _ = decode(&cell, &wire);
        }
    }
}
