//! What somebody does by hand to the records and consumers of a journal in NATS: no event is lost by it, and nothing stands
//! still without a word.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::event::{big_event, event, new_event, new_id};
use crate::harness::nats::NatsServer;
use crate::harness::nats::jetstream::JetStream;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Target};
use crate::harness::wait_for;
use crate::harness::wire::Answer;

const STREAM: &str = "R";
const STATE: &str = "R_STATE";

/// One receiver with two sinks: one takes everything, the other one nothing until it is released.
struct World {
    client: JetStream,
    target: Target,
    released: Arc<AtomicBool>,
    setup: Setup,
    posted: Vec<String>,
    server: NatsServer,
}

impl World {
    fn new() -> Self {
        let server = NatsServer::start("");
        let released = Arc::new(AtomicBool::new(false));
        let is_released = Arc::clone(&released);
        let target = Target::start(move |request| {
            let takes = request.path == "/all" || is_released.load(Ordering::Relaxed);
            Reply::status(if takes { 200 } else { 503 })
        });
        let setup = Setup::embedded()
            .in_stream(&server, STREAM)
            .set("journal.nats.partitions", 4)
            // What every sink has settled goes soon.
            .set("journal.nats.duplicate_window", "1s")
            .set("journal.retention", "0s")
            .sinks_to(&target, &["all", "web"]);
        let client = JetStream::connect(&[server.url()], None);
        Self { client, target, released, setup, posted: Vec::new(), server }
    }

    /// Posts some events, each of an entity of its own, until the one sink has had them.
    #[track_caller]
    fn post(&mut self, receiver: &Receiver, count: usize) {
        for _ in 0..count {
            let id = new_id();
            receiver.post(event(&id).replace("issue-1", &id)).assert_durable("stored", &id);
            self.posted.push(id);
        }
        wait_for("all of it at the sink that takes everything", || self.missing("/all").is_empty().then_some(()));
    }

    /// Of what was posted, what has not come there.
    fn missing(&self, path: &str) -> Vec<String> {
        let requests = self.target.requests();
        let came = |id: &String| {
            let taken = requests.iter().filter(|one| one.path == path && one.answered == Some(200));
            taken.into_iter().any(|one| one.text().contains(id))
        };
        self.posted.iter().filter(|id| !came(id)).cloned().collect()
    }

    /// Lets everything come out, and compares the account.
    #[track_caller]
    fn assert_complete(&self, receiver: &Receiver) {
        self.released.store(true, Ordering::Relaxed);
        wait_for("all of it at the sink that was held up", || self.missing("/web").is_empty().then_some(()));
        for sink in ["all", "web"] {
            wait_for("nothing to be pending", || (receiver.sink(sink)["pending"] == 0).then_some(()));
        }
        let status = receiver.ask_admin("/api/v1/status").unwrap().json();
        assert_eq!(status["journal"]["lost_events"], 0, "{status}");
        assert_eq!(receiver.sink("web")["stored"], self.posted.len(), "{status}");
    }
}

fn is_log_line(receiver: &Receiver, words: &[&str]) -> bool {
    receiver.log.so_far().iter().any(|line| words.iter().all(|word| line.contains(word)))
}

/// The record of a sink goes, with its places or without, while the receiver runs and while it is stopped.
#[test]
fn a_lost_record_of_a_sink_costs_no_event() {
    let cases = [(false, true), (true, true), (false, false), (true, false)];
    thread::scope(|scope| {
        for (with_places, live) in cases {
            scope.spawn(move || {
                let mut world = World::new();
                let receiver = world.setup.start();
                world.post(&receiver, 6);
                let running = if live {
                    Some(receiver)
                } else {
                    receiver.finish();
                    None
                };
                world.client.purge_subject(STATE, &format!("{STATE}.sink.web"));
                if with_places {
                    world.client.purge_subject(STATE, &format!("{STATE}.place.web.*"));
                }
                let receiver = running.unwrap_or_else(|| world.setup.start());
                wait_for("the loss to be told", || {
                    is_log_line(&receiver, &["ERROR", "the record of the sink was lost", "\"web\""]).then_some(())
                });
                world.post(&receiver, 4);
                // Long enough for what is settled to be purged, and for looks that there is nothing to be mended.
                thread::sleep(Duration::from_secs(3));
                let last = world.client.info(STREAM)["state"]["last_seq"].as_u64().unwrap();
                assert_eq!(last, 10);
                world.assert_complete(&receiver);
                // Nothing of it is any different after a restart.
                receiver.finish();
                let receiver = world.setup.start();
                world.post(&receiver, 1);
                world.assert_complete(&receiver);
                receiver.finish();
            });
        }
    });
}

/// A record that nobody can read: its sink says so, and what to do, and then nothing is missing.
#[test]
fn an_unreadable_place_is_told_and_can_be_mended() {
    let mut world = World::new();
    let receiver = world.setup.start();
    world.post(&receiver, 4);
    for at in 0..4 {
        world.client.publish(&format!("{STATE}.place.web.{at}"), "garbage");
    }
    world.post(&receiver, 4);
    world.released.store(true, Ordering::Relaxed);
    wait_for("the sink to say so", || {
        let sink = receiver.sink("web");
        let told = sink["last_error"].as_str().filter(|_| sink["state"] == "failing")?;
        (told.contains("R_STATE cannot be read") && told.contains("nats stream purge R_STATE")).then_some(())
    });
    world.client.purge_subject(STATE, &format!("{STATE}.place.web.*"));
    world.assert_complete(&receiver);
    wait_for("the sink to be well", || (receiver.sink("web")["state"] == "ok").then_some(()));
    receiver.finish();
}

/// An operator's word stands: a sink that was dropped is not made again.
#[test]
fn a_sink_that_was_dropped_stays_so() {
    let mut world = World::new();
    let receiver = world.setup.start();
    world.post(&receiver, 3);
    receiver.finish();
    let setup = ["type", "url", "retry.initial_backoff", "retry.max_backoff"].iter();
    let without = setup.fold(world.setup.clone(), |setup, key| setup.without(&format!("sinks.web.{key}")));
    let receiver = without.start();
    wait_for("the sink to be gone", || (receiver.sink("web")["state"] == "gone").then_some(()));
    assert!(receiver.operate(&["sinks", "forget", "web", "--yes"]).status().unwrap().success());
    // It is looked for each second.
    thread::sleep(Duration::from_secs(3));
    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    let names: Vec<&Value> = status["sinks"].as_array().unwrap().iter().map(|sink| &sink["name"]).collect();
    assert_eq!(names, ["all"]);
    assert!(!is_log_line(&receiver, &["the record of the sink was lost"]));
    receiver.finish();
}

/// A consumer that somebody has paused says nothing, and nobody would deliver.
#[test]
fn paused_consumers_are_made_again() {
    let mut world = World::new();
    let receiver = world.setup.start();
    world.released.store(true, Ordering::Relaxed);
    world.post(&receiver, 1);
    for at in 0..4 {
        let pause = json!({ "pause_until": "2099-01-01T00:00:00Z" });
        let paused = world.client.api(&format!("CONSUMER.PAUSE.{STREAM}.web-{at}"), &pause);
        assert_eq!(paused["paused"], true, "{paused}");
    }
    // Whichever of them sees it.
    let log = receiver.log.clone();
    receiver.finish();
    let receiver = world.setup.start();
    world.post(&receiver, 8);
    world.assert_complete(&receiver);
    let told = [log.so_far(), receiver.log.so_far()].concat();
    assert!(told.iter().any(|line| line.contains("a consumer was paused")), "{told:#?}");
    receiver.finish();
}

/// Whatever does not keep what a 200 promises: no event gets one, nothing else is said anywhere, and it goes on once it is
/// mended.
#[test]
fn a_cluster_that_does_not_keep_promises_any_more_gets_no_event() {
    let mut world = World::new();
    let receiver = world.setup.start();
    world.released.store(true, Ordering::Relaxed);
    world.post(&receiver, 1);
    let good = world.client.info(STREAM)["config"].clone();
    let mut bad = good.clone();
    bad["max_age"] = json!(3_600_000_000_000_u64);
    for config in [&bad, &good] {
        let set = world.client.api(&format!("STREAM.UPDATE.{STREAM}"), config);
        assert!(set["error"].is_null(), "{set}");
        if config == &good {
            break;
        }
        assert_unfit(&receiver, "max-age");
    }
    receiver.wait_ready();
    world.post(&receiver, 1);

    // Settings of servers are read when they start.
    for too_little in ["max_payload: 60000", "max_payload: 200000"] {
        world.server.change("max_payload: 2MB", too_little);
        assert_unfit(&receiver, "max_payload");
        // Whatever its size: 413 would say that the event never has a chance.
        for size in [50_000, 100_000, 140_000, 190_000, 900_000] {
            assert_not_taken(&receiver.post(big_event(&new_id(), size)));
        }
        world.server.change(too_little, "max_payload: 2MB");
        receiver.wait_ready();
        world.post(&receiver, 1);
    }
    world.assert_complete(&receiver);
    receiver.finish();
}

#[track_caller]
fn assert_unfit(receiver: &Receiver, why: &str) {
    wait_for("the status to say so", || {
        let journal = receiver.ask_admin("/api/v1/status").unwrap().json()["journal"].clone();
        (journal["state"] == "unfit" && journal["reason"].as_str()?.contains(why)).then_some(())
    });
    let ready = receiver.ask_admin("/readyz").unwrap();
    assert!(ready.status == 503 && ready.text().contains("journal unfit"), "{}", ready.text());
    assert_not_taken(&receiver.post(new_event().1));
}

#[track_caller]
fn assert_not_taken(answer: &Answer) {
    assert!(answer.status == 503 && answer.text().contains("not set up as it has to be"), "{}", answer.text());
}
