//! What a lane reports of itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

/// How a lane is doing. Cheap to clone; the lane writes it, `status` reads it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<Condition>>);

/// What [`Health`] says.
#[derive(Debug, Clone, Default)]
pub struct Condition {
    /// The reason of the attempt that failed last, until deliveries succeed again; while `rejecting`, that of the last event
    /// that became a dead letter.
    pub last_error: Option<String>,
    /// While a delivery is under way: when one last began or ended.
    pub moved: Option<Instant>,
    /// The dead letters are full, and there is an event that has to go there.
    pub waiting: bool,
    /// Nothing fails now, but since the last delivery every event whose outcome is known became a dead letter.
    pub rejecting: bool,
    /// When the event that is being delivered came in; `None`: the lane has caught up.
    pub oldest: Option<SystemTime>,
}

impl Health {
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Condition)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
