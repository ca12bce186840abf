//! Changed bodies: events of tomorrow, and what is no event at all.

use std::fmt;

use bytes::Bytes;
use fastrand::Rng;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

const SECTIONS: [&str; 3] = ["meta_data", "data", "details"];
const ROUTING: [&str; 3] = ["name", "event_type", "event_id"];
/// Deeper than a receiver has to read.
const TOO_DEEP: usize = 200;

/// The members of an object, in their order, each value in its own bytes.
struct Members(Vec<(String, Box<RawValue>)>);

/// Still valid JSON with its routing members, but not as documented.
pub(super) fn drift(body: &[u8], mut random: Rng) -> Bytes {
    let Ok(mut event) = serde_json::from_slice::<Members>(body) else { return Bytes::copy_from_slice(body) };
    let section = SECTIONS[random.usize(..SECTIONS.len())];
    let number = random.u32(..100);
    match random.u8(..9) {
        0 => event.set(&format!("new_member_{number}"), &json!({"list": [1, 2.50, null, {"text": "a \"b\" \u{e9}"}]})),
        1 => event.within(section, |fields, _| fields.set(&format!("new_field_{number}"), &json!(number)), &mut random),
        2 => event.set("event_type", &json!(format!("new_event_type_{number}"))),
        3 => event.set("name", &json!(format!("com.asapp.event.new_feed_{number}"))),
        4 => event.within("meta_data", |fields, _| fields.set("client_type", &json!("NEW_CLIENT")), &mut random),
        5 => event.within(section, Members::retype_one, &mut random),
        6 => event.set("api_version", &json!(format!("v1.{}.0", 10 + number))),
        7 => event.set("api_version", &json!(format!("v{}.0.0", 2 + number))),
        _ => return event.on_many_lines().into(),
    }
    event.on_one_line().into()
}

/// What a receiver has to refuse.
pub(super) fn malform(body: &[u8], mut random: Rng) -> Bytes {
    let mut event = serde_json::from_slice::<Members>(body).unwrap_or(Members(Vec::new()));
    let member = ROUTING[random.usize(..ROUTING.len())];
    let body = body.trim_ascii_end().to_vec();
    let changed = match random.u8(..8) {
        0 => body[..random.usize(..body.len().max(1))].to_vec(),
        1 => [&body[..], [&b"{}"[..], b",", b"x", b"\0"][random.usize(..4)]].concat(),
        2 => {
            event.add(member, &json!("another"));
            event.on_one_line()
        }
        3 => {
            event.0.retain(|(name, _)| name != member);
            event.on_one_line()
        }
        4 => [&b"["[..], &body, b"]"].concat(),
        5 => [&b"\xEF\xBB\xBF"[..], &body].concat(),
        6 => {
            let mut body = body;
            let at = random.usize(..body.len());
            body[at] = 0xFF;
            body
        }
        _ => {
            let deep = "[".repeat(TOO_DEEP) + &"]".repeat(TOO_DEEP);
            [&body[..body.len().saturating_sub(1)], b",\"deep\":", deep.as_bytes(), b"}"].concat()
        }
    };
    changed.into()
}

impl Members {
    /// In place of the one of that name, or behind the others.
    fn set(&mut self, name: &str, value: &Value) {
        match self.0.iter().position(|member| member.0 == name) {
            Some(at) => self.put(at, value),
            None => self.add(name, value),
        }
    }

    fn add(&mut self, name: &str, value: &Value) {
        self.0.extend(to_raw_value(value).ok().map(|value| (name.to_owned(), value)));
    }

    fn put(&mut self, at: usize, value: &Value) {
        if let Ok(value) = to_raw_value(value) {
            self.0[at].1 = value;
        }
    }

    /// Changes the object that is the member of that name, which need not be there.
    fn within(&mut self, name: &str, change: impl FnOnce(&mut Self, &mut Rng), random: &mut Rng) {
        let at = self.0.iter().position(|member| member.0 == name);
        let object = at.and_then(|at| serde_json::from_str(self.0[at].1.get()).ok());
        let mut object = object.unwrap_or(Self(Vec::new()));
        change(&mut object, random);
        self.set(name, &Value::Null);
        if let (Some((_, value)), Ok(changed)) =
            (self.0.iter_mut().find(|member| member.0 == name), to_raw_value(&object))
        {
            *value = changed;
        }
    }

    /// A text becomes a number, anything else a list.
    fn retype_one(&mut self, random: &mut Rng) {
        if self.0.is_empty() {
            return self.add("queue_id", &json!(17));
        }
        let at = random.usize(..self.0.len());
        let is_text = self.0[at].1.get().starts_with('"');
        self.put(at, &if is_text { json!(17) } else { json!([{"not": "as documented"}]) });
    }

    fn on_one_line(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Indented, with the line ends that a raw line shows as spaces.
    fn on_many_lines(&self) -> Vec<u8> {
        fn lines(members: &Members, indent: &str) -> String {
            let inner = format!("{indent}  ");
            let members = members.0.iter().map(|(name, value)| {
                let nested = serde_json::from_str::<Members>(value.get()).ok().filter(|object| !object.0.is_empty());
                let value = nested.map_or_else(|| value.get().to_owned(), |object| lines(&object, &inner));
                format!("\r\n{inner}{} : {value}", Value::from(name.as_str()))
            });
            format!("{{{}\r\n{indent}}}", members.collect::<Vec<_>>().join(","))
        }
        (lines(self, "") + "\n").into_bytes()
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}
