//! Which log a journal is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A journal's identity: random, made with it, and the same as long as its sequences go on. A sequence says something
/// about the log of this identity only; and, as a copy keeps it, only up to where that log ends at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LogIdentity(u128);

impl LogIdentity {
    pub(crate) fn random() -> Self {
        Self(uuid::Uuid::new_v4().as_u128())
    }

    pub(crate) fn of(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

impl fmt::Display for LogIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<LogIdentity> for String {
    fn from(log: LogIdentity) -> Self {
        log.to_string()
    }
}

impl TryFrom<String> for LogIdentity {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&text, 16).map(Self)
    }
}
