//! FAULTS "Connection": the PROXY protocol ahead of TLS, byte by byte.

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::connection::{assert_kept, drip_for_ever, patient, until_ended};
use crate::harness::event::new_event;
use crate::harness::pki::{Ca, Identity, PKI};
use crate::harness::programs::curl;
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::wire::{Wire, post, tls};
use crate::harness::{not_tested, wait_for};

const V4: &[u8] = &[203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x67, 0x20, 0xfb];
const V1: &[u8] = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 8443\r\n";

/// Behind a load balancer on this host.
fn behind_balancer() -> Setup {
    patient().set("listen.proxy_protocol", "required").set_toml("listen.trusted_proxies", "['127.0.0.0/8']")
}

/// A header of version 2: its 13th and 14th byte, and what follows the length.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// An event gets in on a connection that begins with `header`.
#[track_caller]
fn accepted(receiver: &Receiver, header: &[u8]) {
    let tcp = TcpStream::connect(receiver.events).unwrap();
    let mut wire = Wire::handshake_after(header, tcp, tls(Some(&PKI.client), &[])).unwrap();
    let (id, event) = new_event();
    wire.post(event.as_bytes()).assert_durable("stored", &id);
}

/// The peer that the log tells of a client whom TLS refuses, on a connection that begins with `header`.
#[track_caller]
fn told_peer(receiver: &Receiver, header: &[u8], stranger: &Identity) -> (String, SocketAddr) {
    let before = receiver.log.so_far().len();
    let tcp = TcpStream::connect(receiver.events).unwrap();
    let own = tcp.local_addr().unwrap();
    if let Ok(mut wire) = Wire::handshake_after(header, tcp, tls(Some(stranger), &[])) {
        wire.closed();
    }
    let told = wait_for("the refusal in the log", || {
        let lines = receiver.log.so_far();
        let line = lines[before..].iter().filter_map(|line| log_line(line)).find(|line| line["reason"] == "unknown-ca");
        line.map(|line| line["peer"].as_str().unwrap().to_owned())
    });
    (told, own)
}

/// A connection that begins with `bytes` is closed without a byte and counted under `reason`.
#[track_caller]
fn closed(receiver: &Receiver, bytes: &[u8], reason: &str) {
    let metric = format!(r#"connections_closed_total{{reason="{reason}"}}"#);
    let before = receiver.metric(&metric);
    let mut tcp = TcpStream::connect(receiver.events).unwrap();
    // It may be closed before all has come.
    let _ = tcp.write_all(bytes);
    until_ended(&mut tcp);
    wait_for(&format!("{reason} for {}", bytes.escape_ascii()), || {
        (receiver.metric(&metric) == before + 1).then_some(())
    });
}

/// The log has one warning for this reason, with the remedy, however often it was met.
#[track_caller]
fn warned(receiver: &Receiver, reason: &str, remedy: &str) {
    receiver.log.wait(reason, |line| (line.contains(reason) && line.contains("WARN")).then_some(()));
    let lines: Vec<_> = receiver.log.so_far().iter().filter_map(|line| log_line(line)).collect();
    let warnings: Vec<_> = lines.iter().filter(|line| line["level"] == "WARN" && line["reason"] == reason).collect();
    assert_eq!(warnings.len(), 1, "{reason}: {lines:?}");
    assert!(warnings[0]["detail"].as_str().unwrap().contains(remedy), "{}", warnings[0]);
    assert!(warnings[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{}", warnings[0]);
}

fn hello() -> Vec<u8> {
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[7; 506][..]].concat()
}

#[test]
fn the_client_is_whom_the_header_names() {
    let receiver = behind_balancer().start();
    let stranger = Ca::new("somebody else's CA").client(|_| ());
    let source: Ipv6Addr = "2001:db8::7".parse().unwrap();
    let v6 = [&source.octets()[..], &[0; 16], &[0x12, 0x67, 0x20, 0xfb]].concat();
    let mapped = [&[0; 10][..], &[0xff, 0xff, 203, 0, 113, 7], &[0; 16], &[0x12, 0x67, 0x20, 0xfb]].concat();
    for (header, client) in [
        (V1.to_vec(), "203.0.113.7:4711"),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 8443\r\n".to_vec(), "[2001:db8::7]:4711"),
        (v2(0x21, 0x11, V4), "203.0.113.7:4711"),
        (v2(0x21, 0x21, &v6), "[2001:db8::7]:4711"),
        (v2(0x21, 0x21, &mapped), "203.0.113.7:4711"),
    ] {
        accepted(&receiver, &header);
        assert_eq!(told_peer(&receiver, &header, &stranger).0, client);
    }
    // The balancer itself, or no address of use.
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ffff:: :: 1 1\r\n".to_vec(),
        v2(0x20, 0x00, &[]),
        v2(0x20, 0x11, V4),
        v2(0x21, 0x00, &[]),
        v2(0x21, 0x31, &[b'/'; 216]),
    ] {
        accepted(&receiver, &header);
        let (told, own) = told_peer(&receiver, &header, &stranger);
        assert_eq!(told, own.to_string());
    }
    receiver.finish();
}

#[test]
fn a_header_may_come_in_any_pieces() {
    let receiver = behind_balancer().start();
    let garbage = [V4, &[0xff; 300]].concat();
    let long = [V4, &vec![0; 4096 - V4.len()]].concat();
    for header in [V1.to_vec(), v2(0x21, 0x11, V4), v2(0x21, 0x11, &garbage), v2(0x21, 0x11, &long)] {
        accepted(&receiver, &header);
        let mut tcp = TcpStream::connect(receiver.events).unwrap();
        tcp.set_nodelay(true).unwrap();
        for byte in &header[..header.len().min(200)] {
            tcp.write_all(&[*byte]).unwrap();
            // So that the receiver sees it alone.
            std::thread::sleep(Duration::from_millis(1));
        }
        tcp.write_all(&header[header.len().min(200)..]).unwrap();
        let mut wire = Wire::handshake(tcp, tls(Some(&PKI.client), &[])).unwrap();
        let (id, event) = new_event();
        wire.post(event.as_bytes()).assert_durable("stored", &id);
    }
    let (id, event) = new_event();
    curl(&receiver, "/events", &["--haproxy-protocol", "--data-binary", "@-"], event.as_bytes())
        .assert_durable("stored", &id);
    receiver.finish();
}

#[test]
fn without_a_good_header_nothing_gets_in() {
    let receiver = behind_balancer().start();
    for absent in [&hello()[..], &post("/events", "", b"{}"), b"PROXY\r\n", b"\r\n\r\n\0\r\nQUIET"] {
        closed(&receiver, absent, "proxy-absent");
    }
    let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16)).into_bytes();
    accepted(&receiver, &line(107));
    for long in [line(108), line(100_000), v2(0x21, 0x11, &[0; 4097]), v2(0x20, 0x00, &[0; 65535])] {
        closed(&receiver, &long, "proxy-too-long");
    }
    for malformed in [
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 +443\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 8443\n".to_vec(),
        b"PROXY TCP6 203.0.113.7 10.0.0.1 4711 8443\r\n".to_vec(),
        v2(0x22, 0x11, V4),
        v2(0x11, 0x11, V4),
        v2(0x21, 0x13, V4),
        v2(0x21, 0x11, &V4[1..]),
    ] {
        closed(&receiver, &[&malformed[..], &hello()].concat(), "proxy-malformed");
    }
    // A header, but not the TLS it announces.
    closed(&receiver, &[V1, &post("/events", "", b"{}")].concat(), "refused");
    // Two headers are one too many.
    closed(&receiver, &[V1, V1].concat(), "refused");

    warned(&receiver, "proxy-absent", "send-proxy-v2");
    warned(&receiver, "proxy-malformed", "not as the protocol");
    warned(&receiver, "proxy-too-long", "107");
    accepted(&receiver, V1);
    wait_for("the connections to be over", || (receiver.metric("connections") == 0).then_some(()));
    assert_eq!(receiver.settled().received, 2);
    receiver.finish();
}

#[test]
fn a_header_broken_off_is_malformed() {
    let receiver = behind_balancer().start();
    for header in
        [V1[..20].to_vec(), v2(0x21, 0x11, V4)[..20].to_vec(), v2(0x21, 0x11, &[V4, &[0; 50]].concat())[..60].to_vec()]
    {
        let metric = r#"connections_closed_total{reason="proxy-malformed"}"#;
        let before = receiver.metric(metric);
        let mut tcp = TcpStream::connect(receiver.events).unwrap();
        tcp.write_all(&header).unwrap();
        drop(tcp);
        receiver.wait_metric(metric, before + 1);
    }
    receiver.finish();
}

#[test]
fn a_header_nobody_asked_for_is_refused() {
    let receiver = Setup::new().start();
    for header in [V1.to_vec(), v2(0x21, 0x11, V4), v2(0x20, 0x00, &[]), [V1, &hello()].concat()] {
        closed(&receiver, &header, "proxy-unexpected");
    }
    warned(&receiver, "proxy-unexpected", "listen.proxy_protocol");
    assert_eq!(receiver.settled().received, 0);
    receiver.finish();
}

#[test]
fn strangers_cannot_claim_an_address() {
    let receiver = behind_balancer().set_toml("listen.trusted_proxies", "['10.0.0.0/8', '127.0.0.2', '::1']").start();
    for spoofed in [V1, b"PROXY TCP4 10.0.0.1 10.0.0.1 1 2\r\n", &v2(0x20, 0x00, &[]), &hello(), b""] {
        closed(&receiver, spoofed, "proxy-untrusted");
    }
    warned(&receiver, "proxy-untrusted", "listen.trusted_proxies");
    assert_eq!(receiver.settled().received, 0);
    receiver.finish();
}

#[test]
fn ipv4_proxies_are_known_on_an_ipv6_socket() {
    if TcpListener::bind("[::]:0").is_err() {
        return not_tested("there is no IPv6 here");
    }
    for (trusted, lets_in) in [("127.0.0.0/8", true), ("::ffff:127.0.0.1", true), ("10.0.0.0/8", false)] {
        let setup = behind_balancer().set("listen.address", "[::]:0");
        let mut receiver = setup.set_toml("listen.trusted_proxies", &format!("['{trusted}']")).start();
        receiver.events = ([127, 0, 0, 1], receiver.events.port()).into();
        if lets_in {
            accepted(&receiver, V1);
        } else {
            closed(&receiver, V1, "proxy-untrusted");
        }
        receiver.finish();
    }
}

#[test]
fn a_slow_header_ends_with_the_handshakes_deadline() {
    let deadline = Duration::from_millis(700);
    let receiver = behind_balancer().set("listen.handshake_timeout", "700ms").start();
    for begin in [&b""[..], &V1[..20], &v2(0x21, 0x11, V4)[..14], &v2(0x21, 0x11, &[V4, &[0; 50]].concat())[..40]] {
        let start = Instant::now();
        let mut tcp = TcpStream::connect(receiver.events).unwrap();
        tcp.write_all(begin).unwrap();
        until_ended(&mut tcp);
        assert_kept(start, deadline);
    }
    receiver.wait_metric(r#"connections_closed_total{reason="handshake-timeout"}"#, 4);

    // One deadline for the header and the handshake, however busy the client seems.
    let start = Instant::now();
    let mut tcp = TcpStream::connect(receiver.events).unwrap();
    drip_for_ever(&mut tcp, V1.iter().chain(&hello()).copied().cycle(), Duration::from_millis(10));
    assert_kept(start, deadline);
    receiver.finish();
}

#[test]
fn a_balancers_probe_is_no_news() {
    let receiver = behind_balancer().start();
    let before = receiver.log.so_far().len();
    for header in [&b""[..], b"PROXY UNKNOWN\r\n", &v2(0x20, 0x00, &[]), V1] {
        let mut tcp = TcpStream::connect(receiver.events).unwrap();
        tcp.write_all(header).unwrap();
    }
    receiver.wait_metric(r#"connections_closed_total{reason="probe"}"#, 4);
    for line in &receiver.log.so_far()[before..] {
        let line = log_line(line).unwrap();
        assert!(line["level"] == "DEBUG" || line["level"] == "TRACE", "{line}");
    }
    receiver.finish();
}
