//! FAULTS "Process", and "Storage" as far as a client sees it.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::event::{event, new_event, new_id};
use crate::harness::receiver::Setup;
use crate::harness::wait_for;
use crate::harness::wire::post;

#[test]
fn sigterm_turns_readiness_off_and_still_serves_for_a_while() {
    let receiver = Setup::new().set("listen.pre_drain", "1500ms").set("listen.drain_timeout", "10s").start();
    let mut open = receiver.connect();
    let (id, event) = new_event();
    open.post(event.as_bytes()).assert_durable("stored", &id);

    let start = Instant::now();
    receiver.signal(Signal::TERM);
    wait_for("not ready", || (!receiver.is_ready()).then_some(()));
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(receiver.ask_admin("/livez").unwrap().status, 200);
    assert!(receiver.ask_admin("/readyz").unwrap().text().contains("draining"));

    // On a connection from before, and on a new one: served, and told to go elsewhere next time.
    let (id, event) = new_event();
    let answer = open.post(event.as_bytes());
    answer.assert_durable("stored", &id);
    assert_eq!(answer.header("connection"), Some("close"));
    open.closed();
    let (id, event) = new_event();
    let answer = receiver.post(event);
    answer.assert_durable("stored", &id);
    assert_eq!(answer.header("connection"), Some("close"));

    let ended = receiver.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert!(start.elapsed() >= Duration::from_millis(1500) && start.elapsed() < Duration::from_secs(8));
    assert_eq!(ended.stdout.len(), 3, "all is delivered before the end");
}

#[test]
fn what_is_in_flight_at_sigterm_is_finished() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    let request = post("/events", "", event.as_bytes());
    let mut wire = receiver.connect();
    wire.send(&request[..request.len() - 1]).unwrap();
    receiver.wait_metric("in_flight", 1);
    receiver.signal(Signal::TERM);
    wait_for("the listener to be closed", || std::net::TcpStream::connect(receiver.events).is_err().then_some(()));
    wire.send(&request[request.len() - 1..]).unwrap();
    let answer = wire.answer();
    answer.assert_durable("stored", &id);
    assert_eq!(answer.header("connection"), Some("close"));
    let ended = receiver.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout, [event]);
}

#[test]
fn slow_clients_cannot_hold_the_end() {
    let receiver = Setup::new().set("listen.drain_timeout", "1500ms").set("listen.body_timeout", "60s").start();
    let (_, event) = new_event();
    let mut slow = receiver.connect();
    slow.send(&post("/events", "", event.as_bytes())[..100]).unwrap();
    let mut idle = receiver.connect();
    let (id, event) = new_event();
    idle.post(event.as_bytes()).assert_durable("stored", &id);
    let start = Instant::now();
    let ended = receiver.stop();
    assert!(ended.status.success(), "{ended:?}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let receiver = Setup::new().set("listen.pre_drain", "30s").set("listen.drain_timeout", "60s").start();
        receiver.signal(signal);
        wait_for("not ready", || (!receiver.is_ready()).then_some(()));
        receiver.signal(signal);
        let ended = receiver.wait();
        assert!(ended.took < Duration::from_secs(5), "{ended:?}");
    }
}

#[test]
fn after_sigkill_what_was_acknowledged_is_known_and_delivered() {
    let mut setup = Setup::new();
    let ids: Vec<String> = (0..40).map(|_| new_id()).collect();
    let mut lines = Vec::new();
    for part in ids.chunks(10) {
        let receiver = setup.start();
        let mut wire = receiver.connect();
        for id in part {
            wire.post(event(id).as_bytes()).assert_durable("stored", id);
        }
        let (next, ended) = receiver.kill();
        setup = next;
        lines.extend(ended.stdout);
    }
    let receiver = setup.start();
    let mut wire = receiver.connect();
    for id in &ids {
        wire.post(event(id).as_bytes()).assert_durable("duplicate", id);
    }
    receiver.wait_metric(r#"sink_delivered_total{sink="stdout"}"#, 40);
    lines.extend(receiver.finish().stdout);
    for id in &ids {
        assert!(lines.contains(&event(id)), "{id}");
    }
}

#[test]
fn a_second_process_on_the_same_journal_is_kept_out() {
    let setup = Setup::new();
    let receiver = setup.start();
    let ended = setup.start_in_vain();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let journal = setup.journal();
    assert!(ended.log.iter().any(|line| line.contains(journal.to_str().unwrap())), "{ended:?}");
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn a_sync_that_fails_is_the_end() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    let mut wire = receiver.connect();
    let faults = receiver.inject("fdatasync,fsync:error=EIO");
    let (id, event) = new_event();
    wire.send(post("/events", "", event.as_bytes())).unwrap();
    let answer = wire.answer();
    answer.assert_problem(503, "unavailable");
    assert!(answer.header("retry-after").is_some());
    let setup = receiver.setup().clone();
    let ended = receiver.wait();
    drop(faults);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");

    // Its bytes may have reached the file all the same: then they are synced at the start, and the retry finds them.
    let receiver = setup.start();
    let answer = receiver.post(&event);
    assert_eq!((answer.status, &answer.json()["event_id"]), (200, &serde_json::Value::from(id.as_str())));
    receiver.delivered(&id);
    receiver.finish();
}

#[test]
fn a_sync_that_takes_too_long_is_answered_and_the_retry_is_a_duplicate() {
    let receiver = Setup::new().set("listen.answer_within", "300ms").start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    let faults = receiver.inject("fdatasync,fsync:delay_enter=1500000:when=1");
    let (id, event) = new_event();
    let answer = receiver.post(&event);
    answer.assert_problem(503, "unavailable");
    assert_eq!(receiver.metric("in_flight"), 1, "its write is still under way");
    receiver.wait_metric("stored_total", 2);
    drop(faults);
    receiver.post(&event).assert_durable("duplicate", &id);
    receiver.finish();
}

#[test]
fn a_full_disk_is_refused_until_there_is_room() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    let faults = receiver.inject("pwrite64,ftruncate,fallocate:error=ENOSPC");
    let (id, event) = new_event();
    receiver.post(&event).assert_problem(503, "unavailable");
    drop(faults);
    wait_for("room", || (receiver.post(&event).status == 200).then_some(()));
    receiver.delivered(&id);
    assert_eq!(receiver.ask_admin("/readyz").unwrap().status, 200);
    receiver.finish();
}
