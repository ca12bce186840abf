//! What sinks get to see of an event: formats and redaction.

use std::fs;
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::harness::event::new_id;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wire::post;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// An activity event with space wherever there may be some, and whatever is odd in JSON.
fn activity(id: &str) -> String {
    format!(
        "\r\n{{ \"name\":\"com.asapp.event.activity\",\n\t\"event_type\": \"agent_activity_status_updated\",\
         \"event_id\":\"{id}\", \"meta_data\":{{\"event_time\":\"2026-05-01T10:00:00.120Z\",\"company_id\":\"Ac/me é\",\
         \"company_\\u0069d\":\"Ac/me \\u00e9\"}},\"big\":1E400,\"half\":\"\\ud800\",\
         \"data\":{{\"rep_name\":\"Ann\",\"rep_id\":\"rep \\\"7\\\"\",\"rep\\u005fname\":\"Bob\"}}}}\n"
    )
}

/// As a line of stdout or a file has it.
fn line(body: &str) -> String {
    body.replace(['\r', '\n'], " ")
}

#[track_caller]
fn store(receiver: &Receiver, id: &str, body: &str) {
    let mut wire = receiver.connect();
    wire.send(post("/events", &format!("traceparent: {TRACEPARENT}\r\n"), body.as_bytes())).unwrap();
    wire.answer().assert_durable("stored", id);
}

#[test]
fn an_envelope_says_where_an_event_came_from() {
    let receiver = Setup::new().set("sinks.stdout.format", "envelope").start();
    let id = new_id();
    let before = SystemTime::now();
    store(&receiver, &id, &activity(&id));
    let line = receiver.delivered(&id);
    let rest = line.strip_prefix(r#"{"received_at":""#).unwrap();
    let (received_at, rest) = rest.split_once('"').unwrap();
    let event = self::line(&activity(&id));
    let expected =
        format!(r#","peer":"CN=asapp-events.example,O=ASAPP test","endpoint":"events","sequence":1,"event":{event}}}"#);
    assert_eq!(rest, expected);
    assert_eq!(received_at.len(), "2026-05-01T10:00:00.120Z".len(), "{received_at}");
    let received_at = OffsetDateTime::parse(received_at, &Rfc3339).unwrap();
    // It has whole milliseconds.
    assert!(received_at + time::Duration::milliseconds(1) > before && received_at <= SystemTime::now());
    receiver.finish();
}

#[test]
fn a_cloudevent_is_the_same_in_every_mode() {
    let target = Target::start(|_| Reply::status(204));
    let receiver = Setup::new().cloudevents_to(&target, 10).start();
    let id = new_id();
    store(&receiver, &id, &activity(&id));

    let attributes = [
        ("specversion", "1.0"),
        ("id", &id),
        ("source", "/asapp/Ac%2Fme%20%C3%A9"),
        ("type", "com.asapp.event.activity.agent_activity_status_updated"),
        ("subject", "rep \"7\""),
        ("time", "2026-05-01T10:00:00.12Z"),
        ("traceparent", TRACEPARENT),
        ("datacontenttype", "application/json"),
    ];
    let members: String =
        attributes.iter().map(|(name, value)| format!("\"{name}\":{},", Value::from(*value))).collect();
    let structured = format!("{{{members}\"data\":{}}}", activity(&id));
    assert_eq!(receiver.delivered(&id), line(&structured));

    let requests = target.wait_requests(2);
    let to = |path: &str| requests.iter().find(|request| request.path == path).unwrap();
    let batch = to("/batch");
    assert_eq!(batch.header("content-type"), Some("application/cloudevents-batch+json"));
    assert_eq!(batch.text(), format!("[{structured}]"));

    let binary = to("/binary");
    assert_eq!(binary.text(), activity(&id));
    assert_eq!(binary.header("content-type"), Some("application/json"));
    assert_eq!(binary.header("traceparent"), Some(TRACEPARENT));
    for (name, value) in &attributes[..7] {
        let encoded = value.replace('%', "%25").replace(' ', "%20").replace('"', "%22");
        assert_eq!(binary.header(&format!("ce-{name}")), Some(&*encoded), "{name}");
    }
    assert_eq!(context(binary).len(), 7);
    receiver.finish();
}

#[test]
fn attributes_that_no_server_takes_as_headers_make_a_dead_letter_and_hold_nobody() {
    let target = Target::start(|_| Reply::status(204));
    let receiver = Setup::new().cloudevents_to(&target, 2).start();
    let (large, next) = (new_id(), new_id());
    let type_of = "agent_activity_status_updated";
    store(&receiver, &large, &activity(&large).replace(type_of, &"x".repeat(500_000)));
    store(&receiver, &next, &activity(&next));
    let sink = receiver.sink_settled("binary");
    assert_eq!((&sink["delivered"], &sink["dead_lettered"]), (&1.into(), &1.into()), "{sink}");
    assert_eq!(receiver.sink_settled("batch")["delivered"], 2);
    receiver.finish();
}

/// The names of the CloudEvents headers.
fn context(request: &Request) -> Vec<&str> {
    request.headers.keys().map(hyper::header::HeaderName::as_str).filter(|name| name.starts_with("ce-")).collect()
}

#[test]
fn what_an_event_does_not_say_is_no_attribute() {
    let receiver = Setup::new().set("sinks.stdout.format", "cloudevents").start();
    for (name, meta_data, subject, time) in [
        ("com.asapp.event.journey", "null", None, None),
        ("com.asapp.event.journey", r#"{"issue_id":"","event_time":"soon","company_id":""}"#, None, None),
        ("com.asapp.event.journey", r#"{"issue_id":17,"event_time":1777629600}"#, Some("17"), None),
        (
            "com.asapp.event.journey",
            r#"{"issue_id":"a\u0001","event_time":"2026-05-01T10:00:00+02:00"}"#,
            Some("a%01"),
            Some("2026-05-01T10:00:00+02:00"),
        ),
        ("com.asapp.event.survey", r#"{"issue_id":"i"}"#, None, None),
    ] {
        let id = new_id();
        let body = format!(r#"{{"name":"{name}","event_type":"X","event_id":"{id}","meta_data":{meta_data}}}"#);
        receiver.post(&body).assert_durable("stored", &id);
        let event: Value = serde_json::from_str(&receiver.delivered(&id)).unwrap();
        assert_eq!(event["source"], "/asapp");
        assert_eq!((event["subject"].as_str(), event["time"].as_str()), (subject, time), "{meta_data}");
        let expected = 6 + usize::from(subject.is_some()) + usize::from(time.is_some());
        assert_eq!(event.as_object().unwrap().len(), expected, "{event}");
    }
    receiver.finish();
}

#[test]
fn what_is_redacted_is_nowhere_in_what_a_sink_gets() {
    let target = Target::start(|_| Reply::status(204));
    let pointers = r#"["/data/rep_name", "/data/rep_id", "/meta_data/company_id", "/half", "/event_id"]"#;
    let setup = Setup::new();
    let file = setup.folder().join("events.jsonl");
    let receiver = setup
        .set_toml("sinks.stdout.redact", pointers)
        .set("sinks.envelope.type", "file")
        .set("sinks.envelope.path", &file)
        .set("sinks.envelope.format", "envelope")
        .set_toml("sinks.envelope.redact", pointers)
        .set("sinks.binary.type", "http")
        .set("sinks.binary.url", &*target.url("/binary"))
        .set("sinks.binary.format", "cloudevents")
        .set_toml("sinks.binary.redact", pointers)
        .set("sinks.whole.type", "http")
        .set("sinks.whole.url", &*target.url("/whole"))
        .start();
    let id = new_id();
    store(&receiver, &id, &activity(&id));
    let left = "\r\n{ \"name\":\"com.asapp.event.activity\",\n\t\"event_type\": \"agent_activity_status_updated\",\
                \"meta_data\":{\"event_time\":\"2026-05-01T10:00:00.120Z\"},\"big\":1E400,\"data\":{}}\n";
    for sink in ["stdout", "envelope", "binary", "whole"] {
        receiver.sink_settled(sink);
    }

    let requests = target.requests();
    let to = |path: &str| requests.iter().find(|request| request.path == path).unwrap();
    assert_eq!(to("/whole").text(), activity(&id));
    let binary = to("/binary");
    assert_eq!(binary.text(), left);
    assert_eq!((binary.header("ce-source"), binary.header("ce-subject")), (Some("/asapp"), None));
    assert_eq!((binary.header("ce-id"), binary.header("idempotency-key")), (Some(&*id), Some(&*id)));
    let written = fs::read_to_string(&file).unwrap();
    assert!(written.ends_with(&format!(",\"event\":{}}}\n", line(left))), "{written}");
    let ended = receiver.finish();
    assert_eq!(ended.stdout, [line(left)]);
}
