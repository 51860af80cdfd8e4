//! One page of readings as a body that is made while it is read: whoever does not read it costs a piece of it and no more.
//!
//! The page is gone through twice, first for its length: many a script reads `Content-Length` and knows nothing of chunks. Knows
//! the ledger's query and no route.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;

use crate::{
    ledger::{LedgerError, ReadingQuery, SharedLedger},
    model::Seq,
};

/// Readings that are fetched at once: 80 kB of large ones.
const PIECE: usize = 32;

/// What is still to come of a page.
#[derive(Clone)]
struct Rest {
    ledger: SharedLedger,
    query: ReadingQuery,
    /// What was stored since its length was found is not of it.
    last: Seq,
}

/// The page that is asked for, as JSON lines.
pub(super) async fn answer(ledger: SharedLedger, query: ReadingQuery) -> Result<Response, LedgerError> {
    let mut rest = Rest { ledger, query, last: Seq::MAX };
    let first = rest.piece().await?;
    let mut length = first.len();
    let mut ahead = rest.clone();
    while ahead.query.limit > 0 {
        length += ahead.piece().await?.len();
    }
    rest.last = ahead.query.after;
    // A page that is cut short by an error ends the connection before its length.
    let pieces = stream::try_unfold((Some(first), rest), |(first, mut rest)| async move {
        let piece = match first {
            Some(first) => first,
            None => rest.piece().await?,
        };
        Ok::<_, LedgerError>((!piece.is_empty()).then_some((piece, (None, rest))))
    });
    let headers: [(_, HeaderValue); 2] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
        (header::CONTENT_LENGTH, length.into()),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

impl Rest {
    /// The next lines; none at the end.
    async fn piece(&mut self) -> Result<Bytes, LedgerError> {
        let query = ReadingQuery { limit: self.query.limit.min(PIECE), ..self.query.clone() };
        if query.limit == 0 {
            return Ok(Bytes::new());
        }
        let ledger = Arc::clone(&self.ledger);
        let fetched = tokio::task::spawn_blocking(move || ledger.readings(&query)).await;
        let lines = fetched.map_err(|_| LedgerError::Closed)??;
        self.query.after = lines.last().map_or(self.query.after, |line| line.seq);
        // Fewer than were asked for are the last ones.
        self.query.limit = if lines.len() < PIECE { 0 } else { self.query.limit - lines.len() };
        let mut bytes = Vec::with_capacity(lines.iter().map(|line| line.bytes.len() + 1).sum());
        for line in lines.iter().filter(|line| line.seq <= self.last) {
            bytes.extend_from_slice(&line.bytes);
            bytes.push(b'\n');
        }
        Ok(bytes.into())
    }
}
