//! FAULTS "reload": settings and TLS files that change while the receiver runs.
//!
//! Not tested here: a file that may not be read, since the tests may run as root, who may read everything; a folder in the
//! file's place stands in.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rcgen::{DnType, SerialNumber};
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::harness::event::new_event;
use crate::harness::pki::{CLIENT_NAME, Ca, Identity, PKI};
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::wait_for;
use crate::harness::wire::{Answer, End, Wire, post, tls};
use crate::http2;

/// How often the receiver looks.
const INTERVAL: &str = "50ms";
/// The one of the second client.
const SECOND_NAME: &str = "second.example";
const REVOKED: u64 = 79;

type Days = time::Duration;

/// A folder with TLS files, and a receiver's settings for it.
struct World {
    folder: TempDir,
    setup: Setup,
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let world = Self { setup: Setup::new(), folder };
        world.put("server.pem", &PKI.server.chain);
        world.put("server.key", &PKI.server.key);
        world.put("ca.pem", &PKI.ca.certificate);
        world.put("ca.crl", &list(&[]));
        let (certificate, key) = (world.path("server.pem"), world.path("server.key"));
        let (ca, crl) = (world.path("ca.pem"), world.path("ca.crl"));
        let setup = world.setup.clone().set("tls.certificate", &certificate).set("tls.private_key", &key);
        let setup =
            setup.set("tls.client_ca", [&ca]).set("tls.client_crl", [&crl]).set("tls.reload_interval", INTERVAL);
        Self { setup: setup.set_toml("tls.allowed_clients", &pins(&[CLIENT_NAME, SECOND_NAME])), ..world }
    }

    fn interval(self, interval: &str) -> Self {
        Self { setup: self.setup.set("tls.reload_interval", interval), ..self }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a file as most programs do.
    fn put(&self, name: &str, content: &Path) {
        self.write(name, &fs::read(content).unwrap());
    }

    fn write(&self, name: &str, content: &[u8]) {
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, content).unwrap();
        rename(&new, &self.path(name));
    }

    /// A server of the same authority.
    fn put_server(&self, server: &Identity) {
        self.put("server.pem", &server.chain);
        self.put("server.key", &server.key);
    }
}

#[allow(clippy::disallowed_methods, reason = "nothing here has to outlive a crash")]
fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
}

fn list(revoked: &[u64]) -> PathBuf {
    PKI.ca.crl(revoked, OffsetDateTime::now_utc() + Days::days(30))
}

fn pins(names: &[&str]) -> String {
    let entries: Vec<String> = names.iter().map(|name| format!("{{ common_name = '{name}' }}")).collect();
    format!("[{}]", entries.join(", "))
}

fn second_client() -> Identity {
    PKI.ca.client(|profile| profile.distinguished_name.push(DnType::CommonName, SECOND_NAME))
}

#[track_caller]
fn stored(wire: &mut Wire) -> Answer {
    let (id, event) = new_event();
    let answer = wire.post(event.as_bytes());
    answer.assert_durable("stored", &id);
    answer
}

fn reload_of(receiver: &Receiver) -> Value {
    receiver.ask_admin("/api/v1/status").unwrap().json()["reload"].clone()
}

/// Whether newcomers get this server's certificate.
fn shows(receiver: &Receiver, server: &Identity) -> bool {
    let shown = receiver.connect().tls().peer_certificates().unwrap()[0].clone();
    shown == CertificateDer::from_pem_file(&server.chain).unwrap()
}

/// The alert that a client gets instead of an answer.
#[track_caller]
fn alert(receiver: &Receiver, client: &Identity) -> u8 {
    let end = match Wire::connect_with(receiver.events, tls(Some(client), &[])) {
        Ok(mut wire) => wire.until_end(),
        Err(error) => (Vec::new(), End::of(&error)),
    };
    match end {
        (bytes, End::Alert(alert)) if bytes.is_empty() => alert,
        other => panic!("no alert but {other:?}"),
    }
}

/// How often a line with this message was logged.
fn told(receiver: &Receiver, message: &str) -> usize {
    let lines = receiver.log.so_far();
    let told = |line: &String| log_line(line).is_some_and(|line| line["message"].as_str().unwrap().contains(message));
    lines.iter().filter(|line| told(line)).count()
}

#[track_caller]
fn wait_told(receiver: &Receiver, message: &str) -> Value {
    receiver.log.wait(message, |line| {
        log_line(line).filter(|line| line["message"].as_str().is_some_and(|text| text.contains(message)))
    })
}

/// Swaps two good sets as Kubernetes does, and asks by SIGHUP every other time, while clients post on connections old and
/// new.
#[test]
fn a_hundred_reloads_under_load_lose_no_request() {
    const RELOADS: u64 = 100;
    let mount = TempDir::new().unwrap();
    let servers = [PKI.server.clone(), PKI.ca.server(|_| ())];
    for (number, server) in servers.iter().enumerate() {
        let version = mount.path().join(format!("..{number}"));
        fs::create_dir(&version).unwrap();
        fs::copy(&server.chain, version.join("server.pem")).unwrap();
        fs::copy(&server.key, version.join("server.key")).unwrap();
        fs::copy(&PKI.ca.certificate, version.join("ca.pem")).unwrap();
        fs::copy(list(&[REVOKED + number as u64]), version.join("ca.crl")).unwrap();
    }
    symlink("..0", mount.path().join("..data")).unwrap();
    let [certificate, key, ca, crl] = ["server.pem", "server.key", "ca.pem", "ca.crl"].map(|name| {
        symlink(Path::new("..data").join(name), mount.path().join(name)).unwrap();
        mount.path().join(name)
    });
    let setup = Setup::new().set("tls.certificate", &certificate).set("tls.private_key", &key);
    let setup = setup.set("tls.client_ca", [&ca]).set("tls.client_crl", [&crl]).set("tls.reload_interval", INTERVAL);
    let receiver = setup.set("log.level", "info").start();

    let stop = AtomicBool::new(false);
    let posted = std::thread::scope(|scope| {
        // Also when this side panics, or no one would ever join.
        let _stop = Stop(&stop);
        let clients: Vec<_> = (0..6)
            .map(|number| {
                let (receiver, stop) = (&receiver, &stop);
                scope.spawn(move || {
                    let (mut posted, mut wire) = (0_u64, receiver.connect());
                    while !stop.load(Ordering::Relaxed) || posted <= RELOADS {
                        if number % 2 == 0 {
                            wire = receiver.connect();
                        }
                        stored(&mut wire);
                        posted += 1;
                    }
                    posted
                })
            })
            .collect();
        for reload in 1..=RELOADS {
            let version = usize::try_from(reload % 2).unwrap();
            symlink(format!("..{version}"), mount.path().join("..data_tmp")).unwrap();
            rename(&mount.path().join("..data_tmp"), &mount.path().join("..data"));
            if reload % 3 == 0 {
                receiver.signal(Signal::HUP);
            }
            receiver.wait_metric("reloads_total", reload);
            assert!(shows(&receiver, &servers[version]), "reload {reload}");
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<u64>()
    });
    assert!(posted > RELOADS * 5, "{posted} posts are no load");
    let account = receiver.settled();
    assert_eq!((account.received, account.stored), (posted, posted));
    assert_eq!(receiver.metric("reloads_total"), RELOADS);
    assert_eq!(receiver.metric("reload_failures_total"), 0);
    receiver.finish();
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_bad_set_leaves_the_old_one_and_a_good_one_is_taken_then() {
    let now = OffsetDateTime::now_utc();
    let expired = PKI.ca.server(|profile| profile.not_after = now - Days::minutes(1));
    let early = PKI.ca.server(|profile| profile.not_before = now + Days::hours(1));
    let client_like = PKI.ca.client(|_| ());
    let old_list = PKI.ca.crl(&[], now - Days::minutes(1));
    let chain = fs::read(&PKI.server.chain).unwrap();
    let key = fs::read(&PKI.server.key).unwrap();
    let malformed = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let world = World::new();
    type Break<'a> = Box<dyn Fn(&World) + 'a>;
    let remove =
        |name: &'static str| -> Break<'_> { Box::new(move |world| fs::remove_file(world.path(name)).unwrap()) };
    let folder = |name: &'static str| -> Break<'_> {
        Box::new(move |world| {
            fs::remove_file(world.path(name)).unwrap();
            fs::create_dir(world.path(name)).unwrap();
        })
    };
    fn write<'a>(name: &'static str, content: &'a [u8]) -> Break<'a> {
        Box::new(move |world| world.write(name, content))
    }
    fn server(server: &Identity) -> Break<'_> {
        Box::new(move |world| world.put_server(server))
    }
    let settings = |setup: Setup| -> Break<'_> { Box::new(move |_| _ = setup.write()) };
    let changed = |key: &str, value: &str| world.setup.clone().set_toml(key, value);
    let faults: Vec<(&str, Break<'_>)> = vec![
        ("server.pem", remove("server.pem")),
        ("server.key", remove("server.key")),
        ("ca.pem", remove("ca.pem")),
        ("ca.crl", remove("ca.crl")),
        ("server.pem", folder("server.pem")),
        ("ca.crl", folder("ca.crl")),
        ("no regular file", Box::new(|world| pipe(&world.path("ca.pem")))),
        ("server.pem", write("server.pem", b"")),
        ("server.key", write("server.key", b"")),
        ("ca.pem", write("ca.pem", b"")),
        ("ca.crl", write("ca.crl", b"\n")),
        ("server.pem", write("server.pem", &chain[..chain.len() / 2])),
        ("server.key", write("server.key", &key[..key.len() / 2])),
        ("ca.pem", write("ca.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n")),
        ("ca.crl", write("ca.crl", malformed)),
        ("server.key", Box::new(|world| world.put("server.key", &PKI.client.key))),
        ("expired", server(&expired)),
        ("not valid before", server(&early)),
        ("server authentication", server(&client_like)),
        ("expired", Box::new(|world| world.put("ca.crl", &old_list))),
        ("tls.allowed_clients", settings(changed("tls.allowed_clients", "[]"))),
        ("tls.certificates", settings(changed("tls.certificates", "'x'"))),
        ("listen.http2", settings(changed("listen.http2", "7"))),
        ("missing.pem", settings(changed("tls.certificate", "'missing.pem'"))),
        ("TOML", Box::new(|world| fs::write(world.setup.folder().join("settings.toml"), "[tls").unwrap())),
        ("settings.toml", Box::new(|world| fs::remove_file(world.setup.folder().join("settings.toml")).unwrap())),
    ];

    let receiver = world.setup.start();
    let mut open = receiver.connect();
    let mut current = PKI.server.clone();
    for (number, (word, fault)) in faults.iter().enumerate() {
        let before = reload_of(&receiver);
        fault(&world);
        // Of several files some may be seen before the others, and be another bad set.
        let report = wait_for("the status to say so", || {
            Some(reload_of(&receiver)).filter(|report| report["problems"].to_string().contains(word))
        });
        assert!(report["failures"].as_u64() > before["failures"].as_u64(), "{word}: {report}");
        assert_eq!(report["reloads"], before["reloads"], "{word}");
        assert_eq!(receiver.metric("reload_failing"), 1);
        assert!(shows(&receiver, &current), "fault {number}, {word}");
        stored(&mut open);

        // Something else than before that is good, so that it has to be taken.
        current = PKI.ca.server(|_| ());
        for name in ["server.pem", "ca.crl"] {
            let _ = fs::remove_dir(world.path(name));
        }
        world.setup.write();
        world.put("ca.pem", &PKI.ca.certificate);
        world.put("ca.crl", &list(&[]));
        world.put_server(&current);
        wait_for("the good set", || shows(&receiver, &current).then_some(()));
        wait_for("a word about it", || (reload_of(&receiver)["problems"] == json!([])).then_some(()));
        wait_for("no failure", || (receiver.metric("reload_failing") == 0).then_some(()));
    }
    stored(&mut open);
    let failures = usize::try_from(receiver.metric("reload_failures_total")).unwrap();
    assert_eq!(told(&receiver, "not reloaded"), failures);
    receiver.finish();
}

/// In the place of a file; whoever reads it waits for a writer.
fn pipe(path: &Path) {
    let new = path.with_extension("pipe");
    assert!(Command::new("mkfifo").arg(&new).status().unwrap().success());
    rename(&new, path);
}

#[test]
fn a_file_that_hangs_is_told_and_hinders_nothing_else() {
    let world = World::new();
    let receiver = world.setup.start();
    let mut open = receiver.connect();
    let (settings, hanging) = (world.setup.folder().join("settings.toml"), world.setup.folder().join("hanging"));
    let text = fs::read(&settings).unwrap();
    pipe(&settings);
    wait_for("the status to say so", || {
        reload_of(&receiver)["problems"].to_string().contains("does not come to an end").then_some(())
    });
    assert_eq!((receiver.metric("reload_failing"), receiver.metric("reload_failures_total")), (1, 1));
    stored(&mut open);

    rename(&settings, &hanging);
    world.setup.write();
    fs::write(&hanging, text).unwrap();
    wait_for("a word about it", || (reload_of(&receiver)["problems"] == json!([])).then_some(()));
    let next = PKI.ca.server(|_| ());
    world.put_server(&next);
    wait_for("the next set", || shows(&receiver, &next).then_some(()));
    wait_for("no failure", || (receiver.metric("reload_failing") == 0).then_some(()));
    receiver.finish();
}

/// A client with an open connection, what makes it one that is not allowed, and the alert it gets then.
#[track_caller]
fn cut_off(world: &World, client: &Identity, change: impl FnOnce(&World), wanted: u8) {
    let receiver = world.setup.start();
    let mut good = receiver.connect();
    stored(&mut good);
    let mut idle = receiver.connect_as(client).unwrap();
    stored(&mut idle);
    let mut unused = receiver.connect_as(client).unwrap();
    let mut begun = receiver.connect_as(client).unwrap();
    begun.send("POST /events HT").unwrap();
    receiver.wait_metric("connections", 4);

    change(world);
    // Within our patience, which is less than what else would end them.
    for wire in [&mut idle, &mut unused, &mut begun] {
        wire.closed();
    }
    receiver.wait_metric(r#"connections_closed_total{reason="not-allowed"}"#, 3);
    wait_told(&receiver, "not allowed any more");
    assert_eq!(alert(&receiver, client), wanted);
    stored(&mut good);
    stored(&mut receiver.connect());
    assert_eq!(receiver.settled().received, 4);
    receiver.finish();
}

#[test]
fn a_client_that_is_revoked_is_cut_off() {
    let client = PKI.ca.client(|profile| profile.serial_number = Some(SerialNumber::from(REVOKED)));
    cut_off(&World::new(), &client, |world| world.put("ca.crl", &list(&[REVOKED])), 44);
}

#[test]
fn a_client_that_is_not_pinned_any_more_is_cut_off() {
    let unpin = |world: &World| {
        world.setup.clone().set_toml("tls.allowed_clients", &pins(&[CLIENT_NAME])).write();
    };
    cut_off(&World::new(), &second_client(), unpin, 49);
}

#[test]
fn a_client_whose_authority_was_taken_out_is_cut_off() {
    let other = Ca::new("Former CA");
    let client = other.client(|_| ());
    let world = World::new();
    let both = |ca: &Ca| [fs::read(&PKI.ca.certificate).unwrap(), fs::read(&ca.certificate).unwrap()].concat();
    let crl =
        [list(&[]), other.crl(&[], OffsetDateTime::now_utc() + Days::days(30))].map(|file| fs::read(file).unwrap());
    world.write("ca.pem", &both(&other));
    world.write("ca.crl", &crl.concat());
    cut_off(&world, &client, |world| world.put("ca.pem", &PKI.ca.certificate), 48);
}

/// When something ends at `end`, connections go within the interval, with nothing changed in the files.
#[track_caller]
fn cut_off_by_time(world: World, client: &Identity, end: OffsetDateTime) {
    let receiver = world.interval("500ms").setup.start();
    let mut open = receiver.connect_as(client).unwrap();
    stored(&mut open);
    open.closed();
    let late = OffsetDateTime::now_utc() - end;
    assert!(late > Days::ZERO, "closed {late} after its end");
    assert_eq!(receiver.metric("reloads_total"), 0);
    assert!(matches!(alert(&receiver, client), 44..=48));
    receiver.finish();
}

fn soon() -> OffsetDateTime {
    // Certificates count in seconds.
    OffsetDateTime::now_utc().replace_nanosecond(0).unwrap() + Days::seconds(12)
}

#[test]
fn a_client_whose_certificate_expires_is_cut_off() {
    let end = soon();
    let client = PKI.ca.client(|profile| profile.not_after = end);
    cut_off_by_time(World::new(), &client, end);
}

#[test]
fn clients_are_cut_off_when_their_revocation_list_expires() {
    let (world, end) = (World::new(), soon());
    world.put("ca.crl", &PKI.ca.crl(&[], end));
    cut_off_by_time(world, &PKI.client, end);
}

#[test]
fn clients_are_cut_off_when_their_authority_expires() {
    for others in [vec![], fs::read(&PKI.ca.certificate).unwrap()] {
        let (world, end) = (World::new(), soon());
        let short = Ca::with("Short-lived CA", |profile| profile.not_after = end);
        let client = short.client(|profile| profile.not_after = end + Days::hours(1));
        world.write("ca.pem", &[fs::read(&short.certificate).unwrap(), others].concat());
        let setup = world.setup.clone().without("tls.client_crl");
        cut_off_by_time(World { setup, ..world }, &client, end);
    }
}

#[test]
fn a_request_under_way_is_answered_before_its_client_is_cut_off() {
    let world = World::new();
    let client = PKI.ca.client(|profile| profile.serial_number = Some(SerialNumber::from(REVOKED)));
    let receiver = world.setup.clone().set("listen.http2", true).start();
    let (id, event) = new_event();
    let request = post("/events", "", event.as_bytes());
    let mut http1 = receiver.connect_as(&client).unwrap();
    http1.send(&request[..request.len() - 1]).unwrap();

    let (other_id, other) = new_event();
    let mut http2 = http2::connect_as(&receiver, &client);
    http2.send(http2::frame(http2::HEADERS, http2::END_HEADERS, 1, &http2::head())).unwrap();
    http2.send(http2::frame(http2::DATA, 0, 1, &other.as_bytes()[..10])).unwrap();
    receiver.wait_metric("in_flight", 2);

    world.put("ca.crl", &list(&[REVOKED]));
    wait_told(&receiver, "not allowed any more");
    // Longer than connections without a request are given.
    std::thread::sleep(Duration::from_millis(1500));
    // A request that begins only now is not taken; a half one is.
    http2.send(http2::frame(http2::HEADERS, http2::END_HEADERS, 3, &http2::head())).unwrap();
    http2.send(http2::frame(http2::DATA, http2::END_STREAM, 3, new_event().1.as_bytes())).unwrap();
    http1.send(&request[request.len() - 1..]).unwrap();
    http2.send(http2::frame(http2::DATA, http2::END_STREAM, 1, &other.as_bytes()[10..])).unwrap();

    let answer = http1.answer();
    answer.assert_durable("stored", &id);
    assert_eq!(answer.header("connection"), Some("close"));
    http1.closed();
    let (bytes, end) = http2.until_end();
    assert!(String::from_utf8_lossy(&bytes).contains(&other_id), "no answer");
    assert_ne!(end, End::Open);
    let account = receiver.settled();
    assert_eq!((account.received, account.stored), (2, 2));
    receiver.wait_metric(r#"connections_closed_total{reason="not-allowed"}"#, 2);
    receiver.finish();
}

#[test]
fn a_client_that_was_cut_off_may_come_back_when_it_is_allowed_again() {
    let world = World::new();
    let client = second_client();
    let receiver = world.setup.start();
    let mut cut_off = receiver.connect_as(&client).unwrap();
    let (id, event) = new_event();
    let request = post("/events", "", event.as_bytes());
    cut_off.send(&request[..request.len() - 1]).unwrap();
    receiver.wait_metric("in_flight", 1);
    world.setup.clone().set_toml("tls.allowed_clients", &pins(&[CLIENT_NAME])).write();
    wait_told(&receiver, "not allowed any more");
    world.setup.write();
    receiver.wait_metric("reloads_total", 2);

    // The old connection is still there, and stays on its way out.
    let mut wire = receiver.connect_as(&client).unwrap();
    stored(&mut wire);
    cut_off.send(&request[request.len() - 1..]).unwrap();
    let answer = cut_off.answer();
    answer.assert_durable("stored", &id);
    assert_eq!(answer.header("connection"), Some("close"));
    cut_off.closed();
    receiver.signal(Signal::HUP);
    wait_told(&receiver, "nothing has changed");
    stored(&mut wire);
    receiver.finish();
}

#[test]
fn other_keys_wait_for_a_restart_and_hold_nothing_up() {
    let world = World::new();
    let receiver = world.setup.start();
    let secret = "s3cr3t";
    world
        .setup
        .clone()
        .set("listen.max_body_bytes", "2MiB")
        .set("sinks.web.type", "http")
        .set("sinks.web.url", &*format!("https://localhost:1/{secret}"))
        .set("tls.reload_interval", "60ms")
        .set_toml("tls.allowed_clients", &pins(&[CLIENT_NAME]))
        .write();
    receiver.wait_metric("reloads_total", 1);
    let line = wait_told(&receiver, "after a restart only").to_string();
    let report = wait_for("the status", || Some(reload_of(&receiver)).filter(|r| r["restart_for"] != json!([])));
    for key in ["listen.max_body_bytes", "sinks.web"] {
        assert!(
            line.contains(key) && report["restart_for"].as_array().unwrap().contains(&json!(key)),
            "{line} {report}"
        );
    }
    assert!(!report.to_string().contains(r#""tls."#), "{report}");
    assert_eq!(alert(&receiver, &second_client()), 49);
    let said = receiver.operate(&["status"]).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("listen.max_body_bytes has changed: restart to apply it"), "{said}");

    world.setup.write();
    wait_told(&receiver, "no restart is needed");
    wait_for("the status", || (reload_of(&receiver)["restart_for"] == json!([])).then_some(()));
    let ended = receiver.finish();
    assert!(!ended.log.iter().any(|line| line.contains(secret)));
}

#[test]
fn nothing_is_told_twice_unless_somebody_asks() {
    let world = World::new();
    let receiver = world.setup.start();
    let mut open = receiver.connect();
    let before = reload_of(&receiver);
    world.put_server(&PKI.server);
    world.put("ca.pem", &PKI.ca.certificate);
    world.setup.write();
    receiver.signal(Signal::HUP);
    wait_told(&receiver, "nothing has changed");
    stored(&mut open);
    assert_eq!(reload_of(&receiver), before);

    world.write("server.pem", b"");
    receiver.wait_metric("reload_failures_total", 1);
    // Ten more looks, of which nobody wants to hear.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((receiver.metric("reload_failures_total"), told(&receiver, "not reloaded")), (1, 1));
    receiver.signal(Signal::HUP);
    receiver.wait_metric("reload_failures_total", 2);
    let said = receiver.operate(&["status"]).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("not taken: ") && said.contains("server.pem: is empty"), "{said}");
    // What is in use is no news, but that it is good again is.
    world.put_server(&PKI.server);
    wait_told(&receiver, "are again those in use");
    let report = wait_for("no problems", || Some(reload_of(&receiver)).filter(|r| r["problems"] == json!([])));
    assert_eq!(report["reloads"], 0);
    receiver.finish();
}

#[test]
fn a_change_by_a_writer_that_keeps_the_file_open_is_seen_within_the_interval() {
    let world = World::new().interval("300ms");
    let receiver = world.setup.start();
    let client = PKI.ca.client(|profile| profile.serial_number = Some(SerialNumber::from(REVOKED)));
    let mut open = receiver.connect_as(&client).unwrap();
    stored(&mut open);
    let mut crl = File::options().write(true).truncate(true).open(world.path("ca.crl")).unwrap();
    crl.write_all(&fs::read(list(&[REVOKED])).unwrap()).unwrap();
    // Within our patience, which is less than what else would end it.
    open.closed();
    assert_eq!(alert(&receiver, &client), 44);
    drop(crl);
    receiver.finish();
}

#[test]
fn sighup_never_ends_it() {
    let world = World::new();
    let setup = world.setup.clone().set("listen.pre_drain", "9s");
    let mut child = setup.command().arg("serve").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_child(&child);
    let hangup = |pid| kill_process(pid, Signal::HUP).unwrap();
    // Before the program has begun, there is nobody to ignore a signal.
    wait_for("the program to handle SIGHUP", || {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim().to_owned();
        (u64::from_str_radix(&caught, 16).unwrap() & 1 == 1).then_some(())
    });
    for _ in 0..200 {
        hangup(pid);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();

    let receiver = setup.start();
    receiver.signal(Signal::TERM);
    wait_for("not ready", || (!receiver.is_ready()).then_some(()));
    hangup(receiver.pid());
    stored(&mut receiver.connect());
    hangup(receiver.pid());
    let ended = receiver.wait();
    assert!(ended.status.success(), "{ended:?}");
}
