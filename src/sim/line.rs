//! A serial line with meters on it, behind a pseudo-terminal, as slow as a real one.
//!
//! A thread of its own keeps the pace: bytes of a request count as being on the wire for their character times,
//! answers are delivered a few characters at a time and end no earlier than they would on copper. It also watches
//! how the line is used: who talks into an answer, and how long the silence before a request was. Both are
//! judged in the gateway's favour by the time that the kernel takes to pass bytes on.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
    termios::{self, ControlModes},
};

use super::{
    Meters, SimClock, SimMeter, hold, pty,
    request::{MAX_FRAME, Request},
};
use crate::protocol::{Parity, Wire};

/// Least time between two writes of one answer, so that a fast line does not cost a core: far below any timeout.
const LEAST_CHUNK: Duration = Duration::from_millis(2);
/// Characters of a write on slower lines: fewer than the 3.5 whose absence would end a frame.
const CHUNK_CHARS: u32 = 3;
/// Answers that wait for their (late) turn; more than one per unit id cannot be.
const MAX_WAITING: usize = 256;

/// How a line differs from the plain one.
#[derive(Debug, Clone, Default)]
pub struct LineOptions {
    /// Where to link the terminal's device to; an existing file there is left alone (an error).
    pub symlink: Option<PathBuf>,
    /// The adapter hears itself: every request comes back before the answer.
    pub echo: bool,
    /// The meters' wall clock.
    pub clock: SimClock,
}

/// A line with meters on it. Dropped, it is unplugged.
#[derive(Debug)]
pub struct PtyLine {
    path: PathBuf,
    symlink: Option<PathBuf>,
    slave: Option<OwnedFd>,
    wake: Arc<OwnedFd>,
    watch: Arc<Watch>,
    thread: Option<JoinHandle<()>>,
}

/// What the line has seen.
#[derive(Debug, Default)]
struct Watch {
    requests: AtomicU64,
    collisions: AtomicU64,
    shortest: Mutex<Option<Duration>>,
    echo: AtomicBool,
}

impl PtyLine {
    /// Opens a pseudo-terminal on which `meters` answer.
    pub fn spawn(wire: Wire, meters: Meters, options: LineOptions) -> io::Result<PtyLine> {
        let pty = pty::open()?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let watch = Arc::new(Watch { echo: options.echo.into(), ..Watch::default() });
        if let Some(link) = &options.symlink {
            std::os::unix::fs::symlink(&pty.path, link)?;
        }
        let mut line = PtyLine {
            path: pty.path,
            symlink: options.symlink,
            slave: Some(pty.slave),
            wake: Arc::clone(&wake),
            watch: Arc::clone(&watch),
            thread: None,
        };
        let copper = Copper {
            wire,
            meters,
            clock: options.clock,
            watch,
            master: pty.master,
            received: Vec::new(),
            first_byte: None,
            last_byte: None,
            free_at: None,
            current: None,
            waiting: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("sim-line".into()).spawn(move || copper.run(&wake))?;
        line.thread = Some(thread);
        Ok(line)
    }

    /// The device to open: the link if one was asked for.
    pub fn path(&self) -> &Path {
        self.symlink.as_deref().unwrap_or(&self.path)
    }

    /// Requests with a sound checksum, to whomever, of either language.
    pub fn requests(&self) -> u64 {
        self.watch.requests.load(Ordering::Relaxed)
    }

    /// Requests that began while a punctual meter still had an answer to finish (a time-out that is shorter than
    /// the answer counts too). Late answers do not count: nobody can know of them.
    pub fn collisions(&self) -> u64 {
        self.watch.collisions.load(Ordering::Relaxed)
    }

    /// The shortest silence before a request; `None` before the second request.
    pub fn shortest_silence(&self) -> Option<Duration> {
        *hold(&self.watch.shortest)
    }

    /// Forgets what was seen.
    pub fn forget(&self) {
        self.watch.requests.store(0, Ordering::Relaxed);
        self.watch.collisions.store(0, Ordering::Relaxed);
        *hold(&self.watch.shortest) = None;
    }

    /// Whether the adapter hears itself.
    pub fn set_echo(&self, echo: bool) {
        self.watch.echo.store(echo, Ordering::Relaxed);
    }

    /// Pulls the plug: the device is gone, whoever has it open sees an error or the end of the file.
    pub fn unplug(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()); // a full counter wakes as well
            let _ = thread.join(); // a panic there has been reported by its hook
        }
        self.slave = None;
        if let Some(link) = self.symlink.take() {
            let _ = std::fs::remove_file(link); // someone was faster
        }
    }
}

impl Drop for PtyLine {
    fn drop(&mut self) {
        self.unplug();
    }
}

/// An answer on its way.
#[derive(Debug)]
struct Answer {
    start: Instant,
    /// The settings with which it is sent.
    wire: Wire,
    bytes: Vec<u8>,
    sent: usize,
    late: bool,
}

/// The thread's side.
struct Copper {
    wire: Wire,
    meters: Meters,
    clock: SimClock,
    watch: Arc<Watch>,
    master: OwnedFd,
    received: Vec<u8>,
    /// Of the frame that is being received.
    first_byte: Option<Instant>,
    last_byte: Option<Instant>,
    /// When the last frame, either way, left the wire.
    free_at: Option<Instant>,
    current: Option<Answer>,
    waiting: Vec<Answer>,
}

impl Copper {
    fn run(mut self, wake: &OwnedFd) {
        loop {
            let now = Instant::now();
            if self.quiet_at().is_some_and(|at| at <= now) {
                let request = Request::take_quiet(&mut self.received);
                self.handle(request, now);
            }
            self.send(now);
            let timeout = self.next_event().map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
            let mut fds = [PollFd::new(&self.master, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let [master, wake] = fds.map(|fd| fd.revents());
            if wake.contains(PollFlags::IN) || (!master.is_empty() && !self.receive()) {
                return;
            }
        }
    }

    /// When what has been received of a frame is judged as it is.
    fn quiet_at(&self) -> Option<Instant> {
        self.last_byte.filter(|_| !self.received.is_empty()).map(|at| at + self.wire.silence())
    }

    fn next_event(&self) -> Option<Instant> {
        let sending = match &self.current {
            Some(answer) => Some(answer.due(answer.chunk_end())),
            None => self.waiting.iter().map(|answer| answer.start).min(),
        };
        [self.quiet_at(), sending].into_iter().flatten().min()
    }

    /// Takes what has come; `false` when the terminal is gone.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; MAX_FRAME];
        let count = match rustix::io::read(&self.master, &mut buffer) {
            Ok(count) => count,
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        };
        let now = Instant::now();
        let bytes = buffer.get(..count).unwrap_or_default();
        if self.watch.echo.load(Ordering::Relaxed) {
            let _ = rustix::io::write(&self.master, bytes); // lost when nobody reads, as on a UART
        }
        if self.received.is_empty() {
            self.first_byte = Some(now);
        }
        self.last_byte = Some(now);
        // Noise beyond the longest frame is dropped with the next silence.
        if self.received.len() <= MAX_FRAME {
            self.received.extend(bytes);
        }
        while let Some(request) = Request::take(&mut self.received) {
            self.handle(Some(request), now);
        }
        true
    }

    /// The settings with which the port is open now. A pseudo-terminal keeps speed and stop bits, and of the parity only
    /// whether it is odd.
    fn tuned(&self) -> Wire {
        let Ok(settings) = termios::tcgetattr(&self.master) else { return self.wire };
        let odd = settings.control_modes.contains(ControlModes::PARODD);
        let parity = if odd { Parity::Odd } else { self.wire.parity };
        let stop_bits = if settings.control_modes.contains(ControlModes::CSTOPB) { 2 } else { 1 };
        Wire { baud: settings.output_speed(), parity, stop_bits }
    }

    /// Whether what was sent with these settings is understood by who has those.
    fn fits(sent: Wire, own: Wire) -> bool {
        let odd = |wire: Wire| wire.parity == Parity::Odd;
        sent.baud == own.baud && sent.stop_bits == own.stop_bits && odd(sent) == odd(own)
    }

    /// The settings with which a frame is sent. Where no meter has its own, whatever comes is taken as the line's.
    fn sent_as(&self) -> Wire {
        let mixed = hold(&self.meters).iter().any(|meter| meter.wire().is_some());
        if mixed { self.tuned() } else { self.wire }
    }

    /// A frame has come: `None` when it was no request.
    fn handle(&mut self, request: Option<Request>, now: Instant) {
        let began = self.first_byte.replace(now).unwrap_or(now);
        let Some(request) = request else { return };
        self.watch.requests.fetch_add(1, Ordering::Relaxed);
        let sent = self.sent_as();
        let end = now.max(began + sent.char_time() * request.chars());
        let punctual = |answer: &Answer| !answer.late;
        let talked_into = self.current.as_ref().is_some_and(punctual);
        if talked_into || self.waiting.iter().any(punctual) || self.free_at.is_some_and(|at| at > began) {
            self.watch.collisions.fetch_add(1, Ordering::Relaxed);
            // Two voices on one pair of wires: neither is understood.
            if let Some(answer) = &mut self.current {
                answer.bytes.iter_mut().skip(answer.sent).for_each(|byte| *byte = !*byte);
            }
            self.note_silence(Duration::ZERO);
            return;
        }
        if self.current.is_none()
            && let Some(free_at) = self.free_at
        {
            self.note_silence(began.saturating_duration_since(free_at));
        }
        self.free_at = Some(end);
        if self.waiting.len() >= MAX_WAITING {
            return;
        }
        let hears = |meter: &SimMeter| Copper::fits(sent, meter.wire().unwrap_or(self.wire));
        if let Some(reply) = request.answer(&self.meters, self.clock.now(), hears) {
            let (start, late) = (end + reply.delivery.think, reply.delivery.late);
            let wire = reply.wire.unwrap_or(self.wire);
            self.waiting.push(Answer { start, wire, bytes: reply.bytes, sent: 0, late });
        }
    }

    fn note_silence(&self, silence: Duration) {
        let mut shortest = hold(&self.watch.shortest);
        *shortest = Some(shortest.map_or(silence, |known| known.min(silence)));
    }

    /// Delivers what is due.
    fn send(&mut self, now: Instant) {
        if self.current.is_none() {
            let next = self.waiting.iter().enumerate().min_by_key(|(_, answer)| answer.start);
            if let Some(index) = next.filter(|(_, answer)| answer.start <= now).map(|(index, _)| index) {
                let mut answer = self.waiting.swap_remove(index);
                // A late answer that found the wire taken follows at once.
                answer.start = self.free_at.map_or(answer.start, |free_at| answer.start.max(free_at));
                self.current = Some(answer);
            }
        }
        let Some(answer) = &self.current else { return };
        let mut end = answer.sent;
        loop {
            let next = (end + answer.chunk_chars()).min(answer.bytes.len());
            if next == end || answer.due(next) > now {
                break;
            }
            end = next;
        }
        let mut bytes = answer.bytes.get(answer.sent..end).unwrap_or_default().to_vec();
        if !Copper::fits(answer.wire, self.sent_as()) {
            // A port that was set up otherwise meanwhile hears something else.
            for byte in &mut bytes {
                *byte = !*byte;
            }
        }
        let _ = rustix::io::write(&self.master, &bytes); // lost when nobody reads, as on a UART
        let finished = end == answer.bytes.len();
        if finished {
            // Taken before the write, so that the silence that follows is never measured too short.
            self.free_at = Some(now);
            self.current = None;
        } else if let Some(answer) = &mut self.current {
            answer.sent = end;
        }
    }
}

impl Answer {
    fn chunk_chars(&self) -> usize {
        let char_time = self.wire.char_time().as_nanos().max(1);
        usize::try_from(LEAST_CHUNK.as_nanos() / char_time).unwrap_or(1).max(CHUNK_CHARS as usize)
    }

    fn chunk_end(&self) -> usize {
        (self.sent + self.chunk_chars()).min(self.bytes.len())
    }

    /// When so many of its characters have left the wire.
    fn due(&self, chars: usize) -> Instant {
        self.start + self.wire.char_time() * u32::try_from(chars).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Dec,
        profile::Catalogue,
        protocol::{
            Found, Parity, Transaction as _, dlt645,
            modbus::{rtu_fault, rtu_reply},
        },
        sim::{Fault, SimMeter, request::frame, share},
    };
    use std::{
        fs::{File, OpenOptions},
        io::{Read as _, Write as _},
    };

    const WIRE: Wire = Wire { baud: 9600, parity: Parity::None, stop_bits: 1 };
    /// Two words of a meter: its reply has nine characters.
    const READ: [u8; 5] = [4, 0, 0, 0, 2];
    const REPLY_CHARS: u32 = 9;
    const NOTHING: [u8; 0] = [];

    fn meter(unit: u8) -> SimMeter {
        let mut meter =
            SimMeter::new(unit, Catalogue::builtin().get("eastron-sdm630").unwrap(), u64::from(unit));
        meter.faults().think(Duration::from_millis(20), Duration::from_millis(20));
        meter.set("voltage_l1", "230.2".parse::<Dec>().unwrap());
        meter
    }

    fn line(meters: Vec<SimMeter>) -> PtyLine {
        PtyLine::spawn(WIRE, share(meters), LineOptions::default()).unwrap()
    }

    fn open(line: &PtyLine) -> File {
        OpenOptions::new().read(true).write(true).open(line.path()).unwrap()
    }

    /// What comes until the line has been quiet for `quiet`, and when its last byte came.
    fn listen(port: &mut File, quiet: Duration) -> (Vec<u8>, Instant) {
        let (mut received, mut last) = (Vec::new(), Instant::now());
        loop {
            let timeout = Timespec::try_from(quiet).unwrap();
            let mut fds = [PollFd::new(&*port, PollFlags::IN)];
            if poll(&mut fds, Some(&timeout)).unwrap() == 0 {
                return (received, last);
            }
            let mut buffer = [0; 256];
            let count = port.read(&mut buffer).unwrap();
            last = Instant::now();
            received.extend(&buffer[..count]);
        }
    }

    fn ask(port: &mut File, unit: u8) -> (Vec<u8>, Vec<u8>, Duration) {
        let request = frame(unit, &READ);
        let began = Instant::now();
        port.write_all(&request).unwrap();
        let (received, last) = listen(port, Duration::from_millis(150));
        (request, received, last - began)
    }

    #[test]
    fn a_value_is_read_no_faster_than_copper_would_bring_it() {
        let line = line(vec![meter(1)]);
        let mut port = open(&line);
        let (request, received, took) = ask(&mut port, 1);
        assert_eq!(rtu_reply(&request, &received), Found::Frame(0..REPLY_CHARS as usize));
        assert_eq!(received[3..7], [0x43, 0x66, 0x33, 0x33], "230.2 as a single");
        let least = WIRE.char_time() * (8 + REPLY_CHARS) + Duration::from_millis(20);
        assert!(took >= least, "{took:?}, at least {least:?} at 9600 baud");
        assert_eq!((line.requests(), line.collisions(), line.shortest_silence()), (1, 0, None));
        ask(&mut port, 1);
        assert!(line.shortest_silence().unwrap() >= Duration::from_millis(150));
    }

    #[test]
    fn the_terminal_survives_that_it_is_closed_and_opened_again() {
        let line = line(vec![meter(1)]);
        for _ in 0..3 {
            let (request, received, _) = ask(&mut open(&line), 1);
            assert_eq!(rtu_reply(&request, &received), Found::Frame(0..9));
        }
    }

    #[test]
    fn each_fault_is_heard() {
        let late = Duration::from_millis(500);
        let line = line(vec![
            meter(1).with(Fault::Dead),
            meter(2).with(Fault::Noisy { percent: 100 }),
            meter(3).with(Fault::Truncated),
            meter(4).with(Fault::WrongUnit),
            meter(6),
            meter(7).with(Fault::LateBy(late)),
        ]);
        let mut port = open(&line);
        assert_eq!(ask(&mut port, 1).1, NOTHING);
        assert_eq!(ask(&mut port, 99).1, NOTHING, "nobody has that number");
        assert_eq!(ask(&mut port, 0).1, NOTHING, "a broadcast");
        for (unit, says) in [(2, ""), (4, "unit 5 spoke")] {
            let (request, received, _) = ask(&mut port, unit);
            assert!(!matches!(rtu_reply(&request, &received), Found::Frame(_)));
            assert!(rtu_fault(&request, &received).unwrap().contains(says));
        }
        let (request, received, _) = ask(&mut port, 3);
        assert_eq!((received.len(), rtu_reply(&request, &received)), (4, Found::Incomplete));

        // The late one answers into the silence after the next one's answer, as itself.
        port.write_all(&frame(7, &READ)).unwrap();
        assert_eq!(listen(&mut port, Duration::from_millis(60)).0, NOTHING);
        let request = frame(6, &READ);
        port.write_all(&request).unwrap();
        let (received, _) = listen(&mut port, late);
        assert_eq!(rtu_reply(&request, &received[..9]), Found::Frame(0..9));
        assert_eq!(received[9..], frame(7, &[4, 4, 0x43, 0x66, 0x33, 0x33]));
        assert_eq!(line.collisions(), 0);
    }

    #[test]
    fn an_adapter_may_hear_itself() {
        let line = line(vec![meter(1)]);
        line.set_echo(true);
        let (request, received, _) = ask(&mut open(&line), 1);
        assert_eq!(rtu_reply(&request, &received), Found::Frame(8..17));
    }

    #[test]
    fn who_talks_into_an_answer_is_counted_and_not_understood() {
        let line = line(vec![meter(1), meter(2)]);
        let mut port = open(&line);
        let both = [frame(1, &READ), frame(2, &READ)].concat();
        port.write_all(&both).unwrap();
        let (received, _) = listen(&mut port, Duration::from_millis(150));
        assert_eq!((line.requests(), line.collisions()), (2, 1));
        assert_eq!(line.shortest_silence(), Some(Duration::ZERO));
        assert_eq!(received.len(), 9, "only the first is answered");
        line.forget();
        assert_eq!((line.requests(), line.collisions(), line.shortest_silence()), (0, 0, None));
    }

    fn dlt645(address: &str) -> SimMeter {
        let profile = Catalogue::builtin().get("dlt645-2007-three-phase").unwrap();
        let mut meter = SimMeter::new(address.parse::<dlt645::Address>().unwrap(), profile, 1);
        meter.set_wire(Wire { baud: 2400, parity: Parity::Even, stop_bits: 1 });
        meter.set("voltage_l1", "230.2".parse::<Dec>().unwrap());
        meter
    }

    fn tune(port: &File, baud: u32) {
        let mut settings = termios::tcgetattr(port).unwrap();
        settings.make_raw();
        settings.set_speed(baud).unwrap();
        termios::tcsetattr(port, termios::OptionalActions::Now, &settings).unwrap();
    }

    /// What comes after this request at this speed.
    fn say(port: &mut File, baud: u32, request: &[u8]) -> Vec<u8> {
        tune(port, baud);
        port.write_all(request).unwrap();
        listen(port, Duration::from_millis(200)).0
    }

    #[test]
    fn on_a_mixed_line_each_meter_hears_its_own_speed_alone() {
        let line = line(vec![meter(1), dlt645("202107300049")]);
        let mut port = open(&line);
        let modbus = frame(1, &READ);
        let read = dlt645::Read::data("02010100".parse().unwrap(), 2);
        let asked = dlt645::ReadTransaction::new("202107300049".parse().unwrap(), read);
        for (baud, request, length) in [
            (9600, modbus.as_slice(), REPLY_CHARS as usize),
            (2400, modbus.as_slice(), 0),
            (9600, asked.request(), 0),
            (2400, asked.request(), 4 + 18),
        ] {
            let received = say(&mut port, baud, request);
            assert_eq!(received.len(), length, "{baud} {request:02X?}: {received:02X?}");
        }
        let received = say(&mut port, 2400, asked.request());
        assert_eq!(asked.find(&received), Found::Frame(4..22));
        assert_eq!(received[18..20], [0x02 + 0x33, 0x23 + 0x33], "230.2, the lowest byte first");
        // A reply that comes when the port is set up otherwise is something else.
        tune(&port, 2400);
        port.write_all(asked.request()).unwrap();
        let sent = Instant::now();
        while sent.elapsed() < Duration::from_millis(5) || line.requests() < 6 {
            std::thread::yield_now();
        }
        tune(&port, 9600);
        let (received, _) = listen(&mut port, Duration::from_millis(300));
        assert!(!received.is_empty() && !matches!(asked.find(&received), Found::Frame(_)), "{received:02X?}");
    }

    #[test]
    fn what_a_wildcard_brings_from_two_meters_is_neither_s_answer() {
        let line = line(vec![dlt645("202107300049"), dlt645("181226034194")]);
        let mut port = open(&line);
        let asked = dlt645::ReadTransaction::new(dlt645::Address::ANYBODY, dlt645::Read::Address);
        let received = say(&mut port, 2400, asked.request());
        assert!(!received.is_empty() && !matches!(asked.find(&received), Found::Frame(_)), "{received:02X?}");
    }

    #[test]
    fn noise_is_forgotten_after_a_silence() {
        let line = line(vec![meter(1)]);
        let mut port = open(&line);
        port.write_all(&[0x55; 11]).unwrap();
        assert_eq!(listen(&mut port, Duration::from_millis(50)).0, NOTHING);
        let (request, received, _) = ask(&mut port, 1);
        assert_eq!(rtu_reply(&request, &received), Found::Frame(0..9));
    }

    #[test]
    fn an_unplugged_line_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("ttyUSB0");
        let options = LineOptions { symlink: Some(device.clone()), ..LineOptions::default() };
        let mut line = PtyLine::spawn(WIRE, share(vec![meter(1)]), options).unwrap();
        assert_eq!(line.path(), device);
        let mut port = open(&line);
        line.unplug();
        assert!(device.symlink_metadata().is_err());
        let gone = port.read(&mut [0; 8]);
        assert!(matches!(gone, Ok(0) | Err(_)), "{gone:?}");
        assert!(port.write(&[0; 8]).is_err());
    }
}
