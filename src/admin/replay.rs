//! `/api/v1/replay`: events that are still in the journal, delivered to one sink once more.

use std::ops::RangeInclusive;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::View;
use super::call::{self, FilterWords, Place, rfc3339};
use crate::dispatch::{self, Bound, DEFAULT_RATE, Progress, ReplayError, ReplayState};
use crate::journal::from_millis;
use crate::problem::{Kind, Problem};

/// Events a second.
const RATES: RangeInclusive<f64> = 0.001..=1_000_000.0;

/// The body of a call that begins one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    sink: String,
    from: Place,
    #[serde(default)]
    to: Option<Place>,
    #[serde(default)]
    filter: FilterWords,
    #[serde(default)]
    rate: Option<f64>,
}

/// How one is doing.
#[derive(Serialize)]
struct Shown {
    id: u64,
    sink: String,
    /// `running`, `paused`, `done` or `cancelled`.
    state: ReplayState,
    /// The range, both ends included, and the sequence that comes next.
    first: u64,
    last: u64,
    next: u64,
    delivered: u64,
    /// Left out by the replay's filter, its times or the sink's own filter.
    filtered: u64,
    /// Not taken by the target.
    rejected: u64,
    /// Not kept any more when their turn came.
    gone: u64,
    /// Events a second, at most.
    rate: f64,
    started_at: String,
    ended_at: Option<String>,
}

impl From<Progress> for Shown {
    fn from(progress: Progress) -> Self {
        Self {
            id: progress.id,
            sink: progress.sink,
            state: progress.state,
            first: progress.first,
            last: progress.last,
            next: progress.next,
            delivered: progress.delivered,
            filtered: progress.filtered,
            rejected: progress.rejected,
            gone: progress.gone,
            rate: progress.rate,
            started_at: rfc3339(from_millis(progress.started_at)),
            ended_at: progress.ended_at.map(|at| rfc3339(from_millis(at))),
        }
    }
}

pub(super) async fn start(State(view): State<View>, request: Request) -> Result<Response, Problem> {
    let replays = view.insight()?.replays;
    let Wanted { sink, from, to, filter, rate } = call::body(request).await?;
    let rate = rate.unwrap_or(DEFAULT_RATE);
    if !RATES.contains(&rate) {
        return Err(Problem::new(Kind::Invalid, "`rate` has to be events a second, from 0.001 to 1000000"));
    }
    let (filter, _) = filter.compiled().await?;
    let to = to.map_or(Bound::End, |Place(to)| to);
    let request = dispatch::Request { sink, from: from.0, to, filter, rate };
    shown(replays.start(request).await)
}

pub(super) async fn list(State(view): State<View>) -> Result<Response, Problem> {
    let replays: Vec<Shown> = view.insight()?.replays.list().into_iter().map(Shown::from).collect();
    Ok(call::answer(&json!({ "replays": replays })))
}

pub(super) async fn show(State(view): State<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    shown(view.insight()?.replays.progress(call::id(&id)?))
}

pub(super) async fn pause(State(view): State<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    shown(view.insight()?.replays.pause(call::id(&id)?).await)
}

pub(super) async fn resume(State(view): State<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    shown(view.insight()?.replays.resume(call::id(&id)?).await)
}

pub(super) async fn cancel(State(view): State<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    shown(view.insight()?.replays.cancel(call::id(&id)?).await)
}

fn shown(progress: Result<Progress, ReplayError>) -> Result<Response, Problem> {
    Ok(call::answer(&Shown::from(progress?)))
}

impl From<ReplayError> for Problem {
    fn from(error: ReplayError) -> Self {
        let kind = match error {
            ReplayError::NoSink | ReplayError::Unknown => Kind::NotFound,
            ReplayError::Empty => Kind::Invalid,
            ReplayError::Busy(_) | ReplayError::Ended => Kind::Conflict,
            ReplayError::Journal(_) => Kind::Unavailable,
        };
        Self::new(kind, error.to_string())
    }
}
