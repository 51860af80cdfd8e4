//! Hears the records and notes how old each is: the time since its reply, by the same machine's clock.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
    thread,
};

/// Ages in ms.
#[derive(Default)]
pub struct Ages(Vec<i64>);

impl Ages {
    /// The age below which so many percent are; -1 when nothing was heard.
    pub fn at(&self, percent: usize) -> i64 {
        self.0.get((self.0.len() * percent / 100).min(self.0.len().saturating_sub(1))).copied().unwrap_or(-1)
    }
}

pub struct Subscriber {
    ages: Arc<Mutex<Vec<i64>>>,
}

impl Subscriber {
    /// MQTT 3.1.1 by hand: a client crate would cost more than the gateway.
    pub fn start(port: u16) -> Subscriber {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04hear").unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        let topic = b"metering/v1/+/+/records";
        let length = u8::try_from(topic.len()).unwrap();
        let mut packet = vec![0x82, length + 5, 0, 1, 0, length];
        packet.extend_from_slice(topic);
        packet.push(0);
        stream.write_all(&packet).unwrap();
        let ages = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&ages);
        thread::spawn(move || {
            while let Some((kind, body)) = packet_of(&mut stream) {
                if kind >> 4 == 3 {
                    let now = chrono::Utc::now();
                    note(&body, now, &mut kept.lock().unwrap());
                }
            }
        });
        Subscriber { ages }
    }

    /// What was heard so far does not count.
    pub fn forget(&self) {
        self.ages.lock().unwrap().clear();
    }

    pub fn heard(&self) -> Ages {
        let mut ages = self.ages.lock().unwrap().clone();
        ages.sort_unstable();
        Ages(ages)
    }
}

fn packet_of(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    let kind = byte[0];
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        stream.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((kind, body))
}

/// The ages of a message's first and last reading: of a large one those between are in between.
fn note(body: &[u8], now: chrono::DateTime<chrono::Utc>, ages: &mut Vec<i64>) {
    const NAME: &[u8] = b"\"taken_at\":\"";
    let at = |begin: usize| {
        let text = std::str::from_utf8(body.get(begin..begin + 24)?).ok()?;
        let at = chrono::DateTime::parse_from_rfc3339(text).ok()?;
        Some((now - at.to_utc()).num_milliseconds())
    };
    let mut places = body.windows(NAME.len()).enumerate().filter(|(_, part)| *part == NAME);
    let first = places.next();
    let tail = body.len().saturating_sub(4000);
    let last = body[tail..].windows(NAME.len()).rposition(|part| part == NAME).map(|place| place + tail);
    ages.extend(first.and_then(|(place, _)| at(place + NAME.len())));
    ages.extend(last.and_then(|place| at(place + NAME.len())));
}
