//! `[sinks.NAME]`: what all sinks share, and the keys of each type.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::{HeaderMap, Method, Uri};

use super::filter::{Filter, filter};
use crate::settings::{DAY, HOUR, INSTANT, KIB, MIB, MINUTE, Section, Use, YEAR, is_this_host};

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

/// The keys of the types that have their own.
const KEYS: [(&str, &[&str]); 2] = [
    ("file", &["path", "rotate_bytes", "rotate_every", "compress", "keep_files", "sync"]),
    (
        "http",
        &[
            "url",
            "method",
            "headers",
            "bearer_token_file",
            "timeout",
            "concurrency",
            "pool_max_age",
            "batch",
            "ordering",
            "max_ahead",
            "tls",
            "signing_secret_file",
            "compress",
        ],
    ),
];

/// Headers that are the connection's, or that the receiver writes itself.
const NOT_THE_USERS: [&str; 15] = [
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "traceparent",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const NOT_THE_USERS_EITHER: [&str; 3] = ["asapp-receiver-", "ce-", "webhook-"];

pub(super) fn sink(name: String, mut s: Section<'_, '_>) -> Sink {
    let types = [("stdout", Some("stdout")), ("file", Some("file")), ("http", Some("http"))];
    let kind = s.choice("type", &types, None);
    let formats = [("raw", Format::Raw), ("envelope", Format::Envelope), ("cloudevents", Format::CloudEvents)];
    let starts = [("latest", Start::Latest), ("earliest", Start::Earliest)];
    let format = s.choice("format", &formats, Format::Raw);
    let sink = Sink {
        name,
        enabled: s.flag("enabled"),
        required: s.flag("required"),
        start: s.choice("start", &starts, Start::Latest),
        format,
        redact: s.list(
            "redact",
            pointer,
            "write JSON pointers (RFC 6901) such as \"/data/rep_name\"; in a name, ~ is written ~0 and / is written ~1",
        ),
        filter: filter(s.section("filter")),
        retry: retry(s.section("retry")),
        kind: match kind {
            Some("file") => SinkKind::File(file_sink(&mut s)),
            Some("http") => SinkKind::Http(Box::new(http_sink(&mut s, format))),
            _ => SinkKind::Stdout,
        },
    };
    // Without its type, nobody knows the keys of a sink.
    if let Some(kind) = kind {
        for (other, keys) in KEYS.iter().filter(|(other, _)| *other != kind) {
            s.misplaced(keys, &format!("is a key of sinks of type \"{other}\", not \"{kind}\""));
        }
        s.finish();
    }
    sink
}

fn file_sink(s: &mut Section<'_, '_>) -> FileSink {
    let compressions = [("none", Compress::None), ("gzip", Compress::Gzip), ("zstd", Compress::Zstd)];
    let syncs = [("batch", Sync::Batch), ("interval", Sync::Interval), ("never", Sync::Never)];
    let sink = FileSink {
        path: s.needed_file("path", Some(Use::Writes), "name the file that the events are written to"),
        rotate_bytes: Some(s.size("rotate_bytes", 0..=u64::MAX)).filter(|bytes| *bytes > 0),
        rotate_every: s.duration_or_none("rotate_every", INSTANT..=YEAR),
        compress: s.choice("compress", &compressions, Compress::None),
        keep_files: Some(s.number("keep_files", 0..=1_000_000)).filter(|files| *files > 0),
        sync: s.choice("sync", &syncs, Sync::Batch),
    };
    let whole = sink.rotate_bytes.is_none() && sink.rotate_every.is_none();
    let without = "has no effect without rotate_bytes or rotate_every";
    s.doubt(&["compress"], whole && sink.compress != Compress::None, without);
    s.doubt(&["keep_files"], whole && sink.keep_files.is_some(), without);
    sink
}

fn http_sink(s: &mut Section<'_, '_>, format: Format) -> HttpSink {
    let methods = [("POST", Method::POST), ("PUT", Method::PUT), ("PATCH", Method::PATCH)];
    let orderings = [("entity", Ordering::Entity), ("strict", Ordering::Strict), ("none", Ordering::None)];
    let compressions = [("none", Compress::None), ("gzip", Compress::Gzip)];
    let url = url(s);
    let bearer_token_file = s.file("bearer_token_file");
    let sink = HttpSink {
        method: s.choice("method", &methods, Method::POST),
        headers: headers(s.section("headers"), bearer_token_file.is_some(), format),
        timeout: s.duration("timeout", INSTANT..=10 * MINUTE),
        concurrency: s.number("concurrency", 1..=1024),
        pool_max_age: s.duration("pool_max_age", INSTANT..=DAY),
        batch: batch(s.section("batch")),
        ordering: s.choice("ordering", &orderings, Ordering::Entity),
        max_ahead: s.number("max_ahead", 1..=1_000_000),
        tls: tls(s.section("tls")),
        signing_secret_file: s.file("signing_secret_file"),
        compress: s.choice("compress", &compressions, Compress::None),
        url,
        bearer_token_file,
    };
    let plain = sink.url.scheme() == Some(&Scheme::HTTP);
    let far = plain && !is_this_host(sink.url.host().unwrap_or_default());
    s.doubt(&["url"], far, "sends events over the network as plain text: use https");
    for (key, given) in [("tls.ca", !sink.tls.ca.is_empty()), ("tls.certificate", sink.tls.certificate.is_some())] {
        s.doubt(&[key, "url"], plain && given, "are of no use to each other: TLS needs https");
    }
    sink
}

/// Never quoted in a report: an address can hold a secret.
fn url(s: &mut Section<'_, '_>) -> Uri {
    const REMEDY: &str = "write where the events go, as https://HOST/PATH";
    if !s.has("url") {
        s.missing("url", REMEDY);
    }
    let Some(text) = s.text("url") else { return Uri::default() };
    let wrong = match text.parse::<Uri>() {
        Ok(url) => match flaw(&url, &text) {
            None => return url,
            Some(wrong) => wrong,
        },
        Err(_) => ("is no URL", REMEDY),
    };
    s.bad("url", wrong.0, wrong.1);
    Uri::default()
}

/// What keeps an address from being a target, and what to do about it.
fn flaw(url: &Uri, text: &str) -> Option<(&'static str, &'static str)> {
    let host = url.host().unwrap_or_default();
    let port_is_good = url.authority().is_none_or(|authority| {
        let port = authority.as_str().rsplit_once(host).map_or("", |(_, port)| port);
        port.is_empty() || authority.port_u16().is_some_and(|port| port > 0)
    });
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        Some(("is no address of HTTP", "write it as https://HOST/PATH"))
    } else if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        Some(("holds a user or a password", "use headers or bearer_token_file for them, best from a file"))
    } else if host.is_empty() || !port_is_good {
        Some(("has no host, or a port that is none", "write it as https://HOST/PATH or https://HOST:PORT/PATH"))
    } else if text.contains('#') {
        Some(("has a fragment, which is never sent", "take out # and what follows"))
    } else {
        None
    }
}

/// Values may be secrets: they are never quoted, and are marked for those that show headers.
fn headers(mut s: Section<'_, '_>, has_token: bool, format: Format) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let names = s.names();
    for &key in &names {
        let Some(value) = s.text(key) else { continue };
        let Ok(name) = key.parse::<HeaderName>() else {
            s.bad(key, "is no name of a header", "use letters, digits and - only");
            continue;
        };
        let lower = name.as_str();
        if NOT_THE_USERS.contains(&lower) || NOT_THE_USERS_EITHER.iter().any(|prefix| lower.starts_with(prefix)) {
            s.bad(key, "is a header that the receiver writes itself", "leave it out");
            continue;
        }
        if name == AUTHORIZATION && has_token {
            s.bad(key, "says what bearer_token_file says too", "take one of them out");
            continue;
        }
        if name == CONTENT_TYPE && format == Format::CloudEvents {
            s.bad(key, "is CloudEvents' own to say", "leave it out, or choose another format");
            continue;
        }
        let Ok(mut value) = HeaderValue::from_str(&value) else {
            s.bad(key, "has characters that no header can hold", "use visible ASCII characters and spaces only");
            continue;
        };
        value.set_sensitive(true);
        if headers.insert(name, value).is_some() {
            let other = names.iter().find(|other| other.eq_ignore_ascii_case(key)).copied().unwrap_or_default();
            s.contradiction(&[other, key], true, "are the same header", "keep one of them");
        }
    }
    headers
}

fn batch(mut s: Section<'_, '_>) -> Batch {
    let batch = Batch {
        max_events: s.number("max_events", 1..=10_000),
        max_bytes: s.memory("max_bytes", KIB..=256 * MIB),
        max_wait: s.duration("max_wait", Duration::ZERO..=10 * MINUTE),
    };
    let alone = batch.max_events == 1 && !batch.max_wait.is_zero();
    s.doubt(&["max_wait", "max_events"], alone, "let each event wait for others that never join it");
    s.finish();
    batch
}

fn tls(mut s: Section<'_, '_>) -> HttpTls {
    let tls = HttpTls { ca: s.files("ca"), certificate: s.file("certificate"), private_key: s.file("private_key") };
    s.contradiction(
        &["certificate", "private_key"],
        tls.certificate.is_some() != tls.private_key.is_some(),
        "are nothing without each other",
        "name both files, or neither",
    );
    s.finish();
    tls
}

fn retry(mut s: Section<'_, '_>) -> Retry {
    let retry = Retry {
        initial_backoff: s.duration("initial_backoff", Duration::from_millis(1)..=HOUR),
        max_backoff: s.duration("max_backoff", Duration::from_millis(1)..=DAY),
        max_attempts: Some(s.number("max_attempts", 0..=1_000_000)).filter(|attempts| *attempts > 0),
        max_age: s.duration_or_none("max_age", INSTANT..=YEAR),
    };
    s.contradiction(
        &["initial_backoff", "max_backoff"],
        retry.initial_backoff > retry.max_backoff,
        "the first back-off is longer than the longest",
        "make max_backoff at least as long as initial_backoff",
    );
    s.finish();
    retry
}

/// A pointer to something in an event, not to the event itself.
fn pointer(text: &str) -> Option<String> {
    let escapes_are_known = text.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    (text.starts_with('/') && escapes_are_known).then(|| text.to_owned())
}
