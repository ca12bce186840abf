//! The revocation lists of a set: whose they are, and whether they can be asked about clients.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertRevocationListError, OtherError, RootCertStore};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::der::asn1::{AnyRef, ObjectIdentifier};
use x509_cert::der::oid::AssociatedOid;
use x509_cert::der::{Decode, SliceReader, Tag, Tagged};
use x509_cert::ext::pkix::CrlNumber;
use x509_cert::ext::pkix::crl::dp::IssuingDistributionPoint;
use x509_cert::name::Name;

use super::signed::{Algorithms, Signature, signature};
use super::{Loading, Root, date, key_usage};
use crate::pem;
use crate::tls::expiry::{Expiry, LIST_SOON};
use crate::tls::finding::Finding;
use crate::tls::identity::rfc4514;
use crate::tls::revocation::{List, Number};

/// `x509_cert` has another extension's number for it.
const ISSUING_DISTRIBUTION_POINT: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.28");
/// Each handshake with a client of its CA hashes all of it, which takes about as many milliseconds.
const LARGEST: usize = 16 << 20;

/// OpenSSL's `ca -gencrl` writes what is missing where its settings have these.
const FULLER: &str = "have the CA write lists as RFC 5280 5 wants them: version 2, nextUpdate, cRLNumber (OpenSSL: \
                      `crlnumber` and `crl_extensions`)";

/// A list that may be asked.
pub(super) struct Crl {
    pub(super) der: CertificateRevocationListDer<'static>,
    pub(super) list: List,
    file: PathBuf,
    /// It says nothing of clients.
    of_authorities: bool,
}

impl Loading<'_> {
    pub(super) fn client_crl(&mut self, files: &[PathBuf], roots: &[Root], provider: &Arc<CryptoProvider>) -> Vec<Crl> {
        let mut crls = Vec::new();
        for file in files {
            let Some(ders) = self.pem(file, pem::lists) else { continue };
            for der in ders {
                if der.len() > LARGEST {
                    let what = format!("has a list of {} MiB, more than {}", der.len() >> 20, LARGEST >> 20);
                    self.error(what, file, "each handshake hashes all of it: ask the CA for partitioned lists");
                    continue;
                }
                let Ok(list) = CertificateList::<x509_cert::certificate::Rfc5280>::from_der(der.as_ref()) else {
                    if is_of_first_version(&der) {
                        let what = "has a list that cannot be used: it is of version 1, without a number (cRLNumber)";
                        self.error(what, file, FULLER);
                    } else {
                        self.error("is no revocation list that can be read", file, "fetch it again from the CA");
                    }
                    continue;
                };
                let unusable =
                    lacking(&list).map(|what| (what.to_owned(), FULLER)).or_else(|| unusable(&der, roots, provider));
                if let Some((unusable, remedy)) = unusable {
                    let what =
                        format!("has a list that cannot be used, of `{}`: ", rfc4514(&list.tbs_cert_list.issuer));
                    self.error(what + &unusable, file, remedy);
                    continue;
                }
                self.check_crl(&list, file, roots);
                let signer = self.signer(&der, &list, file, roots, provider.signature_verification_algorithms.all);
                let scope = scope(&list);
                let of_authorities = scope.is_some_and(is_of_authorities);
                let scope = scope.map(<[u8]>::to_vec);
                let number = number(&list);
                let list = list.tbs_cert_list;
                let issued_at = list.this_update.to_unix_duration();
                let revoked = list.revoked_certificates.into_iter().flatten().map(|entry| entry.serial_number);
                let revoked = revoked.collect();
                let list = List { issuer: list.issuer, scope, number, issued_at, signer, revoked };
                crls.push(Crl { der, list, file: file.clone(), of_authorities });
            }
        }
        // webpki asks the first list of an issuer that may be about a client: that should be one that is about all of
        // them, is in force, and the newest. `revocation::Lists` asks the others.
        let now = self.now;
        let place =
            |list: &List| (list.scope.is_some(), list.issued_at > now, Reverse((list.number.clone(), list.issued_at)));
        crls.sort_by_key(|crl| place(&crl.list));
        self.check_coverage(&crls, roots);
        self.check_partitions(&crls);
        crls
    }

    /// The CA whose key has signed this list. One that bears a CA's name and is another's would refuse all its clients.
    fn signer(
        &mut self,
        der: &[u8],
        list: &CertificateList,
        file: &Path,
        roots: &[Root],
        algorithms: Algorithms,
    ) -> Option<usize> {
        let is_issuer = |root: &Root| *root.certificate.tbs_certificate().subject() == list.tbs_cert_list.issuer;
        let verdicts: Vec<(usize, Signature)> = roots
            .iter()
            .enumerate()
            .filter(|(_, root)| is_issuer(root))
            .map(|(place, root)| (place, signature(der, &root.certificate, algorithms)))
            .collect();
        let good = verdicts.iter().find(|(_, verdict)| *verdict == Signature::Good).map(|(place, _)| *place);
        let name = rfc4514(&list.tbs_cert_list.issuer);
        if let Some(root) = good.and_then(|place| roots.get(place)) {
            if !may_sign_lists(&root.certificate) {
                let what = format!("the CA `{name}` may not sign revocation lists: its key usage lacks cRLSign");
                self.error(what, file, "ask the CA which list is good, or leave it out of tls.client_crl");
            }
        } else if verdicts.iter().any(|(_, verdict)| *verdict == Signature::Bad) {
            let what = format!("the list of `{name}` is not signed by the key that this CA has in tls.client_ca");
            self.error(what, file, "fetch it again from that CA, or name the CA's certificate that goes with it");
        } else if !verdicts.is_empty() {
            let what = format!("the list of `{name}` is signed in a way that cannot be verified");
            self.error(what, file, "ask the CA for one that is signed with SHA-256 or better");
        }
        good
    }

    /// Which CAs have no list, and which have one that another's hides.
    fn check_coverage(&mut self, crls: &[Crl], roots: &[Root]) {
        if crls.is_empty() {
            return;
        }
        let key = |root: &Root| root.certificate.tbs_certificate().subject_public_key_info().clone();
        let key_of_signer = |crl: &Crl| crl.list.signer.and_then(|place| roots.get(place)).map(key);
        let mut reported: Vec<&Name> = Vec::new();
        for root in roots {
            let subject = root.certificate.tbs_certificate().subject();
            let of_name = || crls.iter().filter(|crl| crl.list.issuer == *subject);
            let own = of_name().any(|crl| !crl.of_authorities && key_of_signer(crl) == Some(key(root)));
            let others = of_name().any(|crl| crl.list.signer.is_some() && key_of_signer(crl) != Some(key(root)));
            let name = rfc4514(subject);
            if own && others && !reported.contains(&subject) {
                reported.push(subject);
                let what =
                    format!("tls.client_crl has lists by two keys of `{name}`, of which only one would be asked");
                self.error(what, &root.file, "remove the CA that is no longer used, and its list");
            } else if !own && (others || !of_name().any(|crl| crl.list.signer.is_none())) {
                self.warn(
                    format!("tls.client_crl has no list of `{name}`: clients it issued itself are refused"),
                    &root.file,
                    "add its revocation list, unless it only issues through intermediates",
                );
            }
        }
    }

    /// Whose list is there in parts only.
    fn check_partitions(&mut self, crls: &[Crl]) {
        let mut seen: Vec<&Name> = Vec::new();
        // Complete lists come first.
        for Crl { list, file, .. } in crls.iter().filter(|crl| !crl.of_authorities) {
            if seen.contains(&&list.issuer) {
                continue;
            }
            seen.push(&list.issuer);
            if list.scope.is_some() {
                let name = rfc4514(&list.issuer);
                let what = format!(
                    "tls.client_crl has the list of `{name}` in partitions only: clients that name none of these as \
                     their distribution point are refused"
                );
                self.warn(what, file, "add the CA's complete list, or see that all its partitions are there");
            }
        }
    }

    fn check_crl(&mut self, list: &CertificateList, file: &Path, roots: &[Root]) {
        let list = &list.tbs_cert_list;
        let issuer = rfc4514(&list.issuer);
        self.expiries.extend(Expiry::of_list("tls.client_crl", file, list));
        if !roots.iter().any(|root| *root.certificate.tbs_certificate().subject() == list.issuer) {
            self.warn(
                format!(
                    "its issuer `{issuer}` is not in tls.client_ca, so it cannot be checked before its clients come"
                ),
                file,
                "fine for an intermediate's list, otherwise add that CA",
            );
        }
        let mut extensions = list.crl_extensions.iter().flatten();
        if !extensions.any(|extension| extension.extn_id == CrlNumber::OID) {
            let what =
                format!("the list of `{issuer}` has no number (cRLNumber): of two lists only the time tells the newer");
            self.warn(what, file, "have the CA number its lists (RFC 5280 5.2.3)");
        }
        if list.this_update.to_unix_duration() > self.now {
            let what = format!("the list of `{issuer}` is of {}, which is to come", date(list.this_update));
            self.warn(what, file, "check the clock of this machine; until then it replaces no other list");
        }
        match list.next_update {
            // It was refused for that.
            None => {}
            Some(next) if self.expired(next) => {
                self.error(format!("the list of `{issuer}` expired on {}", date(next)), file, "fetch the new one");
            }
            Some(next) => {
                let left = next.to_unix_duration().saturating_sub(self.now);
                let what = format!("the list of `{issuer}` is good for {} more hours", left.as_secs() / 3600);
                self.findings.push(if left < LIST_SOON {
                    Finding::warning(what, file, "fetch the new one before its clients are refused")
                } else {
                    Finding::info(what, file)
                });
            }
        }
    }
}

/// What has to be in a list before anything else about it counts.
fn lacking(list: &CertificateList) -> Option<&'static str> {
    if list.tbs_cert_list.next_update.is_none() {
        Some("it does not say when the next list is due (nextUpdate)")
    } else if list.tbs_cert_list.crl_extensions.is_none() {
        Some("it has no extensions, so no number (cRLNumber)")
    } else {
        None
    }
}

/// A list of version 1 begins with the algorithm, where later ones have their version.
fn is_of_first_version(der: &[u8]) -> bool {
    fn first_in(sequence: AnyRef<'_>) -> Result<AnyRef<'_>, x509_cert::der::Error> {
        AnyRef::decode(&mut SliceReader::new(sequence.value())?)
    }
    let first = AnyRef::from_der(der).and_then(first_in).and_then(first_in);
    first.is_ok_and(|first| first.tag() == Tag::Sequence)
}

/// Why webpki does not take a list, and what to do.
fn unusable(
    der: &CertificateRevocationListDer<'static>,
    roots: &[Root],
    provider: &Arc<CryptoProvider>,
) -> Option<(String, &'static str)> {
    use CertRevocationListError as E;
    const PLAIN: &str = "ask the CA for a complete, direct list";
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.first().map(|root| root.der.clone()));
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider));
    let error = match builder.with_crls([der.clone()]).build() {
        // That there is no CA is said elsewhere.
        Ok(_) | Err(VerifierBuilderError::NoRootAnchors) => return None,
        Err(VerifierBuilderError::InvalidCrl(error)) => error,
        Err(error) => return Some((error.to_string(), PLAIN)),
    };
    Some(match error {
        E::UnsupportedDeltaCrl => {
            ("it is a delta list (deltaCRLIndicator), which has changes only".to_owned(), "fetch the complete list")
        }
        E::UnsupportedIndirectCrl => {
            ("it is an indirect list (indirectCRL), with certificates of other CAs".to_owned(), PLAIN)
        }
        E::InvalidCrlNumber => ("its number (cRLNumber) is none of at most 20 bytes".to_owned(), FULLER),
        E::UnsupportedCriticalExtension => ("it has a critical extension that is not known here".to_owned(), PLAIN),
        E::UnsupportedRevocationReason => ("it has a reason of revocation that is not known here".to_owned(), PLAIN),
        E::InvalidRevokedCertSerialNumber => {
            ("it names a certificate by a serial number that cannot be read".to_owned(), "fetch it again from the CA")
        }
        E::Other(OtherError(cause)) => match cause.to_string().as_str() {
            "UnsupportedRevocationReasonsPartitioning" => {
                ("it is about some reasons of revocation only (onlySomeReasons)".to_owned(), PLAIN)
            }
            "UnsupportedCrlIssuingDistributionPoint" => {
                ("its issuingDistributionPoint does not have the point's full name".to_owned(), PLAIN)
            }
            other => (other.to_owned(), PLAIN),
        },
        error => (format!("{error:?}"), PLAIN),
    })
}

fn number(list: &CertificateList) -> Option<Number> {
    let mut extensions = list.tbs_cert_list.crl_extensions.iter().flatten();
    let extension = extensions.find(|extension| extension.extn_id == CrlNumber::OID)?;
    CrlNumber::from_der(extension.extn_value.as_bytes()).ok().as_ref().map(Number::of)
}

/// What a partition says it is about; `None` for a complete list.
fn scope(list: &CertificateList) -> Option<&[u8]> {
    let mut extensions = list.tbs_cert_list.crl_extensions.iter().flatten();
    let extension = extensions.find(|extension| extension.extn_id == ISSUING_DISTRIBUTION_POINT)?;
    Some(extension.extn_value.as_bytes())
}

/// It is about the certificates of CAs alone; those of clients are asked for.
fn is_of_authorities(scope: &[u8]) -> bool {
    IssuingDistributionPoint::from_der(scope).is_ok_and(|scope| scope.only_contains_ca_certs)
}

fn may_sign_lists(certificate: &Certificate) -> bool {
    key_usage(certificate).is_ok_and(|usage| usage.is_none_or(|usage| usage.crl_sign()))
}
