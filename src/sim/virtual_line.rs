//! A line in memory, under tokio's time: bytes arrive when they would on copper, and days pass in seconds.
//!
//! For simulations under a seed, where a pseudo-terminal would bring the machine's own time in. It never polls: what is
//! due is looked up when somebody reads. It counts who talks into an answer, and how many have the line open at once.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{Habit, Meters, Occurred, SimClock, SimMeter, TcpFraming, hold, request::Request};
use crate::{
    bus::{Port, Ports},
    config::Link,
    protocol::Wire,
};

/// Characters that arrive together, as from a UART with a small buffer.
const CHUNK_CHARS: usize = 16;
/// Answers that may be under way: a meter that is late for ever is asked again and again.
const MAX_WAITING: usize = 64;

/// A flood: so many bytes each time, and the time between.
const FLOOD: (usize, Duration) = (512, Duration::from_millis(10));

/// What is wrong with the line itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LineState {
    /// The adapter is pulled, or the peer gone.
    pub unplugged: bool,
    /// Everything that is sent comes back first.
    pub echo: bool,
}

/// A line with meters on it.
#[derive(Clone)]
pub struct VirtualLine {
    copper: Arc<Mutex<Copper>>,
}

struct Copper {
    framing: TcpFraming,
    /// The line's own settings, and those of the port now.
    own: Wire,
    wire: Wire,
    meters: Meters,
    clock: SimClock,
    state: LineState,
    habit: Option<Habit>,
    occurred: Occurred,
    /// When the last request came, or the line was opened.
    used: Option<Instant>,
    /// Ports opened so far, and up to which of them nothing passes any more.
    opened: u64,
    dead: u64,
    flooding: bool,
    /// Ports of an earlier generation have lost their line.
    generation: u64,
    /// How the last generation ended.
    ending: Ending,
    open: usize,
    received: Vec<u8>,
    arriving: VecDeque<(Instant, Vec<u8>)>,
    /// Until when a punctual answer is on the wire.
    busy_until: Option<Instant>,
    waker: Option<Waker>,
    requests: u64,
    collisions: u64,
    most_open: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Unplugged,
    Closed,
    Reset,
}

impl VirtualLine {
    /// A line at this speed. Behind Modbus TCP the frames take no time.
    pub fn new(framing: TcpFraming, wire: Wire, meters: Meters, clock: SimClock) -> VirtualLine {
        let copper = Copper {
            framing,
            own: wire,
            wire,
            meters,
            clock,
            state: LineState::default(),
            habit: None,
            occurred: Occurred::new(),
            used: None,
            opened: 0,
            dead: 0,
            flooding: false,
            generation: 0,
            ending: Ending::Unplugged,
            open: 0,
            received: Vec::new(),
            arriving: VecDeque::new(),
            busy_until: None,
            waker: None,
            requests: 0,
            collisions: 0,
            most_open: 0,
        };
        VirtualLine { copper: Arc::new(Mutex::new(copper)) }
    }

    /// Whoever had it open is dead, and tokio's time may have begun anew.
    pub fn restart(&self) {
        hold(&self.copper).cut(Ending::Unplugged);
    }

    /// Changes what is wrong with it. Unplugging takes effect at once.
    pub fn set(&self, state: LineState) {
        let mut copper = hold(&self.copper);
        if state.unplugged && !copper.state.unplugged {
            copper.cut(Ending::Unplugged);
        }
        copper.state = state;
    }

    /// Takes up a habit, or leaves it off.
    pub fn take_up(&self, habit: Option<Habit>) {
        let mut copper = hold(&self.copper);
        if habit == Some(Habit::DropsOut) {
            copper.dead = copper.opened;
            copper.arriving.clear();
        }
        copper.flooding &= habit == Some(Habit::Floods);
        copper.habit = habit;
    }

    /// How often each habit has occurred.
    pub fn occurred(&self) -> Occurred {
        hold(&self.copper).occurred.clone()
    }

    /// Its meters.
    pub fn meters(&self) -> Meters {
        Arc::clone(&hold(&self.copper).meters)
    }

    /// Requests that came.
    pub fn requests(&self) -> u64 {
        hold(&self.copper).requests
    }

    /// Requests that talked into a punctual answer.
    pub fn collisions(&self) -> u64 {
        hold(&self.copper).collisions
    }

    /// How many had the line open at once, at most.
    pub fn most_open(&self) -> usize {
        hold(&self.copper).most_open
    }
}

impl fmt::Debug for VirtualLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VirtualLine")
    }
}

impl Copper {
    fn cut(&mut self, ending: Ending) {
        self.ending = ending;
        self.generation += 1;
        self.used = None;
        self.flooding = false;
        self.open = 0;
        self.received.clear();
        self.arriving.clear();
        self.busy_until = None;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn note(&mut self, habit: Habit) {
        *self.occurred.entry(habit.name()).or_default() += 1;
    }

    /// When nothing has been asked for so long that the converter hangs up.
    fn hangs_up_at(&self) -> Option<Instant> {
        match self.habit {
            Some(Habit::ClosesWhenIdle { after, .. }) => self.used.map(|used| used + after),
            _ => None,
        }
    }

    fn hang_up_when_idle(&mut self) {
        if let Some(habit @ Habit::ClosesWhenIdle { reset, .. }) = self.habit
            && self.hangs_up_at().is_some_and(|at| at <= Instant::now())
        {
            self.note(habit);
            self.cut(if reset { Ending::Reset } else { Ending::Closed });
        }
    }

    fn flood(&mut self) {
        self.arriving.push_back((Instant::now() + FLOOD.1, vec![0x55; FLOOD.0]));
    }

    fn receive(&mut self, bytes: &[u8]) {
        let now = Instant::now();
        self.used = Some(now);
        self.received.extend(bytes);
        loop {
            let asked = match self.framing {
                TcpFraming::Rtu => Request::take(&mut self.received),
                TcpFraming::Tcp => Request::take_mbap(&mut self.received).ok().flatten(),
            };
            let Some(asked) = asked else { return };
            self.handle(&asked, bytes, now);
        }
    }

    fn handle(&mut self, asked: &Request, request: &[u8], now: Instant) {
        self.requests += 1;
        if self.busy_until.is_some_and(|until| until > now) {
            self.collisions += 1;
        }
        let char_time = match self.framing {
            TcpFraming::Rtu => self.wire.char_time(),
            TcpFraming::Tcp => Duration::ZERO,
        };
        let chars = |count: usize| char_time * u32::try_from(count).unwrap_or(u32::MAX);
        let end = now + chars(request.len());
        if self.state.echo && self.framing == TcpFraming::Rtu {
            self.arriving.push_back((end, request.to_vec()));
        }
        if self.habit == Some(Habit::Floods) {
            if !std::mem::replace(&mut self.flooding, true) {
                self.note(Habit::Floods);
                self.flood();
            }
            return;
        }
        // Whoever has settings of its own hears those alone, and on such a line everybody else the line's.
        let (own, now) = (self.own, self.wire);
        let mixed = hold(&self.meters).iter().any(|meter| meter.wire().is_some());
        let hears = |meter: &SimMeter| !mixed || meter.wire().unwrap_or(own) == now;
        if let Some(mut reply) = asked.answer(&self.meters, self.clock.now(), hears)
            && self.arriving.len() < MAX_WAITING
        {
            if let Some(habit @ Habit::RefusesOnce(code)) = self.habit
                && let Some(refusal) = asked.refusal(code)
            {
                reply.bytes = refusal;
                self.note(habit);
                self.habit = None;
            }
            let (frame, start) = (self.with_habits(reply.bytes), end + reply.delivery.think);
            if !reply.delivery.late {
                self.busy_until = Some(start + chars(frame.len()));
            }
            let mut sent = 0;
            for chunk in frame.chunks(CHUNK_CHARS) {
                sent += chunk.len();
                self.arriving.push_back((start + chars(sent), chunk.to_vec()));
            }
            if let (Some(habit @ Habit::Trails(after)), TcpFraming::Rtu) = (self.habit, self.framing) {
                self.arriving.push_back((start + chars(sent) + after, vec![0; 3]));
                self.note(habit);
            }
        }
        self.arriving.make_contiguous().sort_by_key(|(due, _)| *due);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// What the converter adds to a frame, or changes in it.
    fn with_habits(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        match (self.habit, self.framing) {
            (Some(habit @ Habit::Leads(bytes)), TcpFraming::Rtu) => {
                self.note(habit);
                frame.splice(0..0, bytes.iter().copied());
            }
            (Some(habit @ Habit::Renumbers), TcpFraming::Tcp) => {
                if let Some(low) = frame.get_mut(1) {
                    self.note(habit);
                    *low = low.wrapping_add(1);
                }
            }
            _ => {}
        }
        frame
    }

    /// How the line of this generation ended, if it did.
    fn ended(&self, generation: u64) -> Option<Ending> {
        match (self.state.unplugged, self.generation == generation) {
            (true, _) => Some(Ending::Unplugged),
            (false, false) => Some(self.ending),
            (false, true) => None,
        }
    }
}

struct VirtualPort {
    line: VirtualLine,
    generation: u64,
    number: u64,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Ending {
    fn error(self) -> io::Error {
        match self {
            Ending::Unplugged => io::Error::new(io::ErrorKind::BrokenPipe, "the device is gone"),
            Ending::Closed => io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"),
            Ending::Reset => io::Error::from(io::ErrorKind::ConnectionReset),
        }
    }
}

impl Port for VirtualPort {
    fn take_input(&mut self, into: &mut Vec<u8>, most: usize) -> io::Result<()> {
        let mut copper = hold(&self.line.copper);
        copper.hang_up_when_idle();
        if let Some(ending) = copper.ended(self.generation) {
            return Err(ending.error());
        }
        let now = Instant::now();
        while into.len() < most && copper.arriving.front().is_some_and(|(due, _)| *due <= now) {
            into.extend(copper.arriving.pop_front().map(|(_, bytes)| bytes).unwrap_or_default());
        }
        if copper.flooding && copper.arriving.is_empty() {
            copper.flood();
        }
        Ok(())
    }

    fn tune(&mut self, wire: Wire) -> io::Result<()> {
        hold(&self.line.copper).wire = wire;
        Ok(())
    }
}

impl AsyncRead for VirtualPort {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let due = {
                let mut copper = hold(&self.line.copper);
                copper.hang_up_when_idle();
                match copper.ended(self.generation) {
                    Some(Ending::Closed) => return Poll::Ready(Ok(())), // the end of the stream
                    Some(ending) => return Poll::Ready(Err(ending.error())),
                    None => {}
                }
                let due = copper.arriving.front().map(|(due, _)| *due);
                if due.is_some_and(|due| due <= Instant::now())
                    && let Some((due, mut bytes)) = copper.arriving.pop_front()
                {
                    let rest = bytes.split_off(bytes.len().min(buf.remaining()));
                    buf.put_slice(&bytes);
                    if !rest.is_empty() {
                        copper.arriving.push_front((due, rest));
                    }
                    if copper.flooding && copper.arriving.is_empty() {
                        copper.flood();
                    }
                    return Poll::Ready(Ok(()));
                }
                copper.waker = Some(cx.waker().clone());
                due.into_iter().chain(copper.hangs_up_at()).min()
            };
            let Some(due) = due else { return Poll::Pending };
            let mut alarm = Box::pin(sleep_until(due));
            if alarm.as_mut().poll(cx).is_pending() {
                self.alarm = Some(alarm);
                return Poll::Pending;
            }
        }
    }
}

impl AsyncWrite for VirtualPort {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut copper = hold(&self.line.copper);
        copper.hang_up_when_idle();
        match copper.ended(self.generation) {
            Some(Ending::Closed) => {} // what is sent into a closed connection is lost without a word
            Some(ending) => return Poll::Ready(Err(ending.error())),
            None if self.number <= copper.dead => copper.note(Habit::DropsOut),
            None => copper.receive(bytes),
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for VirtualPort {
    fn drop(&mut self) {
        let mut copper = hold(&self.line.copper);
        if copper.generation == self.generation {
            copper.open = copper.open.saturating_sub(1);
            if copper.flooding {
                copper.flooding = false;
                copper.arriving.clear();
            }
        }
    }
}

/// Virtual lines under the names of a configuration: device paths and addresses.
#[derive(Debug, Clone, Default)]
pub struct VirtualLines(pub BTreeMap<String, VirtualLine>);

impl Ports for VirtualLines {
    fn open<'a>(&'a self, link: &'a Link) -> BoxFuture<'a, io::Result<Box<dyn Port>>> {
        let name = match link {
            Link::Serial { device, .. } => device.display().to_string(),
            Link::Tcp { address } | Link::SerialOverTcp { address, .. } => address.clone(),
        };
        Box::pin(async move {
            let absent = || io::Error::new(io::ErrorKind::NotFound, format!("{name}: there is no such line"));
            let found = self.0.get(&name).ok_or_else(absent)?;
            let mut copper = hold(&found.copper);
            if copper.state.unplugged {
                return Err(absent());
            }
            copper.wire = copper.own; // as whoever opens it sets it up
            copper.open += 1;
            copper.most_open = copper.most_open.max(copper.open);
            copper.opened += 1;
            copper.used = Some(Instant::now());
            let (generation, number) = (copper.generation, copper.opened);
            let port = VirtualPort { line: found.clone(), generation, number, alarm: None };
            Ok(Box::new(port) as Box<dyn Port>)
        })
    }
}
