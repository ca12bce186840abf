//! Which events are duplicates, for how long, and across crashes.

use crate::harness::clock::Clock;
use crate::harness::event::{big_event, event, new_event, new_id};
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::wait_for;
use crate::harness::wire::post;

/// The status words that these events get, one after the other.
#[track_caller]
fn post_all(receiver: &Receiver, ids: &[&str]) -> Vec<String> {
    let mut wire = receiver.connect();
    let mut word = |id: &&str| {
        let answer = wire.post(event(id).as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["status"].as_str().unwrap().to_owned()
    };
    ids.iter().map(&mut word).collect()
}

#[test]
fn the_window_forgets_the_least_recently_seen_first_also_after_a_crash() {
    let receiver = Setup::embedded().set("dedup.capacity", 4).start();
    assert_eq!(post_all(&receiver, &["a", "b", "c", "d"]), ["stored"; 4]);
    // Seen again, so `b` is the oldest now.
    assert_eq!(post_all(&receiver, &["a", "e"]), ["duplicate", "stored"]);
    let (setup, _) = receiver.kill();

    let receiver = setup.start();
    assert_eq!(post_all(&receiver, &["a", "c", "d", "e"]), ["duplicate"; 4]);
    // In comes `b` again, and out goes `a`, which was seen before the other three.
    assert_eq!(
        post_all(&receiver, &["b", "c", "d", "e", "a"]),
        ["stored", "duplicate", "duplicate", "duplicate", "stored"]
    );
    assert_eq!(receiver.ask_admin("/api/v1/status").unwrap().json()["journal"]["dedup_ids"], 4);
    receiver.finish();
}

#[test]
fn ids_outlive_their_events_but_not_the_window() {
    let setup = Setup::embedded().set("dedup.window", "3h").set("journal.retention", "0s");
    let Some((setup, clock)) = Clock::of(setup) else { return };
    // A process counts its time by itself; the next one goes by the clock.
    let hours_later = |receiver: Receiver, hours: i64| {
        let (setup, _) = receiver.kill();
        clock.set(hours * 3600);
        setup.start()
    };
    let receiver = setup.start();
    assert_eq!(post_all(&receiver, &["kept", "left"]), ["stored"; 2]);
    receiver.sink_settled("stdout");
    let first =
        |receiver: &Receiver| receiver.ask_admin("/api/v1/status").unwrap().json()["journal"]["first_sequence"].clone();
    wait_for("the events to be deleted", || first(&receiver).is_null().then_some(()));
    let receiver = hours_later(receiver, 2);
    // A duplicate refreshes its id; that is written with the next event.
    assert_eq!(post_all(&receiver, &["kept", "next"]), ["duplicate", "stored"]);
    let receiver = hours_later(receiver, 4);
    assert_eq!(post_all(&receiver, &["kept", "left"]), ["duplicate", "stored"]);
    let receiver = hours_later(receiver, 8);
    assert_eq!(post_all(&receiver, &["kept", "next"]), ["stored", "stored"]);
    receiver.finish();
}

#[test]
fn ids_compare_as_exact_strings() {
    let receiver = Setup::new().start();
    let upper = "AAAAAAAA-0000-4000-8000-000000000001";
    let lower = upper.to_ascii_lowercase();
    let escaped = event(upper).replace("AAAAAAAA", "\\u0041AAAAAAA");
    assert_eq!(post_all(&receiver, &[upper, &lower, "no uuid", " no uuid"]), ["stored"; 4]);
    // The same string in other bytes.
    receiver.post(escaped).assert_durable("duplicate", upper);
    receiver.finish();
}

#[test]
fn a_known_id_with_other_bytes_is_a_duplicate_and_kept_aside() {
    let conflicts = r#"quarantined_total{reason="conflict"}"#;
    let receiver = Setup::new().durable().start();
    let (id, first) = new_event();
    let other = first.replace("hello", "goodbye");
    receiver.post(&first).assert_durable("stored", &id);
    for _ in 0..3 {
        receiver.post(&other).assert_durable("duplicate", &id);
    }
    assert_eq!(receiver.metric("conflicts_total"), 3);
    assert_eq!(receiver.metric(conflicts), 1, "kept once, however often it comes");
    let (setup, _) = receiver.kill();
    let receiver = setup.start();
    receiver.post(&other).assert_durable("duplicate", &id);
    receiver.post(first.replace("hello", "hello again")).assert_durable("duplicate", &id);
    assert_eq!(receiver.metric(conflicts), 1, "one was known, one is new");
    assert_eq!(receiver.sink_settled("stdout")["stored"], 1);
    receiver.finish();
}

#[test]
fn in_one_group_the_first_copy_stands() {
    let receiver = Setup::embedded().start();
    let (warm, event) = new_event();
    receiver.post(event).assert_durable("stored", &warm);
    // What comes while this sync is held makes one group.
    let held = receiver.inject("fdatasync,fsync:delay_enter=600000000");
    let mut slow = receiver.connect();
    slow.send(post("/events", "", new_event().1.as_bytes())).unwrap();
    receiver.wait_metric("in_flight", 1);
    let (id, first) = new_event();
    let other = first.replace("hello", "goodbye");
    let mut wires = Vec::new();
    for (number, body) in [&first, &other, &first, &other].into_iter().enumerate() {
        let mut wire = receiver.connect();
        wire.send(post("/events", "", body.as_bytes())).unwrap();
        receiver.wait_metric("in_flight", number as u64 + 2);
        wires.push(wire);
    }
    drop(held);
    for (wire, word) in wires.iter_mut().zip(["stored", "duplicate", "duplicate", "duplicate"]) {
        wire.answer().assert_durable(word, &id);
    }
    assert_eq!(receiver.metric(r#"quarantined_total{reason="conflict"}"#), 1);
    assert_eq!(receiver.delivered(&id), first);
    receiver.finish();
}

#[test]
fn a_group_that_is_refused_uses_nothing_up() {
    let receiver = Setup::embedded()
        .set("journal.max_bytes", "1MiB")
        .set("sinks.off.type", "stdout")
        .set("sinks.off.enabled", false)
        .start();
    let (known, first) = new_event();
    receiver.post(&first).assert_durable("stored", &known);
    wait_for("the journal to be full", || (receiver.post(big_event(&new_id(), 30_000)).status == 503).then_some(()));

    let held = receiver.inject("fdatasync,fsync:delay_enter=600000000");
    let mut slow = receiver.connect();
    slow.send(post("/events", "", b"not JSON")).unwrap();
    receiver.wait_metric("in_flight", 1);
    // In one group: two of a new id with different bytes, a conflict with a durable event, and a copy of it.
    let big = big_event(&new_id(), 30_000);
    let bodies = [&big, &big.replace("acme", "other"), &first.replace("hello", "goodbye"), &first];
    let mut wires = Vec::new();
    for (number, body) in bodies.into_iter().enumerate() {
        let mut wire = receiver.connect();
        wire.send(post("/events", "", body.as_bytes())).unwrap();
        receiver.wait_metric("in_flight", number as u64 + 2);
        wires.push(wire);
    }
    drop(held);
    slow.answer().assert_problem(400, "malformed");
    wires[0].answer().assert_problem(503, "unavailable");
    wires[1].answer().assert_problem(503, "unavailable");
    wires[2].answer().assert_durable("duplicate", &known);
    wires[3].answer().assert_durable("duplicate", &known);
    assert_eq!(receiver.metric("conflicts_total"), 1);
    assert_eq!(receiver.metric(r#"quarantined_total{reason="conflict"}"#), 1);
    receiver.finish();
}
