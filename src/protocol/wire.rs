//! How long characters take on a line (Modbus over Serial Line V1.02, 2.5.1.1).

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Parity of a serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parity {
    /// No parity bit.
    None,
    /// Even parity.
    Even,
    /// Odd parity.
    Odd,
}

/// The settings of a serial line. Eight data bits, always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Wire {
    /// Bits per second.
    pub baud: u32,
    /// Parity bit.
    pub parity: Parity,
    /// 1 or 2.
    pub stop_bits: u8,
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parity = match self.parity {
            Parity::None => 'N',
            Parity::Even => 'E',
            Parity::Odd => 'O',
        };
        write!(f, "{} 8{parity}{}", self.baud, self.stop_bits)
    }
}

impl Wire {
    /// Start bit, eight data bits, parity, stop bits.
    pub fn bits_per_char(&self) -> u32 {
        1 + 8 + u32::from(self.parity != Parity::None) + u32::from(self.stop_bits)
    }

    /// Time of one character.
    pub fn char_time(&self) -> Duration {
        Duration::from_nanos(u64::from(self.bits_per_char()) * 1_000_000_000 / u64::from(self.baud.max(1)))
    }

    /// The silence between two frames: 3.5 characters, 1.75 ms above 19 200 baud.
    pub fn silence(&self) -> Duration {
        if self.baud > 19_200 { Duration::from_micros(1750) } else { self.char_time() * 7 / 2 }
    }
}

/// Silence before and after a line's speed or parity is changed: to a meter of the other setting what came before is noise.
pub const RETUNE_GUARD: Duration = Duration::from_millis(50);

/// What is assumed of a line's speed when requests are planned and cycles predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pace {
    /// A serial line of known speed, local or behind a transparent serial server.
    Serial(Wire),
    /// A network peer, behind which no line speed is assumed.
    Network,
}

/// Round trip assumed of a network peer, where the characters cost nothing: a LAN plus a slow converter.
const NETWORK_ROUND_TRIP: Duration = Duration::from_millis(5);

impl Pace {
    /// Predicted time of one exchange: both frames, both silences, and the meter's time to think.
    pub fn exchange_time(&self, request_chars: u32, reply_chars: u32, turnaround: Duration) -> Duration {
        match self {
            Pace::Serial(wire) => {
                wire.char_time() * (request_chars + reply_chars) + wire.silence() * 2 + turnaround
            }
            Pace::Network => NETWORK_ROUND_TRIP + turnaround,
        }
    }

    /// The settings of the serial line, where one is known.
    pub fn wire(&self) -> Option<Wire> {
        match self {
            Pace::Serial(wire) => Some(*wire),
            Pace::Network => None,
        }
    }

    /// Time of so many characters; none behind a network.
    pub fn characters(&self, count: u32) -> Duration {
        self.wire().map_or(Duration::ZERO, |wire| wire.char_time() * count)
    }

    /// Silence kept before a request.
    pub fn silence(&self) -> Duration {
        match self {
            Pace::Serial(wire) => wire.silence(),
            Pace::Network => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn wire(baud: u32, parity: Parity) -> Wire {
        Wire { baud, parity, stop_bits: 1 }
    }

    /// Times of ten words without the meter's own, from the table of Modbus wire times.
    #[test]
    fn ten_words_take_what_the_table_says() {
        for (wire, expected_us) in [
            (wire(9600, Parity::None), 41_667),
            (wire(9600, Parity::Even), 45_833),
            (wire(19_200, Parity::Even), 22_917),
            (wire(115_200, Parity::None), 6_365),
        ] {
            let took = Pace::Serial(wire).exchange_time(8, 25, Duration::ZERO).as_micros();
            assert!(took.abs_diff(expected_us) <= 10, "{wire:?}: {took} us, expected {expected_us}");
        }
    }
}
