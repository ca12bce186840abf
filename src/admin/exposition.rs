//! What `/metrics` shows beside what the process counts: its readiness, the state of journal and sinks, until when
//! certificates are good, and what the process takes of the machine. Read anew for each request.

use std::cmp::Reverse;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::status::{Certificate, SINK_STATES, Sink, Status};
use super::view::Unready;

type Level = Gauge<u64, AtomicU64>;

/// `status` is there once the journal is open; `started` is when the process was.
pub(super) fn registry(status: Option<&Status>, unready: Option<Unready>, started: SystemTime) -> Registry {
    let mut registry = Registry::with_prefix("asapp_receiver");
    let r = &mut registry;
    readiness(r, unready);
    process(r.sub_registry_with_prefix("process"), started);
    if let Some(status) = status {
        kept(r, status);
        expiries(r, &status.certificates);
        sinks(r.sub_registry_with_prefix("sink"), &status.sinks);
    }
    registry
}

fn readiness(r: &mut Registry, unready: Option<Unready>) {
    level(r, "ready", "1 while events should be sent here, as /readyz says", u64::from(unready.is_none()));
    let reasons = Family::<[(&'static str, &'static str); 1], Level>::default();
    for reason in Unready::ALL {
        reasons.get_or_create_owned(&[("reason", reason.words())]).set(u64::from(unready == Some(reason)));
    }
    r.register("unready", "1 for the reason why no events should be sent here", reasons);
}

/// What a Prometheus client library reports of a process, as far as this system does.
fn process(r: &mut Registry, started: SystemTime) {
    let seconds = Gauge::<f64, AtomicU64>::default();
    seconds.set(started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    r.register("start_time_seconds", "when the process started, since 1970", seconds);
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = Counter::<f64, AtomicU64>::default();
    let whole = u32::try_from(used.tv_sec).map_or(0.0, f64::from);
    cpu.inc_by(whole + f64::from(u32::try_from(used.tv_nsec).unwrap_or_default()) / 1e9);
    r.register_with_unit("cpu", "processor time used", Unit::Seconds, cpu);
    if let Some(bytes) = resident_bytes() {
        level(r, "resident_memory_bytes", "memory that the process has in use", bytes);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // The one that counts them is among them.
        level(r, "open_fds", "open files, connections included", (open.count() as u64).saturating_sub(1));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        level(r, "max_fds", "open files that the process may have", most);
    }
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

fn kept(r: &mut Registry, Status { journal, dead_letters, quarantine, .. }: &Status) {
    r.register("journal", "which engine keeps events", Info::new([("engine", journal.engine)]));
    level(
        r,
        "journal_held_bytes",
        "bytes of events that some sink has not had, by their share of all",
        journal.held_bytes,
    );
    level(
        r,
        "journal_replay_limited",
        "1 while delivered events yield before journal.retention is over, since the disk was full",
        u64::from(journal.replay_limit_bytes.is_some()),
    );
    if let Some(disk) = &journal.disk {
        level(r, "journal_disk_free_bytes", "what the journal's disk has left", disk.free_bytes);
        level(r, "journal_disk_total_bytes", "how large the journal's disk is", disk.total_bytes);
    }
    if let Some(bytes) = journal.wal_bytes {
        level(r, "journal_wal_bytes", "what the journal's write-ahead log takes on the disk", bytes);
    }
    level(r, "dead_letters", "dead letters that are kept", dead_letters.count);
    level(r, "dead_letters_retrying", "dead letters that are being tried again", dead_letters.retrying);
    level(r, "dead_letters_bytes", "bytes of dead letters", dead_letters.bytes);
    level(r, "dead_letters_max_bytes", "bytes that dead_letters.max_bytes allows", dead_letters.max_bytes);
    level(r, "quarantine_bodies", "bodies in the quarantine", quarantine.count);
    level(r, "quarantine_bytes", "bytes of bodies in the quarantine", quarantine.bytes);
    level(r, "quarantine_max_bytes", "bytes that quarantine.max_bytes allows", quarantine.max_bytes);
}

fn expiries(r: &mut Registry, certificates: &[Certificate]) {
    let expiry = Family::<Vec<(&'static str, String)>, Level>::default();
    // Of several under one name, as lists of one CA are, the first to end is what matters.
    let mut latest_first: Vec<&Certificate> = certificates.iter().collect();
    latest_first.sort_by_key(|certificate| Reverse(certificate.timestamp));
    for certificate in latest_first {
        let labels = vec![("key", certificate.key.clone()), ("subject", certificate.subject.clone())];
        expiry.get_or_create_owned(&labels).set(certificate.timestamp);
    }
    r.register("certificate_expiry_timestamp_seconds", "when a certificate or revocation list ends", expiry);
}

fn sinks(r: &mut Registry, sinks: &[Sink]) {
    let count = |counter: &Counter, value| _ = counter.inc_by(value);
    series(r, "stored", "events from the sink's first sequence on", sinks, |m, sink| count(m, sink.stored));
    series(r, "delivered", "events delivered", sinks, |m, sink| count(m, sink.delivered));
    series(r, "filtered", "events the sink's filter left out", sinks, |m, sink| count(m, sink.filtered));
    series(r, "evicted", "undelivered events a full journal let go", sinks, |m, sink| count(m, sink.evicted));
    let set = |gauge: &Level, value| _ = gauge.set(value);
    series(r, "dead_lettered", "events in the dead letters, discarded ones too", sinks, |m, sink| {
        set(m, sink.dead_lettered);
    });
    series(r, "pending", "events not settled yet", sinks, |m, sink| set(m, sink.pending));
    series(r, "gone", "1 while the sink is gone from the settings", sinks, |m, sink| {
        set(m, u64::from(sink.state == "gone"));
    });
    series(r, "lag_seconds", "age of the oldest pending event", sinks, |m: &Gauge<f64, AtomicU64>, sink| {
        m.set(sink.lag_seconds);
    });
    let states = Family::<Vec<(&'static str, String)>, Level>::default();
    for sink in sinks {
        for state in SINK_STATES {
            let labels = vec![("sink", sink.name.clone()), ("state", state.to_owned())];
            states.get_or_create_owned(&labels).set(u64::from(sink.state == state));
        }
    }
    r.register("state", "1 for the state that the sink is in", states);
}

fn level(r: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Level::default();
    gauge.set(value);
    r.register(name, help, gauge);
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
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

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
        let started = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_500);
        let text = Metrics::new().encode_with(&registry(Some(&status), Some(Unready::Draining), started));
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
            r#"asapp_receiver_sink_state{sink="b",state="ok"} 1"#,
            r#"asapp_receiver_sink_state{sink="b",state="failing"} 0"#,
            r#"asapp_receiver_certificate_expiry_timestamp_seconds{key="tls.certificate",subject="CN=x"} 1800000000"#,
            "asapp_receiver_ready 0",
            r#"asapp_receiver_unready{reason="draining"} 1"#,
            r#"asapp_receiver_unready{reason="journal full"} 0"#,
            "asapp_receiver_process_start_time_seconds 1.5",
            "# EOF",
        ] {
            assert!(text.lines().any(|got| got == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_process_tells_what_it_takes_of_the_machine() {
        let text = Metrics::new().encode_with(&registry(None, None, SystemTime::now()));
        let value = |name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(&format!("asapp_receiver_process_{name} ")));
            found.unwrap_or_else(|| panic!("{name} in\n{text}")).parse::<f64>().unwrap()
        };
        assert!(value("resident_memory_bytes") > 1_000_000.0, "{text}");
        assert!(value("open_fds") >= 3.0 && value("open_fds") < value("max_fds"), "{text}");
        assert!(value("cpu_seconds_total") > 0.0, "{text}");
        assert!(text.contains("asapp_receiver_ready 1\n"), "{text}");
    }
}
