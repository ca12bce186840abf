//! Bodies that were not accepted, as both engines keep them and operators see them.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::event::{NewEvent, Parts, from_millis, millis};
use crate::config;
use crate::envelope::Envelope;
use crate::tls::PeerIdentity;

/// A body that could not be accepted, kept for a person to look at.
#[derive(Debug)]
pub struct Quarantined {
    /// `malformed`, `incomplete`, `unsupported-media` or `conflict`.
    pub reason: &'static str,
    /// What and where, without any value of the body.
    pub detail: String,
    pub received_at: SystemTime,
    pub peer: PeerIdentity,
    pub endpoint: Arc<config::Endpoint>,
    pub body: Bytes,
}

/// A quarantined body.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    #[serde(skip)]
    pub(crate) id: u64,
    pub(crate) reason: String,
    pub(crate) detail: String,
    /// Milliseconds since 1970.
    pub(crate) at: u64,
    pub(crate) peer: String,
    pub(crate) endpoint: String,
    /// Of reason and body, so that a retry is not kept again.
    pub(crate) digest: u64,
    #[serde(skip)]
    pub(crate) body: Bytes,
}

impl Kept {
    /// An event that has a known id but other bytes.
    pub(crate) fn conflicting(event: NewEvent) -> Self {
        Quarantined {
            reason: "conflict",
            detail: "the event_id is known with other bytes; the first copy stands".to_owned(),
            received_at: event.received_at,
            peer: event.peer,
            endpoint: event.endpoint,
            body: event.envelope.body().clone(),
        }
        .into()
    }

    /// The same of every copy.
    pub(crate) fn digest_of(reason: &str, body: &[u8]) -> u64 {
        let mut digest = Xxh3::with_seed(body.len() as u64);
        digest.update(reason.as_bytes());
        digest.update(body);
        digest.digest()
    }

    /// The event that this body turned out to be.
    pub(crate) fn parts<'a>(&'a self, envelope: &'a Envelope) -> Parts<'a> {
        Parts {
            received_at: from_millis(self.at),
            endpoint: &self.endpoint,
            peer: &self.peer,
            traceparent: None,
            envelope,
        }
    }
}

/// A body that was not accepted.
#[derive(Clone)]
pub struct QuarantinedBody {
    /// Its number: larger is later, never used twice.
    pub id: u64,
    /// `malformed`, `incomplete`, `unsupported-media` or `conflict`.
    pub reason: String,
    /// What and where, without any value of the body.
    pub detail: String,
    pub at: SystemTime,
    /// The client certificate's subject (RFC 4514).
    pub peer: String,
    /// The name of the endpoint it came in at.
    pub endpoint: String,
    /// It is personal data.
    pub body: Bytes,
}

/// Which bodies to let out or to discard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bodies {
    Ids(Vec<u64>),
    All,
}

/// Shows no byte of the body: it holds personal data.
impl fmt::Debug for QuarantinedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuarantinedBody")
            .field("id", &self.id)
            .field("reason", &self.reason)
            .field("detail", &self.detail)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl From<Quarantined> for Kept {
    fn from(body: Quarantined) -> Self {
        Self {
            id: 0,
            digest: Self::digest_of(body.reason, &body.body),
            reason: body.reason.to_owned(),
            detail: body.detail,
            at: millis(body.received_at),
            peer: body.peer.subject().to_string(),
            endpoint: body.endpoint.name.clone(),
            body: body.body,
        }
    }
}

impl From<Kept> for QuarantinedBody {
    fn from(kept: Kept) -> Self {
        let Kept { id, reason, detail, at, peer, endpoint, digest: _, body } = kept;
        Self { id, reason, detail, at: from_millis(at), peer, endpoint, body }
    }
}

impl From<QuarantinedBody> for Kept {
    fn from(kept: QuarantinedBody) -> Self {
        let QuarantinedBody { id, reason, detail, at, peer, endpoint, body } = kept;
        let digest = Self::digest_of(&reason, &body);
        Self { id, reason, detail, at: millis(at), peer, endpoint, digest, body }
    }
}

/// The quarantine's words are a closed set; this finds the label for one.
pub(crate) fn word(reason: &str) -> &'static str {
    ["malformed", "incomplete", "unsupported-media", "conflict"]
        .into_iter()
        .find(|word| *word == reason)
        .unwrap_or("other")
}
