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

use super::ledger::{self, Digest, Entry};
use super::sender::Outcome;

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
    #[error("{file} cannot be read: name a whole file, plain or packed with gzip or zstd")]
    Read { file: String, source: io::Error },
    #[error(
        "{file}, line {line}, is an event in the format `{format}`: verify the lines of a sink with the format `raw`"
    )]
    Format { file: String, line: u64, format: &'static str },
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
mod tests {
    use std::fs;
    use std::io::Write;
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::simulator::ledger::{Ledger, digest};

    /// A ledger and files, in a folder that lives as long.
    struct Run {
        folder: TempDir,
        settings: Settings,
    }

    impl Run {
        /// With a sending of each body.
        fn of(sent: &[(Outcome, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let settings = Settings {
                ledger: folder.path().join("ledger"),
                against: Vec::new(),
                allow_repeats: false,
                keep: usize::MAX,
            };
            let mut ledger = Ledger::create(&settings.ledger).unwrap();
            for &(outcome, body) in sent {
                // As it was before it was malformed.
                let event_id = event_id(body.as_bytes()).map_or_else(|| "malformed".to_owned(), Cow::into_owned);
                let latency = Duration::from_millis(1);
                let entry = Entry { event_id, outcome, attempts: 1, latency, sha256: digest(body.as_bytes()) };
                ledger.note(&entry).unwrap();
            }
            ledger.finish().unwrap();
            Self { folder, settings }
        }

        /// And one more file.
        fn against(mut self, bytes: &[u8]) -> Self {
            let path = self.folder.path().join(self.settings.against.len().to_string());
            fs::write(&path, bytes).unwrap();
            self.settings.against.push(path);
            self
        }

        fn verify(&self) -> Report {
            verify(&self.settings).unwrap()
        }
    }

    const STORED: [(Outcome, &str); 2] =
        [(Outcome::Stored, r#"{"event_id":"a"}"#), (Outcome::Stored, r#"{"event_id":"b"}"#)];

    fn told(report: &Report) -> Vec<(Kind, Option<&str>)> {
        report.findings.iter().map(|finding| (finding.kind, finding.event_id.as_deref())).collect()
    }

    #[test]
    fn each_kind_of_finding_has_its_word() {
        let good = "{\"event_id\":\"a\"}\n{\"event_id\":\"b\"}\n";
        for (file, allow_repeats, expected, is_good) in [
            (good.to_owned(), false, vec![], true),
            // Of a file that is still being written.
            (good.trim_end().to_owned(), false, vec![], true),
            (good[17..].to_owned(), true, vec![(Kind::Missing, Some("a"))], false),
            (String::new(), true, vec![(Kind::Missing, Some("a")), (Kind::Missing, Some("b"))], false),
            (good.replace("\"b\"", "\"b\" "), true, vec![(Kind::Altered, Some("b"))], false),
            (good.replace("\"b\"}", "\"b\"}\r"), true, vec![(Kind::Altered, Some("b"))], false),
            (good.replace('b', "c"), true, vec![(Kind::Unknown, Some("c")), (Kind::Missing, Some("b"))], false),
            (good.repeat(3), false, vec![(Kind::Twice, Some("a")), (Kind::Twice, Some("b"))], false),
            (good.repeat(3), true, vec![], true),
            (good.to_owned() + "{\"event", false, vec![(Kind::Unreadable, None)], false),
            (good.to_owned() + "{\"event", true, vec![(Kind::Unreadable, None)], true),
            (good.to_owned() + "[\"a\"]\n", false, vec![(Kind::Unreadable, None)], false),
            (good.to_owned() + "{\"event_id\":1}\n", false, vec![(Kind::Unreadable, None)], false),
            (good.replace("\"b\"}", "\"b\""), true, vec![(Kind::Unreadable, None), (Kind::Missing, Some("b"))], false),
        ] {
            let mut run = Run::of(&STORED).against(file.as_bytes());
            run.settings.allow_repeats = allow_repeats;
            let report = run.verify();
            assert_eq!((told(&report), report.good), (expected, is_good), "{file}");
        }
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_as_it_was_sent() {
        for outcome in [Outcome::Rejected, Outcome::Dropped] {
            let run = || Run::of(&[(outcome, r#"{"event_id":"a"}"#)]);
            assert!(run().against(b"").verify().good);
            assert!(run().against(b"{\"event_id\":\"a\"}\n").verify().good);
            assert_eq!(told(&run().against(b"{ \"event_id\":\"a\"}\n").verify()), [(Kind::Altered, Some("a"))]);
        }
    }

    #[test]
    fn of_sendings_with_other_bytes_the_one_that_was_stored_counts() {
        let (first, second) = (r#"{"event_id":"a"}"#, r#"{"event_id":"a","b":1}"#);
        for (sent, body, is_good) in [
            ([(Outcome::Stored, first), (Outcome::Duplicate, second)], first, true),
            ([(Outcome::Stored, first), (Outcome::Duplicate, second)], second, false),
            ([(Outcome::Dropped, first), (Outcome::Stored, second)], first, false),
            ([(Outcome::Dropped, first), (Outcome::Stored, second)], second, true),
            // The answer to the first was lost.
            ([(Outcome::Dropped, first), (Outcome::Duplicate, second)], first, true),
            ([(Outcome::Stored, first), (Outcome::Stored, first)], first, true),
        ] {
            let report = Run::of(&sent).against(body.as_bytes()).verify();
            assert_eq!((report.events, report.acknowledged, report.good), (1, 1, is_good), "{sent:?} as {body}");
            let report = Run::of(&sent).against(b"").verify();
            assert_eq!(told(&report), [(Kind::Missing, Some("a"))], "{sent:?}");
        }
    }

    #[test]
    fn ids_are_compared_as_decoded_and_lines_as_they_stand() {
        let body = "{\"x\":\n1,\"event_id\":\"\\u0061\"}";
        let run = |line: &str| Run::of(&[(Outcome::Stored, body)]).against(line.as_bytes()).verify();
        assert!(run(&body.replace('\n', " ")).good);
        assert_eq!(told(&run("{\"x\": 1,\"event_id\":\"a\"}\n")), [(Kind::Altered, Some("a"))]);
    }

    #[test]
    fn files_are_taken_together_and_unpacked() {
        let line = |id: &str| format!("{{\"event_id\":\"{id}\"}}\n");
        let gzip = |text: &str| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
        for pack in [&gzip as &dyn Fn(&str) -> Vec<u8>, &zstd] {
            let packed = [pack(&line("a")), pack(&line("b"))].concat();
            assert!(Run::of(&STORED).against(&packed).against(&pack("")).verify().good);
            let report = Run::of(&STORED).against(line("a").as_bytes()).against(&packed).verify();
            let Some(Finding { kind: Kind::Twice, place: Some(place), .. }) = report.findings.first() else {
                panic!("{report:?}")
            };
            assert!(place.file.ends_with("/1") && place.line == 1, "{place:?}");
            let cut = Run::of(&STORED).against(&packed[..packed.len() - 3]);
            assert!(matches!(verify(&cut.settings), Err(Error::Read { .. })));
        }
    }

    #[test]
    fn what_was_sent_without_an_id_is_known_by_its_bytes() {
        for body in
            [r#"{"name":"a"}"#, r#"{"event_id":"a","event_id":"b"}"#, r#"[{"event_id":"a"}]"#, "{\"event_id\":", "x"]
        {
            let run = Run::of(&[(Outcome::Stored, body)]);
            assert_eq!(told(&run.against(b"").verify()), [(Kind::Missing, Some("malformed"))]);
            let delivered = Run::of(&[(Outcome::Stored, body)]).against(format!("{body}\n").as_bytes());
            assert!(delivered.verify().good, "{body}");
            let twice = delivered.against(body.as_bytes()).verify();
            assert_eq!(told(&twice), [(Kind::Twice, Some("malformed"))]);
            let other = Run::of(&[(Outcome::Rejected, body)]).against(b"y\n");
            assert_eq!(told(&other.verify()), [(Kind::Unreadable, None)]);
        }
    }

    #[test]
    fn other_formats_are_refused_by_name() {
        for (line, expected) in [
            (r#"{"received_at":"","peer":"","endpoint":"","sequence":1,"event":{"event_id":"a"}}"#, "envelope"),
            (r#"{"specversion":"1.0","id":"a","data":{"event_id":"a"}}"#, "cloudevents"),
        ] {
            let run = Run::of(&STORED).against(line.as_bytes());
            let error = verify(&run.settings).unwrap_err();
            assert!(matches!(error, Error::Format { line: 1, format, .. } if format == expected), "{error}");
        }
    }

    #[test]
    fn a_person_is_shown_the_first_ones_and_nothing_that_steers() {
        let lines: String = (0..30).map(|id| format!("{{\"event_id\":\"{id}\\n\\u001b\\u009b\\u202e\"}}\n")).collect();
        let mut run = Run::of(&STORED).against(lines.as_bytes());
        run.settings.keep = 20;
        let text = run.verify().to_string();
        let place = run.settings.against[0].display();
        assert!(
            text.starts_with(&format!("unknown     0\\n\\u{{1b}}\\u{{9b}}\\u{{202e}}  {place}, line 1\n")),
            "{text}"
        );
        assert_eq!(text.lines().count(), 20 + 2 + 1 + 1, "{text}");
        assert!(text.contains("\nunknown     and 10 more\n") && text.contains("\nmissing     b\n"), "{text}");
        let counts = "missing 2, altered 0, unknown 30, twice 0, unreadable 0";
        assert!(text.ends_with(counts), "{text}");
    }
}
