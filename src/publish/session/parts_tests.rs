//! Connections that end over something other than records: records still go, and the part that ends them is left out.

use super::{
    super::link::Cause,
    parts::Part::{self, Commands, Descriptions, Inventory, Receipts, Responses, Status},
    *,
};

const LEDGER: &str = "0123456789abcdef0123456789abcdef";
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// A broker that acknowledges everything, but ends the connection over some parts.
struct Peer {
    session: Session,
    now: Instant,
    /// Messages of the gateway's own that wait, as the driver keeps them.
    own: Vec<Part>,
    pkid: u16,
    sent: Vec<(u16, Tag)>,
    connections: u32,
    /// Over which part, and how.
    ends_over: Vec<(Part, Cause)>,
    /// A record takes part in this one.
    records: u64,
}

impl Peer {
    fn new(ends_over: Vec<(Part, Cause)>) -> Peer {
        let now = Instant::now();
        let session = Session::new(LEDGER, Confirm::Broker, 3_000, 0, 0, now);
        Peer { session, now, own: vec![], pkid: 0, sent: vec![], connections: 0, ends_over, records: 0 }
    }

    fn end(&mut self, cause: Cause) {
        self.sent.clear();
        self.session.handle(Event::Down { random: 0, cause }, self.now);
    }

    fn fatal(&self, part: Part) -> Option<Cause> {
        self.ends_over.iter().find(|(bad, _)| *bad == part).map(|(_, cause)| *cause)
    }

    fn offer(&mut self, tag: Tag) {
        self.pkid += 1;
        self.session.offered(tag.clone(), 1_000, self.now);
        self.session.handle(Event::Sent(self.pkid), self.now);
        self.sent.push((self.pkid, tag));
    }

    /// Plays for so long; a round trip takes 10 ms.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            while self.session.is_online()
                && let Some(at) = self.own.iter().position(|part| self.session.may_say(*part, self.now))
            {
                let part = self.own.remove(at);
                self.offer(Tag::Own(part));
            }
            match self.session.poll(self.now) {
                Action::Advance(..) => {}
                Action::Connect => {
                    self.connections += 1;
                    self.pkid = 0;
                    self.session
                        .handle(Event::Connected { receive_max: 100, keep_alive: KEEP_ALIVE }, self.now);
                    self.own = vec![Status, Inventory, Inventory];
                }
                Action::Subscribe(parts) => {
                    self.session.handle(Event::Up, self.now);
                    if let Some(cause) = parts.iter().find_map(|part| self.fatal(*part)) {
                        self.now += Duration::from_millis(10);
                        self.end(cause);
                    }
                }
                Action::Send(Tag::Records(range)) => {
                    let to = (*range.end()).min(range.start() + 9);
                    self.records += 1;
                    self.offer(Tag::Records(*range.start()..=to));
                }
                Action::WaitUntil(wake) if self.sent.is_empty() => {
                    let wake = wake.unwrap_or(until).min(until);
                    self.now = wake.max(self.now + Duration::from_millis(1));
                    if self.session.is_online() {
                        self.session.handle(Event::Heard, self.now); // pings are answered
                    }
                }
                Action::WaitUntil(_) => {
                    self.now += Duration::from_millis(10);
                    let (pkid, tag) = self.sent.remove(0);
                    match tag {
                        Tag::Own(part) if self.fatal(part).is_some() => self.end(Cause::Closed),
                        _ => self.session.handle(Event::Acknowledged(pkid, Verdict::Accepted), self.now),
                    }
                }
                action => panic!("{action:?}"),
            }
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_broker_that_hangs_up_on_own_messages_gets_the_records_and_the_part_is_known() {
    for bad in [vec![Status], vec![Inventory], vec![Status, Inventory]] {
        let mut peer = Peer::new(bad.iter().map(|part| (*part, Cause::Closed)).collect());
        peer.run(MINUTE);
        assert_eq!(peer.session.acknowledged_seq(), 3_000, "{bad:?}");
        assert_eq!(peer.session.left_out(), bad);
        assert_eq!(peer.session.size_limit(), None, "no size is to blame");
        assert!(
            peer.connections <= 2 + 2 * u32::try_from(bad.len()).unwrap(),
            "{} connections",
            peer.connections
        );
        let before = peer.connections;
        peer.run(MINUTE * 8);
        assert_eq!(peer.connections, before, "the connection holds without it");
    }
}

#[test]
fn what_comes_in_and_cannot_be_taken_costs_its_subscription_and_nothing_else() {
    for bad in [Receipts, Commands, Descriptions] {
        for cause in [Cause::Incoming, Cause::Closed] {
            let mut peer = Peer::new(vec![(bad, cause)]);
            peer.run(MINUTE);
            assert_eq!(peer.session.acknowledged_seq(), 3_000, "{bad:?} {cause:?}");
            assert_eq!(peer.session.left_out(), [bad], "{cause:?}");
            assert!(peer.connections <= 5, "{bad:?} {cause:?}: {} connections", peer.connections);
            let before = peer.connections;
            peer.run(MINUTE * 8);
            assert_eq!(peer.connections, before, "{bad:?}: the connection holds without it");
        }
    }
}

#[test]
fn what_is_left_out_is_tried_again_with_growing_pauses_and_used_again_once_it_goes_well() {
    for (bad, cause) in [(Commands, Cause::Incoming), (Inventory, Cause::Closed)] {
        let mut peer = Peer::new(vec![(bad, cause)]);
        peer.run(MINUTE);
        let before = peer.connections;
        peer.run(MINUTE * 60 * 24);
        let trials = peer.connections - before;
        assert!((5..=9).contains(&trials), "{bad:?}: {trials} trials in a day");
        assert_eq!(peer.session.left_out(), [bad]);
        peer.ends_over.clear();
        peer.run(MINUTE * 60 * 25);
        assert_eq!(peer.session.left_out(), [], "{bad:?}: it is used again");
        assert_eq!(peer.connections, before + trials, "{bad:?}: without a new connection");
    }
}

#[test]
fn messages_that_cannot_be_taken_now_and_then_are_found_too() {
    let mut peer = Peer::new(vec![]);
    for _ in 0..6 {
        peer.run(MINUTE * 2);
        if !peer.session.left_out().contains(&Commands) {
            peer.end(Cause::Incoming);
        }
    }
    assert_eq!(peer.session.left_out(), [Commands]);
}

#[test]
fn a_network_that_breaks_now_and_then_costs_no_part() {
    let mut peer = Peer::new(vec![]);
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..500 {
        peer.run(Duration::from_millis(random.u64(1..200_000)));
        peer.own.extend([Status, Responses]);
        if peer.session.is_online() {
            peer.end(Cause::Closed);
        }
        assert_eq!(peer.session.left_out(), []);
    }
}

#[test]
fn another_client_with_our_id_is_named_and_the_pauses_grow_at_once() {
    let mut peer = Peer::new(vec![]);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        peer.run(Duration::from_secs(5));
        while !peer.session.is_online() {
            peer.run(Duration::from_millis(50));
        }
        peer.session.handle(Event::Down { random: 59_000, cause: Cause::TakenOver }, peer.now);
        peer.sent.clear();
        let Action::WaitUntil(Some(until)) = peer.session.poll(peer.now) else { panic!("it waits") };
        pauses.push((until - peer.now).as_secs());
    }
    assert!(peer.session.is_taken_over());
    assert!(pauses.is_sorted() && pauses.last() == Some(&60), "{pauses:?}");
    peer.run(MINUTE * 3);
    peer.end(Cause::Closed);
    assert!(!peer.session.is_taken_over(), "the other one is gone");
}

#[test]
fn a_broker_that_is_away_again_and_again_is_no_other_client() {
    let mut peer = Peer::new(vec![]);
    peer.run(MINUTE * 2);
    for _ in 0..5 {
        assert!(peer.session.is_online());
        peer.end(Cause::Closed);
        let Action::WaitUntil(Some(until)) = peer.session.poll(peer.now) else { panic!("it waits") };
        peer.now = until;
        assert_eq!(peer.session.poll(peer.now), Action::Connect);
        peer.end(Cause::Unreachable);
        while !peer.session.is_online() {
            peer.run(Duration::from_millis(50));
        }
        peer.run(Duration::from_secs(5));
    }
    assert!(!peer.session.is_taken_over());
}

#[test]
fn without_mqtt_5_idle_connections_that_end_early_are_taken_for_another_client() {
    let mut peer = Peer::new(vec![]);
    peer.run(MINUTE * 2);
    for _ in 0..5 {
        assert!(peer.session.is_online());
        peer.end(Cause::Closed);
        while !peer.session.is_online() {
            peer.run(Duration::from_millis(50));
        }
        peer.run(Duration::from_secs(5));
    }
    assert!(peer.session.is_taken_over());
}
