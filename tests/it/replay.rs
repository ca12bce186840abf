//! Events delivered once more because an operator wants it: `/api/v1/replay` and `replay`.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::programs::json_of;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wait_for;

const JSON: &str = "content-type: application/json\r\n";

#[test]
fn a_range_goes_to_its_sink_once_more_marked_and_counted_apart() {
    let target = Target::start(|_| Reply::status(204));
    let receiver = to(&target).start();
    let ids = receiver.store(20);
    let before = receiver.sink_settled("web");
    let output =
        run(&receiver, &["--sink", "web", "--from", "5", "--to", "14", "--event-types", "customer_*,x", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains('\u{1b}'), "no bar without a terminal: {output:?}");
    let progress = json_of(&output);
    assert_eq!(
        (&progress["state"], &progress["delivered"], &progress["filtered"]),
        (&json!("done"), &json!(10), &json!(0))
    );
    assert!(progress["started_at"].as_str().unwrap().ends_with('Z') && progress["ended_at"].is_string(), "{progress}");
    assert_eq!(copies(&target), ids[4..14]);

    let output = run(&receiver, &["--sink", "web", "--from", "2h", "--exclude-event-types", "*", "--rate", "50000"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let list = json_of(&run(&receiver, &["list", "--json"]));
    assert_eq!(list["replays"][1]["filtered"], 20, "{list}");
    let table = run(&receiver, &["list"]).stdout;
    assert!(String::from_utf8_lossy(&table).contains("  done  "), "{}", String::from_utf8_lossy(&table));
    let after = receiver.sink("web");
    assert_eq!((&before["delivered"], &before["stored"]), (&after["delivered"], &after["stored"]));
    receiver.finish();
}

#[test]
fn it_rests_and_goes_on_also_after_a_restart() {
    let target = Target::start(|_| Reply::status(204));
    let setup = to(&target).durable();
    let receiver = setup.start();
    let ids = receiver.store(30);
    receiver.sink_settled("web");
    let begun = json_of(&run(&receiver, &["--sink", "web", "--from", "1", "--rate", "3", "--detach", "--json"]));
    assert_eq!((&begun["state"], &begun["rate"]), (&json!("running"), &json!(3.0)));
    wait_for("some copies", || (copies(&target).len() >= 5).then_some(()));
    let output = run(&receiver, &["pause", "1"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = run(&receiver, &["watch", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("replay 1 is paused"), "{output:?}");
    receiver.finish();

    let receiver = setup.start();
    let found = json_of(&run(&receiver, &["list", "--json"]));
    assert_eq!(found["replays"][0]["state"], "paused", "{found}");
    let output = run(&receiver, &["resume", "1", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(json_of(&output)["next"], 31);
    let mut seen = copies(&target);
    seen.dedup();
    seen.sort();
    seen.dedup();
    assert_eq!(seen, ids, "every event comes, however often");
    receiver.finish();
}

#[test]
fn what_cannot_be_done_is_refused() {
    let target = Target::start(|_| Reply::status(204));
    let receiver = to(&target).start();
    receiver.store(30);
    receiver.sink_settled("web");
    let json = "application/json";
    for (kind, body, status, told) in [
        ("text/plain", r#"{"sink":"web","from":1}"#.to_owned(), 415, "application/json"),
        (json, "{".to_owned(), 400, "the body"),
        (json, r#"{"sink":"web"}"#.to_owned(), 400, "`from`"),
        (json, r#"{"sink":"web","from":"yesterday"}"#.to_owned(), 400, "a sequence, a time"),
        (json, r#"{"sink":"web","from":1,"rate":0}"#.to_owned(), 400, "`rate`"),
        (json, r#"{"sink":"web","from":1,"until":2}"#.to_owned(), 400, "`until`"),
        (json, r#"{"sink":"web","from":1,"filter":{"feeds":["x"]}}"#.to_owned(), 400, "`feeds`"),
        (json, r#"{"sink":"web","from":31}"#.to_owned(), 400, "no event"),
        (json, r#"{"sink":"nobody","from":1}"#.to_owned(), 404, "no sink"),
        (json, format!(r#"{{"sink":"{}"}}"#, "x".repeat(70_000)), 413, "64 KiB"),
    ] {
        let (found, problem) =
            curl(&receiver, &["--json", "@-", "--header", &format!("content-type: {kind}")], "", &body);
        assert_eq!(found, status, "{body}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(told), "{body}: {problem}");
    }
    let slow = r#"{"sink":"web","from":"90m","to":30,"rate":1}"#;
    let (status, begun) = curl(&receiver, &["--json", "@-"], "", slow);
    assert_eq!((status, &begun["id"], &begun["state"]), (200, &json!(1), &json!("running")), "{begun}");
    assert_eq!(curl(&receiver, &["--json", "@-"], "", slow).0, 409);
    for (arguments, path, status) in [
        (&[][..], "/1", 200),
        (&[], "/8", 404),
        (&[], "/x", 404),
        (&["--request", "POST"], "/8/pause", 404),
        (&["--request", "PATCH"], "/1", 405),
        (&["--request", "POST", "--header", "Origin: https://evil.example"], "/1/pause", 403),
        (&["--request", "DELETE"], "/1", 200),
        (&["--request", "POST"], "/1/resume", 409),
    ] {
        let (found, answer) = curl(&receiver, arguments, path, "");
        assert_eq!(found, status, "{path}: {answer}");
    }
    let output = run(&receiver, &["resume", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("it is at its end"), "{output:?}");
    let admin = format!("http://{}", receiver.admin);
    let mut options_first = Command::new(env!("CARGO_BIN_EXE_asapp-receiver"));
    assert!(options_first.args(["replay", "--admin", &admin, "list"]).output().unwrap().status.success());
    assert_eq!(run(&receiver, &[]).status.code(), Some(2));
    assert_eq!(run(&receiver, &["--sink", "web"]).status.code(), Some(2));
    receiver.finish();
}

#[test]
fn it_can_be_paused_and_goes_on_after_a_kill() {
    let setup = to_file().durable();
    let receiver = setup.start();
    let ids = receiver.store(60);
    receiver.sink_settled("out");
    let begun = replay(&receiver, &["--sink", "out", "--from", "1", "--rate", "5", "--detach"]);
    let id = &begun["id"];
    assert_eq!(begun["state"], "running", "{begun}");
    let busy = run(&receiver, &["--sink", "out", "--from", "1", "--detach"]);
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
    // A fleet's receiver has to be sure first that the one before does not live any more.
    let running = wait_for("the replay to be there again", || {
        let answer = receiver.ask_admin(&format!("/api/v1/replay/{id}")).unwrap();
        (answer.status == 200).then(|| answer.json())
    });
    assert_eq!(running["state"], "running", "{running}");
    assert!(running["next"].as_u64().unwrap() >= next, "{running} after {next}");
    wait_state(&receiver, id, "done");
    let found = lines(&setup);
    assert!(ids.iter().all(|id| found[id].0 == 1 && found[id].1 >= 1), "{found:?}");
    let twice = ids.iter().filter(|id| found[*id].1 > 1).count();
    assert!(twice <= 30, "{twice} copies came again");

    let cancelled = replay(&receiver, &["--sink", "out", "--from", "1", "--rate", "5", "--detach"]);
    let unasked = run(&receiver, &["cancel", &cancelled["id"].to_string()]);
    assert_eq!(unasked.status.code(), Some(2), "{unasked:?}");
    assert!(String::from_utf8_lossy(&unasked.stderr).contains("--yes"), "{unasked:?}");
    let cancelled = replay(&receiver, &["cancel", &cancelled["id"].to_string(), "--yes"]);
    assert_eq!(cancelled["state"], "cancelled");
    let resumed = run(&receiver, &["resume", &cancelled["id"].to_string()]);
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
        .set("sinks.crm.retry.initial_backoff", "50ms")
        .set("sinks.crm.retry.max_backoff", "1s");
    let receiver = setup.start();
    receiver.store(20);
    receiver.sink_settled("crm");
    let begun = replay(&receiver, &["--sink", "crm", "--from", "1", "--detach"]);
    target.wait_requests(24);
    let live = receiver.store(50);
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

/// One sink, in order.
fn to(target: &Target) -> Setup {
    let url = target.url("/");
    Setup::new().set("sinks.web.type", "http").set("sinks.web.url", &*url).set("sinks.web.ordering", "strict")
}

/// A file sink in the envelope format, which marks copies, and stdout.
fn to_file() -> Setup {
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

/// The ids of the copies that came so far.
fn copies(target: &Target) -> Vec<String> {
    let is_copy = |request: &Request| request.header("asapp-receiver-replayed") == Some("true");
    let copies = target.requests().into_iter().filter(is_copy);
    copies.map(|request| request.json()["event_id"].as_str().unwrap().to_owned()).collect()
}

fn run(receiver: &Receiver, arguments: &[&str]) -> Output {
    receiver.operate(&[&["replay"], arguments].concat()).output().unwrap()
}

/// What the command says, as JSON.
#[track_caller]
fn replay(receiver: &Receiver, arguments: &[&str]) -> Value {
    json_of(&run(receiver, &[arguments, &["--json"]].concat()))
}

/// Waits until a replay says so.
#[track_caller]
fn wait_state(receiver: &Receiver, id: &Value, state: &str) -> Value {
    wait_for(&format!("the replay to be {state}"), || {
        let progress = receiver.ask_admin(&format!("/api/v1/replay/{id}")).ok()?.json();
        (progress["state"] == state).then_some(progress)
    })
}

/// What curl got: the status and the JSON.
fn curl(receiver: &Receiver, arguments: &[&str], path: &str, body: &str) -> (u16, Value) {
    let url = format!("http://{}/api/v1/replay{path}", receiver.admin);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, body).unwrap();
    let mut command = Command::new("curl");
    command.args(["--silent", "--noproxy", "*", "--write-out", "\n%{http_code}"]).args(arguments).arg(url);
    command.stdin(file.reopen().unwrap());
    let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let (body, status) = output.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {body}")))
}

#[test]
fn what_the_target_does_not_take_is_counted_and_passed_over() {
    let target = Target::start(|_| Reply::status(204));
    for batch in [1u64, 8] {
        let receiver = to(&target).set("sinks.web.batch.max_events", batch).start();
        let ids = receiver.store(12);
        receiver.sink_settled("web");
        let bad = ids[5].clone();
        target.answer(move |request| Reply::status(if request.text().contains(&bad) { 422 } else { 204 }));
        let output = run(&receiver, &["--sink", "web", "--from", "1", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let progress = json_of(&output);
        assert_eq!((&progress["delivered"], &progress["rejected"]), (&json!(11), &json!(1)), "{progress}");
        let sink = receiver.sink("web");
        assert_eq!((&sink["delivered"], &sink["dead_lettered"]), (&json!(12), &json!(0)), "{sink}");
        target.answer(|_| Reply::status(204));
        receiver.finish();
    }
}
