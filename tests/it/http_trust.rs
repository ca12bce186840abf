//! FAULTS "Sinks" over HTTP: whom a sink trusts, and how it shows itself: certificates, tokens, signatures.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rcgen::ExtendedKeyUsagePurpose;
use time::{Duration, OffsetDateTime};

use crate::harness::chains::hostile;
use crate::harness::pki::{Ca, Identity, Key, PKI, authority_name, write_private};
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::target::{Reply, Request, Target};
use crate::harness::wait_for;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn to(url: &str) -> Setup {
    Setup::new()
        .set("sinks.web.type", "http")
        .set("sinks.web.url", url)
        .set("sinks.web.retry.max_backoff", "200ms")
        .set("sinks.web.timeout", "60s")
}

fn ok(_: &Request) -> Reply {
    Reply::status(204)
}

/// The event is delivered.
#[track_caller]
fn assert_delivers(setup: &Setup) {
    let receiver = setup.start();
    receiver.store(1);
    receiver.sink_settled("web");
    receiver.finish();
}

/// The event is not delivered, for a reason with these words.
#[track_caller]
fn assert_fails(setup: &Setup, words: &[&str]) {
    let receiver = setup.start();
    receiver.store(1);
    failing(&receiver, words);
    receiver.finish();
}

#[track_caller]
fn failing(receiver: &Receiver, words: &[&str]) {
    wait_for(&format!("{words:?} as the last error"), || {
        let sink = receiver.sink("web");
        let error = sink["last_error"].as_str()?;
        (sink["pending"] != 0 && words.iter().all(|word| error.contains(word))).then_some(())
    });
}

/// The receiver does not start, and `check` sees it coming; both say so with these words.
#[track_caller]
fn assert_no_start(setup: &Setup, words: &[&str]) {
    let ended = setup.start_in_vain();
    let checked = setup.command().arg("check").output().unwrap();
    assert!(!ended.status.success() && !checked.status.success());
    for text in [ended.log.join("\n"), String::from_utf8(checked.stdout).unwrap()] {
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in\n{text}");
        assert!(!text.contains(SECRET), "{text}");
    }
}

#[test]
fn a_target_is_trusted_by_the_ca_of_the_settings_or_the_systems() {
    let target = Target::start_tls(&PKI.server, None, ok);
    let url = target.url("/");
    assert_delivers(&to(&url).set("sinks.web.tls.ca", [&PKI.ca.certificate]));
    // Where the system's CAs are, the usual variable tells.
    let system = format!("SSL_CERT_FILE={}", PKI.ca.certificate.display());
    assert_delivers(&to(&url).through(&["env", "-u", "SSL_CERT_DIR", &system]));
    let other = Ca::new("Another CA");
    assert_fails(&to(&url).set("sinks.web.tls.ca", [&other.certificate]), &["cannot trust localhost", "tls.ca"]);
    // The settings' CAs are the only ones then.
    let both = to(&url).through(&["env", &system]).set("sinks.web.tls.ca", [&other.certificate]);
    assert_fails(&both, &["cannot trust localhost"]);
    assert_eq!(target.requests().len(), 2);
}

#[test]
fn a_target_with_an_expired_or_a_foreign_certificate_gets_nothing() {
    let expired = PKI.ca.server(|profile| profile.not_after = OffsetDateTime::now_utc() - Duration::minutes(30));
    let target = Target::start_tls(&expired, None, ok);
    let ca = |url: &str| to(url).set("sinks.web.tls.ca", [&PKI.ca.certificate]);
    assert_fails(&ca(&target.url("/")), &["cannot trust localhost", "expired"]);
    let foreign = PKI.ca.server(|profile| profile.subject_alt_names = Vec::new());
    let other = Target::start_tls(&foreign, None, ok);
    assert_fails(&ca(&other.url("/")), &["cannot trust localhost"]);
    // What speaks no TLS.
    let plain = Target::start(ok);
    let url = plain.url("/").replace("http:", "https:");
    assert_fails(&ca(&url), &["cannot connect to 127.0.0.1"]);
    assert!(target.requests().is_empty() && other.requests().is_empty() && plain.requests().is_empty());
}

/// The event waits, nothing is sent, and a target's certificates keep no worker busy.
#[test]
fn a_chain_that_a_target_made_up_is_refused_for_next_to_nothing() {
    let chains = hostile(&authority_name(), &ExtendedKeyUsagePurpose::ServerAuth);
    let start = |chain| Target::start_tls(&Identity::made_up(chain), None, ok);
    let targets: Vec<Target> = chains.iter().map(start).collect();
    let setup = targets.iter().enumerate().fold(Setup::new(), |setup, (number, target)| {
        let key = |key: &str| format!("sinks.web-{number}.{key}");
        let setup = setup.set(&key("type"), "http").set(&key("url"), &*target.url("/"));
        let setup = setup.set(&key("tls.ca"), [&PKI.ca.certificate]);
        setup.set(&key("retry.initial_backoff"), "1h").set(&key("retry.max_backoff"), "1h")
    });
    let receiver = setup.start();
    let before = receiver.cpu();
    receiver.store(1);
    for (number, (chain, target)) in chains.iter().zip(&targets).enumerate() {
        let error = wait_for(chain.what, || {
            let error = receiver.sink(&format!("web-{number}"))["last_error"].as_str()?.to_owned();
            error.contains("cannot trust localhost").then_some(error)
        });
        assert!(error.len() < 1024, "{}: {error}", chain.what);
        assert!(target.requests().is_empty());
    }
    let spent = receiver.cpu() - before;
    assert!(spent < std::time::Duration::from_secs(10), "{spent:?}");
}

#[test]
fn a_sink_shows_its_certificate() {
    let authority = Ca::new("The target's CA");
    let client = authority.client(|_| ());
    let target = Target::start_tls(&PKI.server, Some(&authority), ok);
    let anonymous = to(&target.url("/")).set("sinks.web.tls.ca", [&PKI.ca.certificate]);
    assert_fails(&anonymous, &["localhost", "CertificateRequired"]);
    let with = |chain: &PathBuf, key: &PathBuf| {
        anonymous.clone().set("sinks.web.tls.certificate", chain).set("sinks.web.tls.private_key", key)
    };
    assert_delivers(&with(&client.chain, &client.key));
    assert_fails(&with(&PKI.client.chain, &PKI.client.key), &["localhost"]);
    assert_no_start(&with(&client.chain, &PKI.client.key), &["sinks.web.tls.private_key", "does not go with"]);
    let rsa = authority.issue(Key::Rsa2048, crate::harness::pki::client_profile());
    assert_delivers(&with(&rsa.chain, &rsa.key));
}

#[test]
fn files_that_cannot_be_used_stop_the_start() {
    let setup = to("https://localhost:1/");
    let file = |name: &str, text: &str| {
        let path = setup.folder().join(name);
        write_private(&path, text);
        path
    };
    let (missing, empty) = (setup.folder().join("missing"), file("empty", " \n"));
    let none: PathBuf = file("none", "no PEM");
    let shown = |path: &Path| path.to_str().unwrap().to_owned();
    for key in ["tls.ca", "tls.certificate", "bearer_token_file", "signing_secret_file"] {
        for path in [&missing, &empty] {
            let setup = match key {
                "tls.ca" => setup.clone().set("sinks.web.tls.ca", [path]),
                "tls.certificate" => setup
                    .clone()
                    .set("sinks.web.tls.ca", [&PKI.ca.certificate])
                    .set("sinks.web.tls.certificate", path)
                    .set("sinks.web.tls.private_key", &PKI.client.key),
                key => {
                    setup.clone().set("sinks.web.tls.ca", [&PKI.ca.certificate]).set(&format!("sinks.web.{key}"), path)
                }
            };
            assert_no_start(&setup, &[&format!("sinks.web.{key}"), &shown(path)]);
        }
    }
    let setup = setup.clone().set("sinks.web.tls.ca", [&PKI.ca.certificate]);
    assert_no_start(
        &setup.clone().set("sinks.web.tls.ca", [&none]),
        &["sinks.web.tls.ca", &shown(&none), "no PEM certificate"],
    );
    assert_no_start(
        &setup.clone().set("sinks.web.tls.certificate", &PKI.client.chain).set("sinks.web.tls.private_key", &none),
        &["sinks.web.tls.private_key", &shown(&none), "passphrase"],
    );
    let two_words = file("two-words", "a token");
    assert_no_start(&setup.clone().set("sinks.web.bearer_token_file", &two_words), &["one word"]);
    let short = file("short", &format!("{SECRET} whsec_c2hvcnQ="));
    assert_no_start(&setup.set("sinks.web.signing_secret_file", &short), &["24"]);
}

#[test]
fn secrets_that_anyone_can_read_are_warned_about() {
    let target = Target::start(ok);
    let setup = to(&target.url("/"));
    let token = setup.folder().join("token");
    fs::write(&token, "t0ken").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let receiver = setup.set("sinks.web.bearer_token_file", &token).start();
    receiver.log.wait("the warning", |line| {
        let line = log_line(line)?;
        (line["level"] == "WARN" && line["key"] == "bearer_token_file").then_some(())
    });
    receiver.finish();
}

/// Exchanged as Kubernetes does it: the file is a symbolic link into a folder that is a symbolic link.
#[test]
fn a_new_token_is_used_from_when_it_is_there() {
    let target = Target::start(|request| match request.header("authorization") {
        Some("Bearer first") => Reply::status(204),
        _ => Reply::status(403),
    });
    let setup = to(&target.url("/"));
    let folder = setup.folder().join("secret");
    let publish = |token: &str| {
        fs::create_dir_all(folder.join(token)).unwrap();
        write_private(&folder.join(token).join("token"), &format!("{token}\n"));
        let next = folder.join("next");
        symlink(token, &next).unwrap();
        #[allow(clippy::disallowed_methods, reason = "as Kubernetes does it")]
        fs::rename(next, folder.join("data")).unwrap();
    };
    publish("first");
    symlink("data/token", folder.join("token")).unwrap();
    let receiver = setup.set("sinks.web.bearer_token_file", &folder.join("token")).start();
    receiver.store(1);
    receiver.sink_settled("web");

    target.answer(|request| match request.header("authorization") {
        Some("Bearer second") => Reply::status(204),
        _ => Reply::status(401),
    });
    receiver.store(1);
    failing(&receiver, &["401", "bearer_token_file"]);
    publish("second");
    receiver.sink_settled("web");

    // Without a token nothing is sent, not even the old one.
    fs::remove_file(folder.join("data")).unwrap();
    receiver.store(1);
    let delivered_before_it_showed = wait_for("the loss of the token to show", || {
        let sink = receiver.sink("web");
        if sink["pending"] == 0 {
            receiver.store(1);
        }
        let error = sink["last_error"].as_str()?;
        error.contains("bearer_token_file").then(|| (target.requests().len(), error.to_owned()))
    });
    assert!(delivered_before_it_showed.1.contains("cannot be read"), "{}", delivered_before_it_showed.1);
    receiver.wait_metric("sink_failures_total", receiver.metric("sink_failures_total") + 3);
    assert_eq!(target.requests().len(), delivered_before_it_showed.0);
    publish("second");
    receiver.sink_settled("web");
    let log = receiver.finish().log.join("\n");
    assert!(!log.contains("second\n") && !log.contains("Bearer"), "{log}");
}
