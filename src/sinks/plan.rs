//! How a lane puts the deliveries of a sink together.

use std::time::Duration;

/// How many deliveries a lane makes at a time, of what size and in which order.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Deliveries under way at a time.
    pub(crate) concurrency: usize,
    pub(crate) max_events: usize,
    pub(crate) max_bytes: usize,
    /// How long the first event of a batch waits for more.
    pub(crate) max_wait: Duration,
    /// Sequences past the oldest unsettled event.
    pub(crate) max_ahead: u64,
    pub(crate) ordering: Ordering,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// In order of arrival for each agent, issue or queue.
    Entity,
    /// In order of arrival, one request at a time.
    Strict,
    /// None at all.
    None,
}
