//! This machine: its ports, its limits, its memory and its clock.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};

use crate::config::{Config, Engine};
use crate::findings::{Finding, mib};
use crate::server::open_files_for;

/// The first second of 2026. This program is younger.
const NOT_BEFORE: Duration = Duration::from_secs(1_767_225_600);

/// What docs/operation.md says that memory is used for.
const BASE: u64 = 100 << 20;
const OF_ID: u64 = 45;
const OF_CONNECTION: u64 = 33 << 10;
const OF_SINK: u64 = 64 << 20;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(port("listen.address", config.listen.address));
    findings.extend(port("admin.address", config.admin.address));
    if !config.admin.address.ip().is_loopback() {
        let text = "not loopback: the token and events go over the network as plain text; let only Prometheus and the \
                    operators reach it, or put TLS in front";
        findings.push(Finding::good("admin.address", text));
    }
    findings.push(open_files(config.listen.max_connections));
    findings.extend(memory(config, Path::new("/sys/fs/cgroup/memory.max"), Path::new("/proc/meminfo")));
    findings.extend(clock(SystemTime::now()));
    findings
}

/// Whether a port can be had. Looks at what the kernel lists, for binding would be listening.
fn port(key: &str, address: SocketAddr) -> Vec<Finding> {
    let mut findings = Vec::new();
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
    let first_free = first_free.and_then(|text| text.trim().parse().ok()).unwrap_or(1024);
    let is_root = rustix::process::geteuid().is_root();
    if address.port() != 0 && address.port() < first_free && !is_root {
        let text = format!(
            "ports below {first_free} need a privilege: choose another one, or give the service CAP_NET_BIND_SERVICE"
        );
        findings.push(Finding::warning(key, text));
    }
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap_or_default());
    let port = address.port();
    findings.push(if port != 0 && tables.iter().any(|table| is_listened_on(table, port)) {
        let text =
            format!("something listens on port {port}: a receiver that runs already, or choose another (ss -ltnp)");
        Finding::warning(key, text)
    } else {
        Finding::good(key, format!("{address} is free"))
    });
    findings
}

/// A table of `/proc/net/tcp`: `sl local_address rem_address st …`, ports in hex.
fn is_listened_on(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    table.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next().and_then(|local| u16::from_str_radix(local.rsplit(':').next()?, 16).ok());
        local == Some(port) && words.nth(1) == Some(LISTEN)
    })
}

fn open_files(connections: usize) -> Finding {
    const KEY: &str = "listen.max_connections";
    let (needed, most) = (open_files_for(connections), getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX));
    if most < needed {
        let text = format!(
            "{connections} connections need {needed} open files, and this user may have {most}: raise the limit \
             (LimitNOFILE of systemd, ulimit -Hn), or further connections wait"
        );
        return Finding::warning(KEY, text);
    }
    Finding::good(KEY, format!("{connections} connections; open files are allowed for them"))
}

/// What the settings may come to take, against what there is. `cgroup` is the container's limit, `machine` the machine's.
fn memory(config: &Config, cgroup: &Path, machine: &Path) -> Option<Finding> {
    let sinks = config.sinks.iter().filter(|sink| sink.enabled).count() as u64;
    let wanted = BASE
        + OF_ID * config.dedup.capacity as u64
        + OF_CONNECTION * config.listen.max_connections as u64
        + config.listen.max_in_flight_bytes as u64
        + OF_SINK * sinks
        + if config.journal.engine == Engine::Memory { config.journal.max_bytes } else { 0 };
    let limit = fs::read_to_string(cgroup).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let total = fs::read_to_string(machine).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().strip_suffix(" kB")?.to_owned();
        Some(line.parse::<u64>().ok()? << 10)
    });
    let there_is = limit.into_iter().chain(total).min()?;
    let (wanted_text, there_text) = (mib(wanted), mib(there_is));
    if there_is < wanted {
        let text = format!(
            "at their limits, connections, bodies, ids and sinks take {wanted_text}, and there are {there_text}: raise the \
             container's limit, or lower listen.max_connections, listen.max_in_flight_bytes or dedup.capacity"
        );
        return Some(Finding::warning("memory", text));
    }
    Some(Finding::good("memory", format!("at most {wanted_text} of {there_text} with these settings")))
}

fn clock(now: SystemTime) -> Option<Finding> {
    let is_wrong = now.duration_since(UNIX_EPOCH).unwrap_or_default() < NOT_BEFORE;
    let text = "this machine's clock is years behind, so certificates are not valid yet: set it, and keep it (chrony)";
    is_wrong.then(|| Finding::warning("clock", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:20FB 0100007F:1F91 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 3 1 0 100 0 0 10 0\n";
        assert!(is_listened_on(table, 8081) && is_listened_on(table, 80));
        assert!(!is_listened_on(table, 0x20fb) && !is_listened_on(table, 443) && !is_listened_on("", 80));
    }

    #[test]
    fn a_clock_of_the_seventies_is_told() {
        assert!(clock(UNIX_EPOCH).is_some());
        assert!(clock(SystemTime::now()).is_none());
    }

    #[test]
    fn the_smaller_of_container_and_machine_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::write(&file, text).unwrap();
            file
        };
        let env = ["TLS__CERTIFICATE", "TLS__PRIVATE_KEY", "TLS__CLIENT_CA", "JOURNAL__PATH"].map(|key| (key, "x"));
        let env = env.into_iter().chain([("TLS__ALLOW_ANY_CLIENT", "true")]);
        let env = env.map(|(key, value)| (format!("ASAPP_RECEIVER__{key}"), value.to_owned()));
        let (config, _) = Config::from_sources(&[], env).unwrap();
        let machine = write("meminfo", "MemTotal:        8388608 kB\nMemFree:  1 kB\n");
        let verdict = |cgroup: &str| memory(&config, &write("max", cgroup), &machine).unwrap().to_string();
        assert!(verdict("max\n").starts_with("ok       memory: at most 594 MiB of 8192 MiB"), "{}", verdict("max\n"));
        assert!(verdict("268435456\n").starts_with("warning  memory:"), "{}", verdict("268435456\n"));
        assert!(verdict("1099511627776\n").ends_with("of 8192 MiB with these settings"));
    }
}
