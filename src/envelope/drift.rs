//! What deviates from ASAPP's documentation. Deviations are normal traffic: minor versions add fields and types.

use std::fmt;

use super::description::{Field, Type};
use super::feed::Feed;
use super::parse::Envelope;
use super::read::{Reader, time};

/// The major version of `api_version` that ASAPP documents, as in `v1.3.0`.
const MAJOR: u32 = 1;

/// One deviation. It holds no value of the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drift<'a> {
    pub kind: Kind,
    /// The documented field or object where it was found.
    pub path: Path,
    /// What the event calls a field, type or feed that is not documented: whatever its sender makes up, of any length.
    pub name: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An unknown `name`.
    Feed,
    /// An unknown `event_type` of a known feed.
    EventType,
    /// An unknown field.
    Field,
    /// An unknown value where the documentation names the values.
    Value,
    /// A field of another type than documented, or a time that is none.
    Mismatch,
    /// Another major `api_version`, which may mean the event is read wrongly.
    ApiVersion,
}

/// The names on the way to a field, all of them documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    names: [&'static str; 3],
    depth: usize,
}

/// Reports every deviation of an event to `each`, in the order of the body.
pub fn inspect(envelope: &Envelope, mut each: impl FnMut(Drift<'_>)) {
    if let Some(kind) = of_version(envelope) {
        each(Drift { kind, path: Path::of("api_version"), name: None });
    }
    if envelope.feed() == Feed::Other {
        each(Drift { kind: Kind::Feed, path: Path::of("name"), name: Some(envelope.name()) });
    }
    // Checked when the envelope was made; the default is never used.
    let text = std::str::from_utf8(envelope.body()).unwrap_or_default();
    Walk { reader: Reader::new(text), path: Path::default(), each: &mut each }
        .members(&envelope.feed().description().members);
}

/// A version that cannot be read as one says nothing, so it is no drift: ASAPP's own samples say `string`.
fn of_version(envelope: &Envelope) -> Option<Kind> {
    if envelope.is_version_odd() {
        return Some(Kind::Mismatch);
    }
    let version = envelope.api_version()?;
    let number = version.strip_prefix('v').unwrap_or(version);
    let major = number.split('.').next().unwrap_or(number).parse::<u32>().ok()?;
    (major != MAJOR).then_some(Kind::ApiVersion)
}

/// Goes through a body and the description of its feed side by side.
struct Walk<'a, 'd> {
    reader: Reader<'a>,
    /// Of the value that the reader stands at.
    path: Path,
    each: &'d mut dyn FnMut(Drift<'_>),
}

impl Walk<'_, '_> {
    fn members(&mut self, fields: &'static [Field]) {
        let mut expected = 0;
        while let Some(name) = self.reader.next_member() {
            let Some(at) = position(fields, expected, &name) else {
                self.report(Kind::Field, Some(&name));
                self.reader.skip();
                continue;
            };
            let outer = self.path;
            self.path = outer.then(fields[at].name);
            self.value(&fields[at].of);
            self.path = outer;
            expected = at + 1;
        }
    }

    fn value(&mut self, of: &'static Type) {
        match (of, self.reader.first()) {
            (Type::Any, _)
            | (_, Some(b'n'))
            | (Type::Text | Type::Id, Some(b'"'))
            | (Type::Number, Some(b'-' | b'0'..=b'9'))
            | (Type::Boolean, Some(b't' | b'f')) => self.reader.skip(),
            (Type::Time, Some(b'"')) => {
                if self.reader.text().and_then(|text| time(&text)).is_none() {
                    self.report(Kind::Mismatch, None);
                }
            }
            (Type::OneOf(known), Some(b'"')) => {
                if self.reader.text().is_some_and(|text| !known.contains(&&*text)) {
                    self.report(Kind::Value, None);
                }
            }
            // What an event is called is a name; all else is a value.
            (Type::EventName(known), Some(b'"')) => {
                if let Some(text) = self.reader.text().filter(|text| !known.contains(&&**text)) {
                    self.report(Kind::EventType, Some(&text));
                }
            }
            (Type::List(of), Some(b'[')) => {
                while self.reader.next_element() {
                    self.value(of);
                }
            }
            (Type::Named(of), Some(b'{')) => {
                while self.reader.next_member().is_some() {
                    self.value(of);
                }
            }
            (Type::Object(fields), Some(b'{')) => self.members(fields),
            _ => {
                self.report(Kind::Mismatch, None);
                self.reader.skip();
            }
        }
    }

    fn report(&mut self, kind: Kind, name: Option<&str>) {
        (self.each)(Drift { kind, path: self.path, name });
    }
}

/// Where `name` stands among `fields`, looked for from `expected` on: fields mostly come in the documented order.
fn position(fields: &[Field], expected: usize, name: &str) -> Option<usize> {
    let (before, after) = fields.split_at_checked(expected)?;
    match after.iter().position(|field| field.name == name) {
        Some(index) => Some(expected + index),
        None => before.iter().position(|field| field.name == name),
    }
}

impl Kind {
    /// A word for metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Feed => "feed",
            Self::EventType => "event_type",
            Self::Field => "field",
            Self::Value => "value",
            Self::Mismatch => "mismatch",
            Self::ApiVersion => "api_version",
        }
    }
}

/// Without the name, which is the sender's.
impl fmt::Display for Drift<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.kind.label(), self.path)
    }
}

impl Path {
    fn of(name: &'static str) -> Self {
        Self::default().then(name)
    }

    fn then(mut self, name: &'static str) -> Self {
        if let Some(next) = self.names.get_mut(self.depth) {
            *next = name;
            self.depth += 1;
        }
        self
    }
}

impl Default for Path {
    /// The event itself.
    fn default() -> Self {
        Self { names: [""; 3], depth: 0 }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.get(..self.depth) {
            None | Some([]) => f.write_str("the event"),
            Some(names) => f.write_str(&names.join(".")),
        }
    }
}
