//! The durable order of events: dedup, cursors, dead letters, quarantine. One interface, engines behind it; the only
//! code that touches the data folder.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::watch;

use crate::admission::{Admitted, Outcome};
use crate::config;
use crate::envelope::Envelope;
use crate::tls::PeerIdentity;

/// A handle to the journal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Journal {
    state: watch::Receiver<State>,
}

/// An event on its way in.
#[derive(Debug)]
pub struct NewEvent {
    pub envelope: Envelope,
    pub received_at: SystemTime,
    pub peer: PeerIdentity,
    pub endpoint: Arc<config::Endpoint>,
    pub traceparent: Option<Box<str>>,
}

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

/// Proof that the event with this id survives a crash. Only the journal makes one.
#[derive(Debug, Clone)]
pub struct Receipt {
    event_id: Box<str>,
}

impl Receipt {
    #[must_use]
    pub fn event_id(&self) -> &str {
        &self.event_id
    }
}

/// A durable event: new, or known already.
#[derive(Debug, Clone)]
pub enum Appended {
    Stored(Receipt),
    Duplicate(Receipt),
}

/// The journal could not take it now. Nothing is used up: the same id may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the journal is full")]
    Full,
    #[error("the journal has failed")]
    Failed,
    #[error("the journal is closed")]
    Closed,
    #[error("the journal did not answer in time")]
    Late,
}

/// Whether events can be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Open,
    /// `journal.max_bytes` is reached, or the disk is full; it goes on by itself when there is room.
    Full,
    /// Final for this process.
    Failed,
    Closed,
}

impl Journal {
    /// Makes an event durable, or finds it durable already. The write goes on if this future is dropped.
    ///
    /// # Errors
    /// [`Refused`]; `admitted` is settled either way, by the writer.
    pub async fn append(&self, event: NewEvent, admitted: Admitted) -> Result<Appended, Refused> {
        drop((event, admitted));
        Err(Refused::Closed)
    }

    /// Keeps a body in the quarantine, once however often it comes; `outcome` is what to count when it is kept.
    ///
    /// # Errors
    /// [`Refused`] when it could not be kept.
    pub async fn quarantine(&self, body: Quarantined, admitted: Admitted, outcome: Outcome) -> Result<(), Refused> {
        drop((body, admitted, outcome));
        Err(Refused::Closed)
    }

    /// Whether events can be stored, now and from now on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }
}
