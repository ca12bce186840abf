//! Why an HTTP sink cannot be opened.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Why an HTTP sink cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{}{what}; {remedy}", file.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default())]
pub(crate) struct Unusable {
    key: &'static str,
    file: Option<PathBuf>,
    what: String,
    remedy: Cow<'static, str>,
}

impl Unusable {
    /// What it is about: a key below the sink's own.
    #[must_use]
    pub(super) fn key(&self) -> &'static str {
        self.key
    }

    pub(super) fn new(
        key: &'static str,
        file: Option<&Path>,
        what: impl Into<String>,
        remedy: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { key, file: file.map(Path::to_owned), what: what.into(), remedy: remedy.into() }
    }
}
