//! What an event says of itself that others than its reader need: whose it is, when it happened, what it is about.

use std::borrow::Cow;

use super::Feed;
use super::read::{Id, Reader, record};

record! {
    /// Read without judging anything: what is missing, null or of another type is `None`, of what comes twice the last
    /// one counts.
    pub struct Facts<'a> {
        meta_data: MetaFacts<'a>,
        data: DataFacts<'a>,
    }
}

record! {
    pub struct MetaFacts<'a> {
        /// RFC 3339, if ASAPP keeps its word.
        event_time: Cow<'a, str>,
        issue_id: Id<'a>,
        company_id: Id<'a>,
    }
}

record! {
    pub struct DataFacts<'a> {
        rep_id: Id<'a>,
        queue_id: Id<'a>,
    }
}

impl<'a> Facts<'a> {
    /// Of an event's body; nothing, if it is none.
    #[must_use]
    pub fn read(body: &'a [u8]) -> Self {
        let text = std::str::from_utf8(body).unwrap_or_default();
        Reader::new(text, &mut |_| {}).object().unwrap_or_default()
    }

    /// The agent, issue or queue that an event of this feed is about.
    #[must_use]
    pub fn entity(&self, feed: Feed) -> Option<Cow<'a, str>> {
        let id = match feed {
            Feed::Activity => &self.data.as_ref()?.rep_id,
            Feed::Journey => &self.meta_data.as_ref()?.issue_id,
            Feed::Queue => &self.data.as_ref()?.queue_id,
            Feed::Other => &None,
        };
        id.as_ref().map(|Id(id)| id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entity(feed: Feed, body: &str) -> Option<Cow<'_, str>> {
        Facts::read(body.as_bytes()).entity(feed)
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
}
