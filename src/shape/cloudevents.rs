//! CloudEvents 1.0: what an event's attributes are, as JSON (structured mode, batches) and as HTTP headers (binary mode).

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use time::format_description::well_known::Rfc3339;

use super::json::member;
use crate::envelope::{Facts, Feed};
use crate::journal::Event;

/// The unreserved characters of RFC 3986 stand for themselves in a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// As the HTTP binding says; what is not ASCII is encoded too.
const HEADER: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The context attributes, beside `specversion` and `datacontenttype`, which are always the same.
pub(super) struct Attributes<'a> {
    id: Cow<'a, str>,
    source: String,
    kind: String,
    subject: Option<Cow<'a, str>>,
    time: Option<String>,
    traceparent: Option<&'a str>,
    replayed: bool,
}

impl<'a> Attributes<'a> {
    /// Routing metadata is the event's, everything else comes out of `data`, in which members may be redacted.
    pub(super) fn of(event: &'a Event, data: &'a [u8]) -> Self {
        let Facts { entity, company_id, event_time } = Facts::read(Feed::of(event.name()), data);
        Self {
            id: attribute(event.event_id().into()),
            source: match company_id {
                Some(company) => format!("/asapp/{}", utf8_percent_encode(&company, SEGMENT)),
                None => "/asapp".to_owned(),
            },
            kind: attribute(format!("{}.{}", event.name(), event.event_type()).into()).into_owned(),
            subject: entity.map(attribute),
            time: event_time.and_then(|time| time.format(&Rfc3339).ok()),
            traceparent: event.traceparent(),
            replayed: event.is_replayed(),
        }
    }

    /// The event in the JSON format, around its data.
    pub(super) fn structured(&self, data: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(data.len() + 512);
        text.extend_from_slice(br#"{"specversion":"1.0""#);
        for (header, value) in self.texts() {
            member(&mut text, header.strip_prefix("ce-").unwrap_or(header), value);
        }
        if self.replayed {
            text.extend_from_slice(br#","replayed":true"#);
        }
        text.extend_from_slice(br#","datacontenttype":"application/json","data":"#);
        text.extend_from_slice(data);
        text.push(b'}');
        text
    }

    pub(super) fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![("ce-specversion", "1.0".to_owned())];
        headers.extend(self.texts().map(|(header, value)| (header, utf8_percent_encode(value, HEADER).to_string())));
        if self.replayed {
            headers.push(("ce-replayed", "true".to_owned()));
        }
        headers
    }

    /// Those that are there, by the names of their headers.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("ce-id", Some(&*self.id)),
            ("ce-source", Some(&*self.source)),
            ("ce-type", Some(&*self.kind)),
            ("ce-subject", self.subject.as_deref()),
            ("ce-time", self.time.as_deref()),
            ("ce-traceparent", self.traceparent),
        ];
        all.into_iter().filter_map(|(header, value)| Some((header, value?)))
    }
}

/// A text as an attribute can hold it: control characters and code points that are no characters, which it must not
/// have, are percent-encoded.
fn attribute(text: Cow<'_, str>) -> Cow<'_, str> {
    let forbidden = |c: char| {
        let code = u32::from(c);
        c.is_control() || matches!(code, 0xfdd0..=0xfdef) || code & 0xfffe == 0xfffe
    };
    if !text.contains(forbidden) {
        return text;
    }
    let mut allowed = String::with_capacity(text.len() + 8);
    for piece in text.split_inclusive(forbidden) {
        let plain = piece.trim_end_matches(forbidden);
        allowed.push_str(plain);
        allowed.extend(utf8_percent_encode(&piece[plain.len()..], NON_ALPHANUMERIC));
    }
    allowed.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes() -> Attributes<'static> {
        Attributes {
            id: "1".into(),
            source: "/asapp".to_owned(),
            kind: "n.t".to_owned(),
            subject: None,
            time: None,
            traceparent: None,
            replayed: false,
        }
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        let text = attributes().structured(b" {} ");
        let expected = r#"{"specversion":"1.0","id":"1","source":"/asapp","type":"n.t","datacontenttype":"application/json","data": {} }"#;
        assert_eq!(String::from_utf8(text).unwrap(), expected);
        let headers = attributes().headers();
        assert_eq!(
            headers.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["ce-specversion", "ce-id", "ce-source", "ce-type"]
        );
    }

    #[test]
    fn a_replay_is_marked_by_an_extension() {
        let replay = Attributes { replayed: true, ..attributes() };
        let text = String::from_utf8(replay.structured(b"{}")).unwrap();
        assert!(text.contains(r#","replayed":true,"#), "{text}");
        assert!(replay.headers().contains(&("ce-replayed", "true".to_owned())));
    }

    /// The example of the HTTP binding, and its edges.
    #[test]
    fn headers_are_percent_encoded() {
        for (text, header) in [
            ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
            ("100% \"x\"", "100%25%20%22x%22"),
            ("!#$&'()*+,-./:;<=>?@[\\]^_`{|}~", "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"),
            ("\u{7f}\t", "%7F%09"),
        ] {
            let subject = Attributes { subject: Some(text.into()), ..attributes() };
            assert!(subject.headers().contains(&("ce-subject", header.to_owned())), "{text}");
        }
    }

    #[test]
    fn what_no_attribute_can_hold_is_percent_encoded() {
        for (text, expected) in [
            ("plain é 😀", "plain é 😀"),
            ("a\nb\r\n", "a%0Ab%0D%0A"),
            ("\u{0}\u{1f}\u{80}\u{9f}", "%00%1F%C2%80%C2%9F"),
            ("\u{fdd0}\u{ffff}\u{1fffe}", "%EF%B7%90%EF%BF%BF%F0%9F%BF%BE"),
            ("\u{fffd}\u{fdf0}", "\u{fffd}\u{fdf0}"),
        ] {
            assert_eq!(attribute(text.into()), expected);
        }
        assert!(matches!(attribute("plain".into()), Cow::Borrowed("plain")));
    }
}
