//! Looks for schema drift, beside the path of the events and never in their way.
//!
//! Up to [`EVENTS_A_SECOND`] events a second are read, the first ones of each second; the rest is counted as not
//! inspected. New fields come with a new version of the sender, in every event of a kind, so what one second misses the
//! next one shows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::envelope::{Drift, Envelope, Kind, inspect};
use crate::journal::{Event, Watch};
use crate::telemetry::Metrics;

/// Reading a field-rich event takes some ten microseconds: this keeps it at about a hundredth of a core.
const EVENTS_A_SECOND: usize = 1_000;

/// Counts drift until the journal closes.
pub(super) async fn watch_drift(mut watch: Watch, metrics: Arc<Metrics>) {
    let mut end_of_second = Instant::now();
    let mut left = 0;
    let mut told = HashSet::new();
    while let Ok((events, skipped)) = watch.read().await {
        if end_of_second <= Instant::now() {
            (end_of_second, left) = (Instant::now() + Duration::from_secs(1), EVENTS_A_SECOND);
        }
        let (read, beyond) = events.split_at(left.min(events.len()));
        metrics.drift_uninspected.inc_by(skipped + beyond.len() as u64);
        for event in read {
            look_at(event, &metrics, &mut told);
            // No request on this thread waits for more than one event.
            tokio::task::yield_now().await;
        }
        left -= read.len();
        if left == 0 {
            tokio::time::sleep_until(end_of_second).await;
            metrics.drift_uninspected.inc_by(watch.skip());
        }
    }
}

fn look_at(event: &Event, metrics: &Metrics, told: &mut HashSet<(&'static str, Kind)>) {
    // It was parsed once; a body that is not an envelope any more would be damage, which readers of the journal find.
    let Ok(envelope) = Envelope::parse(event.body_bytes()) else { return };
    let feed = envelope.feed().short();
    inspect(&envelope, |drift: Drift| {
        let Drift { kind, path } = drift;
        metrics.drift.get_or_create(&[("feed", feed), ("kind", kind.label())]).inc();
        if !told.insert((feed, kind)) {
            return;
        }
        if kind == Kind::ApiVersion {
            tracing::warn!(feed, %path, "events of a new major api_version arrive: fields may mean something else now");
        } else {
            tracing::info!(feed, kind = kind.label(), %path, "events deviate from ASAPP's documentation");
        }
    });
}
