//! The API on `[console] listen` and on the Unix socket: what the query commands and monitoring need.
//!
//! The only folder that names axum. Reads the ledger and the telemetry; what it wants from a meter it asks of
//! the bus.

mod actions;
mod guard;
mod metrics;
mod page;
mod server;

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Extension, Json, Router,
    extract::{Query, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

pub use actions::{Actions, Refusal};
pub use guard::Arrival;
pub use server::{Door, MAX_CONNECTIONS, serve};

use crate::{
    billing,
    bus::DemandRequest,
    ledger::ReadingQuery,
    model::{Asker, MeterId, Reading, Seq, Utc, Via, path_word},
    publish::{self, Outgoing},
    telemetry::{Telemetry, lock},
};

/// Readings in one page, at most.
const PAGE: usize = 1000;
/// Bytes of a request's body: the longest there is names one meter and two numbers. 413 beyond.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// How long somebody who asked for a read waits: a busy bus finishes its sweep first.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// How long the record of a user's action may take to be stored: a sound disk takes milliseconds.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);

/// What the routes work on.
pub struct Console {
    /// State of the daemon.
    pub telemetry: Arc<Telemetry>,
    /// Where each bus takes demands, by the meters it has.
    pub demands: std::sync::Mutex<HashMap<MeterId, mpsc::Sender<DemandRequest>>>,
    /// The publisher's inbox; a reload may replace it.
    pub publisher: std::sync::Mutex<mpsc::Sender<Outgoing>>,
    /// Who has asked for how much.
    pub actions: Actions,
    /// `None`: every task makes progress; else the reason why not.
    pub ill: watch::Receiver<Option<String>>,
}

impl Console {
    /// The inbox of the publisher that is at work.
    pub fn publisher(&self) -> mpsc::Sender<Outgoing> {
        lock(&self.publisher).clone()
    }

    /// Reads a meter now, through the queue of its bus.
    pub async fn read_now(&self, who: &Asker, meter: &MeterId) -> Result<Reading, Refusal> {
        let Some(bus) = lock(&self.demands).get(meter).cloned() else {
            return Err(format!("no meter `{meter}` is configured").into());
        };
        let place = bus
            .try_reserve()
            .map_err(|_| format!("the bus of meter `{meter}` has too many requests waiting"))?;
        let asked = Map::from_iter([("meter".to_owned(), meter.as_str().into())]);
        self.put_on_record(who, "read_now", asked).await?;
        let (reply, answer) = oneshot::channel();
        place.send(DemandRequest { meter: meter.clone(), keep: false, reply });
        match timeout(READ_PATIENCE, answer).await {
            Ok(Ok(reading)) => Ok(reading),
            Ok(Err(_)) => Err(format!("the bus of meter `{meter}` could not serve the request").into()),
            Err(_) => {
                Err(format!("meter `{meter}` was not read within {} s", READ_PATIENCE.as_secs()).into())
            }
        }
    }
}

type Shared = State<Arc<Console>>;

/// Every route.
pub fn router(console: Arc<Console>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_text))
        .route("/api/v1/status", get(status))
        .route("/api/v1/buses", get(buses))
        .route("/api/v1/meters", get(meters))
        .route("/api/v1/readings", get(readings))
        .route("/api/v1/read", post(read))
        .route("/api/v1/ledger/replay", post(replay))
        .route("/api/v1/ledger/manifest", get(manifest))
        .layer(from_fn_with_state(Arc::clone(&console), guard::guard))
        .layer(from_fn(whole))
        .with_state(console)
}

/// What only the owner of the data directory may ask for: on the Unix socket, never on a port.
pub fn owner_router(console: Arc<Console>) -> Router {
    Router::new()
        .route("/api/v1/identity/rotate", post(rotate))
        .route("/api/v1/ledger/backup", post(backup))
        .layer(from_fn_with_state(Arc::clone(&console), guard::guard))
        .layer(from_fn(whole))
        .with_state(console)
}

/// Takes the whole body before anything is answered: a connection that is closed over unread bytes is reset, and takes the
/// answer with it.
async fn whole(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY_BYTES).await else {
        let why = format!("the body did not arrive, or has more than {MAX_BODY_BYTES} bytes");
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, why);
    };
    next.run(Request::from_parts(head, body.into())).await
}

fn refuse(status: StatusCode, error: impl std::fmt::Display) -> Response {
    (status, Json(json!({"error": error.to_string()}))).into_response()
}

async fn healthz(State(console): Shared) -> Response {
    match console.ill.borrow().clone() {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn metrics_text(State(console): Shared) -> Response {
    match metrics::text(&console.telemetry) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

async fn status(State(console): Shared) -> Json<Value> {
    Json(console.telemetry.status())
}

async fn buses(State(console): Shared) -> Json<Value> {
    Json(console.telemetry.buses_json())
}

async fn meters(State(console): Shared) -> Json<Value> {
    let settings = console.telemetry.settings();
    Json(Value::Array(settings.meters.iter().map(publish::describe).collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadingsQuery {
    meter: Option<MeterId>,
    from: Option<Utc>,
    to: Option<Utc>,
    #[serde(default)]
    after: Seq,
    limit: Option<usize>,
}

/// One page as JSON lines: the records' own bytes. The next page begins `after` the last `seq`.
async fn readings(State(console): Shared, Query(asked): Query<ReadingsQuery>) -> Response {
    let query = ReadingQuery {
        meter: asked.meter,
        from: asked.from,
        to: asked.to,
        after: asked.after,
        limit: asked.limit.unwrap_or(PAGE).clamp(1, PAGE),
    };
    page::answer(Arc::clone(&console.telemetry.ledger), query)
        .await
        .unwrap_or_else(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, error))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadRequest {
    meter: MeterId,
    by: Option<String>,
}

async fn read(
    State(console): Shared,
    Extension(peer): Extension<Via>,
    Json(request): Json<ReadRequest>,
) -> Response {
    let done = async {
        let who = Asker::new(peer, request.by.as_deref())?;
        console.read_now(&who, &request.meter).await
    };
    answer(done.await)
}

/// What was done, or why it was not.
fn answer<T: serde::Serialize>(done: Result<T, Refusal>) -> Response {
    match done {
        Ok(done) => Json(done).into_response(),
        Err(refusal @ Refusal::Later(seconds)) => {
            let again = [(header::RETRY_AFTER, seconds.to_string())];
            (again, refuse(StatusCode::TOO_MANY_REQUESTS, refusal)).into_response()
        }
        Err(refusal) => refuse(StatusCode::UNPROCESSABLE_ENTITY, refusal),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayRequest {
    from: Seq,
    to: Seq,
    by: Option<String>,
}

async fn replay(
    State(console): Shared,
    Extension(peer): Extension<Via>,
    Json(request): Json<ReplayRequest>,
) -> Response {
    let done = async {
        let who = Asker::new(peer, request.by.as_deref())?;
        console.replay(&who, request.from, request.to).await
    };
    answer(done.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestQuery {
    date: Option<chrono::NaiveDate>,
}

async fn manifest(State(console): Shared, Query(asked): Query<ManifestQuery>) -> Response {
    let telemetry = Arc::clone(&console.telemetry);
    let settings = telemetry.settings();
    let work = move || billing::answer(&*telemetry.ledger, &settings, asked.date, &*telemetry.clock);
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(answer)) => Json(answer).into_response(),
        Ok(Err(error)) => refuse(StatusCode::UNPROCESSABLE_ENTITY, error),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RotateRequest {
    by: Option<String>,
}

async fn rotate(
    State(console): Shared,
    Extension(peer): Extension<Via>,
    Json(request): Json<Option<RotateRequest>>,
) -> Response {
    let telemetry = &console.telemetry;
    let who = match Asker::new(peer, request.unwrap_or_default().by.as_deref()) {
        Ok(who) => who,
        Err(reason) => return refuse(StatusCode::UNPROCESSABLE_ENTITY, reason),
    };
    if let refused @ Err(_) = console.admit(&who) {
        return answer(refused);
    }
    let dir = telemetry.settings().gateway.data_dir.clone();
    let now = (telemetry.clock.wall(), telemetry.clock.state());
    match billing::rotate(&telemetry.identity, &telemetry.ledger, &dir, &who, now).await {
        Ok((key, old)) => {
            Json(json!({"old_key_id": old, "new_key_id": key.id(), "new_public_key": key.to_pem()}))
                .into_response()
        }
        Err(error) => refuse(StatusCode::UNPROCESSABLE_ENTITY, error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupRequest {
    dir: String,
    by: Option<String>,
}

/// Puts on record that all data is about to be copied, and says how far the disk is: the copying is the asker's. The one action
/// that may go on without its record (`unrecorded` says why): on a disk that fails it may be the last chance.
async fn backup(
    State(console): Shared,
    Extension(peer): Extension<Via>,
    Json(request): Json<BackupRequest>,
) -> Response {
    let who = path_word("`dir`", &request.dir).and_then(|()| Asker::new(peer, request.by.as_deref()));
    let who = match who {
        Ok(who) => who,
        Err(reason) => return refuse(StatusCode::UNPROCESSABLE_ENTITY, reason),
    };
    let asked = Map::from_iter([("dir".to_owned(), request.dir.into())]);
    let unrecorded = match console.put_on_record(&who, "backup", asked).await {
        Ok(()) => None,
        refused @ Err(Refusal::Later(_)) => return answer(refused),
        Err(why) => Some(why.to_string()),
    };
    if let Some(why) = &unrecorded {
        let who = Value::from(who.fields()).to_string();
        tracing::warn!(who, why, "a backup is taken that is not on record");
    }
    let last_seq = console.telemetry.ledger.head().borrow().seq;
    Json(json!({"last_seq": last_seq, "unrecorded": unrecorded})).into_response()
}
