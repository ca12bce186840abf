//! FAULTS "Connection" and "HTTP": deadlines, floods and limits below the request.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use asapp_receiver::server::open_files;

use crate::harness::event::new_event;
use crate::harness::pki::PKI;
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::wire::{End, Wire, post, tls};
use crate::harness::{PATIENCE, wait_for};

/// Every deadline but the one that a test is about, so that nothing else ends a connection within our patience.
pub(crate) fn patient() -> Setup {
    let timeouts = ["handshake", "header", "body", "idle"].map(|of| format!("listen.{of}_timeout"));
    timeouts.iter().fold(Setup::new(), |setup, timeout| setup.set(timeout, "60s"))
}

/// That a deadline was kept which ran at the earliest from `start` on. How late it may be is the machine's to say: within
/// our patience, and only it can have ended the connection of a [`patient`] receiver, whose counts name it.
#[track_caller]
pub(crate) fn assert_kept(start: Instant, deadline: Duration) {
    let took = start.elapsed();
    assert!(took >= deadline, "{took:?} is too early for {deadline:?}");
    assert!(took < PATIENCE, "{took:?} is too late for {deadline:?}");
}

/// Reads until the other side ends the connection.
#[track_caller]
pub(crate) fn until_ended(tcp: &mut TcpStream) {
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    if let Err(error) = tcp.read_to_end(&mut bytes) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
}

/// Sends a byte at a time, and never all of them, until the other side has ended the connection.
#[track_caller]
pub(crate) fn drip_for_ever(tcp: &mut TcpStream, bytes: impl Iterator<Item = u8>, every: Duration) {
    let start = Instant::now();
    for byte in bytes {
        if tcp.write_all(&[byte]).is_err() {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "still open");
        std::thread::sleep(every);
    }
    panic!("still open after its last byte");
}

/// A good client's connection, with its first event stored; on a busy machine its handshake may take longer than it may.
#[track_caller]
fn let_in(mut connect: impl FnMut() -> std::io::Result<Wire>) -> Wire {
    let (id, event) = new_event();
    let (wire, answer) = wait_for("a good client to be let in", || {
        let mut wire = connect().ok()?;
        wire.send(post("/events", "", event.as_bytes())).ok()?;
        let answer = wire.try_answer().ok()?;
        Some((wire, answer))
    });
    answer.assert_durable("stored", &id);
    wire
}

#[test]
fn a_handshake_that_does_not_get_on_is_ended() {
    let deadline = Duration::from_millis(700);
    let receiver = patient().set("listen.handshake_timeout", "700ms").start();

    let start = Instant::now();
    let mut silent = TcpStream::connect(receiver.events).unwrap();
    until_ended(&mut silent);
    assert_kept(start, deadline);

    // A ClientHello's record header, then a byte at a time: the deadline is for all of it.
    let start = Instant::now();
    let mut slow = TcpStream::connect(receiver.events).unwrap();
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3].into_iter();
    drip_for_ever(&mut slow, hello.chain(std::iter::repeat(0)), Duration::from_millis(100));
    assert_kept(start, deadline);
    receiver.wait_metric(r#"connections_closed_total{reason="handshake-timeout"}"#, 2);

    let_in(|| receiver.connect_as(&PKI.client));
    assert_eq!(receiver.settled().received, 1);
    receiver.finish();

    // What is no handshake is ended at once.
    let receiver = patient().start();
    let mut plain = TcpStream::connect(receiver.events).unwrap();
    plain.write_all(&post("/events", "", b"{}")).unwrap();
    until_ended(&mut plain);
    receiver.wait_metric(r#"tls_refused_total{reason="not-tls"}"#, 1);
    assert_eq!(receiver.metric(r#"connections_closed_total{reason="handshake-timeout"}"#), 0);
    receiver.finish();
}

/// A stranger is not worked for because it sends on and on.
#[test]
fn neither_a_handshake_nor_a_refusal_reads_on_and_on() {
    let receiver = patient().start();
    let before = receiver.cpu();
    // A ClientHello that is nearly 64 KB long, a byte in each record, and never its last one: the library's buffer is full.
    let mut hello = vec![1, 0, 0xff, 0xf0, 3, 3];
    hello.resize(60_000, 0);
    let records: Vec<u8> = hello.into_iter().flat_map(|byte| [0x16, 3, 1, 0, 1, byte]).collect();
    let mut tcp = TcpStream::connect(receiver.events).unwrap();
    let _ = tcp.write_all(&records);
    until_ended(&mut tcp);
    receiver.wait_metric("tls_refused_total", 1);
    assert_eq!(receiver.metric(r#"tls_refused_total{reason="timeout"}"#), 0);

    // It was refused for its first bytes, and goes on.
    let mut tcp = TcpStream::connect(receiver.events).unwrap();
    let mut sent = 0;
    while let Ok(written) = tcp.write(&[b'x'; 64 << 10]) {
        sent += written;
        assert!(sent < 32 << 20, "still read");
    }
    receiver.wait_metric(r#"tls_refused_total{reason="not-tls"}"#, 1);
    let busy = receiver.cpu() - before;
    assert!(busy < Duration::from_millis(500), "{busy:?}");
    receiver.finish();
}

#[test]
fn a_load_balancers_probe_is_no_news() {
    let receiver = Setup::new().start();
    let before = receiver.log.so_far().len();
    for _ in 0..5 {
        drop(TcpStream::connect(receiver.events).unwrap());
    }
    receiver.wait_metric("connections_accepted_total", 5);
    wait_for("the probes to be over", || (receiver.metric("connections") == 0).then_some(()));
    for line in &receiver.log.so_far()[before..] {
        let line = log_line(line).unwrap();
        assert!(line["level"] == "DEBUG" || line["level"] == "TRACE", "{line}");
    }
    receiver.finish();
}

#[test]
fn a_flood_of_handshakes_keeps_no_one_out() {
    let receiver = Setup::new().set("listen.handshake_timeout", "2s").set("listen.max_connections", 128).start();
    let memory = receiver.memory();
    // More than there is room for; half of them begin a handshake, half say nothing.
    let flood: Vec<TcpStream> = (0..300)
        .map(|number| {
            let mut tcp = TcpStream::connect(receiver.events).unwrap();
            if number % 2 == 0 {
                let _ = tcp.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc]);
            }
            tcp
        })
        .collect();
    receiver.wait_ready();
    for _ in 0..10 {
        let_in(|| receiver.connect_as(&PKI.client));
    }
    assert!(receiver.metric("connections") <= 128);
    assert!(receiver.memory() < memory + (64 << 20));
    drop(flood);
    receiver.finish();
}

#[test]
fn over_max_connections_the_next_one_waits() {
    let receiver = Setup::new()
        .set("listen.max_connections", 2)
        .set("listen.idle_timeout", "60s")
        .set("listen.header_timeout", "60s")
        .start();
    let first = let_in(|| receiver.connect_as(&PKI.client));
    let _second = let_in(|| receiver.connect_as(&PKI.client));
    let accepted = receiver.metric("connections_accepted_total");
    // The kernel takes it, the receiver does not yet, and does not reset it either.
    let third = TcpStream::connect(receiver.events).unwrap();
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let quiet = (&third).read(&mut [0]).unwrap_err();
    assert_eq!(quiet.kind(), std::io::ErrorKind::WouldBlock, "{quiet}");
    assert_eq!(receiver.metric("connections_accepted_total"), accepted);

    drop(first);
    let mut third = Some(third);
    let_in(|| match third.take() {
        Some(tcp) => Wire::handshake(tcp, tls(Some(&PKI.client), &[])),
        None => receiver.connect_as(&PKI.client),
    });
    receiver.finish();
}

/// They fill every place there is, and the kernel's backlog.
fn silent(receiver: &Receiver, count: usize, header: &[u8]) -> Vec<TcpStream> {
    assert!(open_files(count as u64 + 1_000) > count as u64);
    let connect = || {
        let mut tcp = TcpStream::connect(receiver.events).unwrap();
        tcp.write_all(header).unwrap();
        tcp
    };
    (0..count).map(|_| connect()).collect()
}

#[test]
fn thousands_of_silent_connections_make_room_where_files_are_few() {
    // Three times: the limit of files, that of connections, and behind a load balancer, which speaks for its clients.
    let few = &["prlimit", "--nofile=160:160"];
    let balanced =
        patient().set("listen.proxy_protocol", "required").set_toml("listen.trusted_proxies", "['127.0.0.0/8']");
    let header: &[u8] = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 8443\r\n";
    for (setup, header) in [
        (patient().through(few), &b""[..]),
        (patient().set("listen.max_connections", 32), b""),
        (balanced.set("listen.max_connections", 32), header),
    ] {
        let receiver = setup.start();
        let connect = || {
            let tcp = TcpStream::connect(receiver.events)?;
            Wire::handshake_after(header, tcp, tls(Some(&PKI.client), &[]))
        };
        // One that has proved who it is makes room for nobody.
        let mut open = let_in(connect);
        let flood = silent(&receiver, 2_000, header);
        for _ in 0..3 {
            let_in(connect);
        }
        let (id, event) = new_event();
        open.post(event.as_bytes()).assert_durable("stored", &id);
        assert!(receiver.metric(r#"connections_closed_total{reason="silent"}"#) > 1_800);
        assert!(receiver.metric("connections") <= receiver.metric("connections_max"));
        assert_eq!(receiver.ask_admin("/livez").unwrap().status, 200);
        drop(flood);
        receiver.finish();
    }
}

#[test]
fn a_byte_from_each_stranger_keeps_nobody_out() {
    let receiver = patient().set("listen.max_connections", 16).start();
    let address = receiver.events;
    let over = Arc::new(AtomicBool::new(false));
    // Each begins a handshake, leaves it at that, and comes again when it has been ended.
    let stranger = |over: Arc<AtomicBool>| {
        move || {
            while !over.load(Relaxed) {
                let Ok(mut tcp) = TcpStream::connect(address) else { continue };
                let _ = tcp.write_all(b"\x16");
                tcp.set_read_timeout(Some(PATIENCE)).unwrap();
                let _ = tcp.read(&mut [0]);
            }
        }
    };
    let strangers: Vec<_> = (0..64).map(|_| std::thread::spawn(stranger(Arc::clone(&over)))).collect();
    let made_room = r#"connections_closed_total{reason="unfinished"}"#;
    for round in 1..=3 {
        receiver.wait_metric(made_room, round * 100);
        let mut open = let_in(|| receiver.connect_as(&PKI.client));
        // One that has proved who it is makes room for nobody.
        receiver.wait_metric(made_room, round * 100 + 50);
        let (id, event) = new_event();
        open.post(event.as_bytes()).assert_durable("stored", &id);
    }
    over.store(true, Relaxed);
    receiver.finish();
    for stranger in strangers {
        stranger.join().unwrap();
    }
}

#[test]
fn without_file_descriptors_it_waits_and_recovers() {
    let receiver = Setup::new().set("listen.handshake_timeout", "60s").start();
    // At its start it would have taken fewer connections than there are files.
    let pid = receiver.pid().as_raw_nonzero().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, "--nofile=64:64"]).status().unwrap().success());
    let hoard: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(receiver.events).unwrap()).collect();
    // Silent ones make room, so that it may be no more than a moment.
    receiver.wait_metric("accept_errors_total", 1);
    let before = receiver.cpu();
    std::thread::sleep(Duration::from_secs(1));
    let busy = receiver.cpu() - before;
    assert!(busy < Duration::from_millis(300), "{busy:?} of processor time in a second of waiting");

    // The silent ones give theirs back.
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    drop(hoard);
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn a_slow_head_is_cut_off() {
    let receiver = patient().set("listen.header_timeout", "700ms").start();
    let mut wire = receiver.connect();
    let start = Instant::now();
    wire.drip(post("/events", "", b"{}"), Duration::from_millis(100));
    assert_kept(start, Duration::from_millis(700));
    let (bytes, end) = wire.until_end();
    assert!(bytes.is_empty(), "{}", String::from_utf8_lossy(&bytes));
    assert_ne!(end, End::Open);
    receiver.wait_metric(r#"connections_closed_total{reason="head-timeout"}"#, 1);
    assert_eq!(receiver.settled().received, 0);
    receiver.finish();
}

#[test]
fn a_slow_body_gets_408_at_the_deadline_for_all_of_it() {
    let receiver = patient().set("listen.body_timeout", "700ms").start();
    let (id, event) = new_event();
    for framing in [format!("Content-Length: {}\r\n", event.len()), "Transfer-Encoding: chunked\r\n".to_owned()] {
        let mut wire = receiver.connect();
        let start = Instant::now();
        wire.send(format!("POST /events HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n")).unwrap();
        let body = if framing.starts_with('T') { "1\r\n{\r\n".repeat(100) } else { event.clone() };
        wire.drip(body, Duration::from_millis(50));
        assert_kept(start, Duration::from_millis(700));
        let answer = wire.answer();
        answer.assert_problem(408, "timeout");
        assert_eq!(answer.header("connection"), Some("close"));
        wire.closed();
    }
    assert_eq!(receiver.metric(r#"rejected_total{reason="timeout"}"#), 2);
    assert_eq!(receiver.deliveries(&id), 0);
    receiver.finish();
}

#[test]
fn an_idle_connection_is_closed() {
    let idle = Duration::from_secs(3);
    let receiver = patient().set("listen.idle_timeout", "3s").start();
    // Longer in all than it may be idle, and never idle for nearly as long, unless the machine stands still.
    let (mut wire, last) = wait_for("a connection that is never idle for so long", || {
        let mut wire = receiver.connect();
        let start = Instant::now();
        let mut last = start;
        while start.elapsed() <= idle {
            let (id, event) = new_event();
            let before = std::mem::replace(&mut last, Instant::now());
            let answer = wire.send(post("/events", "", event.as_bytes())).and_then(|()| wire.try_answer());
            let Ok(answer) = answer else {
                assert!(before.elapsed() >= idle, "closed too early");
                return None;
            };
            answer.assert_durable("stored", &id);
            std::thread::sleep(Duration::from_millis(300));
        }
        Some((wire, last))
    });
    wire.closed();
    assert_kept(last, idle);

    let start = Instant::now();
    let mut never_used = receiver.connect();
    never_used.closed();
    assert_kept(start, idle);
    receiver.wait_metric(r#"connections_closed_total{reason="idle"}"#, 2);
    receiver.finish();
}

#[test]
fn an_old_connection_is_closed_after_an_answer() {
    let receiver = patient().set("listen.max_connection_age", "500ms").start();
    let start = Instant::now();
    let mut wire = receiver.connect();
    loop {
        let (id, event) = new_event();
        if wire.send(post("/events", "", event.as_bytes())).is_err() {
            break;
        }
        let answer = wire.answer();
        answer.assert_durable("stored", &id);
        if answer.header("connection") == Some("close") {
            wire.closed();
            break;
        }
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    }
    // Less up to a tenth.
    assert_kept(start, Duration::from_millis(450));
    receiver.wait_metric(r#"connections_closed_total{reason="age"}"#, 1);
    receiver.finish();
}

/// A fleet that came at once, after a restart say, must not go and come again at once.
#[test]
fn connections_of_one_age_do_not_end_together() {
    // Of the tenth, 200 ms, over which they are spread.
    const SPREAD: Duration = Duration::from_millis(60);
    let receiver = Setup::new().set("listen.max_connection_age", "2s").start();
    // How long each was open, and the longest that its client heard nothing.
    let live = || {
        let begun = Instant::now();
        let mut wire = receiver.connect();
        let (start, mut last, mut stood) = (Instant::now(), Instant::now(), Duration::ZERO);
        loop {
            let (id, event) = new_event();
            let answer = wire.post(event.as_bytes());
            answer.assert_durable("stored", &id);
            stood = stood.max(last.elapsed());
            last = Instant::now();
            if answer.header("connection") == Some("close") {
                assert!(begun.elapsed() > Duration::from_millis(1700), "{:?}", begun.elapsed());
                return (start.elapsed(), stood);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for("connections that end apart", || {
        let lived: Vec<(Duration, Duration)> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16).map(|_| scope.spawn(live)).collect();
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        let (first, last) = (lived.iter().min().unwrap().0, lived.iter().max().unwrap().0);
        // A machine that stood still ends all at once.
        let stood = lived.iter().map(|(_, stood)| *stood).max().unwrap();
        assert!(last - first > SPREAD || stood > SPREAD, "{lived:?}");
        (last - first > SPREAD).then_some(())
    });
    receiver.finish();
}

#[test]
fn a_peer_that_never_reads_is_cut_off() {
    let receiver = Setup::new()
        .set("listen.idle_timeout", "1s")
        .set("listen.header_timeout", "1s")
        .set("listen.body_timeout", "1s")
        .set("listen.drain_timeout", "2s")
        .start();
    let memory = receiver.memory();
    let mut wire = receiver.connect();
    let requests = post("/nowhere", "", b"").repeat(100);
    // Its answers, which are longer, fill every buffer in between; then nothing goes on until the receiver gives up.
    let mut sent = 0;
    while wire.send(&requests).is_ok() {
        sent += requests.len();
        assert!(sent < 64 << 20, "still open");
    }
    wait_for("the connection to be over", || (receiver.metric("connections") == 0).then_some(()));
    assert!(receiver.memory() < memory + (64 << 20));
    receiver.finish();
}
