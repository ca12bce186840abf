//! Events to an HTTP server, one request a batch.

mod answer;
mod kind;
mod reach;
mod secret;
mod settings;
mod sign;
mod trust;
mod unusable;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::Full;
use hyper::HeaderMap;
use hyper::Request;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, Entry, HeaderName, HeaderValue, USER_AGENT};
use tokio::time::{Instant, timeout_at};

use self::secret::SecretFile;
pub use self::settings::{Batch, Settings, Tls};
use self::sign::Signer;
use self::unusable::Unusable;
use super::compress::Compress;
use super::sink::{Failure, FailureKind, Sink};
use crate::journal::Event;
use crate::outbound::{self, Answer, Client};
use crate::shape::{Format, Shape};
use crate::{traces, whole};

/// Of one event. Servers take no larger heads, most answer 431, and their answer to this event would always be the same.
const ATTRIBUTE_BYTES: usize = 8 << 10;
/// A larger body is compressed on a thread that may block.
const LARGE: usize = 64 << 10;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REPLAYED: HeaderName = HeaderName::from_static("asapp-receiver-replayed");
const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Sends each batch it is given as one request. Clones share their connections and secrets.
#[derive(Clone)]
pub(crate) struct Http(Arc<Shared>);

struct Shared {
    client: Client,
    settings: Settings,
    shape: Shape,
    /// Host and port, as reasons may tell them.
    host: String,
    /// What every request has.
    headers: HeaderMap,
    token: Option<SecretFile<HeaderValue>>,
    signer: Option<SecretFile<Signer>>,
}

impl Http {
    /// Reads the files that the settings name. Connects to nobody.
    ///
    /// # Errors
    /// When one of them, or the URL, cannot be used.
    pub(super) fn new(settings: &Settings, shape: Shape) -> Result<Self, Unusable> {
        let url = &settings.url;
        let host = url.host().unwrap_or_default();
        let host = url.port_u16().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let tls = trust::client_config(settings)?;
        // The whole exchange has the same deadline.
        let client = Client::new(url, tls, settings.timeout, settings.pool_max_age).map_err(|_| {
            Unusable::new("url", None, "is no address of HTTP", "write http or https, a host, and a path")
        })?;
        let token = settings.bearer_token_file.as_deref();
        let token = token.map(|file| SecretFile::open("bearer_token_file", file, bearer)).transpose()?;
        let signer = settings.signing_secret_file.as_deref();
        let signer = signer.map(|file| SecretFile::open("signing_secret_file", file, signer_of)).transpose()?;
        warn_of_exposed(settings);
        let headers = headers(settings, &shape);
        Ok(Self(Arc::new(Shared { client, settings: settings.clone(), shape, host, headers, token, signer })))
    }
}

impl Sink for Http {
    async fn deliver(&mut self, batch: &[Event]) -> Result<(), Failure> {
        let Some(first) = batch.first() else { return Ok(()) };
        let sink = &*self.0;
        let end = Instant::now() + sink.settings.timeout;
        let answer = sink.exchange(first, batch, end).await?;
        traces::note_answer(answer.status);
        let outcome = answer::outcome(answer.status, &answer.headers, SystemTime::now());
        // The status has decided; the rest is only in the way.
        answer.finish().await;
        outcome
    }
}

impl Shared {
    /// The answer's head, or why there is none until `end`.
    async fn exchange(&self, first: &Event, batch: &[Event], end: Instant) -> Result<Answer, Failure> {
        let Ok(request) = timeout_at(end, self.request(first, batch)).await else { return Err(self.late()) };
        self.client.send(request?, end).await.map_err(|error| match error {
            outbound::Error::Late => self.late(),
            error => Failure::of_target(0, answer::reason(&error, &self.host)),
        })
    }

    fn late(&self) -> Failure {
        let within = humantime::format_duration(self.settings.timeout);
        Failure::of_target(0, format!("no answer from {} within {within}", self.host))
    }

    async fn request(&self, first: &Event, batch: &[Event]) -> Result<Request<Full<Bytes>>, Failure> {
        let mut headers = self.headers.clone();
        let (body, id) = if self.settings.batch.max_events == 1 {
            (self.single(first, &mut headers)?, sign::key_of(first.event_id()))
        } else {
            (self.array(batch), sign::key_of_all(batch.iter().map(Event::event_id)))
        };
        self.signed(first, headers, body, id).await.map_err(|reason| Failure::of_target(0, reason))
    }

    async fn signed(
        &self,
        first: &Event,
        mut headers: HeaderMap,
        body: Bytes,
        id: String,
    ) -> Result<Request<Full<Bytes>>, String> {
        if first.is_replayed() {
            headers.insert(REPLAYED, HeaderValue::from_static("true"));
        }
        if let Some(token) = &self.token {
            headers.insert(AUTHORIZATION, token.get().await?.as_ref().clone());
        }
        if let Some(signer) = &self.signer {
            let message = sign::Message::new(&id, SystemTime::now(), &body);
            headers.insert(WEBHOOK_SIGNATURE, value(signer.get().await?.sign(&message))?);
            headers.insert(WEBHOOK_TIMESTAMP, message.timestamp.into());
            headers.insert(WEBHOOK_ID, value(message.id)?);
        }
        headers.insert(IDEMPOTENCY_KEY, value(id)?);
        if let Some(traceparent) = traces::traceparent() {
            headers.insert(TRACEPARENT, traceparent);
        }
        let body = match self.settings.compress {
            Compress::Gzip => compressed(body).await?,
            Compress::None | Compress::Zstd => body,
        };
        let mut request = Request::new(Full::new(body));
        request.method_mut().clone_from(&self.settings.method);
        request.uri_mut().clone_from(&self.settings.url);
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// The event itself.
    fn single(&self, event: &Event, headers: &mut HeaderMap) -> Result<Bytes, Failure> {
        if let Some(traceparent) = event.traceparent().and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(TRACEPARENT, traceparent);
        }
        if self.shape.format() != Format::CloudEvents {
            return Ok(self.shape.text(event));
        }
        let data = self.shape.data(event);
        let attributes = self.shape.attributes(event, &data);
        if attributes.iter().map(|(name, text)| name.len() + text.len()).sum::<usize>() > ATTRIBUTE_BYTES {
            let reason = "its CloudEvents attributes are larger than 8 KiB, too large for headers; batches have room";
            return Err(Failure { delivered: 0, kind: FailureKind::Reject, reason: reason.to_owned() });
        }
        for (name, text) in attributes {
            let value = value(text).map_err(|reason| Failure::of_target(0, reason))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        Ok(data)
    }

    /// The events in a JSON array, even if there is one only.
    fn array(&self, batch: &[Event]) -> Bytes {
        let mut body = Vec::with_capacity(batch.iter().map(|event| event.body().len() + 1).sum::<usize>() + 1);
        for event in batch {
            body.push(if body.is_empty() { b'[' } else { b',' });
            body.extend_from_slice(&self.shape.text(event));
        }
        body.push(b']');
        body.into()
    }
}

/// What every request of the sink has. The settings' own `Content-Type` and `User-Agent` take the place of these.
fn headers(settings: &Settings, shape: &Shape) -> HeaderMap {
    let mut headers = settings.headers.clone();
    let content = match (shape.format(), settings.batch.max_events) {
        (Format::CloudEvents, 2..) => "application/cloudevents-batch+json",
        _ => "application/json",
    };
    let agent = concat!("asapp-receiver/", env!("CARGO_PKG_VERSION"));
    for (name, value) in [(CONTENT_TYPE, content), (USER_AGENT, agent)] {
        if let Entry::Vacant(vacant) = headers.entry(name) {
            vacant.insert(HeaderValue::from_static(value));
        }
    }
    if settings.compress == Compress::Gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers
}

fn warn_of_exposed(settings: &Settings) {
    for (key, file) in settings.secret_files().filter(|(_, file)| secret::is_exposed(file)) {
        tracing::warn!(key, file = %file.display(), "any user of this machine can read a secret: chmod o-rwx it");
    }
}

fn signer_of(text: &str) -> Result<Signer, String> {
    Signer::parse(text).map_err(str::to_owned)
}

/// The header of a token file's text.
fn bearer(text: &str) -> Result<HeaderValue, String> {
    let token = whole::word(text.as_bytes())?;
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| "holds no token".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// `text` has nothing but visible ASCII and spaces.
fn value(text: String) -> Result<HeaderValue, String> {
    HeaderValue::try_from(text).map_err(|_| "a header's value cannot be written".to_owned())
}

/// gzip, fast rather than small.
async fn compressed(body: Bytes) -> Result<Bytes, String> {
    let large = body.len() > LARGE;
    let compress = move || -> std::io::Result<Bytes> {
        let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4 + 64), Compression::fast());
        encoder.write_all(&body)?;
        Ok(encoder.finish()?.into())
    };
    let done = if large { tokio::task::spawn_blocking(compress).await.ok() } else { Some(compress()) };
    done.and_then(Result::ok).ok_or_else(|| "the body could not be compressed".to_owned())
}

/// Says nothing of tokens, keys and passwords.
impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("host", &self.0.host).finish_non_exhaustive()
    }
}
