//! What the connections of one port share: transport, handler, limits, phase and counters.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tower::Service as _;

use super::crowd::Crowd;
use super::limits::Limits;
use super::unproven::Unproven;
use crate::telemetry::{LineLimit, Metrics};
use crate::tls::ServerTls;

/// At most one line in this time for each reason.
const LOGGED_EVERY: Duration = Duration::from_secs(10);

/// How far a server is on its way down. It only ever goes forward; a sender that is gone means [`Aborting`](Phase::Aborting).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// Still takes connections and requests; every answer tells its client to go elsewhere next time.
    Closing,
    /// The listener is closed, idle connections too; requests under way are finished.
    Stopping,
    /// Time is up: everything is dropped.
    Aborting,
}

/// What connections arrive in.
#[derive(Debug, Clone)]
pub enum Transport {
    Plain,
    Tls(Arc<ServerTls>),
}

impl Transport {
    /// Back when clients were dismissed since the last time.
    pub(super) async fn dismissal(&self) {
        match self {
            Self::Plain => std::future::pending().await,
            Self::Tls(tls) => tls.dismissal().await,
        }
    }
}

/// What a server hands its requests to. Cheap to clone.
pub trait Handler: Clone + Send + Sync + 'static {
    fn handle(&self, request: Request<Incoming>) -> impl Future<Output = Response> + Send;
}

impl Handler for Router {
    async fn handle(&self, request: Request<Incoming>) -> Response {
        let Ok(response) = self.clone().call(request).await;
        response
    }
}

/// What all connections of a server share.
pub(super) struct Server<H> {
    pub(super) transport: Transport,
    pub(super) handler: H,
    pub(super) limits: Limits,
    pub(super) crowd: Option<Arc<Crowd>>,
    pub(super) tally: Tally,
    /// By reason: anyone can make refusals by the thousand, and the log must outlive that.
    pub(super) log: Mutex<BTreeMap<&'static str, LineLimit>>,
    pub(super) unproven: Unproven,
    /// Also marked as changed when clients were dismissed.
    pub(super) phase: watch::Receiver<Phase>,
    /// Every task of every connection, so that the drain can wait for all.
    pub(super) tasks: TaskTracker,
}

impl<H> Server<H> {
    /// Whether a line for this reason may be logged; see [`LineLimit::take`].
    pub(super) fn may_log(&self, reason: &'static str) -> Option<u64> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.entry(reason).or_insert(LineLimit::new(1, LOGGED_EVERY)).take()
    }

    pub(super) fn can_make_room(&self) -> bool {
        self.crowd.is_some() || !self.unproven.is_empty()
    }

    /// Ends about as many connections as that; how many. Their room is free a moment later.
    pub(super) fn make_room(&self, most: usize) -> usize {
        match &self.crowd {
            Some(crowd) => crowd.make_room(most, tokio::time::Instant::now()),
            None => self.unproven.dismiss(most, std::time::Instant::now()),
        }
    }
}

/// Returns when the server is to stop, or no one is left to say so.
pub(super) async fn stopping(mut phase: watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase >= Phase::Stopping).await;
}

/// Counts, where there is something to count with.
pub(super) struct Tally(pub(super) Option<Arc<Metrics>>);

/// An open connection, counted until dropped.
pub(super) struct Open(Option<Arc<Metrics>>);

impl Tally {
    pub(super) fn accepted(&self) -> Open {
        if let Some(metrics) = &self.0 {
            metrics.connections_accepted.inc();
            metrics.connections.inc();
        }
        Open(self.0.clone())
    }

    pub(super) fn accept_error(&self) {
        if let Some(metrics) = &self.0 {
            metrics.accept_errors.inc();
        }
    }

    pub(super) fn closed(&self, reason: &'static str) {
        if let Some(metrics) = &self.0 {
            metrics.connections_closed.get_or_create(&[("reason", reason)]).inc();
        }
    }

    pub(super) fn refused(&self, reason: &'static str) {
        if let Some(metrics) = &self.0 {
            metrics.tls_refused.get_or_create(&[("reason", reason)]).inc();
        }
    }

    pub(super) fn warned(&self, reason: &'static str) {
        if let Some(metrics) = &self.0 {
            metrics.tls_warnings.get_or_create(&[("reason", reason)]).inc();
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(metrics) = &self.0 {
            metrics.connections.dec();
        }
    }
}
