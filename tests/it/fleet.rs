//! A fleet: two receivers behind HAProxy whose journal is a cluster of three NATS servers, under load with faults, while one
//! part after the other fails. What was acknowledged comes out, in order, and is known to whichever receiver is asked.
#![allow(clippy::print_stdout, reason = "a run says what it went through")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::haproxy::Fleet;
use crate::harness::nats::NatsCluster;
use crate::harness::pki::PKI;
use crate::harness::programs::json_of;
use crate::harness::receiver::Setup;
use crate::harness::simulator::{Simulator, simulate, verify};
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wait_for;
use crate::streams;

const STREAM: &str = "FLEET";

#[test]
fn a_fleet_loses_nothing_and_keeps_the_order_whatever_fails() {
    let mut run = Run::start();

    run.phase("nothing fails", |run, _| run.retries_are_known());
    assert_eq!(run.verified(&run.files(), &[])["repeated"], 0, "nothing was to be repeated");

    run.phase("the stream's leader is killed", |run, load| {
        let leader = run.cluster.leader_of(STREAM);
        run.cluster.kill(leader);
        load.reaches_both(run);
        run.retries_are_known();
        run.cluster.start_again(leader);
    });
    run.phase("a follower is killed", |run, load| {
        let follower = (run.cluster.leader_of(STREAM) + 1) % 3;
        run.cluster.kill(follower);
        load.reaches_both(run);
        run.retries_are_known();
        run.cluster.start_again(follower);
    });
    run.phase("a receiver is killed", |run, load| {
        run.fleet.kill(0);
        load.reaches(run, 1);
        run.web.goes_on();
        run.fleet.start_again(0);
    });
    run.phase("the stream's leader is cut off", |run, load| {
        let leader = run.cluster.leader_of(STREAM);
        run.cluster.cut(leader);
        load.reaches_both(run);
        run.retries_are_known();
        run.cluster.heal(leader);
    });
    run.phase("the stream's leader is paused", |run, load| {
        let leader = run.cluster.leader_of(STREAM);
        let begun = Instant::now();
        run.cluster.pause(leader);
        load.reaches_both(run);
        run.retries_are_known();
        thread::sleep(Duration::from_secs(12).saturating_sub(begun.elapsed()));
        run.cluster.resume(leader);
    });
    run.phase("a receiver is paused", |run, load| {
        run.fleet.receiver(1).signal(Signal::STOP);
        load.reaches(run, 0);
        // Longer than it may keep a partition.
        thread::sleep(Duration::from_secs(10));
        run.web.goes_on();
        run.fleet.receiver(1).signal(Signal::CONT);
    });
    let shares = run.files().map(|file| fs::metadata(file).unwrap().len());
    assert!(shares.iter().all(|bytes| *bytes > 100_000), "both should have delivered: {shares:?}");
    run.fleet.finish();
}

/// Here, for it needs the machine to itself as well.
#[test]
fn whatever_happens_to_a_stream_of_three_servers_what_gets_200_afterwards_comes_out() {
    streams::run_on_three_servers(&streams::SLICE_OF_THREE);
}

/// The fleet, what its sinks have had, and what its sender knows.
struct Run {
    cluster: NatsCluster,
    fleet: Fleet,
    web: Web,
    folder: TempDir,
    phases: u64,
}

impl Run {
    fn start() -> Self {
        let (cluster, folder) = (NatsCluster::start(""), TempDir::new().unwrap());
        let web = Web::start(&folder.path().join("web"));
        // A receiver may well begin without a part of the events.
        for name in ["ledger", "out0", "out1"] {
            File::create(folder.path().join(name)).unwrap();
        }
        let setups = [0, 1].map(|number| {
            let setup = Setup::embedded()
                .set("journal.nats.stream", STREAM)
                .set("journal.nats.partitions", 8)
                // As long as it takes to find another leader, and somewhat more.
                .set("listen.answer_within", "15s")
                .set("listen.max_connection_age", "2s")
                .set("log.level", "info")
                .set("sinks.out.type", "file")
                .set("sinks.out.path", &folder.path().join(format!("out{number}")))
                .set("sinks.web.type", "http")
                .set("sinks.web.url", &*web.target.url("/"))
                .set("sinks.web.format", "envelope")
                .set("sinks.web.timeout", "2s")
                .set("sinks.web.retry.initial_backoff", "20ms")
                .set("sinks.web.retry.max_backoff", "200ms");
            cluster.journal_of(setup)
        });
        Self { fleet: Fleet::start("send-proxy-v2", setups), cluster, web, folder, phases: 0 }
    }

    /// Under load something goes wrong and is mended. After that everything that was acknowledged since the run began is in
    /// the files and at the target, which had it in order, and is known to both receivers.
    #[track_caller]
    fn phase(&mut self, what: &str, happens: impl FnOnce(&mut Self, &Load)) {
        self.phases += 1;
        let begun = Instant::now();
        let load = Load::start(self);
        load.reaches_both(self);
        happens(self, &load);
        load.reaches_both(self);
        self.cluster.wait_whole();
        let summary = load.stop(self);
        let ended = begun.elapsed();
        for number in 0..2 {
            let _ = self.fleet.receiver(number).settled();
        }
        for sink in ["out", "web"] {
            // Each knows at once of what it stored itself, and a moment later of the rest.
            wait_for("both to say that all is delivered", || {
                let [one, other] = [0, 1].map(|number| self.fleet.receiver(number).sink(sink));
                let same = ["stored", "delivered"].iter().all(|word| one[word] == other[word]);
                (same && one["pending"] == 0 && other["pending"] == 0).then_some(())
            });
        }
        let files = self.verified(&self.files(), &["--allow-repeats"]);
        let web = self.verified(std::slice::from_ref(&self.web.path), &["--allow-repeats"]);
        self.web.was_in_order();
        self.retries_are_known();
        let [sent, stored, dropped] = ["sent", "stored", "dropped"].map(|word| summary[word].as_u64().unwrap());
        // How long an election takes is for the servers and the machine to say, and not for this test.
        assert!(stored > 100, "{what}: {summary}");
        println!(
            "{what}: {sent} sent, {dropped} dropped, at worst {} ms; {} and {} repeats; {:.1} s, settled after {:.1} s",
            summary["latency_us"]["max"].as_u64().unwrap_or_default() / 1_000,
            files["repeated"],
            web["repeated"],
            ended.as_secs_f64(),
            begun.elapsed().as_secs_f64(),
        );
    }

    /// A retry of what was stored gets `duplicate`, on the receiver that stored it and on the other one.
    #[track_caller]
    fn retries_are_known(&self) {
        for (id, body) in self.web.newest() {
            for number in [0, 1] {
                let answer = wait_for("a 200", || {
                    let answer = self.fleet.connect(number).post(body.as_bytes());
                    (answer.status == 200).then_some(answer)
                });
                answer.assert_durable("duplicate", &id);
            }
        }
    }

    /// What the file sinks have written.
    fn files(&self) -> [PathBuf; 2] {
        [0, 1].map(|number| self.folder.path().join(format!("out{number}")))
    }

    fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    #[track_caller]
    fn verified(&self, files: &[PathBuf], arguments: &[&str]) -> Value {
        let output = verify(&self.ledger(), files, &[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        json_of(&output)
    }
}

/// ASAPP, posting until it is stopped.
struct Load {
    simulator: Simulator,
    ledger: PathBuf,
}

impl Load {
    fn start(run: &Run) -> Self {
        let ledger = run.folder.path().join(run.phases.to_string());
        let mut command = simulate(&run.fleet.haproxy.url("/events"), &PKI.client);
        command.args(["--rate", "100", "--connections", "16", "--retries", "5", "--timeout-ms", "16000"]);
        command.args(["--duration", "1000h", "--seed", &run.phases.to_string()]).arg("--ledger").arg(&ledger);
        for fault in ["duplicates", "reorder", "drift", "abort", "malformed"] {
            command.args([&format!("--{fault}"), "0.03"]);
        }
        Self { simulator: Simulator::start(command), ledger }
    }

    /// Waits until this receiver has stored some events of it, one for each connection.
    #[track_caller]
    fn reaches(&self, run: &Run, number: usize) {
        let receiver = run.fleet.receiver(number);
        receiver.wait_metric("stored_total", receiver.metric("stored_total") + 16);
    }

    #[track_caller]
    fn reaches_both(&self, run: &Run) {
        self.reaches(run, 0);
        self.reaches(run, 1);
    }

    /// Its summary; its ledger is part of the run's from now on.
    #[track_caller]
    fn stop(self, run: &Run) -> Value {
        let summary = self.simulator.stop();
        let mut all = OpenOptions::new().append(true).open(run.ledger()).unwrap();
        all.write_all(&fs::read(self.ledger).unwrap()).unwrap();
        summary
    }
}

/// The target of an HTTP sink, which remembers what it took, and does not take everything at once.
struct Web {
    target: Target,
    taken: Arc<Mutex<Vec<Taken>>>,
    /// The events that it took, a line each.
    path: PathBuf,
}

struct Taken {
    sequence: u64,
    /// `None`: nothing keeps it in order.
    entity: Option<String>,
    id: String,
    body: String,
}

impl Web {
    fn start(path: &Path) -> Self {
        let taken = Arc::<Mutex<Vec<Taken>>>::default();
        let (keeping, file) = (Arc::clone(&taken), Mutex::new(File::create(path).unwrap()));
        let target = Target::start(move |request| {
            let luck = fastrand::u8(..100);
            if luck < 3 {
                return Reply::status(503);
            }
            let event = Taken::from(request);
            let line = event.body.replace(['\r', '\n'], " ") + "\n";
            file.lock().unwrap().write_all(line.as_bytes()).unwrap();
            keeping.lock().unwrap().push(event);
            // It has the event, and the sink cannot know.
            if luck == 3 {
                Reply::break_off()
            } else {
                Reply::status(200).after(Duration::from_millis(luck.into()) / 10)
            }
        });
        Self { target, taken, path: path.to_owned() }
    }

    /// Waits until it has taken some more that it had not had before.
    #[track_caller]
    fn goes_on(&self) {
        let newest = || self.taken.lock().unwrap().iter().map(|event| event.sequence).max();
        let before = newest();
        wait_for("the target to get something new", || (newest() > before.map(|last| last + 50)).then_some(()));
    }

    /// Some of the last, with their ids.
    fn newest(&self) -> Vec<(String, String)> {
        let taken = self.taken.lock().unwrap();
        taken.iter().rev().step_by(7).take(4).map(|event| (event.id.clone(), event.body.clone())).collect()
    }

    /// Every entity's events came for the first time in the order in which they are stored.
    #[track_caller]
    fn was_in_order(&self) {
        let taken = self.taken.lock().unwrap();
        let (mut known, mut last) = (BTreeSet::new(), BTreeMap::new());
        for event in taken.iter().filter(|event| known.insert(event.sequence)) {
            let Some(entity) = &event.entity else { continue };
            let before = last.insert(entity, event.sequence).unwrap_or_default();
            assert!(before < event.sequence, "{entity}: {before} came before {}", event.sequence);
        }
        assert!(last.len() > 10, "{last:?}");
    }
}

impl From<&Request> for Taken {
    fn from(request: &Request) -> Self {
        let sequence = request.json()["sequence"].as_u64().unwrap();
        // Its exact bytes, white space around it included.
        let body = request.text().split_once(r#","event":"#).unwrap().1.strip_suffix('}').unwrap().to_owned();
        let event: Value = serde_json::from_str(&body).unwrap();
        let feed = event["name"].as_str().unwrap();
        let entity = match feed.rsplit('.').next().unwrap() {
            "activity" => &event["data"]["rep_id"],
            "journey" => &event["meta_data"]["issue_id"],
            "queue" => &event["data"]["queue_id"],
            _ => &Value::Null,
        };
        let entity = entity.as_str().filter(|id| !id.is_empty()).map(|id| format!("{feed} {id}"));
        Self { sequence, entity, id: event["event_id"].as_str().unwrap().to_owned(), body }
    }
}
