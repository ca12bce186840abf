//! ASAPP's side: makes up events and posts them as ASAPP does. It works against any receiver.
//!
//! [`model`] says what is sent, [`sender`] how one event is sent; [`run`] keeps the rate. The rate is kept open-loop:
//! an event is due at its time however slowly the ones before it are answered, and its latency counts from then. At
//! most [`Settings::connections`] events are under way at once.

pub mod model;
pub mod sender;
mod summary;
#[cfg(test)]
mod tests;

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use model::Model;
use sender::{Credentials, Sender};
pub use summary::{Latency, Summary};

/// What to send, where, and how fast.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `https://HOST[:PORT]/PATH`.
    pub url: String,
    pub credentials: Credentials,
    /// Events a second.
    pub rate: f64,
    /// Ends after so many events, or after so long, or when told to stop: whichever comes first.
    pub events: Option<u64>,
    pub duration: Option<Duration>,
    /// The same seed makes the same events, ids included; only their times are those of the run.
    pub seed: u64,
    /// For one attempt, connecting included.
    pub timeout_ms: u64,
    /// Attempts after the first one.
    pub retries: u32,
    pub connections: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the rate has to be above 0 events a second")]
    Rate,
    #[error("the number of connections has to be above 0")]
    Connections,
    #[error(transparent)]
    Sender(#[from] sender::Error),
}

impl Settings {
    /// ASAPP's defaults: 10 events a second until stopped, a timeout of 5 s, 3 retries, over 8 connections.
    #[must_use]
    pub fn new(url: String, credentials: Credentials) -> Self {
        Self {
            url,
            credentials,
            rate: 10.0,
            events: None,
            duration: None,
            seed: fastrand::u64(..),
            timeout_ms: 5000,
            retries: 3,
            connections: 8,
        }
    }
}

/// Sends events until one of the settings' ends is reached or `stop` is cancelled; then no event and no attempt is
/// begun, those under way are seen to their end. Dropping the future breaks everything off.
///
/// # Errors
/// Only what makes sending impossible from the start; a receiver that does not answer is told in the [`Summary`].
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<Summary, Error> {
    if !(settings.rate > 0.0 && settings.rate.is_finite()) {
        return Err(Error::Rate);
    }
    if settings.connections == 0 {
        return Err(Error::Connections);
    }
    let timeout = Duration::from_millis(settings.timeout_ms);
    let sender = &Sender::new(&settings.url, &settings.credentials, timeout, settings.retries)?;
    let stop = &stop;
    let mut model = Model::new(settings.seed, model::ISSUES_PER_MINUTE);
    let under_way = due(&settings, stop)
        .map(|due| {
            let event = model.next(OffsetDateTime::now_utc());
            async move { (sender.send(event.body, stop).await, due.elapsed()) }
        })
        .buffer_unordered(settings.connections);
    let mut under_way = pin!(under_way);
    let begun = Instant::now();
    let mut summary = Summary::default();
    while let Some((settled, latency)) = under_way.next().await {
        summary.note(settled, latency);
    }
    summary.took = begun.elapsed();
    Ok(summary)
}

/// Yields the moment at which each event is due, at that moment or, behind time, after it.
fn due<'a>(settings: &Settings, stop: &'a CancellationToken) -> impl Stream<Item = Instant> + use<'a> {
    let begun = Instant::now();
    let Settings { rate, events, duration, .. } = *settings;
    stream::unfold(0_u64, move |index| async move {
        // Exact for as many events as anyone will wait for.
        #[allow(clippy::cast_precision_loss)]
        let offset = Duration::try_from_secs_f64(index as f64 / rate).ok()?;
        if events.is_some_and(|events| index >= events) || duration.is_some_and(|duration| offset >= duration) {
            return None;
        }
        let due = begun.checked_add(offset)?;
        stop.run_until_cancelled(tokio::time::sleep_until(due)).await?;
        Some((due, index + 1))
    })
}
