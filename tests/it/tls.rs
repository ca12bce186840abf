//! FAULTS "Connection": who gets in, and what becomes of everyone else.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyUsagePurpose,
    NameConstraints, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::harness::chains::hostile;
use crate::harness::event::{event, new_event, new_id};
use crate::harness::pki::{
    CLIENT_NAME, Ca, Identity, Key, PKI, authority_name, client_profile, second_common_name, write_private,
};
use crate::harness::programs::{curl, s_client};
use crate::harness::receiver::{Receiver, Setup, log_line};
use crate::harness::wait_for;
use crate::harness::wire::{End, Wire, post, tls};

/// Checks that this client gets an alert and not one byte, is counted and posts nothing. Gives the alert.
#[track_caller]
pub(crate) fn refused(receiver: &Receiver, client: Option<&Identity>) -> u8 {
    let before = receiver.metric("tls_refused_total");
    let end = match Wire::connect_with(receiver.events, tls(client, &[])) {
        Ok(mut wire) => {
            let (bytes, end) = wire.until_end();
            assert!(bytes.is_empty());
            end
        }
        Err(error) => End::of(&error),
    };
    receiver.wait_metric("tls_refused_total", before + 1);
    assert_eq!(receiver.metric("received_total"), 0);
    let End::Alert(alert) = end else { panic!("no alert but {end:?}") };
    alert
}

#[track_caller]
pub(crate) fn accepted(receiver: &Receiver, client: &Identity) {
    let (id, event) = new_event();
    receiver.connect_as(client).unwrap().post(event.as_bytes()).assert_durable("stored", &id);
}

#[test]
fn a_certificate_that_cannot_be_trusted_is_refused_with_its_alert() {
    let revoked_serial = 77;
    let now = OffsetDateTime::now_utc();
    let crl = PKI.ca.crl(&[revoked_serial], now + Duration::days(30));
    let intermediate = Ca::new("Other CA");
    let (whole_chain, leaf_only) = intermediate.client_of_intermediate();
    let crl_of_other = intermediate.crl(&[], now + Duration::days(30));
    let receiver = Setup::new().set("tls.client_crl", [&crl, &crl_of_other]).start();

    assert_eq!(refused(&receiver, None), 116, "no certificate");
    assert_eq!(refused(&receiver, Some(&whole_chain)), 48, "other CA");
    assert_eq!(refused(&receiver, Some(&leaf_only)), 48, "missing intermediate of another CA");
    assert_eq!(refused(&receiver, Some(&PKI.ca.self_signed_client())), 48, "self-signed");
    let expired = PKI.ca.client(|profile| {
        profile.not_before = now - Duration::days(2);
        profile.not_after = now - Duration::minutes(1);
    });
    assert_eq!(refused(&receiver, Some(&expired)), 45, "expired");
    let early = PKI.ca.client(|profile| profile.not_before = now + Duration::hours(1));
    assert_eq!(refused(&receiver, Some(&early)), 45, "not yet valid");
    let revoked = PKI.ca.client(|profile| profile.serial_number = Some(SerialNumber::from(revoked_serial)));
    assert_eq!(refused(&receiver, Some(&revoked)), 44, "revoked");

    accepted(&receiver, &PKI.client);
    receiver.finish();
}

#[test]
fn an_intermediate_has_to_be_sent() {
    let receiver = Setup::new().start();
    let (whole_chain, leaf_only) = PKI.ca.client_of_intermediate();
    assert_eq!(refused(&receiver, Some(&leaf_only)), 48);
    accepted(&receiver, &whole_chain);
    receiver.finish();
}

#[test]
fn the_certificate_has_to_be_meant_for_client_authentication_alone() {
    let server_only = PKI.ca.client(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let none = PKI.ca.client(|p| p.extended_key_usages.clear());
    let any = PKI.ca.client(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]);
    let both = PKI.ca.client(|p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth));
    let encrypts = PKI.ca.client(|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    let unsaid = PKI.ca.client(|p| p.key_usages.clear());

    let strict = Setup::new().start();
    for client in [&server_only, &none, &any, &both, &encrypts] {
        refused(&strict, Some(client));
    }
    accepted(&strict, &unsaid);
    strict.finish();

    let lenient = Setup::new().set("tls.allow_extra_key_usage", true).start();
    for client in [&server_only, &none, &any, &encrypts] {
        refused(&lenient, Some(client));
    }
    accepted(&lenient, &both);
    lenient.finish();
}

/// A second of an unoptimized build is far more than the 50 ms of a release (`cargo bench --bench limits -- --only chains`)
/// and far less than any search through such a chain.
#[test]
fn a_chain_that_was_made_up_is_refused_for_next_to_nothing() {
    let receiver = Setup::new().start();
    for chain in hostile(&authority_name(), &ExtendedKeyUsagePurpose::ClientAuth) {
        let (before, refusals) = (receiver.cpu(), receiver.metric(r#"tls_refused_total{reason="chain"}"#));
        refused(&receiver, Some(&Identity::made_up(&chain)));
        let spent = receiver.cpu() - before;
        assert!(spent < std::time::Duration::from_secs(1), "{}: {spent:?}", chain.what);
        let unseen = receiver.metric(r#"tls_refused_total{reason="chain"}"#) - refusals;
        assert_eq!(unseen, u64::from(chain.out_of_bounds), "{}", chain.what);
    }
    accepted(&receiver, &PKI.client);
    let ended = receiver.finish();
    let longest = ended.log.iter().map(String::len).max().unwrap();
    assert!(longest < 4096, "a stranger makes lines of {longest} bytes in the log");
}

#[test]
fn a_chain_of_as_many_intermediates_as_webpki_follows_gets_in_and_more_than_eight_do_not() {
    let receiver = Setup::new().start();
    let names: Vec<String> = (1..=9).map(|level| level.to_string()).collect();
    refused(&receiver, Some(&PKI.ca.client_below(&names.iter().map(String::as_str).collect::<Vec<_>>())));
    assert_eq!(receiver.metric(r#"tls_refused_total{reason="chain"}"#), 1);
    accepted(&receiver, &PKI.ca.client_below(&["1", "2", "3", "4", "5"]));
    receiver.finish();
}

#[test]
fn an_intermediate_that_may_not_sign_certificates_vouches_for_nobody() {
    let receiver = Setup::new().start();
    let with = |usages: Vec<KeyUsagePurpose>| {
        let intermediate = PKI.ca.intermediate_with("Odd intermediate", |profile| profile.key_usages = usages);
        intermediate.client_with_issuer(|_| ())
    };
    refused(&receiver, Some(&with(vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign])));
    assert_eq!(receiver.metric(r#"tls_refused_total{reason="usage"}"#), 1);
    accepted(&receiver, &with(Vec::new()));
    accepted(&receiver, &with(vec![KeyUsagePurpose::KeyCertSign]));
    receiver.finish();
}

#[test]
fn a_chain_beyond_what_one_of_its_authorities_allows_is_refused_for_that() {
    let names = Ca::with("Names", |profile| {
        let permitted_subtrees = vec![GeneralSubtree::DnsName("asapp.example".to_owned())];
        profile.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
    });
    // Of a trusted authority neither its path length nor its beginning is asked.
    let last = |profile: &mut CertificateParams| profile.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = Ca::with("Short", last);
    let early = Ca::with("Early", |profile| profile.not_before = OffsetDateTime::now_utc() + Duration::days(2));
    let all = [&PKI.ca.certificate, &names.certificate, &short.certificate, &early.certificate];
    let receiver = Setup::new().set("tls.client_ca", all).start();

    let named = |name: &str| {
        names.client(|profile| profile.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())])
    };
    refused(&receiver, Some(&named("events.other.example")));
    let above = PKI.ca.intermediate_with("Above", last);
    let below = above.intermediate("Below").client_with_issuer(|_| ());
    let chain = fs::read_to_string(&below.chain).unwrap() + &fs::read_to_string(&above.certificate).unwrap();
    fs::write(&below.chain, chain).unwrap();
    refused(&receiver, Some(&below));
    assert_eq!(receiver.metric(r#"tls_refused_total{reason="constraints"}"#), 2);

    accepted(&receiver, &named("events.asapp.example"));
    accepted(&receiver, &above.client_with_issuer(|_| ()));
    accepted(&receiver, &short.intermediate("Below").client_with_issuer(|_| ()));
    accepted(&receiver, &early.client(|_| ()));
    let ended = receiver.finish();
    for words in ["nameConstraints", "pathLenConstraint", "its clients are let in all the same"] {
        assert!(ended.log.iter().any(|line| line.contains(words)), "{words}: {ended:?}");
    }
}

#[test]
fn a_weak_key_is_refused() {
    let receiver = Setup::new().start();
    refused(&receiver, Some(&PKI.ca.issue(Key::Rsa2048, client_profile())));
    for key in [Key::Rsa3072, Key::P256, Key::P384] {
        accepted(&receiver, &PKI.ca.issue(key, client_profile()));
    }
    receiver.finish();
}

#[test]
fn three_years_of_validity_are_warned_about() {
    let receiver = Setup::new().start();
    accepted(&receiver, &PKI.client);
    assert_eq!(receiver.metric("tls_warnings_total"), 0);
    let long = PKI.ca.client(|p| p.not_after = OffsetDateTime::now_utc() + Duration::days(3 * 365 + 2));
    accepted(&receiver, &long);
    assert_eq!(receiver.metric(r#"tls_warnings_total{reason="validity"}"#), 1);
    let ended = receiver.finish();
    let warned = |line: &String| log_line(line).is_some_and(|line| line["level"] == "WARN" && line["message"] != "");
    assert!(ended.log.iter().any(warned), "{ended:?}");
}

#[test]
fn only_the_exact_identity_gets_in() {
    let receiver = Setup::new().start();
    let upper = CLIENT_NAME.to_uppercase();
    let names = [
        "other.example".to_owned(),
        format!("x{CLIENT_NAME}"),
        format!("{CLIENT_NAME}.evil.example"),
        CLIENT_NAME[1..].to_owned(),
        format!("{CLIENT_NAME}\0"),
        format!("{CLIENT_NAME}\0.evil.example"),
        upper,
        format!("{CLIENT_NAME} "),
        format!(" {CLIENT_NAME}"),
        String::new(),
    ];
    for name in names {
        let client = PKI.ca.client(|p| p.distinguished_name.push(DnType::CommonName, name.as_str()));
        assert_eq!(refused(&receiver, Some(&client)), 49, "{name:?}");
    }
    let elsewhere = PKI.ca.client(|p| {
        p.distinguished_name.remove(DnType::CommonName);
        p.distinguished_name.push(DnType::OrganizationalUnitName, CLIENT_NAME);
        p.distinguished_name.push(DnType::OrganizationName, format!("CN={CLIENT_NAME}"));
        p.subject_alt_names = vec![SanType::DnsName(CLIENT_NAME.try_into().unwrap())];
    });
    assert_eq!(refused(&receiver, Some(&elsewhere)), 49, "in other attributes");
    for second in ["other.example", CLIENT_NAME] {
        let twice = PKI.ca.client(|p| p.distinguished_name.push(second_common_name(), second));
        assert_eq!(refused(&receiver, Some(&twice)), 49, "second common name {second}");
    }
    accepted(&receiver, &PKI.client);
    receiver.finish();
}

#[test]
fn every_key_of_an_entry_has_to_match_and_one_entry_suffices() {
    let allowed = r#"[
        { subject = "CN=by-subject,O=ASAPP test" },
        { organization = "ASAPP test", dns = "events.asapp.example" },
        { uri = "urn:asapp:tenant:1" },
    ]"#;
    let receiver = Setup::new().set_toml("tls.allowed_clients", allowed).start();
    let with_names = |name: &str, names: Vec<SanType>| {
        PKI.ca.client(|p| {
            p.distinguished_name.push(DnType::CommonName, name);
            p.subject_alt_names = names;
        })
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    assert_eq!(refused(&receiver, Some(&PKI.client)), 49);
    assert_eq!(refused(&receiver, Some(&with_names("x", vec![dns("other.example")]))), 49);
    assert_eq!(refused(&receiver, Some(&with_names("x", vec![uri("urn:asapp:tenant:10")]))), 49);
    accepted(&receiver, &with_names("by-subject", vec![]));
    accepted(&receiver, &with_names("x", vec![dns("events.asapp.example")]));
    accepted(&receiver, &with_names("x", vec![uri("urn:asapp:tenant:1")]));
    receiver.finish();
}

#[test]
fn a_subject_may_name_its_attributes_by_number() {
    let organization_identifier = DnType::CustomDnType(vec![2, 5, 4, 97]);
    let client = PKI.ca.client(|p| p.distinguished_name.push(organization_identifier, "NTRUS-1"));
    let named = |subject: &str| Setup::new().set_toml("tls.allowed_clients", &format!("[{{ subject = {subject:?} }}]"));
    let receiver = named(&format!("2.5.4.97=NTRUS-1,2.5.4.3={CLIENT_NAME},O=ASAPP test")).start();
    accepted(&receiver, &client);
    receiver.finish();
    // OpenSSL's own name for it, which is not known here.
    let unknown = named(&format!("organizationIdentifier=NTRUS-1,CN={CLIENT_NAME},O=ASAPP test"));
    does_not_start(&unknown, "-nameopt RFC2253,oid");
}

#[test]
fn what_cannot_be_seen_of_a_subject_is_written_out() {
    let client = PKI.ca.client(|p| p.distinguished_name.push(DnType::CommonName, format!("{CLIENT_NAME}\u{200b}")));
    let receiver = Setup::new().start();
    refused(&receiver, Some(&client));
    let ended = receiver.finish();
    let name = format!("CN={CLIENT_NAME}\\e2\\80\\8b");
    let told = |line: &String| {
        log_line(line).is_some_and(|line| line["detail"].as_str().is_some_and(|detail| detail.contains(&name)))
    };
    assert!(ended.log.iter().any(told), "{ended:?}");
}

#[test]
fn older_versions_of_tls_get_the_alert_for_it() {
    let receiver = Setup::new().start();
    // Before 1.2 a hello has no signature algorithms, and rustls says so before it looks at the version.
    for (version, alert) in [("-tls1_2", 70), ("-tls1_1", 40), ("-tls1", 40)] {
        let arguments = [version, "-cipher", "DEFAULT@SECLEVEL=0"];
        let said = s_client(&receiver, Some(&PKI.client), &arguments, b"");
        assert!(said.stderr.contains(&format!("SSL alert number {alert}")), "{version}: {said:?}");
    }
    let said = s_client(&receiver, Some(&PKI.client), &["-tls1_3"], &post("/events", "Connection: close\r\n", b"{}"));
    assert!(said.success && said.stdout.contains("HTTP/1.1 422"), "{said:?}");
    receiver.finish();
}

#[test]
fn no_ticket_is_issued_and_none_of_another_server_is_taken() {
    let receiver = Setup::new().start();
    let mut wire = receiver.connect();
    let (id, event) = new_event();
    wire.post(event.as_bytes()).assert_durable("stored", &id);
    assert_eq!(wire.tls().tls13_tickets_received(), 0);

    // A session with early data, from a server that gives such tickets away under the same certificate.
    let session = receiver.setup().folder().join("session.pem");
    let early = receiver.setup().folder().join("early");
    fs::write(&early, post("/events", "", crate::harness::event::event("early-data").as_bytes())).unwrap();
    let mut server = Command::new("openssl");
    server.args(["s_server", "-accept", "127.0.0.1:0", "-early_data", "-num_tickets", "1", "-naccept", "1", "-cert"]);
    server.arg(&PKI.server.chain).arg("-key").arg(&PKI.server.key);
    let mut server = server.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let address = lines.find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(str::to_owned)).unwrap();
    let mut client = Command::new("openssl");
    client.args(["s_client", "-connect", &address, "-servername", "localhost", "-sess_out"]).arg(&session);
    let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("a session ticket", || {
        fs::read_to_string(&session).is_ok_and(|text| text.contains("END SSL SESSION")).then_some(())
    });
    let _ = (client.kill(), client.wait(), server.kill(), server.wait());

    let session = session.to_str().unwrap();
    let arguments = ["-sess_in", session, "-early_data", early.to_str().unwrap()];
    let said = s_client(&receiver, Some(&PKI.client), &arguments, &post("/events", "Connection: close\r\n", b"{}"));
    assert!(said.stdout.contains("New, TLSv1.3"), "{said:?}");
    assert!(said.stdout.contains("Early data was rejected"), "{said:?}");
    assert_eq!(receiver.deliveries("early-data"), 0);
    receiver.finish();
}

#[test]
fn a_revocation_list_that_runs_out_denies() {
    let expiry = OffsetDateTime::now_utc() + Duration::seconds(12);
    let crl = PKI.ca.crl(&[], expiry);
    let receiver = Setup::new().set("tls.client_crl", [&crl]).start();
    accepted(&receiver, &PKI.client);
    receiver.log.wait("the alarm 48 h ahead", |line| {
        let line = log_line(line)?;
        let text = line.to_string();
        (line["level"] != "INFO" && line["level"] != "DEBUG" && text.to_lowercase().contains("crl")).then_some(())
    });
    wait_for("the list to run out", || (OffsetDateTime::now_utc() > expiry + Duration::seconds(1)).then_some(()));
    let mut wire = receiver.connect_as(&PKI.client).unwrap();
    let (bytes, end) = wire.until_end();
    assert!(bytes.is_empty() && matches!(end, End::Alert(_)), "{end:?}");
    receiver.finish();
}

#[test]
fn a_client_of_which_no_list_tells_is_refused() {
    let unrelated = Ca::new("Unrelated CA");
    let crl = unrelated.crl(&[], OffsetDateTime::now_utc() + Duration::days(30));
    let receiver = Setup::new().set("tls.client_crl", [&crl]).start();
    refused(&receiver, Some(&PKI.client));
    let ended = receiver.finish();
    let warned = |line: &String| log_line(line).is_some_and(|line| line["level"] == "WARN");
    assert!(ended.log.iter().any(warned), "no warning about the unknown issuer: {ended:?}");
}

/// Checks that the receiver ends at once with a word about `file`, and has never listened.
#[track_caller]
fn does_not_start(setup: &Setup, file: &str) {
    let ended = setup.start_in_vain();
    assert!(matches!(ended.status.code(), Some(1 | 78)), "{ended:?}");
    ended.assert_soon();
    assert!(ended.log.iter().any(|line| line.contains(file)), "{file} is not named: {ended:?}");
    assert!(!ended.log.iter().any(|line| line.contains(r#""listening""#)), "{ended:?}");
}

#[test]
fn a_bad_certificate_of_its_own_keeps_it_from_starting() {
    let setup = Setup::new();
    let file = |name: &str, text: &str| {
        let path = setup.folder().join(name);
        write_private(&path, text);
        path
    };
    let chain = fs::read_to_string(&PKI.server.chain).unwrap();
    let key = fs::read_to_string(&PKI.server.key).unwrap();
    let certificate = |path| setup.clone().set("tls.certificate", &path);
    let private_key = |path| setup.clone().set("tls.private_key", &path);

    does_not_start(&certificate(setup.folder().join("missing.pem")), "missing.pem");
    does_not_start(&certificate(file("half.pem", &chain[..chain.len() / 2])), "half.pem");
    does_not_start(&certificate(file("empty.pem", "")), "empty.pem");
    does_not_start(&certificate(setup.folder().to_path_buf()), setup.folder().to_str().unwrap());
    does_not_start(&private_key(setup.folder().join("missing.key")), "missing.key");
    does_not_start(&private_key(file("half.key", &key[..key.len() / 2])), "half.key");
    does_not_start(&private_key(file("empty.key", "")), "empty.key");
    does_not_start(&private_key(PKI.client.key.clone()), PKI.client.key.to_str().unwrap());

    let expired = PKI.ca.server(|p| p.not_after = OffsetDateTime::now_utc() - Duration::minutes(1));
    let weak = PKI.ca.issue(Key::Rsa2048, client_profile());
    for own in [expired, weak] {
        let setup = setup.clone().set("tls.certificate", &own.chain).set("tls.private_key", &own.key);
        does_not_start(&setup, own.chain.parent().unwrap().to_str().unwrap());
    }
}

#[test]
fn a_bad_authority_or_revocation_list_keeps_it_from_starting() {
    let setup = Setup::new();
    let file = |name: &str, text: &str| {
        let path = setup.folder().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    for (name, text) in [("empty-ca.pem", ""), ("broken-ca.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n")] {
        does_not_start(&setup.clone().set("tls.client_ca", [&file(name, text)]), name);
    }
    let missing = setup.folder().join("missing-ca.pem");
    does_not_start(&setup.clone().set("tls.client_ca", [&missing]), "missing-ca.pem");

    let expired = PKI.ca.crl(&[], OffsetDateTime::now_utc() - Duration::minutes(1));
    let malformed = file("malformed.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    for crl in [&expired, &malformed, &setup.folder().join("missing.crl")] {
        let name = crl.file_name().unwrap().to_str().unwrap();
        does_not_start(&setup.clone().set("tls.client_crl", [crl]), name);
    }
}

#[test]
fn curl_gets_in_and_a_certificate_of_another_authority_does_not() {
    let receiver = Setup::new().start();
    let id = new_id();
    let answer = curl(&receiver, "/events", &["--data-binary", "@-"], event(&id).as_bytes());
    answer.assert_durable("stored", &id);
    assert_eq!(receiver.delivered(&id), event(&id));

    let stranger = Ca::new("Other CA").client(|_| ());
    let said = s_client(&receiver, Some(&stranger), &[], &post("/events", "", event("stranger").as_bytes()));
    assert!(!said.stdout.contains("HTTP/1.1"), "{said:?}");
    assert!(said.stderr.contains("alert number 48"), "{said:?}");
    assert_eq!(receiver.deliveries("stranger"), 0);
    receiver.finish();
}
