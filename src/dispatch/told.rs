//! What a lane logs, bounded: a target that refuses everything, or fails now and then all night, must not fill the log.

use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::LineLimit;

const MINUTE: Duration = Duration::from_secs(60);
/// Failures that are logged above debug level in a minute.
const FAILURES: u32 = 20;
/// Events that were not taken and are logged above debug level in a minute.
const EVENTS: u32 = 100;

#[derive(Debug)]
pub(super) struct Told {
    sink: Arc<str>,
    /// The failure that was logged last, until deliveries succeed again.
    failure: Option<String>,
    is_full: bool,
    failures: LineLimit,
    events: LineLimit,
}

/// An event that was not taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct NotTaken<'a> {
    pub(super) sequence: u64,
    /// A retried dead letter's.
    pub(super) letter: Option<u64>,
    pub(super) reason: &'a str,
    pub(super) attempts: u32,
}

impl Told {
    pub(super) fn new(sink: Arc<str>) -> Self {
        let (failures, events) = (LineLimit::new(FAILURES, MINUTE), LineLimit::new(EVENTS, MINUTE));
        Self { sink, failure: None, is_full: false, failures, events }
    }

    /// Logged above debug level when the reason is a new one.
    pub(super) fn failure(&mut self, reason: &str, attempts: u32) {
        let sink = &*self.sink;
        if self.failure.as_deref() == Some(reason) || self.failures.take().is_none() {
            tracing::debug!(sink, reason, attempts, "delivery failed");
        } else {
            tracing::warn!(sink, reason, attempts, "delivery failed");
            self.failure = Some(reason.to_owned());
        }
    }

    pub(super) fn recovered(&mut self) {
        if self.failure.take().is_some() {
            tracing::info!(sink = &*self.sink, "nothing fails any more");
        }
    }

    /// Whether an event waits for room in the dead letters.
    pub(super) fn waits_for_room(&mut self, waits: bool) {
        let sink = &*self.sink;
        if waits && !self.is_full && self.failures.take().is_some() {
            tracing::warn!(
                sink,
                "the dead letters are full: events that have to go there wait, and others behind them"
            );
            self.is_full = true;
        } else if !waits && self.is_full {
            tracing::info!(sink, "no event waits for room in the dead letters any more");
            self.is_full = false;
        }
    }

    pub(super) fn not_taken(&mut self, event: NotTaken<'_>, what: &'static str) {
        let NotTaken { sequence, letter, reason, attempts } = event;
        let sink = &*self.sink;
        if self.events.take().is_none() {
            tracing::debug!(sink, sequence, letter, reason, attempts, "{what}");
            return;
        }
        tracing::warn!(sink, sequence, letter, reason, attempts, "{what}");
        if self.events.is_spent() {
            tracing::warn!(
                sink,
                "more such events are not told for up to a minute; `dead-letters list` shows all dead letters"
            );
        }
    }
}
