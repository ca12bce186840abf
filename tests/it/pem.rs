//! FAULTS "PEM file of several blocks": taken whole where it is unambiguous, else refused with file, line and remedy.

use std::fs;
use std::path::PathBuf;

use rcgen::SerialNumber;
use time::{Duration, OffsetDateTime};

use crate::harness::event::new_event;
use crate::harness::pki::{Ca, Identity, PKI};
use crate::harness::receiver::{Receiver, Setup};
use crate::harness::target::{Reply, Target};
use crate::harness::wait_for;
use crate::harness::wire::{End, Wire, tls};

const REVOKED: u64 = 4711;
/// Makes one file of two.
type Together = fn(&str, &str) -> String;

/// Ways to put two PEM files into one that leave no doubt what is meant.
const UNAMBIGUOUS: [(&str, Together); 8] = [
    ("one after the other", |one, two| format!("{one}{two}")),
    ("no newline between", |one, two| format!("{}{two}", one.trim_end())),
    ("byte order marks", |one, two| format!("\u{feff}{one}\u{feff}{two}")),
    ("a byte order mark and no newline", |one, two| format!("\u{feff}{}\u{feff}{two}", one.trim_end())),
    ("lines as in Windows", |one, two| format!("{one}{two}").replace("\r\n", "\n").replace('\n', "\r\n")),
    ("indented", |one, two| format!("{one}{two}").lines().map(|line| format!("    {line}\n")).collect()),
    ("no newline at the end", |one, two| format!("{one}{}", two.trim_end())),
    ("text between", |one, two| {
        format!("Bag Attributes\n    friendlyName: a\n{one}\n# the other one, 2026:\n{two}bye\n")
    }),
];
/// Ways that leave a doubt, and what is said of them.
const AMBIGUOUS: [(&str, Together, &str); 9] = [
    ("a dash too few", |one, two| format!("{one}{}", two.replace("-----BEGIN", "----BEGIN")), "nearly, but not quite"),
    ("a beginning lost", |one, two| format!("{one}{}", without_line(two, 0)), "is a piece of a block"),
    ("an end lost", |one, two| format!("{}{two}", without_line(one, one.lines().count() - 1)), "where another begins"),
    ("cut off", |one, two| format!("{one}{}", &two[..two.len() / 2]), "the file is cut off"),
    ("a line lost", |one, two| format!("{one}{}", without_line(two, 2)), "is cut short"),
    (
        "another label",
        |one, two| {
            format!("{one}{}", two.replace("-----BEGIN ", "-----BEGIN OLD ").replace("-----END ", "-----END OLD "))
        },
        "of another kind",
    ),
    ("commented out", |one, two| format!("{one}# {two}"), "nearly, but not quite"),
    (
        "other marks, and shorter lines",
        |one, two| {
            let lines = two.trim_end().replace("-----", "*****").replace("\r\n", "\n");
            let half = |line: &str| match line.split_at_checked(line.len() / 2) {
                Some((first, second)) if line.len() > 40 => format!("{first}\n{second}\n"),
                _ => format!("{line}\n"),
            };
            format!("{one}{}", lines.lines().map(half).collect::<String>())
        },
        "is a piece of a block",
    ),
    ("text behind", |one, two| format!("{} # one\n{two}", one.trim_end()), "text behind the end"),
];

fn without_line(text: &str, number: usize) -> String {
    text.lines().enumerate().filter(|(n, _)| *n != number).map(|(_, line)| format!("{line}\n")).collect()
}

fn read(path: &PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

fn revoked(ca: &Ca, serial: u64) -> Identity {
    ca.client(|profile| profile.serial_number = Some(SerialNumber::from(serial)))
}

fn accepted(receiver: &Receiver, client: &Identity, why: &str) {
    let (id, event) = new_event();
    let mut wire = receiver.connect_as(client).unwrap_or_else(|error| panic!("{why}: {error}"));
    wire.post(event.as_bytes()).assert_durable("stored", &id);
}

fn alert(receiver: &Receiver, client: &Identity) -> End {
    match Wire::connect_with(receiver.events, tls(Some(client), &[])) {
        Ok(mut wire) => wire.until_end().1,
        Err(error) => End::of(&error),
    }
}

#[test]
fn every_authority_and_every_list_of_a_bundle_counts() {
    let other = Ca::new("Another CA");
    let month = OffsetDateTime::now_utc() + Duration::days(30);
    let setup = Setup::new();
    let (cas, crls) = (setup.folder().join("cas.pem"), setup.folder().join("lists.pem"));
    let setup = setup.set("tls.client_ca", [&cas]).set("tls.client_crl", [&crls]).set("tls.reload_interval", "50ms");
    let write = |together: Together, serial: u64| {
        let lists = [&PKI.ca, &other].map(|ca| read(&ca.crl(&[serial], month)));
        fs::write(&cas, together(&read(&PKI.ca.certificate), &read(&other.certificate))).unwrap();
        fs::write(&crls, together(&lists[0], &lists[1])).unwrap();
    };
    write(UNAMBIGUOUS[0].1, 0);
    let receiver = setup.start();
    let status = || receiver.ask_admin("/api/v1/status").unwrap().json();
    // Each time another client is revoked, by both lists: when it is refused as such, this file is in use.
    for (serial, (what, together)) in (REVOKED..).zip(UNAMBIGUOUS) {
        write(together, serial);
        for ca in [&PKI.ca, &other] {
            let revoked = revoked(ca, serial);
            wait_for(what, || (alert(&receiver, &revoked) == End::Alert(44)).then_some(()));
            accepted(&receiver, &ca.client(|_| ()), what);
        }
        wait_for(what, || status()["reload"]["problems"].as_array().unwrap().is_empty().then_some(()));
    }
    let last = REVOKED + u64::try_from(UNAMBIGUOUS.len()).unwrap() - 1;
    for (what, together, words) in AMBIGUOUS {
        write(together, 0);
        wait_for(what, || {
            let problems = status()["reload"]["problems"].to_string();
            let told = |path: &PathBuf| problems.contains(&format!("{}: line ", path.display()));
            (told(&cas) && told(&crls) && problems.contains(words)).then_some(())
        });
        assert_eq!(alert(&receiver, &revoked(&other, last)), End::Alert(44), "{what}: the old set is in use");
        accepted(&receiver, &other.client(|_| ()), what);
    }
    receiver.finish();
    let ended = setup.start_in_vain();
    assert_eq!(ended.status.code(), Some(78));
    let log = ended.log.join("\n");
    assert!(log.contains(&format!("{}: line ", cas.display())), "{log}");
}

#[test]
fn check_names_file_line_and_remedy() {
    let setup = Setup::embedded();
    let path = |name: &str| setup.folder().join(name);
    let (chain, key, ca) = (path("chain.pem"), path("key.pem"), path("ca.pem"));
    let crl = path("list.crl");
    let list = read(&PKI.ca.crl(&[], OffsetDateTime::now_utc() + Duration::days(30)));
    let setup = setup.set("tls.certificate", &chain).set("tls.private_key", &key).set("tls.client_ca", [&ca]);
    let setup = setup.set("tls.client_crl", [&crl]);
    let good = [
        (&chain, read(&PKI.server.chain)),
        (&key, read(&PKI.server.key)),
        (&ca, read(&PKI.ca.certificate)),
        (&crl, list.clone()),
    ];
    let check = |odd: Option<(&PathBuf, &str)>| {
        for (path, text) in &good {
            fs::write(path, text).unwrap();
        }
        if let Some((path, text)) = odd {
            fs::write(path, text).unwrap();
        }
        let output = setup.command().arg("check").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = check(None);
    assert_eq!(code, Some(0), "{said}");
    let [chain_text, key_text, ca_text, _] = good.each_ref().map(|(_, text)| text.as_str());
    // A file of one pair serves both settings.
    let pair = format!("{}{key_text}", chain_text.trim_end());
    assert_eq!(check(Some((&chain, &pair))).0, Some(0));
    assert_eq!(check(Some((&key, &pair))).0, Some(0));
    let end = |text: &str| text.lines().count() + 1;
    for (path, text, line, words) in [
        (&key, format!("{key_text}{key_text}"), end(key_text), "a second private key"),
        (&key, key_text.replace("PRIVATE", "ENCRYPTED PRIVATE"), 1, "openssl pkey"),
        (&ca, format!("{ca_text}{key_text}"), end(ca_text), "only certificates belong there"),
        (&ca, format!("{ca_text}{list}"), end(ca_text), "of another kind, `X509 CRL`"),
        (&ca, ca_text.replace("BEGIN ", "BEGIN TRUSTED ").replace("END ", "END TRUSTED "), 1, "openssl x509"),
        (&crl, format!("{list}{ca_text}"), end(&list), "of another kind, `CERTIFICATE`"),
        (&chain, format!("{chain_text}{}", &ca_text[..200]), end(chain_text), "copy it again, whole"),
        (&chain, chain_text.replace("CERTIFICATE", "PKCS7"), 1, "openssl pkcs7"),
    ] {
        let (code, said) = check(Some((path, &text)));
        assert_eq!(code, Some(78), "{said}");
        let begin = format!("error    tls: {}: line {line} ", path.display());
        assert!(
            said.lines().any(|told| told.starts_with(&begin) && told.contains(words)),
            "{begin}…{words} in\n{said}"
        );
        assert!(!said.contains(key_text.lines().nth(1).unwrap()), "{said}");
    }
}

#[test]
fn files_towards_a_target_are_taken_whole_too() {
    let (ours, theirs) = (Ca::new("Our CA"), Ca::new("Their CA"));
    let target = Target::start_tls(&theirs.server(|_| ()), Some(&ours), |_| Reply::status(204));
    let client = ours.client(|_| ());
    let setup = Setup::new().set("sinks.web.type", "http").set("sinks.web.url", &*target.url("/"));
    let (cas, chain) = (setup.folder().join("cas.pem"), setup.folder().join("chain.pem"));
    let setup = setup.set("sinks.web.tls.ca", [&cas]).set("sinks.web.tls.certificate", &chain);
    let setup = setup.set("sinks.web.tls.private_key", &client.key);
    fs::write(&cas, UNAMBIGUOUS[3].1(&read(&ours.certificate), &read(&theirs.certificate))).unwrap();
    fs::write(&chain, UNAMBIGUOUS[1].1(&read(&client.chain), &read(&ours.certificate))).unwrap();
    let receiver = setup.start();
    receiver.store(1);
    receiver.sink_settled("web");
    receiver.finish();
    for (what, together, words) in AMBIGUOUS {
        fs::write(&cas, together(&read(&ours.certificate), &read(&theirs.certificate))).unwrap();
        let output = setup.command().arg("check").output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(78), "{what}: {said}");
        let is_it = |line: &str| line.starts_with("error    sinks.web.tls.ca: ") && line.contains(words);
        assert!(said.lines().any(|line| is_it(line) && line.contains("cas.pem: line ")), "{what}: {said}");
    }
    assert!(!setup.start_in_vain().status.success());
}
