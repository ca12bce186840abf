//! Behind a real layer-4 load balancer: HAProxy in TCP mode, two receivers, and clients that go on whatever becomes of them.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::event::new_event;
use crate::harness::haproxy::{Fleet, HaProxy};
use crate::harness::pki::{Ca, PKI};
use crate::harness::programs::json_of;
use crate::harness::receiver::{Setup, log_line};
use crate::harness::simulator::{Simulator, simulate, verify};
use crate::harness::wait_for;
use crate::harness::wire::{Wire, tls};

/// A receiver with a file sink, which drains as one behind a load balancer does.
fn setup() -> Setup {
    let setup = Setup::new().durable();
    let events = events_of(&setup);
    setup
        .set("sinks.out.type", "file")
        .set("sinks.out.path", &events)
        // Longer than the balancer takes to notice.
        .set("listen.pre_drain", "8s")
        .set("listen.drain_timeout", "16s")
        // Brings clients back to one that has come back.
        .set("listen.max_connection_age", "2s")
        // On a busy machine, too, nothing but the drain and the kill may cost an attempt.
        .set("listen.answer_within", "15s")
        .set("log.level", "info")
}

fn events_of(setup: &Setup) -> PathBuf {
    setup.folder().join("events")
}

#[test]
fn two_receivers_behind_a_balancer_lose_nothing() {
    println!("{}", survive_drain_and_kill("send-proxy-v2", [setup(), setup()]));
}

/// Under load one receiver is drained and comes back, then the other one is killed and comes back. Every acknowledged
/// event comes out of one of the two, and the drain costs no client even an attempt. For people: how it went.
#[track_caller]
fn survive_drain_and_kill(header: &str, setups: [Setup; 2]) -> String {
    let folder = TempDir::new().unwrap();
    let ledgers = ["drain", "kill"].map(|name| folder.path().join(name));
    let mut fleet = Fleet::start(header, setups);

    let load = Load::start(&fleet, &ledgers[0]);
    load.reaches(&fleet, 0);
    load.reaches(&fleet, 1);
    let ended = fleet.drain(0);
    assert!(ended.status.success(), "{ended:?}");
    fleet.start_again(0);
    load.reaches(&fleet, 0);
    let drained = load.stop();
    assert_eq!(drained["attempts"], drained["sent"], "an attempt has failed: {drained}");
    assert_eq!(drained["stored"], drained["sent"], "{drained}");

    let load = Load::start(&fleet, &ledgers[1]);
    load.reaches(&fleet, 0);
    load.reaches(&fleet, 1);
    // A while without an answer, so that requests on every connection to it are under way.
    fleet.receiver(1).signal(Signal::STOP);
    load.reaches(&fleet, 0);
    fleet.kill(1);
    load.reaches(&fleet, 0);
    fleet.start_again(1);
    load.reaches(&fleet, 1);
    let killed = load.stop();
    assert!(killed["attempts"].as_u64() > killed["sent"].as_u64(), "the kill has hit nothing: {killed}");
    assert_eq!((&killed["dropped"], &killed["rejected"]), (&0.into(), &0.into()), "{killed}");

    (0..2).for_each(|number| drop(fleet.receiver(number).sink_settled("out")));
    let setups = fleet.finish();
    let files = setups.each_ref().map(events_of);
    let ledger = folder.path().join("both");
    fs::write(&ledger, ledgers.map(|ledger| fs::read(ledger).unwrap()).concat()).unwrap();
    let report = verify(&ledger, &files, &["--allow-repeats", "--json"]);
    assert_eq!(report.status.code(), Some(0), "{report:?}");
    for file in &files {
        // It takes both of them.
        assert_eq!(verify(&ledger, &[file], &["--allow-repeats"]).status.code(), Some(1));
    }
    format!("drained: {drained}\nkilled: {killed}\nverified: {}", json_of(&report))
}

/// ASAPP, posting to a fleet until it is stopped.
struct Load(Simulator);

impl Load {
    fn start(fleet: &Fleet, ledger: &Path) -> Self {
        let mut command = simulate(&fleet.haproxy.url("/events"), &PKI.client);
        command.args(["--rate", "100", "--connections", "8", "--retries", "3"]);
        command.args(["--timeout-ms", "20000", "--duration", "1000h"]);
        command.arg("--ledger").arg(ledger);
        Self(Simulator::start(command))
    }

    /// Waits until this receiver has stored some events of it, two for each connection.
    #[track_caller]
    fn reaches(&self, fleet: &Fleet, number: usize) {
        let receiver = fleet.receiver(number);
        receiver.wait_metric("stored_total", receiver.metric("stored_total") + 16);
    }

    #[track_caller]
    fn stop(self) -> Value {
        self.0.stop()
    }
}

#[test]
fn the_log_tells_who_is_behind_the_balancer() {
    let stranger = Ca::new("somebody else's CA").client(|_| ());
    for header in ["send-proxy", "send-proxy-v2"] {
        let fleet = Fleet::start(header, [setup(), setup()].map(|setup| setup.set("log.level", "debug")));
        let (id, event) = new_event();
        let tcp = TcpStream::connect(fleet.haproxy.address).unwrap();
        Wire::handshake(tcp, tls(Some(&PKI.client), &[])).unwrap().post(event.as_bytes()).assert_durable("stored", &id);

        let tcp = TcpStream::connect(fleet.haproxy.address).unwrap();
        let client = tcp.local_addr().unwrap().to_string();
        if let Ok(mut wire) = Wire::handshake(tcp, tls(Some(&stranger), &[])) {
            wire.closed();
        }
        wait_for("the refusal in a log", || {
            let lines: Vec<String> = (0..2).flat_map(|number| fleet.receiver(number).log.so_far()).collect();
            let told = lines.iter().filter_map(|line| log_line(line)).find(|line| line["reason"] == "unknown-ca")?;
            assert_eq!(told["peer"], *client);
            Some(())
        });
        fleet.finish();
    }
}

/// Without a look at `/readyz`, HAProxy's checks are connections to the event port: with a PROXY header of its own.
#[test]
fn haproxys_probes_of_the_event_port_are_no_news() {
    for header in ["send-proxy", "send-proxy-v2"] {
        let setup = Setup::new().set("listen.proxy_protocol", "required");
        let receiver = setup.set_toml("listen.trusted_proxies", "['127.0.0.1']").start();
        let before = receiver.log.so_far().len();
        let _haproxy = HaProxy::start("tcp-check", &[format!("{} {header} check", receiver.events)]);
        receiver.wait_metric(r#"connections_closed_total{reason="probe"}"#, 3);
        let ended = |(series, count): &(String, f64)| series.contains("_connections_closed_total{") && *count > 0.0;
        let reasons: Vec<String> = receiver.metrics().into_iter().filter(ended).map(|(series, _)| series).collect();
        assert!(matches!(&reasons[..], [only] if only.contains("probe")), "{reasons:?}");
        for line in &receiver.log.so_far()[before..] {
            let line = log_line(line).unwrap();
            assert!(line["level"] == "DEBUG" || line["level"] == "TRACE", "{line}");
        }
        receiver.finish();
    }
}
