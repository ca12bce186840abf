//! All TLS files, read and checked as one set: every problem is found in one go, each with its file and the remedy.

mod lists;
mod own;
mod signed;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConfig, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{RootCertStore, SupportedProtocolVersion};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, NameConstraints};
use x509_cert::time::Time;

use self::signed::Algorithms;
use super::expiry::Expiry;
use super::files::{Content, Files, Fingerprint};
use super::finding::{Finding, Severity};
use super::identity::{Clients, rfc4514};
use super::revocation::Lists;
use super::verify::{CLIENT_AUTH, Judge, Key, Policy, extended_key_usages};
#[cfg(not(feature = "tls12"))]
use crate::about::Feature;
use crate::config::{Tls, TlsVersion};
use crate::pem;

/// One consistent set of TLS files, immutable.
pub(super) struct Material {
    pub(super) policy: Arc<Policy>,
    pub(super) findings: Vec<Finding>,
    pub(super) expiries: Vec<Expiry>,
    pub(super) fingerprint: Fingerprint,
    own: Arc<SingleCertAndKey>,
    provider: Arc<CryptoProvider>,
    versions: Vec<&'static SupportedProtocolVersion>,
    anchors: Vec<Anchor>,
    crls: Vec<CertificateRevocationListDer<'static>>,
}

impl Material {
    /// # Errors
    /// Every finding, when one of them is an error.
    pub(super) fn load(tls: &Tls, files: &Files) -> Result<Self, Vec<Finding>> {
        let now = since_epoch(SystemTime::now());
        let mut loading = Loading { files, now, findings: Vec::new(), expiries: Vec::new() };
        let (provider, versions) = loading.protocol(tls.min_version);
        let algorithms = provider.signature_verification_algorithms.all;
        let own = loading.own(tls, &provider);
        let roots = loading.client_ca(&tls.client_ca, algorithms);
        let crls = loading.client_crl(&tls.client_crl, &roots, &provider);
        let clients = Clients::compile(&tls.clients, &mut loading.findings);
        let anchors: Vec<Anchor> = roots.into_iter().map(Anchor::from).collect();
        let (crls, lists): (Vec<_>, Vec<_>) = crls.into_iter().map(|crl| (crl.der, crl.list)).unzip();
        let chain = loading.chain(&anchors, &crls, &provider);
        match (own, chain) {
            (Some(own), Some(chain)) if !loading.failed() => Ok(Self {
                policy: Arc::new(Policy {
                    chain,
                    nobody: false,
                    lists: Arc::new(Lists::new(lists)),
                    clients: Arc::new(clients),
                    allow_extra_key_usage: tls.allow_extra_key_usage,
                }),
                findings: loading.findings,
                expiries: loading.expiries,
                fingerprint: files.fingerprint(),
                own,
                provider,
                versions,
                anchors,
                crls,
            }),
            _ => Err(loading.findings),
        }
    }

    /// The same set without the CAs that have expired since it was loaded: webpki does not look at an anchor's time.
    /// `None` while there are none.
    pub(super) fn without_expired(&self, now: SystemTime) -> Option<Self> {
        let now = since_epoch(now);
        let anchors: Vec<Anchor> = self.anchors.iter().filter(|anchor| anchor.until >= now).cloned().collect();
        if anchors.len() == self.anchors.len() {
            return None;
        }
        // What was good for more anchors is good for some of them; with none, nobody gets in.
        let chain = verifier(&anchors, &self.crls, &self.provider).ok();
        let policy = Policy {
            nobody: chain.is_none(),
            chain: chain.unwrap_or_else(|| Arc::clone(&self.policy.chain)),
            lists: Arc::clone(&self.policy.lists),
            clients: Arc::clone(&self.policy.clients),
            allow_extra_key_usage: self.policy.allow_extra_key_usage,
        };
        Some(Self {
            policy: Arc::new(policy),
            findings: self.findings.clone(),
            expiries: self.expiries.clone(),
            fingerprint: self.fingerprint.clone(),
            own: Arc::clone(&self.own),
            provider: Arc::clone(&self.provider),
            versions: self.versions.clone(),
            anchors,
            crls: self.crls.clone(),
        })
    }

    /// The settings for one connection, judged by `judge`. Every connection proves itself: nothing can be resumed.
    pub(super) fn server_config(&self, judge: Arc<Judge>, http2: bool) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&self.versions)?
            .with_client_cert_verifier(judge)
            .with_cert_resolver(Arc::clone(&self.own) as _);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if http2 {
            config.alpn_protocols.insert(0, b"h2".to_vec());
        }
        Ok(config)
    }
}

/// Says nothing, for the private key is in it.
impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

/// Extensions of a CA that may be critical: those that are looked at, and those that limit no client.
const LIMITS: [ObjectIdentifier; 14] = [
    ObjectIdentifier::new_unwrap("2.5.29.14"),         // subjectKeyIdentifier
    ObjectIdentifier::new_unwrap("2.5.29.15"),         // keyUsage
    ObjectIdentifier::new_unwrap("2.5.29.17"),         // subjectAltName
    ObjectIdentifier::new_unwrap("2.5.29.18"),         // issuerAltName
    ObjectIdentifier::new_unwrap("2.5.29.19"),         // basicConstraints
    ObjectIdentifier::new_unwrap("2.5.29.30"),         // nameConstraints
    ObjectIdentifier::new_unwrap("2.5.29.31"),         // cRLDistributionPoints
    ObjectIdentifier::new_unwrap("2.5.29.32"),         // certificatePolicies
    ObjectIdentifier::new_unwrap("2.5.29.33"),         // policyMappings
    ObjectIdentifier::new_unwrap("2.5.29.35"),         // authorityKeyIdentifier
    ObjectIdentifier::new_unwrap("2.5.29.36"),         // policyConstraints
    ObjectIdentifier::new_unwrap("2.5.29.37"),         // extKeyUsage
    ObjectIdentifier::new_unwrap("2.5.29.54"),         // inhibitAnyPolicy
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.1"), // authorityInfoAccess
];

/// A client CA: the anchor as webpki wants it, and what else is asked of it.
struct Root {
    der: CertificateDer<'static>,
    certificate: Certificate,
    file: PathBuf,
}

/// What is left of it in the set.
#[derive(Clone)]
struct Anchor {
    der: CertificateDer<'static>,
    file: PathBuf,
    /// Since the epoch.
    until: Duration,
}

struct Loading<'a> {
    files: &'a Files,
    /// Since the epoch, once for the whole set.
    now: Duration,
    findings: Vec<Finding>,
    expiries: Vec<Expiry>,
}

impl From<Root> for Anchor {
    fn from(root: Root) -> Self {
        let until = root.certificate.tbs_certificate().validity().not_after.to_unix_duration();
        Self { der: root.der, file: root.file, until }
    }
}

impl<'a> Loading<'a> {
    fn failed(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    fn protocol(&mut self, min_version: TlsVersion) -> (Arc<CryptoProvider>, Vec<&'static SupportedProtocolVersion>) {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        // It gathers its entropy at the first use, some 70 ms of processor time: not on a stranger's connection. What fails
        // here fails there.
        let _ = provider.secure_random.fill(&mut [0]);
        match min_version {
            TlsVersion::Tls13 => (Arc::new(provider), vec![&rustls::version::TLS13]),
            #[cfg(feature = "tls12")]
            TlsVersion::Tls12 => {
                (Arc::new(with_asapp_suites(provider)), vec![&rustls::version::TLS13, &rustls::version::TLS12])
            }
            #[cfg(not(feature = "tls12"))]
            TlsVersion::Tls12 => {
                let what = "tls.min_version is 1.2, but this build only knows TLS 1.3";
                self.findings.push(Finding::error(what, None, Feature::Tls12.remedy()));
                (Arc::new(provider), vec![&rustls::version::TLS13])
            }
        }
    }

    /// The CAs whose clients may come, without those that have expired.
    fn client_ca(&mut self, files: &[PathBuf], algorithms: Algorithms) -> Vec<Root> {
        let mut roots = Vec::new();
        for file in files {
            let Some(ders) = self.pem(file, pem::authorities) else { continue };
            let Some(parsed) = self.parse(&ders, file) else { continue };
            for (der, certificate) in ders.into_iter().zip(parsed) {
                let tbs = certificate.tbs_certificate();
                let name = rfc4514(tbs.subject());
                if self.expired(tbs.validity().not_after) {
                    self.warn(
                        format!(
                            "the CA `{name}` expired on {}, its clients are refused",
                            date(tbs.validity().not_after)
                        ),
                        file,
                        "replace it with its successor",
                    );
                    continue;
                }
                self.check_ca(&certificate, &name, file, algorithms);
                self.expiries.push(Expiry::of_certificate("tls.client_ca", file, &certificate));
                roots.push(Root { der, certificate, file: file.clone() });
            }
        }
        if roots.is_empty() && !self.failed() {
            self.findings.push(Finding::error(
                "tls.client_ca holds no CA that is valid now, so no client could connect",
                None,
                "set it to the CA that signs ASAPP's client certificate",
            ));
        }
        roots
    }

    /// What would else come to light only when the first client is refused.
    fn check_ca(&mut self, certificate: &Certificate, name: &str, file: &Path, algorithms: Algorithms) {
        let tbs = certificate.tbs_certificate();
        let is_ca = is_ca(certificate);
        // Those of the first version say nothing of it. One that signed itself may be a client's, which is its own CA then.
        let may_be_one = tbs.extensions().is_none() || tbs.subject() == tbs.issuer();
        if !is_ca && may_be_one {
            let what = format!("`{name}` is not marked as a CA");
            self.warn(what, file, "tls.client_ca wants the CA's certificate, not the client's");
        } else if !is_ca {
            let what = format!("`{name}` is no CA, so nobody could get in by it");
            self.error(what, file, "put the certificate of the CA that signs ASAPP's there, not ASAPP's own");
        } else if !may_certify(certificate) {
            let what = format!("the CA `{name}` may not sign certificates: its key usage lacks keyCertSign");
            self.error(what, file, "replace it by the CA that signs ASAPP's client certificate");
        }
        if !signed::is_usable(certificate, algorithms) {
            let what = format!("the key of `{name}` cannot be used: {}", Key::of(certificate));
            self.error(what, file, "replace it by a CA with RSA of 2048 to 8192 bits, P-256, P-384, P-521 or Ed25519");
        }
        if tbs.validity().not_before.to_unix_duration() > self.now {
            let what = format!("`{name}` is not valid before {}", date(tbs.validity().not_before));
            self.warn(what, file, "its clients are let in all the same; check the clock of this machine");
        }
        self.check_limits(certificate, name, file);
    }

    /// What a CA says of whom it vouches for, as far as it is not kept with each handshake, or kept more strictly than meant.
    fn check_limits(&mut self, certificate: &Certificate, name: &str, file: &Path) {
        const ANY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
        const REMEDY: &str = "ask the CA for a certificate without these name constraints, and say in tls.allowed_clients \
                              which names may come";
        let tbs = certificate.tbs_certificate();
        if extended_key_usages(certificate)
            .is_some_and(|usages| !usages.contains(&CLIENT_AUTH) && !usages.contains(&ANY_USAGE))
        {
            let what =
                format!("the CA `{name}` is not meant for client authentication: its extended key usages lack it");
            self.error(what, file, "replace it by the CA that signs ASAPP's client certificate");
        }
        for extension in tbs.extensions().into_iter().flatten() {
            if extension.critical && !LIMITS.contains(&extension.extn_id) {
                let what =
                    format!("the CA `{name}` has a critical extension that is not known here: {}", extension.extn_id);
                self.error(what, file, "ask the CA what it limits, and for a certificate without it");
            }
        }
        // webpki compares DNS names and IP addresses only, and refuses whoever has a name of another constrained kind.
        // Every certificate has a directory name.
        match tbs.get_extension::<NameConstraints>() {
            Ok(None) => {}
            Ok(Some((_, NameConstraints { permitted_subtrees, excluded_subtrees }))) => {
                let limited = || permitted_subtrees.iter().chain(&excluded_subtrees).flatten().map(|tree| &tree.base);
                if limited().any(|base| matches!(base, GeneralName::DirectoryName(_))) {
                    let what = format!(
                        "the CA `{name}` constrains directory names (nameConstraints), which are not compared here, so \
                         nobody could get in by it"
                    );
                    self.error(what, file, REMEDY);
                } else if limited().any(|base| !matches!(base, GeneralName::DnsName(_) | GeneralName::IpAddress(_))) {
                    let what = format!(
                        "the CA `{name}` constrains names of a kind that is not compared here (nameConstraints): clients \
                         with a subject alternative name of that kind, such as a URI, are refused"
                    );
                    self.warn(what, file, REMEDY);
                }
            }
            Err(_) => {
                let what = format!("the CA `{name}` has name constraints that cannot be read: clients may be refused");
                self.warn(what, file, REMEDY);
            }
        }
    }

    fn chain(
        &mut self,
        anchors: &[Anchor],
        crls: &[CertificateRevocationListDer<'static>],
        provider: &Arc<CryptoProvider>,
    ) -> Option<Arc<dyn ClientCertVerifier>> {
        for anchor in anchors {
            if RootCertStore::empty().add(anchor.der.clone()).is_err() {
                self.error("holds a certificate that cannot be a CA", &anchor.file, "replace it");
            }
        }
        if self.failed() {
            return None;
        }
        verifier(anchors, crls, provider)
            .map_err(|error| {
                self.findings.push(Finding::error(
                    format!("tls.client_crl cannot be used: {error}"),
                    None,
                    "ask the CA for a complete, direct list",
                ));
            })
            .ok()
    }

    /// All that a PEM file holds, by one of the readers of [`pem`].
    fn pem<T>(&mut self, file: &Path, reader: fn(&[u8]) -> Result<T, pem::Fault>) -> Option<T> {
        let text = &self.read(file)?.bytes;
        reader(text).map_err(|fault| self.error(fault.what(), file, fault.remedy())).ok()
    }

    fn read(&mut self, file: &Path) -> Option<&'a Content> {
        let files = self.files;
        files
            .get(file)
            .map_err(|error| self.error(format!("cannot be read: {error}"), file, "check the path and its permissions"))
            .ok()
    }

    fn parse(&mut self, ders: &[CertificateDer<'_>], file: &Path) -> Option<Vec<Certificate>> {
        let parsed = ders.iter().map(|der| Certificate::from_der(der)).collect::<Result<Vec<_>, _>>();
        parsed.map_err(|_| self.error("holds a damaged certificate", file, "copy it again, whole")).ok()
    }

    fn expired(&self, end: Time) -> bool {
        end.to_unix_duration() < self.now
    }

    fn error(&mut self, what: impl Into<String>, file: &Path, remedy: impl Into<String>) {
        self.findings.push(Finding::error(what, Some(file), remedy));
    }

    fn warn(&mut self, what: impl Into<String>, file: &Path, remedy: impl Into<String>) {
        self.findings.push(Finding::warning(what, file, remedy));
    }
}

pub(super) fn is_ca(certificate: &Certificate) -> bool {
    matches!(certificate.tbs_certificate().get_extension::<BasicConstraints>(), Ok(Some((_, found))) if found.ca)
}

/// Without a key usage it may.
pub(super) fn may_certify(certificate: &Certificate) -> bool {
    key_usage(certificate).is_ok_and(|usage| usage.is_none_or(|usage| usage.key_cert_sign()))
}

pub(super) fn key_usage(certificate: &Certificate) -> Result<Option<KeyUsage>, x509_cert::der::Error> {
    Ok(certificate.tbs_certificate().get_extension::<KeyUsage>()?.map(|(_, usage)| usage))
}

/// webpki's verifier over these anchors and lists. With any list given, a client of unknown status is refused.
fn verifier(
    anchors: &[Anchor],
    crls: &[CertificateRevocationListDer<'static>],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    let mut roots = RootCertStore::empty();
    // Each was tried by itself when the set was loaded.
    roots.add_parsable_certificates(anchors.iter().map(|anchor| anchor.der.clone()));
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .with_crls(crls.iter().cloned())
        .only_check_end_entity_revocation()
        .enforce_revocation_expiration()
        .build()
}

/// TLS 1.2 with just the four suites that ASAPP lists; TLS 1.3 as it is.
#[cfg(feature = "tls12")]
fn with_asapp_suites(mut provider: CryptoProvider) -> CryptoProvider {
    use rustls::CipherSuite as S;
    provider.cipher_suites.retain(|suite| {
        suite.tls13().is_some()
            || matches!(
                suite.suite(),
                S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                    | S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
                    | S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
                    | S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
            )
    });
    provider
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn date(time: Time) -> String {
    time.to_date_time().to_string()
}
