//! One connection, from the PROXY header and the handshake to its end.

use std::future::ready;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::activity::{Activity, Answer, Busy, Due, Watched};
use super::crowd::Visit;
use super::head;
use super::port::{Handler, Phase, Server, Transport, stopping};
use super::proxy::{self, Stop};
use super::unproven::Trial;
use crate::tls::{Alpn, PeerIdentity, Reason, Refused, ServerTls, Session};

/// A client that means it begins within this time: its first bytes come with the connection.
const AT_ONCE: Duration = Duration::from_millis(10);
const MAX_HEAD: usize = 16 * 1024;
/// What a connection may hold of bodies not taken yet; bodies themselves can be larger.
const READ_BUFFER: usize = 64 * 1024;
const MAX_STREAMS: u32 = 256;
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// How long a client that was dismissed may take over its goodbye in HTTP/2.
const DISMISSAL: Duration = Duration::from_secs(1);
/// The word under which its connections are counted.
const NOT_ALLOWED: &str = "not-allowed";
/// The word for heads that are not taken, by hyper or by [`head`].
const BAD_REQUEST: &str = "bad-request";
/// How often a connection that has to go looks whether it can.
const STOPPING_TICK: Duration = Duration::from_millis(100);

/// Serves the connection to its end, whatever that is, and counts it.
pub(super) async fn run<H: Handler>(
    server: &Server<H>,
    stream: TcpStream,
    mut remote: SocketAddr,
    handshake_within: Duration,
    trial: Trial,
    visit: Option<&Visit>,
) {
    // Answers are one small write each; a failure means the peer is gone, which the first read will tell.
    let _ = stream.set_nodelay(true);
    let ended = match &server.transport {
        // There is no handshake to tell who means it: the first request has to.
        Transport::Plain => {
            drop(trial);
            http1(server, stream, None, handshake_within, visit).await
        }
        Transport::Tls(tls) => {
            let deadline = Instant::now() + handshake_within;
            let begun = tokio::select! {
                begun = begin(server, tls, stream, remote, deadline, &trial) => begun,
                () = trial.dismissed() => {
                    let reason = if trial.is_silent() { "silent" } else { "unfinished" };
                    debug!(peer = %remote, reason, "connection closed to make room for another");
                    return server.tally.closed(reason);
                }
                () = stopping(server.phase.clone()) => return server.tally.closed("drain"),
            };
            drop(trial);
            let Some((client, session)) = begun else { return };
            remote = client;
            if session.peer.long_validity() {
                server.tally.warned("validity");
                warn!(peer = %remote, subject = %session.peer.subject(), "the client's certificate is valid for 3 years or more");
            }
            match session.alpn {
                Alpn::Http1 => {
                    http1(server, session.stream, Some(session.peer), server.limits.idle_timeout, visit).await
                }
                Alpn::Http2 => http2(server, session.stream, Some(session.peer)).await,
            }
        }
    };
    match ended {
        Ended::ByPeer => {}
        Ended::ByUs(reason) => {
            debug!(peer = %remote, reason, "connection closed");
            server.tally.closed(reason);
        }
        Ended::Failed(error) if error.is_parse() => {
            debug!(peer = %remote, %error, "not a request");
            server.tally.closed(BAD_REQUEST);
        }
        Ended::Failed(error) => debug!(peer = %remote, %error, "connection broken"),
    }
}

/// The PROXY header, if there has to be one, and the handshake: whose connection it is. `None`: refused and counted.
async fn begin<H>(
    server: &Server<H>,
    tls: &ServerTls,
    mut stream: TcpStream,
    remote: SocketAddr,
    deadline: Instant,
    trial: &Trial,
) -> Option<(SocketAddr, Session)> {
    let client = proxy::client(&mut stream, remote, server.limits.proxies.as_deref(), deadline);
    match heard(trial, client).await {
        Err(stop) => {
            turn_away(server, remote, stop);
            None
        }
        Ok(client) => {
            // A balancer's header is there at once, whatever its client does. Silence beyond the deadline, and failure, are
            // TLS's to tell.
            let _ = heard(trial, timeout_at(deadline, stream.peek(&mut [0]))).await;
            match tls.accept(stream, server.limits.http2, deadline).await {
                Ok(session) => Some((client, session)),
                Err(refused) => {
                    refuse(server, client, &refused);
                    None
                }
            }
        }
    }
}

/// Waits for something that ends when the client speaks. Tells when it does not do so at once, and when it has.
async fn heard<T>(trial: &Trial, spoken: impl Future<Output = T>) -> T {
    let mut spoken = pin!(spoken);
    let at_once = timeout(AT_ONCE, spoken.as_mut()).await;
    let heard = match at_once {
        Ok(heard) => heard,
        Err(_) => {
            trial.fall_silent();
            spoken.await
        }
    };
    trial.speak();
    heard
}

fn turn_away<H>(server: &Server<H>, remote: SocketAddr, stop: Stop) {
    server.tally.closed(match stop {
        Stop::Probe => {
            debug!(peer = %remote, "probed");
            "probe"
        }
        Stop::Timeout => {
            debug!(peer = %remote, "the PROXY header was not finished in time");
            "handshake-timeout"
        }
        Stop::Flaw(flaw) => {
            tell(server, remote, flaw.word(), &flaw.to_string());
            flaw.word()
        }
    });
}

fn refuse<H>(server: &Server<H>, remote: SocketAddr, refused: &Refused) {
    let (reason, detail) = (refused.reason.word(), &refused.detail);
    match refused.reason {
        Reason::Probe => {
            debug!(peer = %remote, "probed");
            return server.tally.closed("probe");
        }
        // Anyone can make these by the thousand.
        Reason::Timeout | Reason::NotTls | Reason::Aborted | Reason::Protocol => {
            debug!(peer = %remote, reason, detail, "handshake failed");
        }
        _ => tell(server, remote, reason, detail),
    }
    server.tally.refused(reason);
    server.tally.closed(if refused.reason == Reason::Timeout { "handshake-timeout" } else { "refused" });
}

/// Logs a refusal that an operator has to act on: something to repair, or a client to keep out.
fn tell<H>(server: &Server<H>, remote: SocketAddr, reason: &'static str, detail: &str) {
    match server.may_log(reason) {
        Some(untold) => warn!(peer = %remote, reason, detail, untold, "client refused"),
        None => debug!(peer = %remote, reason, detail, "client refused"),
    }
}

async fn http1<H: Handler, IO: AsyncRead + AsyncWrite + Unpin>(
    server: &Server<H>,
    io: IO,
    peer: Option<PeerIdentity>,
    first_within: Duration,
    visit: Option<&Visit>,
) -> Ended {
    let activity = match visit {
        Some(visit) => Arc::clone(visit.activity()),
        None => Activity::new(false, first_within),
    };
    let service = service_fn(|mut request: Request<Incoming>| {
        let mut busy = activity.begin();
        if let Some(visit) = visit {
            let seat = visit.seat();
            request.extensions_mut().insert(seat.clone());
            busy.keep(seat);
        }
        respond(&server.handler, peer.clone(), request, busy)
    });
    let io = TokioIo::new(Watched::http1(io, &activity));
    let connection = http1::Builder::new()
        // Replaced by `activity`.
        .header_read_timeout(None)
        .max_header_size(MAX_HEAD)
        .max_buf_size(READ_BUFFER)
        .serve_connection(io, service);
    supervise(server, &activity, peer.as_ref(), pin!(connection), http1::Connection::graceful_shutdown).await
}

async fn http2<H: Handler, IO: AsyncRead + AsyncWrite + Unpin>(
    server: &Server<H>,
    io: IO,
    peer: Option<PeerIdentity>,
) -> Ended {
    let activity = Activity::new(true, server.limits.idle_timeout);
    let gone = CancellationToken::new();
    let streams = Streams { tasks: server.tasks.clone(), gone: gone.clone() };
    let _gone = gone.drop_guard();
    let (handler, requests, client) = (server.handler.clone(), activity.clone(), peer.clone());
    let service = service_fn(move |request| {
        let (handler, peer, busy) = (handler.clone(), client.clone(), requests.begin());
        async move { respond(&handler, peer, request, busy).await }
    });
    let io = TokioIo::new(Watched::http2(io, &activity));
    let connection = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(128)
        .initial_stream_window_size(128 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .max_send_buf_size(READ_BUFFER)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(io, service);
    supervise(server, &activity, peer.as_ref(), pin!(connection), http2::Connection::graceful_shutdown).await
}

/// A request that came after its client had been dismissed; the connection, or in HTTP/2 the stream, ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the client is not allowed any more")]
struct NotAllowed;

/// Hands one request on. `busy` was taken when the head was complete.
fn respond(
    handler: &impl Handler,
    peer: Option<PeerIdentity>,
    mut request: Request<Incoming>,
    busy: Busy,
) -> impl Future<Output = Result<Response<Answer>, NotAllowed>> + Send {
    if peer.as_ref().is_some_and(PeerIdentity::is_dismissed) {
        return ready(Err(NotAllowed)).left_future();
    }
    let http1 = request.version() < Version::HTTP_2;
    if let Some(status) = head::refusal(&request) {
        busy.fault(BAD_REQUEST);
        let mut refusal = Response::new(busy.answer(Body::empty()));
        *refusal.status_mut() = status;
        if http1 {
            refusal.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        return ready(Ok(refusal)).left_future();
    }
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    let answered = handler.handle(request).map(move |mut response| {
        if http1 && busy.is_last() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| busy.answer(body)))
    });
    answered.right_future()
}

/// How a connection ended.
enum Ended {
    ByPeer,
    /// The word it is counted under.
    ByUs(&'static str),
    Failed(hyper::Error),
}

impl Ended {
    /// By this side for a reason, or because of what the peer did, or else by the peer.
    fn orderly(ending: Option<&'static str>, activity: &Activity) -> Self {
        ending.or(activity.fault()).map_or(Self::ByPeer, Self::ByUs)
    }
}

/// Drives the connection, and sees to it that no peer is waited for longer than the limits allow and that it ends when
/// the server does. `finish` asks it to end after what is under way. One timer serves all deadlines: it goes off at
/// least once in the shortest of them, looks at the marks and sets itself anew, so that a request never touches it.
async fn supervise<H, C: Future<Output = hyper::Result<()>>>(
    server: &Server<H>,
    activity: &Activity,
    peer: Option<&PeerIdentity>,
    mut connection: Pin<&mut C>,
    finish: impl Fn(Pin<&mut C>),
) -> Ended {
    let limits = &server.limits;
    let shortest = limits.header_timeout.min(limits.idle_timeout).min(limits.write_timeout);
    let retire_at = limits.max_connection_age.map(|age| Instant::now() + age.mul_f64(1.0 - fastrand::f64() / 10.0));
    let mut phase = server.phase.clone();
    // Why this side wants to end it, and when its patience is over.
    let mut ending = None;
    let mut give_up: Option<Instant> = None;
    let mut alarm = pin!(sleep_until(Instant::now()));
    loop {
        // A sender that is gone can not say `Aborting` any more.
        let current = phase.has_changed().map_or(Phase::Aborting, |_| *phase.borrow_and_update());
        let now = Instant::now();
        if current == Phase::Aborting {
            return Ended::ByUs("drain");
        }
        let dismissed = peer.is_some_and(PeerIdentity::is_dismissed);
        if dismissed && ending != Some(NOT_ALLOWED) {
            ending = Some(NOT_ALLOWED);
            activity.make_last();
            if activity.is_http2() {
                finish(connection.as_mut());
            }
        }
        let retired = retire_at.is_some_and(|at| at <= now);
        if !activity.is_last() && (retired || current >= Phase::Closing) {
            ending = Some(if retired { "age" } else { "drain" });
            activity.make_last();
            if activity.is_http2() {
                finish(connection.as_mut());
            }
        }
        let due = activity.due(limits);
        match due {
            Some((Due::Head, at)) if at <= now => return Ended::ByUs("head-timeout"),
            Some((Due::Write, at)) if at <= now => return Ended::ByUs("write-timeout"),
            Some((Due::Linger, at)) if at <= now => return Ended::orderly(ending, activity),
            Some((Due::Idle, at)) if at <= now && give_up.is_none() => {
                ending = Some("idle");
                give_up = Some(now + limits.write_timeout);
                activity.do_not_linger();
                finish(connection.as_mut());
            }
            _ => {}
        }
        if give_up.is_some_and(|at| at <= now) {
            return Ended::orderly(ending, activity);
        }
        let mut next = now + shortest;
        if dismissed {
            // What is under way may be durable already, so it is answered. The beginning of a request is none yet.
            if !activity.has_requests() && give_up.is_none() {
                give_up = Some(now + DISMISSAL);
                activity.do_not_linger();
                finish(connection.as_mut());
            }
            next = now + STOPPING_TICK;
        }
        if current == Phase::Stopping {
            if activity.is_idle() {
                activity.do_not_linger();
                finish(connection.as_mut());
            }
            next = now + STOPPING_TICK;
        }
        let deadlines = [due.map(|(_, at)| at), give_up, retire_at.filter(|_| !activity.is_last())];
        alarm.as_mut().reset(deadlines.into_iter().flatten().filter(|at| *at > now).fold(next, Instant::min));
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                return match (ended, ending) {
                    (Err(_), _) if peer.is_some_and(PeerIdentity::is_dismissed) => Ended::ByUs(NOT_ALLOWED),
                    (Err(error), _) => activity.fault().map_or(Ended::Failed(error), Ended::ByUs),
                    (Ok(()), ending) => Ended::orderly(ending, activity),
                };
            }
            () = alarm.as_mut() => {}
            _ = phase.changed() => {}
        }
    }
}

/// Runs HTTP/2 requests where the drain can see them, and not longer than their connection.
#[derive(Clone)]
struct Streams {
    tasks: TaskTracker,
    gone: CancellationToken,
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, request: F) {
        let gone = self.gone.clone();
        self.tasks.spawn(async move {
            gone.run_until_cancelled(request).await;
        });
    }
}
