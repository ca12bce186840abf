//! The simulator in front of a receiver that is not ours, and of none.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::nginx::Nginx;
use crate::harness::pki::{Ca, Identity, PKI};
use crate::harness::programs::json_of;
use crate::harness::simulator::simulate;
use crate::harness::{free_port, wait_for};

/// More than nginx answers on one connection.
const EVENTS: usize = 2_500;

/// Lets every event in, of clients with a certificate of ASAPP's authority.
fn nginx() -> Nginx {
    Nginx::start(&PKI.server, &PKI.ca, "ssl_protocols TLSv1.3; location = /events { return 200; }")
}

/// Sends events; the summary, and the ledger's entries.
fn run(url: &str, client: &Identity, events: usize, arguments: &[&str]) -> (Value, Vec<Value>) {
    let folder = TempDir::new().unwrap();
    let ledger = folder.path().join("ledger");
    let mut command = simulate(url, client);
    // However slow the machine is, no attempt fails for it.
    command
        .args(["--events", &events.to_string(), "--rate", "2000", "--timeout-ms", "60000"])
        .args(arguments)
        .arg("--ledger")
        .arg(&ledger);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    (json_of(&output), entries(&ledger))
}

fn entries(ledger: &Path) -> Vec<Value> {
    fs::read_to_string(ledger).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn nginx_takes_every_event() {
    for (arguments, version) in [(&[][..], "HTTP/1.1"), (&["--http2"], "HTTP/2.0")] {
        let nginx = nginx();
        let (summary, ledger) = run(&nginx.url("/events"), &PKI.client, EVENTS, arguments);
        assert_eq!((&summary["sent"], &summary["stored"]), (&EVENTS.into(), &EVENTS.into()), "{summary}");
        let ids: HashSet<&str> = ledger.iter().map(|entry| entry["event_id"].as_str().unwrap()).collect();
        assert_eq!((ledger.len(), ids.len()), (EVENTS, EVENTS));
        assert!(ledger.iter().all(|entry| entry["outcome"] == "stored"));
        let attempts: u64 = ledger.iter().map(|entry| entry["attempts"].as_u64().unwrap()).sum();
        assert_eq!(summary["attempts"], attempts);
        // It writes them after its answers.
        wait_for("its log", || (nginx.access_log().len() as u64 >= attempts).then_some(()));
        let log = nginx.access_log();
        assert!(log.iter().all(|line| line.starts_with("POST /events 200 - CN=")), "{log:?}");
        assert_eq!(log.len() as u64, attempts);
        assert!(nginx.versions().iter().all(|used| used == version), "{version}");
    }
}

#[test]
fn without_the_right_certificate_no_event_gets_in() {
    let nginx = nginx();
    let stranger = Ca::new("somebody else's CA").client(|_| ());
    // nginx refuses a certificate with a 400.
    let (summary, ledger) = run(&nginx.url("/events"), &stranger, 10, &["--retries", "1"]);
    assert_eq!((&summary["sent"], &summary["rejected"]), (&10.into(), &10.into()), "{summary}");
    assert!(summary["last_failure"].as_str().unwrap().contains("400"), "{summary}");
    assert!(ledger.iter().all(|entry| entry["outcome"] == "rejected" && entry["attempts"] == 2), "{ledger:?}");
    assert_eq!(ledger.len(), 10);
}

#[test]
fn where_nobody_listens_events_are_dropped_and_that_is_told() {
    let closed = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let (summary, ledger) = run(&format!("https://{closed}/events"), &PKI.client, 10, &["--retries", "1"]);
    assert_eq!((&summary["sent"], &summary["dropped"]), (&10.into(), &10.into()), "{summary}");
    let told = summary["last_failure"].as_str().unwrap();
    assert!(told.starts_with(&format!("{closed}: ")) && told.contains("refused"), "{summary}");
    assert!(ledger.iter().all(|entry| entry["outcome"] == "dropped" && entry["attempts"] == 2), "{ledger:?}");
    assert_eq!(ledger.len(), 10);
}

#[test]
fn what_speaks_another_tls_or_none_is_told_so() {
    let nginx = Nginx::start(&PKI.server, &PKI.ca, "ssl_protocols TLSv1.2; location = /events { return 200; }");
    let plain = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = plain.local_addr().unwrap().port();
    let answering = thread::spawn(move || {
        let (mut connection, _) = plain.accept().unwrap();
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // Until the other side is gone.
        let _ = connection.read_to_end(&mut Vec::new());
    });
    for (url, words) in [
        (nginx.url("/events"), "it has to offer TLS 1.3"),
        (format!("https://localhost:{port}/"), "what listens there does not speak TLS"),
    ] {
        let (summary, _) = run(&url, &PKI.client, 1, &["--retries", "0"]);
        let told = summary["last_failure"].as_str().unwrap();
        assert!(told.starts_with("localhost:") && told.contains(words), "{summary}");
    }
    answering.join().unwrap();
}

#[test]
fn connections_get_the_open_files_they_need_or_that_is_told() {
    let nginx = nginx();
    let limited = |limit: &str| {
        let plain = simulate(&nginx.url("/events"), &PKI.client);
        let mut command = Command::new("prlimit");
        command.arg(limit).arg(plain.get_program()).args(plain.get_args());
        command.args(["--connections", "100", "--events", "200", "--rate", "2000", "--retries", "0"]);
        command.args(["--timeout-ms", "60000"]);
        command.output().unwrap()
    };
    let summary = json_of(&limited("--nofile=64:4096"));
    assert_eq!(summary["stored"], 200, "{summary}");
    let output = limited("--nofile=64:64");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("132 open files are needed, and 64 are allowed") && told.contains("ulimit"), "{told}");
}
