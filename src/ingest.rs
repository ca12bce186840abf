//! One sentence: parse, append, answer; what does not parse goes to the quarantine. Knows neither HTTP nor sinks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;

use crate::admission::{Admitted, Outcome};
use crate::config;
use crate::envelope::{Envelope, Rejection};
use crate::journal::{Appended, Journal, NewEvent, Quarantined, Refused};
use crate::tls::PeerIdentity;
use crate::traces;

/// The path from a body to its receipt. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ingest {
    journal: Journal,
    answer_within: Duration,
}

/// Where an event came in: its endpoint, its peer, its trace.
#[derive(Debug, Clone)]
pub struct Origin {
    pub endpoint: Arc<config::Endpoint>,
    pub peer: PeerIdentity,
    /// The request's `traceparent` as it came, or that of its span.
    pub traceparent: Option<Box<str>>,
    pub span: traces::Ingest,
}

/// Why there is no receipt, by what the sender should do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Do not send these bytes again; they are kept in the quarantine.
    #[error("{0}")]
    Rejected(#[from] Rejection),
    /// The endpoint does not take this feed; the body is kept in the quarantine.
    #[error("`name` is a feed that this endpoint does not take")]
    WrongFeed,
    /// Not readable as it is encoded; the body is kept in the quarantine.
    #[error("the Content-Encoding is not supported: send the body as it is")]
    Encoded,
    /// Come again, unless it is too large.
    #[error(transparent)]
    Unavailable(#[from] Refused),
}

impl Ingest {
    #[must_use]
    pub fn new(journal: Journal, answer_within: Duration) -> Self {
        Self { journal, answer_within }
    }

    /// Makes the event durable, or says why not. Cancelling this future never cancels a write under way.
    ///
    /// # Errors
    /// [`Refusal`], by what the sender should do next.
    pub async fn accept(&self, body: Bytes, origin: Origin, admitted: Admitted) -> Result<Appended, Refusal> {
        let received_at = SystemTime::now();
        let feeds = &origin.endpoint.feeds;
        let envelope = match Envelope::parse(body.clone()) {
            Ok(envelope) if feeds.is_empty() || feeds.iter().any(|feed| feed == envelope.name()) => envelope,
            // Few are: their way need not take room in every request's future.
            Ok(_) => return Box::pin(self.reject(Refusal::WrongFeed, body, origin, admitted)).await,
            Err(rejection) => return Box::pin(self.reject(rejection.into(), body, origin, admitted)).await,
        };
        let Origin { endpoint, peer, traceparent, span } = origin;
        span.event(&envelope);
        let event = NewEvent { envelope, received_at, peer, endpoint, traceparent };
        Ok(self.in_time(self.journal.append(event, admitted)).await?)
    }

    /// Keeps a body that no one could read, and says so.
    ///
    /// # Errors
    /// Always: `why`, or that it could not even be kept.
    pub async fn reject(
        &self,
        why: Refusal,
        body: Bytes,
        origin: Origin,
        admitted: Admitted,
    ) -> Result<Appended, Refusal> {
        let kept = Quarantined {
            reason: why.word(),
            detail: why.to_string(),
            received_at: SystemTime::now(),
            peer: origin.peer,
            endpoint: origin.endpoint,
            body,
        };
        self.in_time(self.journal.quarantine(kept, admitted, Outcome::Rejected(why.word()))).await?;
        Err(why)
    }

    /// Larger bodies need not be read: the journal could not keep them.
    #[must_use]
    pub fn largest_body(&self) -> usize {
        self.journal.largest_body()
    }

    fn in_time<T>(&self, write: impl Future<Output = Result<T, Refused>>) -> impl Future<Output = Result<T, Refused>> {
        tokio::time::timeout(self.answer_within, write).map(|written| written.unwrap_or(Err(Refused::Late)))
    }
}

impl Refusal {
    /// The problem word of SPEC section 3.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Rejected(Rejection::Malformed { .. }) => "malformed",
            Self::Rejected(Rejection::Incomplete { .. }) | Self::WrongFeed => "incomplete",
            Self::Encoded => "unsupported-media",
            Self::Unavailable(Refused::TooLarge) => "too-large",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// Whether the journal is still at work on it.
    #[must_use]
    pub fn is_late(&self) -> bool {
        matches!(self, Self::Unavailable(Refused::Late))
    }
}
