//! `[endpoints.NAME]`.

use super::filter::feeds;
use crate::settings::Section;

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

pub(super) fn endpoint(name: String, mut s: Section<'_, '_>) -> Endpoint {
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

/// A path that the router takes literally.
fn event_path(text: &str) -> Option<String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._~@=+,-".contains(&b);
    (text.starts_with('/') && text.bytes().all(plain)).then(|| text.to_owned())
}
