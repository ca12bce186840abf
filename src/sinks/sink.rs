//! What a lane asks of a sink, and how a delivery fails.

use std::time::Duration;

use crate::journal::Event;

/// Delivers events. Owned by one lane, which calls it with one batch at a time.
pub trait Sink: Send + 'static {
    /// Delivers the events of a batch, in order; back when their delivery is sure.
    ///
    /// Dropping the future means that nobody will know the outcome: the events are delivered again later.
    fn deliver(&mut self, batch: &[Event]) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// A batch was not delivered, or not wholly.
#[derive(Debug)]
pub struct Failure {
    /// How many of the batch's first events were delivered all the same.
    pub delivered: usize,
    pub kind: FailureKind,
    /// For people: what went wrong, without any value of an event.
    pub reason: String,
}

/// What to do about the first event that was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Try again: as the lane's back-off says, but not before `after`.
    Retry { after: Option<Duration>, blame: Blame },
    /// The target will never take this event, or not in this company: a batch is divided, a single event becomes a dead
    /// letter at once.
    Reject,
}

impl FailureKind {
    /// As metrics and spans say it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Retry { .. } => "retry",
            Self::Reject => "rejected",
        }
    }
}

/// What an attempt's failure is likely due to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The target as a whole: it cannot be reached, wants nobody, is misconfigured, or wants a pause (`after` holds for
    /// every event).
    Target,
    /// Perhaps one event of the batch: the target answered, with an error of its own.
    Batch,
}

impl Failure {
    /// The target as a whole is in trouble; the first `delivered` events have reached it.
    pub(crate) fn of_target(delivered: usize, reason: String) -> Self {
        Self { delivered, kind: FailureKind::Retry { after: None, blame: Blame::Target }, reason }
    }
}
