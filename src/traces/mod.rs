//! Spans of what happens to an event: its ingest and each attempt to deliver it over HTTP.
//!
//! The path of an event calls what is named here and nothing else of OpenTelemetry. Built with the feature `otlp`, and
//! with a collector named by `OTEL_EXPORTER_OTLP_ENDPOINT`, that makes spans (`spans.rs`) and exports them (`export.rs`).
//! Without the feature it has no size and does nothing (`off.rs`).
//!
//! Spans say what logs may say: ids, feeds, types, outcomes; never a field's value. They are dropped whenever the collector
//! does not take them; an event never waits for one.

#[cfg(feature = "otlp")]
mod export;
#[cfg(not(feature = "otlp"))]
mod off;
#[cfg(feature = "otlp")]
mod spans;

#[cfg(not(feature = "otlp"))]
pub use off::{Attempt, Deliveries, Ingest, Traces, note_answer, traceparent};
#[cfg(feature = "otlp")]
pub use spans::{Attempt, Deliveries, Ingest, Traces, note_answer, traceparent};
