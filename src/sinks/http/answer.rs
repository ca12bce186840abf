//! What an answer, or its absence, means for a batch.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{HeaderMap, RETRY_AFTER};

use crate::outbound;
use crate::sinks::sink::{Blame, Failure, FailureKind};

/// What becomes of the batch after an answer with this head.
pub(super) fn outcome(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Result<(), Failure> {
    if status.is_success() {
        return Ok(());
    }
    let retry = |blame| FailureKind::Retry { after: pause(headers, now), blame };
    let kind = match status.as_u16() {
        400 | 413 | 422 => FailureKind::Reject,
        100..=399 | 401 | 403 | 404 | 405 | 410 | 429 => retry(Blame::Target),
        _ => retry(Blame::Batch),
    };
    let reason = match hint(status) {
        "" => format!("the target answered {status}"),
        hint => format!("the target answered {status}: {hint}"),
    };
    Err(Failure { delivered: 0, kind, reason })
}

/// Where to look first.
fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        101 => "it wants another protocol; check url",
        301..=303 | 307 | 308 => "redirects are not followed; set url to where the target is",
        300..=399 => "that is no answer to a delivery; check url, and what is there",
        401 => "check bearer_token_file or headers",
        403 => "check tls.certificate, bearer_token_file or headers, and what they allow at the target",
        404 | 410 => "check url",
        405 => "check method and url",
        415 => "check compress, batch, format and headers",
        _ => "",
    }
}

/// How long the target asks to be left alone: seconds or a date. The lane bounds it.
fn pause(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a u64 has are a long pause as well.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default())
}

/// Why there is no answer.
pub(super) fn reason(error: &outbound::Error, host: &str) -> String {
    let cause = error.cause();
    match error {
        outbound::Error::Connect(_) if error.distrust().is_some() => {
            format!("cannot trust {host}: {cause}; check url, tls.ca and the target's certificate")
        }
        outbound::Error::Connect(_) => format!("cannot connect to {host}: {cause}"),
        _ => format!("the exchange with {host} broke off: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16, after: Option<&str>) -> Option<FailureKind> {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert(RETRY_AFTER, after.parse().unwrap());
        }
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        outcome(StatusCode::from_u16(status).unwrap(), &headers, now).err().map(|failure| failure.kind)
    }

    #[test]
    fn every_status_has_its_meaning() {
        let retry = |blame| Some(FailureKind::Retry { after: None, blame });
        for status in 100..=999 {
            let expected = match status {
                200..=299 => None,
                400 | 413 | 422 => Some(FailureKind::Reject),
                401 | 403 | 404 | 405 | 410 | 429 => retry(Blame::Target),
                100..=199 | 300..=399 => retry(Blame::Target),
                _ => retry(Blame::Batch),
            };
            assert_eq!(failure(status, None), expected, "{status}");
        }
    }

    #[test]
    fn only_a_redirect_is_called_one() {
        for status in 300..=399 {
            let hint = hint(StatusCode::from_u16(status).unwrap());
            assert_eq!(hint.contains("redirects"), [301, 302, 303, 307, 308].contains(&status), "{status}: {hint}");
            assert!(hint.contains("url"), "{status}: {hint}");
        }
    }

    #[test]
    fn a_pause_is_seconds_or_a_date() {
        let pause = |text| match failure(503, Some(text)) {
            Some(FailureKind::Retry { after, .. }) => after.map(|after| after.as_secs()),
            other => panic!("{other:?}"),
        };
        assert_eq!(pause("0"), Some(0));
        assert_eq!(pause("120"), Some(120));
        assert_eq!(pause("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(pause("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(pause("Sunday, 06-Nov-94 08:50:37 GMT"), Some(60));
        assert_eq!(pause("Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        for odd in ["", "soon", "-1", "1.5", "1, 2"] {
            assert_eq!(pause(odd), None, "{odd}");
        }
    }
}
