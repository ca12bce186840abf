//! FAULTS "Body": what a body may be, and what becomes of one that may not.

use std::time::Duration;

use crate::harness::event::{event, new_event, new_id};
use crate::harness::programs::curl;
use crate::harness::receiver::{Setup, log_line};
use crate::harness::wire::post;

/// An event with this text in its `data`.
fn event_with(id: &str, data: &str) -> String {
    event(id).replace(r#""first_utterance_text":"hello""#, data)
}

#[test]
fn what_is_not_one_json_object_gets_400_and_is_kept() {
    let receiver = Setup::new().start();
    let (id, good) = new_event();
    let deep = event_with(&id, &format!(r#""x":{}1{}"#, "[".repeat(126), "]".repeat(126)));
    let bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b" \r\n".to_vec(),
        b"hello".to_vec(),
        good.as_bytes()[..good.len() - 1].to_vec(),
        format!("{good}x").into_bytes(),
        format!("{good}{good}").into_bytes(),
        format!("[{good}]").into_bytes(),
        b"[]".to_vec(),
        b"17".to_vec(),
        b"\"text\"".to_vec(),
        b"null".to_vec(),
        good.replace("hello", "h\u{0}llo").into_bytes(),
        good.replace("hello", "h\nllo").into_bytes(),
        good.replace("hello", r"h\xllo").into_bytes(),
        [good.as_bytes(), b"\0"].concat(),
        [b"\xef\xbb\xbf", good.as_bytes()].concat(),
        good.replace("hello", "@").into_bytes().iter().map(|&b| if b == b'@' { 0xff } else { b }).collect(),
        [b"{\"\xc0\xaf\":1,", &good.as_bytes()[1..]].concat(),
        [b"{\"a\":\"\xed\xa0\x80\",", &good.as_bytes()[1..]].concat(),
        good.replace("\"hello\"", "01").into_bytes(),
        good.replace("\"hello\"", "NaN").into_bytes(),
        good.replace("\"hello\"", "1,").into_bytes(),
        good.replace("\"hello\"", "'hello'").into_bytes(),
        good.replace("{\"api", "{/* no comments */\"api").into_bytes(),
        deep.into_bytes(),
    ];
    let mut wire = receiver.connect();
    for body in &bodies {
        let answer = wire.post(body);
        let detail = answer.assert_problem(400, "malformed");
        assert!(detail.contains("line ") && detail.contains("column "), "{detail}");
    }
    let kept = u64::try_from(bodies.len()).unwrap();
    assert_eq!(receiver.metric(r#"quarantined_total{reason="malformed"}"#), kept);
    // Sent again, as ASAPP would: kept once.
    for body in &bodies {
        assert_eq!(wire.post(body).status, 400);
    }
    assert_eq!(receiver.metric(r#"quarantined_total{reason="malformed"}"#), kept);
    let account = receiver.settled();
    assert_eq!((account.received, account.rejected), (2 * kept, 2 * kept));

    wire.post(good.as_bytes()).assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn a_mebibyte_of_brackets_is_refused_at_once() {
    let receiver = Setup::new().start();
    let mut wire = receiver.connect();
    for opening in ["[", "{\"a\":"] {
        let body = opening.repeat((1 << 20) / opening.len());
        let before = receiver.cpu();
        wire.send(post("/events", "", body.as_bytes())).unwrap();
        wire.answer().assert_problem(400, "malformed");
        // The promise is 50 ms, which is measured in hundredths of a second; an unoptimised build gets more. Of the
        // processor: other work of the machine takes none of it.
        let limit = Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 70 });
        let busy = receiver.cpu() - before;
        assert!(busy <= limit, "{busy:?}");
    }
    receiver.finish();
}

#[test]
fn depth_127_is_taken_and_depth_128_is_not() {
    let receiver = Setup::new().start();
    // The event is one level, its `data` the second.
    let nested = |id: &str, levels: usize| {
        event_with(id, &format!(r#""x":{}1{}"#, "[".repeat(levels - 2), "]".repeat(levels - 2)))
    };
    let id = new_id();
    receiver.post(nested(&id, 127)).assert_durable("stored", &id);
    receiver.post(nested(&new_id(), 128)).assert_problem(400, "malformed");
    receiver.finish();
}

#[test]
fn odd_values_are_kept_byte_for_byte() {
    let receiver = Setup::new().start();
    let data = [
        r#""a":18446744073709551616,"b":-0,"c":1e400,"d":-1.5E-400,"e":0.1000000000000000055511151231257827"#
            .to_owned(),
        format!(r#""a":{}"#, "9".repeat(5000)),
        r#""a":"\ud800","b":"\udc00\ud800","c":"\ud83d\ude00","d":"\u0000","e":"\/\b\f""#.to_owned(),
        "\"a\":\"\u{1F600}\u{7f}\u{2028}\u{feff}\"".to_owned(),
        r#""a":1,"a":2,"":null,"../../etc/passwd":"{{x}}${y}%s""#.to_owned(),
    ];
    let mut wire = receiver.connect();
    for data in data {
        let id = new_id();
        let event = event_with(&id, &data);
        wire.post(event.as_bytes()).assert_durable("stored", &id);
        assert_eq!(receiver.delivered(&id), event);
    }
    receiver.finish();
}

#[test]
fn line_breaks_between_tokens_become_spaces() {
    let receiver = Setup::new().start();
    let id = new_id();
    let pretty = event(&id).replace(",\"", ",\r\n\t\"") + "\n";
    let answer = curl(&receiver, "/events", &["--data-binary", "@-"], pretty.as_bytes());
    answer.assert_durable("stored", &id);
    assert_eq!(receiver.delivered(&id), pretty.replace(['\r', '\n'], " "));
    let ended = receiver.finish();
    assert_eq!(ended.stdout.len(), 1);
}

#[test]
fn routing_that_is_missing_or_odd_gets_422_and_is_kept() {
    let receiver = Setup::new().start();
    let good = event(&new_id());
    let id_member = good.split(',').find(|part| part.starts_with("\"event_id\"")).unwrap().to_owned();
    let bodies = [
        "{}".to_owned(),
        good.replace("\"name\"", "\"nome\""),
        good.replace("\"event_type\"", "\"event_tipe\""),
        good.replace("\"event_id\"", "\"event_ids\""),
        good.replace("\"com.asapp.event.journey\"", "\"\""),
        good.replace("\"customer_request\"", "\"\""),
        good.replace(&id_member, "\"event_id\":\"\""),
        good.replace(&id_member, "\"event_id\":17"),
        good.replace(&id_member, "\"event_id\":null"),
        good.replace(&id_member, "\"event_id\":[\"x\"]"),
        good.replace(&id_member, "\"event_id\":{\"x\":1}"),
        good.replace("\"customer_request\"", "true"),
        good.replace(&id_member, &format!("{id_member},{id_member}")),
        good.replace(&id_member, &format!("{id_member},\"event\\u005fid\":\"other\"")),
        good.replace("\"meta_data\"", "\"name\":\"com.asapp.event.queue\",\"meta_data\""),
        good.replace(&id_member, &format!("\"event_id\":\"{}\"", "x".repeat(257))),
        good.replace(&id_member, &format!("\"event_id\":\"{}\"", "\u{e9}".repeat(129))),
    ];
    let mut wire = receiver.connect();
    for body in &bodies {
        let detail = wire.post(body.as_bytes()).assert_problem(422, "incomplete");
        assert!(["name", "event_type", "event_id"].iter().any(|member| detail.contains(member)), "{detail}");
    }
    let kept = u64::try_from(bodies.len()).unwrap();
    assert_eq!(receiver.metric(r#"quarantined_total{reason="incomplete"}"#), kept);
    assert_eq!(receiver.metric(r#"rejected_total{reason="incomplete"}"#), kept);
    // Inside `data` the same names mean nothing.
    let id = new_id();
    wire.post(event_with(&id, r#""event_id":7,"name":null"#).as_bytes()).assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn ids_are_compared_as_exact_decoded_strings() {
    let receiver = Setup::new().start();
    let mut wire = receiver.connect();
    let long = "x".repeat(256);
    let ids = [
        "not a uuid",
        "A0000000-0000-4000-8000-00000000000F",
        "a0000000-0000-4000-8000-00000000000f",
        "{a0000000-0000-4000-8000-00000000000f}",
        "urn:uuid:a0000000-0000-4000-8000-00000000000f",
        "a",
        "a ",
        " a",
        "a\0",
        "\u{e9}",
        "e\u{301}",
        "\"quoted\"\\\n\u{7f}",
        &long,
    ];
    for id in ids {
        wire.post(event(id).as_bytes()).assert_durable("stored", id);
    }
    for id in ids {
        wire.post(event(id).as_bytes()).assert_durable("duplicate", id);
    }
    // The same string spelt with an escape is the same id.
    let spelt = event("not a uuid").replace("not a uuid", r"n\u006ft a uuid");
    wire.post(spelt.as_bytes()).assert_durable("duplicate", "not a uuid");
    let account = receiver.settled();
    assert_eq!((account.stored, account.duplicate), (13, 14));
    receiver.sink_settled("stdout");
    assert_eq!(receiver.finish().stdout.len(), 13);
}

#[test]
fn a_known_id_with_other_bytes_is_a_conflict_and_the_first_one_stands() {
    let receiver = Setup::new().start();
    let id = new_id();
    let (first, other) = (event(&id), event_with(&id, r#""first_utterance_text":"goodbye""#));
    receiver.post(&first).assert_durable("stored", &id);
    receiver.post(&first).assert_durable("duplicate", &id);
    assert_eq!(receiver.metric("conflicts_total"), 0);
    receiver.post(&other).assert_durable("duplicate", &id);
    assert_eq!(receiver.metric("conflicts_total"), 1);
    assert_eq!(receiver.metric(r#"quarantined_total{reason="conflict"}"#), 1);
    receiver.post(&first).assert_durable("duplicate", &id);
    assert_eq!(receiver.metric("conflicts_total"), 1);
    receiver.sink_settled("stdout");
    let ended = receiver.finish();
    assert_eq!(ended.stdout, [first]);
}

#[test]
fn the_same_new_id_on_many_connections_is_stored_once() {
    let receiver = Setup::new().start();
    for _ in 0..10 {
        let (id, event) = new_event();
        let words: Vec<String> = std::thread::scope(|scope| {
            let posts: Vec<_> = (0..6).map(|_| scope.spawn(|| receiver.post(&event))).collect();
            let answers = posts.into_iter().map(|post| post.join().unwrap());
            answers.map(|answer| answer.json()["status"].as_str().unwrap().to_owned()).collect()
        });
        assert_eq!(words.iter().filter(|word| *word == "stored").count(), 1, "{words:?}");
        assert_eq!(words.iter().filter(|word| *word == "duplicate").count(), 5, "{words:?}");
        receiver.delivered(&id);
    }
    assert_eq!(receiver.finish().stdout.len(), 10);
}

#[test]
fn drift_from_the_documented_schema_is_taken_and_counted() {
    let receiver = Setup::new().start();
    let mut wire = receiver.connect();
    let mut drifts = |change: &dyn Fn(String) -> String, kind: &str| {
        let id = new_id();
        let event = change(event(&id));
        let of_kind = || -> f64 {
            let metrics = receiver.metrics();
            let label = format!("kind=\"{kind}\"");
            metrics.iter().filter(|(name, _)| name.contains("_drift_") && name.contains(&label)).map(|(_, n)| n).sum()
        };
        let before = of_kind();
        wire.post(event.as_bytes()).assert_durable("stored", &id);
        assert_eq!(receiver.delivered(&id), event);
        crate::harness::wait_for(kind, || (of_kind() > before).then_some(()));
    };
    drifts(&|e| e.replace("com.asapp.event.journey", "com.asapp.event.weather"), "feed");
    drifts(&|e| e.replace("customer_request", "customer_flies"), "event_type");
    drifts(&|e| e.replace("\"data\":{", "\"data\":{\"a_new_field\":1,"), "field");
    drifts(&|e| e.replace("\"meta_data\":{", "\"meta_data\":{\"a_new_field\":{\"x\":[]},"), "field");
    drifts(&|e| e.replace("\"sess-1\"", "[1]"), "mismatch");
    drifts(&|e| e.replace("2026-05-01T10:00:00.123Z", "yesterday"), "mismatch");
    drifts(&|e| e.replace("v1.4.0", "v2.0.0"), "api_version");
    receiver.log.wait("an alarm about the new major version", |line| {
        let line = log_line(line)?;
        let alarm = line["level"] == "WARN" || line["level"] == "ERROR";
        (alarm && line.to_string().contains("api_version")).then_some(())
    });
    receiver.finish();
}

#[test]
fn drift_is_named_in_the_log_and_in_status_without_values() {
    let receiver = Setup::embedded().start();
    let mut wire = receiver.connect();
    let mut post = |change: &dyn Fn(String) -> String| {
        let id = new_id();
        wire.post(change(event(&id)).as_bytes()).assert_durable("stored", &id);
    };
    let long = "n".repeat(3_000);
    for _ in 0..2 {
        post(&|e| e.replace("com.asapp.event.journey", "com.asapp.event.weather"));
        post(&|e| e.replace("customer_request", "customer_flies"));
        post(&|e| e.replace("\"data\":{", "\"data\":{\"new_field\":\"mArKeR\","));
        post(&|e| e.replace("\"data\":{", "\"data\":{\"odd\\u001b[2J\\u202e\\u00e9\":[\"mArKeR\"],"));
        post(&|e| e.replace("\"data\":{", &format!("\"data\":{{\"{long}\":1,")));
        post(&|e| e.replace("\"data\":{", "\"data\":{\"division_id\":[\"mArKeR\"],"));
    }
    let escaped = "odd\\u{1b}[2J\\u{202e}\\u{e9}";
    let cut = format!("{}...", "n".repeat(64));
    let wanted = [
        ("other", "feed", "name", Some("com.asapp.event.weather")),
        ("journey", "event_type", "event_type", Some("customer_flies")),
        ("journey", "field", "data", Some("new_field")),
        ("journey", "field", "data", Some(escaped)),
        ("journey", "field", "data", Some(cut.as_str())),
    ];
    let status = crate::harness::wait_for("the drift to show", || {
        let status = receiver.ask_admin("/api/v1/status").unwrap().json();
        let seen = status["drift"].as_array()?.clone();
        let has = |&(feed, kind, at, name): &(&str, &str, &str, Option<&str>)| {
            seen.iter().any(|drift| {
                let same = drift["feed"] == feed && drift["kind"] == kind && drift["at"] == at;
                same && drift["name"].as_str() == name && drift["count"] == 2
            })
        };
        wanted.iter().all(has).then_some(status)
    });
    assert!(!status.to_string().contains("mArKeR"), "{status}");
    for (feed, kind, at, name) in wanted {
        receiver.log.wait(&format!("{kind} {name:?}"), |line| {
            let line = log_line(line)?;
            let same = line["feed"] == feed && line["kind"] == kind && line["path"] == at;
            (same && line["name"].as_str() == name).then_some(())
        });
    }
    let shown = receiver.operate(&["status"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("not as documented by ASAPP") && shown.contains("customer_flies"), "{shown}");

    // However many are made up, few are kept, and few are logged.
    for number in 0..200 {
        post(&|e| e.replace("\"data\":{", &format!("\"data\":{{\"made_up_{number}\":1,")));
    }
    receiver.wait_metric("drift_total{feed=\"journey\",kind=\"field\"}", 200);
    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    assert_eq!(status["drift"].as_array().unwrap().len(), 50);
    let ended = receiver.finish();
    let logged = ended.log.iter().filter(|line| line.contains("deviate")).count();
    assert!((6..=50).contains(&logged), "{logged}");
    assert!(ended.log.iter().all(|line| !line.contains("mArKeR")));
}

#[test]
fn labels_stay_few_whatever_events_say() {
    let receiver = Setup::new().start();
    let mut wire = receiver.connect();
    let mut post_odd = |number: usize| {
        let id = new_id();
        let event = event(&id)
            .replace("com.asapp.event.journey", &format!("com.asapp.event.x{number}"))
            .replace("customer_request", &format!("type{number}"))
            .replace("v1.4.0", &format!("v{number}"))
            .replace("\"data\":{", &format!("\"field{number}\":1,\"data\":{{"));
        wire.post(event.as_bytes()).assert_durable("stored", &id);
        receiver.delivered(&id);
    };
    (0..20).for_each(&mut post_odd);
    receiver.wait_metric("drift_total", 20);
    std::thread::sleep(Duration::from_millis(100));
    let before = receiver.metrics().len();
    (20..60).for_each(&mut post_odd);
    receiver.wait_metric("drift_total", 60);
    assert!(receiver.metrics().len() <= before + 2);
    receiver.finish();
}

#[test]
fn control_characters_in_values_harm_nothing() {
    let receiver = Setup::new().set("log.level", "trace").start();
    let mut wire = receiver.connect();
    let evil = "a\r\nb\u{1b}[31m\u{7}../../x{{y}}\",\"level\":\"ERROR\"\u{2028}%n";
    let quoted = serde_json::Value::from(evil).to_string();
    for (from, prefix) in [("\"com.asapp.event.journey\"", ""), ("\"customer_request\"", ""), ("\"acme\"", "")] {
        let id = format!("{prefix}{}{evil}", new_id());
        let event = event(&id).replace(from, &quoted);
        wire.post(event.as_bytes()).assert_durable("stored", &id);
        receiver.delivered(&event);
        wire.post(event.as_bytes()).assert_durable("duplicate", &id);
        // Refused, with the same text in it.
        wire.post(event.replace("event_id", "event_ids").as_bytes()).assert_problem(422, "incomplete");
        wire.post(format!("{event},").as_bytes()).assert_problem(400, "malformed");
    }
    let ended = receiver.finish();
    assert_eq!(ended.stdout.len(), 3);
    for line in &ended.log {
        assert!(log_line(line).is_some(), "no JSON object: {line:?}");
        assert!(!line.contains(|c: char| c.is_control()), "{line:?}");
    }
}

#[test]
fn values_never_show_up_in_diagnostics() {
    let receiver = Setup::embedded().set("log.level", "trace").start();
    let marker = "mArKeR";
    let marked = |id: &str| {
        let event = event(id);
        let mut value: serde_json::Value = serde_json::from_str(&event).unwrap();
        for section in ["meta_data", "data"] {
            for (_, member) in value[section].as_object_mut().unwrap() {
                *member = format!("{marker} {member}").into();
            }
        }
        // Their names are logged, their values are not, whatever is in them.
        value["data"]["unknown-field"] = serde_json::json!({ "x": [marker, { marker: marker }] });
        value["unknown-top"] = marker.into();
        value["details"] = serde_json::json!({ "note": marker, "n": 987_654_321_987_u64 });
        value.to_string()
    };
    let mut wire = receiver.connect();
    let id = new_id();
    let event = marked(&id);
    wire.post(event.as_bytes()).assert_durable("stored", &id);
    wire.post(event.replace("note", "other").as_bytes()).assert_durable("duplicate", &id);
    receiver.delivered(&id);
    let mut answers = vec![
        wire.post(event.replace(r#""event_id":"#, r#""event_ids":"#).as_bytes()),
        wire.post(&event.as_bytes()[..event.len() / 2]),
        wire.post(event.replace("v1.4.0", marker).replace(&id, "").as_bytes()),
        wire.post(event.replace("customer_request", &format!("{marker}\u{1}")).as_bytes()),
        wire.post(format!("{event}{marker}").as_bytes()),
    ];
    // At every length: the scan breaks off in the middle of every kind of value.
    for cut in (1..event.len()).step_by(event.len() / 40) {
        answers.push(wire.post(&event.as_bytes()[..cut]));
    }
    wire.send(post("/events", "Content-Encoding: mArKeR\r\n", event.as_bytes())).unwrap();
    answers.push(wire.answer());
    wire.send(post("/mArKeR", "X-Secret: mArKeR\r\n", event.as_bytes())).unwrap();
    answers.push(wire.answer());
    let full_disk = receiver.inject("pwrite64,ftruncate,fallocate:error=ENOSPC");
    answers.push(wire.post(marked(&new_id()).as_bytes()));
    drop(full_disk);
    for answer in &answers {
        assert!(answer.status >= 400);
        assert!(!answer.text().contains(marker), "{}", answer.text());
        assert!(!answer.text().contains("987654321987"), "{}", answer.text());
    }
    for series in receiver.metrics().keys() {
        assert!(!series.contains(marker), "{series}");
    }
    let ended = receiver.finish();
    for line in &ended.log {
        assert!(!line.contains(marker) && !line.contains("987654321987"), "{line}");
    }
}
