//! Names of metrics and log fields, and where they are counted.
//!
//! Metrics follow Prometheus' naming; every name starts with `asapp_receiver_`. Labels are bounded: they are words of
//! this program, never a value from an event.

use std::io::Write;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config;
use crate::terminal::Escaping;

/// Limits the log lines of one kind: at most `most` in a `window`, which begins with the first of them.
#[derive(Debug)]
pub(crate) struct LineLimit {
    most: u32,
    window: Duration,
    begun: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl LineLimit {
    pub(crate) const fn new(most: u32, window: Duration) -> Self {
        Self { most, window, begun: None, written: 0, left_out: 0 }
    }

    /// How many lines were left out before this one; `None`: this one has to be left out too.
    pub(crate) fn take(&mut self) -> Option<u64> {
        self.take_at(Instant::now())
    }

    fn take_at(&mut self, now: Instant) -> Option<u64> {
        if self.begun.is_none_or(|begun| now.saturating_duration_since(begun) >= self.window) {
            (self.begun, self.written) = (Some(now), 0);
        }
        if self.is_spent() {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }

    /// Whether the last line of the window is written.
    pub(crate) fn is_spent(&self) -> bool {
        self.written == self.most
    }

    /// Begins anew. Whether a line was written since the last reset.
    pub(crate) fn reset(&mut self) -> bool {
        let was_written = self.begun.is_some();
        *self = Self::new(self.most, self.window);
        was_written
    }
}

/// Sends the process's log to stderr, as the settings want it. Once per process.
///
/// Libraries are heard from `warn` on only, whatever the level: what they say below that may hold bytes of an event.
///
/// # Errors
/// When logging was started before.
pub fn init_logging(log: &config::Log) -> Result<(), TryInitError> {
    let level = LevelFilter::from_level(log.level);
    let targets = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("asapp_receiver", level);
    // Errors quote files, targets and clients, and a log is read on terminals; JSON stays the same JSON.
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Escaping(std::io::stderr()));
    let lines = match log.format {
        config::LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
        config::LogFormat::Text => lines.with_ansi(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(targets)).try_init()
}

/// A label whose value is one of the program's own words.
pub type Label = [(&'static str, &'static str); 1];
/// Two such labels.
pub type Labels = [(&'static str, &'static str); 2];

const REJECTED: &[&str] = &["malformed", "incomplete", "unsupported-media", "too-large", "timeout", "aborted"];
const REFUSED: &[&str] = &["too-many", "full", "write-error", "busy", "unfit", "failed", "closed", "late", "internal"];
const JOURNAL_ERRORS: &[&str] = &["full", "write-error", "busy", "io"];
const UNROUTED: &[&str] = &["not-found", "method-not-allowed"];
const QUARANTINED: &[&str] = &["malformed", "incomplete", "unsupported-media", "conflict"];
/// Those that may mean that ASAPP, or someone who would like to be it, is kept out.
const TLS_REFUSED: &[&str] = &[
    "no-certificate",
    "unknown-ca",
    "expired",
    "not-yet-valid",
    "revoked",
    "revocation-unknown",
    "usage",
    "key",
    "identity",
    "chain",
    "constraints",
    "client-alert",
];
/// A load balancer and the receiver that do not agree close every connection.
const PROXY: &[&str] = &["proxy-untrusted", "proxy-absent", "proxy-unexpected", "proxy-malformed", "proxy-too-long"];
const FEEDS: [&str; 4] = ["activity", "journey", "queue", "other"];
const DRIFT: [&str; 6] = ["feed", "event_type", "field", "value", "mismatch", "api_version"];

/// Everything the process counts. One per process, shared by reference; cheap to update from any thread.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Authenticated POSTs on an event path whose head was read.
    /// Always `received = stored + duplicate + rejected + refused + in_flight`.
    pub received: Counter,
    pub stored: Counter,
    pub duplicate: Counter,
    /// `reason`: the answer's problem word, or `aborted` (the client went away before its body was whole).
    pub rejected: Family<Label, Counter>,
    /// `reason`: `too-many`, `full`, `write-error`, `busy`, `unfit`, `failed`, `closed`, `late`, `internal`.
    pub refused: Family<Label, Counter>,
    pub in_flight: Gauge,
    /// Requests that were answered 503 because the journal took longer than `listen.answer_within`. What becomes of the
    /// event counts when it is known.
    pub answered_late: Counter,
    /// Requests that were no POST on an event path, and count nowhere else. `reason`: the answer's problem word.
    pub unrouted: Family<Label, Counter>,
    /// `reason`: why a TLS handshake was refused.
    pub tls_refused: Family<Label, Counter>,
    /// `reason`: what was odd about an admitted client's certificate (`validity`).
    pub tls_warnings: Family<Label, Counter>,
    pub connections: Gauge,
    /// `listen.max_connections`, or as many as there may be open files for.
    pub connections_max: Gauge,
    pub connections_accepted: Counter,
    /// `reason`: `head-timeout`, `idle`, `write-timeout`, `age`, `drain`, `handshake-timeout`, `refused`, `probe`, `bad-request`,
    /// `silent` and `unfinished` (made room for another one), `flood` (of HTTP/2 frames), `not-allowed` (a reload, or time, has made its client one that would be refused),
    /// and of the PROXY header `proxy-untrusted`, `proxy-absent`, `proxy-unexpected`, `proxy-malformed`, `proxy-too-long`.
    pub connections_closed: Family<Label, Counter>,
    pub accept_errors: Counter,
    /// Sets of TLS files taken since the start.
    pub reloads: Counter,
    /// Changes that could not be taken; each counts once.
    pub reload_failures: Counter,
    /// 1 while the settings or TLS files are not such as could be taken.
    pub reload_failing: Gauge,
    /// Seconds since 1970; at first the start.
    pub reload_last_good: Gauge,
    /// `feed` (short name or `other`) and `kind` (`feed`, `event_type`, `field`, `value`, `mismatch`, `api_version`).
    pub drift: Family<Labels, Counter>,
    /// Events that were not inspected for drift because the inspector was behind.
    pub drift_uninspected: Counter,
    /// Seconds since 1970 when an event of this `feed` (short name or `other`) last came in. A feed that was not heard of,
    /// in this process's life and the newest 10,000 events before it, has none.
    pub feed_last_event: Family<Label, Gauge<f64, AtomicU64>>,
    /// Seconds from when an event happened to when it came in, by `feed`; zero where that lies ahead.
    pub feed_event_lag: Family<Label, Histogram, fn() -> Histogram>,
    /// An event came with a Content-Type other than `application/json`.
    pub odd_content_type: Counter,
    /// `reason`: `malformed`, `incomplete`, `unsupported-media`, `conflict`.
    pub quarantined: Family<Label, Counter>,
    pub quarantine_dropped: Counter,
    /// Bodies that operators let out of the quarantine as events. They were received when they came, and count there.
    pub quarantine_released: Counter,
    pub conflicts: Counter,
    pub panics: Counter,
    /// Seconds from the first write of a commit group to the end of its sync.
    pub journal_commit: Histogram,
    pub journal_groups: Counter,
    /// `reason`: `full`, `write-error`, `busy`, which pass; `io`, which is final.
    pub journal_errors: Family<Label, Counter>,
    /// Acknowledged events that damage to the journal has cost, as far as can be told. Zero, or an incident.
    pub journal_lost: Counter,
    pub journal_bytes: Gauge,
    /// `journal.max_bytes`.
    pub journal_max_bytes: Gauge,
    pub dedup_ids: Gauge,
    /// Failed attempts to deliver, by `sink` (a settings name) and `reason`.
    pub sink_failures: Family<Vec<(String, String)>, Counter>,
}

impl Metrics {
    /// All metrics at zero, registered.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("asapp_receiver");
        let r = &mut registry;
        r.register("build", "the program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self {
            received: counter(r, "received", "authenticated POSTs on an event path whose head was read"),
            stored: counter(r, "stored", "events made durable"),
            duplicate: counter(r, "duplicate", "POSTs whose event_id was known already"),
            rejected: family(r, "rejected", "POSTs that were no acceptable event, by reason", REJECTED),
            refused: family(r, "refused", "POSTs that could not be taken at the time, by reason", REFUSED),
            in_flight: gauge(r, "in_flight", "received POSTs whose outcome is not settled yet"),
            answered_late: counter(r, "answered_late", "POSTs answered 503 because the journal took too long"),
            unrouted: family(r, "unrouted", "requests that were no POST on an event path, by reason", UNROUTED),
            tls_refused: family(r, "tls_refused", "TLS handshakes refused, by reason", TLS_REFUSED),
            tls_warnings: family(
                r,
                "tls_warnings",
                "admitted clients with an odd certificate, by reason",
                &["validity"],
            ),
            connections: gauge(r, "connections", "open connections of the event port"),
            connections_max: gauge(r, "connections_max", "connections that are accepted at a time, further ones wait"),
            connections_accepted: counter(r, "connections_accepted", "connections accepted by the event port"),
            connections_closed: family(r, "connections_closed", "connections the receiver ended, by reason", PROXY),
            accept_errors: counter(r, "accept_errors", "failures to accept a connection, such as too many open files"),
            reloads: counter(r, "reloads", "changed sets of TLS files taken without a restart"),
            reload_failures: counter(r, "reload_failures", "changes of settings or TLS files that could not be taken"),
            reload_failing: gauge(r, "reload_failing", "1 while settings or TLS files could not be taken, else 0"),
            reload_last_good: gauge(r, "reload_last_good_timestamp_seconds", "when the TLS files in use were taken"),
            drift: {
                let drift = Family::<Labels, Counter>::default();
                for feed in FEEDS {
                    for kind in DRIFT {
                        drop(drift.get_or_create(&[("feed", feed), ("kind", kind)]));
                    }
                }
                r.register("drift", "deviations from ASAPP's documented schema, by feed and kind", drift.clone());
                drift
            },
            drift_uninspected: counter(r, "drift_uninspected", "events not looked at for schema drift"),
            feed_last_event: {
                let last = Family::<Label, Gauge<f64, AtomicU64>>::default();
                r.register("feed_last_event_timestamp_seconds", "when the feed's last event came in", last.clone());
                last
            },
            feed_event_lag: {
                // From a tenth of a second to a night.
                let lag = || Histogram::new(exponential_buckets(0.1, 2.5, 14));
                let lag = Family::<Label, Histogram, fn() -> Histogram>::new_with_constructor(lag);
                let help = "time from when an event happened to when it came in, of the events looked at, by feed";
                r.register_with_unit("feed_event_lag", help, Unit::Seconds, lag.clone());
                lag
            },
            odd_content_type: counter(r, "odd_content_type", "events whose Content-Type was not application/json"),
            quarantined: family(r, "quarantined", "bodies kept in the quarantine, by reason", QUARANTINED),
            quarantine_dropped: counter(r, "quarantine_dropped", "bodies a full quarantine let go, oldest first"),
            quarantine_released: counter(
                r,
                "quarantine_released",
                "bodies that operators let out of the quarantine as events",
            ),
            conflicts: counter(r, "conflicts", "known event ids that came with other bytes"),
            panics: counter(r, "panics", "bugs caught in a request"),
            journal_commit: {
                let h = Histogram::new(exponential_buckets(0.000_1, 2.0, 16));
                r.register_with_unit(
                    "journal_commit",
                    "time to write and sync a commit group",
                    Unit::Seconds,
                    h.clone(),
                );
                h
            },
            journal_groups: counter(r, "journal_groups", "commit groups written"),
            journal_errors: family(r, "journal_errors", "failed journal writes, by reason", JOURNAL_ERRORS),
            journal_lost: counter(r, "journal_lost_events", "acknowledged events lost to journal damage"),
            journal_bytes: gauge(r, "journal_bytes", "bytes of live events in the journal"),
            journal_max_bytes: gauge(r, "journal_max_bytes", "bytes of live events that journal.max_bytes allows"),
            dedup_ids: gauge(r, "dedup_ids", "event ids remembered"),
            sink_failures: {
                let failures = Family::<Vec<(String, String)>, Counter>::default();
                r.register("sink_failures", "failed delivery attempts, by sink and reason", failures.clone());
                failures
            },
            registry,
        }
    }

    /// The text exposition of all metrics (OpenMetrics 1.0).
    #[must_use]
    pub fn encode(&self) -> String {
        self.encode_with(&Registry::default())
    }

    /// The same, with what another place counts.
    #[must_use]
    pub fn encode_with(&self, more: &Registry) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode_registry(&mut text, &self.registry);
        let _ = encode_registry(&mut text, more);
        let _ = encode_eof(&mut text);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn counter(r: &mut Registry, name: &str, help: &str) -> Counter {
    let c = Counter::default();
    r.register(name, help, c.clone());
    c
}

fn gauge(r: &mut Registry, name: &str, help: &str) -> Gauge {
    let g = Gauge::default();
    r.register(name, help, g.clone());
    g
}

/// A family by one label. The words that are known beforehand begin at zero: the first of them must show as an increase.
fn family(r: &mut Registry, name: &str, help: &str, reasons: &[&'static str]) -> Family<Label, Counter> {
    let f = Family::<Label, Counter>::default();
    for reason in reasons {
        drop(f.get_or_create(&[("reason", reason)]));
    }
    r.register(name, help, f.clone());
    f
}

/// Makes a panic tell where it happened, and nothing else: its message may hold values of an event.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        if tracing::dispatcher::has_been_set() {
            tracing::error!(location, "panic");
        } else {
            // Too early for the log. When stderr is gone too, there is no one to tell.
            let _ = writeln!(std::io::stderr(), "panic at {location}");
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_lets_so_many_lines_through_and_counts_the_others() {
        const WINDOW: Duration = Duration::from_secs(10);
        let start = Instant::now();
        let mut one = LineLimit::new(1, WINDOW);
        assert_eq!(one.take_at(start), Some(0));
        assert_eq!(one.take_at(start + Duration::from_secs(1)), None);
        assert_eq!(one.take_at(start + WINDOW - Duration::from_millis(1)), None);
        assert_eq!(one.take_at(start + WINDOW), Some(2));
        assert_eq!(one.take_at(start + WINDOW * 2), Some(0));
        let mut two = LineLimit::new(2, WINDOW);
        let taken = [0, 1, 2, 9, 10].map(|second| two.take_at(start + Duration::from_secs(second)));
        assert_eq!(taken, [Some(0), Some(0), None, None, Some(2)]);
        assert!(!two.is_spent() && two.reset() && !two.reset());
    }
}
