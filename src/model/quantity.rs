//! Exact decimals and units. The only file that names the decimal crate.
//!
//! A `Dec` keeps the digits it was made from: `12345.00` stays `12345.00`. There is no way in from a
//! float but its shortest decimal text, and no way out but text.

use std::{fmt, str::FromStr};

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An exact decimal of up to 28 digits that remembers its trailing zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Dec(Decimal);

/// Why a text or a computation is not an exact decimal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecError {
    /// Not a plain decimal number.
    #[error("{0:?} is not a decimal number such as 40 or 0.01")]
    Syntax(String),
    /// More digits than can be kept exactly.
    #[error("{0:?} has more digits than can be kept exactly (28)")]
    TooLong(String),
}

impl Dec {
    /// Zero, without decimals.
    pub const ZERO: Dec = Dec(Decimal::ZERO);
    /// One, without decimals.
    pub const ONE: Dec = Dec(Decimal::ONE);

    /// `mantissa × 10^-decimals`, exactly; `None` when it does not fit 28 digits.
    pub fn from_parts(mantissa: i128, decimals: u32) -> Option<Dec> {
        Decimal::try_from_i128_with_scale(mantissa, decimals).ok().map(Dec)
    }

    /// `10^exponent`, exactly, for -28..=28.
    pub fn power_of_ten(exponent: i32) -> Option<Dec> {
        if exponent >= 0 {
            Dec::from_parts(10_i128.checked_pow(u32::try_from(exponent).ok()?)?, 0)
        } else {
            Dec::from_parts(1, exponent.unsigned_abs())
        }
    }

    /// The mantissa and the number of decimals.
    pub fn parts(self) -> (i128, u32) {
        (self.0.mantissa(), self.0.scale())
    }

    /// Sum, or `None` when it does not fit.
    pub fn plus(self, other: Dec) -> Option<Dec> {
        self.0.checked_add(other.0).map(Dec)
    }

    /// Difference, or `None` when it does not fit.
    pub fn minus(self, other: Dec) -> Option<Dec> {
        self.0.checked_sub(other.0).map(Dec)
    }

    /// Exact product (the decimals add up), or `None` when it does not fit.
    pub fn times(self, other: Dec) -> Option<Dec> {
        let (a, a_decimals) = self.parts();
        let (b, b_decimals) = other.parts();
        Dec::from_parts(a.checked_mul(b)?, a_decimals.checked_add(b_decimals)?)
    }

    /// Quotient to 28 digits, for ratios that are only compared; `None` when dividing by zero.
    pub fn ratio(self, other: Dec) -> Option<Dec> {
        self.0.checked_div(other.0).map(Dec)
    }

    /// Below zero.
    pub fn is_negative(self) -> bool {
        self.0.is_sign_negative() && !self.0.is_zero()
    }

    /// Exactly zero, whatever its decimals.
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// Distance from zero.
    #[must_use]
    pub fn abs(self) -> Dec {
        Dec(self.0.abs())
    }

    /// The same number without trailing zeros.
    #[must_use]
    pub fn normalized(self) -> Dec {
        Dec(self.0.normalize())
    }
}

impl From<u64> for Dec {
    fn from(n: u64) -> Dec {
        Dec(Decimal::from(n))
    }
}

impl FromStr for Dec {
    type Err = DecError;

    fn from_str(text: &str) -> Result<Dec, DecError> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let plain = !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit() || b == b'.')
            && digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.ends_with(|c: char| c.is_ascii_digit())
            && digits.matches('.').count() <= 1;
        if !plain {
            return Err(DecError::Syntax(text.to_owned()));
        }
        Decimal::from_str_exact(text).map(Dec).map_err(|_| DecError::TooLong(text.to_owned()))
    }
}

impl fmt::Display for Dec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Dec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Serialize for Dec {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Dec {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// The unit of a point, in UCUM spelling where the contract names one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Unit {
    /// Active energy.
    #[serde(rename = "kWh")]
    KilowattHour,
    /// Reactive energy.
    #[serde(rename = "kvarh")]
    KilovarHour,
    /// Power.
    #[serde(rename = "W")]
    Watt,
    /// Voltage.
    #[serde(rename = "V")]
    Volt,
    /// Current.
    #[serde(rename = "A")]
    Ampere,
    /// Frequency.
    #[serde(rename = "Hz")]
    Hertz,
    /// Volume.
    #[serde(rename = "m3")]
    CubicMetre,
    /// Flow.
    #[serde(rename = "m3/h")]
    CubicMetrePerHour,
    /// Temperature in degrees Celsius.
    #[serde(rename = "Cel")]
    Celsius,
    /// A plain number: ratios, status words, serial numbers.
    #[serde(rename = "1")]
    One,
}

impl Unit {
    /// The spelling used on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Unit::KilowattHour => "kWh",
            Unit::KilovarHour => "kvarh",
            Unit::Watt => "W",
            Unit::Volt => "V",
            Unit::Ampere => "A",
            Unit::Hertz => "Hz",
            Unit::CubicMetre => "m3",
            Unit::CubicMetrePerHour => "m3/h",
            Unit::Celsius => "Cel",
            Unit::One => "1",
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_survive() {
        for text in ["12345.00", "0.001", "-12.5", "0", "18446744073709551615"] {
            assert_eq!(text.parse::<Dec>().unwrap().to_string(), text);
        }
        assert_eq!(Dec::from_parts(1_234_500, 2).unwrap().to_string(), "12345.00");
        let scaled = Dec::from(1234).times("0.01".parse().unwrap()).unwrap();
        assert_eq!(scaled.to_string(), "12.34");
    }

    #[test]
    fn what_is_not_a_plain_decimal_is_refused() {
        for text in ["", "-", "1e3", ".5", "5.", "1.2.3", "+1", "1_000", " 1", "NaN"] {
            assert!(text.parse::<Dec>().is_err(), "{text:?}");
        }
        assert!("1".repeat(40).parse::<Dec>().is_err());
    }
}
