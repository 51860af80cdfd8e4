//! What is said on the topics, byte for byte. Ledger lines are spliced in as they are, never re-serialised.
//!
//! Knows no client, no time, no ledger: an expired command is recognised by whoever has a clock.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::topics::Topics;
use crate::{
    config::Meter,
    ledger::Line,
    model::{Seq, Utc},
};

/// Records in one message (the contract).
pub const MAX_RECORDS: usize = 500;
/// Bytes of one `records` payload (the contract).
pub const MAX_RECORDS_BYTES: usize = 128 * 1024;
/// Bytes of a command or a receipt: the packet limit that the broker is told, and what is parsed at most.
pub const MAX_PACKET_BYTES: usize = 256 * 1024;
/// Bytes of a command's id: it is echoed and logged.
const MAX_COMMAND_ID_BYTES: usize = 128;
/// Version of every payload that this file builds.
const VERSION: u32 = 1;

/// Why a message from outside is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Not JSON, or not this shape.
    #[error("not a valid {what}: {detail}")]
    Malformed {
        /// `receipt` or `command`.
        what: &'static str,
        /// The parser's words.
        detail: String,
        /// The command's id as far as it could be read, so that the answer finds its question.
        id: Option<String>,
    },
}

/// Opens a `records` payload; the lines and [`RECORDS_END`] follow.
fn records_head(names: &Topics, ledger: &str) -> String {
    format!(
        r#"{{"v":{VERSION},"site":{},"gateway":{},"ledger":{},"records":["#,
        Value::from(names.site.as_str()),
        Value::from(names.gateway.as_str()),
        Value::from(ledger)
    )
}

const RECORDS_END: &str = "]}";

/// Bytes left for ledger lines in a payload of at most `limit` bytes with at most `records` records.
pub fn room_for_lines(names: &Topics, ledger: &str, limit: usize, records: usize) -> usize {
    let frame = records_head(names, ledger).len() + RECORDS_END.len() + records;
    limit.saturating_sub(frame)
}

/// One `records` payload: the lines' own bytes, in the order given.
pub fn records(names: &Topics, ledger: &str, lines: &[Line]) -> Bytes {
    let head = records_head(names, ledger);
    let size = lines.iter().map(|l| l.bytes.len() + 1).sum::<usize>() + head.len() + RECORDS_END.len();
    let mut out = Vec::with_capacity(size);
    out.extend_from_slice(head.as_bytes());
    for (nth, line) in lines.iter().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&line.bytes);
    }
    out.extend_from_slice(RECORDS_END.as_bytes());
    out.into()
}

/// What the publisher itself knows for a `status` payload.
#[derive(Debug, Clone, Copy)]
pub struct StatusFacts<'a> {
    /// `online`, else `offline`.
    pub online: bool,
    /// Session number.
    pub session: u64,
    /// Ledger id.
    pub ledger: &'a str,
    /// Head of the ledger.
    pub last_seq: Seq,
    /// Broker-acknowledged.
    pub acknowledged_seq: Seq,
    /// Billing-confirmed.
    pub confirmed_seq: Seq,
}

/// The `status` payload: what the caller adds (clock, buses, …), overruled by what the publisher knows.
pub fn status(facts: &StatusFacts<'_>, extras: &Value) -> Bytes {
    let mut fields = match extras {
        Value::Object(fields) => fields.clone(),
        _ => Map::new(),
    };
    let own = json!({
        "v": VERSION,
        "state": if facts.online { "online" } else { "offline" },
        "session": facts.session,
        "version": env!("CARGO_PKG_VERSION"),
        "ledger": facts.ledger,
        "last_seq": facts.last_seq,
        "acknowledged_seq": facts.acknowledged_seq,
        "confirmed_seq": facts.confirmed_seq,
    });
    if let Value::Object(own) = own {
        fields.extend(own);
    }
    Value::Object(fields).to_string().into()
}

/// What the inventory and the console say of a meter.
pub fn describe(meter: &Meter) -> Value {
    json!({
        "id": meter.id,
        "medium": meter.profile.medium,
        "profile": meter.profile.id,
        "serial": meter.serial,
        "ct_ratio": meter.ct_ratio,
        "pt_ratio": meter.pt_ratio,
        "multiplier": meter.multiplier,
        "parent": meter.parent,
        "place": {"building": meter.building, "unit": meter.unit_name, "room": meter.room},
        "bus": meter.bus,
        "address": meter.address.plain(),
        "interval_secs": meter.interval_secs,
    })
}

/// One meter's `inventory` payload, with the version added to what the caller says of it.
pub fn inventory(meter: &Value) -> Bytes {
    let mut meter = meter.clone();
    if let Value::Object(fields) = &mut meter {
        fields.insert("v".into(), VERSION.into());
    }
    meter.to_string().into()
}

/// Billing has committed everything up to `confirmed_seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The ledger it speaks of.
    pub ledger: String,
    /// Cumulative.
    pub confirmed_seq: Seq,
    /// Records that billing has, but could not use.
    pub rejected: Vec<Rejected>,
    /// It lacks records, and wants everything from this one on again. What is no seq is the error; the rest counts.
    pub resend_from: Option<Result<Seq, String>>,
}

#[derive(Deserialize)]
struct TypedReceipt {
    ledger: String,
    confirmed_seq: Seq,
    #[serde(default)]
    rejected: Vec<Rejected>,
    #[serde(default)]
    resend_from: Value,
}

/// One record that billing could not use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct Rejected {
    /// Which.
    pub seq: Seq,
    /// In billing's words.
    #[serde(default)]
    pub reason: String,
}

impl Receipt {
    /// Reads a receipt; unknown fields are passed over.
    pub fn parse(bytes: &[u8]) -> Result<Receipt, PayloadError> {
        bounded("receipt", bytes)?;
        let typed: TypedReceipt =
            serde_json::from_slice(bytes).map_err(|e| malformed("receipt", &e, None))?;
        let TypedReceipt { ledger, confirmed_seq, rejected, resend_from } = typed;
        let resend_from = (!resend_from.is_null()).then(|| seq("resend_from", &resend_from));
        Ok(Receipt { ledger, confirmed_seq, rejected, resend_from })
    }
}

fn seq(name: &str, value: &Value) -> Result<Seq, String> {
    let seen = match value {
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        _ => "no number".to_owned(),
    };
    value.as_u64().ok_or(format!("`{name}` is {seen}, expected a seq"))
}

/// A well-formed request from outside. Nothing has been done about it, and it may have expired.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// Echoed in the answer.
    pub id: String,
    /// What is asked for.
    pub name: String,
    /// Its arguments; an empty object when there were none.
    pub args: Map<String, Value>,
    /// Not to be carried out at or after this moment.
    pub expires_at: Option<Utc>,
}

#[derive(Deserialize)]
struct TypedCommand {
    id: String,
    name: String,
    #[serde(default)]
    args: Option<Map<String, Value>>,
    #[serde(default)]
    expires_at: Option<String>,
}

impl Command {
    /// Reads a command; the error carries its id when that much could be read.
    pub fn parse(bytes: &[u8]) -> Result<Command, PayloadError> {
        bounded("command", bytes)?;
        let typed: TypedCommand =
            serde_json::from_slice(bytes).map_err(|e| malformed("command", &e, id_of(bytes)))?;
        if typed.id.is_empty() || typed.id.len() > MAX_COMMAND_ID_BYTES {
            let detail = format!("`id` has {} bytes, expected 1 to {MAX_COMMAND_ID_BYTES}", typed.id.len());
            return Err(PayloadError::Malformed { what: "command", detail, id: None });
        }
        let expires_at = match typed.expires_at.as_deref().map(chrono::DateTime::parse_from_rfc3339) {
            None => None,
            Some(Ok(at)) => Some(at.to_utc()),
            Some(Err(e)) => {
                let detail = format!("`expires_at`: {e}, expected RFC 3339");
                return Err(PayloadError::Malformed { what: "command", detail, id: Some(typed.id) });
            }
        };
        Ok(Command { id: typed.id, name: typed.name, args: typed.args.unwrap_or_default(), expires_at })
    }

    /// Whether it must not be carried out any more.
    pub fn expired(&self, now: Utc) -> bool {
        self.expires_at.is_some_and(|at| now >= at)
    }
}

/// The client keeps to the packet limit as well; this is for whoever replaces it.
fn bounded(what: &'static str, bytes: &[u8]) -> Result<(), PayloadError> {
    if bytes.len() <= MAX_PACKET_BYTES {
        return Ok(());
    }
    let detail = format!("{} bytes came, expected at most {MAX_PACKET_BYTES}", bytes.len());
    Err(PayloadError::Malformed { what, detail, id: None })
}

fn malformed(what: &'static str, error: &serde_json::Error, id: Option<String>) -> PayloadError {
    PayloadError::Malformed { what, detail: error.to_string(), id }
}

fn id_of(bytes: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    value.get("id")?.as_str().filter(|id| id.len() <= MAX_COMMAND_ID_BYTES).map(ToOwned::to_owned)
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The command's; `None` when it could not be read.
    pub id: Option<String>,
    /// What was asked for, or why it was not done.
    pub outcome: Result<Value, String>,
}

impl Response {
    /// The `response` payload: `{"id","ok","result","error"}`.
    pub fn to_bytes(&self) -> Bytes {
        let (ok, result, error) = match &self.outcome {
            Ok(result) => (true, result.clone(), Value::Null),
            Err(error) => (false, Value::Null, Value::from(error.as_str())),
        };
        json!({"v": VERSION, "id": self.id, "ok": ok, "result": result, "error": error}).to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEDGER: &str = "0123456789abcdef0123456789abcdef";

    fn names() -> Topics {
        Topics { prefix: "metering/v1".into(), site: "riverside".into(), gateway: "gw-01".into() }
    }

    fn line(seq: Seq, text: &str) -> Line {
        Line { seq, bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    /// Found by the fuzzer: a fraction in `args` was another number once it was written and read again.
    #[test]
    fn a_fraction_stays_the_number_it_is() {
        let text = br#"{"id":"a","name":"replay","args":{"to":92222223.6222222222}}"#;
        let command = Command::parse(text).unwrap();
        let written = serde_json::json!({"id": command.id, "name": command.name, "args": command.args});
        assert_eq!(Command::parse(written.to_string().as_bytes()), Ok(command));
    }

    // Golden: if one of these fails, do not change the test. Other people's systems read these bytes.

    #[test]
    fn golden_records() {
        let lines = [line(7, r#"{"seq":7,"value":"1.50"}"#), line(8, r#"{"b":1,"a":"  表","seq":8}"#)];
        assert_eq!(
            std::str::from_utf8(&records(&names(), LEDGER, &lines)).unwrap(),
            concat!(
                r#"{"v":1,"site":"riverside","gateway":"gw-01","ledger":"0123456789abcdef0123456789abcdef","#,
                r#""records":[{"seq":7,"value":"1.50"},{"b":1,"a":"  表","seq":8}]}"#
            )
        );
    }

    #[test]
    fn golden_status() {
        let facts = StatusFacts {
            online: true,
            session: 3,
            ledger: LEDGER,
            last_seq: 12,
            acknowledged_seq: 10,
            confirmed_seq: 9,
        };
        let extras = json!({"clock": "synced", "state": "overruled"});
        let expected = json!({
            "v": 1, "state": "online", "session": 3, "version": env!("CARGO_PKG_VERSION"), "ledger": LEDGER,
            "last_seq": 12, "acknowledged_seq": 10, "confirmed_seq": 9, "clock": "synced"
        });
        assert_eq!(serde_json::from_slice::<Value>(&status(&facts, &extras)).unwrap(), expected);
        let offline = status(&StatusFacts { online: false, ..facts }, &Value::Null);
        assert_eq!(serde_json::from_slice::<Value>(&offline).unwrap()["state"], "offline");
    }

    #[test]
    fn golden_inventory_and_response() {
        let meter = json!({"meter": "E-1", "ct_ratio": "40"});
        assert_eq!(&inventory(&meter)[..], br#"{"ct_ratio":"40","meter":"E-1","v":1}"#);
        let yes = Response { id: Some("c1".into()), outcome: Ok(json!({"n": 1})) };
        assert_eq!(&yes.to_bytes()[..], br#"{"error":null,"id":"c1","ok":true,"result":{"n":1},"v":1}"#);
        let no = Response { id: None, outcome: Err("unknown".into()) };
        assert_eq!(&no.to_bytes()[..], br#"{"error":"unknown","id":null,"ok":false,"result":null,"v":1}"#);
    }

    #[test]
    fn lines_that_fit_the_room_fit_the_message() {
        let lines: Vec<Line> = (1..=500).map(|seq| line(seq, &format!(r#"{{"seq":{seq}}}"#))).collect();
        let used: usize = lines.iter().map(|l| l.bytes.len()).sum();
        let payload = records(&names(), LEDGER, &lines);
        let limit = payload.len();
        assert!(room_for_lines(&names(), LEDGER, limit + 1, 500) >= used);
        assert!(room_for_lines(&names(), LEDGER, limit, 500) <= used);
        assert_eq!(room_for_lines(&names(), LEDGER, 10, 500), 0);
    }

    #[test]
    fn a_receipt_is_read_or_refused_never_guessed() {
        let text = br#"{"ledger":"x","confirmed_seq":5,"rejected":[{"seq":3,"reason":"no meter"}],"new":1}"#;
        let receipt = Receipt::parse(text).unwrap();
        assert_eq!(receipt.confirmed_seq, 5);
        assert_eq!(receipt.rejected, [Rejected { seq: 3, reason: "no meter".into() }]);
        assert_eq!(receipt.resend_from, None);
        let resend = |from: &str| {
            let text = format!(r#"{{"ledger":"x","confirmed_seq":0,"resend_from":{from}}}"#);
            Receipt::parse(text.as_bytes()).unwrap().resend_from
        };
        assert_eq!(resend("null"), None);
        assert_eq!(resend("0"), Some(Ok(0)));
        assert_eq!(resend("18446744073709551615"), Some(Ok(u64::MAX)));
        for (bad, seen) in
            [("-3", "-3"), ("1.5", "1.5"), ("1e30", "1e"), ("\"7\"", "a string"), ("[7]", "no number")]
        {
            let error = resend(bad).unwrap().unwrap_err();
            assert!(error.contains(seen) && error.contains("resend_from"), "{error}");
        }
        for bad in [
            &b""[..],
            b"null",
            b"{}",
            br#"{"ledger":"x","confirmed_seq":-1}"#,
            b"\xff\xfe",
            br#"{"ledger":"x","confirmed_seq":1.5}"#,
        ] {
            assert!(Receipt::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_command_that_cannot_be_read_still_names_itself() {
        let good = br#"{"id":"a","name":"replay","args":{"from":1},"expires_at":"2026-11-23T12:00:00.000Z"}"#;
        let command = Command::parse(good).unwrap();
        assert_eq!((command.name.as_str(), command.args["from"].as_u64()), ("replay", Some(1)));
        let at = command.expires_at.unwrap();
        assert!(command.expired(at) && !command.expired(at - chrono::TimeDelta::milliseconds(1)));

        let PayloadError::Malformed { id, .. } = Command::parse(br#"{"id":"b","args":{}}"#).unwrap_err();
        assert_eq!(id.as_deref(), Some("b"));
        let PayloadError::Malformed { id, .. } =
            Command::parse(br#"{"id":"c","name":"x","expires_at":"soon"}"#).unwrap_err();
        assert_eq!(id.as_deref(), Some("c"));
        assert!(Command::parse(b"[1,2").is_err());
        assert!(Command::parse(br#"{"id":"","name":"x"}"#).is_err());
    }
}
