//! Targets that answer as no server should. Whatever they send, an attempt ends, the door goes on, and a status that was
//! seen counts.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::event::{big_event, event, new_id};
use crate::harness::hostile::{Hostile, Peer};
use crate::harness::pki::PKI;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::server_config;
use crate::harness::{PATIENCE, wait_for};

/// What a target does with a connection once it has a request.
type Script = fn(&mut Peer) -> io::Result<bool>;

/// What becomes of the event.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// It is kept and tried again, for a reason with this word.
    Kept(&'static str),
    /// It is delivered by the first attempt.
    Delivered,
    /// The same, and the connection is used again.
    DeliveredAndReused,
    /// It is a dead letter at once.
    Rejected,
}
use Outcome::{Delivered, DeliveredAndReused, Kept, Rejected};

/// Without an end, unless the receiver makes one: only its bounds do, for its time-out is longer than any test waits.
const ENDLESS: &[(&str, Outcome, Script)] = &[
    ("continue", Kept("16 interim"), |peer| peer.send_endlessly("HTTP/1.1 100 Continue\r\n\r\n")),
    ("hints", Kept("16 interim"), |peer| peer.send_endlessly("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")),
    ("processing", Kept("16 interim"), |peer| peer.send_endlessly("HTTP/1.0 102\n\n")),
    ("hint-fields", Kept(""), |peer| {
        peer.send("HTTP/1.1 103 Early Hints\r\n")?;
        peer.send_endlessly("Link: </a>\r\n")
    }),
    ("lines", Kept(""), |peer| peer.send_endlessly("\r\n")),
    ("noise", Kept(""), |peer| peer.send_endlessly("x")),
    ("reason-phrase", Delivered, |peer| {
        peer.send("HTTP/1.1 200 ")?;
        peer.send_endlessly("x")
    }),
    ("fields", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\n")?;
        peer.send_endlessly("A: b\r\n")
    }),
    ("field", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nA: ")?;
        peer.send_endlessly("b")
    }),
    ("fields-of-503", Kept("503"), |peer| {
        peer.send("HTTP/1.1 503 Later\r\n")?;
        peer.send_endlessly("A: b\r\n")
    }),
    ("body", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\n\r\n")?;
        peer.send_endlessly("x")
    }),
    ("chunks", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        peer.send_endlessly("1\r\nx\r\n")
    }),
    ("chunk-extension", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")?;
        peer.send_endlessly("a=b;")
    }),
    ("chunk-size", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        peer.send_endlessly("0")
    }),
    ("trailers", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")?;
        peer.send_endlessly("A: b\r\n")
    }),
    ("answers", Delivered, |peer| peer.send_endlessly("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
    ("dripping-fields", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\n")?;
        peer.drip("A: b\r\n")
    }),
    ("dripping-body", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\n\r\n")?;
        peer.drip("x")
    }),
    ("silent-after-status", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\n")?;
        peer.wait()
    }),
];

/// Odd, and over.
const ODD: &[(&str, Outcome, Script)] = &[
    ("interim", DeliveredAndReused, |peer| {
        peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(16))?;
        peer.send("HTTP/1.1 204 No Content\r\n\r\n")?;
        Ok(true)
    }),
    ("fields", Delivered, |peer| {
        peer.send(format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "A: b\r\n".repeat(100)))?;
        Ok(true)
    }),
    ("many-fields", Delivered, |peer| {
        peer.send(format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(20_000)))?;
        Ok(true)
    }),
    ("a-large-field", Delivered, |peer| {
        peer.send(format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(1 << 20)))?;
        Ok(true)
    }),
    ("fields-of-422", Rejected, |peer| {
        peer.send(format!("HTTP/1.1 422 No\r\n{}\r\n", "A: b\r\n".repeat(200)))?;
        Ok(true)
    }),
    ("fields-of-401", Kept("401"), |peer| {
        peer.send(format!("HTTP/1.1 401 Who\r\n{}\r\n", "A: b\r\n".repeat(200)))?;
        Ok(true)
    }),
    ("nothing", Kept("broke off"), |_| Ok(false)),
    ("half-a-status", Kept("broke off"), |peer| peer.send("HTTP/1.1 20").map(|()| false)),
    ("no-status", Kept("broke off"), |peer| peer.send("HTTP/1.1 2x0 OK\r\n\r\n").map(|()| false)),
    ("another-protocol", Kept("broke off"), |peer| peer.send("SSH-2.0-OpenSSH_9.7\r\n").map(|()| false)),
    ("a-head-cut-off", Delivered, |peer| peer.send("HTTP/1.1 200 OK\r\nContent-Le").map(|()| false)),
    ("no-reason", Delivered, |peer| peer.send("HTTP/1.1 204\r\n\r\n").map(|()| false)),
    ("an-old-version", Delivered, |peer| peer.send("HTTP/1.0 200 OK\r\n\r\nfine").map(|()| false)),
    ("an-old-version-in-chunks", Delivered, |peer| {
        peer.send("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").map(|()| false)
    }),
    ("line-feeds", Delivered, |peer| peer.send("HTTP/1.1 200 OK\nContent-Length: 0\n\n").map(|()| false)),
    ("a-foreign-reason", Delivered, |peer| peer.send(b"HTTP/1.1 200 f\xfcr gut\r\n\r\n").map(|()| false)),
    ("a-bad-name", Delivered, |peer| peer.send("HTTP/1.1 200 OK\r\nA (b): c\r\n\r\n").map(|()| false)),
    ("a-zero", Delivered, |peer| peer.send("HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n").map(|()| false)),
    ("no-colon", Delivered, |peer| peer.send("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n").map(|()| false)),
    ("a-fold", Delivered, |peer| peer.send("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n").map(|()| false)),
    ("two-lengths", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx").map(|()| false)
    }),
    ("no-length", Delivered, |peer| peer.send("HTTP/1.1 200 OK\r\nContent-Length: some\r\n\r\n").map(|()| false)),
    ("a-huge-length", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nx").map(|()| false)
    }),
    ("a-length-not-kept", Delivered, |peer| peer.send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx").map(|()| false)),
    ("bad-chunks", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").map(|()| false)
    }),
    ("another-coding", Delivered, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx").map(|()| false)
    }),
    ("another-protocol-wanted", Kept("101"), |peer| {
        peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")?;
        Ok(true)
    }),
];

/// The sinks' events are those of one company, so that a good client's cost them nothing.
fn sink(setup: Setup, name: &str, target: &Hostile, timeout: &str) -> Setup {
    let set = |setup: Setup, key: &str, value: &str| setup.set(&format!("sinks.{name}.{key}"), value);
    let setup = set(setup, "type", "http");
    let setup = set(setup, "url", &format!("http://{}/", target.address));
    let setup = set(setup, "ordering", "strict");
    let setup = set(setup, "timeout", timeout);
    let setup = set(setup, "retry.initial_backoff", "20ms");
    let setup = set(setup, "retry.max_backoff", "200ms");
    setup.set_toml(&format!("sinks.{name}.filter.company_ids"), "['hostile']")
}

fn for_them(event: &str) -> String {
    event.replace("\"acme\"", "\"hostile\"")
}

/// Every target of a set at once, for one receiver, with a good client beside them.
fn assert_outcomes(scripts: &[(&str, Outcome, Script)]) {
    let targets: Vec<Hostile> = scripts.iter().map(|(.., script)| Hostile::start(*script)).collect();
    let setup = scripts
        .iter()
        .zip(&targets)
        .fold(Setup::new(), |setup, ((name, ..), target)| sink(setup, name, target, "120s"));
    let receiver = setup.start();
    for _ in 0..2 {
        assert_eq!(receiver.post(for_them(&event(&new_id()))).status, 200);
    }
    for (&(name, outcome, _), target) in scripts.iter().zip(&targets) {
        // None of them has ended before there was one.
        assert_outcome(&receiver, name, outcome, target);
        assert_goes_on(&receiver);
    }
    let connections: Vec<_> = targets.iter().map(|target| (target.connections(), target.ended())).collect();
    receiver.finish();
    // Whatever still sends gets nowhere.
    for ((name, ..), (target, before)) in scripts.iter().zip(targets.iter().zip(connections)) {
        wait_for(&format!("the connections of {name} to end, {before:?}"), || {
            (target.ended() == target.connections()).then_some(())
        });
    }
}

#[track_caller]
fn assert_outcome(receiver: &Receiver, name: &str, outcome: Outcome, target: &Hostile) {
    let sink = match outcome {
        Kept(word) => wait_for(&format!("{name} to be tried again for {word:?}"), || {
            let sink = receiver.sink(name);
            let why = sink["last_error"].as_str().unwrap_or_default();
            (target.requests() > 2 && !why.is_empty() && why.contains(word)).then_some(sink)
        }),
        Delivered | DeliveredAndReused | Rejected => receiver.sink_settled(name),
    };
    let (delivered, dead) = match outcome {
        Kept(_) => (0, 0),
        Delivered | DeliveredAndReused => (2, 0),
        Rejected => (0, 2),
    };
    let found = ["delivered", "dead_lettered"].map(|part| sink[part].as_u64().unwrap());
    assert_eq!(found, [delivered, dead], "{name}: {sink}");
    if delivered + dead > 0 {
        assert_eq!(target.requests(), 2, "{name}: nothing is sent twice");
    }
    if let DeliveredAndReused = outcome {
        assert_eq!(target.connections(), 1, "{name}");
    }
}

/// The door answers, and so does the admin port.
#[track_caller]
fn assert_goes_on(receiver: &Receiver) {
    receiver.store(2);
    receiver.wait_ready();
}

#[test]
fn an_endless_answer_is_ended_and_its_status_counts() {
    assert_outcomes(ENDLESS);
}

#[test]
fn an_odd_answer_means_what_its_status_says() {
    assert_outcomes(ODD);
}

/// What is no data for HTTP counts as well.
#[test]
fn an_endless_answer_within_tls_is_ended() {
    let interim: Script = |peer| peer.send_endlessly("HTTP/1.1 100 Continue\r\n\r\n");
    let key_updates: Script = |peer| loop {
        peer.stream.update_keys()?;
    };
    let fields: Script = |peer| {
        peer.send("HTTP/1.1 200 OK\r\n")?;
        peer.send_endlessly("A: b\r\n")
    };
    for (outcome, script) in [(Kept("16 interim"), interim), (Kept(""), key_updates), (Delivered, fields)] {
        let target = Hostile::start_tls(server_config(&PKI.server, None), script);
        let setup = sink(Setup::new(), "web", &target, "120s")
            .set("sinks.web.url", &*format!("https://localhost:{}/", target.address.port()))
            .set("sinks.web.tls.ca", [&PKI.ca.certificate]);
        let receiver = setup.start();
        for _ in 0..2 {
            assert_eq!(receiver.post(for_them(&event(&new_id()))).status, 200);
        }
        match outcome {
            Delivered => {
                receiver.sink_settled("web");
                assert_eq!(target.requests(), 2);
            }
            Kept(word) => {
                wait_for(&format!("an end by {word:?}"), || {
                    let sink = receiver.sink("web");
                    let why = sink["last_error"].as_str().unwrap_or_default();
                    let is_kept = sink["delivered"] == 0 && sink["dead_lettered"] == 0;
                    (is_kept && target.ended() > 1 && !why.is_empty() && why.contains(word)).then_some(())
                });
            }
            other => panic!("{other:?}"),
        }
        assert_goes_on(&receiver);
        receiver.finish();
    }
}

/// Looking for a path through many certificates would take the receiver's time.
#[test]
fn a_target_with_a_long_chain_is_not_looked_through() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut server = PKI.server.clone();
    server.chain = folder.path().join("chain.pem");
    let ca = fs::read_to_string(&PKI.ca.certificate).unwrap();
    let own = fs::read_to_string(&PKI.server.chain).unwrap();
    fs::write(&server.chain, format!("{own}{}", ca.repeat(20))).unwrap();
    let target = Hostile::start_tls(server_config(&server, None), |_| Ok(false));
    let receiver = sink(Setup::new(), "web", &target, "120s")
        .set("sinks.web.url", &*format!("https://localhost:{}/", target.address.port()))
        .set("sinks.web.tls.ca", [&PKI.ca.certificate])
        .start();
    assert_eq!(receiver.post(for_them(&event(&new_id()))).status, 200);
    wait_for("the reason", || {
        let sink = receiver.sink("web");
        let why = sink["last_error"].as_str()?;
        (why.contains("cannot trust localhost") && why.contains("20 intermediates")).then_some(())
    });
    assert_eq!(target.requests(), 0);
    receiver.finish();
}

/// It holds its own lane, until the time-out.
#[test]
fn a_target_that_does_not_get_on_is_given_up_in_time() {
    let silent = Hostile::start(Peer::wait);
    let dripping = Hostile::start(|peer| peer.drip("HTTP/1.1 100 Continue\r\nA: b"));
    let deaf = Hostile::start_deaf(|peer| {
        // Reads nothing, and keeps the connection as long as the other side does.
        while peer.send("").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(false)
    });
    let targets = [("silent", &silent), ("dripping", &dripping), ("deaf", &deaf)];
    let setup = targets.iter().fold(Setup::embedded(), |setup, (name, target)| sink(setup, name, target, "300ms"));
    let receiver = setup.set("listen.max_body_bytes", "16MiB").start();
    // More than the buffers on the way take.
    assert_eq!(receiver.post(for_them(&big_event(&new_id(), 12 << 20))).status, 200);
    for (name, target) in targets {
        wait_for(&format!("{name} to be given up"), || {
            let sink = receiver.sink(name);
            let why = sink["last_error"].as_str()?;
            (target.connections() > 1 && why.contains("within 300ms") && sink["delivered"] == 0).then_some(())
        });
        assert_goes_on(&receiver);
    }
    receiver.finish();
}

/// The answer comes before the end of the request, and with it the end of the connection.
#[test]
fn an_early_answer_counts() {
    for (status, outcome) in [("200 OK", "delivered"), ("413 Too Large", "dead_lettered")] {
        let target = Hostile::start_deaf(move |peer| {
            peer.send(format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"))?;
            // It arrives before the reset that follows from what was not read.
            std::thread::sleep(PATIENCE);
            Ok(false)
        });
        let receiver = sink(Setup::embedded(), "web", &target, "120s").set("listen.max_body_bytes", "16MiB").start();
        assert_eq!(receiver.post(for_them(&big_event(&new_id(), 12 << 20))).status, 200);
        let sink = receiver.sink_settled("web");
        assert_eq!((&sink[outcome], target.requests()), (&Value::from(1), 1), "{sink}");
        receiver.finish();
    }
}

/// How long a good client waits for its 200s, beside each target that never ends and beside one that is as it should be.
#[test]
#[ignore = "measures: run it alone, and with --release, on a machine that does nothing else"]
fn a_good_client_waits_no_longer_beside_them() {
    let good: Script = |peer| peer.send("HTTP/1.1 204 No Content\r\n\r\n").map(|()| true);
    let beside = |script: Script| {
        let target = Hostile::start(script);
        let receiver = sink(Setup::embedded(), "web", &target, "10s").set("sinks.web.ordering", "none").start();
        // Enough to be always about.
        for _ in 0..200 {
            assert_eq!(receiver.post(for_them(&event(&new_id()))).status, 200);
        }
        let before = receiver.cpu();
        let mut wire = receiver.connect();
        let mut waits: Vec<Duration> = (0..2_000)
            .map(|_| {
                let (id, start) = (new_id(), Instant::now());
                wire.post(event(&id).as_bytes()).assert_durable("stored", &id);
                start.elapsed()
            })
            .collect();
        waits.sort_unstable();
        let cpu = receiver.cpu() - before;
        (waits[waits.len() / 2], waits[waits.len() * 99 / 100], cpu)
    };
    let said = |name: &str, (p50, p99, cpu): (Duration, Duration, Duration)| {
        println!("{name:>24}: p50 {p50:?}, p99 {p99:?}, {cpu:?} of CPU");
    };
    let alone = || {
        let found = beside(good);
        said("a good target", found);
        found.1
    };
    let mut least = alone();
    for &(name, _, script) in ENDLESS {
        // A hitch of this machine is none of the target's: both are measured again, for a few times.
        let is_as_good = (0..3).any(|attempt| {
            if attempt > 0 {
                least = alone();
            }
            let found = beside(script);
            said(name, found);
            found.1 < least * 2
        });
        assert!(is_as_good, "{name}");
    }
}
