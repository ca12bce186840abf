//! Error answers of both ports: `application/problem+json` (RFC 9457), whose `type` ends in the problem's word.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// What went wrong, by what the sender should do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Malformed,
    /// A call of the admin port that means nothing.
    Invalid,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Conflict,
    Timeout,
    TooLarge,
    UnsupportedMedia,
    Incomplete,
    TooMany,
    Internal,
    Unavailable,
}

/// An error answer.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    close: bool,
}

impl Kind {
    /// The last part of the problem's `type`.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.parts().1
    }

    fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Malformed => (StatusCode::BAD_REQUEST, "malformed", "Not one JSON object"),
            Self::Invalid => (StatusCode::BAD_REQUEST, "invalid", "Not a call that can be answered"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "Token needed"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "forbidden", "Not from here"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not-found", "No such path"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed"),
            Self::Conflict => (StatusCode::CONFLICT, "conflict", "Not in a state for this"),
            Self::Timeout => (StatusCode::REQUEST_TIMEOUT, "timeout", "Body not received in time"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too-large", "Body too large"),
            Self::UnsupportedMedia => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media", "Content not supported")
            }
            Self::Incomplete => (StatusCode::UNPROCESSABLE_ENTITY, "incomplete", "Not an event for this endpoint"),
            Self::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too-many", "Too many requests in flight"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
            Self::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Cannot store events now"),
        }
    }
}

impl Problem {
    /// `detail` says what and where, and holds no value of an event.
    #[must_use]
    pub fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, detail: detail.into(), close: false }
    }

    /// The same, for an answer given before the request was read to its end: the connection ends with it.
    #[must_use]
    pub fn closing(self) -> Self {
        Self { close: true, ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, word, title) = self.kind.parts();
        let detail = serde_json::Value::from(self.detail.as_ref());
        let code = status.as_u16();
        let body = format!(
            r#"{{"type":"urn:asapp-receiver:problem:{word}","title":"{title}","status":{code},"detail":{detail}}}"#
        );
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if matches!(self.kind, Kind::TooMany | Kind::Unavailable) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.kind == Kind::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
