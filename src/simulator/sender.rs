//! Sends one event as ASAPP does: one POST, a 200 in time or another attempt, and after the last one it is dropped.

use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::poll_fn;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// The longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// ASAPP does not say how long it waits before it tries again; this doubles with every attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What mutual TLS needs.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Whom to trust as a receiver.
    pub ca: Pem,
    /// The client's certificate and its chain.
    pub certificate: Pem,
    pub private_key: Pem,
}

#[derive(Clone)]
pub enum Pem {
    File(PathBuf),
    Text(Vec<u8>),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the URL has to be https://HOST[:PORT]/PATH")]
    Url,
    #[error("the {what}, {place}, cannot be read")]
    Pem { what: &'static str, place: String, source: pem::Error },
    #[error("the {what}, {place}, holds no certificate")]
    NoCertificate { what: &'static str, place: String },
    #[error("the certificates and the key cannot be used")]
    Tls(#[from] rustls::Error),
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub outcome: Outcome,
    /// POSTs tried, at least 1.
    pub attempts: u32,
    /// What the last failed attempt met.
    pub failure: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// 200, which is all ASAPP looks at.
    Stored,
    /// 200, and the answer's `status` says `duplicate`.
    Duplicate,
    /// Answered with a 4xx at the last attempt.
    Rejected,
    /// Anything else at the last attempt.
    Dropped,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("no answer in time")]
    Timeout,
    #[error("{0}")]
    Connection(String),
}

/// Keeps connections alive between events. Each event under way has one to itself.
pub struct Sender {
    tls: TlsConnector,
    host: ServerName<'static>,
    /// Host and port to connect to.
    address: (String, u16),
    authority: HeaderValue,
    target: Uri,
    timeout: Duration,
    retries: u32,
    idle: Mutex<Vec<Link>>,
}

type Driver = http1::Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>>;

/// One connection; its driver makes progress only while it is polled here.
struct Link {
    requests: SendRequest<Full<Bytes>>,
    driver: Pin<Box<Driver>>,
    ended: bool,
}

impl Sender {
    /// `timeout` is for one attempt, connecting included; `retries` come after the first attempt.
    ///
    /// # Errors
    /// A bad URL, or certificates or a key that cannot be read or used.
    pub fn new(url: &str, credentials: &Credentials, timeout: Duration, retries: u32) -> Result<Self, Error> {
        let url: Uri = url.parse().map_err(|_| Error::Url)?;
        let (Some("https"), Some(authority)) = (url.scheme_str(), url.authority()) else { return Err(Error::Url) };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let target = url.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            tls: TlsConnector::from(Arc::new(credentials.client_config()?)),
            host: ServerName::try_from(host.clone()).map_err(|_| Error::Url)?,
            address: (host, authority.port_u16().unwrap_or(443)),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| Error::Url)?,
            target: target.parse().map_err(|_| Error::Url)?,
            timeout,
            retries,
            idle: Mutex::default(),
        })
    }

    /// Once `stop` is cancelled no further attempt is begun.
    pub async fn send(&self, body: Bytes, stop: &CancellationToken) -> Settled {
        let mut failure = None;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match tokio::time::timeout(self.timeout, self.attempt(body.clone())).await.unwrap_or(Err(Failure::Timeout))
            {
                Ok(outcome) => return Settled { outcome, attempts, failure },
                Err(met) => failure = Some(met),
            }
            let pause = FIRST_PAUSE.saturating_mul(1 << (attempts - 1).min(6));
            let over = attempts > self.retries || stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none();
            if over {
                let outcome = match failure {
                    Some(Failure::Status(status)) if status.is_client_error() => Outcome::Rejected,
                    _ => Outcome::Dropped,
                };
                return Settled { outcome, attempts, failure };
            }
        }
    }

    async fn attempt(&self, body: Bytes) -> Result<Outcome, Failure> {
        let mut link = match self.idle_link().await {
            Some(link) => link,
            None => self.connect().await.map_err(Failure::of)?,
        };
        let mut request = Request::post(self.target.clone()).body(Full::new(body)).map_err(Failure::of)?;
        request.headers_mut().insert(HOST, self.authority.clone());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (status, answer) = link.exchange(request).await?;
        if link.stays_open().await {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(link);
        }
        if status != StatusCode::OK {
            return Err(Failure::Status(status));
        }
        Ok(if says_duplicate(&answer) { Outcome::Duplicate } else { Outcome::Stored })
    }

    /// A connection that the receiver has not closed meanwhile.
    async fn idle_link(&self) -> Option<Link> {
        loop {
            let mut link = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if link.stays_open().await {
                return Some(link);
            }
        }
    }

    async fn connect(&self) -> io::Result<Link> {
        let (host, port) = &self.address;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(self.host.clone(), stream).await?;
        let (requests, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        Ok(Link { requests, driver: Box::pin(driver), ended: false })
    }
}

impl Link {
    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Failure> {
        let requests = &mut self.requests;
        let exchange = async {
            requests.ready().await.map_err(Failure::of)?;
            let (head, body) = requests.send_request(request).await.map_err(Failure::of)?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(Failure::of)?;
            Ok((head.status, body.to_bytes()))
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

    /// Lets the driver see what has come in since it was polled last.
    async fn stays_open(&mut self) -> bool {
        if !self.ended {
            self.ended = poll_fn(|context| Poll::Ready(self.driver.as_mut().poll(context).is_ready())).await;
        }
        !self.ended && !self.requests.is_closed()
    }
}

impl Credentials {
    fn client_config(&self) -> Result<ClientConfig, Error> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in self.ca.certificates("CA")? {
            roots.add(certificate)?;
        }
        let chain = self.certificate.certificates("client certificate")?;
        let key = self.private_key.private_key("client key")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

impl Pem {
    fn certificates(&self, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let read = match self {
            Self::File(path) => CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>),
            Self::Text(text) => CertificateDer::pem_slice_iter(text).collect(),
        };
        let place = || self.to_string();
        match read {
            Ok(found) if found.is_empty() => Err(Error::NoCertificate { what, place: place() }),
            Ok(found) => Ok(found),
            Err(source) => Err(Error::Pem { what, place: place(), source }),
        }
    }

    fn private_key(&self, what: &'static str) -> Result<PrivateKeyDer<'static>, Error> {
        match self {
            Self::File(path) => PrivateKeyDer::from_pem_file(path),
            Self::Text(text) => PrivateKeyDer::from_pem_slice(text),
        }
        .map_err(|source| Error::Pem { what, place: self.to_string(), source })
    }
}

impl std::fmt::Display for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Text(_) => f.write_str("given in memory"),
        }
    }
}

/// Never shows what it holds: it may be a key.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
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

/// Another receiver may answer whatever it likes with its 200.
fn says_duplicate(answer: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Answer<'a> {
        status: &'a str,
    }
    serde_json::from_slice::<Answer<'_>>(answer).is_ok_and(|answer| answer.status == "duplicate")
}
