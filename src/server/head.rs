//! What hyper lets pass of a request's head and RFC 9110, 9112 and 9113 do not: which host it is for, and how its body
//! comes. About a tenth of a microsecond a request.

use std::net::Ipv6Addr;

use hyper::header::{HOST, HeaderValue, TRANSFER_ENCODING};
use hyper::{Request, StatusCode, Version};

/// hyper's own limit (100) stays, its parser keeps that many on the stack; the rest is counted after it.
const MAX_FIELDS: usize = 64;

/// The status with which a request ends whose head is not taken.
pub(super) fn refusal<B>(request: &Request<B>) -> Option<StatusCode> {
    if request.headers().len() > MAX_FIELDS {
        return Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    if !is_for_one_host(request) {
        return Some(StatusCode::BAD_REQUEST);
    }
    // Of HTTP/1.1 only: h2 takes none at all. One that does not end in `chunked` never gets here.
    let mut codings = request
        .headers()
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|coding| !coding.is_empty());
    match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(only), None) if only.eq_ignore_ascii_case(b"chunked") => None,
        _ => Some(StatusCode::NOT_IMPLEMENTED),
    }
}

/// RFC 9112 3.2: one `Host`, in HTTP/1.0 at most one, and it has to be a host. RFC 9113 8.3.1: in HTTP/2 `:authority` may
/// stand for it, and has to agree with it. Which host it is does not matter: the certificate has said who this is.
fn is_for_one_host<B>(request: &Request<B>) -> bool {
    let mut fields = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
    let (host, another) = (fields.next(), fields.next());
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let named = match (request.version(), authority, host) {
        (Version::HTTP_2, Some(authority), Some(host)) => authority.eq_ignore_ascii_case(host),
        (Version::HTTP_2, None, None) | (Version::HTTP_11, _, None) => false,
        _ => true,
    };
    named && another.is_none() && host.is_none_or(is_host) && authority.is_none_or(is_host)
}

/// `uri-host [ ":" port ]` (RFC 3986 3.2.2), which names something: an `https` URI without a host is none.
fn is_host(value: &[u8]) -> bool {
    let (host, rest) = match value {
        [b'[', literal @ ..] => {
            let Some(end) = literal.iter().position(|&byte| byte == b']') else { return false };
            let (address, rest) = literal.split_at(end);
            let address = std::str::from_utf8(address).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
            (address, rest.get(1..).unwrap_or_default())
        }
        _ => {
            let end = value.iter().position(|&byte| byte == b':').unwrap_or(value.len());
            let (name, rest) = value.split_at(end);
            (is_name(name), rest)
        }
    };
    let port = match rest {
        [] => true,
        [b':', port @ ..] => {
            let digits = port.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(port).unwrap_or_default();
            digits && (port.is_empty() || text.parse::<u16>().is_ok())
        }
        _ => false,
    };
    host && port
}

/// A registered name or an IPv4 address.
fn is_name(name: &[u8]) -> bool {
    let mut rest = name;
    loop {
        rest = match rest {
            [] => return !name.is_empty(),
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte) => rest,
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::{is_host, refusal};
    use hyper::{Request, Version};

    #[test]
    fn a_host_is_what_rfc_3986_says() {
        for host in [
            "localhost",
            "localhost:8443",
            "localhost:",
            "a",
            "events.example.com.",
            "203.0.113.7:1",
            "[::1]",
            "[2001:db8::1]:8443",
            "a_b~c",
            "x%2Dy",
            "xn--bcher-kva.example",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for other in [
            "",
            ":8443",
            "a b",
            "a,b c",
            "a:b",
            "a:1:2",
            "a:65536",
            "a:+1",
            "::1",
            "[::1",
            "[::1]x",
            "[]",
            "[a]",
            "[fe80::1%25eth0]",
            "user@host",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "x%2",
            "x%zz",
            "b\u{fc}cher",
            "\"a\"",
            "<a>",
            "https://a",
        ] {
            assert!(!is_host(other.as_bytes()), "{other}");
        }
    }

    fn status(version: Version, uri: &str, fields: &[(&str, &str)]) -> u16 {
        let mut request = Request::post(uri).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        refusal(&request.body(()).unwrap()).map_or(200, |status| status.as_u16())
    }

    #[test]
    fn a_request_is_for_one_host() {
        let (old, usual, two) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        let host = ("host", "localhost");
        for (version, uri, fields, wanted) in [
            (usual, "/events", &[host][..], 200),
            (usual, "/events", &[], 400),
            (usual, "/events", &[host, host], 400),
            (usual, "/events", &[("host", "")], 400),
            (usual, "/events", &[("host", "local host")], 400),
            (usual, "https://localhost/events", &[], 400),
            // What the target says counts, whatever the field does.
            (usual, "https://localhost/events", &[("host", "other")], 200),
            (old, "/events", &[], 200),
            (old, "/events", &[host], 200),
            (old, "/events", &[host, host], 400),
            (old, "/events", &[("host", "a b")], 400),
            (two, "/events", &[], 400),
            (two, "/events", &[host], 200),
            (two, "https://localhost/events", &[], 200),
            (two, "https://localhost/events", &[("host", "LOCALHOST")], 200),
            (two, "https://localhost/events", &[("host", "other")], 400),
            (two, "https://localhost/events", &[host, host], 400),
            (two, "https://me@localhost/events", &[], 400),
        ] {
            assert_eq!(status(version, uri, fields), wanted, "{version:?} {uri} {fields:?}");
        }
    }

    #[test]
    fn chunked_is_the_only_transfer_coding() {
        for (coding, wanted) in [
            ("chunked", 200),
            ("Chunked", 200),
            (", chunked ,", 200),
            ("gzip, chunked", 501),
            ("identity, chunked", 501),
            ("chunked, chunked", 501),
            ("gzip", 501),
        ] {
            let fields = [("host", "localhost"), ("transfer-encoding", coding)];
            assert_eq!(status(Version::HTTP_11, "/events", &fields), wanted, "{coding}");
        }
        let fields = [("host", "localhost"), ("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")];
        assert_eq!(status(Version::HTTP_11, "/events", &fields), 501);
    }
}
