//! The event route: a request to [`Ingest`], its outcome to a status code. The only code that knows inbound HTTP.
//!
//! The order is the contract: route, count as received, length, place and budget, body against one deadline, then
//! [`Ingest`]. Nothing is read of a body before its bytes are in the budget.

use std::future::ready;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use crate::admission::{Admission, Admitted, Outcome, TooMany};
use crate::config;
use crate::envelope::Rejection;
use crate::ingest::{Ingest, Origin, Refusal};
use crate::journal::{Appended, Receipt, Refused};
use crate::problem::{Kind, Problem};
use crate::server::Handler;
use crate::telemetry::Metrics;
use crate::tls::PeerIdentity;
use crate::traces::{self, Traces};

/// A body whose length was not announced begins with a budget of this many bytes, which doubles as it grows.
const GROWTH: usize = 16 * 1024;
/// Longer ones are not kept: version 00 has 55 bytes.
const MAX_TRACEPARENT: usize = 256;

/// The event port: what [`serve`](crate::server::serve) hands its requests to. They carry their [`PeerIdentity`] as an
/// extension; one without is never taken.
#[derive(Clone)]
pub struct Receiver {
    door: Arc<Door>,
}

impl Receiver {
    #[must_use]
    pub fn new(
        endpoints: Vec<Arc<config::Endpoint>>,
        ingest: Ingest,
        admission: Admission,
        listen: &config::Listen,
        metrics: Arc<Metrics>,
        traces: Traces,
    ) -> Self {
        let (max_body_bytes, body_timeout) = (listen.max_body_bytes, listen.body_timeout);
        Self { door: Arc::new(Door { endpoints, ingest, admission, metrics, traces, max_body_bytes, body_timeout }) }
    }
}

impl Handler for Receiver {
    /// A few paths, each meant as it is written: that needs no router, and the way to the 200 is shorter without one.
    fn handle(&self, request: Request<Incoming>) -> impl Future<Output = Response> + Send {
        let door = &*self.door;
        // As unwind safe as what comes after it.
        match catch_unwind(AssertUnwindSafe(|| door.route(request))) {
            Ok(Ok((body, origin, content))) => {
                let span = origin.span.clone();
                guarded(door.answer(body, origin, content), &door.metrics, span).left_future()
            }
            Ok(Err(response)) => ready(*response).right_future(),
            Err(_panic) => ready(bug(&door.metrics)).right_future(),
        }
    }
}

fn not_post() -> Response {
    let mut response = Problem::new(Kind::MethodNotAllowed, "events are sent with POST").into_response();
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(Method::POST.as_str()));
    response
}

/// Turns a panic into a counted 500, and ends the request's span.
fn guarded(
    answer: impl Future<Output = Response>,
    metrics: &Metrics,
    span: traces::Ingest,
) -> impl Future<Output = Response> {
    // Unwind safe: what the answer held is dropped, and what it shares is either atomic or owned by another task.
    AssertUnwindSafe(answer).catch_unwind().map(move |answered| {
        let response = answered.unwrap_or_else(|_panic| {
            span.outcome(Kind::Internal.word());
            bug(metrics)
        });
        span.answered(response.status());
        response
    })
}

fn bug(metrics: &Metrics) -> Response {
    metrics.panics.inc();
    Problem::new(Kind::Internal, "a bug; the event may or may not be stored, send it again").into_response()
}

/// What every request needs; shared by all of them.
struct Door {
    endpoints: Vec<Arc<config::Endpoint>>,
    ingest: Ingest,
    admission: Admission,
    metrics: Arc<Metrics>,
    traces: Traces,
    max_body_bytes: usize,
    body_timeout: Duration,
}

/// What the head says of a body.
#[derive(Clone, Copy)]
struct Content {
    is_json: bool,
    is_encoded: bool,
}

impl Door {
    /// What there is to know of a POST on an event path before its body is read. A request's future is moved around and
    /// lives as long as its answer takes: nothing else of the head goes into it.
    fn route(&self, request: Request<Incoming>) -> Result<(Incoming, Origin, Content), Box<Response>> {
        let Some(endpoint) = self.endpoints.iter().find(|endpoint| endpoint.path == request.uri().path()) else {
            self.count_unrouted(Kind::NotFound);
            return Err(Box::new(Problem::new(Kind::NotFound, "no endpoint has this path").into_response()));
        };
        if request.method() != Method::POST {
            self.count_unrouted(Kind::MethodNotAllowed);
            return Err(Box::new(not_post()));
        }
        let (mut head, body) = request.into_parts();
        let Some(peer) = head.extensions.remove::<PeerIdentity>() else {
            tracing::error!(endpoint = endpoint.name, "request without a peer identity");
            let problem = Problem::new(Kind::Internal, "the connection has no identity");
            return Err(Box::new(problem.closing().into_response()));
        };
        let headers = &head.headers;
        let traceparent = traceparent(headers);
        let span = self.traces.ingest(&endpoint.name, &endpoint.path, traceparent.as_deref(), headers);
        let traceparent = span.traceparent(traceparent);
        let origin = Origin { endpoint: Arc::clone(endpoint), peer, traceparent, span };
        Ok((body, origin, Content { is_json: is_json(headers), is_encoded: is_encoded(headers) }))
    }

    async fn answer(&self, body: Incoming, origin: Origin, content: Content) -> Response {
        let span = origin.span.clone();
        let (body, admitted) = match self.take(body).await {
            Ok(taken) => taken,
            Err(cut) => {
                span.outcome(cut.outcome().word());
                return self.cut_off(cut);
            }
        };
        if !content.is_json {
            self.metrics.odd_content_type.inc();
        }
        let outcome = if content.is_encoded {
            Box::pin(self.ingest.reject(Refusal::Encoded, body, origin, admitted)).await
        } else {
            self.ingest.accept(body, origin, admitted).await
        };
        match outcome {
            Ok(Appended::Stored(receipt)) => durable("stored", &receipt, &span),
            Ok(Appended::Duplicate(receipt)) => durable("duplicate", &receipt, &span),
            Err(refusal) => {
                span.outcome(refusal.word());
                self.metrics.answered_late.inc_by(u64::from(refusal.is_late()));
                Problem::from(refusal).into_response()
            }
        }
    }

    #[cold]
    fn count_unrouted(&self, kind: Kind) {
        self.metrics.unrouted.get_or_create(&[("reason", kind.word())]).inc();
    }

    /// Counts the request as received and reads its body, as far as length, budget and deadline allow.
    async fn take(&self, body: Incoming) -> Result<(Bytes, Admitted), Cut> {
        let received = self.admission.receive();
        let announced = body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        let most = self.max_body_bytes.min(self.ingest.largest_body());
        if announced.is_some_and(|length| length > most) {
            received.settle(Outcome::Rejected(Kind::TooLarge.word()));
            return Err(Cut::TooLarge { most });
        }
        let mut admitted = self.admission.admit(received, announced.unwrap_or(0))?;
        let read = timeout(self.body_timeout, self.read(body, announced, most, &mut admitted)).await;
        match read.unwrap_or(Err(Cut::Late)) {
            Ok(body) => Ok((body, admitted)),
            Err(cut) => {
                admitted.settle(cut.outcome());
                Err(cut)
            }
        }
    }

    /// The body in memory of its own, as much as there is budget for: the connection's buffer, of which it is a part and
    /// which is larger, is free for the next request.
    async fn read(
        &self,
        mut body: Incoming,
        announced: Option<usize>,
        most: usize,
        admitted: &mut Admitted,
    ) -> Result<Bytes, Cut> {
        let mut budget = announced.unwrap_or(0);
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| Cut::Broken)?.into_data() else { continue };
            if whole.is_empty() && body.is_end_stream() && data.len() <= budget {
                return Ok(Bytes::copy_from_slice(&data));
            }
            let length = whole.len() + data.len();
            if length > most {
                return Err(Cut::TooLarge { most });
            }
            if length > budget {
                let wider = length.max(2 * budget).next_multiple_of(GROWTH).min(most);
                admitted.grow(wider - budget)?;
                budget = wider;
            }
            // As much memory as there is budget for, however the buffer would grow by itself.
            whole.reserve(budget - whole.len());
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    }

    fn cut_off(&self, cut: Cut) -> Response {
        let problem = match cut {
            Cut::TooLarge { most } => Problem::new(Kind::TooLarge, format!("the body is over {most} bytes")),
            Cut::TooMany => Problem::new(Kind::TooMany, "too many requests or bytes are in flight; send it again"),
            Cut::Late => Problem::new(Kind::Timeout, format!("the body took longer than {:?}", self.body_timeout)),
            // As for a head that cannot be parsed: no body, and the connection ends.
            Cut::Broken => return (StatusCode::BAD_REQUEST, [(header::CONNECTION, "close")]).into_response(),
        };
        problem.closing().into_response()
    }
}

/// Why a body was not read to its end.
#[derive(Clone, Copy)]
enum Cut {
    TooLarge {
        most: usize,
    },
    TooMany,
    Late,
    /// The client went away, or broke the body's framing.
    Broken,
}

impl Cut {
    fn outcome(self) -> Outcome {
        match self {
            Self::TooLarge { .. } => Outcome::Rejected(Kind::TooLarge.word()),
            Self::TooMany => Outcome::Refused(Kind::TooMany.word()),
            Self::Late => Outcome::Rejected(Kind::Timeout.word()),
            Self::Broken => Outcome::Rejected("aborted"),
        }
    }
}

impl From<TooMany> for Cut {
    fn from(_: TooMany) -> Self {
        Self::TooMany
    }
}

/// The only 200: it takes the journal's proof.
fn durable(status: &'static str, receipt: &Receipt, span: &traces::Ingest) -> Response {
    span.outcome(status);
    let mut body = Vec::with_capacity(96);
    body.extend_from_slice(br#"{"status":""#);
    body.extend_from_slice(status.as_bytes());
    body.extend_from_slice(br#"","event_id":"#);
    // Writing a string to a Vec cannot fail.
    let _ = serde_json::to_writer(&mut body, receipt.event_id());
    body.push(b'}');
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let kind = match &refusal {
            Refusal::Rejected(Rejection::Malformed { .. }) => Kind::Malformed,
            Refusal::Rejected(Rejection::Incomplete { .. }) | Refusal::WrongFeed => Kind::Incomplete,
            Refusal::Encoded => Kind::UnsupportedMedia,
            Refusal::Unavailable(Refused::TooLarge) => Kind::TooLarge,
            Refusal::Unavailable(_) => Kind::Unavailable,
        };
        Self::new(kind, refusal.to_string())
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    let essence = value.as_bytes().split(|&byte| byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
}

fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// The request's `traceparent`, if there is one that can be passed on as it is.
fn traceparent(headers: &HeaderMap) -> Option<Box<str>> {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let bytes = value.as_bytes();
    let sane = (1..=MAX_TRACEPARENT).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    value.to_str().ok().filter(|_| sane).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn listen() -> config::Listen {
        config::Listen {
            address: ([127, 0, 0, 1], 0).into(),
            max_connections: 1,
            max_in_flight: 1,
            max_in_flight_bytes: 4096,
            max_body_bytes: 4096,
            handshake_timeout: Duration::ZERO,
            header_timeout: Duration::ZERO,
            body_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            max_connection_age: Duration::ZERO,
            answer_within: Duration::ZERO,
            drain_timeout: Duration::ZERO,
            pre_drain: Duration::ZERO,
            http2: false,
            proxies: None,
        }
    }

    #[test]
    fn only_application_json_is_no_odd_content_type() {
        for usual in ["application/json", "Application/JSON", "application/json; charset=utf-8"] {
            assert!(is_json(&headers(&[("content-type", usual)])), "{usual}");
        }
        for odd in ["text/plain", "application/jsonl", "application/cloudevents+json", ""] {
            assert!(!is_json(&headers(&[("content-type", odd)])), "{odd}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[test]
    fn any_coding_but_identity_is_an_encoding() {
        assert!(!is_encoded(&HeaderMap::new()));
        assert!(!is_encoded(&headers(&[("content-encoding", "Identity"), ("content-encoding", "identity, ")])));
        for coding in ["gzip", "identity, br", "x"] {
            assert!(is_encoded(&headers(&[("content-encoding", coding)])), "{coding}");
        }
        assert!(is_encoded(&headers(&[("content-encoding", "identity"), ("content-encoding", "zstd")])));
    }

    #[test]
    fn a_traceparent_is_kept_only_if_it_can_be_passed_on() {
        let usual = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(traceparent(&headers(&[("traceparent", usual)])).as_deref(), Some(usual));
        assert_eq!(traceparent(&headers(&[("traceparent", usual), ("traceparent", usual)])), None);
        assert_eq!(traceparent(&headers(&[("traceparent", "a b")])), None);
        assert_eq!(traceparent(&headers(&[("traceparent", "")])), None);
        let mut long = HeaderMap::new();
        long.insert("traceparent", HeaderValue::from_bytes(&[b'a'; MAX_TRACEPARENT + 1]).unwrap());
        assert_eq!(traceparent(&long), None);
    }

    #[tokio::test]
    async fn a_panic_is_a_500_and_the_accounting_still_adds_up() {
        let metrics = Arc::new(Metrics::new());
        let admission = Admission::new(&listen(), Arc::clone(&metrics));
        let received = admission.receive();
        let mut admitted = admission.admit(received, 1).unwrap();
        let held = async move {
            tokio::task::yield_now().await;
            assert!(admitted.grow(usize::MAX).is_ok(), "marker of a value");
            drop(admitted);
            StatusCode::OK.into_response()
        };
        let none = Traces::none().ingest("events", "/events", None, &HeaderMap::new());
        let response = guarded(held, &metrics, none).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!body.windows(6).any(|part| part == b"marker"));
        assert_eq!(metrics.panics.get(), 1);
        assert_eq!(metrics.in_flight.get(), 0);
        assert_eq!(metrics.refused.get_or_create(&[("reason", "internal")]).get(), 1);
    }
}
