//! What an HTTP sink sends, judged by other people's libraries and by nginx.

use std::io::Write;
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::harness::event::{event, new_event, new_id};
use crate::harness::nginx::Nginx;
use crate::harness::pki::{Ca, PKI, write_private};
use crate::harness::programs::verifier;
use crate::harness::receiver::Setup;
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wait_for;

const OLD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDb3Vd5HkqYxI=";

fn to(url: &str) -> Setup {
    Setup::new().set("sinks.web.type", "http").set("sinks.web.url", url).set("sinks.web.retry.max_backoff", "200ms")
}

/// The Python program `tests/verify/verify.py`: the CloudEvents it found, or why it found something wrong.
fn verify(requests: &[Request], lines: &[String], secret: Option<&str>) -> Result<Value, String> {
    let requests: Vec<Value> = requests
        .iter()
        .map(|request| {
            let headers =
                request.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()));
            json!({ "headers": headers.collect::<serde_json::Map<_, _>>(), "body": STANDARD.encode(&request.body) })
        })
        .collect();
    let given = json!({ "requests": requests, "lines": lines, "secret": secret });
    let mut command = verifier("verify.py");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(given.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn signatures_verify_with_the_specifications_own_library() {
    for (compress, max_events) in [("none", 1), ("none", 5), ("gzip", 1), ("gzip", 5)] {
        let target = Target::start(|_| Reply::status(204));
        let setup = to(&target.url("/"));
        let secret = setup.folder().join("secret");
        write_private(&secret, &format!("{OLD_SECRET}\n"));
        let receiver = setup
            .set("sinks.web.signing_secret_file", &secret)
            .set("sinks.web.compress", compress)
            .set("sinks.web.batch.max_events", max_events)
            .start();
        receiver.store(5);
        let odd = "an id. – of two words";
        receiver.post(event(odd)).assert_durable("stored", odd);
        receiver.sink_settled("web");
        let requests = target.requests();
        verify(&requests, &[], Some(OLD_SECRET)).unwrap();
        let wrong = verify(&requests, &[], Some(NEW_SECRET)).unwrap_err();
        assert!(wrong.contains("No matching signature found"), "{wrong}");
        if compress == "none" {
            let mut changed = requests.clone();
            changed[0].body = changed[0].text().replace("hello", "hullo").into();
            assert!(verify(&changed, &[], Some(OLD_SECRET)).is_err());
        }
        receiver.finish();
    }
}

#[test]
fn cloudevents_are_read_by_their_own_library_in_every_mode() {
    let target = Target::start(|_| Reply::status(204));
    let receiver = Setup::new().cloudevents_to(&target, 10).start();
    // Of a missing time their library would make the present.
    let bare = r#"{"name":"com.asapp.event.survey","event_type":"ANSWERED","event_id":"\u00e9 1%\u0007",
        "meta_data":{"event_time":"2026-05-01T10:00:00+02:00"}}"#;
    let samples = [
        include_str!("../samples/activity.json"),
        include_str!("../samples/journey.json"),
        include_str!("../samples/queue.json"),
    ];
    // They all have the same id.
    let samples = samples.map(|text| text.replace("3fa85f64-5717-4562-b3fc-2c963f66afa6", &new_id()));
    let odd = event("1").replace("acme", "Ac/me é").replace("issue-1", "issue \\\"é\\\" 100%");
    let bodies: Vec<String> = [odd, bare.to_owned()].into_iter().chain(samples).collect();
    for body in &bodies {
        assert_eq!(receiver.post(body).status, 200);
    }
    for sink in ["stdout", "binary", "batch"] {
        receiver.sink_settled(sink);
    }
    let requests = target.requests();
    let to = |path: &str| requests.iter().filter(|request| request.path == path).cloned().collect::<Vec<_>>();
    let lines = receiver.finish().stdout;

    let data: Vec<Value> = bodies.iter().map(|body| serde_json::from_str(body).unwrap()).collect();
    let of_sample = |event: &Value| {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap();
        json!({
            "specversion": "1.0",
            "id": event["event_id"],
            "source": "/asapp/string",
            "type": format!("{}.{}", text("/name"), text("/event_type")),
            "subject": "string",
            "time": text("/meta_data/event_time").replace('Z', "000+00:00"),
            "datacontenttype": "application/json",
        })
    };
    let attributes = [
        json!({
            "specversion": "1.0",
            "id": "1",
            "source": "/asapp/Ac%2Fme%20%C3%A9",
            "type": "com.asapp.event.journey.customer_request",
            "subject": "issue \"é\" 100%",
            "time": "2026-05-01T10:00:00.120000+00:00",
            "datacontenttype": "application/json",
        }),
        json!({
            "specversion": "1.0",
            "id": "é 1%%07",
            "source": "/asapp",
            "type": "com.asapp.event.survey.ANSWERED",
            "time": "2026-05-01T10:00:00+02:00",
            "datacontenttype": "application/json",
        }),
    ];
    let expected: Vec<Value> = attributes
        .into_iter()
        .chain(data[2..].iter().map(of_sample))
        .zip(&data)
        .map(|(attributes, data)| json!({ "attributes": attributes, "data": data }))
        .collect();
    for found in [verify(&[], &lines, None), verify(&to("/binary"), &[], None), verify(&to("/batch"), &[], None)] {
        assert_eq!(found.unwrap(), json!(expected));
    }
}

#[test]
fn secrets_are_exchanged_while_it_runs() {
    let target = Target::start(|_| Reply::status(204));
    let setup = to(&target.url("/"));
    let secret = setup.folder().join("secret");
    write_private(&secret, OLD_SECRET);
    let receiver = setup.set("sinks.web.signing_secret_file", &secret).start();
    let signed = |with: &str| {
        receiver.store(1);
        receiver.sink_settled("web");
        let requests = target.requests();
        verify(&requests[requests.len() - 1..], &[], Some(with)).is_ok()
    };
    assert!(signed(OLD_SECRET) && !signed(NEW_SECRET));
    write_private(&secret, &format!("{NEW_SECRET} {OLD_SECRET}"));
    wait_for("both secrets", || signed(NEW_SECRET).then_some(()));
    assert!(signed(OLD_SECRET));
    write_private(&secret, NEW_SECRET);
    wait_for("the old secret to be gone", || (!signed(OLD_SECRET)).then_some(()));
    assert!(signed(NEW_SECRET));
    receiver.finish();
}

/// TLS 1.2 and a client certificate; bodies stored, refused and put off by a server that is not ours.
#[test]
fn nginx_takes_what_a_sink_sends() {
    let clients = Ca::new("nginx's CA");
    let client = clients.client(|_| ());
    let nginx = Nginx::start(
        &PKI.server,
        &clients,
        "
        ssl_protocols TLSv1.2;
        client_max_body_size 4k;
        location / { return 204; }
        location /busy { return 503; }
        location /stored/ { dav_methods PUT; create_full_put_path on; }
        ",
    );
    let to = |path: &str| {
        to(&nginx.url(path))
            .set("sinks.web.tls.ca", [&PKI.ca.certificate])
            .set("sinks.web.tls.certificate", &client.chain)
            .set("sinks.web.tls.private_key", &client.key)
    };

    let receiver = to("/taken").set("sinks.web.ordering", "strict").start();
    let mut ids = receiver.store(20);
    let large = new_id();
    let too_large = event(&large).replace("hello", &"hello ".repeat(1_000));
    receiver.post(too_large).assert_durable("stored", &large);
    ids.push(large);
    let sink = receiver.sink_settled("web");
    assert_eq!((&sink["delivered"], &sink["dead_lettered"]), (&20.into(), &1.into()), "{sink}");
    receiver.finish();
    let expected = ids.iter().enumerate().map(|(at, id)| {
        let status = if at < 20 { 204 } else { 413 };
        format!("POST /taken {status} {id} CN=asapp-events.example,O=ASAPP test")
    });
    // It writes them after its answers.
    wait_for("its log", || (nginx.access_log().len() >= ids.len()).then_some(()));
    assert_eq!(nginx.access_log(), expected.collect::<Vec<_>>());

    let receiver = to("/stored/event.json").set("sinks.web.method", "PUT").start();
    let (id, body) = new_event();
    receiver.post(&body).assert_durable("stored", &id);
    receiver.sink_settled("web");
    receiver.finish();
    assert_eq!(nginx.stored("stored/event.json"), body);

    let receiver = to("/busy").start();
    receiver.store(1);
    let busy = || receiver.sink("web")["last_error"].as_str().is_some_and(|error| error.contains("503")).then_some(());
    wait_for("nginx to be busy", busy);
    receiver.finish();

    let receiver = Setup::new()
        .set("sinks.web.type", "http")
        .set("sinks.web.url", &*nginx.url("/taken"))
        .set("sinks.web.tls.ca", [&PKI.ca.certificate])
        .start();
    receiver.store(1);
    // nginx asks for a certificate with a 400, which reads as a refusal of the event.
    let sink = receiver.sink_settled("web");
    assert_eq!(sink["dead_lettered"], 1, "{sink}");
    receiver.finish();
}
