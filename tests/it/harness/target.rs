//! An HTTP server for HTTP sinks: records every request and answers by a rule.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{HeaderMap, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::pki::{Ca, Identity};
use super::{PATIENCE, wait_for};

/// A running server on a port of its own. Dropped, it is gone.
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// `None`: plain HTTP.
    tls: Option<Arc<ServerConfig>>,
    shared: Arc<Shared>,
    /// `None` while it is away.
    serving: Option<Serving>,
}

/// A request, once all of it was read.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Among all requests, from 0.
    pub(crate) number: usize,
    /// Among all connections, from 0.
    pub(crate) connection: usize,
    pub(crate) at: Instant,
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// What the rule gave it; `None` without an answer.
    pub(crate) answered: Option<u16>,
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    what: What,
    headers: Vec<(&'static str, String)>,
    delay: Duration,
    held: bool,
}

#[derive(Debug, Clone)]
enum What {
    Answer(u16, AnswerBody),
    /// Nothing comes, and the connection stays open.
    Hang,
    /// The connection is closed without an answer.
    Break,
}

#[derive(Debug, Clone)]
enum AnswerBody {
    Text(Bytes),
    /// Never stops.
    Endless,
    /// Promised, and does not come.
    Hanging,
    /// Promised, and the connection is closed instead.
    Cut,
    Broken,
}

type Rule = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    released: watch::Sender<bool>,
}

struct State {
    rule: Rule,
    requests: Vec<Request>,
    connections: usize,
    in_flight: usize,
    most_in_flight: usize,
}

struct Serving {
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Target {
    /// Plain HTTP on 127.0.0.1. `rule` is asked for every request, when all of it was read, one at a time; it must not ask the target anything.
    pub(crate) fn start(rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(None, rule)
    }

    /// The same over TLS; with `client_ca`, only for clients with a certificate of that authority.
    pub(crate) fn start_tls(
        server: &Identity,
        client_ca: Option<&Ca>,
        rule: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::with(Some(Arc::new(server_config(server, client_ca))), rule)
    }

    /// Plain HTTP at another address; `None` where this machine does not have it.
    pub(crate) fn start_at(
        address: SocketAddr,
        rule: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Option<Self> {
        drop(std::net::TcpListener::bind(address).ok()?);
        Some(Self::at(address, None, rule))
    }

    fn with(tls: Option<Arc<ServerConfig>>, rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        // A port that nobody else gets while the target is away.
        Self::at(([127, 0, 0, 1], super::free_port()).into(), tls, rule)
    }

    fn at(
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
        rule: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let state =
            State { rule: Arc::new(rule), requests: Vec::new(), connections: 0, in_flight: 0, most_in_flight: 0 };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), released: watch::Sender::new(false) });
        let (address, serving) = Serving::start(address, tls.clone(), Arc::clone(&shared));
        Self { address, tls, shared, serving: Some(serving) }
    }

    /// `http://127.0.0.1:PORT/path` or `https://localhost:PORT/path`.
    pub(crate) fn url(&self, path: &str) -> String {
        let start = if self.tls.is_some() { "https://localhost" } else { "http://127.0.0.1" };
        format!("{start}:{}{path}", self.address.port())
    }

    /// Answers by another rule from now on.
    pub(crate) fn answer(&self, rule: impl Fn(&Request) -> Reply + Send + Sync + 'static) {
        self.shared.state().rule = Arc::new(rule);
    }

    /// All requests so far, in the order in which they were read.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// Keeps no request so far; their numbers begin anew.
    pub(crate) fn forget(&self) {
        self.shared.state().requests.clear();
    }

    /// All requests, once there are this many.
    #[track_caller]
    pub(crate) fn wait_requests(&self, at_least: usize) -> Vec<Request> {
        let state = self.shared.state();
        let wait = self.shared.changed.wait_timeout_while(state, PATIENCE, |state| state.requests.len() < at_least);
        let (state, _) = wait.unwrap();
        assert!(state.requests.len() >= at_least, "{} requests instead of {at_least}", state.requests.len());
        state.requests.clone()
    }

    /// How many connections were accepted.
    pub(crate) fn connections(&self) -> usize {
        self.shared.state().connections
    }

    /// Answers what is [held](Reply::held), from now on at once.
    pub(crate) fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// The highest number of requests that waited for their answers at a time.
    pub(crate) fn most_in_flight(&self) -> usize {
        self.shared.state().most_in_flight
    }

    /// Breaks every connection and refuses new ones.
    pub(crate) fn go_away(&mut self) {
        self.serving = None;
    }

    /// Is there again, on the same port.
    pub(crate) fn come_back(&mut self) {
        assert!(self.serving.is_none(), "it is not away");
        self.serving = Some(Serving::start(self.address, self.tls.clone(), Arc::clone(&self.shared)).1);
    }
}

impl Request {
    /// A header's value; `None` when it is missing, or came more than once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())?.to_str().ok()
    }

    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Reply {
    /// An answer with this status and no body.
    pub(crate) fn status(status: u16) -> Self {
        Self::of(What::Answer(status, AnswerBody::Text(Bytes::new())))
    }

    pub(crate) fn hang() -> Self {
        Self::of(What::Hang)
    }

    pub(crate) fn break_off() -> Self {
        Self::of(What::Break)
    }

    fn of(what: What) -> Self {
        Self { what, headers: Vec::new(), delay: Duration::ZERO, held: false }
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(crate) fn body(self, text: impl Into<Bytes>) -> Self {
        self.with_body(AnswerBody::Text(text.into()))
    }

    /// A body that never stops.
    pub(crate) fn endless_body(self) -> Self {
        self.with_body(AnswerBody::Endless)
    }

    /// A body that is promised and does not come.
    pub(crate) fn hanging_body(self) -> Self {
        self.with_body(AnswerBody::Hanging)
    }

    /// A body that is promised, and then the connection breaks.
    pub(crate) fn cut_body(self) -> Self {
        self.with_body(AnswerBody::Cut)
    }

    fn with_body(mut self, body: AnswerBody) -> Self {
        if let What::Answer(_, old) = &mut self.what {
            *old = body;
        }
        self
    }

    /// Only after this time.
    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    /// Only once the target [releases](Target::release) what it holds.
    pub(crate) fn held(self) -> Self {
        Self { held: true, ..self }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn serve(self: Arc<Self>, stream: impl AsyncRead + AsyncWrite + Unpin, connection: usize) {
        let service = service_fn(|request| Arc::clone(&self).answer(request, connection));
        // A client that goes away is no news.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        self: Arc<Self>,
        request: hyper::Request<Incoming>,
        connection: usize,
    ) -> io::Result<Response<Tail>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let mut request = Request {
            number: 0,
            connection,
            at: Instant::now(),
            method: head.method.to_string(),
            path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers: head.headers,
            body,
            answered: None,
        };
        let (reply, waiting) = {
            let mut state = self.state();
            request.number = state.requests.len();
            let rule = Arc::clone(&state.rule);
            let reply = rule(&request);
            request.answered = match reply.what {
                What::Answer(status, _) => Some(status),
                What::Hang | What::Break => None,
            };
            state.requests.push(request);
            (reply, Waiting::new(&mut state, Arc::clone(&self)))
        };
        self.changed.notify_all();
        tokio::time::sleep(reply.delay).await;
        if reply.held {
            let _ = self.released.subscribe().wait_for(|released| *released).await;
        }
        let (status, body) = match reply.what {
            What::Answer(status, body) => (status, body),
            What::Hang => std::future::pending().await,
            What::Break => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
        drop(waiting);
        let mut response = Response::new(Tail(body));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in reply.headers {
            response.headers_mut().append(name, value.parse().unwrap());
        }
        Ok(response)
    }
}

/// A request that has no answer yet.
struct Waiting(Arc<Shared>);

impl Waiting {
    fn new(state: &mut State, shared: Arc<Shared>) -> Self {
        state.in_flight += 1;
        state.most_in_flight = state.most_in_flight.max(state.in_flight);
        Self(shared)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.state().in_flight -= 1;
    }
}

/// An answer's body as hyper sends it.
struct Tail(AnswerBody);

impl Body for Tail {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            AnswerBody::Text(text) if text.is_empty() => Poll::Ready(None),
            AnswerBody::Text(text) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(text))))),
            AnswerBody::Endless => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16 << 10]))))),
            AnswerBody::Hanging => Poll::Pending,
            AnswerBody::Cut => {
                // What is there goes out meanwhile.
                self.0 = AnswerBody::Broken;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            AnswerBody::Broken => Poll::Ready(Some(Err(io::ErrorKind::BrokenPipe.into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, AnswerBody::Text(text) if text.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            AnswerBody::Text(text) => SizeHint::with_exact(text.len() as u64),
            AnswerBody::Endless => SizeHint::default(),
            AnswerBody::Hanging | AnswerBody::Cut | AnswerBody::Broken => SizeHint::with_exact(100),
        }
    }
}

impl Serving {
    /// Serves on a thread and a runtime of its own.
    fn start(address: SocketAddr, tls: Option<Arc<ServerConfig>>, shared: Arc<Shared>) -> (SocketAddr, Self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // A process that another test is just starting may hold a copy of the last listener for a moment.
        let listener = wait_for("the target's port", || match runtime.block_on(async { listen(address) }) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
            other => Some(other.unwrap()),
        });
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    never = accept(listener, tls, shared) => match never {},
                    _ = stopped => {}
                }
            });
        });
        (address, Self { thread: Some(thread), stop: Some(stop) })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Also where connections of an earlier life are still dying.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

async fn accept(listener: TcpListener, tls: Option<Arc<ServerConfig>>, shared: Arc<Shared>) -> Infallible {
    let tls = tls.map(TlsAcceptor::from);
    // They end with this future.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            Ok((stream, _)) = listener.accept() => {
                let connection = {
                    let mut state = shared.state();
                    state.connections += 1;
                    state.connections - 1
                };
                let (tls, shared) = (tls.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    match tls {
                        None => shared.serve(stream, connection).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                shared.serve(stream, connection).await;
                            }
                        }
                    }
                });
            }
        }
    }
}

pub(crate) fn server_config(server: &Identity, client_ca: Option<&Ca>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().unwrap();
    let config = match client_ca {
        None => config.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(&ca.certificate).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            config.with_client_cert_verifier(verifier)
        }
    };
    let chain = CertificateDer::pem_file_iter(&server.chain).unwrap().map(Result::unwrap).collect();
    config.with_single_cert(chain, PrivateKeyDer::from_pem_file(&server.key).unwrap()).unwrap()
}
