//! Bytes to an [`Envelope`]: one event with its routing members, and the exact bytes it came as. No I/O, no logging.

use bytes::Bytes;

/// One event: its routing members, decoded, and the bytes as received.
#[derive(Debug, Clone)]
pub struct Envelope {
    body: Bytes,
    event_id: Box<str>,
    name: Box<str>,
    event_type: Box<str>,
}

/// Why a body is no acceptable event. `Display` says what and where, and never quotes a value of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Not one JSON object in valid UTF-8, or nested too deep (400).
    #[error("{what} at line {line} column {column}")]
    Malformed { what: &'static str, line: usize, column: usize },
    /// A routing member is missing, empty, doubled, no string, or too long (422).
    #[error("`{member}` {what}")]
    Incomplete { member: &'static str, what: &'static str },
}

impl Envelope {
    /// Reads `body` in one scan.
    ///
    /// # Errors
    /// [`Rejection`] says what is wrong and where.
    pub fn parse(body: Bytes) -> Result<Self, Rejection> {
        let _ = body;
        Err(Rejection::Malformed { what: "not written yet", line: 0, column: 0 })
    }

    /// The exact bytes received.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// At most 256 bytes, decoded; compared exactly.
    #[must_use]
    pub fn event_id(&self) -> &str {
        &self.event_id
    }

    /// The feed, `com.asapp.event.activity` for example.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn event_type(&self) -> &str {
        &self.event_type
    }
}
