//! The bounds of a peer's certificate chain, checked before any signature of it is verified.
//!
//! A peer chooses what it sends, and webpki tries every way in which certificates fit together by name: a few dozen that
//! share one name keep it busy for seconds, on the thread that shakes hands. Within these bounds it tries at most
//! [`WAYS`] of them. The end entity's issuer and each intermediate's are read here with the outermost layers of DER only.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::{Decode, Reader, SliceReader, Tag, TagNumber, Tagged};
use x509_cert::ext::pkix::KeyUsage;

/// More than any CA needs; webpki itself goes no deeper than six.
const INTERMEDIATES: usize = 8;
/// Of all certificates together.
const BYTES: usize = 32 << 10;
/// Steps from a certificate to one that may have issued it, over all ways. A chain has as many steps as intermediates, and
/// each cross-signed intermediate doubles those above it.
const WAYS: usize = 16;

/// Why a chain is refused unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    Number(usize),
    Size(usize),
    Ways,
    Damaged,
}

/// What webpki may look at.
pub(super) struct Fit<'a> {
    /// Each once.
    pub(super) intermediates: Vec<CertificateDer<'a>>,
    /// Left out, as their key usage does not let them sign certificates (RFC 5280 4.2.1.3), which webpki does not look at.
    pub(super) barred: usize,
}

/// # Errors
/// When it is out of bounds, or not even its outermost layers can be read.
pub(super) fn fit<'a>(
    end_entity: &'a CertificateDer<'_>,
    intermediates: &'a [CertificateDer<'_>],
) -> Result<Fit<'a>, Unfit> {
    if intermediates.len() > INTERMEDIATES {
        return Err(Unfit::Number(intermediates.len()));
    }
    let bytes = intermediates.iter().fold(end_entity.len(), |sum, certificate| sum + certificate.len());
    if bytes > BYTES {
        return Err(Unfit::Size(bytes));
    }
    let first = Link::of(end_entity).ok_or(Unfit::Damaged)?;
    let mut fit = Fit { intermediates: Vec::new(), barred: 0 };
    let mut links = Vec::new();
    for certificate in intermediates {
        let link = Link::of(certificate).ok_or(Unfit::Damaged)?;
        if !link.may_certify {
            fit.barred += 1;
        } else if !fit.intermediates.iter().any(|known| known.as_ref() == certificate.as_ref()) {
            fit.intermediates.push(CertificateDer::from(certificate.as_ref()));
            links.push(link);
        }
    }
    let mut left = WAYS;
    if tried(&mut vec![&first], &links, &mut left) { Ok(fit) } else { Err(Unfit::Ways) }
}

/// Follows every way up from the last of `path`, as webpki does. False once there are more than were `left`.
fn tried<'a, 'l>(path: &mut Vec<&'l Link<'a>>, links: &'l [Link<'a>], left: &mut usize) -> bool {
    let Some(issuer) = path.last().map(|last| last.issuer) else { return true };
    for link in links.iter().filter(|link| link.subject == issuer) {
        if path.iter().any(|below| below.subject == link.subject && below.key == link.key) {
            continue;
        }
        let Some(rest) = left.checked_sub(1) else { return false };
        *left = rest;
        path.push(link);
        let within = tried(path, links, left);
        path.pop();
        if !within {
            return false;
        }
    }
    true
}

/// What decides whether certificates fit together, as bytes.
struct Link<'a> {
    subject: &'a [u8],
    issuer: &'a [u8],
    key: &'a [u8],
    /// It has no key usage, or one with `keyCertSign`.
    may_certify: bool,
}

impl<'a> Link<'a> {
    fn of(der: &'a [u8]) -> Option<Self> {
        let certificate = sequence(AnyRef::from_der(der).ok()?)?;
        let mut fields = Fields::of(sequence(Fields::of(certificate).ok()?.next()?)?).ok()?;
        let mut field = fields.next()?;
        if field.tag().is_context_specific() {
            // The version; after it the serial number.
            field = fields.next()?;
        }
        if field.tag() != Tag::Integer {
            return None;
        }
        let _algorithm = fields.next()?;
        let issuer = sequence(fields.next()?)?;
        let _validity = fields.next()?;
        let subject = sequence(fields.next()?)?;
        let key = sequence(fields.next()?)?;
        let is_extensions = |field: &AnyRef<'_>| field.tag().number() == TagNumber(3);
        let extensions = fields.find(|field| field.tag().is_context_specific() && is_extensions(field));
        let may_certify = match extensions {
            None => true,
            Some(extensions) => may_certify(sequence(AnyRef::from_der(extensions.value()).ok()?)?)?,
        };
        Some(Self { subject, issuer, key, may_certify })
    }
}

/// `None`: the extensions cannot be read.
fn may_certify(extensions: &[u8]) -> Option<bool> {
    const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
    for extension in Fields::of(extensions).ok()? {
        let mut parts = Fields::of(sequence(extension)?).ok()?;
        let is_it = parts.next()?.decode_as::<ObjectIdentifier>().is_ok_and(|name| name == KEY_USAGE);
        if is_it {
            let value = parts.find(|part| part.tag() == Tag::OctetString)?;
            return Some(KeyUsage::from_der(value.value()).is_ok_and(|usage| usage.key_cert_sign()));
        }
    }
    Some(true)
}

fn sequence(value: AnyRef<'_>) -> Option<&[u8]> {
    (value.tag() == Tag::Sequence).then(|| value.value())
}

/// The members of a sequence, until one that cannot be read.
struct Fields<'a>(SliceReader<'a>);

impl<'a> Fields<'a> {
    fn of(contents: &'a [u8]) -> Result<Self, x509_cert::der::Error> {
        SliceReader::new(contents).map(Self)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = AnyRef<'a>;

    fn next(&mut self) -> Option<AnyRef<'a>> {
        if self.0.is_finished() { None } else { AnyRef::decode(&mut self.0).ok() }
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "the chain has {number} intermediates, more than {INTERMEDIATES}"),
            Self::Size(bytes) => write!(f, "the chain has {bytes} bytes, more than {BYTES}"),
            Self::Ways => write!(f, "the certificates of the chain fit together in more than {WAYS} ways"),
            Self::Damaged => f.write_str("the chain has a certificate that cannot be read"),
        }
    }
}

impl std::error::Error for Unfit {}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
    };

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn key() -> KeyPair {
        KeyPair::generate().unwrap()
    }

    fn signed(name: &str, issuer: &Authority) -> Authority {
        CertifiedIssuer::signed_by(params(name), key(), issuer).unwrap()
    }

    fn root(name: &str) -> Authority {
        CertifiedIssuer::self_signed(params(name), key()).unwrap()
    }

    fn leaf(issuer: &Authority, padding: usize) -> CertificateDer<'static> {
        let mut params = params("leaf");
        params.is_ca = IsCa::NoCa;
        params.subject_alt_names = vec![SanType::DnsName("a".repeat(padding + 1).try_into().unwrap())];
        params.signed_by(&key(), issuer).unwrap().der().clone()
    }

    fn verdict(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(usize, usize), Unfit> {
        fit(end_entity, intermediates).map(|fit| (fit.intermediates.len(), fit.barred))
    }

    #[test]
    fn a_straight_chain_is_looked_at_in_any_order_and_a_longer_one_is_not() {
        let mut chain = vec![root("0")];
        for level in 1..=9 {
            chain.push(signed(&level.to_string(), &chain[level - 1]));
        }
        let sent: Vec<_> = chain.iter().skip(1).map(|authority| authority.der().clone()).collect();
        assert_eq!(verdict(&leaf(&chain[8], 0), &sent[..8]), Ok((8, 0)));
        let backwards: Vec<_> = sent[..8].iter().rev().cloned().collect();
        assert_eq!(verdict(&leaf(&chain[8], 0), &backwards), Ok((8, 0)));
        assert_eq!(verdict(&leaf(&chain[9], 0), &sent), Err(Unfit::Number(9)));
        assert_eq!(verdict(&leaf(&chain[0], 0), &[]), Ok((0, 0)));
    }

    #[test]
    fn all_bytes_count() {
        let root = root("root");
        let small = leaf(&root, 0);
        let large = leaf(&root, BYTES - small.len());
        assert_eq!(verdict(&large, &[]), Err(Unfit::Size(large.len())));
        let half = leaf(&root, BYTES / 2);
        assert_eq!(verdict(&half, &[]), Ok((0, 0)));
        assert!(matches!(verdict(&half, std::slice::from_ref(&half)), Err(Unfit::Size(_))));
    }

    #[test]
    fn certificates_of_one_name_are_not_tried_in_every_order() {
        let root = root("one");
        let same: Vec<_> = (0..8).map(|_| signed("one", &root).der().clone()).collect();
        assert_eq!(verdict(&leaf(&root, 0), &same), Err(Unfit::Ways));
        // 3 + 3 * 2 + 3 * 2 * 1 steps.
        assert_eq!(verdict(&leaf(&root, 0), &same[..3]), Ok((3, 0)));
        assert_eq!(verdict(&leaf(&root, 0), &vec![same[0].clone(); 8]), Ok((1, 0)), "one that is sent again");
    }

    #[test]
    fn cross_signed_intermediates_are_looked_at() {
        let (old, new) = (root("old"), root("new"));
        let above = key();
        let by_old = params("above").signed_by(&above, &old).unwrap().der().clone();
        let above = CertifiedIssuer::signed_by(params("above"), above, &new).unwrap();
        let below = signed("below", &above);
        let sent = [below.der().clone(), above.der().clone(), by_old, new.der().clone()];
        assert_eq!(verdict(&leaf(&below, 0), &sent), Ok((4, 0)));
    }

    #[test]
    fn an_intermediate_that_may_not_sign_is_left_out() {
        let root = root("root");
        let with = |usages: Vec<KeyUsagePurpose>| {
            let mut params = params("intermediate");
            params.key_usages = usages;
            CertifiedIssuer::signed_by(params, key(), &root).unwrap()
        };
        let may = with(vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign]);
        let may_not = with(vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign]);
        assert_eq!(verdict(&leaf(&may, 0), &[may.der().clone()]), Ok((1, 0)));
        assert_eq!(verdict(&leaf(&may_not, 0), &[may_not.der().clone()]), Ok((0, 1)));
    }

    #[test]
    fn what_is_no_certificate_is_refused_and_never_panics() {
        let root = root("root");
        let good = leaf(&root, 20);
        for cut in 0..good.len() {
            assert_eq!(verdict(&CertificateDer::from(&good[..cut]), &[]), Err(Unfit::Damaged), "{cut}");
        }
        for place in 0..good.len() {
            let mut bent = good.to_vec();
            bent[place] ^= 0x55;
            let _ = verdict(&CertificateDer::from(bent), &[root.der().clone()]);
        }
        assert_eq!(verdict(&good, &[CertificateDer::from(&[0x30, 0][..])]), Err(Unfit::Damaged));
    }
}
