//! A receiver that is easily told what to do, with real TLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::super::credentials::{Credentials, Pem};
use super::super::pace::Pace;
use super::super::{Control, Settings, Summary, run};
use crate::envelope::Envelope;

/// What a receiver does with a POST.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// 200, `stored` or `duplicate` by the event's id; 400 for what is no event.
    Honest,
    /// As honest, after so many milliseconds.
    Late(u64),
    /// 200 with an answer that is no JSON.
    Plain,
    Status(u16),
    /// 200, and the connection is closed behind it.
    Close,
    Silence,
    Reset,
}

/// A receiver that demands a client certificate and replies as told, POST by POST, the last reply for all the rest.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    pub(super) credentials: Credentials,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) connections: usize,
    /// Whole ones, each with when it was there, in that order.
    pub(super) posts: Vec<(Instant, Bytes)>,
    /// How often each event has come.
    pub(super) ids: HashMap<String, usize>,
    /// POSTs that ended in the middle of their body.
    pub(super) parts: usize,
    /// Connections that ended otherwise than between requests.
    pub(super) torn: usize,
    pub(super) in_flight: usize,
    pub(super) most_in_flight: usize,
    odd: Vec<String>,
}

impl Receiver {
    pub(super) async fn start(replies: &'static [Reply]) -> Self {
        Self::offering(&[], replies).await
    }

    /// With these protocols in its TLS handshake.
    pub(super) async fn offering(alpn: &[&str], replies: &'static [Reply]) -> Self {
        let pki = Pki::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = pki.server();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
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
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let service = service_fn(|request| reply(request, replies, Arc::clone(&seen)));
                    let served = if http2 {
                        let service = {
                            let seen = Arc::clone(&seen);
                            service_fn(move |request| reply(request, replies, Arc::clone(&seen)))
                        };
                        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        server.serve_connection(TokioIo::new(stream), service).await
                    } else {
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
                    };
                    seen.lock().unwrap().torn += usize::from(served.is_err());
                });
            }
        });
        Self { address, credentials: pki.credentials, seen }
    }

    pub(super) fn settings(&self, events: u64) -> Settings {
        let mut settings =
            Settings::new(format!("https://localhost:{}/events?a=b", self.address.port()), self.credentials.clone());
        settings.events = Some(events);
        settings.pace = Pace::Rate(1_000.0);
        settings.seed = 1;
        // However slow the machine is, no attempt fails for it.
        settings.timeout_ms = 60_000;
        settings
    }

    pub(super) async fn run(&self, events: u64) -> Summary {
        self.run_with(events, |_| ()).await
    }

    pub(super) async fn run_with(&self, events: u64, change: impl FnOnce(&mut Settings)) -> Summary {
        let mut settings = self.settings(events);
        change(&mut settings);
        // As a task, which a run must be able to be.
        TaskTracker::new().spawn(run(settings, Control::default())).await.unwrap().unwrap()
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Seen> {
        let seen = self.seen.lock().unwrap();
        assert_eq!(seen.odd, [""; 0]);
        seen
    }
}

impl Seen {
    /// The ids of whole POSTs, in their order.
    pub(super) fn order(&self) -> Vec<String> {
        self.posts.iter().map(|(_, body)| Envelope::parse(body.clone()).unwrap().event_id().to_owned()).collect()
    }
}

async fn reply(
    request: Request<Incoming>,
    replies: &'static [Reply],
    seen: Arc<Mutex<Seen>>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        seen.lock().unwrap().parts += 1;
        return Err(std::io::Error::other("the client has gone"));
    };
    let body = body.to_bytes();
    let (reply, copies) = {
        let mut seen = seen.lock().unwrap();
        let (path, authority) = match head.version {
            Version::HTTP_2 => (head.uri.path_and_query().unwrap().as_str(), head.uri.authority().unwrap().as_str()),
            _ => (head.uri.path_and_query().unwrap().as_str(), head.headers["host"].to_str().unwrap()),
        };
        let odd = head.method != "POST"
            || path != "/events?a=b"
            || head.headers["content-type"] != "application/json"
            || !authority.starts_with("localhost:");
        if odd {
            seen.odd.push(format!("{head:?}"));
        }
        let reply = replies[seen.posts.len().min(replies.len() - 1)];
        seen.posts.push((Instant::now(), body.clone()));
        let copies = Envelope::parse(body).ok().map(|envelope| {
            let copies = seen.ids.entry(envelope.event_id().to_owned()).or_default();
            *copies += 1;
            *copies
        });
        seen.in_flight += 1;
        seen.most_in_flight = seen.most_in_flight.max(seen.in_flight);
        (reply, copies)
    };
    if let Reply::Late(after) = reply {
        tokio::time::sleep(Duration::from_millis(after)).await;
    }
    seen.lock().unwrap().in_flight -= 1;
    let answer = |status: u16, text: &'static str| {
        Ok(Response::builder().status(status).body(Full::new(Bytes::from_static(text.as_bytes()))).unwrap())
    };
    match (reply, copies) {
        (Reply::Honest | Reply::Late(_), None) => answer(400, "no event"),
        (Reply::Honest | Reply::Late(_), Some(1)) => answer(200, r#"{"status":"stored","event_id":"x"}"#),
        (Reply::Honest | Reply::Late(_), Some(_)) => answer(200, r#"{"status":"duplicate","event_id":"x"}"#),
        (Reply::Plain, _) => answer(200, "thanks"),
        (Reply::Status(status), _) => answer(status, "no"),
        (Reply::Close, _) => {
            let mut response: Result<_, std::io::Error> = answer(200, "");
            response.as_mut().unwrap().headers_mut().insert("connection", "close".parse().unwrap());
            response
        }
        (Reply::Silence, _) => std::future::pending().await,
        (Reply::Reset, _) => Err(std::io::Error::other("reset")),
    }
}

pub(super) struct Pki {
    ca: String,
    server: (String, String),
    pub(super) credentials: Credentials,
}

impl Pki {
    pub(super) fn new() -> Self {
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
