//! The state of the receiver as operators see it: `/api/v1/status`, and the per-sink part of `/metrics`.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
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
    /// `open`, `full`, `failed` or `closed`.
    pub state: &'static str,
    pub engine: &'static str,
    /// Of the oldest event still kept; `None` while there is none.
    pub first_sequence: Option<u64>,
    /// Of the newest event ever; `None` before the first.
    pub last_sequence: Option<u64>,
    /// Of the oldest events kept, since they were written.
    pub oldest_seconds: Option<f64>,
    /// Of live events, uncompressed.
    pub bytes: u64,
    pub max_bytes: u64,
    pub lost_events: u64,
    pub dedup_ids: u64,
}

/// A sink's account, by event and not by attempt: `stored = delivered + filtered + dead_lettered + evicted + pending`.
#[derive(Debug, Clone, Serialize)]
pub struct Sink {
    pub name: String,
    /// `ok`; `failing` (the last attempt failed, it is tried again); `stalled` (nothing got on for a while, and no attempt
    /// ended); `waiting` (for room in the dead letters); `disabled`; `gone` (from the settings).
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

/// What of a status is told as metrics: the accounts of the sinks, and when certificates end.
pub(super) fn registry(Status { sinks, certificates, .. }: &Status) -> Registry {
    let mut registry = Registry::with_prefix("asapp_receiver");
    let expiry = Family::<Vec<(&'static str, String)>, Gauge<u64, AtomicU64>>::default();
    for certificate in certificates {
        let labels = vec![("key", certificate.key.clone()), ("subject", certificate.subject.clone())];
        expiry.get_or_create_owned(&labels).set(certificate.timestamp);
    }
    registry.register("certificate_expiry_timestamp_seconds", "when a certificate or revocation list ends", expiry);
    let r = registry.sub_registry_with_prefix("sink");
    let count = |counter: &Counter, value| _ = counter.inc_by(value);
    series(r, "stored", "events from the sink's first sequence on", sinks, |m, sink| count(m, sink.stored));
    series(r, "delivered", "events delivered", sinks, |m, sink| count(m, sink.delivered));
    series(r, "filtered", "events the sink's filter left out", sinks, |m, sink| count(m, sink.filtered));
    series(r, "evicted", "undelivered events a full journal let go", sinks, |m, sink| count(m, sink.evicted));
    let level = |gauge: &Gauge<u64, AtomicU64>, value| _ = gauge.set(value);
    series(r, "dead_lettered", "events in the dead letters", sinks, |m, sink| level(m, sink.dead_lettered));
    series(r, "pending", "events not settled yet", sinks, |m, sink| level(m, sink.pending));
    series(r, "gone", "1 while the sink is gone from the settings", sinks, |m, sink| {
        level(m, u64::from(sink.state == "gone"));
    });
    series(r, "lag_seconds", "age of the oldest pending event", sinks, |m: &Gauge<f64, AtomicU64>, sink| {
        m.set(sink.lag_seconds);
    });
    registry
}

fn series<M>(r: &mut Registry, name: &str, help: &str, sinks: &[Sink], fill: impl Fn(&M, &Sink))
where
    M: Metric + TypedMetric + EncodeMetric + Default + Clone,
{
    let family = Family::<[(&'static str, String); 1], M>::default();
    for sink in sinks {
        fill(&family.get_or_create_owned(&[("sink", sink.name.clone())]), sink);
    }
    r.register(name, help, family);
}

#[cfg(test)]
impl Status {
    /// Of a receiver that has just begun.
    pub(super) fn empty() -> Self {
        Self {
            process: Process { received: 0, stored: 0, duplicate: 0, rejected: 0, refused: 0, in_flight: 0 },
            journal: Journal {
                state: "open",
                engine: "memory",
                first_sequence: None,
                last_sequence: None,
                oldest_seconds: None,
                bytes: 0,
                max_bytes: 1,
                lost_events: 0,
                dedup_ids: 0,
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

    #[test]
    fn every_sink_has_its_series() {
        let sink = |name: &str, pending| Sink {
            name: name.to_owned(),
            state: "ok",
            enabled: true,
            required: true,
            stored: 9,
            delivered: 5,
            filtered: 1,
            dead_lettered: 1,
            evicted: 0,
            pending,
            cursor: 7,
            lag_seconds: 1.5,
            last_error: None,
        };
        let certificate = Certificate {
            key: "tls.certificate".to_owned(),
            file: "server.pem".to_owned(),
            subject: "CN=x".to_owned(),
            not_after: String::new(),
            timestamp: 1_800_000_000,
            days_left: 1,
        };
        let sinks = vec![sink("a", 2), sink("b", 3)];
        let status = Status { sinks, certificates: vec![certificate], ..Status::empty() };
        let text = Metrics::new().encode_with(&registry(&status));
        for line in [
            r#"asapp_receiver_sink_stored_total{sink="a"} 9"#,
            r#"asapp_receiver_sink_delivered_total{sink="b"} 5"#,
            r#"asapp_receiver_sink_filtered_total{sink="a"} 1"#,
            r#"asapp_receiver_sink_evicted_total{sink="a"} 0"#,
            r#"asapp_receiver_sink_dead_lettered{sink="a"} 1"#,
            r#"asapp_receiver_sink_pending{sink="a"} 2"#,
            r#"asapp_receiver_sink_pending{sink="b"} 3"#,
            r#"asapp_receiver_sink_gone{sink="a"} 0"#,
            r#"asapp_receiver_sink_lag_seconds{sink="a"} 1.5"#,
            r#"asapp_receiver_certificate_expiry_timestamp_seconds{key="tls.certificate",subject="CN=x"} 1800000000"#,
            "# EOF",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
