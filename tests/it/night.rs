//! What an operator meets at night: closed outputs, used-up files, full disks, folders that vanish.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::event::{event, new_event, new_id};
use crate::harness::receiver::Setup;
use crate::harness::target::{Reply, Target};
use crate::harness::wait_for;

#[test]
fn nothing_is_delivered_to_a_closed_stdout() {
    let setup = Setup::new().durable();
    let closed = setup.clone().through(&["sh", "-c", "exec \"$0\" \"$@\" >&-"]);
    let receiver = closed.start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.wait_metric(r#"sink_failures_total{sink="stdout",reason="retry"}"#, 1);
    assert_eq!(receiver.metric(r#"sink_delivered_total{sink="stdout"}"#), 0);
    wait_for("the reason to show", || {
        receiver.sink("stdout")["last_error"].as_str()?.contains("standard output is closed").then_some(())
    });
    receiver.finish();

    let receiver = setup.start();
    assert_eq!(receiver.delivered(&id), event);
    receiver.finish();
}

#[test]
fn connections_leave_files_for_the_admin_port_and_the_journal() {
    let few_files = Setup::new().set("listen.handshake_timeout", "60s").through(&["prlimit", "--nofile=64:64"]);
    let receiver = few_files.start();
    assert!(receiver.log.so_far().iter().any(|line| line.contains("LimitNOFILE")));
    let hoard: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(receiver.events).unwrap()).collect();
    receiver.wait_metric("connections", 32);
    assert!(receiver.is_ready());
    assert_eq!(receiver.metric("accept_errors_total"), 0);
    drop(hoard);
    wait_for("them to be gone", || (receiver.metric("connections") == 0).then_some(()));
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn it_starts_on_a_full_disk_after_a_crash() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.kill();
    fs::remove_file(setup.journal().join("ballast")).unwrap();
    let database = setup.journal().join("journal.db");
    let full = setup.clone().through(&[
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-P",
        database.to_str().unwrap(),
        "-e",
        "trace=pwrite64,fallocate",
        "-e",
        "inject=pwrite64,fallocate:error=ENOSPC",
    ]);
    let receiver = full.start_unready();
    wait_for("the event to be known", || (receiver.post(&event).status == 200).then_some(()));
    receiver.post(&event).assert_durable("duplicate", &id);
    // strace would leave it running.
    let lock = fs::read_to_string(setup.journal().join("lock")).unwrap();
    kill_process(Pid::from_raw(lock.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    receiver.wait();

    let receiver = setup.start();
    receiver.post(&event).assert_durable("duplicate", &id);
    receiver.finish();
}

#[test]
fn it_does_not_go_on_in_a_folder_that_was_deleted() {
    let receiver = Setup::embedded().start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    fs::remove_dir_all(receiver.setup().journal()).unwrap();
    let ended = receiver.wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.log.iter().any(|line| line.contains("deleted, moved or replaced")), "{ended:?}");
}

#[test]
fn the_demo_prints_a_command_to_paste_wherever_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("it's a \"dir\" $HOME");
    fs::create_dir(&odd).unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_asapp-receiver"))
        .args(["demo", "--keep", "--duration", "1s"])
        .current_dir(&odd)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = demo.stderr.take().unwrap();
    let mut said = Vec::new();
    while !contains(&said, "Look inside:\n\n") {
        let mut part = [0; 4096];
        let count = stderr.read(&mut part).unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&part[..count]);
    }
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("received 10 = stored 10 "), "{said}");
    let curl = &said[said.find("  curl").unwrap()..said.find("Look inside").unwrap()];
    for status in ["stored", "duplicate"] {
        let output = Command::new("sh").args(["-c", curl]).output().unwrap();
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(answer.contains(&format!(r#""status":"{status}""#)), "{curl}: {output:?}");
    }
    kill_process(Pid::from_child(&demo), Signal::INT).unwrap();
    let output = demo.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 11);
}

fn contains(bytes: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(bytes).contains(text)
}

#[test]
fn a_target_that_rejects_everything_does_not_fill_the_log() {
    let target = Target::start(|_| Reply::status(422));
    let receiver = Setup::new().set("sinks.web.type", "http").set("sinks.web.url", &*target.url("/")).start();
    let mut wire = receiver.connect();
    for _ in 0..300 {
        wire.post(event(&new_id()).as_bytes());
    }
    assert_eq!(receiver.sink_settled("web")["dead_lettered"], 300);
    // The log of tests is at debug level.
    let log: Vec<String> = receiver.finish().log.into_iter().filter(|line| !line.contains("DEBUG")).collect();
    assert_eq!(log.iter().filter(|line| line.contains("event dead-lettered")).count(), 100);
    assert!(log.iter().any(|line| line.contains("`dead-letters list` shows all")));
    assert!(log.len() < 160, "{} lines", log.len());
}

#[test]
fn what_waits_for_room_in_the_dead_letters_goes_out_once_the_target_is_mended() {
    let target = Target::start(|_| Reply::status(400));
    let receiver = Setup::new()
        .set("dead_letters.max_bytes", "4KiB")
        .set("sinks.web.type", "http")
        .set("sinks.web.url", &*target.url("/"))
        .set("sinks.web.ordering", "none")
        .set("sinks.web.retry.max_backoff", "1s")
        .start();
    let mut wire = receiver.connect();
    for _ in 0..60 {
        wire.post(event(&new_id()).as_bytes());
    }
    let sink = wait_for("the sink to wait", || Some(receiver.sink("web")).filter(|sink| sink["state"] == "waiting"));
    let error = sink["last_error"].as_str().unwrap();
    assert!(error.contains("dead_letters.max_bytes") && error.contains("400"), "{error}");
    target.wait_requests(62);
    // Whatever is tried again meanwhile, what status says does not flicker.
    assert_eq!(receiver.sink("web")["state"], "waiting");

    target.answer(|_| Reply::status(204));
    let sink = receiver.sink_settled("web");
    let (delivered, dead) = (sink["delivered"].as_u64().unwrap(), sink["dead_lettered"].as_u64().unwrap());
    assert!(delivered + dead == 60 && (1..30).contains(&dead), "{sink}");
    assert_eq!((&sink["state"], &sink["last_error"]), (&"ok".into(), &serde_json::Value::Null));
    let log = receiver.finish().log;
    assert!(log.iter().any(|line| line.contains("the dead letters are full")));
    assert!(log.iter().any(|line| line.contains("no event waits for room")));
}

#[test]
fn a_replay_gets_on_beside_live_events_that_wait_for_company() {
    let target = Target::start(|_| Reply::status(204));
    let receiver = Setup::new()
        .set("sinks.web.type", "http")
        .set("sinks.web.url", &*target.url("/"))
        .set("sinks.web.batch.max_events", 100)
        .set("sinks.web.batch.max_wait", "500ms")
        .start();
    let mut wire = receiver.connect();
    for _ in 0..200 {
        wire.post(event(&new_id()).as_bytes());
    }
    receiver.sink_settled("web");
    let begun = receiver.operate(&["replay", "--sink", "web", "--from", "1", "--rate", "100000", "--detach"]).output();
    assert!(begun.as_ref().unwrap().status.success(), "{begun:?}");
    // There is never a moment at which no live event waits.
    wait_for("the replay to end", || {
        wire.post(event(&new_id()).as_bytes());
        let replay = receiver.ask_admin("/api/v1/replay/1").unwrap().json();
        (replay["state"] == "done")
            .then(|| assert_eq!((&replay["delivered"], &replay["gone"]), (&200.into(), &0.into())))
    });
    receiver.finish();
}
