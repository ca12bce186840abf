//! `[sinks.NAME]` with `type = "http"`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::uri::Scheme;
use hyper::{HeaderMap, Method, Uri};

use crate::settings::{DAY, INSTANT, KIB, MIB, MINUTE, Section, is_this_host};
use crate::shape::Format;
use crate::sinks::compress::Compress;
use crate::sinks::plan::Ordering;

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

/// A sink of `type = "http"`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `http` or `https`, with a host, without a user. Its query may hold a secret: never printed whole.
    pub url: Uri,
    pub method: Method,
    /// None that the receiver writes itself; values are marked sensitive.
    pub headers: HeaderMap,
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
    pub tls: Tls,
    pub signing_secret_file: Option<PathBuf>,
    /// `None` or `Gzip`.
    pub compress: Compress,
}

impl Settings {
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

/// How an HTTP sink's target is trusted, and what is shown to it.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// PEM files; empty: the system's CAs.
    pub ca: Vec<PathBuf>,
    /// A client certificate with its chain, PEM; together with `private_key`.
    pub certificate: Option<PathBuf>,
    pub private_key: Option<PathBuf>,
}

pub(super) fn read(s: &mut Section<'_, '_>, format: Format) -> Settings {
    let methods = [("POST", Method::POST), ("PUT", Method::PUT), ("PATCH", Method::PATCH)];
    let orderings = [("entity", Ordering::Entity), ("strict", Ordering::Strict), ("none", Ordering::None)];
    let compressions = [("none", Compress::None), ("gzip", Compress::Gzip)];
    let url = url(s);
    let bearer_token_file = s.file("bearer_token_file");
    let sink = Settings {
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

fn tls(mut s: Section<'_, '_>) -> Tls {
    let tls = Tls { ca: s.files("ca"), certificate: s.file("certificate"), private_key: s.file("private_key") };
    s.contradiction(
        &["certificate", "private_key"],
        tls.certificate.is_some() != tls.private_key.is_some(),
        "are nothing without each other",
        "name both files, or neither",
    );
    s.finish();
    tls
}
