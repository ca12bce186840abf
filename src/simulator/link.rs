//! Connections to a receiver: mutual TLS, and HTTP/1.1 or HTTP/2 on it. A POST is seen to its end or, as a fault that was
//! asked for, broken off.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_fn;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::{http1, http2};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::rt::Executor;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use super::credentials::{self, Credentials};
use super::faults::{Break, Place};

/// The longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// Requests under way on one HTTP/2 connection.
const STREAMS: usize = 8;
/// What a client says first over HTTP/2, its settings, and the begin of a HEADERS frame of 64 bytes for stream 1.
const HTTP2_BEGUN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x40\x01\x04\0\0\0\x01\x83\x87";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the URL has to be https://HOST[:PORT]/PATH")]
    Url,
    #[error(transparent)]
    Credentials(#[from] credentials::Error),
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Connection(String),
    #[error("the receiver does not offer HTTP/2 (ALPN h2): switch it on there, or leave --http2 away")]
    NoHttp2,
    /// It was this side, as asked for.
    #[error("broken off on purpose")]
    BrokenOff,
}

/// How requests use connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, one request after another on each connection.
    KeepAlive,
    /// HTTP/1.1, a connection with a full TLS handshake for each request.
    HandshakePerRequest,
    /// HTTP/2, several requests at a time on each connection.
    Http2,
}

/// Where events are posted.
pub(super) struct Target {
    tls: TlsConnector,
    host: ServerName<'static>,
    /// Host and port to connect to.
    address: (String, u16),
    authority: HeaderValue,
    url: Uri,
    /// Path and query.
    path: Uri,
    http2: bool,
}

type Stream = TlsStream<TcpStream>;
pub(super) type Answer = (StatusCode, Bytes);

/// What one sender keeps from one request to the next. None connects before it has to.
pub(super) enum Line {
    KeepAlive(Option<Http1>),
    HandshakePerRequest,
    Http2(Arc<Shared>),
}

/// The current connection of several senders.
#[derive(Default)]
pub(super) struct Shared {
    connection: Mutex<Option<Http2>>,
    tasks: TaskTracker,
}

/// An HTTP/1.1 connection; its driver makes progress only while it is polled here.
pub(super) struct Http1 {
    requests: http1::SendRequest<Full<Bytes>>,
    driver: Box<http1::Connection<TokioIo<Stream>, Full<Bytes>>>,
    ended: bool,
}

/// An HTTP/2 connection, for several requests at a time; a task of its own drives it until the last clone is gone.
#[derive(Clone)]
struct Http2(http2::SendRequest<Parcel>);

impl Target {
    pub(super) fn new(url: &str, credentials: &Credentials, protocol: Protocol) -> Result<Self, Error> {
        let http2 = protocol == Protocol::Http2;
        let url: Uri = url.parse().map_err(|_| Error::Url)?;
        let (Some("https"), Some(authority)) = (url.scheme_str(), url.authority()) else { return Err(Error::Url) };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        // A port that is none must not become the usual one: somebody else may listen there.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 443,
            Some(_) => authority.port_u16().filter(|&port| port > 0).ok_or(Error::Url)?,
            // A user's name stands before the host.
            None => return Err(Error::Url),
        };
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let alpn: &[u8] = if http2 { b"h2" } else { b"http/1.1" };
        Ok(Self {
            tls: TlsConnector::from(Arc::new(credentials.client_config(alpn)?)),
            host: ServerName::try_from(host.clone()).map_err(|_| Error::Url)?,
            address: (host, port),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| Error::Url)?,
            path: path.parse().map_err(|_| Error::Url)?,
            url,
            http2,
        })
    }

    async fn http1(&self) -> Result<Http1, Failure> {
        let (requests, driver) = http1::handshake(TokioIo::new(self.connect().await?)).await.map_err(Failure::of)?;
        Ok(Http1 { requests, driver: Box::new(driver), ended: false })
    }

    /// `tasks` get what drives the connection.
    async fn http2(&self, tasks: &TaskTracker) -> Result<Http2, Failure> {
        let stream = TokioIo::new(self.connect().await?);
        let (requests, driver) = http2::handshake(OnTracker(tasks.clone()), stream).await.map_err(Failure::of)?;
        // How it ends is told to each request on it.
        tasks.spawn(async { drop(driver.await) });
        Ok(Http2(requests))
    }

    /// Breaks off before HTTP/2 has a request to speak of; this takes a connection of its own.
    async fn break_http2(&self, how: Break) -> Result<Answer, Failure> {
        let begun = &HTTP2_BEGUN[..how.cut(1, HTTP2_BEGUN.len())];
        Err(break_off(self.connect().await?, begun, how).await)
    }

    async fn connect(&self) -> Result<Stream, Failure> {
        let (host, port) = &self.address;
        let connected = TcpStream::connect((host.as_str(), *port)).await;
        let stream = connected.map_err(|error| Failure::Connection(format!("{host}:{port}: {error}")))?;
        stream.set_nodelay(true).map_err(Failure::of)?;
        let stream = self.tls.connect(self.host.clone(), stream).await.map_err(|error| self.no_tls(&error))?;
        if self.http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(Failure::NoHttp2);
        }
        Ok(stream)
    }

    fn no_tls(&self, error: &io::Error) -> Failure {
        let (host, port) = &self.address;
        let why = match error.get_ref().and_then(|cause| cause.downcast_ref()) {
            Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) if self.http2 => {
                return Failure::NoHttp2;
            }
            Some(rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)) => "it has to offer TLS 1.3",
            Some(rustls::Error::InvalidMessage(_)) => "what listens there does not speak TLS",
            Some(rustls::Error::InvalidCertificate(_)) => {
                "its certificate has to be signed by the CA that was given, and for this host"
            }
            _ => "no TLS connection",
        };
        Failure::Connection(format!("{host}:{port}: {why}: {error}"))
    }

    fn request<B>(&self, uri: &Uri, body: B) -> Result<Request<B>, Failure> {
        let json = HeaderValue::from_static("application/json");
        Request::post(uri.clone()).header(CONTENT_TYPE, json).body(body).map_err(Failure::of)
    }
}

impl Line {
    /// As many as can be in use at a time over so many connections.
    pub(super) fn all(protocol: Protocol, connections: usize) -> Vec<Self> {
        match protocol {
            Protocol::KeepAlive => (0..connections).map(|_| Self::KeepAlive(None)).collect(),
            Protocol::HandshakePerRequest => (0..connections).map(|_| Self::HandshakePerRequest).collect(),
            Protocol::Http2 => {
                let shared: Vec<_> = (0..connections).map(|_| Arc::new(Shared::default())).collect();
                // Connection by connection, so that few requests at a time are spread over them all.
                (0..STREAMS).flat_map(|_| &shared).map(|shared| Self::Http2(Arc::clone(shared))).collect()
            }
        }
    }

    /// Posts `body`, or breaks off on the way; within `timeout`, connecting included.
    pub(super) async fn post(
        &mut self,
        target: &Target,
        body: &Bytes,
        breaks: Option<Break>,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let post = async {
            match self {
                Self::KeepAlive(kept) => {
                    let mut connection = match still_open(kept.take()).await {
                        Some(connection) => connection,
                        None => target.http1().await?,
                    };
                    if let Some(how) = breaks {
                        return connection.break_off(target, body, how).await;
                    }
                    let answer = connection.post(target, body.clone()).await?;
                    *kept = still_open(Some(connection)).await;
                    Ok(answer)
                }
                Self::HandshakePerRequest => {
                    let mut connection = target.http1().await?;
                    match breaks {
                        Some(how) => connection.break_off(target, body, how).await,
                        None => connection.post(target, body.clone()).await,
                    }
                }
                Self::Http2(shared) => match breaks {
                    Some(how) if how.place == Place::Head => target.break_http2(how).await,
                    Some(how) => shared.connection(target).await?.break_off(target, body.clone(), how).await,
                    None => shared.connection(target).await?.post(target, body.clone()).await,
                },
            }
        };
        match tokio::time::timeout(timeout, post).await {
            Ok(done) => done,
            Err(_) => {
                // Of the others' requests none is lost by this; but a connection that has gone silent would stay so.
                if let Self::Http2(shared) = self {
                    *shared.connection.lock().await = None;
                }
                Err(Failure::Timeout)
            }
        }
    }

    /// Over HTTP/2, connects: a receiver that does not offer it never will. What else goes wrong is met by the first
    /// event.
    pub(super) async fn check(&self, target: &Target, timeout: Duration) -> Result<(), Failure> {
        let Self::Http2(shared) = self else { return Ok(()) };
        match tokio::time::timeout(timeout, shared.connection(target)).await {
            Ok(Err(Failure::NoHttp2)) => Err(Failure::NoHttp2),
            _ => Ok(()),
        }
    }
}

/// Unless the receiver has closed it meanwhile.
async fn still_open(connection: Option<Http1>) -> Option<Http1> {
    let mut connection = connection?;
    connection.stays_open().await.then_some(connection)
}

impl Shared {
    async fn connection(&self, target: &Target) -> Result<Http2, Failure> {
        let mut connection = self.connection.lock().await;
        match &*connection {
            Some(open) if !open.is_closed() => Ok(open.clone()),
            _ => Ok(connection.insert(target.http2(&self.tasks).await?).clone()),
        }
    }
}

impl Http1 {
    async fn post(&mut self, target: &Target, body: Bytes) -> Result<Answer, Failure> {
        let mut request = target.request(&target.path, Full::new(body))?;
        request.headers_mut().insert(HOST, target.authority.clone());
        let requests = &mut self.requests;
        let exchange = async {
            requests.ready().await.map_err(Failure::of)?;
            read(requests.send_request(request).await.map_err(Failure::of)?).await
        };
        let mut exchange = pin!(exchange);
        tokio::select! {
            biased;
            done = &mut exchange => return done,
            ended = &mut self.driver => {
                self.ended = true;
                ended.map_err(Failure::of)?;
            }
        }
        // The receiver has closed the connection behind its answer; what the driver has read is all there is.
        exchange.await
    }

    /// Sends what comes before the break, and ends the connection.
    async fn break_off(self, target: &Target, body: &[u8], how: Break) -> Result<Answer, Failure> {
        let authority = String::from_utf8_lossy(target.authority.as_bytes());
        let mut request = format!(
            "POST {} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            target.path,
            body.len()
        )
        .into_bytes();
        let head = request.len();
        request.extend_from_slice(body);
        let end = match how.place {
            Place::Head => how.cut(1, head),
            Place::Body => how.cut(head, request.len()),
            Place::Answer => request.len(),
        };
        Err(break_off(self.driver.into_parts().io.into_inner(), &request[..end], how).await)
    }

    /// Lets the driver see what has come in since it was polled last.
    async fn stays_open(&mut self) -> bool {
        if !self.ended {
            self.ended = poll_fn(|context| Poll::Ready(Pin::new(&mut self.driver).poll(context).is_ready())).await;
        }
        !self.ended && !self.requests.is_closed()
    }
}

impl Http2 {
    async fn post(&mut self, target: &Target, body: Bytes) -> Result<Answer, Failure> {
        self.0.ready().await.map_err(Failure::of)?;
        let request = target.request(&target.url, Parcel::whole(body))?;
        read(self.0.send_request(request).await.map_err(Failure::of)?).await
    }

    /// Sends the request up to the break, then resets its stream; the others on the connection go on.
    async fn break_off(&mut self, target: &Target, body: Bytes, how: Break) -> Result<Answer, Failure> {
        self.0.ready().await.map_err(Failure::of)?;
        let parcel = match how.place {
            Place::Head | Place::Body => {
                Parcel { length: body.len(), part: Some(body.slice(..how.cut(0, body.len()))) }
            }
            Place::Answer => Parcel::whole(body),
        };
        let request = target.request(&target.url, parcel)?;
        // Going out of scope is what breaks it off.
        let _ = tokio::time::timeout(how.pause.max(Duration::from_millis(2)), self.0.send_request(request)).await;
        Err(Failure::BrokenOff)
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

async fn read<B>(response: Response<B>) -> Result<Answer, Failure>
where
    B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static>,
{
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Failure::of)?;
    Ok((head.status, body.to_bytes()))
}

/// A receiver that no longer takes anything is as good as one that was left in the middle.
async fn break_off(mut stream: Stream, sent: &[u8], how: Break) -> Failure {
    let sent = async {
        stream.write_all(sent).await?;
        stream.flush().await?;
        tokio::time::sleep(how.pause).await;
        if how.reset { stream.get_ref().0.set_zero_linger() } else { stream.shutdown().await }
    };
    let _: io::Result<()> = sent.await;
    Failure::BrokenOff
}

/// A body, or the first part of one that never goes on.
struct Parcel {
    length: usize,
    part: Option<Bytes>,
}

impl Parcel {
    fn whole(body: Bytes) -> Self {
        Self { length: body.len(), part: Some(body) }
    }
}

impl Body for Parcel {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.part.take() {
            Some(part) => {
                self.length -= part.len();
                Poll::Ready(Some(Ok(Frame::data(part))))
            }
            None if self.length == 0 => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.length == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length as u64)
    }
}

/// HTTP/2 has tasks of its own for each connection and request.
#[derive(Clone)]
struct OnTracker(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for OnTracker {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

impl Failure {
    fn of(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let error = error.into();
        let mut told = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            told = format!("{told}: {error}");
            cause = error.source();
        }
        Self::Connection(told)
    }
}
