use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::credentials::Pem;
use super::faults::{Break, Place};
use super::link::Failure;
use super::*;
use crate::envelope::Envelope;

/// What a receiver does with a POST.
#[derive(Debug, Clone, Copy)]
enum Reply {
    /// 200, `stored` or `duplicate` by the event's id.
    Honest,
    /// 200 with an answer that is no JSON.
    Plain,
    Status(u16),
    /// 200, and the connection is closed behind it.
    Close,
    Silence,
    Reset,
}

/// A receiver that demands a client certificate and replies as told, POST by POST, the last reply for all the rest.
struct Receiver {
    address: SocketAddr,
    credentials: Credentials,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    posts: usize,
    ids: HashMap<String, usize>,
    odd: Vec<String>,
}

impl Receiver {
    async fn start(replies: &'static [Reply]) -> Self {
        let pki = Pki::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(pki.server()));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let tasks = TaskTracker::new();
        let (shared, connections) = (Arc::clone(&seen), tasks.clone());
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    seen.lock().unwrap().connections += 1;
                    let service = service_fn(|request| reply(request, replies, &seen));
                    // Ends with an error where the reply is to reset the connection.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, credentials: pki.credentials, seen }
    }

    fn settings(&self, events: u64) -> Settings {
        let mut settings =
            Settings::new(format!("https://localhost:{}/events?a=b", self.address.port()), self.credentials.clone());
        settings.events = Some(events);
        settings.pace = Pace::Rate(1_000.0);
        settings.seed = 1;
        settings
    }

    async fn run(&self, events: u64) -> Summary {
        // As a task, which a run must be able to be.
        let run = run(self.settings(events), Control::default());
        TaskTracker::new().spawn(run).await.unwrap().unwrap()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        let seen = self.seen.lock().unwrap();
        assert_eq!(seen.odd, [""; 0]);
        seen
    }
}

async fn reply(
    request: Request<Incoming>,
    replies: &'static [Reply],
    seen: &Mutex<Seen>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let (reply, copies) = {
        let mut seen = seen.lock().unwrap();
        let odd = head.method != "POST"
            || head.uri != "/events?a=b"
            || head.headers["content-type"] != "application/json"
            || !head.headers["host"].to_str().unwrap().starts_with("localhost:");
        if odd {
            seen.odd.push(format!("{head:?}"));
        }
        let reply = replies[seen.posts.min(replies.len() - 1)];
        seen.posts += 1;
        let copies = seen.ids.entry(Envelope::parse(body).unwrap().event_id().to_owned()).or_default();
        *copies += 1;
        (reply, *copies)
    };
    let answer = |status: u16, text: &'static str| {
        Ok(Response::builder().status(status).body(Full::new(Bytes::from_static(text.as_bytes()))).unwrap())
    };
    match reply {
        Reply::Honest if copies > 1 => answer(200, r#"{"status":"duplicate","event_id":"x"}"#),
        Reply::Honest => answer(200, r#"{"status":"stored","event_id":"x"}"#),
        Reply::Plain => answer(200, "thanks"),
        Reply::Status(status) => answer(status, "no"),
        Reply::Close => {
            let mut response: Result<_, std::io::Error> = answer(200, "");
            response.as_mut().unwrap().headers_mut().insert("connection", "close".parse().unwrap());
            response
        }
        Reply::Silence => std::future::pending().await,
        Reply::Reset => Err(std::io::Error::other("reset")),
    }
}

struct Pki {
    ca: String,
    server: (String, String),
    credentials: Credentials,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = |name: &str, usage| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.extended_key_usages = vec![usage];
            (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
        };
        let client = issue("asapp.example", ExtendedKeyUsagePurpose::ClientAuth);
        Self {
            ca: ca.pem(),
            server: issue("localhost", ExtendedKeyUsagePurpose::ServerAuth),
            credentials: Credentials {
                ca: Pem::Text(ca.pem().into()),
                certificate: Pem::Text(client.0.into()),
                private_key: Pem::Text(client.1.into()),
            },
        }
    }

    fn server(&self) -> rustls::ServerConfig {
        let certificates = |pem: &str| {
            use rustls::pki_types::CertificateDer;
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap()
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(certificates(&self.ca));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build().unwrap();
        rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                certificates(&self.server.0),
                PrivateKeyDer::from_pem_slice(self.server.1.as_bytes()).unwrap(),
            )
            .unwrap()
    }
}

fn outcomes(summary: &Summary) -> [u64; 6] {
    let Summary { sent, stored, duplicate, rejected, dropped, attempts, .. } = *summary;
    assert_eq!(sent, stored + duplicate + rejected + dropped);
    [sent, stored, duplicate, rejected, dropped, attempts]
}

#[tokio::test]
async fn each_event_is_posted_once_over_kept_connections() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let summary = receiver.run(200).await;
    assert_eq!(outcomes(&summary), [200, 200, 0, 0, 0, 200]);
    assert_eq!(summary.last_failure, None);
    assert!(summary.latency.percentile(50.0) > 0);
    assert!(summary.latency.percentile(50.0) <= summary.latency.percentile(100.0));
    // Not faster than told: 200 events at 1,000/s.
    assert!(summary.took >= Duration::from_millis(199), "{:?}", summary.took);
    {
        let seen = receiver.seen();
        assert_eq!((seen.posts, seen.ids.len()), (200, 200));
        assert!((1..=8).contains(&seen.connections), "{} connections", seen.connections);
    }
    // The same seed sends the same ids again.
    assert_eq!(outcomes(&receiver.run(200).await), [200, 0, 200, 0, 0, 200]);
}

#[tokio::test]
async fn any_200_is_a_success() {
    let receiver = Receiver::start(&[Reply::Plain, Reply::Close, Reply::Close, Reply::Plain]).await;
    let mut settings = receiver.settings(6);
    settings.connections = 1;
    let summary = run(settings, Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [6, 6, 0, 0, 0, 6]);
    assert_eq!(receiver.seen().connections, 3);
}

#[tokio::test]
async fn anything_but_200_is_tried_again() {
    let receiver = Receiver::start(&[Reply::Status(503), Reply::Reset, Reply::Status(204), Reply::Honest]).await;
    let summary = receiver.run(1).await;
    // The first copy was seen, so an honest receiver says so.
    assert_eq!(outcomes(&summary), [1, 0, 1, 0, 0, 4]);
    assert_eq!(summary.last_failure, Some(Failure::Status(hyper::StatusCode::NO_CONTENT)));
}

#[tokio::test]
async fn after_the_last_retry_an_event_is_dropped() {
    let receiver = Receiver::start(&[Reply::Status(503)]).await;
    let mut settings = receiver.settings(3);
    settings.retries = 1;
    let summary = run(settings.clone(), Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [3, 0, 0, 0, 3, 6]);
    assert_eq!(summary.latency.percentile(99.0), 0);
    assert!(summary.to_string().ends_with("last failure: answered 503 Service Unavailable"), "{summary}");

    let receiver = Receiver::start(&[Reply::Status(422)]).await;
    settings.url = receiver.settings(0).url;
    settings.credentials = receiver.credentials.clone();
    settings.retries = 0;
    let summary = run(settings, Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [3, 0, 0, 3, 0, 3]);
}

#[tokio::test]
async fn silence_ends_at_the_timeout() {
    let receiver = Receiver::start(&[Reply::Silence]).await;
    let mut settings = receiver.settings(2);
    settings.timeout_ms = 50;
    settings.retries = 1;
    let summary = run(settings, Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [2, 0, 0, 0, 2, 4]);
    assert_eq!(summary.last_failure, Some(Failure::Timeout));
}

#[tokio::test]
async fn without_an_accepted_certificate_nothing_is_sent() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let stranger = Pki::new().credentials;
    let refused = async |change: &dyn Fn(&mut Settings)| {
        let mut settings = receiver.settings(1);
        settings.retries = 0;
        change(&mut settings);
        let summary = run(settings, Control::default()).await.unwrap();
        assert_eq!(outcomes(&summary), [1, 0, 0, 0, 1, 1]);
        summary.last_failure.unwrap().to_string()
    };
    // The receiver does not trust the client.
    let told = refused(&|settings| {
        settings.credentials.certificate = stranger.certificate.clone();
        settings.credentials.private_key = stranger.private_key.clone();
    })
    .await;
    assert!(told.contains("alert"), "{told}");
    // The client does not trust the receiver, or finds it under another name.
    let told = refused(&|settings| settings.credentials.ca = stranger.ca.clone()).await;
    assert!(told.contains("certificate"), "{told}");
    let told = refused(&|settings| settings.url = settings.url.replace("localhost", "127.0.0.1")).await;
    assert!(told.contains("certificate"), "{told}");
    assert_eq!(receiver.seen().posts, 0);
}

#[tokio::test]
async fn stopping_sees_events_under_way_to_their_end() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let mut settings = receiver.settings(0);
    settings.events = None;
    let stop = Control::default();
    let watch = async {
        while receiver.seen().posts < 20 {
            tokio::task::yield_now().await;
        }
        stop.stop();
    };
    let (summary, ()) = tokio::join!(run(settings, stop.clone()), watch);
    let summary = summary.unwrap();
    assert!(summary.sent >= 20);
    assert_eq!(outcomes(&summary), [summary.sent, summary.sent, 0, 0, 0, summary.sent]);
    assert_eq!(receiver.seen().posts as u64, summary.sent);
}

#[tokio::test]
async fn a_duration_ends_the_run() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let mut settings = receiver.settings(0);
    settings.events = None;
    settings.pace = Pace::Rate(200.0);
    settings.duration = Some(Duration::from_millis(100));
    let summary = run(settings, Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [20, 20, 0, 0, 0, 20]);
}

#[tokio::test]
async fn what_can_never_work_is_an_error() {
    let pki = Pki::new();
    let run_with = async |change: &dyn Fn(&mut Settings)| {
        let mut settings = Settings::new("https://localhost:1/".into(), pki.credentials.clone());
        change(&mut settings);
        run(settings, Control::default()).await.map(drop).unwrap_err().to_string()
    };
    for url in ["http://localhost/", "localhost", "https://", "https://loc alhost/"] {
        assert_eq!(run_with(&|settings| settings.url = url.into()).await, "the URL has to be https://HOST[:PORT]/PATH");
    }
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(run_with(&|settings| settings.pace = Pace::Rate(rate)).await.contains("rate"));
    }
    assert!(run_with(&|settings| settings.connections = 0).await.contains("connections"));
    let told = run_with(&|settings| settings.credentials.ca = Pem::File("/nonexistent/ca.pem".into())).await;
    assert_eq!(told, "the CA, /nonexistent/ca.pem, cannot be read");
    let told = run_with(&|settings| settings.credentials.certificate = Pem::Text(Vec::new())).await;
    assert_eq!(told, "the client certificate, given in memory, holds no certificate");
    assert!(!format!("{:?}", pki.credentials).contains("BEGIN"));
}
