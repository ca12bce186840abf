//! What a lane says in the log, bounded: a target that takes nothing, or fails now and then all night, must not fill it.

use std::sync::Arc;
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_secs(60);
/// In each of them so many failures are told…
const FAILURES: u32 = 20;
/// …and so many events that were not taken. Beyond that they are told at debug level.
const EVENTS: u32 = 100;

#[derive(Debug)]
pub(super) struct Told {
    sink: Arc<str>,
    /// The failure that was told last, while its end is still to be told.
    failure: Option<String>,
    is_full: bool,
    failures: Allowance,
    events: Allowance,
}

/// So many a minute.
#[derive(Debug)]
struct Allowance {
    most: u32,
    used: u32,
    since: Instant,
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
        let (failures, events) = (Allowance::new(FAILURES), Allowance::new(EVENTS));
        Self { sink, failure: None, is_full: false, failures, events }
    }

    /// Told when it is news.
    pub(super) fn failure(&mut self, reason: &str, attempts: u32) {
        let sink = &*self.sink;
        if self.failure.as_deref() == Some(reason) || !self.failures.take() {
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
        if waits && !self.is_full && self.failures.take() {
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
        if !self.events.take() {
            tracing::debug!(sink, sequence, letter, reason, attempts, "{what}");
            return;
        }
        tracing::warn!(sink, sequence, letter, reason, attempts, "{what}");
        if self.events.is_used_up() {
            tracing::warn!(
                sink,
                "more such events are not told for up to a minute; `dead-letters list` shows all dead letters"
            );
        }
    }
}

impl Allowance {
    fn new(most: u32) -> Self {
        Self { most, used: 0, since: Instant::now() }
    }

    fn take(&mut self) -> bool {
        if self.since.elapsed() >= MINUTE {
            (self.used, self.since) = (0, Instant::now());
        }
        let is_left = self.used < self.most;
        self.used += u32::from(is_left);
        is_left
    }

    fn is_used_up(&self) -> bool {
        self.used == self.most
    }
}
