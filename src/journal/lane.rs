//! What a lane reads of the journal.

use std::collections::HashSet;

use super::event::Event;

/// What a lane reads.
#[derive(Debug)]
pub enum Read {
    /// In order, as far as order is kept: none where those that were there are gone, or were settled before.
    Events(Vec<Event>),
    /// Another receiver delivers these from now on; what has not begun here must not begin any more.
    Lost(Lost),
}

/// Events that were handed out and are not this receiver's any more.
#[derive(Debug)]
pub struct Lost(pub(crate) HashSet<u64>);

/// The journal gives nothing more: it is closed or has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the journal is closed")]
pub struct Gone;

impl Read {
    /// The events, if it is events.
    #[must_use]
    pub fn events(self) -> Vec<Event> {
        match self {
            Self::Events(events) => events,
            Self::Lost(_) => Vec::new(),
        }
    }
}

impl Lost {
    #[must_use]
    pub fn contains(&self, sequence: u64) -> bool {
        self.0.contains(&sequence)
    }
}
