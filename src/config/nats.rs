//! `[journal.nats]`.

use std::path::PathBuf;
use std::time::Duration;

use hyper::http::uri::Authority;

use crate::settings::{INSTANT, KIB, MINUTE, SECOND, Section, YEAR, is_this_host};

const LONGEST_NAME: usize = 100;

/// `[journal.nats]`.
#[derive(Debug, Clone)]
pub struct Nats {
    /// `nats://` or `tls://`, host and port; one at least.
    pub servers: Vec<String>,
    /// The name of the stream of events, and the beginning of the others' names and of all subjects.
    pub stream: String,
    /// Copies of everything.
    pub replicas: usize,
    pub duplicate_window: Duration,
    /// Entities are spread over so many; each is delivered by one receiver at a time.
    pub partitions: u16,
    /// Of the stream of events.
    pub max_bytes: u64,
    pub credentials_file: Option<PathBuf>,
    pub nkey_file: Option<PathBuf>,
    /// Who signs the servers' certificates; the system's authorities if none is named.
    pub ca: Option<PathBuf>,
    pub certificate: Option<PathBuf>,
    pub private_key: Option<PathBuf>,
    /// The monitoring port of one server.
    pub monitor_url: Option<String>,
    pub ack_timeout: Duration,
}

pub(super) fn nats(mut s: Section<'_, '_>, chosen: bool) -> Option<Nats> {
    if !chosen {
        s.ignore(&["servers", "stream", "replicas", "duplicate_window", "partitions", "max_bytes", "credentials_file"]);
        s.ignore(&["nkey_file", "ca", "certificate", "private_key", "monitor_url", "ack_timeout"]);
        s.finish();
        return None;
    }
    let nats = Nats {
        servers: servers(&mut s),
        stream: stream(&mut s),
        replicas: replicas(&mut s),
        duplicate_window: s.duration("duplicate_window", SECOND..=YEAR),
        partitions: s.number("partitions", 1..=256),
        max_bytes: s.size("max_bytes", 4 * KIB..=u64::MAX),
        credentials_file: s.file("credentials_file"),
        nkey_file: s.file("nkey_file"),
        ca: s.file("ca"),
        certificate: s.file("certificate"),
        private_key: s.file("private_key"),
        monitor_url: s.text("monitor_url"),
        ack_timeout: s.duration("ack_timeout", 10 * INSTANT..=MINUTE),
    };
    s.contradiction(
        &["credentials_file", "nkey_file"],
        nats.credentials_file.is_some() && nats.nkey_file.is_some(),
        "exclude each other",
        "take one of them out",
    );
    s.contradiction(
        &["certificate", "private_key"],
        nats.certificate.is_some() != nats.private_key.is_some(),
        "go together only",
        "name both files, or neither",
    );
    let asked = nats.monitor_url.as_deref().is_none_or(|url| {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        rest.is_some_and(|rest| rest.trim_end_matches('/').parse::<Authority>().is_ok())
    });
    let remedy = "write http:// or https://, a host and a port, such as \"http://nats.example.com:8222\"";
    s.contradiction(&["monitor_url"], !asked, "is no address of a server's monitoring port", remedy);
    s.finish();
    Some(nats)
}

fn servers(s: &mut Section<'_, '_>) -> Vec<String> {
    let example = "\"tls://nats.example.com:4222\"";
    let servers = s.list("servers", server, &format!("write tls:// or nats://, a host and a port, such as {example}"));
    if servers.is_empty() {
        s.missing("servers", format!("list the cluster's servers, such as {example}"));
    }
    let has_login = servers.iter().any(|server| server.contains('@'));
    s.contradiction(
        &["servers"],
        has_login,
        "holds a user's name or secret",
        "take out what stands before the @, and name a credentials_file, an nkey_file or a certificate",
    );
    let is_plain = |server: &String| {
        let authority: Option<Authority> = server.strip_prefix("nats://").and_then(|rest| rest.parse().ok());
        authority.is_some_and(|authority| !is_this_host(authority.host()))
    };
    s.doubt(
        &["servers"],
        servers.iter().any(is_plain),
        "has plaintext addresses (nats://): without TLS, events could be read and changed on the way; use tls://",
    );
    servers
}

/// As it is written. What may hold a secret is taken, so that no report quotes it.
fn server(text: &str) -> Option<String> {
    let rest = text.strip_prefix("tls://").or_else(|| text.strip_prefix("nats://"));
    if rest.is_some_and(|rest| rest.contains('@')) {
        return Some(text.to_owned());
    }
    let authority: Authority = rest?.parse().ok()?;
    let is_whole = !authority.host().is_empty() && authority.port_u16().is_some_and(|port| port > 0);
    is_whole.then(|| text.to_owned())
}

fn stream(s: &mut Section<'_, '_>) -> String {
    let is_name = |name: &str| {
        name.len() <= LONGEST_NAME && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
    };
    if !s.has("stream") {
        s.missing("stream", "write a name, such as \"ASAPP_EVENTS\"");
    }
    let remedy = "use A-Z, a-z, 0-9, _ and -, at most 100 of them";
    s.parsed("stream", |name| is_name(name).then(|| name.to_owned()), remedy).unwrap_or_default()
}

fn replicas(s: &mut Section<'_, '_>) -> usize {
    let replicas: usize = s.number("replicas", 1..=5);
    s.contradiction(
        &["replicas"],
        replicas.is_multiple_of(2),
        format!("is {replicas}, which bears the loss of no more servers than {}", replicas - 1),
        "write 3 or 5; or 1, for a single server",
    );
    replicas
}
