//! Looks at what comes in, beside the path of the events and never in their way: when each feed spoke last, how old
//! events are when they arrive, and schema drift.
//!
//! Up to [`EVENTS_A_SECOND`] events a second are read, the first ones of each second; the rest is counted as not
//! inspected. New fields come with a new version of the sender, in every event of a kind, so what one second misses the
//! next one shows.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use super::drifts::{Drifts, Seen};
use crate::envelope::{Envelope, Facts, Feed, Kind, inspect};
use crate::journal::{Event, Journal, Scan, Watch};
use crate::telemetry::{LineLimit, Metrics};

/// Reading a field-rich event takes some twenty microseconds: this keeps it at half a hundredth of a core.
const EVENTS_A_SECOND: usize = 250;
/// Deviations of one event that are looked up by name; all are counted.
const NAMED_OF_AN_EVENT: usize = 32;
const LOGGED_AN_HOUR: u32 = 50;
const HOUR: Duration = Duration::from_secs(60 * 60);
/// How many of the events before this process's own are looked at for when each feed spoke last.
const RECENT: u64 = 10_000;

/// Sees every event from when it was made on.
pub(super) struct Observer {
    /// What came before.
    recent: Scan,
    /// Up to here.
    last: u64,
    watch: Watch,
    metrics: Arc<Metrics>,
    drifts: Drifts,
    log: LineLimit,
}

impl Observer {
    pub(super) fn new(journal: &Journal, metrics: Arc<Metrics>, drifts: Drifts) -> Self {
        let watch = journal.watch_own();
        let (first, last) = journal.range();
        let recent = journal.scan(first.max((last + 1).saturating_sub(RECENT)));
        // The last one says that no more follow.
        let log = LineLimit::new(LOGGED_AN_HOUR + 1, HOUR);
        Self { recent, last, watch, metrics, drifts, log }
    }

    /// Looks on until the journal closes.
    pub(super) async fn run(mut self) {
        self.recall().await;
        let mut end_of_second = Instant::now();
        let mut left = 0;
        while let Ok((events, skipped)) = self.watch.read().await {
            if end_of_second <= Instant::now() {
                (end_of_second, left) = (Instant::now() + Duration::from_secs(1), EVENTS_A_SECOND);
            }
            self.note(&events);
            let (read, beyond) = events.split_at(left.min(events.len()));
            self.metrics.drift_uninspected.inc_by(skipped + beyond.len() as u64);
            for event in read {
                self.look_at(event);
                // No request on this thread waits for more than one event.
                tokio::task::yield_now().await;
            }
            left -= read.len();
            if left == 0 {
                tokio::time::sleep_until(end_of_second).await;
                self.metrics.drift_uninspected.inc_by(self.watch.skip());
            }
        }
    }

    /// A restart must not make a feed look as if it had never spoken, nor as if it had just spoken.
    async fn recall(&mut self) {
        while self.recent.next() <= self.last {
            let Ok(events) = self.recent.read().await else { return };
            self.note(&events);
            tokio::task::yield_now().await;
        }
    }

    /// When each feed spoke last: the newest of these events, in the journal's order, for the clock may be set back.
    fn note(&self, events: &[Event]) {
        let mut heard = HashSet::new();
        for event in events.iter().rev() {
            let feed = Feed::of(event.name());
            if heard.insert(feed) {
                let at = event.received_at().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.metrics.feed_last_event.get_or_create(&[("feed", feed.short())]).set(at.as_secs_f64());
            }
        }
    }

    fn look_at(&mut self, event: &Event) {
        // It was parsed once; a body that is not an envelope any more would be damage, which readers of the journal find.
        let Ok(envelope) = Envelope::parse(event.body_bytes()) else { return };
        let happened = Facts::read(envelope.feed(), envelope.body()).event_time;
        let feed = envelope.feed().short();
        // A body of a mebibyte can have half a million.
        let (mut count, mut of_kind) = (0, BTreeMap::<_, u64>::new());
        inspect(&envelope, |drift| {
            *of_kind.entry(drift.kind.label()).or_default() += 1;
            count += 1;
            if count <= NAMED_OF_AN_EVENT
                && let Some(new) = self.drifts.note(feed, drift, event.received_at())
            {
                log(&mut self.log, &new);
            }
        });
        let metrics = &self.metrics;
        for (kind, count) in of_kind {
            metrics.drift.get_or_create(&[("feed", feed), ("kind", kind)]).inc_by(count);
        }
        if let Some(happened) = happened {
            // An event from the future has a wrong clock, not a lag.
            let lag = event.received_at().duration_since(SystemTime::from(happened)).unwrap_or_default();
            self.metrics.feed_event_lag.get_or_create(&[("feed", feed)]).observe(lag.as_secs_f64());
        }
    }
}

/// Whatever senders make up, the log gets so many lines.
fn log(limit: &mut LineLimit, new: &Seen) {
    if limit.take().is_none() {
        return;
    }
    if limit.is_spent() {
        tracing::warn!(
            "many new deviations from ASAPP's documentation: no more of them are logged within the hour, see `status`"
        );
        return;
    }
    let Seen { feed, kind, path, .. } = new;
    let name = new.name();
    if *kind == Kind::ApiVersion {
        tracing::warn!(feed, %path, "events of a new major api_version arrive: fields may mean something else now");
    } else {
        let (kind, name) = (kind.label(), name.as_deref());
        tracing::info!(feed, kind, %path, name, "events deviate from ASAPP's documentation");
    }
}
