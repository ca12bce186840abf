//! The sections: their keys, their ranges, and what does not go together.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::origin::Origin;
use super::reader::{Reader, Section};
use super::{
    Admin, AllowedClient, AllowedClients, Config, DeadLetters, Dedup, Endpoint, Engine, Journal, Listen, Log,
    LogFormat, Nats, Ordering, OwnFiles, Quarantine, SinkKind, Tls, TlsVersion, nats, sinks, units,
};
use crate::about::Feature;

pub(super) const INSTANT: Duration = Duration::from_millis(10);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(60 * 60);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;

/// An address that nothing listens on, in place of one that could not be read.
const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Reads every section; worth something only if `reader` has no problems afterwards.
pub(super) fn config(reader: &mut Reader, table: &::config::Map<String, ::config::Value>) -> Config {
    let mut root = reader.root(table);
    let config = Config {
        listen: listen(root.section("listen")),
        endpoints: named(root.section("endpoints"), endpoint),
        tls: tls(root.section("tls")),
        dedup: dedup(root.section("dedup")),
        journal: journal(root.section("journal")),
        sinks: named(root.section("sinks"), sinks::sink),
        quarantine: Quarantine { max_bytes: max_bytes(root.section("quarantine"), 0) },
        dead_letters: DeadLetters { max_bytes: max_bytes(root.section("dead_letters"), 4 * KIB) },
        admin: admin(root.section("admin")),
        log: log(root.section("log")),
        origin: Origin::default(),
        own: OwnFiles::default(),
    };
    root.finish();
    between_sections(reader, &config);
    config
}

fn listen(mut s: Section<'_, '_>) -> Listen {
    let listen = Listen {
        address: address(&mut s),
        max_connections: s.number("max_connections", 1..=1_000_000),
        max_in_flight: s.number("max_in_flight", 1..=1_000_000),
        max_in_flight_bytes: s.memory("max_in_flight_bytes", KIB..=u64::MAX),
        max_body_bytes: s.memory("max_body_bytes", 1..=256 * MIB),
        handshake_timeout: s.duration("handshake_timeout", INSTANT..=10 * MINUTE),
        header_timeout: s.duration("header_timeout", INSTANT..=10 * MINUTE),
        body_timeout: s.duration("body_timeout", INSTANT..=10 * MINUTE),
        idle_timeout: s.duration("idle_timeout", INSTANT..=DAY),
        max_connection_age: s.duration("max_connection_age", INSTANT..=30 * DAY),
        answer_within: s.duration("answer_within", INSTANT..=10 * MINUTE),
        drain_timeout: s.duration("drain_timeout", INSTANT..=HOUR),
        pre_drain: s.duration("pre_drain", Duration::ZERO..=HOUR),
        http2: s.flag("http2"),
        proxies: proxies(&mut s),
    };
    s.contradiction(
        &["pre_drain", "drain_timeout"],
        listen.pre_drain >= listen.drain_timeout,
        "leave no time to drain",
        "make pre_drain shorter than drain_timeout",
    );
    s.contradiction(
        &["max_body_bytes", "max_in_flight_bytes"],
        listen.max_body_bytes > listen.max_in_flight_bytes,
        "never admit the largest body",
        "make max_in_flight_bytes at least as large as max_body_bytes",
    );
    s.finish();
    listen
}

fn proxies(s: &mut Section<'_, '_>) -> Option<Vec<IpNet>> {
    let required = s.choice("proxy_protocol", &[("off", false), ("required", true)], false);
    let networks = s.list("trusted_proxies", units::network, "write networks such as \"10.0.0.0/8\"");
    s.contradiction(
        &["proxy_protocol", "trusted_proxies"],
        required && networks.is_empty(),
        "let nobody in: a PROXY header is required, and nobody's is believed",
        "list the networks that the load balancer connects from, such as trusted_proxies = [\"10.0.0.0/8\"], or set \
         proxy_protocol to \"off\"",
    );
    s.doubt(
        &["trusted_proxies"],
        !required && !networks.is_empty(),
        "has no effect while listen.proxy_protocol is \"off\"",
    );
    s.doubt(
        &["trusted_proxies"],
        required && networks.iter().any(|network| network.prefix_len() == 0),
        "believes whoever can connect: any client can claim any address",
    );
    required.then_some(networks)
}

fn endpoint(name: String, mut s: Section<'_, '_>) -> Endpoint {
    if !s.has("path") {
        s.missing("path", "write the path of the POST requests, such as \"/events\"");
    }
    let remedy = "write a path that starts with / and has letters, digits and ._~@=+,- only, such as \"/events\"";
    let endpoint = Endpoint {
        name,
        path: s.parsed("path", event_path, remedy).unwrap_or_default(),
        feeds: feeds(&mut s),
        public_url: s.text("public_url"),
        timeout_ms: s.number("timeout_ms", 1..=600_000),
        retries: s.number("retries", 0..=100),
    };
    let reachable = endpoint.public_url.as_deref().is_none_or(|url| {
        url.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.contains(char::is_whitespace))
    });
    s.contradiction(&["public_url"], !reachable, "is no HTTPS address", "write it as https://HOST/PATH");
    s.finish();
    endpoint
}

fn tls(mut s: Section<'_, '_>) -> Tls {
    let certificate = needed_file(&mut s, "certificate", "name the PEM file of the server's certificate and its chain");
    let private_key = needed_file(&mut s, "private_key", "name the PEM file of the server's private key");
    let client_ca = s.files("client_ca");
    if client_ca.is_empty() {
        s.missing("client_ca", "name the PEM files of the CAs that sign ASAPP's client certificates");
    }
    let tls = Tls {
        certificate,
        private_key,
        client_ca,
        client_crl: s.files("client_crl"),
        min_version: s.choice(
            "min_version",
            &[("1.3", TlsVersion::Tls13), ("1.2", TlsVersion::Tls12)],
            TlsVersion::Tls13,
        ),
        reload_interval: s.duration("reload_interval", INSTANT..=DAY),
        allow_extra_key_usage: s.flag("allow_extra_key_usage"),
        clients: allowed_clients(&mut s),
    };
    s.needs("min_version", tls.min_version == TlsVersion::Tls12, Feature::Tls12);
    s.finish();
    tls
}

fn allowed_clients(s: &mut Section<'_, '_>) -> AllowedClients {
    let listed = s.entries("allowed_clients", allowed_client);
    let any = s.flag("allow_any_client");
    s.contradiction(
        &["allowed_clients", "allow_any_client"],
        any && !listed.is_empty(),
        "exclude each other",
        "take one of them out",
    );
    s.contradiction(
        &["allowed_clients", "allow_any_client"],
        !any && listed.is_empty(),
        "let nobody in",
        "list what identifies ASAPP's certificate, such as allowed_clients = [{ common_name = \"…\" }]; \
         allow_any_client = true lets in everyone whom client_ca vouches for",
    );
    s.doubt(&["allow_any_client"], any, "lets in every client that tls.client_ca vouches for");
    if any { AllowedClients::Any } else { AllowedClients::Listed(listed) }
}

fn allowed_client(s: &mut Section<'_, '_>) -> AllowedClient {
    let fingerprint = "write the SHA-256 as 64 hex digits, with or without colons";
    AllowedClient {
        subject: s.text("subject"),
        common_name: s.text("common_name"),
        organization: s.text("organization"),
        dns: s.text("dns"),
        uri: s.text("uri"),
        certificate_sha256: s.parsed("certificate_sha256", units::sha256, fingerprint),
        public_key_sha256: s.parsed("public_key_sha256", units::sha256, fingerprint),
    }
}

fn dedup(mut s: Section<'_, '_>) -> Dedup {
    let dedup = Dedup { capacity: s.number("capacity", 1..=100_000_000), window: s.duration("window", SECOND..=YEAR) };
    s.finish();
    dedup
}

fn journal(mut s: Section<'_, '_>) -> Journal {
    let engines = [("sqlite", Engine::Sqlite), ("memory", Engine::Memory), ("nats", Engine::Nats)];
    let engine = s.choice("engine", &engines, Engine::Sqlite);
    s.needs("engine", engine == Engine::Nats, Feature::Nats);
    let nats = nats::nats(s.section("nats"), engine == Engine::Nats);
    let journal = Journal {
        engine,
        nats,
        path: needed_file(&mut s, "path", "name the journal's folder"),
        max_bytes: s.size("max_bytes", 4 * KIB..=u64::MAX),
        retention: s.duration("retention", Duration::ZERO..=YEAR),
    };
    let memory = journal.engine == Engine::Memory;
    let allow_loss = s.flag("allow_loss");
    s.contradiction(
        &["engine", "allow_loss"],
        memory && !allow_loss,
        "the engine \"memory\" loses every event at the end of the process",
        "use \"sqlite\", or write allow_loss = true",
    );
    s.doubt(&["engine"], memory, "\"memory\" loses every event at the end of the process");
    s.finish();
    journal
}

pub(super) fn admin(mut s: Section<'_, '_>) -> Admin {
    let admin = Admin { address: address(&mut s), token_file: s.file("token_file") };
    s.contradiction(
        &["address", "token_file"],
        !admin.address.ip().is_loopback() && admin.token_file.is_none(),
        "would let anyone in from outside this host",
        "name a file with a token, or listen on 127.0.0.1",
    );
    s.finish();
    admin
}

fn log(mut s: Section<'_, '_>) -> Log {
    use tracing::Level;
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
    ];
    let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    let log =
        Log { format: s.choice("format", &formats, LogFormat::Json), level: s.choice("level", &levels, Level::INFO) };
    s.finish();
    log
}

/// What keys of different sections say about each other.
fn between_sections(reader: &mut Reader, config: &Config) {
    let mut paths: BTreeMap<&str, &str> = BTreeMap::new();
    for endpoint in &config.endpoints {
        let timeout = format!("endpoints.{}.timeout_ms", endpoint.name);
        reader.doubt(
            &["listen.answer_within", &timeout],
            config.listen.answer_within >= Duration::from_millis(endpoint.timeout_ms),
            "ASAPP gives up before the receiver does: make listen.answer_within shorter than ASAPP's time-out",
        );
        let path = format!("endpoints.{}.path", endpoint.name);
        if let Some(other) = paths.insert(&endpoint.path, &endpoint.name) {
            let other = format!("endpoints.{other}.path");
            reader.contradiction(&[&other, &path], true, "are the same path", "give each endpoint its own");
        }
    }
    let (max_bytes, journal) = match &config.journal.nats {
        Some(nats) => ("journal.nats.max_bytes", nats.max_bytes),
        None => ("journal.max_bytes", config.journal.max_bytes),
    };
    reader.doubt(
        &["listen.max_body_bytes", max_bytes],
        u64::try_from(config.listen.max_body_bytes).is_ok_and(|body| body > journal),
        format!("the largest event that is let in never fits the journal: make {max_bytes} larger"),
    );
    if let Some(nats) = &config.journal.nats {
        of_a_fleet(reader, config, nats);
    }
    let (events, admin) = (config.listen.address, config.admin.address);
    reader.contradiction(
        &["listen.address", "admin.address"],
        events.port() == admin.port()
            && events.port() != 0
            && (events.ip() == admin.ip() || events.ip().is_unspecified() || admin.ip().is_unspecified()),
        "are one port",
        "give the events and the operators a port each",
    );
}

/// What else goes for a journal that several receivers share.
fn of_a_fleet(reader: &mut Reader, config: &Config, nats: &Nats) {
    reader.contradiction(
        &["journal.nats.ack_timeout", "listen.answer_within"],
        nats.ack_timeout >= config.listen.answer_within,
        "leave no time to try an event a second time",
        "make ack_timeout shorter than answer_within, by half or more",
    );
    for sink in &config.sinks {
        let SinkKind::Http(http) = &sink.kind else { continue };
        let ordering = format!("sinks.{}.ordering", sink.name);
        reader.contradiction(
            &[&ordering, "journal.nats.partitions"],
            http.ordering == Ordering::Strict && nats.partitions > 1,
            "exclude each other: there is no order over partitions",
            "write ordering = \"entity\", or partitions = 1, which one receiver at a time delivers",
        );
    }
}

/// Reads each entry of a table whose names are the user's.
fn named<T>(mut s: Section<'_, '_>, read: impl Fn(String, Section<'_, '_>) -> T) -> Vec<T> {
    let mut entries = Vec::new();
    for name in s.names() {
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b)) || name.is_empty()
        {
            s.bad(name, "is no name for this", "use a-z, 0-9, _ and - only");
        }
        entries.push(read(name.to_owned(), s.named(name)));
    }
    entries
}

fn max_bytes(mut s: Section<'_, '_>, least: u64) -> u64 {
    let max_bytes = s.size("max_bytes", least..=u64::MAX);
    s.finish();
    max_bytes
}

fn address(s: &mut Section<'_, '_>) -> SocketAddr {
    s.parsed("address", |text| text.parse().ok(), "write an IP address and a port, such as \"127.0.0.1:8443\"")
        .unwrap_or(NO_ADDRESS)
}

pub(super) fn feeds(s: &mut Section<'_, '_>) -> Vec<String> {
    s.list(
        "feeds",
        units::feed,
        "write \"activity\", \"journey\" or \"queue\", or a full name such as com.asapp.event.queue",
    )
}

pub(super) fn needed_file(s: &mut Section<'_, '_>, key: &'static str, remedy: &str) -> PathBuf {
    if !s.has(key) {
        s.missing(key, remedy);
    }
    s.file(key).unwrap_or_default()
}

/// A path that the router takes literally.
fn event_path(text: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._~@=+,-".contains(&b);
    (text.starts_with('/') && text.bytes().all(plain)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ::config::{FileFormat, Format, Map, Value, ValueKind};

    use super::super::layers::adapt;
    use super::super::reader::Reader;

    /// `default.toml` with the examples of the keys without a default: every key that is documented.
    fn documented() -> Map<String, Value> {
        let text = include_str!("../../config/default.toml");
        let uncommented: Vec<&str> = text
            .lines()
            .map(|line| {
                line.strip_prefix('#').filter(|rest| !rest.is_empty() && !rest.starts_with(' ')).unwrap_or(line)
            })
            .collect();
        FileFormat::Toml.parse(None, &uncommented.join("\n")).unwrap()
    }

    fn keys(prefix: &str, value: &Value, all: &mut BTreeSet<String>) {
        match &value.kind {
            ValueKind::Table(table) => {
                table.iter().for_each(|(key, value)| keys(&format!("{prefix}.{key}"), value, all))
            }
            ValueKind::Array(items) if matches!(items.first(), Some(Value { kind: ValueKind::Table(_), .. })) => {
                all.insert(prefix.to_owned());
                items.iter().enumerate().for_each(|(i, item)| keys(&format!("{prefix}[{i}]"), item, all));
            }
            _ => {
                all.insert(prefix.to_owned());
            }
        }
    }

    #[test]
    fn the_default_file_has_every_key_and_no_other() {
        // Its sinks as a user's of each type, with the keys that all sinks share.
        let table = adapt(documented(), &documented());
        let mut documented = BTreeSet::new();
        table.iter().for_each(|(key, value)| keys(key, value, &mut documented));
        let mut reader = Reader::default();
        super::config(&mut reader, &table);
        let asked: BTreeSet<String> = reader.asked.into_keys().collect();
        assert_eq!(documented, asked);
        assert!(reader.problems.is_empty(), "the examples are good values: {:?}", reader.problems);
    }
}
