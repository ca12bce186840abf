//! An event with every documented field, whatever its feed.

use std::borrow::Cow;

use time::OffsetDateTime;

use super::drift;
use super::read::{Path, Read, Reader, Record, open, record};
use super::{Drift, Envelope, Feed, Kind, activity, journey, queue};

/// An event by its feed, its fields borrowed from the body where they can be.
///
/// A field that is missing, null or of another type than documented is `None`; of a field that comes twice the last
/// one counts. Its values are personal data: `Debug` is for tests.
#[derive(Debug, Clone, PartialEq)]
pub enum Typed<'a> {
    Activity(Box<Event<'a, activity::Type<'a>, activity::Data<'a>, activity::Details<'a>>>),
    Journey(Box<Event<'a, journey::Type<'a>, journey::Data<'a>, journey::Details<'a>>>),
    Queue(Box<Event<'a, queue::Type<'a>, queue::Data<'a>, queue::Details<'a>>>),
    /// A feed this version does not know: what is common to all events, the rest as JSON.
    Other(Box<Event<'a, Cow<'a, str>, Opaque<'a>, Opaque<'a>>>),
}

/// What all feeds share. `name`, `event_id` and `api_version` are in the [`Envelope`].
#[derive(Debug, Clone, PartialEq)]
pub struct Event<'a, T, D, E> {
    pub event_type: Option<T>,
    pub meta_data: Option<MetaData<'a>>,
    /// Specific to the feed.
    pub data: Option<D>,
    /// Specific to the event type.
    pub details: Option<E>,
}

/// A value no one has described, as it stands in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opaque<'a>(pub &'a str);

record! {
    /// Common to all events.
    pub struct MetaData<'a> {
        /// When this message was made.
        create_time: OffsetDateTime,
        /// When it happened, usually some milliseconds before.
        event_time: OffsetDateTime,
        session_id: Cow<'a, str>,
        issue_id: Cow<'a, str>,
        company_subdivision: Cow<'a, str>,
        company_id: Cow<'a, str>,
        company_segments: Vec<Cow<'a, str>>,
        client_id: Cow<'a, str>,
        client_type: ClientType<'a>,
    }
}

open! {
    pub enum ClientType<'a> {
        Unknown = "UNKNOWN",
        Sms = "SMS",
    }
}

impl<'a> Typed<'a> {
    /// Reads all documented fields, and tells, without names, what deviates from the documentation.
    #[must_use]
    pub fn read(envelope: &'a Envelope) -> (Self, Vec<Drift<'static>>) {
        let mut found = Vec::new();
        let typed =
            Self::read_telling(envelope, &mut |Drift { kind, path, .. }| found.push(Drift { kind, path, name: None }));
        (typed, found)
    }

    /// When it happened, by the sender's clock.
    #[must_use]
    pub fn event_time(&self) -> Option<OffsetDateTime> {
        let meta_data = match self {
            Self::Activity(event) => &event.meta_data,
            Self::Journey(event) => &event.meta_data,
            Self::Queue(event) => &event.meta_data,
            Self::Other(event) => &event.meta_data,
        };
        meta_data.as_ref()?.event_time
    }

    pub(super) fn read_telling(envelope: &'a Envelope, each: &mut dyn FnMut(Drift<'_>)) -> Self {
        if let Some(drift) = drift::of_version(&envelope.version, envelope.body()) {
            each(drift);
        }
        let feed = envelope.feed();
        if feed == Feed::Other {
            each(Drift { kind: Kind::Feed, path: Path::of("name"), name: Some(envelope.name()) });
        }
        // Checked when the envelope was made; the default is never used.
        let text = std::str::from_utf8(envelope.body()).unwrap_or_default();
        let mut reader = Reader::new(text, each);
        match feed {
            Feed::Activity => Self::Activity(Box::new(reader.object().unwrap_or_default())),
            Feed::Journey => Self::Journey(Box::new(reader.object().unwrap_or_default())),
            Feed::Queue => Self::Queue(Box::new(reader.object().unwrap_or_default())),
            Feed::Other => Self::Other(Box::new(reader.object().unwrap_or_default())),
        }
    }
}

impl<'a, T: Read<'a>, D: Read<'a>, E: Read<'a>> Record<'a> for Event<'a, T, D, E> {
    const FIELDS: &'static [&'static str] =
        &["api_version", "name", "event_id", "event_type", "meta_data", "data", "details"];

    fn set(&mut self, field: usize, reader: &mut Reader<'a, '_>) {
        match field {
            3 => self.event_type = reader.read(),
            4 => self.meta_data = reader.read(),
            5 => self.data = reader.read(),
            6 => self.details = reader.read(),
            // The envelope has them.
            _ => reader.skip(),
        }
    }
}

impl<T, D, E> Default for Event<'_, T, D, E> {
    fn default() -> Self {
        Self { event_type: None, meta_data: None, data: None, details: None }
    }
}

impl<'a> Read<'a> for Opaque<'a> {
    fn read(reader: &mut Reader<'a, '_>) -> Option<Self> {
        reader.raw().map(Self)
    }
}
