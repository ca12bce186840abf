//! What sinks get, what becomes of what they do not take, and where they go on.

use std::fs;

use rusqlite::Connection;

use crate::harness::disk::Pipe;
use crate::harness::event::{big_event, event, new_event, new_id};
use crate::harness::receiver::Setup;
use crate::harness::wait_for;

pub(crate) fn events(ids: &[String]) -> Vec<String> {
    ids.iter().map(|id| event(id)).collect()
}

#[test]
fn a_blocked_stdout_holds_nobody_but_its_lane() {
    let mut pipe = Pipe::new();
    let receiver = Setup::new().stdout_to(&pipe.path()).start();
    // More than a pipe holds.
    let ids = receiver.store(600);
    let sink = receiver.sink("stdout");
    assert!(sink["pending"].as_u64().unwrap() > 100, "{sink}");
    wait_for("the lag to show", || (receiver.sink("stdout")["lag_seconds"].as_f64().unwrap() > 0.2).then_some(()));
    assert!(receiver.is_ready(), "a sink's outage is none of the clients' business");
    pipe.read();
    receiver.sink_settled("stdout");
    receiver.finish();
    assert_eq!(pipe.lines(), events(&ids));
}

/// Nobody reads, and the end comes all the same.
#[test]
fn a_blocked_stdout_does_not_hold_the_end() {
    let mut pipe = Pipe::new();
    let receiver = Setup::new().durable().set("listen.drain_timeout", "2s").stdout_to(&pipe.path()).start();
    let ids = receiver.store(300);
    let setup = receiver.setup().clone();
    let ended = receiver.stop();
    assert!(ended.status.success(), "{ended:?}");
    ended.assert_soon();
    pipe.read();
    let receiver = setup.start();
    receiver.sink_settled("stdout");
    receiver.finish();
    let lines = pipe.lines();
    assert!(events(&ids).iter().all(|event| lines.contains(event)));
}

#[test]
fn a_closed_stdout_is_tried_again_until_it_is_back() {
    let mut pipe = Pipe::new();
    let receiver = Setup::new().set("sinks.stdout.retry.max_backoff", "300ms").stdout_to(&pipe.path()).start();
    pipe.close();
    let ids = receiver.store(20);
    let failing = || Some(receiver.sink("stdout")).filter(|sink| sink["state"] == "failing");
    let sink = wait_for("the failure to show", failing);
    assert!(sink["last_error"].as_str().unwrap().contains("standard output"), "{sink}");
    assert_eq!(sink["pending"], 20);
    assert!(receiver.is_ready());
    receiver.wait_metric("sink_failures_total", 3);
    pipe.open();
    pipe.read();
    receiver.sink_settled("stdout");
    assert_eq!(receiver.sink("stdout")["state"], "ok");
    receiver.finish();
    assert_eq!(pipe.lines(), events(&ids));
}

#[test]
fn when_its_attempts_end_an_event_is_in_the_dead_letters() {
    let mut pipe = Pipe::new();
    let receiver = Setup::embedded()
        .set("sinks.stdout.retry.max_attempts", 2)
        .set("sinks.stdout.retry.initial_backoff", "1ms")
        .stdout_to(&pipe.path())
        .start();
    pipe.close();
    let dead = receiver.store(10);
    assert_eq!(receiver.sink_settled("stdout")["dead_lettered"], 10);
    pipe.open();
    pipe.read();
    let delivered = receiver.store(5);
    let sink = receiver.sink_settled("stdout");
    assert_eq!((&sink["delivered"], &sink["dead_lettered"]), (&5.into(), &10.into()), "{sink}");
    let setup = receiver.setup().clone();
    receiver.finish();

    // They are kept, and stay settled.
    let letters = letters_in(&setup);
    assert_eq!(letters.len(), 10);
    for ((about, kept), id) in letters.iter().zip(&dead) {
        let about: serde_json::Value = serde_json::from_str(about).unwrap();
        assert_eq!((about["sink"].as_str(), about["attempts"].as_u64()), (Some("stdout"), Some(2)));
        assert!(kept.ends_with(event(id).as_bytes()));
    }
    let receiver = setup.start();
    assert_eq!(receiver.sink_settled("stdout")["dead_lettered"], 10);
    receiver.finish();
    assert_eq!(pipe.lines(), events(&delivered));
}

/// What stands in the dead letters: about the event, and the event.
fn letters_in(setup: &Setup) -> Vec<(String, Vec<u8>)> {
    let database = Connection::open(setup.journal().join("journal.db")).unwrap();
    let mut letters = database.prepare("SELECT about, event FROM dead_letters ORDER BY id").unwrap();
    let read = |row: &rusqlite::Row| Ok((row.get(0)?, row.get(1)?));
    letters.query_map([], read).unwrap().map(Result::unwrap).collect()
}

#[test]
fn full_dead_letters_make_the_sink_wait() {
    let mut pipe = Pipe::new();
    let receiver = Setup::new()
        .set("sinks.stdout.retry.max_attempts", 1)
        .set("dead_letters.max_bytes", "1MiB")
        .stdout_to(&pipe.path())
        .start();
    pipe.close();
    let mut wire = receiver.connect();
    for _ in 0..6 {
        let id = new_id();
        wire.post(big_event(&id, 300_000).as_bytes()).assert_durable("stored", &id);
    }
    let waiting = || {
        let sink = receiver.sink("stdout");
        sink["last_error"].as_str().is_some_and(|error| error.contains("dead letters")).then_some(sink)
    };
    let sink = wait_for("the sink to wait", waiting);
    assert_eq!((&sink["dead_lettered"], &sink["pending"]), (&3.into(), &3.into()), "{sink}");
    // Nothing is dropped, and the process ends in time.
    receiver.finish();
}

#[test]
fn a_partial_last_line_is_ended_first() {
    let setup = Setup::new();
    let out = setup.folder().join("out");
    fs::write(&out, "{\"a\":1}\n{\"cut o").unwrap();
    let setup = setup.stdout_to(&out);
    let mut expected = vec!["{\"a\":1}".to_owned(), "{\"cut o".to_owned()];
    for _ in 0..2 {
        let receiver = setup.start();
        expected.extend(events(&receiver.store(3)));
        receiver.finish();
    }
    let text = fs::read_to_string(out).unwrap();
    assert_eq!(text, expected.join("\n") + "\n");
}

#[test]
fn nothing_counts_as_delivered_into_a_stdout_that_was_deleted() {
    let setup = Setup::new().durable();
    let out = setup.folder().join("out");
    let setup = setup.set("sinks.stdout.retry.max_backoff", "300ms").stdout_to(&out);
    let receiver = setup.start();
    receiver.store(2);
    receiver.sink_settled("stdout");
    fs::remove_file(&out).unwrap();
    let ids = receiver.store(3);
    let failing = || Some(receiver.sink("stdout")).filter(|sink| sink["state"] == "failing");
    let sink = wait_for("the failure to show", failing);
    assert!(sink["last_error"].as_str().unwrap().contains("its file was deleted"), "{sink}");
    assert_eq!(sink["pending"], 3);
    receiver.finish();
    let receiver = setup.start();
    receiver.sink_settled("stdout");
    receiver.finish();
    assert_eq!(fs::read_to_string(&out).unwrap(), events(&ids).join("\n") + "\n");
}

#[test]
fn a_stdout_on_a_full_disk_is_tried_again() {
    let Some(disk) = crate::harness::disk::Disk::tmpfs(1 << 20) else { return };
    let out = disk.path().join("out");
    let receiver = Setup::new().set("sinks.stdout.retry.max_backoff", "300ms").stdout_to(&out).start();
    let filler = disk.fill();
    let ids = receiver.store(20);
    wait_for("the failure to show", || (receiver.sink("stdout")["state"] == "failing").then_some(()));
    assert!(receiver.is_ready());
    fs::remove_file(filler).unwrap();
    receiver.sink_settled("stdout");
    receiver.finish();
    // A line that broke off was ended before it came again.
    let text = fs::read_to_string(out).unwrap();
    let whole: Vec<&str> =
        text.lines().filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()).collect();
    assert_eq!(whole, events(&ids));
}

#[test]
fn a_filter_lets_out_what_it_should_and_the_rest_is_settled_too() {
    let receiver = Setup::new()
        .set("sinks.some.type", "stdout")
        .set_toml("sinks.some.filter.feeds", r#"["journey"]"#)
        .set_toml("sinks.some.filter.event_types", r#"["customer_*", "AGENT_*"]"#)
        .set_toml("sinks.some.filter.exclude_event_types", r#"["*_secret"]"#)
        .set("sinks.other.type", "stdout")
        .set_toml("sinks.other.filter.company_ids", r#"["somebody else"]"#)
        .start();
    let mut wire = receiver.connect();
    let mut wanted = Vec::new();
    // Every other one passes: no two neighbours are settled together.
    for number in 0..1_500 {
        let id = new_id();
        let mut body = event(&id);
        match number % 6 {
            0 | 2 => {}
            4 => body = body.replace("customer_request", "AGENT_JOINED"),
            1 => body = body.replace("customer_request", "customer_secret"),
            3 => body = body.replace("customer_request", "bot_reply"),
            _ => body = body.replace("event.journey", "event.queue"),
        }
        wire.post(body.as_bytes()).assert_durable("stored", &id);
        if number % 2 == 0 {
            wanted.push(body);
        }
    }
    let some = receiver.sink_settled("some");
    assert_eq!((&some["delivered"], &some["filtered"]), (&750.into(), &750.into()));
    assert_eq!(receiver.sink_settled("other")["filtered"], 1_500);
    assert_eq!(receiver.finish().stdout, wanted);
}

#[test]
fn a_sink_keeps_its_place_while_it_is_off_or_gone() {
    let base =
        Setup::new().durable().set("sinks.always.type", "stdout").set_toml("sinks.always.filter.feeds", r#"["queue"]"#);
    let with = |enabled: bool| base.clone().set("sinks.other.type", "stdout").set("sinks.other.enabled", enabled);
    let receiver = with(true).start();
    let mut missed = Vec::new();
    let before = receiver.store(3);
    receiver.sink_settled("other");
    assert_eq!(receiver.finish().stdout, events(&before));

    let receiver = with(false).start();
    missed.extend(receiver.store(3));
    let sink = receiver.sink("other");
    assert_eq!((&sink["state"], &sink["pending"]), (&"disabled".into(), &3.into()));
    assert!(receiver.finish().stdout.is_empty());

    let receiver = base.start();
    missed.extend(receiver.store(3));
    let sink = receiver.sink("other");
    assert_eq!((&sink["state"], &sink["pending"]), (&"gone".into(), &6.into()));
    receiver.log.wait("the alarm", |line| line.contains("gone from the settings").then_some(()));
    assert_eq!(receiver.metric(r#"sink_gone{sink="other"}"#), 1);
    receiver.kill();

    let receiver = with(true).start();
    let sink = receiver.sink_settled("other");
    assert_eq!((&sink["state"], &sink["delivered"]), (&"ok".into(), &9.into()));
    assert_eq!(receiver.finish().stdout, events(&missed));
}

#[test]
fn a_new_sink_starts_where_it_is_told_to() {
    let first = Setup::new().durable().set("sinks.first.type", "stdout");
    let receiver = first.start();
    let old = receiver.store(4);
    assert_eq!(receiver.finish().stdout, events(&old));

    // `latest` is the default.
    let receiver = first.clone().set("sinks.late.type", "stdout").start();
    assert_eq!(receiver.sink("late")["stored"], 0);
    let new = receiver.store(2);
    assert_eq!(receiver.sink_settled("late")["delivered"], 2);
    assert_eq!(receiver.finish().stdout.len(), 4, "two sinks share the output");

    let early = first.set("sinks.early.type", "stdout").set("sinks.early.start", "earliest");
    let receiver = early.start();
    assert_eq!(receiver.sink_settled("early")["delivered"], 6);
    let all = [old, new].concat();
    assert_eq!(receiver.finish().stdout, events(&all));

    // `start` is for its first start only.
    let receiver = early.start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    assert_eq!(receiver.sink_settled("early")["delivered"], 7);
    receiver.finish();
}

#[test]
fn a_sink_that_is_not_required_loses_its_oldest_events_and_goes_on() {
    let mut pipe = Pipe::new();
    let receiver = Setup::embedded()
        .set("journal.max_bytes", "1MiB")
        .set("sinks.spare.type", "stdout")
        .set("sinks.spare.required", false)
        .stdout_to(&pipe.path())
        .start();
    let mut wire = receiver.connect();
    let mut last = String::new();
    for _ in 0..200 {
        last = new_id();
        // It is blocked all the time, and nobody is refused for it.
        wire.post(big_event(&last, 30_000).as_bytes()).assert_durable("stored", &last);
    }
    let evicted = receiver.sink("spare")["evicted"].as_u64().unwrap();
    assert!(evicted > 100, "{evicted}");
    pipe.read();
    let sink = receiver.sink_settled("spare");
    assert_eq!(sink["delivered"].as_u64().unwrap() + sink["evicted"].as_u64().unwrap(), 200, "{sink}");
    receiver.finish();
    // What it held already came out as well, each once, in order, and the newest is among them.
    let lines = pipe.lines();
    assert!(lines.len() as u64 >= sink["delivered"].as_u64().unwrap());
    assert!(lines.is_sorted_by(|a, b| id_of(a) < id_of(b)));
    assert_eq!(lines.last().map(|line| id_of(line)), Some(last));
}

fn id_of(line: &str) -> String {
    let event: serde_json::Value = serde_json::from_str(line).unwrap();
    event["event_id"].as_str().unwrap().to_owned()
}
