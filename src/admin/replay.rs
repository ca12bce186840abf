//! `/api/v1/replay`: events that are still in the journal, delivered to one sink once more.

use std::ops::RangeInclusive;

use axum::extract::{Path, Request, State};
use axum::response::Response;
use serde_json::json;

use super::api::{Replay, ReplayRequest};
use super::call::{self, FilterWords, Place};
use super::view::View;
use crate::dispatch::{self, Bound, DEFAULT_RATE, Progress, ReplayError};
use crate::problem::{Kind, Problem};

/// Events a second.
const RATES: RangeInclusive<f64> = 0.001..=1_000_000.0;

pub(super) async fn start(State(view): State<View>, request: Request) -> Result<Response, Problem> {
    let replays = view.insight()?.replays;
    let ReplayRequest::<Place, FilterWords> { sink, from, to, filter, rate } = call::body(request).await?;
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
    let replays: Vec<Replay> = view.insight()?.replays.list().into_iter().map(Replay::from).collect();
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
    Ok(call::answer(&Replay::from(progress?)))
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
