//! Connections: a permit, accept, the PROXY header, a timed handshake, HTTP, deadlines, and a drain that ends in time.
//!
//! A permit is taken before a connection is accepted: when all are out, newcomers wait in the kernel's backlog instead of
//! being accepted and dropped, unless one that has not proved who it is can make room ([`unproven`]), or, on the operators'
//! port, the one that has been idle longest ([`crowd`]). Every wait on a peer has a
//! deadline ([`Limits`]); [`connection`] enforces them.

mod activity;
mod connection;
mod crowd;
mod files;
mod frames;
mod head;
mod proxy;
mod refusals;
mod unproven;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tower::Service as _;
use tracing::{debug, info, warn};

pub use crowd::Seat;
pub use files::{admin_connections_within_limits, connections_within_limits, open_files, open_files_for};

use crate::config;
use crate::telemetry::Metrics;
use crate::tls::ServerTls;
use crowd::Crowd;
use refusals::Refusals;
use unproven::Unproven;

/// Connections that the kernel may keep waiting; it caps this itself (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
const SHORTEST_HANDSHAKE: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// How many connections give their files back when there are none left.
const DISMISSED_AT_ONCE: usize = 32;
/// What a connection that makes room may take to end.
const LONGEST_DISMISSAL: Duration = Duration::from_millis(100);
/// Until another look, where some may make room soon.
const NEXT_LOOK: Duration = Duration::from_millis(10);

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
    async fn dismissal(&self) {
        match self {
            Self::Plain => std::future::pending().await,
            Self::Tls(tls) => tls.dismissal().await,
        }
    }
}

/// From whom, how much and how long.
#[derive(Debug, Clone)]
pub struct Limits {
    /// TLS connections come from these networks only and begin with a PROXY header; `None`: from anywhere, without one.
    pub proxies: Option<Vec<IpNet>>,
    pub max_connections: usize,
    /// `None`: when all connections are in use, only unproven ones make room. Else the connection that has been idle longest
    /// does, and at most so many requests (fewer than connections) can protect theirs from that ([`Seat`]).
    pub seats: Option<usize>,
    /// In total, PROXY header included, when less than half of the connections are in use; see [`Limits::handshake_within`]. Without TLS: up to
    /// the first request.
    pub handshake_timeout: Duration,
    /// From a head's first byte to its end.
    pub header_timeout: Duration,
    /// Without a request.
    pub idle_timeout: Duration,
    /// How long a peer may take no bytes at all while there are some for it.
    pub write_timeout: Duration,
    /// After it (less up to a tenth, so that a fleet does not come back at once), the next answer is the last.
    pub max_connection_age: Option<Duration>,
    pub http2: bool,
}

impl Limits {
    /// Of the event port.
    #[must_use]
    pub fn of(listen: &config::Listen) -> Self {
        Self {
            proxies: listen.proxies.clone(),
            max_connections: listen.max_connections,
            seats: None,
            handshake_timeout: listen.handshake_timeout,
            header_timeout: listen.header_timeout,
            idle_timeout: listen.idle_timeout,
            write_timeout: Duration::from_secs(10),
            max_connection_age: Some(listen.max_connection_age),
            http2: listen.http2,
        }
    }

    /// Of the admin port: few connections, which may live long, but not idle: anyone can make them. A quarter of them
    /// serves operators, the rest is for probes.
    #[must_use]
    pub fn admin(max_connections: usize) -> Self {
        Self {
            proxies: None,
            max_connections,
            seats: Some((max_connections / 4).max(1)),
            handshake_timeout: Duration::from_secs(2),
            header_timeout: Duration::from_secs(2),
            idle_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            max_connection_age: None,
            http2: false,
        }
    }

    /// The deadline of a handshake that begins while `used` connections are open.
    ///
    /// Beyond half of all it shrinks, down to a second when the last one is taken: a flood of silent connections then
    /// makes room as fast as it fills it, and a client that means it, done within milliseconds, still gets in.
    fn handshake_within(&self, used: usize) -> Duration {
        let half = self.max_connections / 2;
        let shortest = SHORTEST_HANDSHAKE.min(self.handshake_timeout);
        let beyond = u32::try_from(used.saturating_sub(half)).unwrap_or(u32::MAX);
        let room = u32::try_from(self.max_connections - half).unwrap_or(u32::MAX).max(1);
        self.handshake_timeout - (self.handshake_timeout - shortest) * beyond.min(room) / room
    }
}

/// Listens on `address`; port 0 takes a free one (`local_addr` says which).
///
/// # Errors
/// The address is taken, not of this machine, or not permitted.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
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

/// Serves `handler` until `phase` says to stop and every connection is gone. Requests over TLS carry the
/// [`PeerIdentity`](crate::tls::PeerIdentity) in their extensions. Without `metrics` nothing is counted (the admin port).
pub async fn serve(
    listener: TcpListener,
    transport: Transport,
    handler: impl Handler,
    limits: Limits,
    metrics: Option<Arc<Metrics>>,
    phase: watch::Receiver<Phase>,
) {
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let crowd = limits.seats.map(Crowd::new);
    let tasks = TaskTracker::new();
    let (relay, relayed) = watch::channel(*phase.borrow());
    let woken = wake_connections(phase, transport.clone(), relay);
    let server = Arc::new(Server {
        transport,
        handler,
        limits,
        crowd,
        tally: Tally(metrics),
        refusals: Refusals::default(),
        unproven: Unproven::default(),
        phase: relayed.clone(),
        tasks: tasks.clone(),
    });
    let serving = async {
        tokio::select! {
            () = stopping(relayed) => {}
            () = accept(&listener, &permits, &server) => {}
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    };
    let mut serving = pin!(serving);
    tokio::select! {
        () = serving.as_mut() => return,
        () = woken => {}
    }
    serving.await;
}

/// Hands on what the connections wait for, the phase and the news that some clients were dismissed, as one thing: waiting
/// for two would cost each request. Returns when no one is left to tell the phase.
async fn wake_connections(mut phase: watch::Receiver<Phase>, transport: Transport, relay: watch::Sender<Phase>) {
    loop {
        tokio::select! {
            changed = phase.changed() => match changed {
                Ok(()) => _ = relay.send_replace(*phase.borrow_and_update()),
                Err(_) => return,
            },
            () = transport.dismissal() => relay.send_modify(|_| ()),
        }
    }
}

/// What all connections of a server share.
struct Server<H> {
    transport: Transport,
    handler: H,
    limits: Limits,
    crowd: Option<Arc<Crowd>>,
    tally: Tally,
    refusals: Refusals,
    unproven: Unproven,
    /// Also marked as changed when clients were dismissed.
    phase: watch::Receiver<Phase>,
    /// Every task of every connection, so that the drain can wait for all.
    tasks: TaskTracker,
}

impl<H> Server<H> {
    fn can_make_room(&self) -> bool {
        self.crowd.is_some() || !self.unproven.is_empty()
    }

    /// Ends about as many connections as that; how many. Their room is free a moment later.
    fn make_room(&self, most: usize) -> usize {
        match &self.crowd {
            Some(crowd) => crowd.make_room(most, tokio::time::Instant::now()),
            None => self.unproven.dismiss(most, std::time::Instant::now()),
        }
    }
}

/// Accepts for ever. One that is cancelled here, between permit and task, was never read from.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>, server: &Arc<Server<impl Handler>>) {
    let mut backoff: Option<Duration> = None;
    let mut told = false;
    loop {
        let permit = match Arc::clone(permits).try_acquire_owned() {
            Ok(permit) => Some(permit),
            // Taken once there is a newcomer.
            Err(_) if server.can_make_room() => None,
            Err(_) => Arc::clone(permits).acquire_owned().await.ok(),
        };
        match listener.accept().await {
            Ok((stream, remote)) => {
                backoff = None;
                if std::mem::take(&mut told) {
                    info!("accepting connections again");
                }
                let permit = match permit {
                    Some(permit) => permit,
                    None => room(permits, server).await,
                };
                let used = server.limits.max_connections - permits.available_permits();
                begin(server, stream, remote, server.limits.handshake_within(used), permit);
            }
            // The next one in the queue can be fine.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {
                server.tally.accept_error();
                debug!(%error, "a connection was gone before it was accepted");
            }
            // The machine or the process is short of something (files, memory). The listener stays readable, so only time
            // helps, or the end of others.
            Err(error) => {
                server.tally.accept_error();
                // Connections that make room end it for a moment, as often as others come.
                if backoff.is_none() && server.refusals.tell("accept", std::time::Instant::now()).is_some() {
                    told = true;
                    warn!(%error, "cannot accept connections, trying on");
                }
                let wait = match backoff {
                    // Time for those that have just come to begin: they are not to go first. On Linux an error may also come
                    // when nobody is waiting.
                    None => FIRST_BACKOFF,
                    Some(last) => match server.make_room(DISMISSED_AT_ONCE) {
                        0 => LONGEST_BACKOFF.min(last * 2),
                        _ => FIRST_BACKOFF,
                    },
                };
                backoff = Some(wait);
                sleep(wait).await;
            }
        }
    }
}

/// A permit for a newcomer while all are out: that of a connection which makes room, or of the next to end.
async fn room(permits: &Arc<Semaphore>, server: &Server<impl Handler>) -> OwnedSemaphorePermit {
    loop {
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return permit;
        }
        let soon = server.make_room(1) == 0 && server.can_make_room();
        let look_again = async {
            tokio::select! {
                () = server.unproven.decided(), if soon => {}
                () = sleep(if soon { NEXT_LOOK } else { LONGEST_DISMISSAL }) => {}
            }
        };
        // The one that was to go may have proved itself at that moment: then another one has to. The semaphore is never
        // closed.
        tokio::select! {
            biased;
            Ok(permit) = Arc::clone(permits).acquire_owned() => return permit,
            () = look_again => {}
        }
    }
}

fn begin(
    server: &Arc<Server<impl Handler>>,
    stream: TcpStream,
    remote: SocketAddr,
    handshake_within: Duration,
    permit: OwnedSemaphorePermit,
) {
    let trial = server.unproven.enter();
    // At once, so that it can be found before its task has run.
    let visit = server.crowd.as_ref().map(|crowd| crowd.enter(handshake_within));
    let server = Arc::clone(server);
    let tasks = server.tasks.clone();
    tasks.spawn(async move {
        let open = server.tally.accepted();
        let run = connection::run(&server, stream, remote, handshake_within, trial, visit.as_ref());
        match &visit {
            None => run.await,
            Some(visit) => tokio::select! {
                () = run => {}
                () = visit.ended() => debug!(peer = %remote, "connection closed to make room for another"),
            },
        }
        drop(open);
        drop(permit);
    });
}

/// Returns when the server is to stop, or no one is left to say so.
async fn stopping(mut phase: watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase >= Phase::Stopping).await;
}

/// Counts, where there is something to count with.
struct Tally(Option<Arc<Metrics>>);

/// An open connection, counted until dropped.
struct Open(Option<Arc<Metrics>>);

impl Tally {
    fn accepted(&self) -> Open {
        if let Some(metrics) = &self.0 {
            metrics.connections_accepted.inc();
            metrics.connections.inc();
        }
        Open(self.0.clone())
    }

    fn accept_error(&self) {
        if let Some(metrics) = &self.0 {
            metrics.accept_errors.inc();
        }
    }

    fn closed(&self, reason: &'static str) {
        if let Some(metrics) = &self.0 {
            metrics.connections_closed.get_or_create(&[("reason", reason)]).inc();
        }
    }

    fn refused(&self, reason: &'static str) {
        if let Some(metrics) = &self.0 {
            metrics.tls_refused.get_or_create(&[("reason", reason)]).inc();
        }
    }

    fn warned(&self, reason: &'static str) {
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

#[cfg(test)]
mod tests;
