//! What `check` finds, and the checks of files and names that several sections have.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;
use std::{fs, io};

use crate::settings::Problem;
use crate::{tls, whole};

pub(crate) struct Finding {
    pub(crate) verdict: Verdict,
    /// A key of the settings.
    pub(crate) key: String,
    pub(crate) text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    Warning,
    /// What was tried did not work out. It is no matter of the settings.
    Failed,
    /// The receiver would not start.
    Error,
}

impl Finding {
    pub(crate) fn good(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Good, key: key.into(), text: text.into() }
    }

    pub(crate) fn warning(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, key: key.into(), text: text.into() }
    }

    pub(crate) fn failed(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Failed, key: key.into(), text: text.into() }
    }

    pub(crate) fn error(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { verdict: Verdict::Error, key: key.into(), text: text.into() }
    }
}

impl From<Problem> for Finding {
    fn from(problem: Problem) -> Self {
        let Problem { key, source, what, remedy } = problem;
        Self::error(key, format!("{what} ({source}): {remedy}"))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Good => "ok",
            Verdict::Warning => "warning",
            Verdict::Failed | Verdict::Error => "error",
        };
        write!(f, "{verdict:<8} {}: {}", self.key, self.text)
    }
}

/// A certificate that servers are shown. One that they refuse keeps the receiver from nothing but them.
pub(crate) fn shown_certificate(key: &str, file: &Path) -> Vec<Finding> {
    let finding = |found: tls::Finding| match found.severity {
        tls::Severity::Info => Finding::good(key, found.to_string()),
        tls::Severity::Warning => Finding::warning(key, found.to_string()),
        tls::Severity::Error => Finding::failed(key, found.to_string()),
    };
    tls::shown_to_servers(file, SystemTime::now()).into_iter().map(finding).collect()
}

/// CAs that are trusted when the receiver connects. A bundle has many: only those that end are worth a line.
pub(crate) fn trusted_authorities(key: &str, file: &Path) -> Vec<Finding> {
    let now = SystemTime::now();
    let ending = tls::Expiry::of_authorities(key, file).into_iter().filter(|expiry| expiry.ends_soon(now));
    let finding = |expiry: tls::Expiry| {
        let (file, name, days) = (file.display(), &expiry.subject, expiry.days_left(now));
        let date = humantime::format_rfc3339_seconds(expiry.at);
        let text = if expiry.is_over(now) {
            format!("{file}: the CA `{name}` expired on {date}: replace it with its successor")
        } else {
            format!("{file}: the CA `{name}` is valid for {days} more days, until {date}: add its successor")
        };
        Finding::warning(key, text)
    };
    ending.map(finding).collect()
}

/// The examples of the shipped settings are under names that belong to nobody (RFC 2606).
pub(crate) fn example_host(key: &str, host: &str) -> Option<Finding> {
    let is_example = ["example.com", "example.net", "example.org"]
        .iter()
        .any(|name| host.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.')));
    is_example.then(|| {
        Finding::warning(key, format!("{host} is an example's name, which belongs to nobody: write the real one"))
    })
}

/// A file that holds a secret.
pub(crate) fn secret(key: &str, path: &Path) -> Finding {
    let shown = path.display();
    match fs::metadata(path).and_then(|found| Ok((found, whole::read(path, whole::SECRET)?))) {
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => ": give the receiver's user the file",
                io::ErrorKind::NotFound => ": make it, or mount it",
                _ => "",
            };
            Finding::error(key, format!("{shown} cannot be read: {error}{remedy}"))
        }
        Ok((_, secret)) if secret.trim_ascii().is_empty() => {
            Finding::error(key, format!("{shown} is empty: write the secret into it"))
        }
        Ok((found, _)) if found.mode() & 0o077 != 0 => {
            Finding::warning(key, format!("{shown} can be read by others: chmod 600 it"))
        }
        Ok(_) => Finding::good(key, format!("{shown} is readable by its owner only")),
    }
}

pub(crate) fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}
