//! `/api/v1/replay`: events that are still in the journal, delivered to one sink once more.

use std::time::{Duration, SystemTime};

use axum::extract::{Path, State as Extracted};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::View;
use super::call::{self, FilterWords, rfc3339};

use crate::dispatch::{Bound, Progress, ReplayError, ReplayRequest, ReplayState, Replays};
use crate::problem::{Kind, Problem};

/// Events a second, at most.
const FASTEST: f64 = 1_000_000.0;

/// How far a replay has come.
#[derive(Debug, Serialize)]
struct Shown {
    id: u64,
    sink: String,
    state: ReplayState,
    /// The first and the last sequence, and the one that comes next.
    first: u64,
    last: u64,
    next: u64,
    /// Copies delivered.
    replayed: u64,
    /// Left out by the filter.
    filtered: u64,
    /// Copies that the sink did not take.
    rejected: u64,
    /// Not kept any more when their turn came.
    gone: u64,
    rate: Option<f64>,
    /// RFC 3339, UTC.
    started_at: String,
    ended_at: Option<String>,
}

impl From<Progress> for Shown {
    fn from(progress: Progress) -> Self {
        let Progress { id, sink, state, first, last, next, delivered, filtered, rejected, gone, rate, .. } = progress;
        let time = |millis| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        Self {
            id,
            sink,
            state,
            first,
            last,
            next,
            replayed: delivered,
            filtered,
            rejected,
            gone,
            rate,
            started_at: time(progress.started_at),
            ended_at: progress.ended_at.map(time),
        }
    }
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

/// The body of a call that begins one.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    sink: String,
    from: Bound,
    #[serde(default)]
    to: Option<Bound>,
    #[serde(default)]
    filter: FilterWords,
    #[serde(default)]
    rate: Option<f64>,
}

pub(super) async fn start(
    Extracted(view): Extracted<View>,
    request: axum::extract::Request,
) -> Result<Response, Problem> {
    let replays = view.replays()?;
    let Wanted { sink, from, to, filter, rate } = call::body(request).await?;
    if rate.is_some_and(|rate| !(rate > 0.0 && rate <= FASTEST)) {
        return Err(Problem::new(Kind::Invalid, "`rate` has to be events a second, above 0 and up to 1000000"));
    }
    let request = ReplayRequest { sink, from, to, filter: filter.filter()?, rate };
    Ok(call::answer(&Shown::from(replays.start(request).await?)))
}

pub(super) async fn list(Extracted(view): Extracted<View>) -> Result<Response, Problem> {
    let shown: Vec<Shown> = view.replays()?.list().into_iter().map(Shown::from).collect();
    Ok(call::answer(&serde_json::json!({ "replays": shown })))
}

pub(super) async fn show(Extracted(view): Extracted<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    answer(view.replays()?.progress(call::id(&id)?))
}

pub(super) async fn pause(Extracted(view): Extracted<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    answer(view.replays()?.pause(call::id(&id)?).await)
}

pub(super) async fn resume(Extracted(view): Extracted<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    answer(view.replays()?.resume(call::id(&id)?).await)
}

pub(super) async fn cancel(Extracted(view): Extracted<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    answer(view.replays()?.cancel(call::id(&id)?).await)
}

fn answer(progress: Result<Progress, ReplayError>) -> Result<Response, Problem> {
    Ok(call::answer(&Shown::from(progress?)))
}

impl View {
    fn replays(&self) -> Result<Replays, Problem> {
        Ok(self.insight()?.replays)
    }
}
