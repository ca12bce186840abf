//! What a run came to.

use std::fmt;
use std::time::Duration;

use super::sender::{Failure, Outcome, Settled};

/// Each power of two is counted in this many steps, so a percentile is at most 1.6 % too high.
const STEPS: u64 = 64;

/// `sent = stored + duplicate + rejected + dropped`.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub sent: u64,
    pub stored: u64,
    pub duplicate: u64,
    pub rejected: u64,
    pub dropped: u64,
    /// POSTs tried for all of them.
    pub attempts: u64,
    /// Of the events that got a 200, from the moment they were due.
    pub latency: Latency,
    pub took: Duration,
    pub last_failure: Option<Failure>,
}

/// Microseconds, counted in steps that grow with their size.
#[derive(Debug, Clone, Default)]
pub struct Latency {
    counts: Vec<u64>,
    total: u64,
    max: u64,
}

impl Summary {
    pub(super) fn note(&mut self, settled: Settled, latency: Duration) {
        self.sent += 1;
        self.attempts += u64::from(settled.attempts);
        match settled.outcome {
            Outcome::Stored => self.stored += 1,
            Outcome::Duplicate => self.duplicate += 1,
            Outcome::Rejected => self.rejected += 1,
            Outcome::Dropped => self.dropped += 1,
        }
        if let Outcome::Stored | Outcome::Duplicate = settled.outcome {
            self.latency.note(latency);
        }
        if settled.failure.is_some() {
            self.last_failure = settled.failure;
        }
    }
}

impl Summary {
    /// The summary for programs; times in microseconds.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let Self { sent, stored, duplicate, rejected, dropped, attempts, latency, took, last_failure } = self;
        serde_json::json!({
            "sent": sent,
            "stored": stored,
            "duplicate": duplicate,
            "rejected": rejected,
            "dropped": dropped,
            "attempts": attempts,
            "seconds": took.as_secs_f64(),
            "latency_us": {
                "p50": latency.percentile(50),
                "p90": latency.percentile(90),
                "p99": latency.percentile(99),
                "max": latency.percentile(100),
            },
            "last_failure": last_failure.as_ref().map(ToString::to_string),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, stored, duplicate, rejected, dropped, attempts, latency, took, last_failure } = self;
        writeln!(f, "sent {sent} events with {attempts} POSTs in {:.1} s", took.as_secs_f64())?;
        writeln!(f, "  stored {stored}, duplicate {duplicate}, rejected {rejected}, dropped {dropped}")?;
        let ms = |percent| f64::from(u32::try_from(latency.percentile(percent)).unwrap_or(u32::MAX)) / 1000.0;
        write!(
            f,
            "  time to the 200: p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            ms(50),
            ms(90),
            ms(99),
            ms(100)
        )?;
        match last_failure {
            Some(failure) => write!(f, "\n  last failure: {failure}"),
            None => Ok(()),
        }
    }
}

impl Latency {
    fn note(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let step = step(micros);
        if self.counts.len() <= step {
            self.counts.resize(step + 1, 0);
        }
        self.counts[step] += 1;
        self.total += 1;
        self.max = self.max.max(micros);
    }

    /// Microseconds within which this percentage of the events was answered; 0 when there were none.
    #[must_use]
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        for (step, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return last_of(step).min(self.max);
            }
        }
        self.max
    }
}

fn step(micros: u64) -> usize {
    let shift = micros.checked_ilog2().unwrap_or(0).saturating_sub(STEPS.ilog2());
    usize::try_from(u64::from(shift) * STEPS + (micros >> shift)).unwrap_or(usize::MAX)
}

/// The largest number of microseconds that is counted in a step.
fn last_of(step: usize) -> u64 {
    let step = step as u64;
    let shift = (step / STEPS).saturating_sub(1);
    ((step - shift * STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_hold_every_number_closely() {
        for micros in (0..5_000).chain([1 << 20, 123_456_789, (1 << 40) - 1, u64::MAX >> 1]) {
            let last = last_of(step(micros));
            assert!(last >= micros && last - micros <= micros / STEPS, "{micros} counted as {last}");
            assert_eq!(step(last), step(micros));
            assert_eq!(step(last + 1), step(micros) + 1);
        }
    }

    #[test]
    fn percentiles_are_those_of_what_was_noted() {
        let mut latency = Latency::default();
        assert_eq!(latency.percentile(50), 0);
        (1..=100).for_each(|micros| latency.note(Duration::from_micros(micros)));
        assert_eq!([50, 90, 99, 100].map(|percent| latency.percentile(percent)), [50, 90, 99, 100]);
    }
}
