//! `[sinks.NAME]`: what all sinks share. The keys of each type are read beside that kind of sink.

use std::time::Duration;

use super::filter::{Filter, filter};
use crate::settings::{DAY, HOUR, INSTANT, Section, YEAR, keys};
use crate::shape::Format;
use crate::sinks::SinkKind;

/// `[sinks.NAME]`.
#[derive(Debug, Clone)]
pub struct Sink {
    pub name: String,
    pub kind: SinkKind,
    pub enabled: bool,
    pub required: bool,
    pub start: Start,
    pub format: Format,
    /// JSON pointers (RFC 6901) of members that are cut out.
    pub redact: Vec<String>,
    pub filter: Filter,
    pub retry: Retry,
}

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Latest,
    Earliest,
}

/// `retry` of a sink.
#[derive(Debug, Clone)]
pub struct Retry {
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// `None`: without end (`0` in the settings).
    pub max_attempts: Option<u32>,
    /// From the first attempt on; `None`: without end.
    pub max_age: Option<Duration>,
}

pub(super) fn sink(name: String, mut s: Section<'_, '_>) -> Sink {
    let kinds: Vec<_> = SinkKind::ALL.iter().map(|kind| (kind.0, Some(kind))).collect();
    let kind = s.choice("type", &kinds, None);
    let formats = [("raw", Format::Raw), ("envelope", Format::Envelope), ("cloudevents", Format::CloudEvents)];
    let starts = [("latest", Start::Latest), ("earliest", Start::Earliest)];
    let format = s.choice("format", &formats, Format::Raw);
    let sink = Sink {
        name,
        enabled: s.flag("enabled"),
        required: s.flag("required"),
        start: s.choice("start", &starts, Start::Latest),
        format,
        redact: s.list(
            "redact",
            pointer,
            "write JSON pointers (RFC 6901) such as \"/data/rep_name\"; in a name, ~ is written ~0 and / is written ~1",
        ),
        filter: filter(s.section("filter")),
        retry: retry(s.section("retry")),
        kind: kind.map_or_else(SinkKind::default, |(_, read)| read(&mut s, format)),
    };
    // Which keys a sink has depends on its type.
    if let Some((kind, _)) = kind {
        for (other, read) in SinkKind::ALL.iter().filter(|(other, _)| other != kind) {
            let keys = keys(|s| drop(read(s, format)));
            s.misplaced(&keys, &format!("is a key of sinks of type \"{other}\", not \"{kind}\""));
        }
        s.finish();
    }
    sink
}

fn retry(mut s: Section<'_, '_>) -> Retry {
    let retry = Retry {
        initial_backoff: s.duration("initial_backoff", Duration::from_millis(1)..=HOUR),
        max_backoff: s.duration("max_backoff", Duration::from_millis(1)..=DAY),
        max_attempts: Some(s.number("max_attempts", 0..=1_000_000)).filter(|attempts| *attempts > 0),
        max_age: s.duration_or_none("max_age", INSTANT..=YEAR),
    };
    s.contradiction(
        &["initial_backoff", "max_backoff"],
        retry.initial_backoff > retry.max_backoff,
        "the first back-off is longer than the longest",
        "make max_backoff at least as long as initial_backoff",
    );
    s.finish();
    retry
}

/// A pointer to something in an event, not to the event itself.
fn pointer(text: &str) -> Option<String> {
    let escapes_are_known = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    (text.starts_with('/') && escapes_are_known).then(|| text.to_owned())
}
