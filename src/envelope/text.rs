//! Strings of a body, decoded.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

use super::scan::Str;

impl Str {
    /// The string's text, borrowed where no escape stands in the way. Half of a surrogate pair, which no text can
    /// hold, becomes U+FFFD.
    pub(super) fn decode(self, body: &str) -> Cow<'_, str> {
        let raw = body.get(self.start..self.end).unwrap_or_default();
        if !self.escaped {
            return Cow::Borrowed(raw);
        }
        match self.decode_exactly(body) {
            Some(text) => Cow::Owned(text),
            None => Cow::Owned(String::from_utf8_lossy(&self.bytes(body)).into_owned()),
        }
    }

    /// The string's text, or `None` when it holds half of a surrogate pair.
    pub(super) fn decode_exactly(self, body: &str) -> Option<String> {
        String::from_utf8(self.bytes(body)).ok()
    }

    /// As UTF-8, in which serde_json writes half of a surrogate pair like a character.
    fn bytes(self, body: &str) -> Vec<u8> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
        }
        let quoted = body.get(self.start - 1..=self.end).unwrap_or("\"\"");
        serde_json::Deserializer::from_str(quoted).deserialize_bytes(Bytes).unwrap_or_default()
    }
}
