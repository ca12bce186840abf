//! Replays under trouble: a target that takes no copies, SIGKILL.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::event::{event, new_id};
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Target};
use crate::harness::wait_for;

const JSON: &str = "content-type: application/json\r\n";

#[track_caller]
fn store(receiver: &Receiver, count: usize) -> Vec<String> {
    let mut wire = receiver.connect();
    let ids: Vec<String> = (0..count).map(|_| new_id()).collect();
    for id in &ids {
        wire.post(event(id).as_bytes()).assert_durable("stored", id);
    }
    ids
}

/// A file sink in the envelope format, which marks copies, and stdout.
fn setup() -> Setup {
    let setup = Setup::new();
    let out = setup.folder().join("out.jsonl");
    setup
        .set("sinks.plain.type", "stdout")
        .set("sinks.out.type", "file")
        .set("sinks.out.format", "envelope")
        .set("sinks.out.path", &out)
}

/// How often each id came out as itself, and as a copy.
fn lines(setup: &Setup) -> BTreeMap<String, (usize, usize)> {
    let mut found: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for line in fs::read_to_string(setup.folder().join("out.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let counts = found.entry(line["event"]["event_id"].as_str().unwrap().to_owned()).or_default();
        if line["replayed"] == true { counts.1 += 1 } else { counts.0 += 1 }
    }
    found
}

fn run(receiver: &Receiver, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_asapp-receiver"));
    command.args(arguments).arg("--admin").arg(format!("http://{}", receiver.admin)).env_clear().output().unwrap()
}

/// What the command says, as JSON.
#[track_caller]
fn replay(receiver: &Receiver, arguments: &[&str]) -> Value {
    let output = run(receiver, &[&["replay"], arguments, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// Waits until a replay says so.
#[track_caller]
fn wait_state(receiver: &Receiver, id: &Value, state: &str) -> Value {
    wait_for(&format!("the replay to be {state}"), || {
        let progress = receiver.ask_admin(&format!("/api/v1/replay/{id}")).ok()?.json();
        (progress["state"] == state).then_some(progress)
    })
}

#[test]
fn it_can_be_paused_and_goes_on_after_a_kill() {
    let setup = setup();
    let receiver = setup.start();
    let ids = store(&receiver, 60);
    receiver.sink_settled("out");
    let begun = replay(&receiver, &["--sink", "out", "--from", "1", "--rate", "20", "--detach"]);
    let id = &begun["id"];
    assert_eq!(begun["state"], "running", "{begun}");
    let busy = run(&receiver, &["replay", "--sink", "out", "--from", "1", "--detach"]);
    assert_eq!(busy.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&busy.stderr).contains("resume it, or cancel it first"), "{busy:?}");
    let moved = || {
        let progress = receiver.ask_admin(&format!("/api/v1/replay/{id}")).unwrap().json();
        (progress["delivered"].as_u64().unwrap() >= 5).then_some(())
    };
    wait_for("some copies", moved);
    let paused = replay(&receiver, &["pause", &id.to_string()]);
    assert_eq!(paused["state"], "paused");
    let next = paused["next"].as_u64().unwrap();
    assert!(next > 5 && next < 60, "{paused}");
    let resumed = receiver.call_admin_as("POST", &format!("/api/v1/replay/{id}/resume"), JSON, b"{}").json();
    assert_eq!(resumed["state"], "running", "{resumed}");

    // What it had done is known to the next life, give or take a second.
    receiver.kill();
    let receiver = setup.start();
    let running = receiver.ask_admin(&format!("/api/v1/replay/{id}")).unwrap().json();
    assert_eq!(running["state"], "running", "{running}");
    assert!(running["next"].as_u64().unwrap() >= next, "{running} after {next}");
    wait_state(&receiver, id, "done");
    let found = lines(&setup);
    assert!(ids.iter().all(|id| found[id].0 == 1 && found[id].1 >= 1), "{found:?}");
    let twice = ids.iter().filter(|id| found[*id].1 > 1).count();
    assert!(twice <= 30, "{twice} copies came again");

    let cancelled = replay(&receiver, &["--sink", "out", "--from", "1", "--rate", "5", "--detach"]);
    let cancelled = replay(&receiver, &["cancel", &cancelled["id"].to_string()]);
    assert_eq!(cancelled["state"], "cancelled");
    let resumed = run(&receiver, &["replay", "resume", &cancelled["id"].to_string()]);
    assert_eq!(resumed.status.code(), Some(1), "{resumed:?}");
    receiver.finish();
}

/// A target that takes no copies: the live events go on all the same.
#[test]
fn a_replay_disturbs_nobody() {
    let target = Target::start(|request| {
        Reply::status(if request.header("asapp-receiver-replayed").is_some() { 503 } else { 200 })
    });
    let setup = Setup::new()
        .set("sinks.crm.type", "http")
        .set("sinks.crm.url", &*target.url("/"))
        .set("sinks.crm.concurrency", 1)
        .set("sinks.crm.retry.initial_backoff", "50ms");
    let receiver = setup.start();
    store(&receiver, 20);
    receiver.sink_settled("crm");
    let begun = replay(&receiver, &["--sink", "crm", "--from", "1", "--detach"]);
    target.wait_requests(24);
    let live = store(&receiver, 50);
    receiver.sink_settled("crm");
    let requests = target.requests();
    for id in &live {
        let taken = requests.iter().filter(|request| request.header("idempotency-key") == Some(id)).count();
        assert_eq!(taken, 1, "{id}");
    }
    target.answer(|_| Reply::status(200));
    let done = wait_state(&receiver, &begun["id"], "done");
    assert_eq!((&done["delivered"], &done["rejected"]), (&json!(20), &json!(0)), "{done}");
    // What the target will never take is counted, and is no dead letter.
    target.answer(|_| Reply::status(422));
    let done = replay(&receiver, &["--sink", "crm", "--from", "5", "--to", "6"]);
    assert_eq!((&done["delivered"], &done["rejected"]), (&json!(0), &json!(2)), "{done}");
    assert_eq!(receiver.sink("crm")["dead_lettered"], 0);
    receiver.finish();
}
