//! What a run came to.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::faults::Hit;
use super::ledger::Outcome;
use super::link::Failure;
use super::pace::per_second;
use super::sender::Settled;

/// Latencies above a day count as one.
const LONGEST: Duration = Duration::from_secs(86_400);
/// Sending is behind when events were sent later than this after they were due, and 1 % slower than asked for.
const LATE: Duration = Duration::from_millis(20);

/// `sent = stored + duplicate + rejected + dropped`.
#[derive(Debug, Clone)]
pub struct Summary {
    /// Different events.
    pub events: u64,
    /// Their sendings: with the fault of that name an event has two.
    pub sent: u64,
    pub stored: u64,
    pub duplicate: u64,
    pub rejected: u64,
    pub dropped: u64,
    /// POSTs tried for all of them.
    pub attempts: u64,
    pub faults: Count,
    /// Of the events that got a 200, from the moment they were due.
    pub latency: Latency,
    /// From the start to the last answer.
    pub took: Duration,
    /// Events a second that were due.
    pub asked_rate: f64,
    /// Events a second that were sent.
    pub achieved_rate: f64,
    /// How long after it was due the last event was sent.
    pub behind: Duration,
    /// Of those that were not broken off on purpose.
    pub last_failure: Option<Failure>,
}

/// How often each fault was injected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    pub duplicates: u64,
    pub reorder: u64,
    pub drift: u64,
    /// Attempts that were broken off.
    pub abort: u64,
    pub malformed: u64,
}

/// To three significant digits.
#[derive(Debug, Clone)]
pub struct Latency(Histogram<u64>);

impl Summary {
    pub(super) fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self {
            events: 0,
            sent: 0,
            stored: 0,
            duplicate: 0,
            rejected: 0,
            dropped: 0,
            attempts: 0,
            faults: Count::default(),
            latency: Latency(Histogram::new_with_max(micros(LONGEST), 3)?),
            took: Duration::ZERO,
            asked_rate: 0.0,
            achieved_rate: 0.0,
            behind: Duration::ZERO,
            last_failure: None,
        })
    }

    pub(super) fn note(&mut self, settled: &Settled, hit: Hit, latency: Duration) {
        self.events += u64::from(!hit.duplicate);
        self.sent += 1;
        self.attempts += u64::from(settled.attempts);
        match settled.outcome {
            Outcome::Stored => self.stored += 1,
            Outcome::Duplicate => self.duplicate += 1,
            Outcome::Rejected => self.rejected += 1,
            Outcome::Dropped => self.dropped += 1,
        }
        if let Outcome::Stored | Outcome::Duplicate = settled.outcome {
            self.latency.0.saturating_record(micros(latency));
        }
        self.faults.duplicates += u64::from(hit.duplicate);
        self.faults.reorder += u64::from(hit.reorder);
        self.faults.drift += u64::from(hit.drift);
        self.faults.abort += u64::from(settled.aborted);
        self.faults.malformed += u64::from(hit.malformed);
        if let Some(failure) = settled.failure.as_ref().filter(|&failure| *failure != Failure::BrokenOff) {
            self.last_failure = Some(failure.clone());
        }
    }

    /// `asked`: events a second that were due; `last`: when the last one was due, from the start; `behind`: how much
    /// later than that it was sent.
    pub(super) fn settle_rates(&mut self, asked: f64, last: Duration, behind: Duration) {
        self.asked_rate = asked;
        self.behind = behind;
        // The last event's time is as long as those between the others.
        let planned = Duration::try_from_secs_f64(1.0 / asked).map_or(last, |one| last + one);
        self.achieved_rate = per_second(self.events, planned + behind);
    }

    /// Whether events could not be sent as fast as they were due.
    #[must_use]
    pub fn fell_behind(&self) -> bool {
        self.behind > LATE && self.achieved_rate < self.asked_rate * 0.99
    }

    /// The summary for programs; times in microseconds.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        let Self { events, sent, stored, duplicate, rejected, dropped, attempts, faults, latency, .. } = self;
        serde_json::json!({
            "events": events,
            "sent": sent,
            "stored": stored,
            "duplicate": duplicate,
            "rejected": rejected,
            "dropped": dropped,
            "attempts": attempts,
            "seconds": self.took.as_secs_f64(),
            "asked_rate": self.asked_rate,
            "achieved_rate": self.achieved_rate,
            "fell_behind": self.fell_behind(),
            "behind_us": micros(self.behind),
            "latency_us": {
                "p50": latency.percentile(50.0),
                "p90": latency.percentile(90.0),
                "p99": latency.percentile(99.0),
                "p99.9": latency.percentile(99.9),
                "max": latency.percentile(100.0),
            },
            "faults": {
                "duplicates": faults.duplicates,
                "reorder": faults.reorder,
                "drift": faults.drift,
                "abort": faults.abort,
                "malformed": faults.malformed,
            },
            "last_failure": self.last_failure.as_ref().map(ToString::to_string),
        })
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, stored, duplicate, rejected, dropped, attempts, faults, latency, .. } = self;
        write!(f, "sent {sent} events with {attempts} POSTs in {:.1} s", self.took.as_secs_f64())?;
        writeln!(f, ", {:.1} events/s of {:.1} asked for", self.achieved_rate, self.asked_rate)?;
        writeln!(f, "  stored {stored}, duplicate {duplicate}, rejected {rejected}, dropped {dropped}")?;
        write!(f, "  time to the 200: {latency}")?;
        if *faults != Count::default() {
            let Count { duplicates, reorder, drift, abort, malformed } = faults;
            write!(f, "\n  faults: {duplicates} sent again, {reorder} held back, {drift} with drift, ")?;
            write!(f, "{abort} attempts broken off, {malformed} malformed")?;
        }
        if self.fell_behind() {
            write!(f, "\n  sending fell behind, by {:.1} s at the end: ", self.behind.as_secs_f64())?;
            write!(f, "try more connections, unless the receiver or this machine is at its limit")?;
        }
        match &self.last_failure {
            Some(failure) => write!(f, "\n  last failure: {failure}"),
            None => Ok(()),
        }
    }
}

impl Latency {
    /// Microseconds within which this percentage of the events was answered; 0 when there were none.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> u64 {
        self.0.value_at_percentile(percent)
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("there was none");
        }
        let percentiles = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("max", 100.0)];
        let ms = |percent| f64::from(u32::try_from(self.percentile(percent)).unwrap_or(u32::MAX)) / 1000.0;
        let told = percentiles.map(|(name, percent)| format!("{name} {:.2} ms", ms(percent)));
        f.write_str(&told.join(", "))
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
