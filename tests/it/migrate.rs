//! `migrate`: what an embedded journal still holds, moved into a cluster and back.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::harness::event::{event, new_id};
use crate::harness::nats::{NatsServer, Streams};
use crate::harness::programs::json_of;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wait_for;

const REJECTED: usize = 3;

/// Delivers to the target, and to standard output; both settle at their own pace.
fn to(setup: Setup, target: &Target) -> Setup {
    setup
        .set("sinks.stdout.type", "stdout")
        .set("sinks.web.type", "http")
        .set("sinks.web.url", &*target.url("/"))
        .set("sinks.web.start", "earliest")
        .set("sinks.stdout.start", "earliest")
        .set("sinks.web.retry.max_backoff", "200ms")
}

/// Takes what says so, rejects what says that, and fails at the rest.
fn sieve(request: &Request) -> Reply {
    match request.text() {
        text if text.contains("take-me") => Reply::status(204),
        text if text.contains("reject-me") => Reply::status(422),
        _ => Reply::status(503),
    }
}

fn migrate(setup: &Setup, direction: &str, folder: &Path) -> Value {
    let mut command = setup.command();
    json_of(&command.args(["migrate", "--json", direction]).arg(folder).output().unwrap())
}

fn id_of(request: &Request) -> String {
    request.json()["event_id"].as_str().unwrap().to_owned()
}

/// Stores events of which the sink `web` takes some, rejects some and has some still to get: the ids of the latter.
fn fill(receiver: &Receiver, target: &Target) -> Vec<String> {
    target.answer(sieve);
    for word in ["take-me", "reject-me"] {
        for n in 0..REJECTED {
            let id = format!("{word}-{n}-{}", new_id());
            receiver.post(event(&id)).assert_durable("stored", &id);
        }
    }
    receiver.sink_settled("web");
    let pending = receiver.store(20);
    assert_eq!(receiver.post("no event").status, 400);
    receiver.sink_settled("stdout");
    pending
}

/// The sink gets what it had not had, once, and nothing else; its dead letters and the quarantine came along.
fn is_all_there(receiver: &Receiver, target: &Target, pending: &[String]) {
    let settled = receiver.sink_settled("web");
    let got: Vec<String> = target.requests().iter().map(id_of).collect();
    let wanted: BTreeSet<&String> = pending.iter().collect();
    assert_eq!(got.iter().collect::<BTreeSet<_>>(), wanted);
    assert_eq!(got.len(), pending.len(), "each once");
    assert_eq!(settled["dead_lettered"], REJECTED);
    assert_eq!(settled["stored"], pending.len() + 2 * REJECTED);
    let letters = receiver.ask_admin("/api/v1/dead-letters").unwrap().json();
    assert_eq!(letters["dead_letters"].as_array().unwrap().len(), REJECTED);
    let bodies = receiver.ask_admin("/api/v1/quarantine").unwrap().json();
    assert_eq!(bodies["quarantine"].as_array().unwrap().len(), 1);
    // Their ids came along too.
    receiver.post(event(&pending[0])).assert_durable("duplicate", &pending[0]);
}

#[test]
fn a_journal_moves_into_a_cluster_and_back() {
    let target = Target::start(sieve);
    let folder = to(Setup::embedded(), &target);
    let receiver = folder.start();
    let pending = fill(&receiver, &target);
    receiver.stop();

    let cluster = to(Setup::embedded().on(NatsServer::shared()), &target);
    let moved = json!({ "events": 26, "known": 0, "dead_letters": REJECTED, "quarantined": 1 });
    assert_eq!(migrate(&cluster, "--from", &folder.journal()), moved);
    target.forget();
    target.answer(|_| Reply::status(204));
    let receiver = cluster.start();
    is_all_there(&receiver, &target, &pending);
    // Standard output had everything before.
    assert_eq!(receiver.sink_settled("stdout")["stored"], 26);
    target.answer(sieve);
    let more = receiver.store(10);
    let ended = receiver.stop();
    assert_eq!(ended.stdout.len(), 10, "{:?}", ended.stdout);

    let back = to(Setup::embedded(), &target);
    let moved = json!({ "events": 36, "known": 0, "dead_letters": REJECTED, "quarantined": 1 });
    assert_eq!(migrate(&cluster, "--to", &back.journal()), moved);
    target.forget();
    target.answer(|_| Reply::status(204));
    let receiver = back.start();
    receiver.sink_settled("web");
    let got: BTreeSet<String> = target.requests().iter().map(id_of).collect();
    assert_eq!(got, more.into_iter().collect());
    receiver.finish();
}

/// A way to a server that lets so many bytes through to it, over all its connections, and then no more.
struct Choked(SocketAddr);

impl Choked {
    fn before(server: &NatsServer, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let there = server.url().trim_start_matches("nats://").to_owned();
        let left = Arc::new(Mutex::new(bytes));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (mut from, mut back) = (client.unwrap(), TcpStream::connect(&there).unwrap());
                let (mut client, mut server) = (from.try_clone().unwrap(), back.try_clone().unwrap());
                thread::spawn(move || io::copy(&mut back, &mut client));
                let left = Arc::clone(&left);
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = from.read(&mut buffer) {
                        let mut left = left.lock().unwrap();
                        let passed = read.min(*left);
                        *left -= passed;
                        if server.write_all(&buffer[..passed]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self(here)
    }

    fn url(&self) -> String {
        format!("nats://{}", self.0)
    }
}

#[test]
fn a_move_that_broke_off_is_begun_again() {
    const EVENTS: usize = 2_000;
    let target = Target::start(|_| Reply::status(503));
    let folder = to(Setup::embedded(), &target);
    let receiver = folder.start();
    let ids = receiver.store(EVENTS);
    receiver.stop();

    let server = NatsServer::shared();
    let streams = Streams::new(server);
    let cluster = to(Setup::embedded().in_stream(server, &streams.name), &target);
    let messages = || {
        let info = server.api(&format!("$JS.API.STREAM.INFO.{}", streams.name), &Value::Null);
        info["state"]["messages"].as_u64().unwrap_or(0)
    };
    // What it writes to the server ends after a part of the events, so it cannot be killed too late.
    let choked = Choked::before(server, EVENTS * event("").len() / 3);
    let mut command = cluster.clone().set_toml("journal.nats.servers", &format!("[{:?}]", choked.url())).command();
    let mut first = command.args(["migrate", "--from"]).arg(folder.journal()).spawn().unwrap();
    wait_for("a part to be moved", || (messages() >= 50).then_some(()));
    let moved = messages();
    first.kill().unwrap();
    first.wait().unwrap();

    let summary = migrate(&cluster, "--from", &folder.journal());
    let known = summary["known"].as_u64().unwrap();
    assert_eq!(summary["events"], EVENTS);
    assert!((moved..EVENTS as u64).contains(&known), "{moved} moved: {summary}");
    target.forget();
    target.answer(|_| Reply::status(204));
    let receiver = cluster.start();
    assert_eq!(receiver.sink_settled("web")["delivered"], EVENTS);
    let got: Vec<String> = target.requests().iter().map(id_of).collect();
    assert_eq!(got, ids, "all of one entity, in order");
    receiver.finish();
}

#[test]
fn what_cannot_be_moved_is_said() {
    let cluster = Setup::embedded().on(NatsServer::shared());
    let missing = cluster.folder().join("nothing");
    let output = cluster.command().args(["migrate", "--from"]).arg(&missing).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("no journal in the folder"), "{output:?}");

    let embedded = Setup::embedded();
    let output = embedded.command().args(["migrate", "--to"]).arg(&missing).output().unwrap();
    assert_eq!(output.status.code(), Some(78), "{output:?}");

    let receiver = cluster.start();
    let output = cluster.command().args(["migrate", "--to"]).arg(&missing).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && text.contains("receivers are at work"), "{output:?}");
    receiver.store(1);
    receiver.stop();
}
