//! What an event says of itself that its way depends on: what it is about, whose it is, when it happened.
//!
//! Read without judging anything: what is missing, null or of another type is `None`; of what comes twice the last one
//! counts. A body that is no event says nothing.

use std::borrow::Cow;

use time::OffsetDateTime;

use super::feed::Feed;
use super::read::{Raw, pick, time};

const COMPANY_ID: [&str; 2] = ["meta_data", "company_id"];
const COMPANY_SUBDIVISION: [&str; 2] = ["meta_data", "company_subdivision"];
const COMPANY_SEGMENTS: [&str; 2] = ["meta_data", "company_segments"];
const EVENT_TIME: [&str; 2] = ["meta_data", "event_time"];

/// What describes an event to others.
#[derive(Debug, Default)]
pub(crate) struct Facts<'a> {
    pub(crate) entity: Option<Cow<'a, str>>,
    pub(crate) company_id: Option<Cow<'a, str>>,
    /// When it happened, by the sender's clock.
    pub(crate) event_time: Option<OffsetDateTime>,
}

/// Whose an event is.
#[derive(Debug, Default)]
pub(crate) struct Company<'a> {
    pub(crate) id: Option<Cow<'a, str>>,
    pub(crate) subdivision: Option<Cow<'a, str>>,
    pub(crate) segments: Vec<Cow<'a, str>>,
}

/// The id of the agent, issue or queue that an event of this feed is about.
pub(crate) fn entity(feed: Feed, body: &[u8]) -> Option<Cow<'_, str>> {
    let [entity] = pick(body, [feed.entity()?]);
    entity?.id()
}

impl<'a> Facts<'a> {
    pub(crate) fn read(feed: Feed, body: &'a [u8]) -> Self {
        let (entity, [company_id, event_time]) = match feed.entity() {
            Some(field) => {
                let [entity, others @ ..] = pick(body, [field, COMPANY_ID, EVENT_TIME]);
                (entity, others)
            }
            None => (None, pick(body, [COMPANY_ID, EVENT_TIME])),
        };
        Self {
            entity: entity.and_then(Raw::id),
            company_id: company_id.and_then(Raw::id),
            event_time: event_time.and_then(Raw::id).and_then(|text| time(&text)),
        }
    }
}

impl<'a> Company<'a> {
    pub(crate) fn read(body: &'a [u8]) -> Self {
        let [id, subdivision, segments] = pick(body, [COMPANY_ID, COMPANY_SUBDIVISION, COMPANY_SEGMENTS]);
        Self {
            id: id.and_then(Raw::id),
            subdivision: subdivision.and_then(Raw::id),
            segments: segments.map(Raw::ids).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::format_description::well_known::Rfc3339;

    use super::*;

    /// Both ways to it agree.
    fn entity(feed: Feed, body: &str) -> Option<Cow<'_, str>> {
        let entity = super::entity(feed, body.as_bytes());
        assert_eq!(Facts::read(feed, body.as_bytes()).entity, entity);
        entity
    }

    #[test]
    fn each_feed_has_its_entity() {
        let body = r#"{"data":{"queue_id":"q","rep_id":"r","issue_id":"x"},"meta_data":{"issue_id":"i","rep_id":"x"}}"#;
        let found = [Feed::Activity, Feed::Journey, Feed::Queue, Feed::Other].map(|feed| entity(feed, body));
        assert_eq!(found, [Some("r".into()), Some("i".into()), Some("q".into()), None]);
    }

    #[test]
    fn an_entity_is_a_text_or_a_number() {
        for (id, found) in [
            (r#""a""#, Some("a")),
            (r#""\u0061\n\"""#, Some("a\n\"")),
            ("17", Some("17")),
            ("-1.50e2", Some("-1.50e2")),
            (r#""17""#, Some("17")),
            (r#""half \ud800.""#, Some("half \u{fffd}\u{fffd}\u{fffd}.")),
            (r#""""#, None),
            ("null", None),
            ("true", None),
            ("[1]", None),
            (r#"{"rep_id":"a"}"#, None),
            (r#""a","rep_id":"b""#, Some("b")),
            (r#""a","rep\u005fid":"b""#, Some("b")),
            (r#""a","rep_id":null"#, None),
        ] {
            assert_eq!(entity(Feed::Activity, &format!(r#"{{"data":{{"rep_id":{id}}}}}"#)).as_deref(), found, "{id}");
        }
        for body in ["{}", r#"{"data":null}"#, r#"{"data":[{"rep_id":"a"}]}"#, r#"{"rep_id":"a"}"#, "[]", "", "\u{e9}"]
        {
            assert_eq!(entity(Feed::Activity, body), None, "{body}");
        }
        assert_eq!(entity(Feed::Activity, r#"{"data":{"rep_id":"a"},"data":{"rep_id":"b"}}"#).as_deref(), Some("b"));
        assert_eq!(entity(Feed::Activity, r#"{"data":{"rep_id":"a"},"data":{}}"#), None);
    }

    #[test]
    fn what_needs_no_decoding_is_borrowed() {
        let id = entity(Feed::Activity, r#"{"data":{"rep_id":"a"}}"#);
        assert!(matches!(id, Some(Cow::Borrowed("a"))));
    }

    #[test]
    fn times_are_rfc_3339_or_none() {
        for (text, expected) in [
            (r#""2022-06-21T20:10:24.411Z""#, Some("2022-06-21T20:10:24.411Z")),
            (r#""2022-06-21T20:10:24Z""#, Some("2022-06-21T20:10:24Z")),
            (r#""2022-06-21T20:10:24.123456789+05:30""#, Some("2022-06-21T20:10:24.123456789+05:30")),
            (r#""2022-06-21""#, None),
            (r#""1655842224""#, None),
            ("1655842224", None),
            (r#""2022-13-21T20:10:24Z""#, None),
            (r#""""#, None),
            (r#""string""#, None),
            ("null", None),
            (r#""2022-06-21T20:10:24Z","event_time":null"#, None),
            (r#""2022-06-21T20:10:24Z"},"meta_data":{"issue_id":"i""#, None),
            (
                r#""2022-06-21T20:10:24Z"},"meta_data":{"event_time":"2022-06-21T20:10:25Z""#,
                Some("2022-06-21T20:10:25Z"),
            ),
        ] {
            let body = format!(r#"{{"meta_data":{{"event_time":{text}}}}}"#);
            for feed in [Feed::Journey, Feed::Other] {
                let time = Facts::read(feed, body.as_bytes()).event_time;
                assert_eq!(time.and_then(|time| time.format(&Rfc3339).ok()).as_deref(), expected, "{text}");
            }
        }
    }
}
