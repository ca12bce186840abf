//! ASAPP's side: makes up events and posts them as ASAPP does. It works against any receiver.
//!
//! [`model`] says what happens, [`pace`] when that is due, [`faults`] what is done to it on the way, [`sender`] how one
//! event is sent over a [`link`]; [`ledger`] and [`summary`] tell what became of it. [`run`] puts them together:
//!
//! ```text
//! model → faults → (when due) queue → senders, one a connection → ledger, summary
//! ```
//!
//! Everything up to the queue happens in one place and in order, so that a seed repeats a run. The load is open-loop: an
//! event is due at its time however slowly those before it are answered, and its latency counts from then, the time it
//! waited for a free connection included. No event is sent before it is due, and few more than 0.1 ms after it unless the
//! machine or the receiver is at its limit.

mod control;
pub mod credentials;
pub mod faults;
pub mod ledger;
mod link;
pub mod model;
pub mod pace;
pub mod sender;
mod summary;
#[cfg(test)]
mod tests;
pub mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::{Mutex, mpsc};
use tokio::task::{JoinError, JoinSet};

pub use control::Control;
use credentials::Credentials;
use faults::{Faults, Saboteur};
use ledger::{Entry, Ledger};
use link::{Line, Protocol, Target};
use model::Model;
use pace::Pace;
use sender::{Job, Manner, Sender, Settled, Settlement};
pub use summary::{Count, Latency, Summary};

/// How soon the end of a run is noticed while no event is due.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to send, where, and how fast.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `https://HOST[:PORT]/PATH`.
    pub url: String,
    pub credentials: Credentials,
    pub pace: Pace,
    /// Ends after so many events, or after so long, or when told to stop: whichever comes first. What was due by then but
    /// had to wait is still sent, for as long as one more attempt may take.
    pub events: Option<u64>,
    pub duration: Option<Duration>,
    /// The same seed makes the same events, ids included, with the same faults; only their times are those of the run.
    pub seed: u64,
    /// For one attempt, connecting included.
    pub timeout_ms: u64,
    /// Attempts after the first one.
    pub retries: u32,
    pub connections: usize,
    pub protocol: Protocol,
    pub faults: Faults,
    /// Gets a line for each sending; a file of that name is written anew.
    pub ledger: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the rate has to be above 0 events a second")]
    Rate,
    #[error("the issues a minute and the speed have to be above 0")]
    Company,
    #[error("the number of connections has to be above 0")]
    Connections,
    #[error("each fault has to be a fraction from 0 to 1")]
    Faults,
    #[error(transparent)]
    Target(#[from] link::Error),
    #[error(transparent)]
    NoHttp2(link::Failure),
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error("latencies cannot be counted")]
    Latency(#[from] hdrhistogram::CreationError),
    #[error("a sender has failed, which is a bug")]
    Sender(#[from] JoinError),
}

impl Settings {
    /// ASAPP's defaults: 10 events a second until stopped, a timeout of 5 s, 3 retries, over 8 connections.
    #[must_use]
    pub fn new(url: String, credentials: Credentials) -> Self {
        Self {
            url,
            credentials,
            pace: Pace::Rate(10.0),
            events: None,
            duration: None,
            seed: fastrand::u64(..),
            timeout_ms: 5000,
            retries: 3,
            connections: 8,
            protocol: Protocol::KeepAlive,
            faults: Faults::default(),
            ledger: None,
        }
    }

    fn check(&self) -> Result<(), Error> {
        let is_positive = |number: f64| number > 0.0 && number.is_finite();
        match self.pace {
            Pace::Rate(rate) if !is_positive(rate) => Err(Error::Rate),
            Pace::Company { issues_per_minute, speed } if !is_positive(issues_per_minute) || !is_positive(speed) => {
                Err(Error::Company)
            }
            _ if self.connections == 0 => Err(Error::Connections),
            _ if !self.faults.are_fractions() => Err(Error::Faults),
            _ => Ok(()),
        }
    }
}

/// Sends events until one of the settings' ends is reached or `control` ends it. Dropping the future ends it at once,
/// the ledger as it stands.
///
/// # Errors
/// What makes sending impossible from the start, and a ledger that cannot be written. A receiver that does not answer
/// is told in the [`Summary`].
pub async fn run(settings: Settings, control: Control) -> Result<Summary, Error> {
    settings.check()?;
    let target = Target::new(&settings.url, &settings.credentials, settings.protocol)?;
    let timeout = Duration::from_millis(settings.timeout_ms);
    let lines = Line::all(settings.protocol, settings.connections);
    if let Some(line) = lines.first() {
        let checked = control.unless_stopped(line.check(&target, timeout)).await;
        checked.unwrap_or(Ok(())).map_err(Error::NoHttp2)?;
    }
    let mut summary = Summary::new()?;
    let mut ledger = settings.ledger.as_deref().map(Ledger::create).transpose()?;

    let (jobs, queue) = mpsc::channel(lines.len());
    let (settled, mut settlements) = mpsc::channel(lines.len());
    let queue = Arc::new(Mutex::new(queue));
    let manner = Arc::new(Manner::new(target, timeout, settings.retries, ledger.is_some(), control.clone()));
    let mut tasks = JoinSet::new();
    for line in lines {
        let (manner, queue, settled) = (Arc::clone(&manner), Arc::clone(&queue), settled.clone());
        tasks.spawn(Sender { manner, line, queue, settled }.work());
    }
    // From here on a channel ends with those at its other side.
    drop((queue, settled));

    let begun = Instant::now();
    let (mut last, mut behind) = (begun, Duration::ZERO);
    let collected = async {
        while let Some(Settlement { sending, due, begun, settled, latency, sha256 }) = settlements.recv().await {
            summary.note(&settled, sending.hit, latency);
            if due >= last && !sending.hit.duplicate {
                (last, behind) = (due, begun.saturating_duration_since(due));
            }
            if let (Some(ledger), Some(sha256)) = (&mut ledger, sha256) {
                let Settled { outcome, attempts, .. } = settled;
                ledger.note(&Entry { event_id: sending.event_id, outcome, attempts, latency, sha256 })?;
            }
            control.settled.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, Error>(())
    };
    let (pace, stopping) = (settings.pace, control.clone());
    let feeding = tokio::task::spawn_blocking(move || feed(&settings, begun, &jobs, &stopping));
    collected.await?;
    let offered = feeding.await?;
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    summary.took = begun.elapsed();
    summary.settle_rates(pace.asked(offered.events, offered.last), offered.last, behind);
    if let Some(ledger) = ledger {
        ledger.finish()?;
    }
    Ok(summary)
}

/// What was due in a run.
struct Offered {
    events: u64,
    /// When the last of them was due, from the start.
    last: Duration,
}

/// Makes up events and hands them on when they are due or, behind time, when a sender is free. On a thread of its own,
/// which sleeps more exactly than tokio's timers do.
fn feed(settings: &Settings, begun: Instant, jobs: &mpsc::Sender<Job>, control: &Control) -> Offered {
    let mut model = Model::new(settings.seed, settings.pace.issues_per_minute());
    let mut saboteur = Saboteur::new(settings.faults, settings.seed);
    let start = OffsetDateTime::now_utc();
    let mut offered = Offered { events: 0, last: Duration::ZERO };
    // While the run is to stop, what is handed on is not begun.
    let hand_on = |sending, due| jobs.blocking_send(Job::new(sending, due, jobs.clone())).is_ok();
    let patience = Duration::from_millis(settings.timeout_ms);
    let end = settings.duration.and_then(|duration| begun.checked_add(duration.saturating_add(patience)));
    let is_over = || control.is_stopping() || jobs.is_closed() || end.is_some_and(|end| end <= Instant::now());
    let mut due = begun;
    while settings.events.is_none_or(|events| offered.events < events) {
        let Some(next) = settings.pace.due(offered.events, model.at()) else { break };
        if settings.duration.is_some_and(|duration| next.sent >= duration) {
            break;
        }
        let happens = time::Duration::try_from(next.happens).ok().and_then(|happens| start.checked_add(happens));
        let (Some(when), Some(happens)) = (begun.checked_add(next.sent), happens) else { break };
        due = when;
        let sendings = saboteur.take(model.next(happens));
        while !is_over() && !due.saturating_duration_since(Instant::now()).is_zero() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()).min(LOOK_EVERY));
        }
        if is_over() {
            break;
        }
        offered = Offered { events: offered.events + 1, last: next.sent };
        for sending in sendings {
            hand_on(sending, due);
        }
    }
    for sending in saboteur.rest() {
        hand_on(sending, due);
    }
    offered
}
