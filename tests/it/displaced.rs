//! FAULTS "Storage": the journal's files deleted, moved, cut off, replaced or made read-only, while it runs and while it
//! does not. Nothing gets a 200 that the next start does not find, and what is lost is counted and reported.
//!
//! All of it, with a table of what came of each:
//! `cargo test --test it displaced::every_file_in_every_way -- --ignored --nocapture`
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a table of outcomes, and which case failed")]

use std::fmt::Write as _;
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use rusqlite::Connection;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::event::{event, new_id};
use crate::harness::not_tested;
use crate::harness::pki::PKI;
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::wire::{Wire, post};

/// The status of the answer, if there is one: the receiver may have ended.
fn status(wire: io::Result<Wire>, body: &[u8]) -> Option<u16> {
    let mut wire = wire.ok()?;
    wire.send(post("/events", "", body)).ok()?;
    Some(wire.try_answer().ok()?.status)
}

/// Every kind of answer that rests on the files, each asked for first.
#[test]
fn nothing_is_answered_from_files_that_are_gone() {
    let malformed = b"{\"half\": ";
    let first = event(&new_id());
    for (name, what, body) in [
        ("journal.db", "a duplicate", first.as_bytes()),
        ("journal.db-wal", "a body that is in quarantine", malformed),
        ("journal.db-shm", "a body for the quarantine", b"{\"other\": "),
        ("lock", "a new event", event(&new_id()).as_bytes()),
        ("journal.db-wal", "a duplicate", first.as_bytes()),
    ] {
        let setup = Setup::embedded();
        let receiver = setup.start();
        assert_eq!(receiver.post(&first).status, 200);
        assert_eq!(receiver.post(malformed).status, 400);
        let ids = receiver.store(20);
        let wire = Wire::connect(receiver.events, &PKI.client);
        fs::remove_file(setup.journal().join(name)).unwrap();
        let answer = status(wire, body);
        assert!(matches!(answer, None | Some(503)), "{what} was answered {answer:?} without {name}");
        let ended = receiver.wait();
        assert_eq!(ended.status.code(), Some(1), "{name}: {ended:?}");
        let said = |line: &String| line.contains("the journal has failed") && line.contains(name);
        assert!(ended.log.iter().any(said), "{name}: {ended:?}");

        let receiver = setup.start();
        let lost = receiver.metric("journal_lost_events_total");
        let mut wire = receiver.connect();
        let again = ids.iter().filter(|id| wire.post(event(id).as_bytes()).json()["status"] == "stored").count() as u64;
        assert!(again <= lost, "{name}: {again} of 20 events were not known, {lost} told to be lost");
        assert_eq!(lost > 0, name == "journal.db-wal", "{name}: {lost} lost");
        receiver.store(1);
        receiver.sink_settled("stdout");
        receiver.finish();
    }
}

/// The process does not end before the next start can know what is lost, however long that takes.
#[test]
fn the_mark_is_left_before_the_process_ends() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    receiver.store(20);
    let slow = receiver.inject("?mkdir,mkdirat:delay_enter=3000000");
    fs::remove_dir_all(setup.journal()).unwrap();
    receiver.post(event(&new_id())).assert_unavailable();
    let ended = receiver.wait();
    drop(slow);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(!ended.log.iter().any(|line| line.contains("is too slow")), "the writer ends on its own: {ended:?}");
    let receiver = setup.start();
    assert_eq!(receiver.metric("journal_lost_events_total"), 20);
    receiver.finish();
}

/// A file of the journal's folder, or all of it.
const FILES: [&str; 7] = ["journal.db", "journal.db-wal", "journal.db-shm", "mark", "ballast", "lock", FOLDER];
const FOLDER: &str = "the folder";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Deleted,
    Moved,
    CutOff,
    /// By a copy of itself, which is renamed over it.
    ReplacedBySame,
    /// The same by a copy from earlier on.
    ReplacedByOlder,
    /// A copy from earlier on is written into it, as `cp` does.
    OverwrittenByOlder,
    /// By another journal's.
    ReplacedByOther,
    ReadOnly,
}

const HOWS: [How; 8] = [
    How::Deleted,
    How::Moved,
    How::CutOff,
    How::ReplacedBySame,
    How::ReplacedByOlder,
    How::OverwrittenByOlder,
    How::ReplacedByOther,
    How::ReadOnly,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Running,
    /// After SIGKILL.
    Killed,
    /// After SIGTERM.
    Stopped,
}

const WHENS: [When; 3] = [When::Running, When::Killed, When::Stopped];

#[derive(Debug, Clone, Copy)]
struct Case {
    file: &'static str,
    how: How,
    when: When,
}

/// What became of one case.
struct Outcome {
    /// How the receiver ended, if it did so by itself.
    ended: Option<String>,
    /// Events that got 200 after it was done and before the next start.
    answered: usize,
    /// Of the events from before: how many the new sink never got; and how many were reported as lost.
    missing: usize,
    lost: u64,
    /// What the next start said at `WARN` and `ERROR`.
    said: Vec<String>,
}

impl Case {
    fn all() -> Vec<Self> {
        let cases = FILES.iter().flat_map(|&file| HOWS.iter().map(move |&how| (file, how)));
        let cases = cases.filter(|case| *case != (FOLDER, How::CutOff));
        cases.flat_map(|(file, how)| WHENS.iter().map(move |&when| Self { file, how, when })).collect()
    }

    /// Whether a 200 would rest on it from then on.
    fn ends_it(self) -> bool {
        match (self.file, self.how) {
            _ if self.when != When::Running => false,
            (_, How::ReadOnly) | ("mark" | "ballast", _) | ("lock", How::CutOff | How::OverwrittenByOlder) => false,
            _ => true,
        }
    }

    /// Nothing that is left knows what was there.
    fn is_blind(self) -> bool {
        let another = matches!(self.how, How::ReplacedByOther);
        let gone = another || !matches!(self.how, How::ReplacedBySame | How::ReadOnly);
        self.file == FOLDER && (gone && self.when != When::Running || another)
    }

    fn outcome(self) -> Outcome {
        let mut setup = setup();
        if self.how == How::ReadOnly && rustix::process::geteuid().is_root() {
            // Root without the right to pass over permissions.
            setup = setup.through(&WITHOUT_OVERRIDE);
        }
        let held = setup.folder().join("held.jsonl");
        let older = TempDir::new().unwrap();
        let (receiver, mut ids) = fill(&setup, older.path());
        ids.extend(receiver.store(8));

        // The receiver is at rest, so that whatever it has to say of itself it says because of this.
        receiver.sink_settled("live");
        let (mut answered, mut ended) = (Vec::new(), None);
        match self.when {
            When::Running => {
                // A folder goes at once, as far as the receiver sees: otherwise it may end in the midst of that, and leave
                // its mark where the rest is deleted afterwards.
                let at_once = (self.file, self.how) == (FOLDER, How::Deleted);
                if at_once {
                    receiver.signal(Signal::STOP);
                }
                self.happen(&setup.journal(), older.path());
                if at_once {
                    receiver.signal(Signal::CONT);
                }
                for id in (0..3).map(|_| new_id()) {
                    let answer = status(Wire::connect(receiver.events, &PKI.client), event(&id).as_bytes());
                    if answer == Some(200) {
                        answered.push(id);
                    }
                }
                if self.ends_it() {
                    assert!(answered.is_empty(), "{} events got 200", answered.len());
                    let end = receiver.wait();
                    // Memory that is mapped to a file ends with the file.
                    let is_cut = end.status.signal() == Some(Signal::BUS.as_raw())
                        && matches!(
                            (self.file, self.how),
                            ("journal.db-shm", How::CutOff) | (_, How::OverwrittenByOlder)
                        );
                    assert!(end.status.code() == Some(1) || is_cut, "{end:?}");
                    ended = Some(end.status.to_string());
                } else {
                    assert_eq!(answered.len(), 3);
                    receiver.kill();
                }
            }
            When::Killed => {
                receiver.kill();
                self.happen(&setup.journal(), older.path());
            }
            When::Stopped => {
                receiver.finish();
                self.happen(&setup.journal(), older.path());
            }
        }

        let setup = setup.set("sinks.held.enabled", true);
        let receiver = setup.start();
        answered.extend(receiver.store(4));
        receiver.sink_settled("held");
        receiver.sink_settled("live");
        let delivered = fs::read_to_string(&held).unwrap();
        for id in &answered {
            assert!(delivered.contains(id.as_str()), "an event that got 200 afterwards is missing");
        }
        let missing = ids.iter().filter(|id| !delivered.contains(id.as_str())).count();
        let lost = receiver.metric("journal_lost_events_total");
        let said: Vec<String> = receiver.log.so_far().iter().filter_map(|line| said(line)).collect();
        if !self.is_blind() {
            assert!(missing as u64 <= lost, "{missing} are missing, {lost} reported as lost; {said:#?}");
            assert!(lost == 0 || said.iter().any(|line| line.starts_with("ERROR") && line.contains("lost_events")));
            // An event that is known is there.
            let mut wire = receiver.connect();
            let stored = |id: &&String| wire.post(event(id).as_bytes()).json()["status"] == "stored";
            assert!(ids.iter().filter(stored).count() as u64 <= lost);
            receiver.sink_settled("held");
        }
        receiver.finish();

        // It is over with that.
        let receiver = setup.start();
        assert_eq!(receiver.metric("journal_lost_events_total"), 0);
        receiver.store(1);
        receiver.sink_settled("held");
        let end = receiver.finish();
        assert!(!end.log.iter().any(|line| line.contains("damage") || line.contains("another log")), "{end:?}");
        Outcome { ended, answered: answered.len() - 4, missing, lost, said }
    }

    #[allow(clippy::disallowed_methods, reason = "no power is cut here")]
    fn happen(self, journal: &Path, older: &Path) {
        let is_folder = self.file == FOLDER;
        let path = if is_folder { journal.to_owned() } else { journal.join(self.file) };
        let source = match self.how {
            How::ReplacedByOther => OTHER.path(),
            How::ReplacedBySame => journal,
            _ => older,
        };
        let beside = |what: &str| journal.with_file_name(format!("{what}-{}", path.file_name().unwrap().display()));
        match self.how {
            How::Deleted if is_folder => fs::remove_dir_all(path).unwrap(),
            How::Deleted => fs::remove_file(path).unwrap(),
            How::Moved => fs::rename(&path, beside("moved")).unwrap(),
            How::CutOff => {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            }
            How::OverwrittenByOlder => {
                for name in FILES.iter().filter(|name| is_folder && **name != FOLDER || **name == self.file) {
                    fs::write(journal.join(name), fs::read(older.join(name)).unwrap_or_default()).unwrap();
                }
            }
            _ if self.how == How::ReadOnly => {
                let mode = if is_folder { 0o500 } else { 0o400 };
                fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
            }
            _ if is_folder => {
                let new = beside("new");
                copy(source, &new);
                fs::rename(&path, beside("old")).unwrap();
                fs::rename(new, path).unwrap();
            }
            _ => {
                let new = beside("new");
                fs::write(&new, fs::read(source.join(self.file)).unwrap_or_default()).unwrap();
                fs::rename(new, path).unwrap();
            }
        }
    }
}

const WITHOUT_OVERRIDE: [&str; 5] =
    ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-dac_override,-dac_read_search"];

/// `live` has everything at once, `held` nothing until it is switched on.
fn setup() -> Setup {
    let setup = Setup::embedded();
    let held = setup.folder().join("held.jsonl");
    setup
        .set("sinks.live.type", "stdout")
        .set("sinks.held.type", "file")
        .set("sinks.held.path", &held)
        .set("sinks.held.enabled", false)
}

/// A receiver with events in the database and in the log, of which `older` gets a copy in between.
fn fill(setup: &Setup, older: &Path) -> (Receiver, Vec<String>) {
    let receiver = setup.start();
    let mut ids = receiver.store(8);
    assert_eq!(receiver.post(b"{\"half\": ").status, 400);
    receiver.sink_settled("live");
    receiver.finish();
    let receiver = setup.start();
    ids.extend(receiver.store(5));
    receiver.sink_settled("live");
    copy(&setup.journal(), older);
    // The log goes into the database, and begins anew.
    receiver.finish();
    let receiver = setup.start();
    (receiver, ids)
}

/// The files of another journal, of the same settings.
static OTHER: LazyLock<TempDir> = LazyLock::new(|| {
    let (setup, other, unused) = (setup(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let (receiver, _) = fill(&setup, unused.path());
    receiver.store(30);
    receiver.kill();
    copy(&setup.journal(), other.path());
    other
});

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// A log line of `WARN` or `ERROR` about the journal.
fn said(line: &str) -> Option<String> {
    let line = log_line(line)?;
    let (level, message) = (line["level"].as_str()?, line["message"].as_str()?);
    let is_meant = matches!(level, "WARN" | "ERROR") && message.contains("journal");
    let mut said = format!("{level} {message}");
    for field in ["reason", "lost_events", "lost"] {
        if !line[field].is_null() {
            write!(said, " {field}={}", line[field]).unwrap();
        }
    }
    is_meant.then_some(said)
}

/// Runs the cases side by side, and gives their outcomes in order.
fn outcomes(cases: &[Case]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Option<Outcome>>> = cases.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let _naming = Naming(*case);
                    let at = cases.iter().position(|other| std::ptr::eq(other, case)).unwrap();
                    *outcomes[at].lock().unwrap() = Some(case.outcome());
                }
            });
        }
    });
    outcomes.into_iter().map(|outcome| outcome.into_inner().unwrap().unwrap()).collect()
}

/// Names the case when a check fails, wherever that is.
struct Naming(Case);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the case: {:?}", self.0);
        }
    }
}

/// Whether permissions can be made to count for this user.
fn permissions_count() -> bool {
    !rustix::process::geteuid().is_root()
        || Command::new(WITHOUT_OVERRIDE[0])
            .args(&WITHOUT_OVERRIDE[1..])
            .arg("true")
            .status()
            .is_ok_and(|status| status.success())
}

fn cases() -> Vec<Case> {
    let mut cases = Case::all();
    if !permissions_count() {
        not_tested("no permission keeps this user from writing");
        cases.retain(|case| case.how != How::ReadOnly);
    }
    cases
}

/// Each file in each way once, each way at each time.
#[test]
fn a_slice_of_every_file_in_every_way() {
    let mut cases = cases();
    let at = |case: &Case| {
        let file = FILES.iter().position(|file| *file == case.file).unwrap();
        let how = HOWS.iter().position(|how| *how == case.how).unwrap();
        let when = WHENS.iter().position(|when| *when == case.when).unwrap();
        (file + how + when) % WHENS.len() == 0
    };
    cases.retain(at);
    outcomes(&cases);
}

#[test]
#[ignore = "all of it, in a quarter of an hour; prints a table"]
fn every_file_in_every_way() {
    let cases = cases();
    println!("| file | how | when | ended by itself | 200 meanwhile | missing | reported lost | the next start said |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for (case, outcome) in cases.iter().zip(outcomes(&cases)) {
        let Outcome { ended, answered, missing, lost, said } = outcome;
        let (Case { file, how, when }, ended) = (case, ended.unwrap_or_default());
        println!("| {file} | {how:?} | {when:?} | {ended} | {answered} | {missing} | {lost} | {} |", said.join("; "));
    }
}

/// A volume that is unmounted, or a link that is turned to another folder, is a folder that was moved.
#[test]
#[allow(clippy::disallowed_methods, reason = "no power is cut here")]
fn a_link_to_the_folder_counts_as_its_name() {
    let setup = Setup::embedded();
    let (link, elsewhere) = (setup.folder().join("link"), setup.folder().join("elsewhere"));
    for folder in [setup.journal(), elsewhere.clone()] {
        fs::create_dir(folder).unwrap();
    }
    std::os::unix::fs::symlink(setup.journal(), &link).unwrap();
    let setup = setup.set("journal.path", &link);
    let receiver = setup.start();
    receiver.store(3);
    // Moved, with a link in its place: the name leads to the same files.
    let moved: PathBuf = setup.folder().join("moved");
    fs::rename(setup.journal(), &moved).unwrap();
    std::os::unix::fs::symlink(&moved, setup.journal()).unwrap();
    receiver.store(3);
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
    assert_ne!(status(Wire::connect(receiver.events, &PKI.client), event(&new_id()).as_bytes()), Some(200));
    let ended = receiver.wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    // What the other folder does not have is counted there.
    let receiver = setup.start();
    assert_eq!(receiver.metric("journal_lost_events_total"), 6);
    receiver.store(1);
    receiver.finish();
}

/// A journal of the program of 2026-11-23, which knew no identities.
#[test]
fn a_journal_without_an_identity_gets_one_and_nothing_is_said() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let identity = |receiver: &Receiver| {
        let status = receiver.ask_admin("/api/v1/status").unwrap().json();
        status["journal"]["identity"].as_str().unwrap().to_owned()
    };
    let first = identity(&receiver);
    receiver.store(5);
    receiver.finish();
    let receiver = setup.start();
    assert_eq!(identity(&receiver), first);
    receiver.finish();

    // As that program left it.
    let database = Connection::open(setup.journal().join("journal.db")).unwrap();
    assert_eq!(database.execute("DELETE FROM state WHERE id = 0", []).unwrap(), 1);
    drop(database);
    let mark = OpenOptions::new().write(true).open(setup.journal().join("mark")).unwrap();
    mark.set_len(48).unwrap();
    let receiver = setup.start();
    let second = identity(&receiver);
    assert_ne!(second, first);
    receiver.store(1);
    let ended = receiver.finish();
    assert!(ended.log.iter().all(|line| said(line).is_none()), "{ended:?}");
    let receiver = setup.start();
    assert_eq!(identity(&receiver), second);
    assert_eq!(receiver.sink("stdout")["stored"], 6);
    receiver.finish();
}
