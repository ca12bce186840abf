//! What a call of the operators' port says: its query or its JSON body, bounded, and nothing in it that is not understood.

use std::fmt;
use std::time::{Duration, SystemTime};

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::{Deserializer, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::blocking::joined;
use crate::config;
use crate::dispatch::{Bound, Filter};
use crate::problem::{Kind, Problem};

const LARGEST_BODY: usize = 64 << 10;
/// Each is work for every event.
const MOST_GLOBS: usize = 100;
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// An answer in JSON.
pub(super) fn answer(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written as JSON");
            Problem::new(Kind::Internal, "the answer cannot be written as JSON").into_response()
        }
    }
}

/// Reads the body of a changing call. It has to say that it is JSON: a page of another site cannot, without being asked
/// first whether it may.
///
/// # Errors
/// A body that is something else, too large, too slow, or means nothing.
pub(super) async fn body<T: for<'de> Deserialize<'de>>(request: Request) -> Result<T, Problem> {
    if !is_json(request.headers()) {
        return Err(Problem::new(Kind::UnsupportedMedia, "send the body as JSON: Content-Type: application/json"));
    }
    let read = Limited::new(request.into_body(), LARGEST_BODY).collect();
    let body = match tokio::time::timeout(BODY_WITHIN, read).await {
        Err(_) => return Err(Problem::new(Kind::Timeout, "the body did not arrive in time").closing()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Err(Problem::new(Kind::TooLarge, "the body is larger than 64 KiB").closing());
        }
        Ok(Err(_)) => return Err(Problem::new(Kind::Invalid, "the body broke off").closing()),
        Ok(Ok(body)) => body.to_bytes(),
    };
    // What the message may quote is the operator's own.
    serde_json::from_slice(&body).map_err(|error| Problem::new(Kind::Invalid, format!("the body: {error}")))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// The number that a path ends with.
///
/// # Errors
/// Not found: what has no such form does not exist.
pub(super) fn id(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::new(Kind::NotFound, "an id is a whole number"))
}

/// The words of a query, taken out one by one.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Self {
        let words = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        Self(words.map(|(key, value)| (key.into_owned(), value.into_owned())).collect())
    }

    /// The values of a word that may be repeated, and hold several separated by commas.
    pub(super) fn list(&mut self, key: &str) -> Vec<String> {
        let found = self.0.extract_if(.., |(found, _)| found == key).map(|(_, value)| value);
        let found: Vec<String> = found.collect();
        let values = found.iter().flat_map(|value| value.split(',')).map(str::trim);
        values.filter(|value| !value.is_empty()).map(str::to_owned).collect()
    }

    /// The value of a word that may come once.
    ///
    /// # Errors
    /// When it comes more than once, or means nothing; `form` says what is wanted.
    pub(super) fn one<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&str) -> Option<T>,
        form: &str,
    ) -> Result<Option<T>, Problem> {
        let found: Vec<String> = self.0.extract_if(.., |(found, _)| found == key).map(|(_, value)| value).collect();
        match found.as_slice() {
            [] => Ok(None),
            [value] => match parse(value) {
                Some(value) => Ok(Some(value)),
                None => Err(Problem::new(Kind::Invalid, format!("`{key}` has to be {form}"))),
            },
            _ => Err(Problem::new(Kind::Invalid, format!("`{key}` comes more than once"))),
        }
    }

    /// # Errors
    /// When something was not taken out.
    pub(super) fn finish(self, known: &str) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => {
                Err(Problem::new(Kind::Invalid, format!("`{key}` is not understood here: there are {known}")))
            }
        }
    }
}

/// A place in the journal: in JSON a sequence, or a text that is a time or how long ago.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(pub(super) Bound);

impl Place {
    pub(super) const FORM: &'static str =
        "a sequence, a time such as 2026-11-22T10:00:00Z, or how long ago, such as 90m";

    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Ok(sequence) = text.parse() {
            return Some(Self(Bound::Sequence(sequence)));
        }
        if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
            return Some(Self(Bound::Time(time.into())));
        }
        let ago = humantime::parse_duration(text).ok()?;
        SystemTime::now().checked_sub(ago).map(|time| Self(Bound::Time(time)))
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOf;
        impl Visitor<'_> for OneOf {
            type Value = Place;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Place::FORM)
            }

            fn visit_u64<E: serde::de::Error>(self, sequence: u64) -> Result<Place, E> {
                Ok(Place(Bound::Sequence(sequence)))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Place, E> {
                Place::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(OneOf)
    }
}

/// A time in an answer.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// The filter words of SPEC section 5, as they were written.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct FilterWords(config::Filter);

impl FilterWords {
    pub(super) const KNOWN: &'static str =
        "feeds, event_types, exclude_event_types, company_ids, company_segments and company_subdivisions";

    pub(super) fn of(query: &mut Query) -> Self {
        Self(config::Filter {
            feeds: query.list("feeds"),
            event_types: query.list("event_types"),
            exclude_event_types: query.list("exclude_event_types"),
            company_ids: query.list("company_ids"),
            company_segments: query.list("company_segments"),
            company_subdivisions: query.list("company_subdivisions"),
        })
    }

    /// With the full names of feeds, and ready to use. Globs take their time to compile: not the time of a thread that
    /// answers probes.
    ///
    /// # Errors
    /// A feed or a glob that is none; too many globs; the runtime is ending.
    pub(super) async fn compiled(self) -> Result<(config::Filter, Filter), Problem> {
        let job = move || {
            let filter = self.filter()?;
            let compiled = Filter::new(&filter);
            Ok((filter, compiled))
        };
        let ending = || Err(Problem::new(Kind::Unavailable, "the receiver is being stopped"));
        joined(tokio::task::spawn_blocking(job).await).unwrap_or_else(ending)
    }

    fn filter(self) -> Result<config::Filter, Problem> {
        let Self(mut filter) = self;
        let no_feed = "`feeds` has to name activity, journey, queue, or a full name such as com.asapp.event.queue";
        let feeds = filter.feeds.iter().map(|feed| config::feed_name(feed)).collect::<Option<_>>();
        filter.feeds = feeds.ok_or_else(|| Problem::new(Kind::Invalid, no_feed))?;
        let mut globs = filter.event_types.iter().chain(&filter.exclude_event_types);
        if globs.clone().count() > MOST_GLOBS || globs.any(|text| config::glob(text).is_none()) {
            let no_glob = "`event_types` and `exclude_event_types` have to be event types of at most 256 bytes, with * \
                           and ? as wildcards, 100 at most";
            return Err(Problem::new(Kind::Invalid, no_glob));
        }
        Ok(filter)
    }
}
