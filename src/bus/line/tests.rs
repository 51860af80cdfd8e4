//! The line under a time that moves only when everybody waits.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, Waker},
};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, DuplexStream, ReadBuf, duplex},
    time::sleep,
};

use super::*;
use crate::{
    clock::SimulatedClock,
    model::ClockState,
    protocol::{
        Parity, Payload,
        modbus::{Read, Table, crc},
    },
};

impl Port for DuplexStream {
    fn take_input(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<()> {
        let mut bytes = [0; 512];
        while into.len() < most {
            let mut buf = ReadBuf::new(&mut bytes);
            let read =
                std::pin::Pin::new(&mut *self).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf);
            match read {
                Poll::Ready(Ok(())) if buf.filled().is_empty() => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Poll::Ready(Ok(())) => into.extend_from_slice(buf.filled()),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn tune(&mut self, _: Wire) -> io::Result<()> {
        Ok(())
    }
}

/// Connections that are given out in turn.
#[derive(Default)]
struct Prepared(Mutex<VecDeque<DuplexStream>>);

impl Ports for Prepared {
    fn open<'a>(&'a self, _: &'a Link) -> BoxFuture<'a, io::Result<Box<dyn Port>>> {
        let next = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        Box::pin(async { Ok(Box::new(next.ok_or(io::ErrorKind::ConnectionRefused)?) as Box<dyn Port>) })
    }
}

/// A line and the far ends of its connections.
fn line(tcp: bool, connections: usize) -> (Line, Vec<DuplexStream>) {
    let address = "10.0.0.5:502".to_owned();
    let link = if tcp { Link::Tcp { address } } else { Link::SerialOverTcp { address, wire: None } };
    let (near, far): (VecDeque<_>, Vec<_>) = (0..connections).map(|_| duplex(64 * 1024)).unzip();
    let clock = SimulatedClock::starting_at(Utc::default(), ClockState::Synced);
    (Line::new(link, Arc::new(Prepared(Mutex::new(near))), Arc::new(clock)), far)
}

const TIMEOUT: Duration = Duration::from_millis(300);

fn query(unit: u8, count: u16) -> Query {
    let read = Read { table: Table::Input, address: 0, count };
    Query {
        address: Address::Modbus(unit),
        question: Question::Modbus(read),
        wire: None,
        timeout: TIMEOUT,
        linger: false,
    }
}

fn reply(unit: u8, words: &[u16]) -> Vec<u8> {
    let mut frame = vec![unit, 4, u8::try_from(2 * words.len()).unwrap()];
    frame.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    frame.extend(crc(&frame).to_le_bytes());
    frame
}

/// Waits for a request and says when it came.
async fn asked(far: &mut DuplexStream) -> Vec<u8> {
    let mut request = vec![0; 256];
    let read = far.read(&mut request).await.unwrap();
    request.truncate(read);
    request
}

/// What the meter says to the next request: after so long, these bytes.
async fn say(far: &mut DuplexStream, parts: &[(u64, &[u8])]) {
    asked(far).await;
    for (after, bytes) in parts {
        sleep(Duration::from_millis(*after)).await;
        far.write_all(bytes).await.unwrap();
    }
}

async fn ask(
    line: &mut Line,
    query: &Query,
    far: &mut DuplexStream,
    parts: &[(u64, &[u8])],
) -> (Outcome, Duration) {
    let began = Instant::now();
    let timed = async { (line.exchange(query).await, began.elapsed()) };
    tokio::join!(timed, say(far, parts)).0
}

fn words(outcome: &Outcome) -> Option<&[u16]> {
    match outcome {
        Outcome::Answered { payload: Payload::Words(words), .. } => Some(words),
        _ => None,
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[tokio::test(start_paused = true)]
async fn an_echo_noise_and_frames_of_others_before_the_reply_cost_nothing() {
    let (mut line, mut far) = line(false, 1);
    let right = reply(1, &[7, 8]);
    for before in [&[][..], &[0], &[0xFF, 0], &[1, 4, 0, 0, 0, 2, 0x71, 0xCB], &reply(2, &[1, 1])] {
        let (outcome, took) = ask(&mut line, &query(1, 2), &mut far[0], &[(5, before), (15, &right)]).await;
        assert_eq!(words(&outcome), Some([7, 8].as_slice()), "{before:02X?}: {outcome:?}");
        assert_eq!(took, ms(20), "{before:02X?}");
        let Outcome::Answered { elapsed, .. } = outcome else { panic!() };
        assert_eq!(elapsed, ms(20));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_behind_a_reply_are_neither_an_answer_nor_a_late_one() {
    let (mut line, mut far) = line(false, 1);
    for delay in [0, 5, 20, 60] {
        let (mut near, right, again) = (line, reply(1, &[7, 8]), query(1, 2));
        let (outcome, _) = ask(&mut near, &query(1, 2), &mut far[0], &[(10, &right)]).await;
        assert!(words(&outcome).is_some());
        let zeros = async {
            sleep(ms(delay)).await;
            far[0].write_all(&[0; 3]).await.unwrap();
            say(&mut far[0], &[(30, &right)]).await;
        };
        let (outcome, ()) = tokio::join!(near.exchange(&again), zeros);
        assert_eq!(words(&outcome), Some([7, 8].as_slice()), "{delay} ms: {outcome:?}");
        assert_eq!(near.take_report().late, []);
        // The next one is dead: the stray bytes are no answer of it.
        far[0].write_all(&[0; 3]).await.unwrap();
        let (outcome, _) = ask(&mut near, &query(2, 2), &mut far[0], &[(10, &[0; 3])]).await;
        assert_eq!(outcome, Outcome::Silent { late: None });
        sleep(ms(6000)).await;
        line = near;
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_reply_is_known_at_once_and_asked_again_at_once() {
    let (mut line, mut far) = line(false, 1);
    let mut bad = reply(1, &[7, 8]);
    bad[4] ^= 1;
    let (outcome, took) = ask(&mut line, &query(1, 2), &mut far[0], &[(20, &bad)]).await;
    assert!(matches!(&outcome, Outcome::Garbled { detail } if detail.contains("CRC")), "{outcome:?}");
    assert_eq!(took, ms(20) + NETWORK_DAMAGE_GAP);
    let (outcome, took) = ask(&mut line, &query(1, 2), &mut far[0], &[(20, &reply(1, &[7, 8]))]).await;
    assert_eq!((words(&outcome), took), (Some([7, 8].as_slice()), ms(20)));
    // Another question of the same form waits until what was damaged can no longer be confused with it.
    let mut other = query(1, 2);
    other.question = Question::Modbus(Read { table: Table::Input, address: 50, count: 2 });
    let (outcome, took) = ask(&mut line, &other, &mut far[0], &[(20, &reply(1, &[9, 9]))]).await;
    assert!(took > ms(200), "{took:?}");
    assert!(matches!(outcome, Outcome::Garbled { .. }), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn the_silence_of_one_holds_up_nobody_else() {
    let (mut line, mut far) = line(false, 1);
    let (outcome, took) = ask(&mut line, &query(1, 2), &mut far[0], &[]).await;
    assert_eq!((outcome, took), (Outcome::Silent { late: None }, TIMEOUT));
    let (outcome, took) = ask(&mut line, &query(2, 2), &mut far[0], &[(20, &reply(2, &[1, 2]))]).await;
    assert_eq!((words(&outcome), took), (Some([1, 2].as_slice()), ms(20)));
    // Where nobody waits, a late reply is listened for and named.
    let patient = Query { linger: true, ..query(3, 2) };
    let (outcome, took) = ask(&mut line, &patient, &mut far[0], &[(350, &reply(3, &[1, 2]))]).await;
    assert_eq!((outcome, took), (Outcome::Silent { late: Some(ms(350)) }, ms(350)));
    assert_eq!(line.take_report().late, [(Address::Modbus(3), ms(350))]);
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_is_never_the_answer_to_a_later_request() {
    let (mut line, mut far) = line(false, 1);
    let (first, second) = (query(1, 2), {
        let mut other = query(1, 2);
        other.question = Question::Modbus(Read { table: Table::Input, address: 50, count: 2 });
        other
    });
    // Late by 310 ms: it comes in the middle of the next question, whose own reply is as late.
    let (outcome, _) = ask(&mut line, &first, &mut far[0], &[]).await;
    assert_eq!(outcome, Outcome::Silent { late: None });
    let (outcome, _) =
        ask(&mut line, &second, &mut far[0], &[(10, &reply(1, &[1, 1])), (300, &reply(1, &[2, 2]))]).await;
    assert!(words(&outcome).is_none(), "{outcome:?}");
    sleep(ms(6000)).await;
    // It comes while another meter is asked: it is told apart, and nothing is left of it.
    let (outcome, _) = ask(&mut line, &first, &mut far[0], &[]).await;
    assert_eq!(outcome, Outcome::Silent { late: None });
    let others = [(10, reply(1, &[1, 1])), (10, reply(2, &[3, 3]))];
    let others: Vec<_> = others.iter().map(|(after, bytes)| (*after, bytes.as_slice())).collect();
    let (outcome, _) = ask(&mut line, &query(2, 2), &mut far[0], &others).await;
    assert_eq!(words(&outcome), Some([3, 3].as_slice()));
    let (outcome, took) = ask(&mut line, &second, &mut far[0], &[(10, &reply(1, &[2, 2]))]).await;
    assert_eq!((words(&outcome), took), (Some([2, 2].as_slice()), ms(10)));
    // A reply of another length cannot be the pending one: nobody waits for a second.
    let (_, _) = ask(&mut line, &first, &mut far[0], &[]).await;
    let (outcome, took) = ask(&mut line, &query(1, 3), &mut far[0], &[(10, &reply(1, &[4, 4, 4]))]).await;
    assert_eq!((words(&outcome), took), (Some([4, 4, 4].as_slice()), ms(10)));
}

fn tcp_reply(number: u16, unit: u8, words: &[u16]) -> Vec<u8> {
    let pdu = reply(unit, words);
    let pdu = &pdu[..pdu.len() - 2];
    let mut frame = number.to_be_bytes().to_vec();
    frame.extend([0, 0, 0, u8::try_from(pdu.len()).unwrap()]);
    frame.extend(pdu);
    frame
}

#[tokio::test(start_paused = true)]
async fn replies_one_question_late_and_of_other_numbers_are_named() {
    let (mut line, mut far) = line(true, 1);
    let (outcome, _) = ask(&mut line, &query(1, 2), &mut far[0], &[]).await;
    assert_eq!(outcome, Outcome::Silent { late: None });
    let (outcome, _) = ask(&mut line, &query(1, 2), &mut far[0], &[(20, &tcp_reply(1, 1, &[1, 1]))]).await;
    assert_eq!(outcome, Outcome::Silent { late: Some(ms(320)) }, "the reply to the question before");
    let (outcome, _) = ask(&mut line, &query(1, 2), &mut far[0], &[(20, &tcp_reply(77, 1, &[1, 1]))]).await;
    let Outcome::Garbled { detail } = outcome else { panic!("{outcome:?}") };
    assert_eq!(detail, "a reply to transaction 77 came, 3 was asked");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_closed_while_idle_costs_no_reading() {
    for tcp in [true, false] {
        let (mut line, mut far) = line(tcp, 3);
        let right = |number| if tcp { tcp_reply(number, 1, &[5, 6]) } else { reply(1, &[5, 6]) };
        let (outcome, _) = ask(&mut line, &query(1, 2), &mut far[0], &[(20, &right(1))]).await;
        assert!(words(&outcome).is_some());
        // Closed while nobody looked.
        drop(far.remove(0));
        let (outcome, _) = ask(&mut line, &query(1, 2), &mut far[0], &[(20, &right(3))]).await;
        assert_eq!(words(&outcome), Some([5, 6].as_slice()), "{outcome:?}");
        // Closed while it was idle, and that was seen.
        drop(far.remove(0));
        assert!(timeout(ms(100), line.idle()).await.is_ok_and(|ended| ended.is_ok()));
        let (outcome, _) = ask(&mut line, &query(1, 2), &mut far[0], &[(20, &right(4))]).await;
        assert_eq!(words(&outcome), Some([5, 6].as_slice()), "{outcome:?}");
        // No other to be had.
        drop(far.remove(0));
        assert!(matches!(line.exchange(&query(1, 2)).await, Outcome::LineDown { .. }));
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_comes_is_made_anew() {
    let (mut line, mut far) = line(true, 2);
    for _ in 0..DEAF_EXCHANGES {
        let (outcome, _) = ask(&mut line, &query(1, 2), &mut far[0], &[]).await;
        assert_eq!(outcome, Outcome::Silent { late: None });
    }
    assert!(!line.take_report().renewed);
    let number = u16::try_from(DEAF_EXCHANGES).unwrap() + 1;
    let (outcome, _) =
        ask(&mut line, &query(1, 2), &mut far[1], &[(20, &tcp_reply(number, 1, &[5, 6]))]).await;
    assert_eq!(words(&outcome), Some([5, 6].as_slice()));
    assert!(line.take_report().renewed);
}

#[tokio::test(start_paused = true)]
async fn whoever_sends_without_end_is_cut_off() {
    for idle in [true, false] {
        let (mut line, mut far) = line(false, 2);
        let flood = vec![0x55; 63 * 1024];
        let (outcome, _) = ask(&mut line, &query(1, 2), &mut far[0], &[(20, &reply(1, &[5, 6]))]).await;
        assert!(words(&outcome).is_some());
        far[0].write_all(&flood).await.unwrap();
        if idle {
            let more = async {
                sleep(ms(1)).await;
                far[0].write_all(&flood).await.unwrap();
            };
            let (ended, ()) = tokio::join!(timeout(ms(100), line.idle()), more);
            assert!(ended.is_ok(), "a network's connection is closed, and made anew for the next question");
            assert!(line.port.is_none());
        } else {
            let outcome = line.exchange(&query(1, 2)).await;
            assert_eq!(outcome, Outcome::LineDown { detail: "bytes come without end".into() });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_is_tuned_to_the_meter_that_is_asked() {
    let wire = |baud, parity| Wire { baud, parity, stop_bits: 1 };
    let own = wire(9600, Parity::None);
    let (near, mut far) = duplex(4096);
    let clock = SimulatedClock::starting_at(Utc::default(), ClockState::Synced);
    let serial = Link::Serial { device: "/dev/ttyUSB0".into(), wire: own };
    let ports = Arc::new(Prepared(Mutex::new([near].into())));
    let mut line = Line::new(serial, ports, Arc::new(clock));
    line.open().await.unwrap();
    for other in [Some(wire(2400, Parity::Even)), None, Some(own)] {
        let before = line.tuned;
        let asked = Query { wire: other, ..query(1, 2) };
        let right = reply(1, &[5, 6]);
        let began = Instant::now();
        let timed = async { (line.exchange(&asked).await, began.elapsed()) };
        let said = [(20, right.as_slice())];
        let ((outcome, took), ()) = tokio::join!(timed, say(&mut far, &said));
        assert!(words(&outcome).is_some(), "{outcome:?}");
        assert_eq!(line.tuned, other.or(Some(own)));
        assert_eq!(took >= RETUNE_GUARD, line.tuned != before, "{took:?}");
    }
}
