//! What an issue, an agent or a queue has told so far, as the JSON that its next message repeats.

use bytes::Bytes;
use fastrand::Rng;
use serde::{Serialize, Serializer};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, UtcOffset};

use crate::envelope::Feed;

const COMPANY: &str =
    r#""company_subdivision":"consumer","company_id":"farwell-broadband","company_segments":["fibre","mobile"]"#;
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// One event, ready to be sent.
#[derive(Debug, Clone)]
pub struct Event {
    pub event_id: String,
    pub body: Bytes,
}

/// The moment of one event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// On the model's clock.
    pub(super) at: std::time::Duration,
    /// When the message is made.
    pub(super) now: OffsetDateTime,
    /// A few milliseconds before.
    pub(super) happened: OffsetDateTime,
    /// The start of the model's clock, as of the first event.
    pub(super) start: OffsetDateTime,
}

/// All that is known of an issue, an agent or a queue.
#[derive(Debug)]
pub(super) struct Story {
    feed: Feed,
    /// Of the customer's session, where there is one.
    pub(super) session: Fields,
    pub(super) data: Fields,
    pub(super) details: Fields,
    last: Option<OffsetDateTime>,
}

/// The members of an object in the order they were set first. They are kept as JSON, for every message repeats them.
#[derive(Debug, Default)]
pub(super) struct Fields {
    text: String,
    /// The name of each member, and where in `text` it ends.
    members: Vec<(&'static str, usize)>,
}

/// A time as ASAPP writes it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(pub(super) OffsetDateTime);

impl Story {
    pub(super) fn new(feed: Feed) -> Self {
        Self { feed, session: Fields::default(), data: Fields::default(), details: Fields::default(), last: None }
    }

    /// The moment, put off so that the story never goes back in time.
    pub(super) fn moment(&mut self, moment: Moment) -> Moment {
        let happened = self.last.map_or(moment.happened, |last| moment.happened.max(last));
        self.last = Some(happened);
        Moment { happened, ..moment }
    }

    pub(super) fn event(&self, event_type: &'static str, random: &mut Rng, moment: Moment) -> Event {
        let id = uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid();
        let event_id = id.hyphenated().to_string();
        let Self { session, data, details, .. } = self;
        let known = session.text.len() + data.text.len() + details.text.len();
        let mut body = String::with_capacity(known + 512);
        for piece in [
            r#"{"api_version":"v1.3.0","name":""#,
            self.feed.full().unwrap_or_default(),
            r#"","meta_data":{"create_time":""#,
            &clock(moment.now),
            r#"","event_time":""#,
            &clock(moment.happened),
            r#"","#,
            &session.text,
            if session.text.is_empty() { "" } else { "," },
            COMPANY,
            r#"},"data":{"#,
            &data.text,
            r#"},"event_id":""#,
            &event_id,
            r#"","event_type":""#,
            event_type,
        ] {
            body.push_str(piece);
        }
        if details.text.is_empty() {
            body.push_str("\"}");
        } else {
            body.push_str(r#"","details":{"#);
            body.push_str(&details.text);
            body.push_str("}}");
        }
        Event { event_id, body: Bytes::from(body) }
    }
}

impl Fields {
    pub(super) fn set(&mut self, name: &'static str, value: impl Serialize) {
        // Plain values: there is nothing in them that JSON could not say.
        let value = serde_json::to_string(&value).unwrap_or_default();
        let Self { text, members } = self;
        let Some(place) = members.iter().position(|member| member.0 == name) else {
            for piece in [if members.is_empty() { "\"" } else { ",\"" }, name, "\":", &value] {
                text.push_str(piece);
            }
            members.push((name, text.len()));
            return;
        };
        let end = members[place].1;
        let begin = place.checked_sub(1).map_or(0, |before| members[before].1 + 1) + name.len() + 3;
        text.replace_range(begin..end, &value);
        for member in &mut members[place..] {
            member.1 = member.1 + value.len() - (end - begin);
        }
    }
}

impl Serialize for Clock {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&clock(self.0))
    }
}

fn clock(time: OffsetDateTime) -> String {
    time.to_offset(UtcOffset::UTC).format(TIME).unwrap_or_default()
}

/// An identifier as of ASAPP's own.
pub(super) fn identifier(random: &mut Rng) -> String {
    format!("{:016X}", random.u64(..))
}
