//! Settings: raw layers to one checked [`Config`].
//!
//! Parsed, not validated: whoever holds a [`Config`] holds values of the right types and ranges. Every problem of every
//! layer is reported at once, each with its key, its source and the remedy ([`Problems`]).

mod layers;
mod nats;
mod origin;
mod own;
mod reader;
mod sections;
mod sinks;
mod units;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use own::{Clash, OwnFiles};
pub(crate) use units::feed as feed_name;
pub(crate) use units::glob;

/// Environment variables of this name are settings.
pub const PREFIX: &str = "ASAPP_RECEIVER__";

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
    origin: origin::Origin,
    own: OwnFiles,
}

impl Config {
    /// Built-in defaults, then `files` in order, then the process's environment.
    ///
    /// # Errors
    /// Every [`Problem`] of every layer.
    pub fn load(files: &[PathBuf]) -> Result<(Self, Vec<Warning>), Problems> {
        let mut problems = Vec::new();
        let env = environment(&mut problems);
        Self::read(files, env, problems)
    }

    /// As [`load`](Self::load), with `env` in place of the process's environment.
    ///
    /// # Errors
    /// Every [`Problem`] of every layer.
    pub fn from_sources(
        files: &[PathBuf],
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<Warning>), Problems> {
        Self::read(files, env.collect(), Vec::new())
    }

    /// The same sources, read again.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn reread(&self) -> Result<(Self, Vec<Warning>), Problems> {
        Self::read(&self.origin.files, self.origin.env.clone(), Vec::new())
    }

    /// The settings files, in order.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.origin.files
    }

    /// The full paths of all keys whose values are others in `other`, sorted. A value counts as written: `"60s"` is
    /// another one than `"1m"`.
    #[must_use]
    pub fn changes(&self, other: &Self) -> Vec<String> {
        self.origin.changes(&other.origin)
    }

    /// The files that no sink may write to, and those that the sinks write.
    #[must_use]
    pub fn own_files(&self) -> &OwnFiles {
        &self.own
    }

    fn read(
        files: &[PathBuf],
        env: Vec<(String, String)>,
        mut problems: Vec<Problem>,
    ) -> Result<(Self, Vec<Warning>), Problems> {
        let merged = layers::merge(files, env.iter().cloned(), &mut problems);
        let unread = problems.iter().any(|problem| [layers::NO_FILE, layers::NO_TOML].contains(&problem.key.as_str()));
        let mut reader = reader::Reader::new(problems);
        let mut config = sections::config(&mut reader, &merged);
        config.own = OwnFiles::new(&reader, &config, files);
        reader.problems.extend(config.own.problems());
        config.origin = origin::Origin { files: files.to_vec(), env, table: merged };
        if unread {
            // What seems to be missing may well be in the file that could not be read.
            reader.problems.retain(|problem| !problem.source.starts_with(reader::NOWHERE));
        }
        if reader.problems.is_empty() { Ok((config, reader.warnings)) } else { Err(Problems(reader.problems)) }
    }
}

/// The settings in the process's environment.
fn environment(problems: &mut Vec<Problem>) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        match value.into_string() {
            Ok(value) => env.push((name.to_owned(), value)),
            Err(_) => problems.push(Problem {
                key: name.to_owned(),
                source: "environment".to_owned(),
                what: "is not UTF-8".to_owned(),
                remedy: "write it in UTF-8".to_owned(),
            }),
        }
    }
    env
}

/// Something in the settings that keeps the receiver from starting. Never quotes what may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The full path of the key, `listen.address` for example; several keys where they contradict each other.
    pub key: String,
    /// Where the value comes from: a file, an environment variable, the built-in defaults.
    pub source: String,
    /// Continues the sentence that begins with the key.
    pub what: String,
    pub remedy: String,
}

/// Something in the settings that is odd, but allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub key: String,
    pub source: String,
    /// Continues the sentence that begins with the key.
    pub what: String,
}

/// Everything that is wrong with the settings. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({}): {}", self.key, self.what, self.source, self.remedy)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.key, self.what, self.source)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the settings have {count} {}", if count == 1 { "problem" } else { "problems" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

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
    /// `proxy_protocol = "required"`, and from these networks only (`trusted_proxies`, never empty); `None`: `"off"`.
    pub proxies: Option<Vec<IpNet>>,
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
    /// Read only for [`Engine::Nats`].
    pub nats: Option<Nats>,
}

impl Config {
    /// What an embedded journal's folder may come to hold: events, dead letters and quarantined bodies.
    #[must_use]
    pub fn most_kept(&self) -> u64 {
        let kept = [self.journal.max_bytes, self.dead_letters.max_bytes, self.quarantine.max_bytes];
        kept.into_iter().fold(0, u64::saturating_add)
    }

    /// How large the disk of an embedded journal should be (docs/deploy.md): twice what may be kept, as a damaged journal is
    /// set aside and carried over into a new one beside it, and the rest for ids, the write-ahead log and the ballast.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        const REST: u64 = 1 << 30;
        self.most_kept().saturating_mul(2).saturating_add(REST)
    }
}

impl Journal {
    /// Bytes of live events that the engine may hold.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.nats.as_ref().map_or(self.max_bytes, |nats| nats.max_bytes)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    /// Needs `journal.allow_loss = true`.
    Memory,
    /// A NATS JetStream cluster, which all receivers of a fleet share.
    Nats,
}

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

/// `[sinks.NAME]`.
#[derive(Debug, Clone)]
pub struct Sink {
    pub name: String,
    pub kind: SinkKind,
    pub enabled: bool,
    pub required: bool,
    pub start: Start,
    pub format: Format,
    /// JSON pointers (RFC 6901) of members that are cut out.
    pub redact: Vec<String>,
    pub filter: Filter,
    pub retry: Retry,
}

/// `type` of a sink with the keys of that type.
#[derive(Debug, Clone)]
pub enum SinkKind {
    Stdout,
    File(FileSink),
    Http(Box<HttpSink>),
}

/// What a sink gets to see of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// The bytes as received.
    #[default]
    Raw,
    /// `{"received_at","peer","endpoint","sequence","event":<raw>}`.
    Envelope,
    /// CloudEvents 1.0.
    CloudEvents,
}

/// A sink of `type = "file"`.
#[derive(Debug, Clone)]
pub struct FileSink {
    pub path: PathBuf,
    /// `None`: never by size (`0` in the settings).
    pub rotate_bytes: Option<u64>,
    /// `None`: never by time (`"none"` in the settings).
    pub rotate_every: Option<Duration>,
    /// Of rotated files.
    pub compress: Compress,
    /// Rotated files beyond these are deleted, oldest first; `None`: all are kept (`0` in the settings).
    pub keep_files: Option<usize>,
    pub sync: Sync,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compress {
    None,
    Gzip,
    /// Files only.
    Zstd,
}

/// When what was written to a file is synced to its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// Before its events count as delivered.
    Batch,
    /// Once a second.
    Interval,
    Never,
}

/// A sink of `type = "http"`.
#[derive(Debug, Clone)]
pub struct HttpSink {
    /// `http` or `https`, with a host, without a user. Its query may hold a secret: never printed whole.
    pub url: hyper::Uri,
    pub method: hyper::Method,
    /// None that the receiver writes itself; values are marked sensitive.
    pub headers: hyper::HeaderMap,
    pub bearer_token_file: Option<PathBuf>,
    /// For a whole exchange, from connecting to the end of the answer.
    pub timeout: Duration,
    /// Requests under way at a time.
    pub concurrency: usize,
    /// So old at most a connection is used for another request.
    pub pool_max_age: Duration,
    pub batch: Batch,
    pub ordering: Ordering,
    /// How many sequences a lane runs past its oldest unsettled event.
    pub max_ahead: u64,
    pub tls: HttpTls,
    pub signing_secret_file: Option<PathBuf>,
    /// `None` or `Gzip`.
    pub compress: Compress,
}

impl HttpSink {
    /// The files that hold its secrets, each with its key below the sink's own.
    pub fn secret_files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let files = [
            ("bearer_token_file", &self.bearer_token_file),
            ("signing_secret_file", &self.signing_secret_file),
            ("tls.private_key", &self.tls.private_key),
        ];
        files.into_iter().filter_map(|(key, file)| Some((key, file.as_deref()?)))
    }
}

/// How events are put together into one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// With 1, a request holds the event itself; with more, an array of events.
    pub max_events: usize,
    /// Of the request's body, uncompressed; a single event may be larger.
    pub max_bytes: usize,
    /// How long the first event of a batch waits for more.
    pub max_wait: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// In order of arrival for each agent, issue or queue.
    Entity,
    /// In order of arrival, one request at a time.
    Strict,
    /// None at all.
    None,
}

/// How an HTTP sink's target is trusted, and what is shown to it.
#[derive(Debug, Clone, Default)]
pub struct HttpTls {
    /// PEM files; empty: the system's CAs.
    pub ca: Vec<PathBuf>,
    /// A client certificate with its chain, PEM; together with `private_key`.
    pub certificate: Option<PathBuf>,
    pub private_key: Option<PathBuf>,
}

/// Where a new sink begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Latest,
    Earliest,
}

/// Which events a sink wants; every given list must let the event pass, an empty one lets all pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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

impl Admin {
    /// For a client of the admin port: this section alone, of the same layers as [`Config::load`]. Whatever else is wrong
    /// or missing in the settings is no matter of the client's, nor whether a port like this may be opened.
    ///
    /// # Errors
    /// Files that cannot be read, and every [`Problem`] of this section.
    pub fn load(files: &[PathBuf]) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let env = environment(&mut problems);
        Self::read(files, env, problems)
    }

    fn read(files: &[PathBuf], env: Vec<(String, String)>, mut problems: Vec<Problem>) -> Result<Self, Problems> {
        let merged = layers::merge(files, env.into_iter(), &mut problems);
        let mut reader = reader::Reader::new(problems);
        let admin = sections::admin(reader.root(&merged).section("admin"));
        let (files, variables) = ([layers::NO_FILE, layers::NO_TOML], format!("{PREFIX}ADMIN__"));
        let concerns = |problem: &Problem| {
            let key = &*problem.key;
            let is_own = key == "admin" || (key.starts_with("admin.") && !key.contains(", "));
            is_own || files.contains(&key) || key.to_ascii_uppercase().starts_with(&variables)
        };
        let problems: Vec<Problem> = reader.problems.into_iter().filter(concerns).collect();
        if problems.is_empty() { Ok(admin) } else { Err(Problems(problems)) }
    }
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
