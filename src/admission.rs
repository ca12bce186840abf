//! Admission before work: a place and a byte budget, taken before a body is read, held until the outcome is settled.
//!
//! [`Admitted`] also carries the accounting: whatever happens to a received POST, it is counted exactly once.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config;
use crate::telemetry::Metrics;

/// Budget is counted in units of this many bytes.
const UNIT: usize = 1024;

/// The gate in front of the bodies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// No place or no bytes are free now; the sender should come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// How a received POST ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    Duplicate,
    /// The problem word of the 4xx answer, or `aborted`.
    Rejected(&'static str),
    /// `too-many`, `internal`, or the journal's word.
    Refused(&'static str),
}

impl Outcome {
    /// `stored`, `duplicate`, or the reason.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Duplicate => "duplicate",
            Self::Rejected(reason) | Self::Refused(reason) => reason,
        }
    }
}

/// A received POST, not settled yet. Dropped without [`settle`](Received::settle), it counts as rejected, `aborted`; by
/// a panic, as refused, `internal`.
#[derive(Debug)]
pub struct Received {
    /// `None` once settled.
    metrics: Option<Arc<Metrics>>,
}

/// A received POST that has its place and its bytes. Whoever holds it answers for the outcome; handed to the journal, it
/// stays there until the write is settled, however long ago the client was answered or went away.
#[derive(Debug)]
pub struct Admitted {
    received: Received,
    budget: Arc<Semaphore>,
    bytes: Option<OwnedSemaphorePermit>,
    _place: OwnedSemaphorePermit,
}

impl Admission {
    #[must_use]
    pub fn new(listen: &config::Listen, metrics: Arc<Metrics>) -> Self {
        let units = listen.max_in_flight_bytes.div_ceil(UNIT).min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(listen.max_in_flight.min(Semaphore::MAX_PERMITS))),
            bytes: Arc::new(Semaphore::new(units)),
            metrics,
        }
    }

    /// Counts a POST as received. Call it once its head is read, before anything else can happen to it.
    #[must_use]
    pub fn receive(&self) -> Received {
        self.metrics.received.inc();
        self.metrics.in_flight.inc();
        Received { metrics: Some(Arc::clone(&self.metrics)) }
    }

    /// Takes a place and `bytes` of budget.
    ///
    /// # Errors
    /// Gives the POST back, settled as refused, when either is used up.
    pub fn admit(&self, received: Received, bytes: usize) -> Result<Admitted, TooMany> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            received.settle(Outcome::Refused("too-many"));
            return Err(TooMany);
        };
        let mut admitted = Admitted { received, budget: Arc::clone(&self.bytes), bytes: None, _place: place };
        if admitted.grow(bytes).is_err() {
            admitted.settle(Outcome::Refused("too-many"));
            return Err(TooMany);
        }
        Ok(admitted)
    }
}

impl Admitted {
    /// Takes `bytes` more of the budget, for a body whose length was not announced.
    ///
    /// # Errors
    /// When the budget is used up; what was held before is still held.
    pub fn grow(&mut self, bytes: usize) -> Result<(), TooMany> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).map_err(|_| TooMany)?;
        let more = Arc::clone(&self.budget).try_acquire_many_owned(units).map_err(|_| TooMany)?;
        match &mut self.bytes {
            Some(held) => held.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }

    /// Counts the outcome and frees the place and the bytes.
    pub fn settle(self, outcome: Outcome) {
        self.received.settle(outcome);
    }
}

impl Received {
    /// Counts the outcome.
    pub fn settle(mut self, outcome: Outcome) {
        self.count(outcome);
    }

    fn count(&mut self, outcome: Outcome) {
        let Some(metrics) = self.metrics.take() else { return };
        match outcome {
            Outcome::Stored => metrics.stored.inc(),
            Outcome::Duplicate => metrics.duplicate.inc(),
            Outcome::Rejected(reason) => metrics.rejected.get_or_create(&[("reason", reason)]).inc(),
            Outcome::Refused(reason) => metrics.refused.get_or_create(&[("reason", reason)]).inc(),
        };
        metrics.in_flight.dec();
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        self.count(if panicking { Outcome::Refused("internal") } else { Outcome::Rejected("aborted") });
    }
}
