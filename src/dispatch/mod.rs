//! One lane per sink: read, filter, deliver, back off, park, advance.
//!
//! A [`lane`] owns its sink and its cursor; one sink's trouble touches no other. What may go next, and with what, is for
//! its [`queue`] to say. What a lane cannot deliver it tries again, and when its `retry` settings end that, the event goes
//! into the dead letters with the reason.

mod drifts;
mod filter;
mod health;
mod lane;
mod observer;
mod queue;
mod replay;
mod threads;
mod told;

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use drifts::{Drifts, Seen};
pub use filter::Filter;
pub use health::{Condition, Health};
pub use replay::{Bound, DEFAULT_RATE, Progress, ReplayError, Replays, Request, State as ReplayState};

use crate::config::{HttpSink, Ordering, OwnFiles, Sink as SinkSettings, SinkKind};
use crate::journal::{Cursor, Journal};
use crate::shape::Shape;
use crate::sinks::{FileSink, Http, Sink, Stdout};
use crate::telemetry::Metrics;
use crate::traces::{Deliveries, Traces};
use lane::Lane;
use observer::Observer;
use queue::Plan;
use replay::Way;
use threads::Threads;

/// Events and bytes of one write to a sink of lines.
const LINES: (usize, usize) = (1024, 4 << 20);
/// How far such a lane reads ahead, in sequences.
const LINES_AHEAD: u64 = 4096;
/// How long a line for a file waits for others: one write and one sync serve all that came meanwhile.
const FILE_WAIT: Duration = Duration::from_millis(20);

/// The running lanes.
#[derive(Debug)]
pub struct Lanes {
    threads: Threads,
    tracker: TaskTracker,
    /// Deliver what is there, then end.
    finish: CancellationToken,
    health: Vec<(String, Health)>,
    ways: Vec<Way>,
}

impl Lanes {
    /// Starts a lane for every cursor whose sink is configured. No file sink touches what `own` has
    /// by then.
    ///
    /// # Errors
    /// When a sink cannot even be made, or no thread for it.
    pub fn start(
        cursors: Vec<Cursor>,
        sinks: &[SinkSettings],
        own: &watch::Receiver<Arc<OwnFiles>>,
        metrics: &Arc<Metrics>,
        traces: &Traces,
    ) -> io::Result<Self> {
        let mut lanes = Self {
            threads: Threads::start()?,
            tracker: TaskTracker::new(),
            finish: CancellationToken::new(),
            health: Vec::new(),
            ways: Vec::new(),
        };
        for cursor in cursors {
            let Some(settings) = sinks.iter().find(|sink| sink.name == cursor.sink()) else { continue };
            let shape = Shape::new(settings.format, &settings.redact);
            match &settings.kind {
                SinkKind::Stdout => {
                    let told = (metrics, Deliveries::none());
                    lanes.add(cursor, settings, vec![Stdout::new(shape)?], lines(settings), told);
                }
                SinkKind::File(file) => {
                    let sink = FileSink::new(&settings.name, file.clone(), shape, own.clone());
                    let (plan, ordering) = lines(settings);
                    let plan = Plan { max_wait: FILE_WAIT, ..plan };
                    let told = (metrics, Deliveries::none());
                    lanes.add(cursor, settings, vec![sink], (plan, ordering), told);
                }
                SinkKind::Http(http) => {
                    let sink = Http::new(http, shape).map_err(|error| {
                        io::Error::other(format!("sinks.{}.{}: {error}", settings.name, error.key()))
                    })?;
                    let told = (metrics, traces.deliveries(&settings.name, &http.url));
                    lanes.add(cursor, settings, vec![sink; http.concurrency], requests(settings, http), told);
                }
            }
        }
        Ok(lanes)
    }

    /// Starts a lane with as many sinks as it may have deliveries under way.
    fn add<S: Sink>(
        &mut self,
        cursor: Cursor,
        settings: &SinkSettings,
        sinks: Vec<S>,
        planned: (Plan, Ordering),
        (metrics, spans): (&Arc<Metrics>, Deliveries),
    ) {
        let health = Health::default();
        self.health.push((settings.name.clone(), health.clone()));
        let filter = Arc::new(Filter::new(&settings.filter));
        let (copies, to_copy) = mpsc::channel(1);
        self.ways.push(Way { sink: settings.name.clone(), copies, filter: Arc::clone(&filter) });
        let told = (health, Arc::clone(metrics), spans);
        let lane = Lane::new(cursor, sinks, planned, filter, told, to_copy, self.finish.clone());
        let deliver = async move {
            if AssertUnwindSafe(lane.run()).catch_unwind().await.is_err() {
                // A lane that is gone without a word would look like a sink that keeps up.
                tracing::error!("a bug in a lane: the process aborts");
                std::process::abort();
            }
        };
        self.tracker.spawn_on(deliver, &self.threads.handle());
    }

    /// Counts, until the lanes end, what shows in the events that come from now on: drift, age, when each feed spoke last.
    /// The deviations that were seen are in what it gives.
    pub fn observe(&self, journal: &Journal, metrics: &Arc<Metrics>) -> Drifts {
        let drifts = Drifts::default();
        let observer = Observer::new(journal, Arc::clone(metrics), drifts.clone());
        let observe = self.finish.clone().run_until_cancelled_owned(observer.run());
        self.tracker.spawn_on(observe, &self.threads.handle());
        drifts
    }

    /// Replays to these lanes; those that the last process had under way go on.
    #[must_use]
    pub fn replays(&self, journal: Journal) -> Replays {
        Replays::new(journal, self.ways.clone(), self.tracker.clone(), self.finish.clone())
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

/// Lines are written in order, one batch at a time.
fn lines(settings: &SinkSettings) -> (Plan, Ordering) {
    let plan = Plan {
        concurrency: 1,
        max_events: LINES.0,
        max_bytes: LINES.1,
        max_wait: Duration::ZERO,
        max_ahead: LINES_AHEAD,
        retry: settings.retry.clone(),
    };
    (plan, Ordering::Strict)
}

/// Requests go as their sink's settings say.
fn requests(settings: &SinkSettings, http: &HttpSink) -> (Plan, Ordering) {
    let plan = Plan {
        concurrency: http.concurrency,
        max_events: http.batch.max_events,
        max_bytes: http.batch.max_bytes,
        max_wait: http.batch.max_wait,
        max_ahead: http.max_ahead,
        retry: settings.retry.clone(),
    };
    (plan, http.ordering)
}
