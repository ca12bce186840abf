//! FAULTS "HTTP": where one request ends and the next begins.

use crate::harness::event::{event, new_event, new_id};
use crate::harness::pki::PKI;
use crate::harness::programs::s_client;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::wire::post;

/// Checks that a request is refused as one that cannot be parsed: 400 and the end, and nothing stored of it.
#[track_caller]
fn not_parsed(receiver: &Receiver, request: &str, id: &str) {
    let mut wire = receiver.connect();
    wire.send(request).unwrap();
    let (bytes, _) = wire.until_end();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.starts_with("HTTP/1.1 400 "), "{request:?} got {text:?}");
    assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
    assert_eq!(receiver.deliveries(id), 0);
}

#[test]
fn requests_that_two_readers_would_read_differently_are_refused() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    let length = event.len();
    let heads = [
        format!("Content-Length: {length}\r\nContent-Length: {}\r\n", length - 1),
        format!("Content-Length: {length}, {}\r\n", length - 1),
        format!("Content-Length : {length}\r\n"),
        format!("Content-Length: {length}\r\nX-Folded: a\r\n b\r\n"),
        format!("Content-Length: +{length}\r\n"),
        format!("Content-Length: {length}a\r\n"),
        "Content-Length: -1\r\n".to_owned(),
        "Transfer-Encoding: chunked, gzip\r\n".to_owned(),
        "Transfer-Encoding: identity\r\n".to_owned(),
        format!("Content-Length: {length}\r\nX-Nul: a\0b\r\n"),
    ];
    for head in heads {
        not_parsed(&receiver, &format!("POST /events HTTP/1.1\r\nHost: localhost\r\n{head}\r\n{event}"), &id);
    }
    let chunked = "POST /events HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    for chunk in ["x\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "1\r\n{{\r\n", "0x5\r\n{    \r\n"] {
        not_parsed(&receiver, &format!("{chunked}{chunk}{event}"), &id);
    }
    receiver.post(&event).assert_durable("stored", &id);
    assert_eq!(receiver.settled().stored, 1);
    receiver.finish();
}

#[test]
fn what_rfc_9112_allows_is_one_request() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    let length = event.len();
    let equal = format!(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nContent-Length: {length}\r\n\r\n{event}"
    );
    let mut wire = receiver.connect();
    wire.send(equal).unwrap();
    wire.answer().assert_durable("stored", &id);

    // Transfer-Encoding wins; by the Content-Length, a second event would be smuggled in.
    let (outer, smuggled) = (new_id(), new_id());
    let body = crate::harness::event::event(&outer);
    let hidden = String::from_utf8(post("/events", "", crate::harness::event::event(&smuggled).as_bytes())).unwrap();
    let both = format!(
        "POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}{hidden}\r\n0\r\n\r\n",
        body.len() + hidden.len()
    );
    let mut wire = receiver.connect();
    wire.send(both).unwrap();
    // One body with something after the object: refused as a whole.
    wire.answer().assert_problem(400, "malformed");
    let (rest, _) = {
        wire.send("GET /end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok();
        wire.until_end()
    };
    assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1 200"));
    assert_eq!(receiver.settled().stored, 1);
    let ended = receiver.finish();
    assert!(!ended.stdout.iter().any(|line| line.contains(&smuggled)));
}

#[test]
fn pipelined_requests_are_served_in_order() {
    let receiver = Setup::new().start();
    let ids: Vec<String> = (0..30).map(|_| new_id()).collect();
    let requests: Vec<u8> = ids.iter().flat_map(|id| post("/events", "", event(id).as_bytes())).collect();
    let mut wire = receiver.connect();
    wire.send(requests).unwrap();
    for id in &ids {
        wire.answer().assert_durable("stored", id);
    }
    assert_eq!(receiver.settled().stored, 30);
    receiver.sink_settled("stdout");
    let lines = receiver.finish().stdout;
    let expected: Vec<String> = ids.iter().map(|id| event(id)).collect();
    assert_eq!(lines, expected);
}

#[test]
fn bytes_after_a_request_that_closes_are_not_a_request() {
    let receiver = Setup::new().start();
    let (first, second) = (new_id(), new_id());
    let mut requests = post("/events", "Connection: close\r\n", event(&first).as_bytes());
    requests.extend(post("/events", "", event(&second).as_bytes()));
    let mut wire = receiver.connect();
    wire.send(requests).unwrap();
    wire.answer().assert_durable("stored", &first);
    wire.closed();
    receiver.delivered(&first);
    assert_eq!(receiver.settled().received, 1);
    receiver.finish();
}

#[test]
fn openssl_sends_it_as_well() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    let request = post("/events", "Connection: close\r\n", event.as_bytes());
    let said = s_client(&receiver, Some(&PKI.client), &["-quiet"], &request);
    assert!(said.stdout.starts_with("HTTP/1.1 200 OK\r\n"), "{said:?}");
    assert!(said.stdout.contains(&id), "{said:?}");

    let old = String::from_utf8(request).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    let said = s_client(&receiver, Some(&PKI.client), &["-quiet"], old.as_bytes());
    assert!(said.stdout.contains("duplicate"), "{said:?}");
    receiver.finish();
}
