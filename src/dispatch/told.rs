//! What a lane says in the log, bounded: a target that takes nothing, or fails now and then all night, must not fill it.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Failures are told once in this time, and so are full dead letters…
const PAUSE: Duration = Duration::from_secs(60);
/// …and so many events that were not taken. Beyond that they are told at debug level.
const EVENTS: u32 = 100;

#[derive(Debug)]
pub(super) struct Told {
    sink: Arc<str>,
    /// The failure that was told last, and whether its end is still to be told.
    failure: Option<(Instant, String)>,
    failing: bool,
    /// The same of dead letters that were full.
    full: Option<Instant>,
    is_full: bool,
    /// Events that were told since then.
    events: u32,
    events_since: Instant,
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
        let events_since = Instant::now();
        Self { sink, failure: None, failing: false, full: None, is_full: false, events: 0, events_since }
    }

    /// Told when it is news, but no more than once a minute.
    pub(super) fn failure(&mut self, reason: &str, attempts: u32) {
        let sink = &*self.sink;
        let known =
            self.failure.as_ref().is_some_and(|(at, told)| at.elapsed() < PAUSE || self.failing && told == reason);
        if known {
            tracing::debug!(sink, reason, attempts, "delivery failed");
        } else {
            tracing::warn!(sink, reason, attempts, "delivery failed");
            (self.failure, self.failing) = (Some((Instant::now(), reason.to_owned())), true);
        }
    }

    pub(super) fn recovered(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(sink = &*self.sink, "nothing fails any more");
        }
    }

    /// Whether an event waits for room in the dead letters.
    pub(super) fn waits_for_room(&mut self, waits: bool) {
        let sink = &*self.sink;
        if waits && !self.is_full && self.full.is_none_or(|at| at.elapsed() >= PAUSE) {
            tracing::warn!(
                sink,
                "the dead letters are full: events that have to go there wait, and others behind them"
            );
            (self.full, self.is_full) = (Some(Instant::now()), true);
        } else if !waits && self.is_full {
            tracing::info!(sink, "no event waits for room in the dead letters any more");
            self.is_full = false;
        }
    }

    pub(super) fn not_taken(&mut self, event: NotTaken<'_>, what: &'static str) {
        if self.events_since.elapsed() >= PAUSE {
            (self.events, self.events_since) = (0, Instant::now());
        }
        self.events = self.events.saturating_add(1);
        let NotTaken { sequence, letter, reason, attempts } = event;
        let sink = &*self.sink;
        if self.events > EVENTS {
            tracing::debug!(sink, sequence, letter, reason, attempts, "{what}");
            return;
        }
        tracing::warn!(sink, sequence, letter, reason, attempts, "{what}");
        if self.events == EVENTS {
            tracing::warn!(
                sink,
                "more such events are not told for up to a minute; `dead-letters list` shows all dead letters"
            );
        }
    }
}
