//! A broker that follows a script: a TCP listener that speaks just enough MQTT 5 and 3.1.1, and misbehaves where told.
//!
//! Packets are read and made by hand, so that no client library's idea of the protocol hides a fault. Keeps nothing
//! beyond a journal of what came and what it granted.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests: a panic is their report

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use meter_gateway::config::MqttVersion;
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, mpsc},
    task::JoinHandle,
};

/// How a message with records is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    Each,
    /// The second one acknowledges nothing.
    Twice,
    /// For an id that was never used.
    Unknown,
    /// Held until so many wait (or nothing more comes for a moment), then the last first.
    Backwards(usize),
    /// The first so many of the connection are refused with this code.
    Refuse(usize, u8),
    /// Only this one of the connection (from 1) is refused with this code.
    RefuseOne(usize, u8),
    /// Half of the acknowledgement, then the end.
    Torn,
}

/// What it does with a publish that has more bytes than it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oversize {
    HangUp,
    Disconnect95,
    Puback95,
}

/// One connection's script.
#[derive(Clone, Debug)]
pub struct Script {
    pub connack: u8,
    /// The whole of the answer to CONNECT, after which the connection ends.
    pub connack_bytes: Option<&'static [u8]>,
    /// MQTT 5: retained messages are not available; a retained will is refused.
    pub no_retain: bool,
    /// MQTT 5.
    pub max_qos: Option<u8>,
    /// Sent after the first message of records, and then the connection ends.
    pub disconnect: Option<&'static [u8]>,
    pub session_present: bool,
    pub receive_max: Option<u16>,
    pub max_packet: Option<u32>,
    pub keep_alive: Option<u16>,
    pub suback: Vec<u8>,
    /// The status that it holds.
    pub status: Option<String>,
    /// Ends the connection on a subscription to such a topic.
    pub hangs_up_on: Option<&'static str>,
    pub ack: Ack,
    pub own_ack: u8,
    pub takes: usize,
    pub oversize: Oversize,
    /// Messages of the gateway's own, on topics with this in them, end the connection.
    pub ends_over: Option<&'static str>,
    /// A retained message of so many bytes, for whoever subscribes to this topic.
    pub retained: Option<(&'static str, usize)>,
    /// Ends in the middle of this message of records (from 1).
    pub ends_within: Option<usize>,
    /// Acknowledges the messages of records from this one up to that one (from 1), and nobody gets them.
    pub swallows: Option<(usize, usize)>,
    /// Reads nothing more after this message of records (from 1); 0: after the subscription.
    pub deaf_after: Option<usize>,
}

impl Default for Script {
    fn default() -> Script {
        Script {
            connack: 0,
            connack_bytes: None,
            no_retain: false,
            max_qos: None,
            disconnect: None,
            session_present: false,
            receive_max: None,
            max_packet: None,
            keep_alive: None,
            suback: vec![1, 1, 1],
            status: None,
            hangs_up_on: None,
            ack: Ack::Each,
            own_ack: 0,
            takes: usize::MAX,
            oversize: Oversize::HangUp,
            ends_over: None,
            retained: None,
            ends_within: None,
            swallows: None,
            deaf_after: None,
        }
    }
}

/// Everything that came.
#[derive(Default)]
pub struct Journal {
    pub connects: Vec<Instant>,
    pub will: Option<(String, Vec<u8>, bool)>,
    /// Seqs of records in the order in which they were granted, the line as it came.
    pub order: Vec<u64>,
    pub lines: BTreeMap<u64, String>,
    pub granted: BTreeSet<u64>,
    pub own: Vec<(String, Vec<u8>)>,
    pub most_unacknowledged: usize,
    pub largest: usize,
    pub pings: usize,
}

impl Journal {
    /// What a consumer has that takes only the next record.
    pub fn taken(&self) -> u64 {
        self.order.iter().fold(0, |last, seq| if *seq == last + 1 { *seq } else { last })
    }

    /// The last seq of the unbroken run that was granted.
    pub fn unbroken(&self) -> u64 {
        (1..=u64::MAX).take_while(|seq| self.granted.contains(seq)).last().unwrap_or(0)
    }
}

pub struct Broker {
    pub port: u16,
    journal: Arc<Mutex<Journal>>,
    down: broadcast::Sender<(String, Vec<u8>, bool)>,
    task: JoinHandle<()>,
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Broker {
    /// The n-th connection follows the n-th script, later ones the last.
    pub async fn start(version: MqttVersion, scripts: Vec<Script>) -> Broker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let journal = Arc::<Mutex<Journal>>::default();
        let down = broadcast::Sender::new(16);
        let (noted, said) = (journal.clone(), down.clone());
        let task = tokio::spawn(async move {
            let mut nth = 0;
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let script = scripts[nth.min(scripts.len() - 1)].clone();
                nth += 1;
                open.abort_all();
                let five = version == MqttVersion::V5;
                let one = Connection::new(stream, five, script, noted.clone(), said.subscribe());
                open.spawn(one.run());
            }
        });
        Broker { port, journal, down, task }
    }

    pub fn journal<T>(&self, look: impl FnOnce(&Journal) -> T) -> T {
        look(&self.journal.lock().unwrap())
    }

    /// Waits until so many records were granted, repeated ones counted too.
    pub async fn until_granted(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.journal(|j| j.order.len()) < count {
            assert!(Instant::now() < deadline, "{} of {count} granted", self.journal(|j| j.order.len()));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until another record was granted, or for a moment.
    pub async fn until_more_granted(&self) {
        let before = self.journal(|j| j.order.len());
        for _ in 0..10 {
            if self.journal(|j| j.order.len()) > before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Publishes to the gateway.
    pub fn say(&self, leaf: &str, payload: &str, retain: bool) {
        let topic = format!("metering/v1/riverside/gw-01/{leaf}");
        self.down.send((topic, payload.as_bytes().to_vec(), retain)).unwrap();
    }
}

struct Connection {
    reader: OwnedReadHalf,
    out: OwnedWriteHalf,
    five: bool,
    script: Script,
    journal: Arc<Mutex<Journal>>,
    down: broadcast::Receiver<(String, Vec<u8>, bool)>,
    records: usize,
    held: Vec<(u16, Vec<(u64, String)>)>,
    pkid: u16,
}

/// `None` ends the connection.
type Goes = Option<()>;

impl Connection {
    fn new(
        stream: TcpStream,
        five: bool,
        script: Script,
        journal: Arc<Mutex<Journal>>,
        down: broadcast::Receiver<(String, Vec<u8>, bool)>,
    ) -> Connection {
        let (reader, out) = stream.into_split();
        Connection { reader, out, five, script, journal, down, records: 0, held: Vec::new(), pkid: 0 }
    }

    async fn run(mut self) {
        let (packets, mut came) = mpsc::channel(1);
        let (ends, deaf) = (self.script.ends_within, self.script.deaf_after);
        let mut reader = std::mem::replace(&mut self.reader, dead_half().await);
        // Reading is a task of its own: a read that is cut off in the middle cannot be begun again.
        let reading = tokio::spawn(async move {
            let mut records = 0;
            while let Some(packet) = read_packet(&mut reader, |head| {
                if head.starts_with(&[0x32]) && contains(head, b"/records") {
                    records += 1;
                }
                ends == Some(records) && records > 0
            })
            .await
            {
                let subscribed = packet.0 >> 4 == 8;
                if packets.send(packet).await.is_err() {
                    break;
                }
                if deaf.is_some_and(|after| if after == 0 { subscribed } else { records >= after }) {
                    std::future::pending::<()>().await;
                }
            }
        });
        loop {
            let goes = tokio::select! {
                packet = came.recv() => match packet {
                    Some((head, body)) => self.packet(head, &body).await,
                    None => None,
                },
                Ok((topic, payload, retain)) = self.down.recv() => self.publish(&topic, &payload, retain).await,
                () = tokio::time::sleep(Duration::from_millis(50)), if !self.held.is_empty() => self.release().await,
            };
            if goes.is_none() {
                break;
            }
        }
        reading.abort();
    }

    async fn write(&mut self, head: u8, body: &[u8]) -> Goes {
        let mut packet = vec![head];
        varint(body.len(), &mut packet);
        packet.extend_from_slice(body);
        self.out.write_all(&packet).await.ok()
    }

    async fn packet(&mut self, head: u8, body: &[u8]) -> Goes {
        match head >> 4 {
            1 => self.connect(body).await,
            8 if self.script.hangs_up_on.is_some_and(|topic| contains(body, topic.as_bytes())) => None,
            8 => {
                let mut answer = body[..2].to_vec();
                if self.five {
                    answer.push(0);
                }
                answer.extend_from_slice(&self.script.suback.clone());
                self.write(0x90, &answer).await?;
                match self.script.retained {
                    Some((leaf, bytes)) if contains(body, format!("/{leaf}").as_bytes()) => {
                        let topic = format!("metering/v1/riverside/gw-01/{}", leaf.replace('+', "W-1"));
                        self.publish(&topic, &vec![b' '; bytes], true).await
                    }
                    _ => Some(()),
                }?;
                let topic = "metering/v1/riverside/gw-01/status";
                match self.script.status.clone().filter(|_| contains(body, topic.as_bytes())) {
                    Some(status) => self.publish(topic, status.as_bytes(), true).await,
                    None => Some(()),
                }
            }
            3 if self.script.no_retain && head & 1 == 1 => {
                self.write(0xE0, &[0x9A, 0]).await?;
                None
            }
            3 => self.published(body).await,
            12 => {
                self.journal.lock().unwrap().pings += 1;
                self.write(0xD0, &[]).await
            }
            14 => None,
            _ => Some(()),
        }
    }

    async fn connect(&mut self, body: &[u8]) -> Goes {
        let flags = body[7];
        let mut rest = &body[10..];
        if self.five {
            skip_properties(&mut rest);
        }
        let _client = text(&mut rest);
        if flags & 0x04 != 0 {
            if self.five {
                skip_properties(&mut rest);
            }
            let topic = String::from_utf8(text(&mut rest)).unwrap();
            let will = (topic, text(&mut rest), flags & 0x20 != 0);
            self.journal.lock().unwrap().will = Some(will);
        }
        self.journal.lock().unwrap().connects.push(Instant::now());
        if let Some(bytes) = self.script.connack_bytes {
            self.out.write_all(bytes).await.ok()?;
            return None;
        }
        if self.script.no_retain && flags & 0x24 == 0x24 {
            self.write(0x20, &[0, 0x9A, 0]).await?;
            return None;
        }
        let mut answer = vec![u8::from(self.script.session_present), self.script.connack];
        if self.five {
            let mut properties = Vec::new();
            if let Some(most) = self.script.receive_max {
                properties.push(0x21);
                properties.extend_from_slice(&most.to_be_bytes());
            }
            if let Some(most) = self.script.max_packet {
                properties.push(0x27);
                properties.extend_from_slice(&most.to_be_bytes());
            }
            if let Some(secs) = self.script.keep_alive {
                properties.push(0x13);
                properties.extend_from_slice(&secs.to_be_bytes());
            }
            if self.script.no_retain {
                properties.extend_from_slice(&[0x25, 0]);
            }
            if let Some(qos) = self.script.max_qos {
                properties.extend_from_slice(&[0x24, qos]);
            }
            varint(properties.len(), &mut answer);
            answer.extend_from_slice(&properties);
        }
        self.write(0x20, &answer).await?;
        (self.script.connack == 0).then_some(())
    }

    async fn published(&mut self, body: &[u8]) -> Goes {
        let mut rest = body;
        let topic = String::from_utf8(text(&mut rest)).unwrap();
        let pkid = u16::from_be_bytes([rest[0], rest[1]]);
        rest = &rest[2..];
        if self.five {
            skip_properties(&mut rest);
        }
        if !topic.ends_with("/records") {
            if self.script.ends_over.is_some_and(|part| topic.contains(part)) {
                return None;
            }
            self.journal.lock().unwrap().own.push((topic, rest.to_vec()));
            return self.puback(pkid, self.script.own_ack).await;
        }
        if body.len() > self.script.takes {
            match self.script.oversize {
                Oversize::HangUp => {}
                Oversize::Disconnect95 => self.write(0xE0, &[0x95]).await?,
                Oversize::Puback95 => self.puback(pkid, 0x95).await?,
            }
            return (self.script.oversize == Oversize::Puback95).then_some(());
        }
        self.records += 1;
        if let Some(bytes) = self.script.disconnect {
            self.out.write_all(bytes).await.ok()?;
            return None;
        }
        let records = lines(rest);
        {
            let mut journal = self.journal.lock().unwrap();
            journal.largest = journal.largest.max(rest.len());
        }
        if self.script.swallows.is_some_and(|(from, to)| (from..=to).contains(&self.records)) {
            return self.puback(pkid, 0).await;
        }
        match self.script.ack {
            Ack::Twice => {
                self.grant(pkid, records).await?;
                self.puback(pkid, 0).await
            }
            Ack::Unknown => self.puback(pkid.wrapping_add(700), 0).await,
            Ack::Refuse(count, code) if self.records <= count => self.puback(pkid, code).await,
            Ack::RefuseOne(nth, code) if self.records == nth => self.puback(pkid, code).await,
            Ack::Each | Ack::Refuse(..) | Ack::RefuseOne(..) => self.grant(pkid, records).await,
            Ack::Torn => {
                self.out.write_all(&[0x40, 2, 0]).await.ok()?;
                None
            }
            Ack::Backwards(most) => {
                self.held.push((pkid, records));
                {
                    let mut journal = self.journal.lock().unwrap();
                    journal.most_unacknowledged = journal.most_unacknowledged.max(self.held.len());
                }
                if self.held.len() >= most { self.release().await } else { Some(()) }
            }
        }
    }

    async fn release(&mut self) -> Goes {
        let held = std::mem::take(&mut self.held);
        // Passed on in the order in which they came, as a broker must; acknowledged the other way round.
        for (_, records) in &held {
            self.note(records);
        }
        for (pkid, _) in held.into_iter().rev() {
            self.puback(pkid, 0).await?;
        }
        Some(())
    }

    fn note(&self, records: &[(u64, String)]) {
        let mut journal = self.journal.lock().unwrap();
        for (seq, line) in records {
            journal.order.push(*seq);
            journal.granted.insert(*seq);
            let known = journal.lines.entry(*seq).or_insert_with(|| line.clone());
            assert_eq!(known, line, "record {seq} came with other bytes");
        }
    }

    async fn grant(&mut self, pkid: u16, records: Vec<(u64, String)>) -> Goes {
        self.note(&records);
        self.puback(pkid, 0).await
    }

    async fn puback(&mut self, pkid: u16, code: u8) -> Goes {
        let mut body = pkid.to_be_bytes().to_vec();
        if code != 0 {
            body.push(code);
        }
        self.write(0x40, &body).await
    }

    async fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) -> Goes {
        self.pkid += 1;
        let mut body = u16::try_from(topic.len()).unwrap().to_be_bytes().to_vec();
        body.extend_from_slice(topic.as_bytes());
        body.extend_from_slice(&self.pkid.to_be_bytes());
        if self.five {
            body.push(0);
        }
        body.extend_from_slice(payload);
        self.write(0x32 | u8::from(retain), &body).await
    }
}

/// Stands in for a half that was moved away.
async fn dead_half() -> OwnedReadHalf {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).await.unwrap().into_split().0
}

async fn read_packet(
    reader: &mut OwnedReadHalf,
    mut ends_here: impl FnMut(&[u8]) -> bool,
) -> Option<(u8, Vec<u8>)> {
    let head = reader.read_u8().await.ok()?;
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let byte = reader.read_u8().await.ok()?;
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    let some = length.min(120);
    reader.read_exact(&mut body[..some]).await.ok()?;
    let mut seen = vec![head];
    seen.extend_from_slice(&body[..some]);
    if ends_here(&seen) {
        return None;
    }
    reader.read_exact(&mut body[some..]).await.ok()?;
    Some((head, body))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn lines(payload: &[u8]) -> Vec<(u64, String)> {
    #[derive(serde::Deserialize)]
    struct Payload<'a> {
        #[serde(borrow)]
        records: Vec<&'a RawValue>,
    }
    #[derive(serde::Deserialize)]
    struct Seq {
        seq: u64,
    }
    let payload: Payload<'_> = serde_json::from_slice(payload).unwrap();
    let seq = |raw: &RawValue| serde_json::from_str::<Seq>(raw.get()).unwrap().seq;
    payload.records.into_iter().map(|raw| (seq(raw), raw.get().to_owned())).collect()
}

fn varint(mut value: usize, out: &mut Vec<u8>) {
    loop {
        let byte = u8::try_from(value & 0x7F).unwrap();
        value >>= 7;
        out.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return;
        }
    }
}

fn skip_properties(rest: &mut &[u8]) {
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let byte = rest[0];
        *rest = &rest[1..];
        length |= usize::from(byte & 0x7F) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    *rest = &rest[length..];
}

fn text(rest: &mut &[u8]) -> Vec<u8> {
    let length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
    let out = rest[2..2 + length].to_vec();
    *rest = &rest[2 + length..];
    out
}
