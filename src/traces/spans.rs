//! What spans there are, where they hang, and what they say.

use std::sync::{Arc, Mutex, PoisonError};

use hyper::header::HeaderValue;
use hyper::{HeaderMap, StatusCode, Uri};
use opentelemetry::context::FutureExt;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, Span};
use tokio::time::Instant;

use super::export::{Export, Settings};
use crate::envelope::Envelope;
use crate::journal::Event;

/// Of an event's own words so many bytes are told.
const MAX_WORD: usize = 256;

/// Makes the process's spans. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Traces(Option<Arc<Exported>>);

#[derive(Debug)]
struct Exported {
    tracer: SdkTracer,
    export: Export,
}

/// The span of a request on an event path, from its head to its answer. Cheap to clone; what is told through one clone all
/// tell. When the last one goes without an answer, the client has gone away.
#[derive(Debug, Clone)]
pub struct Ingest(Option<Arc<Mutex<Asked>>>);

#[derive(Debug)]
struct Asked {
    span: Span,
    answered: bool,
}

/// The attempts of one sink to deliver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Deliveries(Option<Arc<Target>>);

#[derive(Debug)]
struct Target {
    traces: Arc<Exported>,
    name: String,
    attributes: Vec<KeyValue>,
}

/// The span of one attempt to deliver one batch.
#[derive(Debug)]
pub struct Attempt(Option<Context>);

impl Traces {
    /// Makes no spans.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Exports what the environment says, as OpenTelemetry specifies it; without an endpoint there, nothing is. What the
    /// environment says and cannot be used is warned about: traces never stand in the way of events.
    #[must_use]
    pub fn start() -> Self {
        let export = match Settings::from_environment() {
            Ok(Some(settings)) => Export::start(settings),
            Ok(None) => return Self(None),
            Err(reason) => Err(reason),
        };
        match export {
            Ok(export) => {
                let tracer = export.provider().tracer("asapp-receiver");
                Self(Some(Arc::new(Exported { tracer, export })))
            }
            Err(reason) => {
                tracing::warn!("no traces are exported: {reason}");
                Self(None)
            }
        }
    }

    /// Begins the span of a request whose head was read. `traceparent` is what the head has of it.
    #[must_use]
    pub fn ingest(&self, endpoint: &str, path: &str, traceparent: Option<&str>, headers: &HeaderMap) -> Ingest {
        let Some(exported) = self.0.as_deref() else { return Ingest(None) };
        let came = Carrier { traceparent, tracestate: tracestate(headers) };
        let span = SpanBuilder::from_name(format!("POST {path}")).with_kind(SpanKind::Server).with_attributes([
            KeyValue::new("http.request.method", "POST"),
            KeyValue::new("http.route", path.to_owned()),
            KeyValue::new("url.path", path.to_owned()),
            KeyValue::new("url.scheme", "https"),
            KeyValue::new("asapp.endpoint", endpoint.to_owned()),
        ]);
        let span = exported.tracer.build_with_context(span, &came.context());
        let is_sampled = span.span_context().is_sampled();
        Ingest(is_sampled.then(|| Arc::new(Mutex::new(Asked { span, answered: false }))))
    }

    /// For the sink of this name, which posts to `url`.
    #[must_use]
    pub fn deliveries(&self, sink: &str, url: &Uri) -> Deliveries {
        let target = self.0.as_ref().map(|traces| {
            let mut attributes = vec![KeyValue::new("asapp.sink", sink.to_owned())];
            attributes.extend(url.host().map(|host| KeyValue::new("server.address", host.to_owned())));
            let default = if url.scheme_str() == Some("http") { 80 } else { 443 };
            attributes.push(KeyValue::new("server.port", i64::from(url.port_u16().unwrap_or(default))));
            Arc::new(Target { traces: Arc::clone(traces), name: format!("deliver {sink}"), attributes })
        });
        Deliveries(target)
    }

    /// Exports the spans that have ended, until `end` at the latest; spans that end later are dropped.
    pub async fn finish(&self, end: Instant) {
        if let Some(exported) = self.0.as_deref() {
            exported.export.finish(end).await;
        }
    }
}

impl Ingest {
    /// What to keep with the event: this span, so that deliveries hang below it; what came in when it is not sampled.
    #[must_use]
    pub fn traceparent(&self, came: Option<Box<str>>) -> Option<Box<str>> {
        self.with(|asked| header(asked.span.span_context()).into()).or(came)
    }

    /// Which event it is.
    pub fn event(&self, envelope: &Envelope) {
        self.with(|asked| {
            asked.span.set_attributes(words(envelope.event_id(), envelope.name(), envelope.event_type()));
        });
    }

    /// `stored`, `duplicate`, or the problem word of the answer.
    pub fn outcome(&self, word: &'static str) {
        self.with(|asked| asked.span.set_attribute(KeyValue::new("asapp.outcome", word)));
    }

    /// Ends the span.
    pub fn answered(&self, status: StatusCode) {
        self.with(|asked| {
            asked.answered = true;
            asked.span.set_attribute(of_status(status));
            if status.is_server_error() {
                asked.span.set_attribute(KeyValue::new("error.type", status.as_u16().to_string()));
                asked.span.set_status(Status::error(""));
            }
            asked.span.end();
        });
    }

    fn with<T>(&self, tell: impl FnOnce(&mut Asked) -> T) -> Option<T> {
        self.0.as_deref().map(|asked| tell(&mut asked.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if !self.answered {
            self.span.set_attribute(KeyValue::new("asapp.outcome", "aborted"));
            self.span.set_attribute(KeyValue::new("error.type", "aborted"));
            self.span.set_status(Status::error("the client went away before it had its answer"));
        }
    }
}

impl Deliveries {
    /// For a sink whose deliveries are no spans.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Begins the span of an attempt, the `number`th from 1 on, to deliver `batch`: the child of its event's context, or
    /// linked to the contexts of its events when they are several. Events without a context make no trace of their own.
    #[must_use]
    pub fn attempt(&self, number: u32, batch: &[Event]) -> Attempt {
        let Some(target) = self.0.as_deref() else { return Attempt(None) };
        let mut contexts: Vec<SpanContext> = batch.iter().filter_map(context_of).collect();
        let mut attributes = target.attributes.clone();
        attributes.push(KeyValue::new("asapp.attempt", i64::from(number)));
        attributes.push(KeyValue::new("http.request.resend_count", i64::from(number.saturating_sub(1))));
        let mut span = SpanBuilder::from_name(target.name.clone()).with_kind(SpanKind::Client);
        let mut parent = Context::new();
        if let [event] = batch {
            attributes.extend(words(event.event_id(), event.name(), event.event_type()));
            let Some(context) = contexts.pop() else { return Attempt(None) };
            parent = parent.with_remote_span_context(context);
        } else {
            if contexts.is_empty() {
                return Attempt(None);
            }
            let count = i64::try_from(batch.len()).unwrap_or(i64::MAX);
            attributes.push(KeyValue::new("messaging.batch.message_count", count));
            span = span.with_links(contexts.into_iter().map(Link::with_context).collect());
        }
        let span = target.traces.tracer.build_with_context(span.with_attributes(attributes), &parent);
        let is_sampled = span.span_context().is_sampled();
        Attempt(is_sampled.then(|| Context::new().with_span(span)))
    }
}

impl Attempt {
    /// `delivery`, during which [`traceparent`] and [`note_answer`] mean this span.
    pub fn around<F: Future>(&self, delivery: F) -> impl Future<Output = F::Output> + use<F> {
        // An empty context costs two moves a poll.
        delivery.with_context(self.0.clone().unwrap_or_default())
    }

    /// Ends the span: delivered, or with the failure's word and reason.
    pub fn ended(self, failure: Option<(&'static str, &str)>) {
        let Some(context) = self.0 else { return };
        let span = context.span();
        match failure {
            None => span.set_attribute(KeyValue::new("asapp.outcome", "delivered")),
            Some((word, reason)) => {
                span.set_attribute(KeyValue::new("asapp.outcome", word));
                span.set_attribute(KeyValue::new("error.type", word));
                span.set_status(Status::error(reason.to_owned()));
            }
        }
        span.end();
    }
}

/// The `traceparent` of a request that belongs to the attempt under way; `None` when that is not sampled.
#[must_use]
pub fn traceparent() -> Option<HeaderValue> {
    Context::map_current(|context| {
        let span = context.span();
        let context = span.span_context();
        context.is_sampled().then(|| HeaderValue::try_from(header(context)).ok()).flatten()
    })
}

/// Tells the attempt under way what was answered.
pub fn note_answer(status: StatusCode) {
    Context::map_current(|context| context.span().set_attribute(of_status(status)));
}

/// Of a sampled span.
fn header(context: &SpanContext) -> String {
    format!("00-{}-{}-01", context.trace_id(), context.span_id())
}

fn of_status(status: StatusCode) -> KeyValue {
    KeyValue::new("http.response.status_code", i64::from(status.as_u16()))
}

/// What is told of an event: how it is routed.
fn words(event_id: &str, name: &str, event_type: &str) -> [KeyValue; 3] {
    let short = |text: &str| text[..text.floor_char_boundary(MAX_WORD)].to_owned();
    [
        KeyValue::new("asapp.event_id", short(event_id)),
        KeyValue::new("asapp.feed", short(name)),
        KeyValue::new("asapp.event_type", short(event_type)),
    ]
}

fn context_of(event: &Event) -> Option<SpanContext> {
    let context = Carrier { traceparent: event.traceparent(), tracestate: None }.context();
    let context = context.span().span_context().clone();
    context.is_valid().then_some(context)
}

/// All of the head's, as one list.
fn tracestate(headers: &HeaderMap) -> Option<String> {
    let values: Option<Vec<&str>> = headers.get_all("tracestate").iter().map(|value| value.to_str().ok()).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.join(","))
}

/// W3C trace context as it came in.
struct Carrier<'a> {
    traceparent: Option<&'a str>,
    tracestate: Option<String>,
}

impl Carrier<'_> {
    /// Empty when what came is not valid.
    fn context(&self) -> Context {
        TraceContextPropagator::new().extract_with_context(&Context::new(), self)
    }
}

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.traceparent,
            "tracestate" => self.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}
