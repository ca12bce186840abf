//! A journal in NATS: what is refused at start, how the receiver shows itself to the servers, what it says while they are
//! away, and two receivers that share one.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::disk::Pipe;
use crate::harness::event::{big_event, event, new_event, new_id};
use crate::harness::nats::{NatsCluster, NatsPki, NatsServer};
use crate::harness::pki::{Ca, Identity, write_private};
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Target};
use crate::harness::{free_port, wait_for};

/// Checks that it does not start, and says so in these words.
#[track_caller]
fn refused(setup: &Setup, words: &[&str]) {
    let ended = setup.start_in_vain();
    assert!(!ended.status.success(), "{ended:?}");
    let log = ended.log.join("\n");
    for word in words {
        assert!(log.contains(word), "no {word:?} in {log}");
    }
    assert!(!log.contains("panic"), "{log}");
}

/// Checks that it takes and delivers events.
#[track_caller]
fn works(setup: &Setup) {
    let receiver = setup.start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    receiver.post(&event).assert_durable("duplicate", &id);
    assert_eq!(receiver.delivered(&id), event);
    receiver.finish();
}

#[test]
fn a_stream_that_would_break_a_promise_is_refused_with_the_remedy() {
    let server = NatsServer::start("");
    let setup = Setup::embedded().in_stream(&server, "S");
    works(&setup);
    let good = server.api("$JS.API.STREAM.INFO.S", &Value::Null)["config"].clone();
    let again = |config: &Value| {
        server.api("$JS.API.STREAM.DELETE.S", &Value::Null);
        let made = server.api("$JS.API.STREAM.CREATE.S", config);
        assert!(made["error"].is_null(), "{made}");
    };
    for (key, value, word) in [
        ("storage", json!("memory"), "is in memory"),
        ("discard", json!("old"), "discards old"),
        ("retention", json!("interest"), "retention is not limits"),
        ("max_age", json!(3_600_000_000_000_u64), "drops messages after 1h"),
        ("max_msgs", json!(1000), "max_msgs"),
        ("duplicate_window", json!(1_000_000_000_u64), "remembers ids"),
        ("subjects", json!(["S.p.*", "T.>"]), "subjects"),
        ("persist_mode", json!("async"), "asynchronously"),
        ("metadata", json!({"asapp_receiver.partitions": "8", "asapp_receiver.format": "1"}), "partitions"),
        ("allow_direct", json!(false), "direct reads"),
        ("no_ack", json!(true), "no_ack"),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        again(&bad);
        let before = server.api("$JS.API.STREAM.INFO.S", &Value::Null)["config"].clone();
        refused(&setup, &["journal.nats", word]);
        assert_eq!(server.api("$JS.API.STREAM.INFO.S", &Value::Null)["config"], before, "it was changed");
    }
    again(&good);
    refused(&setup.clone().set("journal.nats.duplicate_window", "1h"), &["journal.nats", "remembers ids"]);
    refused(&setup.clone().set("journal.nats.partitions", 5), &["journal.nats", "partitions"]);
}

#[test]
fn servers_that_are_too_small_too_old_or_away_are_refused_with_the_remedy() {
    let small = NatsServer::start("max_payload: 200KB");
    let setup = Setup::embedded().in_stream(&small, "S");
    refused(&setup, &["journal.nats", "max_payload: 1114112"]);
    works(&setup.set("listen.max_body_bytes", "128KiB"));

    let nobody = Setup::embedded().in_stream(&small, "S");
    let none = format!("['nats://127.0.0.1:{}']", free_port());
    refused(&nobody.set_toml("journal.nats.servers", &none), &["journal.nats"]);

    let old = speaks_of_itself("2.12.2");
    let setup = Setup::embedded().in_stream(&small, "S").set_toml("journal.nats.servers", &format!("['{old}']"));
    refused(&setup, &["journal.nats", "2.12.2", "2.12.3"]);
}

/// A server with its default settings takes messages of 1 MB, and so smaller events than a receiver with its own.
#[test]
fn events_that_are_larger_than_the_servers_take_get_413() {
    let mut server = NatsServer::start("max_payload: 1048576");
    let target = Target::start(|_| Reply::status(422));
    let setup =
        Setup::embedded().in_stream(&server, "S").set("sinks.web.type", "http").set("sinks.web.url", &*target.url("/"));
    let told = "more than 983040 bytes are answered 413";
    let checked = setup.command().arg("check").output().unwrap();
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    let lines = String::from_utf8(checked.stdout).unwrap();
    assert!(lines.lines().any(|line| line.starts_with("warning") && line.contains(told)), "{lines}");
    let receiver = setup.start();
    receiver.log.wait("the warning", |line| (line.contains(told) && line.contains("WARN")).then_some(()));
    let said = receiver.operate(&["status"]).output().unwrap();
    assert!(String::from_utf8(said.stdout).unwrap().contains("more than 983040 bytes are answered 413"));

    // The largest that gets a 200 fits as a dead letter too.
    let id = new_id();
    let around = event(&id).len();
    receiver.post(big_event(&id, 983_040 - around)).assert_durable("stored", &id);
    receiver.wait_metric("dead_letters", 1);
    let letter = receiver.ask_admin("/api/v1/dead-letters").unwrap().json();
    assert!(letter.to_string().contains(&id), "{letter}");
    // And whatever is as large and is no event, in the quarantine.
    assert_eq!(receiver.post(vec![b'['; 983_040]).status, 400);
    receiver.wait_metric("quarantine_bodies", 1);
    receiver.post(big_event(&new_id(), 1_000_000)).assert_problem(413, "too-large");
    assert_eq!(receiver.metric(r#"rejected_total{reason="too-large"}"#), 1);

    // Lowered while it runs: what was stored before is not stored anew, and larger events are refused for good.
    server.change("max_payload: 1048576", "max_payload: 524288");
    wait_for("the smaller limit to be known", || {
        let status = receiver.ask_admin("/api/v1/status").unwrap().json();
        (status["journal"]["largest_body_bytes"] == 458_752).then_some(())
    });
    receiver.wait_ready();
    let answer = receiver.post(big_event(&new_id(), 500_000));
    answer.assert_problem(413, "too-large");
    let id = new_id();
    receiver.post(big_event(&id, 400_000)).assert_durable("stored", &id);
    receiver.wait_metric("dead_letters", 2);
    receiver.finish();
}

#[test]
fn whether_the_servers_sync_before_they_acknowledge_is_told() {
    let told = |server: &NatsServer, monitor: bool, known: Value| {
        let mut setup = Setup::embedded().in_stream(server, "S");
        if monitor {
            setup = setup.set("journal.nats.monitor_url", &*server.monitor_url());
        }
        let receiver = setup.start();
        let is_known = |status: Value| status["journal"]["cluster"]["sync_always"] == known;
        let status = || receiver.ask_admin("/api/v1/status").unwrap().json();
        wait_for("status to say so, too", || is_known(status()).then_some(()));
        let log = receiver.finish().log;
        log.into_iter().find(|line| line.contains("sync_interval: always")).unwrap_or_default()
    };
    let server = NatsServer::start("");
    let log = told(&server, false, Value::Null);
    assert!(log.contains("is unknown"), "{log}");
    let log = told(&server, true, json!(false));
    assert!(log.contains("up to two minutes"), "{log}");

    let (folder, port) = (TempDir::new().unwrap(), free_port());
    let store = folder.path().join("store");
    let text = format!(
        "listen: 127.0.0.1:{port}\nmax_payload: 2MB\n\
         jetstream {{ store_dir: {store:?}, max_file_store: 1PB, sync_interval: always }}"
    );
    let safe = NatsServer::of(folder, port, &text);
    safe.wait_healthy();
    assert_eq!(told(&safe, true, json!(true)), "");
}

#[test]
fn one_copy_in_a_cluster_is_refused() {
    let cluster = NatsCluster::start("");
    let setup = cluster.journal_of(Setup::embedded());
    refused(&setup.clone().set("journal.nats.replicas", 1), &["journal.nats", "replicas"]);
    refused(&setup.clone().set("journal.nats.replicas", 2), &["journal.nats", "replicas"]);
    works(&setup);
}

/// The address of a server that says it is of this version, and no more.
fn speaks_of_itself(version: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let port = address.port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let info = json!({"server_id": "N", "server_name": "n", "version": version, "proto": 1, "host": "127.0.0.1",
                "port": port, "headers": true, "jetstream": false, "max_payload": 2_097_152, "go": "", "client_id": 1});
            let _ = write!(&stream, "INFO {info}\r\n");
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                if line == "PING" {
                    let _ = write!(&stream, "PONG\r\n");
                }
            }
        }
    });
    format!("nats://{address}")
}

#[test]
fn it_shows_its_certificate() {
    let pki = NatsPki::new();
    let server = NatsServer::start(&pki.server_settings());
    let stranger = Ca::new("somebody else's CA");
    let servers = format!("['{}']", server.url().replace("nats://", "tls://"));
    let setup = Setup::embedded().in_stream(&server, "S").set_toml("journal.nats.servers", &servers);
    let knows = setup.clone().set("journal.nats.ca", &pki.ca.certificate);
    let shows = |setup: &Setup, who: &Identity| {
        setup.clone().set("journal.nats.certificate", &who.chain).set("journal.nats.private_key", &who.key)
    };
    refused(&knows, &["journal.nats"]);
    refused(&shows(&knows, &stranger.client(|_| ())), &["journal.nats"]);
    // Nor does it speak to servers that anybody may be.
    refused(&shows(&setup, &pki.client), &["journal.nats"]);
    let other = shows(&setup, &pki.client).set("journal.nats.ca", &stranger.certificate);
    refused(&other, &["journal.nats"]);
    let plain = shows(&knows, &pki.client).set("journal.nats.certificate", &PathBuf::from("/nowhere.pem"));
    refused(&plain, &["journal.nats.certificate", "/nowhere.pem"]);
    works(&shows(&knows, &pki.client));
}

#[test]
fn it_signs_with_its_key() {
    let (folder, key) = (TempDir::new().unwrap(), KeyPair::new_user());
    let users = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", key.public_key());
    let server = NatsServer::start(&users);
    let setup = Setup::embedded().in_stream(&server, "S");
    refused(&setup, &["journal.nats"]);
    let (own, other) = (folder.path().join("own.nk"), folder.path().join("other.nk"));
    write_private(&own, &format!("{}\n", key.seed().unwrap()));
    write_private(&other, &KeyPair::new_user().seed().unwrap());
    refused(&setup.clone().set("journal.nats.nkey_file", &other), &["journal.nats"]);
    works(&setup.set("journal.nats.nkey_file", &own));
}

#[test]
fn it_shows_its_credentials() {
    let (folder, file) = (TempDir::new().unwrap(), PathBuf::from("receiver.creds"));
    let file = folder.path().join(file);
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let system = KeyPair::new_account();
    let granted = |account, storage| {
        let limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": 0, "disk_storage": storage, "streams": storage, "consumer": storage});
        token(&operator, account, &json!({"type": "account", "version": 2, "limits": limits}))
    };
    let settings = format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {system}: {} }}\nsystem_account: {system}\n",
        token(&operator, &operator, &json!({"type": "operator", "version": 2})),
        account.public_key(),
        granted(&account, -1),
        granted(&system, 0),
        system = system.public_key(),
    );
    let server = NatsServer::start(&settings);
    let setup = Setup::embedded().in_stream(&server, "S").set("journal.nats.credentials_file", &file);
    let says = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
    let write = |issuer: &KeyPair| {
        let (jwt, seed) = (token(issuer, &user, &says), user.seed().unwrap());
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        write_private(&file, &text);
    };
    refused(&setup, &["journal.nats.credentials_file", "cannot be read"]);
    write(&KeyPair::new_account());
    refused(&setup, &["journal.nats"]);
    write(&account);
    works(&setup);
}

/// A JWT as NATS has them: what `issuer` says of `subject`.
fn token(issuer: &KeyPair, subject: &KeyPair, claims: &Value) -> String {
    let head = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let body = json!({"jti": "a test's", "iat": 1_700_000_000, "iss": issuer.public_key(), "name": "test",
        "sub": subject.public_key(), "nats": claims});
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(&head), part(&body));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// The file that goes with config/cluster.toml, but for names, ports and folders.
#[test]
fn the_shipped_settings_of_the_servers_serve_a_receiver() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nats/server.conf")).unwrap();
    let pki = NatsPki::new();
    let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
    let servers: Vec<NatsServer> = (0..3)
        .map(|number| {
            let folder = TempDir::new().unwrap();
            let (client, route) = ports[number];
            let mut text = text.replace("$NATS_NAME", &format!("nats-{}", number + 1));
            for (theirs, ours) in [
                ("http: \"0.0.0.0:8222\"", String::new()),
                ("0.0.0.0:4222", format!("127.0.0.1:{client}")),
                ("0.0.0.0:6222", format!("127.0.0.1:{route}")),
                ("/etc/nats/tls/server.pem", pki.node.chain.display().to_string()),
                ("/etc/nats/tls/server-key.pem", pki.node.key.display().to_string()),
                ("/etc/nats/tls/ca.pem", pki.ca.certificate.display().to_string()),
                ("/var/lib/nats", folder.path().join("store").display().to_string()),
            ] {
                assert!(text.contains(theirs), "{theirs}");
                text = text.replace(theirs, &ours);
            }
            for (other, (_, route)) in ports.iter().enumerate() {
                text = text.replace(&format!("nats-{}.example.com:6222", other + 1), &format!("127.0.0.1:{route}"));
            }
            assert!(!text.contains("example.com") && !text.contains("/etc/"), "{text}");
            NatsServer::of(folder, client, &text)
        })
        .collect();
    servers.iter().for_each(NatsServer::wait_healthy);

    let urls: Vec<String> = servers.iter().map(|server| server.url().replace("nats://", "tls://")).collect();
    let target = Target::start(|_| Reply::status(422));
    let setup = Setup::embedded()
        .set("journal.engine", "nats")
        .set_toml("journal.nats.servers", &json!(urls).to_string())
        .set("journal.nats.ca", &pki.ca.certificate)
        .set("sinks.stdout.type", "stdout")
        .set("sinks.web.type", "http")
        .set("sinks.web.url", &*target.url("/"));
    let named = |name: &str| {
        let who = pki.ca.client(|profile| {
            profile.distinguished_name = rcgen::DistinguishedName::new();
            profile.distinguished_name.push(rcgen::DnType::CommonName, name);
        });
        setup.clone().set("journal.nats.certificate", &who.chain).set("journal.nats.private_key", &who.key)
    };
    refused(&named("somebody"), &["journal.nats"]);
    let receiver = named("asapp-receiver").start();
    let (id, event) = new_event();
    receiver.post(&event).assert_durable("stored", &id);
    assert_eq!(receiver.delivered(&id), event);
    wait_for("a dead letter", || (receiver.sink("web")["dead_lettered"] == 1).then_some(()));
    receiver.post("no JSON").assert_problem(400, "malformed");
    wait_for("the quarantine", || (bodies(&receiver) == 1).then_some(()));
    receiver.finish();
}

fn bodies(receiver: &Receiver) -> u64 {
    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    status["quarantine"]["count"].as_u64().unwrap()
}

#[test]
fn while_the_servers_are_away_it_is_not_ready_and_refuses_and_then_goes_on() {
    let mut server = NatsServer::start("");
    let receiver = Setup::embedded().in_stream(&server, "S").set("listen.answer_within", "6s");
    let receiver = receiver.set("journal.nats.ack_timeout", "1s").start();
    let (known, first) = new_event();
    receiver.post(&first).assert_durable("stored", &known);
    receiver.sink_settled("stdout");
    for _ in 0..2 {
        server.kill();
        wait_for("it to be not ready", || {
            let answer = receiver.ask_admin("/readyz").unwrap();
            (answer.status == 503 && answer.json()["reason"] == "journal unreachable").then_some(())
        });
        let (id, event) = new_event();
        receiver.post(&event).assert_unavailable();
        // It may have been stored.
        receiver.post(&first).assert_unavailable();
        server.start_again();
        receiver.wait_ready();
        receiver.post(&first).assert_durable("duplicate", &known);
        receiver.post(&event).assert_durable("stored", &id);
        assert_eq!(receiver.delivered(&id), event);
    }
    assert_eq!(receiver.sink_settled("stdout")["delivered"], 3);
    receiver.finish();
}

#[test]
fn a_full_stream_refuses_until_there_is_room() {
    let server = NatsServer::start("");
    let mut pipe = Pipe::new();
    let setup = Setup::embedded().in_stream(&server, "S").set("journal.nats.max_bytes", "2MiB").stdout_to(&pipe.path());
    let receiver = setup.set("journal.retention", "0s").start();
    let mut stored = Vec::new();
    let refused = loop {
        let id = new_id();
        let answer = receiver.post(big_event(&id, 50_000));
        if answer.status != 200 {
            break answer;
        }
        stored.push(id);
        assert!(stored.len() < 100, "it never was full");
    };
    refused.assert_unavailable();
    assert!(stored.len() > 20, "{}", stored.len());
    wait_for("it to be full", || {
        (receiver.ask_admin("/readyz").unwrap().json()["reason"] == "journal full").then_some(())
    });

    pipe.read();
    receiver.wait_ready();
    let id = new_id();
    receiver.post(big_event(&id, 50_000)).assert_durable("stored", &id);
    receiver.sink_settled("stdout");
    receiver.finish();
    let lines = pipe.lines();
    for id in stored.iter().chain([&id]) {
        assert_eq!(lines.iter().filter(|line| line.contains(id)).count(), 1, "{id}");
    }
}

#[test]
fn in_a_full_stream_what_only_optional_sinks_have_not_had_yields() {
    let server = NatsServer::start("");
    let mut pipe = Pipe::new();
    let setup = Setup::embedded()
        .in_stream(&server, "S")
        .set("journal.nats.max_bytes", "2MiB")
        .set("sinks.spare.type", "stdout")
        .set("sinks.spare.required", false)
        .stdout_to(&pipe.path());
    let receiver = setup.start();
    // Nobody reads of it, and there is room again each time after a while.
    let mut last = String::new();
    for _ in 0..48 {
        last = new_id();
        let event = big_event(&last, 50_000);
        wait_for("room", || (receiver.post(&event).status == 200).then_some(()));
    }
    let evicted = receiver.sink("spare")["evicted"].as_u64().unwrap();
    assert!(evicted > 4, "{evicted}");
    pipe.read();
    let sink = receiver.sink_settled("spare");
    assert_eq!(sink["delivered"].as_u64().unwrap() + sink["evicted"].as_u64().unwrap(), 48, "{sink}");
    receiver.finish();
    assert!(pipe.lines().last().is_some_and(|line| line.contains(&last)));
}

#[test]
fn two_receivers_are_one_to_senders_and_operators() {
    let server = NatsServer::start("");
    let target = Target::start(|_| Reply::status(422));
    let receivers = [0, 1].map(|_| {
        let setup = Setup::embedded().in_stream(&server, "S").set("sinks.stdout.type", "stdout");
        setup.set("sinks.web.type", "http").set("sinks.web.url", &*target.url("/")).start()
    });

    // The same new event at both at once.
    for _ in 0..20 {
        let body = event(&new_id());
        let mut words: Vec<String> = thread::scope(|scope| {
            let body = &body;
            let post = |receiver| scope.spawn(move || Receiver::post(receiver, body).json()["status"].to_string());
            receivers.each_ref().map(post).map(|thread| thread.join().unwrap()).to_vec()
        });
        words.sort();
        assert_eq!(words, [r#""duplicate""#, r#""stored""#]);
    }
    // A second event with a known id, and what is none.
    let (id, first) = new_event();
    receivers[0].post(&first).assert_durable("stored", &id);
    receivers[1].post(first.replace("hello", "goodbye")).assert_durable("duplicate", &id);
    receivers[0].post("no JSON").assert_problem(400, "malformed");
    receivers[1].post("no JSON").assert_problem(400, "malformed");

    let account = json!({"stored": 21, "delivered": 21, "dead_lettered": 0, "pending": 0});
    let dead = json!({"stored": 21, "delivered": 0, "dead_lettered": 21, "pending": 0});
    for receiver in &receivers {
        let is = |sink: &str, wanted: &Value| {
            let found = receiver.sink(sink);
            wanted.as_object().unwrap().iter().all(|(word, count)| found[word] == *count).then_some(())
        };
        wait_for("both to say the same of stdout", || is("stdout", &account));
        wait_for("both to say the same of web", || is("web", &dead));
        wait_for("both to know of the quarantine", || (bodies(receiver) == 2).then_some(()));
    }
    let lines = || receivers.iter().flat_map(|receiver| receiver.stdout.so_far()).count();
    wait_for("their lines", || (lines() >= 21).then_some(()));
    assert_eq!(lines(), 21, "once, by one of them");

    // Dead letters are retried by whoever delivers, whoever was asked.
    target.answer(|_| Reply::status(200));
    let listed = receivers[0].ask_admin("/api/v1/dead-letters?limit=10").unwrap().json();
    let letters = listed["dead_letters"].as_array().unwrap();
    let some: Vec<&Value> = letters.iter().map(|letter| &letter["id"]).collect();
    for (receiver, which, left) in [(&receivers[0], json!({"ids": some}), 11), (&receivers[1], json!({"all": true}), 0)]
    {
        let answer = receiver.call_admin("POST", "/api/v1/dead-letters/retry", &which.to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
        let is_left = |one: &Receiver| one.sink("web")["dead_lettered"] == left;
        wait_for("them to be delivered", || receivers.iter().all(is_left).then_some(()));
    }
    receivers.into_iter().for_each(|receiver| drop(receiver.finish()));
}

#[test]
fn what_a_killed_receiver_was_doing_another_one_goes_on_with() {
    const COUNT: usize = 40;
    let server = NatsServer::start("");
    let target = Target::start(|_| Reply::status(422));
    let [killed, left] = [0, 1].map(|_| {
        let setup = Setup::embedded().in_stream(&server, "S").set("sinks.stdout.type", "stdout");
        let setup = setup.set("sinks.web.type", "http").set("sinks.web.url", &*target.url("/"));
        setup.set("sinks.web.timeout", "1s").set("sinks.web.retry.max_backoff", "200ms").start()
    });
    killed.store(COUNT);
    wait_for("dead letters", || (left.sink("web")["dead_lettered"] == COUNT).then_some(()));

    // Both have some of them in hand, and get no answer.
    target.answer(|_| Reply::hang());
    target.forget();
    let retried = killed.call_admin("POST", "/api/v1/dead-letters/retry", r#"{"all":true}"#).json();
    assert_eq!(retried["retried"], COUNT, "{retried}");
    target.wait_requests(4);
    let body = r#"{"sink":"stdout","from":1,"rate":10}"#;
    let begun = killed.call_admin("POST", "/api/v1/replay", body).json();
    let replay = format!("/api/v1/replay/{}", begun["id"]);
    let delivered = |progress: &Value| progress["delivered"].as_u64().unwrap_or(0);
    wait_for("copies", || (delivered(&killed.ask_admin(&replay).unwrap().json()) >= 20).then_some(()));
    assert_eq!(left.ask_admin(&replay).unwrap().status, 404);
    killed.kill();
    target.answer(|_| Reply::status(204));

    let progress = wait_for("the replay to be another one's", || {
        Some(left.ask_admin(&replay).unwrap()).filter(|answer| answer.status == 200)
    });
    assert!(delivered(&progress.json()) >= 5, "it begins where it was: {}", progress.text());
    wait_for("its end", || (left.ask_admin(&replay).unwrap().json()["state"] == "done").then_some(()));
    wait_for("all letters to be delivered", || (left.sink("web")["delivered"] == COUNT).then_some(()));
    let account = left.sink("web");
    assert_eq!((&account["dead_lettered"], &account["pending"]), (&json!(0), &json!(0)), "{account}");
    let next = left.call_admin("POST", "/api/v1/replay", body).json();
    assert!(next["id"].as_u64() > begun["id"].as_u64(), "{next} after {begun}");
    left.finish();
}
