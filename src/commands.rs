//! Commands that come down from the billing system. Each is answered; what is not understood changes nothing.

use serde_json::{Map, Value, json};

use crate::{
    console::Console,
    model::{MeterId, Seq},
    publish::{Command, Outgoing, Response},
};

/// Does what a command asks, and says how it went.
pub async fn execute(command: &Command, console: &Console) -> Response {
    let telemetry = &console.telemetry;
    let done = if command.expired(telemetry.clock.wall()) {
        Err("the command has expired".to_owned())
    } else {
        match command.name.as_str() {
            "read_now" => read_now(&command.args, console).await,
            "replay" => replay(&command.args, console),
            other => Err(format!("unknown command `{other}`: this version knows read_now and replay")),
        }
    };
    Response { id: Some(command.id.clone()), outcome: done }
}

async fn read_now(args: &Map<String, Value>, console: &Console) -> Result<Value, String> {
    let meter: MeterId = args
        .get("meter")
        .and_then(Value::as_str)
        .ok_or("args.meter is missing: expected a meter id")?
        .parse()
        .map_err(|error| format!("args.meter: {error}"))?;
    let reading = console.read_now(&meter).await?;
    serde_json::to_value(reading).map_err(|error| error.to_string())
}

fn replay(args: &Map<String, Value>, console: &Console) -> Result<Value, String> {
    let seq = |name: &str| {
        args.get(name).and_then(Value::as_u64).ok_or(format!("args.{name} is missing: expected a seq"))
    };
    console.replay(seq("from")?, seq("to")?)
}

impl Console {
    /// Queues a range of records to be sent again with their original bytes.
    pub fn replay(&self, from: Seq, to: Seq) -> Result<Value, String> {
        let ledger = &self.telemetry.ledger;
        let (first, last) = (ledger.first(), ledger.head().borrow().seq);
        if from < first || to > last || from > to {
            return Err(format!("seq {from} to {to} was asked, {first} to {last} is kept"));
        }
        self.publisher
            .try_send(Outgoing::Replay { from, to })
            .map_err(|_| "the publisher has too many requests waiting".to_owned())?;
        Ok(json!({"from": from, "to": to}))
    }
}
