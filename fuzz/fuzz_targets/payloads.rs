//! What comes down from a broker: receipts, commands, topics. What is accepted says the same when it is written down.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meter_gateway::publish::{Command, PayloadError, Receipt, Response, Topics};
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    if let Ok(receipt) = Receipt::parse(data) {
        let written = json!({
            "ledger": receipt.ledger, "confirmed_seq": receipt.confirmed_seq, "rejected": receipt.rejected,
        });
        assert_eq!(Receipt::parse(written.to_string().as_bytes()), Ok(receipt));
    }
    match Command::parse(data) {
        Ok(command) => {
            assert!((1..=128).contains(&command.id.len()));
            let written = json!({
                "id": command.id, "name": command.name, "args": command.args, "expires_at": command.expires_at,
            });
            assert_eq!(Command::parse(written.to_string().as_bytes()), Ok(command.clone()));
            let answer = Response { id: Some(command.id), outcome: Ok(Value::Object(command.args)) };
            assert!(serde_json::from_slice::<Value>(&answer.to_bytes()).is_ok());
        }
        Err(PayloadError::Malformed { id, detail, .. }) => {
            assert!(id.is_none_or(|id| id.len() <= 128) && !detail.is_empty());
        }
    }
    if let Ok(topic) = std::str::from_utf8(data) {
        let names = Topics { prefix: "m".into(), site: "s".into(), gateway: "g".into() };
        assert!(names.classify(topic).is_none() || topic.starts_with("m/s/g/"));
    }
});
