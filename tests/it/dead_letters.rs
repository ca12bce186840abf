//! Dead letters and quarantine, as operators see and change them.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::event::{event, new_event, new_id};
use crate::harness::programs::json_of;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Target};
use crate::harness::wait_for;

/// An event whose bytes no JSON library would write like this.
const ODD: &str =
    r#"{ "name":"com.asapp.event.queue", "event_type":"t", "event_id":"odd", "n":1e999, "a":1, "a":2, "e":"\u00e9" }"#;

#[test]
fn dead_letters_are_listed_and_shown_as_they_came() {
    let (receiver, _target) = with_dead_letters(4, &[ODD]);
    let first = get(&receiver, "/api/v1/dead-letters?limit=2");
    let letters = first["dead_letters"].as_array().unwrap();
    assert_eq!((letters.len(), &first["next"]), (2, &json!(2)));
    let letter = &letters[1];
    for (key, value) in [
        ("id", json!(2)),
        ("sink", json!("web")),
        ("sequence", json!(2)),
        ("name", json!("com.asapp.event.journey")),
        ("event_type", json!("customer_request")),
        ("attempts", json!(1)),
        ("state", json!("dead")),
    ] {
        assert_eq!(letter[key], value, "{key}");
    }
    assert!(letter["reason"].as_str().unwrap().contains("422"), "{letter}");
    assert!(letter["at"].as_str().unwrap().ends_with('Z') && letter["bytes"].as_u64().unwrap() > 100, "{letter}");
    assert!(letter.get("event").is_none());
    let rest = get(&receiver, "/api/v1/dead-letters?after=2&sink=web");
    assert_eq!((rest["dead_letters"].as_array().unwrap().len(), &rest["next"]), (3, &json!(5)));
    let end = get(&receiver, "/api/v1/dead-letters?after=5");
    assert_eq!(end, json!({ "dead_letters": [], "next": null }));
    assert_eq!(get(&receiver, "/api/v1/dead-letters?sink=other")["dead_letters"], json!([]));

    let shown = receiver.ask_admin("/api/v1/dead-letters/5").unwrap().text();
    assert!(shown.ends_with(&format!(",\"event\":{ODD}}}")), "{shown}");
    let output = run(&receiver, &["dead-letters", "show", "5"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("event id    odd\n") && text.ends_with(&format!("\n\n{ODD}\n")),
        "{output:?}"
    );
    let output = run(&receiver, &["dead-letters", "show", "5", "--json"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), shown);

    let output = run(&receiver, &["dead-letters", "list", "--limit", "3"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 4, "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--after 3"), "{output:?}");
    let list = json_of(&run(&receiver, &["dead-letters", "list", "--json"]));
    assert_eq!((list["dead_letters"].as_array().unwrap().len(), &list["next"]), (5, &Value::Null));

    for (path, status, word) in [
        ("dead-letters/9", 404, "not-found"),
        ("dead-letters/x", 404, "not-found"),
        ("dead-letters?limit=0", 400, "invalid"),
        ("dead-letters?limit=1001", 400, "invalid"),
        ("dead-letters?from=1", 400, "invalid"),
        ("quarantine?sink=web", 400, "invalid"),
    ] {
        receiver.ask_admin(&format!("/api/v1/{path}")).unwrap().assert_problem(status, word);
    }
    // A fleet's are counted every second.
    let stock = wait_for("all to be counted", || {
        let stock = get(&receiver, "/api/v1/status")["dead_letters"].clone();
        (stock["count"] == 5).then_some(stock)
    });
    assert_eq!((&stock["retrying"], &stock["max_bytes"]), (&json!(0), &json!(1u64 << 30)));
    receiver.finish();
}

#[test]
fn retried_dead_letters_are_delivered_or_dead_again() {
    let (receiver, target) = with_dead_letters(3, &[]);
    target.answer(|_| Reply::status(204));
    let output = run(&receiver, &["dead-letters", "retry", "1", "99"]);
    assert_eq!(output.status.code(), Some(1), "one of two: {output:?}");
    assert_eq!(output.stdout, b"1 retried, 1 skipped\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("99: "), "{output:?}");
    wait_for("one to be delivered", || (receiver.sink("web")["delivered"] == 1).then_some(()));

    target.answer(|_| Reply::status(413));
    let done = post(&receiver, "dead-letters/retry", &json!({ "sink": "web" }));
    assert_eq!((&done["retried"], &done["skipped"]), (&json!(2), &json!(0)));
    let again = wait_for("both to be dead again", || {
        let list = get(&receiver, "/api/v1/dead-letters")["dead_letters"].clone();
        let dead = |letter: &Value| letter["state"] == "dead" && letter["reason"].as_str().unwrap().contains("413");
        list.as_array().unwrap().iter().all(dead).then_some(list)
    });
    assert_eq!(again.as_array().unwrap().iter().map(|letter| &letter["attempts"]).collect::<Vec<_>>(), [2, 2]);

    target.answer(|_| Reply::status(204));
    let output = run(&receiver, &["dead-letters", "retry", "--all", "--json"]);
    assert_eq!(json_of(&output)["retried"], 2, "{output:?}");
    wait_for("all to be delivered", || (receiver.sink("web")["delivered"] == 3).then_some(()));
    // A fleet's are counted every second.
    wait_for("none to be left", || (get(&receiver, "/api/v1/status")["dead_letters"]["count"] == 0).then_some(()));
    receiver.finish();
}

#[test]
fn discarding_in_bulk_has_to_be_meant() {
    let (receiver, _target) = with_dead_letters(3, &[]);
    // A fleet's are counted every second.
    wait_for("all to be counted", || (get(&receiver, "/api/v1/status")["dead_letters"]["count"] == 3).then_some(()));
    for (arguments, how_many) in [
        (&["--all"][..], "3 dead letters of all sinks"),
        (&["--sink", "web"], "3 dead letters of the sink web"),
        (&["--sink", "other"], "0 dead letters of the sink other"),
        (&["2"], "1 dead letter would"),
    ] {
        let output = run(&receiver, &[&["dead-letters", "discard"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("--yes") && said.contains(how_many), "{arguments:?}: {said}");
    }
    assert_eq!(get(&receiver, "/api/v1/dead-letters")["dead_letters"].as_array().unwrap().len(), 3);
    for arguments in [&[][..], &["1", "--all"], &["--all", "--sink", "web"], &["x"]] {
        let output = run(&receiver, &[&["dead-letters", "discard"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    let output = run(&receiver, &["dead-letters", "discard", "2", "--yes"]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"1 discarded, 0 skipped\n"[..]), "{output:?}");
    let output = run(&receiver, &["dead-letters", "discard", "--all", "--yes"]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"2 discarded, 0 skipped\n"[..]), "{output:?}");
    assert_eq!(get(&receiver, "/api/v1/dead-letters")["dead_letters"], json!([]));
    assert_eq!(receiver.sink("web")["dead_lettered"], 3, "the account stands");

    for (body, status) in [
        ("{}", 400),
        (r#"{"all":false}"#, 400),
        (r#"{"all":true,"ids":[1]}"#, 400),
        (r#"{"every":true}"#, 400),
        (r#"{"ids":["1"]}"#, 400),
        (r#"{"ids":[1]}"#, 200),
    ] {
        let answer = receiver.call_admin("POST", "/api/v1/dead-letters/discard", body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
    }
    receiver.call_admin("POST", "/api/v1/quarantine/discard", r#"{"sink":"web"}"#).assert_problem(400, "invalid");
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let answer = receiver.call_admin_as("POST", "/api/v1/dead-letters/discard", form, b"{\"all\":true}");
    answer.assert_problem(415, "unsupported-media");
    let foreign = "Content-Type: application/json\r\nOrigin: https://evil.example\r\n";
    let answer = receiver.call_admin_as("POST", "/api/v1/dead-letters/discard", foreign, b"{\"all\":true}");
    answer.assert_problem(403, "forbidden");
    receiver.finish();
}

#[test]
fn quarantined_bodies_are_shown_saved_and_discarded() {
    let receiver = Setup::new().start();
    let bodies: [&[u8]; 3] = [b"{\"a\": \"\x1b[2J\xc2\x9b\" ", b"\xff\xfe\0no text", b"[]"];
    for body in bodies {
        receiver.post(body).assert_problem(400, "malformed");
    }
    let list = get(&receiver, "/api/v1/quarantine");
    let first = &list["quarantine"][0];
    for (key, value) in
        [("id", json!(1)), ("reason", json!("malformed")), ("endpoint", json!("events")), ("bytes", json!(15))]
    {
        assert_eq!(first[key], value, "{key}: {list}");
    }
    assert!(
        first["peer"].as_str().unwrap().contains("CN=") && first["at"].is_string() && first.get("body").is_none(),
        "{first}"
    );
    assert_eq!(get(&receiver, "/api/v1/quarantine/1")["body"], String::from_utf8_lossy(bodies[0]).as_ref());
    assert_eq!(get(&receiver, "/api/v1/quarantine/2")["body"], Value::Null);
    let raw = receiver.ask_admin("/api/v1/quarantine/2/body").unwrap();
    assert_eq!(raw.body, bodies[1]);
    assert_eq!(raw.header("content-type"), Some("application/octet-stream"));
    assert_eq!(raw.header("content-disposition"), Some("attachment; filename=\"quarantined-2\""));
    assert_eq!(raw.header("x-content-type-options"), Some("nosniff"));
    receiver.ask_admin("/api/v1/quarantine/9/body").unwrap().assert_problem(404, "not-found");

    let output = run(&receiver, &["quarantine", "show", "2", "--body"]);
    assert_eq!(output.stdout, bodies[1], "{output:?}");
    let output = run(&receiver, &["quarantine", "show", "1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("reason    malformed\n") && text.ends_with("\n\n{\"a\": \"\\u001b[2J\\u009b\" \n"),
        "nothing steers a terminal: {text:?}"
    );
    assert!(String::from_utf8_lossy(&run(&receiver, &["quarantine", "show", "2"]).stdout).contains("--body"));
    assert_eq!(String::from_utf8_lossy(&run(&receiver, &["quarantine", "list"]).stdout).lines().count(), 4);

    let output = run(&receiver, &["quarantine", "retry", "3"]);
    assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b"0 retried, 1 skipped\n"[..]), "{output:?}");
    // A fleet's are counted every second.
    let kept = wait_for("all to be counted", || {
        let kept = get(&receiver, "/api/v1/status")["quarantine"].clone();
        (kept["count"] == 3).then_some(kept)
    });
    assert_eq!(kept["max_bytes"], 64u64 << 20);
    for (arguments, how_many) in [(&["--all"][..], "3 bodies"), (&["1"], "1 body ")] {
        let output = run(&receiver, &[&["quarantine", "discard"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(how_many), "{output:?}");
    }
    let output = run(&receiver, &["quarantine", "discard", "--all", "--yes"]);
    assert_eq!(output.stdout, b"3 discarded, 0 skipped\n", "{output:?}");
    assert_eq!(get(&receiver, "/api/v1/quarantine"), json!({ "quarantine": [], "next": null }));
    receiver.finish();
}

#[test]
fn a_body_that_is_an_event_after_all_can_be_let_in() {
    let setup = Setup::new().set_toml("endpoints.events", "{ path = '/events', feeds = ['queue'] }");
    let receiver = setup.start();
    let (id, journey) = new_event();
    receiver.post(&journey).assert_problem(422, "incomplete");
    let done = post(&receiver, "quarantine/retry", &json!({ "all": true }));
    assert_eq!((&done["retried"], &done["skipped"]), (&json!(1), &json!(0)), "{done}");
    assert_eq!(receiver.delivered(&id), journey);
    assert_eq!(get(&receiver, "/api/v1/quarantine")["quarantine"], json!([]));
    receiver.finish();
}

#[test]
fn curl_does_what_the_guide_says() {
    let (receiver, _target) = with_dead_letters(2, &[]);
    let url = format!("http://{}/api/v1/dead-letters/discard", receiver.admin);
    let curl = Command::new("curl").args(["--silent", "--fail", "--json", r#"{"ids":[1]}"#, &url]).output().unwrap();
    assert_eq!(json_of(&curl)["discarded"], 1, "{curl:?}");
    receiver.finish();
}

/// A receiver whose sink `web` has refused this many events, and then these. The target goes on refusing.
#[track_caller]
fn with_dead_letters(count: u64, more: &[&str]) -> (Receiver, Target) {
    let target = Target::start(|_| Reply::status(422));
    let url = target.url("/");
    let setup =
        Setup::new().set("sinks.web.type", "http").set("sinks.web.url", &*url).set("sinks.web.ordering", "strict");
    let receiver = setup.start();
    let mut wire = receiver.connect();
    for _ in 0..count {
        let id = new_id();
        wire.post(event(&id).as_bytes()).assert_durable("stored", &id);
    }
    for event in more {
        assert_eq!(wire.post(event.as_bytes()).status, 200);
    }
    assert_eq!(receiver.sink_settled("web")["dead_lettered"], count + more.len() as u64);
    (receiver, target)
}

fn run(receiver: &Receiver, arguments: &[&str]) -> Output {
    receiver.operate(arguments).output().unwrap()
}

#[track_caller]
fn get(receiver: &Receiver, path: &str) -> Value {
    let answer = receiver.ask_admin(path).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[track_caller]
fn post(receiver: &Receiver, path: &str, body: &Value) -> Value {
    let answer = receiver.call_admin("POST", &format!("/api/v1/{path}"), &body.to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// It takes nothing, whether it says so at once or attempt by attempt: no state in which somebody would leave it.
#[test]
fn a_sink_all_of_whose_events_become_dead_letters_is_rejecting() {
    for (status, attempts) in [(422, 0), (500, 2)] {
        let target = Target::start(move |_| Reply::status(status));
        let receiver = Setup::new()
            .set("sinks.web.type", "http")
            .set("sinks.web.url", &*target.url("/"))
            .set("sinks.web.retry.initial_backoff", "1ms")
            .set("sinks.web.retry.max_attempts", attempts)
            .set("sinks.picky.type", "http")
            .set("sinks.picky.url", &*target.url("/"))
            .set_toml("sinks.picky.filter.company_ids", "['nobody']")
            .start();
        let is = |state: &'static str| {
            wait_for(&format!("web to be {state}"), || Some(receiver.sink("web")).filter(|sink| sink["state"] == state))
        };
        receiver.store(3);
        assert_eq!(receiver.sink_settled("web")["dead_lettered"], 3);
        let sink = is("rejecting");
        assert!(sink["last_error"].as_str().unwrap().contains(&status.to_string()), "{sink}");
        assert_eq!(receiver.metric(r#"sink_state{sink="web",state="rejecting"}"#), 1);
        assert_eq!(receiver.metric(r#"sink_state{sink="web",state="ok"}"#), 0);
        let shown = receiver.operate(&["status"]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains("  rejecting ") && shown.contains(&format!("sink web: the target answered {status}")));
        // To leave all events out is what its filter is for.
        let picky = receiver.sink_settled("picky");
        assert_eq!((&picky["filtered"], &picky["state"]), (&3.into(), &"ok".into()), "{picky}");

        // One refused event among others is no state of the sink.
        target.answer(move |request| Reply::status(if request.text().contains("bad") { status } else { 204 }));
        receiver.store(1);
        assert_eq!(is("ok")["last_error"], serde_json::Value::Null);
        receiver.post(event("bad")).assert_durable("stored", "bad");
        receiver.store(1);
        wait_for("the two", || (receiver.sink("web")["pending"] == 0).then_some(()));
        assert_eq!(is("ok")["dead_lettered"], 4);
        // A dead letter that is taken after all is a delivery.
        receiver.post(event("bad-2")).assert_durable("stored", "bad-2");
        is("rejecting");
        target.answer(|_| Reply::status(204));
        let retried = receiver.operate(&["dead-letters", "retry", "--sink", "web"]).output().unwrap();
        assert!(retried.status.success(), "{retried:?}");
        is("ok");
        receiver.finish();
    }
}
