//! Requests and answers of the operators' port that the commands share with it. What a command only shows, such as the
//! status and lists, it shows as it comes, whichever version of the receiver has sent it.

use serde::{Deserialize, Serialize};

use super::call::rfc3339;
use crate::dispatch::{Progress, ReplayState};
use crate::journal::{self, from_millis};

/// Which dead letters, or quarantined bodies, are to be changed: one of these.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Chosen {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ids: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sink: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) all: Option<bool>,
}

/// What the change came to. One of `discarded` and `retried` is there.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handled {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) discarded: Option<u64>,
    /// Some of those that were skipped.
    pub(crate) reasons: Vec<Skipped>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retried: Option<u64>,
    pub(crate) skipped: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub(crate) id: u64,
    pub(crate) why: String,
}

/// What is lost when a sink is forgotten.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) state: KeptFor,
    /// Events that it has not had.
    pub(crate) pending: u64,
    pub(crate) dead_letters: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) forgotten: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeptFor {
    /// A sink that is gone from the settings.
    Gone,
    Configured,
}

/// The replay that is to begin. Places in the journal and filters are checked by the port: `Place` and `Filter` are what
/// each side has of them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayRequest<Place, Filter> {
    pub(crate) sink: String,
    pub(crate) from: Place,
    pub(crate) to: Option<Place>,
    #[serde(default)]
    pub(crate) filter: Filter,
    pub(crate) rate: Option<f64>,
}

/// How a replay is doing.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Replay {
    pub(crate) id: u64,
    pub(crate) sink: String,
    /// `running`, `paused`, `done` or `cancelled`.
    pub(crate) state: ReplayState,
    /// The range, both ends included, and the sequence that comes next.
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) next: u64,
    pub(crate) delivered: u64,
    /// Left out by the replay's filter, its times or the sink's own filter.
    pub(crate) filtered: u64,
    /// Not taken by the target.
    pub(crate) rejected: u64,
    /// Not kept any more when their turn came.
    pub(crate) gone: u64,
    /// Events a second, at most.
    pub(crate) rate: f64,
    pub(crate) started_at: String,
    pub(crate) ended_at: Option<String>,
}

impl Handled {
    pub(super) fn retried(handled: journal::Handled) -> Self {
        Self { retried: Some(handled.done), ..Self::of(handled) }
    }

    pub(super) fn discarded(handled: journal::Handled) -> Self {
        Self { discarded: Some(handled.done), ..Self::of(handled) }
    }

    fn of(journal::Handled { done: _, skipped, reasons }: journal::Handled) -> Self {
        let reasons = reasons.into_iter().map(|(id, why)| Skipped { id, why }).collect();
        Self { discarded: None, reasons, retried: None, skipped }
    }
}

impl From<Progress> for Replay {
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
