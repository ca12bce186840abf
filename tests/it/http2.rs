//! FAULTS "HTTP": HTTP/2, which is off unless `listen.http2`.

use std::time::Duration;

use crate::harness::event::{event, new_event, new_id};
use crate::harness::pki::{Identity, PKI};
use crate::harness::programs::curl;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::wait_for;
use crate::harness::wire::{End, Wire, tls};

/// Whoever takes so many bytes of a flood takes any number.
const ENDLESS: usize = 64 << 20;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const PRIORITY: u8 = 2;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// No kind that there is.
const UNKNOWN: u8 = 0xbe;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `POST /events` in HPACK, without the dynamic table.
pub(crate) fn head() -> Vec<u8> {
    let mut head = vec![0x83, 0x87, 0x04, 7];
    head.extend(b"/events");
    head.extend([0x01, 9]);
    head.extend(b"localhost");
    head
}

fn connect(receiver: &Receiver) -> Wire {
    connect_as(receiver, &PKI.client)
}

pub(crate) fn connect_as(receiver: &Receiver, client: &Identity) -> Wire {
    let mut wire = Wire::connect_with(receiver.events, tls(Some(client), &[b"h2"])).unwrap();
    assert_eq!(wire.tls().alpn_protocol(), Some(b"h2".as_slice()));
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    wire.send(frame(SETTINGS, 0, 0, b"")).unwrap();
    wire
}

/// The type and the payload of the next frame.
#[track_caller]
fn next_frame(wire: &mut Wire) -> (u8, Vec<u8>) {
    let head = wire.receive(9);
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    (head[3], wire.receive(usize::try_from(length).unwrap()))
}

fn setup() -> Setup {
    Setup::new().set("listen.http2", true).set("listen.idle_timeout", "60s").set("listen.drain_timeout", "2s")
}

/// Sends what `flood` makes until the receiver ends the connection, which it has to.
#[track_caller]
fn drowned(receiver: &Receiver, mut flood: impl FnMut(u32) -> Vec<u8>) {
    let memory = receiver.memory();
    let mut wire = connect(receiver);
    let (mut round, mut sent) = (0, 0);
    loop {
        let frames = flood(round);
        if wire.send(&frames).is_err() {
            break;
        }
        round += 1;
        sent += frames.len();
        assert!(sent < ENDLESS, "still open after {round} rounds");
    }
    wait_for("the connection to be over", || (receiver.metric("connections") == 0).then_some(()));
    let grown = receiver.memory().saturating_sub(memory);
    assert!(grown < 64 << 20, "{grown} bytes more");
    let (id, event) = new_event();
    receiver.post(event).assert_durable("stored", &id);
}

#[test]
fn it_is_not_spoken_unless_switched_on() {
    let receiver = Setup::new().start();
    let both = tls(Some(&PKI.client), &[b"h2", b"http/1.1"]);
    let mut wire = Wire::connect_with(receiver.events, both).unwrap();
    assert_ne!(wire.tls().alpn_protocol(), Some(b"h2".as_slice()));
    let (id, event) = new_event();
    wire.post(event.as_bytes()).assert_durable("stored", &id);

    let end = match Wire::connect_with(receiver.events, tls(Some(&PKI.client), &[b"h2"])) {
        Ok(mut wire) => wire.until_end().1,
        Err(error) => End::of(&error),
    };
    assert_eq!(end, End::Alert(120));
    receiver.finish();
}

#[test]
fn curl_posts_over_it_and_gets_the_same_answers() {
    let receiver = setup().start();
    let (id, event) = new_event();
    let arguments = ["--http2", "--data-binary", "@-"];
    curl(&receiver, "/events", &arguments, event.as_bytes()).assert_durable("stored", &id);
    curl(&receiver, "/events", &arguments, event.as_bytes()).assert_durable("duplicate", &id);
    curl(&receiver, "/events", &arguments, b"{").assert_problem(400, "malformed");
    curl(&receiver, "/events", &["--http2"], b"").assert_problem(405, "method-not-allowed");
    assert_eq!(receiver.delivered(&id), event);
    // HTTP/1.1 is still there for whoever asks for nothing else.
    curl(&receiver, "/events", &["--http1.1", "--data-binary", "@-"], event.as_bytes())
        .assert_durable("duplicate", &id);
    receiver.finish();
}

#[test]
fn a_body_too_large_gets_its_whole_answer_before_the_stream_is_reset() {
    let receiver = setup().set("listen.max_body_bytes", "2KiB").start();
    for announced in [b"4096".as_slice(), b""] {
        let mut wire = connect(&receiver);
        let mut head = head();
        if !announced.is_empty() {
            head.extend([0x0f, 0x0d, 4]);
            head.extend(announced);
        }
        wire.send(frame(HEADERS, END_HEADERS, 1, &head)).unwrap();
        wire.send(frame(DATA, 0, 1, &[b' '; 3000])).unwrap();
        let frames: Vec<_> = std::iter::from_fn(|| {
            let frame = next_frame(&mut wire);
            (frame.0 != RST_STREAM).then_some(frame)
        })
        .collect();
        assert!(frames.iter().any(|(kind, _)| *kind == HEADERS));
        let body: Vec<u8> = frames.into_iter().filter(|(kind, _)| *kind == DATA).flat_map(|(_, data)| data).collect();
        assert!(String::from_utf8(body).unwrap().contains(":too-large"));
    }
    assert_eq!(receiver.settled().rejected, 2);
    receiver.finish();
}

#[test]
fn a_rapid_reset_ends_the_connection() {
    let receiver = setup().start();
    drowned(&receiver, |round| {
        (0..100)
            .flat_map(|number| {
                let stream = 2 * (round * 100 + number) + 1;
                let mut frames = frame(HEADERS, END_HEADERS, stream, &head());
                frames.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                frames
            })
            .collect()
    });
    receiver.finish();
}

#[test]
fn a_head_without_end_ends_the_connection() {
    let receiver = setup().start();
    let mut field = vec![0x00, 6];
    field.extend(b"x-long");
    field.extend([127, 0x81, 0x7e]);
    field.extend([b'a'; 16_256]);
    drowned(&receiver, |round| match round {
        0 => frame(HEADERS, 0, 1, &head()),
        _ => frame(CONTINUATION, 0, 1, &field[..16_000]),
    });
    receiver.finish();
}

#[test]
fn a_flood_of_settings_ends_the_connection() {
    let receiver = setup().start();
    drowned(&receiver, |_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]).repeat(1000));
    receiver.finish();
}

#[test]
fn a_flood_of_pings_ends_the_connection() {
    let receiver = setup().start();
    drowned(&receiver, |_| frame(PING, 0, 0, &[0; 8]).repeat(1000));
    receiver.finish();
}

/// What the library would read for ever.
#[test]
fn a_flood_of_frames_that_are_part_of_no_request_ends_the_connection() {
    let patient = || Setup::new().set("listen.http2", true).set("listen.idle_timeout", "60s");
    let receiver = patient().start();
    let window = frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes());
    let priority = frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 15]);
    let floods = [
        ("window updates", window.clone()),
        ("priorities", priority.clone()),
        ("unknown frames", frame(UNKNOWN, 0, 0, b"")),
        ("long unknown frames", frame(UNKNOWN, 0, 0, &[0; 16_000])),
        ("acknowledged pings", frame(PING, 1, 0, &[0; 8])),
        ("of all kinds", [window.clone(), priority, frame(UNKNOWN, 0, 3, &[0; 50])].concat()),
    ];
    let closed = r#"connections_closed_total{reason="flood"}"#;
    for (number, (what, flood)) in (1..).zip(&floods) {
        drowned(&receiver, |_| flood.repeat(100));
        assert_eq!(receiver.metric(closed), number, "{what}");
    }

    // Beside an open request, whose body comes without coming: the library counts that itself.
    let before = receiver.cpu();
    for flags in [0, 8] {
        let empty = frame(DATA, flags, 1, if flags == 0 { b"" } else { &[255; 256] });
        drowned(&receiver, |round| match round {
            0 => frame(HEADERS, END_HEADERS, 1, &head()),
            _ => empty.repeat(100),
        });
    }
    assert!(receiver.cpu() - before < Duration::from_secs(2));

    // Requests earn as much again: more than all that a connection without any may send. All at once, as nobody here
    // answers the receiver's own pings.
    let mut wire = connect(&receiver);
    let requests = (0..100).flat_map(|number| {
        let stream = 2 * number + 1;
        let body = frame(DATA, END_STREAM, stream, event(&new_id()).as_bytes());
        [frame(HEADERS, END_HEADERS, stream, &head()), body, frame(UNKNOWN, 0, 0, &[0; 700])].concat()
    });
    wire.send(requests.collect::<Vec<u8>>()).unwrap();
    let mut answers = 0;
    while answers < 100 {
        answers += u32::from(next_frame(&mut wire).0 == DATA);
    }
    // And one after each flood.
    assert_eq!(receiver.settled().stored, 100 + floods.len() as u64 + 2);
    receiver.finish();
}

#[test]
fn a_request_names_one_host() {
    let receiver = setup().start();
    let status = |fields: &[(&[u8], &str)]| {
        let mut wire = connect(&receiver);
        let mut head = vec![0x83, 0x87, 0x04, 7];
        head.extend(b"/events");
        for (name, value) in fields {
            head.extend(*name);
            head.push(u8::try_from(value.len()).unwrap());
            head.extend(value.bytes());
        }
        wire.send(frame(HEADERS, END_HEADERS, 1, &head)).unwrap();
        wire.send(frame(DATA, END_STREAM, 1, new_event().1.as_bytes())).unwrap();
        loop {
            match next_frame(&mut wire) {
                // `:status` out of the static table, or as a literal of it.
                (HEADERS, head) => break if head[0] == 0x88 { 200 } else { 400 },
                (RST_STREAM, _) => break 0,
                _ => {}
            }
        }
    };
    let (authority, host) = (&[0x01][..], &[0x0f, 0x17][..]);
    assert_eq!(status(&[(authority, "localhost")]), 200);
    assert_eq!(status(&[(authority, "localhost"), (host, "LocalHost")]), 200);
    assert_eq!(status(&[(host, "localhost")]), 200);
    for bad in [
        &[][..],
        &[(authority, "localhost"), (host, "other")],
        &[(authority, "localhost"), (host, "localhost"), (host, "localhost")],
        &[(host, "local host")],
        &[(authority, "me@localhost")],
    ] {
        assert_ne!(status(bad), 200, "{bad:?}");
    }
    assert_eq!(receiver.settled().stored, 3);
    receiver.finish();
}

#[test]
fn a_stream_that_never_ends_is_cut_off() {
    let receiver = setup().set("listen.body_timeout", "700ms").start();
    let mut wire = connect(&receiver);
    wire.send(frame(HEADERS, END_HEADERS, 1, &head())).unwrap();
    wire.send(frame(DATA, 0, 1, b"{")).unwrap();
    receiver.wait_metric(r#"rejected_total{reason="timeout"}"#, 1);
    receiver.finish();
}

#[test]
fn a_reset_does_not_cancel_a_write_under_way() {
    let receiver = setup().start();
    let ids: Vec<String> = (0..40).map(|_| new_id()).collect();
    // No more on a connection than may be reset before the receiver has looked at them.
    for ids in ids.chunks(20) {
        let mut wire = connect(&receiver);
        for (number, id) in (0_u32..).zip(ids) {
            let stream = 2 * number + 1;
            let mut frames = frame(HEADERS, END_HEADERS, stream, &head());
            frames.extend(frame(DATA, END_STREAM, stream, event(id).as_bytes()));
            wire.send(frames).unwrap();
            if number % 2 == 0 {
                std::thread::sleep(Duration::from_micros(300));
            }
            wire.send(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).unwrap();
        }
        wire.abort();
    }
    for id in &ids {
        let answer = receiver.post(event(id));
        assert_eq!(answer.status, 200);
        receiver.delivered(id);
    }
    assert_eq!(receiver.settled().stored, 40);
    let ended = receiver.finish();
    assert_eq!(ended.stdout.len(), 40);
}
