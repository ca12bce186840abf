//! Who may use the operators' port: all but the two probes pass here.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::config;
use crate::problem::{Kind, Problem};
use crate::server::Seat;
use crate::whole;

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// A longer one would leave too little of a request's head for the rest.
const LONGEST_TOKEN: usize = 4096;

/// What a caller has to show.
pub enum Gate {
    /// Reachable from this machine only. A browser on it may be led here by a foreign page, under the name of that
    /// page's host, so the request has to name this machine.
    Loopback { token: Option<Box<[u8]>> },
    /// Reachable from elsewhere.
    Open { token: Box<[u8]> },
}

/// Why the port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("admin.token_file {path}: cannot be read; give the receiver's user a readable file")]
    Unreadable { path: String, source: std::io::Error },
    #[error(
        "admin.token_file {path} holds a token of {found} characters; write one of {SHORTEST_TOKEN} to {LONGEST_TOKEN} \
         random characters into it, such as `openssl rand -hex 32` makes"
    )]
    Length { path: String, found: usize },
    #[error(
        "admin.token_file {path} {what}; write one line of random letters and digits into it, such as \
         `openssl rand -hex 32` makes"
    )]
    Unusable { path: String, what: String },
    #[error("admin.address {address} is not loopback; set admin.token_file, or use 127.0.0.1")]
    NoToken { address: std::net::SocketAddr },
}

impl Gate {
    /// Reads the token. White space around it is no part of it, nor is a byte order mark.
    ///
    /// # Errors
    /// [`GateError`] when the token is missing where it is needed, or cannot be used.
    pub fn read(settings: &config::Admin) -> Result<Self, GateError> {
        let token = match &settings.token_file {
            None => None,
            Some(file) => {
                let path = file.display().to_string();
                let text = whole::read(file, whole::SECRET)
                    .map_err(|source| GateError::Unreadable { path: path.clone(), source })?;
                let token = whole::word(&text).map_err(|what| GateError::Unusable { path: path.clone(), what })?;
                if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&token.len()) {
                    return Err(GateError::Length { path, found: token.len() });
                }
                Some(token.as_bytes().into())
            }
        };
        match token {
            token if settings.address.ip().is_loopback() => Ok(Self::Loopback { token }),
            Some(token) => Ok(Self::Open { token }),
            None => Err(GateError::NoToken { address: settings.address }),
        }
    }

    fn judge(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let host = host(uri, headers);
        if matches!(self, Self::Loopback { .. }) && !host.is_some_and(is_this_machine) {
            return Err(Problem::new(Kind::Forbidden, "the Host header has to be localhost or a loopback address"));
        }
        if is_cross_site(host, headers) {
            let why = "a page of another site may ask for nothing here: to look, enter the address in the browser";
            return Err(Problem::new(Kind::Forbidden, why));
        }
        match self {
            Self::Loopback { token: None } => Ok(()),
            Self::Loopback { token: Some(token) } | Self::Open { token } => match bearer(headers) {
                Some(shown) if is_same(shown, token) => Ok(()),
                _ => Err(Problem::new(Kind::Unauthorized, "send the token of admin.token_file: Authorization: Bearer")),
            },
        }
    }
}

pub(super) async fn guard(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let judged = gate.judge(request.uri(), request.headers());
    // A refused client keeps no connection.
    let mut response = match judged.and_then(|()| seated(&request)) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.closing().into_response(),
    };
    // Events may be in it: for nobody to keep, nor to take for a page.
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // For browsers that do not say where a request comes from.
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

/// A seat for the request, so that it is answered however many others knock.
fn seated(request: &Request) -> Result<(), Problem> {
    match request.extensions().get::<Seat>() {
        Some(seat) if !seat.take() => {
            Err(Problem::new(Kind::TooMany, "too many calls of the admin port at a time: try again"))
        }
        _ => Ok(()),
    }
}

fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    uri.authority().map(|authority| authority.as_str()).or_else(|| headers.get(header::HOST)?.to_str().ok())
}

/// Whether `host`, with or without a port, can only mean this machine.
fn is_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<axum::http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Browsers say where a request comes from, be it a script's, an image's or a followed link's; other programs say nothing.
fn is_cross_site(host: Option<&str>, headers: &HeaderMap) -> bool {
    let foreign_origin = headers.get(header::ORIGIN).is_some_and(|origin| {
        let own = origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"));
        own.is_none() || own != host
    });
    let foreign_site = headers
        .get("sec-fetch-site")
        .is_some_and(|site| site.as_bytes() != b"same-origin" && site.as_bytes() != b"none");
    foreign_origin || foreign_site
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim().as_bytes())
}

/// Compares in a time that depends on the lengths only.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differences = a.iter().zip(b).fold(0, |seen, (a, b)| std::hint::black_box(seen | (a ^ b)));
    a.len() == b.len() && differences == 0
}

// The token is never printed.
impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loopback { token: None } => "Gate::Loopback",
            Self::Loopback { token: Some(_) } => "Gate::Loopback with a token",
            Self::Open { .. } => "Gate::Open",
        })
    }
}
