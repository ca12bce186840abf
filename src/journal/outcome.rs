//! What becomes of what the journal is given: words that both engines speak.

use crate::admission::Outcome;

/// Proof that the event with this id survives a crash. Only the journal makes one.
#[derive(Debug, Clone)]
pub struct Receipt {
    event_id: Box<str>,
}

impl Receipt {
    /// Of an event that is durable, or was found to be.
    pub(in crate::journal) fn of(event_id: Box<str>) -> Self {
        Self { event_id }
    }

    #[must_use]
    pub fn event_id(&self) -> &str {
        &self.event_id
    }
}

/// A durable event: new, or known already.
#[derive(Debug, Clone)]
pub enum Appended {
    Stored(Receipt),
    Duplicate(Receipt),
}

/// The journal could not take it now. Nothing is used up: the same id may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the journal is full")]
    Full,
    #[error("the journal's disk did not take a write")]
    WriteError,
    #[error("the journal is locked by another process, or the machine is out of memory or file descriptors")]
    Busy,
    #[error("it is larger than the journal can keep")]
    TooLarge,
    #[error("the cluster that keeps the events is not set up as it has to be: `status` and the log say what to change")]
    Unfit,
    #[error("the journal has failed")]
    Failed,
    #[error("the journal is closed")]
    Closed,
    #[error("the journal did not answer in time")]
    Late,
}

impl Refused {
    /// What becomes of a POST that was refused so.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            // The same bytes would be refused again.
            Self::TooLarge => Outcome::Rejected(self.word()),
            _ => Outcome::Refused(self.word()),
        }
    }

    /// The word under which it is counted.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::WriteError => "write-error",
            Self::Busy => "busy",
            Self::TooLarge => "too-large",
            Self::Unfit => "unfit",
            Self::Failed => "failed",
            Self::Closed => "closed",
            Self::Late => "late",
        }
    }
}

/// Whether events can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Open,
    /// `journal.max_bytes` is reached, or the disk is full; it goes on by itself when there is room.
    Full,
    /// The disk did not take a write; it goes on by itself when it does.
    WriteError,
    /// Another process has locked the database, or memory or file descriptors are used up; it goes on by itself.
    Busy,
    /// The cluster that keeps the events cannot be reached, or cannot store now; it goes on by itself.
    Unreachable,
    /// The cluster does not keep what a 200 promises: its settings were changed. It goes on by itself when they are right.
    Unfit,
    /// Final for this process.
    Failed,
    Closed,
}

/// What became of an event at a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    Delivered,
    Filtered,
    DeadLettered,
    /// Dropped undelivered, to make room, from a sink that is not `required`.
    Evicted,
    /// Taken by damage to the journal.
    Lost,
}

/// Of what was skipped, the first are told one by one.
const TOLD: usize = 100;

/// What an operator's change came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handled {
    pub done: u64,
    /// Left as they were.
    pub skipped: u64,
    /// Ids of the first 100 of those, and why.
    pub reasons: Vec<(u64, String)>,
}

impl Handled {
    pub(crate) fn skip(&mut self, id: u64, why: impl FnOnce() -> String) {
        self.skipped += 1;
        if self.reasons.len() < TOLD {
            self.reasons.push((id, why()));
        }
    }
}
