//! Seeded randomness, and the times drawn from it.

use std::time::Duration;

use fastrand::Rng;

/// A pause of this mean in seconds, at least a fifth of it.
pub(super) fn pause(random: &mut Rng, mean: f64) -> Duration {
    seconds(mean * (0.2 + 0.8 * exponential(random)))
}

/// So many minutes.
pub(super) fn between(random: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.u64(from * 60_000..to * 60_000))
}

/// Exponentially distributed, of mean 1.
pub(super) fn exponential(random: &mut Rng) -> f64 {
    -(1.0 - random.f64()).ln()
}

pub(super) fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}

pub(super) fn pick<T: Copy>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}
