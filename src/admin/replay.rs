//! `/api/v1/replay`: events that are still in the journal, delivered to one sink once more.

use axum::extract::{Path, State as Extracted};
use axum::response::Response;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::View;
use super::call::{self, Bound, FilterWords};
use crate::config;
use crate::problem::{Kind, Problem};

/// Events a second, at most.
const FASTEST: f64 = 1_000_000.0;

/// Who replays. The service has one.
pub trait Replays: Send + Sync {
    /// Begins a replay; gives its id.
    fn start(&self, request: Request) -> BoxFuture<'_, Result<u64, ReplayError>>;
    /// Those under way, and those that ended not long ago.
    fn list(&self) -> Vec<Progress>;
    fn change(&self, id: u64, change: Change) -> BoxFuture<'_, Result<(), ReplayError>>;
}

/// What to replay, and where to.
#[derive(Debug, Clone)]
pub struct Request {
    pub sink: String,
    /// The first event.
    pub from: Bound,
    /// The last event, or the time before which it was received; `None`: what is there now.
    pub to: Option<Bound>,
    pub filter: config::Filter,
    /// Events a second; `None`: as fast as the sink takes them.
    pub rate: Option<f64>,
}

/// How far a replay has come.
#[derive(Debug, Clone, Serialize)]
pub struct Progress {
    pub id: u64,
    pub sink: String,
    pub state: State,
    /// The first and the last sequence, and the one that comes next.
    pub first: u64,
    pub last: u64,
    pub next: u64,
    pub replayed: u64,
    /// Left out by the filter.
    pub filtered: u64,
    pub rate: Option<f64>,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// Why it failed.
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Paused,
    Done,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Pause,
    Resume,
    Cancel,
}

/// Why a replay cannot be begun or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No such sink, or no such replay.
    #[error("{0}")]
    Unknown(String),
    /// Nothing is kept of that range, or it ends before it begins.
    #[error("{0}")]
    Range(String),
    /// Not in the state it is in.
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Unavailable(String),
}

impl From<ReplayError> for Problem {
    fn from(error: ReplayError) -> Self {
        let kind = match error {
            ReplayError::Unknown(_) => Kind::NotFound,
            ReplayError::Range(_) => Kind::Invalid,
            ReplayError::Conflict(_) => Kind::Conflict,
            ReplayError::Unavailable(_) => Kind::Unavailable,
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
    let request = Request { sink, from, to, filter: filter.filter()?, rate };
    let id = replays.start(request).await?;
    progress(&*replays, id)
}

pub(super) async fn list(Extracted(view): Extracted<View>) -> Result<Response, Problem> {
    Ok(call::answer(&serde_json::json!({ "replays": view.replays()?.list() })))
}

pub(super) async fn show(Extracted(view): Extracted<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    progress(&*view.replays()?, call::id(&id)?)
}

pub(super) async fn pause(Extracted(view): Extracted<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    change(&view, &id, Change::Pause).await
}

pub(super) async fn resume(Extracted(view): Extracted<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    change(&view, &id, Change::Resume).await
}

pub(super) async fn cancel(Extracted(view): Extracted<View>, Path(id): Path<String>) -> Result<Response, Problem> {
    change(&view, &id, Change::Cancel).await
}

async fn change(view: &View, id: &str, change: Change) -> Result<Response, Problem> {
    let (replays, id) = (view.replays()?, call::id(id)?);
    replays.change(id, change).await?;
    progress(&*replays, id)
}

fn progress(replays: &dyn Replays, id: u64) -> Result<Response, Problem> {
    match replays.list().into_iter().find(|progress| progress.id == id) {
        Some(progress) => Ok(call::answer(&progress)),
        None => Err(Problem::new(Kind::NotFound, "no replay has this id")),
    }
}

impl View {
    fn replays(&self) -> Result<std::sync::Arc<dyn Replays>, Problem> {
        let replays = self.insight()?.replays;
        replays.ok_or_else(|| Problem::new(Kind::NotFound, "replay is not available in this version"))
    }
}
