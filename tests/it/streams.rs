//! What happens to the streams of a journal in NATS, whatever an operator, a backup or a power cut does to them: what gets
//! 200 afterwards comes out, what was lost is counted, and the accounts add up.
//!
//! The whole table, which takes an hour: `cargo test --locked --test it -- --ignored --nocapture streams::the_whole_table`

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::event::{event, new_id};
use crate::harness::nats::jetstream::{Backup, JetStream};
use crate::harness::nats::{NatsCluster, NatsServer};
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Request, Target};

/// Elections of three servers on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Events,
    State,
    DeadLetters,
    Quarantine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// And made again by a receiver that starts.
    Deleted,
    /// Deleted and made again by an operator.
    Recreated,
    Purged,
    /// As it was on the servers' disks some time ago.
    Shortened,
    /// Deleted, and made again out of a backup.
    Restored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Live,
    Stopped,
}

pub(crate) type Cell = (Of, How, When);

const STREAMS: [Of; 4] = [Of::Events, Of::State, Of::DeadLetters, Of::Quarantine];
const WAYS: [How; 5] = [How::Deleted, How::Recreated, How::Purged, How::Shortened, How::Restored];

impl Of {
    fn name(self, stream: &str) -> String {
        let more = match self {
            Self::Events => "",
            Self::State => "_STATE",
            Self::DeadLetters => "_DEAD_LETTERS",
            Self::Quarantine => "_QUARANTINE",
        };
        format!("{stream}{more}")
    }
}

/// Every stream in every way, live and while stopped in turn.
#[test]
fn whatever_happens_to_a_stream_what_gets_200_afterwards_comes_out() {
    let cells = STREAMS.into_iter().enumerate().flat_map(|(of, stream)| {
        let when = move |how: usize| if (of + how).is_multiple_of(2) { When::Live } else { When::Stopped };
        WAYS.into_iter().enumerate().map(move |(how, way)| (stream, way, when(how)))
    });
    // A few at a time: they wait most of the time.
    let cells: Vec<Cell> = cells.collect();
    run_on_one_server(&cells, 4);
}

/// Every stream, every way and both times, once on three servers.
pub(crate) const SLICE_OF_THREE: [Cell; 5] = [
    (Of::Events, How::Recreated, When::Live),
    (Of::State, How::Deleted, When::Stopped),
    (Of::DeadLetters, How::Purged, When::Live),
    (Of::Quarantine, How::Shortened, When::Stopped),
    (Of::Events, How::Restored, When::Live),
];

#[test]
#[ignore = "takes an hour"]
fn the_whole_table() {
    let all: Vec<Cell> = STREAMS
        .into_iter()
        .flat_map(|of| WAYS.into_iter().map(move |how| (of, how)))
        .flat_map(|(of, how)| [When::Live, When::Stopped].map(|when| (of, how, when)))
        .collect();
    thread::scope(|scope| {
        let one = scope.spawn(|| catch_unwind(|| run_on_one_server(&all, 2)).is_ok());
        let three = scope.spawn(|| catch_unwind(|| run_on_three_servers(&all)).is_ok());
        let both = [one, three].map(|run| run.join().unwrap());
        assert_eq!(both, [true, true]);
    });
}

#[track_caller]
fn run_on_one_server(cells: &[Cell], at_a_time: usize) {
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                let mut place = Place::One(NatsServer::start(""));
                while let Some(cell) = cells.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap()) {
                    failed.fetch_add(u64::from(!run(&mut place, *cell)), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0, "see above");
}

#[track_caller]
pub(crate) fn run_on_three_servers(cells: &[Cell]) {
    let mut place = Place::Three(Box::new(NatsCluster::start("")));
    let failed = cells.iter().filter(|cell| !run(&mut place, **cell)).count();
    assert_eq!(failed, 0, "see above");
}

/// Says what came of it, in a line of the table.
#[expect(clippy::print_stdout, reason = "the table is what this is for")]
fn run(place: &mut Place, cell: Cell) -> bool {
    let servers = place.replicas();
    let (of, how, when) = cell;
    let begun = Instant::now();
    let came = catch_unwind(AssertUnwindSafe(|| Trial::run(place, cell)));
    let told = match &came {
        Ok(outcome) => outcome.to_string(),
        Err(why) => {
            let text = why.downcast_ref::<String>().cloned();
            format!(
                "FAILED: {}",
                text.or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
            )
        }
    };
    let (of, how, when) = (format!("{of:?}"), format!("{how:?}"), format!("{when:?}"));
    println!("| {of:11} | {how:9} | {when:7} | {servers} | {told} | {:.0} s |", begun.elapsed().as_secs_f64());
    came.is_ok()
}

/// What came of one.
struct Outcome {
    after: usize,
    lost: usize,
    repeated: usize,
    web: Value,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, lost, repeated, web } = self;
        let part = |word: &str| web[word].as_u64().unwrap_or_default();
        write!(
            f,
            "{after} of {after} stored afterwards came out; {lost} lost before, {lost} counted; {repeated} came again; \
             {} = {} delivered + {} dead + {} pending",
            part("stored"),
            part("delivered"),
            part("dead_lettered"),
            part("pending")
        )
    }
}

/// Where the streams are.
enum Place {
    One(NatsServer),
    Three(Box<NatsCluster>),
}

impl Place {
    fn replicas(&self) -> usize {
        if matches!(self, Self::One(_)) { 1 } else { 3 }
    }

    fn client(&self) -> JetStream {
        match self {
            Self::One(server) => JetStream::connect(&[server.url()], None),
            Self::Three(cluster) => JetStream::connect(&cluster.urls(), Some(&cluster.pki)),
        }
    }

    fn setup(&self, stream: &str) -> Setup {
        let setup = match self {
            Self::One(server) => Setup::embedded().in_stream(server, stream),
            Self::Three(cluster) => cluster.journal_of(Setup::embedded().set("journal.nats.stream", stream)),
        };
        setup.set("journal.nats.partitions", 4).set("listen.answer_within", "15s").set("log.level", "info")
    }

    /// The folders of all streams, and of what the servers have agreed on, of each server.
    fn stores(&self) -> Vec<PathBuf> {
        match self {
            Self::One(server) => vec![server.store()],
            Self::Three(cluster) => cluster.stores(),
        }
    }

    /// Runs with no server running.
    fn while_down<T>(&mut self, what: impl FnOnce(&[PathBuf]) -> T) -> T {
        let stores = self.stores();
        match self {
            Self::One(server) => {
                server.kill();
                let done = what(&stores);
                server.start_again();
                done
            }
            Self::Three(cluster) => {
                (0..3).for_each(|node| cluster.kill(node));
                let done = what(&stores);
                (0..3).for_each(|node| cluster.start_again(node));
                cluster.wait_whole();
                done
            }
        }
    }
}

/// A stream as it was some time ago.
enum Older {
    None,
    Backup(Backup),
    /// A copy of each of these folders.
    Copies(TempDir, Vec<PathBuf>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Good,
    Bad,
    Held,
}

/// One receiver, or two on three servers; one sink that takes everything and one that does not.
struct Trial<'a> {
    place: &'a mut Place,
    client: JetStream,
    cell: Cell,
    stream: String,
    setup: Setup,
    target: Target,
    released: Arc<AtomicBool>,
    receivers: Vec<Receiver>,
    posted: BTreeMap<String, Kind>,
    malformed: u64,
    /// Events that were lost, and were stored once more.
    stored_again: usize,
    /// All that were: servers may not know an id any more after a restore.
    copies: usize,
}

impl<'a> Trial<'a> {
    #[track_caller]
    fn run(place: &'a mut Place, cell: Cell) -> Outcome {
        let mut trial = Self::start(place, cell);
        trial.post_some();
        trial.wait_for_marks();
        let kept: BTreeSet<String> = trial.posted.keys().cloned().collect();
        let older = trial.keep();
        trial.post_some();
        trial.wait_for_marks();
        let before: BTreeSet<String> = trial.posted.keys().cloned().collect();
        trial.disturb(older);
        trial.post_some();
        let gone = trial.gone(&before, &kept);
        trial.post_again(&before, &gone);
        trial.wait_for_losses(gone.len());
        trial.released.store(true, Ordering::Relaxed);
        let outcome = trial.outcome(&before);
        trial.begin_again();
        trial.end();
        outcome
    }

    #[track_caller]
    fn start(place: &'a mut Place, cell: Cell) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let stream = format!("Z{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let released = Arc::new(AtomicBool::new(false));
        let is_released = Arc::clone(&released);
        let target = Target::start(move |request| {
            let (text, all) = (request.text(), request.path == "/all");
            let is_held = text.contains("\"held\"") && !is_released.load(Ordering::Relaxed);
            Reply::status(match (all, text.contains("\"bad\""), is_held) {
                (true, ..) | (false, false, false) => 200,
                (false, true, _) => 422,
                (false, _, true) => 503,
            })
        });
        let setup = place.setup(&stream).sinks_to(&target, &["all", "web"]);
        let client = place.client();
        let (receivers, posted) = (Vec::new(), BTreeMap::new());
        let mut trial = Self {
            place,
            client,
            cell,
            stream,
            setup,
            target,
            released,
            receivers,
            posted,
            malformed: 0,
            stored_again: 0,
            copies: 0,
        };
        trial.start_receivers();
        trial
    }

    #[track_caller]
    fn start_receivers(&mut self) {
        let count = if self.place.replicas() == 1 { 1 } else { 2 };
        let started = (0..count).map(|_| self.start_one());
        self.receivers = started.collect();
    }

    #[track_caller]
    fn start_one(&self) -> Receiver {
        // A cluster that has just begun may not have all its leaders.
        let receiver =
            self.wait("a receiver to start", || catch_unwind(AssertUnwindSafe(|| self.setup.start_unready())).ok());
        self.wait("a receiver to be ready", || receiver.is_ready().then_some(()));
        receiver
    }

    #[track_caller]
    fn wait<T>(&self, description: &str, mut what: impl FnMut() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(answer) = what() {
                return answer;
            }
            assert!(begun.elapsed() < PATIENCE, "waited in vain for {description}: {}", self.last_words());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the receivers say, and have said of late.
    fn last_words(&self) -> String {
        let of = |receiver: &Receiver| {
            let status = receiver.ask_admin("/api/v1/status").map(|answer| answer.text().to_owned());
            let lines = receiver.log.so_far();
            format!("{status:?}\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
        };
        let log = self.client.newest(&Of::State.name(&self.stream), &format!("{}.log", Of::State.name(&self.stream)));
        format!("{log:?}\n{}", self.receivers.iter().map(of).collect::<Vec<_>>().join("\n"))
    }

    /// Some of each kind, each until it has its 200, and a body that is none.
    #[track_caller]
    fn post_some(&mut self) {
        for kind in [Kind::Good, Kind::Bad, Kind::Held, Kind::Good, Kind::Held, Kind::Bad, Kind::Held, Kind::Good] {
            let id = new_id();
            self.post(&id, kind);
            self.posted.insert(id, kind);
        }
        self.malformed += 1;
        let body = body(self.malformed);
        self.wait("a body to be kept", || (self.receivers[0].post(&body).status == 400).then_some(()));
        self.wait("all that can be delivered to be", || {
            let requests = self.target.requests();
            let is_there = |id: &String, path: &str| came(&requests, path).any(|request| request.text().contains(id));
            let held = |kind: &Kind| *kind == Kind::Held && !self.released.load(Ordering::Relaxed);
            let mut all = self.posted.iter();
            all.all(|(id, kind)| is_there(id, "/all") && (held(kind) || *kind == Kind::Bad || is_there(id, "/web")))
                .then_some(())
        });
        let bad = self.posted.iter().filter(|(_, kind)| **kind == Kind::Bad);
        // Those of before may be lost by now.
        let newest: Vec<&String> = bad.map(|(id, _)| id).rev().take(2).collect();
        self.wait("dead letters", || {
            let letters = self.letters();
            newest.iter().all(|id| letters.contains(*id)).then_some(())
        });
    }

    /// To one receiver after the other; what the 200 says.
    #[track_caller]
    fn post(&self, id: &str, kind: Kind) -> String {
        let body = event(id).replace("hello", &format!("{kind:?}").to_lowercase()).replace("issue-1", id);
        let at = self.posted.len() % self.receivers.len();
        let said = self.wait("a 200", || Some(self.receivers[at].post(&body)).filter(|answer| answer.status == 200));
        said.json()["status"].as_str().unwrap().to_owned()
    }

    /// What is lost now: what was held, unless it was `kept` in the older stream.
    fn gone(&self, before: &BTreeSet<String>, kept: &BTreeSet<String>) -> BTreeSet<String> {
        let is_gone = |id: &&String| match self.cell {
            (Of::Events, How::Deleted | How::Recreated | How::Purged, _) => true,
            (Of::Events, ..) => !kept.contains(*id),
            _ => false,
        };
        before.iter().filter(|id| self.posted[*id] == Kind::Held).filter(is_gone).cloned().collect()
    }

    /// Should something that was held come again, it gets 200, and has to come out, whether it was lost or not.
    #[track_caller]
    fn post_again(&mut self, before: &BTreeSet<String>, gone: &BTreeSet<String>) {
        let mut held = before.iter().filter(|id| self.posted[*id] == Kind::Held);
        for id in [held.next(), held.next_back()].into_iter().flatten() {
            let word = self.post(id, Kind::Held);
            let is_lost = gone.contains(id);
            assert!(!is_lost || word == "stored", "what was lost has to be stored again, and is {word}");
            self.stored_again += usize::from(is_lost);
            self.copies += usize::from(word == "stored");
        }
    }

    /// What is lost has to be counted before what is in the lanes' hands can come out all the same.
    #[track_caller]
    fn wait_for_losses(&self, gone: usize) {
        // Dead letters that are lost are counted as well.
        if self.cell.0 != Of::Events {
            return;
        }
        self.wait(&format!("{gone} lost events"), || {
            let counted = self.receivers.iter().map(lost_events).max();
            (counted == Some(gone as u64)).then_some(())
        });
    }

    /// The record of the log has to have a mark at its end.
    #[track_caller]
    fn wait_for_marks(&self) {
        let last = self.client.info(&self.stream)["state"]["last_seq"].clone();
        let state = Of::State.name(&self.stream);
        self.wait("a mark at the end of the log", || {
            let log = self.client.newest(&state, &format!("{state}.log"))?;
            (log["marks"].as_array()?.last()?["sequence"] == last).then_some(())
        });
        // And that of the dead letters has to know of all.
        let dead = self.posted.values().filter(|kind| **kind == Kind::Bad).count();
        self.wait("the dead letters to be counted", || {
            let stock = self.client.newest(&state, &format!("{state}.stock.dead-letters"))?;
            (stock["count"] == dead).then_some(())
        });
        let held = self.posted.values().filter(|kind| **kind == Kind::Held).count();
        for receiver in &self.receivers {
            self.wait("the held to be pending", || (self.sink(receiver, "web")["pending"] == held).then_some(()));
            self.wait("nothing to be pending", || (self.sink(receiver, "all")["pending"] == 0).then_some(()));
        }
    }

    /// With its sum.
    #[track_caller]
    fn sink(&self, receiver: &Receiver, name: &str) -> Value {
        self.wait("the status", || receiver.ask_admin("/api/v1/status").ok().filter(|answer| answer.status == 200));
        receiver.sink(name)
    }

    /// Keeps the stream as it is now.
    #[track_caller]
    fn keep(&mut self) -> Older {
        let (of, how, _) = self.cell;
        let name = of.name(&self.stream);
        match how {
            How::Restored => Older::Backup(self.client.backup(&name)),
            How::Shortened => {
                let group = self.client.info(&name)["cluster"]["raft_group"].as_str().map(str::to_owned);
                let kept = TempDir::new().unwrap();
                let folders = self.place.while_down(|stores| {
                    let folders: Vec<PathBuf> =
                        stores.iter().flat_map(|store| folders(store, &name, group.as_deref())).collect();
                    for (number, folder) in folders.iter().enumerate() {
                        copy(folder, &kept.path().join(number.to_string()));
                    }
                    folders
                });
                Older::Copies(kept, folders)
            }
            How::Deleted | How::Recreated | How::Purged => Older::None,
        }
    }

    #[track_caller]
    fn disturb(&mut self, older: Older) {
        let (of, how, when) = self.cell;
        let name = of.name(&self.stream);
        if when == When::Stopped {
            std::mem::take(&mut self.receivers).into_iter().for_each(|receiver| drop(receiver.finish()));
        }
        match (how, older) {
            (How::Deleted, _) => self.client.delete(&name),
            (How::Recreated, _) => {
                let config = self.client.info(&name)["config"].clone();
                self.client.delete(&name);
                self.client.make(&config);
            }
            (How::Purged, _) => self.client.purge(&name),
            (_, Older::Backup(backup)) => {
                self.client.delete(&name);
                self.client.restore(&backup);
            }
            (_, Older::Copies(kept, folders)) => self.place.while_down(|_| {
                for (number, folder) in folders.iter().enumerate() {
                    fs::remove_dir_all(folder).unwrap();
                    copy(&kept.path().join(number.to_string()), folder);
                }
            }),
            (_, Older::None) => panic!("nothing was kept"),
        }
        match when {
            When::Stopped => self.start_receivers(),
            When::Live if how == How::Deleted => {
                // One that starts makes what is not there.
                let another = self.start_one();
                self.receivers.push(another);
            }
            When::Live => {}
        }
        for receiver in &self.receivers {
            self.wait("the receivers to be ready", || receiver.is_ready().then_some(()));
        }
    }

    #[track_caller]
    fn outcome(&self, before: &BTreeSet<String>) -> Outcome {
        let (of, ..) = self.cell;
        let web = self.settled();
        let requests = self.target.requests();
        let letters = self.letters();
        let is_there =
            |id: &str| letters.contains(id) || came(&requests, "/web").any(|request| request.text().contains(id));
        let missing: Vec<&String> = self.posted.keys().filter(|id| !is_there(id)).collect();
        let (old, new): (Vec<&String>, Vec<&String>) = missing.iter().partition(|id| before.contains(**id));
        assert!(new.is_empty(), "got 200 afterwards, and are not there: {new:?}; {}", self.last_words());
        for id in self.posted.keys() {
            let is_there = came(&requests, "/all").any(|request| request.text().contains(id));
            assert!(is_there, "{id} did not come to the sink that takes everything");
        }
        // What was posted once more is there again, and was lost all the same.
        let lost = old.len() + self.stored_again;
        for receiver in &self.receivers {
            // One that has just begun knows only what was found since.
            let has =
                || lost_events(receiver) == lost as u64 || (self.has_late_receiver() && lost_events(receiver) == 0);
            self.wait(&format!("{lost} lost events"), || has().then_some(()));
        }
        let counted = self.receivers.iter().map(lost_events).max().unwrap_or_default();
        assert_eq!(counted, lost as u64, "lost: {old:?}; {}", self.last_words());
        if of == Of::Events {
            let stored = self.posted.len() + self.copies - lost;
            assert_eq!(web["stored"], stored, "{web}; {}", self.last_words());
        }
        if of != Of::Quarantine {
            let kept = self.quarantined();
            assert_eq!(kept.len() as u64, self.malformed, "{kept:?}");
        }
        assert!(self.quarantined().contains(&body(self.malformed).len()), "the newest body is kept");
        let mut deliveries: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for one in ["/all", "/web"].iter().flat_map(|path| came(&requests, path)) {
            *deliveries.entry((&*one.path, one.text())).or_default() += 1;
        }
        let repeated = deliveries.values().map(|times| times - 1).sum();
        Outcome { after: self.posted.len() - before.len(), lost, repeated, web }
    }

    /// Several that began after it had happened: the first of them has found it.
    fn has_late_receiver(&self) -> bool {
        self.receivers.len() > 1 && matches!(self.cell, (.., When::Stopped) | (_, How::Deleted, _))
    }

    /// The sinks have nothing left to do, at every receiver.
    #[track_caller]
    fn settled(&self) -> Value {
        let mut web = Value::Null;
        for receiver in &self.receivers {
            for name in ["all", "web"] {
                web = self.wait("nothing to be pending", || {
                    Some(self.sink(receiver, name)).filter(|sink| sink["pending"] == 0)
                });
            }
        }
        web
    }

    /// Nothing of it is any different after a restart, and it goes on.
    #[track_caller]
    fn begin_again(&mut self) {
        let before = self.settled();
        std::mem::take(&mut self.receivers).into_iter().for_each(|receiver| drop(receiver.finish()));
        self.start_receivers();
        let after = self.settled();
        for word in ["stored", "delivered", "dead_lettered", "pending"] {
            assert_eq!(before[word], after[word], "{word}: {before}, {after}");
        }
        let id = new_id();
        self.post(&id, Kind::Good);
        self.wait("one more to come out", || {
            let requests = self.target.requests();
            let both = ["/all", "/web"].iter().all(|path| came(&requests, path).any(|one| one.text().contains(&id)));
            both.then_some(())
        });
        for receiver in &self.receivers {
            assert_eq!(lost_events(receiver), 0, "nothing more was lost: {}", self.last_words());
        }
    }

    fn end(self) {
        self.receivers.into_iter().for_each(|receiver| drop(receiver.finish()));
        for of in STREAMS {
            self.client.delete(&of.name(&self.stream));
        }
    }

    /// The ids of events in dead letters.
    #[track_caller]
    fn letters(&self) -> BTreeSet<String> {
        let listed = self.receivers[0].ask_admin("/api/v1/dead-letters?limit=1000").unwrap().json();
        let letters = listed["dead_letters"].as_array().cloned().unwrap_or_default();
        letters.iter().filter_map(|letter| letter["event_id"].as_str()).map(str::to_owned).collect()
    }

    /// The sizes of the bodies in the quarantine.
    #[track_caller]
    fn quarantined(&self) -> Vec<usize> {
        let listed = self.receivers[0].ask_admin("/api/v1/quarantine?limit=1000").unwrap().json();
        let bodies = listed["quarantine"].as_array().cloned().unwrap_or_default();
        bodies.iter().filter_map(|body| body["bytes"].as_u64()).map(|bytes| usize::try_from(bytes).unwrap()).collect()
    }
}

/// No JSON, and of a length of its own.
fn body(number: u64) -> String {
    format!("no JSON{}", "!".repeat(usize::try_from(number).unwrap()))
}

/// What a path has taken.
fn came<'a>(requests: &'a [Request], path: &'a str) -> impl Iterator<Item = &'a Request> {
    requests.iter().filter(move |request| request.path == path && request.answered == Some(200))
}

fn lost_events(receiver: &Receiver) -> u64 {
    receiver.ask_admin("/api/v1/status").unwrap().json()["journal"]["lost_events"].as_u64().unwrap()
}

/// Where a server keeps a stream, and what the servers have agreed on about it.
fn folders(store: &Path, stream: &str, group: Option<&str>) -> Vec<PathBuf> {
    let base = store.join("jetstream");
    let agreed = group.map(|group| base.join("$SYS/_js_").join(group));
    [base.join("$G/streams").join(stream)]
        .into_iter()
        .chain(agreed)
        .inspect(|folder| assert!(folder.is_dir(), "{folder:?}"))
        .collect()
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(done.success());
}
