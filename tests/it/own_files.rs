//! FAULTS "Storage": a sink's `path` that is the journal's, another sink's, a key, the settings. Names are not compared,
//! but what they lead to.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::not_tested;
use crate::harness::pki::PKI;
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::wait_for;
use crate::sinks::events;

/// With copies of the TLS files, which a test may damage, and a journal that was in use.
fn used() -> Setup {
    let setup = Setup::embedded();
    let own = |name: &str, from: &Path| {
        let copy = setup.folder().join(name);
        fs::copy(from, &copy).unwrap();
        copy
    };
    let (chain, key) = (own("server.pem", &PKI.server.chain), own("server-key.pem", &PKI.server.key));
    let (ca, token) = (own("ca.pem", &PKI.ca.certificate), setup.folder().join("token"));
    fs::write(&token, "a-token-of-the-test\n").unwrap();
    let setup = setup
        .set("tls.certificate", &chain)
        .set("tls.private_key", &key)
        .set("tls.client_ca", [&ca])
        .set("admin.token_file", &token)
        .set("sinks.web.type", "http")
        .set("sinks.web.url", "http://127.0.0.1:1/")
        .set("sinks.web.bearer_token_file", &token);
    setup.start().stop();
    assert!(setup.journal().join("journal.db").exists());
    setup
}

fn to_file(setup: Setup, sink: &str, path: &Path) -> Setup {
    let key = |key: &str| format!("sinks.{sink}.{key}");
    setup.set(&key("type"), "file").set(&key("path"), &path.to_owned()).set(&key("retry.max_backoff"), "300ms")
}

/// Neither `check` nor `serve` takes these settings, for a reason that has these words.
#[track_caller]
fn refused(setup: &Setup, words: &[&str]) {
    let checked = setup.command().arg("check").output().unwrap();
    let said = String::from_utf8_lossy(&checked.stdout);
    let is_it = |line: &str| line.starts_with("error") && words.iter().all(|word| line.contains(word));
    assert!(said.lines().any(is_it), "{words:?} in {said}");
    assert_eq!(checked.status.code(), Some(78), "{said}");
    let ended = setup.start_in_vain();
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(ended.log.iter().any(|line| words.iter().all(|word| line.contains(word))), "{words:?} in {ended:?}");
}

#[test]
fn no_sink_writes_to_a_file_that_is_the_receivers_own() {
    let setup = used();
    let at = |name: &str| setup.folder().join(name);
    symlink("journal", at("linked")).unwrap();
    symlink("server-key.pem", at("soft")).unwrap();
    for (name, of) in [("hard-key", "server-key.pem"), ("hard-mark", "journal/mark"), ("hard-token", "token")] {
        fs::hard_link(at(of), at(name)).unwrap();
    }
    let files = ["server-key.pem", "server.pem", "ca.pem", "token", "journal/journal.db", "journal/mark"];
    let before = files.map(|file| fs::read(at(file)).unwrap());
    for (path, key) in [
        ("journal/journal.db", "journal.path"),
        ("journal/events.jsonl", "journal.path"),
        ("journal/../journal/lock", "journal.path"),
        ("none/../journal/journal.db-wal", "journal.path"),
        ("linked/ballast", "journal.path"),
        ("linked/deeper/events.jsonl", "journal.path"),
        ("hard-mark", "journal.path"),
        ("journal", "journal.path"),
        ("server-key.pem", "tls.private_key"),
        ("journal/../server-key.pem", "tls.private_key"),
        ("soft", "tls.private_key"),
        ("hard-key", "tls.private_key"),
        ("server.pem", "tls.certificate"),
        ("ca.pem", "tls.client_ca"),
        ("hard-token", "sinks.web.bearer_token_file"),
        ("settings.toml", "--config"),
        ("./linked/../settings.toml", "--config"),
    ] {
        refused(&to_file(setup.clone(), "out", &at(path)), &["sinks.out.path", key]);
    }
    let without = setup.clone().without("sinks.web.bearer_token_file");
    refused(&to_file(without, "out", &at("token")), &["sinks.out.path", "admin.token_file"]);
    assert!(files.map(|file| fs::read(at(file)).unwrap()) == before, "something was written");
    assert!(!at("journal/events.jsonl").exists());
}

#[test]
fn two_sinks_never_write_to_one_file() {
    let setup = Setup::embedded();
    let at = |name: &str| setup.folder().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    symlink("a", at("linked")).unwrap();
    symlink("new.jsonl", at("a/dangling")).unwrap();
    symlink(at("later"), at("to-later")).unwrap();
    fs::write(at("a/old.jsonl"), "").unwrap();
    fs::hard_link(at("a/old.jsonl"), at("a/hard.jsonl")).unwrap();
    for (one, other) in [
        ("a/new.jsonl", "a/new.jsonl"),
        ("a/new.jsonl", "a/b/../new.jsonl"),
        ("a/new.jsonl", "linked/./new.jsonl"),
        ("a/dangling", "linked/new.jsonl"),
        ("a/old.jsonl", "a/hard.jsonl"),
        // Not even the folder is there yet.
        ("later/new.jsonl", "to-later/new.jsonl"),
        ("later/new.jsonl", "later/x/../new.jsonl"),
    ] {
        let both = to_file(to_file(setup.clone(), "one", &at(one)), "other", &at(other));
        refused(&both, &["sinks.other.path", "sinks.one.path", "lead to the same file"]);
    }
    let mounted = at("mounted");
    fs::create_dir(&mounted).unwrap();
    if Command::new("mount").arg("--bind").args([&at("a"), &mounted]).status().unwrap().success() {
        let both = to_file(to_file(setup.clone(), "one", &at("a/new.jsonl")), "other", &mounted.join("new.jsonl"));
        refused(&both, &["sinks.other.path", "sinks.one.path", "lead to the same file"]);
        assert!(Command::new("umount").arg(&mounted).status().unwrap().success());
    } else {
        not_tested("folders cannot be mounted here");
    }
    // Names that only look alike.
    let different = to_file(to_file(setup.clone(), "one", &at("a/new.jsonl")), "other", &at("a/b/new.jsonl"));
    different.start().finish();
}

#[test]
fn what_one_sink_takes_for_its_rotated_file_is_no_other_ones() {
    let setup = Setup::embedded();
    let at = |name: &str| setup.folder().join(name);
    let stamp = ".20260101T000000.000Z";
    symlink(setup.folder(), at("linked")).unwrap();
    let words = ["sinks.one.path", "sinks.other.path", "named like a rotated file"];
    for (one, other) in [
        (format!("events{stamp}"), "events".to_owned()),
        ("events".to_owned(), format!("linked/events{stamp}.gz")),
        ("none/events".to_owned(), format!("none/events{stamp}.zst.tmp")),
    ] {
        refused(&to_file(to_file(setup.clone(), "one", &at(&one)), "other", &at(&other)), &words);
    }
    let key = at(&format!("events{stamp}"));
    fs::copy(&PKI.server.key, &key).unwrap();
    let setup = to_file(setup.clone(), "one", &at("events")).set("tls.private_key", &key);
    refused(&setup, &["tls.private_key", "sinks.one.path", "named like a rotated file"]);
}

#[test]
fn what_standard_output_and_error_go_to_is_no_sinks() {
    let setup = Setup::embedded();
    let (out, log) = (setup.folder().join("out.jsonl"), setup.folder().join("log.jsonl"));
    let vain = |setup: &Setup, words: &[&str], log: Option<&Path>| {
        let ended = setup.start_in_vain();
        assert_eq!(ended.status.code(), Some(78), "{ended:?}");
        let said = log.map_or_else(|| ended.log.join("\n"), |log| fs::read_to_string(log).unwrap());
        assert!(words.iter().all(|word| said.contains(word)), "{words:?} in {said}");
    };
    let shared = to_file(setup.clone(), "file", &out).set("sinks.stdout.type", "stdout").stdout_to(&out);
    vain(&shared, &["sinks.file.path", "standard output", "lead to the same file"], None);
    let script = format!("exec \"$0\" \"$@\" 2>>{}", log.display());
    let shared = to_file(setup.clone(), "file", &log).through(&["sh", "-c", &script]);
    vain(&shared, &["sinks.file.path", "standard error", "lead to the same file"], Some(&log));
    // The log in the journal's folder is nobody's events, and yet.
    let setup = setup.clone().stdout_to(&setup.folder().join("lines.jsonl"));
    fs::create_dir(setup.journal()).unwrap();
    vain(&setup.clone().stdout_to(&setup.journal().join("mark")), &["standard output", "journal.path"], None);
    setup.start().finish();
}

/// Waits until the sink fails for a reason that has these words.
#[track_caller]
fn failing(receiver: &Receiver, sink: &str, words: &[&str]) -> Value {
    wait_for(&format!("the failure {words:?} of {sink} to show"), || {
        let sink = receiver.sink(sink);
        let said = sink["last_error"].as_str()?;
        (sink["state"] == "failing" && words.iter().all(|word| said.contains(word))).then_some(sink)
    })
}

fn lead(link: &Path, to: &Path) {
    let new = link.with_extension("new");
    symlink(to, &new).unwrap();
    rename(&new, link);
}

#[expect(clippy::disallowed_methods, reason = "it need not survive a power cut")]
fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_link_that_is_swapped_while_it_runs_leads_to_no_other_file() {
    let setup = used();
    let at = |name: &str| setup.folder().join(name);
    fs::create_dir(at("a")).unwrap();
    fs::create_dir(at("b")).unwrap();
    lead(&at("way"), &at("a"));
    let file: PathBuf = at("way/events.jsonl");
    let setup = to_file(to_file(setup.clone(), "swapped", &file), "other", &at("b/events.jsonl"));
    let setup = setup.without("admin.token_file").set("sinks.swapped.rotate_bytes", 1_000_000);
    let receiver = setup.start();
    let mut expected = events(&receiver.store(2));
    receiver.sink_settled("swapped");

    lead(&at("way"), &at("b"));
    expected.extend(events(&receiver.store(2)));
    failing(&receiver, "swapped", &["events.jsonl leads to the same file as sinks.other.path"]);
    receiver.sink_settled("other");
    assert_eq!(lines(&at("b/events.jsonl")), expected, "each line once");

    lead(&at("way"), &setup.journal());
    failing(&receiver, "swapped", &["events.jsonl leads into the folder of journal.path"]);
    assert!(!setup.journal().join("events.jsonl").exists());

    fs::create_dir(at("c")).unwrap();
    fs::hard_link(at("server-key.pem"), at("c/events.jsonl")).unwrap();
    lead(&at("way"), &at("c"));
    failing(&receiver, "swapped", &["events.jsonl leads to the same file as tls.private_key"]);

    lead(&at("way"), &at("a"));
    expected.extend(events(&receiver.store(2)));
    receiver.sink_settled("swapped");
    receiver.sink_settled("other");
    assert_eq!(lines(&at("a/events.jsonl")), expected);
    assert_eq!(lines(&at("b/events.jsonl")), expected);
    assert_eq!(fs::read(at("server-key.pem")).unwrap(), fs::read(&PKI.server.key).unwrap());
    receiver.stop();
}

#[test]
fn the_files_of_a_set_that_is_taken_while_it_runs_are_no_sinks_either() {
    let setup = used();
    let at = |name: &str| setup.folder().join(name);
    for folder in ["a", "b", "c", "d"] {
        fs::create_dir(at(folder)).unwrap();
    }
    lead(&at("way"), &at("a"));
    let setup = to_file(setup.clone(), "swapped", &at("way/events.jsonl"));
    let setup = setup.without("admin.token_file").set("tls.reload_interval", "50ms");
    let receiver = setup.start();
    let mut expected = events(&receiver.store(2));
    receiver.sink_settled("swapped");

    let key = at("c/events.jsonl");
    fs::copy(at("server-key.pem"), &key).unwrap();
    fs::hard_link(&key, at("d/events.jsonl")).unwrap();
    let renewed = setup.clone().set("tls.private_key", &key);
    renewed.write();
    receiver.wait_metric("reloads_total", 1);
    expected.extend(events(&receiver.store(1)));
    receiver.sink_settled("swapped");
    for folder in ["c", "d"] {
        lead(&at("way"), &at(folder));
        expected.extend(events(&receiver.store(2)));
        failing(&receiver, "swapped", &["events.jsonl leads to the same file as tls.private_key"]);
        // The one of the start is still its own: a restart with the old settings may need it.
        lead(&at("way"), &at("b"));
        receiver.sink_settled("swapped");
    }
    fs::hard_link(at("server-key.pem"), at("b/old")).unwrap();
    rename(&at("b/events.jsonl"), &at("b/first"));
    rename(&at("b/old"), &at("b/events.jsonl"));
    let held_up = receiver.store(1);
    failing(&receiver, "swapped", &["events.jsonl leads to the same file as tls.private_key"]);
    lead(&at("way"), &at("a"));
    receiver.sink_settled("swapped");
    expected.extend(events(&held_up));

    // The settings say that the sink writes elsewhere, which applies after a restart only.
    fs::copy(&key, at("a/then")).unwrap();
    let elsewhere = to_file(renewed, "swapped", &at("elsewhere.jsonl"));
    rename(&at("a/events.jsonl"), &at("a/last"));
    rename(&at("a/then"), &at("a/events.jsonl"));
    elsewhere.set("tls.private_key", &at("a/events.jsonl")).write();
    let problem = wait_for("the set to be refused", || {
        let status = receiver.ask_admin("/api/v1/status").unwrap().json();
        Some(status["reload"]["problems"][0].as_str()?.to_owned())
    });
    for word in ["sinks.swapped.path", "tls.private_key", "lead to the same file"] {
        assert!(problem.contains(word), "{problem}");
    }
    assert_eq!(receiver.metric("reloads_total"), 1);

    let written: Vec<String> = ["a/last", "b/first"].iter().flat_map(|file| lines(&at(file))).collect();
    assert_eq!(written.len(), expected.len());
    assert!(expected.iter().all(|event| written.contains(event)), "{written:?}");
    for key in [&key, &at("server-key.pem"), &at("a/events.jsonl")] {
        assert_eq!(fs::read(key).unwrap(), fs::read(&PKI.server.key).unwrap(), "{key:?}");
    }
    receiver.stop();
}

#[test]
fn a_ledger_takes_the_place_of_a_ledger_only() {
    let setup = Setup::embedded();
    let receiver = setup.start();
    let key = setup.folder().join("client-key.pem");
    fs::copy(&PKI.client.key, &key).unwrap();
    let simulate = |ledger: &Path| {
        let mut command = receiver.operate(&[]);
        command = Command::new(command.get_program());
        command.args(["simulate", "--events", "3", "--rate", "1000", "--url"]);
        command.arg(format!("https://localhost:{}/events", receiver.events.port()));
        command.arg("--ca").arg(&PKI.ca.certificate).arg("--cert").arg(&PKI.client.chain);
        command.arg("--key").arg(&key).arg("--ledger").arg(ledger).output().unwrap()
    };
    let events_file = setup.folder().join("events.jsonl");
    fs::write(&events_file, "{\"event_id\":\"1\"}\n").unwrap();
    for foreign in [&key, &events_file] {
        let before = fs::read(foreign).unwrap();
        let refused = simulate(foreign);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("is no ledger"), "{refused:?}");
        assert_eq!(fs::read(foreign).unwrap(), before);
    }
    let ledger = setup.folder().join("ledger.jsonl");
    for _ in 0..2 {
        let run = simulate(&ledger);
        assert!(run.status.success(), "{run:?}");
        assert_eq!(lines(&ledger).len(), 3);
    }
    receiver.stop();
}
