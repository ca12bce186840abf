//! TLS ([`trust`]) and HTTP/1.1 to other systems: the targets of HTTP sinks, a collector of traces, a monitoring port. The
//! commands' client of the admin port is another one, as its answers may be large or have no end; so is the simulator's,
//! which breaks requests off on purpose.
//!
//! The other side has no say in how much work an exchange is, how long it takes, or how long a connection is kept:
//! - An exchange brings a bounded number of bytes, of interim answers and of pieces of a body ([`wire`], [`heads`]), and
//!   each part of it has a deadline.
//! - **A status that was seen counts.** The other side has acted when it sends its status line. Whatever comes after it, too
//!   many fields or too large ones, bytes that no field may have, a body that breaks off or never ends, takes nothing back;
//!   an answer before the end of the request is one too.
//! - A connection is used for requests until it is `max_age` old. The next one looks the name up again.
//!
//! No task stands behind a connection: the task that awaits an exchange drives it, and drops the connection with it. The
//! library of HTTP clients that would do less with more code has neither these bounds nor a way to add them.

mod connect;
mod heads;
pub(crate) mod trust;
mod wire;

use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{ACCEPT, HOST, HeaderValue};
use hyper::http::uri::{PathAndQuery, Uri};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig, OtherError};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::task::TaskTracker;

use self::connect::{Connector, Stream};
use self::wire::{Meter, Wire};

/// How long a connection without requests is kept. Shorter than most servers do, so that seldom a request meets a
/// connection that is just being closed.
const IDLE: Duration = Duration::from_secs(30);
/// How often unused connections are looked at, while there are any.
const SWEEP: Duration = Duration::from_secs(5);
/// A larger head is not read to its end.
const HEAD_BYTES: usize = 64 << 10;
/// So much of an answer is read once its status is known, so long, and in so many pieces, for the connection to be used
/// again.
const REST_BYTES: usize = 64 << 10;
const REST_TIME: Duration = Duration::from_secs(1);
const REST_PIECES: usize = 256;

/// A client of one server, with its connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Client(Arc<Shared>);

struct Shared {
    connector: Connector,
    host: HeaderValue,
    max_age: Duration,
    idle: Mutex<Idle>,
    /// Those that close connections. Nobody waits for them: at the end of the process the other side sees as much.
    tasks: TaskTracker,
}

#[derive(Default)]
struct Idle {
    /// The one used last at the end.
    connections: Vec<Connection>,
    /// Whether a task looks at them.
    is_swept: bool,
}

/// A connection that no exchange uses.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Pin<Box<Driver>>,
    meter: Arc<Meter>,
    made: Instant,
    used: Instant,
}

type Driver = http1::Connection<TokioIo<Wire<Box<dyn Stream>>>, Full<Bytes>>;

/// An answer, of which at least the status was read.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// None at all where they could not be read.
    pub(crate) headers: HeaderMap,
    /// Where the connection can be read on.
    rest: Option<(Incoming, Connection)>,
    client: Client,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no connection")]
    Connect(#[source] Box<dyn StdError + Send + Sync>),
    #[error("the exchange broke off")]
    Exchange(#[source] hyper::Error),
    #[error("the answer's body broke off")]
    Body(#[source] hyper::Error),
    #[error("the answer is larger than {} KiB", REST_BYTES >> 10)]
    TooLarge,
    #[error("there is no answer in time")]
    Late,
}

impl Error {
    /// The innermost error's text.
    pub(crate) fn cause(&self) -> String {
        match self.distrust() {
            // It wraps one of ours, and would name its type.
            Some(CertificateError::Other(OtherError(own))) => own.to_string(),
            _ => self.chain().last().map_or_else(|| self.to_string(), ToString::to_string),
        }
    }

    /// What is not liked of the other side's certificate, if it is that.
    pub(crate) fn distrust(&self) -> Option<&CertificateError> {
        self.chain().find_map(|error| {
            let mut error = Some(error);
            // An I/O error skips what it wraps in its chain, and wraps another one here.
            while let Some(io) = error.and_then(|error| error.downcast_ref::<io::Error>()) {
                error = io.get_ref().map(|inner| inner as &(dyn StdError + 'static));
            }
            match error.and_then(|error| error.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(why)) => Some(why),
                _ => None,
            }
        })
    }

    /// What is below it.
    fn chain(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        std::iter::successors(self.source(), |&error| error.source())
    }
}

impl Client {
    /// A client of the server that `server` names; its path means nothing. Makes no connection yet.
    ///
    /// # Errors
    /// When its host cannot be one of TLS.
    pub(crate) fn new(
        server: &Uri,
        tls: ClientConfig,
        connect_within: Duration,
        max_age: Duration,
    ) -> Result<Self, Box<dyn StdError + Send + Sync>> {
        let name = server.host().unwrap_or_default();
        let default = if server.scheme_str() == Some("https") { 443 } else { 80 };
        let host = match server.port_u16() {
            Some(port) if port != default => format!("{name}:{port}"),
            _ => name.to_owned(),
        };
        let connector = Connector::new(server.clone(), tls, connect_within)?;
        let host = HeaderValue::try_from(host)?;
        Ok(Self(Arc::new(Shared { connector, host, max_age, idle: Mutex::default(), tasks: TaskTracker::new() })))
    }

    /// Sends a request and reads the head of its answer, or as much of it as says the status.
    ///
    /// Dropped, it ends the connection.
    ///
    /// # Errors
    /// When no status was seen until `end`.
    pub(crate) async fn send(&self, mut request: Request<Full<Bytes>>, end: Instant) -> Result<Answer, Error> {
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        request.headers_mut().insert(HOST, self.0.host.clone());
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        loop {
            let kept = self.take().await;
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => timeout_at(end, self.connect()).await.map_err(|_| Error::Late)??,
            };
            connection.meter.begin();
            let why = match connection.exchange(request, end).await {
                Some(Ok(response)) => {
                    let (head, body) = response.into_parts();
                    let rest = Some((body, connection));
                    return Ok(Answer { status: head.status, headers: head.headers, rest, client: self.clone() });
                }
                Some(Err(mut error)) => {
                    // A connection that was kept may end in the very moment: nothing of the request went out.
                    if let Some(unsent) = error.take_message().filter(|_| is_kept) {
                        request = unsent;
                        continue;
                    }
                    Error::Exchange(error.into_error())
                }
                None => Error::Late,
            };
            let Some(status) = connection.meter.status() else { return Err(why) };
            return Ok(Answer { status, headers: HeaderMap::new(), rest: None, client: self.clone() });
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let meter = Arc::new(Meter::new());
        let stream = self.0.connector.connect(&meter).await.map_err(Error::Connect)?;
        let handshake = http1::Builder::new().max_buf_size(HEAD_BYTES).handshake(TokioIo::new(stream)).await;
        let (sender, driver) = handshake.map_err(Error::Exchange)?;
        let now = Instant::now();
        Ok(Connection { sender, driver: Box::pin(driver), meter, made: now, used: now })
    }

    /// A connection that can be used again.
    async fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle().connections.pop()?;
            if connection.is_over(self.0.max_age) {
                self.0.tasks.spawn(connection.close());
            } else if poll_fn(|cx| Poll::Ready(connection.is_usable(cx))).await {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next request.
    fn put(&self, mut connection: Connection) {
        connection.used = Instant::now();
        let mut idle = self.idle();
        idle.connections.push(connection);
        if !std::mem::replace(&mut idle.is_swept, true) {
            self.0.tasks.spawn(sweep(Arc::downgrade(&self.0)));
        }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes unused connections, until there are none.
async fn sweep(shared: Weak<Shared>) {
    loop {
        sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else { return };
        let over = {
            let mut idle = shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
            // One that the other side has closed goes too; the task that takes one of the others brings its own waker.
            idle.connections.retain_mut(|connection| connection.is_usable(&mut Context::from_waker(Waker::noop())));
            let over =
                idle.connections.extract_if(.., |connection| connection.is_over(shared.max_age)).collect::<Vec<_>>();
            idle.is_swept = !idle.connections.is_empty();
            if !idle.is_swept && over.is_empty() {
                return;
            }
            over
        };
        for connection in over {
            shared.tasks.spawn(connection.close());
        }
    }
}

impl Connection {
    /// The head of the answer; `None` when `end` came first, or the rest of a head whose status is known is late.
    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        end: Instant,
    ) -> Option<Result<hyper::Response<Incoming>, TrySendError<Request<Full<Bytes>>>>> {
        let mut answer = pin!(drive(&mut self.driver, self.sender.try_send_request(request)));
        let mut late = pin!(sleep_until(end));
        let mut is_known = false;
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = answer.as_mut().poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            if !is_known && self.meter.status().is_some() {
                is_known = true;
                late.as_mut().reset(end.min(Instant::now() + REST_TIME));
            }
            late.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    fn is_over(&self, max_age: Duration) -> bool {
        self.made.elapsed() >= max_age || self.used.elapsed() >= IDLE
    }

    /// Whether the other side has left it open, and has sent nothing unasked.
    fn is_usable(&mut self, cx: &mut Context<'_>) -> bool {
        self.driver.as_mut().poll(cx).is_pending() && self.sender.is_ready()
    }

    /// Ends it with a word to the other side.
    async fn close(self) {
        drop(self.sender);
        // How it ends makes no difference.
        let _ = timeout(REST_TIME, self.driver).await;
    }
}

impl Answer {
    /// Reads what is left of the answer, within bounds, so that the connection can be used again.
    pub(crate) async fn finish(self) {
        let _ = timeout(REST_TIME, self.read(|_| {})).await;
    }

    /// The body.
    ///
    /// # Errors
    /// When it is too large, breaks off, or is not there until `end`.
    #[cfg_attr(not(any(feature = "nats", feature = "otlp")), expect(dead_code, reason = "sinks need the status alone"))]
    pub(crate) async fn body(self, end: Instant) -> Result<Bytes, Error> {
        let mut body = BytesMut::new();
        let read = timeout_at(end, self.read(|piece| body.extend_from_slice(piece))).await;
        read.map_err(|_| Error::Late)??;
        Ok(body.freeze())
    }

    async fn read(self, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let Some((mut body, mut connection)) = self.rest else { return Ok(()) };
        let (mut bytes, mut pieces) = (0, 0);
        while !body.is_end_stream()
            && let Some(frame) = drive(&mut connection.driver, body.frame()).await
        {
            let frame = frame.map_err(Error::Body)?;
            let piece = frame.data_ref().map_or(&[][..], |piece| piece);
            (bytes, pieces) = (bytes + piece.len(), pieces + 1);
            if bytes > REST_BYTES || pieces > REST_PIECES {
                return Err(Error::TooLarge);
            }
            each(piece);
        }
        let ready = drive(&mut connection.driver, connection.sender.ready()).await;
        if ready.is_ok() {
            self.client.put(connection);
        }
        Ok(())
    }
}

/// Awaits something of a connection, which gets on meanwhile.
pub(crate) async fn drive<T>(driver: &mut (impl Future + Unpin), what: impl Future<Output = T>) -> T {
    let mut what = pin!(what);
    let mut has_ended = false;
    poll_fn(|cx| {
        if let Poll::Ready(done) = what.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        if has_ended {
            return Poll::Pending;
        }
        // How the connection ends says nothing that the exchange does not.
        has_ended = Pin::new(&mut *driver).poll(cx).is_ready();
        what.as_mut().poll(cx)
    })
    .await
}
