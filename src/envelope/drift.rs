//! What deviates from ASAPP's documentation. Deviations are normal traffic: minor versions add fields and types.

use std::fmt;

use time::OffsetDateTime;

use super::read::Path;
use super::{Envelope, Typed, Version};

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

/// Tells `each` every deviation of an event; gives the time at which it happened, if it says so.
pub fn inspect(envelope: &Envelope, mut each: impl FnMut(Drift<'_>)) -> Option<OffsetDateTime> {
    Typed::read_telling(envelope, &mut each).event_time()
}

/// A version that cannot be read as one tells nothing, so it is no drift: ASAPP's own samples say `string`.
pub(super) fn of_version(version: &Version, body: &[u8]) -> Option<Drift<'static>> {
    let kind = match version {
        Version::Missing => return None,
        Version::Odd => Kind::Mismatch,
        Version::Text(text) => {
            let text = text.of(body);
            let number = text.strip_prefix('v').unwrap_or(text);
            let major = number.split('.').next().unwrap_or(number);
            match major.parse::<u32>() {
                Ok(major) if major != MAJOR => Kind::ApiVersion,
                _ => return None,
            }
        }
    };
    Some(Drift { kind, path: Path::of("api_version"), name: None })
}
