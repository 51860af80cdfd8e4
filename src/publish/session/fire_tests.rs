//! Hours in no time: late acknowledgements, receipts that stay away, brokers that hang up, rejections by the thousand.

use super::{
    super::{
        link::Cause,
        payload::{Receipt, Rejected},
    },
    receipts::{MAX_PARKED, Note, RECEIPT_PATIENCE},
    *,
};

const LEDGER: &str = "0123456789abcdef0123456789abcdef";
const KEEP_ALIVE: Duration = Duration::from_secs(20);

fn online(confirm: Confirm, head: Seq, acknowledged: Seq, confirmed: Seq, now: Instant) -> Session {
    let mut s = Session::new(LEDGER, confirm, head, acknowledged, confirmed, now);
    up(&mut s, now);
    s
}

fn up(s: &mut Session, now: Instant) {
    while s.poll(now) != Action::Connect {}
    s.handle(Event::Connected { receive_max: 100, keep_alive: KEEP_ALIVE }, now);
    s.handle(Event::Up, now);
}

/// The next send, over the advances.
fn next(s: &mut Session, now: Instant) -> Option<Tag> {
    loop {
        match s.poll(now) {
            Action::Advance(..) => {}
            Action::Subscribe(_) => s.handle(Event::Up, now),
            Action::Send(tag) => return Some(tag),
            _ => return None,
        }
    }
}

fn send(s: &mut Session, pkid: u16, now: Instant) -> Tag {
    let tag = next(s, now).expect("something is due");
    s.offered(tag.clone(), s.message_bytes(131_072), now);
    s.handle(Event::Sent(pkid), now);
    tag
}

fn receipt(confirmed_seq: Seq, rejected: Vec<Rejected>) -> Event {
    Event::Receipt(Receipt { ledger: LEDGER.into(), confirmed_seq, rejected, resend_from: None })
}

#[test]
fn an_acknowledgement_that_comes_after_35_s_finds_nobody_and_the_records_go_again() {
    let start = Instant::now();
    let mut s = online(Confirm::Broker, 10, 0, 0, start);
    assert_eq!(send(&mut s, 1, start), Tag::Records(1..=10));
    let late = start + Duration::from_secs(30);
    s.handle(Event::Heard, late); // pings are answered all the while
    assert_eq!(s.poll(late), Action::Drop(Fault::Unacknowledged));
    s.handle(Event::Down { random: 0, cause: Cause::Closed }, late);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), start + Duration::from_secs(35));
    assert_eq!(s.acknowledged_seq(), 0, "it belongs to a connection that is gone");
    let again = start + Duration::from_secs(36);
    up(&mut s, again);
    assert_eq!(send(&mut s, 1, again), Tag::Records(1..=10));
}

#[test]
fn a_broker_that_never_acknowledges_is_tried_with_growing_pauses() {
    let start = Instant::now();
    let mut now = start;
    let mut s = Session::new(LEDGER, Confirm::Broker, 10, 0, 0, now);
    let mut connects = 0;
    while now < start + Duration::from_secs(3600) {
        match s.poll(now) {
            Action::Connect => {
                connects += 1;
                s.handle(Event::Connected { receive_max: 100, keep_alive: KEEP_ALIVE }, now);
                s.handle(Event::Up, now);
            }
            Action::Send(tag) => {
                s.offered(tag, 1000, now);
                s.handle(Event::Sent(1), now);
            }
            Action::Subscribe(_) => s.handle(Event::Up, now),
            Action::Drop(_) => s.handle(Event::Down { random: u64::MAX / 2, cause: Cause::Closed }, now),
            Action::WaitUntil(until) => now = until.unwrap(),
            Action::Advance(..) => panic!("nothing was acknowledged"),
        }
    }
    assert!((35..=130).contains(&connects), "{connects} connections in an hour");
}

#[test]
fn two_losses_over_one_message_make_the_next_smaller_and_no_further_than_single_records() {
    let mut now = Instant::now();
    let mut s = online(Confirm::Broker, 10_000, 0, 0, now);
    let mut sizes = vec![s.message_bytes(131_072)];
    for _ in 0..14 {
        send(&mut s, 1, now);
        s.handle(Event::Down { random: 0, cause: Cause::Closed }, now);
        now += Duration::from_secs(1);
        up(&mut s, now);
        sizes.push(s.message_bytes(131_072));
    }
    assert_eq!(sizes[..6], [131_072, 131_072, 32_768, 32_768, 8_192, 8_192]);
    assert_eq!(sizes.last(), Some(&128), "and no further");
}

#[test]
fn a_reason_that_is_given_is_not_the_size() {
    let mut now = Instant::now();
    let mut s = online(Confirm::Broker, 10_000, 0, 0, now);
    for _ in 0..10 {
        send(&mut s, 1, now);
        s.handle(Event::Down { random: 0, cause: Cause::Said }, now);
        now += Duration::from_secs(1);
        up(&mut s, now);
    }
    assert_eq!(s.message_bytes(131_072), 131_072);
}

#[test]
fn a_lost_connection_with_nothing_in_flight_says_nothing_about_size() {
    let mut now = Instant::now();
    let mut s = online(Confirm::Broker, 0, 0, 0, now);
    for _ in 0..10 {
        s.handle(Event::Down { random: 0, cause: Cause::Closed }, now);
        now += Duration::from_secs(1);
        up(&mut s, now);
    }
    assert_eq!(s.size_limit(), None);
}

#[test]
fn a_receipt_that_stays_away_is_shown_after_an_hour_with_a_broker() {
    let start = Instant::now();
    let at = |secs: u64| start + Duration::from_secs(secs);
    let mut s = online(Confirm::Billing, 10, 0, 0, start);
    send(&mut s, 1, start);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), at(1));
    assert_eq!(s.awaiting_receipt_since(at(3600)), None);
    // Two hours without a broker are not billing's fault.
    s.handle(Event::Down { random: 0, cause: Cause::Closed }, at(1801));
    up(&mut s, at(9001));
    assert_eq!(s.awaiting_receipt_since(at(9001 + 1799)), None);
    assert_eq!(s.awaiting_receipt_since(at(9001 + 1800)), Some(at(1)));
    s.handle(receipt(4, vec![]), at(11_000));
    assert_eq!(s.awaiting_receipt_since(at(11_000)), None, "it confirms again");
    let again = at(11_000) + RECEIPT_PATIENCE;
    assert_eq!(s.awaiting_receipt_since(again), Some(at(11_000)));
    s.handle(receipt(4, vec![]), again);
    assert!(s.awaiting_receipt_since(again).is_some(), "the same one again confirms nothing");
    s.handle(receipt(10, vec![]), again);
    assert_eq!(s.awaiting_receipt_since(again + RECEIPT_PATIENCE), None, "all is confirmed");
    let s = online(Confirm::Broker, 10, 10, 0, start);
    assert_eq!(s.awaiting_receipt_since(at(90_000)), None, "where the broker's word is enough");
}

#[test]
fn a_start_sends_again_what_is_not_confirmed_up_to_a_limit() {
    let now = Instant::now();
    let first = |confirm, acknowledged, confirmed| {
        next(&mut online(confirm, acknowledged, acknowledged, confirmed, now), now)
    };
    assert_eq!(first(Confirm::Broker, 900, 100), None);
    assert_eq!(first(Confirm::Billing, 900, 700), Some(Tag::Records(701..=900)));
    assert_eq!(first(Confirm::Billing, 900, 900), None);
    let year = 24_000_000;
    assert_eq!(
        first(Confirm::Billing, year, 0),
        Some(Tag::Records(year - RESUME_MAX + 1..=year - RESUME_MAX + 500))
    );
}

#[test]
fn where_billing_confirms_connections_that_die_early_still_get_ahead() {
    let mut now = Instant::now();
    let mut s = Session::new(LEDGER, Confirm::Billing, 5_000, 0, 0, now);
    for round in 0..10 {
        up(&mut s, now);
        assert_eq!(send(&mut s, 1, now), Tag::Records(round * 500 + 1..=round * 500 + 500));
        s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
        s.handle(receipt(round * 500 + 500, vec![]), now);
        s.handle(Event::Down { random: 0, cause: Cause::Closed }, now);
        now += Duration::from_secs(1);
    }
    assert_eq!(s.confirmed_seq(), 5_000);
}

#[test]
fn thousands_of_rejections_are_counted_and_the_list_stays_short() {
    let now = Instant::now();
    let mut s = online(Confirm::Billing, 100_000, 100_000, 0, now);
    let many = |from: Seq| {
        (from..from + 5_000).map(|seq| Rejected { seq, reason: "é".repeat(500) }).collect::<Vec<_>>()
    };
    s.handle(receipt(0, many(1)), now);
    s.handle(receipt(0, many(1)), now);
    assert_eq!((s.rejected().len(), s.rejected_unlisted()), (MAX_PARKED, 9_600));
    assert_eq!(s.rejected()[0].reason.len(), 200, "cut between characters");
    let mut notes = 0;
    while let Some(note) = s.note() {
        assert!(matches!(note, Note::Rejected(_)));
        s.noted();
        notes += 1;
    }
    assert_eq!(notes, MAX_PARKED, "each is noted once");
    assert_eq!(s.confirmed_seq(), 0);
    s.handle(receipt(90_000, vec![]), now);
    assert_eq!(s.confirmed_seq(), 90_000, "nothing waits for them");
}

fn replay(from: Seq) -> Tag {
    Tag::Again(Reason::Replay, from..=from + 499)
}

#[test]
fn refused_replays_keep_their_order_and_do_not_pile_up() {
    let now = Instant::now();
    let mut s = online(Confirm::Broker, 2_000, 2_000, 2_000, now);
    assert_eq!(s.replay(1, 2_000), Resend::Queued(1..=2_000));
    assert_eq!(s.replay(10, 20), Resend::Merged);
    assert_eq!(send(&mut s, 1, now), replay(1));
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    for (pkid, from) in [(2, 501), (3, 1_001), (4, 1_501)] {
        assert_eq!(send(&mut s, pkid, now), replay(from));
    }
    for pkid in [3, 2, 4] {
        s.handle(Event::Acknowledged(pkid, Verdict::Failed("0x97".into())), now);
    }
    assert!(s.replays_waiting().eq([501..=2_000]), "joined again");
    let later = now + Duration::from_secs(10);
    assert_eq!(send(&mut s, 5, later), replay(501));
    s.handle(Event::Acknowledged(5, Verdict::Accepted), later);
    for (pkid, from) in [(6, 1_001), (7, 1_501)] {
        assert_eq!(send(&mut s, pkid, later), replay(from));
    }
}
