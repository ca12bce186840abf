//! What there is to say about the TLS files.

use std::fmt;
use std::path::{Path, PathBuf};

/// Something to say about the TLS files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub what: String,
    pub file: Option<PathBuf>,
    /// Empty where nothing needs to be done.
    pub remedy: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Info,
    Warning,
    /// The set cannot be used.
    Error,
}

impl Finding {
    pub(super) fn error(what: impl Into<String>, file: Option<&Path>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Error, what: what.into(), file: file.map(Path::to_owned), remedy: remedy.into() }
    }

    pub(super) fn warning(what: impl Into<String>, file: &Path, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(what, Some(file), remedy) }
    }

    pub(super) fn info(what: impl Into<String>, file: &Path) -> Self {
        Self { severity: Severity::Info, ..Self::error(what, Some(file), "") }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        f.write_str(&self.what)?;
        if !self.remedy.is_empty() {
            write!(f, ": {}", self.remedy)?;
        }
        Ok(())
    }
}
