//! Real connections to a broker: one attempt and, if it succeeds, one connection of either protocol version.
//!
//! One task reads, writes and pings at the same time, so that a full line outwards never keeps an acknowledgement from
//! being read; dropping the [`Connection`] ends it. `packets` are the bytes (and the one user of the client crate, for
//! its codec), `dial` is the way to the broker, `words` is what its codes mean. Decides nothing: what the events mean is
//! the session's business.

mod dial;
mod packets;
mod words;

use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

use super::{
    link::{Broker, Cause, Failure, Link, LinkEvent, Message, Offer},
    payload::MAX_PACKET_BYTES,
    session::WINDOW,
};
use crate::config::MqttVersion;
use dial::Stream;
use packets::{Came, Codec};

/// Time between pings, unless the broker wants more of them.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Requests on their way to the task: the window, the subscriptions, the farewell.
const REQUESTS: usize = WINDOW as usize + 8;
/// Events on their way to us; beyond it the task waits, and the broker with it.
const EVENTS: usize = 256;
/// For TCP, TLS and CONNACK together: the session gives up after as long.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes that wait to be written, beyond which no request is taken: one message of records.
const OUTBOX: usize = 128 * 1024;
/// Bytes that one read takes in.
const READ: usize = 64 * 1024;
/// Bytes of a message that is too large for us and is passed over; a larger one ends the connection, for it would keep
/// a slow line busy for longer than acknowledgements may take.
const PASS_OVER: usize = 1024 * 1024;
/// Bytes of packet header, topic length, packet id and our properties, generously.
const PACKET_OVERHEAD: usize = 256;

/// What the task is asked for.
enum Request {
    Publish(Message),
    Subscribe(Vec<String>),
    Unsubscribe(String),
    Disconnect,
}

/// Real connections to the broker of the offer.
pub struct RealBroker;

impl Broker for RealBroker {
    fn connect(&self, offer: Offer) -> Box<dyn Link> {
        let (tell, events) = mpsc::channel(EVENTS);
        let (requests, asked) = mpsc::channel(REQUESTS);
        let task = tokio::spawn(async move {
            let Err(failure) = run(offer, asked, &tell).await;
            let _nobody_waits = tell.send(LinkEvent::Failed(failure)).await;
        });
        Box::new(Connection { requests, task, events, max_packet: MAX_PACKET_BYTES })
    }
}

struct Connection {
    requests: mpsc::Sender<Request>,
    task: JoinHandle<()>,
    events: mpsc::Receiver<LinkEvent>,
    max_packet: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Connection {
    /// Whether it is on its way; of a connection that has ended, the reason comes as an event.
    fn ask(&self, request: Request) -> bool {
        !matches!(self.requests.try_send(request), Err(mpsc::error::TrySendError::Full(_)))
    }
}

impl Link for Connection {
    fn event(&mut self) -> BoxFuture<'_, LinkEvent> {
        Box::pin(async {
            let event = self.events.recv().await;
            let event = event.unwrap_or_else(|| LinkEvent::Failed("the connection's task has ended".into()));
            if let LinkEvent::Connected { max_packet, .. } = event {
                self.max_packet = usize::try_from(max_packet).unwrap_or(usize::MAX).min(MAX_PACKET_BYTES);
            }
            event
        })
    }

    fn max_payload(&self, topic: &str) -> usize {
        self.max_packet.saturating_sub(PACKET_OVERHEAD + topic.len())
    }

    fn publish(&self, message: Message) -> bool {
        self.ask(Request::Publish(message))
    }

    fn subscribe(&self, filters: Vec<String>) -> bool {
        self.ask(Request::Subscribe(filters))
    }

    fn unsubscribe(&self, filter: String) -> bool {
        self.ask(Request::Unsubscribe(filter))
    }

    fn disconnect(&self) {
        let _ended_already = self.ask(Request::Disconnect);
    }
}

/// What a turn of the loop is about.
enum Next {
    Read(std::io::Result<usize>),
    Wrote(std::io::Result<usize>),
    Asked(Option<Request>),
    Wake,
}

/// Never comes back but with the reason of the end.
enum Never {}

async fn run(
    offer: Offer,
    asked: mpsc::Receiver<Request>,
    tell: &mpsc::Sender<LinkEvent>,
) -> Result<Never, Failure> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    let stream = match timeout(CONNECT_LIMIT, dial::open(&offer)).await {
        Ok(opened) => opened?,
        Err(_) => return Err(words::no_connection(&offer)),
    };
    let version = offer.version;
    let mut connection = Talk::new(version, tell);
    connection.codec.connect(offer, KEEP_ALIVE, &mut connection.out)?;
    connection.run(stream, asked, deadline).await
}

/// A connection from its CONNECT on.
struct Talk<'a> {
    version: MqttVersion,
    codec: Codec,
    tell: &'a mpsc::Sender<LinkEvent>,
    inbox: BytesMut,
    out: BytesMut,
    /// Bytes of a message that is being passed over.
    passing: usize,
    connected: bool,
    ping_every: Duration,
    /// Nothing came since the last ping.
    quiet: bool,
    leaving: bool,
}

impl<'a> Talk<'a> {
    fn new(version: MqttVersion, tell: &'a mpsc::Sender<LinkEvent>) -> Self {
        Talk {
            version,
            codec: Codec::new(version),
            tell,
            inbox: BytesMut::new(),
            out: BytesMut::new(),
            passing: 0,
            connected: false,
            ping_every: KEEP_ALIVE,
            quiet: false,
            leaving: false,
        }
    }

    async fn run(
        mut self,
        stream: Box<dyn Stream>,
        mut asked: mpsc::Receiver<Request>,
        connack_by: Instant,
    ) -> Result<Never, Failure> {
        let (mut reader, mut writer) = split(stream);
        let mut wake = connack_by;
        let mut unflushed = false;
        loop {
            let (waiting, room) = (!self.out.is_empty(), self.out.len() < OUTBOX);
            self.inbox.reserve(READ);
            let next = tokio::select! {
                read = reader.read_buf(&mut self.inbox) => Next::Read(read),
                wrote = async {
                    if waiting {
                        writer.write_buf(&mut self.out).await
                    } else {
                        writer.flush().await.map(|()| 0)
                    }
                }, if waiting || unflushed => Next::Wrote(wrote),
                request = asked.recv(), if self.connected && room && !self.leaving => Next::Asked(request),
                () = sleep_until(wake) => Next::Wake,
            };
            match next {
                Next::Read(Ok(0)) => {
                    return Err(words::closed(self.version, self.connected, self.leaving));
                }
                Next::Read(Ok(_)) => {
                    self.quiet = false;
                    self.take_in(&mut wake).await?;
                }
                Next::Read(Err(error)) => return Err(words::broken(&error, self.version, self.connected)),
                Next::Wrote(Ok(_)) => unflushed = waiting,
                Next::Wrote(Err(error)) => {
                    // What the broker said before it hung up may still wait to be read.
                    let _already_ended = reader.read_buf(&mut self.inbox).await;
                    self.take_in(&mut wake).await?;
                    return Err(words::broken(&error, self.version, self.connected));
                }
                Next::Asked(request) => self.perform(request).await?,
                Next::Wake if !self.connected => return Err(words::no_answer(self.version)),
                Next::Wake if self.quiet => return Err("the broker does not answer pings".into()),
                Next::Wake => {
                    self.quiet = true;
                    self.codec.ping(&mut self.out);
                    wake = Instant::now() + self.ping_every;
                }
            }
            if self.leaving && self.out.is_empty() && !unflushed {
                return Err(Failure { cause: Cause::Said, text: "disconnected".into() });
            }
        }
    }

    async fn perform(&mut self, request: Option<Request>) -> Result<(), Failure> {
        match request {
            Some(Request::Publish(message)) => {
                let pkid = self.codec.publish(message, &mut self.out)?;
                self.say(LinkEvent::Sent(pkid)).await
            }
            Some(Request::Subscribe(filters)) => self.codec.subscribe(filters, &mut self.out),
            Some(Request::Unsubscribe(filter)) => self.codec.unsubscribe(filter, &mut self.out),
            Some(Request::Disconnect) | None => {
                self.codec.disconnect(&mut self.out);
                self.leaving = true;
                Ok(())
            }
        }
    }

    async fn say(&self, event: LinkEvent) -> Result<(), Failure> {
        self.tell.send(event).await.map_err(|_| Failure::from("nobody listens to the connection"))
    }

    /// Takes every packet that has come in whole.
    async fn take_in(&mut self, wake: &mut Instant) -> Result<(), Failure> {
        loop {
            let passed = self.passing.min(self.inbox.len());
            drop(self.inbox.split_to(passed));
            self.passing -= passed;
            if self.passing > 0 {
                return Ok(());
            }
            let Some(came) = self.codec.next(&mut self.inbox, MAX_PACKET_BYTES)? else { return Ok(()) };
            let event = match came {
                Came::Connected(accepted) => {
                    self.connected = true;
                    self.ping_every = accepted.keep_alive.map_or(KEEP_ALIVE, |asked| asked.min(KEEP_ALIVE));
                    *wake = Instant::now() + self.ping_every;
                    LinkEvent::Connected {
                        receive_max: accepted.receive_max,
                        max_packet: accepted.max_packet,
                        keep_alive: self.ping_every,
                        retain: accepted.retain,
                    }
                }
                Came::Event(event) => event,
                Came::Message { topic, payload, retained, acknowledge } => {
                    if let Some(pkid) = acknowledge {
                        self.codec.puback(pkid, &mut self.out);
                    }
                    LinkEvent::Message { topic, payload, retained }
                }
                Came::TooLarge { topic, bytes, acknowledge } => {
                    if bytes > PASS_OVER {
                        let text = format!(
                            "a message of {bytes} bytes came on {topic}, at most {MAX_PACKET_BYTES} are taken"
                        );
                        return Err(Failure { cause: Cause::Incoming, text });
                    }
                    if let Some(pkid) = acknowledge {
                        self.codec.puback(pkid, &mut self.out);
                    }
                    self.passing = bytes;
                    LinkEvent::PassedOver { topic, bytes }
                }
            };
            self.say(event).await?;
        }
    }
}
