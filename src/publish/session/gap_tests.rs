//! A consumer that takes only the next record, behind a broker that acknowledges what it does not keep, in simulated time.

use super::{
    super::{link::Cause, payload::Receipt},
    *,
};

const LEDGER: &str = "0123456789abcdef0123456789abcdef";
/// Bytes of a record, for what is counted.
const RECORD_BYTES: u64 = 450;
/// Records in a message of 128 KiB.
const PER_MESSAGE: Seq = 290;

/// When billing says what it has.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    /// After each message, whether it took something of it or not.
    Each,
    /// After each message of which it took something.
    Taken,
    /// Every so many seconds.
    Every(u64),
    Never,
}

/// Session, broker and consumer. Each message takes a tenth of a second to the consumer.
struct World {
    s: Session,
    start: Instant,
    now: Instant,
    pkid: u16,
    /// On the way to the consumer, at most `queue` of them.
    queue: VecDeque<RangeInclusive<Seq>>,
    room: usize,
    reached: Seq,
    consumer: bool,
    says: Says,
    said_at: Instant,
    resend_at_gap: bool,
    sent_again: Vec<(u64, RangeInclusive<Seq>)>,
    records_sent: Seq,
    cursors: (Seq, Seq),
}

impl World {
    fn new(confirm: Confirm, says: Says) -> World {
        let start = Instant::now();
        let mut world = World {
            s: Session::new(LEDGER, confirm, 0, 0, 0, start),
            start,
            now: start,
            pkid: 0,
            queue: VecDeque::new(),
            room: usize::MAX,
            reached: 0,
            consumer: true,
            says,
            said_at: start,
            resend_at_gap: false,
            sent_again: Vec::new(),
            records_sent: 0,
            cursors: (0, 0),
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        while self.s.poll(self.now) != Action::Connect {
            self.now += Duration::from_millis(100);
        }
        self.s.handle(Event::Connected { receive_max: 100, keep_alive: Duration::from_secs(20) }, self.now);
        self.s.handle(Event::Up, self.now);
    }

    fn store(&mut self, count: Seq) {
        let head = self.s.head + count;
        self.s.handle(Event::Stored(head), self.now);
    }

    fn say(&mut self, confirmed_seq: Seq, resend_from: Option<Seq>) {
        let (ledger, resend_from) = (LEDGER.to_owned(), resend_from.map(Ok));
        let receipt = Receipt { ledger, confirmed_seq, rejected: vec![], resend_from };
        self.s.handle(Event::Receipt(receipt), self.now);
        self.said_at = self.now;
    }

    /// Everything that may be sent is, and acknowledged at once.
    fn flush(&mut self) {
        loop {
            match self.s.poll(self.now) {
                Action::Send(tag) => {
                    let (Tag::Records(range) | Tag::Again(_, range)) = tag.clone() else { unreachable!() };
                    let part = *range.start()..=(*range.end()).min(range.start() + PER_MESSAGE - 1);
                    let count = part.end() - part.start() + 1;
                    let tag = if let Tag::Again(reason, _) = tag {
                        self.sent_again.push(((self.now - self.start).as_secs(), part.clone()));
                        Tag::Again(reason, part.clone())
                    } else {
                        self.records_sent += count;
                        Tag::Records(part.clone())
                    };
                    self.pkid = self.pkid % 60_000 + 1;
                    self.s.offered(tag, usize::try_from(count * RECORD_BYTES).unwrap(), self.now);
                    self.s.handle(Event::Sent(self.pkid), self.now);
                    if self.consumer && self.queue.len() < self.room {
                        self.queue.push_back(part); // else nobody gets it
                    }
                    self.s.handle(Event::Acknowledged(self.pkid, Verdict::Accepted), self.now);
                }
                Action::Advance(Cursor::Acknowledged, to) => {
                    assert!(to > self.cursors.0, "a cursor never goes back");
                    self.cursors.0 = to;
                }
                Action::Advance(Cursor::Confirmed, to) => {
                    assert!(to > self.cursors.1, "a cursor never goes back");
                    self.cursors.1 = to;
                }
                Action::WaitUntil(_) => return,
                other => panic!("{other:?}"),
            }
        }
    }

    /// A tenth of a second, in which the consumer takes one message; a whole one where nothing is on its way.
    fn step(&mut self) {
        self.flush();
        self.now += Duration::from_millis(if self.queue.is_empty() { 1_000 } else { 100 });
        self.s.handle(Event::Heard, self.now); // pings are answered
        if let Some(range) = self.queue.pop_front().filter(|_| self.consumer) {
            let next = *range.start() <= self.reached + 1;
            let taken = next && *range.end() > self.reached;
            if taken {
                self.reached = *range.end();
            }
            if self.says == Says::Each || (self.says == Says::Taken && taken) {
                let resend = (self.resend_at_gap && !next).then_some(self.reached + 1);
                self.say(self.reached, resend);
            }
        }
        if let Says::Every(secs) = self.says
            && self.consumer
            && self.now - self.said_at >= Duration::from_secs(secs)
        {
            self.say(self.reached, None);
        }
    }

    fn seconds(&mut self, secs: u64) {
        let end = self.now + Duration::from_secs(secs);
        while self.now < end {
            self.step();
        }
    }

    /// Seconds until the consumer has everything.
    fn until_closed(&mut self, limit: u64) -> u64 {
        let begun = self.now;
        while self.reached < self.s.head {
            self.step();
            assert!(
                self.now - begun < Duration::from_secs(limit),
                "stands at {} of {}",
                self.reached,
                self.s.head
            );
        }
        (self.now - begun).as_secs()
    }

    fn again(&self) -> Seq {
        self.sent_again.iter().map(|(_, range)| range.end() - range.start() + 1).sum()
    }
}

/// So many records nobody got, and the broker acknowledged them.
fn lose(w: &mut World, count: Seq) {
    w.consumer = false;
    w.store(count);
    w.flush();
    w.consumer = true;
    assert_eq!(w.s.acknowledged_seq(), w.s.head);
}

#[test]
fn a_gap_closes_by_itself_within_seconds_however_large() {
    for (lost, limit) in [(1, 6), (49, 6), (50, 6), (51, 7), (500, 8), (20_000, 25)] {
        let mut w = World::new(Confirm::Billing, Says::Taken);
        w.store(10);
        w.seconds(2);
        assert_eq!(w.s.confirmed_seq(), 10);
        lose(&mut w, lost);
        assert_eq!(w.again(), 0);
        let took = w.until_closed(limit);
        w.seconds(3600);
        assert!(took >= 5, "{lost} lost: a consumer that is a little slow is not at a gap");
        assert_eq!((w.again(), w.s.confirmed_seq()), (lost, lost + 10), "each once, and then there is peace");
        assert_eq!(w.s.receipts_behind(), None);
    }
}

#[test]
fn a_gap_closes_while_new_records_are_stored_and_they_are_never_late() {
    let mut w = World::new(Confirm::Billing, Says::Taken);
    w.store(10);
    w.seconds(2);
    lose(&mut w, 5_000);
    let mut closed = None;
    for second in 0..60 {
        w.store(3);
        w.seconds(1);
        assert_eq!(w.s.next, w.s.head + 1, "new records go out within the second");
        if w.reached == w.s.head && closed.is_none() {
            closed = Some(second);
        }
    }
    assert!(closed.is_some_and(|second| second < 15), "{closed:?}");
    assert!(w.again() < 5_200, "{} records were sent again for 5000", w.again());
}

#[test]
fn pieces_fit_a_small_queue() {
    for room in [1, 2, 5] {
        let mut w = World::new(Confirm::Billing, Says::Taken);
        w.store(10);
        w.seconds(2);
        lose(&mut w, 10_000);
        w.room = room;
        w.until_closed(200);
        assert!(w.again() < 20_000, "room for {room}: {} records again", w.again());
    }
}

#[test]
fn before_any_receipt_nothing_is_sent_again_and_that_nobody_confirms_is_shown() {
    let mut w = World::new(Confirm::Billing, Says::Never);
    assert!(!w.s.nobody_confirms(w.now), "nothing is sent yet");
    lose(&mut w, 100);
    w.seconds(9);
    assert!(!w.s.nobody_confirms(w.now));
    w.seconds(2);
    assert!(w.s.nobody_confirms(w.now));
    w.seconds(7_200);
    assert_eq!(w.again(), 0);
    w.say(0, None); // nothing yet: that is a receipt, too
    assert!(!w.s.nobody_confirms(w.now));
    w.says = Says::Taken;
    assert!(w.until_closed(7) >= 5);
    assert_eq!(w.again(), 100);
}

#[test]
fn who_is_away_gets_little_and_with_growing_pauses() {
    let mut w = World::new(Confirm::Billing, Says::Taken);
    w.store(10);
    w.seconds(2);
    lose(&mut w, 10_000);
    w.consumer = false;
    w.seconds(7_200);
    let at: Vec<u64> = w.sent_again.iter().map(|(at, _)| at - 2).collect();
    assert_eq!(at[..9], [5, 15, 35, 75, 155, 315, 635, 1275, 2555]);
    assert!(at.len() <= 12 && w.again() <= 12 * 50, "{at:?}");
    assert_eq!(w.s.receipts_behind(), Some(10));
    // It is back and says so: it need not wait for the pause to end.
    w.consumer = true;
    w.say(10, None);
    assert!(w.until_closed(20) < 20);
    assert_eq!(w.s.receipts_behind(), None);
}

/// It lacks nothing. What it costs: bytes in a day, of a site with 120 records an hour.
#[test]
fn a_consumer_that_commits_seldom_costs_little() {
    for (every, most_percent) in [(10, 5), (60, 10), (600, 10), (3_600, 60), (86_400, 100)] {
        let mut w = World::new(Confirm::Billing, Says::Every(every));
        w.say(0, None);
        for _ in 0..96 {
            w.store(30);
            w.seconds(900);
        }
        assert_eq!(w.records_sent, 2_880);
        let percent = w.again() * 100 / w.records_sent;
        println!("every {every} s: {} of {} records again", w.again(), w.records_sent);
        assert!(percent <= most_percent, "every {every} s: {percent} % is sent again");
    }
}

/// Receipts that move nothing do not make it send more.
#[test]
fn a_consumer_that_says_often_that_it_stands_still_costs_little() {
    for every in [1, 10, 60, 600, 3_600] {
        let mut w = World::new(Confirm::Billing, Says::Every(every));
        w.store(10);
        w.seconds(every + 2);
        lose(&mut w, 10_000);
        w.consumer = false;
        for _ in 0..86_400 / every {
            w.seconds(every);
            w.say(10, None);
        }
        assert!(w.sent_again.len() <= 120, "every {every} s: {} messages in a day", w.sent_again.len());
    }
}

#[test]
fn a_new_connection_is_no_reason_to_send_more() {
    let mut w = World::new(Confirm::Billing, Says::Taken);
    w.store(10);
    w.seconds(2);
    lose(&mut w, 1_000);
    w.consumer = false;
    w.seconds(60);
    let before = w.again();
    w.s.handle(Event::Down { random: 0, cause: Cause::Closed }, w.now);
    w.connect();
    w.flush();
    assert_eq!(
        (w.again(), w.s.next),
        (before, w.s.head + 1),
        "the connection itself begins where billing is"
    );
    w.consumer = true;
    w.until_closed(100);
}

#[test]
fn a_receipt_asks_for_what_it_lacks_and_gets_it_at_once() {
    for confirm in [Confirm::Broker, Confirm::Billing] {
        let mut w = World::new(confirm, Says::Each);
        w.resend_at_gap = true;
        w.store(10);
        w.seconds(2);
        lose(&mut w, 3_000);
        w.store(1); // the consumer sees the gap by it
        assert!(w.until_closed(5) < 5);
        w.store(1);
        w.seconds(100);
        assert_eq!((w.again(), w.reached), (3_001, 3_012));
    }
}

#[test]
fn what_a_receipt_asks_for_is_bounded_and_named() {
    let mut w = World::new(Confirm::Broker, Says::Never);
    w.store(100);
    w.flush();
    let mut ask = |from| {
        w.say(0, Some(from));
        w.s.take_resend()
    };
    assert_eq!(ask(u64::MAX), Some(Resend::NeverSent(100)));
    assert_eq!(ask(102), Some(Resend::NeverSent(100)));
    assert_eq!(ask(101), Some(Resend::Merged), "the next one comes by itself");
    assert_eq!(ask(60), Some(Resend::Queued(60..=100)));
    assert_eq!(ask(60), Some(Resend::Merged));
    assert_eq!(ask(77), Some(Resend::Merged));
    assert_eq!(ask(0), Some(Resend::Queued(1..=100)));
    w.flush();
    assert_eq!(w.again(), 100);
    let receipt = |ledger: &str, confirmed_seq| {
        Event::Receipt(Receipt {
            ledger: ledger.into(),
            confirmed_seq,
            rejected: vec![],
            resend_from: Some(Ok(1)),
        })
    };
    for ignored in [receipt("another", 0), receipt(LEDGER, 101)] {
        w.s.handle(ignored, w.now);
        assert_eq!(w.s.take_resend(), None);
    }
    assert_eq!(w.cursors, (100, 100));
}

/// Asked again and again for the same, it is sent with growing pauses.
#[test]
fn a_consumer_that_asks_for_ever_gets_a_bounded_answer() {
    let mut w = World::new(Confirm::Broker, Says::Never);
    w.store(100);
    w.flush();
    for _ in 0..3_600 {
        w.say(0, Some(1));
        w.seconds(1);
    }
    assert!((9..=11).contains(&w.sent_again.len()), "{:?}", w.sent_again);
}

#[test]
fn where_the_brokers_word_counts_receipts_that_stay_behind_are_shown_and_nothing_is_sent_again() {
    let mut w = World::new(Confirm::Broker, Says::Taken);
    w.store(10);
    w.seconds(2);
    assert!(w.s.receipts_keep_up());
    lose(&mut w, 5);
    w.seconds(14);
    assert_eq!(w.s.receipts_behind(), None);
    w.seconds(2);
    assert_eq!((w.s.receipts_behind(), w.s.receipts_keep_up(), w.again()), (Some(10), false, 0));
    w.say(10, Some(11));
    w.until_closed(1);
    assert_eq!((w.s.receipts_behind(), w.s.receipts_keep_up()), (None, true));
}

/// What somebody asked for does not hold up new records, and does not fill the window or the line.
#[test]
fn replays_have_their_share_and_no_more() {
    let mut w = World::new(Confirm::Broker, Says::Never);
    w.store(1_000_000);
    for _ in 0..10 {
        w.seconds(10);
    }
    assert_eq!(w.s.acknowledged_seq(), 1_000_000);
    for _ in 0..66 {
        w.s.replay(1, 1_000_000);
    }
    let bytes = |w: &World| w.again() * RECORD_BYTES;
    let before = w.records_sent;
    for _ in 0..60 {
        w.store(5);
        w.seconds(1);
    }
    assert_eq!(w.records_sent - before, 300);
    assert!((60 << 20..=65 << 20).contains(&bytes(&w)), "{} bytes in a minute", bytes(&w));
    w.seconds(600);
    assert_eq!(w.again(), 1_000_000, "once, however often it was asked for");
}

#[test]
fn replays_leave_most_of_the_window_to_new_records() {
    let now = Instant::now();
    let mut s = Session::new(LEDGER, Confirm::Broker, 50_000, 50_000, 50_000, now);
    assert_eq!(s.poll(now), Action::Connect);
    s.handle(Event::Connected { receive_max: 32, keep_alive: Duration::from_secs(20) }, now);
    s.handle(Event::Up, now);
    s.careful = false;
    s.replay(1, 50_000);
    let mut sent = 0;
    while let Action::Send(tag) = s.poll(now) {
        s.offered(tag, 1_000, now);
        sent += 1;
    }
    assert_eq!(sent, 8, "a quarter of the window");
    s.handle(Event::Stored(50_001), now);
    assert_eq!(s.poll(now), Action::Send(Tag::Records(50_001..=50_001)));
}
