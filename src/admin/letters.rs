//! `/api/v1/dead-letters` and `/api/v1/quarantine`: list, show, retry, discard.

use axum::extract::{Path, Request, State};
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::api::{Chosen, Handled};
use super::call::{self, Query, rfc3339};
use super::view::View;
use crate::journal::{Bodies, Letter, LetterState, LettersOf, MAX_LIST, QuarantinedBody, Which};
use crate::problem::{Kind, Problem};

const LIMIT: usize = 100;

/// A dead letter; the event itself only where one is shown.
#[derive(Serialize)]
struct DeadLetter<'a> {
    id: u64,
    sink: &'a str,
    sequence: u64,
    event_id: &'a str,
    name: &'a str,
    event_type: &'a str,
    received_at: String,
    reason: &'a str,
    attempts: u32,
    /// When it became one, the last time.
    at: String,
    /// `dead`, or `retrying`: pending again.
    state: &'static str,
    bytes: usize,
    /// The exact bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
}

/// A quarantined body; the bytes only where one is shown.
#[derive(Serialize)]
struct Quarantined<'a> {
    id: u64,
    reason: &'a str,
    detail: &'a str,
    at: String,
    peer: &'a str,
    endpoint: &'a str,
    bytes: usize,
    /// As text; null if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Option<&'a str>>,
}

impl<'a> DeadLetter<'a> {
    fn of(letter: &'a Letter) -> Self {
        let Letter { id, sink, sequence, reason, attempts, at, state, event } = letter;
        Self {
            id: *id,
            sink,
            sequence: *sequence,
            event_id: event.event_id(),
            name: event.name(),
            event_type: event.event_type(),
            received_at: rfc3339(event.received_at()),
            reason,
            attempts: *attempts,
            at: rfc3339(*at),
            state: match state {
                LetterState::Dead => "dead",
                LetterState::Retrying => "retrying",
            },
            bytes: event.body().len(),
            event: None,
        }
    }
}

impl<'a> Quarantined<'a> {
    fn of(kept: &'a QuarantinedBody) -> Self {
        let QuarantinedBody { id, reason, detail, at, peer, endpoint, body } = kept;
        Self { id: *id, reason, detail, at: rfc3339(*at), peer, endpoint, bytes: body.len(), body: None }
    }
}

pub(super) async fn list(State(view): State<View>, uri: Uri) -> Result<Response, Problem> {
    let mut query = Query::of(&uri);
    let sink = query.one("sink", |sink| Some(sink.to_owned()), "the name of a sink")?;
    let (after, limit) = page(&mut query)?;
    query.finish("sink, after and limit")?;
    let found = view.insight()?.journal.dead_letters(LettersOf { sink, after, limit }).await?;
    view.write(move || {
        let letters: Vec<DeadLetter> = found.iter().map(DeadLetter::of).collect();
        let next = letters.last().map(|letter| letter.id);
        call::answer(&json!({ "dead_letters": letters, "next": next }))
    })
    .await
}

pub(super) async fn show(State(view): State<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    let letter = view.insight()?.journal.dead_letter(call::id(&id)?).await?;
    let letter = letter.ok_or_else(|| Problem::new(Kind::NotFound, "no dead letter has this id"))?;
    view.write(move || {
        // Only valid JSON is ever stored.
        let event = serde_json::from_slice(letter.event.body()).ok();
        call::answer(&DeadLetter { event, ..DeadLetter::of(&letter) })
    })
    .await
}

pub(super) async fn retry(State(view): State<View>, request: Request) -> Result<Response, Problem> {
    let journal = view.insight()?.journal;
    let which = call::body::<Chosen>(request).await?.letters()?;
    Ok(call::answer(&Handled::retried(journal.retry_dead_letters(which).await?)))
}

pub(super) async fn discard(State(view): State<View>, request: Request) -> Result<Response, Problem> {
    let journal = view.insight()?.journal;
    let which = call::body::<Chosen>(request).await?.letters()?;
    Ok(call::answer(&Handled::discarded(journal.discard_dead_letters(which).await?)))
}

pub(super) async fn list_bodies(State(view): State<View>, uri: Uri) -> Result<Response, Problem> {
    let mut query = Query::of(&uri);
    let (after, limit) = page(&mut query)?;
    query.finish("after and limit")?;
    let found = view.insight()?.journal.quarantined(after, limit).await?;
    view.write(move || {
        let bodies: Vec<Quarantined> = found.iter().map(Quarantined::of).collect();
        let next = bodies.last().map(|kept| kept.id);
        call::answer(&json!({ "quarantine": bodies, "next": next }))
    })
    .await
}

pub(super) async fn show_body(State(view): State<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    let kept = body(&view, &id).await?;
    view.write(move || {
        let text = std::str::from_utf8(&kept.body).ok();
        call::answer(&Quarantined { body: Some(text), ..Quarantined::of(&kept) })
    })
    .await
}

/// The exact bytes. Nobody knows what they are, so they are for saving, not for showing.
pub(super) async fn raw_body(State(view): State<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    let kept = body(&view, &id).await?;
    let name = format!("attachment; filename=\"quarantined-{}\"", kept.id);
    let headers = [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((headers, kept.body).into_response())
}

pub(super) async fn retry_bodies(State(view): State<View>, request: Request) -> Result<Response, Problem> {
    let journal = view.insight()?.journal;
    let which = call::body::<Chosen>(request).await?.bodies()?;
    Ok(call::answer(&Handled::retried(journal.retry_quarantined(which).await?)))
}

pub(super) async fn discard_bodies(State(view): State<View>, request: Request) -> Result<Response, Problem> {
    let journal = view.insight()?.journal;
    let which = call::body::<Chosen>(request).await?.bodies()?;
    Ok(call::answer(&Handled::discarded(journal.discard_quarantined(which).await?)))
}

async fn body(view: &View, id: &str) -> Result<QuarantinedBody, Problem> {
    let kept = view.insight()?.journal.quarantined_body(call::id(id)?).await?;
    kept.ok_or_else(|| Problem::new(Kind::NotFound, "no quarantined body has this id"))
}

/// Where a list begins, and how long it is at most.
fn page(query: &mut Query) -> Result<(u64, usize), Problem> {
    let after = query.one("after", |text| text.parse().ok(), "an id")?.unwrap_or(0);
    let limit = |text: &str| text.parse().ok().filter(|limit| (1..=MAX_LIST).contains(limit));
    Ok((after, query.one("limit", limit, "a number from 1 to 1000")?.unwrap_or(LIMIT)))
}

impl Chosen {
    fn letters(self) -> Result<Which, Problem> {
        match self {
            Self { ids: Some(ids), sink: None, all: None } => Ok(Which::Ids(ids)),
            Self { ids: None, sink: Some(sink), all: None } => Ok(Which::Sink(sink)),
            Self { ids: None, sink: None, all: Some(true) } => Ok(Which::All),
            _ => {
                let forms = "say which: {\"ids\": [1, 2]}, {\"sink\": \"NAME\"} or {\"all\": true}";
                Err(Problem::new(Kind::Invalid, forms))
            }
        }
    }

    fn bodies(self) -> Result<Bodies, Problem> {
        match self {
            Self { ids: Some(ids), sink: None, all: None } => Ok(Bodies::Ids(ids)),
            Self { ids: None, sink: None, all: Some(true) } => Ok(Bodies::All),
            _ => Err(Problem::new(Kind::Invalid, "say which: {\"ids\": [1, 2]} or {\"all\": true}")),
        }
    }
}
