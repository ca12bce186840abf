//! One lane per sink: read, filter, deliver, back off, park, advance.
//!
//! A lane owns its sink and its cursor; one sink's trouble touches no other. What a lane cannot deliver it tries again,
//! and when its `retry` settings end that, the event goes into the dead letters with the reason.

mod drift;
mod filter;

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use filter::Filter;

use crate::config::{Retry, Sink as SinkSettings, SinkKind};
use crate::journal::{Cursor, Event, Gone, Settled, Settler, Watch};
use crate::shape::Shape;
use crate::sinks::{Failure, FailureKind, FileSink, Sink, Stdout};
use crate::telemetry::Metrics;

/// How long a lane waits for room in the dead letters before it asks again.
const DEAD_LETTER_WAIT: Duration = Duration::from_secs(1);

/// The running lanes.
#[derive(Debug)]
pub struct Lanes {
    tracker: TaskTracker,
    /// Deliver what is there, then end.
    finish: CancellationToken,
    health: Vec<(String, Health)>,
}

/// How a lane is doing. Cheap to clone; the lane writes it, `status` reads it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Condition>>);

/// What [`Health`] says.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// The reason of the attempt that failed last, until one succeeds.
    pub last_error: Option<String>,
    /// When the event that is being delivered came in; `None`: the lane has caught up.
    pub oldest: Option<SystemTime>,
}

impl Lanes {
    /// Starts a lane for every cursor whose sink is configured.
    ///
    /// # Errors
    /// When a sink cannot even be made.
    pub fn start(cursors: Vec<Cursor>, sinks: &[SinkSettings], metrics: &Arc<Metrics>) -> io::Result<Self> {
        let mut lanes = Self { tracker: TaskTracker::new(), finish: CancellationToken::new(), health: Vec::new() };
        for cursor in cursors {
            let Some(settings) = sinks.iter().find(|sink| sink.name == cursor.sink()) else { continue };
            let shape = Shape::new(settings.format, &settings.redact);
            match &settings.kind {
                SinkKind::Stdout => lanes.add(cursor, settings, Stdout::new(shape)?, metrics),
                SinkKind::File(file) => lanes.add(cursor, settings, FileSink::new(file.clone(), shape), metrics),
                // The settings refuse it until it is here.
                SinkKind::Http(_) => {}
            }
        }
        Ok(lanes)
    }

    fn add(&mut self, cursor: Cursor, settings: &SinkSettings, sink: impl Sink, metrics: &Arc<Metrics>) {
        let health = Health::default();
        self.health.push((settings.name.clone(), health.clone()));
        let lane = Lane {
            settler: cursor.settler(),
            cursor,
            sink,
            filter: Filter::new(&settings.filter),
            retry: settings.retry.clone(),
            finish: self.finish.clone(),
            health,
            metrics: Arc::clone(metrics),
        };
        self.tracker.spawn(async move {
            if AssertUnwindSafe(lane.run()).catch_unwind().await.is_err() {
                // A lane that is gone without a word would look like a sink that keeps up.
                tracing::error!("a bug in a lane: the process aborts");
                std::process::abort();
            }
        });
    }

    /// Looks for schema drift in what comes from now on, until the lanes end.
    pub fn watch_drift(&self, events: Watch, metrics: &Arc<Metrics>) {
        let watching = drift::watch_drift(events, Arc::clone(metrics));
        self.tracker.spawn(self.finish.clone().run_until_cancelled_owned(watching));
    }

    #[must_use]
    pub fn health(&self) -> &[(String, Health)] {
        &self.health
    }

    /// Lets every lane deliver what is durable now, without waiting for a sink that fails, and ends them.
    pub async fn finish(&self) {
        self.finish.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Health {
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, change: impl FnOnce(&mut Condition)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

struct Lane<S> {
    cursor: Cursor,
    settler: Settler,
    sink: S,
    filter: Filter,
    retry: Retry,
    finish: CancellationToken,
    health: Health,
    metrics: Arc<Metrics>,
}

/// The lane is to end; what it holds is delivered in its next life.
struct Finished;

impl<S: Sink> Lane<S> {
    async fn run(mut self) {
        while let Ok(events) = self.read().await {
            if self.dispatch(&events).await.is_err() {
                return;
            }
            self.health.set(|condition| condition.oldest = None);
        }
    }

    async fn read(&mut self) -> Result<Vec<Event>, Gone> {
        if !self.finish.is_cancelled() {
            tokio::select! {
                read = self.cursor.read() => return read,
                () = self.finish.cancelled() => {}
            }
        }
        if self.cursor.caught_up() { Err(Gone) } else { self.cursor.read().await }
    }

    /// Settles every event, run by run of those that pass the filter and those that do not.
    async fn dispatch(&mut self, events: &[Event]) -> Result<(), Finished> {
        let passes: Vec<bool> = events.iter().map(|event| self.filter.passes(event)).collect();
        let mut start = 0;
        for run in passes.chunk_by(|a, b| a == b) {
            let events = &events[start..start + run.len()];
            start += run.len();
            if run[0] {
                self.deliver(events).await?;
            } else {
                self.settle(events, Settled::Filtered).await;
            }
        }
        Ok(())
    }

    async fn deliver(&mut self, mut events: &[Event]) -> Result<(), Finished> {
        let mut attempts = 0;
        let mut began = Instant::now();
        while let Some(first) = events.first() {
            self.health.set(|condition| condition.oldest = Some(first.received_at()));
            let Err(failure) = self.sink.deliver(events).await else {
                self.settle(events, Settled::Delivered).await;
                self.health.set(|condition| condition.last_error = None);
                return Ok(());
            };
            let Failure { delivered, kind, reason } = failure;
            if delivered > 0 {
                self.settle(&events[..delivered], Settled::Delivered).await;
                events = &events[delivered..];
                (attempts, began) = (0, Instant::now());
            }
            attempts += 1;
            self.note(kind, &reason, attempts);
            let Some(first) = events.first() else { continue };
            let wait = match kind {
                FailureKind::Retry { after, .. } if !self.is_over(attempts, began) => {
                    self.backoff(attempts).max(after.unwrap_or_default())
                }
                _ => {
                    self.bury(first, &reason, attempts).await?;
                    events = &events[1..];
                    (attempts, began) = (0, Instant::now());
                    continue;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.finish.cancelled() => return Err(Finished),
            }
        }
        Ok(())
    }

    /// Whether the settings end the attempts here.
    fn is_over(&self, attempts: u32, began: Instant) -> bool {
        self.retry.max_attempts.is_some_and(|most| attempts >= most)
            || self.retry.max_age.is_some_and(|age| began.elapsed() >= age)
    }

    /// Exponential, full jitter: anything from nothing up to the bound, so that lanes do not come in step.
    fn backoff(&self, attempts: u32) -> Duration {
        let doubled = self.retry.initial_backoff.saturating_mul(1 << (attempts - 1).min(20));
        doubled.min(self.retry.max_backoff).mul_f64(fastrand::f64())
    }

    /// Puts an event into the dead letters; while they are full, the lane waits.
    async fn bury(&mut self, event: &Event, reason: &str, attempts: u32) -> Result<(), Finished> {
        while let Err(why) = self.settler.dead_letter(event, reason, attempts).await {
            self.health.set(|condition| condition.last_error = Some(format!("the dead letters take no more: {why}")));
            tokio::select! {
                () = tokio::time::sleep(DEAD_LETTER_WAIT) => {}
                () = self.finish.cancelled() => return Err(Finished),
            }
        }
        tracing::warn!(sink = self.cursor.sink(), sequence = event.sequence(), reason, attempts, "event dead-lettered");
        Ok(())
    }

    async fn settle(&mut self, events: &[Event], how: Settled) {
        // A filtered or skipped sequence may lie between two of them, so each run of neighbours by itself.
        for run in events.chunk_by(|a, b| a.sequence() + 1 == b.sequence()) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                self.settler.settle(first.sequence(), last.sequence(), how).await;
            }
        }
    }

    fn note(&self, kind: FailureKind, reason: &str, attempts: u32) {
        let word = if kind == FailureKind::Reject { "rejected" } else { "retry" };
        let labels = vec![("sink".to_owned(), self.cursor.sink().to_owned()), ("reason".to_owned(), word.to_owned())];
        self.metrics.sink_failures.get_or_create(&labels).inc();
        let first_of_many = self.health.condition().last_error.is_none();
        self.health.set(|condition| condition.last_error = Some(reason.to_owned()));
        if first_of_many {
            tracing::warn!(sink = self.cursor.sink(), reason, attempts, "delivery failed");
        } else {
            tracing::debug!(sink = self.cursor.sink(), reason, attempts, "delivery failed");
        }
    }
}
