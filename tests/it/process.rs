//! FAULTS "Process".
//!
//! Not tested here: that a panic in the writer or a lane aborts the process, as nothing that comes through the door makes
//! either panic (a panic in a request is tested beside the route); and that no redirect or proxy is followed, as nothing
//! in this version sends requests while it serves.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::event::{event, new_event, new_id};
use crate::harness::pki::PKI;
use crate::harness::receiver::Setup;
use crate::harness::wire::post;
use crate::harness::{not_tested, wait_for};

#[test]
fn sigterm_turns_readiness_off_and_still_serves_for_a_while() {
    let receiver = Setup::new().set("listen.pre_drain", "10s").set("listen.drain_timeout", "60s").start();
    let mut open = receiver.connect();
    let (id, event) = new_event();
    open.post(event.as_bytes()).assert_durable("stored", &id);

    let start = Instant::now();
    receiver.signal(Signal::TERM);
    wait_for("not ready", || (!receiver.is_ready()).then_some(()));
    // At once, and not after the time in which it still serves: that is to come.
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
    assert!(start.elapsed() >= Duration::from_secs(10), "{:?}", start.elapsed());
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
    // The clients' own deadlines are far beyond our patience.
    let ended = receiver.stop();
    assert!(ended.status.success(), "{ended:?}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let receiver = Setup::new().set("listen.pre_drain", "30s").set("listen.drain_timeout", "60s").start();
        receiver.signal(signal);
        wait_for("not ready", || (!receiver.is_ready()).then_some(()));
        receiver.signal(signal);
        let ended = receiver.wait();
        ended.assert_soon();
    }
}

#[test]
fn after_sigkill_what_was_acknowledged_is_known_and_delivered() {
    let mut setup = Setup::new().durable();
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

/// As a container would run it: the first process of its own process tree, nobody's user, a root that cannot be written
/// to but for the journal's volume, and nothing in between that would pass signals on.
#[test]
fn it_works_as_pid_1_without_rights_on_a_root_that_is_read_only() {
    let setup = Setup::new();
    fs::create_dir(setup.journal()).unwrap();
    let script = "set -e
        mount --make-rprivate /
        mount --bind \"$1\" \"$1\"
        mount -o remount,bind,ro /
        shift
        exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set -all \"$@\"";
    let journal = setup.journal();
    let wrapper = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"];
    let wrapper = [&wrapper[..], &[journal.to_str().unwrap()]].concat();
    let server = PKI.ca.server(|_| ());
    let setup = setup.set("tls.certificate", &server.chain).set("tls.private_key", &server.key).through(&wrapper);
    for folder in [setup.folder(), server.key.parent().unwrap()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let probe = setup.command().arg("--version").output().unwrap();
    if !probe.status.success() {
        return not_tested(String::from_utf8_lossy(&probe.stderr).trim());
    }
    // The key is its own, as a secret's volume would have it.
    for path in [&setup.journal(), &server.key] {
        chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    let receiver = setup.start();
    let program = child_of(receiver.pid());
    let status = fs::read_to_string(format!("/proc/{}/status", program.as_raw_nonzero())).unwrap();
    let line = |key: &str| status.lines().find(|line| line.starts_with(key)).unwrap();
    assert!(line("NSpid:").ends_with("\t1"), "{status}");
    assert_eq!(line("Uid:"), "Uid:\t65534\t65534\t65534\t65534");
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.delivered(&id);
    kill_process(program, Signal::TERM).unwrap();
    let ended = receiver.wait();
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout, [event]);
}

fn child_of(pid: Pid) -> Pid {
    let pid = pid.as_raw_nonzero();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

#[test]
fn what_keeps_it_from_listening_is_named_and_nothing_else() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (address, says, says_not) in [
        (taken.local_addr().unwrap().to_string(), "another program has", "permit"),
        // Of the documentation's network: nobody's.
        ("192.0.2.1:0".to_owned(), "no address of this machine", "another program"),
    ] {
        let ended = Setup::new().set("listen.address", &*address).start_in_vain();
        let said = ended.log.join("\n");
        assert!(said.contains(says) && !said.contains(says_not), "{said}");
        assert_eq!(ended.status.code(), Some(1), "{said}");
    }
}
