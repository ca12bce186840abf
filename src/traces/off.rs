//! A build without traces: nothing happens here. `spans.rs` says what each of these is for in a build with them.
#![allow(clippy::unused_self, clippy::needless_pass_by_value, reason = "the other build needs them")]

use hyper::header::HeaderValue;
use hyper::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::about::Feature;
use crate::envelope::Envelope;
use crate::journal::Event;

#[derive(Debug, Clone)]
pub struct Traces;

#[derive(Debug, Clone)]
pub struct Ingest;

#[derive(Debug, Clone)]
pub struct Deliveries;

#[derive(Debug)]
pub struct Attempt;

impl Traces {
    #[must_use]
    pub fn none() -> Self {
        Self
    }

    #[must_use]
    pub fn start() -> Self {
        let named = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
        if named.into_iter().any(|name| std::env::var_os(name).is_some()) {
            tracing::warn!(
                remedy = Feature::Otlp.remedy(),
                "no traces are exported: this build lacks the feature otlp"
            );
        }
        Self
    }

    #[must_use]
    pub fn ingest(&self, _endpoint: &str, _path: &str, _traceparent: Option<&str>, _headers: &HeaderMap) -> Ingest {
        Ingest
    }

    #[must_use]
    pub fn deliveries(&self, _sink: &str, _url: &hyper::Uri) -> Deliveries {
        Deliveries
    }

    #[allow(clippy::unused_async, reason = "the other build waits")]
    pub async fn finish(&self, _end: Instant) {}
}

impl Ingest {
    #[must_use]
    pub fn traceparent(&self, came: Option<Box<str>>) -> Option<Box<str>> {
        came
    }

    pub fn event(&self, _envelope: &Envelope) {}

    pub fn outcome(&self, _word: &'static str) {}

    pub fn answered(&self, _status: StatusCode) {}
}

impl Deliveries {
    #[must_use]
    pub fn none() -> Self {
        Self
    }

    #[must_use]
    pub fn attempt(&self, _number: u32, _batch: &[Event]) -> Attempt {
        Attempt
    }
}

impl Attempt {
    pub fn around<F: Future>(&self, delivery: F) -> impl Future<Output = F::Output> + use<F> {
        delivery
    }

    pub fn ended(self, _failure: Option<(&'static str, &str)>) {}
}

#[must_use]
pub fn traceparent() -> Option<HeaderValue> {
    None
}

pub fn note_answer(_status: StatusCode) {}
