//! Bytes to an [`Envelope`].

use std::fmt;

use bytes::Bytes;

use super::feed::Feed;
use super::scan::{self, Fault, Member, Value};

/// The longest `event_id`, in decoded bytes.
const MAX_EVENT_ID: usize = 256;

/// One event: its routing members, decoded, and the bytes as received. Cheap to clone.
#[derive(Clone)]
pub struct Envelope {
    body: Bytes,
    event_id: Text,
    name: Text,
    event_type: Text,
    version: Version,
}

/// Why a body is no acceptable event. `Display` says what and where, and never quotes a value of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not one JSON object in valid UTF-8, or nested too deep (400). Lines and columns count from 1, columns in bytes.
    #[error("the body {what} at line {line} column {column}")]
    Malformed { what: &'static str, line: usize, column: usize },
    /// A routing member is missing, empty, doubled, no string, or too long (422).
    #[error("`{member}` {what}")]
    Incomplete { member: &'static str, what: &'static str },
}

/// A routing member's decoded text: a span of the body, or its own where the body has escapes.
#[derive(Debug, Clone)]
enum Text {
    Span { start: usize, end: usize },
    Owned(Box<str>),
}

#[derive(Debug, Clone)]
enum Version {
    Missing,
    Text(Text),
    /// Doubled, or no string.
    Odd,
}

impl Envelope {
    /// Reads `body` in one scan.
    ///
    /// # Errors
    /// [`Rejection`] says what is wrong and where. A body that is malformed anywhere is not judged by its members.
    pub fn parse(body: Bytes) -> Result<Self, Rejection> {
        let text = match std::str::from_utf8(&body) {
            Ok(text) => text,
            Err(error) => {
                let fault = Fault { what: "is not valid UTF-8", at: error.valid_up_to() };
                return Err(Rejection::malformed(&body, fault));
            }
        };
        let routing = scan::scan(text).map_err(|fault| Rejection::malformed(&body, fault))?;
        let name = Text::required(text, "name", routing.name)?;
        let event_type = Text::required(text, "event_type", routing.event_type)?;
        let event_id = Text::id(text, routing.event_id)?;
        let version = match routing.api_version {
            Member::Missing | Member::Once(Value::Null) => Version::Missing,
            Member::Once(Value::String(str)) => Version::Text(Text::new(text, str)),
            Member::Once(Value::Other) | Member::Doubled => Version::Odd,
        };
        Ok(Self { event_id, name, event_type, version, body })
    }

    /// The exact bytes received.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// At most [`MAX_EVENT_ID`] bytes, decoded; compared exactly.
    #[must_use]
    pub fn event_id(&self) -> &str {
        self.event_id.of(&self.body)
    }

    /// The feed's full name, `com.asapp.event.activity` for example.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.of(&self.body)
    }

    #[must_use]
    pub fn event_type(&self) -> &str {
        self.event_type.of(&self.body)
    }

    /// `None` when it is missing, doubled or no string.
    pub(super) fn api_version(&self) -> Option<&str> {
        match &self.version {
            Version::Text(text) => Some(text.of(&self.body)),
            Version::Missing | Version::Odd => None,
        }
    }

    /// `api_version` is doubled, or no string.
    pub(super) fn is_version_odd(&self) -> bool {
        matches!(self.version, Version::Odd)
    }

    #[must_use]
    pub fn feed(&self) -> Feed {
        Feed::of(self.name())
    }
}

/// Shows routing metadata only: a body holds personal data.
impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("event_id", &self.event_id())
            .field("name", &self.name())
            .field("event_type", &self.event_type())
            .field("bytes", &self.body.len())
            .finish()
    }
}

impl Rejection {
    #[cold]
    fn malformed(body: &[u8], Fault { what, at }: Fault) -> Self {
        let before = body.get(..at).unwrap_or(body);
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        let column = 1 + before.iter().rev().take_while(|&&byte| byte != b'\n').count();
        Self::Malformed { what, line, column }
    }
}

impl Text {
    fn required(body: &str, member: &'static str, found: Member) -> Result<Self, Rejection> {
        Ok(Self::new(body, nonempty(member, found)?))
    }

    /// Ids are compared, so an id has to be a text that can be.
    fn id(body: &str, found: Member) -> Result<Self, Rejection> {
        let member = "event_id";
        let id = nonempty(member, found)?;
        let text = match id.escaped {
            false => Self::Span { start: id.start, end: id.end },
            true => match id.decode_exactly(body) {
                Some(text) => Self::Owned(text.into()),
                None => return Err(Rejection::Incomplete { member, what: "holds half of a surrogate pair" }),
            },
        };
        if text.of(body.as_bytes()).len() > MAX_EVENT_ID {
            return Err(Rejection::Incomplete { member, what: "is longer than 256 bytes" });
        }
        Ok(text)
    }

    fn new(body: &str, str: scan::Str) -> Self {
        match str.escaped {
            false => Self::Span { start: str.start, end: str.end },
            true => Self::Owned(str.decode(body).into()),
        }
    }

    fn of<'a>(&'a self, body: &'a [u8]) -> &'a str {
        match self {
            // Cut out of text at ASCII quotes, so it is text; checking it again is cheaper than a copy.
            Self::Span { start, end } => {
                body.get(*start..*end).and_then(|span| std::str::from_utf8(span).ok()).unwrap_or_default()
            }
            Self::Owned(text) => text,
        }
    }
}

fn nonempty(member: &'static str, found: Member) -> Result<scan::Str, Rejection> {
    let what = match found {
        Member::Once(Value::String(str)) if str.start < str.end => return Ok(str),
        Member::Once(Value::String(_)) => "is empty",
        Member::Once(Value::Other) => "is not a string",
        Member::Once(Value::Null) | Member::Missing => "is missing or null",
        Member::Doubled => "comes more than once",
    };
    Err(Rejection::Incomplete { member, what })
}
