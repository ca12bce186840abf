//! The ledger of a run: what became of each sending, and a digest of the bytes it had.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{self, SHA256};
use serde::{Deserialize, Serialize};

/// At most so much of a run is lost when it is killed, as long as events are being sent.
const FLUSH_AFTER: Duration = Duration::from_secs(1);

/// An entry is shorter: ids have at most 256 bytes.
const MAX_LINE: u64 = 4096;

/// One line for each sending: an event that is sent again on purpose has several.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: BufWriter<File>,
    flushed: Instant,
}

/// What became of one sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// As decoded from JSON.
    pub event_id: String,
    pub outcome: Outcome,
    /// POSTs tried, at least 1.
    pub attempts: u32,
    /// From the moment the event was due; in the file in whole microseconds.
    pub latency: Duration,
    /// Of the body, see [`digest`].
    pub sha256: Digest,
}

/// What the last attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// 200, which is all ASAPP looks at.
    Stored,
    /// 200, and the answer's `status` says `duplicate`.
    Duplicate,
    /// Answered with a 4xx at the last attempt.
    Rejected,
    /// Anything else at the last attempt, or the run was broken off.
    Dropped,
}

/// SHA-256; written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the ledger {} cannot be made", .path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("{} is there already and is no ledger: name another file, or delete it", .path.display())]
    Foreign { path: PathBuf },
    #[error("the ledger {} cannot be written to", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the ledger {} cannot be read{}", .path.display(), remedy(.source))]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the ledger {}, line {line}, column {column}, is no entry: name a file that `simulate --ledger` has written; \
         when that was killed, delete the last line if it is broken off", .path.display()
    )]
    Entry { path: PathBuf, line: u64, column: usize },
}

/// An entry as it stands in the file.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    event_id: Cow<'a, str>,
    outcome: Outcome,
    attempts: u32,
    latency_us: u64,
    #[serde(borrow)]
    sha256: Cow<'a, str>,
}

impl Ledger {
    /// An empty file; a ledger that was in it before is gone.
    ///
    /// # Errors
    /// The file cannot be made, or holds something else than a ledger.
    pub fn create(path: &Path) -> Result<Self, Error> {
        if !is_free(path) {
            return Err(Error::Foreign { path: path.to_owned() });
        }
        match File::create(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file: BufWriter::new(file), flushed: Instant::now() }),
            Err(source) => Err(Error::Create { path: path.to_owned(), source }),
        }
    }

    /// # Errors
    /// The file cannot be written to: it may end in half a line.
    pub fn note(&mut self, entry: &Entry) -> Result<(), Error> {
        let line = Line {
            event_id: Cow::Borrowed(&entry.event_id),
            outcome: entry.outcome,
            attempts: entry.attempts,
            latency_us: u64::try_from(entry.latency.as_micros()).unwrap_or(u64::MAX),
            sha256: Cow::Owned(entry.sha256.to_string()),
        };
        let written = serde_json::to_writer(&mut self.file, &line).map_err(io::Error::from);
        let flushed = written.and_then(|()| self.file.write_all(b"\n")).and_then(|()| {
            if self.flushed.elapsed() < FLUSH_AFTER {
                return Ok(());
            }
            self.flushed = Instant::now();
            self.file.flush()
        });
        flushed.map_err(|source| self.failed(source))
    }

    /// Back when the file has all of it.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn finish(mut self) -> Result<(), Error> {
        self.file.flush().map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => ": name a file that `simulate --ledger` has written",
        _ => "",
    }
}

/// Whether nothing is lost when a ledger takes the place of what is there: another ledger, nothing, or no file at all.
fn is_free(path: &Path) -> bool {
    let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0);
    let begins_as_one = || -> io::Result<bool> {
        let mut first = Vec::new();
        BufReader::new(File::open(path)?).take(MAX_LINE).read_until(b'\n', &mut first)?;
        Ok(Entry::parse(&first).is_ok())
    };
    !is_file || begins_as_one().unwrap_or(false)
}

/// Hands each entry to `each`, in order.
pub(super) fn read(path: &Path, mut each: impl FnMut(Entry)) -> Result<(), Error> {
    let unreadable = |source| Error::Read { path: path.to_owned(), source };
    let mut file = BufReader::with_capacity(1 << 20, File::open(path).map_err(unreadable)?);
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        if file.read_until(b'\n', &mut text).map_err(unreadable)? == 0 {
            break;
        }
        each(Entry::parse(&text).map_err(|column| Error::Entry { path: path.to_owned(), line, column })?);
    }
    Ok(())
}

impl Entry {
    /// # Errors
    /// The column at which it is no entry.
    fn parse(text: &[u8]) -> Result<Self, usize> {
        // What serde says may quote the line.
        let line: Line<'_> = serde_json::from_slice(text).map_err(|error| error.column())?;
        Ok(Self {
            event_id: line.event_id.into_owned(),
            outcome: line.outcome,
            attempts: line.attempts,
            latency: Duration::from_micros(line.latency_us),
            sha256: Digest::parse(&line.sha256).ok_or(text.len())?,
        })
    }
}

/// Of the bytes as a `raw` line shows them: CR and LF, which in JSON stand between tokens only, are spaces there.
/// Worked out here, not by the sinks' own code, which a ledger is there to catch.
#[must_use]
pub fn digest(body: &[u8]) -> Digest {
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    if !body.iter().any(is_end) {
        return Digest::of_line(body);
    }
    Digest::of_line(&body.iter().map(|byte| if is_end(byte) { b' ' } else { *byte }).collect::<Vec<_>>())
}

impl Digest {
    /// Of a `raw` line without its newline.
    pub(super) fn of_line(line: &[u8]) -> Self {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest::digest(&SHA256, line).as_ref());
        Self(bytes)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        if pairs.len() != bytes.len() {
            return None;
        }
        let half = |digit: u8| char::from(digit).to_digit(16).and_then(|half| u8::try_from(half).ok());
        for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = half(high)? << 4 | half(low)?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_noted_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        fs::write(&path, "no ledger").unwrap();
        assert!(matches!(Ledger::create(&path), Err(Error::Foreign { .. })));
        fs::write(&path, "").unwrap();
        let outcomes = [Outcome::Stored, Outcome::Duplicate, Outcome::Rejected, Outcome::Dropped];
        let entries = outcomes.map(|outcome| Entry {
            event_id: "é \"\n\u{9b}".to_owned(),
            outcome,
            attempts: 3,
            latency: Duration::from_micros(1_234_567),
            sha256: digest(b"{}"),
        });
        let mut ledger = Ledger::create(&path).unwrap();
        entries.iter().for_each(|entry| ledger.note(entry).unwrap());
        ledger.finish().unwrap();
        let mut found = Vec::new();
        read(&path, |entry| found.push(entry)).unwrap();
        assert_eq!(found, entries);

        let text = fs::read_to_string(&path).unwrap();
        let words = r#","outcome":"stored","attempts":3,"latency_us":1234567,"sha256":"44136fa355b3678a"#;
        assert!(text.lines().next().unwrap().contains(words), "{text}");
        fs::write(&path, &text[..text.len() - 5]).unwrap();
        let broken_off = read(&path, |_| ()).unwrap_err();
        assert!(matches!(broken_off, Error::Entry { line: 4, .. }), "{broken_off}");
    }

    #[test]
    fn what_is_no_entry_is_told() {
        let entry = r#"{"event_id":"a","outcome":"stored","attempts":1,"latency_us":1,"sha256":"DIGEST"}"#;
        let with = |digest: &str| entry.replace("DIGEST", digest);
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(Entry::parse(with(&good).as_bytes()).unwrap().sha256.to_string(), good);
        for text in [
            String::new(),
            "{}".to_owned(),
            with(&good[1..]),
            with(&good[2..]),
            with(&good.replace('a', "g")),
            with(&good.replace("01", "é")),
            with(&good).replace("stored", "lost"),
        ] {
            assert!(Entry::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_digest_is_that_of_the_line() {
        assert_eq!(digest(b"{\r\n \"a\":\n1}\n"), digest(b"{   \"a\": 1} "));
        assert_ne!(digest(b"{\n}"), digest(b"{}"));
        assert_eq!(digest(b"").to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
