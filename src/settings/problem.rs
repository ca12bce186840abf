//! What is wrong with settings, and what is odd.

use std::fmt;

/// Something in the settings that keeps the receiver from starting. Never quotes what may be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The full path of the key, `listen.address` for example; several keys where they contradict each other.
    pub key: String,
    /// Where the value comes from: a file, an environment variable, the built-in defaults.
    pub source: String,
    /// Continues the sentence that begins with the key.
    pub what: String,
    pub remedy: String,
}

/// Something in the settings that is odd, but allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub key: String,
    pub source: String,
    /// Continues the sentence that begins with the key.
    pub what: String,
}

/// Everything that is wrong with the settings. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({}): {}", self.key, self.what, self.source, self.remedy)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.key, self.what, self.source)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the settings have {count} {}", if count == 1 { "problem" } else { "problems" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}
