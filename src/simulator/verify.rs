//! Holds what a receiver has delivered against the ledger of what it was sent.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::ledger::{self, Digest, Entry, Outcome};

/// What to verify, and how strictly.
#[derive(Debug, Clone)]
pub struct Settings {
    pub ledger: PathBuf,
    /// Files of `raw` lines in any order, gzip and zstd unpacked; `-` is standard input.
    pub against: Vec<PathBuf>,
    /// For runs with crashes, which repeat lines and break them off: both are told, and are no failure.
    pub allow_repeats: bool,
    /// How many findings of each kind are kept; all are counted.
    pub keep: usize,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether the files are what the ledger says.
    pub good: bool,
    /// Ids in the ledger, and those that were acknowledged: with `stored` or `duplicate`, at least once.
    pub events: u64,
    pub acknowledged: u64,
    /// In all files.
    pub lines: u64,
    /// Lines whose id had come before.
    pub repeated: u64,
    pub counts: Counts,
    /// In the order in which they were found, those about what is missing last.
    pub findings: Vec<Finding>,
}

/// Findings of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Acknowledged, and in no line.
    pub missing: u64,
    /// Lines with other bytes than were sent.
    pub altered: u64,
    /// Lines with an id that the ledger does not have.
    pub unknown: u64,
    /// Ids that came more than once; 0 when that is allowed.
    pub twice: u64,
    /// Lines that are no JSON object with an `event_id`, such as one that broke off, and were not sent so.
    pub unreadable: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Missing,
    Altered,
    Unknown,
    Twice,
    Unreadable,
}

/// A line, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: String,
    pub line: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    #[error("{file} cannot be read{}", remedy(.source))]
    Read { file: String, source: io::Error },
    #[error(
        "{file}, line {line}, is an event in the format `{format}`: verify the lines of a sink with the format `raw`"
    )]
    Format { file: String, line: u64, format: &'static str },
}

/// An error of the system says all there is to say; one without a number comes from unpacking.
fn remedy(error: &io::Error) -> &'static str {
    match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => ": name a file that is there",
        (_, Some(_)) => "",
        (_, None) => ": name a whole file, plain or packed with gzip or zstd",
    }
}

/// Reads the ledger, then each file once. Takes about 100 bytes of memory for each id in the ledger, and once more where a
/// line has no id.
///
/// # Errors
/// What cannot be read, or is no ledger or no `raw` lines; what is wrong with the events is told in the [`Report`].
pub fn verify(settings: &Settings) -> Result<Report, Error> {
    let mut sent = Sent::default();
    ledger::read(&settings.ledger, |entry| sent.note(&entry))?;
    let mut check = Check::new(sent, settings);
    for path in &settings.against {
        check.file(path)?;
    }
    Ok(check.finish())
}

/// The files, being held against the ledger.
struct Check<'a> {
    sent: Sent,
    settings: &'a Settings,
    lines: u64,
    repeated: u64,
    counts: Counts,
    findings: Vec<Finding>,
}

impl<'a> Check<'a> {
    fn new(sent: Sent, settings: &'a Settings) -> Self {
        Self { sent, settings, lines: 0, repeated: 0, counts: Counts::default(), findings: Vec::new() }
    }

    fn file(&mut self, path: &Path) -> Result<(), Error> {
        let file = if is_stdin(path) { "stdin".to_owned() } else { path.display().to_string() };
        let failed = |source| Error::Read { file: file.clone(), source };
        let mut lines = open(path).map_err(failed)?;
        let mut place = Place { file: file.clone(), line: 0 };
        let mut text = Vec::new();
        while lines.read_until(b'\n', &mut text).map_err(failed)? > 0 {
            place.line += 1;
            self.line(text.strip_suffix(b"\n").unwrap_or(&text), &place)?;
            text.clear();
        }
        Ok(())
    }

    fn line(&mut self, text: &[u8], place: &Place) -> Result<(), Error> {
        self.lines += 1;
        let sha256 = Digest::of_line(text);
        let index = match event_id(text) {
            Some(id) => match self.sent.find(&id) {
                Some(index) => index,
                None => {
                    self.found(Kind::Unknown, Some(&id), Some(place));
                    return Ok(());
                }
            },
            None => match self.sent.find_bytes(sha256) {
                Some(index) => index,
                None => {
                    if let Some(format) = other_format(text) {
                        return Err(Error::Format { file: place.file.clone(), line: place.line, format });
                    }
                    self.found(Kind::Unreadable, None, Some(place));
                    return Ok(());
                }
            },
        };
        if !self.sent.has(index, sha256) {
            self.found_of(Kind::Altered, index, place);
        }
        let seen = &mut self.sent.events[index].seen;
        match seen {
            Seen::Never => *seen = Seen::Once,
            Seen::Once => {
                *seen = Seen::Again;
                self.repeated += 1;
                if !self.settings.allow_repeats {
                    self.found_of(Kind::Twice, index, place);
                }
            }
            Seen::Again => self.repeated += 1,
        }
        Ok(())
    }

    fn found_of(&mut self, kind: Kind, index: usize, place: &Place) {
        let id = self.sent.id(index).to_owned();
        self.found(kind, Some(&id), Some(place));
    }

    fn found(&mut self, kind: Kind, event_id: Option<&str>, place: Option<&Place>) {
        let count = self.counts.of_mut(kind);
        if usize::try_from(*count).is_ok_and(|count| count < self.settings.keep) {
            self.findings.push(Finding { kind, event_id: event_id.map(ToOwned::to_owned), place: place.cloned() });
        }
        *count += 1;
    }

    fn finish(mut self) -> Report {
        let sent = std::mem::take(&mut self.sent);
        for (index, _) in sent.events.iter().enumerate().filter(|(_, event)| event.is_missing()) {
            self.found(Kind::Missing, Some(sent.id(index)), None);
        }
        let Counts { missing, altered, unknown, twice, unreadable } = self.counts;
        let broken_off = if self.settings.allow_repeats { 0 } else { unreadable };
        Report {
            good: [missing, altered, unknown, twice, broken_off] == [0; 5],
            events: sent.events.len() as u64,
            acknowledged: sent.events.iter().filter(|event| event.acknowledged).count() as u64,
            lines: self.lines,
            repeated: self.repeated,
            counts: self.counts,
            findings: self.findings,
        }
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Unpacked, whatever it is called.
fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    const BUFFER: usize = 1 << 20;
    let mut file: Box<dyn Read> =
        if is_stdin(path) { Box::new(io::stdin().lock()) } else { Box::new(File::open(path)?) };
    let mut start = Vec::new();
    file.by_ref().take(4).read_to_end(&mut start)?;
    let packed = BufReader::with_capacity(BUFFER, Cursor::new(start.clone()).chain(file));
    Ok(match *start {
        [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(packed))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(BufReader::with_capacity(BUFFER, zstd::Decoder::with_buffer(packed)?)),
        _ => Box::new(packed),
    })
}

/// As decoded from JSON.
fn event_id(line: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        event_id: Cow<'a, str>,
    }
    is_object(line).then(|| serde_json::from_slice::<Event<'_>>(line).ok()).flatten().map(|event| event.event_id)
}

/// What the receiver's sinks can write instead.
fn other_format(line: &[u8]) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Shaped {
        sequence: Option<IgnoredAny>,
        event: Option<IgnoredAny>,
        specversion: Option<IgnoredAny>,
    }
    let shaped = is_object(line).then(|| serde_json::from_slice::<Shaped>(line).ok()).flatten()?;
    match shaped {
        Shaped { specversion: Some(_), .. } => Some("cloudevents"),
        Shaped { sequence: Some(_), event: Some(_), .. } => Some("envelope"),
        Shaped { .. } => None,
    }
}

/// To serde an array is as good.
fn is_object(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"{")
}

/// Every id of the ledger, once.
#[derive(Default)]
struct Sent {
    /// One behind the other.
    ids: String,
    /// In the ledger's order.
    events: Vec<Event>,
    /// Indices of `events`, by id.
    by_id: HashTable<usize>,
    /// Further sendings with other bytes than the first.
    others: HashMap<usize, Vec<Sending>>,
    /// Indices of `events`, by what was sent; from the first line on that has no id.
    by_bytes: Option<HashMap<Digest, usize>>,
    hasher: RandomState,
}

struct Event {
    /// Where its id begins in `ids`; it ends where the next one begins.
    id: usize,
    first: Sending,
    acknowledged: bool,
    seen: Seen,
}

/// All sendings of an id that had the same bytes.
struct Sending {
    sha256: Digest,
    /// Whether one of them was answered with `stored`.
    stored: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Never,
    Once,
    Again,
}

impl Sent {
    fn note(&mut self, entry: &Entry) {
        let sending = Sending { sha256: entry.sha256, stored: entry.outcome == Outcome::Stored };
        let acknowledged = matches!(entry.outcome, Outcome::Stored | Outcome::Duplicate);
        let Some(index) = self.find(&entry.event_id) else {
            return self.add(&entry.event_id, sending, acknowledged);
        };
        let event = &mut self.events[index];
        event.acknowledged |= acknowledged;
        if event.first.sha256 == sending.sha256 {
            event.first.stored |= sending.stored;
            return;
        }
        let others = self.others.entry(index).or_default();
        match others.iter_mut().find(|other| other.sha256 == sending.sha256) {
            Some(other) => other.stored |= sending.stored,
            None => others.push(sending),
        }
    }

    fn add(&mut self, id: &str, first: Sending, acknowledged: bool) {
        let index = self.events.len();
        self.events.push(Event { id: self.ids.len(), first, acknowledged, seen: Seen::Never });
        self.ids.push_str(id);
        let Self { ids, events, by_id, hasher, .. } = self;
        by_id.insert_unique(hasher.hash_one(id), index, |&index| hasher.hash_one(id_of(ids, events, index)));
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.by_id.find(self.hasher.hash_one(id), |&index| self.id(index) == id).copied()
    }

    /// What was sent malformed has no id to find it by, and a lenient receiver takes it.
    fn find_bytes(&mut self, sha256: Digest) -> Option<usize> {
        let Self { events, others, by_bytes, .. } = self;
        let by_bytes = by_bytes.get_or_insert_with(|| {
            let first = events.iter().enumerate().map(|(index, event)| (event.first.sha256, index));
            let others =
                others.iter().flat_map(|(&index, others)| others.iter().map(move |other| (other.sha256, index)));
            first.chain(others).collect()
        });
        by_bytes.get(&sha256).copied()
    }

    fn id(&self, index: usize) -> &str {
        id_of(&self.ids, &self.events, index)
    }

    /// Whether an event was sent with these bytes. What was answered with `stored` is what has to be there; without such
    /// an answer, which of the sendings came through is not known.
    fn has(&self, index: usize, sha256: Digest) -> bool {
        let others = self.others.get(&index).map(Vec::as_slice).unwrap_or_default();
        let sendings = || others.iter().chain([&self.events[index].first]);
        let any_stored = sendings().any(|sending| sending.stored);
        sendings().any(|sending| sending.sha256 == sha256 && (sending.stored || !any_stored))
    }
}

fn id_of<'a>(ids: &'a str, events: &[Event], index: usize) -> &'a str {
    let end = events.get(index + 1).map_or(ids.len(), |next| next.id);
    &ids[events[index].id..end]
}

impl Event {
    fn is_missing(&self) -> bool {
        self.acknowledged && self.seen == Seen::Never
    }
}

impl Counts {
    fn of_mut(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Missing => &mut self.missing,
            Kind::Altered => &mut self.altered,
            Kind::Unknown => &mut self.unknown,
            Kind::Twice => &mut self.twice,
            Kind::Unreadable => &mut self.unreadable,
        }
    }
}

/// The findings, a line each, how many there are beyond those that were kept, and the counts.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.counts;
        for finding in &self.findings {
            *left.of_mut(finding.kind) -= 1;
            writeln!(f, "{finding}")?;
        }
        for kind in [Kind::Altered, Kind::Unknown, Kind::Twice, Kind::Unreadable, Kind::Missing] {
            let more = *left.of_mut(kind);
            if more > 0 {
                writeln!(f, "{kind:<10}  and {more} more")?;
            }
        }
        let Self { events, acknowledged, lines, repeated, counts, .. } = self;
        let Counts { missing, altered, unknown, twice, unreadable } = counts;
        write!(
            f,
            "{acknowledged} of {events} events acknowledged, {lines} lines, {repeated} of them repeated: missing \
             {missing}, altered {altered}, unknown {unknown}, twice {twice}, unreadable {unreadable}"
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<10}", self.kind)?;
        if let Some(id) = &self.event_id {
            // It may hold anything.
            write!(f, "  {}", id.escape_debug())?;
        }
        match &self.place {
            Some(Place { file, line }) => write!(f, "  {}, line {line}", file.escape_debug()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Missing => "missing",
            Self::Altered => "altered",
            Self::Unknown => "unknown",
            Self::Twice => "twice",
            Self::Unreadable => "unreadable",
        })
    }
}

#[cfg(test)]
mod tests;
