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
mod limits;
mod port;
mod proxy;
mod seat;
mod unproven;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

pub use self::files::{admin_connections_within_limits, connections_within_limits, open_files, open_files_for};
pub use self::limits::Limits;
pub use self::port::{Handler, Phase, Transport};
pub use self::seat::Seat;

use self::crowd::Crowd;
use self::port::{Server, Tally, stopping};
use self::unproven::Unproven;
use crate::telemetry::Metrics;

/// Connections that the kernel may keep waiting; it caps this itself (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// How many connections give their files back when there are none left.
const DISMISSED_AT_ONCE: usize = 32;
/// What a connection that makes room may take to end.
const LONGEST_DISMISSAL: Duration = Duration::from_millis(100);
/// Until another look, where some may make room soon.
const NEXT_LOOK: Duration = Duration::from_millis(10);

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
        log: Mutex::default(),
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
                if backoff.is_none() && server.may_log("accept").is_some() {
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

#[cfg(test)]
mod tests;
