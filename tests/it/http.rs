//! FAULTS "HTTP": routes, limits, shedding, and clients that go away.

use std::time::{Duration, Instant};

use super::connection::patient;
use crate::harness::event::{event, new_event, new_id};
use crate::harness::programs::curl;
use crate::harness::receiver::{Account, Setup};
use crate::harness::wait_for;
use crate::harness::wire::post;

#[test]
fn other_paths_and_methods_are_not_found_and_not_counted() {
    let receiver = Setup::new().start();
    let mut wire = receiver.connect();
    for path in ["/", "/event", "/events/", "/Events", "/events/x", "//events", "/%65vents"] {
        wire.send(post(path, "", b"{}")).unwrap();
        wire.answer().assert_problem(404, "not-found");
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "post", "X"] {
        wire.send(format!("{method} /events HTTP/1.1\r\nHost: localhost\r\n\r\n")).unwrap();
        let answer = wire.answer();
        answer.assert_problem(405, "method-not-allowed");
        assert_eq!(answer.header("allow"), Some("POST"), "{method}");
    }
    assert_eq!(receiver.settled().received, 0);

    let (id, event) = new_event();
    wire.send(post("/events?source=asapp", "", event.as_bytes())).unwrap();
    wire.answer().assert_durable("stored", &id);

    wire.send("HEAD /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let (head, _) = wire.until_end();
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 405") && head.ends_with("\r\n\r\n"), "{head}");
    receiver.finish();
}

#[test]
fn each_endpoint_takes_the_feeds_it_is_bound_to() {
    let receiver = Setup::new()
        .set("endpoints.all.path", "/events")
        .set("endpoints.journey.path", "/journey")
        .set_toml("endpoints.journey.feeds", r#"["journey"]"#)
        .set("endpoints.queue.path", "/queue")
        .set_toml("endpoints.queue.feeds", r#"["com.asapp.event.queue"]"#)
        .start();
    let mut wire = receiver.connect();
    for (path, status) in [("/events", 200), ("/journey", 200), ("/queue", 422)] {
        let (id, event) = new_event();
        wire.send(post(path, "", event.as_bytes())).unwrap();
        let answer = wire.answer();
        if status == 200 {
            answer.assert_durable("stored", &id);
        } else {
            answer.assert_problem(422, "incomplete");
        }
    }
    assert_eq!(receiver.metric(r#"quarantined_total{reason="incomplete"}"#), 1);
    receiver.finish();
}

#[test]
fn a_head_over_its_limits_gets_431() {
    let receiver = Setup::new().start();
    let many: String = (0..70).map(|number| format!("X-{number}: 1\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "a".repeat(17 * 1024));
    for headers in [many, long] {
        let mut wire = receiver.connect();
        wire.send(post("/events", &headers, b"{}")).unwrap();
        let answer = wire.answer();
        assert_eq!(answer.status, 431);
        assert!(answer.body.is_empty());
        wire.closed();
    }
    // Within the limits.
    let fields: String = (0..55).map(|number| format!("X-{number}: 1\r\n")).collect();
    let (id, event) = new_event();
    let mut wire = receiver.connect();
    let long = format!("X-Long: {}\r\n", "a".repeat(14 * 1024));
    wire.send(post("/events", &(fields + &long), event.as_bytes())).unwrap();
    wire.answer().assert_durable("stored", &id);
    assert_eq!(receiver.settled().received, 1);
    receiver.finish();
}

/// RFC 9112 3.2, on a connection that would stay open.
#[test]
fn a_head_without_one_valid_host_gets_400() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    let head = |version: &str, host: &str| {
        format!("POST /events HTTP/{version}\r\n{host}Content-Length: {}\r\n\r\n{event}", event.len())
    };
    let bad = [
        "",
        "Host: localhost\r\nHost: localhost\r\n",
        "Host: localhost\r\nHost: other\r\n",
        "Host:\r\n",
        "Host: local host\r\n",
        "Host: localhost, other\r\n",
        "Host: localhost/events\r\n",
        "Host: me@localhost\r\n",
        "Host: localhost:port\r\n",
        "Host: [::1\r\n",
    ];
    for host in bad {
        let mut wire = receiver.connect();
        wire.send(head("1.1", host)).unwrap();
        let answer = wire.answer();
        assert_eq!((answer.status, answer.body.len()), (400, 0), "{host:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{host:?}");
        wire.closed();
    }
    receiver.wait_metric(r#"connections_closed_total{reason="bad-request"}"#, bad.len() as u64);
    assert_eq!((receiver.settled().received, receiver.deliveries(&id)), (0, 0));

    // Any one host is as good as another, and HTTP/1.0 needs none.
    for (version, host) in [
        ("1.1", "Host: [2001:db8::1]:8443\r\n"),
        ("1.1", "hOST:\t203.0.113.7 \r\n"),
        ("1.0", ""),
        ("1.0", "Host: localhost\r\n"),
    ] {
        let mut wire = receiver.connect();
        wire.send(head(version, host)).unwrap();
        assert_eq!(wire.answer().status, 200, "{version} {host:?}");
    }
    let mut wire = receiver.connect();
    wire.send(head("1.0", "Host: a\r\nHost: b\r\n")).unwrap();
    assert_eq!(wire.answer().status, 400);
    receiver.finish();
}

#[test]
fn a_transfer_coding_other_than_chunked_gets_501() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    let send = |coding: &str| {
        let mut wire = receiver.connect();
        let length = event.len();
        let head = format!("POST /events HTTP/1.1\r\nHost: localhost\r\n{coding}\r\n");
        wire.send(format!("{head}{length:x}\r\n{event}\r\n0\r\n\r\n")).unwrap();
        let answer = wire.answer();
        if answer.status != 200 {
            assert!(answer.body.is_empty());
            assert_eq!(answer.header("connection"), Some("close"), "{coding}");
            wire.closed();
        }
        answer.status
    };
    for coding in [
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
    ] {
        assert_eq!(send(coding), 501, "{coding}");
    }
    // Where `chunked` is not the last one, nobody can say where the body ends (RFC 9112 6.3).
    for coding in ["gzip", "chunked, gzip", "chunked;x=y", "xchunked"] {
        assert_eq!(send(&format!("Transfer-Encoding: {coding}\r\n")), 400, "{coding}");
    }
    assert_eq!((receiver.settled().received, receiver.deliveries(&id)), (0, 0));
    assert_eq!(send("Transfer-Encoding: Chunked\r\n"), 200);
    receiver.finish();
}

/// What is not said to the letter, but can be read in one way only, is read; nothing is ever read in two.
#[test]
fn bare_line_feeds_end_lines_of_a_head_and_break_a_chunk() {
    let receiver = Setup::new().start();
    let send = |request: String| {
        let mut wire = receiver.connect();
        // Behind it a second request, which must not be answered after a first that was refused.
        let (_, second) = new_event();
        wire.send([request.as_bytes(), &post("/events", "", second.as_bytes())].concat()).unwrap();
        let status = wire.answer().status;
        match status {
            200 => assert_eq!(wire.answer().status, 200),
            _ => _ = wire.closed(),
        }
        status
    };
    let with_length = |end: &str| {
        let (_, event) = new_event();
        let length = format!("Content-Length: {}", event.len());
        ["POST /events HTTP/1.1", "Host: localhost", &length, "", ""].join(end) + &event
    };
    assert_eq!((send(with_length("\r\n")), send(with_length("\n"))), (200, 200));
    // A bare CR ends nothing.
    assert_eq!(send(with_length("\r")), 400);

    let chunked = |size: &str, after: &str, end: &str| {
        let (_, event) = new_event();
        let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        let length = event.len();
        format!("{head}{size}{length:x}{after}{event}{end}")
    };
    let usual = "\r\n0\r\n\r\n";
    for (size, after, end, status) in [
        ("", "\r\n", usual, 200),
        ("000", "\r\n", usual, 200),
        // White space after a size is passed over, and a chunk's extension is.
        ("", " \t \r\n", usual, 200),
        ("", " ;name=value\r\n", usual, 200),
        (" ", "\r\n", usual, 400),
        ("0x", "\r\n", usual, 400),
        ("+", "\r\n", usual, 400),
        ("", " 1\r\n", usual, 400),
        ("", "\n", usual, 400),
        ("", ";name\n=value\r\n", usual, 400),
        ("", "\r\n", "\n0\r\n\r\n", 400),
        ("", "\r\n", "\r\n0\n\r\n", 400),
        ("", "\r\n", "0\r\n\r\n", 400),
    ] {
        assert_eq!(send(chunked(size, after, end)), status, "{size:?} {after:?} {end:?}");
    }
    let account = receiver.settled();
    assert_eq!(account.stored, 12, "{account:?}");
    receiver.finish();
}

#[test]
fn an_announced_length_over_the_limit_gets_413_before_the_body() {
    let receiver = Setup::new().set("listen.max_body_bytes", "10KiB").start();
    let mut wire = receiver.connect();
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10241\r\nExpect: 100-continue\r\n\r\n";
    wire.send(head).unwrap();
    let (bytes, _) = wire.until_end();
    assert!(bytes.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&bytes));
    // No number is too large to be compared, until hyper takes it for a head that is.
    for (length, status) in [("9223372036854775807", 413), ("18446744073709551614", 431)] {
        let mut wire = receiver.connect();
        wire.send(format!("POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")).unwrap();
        assert_eq!(wire.answer().status, status);
    }

    // Exactly the limit goes through, with its 100 Continue.
    let (id, event) = new_event();
    let padded = format!("{event}{}", " ".repeat(10_240 - event.len()));
    let arguments = ["--header", "Expect: 100-continue", "--data-binary", "@-"];
    let answer = curl(&receiver, "/events", &arguments, padded.as_bytes());
    answer.assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn a_sender_that_sends_all_of_a_body_too_large_still_reads_its_413() {
    let receiver = Setup::new().start();
    let body = vec![b' '; 3 << 20];
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunked = [format!("{head}{:x}\r\n", body.len()).as_bytes(), &*body, b"\r\n0\r\n\r\n"].concat();
    let mut attempts = 0;
    for request in [post("/events", "", &body), chunked] {
        let answer = wait_for("its answer", || {
            attempts += 1;
            let (mut wire, begun) = (receiver.connect(), Instant::now());
            let answer = wire.send(&request).and_then(|()| wire.try_answer());
            // Nobody is waited for longer than that, and this machine may have stood still.
            assert!(answer.is_ok() || begun.elapsed() >= Duration::from_secs(2), "{answer:?}");
            answer.ok()
        });
        answer.assert_problem(413, "too-large");
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(receiver.metric(r#"rejected_total{reason="too-large"}"#), attempts);
    receiver.finish();
}

#[test]
fn a_chunked_body_that_grows_past_the_limit_gets_413() {
    let receiver = Setup::new().set("listen.max_body_bytes", "10KiB").start();
    let mut wire = receiver.connect();
    wire.send("POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
    for _ in 0..11 {
        wire.send(&chunk).unwrap();
    }
    wire.answer().assert_problem(413, "too-large");
    wire.closed();

    let (id, event) = new_event();
    let mut wire = receiver.connect();
    wire.send("POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for part in event.as_bytes().chunks(7) {
        wire.send(format!("{:x}\r\n{}\r\n", part.len(), std::str::from_utf8(part).unwrap())).unwrap();
    }
    wire.send("0\r\nX-Trailer: 1\r\n\r\n").unwrap();
    wire.answer().assert_durable("stored", &id);
    assert_eq!(receiver.delivered(&id), event);
    receiver.finish();
}

#[test]
fn over_max_in_flight_the_next_one_is_told_to_come_again() {
    let receiver = patient().set("listen.max_in_flight", 1).start();
    let (id, event) = new_event();
    let mut slow = receiver.connect();
    let request = post("/events", "", event.as_bytes());
    let (most, rest) = request.split_at(request.len() - 1);
    slow.send(most).unwrap();
    receiver.wait_metric("in_flight", 1);

    let answer = receiver.post(crate::harness::event::event(&new_id()));
    answer.assert_problem(429, "too-many");
    assert!(answer.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok()));

    slow.send(rest).unwrap();
    slow.answer().assert_durable("stored", &id);
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    let account = receiver.settled();
    assert_eq!(account, Account { received: 3, stored: 2, refused: 1, ..Account::default() });
    receiver.finish();
}

#[test]
fn the_byte_budget_is_taken_before_a_body_is_read() {
    let receiver = patient().set("listen.max_body_bytes", "60KiB").set("listen.max_in_flight_bytes", "100KiB").start();
    let head = "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 61440\r\n\r\n";
    let mut first = receiver.connect();
    first.send(head).unwrap();
    receiver.wait_metric("in_flight", 1);
    let mut second = receiver.connect();
    second.send(head).unwrap();
    second.answer().assert_problem(429, "too-many");
    // A body of unknown length takes its budget as it grows.
    let mut third = receiver.connect();
    third.send("POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    third.send(format!("c000\r\n{}\r\n", " ".repeat(0xc000))).unwrap();
    third.answer().assert_problem(429, "too-many");

    first.abort();
    wait_for("the first to be over", || (receiver.metric("in_flight") == 0).then_some(()));
    let (id, event) = new_event();
    receiver.post(format!("{event}{}", " ".repeat(50 << 10))).assert_durable("stored", &id);
    assert_eq!(receiver.metric(r#"rejected_total{reason="aborted"}"#), 1);
    receiver.finish();
}

#[test]
fn a_budget_for_one_body_suffices_for_the_largest_one() {
    let receiver =
        Setup::new().set("listen.max_body_bytes", "60KiB").set("listen.max_in_flight_bytes", "60KiB").start();
    let (id, event) = new_event();
    let body = format!("{event}{}", " ".repeat((60 << 10) - event.len()));
    let mut wire = receiver.connect();
    wire.send("POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    for chunk in body.as_bytes().chunks(4999) {
        wire.send(format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk))).unwrap();
    }
    wire.send("0\r\n\r\n").unwrap();
    wire.answer().assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn a_body_shorter_than_promised_leaves_nothing() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    let request = post("/events", "", event.as_bytes());
    let mut wire = receiver.connect();
    wire.send(&request[..request.len() - 1]).unwrap();
    receiver.wait_metric("received_total", 1);
    wire.abort();
    receiver.wait_metric(r#"rejected_total{reason="aborted"}"#, 1);

    let mut wire = receiver.connect();
    wire.send("POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap();
    wire.send(format!("{:x}\r\n{event}\r\n", event.len())).unwrap();
    receiver.wait_metric("received_total", 2);
    wire.abort();
    receiver.wait_metric(r#"rejected_total{reason="aborted"}"#, 2);

    assert_eq!(receiver.deliveries(&id), 0);
    receiver.post(&event).assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn a_client_that_goes_away_finds_each_event_once_when_it_comes_again() {
    let receiver = Setup::new().start();
    let ids: Vec<String> = (0..60).map(|_| new_id()).collect();
    for (number, id) in ids.iter().enumerate() {
        let request = post("/events", "", event(id).as_bytes());
        let mut wire = receiver.connect();
        // Most go away right after the last byte, the others at some point before.
        let sent = if number % 3 == 0 { request.len() * number / ids.len() } else { request.len() };
        wire.send(&request[..sent]).unwrap();
        wire.abort();
    }
    for id in &ids {
        let answer = receiver.post(event(id));
        let word = answer.json()["status"].as_str().unwrap().to_owned();
        assert!(word == "stored" || word == "duplicate");
        answer.assert_durable(&word, id);
        receiver.delivered(id);
    }
    let account = receiver.settled();
    assert_eq!(account.stored, 60);
    let ended = receiver.finish();
    for id in &ids {
        assert_eq!(ended.stdout.iter().filter(|line| line.contains(id)).count(), 1, "{id}");
    }
}

#[test]
fn an_encoded_body_gets_415_and_is_kept_and_an_odd_content_type_is_only_counted() {
    let receiver = Setup::new().start();
    let id = new_id();
    let post_with = |header: &str| {
        let arguments = ["--header", header, "--data-binary", "@-"];
        curl(&receiver, "/events", &arguments, event(&id).as_bytes())
    };
    post_with("Content-Encoding: gzip").assert_problem(415, "unsupported-media");
    post_with("Content-Encoding: gzip").assert_problem(415, "unsupported-media");
    assert_eq!(receiver.metric(r#"quarantined_total{reason="unsupported-media"}"#), 1);
    assert_eq!(receiver.metric(r#"rejected_total{reason="unsupported-media"}"#), 2);

    let odd = receiver.metric("odd_content_type_total");
    post_with("Content-Encoding: identity").assert_durable("stored", &id);
    post_with("Content-Type: text/plain").assert_durable("duplicate", &id);
    post_with("Content-Type:").assert_durable("duplicate", &id);
    post_with("Content-Type: application/json; charset=utf-8").assert_durable("duplicate", &id);
    assert!(receiver.metric("odd_content_type_total") >= odd + 2);
    receiver.finish();
}

#[test]
fn a_slow_answer_of_one_does_not_hold_another() {
    let receiver = patient().start();
    let (id, slow_event) = new_event();
    let request = post("/events", "", slow_event.as_bytes());
    let mut slow = receiver.connect();
    slow.send(&request[..20]).unwrap();
    for _ in 0..50 {
        let (id, event) = new_event();
        receiver.post(event).assert_durable("stored", &id);
    }
    std::thread::sleep(Duration::from_millis(10));
    slow.send(&request[20..]).unwrap();
    slow.answer().assert_durable("stored", &id);
    receiver.finish();
}
