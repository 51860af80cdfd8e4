//! The session alone: what it does with each event, and a thousand dishonest brokers under fixed seeds.

use super::{
    super::{
        link::Cause,
        payload::{Receipt, Rejected},
    },
    *,
};

const LEDGER: &str = "0123456789abcdef0123456789abcdef";

fn at(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

fn session(confirm: Confirm, head: Seq, now: Instant) -> Session {
    Session::new(LEDGER, confirm, head, 0, 0, now)
}

fn bring_up(s: &mut Session, receive_max: u16, now: Instant) {
    assert_eq!(drain(s, now).0, Some(Action::Connect));
    s.handle(Event::Connected { receive_max, keep_alive: Duration::from_secs(20) }, now);
    s.handle(Event::Up, now);
}

/// Polls over the advances; the first other action, and the last advance of each cursor.
fn drain(s: &mut Session, now: Instant) -> (Option<Action>, Vec<(Cursor, Seq)>) {
    let mut advances = Vec::new();
    loop {
        match s.poll(now) {
            Action::Advance(cursor, to) => advances.push((cursor, to)),
            Action::Subscribe(_) => s.handle(Event::Up, now),
            Action::WaitUntil(_) => return (None, advances),
            other => return (Some(other), advances),
        }
    }
}

/// Sends everything that may be sent, `per` records in each message, and gives out packet ids from `first`.
fn send_all(s: &mut Session, per: Seq, first: u16, now: Instant) -> Vec<(u16, Tag)> {
    let mut sent = Vec::new();
    while let (Some(Action::Send(tag)), _) = drain(s, now) {
        let tag = match tag {
            Tag::Records(r) => Tag::Records(*r.start()..=(*r.end()).min(r.start() + per - 1)),
            Tag::Again(reason, r) => Tag::Again(reason, *r.start()..=(*r.end()).min(r.start() + per - 1)),
            Tag::Own(_) => panic!("own messages are not asked for"),
        };
        s.offered(tag.clone(), 1000, now);
        let pkid = first + u16::try_from(sent.len()).unwrap();
        s.handle(Event::Sent(pkid), now);
        sent.push((pkid, tag));
    }
    sent
}

#[test]
fn too_many_replays_are_refused_and_the_others_wait() {
    let now = Instant::now();
    let mut s = Session::new(LEDGER, Confirm::Broker, 900, 900, 900, now);
    let taken = (1..=100).filter(|n| matches!(s.replay(n * 9, n * 9), Resend::Queued(_))).count();
    assert_eq!((taken, s.replays_waiting().len()), (MAX_REPLAYS, MAX_REPLAYS));
    assert_eq!(s.replay(900, 900), Resend::Full);
    assert_eq!(s.replay(9, 9), Resend::Merged);
}

#[test]
fn one_message_first_then_the_whole_window() {
    let now = Instant::now();
    let mut s = session(Confirm::Broker, 100_000, now);
    bring_up(&mut s, 65_535, now);
    let sent = send_all(&mut s, 500, 1, now);
    assert_eq!(sent, [(1, Tag::Records(1..=500))]);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    let (_, advances) = drain(&mut s, now);
    assert_eq!(advances, [(Cursor::Acknowledged, 500), (Cursor::Confirmed, 500)]);
    let sent = send_all(&mut s, 10, 2, now);
    assert_eq!(sent.len(), 32);
    assert_eq!(sent[31].1, Tag::Records(811..=820));
}

#[test]
fn a_narrow_broker_narrows_the_window() {
    let now = Instant::now();
    let mut s = session(Confirm::Broker, 1000, now);
    bring_up(&mut s, 3, now);
    send_all(&mut s, 1, 1, now);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    assert_eq!(send_all(&mut s, 1, 2, now).len(), 3);
    assert!(!s.may_offer());
}

#[test]
fn acknowledgements_out_of_order_move_the_cursor_over_the_unbroken_run_only() {
    let now = Instant::now();
    let mut s = session(Confirm::Billing, 40, now);
    bring_up(&mut s, 100, now);
    send_all(&mut s, 10, 1, now);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    send_all(&mut s, 10, 2, now);
    s.handle(Event::Acknowledged(4, Verdict::Accepted), now);
    s.handle(Event::Acknowledged(3, Verdict::Accepted), now);
    assert_eq!(s.acknowledged_seq(), 10);
    s.handle(Event::Acknowledged(2, Verdict::Accepted), now);
    assert_eq!(drain(&mut s, now).1, [(Cursor::Acknowledged, 40)]);
    assert_eq!(s.confirmed_seq(), 0, "acknowledged is not confirmed");
}

#[test]
fn a_message_of_its_own_does_not_hold_the_cursor_back() {
    let now = Instant::now();
    let mut s = session(Confirm::Broker, 1, now);
    bring_up(&mut s, 100, now);
    s.offered(Tag::Own(Part::Status), 1000, now);
    s.handle(Event::Sent(1), now);
    send_all(&mut s, 1, 2, now);
    s.handle(Event::Acknowledged(2, Verdict::Accepted), now);
    assert_eq!(s.acknowledged_seq(), 1);
    s.handle(Event::Acknowledged(1, Verdict::NoSubscribers), now);
    assert!(!s.nobody_listens(), "nobody needs to listen to a status");
}

#[test]
fn nobody_listens_pauses_longer_each_time_and_loses_nothing() {
    let start = Instant::now();
    let mut now = start;
    let mut s = session(Confirm::Broker, 10, now);
    bring_up(&mut s, 100, now);
    let mut pauses = Vec::new();
    for pkid in 1..=8 {
        assert_eq!(send_all(&mut s, 4, pkid, now), [(pkid, Tag::Records(1..=4))]);
        s.handle(Event::Acknowledged(pkid, Verdict::NoSubscribers), now);
        assert!(s.nobody_listens());
        let mut ms = 0;
        while drain(&mut s, at(now, ms)).0.is_none() {
            s.handle(Event::Heard, at(now, ms));
            ms += 500;
        }
        pauses.push(ms / 1000);
        now = at(now, ms);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(s.acknowledged_seq(), 0);
    send_all(&mut s, 4, 20, now);
    s.handle(Event::Acknowledged(20, Verdict::Accepted), now);
    assert!(!s.nobody_listens());
    assert_eq!(s.acknowledged_seq(), 4);
}

#[test]
fn a_refusal_in_the_middle_goes_back_to_the_cursor() {
    let now = Instant::now();
    let mut s = session(Confirm::Broker, 50, now);
    bring_up(&mut s, 100, now);
    send_all(&mut s, 10, 1, now);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    send_all(&mut s, 10, 2, now);
    s.handle(Event::Acknowledged(3, Verdict::Failed("0x97".into())), now);
    s.handle(Event::Acknowledged(2, Verdict::Accepted), now);
    s.handle(Event::Acknowledged(5, Verdict::Accepted), now);
    s.handle(Event::Acknowledged(4, Verdict::Accepted), now);
    assert_eq!(s.acknowledged_seq(), 20);
    assert_eq!(s.last_refusal(), Some("0x97"));
    assert_eq!(send_all(&mut s, 10, 9, at(now, 1000)), [(9, Tag::Records(21..=30))]);
}

#[test]
fn an_acknowledgement_that_answers_nothing_drops_the_connection() {
    let now = Instant::now();
    for lie in [
        vec![Event::Acknowledged(9, Verdict::Accepted)],
        vec![Event::Acknowledged(1, Verdict::Accepted), Event::Acknowledged(1, Verdict::Accepted)],
        vec![Event::Sent(77)],
    ] {
        let mut s = session(Confirm::Broker, 2, now);
        bring_up(&mut s, 100, now);
        assert_eq!(send_all(&mut s, 1, 1, now).len(), 1);
        for event in lie {
            s.handle(event, now);
        }
        let (action, _) = drain(&mut s, now);
        assert!(matches!(action, Some(Action::Drop(Fault::Desync(_)))), "{action:?}");
    }
}

#[test]
fn silence_and_stalls_are_noticed() {
    let now = Instant::now();
    let mut s = session(Confirm::Broker, 1, now);
    assert_eq!(s.poll(now), Action::Connect);
    assert_eq!(s.poll(at(now, 9_999)), Action::WaitUntil(Some(at(now, 10_000))));
    assert_eq!(s.poll(at(now, 10_000)), Action::Drop(Fault::NotConnected));

    let mut s = session(Confirm::Broker, 1, now);
    bring_up(&mut s, 100, now);
    send_all(&mut s, 1, 1, now);
    s.handle(Event::Heard, at(now, 29_000));
    assert_eq!(s.poll(at(now, 30_000)), Action::Drop(Fault::Unacknowledged));

    let mut s = session(Confirm::Broker, 0, now);
    bring_up(&mut s, 100, now);
    assert_eq!(s.poll(at(now, 49_999)), Action::WaitUntil(Some(at(now, 50_000))));
    assert_eq!(s.poll(at(now, 50_000)), Action::Drop(Fault::Silent(50)));
}

#[test]
fn pauses_are_short_for_ten_minutes_then_grow_and_are_spread() {
    let begin = Instant::now();
    let mut now = begin;
    let mut s = session(Confirm::Broker, 1, now);
    let mut short = 0;
    let mut longest = Vec::new();
    while longest.len() < 8 {
        assert_eq!(s.poll(now), Action::Connect);
        let is_short = now - begin < Duration::from_secs(600);
        // The highest random number that still gives the longest pause of this attempt.
        let ceiling = if is_short { 2000 } else { (4000_u64 << longest.len()).min(60_000) };
        s.handle(Event::Down { random: ceiling - 1000, cause: Cause::Closed }, now);
        let Action::WaitUntil(Some(until)) = s.poll(now) else { panic!("must wait") };
        if is_short {
            assert_eq!(until - now, Duration::from_secs(2));
            short += 1;
        } else {
            longest.push((until - now).as_secs());
        }
        now = until;
    }
    assert_eq!((short, longest), (300, vec![4, 8, 16, 32, 60, 60, 60, 60]));
    assert_eq!(s.poll(now), Action::Connect);
    s.handle(Event::Down { random: 0, cause: Cause::Closed }, now);
    assert_eq!(s.poll(now), Action::WaitUntil(Some(at(now, 1000))), "never sooner than a second");
    // An acknowledgement ends the outage: the next one begins with short pauses again.
    now = at(now, 1000);
    bring_up(&mut s, 100, now);
    send_all(&mut s, 1, 1, now);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    s.handle(Event::Down { random: 1000, cause: Cause::Closed }, now);
    drain(&mut s, now);
    assert_eq!(s.poll(now), Action::WaitUntil(Some(at(now, 2000))));
}

#[test]
fn a_broker_that_was_away_for_twenty_seconds_is_found_within_two() {
    let mut waited = Vec::new();
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let begin = Instant::now();
        let back = at(begin, 20_000);
        let mut s = session(Confirm::Broker, 1, begin);
        bring_up(&mut s, 100, begin);
        let mut now = begin;
        s.handle(Event::Down { random: random.u64(..), cause: Cause::Closed }, now);
        while now < back {
            match s.poll(now) {
                Action::WaitUntil(Some(until)) => now = until,
                Action::Connect if now < back => {
                    s.handle(Event::Down { random: random.u64(..), cause: Cause::Closed }, now);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(s.poll(now), Action::Connect);
        waited.push((now - back).as_millis());
    }
    waited.sort_unstable();
    assert!(waited[waited.len() / 2] < 1000 && waited[waited.len() - 1] <= 2000, "{waited:?}");
}

#[test]
fn a_receipt_confirms_what_was_sent_and_nothing_else() {
    let now = Instant::now();
    let mut s = session(Confirm::Billing, 20, now);
    bring_up(&mut s, 100, now);
    send_all(&mut s, 10, 1, now);
    let receipt = |ledger: &str, confirmed_seq| Receipt {
        ledger: ledger.into(),
        confirmed_seq,
        rejected: vec![],
        resend_from: None,
    };
    s.handle(Event::Receipt(receipt("another", 5)), now);
    s.handle(Event::Receipt(receipt(LEDGER, 11)), now);
    assert_eq!((s.confirmed_seq(), s.ignored_receipts()), (0, 2));
    let rejected = vec![Rejected { seq: 3, reason: "unknown meter".into() }];
    let full = Receipt { rejected: rejected.clone(), ..receipt(LEDGER, 8) };
    s.handle(Event::Receipt(full.clone()), now);
    s.handle(Event::Receipt(full), now);
    s.handle(Event::Receipt(receipt(LEDGER, 6)), now);
    assert_eq!(drain(&mut s, now).1, [(Cursor::Acknowledged, 8), (Cursor::Confirmed, 8)]);
    assert_eq!(s.rejected(), rejected);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    assert_eq!((s.acknowledged_seq(), s.confirmed_seq()), (10, 8));
}

fn replay(from: Seq, to: Seq) -> Tag {
    Tag::Again(Reason::Replay, from..=to)
}

#[test]
fn a_replay_goes_in_between_and_moves_no_cursor() {
    let now = Instant::now();
    let mut s = Session::new(LEDGER, Confirm::Broker, 30, 20, 20, now);
    assert_eq!(s.replay(21, 30), Resend::NeverSent(20), "what was never sent cannot be sent again");
    assert_eq!(s.replay(5, 25), Resend::Queued(5..=20));
    bring_up(&mut s, 100, now);
    send_all(&mut s, 5, 1, now);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    let sent = send_all(&mut s, 5, 2, now);
    let tags: Vec<Tag> = sent.into_iter().map(|(_, tag)| tag).collect();
    assert_eq!(tags, [replay(5, 9), Tag::Records(26..=30), replay(10, 14), replay(15, 19), replay(20, 20)]);
    s.handle(Event::Acknowledged(2, Verdict::Accepted), now);
    assert_eq!(s.acknowledged_seq(), 25);
    s.handle(Event::Down { random: 0, cause: Cause::Closed }, now);
    s.handle(Event::Acknowledged(3, Verdict::Accepted), now);
    assert_eq!(s.acknowledged_seq(), 25, "what a dead connection says is not heard");
}

#[test]
fn a_lost_connection_repeats_its_last_messages_but_short_ones_still_get_ahead() {
    let mut now = Instant::now();
    let mut s = session(Confirm::Broker, 100_000, now);
    let mut sent_to = Vec::new();
    for _ in 0..6 {
        bring_up(&mut s, 1, now);
        for pkid in 1..=3 {
            let sent = send_all(&mut s, 10, pkid, now);
            s.handle(Event::Acknowledged(pkid, Verdict::Accepted), now);
            let Some((_, Tag::Records(range))) = sent.into_iter().next() else { panic!("records are sent") };
            sent_to.push(*range.end());
        }
        s.handle(Event::Down { random: 0, cause: Cause::Closed }, now);
        now = at(now, 1_000);
    }
    assert_eq!(sent_to, [10, 20, 30, 10, 20, 30, 40, 50, 60, 40, 50, 60, 70, 80, 90, 70, 80, 90]);
    assert_eq!(s.acknowledged_seq(), 90, "the cursor never goes back");
}

#[test]
fn a_skipped_record_is_passed_in_its_turn() {
    let now = Instant::now();
    let mut s = session(Confirm::Broker, 3, now);
    bring_up(&mut s, 100, now);
    s.offered(Tag::Records(1..=1), 1000, now);
    s.handle(Event::Sent(1), now);
    s.skip(Tag::Records(2..=2), now);
    assert_eq!(s.acknowledged_seq(), 0);
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    assert_eq!(s.acknowledged_seq(), 2);
    assert_eq!(send_all(&mut s, 1, 2, now), [(2, Tag::Records(3..=3))]);
}

#[test]
fn stopping_sends_nothing_new_but_still_hears() {
    let now = Instant::now();
    let mut s = session(Confirm::Broker, 10, now);
    bring_up(&mut s, 100, now);
    send_all(&mut s, 5, 1, now);
    s.stop();
    s.handle(Event::Acknowledged(1, Verdict::Accepted), now);
    assert_eq!(drain(&mut s, now), (None, vec![(Cursor::Acknowledged, 5), (Cursor::Confirmed, 5)]));
    assert_eq!(s.in_flight(), 0);
}

/// A broker that delays, reorders, refuses, forgets, acknowledges what it never got, and cuts the line.
#[test]
fn whatever_the_broker_does_nothing_is_lost_and_the_cursor_never_lies() {
    for seed in 0..1_000 {
        simulate(seed);
    }
}

fn simulate(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let confirm = if random.bool() { Confirm::Broker } else { Confirm::Billing };
    let mut now = Instant::now();
    let (mut head, total) = (random.u64(0..50), random.u64(50..400));
    let mut s = session(confirm, head, now);
    let mut delivered = vec![false; usize::try_from(total).unwrap() + 1];
    let mut wire: Vec<(u16, Tag)> = Vec::new();
    let (mut pkid, mut up, mut told) = (0_u16, false, 0);
    for step in 0..60_000 {
        assert!(step < 59_999, "seed {seed}: no progress, acknowledged {told} of {total}");
        let honest = step > 2_000;
        match s.poll(now) {
            Action::Advance(Cursor::Acknowledged, to) => {
                assert!(
                    to > told && (1..=to).all(|n| delivered[usize::try_from(n).unwrap()]),
                    "seed {seed}: {to}"
                );
                told = to;
            }
            Action::Advance(Cursor::Confirmed, to) => assert!(to <= told, "seed {seed}: confirmed {to}"),
            Action::Connect => {
                (pkid, up) = (0, false);
                wire.clear();
                if honest || random.u8(0..4) > 0 {
                    let receive_max = *random.choice(&[1, 2, 20, 100, 65_535]).unwrap();
                    s.handle(Event::Connected { receive_max, keep_alive: Duration::from_secs(20) }, now);
                    s.handle(Event::Up, now);
                    up = true;
                }
            }
            Action::Subscribe(_) => s.handle(Event::Up, now),
            Action::Drop(_) => {
                up = false;
                s.handle(Event::Down { random: random.u64(..), cause: Cause::Closed }, now);
            }
            Action::Send(tag) => {
                let part = |r: RangeInclusive<Seq>, n: u64| *r.start()..=(*r.end()).min(r.start() + n);
                let n = random.u64(0..20);
                let tag = match tag {
                    Tag::Records(r) => Tag::Records(part(r, n)),
                    Tag::Again(reason, r) => Tag::Again(reason, part(r, n)),
                    Tag::Own(_) => unreachable!(),
                };
                s.offered(tag.clone(), 1000, now);
                pkid += 1;
                s.handle(Event::Sent(pkid), now);
                wire.push((pkid, tag));
                assert!(wire.len() <= usize::from(WINDOW), "seed {seed}");
            }
            Action::WaitUntil(until) => {
                let dice = random.u8(0..100);
                if up && !wire.is_empty() && dice < 70 {
                    let nth = if honest { 0 } else { random.usize(0..wire.len()) };
                    let (id, tag) = wire.remove(nth);
                    let verdict = match random.u8(0..10) {
                        0 if !honest => Verdict::NoSubscribers,
                        1 if !honest => Verdict::Failed("0x97".into()),
                        _ => Verdict::Accepted,
                    };
                    if verdict == Verdict::Accepted
                        && let Tag::Records(range) = tag
                    {
                        range.for_each(|n| delivered[usize::try_from(n).unwrap()] = true);
                    }
                    s.handle(Event::Acknowledged(id, verdict), now);
                } else if up && !honest && dice < 73 {
                    s.handle(Event::Acknowledged(random.u16(..), Verdict::Accepted), now);
                    if s.acknowledged_seq() > told {
                        // It happened to hit one in flight: then the broker has it.
                        (told + 1..=s.acknowledged_seq())
                            .for_each(|n| delivered[usize::try_from(n).unwrap()] = true);
                    }
                    // A lie about one behind a gap cannot be told from the truth; end the connection instead.
                    s.handle(Event::Down { random: 0, cause: Cause::Closed }, now);
                    up = false;
                } else if up && !honest && dice < 76 {
                    s.handle(Event::Down { random: random.u64(..), cause: Cause::Closed }, now);
                    up = false;
                } else if dice < 80 {
                    let confirmed_seq = if random.bool() { told } else { head + 1 + random.u64(0..9) };
                    let resend_from = random.bool().then(|| Ok(random.u64(..) >> random.u32(0..64)));
                    let ledger = LEDGER.into();
                    s.handle(
                        Event::Receipt(Receipt { ledger, confirmed_seq, rejected: vec![], resend_from }),
                        now,
                    );
                } else if dice < 85 && told > 0 {
                    s.replay(random.u64(1..=told), random.u64(1..=told + 5));
                } else if dice < 95 && head < total {
                    head += 1;
                    s.handle(Event::Stored(head), now);
                } else if let Some(until) = until {
                    now = now.max(until);
                }
                if told == total {
                    return;
                }
            }
        }
    }
}
