//! The state of the receiver as operators see it: `/api/v1/status`.

use serde::Serialize;

use crate::telemetry::Metrics;

/// `/api/v1/status`.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    pub process: Process,
    pub journal: Journal,
    pub sinks: Vec<Sink>,
    pub dead_letters: DeadLetters,
    pub quarantine: Quarantine,
    pub certificates: Vec<Certificate>,
    pub reload: Reload,
    /// Deviations from ASAPP's documentation that this process saw last, the newest first; at most 50.
    pub drift: Vec<Drift>,
}

/// One deviation, of the events that were looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Drift {
    /// Short name, or `other`.
    pub feed: &'static str,
    /// As in the metric `drift_total`.
    pub kind: &'static str,
    /// The documented field or object where it was found.
    pub at: String,
    /// What events call a `field`, `event_type` or `feed` that is not documented: escaped, and cut off after 64 characters.
    pub name: Option<String>,
    pub count: u64,
    /// RFC 3339, UTC.
    pub first_seen: String,
    pub last_seen: String,
}

/// Whether the settings and TLS files are those in use.
#[derive(Debug, Clone, Serialize)]
pub struct Reload {
    /// When the TLS files in use were taken, RFC 3339, UTC.
    pub taken_at: String,
    /// Since the start.
    pub reloads: u64,
    pub failures: u64,
    /// Why the files as they are now cannot be used; what was taken last stays. Empty: they are in use.
    pub problems: Vec<String>,
    /// Keys of the settings whose values have changed and count from the next start.
    pub restart_for: Vec<String>,
}

/// What this process took in: `received = stored + duplicate + rejected + refused + in_flight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Process {
    pub received: u64,
    pub stored: u64,
    pub duplicate: u64,
    pub rejected: u64,
    pub refused: u64,
    pub in_flight: u64,
}

/// Events that a sink did not take, of all sinks.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DeadLetters {
    pub count: u64,
    /// Of these, those that are pending again.
    pub retrying: u64,
    pub bytes: u64,
    /// When they are reached, lanes wait.
    pub max_bytes: u64,
}

/// Bodies that were not accepted.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Quarantine {
    pub count: u64,
    pub bytes: u64,
    /// Beyond these the oldest go.
    pub max_bytes: u64,
}

/// Until when a certificate or a revocation list in use is good.
#[derive(Debug, Clone, Serialize)]
pub struct Certificate {
    /// The setting that names its file.
    pub key: String,
    pub file: String,
    /// RFC 4514: whom it names, or who issued the list.
    pub subject: String,
    /// RFC 3339, UTC.
    pub not_after: String,
    /// The same in seconds since 1970.
    #[serde(skip)]
    pub timestamp: u64,
    /// Whole days; below zero once it is over.
    pub days_left: i64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Journal {
    /// `open`; `full`, `write-error`, `busy`, `unreachable` or `unfit`, from which it recovers; `failed` or `closed`.
    pub state: &'static str,
    /// Why events cannot be stored now.
    pub reason: Option<String>,
    pub engine: &'static str,
    /// The log identity: sequences are this log's. `None`: not known now.
    pub identity: Option<String>,
    /// Of the oldest event still kept; `None` while there is none.
    pub first_sequence: Option<u64>,
    /// Of the newest event ever; `None` before the first.
    pub last_sequence: Option<u64>,
    /// Of the oldest events kept, since they were written.
    pub oldest_seconds: Option<f64>,
    /// Of live events, uncompressed.
    pub bytes: u64,
    pub max_bytes: u64,
    /// Of those bytes, what some sink has not had yet, by its share of the events.
    pub held_bytes: u64,
    /// Delivered events yield above this many bytes, however young, since the disk was full; `None`: they are kept for
    /// `journal.retention`, within `max_bytes`.
    pub replay_limit_bytes: Option<u64>,
    /// What the journal is on; `None` where it has no disk of this machine.
    pub disk: Option<Disk>,
    /// Of the write-ahead log, which takes its room beside the events.
    pub wal_bytes: Option<u64>,
    /// Larger bodies are answered 413, as the cluster does not take them; `None`: `listen.max_body_bytes` alone counts.
    pub largest_body_bytes: Option<u64>,
    pub lost_events: u64,
    /// In memory here; a cluster counts its own.
    pub dedup_ids: u64,
    /// Of the engine `nats` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<Cluster>,
}

/// The disk that the journal is on.
#[derive(Debug, Clone, Serialize)]
pub struct Disk {
    /// `None` where the kernel does not list it.
    pub mount: Option<String>,
    pub device: Option<String>,
    pub file_system: Option<String>,
    /// A user's quota shows in it on some file systems only.
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// The NATS cluster, as its server that the receiver is connected to, or was last, tells.
#[derive(Debug, Clone, Serialize)]
pub struct Cluster {
    pub server: String,
    pub version: String,
    /// `None`: a server without a cluster.
    pub name: Option<String>,
    /// Bytes that it takes at once.
    pub max_payload: u64,
    /// Whether that server has events on its disk before it acknowledges them; `None`: unknown, for want of
    /// `journal.nats.monitor_url`.
    pub sync_always: Option<bool>,
}

/// What [`Sink::state`] may be.
pub(super) const SINK_STATES: [&str; 7] = ["ok", "failing", "stalled", "rejecting", "waiting", "disabled", "gone"];

/// A sink's account, by event and not by attempt: `stored = delivered + filtered + dead_lettered + evicted + pending`.
#[derive(Debug, Clone, Serialize)]
pub struct Sink {
    pub name: String,
    /// `ok`; `failing` (the last attempt failed, it is tried again); `stalled` (nothing got on for a while, and no attempt
    /// ended); `rejecting` (since the last delivery, every event became a dead letter); `waiting` (for room in the dead
    /// letters); `disabled`; `gone` (from the settings).
    pub state: &'static str,
    pub enabled: bool,
    pub required: bool,
    pub stored: u64,
    pub delivered: u64,
    pub filtered: u64,
    /// Falls when a dead letter is tried again.
    pub dead_lettered: u64,
    pub evicted: u64,
    pub pending: u64,
    /// Everything up to this sequence is settled.
    pub cursor: u64,
    /// Age of the oldest pending event; 0 without one.
    pub lag_seconds: f64,
    pub last_error: Option<String>,
}

impl Process {
    /// The account in `metrics`, which goes on changing while it is read.
    #[must_use]
    pub fn read(metrics: &Metrics) -> Self {
        // The parts of a family cannot be listed, only encoded.
        let text = metrics.encode();
        Self {
            received: metrics.received.get(),
            stored: metrics.stored.get(),
            duplicate: metrics.duplicate.get(),
            rejected: sum(&text, "asapp_receiver_rejected_total{"),
            refused: sum(&text, "asapp_receiver_refused_total{"),
            in_flight: metrics.in_flight.get().try_into().unwrap_or_default(),
        }
    }
}

fn sum(text: &str, series: &str) -> u64 {
    let samples = text.lines().filter(|line| line.starts_with(series));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
impl Status {
    /// Of a receiver that has just begun.
    pub(super) fn empty() -> Self {
        Self {
            process: Process { received: 0, stored: 0, duplicate: 0, rejected: 0, refused: 0, in_flight: 0 },
            journal: Journal {
                state: "open",
                reason: None,
                engine: "memory",
                identity: None,
                first_sequence: None,
                last_sequence: None,
                oldest_seconds: None,
                bytes: 0,
                max_bytes: 1,
                held_bytes: 0,
                replay_limit_bytes: None,
                disk: None,
                wal_bytes: None,
                largest_body_bytes: None,
                lost_events: 0,
                dedup_ids: 0,
                cluster: None,
            },
            sinks: Vec::new(),
            dead_letters: DeadLetters { count: 0, retrying: 0, bytes: 0, max_bytes: 1 },
            quarantine: Quarantine { count: 0, bytes: 0, max_bytes: 1 },
            certificates: Vec::new(),
            reload: Reload {
                taken_at: String::new(),
                reloads: 0,
                failures: 0,
                problems: Vec::new(),
                restart_for: Vec::new(),
            },
            drift: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_account_of_the_process_adds_up_over_all_reasons() {
        let metrics = Metrics::new();
        metrics.received.inc_by(10);
        metrics.stored.inc_by(4);
        metrics.rejected.get_or_create(&[("reason", "malformed")]).inc_by(2);
        metrics.rejected.get_or_create(&[("reason", "aborted")]).inc();
        metrics.refused.get_or_create(&[("reason", "full")]).inc();
        metrics.in_flight.set(2);
        let account = Process { received: 10, stored: 4, duplicate: 0, rejected: 3, refused: 1, in_flight: 2 };
        assert_eq!(Process::read(&metrics), account);
    }
}
