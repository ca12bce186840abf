//! Real files, real sockets, throw-away certificates, and a client that takes what it is given.

mod files;
mod handshakes;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CustomExtension, DnType,
    DnValue, ExtendedKeyUsagePurpose as Usage, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::digest::sha256;
use super::{Alpn, Files, Finding, Reason, Refused, ServerTls, Session, Severity, profile};
use crate::config::{self, AllowedClient, AllowedClients, TlsVersion};

type Days = time::Duration;

/// A server's files, and the CA that signs its clients.
struct World {
    folder: TempDir,
    ca: CertifiedIssuer<'static, KeyPair>,
    tls: config::Tls,
}

struct Client {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

fn ca(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = OffsetDateTime::now_utc() - Days::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Days::days(365);
    params
}

/// What a good client of ASAPP presents.
fn good() -> CertificateParams {
    let mut params = named("asapp-client");
    params.extended_key_usages = vec![Usage::ClientAuth];
    params
}

fn allow(entry: AllowedClient) -> AllowedClients {
    AllowedClients::Listed(vec![entry])
}

fn common_name(name: &str) -> AllowedClients {
    allow(AllowedClient { common_name: Some(name.to_owned()), ..AllowedClient::default() })
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let pki = profile::make(&profile::Options::default()).unwrap();
        pki.write(folder.path(), false).unwrap();
        let ca = ca("client CA");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("client-ca.pem"), ca.pem()).unwrap();
        let tls = config::Tls {
            certificate: path("server.pem"),
            private_key: path("server-key.pem"),
            client_ca: vec![path("client-ca.pem")],
            client_crl: Vec::new(),
            min_version: TlsVersion::Tls13,
            reload_interval: Duration::from_secs(30),
            allow_extra_key_usage: false,
            clients: common_name("asapp-client"),
        };
        Self { folder, ca, tls }
    }

    fn issue(&self, params: &CertificateParams) -> Client {
        self.issue_for(params, KeyPair::generate().unwrap())
    }

    fn issue_for(&self, params: &CertificateParams, key: KeyPair) -> Client {
        Client::new(&params.signed_by(&key, &self.ca).unwrap(), &key)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn crl(&mut self, issuer: &CertifiedIssuer<'_, KeyPair>, revoked: &[u8], valid: Days) {
        let now = OffsetDateTime::now_utc();
        let crl = CertificateRevocationListParams {
            this_update: now - Days::days(30),
            next_update: now + valid,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&[*serial]),
                    revocation_time: now - Days::days(1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let text = crl.signed_by(issuer).unwrap().pem().unwrap();
        let name = format!("{}.crl", self.tls.client_crl.len());
        let path = self.file(&name, &text);
        self.tls.client_crl.push(path);
    }

    fn load(&self) -> ServerTls {
        ServerTls::load(&self.tls).unwrap()
    }

    fn errors(&self) -> Vec<Finding> {
        let findings = ServerTls::load(&self.tls).unwrap_err();
        findings.into_iter().filter(|finding| finding.severity == Severity::Error).collect()
    }

    /// The one error there is must name the file, and say this.
    fn refuses_to_load(&self, file: &str, what: &str) {
        let errors = self.errors();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].file.as_ref(), Some(&self.folder.path().join(file)));
        assert!(errors[0].to_string().contains(what), "{}", errors[0]);
        assert!(!errors[0].remedy.is_empty());
    }

    /// What the client's first read gives, and what the server says.
    async fn meet(&self, client: Option<&Client>) -> (Result<Vec<u8>, AlertDescription>, Result<Session, Refused>) {
        meet(&self.load(), client).await
    }

    async fn admits(&self, client: &Client) -> Session {
        let (answer, session) = self.meet(Some(client)).await;
        assert_eq!(answer.unwrap(), b"hello");
        session.unwrap()
    }

    async fn refuses(&self, client: Option<&Client>, reason: Reason, alert: AlertDescription) {
        let (answer, session) = self.meet(client).await;
        let refused = session.unwrap_err();
        assert_eq!((refused.reason, answer), (reason, Err(alert)), "{}", refused.detail);
    }
}

impl Client {
    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        Self { chain: vec![certificate.der().clone()], key }
    }

    fn config(client: Option<&Self>) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        // The server's side is what is tested; its certificate is of a throw-away CA.
        let mut roots = RootCertStore::empty();
        roots.add(self_issued_by_test()).unwrap();
        let config = config.with_root_certificates(roots);
        let mut config = match client {
            None => config.with_no_client_auth(),
            Some(client) => config.with_client_auth_cert(client.chain.clone(), client.key.clone_key()).unwrap(),
        };
        config.dangerous().set_certificate_verifier(Arc::new(TrustAll));
        config
    }
}

fn self_issued_by_test() -> CertificateDer<'static> {
    ca("unused").der().clone()
}

/// The client's side trusts any server.
#[derive(Debug)]
struct TrustAll;

impl rustls::client::danger::ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

async fn meet(
    tls: &ServerTls,
    client: Option<&Client>,
) -> (Result<Vec<u8>, AlertDescription>, Result<Session, Refused>) {
    let config = Client::config(client);
    let (listener, address) = listen().await;
    let server = async {
        let mut session = tls.accept(listener.accept().await.unwrap().0, true, soon()).await?;
        session.stream.write_all(b"hello").await.unwrap();
        session.stream.shutdown().await.unwrap();
        Ok(session)
    };
    let client = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let read = async {
            let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
            // A request is on its way before the server has judged: it must not cost the client the alert.
            stream.write_all(b"POST /events HTTP/1.1\r\n").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        read.await.map_err(|error| match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => *alert,
            other => panic!("no alert but {other:?} of {error}"),
        })
    };
    tokio::join!(client, server)
}
