//! The judgement of a client's certificate: webpki's, then what webpki lets pass.

use std::fmt::{self, Display, Write as _};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::der::{Decode, Encode};
use x509_cert::ext::pkix::{ExtendedKeyUsage, KeyUsage};
use x509_cert::spki::SubjectPublicKeyInfoOwned;

use super::chain;
use super::digest::sha256;
use super::identity::{Clients, Presented, rfc4514};
use super::peers::PeerIdentity;
use super::refused::Reason;
use super::revocation::{Lists, Objection};

pub(super) const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");
/// From three years of validity on a certificate is odd: ASAPP promises less.
pub(super) const LONG_VALIDITY: Duration = Duration::from_secs(1095 * 24 * 60 * 60);
/// Characters of what the log says about a refusal: a certificate may hold thousands.
const DETAIL: usize = 500;

/// By what every client is judged. Immutable: a reload makes a new one.
#[derive(Debug)]
pub(super) struct Policy {
    /// webpki's verifier: chain, time, revocation.
    pub(super) chain: Arc<dyn ClientCertVerifier>,
    /// Every CA has expired; `chain` does not know.
    pub(super) nobody: bool,
    /// What `chain` does not ask of the revocation lists.
    pub(super) lists: Arc<Lists>,
    pub(super) clients: Arc<Clients>,
    pub(super) allow_extra_key_usage: bool,
}

/// Why a client was refused: `reason` is counted, `detail` is for the log, `alert` goes out.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) detail: String,
    alert: CertificateError,
}

impl Policy {
    /// The one way to a [`PeerIdentity`].
    pub(super) fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<PeerIdentity, Refusal> {
        if self.nobody {
            let detail = "every CA of tls.client_ca has expired";
            return Err(Refusal::new(Reason::Expired, detail, CertificateError::Expired));
        }
        let fit = chain::fit(end_entity, intermediates).map_err(|unfit| {
            let alert = CertificateError::Other(OtherError(Arc::new(unfit)));
            Refusal::new(Reason::Chain, unfit.to_string(), alert)
        })?;
        let parsed = Certificate::from_der(end_entity);
        if let Err(error) = self.chain.verify_client_cert(end_entity, &fit.intermediates, now) {
            let refusal = from_webpki(error, parsed.ok().as_ref());
            return Err(if fit.barred > 0 && refusal.reason == Reason::UnknownCa {
                let detail = "an intermediate certificate is not meant for signing certificates (keyCertSign)";
                Refusal::new(Reason::Usage, detail, refusal.alert)
            } else {
                refusal
            });
        }
        let certificate = parsed.map_err(|_| {
            Refusal::new(
                Reason::Malformed,
                "the certificate is not as RFC 5280 wants it",
                CertificateError::BadEncoding,
            )
        })?;
        let subject = rfc4514(certificate.tbs_certificate().subject());
        self.check_lists(&certificate, &subject, now)?;
        self.check_usage(&certificate, &subject)?;
        check_key(&certificate, &subject)?;
        let identity = Presented {
            certificate: &certificate,
            certificate_sha256: sha256(end_entity),
            public_key_sha256: public_key_sha256(&certificate),
        };
        if !self.clients.admit(&identity) {
            let detail = format!("no entry of tls.allowed_clients matches the certificate of `{subject}`");
            return Err(Refusal::new(Reason::Identity, detail, CertificateError::ApplicationVerificationFailure));
        }
        let chain = std::iter::once(end_entity).chain(intermediates).map(|der| der.clone().into_owned()).collect();
        let long_validity = validity(&certificate) >= LONG_VALIDITY;
        Ok(PeerIdentity::new(subject.into(), identity.certificate_sha256, long_validity, chain))
    }

    /// webpki asks the first list that fits.
    fn check_lists(&self, certificate: &Certificate, subject: &str, now: UnixTime) -> Result<(), Refusal> {
        let now = Duration::from_secs(now.as_secs());
        let Some(objection) = self.lists.objection(certificate.tbs_certificate(), now) else { return Ok(()) };
        let issuer = rfc4514(certificate.tbs_certificate().issuer());
        Err(match objection {
            Objection::Revoked => {
                let detail = format!("a revocation list of `{issuer}` names the certificate of `{subject}`");
                Refusal::new(Reason::Revoked, detail, CertificateError::Revoked)
            }
            Objection::NotCovered => {
                let detail = format!(
                    "tls.client_crl has partitions of the list of `{issuer}` only, and the certificate of `{subject}` \
                     names none of them"
                );
                Refusal::new(Reason::RevocationUnknown, detail, CertificateError::UnknownRevocationStatus)
            }
        })
    }

    /// webpki takes a certificate without any extended key usage for one that may do everything, and does not look at
    /// an end entity's key usage.
    fn check_usage(&self, certificate: &Certificate, subject: &str) -> Result<(), Refusal> {
        let usages = extended_key_usages(certificate);
        let detail = match usages {
            _ if !may_sign(certificate) => "has a key that is not meant for digital signatures",
            Some(usages) if !usages.contains(&CLIENT_AUTH) => "is not meant for client authentication",
            Some(usages) if usages.len() > 1 && !self.allow_extra_key_usage => {
                "is meant for more than client authentication; tls.allow_extra_key_usage would let it pass"
            }
            Some(_) => return Ok(()),
            None => "has no extended key usage, so is not meant for client authentication",
        };
        let detail = format!("the certificate of `{subject}` {detail}");
        Err(Refusal::new(Reason::Usage, detail, CertificateError::InvalidPurpose))
    }
}

fn check_key(certificate: &Certificate, subject: &str) -> Result<(), Refusal> {
    match Key::of(certificate) {
        Key::Rsa(bits) if bits >= 3072 => Ok(()),
        Key::P256 | Key::P384 => Ok(()),
        key => {
            let detail = format!(
                "the certificate of `{subject}` has a key of {key}; wanted is RSA of at least 3072 bits, P-256 or P-384"
            );
            Err(Refusal::new(Reason::Key, detail, CertificateError::Other(OtherError(Arc::new(WeakKey)))))
        }
    }
}

/// The reason to report for what webpki found; corrects the alerts that RFC 8446 names otherwise.
fn from_webpki(error: rustls::Error, certificate: Option<&Certificate>) -> Refusal {
    use CertificateError as E;
    let overstepped = match &error {
        rustls::Error::InvalidCertificate(E::Other(OtherError(cause))) => constraint(cause.as_ref()),
        _ => None,
    };
    let detail = overstepped.map_or_else(|| bounded(&error), str::to_owned);
    let self_issued = certificate.is_some_and(|c| c.tbs_certificate().issuer() == c.tbs_certificate().subject());
    let (reason, alert) = match error {
        rustls::Error::InvalidCertificate(alert) => match alert {
            E::Expired | E::ExpiredContext { .. } => (Reason::Expired, alert),
            E::NotValidYet | E::NotValidYetContext { .. } => (Reason::NotYetValid, alert),
            E::Revoked => (Reason::Revoked, alert),
            E::UnknownRevocationStatus | E::ExpiredRevocationList | E::ExpiredRevocationListContext { .. } => {
                (Reason::RevocationUnknown, alert)
            }
            // A CA of the same name but another key: as unknown as any other.
            E::UnknownIssuer | E::BadSignature => (Reason::UnknownCa, E::UnknownIssuer),
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => (Reason::Usage, alert),
            E::BadEncoding => (Reason::Malformed, alert),
            _ if overstepped.is_some() => (Reason::Constraints, alert),
            // webpki's word for the usual self-signed certificate is that a CA poses as a client.
            _ if self_issued => (Reason::UnknownCa, E::UnknownIssuer),
            _ => (Reason::Other, alert),
        },
        rustls::Error::InvalidCertRevocationList(_) => (Reason::RevocationUnknown, E::UnknownRevocationStatus),
        _ => (Reason::Other, E::BadEncoding),
    };
    Refusal { reason, detail, alert }
}

/// Which limit set by a CA of the chain was exceeded. webpki's error says so in its text alone.
fn constraint(cause: &dyn std::error::Error) -> Option<&'static str> {
    match cause.to_string().as_str() {
        "NameConstraintViolation" => Some(
            "a CA of the chain has name constraints (nameConstraints) that the names in the certificates do not meet, or \
             that are of a kind which is not compared here",
        ),
        "PathLenConstraintViolated" => {
            Some("a CA of the chain allows fewer intermediates below it (pathLenConstraint)")
        }
        _ => None,
    }
}

impl Refusal {
    fn new(reason: Reason, detail: impl Into<String>, alert: CertificateError) -> Self {
        Self { reason, detail: bounded(&detail.into()), alert }
    }
}

/// The beginning of a text, without putting together the rest.
pub(super) fn bounded(text: &dyn Display) -> String {
    struct Room(String, usize);
    impl fmt::Write for Room {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for c in text.chars() {
                self.1 = self.1.checked_sub(1).ok_or(fmt::Error)?;
                self.0.push(c);
            }
            Ok(())
        }
    }
    let mut room = Room(String::new(), DETAIL);
    if write!(room, "{text}").is_err() {
        room.0.push('\u{2026}');
    }
    room.0
}

#[derive(Debug, thiserror::Error)]
#[error("the key of the certificate is too weak")]
struct WeakKey;

/// What kind of public key a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// With this many bits.
    Rsa(usize),
    P256,
    P384,
    P521,
    Ed25519,
    Other,
}

impl Key {
    pub(super) fn of(certificate: &Certificate) -> Self {
        const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
        const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
        const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
        const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
        const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
        const P521: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.35");
        let info: &SubjectPublicKeyInfoOwned = certificate.tbs_certificate().subject_public_key_info();
        match info.algorithm.oid {
            RSA => rsa_bits(info).map_or(Self::Other, Self::Rsa),
            ED25519 => Self::Ed25519,
            EC => match info.algorithm.parameters.as_ref().and_then(|p| p.decode_as::<ObjectIdentifier>().ok()) {
                Some(P256) => Self::P256,
                Some(P384) => Self::P384,
                Some(P521) => Self::P521,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA with {bits} bits"),
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::P521 => f.write_str("P-521"),
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::Other => f.write_str("another kind"),
        }
    }
}

/// Bits of the modulus, the first member of RFC 8017's `RSAPublicKey`.
fn rsa_bits(info: &SubjectPublicKeyInfoOwned) -> Option<usize> {
    use x509_cert::der::asn1::UintRef;
    use x509_cert::der::{Header, Reader, SliceReader};
    let mut reader = SliceReader::new(info.subject_public_key.as_bytes()?).ok()?;
    Header::decode(&mut reader).ok()?;
    let modulus = UintRef::decode(&mut reader).ok()?;
    // The exponent stays unread: `finish` would object, so the reader is just dropped.
    let _ = reader.remaining_len();
    let (first, rest) = modulus.as_bytes().split_first()?;
    Some(rest.len() * 8 + (8 - usize::try_from(first.leading_zeros()).ok()?))
}

/// `None`: there is no such extension, or none that can be read.
pub(super) fn extended_key_usages(certificate: &Certificate) -> Option<Vec<ObjectIdentifier>> {
    certificate.tbs_certificate().get_extension::<ExtendedKeyUsage>().ok().flatten().map(|(_, usages)| usages.0)
}

/// Whether a client may prove itself by a signature with this key (RFC 5280 4.2.1.3, RFC 8446 4.4.2.2). Without the
/// extension it may.
pub(super) fn may_sign(certificate: &Certificate) -> bool {
    match certificate.tbs_certificate().get_extension::<KeyUsage>() {
        Ok(usage) => usage.is_none_or(|(_, usage)| usage.digital_signature()),
        Err(_) => false,
    }
}

/// From `notBefore` to `notAfter`.
pub(super) fn validity(certificate: &Certificate) -> Duration {
    let validity = certificate.tbs_certificate().validity();
    validity.not_after.to_unix_duration().saturating_sub(validity.not_before.to_unix_duration())
}

fn public_key_sha256(certificate: &Certificate) -> [u8; 32] {
    // DER has one encoding only, so encoding anew gives the bytes that were read; it cannot fail on what was decoded.
    sha256(&certificate.tbs_certificate().subject_public_key_info().to_der().unwrap_or_default())
}

/// Judges the one client of one connection and remembers the verdict: the alert alone would not tell the operator
/// enough, and the identity comes from the judgement itself, not from a second reading.
#[derive(Debug)]
pub(super) struct Judge {
    policy: Arc<Policy>,
    verdict: OnceLock<Result<PeerIdentity, Refusal>>,
}

impl Judge {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        Self { policy, verdict: OnceLock::new() }
    }

    /// `None`: no certificate has come. Trust an identity only once the handshake has proven the client's key.
    pub(super) fn verdict(&self) -> Option<&Result<PeerIdentity, Refusal>> {
        self.verdict.get()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.policy.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match self.verdict.get_or_init(|| self.policy.judge(end_entity, intermediates, now)) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(refusal) => Err(rustls::Error::InvalidCertificate(refusal.alert.clone())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.policy.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.policy.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.policy.chain.supported_verify_schemes()
    }
}
