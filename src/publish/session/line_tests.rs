//! Slow lines and untold packet limits in simulated time: how long a backlog takes, and what is sent twice.

use super::{super::link::Cause, *};

const LEDGER: &str = "0123456789abcdef0123456789abcdef";
/// Bytes of a record on the wire.
const RECORD: usize = 600;
/// The client's ping; the next one finds the answer to this one, or the connection ends.
const PING: Duration = Duration::from_secs(20);

/// A line that carries so many bytes in a second, each way, with buffers without an end, and a broker behind it.
struct Line {
    bytes_per_sec: u64,
    delay: Duration,
    /// Messages of more bytes end the connection without a word.
    takes: usize,
}

#[derive(Default, Debug)]
struct Drained {
    took: Duration,
    sent: u64,
    connections: u32,
    longest_queue: Duration,
    largest: usize,
}

fn drain(line: &Line, records: u64) -> Drained {
    drain_changing(|_| line.bytes_per_sec, line, records)
}

fn drain_changing(rate: impl Fn(Duration) -> u64, line: &Line, records: u64) -> Drained {
    let start = Instant::now();
    let mut now = start;
    let mut s = Session::new(LEDGER, Confirm::Broker, records, 0, 0, now);
    let mut seen = Drained::default();
    let mut free = now; // when the line has carried what it was given
    let mut acks: VecDeque<(Instant, u16)> = VecDeque::new();
    let (mut pkid, mut ends) = (0, None::<Instant>);
    while s.acknowledged_seq() < records {
        assert!(now < start + Duration::from_secs(100_000), "{seen:?}");
        match s.poll(now) {
            Action::Advance(..) => {}
            Action::Connect => {
                seen.connections += 1;
                acks.clear();
                (pkid, ends, free) = (0, None, now);
                now += line.delay * 2;
                s.handle(Event::Connected { receive_max: 1000, keep_alive: PING }, now);
            }
            Action::Subscribe(_) => {
                now += line.delay * 2;
                s.handle(Event::Up, now);
            }
            Action::Drop(fault) => {
                assert!(line.bytes_per_sec < 5_000, "{fault}: {seen:?}");
                s.handle(Event::Down { random: 0, cause: fault.cause() }, now);
            }
            Action::Send(Tag::Records(range)) => {
                let fits = (s.message_bytes(131_072) / RECORD).max(1) as u64;
                let range = *range.start()..=(*range.end()).min(range.start() + fits - 1);
                let count = range.end() - range.start() + 1;
                let bytes = usize::try_from(count).unwrap() * RECORD;
                seen.sent += count;
                s.offered(Tag::Records(range), bytes, now);
                pkid += 1;
                s.handle(Event::Sent(pkid), now);
                free = free.max(now) + Duration::from_millis(bytes as u64 * 1000 / rate(now - start));
                seen.longest_queue = seen.longest_queue.max(free - now);
                if bytes > line.takes {
                    ends.get_or_insert(free + line.delay);
                } else {
                    seen.largest = seen.largest.max(bytes);
                    acks.push_back((free + line.delay * 2, pkid));
                }
            }
            Action::Send(tag) => panic!("{tag:?}"),
            Action::WaitUntil(until) => {
                let next = acks.front().map(|(at, _)| *at);
                let wake = [until, next, ends].into_iter().flatten().min().unwrap();
                now = now.max(wake);
                if ends == Some(wake) {
                    ends = None;
                    acks.clear();
                    s.handle(Event::Down { random: 0, cause: Cause::Closed }, now);
                } else if next == Some(wake) {
                    let (_, pkid) = acks.pop_front().unwrap();
                    s.handle(Event::Acknowledged(pkid, Verdict::Accepted), now);
                }
            }
        }
    }
    seen.took = now - start;
    seen
}

const NO_LIMIT: usize = usize::MAX;

#[test]
fn a_backlog_goes_at_the_rate_of_the_line_and_nothing_twice() {
    for kbit in [64, 300, 500, 800, 2_000, 100_000] {
        for delay_ms in [1, 40, 300] {
            let line =
                Line { bytes_per_sec: kbit * 125, delay: Duration::from_millis(delay_ms), takes: NO_LIMIT };
            let records = (kbit * 125 * 120 / RECORD as u64).clamp(1_000, 100_000);
            let seen = drain(&line, records);
            let bytes = records * RECORD as u64;
            let windows = bytes / (u64::from(WINDOW) * 128 * 1024); // what the window allows, with a round trip each
            let ideal =
                Duration::from_millis((bytes * 1000 / line.bytes_per_sec).max(windows * delay_ms * 2));
            assert!(
                seen.took.as_millis() * 100
                    <= ideal.as_millis() * 115 + 300_000 + u128::from(delay_ms) * 2_000,
                "{kbit} kbit/s, {delay_ms} ms: {ideal:?} at best, {seen:?}"
            );
            assert_eq!((seen.sent, seen.connections), (records, 1), "{kbit} kbit/s: nothing goes twice");
            assert!(seen.longest_queue < PING, "{kbit} kbit/s, {delay_ms} ms: a ping waits: {seen:?}");
        }
    }
}

#[test]
fn a_line_of_9600_bit_is_found_out_and_used() {
    let line = Line { bytes_per_sec: 1_200, delay: Duration::from_millis(300), takes: NO_LIMIT };
    let seen = drain(&line, 5_000);
    assert!(
        seen.connections <= 4 && seen.took < Duration::from_secs(5_000 * 600 / 1_200 * 5 / 4),
        "{seen:?}"
    );
}

#[test]
fn a_line_that_becomes_ten_times_slower_costs_no_connection() {
    let line = Line { bytes_per_sec: 100_000, delay: Duration::from_millis(50), takes: NO_LIMIT };
    let rate = |at: Duration| if at.as_secs() < 60 { 100_000 } else { 10_000 };
    let seen = drain_changing(rate, &line, 15_000);
    assert_eq!((seen.sent, seen.connections), (15_000, 1), "{seen:?}");
}

#[test]
fn an_untold_packet_limit_is_found_once_and_remembered() {
    for takes in [20_000, 40_000, 100_000] {
        let line = Line { bytes_per_sec: 10_000_000, delay: Duration::from_millis(5), takes };
        let seen = drain(&line, 300_000);
        let steps = if takes < 32_768 { 2 } else { 1 };
        assert_eq!(seen.connections, 1 + 2 * steps, "{takes}: two losses tell it: {seen:?}");
        assert!(seen.largest * 4 > takes, "{takes}: {seen:?}");
    }
}

#[test]
fn a_packet_limit_is_doubted_after_growing_pauses() {
    let mut now = Instant::now();
    let mut size = size::MessageSize::default();
    size.accepted(30_000, now);
    size.lost(60_000, false, now);
    size.accepted(30_000, now);
    size.lost(60_000, false, now);
    assert_eq!(size.of(131_072), 30_000);
    let mut trials = Vec::new();
    for minute in 0..60 * 24 * 3 {
        now += Duration::from_secs(60);
        size.accepted(30_000, now);
        if size.of(131_072) > 30_000 {
            trials.push(minute);
            size.lost(60_000, false, now);
        }
    }
    assert!((4..=7).contains(&trials.len()), "{trials:?}");
    now += Duration::from_secs(90_000);
    size.accepted(30_000, now);
    size.accepted(100_000, now);
    assert_eq!(size.of(131_072), 131_072, "the broker was changed");
}
