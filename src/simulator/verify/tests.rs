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
    assert!(text.starts_with(&format!("unknown     0\\n\\u{{1b}}\\u{{9b}}\\u{{202e}}  {place}, line 1\n")), "{text}");
    assert_eq!(text.lines().count(), 20 + 2 + 1 + 1, "{text}");
    assert!(text.contains("\nunknown     and 10 more\n") && text.contains("\nmissing     b\n"), "{text}");
    let counts = "missing 2, altered 0, unknown 30, twice 0, unreadable 0";
    assert!(text.ends_with(counts), "{text}");
}
