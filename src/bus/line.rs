//! One physical line: silence before each request, draining, echo, framing, a trace of what passed.
//!
//! Sits below the codecs: they see whole, checked answers to the question they asked, and nothing else.
//! Knows bytes and times; who is asked what, and how often, is the cycle's business.

use std::{
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::{Instant, timeout},
};

use super::port::Port;
use crate::{
    clock::Clock,
    model::Utc,
    protocol::{
        Pace,
        modbus::{Framing, hex, rtu_answer, tcp_answer},
    },
};

/// How answers are found in what is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frames {
    /// RTU: length and CRC.
    Rtu,
    /// Modbus TCP: header with a transaction number.
    Tcp,
}

/// Most bytes kept of one exchange: an RTU echo and answer are at most 264, a stuck transmitter sends for ever.
const MAX_RECEIVED: usize = 1024;

/// Frames kept for the operator: the last eight exchanges.
const TRACE_LEN: usize = 16;

/// One frame that passed.
#[derive(Debug, Clone)]
pub struct Traced {
    /// When.
    pub at: Utc,
    /// `>` sent, `<` received, `!` received and thrown away.
    pub mark: char,
    /// The bytes in hex.
    pub bytes: String,
}

struct State {
    port: Box<dyn Port>,
    frames: Frames,
    clock: Arc<dyn Clock>,
    request: Vec<u8>,
    received: Vec<u8>,
    /// Answer bytes not yet handed up.
    answer: VecDeque<u8>,
    unfit: Option<String>,
    answered_at: Option<(Instant, Utc)>,
    last_activity: Instant,
    trace: VecDeque<Traced>,
}

/// A handle on the line; codecs hold a clone of it as their transport.
#[derive(Clone)]
pub struct Line {
    state: Arc<Mutex<State>>,
    pace: Pace,
    clock: Arc<dyn Clock>,
}

/// What one exchange left behind on the line.
#[derive(Debug, Clone, Default)]
pub struct Exchanged {
    /// When the last byte of the answer arrived.
    pub answered_at: Option<(Instant, Utc)>,
    /// What was wrong with what came.
    pub unfit: Option<String>,
    /// Bytes that came, an adapter's echo left out.
    pub received: usize,
}

impl Line {
    /// Takes an open port.
    pub fn new(port: Box<dyn Port>, frames: Frames, pace: Pace, clock: Arc<dyn Clock>) -> Line {
        let state = State {
            port,
            frames,
            clock: Arc::clone(&clock),
            request: Vec::new(),
            received: Vec::new(),
            answer: VecDeque::new(),
            unfit: None,
            answered_at: None,
            last_activity: Instant::now(),
            trace: VecDeque::new(),
        };
        Line { state: Arc::new(Mutex::new(state)), pace, clock }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the silence that must precede a request, then throws away everything stale.
    pub async fn make_ready(&self) -> io::Result<()> {
        loop {
            let quiet = self.state().last_activity.elapsed();
            match self.pace.silence().checked_sub(quiet) {
                Some(rest) if !rest.is_zero() => self.clock.pause(rest).await,
                _ => break,
            }
        }
        let mut state = self.state();
        state.request.clear();
        state.received.clear();
        state.answer.clear();
        state.unfit = None;
        state.answered_at = None;
        state.port.discard_input()
    }

    /// Listens for up to `patience` for an answer that comes too late, throws it away, and says after how
    /// long it began. Ends early once something came and the line is quiet again.
    pub async fn listen_for_late(&self, patience: Duration) -> io::Result<Option<Duration>> {
        let begin = Instant::now();
        let mut first = None;
        // A pause inside a frame: USB adapters deliver in packets of 16 ms.
        let gap = self.pace.silence().max(Duration::from_millis(20));
        let mut waste = [0; 256];
        loop {
            let left = if first.is_some() { gap } else { patience.saturating_sub(begin.elapsed()) };
            let mut raw = Raw(self);
            match timeout(left, raw.read(&mut waste)).await {
                Err(_quiet) => return Ok(first),
                Ok(Ok(n)) => {
                    first.get_or_insert(begin.elapsed());
                    self.state().note('!', waste.get(..n).unwrap_or_default());
                }
                Ok(Err(e)) => return Err(e),
            }
            if begin.elapsed() > patience * 4 {
                return Ok(first); // a transmitter that never stops is not waited for
            }
        }
    }

    /// What the exchange that just ended left behind.
    pub fn exchanged(&self) -> Exchanged {
        let state = self.state();
        let echo = state.request.iter().zip(&state.received).take_while(|(sent, came)| sent == came).count();
        // Where an answer begins like its request only a whole echo, or nothing but one, is an echo.
        let is_echo = echo == state.request.len() || echo == state.received.len();
        Exchanged {
            answered_at: state.answered_at,
            unfit: state.unfit.clone(),
            received: state.received.len() - if is_echo { echo } else { 0 },
        }
    }

    /// The last frames, oldest first.
    pub fn trace(&self) -> Vec<Traced> {
        self.state().trace.iter().cloned().collect()
    }
}

impl State {
    fn note(&mut self, mark: char, bytes: &[u8]) {
        tracing::trace!(mark = %mark, bytes = %hex(bytes), "frame");
        if self.trace.len() >= TRACE_LEN {
            self.trace.pop_front();
        }
        self.trace.push_back(Traced { at: self.clock.wall(), mark, bytes: hex(bytes) });
        self.last_activity = Instant::now();
    }

    fn judge(&mut self) {
        let framing = match self.frames {
            Frames::Rtu => rtu_answer(&self.request, &self.received),
            Frames::Tcp => tcp_answer(&self.request, &self.received),
        };
        match framing {
            Framing::Incomplete => {}
            Framing::Unfit(detail) => self.unfit = Some(detail),
            Framing::Frame(range) => {
                self.unfit = None;
                self.answered_at = Some((Instant::now(), self.clock.wall()));
                let frame = self.received.get(range).unwrap_or_default().to_vec();
                self.note('<', &frame);
                self.answer.extend(frame);
            }
        }
    }

    fn poll_port(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 512];
        let mut buf = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut *self.port).poll_read(cx, &mut buf))?;
        let filled = buf.filled();
        if filled.is_empty() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer closed the connection",
            )));
        }
        self.last_activity = Instant::now();
        let room = MAX_RECEIVED.saturating_sub(self.received.len());
        let kept = filled.get(..filled.len().min(room)).unwrap_or_default();
        self.received.extend_from_slice(kept);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        while state.answer.is_empty() {
            ready!(state.poll_port(cx))?;
            state.judge();
        }
        while buf.remaining() > 0 {
            let Some(byte) = state.answer.pop_front() else { break };
            buf.put_slice(&[byte]);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        let written = ready!(Pin::new(&mut *state.port).poll_write(cx, bytes))?;
        let sent = bytes.get(..written).unwrap_or_default();
        state.request.extend_from_slice(sent);
        state.note('>', sent);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.state().port).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // a codec that is dropped does not take the line with it
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("pace", &self.pace).finish_non_exhaustive()
    }
}

/// Reads what arrives without judging it.
struct Raw<'a>(&'a Line);

impl AsyncRead for Raw<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        match ready!(Pin::new(&mut *state.port).poll_read(cx, buf)) {
            Ok(()) if buf.filled().is_empty() => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the peer closed the connection",
            ))),
            other => Poll::Ready(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::{clock::SimulatedClock, model::ClockState};

    impl Port for DuplexStream {
        fn discard_input(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const REQUEST: [u8; 8] = [1, 4, 0, 0, 0, 2, 0x71, 0xCB];
    const ANSWER: [u8; 9] = [1, 4, 4, 0x43, 0x66, 0x33, 0x34, 0x1B, 0x38];

    /// What is left behind when `came` follows the request.
    async fn left_by(came: &[u8]) -> Exchanged {
        let (near, mut far) = duplex(4096);
        let clock = SimulatedClock::starting_at(Utc::default(), ClockState::Synced);
        let mut line = Line::new(Box::new(near), Frames::Rtu, Pace::Network, Arc::new(clock));
        line.make_ready().await.unwrap();
        line.write_all(&REQUEST).await.unwrap();
        far.write_all(came).await.unwrap();
        let mut answer = [0; 16];
        let _ = timeout(Duration::from_millis(50), line.read(&mut answer)).await; // paused time: no wait
        line.exchanged()
    }

    #[tokio::test(start_paused = true)]
    async fn an_echo_is_told_apart_from_the_beginning_of_an_answer() {
        let received = async |came: &[u8]| left_by(came).await.received;
        assert_eq!(received(&[]).await, 0);
        assert_eq!(received(&REQUEST).await, 0, "nothing but an echo");
        assert_eq!(received(&REQUEST[..5]).await, 0, "part of one");
        assert_eq!(received(&ANSWER[..4]).await, 4, "an answer begins like its request");
        assert_eq!(received(&[REQUEST.as_slice(), &ANSWER[..4]].concat()).await, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_whole_answer_has_an_arrival() {
        assert!(left_by(&ANSWER).await.answered_at.is_some());
        let cut = left_by(&ANSWER[..8]).await;
        assert_eq!((cut.answered_at, cut.unfit), (None, None));
        let stranger = left_by(&[2, 4, 4, 0, 0, 0, 0, 0, 0]).await;
        assert_eq!(stranger.unfit.as_deref(), Some("unit 2 spoke, unit 1 was asked"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_transmitter_that_never_stops_takes_no_memory() {
        assert_eq!(left_by(&[0x55; 3000]).await.received, MAX_RECEIVED);
    }
}
