//! Whether an authority has signed what bears its name: certificates and revocation lists alike.

use rustls::pki_types::SignatureVerificationAlgorithm;
use x509_cert::Certificate;
use x509_cert::der::asn1::{AnyRef, BitStringRef};
use x509_cert::der::{Decode, Encode, Reader, SliceReader};

use crate::tls::verify::Key;

/// What the handshakes verify signatures with.
pub(super) type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signature {
    Good,
    /// By another key, or of something else.
    Bad,
    /// No algorithm here goes with it and the key.
    Unknown,
}

/// Of a certificate or a revocation list, by the key of `issuer`.
pub(super) fn signature(der: &[u8], issuer: &Certificate, algorithms: Algorithms) -> Signature {
    let (Some(signed), Some((key_algorithm, key))) = (Signed::of(der), key_of(issuer)) else {
        return Signature::Unknown;
    };
    let goes_with = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
        algorithm.signature_alg_id().as_ref() == signed.algorithm
            && algorithm.public_key_alg_id().as_ref() == key_algorithm
    };
    let mut fitting = algorithms.iter().filter(goes_with).peekable();
    if fitting.peek().is_none() {
        return Signature::Unknown;
    }
    let is_good = fitting.any(|algorithm| algorithm.verify_signature(key, signed.content, signed.signature).is_ok());
    if is_good { Signature::Good } else { Signature::Bad }
}

/// Whether signatures by the key of `issuer` can be verified at all.
pub(super) fn is_usable(issuer: &Certificate, algorithms: Algorithms) -> bool {
    let is_known = key_of(issuer)
        .is_some_and(|(algorithm, _)| algorithms.iter().any(|known| known.public_key_alg_id().as_ref() == algorithm));
    // What webpki's algorithms for RSA take.
    is_known && !matches!(Key::of(issuer), Key::Rsa(bits) if !(2048..=8192).contains(&bits))
}

/// Contents of the algorithm's identifier, and the key itself.
fn key_of(issuer: &Certificate) -> Option<(Vec<u8>, &[u8])> {
    let info = issuer.tbs_certificate().subject_public_key_info();
    let algorithm = info.algorithm.to_der().ok()?;
    let contents = AnyRef::from_der(&algorithm).ok()?.value().to_vec();
    Some((contents, info.subject_public_key.as_bytes()?))
}

/// The three parts of everything that is signed.
struct Signed<'a> {
    content: &'a [u8],
    /// Contents of its identifier.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn of(der: &'a [u8]) -> Option<Self> {
        let mut parts = SliceReader::new(AnyRef::from_der(der).ok()?.value()).ok()?;
        let content = parts.tlv_bytes().ok()?;
        let algorithm = AnyRef::decode(&mut parts).ok()?.value();
        let signature = BitStringRef::decode(&mut parts).ok()?.as_bytes()?;
        Some(Self { content, algorithm, signature })
    }
}
