//! Looks for schema drift, beside the path of the events and never in their way.
//!
//! Unknown feeds and event types are told of every event. Its fields are read for up to [`EVENTS_A_SECOND`] events a
//! second; of more, the first ones, and the rest is counted as not inspected. New fields come with a new version of the
//! sender, in every event of a kind, so what one second misses the next one shows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::envelope::{Drift, Envelope, Kind, inspect};
use crate::journal::{Event, Watch};
use crate::telemetry::Metrics;

/// Reading a field-rich event takes some microseconds: this keeps it at about a hundredth of a core.
const EVENTS_A_SECOND: u32 = 2_000;

/// Counts drift until the journal closes.
pub(super) async fn watch_drift(mut events: Watch, metrics: Arc<Metrics>) {
    let mut second = Instant::now();
    let mut left = EVENTS_A_SECOND;
    let mut told = HashSet::new();
    while let Ok((events, skipped)) = events.read().await {
        metrics.drift_uninspected.inc_by(skipped);
        for event in &events {
            if second.elapsed() >= Duration::from_secs(1) {
                (second, left) = (Instant::now(), EVENTS_A_SECOND);
            }
            if left == 0 {
                metrics.drift_uninspected.inc();
                continue;
            }
            left -= 1;
            look_at(event, &metrics, &mut told);
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
