//! Replays: what is still kept goes to one sink once more, beside the live events.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};
use std::time::SystemTime;

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
fn a_range_is_delivered_once_more_and_marked() {
    let setup = setup();
    let receiver = setup.start();
    let first = store(&receiver, 10);
    let middle = humantime_now();
    let second = store(&receiver, 10);
    receiver.sink_settled("out");

    let done = replay(&receiver, &["--sink", "out", "--from", "3", "--to", "7"]);
    assert_eq!(
        (&done["state"], &done["replayed"], &done["filtered"]),
        (&json!("done"), &json!(5), &json!(0)),
        "{done}"
    );
    let found = lines(&setup);
    for (number, id) in (1..).zip(&first) {
        assert_eq!(found[id], (1, usize::from((3..=7).contains(&number))), "{number}");
    }
    // Copies are in nobody's account, and the other sink has none of them.
    let sink = receiver.sink("out");
    assert_eq!((&sink["stored"], &sink["delivered"]), (&json!(20), &json!(20)));
    assert_eq!(receiver.stdout.so_far().len(), 20);

    let done = replay(&receiver, &["--sink", "out", "--from", &middle]);
    assert_eq!(done["replayed"], 10, "{done}");
    let done = replay(&receiver, &["--sink", "out", "--from", "1h", "--to", &middle, "--rate", "50"]);
    assert_eq!((&done["replayed"], &done["filtered"]), (&json!(10), &json!(10)), "{done}");
    let found = lines(&setup);
    assert!(second.iter().all(|id| found[id] == (1, 1)), "{found:?}");

    let done = replay(&receiver, &["--sink", "out", "--from", "1", "--feeds", "queue"]);
    assert_eq!((&done["replayed"], &done["filtered"]), (&json!(0), &json!(20)), "{done}");
    let list = replay(&receiver, &["list"]);
    assert_eq!(list["replays"].as_array().unwrap().len(), 4, "{list}");
    let output = run(&receiver, &["replay", "list"]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("replayed"), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains('\u{1b}'), "no bar where there is no terminal");
    receiver.finish();
}

/// As the command takes it.
fn humantime_now() -> String {
    // Between two events, which are stamped to the millisecond.
    let at = SystemTime::now() + std::time::Duration::from_millis(1);
    wait_for("the clock", || (SystemTime::now() > at).then_some(()));
    humantime::format_rfc3339_millis(at).to_string()
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
        (progress["replayed"].as_u64().unwrap() >= 5).then_some(())
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
    assert_eq!((&done["replayed"], &done["rejected"]), (&json!(20), &json!(0)), "{done}");
    // What the target will never take is counted, and is no dead letter.
    target.answer(|_| Reply::status(422));
    let done = replay(&receiver, &["--sink", "crm", "--from", "5", "--to", "6"]);
    assert_eq!((&done["replayed"], &done["rejected"]), (&json!(0), &json!(2)), "{done}");
    assert_eq!(receiver.sink("crm")["dead_lettered"], 0);
    receiver.finish();
}

#[test]
fn calls_that_mean_nothing_are_refused() {
    let receiver = setup().start();
    store(&receiver, 3);
    for (kind, body, status, told) in [
        ("text/plain", r#"{"sink":"out","from":1}"#.to_owned(), 415, "application/json"),
        ("application/json", "{".to_owned(), 400, "the body"),
        ("application/json", r#"{"sink":"out"}"#.to_owned(), 400, "`from`"),
        ("application/json", r#"{"sink":"out","from":"yesterday"}"#.to_owned(), 400, "a sequence, a time"),
        ("application/json", r#"{"sink":"out","from":1,"rate":0}"#.to_owned(), 400, "`rate`"),
        ("application/json", r#"{"sink":"out","from":1,"until":2}"#.to_owned(), 400, "`until`"),
        ("application/json", r#"{"sink":"out","from":1,"filter":{"feeds":["x"]}}"#.to_owned(), 400, "`feeds`"),
        ("application/json", format!(r#"{{"sink":"{}"}}"#, "x".repeat(70_000)), 413, "64 KiB"),
        ("application/json", r#"{"sink":"nobody","from":1}"#.to_owned(), 404, "no sink of this name"),
        ("application/json", r#"{"sink":"out","from":9}"#.to_owned(), 400, "still kept"),
    ] {
        let headers = format!("content-type: {kind}\r\n");
        let answer = receiver.call_admin_as("POST", "/api/v1/replay", &headers, body.as_bytes());
        assert_eq!(answer.status, status, "{body}: {answer:?}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(told), "{body}: {}", answer.text());
    }
    for (method, path, headers, status) in [
        ("GET", "/8", "", 404),
        ("GET", "/x", "", 404),
        ("POST", "/8/pause", JSON, 404),
        ("PATCH", "/7", "", 405),
        ("POST", "/7/pause", "origin: https://evil.example\r\n", 403),
    ] {
        let answer = receiver.call_admin_as(method, &format!("/api/v1/replay{path}"), headers, b"");
        assert_eq!((answer.status, &answer.json()["status"]), (status, &json!(status)), "{path}");
    }
    let output = run(&receiver, &["replay", "--sink", "nobody", "--from", "2026-11-22T10:00:00Z", "--detach"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no sink of this name"), "{output:?}");
    assert_eq!(run(&receiver, &["replay"]).status.code(), Some(2));
    assert_eq!(run(&receiver, &["replay", "--sink", "out"]).status.code(), Some(2));
    receiver.finish();
}
