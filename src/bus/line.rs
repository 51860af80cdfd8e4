//! One physical line: one exchange at a time, the silence before it, echo and stray bytes, replies that come too late.
//!
//! Knows bytes, times and [`Transaction`]s, and no protocol. Who is asked what, and how often, is the schedule's
//! business.
//!
//! A reply that has not been seen is *pending*: it may still come. Where frames do not say which request they answer, a
//! frame that could be a pending reply is not taken for the answer to a later request.

mod pending;
mod trace;

use std::{fmt, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{
    diagnosis::Heard,
    port::{Port, Ports},
};
use crate::{
    clock::Clock,
    config::Link,
    model::Utc,
    protocol::{
        Address, Envelope, Found, Outcome, Pace, Question, RETUNE_GUARD, Reply, Transaction, Wire,
        transaction,
    },
};
use pending::Pending;

pub use trace::{Trace, Traced};

/// Bytes of one exchange, at most: an echo and the longest reply are 264 in RTU framing and 260 in Modbus TCP, the rest is
/// room for noise before them. Whoever sends more without a pause is cut off.
const MAX_RECEIVED: usize = 4096;
/// A line on which bytes come all the time is used all the same after so long without its silence.
const LONGEST_HUSH: Duration = Duration::from_secs(1);
/// How long a request may take to be handed to the system: a peer that takes nothing is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Silence on a line before its first request, where replies do not say what they answer: what whoever had it before has
/// asked (this gateway before a crash) may still be answered, and nobody remembers what it was.
const QUIET_AT_OPENING: Duration = Duration::from_secs(1);
/// How long such a silence is waited for.
const LONGEST_OPENING: Duration = Duration::from_millis(1500);
/// Quiet behind a damaged reply that ends it: USB adapters deliver in packets of 16 ms.
const DAMAGE_GAP: Duration = Duration::from_millis(20);
/// The same behind a network: serial servers deliver in packets of some tens of milliseconds.
const NETWORK_DAMAGE_GAP: Duration = Duration::from_millis(50);
/// Least time that is listened for a late reply, or for a second one, however short the timeout is.
const LEAST_LINGER: Duration = Duration::from_millis(200);
/// The end of a reply is waited for character by character: timers are as fine as a millisecond.
const LOOK_EARLY: Duration = Duration::from_millis(3);
/// A second reply to one request comes within so long, where two meters have one address.
const DOUBLED_WITHIN: Duration = Duration::from_secs(1);
/// Bytes that nobody has asked for, within one wait between exchanges: some seconds of the fastest serial line.
const MOST_UNASKED: usize = 64 * 1024;
/// Frames kept until somebody takes the report: one exchange has three or four.
const MOST_FRAMES: usize = 64;
/// Exchanges without a single byte after which a network connection is made anew: it may be dead without a word.
const DEAF_EXCHANGES: u32 = 3;
/// The same at most: doubled each time the new connection brings nothing either.
const MOST_DEAF_EXCHANGES: u32 = 192;

/// What is asked, of whom, and for how long.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Who is asked.
    pub address: Address,
    /// What.
    pub question: Question,
    /// Line settings of this meter where they differ from the bus's.
    pub wire: Option<Wire>,
    /// How long the reply may take to begin.
    pub timeout: Duration,
    /// Nobody else waits for the line: a reply that is too late is listened for as long again.
    pub linger: bool,
}

/// A line and who may still answer on it.
pub struct Line {
    link: Link,
    envelope: Envelope,
    ports: Arc<dyn Ports>,
    clock: Arc<dyn Clock>,
    port: Option<Box<dyn Port>>,
    /// As the port is set up now.
    tuned: Option<Wire>,
    /// Of the last request.
    number: u16,
    pending: Vec<Pending>,
    /// What was answered last.
    answered: Option<(Pending, Vec<u8>)>,
    /// What came since the last request.
    received: Vec<u8>,
    last_activity: Instant,
    report: Report,
    /// Exchanges since the last byte, and how many are too many.
    deaf: (u32, u32),
}

/// What happened on the line beside the outcomes.
#[derive(Debug, Default)]
pub struct Report {
    /// Frames and other bytes, in order.
    pub frames: Vec<Traced>,
    /// Replies that came too late, with the time since their requests.
    pub late: Vec<(Address, Duration)>,
    /// A connection on which nothing came for long was made anew.
    pub renewed: bool,
    /// What came instead of a reply.
    pub heard: Option<Heard>,
    /// Who gave a second, different reply to one request.
    pub doubled: Option<Address>,
}

/// What a reply leads to.
enum Step {
    /// The question is answered, or cannot be.
    Ended(Outcome),
    /// A part of the answer is here: the request for the rest.
    FollowUp(Box<dyn Transaction>),
}

struct Arrived {
    frame: Vec<u8>,
    /// What came behind it.
    behind: Vec<u8>,
    at: Instant,
    wall: Utc,
}

impl Line {
    /// A line that is not open yet.
    pub fn new(link: Link, ports: Arc<dyn Ports>, clock: Arc<dyn Clock>) -> Line {
        let envelope = match link {
            Link::Tcp { .. } => Envelope::Tcp,
            Link::Serial { .. } | Link::SerialOverTcp { .. } => Envelope::Rtu,
        };
        Line {
            link,
            envelope,
            ports,
            clock,
            port: None,
            tuned: None,
            number: 0,
            pending: Vec::new(),
            answered: None,
            received: Vec::new(),
            last_activity: Instant::now(),
            report: Report::default(),
            deaf: (0, DEAF_EXCHANGES),
        }
    }

    /// Opens the line, and lets pass what is still said on it. Takes a second where replies do not say what they
    /// answer. A line that is never quiet is used all the same.
    pub async fn open(&mut self) -> io::Result<()> {
        self.connect().await?;
        let opened = Instant::now();
        while self.envelope == Envelope::Rtu && opened.elapsed() < LONGEST_OPENING {
            match timeout(QUIET_AT_OPENING, self.read()).await {
                Err(_quiet) => break,
                Ok(read) => self.note_unasked(&read?),
            }
        }
        Ok(())
    }

    /// Opens it (again). What is pending stays so.
    async fn connect(&mut self) -> io::Result<()> {
        self.port = None; // the old one is closed first: a serial device has one owner
        self.port = Some(self.ports.open(&self.link).await?);
        self.tuned = self.link.pace().wire();
        self.deaf.0 = 0;
        Ok(())
    }

    /// Reads what nobody has asked for, until the connection ends. What it ended with is an error on a serial device
    /// only: converters close what is idle, and the next exchange connects again.
    pub async fn idle(&mut self) -> io::Result<()> {
        let mut heard = 0;
        while self.port.is_some() {
            match self.read().await {
                Ok(bytes) if heard <= MOST_UNASKED => {
                    heard += bytes.len();
                    self.note_unasked(&bytes);
                }
                Ok(_) => return self.end(flood()),
                Err(error) => return self.end(error),
            }
        }
        std::future::pending().await
    }

    fn end(&mut self, error: io::Error) -> io::Result<()> {
        self.port = None;
        if self.link.is_network() { Ok(()) } else { Err(error) }
    }

    /// What happened since the last call.
    pub fn take_report(&mut self) -> Report {
        std::mem::take(&mut self.report)
    }

    /// Asks one question and says how it ended. On return the line is fit for the next question; after
    /// [`Outcome::LineDown`] it is closed, and the next exchange opens it.
    ///
    /// A connection that is found closed before anything was answered is opened again at once, and the question asked
    /// on it.
    pub async fn exchange(&mut self, query: &Query) -> Outcome {
        self.exchange_or_fail(query).await.unwrap_or_else(|error| {
            self.port = None;
            Outcome::LineDown { detail: error.to_string() }
        })
    }

    async fn exchange_or_fail(&mut self, query: &Query) -> io::Result<Outcome> {
        let (silent, limit) = self.deaf;
        if silent >= limit && self.link.is_network() && self.port.take().is_some() {
            self.deaf.1 = (limit * 2).min(MOST_DEAF_EXCHANGES);
            self.report.renewed = true;
        }
        let used_before = self.port.is_some();
        if !used_before {
            self.connect().await?;
        }
        self.received.clear();
        let outcome = match self.attempt(query).await {
            Err(error) if used_before && self.received.is_empty() && is_closed(&error) => {
                self.connect().await?;
                self.attempt(query).await
            }
            other => other,
        }?;
        if self.received.is_empty() {
            self.deaf.0 += 1;
        } else {
            self.deaf = (0, DEAF_EXCHANGES);
        }
        Ok(outcome)
    }

    async fn attempt(&mut self, query: &Query) -> io::Result<Outcome> {
        self.pending.retain(|pending| !pending.is_over());
        let pace = self.link.pace_with(query.wire);
        self.number = self.number.wrapping_add(1);
        let mut next = transaction(query.address, &query.question, self.envelope, self.number);
        self.tune(&pace).await?;
        while let Some(asked) = next {
            match self.ask(asked, query, &pace).await? {
                Step::Ended(outcome) => return Ok(outcome),
                Step::FollowUp(rest) => next = Some(rest),
            }
        }
        Ok(Outcome::Garbled { detail: format!("{} speaks another protocol", query.address) })
    }

    /// One request and its reply.
    async fn ask(&mut self, asked: Box<dyn Transaction>, query: &Query, pace: &Pace) -> io::Result<Step> {
        self.received.clear();
        self.keep_silence(asked.silence(pace)).await?;
        let request_chars = u32::try_from(asked.request().len()).unwrap_or(u32::MAX);
        let sent_by = Instant::now() + pace.characters(request_chars);
        let reply_time = pace.characters(asked.reply_chars());
        self.send(asked.request()).await?;
        let late_before = self.report.late.len();
        let deadline = sent_by + query.timeout + reply_time;
        let arrived = self.wait_for_reply(asked.as_ref(), pace, deadline).await?;

        let this = Pending::new(query.address, asked, sent_by);
        let Some(Arrived { frame, behind, at, wall }) = arrived else {
            return Ok(Step::Ended(self.give_up(this, query, late_before).await?));
        };
        let (reply, rest) = (this.asked.decode(&frame), this.asked.follow_up(&frame));
        let doubtful = self.doubt(this, frame).await?;
        self.note_unasked(&behind);
        if let Some(outcome) = doubtful {
            return Ok(Step::Ended(outcome));
        }
        Ok(rest.map_or_else(
            || Step::Ended(outcome_of(reply, wall, at.saturating_duration_since(sent_by + reply_time))),
            Step::FollowUp,
        ))
    }

    /// Sets the port up for the meter that is asked.
    async fn tune(&mut self, pace: &Pace) -> io::Result<()> {
        let wire = pace.wire();
        if wire != self.tuned
            && let Some(wire) = wire
            && !self.link.is_network()
        {
            self.keep_silence(RETUNE_GUARD).await?;
            self.port()?.tune(wire)?;
            self.tuned = Some(wire);
            self.clock.pause(RETUNE_GUARD).await;
        }
        Ok(())
    }

    /// Waits until nothing was said for so long, and takes what is stale meanwhile: a pending reply among it is pending no
    /// longer. Where something came, more of it may follow: the silence is that behind a damaged reply then.
    async fn keep_silence(&mut self, silence: Duration) -> io::Result<()> {
        let began = Instant::now();
        let mut silence = silence;
        loop {
            let rest = silence.saturating_sub(self.last_activity.elapsed());
            if !rest.is_zero() {
                self.clock.pause(rest).await;
            }
            let mut stale = Vec::new();
            self.port()?.take_input(&mut stale, MAX_RECEIVED)?;
            if stale.is_empty() {
                return Ok(());
            }
            if stale.len() >= MAX_RECEIVED {
                return Err(flood());
            }
            self.last_activity = Instant::now();
            self.note_unasked(&stale);
            silence = silence.max(self.damage_gap());
            if began.elapsed() > LONGEST_HUSH {
                return Ok(());
            }
        }
    }

    fn damage_gap(&self) -> Duration {
        if self.link.is_network() { NETWORK_DAMAGE_GAP } else { DAMAGE_GAP }
    }

    async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.note('>', request);
        self.last_activity = Instant::now();
        let port = self.port()?;
        let sent = async {
            port.write_all(request).await?;
            port.flush().await
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the peer takes no bytes");
        timeout(WRITE_TIMEOUT, sent).await.map_err(late).flatten()
    }

    /// Reads until the reply is there, or is known to be damaged, or the time is up.
    async fn wait_for_reply(
        &mut self,
        asked: &dyn Transaction,
        pace: &Pace,
        deadline: Instant,
    ) -> io::Result<Option<Arrived>> {
        // What looks like a damaged reply may be the rest of one that is late, while one may be.
        let damage_gap = self.pending.is_empty().then(|| self.damage_gap());
        let mut until = deadline;
        loop {
            // What is lacking takes its time on the wire: nobody looks at each byte.
            let lacking = u32::try_from(asked.lacking(&self.received)).unwrap_or(u32::MAX);
            if let Some(idle) = pace.characters(lacking).checked_sub(LOOK_EARLY)
                && !self.received.is_empty()
            {
                sleep_until((self.last_activity + idle).min(deadline)).await;
            }
            match timeout_at(until, self.read()).await {
                Err(_) => return Ok(None),
                Ok(read) => self.received.extend(read?),
            }
            match asked.find(&self.received) {
                Found::Incomplete => until = deadline,
                Found::Damaged => {
                    until = damage_gap.map_or(deadline, |gap| deadline.min(Instant::now() + gap));
                }
                Found::Frame(range) => {
                    let frame = self.received.get(range.clone()).unwrap_or_default().to_vec();
                    let before = self.received.get(..range.start).unwrap_or_default().to_vec();
                    let behind = self.received.get(range.end..).unwrap_or_default().to_vec();
                    let wall = self.clock.wall();
                    self.note_unasked(&before);
                    self.note('<', &frame);
                    return Ok(Some(Arrived { frame, behind, at: self.last_activity, wall }));
                }
            }
            note_late(&mut self.pending, &self.received, &mut self.report);
            if self.received.len() >= MAX_RECEIVED {
                return Err(flood());
            }
        }
    }

    /// There is no reply in time. What came is no answer to this request; it may be a late one to an earlier request.
    async fn give_up(&mut self, this: Pending, query: &Query, late_before: usize) -> io::Result<Outcome> {
        let received = std::mem::take(&mut self.received);
        self.note_unasked(&received);
        let damaged = this.asked.find(&received) == Found::Damaged;
        let fault = this.asked.fault(&received);
        self.report.heard = Some(heard(this.asked.as_ref(), &received));
        self.received = received;
        let late = self.report.late.get(late_before..).unwrap_or_default();
        let late = late.iter().find(|(address, _)| *address == query.address).map(|(_, late)| *late);
        if let Some(late) = late {
            self.pending.push(this);
            return Ok(Outcome::Silent { late: Some(late) });
        }
        if let Some(detail) = fault {
            let certain = damaged && self.pending.is_empty();
            self.pending.push(if certain { this.damaged(query.timeout) } else { this });
            return Ok(Outcome::Garbled { detail });
        }
        let linger = query.timeout.max(LEAST_LINGER);
        if query.linger && self.listen_for(this.asked.as_ref(), linger).await? {
            let late = this.age();
            self.report.late.push((query.address, late));
            return Ok(Outcome::Silent { late: Some(late) });
        }
        self.pending.push(this);
        Ok(Outcome::Silent { late: None })
    }

    /// A frame that could be a pending reply is the answer to this request only if no second one follows. Whatever is
    /// uncertain is no answer.
    async fn doubt(&mut self, this: Pending, frame: Vec<u8>) -> io::Result<Option<Outcome>> {
        let rivals: Vec<&Pending> =
            self.pending.iter().filter(|pending| pending.could_be(&frame, this.asked.as_ref())).collect();
        let Some(first) = rivals.iter().map(|rival| rival.sent).min() else {
            self.answered = Some((this, frame));
            return Ok(None);
        };
        let same = rivals.iter().all(|rival| rival.asked.request() == this.asked.request());
        // A meter that is late by the same time each time answers this one no later than that.
        let span = this.sent.saturating_duration_since(first);
        let wait = (span * 5 / 4).max(LEAST_LINGER);
        if self.listen_for(this.asked.as_ref(), wait).await? {
            let late = this.age();
            self.pending.push(this);
            return Ok(Some(Outcome::Silent { late: Some(late) }));
        }
        self.pending.retain(|pending| !pending.could_be(&frame, this.asked.as_ref()));
        if same {
            return Ok(None);
        }
        let detail = "the answer may belong to an earlier question that was given up".into();
        Ok(Some(Outcome::Garbled { detail }))
    }

    /// Listens for so long for a reply to this request; whether one came.
    async fn listen_for(&mut self, asked: &dyn Transaction, time: Duration) -> io::Result<bool> {
        let end = Instant::now() + time;
        let (mut heard, mut came) = (Vec::new(), false);
        while !came && heard.len() < MAX_RECEIVED {
            match timeout_at(end, self.read()).await {
                Err(_) => break,
                Ok(bytes) => heard.extend(bytes?),
            }
            came = matches!(asked.find(&heard), Found::Frame(_));
        }
        self.note_unasked(&heard);
        Ok(came)
    }

    /// The next bytes. Nothing is lost when the wait for them is given up.
    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = [0; 512];
        let read = self.port()?.read(&mut bytes).await?;
        if read == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"));
        }
        self.last_activity = Instant::now();
        Ok(bytes.get(..read).unwrap_or_default().to_vec())
    }

    fn port(&mut self) -> io::Result<&mut dyn Port> {
        match &mut self.port {
            Some(port) => Ok(port.as_mut()),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Bytes that answer no request under way: a pending reply among them has come.
    fn note_unasked(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.note('!', bytes);
        let late_before = self.report.late.len();
        note_late(&mut self.pending, bytes, &mut self.report);
        if self.report.late.len() == late_before
            && let Some((answered, frame)) = &self.answered
            && answered.age() < DOUBLED_WITHIN
            && let Found::Frame(range) = answered.asked.find(bytes)
            && bytes.get(range) != Some(frame)
        {
            self.report.doubled = Some(answered.address);
        }
    }

    fn note(&mut self, mark: char, bytes: &[u8]) {
        if self.report.frames.len() < MOST_FRAMES {
            self.report.frames.push(Traced { at: self.clock.wall(), mark, bytes: bytes.to_vec() });
        }
    }
}

/// What came instead of a reply.
fn heard(asked: &dyn Transaction, received: &[u8]) -> Heard {
    if received.is_empty() {
        Heard::Nothing
    } else if received == asked.request() {
        Heard::Echo
    } else if let Some(text) = asked.other_form(received) {
        Heard::OtherForm(text)
    } else if asked.holds_frames(received) {
        Heard::Others
    } else {
        Heard::Noise
    }
}

/// What is pending and has come.
fn note_late(pending: &mut Vec<Pending>, bytes: &[u8], report: &mut Report) {
    let came = |pending: &mut Pending| matches!(pending.asked.find(bytes), Found::Frame(_));
    for pending in pending.extract_if(.., came) {
        report.late.push((pending.address, pending.age()));
    }
}

fn outcome_of(reply: Reply, at: Utc, elapsed: Duration) -> Outcome {
    match reply {
        Reply::Data(payload) => Outcome::Answered { payload, at, elapsed },
        Reply::Refused(refusal) => Outcome::Refused(refusal),
        Reply::Nobody => Outcome::Silent { late: None },
        Reply::Unfit(detail) => Outcome::Garbled { detail },
    }
}

/// The other side has ended the connection.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe | NotConnected)
}

fn flood() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "bytes come without end")
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("link", &self.link).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
