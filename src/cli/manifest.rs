//! `ledger manifest` and what `ledger verify --public-key` says beyond the chain: reading, never writing.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde_json::{Value, json};

use super::{
    no,
    output::{Table, print_json},
    target::{Source, Target},
};
use crate::{
    billing::{
        self,
        proof::{Lines, Proof},
    },
    clock::{Clock, SystemClock},
    identity::PublicKey,
    ledger::{LedgerError, chain::MAX_LINE},
};

/// The keys that the caller trusts.
pub fn keys(files: &[PathBuf]) -> anyhow::Result<Vec<PublicKey>> {
    let mut keys = Vec::new();
    for path in files {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return no(format!("{}: {error}", path.display())),
        };
        match PublicKey::from_pem(&text) {
            Ok(key) => keys.push(key),
            Err(what) => return no(format!("{}: {what}", path.display())),
        }
    }
    Ok(keys)
}

/// What a proof came to, for programs.
pub fn proof_json(proof: &Proof) -> Value {
    json!({
        "manifests": proof.manifests, "rotations": proof.rotations,
        "proved": proof.proved.as_ref().map(|proved| json!({
            "first_seq": proof.first(), "last_seq": proved.last_seq, "date": proved.date, "manifest_seq": proved.seq,
        })),
    })
}

/// The same for people.
pub fn print_proof(proof: &Proof) {
    say!("signed   {} manifest record(s), {} key rotation(s)", proof.manifests, proof.rotations);
    match &proof.proved {
        Some(proved) => say!(
            "proved   seq {} to {}, by the manifest of {} at seq {}",
            proof.first(),
            proved.last_seq,
            proved.date,
            proved.seq
        ),
        None => say!("proved   nothing: no manifest covers these records"),
    }
}

/// `ledger verify --export FILE`: an export instead of the store. Without a key only the chain is checked.
pub fn verify_export(path: &Path, keys: Vec<PublicKey>, json: bool) -> anyhow::Result<ExitCode> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) => return no(format!("{}: {error}", path.display())),
    };
    let mut lines = Lines::new(keys);
    let mut bytes = Vec::new();
    let mut fault = None;
    loop {
        bytes.clear();
        // One byte more than a record may have is enough to refuse it.
        let read = file.by_ref().take(MAX_LINE as u64 + 2).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            break;
        }
        if let Err(found) = lines.line(bytes.strip_suffix(b"\n").unwrap_or(&bytes)) {
            fault = Some(found);
            break;
        }
    }
    if fault.is_none() && lines.records == 0 {
        return no(format!("{}: no records", path.display()));
    }
    if json {
        let mut said = proof_json(&lines.proof);
        if let Some(said) = said.as_object_mut() {
            said.insert("records".into(), lines.records.into());
            let place = fault.as_ref().map(
                |f| json!({"line": f.line, "seq": f.seq, "kind": f.kind.to_string(), "detail": f.detail}),
            );
            said.insert("fault".into(), place.into());
        }
        print_json(&said.to_string());
    } else if let Some((seq, hash)) = lines.last() {
        say!("records  {} (up to seq {seq})", lines.records);
        say!("head     {hash}");
        print_proof(&lines.proof);
    }
    match fault {
        Some(fault) => no(format!("{}: {fault}", path.display())),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// `ledger manifest [DATE]`.
pub async fn show(target: &Target, date: Option<chrono::NaiveDate>, json: bool) -> anyhow::Result<ExitCode> {
    let answer = match target.source().await? {
        Source::Gateway(mut running) => {
            let query = date.map_or(String::new(), |date| format!("?date={date}"));
            match running.daemon.get_json(&format!("/api/v1/ledger/manifest{query}")).await {
                Ok(answer) => answer,
                Err(error) => return no(format!("{error:#}")),
            }
        }
        Source::Store(ledger) => {
            let clock = SystemClock::new();
            clock.refresh().await;
            match billing::answer(&*ledger, target.settings()?, date, &clock) {
                Err(LedgerError::Refused(why)) => return no(why),
                other => other?,
            }
        }
    };
    if json {
        print_json(&answer.to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let none = Vec::new();
    let parts = answer.get("parts").and_then(Value::as_array).unwrap_or(&none);
    let Some(first) = parts.first() else { return no("no such day") };
    let state = match (answer.get("recorded") == Some(&Value::Bool(true)), answer.get("ended")) {
        (true, _) => "recorded and signed",
        (false, Some(Value::Bool(false))) => "NOT RECORDED: computed now, and the day has not ended",
        (false, _) => "NOT RECORDED: computed now, not signed",
    };
    say!("manifest {} of {} ({state})", said(first, "/date"), said(first, "/gateway"));
    say!("from     {} to {}", said(first, "/from"), said(first, "/to"));
    say!(
        "covers   seq {} to {}, head {}",
        said(first, "/first_seq"),
        said(first, "/last_seq"),
        said(first, "/head")
    );
    if let Some(id) = first.get("key_id").and_then(Value::as_str) {
        say!("key      {id}, {} part(s)", parts.len());
    }
    let mut rows = Table::new([
        "meter",
        "expected",
        "good",
        "suspect",
        "bad",
        "missing",
        "down",
        "absent",
        "register",
        "first",
        "last",
        "consumption",
    ]);
    for meter in parts.iter().filter_map(|part| part.get("meters")?.as_array()).flatten() {
        let register = meter.pointer("/registers/0");
        let of = |path: &str| register.map(|register| said(register, path)).unwrap_or_default();
        let consumption = match of("/consumption") {
            text if text == "-" => format!("- ({})", of("/reason")),
            text => format!("{text} {}", of("/unit")),
        };
        let mut row: Vec<String> =
            ["/meter", "/expected", "/good", "/suspect", "/bad", "/missing", "/downtime", "/absent"]
                .iter()
                .map(|path| said(meter, path))
                .collect();
        row.extend([of("/point"), of("/first/value"), of("/last/value"), consumption]);
        rows.add_row(row);
    }
    rows.print();
    Ok(ExitCode::SUCCESS)
}

fn said(value: &Value, path: &str) -> String {
    match value.pointer(path) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".into(),
        Some(other) => other.to_string(),
    }
}
