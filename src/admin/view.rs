//! What the routes of the operators' port look at.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{Semaphore, watch};
use tokio::task::spawn_blocking;

use super::status::Status;
use crate::blocking::joined;
use crate::dispatch::Replays;
use crate::journal;
use crate::problem::{Kind, Problem};
use crate::telemetry::Metrics;

/// What the service is doing.
#[derive(Debug, Clone)]
pub enum Phase {
    /// The journal is not open yet.
    Starting,
    Serving(Insight),
    Draining(Insight),
}

/// What can be seen and done from outside once the journal is open. Cheap to clone.
#[derive(Clone)]
pub struct Insight {
    pub state: watch::Receiver<journal::State>,
    pub journal: journal::Journal,
    /// Called once per request for the status or the metrics.
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    pub replays: Replays,
}

#[derive(Clone)]
pub(super) struct View {
    pub(super) metrics: Arc<Metrics>,
    pub(super) phase: watch::Receiver<Phase>,
    /// Places for those who look on.
    pub(super) tails: Arc<Semaphore>,
    /// Whose turn it is to write a long answer.
    pub(super) writing: Arc<Semaphore>,
    pub(super) started: SystemTime,
}

/// Why no events should be sent here now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unready {
    Starting,
    Draining,
    JournalFull,
    JournalWriteError,
    JournalBusy,
    JournalUnreachable,
    JournalUnfit,
    JournalFailed,
    JournalClosed,
}

impl Unready {
    pub(super) const ALL: [Self; 9] = [
        Self::Starting,
        Self::Draining,
        Self::JournalFull,
        Self::JournalWriteError,
        Self::JournalBusy,
        Self::JournalUnreachable,
        Self::JournalUnfit,
        Self::JournalFailed,
        Self::JournalClosed,
    ];

    /// What `/readyz` and the metrics call it.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::JournalFull => "journal full",
            Self::JournalWriteError => "journal write error",
            Self::JournalBusy => "journal busy",
            Self::JournalUnreachable => "journal unreachable",
            Self::JournalUnfit => "journal unfit",
            Self::JournalFailed => "journal failed",
            Self::JournalClosed => "journal closed",
        }
    }
}

impl View {
    /// # Errors
    /// Unavailable, before the journal is open.
    pub(super) fn insight(&self) -> Result<Insight, Problem> {
        match &*self.phase.borrow() {
            Phase::Starting => Err(Problem::new(Kind::Unavailable, "starting: the journal is not open yet")),
            Phase::Serving(insight) | Phase::Draining(insight) => Ok(insight.clone()),
        }
    }

    /// Writes an answer that takes a while. Not on a thread that answers probes and takes events: requests can come one
    /// behind the other on many connections. One at a time, so that they take one processor at most.
    ///
    /// # Errors
    /// Unavailable, when the runtime is ending.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        answer: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let ending = || Problem::new(Kind::Unavailable, "the receiver is being stopped");
        // The semaphore is never closed.
        let turn = Arc::clone(&self.writing).acquire_owned().await.map_err(|_| ending())?;
        let job = move || {
            let answer = answer();
            drop(turn);
            answer
        };
        joined(spawn_blocking(job).await).ok_or_else(ending)
    }

    pub(super) fn unready(&self) -> Option<Unready> {
        match &*self.phase.borrow() {
            Phase::Starting => Some(Unready::Starting),
            Phase::Draining(_) => Some(Unready::Draining),
            Phase::Serving(insight) => match *insight.state.borrow() {
                journal::State::Open => None,
                journal::State::Full => Some(Unready::JournalFull),
                journal::State::WriteError => Some(Unready::JournalWriteError),
                journal::State::Busy => Some(Unready::JournalBusy),
                journal::State::Unreachable => Some(Unready::JournalUnreachable),
                journal::State::Unfit => Some(Unready::JournalUnfit),
                journal::State::Failed => Some(Unready::JournalFailed),
                journal::State::Closed => Some(Unready::JournalClosed),
            },
        }
    }
}

impl std::fmt::Debug for Insight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Insight").field("state", &self.state).finish_non_exhaustive()
    }
}
