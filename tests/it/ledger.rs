//! What `simulate --verify` finds in what a receiver wrote, and what it lets pass.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::pki::PKI;
use crate::harness::programs::json_of;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::simulator::{simulate, verification, verify};
use crate::harness::wait_for;

const EVENTS: usize = 200;

/// A run that went well: its ledger and what came out, line by line, to be changed by a test.
struct Run {
    folder: TempDir,
    ledger: Vec<Value>,
    lines: Vec<String>,
}

impl Run {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let (ledger, out) = (folder.path().join("ledger"), folder.path().join("events"));
        let receiver = to_file(&out).start();
        send(&receiver, &ledger);
        receiver.finish();
        let ledger = read(&ledger).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        Self { folder, ledger, lines: read(&out) }
    }

    fn id(&self, line: usize) -> &str {
        self.ledger[line]["event_id"].as_str().unwrap()
    }

    /// The line of an event in what came out.
    fn line(&mut self, id: &str) -> &mut String {
        self.lines.iter_mut().find(|line| line.contains(id)).unwrap()
    }

    fn remove(&mut self, id: &str) {
        self.lines.retain(|line| !line.contains(id));
    }

    /// Lets an event have come to something else.
    fn settle(&mut self, id: &str, outcome: &str) {
        let entry = self.ledger.iter_mut().find(|entry| entry["event_id"] == id).unwrap();
        entry["outcome"] = outcome.into();
    }

    fn write(&self) -> (PathBuf, PathBuf) {
        let (ledger, out) = (self.folder.path().join("ledger"), self.folder.path().join("events"));
        fs::write(&ledger, self.ledger.iter().map(|entry| format!("{entry}\n")).collect::<String>()).unwrap();
        fs::write(&out, self.lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        (ledger, out)
    }

    fn verify(&self, arguments: &[&str]) -> Output {
        let (ledger, out) = self.write();
        verify(&ledger, &[out], arguments)
    }

    #[track_caller]
    fn passes(&self, arguments: &[&str]) {
        let output = self.verify(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }

    /// Exactly this is told, each finding by its word and id, to people and to programs.
    #[track_caller]
    fn fails(&self, arguments: &[&str], findings: &[(&str, &str)]) {
        let output = self.verify(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let told = text.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
        let mut told: Vec<_> = told.map(|words| (words[0], words[1])).collect();
        let summary = told.pop().unwrap();
        assert_eq!(told, findings, "{text}");
        assert!(summary.1 == "of" && text.trim_end().lines().last().unwrap().contains("acknowledged"), "{text}");
        let report = json_of(&self.verify(&[arguments, &["--json"]].concat()));
        assert_eq!(report["good"], false);
        let listed = report["findings"].as_array().unwrap().iter();
        let word = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let listed: Vec<_> = listed.map(|finding| (word(finding, "kind"), word(finding, "event_id"))).collect();
        let expected = findings.iter().filter(|(kind, _)| *kind != "unreadable");
        let expected: Vec<_> = expected.map(|&(kind, id)| (kind.to_owned(), id.to_owned())).collect();
        let listed: Vec<_> = listed.into_iter().filter(|(kind, _)| kind != "unreadable").collect();
        assert_eq!(listed, expected);
        for (kind, count) in report["counts"].as_object().unwrap() {
            assert_eq!(*count, findings.iter().filter(|finding| finding.0 == kind).count(), "{kind}: {report}");
        }
    }
}

/// A receiver with one sink, `out`, to this file.
fn to_file(path: &PathBuf) -> Setup {
    Setup::new().set("sinks.out.type", "file").set("sinks.out.path", path)
}

/// Sends events and waits until `out` has them.
#[track_caller]
fn send(receiver: &Receiver, ledger: &Path) {
    let url = format!("https://localhost:{}/events", receiver.events.port());
    let mut command = simulate(&url, &PKI.client);
    command
        .args(["--rate", "500", "--events", &EVENTS.to_string(), "--seed", "7", "--timeout-ms", "60000"])
        .arg("--ledger")
        .arg(ledger);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(json_of(&output)["stored"], EVENTS, "{output:?}");
    receiver.sink_settled("out");
}

fn read(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_loss_a_repetition_and_an_alteration_are_found() {
    let good = Run::new();
    good.passes(&[]);
    assert_eq!(good.ledger.len(), EVENTS);
    let ids: Vec<String> = (0..EVENTS).map(|line| good.id(line).to_owned()).collect();
    let [first, second, third, ..] = &ids[..] else { panic!("no events") };
    let changed = |change: &dyn Fn(&mut Run)| {
        let mut run = Run { folder: TempDir::new().unwrap(), ledger: good.ledger.clone(), lines: good.lines.clone() };
        change(&mut run);
        run
    };

    changed(&|run| run.remove(second)).fails(&["--allow-repeats"], &[("missing", second)]);
    let twice = changed(&|run| run.lines.push(run.lines.iter().find(|line| line.contains(third)).unwrap().clone()));
    twice.fails(&[], &[("twice", third)]);
    twice.passes(&["--allow-repeats"]);

    let alterations: [(&str, &str); 3] = [("\"v1.", "\"v2."), ("\":", "\" :"), ("}", "} ")];
    for (from, to) in alterations {
        let altered = changed(&|run| {
            let line = run.line(first);
            assert!(line.contains(from), "{line}");
            *line = line.replacen(from, to, 1);
        });
        altered.fails(&["--allow-repeats"], &[("altered", first)]);
    }
    // The id itself.
    let stranger = first.replace(|digit: char| digit.is_ascii_digit(), "g");
    let altered = changed(&|run| *run.line(first) = run.line(first).replace(first, &stranger));
    altered.fails(&[], &[("unknown", &stranger), ("missing", first)]);

    let stranger = r#"{"event_id":"of somebody else"}"#.replace(' ', "_");
    changed(&|run| run.lines.insert(0, stranger.clone()))
        .fails(&["--allow-repeats"], &[("unknown", "of_somebody_else")]);

    // As a crash leaves it: broken off, ended, and written again.
    let broken_off = changed(&|run| {
        let half = run.line(first)[..40].to_owned();
        run.lines.insert(0, half);
    });
    let file = broken_off.folder.path().join("events").display().to_string();
    broken_off.fails(&[], &[("unreadable", &format!("{file},"))]);
    broken_off.passes(&["--allow-repeats"]);
    let lost = changed(&|run| run.line(first).truncate(40));
    let file = lost.folder.path().join("events").display().to_string();
    lost.fails(&["--allow-repeats"], &[("unreadable", &format!("{file},")), ("missing", first)]);

    for outcome in ["dropped", "rejected"] {
        let mut run = changed(&|run| run.settle(second, outcome));
        run.passes(&[]);
        *run.line(second) += " ";
        run.fails(&[], &[("altered", second)]);
        run.remove(second);
        run.passes(&[]);
    }
    // Acknowledged is acknowledged, however it was told.
    changed(&|run| {
        run.settle(second, "duplicate");
        run.remove(second);
    })
    .fails(&[], &[("missing", second)]);
}

#[test]
fn rotated_files_are_read_in_any_order() {
    for (compress, suffix) in [("gzip", ".gz"), ("zstd", ".zst")] {
        let folder = TempDir::new().unwrap();
        let (ledger, out) = (folder.path().join("ledger"), folder.path().join("events"));
        let setup = to_file(&out).set("sinks.out.rotate_bytes", 50_000).set("sinks.out.compress", compress);
        let receiver = setup.start();
        send(&receiver, &ledger);
        let files = || -> Vec<PathBuf> {
            let entries = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| *path != ledger).collect()
        };
        wait_for("all but one to be compressed", || {
            let packed = |path: &&PathBuf| path.to_str().unwrap().ends_with(suffix);
            let files = files();
            (files.len() > 2 && files.iter().filter(packed).count() == files.len() - 1).then_some(())
        });
        receiver.finish();

        let mut all = files();
        let output = verify(&ledger, &all, &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        all.reverse();
        assert_eq!(verify(&ledger, &all, &[]).status.code(), Some(0));
        let last = all.pop().unwrap();
        assert_eq!(verify(&ledger, &all, &["--allow-repeats"]).status.code(), Some(1));
        // One of them by way of standard input, packed as it is.
        all.push("-".into());
        let mut command = verification(&ledger, &all);
        let output = command.stdin(File::open(last).unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
fn what_cannot_be_verified_is_told_with_the_remedy() {
    let folder = TempDir::new().unwrap();
    let (ledger, out) = (folder.path().join("ledger"), folder.path().join("events"));
    let receiver = to_file(&out).set("sinks.out.format", "envelope").start();
    send(&receiver, &ledger);
    receiver.finish();
    let refused = |ledger: &Path, file: &Path, code: i32, words: &[&str]| {
        let output = verify(ledger, &[file], &[]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    refused(&ledger, &out, 1, &["events, line 1", "`envelope`", "`raw`"]);
    refused(&ledger, &folder.path().join("none"), 1, &["none cannot be read", "name"]);
    refused(&folder.path().join("none"), &out, 1, &["none cannot be read", "--ledger"]);
    refused(&out, &out, 1, &["events, line 1", "is no entry", "--ledger"]);
    let text = fs::read_to_string(&ledger).unwrap();
    fs::write(&ledger, text.trim_end().strip_suffix('}').unwrap()).unwrap();
    refused(&ledger, &out, 1, &[&format!("ledger, line {EVENTS}"), "broken off"]);
}
