//! Damage of every kind to the journal's files. Whatever is broken: the receiver starts, delivers what can still be read
//! byte for byte, nothing else, and says what is lost; the next start finds nothing wrong any more.
//!
//! Real journals, made and opened through [`Journal`]; a copy of their files while nothing is written is what SIGKILL
//! leaves. The sweeps are samples, seeded; larger ones, and all there is:
//! `RECOVERY_CASES=5000 cargo test --release --test it recovery::`, and the same with `-- --ignored` for each by its name.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a sweep says what it found, and where it failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use asapp_receiver::journal::{Appended, Event, LocalOpenError, OpenError, Settled, State, Which};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::harness::event::{event, new_event, new_id};
use crate::harness::journal::{Open, RUNTIME, config, copy, scratch};
use crate::harness::receiver::{Setup, log_line};
use crate::harness::{PATIENCE, wait_for};

/// Where a page of the database, and a frame of its log, begin and end.
const PAGE: usize = 4096;
const LOG_HEADER: usize = 32;
const FRAME: usize = 24 + PAGE;
/// Cases of a seeded sample, for each kind of journal and each file; `RECOVERY_CASES` sets another number.
static SAMPLE: LazyLock<usize> =
    LazyLock::new(|| std::env::var("RECOVERY_CASES").map_or(80, |cases| cases.parse().unwrap()));

/// A journal on disk, and what is in it.
struct Sample {
    /// On a file system without a disk behind it: nothing here hangs on a sync.
    folder: TempDir,
    /// Acknowledged and not deleted, by sequence: id and bytes.
    events: BTreeMap<u64, (String, Vec<u8>)>,
    /// What is settled for `early`.
    settled: BTreeSet<u64>,
    /// The bodies in quarantine.
    quarantined: Vec<Vec<u8>>,
    dead_letters: BTreeSet<u64>,
    note: String,
    name: &'static str,
}

/// An event with text of this length that does not compress to nothing.
fn sized(random: &mut fastrand::Rng, length: usize) -> (String, Vec<u8>) {
    let id = new_id();
    let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(length).collect();
    let body = event(&id).replace("hello", &text);
    (id, body.into_bytes())
}

const KINDS: [Kind; 4] = [Kind::Log, Kind::File, Kind::Mixed, Kind::Copied];

/// How much is in a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    /// Events that fill pages of their own beside small ones.
    Usual,
    /// So few and short that every bit of it can be flipped.
    Small,
}

/// Which files hold what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Everything since the folder was made stands in the log.
    Log,
    /// Closed in order: the log is empty.
    File,
    /// Half in the database, half in the log; the oldest events are deleted.
    Mixed,
    /// As `Mixed`, but the log has been copied into the database already and still stands there.
    Copied,
}

impl Sample {
    fn new(kind: Kind) -> Self {
        Self::of(kind, Size::Usual)
    }

    fn of(kind: Kind, size: Size) -> Self {
        RUNTIME.block_on(Self::make(kind, size))
    }

    async fn make(kind: Kind, size: Size) -> Self {
        let (live, folder) = (scratch(), scratch());
        let mut random = fastrand::Rng::with_seed(kind as u64);
        let mut sample = Self {
            folder,
            events: BTreeMap::new(),
            settled: BTreeSet::new(),
            quarantined: Vec::new(),
            dead_letters: BTreeSet::new(),
            note: String::new(),
            name: match kind {
                Kind::Log => "log",
                Kind::File => "file",
                Kind::Mixed => "mixed",
                Kind::Copied => "copied",
            },
        };
        let path = live.path().join("journal");
        let mut open = Open::with(config(&path, &[("JOURNAL__RETENTION", "0s")])).unwrap();
        sample.fill(&mut open, &mut random, size).await;
        if matches!(kind, Kind::Mixed | Kind::Copied) {
            // The first ones are had by both: they go.
            let through = *sample.events.keys().nth(11).unwrap();
            for sink in ["early", "late"] {
                open.cursors[sink].settler().settle(1, through, Settled::Delivered).await;
            }
            wait_for("the oldest events to go", || (open.journal.status().first_sequence > through).then_some(()));
            sample.events = sample.events.split_off(&(through + 1));
            sample.settled = sample.settled.split_off(&(through + 1));
            open.journal.close().await;
            open = Open::with(config(&path, &[])).unwrap();
            assert!(open.report.damage.is_none() && open.report.warnings.is_empty(), "{:?}", open.report);
            sample.fill(&mut open, &mut random, size).await;
        }
        if kind == Kind::File {
            open.journal.close().await;
        }
        copy(&path, sample.folder.path());
        if kind == Kind::Copied {
            let database = Connection::open(path.join("journal.db")).unwrap();
            let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
            let (log, done): (i64, i64) =
                database.query_row(checkpoint, [], |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
            assert!(log > 0 && log == done);
            copy(&path, sample.folder.path());
        }
        open.journal.close().await;
        sample
    }

    /// Events of many sizes, one by one and in groups, a duplicate, quarantined bodies, dead letters, one of them retried,
    /// a note; `early` has most of them.
    async fn fill(&mut self, open: &mut Open, random: &mut fastrand::Rng, size: Size) {
        let mut sequence = open.journal.status().last_sequence;
        let (lengths, in_group, in_quarantine, last): (&[usize], _, _, &[usize]) = match size {
            Size::Usual => (&[20, 4_000, 110_000, 300, 9_000, 1_500], 200, 8_000, &[3_000, 30]),
            Size::Small => (&[20, 100], 10, 50, &[10]),
        };
        for (round, &length) in lengths.iter().enumerate() {
            let single = sized(random, length);
            assert!(matches!(open.append(&single.1).await, Appended::Stored(_)));
            assert!(matches!(open.append(&single.1).await, Appended::Duplicate(_)));
            sequence += 1;
            self.events.insert(sequence, single);
            let group: Vec<_> = (0..5).map(|_| sized(random, in_group)).collect();
            let stored = futures_util::future::join_all(group.iter().map(|(_, body)| open.append(body))).await;
            assert!(stored.iter().all(|appended| matches!(appended, Appended::Stored(_))));
            // All of them were handed over in this order.
            for event in group {
                sequence += 1;
                self.events.insert(sequence, event);
            }
            if round % 3 == 0 {
                let body = vec![b'{'; 50 + random.usize(..in_quarantine)];
                open.quarantine(&body).await;
                self.quarantined.push(body);
            }
        }
        let read = open.read("early").await;
        let cursor = open.cursors["early"].settler();
        for (at, event) in read.iter().enumerate() {
            let sequence = event.sequence();
            assert_eq!(event.body(), self.events[&sequence].1);
            match at {
                7 | 9 => {
                    cursor.dead_letter(event, "a test", 3).await.unwrap();
                    self.dead_letters.insert(sequence);
                }
                8 => cursor.settle(sequence, sequence, Settled::Filtered).await,
                // Left out: what comes after it is settled ahead of the cursor.
                20 => continue,
                25.. => break,
                _ => cursor.settle(sequence, sequence, Settled::Delivered).await,
            }
            self.settled.insert(sequence);
        }
        let retried = open.journal.retry_dead_letters(Which::Ids(vec![open.journal.status().dead_letters.newest]));
        assert_eq!(retried.await.unwrap().done, 1);
        open.journal.note("a test", Some(sequence.to_string())).await.unwrap();
        self.note = sequence.to_string();
        // The first of them takes the places along; the log ends with events.
        for &length in last {
            let last = sized(random, length);
            assert!(matches!(open.append(&last.1).await, Appended::Stored(_)));
            sequence += 1;
            self.events.insert(sequence, last);
        }
    }

    fn file(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(name)).unwrap_or_default()
    }

    fn last(&self) -> u64 {
        *self.events.keys().next_back().unwrap()
    }

    /// A fresh copy of its folder.
    fn copy(&self) -> Case<'_> {
        let folder = scratch();
        copy(self.folder.path(), folder.path());
        Case { sample: self, folder, told: Told::default(), blind: false, resumed: false }
    }
}

/// A copy of a journal that something is done to.
struct Case<'a> {
    sample: &'a Sample,
    folder: TempDir,
    told: Told,
    /// What would tell how much is lost is lost itself.
    blind: bool,
    /// An earlier start has set some of it aside already.
    resumed: bool,
}

/// What the start after the damage said.
#[derive(Debug, Default)]
struct Told {
    damage: Option<String>,
    warnings: Vec<String>,
    lost: u64,
}

/// Names the case when a check fails, wherever that is.
struct Naming<'a>(&'a str, &'a str);

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in the case: {} of the journal `{}`", self.1, self.0);
        }
    }
}

impl Case<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.path(name)).unwrap_or_default();
        change(&mut bytes);
        self.write(name, &bytes);
    }

    /// Every file that holds something.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| !["journal.db-shm", "lock", "ballast"].iter().any(|name| path.ends_with(name)));
        files.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    #[track_caller]
    fn is_refused(&self, format: u32) {
        let before = self.files();
        match Open::new(self.folder.path()) {
            Err(OpenError::Local(LocalOpenError::Newer { path, found })) => {
                assert_eq!((path, found), (self.path("journal.db").canonicalize().unwrap(), format));
            }
            other => panic!("format {format}: {:?}", other.map(|open| open.report)),
        }
        for (path, bytes) in self.files() {
            assert!(before.get(&path) == Some(&bytes), "format {format}: {} was changed", path.display());
        }
        assert!(self.files().keys().eq(before.keys()), "format {format}: {:?}", self.files().keys());
    }

    fn sql(&self, sql: &str) {
        let database = Connection::open(self.path("journal.db")).unwrap();
        database.execute_batch(sql).unwrap();
    }

    /// Opens the damaged journal, twice, and judges what comes of it.
    #[track_caller]
    fn judge(self, what: &str) -> Told {
        let _naming = Naming(self.sample.name, what);
        RUNTIME.block_on(self.judged())
    }

    async fn judged(mut self) -> Told {
        let sample = self.sample;
        let before: BTreeMap<&str, Option<Vec<u8>>> =
            ["journal.db", "journal.db-wal"].into_iter().map(|name| (name, fs::read(self.path(name)).ok())).collect();
        let mut open = Open::new(self.folder.path()).unwrap();
        let mut lost = BTreeSet::new();
        if let Some(damage) = &open.report.damage {
            self.told.damage = Some(damage.reason.clone());
            lost = damage.lost.iter().flat_map(|&(first, last)| first..=last).collect();
            for (name, bytes) in before {
                // Looking at a database makes it a log, of no bytes.
                let aside = fs::read(damage.set_aside.join(name)).unwrap_or_default();
                assert!(self.resumed || aside == bytes.unwrap_or_default(), "{name} was not set aside as it was");
            }
        }
        self.told.warnings = open.report.warnings.clone();
        let lost_letters = open.report.damage.as_ref().map_or(0, |damage| damage.lost_letters);
        assert!(lost_letters <= sample.dead_letters.len() as u64);
        self.told.lost = lost.len() as u64;
        assert_eq!(open.report.lost_events, self.told.lost + lost_letters);
        assert_eq!(open.metrics.journal_lost.get(), open.report.lost_events);

        // Everything is delivered as it was, or told to be lost.
        let last = open.journal.status().last_sequence;
        assert!(self.blind || last >= sample.last(), "sequences would come again after {last}");
        let late = open.read("late").await;
        let early = open.read("early").await;
        for event in late.iter().chain(&early) {
            let (id, body) = &sample.events[&event.sequence()];
            assert_eq!(event.event_id(), id);
            assert!(event.body() == body, "event {} is altered", event.sequence());
        }
        for events in [&late, &early] {
            assert!(events.is_sorted_by(|a, b| a.sequence() < b.sequence()), "out of order or twice");
        }
        let had = |events: &[Event]| events.iter().map(Event::sequence).collect::<BTreeSet<_>>();
        let mut expected: BTreeSet<u64> =
            sample.events.keys().copied().filter(|sequence| !lost.contains(sequence)).collect();
        if self.blind {
            expected = had(&late);
        }
        assert_eq!(had(&late), expected, "to `late`; told as lost: {lost:?}");
        let early_had = had(&early);
        let missing: Vec<_> =
            expected.difference(&early_had).filter(|sequence| !sample.settled.contains(sequence)).collect();
        assert!(missing.is_empty(), "`early` never gets {missing:?}");
        for (sink, events) in [("late", &late), ("early", &early)] {
            let account = open.account(sink);
            let retrying = if sink == "early" { open.journal.status().dead_letters.retrying } else { 0 };
            assert!(retrying == 0 || self.told.damage.is_none());
            assert_eq!(account.pending, events.len() as u64 + retrying, "{sink}: {account:?}");
            let settled = account.delivered + account.filtered + account.dead_lettered + account.evicted;
            assert_eq!(account.stored, settled + account.pending, "{sink}: {account:?}");
        }

        // What is safe is known, what is lost may come again, and new events follow after everything old.
        let again = expected.iter().map(|sequence| open.append(&sample.events[sequence].1));
        let forgotten = futures_util::future::join_all(again).await;
        let forgotten = forgotten.iter().filter(|appended| !matches!(appended, Appended::Duplicate(_))).count();
        assert!(forgotten == 0, "{forgotten} ids are not known any more");
        let mut new: Vec<Vec<u8>> = Vec::new();
        for sequence in lost.iter().filter(|sequence| !sample.settled.contains(sequence)).take(3) {
            let Some((_, body)) = sample.events.get(sequence) else { continue };
            let appended = open.append(body).await;
            assert!(matches!(appended, Appended::Stored(_)), "event {sequence} is lost and yet a duplicate");
            new.push(body.clone());
        }
        let (_, fresh) = sized(&mut fastrand::Rng::with_seed(1), 10);
        assert!(matches!(open.append(&fresh).await, Appended::Stored(_)));
        new.push(fresh);
        let quarantined = open.metrics.quarantined.get_or_create(&[("reason", "malformed")]).get();
        for body in &sample.quarantined {
            open.quarantine(body).await;
        }
        let gone = open.metrics.quarantined.get_or_create(&[("reason", "malformed")]).get() - quarantined;
        assert!(gone == 0 || self.told.is_told() || self.blind, "{gone} quarantined bodies went in silence");
        let note = open.journal.read_note("a test");
        assert!(note.as_ref() == Some(&sample.note) || self.told.is_told() || self.blind, "the note is {note:?}");
        open.journal.close().await;
        let letters: u64 = Connection::open(self.path("journal.db"))
            .unwrap()
            .query_row("SELECT count(*) FROM dead_letters", [], |row| row.get(0))
            .unwrap();
        // What is delivered again may be buried again.
        let letters = letters + sample.dead_letters.intersection(&early_had).count() as u64;
        assert!(
            letters == sample.dead_letters.len() as u64 || self.told.is_told() || self.blind,
            "dead letters went in silence"
        );

        // The next start finds nothing wrong, and the same events.
        let mut again = Open::new(self.folder.path()).unwrap();
        assert!(again.report.damage.is_none() && again.report.warnings.is_empty(), "again: {:?}", again.report);
        for sink in ["late", "early"] {
            let events = again.read(sink).await;
            let (old, young): (Vec<_>, Vec<_>) = events.iter().partition(|event| event.sequence() <= last);
            let before = if sink == "late" { &late } else { &early };
            assert_eq!(had(before), old.iter().map(|event| event.sequence()).collect(), "{sink}, again");
            assert_eq!(young.iter().map(|event| event.body().to_vec()).collect::<Vec<_>>(), new, "{sink}, again");
            let retrying = if sink == "early" { again.journal.status().dead_letters.retrying } else { 0 };
            assert_eq!(again.account(sink).pending, events.len() as u64 + retrying);
        }
        again.journal.close().await;
        self.told
    }
}

impl Told {
    fn is_told(&self) -> bool {
        self.damage.is_some() || !self.warnings.is_empty()
    }
}

/// One bit of a file.
fn flip(case: &Case, name: &str, bit: usize) {
    case.change(name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
}

/// Flips these bits of a file, each in a journal of its own.
fn flip_each(sample: &Sample, name: &str, bits: impl Iterator<Item = usize> + Send) {
    each(sample, name, bits, |case, bit| {
        flip(case, name, bit);
        format!("bit {bit} of {name} flipped")
    });
}

/// Judges a case for each number, as many at a time as there are processors, and sums up.
fn each(
    sample: &Sample,
    what: &str,
    numbers: impl Iterator<Item = usize> + Send,
    damage: impl Fn(&Case, usize) -> String + Sync,
) {
    let start = Instant::now();
    let numbers = Mutex::new(numbers);
    let judge = || {
        let (mut cases, mut salvaged, mut lost, mut most) = (0_u64, 0_u64, 0, 0);
        loop {
            let Some(number) = numbers.lock().unwrap().next() else { break (cases, salvaged, lost, most) };
            let case = sample.copy();
            let what = damage(&case, number);
            let told = case.judge(&what);
            cases += 1;
            salvaged += u64::from(told.damage.is_some());
            lost += told.lost;
            most = most.max(told.lost);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (cases, salvaged, lost, most) = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(judge)).collect();
        let sums = threads.into_iter().map(|thread| thread.join().unwrap());
        sums.reduce(|a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2, a.3.max(b.3))).unwrap()
    });
    let (took, name) = (start.elapsed(), sample.name);
    println!(
        "{what} of `{name}`: {cases} cases in {took:.1?}, {salvaged} salvaged, {lost} events lost, at most {most}"
    );
}

/// A seeded sample of a file's bits, each of which is in a file of every kind.
fn some_bits(sample: &Sample, name: &str) -> impl Iterator<Item = usize> + use<> {
    let bits = sample.file(name).len() * 8;
    let mut random = fastrand::Rng::with_seed(7);
    (0..*SAMPLE).map(move |_| random.usize(..bits))
}

#[test]
fn an_untouched_copy_has_everything() {
    for kind in KINDS {
        let told = Sample::new(kind).copy().judge("nothing");
        assert!(!told.is_told(), "{told:?}");
    }
}

#[test]
fn a_log_cut_short_anywhere_in_its_last_frames() {
    let sample = Sample::new(Kind::Log);
    let length = sample.file("journal.db-wal").len();
    // Every byte of the headers and around them, and some of the pages.
    let offsets = (length - 3 * FRAME..length).filter(|at| {
        let at = (at - LOG_HEADER) % FRAME;
        !(32..FRAME - 8).contains(&at) || at.is_multiple_of(64)
    });
    cut_each(&sample, offsets);
}

#[test]
fn a_log_cut_short_between_frames() {
    for kind in [Kind::Log, Kind::Mixed, Kind::Copied] {
        let sample = Sample::new(kind);
        let frames = (sample.file("journal.db-wal").len() - LOG_HEADER) / FRAME;
        cut_each(&sample, (0..frames).step_by(2).map(|frames| LOG_HEADER + frames * FRAME).chain([0, LOG_HEADER - 1]));
    }
}

#[test]
#[ignore = "half an hour: every byte"]
fn a_log_cut_short_at_every_byte_of_its_last_frames() {
    for kind in [Kind::Log, Kind::Mixed, Kind::Copied] {
        let sample = Sample::new(kind);
        let length = sample.file("journal.db-wal").len();
        cut_each(&sample, length - 3 * FRAME..length);
    }
}

fn cut_each(sample: &Sample, lengths: impl Iterator<Item = usize> + Send) {
    let name = "journal.db-wal";
    each(sample, "log", lengths, |case, length| {
        case.change(name, |bytes| bytes.truncate(length));
        format!("{name} cut to {length} bytes")
    });
}

#[test]
fn a_bit_flipped_in_the_database() {
    for kind in [Kind::File, Kind::Mixed, Kind::Copied] {
        let sample = Sample::new(kind);
        flip_each(&sample, "journal.db", some_bits(&sample, "journal.db"));
    }
}

#[test]
fn a_bit_flipped_in_the_header_of_the_database() {
    flip_each(&Sample::new(Kind::File), "journal.db", 0..100 * 8);
    // Where the log has a newer first page.
    flip_each(&Sample::new(Kind::Copied), "journal.db", (0..100 * 8).step_by(23));
}

#[test]
fn a_bit_flipped_in_the_log() {
    for kind in [Kind::Log, Kind::Mixed, Kind::Copied] {
        let sample = Sample::new(kind);
        flip_each(&sample, "journal.db-wal", some_bits(&sample, "journal.db-wal"));
    }
    let sample = Sample::new(Kind::Log);
    flip_each(&sample, "journal.db-wal", (0..(LOG_HEADER + 24) * 8).step_by(3));
    let frames = sample.file("journal.db-wal").len() / FRAME;
    flip_each(
        &sample,
        "journal.db-wal",
        (0..24 * 8).step_by(3).map(|bit| (LOG_HEADER + (frames - 1) * FRAME) * 8 + bit),
    );
}

#[test]
fn a_bit_flipped_in_the_mark() {
    let sample = Sample::new(Kind::Mixed);
    flip_each(&sample, "mark", (0..sample.file("mark").len() * 8).step_by(3));
}

#[test]
#[ignore = "two hours: every bit"]
fn every_bit_flipped() {
    for (kind, names) in [(Kind::File, ["journal.db", "mark"]), (Kind::Log, ["journal.db-wal", "mark"])] {
        let sample = Sample::of(kind, Size::Small);
        for name in names {
            let bits = sample.file(name).len() * 8;
            println!("{name} of `{}`: {bits} bits", sample.name);
            flip_each(&sample, name, 0..bits);
        }
    }
}

/// What a bad disk does: sectors of nothing, pages in the wrong place, the end of a file gone.
#[test]
fn larger_parts_damaged() {
    for kind in KINDS {
        let sample = Sample::new(kind);
        for name in ["journal.db", "journal.db-wal"] {
            if sample.file(name).is_empty() {
                continue;
            }
            each(&sample, name, 0..*SAMPLE / 2, |case, seed| {
                let mut random = fastrand::Rng::with_seed(seed as u64);
                let mut done = String::new();
                case.change(name, |bytes| {
                    for _ in 0..random.usize(1..4) {
                        let sectors = bytes.len() / 512;
                        if sectors == 0 {
                            break;
                        }
                        let (at, to) = (random.usize(..sectors) * 512, random.usize(..sectors) * 512);
                        let length = random.usize(1..20) * 512;
                        let (end, to_end) = ((at + length).min(bytes.len()), (to + length).min(bytes.len()));
                        match random.u8(..4) {
                            0 => bytes[at..end].fill(0),
                            1 => bytes[at..end].iter_mut().for_each(|byte| *byte = random.u8(..)),
                            2 if end - at == to_end - to => bytes.copy_within(at..end, to),
                            _ => bytes.truncate(bytes.len().min(at + length)),
                        }
                        done += &format!("{at}..{end} {to}..{to_end}, ");
                    }
                });
                format!("{name}, seed {seed}: {done}")
            });
        }
    }
}

#[test]
fn files_missing_empty_or_cut_in_half() {
    let names = ["journal.db", "journal.db-wal", "mark", "journal.db-shm", "ballast", "lock"];
    for kind in KINDS {
        let sample = Sample::new(kind);
        // Every combination of those that matter; the others alone, and with all the rest.
        for set in (1..8).chain([0b1000, 0b1_0000, 0b10_0000, 0b11_1000, 0b11_1111]) {
            let hit: Vec<_> =
                names.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1).map(|(_, name)| *name).collect();
            for how in ["missing", "empty", "halved"] {
                let mut case = sample.copy();
                for name in &hit {
                    match how {
                        "missing" => drop(fs::remove_file(case.path(name))),
                        "empty" => case.change(name, Vec::clear),
                        _ => case.change(name, |bytes| bytes.truncate(bytes.len() / 2)),
                    }
                }
                let wal_counts = !sample.file("journal.db-wal").is_empty();
                // Without the mark nobody knows of what else is gone; that much has to be told.
                case.blind = hit.contains(&"mark")
                    && (hit.contains(&"journal.db") || wal_counts && hit.contains(&"journal.db-wal"));
                let told = case.judge(&format!("{hit:?} {how}"));
                if hit.contains(&"mark") && hit.contains(&"journal.db") {
                    // The very first start looks like this, unless the ballast tells.
                    assert!(told.is_told() || hit.contains(&"ballast"), "{hit:?} {how}");
                }
            }
        }
    }
}

#[test]
fn rows_deleted() {
    let group = "(SELECT first FROM groups ORDER BY first LIMIT 1 OFFSET 4)";
    for kind in KINDS {
        let sample = Sample::new(kind);
        for (sql, lost) in [
            (format!("DELETE FROM groups WHERE first = {group}"), None),
            (format!("DELETE FROM groups WHERE first > {group}"), None),
            ("DELETE FROM groups".to_owned(), None),
            ("DELETE FROM groups; DELETE FROM ids".to_owned(), None),
            (format!("DELETE FROM ids WHERE first = {group}"), Some(0)),
            (format!("DELETE FROM ids WHERE first > {group}"), Some(0)),
            (format!("UPDATE groups SET last = last + 1 WHERE first = {group}"), None),
            (format!("UPDATE groups SET first = first + 1000000 WHERE first = {group}"), None),
            (format!("UPDATE groups SET bytes = bytes + 1 WHERE first = {group}"), Some(0)),
            ("DELETE FROM sinks WHERE name = 'early'".to_owned(), Some(0)),
            ("DELETE FROM sinks".to_owned(), Some(0)),
            ("UPDATE sinks SET place = replace(place, '\"cursor\":', '\"cursor\":9')".to_owned(), Some(0)),
            ("DELETE FROM state WHERE id = 1".to_owned(), Some(0)),
            ("DELETE FROM state".to_owned(), Some(0)),
            ("DELETE FROM state WHERE id = 2".to_owned(), Some(0)),
            ("DELETE FROM state WHERE id = 3".to_owned(), Some(0)),
            ("UPDATE state SET state = replace(state, 'a test', 'a tesT') WHERE id = 3".to_owned(), Some(0)),
            ("DELETE FROM dead_letters".to_owned(), Some(0)),
            ("DELETE FROM dead_letters WHERE about LIKE '%retrying%'".to_owned(), Some(0)),
            ("UPDATE dead_letters SET about = replace(about, 'a test', 'a tesT')".to_owned(), Some(0)),
            ("DELETE FROM quarantine WHERE id = 1".to_owned(), Some(0)),
            ("DELETE FROM quarantine WHERE id = (SELECT max(id) FROM quarantine)".to_owned(), Some(0)),
            ("DROP TABLE ids".to_owned(), Some(0)),
            ("DROP TABLE sinks".to_owned(), Some(0)),
            ("ALTER TABLE groups RENAME TO clumps".to_owned(), Some(0)),
            ("CREATE TABLE more (id)".to_owned(), Some(0)),
        ] {
            let case = sample.copy();
            case.sql(&sql);
            let told = case.judge(&sql);
            let reason = told.damage.as_deref().unwrap();
            assert!(!reason.contains("no rows"), "{sql}: {told:?}");
            if sql.starts_with("DELETE FROM state") {
                assert!(reason.contains("missing"), "{sql}: {told:?}");
            }
            assert!(lost.is_none_or(|lost| lost == told.lost), "{sql}: {told:?}");
        }
    }
}

/// By the metric, and in the account of the sink that they were of.
#[test]
fn dead_letters_that_damage_took_are_lost_to_their_sink() {
    for kind in KINDS {
        let sample = Sample::new(kind);
        let all = sample.dead_letters.len() as u64;
        let account = |case: &Case| {
            RUNTIME.block_on(async {
                let open = Open::new(case.folder.path()).unwrap();
                let (account, left) = (open.account("early"), open.journal.status().dead_letters);
                let counted = open.metrics.journal_lost.get();
                open.journal.close().await;
                (account, left, counted, open.report)
            })
        };
        let (before, ..) = account(&sample.copy());
        for (sql, least) in [
            ("DELETE FROM dead_letters WHERE id = (SELECT min(id) FROM dead_letters)", 0),
            ("DELETE FROM dead_letters WHERE about LIKE '%retrying%'", 0),
            ("UPDATE dead_letters SET about = replace(about, 'a test', 'a tesT') WHERE about LIKE '%retrying%'", 0),
            ("UPDATE dead_letters SET about = replace(about, 'a test', 'a tesT')", 1),
        ] {
            let _naming = Naming(sample.name, sql);
            let case = sample.copy();
            case.sql(sql);
            let (after, left, counted, report) = account(&case);
            // An older copy may have turned up: then it is not lost.
            let lost = all - left.count;
            println!("{sql} of `{}`: {lost} of {all} lost", sample.name);
            assert!(lost >= least, "{lost} lost");
            assert_eq!(counted, lost);
            assert_eq!(report.lost_events, lost);
            assert_eq!(after.lost, before.lost + lost, "{after:?}");
            assert_eq!((after.dead_lettered, left.retrying), (left.count, 0), "{after:?}");
            assert_eq!(after.stored, before.stored - lost, "{after:?}");
            let told = report.warnings.iter().any(|line| line.contains(&format!("{lost} of the sink early")));
            assert_eq!(told, lost > 0, "{report:?}");
            // The account stays as it is.
            let (again, .., counted, report) = account(&case);
            assert!(again == after && counted == 0 && report.damage.is_none(), "{again:?} {report:?}");
        }
    }
}

/// Damage took the places, and a crash came before new ones were written.
#[test]
fn lost_places_stay_lost_until_there_are_new_ones() {
    let sample = Sample::new(Kind::File);
    for sql in ["DELETE FROM sinks", "DELETE FROM state; DELETE FROM sinks"] {
        let (case, crashed) = (sample.copy(), sample.copy());
        case.sql(sql);
        RUNTIME.block_on(async {
            let open = Open::new(case.folder.path()).unwrap();
            assert!(open.report.damage.is_some());
            copy(case.folder.path(), crashed.folder.path());
            open.journal.close().await;
            let open = Open::new(crashed.folder.path()).unwrap();
            assert!(open.report.damage.is_none(), "{:?}", open.report);
            assert_eq!(open.account("late").pending, sample.events.len() as u64);
            open.journal.close().await;
            // A sink that is new now begins at the end, as ever.
            let config = config(crashed.folder.path(), &[("SINKS__NEW__TYPE", "stdout")]);
            let open = Open::with(config).unwrap();
            assert_eq!(open.account("new").pending, 0);
            assert_eq!(open.account("late").pending, sample.events.len() as u64);
            open.journal.close().await;
        });
    }
}

/// What a lane cannot read ends the journal; the next start sees to it.
#[test]
fn damage_that_comes_while_it_runs() {
    let sample = Sample::new(Kind::File);
    let (case, next) = (sample.copy(), sample.copy());
    RUNTIME.block_on(async {
        let mut open = Open::new(case.folder.path()).unwrap();
        case.change("journal.db", |bytes| {
            let half = bytes.len() / 2 / PAGE * PAGE;
            bytes[half..].fill(0xff);
        });
        let cursor = open.cursors.get_mut("late").unwrap();
        while let Ok(events) = cursor.read().await {
            for event in events.events() {
                assert!(event.body() == sample.events[&event.sequence()].1, "{} is altered", event.sequence());
            }
        }
        let mut state = open.journal.state();
        let failed = state.wait_for(|state| *state == State::Failed);
        assert!(tokio::time::timeout(PATIENCE, failed).await.is_ok());
        copy(case.folder.path(), next.folder.path());
        open.journal.close().await;
    });
    assert!(next.judge("damaged while it ran").damage.is_some());
}

/// The journal is salvaged again and again, also what was salvaged before.
#[test]
fn damage_upon_damage() {
    for kind in KINDS {
        let sample = Sample::new(kind);
        for seed in 0..4 {
            let case = sample.copy();
            let mut random = fastrand::Rng::with_seed(seed);
            let mut gone = BTreeSet::new();
            for round in 0..6 {
                let _naming = Naming(sample.name, &format!("seed {seed}, round {round}"));
                for _ in 0..random.usize(1..4) {
                    let bits = fs::read(case.path("journal.db")).unwrap().len() * 8;
                    flip(&case, "journal.db", random.usize(..bits));
                }
                RUNTIME.block_on(async {
                    let mut open = Open::new(case.folder.path()).unwrap();
                    let lost = open.report.damage.iter().flat_map(|damage| damage.lost.clone());
                    for sequence in lost.flat_map(|(first, last)| first..=last) {
                        // Once more if what was known of losses is lost with the rest.
                        gone.insert(sequence);
                    }
                    let had: BTreeSet<u64> = open.read("late").await.iter().map(Event::sequence).collect();
                    let all: BTreeSet<u64> = sample.events.keys().copied().collect();
                    assert_eq!(all.difference(&gone).copied().collect::<BTreeSet<_>>(), had);
                    assert_eq!(open.account("late").pending, had.len() as u64);
                    open.journal.close().await;
                });
            }
        }
    }
}

#[test]
fn a_crash_at_any_step_of_a_salvage() {
    let sample = Sample::new(Kind::Mixed);
    let damaged = || {
        let case = sample.copy();
        case.sql("DELETE FROM state; DELETE FROM groups WHERE first = (SELECT max(first) FROM groups)");
        case
    };
    // What a salvage leaves behind.
    let done = damaged();
    RUNTIME.block_on(async { Open::new(done.folder.path()).unwrap().journal.close().await });
    let aside_name = "damaged-1790000000000";
    let lost = sample.last();
    let record =
        format!(r#"{{"reason":"a test","set_aside":"/old/{aside_name}","lost":[[{lost},{lost}]],"also":["more"]}}"#);
    let new = fs::read(done.path("journal.db")).unwrap();
    let begun = |complete: Option<&[u8]>| {
        let case = damaged();
        fs::create_dir(case.path("rebuild")).unwrap();
        case.write("rebuild/new.db", &new);
        if let Some(name) = complete {
            case.write("rebuild/complete", name);
        }
        case
    };

    // Before the new database is whole: all over again.
    let case = damaged();
    fs::create_dir(case.path("rebuild")).unwrap();
    assert!(case.judge("an empty rebuild").damage.is_some());
    let case = begun(None);
    case.write("rebuild/new.db", b"half a database");
    case.write("rebuild/new.db-wal", b"and half a log");
    case.write("rebuild/complete.new", b"damaged-1");
    assert!(case.judge("half a rebuild").damage.is_some());

    // Afterwards: on from there, and told, as the start that was interrupted may not have come to that.
    let odd_name = record.replace("damaged-", "../");
    for (what, record) in [("whole", record.as_bytes()), ("damaged", b"\xff"), ("odd name", odd_name.as_bytes())] {
        for moved in 0..4 {
            let mut case = begun(Some(record));
            (case.resumed, case.blind) = (true, what == "damaged");
            if moved > 0 {
                fs::create_dir(case.path(aside_name)).unwrap();
            }
            // A log of nothing, which the change by SQL has removed.
            case.write("journal.db-wal", b"");
            for name in ["journal.db", "journal.db-wal"].iter().take(moved) {
                move_file(&case.path(name), &case.path(aside_name).join(name));
            }
            if moved == 3 {
                move_file(&case.path("rebuild/new.db"), &case.path("journal.db"));
            }
            let told = case.judge(&format!("{what}, {moved} moved"));
            assert!(told.damage.is_some() && !told.warnings.is_empty(), "{what}, {moved} moved: {told:?}");
            assert_eq!(told.lost, u64::from(what != "damaged"), "{what}, {moved} moved: {told:?}");
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "no power is cut here")]
fn move_file(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
}

#[test]
fn a_newer_format_is_left_alone() {
    for kind in KINDS {
        let sample = Sample::new(kind);
        for version in [2, 3, 999] {
            for checkpoint in [true, false] {
                let case = sample.copy();
                let database = Connection::open(case.path("journal.db")).unwrap();
                database
                    .set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, !checkpoint)
                    .unwrap();
                database.pragma_update(None, "user_version", version).unwrap();
                drop(database);
                if version == 3 && checkpoint {
                    // One bit off in a header without a checksum is damage, as the mark has the format too.
                    assert!(case.judge("one bit off").damage.is_some());
                    continue;
                }
                case.is_refused(version);
            }
        }
        let case = sample.copy();
        case.change("mark", |mark| {
            mark[8..12].copy_from_slice(&7_u32.to_le_bytes());
            let checksum = xxhash_rust::xxh3::xxh3_64(&mark[..40]);
            mark[40..48].copy_from_slice(&checksum.to_le_bytes());
        });
        case.is_refused(7);
    }
}

/// `cargo test --release --test it recovery::a_large -- --ignored --nocapture`
#[test]
#[ignore = "half a gigabyte; prints figures"]
fn a_large_journal_opens_and_is_salvaged_in_time() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("journal");
    let mut random = fastrand::Rng::with_seed(1);
    RUNTIME.block_on(async {
        let open = Open::new(&path).unwrap();
        for _ in 0..1_600 {
            let group: Vec<_> = (0..128).map(|_| sized(&mut random, 2_000)).collect();
            futures_util::future::join_all(group.iter().map(|(_, body)| open.append(body))).await;
        }
        open.journal.close().await;
        let timed = |what: &str| {
            let bytes = fs::metadata(path.join("journal.db")).unwrap().len();
            let start = Instant::now();
            let open = Open::new(&path).unwrap();
            let took = start.elapsed();
            let per_gb = took.as_secs_f64() / bytes as f64 * 1e9;
            println!("{what}: {bytes} bytes, {} events in {took:.2?}: {per_gb:.2} s a GB", open.report.events);
            assert!(per_gb < 5.0, "{what} takes {per_gb:.1} s a GB");
            open
        };
        timed("opened").journal.close().await;
        let open = timed("opened again");
        assert!(open.report.damage.is_none());
        open.journal.close().await;
        let mut database = fs::OpenOptions::new().write(true).open(path.join("journal.db")).unwrap();
        std::io::Seek::seek(&mut database, std::io::SeekFrom::Start(100_000_000)).unwrap();
        std::io::Write::write_all(&mut database, &[0; 4096]).unwrap();
        let start = Instant::now();
        let open = Open::new(&path).unwrap();
        println!("salvaged in {:.2?}, {} lost", start.elapsed(), open.report.lost_events);
        assert!(open.report.damage.is_some());
        open.journal.close().await;
    });
}

#[test]
fn the_receiver_starts_with_what_is_left_and_tells() {
    let receiver = Setup::embedded().start();
    let events: Vec<_> = (0..20).map(|_| new_event()).collect();
    for (id, event) in &events {
        receiver.post(event).assert_durable("stored", id);
    }
    let (setup, _) = receiver.kill();
    let log = setup.journal().join("journal.db-wal");
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() * 2 / 3]).unwrap();

    let receiver = setup.start();
    let told = receiver.log.wait("a line about the damage", |line| {
        let line = log_line(line)?;
        (line["message"].as_str()?.contains("damaged") && line["level"] == "ERROR").then_some(line)
    });
    let lost = receiver.metric("journal_lost_events_total");
    assert_eq!(told["lost_events"], lost);
    assert!((1..20).contains(&lost), "{lost}");
    let aside = PathBuf::from(told["set_aside"].as_str().unwrap());
    assert!(fs::read(aside.join("journal.db-wal")).unwrap() == bytes[..bytes.len() * 2 / 3]);
    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    assert_eq!(status["journal"]["lost_events"], lost);
    let (mut duplicates, mut wire) = (0, receiver.connect());
    for (_, event) in &events {
        duplicates += u64::from(wire.post(event.as_bytes()).json()["status"] == "duplicate");
    }
    // What was lost had been delivered, except for the moment before the crash; it is known or stored again.
    assert!(duplicates >= 20 - lost, "{duplicates} known, {lost} lost");
    receiver.finish();

    // The next start has nothing to tell.
    let receiver = setup.start();
    assert_eq!(receiver.metric("journal_lost_events_total"), 0);
    let ended = receiver.finish();
    assert!(!ended.log.iter().any(|line| line.contains("damage")), "{ended:?}");
}

#[test]
fn the_receiver_ends_when_the_journal_is_of_a_newer_format() {
    let receiver = Setup::embedded().start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    let (setup, _) = receiver.kill();
    let path = setup.journal().join("journal.db");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 999).unwrap();
    let before = fs::read(&path).unwrap();
    for _ in 0..2 {
        let ended = setup.start_in_vain();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let told = |line: &String| line.contains("999") && line.contains("journal.db");
        assert!(ended.log.iter().any(told), "{ended:?}");
        let checked = setup.command().arg("check").output().unwrap();
        let lines = String::from_utf8(checked.stdout).unwrap();
        assert!(checked.status.code() == Some(78) && lines.contains("has format 999"), "{lines}");
        assert!(fs::read(&path).unwrap() == before);
    }
}
