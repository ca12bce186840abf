//! How often a target is asked: back-offs, and the pace of a target that takes nothing.

use std::time::{Duration, Instant};

use super::{Parcel, Queue};
use crate::config::Retry;

/// A target's `Retry-After` counts up to this, or up to `max_backoff` where that is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

impl<T> Queue<T> {
    /// Parcels that may fail at a time before first attempts become rare.
    pub(super) fn limit(&self) -> usize {
        (2 * self.plan.concurrency).max(8)
    }

    /// How many times more than that fail.
    pub(super) fn crowd(&self) -> u32 {
        u32::try_from(self.failing() / self.limit()).unwrap_or(u32::MAX).max(1)
    }

    pub(super) fn longest_pause(&self) -> Duration {
        LONGEST_PAUSE.max(self.retry.max_backoff)
    }

    pub(super) fn count_against_target(&mut self, fresh: bool, now: Instant) {
        if fresh && self.failing() + 1 >= self.limit() {
            self.fresh_failures = self.fresh_failures.saturating_add(1);
            self.fresh_after = Some(now + self.backoff(self.fresh_failures));
        }
    }

    /// Whether the settings end the attempts here.
    pub(super) fn is_over(&self, parcel: &Parcel<T>, now: Instant) -> bool {
        let Retry { max_attempts, max_age, .. } = &self.retry;
        max_attempts.is_some_and(|most| parcel.attempts >= most)
            || max_age.is_some_and(|age| now.saturating_duration_since(parcel.began) >= age)
    }

    /// Exponential, full jitter: anything from nothing up to the bound, so that retries do not come in step.
    pub(super) fn backoff(&self, attempts: u32) -> Duration {
        let Retry { initial_backoff, max_backoff, .. } = self.retry;
        let doubled = initial_backoff.saturating_mul(1 << attempts.saturating_sub(1).min(20));
        doubled.min(max_backoff).mul_f64(fastrand::f64())
    }
}
