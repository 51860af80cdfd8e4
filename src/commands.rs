//! Commands that come down from the billing system. Each is answered; what is not understood changes nothing.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;

use crate::{
    console::{Console, Refusal},
    model::{Asker, MeterId, Via},
    publish::{Command, Response},
};

/// Commands that are remembered, so that one which a broker delivers twice is done once: an hour of a busy clerk.
const REMEMBERED: usize = 256;

/// The last commands and what was answered; `None` while they are being done.
#[derive(Default)]
pub struct Memory(Mutex<VecDeque<(Command, Option<Response>)>>);

impl Memory {
    fn known(&self) -> MutexGuard<'_, VecDeque<(Command, Option<Response>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to do with a command: `Ok` when it is new, else the answer that is already there (`None`: it will come).
    fn admit(&self, command: &Command) -> Result<(), Option<Response>> {
        let mut known = self.known();
        match known.iter().find(|(earlier, _)| earlier.id == command.id) {
            Some((earlier, answered)) if earlier == command => Err(answered.clone()),
            Some(_) => Err(Some(Response {
                id: Some(command.id.clone()),
                outcome: Err("this id was used for another command: each needs one of its own".into()),
            })),
            None => {
                if known.len() >= REMEMBERED {
                    known.pop_front();
                }
                known.push_back((command.clone(), None));
                Ok(())
            }
        }
    }

    fn forget(&self, id: &str) {
        self.known().retain(|(command, _)| command.id != id);
    }

    fn note(&self, response: &Response) {
        let mut known = self.known();
        if let Some((_, answered)) =
            known.iter_mut().find(|(command, _)| response.id.as_ref() == Some(&command.id))
        {
            *answered = Some(response.clone());
        }
    }
}

/// Does what a command asks, once; `None` when the same command is being done already.
pub async fn answer(command: &Command, console: &Console, memory: &Memory) -> Option<Response> {
    match memory.admit(command) {
        Ok(()) => {
            let outcome = execute(command, console).await;
            let later = matches!(outcome, Err(Refusal::Later(_)));
            let outcome = outcome.map_err(|refusal| refusal.to_string());
            let response = Response { id: Some(command.id.clone()), outcome };
            if later {
                memory.forget(&command.id); // asked again later, it is done
            } else {
                memory.note(&response);
            }
            Some(response)
        }
        Err(already) => already,
    }
}

/// Does what a command asks.
async fn execute(command: &Command, console: &Console) -> Result<Value, Refusal> {
    let telemetry = &console.telemetry;
    if command.expired(telemetry.clock.wall()) {
        return Err("the command has expired".into());
    }
    match command.name.as_str() {
        "read_now" => read_now(command, console).await,
        "replay" => replay(command, console).await,
        other => Err(format!("unknown command `{other}`: this version knows read_now and replay").into()),
    }
}

fn asker(command: &Command) -> Result<Asker, String> {
    let name = match command.args.get("by") {
        None | Some(Value::Null) => None,
        Some(Value::String(name)) => Some(name.as_str()),
        Some(_) => return Err("args.by: expected a string".to_owned()),
    };
    Asker::new(Via::Mqtt(command.id.clone()), name)
}

async fn read_now(command: &Command, console: &Console) -> Result<Value, Refusal> {
    let (who, args) = (asker(command)?, &command.args);
    let meter: MeterId = args
        .get("meter")
        .and_then(Value::as_str)
        .ok_or("args.meter is missing: expected a meter id")?
        .parse()
        .map_err(|error| format!("args.meter: {error}"))?;
    let reading = console.read_now(&who, &meter).await?;
    serde_json::to_value(reading).map_err(|error| error.to_string().into())
}

async fn replay(command: &Command, console: &Console) -> Result<Value, Refusal> {
    let seq = |name: &str| {
        command
            .args
            .get(name)
            .and_then(Value::as_u64)
            .ok_or(format!("args.{name} is missing: expected a seq"))
    };
    console.replay(&asker(command)?, seq("from")?, seq("to")?).await
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn command(id: usize, name: &str) -> Command {
        Command { id: id.to_string(), name: name.into(), args: Map::new(), expires_at: None }
    }

    #[test]
    fn a_command_is_done_once_and_its_id_is_its_own() {
        let memory = Memory::default();
        assert_eq!(memory.admit(&command(1, "replay")), Ok(()));
        assert_eq!(memory.admit(&command(1, "replay")), Err(None), "it is being done");
        let done = Response { id: Some("1".into()), outcome: Ok(Value::Null) };
        memory.note(&done);
        assert_eq!(memory.admit(&command(1, "replay")), Err(Some(done)));
        let other = memory.admit(&command(1, "read_now")).unwrap_err().unwrap();
        assert!(other.outcome.unwrap_err().contains("another command"));
    }

    #[test]
    fn memory_has_a_limit() {
        let memory = Memory::default();
        for id in 0..=REMEMBERED {
            assert_eq!(memory.admit(&command(id, "replay")), Ok(()));
        }
        assert_eq!(memory.known().len(), REMEMBERED);
        assert_eq!(memory.admit(&command(0, "replay")), Ok(()), "the oldest is forgotten");
    }
}
