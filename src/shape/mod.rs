//! What a sink gets to see of an event: its format, with the redacted members cut out.
//!
//! Redaction comes first, then the format: what is cut out stands nowhere else either, but for the routing metadata (the
//! event's id, feed and type), which the formats and an HTTP sink's headers keep.

mod cloudevents;
mod json;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

use crate::envelope::{self, Cuts, Feed};
use crate::journal::Event;
use cloudevents::Attributes;
use json::member;
pub use json::push_line;

/// What a sink gets to see of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The bytes as received.
    #[default]
    Raw,
    /// `{"received_at","peer","endpoint","sequence","event":<raw>}`.
    Envelope,
    /// CloudEvents 1.0.
    CloudEvents,
}

/// A sink's format and redaction, ready to use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shape {
    format: Format,
    cuts: Arc<Cuts>,
}

/// What an event is about: events of one entity are kept in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entity<'a> {
    pub feed: Feed,
    /// The agent's, the issue's or the queue's.
    pub id: Cow<'a, str>,
}

/// The agent, issue or queue that `event` is about, redacted or not. A number counts by its text.
#[must_use]
pub fn entity(event: &Event) -> Option<Entity<'_>> {
    let feed = Feed::of(event.name());
    Some(Entity { feed, id: envelope::entity(feed, event.body())? })
}

impl Shape {
    /// `redact` holds JSON pointers, which the settings' reader has tried before.
    #[must_use]
    pub fn new(format: Format, redact: &[String]) -> Self {
        Self { format, cuts: Arc::new(Cuts::new(redact.iter().map(String::as_str))) }
    }

    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The event as one JSON text of this format, as a line or a batch holds it. `raw` without redaction shares the
    /// event's bytes.
    #[must_use]
    pub fn text(&self, event: &Event) -> Bytes {
        let data = self.data(event);
        match self.format {
            Format::Raw => data,
            Format::Envelope => envelope(event, &data).into(),
            Format::CloudEvents => Attributes::of(event, &data).structured(&data).into(),
        }
    }

    /// The event itself with the redacted members cut out: what a CloudEvent in binary mode has for its data. Without
    /// redaction it shares the event's bytes.
    #[must_use]
    pub fn data(&self, event: &Event) -> Bytes {
        let body = event.body_bytes();
        if self.cuts.is_empty() { body } else { self.cuts.apply(body) }
    }

    /// The attributes of a CloudEvent in binary mode, whatever the format: HTTP headers, named as they are sent, values
    /// percent-encoded. `data` is that of the event, [redacted](Self::data). Its type is not among them: that is the
    /// `Content-Type`, `application/json`.
    #[must_use]
    pub fn attributes(&self, event: &Event, data: &Bytes) -> Vec<(&'static str, String)> {
        Attributes::of(event, data).headers()
    }
}

const MILLISECONDS: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// `{"received_at","peer","endpoint","sequence","event":<data>}`, with `"replayed":true` before the event of a replay.
fn envelope(event: &Event, data: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(data.len() + 256);
    text.extend_from_slice(br#"{"received_at":""#);
    // Writing to a Vec cannot fail, and the time is within four digits of years.
    let _ = utc(event.received_at()).format_into(&mut text, MILLISECONDS);
    text.push(b'"');
    for (name, value) in [("peer", event.peer()), ("endpoint", event.endpoint())] {
        member(&mut text, name, value);
    }
    text.extend_from_slice(br#","sequence":"#);
    let _ = serde_json::to_writer(&mut text, &event.sequence());
    if event.is_replayed() {
        text.extend_from_slice(br#","replayed":true"#);
    }
    text.extend_from_slice(br#","event":"#);
    text.extend_from_slice(data);
    text.push(b'}');
    text
}

/// A time that no calendar has becomes 1970.
fn utc(time: SystemTime) -> OffsetDateTime {
    let nanos = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let time = i128::try_from(nanos).ok().and_then(|nanos| OffsetDateTime::from_unix_timestamp_nanos(nanos).ok());
    time.unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_of_receipt_have_milliseconds() {
        let written = |millis: u64| utc(UNIX_EPOCH + Duration::from_millis(millis)).format(MILLISECONDS).unwrap();
        assert_eq!(written(1_777_629_600_120), "2026-05-01T10:00:00.120Z");
        assert_eq!(written(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(written(253_402_300_799_999), "9999-12-31T23:59:59.999Z");
        assert_eq!(written(253_402_300_800_000), "1970-01-01T00:00:00.000Z");
    }
}
