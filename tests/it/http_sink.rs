//! FAULTS "Sinks" over HTTP: what a target gets, and what becomes of the events by what it answers.

use std::io::Read;
use std::time::{Duration, Instant, SystemTime};

use flate2::read::GzDecoder;
use serde_json::Value;

use crate::harness::event::{big_event, event, new_event, new_id};
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wait_for;
use crate::harness::wire::post;

/// A receiver with one sink, `web`, which is quick to try again.
fn to(url: &str) -> Setup {
    Setup::new()
        .set("sinks.web.type", "http")
        .set("sinks.web.url", url)
        .set("sinks.web.retry.initial_backoff", "10ms")
        .set("sinks.web.retry.max_backoff", "100ms")
        .set("sinks.web.timeout", "60s")
}

/// One request at a time, in order.
fn strictly_to(url: &str) -> Setup {
    to(url).set("sinks.web.ordering", "strict").set("sinks.web.concurrency", 1)
}

fn ok(_: &Request) -> Reply {
    Reply::status(204)
}

/// The sink's account, once its last error has all of these words.
#[track_caller]
fn failing(receiver: &Receiver, words: &[&str]) -> Value {
    wait_for(&format!("{words:?} as the last error"), || {
        let sink = receiver.sink("web");
        let found = sink["last_error"].as_str().is_some_and(|error| words.iter().all(|word| error.contains(word)));
        found.then_some(sink)
    })
}

/// The idempotency keys in order of first arrival.
fn keys(requests: &[Request]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for request in requests {
        let key = request.header("idempotency-key").unwrap();
        if !keys.iter().any(|known| known == key) {
            keys.push(key.to_owned());
        }
    }
    keys
}

#[test]
fn an_event_is_a_request_with_its_bytes() {
    let target = Target::start(ok);
    let receiver = strictly_to(&target.url("/in?from=asapp"))
        .set("sinks.web.method", "PUT")
        .set("sinks.web.headers.X-Tenant", "blue")
        .start();
    let (id, plain) = new_event();
    // White space is kept.
    let odd = plain.replace("{\"api", "{ \r\n\"api");
    let mut wire = receiver.connect();
    wire.send(post(
        "/events",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n",
        odd.as_bytes(),
    ))
    .unwrap();
    wire.answer().assert_durable("stored", &id);
    let spaced = "an id – with dashes";
    wire.post(event(spaced).as_bytes()).assert_durable("stored", spaced);
    receiver.sink_settled("web");

    let requests = target.requests();
    let [first, second] = &*requests else { panic!("{requests:?}") };
    assert_eq!((&*first.method, &*first.path, first.text()), ("PUT", "/in?from=asapp", &*odd));
    assert_eq!(first.header("idempotency-key"), Some(&*id));
    assert_eq!(first.header("content-type"), Some("application/json"));
    assert_eq!(first.header("traceparent"), Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
    assert_eq!(first.header("x-tenant"), Some("blue"));
    assert_eq!(first.header("content-length"), Some(&*odd.len().to_string()));
    assert!(first.header("user-agent").unwrap().starts_with("asapp-receiver/"));
    let unwanted =
        ["authorization", "content-encoding", "webhook-id", "asapp-receiver-replayed", "accept-encoding", "referer"];
    assert!(unwanted.iter().all(|name| !first.headers.contains_key(*name)), "{:?}", first.headers);
    // An id that no header can hold is hashed.
    assert_eq!(second.header("traceparent"), None);
    assert!(second.header("idempotency-key").is_some_and(|key| key.len() == 64), "{:?}", second.headers);
    receiver.finish();
}

#[test]
fn a_batch_is_an_array_in_order() {
    let target = Target::start(|_| Reply::status(503));
    let receiver = strictly_to(&target.url("/")).set("sinks.web.batch.max_events", 4).start();
    let mut ids = receiver.store(1);
    failing(&receiver, &["503"]);
    ids.extend(receiver.store(9));
    target.answer(ok);
    assert_eq!(receiver.sink_settled("web")["delivered"], 10);
    let requests: Vec<Request> = target.requests().into_iter().filter(|r| r.answered == Some(204)).collect();
    let sizes: Vec<usize> = requests.iter().map(|request| request.json().as_array().unwrap().len()).collect();
    assert!(sizes.iter().all(|size| *size <= 4) && sizes.len() < 10, "{sizes:?}");
    let bodies: Vec<Value> = requests.iter().flat_map(|request| request.json().as_array().unwrap().clone()).collect();
    let sent: Vec<Value> = ids.iter().map(|id| serde_json::from_str(&event(id)).unwrap()).collect();
    assert_eq!(bodies, sent);
    // A batch of one is an array as well, of the very bytes.
    assert_eq!(target.requests()[0].text(), format!("[{}]", event(&ids[0])));
    assert!(requests.iter().all(|request| request.header("idempotency-key").is_some_and(|key| key.len() == 64)));
    receiver.finish();
}

/// Every status that is worth another try gets one, with the same idempotency key and the same bytes.
#[test]
fn what_may_pass_is_tried_again() {
    const PASSING: [u16; 22] =
        [408, 425, 429, 500, 502, 503, 504, 507, 401, 403, 404, 405, 410, 402, 409, 418, 431, 300, 301, 303, 304, 308];
    let target = Target::start(|request| {
        let attempt = request.number;
        // Each event fails once.
        Reply::status(if attempt % 2 == 0 { PASSING[attempt / 2 % PASSING.len()] } else { 200 })
    });
    let receiver = strictly_to(&target.url("/")).start();
    let ids = receiver.store(PASSING.len());
    let sink = receiver.sink_settled("web");
    assert_eq!(sink["delivered"], PASSING.len(), "{sink}");
    assert_eq!(sink["last_error"], Value::Null);
    let requests = target.requests();
    assert_eq!(requests.len(), 2 * PASSING.len());
    for (pair, id) in requests.chunks(2).zip(&ids) {
        assert!(
            pair.iter().all(|request| request.header("idempotency-key") == Some(id) && request.text() == event(id))
        );
    }
    // All of that over one connection.
    assert_eq!(target.connections(), 1);
    receiver.finish();
}

#[test]
fn signs_of_a_misconfiguration_say_where_to_look_and_bury_nothing() {
    let target = Target::start(|_| Reply::status(404));
    let receiver = to(&target.url("/")).start();
    receiver.store(3);
    for (status, hint) in [
        (404, "check url"),
        (401, "bearer_token_file"),
        (403, "headers"),
        (405, "method"),
        (410, "url"),
        (302, "redirects are not followed"),
        (415, "compress"),
    ] {
        target.answer(move |_| Reply::status(status).header("location", "/elsewhere"));
        let sink = failing(&receiver, &[&status.to_string(), hint]);
        assert_eq!((&sink["pending"], &sink["state"]), (&3.into(), &"failing".into()), "{sink}");
    }
    assert!(target.requests().iter().all(|request| request.path == "/"));
    receiver.wait_ready();
    target.answer(ok);
    assert_eq!(receiver.sink_settled("web")["delivered"], 3);
    receiver.finish();
}

#[test]
fn what_a_target_will_never_take_is_a_dead_letter_at_once() {
    let target = Target::start(|request| {
        let bad = [400, 413, 422].into_iter().find(|status| request.text().contains(&format!("bad-{status}")));
        Reply::status(bad.unwrap_or(204))
    });
    let receiver = strictly_to(&target.url("/")).start();
    let mut wire = receiver.connect();
    for id in [new_id(), "bad-400".into(), "bad-413".into(), new_id(), "bad-422".into(), new_id()] {
        wire.post(event(&id).as_bytes()).assert_durable("stored", &id);
    }
    let sink = receiver.sink_settled("web");
    assert_eq!((&sink["delivered"], &sink["dead_lettered"]), (&3.into(), &3.into()), "{sink}");
    assert_eq!(target.requests().len(), 6);
    receiver.finish();
}

#[test]
fn a_rejected_batch_is_divided_to_find_the_one() {
    let target = Target::start(|request| Reply::status(if request.text().contains("poison") { 422 } else { 204 }));
    let receiver = strictly_to(&target.url("/"))
        .set("sinks.web.batch.max_events", 64)
        .set("sinks.web.batch.max_wait", "200ms")
        .start();
    let mut wire = receiver.connect();
    let mut good = Vec::new();
    for number in 0..40 {
        let id = if number == 17 { "poison".to_owned() } else { new_id() };
        wire.post(event(&id).as_bytes()).assert_durable("stored", &id);
        good.push(id);
    }
    good.retain(|id| id != "poison");
    let sink = receiver.sink_settled("web");
    assert_eq!((&sink["delivered"], &sink["dead_lettered"]), (&39.into(), &1.into()), "{sink}");
    let taken = target.requests().into_iter().filter(|request| request.answered == Some(204));
    let delivered: Vec<String> = taken
        .flat_map(|request| request.json().as_array().unwrap().clone())
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(delivered, good);
    receiver.finish();
}

#[test]
fn a_pause_is_kept_in_seconds_and_as_a_date() {
    let target = Target::start(|request| match request.number {
        0 => Reply::status(429).header("retry-after", 1),
        1 => {
            let in_two_seconds = SystemTime::now() + Duration::from_secs(2);
            Reply::status(503).header("retry-after", httpdate::fmt_http_date(in_two_seconds))
        }
        2 => Reply::status(503).header("retry-after", "whenever"),
        _ => Reply::status(204),
    });
    // What is no pause is none, or it would take longer than our patience.
    let receiver = to(&target.url("/")).set("sinks.web.retry.max_backoff", "60s").start();
    receiver.store(1);
    receiver.sink_settled("web");
    let times: Vec<Instant> = target.requests().iter().map(|request| request.at).collect();
    let pauses: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    // A date has whole seconds only.
    assert!(pauses[0] > 0.95 && pauses[1] > 0.8, "{pauses:?}");
    receiver.finish();
}

#[test]
fn a_target_that_is_away_is_waited_for() {
    let mut target = Target::start(ok);
    let receiver = to(&target.url("/secret/path?token=s3cret")).start();
    receiver.store(2);
    receiver.sink_settled("web");
    target.go_away();
    let ids = receiver.store(3);
    let sink = failing(&receiver, &["cannot connect to 127.0.0.1", "refused"]);
    assert_eq!(sink["pending"], 3, "{sink}");
    receiver.wait_ready();
    target.come_back();
    receiver.sink_settled("web");
    let delivered = keys(&target.requests());
    assert!(ids.iter().all(|id| delivered.contains(id)));
    let log = receiver.finish().log.join("\n");
    assert!(!log.contains("s3cret"), "{log}");
}

#[test]
fn a_host_that_is_not_known_is_told() {
    let receiver = to("https://nowhere.invalid:8443/").set("sinks.web.timeout", "15s").start();
    receiver.store(1);
    let sink = failing(&receiver, &["nowhere.invalid:8443"]);
    assert_eq!(sink["pending"], 1, "{sink}");
    receiver.finish();
}

#[test]
fn hanging_and_broken_exchanges_are_tried_again_with_the_same_key() {
    let target = Target::start(|request| match request.number {
        0 | 2 => Reply::hang(),
        1 | 3 => Reply::break_off(),
        _ => Reply::status(200),
    });
    let receiver = to(&target.url("/")).set("sinks.web.timeout", "300ms").start();
    let ids = receiver.store(1);
    target.wait_requests(5);
    receiver.sink_settled("web");
    assert_eq!(keys(&target.requests()), ids);

    target.answer(|_| Reply::hang());
    receiver.store(1);
    failing(&receiver, &["no answer from 127.0.0.1", "within 300ms"]);
    target.answer(|_| Reply::break_off());
    failing(&receiver, &["the exchange with 127.0.0.1", "broke off"]);
    target.answer(ok);
    receiver.sink_settled("web");
    receiver.finish();
}

/// The status decides, whatever becomes of the answer's body: nothing is sent twice for it.
#[test]
fn an_answers_body_holds_nobody() {
    let target = Target::start(|request| match request.number % 4 {
        0 => Reply::status(200).endless_body(),
        1 => Reply::status(200).body(vec![b'x'; 1 << 20]),
        2 => Reply::status(200).cut_body(),
        _ => Reply::status(200).hanging_body(),
    });
    let receiver = strictly_to(&target.url("/")).set("sinks.web.timeout", "30s").start();
    let ids = receiver.store(12);
    let sink = receiver.sink_settled("web");
    assert_eq!((&sink["delivered"], &sink["last_error"]), (&12.into(), &Value::Null), "{sink}");
    let requests = target.requests();
    assert_eq!((requests.len(), keys(&requests)), (12, ids));
    // An endless body is no reason to take what was asked for as done.
    target.answer(|request| Reply::status(if request.number < 14 { 500 } else { 200 }).endless_body());
    receiver.store(1);
    receiver.sink_settled("web");
    assert_eq!(target.requests().len(), 15);
    receiver.finish();
}

#[test]
fn connections_are_used_again_after_small_answers() {
    let target = Target::start(|_| Reply::status(200).body(vec![b'x'; 60_000]));
    let receiver = strictly_to(&target.url("/")).start();
    receiver.store(20);
    receiver.sink_settled("web");
    let connections: Vec<usize> = target.requests().iter().map(|request| request.connection).collect();
    // One that is not quite back in the pool when the next request goes out has a second one opened.
    assert!(connections.len() == 20 && connections.iter().max() <= Some(&2), "{connections:?}");
    receiver.finish();
}

#[test]
fn no_more_requests_are_under_way_than_allowed() {
    let target = Target::start(|_| Reply::status(204).held());
    let setup = to(&target.url("/")).set("sinks.web.ordering", "none").set("sinks.web.concurrency", 4);
    let receiver = setup.set("sinks.web.timeout", "60s").start();
    receiver.store(60);
    target.wait_requests(4);
    target.release();
    receiver.sink_settled("web");
    assert_eq!((target.most_in_flight(), target.requests().len()), (4, 60));
    // One that is not quite back in the pool when the next request goes out has another one opened.
    assert!((4..=8).contains(&target.connections()), "{} connections", target.connections());
    receiver.finish();
}

#[test]
fn redirects_are_not_followed_and_proxies_not_asked() {
    let elsewhere = Target::start(ok);
    let url = elsewhere.url("/");
    let location = url.clone();
    let target = Target::start(move |request| match request.number {
        0 => Reply::status(307).header("location", &location),
        1 => Reply::status(301).header("location", &location),
        _ => Reply::status(204),
    });
    let proxies = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    let variables: Vec<String> = proxies.iter().map(|name| format!("{name}={url}")).collect();
    let wrapper: Vec<&str> =
        ["env", "-u", "NO_PROXY", "-u", "no_proxy"].into_iter().chain(variables.iter().map(|v| &**v)).collect();
    let receiver = to(&target.url("/")).through(&wrapper).start();
    receiver.store(1);
    receiver.sink_settled("web");
    assert_eq!(target.requests().len(), 3);
    assert!(elsewhere.requests().is_empty() && elsewhere.connections() == 0);
    receiver.finish();
}

#[test]
fn bodies_are_compressed_on_request() {
    let target = Target::start(ok);
    let receiver = strictly_to(&target.url("/")).set("sinks.web.compress", "gzip").start();
    let mut wire = receiver.connect();
    // One on the thread that sends, one on another.
    let bodies = [event(&new_id()), big_event(&new_id(), 300_000)];
    for body in &bodies {
        assert_eq!(wire.post(body.as_bytes()).status, 200);
    }
    receiver.sink_settled("web");
    for (request, body) in target.requests().iter().zip(&bodies) {
        assert_eq!(request.header("content-encoding"), Some("gzip"));
        let mut text = String::new();
        GzDecoder::new(&*request.body).read_to_string(&mut text).unwrap();
        assert_eq!(&text, body);
    }
    receiver.finish();
}

/// The event had reached the target, but the receiver never saw the answer.
#[test]
fn after_a_crash_the_key_is_the_same() {
    let target = Target::start(|_| Reply::hang());
    let receiver = to(&target.url("/")).durable().start();
    let ids = receiver.store(1);
    target.wait_requests(1);
    let (setup, _) = receiver.kill();
    target.answer(ok);
    let receiver = setup.start();
    assert_eq!(receiver.sink_settled("web")["delivered"], 1);
    let requests = target.requests();
    assert_eq!((requests.len(), keys(&requests)), (2, ids));
    receiver.finish();
}

/// One event of an issue keeps failing: that issue waits, the others go ahead, up to `max_ahead`, and are not sent again.
#[test]
fn one_entity_that_fails_holds_no_other_and_what_went_ahead_is_remembered() {
    let answer = |request: &Request| Reply::status(if request.text().contains(r#""bad""#) { 503 } else { 204 });
    let target = Target::start(answer);
    let setup = to(&target.url("/")).durable().set("sinks.web.max_ahead", 6);
    let receiver = setup.start();
    let of = |id: &str, issue: &str| event(id).replace("issue-1", issue);
    let mut bodies = vec![of("bad", "a"), of("next", "a")];
    bodies.extend((0..8).map(|number| of(&format!("other-{number}"), &format!("b-{number}"))));
    for body in &bodies {
        assert_eq!(receiver.post(body).status, 200);
    }
    // The sequences 3 to 7 are up to 6 past the first one.
    let ahead: Vec<String> = (0..5).map(|number| format!("other-{number}")).collect();
    let went = |requests: &[Request]| {
        let mut went = keys(requests);
        went.retain(|key| key != "bad");
        went.sort();
        went
    };
    wait_for("those ahead", || (receiver.sink("web")["delivered"] == 5).then_some(()));
    failing(&receiver, &["503"]);
    assert_eq!(went(&target.requests()), ahead);
    receiver.finish();

    let before = target.requests().len();
    let receiver = setup.start();
    failing(&receiver, &["503"]);
    assert!(went(&target.requests()[before..]).is_empty(), "what went ahead does not go again");
    target.answer(ok);
    assert_eq!(receiver.sink_settled("web")["delivered"], 10);
    let after = keys(&target.requests()[before..]);
    let at = |id: &str| after.iter().position(|key| key == id);
    assert!(at("bad") < at("next") && after.len() == 5, "{after:?}");
    receiver.finish();
}

#[test]
fn past_its_age_an_event_is_a_dead_letter_whatever_the_target_says() {
    let target = Target::start(|_| Reply::status(401));
    let receiver = to(&target.url("/")).set("sinks.web.retry.max_age", "6s").start();
    let began = Instant::now();
    receiver.store(1);
    assert_eq!(receiver.sink_settled("web")["dead_lettered"], 1);
    assert!(began.elapsed() >= Duration::from_secs(6) && target.requests().len() > 1);
    let letters = receiver.ask_admin("/api/v1/dead-letters").unwrap().json();
    assert!(letters["dead_letters"][0]["reason"].as_str().unwrap().contains("401"), "{letters}");
    receiver.finish();
}

#[test]
fn a_dead_target_holds_no_other_sink() {
    let mut dead = Target::start(ok);
    let alive = Target::start(ok);
    dead.go_away();
    let receiver = to(&dead.url("/"))
        .set("sinks.alive.type", "http")
        .set("sinks.alive.url", &*alive.url("/"))
        .set("sinks.web.max_ahead", 100)
        .set("sinks.web.batch.max_events", 50)
        .start();
    receiver.store(3_000);
    assert_eq!(receiver.sink_settled("alive")["delivered"], 3_000);
    let sink = failing(&receiver, &["cannot connect"]);
    assert_eq!((&sink["pending"], &sink["delivered"]), (&3_000.into(), &0.into()), "{sink}");
    dead.come_back();
    assert_eq!(receiver.sink_settled("web")["delivered"], 3_000);
    receiver.finish();
}

#[test]
fn replayed_copies_are_marked() {
    for max_events in [1, 3] {
        let target = Target::start(ok);
        let receiver = strictly_to(&target.url("/")).set("sinks.web.batch.max_events", max_events).start();
        let ids = receiver.store(4);
        receiver.sink_settled("web");
        let first = target.requests();
        assert!(first.iter().all(|request| !request.headers.contains_key("asapp-receiver-replayed")));
        let replay = receiver.operate(&["replay", "--sink", "web", "--from", "1"]).output().unwrap();
        assert!(replay.status.success(), "{replay:?}");
        let again = wait_for("all copies", || {
            let again = target.requests().split_off(first.len());
            let copies = again.iter().map(|request| request.text().matches("event_id").count()).sum::<usize>();
            (copies == ids.len()).then_some(again)
        });
        assert!(again.iter().all(|request| request.header("asapp-receiver-replayed") == Some("true")));
        if max_events == 1 {
            assert_eq!(keys(&again), ids);
        }
        receiver.finish();
    }
}
