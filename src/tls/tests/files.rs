//! Files that cannot be used, and files made by the profile.

use std::process::Command;

use super::*;
use crate::tls::Portrait;

#[test]
fn files_that_cannot_be_used() {
    let mut world = World::new();
    let good = world.tls.clone();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    let (certificate, key) = (read(&good.certificate), read(&good.private_key));

    world.tls.certificate = world.folder.path().join("missing.pem");
    world.refuses_to_load("missing.pem", "cannot be read");
    world.tls.certificate = world.file("empty.pem", "");
    world.refuses_to_load("empty.pem", "is empty");
    world.tls.certificate = world.file("text.pem", "this is no PEM\n");
    world.refuses_to_load("text.pem", "holds no PEM certificate");
    world.tls.certificate = world.file("half.pem", &certificate[..certificate.len() / 2]);
    world.refuses_to_load("half.pem", "is cut off");
    let damaged = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n";
    world.tls.certificate = world.file("damaged.pem", damaged);
    world.refuses_to_load("damaged.pem", "damaged");
    world.tls.certificate = good.certificate.clone();

    world.tls.private_key = world.file("half-key.pem", &key[..key.len() / 2]);
    world.refuses_to_load("half-key.pem", "is cut off");
    world.tls.private_key = world.file("no-key.pem", &certificate);
    world.refuses_to_load("no-key.pem", "holds no PEM private key");
    world.tls.private_key = world.file("other-key.pem", &KeyPair::generate().unwrap().serialize_pem());
    world.refuses_to_load("other-key.pem", "does not belong to the certificate");
    world.tls.private_key = good.private_key.clone();

    world.tls.client_crl = vec![world.file("no.crl", &certificate)];
    world.refuses_to_load("no.crl", "a block of another kind, `CERTIFICATE`");
    let damaged = "-----BEGIN X509 CRL-----\nMAMCAQE=\n-----END X509 CRL-----\n";
    world.tls.client_crl = vec![world.file("damaged.crl", damaged)];
    world.refuses_to_load("damaged.crl", "no revocation list");
    world.tls.client_crl.clear();
    let issuer = ca("client CA");
    fs::write(&world.tls.client_ca[0], issuer.pem()).unwrap();
    world.crl(&issuer, &[], Days::minutes(-1));
    world.refuses_to_load("0.crl", "expired on");
    world.tls.client_crl.clear();

    world.tls.client_ca = vec![world.folder.path().join("no-ca.pem")];
    world.refuses_to_load("no-ca.pem", "cannot be read");
    world.tls.client_ca = good.client_ca.clone();

    fs::set_permissions(&world.tls.private_key, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&world.tls.private_key).is_err() {
        world.refuses_to_load("server-key.pem", "cannot be read");
    }
}

#[test]
fn a_chain_in_the_wrong_order_is_told_as_such() {
    let mut world = World::new();
    let own = fs::read_to_string(&world.tls.certificate).unwrap();
    let issuer = fs::read_to_string(&world.tls.client_ca[0]).unwrap();
    world.tls.certificate = world.file("chain.pem", &[&issuer[..], &own].concat());
    let said: Vec<_> = world.errors().iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "nothing about the key, or what the issuer is meant for: {said:?}");
    assert!(said[0].contains("only as number 2 in it: put it first"), "{said:?}");
}

/// A test that hangs is the failure.
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let mut world = World::new();
    world.tls.certificate = world.folder.path().join("pipe.pem");
    assert!(Command::new("mkfifo").arg(&world.tls.certificate).status().unwrap().success());
    world.refuses_to_load("pipe.pem", "it is no regular file");
    assert!(Portrait::read(&world.tls.certificate).is_none());
}

#[test]
fn several_problems_in_one_report() {
    let mut world = World::new();
    world.tls.certificate = world.file("empty.pem", "");
    world.tls.client_ca = vec![world.folder.path().join("missing.pem")];
    world.tls.clients = allow(AllowedClient { subject: Some("no name".to_owned()), ..AllowedClient::default() });
    let said: Vec<_> = world.errors().iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(said.iter().any(|line| line.contains("the subject `no name` is not a name as RFC 4514")), "{said:?}");
}

/// A server certificate in the world's place of it.
fn own(world: &mut World, params: &CertificateParams, key: &KeyPair) {
    world.tls.certificate = world.file("own.pem", &params.self_signed(key).unwrap().pem());
    world.tls.private_key = world.file("own-key.pem", &key.serialize_pem());
    fs::set_permissions(&world.tls.private_key, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn server_certificates_that_cannot_be_used() {
    let mut world = World::new();
    let key = KeyPair::generate().unwrap();
    let mut good = named("receiver");
    good.extended_key_usages = vec![Usage::ServerAuth];
    good.subject_alt_names = vec![SanType::DnsName("receiver.example".try_into().unwrap())];
    let now = OffsetDateTime::now_utc();

    let mut expired = good.clone();
    expired.not_after = now - Days::minutes(1);
    own(&mut world, &expired, &key);
    world.refuses_to_load("own.pem", "expired on");

    let mut early = good.clone();
    early.not_before = now + Days::hours(1);
    own(&mut world, &early, &key);
    world.refuses_to_load("own.pem", "is not valid before");

    for usages in [vec![], vec![Usage::ClientAuth]] {
        let mut client = good.clone();
        client.extended_key_usages = usages;
        own(&mut world, &client, &key);
        world.refuses_to_load("own.pem", "not meant for server authentication");
    }

    let weak = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    own(&mut world, &good, &weak);
    world.refuses_to_load("own.pem", "RSA with 2048 bits");

    own(&mut world, &good, &KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072).unwrap());
    let findings = world.load().findings();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].what.contains("is valid for 364 more days"), "{findings:?}");
}

#[test]
fn what_is_only_warned_about() {
    let mut world = World::new();
    let key = KeyPair::generate().unwrap();
    let mut params = named("receiver");
    params.extended_key_usages = vec![Usage::ServerAuth, Usage::ClientAuth];
    params.not_after = params.not_before + Days::days(1100);
    // Authority information access with a URL of the issuer, as public CAs write it.
    let url = b"http://ca.example/ca.der";
    let mut access = vec![0x30, 38, 0x30, 36, 6, 8, 0x2b, 6, 1, 5, 5, 7, 48, 2, 0x86, 24];
    access.extend(url);
    params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access)];
    own(&mut world, &params, &key);
    fs::set_permissions(&world.tls.private_key, fs::Permissions::from_mode(0o644)).unwrap();
    let mut old = ca_params("old CA");
    old.not_after = OffsetDateTime::now_utc() - Days::days(1);
    let old = old.self_signed(&key).unwrap().pem();
    world.tls.client_ca.push(world.file("old-ca.pem", &old));
    world.tls.client_ca.push(world.file("no-ca.pem", &good().self_signed(&key).unwrap().pem()));
    let said: Vec<_> = world.load().findings().iter().map(ToString::to_string).collect();
    for expected in [
        "any user of this machine can read the private key",
        "meant for more than server authentication",
        "valid for 3 years or more",
        "names no host",
        "the intermediate certificate of `CN=receiver` is missing",
        "the CA `CN=old CA` expired",
        "`CN=asapp-client` is not marked as a CA",
    ] {
        assert!(said.iter().any(|line| line.contains(expected)), "no `{expected}` in {said:?}");
    }
}

#[cfg(not(feature = "tls12"))]
#[test]
fn tls_1_2_needs_another_build() {
    let mut world = World::new();
    world.tls.min_version = TlsVersion::Tls12;
    assert!(world.errors()[0].to_string().contains("--features tls12"));
}

#[tokio::test]
async fn the_profile_fits_the_policy() {
    for key_type in [profile::KeyType::Ecdsa, profile::KeyType::Rsa] {
        let options = profile::Options { key_type, days: profile::MAX_DAYS, ..profile::Options::default() };
        let pki = profile::make(&options).unwrap();
        let mut world = World::new();
        pki.write(world.folder.path(), true).unwrap();
        world.tls.client_ca = vec![world.folder.path().join("ca.pem")];
        world.tls.clients = common_name("asapp-demo-client");
        let warned = world.load().findings().into_iter().filter(|f| f.severity > Severity::Info).collect::<Vec<_>>();
        assert_eq!(warned, []);
        let client = Client {
            chain: vec![CertificateDer::from_pem_slice(pki.client.as_bytes()).unwrap()],
            key: PrivateKeyDer::from_pem_slice(pki.client_key.as_bytes()).unwrap(),
        };
        assert!(!world.admits(&client).await.peer.long_validity());
    }
}

#[test]
fn the_profile_overwrites_nothing_unasked() {
    let folder = TempDir::new().unwrap();
    let pki = profile::make(&profile::Options::default()).unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("client.pem"), "mine").unwrap();
    let error = pki.write(folder.path(), false).unwrap_err();
    assert!(error.to_string().contains("client.pem is there already"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    fs::write(path("server-key.pem"), "open to all").unwrap();
    pki.write(folder.path(), true).unwrap();
    for (name, mode) in [("ca.pem", 0o644), ("server-key.pem", 0o600), ("client-key.pem", 0o600)] {
        assert_eq!(fs::metadata(path(name)).unwrap().permissions().mode() & 0o777 & !0o022, mode & !0o022, "{name}");
    }
}

#[test]
fn the_profile_has_limits() {
    for days in [0, 1095] {
        let options = profile::Options { days, ..profile::Options::default() };
        assert!(profile::make(&options).unwrap_err().to_string().contains("1 to 1094"));
    }
    let options = profile::Options { names: vec!["b\u{fc}cher".to_owned()], ..profile::Options::default() };
    assert!(matches!(profile::make(&options), Err(profile::Error::Name(_))));
}
