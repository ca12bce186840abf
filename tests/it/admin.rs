//! The operators' port, through its door.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use asapp_receiver::server::open_files;
use serde_json::Value;

use crate::harness::event::{big_event, new_event, new_id};
use crate::harness::pki::PKI;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Target};
use crate::harness::{PATIENCE, wait_for};

#[test]
fn probes_metrics_and_status_answer_on_loopback() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.post(&event).assert_durable("duplicate", &id);
    receiver.delivered(&id);

    assert_eq!(receiver.ask_admin("/livez").unwrap().status, 200);
    wait_for("it to be ready", || {
        (receiver.ask_admin("/readyz").unwrap().json() == serde_json::json!({ "ready": true })).then_some(())
    });
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
    assert_eq!(status["journal"]["engine"], receiver.setup().engine());
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
fn a_token_that_could_be_guessed_or_sent_by_nobody_is_refused() {
    for address in ["127.0.0.1:0", "0.0.0.0:0"] {
        let setup = Setup::new().set("admin.address", address);
        let file = setup.folder().join("token");
        let setup = setup.set("admin.token_file", &file);
        for (token, told) in [
            ("", "token_file"),
            ("fifteen-letters\n", "15 characters"),
            ("  short  \n", "5 characters"),
            ("REPLACE", "placeholder"),
            ("REPLACE-with-a-random-token\n", "placeholder"),
            ("sixteen letters and a space", "more than a token"),
            ("two-lines-of-a-token\nand-the-second-one", "more than a token"),
            ("sixteen-lettérs-or-more", "more than a token"),
            (&"four-thousand-and-more".repeat(200), "4400 characters"),
            (&"more-than-any-secret".repeat(5000), "cannot be read"),
        ] {
            fs::write(&file, token).unwrap();
            let ended = setup.start_in_vain();
            assert_eq!(ended.status.code(), Some(78), "{token:?}: {ended:?}");
            let log = ended.log.join("\n");
            assert!(log.contains(told) && log.contains("token_file"), "{token:?}: {log}");
            let checked = setup.command().arg("check").output().unwrap();
            assert_eq!(checked.status.code(), Some(78), "{token:?}: {checked:?}");
            let said = String::from_utf8(checked.stdout).unwrap();
            assert!(said.contains("error    admin.token_file"), "{token:?}: {said}");
            for part in token.split_whitespace().filter(|part| part.len() > 7) {
                assert!(!log.contains(part) && !said.contains(part), "the token is shown");
            }
        }
        fs::write(&file, "sixteen-letters!\n").unwrap();
        assert!(setup.start_unready().stop().status.success());
    }
}

#[test]
fn a_token_is_read_as_other_secrets_are() {
    let setup = Setup::new();
    let file = setup.folder().join("token");
    let setup = setup.set("admin.token_file", &file);
    let cli = |receiver: &Receiver| {
        let mut command = receiver.setup().command();
        let url = format!("http://{}", receiver.admin);
        command.arg("status").args(["--admin", &url, "--token-file"]).arg(&file);
        command
    };
    fs::write(&file, format!("\u{feff}{TOKEN}\r\n")).unwrap();
    let receiver = setup.start();
    let answer = receiver.ask_admin_as("/metrics", &format!("Authorization: Bearer {TOKEN}\r\n")).unwrap();
    assert_eq!(answer.status, 200);
    let output = cli(&receiver).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    // Neither waited for nor read without end.
    let zeros = setup.folder().join("zeros");
    std::os::unix::fs::symlink("/dev/zero", &zeros).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(Command::new("mkfifo").arg(&file).status().unwrap().success());
    let utf16: Vec<u8> = format!("\u{feff}{TOKEN}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let wide = setup.folder().join("wide");
    fs::write(&wide, utf16).unwrap();
    for (path, told) in [(&file, "no regular file"), (&zeros, "no regular file"), (&wide, "UTF-16")] {
        let setup = setup.clone().set("admin.token_file", path);
        let ended = setup.start_in_vain();
        assert_eq!(ended.status.code(), Some(78), "{ended:?}");
        let log = ended.log.join("\n");
        assert!(log.contains(told) && log.contains("admin.token_file"), "{log}");
        let checked = setup.command().arg("check").output().unwrap();
        let said = String::from_utf8(checked.stdout).unwrap();
        let is_it = |line: &str| line.starts_with("error    admin.token_file") && line.contains(told);
        assert!(checked.status.code() == Some(78) && said.lines().any(is_it), "{said}");
    }
    // By hand a pipe is as good as a file.
    let writing = std::thread::spawn({
        let file = file.clone();
        move || fs::write(file, TOKEN).unwrap()
    });
    let output = cli(&receiver).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    writing.join().unwrap();
    receiver.finish();
}

#[test]
fn pages_of_other_sites_get_nothing() {
    let receiver = Setup::new().start();
    let curl = |headers: &[&str], host: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--noproxy", "*"]);
        for header in headers {
            command.args(["--header", header]);
        }
        let port = receiver.admin.port();
        command.args(["--connect-to", &format!("::127.0.0.1:{port}")]);
        let output = command.arg(format!("http://{host}:{port}/api/v1/status")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for headers in [
        &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document", "Sec-Fetch-Mode: navigate"][..],
        &["Sec-Fetch-Site: same-site", "Sec-Fetch-Dest: empty"],
        &["Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: image"],
        &["Origin: https://evil.example"],
        &["Origin: null"],
    ] {
        assert_eq!(curl(headers, "localhost"), "403", "{headers:?}");
    }
    // A name of the attacker's that leads here.
    assert_eq!(curl(&[], "rebound.example"), "403");
    for headers in [&[][..], &["Sec-Fetch-Site: none", "Sec-Fetch-Dest: document"], &["Sec-Fetch-Site: same-origin"]] {
        assert_eq!(curl(headers, "localhost"), "200", "{headers:?}");
    }
    receiver.finish();
}

#[test]
fn every_answer_of_an_error_is_a_problem_and_nothing_is_kept_by_browsers() {
    let receiver = Setup::new().start();
    for (method, path, allow) in [
        ("POST", "/livez", "GET,HEAD"),
        ("DELETE", "/api/v1/status", "GET,HEAD"),
        ("OPTIONS", "/api/v1/sinks/x", "GET,HEAD,DELETE"),
    ] {
        let answer = receiver.call_admin(method, path, "");
        answer.assert_problem(405, "method-not-allowed");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }
    let status = receiver.ask_admin("/api/v1/status").unwrap();
    assert_eq!(status.header("cache-control"), Some("no-store"));
    assert_eq!(status.header("x-content-type-options"), Some("nosniff"));
    let url = format!("http://{}/api/v1/status", receiver.admin);
    let head = Command::new("curl").args(["--silent", "--head", "--noproxy", "*", &url]).output().unwrap();
    assert!(head.stdout.starts_with(b"HTTP/1.1 200") && head.stdout.ends_with(b"\r\n\r\n"), "{head:?}");
    receiver.call_admin("DELETE", "/api/v1/sinks/stdout", "").assert_problem(404, "not-found");
    receiver.finish();
}

#[test]
fn a_sink_is_forgotten_by_who_knows_what_is_lost_with_it() {
    let target = Target::start(|request| Reply::status(if request.text().contains("dies") { 422 } else { 503 }));
    let setup = Setup::new()
        .durable()
        .set("sinks.a.type", "stdout")
        .set("sinks.b.type", "http")
        .set("sinks.b.url", &*target.url("/"))
        .set("sinks.b.retry.max_backoff", "200ms")
        .set("listen.drain_timeout", "2s");
    let receiver = setup.start();
    for text in ["dies", "dies", "waits", "waits", "waits"] {
        let (id, event) = new_event();
        receiver.post(event.replace("hello", text)).assert_durable("stored", &id);
    }
    wait_for("two dead letters", || (receiver.sink("b")["dead_lettered"] == 2).then_some(()));
    let forget = |receiver: &Receiver, more: &[&str]| {
        receiver.operate(&[&["sinks", "forget", "b"], more].concat()).output().unwrap()
    };
    let output = forget(&receiver, &["--yes"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("take it out of the settings"), "{output:?}");
    receiver.stop();

    let receiver = setup.without("sinks.b.type").without("sinks.b.url").without("sinks.b.retry.max_backoff").start();
    assert_eq!(receiver.sink("b")["state"], "gone");
    let foreign = receiver.call_admin_as("DELETE", "/api/v1/sinks/b", "Sec-Fetch-Site: cross-site\r\n", b"");
    foreign.assert_problem(403, "forbidden");
    // A program that does not mean it, and a person who thinks better of it.
    let output = forget(&receiver, &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    for words in ["3 undelivered events", "2 dead letters", "--yes"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    for (answer, code) in [("n", "1"), ("", "1"), ("yes", "0")] {
        assert_eq!(receiver.sink("b")["state"], "gone");
        let command = format!(
            "{} sinks forget b --admin http://{}; echo code $?",
            env!("CARGO_BIN_EXE_asapp-receiver"),
            receiver.admin
        );
        // `script` gives it a terminal.
        let mut child = Command::new("script")
            .args(["-qefc", &command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{answer}").unwrap();
        let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert!(said.contains("3 undelivered events") && said.contains("Go on? [y/N]"), "{said}");
        assert!(said.contains(&format!("code {code}")), "{answer}: {said}");
    }
    receiver.call_admin("GET", "/api/v1/sinks/b", "").assert_problem(404, "not-found");
    let output = forget(&receiver, &["--yes"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no sink has this name"), "{output:?}");

    // Its former way only says where it went.
    let output = receiver.operate(&["status", "--forget", "a"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("sinks forget NAME"), "{output:?}");
    receiver.finish();
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

#[test]
fn status_tells_how_each_sink_is_and_until_when_certificates_are_good() {
    let rejecting = Target::start(|_| Reply::status(422));
    let failing = Target::start(|_| Reply::status(503));
    let hanging = Target::start(|_| Reply::hang());
    let url = |target: &Target| target.url("/");
    let receiver = Setup::new()
        .set("sinks.good.type", "stdout")
        .set("sinks.off.type", "stdout")
        .set("sinks.off.enabled", false)
        .set("sinks.failing.type", "http")
        .set("sinks.failing.url", &*url(&failing))
        .set("sinks.stalled.type", "http")
        .set("sinks.stalled.url", &*url(&hanging))
        .set("sinks.stalled.timeout", "60s")
        .set("sinks.waiting.type", "http")
        .set("sinks.waiting.url", &*url(&rejecting))
        .set("sinks.waiting.tls.certificate", &PKI.client.chain)
        .set("sinks.waiting.tls.private_key", &PKI.client.key)
        .set("sinks.waiting.tls.ca", [&PKI.ca.certificate])
        .set("dead_letters.max_bytes", "4KiB")
        .set("listen.drain_timeout", "2s")
        .start();
    for _ in 0..20 {
        let (id, event) = new_event();
        receiver.post(&event).assert_durable("stored", &id);
    }
    for (sink, state) in
        [("good", "ok"), ("off", "disabled"), ("failing", "failing"), ("waiting", "waiting"), ("stalled", "stalled")]
    {
        wait_for(&format!("{sink} to be {state}"), || (receiver.sink(sink)["state"] == state).then_some(()));
    }
    assert_eq!(receiver.sink("stalled")["last_error"], Value::Null);
    assert!(receiver.sink("stalled")["lag_seconds"].as_f64().unwrap() > 10.0);

    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    let journal = &status["journal"];
    assert_eq!((&journal["first_sequence"], &journal["last_sequence"]), (&1.into(), &20.into()));
    assert!(
        journal["oldest_seconds"].as_f64().unwrap() > 5.0 && journal["bytes"].as_u64().unwrap() > 1000,
        "{journal}"
    );
    assert!(status["dead_letters"]["bytes"].as_u64().unwrap() <= 4096, "{status}");
    let certificates = status["certificates"].as_array().unwrap();
    for (key, subject) in [
        ("tls.certificate", "CN=localhost"),
        ("tls.client_ca", "CN=Test CA"),
        ("sinks.waiting.tls.certificate", "CN=asapp-events.example,O=ASAPP test"),
    ] {
        let found = certificates.iter().find(|certificate| certificate["key"] == key).unwrap();
        assert_eq!(found["subject"], subject, "{key}");
        let days = found["days_left"].as_i64().unwrap();
        assert!((1..4000).contains(&days) && found["not_after"].as_str().unwrap().ends_with('Z'), "{found}");
    }
    let expiry = receiver.metric("certificate_expiry_timestamp_seconds");
    assert!(expiry > 1_700_000_000, "{expiry}");

    let output = receiver.operate(&["status"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for words in ["kept aside\n", "dead letters ", "sinks.waiting.tls.certificate", "sink failing: ", "  stalled "] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let ended = receiver.stop();
    assert!(ended.status.success(), "{ended:?}");
}

/// A probe's answers, whatever else is going on.
#[track_caller]
fn assert_probes_answer(receiver: &Receiver, while_: &str) {
    for path in ["/livez", "/readyz"] {
        let answer = receiver.ask_admin(path).unwrap_or_else(|error| panic!("{path}, {while_}: {error}"));
        // A cluster on a busy machine may leave the receiver without an answer for a moment, and then the probe says so.
        let is_cluster_slow = path == "/readyz" && answer.text().contains("journal unreachable");
        assert!(answer.status == 200 || is_cluster_slow, "{path}, {while_}: {}", answer.text());
    }
}

const TOKEN: &str = "a-token-of-the-test";

fn with_token(setup: Setup) -> Setup {
    let file = setup.folder().join("token");
    fs::write(&file, TOKEN).unwrap();
    setup.set("admin.token_file", &file)
}

#[test]
fn thousands_of_silent_connections_keep_no_probe_out() {
    // More than it could wait for, one lot after another, as long as this test has patience.
    let count = 3_000;
    assert!(open_files(count + 200) >= count + 200, "ulimit -Hn is too low for this test");
    let receiver = with_token(Setup::new()).start();
    let silent: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(receiver.admin).unwrap()).collect();
    assert_probes_answer(&receiver, "beside silent connections");
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    drop(silent);
    assert!(receiver.stop().status.success());
}

#[test]
fn nothing_that_strangers_send_keeps_a_probe_out() {
    let receiver = with_token(Setup::new()).start();
    let pipelined = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2_000);
    for (what, sent) in [
        ("half a head", "GET /livez HTTP/1.1\r\nHost: loc"),
        ("half a body", "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"),
        ("a call without the token", "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        (
            "a body without the token",
            "POST /api/v1/replay HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
        ),
        ("a wrong token", "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n\r\n"),
        ("answers that nobody reads", &pipelined),
    ] {
        let strangers: Vec<TcpStream> = (0..200)
            .map(|_| {
                let mut stream = TcpStream::connect(receiver.admin).unwrap();
                // It may have been ended already, or take no more.
                stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
                let _ = stream.write_all(sent.as_bytes());
                stream
            })
            .collect();
        assert_probes_answer(&receiver, what);
        drop(strangers);
    }
    let metrics = receiver.ask_admin_as("/metrics", &format!("Authorization: Bearer {TOKEN}\r\n")).unwrap();
    assert_eq!(metrics.status, 200, "an operator gets in as well");
    assert!(receiver.stop().status.success());
}

#[test]
fn who_has_the_token_keeps_no_probe_out_either() {
    let receiver = with_token(Setup::new()).start();
    for _ in 0..20 {
        let id = new_id();
        receiver.post(big_event(&id, 200_000)).assert_durable("stored", &id);
    }
    let head = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    for (what, sent) in [
        ("tails", format!("GET /api/v1/tail HTTP/1.1\r\n{head}\r\n")),
        ("tails that are not read", format!("GET /api/v1/tail?from=1 HTTP/1.1\r\n{head}\r\n")),
        (
            "tails with many globs",
            format!("GET /api/v1/tail?from=1&event_types={} HTTP/1.1\r\n{head}\r\n", ["*a*b*c*"; 100].join(",")),
        ),
        (
            "bodies that do not come",
            format!(
                "POST /api/v1/replay HTTP/1.1\r\n{head}Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n{{"
            ),
        ),
        ("lists", format!("GET /api/v1/dead-letters?limit=1000 HTTP/1.1\r\n{head}\r\n").repeat(20)),
        ("metrics", format!("GET /metrics HTTP/1.1\r\n{head}\r\n").repeat(100)),
        ("status", format!("GET /api/v1/status HTTP/1.1\r\n{head}\r\n").repeat(100)),
    ] {
        let streams: Vec<TcpStream> = (0..200)
            .map(|_| {
                let mut stream = TcpStream::connect(receiver.admin).unwrap();
                stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
                let _ = stream.write_all(sent.as_bytes());
                stream
            })
            .collect();
        assert_probes_answer(&receiver, what);
        drop(streams);
    }
    wait_for("room for an operator", || {
        let answer = receiver.ask_admin_as("/api/v1/status", &format!("Authorization: Bearer {TOKEN}\r\n"));
        (answer.ok()?.status == 200).then_some(())
    });
    assert!(receiver.stop().status.success());
}

#[test]
fn who_is_refused_keeps_no_connection() {
    let receiver = with_token(Setup::new()).start();
    let ask = |head: &str| {
        let mut stream = TcpStream::connect(receiver.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\n{head}\r\n").unwrap();
        let mut answer = String::new();
        // To its end, though nothing here asks for one.
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("Host: localhost\r\n").starts_with("HTTP/1.1 401 "));
    assert!(ask("Host: elsewhere.example\r\n").starts_with("HTTP/1.1 403 "));
    assert!(receiver.stop().status.success());
}

#[test]
fn the_admin_port_leaves_files_for_events() {
    // Sixty-four are few: half of them are for connections with events.
    let receiver = with_token(Setup::new()).through(&["prlimit", "--nofile=64:64"]).start();
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(receiver.admin).unwrap()).collect();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    assert_probes_answer(&receiver, "with few files");
    drop(silent);
    let accept_errors = wait_for("the metrics", || {
        let answer = receiver.ask_admin_as("/metrics", &format!("Authorization: Bearer {TOKEN}\r\n")).ok()?;
        let line =
            answer.text().lines().find(|line| line.starts_with("asapp_receiver_accept_errors_total"))?.to_owned();
        Some(line)
    });
    assert!(accept_errors.ends_with(" 0"), "{accept_errors}");
    assert!(receiver.stop().status.success());
}
