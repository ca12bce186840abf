//! The operators' port, through its door.

use std::fs;
use std::net::TcpStream;

use crate::harness::event::new_event;
use crate::harness::receiver::Setup;
use crate::harness::wait_for;

#[test]
fn probes_metrics_and_status_answer_on_loopback() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.post(&event).assert_durable("duplicate", &id);
    receiver.delivered(&id);

    assert_eq!(receiver.ask_admin("/livez").unwrap().status, 200);
    assert_eq!(receiver.ask_admin("/readyz").unwrap().json(), serde_json::json!({ "ready": true }));
    receiver.ask_admin("/nowhere").unwrap().assert_problem(404, "not-found");

    let metrics = receiver.ask_admin("/metrics").unwrap();
    assert!(metrics.header("content-type").unwrap().starts_with("application/openmetrics-text; version=1.0.0"));
    let text = metrics.text();
    assert!(text.ends_with("# EOF\n"));
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("asapp_receiver_"), "{line}");
    }
    receiver.wait_metric(r#"sink_delivered_total{sink="stdout"}"#, 1);
    assert_eq!(receiver.metric(r#"sink_stored_total{sink="stdout"}"#), 1);
    assert_eq!(receiver.metric(r#"sink_pending{sink="stdout"}"#), 0);

    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    assert_eq!(status["process"]["received"], 2);
    assert_eq!(status["process"]["stored"], 1);
    assert_eq!(status["process"]["duplicate"], 1);
    assert_eq!(status["journal"]["state"], "open");
    assert_eq!(status["journal"]["engine"], "sqlite");
    assert_eq!(status["sinks"][0]["name"], "stdout");
    assert_eq!(status["sinks"][0]["stored"], 1);
    assert_eq!(status["sinks"][0]["delivered"], 1);
    receiver.finish();
}

#[test]
fn off_loopback_it_needs_a_token() {
    let setup = Setup::new().set("admin.address", "0.0.0.0:0");
    let ended = setup.start_in_vain();
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(ended.log.iter().any(|line| line.contains("token_file")), "{ended:?}");

    let file = setup.folder().join("token");
    fs::write(&file, "a-token-of-the-test\n").unwrap();
    let receiver = setup.set("admin.token_file", &file).start_unready();
    assert_eq!(receiver.ask_admin("/livez").unwrap().status, 200);
    crate::harness::wait_for("the receiver to be ready", || receiver.is_ready().then_some(()));
    let answer = receiver.ask_admin("/metrics").unwrap();
    answer.assert_problem(401, "unauthorized");
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    let with = |token: &str| receiver.ask_admin_as("/metrics", &format!("Authorization: Bearer {token}\r\n")).unwrap();
    assert_eq!(with("a-token-of-the-test").status, 200);
    assert_eq!(with("a-token-of-the-tesT").status, 401);
    let ended = receiver.stop();
    assert!(ended.status.success(), "{ended:?}");
    assert!(!ended.log.iter().any(|line| line.contains("a-token-of-the-test")), "{ended:?}");
}

#[test]
fn silent_connections_do_not_keep_a_probe_out() {
    let receiver = Setup::new().start();
    // Twice as many as it serves at a time.
    let silent: Vec<TcpStream> = (0..256).map(|_| TcpStream::connect(receiver.admin).unwrap()).collect();
    wait_for("an answer", || receiver.ask_admin("/readyz").is_ok_and(|answer| answer.status == 200).then_some(()));
    drop(silent);
    receiver.finish();
}
