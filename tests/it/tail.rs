//! Looking on at events: `/api/v1/tail` and `tail`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::event::{big_event, new_event, new_id};
use crate::harness::receiver::{Lines, Receiver, Setup};
use crate::harness::target::{Reply, Target};
use crate::harness::{PATIENCE, wait_for};

#[test]
fn it_shows_what_comes_from_now_on_as_one_message_each() {
    let receiver = Setup::new().start();
    let (before, event) = new_event();
    receiver.post(&event).assert_durable("stored", &before);
    receiver.delivered(&before);

    let mut stream = Stream::open(&receiver, "/api/v1/tail", "");
    assert!(stream.head.contains("content-type: text/event-stream\r\n"), "{}", stream.head);
    let (id, event) = new_event();
    receiver.post(event.replacen(',', ",\r\n", 1)).assert_durable("stored", &id);
    let [first, data] = stream.message();
    assert_eq!(first, "id: 2", "nothing of before");
    assert_eq!(data, format!("data: {}", event.replacen(',', ",  ", 1)));
    receiver.finish();
}

#[test]
fn it_goes_on_from_a_sequence_a_time_or_the_last_event_seen() {
    let receiver = Setup::new().start();
    for _ in 0..3 {
        let (id, event) = new_event();
        receiver.post(&event).assert_durable("stored", &id);
    }
    for (query, headers, first) in [
        ("?from=1", "", 1),
        ("?from=3", "", 3),
        ("?from=1h", "", 1),
        ("?from=2026-01-01T00:00:00%2B01:00", "", 1),
        ("?from=1", "Last-Event-ID: 2\r\n", 3),
    ] {
        let mut stream = Stream::open(&receiver, &format!("/api/v1/tail{query}"), headers);
        assert_eq!(stream.message()[0], format!("id: {first}"), "{query} {headers}");
    }
    // Past and present join without a gap and without a repeat.
    let mut stream = Stream::open(&receiver, "/api/v1/tail?from=1", "");
    let posted: Vec<String> = (0..50)
        .map(|_| new_event())
        .map(|(id, event)| {
            receiver.post(&event).assert_durable("stored", &id);
            id
        })
        .collect();
    let ids: Vec<String> = (0..53).map(|_| stream.message()[0].clone()).collect();
    let expected: Vec<String> = (1..=53).map(|n| format!("id: {n}")).collect();
    assert_eq!((ids, posted.len()), (expected, 50));
    receiver.finish();
}

#[test]
fn it_filters_and_refuses_what_it_does_not_understand() {
    let receiver = Setup::new().start();
    let query = "?feeds=queue,journey&event_types=CALL%2A&event_types=hold*&exclude_event_types=*x&company_ids=acme";
    let mut stream = Stream::open(&receiver, &format!("/api/v1/tail{query}"), "");
    for event_type in ["CALL_x", "OTHER", "CALL_1", "hold_x", "hold_2"] {
        let (_, event) = new_event();
        receiver.post(event.replace("customer_request", event_type));
        receiver.post(new_event().1.replace("customer_request", event_type).replace("acme", "other"));
    }
    assert!(stream.message()[1].contains("CALL_1"));
    assert!(stream.message()[1].contains("hold_2"));

    for (query, told) in [
        ("feeds=nonsense", "`feeds`"),
        ("event_types=%5B", "`event_types`"),
        (&format!("event_types={}a{}", "{".repeat(7_000), "}".repeat(7_000)), "`event_types`"),
        (&"exclude_event_types=x&".repeat(101), "`event_types`"),
        ("from=yesterday", "`from`"),
        ("from=1&from=2", "more than once"),
        ("event_type=x", "`event_type`"),
    ] {
        let answer = receiver.ask_admin(&format!("/api/v1/tail?{query}")).unwrap();
        answer.assert_problem(400, "invalid");
        assert!(answer.json()["detail"].as_str().unwrap().contains(told), "{query}: {}", answer.text());
    }
    let answer = receiver.ask_admin_as("/api/v1/tail", "Last-Event-ID: x\r\n").unwrap();
    answer.assert_problem(400, "invalid");
    receiver.finish();
}

#[test]
fn only_so_many_look_on_at_a_time() {
    let receiver = Setup::new().start();
    let streams: Vec<Stream> = (0..16).map(|_| Stream::open(&receiver, "/api/v1/tail", "")).collect();
    receiver.ask_admin("/api/v1/tail").unwrap().assert_problem(429, "too-many");
    assert!(receiver.is_ready());
    drop(streams);
    wait_for("a place", || {
        let mut stream = TcpStream::connect(receiver.admin).unwrap();
        write!(stream, "HEAD /api/v1/tail HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.starts_with("HTTP/1.1 200").then_some(())
    });
    receiver.finish();
}

#[test]
fn one_that_reads_slowly_is_told_what_it_missed_and_delays_nobody() {
    // In a cluster it is the stream that is read, at any pace.
    let receiver = Setup::embedded().start();
    let mut slow = Stream::open(&receiver, "/api/v1/tail", "");
    // More than the newest events in memory and both sockets hold.
    let (count, stored) = (64, AtomicU64::new(0));
    let (mut seen, mut skipped) = (0, 0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = receiver.connect();
                for _ in 0..count / 4 {
                    let id = new_id();
                    connection.post(big_event(&id, 1_000_000).as_bytes()).assert_durable("stored", &id);
                    stored.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        while seen + skipped < count {
            let [first, data] = slow.message();
            if first == "event: skipped" {
                let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
                skipped += data["skipped"].as_u64().unwrap();
            } else {
                seen += 1;
            }
            // Four come in for each that is read, unless that takes long: one that reads nothing at all would be cut off.
            let (enough, since) = ((seen * 4).min(count), Instant::now());
            let has_waited = || since.elapsed() > Duration::from_secs(2);
            wait_for("more events", || (stored.load(Ordering::SeqCst) >= enough || has_waited()).then_some(()));
        }
    });
    assert_eq!(receiver.sink_settled("stdout")["delivered"], count);
    assert!(seen > 0 && skipped > 0 && seen + skipped == count, "{seen} seen, {skipped} skipped");
    receiver.finish();
}

#[test]
fn the_command_prints_lines_until_the_receiver_goes() {
    let receiver = Setup::new().start();
    let mut tail = Tail::start(&receiver, &["--feeds", "journey", "--event-types", "customer_*,other", "--from", "1"]);
    let (id, event) = new_event();
    receiver.post(event.replace("customer_request", "unwanted"));
    let wanted = new_id();
    receiver.post(event.replace(&id, &wanted)).assert_durable("stored", &wanted);
    let line = tail.lines.wait("a line", |line| Some(line.to_owned()));
    assert!(line.contains("customer_request"), "{line}");
    receiver.finish();
    let status = tail.child.wait().unwrap();
    let told = tail.errors.to_end().join("\n");
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("is being stopped"), "{told}");
}

#[test]
fn the_command_ends_in_peace_when_nobody_reads_it() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    let mut command = receiver.operate(&["tail", "--from", "1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), event);
    // Without another event: whoever has seen enough is not kept waiting for one.
    let ended = wait_for("the tail to end", || child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(0));
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert_eq!(told, "");
    let output = receiver.operate(&["tail", "--feeds", "nonsense"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`feeds` has to name"), "{output:?}");
    receiver.finish();
}

#[test]
fn a_tail_has_an_end_where_it_is_given_one() {
    let receiver = Setup::new().start();
    let ids = receiver.store(10);
    let tail = |arguments: &[&str]| {
        let output = receiver.operate(&[&["tail"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
        let lines: Vec<Value> =
            output.stdout.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        let at = |line: &Value| ids.iter().position(|id| line["event_id"] == **id).unwrap() + 1;
        lines.iter().map(at).collect::<Vec<usize>>()
    };
    let all: Vec<usize> = (1..=10).collect();
    for (arguments, wanted) in [
        (&["--no-follow"][..], &all[..]),
        (&["--to", "10"], &all),
        (&["--no-follow", "--from", "4"], &all[3..]),
        (&["--from", "4", "--to", "6"], &all[3..6]),
        (&["--from", "4", "--limit", "2"], &all[3..5]),
        (&["--from", "9", "--to", "10", "--limit", "5"], &all[8..]),
        (&["--from", "1", "--to", "1000", "--no-follow"], &all),
        (&["--from", "1h", "--to", "2026-01-01T00:00:00Z"], &[]),
        (&["--from", "1h", "--to", "0s"], &all),
        (&["--from", "7", "--to", "3"], &[]),
        (&["--from", "1000", "--no-follow"], &[]),
        (&["--no-follow", "--event-types", "nothing-like-this"], &[]),
        (&["--no-follow", "--event-types", "nothing-like-this", "--limit", "1"], &[]),
    ] {
        assert_eq!(tail(arguments), wanted, "{arguments:?}");
    }

    // An end that is still to come is waited for.
    let mut child = Tail::start(&receiver, &["--from", "9", "--to", "12"]);
    child.lines.wait("the event before", |line| line.contains(&ids[9]).then_some(()));
    assert!(child.child.try_wait().unwrap().is_none());
    let more = receiver.store(3);
    assert_eq!(child.child.wait().unwrap().code(), Some(0));
    let lines = child.lines.to_end();
    assert_eq!((lines.len(), lines[3].contains(&more[1])), (4, true), "{lines:?}");
    let soon = humantime::format_rfc3339(std::time::SystemTime::now() + std::time::Duration::from_secs(2)).to_string();
    let mut child = Tail::start(&receiver, &["--from", "13", "--to", &soon]);
    assert_eq!(child.child.wait().unwrap().code(), Some(0));
    assert_eq!(child.lines.to_end().len(), 1);

    for arguments in [&["--limit", "0"][..], &["--limit", "x"]] {
        assert_eq!(receiver.operate(&[&["tail"], arguments].concat()).output().unwrap().status.code(), Some(2));
    }
    for query in ["to=yesterday", "limit=0", "limit=-1", "follow=maybe"] {
        receiver.ask_admin(&format!("/api/v1/tail?{query}")).unwrap().assert_problem(400, "invalid");
    }
    receiver.finish();
}

#[test]
fn no_command_outlives_its_reader() {
    let target = Target::start(|_| Reply::status(503));
    let setup = Setup::new().set("sinks.web.type", "http").set("sinks.web.url", &*target.url("/"));
    let receiver = setup.start();
    receiver.store(3);
    for arguments in [&["tail"][..], &["replay", "--sink", "web", "--from", "1"], &["replay", "watch", "1"]] {
        let mut child = receiver.operate(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let ended = wait_for("the command to end", || child.try_wait().unwrap());
        let mut told = String::new();
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert_eq!(ended.code(), Some(0), "{arguments:?}: {told}");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_asapp-receiver"))
        .args(["demo", "--keep", "--duration", "1h", "--rate", "100"])
        .current_dir(folder.path())
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(demo.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with('{'), "{line}");
    assert_eq!(wait_for("the demo to end", || demo.try_wait().unwrap()).code(), Some(0));
    drop(receiver);
}

#[test]
fn on_a_terminal_no_command_lets_an_event_steer_it() {
    let receiver = Setup::new().start();
    let (id, event) = new_event();
    // JSON lets C1 control characters through, and terminals obey them.
    let event = event.replace("customer_request", "\u{9b}2J\u{202e}\u{7f}\u{200b}\u{feff}\u{2066}\u{2028}\u{e0041}");
    receiver.post(&event).assert_durable("stored", &id);
    receiver.post("\u{1b}]0;title\u{7}").assert_problem(400, "malformed");
    let shown = |command: &str| -> String {
        let command = format!("{} {command} --admin http://{}", env!("CARGO_BIN_EXE_asapp-receiver"), receiver.admin);
        // `script` gives it a terminal.
        let mut child = Command::new("script")
            .args(["-qefc", &command, "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let _ = child.kill();
        let _ = child.wait();
        let unseen = "\u{202e}\u{200b}\u{feff}\u{2066}\u{2028}\u{e0041}";
        let steers = |c: char| c.is_control() || unseen.contains(c);
        assert!(!line.trim_end().contains(steers), "{command}: {line:?}");
        line
    };
    let line = shown("tail --from 1");
    let [shown_event, sent] = [line.as_str(), &event].map(|json| serde_json::from_str::<Value>(json).unwrap());
    assert_eq!(shown_event, sent);
    assert!(shown("quarantine show 1 --body").contains("title"));
    receiver.finish();
}

/// `tail` under way.
struct Tail {
    child: Child,
    lines: Lines,
    errors: Lines,
}

impl Tail {
    fn start(receiver: &Receiver, arguments: &[&str]) -> Self {
        let mut command = receiver.operate(&[&["tail"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Lines::read(child.stdout.take().unwrap());
        let errors = Lines::read(child.stderr.take().unwrap());
        Self { child, lines, errors }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Server-sent events, as they come in.
struct Stream {
    head: String,
    reader: BufReader<TcpStream>,
    /// Of the chunk that is being read.
    left: usize,
}

impl Stream {
    #[track_caller]
    fn open(receiver: &Receiver, path: &str, headers: &str) -> Self {
        let mut stream = TcpStream::connect(receiver.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut stream = Self { head: head.to_ascii_lowercase(), reader, left: 0 };
        assert_eq!(stream.line(), ": tail");
        assert_eq!(stream.line(), "");
        stream
    }

    /// The two lines of the next message.
    #[track_caller]
    fn message(&mut self) -> [String; 2] {
        loop {
            let first = self.line();
            if first.starts_with(':') {
                assert_eq!(self.line(), "");
                continue;
            }
            let message = [first, self.line()];
            assert_eq!(self.line(), "");
            return message;
        }
    }

    #[track_caller]
    fn line(&mut self) -> String {
        let mut line = Vec::new();
        loop {
            if self.left == 0 {
                let mut size = String::new();
                self.reader.read_line(&mut size).unwrap();
                self.left = usize::from_str_radix(size.trim(), 16).unwrap();
                assert_ne!(self.left, 0, "the stream has ended");
            }
            let mut part = (&mut self.reader).take(self.left as u64);
            let read = part.read_until(b'\n', &mut line).unwrap();
            assert_ne!(read, 0, "the stream was cut off");
            self.left -= read;
            if self.left == 0 {
                let mut end = [0; 2];
                self.reader.read_exact(&mut end).unwrap();
            }
            if line.ends_with(b"\n") {
                line.pop();
                return String::from_utf8(line).unwrap();
            }
        }
    }
}
