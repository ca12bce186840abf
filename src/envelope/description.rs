//! The words in which a feed is described, and what all feeds share. Its events are read and judged by its description.

use Type::{Any, EventName, Id, List, Object, OneOf, Text, Time};

/// A feed, as ASAPP documents it.
pub(super) struct Description {
    /// Its types of events, in ASAPP's order, and the placeholder of ASAPP's sample.
    pub(super) event_types: &'static [&'static str],
    /// The field that says what an event is about: its section, and its name in there.
    pub(super) entity: Option<[&'static str; 2]>,
    /// The members of an event; three of them are the sections, which hold the fields.
    pub(super) members: [Field; 7],
}

/// A documented member of an event, of a section, or of an object further down.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) of: Type,
    /// The group of `details` that it belongs to; a field of another section goes with all of its section.
    #[cfg_attr(not(test), expect(dead_code, reason = "rows will be made by group"))]
    pub(super) group: Option<Group>,
}

/// What a value has to be. Null is always allowed: it counts as missing.
pub(super) enum Type {
    /// Whatever it is; of the feed's name, the id and the version the envelope says more.
    Any,
    Text,
    /// A text that names something. A number is read as an id too, but is not what is documented.
    Id,
    /// A text, one of these as far as is documented.
    OneOf(&'static [&'static str]),
    /// The same, of what has happened: an undocumented one is reported by its name.
    EventName(&'static [&'static str]),
    /// RFC 3339.
    Time,
    Number,
    Boolean,
    List(&'static Type),
    Object(&'static [Field]),
    /// An object whose members have names that are data.
    Named(&'static Type),
}

/// Fields of `details` that change together: of several messages the newest one with any of them has all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: &'static str,
    /// The field that says when the others last changed.
    pub(super) stamp: Option<&'static str>,
}

impl Description {
    /// A feed that ASAPP has added since: what all feeds share is known of it.
    pub(super) const UNKNOWN: Self = Self { event_types: &[], entity: None, members: members(Text, Any, Any) };

    pub(super) const fn new(
        entity: [&'static str; 2],
        event_types: &'static [&'static str],
        data: &'static [Field],
        details: &'static [Field],
    ) -> Self {
        let members = members(EventName(event_types), Object(data), Object(details));
        Self { event_types, entity: Some(entity), members }
    }
}

impl Group {
    pub(super) const fn new(name: &'static str, stamp: Option<&'static str>) -> Self {
        Self { name, stamp }
    }

    pub(super) const fn field(self, name: &'static str, of: Type) -> Field {
        Field { name, of, group: Some(self) }
    }
}

/// A field that is in no group of its own.
pub(super) const fn field(name: &'static str, of: Type) -> Field {
    Field { name, of, group: None }
}

const fn members(event_type: Type, data: Type, details: Type) -> [Field; 7] {
    [
        field("api_version", Any),
        field("name", Any),
        field("event_id", Any),
        field("event_type", event_type),
        field("meta_data", Object(META_DATA)),
        field("data", data),
        field("details", details),
    ]
}

const META_DATA: &[Field] = &[
    // When this message was made.
    field("create_time", Time),
    // When it happened, usually some milliseconds before.
    field("event_time", Time),
    field("session_id", Id),
    field("issue_id", Id),
    field("company_subdivision", Id),
    field("company_id", Id),
    field("company_segments", List(&Id)),
    field("client_id", Id),
    field("client_type", OneOf(&["UNKNOWN", "SMS"])),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::super::feed::Feed;
    use super::*;

    const SAMPLES: [&str; 3] = [
        include_str!("../../tests/samples/activity.json"),
        include_str!("../../tests/samples/journey.json"),
        include_str!("../../tests/samples/queue.json"),
    ];

    fn section(feed: Feed, name: &str) -> &'static [Field] {
        match feed.description().members.iter().find(|member| member.name == name) {
            Some(Field { of: Object(fields), .. }) => fields,
            _ => &[],
        }
    }

    /// The described fields that `value` does not have.
    fn missing(of: &Type, value: &Value, path: &str, found: &mut Vec<String>) {
        match of {
            List(of) => missing(of, &value[0], path, found),
            Type::Named(of) => missing(of, value.as_object().unwrap().values().next().unwrap(), path, found),
            Object(fields) => {
                for field in *fields {
                    let path = format!("{path}.{}", field.name);
                    match value.get(field.name) {
                        Some(value) => missing(&field.of, value, &path, found),
                        None => found.push(path),
                    }
                }
            }
            _ => {}
        }
    }

    /// That the samples have no other fields is what their drift shows.
    #[test]
    fn the_samples_have_every_described_field() {
        let mut found = Vec::new();
        for (feed, sample) in Feed::DOCUMENTED.into_iter().zip(SAMPLES) {
            let members: &'static [Field] = &feed.description().members;
            missing(&Object(members), &serde_json::from_str(sample).unwrap(), feed.short(), &mut found);
        }
        // They are in the page's table only.
        assert_eq!(found, ["journey.data.rep_id", "journey.data.group_id"]);
    }

    #[test]
    fn no_field_is_described_twice() {
        for feed in Feed::DOCUMENTED {
            for name in ["meta_data", "data", "details"] {
                let fields = section(feed, name);
                assert!(!fields.is_empty());
                for (at, field) in fields.iter().enumerate() {
                    assert!(fields[..at].iter().all(|other| other.name != field.name), "{}", field.name);
                }
            }
        }
    }

    #[test]
    fn an_event_is_about_something_that_has_an_id() {
        for feed in Feed::DOCUMENTED {
            let [of, name] = feed.entity().unwrap();
            let field = section(feed, of).iter().find(|field| field.name == name).unwrap();
            assert!(matches!(field.of, Id), "{name}");
        }
    }

    /// The groups of `details`, with their own stamps and how many fields each has.
    #[test]
    fn every_field_of_details_is_in_a_group() {
        let groups = |feed: Feed| {
            assert!(["meta_data", "data"].iter().all(|name| section(feed, name).iter().all(|f| f.group.is_none())));
            let mut groups = BTreeMap::new();
            for field in section(feed, "details") {
                let group = field.group.unwrap();
                groups.entry(group.name).or_insert((group.stamp, 0)).1 += 1;
                assert_eq!(groups[group.name].0, group.stamp, "{}", group.name);
            }
            groups.into_iter().map(|(name, (stamp, fields))| (name, stamp, fields)).collect::<Vec<_>>()
        };
        assert_eq!(
            groups(Feed::Activity),
            [
                ("load", Some("assignment_load_updated_ts"), 2),
                ("previous_routing", Some("previous_routing_status_updated_ts"), 4),
                ("routing", Some("routing_status_updated_ts"), 2),
                ("status", Some("status_updated_ts"), 2),
                ("utilization", Some("utilization_5_min_updated_ts"), 8),
            ]
        );
        assert_eq!(
            groups(Feed::Queue),
            [
                ("availability", None, 8),
                ("size", Some("last_queue_size_ts"), 3),
                ("wait", Some("estimated_wait_time_updated_ts"), 3),
            ]
        );
        assert_eq!(
            groups(Feed::Journey),
            [
                ("disposition", Some("disposition_ts"), 2),
                ("end", Some("issue_ended_ts"), 1),
                ("files", None, 1),
                ("flow_action", Some("last_flow_action_called_ts"), 5),
                ("intent", None, 8),
                ("opportunity", None, 18),
                ("params", None, 20),
                ("resolution", None, 1),
                ("start", Some("issue_start_ts"), 1),
                ("summary", Some("last_assignment_summary_ts"), 2),
                ("survey", Some("survey_submit_ts"), 2),
            ]
        );
    }

    #[test]
    fn the_own_stamp_of_a_group_is_one_of_its_times() {
        for field in Feed::DOCUMENTED.into_iter().flat_map(|feed| section(feed, "details")) {
            let group = field.group.unwrap();
            let Some(stamp) = group.stamp else { continue };
            let mut fields = Feed::DOCUMENTED.into_iter().flat_map(|feed| section(feed, "details"));
            let stamp = fields.find(|field| field.name == stamp).unwrap();
            assert!(stamp.group == Some(group) && matches!(stamp.of, Time), "{}", group.name);
        }
    }
}
