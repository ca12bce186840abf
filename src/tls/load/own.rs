//! The server's own side of a set: its certificate with the chain above, and the key.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::InconsistentKeys;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use x509_cert::Certificate;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::{AuthorityInfoAccessSyntax, SubjectAltName};

use super::signed::{Algorithms, Signature, signature};
use super::{Loading, date, is_ca, may_certify};
use crate::config::Tls;
use crate::pem;
use crate::tls::expiry::Expiry;
use crate::tls::files::Content;
use crate::tls::finding::Finding;
use crate::tls::identity::rfc4514;
use crate::tls::verify::{Key, LONG_VALIDITY, extended_key_usages, validity};

const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
const CA_ISSUERS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.2");
const CERTIFICATE_SOON: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const KEY_REMEDY: &str = "it must hold a PEM key of PKCS #8, PKCS #1 or SEC 1 without a passphrase \
                          (`openssl pkey -in … -out …` removes one)";

impl Loading<'_> {
    /// The server's own certificate, its chain and key.
    pub(super) fn own(&mut self, tls: &Tls, provider: &CryptoProvider) -> Option<Arc<SingleCertAndKey>> {
        let chain = self.pem(&tls.certificate, pem::chain);
        let key = self.private_key(&tls.private_key).and_then(|key| {
            let key = provider.key_provider.load_private_key(key).ok();
            if key.is_none() {
                self.error("is no private key that can be used", &tls.private_key, KEY_REMEDY);
            }
            key
        });
        let chain = chain?;
        let parsed = self.parse(&chain, &tls.certificate)?;
        let belongs = |certificate: &CertificateDer<'static>| {
            let pair = key.clone().map(|key| CertifiedKey::new(vec![certificate.clone()], key));
            pair.is_some_and(|pair| pair.keys_match().is_ok())
        };
        if let Some(place) = chain.iter().position(belongs).filter(|place| *place > 0) {
            // What else is to be said would be about another's certificate.
            let what = format!("the server's own certificate comes only as number {} in it", place + 1);
            self.error(what, &tls.certificate, "put it first, then its intermediates, upwards");
            return None;
        }
        self.check_own(&parsed, &tls.certificate);
        self.check_issuers(&chain, &parsed, &tls.certificate, provider.signature_verification_algorithms.all);
        let key = key?;
        let pair = CertifiedKey::new(chain, key);
        match pair.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => {
                let what = format!("does not belong to the certificate in {}", tls.certificate.display());
                self.error(what, &tls.private_key, "set tls.certificate and tls.private_key to files of one pair");
                return None;
            }
        }
        Some(Arc::new(SingleCertAndKey::from(pair)))
    }

    fn check_own(&mut self, chain: &[Certificate], file: &Path) {
        let Some((own, issuers)) = chain.split_first() else { return };
        let expiries = chain.iter().map(|certificate| Expiry::of_certificate("tls.certificate", file, certificate));
        self.expiries.extend(expiries);
        let tbs = own.tbs_certificate();
        self.check_time(own, file);
        match Key::of(own) {
            Key::Rsa(bits) if bits >= 3072 => {}
            Key::P256 | Key::P384 | Key::P521 | Key::Ed25519 => {}
            key => self.error(
                format!("the server's key is {key}; ASAPP wants RSA of at least 3072 bits or a 256-bit curve"),
                file,
                "have a certificate issued for a stronger key",
            ),
        }
        match extended_key_usages(own) {
            Some(usages) if usages.contains(&SERVER_AUTH) => {
                if usages.len() > 1 {
                    self.warn(
                        "is meant for more than server authentication, ASAPP expects `serverAuth` only",
                        file,
                        "",
                    );
                }
            }
            _ => self.error(
                "is not meant for server authentication",
                file,
                "have it issued with the extended key usage `serverAuth`",
            ),
        }
        if validity(own) >= LONG_VALIDITY {
            self.warn("is valid for 3 years or more, ASAPP expects less", file, "have the next one issued for less");
        }
        if !matches!(tbs.get_extension::<SubjectAltName>(), Ok(Some(_))) {
            self.warn("names no host (subject alternative name), so no client will trust it", file, "");
        }
        let mut above = own;
        for issuer in issuers {
            if above.tbs_certificate().issuer() != issuer.tbs_certificate().subject() {
                let what = "the certificates do not follow each other: each must be issued by the next";
                self.warn(what, file, "put the server's certificate first, then its intermediates, upwards");
                break;
            }
            if self.expired(issuer.tbs_certificate().validity().not_after) {
                let name = rfc4514(issuer.tbs_certificate().subject());
                self.warn(format!("the intermediate certificate of `{name}` has expired"), file, "replace it");
            }
            above = issuer;
        }
        // Public CAs say where their certificate can be had, and always issue through an intermediate.
        let has_issuer_url = matches!(tbs.get_extension::<AuthorityInfoAccessSyntax>(), Ok(Some((_, access)))
            if access.0.iter().any(|entry| entry.access_method == CA_ISSUERS));
        if issuers.is_empty() && has_issuer_url {
            let name = rfc4514(tbs.issuer());
            self.warn(format!("the intermediate certificate of `{name}` is missing"), file, "append it to the file");
        }
    }

    /// Those above the own certificate have to be able to vouch for it, or no client trusts it.
    fn check_issuers(
        &mut self,
        ders: &[CertificateDer<'static>],
        chain: &[Certificate],
        file: &Path,
        algorithms: Algorithms,
    ) {
        for ((der, below), issuer) in ders.iter().zip(chain).zip(chain.iter().skip(1)) {
            if below.tbs_certificate().issuer() != issuer.tbs_certificate().subject() {
                // That they do not follow each other was said.
                break;
            }
            let name = rfc4514(issuer.tbs_certificate().subject());
            if !is_ca(issuer) && issuer.tbs_certificate().extensions().is_some() {
                self.error(format!("the intermediate `{name}` is no CA"), file, "append the one that the CA sent");
            } else if !may_certify(issuer) {
                let what =
                    format!("the intermediate `{name}` may not sign certificates: its key usage lacks keyCertSign");
                self.error(what, file, "append the one that the CA sent");
            } else if signature(der, issuer, algorithms) == Signature::Bad {
                let below = rfc4514(below.tbs_certificate().subject());
                let what = format!("`{below}` is not signed by the key of `{name}` that follows it");
                self.error(what, file, "append the intermediate of that name that the CA sent with it");
            }
        }
    }

    fn check_time(&mut self, own: &Certificate, file: &Path) {
        let validity = own.tbs_certificate().validity();
        let (from, to) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
        if self.now < from {
            self.error(
                format!("is not valid before {}", date(validity.not_before)),
                file,
                "wait, or check the clock of this machine",
            );
        } else if self.now > to {
            self.error(format!("expired on {}", date(validity.not_after)), file, "renew it");
        } else {
            let left = to - self.now;
            let what =
                format!("is valid for {} more days, until {}", left.as_secs() / 86_400, date(validity.not_after));
            self.findings.push(if left < CERTIFICATE_SOON {
                Finding::warning(what, file, "renew it")
            } else {
                Finding::info(what, file)
            });
        }
    }

    fn private_key(&mut self, file: &Path) -> Option<PrivateKeyDer<'static>> {
        let Content { bytes: text, mode } = self.read(file)?;
        if mode & 0o007 != 0 {
            self.warn("any user of this machine can read the private key", file, "chmod o-rwx it");
        }
        pem::private_key(text).map_err(|fault| self.error(fault.what(), file, fault.remedy())).ok()
    }
}
