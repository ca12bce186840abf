//! Settings: raw layers to one checked [`Config`].
//!
//! Parsed, not validated: whoever holds a [`Config`] holds values of the right types and ranges. Every problem of every
//! layer is reported at once, each with its key, its source and the remedy ([`Problems`]).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// All settings, checked. SPEC section 4 has the keys; field names are the keys.
#[derive(Debug, Clone)]
pub struct Config {
    pub listen: Listen,
    /// At least one; paths are distinct.
    pub endpoints: Vec<Endpoint>,
    pub tls: Tls,
    pub dedup: Dedup,
    pub journal: Journal,
    /// Every configured sink, disabled ones too; names are distinct. With none configured, one `stdout` sink.
    pub sinks: Vec<Sink>,
    pub quarantine: Quarantine,
    pub dead_letters: DeadLetters,
    pub admin: Admin,
    pub log: Log,
}

/// `[listen]`: the event port and its limits.
#[derive(Debug, Clone)]
pub struct Listen {
    pub address: SocketAddr,
    pub max_connections: usize,
    pub max_in_flight: usize,
    pub max_in_flight_bytes: usize,
    pub max_body_bytes: usize,
    pub handshake_timeout: Duration,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    pub max_connection_age: Duration,
    pub answer_within: Duration,
    pub drain_timeout: Duration,
    pub pre_drain: Duration,
    pub http2: bool,
}

/// `[endpoints.NAME]`: one event path.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub name: String,
    pub path: String,
    /// Full feed names (`com.asapp.event.activity`); empty admits every feed.
    pub feeds: Vec<String>,
    pub public_url: Option<String>,
    pub timeout_ms: u64,
    pub retries: u32,
}

/// `[tls]`: the server's certificate and who may connect.
#[derive(Debug, Clone)]
pub struct Tls {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// At least one file; each holds one or more PEM certificates.
    pub client_ca: Vec<PathBuf>,
    pub client_crl: Vec<PathBuf>,
    pub min_version: TlsVersion,
    pub reload_interval: Duration,
    pub allow_extra_key_usage: bool,
    pub clients: AllowedClients,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// Only in builds with the feature `tls12`.
    Tls12,
    Tls13,
}

/// Which clients of the configured CA may connect.
#[derive(Debug, Clone)]
pub enum AllowedClients {
    /// One matching entry suffices. Never empty.
    Listed(Vec<AllowedClient>),
    /// `tls.allow_any_client = true`, written out.
    Any,
}

/// An entry of `tls.allowed_clients`: every given key must match; at least one is given.
#[derive(Debug, Clone, Default)]
pub struct AllowedClient {
    /// RFC 4514.
    pub subject: Option<String>,
    pub common_name: Option<String>,
    pub organization: Option<String>,
    pub dns: Option<String>,
    pub uri: Option<String>,
    pub certificate_sha256: Option<[u8; 32]>,
    pub public_key_sha256: Option<[u8; 32]>,
}

/// `[dedup]`: how many event ids are remembered, and how long.
#[derive(Debug, Clone)]
pub struct Dedup {
    pub capacity: usize,
    pub window: Duration,
}

/// `[journal]`.
#[derive(Debug, Clone)]
pub struct Journal {
    pub engine: Engine,
    /// The journal's folder (not a file).
    pub path: PathBuf,
    pub max_bytes: u64,
    pub retention: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    /// Needs `journal.allow_loss = true`.
    Memory,
}

/// `[sinks.NAME]`.
#[derive(Debug, Clone)]
pub struct Sink {
    pub name: String,
    pub kind: SinkKind,
    pub enabled: bool,
    pub required: bool,
    pub start: Start,
    pub filter: Filter,
    pub retry: Retry,
}

/// `type` of a sink with the keys of that type.
#[derive(Debug, Clone)]
pub enum SinkKind {
    Stdout,
}

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Latest,
    Earliest,
}

/// Which events a sink wants; every given list must let the event pass, an empty one lets all pass.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Full feed names.
    pub feeds: Vec<String>,
    /// Globs.
    pub event_types: Vec<String>,
    /// Globs.
    pub exclude_event_types: Vec<String>,
    pub company_ids: Vec<String>,
    pub company_segments: Vec<String>,
    pub company_subdivisions: Vec<String>,
}

/// `retry` of a sink.
#[derive(Debug, Clone)]
pub struct Retry {
    pub initial_backoff: Duration,
    pub max_backoff: Duration,
    /// `None`: without end (`0` in the settings).
    pub max_attempts: Option<u32>,
    /// From the first attempt on; `None`: without end.
    pub max_age: Option<Duration>,
}

/// `[quarantine]`: room for bodies that could not be accepted.
#[derive(Debug, Clone)]
pub struct Quarantine {
    pub max_bytes: u64,
}

/// `[dead_letters]`: room for events that a sink could not deliver.
#[derive(Debug, Clone)]
pub struct DeadLetters {
    pub max_bytes: u64,
}

/// `[admin]`: the operators' port.
#[derive(Debug, Clone)]
pub struct Admin {
    pub address: SocketAddr,
    pub token_file: Option<PathBuf>,
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct Log {
    pub format: LogFormat,
    pub level: tracing::Level,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}
