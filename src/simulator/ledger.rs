//! The ledger of a run: a JSON line for each sending, by which what arrived can be verified.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};

use super::sender::Outcome;

#[derive(Debug, thiserror::Error)]
#[error("the ledger {} cannot be written: is there room, and may you write there?", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: BufWriter<File>,
}

/// What became of one sending.
#[derive(Debug, Clone)]
pub struct Entry {
    pub event_id: String,
    pub outcome: Outcome,
    pub attempts: u32,
    pub latency: Duration,
    pub sha256: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest([u8; 32]);

impl Ledger {
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(|source| Error { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    pub fn note(&mut self, entry: &Entry) -> Result<(), Error> {
        let outcome = match entry.outcome {
            Outcome::Stored => "stored",
            Outcome::Duplicate => "duplicate",
            Outcome::Rejected => "rejected",
            Outcome::Dropped => "dropped",
        };
        let line = serde_json::json!({
            "event_id": entry.event_id,
            "outcome": outcome,
            "attempts": entry.attempts,
            "latency_us": u64::try_from(entry.latency.as_micros()).unwrap_or(u64::MAX),
            "sha256": entry.sha256.to_string(),
        });
        writeln!(self.file, "{line}").map_err(|source| Error { path: self.path.clone(), source })
    }

    pub fn finish(mut self) -> Result<(), Error> {
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        written.map_err(|source| Error { path: self.path, source })
    }
}

/// SHA-256 of the bytes as a raw line shows them: line breaks are spaces.
#[must_use]
pub fn digest(body: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    for (index, line) in body.split(|byte| matches!(byte, b'\r' | b'\n')).enumerate() {
        context.update(if index > 0 { b" " } else { b"" });
        context.update(line);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    Digest(digest)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
