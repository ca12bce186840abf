//! Every certificate row of the fault table.

use super::*;

#[tokio::test]
async fn a_good_client_is_let_in_and_known() {
    let world = World::new();
    let mut params = good();
    params.distinguished_name.push(DnType::OrganizationName, "ASAPP, \"Inc\"\r\n");
    let client = world.issue(&params);
    let session = world.admits(&client).await;
    assert_eq!(&**session.peer.subject(), r#"O=ASAPP\, \"Inc\"\0d\0a,CN=asapp-client"#);
    assert_eq!(*session.peer.certificate_sha256(), sha256(&client.chain[0]));
    assert_eq!(session.alpn, Alpn::Http1);
    assert!(!session.peer.long_validity());
    assert_eq!(session.stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

#[tokio::test]
async fn no_certificate() {
    World::new().refuses(None, Reason::NoCertificate, AlertDescription::CertificateRequired).await;
}

#[tokio::test]
async fn another_ca() {
    let world = World::new();
    let key = KeyPair::generate().unwrap();
    for other in [ca("other CA"), ca("client CA")] {
        let client = Client::new(&good().signed_by(&key, &other).unwrap(), &key);
        world.refuses(Some(&client), Reason::UnknownCa, AlertDescription::UnknownCA).await;
    }
}

#[tokio::test]
async fn self_signed() {
    let world = World::new();
    let key = KeyPair::generate().unwrap();
    for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let mut params = good();
        params.is_ca = is_ca;
        let client = Client::new(&params.self_signed(&key).unwrap(), &key);
        world.refuses(Some(&client), Reason::UnknownCa, AlertDescription::UnknownCA).await;
    }
}

#[tokio::test]
async fn an_intermediate_must_be_sent() {
    let world = World::new();
    let middle = CertifiedIssuer::signed_by(ca_params("middle"), KeyPair::generate().unwrap(), &world.ca).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut client = Client::new(&good().signed_by(&key, &middle).unwrap(), &key);
    world.refuses(Some(&client), Reason::UnknownCa, AlertDescription::UnknownCA).await;
    client.chain.push(middle.der().clone());
    world.admits(&client).await;
}

#[tokio::test]
async fn out_of_its_time() {
    let world = World::new();
    let now = OffsetDateTime::now_utc();
    let mut expired = good();
    expired.not_after = now - Days::minutes(1);
    let mut early = good();
    early.not_before = now + Days::hours(1);
    let alert = AlertDescription::CertificateExpired;
    world.refuses(Some(&world.issue(&expired)), Reason::Expired, alert).await;
    world.refuses(Some(&world.issue(&early)), Reason::NotYetValid, alert).await;
}

#[tokio::test]
async fn revoked() {
    let mut world = World::new();
    let issuer = ca("client CA");
    fs::write(&world.tls.client_ca[0], issuer.pem()).unwrap();
    world.crl(&issuer, &[7], Days::days(7));
    let key = KeyPair::generate().unwrap();
    let issue = |serial: u8| {
        let mut params = good();
        params.serial_number = Some(SerialNumber::from_slice(&[serial]));
        Client::new(&params.signed_by(&key, &issuer).unwrap(), &key)
    };
    world.refuses(Some(&issue(7)), Reason::Revoked, AlertDescription::CertificateRevoked).await;
    world.admits(&issue(8)).await;
}

#[tokio::test]
async fn of_unknown_status_when_there_are_lists() {
    let mut world = World::new();
    let other = ca("other CA");
    world.crl(&other, &[], Days::days(7));
    let client = world.issue(&good());
    world.refuses(Some(&client), Reason::RevocationUnknown, AlertDescription::UnknownCA).await;
    let said: Vec<_> = world.load().findings().iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|line| line.contains("`CN=other CA` is not in tls.client_ca")), "{said:?}");
    assert!(said.iter().any(|line| line.contains("no list of `CN=client CA`")), "{said:?}");
}

#[tokio::test]
async fn with_a_list_that_expires_while_running() {
    let mut world = World::new();
    let issuer = ca("client CA");
    fs::write(&world.tls.client_ca[0], issuer.pem()).unwrap();
    world.crl(&issuer, &[], Days::seconds(6));
    let key = KeyPair::generate().unwrap();
    let client = Client::new(&good().signed_by(&key, &issuer).unwrap(), &key);
    let tls = world.load();
    // Certificates go by the wall clock, in whole seconds.
    let refused = loop {
        match meet(&tls, Some(&client)).await {
            (Err(alert), Err(refused)) => break (refused.reason, alert),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert_eq!(refused, (Reason::RevocationUnknown, AlertDescription::UnknownCA));
}

#[tokio::test]
async fn for_another_usage() {
    let mut world = World::new();
    let usages = |usages: &[Usage]| {
        let mut params = good();
        params.extended_key_usages = usages.to_vec();
        world.issue(&params)
    };
    let server = usages(&[Usage::ServerAuth]);
    let none = usages(&[]);
    let any = usages(&[Usage::Any]);
    let both = usages(&[Usage::ServerAuth, Usage::ClientAuth]);
    for client in [&server, &none, &any, &both] {
        world.refuses(Some(client), Reason::Usage, AlertDescription::UnsupportedCertificate).await;
    }
    world.tls.allow_extra_key_usage = true;
    world.admits(&both).await;
    for client in [&server, &none, &any] {
        world.refuses(Some(client), Reason::Usage, AlertDescription::UnsupportedCertificate).await;
    }
}

#[tokio::test]
async fn keys() {
    let world = World::new();
    let rsa = |size| KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, size).unwrap();
    for key in [
        rsa(RsaKeySize::_3072),
        rsa(RsaKeySize::_4096),
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap(),
    ] {
        world.admits(&world.issue_for(&good(), key)).await;
    }
    for key in [rsa(RsaKeySize::_2048), KeyPair::generate_for(&PKCS_ED25519).unwrap()] {
        let client = world.issue_for(&good(), key);
        world.refuses(Some(&client), Reason::Key, AlertDescription::CertificateUnknown).await;
    }
}

#[tokio::test]
async fn valid_for_three_years() {
    let world = World::new();
    let mut params = good();
    params.not_after = params.not_before + Days::days(1095);
    assert!(world.admits(&world.issue(&params)).await.peer.long_validity());
    params.not_after = params.not_before + Days::days(1094);
    assert!(!world.admits(&world.issue(&params)).await.peer.long_validity());
}

#[tokio::test]
async fn identities_that_only_look_alike() {
    let world = World::new();
    let with = |edit: &dyn Fn(&mut CertificateParams)| {
        let mut params = good();
        edit(&mut params);
        world.issue(&params)
    };
    let cn = |name: &'static str| {
        move |params: &mut CertificateParams| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
        }
    };
    let second = |oid: &'static [u64], value: &'static str| {
        move |params: &mut CertificateParams| {
            params.distinguished_name.push(DnType::CustomDnType(oid.to_vec()), value);
        }
    };
    for client in [
        with(&cn("someone else")),
        with(&cn("asapp-client.evil")),
        with(&cn("evil asapp-client")),
        with(&cn("asapp-clien")),
        with(&cn("ASAPP-client")),
        with(&cn("asapp-client ")),
        with(&cn(" asapp-client")),
        with(&cn("asapp-client\0")),
        with(&cn("asapp-client\0.evil")),
        with(&cn("")),
        with(&second(&[2, 5, 4, 3], "asapp-client")),
        with(&second(&[2, 5, 4, 3], "someone else")),
        with(&|params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "asapp-client");
            params.distinguished_name.push(DnType::OrganizationalUnitName, "asapp-client");
            params.subject_alt_names = vec![SanType::DnsName("asapp-client".try_into().unwrap())];
        }),
    ] {
        world.refuses(Some(&client), Reason::Identity, AlertDescription::AccessDenied).await;
    }
    // Another encoding of the same characters is the same name, and a second value of another attribute is no matter.
    world
        .admits(&with(&|params| {
            params.distinguished_name.push(DnType::OrganizationName, "one");
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 10]), "two");
            let printable = DnValue::PrintableString("asapp-client".try_into().unwrap());
            params.distinguished_name.push(DnType::CommonName, printable);
        }))
        .await;
}

#[tokio::test]
async fn each_way_to_pin() {
    let mut world = World::new();
    let mut params = good();
    params.distinguished_name.push(DnType::OrganizationName, "ASAPP, Inc");
    params.subject_alt_names = vec![
        SanType::DnsName("other.example".try_into().unwrap()),
        SanType::DnsName("client.example".try_into().unwrap()),
        SanType::URI("spiffe://asapp/sender".try_into().unwrap()),
    ];
    let key = KeyPair::generate().unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let client = world.issue_for(&params, key);
    let some = |text: &str| Some(text.to_owned());
    let none = AllowedClient::default;
    let matching = [
        AllowedClient { subject: some(r"O=ASAPP\, Inc,CN=asapp-client"), ..none() },
        AllowedClient { subject: some(r"o=ASAPP\2C Inc,cn=asapp-client"), ..none() },
        AllowedClient { common_name: some("asapp-client"), organization: some("ASAPP, Inc"), ..none() },
        AllowedClient { dns: some("client.example"), ..none() },
        AllowedClient { uri: some("spiffe://asapp/sender"), ..none() },
        AllowedClient { certificate_sha256: Some(sha256(&client.chain[0])), ..none() },
        AllowedClient { public_key_sha256: Some(sha256(&spki)), ..none() },
    ];
    for entry in matching {
        world.tls.clients = AllowedClients::Listed(vec![AllowedClient { dns: some("no.example"), ..none() }, entry]);
        world.admits(&client).await;
    }
    for entry in [
        AllowedClient { subject: some("CN=asapp-client"), ..none() },
        AllowedClient { subject: some(r"CN=asapp-client,O=ASAPP\, Inc"), ..none() },
        AllowedClient { common_name: some("asapp-client"), organization: some("ASAPP"), ..none() },
        AllowedClient { dns: some("CLIENT.example"), ..none() },
        AllowedClient { dns: some("spiffe://asapp/sender"), ..none() },
        AllowedClient { uri: some("client.example"), ..none() },
        AllowedClient { certificate_sha256: Some(sha256(&spki)), ..none() },
        AllowedClient { public_key_sha256: Some(sha256(&client.chain[0])), ..none() },
    ] {
        world.tls.clients = allow(entry);
        world.refuses(Some(&client), Reason::Identity, AlertDescription::AccessDenied).await;
    }
    world.tls.clients = AllowedClients::Any;
    world.admits(&client).await;
}

#[test]
fn a_critical_extension_no_one_knows() {
    let world = World::new();
    let mut params = good();
    let mut odd = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
    odd.set_criticality(true);
    params.custom_extensions.push(odd);
    // rustls' client would not even send it.
    let judged = world.load().current().policy.judge(&world.issue(&params).chain[0], &[], UnixTime::now());
    assert_eq!(judged.unwrap_err().reason, Reason::Other);
}

#[tokio::test]
async fn nothing_is_ever_resumed() {
    let world = World::new();
    let tls = world.load();
    let client = world.issue(&good());
    let config = Arc::new(Client::config(Some(&client)));
    for _ in 0..3 {
        let (listener, address) = listen().await;
        let server = async {
            let mut session = tls.accept(listener.accept().await.unwrap().0, false, soon()).await.unwrap();
            let (_, connection) = session.stream.get_ref();
            assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
            session.stream.write_all(b"hello").await.unwrap();
            session.stream.shutdown().await.unwrap();
        };
        let client = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
            let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
        };
        tokio::join!(client, server);
    }
}

#[tokio::test]
async fn http2_only_where_it_is_switched_on() {
    let world = World::new();
    let tls = world.load();
    let client = world.issue(&good());
    let mut config = Client::config(Some(&client));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let config = Arc::new(config);
    for (http2, expected) in [(false, Alpn::Http1), (true, Alpn::Http2)] {
        let (listener, address) = listen().await;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&config));
        let (session, _stream) =
            tokio::join!(async { tls.accept(listener.accept().await.unwrap().0, http2, soon()).await }, async {
                connector.connect("localhost".try_into().unwrap(), TcpStream::connect(address).await.unwrap()).await
            },);
        assert_eq!(session.unwrap().alpn, expected);
    }
}

/// What the server makes of raw bytes, and what it sends back.
async fn raw(bytes: &[u8], then_close: bool, deadline: Duration) -> (Refused, Vec<u8>) {
    let tls = World::new().load();
    let (listener, address) = listen().await;
    let server = async {
        let stream = listener.accept().await.unwrap().0;
        tls.accept(stream, false, Instant::now() + deadline).await.unwrap_err()
    };
    let client = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        if then_close {
            stream.shutdown().await.unwrap();
        }
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer
    };
    tokio::join!(server, client)
}

#[tokio::test]
async fn tls_1_2() {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, 16]);
    hello.extend(extensions);
    let length = |n: usize| u8::try_from(n).unwrap();
    let mut record = vec![0x16, 3, 1, 0, length(hello.len() + 4), 1, 0, 0, length(hello.len())];
    record.extend(hello);
    let (refused, answer) = raw(&record, false, Duration::from_secs(10)).await;
    assert_eq!(refused.reason, Reason::ProtocolVersion, "{}", refused.detail);
    assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 70]);
}

#[tokio::test]
async fn what_is_no_handshake() {
    let long = Duration::from_secs(10);
    assert_eq!(raw(b"", true, long).await.0.reason, Reason::Probe);
    assert_eq!(raw(b"\x16\x03", true, long).await.0.reason, Reason::Aborted);
    assert_eq!(raw(b"GET / HTTP/1.1\r\n\r\n", false, long).await.0.reason, Reason::NotTls);
    let short = Duration::from_millis(50);
    assert_eq!(raw(b"", false, short).await.0.reason, Reason::Timeout);
    assert_eq!(raw(b"\x16\x03\x01\x02", false, short).await.0.reason, Reason::Timeout);
}

#[tokio::test]
async fn a_reload_takes_the_whole_set_or_nothing() {
    let mut world = World::new();
    let tls = world.load();
    let client = world.issue(&good());
    let peer = meet(&tls, Some(&client)).await.1.unwrap().peer;

    let broken = config::Tls { client_ca: vec![world.file("empty.pem", "")], ..world.tls.clone() };
    tls.reload(&broken, &Files::read(&broken)).unwrap_err();
    assert!(tls.dismiss_clients().is_empty() && !peer.is_dismissed());
    assert!(meet(&tls, Some(&client)).await.1.is_ok());

    world.tls.clients = common_name("someone-else");
    tls.reload(&world.tls, &Files::read(&world.tls)).unwrap();
    let dismissed = tls.dismiss_clients();
    assert_eq!(dismissed.iter().map(|client| client.reason).collect::<Vec<_>>(), [Reason::Identity]);
    assert!(peer.is_dismissed());
    assert_eq!(meet(&tls, Some(&client)).await.1.unwrap_err().reason, Reason::Identity);
}

#[tokio::test]
async fn a_handshake_that_outlasts_its_set_is_judged_by_the_new_one() {
    let mut world = World::new();
    let tls = world.load();
    let client = world.issue(&good());
    let (listener, address) = listen().await;
    let stream = TcpStream::connect(address).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let mut accepting = std::pin::pin!(tls.accept(accepted, false, soon()));
    // It has its set from its first step on, and waits for the client.
    assert!(futures_util::poll!(&mut accepting).is_pending());

    world.tls.clients = common_name("someone-else");
    tls.reload(&world.tls, &Files::read(&world.tls)).unwrap();
    assert!(tls.dismiss_clients().is_empty());
    let connector = tokio_rustls::TlsConnector::from(Arc::new(Client::config(Some(&client))));
    let name = ServerName::try_from("localhost").unwrap();
    let (refused, _) = tokio::join!(accepting, connector.connect(name, stream));
    assert_eq!(refused.unwrap_err().reason, Reason::Identity);
}

#[tokio::test]
async fn a_client_is_kept_once_however_many_connections_it_has() {
    let world = World::new();
    let tls = world.load();
    let (one, other) = (world.issue(&good()), world.issue(&good()));
    let peer = async |client| meet(&tls, Some(client)).await.1.unwrap().peer;
    let (first, second, third) = (peer(&one).await, peer(&one).await, peer(&other).await);
    assert!(std::ptr::eq(first.chain(), second.chain()));
    assert!(!std::ptr::eq(first.chain(), third.chain()));
}

#[cfg(feature = "tls12")]
#[tokio::test]
async fn tls_1_2_where_it_is_switched_on_has_four_suites_and_no_memory() {
    use rustls::CipherSuite as S;
    let mut world = World::new();
    world.tls.min_version = TlsVersion::Tls12;
    let tls = world.load();
    let client = world.issue(&good());
    for (suite, served) in [
        (S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, true),
        (S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, true),
        (S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, false),
    ] {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|known| known.suite() == suite);
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustAll))
            .with_client_auth_cert(client.chain.clone(), client.key.clone_key())
            .unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        // The second connection would resume the first.
        for _ in 0..2 {
            let (listener, address) = listen().await;
            let (session, _stream) =
                tokio::join!(async { tls.accept(listener.accept().await.unwrap().0, false, soon()).await }, async {
                    connector.connect("localhost".try_into().unwrap(), TcpStream::connect(address).await.unwrap()).await
                },);
            match session {
                Ok(session) => {
                    assert!(served);
                    let connection = session.stream.get_ref().1;
                    assert_eq!(connection.negotiated_cipher_suite().unwrap().suite(), suite);
                    assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
                }
                Err(refused) => assert_eq!((served, refused.reason), (false, Reason::Incompatible)),
            }
        }
    }
}
