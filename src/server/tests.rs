//! Over real sockets. Time-outs are short and real, so each test waits for what must happen, never for a while.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use axum::{Extension, Router};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use super::{Limits, Phase, Transport, bind, serve};
use crate::telemetry::Metrics;
use crate::tls::{PeerIdentity, ServerTls, profile};

struct Running {
    address: SocketAddr,
    phase: watch::Sender<Phase>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    /// Requests that began; each `/wait` ends when notified.
    begun: Arc<AtomicUsize>,
    go_on: Arc<Notify>,
}

fn limits() -> Limits {
    let long = Duration::from_secs(30);
    Limits {
        proxies: None,
        max_connections: 64,
        seats: None,
        handshake_timeout: long,
        header_timeout: long,
        idle_timeout: long,
        write_timeout: long,
        max_connection_age: None,
        http2: false,
    }
}

const SHORT: Duration = Duration::from_millis(100);

fn start(limits: Limits) -> Running {
    start_on(Transport::Plain, limits)
}

fn start_on(transport: Transport, limits: Limits) -> Running {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (phase, phases) = watch::channel(Phase::Serving);
    let (metrics, tasks) = (Arc::new(Metrics::new()), TaskTracker::new());
    let (begun, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, wait) = (Arc::clone(&begun), Arc::clone(&go_on));
    let router = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/peer", get(|Extension(peer): Extension<PeerIdentity>| async move { peer.subject().to_string() }))
        .route("/echo", post(|body: Bytes| async { body }))
        .route("/early", post(|| async { "not read" }))
        .route("/big", get(|| async { Body::from(vec![b'x'; 32 * 1024 * 1024]) }))
        .route(
            "/wait",
            get(|| async move {
                count.fetch_add(1, Ordering::SeqCst);
                wait.notified().await;
                "done"
            }),
        );
    tasks.spawn(serve(listener, transport, router, limits, Some(Arc::clone(&metrics)), phases));
    Running { address, phase, metrics, tasks, begun, go_on }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn until_closed(&self, reason: &'static str) {
        self.until(reason, |running| running.closed(reason) == 1).await;
    }

    fn closed(&self, reason: &'static str) -> u64 {
        self.metrics.connections_closed.get_or_create(&[("reason", reason)]).get()
    }

    /// Asks the server to end and waits until every connection is gone.
    async fn ended(self) {
        self.tasks.close();
        timeout(Duration::from_secs(20), self.tasks.wait()).await.unwrap();
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// Reads up to what an answer must end in.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut buf = [0; 4096];
    while !text.ends_with(end) {
        let n = timeout(Duration::from_secs(20), stream.read(&mut buf)).await.unwrap().unwrap();
        assert!(n > 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&buf[..n]).unwrap());
    }
    text
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = start(limits());
    let mut stream = server.connect().await;
    let post = |body: &str| format!("POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all([post("one"), post("two"), post("three")].concat().as_bytes()).await.unwrap();
    let text = read_until(&mut stream, "three").await;
    let (one, two) = (text.find("one").unwrap(), text.find("two").unwrap());
    assert!(one < two && !text.contains("connection: close"), "{text}");
}

#[tokio::test]
async fn a_slow_head_is_closed_from_its_first_byte_on() {
    let server = start(Limits { header_timeout: Duration::from_millis(300), ..limits() });
    let mut stream = server.connect().await;
    stream.write_all(GET).await.unwrap();
    read_until(&mut stream, "hello").await;
    // Longer than a head may take: being idle is not being slow.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stream.write_all(GET).await.unwrap();
    read_until(&mut stream, "hello").await;
    let begun = Instant::now();
    for byte in GET.iter().cycle() {
        // A byte now and then does not put it off.
        if stream.write_all(&[if *byte == b'\n' { b'x' } else { *byte }]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    server.until_closed("head-timeout").await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = start(Limits { idle_timeout: SHORT, ..limits() });
    let mut silent = server.connect().await;
    assert_eq!(read_all(&mut silent).await, "");
    server.until_closed("idle").await;
    let mut used = server.connect().await;
    used.write_all(GET).await.unwrap();
    assert!(read_all(&mut used).await.ends_with("hello"));
}

#[tokio::test]
async fn a_request_under_way_is_not_idle() {
    let server = start(Limits { idle_timeout: SHORT, header_timeout: SHORT, ..limits() });
    let mut stream = server.connect().await;
    stream.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(SHORT * 4).await;
    server.go_on.notify_one();
    read_until(&mut stream, "done").await;
}

#[tokio::test]
async fn a_peer_that_never_reads_is_closed() {
    let server = start(Limits { write_timeout: SHORT, ..limits() });
    let mut stream = server.connect().await;
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.until_closed("write-timeout").await;
    drop(stream);
}

#[tokio::test]
async fn a_peer_that_reads_slowly_gets_all() {
    let server = start(Limits { write_timeout: Duration::from_secs(6), ..limits() });
    let mut stream = server.connect().await;
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let (mut got, mut buf) = (0, vec![0; 1024 * 1024]);
    let begun = Instant::now();
    loop {
        let n = stream.read(&mut buf).await.unwrap();
        if n == 0 {
            break;
        }
        got += n;
        if begun.elapsed() < Duration::from_secs(7) {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
    assert!(got > 32 * 1024 * 1024);
}

#[tokio::test]
async fn heads_have_limits() {
    let server = start(limits());
    let ask = async |fields: usize, size: usize| {
        let mut stream = server.connect().await;
        let mut head = String::from("GET / HTTP/1.1\r\nhost: x\r\n");
        for n in 1..fields {
            head += &format!("f{n}: {}\r\n", "v".repeat(size));
        }
        // A peer that is refused early need not have sent all.
        let _ = stream.write_all((head + "\r\n").as_bytes()).await;
        let _ = stream.shutdown().await;
        let answer = read_all(&mut stream).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].to_owned(), body.is_empty())
    };
    assert_eq!(ask(64, 1).await, ("200".to_owned(), false));
    assert_eq!(ask(65, 1).await, ("431".to_owned(), true));
    assert_eq!(ask(101, 1).await, ("431".to_owned(), true));
    assert_eq!(ask(2, 16 * 1024 - 64).await, ("200".to_owned(), false));
    assert_eq!(ask(2, 16 * 1024).await, ("431".to_owned(), true));
    assert_eq!(ask(60, 8 * 1024).await, ("431".to_owned(), true));
}

#[tokio::test]
async fn what_is_no_request_gets_400() {
    let server = start(limits());
    for bad in [
        "GET / HTTP/1.1\r\nhost : x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: x\r\n folded\r\n\r\n",
        "POST /echo HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "\x16\x03\x01\x02\x00\x01\x00\x01\x03\x03\r\n\r\n",
    ] {
        let mut stream = server.connect().await;
        stream.write_all(bad.as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{bad:?}: {answer}");
    }
    server.until("counted", |server| server.closed("bad-request") == 4).await;
}

#[tokio::test]
async fn an_early_answer_reaches_a_peer_that_is_still_sending() {
    let server = start(limits());
    let stream = server.connect().await;
    let (mut read, mut write) = stream.into_split();
    let send = async {
        write.write_all(b"POST /early HTTP/1.1\r\nhost: x\r\ncontent-length: 8000000\r\n\r\n").await?;
        write.write_all(&vec![b'x'; 8_000_000]).await
    };
    let receive = async {
        let mut answer = Vec::new();
        read.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    let (_, answer) = tokio::join!(send, receive);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("not read"), "{answer}");
}

#[tokio::test]
async fn an_old_connection_is_told_to_go() {
    let server = start(Limits { max_connection_age: Some(Duration::from_secs(3)), ..limits() });
    let mut stream = server.connect().await;
    let mut rounds = 0;
    let text = loop {
        stream.write_all(GET).await.unwrap();
        let text = read_until(&mut stream, "hello").await;
        rounds += 1;
        if text.contains("connection: close") {
            break text;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(rounds > 1, "{text}");
    assert_eq!(read_all(&mut stream).await, "");
    drop(stream);
    server.until_closed("age").await;
}

#[tokio::test]
async fn newcomers_wait_while_all_connections_are_taken() {
    let server = start(Limits { max_connections: 2, ..limits() });
    let (mut first, _second) = (server.connect().await, server.connect().await);
    let mut third = server.connect().await;
    third.write_all(GET).await.unwrap();
    first.write_all(GET).await.unwrap();
    read_until(&mut first, "hello").await;
    server.until("both in", |server| server.metrics.connections.get() == 2).await;
    assert_eq!(server.metrics.connections_accepted.get(), 2);
    drop(first);
    read_until(&mut third, "hello").await;
    assert_eq!(server.metrics.connections_accepted.get(), 3);
}

#[test]
fn handshakes_get_shorter_as_it_gets_full() {
    let limits = Limits { max_connections: 100, handshake_timeout: Duration::from_secs(10), ..limits() };
    let seconds = |used| limits.handshake_within(used).as_secs_f64();
    assert!((seconds(1) - 10.0).abs() < 0.01);
    assert!((seconds(50) - 10.0).abs() < 0.01);
    assert!((seconds(75) - 5.5).abs() < 0.01);
    assert!((seconds(100) - 1.0).abs() < 0.01);
    let short = Limits { handshake_timeout: SHORT, ..limits };
    assert_eq!(short.handshake_within(100), SHORT);
    let one = Limits { max_connections: 1, ..short };
    assert_eq!(one.handshake_within(1), SHORT);
}

#[tokio::test]
async fn a_drain_serves_then_finishes_then_ends() {
    let server = start(limits());
    let (mut idle, mut busy, mut half) = (server.connect().await, server.connect().await, server.connect().await);
    for stream in [&mut idle, &mut half] {
        stream.write_all(GET).await.unwrap();
        assert!(!read_until(stream, "hello").await.contains("connection: close"));
    }
    busy.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.until("waiting", |server| server.begun.load(Ordering::SeqCst) == 1).await;

    server.phase.send_replace(Phase::Closing);
    let mut new = server.connect().await;
    new.write_all(GET).await.unwrap();
    let answer = read_all(&mut new).await;
    assert!(answer.contains("connection: close") && answer.ends_with("hello"), "{answer}");

    half.write_all(&GET[..10]).await.unwrap();
    // Once this has been answered, the other connection's bytes have been seen too.
    let mut later = server.connect().await;
    later.write_all(GET).await.unwrap();
    read_all(&mut later).await;

    server.phase.send_replace(Phase::Stopping);
    assert_eq!(read_all(&mut idle).await, "");
    half.write_all(&GET[10..]).await.unwrap();
    assert!(read_all(&mut half).await.ends_with("hello"));
    assert!(TcpStream::connect(server.address).await.is_err());
    server.go_on.notify_one();
    let answer = read_all(&mut busy).await;
    assert!(answer.contains("connection: close") && answer.ends_with("done"), "{answer}");
    drop((idle, half, busy));
    server.ended().await;
}

#[tokio::test]
async fn the_end_of_a_drain_waits_for_no_one() {
    let server = start(limits());
    let mut busy = server.connect().await;
    busy.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    server.until("waiting", |server| server.begun.load(Ordering::SeqCst) == 1).await;
    server.phase.send_replace(Phase::Aborting);
    assert_eq!(busy.read(&mut [0; 16]).await.unwrap_or(0), 0);
    server.ended().await;
}

/// A server with the throw-away PKI, and its client.
fn start_tls(limits: Limits) -> (Running, Arc<ClientConfig>) {
    let folder = tempfile::tempdir().unwrap();
    let pki = profile::make(&profile::Options::default()).unwrap();
    pki.write(folder.path(), false).unwrap();
    let path = |name: &str| folder.path().join(name);
    let tls = crate::config::Tls {
        certificate: path("server.pem"),
        private_key: path("server-key.pem"),
        client_ca: vec![path("ca.pem")],
        client_crl: Vec::new(),
        min_version: crate::config::TlsVersion::Tls13,
        reload_interval: Duration::from_secs(30),
        allow_extra_key_usage: false,
        clients: crate::config::AllowedClients::Any,
    };
    let tls = ServerTls::load(&tls).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca.as_bytes()).unwrap()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(pki.client.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(pki.client_key.as_bytes()).unwrap(),
        )
        .unwrap();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (start_on(Transport::Tls(Arc::new(tls)), limits), Arc::new(client))
}

async fn connect_tls(server: &Running, client: &Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::clone(client));
    connector.connect("localhost".try_into().unwrap(), server.connect().await).await.unwrap()
}

#[tokio::test]
async fn a_request_knows_its_peer() {
    let (server, client) = start_tls(limits());
    let mut stream = connect_tls(&server, &client).await;
    stream.write_all(b"GET /peer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("CN=asapp-demo-client,O=asapp-receiver throw-away"), "{answer}");
}

#[tokio::test]
async fn handshakes_that_fail_are_counted_once() {
    let (server, _) = start_tls(Limits { handshake_timeout: SHORT, ..limits() });
    let refused = |reason| server.metrics.tls_refused.get_or_create(&[("reason", reason)]).get();
    drop(server.connect().await);
    server.until_closed("probe").await;
    let mut silent = server.connect().await;
    assert_eq!(read_all(&mut silent).await, "");
    server.until_closed("handshake-timeout").await;
    let mut plain = server.connect().await;
    plain.write_all(GET).await.unwrap();
    plain.read_to_end(&mut Vec::new()).await.unwrap();
    drop(plain);
    server.until_closed("refused").await;
    assert_eq!((refused("timeout"), refused("not-tls"), refused("probe")), (1, 1, 0));
    server.until("all gone", |server| server.metrics.connections.get() == 0).await;
}

#[tokio::test]
async fn a_good_client_gets_in_through_a_flood_of_silent_ones() {
    let (server, client) =
        start_tls(Limits { max_connections: 8, handshake_timeout: Duration::from_secs(2), ..limits() });
    let mut flood = Vec::new();
    for _ in 0..24 {
        flood.push(server.connect().await);
    }
    let mut stream = timeout(Duration::from_secs(20), connect_tls(&server, &client)).await.unwrap();
    stream.write_all(GET).await.unwrap();
    assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
    assert!(server.metrics.connections_accepted.get() >= 25);
}

#[tokio::test]
async fn http2_is_served_limited_and_drained() {
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let (server, client) = start_tls(Limits { http2: true, ..limits() });
    let stream = TokioIo::new(connect_tls(&server, &client).await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let tasks = TaskTracker::new();
    let connection = tasks.spawn(connection);
    let request = |path: &str, fields: usize| {
        let mut request = hyper::Request::get(format!("https://localhost{path}"));
        for n in 0..fields {
            request = request.header(format!("f{n}"), "v");
        }
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    let answer = sender.send_request(request("/peer", 0)).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"CN=asapp-demo-client"));
    assert_eq!(sender.send_request(request("/", 65)).await.unwrap().status(), 431);
    let waiting = sender.send_request(request("/wait", 0));
    let going = tasks.spawn(waiting);
    server.until("waiting", |server| server.begun.load(Ordering::SeqCst) == 1).await;
    server.phase.send_replace(Phase::Stopping);
    server.go_on.notify_one();
    let answer = going.await.unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "done");
    connection.await.unwrap().unwrap();
    server.ended().await;
}

#[tokio::test]
async fn an_http2_peer_that_never_takes_its_answer_is_closed() {
    use http_body_util::Empty;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let (server, client) = start_tls(Limits { http2: true, write_timeout: SHORT, ..limits() });
    let stream = TokioIo::new(connect_tls(&server, &client).await);
    // It reads on, but gives no answer's body any room.
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new()).initial_stream_window_size(0).clone();
    let (mut sender, connection) = builder.handshake(stream).await.unwrap();
    let tasks = TaskTracker::new();
    tasks.spawn(connection);
    let request = hyper::Request::get("https://localhost/").body(Empty::<Bytes>::new()).unwrap();
    let _answer = sender.send_request(request).await.unwrap();
    server.until_closed("write-timeout").await;
}

#[tokio::test]
async fn a_crowded_port_ends_whoever_has_been_idle_longest() {
    let server = start(Limits { max_connections: 3, seats: Some(1), ..limits() });
    let mut silent = [server.connect().await, server.connect().await];
    let mut served = server.connect().await;
    served.write_all(GET).await.unwrap();
    read_until(&mut served, "hello").await;
    // It said something later than the silent ones came.
    let mut newcomers = Vec::new();
    for silent in &mut silent {
        let mut newcomer = server.connect().await;
        newcomer.write_all(GET).await.unwrap();
        read_until(&mut newcomer, "hello").await;
        newcomers.push(newcomer);
        let mut byte = [0; 1];
        assert!(matches!(timeout(Duration::from_secs(20), silent.read(&mut byte)).await.unwrap(), Ok(0) | Err(_)));
    }
    served.write_all(GET).await.unwrap();
    read_until(&mut served, "hello").await;
}

#[tokio::test]
async fn a_seat_protects_a_request_and_there_are_only_so_many() {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (_phase, phases) = watch::channel(Phase::Serving);
    let wait = |Extension(seat): Extension<super::Seat>| async move {
        if seat.take() { std::future::pending::<&str>().await } else { "no seat" }
    };
    let router = Router::new().route("/", get(|| async { "hello" })).route("/seat", get(wait));
    let limits = Limits { max_connections: 2, seats: Some(1), ..limits() };
    TaskTracker::new().spawn(serve(listener, Transport::Plain, router, limits, None, phases));
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let mut seated = ask("/seat").await;
    // Until the seat is taken.
    let begun = Instant::now();
    while !read_all(&mut ask("/seat").await).await.ends_with("no seat") {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    for _ in 0..10 {
        let _silent = TcpStream::connect(address).await.unwrap();
        assert!(read_all(&mut ask("/").await).await.ends_with("hello"));
    }
    let mut byte = [0; 1];
    let still_open = timeout(SHORT, seated.read(&mut byte)).await;
    assert!(still_open.is_err(), "{still_open:?}");
    // Whoever goes away gives its seat back.
    drop(seated);
}
