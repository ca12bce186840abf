//! Seeded, repeatable events of all three feeds: issues run their course, agents change status, queues grow and shrink.
//!
//! As with ASAPP, a message holds every field known so far of its issue, agent or queue. Names are invented.

mod agent;
mod issue;
mod queue;

use bytes::Bytes;
use fastrand::Rng;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, UtcOffset};

use crate::envelope::Feed;
use agent::Agent;
use issue::Issue;
use queue::Queue;

const COMPANY: &str = "farwell-broadband";
const AGENTS: usize = 12;
/// Fewer than this many issues under way, and a new one begins.
const ISSUES: usize = 8;
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A company's traffic.
#[derive(Debug)]
pub struct Model {
    random: Rng,
    agents: Vec<Agent>,
    queues: Vec<Queue>,
    issues: Vec<Issue>,
    /// Seconds from one event to the next.
    every: f64,
    made: u32,
}

/// One event, ready to be sent.
#[derive(Debug, Clone)]
pub struct Event {
    pub event_id: String,
    pub body: Bytes,
}

/// What has happened to an issue, an agent or a queue.
struct Message<'a> {
    feed: Feed,
    event_type: &'static str,
    /// Of the customer's session, where there is one.
    session: Option<&'a Fields>,
    data: &'a Fields,
    details: &'a Fields,
}

/// The members of an object in the order they were set first.
#[derive(Debug, Default, Clone)]
struct Fields(Vec<(&'static str, Value)>);

impl Model {
    /// The same seed makes the same events, ids included; their times are those given to [`next`](Self::next).
    #[must_use]
    pub fn new(seed: u64, issues_per_minute: f64) -> Self {
        let mut random = Rng::with_seed(seed);
        let queues = Queue::all(&mut random);
        let agents = (0..AGENTS).map(|_| Agent::new(&mut random)).collect();
        Self { random, agents, queues, issues: Vec::new(), every: 6.0 / issues_per_minute, made: 0 }
    }

    /// Simulated time from the start to the next event.
    #[must_use]
    pub fn at(&self) -> std::time::Duration {
        std::time::Duration::try_from_secs_f64(self.every * f64::from(self.made)).unwrap_or(std::time::Duration::MAX)
    }

    /// What happens next; it happens a few milliseconds before `now`.
    pub fn next(&mut self, now: OffsetDateTime) -> Event {
        self.made += 1;
        let Self { random, agents, queues, issues, .. } = self;
        let happened = now - Duration::milliseconds(random.i64(2..40));
        match random.u8(..10) {
            0 => {
                let queue = random.usize(..queues.len());
                queues[queue].happen(random, happened).into_event(random, happened, now)
            }
            1..3 => {
                let agent = random.usize(..agents.len());
                agents[agent].happen(random, happened, queues).into_event(random, happened, now)
            }
            _ => {
                if issues.len() < ISSUES {
                    issues.push(Issue::new(random));
                }
                let issue = random.usize(..issues.len());
                let message = issues[issue].happen(random, happened, queues, agents);
                let event = message.into_event(random, happened, now);
                if issues[issue].is_over() {
                    issues.swap_remove(issue);
                }
                event
            }
        }
    }
}

impl Message<'_> {
    fn into_event(self, random: &mut Rng, happened: OffsetDateTime, now: OffsetDateTime) -> Event {
        #[derive(Serialize)]
        struct Payload<'a> {
            api_version: &'a str,
            name: Option<&'a str>,
            meta_data: Fields,
            data: &'a Fields,
            event_id: &'a str,
            event_type: &'a str,
            details: &'a Fields,
        }
        let mut meta_data = Fields::default();
        meta_data.set("create_time", clock(now));
        meta_data.set("event_time", clock(happened));
        if let Some(session) = self.session {
            meta_data.0.extend_from_slice(&session.0);
        }
        meta_data.set("company_subdivision", "consumer");
        meta_data.set("company_id", COMPANY);
        meta_data.set("company_segments", ["fibre", "mobile"].as_slice());
        let event_id = uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid().to_string();
        let payload = Payload {
            api_version: "v1.3.0",
            name: self.feed.full(),
            meta_data,
            data: self.data,
            event_id: &event_id,
            event_type: self.event_type,
            details: self.details,
        };
        // Names and plain values: there is nothing in it that JSON could not say.
        let body = serde_json::to_vec(&payload).unwrap_or_default().into();
        Event { event_id, body }
    }
}

impl Fields {
    fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        let value = value.into();
        match self.0.iter_mut().find(|field| field.0 == name) {
            Some(field) => field.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// A time as ASAPP writes it.
fn clock(time: OffsetDateTime) -> String {
    time.to_offset(UtcOffset::UTC).format(TIME).unwrap_or_default()
}

/// An identifier as of ASAPP's own.
fn identifier(random: &mut Rng) -> String {
    format!("{:016X}", random.u64(..))
}

fn pick<T: Copy>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::envelope::{Envelope, inspect};

    const EVENTS: i64 = 2_000;

    fn events(seed: u64) -> Vec<Event> {
        let mut model = Model::new(seed, 20.0);
        let begun = OffsetDateTime::now_utc();
        (0..EVENTS).map(|event| model.next(begun + Duration::milliseconds(100 * event))).collect()
    }

    #[test]
    fn events_are_documented_ones_of_every_type() {
        for seed in [0, 1, 2] {
            let mut types: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
            let mut ids = BTreeSet::new();
            for event in events(seed) {
                let envelope = Envelope::parse(event.body).unwrap();
                inspect(&envelope, |drift| panic!("{drift} in {}", String::from_utf8_lossy(envelope.body())));
                assert_eq!(envelope.event_id(), event.event_id);
                assert!(ids.insert(event.event_id), "an id came twice");
                types.entry(envelope.feed().short()).or_default().insert(envelope.event_type().to_owned());
            }
            for feed in Feed::DOCUMENTED {
                let missing: Vec<_> = feed.event_types().filter(|&name| !types[feed.short()].contains(name)).collect();
                assert!(missing.is_empty(), "seed {seed} has no {missing:?}");
            }
        }
    }

    #[test]
    fn every_field_of_the_samples_occurs() {
        let samples: [&[u8]; 3] = [
            include_bytes!("../../../tests/samples/activity.json"),
            include_bytes!("../../../tests/samples/journey.json"),
            include_bytes!("../../../tests/samples/queue.json"),
        ];
        let fields = |body: &[u8]| {
            let event: Value = serde_json::from_slice(body).unwrap();
            let mut fields = BTreeSet::new();
            for section in ["meta_data", "data", "details"] {
                let members = event[section].as_object().into_iter().flatten();
                fields.extend(members.map(|member| format!("{} {section}.{}", event["name"], member.0)));
            }
            fields
        };
        let occurring: BTreeSet<String> = events(3).iter().flat_map(|event| fields(&event.body)).collect();
        let mut documented: BTreeSet<String> = samples.into_iter().flat_map(fields).collect();
        documented.extend(["rep_id", "group_id"].map(|field| format!("\"com.asapp.event.journey\" data.{field}")));
        // Nothing of a customer's session is in an event of an agent or a queue.
        documented.retain(|field| {
            let session =
                ["session_id", "issue_id", "client_id", "client_type"].map(|name| format!("meta_data.{name}"));
            field.contains(".journey") || !session.iter().any(|name| field.ends_with(name.as_str()))
        });
        let missing: Vec<_> = documented.difference(&occurring).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn a_seed_repeats_itself() {
        let now = OffsetDateTime::now_utc();
        let bodies = |seed| {
            let mut model = Model::new(seed, 20.0);
            (0..200).map(|_| model.next(now).body).collect::<Vec<_>>()
        };
        assert_eq!(bodies(5), bodies(5));
        assert_ne!(bodies(5), bodies(6));
    }
}
