mod receiver;

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use super::credentials::Pem;
use super::faults::Faults;
use super::link::Failure;
use super::model::ISSUES_PER_MINUTE;
use super::*;
use receiver::{Pki, Receiver, Reply};

fn outcomes(summary: &Summary) -> [u64; 6] {
    let Summary { sent, stored, duplicate, rejected, dropped, attempts, .. } = *summary;
    assert_eq!(sent, stored + duplicate + rejected + dropped);
    [sent, stored, duplicate, rejected, dropped, attempts]
}

#[tokio::test]
async fn each_event_is_posted_once_over_kept_connections() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let summary = receiver.run(200).await;
    assert_eq!(outcomes(&summary), [200, 200, 0, 0, 0, 200]);
    assert_eq!(summary.last_failure, None);
    assert!(summary.latency.percentile(50.0) > 0);
    assert!(summary.latency.percentile(50.0) <= summary.latency.percentile(100.0));
    // Not faster than told: 200 events at 1,000/s.
    assert!(summary.took >= Duration::from_millis(199), "{:?}", summary.took);
    {
        let seen = receiver.seen();
        assert_eq!((seen.posts.len(), seen.ids.len()), (200, 200));
        assert!((1..=8).contains(&seen.connections), "{} connections", seen.connections);
    }
    // The same seed sends the same ids again.
    assert_eq!(outcomes(&receiver.run(200).await), [200, 0, 200, 0, 0, 200]);
}

#[tokio::test]
async fn any_200_is_a_success() {
    let receiver = Receiver::start(&[Reply::Plain, Reply::Close, Reply::Close, Reply::Plain]).await;
    let mut settings = receiver.settings(6);
    settings.connections = 1;
    let summary = run(settings, Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [6, 6, 0, 0, 0, 6]);
    assert_eq!(receiver.seen().connections, 3);
}

#[tokio::test]
async fn anything_but_200_is_tried_again() {
    let receiver = Receiver::start(&[Reply::Status(503), Reply::Reset, Reply::Status(204), Reply::Honest]).await;
    let summary = receiver.run(1).await;
    // The first copy was seen, so an honest receiver says so.
    assert_eq!(outcomes(&summary), [1, 0, 1, 0, 0, 4]);
    assert_eq!(summary.last_failure, Some(Failure::Status(hyper::StatusCode::NO_CONTENT)));
}

#[tokio::test]
async fn after_the_last_retry_an_event_is_dropped() {
    let receiver = Receiver::start(&[Reply::Status(503)]).await;
    let mut settings = receiver.settings(3);
    settings.retries = 1;
    let summary = run(settings.clone(), Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [3, 0, 0, 0, 3, 6]);
    assert_eq!(summary.latency.percentile(99.0), 0);
    assert!(summary.to_string().ends_with("last failure: answered 503 Service Unavailable"), "{summary}");

    let receiver = Receiver::start(&[Reply::Status(422)]).await;
    settings.url = receiver.settings(0).url;
    settings.credentials = receiver.credentials.clone();
    settings.retries = 0;
    let summary = run(settings, Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [3, 0, 0, 3, 0, 3]);
}

#[tokio::test]
async fn silence_ends_at_the_timeout() {
    let receiver = Receiver::start(&[Reply::Silence]).await;
    let mut settings = receiver.settings(2);
    settings.timeout_ms = 50;
    settings.retries = 1;
    let summary = run(settings, Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [2, 0, 0, 0, 2, 4]);
    assert_eq!(summary.last_failure, Some(Failure::Timeout));
    assert!(summary.to_string().contains("time to the 200: there was none\n"), "{summary}");
}

#[tokio::test]
async fn without_an_accepted_certificate_nothing_is_sent() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let stranger = Pki::new().credentials;
    let refused = async |change: &dyn Fn(&mut Settings)| {
        let mut settings = receiver.settings(1);
        settings.retries = 0;
        change(&mut settings);
        let summary = run(settings, Control::default()).await.unwrap();
        assert_eq!(outcomes(&summary), [1, 0, 0, 0, 1, 1]);
        summary.last_failure.unwrap().to_string()
    };
    // The receiver does not trust the client.
    let told = refused(&|settings| {
        settings.credentials.certificate = stranger.certificate.clone();
        settings.credentials.private_key = stranger.private_key.clone();
    })
    .await;
    assert!(told.contains("alert"), "{told}");
    // The client does not trust the receiver, or finds it under another name.
    let told = refused(&|settings| settings.credentials.ca = stranger.ca.clone()).await;
    assert!(told.starts_with("localhost:") && told.contains("signed by the CA"), "{told}");
    let told = refused(&|settings| settings.url = settings.url.replace("localhost", "127.0.0.1")).await;
    assert!(told.starts_with("127.0.0.1:") && told.contains("for this host"), "{told}");
    assert_eq!(receiver.seen().posts.len(), 0);
}

#[tokio::test]
async fn stopping_sees_events_under_way_to_their_end() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let mut settings = receiver.settings(0);
    settings.events = None;
    let stop = Control::default();
    let watch = async {
        while receiver.seen().posts.len() < 20 {
            tokio::task::yield_now().await;
        }
        stop.stop();
    };
    let (summary, ()) = tokio::join!(run(settings, stop.clone()), watch);
    let summary = summary.unwrap();
    assert!(summary.sent >= 20);
    assert_eq!(outcomes(&summary), [summary.sent, summary.sent, 0, 0, 0, summary.sent]);
    assert_eq!(receiver.seen().posts.len() as u64, summary.sent);
}

#[tokio::test]
async fn a_duration_ends_the_run() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let mut settings = receiver.settings(0);
    settings.events = None;
    settings.pace = Pace::Rate(200.0);
    settings.duration = Some(Duration::from_millis(100));
    let summary = run(settings.clone(), Control::default()).await.unwrap();
    assert_eq!(outcomes(&summary), [20, 20, 0, 0, 0, 20]);

    // However much was due until then: it ends before that is sent.
    settings.pace = Pace::Rate(1_000_000.0);
    settings.timeout_ms = 200;
    let summary = run(settings, Control::default()).await.unwrap();
    assert!(summary.fell_behind() && summary.sent < 100_000, "{summary}");
}

#[tokio::test]
async fn what_can_never_work_is_an_error() {
    let pki = Pki::new();
    let run_with = async |change: &dyn Fn(&mut Settings)| {
        let mut settings = Settings::new("https://localhost:1/".into(), pki.credentials.clone());
        change(&mut settings);
        run(settings, Control::default()).await.map(drop).unwrap_err().to_string()
    };
    for url in [
        "http://localhost/",
        "localhost",
        "https://",
        "https://loc alhost/",
        "https://localhost:/",
        "https://localhost:0/",
        "https://localhost:65536/",
        "https://[::1]:65536/",
        "https://name@localhost:1/",
    ] {
        assert_eq!(run_with(&|settings| settings.url = url.into()).await, "the URL has to be https://HOST[:PORT]/PATH");
    }
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(run_with(&|settings| settings.pace = Pace::Rate(rate)).await.contains("rate"));
    }
    for (issues_per_minute, speed) in [(0.0, 1.0), (1.0, 0.0), (f64::INFINITY, 1.0), (1.0, f64::NAN)] {
        let told = run_with(&|settings| settings.pace = Pace::Company { issues_per_minute, speed }).await;
        assert!(told.contains("issues a minute"), "{told}");
    }
    for fraction in [-0.1, 1.1, f64::NAN] {
        let told = run_with(&|settings| settings.faults.drift = fraction).await;
        assert!(told.contains("fraction"), "{told}");
    }
    assert!(run_with(&|settings| settings.connections = 0).await.contains("connections"));
    let told = run_with(&|settings| settings.ledger = Some("/nonexistent/ledger.jsonl".into())).await;
    assert!(told.contains("/nonexistent/ledger.jsonl"), "{told}");
    let told = run_with(&|settings| settings.credentials.ca = Pem::File("/nonexistent/ca.pem".into())).await;
    assert_eq!(told, "the CA, /nonexistent/ca.pem: cannot be read: No such file or directory (os error 2)");
    let told = run_with(&|settings| settings.credentials.certificate = Pem::Text(Vec::new())).await;
    assert_eq!(told, "the client certificate, given in memory: is empty: it must hold a PEM certificate");
    let told = run_with(&|settings| settings.credentials.private_key = settings.credentials.ca.clone()).await;
    assert!(told.starts_with("the client key, given in memory: holds no PEM private key: "), "{told}");
    let told = run_with(&|settings| settings.credentials.private_key = Pki::new().credentials.private_key).await;
    assert_eq!(told, "the client key, given in memory, is not that of the first certificate in given in memory");
    assert!(!format!("{:?}", pki.credentials).contains("BEGIN"));
}

#[tokio::test]
async fn no_event_is_sent_before_it_is_due() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let begun = std::time::Instant::now();
    let summary = receiver.run_with(300, |settings| settings.connections = 1).await;
    for (index, (when, _)) in (0..).zip(&receiver.seen().posts) {
        let due = Duration::from_millis(index);
        assert!(
            when.duration_since(begun) >= due,
            "event {index} came {:?} after the start",
            when.duration_since(begun)
        );
    }
    assert_eq!(summary.asked_rate, 1_000.0);
    assert!(summary.achieved_rate > 0.0 && summary.achieved_rate <= 1_000.0, "{summary}");
}

#[tokio::test]
async fn a_stalled_receiver_shows_in_every_latency_it_delays() {
    let receiver = Receiver::start(&[Reply::Late(300), Reply::Honest]).await;
    let summary = receiver.run_with(400, |settings| settings.connections = 1).await;
    assert_eq!(outcomes(&summary), [400, 400, 0, 0, 0, 400]);
    // One answer of 400 was late; 300 events were due meanwhile and waited for it, the first of them nearly as long.
    for (percentile, least) in [(99.0, 290_000), (90.0, 200_000), (50.0, 50_000)] {
        assert!(summary.latency.percentile(percentile) >= least, "{summary}");
    }
}

#[tokio::test]
async fn sending_that_falls_behind_is_told() {
    let receiver = Receiver::start(&[Reply::Late(20)]).await;
    let mut summary = receiver.run_with(20, |settings| settings.connections = 1).await;
    assert!(summary.fell_behind(), "{summary}");
    assert!(summary.achieved_rate <= 50.0 && summary.behind >= Duration::from_millis(350), "{summary}");
    assert!(summary.to_string().contains("sending fell behind"), "{summary}");
    // As after a run that kept its pace, which a busy machine cannot promise.
    summary.settle_rates(10.0, Duration::from_millis(1_900), Duration::from_millis(15));
    assert!(!summary.fell_behind() && !summary.to_string().contains("behind"), "{summary}");
}

#[tokio::test]
async fn the_clock_of_a_company_may_run_faster() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let pace = Pace::Company { issues_per_minute: 20.0, speed: 100.0 };
    let summary = receiver.run_with(50, |settings| settings.pace = pace).await;
    assert_eq!(outcomes(&summary), [50, 50, 0, 0, 0, 50]);
    let mut model = Model::new(1, pace.issues_per_minute());
    for _ in 0..49 {
        model.next(OffsetDateTime::now_utc());
    }
    let last = model.at();
    assert!(summary.took >= last / 100, "{:?} for {last:?} of the company's", summary.took);
    // The events' own times are the company's.
    let seen = receiver.seen();
    let times = seen.posts.iter().map(|(_, body)| {
        let event: Value = serde_json::from_slice(body).unwrap();
        let time = event["meta_data"]["create_time"].as_str().unwrap().to_owned();
        OffsetDateTime::parse(&time, &time::format_description::well_known::Rfc3339).unwrap()
    });
    let (first, latest) = (times.clone().min().unwrap(), times.max().unwrap());
    let passed = Duration::try_from(latest - first).unwrap();
    assert!(passed.abs_diff(last) < Duration::from_secs(5), "{passed:?} of {last:?}");
}

#[tokio::test]
async fn a_connection_is_free_while_an_event_waits_for_its_retry() {
    let receiver = Receiver::start(&[Reply::Status(503), Reply::Honest]).await;
    let summary = receiver.run_with(20, |settings| settings.connections = 1).await;
    assert_eq!(outcomes(&summary), [20, 19, 1, 0, 0, 21]);
    let order = receiver.seen().order();
    let again = order.iter().rposition(|id| *id == order[0]).unwrap();
    assert!(again > 1, "the others had to wait for the retry");
}

#[tokio::test]
async fn a_seed_repeats_events_and_faults_in_their_order() {
    let bodies = async |seed| {
        let receiver = Receiver::start(&[Reply::Honest]).await;
        let change = |settings: &mut Settings| {
            settings.seed = seed;
            settings.connections = 1;
            settings.faults = Faults { duplicates: 0.2, reorder: 0.2, drift: 0.2, ..Faults::default() };
        };
        let summary = receiver.run_with(200, change).await;
        let bodies: Vec<_> = receiver.seen().posts.iter().map(|(_, body)| without_times(body)).collect();
        (bodies, summary.faults)
    };
    let first = bodies(5).await;
    assert!(first.1.duplicates > 20 && first.1.reorder > 20 && first.1.drift > 20, "{:?}", first.1);
    assert_eq!(bodies(5).await, first);
    assert_ne!(bodies(6).await, first);
}

fn without_times(body: &[u8]) -> String {
    let text = std::str::from_utf8(body).unwrap();
    let is_time = |word: &str| word.len() == 24 && word.ends_with('Z') && word.as_bytes()[10] == b'T';
    let mut before = "";
    let words = text.split('"').map(|word| {
        // Opening hours depend on the current minute.
        let is_hours = before.starts_with("business_hours_") && before.ends_with("_minutes");
        before = word;
        if is_time(word) || is_hours { "TIME" } else { word }
    });
    words.collect::<Vec<_>>().join("\"")
}

#[tokio::test]
async fn duplicates_come_again_with_the_same_bytes() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let summary = receiver.run_with(100, |settings| settings.faults.duplicates = 1.0).await;
    assert_eq!((summary.events, summary.faults.duplicates), (100, 100));
    assert_eq!(outcomes(&summary), [200, 100, 100, 0, 0, 200]);
    let seen = receiver.seen();
    assert!(seen.ids.values().all(|&copies| copies == 2));
    let mut places = BTreeMap::<_, Vec<usize>>::new();
    for (place, (_, body)) in seen.posts.iter().enumerate() {
        places.entry(body.clone()).or_default().push(place);
    }
    assert_eq!(places.len(), 100);
    let apart: Vec<_> = places.values().map(|places| places[1] - places[0]).collect();
    assert!(apart.iter().any(|&apart| apart <= 2) && apart.iter().any(|&apart| apart > 20), "{apart:?}");
}

#[tokio::test]
async fn events_that_are_held_back_come_later() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let change = |settings: &mut Settings| {
        settings.connections = 1;
        settings.faults.reorder = 0.2;
    };
    let summary = receiver.run_with(300, change).await;
    assert_eq!(outcomes(&summary), [300, 300, 0, 0, 0, 300]);
    let mut model = Model::new(1, ISSUES_PER_MINUTE);
    let places: BTreeMap<_, _> =
        (0..300_usize).map(|place| (model.next(OffsetDateTime::now_utc()).event_id, place)).collect();
    let came: Vec<_> = receiver.seen().order().iter().map(|id| places[id]).collect();
    // An event that was held back is one that a later one has passed.
    let mut latest = 0;
    let late = came.iter().filter(|&&place| {
        let passed = place < latest;
        assert!(!passed || latest - place <= 60, "{place} came after {latest}");
        latest = latest.max(place);
        passed
    });
    // The last ones may be held back with nothing behind them to pass them.
    let late = late.count() as u64;
    assert!((30..=summary.faults.reorder).contains(&late), "{late} of {:?}", summary.faults);
}

#[tokio::test]
async fn drift_gets_its_200_and_what_is_malformed_is_rejected() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let summary = receiver.run_with(200, |settings| settings.faults.drift = 1.0).await;
    assert_eq!(summary.faults.drift, 200);
    assert_eq!(outcomes(&summary), [200, 200, 0, 0, 0, 200]);
    let change = |settings: &mut Settings| {
        settings.faults.malformed = 1.0;
        settings.retries = 0;
    };
    let summary = receiver.run_with(200, change).await;
    assert_eq!(summary.faults.malformed, 200);
    assert_eq!(outcomes(&summary), [200, 0, 0, 200, 0, 200]);
    assert!(summary.to_string().contains("200 malformed"), "{summary}");
}

#[tokio::test]
async fn attempts_that_are_broken_off_are_made_up_for() {
    for (protocol, alpn) in [(Protocol::KeepAlive, "http/1.1"), (Protocol::Http2, "h2")] {
        let receiver = Receiver::offering(&[alpn], &[Reply::Honest]).await;
        let change = |settings: &mut Settings| {
            settings.protocol = protocol;
            settings.faults.abort = 1.0;
        };
        let summary = receiver.run_with(100, change).await;
        assert_eq!((summary.stored + summary.duplicate, summary.last_failure.clone()), (100, None), "{summary}");
        assert_eq!(summary.attempts, 100 + summary.faults.abort);
        assert!(summary.faults.abort > 100, "some twice");
        // Whole requests whose answer was not read.
        assert!(summary.duplicate > 10, "{summary}");
        let seen = receiver.seen();
        assert_eq!(seen.ids.len(), 100);
        assert!(seen.parts > 5, "{} in the body", seen.parts);
        assert!(seen.torn > 5, "{} connections ended within a request", seen.torn);
        let unseen = summary.attempts - (seen.posts.len() + seen.parts) as u64;
        assert!(unseen > 5, "{unseen} in the head");
    }
}

#[tokio::test]
async fn http2_has_several_events_under_way_on_a_connection() {
    let receiver = Receiver::offering(&["h2", "http/1.1"], &[Reply::Late(20)]).await;
    let change = |settings: &mut Settings| {
        settings.protocol = Protocol::Http2;
        settings.connections = 2;
    };
    let summary = receiver.run_with(100, change).await;
    assert_eq!(outcomes(&summary), [100, 100, 0, 0, 0, 100]);
    let seen = receiver.seen();
    assert_eq!(seen.connections, 2);
    assert!((9..=16).contains(&seen.most_in_flight), "{} at a time", seen.most_in_flight);
}

#[tokio::test]
async fn a_receiver_without_http2_is_told_at_once() {
    for alpn in [&[][..], &["http/1.1"]] {
        let receiver = Receiver::offering(alpn, &[Reply::Honest]).await;
        let mut settings = receiver.settings(10);
        settings.protocol = Protocol::Http2;
        let told = run(settings, Control::default()).await.map(drop).unwrap_err().to_string();
        assert!(told.contains("does not offer HTTP/2"), "{told}");
        assert_eq!(receiver.seen().posts.len(), 0);
    }
}

#[tokio::test]
async fn a_handshake_for_each_request_is_one() {
    let receiver = Receiver::start(&[Reply::Status(503), Reply::Honest]).await;
    let summary = receiver.run_with(50, |settings| settings.protocol = Protocol::HandshakePerRequest).await;
    assert_eq!(outcomes(&summary), [50, 49, 1, 0, 0, 51]);
    let seen = receiver.seen();
    assert_eq!((seen.connections, seen.posts.len()), (51, 51));
}

#[tokio::test]
async fn the_ledger_has_a_line_for_each_sending() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let receiver = Receiver::start(&[Reply::Honest]).await;
    let change = |settings: &mut Settings| {
        settings.faults = Faults { duplicates: 0.5, drift: 0.2, ..Faults::default() };
        settings.ledger = Some(path.clone());
    };
    let summary = receiver.run_with(100, change).await;
    let lines = ledger_lines(&path);
    assert_eq!(lines.len() as u64, summary.sent);
    let seen = receiver.seen();
    for (_, body) in &seen.posts {
        let id = crate::envelope::Envelope::parse(body.clone()).unwrap().event_id().to_owned();
        let digest = ledger::digest(body).to_string();
        let of_it: Vec<_> = lines.iter().filter(|line| line["event_id"] == id).collect();
        assert_eq!(of_it.len(), seen.ids[&id]);
        assert!(of_it.iter().all(|line| line["sha256"] == digest && line["attempts"] == 1));
        assert!(of_it.iter().any(|line| line["outcome"] == "stored"));
    }
}

#[tokio::test]
async fn what_is_under_way_when_a_run_is_broken_off_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.jsonl");
    let receiver = Receiver::start(&[Reply::Status(503), Reply::Honest, Reply::Silence]).await;
    let mut settings = receiver.settings(1_000_000);
    settings.ledger = Some(path.clone());
    settings.timeout_ms = 600_000;
    settings.connections = 4;
    let control = Control::default();
    let watch = async {
        while receiver.seen().posts.len() < 6 {
            tokio::task::yield_now().await;
        }
        control.break_off();
    };
    let (summary, ()) = tokio::join!(run(settings, control.clone()), watch);
    // One event was stored; four were silent, one waited for its retry.
    assert_eq!(outcomes(&summary.unwrap()), [6, 1, 0, 0, 5, 6]);
    let lines = ledger_lines(&path);
    let dropped: Vec<_> = lines.iter().filter(|line| line["outcome"] == "dropped").collect();
    assert_eq!((lines.len(), dropped.len()), (6, 5));
    assert!(dropped.iter().all(|line| line["attempts"] == 1));
}

fn ledger_lines(path: &std::path::Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_ends_the_run() {
    let receiver = Receiver::start(&[Reply::Honest]).await;
    for events in [10, 1_000_000] {
        let mut settings = receiver.settings(events);
        settings.ledger = Some("/dev/full".into());
        let error = run(settings, Control::default()).await.map(drop).unwrap_err();
        assert!(error.to_string().contains("/dev/full"), "{error}");
    }
}

#[tokio::test]
async fn the_summary_for_programs_has_all_of_it() {
    let receiver = Receiver::start(&[Reply::Status(503), Reply::Honest]).await;
    let summary = receiver.run_with(50, |settings| settings.faults.duplicates = 0.5).await;
    let json = summary.json();
    for key in ["events", "sent", "stored", "duplicate", "rejected", "dropped", "attempts", "behind_us"] {
        assert!(json[key].is_u64(), "{key} in {json}");
    }
    assert_eq!(json["events"], 50);
    assert_eq!(json["sent"].as_u64().unwrap(), 50 + json["faults"]["duplicates"].as_u64().unwrap());
    assert_eq!(json["attempts"].as_u64().unwrap(), json["sent"].as_u64().unwrap() + 1);
    assert_eq!(json["asked_rate"], 1_000.0);
    assert_eq!(json["last_failure"], "answered 503 Service Unavailable");
    assert!(json["seconds"].as_f64().unwrap() >= 0.05 && json["fell_behind"].is_boolean());
    let latency = |name: &str| json["latency_us"][name].as_u64().unwrap();
    let all = ["p50", "p90", "p99", "p99.9", "max"].map(latency);
    assert!(all[0] > 0 && all.is_sorted(), "{json}");
    for fault in ["duplicates", "reorder", "drift", "abort", "malformed"] {
        assert!(json["faults"][fault].is_u64(), "{fault} in {json}");
    }
}
