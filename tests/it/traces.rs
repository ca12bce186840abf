//! Traces, in builds with the feature `otlp`: what a collector gets, and that events never wait for one.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::harness::event::{event, new_id};
use crate::harness::free_port;
use crate::harness::pki::PKI;
use crate::harness::programs::verifier;
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wait_for;
use crate::harness::wire::post;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SENDER: &str = "00f067aa0ba902b7";
/// Nothing is exported before the drain.
const NEVER: &str = "OTEL_BSP_SCHEDULE_DELAY=3600000";

fn ok(_: &Request) -> Reply {
    Reply::status(200)
}

/// A receiver with one sink, `web`, and these variables. No proxy of the environment is used.
fn traced(target: &Target, variables: &[&str]) -> Setup {
    let setup = Setup::new()
        .set("sinks.web.type", "http")
        .set("sinks.web.url", &*target.url("/"))
        .set("sinks.web.ordering", "strict")
        .set("sinks.web.retry.initial_backoff", "10ms")
        .set("sinks.web.retry.max_backoff", "100ms");
    setup.through(&[&["env", "http_proxy=http://127.0.0.1:1", "https_proxy=http://127.0.0.1:1"], variables].concat())
}

fn endpoint(collector: &Target) -> String {
    format!("OTEL_EXPORTER_OTLP_ENDPOINT={}", collector.url(""))
}

/// An event all of whose values but the routing ones hold a marker.
fn marked(id: &str) -> String {
    ["sess-1", "issue-1", "acme", "cust-1", "hello"]
        .iter()
        .fold(event(id), |event, value| event.replace(value, "MARKER"))
}

/// Posts an event with this `traceparent`, as the sender of a trace does.
#[track_caller]
fn store_within(receiver: &Receiver, traceparent: &str) -> String {
    let id = new_id();
    let headers = format!("traceparent: {traceparent}\r\ntracestate: a=1\r\ntracestate: b=2\r\n");
    let mut wire = receiver.connect();
    wire.send(post("/events", &headers, marked(&id).as_bytes())).unwrap();
    wire.answer().assert_durable("stored", &id);
    id
}

/// The spans that a collector took, as OpenTelemetry's own definitions read them. None of its bytes is of a field.
#[track_caller]
fn spans(collector: &Target) -> Vec<Value> {
    let requests = collector.requests();
    let requests = requests.iter().filter(|request| request.answered == Some(200));
    let bodies: Vec<Value> = requests
        .map(|request| {
            assert_eq!((&*request.method, &*request.path), ("POST", "/v1/traces"));
            assert_eq!(request.header("content-type"), Some("application/x-protobuf"));
            let mut body = request.body.to_vec();
            if request.header("content-encoding") == Some("gzip") {
                body.clear();
                GzDecoder::new(&*request.body).read_to_end(&mut body).unwrap();
            }
            assert!(!String::from_utf8_lossy(&body).contains("MARKER"));
            STANDARD.encode(&body).into()
        })
        .collect();
    let mut python = verifier("spans.py").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(Value::from(bodies).to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn of_name<'a>(spans: &'a [Value], name: &str) -> Vec<&'a Value> {
    spans.iter().filter(|span| span["name"] == name).collect()
}

/// The `traceparent` that belongs to a span.
fn header(span: &Value) -> String {
    format!("00-{}-{}-01", span["trace_id"].as_str().unwrap(), span["span_id"].as_str().unwrap())
}

fn told_of_loss(log: &[String]) -> Vec<Value> {
    let lines = log.iter().filter_map(|line| log_line(line));
    lines.filter(|line| line["message"].as_str().is_some_and(|text| text.contains("does not take all"))).collect()
}

#[test]
fn a_delivery_hangs_below_its_ingest_and_that_below_the_sender() {
    let collector = Target::start(ok);
    let target = Target::start(|request| Reply::status(if request.number == 0 { 503 } else { 204 }));
    let attributes = "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=trial";
    let variables = [&*endpoint(&collector), "OTEL_EXPORTER_OTLP_HEADERS=x-key=k1", attributes, NEVER];
    let receiver = traced(&target, &variables).start();
    let id = store_within(&receiver, &format!("00-{TRACE}-{SENDER}-01"));
    receiver.post(marked(&id)).assert_durable("duplicate", &id);
    assert_eq!(receiver.post("{\"MARKER\"").status, 400);
    receiver.sink_settled("web");
    assert_eq!(collector.requests().len(), 0);
    receiver.finish();

    assert_eq!(collector.requests()[0].header("x-key"), Some("k1"));
    let spans = spans(&collector);
    assert_eq!(spans.len(), 5, "{spans:#?}");
    for span in &spans {
        let resource = &span["resource"];
        assert_eq!(resource["service.name"], "asapp-receiver");
        assert_eq!(resource["deployment.environment.name"], "trial");
        assert!(span["nanos"].as_i64().is_some_and(|nanos| nanos > 0), "{span}");
    }
    let asked = of_name(&spans, "POST /events");
    let [stored, duplicate, malformed] = *asked else { panic!("{asked:?}") };
    let words = json!({
        "http.request.method": "POST", "http.route": "/events", "url.path": "/events", "url.scheme": "https",
        "asapp.endpoint": "events", "asapp.event_id": id, "asapp.feed": "com.asapp.event.journey",
        "asapp.event_type": "customer_request", "asapp.outcome": "stored", "http.response.status_code": 200,
    });
    assert_eq!(stored["attributes"], words);
    assert_eq!((&stored["kind"], &stored["status"]), (&json!("SERVER"), &json!("UNSET")));
    assert_eq!((&stored["trace_id"], &stored["parent"]), (&json!(TRACE), &json!(SENDER)));
    assert_eq!(stored["tracestate"], "a=1,b=2");
    assert_eq!((&duplicate["attributes"]["asapp.outcome"], &duplicate["parent"]), (&json!("duplicate"), &json!("")));
    assert_ne!(duplicate["trace_id"], TRACE);
    assert_eq!(malformed["attributes"]["asapp.outcome"], "malformed");
    assert_eq!(malformed["attributes"]["http.response.status_code"], 400);
    assert_eq!(malformed["attributes"].get("asapp.event_id"), None);

    let attempts = of_name(&spans, "deliver web");
    for (at, (attempt, outcome, status)) in [("retry", 503), ("delivered", 204)]
        .into_iter()
        .zip(&attempts)
        .map(|((outcome, status), attempt)| (attempt, outcome, status))
        .enumerate()
    {
        assert_eq!((&attempt["kind"], &attempt["trace_id"]), (&json!("CLIENT"), &json!(TRACE)));
        assert_eq!((&attempt["parent"], &attempt["links"]), (&stored["span_id"], &json!([])));
        let said = &attempt["attributes"];
        assert_eq!((&said["asapp.outcome"], &said["asapp.attempt"]), (&json!(outcome), &json!(at + 1)));
        assert_eq!((&said["asapp.sink"], &said["asapp.event_id"]), (&json!("web"), &json!(id)));
        assert_eq!(
            (&said["http.response.status_code"], &said["server.port"]),
            (&json!(status), &json!(target.address.port()))
        );
        assert_eq!(attempt["status"], if outcome == "retry" { "ERROR" } else { "UNSET" });
        assert_eq!(target.requests()[at].header("traceparent"), Some(&*header(attempt)));
    }
    assert!(attempts[0]["reason"].as_str().is_some_and(|reason| reason.contains("503")), "{attempts:?}");
}

/// Compressed, over mutual TLS, to a collector whose CA the environment names.
#[test]
fn a_batch_is_linked_to_each_of_its_events() {
    let collector = Target::start_tls(&PKI.server, Some(&PKI.ca), ok);
    let target = Target::start(|_| Reply::status(503));
    let files = [
        format!("OTEL_EXPORTER_OTLP_CERTIFICATE={}", PKI.ca.certificate.display()),
        format!("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE={}", PKI.client.chain.display()),
        format!("OTEL_EXPORTER_OTLP_CLIENT_KEY={}", PKI.client.key.display()),
    ];
    let gzip = "OTEL_EXPORTER_OTLP_COMPRESSION=gzip";
    let receiver = traced(&target, &[&endpoint(&collector), &files[0], &files[1], &files[2], gzip, NEVER])
        .set("sinks.web.batch.max_events", 4)
        .set("sinks.web.concurrency", 1)
        .start();
    let mut ids = receiver.store(1);
    target.wait_requests(1);
    ids.extend(receiver.store(7));
    target.answer(ok);
    receiver.sink_settled("web");
    receiver.finish();

    assert_eq!(collector.requests()[0].header("content-encoding"), Some("gzip"));
    let spans = spans(&collector);
    let asked = of_name(&spans, "POST /events");
    assert_eq!(asked.len(), ids.len());
    let context_of = |id: &Value| {
        let span = asked.iter().find(|span| span["attributes"]["asapp.event_id"] == *id).unwrap();
        json!([span["trace_id"], span["span_id"]])
    };
    let attempts = of_name(&spans, "deliver web");
    assert_eq!(attempts.len(), target.requests().len());
    let mut several = 0;
    for request in target.requests() {
        let traceparent = request.header("traceparent").unwrap();
        let attempt = attempts.iter().find(|attempt| header(attempt) == traceparent).unwrap();
        let events: Vec<Value> = request.json().as_array().unwrap().iter().map(|e| e["event_id"].clone()).collect();
        let contexts: Vec<Value> = events.iter().map(context_of).collect();
        if let [context] = &*contexts {
            assert_eq!((&attempt["trace_id"], &attempt["parent"]), (&context[0], &context[1]));
            continue;
        }
        several += 1;
        assert_eq!((&attempt["parent"], &attempt["links"]), (&json!(""), &json!(contexts)));
        assert_eq!(attempt["attributes"]["messaging.batch.message_count"], events.len());
    }
    assert!(several > 0, "{attempts:?}");
}

#[test]
fn what_is_not_sampled_leaves_no_span_and_passes_as_it_came() {
    let (collector, target) = (Target::start(ok), Target::start(ok));
    let unsampled = format!("00-{TRACE}-{SENDER}-00");
    let sampled = format!("00-{TRACE}-{SENDER}-01");
    let receiver = traced(&target, &[&endpoint(&collector), NEVER]).start();
    store_within(&receiver, &unsampled);
    store_within(&receiver, &sampled);
    receiver.sink_settled("web");
    receiver.finish();
    let found = spans(&collector);
    assert_eq!(found.len(), 2, "{found:#?}");
    let requests = target.requests();
    assert_eq!(requests[0].header("traceparent"), Some(&*unsampled));
    assert_eq!(requests[1].header("traceparent"), Some(&*header(of_name(&found, "deliver web")[0])));

    collector.forget();
    target.forget();
    for variables in [
        vec![endpoint(&collector), "OTEL_TRACES_SAMPLER=always_off".to_owned()],
        vec![endpoint(&collector), "OTEL_SDK_DISABLED=true".to_owned()],
        vec![endpoint(&collector), "OTEL_TRACES_SAMPLER=mostly".to_owned()],
        vec!["OTEL_EXPORTER_OTLP_ENDPOINT=localhost:4317".to_owned()],
        vec![],
    ] {
        let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
        let receiver = traced(&target, &variables).start();
        store_within(&receiver, &sampled);
        receiver.sink_settled("web");
        let unusable = ["mostly", "4317"].iter().any(|word| variables.concat().contains(word));
        let log = receiver.finish().log;
        assert_eq!(log.iter().any(|line| line.contains("no traces are exported: OTEL_")), unusable, "{variables:?}");
    }
    assert_eq!(collector.requests().len(), 0);
    assert!(target.requests().iter().all(|request| request.header("traceparent") == Some(&sampled)));
}

#[test]
fn a_client_that_goes_away_ends_its_span() {
    let (collector, target) = (Target::start(ok), Target::start(ok));
    let receiver = traced(&target, &[&endpoint(&collector), NEVER]).start();
    let held = receiver.inject("fdatasync,fsync:delay_enter=600000000");
    let mut wire = receiver.connect();
    wire.send(post("/events", "", marked(&new_id()).as_bytes())).unwrap();
    receiver.wait_metric("received_total", 1);
    wire.abort();
    wait_for("the receiver to see it", || (receiver.metric("connections") == 0).then_some(()));
    drop(held);
    receiver.wait_metric("stored_total", 1);
    receiver.sink_settled("web");
    receiver.finish();
    let spans = spans(&collector);
    let asked = of_name(&spans, "POST /events");
    let [asked] = *asked else { panic!("{spans:#?}") };
    assert_eq!((&asked["status"], &asked["attributes"]["asapp.outcome"]), (&json!("ERROR"), &json!("aborted")));
    assert_eq!(asked["attributes"].get("http.response.status_code"), None);
    // The event is no less there.
    assert_eq!(of_name(&spans, "deliver web")[0]["parent"], asked["span_id"]);
}

#[test]
fn a_collector_that_is_away_costs_spans_and_no_events() {
    let target = Target::start(ok);
    let away = format!("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:{}/v1/traces", free_port());
    let receiver = traced(&target, &[&away, "OTEL_BSP_SCHEDULE_DELAY=10", "OTEL_EXPORTER_OTLP_TIMEOUT=300"]).start();
    let ids = receiver.store(200);
    let told = |receiver: &Receiver| (!told_of_loss(&receiver.log.so_far()).is_empty()).then_some(());
    wait_for("the loss to be told", || told(&receiver));
    receiver.store(50);
    assert_eq!(receiver.sink_settled("web")["delivered"], ids.len() + 50);
    let log = receiver.finish().log;
    let told = told_of_loss(&log);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["lost"].as_u64().is_some_and(|lost| lost > 0), "{told:?}");
    assert!(told[0]["reason"].as_str().is_some_and(|reason| reason.contains("refused")), "{told:?}");
}

#[test]
fn a_slow_collector_gets_no_more_than_the_queue_holds() {
    // Too slow for all of them, and nothing is lost by a time-out.
    let collector = Target::start(|_| Reply::status(200).after(Duration::from_secs(2)));
    let target = Target::start(ok);
    let small = ["OTEL_BSP_MAX_QUEUE_SIZE=16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE=4", "OTEL_BSP_SCHEDULE_DELAY=1"];
    let receiver = traced(&target, &[&[&*endpoint(&collector)], &small[..]].concat()).start();
    receiver.store(4);
    collector.wait_requests(1);
    receiver.store(300);
    assert_eq!(receiver.sink_settled("web")["delivered"], 304);
    let before = collector.requests().len();
    collector.answer(ok);
    let log = receiver.finish().log;
    let spans = spans(&collector);
    // What was under way, what was put together meanwhile, and the queue.
    assert!(spans.len() <= 4 * (before + 2) + 16, "{} spans, {before} requests before", spans.len());
    assert!(spans.len() >= 16, "{}", spans.len());
    let told = told_of_loss(&log);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0]["lost"].as_u64().is_some_and(|lost| lost > 100), "{told:?}");
    let names: BTreeSet<&str> = spans.iter().filter_map(|span| span["name"].as_str()).collect();
    assert!(names.is_subset(&BTreeSet::from(["POST /events", "deliver web"])), "{names:?}");
}

#[test]
fn a_collector_that_hangs_does_not_hold_up_the_drain() {
    let (collector, target) = (Target::start(|_| Reply::hang()), Target::start(ok));
    let receiver = traced(&target, &[&endpoint(&collector), NEVER]).set("listen.drain_timeout", "3s").start();
    receiver.store(3);
    receiver.sink_settled("web");
    let ended = receiver.finish();
    ended.assert_soon();
    assert_eq!(collector.requests().len(), 1);
    assert!(ended.log.iter().any(|line| line.contains("did not take the last spans in time")), "{:?}", ended.log);
}
