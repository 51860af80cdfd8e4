//! Scripted peers: a TCP listener whose connections are each a thread, and a pseudo-terminal as slow as its line.

use std::{
    ffi::OsStr,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use meter_gateway::protocol::modbus::crc;
use rustix::{
    fs::{Mode, OFlags},
    net::sockopt::set_socket_linger,
    pty::{self, OpenptFlags},
    termios::{self, OptionalActions},
};

use super::meters;

/// What the peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Tcp,
    Serial,
}

impl Framing {
    pub const BOTH: [Framing; 2] = [Framing::Tcp, Framing::Serial];

    pub fn name(self) -> &'static str {
        if self == Framing::Tcp { "tcp" } else { "serial" }
    }
}

/// A read that came.
#[derive(Debug, Clone)]
pub struct Question {
    /// Over Modbus TCP.
    pub transaction: Option<u16>,
    pub unit: u8,
    pub function: u8,
    pub address: u16,
    pub count: u16,
}

impl Question {
    fn of(bytes: &[u8]) -> Question {
        let word = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let (transaction, at) = if bytes.len() == 12 { (Some(word(0)), 6) } else { (None, 0) };
        Question {
            transaction,
            unit: bytes[at],
            function: bytes[at + 1],
            address: word(at + 2),
            count: word(at + 4),
        }
    }

    /// In this question's framing.
    pub fn framed(&self, pdu: &[u8]) -> Vec<u8> {
        match self.transaction {
            Some(transaction) => meters::mbap(transaction, self.unit, pdu),
            None => meters::rtu(self.unit, pdu),
        }
    }

    pub fn pdu(&self) -> Vec<u8> {
        meters::answer(self.unit, self.function, self.address, self.count)
    }

    /// The right answer.
    pub fn answer(&self) -> Vec<u8> {
        self.framed(&self.pdu())
    }

    pub fn refusal(&self, code: u8) -> Vec<u8> {
        self.framed(&[self.function | 0x80, code])
    }

    pub fn under(&self, transaction: u16) -> Vec<u8> {
        meters::mbap(transaction, self.unit, &self.pdu())
    }
}

/// What a peer has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub connections: usize,
    /// Connections that its script ended.
    pub closed: usize,
    /// Connections that the gateway ended.
    pub left: usize,
    pub questions: Vec<Question>,
}

pub struct Peer {
    pub address: String,
    seen: Arc<Mutex<Seen>>,
}

impl Peer {
    /// `script` has each connection for itself, and its number from 0.
    pub fn start(framing: Framing, script: impl Fn(Connection) + Send + Sync + 'static) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (script, known) = (Arc::new(script), Arc::clone(&seen));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let number = {
                    let mut seen = known.lock().unwrap();
                    seen.connections += 1;
                    seen.connections - 1
                };
                let connection = Connection { stream, framing, number, seen: Arc::clone(&known) };
                let script = Arc::clone(&script);
                thread::spawn(move || script(connection));
            }
        });
        Peer { address, seen }
    }

    pub fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    pub fn connections(&self) -> usize {
        self.seen(|seen| seen.connections)
    }

    pub fn asked(&self, unit: u8) -> usize {
        self.seen(|seen| seen.questions.iter().filter(|question| question.unit == unit).count())
    }
}

pub struct Connection {
    pub stream: TcpStream,
    framing: Framing,
    pub number: usize,
    seen: Arc<Mutex<Seen>>,
}

/// What came, or not.
pub enum Next {
    Asked(Question),
    Idle,
    Left,
}

impl Connection {
    /// The next question; `None` when the gateway has left.
    pub fn question(&mut self) -> Option<Question> {
        match self.next(None) {
            Next::Asked(question) => Some(question),
            Next::Idle | Next::Left => None,
        }
    }

    /// The next question, if it comes within this time.
    pub fn next(&mut self, within: Option<Duration>) -> Next {
        self.stream.set_read_timeout(within).unwrap();
        let mut bytes = [0; 12];
        let bytes = &mut bytes[..if self.framing == Framing::Tcp { 12 } else { 8 }];
        match self.stream.read_exact(bytes) {
            Ok(()) => {
                let question = Question::of(bytes);
                self.seen.lock().unwrap().questions.push(question.clone());
                Next::Asked(question)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Next::Idle,
            Err(_) => {
                self.seen.lock().unwrap().left += 1;
                Next::Left
            }
        }
    }

    /// `false` when the gateway has left.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = self.stream.write_all(bytes).is_ok();
        if !sent {
            self.seen.lock().unwrap().left += 1;
        }
        sent
    }

    /// With FIN, or with RST.
    pub fn close(self, reset: bool) {
        if reset {
            set_socket_linger(&self.stream, Some(Duration::ZERO)).unwrap();
        }
        self.seen.lock().unwrap().closed += 1;
    }
}

/// Bytes, so long after the bytes before them.
pub type Piece = (Duration, Vec<u8>);

/// 9600 baud, 8N1.
const CHAR_TIME: Duration = Duration::from_nanos(1_041_667);
/// Characters that are delivered together.
const CHUNK: usize = 3;

/// A pseudo-terminal at 9600 baud on which a script answers; open until the test's end.
pub struct PtyPeer {
    pub path: PathBuf,
    _slave: OwnedFd,
}

impl PtyPeer {
    pub fn start(mut script: impl FnMut(&Question) -> Vec<Piece> + Send + 'static) -> PtyPeer {
        let master = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        pty::grantpt(&master).unwrap();
        pty::unlockpt(&master).unwrap();
        let name = pty::ptsname(&master, Vec::new()).unwrap();
        let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
        let slave =
            rustix::fs::open(&path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let mut settings = termios::tcgetattr(&slave).unwrap();
        settings.make_raw();
        termios::tcsetattr(&slave, OptionalActions::Now, &settings).unwrap();
        thread::spawn(move || {
            let mut received = Vec::new();
            loop {
                let mut buffer = [0; 256];
                let Ok(count) = rustix::io::read(&master, &mut buffer) else { return };
                received.extend_from_slice(&buffer[..count]);
                while let Some(at) = received.windows(8).position(|frame| crc(frame) == 0) {
                    let question = Question::of(&received[at..at + 8]);
                    received.drain(..at + 8);
                    thread::sleep(CHAR_TIME * 8);
                    for (after, bytes) in script(&question) {
                        thread::sleep(after);
                        for chunk in bytes.chunks(CHUNK) {
                            thread::sleep(CHAR_TIME * u32::try_from(chunk.len()).unwrap());
                            rustix::io::write(&master, chunk).unwrap();
                        }
                    }
                }
            }
        });
        PtyPeer { path, _slave: slave }
    }
}
