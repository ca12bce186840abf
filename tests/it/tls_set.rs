//! What is wrong with a set of TLS files comes to light when it is loaded, not when the first client is refused; and the log
//! says in time what is going to end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    KeyUsagePurpose, NameConstraints,
};
use rustix::process::Signal;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use x509_cert::certificate::Rfc5280;
use x509_cert::crl::{CertificateList, TbsCertList};
use x509_cert::der::{Decode, Encode};

use crate::harness::clock::Clock;
use crate::harness::event::new_event;
use crate::harness::pki::{Ca, Identity, PKI};
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::wait_for;

/// Neither starts nor passes `check`, and both say so with these words.
#[track_caller]
fn assert_bad(setup: &Setup, words: &str) {
    let checked = setup.command().arg("check").output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    let is_it = |line: &str| line.starts_with("error    tls: ") && line.contains(words);
    assert!(checked.status.code() == Some(78) && said.lines().any(is_it), "{words}: {said}");
    let ended = setup.start_in_vain();
    assert_eq!(ended.status.code(), Some(78), "{words}");
    assert!(ended.log.join("\n").contains(words), "{words}: {ended:?}");
}

fn month() -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::days(30)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// The identity's certificate with that of an authority behind it.
fn followed_by(identity: Identity, authority: &Ca) -> Identity {
    fs::write(&identity.chain, read(&identity.chain) + &read(&authority.certificate)).unwrap();
    identity
}

/// An authority and its revocation list, made by OpenSSL, which makes odd ones too: the authority's certificate, the list.
fn by_openssl(folder: &Path, key: &str, usage: &str, list: &str) -> (PathBuf, PathBuf) {
    let path = |name: &str| folder.join(name);
    let shown = |name: &str| path(name).display().to_string();
    let number = format!("crlnumber = {}\n", shown("number"));
    let config = format!(
        "[ca]\ndefault_ca = d\n[d]\ndatabase = {}\n{}default_md = sha256\ndefault_crl_days = 30\n\
         [req]\ndistinguished_name = n\nx509_extensions = e\nprompt = no\n[n]\nCN = Odd CA\n\
         [e]\nbasicConstraints = critical,CA:TRUE\nkeyUsage = critical,{usage}\n[l]\n{list}\n[p]\nindirectCRL = TRUE\n\
         [r]\nfullname = URI:http://ca.example/r.crl\nonlysomereasons = keyCompromise\n[u]\nonlyuser = TRUE\n",
        shown("index"),
        if [FIRST_VERSION, WITHOUT_NUMBER].contains(&list) { String::new() } else { number },
    );
    fs::write(path("config"), config).unwrap();
    fs::write(path("index"), "").unwrap();
    fs::write(path("number"), "01\n").unwrap();
    let run = |arguments: &[&str]| {
        let said = Command::new("openssl").args(arguments).args(["-config", &shown("config")]).output().unwrap();
        assert!(said.status.success(), "{said:?}");
    };
    let (ca, own_key, crl) = (shown("odd.pem"), shown("odd.key"), shown("odd.crl"));
    let mut arguments = vec!["req", "-x509", "-nodes", "-days", "30", "-keyout", &own_key, "-out", &ca, "-newkey"];
    arguments.extend(key.split(' '));
    run(&arguments);
    let mut arguments = vec!["ca", "-gencrl", "-keyfile", &own_key, "-cert", &ca, "-out", &crl];
    if !["", FIRST_VERSION].contains(&list) {
        arguments.extend(["-crlexts", "l"]);
    }
    run(&arguments);
    (path("odd.pem"), path("odd.crl"))
}

/// What `by_openssl` makes of a list with these extensions has no number.
const FIRST_VERSION: &str = "# none";
const WITHOUT_NUMBER: &str = "authorityKeyIdentifier = keyid";
const P256: &str = "ec -pkeyopt ec_paramgen_curve:P-256";

#[test]
fn a_revocation_list_by_another_key_of_the_name_is_a_bad_set() {
    let twin = Ca::new("Test CA");
    let setup = Setup::new();
    let list = setup.folder().join("list.crl");
    let setup = setup.set("tls.client_crl", [&list]).set("tls.reload_interval", "1h");
    fs::copy(twin.crl(&[], month()), &list).unwrap();
    assert_bad(&setup, "the list of `CN=Test CA` is not signed by the key that this CA has in tls.client_ca");

    fs::copy(PKI.ca.crl(&[], month()), &list).unwrap();
    let receiver = setup.start();
    let mut wire = receiver.connect();
    let mut stored = || {
        let (id, event) = new_event();
        wire.post(event.as_bytes()).assert_durable("stored", &id);
    };
    stored();
    fs::copy(twin.crl(&[], month()), &list).unwrap();
    receiver.signal(Signal::HUP);
    wait_for("the reload to fail", || {
        let problems = receiver.ask_admin("/api/v1/status").unwrap().json()["reload"]["problems"].to_string();
        problems.contains("is not signed by the key").then_some(())
    });
    stored();
    receiver.store(1);
    receiver.finish();
}

#[test]
fn lists_by_two_keys_of_one_name_are_a_bad_set() {
    let twin = Ca::new("Test CA");
    let both = Setup::embedded().set("tls.client_ca", [&PKI.ca.certificate, &twin.certificate]);
    let lists = [PKI.ca.crl(&[], month()), twin.crl(&[], month())];
    assert_bad(&both.clone().set("tls.client_crl", [&lists[0], &lists[1]]), "lists by two keys of `CN=Test CA`");
    // With one list, the clients of the other are refused as those of any CA without one.
    let one = both.set("tls.client_crl", [&lists[0]]).start();
    one.store(1);
    let warned = |line: &String| line.contains("tls.client_crl has no list of `CN=Test CA`");
    assert!(one.finish().log.iter().any(warned));
}

#[test]
fn a_list_that_could_not_be_asked_is_a_bad_set() {
    for (usage, list, words) in [
        ("keyCertSign,cRLSign", "2.5.29.27 = critical,DER:02:01:01", "it is a delta list"),
        ("keyCertSign,cRLSign", "issuingDistributionPoint = critical,@p", "it is an indirect list"),
        (
            "keyCertSign,cRLSign",
            "issuingDistributionPoint = critical,@r",
            "it is about some reasons of revocation only",
        ),
        ("keyCertSign,cRLSign", "issuingDistributionPoint = critical,@u", "does not have the point's full name"),
        ("keyCertSign,cRLSign", "1.2.3.4.5 = critical,DER:05:00", "it has a critical extension that is not known here"),
        ("keyCertSign", "", "may not sign revocation lists: its key usage lacks cRLSign"),
    ] {
        let setup = Setup::embedded();
        let (ca, crl) = by_openssl(setup.folder(), P256, usage, list);
        let setup = setup.set("tls.client_ca", [&PKI.ca.certificate, &ca]);
        let good = PKI.ca.crl(&[], month());
        assert_bad(&setup.set("tls.client_crl", [&good, &crl]), words);
    }
    let setup = Setup::embedded();
    let (ca, crl) = by_openssl(setup.folder(), P256, "keyCertSign,cRLSign", "");
    let setup = setup.set("tls.client_ca", [&PKI.ca.certificate, &ca]);
    setup.set("tls.client_crl", [&PKI.ca.crl(&[], month()), &crl]).start().finish();
}

/// A good list of [`PKI`]'s authority, changed. Its signature is of what it was.
fn changed_list(folder: &Path, change: impl FnOnce(&mut TbsCertList)) -> PathBuf {
    let good = CertificateRevocationListDer::from_pem_file(PKI.ca.crl(&[], month())).unwrap();
    let mut list = CertificateList::<Rfc5280>::from_der(&good).unwrap();
    change(&mut list.tbs_cert_list);
    let text = STANDARD.encode(list.to_der().unwrap());
    let path = folder.join("changed.crl");
    fs::write(&path, format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")).unwrap();
    path
}

#[test]
fn what_a_list_lacks_is_said() {
    let setup = Setup::embedded();
    let (ca, crl) = by_openssl(setup.folder(), P256, "keyCertSign,cRLSign", FIRST_VERSION);
    let first_version = setup.set("tls.client_ca", [&PKI.ca.certificate, &ca]).set("tls.client_crl", [&crl]);
    assert_bad(&first_version, "it is of version 1, without a number (cRLNumber): have the CA write lists");
    let with = |change: &dyn Fn(&mut TbsCertList)| {
        let setup = Setup::embedded();
        let list = changed_list(setup.folder(), change);
        setup.set("tls.client_crl", [&list])
    };
    assert_bad(
        &with(&|list| list.crl_extensions = None),
        "it has no extensions, so no number (cRLNumber): have the CA",
    );
    assert_bad(&with(&|list| list.next_update = None), "it does not say when the next list is due (nextUpdate)");

    let setup = Setup::embedded();
    let (ca, crl) = by_openssl(setup.folder(), P256, "keyCertSign,cRLSign", WITHOUT_NUMBER);
    let setup = setup.set("tls.client_ca", [&PKI.ca.certificate, &ca]);
    let receiver = setup.set("tls.client_crl", [&PKI.ca.crl(&[], month()), &crl]).start();
    let warned = |line: &String| line.contains("the list of `CN=Odd CA` has no number (cRLNumber)");
    assert!(receiver.finish().log.iter().any(warned));
}

#[test]
fn an_authority_that_could_let_in_nobody_is_a_bad_set() {
    let with = |ca: &Path| Setup::embedded().set("tls.client_ca", [&PKI.ca.certificate, &ca.to_owned()]);
    let no_signer = Ca::with("No signer", |profile| profile.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_bad(&with(&no_signer.certificate), "the CA `CN=No signer` may not sign certificates");
    let no_ca = PKI.ca.intermediate_with("No CA", |profile| profile.is_ca = IsCa::ExplicitNoCa);
    assert_bad(&with(&no_ca.certificate), "`CN=No CA` is no CA");
    assert_bad(&with(&PKI.client.chain), "is no CA, so nobody could get in by it");
    for key in ["rsa:1024", "ec -pkeyopt ec_paramgen_curve:secp224r1"] {
        let setup = Setup::embedded();
        let (ca, _) = by_openssl(setup.folder(), key, "keyCertSign,cRLSign", "");
        assert_bad(&setup.set("tls.client_ca", [&PKI.ca.certificate, &ca]), "the key of `CN=Odd CA` cannot be used");
    }
    with(&PKI.ca.intermediate("Good").certificate).start().finish();
}

#[test]
fn an_authority_that_limits_whom_it_vouches_for_in_a_way_that_is_not_kept_is_a_bad_set() {
    let with = |ca: &Ca| Setup::embedded().set("tls.client_ca", [&PKI.ca.certificate, &ca.certificate]);
    let constrained = |permitted_subtrees, excluded_subtrees| {
        Ca::with("Constrained", |profile| {
            profile.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
        })
    };
    let mut organization = DistinguishedName::new();
    organization.push(DnType::OrganizationName, "ASAPP test");
    let directory = || vec![GeneralSubtree::DirectoryName(organization.clone())];
    for ca in [constrained(directory(), vec![]), constrained(vec![], directory())] {
        assert_bad(&with(&ca), "the CA `CN=Constrained` constrains directory names");
    }
    let for_servers =
        Ca::with("For servers", |profile| profile.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_bad(&with(&for_servers), "the CA `CN=For servers` is not meant for client authentication");
    let odd = Ca::with("Odd", |profile| {
        let mut odd = CustomExtension::from_oid_content(&[1, 2, 3, 4, 5], vec![5, 0]);
        odd.set_criticality(true);
        profile.custom_extensions = vec![odd];
    });
    assert_bad(&with(&odd), "the CA `CN=Odd` has a critical extension that is not known here: 1.2.3.4.5");

    let mail = constrained(vec![GeneralSubtree::Rfc822Name("asapp.example".to_owned())], vec![]);
    let checked = with(&mail).command().arg("check").output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    let warned = |line: &str| line.starts_with("warning  tls: ") && line.contains("constrains names of a kind");
    assert!(checked.status.success() && said.lines().any(warned), "{said}");
}

#[test]
fn an_own_chain_that_no_client_could_trust_is_a_bad_set() {
    let with =
        |server: &Identity| Setup::embedded().set("tls.certificate", &server.chain).set("tls.private_key", &server.key);
    let good = PKI.ca.intermediate("Intermediate");
    let no_signer =
        PKI.ca.intermediate_with("Intermediate", |profile| profile.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let no_ca = PKI.ca.intermediate_with("Intermediate", |profile| profile.is_ca = IsCa::ExplicitNoCa);
    assert_bad(&with(&followed_by(no_signer.server(|_| ()), &no_signer)), "may not sign certificates");
    assert_bad(&with(&followed_by(no_ca.server(|_| ()), &no_ca)), "the intermediate `CN=Intermediate` is no CA");
    let twin = PKI.ca.intermediate_with("Intermediate", |profile| {
        profile.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    assert_bad(&with(&followed_by(good.server(|_| ()), &twin)), "is not signed by the key of `CN=Intermediate`");
    with(&followed_by(good.server(|_| ()), &good)).start().finish();
}

const DAY: i64 = 86_400;

/// Lines of the log about this setting's file: level and days left.
fn reminders(receiver: &Receiver, key: &str) -> Vec<(String, i64)> {
    let said = receiver.log.so_far();
    let lines = said.iter().filter_map(|line| log_line(line)).filter(|line: &Value| {
        line["key"] == key && line["message"].as_str().is_some_and(|text| text.starts_with("a certificate or"))
    });
    lines.map(|line| (line["level"].as_str().unwrap().to_owned(), line["days_left"].as_i64().unwrap())).collect()
}

#[test]
fn what_is_going_to_end_is_logged_daily_and_at_the_end() {
    let days = |days| OffsetDateTime::now_utc() + Duration::days(days) + Duration::hours(1);
    let server = PKI.ca.server(|profile| profile.not_after = days(10));
    let shown = PKI.ca.client(|profile| profile.not_after = days(20));
    let Some((setup, clock)) = Clock::of(Setup::embedded()) else { return };
    let receiver = setup
        .set("tls.certificate", &server.chain)
        .set("tls.private_key", &server.key)
        .set("tls.client_crl", [&PKI.ca.crl(&[], days(4))])
        .set("tls.reload_interval", "1s")
        .set("sinks.web.type", "http")
        .set("sinks.web.url", "https://localhost:1/")
        .set("sinks.web.tls.certificate", &shown.chain)
        .set("sinks.web.tls.private_key", &shown.key)
        .start();
    let logged = |key: &str, expected: &[(&str, i64)]| {
        let expected: Vec<(String, i64)> = expected.iter().map(|(level, days)| ((*level).to_owned(), *days)).collect();
        wait_for(&format!("{expected:?} about {key}"), || (reminders(&receiver, key) == expected).then_some(()));
    };
    logged("tls.certificate", &[("WARN", 10)]);
    clock.set(3 * DAY);
    logged("tls.certificate", &[("WARN", 10), ("WARN", 7)]);
    logged("tls.client_crl", &[("WARN", 1)]);
    logged("sinks.web.tls.certificate", &[]);
    clock.set(11 * DAY);
    logged("tls.certificate", &[("WARN", 10), ("WARN", 7), ("ERROR", -1)]);
    logged("tls.client_crl", &[("WARN", 1), ("ERROR", -7)]);
    logged("sinks.web.tls.certificate", &[("WARN", 9)]);
    assert!(receiver.is_ready());
    receiver.finish();
}

#[test]
fn all_that_a_sink_reads_of_certificates_is_watched() {
    let days = |days| OffsetDateTime::now_utc() + Duration::days(days) + Duration::hours(1);
    let between = PKI.ca.intermediate_with("Between", |profile| profile.not_after = days(3));
    let shown = followed_by(between.client(|_| ()), &between);
    let over = Ca::with("Over", |profile| (profile.not_before, profile.not_after) = (days(-9), days(-2)));
    // Two lists of one name: that of the first to end counts.
    let lists = [9, 20].map(|end| PKI.ca.crl(&[], days(end)));
    let setup = Setup::embedded()
        .set("tls.client_crl", [&lists[0], &lists[1]])
        .set("sinks.web.type", "http")
        .set("sinks.web.url", "https://localhost:1/")
        .set("sinks.web.tls.ca", [&PKI.ca.certificate, &over.certificate])
        .set("sinks.web.tls.certificate", &shown.chain)
        .set("sinks.web.tls.private_key", &shown.key);
    let checked = setup.command().arg("check").output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    for (begin, words) in [
        ("warning  sinks.web.tls.certificate: ", "the intermediate `CN=Between` is valid for 3 more days"),
        ("warning  sinks.web.tls.ca: ", "the CA `CN=Over` expired on"),
    ] {
        assert!(said.lines().any(|line| line.starts_with(begin) && line.contains(words)), "{words}: {said}");
    }

    let receiver = setup.start();
    for (key, level, days) in [("sinks.web.tls.certificate", "WARN", 3), ("sinks.web.tls.ca", "ERROR", -2)] {
        let expected = [(level.to_owned(), days)];
        wait_for(&format!("{expected:?} about {key}"), || (reminders(&receiver, key) == expected).then_some(()));
    }
    let status = receiver.ask_admin("/api/v1/status").unwrap().json();
    for (key, subject) in [("sinks.web.tls.certificate", "CN=Between"), ("sinks.web.tls.ca", "CN=Over")] {
        let is_it = |certificate: &Value| certificate["key"] == key && certificate["subject"] == subject;
        assert!(status["certificates"].as_array().unwrap().iter().any(is_it), "{key} of {subject}: {status}");
    }
    let ends = receiver.metric(r#"certificate_expiry_timestamp_seconds{key="tls.client_crl",subject="CN=Test CA"}"#);
    assert!(ends < days(10).unix_timestamp().try_into().unwrap(), "{ends}");
    receiver.finish();
}
