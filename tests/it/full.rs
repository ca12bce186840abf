//! FAULTS "Storage" where it is about room: full disks, quotas, short writes and `journal.max_bytes`.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::harness::disk::{Disk, Pipe};
use crate::harness::event::{big_event, event, new_event, new_id};
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::wait_for;
use crate::harness::wire::Answer;

/// Posts big events until one is refused; the ids of those that were stored.
#[track_caller]
fn fill_up(receiver: &Receiver, bytes: usize) -> (Vec<String>, Answer) {
    let mut stored = Vec::new();
    let mut wire = receiver.connect();
    for _ in 0..2_000 {
        let id = new_id();
        let answer = wire.post(big_event(&id, bytes).as_bytes());
        if answer.status != 200 {
            return (stored, answer);
        }
        stored.push(id);
    }
    panic!("it never was full");
}

/// The same, until it stays full: the log that starts over may give room for some more.
#[track_caller]
fn fill_for_good(receiver: &Receiver, bytes: usize) -> Vec<String> {
    let mut stored = Vec::new();
    let mut in_vain = 0;
    while in_vain < 4 {
        let (more, refused) = fill_up(receiver, bytes);
        refused.assert_unavailable();
        in_vain = if more.is_empty() { in_vain + 1 } else { 0 };
        stored.extend(more);
        thread::sleep(Duration::from_millis(500));
    }
    stored
}

/// Up to where a sink is settled according to the file.
fn written_cursor(journal: &Path, sink: &str) -> u64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = Connection::open_with_flags(journal.join("journal.db"), flags).unwrap();
    let read = |row: &rusqlite::Row| row.get::<_, String>(0);
    let place = database.query_row("SELECT place FROM sinks WHERE name = ?1", [sink], read).unwrap();
    serde_json::from_str::<serde_json::Value>(&place).unwrap()["cursor"].as_u64().unwrap()
}

#[test]
fn on_a_full_disk_events_are_refused_sinks_go_on_and_it_recovers_by_itself() {
    let Some(disk) = Disk::ext4(48 << 20) else { return };
    let journal = disk.path().join("journal");
    let mut pipe = Pipe::new();
    let receiver = Setup::embedded().set("journal.path", &journal).stdout_to(&pipe.path()).start();
    let mut wire = receiver.connect();
    let mut stored: Vec<String> = (0..20).map(|_| new_id()).collect();
    for id in &stored[1..] {
        wire.post(big_event(id, 40_000).as_bytes()).assert_durable("stored", id);
    }
    let known = event(&stored[0]);
    wire.post(known.as_bytes()).assert_durable("stored", &stored[0]);
    let filler = disk.fill();
    stored.extend(fill_for_good(&receiver, 40_000));
    let answer = receiver.ask_admin("/readyz").unwrap();
    assert_eq!((answer.status, answer.json()["reason"].as_str()), (503, Some("journal full")));
    // What is durable is known, full or not.
    receiver.post(&known).assert_durable("duplicate", &stored[0]);

    // The sink, which nobody has read so far, gets them now, and where it stands is written on the full disk.
    pipe.read();
    receiver.sink_settled("stdout");
    let last = stored.len() as u64;
    wait_for("the cursor to be written", || (written_cursor(&journal, "stdout") == last).then_some(()));
    let setup = receiver.setup().clone();
    assert!(!receiver.is_ready());
    receiver.kill();

    // On a disk that is fuller still it starts, and delivers nothing twice.
    disk.fill();
    let receiver = setup.start_unready();
    assert_eq!(receiver.ask_admin("/readyz").unwrap().status, 503);
    receiver.post(event(&new_id())).assert_unavailable();
    receiver.post(&known).assert_durable("duplicate", &stored[0]);

    fs::remove_file(filler).unwrap();
    receiver.wait_ready();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    receiver.sink_settled("stdout");
    receiver.finish();
    let lines = pipe.lines();
    for id in stored.iter().chain([&id]) {
        assert_eq!(lines.iter().filter(|line| line.contains(id)).count(), 1);
    }
}

/// `journal.max_bytes` is ten times the disk: nobody but the receiver itself can make room.
#[test]
fn on_a_disk_smaller_than_max_bytes_delivered_events_yield() {
    let Some(disk) = Disk::ext4(40 << 20) else { return };
    let setup = Setup::embedded().set("journal.path", &disk.path().join("journal")).set("journal.max_bytes", "400MiB");
    let receiver = setup.start();
    let mut wire = receiver.connect();
    let mut refused = 0;
    for _ in 0..1_600 {
        let id = new_id();
        let event = big_event(&id, 60_000);
        let mut answer = wire.post(event.as_bytes());
        refused += u32::from(answer.status != 200);
        while answer.status != 200 {
            answer.assert_unavailable();
            thread::sleep(Duration::from_millis(50));
            answer = wire.post(event.as_bytes());
        }
    }
    // A few when the disk was found to be full, and no more: from then on there is room in time.
    assert!(refused < 200, "{refused} events were refused first");
    assert_eq!(receiver.sink_settled("stdout")["delivered"], 1_600);
    receiver.finish();
}

#[test]
fn on_a_disk_smaller_than_max_bytes_a_sink_that_wakes_up_makes_room() {
    let Some(disk) = Disk::tmpfs(24 << 20) else { return };
    let mut pipe = Pipe::new();
    let setup = Setup::embedded().set("journal.path", &disk.path().join("journal")).stdout_to(&pipe.path());
    let receiver = setup.start();
    // Nothing may go while it is wanted, however often it is tried.
    let stored = fill_for_good(&receiver, 60_000);
    assert_eq!(receiver.sink("stdout")["evicted"], 0);
    pipe.read();
    receiver.wait_ready();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    assert_eq!(receiver.sink_settled("stdout")["delivered"], stored.len() as u64 + 1);
    receiver.finish();
    assert_eq!(pipe.lines().len(), stored.len() + 1);
}

/// What a full disk took from replays, it takes only as long as it is full.
#[test]
fn after_a_full_disk_that_passes_delivered_events_are_kept_as_before() {
    let Some(disk) = Disk::ext4(96 << 20) else { return };
    let receiver = Setup::embedded().set("journal.path", &disk.path().join("journal")).start();
    let journal = || receiver.ask_admin("/api/v1/status").unwrap().json()["journal"].clone();
    receiver.store(20);
    receiver.sink_settled("stdout");
    let (mut wire, filler) = (receiver.connect(), disk.fill());
    wait_for("the disk to be found full", || {
        let answer = wire.post(big_event(&new_id(), 40_000).as_bytes());
        receiver.sink_settled("stdout");
        (answer.status != 200).then(|| answer.assert_unavailable())
    });
    wait_for("delivered events to yield", || journal()["replay_limit_bytes"].is_u64().then_some(()));
    assert_eq!(receiver.metric("journal_replay_limited"), 1);
    receiver.log.wait("the warning", |line| line.contains("cannot be replayed").then_some(()));

    fs::remove_file(filler).unwrap();
    wait_for("delivered events to stay", || journal()["replay_limit_bytes"].is_null().then_some(()));
    receiver.wait_ready();
    assert_eq!(receiver.metric("journal_replay_limited"), 0);
    let mut wire = receiver.connect();
    let before = journal()["last_sequence"].as_u64().unwrap();
    for _ in 0..50 {
        let id = new_id();
        wire.post(big_event(&id, 40_000).as_bytes()).assert_durable("stored", &id);
        receiver.sink_settled("stdout");
    }
    let first = journal()["first_sequence"].as_u64().unwrap();
    assert!(first <= before + 1, "only from {first} on can be replayed, of what came after {before}");
    receiver.finish();
}

/// The disk is small beside the journal, and never has much left: what counts is that others have left it.
#[test]
fn after_a_small_disk_was_full_delivered_events_are_kept_as_before() {
    let Some(disk) = Disk::ext4(96 << 20) else { return };
    let receiver = Setup::embedded().set("journal.path", &disk.path().join("journal")).start();
    let journal = || receiver.ask_admin("/api/v1/status").unwrap().json()["journal"].clone();
    let mut wire = receiver.connect();
    while journal()["disk"]["free_bytes"].as_u64().unwrap() > 36 << 20 {
        for _ in 0..5 {
            let id = new_id();
            wire.post(big_event(&id, 900_000).as_bytes()).assert_durable("stored", &id);
        }
        receiver.sink_settled("stdout");
    }
    assert_eq!(journal()["first_sequence"], 1);
    let filler = disk.fill();
    wait_for("delivered events to yield", || {
        receiver.post(big_event(&new_id(), 500_000));
        receiver.sink_settled("stdout");
        journal()["replay_limit_bytes"].is_u64().then_some(())
    });
    fs::remove_file(filler).unwrap();
    wait_for("delivered events to stay", || journal()["replay_limit_bytes"].is_null().then_some(()));
    receiver.wait_ready();
    receiver.finish();
}

#[test]
fn a_disk_that_does_not_take_a_write_is_not_called_full() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let first = receiver.store(10);
    receiver.sink_settled("stdout");
    let wal = setup.journal().join("journal.db-wal");
    let faults = receiver.inject_on(&wal, "pwrite64:error=EIO", Path::new("/dev/null"));
    let (id, event) = new_event();
    let answer = receiver.post(&event);
    answer.assert_unavailable();
    assert!(answer.text().contains("did not take a write"), "{}", answer.text());
    let reason = wait_for("not ready", || {
        let answer = receiver.ask_admin("/readyz").unwrap();
        (answer.status == 503).then(|| answer.json()["reason"].clone())
    });
    assert_eq!(reason, "journal write error");
    let journal = receiver.ask_admin("/api/v1/status").unwrap().json()["journal"].clone();
    assert_eq!(journal["state"], "write-error");
    assert!(journal["reason"].as_str().unwrap().contains("I/O error"), "{journal}");
    assert!(receiver.metric(r#"journal_errors_total{reason="write-error"}"#) > 0);
    assert_eq!(receiver.metric(r#"refused_total{reason="write-error"}"#), 1);
    assert_eq!(receiver.metric(r#"journal_errors_total{reason="full"}"#), 0);

    drop(faults);
    receiver.wait_ready();
    receiver.post(&event).assert_durable("stored", &id);
    let journal = receiver.ask_admin("/api/v1/status").unwrap().json()["journal"].clone();
    assert_eq!((&journal["first_sequence"], &journal["reason"]), (&1.into(), &serde_json::Value::Null), "{journal}");
    assert!(journal["replay_limit_bytes"].is_null(), "{journal}");
    for id in &first {
        receiver.post(crate::harness::event::event(id)).assert_durable("duplicate", id);
    }
    receiver.finish();
}

/// An operator's SQLite shell, in the midst of a change.
#[test]
fn a_journal_that_somebody_has_locked_is_not_called_full() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    receiver.sink_settled("stdout");
    let shell = Connection::open(setup.journal().join("journal.db")).unwrap();
    shell.busy_timeout(Duration::from_secs(20)).unwrap();
    shell.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (id, event) = new_event();
    receiver.post(&event).assert_unavailable();
    let reason = wait_for("not ready", || {
        let answer = receiver.ask_admin("/readyz").unwrap();
        (answer.status == 503).then(|| answer.json()["reason"].clone())
    });
    assert_eq!(reason, "journal busy");
    receiver
        .log
        .wait("the reason", |line| (line.contains("cannot take events") && line.contains("locked")).then_some(()));
    assert_eq!(receiver.metric(r#"journal_errors_total{reason="full"}"#), 0);

    shell.execute_batch("ROLLBACK").unwrap();
    receiver.wait_ready();
    // Stored now, or just before, if the 503 was for the time that it took.
    let answer = receiver.post(&event).json();
    assert_eq!(answer["event_id"], *id, "{answer}");
    // Nothing has yielded to it.
    assert_eq!(receiver.ask_admin("/api/v1/status").unwrap().json()["journal"]["first_sequence"], 1);
    receiver.finish();
}

/// An operator's SQLite shell, in the midst of a read that it does not end.
#[test]
fn a_reader_that_holds_the_log_is_told_and_its_room_is_given_back() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    receiver.store(1);
    let wal = setup.journal().join("journal.db-wal");
    let length = || fs::metadata(&wal).unwrap().len();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let shell = Connection::open_with_flags(setup.journal().join("journal.db"), flags).unwrap();
    shell.execute_batch("BEGIN").unwrap();
    let _: u64 = shell.query_row("SELECT count(*) FROM groups", [], |row| row.get(0)).unwrap();
    let mut wire = receiver.connect();
    while length() < 40 << 20 {
        let id = new_id();
        wire.post(big_event(&id, 1_000_000).as_bytes()).assert_durable("stored", &id);
    }
    receiver.wait_metric("journal_wal_bytes", 40 << 20);
    let own = std::process::id().to_string();
    receiver.log.wait("the warning", |line| {
        let line = log_line(line)?;
        let is_it = line["message"].as_str()?.contains("holds the write-ahead log");
        (is_it && line["processes"].as_str()?.contains(&own) && line["bytes"].as_u64()? > 32 << 20).then_some(())
    });

    shell.execute_batch("COMMIT").unwrap();
    wait_for("the room to be given back", || (length() < 16 << 20).then_some(()));
    receiver.log.wait("the end", |line| line.contains("is short again").then_some(()));
    receiver.store(3);
    receiver.finish();
}

/// The room that the log needs to be copied back is not given to events: with the reader gone it goes on by itself.
#[test]
fn a_reader_that_holds_the_log_on_a_small_disk_leaves_room_to_copy_it_back() {
    let Some(disk) = Disk::ext4(64 << 20) else { return };
    let setup = Setup::embedded().set("journal.path", &disk.path().join("journal"));
    let mut receiver = setup.start();
    receiver.store(3);
    receiver.sink_settled("stdout");
    let (database, mut stored) = (disk.path().join("journal/journal.db"), 3);
    for is_killed in [false, true] {
        let shell = Connection::open_with_flags(&database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        shell.execute_batch("BEGIN").unwrap();
        let _: u64 = shell.query_row("SELECT count(*) FROM groups", [], |row| row.get(0)).unwrap();
        let (more, refused) = fill_up(&receiver, 500_000);
        refused.assert_unavailable();
        stored += more.len() as u64;
        wait_for("not ready", || (!receiver.is_ready()).then_some(()));
        receiver.sink_settled("stdout");
        let journal = receiver.ask_admin("/api/v1/status").unwrap().json()["journal"].clone();
        let (reason, own) = (journal["reason"].as_str().unwrap(), std::process::id().to_string());
        assert!(reason.contains("journal.db-wal holds") && reason.contains(&own), "{reason}");
        // Smaller ones neither, and nothing yields to it: that would be of no use.
        receiver.post(event(&new_id())).assert_unavailable();
        assert_eq!((&journal["first_sequence"], &journal["replay_limit_bytes"]), (&1.into(), &serde_json::Value::Null));
        if is_killed {
            receiver = receiver.kill().0.start_unready();
            // A little may fit, as what was refused was large.
            stored += fill_up(&receiver, 100_000).0.len() as u64;
            wait_for("not ready", || (!receiver.is_ready()).then_some(()));
        }
        drop(shell);
        receiver.wait_ready();
        let (id, event) = new_event();
        receiver.post(event).assert_durable("stored", &id);
        stored += 1;
    }
    let journal = receiver.ask_admin("/api/v1/status").unwrap().json()["journal"].clone();
    assert_eq!((&journal["first_sequence"], &journal["last_sequence"]), (&1.into(), &stored.into()));
    receiver.finish();
}

#[test]
fn a_quota_is_a_full_disk() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    let faults = receiver.inject("pwrite64,ftruncate,fallocate:error=EDQUOT");
    let (id, event) = new_event();
    receiver.post(&event).assert_unavailable();
    wait_for("not ready", || (!receiver.is_ready()).then_some(()));
    assert_eq!(receiver.ask_admin("/readyz").unwrap().json()["reason"], "journal full");
    // The disk has room, so that it is no use to look for what fills it.
    receiver
        .log
        .wait("the reason", |line| (line.contains("cannot take events") && line.contains("a quota")).then_some(()));
    drop(faults);
    receiver.wait_ready();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.delivered(&id);
    receiver.finish();
}

/// A page of which the disk takes a part only: what is written of the record counts for nothing, and the retry is new.
#[test]
fn a_write_that_breaks_off_is_undone() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let (first, event) = new_event();
    receiver.post(event).assert_durable("stored", &first);
    // The first frames of the record reach the file, the others do not.
    let wal = setup.journal().join("journal.db-wal");
    let faults = receiver.inject_on(&wal, "pwrite64:error=ENOSPC:when=4+", Path::new("/dev/null"));
    let id = new_id();
    let event = big_event(&id, 60_000);
    receiver.post(&event).assert_unavailable();
    drop(faults);
    let (setup, _) = receiver.kill();
    let receiver = setup.start();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.delivered(&id);
    assert_eq!(receiver.ask_admin("/api/v1/status").unwrap().json()["journal"]["last_sequence"], 2);
    receiver.finish();
}

#[test]
fn at_max_bytes_delivered_events_yield_then_optional_sinks_then_it_refuses() {
    let mut pipe = Pipe::new();
    pipe.read();
    let setup = Setup::embedded()
        .set("journal.max_bytes", "1MiB")
        .set("sinks.main.type", "stdout")
        .set("sinks.spare.type", "stdout")
        .set("sinks.spare.enabled", false)
        .set("sinks.spare.required", false)
        .stdout_to(&pipe.path());
    let receiver = setup.start();
    let mut wire = receiver.connect();
    let mut stored: Vec<String> = (0..100).map(|_| new_id()).collect();
    for id in &stored {
        // Three times what fits: it only does because the sink has had it, and the other one is not required.
        wire.post(big_event(id, 30_000).as_bytes()).assert_durable("stored", id);
        receiver.sink_settled("main");
    }
    let spare = receiver.sink("spare");
    assert!(spare["evicted"].as_u64().unwrap() > 60, "{spare}");
    assert_eq!(receiver.sink("main")["evicted"], 0);
    receiver.log.wait("the alarm", |line| line.contains("lose undelivered events").then_some(()));
    assert_eq!(receiver.metric(r#"sink_evicted_total{sink="spare"}"#), spare["evicted"].as_u64().unwrap());

    pipe.pause();
    let (more, refused) = fill_up(&receiver, 30_000);
    refused.assert_unavailable();
    assert!(more.len() > 20, "only {} more", more.len());
    stored.extend(more);
    let answer = receiver.ask_admin("/readyz").unwrap();
    assert_eq!((answer.status, answer.json()["reason"].as_str()), (503, Some("journal full")));
    assert_eq!(receiver.sink("main")["evicted"], 0);
    receiver.sink("spare");

    pipe.read();
    receiver.wait_ready();
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    stored.push(id);
    receiver.sink_settled("main");
    receiver.finish();
    assert_eq!(pipe.lines().len(), stored.len());
}

/// A commit group is stored or refused as one, so it must not be larger than what is free.
#[test]
fn close_to_max_bytes_events_that_come_together_do_not_keep_each_other_out() {
    let setup = Setup::embedded().set("journal.max_bytes", "1MiB");
    let receiver = setup.start();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let mut wire = receiver.connect();
                for _ in 0..10 {
                    let id = new_id();
                    let event = big_event(&id, 60_000);
                    wait_for("room", || (wire.post(event.as_bytes()).status == 200).then_some(()));
                }
            });
        }
    });
    assert_eq!(receiver.sink_settled("stdout")["delivered"], 160);
    receiver.finish();
}
