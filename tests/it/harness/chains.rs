//! Certificate chains that strangers made up to keep whoever looks at them busy. Tests and benchmarks share them.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256,
    PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA512, RsaKeySize, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};

/// What the stranger sends, as PEM, the own certificate first.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    pub(crate) what: &'static str,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// PKCS #8, as PEM.
    pub(crate) key: String,
    /// It is beyond what is looked at.
    pub(crate) out_of_bounds: bool,
}

/// Chains for one who knows the authority's name: servers send it to everyone.
pub(crate) fn hostile(authority: &DistinguishedName, usage: &ExtendedKeyUsagePurpose) -> Vec<Chain> {
    let maker = Maker { authority, usage };
    let keys: Vec<KeyPair> = (0..8).map(|_| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()).collect();
    let large: Vec<KeyPair> = (0..8).map(|_| KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap()).collect();
    let rsa: Vec<KeyPair> =
        (0..3).map(|_| KeyPair::generate_rsa_for(&PKCS_RSA_SHA512, RsaKeySize::_4096).unwrap()).collect();
    let other = name("nobody");
    vec![
        maker.tangle("180 certificates of one name with three keys", &other, 180, &keys[..3], true),
        maker.tangle("36 certificates of one name with eight keys", &other, 36, &keys, true),
        maker.tangle("8 certificates of one name with a key each", &other, 8, &keys, true),
        maker.tangle("8 certificates of the authority's name", authority, 8, &keys, true),
        maker.tangle("3 certificates of the authority's name", authority, 3, &keys[..3], false),
        maker.tangle("3 certificates of the authority's name, P-384", authority, 3, &large[..3], false),
        maker.tangle("3 certificates of the authority's name, RSA-4096", authority, 3, &rsa, false),
        maker.pairs("pairs of certificates that all fit together", &keys),
        maker.leaf("31 KB of alternative names", &keys[0], |params| {
            params.subject_alt_names = (0..1_500).map(|n| dns(&format!("host-{n}.example"))).collect();
        }),
        maker.leaf("31 KB of usages", &keys[0], |params| {
            let usage = |n: u64| ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 9, n]);
            params.extended_key_usages = (0..2_600).map(usage).collect();
        }),
        maker.leaf("31 KB of a common name", &keys[0], |params| {
            params.distinguished_name.push(DnType::CommonName, "\u{202e}".repeat(10_000));
        }),
        maker.leaf("31 KB of extensions", &keys[0], |params| {
            let extension = |n: u64| CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9, n], vec![5, 0]);
            params.custom_extensions = (0..1_700).map(extension).collect();
        }),
        maker.leaf("7,000 sequences within each other", &keys[0], |params| {
            params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 9], nested(7_000))];
        }),
        maker.constrained("names against constraints", &keys),
        maker.leaf("a signature of RSA-4096", &rsa[0], |_| ()),
    ]
}

struct Maker<'a> {
    authority: &'a DistinguishedName,
    usage: &'a ExtendedKeyUsagePurpose,
}

impl Maker<'_> {
    /// A leaf, and `count` authorities of one name that may all have issued it and each other.
    fn tangle(
        &self,
        what: &'static str,
        name: &DistinguishedName,
        count: u64,
        keys: &[KeyPair],
        out_of_bounds: bool,
    ) -> Chain {
        let mut certificates = vec![self.end_entity(&keys[0], name, &keys[0], |_| ())];
        let key = |n: u64| &keys[usize::try_from(n).unwrap() % keys.len()];
        certificates.extend((0..count).map(|n| authority(name, key(n), name, key(n + 1), n + 1, |_| ())));
        Chain { what, certificates, key: keys[0].serialize_pem(), out_of_bounds }
    }

    /// Two authorities of each of four names, one above the other, the last two issued by the real one.
    fn pairs(&self, what: &'static str, keys: &[KeyPair]) -> Chain {
        let names: Vec<DistinguishedName> =
            (0..3).map(|n| name(&n.to_string())).chain([self.authority.clone()]).collect();
        let mut certificates = vec![self.end_entity(&keys[0], &names[0], &keys[0], |_| ())];
        for (level, own) in names.iter().enumerate() {
            let above = names.get(level + 1).unwrap_or(own);
            for twin in 0..2 {
                let (key, serial) = (&keys[level * 2 + twin], u64::try_from(level * 2 + twin).unwrap() + 1);
                certificates.push(authority(own, key, above, key, serial, |_| ()));
            }
        }
        Chain { what, certificates, key: keys[0].serialize_pem(), out_of_bounds: true }
    }

    /// One certificate that says it is from the real authority.
    fn leaf(&self, what: &'static str, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Chain {
        let certificates = vec![self.end_entity(key, self.authority, key, change)];
        Chain { what, certificates, key: key.serialize_pem(), out_of_bounds: false }
    }

    /// Many names below an authority that constrains many.
    fn constrained(&self, what: &'static str, keys: &[KeyPair]) -> Chain {
        let below = name("below");
        let end_entity = self.end_entity(&keys[0], &below, &keys[1], |params| {
            params.subject_alt_names = (0..700).map(|n| dns(&format!("host-{n}.example"))).collect();
        });
        let above = authority(&below, &keys[1], self.authority, &keys[2], 1, |params| {
            let subtree = |n| GeneralSubtree::DnsName(format!("not-{n}.example"));
            let excluded_subtrees = (0..700).map(subtree).collect();
            params.name_constraints = Some(NameConstraints { permitted_subtrees: Vec::new(), excluded_subtrees });
        });
        Chain { what, certificates: vec![end_entity, above], key: keys[0].serialize_pem(), out_of_bounds: false }
    }

    fn end_entity(
        &self,
        key: &KeyPair,
        issuer: &DistinguishedName,
        issuer_key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = valid(CertificateParams::default());
        params.distinguished_name = name("stranger");
        params.subject_alt_names = vec![dns("localhost")];
        params.extended_key_usages = vec![self.usage.clone()];
        change(&mut params);
        signed(&params, key, issuer, issuer_key)
    }
}

fn authority(
    own: &DistinguishedName,
    key: &KeyPair,
    issuer: &DistinguishedName,
    issuer_key: &KeyPair,
    serial: u64,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateDer<'static> {
    let mut params = valid(CertificateParams::default());
    params.distinguished_name = own.clone();
    params.serial_number = Some(SerialNumber::from(serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    signed(&params, key, issuer, issuer_key)
}

fn signed(
    params: &CertificateParams,
    key: &KeyPair,
    issuer: &DistinguishedName,
    issuer_key: &KeyPair,
) -> CertificateDer<'static> {
    let mut issuer_params = CertificateParams::default();
    issuer_params.distinguished_name = issuer.clone();
    issuer_params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.signed_by(key, &Issuer::from_params(&issuer_params, issuer_key)).unwrap().der().clone()
}

fn valid(mut params: CertificateParams) -> CertificateParams {
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(90);
    params
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// DER of sequences, `depth` of them, each the only member of the one around it.
fn nested(depth: usize) -> Vec<u8> {
    let mut reversed: Vec<u8> = Vec::new();
    for _ in 0..depth {
        let length = reversed.len();
        match length {
            0..=127 => reversed.push(u8::try_from(length).unwrap()),
            128..=255 => reversed.extend([u8::try_from(length).unwrap(), 0x81]),
            _ => reversed.extend([length.to_le_bytes()[0], length.to_le_bytes()[1], 0x82]),
        }
        reversed.push(0x30);
    }
    reversed.reverse();
    reversed
}
