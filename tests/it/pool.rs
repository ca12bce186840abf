//! The connections of an HTTP sink: used again, and no longer than they should be.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::harness::not_tested;
use crate::harness::receiver::Setup;
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wait_for;

fn ok(_: &Request) -> Reply {
    Reply::status(204)
}

fn to(url: &str, max_age: &str) -> Setup {
    Setup::new()
        .set("sinks.web.type", "http")
        .set("sinks.web.url", url)
        .set("sinks.web.ordering", "strict")
        .set("sinks.web.pool_max_age", max_age)
}

#[test]
fn a_connection_is_not_used_past_its_age() {
    let target = Target::start(ok);
    let receiver = to(&target.url("/"), "100ms").start();
    for number in 1..=5 {
        receiver.store(1);
        receiver.sink_settled("web");
        assert_eq!(target.connections(), number);
        // As long as no use would make it idle too long.
        std::thread::sleep(Duration::from_millis(120));
    }
    receiver.finish();

    let receiver = to(&target.url("/"), "1h").start();
    let before = target.connections();
    for _ in 0..3 {
        receiver.store(1);
        receiver.sink_settled("web");
        std::thread::sleep(Duration::from_millis(120));
    }
    assert_eq!(target.connections(), before + 1);
    receiver.finish();
}

/// One that is closed by the target while nothing goes on is not used either, and costs no attempt.
#[test]
fn a_connection_that_the_target_closed_costs_no_attempt() {
    let mut target = Target::start(ok);
    let receiver = to(&target.url("/"), "1h").start();
    for number in 1..=3 {
        receiver.store(1);
        assert_eq!(receiver.sink_settled("web")["delivered"], number);
        target.go_away();
        target.come_back();
    }
    assert_eq!(receiver.metric(r#"sink_failures_total{sink="web",reason="retry"}"#), 0);
    receiver.finish();
}

/// The old address goes on answering, as a machine does that was taken out of service behind a name.
#[test]
fn a_target_whose_name_has_moved_is_followed() {
    let (old, name) = (Target::start(ok), "moving.example");
    let Some(new) = Target::start_at(([127, 0, 0, 2], old.address.port()).into(), ok) else {
        return not_tested("127.0.0.2 is not this machine's");
    };
    // A private view of the file of names.
    let folder = tempfile::TempDir::new().unwrap();
    let hosts = folder.path().join("hosts");
    let say = |address: &str| fs::write(&hosts, format!("127.0.0.1 localhost\n{address} {name}\n")).unwrap();
    say("127.0.0.1");
    let bind = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let wrapper = ["unshare", "--mount", "sh", "-c", &*bind, "sh"];
    let may = Command::new(wrapper[0]).args(&wrapper[1..]).args(["getent", "hosts", name]).output();
    if !may.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("127.0.0.1")) {
        return not_tested("only root may give the receiver names of its own");
    }
    let receiver = to(&format!("http://{name}:{}/", old.address.port()), "300ms").through(&wrapper).start();
    receiver.store(2);
    receiver.sink_settled("web");
    assert!(old.requests().len() == 2 && new.requests().is_empty());
    say("127.0.0.2");
    // Steady traffic: no connection is ever idle for long.
    wait_for("the traffic to move", || {
        receiver.store(1);
        (!new.requests().is_empty()).then_some(())
    });
    receiver.sink_settled("web");
    let before = old.requests().len();
    receiver.store(10);
    receiver.sink_settled("web");
    assert_eq!(old.requests().len(), before, "nothing goes to the old address any more");
    receiver.finish();
}
