//! Throw-away certificates, the good and the odd ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize, SanType, SerialNumber,
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use super::chains::Chain;

/// The common name that the tests' receivers let in.
pub(crate) const CLIENT_NAME: &str = "asapp-events.example";

const CA_NAME: &str = "Test CA";

/// The authority that signs ASAPP's client and the receiver's own certificate in every test.
pub(crate) static PKI: LazyLock<Pki> = LazyLock::new(Pki::new);

/// One authority with a good client and a good server.
pub(crate) struct Pki {
    pub(crate) ca: Ca,
    pub(crate) server: Identity,
    pub(crate) client: Identity,
}

/// An authority; its files live as long as it does, or someone it has issued a certificate for.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: Arc<TempDir>,
    pub(crate) certificate: PathBuf,
}

/// A certificate chain and its key, as PEM files.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    _folder: Arc<TempDir>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Key {
    P256,
    P384,
    Rsa2048,
    Rsa3072,
}

impl Pki {
    fn new() -> Self {
        let ca = Ca::new(CA_NAME);
        let server = ca.issue(Key::P256, server_profile());
        let client = ca.issue(Key::P256, client_profile());
        Self { ca, server, client }
    }
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, |_| ())
    }

    /// An authority that differs from the good one by `change`.
    pub(crate) fn with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut profile = ca_profile(name);
        change(&mut profile);
        Self::store(CertifiedIssuer::self_signed(profile, Key::P256.generate()).unwrap())
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        self.intermediate_with(name, |_| ())
    }

    /// An authority below this one that differs from a good one by `change`.
    pub(crate) fn intermediate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut profile = ca_profile(name);
        change(&mut profile);
        Self::store(CertifiedIssuer::signed_by(profile, Key::P256.generate(), &self.issuer).unwrap())
    }

    fn store(issuer: CertifiedIssuer<'static, KeyPair>) -> Self {
        // What a static owns is never cleared away, so it should lie where `cargo clean` finds it.
        let folder = Arc::new(TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let certificate = folder.path().join("ca.pem");
        fs::write(&certificate, issuer.pem()).unwrap();
        Self { issuer, folder, certificate }
    }

    pub(crate) fn issue(&self, key: Key, profile: CertificateParams) -> Identity {
        let key = key.generate();
        let certificate = profile.signed_by(&key, &self.issuer).unwrap();
        self.write(certificate.pem(), &key)
    }

    /// A client that differs from the good one by `change`.
    pub(crate) fn client(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut profile = client_profile();
        change(&mut profile);
        self.issue(Key::P256, profile)
    }

    /// A server certificate that differs from the good one by `change`.
    pub(crate) fn server(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut profile = server_profile();
        change(&mut profile);
        self.issue(Key::P256, profile)
    }

    /// A client below an authority below this one, sent with the intermediate certificate, and without.
    pub(crate) fn client_of_intermediate(&self) -> (Identity, Identity) {
        let intermediate = self.intermediate("Test intermediate CA");
        let alone = intermediate.client(|_| ());
        let chain = fs::read_to_string(&alone.chain).unwrap() + &intermediate.issuer.pem();
        let key = KeyPair::from_pem(&fs::read_to_string(&alone.key).unwrap()).unwrap();
        (self.write(chain, &key), self.write(fs::read_to_string(&alone.chain).unwrap(), &key))
    }

    /// A client that differs from the good one by `change`, sent with this authority's own certificate.
    pub(crate) fn client_with_issuer(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let client = self.client(change);
        fs::write(&client.chain, fs::read_to_string(&client.chain).unwrap() + &self.issuer.pem()).unwrap();
        client
    }

    /// A client below authorities of these names, each below the one before, sent with all of them.
    pub(crate) fn client_below(&self, names: &[&str]) -> Identity {
        let Some((first, others)) = names.split_first() else { return self.client(|_| ()) };
        let mut line = vec![self.intermediate(first)];
        for name in others {
            line.push(line.last().unwrap().intermediate(name));
        }
        let client = line.last().unwrap().client(|_| ());
        let above: String = line.iter().rev().map(|authority| authority.issuer.pem()).collect();
        fs::write(&client.chain, fs::read_to_string(&client.chain).unwrap() + &above).unwrap();
        client
    }

    /// A client that signed itself.
    pub(crate) fn self_signed_client(&self) -> Identity {
        let key = Key::P256.generate();
        self.write(client_profile().self_signed(&key).unwrap().pem(), &key)
    }

    /// A revocation list, valid until `next_update`, with these serial numbers.
    pub(crate) fn crl(&self, revoked: &[u64], next_update: OffsetDateTime) -> PathBuf {
        self.crl_of(OffsetDateTime::now_utc().min(next_update) - Duration::hours(1), revoked, next_update)
    }

    /// The same, issued at `this_update`.
    pub(crate) fn crl_of(&self, this_update: OffsetDateTime, revoked: &[u64], next_update: OffsetDateTime) -> PathBuf {
        self.crl_with(revoked, |crl| (crl.this_update, crl.next_update) = (this_update, next_update))
    }

    /// A revocation list with these serial numbers, issued an hour ago, that differs from a good one by `change`.
    pub(crate) fn crl_with(
        &self,
        revoked: &[u64],
        change: impl FnOnce(&mut CertificateRevocationListParams),
    ) -> PathBuf {
        let this_update = OffsetDateTime::now_utc() - Duration::hours(1);
        let mut crl = CertificateRevocationListParams {
            this_update,
            next_update: this_update + Duration::days(30),
            crl_number: SerialNumber::from(unique()),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|&serial| RevokedCertParams {
                    serial_number: SerialNumber::from(serial),
                    revocation_time: this_update,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        change(&mut crl);
        let path = self.folder.path().join(format!("{}.crl", unique()));
        fs::write(&path, crl.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        path
    }

    fn write(&self, chain: String, key: &KeyPair) -> Identity {
        let stem = self.folder.path().join(unique().to_string());
        let (chain_file, key_file) = (stem.with_extension("pem"), stem.with_extension("key"));
        let identity = Identity { chain: chain_file, key: key_file, _folder: Arc::clone(&self.folder) };
        fs::write(&identity.chain, chain).unwrap();
        write_private(&identity.key, &key.serialize_pem());
        identity
    }
}

impl Identity {
    /// Of one who made all of it up.
    pub(crate) fn made_up(chain: &Chain) -> Self {
        let folder = Arc::new(TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let identity =
            Self { chain: folder.path().join("chain.pem"), key: folder.path().join("key.pem"), _folder: folder };
        let pem = |der: &[u8]| {
            let text = STANDARD.encode(der);
            let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
            format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
        };
        let certificates: String = chain.certificates.iter().map(|certificate| pem(certificate)).collect();
        fs::write(&identity.chain, certificates).unwrap();
        write_private(&identity.key, &chain.key);
        identity
    }
}

/// The distinguished name of [`PKI`]'s authority.
pub(crate) fn authority_name() -> DistinguishedName {
    ca_profile(CA_NAME).distinguished_name
}

impl Key {
    fn generate(self) -> KeyPair {
        match self {
            Self::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Self::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            Self::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Self::Rsa3072 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
        }
        .unwrap()
    }
}

/// What ASAPP's client certificate looks like.
pub(crate) fn client_profile() -> CertificateParams {
    let mut profile = profile(ExtendedKeyUsagePurpose::ClientAuth);
    profile.distinguished_name.push(DnType::OrganizationName, "ASAPP test");
    profile.distinguished_name.push(DnType::CommonName, CLIENT_NAME);
    profile
}

pub(crate) fn server_profile() -> CertificateParams {
    let mut profile = profile(ExtendedKeyUsagePurpose::ServerAuth);
    profile.distinguished_name.push(DnType::CommonName, "localhost");
    profile.subject_alt_names =
        vec![SanType::DnsName("localhost".try_into().unwrap()), SanType::IpAddress([127, 0, 0, 1].into())];
    profile
}

fn profile(usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut profile = CertificateParams::default();
    profile.distinguished_name = rcgen::DistinguishedName::new();
    profile.serial_number = Some(SerialNumber::from(unique()));
    profile.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    profile.not_after = OffsetDateTime::now_utc() + Duration::days(90);
    profile.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    profile.extended_key_usages = vec![usage];
    profile.use_authority_key_identifier_extension = true;
    profile
}

fn ca_profile(name: &str) -> CertificateParams {
    let mut profile = CertificateParams::default();
    profile.distinguished_name = rcgen::DistinguishedName::new();
    profile.distinguished_name.push(DnType::CommonName, name);
    profile.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    profile.not_after = OffsetDateTime::now_utc() + Duration::days(365);
    profile.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    profile.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    profile
}

/// Another common name after the first one: rcgen keeps one value per type, and takes this for a type of its own.
pub(crate) fn second_common_name() -> DnType {
    DnType::CustomDnType(vec![2, 5, 4, 3])
}

pub(crate) fn write_private(path: &Path, text: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// Serial numbers and file names.
fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
