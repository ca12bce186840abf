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

use futures_util::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use drifts::{Drifts, Seen};
pub use filter::Filter;
pub use health::{Condition, Health};
pub use replay::{Bound, DEFAULT_RATE, Progress, ReplayError, Replays, Request, State as ReplayState};

use crate::config::Sink as SinkSettings;
use crate::journal::{Cursor, Journal};
use crate::shape::Shape;
use crate::sinks::{Opened, Opening, OwnFiles, Sink};
use crate::telemetry::Metrics;
use crate::traces::{Deliveries, Traces};
use lane::Lane;
use observer::Observer;
use replay::Way;
use threads::Threads;

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
            let spans = settings.kind.settings().target();
            let spans = spans.map_or_else(Deliveries::none, |target| traces.deliveries(&settings.name, target));
            let opening = Opening { name: &settings.name, shape, own };
            settings.kind.open(opening, Starting { lanes: &mut lanes, cursor, settings, metrics, spans })?;
        }
        Ok(lanes)
    }

    /// Starts a lane with as many sinks as it may have deliveries under way.
    fn add<S: Sink>(
        &mut self,
        cursor: Cursor,
        settings: &SinkSettings,
        sinks: Vec<S>,
        (metrics, spans): (&Arc<Metrics>, Deliveries),
    ) {
        let health = Health::default();
        self.health.push((settings.name.clone(), health.clone()));
        let filter = Arc::new(Filter::new(&settings.filter));
        let (copies, to_copy) = mpsc::channel(1);
        self.ways.push(Way { sink: settings.name.clone(), copies, filter: Arc::clone(&filter) });
        let planned = (settings.kind.settings().plan(), settings.retry.clone());
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

/// A lane that lacks nothing but its sinks.
struct Starting<'a> {
    lanes: &'a mut Lanes,
    cursor: Cursor,
    settings: &'a SinkSettings,
    metrics: &'a Arc<Metrics>,
    spans: Deliveries,
}

impl Opened for Starting<'_> {
    fn take<S: Sink>(self, sinks: Vec<S>) {
        self.lanes.add(self.cursor, self.settings, sinks, (self.metrics, self.spans));
    }
}
